//! The rarer faults at work: disks that refuse, lie in the past or are gone, slow processors, damaged packets, new keys,
//! cloned identities, joins that lose their host; and the actions that run on nodes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use collective::proto::collective::{Event, JobId, RequestId, Ticket};
use collective::proto::identity::Fingerprint;
use collective::proto::message::{Channel, Message};
use collective::proto::name::NodeName;
use collective::proto::request::ActionResult;
use collective::proto::time::Instant;

use crate::check::Rule;
use crate::enrol::Step;
use crate::fault::{Fate, Fault, Kind, MS, SECOND};
use crate::mix::Purpose;
use crate::site::Death;
use crate::trace::{Seen, seconds};
use crate::workload::Op;
use crate::world::{Due, World};

/// How long a coordinator that died in the middle of a join stays down, in milliseconds.
const COORDINATOR_DOWN_MS: u64 = 3_000;
/// After how long an administrator sees that a member's votes are refused, and sets its machine up anew.
const NOTICED_AFTER: u64 = 3 * SECOND;
/// Numbers of faults that follow from others start here, so that they are drawn apart.
const FOLLOWING: u64 = 1 << 20;

/// The actions that run on nodes, by the site and the number its core gave them.
///
/// They outlive the process that started them: a watchdog kills each at its deadline, on the machine's own clock.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    running: BTreeMap<(usize, JobId), Running>,
    /// How many were asked for.
    asked: u64,
}

#[derive(Debug)]
struct Running {
    node: NodeName,
    /// The end of the lease, on the clock of its site.
    until: Instant,
}

impl Jobs {
    /// A running action may go on until then.
    fn extend(&mut self, at: usize, id: JobId, until: Instant) {
        if let Some(running) = self.running.get_mut(&(at, id)) {
            running.until = until;
        }
    }

    /// Everything that ran at a site is gone with its machine.
    pub(crate) fn forget(&mut self, at: usize) {
        self.running.retain(|(site, _), _| *site != at);
    }
}

impl World {
    /// Begins one of the rarer faults.
    pub(crate) fn begin_rare(&mut self, kind: &Kind, number: usize) {
        match kind {
            Kind::Restore { member, .. } => self.doom(*member, number, Death::Killed),
            Kind::WallClock { member, by_ms } => self.sites[*member].clock.set_wall(*by_ms),
            Kind::Rotate(member) => self.rotate(*member, self.faults[number].number),
            Kind::JoinCrash { joiner, via, step } => self.lose_host_of(*joiner, *via, *step),
            Kind::Clone { member, on } => self.clone_identity(*member, *on, number),
            _ => {}
        }
    }

    /// Ends one of the rarer faults.
    pub(crate) fn end_rare(&mut self, kind: &Kind, number: usize, until: Option<u64>, since: u64) {
        match kind {
            Kind::Restore { member, age_ms } => self.return_from(*member, Fate::Stale(*age_ms), until, since),
            Kind::WallClock { member, by_ms } => self.sites[*member].clock.set_wall(-by_ms),
            Kind::DiskFull(member) | Kind::FsyncError(member) => {
                self.sync(*member);
                self.boot(*member);
            }
            Kind::SlowCpu { member, .. } if !self.sites[*member].is_paused() => {
                self.sites[*member].is_busy = false;
                for event in self.sites[*member].take_inbox() {
                    self.handle(*member, event);
                }
            }
            // Another one may run there, when two were to begin at once.
            Kind::Clone { member, on } if self.sites[*on].cloned_by == Some(number) => {
                if self.sites[*on].is_up() {
                    self.sites[*member].rolled_back = Some(self.time);
                }
                self.die(*on, Death::Power);
                self.sites[*on].forget_everything();
                self.sites[*on].fingerprint = Fingerprint(self.mix.bytes(Purpose::Identity, 5_000 + *on as u64));
            }
            _ => {}
        }
    }

    /// A machine has its power again, or its backup: it finds on its disk what the fault left there.
    pub(crate) fn return_from(&mut self, at: usize, disk: Fate, until: Option<u64>, since: u64) {
        match disk {
            Fate::Clean | Fate::Torn => {}
            Fate::Wiped => self.wipe(at),
            Fate::Stale(age_ms) => {
                // A doom that had not come to its end, or a process that a stop left behind.
                self.die(at, Death::Power);
                let began = self.time - (until.unwrap_or(since) - since);
                if self.sites[at].me.is_some()
                    && let Err(error) = self.sites[at].roll_back(began.saturating_sub(age_ms * MS), self.time)
                {
                    self.violate(Rule::NothingLost, format!("the backup of m{at} cannot be read: {error:#}"));
                }
                self.checker.enrolled(at);
                self.write_off_lost_copies();
            }
        }
        self.revive(at);
    }

    /// R9: what was rolled back or cloned is stopped, and set up anew.
    pub(crate) fn set_up_anew(&mut self, at: usize) {
        let since = self.sites[at].rolled_back;
        if since.is_some_and(|since| self.time >= since + NOTICED_AFTER) {
            self.wipe(at);
        }
    }

    fn wipe(&mut self, at: usize) {
        self.die(at, Death::Stopped);
        self.sites[at].forget_everything();
        self.tell(|| format!("m{at} lost its disk"));
    }

    // ---- Disks ----

    /// Ends the fsync under way.
    pub(crate) fn complete_sync(&mut self, at: usize) -> Vec<Ticket> {
        self.sites[at].disk.time = self.time;
        self.sites[at].disk.complete()
    }

    /// Returns whether a disk takes nothing right now; the process is told, or ended, as the daemon would be.
    pub(crate) fn refuses_saves(&mut self, at: usize) -> bool {
        if self.active.is_disk_broken(at) {
            self.count("stopped by the disk");
            self.die(at, Death::Killed);
            return true;
        }
        if !self.active.is_disk_full(at) {
            return false;
        }
        for ticket in self.sites[at].disk.refuse() {
            self.count("save refused");
            self.handle(at, Event::NotSaved { ticket, reason: "no space left on device".to_owned() });
        }
        true
    }

    // ---- Processors ----

    /// A slow processor has taken an event up, and is at it for a while.
    pub(crate) fn be_busy(&mut self, at: usize, nanos: u64) {
        let site = &mut self.sites[at];
        if !site.is_up() {
            return;
        }
        site.is_busy = true;
        let life = site.life;
        self.after(nanos, Due::Turn { at, life });
    }

    /// A slow processor is free for the next event.
    pub(crate) fn take_turn(&mut self, at: usize, life: u64) {
        let site = &mut self.sites[at];
        if site.life != life || !site.is_busy || !site.is_up() {
            return;
        }
        if site.is_paused() {
            // What waits is taken up when the process goes on.
            site.is_busy = false;
            return;
        }
        let Some(event) = site.next_waiting() else {
            site.is_busy = false;
            return;
        };
        self.take_in(at, event);
        match self.active.event_ms(at) {
            Some(busy) => self.be_busy(at, busy * MS),
            None => self.sites[at].is_busy = false,
        }
    }

    // ---- Packets ----

    /// A packet is damaged on the way: the transport drops it, and whoever read it all the same would not panic.
    pub(crate) fn damage(&mut self, packet: u64, channel: Channel, frame: &[u8]) {
        let mut bytes = frame.to_vec();
        let draw = self.mix.bits(Purpose::Corrupt, packet ^ 1 << 63);
        let place = (draw >> 8) as usize % bytes.len().max(1);
        match (draw % 3, bytes.get_mut(place)) {
            (0, _) => bytes.truncate(place),
            (_, Some(byte)) => *byte ^= 1 << (draw >> 4 & 7),
            _ => {}
        }
        self.count("packet damaged");
        let read = catch_unwind(AssertUnwindSafe(|| Message::decode(channel, &bytes).is_ok()));
        match read {
            Ok(true) => self.count("damaged packet readable"),
            Ok(false) => self.count("damaged packet refused"),
            Err(_) => self.violate(Rule::NoPanic, "a damaged frame makes the decoder panic".to_owned()),
        }
    }

    /// Returns for how long a datagram is held back, so that later ones overtake it.
    pub(crate) fn held_back(&mut self, packet: u64) -> u64 {
        if !self.mix.chance(Purpose::Reorder, packet, self.active.reordered()) {
            return 0;
        }
        self.count("datagram held back");
        self.mix.range(Purpose::Reorder, packet ^ 1 << 63, 10, 800) * MS
    }

    // ---- Keys and identities ----

    fn rotate(&mut self, at: usize, number: u64) {
        let fingerprint = Fingerprint(self.mix.bytes(Purpose::Identity, 20_000 + number));
        let id = self.note_asked(at, Op::Named("rotate"));
        if self.sites[at].is_up() {
            self.handle(at, Event::Rotate { id, fingerprint });
        } else {
            self.ledger.orphan(at);
        }
    }

    fn note_asked(&mut self, at: usize, op: Op) -> RequestId {
        self.ledger.note(at, op, self.time);
        self.ledger.0.len() as RequestId
    }

    /// Takes a new key in use: the endpoint is bound to the old one, so a new life begins, as in the daemon.
    pub(crate) fn switch_identity(&mut self, at: usize, life: u64, fingerprint: Fingerprint) {
        if self.sites[at].life != life || !self.sites[at].is_up() {
            return;
        }
        self.count("key switched");
        self.die(at, Death::Stopped);
        let old = std::mem::replace(&mut self.sites[at].fingerprint, fingerprint);
        self.sites[at].former.push(old);
        self.boot_later(50 * MS, at);
    }

    /// Returns the site of a key; of several that share it, the one that is linked.
    pub(crate) fn site_linked(&mut self, from: usize, key: Fingerprint) -> Option<usize> {
        let linked = |at: &usize| self.sites[*at].has_key(key) && self.network.end(from, *at).is_some();
        let is_cloned = self.has_clones && self.sites.iter().filter(|site| site.has_key(key)).count() > 1;
        if is_cloned { (0..self.sites.len()).find(linked) } else { self.site_of(key) }
    }

    /// Returns whether two sites run one identity; such a pair never links.
    pub(crate) fn is_same_identity(&self, a: usize, b: usize) -> bool {
        self.sites[a].fingerprint == self.sites[b].fingerprint
    }

    /// Starts a copy of a member on a spare site, by a fault.
    fn clone_identity(&mut self, member: usize, on: usize, fault: usize) {
        if self.sites[on].is_up() || self.sites[member].me.is_none() || self.sites[on].me.is_some() {
            return;
        }
        self.has_clones = true;
        let disk = self.sites[member].disk.copied();
        let (me, key) = (self.sites[member].me, self.sites[member].fingerprint);
        let clone = &mut self.sites[on];
        clone.forget_everything();
        (clone.disk, clone.me, clone.fingerprint) = (disk, me, key);
        clone.cloned_by = Some(fault);
        self.checker.enrolled(on);
        self.boot(on);
    }

    // ---- Joins ----

    /// A member's disk is lost; whoever invites it anew, that member if possible, dies in the middle of it.
    fn lose_host_of(&mut self, joiner: usize, via: usize, step: u64) {
        self.wipe(joiner);
        self.disturbed.insert(joiner, (via, step));
    }

    /// Kills the host of a join when it comes to the step that a fault names: 0 when the stranger says hello, 1 when it
    /// is challenged, 2 when it has proved itself, 3 when it is welcomed, 4 a moment after the proof, 5 some time after
    /// the welcome.
    pub(crate) fn disturb(&mut self, enrolment: usize, step: &Step) {
        let (joiner, via) = (self.enrolments[enrolment].joiner, self.enrolments[enrolment].via);
        let Some((_, wanted)) = self.disturbed.get(&joiner).copied() else { return };
        let is_welcome = matches!(step, Step::Answer(_)) && self.enrolments[enrolment].is_proved;
        let delay_ms = match (step, wanted) {
            (Step::Hello(_), 0) | (Step::Proof(_), 2) => 0,
            (Step::Answer(_), 1) if !is_welcome => 0,
            (Step::Answer(_), 3) if is_welcome => 0,
            (Step::Proof(_), 4) => 40,
            (Step::Answer(_), 5..) if is_welcome => 400,
            _ => return,
        };
        self.disturbed.remove(&joiner);
        self.count("join disturbed");
        let crash = Fault::new(delay_ms, COORDINATOR_DOWN_MS, Kind::Crash(via));
        self.schedule(vec![Fault { number: FOLLOWING + enrolment as u64, ..crash }]);
    }

    // ---- Actions ----

    /// Begins to run actions on nodes, beside the rest of the load.
    pub(crate) fn start_actions(&mut self, every: u64) {
        self.act_every = every;
        if every > 0 {
            self.after(every, Due::Act);
        }
    }

    /// One action is asked for, of anybody.
    pub(crate) fn act_now(&mut self) {
        if self.act_every == 0 {
            return;
        }
        self.jobs.asked += 1;
        let mix = self.mix.fork(Purpose::Job, self.jobs.asked);
        let awake: Vec<_> = (0..self.sites.len()).filter(|at| self.sites[*at].is_awake()).collect();
        if !awake.is_empty() && !self.nodes.is_empty() {
            let at = awake[mix.bits(Purpose::Job, 0) as usize % awake.len()];
            let node = self.nodes[mix.bits(Purpose::Job, 1) as usize % self.nodes.len()].0.to_string();
            self.ask(at, Op::Named("run"), crate::step::run_action(&node));
        }
        let every = mix.range(Purpose::Job, 2, 1, 2 * self.act_every);
        self.after(every, Due::Act);
    }

    /// A core has renewed the lease that an action runs under, or given it up.
    pub(crate) fn extend_job(&mut self, at: usize, id: JobId, until: Instant) {
        self.jobs.extend(at, id, until);
        let end = self.sites[at].clock.when(until).max(self.time);
        self.note(Some(at), || Seen::ActionUntil { id, until: seconds(end) });
    }

    /// A core starts an action.
    pub(crate) fn run_job(&mut self, at: usize, id: JobId, node: NodeName, until: Instant) {
        self.count("action");
        // I1: whatever still runs for the node elsewhere has not been killed yet.
        let (time, sites) = (self.time, &self.sites);
        let others = self.jobs.running.iter().filter(|((site, _), running)| *site != at && running.node == node);
        let mut acting: Vec<_> = others
            .filter(|((site, _), running)| sites[*site].now(time).boot < running.until)
            .map(|((site, _), _)| *site)
            .collect();
        acting.push(at);
        self.checker.acting(time, node.as_str(), &acting);
        let life = self.sites[at].life;
        let end = self.sites[at].clock.when(until);
        self.note(Some(at), || Seen::Action { node: node.to_string(), id, until: seconds(end), token: None });
        self.jobs.running.insert((at, id), Running { node, until });
        let takes = self.mix.range(Purpose::Job, 1 << 40 | (at as u64) << 32 | life << 16 | id, 20, 3_000) * MS;
        self.after(takes.min(5 * SECOND), Due::Job { at, life, id });
    }

    /// An action ends by itself, or was killed meanwhile.
    pub(crate) fn end_job(&mut self, at: usize, life: u64, id: JobId) {
        let Some(running) = self.jobs.running.get(&(at, id)) else { return };
        if self.sites[at].life != life || !self.sites[at].is_up() {
            // Whatever outlives its process has nobody to report to; the watchdog kills it in time.
            return;
        }
        let in_time = self.sites[at].now(self.time).boot < running.until;
        self.count(if in_time { "action done" } else { "action killed" });
        self.finish_job(at, id, in_time.then_some(0));
    }

    /// A core acts for a node no longer: whatever it runs for it is killed.
    pub(crate) fn cease(&mut self, at: usize, node: &NodeName) {
        let life = self.sites[at].life;
        let theirs = |(site, _): &(usize, JobId), running: &Running| *site == at && running.node == *node;
        let ids: Vec<_> =
            self.jobs.running.iter().filter(|(key, running)| theirs(key, running)).map(|((_, id), _)| *id).collect();
        for id in ids {
            self.extend_job(at, id, Instant::from_nanos(0));
            self.after(MS, Due::Job { at, life, id });
        }
    }

    fn finish_job(&mut self, at: usize, id: JobId, status: Option<i32>) {
        let Some(running) = self.jobs.running.remove(&(at, id)) else { return };
        let now = seconds(self.time);
        self.note(Some(at), || Seen::ActionUntil { id, until: now });
        let manager = Some(self.sites[at].name.clone());
        let result = ActionResult { node: running.node, manager, token: None, status, output: Vec::new(), error: None };
        self.handle(at, Event::JobDone { id, result });
    }
}
