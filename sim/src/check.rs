//! The checkers: what must never be seen (I1, I2, I3, I5), and what must be seen in the end (I4).
//!
//! They know nothing of how the core comes to its decisions: observations go in, violations come out. That is why a
//! broken trace can be fed to each of them to see that it bites.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use collective::proto::identity::{InviteId, MemberId, RosterHash};
use collective::proto::quorum::majority;
use collective::proto::roster::{Timing, Version};

use crate::trace::{Line, Seen, seconds};

/// What was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// I1: at most one member acts for a node.
    OneManager,
    /// I2: one roster a version, and no two disjoint quorums.
    OneRoster,
    /// I3: an acknowledged write is on a majority's disks, and stays.
    NothingLost,
    /// I5: no authority later than T(1-m) after the last majority contact.
    LockDown,
    /// I6: an invitation lets one in, and who was removed never acts again.
    Once,
    /// A refused write never appears.
    RefusedStaysOut,
    /// An incarnation is durable before it is told, and none is used twice.
    Incarnation,
    /// A scenario's bound on time.
    BoundedTime,
    /// I4: everything becomes equal, quorate and managed.
    Convergence,
    /// Every request is answered.
    Answered,
    /// The core never panics.
    NoPanic,
}

impl Rule {
    /// Every rule.
    pub(crate) const ALL: [Self; 11] = [
        Self::OneManager,
        Self::OneRoster,
        Self::NothingLost,
        Self::LockDown,
        Self::Once,
        Self::RefusedStaysOut,
        Self::Incarnation,
        Self::BoundedTime,
        Self::Convergence,
        Self::Answered,
        Self::NoPanic,
    ];

    /// Returns the word by which scenarios and cases name it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::OneManager => "one-manager",
            Self::OneRoster => "one-roster",
            Self::NothingLost => "nothing-lost",
            Self::LockDown => "lock-down",
            Self::Once => "once",
            Self::RefusedStaysOut => "refused-stays-out",
            Self::Incarnation => "incarnation",
            Self::BoundedTime => "bounded-time",
            Self::Convergence => "convergence",
            Self::Answered => "answered",
            Self::NoPanic => "no-panic",
        }
    }

    /// Returns the exit code that tells this violation.
    pub(crate) const fn exit(self) -> u8 {
        match self {
            Self::OneManager
            | Self::OneRoster
            | Self::NothingLost
            | Self::LockDown
            | Self::Once
            | Self::RefusedStaysOut
            | Self::Incarnation => 2,
            Self::BoundedTime => 3,
            Self::Convergence | Self::Answered => 4,
            Self::NoPanic => 5,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OneManager => "I1 one manager",
            Self::OneRoster => "I2 one roster",
            Self::NothingLost => "I3 nothing lost",
            Self::LockDown => "I5 lock-down",
            Self::Once => "I6 once",
            Self::RefusedStaysOut => "refused stays out",
            Self::Incarnation => "incarnation",
            Self::BoundedTime => "bounded time",
            Self::Convergence => "I4 convergence",
            Self::Answered => "answered",
            Self::NoPanic => "no panic",
        })
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// When, in true nanoseconds.
    pub(crate) at: u64,
    pub(crate) rule: Rule,
    pub(crate) what: String,
}

impl Violation {
    /// Returns it as a line of a trace.
    pub(crate) fn line(&self) -> Line {
        let seen = Seen::Violation { rule: self.rule.word().to_owned(), what: self.what.clone() };
        Line { t: seconds(self.at), member: None, seen }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:9.3}s VIOLATION {}: {}", self.at as f64 / 1e9, self.rule, self.what)
    }
}

/// Watches one run.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) violations: Vec<Violation>,
    rosters: BTreeMap<Version, RosterHash>,
    /// For each member and run: when the requests were sent, on its own clock, that each voter granted last.
    contacts: BTreeMap<usize, Vec<(MemberId, u64)>>,
    incarnations: BTreeMap<usize, u64>,
    /// The last token by which each node was managed, and whose it was.
    tokens: BTreeMap<String, ([u64; 3], usize)>,
    /// Whom each invitation let in.
    consumed: BTreeMap<InviteId, MemberId>,
    /// The newest roster in force anywhere, and who is on it.
    newest: Option<(Version, BTreeSet<MemberId>)>,
    /// When each member was removed, at the latest.
    removed: BTreeMap<MemberId, u64>,
}

/// The violations that are kept; the first one is what matters.
const VIOLATIONS_MAX: usize = 20;

impl Checker {
    pub(crate) fn violate(&mut self, at: u64, rule: Rule, what: String) {
        let is_new = self.violations.iter().all(|seen| seen.rule != rule || seen.what != what);
        if is_new && self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { at, rule, what });
        }
    }

    /// I1: these members act for the node right now.
    pub(crate) fn acting(&mut self, at: u64, node: &str, members: &[usize]) {
        if members.len() > 1 {
            self.violate(at, Rule::OneManager, format!("members {members:?} act for {node}"));
        }
    }

    /// I1: a member begins to act for a node, by this fencing token. Tokens rise from one manager to the next.
    pub(crate) fn token(&mut self, at: u64, node: &str, member: usize, token: [u64; 3]) {
        let last = self.tokens.get(node).copied();
        let is_stale = last.is_some_and(|(last, by)| token < last || (token == last && by != member));
        if let Some((last, by)) = last.filter(|_| is_stale) {
            let what = format!("member {member} acts for {node} by token {token:?}, after member {by} by {last:?}");
            self.violate(at, Rule::OneManager, what);
        }
        self.tokens.insert(node.to_owned(), (token, member));
    }

    /// I2: a member has this roster in force.
    pub(crate) fn roster(&mut self, at: u64, member: usize, version: Version, hash: RosterHash) {
        let first = *self.rosters.entry(version).or_insert(hash);
        if first != hash {
            self.violate(at, Rule::OneRoster, format!("member {member} has another roster {version} than others"));
        }
    }

    /// I6: an invitation let a member in.
    pub(crate) fn consumed(&mut self, at: u64, invite: InviteId, member: MemberId) {
        let first = *self.consumed.entry(invite).or_insert(member);
        if first != member {
            self.violate(at, Rule::Once, format!("invitation {invite} let two members in"));
        }
    }

    /// I6: these are on a roster that is in force.
    pub(crate) fn members(&mut self, at: u64, version: Version, ids: BTreeSet<MemberId>) {
        if let Some((newest, before)) = &self.newest {
            if version <= *newest {
                return;
            }
            for gone in before.difference(&ids) {
                self.removed.entry(*gone).or_insert(at);
            }
        }
        self.newest = Some((version, ids));
    }

    /// I6: a member acts right now; who was removed may only use up the lease it had.
    pub(crate) fn acts_as(&mut self, at: u64, member: usize, id: MemberId, timing: Timing) {
        let lease = timing.quiet().as_nanos() as u64;
        if self.removed.get(&id).is_some_and(|since| at > since + lease) {
            self.violate(at, Rule::Once, format!("member {member} was removed, and acts a lease later"));
        }
    }

    /// I2: these members hold quorum right now, each of these voters.
    pub(crate) fn quorums(&mut self, at: u64, held: &[(usize, &BTreeSet<MemberId>)]) {
        for (i, (a, voters_a)) in held.iter().enumerate() {
            // Two majorities of one set always meet.
            for (b, voters_b) in held[i + 1..].iter().filter(|(_, voters_b)| !std::ptr::eq(*voters_a, *voters_b)) {
                let all = voters_a.union(voters_b).count();
                if majority(voters_a.len()) + majority(voters_b.len()) <= all {
                    let what = format!("members {a} and {b} hold quorum under voters that need not meet");
                    self.violate(at, Rule::OneRoster, what);
                }
            }
        }
    }

    /// I3: a write was acknowledged, durable on these of the voters.
    pub(crate) fn acknowledged(&mut self, at: u64, write: &str, copies: usize, voters: usize) {
        if copies < majority(voters) {
            let what = format!("{write} was acknowledged with {copies} durable copies on {voters} voters");
            self.violate(at, Rule::NothingLost, what);
        }
    }

    /// A new run of a member begins: what voters granted to the last one counts for nothing.
    pub(crate) fn born(&mut self, member: usize) {
        self.contacts.remove(&member);
    }

    /// A site begins as a new member, who has nothing to do with what it was before.
    pub(crate) fn enrolled(&mut self, member: usize) {
        self.born(member);
        self.incarnations.remove(&member);
    }

    /// A voter granted what the member had asked for at `sent`, on the member's own clock.
    pub(crate) fn contact(&mut self, member: usize, voter: MemberId, sent: u64) {
        let contacts = self.contacts.entry(member).or_default();
        match contacts.iter_mut().find(|(id, _)| *id == voter) {
            Some((_, last)) => *last = sent.max(*last),
            None => contacts.push((voter, sent)),
        }
    }

    /// I5: a member uses its authority at `now`, on its own clock.
    pub(crate) fn authority(&mut self, at: u64, who: Authority<'_>, now: u64, what: &str) {
        let usable = who.timing.usable().as_nanos() as u64;
        let contacts = self.contacts.get(&who.member).map_or(&[][..], Vec::as_slice);
        let is_fresh =
            |(voter, sent): &&(MemberId, u64)| sent + usable > now && *voter != who.me && who.voters.contains(voter);
        // Asked at nearly every event, so nobody is looked up beyond a majority.
        let needed = majority(who.voters.len());
        let granted = usize::from(who.voters.contains(&who.me)) + contacts.iter().filter(is_fresh).take(needed).count();
        if granted < needed {
            let of = who.voters.len();
            let what = format!("member {} {what} with {granted} of {of} voters within T(1-m)", who.member);
            self.violate(at, Rule::LockDown, what);
        }
    }

    /// A member tells its incarnation, while that one is durable.
    pub(crate) fn incarnation(&mut self, at: u64, member: usize, told: u64, durable: u64, is_start: bool) {
        let last = self.incarnations.entry(member).or_default();
        let is_stale = if is_start { told <= *last } else { told < *last };
        *last = told.max(*last);
        if is_stale || told > durable {
            let what = format!("member {member} tells incarnation {told}; durable is {durable}");
            self.violate(at, Rule::Incarnation, what);
        }
    }
}

/// Who uses authority: a member, under which voters and durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Authority<'a> {
    pub(crate) member: usize,
    pub(crate) me: MemberId,
    pub(crate) voters: &'a BTreeSet<MemberId>,
    pub(crate) timing: Timing,
}

/// What one member looks like when everything should be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Final {
    pub(crate) member: usize,
    pub(crate) roster: (Version, RosterHash),
    pub(crate) root: [u8; 8],
    pub(crate) seated: bool,
}

/// Reads a fencing token: generation, epoch, term.
pub(crate) fn token_of(text: &str) -> Option<[u64; 3]> {
    let parts: Vec<_> = text.split('.').filter_map(|part| part.parse().ok()).collect();
    parts.try_into().ok()
}

/// I4: says why these members have not converged; nothing when they have. `nodes` are those with a live candidate, and
/// who acts for each.
pub(crate) fn unconverged(members: &[Final], nodes: &[(String, Vec<usize>)]) -> Option<String> {
    let first = members.first()?;
    for other in members {
        if !other.seated {
            return Some(format!("member {} is not seated", other.member));
        }
        if other.roster != first.roster {
            let (a, b) = (first.roster.0, other.roster.0);
            return Some(format!("members {} and {} have rosters {a} and {b}", first.member, other.member));
        }
        if other.root != first.root {
            return Some(format!("members {} and {} hold different documents", first.member, other.member));
        }
    }
    let unmanaged = nodes.iter().find(|(_, acting)| acting.len() != 1);
    unmanaged.map(|(node, acting)| format!("members {acting:?} act for {node}, which has a live candidate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: Version = Version { generation: 0, epoch: 4 };

    fn voters(ids: std::ops::Range<u8>) -> BTreeSet<MemberId> {
        ids.map(|id| MemberId([id; 16])).collect()
    }

    fn rules(checker: &Checker) -> Vec<Rule> {
        checker.violations.iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn two_acting_managers_are_seen() {
        let mut checker = Checker::default();
        checker.acting(1, "n1", &[2]);
        assert!(checker.violations.is_empty());
        checker.acting(2, "n1", &[0, 2]);
        assert_eq!(rules(&checker), [Rule::OneManager]);
    }

    #[test]
    fn a_token_that_does_not_rise_is_seen() {
        let mut checker = Checker::default();
        checker.token(1, "n1", 0, [0, 3, 7]);
        checker.token(2, "n1", 0, [0, 3, 7]);
        checker.token(3, "n1", 1, [0, 4, 1]);
        checker.token(3, "n2", 1, [0, 1, 1]);
        assert!(checker.violations.is_empty());
        checker.token(4, "n1", 0, [0, 4, 1]);
        assert_eq!(rules(&checker), [Rule::OneManager]);
        checker.token(5, "n1", 0, [0, 3, 9]);
        assert_eq!(checker.violations.len(), 2);
    }

    #[test]
    fn two_rosters_of_one_version_are_seen() {
        let mut checker = Checker::default();
        checker.roster(1, 0, VERSION, RosterHash([1; 32]));
        checker.roster(2, 1, VERSION, RosterHash([1; 32]));
        assert!(checker.violations.is_empty());
        checker.roster(3, 2, VERSION, RosterHash([2; 32]));
        assert_eq!(rules(&checker), [Rule::OneRoster]);
    }

    #[test]
    fn quorums_that_need_not_meet_are_seen() {
        let (three, four, others) = (voters(0..3), voters(0..4), voters(3..6));
        let mut checker = Checker::default();
        checker.quorums(1, &[(0, &three), (1, &three), (2, &four)]);
        assert!(checker.violations.is_empty(), "neighbouring voter sets meet");
        checker.quorums(2, &[(0, &three), (1, &others)]);
        assert_eq!(rules(&checker), [Rule::OneRoster]);
    }

    #[test]
    fn a_write_acknowledged_too_early_is_seen() {
        let mut checker = Checker::default();
        checker.acknowledged(1, "w1", 2, 3);
        assert!(checker.violations.is_empty());
        checker.acknowledged(2, "w2", 2, 4);
        assert_eq!(rules(&checker), [Rule::NothingLost]);
    }

    #[test]
    fn authority_beyond_the_lease_is_seen() {
        let all = voters(0..3);
        let who = Authority { member: 0, me: MemberId([0; 16]), voters: &all, timing: Timing::LAN };
        let usable = Timing::LAN.usable().as_nanos() as u64;
        let mut checker = Checker::default();
        checker.contact(0, MemberId([1; 16]), 1_000);
        checker.authority(1, who, 1_000 + usable - 1, "acts");
        assert!(checker.violations.is_empty());
        checker.authority(2, who, 1_000 + usable, "acts");
        assert_eq!(rules(&checker), [Rule::LockDown]);
    }

    #[test]
    fn grants_of_an_earlier_life_count_for_nothing() {
        let all = voters(0..3);
        let who = Authority { member: 0, me: MemberId([0; 16]), voters: &all, timing: Timing::LAN };
        let mut checker = Checker::default();
        checker.contact(0, MemberId([1; 16]), 1_000);
        checker.born(0);
        checker.authority(1, who, 1_001, "acts");
        assert_eq!(rules(&checker), [Rule::LockDown]);
    }

    #[test]
    fn an_incarnation_told_before_it_is_durable_or_used_twice_is_seen() {
        let mut checker = Checker::default();
        checker.incarnation(1, 0, 3, 3, true);
        checker.incarnation(2, 0, 3, 3, false);
        assert!(checker.violations.is_empty());
        checker.incarnation(3, 0, 4, 3, false);
        assert_eq!(checker.violations.len(), 1, "not durable");
        checker.incarnation(4, 0, 4, 4, true);
        assert_eq!(checker.violations.len(), 2, "the run before had it");
    }

    #[test]
    fn an_invitation_that_lets_two_in_is_seen() {
        let mut checker = Checker::default();
        checker.consumed(1, InviteId([7; 8]), MemberId([1; 16]));
        checker.consumed(2, InviteId([7; 8]), MemberId([1; 16]));
        assert!(checker.violations.is_empty(), "a spent token brings its welcome again");
        checker.consumed(3, InviteId([7; 8]), MemberId([2; 16]));
        assert_eq!(rules(&checker), [Rule::Once]);
    }

    #[test]
    fn a_removed_member_that_goes_on_acting_is_seen() {
        let mut checker = Checker::default();
        checker.members(1, VERSION, voters(0..3));
        checker.members(2, VERSION.next(), voters(0..2));
        let gone = MemberId([2; 16]);
        let lease = Timing::LAN.quiet().as_nanos() as u64;
        checker.acts_as(2 + lease, 2, gone, Timing::LAN);
        checker.acts_as(3 + lease, 1, MemberId([1; 16]), Timing::LAN);
        assert!(checker.violations.is_empty());
        checker.acts_as(3 + lease, 2, gone, Timing::LAN);
        assert_eq!(rules(&checker), [Rule::Once]);
    }

    #[test]
    fn whatever_differs_in_the_end_is_seen() {
        let member = |member, root| Final { member, roster: (VERSION, RosterHash([1; 32])), root, seated: true };
        let nodes = |acting: &[usize]| vec![("n1".to_owned(), acting.to_vec())];
        let good = [member(0, [1; 8]), member(1, [1; 8])];
        assert_eq!(unconverged(&good, &nodes(&[1])), None);
        assert!(unconverged(&[member(0, [1; 8]), member(1, [2; 8])], &nodes(&[1])).is_some(), "documents");
        let other = Final { roster: (VERSION.next(), RosterHash([2; 32])), ..member(1, [1; 8]) };
        assert!(unconverged(&[member(0, [1; 8]), other], &nodes(&[1])).is_some(), "rosters");
        let locked = Final { seated: false, ..member(1, [1; 8]) };
        assert!(unconverged(&[member(0, [1; 8]), locked], &nodes(&[1])).is_some(), "standing");
        assert!(unconverged(&good, &nodes(&[])).is_some(), "nobody acts");
    }
}
