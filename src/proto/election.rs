//! The election: which member shall manage a node, and why, from the node's attributes, who holds it, and who is there.
//!
//! It is a pure function, so every member that sees the same gives the same answer; members that see different things
//! are kept apart by claims, not by this. In order:
//!
//! 1. `collective.manager` names a member that is available: that member (the holder releases before it claims).
//! 2. The holder keeps the node while it is available and may have it: nothing moves without need.
//! 3. The first available candidate, as they are ranked.
//! 4. Nobody. Without candidates a node never fails over.
//!
//! The policy `spread` ranks candidates by rendezvous hashing (Thaler and Ravishankar 1998), highest first:
//! `u64::from_be(SHA-256(cluster 0 node 0 member)[..8])`, where the cluster id is its 16 bytes, the names are their
//! bytes, and each 0 is one zero byte; the lower name breaks a tie. Test vectors for cluster
//! `00112233445566778899aabbccddeeff`:
//!
//! | node | member | score |
//! |---|---|---|
//! | n1 | mgt1 | `4039c365805b6adf` |
//! | n1 | mgt2 | `7e2740a720059283` |
//! | n1 | mgt3 | `37fde6b317c3bf30` |
//! | n2 | mgt1 | `29a5978178117476` |
//!
//! The policy `ordered` ranks them as they are written.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ring::digest;

use super::identity::{ClusterId, MemberId};
use super::name::{MemberName, NodeName};
use super::noderange;
use super::roster::Role;

pub use record::{By, Record, RecordError, Token, highest};

/// How candidates are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// By rendezvous hash, so that nodes are spread over all candidates.
    #[default]
    Spread,
    /// In the order in which they are written.
    Ordered,
}

impl Policy {
    /// Reads `collective.managerpolicy`; what is blank or unknown is the default.
    pub fn from_attribute(value: &str) -> Self {
        if value == "ordered" { Self::Ordered } else { Self::Spread }
    }
}

/// Whether a manager that was failed over takes its nodes back when it returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailBack {
    /// It does not: a node moves only with need.
    #[default]
    None,
    /// It does, some nodes at a time.
    Prefer,
}

impl FailBack {
    /// Reads `collective.failback`; what is blank or unknown is the default.
    pub fn from_attribute(value: &str) -> Self {
        if value == "prefer" { Self::Prefer } else { Self::None }
    }
}

/// One node up for election.
#[derive(Clone, Copy, Debug)]
pub struct Contest<'a> {
    /// The collective.
    pub cluster: ClusterId,
    /// The node.
    pub node: &'a NodeName,
    /// `collective.manager` as it holds for the node; blank counts as unset.
    pub pinned: Option<&'a str>,
    /// `collective.managercandidates` as it holds for the node, a noderange over members; blank counts as unset.
    pub candidates: Option<&'a str>,
    /// How candidates are ranked.
    pub policy: Policy,
    /// Whether the preferred manager takes the node back.
    pub fail_back: FailBack,
    /// Who holds the node, or held it last, by the voters' claims or by the record.
    pub holder: Option<MemberId>,
    /// The pin that the holder took the node in spite of, because its member was not available (from the record).
    ///
    /// As long as the pin is the same, the pinned member's return is a fail-back and not an order.
    pub despite: Option<&'a str>,
}

/// One member, as the election sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runner {
    /// Its enrolment.
    pub id: MemberId,
    /// What it may do; a learner may manage.
    pub role: Role,
    /// Whether it hands its nodes over and takes no new ones.
    pub draining: bool,
    /// Whether it is there to manage.
    pub available: bool,
}

/// The members among whom managers are elected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    runners: BTreeMap<MemberName, Runner>,
    ids: BTreeMap<MemberId, MemberName>,
    names: Arc<BTreeSet<MemberName>>,
}

impl FromIterator<(MemberName, Runner)> for Electorate {
    fn from_iter<I: IntoIterator<Item = (MemberName, Runner)>>(runners: I) -> Self {
        let runners: BTreeMap<_, _> = runners.into_iter().collect();
        let names = Arc::new(runners.keys().cloned().collect());
        let ids = runners.iter().map(|(name, runner)| (runner.id, name.clone())).collect();
        Self { runners, ids, names }
    }
}

impl Electorate {
    /// Returns a member by name.
    pub fn runner(&self, name: &MemberName) -> Option<&Runner> {
        self.runners.get(name)
    }

    /// Returns the names of all members, a universe for noderanges.
    pub fn names(&self) -> &BTreeSet<MemberName> {
        &self.names
    }

    /// Notes whether a member is there to manage: in a large collective somebody comes or goes all the time.
    pub fn set_available(&mut self, id: MemberId, available: bool) {
        if let Some(runner) = self.ids.get(&id).and_then(|name| self.runners.get_mut(name)) {
            runner.available = available;
        }
    }

    /// Says what keeps a member from managing, if anything does.
    fn exclusion(&self, name: &MemberName) -> Option<Exclusion> {
        let Some(runner) = self.runner(name) else { return Some(Exclusion::NotAMember) };
        if !runner.role.manages() {
            Some(Exclusion::Witness)
        } else if runner.draining {
            Some(Exclusion::Draining)
        } else if !runner.available {
            Some(Exclusion::Unavailable)
        } else {
            None
        }
    }
}

/// Candidate expressions that were read already: thousands of nodes share a few of them.
///
/// It belongs to a set of member names, and forgets everything when it meets another set.
#[derive(Debug, Default)]
pub struct Expressions {
    names: Arc<BTreeSet<MemberName>>,
    read: BTreeMap<String, Arc<Candidates>>,
}

/// What one candidate expression stands for.
#[derive(Debug, Default)]
struct Candidates {
    members: Vec<MemberName>,
    unknown: Vec<String>,
    error: Option<String>,
}

/// Expressions that are remembered; more distinct ones are read again.
const EXPRESSIONS_MAX: usize = 4_096;

impl Expressions {
    fn candidates(&mut self, text: &str, electorate: &Electorate) -> Arc<Candidates> {
        if !Arc::ptr_eq(&self.names, &electorate.names) && self.names != electorate.names {
            self.read.clear();
        }
        // Also after an equal set, so that the next comparison is one of pointers.
        self.names = Arc::clone(&electorate.names);
        if let Some(known) = self.read.get(text) {
            return Arc::clone(known);
        }
        let expansion =
            noderange::parse(text).and_then(|parsed| noderange::expand_lenient(&parsed, electorate.names()));
        let candidates = Arc::new(match expansion {
            Ok(expansion) => Candidates {
                members: expansion.names.iter().filter_map(|name| MemberName::new(name).ok()).collect(),
                unknown: expansion.unknown,
                error: None,
            },
            Err(error) => Candidates { error: Some(error.problem.to_string()), ..Candidates::default() },
        });
        if self.read.len() == EXPRESSIONS_MAX {
            self.read.clear();
        }
        self.read.insert(text.to_owned(), Arc::clone(&candidates));
        candidates
    }
}

/// The outcome of one node's election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Who shall manage the node now.
    pub desired: Option<MemberName>,
    /// Who would manage it if everybody were available: the pinned member, or else the first in rank.
    pub preferred: Option<MemberName>,
    /// To whom the node may be handed back, at the caller's pace. Only under [`FailBack::Prefer`].
    pub fail_back_to: Option<MemberName>,
    /// The pinned member and then the candidates, in rank.
    pub ranked: Vec<Ranked>,
    /// Names that are no member's: they are passed over, and people are warned.
    pub unknown: Vec<String>,
    /// Why.
    pub reason: Reason,
    /// Who holds the node or held it last, if still a member.
    pub holder: Option<MemberName>,
}

/// One member in rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The member.
    pub member: MemberName,
    /// Its rendezvous hash; none for the pinned member and under [`Policy::Ordered`].
    pub score: Option<u64>,
    /// Whether `collective.manager` names it.
    pub pinned: bool,
    /// What keeps it from managing the node now.
    pub ruled_out: Option<Exclusion>,
}

/// What keeps a member from managing a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// It is not on the roster.
    NotAMember,
    /// It votes, but never manages.
    Witness,
    /// It is handing its nodes over.
    Draining,
    /// It is not there.
    Unavailable,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotAMember => "not a member",
            Self::Witness => "a witness never manages",
            Self::Draining => "draining",
            Self::Unavailable => "not available",
        })
    }
}

/// Why a node has the desired manager it has, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// `collective.manager` names it.
    Pinned,
    /// It holds the node.
    Holds,
    /// It holds the node until the pinned member, which is not available, can take it.
    HoldsUntilPinned(MemberName, Exclusion),
    /// It took the node over from the pinned member, which is back: nothing moves without need.
    HoldsAfterFailover(MemberName),
    /// It is the first candidate.
    First,
    /// It is the first candidate that is available.
    FirstAvailable,
    /// It stands in for the pinned member.
    StandsIn(MemberName, Exclusion),
    /// Neither attribute is set.
    Unmanaged,
    /// The pinned member cannot manage the node, and there are no candidates to take over.
    PinnedAway(MemberName, Exclusion),
    /// `collective.manager` does not name a member, and there are no candidates.
    PinnedUnknown(String),
    /// No candidate is available.
    NoneAvailable,
    /// The candidates cannot be read.
    Unreadable(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("collective.manager names it"),
            Self::Holds => f.write_str("it holds the node"),
            Self::HoldsUntilPinned(member, why) => {
                write!(f, "it holds the node; collective.manager={member} is pending: {why}")
            }
            Self::HoldsAfterFailover(member) => {
                write!(f, "it took the node over from {member}, which is back")
            }
            Self::First => f.write_str("it is the first of the candidates"),
            Self::FirstAvailable => f.write_str("it is the first of the candidates that is available"),
            Self::StandsIn(member, why) => {
                write!(f, "it stands in; collective.manager={member} is pending: {why}")
            }
            Self::Unmanaged => f.write_str("neither collective.manager nor collective.managercandidates is set"),
            Self::PinnedAway(member, why) => {
                write!(f, "collective.manager={member}: {why}; there are no candidates to take over")
            }
            Self::PinnedUnknown(name) => write!(f, "collective.manager={name}: not a member; there are no candidates"),
            Self::NoneAvailable => f.write_str("no candidate is available"),
            Self::Unreadable(problem) => write!(f, "collective.managercandidates cannot be read: {problem}"),
        }
    }
}

impl Verdict {
    /// Returns how many stand before a member in rank: the k of R10, which waits k x T/8 before it claims.
    ///
    /// Whoever may manage counts, seen or not, since members may see different things; the last holder does not,
    /// whose end the wait has been for already. Nothing for a member that is not in rank or must not manage.
    pub fn position(&self, member: &MemberName) -> Option<usize> {
        let may_manage = |ranked: &&Ranked| matches!(ranked.ruled_out, None | Some(Exclusion::Unavailable));
        let mut before = 0;
        for ranked in self.ranked.iter().filter(may_manage) {
            if ranked.member == *member {
                return Some(before);
            }
            before += usize::from(self.holder.as_ref() != Some(&ranked.member));
        }
        None
    }
}

/// Elects the manager of one node.
///
/// A name that is no member's never stops the election; it is reported in the verdict.
pub fn elect(contest: &Contest<'_>, electorate: &Electorate, expressions: &mut Expressions) -> Verdict {
    let pinned = contest.pinned.filter(|name| !name.is_empty());
    let candidates = contest.candidates.filter(|text| !text.is_empty());
    let candidates = candidates.map(|text| expressions.candidates(text, electorate));
    let mut unknown = Vec::new();
    let pin = pinned.and_then(|name| {
        let member = MemberName::new(name).ok().filter(|member| electorate.runner(member).is_some());
        if member.is_none() {
            unknown.push(name.to_owned());
        }
        member
    });
    unknown.extend(candidates.iter().flat_map(|candidates| candidates.unknown.iter().cloned()));
    let members = candidates.as_ref().map_or(&[][..], |candidates| &candidates.members);
    let holder = contest.holder.and_then(|id| electorate.ids.get(&id)).cloned();
    let ranked = rank(contest, electorate, pin.as_ref(), members);

    let holder_keeps = holder.as_ref().filter(|holder| electorate.exclusion(holder).is_none());
    // Candidates that cannot be read take no node away from anybody.
    let is_unreadable = candidates.as_ref().is_some_and(|candidates| candidates.error.is_some());
    let is_candidate = holder_keeps.is_some_and(|holder| is_unreadable || members.contains(holder));
    let was_overruled = pinned.is_some() && pinned == contest.despite && is_candidate;
    let pin_exclusion = pin.as_ref().and_then(|pin| electorate.exclusion(pin));
    let standby = ranked.iter().filter(|ranked| !ranked.pinned).position(|ranked| ranked.ruled_out.is_none());
    let first = standby.and_then(|at| ranked.iter().filter(|ranked| !ranked.pinned).nth(at));

    let (desired, reason) = match (&pin, pin_exclusion, holder_keeps) {
        (Some(pin), None, Some(holder)) if was_overruled && holder != pin => {
            (Some(holder.clone()), Reason::HoldsAfterFailover(pin.clone()))
        }
        (Some(pin), None, _) => (Some(pin.clone()), Reason::Pinned),
        // Without candidates the holder keeps a node that was pinned elsewhere until the pinned member can claim it.
        (Some(pin), Some(why), Some(holder)) if is_candidate || candidates.is_none() => {
            (Some(holder.clone()), Reason::HoldsUntilPinned(pin.clone(), why))
        }
        (None, _, Some(holder)) if is_candidate => (Some(holder.clone()), Reason::Holds),
        (pin, why, _) => match (first, &candidates) {
            (Some(first), _) => {
                let reason = match (pin, why) {
                    (Some(pin), Some(why)) => Reason::StandsIn(pin.clone(), why),
                    _ if standby == Some(0) => Reason::First,
                    _ => Reason::FirstAvailable,
                };
                (Some(first.member.clone()), reason)
            }
            (None, Some(candidates)) => {
                (None, candidates.error.clone().map_or(Reason::NoneAvailable, Reason::Unreadable))
            }
            (None, None) => (None, nobody(pinned, pin.as_ref().zip(why))),
        },
    };
    let preferred = ranked.iter().find(|ranked| matches!(ranked.ruled_out, None | Some(Exclusion::Unavailable)));
    let preferred = preferred.map(|ranked| ranked.member.clone());
    let fail_back_to = preferred.clone().filter(|preferred| {
        contest.fail_back == FailBack::Prefer
            && electorate.exclusion(preferred).is_none()
            && desired.as_ref().is_some_and(|desired| desired != preferred)
    });
    Verdict { desired, preferred, fail_back_to, ranked, unknown, reason, holder }
}

/// Says why nobody is desired when there are no candidates at all.
fn nobody(pinned: Option<&str>, away: Option<(&MemberName, Exclusion)>) -> Reason {
    match (pinned, away) {
        (None, _) => Reason::Unmanaged,
        (Some(_), Some((member, why))) => Reason::PinnedAway(member.clone(), why),
        (Some(name), None) => Reason::PinnedUnknown(name.chars().take(80).collect()),
    }
}

/// Ranks the pinned member first, then the candidates.
fn rank(
    contest: &Contest<'_>,
    electorate: &Electorate,
    pin: Option<&MemberName>,
    candidates: &[MemberName],
) -> Vec<Ranked> {
    let of = |member: &MemberName, score, pinned| Ranked {
        member: member.clone(),
        score,
        pinned,
        ruled_out: electorate.exclusion(member),
    };
    let mut ranked: Vec<Ranked> = pin.map(|pin| of(pin, None, true)).into_iter().collect();
    let others = candidates.iter().filter(|member| Some(*member) != pin);
    match contest.policy {
        Policy::Ordered => ranked.extend(others.map(|member| of(member, None, false))),
        Policy::Spread => {
            let mut spread: Vec<_> =
                others.map(|member| (score(contest.cluster, contest.node, member), member)).collect();
            spread.sort_unstable_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
            ranked.extend(spread.into_iter().map(|(score, member)| of(member, Some(score), false)));
        }
    }
    ranked
}

/// Returns the rendezvous hash of a member for a node; see the table at the top.
pub fn score(cluster: ClusterId, node: &NodeName, member: &MemberName) -> u64 {
    let mut text = Vec::with_capacity(160);
    text.extend_from_slice(&cluster.0);
    text.push(0);
    text.extend_from_slice(node.as_str().as_bytes());
    text.push(0);
    text.extend_from_slice(member.as_str().as_bytes());
    let hash = digest::digest(&digest::SHA256, &text);
    u64::from_be_bytes(std::array::from_fn(|index| hash.as_ref()[index]))
}

#[cfg(test)]
mod tests;
