//! The roster: the persisted member list of one decided epoch, and how the next one is made from it.
//!
//! The roster is quorum's denominator. It changes only by decided epochs (`epoch.rs`), one change at a time, and never
//! shrinks by itself: a member that is away still counts.

mod change;
mod member;
mod timing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use minicbor::{Decode, Encode};
use ring::digest;
use serde::{Deserialize, Serialize};

pub use change::{Change, RosterError};
pub use member::{Member, Role};
pub use timing::Timing;

use super::identity::{ClusterId, Fingerprint, InviteId, MemberId, RosterHash, RosterMark};
use super::name::MemberName;
use super::time::WallTime;

/// Members on the largest roster.
pub const MEMBERS_MAX: usize = 1_000;
/// Removed members remembered by the largest roster; the oldest are forgotten first.
pub const REMOVED_MAX: usize = 4_000;
/// How long a used invitation is remembered beyond its expiry: no clock of a member is that wrong. I6.
const CONSUMED_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Which roster: the recovery generation first, then the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Version {
    /// Raised by an emergency recovery (R11); compared before the epoch.
    #[n(0)]
    pub generation: u64,
    /// Raised by every decided change.
    #[n(1)]
    pub epoch: u64,
}

impl Version {
    /// Returns the version that the next decided change makes.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { generation: self.generation, epoch: self.epoch.saturating_add(1) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.epoch)
    }
}

/// A member that was removed, remembered (see [`REMOVED_MAX`]): it is told so when it returns, and its data stays valid.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Removed {
    /// The name it had.
    #[n(0)]
    pub name: MemberName,
    /// The epoch without it.
    #[n(1)]
    pub epoch: u64,
    /// The keys it had.
    #[n(2)]
    pub fingerprints: Vec<Fingerprint>,
}

/// One decided epoch of the member list.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Roster {
    /// The collective this is a roster of.
    #[n(0)]
    pub cluster: ClusterId,
    /// Which roster of it.
    #[n(1)]
    pub version: Version,
    /// The hash of the roster before; zeros in the first.
    #[n(2)]
    pub previous: RosterHash,
    /// The durations all members use.
    #[n(3)]
    pub timing: Timing,
    /// The members by id.
    #[n(4)]
    members: BTreeMap<MemberId, Member>,
    /// Invitations that were used, with the wall time after which they have expired anyway and may be forgotten.
    #[n(5)]
    consumed: BTreeMap<InviteId, Consumed>,
    /// Members that were removed.
    #[n(6)]
    removed: BTreeMap<MemberId, Removed>,
    #[cbor(skip)]
    derived: Derived,
}

/// What is asked of a roster at every event, computed when it is first asked for.
///
/// A copy starts without, and so does a roster whose private fields are about to change.
#[derive(Debug, Default)]
struct Derived {
    /// With the public fields that it was computed of: every lease is checked against it.
    hash: OnceLock<(Public, RosterHash)>,
    index: OnceLock<Index>,
}

type Public = (ClusterId, Version, RosterHash, Timing);

/// The members by whatever else they are looked up by.
#[derive(Debug)]
struct Index {
    voters: BTreeSet<MemberId>,
    by_fingerprint: BTreeMap<Fingerprint, MemberId>,
    /// In the order of their names, as the next two.
    by_name: Vec<MemberId>,
    voters_by_name: Vec<MemberId>,
    learners: Vec<MemberId>,
}

impl Clone for Derived {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Derived {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Derived {}

/// How often an invitation was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Consumed {
    /// Members that joined by it.
    #[n(0)]
    pub uses: u32,
    /// When it expires.
    #[n(1)]
    pub expires: WallTime,
}

/// A roster, read from a peer or from disk, that no decision can have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid roster: {0}")]
pub struct RosterDefect(&'static str);

impl Roster {
    /// Makes the first roster of a new collective: one member, its only voter, in epoch 1.
    pub fn genesis(cluster: ClusterId, timing: Timing, mut founder: Member) -> Self {
        founder.learner = false;
        founder.role = Role::Voter;
        Self {
            cluster,
            version: Version { generation: 0, epoch: 1 },
            previous: RosterHash([0; 32]),
            timing,
            members: BTreeMap::from([(founder.id, founder)]),
            consumed: BTreeMap::new(),
            removed: BTreeMap::new(),
            derived: Derived::default(),
        }
    }

    /// Returns the SHA-256 of the encoded roster.
    pub fn hash(&self) -> RosterHash {
        let public = (self.cluster, self.version, self.previous, self.timing);
        if let Some((of, known)) = self.derived.hash.get()
            && *of == public
        {
            return *known;
        }
        let bytes = minicbor::to_vec(self).unwrap_or_default(); // Encoding into a Vec cannot fail.
        let hash =
            RosterHash(digest::digest(&digest::SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 bytes"));
        let _ = self.derived.hash.set((public, hash));
        hash
    }

    fn index(&self) -> &Index {
        self.derived.index.get_or_init(|| {
            let members = self.members.values();
            let mut by_name: Vec<_> = members.clone().collect();
            by_name.sort_by(|a, b| a.name.cmp(&b.name));
            let keys = |member: &Member| member.fingerprints.clone().into_iter();
            let ids = |of: &dyn Fn(&Member) -> bool| {
                by_name.iter().filter(|member| of(member)).map(|member| member.id).collect()
            };
            Index {
                voters: members.clone().filter(|member| member.is_voter()).map(|member| member.id).collect(),
                by_name: ids(&|_| true),
                voters_by_name: ids(&|member| member.is_voter()),
                learners: ids(&|member| member.learner),
                by_fingerprint: members.flat_map(|member| keys(member).map(|key| (key, member.id))).collect(),
            }
        })
    }

    /// Returns the first bytes of the hash, for what is said often.
    pub fn mark(&self) -> RosterMark {
        let RosterHash([a, b, c, d, e, f, g, h, ..]) = self.hash();
        RosterMark([a, b, c, d, e, f, g, h])
    }

    /// Returns every member, in the order of their names.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = &Member> {
        self.index().by_name.iter().filter_map(|id| self.members.get(id))
    }

    /// Returns how many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns whether there is no member; never true of a decided roster.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the ids of every member.
    pub fn ids(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.members.keys().copied()
    }

    /// Returns the ids of the voters.
    pub fn voters(&self) -> &BTreeSet<MemberId> {
        &self.index().voters
    }

    /// Returns the ids of the voters, in the order of their names.
    pub fn voters_by_name(&self) -> &[MemberId] {
        &self.index().voters_by_name
    }

    /// Returns the ids of the learners, in the order of their names. R3.
    pub fn learners(&self) -> &[MemberId] {
        &self.index().learners
    }

    /// Returns the member of that id.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Returns the member of that name.
    pub fn by_name(&self, name: &MemberName) -> Option<&Member> {
        let by_name = &self.index().by_name;
        let name_of = |id: &MemberId| self.members.get(id).map(|member| &member.name);
        let place = by_name.binary_search_by(|id| name_of(id).cmp(&Some(name))).ok()?;
        self.members.get(&by_name[place])
    }

    /// Returns the member that may present that key.
    pub fn by_fingerprint(&self, fingerprint: Fingerprint) -> Option<&Member> {
        self.members.get(self.index().by_fingerprint.get(&fingerprint)?)
    }

    /// Returns the member, present or removed, whose id begins so: the first half of it names the author of changes.
    pub fn by_prefix(&self, prefix: [u8; 8]) -> Option<MemberId> {
        let bound = |rest: u8| MemberId(std::array::from_fn(|i| prefix.get(i).copied().unwrap_or(rest)));
        let range = bound(0)..=bound(u8::MAX);
        let present = self.members.range(range.clone()).map(|(id, _)| *id).next();
        present.or_else(|| self.removed.range(range).map(|(id, _)| *id).next())
    }

    /// Returns what is remembered of a removed member.
    pub fn removed(&self, id: MemberId) -> Option<&Removed> {
        self.removed.get(&id)
    }

    /// Returns what is remembered of the removed member that presented that key, unless a member may present it today.
    ///
    /// Of several enrolments that had the key, the last counts.
    pub fn removed_by_fingerprint(&self, fingerprint: Fingerprint) -> Option<&Removed> {
        if self.by_fingerprint(fingerprint).is_some() {
            return None;
        }
        self.removed
            .values()
            .filter(|removed| removed.fingerprints.contains(&fingerprint))
            .max_by_key(|removed| removed.epoch)
    }

    /// Returns the ids of removed members.
    pub fn removed_ids(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.removed.keys().copied()
    }

    /// Returns how often an invitation was used.
    pub fn uses(&self, invite: InviteId) -> u32 {
        self.consumed.get(&invite).map_or(0, |consumed| consumed.uses)
    }

    /// Returns whether both rosters have the same voters. R2, R7: only a change of voters needs a wait.
    pub fn same_voters(&self, other: &Self) -> bool {
        self.voters() == other.voters()
    }

    /// Returns whether this roster can be the one that was decided right after `before`.
    ///
    /// R2: a single change moves at most one vote, whatever the proposer believes.
    pub fn follows(&self, before: &Self) -> bool {
        self.cluster == before.cluster
            && self.version == before.version.next()
            && self.previous == before.hash()
            && self.voters().symmetric_difference(before.voters()).count() <= 1
    }

    /// Checks what every decided roster upholds; to be called on whatever was read from outside.
    ///
    /// # Errors
    /// [`RosterDefect`] names the first thing that is wrong. Such a roster must be dropped.
    pub fn check(&self) -> Result<(), RosterDefect> {
        let ensure = |holds: bool, defect| if holds { Ok(()) } else { Err(RosterDefect(defect)) };
        let mut names = BTreeSet::new();
        let mut keys = BTreeSet::new();
        ensure(self.members.len() <= MEMBERS_MAX, "too many members")?;
        ensure(self.removed.len() <= REMOVED_MAX, "too many removed members")?;
        ensure(self.timing.is_sound(), "a duration makes no sense")?;
        for (id, member) in &self.members {
            ensure(*id == member.id, "a member is filed under another id")?;
            ensure(names.insert(&member.name), "two members have one name")?;
            ensure(matches!(member.fingerprints.len(), 1 | 2), "a member has neither one key nor two")?;
            ensure(member.fingerprints.iter().all(|key| keys.insert(*key)), "one key is listed twice")?;
            ensure(member.role.votes() || !member.learner, "a learner's role has no vote")?;
            ensure(!self.removed.contains_key(id), "a removed member is on the roster")?;
        }
        ensure(self.removed.values().all(|removed| removed.fingerprints.len() <= 2), "a member had too many keys")?;
        ensure(self.members.values().any(Member::is_voter), "there is no voter")
    }
}

#[cfg(test)]
pub(crate) mod tests;
