//! Resync: what a link still owes its peer, decided by comparing digests and then version vectors.
//!
//! Whoever wants changes pulls them; whoever has them answers each pull from its documents and remembers nothing. A
//! pull is sent only after the frame before it was applied, so a slow member is never flooded. All state is per
//! connection and fresh on every one: after a reconnect everything is compared anew.
//!
//! ```text
//! A -> B  Compare { round, root }
//! B -> A  Digests { round, root, digests }      no digests when both roots are equal
//! A -> B  Durable { entries }                   what A holds of each document that differs
//! A -> B  Pull { round, shard, vector }         at most four documents at a time
//! B -> A  Changes { round, shard, more: true }
//! A -> B  Pull { round, shard, vector }         after those changes were applied
//! B -> A  Changes { round, shard, more: false }
//! ```
//! Whoever must know what is durable at a peer (R13) asks it:
//!
//! ```text
//! A -> B  Ask { entries }
//! B -> A  Durable { entries }                   what B holds of them
//! ```
//! New changes are pushed in frames of round 0 as soon as they are durable at their author; a gap is healed by a pull.

mod acks;
mod frame;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use acks::{Acks, Watch};
pub use frame::{Changes, Encoding, FRAME_BYTES_MAX, SyncError, SyncMessage, push};

use crate::proto::document::{Actor, ChangeId, Documents, NewChange, Received, Rejected, SHARDS, ShardId};

/// Documents that are pulled at the same time.
const IN_FLIGHT_MAX: usize = 4;

/// What came of a frame of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Changes that must be saved, in order.
    pub save: Vec<NewChange>,
    /// Messages for this link.
    pub send: Vec<SyncMessage>,
    /// Why changes were refused, if any were: a reason to look at the peer. A gap in pushed changes is no reason.
    pub rejected: Vec<(ShardId, Rejected)>,
}

/// One link's pulls.
#[derive(Clone, Debug)]
pub struct Resync {
    round: u64,
    /// The peer's digests came.
    is_compared: bool,
    /// Documents that differed when they were compared and are not complete yet.
    owed: BTreeSet<ShardId>,
    /// Changes of those documents that were received and may not be durable yet.
    unsaved: BTreeMap<(ShardId, Actor), ChangeId>,
    queue: BTreeSet<ShardId>,
    /// Documents being pulled, and whether to pull once more because a push showed a gap meanwhile.
    in_flight: BTreeMap<ShardId, bool>,
}

impl Resync {
    /// Starts to compare all documents with a peer; returns the question for it.
    ///
    /// `round` is any number above 0 that this link has not used.
    pub fn start(round: u64, documents: &Documents) -> (Self, SyncMessage) {
        let resync = Self {
            round,
            is_compared: false,
            owed: BTreeSet::new(),
            unsaved: BTreeMap::new(),
            queue: BTreeSet::new(),
            in_flight: BTreeMap::new(),
        };
        (resync, SyncMessage::Compare { round, root: documents.root() })
    }

    /// Returns the number of this comparison.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Takes the peer's digests and pulls what differs. Digests of another round are ignored.
    ///
    /// # Errors
    /// [`SyncError::Digests`] when there are neither none nor all of them.
    pub fn on_digests(
        &mut self,
        round: u64,
        digests: &[u8],
        documents: &Documents,
    ) -> Result<Vec<SyncMessage>, SyncError> {
        if round != self.round || self.is_compared {
            return Ok(Vec::new());
        }
        let theirs = split_digests(digests)?;
        self.is_compared = true;
        self.owed = ShardId::all()
            .zip(theirs.into_iter().flatten())
            .filter(|(shard, digest)| documents.digest(*shard) != *digest)
            .map(|(shard, _)| shard)
            .collect();
        self.queue.extend(&self.owed);
        // What an earlier comparison brought may still be on its way to the disk: it does not come again, and counts only
        // once it is durable.
        for shard in &self.owed {
            let (generation, durable) = (documents.generation(*shard), documents.vector(*shard));
            let applied = documents.applied(*shard).into_iter();
            self.unsaved.extend(
                applied
                    .filter(|(actor, seq)| durable.get(actor) < Some(seq))
                    .map(|(actor, seq)| ((*shard, actor), ChangeId { shard: *shard, generation, actor, seq })),
            );
        }
        let held = self.owed.iter().flat_map(|shard| {
            let generation = documents.generation(*shard);
            documents.vector(*shard).iter().map(move |(actor, seq)| ChangeId {
                shard: *shard,
                generation,
                actor: *actor,
                seq: *seq,
            })
        });
        let mut send = SyncMessage::durable(held);
        self.pull(documents, &mut send);
        Ok(send)
    }

    /// Vets and applies a frame of changes, pulled or pushed, and pulls on.
    ///
    /// # Errors
    /// [`SyncError`] when the frame is not one; nothing was applied, and the link should be closed.
    pub fn on_changes(
        &mut self,
        frame: &Changes,
        documents: &mut Documents,
        known_actor: &dyn Fn(Actor) -> bool,
    ) -> Result<Step, SyncError> {
        let shard = frame.shard;
        let changes = frame.unpack()?;
        if changes.is_empty() && frame.more {
            return Err(SyncError::NoProgress);
        }
        let is_pulled = frame.round == self.round && self.in_flight.contains_key(&shard);
        let mut step = Step::default();
        let is_same_generation = frame.generation == documents.generation(shard);
        let mut refused = (!is_same_generation).then_some(Rejected::Generation(frame.generation));
        for bytes in changes.iter().take_while(|_| is_same_generation) {
            let id = match documents.receive(shard, frame.generation, bytes, known_actor) {
                Ok(Received::New(change)) => {
                    step.save.push(change);
                    step.save.last().map(|change| change.id)
                }
                Ok(Received::Duplicate { id, durable }) => (!durable).then_some(id),
                Err(rejected) => {
                    refused = Some(rejected);
                    break; // What comes behind it most likely follows on it.
                }
            };
            if let Some(id) = id.filter(|_| is_pulled && self.owed.contains(&shard)) {
                self.unsaved.insert((shard, id.actor), id);
            }
        }
        match (is_pulled, refused) {
            (true, None) => self.frame_done(shard, frame.more),
            (true, Some(rejected)) => {
                self.in_flight.remove(&shard);
                step.rejected.push((shard, rejected));
            }
            (false, Some(Rejected::Missing)) => self.want(shard),
            (false, Some(rejected)) => step.rejected.push((shard, rejected)),
            (false, None) => {}
        }
        self.pull(documents, &mut step.send);
        Ok(step)
    }

    /// Returns whether everything that the peer had when it was compared is durable here. R12 asks for this.
    pub fn is_done(&self, documents: &Documents) -> bool {
        self.is_compared && self.owed.is_empty() && self.unsaved.values().all(|id| documents.is_durable(id))
    }

    /// Returns the documents that differed and are not complete yet.
    pub fn owed(&self) -> &BTreeSet<ShardId> {
        &self.owed
    }

    /// A frame of a pull was applied.
    fn frame_done(&mut self, shard: ShardId, more: bool) {
        let again = self.in_flight.remove(&shard).unwrap_or(false);
        if !more {
            self.owed.remove(&shard);
        }
        if more || again {
            self.queue.insert(shard);
        }
    }

    /// Notes that a document must be pulled, once more if it is being pulled.
    fn want(&mut self, shard: ShardId) {
        match self.in_flight.get_mut(&shard) {
            Some(again) => *again = true,
            None => drop(self.queue.insert(shard)),
        }
    }

    fn pull(&mut self, documents: &Documents, send: &mut Vec<SyncMessage>) {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let Some(shard) = self.queue.pop_first() else { break };
            self.in_flight.insert(shard, false);
            let generation = documents.generation(shard);
            // What is applied but not durable yet need not come again; it does not count as held until it is durable.
            let vector = documents.applied(shard);
            send.push(SyncMessage::Pull { round: self.round, shard, generation, vector });
        }
    }
}

/// Answers a peer's question from the documents alone; other messages have no answer.
pub fn answer(question: &SyncMessage, documents: &mut Documents) -> Option<SyncMessage> {
    match question {
        SyncMessage::Compare { round, root } => {
            let mine = documents.root();
            let digests = if mine == *root { Vec::new() } else { documents.digests().as_flattened().to_vec() };
            Some(SyncMessage::Digests { round: *round, root: mine, digests })
        }
        // A broken document must not look complete; when it was loaded again, the next resync asks again.
        SyncMessage::Pull { shard, .. } if documents.is_poisoned(*shard) => None,
        SyncMessage::Pull { round, shard, generation, vector } => {
            let missing = documents.missing(*shard, *generation, vector, frame::SENT_BYTES);
            Some(SyncMessage::Changes(Changes::of_pull(*round, *shard, documents.generation(*shard), missing)))
        }
        SyncMessage::Ask { entries } => {
            let here = |id: &ChangeId| {
                let seq = documents
                    .vector(id.shard)
                    .get(&id.actor)
                    .filter(|_| documents.generation(id.shard) == id.generation);
                seq.map(|seq| ChangeId { seq: *seq, ..*id })
            };
            Some(SyncMessage::Durable { entries: entries.iter().filter_map(here).collect() })
        }
        _ => None,
    }
}

/// Returns the digests by document, or none when the peer says that its root is the same.
pub(super) fn split_digests(digests: &[u8]) -> Result<Option<[[u8; 8]; SHARDS]>, SyncError> {
    if digests.is_empty() {
        return Ok(None);
    }
    let (chunks, rest) = digests.as_chunks::<8>();
    match <[[u8; 8]; SHARDS]>::try_from(chunks) {
        Ok(digests) if rest.is_empty() => Ok(Some(digests)),
        _ => Err(SyncError::Digests),
    }
}
