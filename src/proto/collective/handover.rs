//! R13: what was acknowledged goes where the votes go.
//!
//! An acknowledged write is on a majority of the voters that were in force (I3). Any majority of the next voters meets
//! those, since one vote is all that may differ (R2); two epochs later it need not. So before a vote moves, the proposer
//! takes what a majority of the present voters holds, and waits until a majority of the next ones holds that:
//!
//! - It reads after R2's wait, when no write can be acknowledged any more under the voters before the present ones. All
//!   that was meets every majority of the present voters, so the proposer has it now.
//! - What is acknowledged from then on is on a majority of the present voters, and the next epoch's proposer reads it.
//!
//! Raft asks for less, an entry of the leader's own term, because its new voters take the whole log from one leader;
//! here any member writes. The model `writes` of the simulator looks at every way this can go.

use std::collections::BTreeSet;

use super::Collective;
use crate::proto::document::{ChangeId, Documents, ShardId};
use crate::proto::identity::MemberId;
use crate::proto::message::Message;
use crate::proto::planted::Bug;
use crate::proto::quorum::majority;
use crate::proto::roster::Change;
use crate::proto::sync::SyncMessage;
use crate::proto::time::{Instant, WallTime};

/// How far the proposer has come with what goes along with a vote.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// Since when the voters are in force for whom this was begun ([`Tenure`](crate::proto::epoch::Tenure)).
    of: Option<Instant>,
    stage: Stage,
    /// Whether a change waits for this, as of the last look at the queue.
    is_awaited: bool,
    /// When to go on then, if nothing comes in before.
    look_at: Instant,
}

#[derive(Debug, Default)]
enum Stage {
    /// No vote was to be moved yet.
    #[default]
    Idle,
    /// Documents are being compared with the present voters, in rounds above this one; these are done.
    Reading { above: u64, done: BTreeSet<MemberId> },
    /// The last change of each author in each document that a majority of the present voters held.
    Spreading { held: Vec<ChangeId> },
}

impl Handover {
    /// Notes that everything which a member held when a round began is durable here.
    pub(super) fn on_resynced(&mut self, member: MemberId, round: u64, now: Instant) {
        if let Stage::Reading { above, done } = &mut self.stage
            && round > *above
        {
            done.insert(member);
            self.look_at = now;
        }
    }

    /// Returns when to look again at a change that waits for this, if one does.
    pub(super) fn due(&self) -> Option<Instant> {
        self.is_awaited.then_some(self.look_at)
    }

    /// No change waits for this, until one is seen to.
    pub(super) fn rest(&mut self) {
        self.is_awaited = false;
    }
}

impl Collective {
    /// R13: returns whether a change may be proposed, as far as writes are concerned, and does what is missing for that.
    ///
    /// Call it when R2 allows the change.
    pub(super) fn is_handed_over(&mut self, change: &Change) -> bool {
        // What cannot be made at all is refused by the proposal itself.
        let Ok(next) = self.roster.next(change, WallTime::default()) else { return true };
        if next.same_voters(&self.roster) || self.planted.has(Bug::VotesLeaveWritesBehind) {
            return true;
        }
        if self.handover.of != self.tenure.since() || matches!(self.handover.stage, Stage::Idle) {
            self.begin_handover();
        }
        self.finish_reading();
        self.handover.is_awaited = true;
        let Stage::Spreading { held } = &self.handover.stage else { return false };
        let mut behind: Vec<_> = next.voters().iter().map(|id| (*id, self.not_known_to_hold(*id, held))).collect();
        behind.retain(|(_, missing)| !missing.is_empty());
        if next.voters().len() - behind.len() >= majority(next.voters().len()) {
            self.handover.rest();
            return true;
        }
        if self.now.boot >= self.handover.look_at {
            self.handover.look_at = self.now.boot + self.roster.timing.renewal();
            for (id, missing) in behind {
                SyncMessage::ask(missing).for_each(|question| self.say(id, Message::Sync(question)));
            }
        }
        false
    }

    /// Returns those of the changes of which a member did not say that they are durable there.
    pub(super) fn not_known_to_hold(&self, member: MemberId, changes: &[ChangeId]) -> Vec<ChangeId> {
        let is_missing = |id: &&ChangeId| member != self.me && !self.acks.is_durable_on(member, id);
        changes.iter().filter(is_missing).copied().collect()
    }

    fn begin_handover(&mut self) {
        self.handover = Handover {
            of: self.tenure.since(),
            stage: Stage::Reading { above: self.writes.round, done: BTreeSet::new() },
            is_awaited: false,
            look_at: self.now.boot + self.roster.timing.renewal(),
        };
        // Whoever is linked later is compared with then.
        let linked: Vec<_> = self.voters.iter().copied().filter(|id| self.links.contains_key(id)).collect();
        linked.into_iter().for_each(|id| self.begin_resync(id));
    }

    /// Goes on from reading once the documents of a majority of the present voters were received.
    fn finish_reading(&mut self) {
        let Stage::Reading { done, .. } = &self.handover.stage else { return };
        let read = self.voters.iter().filter(|id| **id == self.me || done.contains(id)).count();
        if read >= majority(self.voters.len()) {
            self.handover.stage = Stage::Spreading { held: held(&self.documents) };
            self.handover.look_at = self.now.boot;
        } else if self.now.boot >= self.handover.look_at {
            self.handover.look_at = self.now.boot + self.roster.timing.renewal();
        }
    }
}

/// Returns the last durable change of each author in each document.
fn held(documents: &Documents) -> Vec<ChangeId> {
    let of_shard = |shard: ShardId| {
        let generation = documents.generation(shard);
        documents.vector(shard).iter().map(move |(actor, seq)| ChangeId { shard, generation, actor: *actor, seq: *seq })
    };
    ShardId::all().flat_map(of_shard).collect()
}
