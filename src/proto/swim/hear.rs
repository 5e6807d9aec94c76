//! What the prober makes of what it hears: answers, requests, farewells, accusations.

use super::{Cause, INCARNATION_MAX, LEAP_MAX, RELAYS_MAX, Relay, Swim, SwimFrame, SwimOut, duration_nanos};
use crate::proto::identity::MemberId;
use crate::proto::liveness::{Claim, Liveness};
use crate::proto::time::Instant;

impl Swim {
    /// Takes an incarnation that the member itself told, directly or by gossip.
    pub(super) fn learn(&mut self, member: MemberId, incarnation: u64, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get_mut(member) else { return };
        let told = Claim { state: Liveness::Alive, incarnation };
        if incarnation > INCARNATION_MAX || !told.overrides(belief.claim()) {
            return;
        }
        let unheard = belief.incarnation == 0 && belief.last_heard.is_none();
        belief.incarnation = incarnation;
        self.suspicions.judge_anew();
        // The first word of a member may be an old one, passed on for a while: no proof that it is there.
        if !unheard || belief.state == Liveness::Alive {
            self.believe(member, Liveness::Alive, Cause::Incarnation(incarnation), now, out);
        }
    }

    /// Takes a frame that is none of the prober's.
    pub(super) fn hear_other(&mut self, member: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.last_other = Some(now);
        }
        self.hear(member, now, out);
    }

    /// Takes a lease message: besides being evidence of life, it tells how often to expect one.
    pub(super) fn hear_lease(&mut self, member: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        if let Some(peer) = self.peers.get_mut(&member) {
            if let Some(last) = peer.last_lease.replace(now) {
                peer.expect_every(now.since(last));
                self.watched.insert(member);
            }
            peer.overdue = false;
        }
        self.hear_other(member, now, out);
    }

    /// Takes direct evidence of life.
    pub(super) fn hear(&mut self, member: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        let (Some(belief), Some(peer)) = (self.view.get_mut(member), self.peers.get_mut(&member)) else { return };
        belief.last_heard = Some(now);
        let is_well = belief.state == Liveness::Alive;
        if std::mem::take(&mut peer.overdue)
            && let Some(last) = peer.last_lease
        {
            // It is there and asks for no lease: what has become rare is not expected soon. Without this a member and one
            // that was a voter would go on asking each other for ever.
            peer.expect_every(now.since(last));
        }
        self.heard = now;
        if !is_well {
            self.prove(member, Cause::Heard, now, out);
        }
    }

    /// Takes evidence that a member was alive just now. Who said farewell comes back with a later incarnation only.
    pub(super) fn prove(&mut self, member: MemberId, cause: Cause, now: Instant, out: &mut Vec<SwimOut>) {
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

    pub(super) fn on_ack(&mut self, from: MemberId, seq: u32, incarnation: u64, now: Instant, out: &mut Vec<SwimOut>) {
        if let Some(relay) = self.relays.get(seq).copied().filter(|relay| relay.target == from) {
            self.relays.remove(seq);
            let frame = SwimFrame::IndirectAck { seq: relay.origin_seq, target: from, incarnation };
            out.push(SwimOut::Send { to: relay.origin, frame, reliable: false });
        }
        let Some(probe) = self.probes.get(from) else { return };
        if probe.seq != seq && probe.reliable_seq != Some(seq) {
            return;
        }
        let (on_time, of_round, started) = (probe.escalate.is_some(), probe.of_round, probe.started);
        self.probes.remove(from);
        if let Some(belief) = self.view.get_mut(from) {
            belief.last_ack = Some(now);
            if on_time {
                belief.probed(Some(now.since(started)));
            }
        }
        self.feel(if of_round { -1 } else { 0 });
    }

    pub(super) fn on_ping_request(
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

    pub(super) fn take_farewell(&mut self, member: MemberId, incarnation: u64, now: Instant, out: &mut Vec<SwimOut>) {
        let told = Claim { state: Liveness::Left, incarnation };
        let Some(belief) = self.view.get_mut(member) else { return };
        if incarnation <= INCARNATION_MAX && told.overrides(belief.claim()) {
            belief.incarnation = incarnation;
            self.believe(member, Liveness::Left, Cause::Farewell, now, out);
        }
    }

    pub(super) fn take_accusation(
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
            self.suspicions.judge_anew();
            self.suspicions.remove(accused);
        }
        // The accuser needed a period to find out, so that much of the suspect's time is over, unless we heard of it.
        let before = Instant::from_nanos(now.as_nanos().saturating_sub(duration_nanos(period)));
        let since = belief.last_heard.map_or(before, |heard| heard.max(before));
        self.suspect(accused, since, Cause::Accused { by }, now, out);
        self.start_probe(accused, false, now, out);
    }

    pub(super) fn take_withdrawal(&mut self, accused: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get(accused) else { return };
        let accused_still = self.peers.get(&accused).is_some_and(|peer| !peer.accusers.is_empty());
        let own = self.suspicions.is_own(accused);
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
    pub(super) fn refute(&mut self, accuser: MemberId, incarnation: u64, out: &mut Vec<SwimOut>) {
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
