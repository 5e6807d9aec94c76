//! Processes: started from their disks, given events, their effects performed in the order given, killed between any two.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use collective::proto::collective::{Effect, Event, Ticket};
use collective::proto::lease::Verdict;
use collective::proto::message::Message;
use collective::proto::record::Record;
use collective::proto::request::EventKind;

use super::{Due, World};
use crate::check::Rule;
use crate::fault::MS;
use crate::mix::Purpose;
use crate::scenario::Sabotage;
use crate::site::Death;
use crate::trace::Mark;

impl World {
    /// Starts a process, unless a fault keeps it down.
    pub(crate) fn boot(&mut self, at: usize) {
        let site = &mut self.sites[at];
        if site.is_up() || site.downs > 0 || site.me.is_none() {
            return;
        }
        let (mix, time, sabotage) = (self.mix, self.time, self.sabotage);
        match catch_unwind(AssertUnwindSafe(|| site.boot(mix, at, time, sabotage))) {
            Ok(Ok(effects)) => {
                self.seen.forget(at);
                self.heard.forget(at);
                self.checker.born(at);
                self.tell(|| format!("m{at} starts"));
                self.trace.note(self.time, at, Mark::Boot, &[]);
                self.perform(at, effects);
                self.check(at);
            }
            Ok(Err(error)) => self.violate(Rule::NothingLost, format!("m{at} cannot start: {error:#}")),
            Err(panic) => self.violate(Rule::NoPanic, format!("m{at} panicked at its start: {}", words(&*panic))),
        }
    }

    /// Ends a process.
    pub(crate) fn die(&mut self, at: usize, death: Death) {
        if !self.sites[at].is_up() {
            return;
        }
        self.tell(|| format!("m{at} ends: {death:?}"));
        let pending = self.sites[at].disk.pending();
        let survive = match death {
            Death::Power => 0,
            Death::Stopped => pending,
            Death::Killed => self.mix.range(Purpose::Crash, self.queue.count(), 0, pending as u64) as usize,
        };
        for peer in self.network.linked(at) {
            if let Some(link) = self.network.link(at, peer).filter(|_| death != Death::Power)
                && self.active.passes(at, peer, self.time)
            {
                let delay = self.delay(at, peer);
                self.after(delay, Due::Gone { at: peer, peer: at, link, reason: "the daemon ended" });
            }
            self.drop_end(at, peer);
        }
        self.ledger.orphan(at);
        self.seen.forget(at);
        if let Err(error) = self.sites[at].die(survive) {
            self.violate(Rule::NothingLost, format!("the store of m{at} cannot be read: {error:#}"));
        }
        if death == Death::Power {
            self.sites[at].clock.reboot(self.time);
        }
    }

    /// Hands an event to a core and performs what it decides.
    pub(crate) fn handle(&mut self, at: usize, event: Event) {
        let site = &mut self.sites[at];
        if !site.is_up() {
            return;
        }
        if site.is_paused() {
            site.keep_for_later(event);
            return;
        }
        if !matches!(event, Event::Wake | Event::Received { .. }) {
            self.trace.event(self.time, at, &event);
        }
        let site = &mut self.sites[at];
        let now = site.now(self.time);
        if let Event::Received { peer, message: Message::LeaseAck(ack) } = &event {
            let granted = matches!(ack.verdict, Verdict::Granted { .. });
            let sent = site.asked.remove(&ack.seq).filter(|_| granted);
            let voter = site.core.as_ref().and_then(|core| core.roster().by_fingerprint(*peer)).map(|voter| voter.id);
            if let (Some(sent), Some(voter)) = (sent, voter) {
                self.checker.contact(at, voter, sent);
            }
        }
        let Some(core) = &mut self.sites[at].core else { return };
        let decided = catch_unwind(AssertUnwindSafe(|| core.handle(event, now)));
        match decided {
            Ok(effects) => {
                self.perform(at, effects);
                self.check(at);
            }
            Err(panic) => self.violate(Rule::NoPanic, format!("m{at} panicked: {}", words(&*panic))),
        }
    }

    pub(super) fn perform(&mut self, at: usize, effects: Vec<Effect>) {
        let doomed = self.sites[at].doomed.take();
        for (number, effect) in effects.into_iter().enumerate() {
            if let Some((last, death)) = doomed
                && number >= last
            {
                self.count("crash between effects");
                self.die(at, death);
                return;
            }
            self.perform_one(at, effect);
        }
        if let Some((_, death)) = doomed {
            self.die(at, death);
        }
    }

    fn perform_one(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message, delivery } => self.send(at, to, &message, delivery),
            Effect::WakeAt(wish) => {
                let site = &mut self.sites[at];
                let when = site.clock.when(wish).max(self.time);
                site.wake = Some(when);
                let life = site.life;
                self.at(when, Due::Wake { at, life });
            }
            effect => {
                self.trace.effect(self.time, at, &effect);
                self.perform_rare(at, effect);
            }
        }
    }

    fn perform_rare(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Save { ticket, records } => self.save(at, ticket, records),
            Effect::Publish(facts) => {
                let durable = self.sites[at].disk.incarnation;
                let life = self.sites[at].life;
                let is_start = self.seen_incarnation[at].0 != life;
                self.seen_incarnation[at] = (life, facts.incarnation);
                self.checker.incarnation(self.time, at, facts.incarnation, durable, is_start);
                self.sites[at].told = Some(self.heard.publish(facts));
            }
            Effect::Peers { peers, removed } => {
                let keys: BTreeSet<_> = peers.into_iter().flat_map(|peer| peer.fingerprints).collect();
                self.sites[at].peers = keys;
                self.sites[at].removed = removed;
                self.cut_strangers(at);
            }
            Effect::DialNow(peer) => {
                if let Some(peer) = self.site_of(peer) {
                    self.dial(at, peer);
                }
            }
            Effect::Reply { id, response } => self.on_reply(at, id, &response),
            Effect::AnswerJoin { id, answer } => self.on_answer_join(id, answer),
            Effect::Happened { event, .. } => {
                self.count(match event.kind {
                    EventKind::QuorumLost => "quorum lost",
                    EventKind::QuorumRegained => "quorum regained",
                    EventKind::MemberDown => "member down",
                    EventKind::MemberSuspect => "member suspect",
                    EventKind::EpochDecided => "epoch",
                    EventKind::ResyncDone => "resync",
                    _ => "other event",
                });
                self.tell(|| format!("m{at} {:?} {}", event.kind, event.message));
            }
            Effect::Rebirth { reason } => {
                self.violate(Rule::NothingLost, format!("a document broke on m{at}: {reason}"));
            }
            Effect::Halt => self.die(at, Death::Stopped),
            // No actions are defined at this level, and keys are not rotated.
            _ => {}
        }
    }

    fn save(&mut self, at: usize, ticket: Ticket, records: Vec<Record>) {
        self.sites[at].disk.submit(ticket, records);
        if self.sabotage == Some(Sabotage::LyingDisk) {
            let life = self.sites[at].life;
            self.after(0, Due::Lie { at, life, ticket });
        }
        self.sync(at);
    }

    /// Begins an fsync, unless one is under way or there is nothing to make durable.
    pub(super) fn sync(&mut self, at: usize) {
        let site = &mut self.sites[at];
        if !site.disk.sync() {
            return;
        }
        let (index, life) = ((at as u64) << 48 | site.disk.syncs, site.life);
        let usual = self.mix.range(Purpose::Fsync, index, 200, 8_000) * 1_000;
        let delay = self.active.fsync_ms(at).map_or(usual, |slow| usual + slow * MS);
        self.after(delay, Due::Durable { at, life });
    }
}

/// Returns what a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without words".to_owned())
}
