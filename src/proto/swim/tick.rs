//! What the prober does when time passes: escalates, gives up, asks again, judges.

use super::{ASK_AGAIN_PERIODS, CROWD, Cause, REPROBE_FIRST, REPROBE_MAX, Relay, Swim, SwimFrame, SwimOut};
use crate::proto::identity::MemberId;
use crate::proto::liveness::Liveness;
use crate::proto::time::Instant;

impl Swim {
    pub(super) fn tick_probes(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        for id in self.probes.due_by(now) {
            if self.probes.get(id).is_some_and(|probe| probe.escalate.is_some()) {
                self.escalate(id, out);
            }
            if self.probes.get(id).is_some_and(|probe| probe.deadline <= now) {
                self.fail(id, now, out);
            }
        }
    }

    /// Asks k helpers, and the member itself on a stream, whose packets are repeated until they arrive.
    pub(super) fn escalate(&mut self, id: MemberId, out: &mut Vec<SwimOut>) {
        let helpers = self.choose_helpers(id);
        let reliable_seq = self.send_ping(id, self.published(id), true, out);
        if let Some(belief) = self.view.get_mut(id) {
            belief.probed(None);
        }
        let Some(seq) = self.probes.get(id).map(|probe| probe.seq) else { return };
        for to in &helpers {
            let frame = SwimFrame::PingReq { seq, target: id };
            out.push(SwimOut::Send { to: *to, frame, reliable: false });
        }
        self.probes.change(id, |probe| {
            probe.escalate = None;
            probe.reliable_seq = Some(reliable_seq);
            probe.helpers = helpers.into_iter().map(|helper| (helper, false)).collect();
        });
    }

    /// Ends a probe that nobody answered.
    pub(super) fn fail(&mut self, id: MemberId, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(probe) = self.probes.remove(id) else { return };
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
        self.suspicions.make_own(id, through);
        if self.is_to_publish(id, belief.incarnation)
            && let Some(peer) = self.peers.get_mut(&id)
        {
            peer.published = Some(belief.incarnation);
            out.push(SwimOut::PublishSuspicion { accused: id, incarnation: belief.incarnation });
            // Lifeguard 4.3: the accused is told first, on the way that does not lose it.
            self.send_ping(id, Some(belief.incarnation), true, out);
        }
        self.start_probe(id, false, now, out);
        if self.heard < probe.started || self.suspicions.own().len() > 1 {
            self.probe_the_silent(now, out);
        }
    }

    /// Asks everybody who was not heard for a period: we are cut off, or a whole site is.
    ///
    /// One after the other, each a stretched period later, the last of ten would be missed only after a minute. In a crowd
    /// most are always silent, so some are drawn: where many are gone, each of them that does not answer has more asked.
    pub(super) fn probe_the_silent(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let period = self.period();
        let mut silent: Vec<_> = self
            .view
            .iter()
            .filter(|(_, it)| it.state.is_up() && it.last_heard.is_none_or(|heard| now.since(heard) > period))
            .map(|(id, _)| id)
            .collect();
        let is_crowd = self.view.len() > CROWD;
        for _ in 0..if is_crowd { CROWD.min(silent.len()) } else { 0 } {
            let at = self.below(silent.len());
            self.start_probe(silent.swap_remove(at), false, now, out);
        }
        if !is_crowd {
            silent.into_iter().for_each(|id| self.start_probe(id, false, now, out));
        }
    }

    pub(super) fn tick_relays(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        for (seq, relay) in self.relays.due_by(now) {
            if relay.nack.is_some() {
                let frame = SwimFrame::Nack { seq: relay.origin_seq };
                out.push(SwimOut::Send { to: relay.origin, frame, reliable: false });
                self.adopt(relay, now, out);
            }
            self.relays.remove(seq);
            if relay.expires > now {
                self.relays.insert(seq, Relay { nack: None, ..relay });
            }
        }
    }

    /// Goes on with another member's unanswered question as our own: two who ask are quicker than one who asks twice.
    pub(super) fn adopt(&mut self, relay: Relay, now: Instant, out: &mut Vec<SwimOut>) {
        let Some(belief) = self.view.get(relay.target) else { return };
        if belief.state != Liveness::Alive || belief.last_heard.is_some_and(|heard| heard >= relay.started) {
            return;
        }
        self.start_probe(relay.target, false, now, out);
        let deadline = relay.started + self.probe_period();
        self.probes.change(relay.target, |probe| {
            if probe.started == now {
                probe.started = relay.started;
                probe.escalate = Some(now);
                probe.deadline = deadline.max(now);
            }
        });
        self.tick_probes(now, out);
    }

    /// Brings forward the probes of members that usually talk all the time and now do not, and asks the lost again.
    pub(super) fn scan(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        let (period, timeout) = (self.period(), self.timeout());
        let mut ask = Vec::new();
        for id in std::mem::take(&mut self.watched) {
            let Some((belief, peer)) = self.view.get(id).zip(self.peers.get(&id)) else { continue };
            // Lease traffic comes several times a period. Three messages missing are reason enough to ask now.
            let regular = peer.cadence.filter(|cadence| *cadence <= period / 2);
            let is_well = belief.state == Liveness::Alive && regular.is_none() && !peer.link_down;
            if is_well || belief.state == Liveness::Left {
                continue;
            }
            self.watched.insert(id);
            let due = match belief.state {
                Liveness::Alive => {
                    let silence = belief.last_heard.map(|heard| now.since(heard));
                    let overdue =
                        regular.zip(silence).is_some_and(|(cadence, silence)| silence > (cadence * 3).max(timeout));
                    peer.link_down || (overdue && !peer.overdue)
                }
                Liveness::Suspect => !self.is_being_dialled(belief, now),
                Liveness::Down => peer.reprobe <= now,
                Liveness::Left => false,
            };
            if due && !self.probes.contains(id) {
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
    pub(super) fn judge(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
        if self.verdict_due().is_none_or(|due| due > now) {
            return;
        }
        let due: Vec<_> = self
            .suspicions
            .own()
            .filter(|(id, suspicion)| suspicion.since + self.patience(*id) <= now)
            .map(|(id, suspicion)| (id, suspicion.through.clone()))
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
    pub(super) fn probe_next(&mut self, now: Instant, out: &mut Vec<SwimOut>) {
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
            if self.view.is_up(id) && !self.probes.contains(id) && !self.is_talking(id, now) {
                self.start_probe(id, true, now, out);
                return;
            }
        }
    }

    /// Returns whether a member need not be asked: something other than our own questions made it talk within the period,
    /// and a question was answered not long ago. While we do not feel well we ask all the same, since answers heal.
    fn is_talking(&self, id: MemberId, now: Instant) -> bool {
        let is_within = |at: Option<Instant>, bound| at.is_some_and(|at| now.since(at) < bound);
        let last_other = self.peers.get(&id).and_then(|peer| peer.last_other);
        let last_ack = self.view.get(id).and_then(|belief| belief.last_ack);
        self.health == 0
            && is_within(last_other, self.period())
            && is_within(last_ack, self.period() * ASK_AGAIN_PERIODS)
    }

    pub(super) fn wake_from_pause(&mut self, now: Instant) {
        self.feel(1);
        self.probes.clear();
        self.relays.clear();
        self.suspicions.begin_anew(now);
        self.next_scan = now + self.period() / 5;
        self.next_period = now + self.period();
    }
}
