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
use super::liveness::{Belief, Claim, Liveness, LivenessView};
use super::roster::Timing;
use super::time::Instant;

mod frame;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod tests;

pub use frame::{FRAME_BYTES_MAX, SwimFrame};

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
/// Requests of others that are kept at once; further ones are answered with a nack.
const RELAYS_MAX: usize = 1_024;
/// How far an accusation may be ahead of our own incarnation to be believed. A rolled-back member is dealt with by R9.
const LEAP_MAX: u64 = 1 << 20;
/// The highest incarnation taken from others; far above every honest one, so that adding one never overflows.
const INCARNATION_MAX: u64 = 1 << 62;

/// What the prober asks its caller to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwimOut {
    /// Send a frame.
    Send {
        /// To whom.
        to: MemberId,
        /// What.
        frame: SwimFrame,
        /// Whether it goes on a stream; a datagram otherwise.
        reliable: bool,
    },
    /// Publish that we suspect a member: the gossip key `sus.<accused>` = incarnation.
    PublishSuspicion {
        /// Who got no answer to us.
        accused: MemberId,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// Withdraw that key.
    ClearSuspicion {
        /// Who is no longer suspected by us.
        accused: MemberId,
    },
    /// Save our incarnation durably, then call [`Swim::incarnation_saved`] and publish it.
    RaiseIncarnation {
        /// The incarnation to save.
        to: u64,
    },
    /// The belief about a member changed.
    Changed {
        /// About whom.
        member: MemberId,
        /// What was believed.
        from: Liveness,
        /// What is believed now.
        to: Liveness,
        /// Why.
        cause: Cause,
    },
}

/// Why a belief changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Something came straight from it.
    Heard,
    /// It answered a probe that we asked another member to make.
    Answered {
        /// The member that was asked.
        through: MemberId,
    },
    /// A later incarnation of it was heard of: it restarted, or refuted a suspicion.
    Incarnation(u64),
    /// It answered neither us nor those we asked to try.
    Silent {
        /// Who else tried.
        through: Vec<MemberId>,
        /// How long nothing came straight from it; none when nothing ever did.
        silence: Option<Duration>,
    },
    /// Another member suspects it.
    Accused {
        /// Which one.
        by: MemberId,
    },
    /// Those who suspected it took it back.
    Withdrawn,
    /// It said that it leaves.
    Farewell,
    /// R12: quorum came back, so everybody believed to be down gets a fresh chance.
    Reconsidered,
}

impl Cause {
    /// Returns the words for a log line, such as "no answer direct or through mgt2 for 5.2s".
    pub fn describe(&self, name: impl Fn(MemberId) -> String) -> String {
        match self {
            Self::Heard => "it was heard".to_owned(),
            Self::Answered { through } => format!("it answered {}", name(*through)),
            Self::Incarnation(incarnation) => format!("its incarnation {incarnation} was heard of"),
            Self::Silent { through, silence } => {
                let through = match through.as_slice() {
                    [] => String::new(),
                    some => format!(" or through {}", some.iter().map(|id| name(*id)).collect::<Vec<_>>().join(", ")),
                };
                let silence = match silence {
                    Some(silence) => format!(" for {}.{}s", silence.as_secs(), silence.subsec_millis() / 100),
                    None => ", ever".to_owned(),
                };
                format!("no answer direct{through}{silence}")
            }
            Self::Accused { by } => format!("{} gets no answer from it", name(*by)),
            Self::Withdrawn => "nobody suspects it any more".to_owned(),
            Self::Farewell => "it said farewell".to_owned(),
            Self::Reconsidered => "quorum came back".to_owned(),
        }
    }
}

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

/// Why a member is a suspect, and since when its time runs.
#[derive(Clone, Debug)]
struct Suspicion {
    since: Instant,
    /// Whether a probe of our own failed; without that there is no verdict.
    own: bool,
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
    /// The smoothed time between two frames straight from it.
    cadence: Option<Duration>,
    /// Whether the present silence already brought its probe forward.
    overdue: bool,
    /// Whether its link broke since the last scan.
    link_down: bool,
    /// The incarnation at which our own suspicion is published.
    published: Option<u64>,
    accusers: BTreeMap<MemberId, Accusation>,
    /// When to ask a member that is down again, and the pause after that.
    reprobe: Instant,
    pause: Duration,
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
    probes: BTreeMap<MemberId, Probe>,
    relays: BTreeMap<u32, Relay>,
    suspicions: BTreeMap<MemberId, Suspicion>,
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
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            suspicions: BTreeMap::new(),
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
    /// A member that is new is a suspect until something is heard of it, and is probed at the next tick.
    pub fn set_members(&mut self, ids: impl Iterator<Item = MemberId>, now: Instant) {
        let mut ids: BTreeSet<_> = ids.collect();
        ids.insert(self.me);
        let added = self.view.retain(&ids, now);
        self.peers.retain(|id, _| ids.contains(id));
        self.probes.retain(|id, _| ids.contains(id));
        self.suspicions.retain(|id, _| ids.contains(id));
        self.relays.retain(|_, relay| ids.contains(&relay.origin) && ids.contains(&relay.target));
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
                overdue: false,
                link_down: false,
                published: None,
                accusers: BTreeMap::new(),
                reprobe: now,
                pause: REPROBE_FIRST,
            };
            self.peers.insert(id, peer);
            // One period more than for a member that is known: its first link may still have to be dialled.
            let since = now + self.period();
            self.suspicions.insert(id, Suspicion { since, own: false, through: Vec::new() });
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
                if let Some(said) = self
                    .probes
                    .values_mut()
                    .find(|probe| probe.seq == seq)
                    .and_then(|probe| probe.helpers.get_mut(&from))
                {
                    *said = true;
                }
            }
            SwimFrame::IndirectAck { seq, target, incarnation } => {
                self.hear(from, now, &mut out);
                let asked = |probe: &&Probe| probe.seq == seq && probe.helpers.contains_key(&from);
                if let Some(of_round) = self.probes.get(&target).filter(asked).map(|probe| probe.of_round) {
                    self.probes.remove(&target);
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
                self.take_accusation(accuser, accused, incarnation, now, &mut out);
            }
            None => {
                peer.accusers.remove(&accuser);
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
        let before = self.view.get(member).map(Belief::claim);
        if leaving {
            self.take_farewell(member, incarnation, now, &mut out);
        } else {
            self.learn(member, incarnation, now, &mut out);
        }
        let after = self.view.get(member).map(Belief::claim);
        if before != after && before.is_some_and(|before| before.state != Liveness::Alive) && !leaving {
            // Relayed word may be old by now: ask the member itself at once.
            self.start_probe(member, false, now, &mut out);
        }
        out
    }

    /// Takes note that an authenticated frame of any kind came straight from a member.
    pub fn heard(&mut self, member: MemberId, now: Instant) -> Vec<SwimOut> {
        let mut out = Vec::new();
        if !self.leaving && self.peers.contains_key(&member) {
            self.hear(member, now, &mut out);
        }
        out
    }

    /// Takes note that the link to a member broke: a hint, which brings its next probe forward to the next tick.
    pub fn link_down(&mut self, member: MemberId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.link_down = true;
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
        if let Some(belief) = self.view.get_mut(self.me) {
            belief.state = Liveness::Left;
            belief.since = now;
        }
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
        let probes = self.probes.values().map(Probe::due);
        let relays = self.relays.values().map(|relay| relay.nack.unwrap_or(relay.expires));
        let verdicts = self.suspicions.iter().filter(|(_, it)| it.own).map(|(id, it)| it.since + self.patience(*id));
        probes.chain(relays).chain(verdicts).fold(self.next_period.min(self.next_scan), Instant::min)
    }
}

/// What is heard of members.
impl Swim {
    /// Takes an incarnation that the member itself told, directly or by gossip.
    fn learn(&mut self, member: MemberId, incarnation: u64, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get_mut(member) else { return };
        let told = Claim { state: Liveness::Alive, incarnation };
        if incarnation > INCARNATION_MAX || !told.overrides(belief.claim()) {
            return;
        }
        let unheard = belief.incarnation == 0 && belief.last_heard.is_none();
        belief.incarnation = incarnation;
        // The first word of a member may be an old one, passed on for a while: no proof that it is there.
        if !unheard || belief.state == Liveness::Alive {
            self.believe(member, Liveness::Alive, Cause::Incarnation(incarnation), now, out);
        }
    }

    /// Takes direct evidence of life.
    fn hear(&mut self, member: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        let (Some(belief), Some(peer)) = (self.view.get_mut(member), self.peers.get_mut(&member)) else { return };
        if let Some(last) = belief.last_heard {
            let gap = now.since(last);
            peer.cadence = Some(peer.cadence.map_or(gap, |cadence| (cadence * 7 + gap) / 8));
        }
        belief.last_heard = Some(now);
        peer.overdue = false;
        self.heard = now;
        self.prove(member, Cause::Heard, now, out);
    }

    /// Takes evidence that a member was alive just now. Who said farewell comes back with a later incarnation only.
    fn prove(&mut self, member: MemberId, cause: Cause, now: Instant, out: &mut Vec<SwimOut>) {
        match self.view.get(member).map(|belief| belief.state) {
            None | Some(Liveness::Left | Liveness::Alive) => {}
            Some(Liveness::Suspect) => self.believe(member, Liveness::Alive, cause, now, out),
            Some(Liveness::Down) => {
                self.believe(member, Liveness::Alive, cause, now, out);
                // One of them is back: the network may have healed, so ask the others at once.
                for other in self.in_state(|state| state == Liveness::Down) {
                    self.start_probe(other, false, now, out);
                }
            }
        }
    }

    fn on_ack(&mut self, from: MemberId, seq: u32, incarnation: u64, now: Instant, out: &mut Vec<SwimOut>) {
        if let Some(relay) = self.relays.get(&seq).copied().filter(|relay| relay.target == from) {
            self.relays.remove(&seq);
            let frame = SwimFrame::IndirectAck { seq: relay.origin_seq, target: from, incarnation };
            out.push(SwimOut::Send { to: relay.origin, frame, reliable: false });
        }
        let Some(probe) = self.probes.get(&from) else { return };
        if probe.seq != seq && probe.reliable_seq != Some(seq) {
            return;
        }
        let (on_time, of_round, started) = (probe.escalate.is_some(), probe.of_round, probe.started);
        self.probes.remove(&from);
        if let Some(belief) = self.view.get_mut(from) {
            belief.last_ack = Some(now);
            if on_time {
                belief.probed(Some(now.since(started)));
            }
        }
        self.feel(if of_round { -1 } else { 0 });
    }

    fn on_ping_request(
        &mut self,
        origin: MemberId,
        origin_seq: u32,
        target: MemberId,
        now: Instant,
        out: &mut Vec<SwimOut>,
    ) {
        let answer = if target == self.me {
            SwimFrame::IndirectAck { seq: origin_seq, target, incarnation: self.incarnation }
        } else if !self.peers.contains_key(&target) || self.relays.len() >= RELAYS_MAX {
            SwimFrame::Nack { seq: origin_seq }
        } else {
            let nack = Some(now + self.escalation_window() * 4 / 5);
            let seq = self.send_ping(target, None, false, out);
            let expires = now + self.period();
            self.relays.insert(seq, Relay { origin, origin_seq, target, started: now, nack, expires });
            return;
        };
        out.push(SwimOut::Send { to: origin, frame: answer, reliable: false });
    }

    fn take_farewell(&mut self, member: MemberId, incarnation: u64, now: Instant, out: &mut Vec<SwimOut>) {
        let told = Claim { state: Liveness::Left, incarnation };
        let Some(belief) = self.view.get_mut(member) else { return };
        if incarnation <= INCARNATION_MAX && told.overrides(belief.claim()) {
            belief.incarnation = incarnation;
            self.believe(member, Liveness::Left, Cause::Farewell, now, out);
        }
    }

    fn take_accusation(
        &mut self,
        by: MemberId,
        accused: MemberId,
        incarnation: u64,
        now: Instant,
        out: &mut Vec<SwimOut>,
    ) {
        // A remote suspicion, and a remote verdict too, is only a reason to ask for ourselves (memberlist state.go).
        let period = self.period();
        let Some(belief) = self.view.get_mut(accused) else { return };
        let told = Claim { state: Liveness::Suspect, incarnation };
        if !told.overrides(belief.claim()) {
            return;
        }
        if incarnation > belief.incarnation {
            // It was well at that incarnation, so the older suspicion is refuted and this one begins anew.
            belief.incarnation = incarnation;
            self.suspicions.remove(&accused);
        }
        // The accuser needed a period to find out, so that much of the suspect's time is over, unless we heard of it.
        let before = Instant::from_nanos(now.as_nanos().saturating_sub(duration_nanos(period)));
        let since = belief.last_heard.map_or(before, |heard| heard.max(before));
        self.suspect(accused, since, Cause::Accused { by }, now, out);
        self.start_probe(accused, false, now, out);
    }

    fn take_withdrawal(&mut self, accused: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get(accused) else { return };
        let accused_still = self.peers.get(&accused).is_some_and(|peer| !peer.accusers.is_empty());
        let own = self.suspicions.get(&accused).is_some_and(|suspicion| suspicion.own);
        match belief.state {
            Liveness::Suspect if !own && !accused_still && belief.last_heard.is_some() => {
                self.believe(accused, Liveness::Alive, Cause::Withdrawn, now, out);
            }
            // Somebody hears it again: worth an early question, though not a proof.
            Liveness::Down => self.start_probe(accused, false, now, out),
            Liveness::Alive | Liveness::Suspect | Liveness::Left => {}
        }
    }

    /// Refutes a suspicion against ourselves by a later incarnation. Only we raise it, and only once it is durable.
    fn refute(&mut self, accuser: MemberId, incarnation: u64, out: &mut Vec<SwimOut>) {
        if incarnation < self.incarnation {
            self.send_ping(accuser, None, true, out);
            return;
        }
        if incarnation > self.incarnation.saturating_add(LEAP_MAX) {
            return;
        }
        self.accusers.insert(accuser);
        let to = incarnation + 1;
        if self.raising.is_none_or(|raising| raising < to) {
            self.raising = Some(to);
            // Lifeguard 4.1: having to refute means that we answered too late.
            self.feel(1);
            out.push(SwimOut::RaiseIncarnation { to });
        }
    }
}

/// What time brings.
impl Swim {
    fn tick_probes(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let due: Vec<_> = self.probes.iter().filter(|(_, probe)| probe.due() <= now).map(|(id, _)| *id).collect();
        for id in due {
            if self.probes.get(&id).is_some_and(|probe| probe.escalate.is_some()) {
                self.escalate(id, out);
            }
            if self.probes.get(&id).is_some_and(|probe| probe.deadline <= now) {
                self.fail(id, now, out);
            }
        }
    }

    /// Asks k helpers, and the member itself on a stream, whose packets are repeated until they arrive.
    fn escalate(&mut self, id: MemberId, out: &mut Vec<SwimOut>) {
        let helpers = self.choose_helpers(id);
        let reliable_seq = self.send_ping(id, self.published(id), true, out);
        if let Some(belief) = self.view.get_mut(id) {
            belief.probed(None);
        }
        let Some(probe) = self.probes.get_mut(&id) else { return };
        probe.escalate = None;
        probe.reliable_seq = Some(reliable_seq);
        for to in &helpers {
            let frame = SwimFrame::PingReq { seq: probe.seq, target: id };
            out.push(SwimOut::Send { to: *to, frame, reliable: false });
        }
        probe.helpers = helpers.into_iter().map(|helper| (helper, false)).collect();
    }

    /// Ends a probe that nobody answered.
    fn fail(&mut self, id: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(probe) = self.probes.remove(&id) else { return };
        if probe.of_round {
            // Lifeguard 4.1: helpers that kept silent too point at us; with none to ask, the failure itself does.
            let silent = probe.helpers.values().filter(|said| !**said).count();
            self.feel(if probe.helpers.is_empty() { 1 } else { i32::try_from(silent).unwrap_or(i32::MAX) });
        }
        let Some(belief) = self.view.get(id).copied() else { return };
        if !belief.state.is_up() || belief.last_heard.is_some_and(|heard| heard >= probe.started) {
            return;
        }
        let through: Vec<_> = probe.helpers.into_keys().collect();
        let since = probe.started + self.timeout();
        let silence = belief.last_heard.map(|heard| now.since(heard));
        self.suspect(id, since, Cause::Silent { through: through.clone(), silence }, now, out);
        if let Some(suspicion) = self.suspicions.get_mut(&id) {
            suspicion.own = true;
            suspicion.through = through;
        }
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.published != Some(belief.incarnation)
        {
            peer.published = Some(belief.incarnation);
            out.push(SwimOut::PublishSuspicion { accused: id, incarnation: belief.incarnation });
            // Lifeguard 4.3: the accused is told first, on the way that does not lose it.
            self.send_ping(id, Some(belief.incarnation), true, out);
        }
        self.start_probe(id, false, now, out);
        if self.heard < probe.started || self.suspicions.values().filter(|suspicion| suspicion.own).count() > 1 {
            self.probe_the_silent(now, out);
        }
    }

    /// Asks everybody who was not heard for a period: we are cut off, or a whole site is.
    ///
    /// One after the other, each a stretched period later, the last of ten would be missed only after a minute.
    fn probe_the_silent(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let period = self.period();
        let silent: Vec<_> = self
            .view
            .iter()
            .filter(|(_, it)| it.state.is_up() && it.last_heard.is_none_or(|heard| now.since(heard) > period))
            .map(|(id, _)| id)
            .collect();
        for id in silent {
            self.start_probe(id, false, now, out);
        }
    }

    fn tick_relays(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let due: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.nack.unwrap_or(relay.expires) <= now)
            .map(|(seq, relay)| (*seq, *relay))
            .collect();
        for (seq, relay) in due {
            if relay.nack.is_some() {
                let frame = SwimFrame::Nack { seq: relay.origin_seq };
                out.push(SwimOut::Send { to: relay.origin, frame, reliable: false });
                self.adopt(relay, now, out);
            }
            match self.relays.get_mut(&seq) {
                Some(kept) if relay.expires > now => kept.nack = None,
                _ => drop(self.relays.remove(&seq)),
            }
        }
    }

    /// Goes on with another member's unanswered question as our own: two who ask are quicker than one who asks twice.
    fn adopt(&mut self, relay: Relay, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get(relay.target) else { return };
        if belief.state != Liveness::Alive || belief.last_heard.is_some_and(|heard| heard >= relay.started) {
            return;
        }
        self.start_probe(relay.target, false, now, out);
        let deadline = relay.started + self.probe_period();
        if let Some(probe) = self.probes.get_mut(&relay.target)
            && probe.started == now
        {
            probe.started = relay.started;
            probe.escalate = Some(now);
            probe.deadline = deadline.max(now);
        }
        self.tick_probes(now, out);
    }

    /// Brings forward the probes of members that usually talk all the time and now do not, and asks the lost again.
    fn scan(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let (period, timeout) = (self.period(), self.timeout());
        let mut ask = Vec::new();
        for (id, belief) in self.view.iter() {
            let Some(peer) = self.peers.get(&id) else { continue };
            let due = match belief.state {
                Liveness::Alive => {
                    // Lease traffic comes several times a period. Three frames missing are reason enough to ask now.
                    let regular = peer.cadence.filter(|cadence| *cadence <= period / 2);
                    let silence = belief.last_heard.map(|heard| now.since(heard));
                    let overdue =
                        regular.zip(silence).is_some_and(|(cadence, silence)| silence > (cadence * 3).max(timeout));
                    peer.link_down || (overdue && !peer.overdue)
                }
                Liveness::Suspect => true,
                Liveness::Down => peer.reprobe <= now,
                Liveness::Left => false,
            };
            if due && !self.probes.contains_key(&id) {
                ask.push((id, belief.state));
            }
        }
        for (id, state) in ask {
            let jitter = 750 + self.below(500);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.overdue = true;
                peer.link_down = false;
                if state == Liveness::Down {
                    peer.reprobe = now + peer.pause * u32::try_from(jitter).unwrap_or(1_000) / 1_000;
                    peer.pause = (peer.pause * 5 / 4).min(REPROBE_MAX);
                }
            }
            self.start_probe(id, false, now, out);
        }
    }

    /// Gives the verdicts that are due.
    fn judge(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let due: Vec<_> = self
            .suspicions
            .iter()
            .filter(|(id, suspicion)| suspicion.own && suspicion.since + self.patience(**id) <= now)
            .map(|(id, suspicion)| (*id, suspicion.through.clone()))
            .collect();
        for (id, through) in due {
            let silence = self.view.get(id).and_then(|belief| belief.last_heard).map(|heard| now.since(heard));
            self.believe(id, Liveness::Down, Cause::Silent { through, silence }, now, out);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.reprobe = now + REPROBE_FIRST;
                peer.pause = REPROBE_FIRST;
            }
        }
    }

    /// Probes the next member of the round; each round has an order of its own (SWIM 4.3).
    fn probe_next(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        for _ in 0..self.order.len() {
            if self.cursor >= self.order.len() {
                self.cursor = 0;
                for last in (1..self.order.len()).rev() {
                    let other = self.below(last + 1);
                    self.order.swap(last, other);
                }
            }
            let id = self.order[self.cursor];
            self.cursor += 1;
            if self.view.is_up(id) && !self.probes.contains_key(&id) {
                self.start_probe(id, true, now, out);
                return;
            }
        }
    }

    fn wake_from_pause(&mut self, now: Instant) {
        self.feel(1);
        self.probes.clear();
        self.relays.clear();
        for suspicion in self.suspicions.values_mut() {
            suspicion.since = suspicion.since.max(now);
        }
        self.next_scan = now + self.period() / 5;
        self.next_period = now + self.period();
    }
}

/// Helpers.
impl Swim {
    fn believe_in_myself(&mut self, now: Instant) {
        if let Some(belief) = self.view.get_mut(self.me) {
            belief.state = if self.leaving { Liveness::Left } else { Liveness::Alive };
            belief.incarnation = self.incarnation;
            belief.since = now;
        }
    }

    /// Sets a belief, says so, and takes back our suspicion of a member that is well.
    fn believe(&mut self, member: MemberId, to: Liveness, cause: Cause, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get_mut(member) else { return };
        if to != Liveness::Suspect {
            self.suspicions.remove(&member);
        }
        if to == Liveness::Left {
            self.probes.remove(&member);
        }
        if let Some(peer) = self.peers.get_mut(&member)
            && matches!(to, Liveness::Alive | Liveness::Left)
            && peer.published.take().is_some()
        {
            out.push(SwimOut::ClearSuspicion { accused: member });
        }
        let from = belief.state;
        if from != to {
            belief.state = to;
            belief.since = now;
            out.push(SwimOut::Changed { member, from, to, cause });
        }
    }

    /// Makes a member a suspect whose time runs from `since`, or from earlier when it is one already.
    fn suspect(&mut self, member: MemberId, since: Instant, cause: Cause, now: Instant, out: &mut Vec<SwimOut>) {
        let fresh = Suspicion { since, own: false, through: Vec::new() };
        let suspicion = self.suspicions.entry(member).or_insert(fresh);
        if cause != Cause::Reconsidered && self.view.get(member).is_some_and(|belief| belief.last_heard.is_some()) {
            suspicion.since = suspicion.since.min(since);
        }
        self.believe(member, Liveness::Suspect, cause, now, out);
    }

    fn start_probe(&mut self, member: MemberId, of_round: bool, now: Instant, out: &mut Vec<SwimOut>) {
        if !self.peers.contains_key(&member) || self.probes.contains_key(&member) {
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
        let confirmed = peer.accusers.iter().filter(|(by, it)| counts(by, it)).count();
        let able = self.view.iter().filter(|(id, it)| *id != accused && *id != self.me && it.state == Liveness::Alive);
        let expected = able.take(CONFIRMATIONS).count().max(confirmed.min(CONFIRMATIONS));
        let shortened = SHORTENED_PERMILLE[expected][confirmed.min(CONFIRMATIONS)];
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
