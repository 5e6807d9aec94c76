//! The steps of a scenario at this level: what is asked of whom, what must be answered, and what must then be so.

use std::time::Duration;

use collective::proto::name::{MemberName, NodeName};
use collective::proto::request::{ErrorCode, Request};
use tokio::time::sleep;

use super::drive::{Director, LOOK, WITHIN};
use super::stage::State;
use crate::check::Rule;
use crate::fault::MS;
use crate::site::{Death, name};
use crate::step::{Act, Answer, Shown, Step, What};
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
        let is_wanted = match (wanted, &outcome) {
            (Answer::Done, Outcome::Done) | (Answer::Unknown, Outcome::Unknown) => true,
            (Answer::Refused(wanted), Outcome::Refused(code)) => wanted == *code,
            _ => false,
        };
        if is_wanted { Ok(()) } else { Err(format!("m{via} should answer {wanted:?}, and answers {outcome:?}")) }
    }

    async fn carry_out(&self, via: usize, what: What) -> Outcome {
        let member = |number: usize| MemberName::new(&name(number)).map_err(|_| Outcome::Unknown);
        let within = match what {
            What::Delete { .. } | What::Leave | What::Role { .. } => DECIDED_WITHIN,
            _ => WITHIN,
        };
        let request = match what {
            What::Write => return self.write(via, 0).await,
            What::Invite { member, dies } => return self.let_in(member, via, dies).await,
            What::Define { node, candidates } => {
                self.stage.lock().note_node(&node, &candidates);
                let assignments = vec![format!("collective.managercandidates={candidates}")];
                Ok(Request::DefineNodes { nodes: node, assignments })
            }
            What::Delete { member: at } => {
                member(at).map(|member| Request::Delete { member, force: true, dry_run: false })
            }
            What::Set { nodes, assignment } => Ok(crate::step::set(&nodes, &assignment)),
            What::Voters { ideal, replace_after_ms } => Ok(crate::step::want_voters(ideal, replace_after_ms)),
            What::Leave => Ok(Request::Leave),
            What::Role { member: at, role } => member(at).map(|member| Request::SetRole { member, role }),
            What::Move { node, to } => member(to).map(|to| Request::Move { nodes: node, to, dry_run: false }),
            What::Drain { member: at, drain } => member(at).map(|member| Request::Drain { member, drain }),
            What::Run { nodes } => Ok(crate::step::run_action(&nodes)),
        };
        match request {
            Ok(request) => self.ask(via, request, within).await.as_ref().map_or(Outcome::Unknown, Outcome::of),
            Err(outcome) => outcome,
        }
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

impl State {
    fn note_node(&mut self, node: &str, candidates: &str) {
        let Ok(node) = NodeName::new(node) else { return };
        let number = |candidate: &str| (0..self.sites.len()).find(|at| name(*at) == candidate);
        let members = candidates.split(',').filter_map(number).collect();
        self.nodes.push((node, members));
    }
}
