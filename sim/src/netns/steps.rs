//! The steps of a scenario at this level: what is asked of whom, what must be answered, and what must then be so.

use std::time::Duration;

use collective::proto::request::ErrorCode;
use tokio::time::sleep;

use super::drive::{Director, LOOK, WITHIN};
use super::stage::State;
use crate::check::Rule;
use crate::fault::MS;
use crate::site::{Death, name};
use crate::step::{Act, Shown, Step, What};
use crate::workload::Outcome;

/// How long an answer takes that nothing waits for, on a machine that has other things to do.
const ON_THE_SPOT: Duration = Duration::from_millis(500);
/// How late a change is seen at most: a turn of the watch, and the answer itself.
const SEEN_WITHIN: u64 = 150 * MS;
/// How long a change of the roster may take.
const DECIDED_WITHIN: Duration = Duration::from_secs(15);

impl Director {
    /// Does and checks what a step says.
    ///
    /// # Errors
    /// What should have been so in time and was not.
    pub(super) async fn take_step(&self, step: &Step) -> Result<(), String> {
        let end = self.stage.lock().time() + step.within_ms * MS + SEEN_WITHIN;
        loop {
            let (now, held, is_over) = {
                let mut state = self.stage.lock();
                (state.time(), state.all_hold(&step.checks), state.is_over())
            };
            match held {
                Ok(()) => break,
                Err(what) if now >= end || is_over => return Err(what),
                Err(_) => sleep(LOOK).await,
            }
        }
        let end = self.stage.lock().time() + step.stays_ms * MS;
        while self.stage.lock().time() < end && !self.stage.lock().is_over() {
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
        let within = Duration::from_millis(act.within_ms).max(ON_THE_SPOT);
        let outcome = match tokio::time::timeout(within, done).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("m{via} does not answer in time")),
        };
        wanted.expect(via, &outcome)
    }

    async fn carry_out(&self, via: usize, what: What) -> Outcome {
        match what {
            What::Write { again } => return self.write(via, 0, again).await,
            What::Invite { member, dies } => return self.let_in(member, via, dies).await,
            _ => {}
        }
        let within = match what {
            What::Delete { .. } | What::Leave | What::Role { .. } => DECIDED_WITHIN,
            _ => WITHIN,
        };
        {
            let mut state = self.stage.lock();
            let members = state.sites.len();
            state.nodes.extend(what.defined(members));
        }
        let Some((_, request)) = what.request() else { return Outcome::Unknown };
        self.ask(via, request, within).await.as_ref().map_or(Outcome::Unknown, Outcome::of)
    }

    async fn let_in(&self, joiner: usize, via: usize, dies: bool) -> Outcome {
        self.boot(joiner);
        let refused = |director: &Self, why: String| {
            director.fail(Rule::BoundedTime, format!("m{joiner} was not let in: {why}"));
            Outcome::Refused(ErrorCode::Failure)
        };
        let (token, invite) = match self.invite(joiner, via).await {
            Ok(invited) => invited,
            Err(why) => return refused(self, why),
        };
        if !dies {
            return match self.join(joiner, via, token, invite).await {
                Ok(()) => Outcome::Done,
                Err(why) => refused(self, why),
            };
        }
        let director = self.clone();
        self.aside(async move { drop(director.join(joiner, via, token, invite).await) });
        // It dies as soon as the others have it on their roster.
        let is_in = |state: &State| {
            let status = state.sites[via].status.as_ref();
            status.is_some_and(|status| status.said.members.iter().any(|member| member.name.as_str() == name(joiner)))
        };
        if !self.wait(20, is_in).await {
            return refused(self, "nobody has it on the roster within 20 s".into());
        }
        self.stage.lock().sites[joiner].downs += 1;
        self.kill(joiner, Death::Killed);
        Outcome::Done
    }
}
