//! Acknowledgements: on which members a change is durable, from what they say and from equal digests.

use std::collections::BTreeMap;

use super::{SyncError, split_digests};
use crate::proto::document::{Actor, ChangeId, Documents, Generation, SHARDS, ShardId};
use crate::proto::identity::{MemberId, SessionId};

/// Rounds for which two databases may differ before they are compared in full.
const ROUNDS_MAX: u32 = 2;

/// What is known to be durable on other members.
///
/// What a member says stays true when its link breaks, and as long as its process runs: another run may find an older
/// disk.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    /// The run of each member that said what is known of it.
    sessions: BTreeMap<MemberId, SessionId>,
    durable: BTreeMap<(ShardId, Generation, Actor), BTreeMap<MemberId, u64>>,
    /// For each member the last digest of each document that was equal here and there: all it stands for was noted.
    equal: BTreeMap<MemberId, Box<[Option<[u8; 8]>; SHARDS]>>,
}

impl Acks {
    /// Notes which run of a member speaks from now on; returns whether what an earlier one said was forgotten.
    pub fn on_session(&mut self, member: MemberId, session: SessionId) -> bool {
        let before = self.sessions.insert(member, session);
        let is_another = before.is_some_and(|before| before != session);
        if is_another {
            self.forget(member);
        }
        is_another
    }

    /// Notes what a member said is durable there.
    pub fn on_durable(&mut self, member: MemberId, entries: &[ChangeId]) {
        for id in entries {
            let members = self.durable.entry((id.shard, id.generation, id.actor)).or_default();
            let seq = members.entry(member).or_default();
            *seq = id.seq.max(*seq);
        }
    }

    /// Notes that a member holds what is durable here of every document with an equal digest.
    ///
    /// `root` and `digests` are as the member sent them.
    ///
    /// # Errors
    /// [`SyncError::Digests`] when there are neither none nor all of them.
    pub fn on_digests(
        &mut self,
        member: MemberId,
        root: [u8; 8],
        digests: &[u8],
        documents: &Documents,
    ) -> Result<(), SyncError> {
        let theirs = split_digests(digests)?;
        // Without digests the roots were equal when the question was sent; they may not be any more.
        let is_same = theirs.is_none() && root == documents.root();
        let mut held = Vec::new();
        let noted = self.equal.entry(member).or_insert_with(|| Box::new([None; SHARDS]));
        for (shard, noted) in ShardId::all().zip(noted.iter_mut()) {
            let theirs = theirs.and_then(|theirs| theirs.get(usize::from(shard.number())).copied());
            let mine = documents.digest(shard);
            if (is_same || theirs == Some(mine)) && *noted != Some(mine) {
                *noted = Some(mine);
                let generation = documents.generation(shard);
                let vector = documents.vector(shard).iter();
                held.extend(vector.map(|(actor, seq)| ChangeId { shard, generation, actor: *actor, seq: *seq }));
            }
        }
        self.on_durable(member, &held);
        Ok(())
    }

    /// Returns whether a change is durable on another member, as far as that one said.
    pub fn is_durable_on(&self, member: MemberId, id: &ChangeId) -> bool {
        let members = self.durable.get(&(id.shard, id.generation, id.actor));
        members.and_then(|members| members.get(&member)).is_some_and(|seq| *seq >= id.seq)
    }

    /// Forgets everybody else, as those who were removed from the roster.
    pub fn keep_only(&mut self, is_member: impl Fn(&MemberId) -> bool) {
        let gone: Vec<_> = self.sessions.keys().filter(|id| !is_member(id)).copied().collect();
        for member in gone {
            self.sessions.remove(&member);
            self.forget(member);
        }
    }

    fn forget(&mut self, member: MemberId) {
        self.equal.remove(&member);
        self.durable.retain(|_, members| {
            members.remove(&member);
            !members.is_empty()
        });
    }
}

/// Watches the root digests that members gossip, and tells when a difference does not heal by itself.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<MemberId, u32>);

impl Watch {
    /// Notes a member's root digest of this round; returns whether to start a [`super::Resync`] with it.
    pub fn observe(&mut self, member: MemberId, theirs: [u8; 8], mine: [u8; 8]) -> bool {
        if theirs == mine {
            self.0.remove(&member);
            return false;
        }
        let rounds = self.0.entry(member).or_default();
        *rounds += 1;
        let is_due = *rounds > ROUNDS_MAX;
        if is_due {
            *rounds = 0;
        }
        is_due
    }

    /// Forgets a member whose link broke; the resync of the next link compares everything anyway.
    pub fn forget(&mut self, member: MemberId) {
        self.0.remove(&member);
    }
}
