//! An Automerge document that is given changes many at a time.
//!
//! Automerge splices all its columns at each apply, however little is applied: sixteen changes at once cost less than
//! three one by one. So what was vetted waits here until somebody needs the document itself, or there is much of it.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, Change, ChangeHash, ObjId, ObjType, ROOT};

use super::key::{Actor, BUCKETS};
use super::vet::{GENESIS, Parsed};

/// Bytes of changes that wait at most: two hundred writes of one value, which take a millisecond to apply.
const LATE_BYTES_MAX: usize = 32 * 1024;

/// Automerge did not take a vetted change, or panicked: the document takes changes and loses them from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// An Automerge document, and the changes that it is yet to be given.
#[derive(Clone, Default)]
pub(super) struct Batched {
    /// None while it is as every member starts it: most of the documents of a small database.
    changed: Option<Box<Automerge>>,
    /// Each after those it follows on.
    late: Vec<Late>,
    late_bytes: usize,
}

/// A vetted change that the document is yet to be given.
#[derive(Clone)]
pub(super) struct Late {
    pub(super) actor: Actor,
    pub(super) seq: u64,
    hash: ChangeHash,
    max_op: u64,
    /// In seconds.
    time: i64,
    /// As Automerge writes them.
    pub(super) bytes: Vec<u8>,
}

impl Batched {
    /// Makes it of a document that was loaded.
    pub(super) fn of(doc: Automerge) -> Self {
        Self { changed: Some(Box::new(doc)), ..Self::default() }
    }

    /// Takes a vetted change, as Automerge writes it, that follows on others here; it may be applied now or later.
    ///
    /// # Errors
    /// [`Broken`] when it or one before it did not apply.
    pub(super) fn push(&mut self, parsed: &Parsed, bytes: Vec<u8>) -> Result<(), Broken> {
        let (actor, seq, hash, max_op, time) = (parsed.actor, parsed.seq, parsed.hash, parsed.max_op(), parsed.time);
        self.late_bytes += bytes.len();
        self.late.push(Late { actor, seq, hash, max_op, time, bytes });
        if self.late_bytes > LATE_BYTES_MAX { self.whole().map(drop) } else { Ok(()) }
    }

    /// Returns the document with every change applied.
    ///
    /// # Errors
    /// [`Broken`] when one did not apply.
    pub(super) fn whole(&mut self) -> Result<&mut Automerge, Broken> {
        let doc = self.changed.get_or_insert_with(|| Box::new(GENESIS_DOCUMENT.doc.clone()));
        if !self.late.is_empty() {
            let late = std::mem::take(&mut self.late);
            self.late_bytes = 0;
            let apply = || {
                let changes: Result<Vec<_>, _> = late.into_iter().map(|late| Change::from_bytes(late.bytes)).collect();
                changes.is_ok_and(|changes| doc.apply_changes(changes).is_ok())
            };
            if !catch_unwind(AssertUnwindSafe(apply)).unwrap_or(false) {
                return Err(Broken);
            }
        }
        Ok(doc)
    }

    /// Returns the counter of the last operation of a change.
    pub(super) fn max_op_of(&self, hash: &ChangeHash) -> Option<u64> {
        match self.late(hash) {
            Some(change) => Some(change.max_op),
            None => self.applied().get_change_meta_by_hash(hash).map(|meta| meta.max_op),
        }
    }

    /// Returns the time of a change, in seconds.
    pub(super) fn time_of(&self, hash: &ChangeHash) -> Option<i64> {
        match self.late(hash) {
            Some(change) => Some(change.time),
            None => self.applied().get_change_meta_by_hash(hash).map(|meta| meta.timestamp),
        }
    }

    /// Returns the changes that wait, each after those it follows on.
    pub(super) fn waiting(&self) -> &[Late] {
        &self.late
    }

    fn late(&self, hash: &ChangeHash) -> Option<&Late> {
        self.late.iter().rev().find(|change| change.hash == *hash)
    }

    fn applied(&self) -> &Automerge {
        self.changed.as_deref().unwrap_or(&GENESIS_DOCUMENT.doc)
    }
}

/// The document that all members start from: 64 empty bucket maps and nothing else.
///
/// Its one change has the same hash everywhere, so it is neither sent nor stored. No object is ever made after it: two
/// sides that made the same map would each hide the other's.
pub(super) struct Genesis {
    doc: Automerge,
    /// By number.
    pub(super) buckets: Vec<ObjId>,
    pub(super) heads: BTreeSet<ChangeHash>,
}

/// A constant, which all documents share until they are written to.
pub(super) static GENESIS_DOCUMENT: LazyLock<Genesis> = LazyLock::new(|| {
    let mut doc = Automerge::new().with_actor(ActorId::from(GENESIS.0));
    let mut transaction = doc.transaction();
    let mut put = |bucket: u8| transaction.put_object(ROOT, format!("{bucket:02x}"), ObjType::Map);
    let buckets = (0..BUCKETS).map(|bucket| put(bucket).expect("an empty map takes any key")).collect();
    transaction.commit_with(CommitOptions::default().with_time(0));
    let heads = doc.get_heads().into_iter().collect();
    Genesis { doc, buckets, heads }
});
