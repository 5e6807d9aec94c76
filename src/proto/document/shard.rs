//! One document: an Automerge document, what of it is durable, and what is not yet.
//!
//! Automerge runs ahead of the disk; everything that leaves this file (vectors, heads, changes for peers, operations
//! for the read map) is cut off at what the store has made durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{
    ActorId, Automerge, Change, ChangeHash, ObjId, ObjType, ROOT, ReadDoc, ScalarValue, ScalarValueRef, ValueRef,
};

use super::key::{Actor, BUCKETS, ChangeId, Entity, Generation, ShardId};
use super::read::ReadMap;
use super::vet::{self, GENESIS, Op, OpId, Parsed};
use super::{DocumentError, Missing, NewChange, Put, Received, Rejected, Vector};
use crate::proto::time::WallTime;

/// Operation counters a document may use; Automerge's end at 2^32.
const COUNTER_MAX: u64 = 1 << 31;

/// One document of the database.
#[derive(Clone)]
pub(super) struct Shard {
    id: ShardId,
    generation: Generation,
    doc: Automerge,
    buckets: Vec<ObjId>,
    /// Every change in `doc` but genesis: an actor's `n`-th is at `n - 1`.
    applied: BTreeMap<Actor, Vec<Applied>>,
    /// How many of each actor's changes are durable.
    durable: Vector,
    /// The durable changes that no durable change follows on.
    heads: BTreeSet<ChangeHash>,
    /// Changes in `doc` that are not durable yet, in the order in which they will be.
    pending: VecDeque<Parsed>,
    since_snapshot: usize,
    poisoned: bool,
}

#[derive(Clone, Copy)]
struct Applied {
    hash: ChangeHash,
    max_op: u64,
}

impl Shard {
    /// Makes the document as every member starts it.
    pub(super) fn genesis(id: ShardId, genesis: &Automerge) -> Self {
        Self {
            id,
            generation: Generation(0),
            doc: genesis.clone(),
            buckets: buckets(genesis),
            applied: BTreeMap::new(),
            durable: Vector::new(),
            heads: genesis.get_heads().into_iter().collect(),
            pending: VecDeque::new(),
            since_snapshot: 0,
            poisoned: false,
        }
    }

    /// Rebuilds the document from what the store kept; everything in it is durable.
    ///
    /// # Errors
    /// Says what is damaged.
    pub(super) fn load(
        id: ShardId,
        genesis: &Automerge,
        snapshot: Option<&[u8]>,
        changes: &[(ChangeId, Vec<u8>)],
    ) -> Result<Self, String> {
        let loaded = catch_unwind(AssertUnwindSafe(|| load_document(genesis, snapshot, changes)));
        let doc = loaded.map_err(|_| "what was stored cannot be read".to_owned())??;
        let mut shard = Self::genesis(id, genesis);
        let genesis_heads = shard.heads.clone();
        for meta in doc.get_changes_meta(&[]).into_iter().filter(|meta| !genesis_heads.contains(&meta.hash)) {
            let actor = actor_of(&meta.actor).ok_or("a change has a foreign actor")?;
            shard.applied.entry(actor).or_default().push(Applied { hash: meta.hash, max_op: meta.max_op });
        }
        shard.durable = shard.applied.iter().map(|(actor, changes)| (*actor, changes.len() as u64)).collect();
        shard.heads = doc.get_heads().into_iter().collect();
        shard.since_snapshot = changes.len();
        shard.doc = doc;
        Ok(shard)
    }

    /// Puts every value of the document into the read map.
    pub(super) fn fill(&self, read: &mut ReadMap) {
        for bucket in &self.buckets {
            for item in self.doc.map_range(bucket, ..) {
                if item.conflict {
                    for (value, id) in self.doc.get_all(bucket, item.key.as_ref()).unwrap_or_default() {
                        fill_one(read, &item.key, value.as_str(), &id);
                    }
                } else if let ValueRef::Scalar(ScalarValueRef::Str(value)) = &item.value {
                    fill_one(read, &item.key, Some(value), &item.id());
                }
            }
        }
    }

    /// Returns whether the document takes so many more puts.
    ///
    /// # Errors
    /// [`DocumentError`] when it does not.
    pub(super) fn check_writable(&self, puts: usize) -> Result<(), DocumentError> {
        if self.poisoned {
            Err(DocumentError::Poisoned(self.id))
        } else if self.max_op() + puts as u64 > COUNTER_MAX {
            Err(DocumentError::Full(self.id))
        } else {
            Ok(())
        }
    }

    /// Writes puts as one change, unless every one of them puts what is there already; see [`Self::check_writable`].
    pub(super) fn write(
        &mut self,
        puts: &[Put],
        actor: Actor,
        wall: WallTime,
    ) -> Result<Option<NewChange>, DocumentError> {
        self.doc.set_actor(ActorId::from(actor.0));
        let mut transaction = self.doc.transaction();
        for put in puts {
            let bucket = &self.buckets[usize::from(put.entity.bucket())];
            let key = put.entity.key(&put.attribute);
            match &put.value {
                Some(value) => transaction.put(bucket, key, ScalarValue::Str(value.as_str().into())),
                None => transaction.delete(bucket, key),
            }
            .map_err(|_| DocumentError::Broken(self.id))?;
        }
        // Automerge's convention for the time of a change is whole seconds.
        let seconds = i64::try_from(wall.0 / 1000).unwrap_or(i64::MAX);
        if transaction.commit_with(CommitOptions::default().with_time(seconds)).0.is_none() {
            return Ok(None);
        }
        let change = self.doc.get_last_local_change().ok_or(DocumentError::Broken(self.id))?;
        let bytes = change.raw_bytes().to_vec();
        // What no peer would take must not be stored: it would stand between them for ever.
        let parsed = vet::read(&bytes).map_err(|_| {
            self.poisoned = true;
            DocumentError::Broken(self.id)
        })?;
        Ok(Some(self.add(parsed, bytes)))
    }

    /// Vets a change from a peer and applies it.
    pub(super) fn receive(&mut self, bytes: &[u8], known_actor: &dyn Fn(Actor) -> bool) -> Result<Received, Rejected> {
        if self.poisoned {
            return Err(Rejected::Poisoned);
        }
        let parsed = vet::read(bytes).map_err(Rejected::Malformed)?;
        let actor = parsed.actor;
        if actor == GENESIS || !known_actor(actor) {
            return Err(Rejected::UnknownActor(actor));
        }
        let known = self.applied.get(&actor).map_or(&[][..], Vec::as_slice);
        let next = known.len() as u64 + 1;
        if parsed.seq == 0 || parsed.seq > next {
            return Err(Rejected::Missing);
        }
        if let Some(same) = known.get(parsed.seq as usize - 1) {
            let id = self.change_id(actor, parsed.seq);
            return if same.hash == parsed.hash {
                Ok(Received::Duplicate { id, durable: self.is_durable(&id) })
            } else {
                Err(Rejected::Forked(id))
            };
        }
        let mut max_op = known.last().map_or(0, |last| last.max_op);
        for dep in &parsed.deps {
            let meta = self.doc.get_change_meta_by_hash(dep).ok_or(Rejected::Missing)?;
            max_op = max_op.max(meta.max_op);
        }
        let start_op = max_op + 1;
        // An invented start bricks the document: every later write would have to count on from it.
        if parsed.deps.is_empty() || parsed.start_op != start_op || parsed.max_op() > COUNTER_MAX {
            return Err(Rejected::StartOp { expected: start_op, found: parsed.start_op });
        }
        for op in &parsed.ops {
            if op.entity.shard() != self.id {
                return Err(Rejected::Malformed("writes into another document than its key's"));
            }
            if !op.preds.iter().all(|pred| self.has_op(*pred)) {
                return Err(Rejected::Malformed("replaces a version that nobody wrote"));
            }
        }
        let change = parsed.to_change(bytes).ok_or(Rejected::Malformed("is not written as Automerge writes"))?;
        match catch_unwind(AssertUnwindSafe(|| self.doc.apply_changes([change]))) {
            Ok(Ok(())) => Ok(Received::New(self.add(parsed, bytes.to_vec()))),
            Ok(Err(_)) => Err(Rejected::Malformed("does not apply")),
            Err(_) => {
                // After a caught panic the document takes changes and loses them.
                self.poisoned = true;
                Err(Rejected::Poisoned)
            }
        }
    }

    /// Makes a change, and all before it, durable; hands their operations to `each`.
    pub(super) fn durable(&mut self, id: &ChangeId, mut each: impl FnMut(&Op, OpId)) {
        let Some(position) = self.pending.iter().position(|p| p.actor == id.actor && p.seq == id.seq) else { return };
        for parsed in self.pending.drain(..=position) {
            for dep in &parsed.deps {
                self.heads.remove(dep);
            }
            self.heads.insert(parsed.hash);
            self.durable.insert(parsed.actor, parsed.seq);
            for (index, op) in parsed.ops.iter().enumerate() {
                each(op, parsed.op_id(index));
            }
        }
    }

    pub(super) fn is_durable(&self, id: &ChangeId) -> bool {
        self.durable.get(&id.actor).is_some_and(|durable| id.seq <= *durable)
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    pub(super) fn vector(&self) -> &Vector {
        &self.durable
    }

    /// Returns the vector of every change applied, durable or not.
    pub(super) fn applied(&self) -> Vector {
        self.applied.iter().map(|(actor, changes)| (*actor, changes.len() as u64)).collect()
    }

    /// Returns the durable heads, sorted.
    pub(super) fn heads(&self) -> &BTreeSet<ChangeHash> {
        &self.heads
    }

    /// Returns the changes that all others in the document, durable or not, come before.
    pub(super) fn tips(&self) -> Vec<ChangeId> {
        let metas = self.doc.get_heads().into_iter().filter_map(|head| self.doc.get_change_meta_by_hash(&head));
        metas
            .filter_map(|meta| Some(self.change_id(actor_of(&meta.actor)?, meta.seq)))
            .filter(|id| id.actor != GENESIS)
            .collect()
    }

    /// Returns durable changes that `theirs` lacks, each after those it follows on.
    pub(super) fn missing(&self, theirs: &Vector, bytes_max: usize) -> Missing {
        let mut missing = Missing { changes: Vec::new(), more: false };
        let lacks = |actor: &Actor, seq: u64| seq > theirs.get(actor).copied().unwrap_or(0);
        if self.poisoned || !self.durable.iter().any(|(actor, seq)| lacks(actor, *seq)) {
            return missing;
        }
        let mut have = vec![genesis_hash(&self.doc)];
        for (actor, changes) in &self.applied {
            let seq = theirs.get(actor).copied().unwrap_or(0).min(changes.len() as u64);
            have.extend(usize::try_from(seq).ok().and_then(|seq| changes.get(seq.checked_sub(1)?)).map(|c| c.hash));
        }
        let mut bytes = 0;
        // Automerge lists changes in the order in which they were applied, so a change's dependencies come first.
        for change in self.doc.get_changes(&have) {
            let Some(actor) = actor_of(change.actor_id()) else { continue };
            if !lacks(&actor, change.seq()) || !self.is_durable(&self.change_id(actor, change.seq())) {
                continue;
            }
            bytes += change.raw_bytes().len();
            if bytes > bytes_max && !missing.changes.is_empty() {
                missing.more = true;
                break;
            }
            missing.changes.push(change.raw_bytes().to_vec());
        }
        missing
    }

    /// Returns the document for the store; the changes in it need not be kept beside it.
    pub(super) fn snapshot(&mut self) -> Vec<u8> {
        self.since_snapshot = 0;
        self.doc.save()
    }

    pub(super) fn since_snapshot(&self) -> usize {
        self.since_snapshot
    }

    /// Returns when the change that holds an operation was written.
    pub(super) fn time_of(&self, op: OpId) -> Option<WallTime> {
        let changes = self.applied.get(&op.actor)?;
        let change = changes.get(changes.partition_point(|change| change.max_op < u64::from(op.counter)))?;
        let seconds = self.doc.get_change_meta_by_hash(&change.hash)?.timestamp;
        Some(WallTime(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)))
    }

    /// Books a change that Automerge has applied.
    fn add(&mut self, parsed: Parsed, bytes: Vec<u8>) -> NewChange {
        let id = self.change_id(parsed.actor, parsed.seq);
        let applied = Applied { hash: parsed.hash, max_op: parsed.max_op() };
        self.applied.entry(parsed.actor).or_default().push(applied);
        self.pending.push_back(parsed);
        self.since_snapshot += 1;
        NewChange { id, bytes }
    }

    /// Returns whether an operation was applied here.
    fn has_op(&self, op: OpId) -> bool {
        let last = self.applied.get(&op.actor).and_then(|changes| changes.last());
        last.is_some_and(|last| (1..=last.max_op).contains(&u64::from(op.counter)))
    }

    fn max_op(&self) -> u64 {
        let applied = self.applied.values().filter_map(|changes| changes.last()).map(|change| change.max_op);
        applied.max().unwrap_or(u64::from(BUCKETS))
    }

    fn change_id(&self, actor: Actor, seq: u64) -> ChangeId {
        ChangeId { shard: self.id, generation: self.generation, actor, seq }
    }
}

/// Makes the document that all members start from: 64 empty bucket maps and nothing else.
///
/// Its one change has the same hash everywhere, so it is neither sent nor stored. No object is ever made after it: two
/// sides that made the same map would each hide the other's.
pub(super) fn genesis_document() -> Automerge {
    let mut doc = Automerge::new().with_actor(ActorId::from(GENESIS.0));
    let mut transaction = doc.transaction();
    for bucket in 0..BUCKETS {
        transaction.put_object(ROOT, format!("{bucket:02x}"), ObjType::Map).expect("an empty map takes any key");
    }
    transaction.commit_with(CommitOptions::default().with_time(0));
    doc
}

fn buckets(genesis: &Automerge) -> Vec<ObjId> {
    let name = |bucket| format!("{bucket:02x}");
    (0..BUCKETS).filter_map(|bucket| Some(genesis.get(ROOT, name(bucket)).ok()??.1)).collect()
}

fn genesis_hash(doc: &Automerge) -> ChangeHash {
    // Only a document that holds genesis is ever made or loaded.
    doc.hash_for_opid(&ObjId::Id(1, ActorId::from(GENESIS.0), 0)).unwrap_or(ChangeHash([0; 32]))
}

fn load_document(
    genesis: &Automerge,
    snapshot: Option<&[u8]>,
    changes: &[(ChangeId, Vec<u8>)],
) -> Result<Automerge, String> {
    let mut doc = match snapshot {
        None => genesis.clone(),
        Some(bytes) => Automerge::load(bytes).map_err(|error| format!("the snapshot does not load: {error}"))?,
    };
    if genesis.get_heads().iter().any(|head| doc.get_change_meta_by_hash(head).is_none()) {
        return Err("the snapshot is of another document".to_owned());
    }
    let mut hashes = Vec::with_capacity(changes.len());
    let mut decoded = Vec::with_capacity(changes.len());
    for (id, bytes) in changes {
        let parsed = vet::read(bytes).map_err(|reason| format!("change {} of {} {reason}", id.seq, id.actor))?;
        if (parsed.actor, parsed.seq) != (id.actor, id.seq) {
            return Err(format!("change {} of {} is stored under another's name", id.seq, id.actor));
        }
        hashes.push((id, parsed.hash));
        decoded.push(Change::from_bytes(bytes.clone()).map_err(|error| error.to_string())?);
    }
    doc.apply_changes(decoded).map_err(|error| format!("the changes do not apply: {error}"))?;
    for (id, hash) in hashes {
        if doc.get_change_meta_by_hash(&hash).is_none() {
            return Err(format!("change {} of {} follows on one that is not there", id.seq, id.actor));
        }
    }
    Ok(doc)
}

/// Puts one value of a loaded document into the read map.
fn fill_one(read: &mut ReadMap, key: &str, value: Option<&str>, id: &ObjId) {
    let (Some((entity, attribute)), Some(value), Some(id)) = (Entity::from_key(key), value, op_id(id)) else { return };
    let op = Op { entity, attribute: attribute.to_owned(), value: Some(value.to_owned()), preds: Vec::new() };
    read.apply(&op, id);
}

fn actor_of(actor: &ActorId) -> Option<Actor> {
    actor.to_bytes().try_into().ok().map(Actor)
}

fn op_id(id: &ObjId) -> Option<OpId> {
    match id {
        ObjId::Root => None,
        ObjId::Id(counter, actor, _) => Some(OpId { counter: u32::try_from(*counter).ok()?, actor: actor_of(actor)? }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard() -> Shard {
        Shard::genesis(ShardId::SETTINGS, &genesis_document())
    }

    #[test]
    fn a_poisoned_document_neither_takes_nor_gives_anything() {
        let mut shard = shard();
        let put = Put { entity: Entity::Settings, attribute: "custom.x".into(), value: Some("1".into()) };
        let change = shard.write(&[put], Actor([1; 16]), WallTime(0)).expect("writable").expect("a change");
        shard.durable(&change.id, |_, _| {});
        shard.poisoned = true;
        assert_eq!(shard.check_writable(1), Err(DocumentError::Poisoned(ShardId::SETTINGS)));
        assert_eq!(shard.receive(&change.bytes, &|_| true), Err(Rejected::Poisoned));
        assert!(shard.missing(&Vector::new(), 1 << 20).changes.is_empty());
    }

    #[test]
    fn a_document_that_used_half_its_counters_takes_no_more_writes() {
        let mut shard = shard();
        let last = |max_op| vec![Applied { hash: ChangeHash([0; 32]), max_op }];
        shard.applied.insert(Actor([1; 16]), last(COUNTER_MAX - 2));
        assert_eq!(shard.check_writable(2), Ok(()));
        assert_eq!(shard.check_writable(3), Err(DocumentError::Full(ShardId::SETTINGS)));
    }
}
