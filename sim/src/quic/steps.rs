//! The steps of a scenario at this level: what is asked of whom, what must be answered, and what must then be so.

use std::time::Duration;

use collective::proto::name::NodeName;
use collective::proto::request::ErrorCode;
use tokio::time::sleep;

use super::drive::{Director, LOOK, WITHIN};
use super::stage::State;
use crate::fault::MS;
use crate::site::Death;
use crate::step::{Act, Shown, Step, What};
use crate::workload::Outcome;

/// How long an answer takes that nothing waits for.
const ON_THE_SPOT: Duration = Duration::from_millis(5);

impl Director {
    /// Does and checks what a step says.
    ///
    /// # Errors
    /// What should have been so in time and was not.
    pub(super) async fn take_step(&self, step: &Step) -> Result<(), String> {
        let end = self.stage.lock().time() + step.within_ms * MS;
        loop {
            let (now, held) = {
                let mut state = self.stage.lock();
                (state.time(), state.all_hold(&step.checks))
            };
            match held {
                Ok(()) => break,
                Err(what) if now >= end || self.is_over() => return Err(what),
                Err(_) => sleep(LOOK).await,
            }
        }
        let end = self.stage.lock().time() + step.stays_ms * MS;
        while self.stage.lock().time() < end && !self.is_over() {
            sleep(LOOK).await;
            self.stage.lock().all_hold(&step.checks)?;
        }
        match &step.act {
            Some(act) => self.act(act).await,
            None => Ok(()),
        }
    }

    async fn act(&self, act: &Act) -> Result<(), String> {
        let director = self.clone();
        let (via, what) = (act.via, act.what.clone());
        let done = tokio::spawn(async move { director.carry_out(via, what).await });
        let Some(wanted) = act.answer else { return Ok(()) };
        // What is answered on the spot still passes from task to task.
        let within = Duration::from_millis(act.within_ms).max(ON_THE_SPOT);
        let outcome = match tokio::time::timeout(within, done).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => return Err("what was asked for panicked".to_owned()),
            Err(_) => return Err(format!("m{via} does not answer in time")),
        };
        wanted.expect(via, &outcome)
    }

    async fn carry_out(&self, via: usize, what: What) -> Outcome {
        match what {
            What::Write { again } => return self.write(via, 0, again).await.unwrap_or(Outcome::Unknown),
            What::Invite { member, dies } => return self.let_in(member, via, dies).await,
            _ => {}
        }
        {
            let mut state = self.stage.lock();
            let members = state.sites.len();
            state.nodes.extend(what.defined(members));
        }
        let Some((_, request)) = what.request() else { return Outcome::Unknown };
        self.ask(via, request, WITHIN).await.as_ref().map_or(Outcome::Unknown, Outcome::of)
    }

    async fn let_in(&self, joiner: usize, via: usize, dies: bool) -> Outcome {
        self.boot(joiner);
        // Its daemon needs a moment to found the collective of its own that it leaves again.
        sleep(LOOK).await;
        let Ok(token) = self.invite(joiner, via).await else { return Outcome::Refused(ErrorCode::Failure) };
        if !dies {
            return match self.join(joiner, token, None).await {
                Ok(()) => Outcome::Done,
                Err(_) => Outcome::Refused(ErrorCode::Failure),
            };
        }
        let director = self.clone();
        tokio::spawn(async move { director.join(joiner, token, None).await });
        // It dies as soon as it holds its welcome.
        let is_in = |state: &State| {
            let seen = state.sites[joiner].seen.as_ref();
            seen.is_some_and(|seen| state.cluster == Some(seen.roster.cluster))
        };
        if !self.wait(20, is_in).await {
            return Outcome::Refused(ErrorCode::Failure);
        }
        self.stage.lock().sites[joiner].downs += 1;
        self.die(joiner, Death::Killed);
        Outcome::Done
    }
}

impl Shown for State {
    fn members(&self) -> usize {
        self.sites.len()
    }

    fn nodes(&self) -> &[(NodeName, Vec<usize>)] {
        &self.nodes
    }

    fn acts(&self, at: usize, node: &NodeName) -> bool {
        Self::acts(self, at, node)
    }

    fn is_quorate(&self, at: usize) -> bool {
        Self::is_quorate(self, at)
    }

    fn is_seated(&self, at: usize) -> bool {
        Self::is_seated(self, at)
    }

    fn voters_at(&self, at: usize) -> usize {
        self.sites[at].seen.as_ref().map_or(0, |seen| seen.roster.voters.len())
    }

    fn counted(&self, what: &str) -> u64 {
        self.coverage.get(what).copied().unwrap_or(0)
    }

    fn noted(&mut self) -> &mut Vec<Option<usize>> {
        &mut self.noted
    }
}
