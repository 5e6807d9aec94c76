//! The database: 65 Automerge documents, and what of them may be seen, sent and counted, decided by what is durable.
//!
//! A change goes through three stations. [`Documents::write`] and [`Documents::receive`] apply it to its document in
//! memory; nothing shows it yet. The store saves it. [`Documents::durable`] then lets it into the read map, vectors,
//! digests and what peers are sent. What was shown or sent is therefore never lost in a crash.

mod ahead;
mod batched;
mod key;
mod read;
mod shard;
#[cfg(test)]
mod tests;
mod vet;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use automerge::ChangeHash;

pub use ahead::Ahead;
pub use key::{Actor, ChangeId, Entity, Generation, PRESENT, SHARDS, ShardId, VALUE_BYTES_MAX, actor_prefix};
pub use vet::CHANGE_BYTES_MAX;

use crate::proto::name::{GroupName, NodeName};
use crate::proto::time::WallTime;
use read::ReadMap;
use shard::Shard;

/// Puts in one change at most.
pub const PUTS_MAX: usize = 1_000;
/// Bytes of keys and values in one change at most, unless a single put has more.
const PUT_BYTES_MAX: usize = 96 * 1024;

/// How many changes of each actor a member has, without gaps.
pub type Vector = BTreeMap<Actor, u64>;

/// One value to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Whose attribute.
    pub entity: Entity,
    /// An attribute's name, or `!` and a name for what the collective keeps for itself, such as [`PRESENT`].
    pub attribute: Arc<str>,
    /// The value; `None` deletes.
    pub value: Option<String>,
}

/// A change that the store must make durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewChange {
    /// Its name, and its key in the store.
    pub id: ChangeId,
    /// The uncompressed change, as it is stored and sent.
    pub bytes: Vec<u8>,
}

impl Put {
    /// Returns how many bytes of a change it takes, about.
    fn size(&self) -> usize {
        self.entity.key(&self.attribute).len() + self.value.as_ref().map_or(0, String::len)
    }
}

/// A part of a write that becomes one change of one document, small enough for every peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    shard: ShardId,
    /// Each of another attribute.
    puts: Vec<Put>,
}

impl Batch {
    /// Returns how many values it writes.
    pub fn puts(&self) -> usize {
        self.puts.len()
    }

    /// Returns which document it goes to.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Leaves out the puts that are not wanted any more.
    pub fn retain(&mut self, is_wanted: impl FnMut(&Put) -> bool) {
        self.puts.retain(is_wanted);
    }
}

/// What a write came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Changes to be saved, in order.
    pub changes: Vec<NewChange>,
    /// What a majority must hold before the write may be acknowledged. I3.
    ///
    /// A put of what is there already makes no change, but what is there may be on this member alone; so its
    /// acknowledgement waits for the latest changes of its document.
    pub awaits: Vec<ChangeId>,
}

/// What became of a change from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is new and must be saved.
    New(NewChange),
    /// It is here already.
    Duplicate {
        /// Which.
        id: ChangeId,
        /// Whether it is durable here; if not, it is being saved.
        durable: bool,
    },
}

/// A change from a peer that was not applied. Nothing was changed, unless [`Rejected::Poisoned`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// A change that it follows on is not here; a pull of the document heals it.
    #[error("the change follows on one that is not here")]
    Missing,
    /// It belongs to another generation of the document.
    #[error("the change belongs to generation {0} of its document")]
    Generation(Generation),
    /// The actor belongs to no member that is or was on the roster; an older roster here may be the reason.
    #[error("the change was written by {0}, who is no member")]
    UnknownActor(Actor),
    /// Another change of that name is here: an actor was used twice, after a restored backup or on a cloned disk.
    #[error("the change is not the change {} of {} that is here: a disk was cloned or rolled back", .0.seq, .0.actor)]
    Forked(ChangeId),
    /// It does not count its operations on from those it follows on.
    #[error("the change counts its operations from {found} where {expected} comes next")]
    StartOp {
        /// The only right start.
        expected: u64,
        /// The start it has.
        found: u64,
    },
    /// Its bytes are not those of a change of attributes.
    #[error("the change {0}")]
    Malformed(&'static str),
    /// Automerge panicked now or before: the document must be loaded again with [`Documents::reload`].
    #[error("the document broke and must be loaded again")]
    Poisoned,
}

/// A write that was not made. Nothing of it is in any document, unless [`DocumentError::Broken`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The attribute's name is not allowed in a document.
    #[error("{entity}: {attribute:?} is not the name of an attribute")]
    Attribute {
        /// Whose attribute.
        entity: Entity,
        /// The name.
        attribute: String,
    },
    /// The value is longer than [`VALUE_BYTES_MAX`].
    #[error("{entity}: the value of {attribute} has {bytes} bytes; 65536 are the most")]
    ValueTooLong {
        /// Whose attribute.
        entity: Entity,
        /// Which.
        attribute: String,
        /// How long it is.
        bytes: usize,
    },
    /// The document has used half of the operations it can ever have and must be compacted.
    #[error("document {0} is full and must be compacted")]
    Full(ShardId),
    /// The document must be loaded again with [`Documents::reload`].
    #[error("document {0} broke and must be loaded again")]
    Poisoned(ShardId),
    /// Automerge refused a valid put; changes of this write to other documents may have been applied.
    #[error("document {0} does not take writes")]
    Broken(ShardId),
}

/// A document as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Which document.
    pub shard: ShardId,
    /// Its generation.
    pub generation: Generation,
    /// Every change up to then, in Automerge's document format.
    pub bytes: Vec<u8>,
}

/// A document that could not be rebuilt from the store. It was left empty, and is filled from other members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {shard} is damaged: {reason}")]
pub struct Damage {
    /// Which.
    pub shard: ShardId,
    /// What is wrong with it.
    pub reason: String,
}

/// An attribute whose visible value changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    /// Whose.
    pub entity: Entity,
    /// Which.
    pub attribute: String,
}

/// Changes that a peer lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The changes, each after those it follows on.
    pub changes: Vec<Vec<u8>>,
    /// Whether there are more.
    pub more: bool,
}

/// One of the values that members gave an attribute at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The value.
    pub value: String,
    /// Who wrote it.
    pub actor: Actor,
    /// When, by the author's wall clock, to the second.
    pub time: WallTime,
}

/// The whole database of one member.
#[derive(Clone)]
pub struct Documents {
    /// By number, [`SHARDS`] of them.
    shards: Vec<Shard>,
    read: ReadMap,
    /// Of what is durable, by number of document: asked for at every event, while few of them change anything.
    digests: [[u8; 8]; SHARDS],
    root: [u8; 8],
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Documents").field("root", &self.root()).finish_non_exhaustive()
    }
}

impl Default for Documents {
    fn default() -> Self {
        Self::new()
    }
}

impl Documents {
    /// Makes the empty database, the same on every member.
    pub fn new() -> Self {
        let shards = ShardId::all().map(Shard::genesis).collect();
        let mut documents = Self { shards, read: ReadMap::default(), digests: [[0; 8]; SHARDS], root: [0; 8] };
        ShardId::all().for_each(|shard| documents.renew_digest(shard));
        documents
    }

    /// Rebuilds the database from what the store kept, in any order.
    ///
    /// A document that does not load is left empty and named; the others are not affected.
    pub fn load(snapshots: Vec<StoredSnapshot>, changes: Vec<(ChangeId, Vec<u8>)>) -> (Self, Vec<Damage>) {
        let mut documents = Self::new();
        let mut stored: BTreeMap<ShardId, (Option<StoredSnapshot>, Vec<_>)> = BTreeMap::new();
        for snapshot in snapshots {
            let shard = snapshot.shard;
            stored.entry(shard).or_default().0 = Some(snapshot);
        }
        for (id, bytes) in changes {
            stored.entry(id.shard).or_default().1.push((id, bytes));
        }
        let read_in = |(shard, (snapshot, changes)): (ShardId, (Option<_>, Vec<_>))| {
            documents.read_in(shard, snapshot.as_ref(), &changes).err()
        };
        let damages = stored.into_iter().filter_map(read_in).collect();
        (documents, damages)
    }

    /// Rebuilds one document from what the store kept of it.
    ///
    /// Everything that the store was given before must have become durable.
    ///
    /// # Errors
    /// [`Damage`] when it does not load; it is then empty, and a pull from a peer fills it.
    pub fn reload(
        &mut self,
        shard: ShardId,
        snapshot: Option<&StoredSnapshot>,
        changes: &[(ChangeId, Vec<u8>)],
    ) -> Result<(), Damage> {
        self.empty(shard);
        self.read_in(shard, snapshot, changes)?;
        // What broke it may be among what was stored: that must show now.
        self.shards[shard.index()].apply_late().map_err(|reason| {
            self.empty(shard);
            Damage { shard, reason }
        })
    }

    fn empty(&mut self, shard: ShardId) {
        self.read.forget(|entity| entity.shard() == shard);
        self.shards[shard.index()] = Shard::genesis(shard);
        self.renew_digest(shard);
    }

    /// Fills a document that is empty from what the store kept of it. It stays empty when that does not load.
    fn read_in(
        &mut self,
        shard: ShardId,
        snapshot: Option<&StoredSnapshot>,
        changes: &[(ChangeId, Vec<u8>)],
    ) -> Result<(), Damage> {
        let generation = self.generation(shard);
        let mut generations = snapshot.map(|s| s.generation).into_iter().chain(changes.iter().map(|c| c.0.generation));
        if let Some(other) = generations.find(|other| *other != generation) {
            return Err(Damage { shard, reason: format!("generation {other} is not known") });
        }
        let bytes = snapshot.map(|snapshot| &snapshot.bytes[..]);
        match Shard::load(shard, bytes, changes, &mut self.read) {
            Ok(loaded) => {
                self.shards[shard.index()] = loaded;
                self.renew_digest(shard);
                Ok(())
            }
            Err(reason) => {
                self.empty(shard);
                Err(Damage { shard, reason })
            }
        }
    }

    /// Checks puts and cuts them into batches, each of which becomes one change of one document. Of several puts of one
    /// attribute the last counts.
    ///
    /// # Errors
    /// [`DocumentError`] for the first put that cannot be written.
    pub fn cut(&self, puts: Vec<Put>) -> Result<VecDeque<Batch>, DocumentError> {
        let mut by_shard: Vec<Vec<Put>> = vec![Vec::new(); SHARDS];
        let mut last: Option<(Entity, ShardId)> = None;
        for put in puts {
            check(&put)?;
            // Puts of one entity mostly come together, and hashing its name is most of the work.
            let shard = match &last {
                Some((entity, shard)) if *entity == put.entity => *shard,
                _ => put.entity.shard(),
            };
            last = Some((put.entity.clone(), shard));
            by_shard[shard.index()].push(put);
        }
        for (shard, puts) in ShardId::all().zip(&by_shard).filter(|(_, puts)| !puts.is_empty()) {
            self.shards[shard.index()].check_writable(puts.len())?;
        }
        let mut batches = VecDeque::new();
        for (shard, mut puts) in ShardId::all().zip(by_shard) {
            // In reverse, for of equal ones the first is kept.
            puts.reverse();
            puts.sort_by(|a, b| (&a.entity, &a.attribute).cmp(&(&b.entity, &b.attribute)));
            puts.dedup_by(|a, b| a.entity == b.entity && a.attribute == b.attribute);
            let mut bytes = 0;
            for put in puts {
                let size = put.size();
                match batches.back_mut() {
                    Some(Batch { shard: same, puts })
                        if *same == shard && puts.len() < PUTS_MAX && bytes + size <= PUT_BYTES_MAX =>
                    {
                        bytes += size;
                        puts.push(put);
                    }
                    _ => {
                        bytes = size;
                        batches.push_back(Batch { shard, puts: vec![put] });
                    }
                }
            }
        }
        Ok(batches)
    }

    /// Applies a batch in memory, as one change, unless all of it is there already.
    ///
    /// `actor` must be of this run of the daemon, and `wall` only dates the change for people.
    ///
    /// # Errors
    /// [`DocumentError::Poisoned`] and [`DocumentError::Broken`].
    pub fn write_batch(&mut self, batch: &Batch, actor: Actor, wall: WallTime) -> Result<Written, DocumentError> {
        let shard = &mut self.shards[batch.shard.index()];
        shard.check_writable(batch.puts.len())?;
        Ok(match shard.write(&batch.puts, actor, wall, &self.read)? {
            Some(change) => Written { awaits: vec![change.id], changes: vec![change] },
            None => Written { awaits: shard.tips(), changes: Vec::new() },
        })
    }

    /// Applies puts in memory, all batches of [`Self::cut`] at once.
    ///
    /// # Errors
    /// As [`Self::cut`] and [`Self::write_batch`].
    pub fn write(&mut self, puts: &[Put], actor: Actor, wall: WallTime) -> Result<Written, DocumentError> {
        let mut all = Written::default();
        for batch in self.cut(puts.to_vec())? {
            let written = self.write_batch(&batch, actor, wall)?;
            all.changes.extend(written.changes);
            all.awaits.extend(written.awaits);
        }
        Ok(all)
    }

    /// Vets a change from a peer and applies it in memory. `known_actor` says whether an actor belongs to a member
    /// that is or was on the roster.
    ///
    /// # Errors
    /// [`Rejected`] when it is not applied.
    pub fn receive(
        &mut self,
        shard: ShardId,
        generation: Generation,
        bytes: &[u8],
        known_actor: &dyn Fn(Actor) -> bool,
    ) -> Result<Received, Rejected> {
        if generation != self.generation(shard) {
            return Err(Rejected::Generation(generation));
        }
        self.shards[shard.index()].receive(bytes, known_actor, &self.read)
    }

    /// Lets a change be seen, sent and counted, now that the store made it durable.
    ///
    /// The store works in order, so every change of that document that was handed out before is durable too. Returns
    /// what changed for readers.
    pub fn durable(&mut self, id: &ChangeId) -> Vec<Touched> {
        let mut touched = Vec::new();
        let shard = &mut self.shards[id.shard.index()];
        if shard.generation() == id.generation {
            let read = &mut self.read;
            shard.durable(id, |op, op_id| {
                if read.apply(op, op_id) {
                    touched.push(Touched { entity: op.entity.clone(), attribute: op.attribute.clone() });
                }
            });
            self.renew_digest(id.shard);
        }
        touched
    }

    /// Returns whether a change is durable here.
    pub fn is_durable(&self, id: &ChangeId) -> bool {
        let shard = &self.shards[id.shard.index()];
        shard.generation() == id.generation && shard.is_durable(id)
    }

    /// Returns the latest changes of a document, durable or not: whoever holds them holds all of it.
    pub fn tips(&self, shard: ShardId) -> Vec<ChangeId> {
        self.shards[shard.index()].tips()
    }

    /// Returns the generation of a document.
    pub fn generation(&self, shard: ShardId) -> Generation {
        self.shards[shard.index()].generation()
    }

    /// Returns whether a document broke and must be loaded again.
    pub fn is_poisoned(&self, shard: ShardId) -> bool {
        self.shards[shard.index()].is_poisoned()
    }

    /// Returns how many changes of each actor are durable.
    pub fn vector(&self, shard: ShardId) -> &Vector {
        self.shards[shard.index()].vector()
    }

    /// Returns how many changes of each actor were applied, durable or not: what need not be sent here again.
    pub fn applied(&self, shard: ShardId) -> Vector {
        self.shards[shard.index()].applied()
    }

    /// Returns the durable changes that no durable change follows on, sorted.
    pub fn heads(&self, shard: ShardId) -> impl Iterator<Item = ChangeHash> {
        self.shards[shard.index()].heads().iter().copied()
    }

    /// Returns eight bytes of a hash over generation and sorted heads: equal when two members hold the same changes.
    pub fn digest(&self, shard: ShardId) -> [u8; 8] {
        self.digests[shard.index()]
    }

    /// Returns the digest of every document, by number.
    pub fn digests(&self) -> [[u8; 8]; SHARDS] {
        self.digests
    }

    /// Returns eight bytes for the whole database.
    pub fn root(&self) -> [u8; 8] {
        self.root
    }

    /// Computes the digest of a document, and with it the root, after what is durable of it changed.
    fn renew_digest(&mut self, shard: ShardId) {
        self.digests[shard.index()] = key::digest_of(self.generation(shard), self.heads(shard));
        let hash = ring::digest::digest(&ring::digest::SHA256, self.digests.as_flattened());
        self.root = key::first_eight(hash.as_ref());
    }

    /// Returns the durable changes of a document that `theirs` lacks: up to `bytes_max` bytes, and at least one if
    /// there is any. Of another generation there are none.
    pub fn missing(&mut self, shard: ShardId, generation: Generation, theirs: &Vector, bytes_max: usize) -> Missing {
        if generation != self.generation(shard) {
            return Missing { changes: Vec::new(), more: false };
        }
        self.shards[shard.index()].missing(theirs, bytes_max)
    }

    /// Returns the whole document for the store, which may drop every change that it was given before. None of a
    /// document that broke.
    pub fn snapshot(&mut self, shard: ShardId) -> Option<StoredSnapshot> {
        let generation = self.generation(shard);
        let bytes = self.shards[shard.index()].snapshot()?;
        Some(StoredSnapshot { shard, generation, bytes })
    }

    /// Returns how many changes came since the last snapshot.
    pub fn changes_since_snapshot(&self, shard: ShardId) -> usize {
        self.shards[shard.index()].since_snapshot()
    }

    /// Returns the visible value of an attribute; none if the entity is not present.
    pub fn get(&self, entity: &Entity, attribute: &str) -> Option<&str> {
        self.read.get(entity, attribute)
    }

    /// Returns the attributes of an entity with their visible values, in order of their names, or none if it is not
    /// present. Includes those that start with `!`.
    pub fn entity<'a>(&'a self, entity: &Entity) -> Option<impl Iterator<Item = (&'a str, &'a str)> + use<'a>> {
        self.read.entity(entity)
    }

    /// Returns the attributes that are stored for an entity, present or not.
    ///
    /// A write on one side of a partition may outlive the entity's removal on the other. Whoever defines the entity
    /// anew deletes these first.
    pub fn stored_attributes(&self, entity: &Entity) -> impl Iterator<Item = (&str, &str)> {
        self.read.stored_attributes(entity)
    }

    /// Returns the nodes that are present, in natural order.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.read.nodes()
    }

    /// Returns the groups that are present, in natural order.
    pub fn groups(&self) -> impl Iterator<Item = &GroupName> {
        self.read.groups()
    }

    /// Returns every concurrent value of an attribute, the visible one first, present or not.
    pub fn all(&self, entity: &Entity, attribute: &str) -> Vec<String> {
        self.read.versions(entity, attribute).rev().map(|stored| stored.value.to_owned()).collect()
    }

    /// Returns every concurrent version of an attribute with author and time, the visible one first. More than one is
    /// a conflict.
    pub fn conflicts(&self, entity: &Entity, attribute: &str) -> Vec<Version> {
        let shard = &self.shards[entity.shard().index()];
        self.read
            .versions(entity, attribute)
            .rev()
            .map(|stored| Version {
                value: stored.value.to_owned(),
                actor: stored.op.actor,
                time: shard.time_of(stored.op).unwrap_or_default(),
            })
            .collect()
    }

    /// Returns who wrote the visible value of an attribute, and when.
    pub fn author(&self, entity: &Entity, attribute: &str) -> Option<(Actor, WallTime)> {
        let visible = self.read.versions(entity, attribute).next_back()?;
        Some((visible.op.actor, self.shards[entity.shard().index()].time_of(visible.op)?))
    }
}

fn check(put: &Put) -> Result<(), DocumentError> {
    if !key::is_attribute(&put.attribute) {
        return Err(DocumentError::Attribute {
            entity: put.entity.clone(),
            attribute: put.attribute.chars().take(80).collect(),
        });
    }
    match &put.value {
        Some(value) if value.len() > VALUE_BYTES_MAX => Err(DocumentError::ValueTooLong {
            entity: put.entity.clone(),
            attribute: put.attribute.to_string(),
            bytes: value.len(),
        }),
        _ => Ok(()),
    }
}
