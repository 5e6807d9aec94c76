//! One run of shipped daemons: found, join over the wire, load and faults, heal, converge.

use std::sync::Arc;
use std::time::Duration;

use collective::config::{Config, Layer, Profile};
use collective::daemon::{self, Asked};
use collective::proto::name::{MemberName, NodeName};
use collective::proto::request::{Request, Response};
use collective::proto::roster::{Role, Timing};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, timeout};

use super::machine::SimMachine;
use super::process::Process;
use super::stage::{Running, Stage, State};
use super::wire;
use crate::check::Rule;
use crate::fault::{MS, SECOND};
use crate::mix::Purpose;
use crate::scenario::Scenario;
use crate::site::{Death, name};
use crate::workload::Outcome;

/// How long an administrator waits.
pub(super) const WITHIN: Duration = Duration::from_secs(5);
/// How much later than that an answer may come.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How long a joiner waits until it has the data.
const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Drives one run.
#[derive(Clone)]
pub(super) struct Director {
    pub(super) stage: Arc<Stage>,
    profile: Profile,
}

impl Director {
    /// Takes the stage.
    ///
    /// # Errors
    /// When the scenario wants durations that no daemon can be configured with.
    pub(super) fn new(stage: Arc<Stage>, timing: Timing) -> anyhow::Result<Self> {
        let profiles = [Profile::Local, Profile::Lan, Profile::Wan];
        let profile = profiles.into_iter().find(|profile| profile.timing() == timing);
        let profile = profile.ok_or_else(|| anyhow::anyhow!("at level quic the timing is local, lan or wan"))?;
        Ok(Self { stage, profile })
    }

    /// Returns whether anything was violated.
    pub(super) fn is_over(&self) -> bool {
        !self.stage.lock().checker.violations.is_empty()
    }

    /// Waits until something is so, at most that long; returns whether it is.
    pub(super) async fn wait(&self, most_s: u64, until: impl Fn(&State) -> bool) -> bool {
        let end = self.stage.lock().time() + most_s * SECOND;
        loop {
            {
                let state = self.stage.lock();
                if until(&state) {
                    return true;
                }
                if state.time() >= end {
                    return false;
                }
            }
            if self.is_over() {
                return false;
            }
            sleep(LOOK).await;
        }
    }

    // ---- Processes ----

    fn config(&self, member: usize) -> Config {
        Config::from(Layer {
            name: MemberName::new(&name(member)).ok(),
            listen: Some(wire::address(member)),
            profile: Some(self.profile),
            // No hooks and no actions: those would be processes of the real system.
            hooks_dir: Some("/nonexistent".into()),
            actions_dir: Some("/nonexistent".into()),
            ..Layer::default()
        })
    }

    /// Starts the daemon of a member, unless a fault keeps it down.
    pub(super) fn boot(&self, member: usize) {
        let (requests, asked) = mpsc::channel::<Asked>(256);
        let (stop, stopped) = oneshot::channel::<()>();
        let process = Process::default();
        {
            let mut state = self.stage.lock();
            let site = &mut state.sites[member];
            if site.is_up() || site.downs > 0 {
                return;
            }
            site.life += 1;
            process.pause(site.pauses > 0);
            site.running = Some(Running { process: process.clone(), requests, stop: Some(stop) });
            state.trace(member, b"boot", &[]);
            state.tell(|| format!("m{member} starts"));
        }
        let machine = SimMachine { stage: self.stage.clone(), member, process: process.clone() };
        let (stage, config) = (self.stage.clone(), self.config(member));
        let told = async move {
            // Nobody says stop by going away.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        process.run(async move {
            let ended = daemon::run_on(Arc::new(machine), &config, asked, told).await;
            let mut state = stage.lock();
            match ended {
                Ok(()) => state.gone(member, Death::Stopped),
                // A disk that cannot say what is durable ends the process (fsyncgate).
                Err(_) if state.active.is_disk_broken(member) => {
                    state.count("stopped by the disk");
                    state.gone(member, Death::Killed);
                }
                Err(_) if state.has_no_room_for_a_store(member) => {
                    state.count("stopped by the full disk");
                    state.gone(member, Death::Killed);
                }
                Err(error) => state.violate(Rule::NothingLost, format!("the daemon of m{member} failed: {error:#}")),
            }
        });
    }

    /// Ends the process of a member.
    pub(super) fn die(&self, member: usize, death: Death) {
        let (running, writer, disk, mix) = {
            let mut state = self.stage.lock();
            let site = &mut state.sites[member];
            let Some(running) = site.running.take() else { return };
            let mix = state.mix.fork(Purpose::Crash, (member as u64) << 32 | state.sites[member].life);
            let site = &mut state.sites[member];
            (running, site.writer.take(), site.disk.clone(), mix)
        };
        if let Some(writer) = writer {
            let waiting = writer.waiting();
            match death {
                // A killed process leaves what it had written by then.
                Death::Killed => writer.commit(mix.range(Purpose::Crash, 0, 0, waiting as u64) as usize),
                Death::Stopped | Death::Power | Death::Torn => {}
            }
        }
        match death {
            Death::Power | Death::Torn => disk.cut_power(mix, death == Death::Torn),
            Death::Killed | Death::Stopped => disk.detach(),
        }
        running.process.kill();
        let mut state = self.stage.lock();
        state.gone(member, death);
        if matches!(death, Death::Power | Death::Torn) {
            let time = state.time();
            state.sites[member].clock.reboot(time);
        }
    }

    // ---- Requests ----

    /// Asks a member something, and returns the answer; none when it does not answer in time or is not there.
    pub(super) async fn ask(&self, member: usize, request: Request, within: Duration) -> Option<Response> {
        let (answer, answered) = oneshot::channel();
        let requests = self.stage.lock().sites[member].running.as_ref()?.requests.clone();
        requests.try_send(Asked { request, within, answer }).ok()?;
        timeout(within + GRACE, answered).await.ok()?.ok()
    }

    // ---- Phases ----

    /// Lets the first member found a collective, and the others join it one after the other, over the wire.
    pub(super) async fn assemble(&self, joined: usize) -> bool {
        for member in 0..joined {
            self.boot(member);
        }
        for joiner in 1..joined {
            if !self.wait(60, |state| state.is_seated(0)).await {
                return self.fail(Rule::Convergence, "the founder is not seated within 60 s".into());
            }
            if let Err(why) = self.enrol(joiner, 0).await {
                return self.fail(Rule::Convergence, format!("m{joiner} did not join: {why}"));
            }
            if !self.wait(60, |state| state.is_seated(joiner)).await {
                return self.fail(Rule::Convergence, format!("m{joiner} is not seated 60 s after its join"));
            }
        }
        let settled = |state: &State| {
            (0..joined).all(|at| {
                let seen = state.sites[at].seen.as_ref();
                state.is_seated(at) && seen.is_some_and(|seen| seen.roster.voters.len() == joined)
            })
        };
        if self.wait(60, settled).await {
            return true;
        }
        self.fail(Rule::Convergence, "not everybody has a vote and a seat within 60 s".into())
    }

    pub(super) fn fail(&self, rule: Rule, what: String) -> bool {
        self.stage.lock().violate(rule, what);
        false
    }

    /// Asks a member for an invitation, and returns its token.
    ///
    /// # Errors
    /// What the member answered instead.
    pub(super) async fn invite(&self, joiner: usize, via: usize) -> Result<String, String> {
        let name = MemberName::new(&name(joiner)).map_err(|error| error.to_string())?;
        let invite = Request::Invite { name, role: Role::Voter, ttl_ms: 3_600_000, uses: 1 };
        match self.ask(via, invite, WITHIN).await {
            Some(Response::Invited(invited)) => Ok(invited.token.0.clone()),
            other => Err(format!("no invitation: {other:?}")),
        }
    }

    /// Has a member join by a token.
    ///
    /// # Errors
    /// What it answered instead of "joined".
    pub(super) async fn join(&self, joiner: usize, token: String, server: Option<String>) -> Result<(), String> {
        let wait_ms = u64::try_from(JOIN_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let token = collective::proto::request::TokenText(token);
        // What the joiner holds is not wanted.
        let request = Request::Join { server, token, replace: true, wait_ms };
        match self.ask(joiner, request, JOIN_WITHIN).await {
            Some(Response::Done(_)) => {
                self.stage.lock().count("enrolled");
                Ok(())
            }
            Some(Response::Error(refused)) => Err(refused.error.message),
            other => Err(format!("{other:?}")),
        }
    }

    /// Invites a member and lets it join.
    ///
    /// # Errors
    /// Why it did not.
    pub(super) async fn enrol(&self, joiner: usize, via: usize) -> Result<(), String> {
        let token = self.invite(joiner, via).await?;
        self.join(joiner, token, None).await
    }

    /// Defines the nodes of a run, each with its candidates.
    pub(super) async fn define_nodes(&self, scenario: &Scenario) -> bool {
        let members = scenario.joined;
        for number in 0..scenario.nodes {
            let Ok(node) = NodeName::new(&format!("n{number}")) else { continue };
            let candidates = scenario.candidates_of(number);
            let names: Vec<_> = candidates.iter().map(|member| name(*member)).collect();
            let assignments = vec![format!("collective.managercandidates={}", names.join(","))];
            let define = Request::DefineNodes { nodes: node.to_string(), assignments };
            match self.ask(number % members, define, WITHIN).await {
                Some(response) if Outcome::of(&response) == Outcome::Done => {}
                other => return self.fail(Rule::Convergence, format!("{node} was not defined: {other:?}")),
            }
            self.stage.lock().nodes.push((node, candidates));
        }
        let managed =
            |state: &State| state.nodes.iter().all(|(node, _)| (0..members).any(|member| state.acts(member, node)));
        if self.wait(20, managed).await {
            return true;
        }
        self.fail(Rule::Convergence, "not every node is managed within 20 s".into())
    }

    /// Plays a scenario; returns how long it took in the end until everything was equal, in nanoseconds.
    pub(super) async fn play(&self, scenario: &Scenario) -> Option<u64> {
        if !self.assemble(scenario.joined).await || !self.define_nodes(scenario).await {
            return None;
        }
        let begin = self.stage.lock().time();
        self.schedule(scenario.faults.clone());
        let end = begin + scenario.window_ms * MS;
        if scenario.load.churn || scenario.faults.iter().any(|fault| !fault.kind.forgets().is_empty()) {
            self.start_care(scenario.joined);
        }
        self.start_load(scenario.load, end);
        for step in &scenario.steps {
            self.sleep_until(begin + step.at_ms * MS).await;
            if self.is_over() {
                return None;
            }
            if let Err(what) = self.take_step(step).await {
                self.fail(Rule::BoundedTime, format!("not so in time: {what}"));
            }
        }
        self.sleep_until(end).await;
        self.converge(scenario.converge_ms).await
    }

    /// Lets everything happen until that time; ends early at the first violation.
    async fn sleep_until(&self, time: u64) {
        while !self.is_over() {
            let (now, moment) = {
                let state = self.stage.lock();
                (state.time(), state.moment(time))
            };
            if now >= time {
                return;
            }
            sleep_until(moment.min(tokio::time::Instant::now() + LOOK)).await;
        }
    }

    /// The last phase: whatever is not broken for ever must become equal, quorate and managed.
    async fn converge(&self, within_ms: u64) -> Option<u64> {
        let (healed, core) = {
            let state = self.stage.lock();
            (state.time(), state.healthy())
        };
        let end = healed + within_ms * MS;
        let mut since = None;
        let mut why = None;
        while self.stage.lock().time() < end && !self.is_over() {
            sleep(Duration::from_millis(250)).await;
            let state = self.stage.lock();
            why = state.look(&core);
            match (&why, since) {
                (None, None) => since = Some(state.time()),
                (Some(_), _) => since = None,
                // It must stay so for a while: what converged once may fall apart again.
                (None, Some(time)) if state.time() >= time + 5 * SECOND => break,
                (None, Some(_)) => {}
            }
        }
        if self.is_over() {
            return None;
        }
        let Some(since) = since else {
            let why = why.unwrap_or_else(|| "nothing is left".into());
            self.post_mortem(&core).await;
            self.fail(Rule::Convergence, format!("{} s after the last fault: {why}", within_ms / 1_000));
            return None;
        };
        self.settle_accounts(&core).await;
        Some(since - healed)
    }

    /// Asks every member who manages what and why, for whoever reads the story.
    async fn post_mortem(&self, core: &[usize]) {
        if self.stage.lock().story.is_none() {
            return;
        }
        for member in core {
            for request in [Request::Managers { nodes: None, why: true }, Request::Status] {
                let response = self.ask(*member, request, WITHIN).await;
                self.stage.lock().tell(|| format!("m{member} says {response:?}"));
            }
        }
    }

    /// After the end: what was acknowledged is there, and what was refused is not.
    async fn settle_accounts(&self, core: &[usize]) {
        // Every answer is in by then.
        sleep(WITHIN + GRACE).await;
        self.stage.lock().wanted = core.iter().copied().collect();
        if !self.wait(10, |state| state.wanted.is_empty()).await {
            self.fail(Rule::Convergence, "a member does nothing any more".into());
            return;
        }
        let mut state = self.stage.lock();
        let found = std::mem::take(&mut state.found);
        for (at, values) in found {
            for (write, found) in state.ledger.writes.clone().into_iter().zip(values) {
                let key = &write.key;
                match write.outcome {
                    Some(Outcome::Done) if found.as_ref() != Some(&write.value) => {
                        state.violate(Rule::NothingLost, format!("{key} was acknowledged, but m{at} has {found:?}"));
                    }
                    Some(Outcome::Refused(code)) if found.is_some() => {
                        let what = format!("{key} was refused ({code:?}), but m{at} has it");
                        state.violate(Rule::RefusedStaysOut, what);
                    }
                    _ => {}
                }
            }
        }
    }
}
