//! What the tests of this room share: small rosters, short names for ids, and a moment in milliseconds.

use super::super::identity::{ClusterId, Fingerprint, InviteId, MemberId, SessionId};
use super::super::name::{MemberName, NodeName};
use super::super::roster::{Change, Member, Role, Roster, Timing};
use super::super::time::{Instant, WallTime};
use super::Stamp;

/// T is 2 s, usable 1.9 s, quiet 2.1 s, a round every third of a second.
pub(super) const TIMING: Timing = Timing::LAN;

pub(super) fn id(number: u8) -> MemberId {
    MemberId([number; 16])
}

pub(super) fn session(number: u8) -> SessionId {
    SessionId([number; 8])
}

pub(super) fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("a valid name")
}

/// A moment, in milliseconds since the clock began; well after its start, so that no wait ends before it.
pub(super) fn at(ms: u64) -> Instant {
    Instant::from_nanos((100_000 + ms) * 1_000_000)
}

pub(super) fn stamp(sequence: u64) -> Stamp {
    Stamp { incarnation: 1, sequence }
}

/// A roster of that many voters, numbered from 1.
pub(super) fn roster(voters: u8) -> Roster {
    let mut roster = Roster::genesis(ClusterId([9; 16]), TIMING, member(1));
    for number in 2..=voters {
        roster = changed(&roster, &add(number));
        roster = changed(&roster, &Change::Promote { id: id(number) });
    }
    roster
}

pub(super) fn changed(roster: &Roster, change: &Change) -> Roster {
    roster.next(change, WallTime(0)).expect("the change can be made")
}

pub(super) fn add(number: u8) -> Change {
    let invite = InviteId([number; 8]);
    Change::Add { member: member(number), invite, expires: WallTime(u64::MAX), uses_max: 1 }
}

fn member(number: u8) -> Member {
    let name = MemberName::new(&format!("mgt{number}")).expect("a valid name");
    let fingerprints = vec![Fingerprint([number; 32])];
    Member { id: id(number), name, role: Role::Voter, learner: false, fingerprints }
}
