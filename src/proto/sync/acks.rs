//! Acknowledgements: on which members a change is durable, from what they say and from equal digests.

use std::collections::BTreeMap;

use super::{SyncError, split_digests};
use crate::proto::document::{ChangeId, Documents, Generation, SHARDS, ShardId, Vector};
use crate::proto::identity::{MemberId, SessionId};

/// Rounds for which two databases may differ before they are compared in full.
const ROUNDS_MAX: u32 = 2;

/// What is known to be durable on other members.
///
/// What a member says stays true when its link breaks, and as long as its process runs: another run may find an older
/// disk.
#[derive(Clone, Debug, Default)]
pub struct Acks(BTreeMap<MemberId, Said>);

/// What one member said.
#[derive(Clone, Debug)]
struct Said {
    /// The run of it that did, once it is known.
    session: Option<SessionId>,
    /// What is durable there of each document.
    durable: BTreeMap<(ShardId, Generation), Vector>,
    /// The last digest of each document that was equal here and there: all it stands for was noted.
    equal: Box<[Option<[u8; 8]>; SHARDS]>,
}

impl Default for Said {
    fn default() -> Self {
        Self { session: None, durable: BTreeMap::new(), equal: Box::new([None; SHARDS]) }
    }
}

impl Acks {
    /// Notes which run of a member speaks from now on; returns whether what an earlier one said was forgotten.
    pub fn on_session(&mut self, member: MemberId, session: SessionId) -> bool {
        let said = self.0.entry(member).or_default();
        let is_another = said.session.is_some_and(|before| before != session);
        if is_another {
            *said = Said::default();
        }
        said.session = Some(session);
        is_another
    }

    /// Notes what a member said is durable there.
    pub fn on_durable(&mut self, member: MemberId, entries: &[ChangeId]) {
        let said = self.0.entry(member).or_default();
        for id in entries {
            let seq = said.durable.entry((id.shard, id.generation)).or_default().entry(id.actor).or_default();
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
        let Said { durable, equal, .. } = self.0.entry(member).or_default();
        for (shard, noted) in ShardId::all().zip(equal.iter_mut()) {
            let theirs = theirs.and_then(|theirs| theirs.get(usize::from(shard.number())).copied());
            let mine = documents.digest(shard);
            if (is_same || theirs == Some(mine)) && *noted != Some(mine) {
                *noted = Some(mine);
                let held = durable.entry((shard, documents.generation(shard))).or_default();
                take_higher(held, documents.vector(shard));
            }
        }
        Ok(())
    }

    /// Returns whether a change is durable on another member, as far as that one said.
    pub fn is_durable_on(&self, member: MemberId, id: &ChangeId) -> bool {
        let held = self.0.get(&member).and_then(|said| said.durable.get(&(id.shard, id.generation)));
        held.and_then(|held| held.get(&id.actor)).is_some_and(|seq| *seq >= id.seq)
    }

    /// Forgets everybody else, as those who were removed from the roster.
    pub fn keep_only(&mut self, is_member: impl Fn(&MemberId) -> bool) {
        self.0.retain(|member, _| is_member(member));
    }
}

/// Raises the count of each actor to what was told. Mostly both have the same actors, so they are walked side by side.
fn take_higher(held: &mut Vector, told: &Vector) {
    let mut new = Vec::new();
    let mut known = held.iter_mut().peekable();
    for (actor, seq) in told {
        while known.next_if(|(before, _)| *before < actor).is_some() {}
        match known.next_if(|(same, _)| *same == actor) {
            Some((_, count)) => *count = (*count).max(*seq),
            None => new.push((*actor, *seq)),
        }
    }
    held.extend(new);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::document::Actor;

    #[test]
    fn of_each_actor_the_higher_count_is_kept() {
        let vector = |counts: &[(u8, u64)]| counts.iter().map(|(actor, seq)| (Actor([*actor; 16]), *seq)).collect();
        let mut held: Vector = vector(&[(2, 5), (3, 5), (4, 5), (6, 5)]);
        take_higher(&mut held, &vector(&[(1, 1), (2, 4), (4, 6), (5, 1), (7, 1)]));
        assert_eq!(held, vector(&[(1, 1), (2, 5), (3, 5), (4, 6), (5, 1), (6, 5), (7, 1)]));
    }
}
