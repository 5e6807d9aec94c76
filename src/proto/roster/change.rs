//! How the next roster is made from a decided one: by a single change, which moves at most one vote.

use minicbor::{Decode, Encode};

use super::{CONSUMED_KEPT, Consumed, Derived, MEMBERS_MAX, Member, REMOVED_MAX, Removed, Role, Roster};
use crate::proto::identity::{Fingerprint, InviteId, MemberId};
use crate::proto::name::MemberName;
use crate::proto::time::WallTime;

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

impl Roster {
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
        self.derived = Derived::default();
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
        self.derived = Derived::default();
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
        self.derived = Derived::default();
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
