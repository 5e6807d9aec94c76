//! Load: what administrators ask while things break, and the ledger of what they were answered.

use std::rc::Rc;

use collective::proto::collective::{Collective, RequestId};
use collective::proto::document::Entity;
use collective::proto::name::{MemberName, NodeName};
use collective::proto::quorum::majority;
use collective::proto::request::{ErrorCode, Request, Response, Standing};
use collective::proto::roster::Role;

use crate::check::{Authority, Rule};
use crate::fault::{MS, SECOND};
use crate::mix::{Mix, Purpose};
use crate::scenario::{Load, Scenario};
use crate::site::name;
use crate::trace::Seen;
use crate::world::World;

/// How long an administrator waits.
const WITHIN_MS: u64 = 5_000;
/// How long the core tries to have a change of the roster decided.
const DECIDED_WITHIN: u64 = 15 * SECOND;
/// How much later than that an answer may come.
const GRACE: u64 = SECOND;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// One attribute of one node; no other write has that name, but it may be said again.
    Write { node: NodeName, key: String, value: String },
    /// An invitation, for an enrolment.
    Invite { enrolment: usize },
    /// Anything else, under a name by which a scenario finds its answer.
    Named(&'static str),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// "ok".
    Done,
    /// Nothing was stored.
    Refused(ErrorCode),
    /// Nobody knows: indeterminate, too late, or the member died.
    Unknown,
}

impl Outcome {
    /// Returns what an answer says of a request.
    pub(crate) fn of(response: &Response) -> Self {
        match response {
            Response::Error(refused) => match refused.error.code {
                ErrorCode::Indeterminate | ErrorCode::TimedOut => Self::Unknown,
                code => Self::Refused(code),
            },
            _ => Self::Done,
        }
    }

    /// Returns what is known of a write that was said again, after what was known before: refused is only what was refused
    /// each time, and done is done.
    pub(crate) fn said_after(self, before: Option<Self>) -> Self {
        match (before, self) {
            (Some(Self::Done), _) | (_, Self::Done) => Self::Done,
            (Some(Self::Unknown), _) | (_, Self::Unknown) => Self::Unknown,
            (_, refused) => refused,
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) op: Op,
    at: usize,
    pub(crate) since: u64,
    pub(crate) outcome: Option<Outcome>,
    /// When it was answered.
    pub(crate) answered: u64,
}

/// Returns within which time something is answered: a change of the roster is given longer than its asker waits.
fn patience(op: &Op) -> u64 {
    let changes_roster = matches!(op, Op::Named("delete" | "leave" | "role" | "rotate"));
    if changes_roster { DECIDED_WITHIN } else { WITHIN_MS * MS }
}

/// Every request of a run, by number.
#[derive(Debug, Default)]
pub(crate) struct Ledger(pub(crate) Vec<Asked>);

impl Ledger {
    /// A member's process ended: what it was asked stays unanswered.
    pub(crate) fn orphan(&mut self, at: usize) {
        for asked in self.0.iter_mut().filter(|asked| asked.at == at && asked.outcome.is_none()) {
            asked.outcome = Some(Outcome::Unknown);
        }
    }

    /// Notes that something was asked of a member.
    pub(crate) fn note(&mut self, at: usize, op: Op, since: u64) {
        self.0.push(Asked { op, at, since, outcome: None, answered: 0 });
    }
}

/// One turn of the random load: what is asked, and of whom.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A write of one attribute of that node.
    Write { at: usize, node: usize },
    /// Something else, and the word for it.
    Ask { at: usize, word: &'static str, request: Request },
}

impl Turn {
    /// Draws a turn; none when nobody is awake or there is nothing to ask about.
    ///
    /// `nodes` come with their candidates. With churn members of so many are deleted, leave, or change their role.
    pub(crate) fn draw(
        mix: Mix,
        load: Load,
        awake: &[usize],
        nodes: &[(NodeName, Vec<usize>)],
        members: usize,
    ) -> Option<Self> {
        let draw = |index| mix.bits(Purpose::Workload, index) as usize;
        if awake.is_empty() || nodes.is_empty() {
            return None;
        }
        let (at, node) = (awake[draw(0) % awake.len()], draw(1) % nodes.len());
        let (name, candidates) = &nodes[node];
        let (word, request) = match if load.moves { draw(2) % 20 } else { 19 } {
            0 | 1 => {
                let to = named(candidates[draw(3) % candidates.len()])?;
                ("move", Request::Move { nodes: name.to_string(), to, dry_run: false })
            }
            2 => {
                let member = named(draw(3) % members)?;
                ("drain", Request::Drain { member, drain: draw(4).is_multiple_of(2) })
            }
            3 if load.churn => change_of_members(mix, members)?,
            3 => ("status", Request::Status),
            4 => ("managers", Request::Managers { nodes: None, why: true }),
            _ => return Some(Self::Write { at, node }),
        };
        Some(Self::Ask { at, word, request })
    }

    /// Returns what the coverage counts a question under.
    pub(crate) fn counted_as(word: &str) -> &'static str {
        if ["delete", "leave", "role"].contains(&word) { "change of members" } else { "other request" }
    }
}

/// Draws what deletes one of so many members, has whoever is asked leave, or changes a member's role; and the word for it.
fn change_of_members(mix: Mix, members: usize) -> Option<(&'static str, Request)> {
    let draw = |index: u64| mix.bits(Purpose::Workload, 100 + index) as usize;
    let member = named(draw(0) % members)?;
    Some(match draw(1) % 5 {
        0 | 1 => ("delete", Request::Delete { member, force: true, dry_run: false }),
        2 => ("leave", Request::Leave),
        _ => {
            let role = [Role::Voter, Role::Nonvoting, Role::Voter, Role::Witness][draw(2) % 4];
            ("role", Request::SetRole { member, role })
        }
    })
}

fn named(member: usize) -> Option<MemberName> {
    MemberName::new(&name(member)).ok()
}

impl World {
    /// Asks a member something; the answer goes to the ledger.
    pub(crate) fn ask(&mut self, at: usize, op: Op, request: Request) {
        self.ledger.note(at, op, self.time);
        let id = self.ledger.0.len() as RequestId;
        if self.sites[at].is_up() {
            self.request(at, id, request, WITHIN_MS);
        } else {
            self.ledger.orphan(at);
        }
    }

    pub(crate) fn on_reply(&mut self, at: usize, id: RequestId, response: &Response) {
        let Some(asked) = self.ledger.0.get_mut(id as usize - 1) else { return };
        let outcome = Outcome::of(response);
        let since = asked.since;
        asked.outcome = Some(outcome.clone());
        asked.answered = self.time;
        let op = asked.op.clone();
        self.note_answer(at, &op, &outcome);
        self.tell(|| format!("m{at} answers {op:?}: {outcome:?}"));
        if op == Op::Named("post-mortem") {
            self.tell(|| format!("m{at} says {response:?}"));
        }
        if self.time > since + patience(&op) + GRACE + self.late_by_fault() {
            self.violate(Rule::Answered, format!("m{at} answered {op:?} too late"));
        }
        match op {
            Op::Invite { enrolment } => self.on_invited(enrolment, response),
            Op::Write { node, key, value } => match outcome {
                Outcome::Done => self.on_acknowledged(at, &node, &key, &value),
                Outcome::Refused(_) => self.count("refused"),
                Outcome::Unknown => self.count("unknown"),
            },
            Op::Named(_) => {}
        }
    }

    /// A disk is an older one than its member had, and nobody may notice (R9): the assumption under which acknowledged
    /// writes stay does not hold for those of which a majority has no copy any more. What became of them, nobody knows.
    pub(crate) fn write_off_lost_copies(&mut self) {
        let Some(voters) = self.newest_roster().map(|roster| roster.voters().clone()) else { return };
        for number in 0..self.ledger.0.len() {
            let asked = &self.ledger.0[number];
            let (Op::Write { node, key, value }, Some(Outcome::Done)) = (&asked.op, &asked.outcome) else { continue };
            if self.copies(&voters, node, key, value) < majority(voters.len()) {
                self.ledger.0[number].outcome = Some(Outcome::Unknown);
                self.count("write lost with a disk");
            }
        }
    }

    fn note_answer(&mut self, at: usize, op: &Op, outcome: &Outcome) {
        let what = match op {
            Op::Write { key, .. } if *outcome != Outcome::Done => format!("the write of {key}"),
            Op::Named(named @ ("define" | "delete" | "leave" | "role" | "rotate")) => (*named).to_owned(),
            _ => return,
        };
        let answer = match outcome {
            Outcome::Done => "ok".to_owned(),
            Outcome::Refused(code) => format!("refused, {code:?}"),
            Outcome::Unknown => "nobody knows".to_owned(),
        };
        self.note(Some(at), || Seen::Answered { what, answer });
    }

    /// A paused process answers late.
    fn late_by_fault(&self) -> u64 {
        self.faults
            .iter()
            .filter(|fault| matches!(fault.kind.word(), "pause" | "freeze" | "slow-cpu"))
            .map(|fault| fault.until.unwrap_or(fault.at) - fault.at)
            .sum()
    }

    fn on_acknowledged(&mut self, at: usize, node: &NodeName, key: &str, value: &str) {
        self.count("acknowledged");
        let Some(core) = &self.sites[at].core else { return };
        let (me, timing, voters) = (core.id(), core.roster().timing, Rc::new(core.roster().voters().clone()));
        let copies = self.copies(&voters, node, key, value);
        self.checker.acknowledged(self.time, key, copies, voters.len());
        let (write, of) = (key.to_owned(), voters.len());
        self.note(Some(at), || Seen::Acknowledged { write, copies: Some(copies), voters: of });
        let now = self.sites[at].now(self.time).boot.as_nanos();
        let who = Authority { member: at, me, voters: &voters, timing };
        self.checker.authority(self.time, who, now, &format!("acknowledges {key}"));
    }

    /// Defines the nodes of a run, each with its candidates.
    pub(crate) fn define_nodes(&mut self, scenario: &Scenario) {
        let members = self.sites.iter().filter(|site| site.is_up()).count();
        for number in 0..scenario.nodes {
            let Ok(name) = NodeName::new(&format!("n{number}")) else { continue };
            let candidates = scenario.candidates_of(number);
            let names: Vec<_> = candidates.iter().map(|member| crate::site::name(*member)).collect();
            let assignments = vec![format!("collective.managercandidates={}", names.join(","))];
            self.nodes.push((name.clone(), candidates));
            self.ask(
                number % members,
                Op::Named("define"),
                Request::DefineNodes { nodes: name.to_string(), assignments },
            );
        }
        let defined = self.wait(20 * SECOND, |world| {
            world.ledger.0.iter().all(|asked| asked.outcome.is_some())
                && world.nodes.iter().all(|(node, _)| (0..members).any(|at| world.acts(at, node)))
        });
        if !defined {
            let free: Vec<_> =
                self.nodes.iter().filter(|(node, _)| !(0..members).any(|at| self.acts(at, node))).collect();
            self.violate(Rule::Convergence, format!("not every node is defined and managed within 20 s: {free:?}"));
        }
    }

    /// Writes one attribute of its own through a member.
    pub(crate) fn write(&mut self, at: usize, node: usize) {
        let number = self.ledger.0.len();
        let (key, value) = (format!("custom.w{number}"), format!("v{number}"));
        let node = self.nodes[node].0.clone();
        let request = crate::step::set(node.as_str(), &format!("{key}={value}"));
        self.count("write");
        self.ask(at, Op::Write { node, key, value }, request);
    }

    /// Says the last write again, through a member.
    pub(crate) fn write_again(&mut self, at: usize) {
        let last = self.ledger.0.iter().rev().find_map(|asked| match &asked.op {
            Op::Write { node, key, value } => Some((node.clone(), key.clone(), value.clone())),
            _ => None,
        });
        let Some((node, key, value)) = last else { return };
        let request = crate::step::set(node.as_str(), &format!("{key}={value}"));
        self.count("write said again");
        self.ask(at, Op::Write { node, key, value }, request);
    }

    /// One turn of the random load.
    pub(crate) fn work(&mut self) {
        self.works += 1;
        let mix = self.mix.fork(Purpose::Workload, self.works);
        let awake: Vec<_> = (0..self.sites.len()).filter(|at| self.sites[*at].is_awake()).collect();
        match Turn::draw(mix, self.load, &awake, &self.nodes, self.sites.len()) {
            Some(Turn::Write { at, node }) => self.write(at, node),
            Some(Turn::Ask { at, word, request }) => {
                self.count(Turn::counted_as(word));
                self.ask(at, Op::Named(word), request);
            }
            None => {}
        }
    }

    /// R12: a member that takes its seat holds every write that was acknowledged before it had quorum again.
    pub(crate) fn check_seat(&mut self, at: usize) {
        let Some(standing) = self.sites[at].core.as_ref().map(Collective::standing) else { return };
        let (before, since) = self.seen_standing[at];
        if standing == before {
            return;
        }
        let since = if before == Standing::Isolated { self.time } else { since };
        self.seen_standing[at] = (standing, since);
        if standing != Standing::Seated {
            return;
        }
        self.count("seat");
        let Some(documents) = self.sites[at].documents() else { return };
        let is_missing = |asked: &&Asked| match &asked.op {
            Op::Write { node, key, value } if asked.outcome == Some(Outcome::Done) && asked.answered < since => {
                documents.get(&Entity::Node(node.clone()), key) != Some(value)
            }
            _ => false,
        };
        let missing = self.ledger.0.iter().find(is_missing).map(|asked| asked.op.clone());
        if let Some(op) = missing {
            self.violate(
                Rule::NothingLost,
                format!("m{at} has its seat without {op:?}, acknowledged before it had quorum"),
            );
        }
    }

    /// After the end: what was acknowledged is there, what was refused is not, and everybody was answered.
    pub(crate) fn settle_accounts(&mut self, core: &[usize]) {
        let ledger = std::mem::take(&mut self.ledger);
        let is_refused = |asked: &Asked| matches!(asked.outcome, Some(Outcome::Refused(_)));
        let is_stored = |op: &Op| ledger.0.iter().any(|asked| asked.op == *op && !is_refused(asked));
        for asked in &ledger.0 {
            let overdue = asked.since + patience(&asked.op) + GRACE + self.late_by_fault();
            if asked.outcome.is_none() && self.time > overdue && core.contains(&asked.at) {
                self.violate(Rule::Answered, format!("m{} never answered {:?}", asked.at, asked.op));
            }
            let Op::Write { node, key, value } = &asked.op else { continue };
            let entity = Entity::Node(node.clone());
            for at in core {
                let found = self.sites[*at].documents().and_then(|documents| documents.get(&entity, key));
                let violated = match asked.outcome {
                    Some(Outcome::Done) if found != Some(value) => {
                        Some((Rule::NothingLost, format!("{key} was acknowledged, but m{at} has {found:?}")))
                    }
                    Some(Outcome::Refused(code)) if found.is_some() && !is_stored(&asked.op) => {
                        Some((Rule::RefusedStaysOut, format!("{key} was refused ({code:?}), but m{at} has it")))
                    }
                    _ => None,
                };
                if let Some((rule, what)) = violated {
                    self.violate(rule, what);
                }
            }
        }
        self.ledger = ledger;
    }
}
