//! The prober: decides who is there, from probes, from what other members publish, and from everything that is heard.
//!
//! SWIM (Das, Gupta, Motivala 2002) with Lifeguard (Dadgar, Phillips, Currey 2018), carried on two ways: frames of its
//! own ([`SwimFrame`]) and suspicions, which travel as gossip keys of the accuser. Every member that learns of a
//! suspicion asks the accused itself before it believes it: a verdict always rests on the own unanswered probe, so it
//! need not wait for a rumour to go around and come back, and a bad link between two members stays their affair.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::identity::MemberId;
use super::liveness::{Belief, Liveness, LivenessView};
use super::roster::Timing;
use super::time::Instant;

mod frame;
#[cfg(test)]
mod harness;
mod hear;
mod kept;
mod out;
#[cfg(test)]
mod tests;
mod tick;

pub use frame::{FRAME_BYTES_MAX, SwimFrame};
pub use out::{Cause, SwimOut};

use kept::{Probes, Relays, Suspicions};

/// Members asked to probe in our place when a direct probe got no answer; k in SWIM.
const HELPERS: usize = 3;
/// How many times longer than the shortest an unconfirmed suspicion lasts (memberlist's SuspicionMaxTimeoutMult).
const SUSPICION_MAX_FACTOR: u32 = 6;
/// Confirmations that bring a suspicion down to its shortest.
const CONFIRMATIONS: usize = 3;
/// Lifeguard 4.2: the part of the way from the longest to the shortest suspicion after c of k confirmations, in
/// thousandths: ln(c+1) / ln(k+1). A table, so that every machine computes the same.
const SHORTENED_PERMILLE: [[u32; CONFIRMATIONS + 1]; CONFIRMATIONS + 1] =
    [[1_000; 4], [0, 1_000, 1_000, 1_000], [0, 631, 1_000, 1_000], [0, 500, 792, 1_000]];
/// The worst local health (memberlist's AwarenessMaxMultiplier).
const HEALTH_MAX: u8 = 8;
/// How long after a verdict the member is first asked again, and the longest pause between two such probes.
const REPROBE_FIRST: Duration = Duration::from_secs(2);
const REPROBE_MAX: Duration = Duration::from_secs(8);
/// Periods after which a member is asked even if it talks by itself: what is known of the way to it and back stays fresh.
const ASK_AGAIN_PERIODS: u32 = 10;
/// Members above which what everybody would do at once is held back. Who was never heard is given a period for its link
/// to come up before it is probed: when hundreds start, each would ask all others, and then once more through three
/// helpers each. And a suspicion is published by some at first.
pub const CROWD: usize = 32;
/// How many of a crowd publish a suspicion that all come to at once, as when a link breaks at every end; about. Three are
/// enough to shorten the suspect's time.
const PUBLISHERS: usize = 16;
/// Requests of others that are kept at once; further ones are answered with a nack.
const RELAYS_MAX: usize = 1_024;
/// How far an accusation may be ahead of our own incarnation to be believed. A rolled-back member is dealt with by R9.
const LEAP_MAX: u64 = 1 << 20;
/// The highest incarnation taken from others; far above every honest one, so that adding one never overflows.
const INCARNATION_MAX: u64 = 1 << 62;

/// A probe under way: one at a time for a member.
#[derive(Clone, Debug)]
struct Probe {
    /// The datagram's and the helpers' number.
    seq: u32,
    /// The stream's number, once it was sent.
    reliable_seq: Option<u32>,
    started: Instant,
    /// When to ask helpers; none once they were asked.
    escalate: Option<Instant>,
    deadline: Instant,
    /// Who was asked, and whether it said that it got no answer either.
    helpers: BTreeMap<MemberId, bool>,
    /// Whether its outcome tells of our own health: those of the round do, hints come in bursts.
    of_round: bool,
}

impl Probe {
    fn due(&self) -> Instant {
        self.escalate.unwrap_or(self.deadline)
    }
}

/// A probe made for another member.
#[derive(Clone, Copy, Debug)]
struct Relay {
    origin: MemberId,
    origin_seq: u32,
    target: MemberId,
    started: Instant,
    /// When to say that there was no answer; none once it was said.
    nack: Option<Instant>,
    expires: Instant,
}

impl Relay {
    fn due(&self) -> Instant {
        self.nack.unwrap_or(self.expires)
    }
}

/// Why a member is a suspect, and since when its time runs.
#[derive(Clone, Debug)]
struct Suspicion {
    since: Instant,
    /// Who was asked in the last probe that failed.
    through: Vec<MemberId>,
}

/// What another member published about the accused.
#[derive(Clone, Copy, Debug)]
struct Accusation {
    incarnation: u64,
    at: Instant,
}

/// What is kept of each other member beside the belief.
#[derive(Clone, Debug)]
struct Peer {
    /// The smoothed time between two lease messages straight from it, and the last of them.
    cadence: Option<Duration>,
    last_lease: Option<Instant>,
    /// When a frame that is none of the prober's last came straight from it.
    last_other: Option<Instant>,
    /// Whether the present silence already brought its probe forward.
    overdue: bool,
    /// Whether its link broke since the last scan.
    link_down: bool,
    /// The incarnation at which our own suspicion is published.
    published: Option<u64>,
    /// Whether our own suspicion was left to others to publish.
    is_left_to_others: bool,
    accusers: BTreeMap<MemberId, Accusation>,
    /// When to ask a member that is down again, and the pause after that.
    reprobe: Instant,
    pause: Duration,
}

impl Peer {
    /// Returns whether so many others published their suspicion that one more would shorten no suspect's time: in a large
    /// collective everybody finds out, and each word goes to everybody.
    fn is_accused_enough(&self, incarnation: u64) -> bool {
        self.accusers.values().filter(|it| it.incarnation >= incarnation).take(CONFIRMATIONS).count() == CONFIRMATIONS
    }

    fn expect_every(&mut self, gap: Duration) {
        self.cadence = Some(self.cadence.map_or(gap, |cadence| (cadence * 7 + gap) / 8));
    }
}

/// One member's prober. Pure: time comes in, what to do comes out.
#[derive(Clone, Debug)]
pub struct Swim {
    me: MemberId,
    incarnation: u64,
    timing: Timing,
    rng: ChaCha8Rng,
    view: LivenessView,
    peers: BTreeMap<MemberId, Peer>,
    probes: Probes,
    relays: Relays,
    /// Members that the next scan looks at: who is not well, whose link broke, who talks regularly. Others cost nothing.
    watched: BTreeSet<MemberId>,
    /// Without a failed probe of our own there is no verdict.
    suspicions: Suspicions,
    /// The members in the order of this round, and how many were probed.
    order: Vec<MemberId>,
    cursor: usize,
    seq: u32,
    health: u8,
    /// When anything was heard of anybody.
    heard: Instant,
    /// The incarnation that is being saved, and who is to learn of it at once.
    raising: Option<u64>,
    accusers: BTreeSet<MemberId>,
    next_period: Instant,
    next_scan: Instant,
    leaving: bool,
}

impl Swim {
    /// Makes a prober that knows nobody yet.
    ///
    /// `incarnation` is the persisted one of this start; `seed` decides the order of probes and the choice of helpers.
    pub fn new(me: MemberId, incarnation: u64, timing: Timing, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let phase = Duration::from_millis(u64::from(rng.next_u32() % timing.probe_interval_ms.max(1)));
        let mut swim = Self {
            me,
            incarnation,
            timing,
            rng,
            view: LivenessView::default(),
            peers: BTreeMap::new(),
            probes: Probes::default(),
            relays: Relays::default(),
            watched: BTreeSet::new(),
            suspicions: Suspicions::default(),
            order: Vec::new(),
            cursor: 0,
            seq: 0,
            health: 0,
            heard: now,
            raising: None,
            accusers: BTreeSet::new(),
            next_period: now + phase,
            next_scan: now,
            leaving: false,
        };
        swim.set_members(std::iter::empty(), now);
        swim
    }

    /// Takes the members of the roster; others are ignored and forgotten.
    ///
    /// A member that is new is a suspect until something is heard of it, and is probed at the next tick; in a crowd a
    /// period later.
    pub fn set_members(&mut self, ids: impl Iterator<Item = MemberId>, now: Instant) {
        let mut ids: BTreeSet<_> = ids.collect();
        ids.insert(self.me);
        let added = self.view.retain(&ids, now);
        self.peers.retain(|id, _| ids.contains(id));
        self.probes.retain(&ids);
        self.suspicions.retain(&ids);
        self.relays.retain(|relay| ids.contains(&relay.origin) && ids.contains(&relay.target));
        self.watched.retain(|id| ids.contains(id));
        self.order.retain(|id| ids.contains(id));
        for peer in self.peers.values_mut() {
            peer.accusers.retain(|id, _| ids.contains(id));
        }
        self.cursor = self.cursor.min(self.order.len());
        for id in added {
            if id == self.me {
                self.believe_in_myself(now);
                continue;
            }
            let peer = Peer {
                cadence: None,
                last_lease: None,
                last_other: None,
                overdue: false,
                link_down: false,
                published: None,
                is_left_to_others: false,
                accusers: BTreeMap::new(),
                reprobe: now,
                pause: REPROBE_FIRST,
            };
            self.peers.insert(id, peer);
            // One period more than for a member that is known: its first link may still have to be dialled.
            let since = now + self.period();
            self.suspicions.add(id, Suspicion { since, through: Vec::new() }, false);
            self.watched.insert(id);
            let at = self.below(self.order.len() - self.cursor + 1) + self.cursor;
            self.order.insert(at, id);
            self.next_scan = now;
        }
    }

    /// Takes a frame from the member whose link it came on.
    pub fn on_frame(&mut self, from: MemberId, frame: SwimFrame, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if !self.peers.contains_key(&from) {
            return out;
        }
        if self.leaving {
            if let SwimFrame::Ping { reliable, .. } = frame {
                let farewell = SwimFrame::Leave { incarnation: self.incarnation };
                out.push(SwimOut::Send { to: from, frame: farewell, reliable });
            }
            return out;
        }
        match frame {
            SwimFrame::Ping { seq, incarnation, accuses, reliable } => {
                self.learn(from, incarnation, now, &mut out);
                self.hear(from, now, &mut out);
                let answer = SwimFrame::Ack { seq, incarnation: self.incarnation };
                out.push(SwimOut::Send { to: from, frame: answer, reliable });
                if let Some(incarnation) = accuses {
                    self.refute(from, incarnation, &mut out);
                }
            }
            SwimFrame::Ack { seq, incarnation } => {
                self.learn(from, incarnation, now, &mut out);
                self.hear(from, now, &mut out);
                self.on_ack(from, seq, incarnation, now, &mut out);
            }
            SwimFrame::PingReq { seq, target } => {
                self.hear(from, now, &mut out);
                self.on_ping_request(from, seq, target, now, &mut out);
            }
            SwimFrame::Nack { seq } => {
                self.hear(from, now, &mut out);
                self.probes.note_silence(seq, from);
            }
            SwimFrame::IndirectAck { seq, target, incarnation } => {
                self.hear(from, now, &mut out);
                let asked = |probe: &&Probe| probe.seq == seq && probe.helpers.contains_key(&from);
                if let Some(of_round) = self.probes.get(target).filter(asked).map(|probe| probe.of_round) {
                    self.probes.remove(target);
                    self.learn(target, incarnation, now, &mut out);
                    self.prove(target, Cause::Answered { through: from }, now, &mut out);
                    self.feel(if of_round { -1 } else { 0 });
                }
            }
            SwimFrame::Leave { incarnation } => self.take_farewell(from, incarnation, now, &mut out),
        }
        out
    }

    /// Takes a suspicion that `accuser` published, or none when it withdrew it.
    pub fn on_suspicion(
        &mut self,
        accuser: MemberId,
        accused: MemberId,
        incarnation: Option<u64>,
        now: Instant,
    ) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if self.leaving || !self.peers.contains_key(&accuser) || accuser == accused {
            return out;
        }
        if accused == self.me {
            if let Some(incarnation) = incarnation {
                self.refute(accuser, incarnation, &mut out);
            }
            return out;
        }
        let Some(peer) = self.peers.get_mut(&accused) else { return out };
        match incarnation {
            Some(incarnation) => {
                if incarnation > INCARNATION_MAX
                    || peer.accusers.get(&accuser).is_some_and(|known| known.incarnation >= incarnation)
                {
                    return out;
                }
                peer.accusers.insert(accuser, Accusation { incarnation, at: now });
                self.suspicions.judge_anew();
                self.take_accusation(accuser, accused, incarnation, now, &mut out);
            }
            None => {
                peer.accusers.remove(&accuser);
                self.suspicions.judge_anew();
                self.take_withdrawal(accused, now, &mut out);
            }
        }
        out
    }

    /// Takes facts about a member that gossip relayed.
    ///
    /// Only a later incarnation is news: third parties repeat the old one long after a member is gone.
    pub fn on_gossip(&mut self, member: MemberId, incarnation: u64, leaving: bool, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if self.leaving || !self.peers.contains_key(&member) {
            return out;
        }
        let is_dialled = self.view.get(member).is_some_and(|belief| self.is_being_dialled(belief, now));
        let before = self.view.get(member).map(Belief::claim);
        if leaving {
            self.take_farewell(member, incarnation, now, &mut out);
        } else {
            self.learn(member, incarnation, now, &mut out);
        }
        let after = self.view.get(member).map(Belief::claim);
        let was_away = before.is_some_and(|before| before.state != Liveness::Alive);
        if before != after && was_away && !is_dialled && !leaving {
            // Relayed word may be old by now: ask the member itself at once.
            self.start_probe(member, false, now, &mut out);
        }
        out
    }

    /// Takes note that an authenticated frame came straight from a member, which is neither a [`SwimFrame`] nor about
    /// leases.
    pub fn heard(&mut self, member: MemberId, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if !self.leaving {
            self.hear_other(member, now, &mut out);
        }
        out
    }

    /// Takes note that a lease message came straight from a member. It comes again within a third of T, so silence says
    /// something soon.
    pub fn heard_lease(&mut self, member: MemberId, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if !self.leaving {
            self.hear_lease(member, now, &mut out);
        }
        out
    }

    /// Takes note that the link to a member broke: a hint, which brings its next probe forward to the next tick.
    pub fn link_down(&mut self, member: MemberId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.link_down = true;
            self.watched.insert(member);
            self.next_scan = self.next_scan.min(now);
        }
    }

    /// Does everything that is due.
    ///
    /// A call that comes more than two periods late means that this process was paused, and everybody else may have
    /// answered meanwhile: the health score rises, suspects get their time anew, and no verdict is given.
    pub fn tick(&mut self, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if self.leaving {
            return out;
        }
        if now.since(self.next_due()) > self.period() * 2 {
            self.wake_from_pause(now);
            return out;
        }
        self.tick_probes(now, &mut out);
        self.tick_relays(now, &mut out);
        if now >= self.next_scan {
            self.scan(now, &mut out);
            self.next_scan = now + self.period() / 5;
        }
        self.judge(now, &mut out);
        if now >= self.next_period {
            self.probe_next(now, &mut out);
            // Lifeguard 4.1: who does not feel well probes less often.
            self.next_period = now + self.period() * (u32::from(self.health) + 1);
        }
        out
    }

    /// Takes note that an incarnation asked for by [`SwimOut::RaiseIncarnation`] is durable, and tells the accusers.
    pub fn incarnation_saved(&mut self, incarnation: u64) -> Vec<SwimOut> {
        self.incarnation = self.incarnation.max(incarnation);
        if self.raising.is_some_and(|raising| raising <= self.incarnation) {
            self.raising = None;
        }
        if let Some(belief) = self.view.get_mut(self.me) {
            belief.incarnation = self.incarnation;
        }
        let mut out = Vec::new();
        for to in std::mem::take(&mut self.accusers) {
            self.send_ping(to, None, true, &mut out);
        }
        out
    }

    /// Says farewell to every member, twice over, and stops probing.
    pub fn leave(&mut self, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        for to in self.peers.keys() {
            // Those who seem to be away get the datagram only: a stream would first have to dial them.
            for reliable in [false, true].into_iter().filter(|reliable| !reliable || self.view.is_up(*to)) {
                let frame = SwimFrame::Leave { incarnation: self.incarnation };
                out.push(SwimOut::Send { to: *to, frame, reliable });
            }
        }
        self.leaving = true;
        self.probes.clear();
        self.relays.clear();
        self.view.turn(self.me, Liveness::Left, now);
        out
    }

    /// Turns every member that is down into a fresh suspect: quorum came back, and with it the old verdicts' worth.
    pub fn reconsider(&mut self, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        // R12: what a member concluded while it was cut off says nothing about the others.
        for id in self.in_state(|state| state == Liveness::Down) {
            self.suspect(id, now + self.period(), Cause::Reconsidered, now, &mut out);
            self.start_probe(id, false, now, &mut out);
        }
        out
    }

    /// Returns what is believed.
    pub fn view(&self) -> &LivenessView {
        &self.view
    }

    /// Returns our own incarnation, the last one that is durable.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Returns the local health score: 0 is well, 8 is worst.
    pub fn health(&self) -> u8 {
        self.health
    }

    /// Returns when [`Swim::tick`] is to be called next.
    pub fn next_due(&self) -> Instant {
        if self.leaving {
            return Instant::from_nanos(u64::MAX);
        }
        let due = [self.probes.next_due(), self.relays.next_due(), self.verdict_due()];
        due.into_iter().flatten().fold(self.next_period.min(self.next_scan), Instant::min)
    }
}

/// Helpers.
impl Swim {
    /// Returns whether our own suspicion is to be published now. In a crowd some do, and the others a period later, when
    /// their next probe fails and they have not heard of enough.
    fn is_to_publish(&mut self, accused: MemberId, incarnation: u64) -> bool {
        let is_drawn = self.view.len() <= CROWD || self.below(self.view.len()) < PUBLISHERS;
        let Some(peer) = self.peers.get_mut(&accused) else { return false };
        if peer.published == Some(incarnation) || peer.is_accused_enough(incarnation) {
            return false;
        }
        is_drawn || std::mem::replace(&mut peer.is_left_to_others, true)
    }

    /// Returns whether a member is left to its link for a while: in a crowd, who was never heard.
    fn is_being_dialled(&self, belief: &Belief, now: Instant) -> bool {
        self.view.len() > CROWD && belief.last_heard.is_none() && now.since(belief.since) < self.period()
    }

    /// Returns when the time of the first suspect is up.
    fn verdict_due(&self) -> Option<Instant> {
        self.suspicions.next_due(self.view.changes(), || self.next_verdict())
    }

    fn next_verdict(&self) -> Option<Instant> {
        self.suspicions.own().map(|(id, it)| it.since + self.patience(id)).min()
    }

    fn believe_in_myself(&mut self, now: Instant) {
        self.view.turn(self.me, if self.leaving { Liveness::Left } else { Liveness::Alive }, now);
        if let Some(belief) = self.view.get_mut(self.me) {
            belief.incarnation = self.incarnation;
        }
    }

    /// Sets a belief, says so, and takes back our suspicion of a member that is well.
    fn believe(&mut self, member: MemberId, to: Liveness, cause: Cause, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(from) = self.view.get(member).map(|belief| belief.state) else { return };
        if to != Liveness::Suspect {
            self.suspicions.remove(member);
        }
        if to == Liveness::Left {
            self.probes.remove(member);
        }
        if let Some(peer) = self.peers.get_mut(&member)
            && matches!(to, Liveness::Alive | Liveness::Left)
        {
            peer.is_left_to_others = false;
            if peer.published.take().is_some() {
                out.push(SwimOut::ClearSuspicion { accused: member });
            }
        }
        if from != to {
            if to != Liveness::Alive {
                self.watched.insert(member);
            }
            self.view.turn(member, to, now);
            out.push(SwimOut::Changed { member, from, to, cause });
        }
    }

    /// Makes a member a suspect whose time runs from `since`, or from earlier when it is one already.
    fn suspect(&mut self, member: MemberId, since: Instant, cause: Cause, now: Instant, out: &mut Vec<SwimOut>) {
        let was_heard = self.view.get(member).is_some_and(|belief| belief.last_heard.is_some());
        let suspicion = Suspicion { since, through: Vec::new() };
        self.suspicions.add(member, suspicion, was_heard && cause != Cause::Reconsidered);
        self.believe(member, Liveness::Suspect, cause, now, out);
    }

    fn start_probe(&mut self, member: MemberId, of_round: bool, now: Instant, out: &mut Vec<SwimOut>) {
        if !self.peers.contains_key(&member) || self.probes.contains(member) {
            return;
        }
        let seq = self.send_ping(member, self.published(member), false, out);
        let probe = Probe {
            seq,
            reliable_seq: None,
            started: now,
            escalate: Some(now + self.timeout()),
            deadline: now + self.probe_period(),
            helpers: BTreeMap::new(),
            of_round,
        };
        self.probes.insert(member, probe);
    }

    fn send_ping(&mut self, to: MemberId, accuses: Option<u64>, reliable: bool, out: &mut Vec<SwimOut>) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        let frame = SwimFrame::Ping { seq: self.seq, incarnation: self.incarnation, accuses, reliable };
        out.push(SwimOut::Send { to, frame, reliable });
        self.seq
    }

    /// Draws up to k members that are there, alive ones before suspects. Every one is asked when there are no more:
    /// memberlist #350, where the only third member was missed.
    fn choose_helpers(&mut self, target: MemberId) -> Vec<MemberId> {
        let mut chosen = Vec::new();
        for wanted in [Liveness::Alive, Liveness::Suspect] {
            let mut pool = self.in_state(|state| state == wanted);
            pool.retain(|id| *id != target && *id != self.me);
            while chosen.len() < HELPERS && !pool.is_empty() {
                let at = self.below(pool.len());
                chosen.push(pool.swap_remove(at));
            }
        }
        chosen
    }

    fn in_state(&self, wanted: impl Fn(Liveness) -> bool) -> Vec<MemberId> {
        self.view.iter().filter(|(_, belief)| wanted(belief.state)).map(|(id, _)| id).collect()
    }

    fn published(&self, member: MemberId) -> Option<u64> {
        self.peers.get(&member).and_then(|peer| peer.published)
    }

    /// Returns how long a suspect has, given who confirms it (Lifeguard 4.2).
    ///
    /// Only members that are well can confirm, so a member that suspects everybody waits no longer than one that is
    /// confirmed by everybody: it is on the small side of a split.
    fn patience(&self, accused: MemberId) -> Duration {
        let Some((belief, peer)) = self.view.get(accused).zip(self.peers.get(&accused)) else { return Duration::MAX };
        let counts = |by: &MemberId, it: &Accusation| {
            it.incarnation >= belief.incarnation
                && belief.last_heard.is_none_or(|heard| it.at >= heard)
                && self.view.is_up(*by)
        };
        let confirmed = peer.accusers.iter().filter(|(by, it)| counts(by, it)).take(CONFIRMATIONS).count();
        let able = self.view.iter().filter(|(id, it)| *id != accused && *id != self.me && it.state == Liveness::Alive);
        let expected = able.take(CONFIRMATIONS).count().max(confirmed);
        let shortened = SHORTENED_PERMILLE[expected][confirmed];
        let min = self.suspicion_min();
        let max = min * SUSPICION_MAX_FACTOR;
        max - (max - min) * shortened / 1_000
    }

    /// Returns the shortest suspicion: `suspicion_mult` periods, twice that above 100 members.
    ///
    /// memberlist multiplies by log10 of the number of members, for the refutation has to reach everybody by gossip.
    /// Here every member asks the suspect itself, so only the way of the accusation counts: 1.3 s to all of 100.
    fn suspicion_min(&self) -> Duration {
        let scale = if self.view.len() > 100 { 2 } else { 1 };
        self.period() * u32::from(self.timing.suspicion_mult) * scale
    }

    fn period(&self) -> Duration {
        Duration::from_millis(u64::from(self.timing.probe_interval_ms.max(1)))
    }

    /// Returns how long a whole probe may take: a period, and up to three when we are not well (Lifeguard 4.1).
    fn probe_period(&self) -> Duration {
        self.period() * (u32::from(self.health) + 4) / 4
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.timing.probe_timeout_ms)).min(self.period())
    }

    /// Returns what is left of a period for the helpers.
    fn escalation_window(&self) -> Duration {
        self.period().saturating_sub(self.timeout())
    }

    fn feel(&mut self, change: i32) {
        let score = i32::from(self.health).saturating_add(change).clamp(0, i32::from(HEALTH_MAX));
        self.health = u8::try_from(score).unwrap_or(HEALTH_MAX);
    }

    /// Draws a number below `end`, which is at least 1; the bias of the remainder does not matter here.
    fn below(&mut self, end: usize) -> usize {
        self.rng.next_u32() as usize % end.max(1)
    }
}

fn duration_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
