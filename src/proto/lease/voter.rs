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
            ClaimSet::Delta { full, base, version, complete, ops }
                if session.full == Some(*full) && *base <= session.applied =>
            {
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
}

/// Frees a node if that session holds it; the term stays.
fn free(slots: &mut BTreeMap<NodeName, Slot>, member: MemberId, session: SessionId, node: &NodeName) {
    if let Some(slot) = slots.get_mut(node).filter(|slot| slot.member == member && slot.session == session) {
        slot.is_held = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{TIMING, add, at, changed, id, node, roster, session, stamp};
    use super::*;

    /// A voter past its quiet start, and what it is asked.
    struct Bench {
        roster: Roster,
        voter: Voter,
        seq: u64,
        recorded: Recorded,
    }

    impl Bench {
        fn new() -> Self {
            let voter = Voter::new(session(101), at(0), TIMING, true);
            Self { roster: roster(3), voter, seq: 0, recorded: Recorded::default() }
        }

        fn request(&mut self, from: u8, claims: ClaimSet) -> LeaseRequest {
            self.seq += 1;
            let (version, mark) = (self.roster.version, self.roster.mark());
            let (session, stamp) = (session(from), stamp(1));
            LeaseRequest { version, mark, session, stamp, seq: self.seq, seated: true, claims }
        }

        fn send(&mut self, from: u8, request: &LeaseRequest, now: Instant) -> Verdict {
            let recorded = self.recorded;
            self.voter.on_request(&self.roster, stamp(1), id(from), request, &|_| recorded, now).verdict
        }

        /// Sends a complete full set of claims, all of one term.
        fn claim(&mut self, from: u8, nodes: &[&str], term: u64, now: Instant) -> Verdict {
            let holds: Vec<_> = nodes.iter().map(|name| (node(name), term)).collect();
            let version = holds.len() as u64;
            let request = self.request(from, ClaimSet::Full { version, complete: true, holds });
            self.send(from, &request, now)
        }

        fn holder(&self, name: &str, now: Instant) -> Option<MemberId> {
            self.voter.holder(&node(name), now).map(|(member, _, _)| member)
        }
    }

    fn granted(applied: u64) -> Verdict {
        Verdict::Granted { applied: Some(applied), refused: Vec::new() }
    }

    fn refused(applied: u64, name: &str, reason: RefusalReason) -> Verdict {
        Verdict::Granted { applied: Some(applied), refused: vec![Refusal { node: node(name), reason }] }
    }

    fn delta(full: u64, base: u64, version: u64, ops: Vec<ClaimOp>) -> ClaimSet {
        ClaimSet::Delta { full, base, version, complete: true, ops }
    }

    #[test]
    fn the_next_expiry_is_never_told_too_late() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        bench.claim(2, &["n2"], 1, at(500));
        bench.claim(1, &["n1"], 1, at(900));
        assert_eq!(bench.voter.next_expiry(at(900)), Some(at(2_000)), "the one before the renewal, which is early");
        assert_eq!(bench.voter.next_expiry(at(2_000)), Some(at(2_500)), "member 2 was not heard again");
        assert_eq!(bench.voter.next_expiry(at(2_500)), Some(at(2_900)));
        assert_eq!(bench.voter.next_expiry(at(2_900)), None);
        bench.claim(2, &["n2"], 2, at(3_000));
        assert_eq!(bench.voter.next_expiry(at(3_000)), Some(at(5_000)));
    }

    #[test]
    fn a_session_is_granted_for_t_and_its_claims_with_it() {
        let mut bench = Bench::new();
        assert_eq!(bench.claim(1, &["n1"], 1, at(0)), granted(1));
        assert_eq!(bench.voter.session(id(1), at(1_999)), Some((session(1), at(2_000))));
        assert_eq!(bench.voter.holder(&node("n1"), at(1_999)), Some((id(1), 1, at(2_000))));
        assert_eq!(bench.voter.held_by(id(1), at(1_999)), [node("n1")]);
        assert_eq!(bench.voter.next_expiry(at(0)), Some(at(2_000)));
        assert_eq!(bench.voter.session(id(1), at(2_000)), None);
        assert_eq!(bench.holder("n1", at(2_000)), None);
        assert!(bench.voter.held_by(id(1), at(2_000)).is_empty());
        assert_eq!(bench.voter.next_expiry(at(2_000)), None);
    }

    #[test]
    fn a_held_node_is_refused_to_others_until_its_holder_expired() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        let held = RefusalReason::Held { by: id(1), for_ms: 1 };
        assert_eq!(bench.claim(2, &["n1"], 2, at(1_999)), refused(1, "n1", held));
        assert_eq!(bench.claim(2, &["n1"], 2, at(2_000)), granted(1));
        assert_eq!(bench.holder("n1", at(2_000)), Some(id(2)));
    }

    #[test]
    fn an_older_newer_or_other_roster_is_told_apart() {
        let mut bench = Bench::new();
        let empty = delta(0, 0, 0, Vec::new());
        let present = bench.request(1, empty);
        let epoch = present.version.epoch;
        let send = |bench: &mut Bench, change: &dyn Fn(&mut LeaseRequest)| {
            let mut request = present.clone();
            change(&mut request);
            bench.send(1, &request, at(0))
        };
        assert_eq!(send(&mut bench, &|request| request.version.epoch = epoch - 1), Verdict::StaleEpoch);
        assert_eq!(send(&mut bench, &|request| request.mark.0[0] ^= 1), Verdict::StaleEpoch);
        assert_eq!(send(&mut bench, &|request| request.version.epoch = epoch + 1), Verdict::NewerEpoch);
        assert_eq!(bench.send(9, &present, at(0)), Verdict::NotOnRoster);
        assert_eq!(bench.voter.session(id(1), at(0)), None, "nothing was granted");
    }

    #[test]
    fn nothing_is_granted_before_the_quiet_start_is_over() {
        // R6.
        let mut bench = Bench::new();
        bench.voter = Voter::new(session(101), at(0), TIMING, false);
        assert_eq!(bench.claim(1, &["n1"], 1, at(2_099)), Verdict::Quiet { for_ms: 1 });
        assert_eq!(bench.voter.session(id(1), at(2_099)), None);
        assert_eq!(bench.claim(1, &["n1"], 1, at(2_100)), granted(1));
    }

    #[test]
    fn new_claims_wait_after_a_change_of_voters_and_renewals_do_not() {
        // R7.
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        bench.roster = changed(&bench.roster, &add(4));
        bench.voter.on_epoch(false, at(100));
        assert_eq!(bench.claim(1, &["n1", "n2"], 1, at(100)), granted(2), "a learner changes no majority");
        bench.voter.on_epoch(true, at(200));
        let settling = RefusalReason::Settling { for_ms: 2_000 };
        assert_eq!(bench.claim(1, &["n1", "n2", "n3"], 1, at(300)), refused(3, "n3", settling));
        assert_eq!(bench.claim(2, &["n4"], 1, at(2_299)), refused(1, "n4", RefusalReason::Settling { for_ms: 1 }));
        assert_eq!(bench.claim(2, &["n4"], 1, at(2_300)), granted(1));
    }

    #[test]
    fn a_member_whose_counters_went_back_gets_no_vote() {
        // R9, by either counter, for a session that is known and for a new one.
        let mut bench = Bench::new();
        bench.voter.remember(id(1), Stamp { incarnation: 3, sequence: 8 });
        for (incarnation, sequence, verdict) in [
            (2, 9, Verdict::RolledBack),
            (4, 7, Verdict::RolledBack),
            (4, 8, granted(0)),
            (3, 8, Verdict::RolledBack),
            (4, 7, Verdict::RolledBack),
        ] {
            let claims = ClaimSet::Full { version: 0, complete: true, holds: Vec::new() };
            let mut request = bench.request(1, claims);
            request.stamp = Stamp { incarnation, sequence };
            assert_eq!(bench.send(1, &request, at(0)), verdict, "{incarnation} {sequence}");
        }
        assert_eq!(bench.voter.stamps().collect::<Vec<_>>(), [(id(1), Stamp { incarnation: 4, sequence: 8 })]);
    }

    #[test]
    fn a_second_session_of_a_member_waits_for_the_first_to_expire() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        let mut request = bench.request(1, ClaimSet::Full { version: 0, complete: true, holds: Vec::new() });
        request.session = session(51);
        assert_eq!(bench.send(1, &request, at(1_999)), Verdict::DuplicateSession);
        assert!(bench.voter.duplicate_sessions(at(1_999)).is_empty(), "a restart is no duplicate");
        assert_eq!(bench.holder("n1", at(1_999)), Some(id(1)));
        assert_eq!(bench.send(1, &request, at(2_000)), granted(0));
        assert_eq!(bench.holder("n1", at(2_000)), None, "the former session's claims ended with it");
    }

    #[test]
    fn two_live_sessions_of_a_member_get_nothing_new() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        let mut rival = bench.request(1, ClaimSet::Full { version: 0, complete: true, holds: Vec::new() });
        rival.session = session(51);
        assert_eq!(bench.send(1, &rival, at(100)), Verdict::DuplicateSession);
        assert_eq!(bench.claim(1, &["n1", "n2"], 1, at(200)), refused(2, "n2", RefusalReason::Duplicate));
        assert_eq!(bench.voter.duplicate_sessions(at(200)), [id(1)]);
        assert!(bench.voter.duplicate_sessions(at(2_100)).is_empty(), "it is forgotten after T");
        assert_eq!(bench.claim(1, &["n1", "n2"], 1, at(2_100)), granted(2));
    }

    #[test]
    fn an_old_request_changes_nothing() {
        let mut bench = Bench::new();
        let old = bench.request(1, ClaimSet::Full { version: 1, complete: true, holds: vec![(node("n1"), 1)] });
        bench.claim(1, &[], 1, at(500));
        assert_eq!(bench.send(1, &old, at(600)), Verdict::Outdated);
        assert_eq!(bench.voter.session(id(1), at(600)), Some((session(1), at(2_500))));
        assert_eq!(bench.holder("n1", at(600)), None);
        assert_eq!(bench.send(1, &old, at(5_000)), Verdict::Outdated, "also after the session expired");
    }

    #[test]
    fn a_delta_counts_only_on_the_full_set_it_was_made_for() {
        let mut bench = Bench::new();
        let hold = |name: &str| vec![ClaimOp::Hold { node: node(name), term: 1 }];
        bench.claim(1, &["n1"], 1, at(0)); // Request 1, version 1.
        let request = bench.request(1, delta(1, 1, 2, hold("n2")));
        assert_eq!(bench.send(1, &request, at(100)), granted(2));
        let needs_full = Verdict::Granted { applied: None, refused: Vec::new() };
        for claims in [delta(7, 1, 3, hold("n3")), delta(1, 5, 6, hold("n3"))] {
            let request = bench.request(1, claims);
            assert_eq!(bench.send(1, &request, at(200)), needs_full);
        }
        assert_eq!(bench.holder("n3", at(200)), None);
        let request = bench.request(1, delta(1, 2, 3, hold("n3")));
        assert_eq!(bench.send(1, &request, at(2_200)), needs_full, "an expired session starts anew");
        assert_eq!(bench.holder("n1", at(2_200)), None);
    }

    #[test]
    fn a_repeated_delta_applies_its_changes_once_and_never_goes_back() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        let release = delta(1, 1, 2, vec![ClaimOp::Release { node: node("n1") }]);
        for _ in 0..2 {
            let request = bench.request(1, release.clone());
            assert_eq!(bench.send(1, &request, at(100)), granted(2));
        }
        let request = bench.request(1, delta(1, 0, 1, Vec::new()));
        assert_eq!(bench.send(1, &request, at(100)), granted(2));
        assert_eq!(bench.claim(2, &["n1"], 2, at(100)), granted(1), "the release freed the node at once");
    }

    #[test]
    fn only_the_last_part_of_a_full_set_drops_what_it_does_not_name() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1", "n2", "n3"], 1, at(0));
        let part = ClaimSet::Full { version: 4, complete: false, holds: vec![(node("n1"), 1)] };
        let request = bench.request(1, part);
        let full = request.seq;
        assert_eq!(bench.send(1, &request, at(100)), granted(4));
        assert_eq!(bench.holder("n2", at(100)), Some(id(1)), "its holder may be acting still");
        let request = bench.request(1, delta(full, 4, 5, vec![ClaimOp::Hold { node: node("n2"), term: 1 }]));
        assert_eq!(bench.send(1, &request, at(200)), granted(5));
        assert_eq!((bench.holder("n2", at(200)), bench.holder("n3", at(200))), (Some(id(1)), None));
    }

    #[test]
    fn terms_rise_from_holder_to_holder() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 5, at(0));
        assert_eq!(bench.claim(1, &["n1"], 5, at(10)), granted(1), "a renewal");
        let stale = refused(1, "n1", RefusalReason::StaleTerm { at_least: 5 });
        assert_eq!(bench.claim(1, &["n1"], 4, at(20)), stale, "its own term does not fall");
        bench.claim(1, &[], 0, at(30));
        let stale = refused(1, "n1", RefusalReason::StaleTerm { at_least: 6 });
        assert_eq!(bench.claim(2, &["n1"], 5, at(40)), stale, "a term is remembered after its release");
        assert_eq!(bench.claim(1, &["n1"], 5, at(50)), granted(1), "nobody else had it since");
        bench.claim(1, &[], 0, at(60));
        assert_eq!(bench.claim(2, &["n1"], 6, at(70)), granted(1));
    }

    #[test]
    fn what_the_documents_record_is_a_floor_under_new_terms() {
        let mut bench = Bench::new();
        bench.recorded = Recorded { term: 5, holder: Some(id(1)) };
        let stale = refused(1, "n1", RefusalReason::StaleTerm { at_least: 6 });
        assert_eq!(bench.claim(2, &["n1"], 5, at(0)), stale);
        assert_eq!(bench.claim(1, &["n1"], 4, at(0)), stale);
        assert_eq!(bench.claim(1, &["n1"], 5, at(0)), granted(1), "the recorded holder, to a voter that restarted");
        bench.recorded = Recorded { term: 9, holder: Some(id(2)) };
        assert_eq!(bench.claim(1, &["n1"], 5, at(10)), granted(1), "renewals go on");
    }

    #[test]
    fn a_clean_stop_frees_everything_at_once_and_for_good() {
        let mut bench = Bench::new();
        bench.claim(1, &["n1"], 1, at(0));
        let late = bench.request(1, ClaimSet::Full { version: 1, complete: true, holds: vec![(node("n1"), 1)] });
        bench.voter.on_release(id(1), &LeaseRelease { session: session(2) }, at(50));
        assert_eq!(bench.holder("n1", at(50)), Some(id(1)), "another session's farewell");
        bench.voter.on_release(id(1), &LeaseRelease { session: session(1) }, at(100));
        assert_eq!(bench.voter.session(id(1), at(100)), None);
        assert_eq!(bench.send(1, &late, at(110)), Verdict::Outdated);
        assert_eq!(bench.claim(2, &["n1"], 2, at(120)), granted(1));
    }
}
