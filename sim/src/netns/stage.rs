//! What a run knows: the machines and what was done to them, what their members answered, and the trace of both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collective::actions::now;
use collective::proto::name::NodeName;
use collective::proto::request::{Standing, Status};
use collective::proto::roster::Timing;

use super::How;
use super::lab::Cuts;
use super::machine::Machine;
use super::switch::Switch;
use crate::check::{Checker, Rule};
use crate::fault::{Active, Fault, MS};
use crate::mix::Mix;
use crate::scenario::{Scenario, Usual};
use crate::site::{Death, name};
use crate::step::Shown;
use crate::trace::{Line, Seen, seconds};
use crate::workload::Outcome;

/// How often a grant that may have been given is written into the trace.
const GRANTED_EVERY: u64 = 200 * MS;
/// An answer that was so long on its way says nothing about now: its process may have stood still in between.
const PROMPT: u64 = 300 * MS;

/// One run, shared by everything in it.
#[derive(Debug)]
pub(super) struct Stage {
    state: Mutex<State>,
    pub(super) machines: Vec<Mutex<Machine>>,
    pub(super) fabric: Arc<Fabric>,
}

/// What carries packets between the machines.
#[derive(Debug)]
pub(super) enum Fabric {
    /// A bridge in that namespace, whose rules drop what is cut.
    Bridge(String),
    /// A switch in user space.
    Switch(Switch),
}

impl Stage {
    pub(super) fn new(scenario: &Scenario, how: &How, base: u64, machines: Vec<Machine>, fabric: Fabric) -> Arc<Self> {
        let state = State {
            base,
            mix: Mix::new(how.seed),
            timing: scenario.timing,
            faults: Vec::new(),
            active: Active::without(&scenario.unlinked),
            wire: Cuts::default(),
            sites: (0..scenario.members).map(|_| Site::default()).collect(),
            cluster: None,
            nodes: Vec::new(),
            noted: Vec::new(),
            writes: Vec::new(),
            pending: 0,
            checker: Checker::default(),
            coverage: BTreeMap::new(),
            lines: Vec::new(),
            granted: BTreeMap::new(),
            story: how.tells,
            usual: scenario.network,
            trouble: None,
        };
        let machines = machines.into_iter().map(Mutex::new).collect();
        Arc::new(Self { state: Mutex::new(state), machines, fabric: Arc::new(fabric) })
    }

    /// Nobody waits while holding this.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills every process.
    pub(super) fn end_all(&self) {
        (0..self.machines.len()).for_each(|at| self.machine(at).kill());
    }

    pub(super) fn machine(&self, at: usize) -> MutexGuard<'_, Machine> {
        self.machines[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is shared.
#[derive(Debug)]
pub(super) struct State {
    base: u64,
    pub(super) mix: Mix,
    pub(super) timing: Timing,
    pub(super) faults: Vec<Fault>,
    pub(super) active: Active,
    /// What the switch drops for certain right now.
    pub(super) wire: Cuts,
    pub(super) sites: Vec<Site>,
    /// The collective that the first member founded; the others begin in ones of their own.
    pub(super) cluster: Option<String>,
    pub(super) nodes: Vec<(NodeName, Vec<usize>)>,
    /// Who acted for each node when a step noted it.
    pub(super) noted: Vec<Option<usize>>,
    pub(super) writes: Vec<Write>,
    /// Requests whose answers are waited for.
    pub(super) pending: usize,
    pub(super) checker: Checker,
    pub(super) coverage: BTreeMap<&'static str, u64>,
    pub(super) lines: Vec<Line>,
    /// When each grant that is possible was written down last.
    granted: BTreeMap<(usize, String), u64>,
    story: bool,
    /// What the network does when nothing is broken.
    pub(super) usual: Usual,
    /// What of the machinery failed, so that the run says nothing.
    pub(super) trouble: Option<String>,
}

/// One write of an attribute that nothing else writes.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) node: NodeName,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) outcome: Option<Outcome>,
}

/// One machine, as far as the run knows.
#[derive(Debug, Default)]
pub(super) struct Site {
    /// How often its daemon was started.
    pub(super) life: u64,
    pub(super) is_up: bool,
    /// When the process was started.
    began: u64,
    /// Faults that keep the process from being started, and from doing anything.
    pub(super) downs: u32,
    pub(super) pauses: u32,
    /// Whether it was ever let in.
    pub(super) is_enrolled: bool,
    /// Whether its disk is one of the past, so that its counters may be, too.
    pub(super) is_set_back: bool,
    /// Its enrolment, by its own last word.
    pub(super) id: Option<String>,
    /// What it last said of itself, in the collective that is watched.
    pub(super) status: Option<Answer<Status>>,
    /// For which nodes it last said that it acts, each with its token.
    acting: Option<Answer<BTreeMap<NodeName, String>>>,
    standing: Option<&'static str>,
    roster: Option<(String, String)>,
}

impl Site {
    /// Returns whether its process can do anything right now.
    pub(super) fn is_awake(&self) -> bool {
        self.is_up && self.pauses == 0
    }

    /// What it is from now on has nothing to do with what it was.
    pub(super) fn forget(&mut self) {
        (self.id, self.status, self.acting) = (None, None, None);
        (self.is_enrolled, self.is_set_back) = (false, false);
    }
}

/// An answer, and between which times it was given.
#[derive(Clone, Debug)]
pub(super) struct Answer<T> {
    pub(super) asked: u64,
    pub(super) answered: u64,
    pub(super) said: T,
}

impl State {
    /// Returns the time in nanoseconds since the run began, on the clock that leases count on.
    pub(super) fn time(&self) -> u64 {
        now().as_nanos().saturating_sub(self.base)
    }

    /// Returns a time of the run for an instant of the boot clock, in nanoseconds.
    pub(super) fn time_of(&self, boot: u64) -> u64 {
        boot.saturating_sub(self.base)
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    /// Adds a line to the trace.
    pub(super) fn note(&mut self, at: Option<usize>, seen: Seen) {
        self.note_at(self.time(), at, seen);
    }

    fn note_at(&mut self, time: u64, at: Option<usize>, seen: Seen) {
        let line = Line { t: seconds(time), member: at.map(name), seen };
        if self.story {
            let silent = matches!(line.seen, Seen::Granted { .. } | Seen::Acts { .. } | Seen::Event { .. });
            if !silent {
                eprintln!("{:9.3}s {} {:?}", line.t, line.member.as_deref().unwrap_or(""), line.seen);
            }
        }
        self.lines.push(line);
    }

    pub(super) fn violate(&mut self, rule: Rule, what: String) {
        let time = self.time();
        if self.story {
            eprintln!("{:9.3}s VIOLATION {rule}: {what}", seconds(time));
        }
        self.checker.violate(time, rule, what);
    }

    /// Returns whether anything was violated, or the run is given up.
    pub(super) fn is_over(&self) -> bool {
        !self.checker.violations.is_empty() || self.trouble.is_some()
    }

    /// Gives the run up: what failed is not the members' affair.
    pub(super) fn give_up(&mut self, why: String) {
        self.trouble.get_or_insert(why);
    }

    /// Returns whether a member answers, and belongs to the collective that is watched.
    pub(super) fn is_member(&self, at: usize) -> bool {
        self.sites[at].is_awake() && self.sites[at].status.is_some()
    }

    // ---- Processes ----

    /// A process was started.
    pub(super) fn started(&mut self, at: usize) {
        let time = self.time();
        let site = &mut self.sites[at];
        site.life += 1;
        (site.is_up, site.began) = (true, time);
    }

    /// A process is gone.
    pub(super) fn ended(&mut self, at: usize, death: Death) {
        // Until now it may have granted.
        self.note_grants(true);
        let site = &mut self.sites[at];
        if !site.is_up {
            return;
        }
        let acted = site.acting.take().map(|acting| acting.said).unwrap_or_default();
        (site.is_up, site.status, site.standing, site.roster) = (false, None, None, None);
        self.note(Some(at), Seen::End { how: death.word().to_owned() });
        for node in acted.into_keys() {
            self.note(Some(at), Seen::Rests { node: node.to_string() });
        }
    }

    // ---- What could have been granted ----

    /// Writes down of which voter each member may have a grant that it asked for just now: the way is open in both
    /// directions, the voter's process runs, and its quiet start is over (R6).
    ///
    /// Grants themselves are not seen from outside. These are all that there can be, so whoever has authority without
    /// them has too much of it; who has less is not noticed.
    pub(super) fn note_grants(&mut self, always: bool) {
        let time = self.time();
        let mut lines = Vec::new();
        for (at, site) in self.sites.iter().enumerate().filter(|(_, site)| site.is_awake()) {
            let Some(status) = &site.status else { continue };
            for voter in
                status.said.members.iter().filter(|member| member.votes && Some(&member.id) != site.id.as_ref())
            {
                if self.may_grant(at, &voter.id, time) {
                    lines.push((at, voter.id.clone()));
                }
            }
        }
        for (at, voter) in lines {
            let last = self.granted.entry((at, voter.clone())).or_default();
            if always || time >= *last + GRANTED_EVERY {
                *last = time;
                self.note_at(time, Some(at), Seen::Granted { voter, sent: seconds(time) });
            }
        }
    }

    fn may_grant(&self, to: usize, voter: &str, time: u64) -> bool {
        let quiet = self.timing.quiet().as_nanos() as u64;
        let is_open = |from: usize, to: usize| !self.wire.pairs.contains(&(from, to));
        self.sites.iter().enumerate().any(|(at, site)| {
            site.id.as_deref() == Some(voter)
                && site.is_awake()
                && time >= site.began + quiet
                && is_open(at, to)
                && is_open(to, at)
        })
    }

    // ---- What members answer ----

    /// Returns whether that life of a member still goes on.
    pub(super) fn lives(&self, at: usize, life: u64) -> bool {
        self.sites[at].is_up && self.sites[at].life == life
    }

    /// A member told its whole state. Returns whether it is in the collective that is watched.
    pub(super) fn on_status(&mut self, at: usize, answer: Answer<Status>) -> bool {
        let status = &answer.said;
        if at == 0 && self.cluster.is_none() {
            self.cluster = Some(status.collective.clone());
        }
        if self.cluster.as_ref() != Some(&status.collective) {
            return false;
        }
        let site = &self.sites[at];
        let standing = match status.standing {
            _ if status.me.is_none() => "removed",
            Standing::Isolated => "isolated",
            Standing::Rejoining => "rejoining",
            Standing::Seated => "seated",
        };
        let roster = (status.roster.clone(), status.roster_hash.clone());
        let is_born = site.status.is_none() || site.id.as_ref() != Some(&status.id);
        let (has_moved, has_roster) = (site.standing != Some(standing), site.roster.as_ref() != Some(&roster));
        let mut told = Vec::new();
        if is_born {
            let past = if site.is_set_back { ", set back" } else { "" };
            told.push(Seen::Start { id: format!("{}{past}", status.id), incarnation: status.incarnation });
        }
        if has_roster {
            let ids = |votes: bool| {
                status.members.iter().filter(|member| member.votes || !votes).map(|member| member.id.clone()).collect()
            };
            let (version, hash) = roster.clone();
            told.push(Seen::Roster { version, hash, voters: ids(true), ids: ids(false) });
        }
        if has_moved {
            told.push(Seen::Standing { to: standing.to_owned() });
        }
        let (id, is_quorate) = (status.id.clone(), status.quorum.quorate);
        let site = &mut self.sites[at];
        (site.id, site.is_enrolled) = (Some(id), true);
        (site.standing, site.roster, site.status) = (Some(standing), Some(roster), Some(answer));
        for seen in told {
            self.note(Some(at), seen);
        }
        if is_quorate {
            self.count("quorate");
        }
        self.note_grants(false);
        true
    }

    /// A member told for which nodes it acts.
    ///
    /// A claim under one token is held without a break, so who named it twice held it from the first answer to the
    /// second question. That is all that the trace says.
    pub(super) fn on_acting(&mut self, at: usize, answer: Answer<BTreeMap<NodeName, String>>) {
        let last = self.sites[at].acting.take();
        *self.coverage.entry("act").or_default() += answer.said.len() as u64;
        if let Some(last) = last {
            for (node, token) in &last.said {
                if answer.said.get(node) != Some(token) {
                    self.note(Some(at), Seen::Rests { node: node.to_string() });
                } else if last.answered < answer.asked {
                    let until = seconds(answer.asked);
                    let acts = Seen::Acts { node: node.to_string(), until, token: Some(token.clone()) };
                    self.note_at(last.answered, Some(at), acts);
                }
            }
        }
        self.sites[at].acting = Some(answer);
    }

    /// Returns whether an answer still says something: no lease that it spoke of has ended since.
    fn holds<T>(&self, at: usize, answer: &Answer<T>) -> bool {
        let usable = self.timing.usable().as_nanos() as u64;
        self.sites[at].is_up && answer.answered < answer.asked + PROMPT && self.time() < answer.asked + usable
    }

    fn status_now(&self, at: usize) -> Option<&Status> {
        let answer = self.sites[at].status.as_ref().filter(|answer| self.holds(at, answer))?;
        Some(&answer.said)
    }

    // ---- What is in the end ----

    /// Returns the members that no fault breaks for ever.
    pub(super) fn healthy(&self) -> Vec<usize> {
        let broken = |at| self.faults.iter().any(|fault| fault.until.is_none() && fault.kind.breaks(at));
        (0..self.sites.len())
            .filter(|at| !broken(*at) && self.sites[*at].is_enrolled && self.sites[*at].downs == 0)
            .collect()
    }

    /// Says why these members have not converged; nothing when they have.
    pub(super) fn look(&self, core: &[usize]) -> Option<String> {
        let mut statuses = Vec::new();
        for at in core {
            if self.sites[*at].standing == Some("removed") {
                continue; // It knows, and nobody invites it again.
            }
            let Some(status) = self.status_now(*at) else { return Some(format!("m{at} does not answer")) };
            statuses.push((*at, status));
        }
        let (first_at, first) = statuses.first()?;
        for (at, status) in &statuses {
            if status.standing != Standing::Seated || !status.quorum.quorate {
                return Some(format!("m{at} is not seated"));
            }
            if (&status.roster, &status.roster_hash) != (&first.roster, &first.roster_hash) {
                return Some(format!("m{first_at} and m{at} have rosters {} and {}", first.roster, status.roster));
            }
            if status.data.heads != first.data.heads {
                return Some(format!("m{first_at} and m{at} hold different documents"));
            }
        }
        let manages: BTreeSet<_> = first
            .members
            .iter()
            .filter(|member| member.role.manages() && !member.draining)
            .map(|member| member.name.as_str())
            .collect();
        let can_manage = |at: &usize| core.contains(at) && manages.contains(name(*at).as_str());
        for (node, candidates) in &self.nodes {
            let acting: Vec<_> = (0..self.sites.len()).filter(|at| self.acts(*at, node)).collect();
            if candidates.iter().any(can_manage) && acting.len() != 1 {
                return Some(format!("members {acting:?} act for {node}, which has a live candidate"));
            }
        }
        None
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
        let answer = self.sites[at].acting.as_ref().filter(|answer| self.holds(at, answer));
        answer.is_some_and(|answer| answer.said.contains_key(node))
    }

    fn is_quorate(&self, at: usize) -> bool {
        self.status_now(at).is_some_and(|status| status.quorum.quorate)
    }

    fn is_seated(&self, at: usize) -> bool {
        self.status_now(at).is_some_and(|status| status.standing == Standing::Seated && status.me.is_some())
    }

    fn voters_at(&self, at: usize) -> usize {
        let status = self.sites[at].status.as_ref();
        status.map_or(0, |answer| answer.said.members.iter().filter(|member| member.votes).count())
    }

    fn counted(&self, what: &str) -> u64 {
        self.coverage.get(what).copied().unwrap_or(0)
    }

    fn noted(&mut self) -> &mut Vec<Option<usize>> {
        &mut self.noted
    }
}

#[cfg(test)]
mod tests {
    use collective::proto::name::MemberName;
    use collective::proto::request::MemberStatus;
    use collective::proto::roster::Role;

    use super::*;
    use crate::fault::SECOND;

    fn stage() -> Arc<Stage> {
        let base = now().as_nanos().saturating_sub(60 * SECOND);
        let how = How::default();
        Stage::new(&Scenario::new("x", 3), &how, base, Vec::new(), Fabric::Bridge(String::new()))
    }

    fn member(at: usize) -> MemberStatus {
        MemberStatus {
            name: MemberName::new(&name(at)).expect("a name"),
            id: format!("id{at}"),
            state: "alive".to_owned(),
            since_ms: None,
            role: Role::Voter,
            votes: true,
            learner: false,
            draining: false,
            manages: 0,
            rtt_us: None,
            last_heard_ms: None,
            lag: None,
            version: None,
            address: None,
            fingerprint: String::new(),
            trouble: None,
        }
    }

    /// Everybody runs since the beginning, and says so.
    fn all_up(state: &mut State) {
        let time = state.time();
        for at in 0..3 {
            state.started(at);
            state.sites[at].began = 0;
            let members: Vec<_> = (0..3).map(member).collect();
            let me = Some(members[at].name.clone());
            let said = Status { id: format!("id{at}"), me, members, roster: "0.5".to_owned(), ..Status::default() };
            assert!(state.on_status(at, Answer { asked: time, answered: time, said }));
        }
        state.lines.clear();
    }

    fn granted(state: &mut State) -> Vec<(String, String)> {
        state.lines.clear();
        state.note_grants(true);
        let line = |line: &Line| match &line.seen {
            Seen::Granted { voter, .. } => Some((line.member.clone().unwrap_or_default(), voter.clone())),
            _ => None,
        };
        state.lines.iter().filter_map(line).collect()
    }

    fn pairs(of: &[(usize, usize)]) -> Vec<(String, String)> {
        of.iter().map(|(at, voter)| (name(*at), format!("id{voter}"))).collect()
    }

    #[test]
    fn only_voters_that_run_are_past_their_quiet_start_and_can_be_heard_may_have_granted() {
        let stage = stage();
        let mut state = stage.lock();
        all_up(&mut state);
        assert_eq!(granted(&mut state), pairs(&[(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]));
        // One direction is enough to keep both from a grant.
        state.wire.pairs = vec![(0, 1)];
        assert_eq!(granted(&mut state), pairs(&[(0, 2), (1, 2), (2, 0), (2, 1)]));
        // Who stands still asks nothing and grants nothing.
        state.wire.pairs.clear();
        state.sites[2].pauses = 1;
        assert_eq!(granted(&mut state), pairs(&[(0, 1), (1, 0)]));
        // R6: a voter that was just started has promised nobody anything yet.
        state.sites[2].pauses = 0;
        state.sites[1].began = state.time();
        assert_eq!(granted(&mut state), pairs(&[(0, 2), (1, 0), (1, 2), (2, 0)]));
    }

    #[test]
    fn a_node_is_held_from_the_first_answer_to_the_second_question_and_only_under_one_token() {
        let stage = stage();
        let mut state = stage.lock();
        all_up(&mut state);
        let node = NodeName::new("n1").expect("a name");
        let mut answer = |asked: u64, token: &str| {
            let said = [(node.clone(), token.to_owned())].into();
            state.on_acting(0, Answer { asked: asked * SECOND, answered: (asked + 1) * SECOND, said });
        };
        answer(1, "0.5.1");
        answer(3, "0.5.1");
        answer(5, "0.5.2");
        let acts = Seen::Acts { node: "n1".to_owned(), until: 3.0, token: Some("0.5.1".to_owned()) };
        let seen: Vec<_> = state.lines.iter().map(|line| (line.t, line.seen.clone())).collect();
        assert_eq!(seen[0], (2.0, acts));
        assert_eq!(seen.len(), 2, "then it is another claim: {seen:?}");
        assert_eq!(seen[1].1, Seen::Rests { node: "n1".to_owned() });
    }
}
