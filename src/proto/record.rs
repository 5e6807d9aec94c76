//! What must survive a crash, as the core says it; `store` writes it down.

use super::document::{ChangeId, StoredSnapshot};
use super::epoch::AcceptorState;
use super::facts::PeerRecord;
use super::identity::{InviteId, MemberId};
use super::invite::Invite;
use super::roster::Roster;

/// One durable fact. Those of one [`super::collective::Effect::Save`] are stored together or not at all.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// This member's incarnation.
    Incarnation(u64),
    /// How many safety-critical saves this member made (R9).
    Sequence(u64),
    /// The roster in force.
    Roster(Box<Roster>),
    /// What this member promised and accepted for the next epoch (R1).
    Acceptor(Box<AcceptorState>),
    /// An invitation made here.
    Invite(Invite),
    /// An invitation made here that is gone.
    DropInvite(InviteId),
    /// One change of one document.
    Change {
        /// Which.
        id: ChangeId,
        /// Its bytes, as Automerge makes them.
        bytes: Vec<u8>,
    },
    /// A whole document, in place of the changes it covers.
    Snapshot {
        /// The document.
        snapshot: StoredSnapshot,
        /// The changes it holds: up to which sequence number of each actor.
        covers: Vec<([u8; 16], u64)>,
    },
    /// What is remembered of another member.
    Peer {
        /// Who.
        id: MemberId,
        /// What.
        record: PeerRecord,
    },
    /// This member was taken off the roster, and these words say by whom and when.
    Removed(String),
}
