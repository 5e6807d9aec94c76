//! The voter: which sessions it grants and which claims it confirms, from the requests it reads and its own clock.

use std::collections::{BTreeMap, BTreeSet};

use super::super::identity::{MemberId, SessionId};
use super::super::name::NodeName;
use super::super::planted::{Bug, Planted};
use super::super::roster::{Roster, Timing};
use super::super::time::Instant;
use super::{
    ClaimOp, ClaimSet, LeaseAck, LeaseRelease, LeaseRequest, Refusal, RefusalReason, Stamp, Stamps, Verdict, millis,
};

/// What the documents record of a node's last manager: a floor under the terms of new claims.
///
/// It outlives the memory of voters, so that fencing tokens rise even after every voter restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The highest term.
    pub term: u64,
    /// Who had it. Its own claim of that same term is confirmed again, as by a voter that restarted.
    pub holder: Option<MemberId>,
}

/// The voter's side of the leases. In memory only: R6 stands in for a disk.
#[derive(Clone, Debug)]
pub struct Voter {
    session: SessionId,
    timing: Timing,
    /// R6: nothing is granted before.
    quiet_until: Instant,
    /// R7: nothing new is confirmed before.
    settled_at: Instant,
    sessions: BTreeMap<MemberId, Session>,
    /// No live session expires before; none when there is none. Renewals leave it as it is.
    soonest: Option<Instant>,
    slots: BTreeMap<NodeName, Slot>,
    stamps: Stamps,
    planted: Planted,
}

/// What is promised to one member. Kept after it expired: its `seq` still tells old requests from new ones.
#[derive(Clone, Debug)]
struct Session {
    id: SessionId,
    expiry: Instant,
    /// The last request that was read.
    seq: u64,
    /// The full set that the claims build on, by the `seq` of its request.
    full: Option<u64>,
    /// The version of the claim set that was applied.
    applied: u64,
    claims: BTreeSet<NodeName>,
    /// Claims that a full set in parts has not named so far; released when its last part is there.
    unnamed: BTreeSet<NodeName>,
    rival: Option<Rival>,
}

/// Another session of the same member, seen while this one was granted.
#[derive(Clone, Copy, Debug)]
struct Rival {
    until: Instant,
    /// Whether this session spoke after the other one did: both live, so this is no restart.
    is_proven: bool,
}

/// The last claim on a node that was confirmed; its term is remembered after it was released.
#[derive(Clone, Copy, Debug)]
struct Slot {
    member: MemberId,
    session: SessionId,
    term: u64,
    is_held: bool,
}

impl Voter {
    /// Makes a voter that has just started and may have forgotten promises.
    ///
    /// `skip_quiet` only when no other session can exist: epoch 1, which never had more than this one member.
    pub fn new(session: SessionId, now: Instant, timing: Timing, skip_quiet: bool) -> Self {
        // R6: a voter that forgot its grants must wait until they have expired.
        let quiet_until = if skip_quiet { Instant::ZERO } else { now + timing.quiet() };
        Self {
            session,
            timing,
            quiet_until,
            settled_at: Instant::ZERO,
            sessions: BTreeMap::new(),
            soonest: None,
            slots: BTreeMap::new(),
            stamps: Stamps::default(),
            planted: Planted::default(),
        }
    }

    /// Plants bugs, for the simulator to find.
    pub(crate) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
        self.stamps.planted = planted;
        if planted.has(Bug::NoQuietStart) {
            self.quiet_until = Instant::ZERO;
        }
    }

    /// Answers a request, granting the session and confirming its claims where the rules allow it.
    ///
    /// `stamp` are this voter's counters; `recorded` says what the documents record of a node's managers.
    pub fn on_request(
        &mut self,
        roster: &Roster,
        stamp: Stamp,
        from: MemberId,
        request: &LeaseRequest,
        recorded: &dyn Fn(&NodeName) -> Recorded,
        now: Instant,
    ) -> LeaseAck {
        let (version, mark) = if self.planted.has(Bug::OldEpochGranted) {
            (request.version.min(roster.version), request.mark)
        } else {
            (roster.version, roster.mark())
        };
        let verdict = if request.version > version {
            Verdict::NewerEpoch
        } else if roster.member(from).is_none() {
            Verdict::NotOnRoster
        } else if request.version < version || request.mark != mark {
            // R1: one roster per epoch; R4: an older one gets no grant.
            Verdict::StaleEpoch
        } else {
            self.judge(roster, from, request, recorded, now)
        };
        LeaseAck {
            version,
            mark,
            session: request.session,
            seq: request.seq,
            voter_session: self.session,
            stamp,
            verdict,
        }
    }

    /// Returns from when on this voter's table has every claim that holds: before, it may have forgotten some (R6) or
    /// never have been told of them (R7).
    pub fn complete_from(&self) -> Instant {
        self.quiet_until.max(self.settled_at)
    }

    /// Returns the highest term that this voter remembers of a node; a new claim must exceed it.
    pub fn highest_term(&self, node: &NodeName) -> u64 {
        self.slots.get(node).map_or(0, |slot| slot.term)
    }

    /// Ends a session that says it has stopped, so that its claims are free at once.
    pub fn on_release(&mut self, from: MemberId, release: &LeaseRelease, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&from).filter(|session| session.id == release.session) {
            session.expiry = session.expiry.min(now);
            self.soonest = self.soonest.map(|soonest| soonest.min(now));
            session.seq = u64::MAX; // A request that was still under way must not bring the session back.
            self.forget_claims(from);
        }
    }

    /// Notes that a roster was adopted.
    pub fn on_epoch(&mut self, voters_changed: bool, now: Instant) {
        if voters_changed && !self.planted.has(Bug::NoSettling) {
            // R7: a majority of the former voters may have confirmed what this one never heard of.
            self.settled_at = self.settled_at.max(now + self.timing.quiet());
        }
    }

    /// Returns who holds a node here, by which term, and until when; none when nobody does or the session expired.
    pub fn holder(&self, node: &NodeName, now: Instant) -> Option<(MemberId, u64, Instant)> {
        let slot = self.slots.get(node)?;
        let expiry = self.expiry_of(slot, now)?;
        Some((slot.member, slot.term, expiry))
    }

    /// Returns the session that is granted to a member, and until when; none when it expired.
    pub fn session(&self, member: MemberId, now: Instant) -> Option<(SessionId, Instant)> {
        self.sessions.get(&member).filter(|session| session.is_live(now)).map(|session| (session.id, session.expiry))
    }

    /// Returns the nodes that a member holds here, in order.
    pub fn held_by(&self, member: MemberId, now: Instant) -> Vec<NodeName> {
        self.sessions
            .get(&member)
            .filter(|session| session.is_live(now))
            .map_or_else(Vec::new, |session| session.claims.iter().cloned().collect())
    }

    /// Returns when to look next whether a session expired: not after the first of them does, and seldom before. None
    /// when there is none.
    pub fn next_expiry(&mut self, now: Instant) -> Option<Instant> {
        if self.soonest.is_some_and(|soonest| soonest <= now) {
            // With a thousand members this is looked up at every packet, so the sessions are walked once a lease.
            let live = self.sessions.values().filter(|session| session.is_live(now));
            self.soonest = live.map(|session| session.expiry).min();
        }
        self.soonest
    }

    /// Returns when this voter begins to grant. R6.
    pub const fn quiet_until(&self) -> Instant {
        self.quiet_until
    }

    /// Returns the highest counters seen of each member, to be kept on disk. R9.
    pub fn stamps(&self) -> impl Iterator<Item = (MemberId, Stamp)> + '_ {
        self.stamps.seen.iter().map(|(member, stamp)| (*member, *stamp))
    }

    /// Notes a member's counters, read from disk or seen elsewhere. R9.
    pub fn remember(&mut self, member: MemberId, stamp: Stamp) {
        self.stamps.remember(member, stamp);
    }

    /// Returns the members of which two live sessions were seen within T: a cloned machine.
    ///
    /// A restart does not count: the former session says nothing after the new one has spoken.
    pub fn duplicate_sessions(&self, now: Instant) -> Vec<MemberId> {
        let is_proven = |session: &Session| session.rival.is_some_and(|rival| rival.is_proven && rival.until > now);
        self.sessions.iter().filter(|(_, session)| is_proven(session)).map(|(member, _)| *member).collect()
    }

    /// Judges a request of a member that has this voter's roster.
    fn judge(
        &mut self,
        roster: &Roster,
        from: MemberId,
        request: &LeaseRequest,
        recorded: &dyn Fn(&NodeName) -> Recorded,
        now: Instant,
    ) -> Verdict {
        let known = self.sessions.get_mut(&from);
        let is_outdated = |session: &&mut Session| session.id == request.session && request.seq <= session.seq;
        if known.as_ref().is_some_and(is_outdated) && !self.planted.has(Bug::RequestsInAnyOrder) {
            return Verdict::Outdated;
        }
        if !self.stamps.admit(from, request.stamp) {
            // R9: its disk was rolled back, so it may have forgotten what it promised or used before.
            return Verdict::RolledBack;
        }
        if now < self.quiet_until {
            return Verdict::Quiet { for_ms: millis(self.quiet_until.since(now)) };
        }
        let is_other = |session: &&mut Session| session.id != request.session && session.is_live(now);
        if let Some(session) = known.filter(is_other).filter(|_| !self.planted.has(Bug::ManySessions)) {
            // R4: one session of a member at a time.
            let is_proven = session.rival.is_some_and(|rival| rival.is_proven && rival.until > now);
            session.rival = Some(Rival { until: now + roster.timing.lease(), is_proven });
            return Verdict::DuplicateSession;
        }
        self.stamps.remember(from, request.stamp);
        self.grant(from, request, now + roster.timing.lease(), now);
        self.apply(from, request, recorded, now)
    }

    /// Grants the session, starting it anew when it is not the one that was granted or when that has expired.
    fn grant(&mut self, from: MemberId, request: &LeaseRequest, expiry: Instant, now: Instant) {
        let is_renewal =
            self.sessions.get(&from).is_some_and(|session| session.id == request.session && session.is_live(now));
        if !is_renewal {
            self.forget_claims(from);
            self.sessions.insert(from, Session::new(request.session));
        }
        if let Some(session) = self.sessions.get_mut(&from) {
            session.seq = request.seq;
            session.expiry = session.expiry.max(expiry);
            self.soonest = Some(self.soonest.map_or(session.expiry, |soonest| soonest.min(session.expiry)));
            session.rival = session.rival.filter(|rival| rival.until > now);
            if let Some(rival) = &mut session.rival {
                rival.is_proven = true;
            }
        }
    }

    /// Applies the claims of a request whose session was just granted.
    fn apply(
        &mut self,
        from: MemberId,
        request: &LeaseRequest,
        recorded: &dyn Fn(&NodeName) -> Recorded,
        now: Instant,
    ) -> Verdict {
        // Most requests only renew the session.
        if let ClaimSet::Delta { full, base, version, ops, .. } = &request.claims
            && let Some(session) = self.sessions.get_mut(&from)
            && (ops.is_empty() && session.unnamed.is_empty() && session.builds_on(*full, *base))
        {
            session.applied = session.applied.max(*version);
            return Verdict::Granted { applied: Some(session.applied), refused: Vec::new() };
        }
        let Some(mut session) = self.sessions.remove(&from) else {
            return Verdict::Granted { applied: None, refused: Vec::new() };
        };
        let mut refused = Vec::new();
        let mut hold = |voter: &mut Self, session: &mut Session, node: &NodeName, term: u64| {
            session.unnamed.remove(node);
            match voter.confirm(from, session, node, term, recorded(node), now) {
                Ok(()) => {
                    session.claims.insert(node.clone());
                }
                Err(reason) => refused.push(Refusal { node: node.clone(), reason }),
            }
        };
        let applied = match &request.claims {
            ClaimSet::Full { version, complete, holds } => {
                session.full = Some(request.seq);
                session.applied = *version;
                session.unnamed.clone_from(&session.claims);
                for (node, term) in holds {
                    hold(self, &mut session, node, *term);
                }
                self.complete(from, &mut session, *complete);
                Some(session.applied)
            }
            ClaimSet::Delta { full, base, version, complete, ops } if session.builds_on(*full, *base) => {
                for op in ops {
                    match op {
                        ClaimOp::Hold { node, term } => hold(self, &mut session, node, *term),
                        ClaimOp::Release { node } => self.release(from, &mut session, node),
                    }
                }
                session.applied = session.applied.max(*version);
                self.complete(from, &mut session, *complete);
                Some(session.applied)
            }
            ClaimSet::Delta { .. } => None,
        };
        self.sessions.insert(from, session);
        Verdict::Granted { applied, refused }
    }

    /// Confirms a claim of a granted session, or says why not.
    ///
    /// The session itself is not in `self.sessions` while its claims are applied; it is known to be live.
    fn confirm(
        &mut self,
        from: MemberId,
        session: &Session,
        node: &NodeName,
        term: u64,
        recorded: Recorded,
        now: Instant,
    ) -> Result<(), RefusalReason> {
        let slot = self.slots.get(node);
        let is_own = slot.is_some_and(|slot| slot.member == from && slot.session == session.id);
        if let Some(slot) = slot.filter(|_| !is_own)
            && let Some(expiry) = self.expiry_of(slot, now)
            && !self.planted.has(Bug::SharedClaims)
        {
            // I1: a node has one holder at a time at every voter.
            return Err(RefusalReason::Held { by: slot.member, for_ms: millis(expiry.since(now)) });
        }
        // Terms rise from holder to holder, so that a fencing token is never used by two.
        let after_slot = slot.map_or(0, |slot| if is_own { slot.term } else { slot.term.saturating_add(1) });
        let is_renewal = is_own && slot.is_some_and(|slot| slot.is_held);
        let at_least = if is_renewal || (recorded.holder == Some(from) && recorded.term == term) {
            after_slot
        } else {
            after_slot.max(recorded.term.saturating_add(1))
        };
        if term < at_least && !self.planted.has(Bug::TermsUsedAgain) {
            return Err(RefusalReason::StaleTerm { at_least });
        }
        if !is_renewal && now < self.settled_at {
            // R7: new claims wait; renewals do not.
            return Err(RefusalReason::Settling { for_ms: millis(self.settled_at.since(now)) });
        }
        if !is_renewal && session.rival.is_some() {
            return Err(RefusalReason::Duplicate);
        }
        let slot = Slot { member: from, session: session.id, term, is_held: true };
        self.slots.insert(node.clone(), slot);
        Ok(())
    }

    /// Drops what a session held and does not name any more, once it has named everything.
    fn complete(&mut self, from: MemberId, session: &mut Session, is_complete: bool) {
        if is_complete {
            for node in std::mem::take(&mut session.unnamed) {
                self.release(from, session, &node);
            }
        }
    }

    fn release(&mut self, from: MemberId, session: &mut Session, node: &NodeName) {
        session.claims.remove(node);
        session.unnamed.remove(node);
        free(&mut self.slots, from, session.id, node);
    }

    /// Frees every node that the member's known session holds.
    fn forget_claims(&mut self, member: MemberId) {
        if let Some(session) = self.sessions.get_mut(&member) {
            for node in std::mem::take(&mut session.claims) {
                free(&mut self.slots, member, session.id, &node);
            }
        }
    }

    /// Returns until when a slot is held; none when it is free or its session expired.
    fn expiry_of(&self, slot: &Slot, now: Instant) -> Option<Instant> {
        let session = self.sessions.get(&slot.member).filter(|session| session.id == slot.session)?;
        (slot.is_held && session.is_live(now)).then_some(session.expiry)
    }
}

impl Session {
    const fn new(id: SessionId) -> Self {
        Self {
            id,
            expiry: Instant::ZERO,
            seq: 0,
            full: None,
            applied: 0,
            claims: BTreeSet::new(),
            unnamed: BTreeSet::new(),
            rival: None,
        }
    }

    fn is_live(&self, now: Instant) -> bool {
        self.expiry > now
    }

    /// Returns whether changes after `base` of that full set can be applied.
    fn builds_on(&self, full: u64, base: u64) -> bool {
        self.full == Some(full) && base <= self.applied
    }
}

/// Frees a node if that session holds it; the term stays.
fn free(slots: &mut BTreeMap<NodeName, Slot>, member: MemberId, session: SessionId, node: &NodeName) {
    if let Some(slot) = slots.get_mut(node).filter(|slot| slot.member == member && slot.session == session) {
        slot.is_held = false;
    }
}

#[cfg(test)]
mod tests;
