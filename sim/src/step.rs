//! Steps of a scenario: what is asked of whom at which time, what must be answered, and what must then be so.

use collective::proto::liveness::Liveness;
use collective::proto::name::{MemberName, NodeName};
use collective::proto::request::{ErrorCode, Request, Target, Wait};
use collective::proto::roster::Role;

use crate::fault::MS;
use crate::site::name;
use crate::workload::{Op, Outcome};
use crate::world::World;

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    /// When, in true milliseconds after the members are seated.
    pub(crate) at_ms: u64,
    /// How long what must be so may take to become so.
    pub(crate) within_ms: u64,
    /// How long it must then stay so.
    pub(crate) stays_ms: u64,
    pub(crate) checks: Vec<Check>,
    /// What is asked then, after the checks.
    pub(crate) act: Option<Act>,
}

/// What must be so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Check {
    /// Each of them holds quorum.
    Quorate(Vec<usize>),
    /// None of them holds quorum.
    Locked(Vec<usize>),
    /// Each of them has its seat.
    Seated(Vec<usize>),
    /// None of them acts for anything.
    Idle(Vec<usize>),
    /// Each node with a candidate among them has exactly one acting manager, and it is one of them.
    ManagedBy(Vec<usize>),
    /// Everybody who runs believes these to be down, and nobody else.
    Down(Vec<usize>),
    /// Each of these sees that many voters on its roster.
    Voters { of: Vec<usize>, count: usize },
    /// Who acts for each node is noted.
    NoteManagers,
    /// Who acts for each node is as it was noted.
    SameManagers,
    /// That was seen that often since the run began.
    Seen(Vec<(String, Bound)>),
}

/// How often something must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

/// What is asked of a member.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Act {
    pub(crate) what: What,
    /// Whom.
    pub(crate) via: usize,
    /// What must be answered, if it matters, and how long that may take.
    pub(crate) answer: Option<Answer>,
    pub(crate) within_ms: u64,
}

/// A request in a scenario.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A write of one attribute, of the first node; or the last write said again, the same value of the same attribute.
    Write {
        again: bool,
    },
    /// A new node.
    Define {
        node: String,
        candidates: String,
    },
    /// An attribute of nodes that are there.
    Set {
        nodes: String,
        assignment: String,
    },
    /// How many members shall vote, and after how long a dead one is replaced.
    Voters {
        ideal: usize,
        replace_after_ms: u64,
    },
    Delete {
        member: usize,
    },
    Leave,
    Role {
        member: usize,
        role: Role,
    },
    Move {
        node: String,
        to: usize,
    },
    Drain {
        member: usize,
        drain: bool,
    },
    /// A spare site, or a member that was lost, is invited and joins; it dies as soon as it was let in, if it says so.
    Invite {
        member: usize,
        dies: bool,
    },
    /// An action runs on nodes.
    Run {
        nodes: String,
    },
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Refused(ErrorCode),
    /// It is not known what became of it.
    Unknown,
}

impl What {
    /// Returns what a member is asked, and the word for it; none for what takes more than one question.
    pub(crate) fn request(&self) -> Option<(&'static str, Request)> {
        let named = |member: usize| MemberName::new(&name(member)).ok();
        let (word, request) = match self {
            Self::Write { .. } | Self::Invite { .. } => return None,
            Self::Define { node, candidates } => {
                let assignments = vec![format!("collective.managercandidates={candidates}")];
                ("define", Request::DefineNodes { nodes: node.clone(), assignments })
            }
            Self::Delete { member } => {
                ("delete", Request::Delete { member: named(*member)?, force: true, dry_run: false })
            }
            Self::Set { nodes, assignment } => ("set", set(nodes, assignment)),
            Self::Voters { ideal, replace_after_ms } => {
                ("voters", Request::Voters { ideal: Some(*ideal), replace_after_ms: Some(*replace_after_ms) })
            }
            Self::Leave => ("leave", Request::Leave),
            Self::Role { member, role } => ("role", Request::SetRole { member: named(*member)?, role: *role }),
            Self::Move { node, to } => ("move", Request::Move { nodes: node.clone(), to: named(*to)?, dry_run: false }),
            Self::Drain { member, drain } => ("drain", Request::Drain { member: named(*member)?, drain: *drain }),
            Self::Run { nodes } => ("run", run_action(nodes)),
        };
        Some((word, request))
    }

    /// Returns the node that it defines, with its candidates among so many members.
    pub(crate) fn defined(&self, members: usize) -> Option<(NodeName, Vec<usize>)> {
        let Self::Define { node, candidates } = self else { return None };
        let number = |candidate: &str| (0..members).find(|at| name(*at) == candidate);
        Some((NodeName::new(node).ok()?, candidates.split(',').filter_map(number).collect()))
    }
}

impl Answer {
    /// Says what was answered in its place.
    pub(crate) fn expect(self, via: usize, outcome: &Outcome) -> Result<(), String> {
        let is_it = match (self, outcome) {
            (Self::Done, Outcome::Done) | (Self::Unknown, Outcome::Unknown) => true,
            (Self::Refused(wanted), Outcome::Refused(code)) => wanted == *code,
            _ => false,
        };
        if is_it { Ok(()) } else { Err(format!("m{via} should answer {self:?}, and answers {outcome:?}")) }
    }
}

/// How often the steps look, in nanoseconds.
const LOOK_EVERY: u64 = 50 * MS;

/// What a run shows to the checks of its steps, at whatever level it is.
pub(crate) trait Shown {
    /// How many sites there are.
    fn members(&self) -> usize;
    /// The nodes, each with its candidates.
    fn nodes(&self) -> &[(NodeName, Vec<usize>)];
    /// Whether a member acts for a node.
    fn acts(&self, at: usize, node: &NodeName) -> bool;
    /// Whether a member holds quorum.
    fn is_quorate(&self, at: usize) -> bool;
    /// Whether a member has its seat.
    fn is_seated(&self, at: usize) -> bool;
    /// How many voters a member sees; none when it is down.
    fn voters_at(&self, at: usize) -> usize;
    /// Whom a member believes to be down; none when it does not run, or when that cannot be seen at this level.
    fn believed_down(&self, _at: usize) -> Option<Vec<usize>> {
        None
    }
    /// How often something was seen so far.
    fn counted(&self, what: &str) -> u64;
    /// Who acted for each node when a step noted it.
    fn noted(&mut self) -> &mut Vec<Option<usize>>;

    /// Says which of some checks is not so, and how.
    fn all_hold(&mut self, checks: &[Check]) -> Result<(), String> {
        checks.iter().try_for_each(|check| self.holds(check))
    }

    /// Says what of a check is not so.
    fn holds(&mut self, check: &Check) -> Result<(), String> {
        let each =
            |members: &[usize], is_so: &dyn Fn(usize) -> bool, what: &str| match members.iter().find(|at| !is_so(**at))
            {
                Some(at) => Err(format!("m{at} {what}")),
                None => Ok(()),
            };
        match check {
            Check::Quorate(members) => each(members, &|at| self.is_quorate(at), "does not hold quorum"),
            Check::Locked(members) => each(members, &|at| !self.is_quorate(at), "still holds quorum"),
            Check::Seated(members) => each(members, &|at| self.is_seated(at), "has no seat"),
            Check::Idle(members) => {
                let idle = |at| !self.nodes().iter().any(|(node, _)| self.acts(at, node));
                each(members, &idle, "still acts for a node")
            }
            Check::Voters { of, count } => {
                each(of, &|at| self.voters_at(at) == *count, "sees another number of voters")
            }
            Check::ManagedBy(members) => self.managed_by(members),
            Check::Down(members) => {
                let others = (0..self.members()).filter(|at| !members.contains(at));
                let views: Vec<_> = others.filter_map(|at| Some((at, self.believed_down(at)?))).collect();
                match views.iter().find(|(_, down)| down != members) {
                    Some((at, down)) => Err(format!("m{at} believes {down:?} to be down")),
                    None if views.is_empty() => Err("nobody tells whom it believes to be down".to_owned()),
                    None => Ok(()),
                }
            }
            Check::NoteManagers => {
                *self.noted() = self.managers_now();
                Ok(())
            }
            Check::SameManagers => {
                let now = self.managers_now();
                if *self.noted() == now { Ok(()) } else { Err("a node moved".to_owned()) }
            }
            Check::Seen(bounds) => self.seen(bounds),
        }
    }

    /// Says which thing was not seen as often as it must have been.
    fn seen(&self, bounds: &[(String, Bound)]) -> Result<(), String> {
        for (what, Bound { least, most }) in bounds {
            let seen = self.counted(what);
            if seen < *least || seen > *most {
                return Err(format!("{what:?} was seen {seen} times"));
            }
        }
        Ok(())
    }

    fn managed_by(&self, members: &[usize]) -> Result<(), String> {
        for (node, candidates) in self.nodes() {
            let acting: Vec<_> = (0..self.members()).filter(|at| self.acts(*at, node)).collect();
            let is_theirs = acting.len() == 1 && members.contains(&acting[0]);
            if candidates.iter().any(|candidate| members.contains(candidate)) && !is_theirs {
                return Err(format!("one of members {members:?} should act for {node}; it is {acting:?}"));
            }
        }
        Ok(())
    }

    fn managers_now(&self) -> Vec<Option<usize>> {
        self.nodes().iter().map(|(node, _)| (0..self.members()).find(|at| self.acts(*at, node))).collect()
    }
}

impl Shown for World {
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
        self.sites[at].core.as_ref().map_or(0, |core| core.roster().voters().len())
    }

    fn believed_down(&self, at: usize) -> Option<Vec<usize>> {
        let core = self.sites[at].core.as_ref()?;
        let is_down = |id| core.believes(id) == Some(Liveness::Down);
        let down = self.sites.iter().enumerate().filter(|(_, site)| site.me.is_some_and(is_down));
        Some(down.map(|(number, _)| number).collect())
    }

    fn counted(&self, what: &str) -> u64 {
        self.coverage.get(what).copied().unwrap_or(0)
    }

    fn noted(&mut self) -> &mut Vec<Option<usize>> {
        &mut self.noted
    }
}

impl World {
    /// Does and checks what a step says; an error is what should have been so in time and was not.
    pub(crate) fn take_step(&mut self, step: &Step) -> Result<(), String> {
        let end = self.time + step.within_ms * MS;
        while let Err(what) = self.all_hold(&step.checks) {
            if self.time >= end || !self.checker.violations.is_empty() {
                return Err(what);
            }
            self.run_until((self.time + LOOK_EVERY).min(end));
        }
        let end = self.time + step.stays_ms * MS;
        while self.time < end && self.checker.violations.is_empty() {
            self.run_until((self.time + LOOK_EVERY).min(end));
            self.all_hold(&step.checks)?;
        }
        step.act.as_ref().map_or(Ok(()), |act| self.act(act))
    }

    fn act(&mut self, act: &Act) -> Result<(), String> {
        let asked = self.ledger.0.len();
        let enrolments = self.enrolments.len();
        self.start_act(act);
        let Some(wanted) = act.answer else { return Ok(()) };
        let end = self.time + act.within_ms * MS;
        loop {
            let outcome = match act.what {
                // A join is over when the joiner holds its welcome.
                What::Invite { .. } => match self.enrolments.get(enrolments).and_then(|join| join.outcome.as_ref()) {
                    Some(Ok(_)) => Some(Outcome::Done),
                    Some(Err(_)) => Some(Outcome::Refused(ErrorCode::Failure)),
                    None => None,
                },
                _ => self.ledger.0.get(asked).and_then(|asked| asked.outcome.clone()),
            };
            if let Some(outcome) = outcome {
                return wanted.expect(act.via, &outcome);
            }
            if self.time >= end || !self.checker.violations.is_empty() {
                return Err(format!("m{} does not answer in time", act.via));
            }
            self.run_until((self.time + LOOK_EVERY).min(end));
        }
    }

    fn start_act(&mut self, act: &Act) {
        match &act.what {
            What::Write { again: false } => self.write(act.via, 0),
            What::Write { again: true } => self.write_again(act.via),
            What::Invite { member, dies } => {
                self.enrol(*member, act.via, *dies);
            }
            what => {
                self.nodes.extend(what.defined(self.sites.len()));
                if let Some((word, request)) = what.request() {
                    self.ask(act.via, Op::Named(word), request);
                }
            }
        }
    }
}

/// Returns the request to set one attribute of nodes.
pub(crate) fn set(nodes: &str, assignment: &str) -> Request {
    Request::SetAttributes {
        target: Target::Nodes(nodes.to_owned()),
        assignments: vec![assignment.to_owned()],
        clear: Vec::new(),
        wait: Wait::Majority,
        dry_run: false,
        yes: true,
    }
}

/// Returns the request to run an action on nodes.
pub(crate) fn run_action(nodes: &str) -> Request {
    Request::Run { nodes: nodes.to_owned(), action: "power-cycle".to_owned(), arguments: Vec::new() }
}
