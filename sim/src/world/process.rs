//! Processes: how they start and end, take events in, and have their effects performed in the order given.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use collective::proto::collective::{Effect, Event, Ticket};
use collective::proto::identity::Fingerprint;
use collective::proto::lease::Verdict;
use collective::proto::message::Message;
use collective::proto::planted::Bug;
use collective::proto::record::Record;
use collective::proto::request::{EventKind, Standing};
use collective::proto::time::Instant;

use super::{Due, FAREWELL, World, words};
use crate::check::{Rule, token_of};
use crate::fault::MS;
use crate::mix::Purpose;
use crate::site::Death;
use crate::trace::{Seen, seconds};

impl World {
    /// Starts a process, unless a fault keeps it down.
    pub(crate) fn boot(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let is_stuck = self.active.is_disk_broken(at) || self.active.is_disk_full(at);
        if site.is_up() || site.downs > 0 || site.me.is_none() || is_stuck {
            return;
        }
        let (mix, time, planted) = (self.mix, self.time, self.planted);
        match catch_unwind(AssertUnwindSafe(|| site.boot(mix, at, time, planted))) {
            Ok(Ok(effects)) => {
                self.seen.forget(at);
                self.heard.forget(at);
                self.checker.born(at);
                self.seen_standing[at] = (Standing::Isolated, self.time);
                self.tell(|| format!("m{at} starts"));
                let (id, incarnation) = (self.sites[at].me, self.sites[at].disk.incarnation);
                self.note(Some(at), || Seen::Start {
                    id: id.map_or_else(String::new, |id| id.to_string()),
                    incarnation,
                });
                self.trace(at, b"boot", &[]);
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
            Death::Killed | Death::Torn => {
                self.mix.range(Purpose::Crash, self.queue.count(), 0, pending as u64) as usize
            }
        };
        for peer in self.network.linked(at) {
            if let Some(link) = self.network.link(at, peer).filter(|_| !death.is_dark())
                && self.active.passes(at, peer, self.time)
            {
                let delay = self.delay(at, peer);
                self.after(delay, Due::Gone { at: peer, peer: at, link, reason: "the daemon ended" });
            }
            self.drop_end(at, peer);
        }
        self.ledger.orphan(at);
        self.break_joins(at, death);
        if let Err(error) = self.sites[at].die(survive) {
            self.violate(Rule::NothingLost, format!("the store of m{at} cannot be read: {error:#}"));
        }
        self.seen.forget(at);
        self.note(Some(at), || Seen::End { how: death.word().to_owned() });
        self.watch(at);
        if death.is_dark() {
            self.jobs.forget(at);
            self.sites[at].clock.reboot(self.time);
        }
    }

    /// Hands an event to a core and performs what it decides.
    pub(crate) fn handle(&mut self, at: usize, event: Event) {
        let site = &mut self.sites[at];
        if !site.is_up() {
            return;
        }
        if site.is_paused() || site.has_backlog() {
            site.keep_for_later(event);
            return;
        }
        self.take_in(at, event);
        if let Some(busy) = self.active.event_ms(at) {
            self.be_busy(at, busy * MS);
        }
    }

    /// Has a core take an event in, now.
    pub(crate) fn take_in(&mut self, at: usize, event: Event) {
        if !matches!(event, Event::Wake | Event::Received { .. } | Event::Gossip { .. }) {
            self.trace_words(at, b"event", &event);
        }
        let site = &mut self.sites[at];
        let now = site.now(self.time);
        if let Event::Received { peer, message: Message::LeaseAck(ack) } = &event {
            let granted = matches!(ack.verdict, Verdict::Granted { .. });
            // It stays: of a request that came twice, the first copy may have been refused.
            let sent = site.asked.get(&ack.seq).copied().filter(|_| granted);
            let voter = site.core.as_ref().and_then(|core| core.roster().by_fingerprint(*peer)).map(|voter| voter.id);
            if let (Some(sent), Some(voter)) = (sent, voter) {
                self.checker.contact(at, voter, sent);
                let sent = self.sites[at].clock.when(Instant::from_nanos(sent));
                self.note(Some(at), || Seen::Granted { voter: voter.to_string(), sent: seconds(sent) });
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

    fn perform(&mut self, at: usize, effects: Vec<Effect>) {
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
            Effect::Save { ticket, records } => {
                self.trace_save(at, ticket, &records);
                self.save(at, ticket, records);
            }
            effect => {
                self.trace_effect(at, &effect);
                self.perform_rare(at, effect);
            }
        }
    }

    fn perform_rare(&mut self, at: usize, effect: Effect) {
        match effect {
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
            Effect::AnswerJoin { id, answer } => self.on_answer_join(id, *answer),
            Effect::Happened { event, until } => {
                self.count(crate::trace::counted_as(event.kind));
                self.note(Some(at), || Seen::Event {
                    kind: format!("{:?}", event.kind),
                    message: event.message.clone(),
                });
                self.tell(|| format!("m{at} {:?} {}", event.kind, event.message));
                let token = event.token.as_deref().and_then(token_of);
                if let (EventKind::ManagerChanged, Some(_), Some(node), Some(token)) =
                    (event.kind, until, &event.node, token)
                {
                    self.checker.token(self.time, node.as_str(), at, token);
                }
            }
            Effect::Rebirth { reason } => {
                self.violate(Rule::NothingLost, format!("a document broke on m{at}: {reason}"));
            }
            Effect::Halt => {
                let life = self.sites[at].life;
                self.after(FAREWELL, Due::Halted { at, life });
            }
            Effect::Run { id, job, until } => self.run_job(at, id, job.node, until),
            Effect::Extend { id, until } => self.extend_job(at, id, until),
            Effect::Cease { node } => self.cease(at, &node),
            Effect::SwitchIdentity { fingerprint } => {
                let life = self.sites[at].life;
                self.after(FAREWELL, Due::Switch { at, life, fingerprint });
            }
            _ => {}
        }
    }

    fn save(&mut self, at: usize, ticket: Ticket, records: Vec<Record>) {
        self.sites[at].disk.submit(ticket, records);
        if self.planted.has(Bug::LyingDisk) {
            let life = self.sites[at].life;
            self.after(0, Due::Lie { at, life, ticket });
        }
        self.sync(at);
    }

    /// Begins an fsync, unless one is under way or there is nothing to make durable.
    pub(crate) fn sync(&mut self, at: usize) {
        let site = &mut self.sites[at];
        if !site.disk.sync() {
            return;
        }
        let (index, life) = ((at as u64) << 48 | site.disk.syncs, site.life);
        let (least, most) = self.usual_fsync;
        let usual = self.mix.range(Purpose::Fsync, index, least / 1_000, most / 1_000) * 1_000;
        let delay = self.active.fsync_ms(at).map_or(usual, |slow| usual + slow * MS);
        self.after(delay, Due::Durable { at, life });
    }

    pub(crate) fn site_of(&mut self, key: Fingerprint) -> Option<usize> {
        if let Some(at) = self.keys.get(&key).copied().filter(|at| self.sites[*at].has_key(key) && !self.has_clones) {
            return Some(at);
        }
        let at = self.sites.iter().position(|site| site.has_key(key))?;
        self.keys.insert(key, at);
        Some(at)
    }
}
