//! How the next epoch is decided: single-decree Paxos among the voters of the roster in force. R1, R2.
//!
//! ```text
//!   proposer                     voters of epoch e
//!      | ---- Prepare(ballot) ---->  |   each promises, durably, to take no lower ballot
//!      | <--- Promise(accepted) ---  |
//!      | ---- Accept(roster) ----->  |   each accepts, durably, unless it promised more since
//!      | <--- Accepted ------------  |
//!      |  a majority accepted: this is the roster of epoch e+1
//!      | ---- Decided(roster) ---->  |
//! ```
//!
//! Lamport's rule makes two decisions for one epoch impossible: a proposer that hears in its promises of an accepted
//! roster must go on with that one (the one of the highest ballot) and not with its own. Every epoch has its own
//! acceptors and starts from nothing, as in Vertical Paxos; neighbouring majorities meet because one epoch moves at
//! most one vote ([`Roster::follows`]).
//!
//! | message | goes to | which answers |
//! |---|---|---|
//! | `Prepare`, `Accept`, `Want` | [`Acceptor`] | `Promise`, `Accepted`, `Reject`, `Decided`, `Want` or nothing |
//! | `Promise`, `Accepted`, `Reject` | [`Proposer`] | `Accept`, or a later `Prepare` |
//! | `Decided` | [`adopts`], then both by `on_roster` | nothing |

mod acceptor;
#[cfg(test)]
mod model;
mod proposer;

use std::cmp::Ordering;

use minicbor::{Decode, Encode};

use super::identity::{MemberId, RosterHash};
use super::roster::{Change, Roster, RosterError, Version};
use super::time::{Instant, WallTime};

pub use acceptor::{Acceptor, AcceptorAnswer, AcceptorState};
pub use proposer::{ProposeError, Proposer, ProposerOut};

/// The number of one attempt to decide an epoch. Higher ballots go before lower ones.
///
/// No two attempts share one. The nonce sees to that across restarts: a proposer forgets its rounds when it stops, and
/// one ballot that stood for two rosters would undo the whole algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Ballot {
    /// Raised above every round that was heard of.
    #[n(0)]
    pub round: u64,
    /// Who proposes.
    #[n(1)]
    pub proposer: MemberId,
    /// Drawn anew for every ballot.
    #[n(2)]
    pub nonce: u64,
}

/// A roster that an acceptor accepted, and under which ballot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Accepted {
    /// The ballot.
    #[n(0)]
    pub ballot: Ballot,
    /// The roster.
    #[n(1)]
    pub roster: Roster,
}

/// What proposers and acceptors say to one another. The sender is known from the link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum EpochMessage {
    /// "Promise me to take no lower ballot."
    #[n(0)]
    Prepare {
        /// The version to be decided.
        #[n(0)]
        target: Version,
        /// The hash of the roster that the proposer starts from.
        #[n(1)]
        previous: RosterHash,
        /// The attempt.
        #[n(2)]
        ballot: Ballot,
    },
    /// "I promise, durably, and this is what I accepted so far."
    #[n(1)]
    Promise {
        /// The version to be decided.
        #[n(0)]
        target: Version,
        /// The attempt that is answered.
        #[n(1)]
        ballot: Ballot,
        /// What was accepted under the highest ballot before this one.
        #[n(2)]
        accepted: Option<Accepted>,
    },
    /// "Accept this roster."
    #[n(2)]
    Accept {
        /// The version to be decided.
        #[n(0)]
        target: Version,
        /// The attempt.
        #[n(1)]
        ballot: Ballot,
        /// The roster; it names its predecessor itself.
        #[n(2)]
        roster: Roster,
    },
    /// "I accepted it, durably."
    #[n(3)]
    Accepted {
        /// The version to be decided.
        #[n(0)]
        target: Version,
        /// The attempt that is answered.
        #[n(1)]
        ballot: Ballot,
    },
    /// "I promised more to somebody else"; try again above that.
    #[n(4)]
    Reject {
        /// The version to be decided.
        #[n(0)]
        target: Version,
        /// The attempt that is answered.
        #[n(1)]
        ballot: Ballot,
        /// What was promised.
        #[n(2)]
        promised: Ballot,
    },
    /// "This roster was decided"; also the answer to whoever shows an older version.
    #[n(5)]
    Decided {
        /// The roster.
        #[n(0)]
        roster: Roster,
    },
    /// "I know less than you: send me your roster."
    #[n(6)]
    Want {
        /// The version that the sender has.
        #[n(0)]
        version: Version,
    },
}

/// What to do with a decided roster that somebody offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// It goes before the present one: store it, then use it.
    Newer,
    /// It is the present one.
    Same,
    /// The present one goes before it: send that back.
    Older,
    /// It belongs to another collective: refuse the sender.
    ForeignCluster,
    /// It contradicts the present one, as after two emergency recoveries apart from one another. People must decide.
    Conflict,
    /// No decision can have made it: drop it.
    Unsound,
}

/// Tells what to do with a decided roster that somebody offers to a holder of `current`.
///
/// R11: the recovery generation goes before the epoch.
pub fn adopts(current: &Roster, offered: &Roster) -> Adoption {
    if offered.cluster != current.cluster {
        return Adoption::ForeignCluster;
    }
    if offered.check().is_err() {
        return Adoption::Unsound;
    }
    match offered.version.cmp(&current.version) {
        Ordering::Less => Adoption::Older,
        Ordering::Equal if offered.hash() == current.hash() => Adoption::Same,
        Ordering::Equal => Adoption::Conflict,
        // R1: the next epoch was decided by holders of the roster it names; the present one must be that roster.
        Ordering::Greater if offered.version == current.version.next() && offered.previous != current.hash() => {
            Adoption::Conflict
        }
        Ordering::Greater => Adoption::Newer,
    }
}

/// Why a change must not be proposed now. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotYet {
    /// The proposer holds no quorum under the present roster.
    #[error("there is no quorum")]
    NoQuorum,
    /// The voters changed a moment ago; ask again at that instant. R2.
    #[error("the voters changed a moment ago")]
    Wait {
        /// When the change may be proposed, if nothing else happens before.
        until: Instant,
    },
    /// The change cannot be made to the present roster at all.
    #[error(transparent)]
    Roster(#[from] RosterError),
}

/// What a member knows of its own quorum, for [`may_propose`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    since: Option<Instant>,
}

impl Tenure {
    /// Notes that quorum is held now, under the roster in force.
    pub fn on_quorum(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Notes that `after` was adopted in place of `before`.
    ///
    /// The time served counts on only where it is certain that no other set of voters was in force between the two.
    pub fn on_roster(&mut self, before: &Roster, after: &Roster) {
        if !(after.follows(before) && after.same_voters(before)) {
            self.since = None;
        }
    }

    /// Returns when quorum was first held under the present voters.
    pub fn since(self) -> Option<Instant> {
        self.since
    }
}

/// Tells whether `me` may propose `change` now. R2.
///
/// A change that moves no vote needs quorum now. One that moves a vote needs that, and that quorum was first held under
/// the present voters at least T(1+2rho) ago ([`Timing::quiet`](super::roster::Timing::quiet)). That implies R2, and
/// more exactly than a wait counted from when the epoch was learned:
///
/// - Holding quorum means that a majority of the present voters answered in the present epoch, so it was decided, and
///   they had stored it (R1) *before* that moment. From then on none of them grants anything in an older epoch.
/// - What they granted before has expired on every clock T(1+2rho) later, and stays expired: the quorum need not have
///   lasted. So after the wait nobody holds a quorum that rests on the voters of an older epoch, for each such
///   majority meets this one, one vote being all that differs.
/// - So the next epoch, which may differ by two votes from the one before, faces holders of the present voters only,
///   and meets their majorities.
///
/// Epochs that moved no vote have the same majorities, so the wait runs on through them ([`Tenure`]). A sole voter that
/// proposes needs no wait: it was in every majority of the epoch before and is in every majority of the next, so what it
/// granted itself excludes any other holder.
///
/// # Errors
/// [`NotYet`] says what is missing and when to ask again.
pub fn may_propose(
    me: MemberId,
    current: &Roster,
    change: &Change,
    has_quorum: bool,
    tenure: Tenure,
    now: Instant,
) -> Result<(), NotYet> {
    let next = current.next(change, WallTime::default())?;
    if !has_quorum {
        return Err(NotYet::NoQuorum);
    }
    if next.same_voters(current) || current.voters().iter().eq([&me]) {
        return Ok(());
    }
    let until = tenure.since.ok_or(NotYet::NoQuorum)? + current.timing.quiet();
    if now < until { Err(NotYet::Wait { until }) } else { Ok(()) }
}

/// Returns whether `count` of `voters` is more than half of them.
fn is_majority(count: usize, voters: usize) -> bool {
    count > voters / 2
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::identity::ClusterId;
    use crate::proto::roster::tests::{add, member, voters};
    use crate::proto::roster::{Role, Timing};

    const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

    fn id(n: u8) -> MemberId {
        MemberId([n; 16])
    }

    fn after(roster: &Roster, change: &Change) -> Roster {
        roster.next(change, WallTime(0)).expect("possible")
    }

    fn remove(n: u8) -> Change {
        Change::Remove { id: id(n) }
    }

    fn add_m9() -> Change {
        add(member(9, Role::Voter), 9)
    }

    fn quorate_since(since: Instant) -> Tenure {
        let mut tenure = Tenure::default();
        tenure.on_quorum(since);
        tenure
    }

    #[test]
    fn a_higher_version_is_adopted_and_a_lower_one_answered() {
        let old = voters(3);
        let new = after(&old, &remove(3));
        let newest = after(&new, &add_m9());
        assert_eq!(adopts(&old, &new), Adoption::Newer);
        assert_eq!(adopts(&old, &newest), Adoption::Newer);
        assert_eq!(adopts(&new, &old), Adoption::Older);
        assert_eq!(adopts(&new, &new.clone()), Adoption::Same);
    }

    #[test]
    fn a_recovery_goes_before_any_epoch() {
        // R11.
        let mut recovered = voters(1);
        recovered.version = Version { generation: 1, epoch: 2 };
        assert_eq!(adopts(&voters(5), &recovered), Adoption::Newer);
        assert_eq!(adopts(&recovered, &voters(5)), Adoption::Older);
    }

    #[test]
    fn contradictions_strangers_and_nonsense_are_never_adopted() {
        let roster = voters(3);
        let next = after(&roster, &remove(3));
        assert_eq!(adopts(&next, &after(&roster, &add_m9())), Adoption::Conflict);
        let elsewhere = after(&after(&voters(2), &add(member(4, Role::Voter), 4)), &Change::Promote { id: id(4) });
        assert_eq!(elsewhere.version, roster.version);
        assert_eq!(adopts(&roster, &after(&elsewhere, &remove(4))), Adoption::Conflict, "a fork's successor");
        let foreign = Roster::genesis(ClusterId([1; 16]), Timing::LAN, member(1, Role::Voter));
        assert_eq!(adopts(&roster, &foreign), Adoption::ForeignCluster);
        let mut unsound = next;
        unsound.timing.lease_ms = 0;
        assert_eq!(adopts(&roster, &unsound), Adoption::Unsound);
    }

    #[test]
    fn a_change_of_votes_waits_until_older_grants_have_expired() {
        // R2.
        let roster = voters(3);
        let until = NOW + roster.timing.quiet();
        let ask = |change: &Change, now| may_propose(id(1), &roster, change, true, quorate_since(NOW), now);
        let early = Instant::from_nanos(until.as_nanos() - 1);
        assert_eq!(ask(&remove(3), early), Err(NotYet::Wait { until }));
        assert_eq!(ask(&remove(3), until), Ok(()));
        assert_eq!(ask(&add_m9(), NOW), Ok(()), "a learner has no vote");
        let unknown = may_propose(id(1), &roster, &remove(3), true, Tenure::default(), until);
        assert_eq!(unknown, Err(NotYet::NoQuorum));
    }

    #[test]
    fn every_change_needs_quorum_now() {
        for roster in [voters(1), voters(3)] {
            let late = NOW + Duration::from_secs(60);
            let answer = may_propose(id(1), &roster, &add_m9(), false, quorate_since(NOW), late);
            assert_eq!(answer, Err(NotYet::NoQuorum));
        }
    }

    #[test]
    fn a_sole_voter_waits_for_nobody_but_others_wait_for_it() {
        let roster = after(&voters(1), &add(member(2, Role::Voter), 2));
        let promote = Change::Promote { id: id(2) };
        let ask = |me| may_propose(id(me), &roster, &promote, true, quorate_since(NOW), NOW);
        assert_eq!(ask(1), Ok(()));
        assert_eq!(ask(2), Err(NotYet::Wait { until: NOW + roster.timing.quiet() }));
    }

    #[test]
    fn an_impossible_change_is_refused_at_once() {
        let answer = may_propose(id(1), &voters(3), &remove(9), true, quorate_since(NOW), NOW);
        assert_eq!(answer, Err(NotYet::Roster(RosterError::NoSuchMember)));
    }

    #[test]
    fn the_time_served_survives_only_epochs_that_surely_moved_no_vote() {
        // R2.
        let roster = voters(3);
        let learner = after(&roster, &add_m9());
        let voter = after(&learner, &Change::Promote { id: id(9) });
        let back = after(&voter, &remove(9));
        assert!(back.same_voters(&learner));
        let served = |before, after| {
            let mut tenure = quorate_since(NOW);
            tenure.on_quorum(NOW + Duration::from_secs(1));
            tenure.on_roster(before, after);
            tenure.since()
        };
        assert_eq!(served(&roster, &learner), Some(NOW));
        assert_eq!(served(&learner, &voter), None);
        assert_eq!(served(&learner, &back), None, "another set of voters was in force in between");
    }

    #[test]
    fn messages_read_back_and_no_prefix_of_one_does() {
        let roster = voters(2);
        let (target, previous) = (roster.version, roster.hash());
        let ballot = Ballot { round: 3, proposer: id(2), nonce: 7 };
        let accepted = Some(Accepted { ballot, roster: roster.clone() });
        for message in [
            EpochMessage::Prepare { target, previous, ballot },
            EpochMessage::Promise { target, ballot, accepted },
            EpochMessage::Promise { target, ballot, accepted: None },
            EpochMessage::Accept { target, ballot, roster: roster.clone() },
            EpochMessage::Accepted { target, ballot },
            EpochMessage::Reject { target, ballot, promised: ballot },
            EpochMessage::Decided { roster },
            EpochMessage::Want { version: target },
        ] {
            let bytes = minicbor::to_vec(&message).expect("encodes");
            assert_eq!(minicbor::decode::<EpochMessage>(&bytes).expect("decodes"), message);
            for end in 0..bytes.len() {
                assert!(minicbor::decode::<EpochMessage>(&bytes[..end]).is_err());
            }
        }
    }
}
