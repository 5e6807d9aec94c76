//! Leases: who may act for a node, and who has quorum, from the grants of a majority of the voters.
//!
//! A *voter* promises itself to one session of each member until an expiry on the voter's own clock, and confirms the
//! session's claims on nodes for as long ([`Voter`]). A *holder* acts only while a majority of the promises it has
//! cannot have expired, counted from the moment it asked ([`Holder`]). Safety rules R4 to R7, R9 and R10. The idea is
//! PaxosLease (Trencseni, Gazso, Reinhardt 2012): leases without a disk, kept apart from the data.
//!
//! # What keeps the two sides in step
//!
//! A holder numbers its claims and releases: each is one *version* of its claim set. A request says all of the set
//! ([`ClaimSet::Full`]) or what is newer than a version that the voter has acknowledged ([`ClaimSet::Delta`]), and
//! names the full set it builds on by that request's `seq`. A voter that forgot (it restarted, or the session expired
//! there) or that built on another full set says so by `applied: None` and is sent the full set again.
//!
//! - A voter takes requests of a session in the order of `seq` and never looks at an older one.
//! - A holder takes acknowledgements in the order of `seq`, and one that was lost is as if never sent: the next request
//!   repeats everything since the last version that *was* acknowledged. So no refusal is missed.
//! - A voter forgets a confirmed claim only when the session releases it or expires. In particular a full set that
//!   comes in parts drops nothing before its last part is there.

use std::collections::BTreeMap;
use std::time::Duration;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::{Decode, Encode};

use super::identity::{MemberId, RosterMark, SessionId};
use super::name::NodeName;
use super::planted::{Bug, Planted};
use super::roster::Version;

mod holder;
mod ledger;
mod peer;
mod voter;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod trial;

pub use holder::{Claim, ClaimEvent, Grants, Holder};
pub use voter::{Recorded, Voter};

/// Claims and releases in the largest request.
pub const OPS_MAX: usize = 4_000;
/// Bytes of the largest request or acknowledgement that surely fits a datagram together with its envelope.
pub const SMALL_BYTES_MAX: usize = 1_000;

/// A member's persisted counters; a lower one than was seen before means a rolled-back or cloned disk (R9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stamp {
    /// Raised at every start and every refutation.
    #[n(0)]
    pub incarnation: u64,
    /// Counts the saves that safety depends on: promises, accepts, rosters. Never starts again.
    #[n(1)]
    pub sequence: u64,
}

/// One change of a session's claims.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ClaimOp {
    /// The session claims the node.
    #[n(0)]
    Hold {
        /// Which node.
        #[n(0)]
        node: NodeName,
        /// Orders the holders of a node: part of the fencing token.
        #[n(1)]
        term: u64,
    },
    /// The session acts for the node no more.
    #[n(1)]
    Release {
        /// Which node.
        #[n(0)]
        node: NodeName,
    },
}

/// The claims of a session, or what is new about them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ClaimSet {
    /// Every change after version `base` up to `version`; a change that a later one of the same node replaced is left
    /// out. A claim the voter refused before may be asked again in it, whatever its version.
    #[n(0)]
    Delta {
        /// The `seq` of the full set this builds on.
        #[n(0)]
        full: u64,
        /// The version the voter is known to have applied.
        #[n(1)]
        base: u64,
        /// The version the voter has once it applied this.
        #[n(2)]
        version: u64,
        /// Whether nothing newer is left to be sent.
        #[n(3)]
        complete: bool,
        /// The changes, oldest first; at most [`OPS_MAX`].
        #[n(4)]
        #[cbor(decode_with = "decode_bounded")]
        ops: Vec<ClaimOp>,
    },
    /// Every claim up to `version`, with its term.
    #[n(1)]
    Full {
        /// The version the voter has once it applied this.
        #[n(0)]
        version: u64,
        /// Whether there are no newer claims. Only a complete set lets the voter drop what is not in it.
        #[n(1)]
        complete: bool,
        /// The claims, oldest first; at most [`OPS_MAX`].
        #[n(2)]
        #[cbor(decode_with = "decode_bounded")]
        holds: Vec<(NodeName, u64)>,
    },
}

/// Asks a voter to go on granting a session and to confirm its claims. R4.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LeaseRequest {
    /// The asker's roster.
    #[n(0)]
    pub version: Version,
    /// What tells it from another roster of that version.
    #[n(1)]
    pub mark: RosterMark,
    /// The asker's session.
    #[n(2)]
    pub session: SessionId,
    /// The asker's counters.
    #[n(3)]
    pub stamp: Stamp,
    /// Rises with every request of the session, to whichever voter.
    #[n(4)]
    pub seq: u64,
    /// Whether the asker is seated (R12); tells the leader when a learner is ready for its vote (R3).
    #[n(5)]
    pub seated: bool,
    /// What the session claims.
    #[n(6)]
    pub claims: ClaimSet,
}

impl LeaseRequest {
    /// Returns whether the encoded request fits a datagram; if not, it goes on a stream.
    pub fn is_small(&self) -> bool {
        // Everything but the claims has less than two hundred bytes; most requests have none that are new.
        let claims = match &self.claims {
            ClaimSet::Delta { ops, .. } => ops.len(),
            ClaimSet::Full { holds, .. } => holds.len(),
        };
        claims == 0 || is_small(self)
    }
}

/// A voter's answer to a [`LeaseRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LeaseAck {
    /// The voter's roster.
    #[n(0)]
    pub version: Version,
    /// What tells it from another roster of that version.
    #[n(1)]
    pub mark: RosterMark,
    /// The asker's session.
    #[n(2)]
    pub session: SessionId,
    /// The request that is answered.
    #[n(3)]
    pub seq: u64,
    /// The voter's own session.
    #[n(4)]
    pub voter_session: SessionId,
    /// The voter's counters.
    #[n(5)]
    pub stamp: Stamp,
    /// The answer.
    #[n(6)]
    pub verdict: Verdict,
}

impl LeaseAck {
    /// Returns whether the encoded answer fits a datagram; if not, it goes on a stream.
    pub fn is_small(&self) -> bool {
        matches!(&self.verdict, Verdict::Granted { refused, .. } if refused.is_empty()) || is_small(self)
    }
}

/// What a voter says to a [`LeaseRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Verdict {
    /// The session is granted until T after the voter read the request.
    #[n(0)]
    Granted {
        /// The version of the claim set that this voter has applied; none when it needs the full set.
        #[n(0)]
        applied: Option<u64>,
        /// The claims of this request that it does not confirm.
        #[n(1)]
        #[cbor(decode_with = "decode_bounded")]
        refused: Vec<Refusal>,
    },
    /// The voter has a newer roster, or another one of the same version; the asker must fetch it.
    #[n(1)]
    StaleEpoch,
    /// The asker has a newer roster; the voter must fetch it first.
    #[n(2)]
    NewerEpoch,
    /// The voter started lately and may have forgotten a promise (R6).
    #[n(3)]
    Quiet {
        /// How long it still waits, in milliseconds.
        #[n(0)]
        for_ms: u32,
    },
    /// Another session of the same member is granted: the one before a restart, or a cloned machine.
    #[n(4)]
    DuplicateSession,
    /// The asker is no member.
    #[n(5)]
    NotOnRoster,
    /// The asker's counters are lower than this voter remembers (R9).
    #[n(6)]
    RolledBack,
    /// A later request of the session came first; nothing was done.
    #[n(7)]
    Outdated,
}

/// A claim that a voter does not confirm.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refusal {
    /// Which node.
    #[n(0)]
    pub node: NodeName,
    /// Why not.
    #[n(1)]
    pub reason: RefusalReason,
}

/// Why a voter does not confirm a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RefusalReason {
    /// Another member's session holds the node here.
    #[n(0)]
    Held {
        /// Whose.
        #[n(0)]
        by: MemberId,
        /// How long that session is still granted here, in milliseconds.
        #[n(1)]
        for_ms: u32,
    },
    /// The term was used before.
    #[n(1)]
    StaleTerm {
        /// The lowest term that would do.
        #[n(0)]
        at_least: u64,
    },
    /// The voter adopted other voters lately; what the former ones confirmed may still be in force (R7).
    #[n(2)]
    Settling {
        /// How long it still waits, in milliseconds.
        #[n(0)]
        for_ms: u32,
    },
    /// Two live sessions of the asker's identity were seen: neither gets new claims.
    #[n(3)]
    Duplicate,
}

/// Ends a session at a clean stop: the voter drops it and all its claims at once.
///
/// The member must have stopped acting before it sends this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LeaseRelease {
    /// The session that ends.
    #[n(0)]
    pub session: SessionId,
}

/// The highest counters seen of each member. R9.
#[derive(Clone, Debug, Default)]
struct Stamps {
    seen: BTreeMap<MemberId, Stamp>,
    planted: Planted,
}

impl Stamps {
    /// Returns whether neither counter is lower than was seen before.
    fn admit(&self, member: MemberId, stamp: Stamp) -> bool {
        let is_newer = |seen: &Stamp| stamp.incarnation >= seen.incarnation && stamp.sequence >= seen.sequence;
        self.seen.get(&member).is_none_or(is_newer) || self.planted.has(Bug::NoAmnesiaGuard)
    }

    fn remember(&mut self, member: MemberId, stamp: Stamp) {
        let seen = self.seen.entry(member).or_default();
        seen.incarnation = seen.incarnation.max(stamp.incarnation);
        seen.sequence = seen.sequence.max(stamp.sequence);
    }
}

fn is_small<T: Encode<()>>(message: &T) -> bool {
    minicbor::to_vec(message).is_ok_and(|bytes| bytes.len() <= SMALL_BYTES_MAX)
}

/// Decodes a list of at most [`OPS_MAX`] entries.
fn decode_bounded<'b, C, T: Decode<'b, C>>(d: &mut Decoder<'b>, context: &mut C) -> Result<Vec<T>, DecodeError> {
    let mut list = Vec::new();
    for entry in d.array_iter_with(context)? {
        if list.len() == OPS_MAX {
            return Err(DecodeError::message("more claims than a lease message may hold"));
        }
        list.push(entry?);
    }
    Ok(list)
}

/// Returns a wait in whole milliseconds, rounded up so that who waits that long does not come too early.
fn millis(wait: Duration) -> u32 {
    u32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::fixture::{node, session, stamp};
    use super::*;

    fn request(claims: ClaimSet) -> LeaseRequest {
        let version = Version { generation: u64::MAX, epoch: u64::MAX };
        let mark = RosterMark([255; 8]);
        LeaseRequest {
            version,
            mark,
            session: session(255),
            stamp: stamp(u64::MAX),
            seq: u64::MAX,
            seated: true,
            claims,
        }
    }

    #[test]
    fn messages_read_back_as_they_were_written() {
        let ops = vec![ClaimOp::Hold { node: node("n1"), term: 7 }, ClaimOp::Release { node: node("n2") }];
        let delta = ClaimSet::Delta { full: 1, base: 2, version: 4, complete: true, ops };
        let full = ClaimSet::Full { version: 4, complete: false, holds: vec![(node("n1"), 7)] };
        for sent in [request(delta), request(full)] {
            let bytes = minicbor::to_vec(&sent).expect("encodes");
            assert_eq!(minicbor::decode::<LeaseRequest>(&bytes).expect("decodes"), sent);
        }
        let reasons = [
            RefusalReason::Held { by: MemberId([1; 16]), for_ms: 9 },
            RefusalReason::StaleTerm { at_least: 3 },
            RefusalReason::Settling { for_ms: 5 },
            RefusalReason::Duplicate,
        ];
        let refused = reasons.map(|reason| Refusal { node: node("n1"), reason }).to_vec();
        let verdicts = [
            Verdict::Granted { applied: Some(4), refused },
            Verdict::Granted { applied: None, refused: Vec::new() },
            Verdict::StaleEpoch,
            Verdict::NewerEpoch,
            Verdict::Quiet { for_ms: 12 },
            Verdict::DuplicateSession,
            Verdict::NotOnRoster,
            Verdict::RolledBack,
            Verdict::Outdated,
        ];
        for verdict in verdicts {
            let (version, mark) = (Version::default(), RosterMark([3; 8]));
            let (session, voter_session) = (session(1), session(2));
            let sent = LeaseAck { version, mark, session, seq: 6, voter_session, stamp: stamp(1), verdict };
            let bytes = minicbor::to_vec(&sent).expect("encodes");
            assert_eq!(minicbor::decode::<LeaseAck>(&bytes).expect("decodes"), sent);
        }
    }

    #[test]
    fn a_renewal_stays_below_two_hundred_bytes() {
        let (full, base, version) = (u64::MAX, u64::MAX, u64::MAX);
        let renewal = request(ClaimSet::Delta { full, base, version, complete: true, ops: Vec::new() });
        assert!(minicbor::to_vec(&renewal).expect("encodes").len() < 200);
        assert!(renewal.is_small());
    }

    #[test]
    fn a_request_of_more_claims_than_fit_a_datagram_says_so() {
        let holds = (0..200).map(|i| (node(&format!("n{i}")), 1)).collect();
        assert!(!request(ClaimSet::Full { version: 200, complete: true, holds }).is_small());
    }

    #[test]
    fn a_request_of_too_many_claims_is_not_read() {
        let holds = |count| (0..count).map(|i| (node(&format!("n{i}")), 1)).collect();
        for (count, is_read) in [(OPS_MAX, true), (OPS_MAX + 1, false)] {
            let claims = ClaimSet::Full { version: 1, complete: true, holds: holds(count) };
            let bytes = minicbor::to_vec(request(claims)).expect("encodes");
            assert_eq!(minicbor::decode::<LeaseRequest>(&bytes).is_ok(), is_read, "{count}");
        }
    }

    #[test]
    fn counters_that_go_back_are_not_admitted() {
        // R9: either counter alone tells a rolled-back disk.
        let member = MemberId([1; 16]);
        let mut stamps = Stamps::default();
        stamps.remember(member, Stamp { incarnation: 5, sequence: 7 });
        for (incarnation, sequence, is_admitted) in [(5, 7, true), (6, 8, true), (4, 8, false), (6, 6, false)] {
            assert_eq!(stamps.admit(member, Stamp { incarnation, sequence }), is_admitted);
        }
    }

    #[test]
    fn a_wait_is_rounded_up() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_millis(3)), 3);
        assert_eq!(millis(Duration::from_secs(u64::MAX)), u32::MAX);
    }
}
