//! One document: an Automerge document, what of it is durable, and what is not yet.
//!
//! Automerge runs ahead of the disk; everything that leaves this file (vectors, heads, changes for peers, operations
//! for the read map) is cut off at what the store has made durable.
//!
//! Most changes write a few values whose versions the read map knows. They are vetted, or made, without the Automerge
//! document, which takes them later and many at a time ([`Batched`]). All others meet the document at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, ChangeHash, ObjId, ReadDoc, ScalarValue, ScalarValueRef, ValueRef};

use super::ahead::follow;
use super::batched::{Batched, Broken, GENESIS_DOCUMENT};
use super::key::{Actor, BUCKETS, ChangeId, Entity, Generation, ShardId};
use super::read::ReadMap;
use super::vet::{self, GENESIS, Op, OpId, Parsed};
use super::{DocumentError, Missing, NewChange, Put, Received, Rejected, Vector};
use crate::proto::time::WallTime;

/// Operation counters a document may use; Automerge's end at 2^32.
const COUNTER_MAX: u64 = 1 << 31;
/// Values in a change that need not meet the document at once.
const SMALL_OPS_MAX: usize = 16;
/// Values in the changes that are not durable, when one of a few values need not meet the document at once.
const SMALL_PENDING_OPS_MAX: usize = 256;

/// One document of the database.
#[derive(Clone)]
pub(super) struct Shard {
    id: ShardId,
    generation: Generation,
    doc: Batched,
    /// Every change in the document but genesis: an actor's `n`-th is at `n - 1`.
    applied: BTreeMap<Actor, Vec<Applied>>,
    /// The changes that no other follows on, durable or not.
    tips: BTreeMap<ChangeHash, Tip>,
    /// How many of each actor's changes are durable.
    durable: Vector,
    /// The durable changes that no durable change follows on.
    heads: BTreeSet<ChangeHash>,
    /// Changes in the document that are not durable yet, in the order in which they will be.
    pending: VecDeque<Parsed>,
    since_snapshot: usize,
    poisoned: bool,
}

#[derive(Clone, Copy)]
struct Applied {
    hash: ChangeHash,
    max_op: u64,
}

#[derive(Clone, Copy)]
struct Tip {
    actor: Actor,
    seq: u64,
    max_op: u64,
}

impl Shard {
    /// Makes the document as every member starts it.
    pub(super) fn genesis(id: ShardId) -> Self {
        Self {
            id,
            generation: Generation(0),
            doc: Batched::default(),
            applied: BTreeMap::new(),
            tips: GENESIS_DOCUMENT.heads.iter().map(|head| (*head, GENESIS_TIP)).collect(),
            durable: Vector::new(),
            heads: GENESIS_DOCUMENT.heads.clone(),
            pending: VecDeque::new(),
            since_snapshot: 0,
            poisoned: false,
        }
    }

    /// Rebuilds the document from what the store kept, and puts its values into the read map, which has none of it;
    /// everything in it is durable.
    ///
    /// # Errors
    /// Says what is damaged; the read map may have some of it then.
    pub(super) fn load(
        id: ShardId,
        snapshot: Option<&[u8]>,
        changes: &[(ChangeId, Vec<u8>)],
        read: &mut ReadMap,
    ) -> Result<Self, String> {
        let mut shard = Self::genesis(id);
        if let Some(bytes) = snapshot {
            let loaded = catch_unwind(AssertUnwindSafe(|| load_snapshot(bytes)));
            shard.take_over(loaded.map_err(|_| "the snapshot cannot be read".to_owned())??, read)?;
        }
        let mut all = Vec::with_capacity(changes.len());
        for (id, bytes) in changes {
            let parsed = vet::read(bytes).map_err(|reason| format!("change {} of {} {reason}", id.seq, id.actor))?;
            if (parsed.actor, parsed.seq) != (id.actor, id.seq) {
                return Err(format!("change {} of {} is stored under another's name", id.seq, id.actor));
            }
            all.push((parsed, bytes));
        }
        // A change counts its operations on from those that it follows on, so it comes behind them.
        all.sort_by_key(|(parsed, _)| (parsed.start_op, parsed.actor));
        for (parsed, bytes) in all {
            shard.restore(&parsed, bytes, read)?;
        }
        shard.durable = shard.applied.iter().map(|(actor, changes)| (*actor, changes.len() as u64)).collect();
        shard.heads = shard.tips.keys().copied().collect();
        shard.since_snapshot = changes.len();
        Ok(shard)
    }

    /// Takes over what a snapshot holds.
    fn take_over(&mut self, doc: Automerge, read: &mut ReadMap) -> Result<(), String> {
        let mut tips: BTreeMap<_, _> = doc.get_heads().into_iter().map(|head| (head, GENESIS_TIP)).collect();
        for meta in doc.get_changes_meta(&[]).into_iter().filter(|meta| !GENESIS_DOCUMENT.heads.contains(&meta.hash)) {
            let actor = actor_of(&meta.actor).ok_or("a change has a foreign actor")?;
            self.applied.entry(actor).or_default().push(Applied { hash: meta.hash, max_op: meta.max_op });
            if let Some(tip) = tips.get_mut(&meta.hash) {
                *tip = Tip { actor, seq: meta.seq, max_op: meta.max_op };
            }
        }
        self.tips = tips;
        fill(&doc, read);
        self.doc = Batched::of(doc);
        Ok(())
    }

    /// Takes a change from the store, after those that it follows on.
    fn restore(&mut self, parsed: &Parsed, bytes: &[u8], read: &mut ReadMap) -> Result<(), String> {
        let of = |what: &str| format!("change {} of {} {what}", parsed.seq, parsed.actor);
        let known = self.applied.get(&parsed.actor).map_or(&[][..], Vec::as_slice);
        let before = parsed.seq.checked_sub(1).and_then(|before| usize::try_from(before).ok());
        match before.and_then(|before| known.get(before)) {
            // The snapshot has it, too.
            Some(same) if same.hash == parsed.hash => return Ok(()),
            Some(_) => return Err(of("is another one in the snapshot")),
            None if before != Some(known.len()) => return Err(of("follows on one that is not there")),
            None => {}
        }
        self.start_after(parsed).ok_or_else(|| of("follows on one that is not there"))?;
        self.doc.push(parsed, bytes.to_vec()).map_err(|Broken| of("or one before it does not apply"))?;
        self.count(parsed);
        for (index, op) in parsed.ops.iter().enumerate() {
            read.apply(op, parsed.op_id(index));
        }
        Ok(())
    }

    /// Applies what Automerge is yet to be given.
    ///
    /// # Errors
    /// Says that something did not apply.
    pub(super) fn apply_late(&mut self) -> Result<(), String> {
        self.doc.whole().map(drop).map_err(|Broken| {
            self.poisoned = true;
            "the changes do not apply".to_owned()
        })
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
        read: &ReadMap,
    ) -> Result<Option<NewChange>, DocumentError> {
        // Automerge's convention for the time of a change is whole seconds.
        let seconds = i64::try_from(wall.0 / 1000).unwrap_or(i64::MAX);
        match self.plain_ops(puts, read) {
            Some(ops) if ops.is_empty() => Ok(None),
            Some(ops) => self.compose(ops, actor, seconds).map(Some),
            None => self.transact(puts, actor, seconds),
        }
    }

    /// Returns the operations that Automerge would write for puts, if there are few and none of them meets a conflict.
    fn plain_ops(&self, puts: &[Put], read: &ReadMap) -> Option<Vec<Op>> {
        if puts.len() > SMALL_OPS_MAX || !self.has_few_pending() {
            return None;
        }
        let mut ops = Vec::with_capacity(puts.len());
        for put in puts {
            let versions = self.versions(read, &put.entity, &put.attribute);
            let preds = match versions[..] {
                [] if put.value.is_none() => continue,
                [] => Vec::new(),
                [(_, same)] if put.value.as_deref() == Some(same) => continue,
                [(id, _)] => vec![id],
                _ => return None,
            };
            let (entity, attribute, value) = (put.entity.clone(), put.attribute.to_string(), put.value.clone());
            ops.push(Op { entity, attribute, value, preds });
        }
        Some(ops)
    }

    /// Makes the change that Automerge would make of these operations, and has the document take it later.
    fn compose(&mut self, ops: Vec<Op>, actor: Actor, time: i64) -> Result<NewChange, DocumentError> {
        let own = self.applied.get(&actor).map_or(&[][..], Vec::as_slice);
        let mut deps: Vec<_> = self.tips.keys().copied().collect();
        // As Automerge does: an actor's change always names the actor's last one.
        deps.extend(own.last().map(|last| last.hash).filter(|hash| !self.tips.contains_key(hash)));
        deps.sort_unstable();
        let (seq, start_op) = (own.len() as u64 + 1, self.max_op() + 1);
        let made = Parsed { hash: ChangeHash([0; 32]), actor, seq, start_op, time, deps, ops };
        let change = made.change().ok_or(DocumentError::Broken(self.id))?;
        let bytes = change.raw_bytes().to_vec();
        // What no peer would take must not be stored: it would stand between them for ever.
        let parsed = vet::read(&bytes).map_err(|_| DocumentError::Broken(self.id))?;
        self.doc.push(&parsed, bytes.clone()).map_err(|Broken| self.poison())?;
        Ok(self.add(parsed, bytes))
    }

    /// Has Automerge write puts.
    fn transact(&mut self, puts: &[Put], actor: Actor, time: i64) -> Result<Option<NewChange>, DocumentError> {
        let id = self.id;
        let Ok(doc) = self.doc.whole() else { return Err(self.poison()) };
        doc.set_actor(ActorId::from(actor.0));
        let mut transaction = doc.transaction();
        for put in puts {
            let bucket = &GENESIS_DOCUMENT.buckets[usize::from(put.entity.bucket())];
            let key = put.entity.key(&put.attribute);
            match &put.value {
                Some(value) => transaction.put(bucket, key, ScalarValue::Str(value.as_str().into())),
                None => transaction.delete(bucket, key),
            }
            .map_err(|_| DocumentError::Broken(id))?;
        }
        if transaction.commit_with(CommitOptions::default().with_time(time)).0.is_none() {
            return Ok(None);
        }
        let change = doc.get_last_local_change().ok_or(DocumentError::Broken(id))?;
        let bytes = change.raw_bytes().to_vec();
        // What no peer would take must not be stored: it would stand between them for ever.
        let parsed = vet::read(&bytes).map_err(|_| self.poison())?;
        Ok(Some(self.add(parsed, bytes)))
    }

    fn poison(&mut self) -> DocumentError {
        self.poisoned = true;
        DocumentError::Broken(self.id)
    }

    /// Returns whether so little is not durable that it can be walked for each value of a change.
    fn has_few_pending(&self) -> bool {
        self.pending.iter().map(|pending| pending.ops.len()).sum::<usize>() <= SMALL_PENDING_OPS_MAX
    }

    /// Returns every version of a value that no change here replaces, durable or not, in no particular order.
    pub(super) fn versions<'a>(&'a self, read: &'a ReadMap, entity: &Entity, attribute: &str) -> Vec<(OpId, &'a str)> {
        let mut versions: Vec<_> = read.versions(entity, attribute).map(|stored| (stored.op, stored.value)).collect();
        for (op, id) in self.pending().filter(|(op, _)| op.attribute == attribute && op.entity == *entity) {
            follow(&mut versions, op, id);
        }
        versions
    }

    /// Returns the operations that are not durable yet, in the order in which they will be.
    pub(super) fn pending(&self) -> impl Iterator<Item = (&Op, OpId)> {
        self.pending
            .iter()
            .flat_map(|change| change.ops.iter().enumerate().map(move |(index, op)| (op, change.op_id(index))))
    }

    /// Vets a change from a peer and applies it.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        known_actor: &dyn Fn(Actor) -> bool,
        read: &ReadMap,
    ) -> Result<Received, Rejected> {
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
        let start_op = self.start_after(&parsed).ok_or(Rejected::Missing)?;
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
        if self.is_plain(&parsed, read) {
            return match self.doc.push(&parsed, bytes.to_vec()) {
                Ok(()) => Ok(Received::New(self.add(parsed, bytes.to_vec()))),
                Err(Broken) => {
                    self.poisoned = true;
                    Err(Rejected::Poisoned)
                }
            };
        }
        match catch_unwind(AssertUnwindSafe(|| Ok::<_, Broken>(self.doc.whole()?.apply_changes([change])))) {
            Ok(Ok(Ok(()))) => Ok(Received::New(self.add(parsed, bytes.to_vec()))),
            Ok(Ok(Err(_))) => Err(Rejected::Malformed("does not apply")),
            Ok(Err(Broken)) | Err(_) => {
                // After a caught panic the document takes changes and loses them.
                self.poisoned = true;
                Err(Rejected::Poisoned)
            }
        }
    }

    /// Returns whether a change is one of a few values, each of another attribute, that replace nothing but versions
    /// that are there: such that Automerge has nothing to say about it.
    fn is_plain(&self, parsed: &Parsed, read: &ReadMap) -> bool {
        let ops = &parsed.ops[..];
        let is_plain = |(index, op): (usize, &Op)| {
            if ops[..index].iter().any(|other| other.attribute == op.attribute && other.entity == op.entity) {
                return false;
            }
            if op.preds.is_empty() {
                return op.value.is_some();
            }
            let versions = self.versions(read, &op.entity, &op.attribute);
            op.preds.iter().all(|pred| versions.iter().any(|(id, _)| id == pred))
        };
        ops.len() <= SMALL_OPS_MAX && self.has_few_pending() && ops.iter().enumerate().all(is_plain)
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
        let tips = self.tips.values().filter(|tip| tip.actor != GENESIS);
        tips.map(|tip| self.change_id(tip.actor, tip.seq)).collect()
    }

    /// Returns durable changes that `theirs` lacks, each after those it follows on.
    pub(super) fn missing(&mut self, theirs: &Vector, bytes_max: usize) -> Missing {
        let lacks = |actor: &Actor, seq: u64| seq > theirs.get(actor).copied().unwrap_or(0);
        if self.poisoned || !self.durable.iter().any(|(actor, seq)| lacks(actor, *seq)) {
            return Missing { changes: Vec::new(), more: false };
        }
        if self.lacks_only_late(theirs) {
            let late = self.doc.waiting().iter().map(|late| (late.actor, late.seq, &late.bytes[..]));
            return self.missing_of(late, theirs, bytes_max);
        }
        let mut have: Vec<_> = GENESIS_DOCUMENT.heads.iter().copied().collect();
        for (actor, changes) in &self.applied {
            let seq = theirs.get(actor).copied().unwrap_or(0).min(changes.len() as u64);
            have.extend(usize::try_from(seq).ok().and_then(|seq| changes.get(seq.checked_sub(1)?)).map(|c| c.hash));
        }
        // Automerge lists changes in the order in which they were applied, so a change's dependencies come first.
        let changes = match self.doc.whole() {
            Ok(doc) => doc.get_changes(&have),
            Err(Broken) => {
                self.poisoned = true;
                Vec::new()
            }
        };
        let changes = changes.iter().filter_map(|c| Some((actor_of(c.actor_id())?, c.seq(), c.raw_bytes())));
        self.missing_of(changes, theirs, bytes_max)
    }

    /// Returns whether every durable change that `theirs` lacks waits to be applied: mostly they are the last ones.
    fn lacks_only_late(&self, theirs: &Vector) -> bool {
        let mut first = BTreeMap::new();
        for late in self.doc.waiting() {
            first.entry(late.actor).or_insert(late.seq);
        }
        self.durable.iter().all(|(actor, durable)| {
            let held = theirs.get(actor).copied().unwrap_or(0);
            *durable <= held || first.get(actor).is_some_and(|first| *first <= held + 1)
        })
    }

    /// Takes what `theirs` lacks, as long as it fits, of changes that are each behind those they follow on.
    fn missing_of<'a>(
        &self,
        changes: impl Iterator<Item = (Actor, u64, &'a [u8])>,
        theirs: &Vector,
        bytes_max: usize,
    ) -> Missing {
        let mut missing = Missing { changes: Vec::new(), more: false };
        let mut sum = 0;
        for (actor, seq, bytes) in changes {
            let is_lacking = seq > theirs.get(&actor).copied().unwrap_or(0);
            if !is_lacking || !self.is_durable(&self.change_id(actor, seq)) {
                continue;
            }
            sum += bytes.len();
            if sum > bytes_max && !missing.changes.is_empty() {
                missing.more = true;
                break;
            }
            missing.changes.push(bytes.to_vec());
        }
        missing
    }

    /// Returns the document for the store; the changes in it need not be kept beside it. None of a document that broke.
    pub(super) fn snapshot(&mut self) -> Option<Vec<u8>> {
        match self.doc.whole() {
            Ok(doc) if !self.poisoned => {
                self.since_snapshot = 0;
                Some(doc.save())
            }
            _ => {
                self.poisoned = true;
                None
            }
        }
    }

    pub(super) fn since_snapshot(&self) -> usize {
        self.since_snapshot
    }

    /// Returns when the change that holds an operation was written.
    pub(super) fn time_of(&self, op: OpId) -> Option<WallTime> {
        let changes = self.applied.get(&op.actor)?;
        let change = changes.get(changes.partition_point(|change| change.max_op < u64::from(op.counter)))?;
        let seconds = self.doc.time_of(&change.hash)?;
        Some(WallTime(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)))
    }

    /// Books a change that the document has, or takes later.
    fn add(&mut self, parsed: Parsed, bytes: Vec<u8>) -> NewChange {
        let id = self.change_id(parsed.actor, parsed.seq);
        self.count(&parsed);
        self.pending.push_back(parsed);
        self.since_snapshot += 1;
        NewChange { id, bytes }
    }

    fn count(&mut self, parsed: &Parsed) {
        let (actor, seq, max_op) = (parsed.actor, parsed.seq, parsed.max_op());
        self.applied.entry(actor).or_default().push(Applied { hash: parsed.hash, max_op });
        for dep in &parsed.deps {
            self.tips.remove(dep);
        }
        self.tips.insert(parsed.hash, Tip { actor, seq, max_op });
    }

    /// Returns from which counter on a change must count that follows on what this one does; none if some of that is
    /// not here.
    fn start_after(&self, parsed: &Parsed) -> Option<u64> {
        let own = self.applied.get(&parsed.actor).and_then(|changes| changes.last());
        let mut max_op = own.map_or(0, |last| last.max_op);
        for dep in &parsed.deps {
            let of_tip = self.tips.get(dep).map(|tip| tip.max_op);
            max_op = max_op.max(of_tip.or_else(|| self.doc.max_op_of(dep))?);
        }
        Some(max_op + 1)
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

/// What genesis counts for among the tips.
const GENESIS_TIP: Tip = Tip { actor: GENESIS, seq: 1, max_op: BUCKETS as u64 };

fn load_snapshot(bytes: &[u8]) -> Result<Automerge, String> {
    let doc = Automerge::load(bytes).map_err(|error| format!("the snapshot does not load: {error}"))?;
    if GENESIS_DOCUMENT.heads.iter().any(|head| doc.get_change_meta_by_hash(head).is_none()) {
        return Err("the snapshot is of another document".to_owned());
    }
    Ok(doc)
}

/// Puts every value of a document into the read map.
fn fill(doc: &Automerge, read: &mut ReadMap) {
    for bucket in &GENESIS_DOCUMENT.buckets {
        for item in doc.map_range(bucket, ..) {
            if item.conflict {
                for (value, id) in doc.get_all(bucket, item.key.as_ref()).unwrap_or_default() {
                    fill_one(read, &item.key, value.as_str(), &id);
                }
            } else if let ValueRef::Scalar(ScalarValueRef::Str(value)) = &item.value {
                fill_one(read, &item.key, Some(value), &item.id());
            }
        }
    }
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
        Shard::genesis(ShardId::SETTINGS)
    }

    #[test]
    fn a_poisoned_document_neither_takes_nor_gives_anything() {
        let mut shard = shard();
        let put = Put { entity: Entity::Settings, attribute: "custom.x".into(), value: Some("1".into()) };
        let change =
            shard.write(&[put], Actor([1; 16]), WallTime(0), &ReadMap::default()).expect("writable").expect("a change");
        shard.durable(&change.id, |_, _| {});
        shard.poisoned = true;
        assert_eq!(shard.check_writable(1), Err(DocumentError::Poisoned(ShardId::SETTINGS)));
        assert_eq!(shard.receive(&change.bytes, &|_| true, &ReadMap::default()), Err(Rejected::Poisoned));
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

    #[test]
    fn what_is_composed_is_what_automerge_writes() {
        let (mut composed, mut written) = (shard(), shard());
        let (mut read, nobody) = (ReadMap::default(), ReadMap::default());
        let mut changes = 0;
        for step in 0..200_u32 {
            let put = |number: u32| Put {
                entity: Entity::Settings,
                attribute: format!("custom.x{}", number % 7).into(),
                value: (!number.is_multiple_of(3)).then(|| (number % 4).to_string()),
            };
            let puts: Vec<_> = (0..=step % 3).map(|more| put(step * step / 5 + more)).collect();
            let actor = Actor([1 + (step % 5 / 3) as u8; 16]);
            let time = WallTime(1_700_000_000_000 + u64::from(step) * 500);
            let ours = composed.write(&puts, actor, time, &read).expect("writable");
            let theirs = written.transact(&puts, actor, time.0 as i64 / 1000).expect("writable");
            assert_eq!(ours, theirs, "step {step}");
            // Every other change becomes durable two writes later.
            if let Some(change) = ours.filter(|_| step % 2 == 0) {
                composed.durable(&change.id, |op, id| {
                    read.apply(op, id);
                });
                changes += 1;
            }
        }
        assert!(changes > 50, "{changes}");
        assert!(composed.plain_ops(&[], &read).is_some(), "little is pending");
        let heads = composed.doc.whole().expect("whole").get_heads();
        assert_eq!(heads, written.doc.whole().expect("whole").get_heads());
        assert_eq!(composed.tips(), written.tips());
        assert_eq!(nobody.nodes().count(), 0);
    }

    #[test]
    fn what_a_peer_lacks_is_the_same_whether_it_was_applied_or_waits() {
        let mut late = shard();
        for number in 0..20_u8 {
            let put = Put { entity: Entity::Settings, attribute: "custom.x".into(), value: Some(number.to_string()) };
            let actor = Actor([1 + number % 3; 16]);
            let change = late.write(&[put], actor, WallTime(0), &ReadMap::default()).expect("writable");
            late.durable(&change.expect("a change").id, |_, _| {});
        }
        assert_eq!(late.doc.waiting().len(), 20);
        let mut whole = late.clone();
        whole.apply_late().expect("everything applies");
        assert!(whole.doc.waiting().is_empty());
        for theirs in [Vector::new(), Vector::from([(Actor([1; 16]), 4), (Actor([2; 16]), 4), (Actor([3; 16]), 3)])] {
            for bytes_max in [1, 1_000, 1 << 20] {
                assert_eq!(late.missing(&theirs, bytes_max), whole.missing(&theirs, bytes_max));
            }
        }
        assert_eq!(late.doc.waiting().len(), 20, "nobody needed the document");
        assert_eq!(late.time_of(OpId { counter: 70, actor: Actor([3; 16]) }), Some(WallTime(0)));
    }
}
