//! The roster: the persisted member list of one decided epoch, and how the next one is made from it.
//!
//! The roster is quorum's denominator. It changes only by decided epochs (`epoch.rs`), one change at a time, and never
//! shrinks by itself: a member that is away still counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use minicbor::{Decode, Encode};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::identity::{ClusterId, Fingerprint, InviteId, MemberId, RosterHash, RosterMark};
use super::name::MemberName;
use super::time::WallTime;

/// Members on the largest roster.
pub const MEMBERS_MAX: usize = 1_000;
/// Removed members remembered by the largest roster; the oldest are forgotten first.
pub const REMOVED_MAX: usize = 4_000;
/// How long a used invitation is remembered beyond its expiry: no clock of a member is that wrong. I6.
const CONSUMED_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// What a member may do in a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes and manages nodes.
    #[n(0)]
    Voter,
    /// Manages nodes and holds all data, without a vote.
    #[n(1)]
    Nonvoting,
    /// Votes and holds all data, but never manages a node.
    #[n(2)]
    Witness,
}

impl Role {
    /// Returns whether members of this role vote once they have caught up.
    pub const fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Witness)
    }

    /// Returns whether members of this role may manage nodes.
    pub const fn manages(self) -> bool {
        matches!(self, Self::Voter | Self::Nonvoting)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Voter => "voter",
            Self::Nonvoting => "nonvoting",
            Self::Witness => "witness",
        })
    }
}

/// One member of a decided epoch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Member {
    /// The enrolment.
    #[n(0)]
    pub id: MemberId,
    /// The name, unique in the roster.
    #[n(1)]
    pub name: MemberName,
    /// What the member may do.
    #[n(2)]
    pub role: Role,
    /// Whether the member is still catching up. R3: a learner has no vote, whatever its role.
    #[n(3)]
    pub learner: bool,
    /// The keys it may present, oldest first: one, or two while a key is being rotated.
    #[n(4)]
    pub fingerprints: Vec<Fingerprint>,
}

impl Member {
    /// Returns whether this member's grant counts.
    pub const fn is_voter(&self) -> bool {
        self.role.votes() && !self.learner
    }
}

/// The durations that every member of a collective must share, so they are part of the decided roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(map)]
pub struct Timing {
    /// T: how long a voter promises itself to a session, in milliseconds.
    #[n(0)]
    pub lease_ms: u32,
    /// m: the part of T that a holder gives away for clock drift, in thousandths.
    #[n(1)]
    pub margin_permille: u16,
    /// The SWIM protocol period, in milliseconds.
    #[n(2)]
    pub probe_interval_ms: u32,
    /// How long a direct probe may take, in milliseconds; less than the period.
    #[n(3)]
    pub probe_timeout_ms: u32,
    /// The shortest time a suspect has to refute, in protocol periods (see `swim.rs`).
    #[n(4)]
    pub suspicion_mult: u8,
    /// The gossip interval of chitchat, in milliseconds.
    #[n(5)]
    pub gossip_interval_ms: u32,
}

impl Timing {
    /// For several members on one machine.
    pub const LOCAL: Self = Self {
        lease_ms: 1_000,
        margin_permille: 50,
        probe_interval_ms: 1_000,
        probe_timeout_ms: 200,
        suspicion_mult: 2,
        gossip_interval_ms: 500,
    };
    /// For sites on one campus; the default.
    pub const LAN: Self = Self {
        lease_ms: 2_000,
        margin_permille: 50,
        probe_interval_ms: 1_000,
        probe_timeout_ms: 500,
        suspicion_mult: 2,
        gossip_interval_ms: 1_000,
    };
    /// For sites far apart.
    pub const WAN: Self = Self {
        lease_ms: 6_000,
        margin_permille: 50,
        probe_interval_ms: 5_000,
        probe_timeout_ms: 3_000,
        suspicion_mult: 3,
        gossip_interval_ms: 1_000,
    };

    /// Returns the profile of that name: `local`, `lan` or `wan`.
    pub fn profile(name: &str) -> Option<Self> {
        match name {
            "local" => Some(Self::LOCAL),
            "lan" => Some(Self::LAN),
            "wan" => Some(Self::WAN),
            _ => None,
        }
    }

    /// Returns T.
    pub const fn lease(self) -> Duration {
        Duration::from_millis(self.lease_ms as u64)
    }

    /// Returns T/6, the interval between lease rounds.
    pub const fn renewal(self) -> Duration {
        Duration::from_micros(self.lease_ms as u64 * 1_000 / 6)
    }

    /// Returns T(1-m): how long after sending a request its grant may be used.
    pub const fn usable(self) -> Duration {
        Duration::from_micros(self.lease_ms as u64 * 1_000_u64.saturating_sub(self.margin_permille as u64))
    }

    /// Returns T(1+2rho), where 2rho = m: how long a voter waits for what it may have promised to expire on any clock.
    pub const fn quiet(self) -> Duration {
        Duration::from_micros(self.lease_ms as u64 * (1_000 + self.margin_permille as u64))
    }

    /// Returns whether these durations can be worked with: none is zero, and a probe ends within its period.
    const fn is_sound(self) -> bool {
        self.lease_ms > 0
            && self.margin_permille < 1_000
            && self.probe_timeout_ms > 0
            && self.probe_timeout_ms < self.probe_interval_ms
            && self.suspicion_mult > 0
            && self.gossip_interval_ms > 0
    }
}

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
    known_hash: KnownHash,
}

/// The hash of a roster once it was computed, with the public fields it was computed of: every lease is checked against
/// it. A copy starts without, since only a copy's private fields ever change.
#[derive(Debug, Default)]
struct KnownHash(OnceLock<(Public, RosterHash)>);

type Public = (ClusterId, Version, RosterHash, Timing);

impl Clone for KnownHash {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for KnownHash {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for KnownHash {}

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

/// One change of the roster; an epoch makes exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    /// Adds a member as a learner and uses its invitation up. A member of the same name that is there is replaced.
    #[n(0)]
    Add {
        /// The new member; `learner` is set whatever it says, unless it is nonvoting.
        #[n(0)]
        member: Member,
        /// The invitation it came by.
        #[n(1)]
        invite: InviteId,
        /// When that invitation expires.
        #[n(2)]
        expires: WallTime,
        /// How many members may join by that invitation.
        #[n(3)]
        uses_max: u32,
    },
    /// Gives a learner its vote. R3.
    #[n(1)]
    Promote {
        /// Who.
        #[n(0)]
        id: MemberId,
    },
    /// Removes a member for good.
    #[n(2)]
    Remove {
        /// Who.
        #[n(0)]
        id: MemberId,
    },
    /// Changes a member's role; a member that gains a vote becomes a learner first.
    #[n(3)]
    SetRole {
        /// Who.
        #[n(0)]
        id: MemberId,
        /// The role it gets.
        #[n(1)]
        role: Role,
    },
    /// Accepts a second key of a member, the first half of a rotation.
    #[n(4)]
    AddFingerprint {
        /// Who.
        #[n(0)]
        id: MemberId,
        /// The new key.
        #[n(1)]
        fingerprint: Fingerprint,
    },
    /// Drops every key of a member but one, the second half of a rotation.
    #[n(5)]
    KeepFingerprint {
        /// Who.
        #[n(0)]
        id: MemberId,
        /// The key that stays.
        #[n(1)]
        fingerprint: Fingerprint,
    },
}

impl Change {
    /// Returns the member that the change is about.
    pub const fn subject(&self) -> MemberId {
        match self {
            Self::Add { member, .. } => member.id,
            Self::Promote { id }
            | Self::Remove { id }
            | Self::SetRole { id, .. }
            | Self::AddFingerprint { id, .. }
            | Self::KeepFingerprint { id, .. } => *id,
        }
    }

    /// Returns whether what the change asks for is so in `roster`, be it by this change or by another.
    pub fn is_made_in(&self, roster: &Roster) -> bool {
        let subject = roster.member(self.subject());
        match self {
            Self::Add { .. } => subject.is_some(),
            Self::Promote { .. } => subject.is_some_and(Member::is_voter),
            Self::Remove { .. } => subject.is_none(),
            Self::SetRole { role, .. } => subject.is_some_and(|member| member.role == *role),
            Self::AddFingerprint { fingerprint, .. } => {
                subject.is_some_and(|member| member.fingerprints.contains(fingerprint))
            }
            Self::KeepFingerprint { fingerprint, .. } => {
                subject.is_some_and(|member| member.fingerprints == [*fingerprint])
            }
        }
    }
}

/// A change that cannot be made to this roster. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RosterError {
    /// The member is not on the roster.
    #[error("there is no such member")]
    NoSuchMember,
    /// The invitation was used as often as it may be.
    #[error("the invitation was used already")]
    InviteUsed,
    /// The key belongs to a member, or belonged to one of another name that was removed.
    #[error("the key is in use by {0}")]
    KeyInUse(MemberName),
    /// The enrolment is on the roster already.
    #[error("{0} is a member already")]
    IsMember(MemberName),
    /// A new member must present exactly one key.
    #[error("a new member has one key")]
    OneKey,
    /// Two keys are accepted already; one must be dropped first.
    #[error("a rotation of this member's key is under way; finish it first")]
    Rotating,
    /// The member was removed before; it needs a new enrolment.
    #[error("the member was removed in epoch {0}")]
    WasRemoved(u64),
    /// The change would leave no voter.
    #[error("the last voter cannot go")]
    LastVoter,
    /// The change would change nothing.
    #[error("nothing would change")]
    NoChange,
    /// The member to replace is the only voter, and its successor has no vote yet. R2, R3.
    #[error("the member to replace is the only voter")]
    ReplacesVoter,
    /// The roster is full.
    #[error("the roster is full at {MEMBERS_MAX} members")]
    Full,
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
            known_hash: KnownHash::default(),
        }
    }

    /// Returns the SHA-256 of the encoded roster.
    pub fn hash(&self) -> RosterHash {
        let public = (self.cluster, self.version, self.previous, self.timing);
        if let Some((of, known)) = self.known_hash.0.get()
            && *of == public
        {
            return *known;
        }
        let bytes = minicbor::to_vec(self).unwrap_or_default(); // Encoding into a Vec cannot fail.
        let hash =
            RosterHash(digest::digest(&digest::SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 bytes"));
        let _ = self.known_hash.0.set((public, hash));
        hash
    }

    /// Returns the first bytes of the hash, for what is said often.
    pub fn mark(&self) -> RosterMark {
        let RosterHash([a, b, c, d, e, f, g, h, ..]) = self.hash();
        RosterMark([a, b, c, d, e, f, g, h])
    }

    /// Returns every member, in the order of their names.
    pub fn members(&self) -> Vec<&Member> {
        let mut members: Vec<_> = self.members.values().collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
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
    pub fn voters(&self) -> BTreeSet<MemberId> {
        self.members.values().filter(|member| member.is_voter()).map(|member| member.id).collect()
    }

    /// Returns the member of that id.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Returns the member of that name.
    pub fn by_name(&self, name: &MemberName) -> Option<&Member> {
        self.members.values().find(|member| &member.name == name)
    }

    /// Returns the member that may present that key.
    pub fn by_fingerprint(&self, fingerprint: Fingerprint) -> Option<&Member> {
        self.members.values().find(|member| member.fingerprints.contains(&fingerprint))
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

    /// Makes the roster of the next epoch.
    ///
    /// `now` only lets expired invitations be forgotten.
    ///
    /// # Errors
    /// [`RosterError`] when the change cannot be made; this roster stays as it is.
    pub fn next(&self, change: &Change, now: WallTime) -> Result<Self, RosterError> {
        let mut next = self.clone();
        next.version = self.version.next();
        next.previous = self.hash();
        next.consumed.retain(|_, consumed| consumed.expires.plus(CONSUMED_KEPT) >= now);
        match change {
            Change::Add { member, invite, expires, uses_max } => next.add(member, *invite, *expires, *uses_max)?,
            Change::Promote { id } => {
                let member = next.member_mut(*id)?;
                if !member.learner {
                    return Err(RosterError::NoChange);
                }
                member.learner = false;
            }
            Change::Remove { id } => next.remove(*id)?,
            Change::SetRole { id, role } => next.set_role(*id, *role)?,
            Change::AddFingerprint { id, fingerprint } => {
                let member = next.member_mut(*id)?;
                if member.fingerprints.contains(fingerprint) {
                    return Err(RosterError::NoChange);
                }
                if member.fingerprints.len() > 1 {
                    // Either key may be the one in use; only the member knows which.
                    return Err(RosterError::Rotating);
                }
                let name = member.name.clone();
                next.check_key_unused(*fingerprint, &name)?;
                next.member_mut(*id)?.fingerprints.push(*fingerprint);
            }
            Change::KeepFingerprint { id, fingerprint } => {
                let member = next.member_mut(*id)?;
                if !member.fingerprints.contains(fingerprint) || member.fingerprints.len() == 1 {
                    return Err(RosterError::NoChange);
                }
                member.fingerprints = vec![*fingerprint];
            }
        }
        if next.voters().is_empty() {
            return Err(RosterError::LastVoter);
        }
        Ok(next)
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
            && self.voters().symmetric_difference(&before.voters()).count() <= 1
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

    fn add(&mut self, member: &Member, invite: InviteId, expires: WallTime, uses_max: u32) -> Result<(), RosterError> {
        if self.uses(invite) >= uses_max {
            return Err(RosterError::InviteUsed);
        }
        if let Some(removed) = self.removed.get(&member.id) {
            return Err(RosterError::WasRemoved(removed.epoch));
        }
        if let Some(present) = self.members.get(&member.id) {
            // R2: writing over a present entry could move a second vote.
            return Err(RosterError::IsMember(present.name.clone()));
        }
        let [fingerprint] = member.fingerprints[..] else {
            return Err(RosterError::OneKey);
        };
        self.check_key_unused(fingerprint, &member.name)?;
        if let Some((stale, is_voter)) = self.by_name(&member.name).map(|stale| (stale.id, stale.is_voter())) {
            if is_voter && self.voters().len() == 1 {
                return Err(RosterError::ReplacesVoter);
            }
            // R2: the stale entry's vote goes in this epoch; the learner's comes in a later one.
            self.forget(stale);
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(RosterError::Full);
        }
        let mut member = member.clone();
        member.learner = member.role.votes();
        self.members.insert(member.id, member);
        let consumed = self.consumed.entry(invite).or_insert(Consumed { uses: 0, expires });
        consumed.uses += 1;
        Ok(())
    }

    fn remove(&mut self, id: MemberId) -> Result<(), RosterError> {
        if !self.members.contains_key(&id) {
            return Err(RosterError::NoSuchMember);
        }
        self.forget(id);
        Ok(())
    }

    /// Moves a member to the removed ones.
    fn forget(&mut self, id: MemberId) {
        if let Some(member) = self.members.remove(&id) {
            let removed = Removed { name: member.name, epoch: self.version.epoch, fingerprints: member.fingerprints };
            self.removed.insert(id, removed);
        }
        while self.removed.len() > REMOVED_MAX {
            let oldest = self.removed.iter().min_by_key(|(id, removed)| (removed.epoch, **id)).map(|(id, _)| *id);
            oldest.and_then(|id| self.removed.remove(&id));
        }
    }

    fn set_role(&mut self, id: MemberId, role: Role) -> Result<(), RosterError> {
        let member = self.member_mut(id)?;
        if member.role == role {
            return Err(RosterError::NoChange);
        }
        let had_vote = member.is_voter();
        member.role = role;
        member.learner = role.votes() && !had_vote;
        Ok(())
    }

    fn member_mut(&mut self, id: MemberId) -> Result<&mut Member, RosterError> {
        self.members.get_mut(&id).ok_or(RosterError::NoSuchMember)
    }

    /// A key stands for one name for ever: a machine may enrol again with the key it had, and nobody else with it.
    fn check_key_unused(&self, fingerprint: Fingerprint, name: &MemberName) -> Result<(), RosterError> {
        let present = self.members.values().map(|member| (&member.name, &member.fingerprints));
        let removed = self.removed.values().map(|removed| (&removed.name, &removed.fingerprints));
        match present.chain(removed).find(|(holder, keys)| *holder != name && keys.contains(&fingerprint)) {
            Some((holder, _)) => Err(RosterError::KeyInUse(holder.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
