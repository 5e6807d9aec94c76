//! The holder: whether this member has quorum and may act for a node, from the voters' answers and its own clock.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use super::super::identity::{MemberId, RosterHash, SessionId};
use super::super::name::NodeName;
use super::super::planted::{Bug, Planted};
use super::super::quorum::{Quorum, majority};
use super::super::roster::{Roster, Version};
use super::super::time::Instant;
use super::ledger::Ledger;
use super::peer::{Answer, Peer};
use super::{LeaseAck, LeaseRequest, RefusalReason, Stamp, Stamps, Verdict};

/// Of two voters that ask each other, one does so this part of a round early.
const EARLY: u32 = 16;

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
    /// When every voter is asked, however lately it was: there is something new to say.
    hurried_at: Instant,
    peers: BTreeMap<MemberId, Peer>,
    /// The grants that count, once they were asked for under a roster: several times at every event, while few events
    /// bring one. Emptied whenever a grant comes or goes.
    counted: OnceLock<Counted>,
    /// When the first voter is asked if nothing hurries, under the roster of that version. Emptied whenever one was asked
    /// or answers.
    asked_at: OnceLock<(Version, Option<Instant>)>,
    stamps: Stamps,
    /// The last request that was sent when this member's own counters rose last.
    raised_at_seq: u64,
    /// A voter knows higher counters of this member than its own (R9).
    is_disowned: bool,
    planted: Planted,
}

/// The grants that count under one roster; the longest first.
#[derive(Clone, Debug)]
struct Counted {
    under: RosterHash,
    grants: Vec<Usable>,
}

/// What is asked of a voter's grant at every event. Changes with the grant only, as all of it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Usable {
    /// The end of what may be used of it.
    end: Instant,
    voter: MemberId,
    /// The version of the claim set that it covers.
    applied: Option<u64>,
    /// Whether it refuses some of those claims.
    refuses: bool,
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
            hurried_at: Instant::ZERO,
            peers: BTreeMap::new(),
            counted: OnceLock::new(),
            asked_at: OnceLock::new(),
            stamps: Stamps::default(),
            raised_at_seq: 0,
            is_disowned: false,
            planted: Planted::default(),
        }
    }

    /// Notes that this member's counters rose: requests that were sent before show lower ones than others may have heard
    /// of since.
    pub fn on_raised(&mut self) {
        self.raised_at_seq = self.seq;
    }

    /// Returns whether a voter knows of a later run of this member than this one: its disk is an old one, or its identity
    /// runs elsewhere too.
    pub const fn is_disowned(&self) -> bool {
        self.is_disowned
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
        self.hurried_at = self.hurried_at.min(now);
    }

    /// Gives a node up: [`Holder::acts`] is false for it from this moment on.
    pub fn release(&mut self, node: &NodeName, now: Instant) {
        if self.ledger.hold(node).is_some() {
            // R10: the claim's number is gone, so late acknowledgements of it count for nothing.
            self.ledger.record(node.clone(), None);
            self.pending.remove(node);
            self.hurried_at = self.hurried_at.min(now);
        }
    }

    /// Gives every node up. R12: without quorum nothing is claimed.
    pub fn release_all(&mut self, now: Instant) {
        if self.ledger.holds().next().is_some() {
            self.ledger.clear();
            self.dropped_at_seq = self.seq;
            self.pending.clear();
            self.hurried_at = self.hurried_at.min(now);
        }
    }

    /// Makes the next round due, as when an epoch was learnt. R7.
    pub fn hurry(&mut self) {
        self.hurried_at = Instant::ZERO;
        self.asked_at = OnceLock::new();
        for peer in self.peers.values_mut() {
            peer.stream_until = None;
        }
    }

    /// Returns when [`Holder::tick`] next has something to send; an instant in the past when it is due.
    pub fn next_due(&self, roster: &Roster) -> Instant {
        let (of, due) = *self.asked_at.get_or_init(|| (roster.version, self.first_asked_at(roster)));
        let due = if of == roster.version { due } else { self.first_asked_at(roster) };
        due.into_iter().fold(self.hurried_at, Instant::min)
    }

    fn first_asked_at(&self, roster: &Roster) -> Option<Instant> {
        self.voting(roster).flat_map(|(_, peer)| [Some(peer.round_at), peer.due_at()]).flatten().min()
    }

    /// Returns those of the peers that are voters. Mostly all of them are, so both are walked side by side.
    fn voting(&self, roster: &Roster) -> impl Iterator<Item = (MemberId, &Peer)> {
        let mut voters = roster.voters().iter().peekable();
        let mut is_voter = move |id: &MemberId| {
            while voters.next_if(|voter| *voter < id).is_some() {}
            voters.next_if_eq(&id).is_some()
        };
        self.peers.iter().filter(move |(id, _)| is_voter(id)).map(|(id, peer)| (*id, peer))
    }

    /// Takes note that a voter asks this member, who answers now: our own question, if it is due within half a round,
    /// goes along in the same packet. From then on both ask in the same instant, though neither waits for the other.
    pub fn meet(&mut self, voter: MemberId, roster: &Roster, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&voter).filter(|peer| peer.round_at < now + roster.timing.renewal() / 2)
        {
            peer.round_at = peer.round_at.min(now);
            self.asked_at = OnceLock::new();
        }
    }

    /// Returns the requests that are due, at most one a voter.
    ///
    /// `stamp` are this member's counters, `seated` its standing. R4: a round every T/6, and at once when there is
    /// something new to say.
    pub fn tick(&mut self, roster: &Roster, stamp: Stamp, seated: bool, now: Instant) -> Vec<(MemberId, LeaseRequest)> {
        if self.next_due(roster) > now {
            return Vec::new();
        }
        self.asked_at = OnceLock::new();
        if roster.member(self.me).is_none() {
            // R8: a removed member asks for nothing more.
            self.peers.clear();
            self.counted = OnceLock::new();
            self.hurried_at = now + roster.timing.renewal();
            return Vec::new();
        }
        let voters = roster.voters();
        if !self.peers.keys().eq(voters) {
            self.peers.retain(|id, _| voters.contains(id));
            for id in voters {
                self.peers.entry(*id).or_default();
            }
            self.counted = OnceLock::new();
        }
        let is_hurried = self.hurried_at <= now;
        if is_hurried {
            self.hurried_at = Instant::from_nanos(u64::MAX);
        }
        self.drop_releases();
        let mark = roster.mark();
        let mut requests = Vec::new();
        for (id, peer) in &mut self.peers {
            let pace = pace(self.me, *id, roster);
            let is_due = peer.due_at().is_some_and(|due| due <= now);
            let is_streaming = peer.stream_until.is_some_and(|until| until > now);
            let is_round = is_hurried || peer.round_at <= now;
            if is_round || is_due {
                peer.round_at = now + pace;
            }
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
            requests.push((*id, request));
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
        self.asked_at = OnceLock::new();
        self.stamps.remember(from, ack.stamp);
        let round_trip = now.since(sent.at);
        if ack.verdict == Verdict::RolledBack && ack.seq > self.raised_at_seq {
            // R9: whoever voted before may not be this disk, and another may vote in its place.
            self.is_disowned = true;
            self.counted = OnceLock::new();
        }
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
        let mark = roster.mark();
        let usable = if self.planted.has(Bug::NoMargin) { roster.timing.lease() } else { roster.timing.usable() };
        let mut grants = Vec::new();
        // R5: only a member of the current roster, and only grants under that very roster.
        if roster.member(self.me).is_some() {
            let counts = |voter: MemberId| !(self.is_disowned && voter == self.me);
            for (voter, peer) in self.voting(roster).filter(|(voter, _)| counts(*voter)) {
                if let Some(grant) = peer.grant.filter(|grant| grant.version == roster.version && grant.mark == mark) {
                    // R5: counted from when it was asked for, not from when the answer came.
                    let (end, refuses) = (grant.sent_at + usable, !peer.refused.is_empty());
                    grants.push(Usable { end, voter, applied: grant.applied, refuses });
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

    fn refuses(&self, voter: MemberId, node: &NodeName, number: u64) -> bool {
        self.peers.get(&voter).is_none_or(|peer| peer.refuses(node, number))
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

/// Returns how long after a question the next one to that voter is due at the latest. R4.
///
/// Of two voters that ask each other one is a little early, so that the other's question can go along with its
/// answer; with one pace they would cross each other for ever.
fn pace(me: MemberId, voter: MemberId, roster: &Roster) -> Duration {
    let renewal = roster.timing.renewal();
    if me <= voter { renewal - renewal / EARLY } else { renewal }
}

/// The grants that count under one roster, the longest first.
///
/// Grants of other rosters, however new, are left out; nothing in it depends on the time.
#[derive(Clone, Debug)]
pub struct Grants<'a> {
    holder: &'a Holder,
    voters: usize,
    /// See [`Counted`].
    grants: Cow<'a, [Usable]>,
}

impl Grants<'_> {
    /// Returns how many voters' grants have not expired.
    pub fn quorum(&self, now: Instant) -> Quorum {
        let granted = self.grants.iter().filter(|grant| grant.end > now).count();
        let is_shrinking = self.holder.planted.has(Bug::ShrinkingQuorum) && granted > 0;
        Quorum { granted, voters: if is_shrinking { granted } else { self.voters } }
    }

    /// Returns the voters whose grants have not expired.
    pub fn granted(&self, now: Instant) -> BTreeSet<MemberId> {
        self.grants.iter().filter(|grant| grant.end > now).map(|grant| grant.voter).collect()
    }

    /// Returns until when one voter's grant may be used, which may be over already.
    pub fn until(&self, voter: MemberId) -> Option<Instant> {
        self.grants.iter().find(|grant| grant.voter == voter).map(|grant| grant.end)
    }

    /// Returns when the majority runs out: the end of the last grant it cannot do without.
    pub fn quorum_until(&self) -> Option<Instant> {
        self.grants.get(majority(self.voters) - 1).map(|grant| grant.end)
    }

    /// Returns until when this member may act for a node, which may be over already.
    ///
    /// None when it does not claim the node or no majority confirmed the claim under this roster. R5.
    pub fn acts_until(&self, node: &NodeName) -> Option<Instant> {
        let (number, _) = self.holder.ledger.hold(node)?;
        let number = if self.holder.planted.has(Bug::UnconfirmedClaims) { 0 } else { number };
        let refuses = |grant: &Usable| grant.refuses && self.holder.refuses(grant.voter, node, number);
        let covers = |grant: &Usable| grant.applied.is_some_and(|applied| applied >= number);
        let mut confirming = self.grants.iter().filter(|grant| covers(grant) && !refuses(grant));
        confirming.nth(majority(self.voters) - 1).map(|grant| grant.end)
    }

    /// Returns whether this member may act for a node at this moment. R5.
    pub fn acts(&self, node: &NodeName, now: Instant) -> bool {
        self.acts_until(node).is_some_and(|end| end > now)
    }
}

#[cfg(test)]
mod tests;
