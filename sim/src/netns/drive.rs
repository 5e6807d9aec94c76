//! One run: found, join by the real way in, load and faults, heal, converge.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use collective::admin::{Client, ClientError};
use collective::proto::name::{MemberName, NodeName};
use collective::proto::request::{ErrorCode, Request, Response, Standing, Target, TokenText};
use collective::proto::roster::Role;
use tokio::time::sleep;

use super::lab::listen;
use super::machine::gone;
use super::stage::{Stage, State};
use crate::check::Rule;
use crate::fault::{MS, SECOND};
use crate::scenario::Scenario;
use crate::site::{Death, name};
use crate::step::Shown;
use crate::trace::Seen;
use crate::workload::Outcome;

/// How long an administrator waits.
pub(super) const WITHIN: Duration = Duration::from_secs(5);
/// How long a joiner waits until it has the data.
const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// How long what was converged must stay so.
const STAYS: u64 = 5 * SECOND;

/// Drives one run.
#[derive(Clone, Debug)]
pub(super) struct Director {
    pub(super) stage: Arc<Stage>,
}

impl Director {
    /// Waits until something is so, at most that long; returns whether it is.
    pub(super) async fn wait(&self, most_s: u64, until: impl Fn(&State) -> bool) -> bool {
        let end = self.stage.lock().time() + most_s * SECOND;
        loop {
            {
                let state = self.stage.lock();
                if until(&state) {
                    return true;
                }
                if state.time() >= end || state.is_over() {
                    return false;
                }
            }
            sleep(LOOK).await;
        }
    }

    pub(super) fn fail(&self, rule: Rule, what: String) {
        self.stage.lock().violate(rule, what);
    }

    /// Runs something in a task of its own, which the end of the run waits for.
    pub(super) fn aside(&self, what: impl Future<Output = ()> + Send + 'static) {
        self.stage.lock().pending += 1;
        let stage = self.stage.clone();
        tokio::spawn(async move {
            what.await;
            stage.lock().pending -= 1;
        });
    }

    // ---- Processes ----

    /// Starts the daemon of a member, unless a fault keeps it down.
    pub(super) fn boot(&self, at: usize) {
        if self.stage.lock().sites[at].downs > 0 {
            return;
        }
        let mut machine = self.stage.machine(at);
        if machine.is_running() {
            return;
        }
        match machine.start() {
            Ok(()) => {
                let mut state = self.stage.lock();
                state.started(at);
                if state.sites[at].pauses > 0 {
                    machine.pause(true);
                }
            }
            Err(error) => self.fail(Rule::Answered, format!("m{at} cannot be started: {error:#}")),
        }
    }

    /// Kills the process of a member.
    pub(super) fn kill(&self, at: usize, death: Death) {
        self.stage.machine(at).kill();
        self.stage.lock().ended(at, death);
    }

    /// Stops the process of a member in good order.
    pub(super) async fn stop(&self, at: usize) {
        self.stage.machine(at).ask_to_stop();
        let is_clean = gone(&self.stage.machines[at]).await;
        self.stage.lock().ended(at, if is_clean { Death::Stopped } else { Death::Killed });
    }

    /// Notices a daemon that ended although nothing ended it.
    fn look_after_processes(&self) {
        for at in 0..self.stage.machines.len() {
            let is_wanted = {
                let state = self.stage.lock();
                state.sites[at].is_up && state.sites[at].downs == 0
            };
            let mut machine = self.stage.machine(at);
            if let Some(status) = machine.ended().filter(|_| is_wanted) {
                let log = std::fs::read_to_string(machine.log()).unwrap_or_default();
                let said = log.lines().rev().find(|line| !line.is_empty()).unwrap_or_default().to_owned();
                let rule = if log.contains("panicked at") { Rule::NoPanic } else { Rule::Answered };
                drop(machine);
                self.fail(rule, format!("the daemon of m{at} ended with {status}: {said}"));
            }
        }
    }

    // ---- Requests ----

    /// Asks a member something over its socket; none when it does not answer in time or is not there.
    pub(super) async fn ask(&self, at: usize, request: Request, within: Duration) -> Option<Response> {
        let socket = self.stage.machine(at).socket();
        let asking = async {
            let mut client = Client::connect(&socket).await?;
            client.request(&request, within).await
        };
        let asked: Result<Response, ClientError> = tokio::time::timeout(within + LOOK, asking).await.ok()?;
        asked.ok()
    }

    // ---- Phases ----

    /// Lets the first member found a collective, and the others join it one after the other.
    async fn assemble(&self, joined: usize) -> Result<(), String> {
        (0..joined).for_each(|at| self.boot(at));
        if !self.wait(60, |state| state.is_seated(0)).await {
            return Err("the founder is not seated within 60 s".into());
        }
        for joiner in 1..joined {
            self.enrol(joiner, 0).await.map_err(|why| format!("m{joiner} did not join: {why}"))?;
        }
        let settled = |state: &State| (0..joined).all(|at| state.is_seated(at) && state.voters_at(at) == joined);
        if self.wait(90, settled).await {
            return Ok(());
        }
        let state = self.stage.lock();
        let lacks = (0..joined).find(|at| !state.is_seated(*at) || state.voters_at(*at) != joined).unwrap_or(0);
        Err(format!("m{lacks} has no seat, or sees {} voters, within 90 s", state.voters_at(lacks)))
    }

    /// Invites a member and lets it join.
    ///
    /// # Errors
    /// Why it did not.
    pub(super) async fn enrol(&self, joiner: usize, via: usize) -> Result<(), String> {
        let (token, invite) = self.invite(joiner, via).await?;
        self.join(joiner, via, token, invite).await
    }

    /// Asks a member for an invitation; returns its token, and a number for it.
    pub(super) async fn invite(&self, joiner: usize, via: usize) -> Result<(String, String), String> {
        let member = MemberName::new(&name(joiner)).map_err(|error| error.to_string())?;
        let invite = Request::Invite { name: member, role: Role::Voter, ttl_ms: 3_600_000, uses: 1 };
        let end = self.stage.lock().time() + 30 * SECOND;
        loop {
            match self.ask(via, invite.clone(), WITHIN).await {
                Some(Response::Invited(invited)) => {
                    let mut state = self.stage.lock();
                    state.count("invited");
                    let number = state.counted("invited");
                    return Ok((invited.token.0.clone(), format!("invitation {number} of m{via}")));
                }
                // Each member that joins takes an epoch or two; the next must wait for it.
                Some(Response::Error(refused)) if refused.error.code == ErrorCode::TryAgain => {
                    if self.stage.lock().time() >= end {
                        return Err(refused.error.message);
                    }
                    sleep(LOOK).await;
                }
                Some(Response::Error(refused)) => return Err(refused.error.message),
                other => return Err(format!("no invitation: {other:?}")),
            }
        }
    }

    /// Has a member join by a token, and waits until it sees itself in the collective.
    pub(super) async fn join(&self, joiner: usize, via: usize, token: String, invite: String) -> Result<(), String> {
        let socket = self.stage.machine(joiner).socket();
        let answers = async {
            while Client::connect(&socket).await.is_err() {
                sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), answers).await.is_err() {
            return Err(format!("m{joiner} does not listen"));
        }
        let before = self.stage.lock().sites[joiner].id.clone();
        let wait_ms = u64::try_from(JOIN_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Join { server: Some(listen(via)), token: TokenText(token), replace: false, wait_ms };
        match self.ask(joiner, request, JOIN_WITHIN).await {
            Some(Response::Done(_)) => {}
            Some(Response::Error(refused)) => return Err(refused.error.message),
            other => return Err(format!("{other:?}")),
        }
        if !self.wait(20, |state| state.is_seated(joiner) && state.sites[joiner].id != before).await {
            return Err(format!("m{joiner} has no seat 20 s after its join"));
        }
        let mut state = self.stage.lock();
        let id = state.sites[joiner].id.clone().unwrap_or_default();
        state.count("enrolled");
        state.note(Some(joiner), Seen::Joined { invite, id });
        Ok(())
    }

    /// Defines the nodes of a run, each with its candidates.
    async fn define_nodes(&self, scenario: &Scenario) -> Result<(), String> {
        let members = scenario.joined;
        for number in 0..scenario.nodes {
            let Ok(node) = NodeName::new(&format!("n{number}")) else { continue };
            let candidates = scenario.candidates_of(number);
            let names: Vec<_> = candidates.iter().map(|member| name(*member)).collect();
            let assignments = vec![format!("collective.managercandidates={}", names.join(","))];
            let define = Request::DefineNodes { nodes: node.to_string(), assignments };
            match self.ask(number % members, define, WITHIN).await {
                Some(Response::Done(_)) => {}
                other => return Err(format!("{node} was not defined: {other:?}")),
            }
            self.stage.lock().nodes.push((node, candidates));
        }
        let managed =
            |state: &State| state.nodes.iter().all(|(node, _)| (0..members).any(|member| state.acts(member, node)));
        if self.wait(20, managed).await { Ok(()) } else { Err("not every node is managed within 20 s".into()) }
    }

    /// Plays a scenario; returns how long it took in the end until everything was equal, in nanoseconds.
    pub(super) async fn play(&self, scenario: &Scenario, until_ms: Option<u64>) -> Option<u64> {
        // Where there is no way, there is none from the beginning.
        self.rewire(0).await;
        let ready = match self.assemble(scenario.joined).await {
            Ok(()) => self.define_nodes(scenario).await,
            failed => failed,
        };
        if let Err(what) = ready {
            self.fail(Rule::Convergence, what);
            return None;
        }
        let begin = self.stage.lock().time();
        self.stage.lock().note(None, Seen::Begin);
        let window_ms = until_ms.map_or(scenario.window_ms, |until| until.min(scenario.window_ms));
        let end = begin + window_ms * MS;
        let faults = self.schedule(scenario.faults.clone(), begin);
        self.start_load(scenario.load, end);
        for step in scenario.steps.iter().filter(|step| step.at_ms <= window_ms) {
            self.sleep_until(begin + step.at_ms * MS).await;
            if self.stage.lock().is_over() {
                break;
            }
            if let Err(what) = self.take_step(step).await {
                self.fail(Rule::BoundedTime, format!("not so in time: {what}"));
            }
        }
        self.sleep_until(end).await;
        if until_ms.is_some_and(|until| until <= scenario.window_ms) {
            return None;
        }
        // The last fault may end with the load, and takes its time to do so.
        if !self.stage.lock().is_over() {
            let _ = faults.await;
        }
        self.stage.lock().note(None, Seen::Calm);
        self.converge(scenario.converge_ms).await
    }

    /// Lets everything happen until that time; ends early at the first violation.
    pub(super) async fn sleep_until(&self, time: u64) {
        loop {
            let left = {
                let state = self.stage.lock();
                if state.is_over() {
                    return;
                }
                time.saturating_sub(state.time())
            };
            if left == 0 {
                return;
            }
            self.look_after_processes();
            sleep(LOOK.min(Duration::from_nanos(left))).await;
        }
    }

    /// The last phase: whatever is not broken for ever must become equal, quorate and managed, and stay so.
    async fn converge(&self, within_ms: u64) -> Option<u64> {
        let (healed, core) = {
            let state = self.stage.lock();
            (state.time(), state.healthy())
        };
        let end = healed + within_ms * MS;
        let (mut since, mut why) = (None, None);
        loop {
            sleep(LOOK).await;
            self.look_after_processes();
            let state = self.stage.lock();
            if state.is_over() {
                return None;
            }
            why = state.look(&core).or(why.filter(|_| false));
            let now = state.time();
            match (&why, since) {
                (None, None) if now < end => since = Some(now),
                (Some(_), _) => since = None,
                // It must stay so for a while: what converged once may fall apart again.
                (None, Some(time)) if now >= time + STAYS => break,
                (None, _) => {}
            }
            if now >= end && since.is_none() {
                break;
            }
        }
        let Some(since) = since else {
            let why = why.unwrap_or_else(|| "nothing is left".into());
            self.fail(Rule::Convergence, format!("{} s after the last fault: {why}", within_ms / 1_000));
            return None;
        };
        self.stage.lock().note(None, Seen::Converged);
        self.settle_accounts(&core).await;
        Some(since - healed)
    }

    /// After the end: what was acknowledged is there, and what was refused is not.
    async fn settle_accounts(&self, core: &[usize]) {
        if !self.wait(30, |state| state.pending == 0).await {
            return self.fail(Rule::Answered, "a request is still unanswered 30 s after the end".into());
        }
        let (nodes, writes) = {
            let state = self.stage.lock();
            let nodes: Vec<_> = state.nodes.iter().map(|(node, _)| node.to_string()).collect();
            (nodes.join(","), state.writes.clone())
        };
        for at in core.iter().copied() {
            let target = Target::Nodes(nodes.clone());
            let request = Request::Attributes { target, names: vec!["custom.*".into()], blame: false, stale: true };
            if self.stage.lock().sites[at]
                .status
                .as_ref()
                .is_some_and(|status| status.said.standing != Standing::Seated)
            {
                continue;
            }
            let Some(Response::Attributes(found)) = self.ask(at, request, WITHIN).await else {
                self.fail(Rule::Answered, format!("m{at} does not tell its attributes in the end"));
                continue;
            };
            let value = |node: &NodeName, key: &str| {
                let node = found.nodes.iter().find(|entity| entity.node == node.as_str())?;
                node.attributes.iter().find(|(name, _)| name.as_str() == key)?.1.value.clone()
            };
            let mut state = self.stage.lock();
            for write in &writes {
                let (key, found) = (&write.key, value(&write.node, &write.key));
                match &write.outcome {
                    Some(Outcome::Done) if found.as_ref() != Some(&write.value) => {
                        state.violate(Rule::NothingLost, format!("{key} was acknowledged, but m{at} has {found:?}"));
                    }
                    Some(Outcome::Refused(code)) if found.is_some() => {
                        let what = format!("{key} was refused ({code:?}), but m{at} has it");
                        state.violate(Rule::RefusedStaysOut, what);
                    }
                    Some(Outcome::Done) => state.count("found in the end"),
                    _ => {}
                }
            }
        }
    }
}
