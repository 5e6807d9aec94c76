//! What must survive a crash: the state directory, the identity, and the durable records of one member.
//!
//! A [`Record`] is one durable fact. A group of them is committed in one transaction by a [`Store`]: all of it or
//! nothing survives, and what was acknowledged survives every crash. [`RedbStore`] keeps records on disk,
//! [`MemoryStore`] keeps them for tests and the simulator; both run one conformance suite. [`StoreThread`] owns a store
//! on its own thread, so that nobody waits for a disk. docs/storage.md has the bytes.

mod backend;
mod dir;
#[cfg(test)]
mod faults;
mod format;
mod identity;
mod memory;
mod redb;
mod thread;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::proto::identity::{InviteId, MemberId};

pub use self::redb::{BackendFactory, DATABASE_FILE, OnDamage, Opened, RedbStore};
pub use dir::{DirError, StateDir};
pub use identity::{Identity, load_identity, save_identity};
pub use memory::MemoryStore;
pub use thread::{GROUP_RECORDS_MAX, Report, Saver, StoreThread};

/// Bytes in the largest value of one record.
pub const VALUE_BYTES_MAX: usize = 64 << 20;
/// Bytes in the longest key of a setting.
pub const SETTING_KEY_BYTES_MAX: usize = 255;

/// The actor of an Automerge change: random, one for each start of a daemon.
pub type Actor = [u8; 16];

/// One durable fact. A later record of the same key replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The incarnation of this member, raised at every start and every refutation. R9.
    Incarnation(u64),
    /// The sequence of this member's lease requests, raised in steps. R9.
    Sequence(u64),
    /// The decided roster in force, encoded. R1.
    Roster(Vec<u8>),
    /// What this member promised and accepted for the next epoch, encoded. R1: stored before the reply.
    Acceptor(Vec<u8>),
    /// Forgets what was promised, because the epoch it was promised for is decided.
    ClearAcceptor,
    /// A pending invitation made by this member.
    Invite {
        /// Which.
        id: InviteId,
        /// The inviter's half, encoded.
        bytes: Vec<u8>,
    },
    /// Forgets an invitation.
    DropInvite(InviteId),
    /// One change of a document, its own or received.
    Change {
        /// The document.
        shard: u8,
        /// The generation of the document the change belongs to.
        generation: u64,
        /// Who made it.
        actor: Actor,
        /// Its number among the changes of that actor in that document, from 1.
        seq: u64,
        /// The change as Automerge encodes it.
        bytes: Vec<u8>,
    },
    /// A whole document, which stands for the changes it covers; those are deleted in the same transaction.
    Snapshot {
        /// The document.
        shard: u8,
        /// The generation of the document.
        generation: u64,
        /// The document as Automerge saves it.
        bytes: Vec<u8>,
        /// For each actor, the last change the document holds; all of its changes up to there are deleted.
        covers: Vec<(Actor, u64)>,
    },
    /// What is remembered of another member: its addresses last known good, and its highest stamp. R9.
    Peer {
        /// Who.
        id: MemberId,
        /// The memory, encoded.
        bytes: Vec<u8>,
    },
    /// Forgets a member.
    DropPeer(MemberId),
    /// Any other fact, such as this member's own name or whether it is drained.
    Setting {
        /// What it is called, at most [`SETTING_KEY_BYTES_MAX`] bytes.
        key: String,
        /// Its value, encoded by whoever named it.
        value: Vec<u8>,
    },
}

/// A change as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChange {
    /// The document.
    pub shard: u8,
    /// The generation of the document.
    pub generation: u64,
    /// Who made it.
    pub actor: Actor,
    /// Its number among the changes of that actor in that document.
    pub seq: u64,
    /// The change as Automerge encodes it.
    pub bytes: Vec<u8>,
}

/// Everything a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The last [`Record::Incarnation`].
    pub incarnation: Option<u64>,
    /// The last [`Record::Sequence`].
    pub sequence: Option<u64>,
    /// The last [`Record::Roster`].
    pub roster: Option<Vec<u8>>,
    /// The last [`Record::Acceptor`], unless it was cleared.
    pub acceptor: Option<Vec<u8>>,
    /// Pending invitations.
    pub invites: BTreeMap<InviteId, Vec<u8>>,
    /// What is remembered of other members.
    pub peers: BTreeMap<MemberId, Vec<u8>>,
    /// Settings.
    pub settings: BTreeMap<String, Vec<u8>>,
    /// Documents by shard and generation.
    pub snapshots: BTreeMap<(u8, u64), Vec<u8>>,
    /// Changes that no snapshot covers, ordered by shard, generation, actor and sequence.
    pub changes: Vec<StoredChange>,
    /// Records that could not be read; everything else was.
    pub damaged: Vec<Damage>,
}

impl Loaded {
    /// Returns whether nothing was ever stored.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether a record that safety rests on is damaged: the roster, a promise, or a counter. R1, R9.
    ///
    /// A member that forgot what it promised must not vote.
    pub fn has_forgotten_promises(&self) -> bool {
        self.damaged.iter().any(|damage| {
            use RecordKind::{Acceptor, Incarnation, Roster, Sequence, Unknown};
            matches!(damage.kind, Incarnation | Sequence | Roster | Acceptor | Unknown)
        })
    }
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// [`Record::Incarnation`].
    Incarnation,
    /// [`Record::Sequence`].
    Sequence,
    /// [`Record::Roster`].
    Roster,
    /// [`Record::Acceptor`].
    Acceptor,
    /// [`Record::Invite`].
    Invite,
    /// [`Record::Peer`].
    Peer,
    /// [`Record::Setting`].
    Setting,
    /// [`Record::Snapshot`].
    Snapshot,
    /// [`Record::Change`].
    Change,
    /// Its key is damaged too.
    Unknown,
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Incarnation => "incarnation",
            Self::Sequence => "sequence",
            Self::Roster => "roster",
            Self::Acceptor => "promise",
            Self::Invite => "invitation",
            Self::Peer => "peer",
            Self::Setting => "setting",
            Self::Snapshot => "snapshot",
            Self::Change => "change",
            Self::Unknown => "unknown record",
        })
    }
}

/// One record that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What it was about.
    pub kind: RecordKind,
    /// The document it belonged to, which must be refilled from another member.
    pub shard: Option<u8>,
    /// Its key in hexadecimal, cut to 80 digits.
    pub key: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)?;
        if let Some(shard) = self.shard {
            write!(f, " of shard {shard}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database cannot be read. Nothing was changed.
    #[error(
        "{} is damaged: {reason}. If this member has others to be refilled from, let it be set aside; \
         otherwise restore a backup",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database was written by a later version of this program. Nothing was changed.
    #[error(
        "{} was written by a newer version (format {found}, this program knows {known}): install that version",
        path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format this program knows.
        known: u32,
    },
    /// There is no room. The group was not stored; the store may be used again.
    #[error("{} cannot grow: {reason}; make room and try again", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A record breaks a bound. The group was not stored; the store may be used again.
    #[error("the record cannot be stored: {0}")]
    Refused(String),
    /// The file cannot be opened for a reason that is not its content. Nothing was changed.
    #[error("{} cannot be opened: {reason}", path.display())]
    Unopened {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The disk failed. Whether the group was stored is unknown, and the store refuses everything from now on.
    ///
    /// After a failed fsync the kernel forgets what it could not write, and the next fsync succeeds: nothing read or
    /// written afterwards can be trusted. The process must stop and read the file again.
    #[error("{} failed: {reason}; the daemon must stop and start again", path.display())]
    Fatal {
        /// The file.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
}

impl StoreError {
    /// Returns whether the process must stop.
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Fatal { .. })
    }
}

/// Keeps records.
pub trait Store: Send {
    /// Stores a group of records, in their order, in one transaction. On return they survive a crash.
    ///
    /// # Errors
    /// After [`StoreError::Fatal`] the process must stop. After any other error nothing of the group is stored, and
    /// the store may be used again.
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError>;

    /// Reads everything back.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it cannot be read at all; single damaged records are in [`Loaded::damaged`].
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Returns how much room the store takes, in bytes.
    fn size_bytes(&self) -> u64;
}

#[cfg(test)]
mod tests;
