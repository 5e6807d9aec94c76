//! Vetting: whether the bytes of a change from a peer may reach Automerge, decided from the bytes alone.
//!
//! Automerge panics, or asks for gigabytes, on many malformed changes whose checksum is right, and a panic ends a
//! process that is built to abort. So a change is read here first, in memory bounded by its own size, into puts and
//! deletes of strings; Automerge is then asked to write the very same change, and unless that gives the same bytes the
//! change is refused. What Automerge applies is therefore always a change in its own words.
//!
//! The format is that of change chunks in the Automerge binary format,
//! <https://automerge.org/automerge-binary-format-spec/>.

use std::num::NonZeroU64;

use automerge::legacy::{self, ObjectId, OpType};
use automerge::{ActorId, Change, ChangeHash, ExpandedChange, ScalarValue};
use ring::digest;

use super::key::{Actor, Entity, VALUE_BYTES_MAX};

/// Bytes in the largest change, raw; one always fits into a frame.
pub const CHANGE_BYTES_MAX: usize = 192 * 1024;
/// Operations in the largest change.
pub(super) const OPS_MAX: usize = 4_000;
/// Changes that one change may follow on, and actors it may name.
const DEPS_MAX: usize = 1_000;
/// Versions that the operations of one change may replace.
const PREDS_MAX: usize = 16_000;

/// The actor of the change that makes the buckets; nobody else's.
pub(super) const GENESIS: Actor = Actor(*b"collective.gen.0");

/// One operation's name: its counter and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpId {
    pub(super) counter: u32,
    pub(super) actor: Actor,
}

/// A put of a string, or a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) entity: Entity,
    pub(super) attribute: String,
    /// `None` deletes.
    pub(super) value: Option<String>,
    /// The versions it replaces.
    pub(super) preds: Vec<OpId>,
}

/// A change that was read from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) hash: ChangeHash,
    pub(super) actor: Actor,
    pub(super) seq: u64,
    pub(super) start_op: u64,
    pub(super) time: i64,
    pub(super) deps: Vec<ChangeHash>,
    pub(super) ops: Vec<Op>,
}

/// What is wrong with the bytes; the text completes "the change".
pub(super) type Malformed = &'static str;

impl Parsed {
    /// Returns the counter of the last operation.
    pub(super) fn max_op(&self) -> u64 {
        self.start_op + self.ops.len() as u64 - 1
    }

    /// Returns the name of the operation at an index, if the counter fits.
    pub(super) fn op_id(&self, index: usize) -> OpId {
        // `read` refuses changes whose last counter does not fit.
        OpId { counter: u32::try_from(self.start_op + index as u64).unwrap_or(u32::MAX), actor: self.actor }
    }

    /// Returns the change as Automerge writes it, if that is what `bytes` say.
    pub(super) fn to_change(&self, bytes: &[u8]) -> Option<Change> {
        self.change().filter(|change| change.raw_bytes() == bytes)
    }

    /// Returns the change as Automerge writes it; none when it starts with operation zero.
    pub(super) fn change(&self) -> Option<Change> {
        let genesis = ActorId::from(GENESIS.0);
        let operations = self
            .ops
            .iter()
            .map(|op| legacy::Op {
                action: op.value.as_deref().map_or(OpType::Delete, |value| OpType::Put(ScalarValue::Str(value.into()))),
                obj: ObjectId::Id(legacy::OpId::new(bucket_counter(op.entity.bucket()), &genesis)),
                key: legacy::Key::Map(op.entity.key(&op.attribute).into()),
                pred: op
                    .preds
                    .iter()
                    .map(|pred| legacy::OpId::new(u64::from(pred.counter), &ActorId::from(pred.actor.0)))
                    .collect(),
                insert: false,
            })
            .collect();
        Some(Change::from(ExpandedChange {
            operations,
            actor_id: ActorId::from(self.actor.0),
            hash: None,
            seq: self.seq,
            start_op: NonZeroU64::new(self.start_op)?,
            time: self.time,
            message: None,
            deps: self.deps.clone(),
            extra_bytes: Vec::new(),
            author: None,
        }))
    }
}

/// Returns the counter of the genesis operation that made a bucket.
pub(super) fn bucket_counter(bucket: u8) -> u64 {
    u64::from(bucket) + 1
}

/// Reads a change from the bytes of its uncompressed chunk.
///
/// Checks the size, the checksum, and that it holds nothing but puts and deletes of strings under valid keys in the
/// right buckets. What the document must know (actor, sequence, dependencies) is checked by the document.
pub(super) fn read(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if bytes.len() > CHANGE_BYTES_MAX {
        return Err("is larger than a change may be");
    }
    let (hash, body) = open_chunk(bytes)?;
    let mut body = Reader(body);
    let deps = body.list(DEPS_MAX, |r| r.array().map(ChangeHash)).ok_or("has a bad list of dependencies")?;
    if !deps.is_sorted_by(|a, b| a < b) {
        return Err("has dependencies out of order");
    }
    let actor = body.actor().ok_or("has a bad actor")?;
    let seq = body.unsigned().ok_or("has a bad sequence number")?;
    let start_op = body.unsigned().filter(|start| *start > 0).ok_or("has a bad first operation")?;
    let time = body.signed().ok_or("has a bad time")?;
    if body.unsigned() != Some(0) {
        return Err("carries a message");
    }
    let mut actors = vec![actor];
    actors.extend(body.list(DEPS_MAX, Reader::actor).ok_or("has a bad list of actors")?);
    let columns = Columns::open(&mut body).ok_or("has bad columns")?;
    if !body.0.is_empty() {
        return Err("has bytes behind its end");
    }
    let ops = columns.ops(&actors)?;
    let last = start_op.checked_add(ops.len() as u64 - 1);
    if last.is_none_or(|last| last > u64::from(u32::MAX)) {
        return Err("counts its operations too high");
    }
    Ok(Parsed { hash, actor, seq, start_op, time, deps, ops })
}

/// Checks magic, type, length and checksum; returns the hash and the body.
fn open_chunk(bytes: &[u8]) -> Result<(ChangeHash, &[u8]), Malformed> {
    const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
    const CHANGE: u8 = 1;
    let mut reader = Reader(bytes);
    if reader.array() != Some(MAGIC) {
        return Err("does not start as one");
    }
    let checksum: [u8; 4] = reader.array().ok_or("is cut short")?;
    let hashed = reader.0;
    if reader.byte() != Some(CHANGE) {
        return Err("is no uncompressed change");
    }
    let len = reader.unsigned().ok_or("has a bad length")?;
    if len != reader.0.len() as u64 {
        return Err("is not as long as it says");
    }
    let hash = digest::digest(&digest::SHA256, hashed);
    let hash: [u8; 32] = hash.as_ref().try_into().map_err(|_| "has no hash")?;
    if hash[..4] != checksum {
        return Err("does not match its checksum");
    }
    Ok((ChangeHash(hash), reader.0))
}

/// The columns of the operations that a put or delete of a string needs; any other column is refused.
#[derive(Default)]
struct Columns<'a> {
    object_actor: &'a [u8],
    object_counter: &'a [u8],
    key: &'a [u8],
    action: &'a [u8],
    value_meta: &'a [u8],
    value: &'a [u8],
    pred_count: &'a [u8],
    pred_actor: &'a [u8],
    pred_counter: &'a [u8],
}

impl<'a> Columns<'a> {
    fn open(body: &mut Reader<'a>) -> Option<Self> {
        let specs = body.list(16, |r| Some((r.unsigned()?, r.unsigned()?)))?;
        let mut columns = Self::default();
        for (spec, len) in specs {
            let data = body.take(usize::try_from(len).ok()?)?;
            // A specification is the column's number, a bit for compression, and three bits of type.
            match spec {
                0x01 => columns.object_actor = data,
                0x02 => columns.object_counter = data,
                0x15 => columns.key = data,
                0x34 => {} // Insertion into a list: `to_change` writes "never", and compares.
                0x42 => columns.action = data,
                0x56 => columns.value_meta = data,
                0x57 => columns.value = data,
                0x70 => columns.pred_count = data,
                0x71 => columns.pred_actor = data,
                0x73 => columns.pred_counter = data,
                _ => return None,
            }
        }
        Some(columns)
    }

    fn ops(&self, actors: &[Actor]) -> Result<Vec<Op>, Malformed> {
        const PUT: u64 = 1;
        const DELETE: u64 = 3;
        const NULL: u64 = 0;
        const STRING: u64 = 6;
        let actions = runs(self.action, OPS_MAX, Reader::unsigned).ok_or("has bad or too many operations")?;
        let count = actions.len();
        if count == 0 {
            return Err("has no operations");
        }
        let column = |data| runs(data, count, Reader::unsigned).filter(|column| column.len() == count);
        let object_actors = column(self.object_actor).ok_or("has a bad object column")?;
        let object_counters = column(self.object_counter).ok_or("has a bad object column")?;
        let value_metas = column(self.value_meta).ok_or("has a bad value column")?;
        let pred_counts = column(self.pred_count).ok_or("has a bad predecessor column")?;
        let keys = runs(self.key, count, Reader::text).filter(|keys| keys.len() == count).ok_or("has a bad key")?;
        let mut preds = self.preds(actors).ok_or("has bad predecessors")?.into_iter();
        let mut values = Reader(self.value);
        let mut ops = Vec::with_capacity(count);
        for (index, key) in keys.into_iter().enumerate() {
            let (entity, attribute) = Entity::from_key(key).ok_or("has a key that names no attribute")?;
            let object_actor = usize::try_from(object_actors[index]).ok().and_then(|actor| actors.get(actor));
            if object_actor != Some(&GENESIS) || object_counters[index] != bucket_counter(entity.bucket()) {
                return Err("writes outside the bucket of its key");
            }
            let (kind, len) = (value_metas[index] & 0xf, value_metas[index] >> 4);
            let value = match (actions[index], kind) {
                (PUT, STRING) if len > VALUE_BYTES_MAX as u64 => return Err("has a value that is too long"),
                (PUT, STRING) => {
                    let bytes = usize::try_from(len).ok().and_then(|len| values.take(len)).ok_or("is cut short")?;
                    Some(std::str::from_utf8(bytes).map_err(|_| "has a value that is no text")?.to_owned())
                }
                (DELETE, NULL) if len == 0 => None,
                _ => return Err("does something other than put or delete a string"),
            };
            let own = usize::try_from(pred_counts[index]).ok().filter(|own| *own <= preds.len());
            let preds: Vec<OpId> = preds.by_ref().take(own.ok_or("has too few predecessors")?).collect();
            if !preds.is_sorted_by(|a, b| (a.counter, a.actor) < (b.counter, b.actor)) {
                return Err("has predecessors out of order");
            }
            ops.push(Op { entity, attribute: attribute.to_owned(), value, preds });
        }
        if !values.0.is_empty() || preds.next().is_some() {
            return Err("has more values or predecessors than operations");
        }
        Ok(ops)
    }

    fn preds(&self, actors: &[Actor]) -> Option<Vec<OpId>> {
        let indices = runs(self.pred_actor, PREDS_MAX, Reader::unsigned)?;
        let deltas = runs(self.pred_counter, PREDS_MAX, Reader::signed)?;
        if indices.len() != deltas.len() {
            return None;
        }
        let mut counter = 0_i64;
        indices
            .into_iter()
            .zip(deltas)
            .map(|(index, delta)| {
                counter = counter.checked_add(delta)?;
                let actor = *actors.get(usize::try_from(index).ok()?)?;
                Some(OpId { counter: u32::try_from(counter).ok()?, actor })
            })
            .collect()
    }
}

/// Reads a run-length encoded column without nulls, of at most `max` values.
///
/// A run starts with a signed count: positive, one value that many times; negative, that many values.
fn runs<'a, T: Copy>(data: &'a [u8], max: usize, read: impl Fn(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
    let mut reader = Reader(data);
    let mut values = Vec::new();
    while !reader.0.is_empty() {
        let count = reader.signed()?;
        let len = usize::try_from(count.unsigned_abs()).ok().filter(|len| *len > 0 && *len <= max - values.len())?;
        if count > 0 {
            let value = read(&mut reader)?;
            values.resize(values.len() + len, value);
        } else {
            for _ in 0..len {
                values.push(read(&mut reader)?);
            }
        }
    }
    Some(values)
}

/// What is left to read of some bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// Reads an unsigned LEB128 number; `to_change` refuses longer forms than needed.
    fn unsigned(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Reads a signed LEB128 number.
    fn signed(&mut self) -> Option<i64> {
        let mut number = 0_i64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let end = shift + 7;
                return Some(if end < 64 && byte & 0x40 != 0 { number | (-1 << end) } else { number });
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.unsigned()?).ok()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    fn actor(&mut self) -> Option<Actor> {
        (self.unsigned()? == 16).then(|| self.array().map(Actor))?
    }

    fn list<T>(&mut self, max: usize, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let len = usize::try_from(self.unsigned()?).ok().filter(|len| *len <= max)?;
        (0..len).map(|_| read(self)).collect()
    }
}
