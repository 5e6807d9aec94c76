//! The holder: whether this member has quorum and may act for a node, from the voters' answers and its own clock.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use super::super::identity::{MemberId, RosterHash, SessionId};
use super::super::name::NodeName;
use super::super::planted::{Bug, Planted};
use super::super::quorum::{Quorum, majority};
use super::super::roster::{Member, Roster};
use super::super::time::Instant;
use super::ledger::Ledger;
use super::peer::{Answer, Peer};
use super::{LeaseAck, LeaseRequest, RefusalReason, Stamp, Stamps, Verdict};

/// A node this session claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Which node.
    pub node: &'a NodeName,
    /// By which term.
    pub term: u64,
    /// Whether a majority has confirmed it once. It may act only while [`Holder::acts`] says so.
    pub is_confirmed: bool,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimEvent {
    /// A majority confirmed it for the first time.
    Confirmed {
        /// Which node.
        node: NodeName,
        /// By which term.
        term: u64,
    },
    /// A voter refused it before a majority confirmed it. It is asked again once the reason may have passed.
    Refused {
        /// Which node.
        node: NodeName,
        /// By which term.
        term: u64,
        /// Why.
        reason: RefusalReason,
        /// Which voter.
        by: MemberId,
    },
}

/// The asker's side of the leases: one session of one member.
#[derive(Clone, Debug)]
pub struct Holder {
    me: MemberId,
    session: SessionId,
    ledger: Ledger,
    /// The last request that was sent when releases were last dropped from the ledger.
    dropped_at_seq: u64,
    /// Claims that no majority has confirmed yet.
    pending: BTreeSet<NodeName>,
    seq: u64,
    next_round: Instant,
    peers: BTreeMap<MemberId, Peer>,
    /// The grants that count, once they were asked for under a roster: several times at every event, while few events
    /// bring one. Emptied whenever a grant comes or goes.
    counted: OnceLock<Counted>,
    stamps: Stamps,
    planted: Planted,
}

/// The end of what may be used of each grant under one roster, and whose it is; the longest first.
#[derive(Clone, Debug)]
struct Counted {
    under: RosterHash,
    grants: Vec<(Instant, MemberId)>,
}

impl Holder {
    /// Makes the holder of a new session, which claims nothing and whose first round is due.
    pub fn new(me: MemberId, session: SessionId) -> Self {
        Self {
            me,
            session,
            ledger: Ledger::default(),
            dropped_at_seq: 0,
            pending: BTreeSet::new(),
            seq: 0,
            next_round: Instant::ZERO,
            peers: BTreeMap::new(),
            counted: OnceLock::new(),
            stamps: Stamps::default(),
            planted: Planted::default(),
        }
    }

    /// Plants bugs, for the simulator to find.
    pub(crate) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
        self.stamps.planted = planted;
    }

    /// Returns this session.
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Claims a node by a term and makes the next round due. A claim that is there already stays as it is.
    pub fn claim(&mut self, node: NodeName, term: u64, now: Instant) {
        if self.ledger.hold(&node).is_some_and(|(_, held)| held == term) {
            return;
        }
        self.ledger.record(node.clone(), Some(term));
        self.pending.insert(node);
        self.next_round = self.next_round.min(now);
    }

    /// Gives a node up: [`Holder::acts`] is false for it from this moment on.
    pub fn release(&mut self, node: &NodeName, now: Instant) {
        if self.ledger.hold(node).is_some() {
            // R10: the claim's number is gone, so late acknowledgements of it count for nothing.
            self.ledger.record(node.clone(), None);
            self.pending.remove(node);
            self.next_round = self.next_round.min(now);
        }
    }

    /// Gives every node up. R12: without quorum nothing is claimed.
    pub fn release_all(&mut self, now: Instant) {
        if self.ledger.holds().next().is_some() {
            self.ledger.clear();
            self.dropped_at_seq = self.seq;
            self.pending.clear();
            self.next_round = self.next_round.min(now);
        }
    }

    /// Makes the next round due, as when an epoch was learnt. R7.
    pub fn hurry(&mut self) {
        self.next_round = Instant::ZERO;
        for peer in self.peers.values_mut() {
            peer.stream_until = None;
        }
    }

    /// Returns when [`Holder::tick`] next has something to send; an instant in the past when it is due.
    pub fn next_due(&self, roster: &Roster) -> Instant {
        let is_voter = |id: &MemberId| roster.member(*id).is_some_and(Member::is_voter);
        let peers = self.peers.iter().filter_map(|(id, peer)| Some((id, peer.due_at()?)));
        peers.filter(|(id, _)| is_voter(id)).map(|(_, due)| due).fold(self.next_round, Instant::min)
    }

    /// Returns the requests that are due, at most one a voter.
    ///
    /// `stamp` are this member's counters, `seated` its standing. R4: a round every T/6, and at once when there is
    /// something new to say.
    pub fn tick(&mut self, roster: &Roster, stamp: Stamp, seated: bool, now: Instant) -> Vec<(MemberId, LeaseRequest)> {
        if self.next_due(roster) > now {
            return Vec::new();
        }
        if roster.member(self.me).is_none() {
            // R8: a removed member asks for nothing more.
            self.peers.clear();
            self.counted = OnceLock::new();
            self.next_round = now + roster.timing.renewal();
            return Vec::new();
        }
        let voters = roster.voters();
        self.peers.retain(|id, _| voters.contains(id));
        self.counted = OnceLock::new();
        let is_round = self.next_round <= now;
        if is_round {
            self.next_round = now + roster.timing.renewal();
            self.drop_releases();
        }
        let mark = roster.mark();
        let mut requests = Vec::new();
        for id in voters.iter().copied() {
            let peer = self.peers.entry(id).or_default();
            let is_due = peer.due_at().is_some_and(|due| due <= now);
            let is_streaming = peer.stream_until.is_some_and(|until| until > now);
            if is_streaming || !(is_due || is_round) {
                continue;
            }
            self.seq += 1;
            let (claims, retried) = peer.next_claims(&self.ledger, self.dropped_at_seq, now);
            let (version, session, seq) = (roster.version, self.session, self.seq);
            let mut request = LeaseRequest { version, mark, session, stamp, seq, seated, claims };
            let is_small = request.is_small();
            if is_small || peer.has_credit {
                peer.note_sent(&request, retried, is_small, now);
            } else {
                request.claims = peer.nothing_new();
                peer.note_sent(&request, Vec::new(), true, now);
            }
            if !is_small && peer.has_credit {
                peer.has_credit = false;
                peer.stream_until = Some(now + roster.timing.renewal() * 2);
            }
            requests.push((id, request));
        }
        requests
    }

    /// Reads a voter's answer and returns what became of claims by it.
    ///
    /// Answers of another session, to a request that is not outstanding, or with counters lower than seen before (R9)
    /// are ignored.
    pub fn on_ack(&mut self, roster: &Roster, from: MemberId, ack: &LeaseAck, now: Instant) -> Vec<ClaimEvent> {
        let Some(peer) = self.peers.get_mut(&from) else { return Vec::new() };
        if ack.session != self.session || !self.stamps.admit(from, ack.stamp) {
            return Vec::new();
        }
        let Some(mut sent) = peer.take_sent(ack.seq) else { return Vec::new() };
        self.stamps.remember(from, ack.stamp);
        let round_trip = now.since(sent.at);
        let verdict = ack.verdict.without_refusals();
        peer.last_ack = Some(Answer { sent_at: sent.at, round_trip, verdict });
        let Verdict::Granted { applied, refused } = &ack.verdict else { return Vec::new() };
        if self.planted.has(Bug::CountedFromAnswer) {
            sent.at = now;
        }
        peer.has_credit = true;
        self.counted = OnceLock::new();
        let mut events = Vec::new();
        if peer.on_grant(ack, &sent, *applied) {
            events = peer.on_refusals(from, (ack.seq, refused), &sent, &self.ledger, &self.pending, now);
        }
        peer.is_due = peer.owes(&self.ledger, self.dropped_at_seq);
        events.extend(self.newly_confirmed(roster, now));
        events
    }

    /// Notes a voter's counters, read from disk or seen elsewhere. R9.
    pub fn remember(&mut self, member: MemberId, stamp: Stamp) {
        self.stamps.remember(member, stamp);
    }

    /// Returns the grants that count under a roster, to answer many questions about the same roster.
    pub fn under(&self, roster: &Roster) -> Grants<'_> {
        let counted = self.counted.get_or_init(|| self.count(roster));
        let grants = if counted.under == roster.hash() {
            Cow::Borrowed(&counted.grants[..])
        } else {
            Cow::Owned(self.count(roster).grants)
        };
        let voters = roster.voters().len();
        // Half of the voters is a majority of two less.
        let is_half = self.planted.has(Bug::HalfIsQuorum) && voters > 2;
        Grants { holder: self, voters: voters - if is_half { 2 } else { 0 }, grants }
    }

    fn count(&self, roster: &Roster) -> Counted {
        let (voters, mark) = (roster.voters(), roster.mark());
        let usable = if self.planted.has(Bug::NoMargin) { roster.timing.lease() } else { roster.timing.usable() };
        let mut grants = Vec::new();
        // R5: only a member of the current roster, and only grants under that very roster.
        if roster.member(self.me).is_some() {
            for (id, peer) in self.peers.iter().filter(|(id, _)| voters.contains(id)) {
                if let Some(grant) = peer.grant.filter(|grant| grant.version == roster.version && grant.mark == mark) {
                    // R5: counted from when it was asked for, not from when the answer came.
                    grants.push((grant.sent_at + usable, *id));
                }
            }
        }
        grants.sort_by(|a, b| b.cmp(a));
        Counted { under: roster.hash(), grants }
    }

    /// Returns how many voters' grants have not expired. R5 without the claim.
    pub fn quorum(&self, roster: &Roster, now: Instant) -> Quorum {
        self.under(roster).quorum(now)
    }

    /// Returns when the present majority runs out; none when there was none under this roster.
    pub fn quorum_until(&self, roster: &Roster) -> Option<Instant> {
        self.under(roster).quorum_until()
    }

    /// Returns until when this member may act for a node; see [`Grants::acts_until`].
    pub fn acts_until(&self, roster: &Roster, node: &NodeName) -> Option<Instant> {
        self.under(roster).acts_until(node)
    }

    /// Returns whether this member may act for a node at this moment. R5: never to be cached.
    pub fn acts(&self, roster: &Roster, node: &NodeName, now: Instant) -> bool {
        self.under(roster).acts(node, now)
    }

    /// Returns every node this session claims, in order.
    pub fn claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.ledger.holds().map(|(node, term)| Claim { node, term, is_confirmed: !self.pending.contains(node) })
    }

    /// Returns when the request was sent that a voter answered last.
    pub fn last_ack(&self, voter: MemberId) -> Option<Instant> {
        self.answer(voter).map(|answer| answer.sent_at)
    }

    /// Returns how long a voter's last answer took.
    pub fn round_trip(&self, voter: MemberId) -> Option<Duration> {
        self.answer(voter).map(|answer| answer.round_trip)
    }

    /// Returns what a voter answered last, without the refusals.
    pub fn verdict(&self, voter: MemberId) -> Option<&Verdict> {
        self.answer(voter).map(|answer| &answer.verdict)
    }

    fn answer(&self, voter: MemberId) -> Option<&Answer> {
        self.peers.get(&voter)?.last_ack.as_ref()
    }

    /// Takes the claims that a majority confirms by now out of the pending ones.
    fn newly_confirmed(&mut self, roster: &Roster, now: Instant) -> Vec<ClaimEvent> {
        if self.pending.is_empty() {
            return Vec::new();
        }
        let grants = self.under(roster);
        let mut events = Vec::new();
        for node in &self.pending {
            if let Some((_, term)) = self.ledger.hold(node).filter(|_| grants.acts(node, now)) {
                events.push(ClaimEvent::Confirmed { node: node.clone(), term });
            }
        }
        for event in &events {
            if let ClaimEvent::Confirmed { node, .. } = event {
                self.pending.remove(node);
            }
        }
        events
    }

    /// Forgets releases that every voter has applied or will hear of by a full set.
    fn drop_releases(&mut self) {
        if !self.ledger.has_releases() {
            return;
        }
        let applied = self.peers.values().flat_map(|peer| {
            let sent = peer.outstanding.iter().map(|(_, sent)| sent.version).filter(|version| *version > 0);
            sent.chain(peer.progress.map(|progress| progress.base))
        });
        let dropped = self.ledger.dropped();
        self.ledger.drop_releases(applied.min().unwrap_or_else(|| self.ledger.version()));
        if self.ledger.dropped() > dropped {
            self.dropped_at_seq = self.seq;
        }
    }
}

/// The grants that count under one roster, the longest first.
///
/// Grants of other rosters, however new, are left out; nothing in it depends on the time.
#[derive(Clone, Debug)]
pub struct Grants<'a> {
    holder: &'a Holder,
    voters: usize,
    /// See [`Counted`].
    grants: Cow<'a, [(Instant, MemberId)]>,
}

impl Grants<'_> {
    /// Returns how many voters' grants have not expired.
    pub fn quorum(&self, now: Instant) -> Quorum {
        let granted = self.grants.iter().filter(|(end, _)| *end > now).count();
        let is_shrinking = self.holder.planted.has(Bug::ShrinkingQuorum) && granted > 0;
        Quorum { granted, voters: if is_shrinking { granted } else { self.voters } }
    }

    /// Returns the voters whose grants have not expired.
    pub fn granted(&self, now: Instant) -> BTreeSet<MemberId> {
        self.grants.iter().filter(|(end, _)| *end > now).map(|(_, voter)| *voter).collect()
    }

    /// Returns until when one voter's grant may be used, which may be over already.
    pub fn until(&self, voter: MemberId) -> Option<Instant> {
        self.grants.iter().find(|(_, granting)| *granting == voter).map(|(end, _)| *end)
    }

    /// Returns when the majority runs out: the end of the last grant it cannot do without.
    pub fn quorum_until(&self) -> Option<Instant> {
        self.grants.get(majority(self.voters) - 1).map(|(end, _)| *end)
    }

    /// Returns until when this member may act for a node, which may be over already.
    ///
    /// None when it does not claim the node or no majority confirmed the claim under this roster. R5.
    pub fn acts_until(&self, node: &NodeName) -> Option<Instant> {
        let (number, _) = self.holder.ledger.hold(node)?;
        let number = if self.holder.planted.has(Bug::UnconfirmedClaims) { 0 } else { number };
        let is_confirming =
            |voter: &MemberId| self.holder.peers.get(voter).is_some_and(|peer| peer.confirms(node, number));
        let mut ends = self.grants.iter().filter(|(_, voter)| is_confirming(voter)).map(|(end, _)| *end);
        ends.nth(majority(self.voters) - 1)
    }

    /// Returns whether this member may act for a node at this moment. R5.
    pub fn acts(&self, node: &NodeName, now: Instant) -> bool {
        self.acts_until(node).is_some_and(|end| end > now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::roster::Change;
    use super::super::Voter;
    use super::super::fixture::{TIMING, add, at, changed, id, node, roster, session, stamp};
    use super::super::voter::Recorded;
    use super::*;

    /// Member 1's holder and the voters it asks, some of which may be away.
    struct Bench {
        roster: Roster,
        holder: Holder,
        voters: BTreeMap<u8, Voter>,
    }

    impl Bench {
        fn new(voters: u8) -> Self {
            let make = |number| (number, Voter::new(session(100 + number), at(0), TIMING, true));
            let holder = Holder::new(id(1), session(1));
            Self { roster: roster(voters), holder, voters: (1..=voters).map(make).collect() }
        }

        fn tick(&mut self, now: Instant) -> Vec<(MemberId, LeaseRequest)> {
            self.holder.tick(&self.roster, stamp(1), true, now)
        }

        fn answer(&mut self, voter: u8, request: &LeaseRequest, now: Instant) -> LeaseAck {
            let voter = self.voters.get_mut(&voter).expect("a voter that is there");
            voter.on_request(&self.roster, stamp(1), id(1), request, &|_| Recorded::default(), now)
        }

        fn on_ack(&mut self, voter: u8, ack: &LeaseAck, now: Instant) -> Vec<ClaimEvent> {
            self.holder.on_ack(&self.roster, id(voter), ack, now)
        }

        /// One round in no time with the voters that are there.
        fn round(&mut self, now: Instant) -> Vec<ClaimEvent> {
            self.holder.hurry();
            let mut events = Vec::new();
            for (to, request) in self.tick(now) {
                if self.voters.contains_key(&to.0[0]) {
                    let ack = self.answer(to.0[0], &request, now);
                    events.extend(self.on_ack(to.0[0], &ack, now));
                }
            }
            events
        }

        fn acts(&self, now: Instant) -> bool {
            self.holder.acts(&self.roster, &node("n1"), now)
        }

        /// Lets another member hold a node at some voters.
        fn held_by_other(&mut self, voters: &[u8], term: u64, now: Instant) {
            let mut other = Holder::new(id(2), session(2));
            other.claim(node("n1"), term, now);
            for (to, request) in other.tick(&self.roster, stamp(1), true, now) {
                if voters.contains(&to.0[0]) {
                    let voter = self.voters.get_mut(&to.0[0]).expect("a voter that is there");
                    voter.on_request(&self.roster, stamp(1), id(2), &request, &|_| Recorded::default(), now);
                }
            }
        }
    }

    fn confirmed(term: u64) -> ClaimEvent {
        ClaimEvent::Confirmed { node: node("n1"), term }
    }

    #[test]
    fn a_majority_lets_a_member_act_until_its_grants_could_end() {
        let mut bench = Bench::new(3);
        bench.holder.claim(node("n1"), 1, at(0));
        assert!(!bench.acts(at(0)));
        assert_eq!(bench.round(at(0)), [confirmed(1)], "once, though three voters confirm");
        assert_eq!(bench.holder.acts_until(&bench.roster, &node("n1")), Some(at(1_900)));
        assert_eq!(bench.holder.quorum_until(&bench.roster), Some(at(1_900)));
        assert!(bench.acts(at(1_899)));
        assert!(!bench.acts(at(1_900)), "R5: T(1-m) after the request was sent");
        assert_eq!(bench.holder.quorum(&bench.roster, at(1_899)), Quorum { granted: 3, voters: 3 });
        assert_eq!(bench.holder.quorum(&bench.roster, at(1_900)), Quorum { granted: 0, voters: 3 });
    }

    #[test]
    fn half_of_the_voters_is_no_majority() {
        let mut bench = Bench::new(4);
        bench.voters.retain(|voter, _| *voter <= 2);
        bench.holder.claim(node("n1"), 1, at(0));
        assert!(bench.round(at(0)).is_empty());
        assert!(!bench.acts(at(0)) && bench.holder.quorum_until(&bench.roster).is_none());
    }

    #[test]
    fn a_grant_counts_from_when_it_was_asked_for() {
        // R5. Counted from the answer, member 1 would act until 3,500 while voters are free to confirm others from
        // 2,000 on: they counted from when they read the request.
        let mut bench = Bench::new(3);
        bench.holder.claim(node("n1"), 1, at(0));
        let acks: Vec<_> =
            bench.tick(at(0)).iter().map(|(to, request)| bench.answer(to.0[0], request, at(0))).collect();
        for (voter, ack) in (1..).zip(&acks) {
            bench.on_ack(voter, ack, at(1_600));
        }
        assert!(bench.acts(at(1_899)) && !bench.acts(at(1_900)));
        bench.held_by_other(&[2, 3], 2, at(2_000));
        let others = bench.voters.values().filter(|voter| voter.holder(&node("n1"), at(2_000)).is_some());
        assert_eq!(others.count(), 2, "another member has a majority before 1,600 + 1,900");
    }

    #[test]
    fn quorum_lasts_as_long_as_the_grants_of_a_majority() {
        let mut bench = Bench::new(3);
        bench.round(at(0));
        let away = bench.voters.remove(&3);
        bench.round(at(500));
        bench.voters.remove(&2);
        bench.round(at(1_000));
        assert_eq!(bench.holder.quorum_until(&bench.roster), Some(at(2_400)));
        bench.voters.extend(away.map(|voter| (3, voter)));
        bench.round(at(1_500));
        assert_eq!(bench.holder.quorum_until(&bench.roster), Some(at(3_400)));
    }

    #[test]
    fn a_released_claim_never_acts_again() {
        // R10: the answer to the claim comes after the release, and after the node was claimed anew.
        let mut bench = Bench::new(3);
        bench.holder.claim(node("n1"), 1, at(0));
        let requests = bench.tick(at(0));
        let acks: Vec<_> = requests.iter().map(|(to, request)| bench.answer(to.0[0], request, at(0))).collect();
        bench.holder.release(&node("n1"), at(10));
        assert!(bench.on_ack(1, &acks[0], at(20)).is_empty() && bench.on_ack(2, &acks[1], at(20)).is_empty());
        assert!(!bench.acts(at(20)));
        bench.holder.claim(node("n1"), 1, at(30));
        assert!(bench.on_ack(3, &acks[2], at(40)).is_empty());
        assert!(!bench.acts(at(40)), "the claim is newer than what the voters confirmed");
        assert_eq!(bench.round(at(50)), [confirmed(1)]);
        assert!(bench.acts(at(50)));
        bench.holder.release(&node("n1"), at(60));
        assert!(!bench.acts(at(60)), "from this very moment");
        bench.round(at(70));
        assert!(bench.voters.values().all(|voter| voter.holder(&node("n1"), at(70)).is_none()));
    }

    #[test]
    fn another_term_is_another_claim() {
        let mut bench = Bench::new(3);
        bench.holder.claim(node("n1"), 1, at(0));
        bench.round(at(0));
        bench.holder.claim(node("n1"), 1, at(10));
        assert!(bench.acts(at(10)), "the same claim again changes nothing");
        bench.holder.claim(node("n1"), 2, at(20));
        assert!(!bench.acts(at(20)));
        assert_eq!(bench.round(at(30)), [confirmed(2)]);
    }

    #[test]
    fn grants_of_another_roster_do_not_count() {
        // R5: the ack's epoch must be mine.
        let mut bench = Bench::new(3);
        bench.holder.claim(node("n1"), 1, at(0));
        bench.round(at(0));
        let next = changed(&bench.roster, &add(4));
        assert!(!bench.holder.acts(&next, &node("n1"), at(10)));
        assert_eq!(bench.holder.quorum(&next, at(10)), Quorum { granted: 0, voters: 3 });
        let mut other = bench.roster.clone();
        other.previous.0[0] ^= 1;
        assert!(!bench.holder.acts(&other, &node("n1"), at(10)), "same version, other mark");
        bench.roster = next;
        bench.round(at(20));
        assert!(bench.acts(at(20)), "the voters adopted it too");
    }

    #[test]
    fn who_is_not_on_the_roster_never_acts_and_asks_nobody() {
        let mut bench = Bench::new(3);
        bench.holder = Holder::new(id(3), session(3));
        let without = changed(&bench.roster, &Change::Remove { id: id(3) });
        assert_eq!(bench.holder.tick(&bench.roster, stamp(1), true, at(0)).len(), 3);
        bench.holder.hurry();
        assert!(bench.holder.tick(&without, stamp(1), true, at(10)).is_empty());
        assert!(bench.holder.next_due(&without) > at(10), "and does not keep its caller awake");
        assert_eq!(bench.holder.quorum(&without, at(10)), Quorum { granted: 0, voters: 2 });
    }

    #[test]
    fn a_refused_claim_does_not_count_and_is_asked_again_when_the_reason_has_passed() {
        let mut bench = Bench::new(3);
        bench.held_by_other(&[2, 3], 1, at(0));
        bench.holder.claim(node("n1"), 2, at(100));
        let events = bench.round(at(100));
        let reason = RefusalReason::Held { by: id(2), for_ms: 1_900 };
        let refused = |by| ClaimEvent::Refused { node: node("n1"), term: 2, reason, by: id(by) };
        assert_eq!(events, [refused(2), refused(3)]);
        assert!(bench.round(at(1_000)).is_empty(), "it is not asked again too early");
        assert!(!bench.acts(at(1_000)), "a later grant without refusals does not confirm it");
        assert_eq!(bench.round(at(2_000)), [confirmed(2)]);
        assert!(bench.acts(at(2_000)));
    }

    #[test]
    fn a_pending_claim_is_due_again_when_its_holder_expires() {
        let mut bench = Bench::new(3);
        bench.held_by_other(&[2, 3], 1, at(0));
        bench.holder.claim(node("n1"), 2, at(100));
        bench.round(at(1_900));
        assert_eq!(bench.holder.next_due(&bench.roster), at(2_000));
        let requests = bench.tick(at(2_000));
        assert_eq!(requests.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [id(2), id(3)]);
    }

    #[test]
    fn a_refusal_of_a_former_claim_says_nothing_of_the_present_one() {
        let mut bench = Bench::new(3);
        bench.held_by_other(&[2, 3], 1, at(0));
        bench.holder.claim(node("n1"), 2, at(100));
        let (_, request) = bench.tick(at(100)).swap_remove(1);
        let ack = bench.answer(2, &request, at(100));
        bench.holder.claim(node("n1"), 3, at(110));
        assert!(bench.on_ack(2, &ack, at(120)).is_empty());
        assert_eq!(bench.round(at(2_000)), [confirmed(3)]);
    }

    #[test]
    fn a_lost_refusal_is_told_again() {
        let mut bench = Bench::new(3);
        bench.voters.remove(&1);
        bench.round(at(0)); // The empty full set is acknowledged.
        bench.held_by_other(&[2, 3], 1, at(0));
        bench.holder.claim(node("n1"), 2, at(100));
        for (to, request) in bench.tick(at(100)).iter().skip(1) {
            bench.answer(to.0[0], request, at(100)); // The answers are lost.
        }
        let events = bench.round(at(200));
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(!bench.acts(at(200)));
    }

    #[test]
    fn a_voter_that_restarted_is_told_everything_again() {
        let mut bench = Bench::new(3);
        bench.voters.remove(&3);
        bench.holder.claim(node("n1"), 1, at(0));
        bench.round(at(0));
        bench.voters.insert(2, Voter::new(session(202), at(100), TIMING, true));
        bench.round(at(100));
        assert!(!bench.acts(at(100)), "two voters are left and one of them has forgotten");
        assert_eq!(bench.holder.quorum(&bench.roster, at(100)).granted, 2, "the session itself is granted");
        assert_eq!(bench.holder.next_due(&bench.roster), Instant::ZERO, "it is told at once");
        bench.round(at(110));
        assert!(bench.acts(at(110)));
    }

    #[test]
    fn a_grant_of_a_restarted_voter_says_nothing_of_what_the_former_one_acknowledged() {
        // A copy of an old request rebuilds the full set at a restarted voter, which refuses the claim meanwhile.
        let mut bench = Bench::new(3);
        bench.voters.remove(&1);
        bench.holder.claim(node("n1"), 2, at(0));
        let requests = bench.tick(at(0));
        for (to, request) in requests.iter().skip(1) {
            let ack = bench.answer(to.0[0], request, at(0));
            bench.on_ack(to.0[0], &ack, at(0));
        }
        bench.round(at(1_500));
        assert!(bench.acts(at(1_500)));
        bench.voters.insert(3, Voter::new(session(203), at(2_500), TIMING, true));
        bench.held_by_other(&[3], 1, at(2_500));
        bench.answer(3, &requests[2].1, at(2_600));
        bench.round(at(2_700));
        assert!(!bench.acts(at(2_700)), "voter 3 confirmed it to another member");
    }

    #[test]
    fn an_answer_of_a_voter_whose_counters_went_back_is_ignored() {
        // R9.
        let mut bench = Bench::new(3);
        bench.holder.remember(id(2), Stamp { incarnation: 1, sequence: 2 });
        bench.holder.remember(id(3), Stamp { incarnation: 2, sequence: 0 });
        bench.round(at(0));
        assert_eq!(bench.holder.quorum(&bench.roster, at(0)).granted, 1);
        assert!(bench.holder.last_ack(id(2)).is_none() && bench.holder.verdict(id(3)).is_none());
    }

    #[test]
    fn answers_to_others_to_nothing_and_to_what_is_long_answered_are_ignored() {
        let mut bench = Bench::new(3);
        let (_, request) = bench.tick(at(0)).swap_remove(1);
        let ack = bench.answer(2, &request, at(0));
        bench.on_ack(2, &LeaseAck { session: session(9), ..ack.clone() }, at(10));
        bench.on_ack(2, &LeaseAck { seq: 77, ..ack.clone() }, at(10));
        bench.on_ack(7, &ack, at(10));
        assert_eq!(bench.holder.quorum(&bench.roster, at(10)).granted, 0);
        bench.holder.hurry();
        let (_, later) = bench.tick(at(100)).swap_remove(1);
        let later = bench.answer(2, &later, at(100));
        bench.on_ack(2, &later, at(120));
        assert_eq!(bench.holder.last_ack(id(2)), Some(at(100)));
        assert_eq!(bench.holder.round_trip(id(2)), Some(Duration::from_millis(20)));
        bench.on_ack(2, &ack, at(130));
        assert_eq!(bench.holder.last_ack(id(2)), Some(at(100)), "an answer overtaken by a later one");
    }

    #[test]
    fn rounds_come_every_sixth_of_t_and_at_once_when_there_is_news() {
        let mut bench = Bench::new(3);
        assert_eq!(bench.tick(at(0)).len(), 3);
        assert!(bench.tick(at(333)).is_empty());
        assert_eq!(bench.tick(at(334)).len(), 3);
        bench.holder.claim(node("n1"), 1, at(340));
        assert!(bench.holder.next_due(&bench.roster) <= at(340));
        assert_eq!(bench.tick(at(340)).len(), 3);
        bench.holder.release(&node("n1"), at(350));
        assert_eq!(bench.tick(at(350)).len(), 3);
        bench.holder.hurry();
        assert_eq!(bench.tick(at(360)).len(), 3);
    }

    #[test]
    fn without_quorum_every_claim_is_forgotten_in_one_small_message() {
        let mut bench = Bench::new(3);
        for i in 0..500 {
            bench.holder.claim(node(&format!("n{i}")), 1, at(0));
        }
        bench.round(at(0));
        bench.round(at(10));
        assert_eq!(bench.voters[&2].held_by(id(1), at(10)).len(), 500);
        bench.holder.release_all(at(20));
        assert!(!bench.acts(at(20)) && bench.holder.claims().next().is_none());
        assert!(bench.tick(at(20)).iter().all(|(_, request)| request.is_small()));
        bench.round(at(30)); // That message was lost, which the voters say now.
        bench.round(at(40));
        assert!(bench.voters[&2].held_by(id(1), at(40)).is_empty());
    }

    #[test]
    fn ten_thousand_claims_are_confirmed_in_a_few_exchanges_and_renewed_in_one_datagram() {
        let mut bench = Bench::new(3);
        for i in 0..10_000 {
            bench.holder.claim(node(&format!("node-{i}.rack")), 1, at(0));
        }
        let (mut events, mut exchanges) = (0, 0);
        while bench.holder.next_due(&bench.roster) <= at(0) {
            exchanges += 1;
            for (to, request) in bench.tick(at(0)) {
                let ack = bench.answer(to.0[0], &request, at(0));
                events += bench.on_ack(to.0[0], &ack, at(0)).len();
            }
        }
        assert_eq!((events, exchanges), (10_000, 4), "one to see that they are there, three of 4,000 claims at most");
        assert!(bench.holder.claims().all(|claim| claim.is_confirmed && claim.term == 1));
        let renewals = bench.tick(at(1_000));
        assert!(renewals.iter().all(|(_, request)| minicbor::to_vec(request).expect("encodes").len() < 200));
    }

    #[test]
    fn a_voter_that_is_away_is_sent_little() {
        let mut bench = Bench::new(3);
        for i in 0..1_000 {
            bench.holder.claim(node(&format!("n{i}")), 1, at(0));
        }
        for round in 0..10 {
            assert!(bench.tick(at(round * 400)).iter().all(|(_, request)| request.is_small()));
        }
    }

    #[test]
    fn a_request_on_a_stream_is_not_overtaken_by_the_next_round() {
        let mut bench = Bench::new(1);
        for i in 0..1_000 {
            bench.holder.claim(node(&format!("n{i}")), 1, at(0));
        }
        bench.round(at(0));
        let bulk = bench.tick(at(0));
        assert!(bulk.len() == 1 && !bulk[0].1.is_small());
        assert!(bench.tick(at(400)).is_empty());
        let renewal = bench.tick(at(734));
        assert!(renewal.len() == 1 && renewal[0].1.is_small(), "but the session is renewed before it expires");
        let ack = bench.answer(1, &renewal[0].1, at(734));
        bench.on_ack(1, &ack, at(734));
        let bulk = bench.tick(at(734));
        let ack = bench.answer(1, &bulk[0].1, at(734));
        assert_eq!(bench.on_ack(1, &ack, at(734)).len(), 1_000);
    }

    #[test]
    fn a_voter_far_away_is_kept_in_step() {
        // The round trip takes three rounds: answers to replaced full sets keep coming.
        let mut bench = Bench::new(1);
        bench.holder.claim(node("n1"), 1, at(0));
        let mut acks: Vec<(u64, LeaseAck)> = Vec::new();
        for ms in (0..6_000).step_by(50) {
            let (due, later) = acks.into_iter().partition(|(when, _)| *when <= ms);
            acks = later;
            for (_, ack) in due {
                bench.on_ack(1, &ack, at(ms));
            }
            for (_, request) in bench.tick(at(ms)) {
                acks.push((ms + 1_000, bench.answer(1, &request, at(ms + 500))));
            }
            assert!(ms < 2_500 || bench.acts(at(ms)), "lost at {ms}");
        }
    }

    #[test]
    fn releases_are_dropped_once_every_voter_knows() {
        let mut bench = Bench::new(3);
        let away = bench.voters.remove(&3).expect("a voter");
        for i in 0..100 {
            bench.holder.claim(node(&format!("n{i}")), 1, at(i));
            bench.round(at(i));
            bench.holder.release(&node(&format!("n{i}")), at(i));
            bench.round(at(i));
        }
        for ms in 100..120 {
            bench.round(at(ms));
        }
        assert!(!bench.holder.ledger.has_releases());
        bench.voters.insert(3, away);
        bench.holder.claim(node("n1"), 9, at(130));
        bench.voters.remove(&2);
        bench.round(at(130));
        bench.round(at(131));
        assert!(bench.acts(at(131)), "who was away starts from the full set");
    }
}
