//! One run of shipped daemons: found, join over the wire, load and faults, heal, converge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collective::config::{Config, Layer, Profile};
use collective::daemon::{self, Asked};
use collective::proto::name::{MemberName, NodeName};
use collective::proto::request::{Request, Response, Target, Wait};
use collective::proto::roster::{Role, Timing};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, timeout};

use super::ledger::{Outcome, Write};
use super::machine::SimMachine;
use super::process::Process;
use super::stage::{Running, Stage, State};
use super::watch::outcome_of;
use super::wire;
use crate::check::{Rule, unconverged};
use crate::fault::{Fault, Kind, MS, SECOND};
use crate::mix::Purpose;
use crate::scenario::{Plan, Scenario};
use crate::site::{Death, name};

/// How long an administrator waits.
const WITHIN: Duration = Duration::from_secs(5);
/// How much later than that an answer may come.
const GRACE: Duration = Duration::from_secs(1);
/// How long a joiner waits until it has the data.
const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

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

    fn is_over(&self) -> bool {
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
                Death::Stopped | Death::Power => {}
            }
        }
        match death {
            Death::Power => disk.cut_power(mix),
            Death::Killed | Death::Stopped => disk.detach(),
        }
        running.process.kill();
        let mut state = self.stage.lock();
        state.gone(member, death);
        if death == Death::Power {
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

    /// Writes one attribute of its own through a member; returns the number of the write.
    fn write(&self, member: usize, node: usize) -> usize {
        let (number, request) = {
            let mut state = self.stage.lock();
            let number = state.ledger.writes.len();
            let (key, value) = (format!("custom.w{number}"), format!("v{number}"));
            let node = state.nodes[node].0.clone();
            state.count("write");
            let request = Request::SetAttributes {
                target: Target::Nodes(node.to_string()),
                assignments: vec![format!("{key}={value}")],
                clear: Vec::new(),
                wait: Wait::Majority,
                dry_run: false,
                yes: false,
            };
            state.ledger.writes.push(Write { node, key, value, changes: Vec::new(), outcome: None });
            (number, request)
        };
        let director = self.clone();
        tokio::spawn(async move {
            let life = director.stage.lock().sites[member].birth;
            let response = director.ask(member, request, WITHIN).await;
            let mut state = director.stage.lock();
            let outcome = response.as_ref().map_or(Outcome::Unknown, outcome_of);
            state.count(match outcome {
                Outcome::Done => "acknowledged",
                Outcome::Refused(_) => "refused",
                Outcome::Unknown => "unknown",
            });
            let site = &state.sites[member];
            if response.is_none() && site.birth == life && site.is_awake() && !state.was_paused(member) {
                state.violate(Rule::Answered, format!("m{member} never answered write {number}"));
            }
            state.ledger.writes[number].outcome = Some(outcome);
        });
        number
    }

    /// Asks something whose answer nobody looks at.
    fn ask_aside(&self, member: usize, request: Request) {
        let director = self.clone();
        tokio::spawn(async move { drop(director.ask(member, request, WITHIN).await) });
    }

    /// One turn of the random load.
    fn work(&self, turn: u64, only_writes: bool) {
        let mut state = self.stage.lock();
        let mix = state.mix.fork(Purpose::Workload, turn);
        let draw = |index| mix.bits(Purpose::Workload, index) as usize;
        let awake: Vec<_> = (0..state.sites.len()).filter(|at| state.sites[*at].is_awake()).collect();
        if awake.is_empty() || state.nodes.is_empty() {
            return;
        }
        let at = awake[draw(0) % awake.len()];
        let node = draw(1) % state.nodes.len();
        let (nodes, candidates) = (state.nodes[node].0.to_string(), state.nodes[node].1.clone());
        let kind = if only_writes { 19 } else { draw(2) % 20 };
        let member_of = |number: usize| MemberName::new(&name(number)).ok();
        let request = match kind {
            0 | 1 => member_of(candidates[draw(3) % candidates.len()])
                .map(|to| Request::Move { nodes, to, dry_run: false }),
            2 => member_of(draw(3) % state.sites.len())
                .map(|member| Request::Drain { member, drain: draw(4).is_multiple_of(2) }),
            3 => Some(Request::Status),
            4 => Some(Request::Managers { nodes: None, why: true }),
            _ => None,
        };
        if request.is_some() {
            state.count("other request");
        }
        drop(state);
        match request {
            Some(request) => self.ask_aside(at, request),
            None => drop(self.write(at, node)),
        }
    }

    // ---- Faults ----

    fn begin(&self, number: usize) {
        let kind = {
            let mut state = self.stage.lock();
            let kind = state.faults[number].kind.clone();
            let time = state.time();
            state.count(kind.word());
            state.tell(|| format!("FAULT {kind:?}"));
            state.active.begin(number, time, kind.clone());
            kind
        };
        let down = |members: &[usize], death| {
            for member in members {
                self.stage.lock().sites[*member].downs += 1;
                self.die(*member, death);
            }
        };
        match &kind {
            Kind::Crash(member) => down(&[*member], Death::Killed),
            Kind::Power(members) => down(members, Death::Power),
            Kind::Stop(member) => {
                let mut state = self.stage.lock();
                let site = &mut state.sites[*member];
                site.downs += 1;
                if let Some(stop) = site.running.as_mut().and_then(|running| running.stop.take()) {
                    let _ = stop.send(());
                }
            }
            Kind::Pause(member) => {
                let mut state = self.stage.lock();
                let site = &mut state.sites[*member];
                site.pauses += 1;
                if let Some(running) = &site.running {
                    running.process.pause(true);
                }
            }
            _ => {}
        }
    }

    fn end(&self, number: usize) {
        let kind = {
            let mut state = self.stage.lock();
            let kind = state.faults[number].kind.clone();
            state.tell(|| format!("END {kind:?}"));
            state.active.end(number);
            kind
        };
        let up = |members: &[usize]| {
            for member in members {
                self.stage.lock().sites[*member].downs -= 1;
                // A stop that had not come to its end.
                self.die(*member, Death::Killed);
                self.boot(*member);
            }
        };
        match &kind {
            Kind::Crash(member) | Kind::Stop(member) => up(&[*member]),
            Kind::Power(members) => up(members),
            Kind::Pause(member) => {
                let mut state = self.stage.lock();
                let site = &mut state.sites[*member];
                site.pauses = site.pauses.saturating_sub(1);
                if site.pauses == 0 && let Some(running) = &site.running {
                    running.process.pause(false);
                }
            }
            _ => {}
        }
    }

    /// Begins and ends faults when it is their time, relative to now.
    fn schedule(&self, faults: Vec<Fault>) {
        let mut due = BTreeMap::new();
        let begin = {
            let mut state = self.stage.lock();
            let begin = state.time();
            for (number, fault) in faults.iter().enumerate() {
                due.insert((begin + fault.at, number, true), ());
                if let Some(until) = fault.until {
                    due.insert((begin + until, number, false), ());
                }
            }
            state.faults = faults;
            begin
        };
        debug_assert!(due.keys().all(|(time, ..)| *time >= begin));
        let director = self.clone();
        tokio::spawn(async move {
            for (time, number, begins) in due.into_keys() {
                let moment = director.stage.lock().moment(time);
                sleep_until(moment).await;
                if director.is_over() {
                    return;
                }
                if begins { director.begin(number) } else { director.end(number) }
            }
        });
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
        let request = Request::Join { server, token, replace: false, wait_ms };
        match self.ask(joiner, request, JOIN_WITHIN).await {
            Some(Response::Done(_)) => {
                self.stage.lock().count("enrolled");
                Ok(())
            }
            Some(Response::Error(refused)) => Err(refused.error.message),
            other => Err(format!("{other:?}")),
        }
    }

    async fn enrol(&self, joiner: usize, via: usize) -> Result<(), String> {
        let token = self.invite(joiner, via).await?;
        self.join(joiner, token, None).await
    }

    /// Defines the nodes of a run, each with three candidates.
    pub(super) async fn define_nodes(&self, count: usize, members: usize) -> bool {
        for number in 0..count {
            let Ok(node) = NodeName::new(&format!("n{number}")) else { continue };
            let candidates: Vec<_> = (0..members.min(3)).map(|k| (number + k) % members).collect();
            let names: Vec<_> = candidates.iter().map(|member| name(*member)).collect();
            let assignments = vec![format!("collective.managercandidates={}", names.join(","))];
            let define = Request::DefineNodes { nodes: node.to_string(), assignments };
            match self.ask(number % members, define, WITHIN).await {
                Some(response) if outcome_of(&response) == Outcome::Done => {}
                other => return self.fail(Rule::Convergence, format!("{node} was not defined: {other:?}")),
            }
            self.stage.lock().nodes.push((node, candidates));
        }
        let managed = |state: &State| {
            state.nodes.iter().all(|(node, _)| (0..members).any(|member| state.acts(member, node)))
        };
        if self.wait(20, managed).await {
            return true;
        }
        self.fail(Rule::Convergence, "not every node is managed within 20 s".into())
    }

    /// Plays a scenario; returns how long it took in the end until everything was equal, in nanoseconds.
    pub(super) async fn play(&self, scenario: &Scenario, seed: u64) -> Option<u64> {
        if !self.assemble(scenario.joined).await || !self.define_nodes(scenario.nodes, scenario.joined).await {
            return None;
        }
        let faults = match &scenario.faults {
            Plan::Fixed(faults) => faults.clone(),
            Plan::Random => crate::fault::plan(crate::mix::Mix::new(seed), scenario.members, scenario.window_ms),
        };
        let begin = self.stage.lock().time();
        self.schedule(faults);
        let only_writes = matches!(scenario.faults, Plan::Fixed(_));
        let end = begin + scenario.window_ms * MS;
        let mut turn = 0;
        while self.stage.lock().time() < end && !self.is_over() {
            let every = scenario.work_every_ms * MS;
            let now = self.stage.lock().time();
            let pause = match every {
                0 => end - now,
                every => self.stage.lock().mix.range(Purpose::Workload, turn << 8, 1, 2 * every).min(end - now),
            };
            sleep(Duration::from_nanos(pause)).await;
            if every > 0 {
                turn += 1;
                self.work(turn, only_writes);
            }
        }
        self.converge(scenario.converge_ms).await
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
            self.fail(Rule::Convergence, format!("{} s after the last fault: {why}", within_ms / 1_000));
            return None;
        };
        self.settle_accounts(&core).await;
        Some(since - healed)
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

impl State {
    /// A process has ended.
    fn gone(&mut self, member: usize, death: Death) {
        self.trace(member, b"gone", &[]);
        self.tell(|| format!("m{member} ends: {death:?}"));
        self.wire.close(member);
        let site = &mut self.sites[member];
        site.running = None;
        site.writer = None;
        site.seen = None;
        site.birth += 1;
    }

    /// A process that was paused answers late.
    fn was_paused(&self, member: usize) -> bool {
        self.faults.iter().any(|fault| fault.kind == Kind::Pause(member))
    }

    /// Returns the members that no fault breaks for ever.
    fn healthy(&self) -> Vec<usize> {
        let broken = |at: usize| {
            self.faults.iter().filter(|fault| fault.until.is_none()).any(|fault| match &fault.kind {
                Kind::Isolate(member) | Kind::Deaf(member) | Kind::Mute(member) => *member == at,
                Kind::Crash(member) | Kind::Stop(member) | Kind::Pause(member) => *member == at,
                Kind::Power(members) => members.contains(&at),
                _ => false,
            })
        };
        (0..self.sites.len()).filter(|at| !broken(*at) && self.sites[*at].life > 0).collect()
    }

    /// Says why these members have not converged; nothing when they have.
    fn look(&self, core: &[usize]) -> Option<String> {
        let mut finals = Vec::new();
        for at in core {
            let Some(last) = self.final_of(*at) else { return Some(format!("m{at} is down")) };
            finals.push(last);
        }
        let first = core.first().and_then(|at| self.sites[*at].seen.as_ref())?;
        if core.iter().any(|at| self.sites[*at].seen.as_ref().is_none_or(|seen| !seen.is_member())) {
            return Some("somebody is not on its own roster".into());
        }
        let can_manage =
            |at: &usize| core.contains(at) && self.sites[*at].member.is_some_and(|id| first.lets_manage(id));
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, candidates)| candidates.iter().any(can_manage))
            .map(|(node, _)| {
                let acting = (0..self.sites.len()).filter(|at| self.acts(*at, node)).collect();
                (node.to_string(), acting)
            })
            .collect();
        unconverged(&finals, &nodes)
    }
}
