//! The second shell: an event queue in virtual time around shipped cores, performing their effects in the order given.

mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use collective::proto::collective::{Collective, Effect, Event, JobId, JoinId, RequestId, Ticket};
use collective::proto::document::Entity;
use collective::proto::facts::Facts;
use collective::proto::identity::{ClusterId, Fingerprint, MemberId};
use collective::proto::lease::Verdict;
use collective::proto::message::{Channel, Hello, Message};
use collective::proto::name::NodeName;
use collective::proto::planted::{Bug, Planted};
use collective::proto::request::{EventKind, Request, Standing};
use collective::proto::roster::Version;
use collective::proto::time::Instant;
use ring::digest;

use crate::check::{Authority, Checker, Rule, token_of};
use crate::enrol::Enrolment;
use crate::fault::{Active, Fate, Fault, Kind, MS, SECOND};
use crate::inject::Jobs;
use crate::mix::{Mix, Purpose};
use crate::network::{Frame, Network};
use crate::run::Options;
use crate::scenario::{Scenario, Usual};
use crate::site::{Death, Site};
use crate::trace::{Seen, Trace, seconds};
use crate::workload::Ledger;

/// How often a link that is down is dialled, and a link that is up looked at.
const DIAL_EVERY: u64 = 300 * MS;
const LOOK_EVERY: u64 = SECOND;
/// How long a daemon that ends leaves its last frames to get out, as `daemon::driver` does.
const FAREWELL: u64 = 150 * MS;

/// Something that is due.
#[derive(Debug)]
pub(crate) enum Due {
    Wake {
        at: usize,
        life: u64,
    },
    Durable {
        at: usize,
        life: u64,
    },
    /// A lying disk says that a save is durable.
    Lie {
        at: usize,
        life: u64,
        ticket: Ticket,
    },
    /// A datagram, or a large one on a stream of its own.
    Frame {
        from: usize,
        to: usize,
        link: u64,
        channel: Channel,
        frame: Frame,
        reliable: bool,
    },
    /// The first frame of a stream.
    Stream {
        from: usize,
        to: usize,
        link: u64,
        channel: Channel,
    },
    Dial {
        a: usize,
        b: usize,
    },
    Shake {
        a: usize,
        b: usize,
        hellos: Box<(Hello, Hello)>,
    },
    Look {
        at: usize,
    },
    /// An end learns that the other one is gone.
    Gone {
        at: usize,
        peer: usize,
        link: u64,
        reason: &'static str,
    },
    Expelled {
        at: usize,
        life: u64,
        notice: String,
    },
    Gossip {
        at: usize,
    },
    Heard {
        to: usize,
        life: u64,
        from: usize,
        facts: Rc<Facts>,
    },
    Begin(usize),
    End(usize),
    Join {
        enrolment: usize,
        step: crate::enrol::Step,
    },
    Boot {
        at: usize,
    },
    /// A turn of the workload.
    Work,
    /// A look at who is no member any more.
    Care,
    /// An action on a node ends by itself.
    Job {
        at: usize,
        life: u64,
        id: JobId,
    },
    /// A process that said farewell ends.
    Halted {
        at: usize,
        life: u64,
    },
    /// An action is asked for.
    Act,
    /// A member takes a new key in use.
    Switch {
        at: usize,
        life: u64,
        fingerprint: Fingerprint,
    },
    /// A slow processor takes up the next event.
    Turn {
        at: usize,
        life: u64,
    },
}

/// One run.
pub(crate) struct World {
    pub(crate) mix: Mix,
    pub(crate) time: u64,
    queue: BTreeMap<(u64, u64), Due>,
    count: u64,
    pub(crate) sites: Vec<Site>,
    pub(crate) network: Network,
    /// What the network and the disks do when nothing is broken.
    usual: Usual,
    usual_fsync: (u64, u64),
    pub(crate) active: Active,
    pub(crate) faults: Vec<Fault>,
    /// When the first faults were scheduled.
    begun: Option<u64>,
    planted: Planted,
    pub(crate) ledger: Ledger,
    pub(crate) enrolments: Vec<Enrolment>,
    pub(crate) checker: Checker,
    pub(crate) coverage: BTreeMap<&'static str, u64>,
    pub(crate) nodes: Vec<(NodeName, Vec<usize>)>,
    /// Who acted for each node when a scenario looked.
    pub(crate) noted: Vec<Option<usize>>,
    /// The actions that run on nodes.
    pub(crate) jobs: Jobs,
    /// Whose next join is disturbed: by the end of which host, at which step.
    pub(crate) disturbed: BTreeMap<usize, (usize, u64)>,
    /// How often the workload asks something; not at all when zero.
    pub(crate) work_every: u64,
    /// How often it asks for an action; not at all when zero.
    pub(crate) act_every: u64,
    pub(crate) works: u64,
    /// Whether the load moves and drains nothing.
    pub(crate) only_writes: bool,
    /// Whether members are deleted and invited again.
    pub(crate) churn: bool,
    /// Whether who is no member any more is invited again.
    pub(crate) cares: bool,
    told: BTreeMap<(usize, usize), (u64, Rc<Facts>)>,
    voters: BTreeMap<Version, Rc<BTreeSet<MemberId>>>,
    pub(crate) seen_roster: Vec<Option<Version>>,
    seen_incarnation: Vec<(u64, u64)>,
    /// How far each member had come when last looked at, and since when it has quorum.
    pub(crate) seen_standing: Vec<(Standing, u64)>,
    hash: digest::Context,
    pub(crate) events: u64,
    /// What is seen of the run, when it is wanted.
    pub(crate) trace: Option<Trace>,
    /// Lines for people, when they are wanted.
    pub(crate) story: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, seed: u64, options: &Options) -> Self {
        let mix = Mix::new(seed);
        let mut sites: Vec<_> = (0..scenario.members).map(|number| Site::new(mix, number)).collect();
        for (site, drift) in sites.iter_mut().zip(&scenario.drift_ppm) {
            site.clock.drift_ppm = *drift;
        }
        if scenario.faults.iter().any(|fault| fault.kind.needs_history()) {
            sites.iter_mut().for_each(|site| site.disk.keep_history());
        }
        let count = sites.len();
        let mut world = Self {
            mix,
            time: 0,
            queue: BTreeMap::new(),
            count: 0,
            sites,
            network: Network::default(),
            usual: scenario.network,
            usual_fsync: scenario.fsync,
            active: Active::without(&scenario.unlinked),
            faults: Vec::new(),
            begun: None,
            planted: scenario.planted.map(Planted::one).unwrap_or_default(),
            ledger: Ledger::default(),
            enrolments: Vec::new(),
            checker: Checker::default(),
            coverage: BTreeMap::new(),
            nodes: Vec::new(),
            noted: Vec::new(),
            jobs: Jobs::default(),
            disturbed: BTreeMap::new(),
            work_every: 0,
            act_every: 0,
            works: 0,
            only_writes: !scenario.load.moves,
            churn: false,
            cares: false,
            told: BTreeMap::new(),
            voters: BTreeMap::new(),
            seen_roster: vec![None; count],
            seen_incarnation: vec![(0, 0); count],
            seen_standing: vec![(Standing::Isolated, 0); count],
            hash: digest::Context::new(&digest::SHA256),
            events: 0,
            trace: options.trace.then(Trace::default),
            story: options.story.then(Vec::new),
        };
        for a in 0..count {
            for b in a + 1..count {
                world.after(DIAL_EVERY, Due::Dial { a, b });
            }
            world.after(LOOK_EVERY, Due::Look { at: a });
            world.after(500 * MS, Due::Gossip { at: a });
        }
        world.found(ClusterId(mix.bytes(Purpose::Identity, 1_000)), scenario.timing);
        world
    }

    /// Returns the hash over everything that happened so far.
    pub(crate) fn trace_hash(&self) -> String {
        data_encoding::HEXLOWER.encode(self.hash.clone().finish().as_ref())
    }

    // ---- Time ----

    pub(crate) fn at(&mut self, time: u64, due: Due) {
        self.count += 1;
        self.queue.insert((time.max(self.time), self.count), due);
    }

    pub(crate) fn after(&mut self, delay: u64, due: Due) {
        self.at(self.time + delay, due);
    }

    /// Lets everything happen that is due until `time`; ends early at the first violation.
    pub(crate) fn run_until(&mut self, time: u64) {
        while self.checker.violations.is_empty() {
            let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= time) else { break };
            self.time = entry.key().0;
            let due = entry.remove();
            self.happen(due);
        }
        if self.checker.violations.is_empty() {
            self.time = self.time.max(time);
        }
    }

    fn happen(&mut self, due: Due) {
        self.events += 1;
        match due {
            Due::Wake { at, life } => {
                let site = &mut self.sites[at];
                if site.life == life && site.wake.is_some_and(|wake| wake <= self.time) {
                    site.wake = None;
                    self.handle(at, Event::Wake);
                }
            }
            Due::Durable { at, life } => {
                if self.sites[at].life == life && self.sites[at].is_up() && !self.refuses_saves(at) {
                    let tickets = self.complete_sync(at);
                    self.sync(at);
                    if !self.planted.has(Bug::LyingDisk) {
                        self.handle(at, Event::Saved { tickets });
                    }
                }
            }
            Due::Lie { at, life, ticket } => {
                if self.sites[at].life == life {
                    self.handle(at, Event::Saved { tickets: vec![ticket] });
                }
            }
            Due::Frame { from, to, link, channel, frame, reliable } => {
                self.arrive(from, to, link, channel, frame, reliable);
            }
            Due::Stream { from, to, link, channel } => self.pump(from, to, link, channel),
            Due::Dial { a, b } => {
                self.dial(a, b);
                let every = DIAL_EVERY + self.mix.range(Purpose::Dial, self.count, 0, 200) * MS;
                self.after(every, Due::Dial { a, b });
            }
            Due::Shake { a, b, hellos } => self.shake(a, b, *hellos),
            Due::Look { at } => {
                self.look(at);
                self.after(LOOK_EVERY, Due::Look { at });
            }
            Due::Gone { at, peer, link, reason } => {
                if self.network.end(at, peer).is_some_and(|end| end.link == link) {
                    self.lose_end(at, peer, reason);
                }
            }
            Due::Expelled { at, life, notice } => {
                // Told on a connection of that life, which may have ended since.
                if self.sites[at].life == life {
                    self.handle(at, Event::Expelled { notice });
                }
            }
            Due::Gossip { at } => {
                self.gossip(at);
                let every = self.gossip_interval(at);
                self.after(every, Due::Gossip { at });
            }
            Due::Heard { to, life, from, facts } => {
                if self.sites[to].life == life && self.sites[to].is_up() {
                    self.told.insert((to, from), (life, facts.clone()));
                    let peer = self.sites[from].fingerprint;
                    self.handle(to, Event::Gossip { peer, facts: (*facts).clone() });
                }
            }
            Due::Begin(number) => self.begin(number),
            Due::End(number) => self.end(number),
            Due::Join { enrolment, step } => self.on_join(enrolment, step),
            Due::Boot { at } => self.boot(at),
            Due::Job { at, life, id } => self.end_job(at, life, id),
            Due::Act => self.act_now(),
            Due::Halted { at, life } => {
                if self.sites[at].life == life {
                    self.die(at, Death::Stopped);
                }
            }
            Due::Turn { at, life } => self.take_turn(at, life),
            Due::Switch { at, life, fingerprint } => self.switch_identity(at, life, fingerprint),
            Due::Care => {
                self.care();
                self.after(SECOND, Due::Care);
            }
            Due::Work => {
                if self.work_every > 0 {
                    self.work();
                    let every = self.mix.range(Purpose::Workload, self.works << 8, 1, 2 * self.work_every);
                    self.after(every, Due::Work);
                }
            }
        }
    }

    pub(crate) fn start_work(&mut self, every: u64) {
        self.work_every = every;
        if every > 0 {
            self.after(every, Due::Work);
        }
    }

    /// Begins to invite whoever is no member any more; with churn, members are deleted and leave as well.
    pub(crate) fn start_care(&mut self, churn: bool) {
        self.churn = churn;
        self.cares = true;
        self.after(SECOND, Due::Care);
    }

    pub(crate) fn join_later(&mut self, delay: u64, enrolment: usize, step: crate::enrol::Step) {
        self.after(delay, Due::Join { enrolment, step });
    }

    pub(crate) fn boot_later(&mut self, delay: u64, at: usize) {
        self.after(delay, Due::Boot { at });
    }

    // ---- Processes ----

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
                self.seen_roster[at] = None;
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
            Death::Killed | Death::Torn => self.mix.range(Purpose::Crash, self.count, 0, pending as u64) as usize,
        };
        for peer in self.network.linked(at) {
            if let Some(link) = self.network.link(at, peer).filter(|_| !death.is_dark())
                && self.active.passes(at, peer, self.time)
            {
                let delay = self.delay(at, peer);
                self.after(delay, Due::Gone { at: peer, peer: at, link, reason: "the daemon ended" });
            }
            self.network.drop_end(at, peer);
        }
        self.ledger.orphan(at);
        self.break_joins(at, death);
        if let Err(error) = self.sites[at].die(survive) {
            self.violate(Rule::NothingLost, format!("the store of m{at} cannot be read: {error:#}"));
        }
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
        if !matches!(event, Event::Wake | Event::Received { .. }) {
            let text = format!("{event:?}");
            self.trace(at, b"event", text.as_bytes());
        }
        let site = &mut self.sites[at];
        let now = site.now(self.time);
        if let Event::Received { peer, message: Message::LeaseAck(ack) } = &event {
            let granted = matches!(ack.verdict, Verdict::Granted { .. });
            let sent = site.asked.remove(&ack.seq).filter(|_| granted);
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
            effect => {
                let text = format!("{effect:?}");
                self.trace(at, b"effect", text.as_bytes());
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
                self.sites[at].facts = Some(Rc::new(facts));
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

    fn save(&mut self, at: usize, ticket: Ticket, records: Vec<collective::proto::record::Record>) {
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

    pub(crate) fn site_of(&self, key: Fingerprint) -> Option<usize> {
        self.sites.iter().position(|site| site.has_key(key))
    }

    // ---- Faults ----

    /// Schedules faults relative to now.
    pub(crate) fn schedule(&mut self, faults: Vec<Fault>) {
        let late = self.time - *self.begun.get_or_insert(self.time);
        for mut fault in faults {
            let number = self.faults.len();
            self.at(self.time + fault.at, Due::Begin(number));
            if let Some(until) = fault.until {
                self.at(self.time + until, Due::End(number));
            }
            // Kept, and told, by when it is since load and faults began.
            fault.at += late;
            fault.until = fault.until.map(|until| until + late);
            self.faults.push(fault);
        }
    }

    fn begin(&mut self, number: usize) {
        let Fault { kind, at, until, .. } = self.faults[number].clone();
        self.count(kind.word());
        self.tell(|| format!("FAULT {kind}"));
        let until = until.map(|until| self.time + (until - at));
        self.active.begin(number, self.time, until, kind.clone());
        let draw = self.faults[number].number;
        self.note(None, || Seen::Fault { number: draw, kind: kind.word().to_owned(), what: kind.to_string() });
        match &kind {
            Kind::Crash(at) => self.doom(*at, number, Death::Killed),
            Kind::Power { members, disk } => {
                let death = if *disk == Fate::Torn { Death::Torn } else { Death::Power };
                members.iter().for_each(|at| self.doom(*at, number, death));
            }
            Kind::Stop(at) => {
                self.sites[*at].downs += 1;
                self.handle(*at, Event::Stop);
            }
            Kind::Pause(at) | Kind::Freeze(at) => {
                self.sites[*at].pauses += 1;
                self.note(Some(*at), || Seen::Pause);
            }
            kind => self.begin_rare(kind, number),
        }
    }

    /// Kills a process, in half of the cases only in the middle of what its next event makes it do.
    pub(crate) fn doom(&mut self, at: usize, number: usize, death: Death) {
        self.sites[at].downs += 1;
        let draw = self.mix.bits(Purpose::Crash, self.faults[number].number << 32 | at as u64);
        if draw.is_multiple_of(2) || self.sites[at].is_paused() {
            self.die(at, death);
        } else if self.sites[at].is_up() {
            self.sites[at].doomed = Some(((draw / 2 % 5) as usize, death));
        }
    }

    fn end(&mut self, number: usize) {
        let Fault { kind, until, at, .. } = self.faults[number].clone();
        self.tell(|| format!("END {kind}"));
        self.active.end(number);
        let draw = self.faults[number].number;
        self.note(None, || Seen::Healed { number: draw, what: kind.to_string() });
        match &kind {
            Kind::Crash(at) | Kind::Stop(at) => self.revive(*at),
            Kind::Power { members, disk } => {
                members.iter().for_each(|member| self.return_from(*member, *disk, until, at));
            }
            Kind::Pause(at) => self.go_on(*at),
            Kind::Freeze(member) => {
                let since = self.time - (until.unwrap_or(at) - at);
                self.sites[*member].clock.freeze(since, self.time);
                self.go_on(*member);
            }
            kind => self.end_rare(kind, until, at),
        }
    }

    pub(crate) fn revive(&mut self, at: usize) {
        let site = &mut self.sites[at];
        site.downs = site.downs.saturating_sub(1);
        if let Some((_, death)) = site.doomed.take() {
            self.die(at, death);
        }
        if self.sites[at].is_up() {
            // A stop that had not come to its end.
            self.die(at, Death::Killed);
        }
        self.boot(at);
    }

    pub(crate) fn go_on(&mut self, at: usize) {
        let site = &mut self.sites[at];
        site.pauses = site.pauses.saturating_sub(1);
        if site.pauses > 0 {
            return;
        }
        self.note(Some(at), || Seen::Resume);
        for event in self.sites[at].take_inbox() {
            self.handle(at, event);
        }
        self.handle(at, Event::Wake);
    }

    // ---- The network ----

    fn gossip_interval(&self, at: usize) -> u64 {
        let roster = self.sites[at].core.as_ref().map(Collective::roster);
        let usual = roster.map_or(500, |roster| u64::from(roster.timing.gossip_interval_ms)) * MS;
        usual * self.mix.range(Purpose::Gossip, self.count, 90, 110) / 100
    }

    /// Tells a member's facts to everybody that links reach from it: a stand-in for chitchat, which tells what is new
    /// only, and lets others pass it on.
    fn gossip(&mut self, at: usize) {
        let Some(facts) = self.sites[at].facts.clone().filter(|_| self.sites[at].is_awake()) else { return };
        let mut hops = BTreeMap::from([(at, 0_u64)]);
        let mut front = vec![at];
        while let Some(from) = front.pop() {
            for to in self.network.linked(from) {
                if !hops.contains_key(&to)
                    && self.sites[to].is_awake()
                    && self.network.link(from, to).is_some()
                    && self.active.passes(from, to, self.time)
                {
                    hops.insert(to, hops[&from] + 1);
                    front.insert(0, to);
                }
            }
        }
        for (to, hops) in hops.into_iter().filter(|(to, _)| *to != at) {
            let life = self.sites[to].life;
            let told = self.told.get(&(to, at)).is_some_and(|(of, told)| *of == life && *told == facts);
            let is_peer = self.sites[to].peers.contains(&self.sites[at].fingerprint);
            let packet = self.network.packet(at, to);
            if told || !is_peer || self.mix.chance(Purpose::Loss, packet, self.active.loss()) {
                continue;
            }
            let delay = self.delay(at, to) * hops;
            self.after(delay, Due::Heard { to, life, from: at, facts: facts.clone() });
        }
    }

    // ---- Requests ----

    /// Asks a member something, as an administrator would there.
    pub(crate) fn request(&mut self, at: usize, id: RequestId, request: Request, within_ms: u64) {
        let entropy = Box::new(self.mix.bytes(Purpose::Entropy, id));
        self.handle(at, Event::Request { id, request, within_ms, entropy });
    }

    pub(crate) fn join_event(&mut self, at: usize, event: Event) {
        self.handle(at, event);
    }

    /// Returns which enrolment a join stream belongs to.
    pub(crate) fn enrolment_of(&self, id: JoinId) -> Option<usize> {
        self.enrolments.iter().position(|enrolment| enrolment.id == id)
    }

    // ---- Watching ----

    pub(crate) fn violate(&mut self, rule: Rule, what: String) {
        self.checker.violate(self.time, rule, what);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:9.3}s {}", self.time as f64 / 1e9, line()));
        }
    }

    fn trace(&mut self, at: usize, what: &[u8], bytes: &[u8]) {
        self.hash.update(&self.time.to_le_bytes());
        self.hash.update(&(at as u64).to_le_bytes());
        self.hash.update(what);
        self.hash.update(bytes);
    }

    fn voters_of(&mut self, at: usize) -> Option<Rc<BTreeSet<MemberId>>> {
        let roster = self.sites[at].core.as_ref()?.roster();
        let voters = self.voters.entry(roster.version).or_insert_with(|| Rc::new(roster.voters().clone()));
        Some(voters.clone())
    }

    /// Checks what must hold at every moment, after a member did something: only then can anything begin.
    fn check(&mut self, at: usize) {
        self.watch_roster(at);
        self.look_closely(at);
        self.watch(at);
    }

    fn look_closely(&mut self, at: usize) {
        let time = self.time;
        let Some(core) = &self.sites[at].core else { return };
        let version = core.roster().version;
        let is_new = self.seen_roster[at] != Some(version);
        if is_new {
            self.seen_roster[at] = Some(version);
            let hash = core.roster().hash();
            self.checker.roster(time, at, version, hash);
            let ids = core.roster().ids().collect();
            self.checker.members(time, version, ids);
        }
        self.check_seat(at);
        let Some(voters) = self.voters_of(at) else { return };
        let Some(core) = &self.sites[at].core else { return };
        let now = self.sites[at].now(time).boot;
        if core.is_quorate(now) {
            self.coverage.entry("quorate").and_modify(|count| *count += 1).or_insert(1);
            let who = Authority { member: at, me: core.id(), voters: &voters, timing: core.roster().timing };
            self.checker.authority(time, who, now.as_nanos(), "holds quorum");
            self.check_quorums();
        }
        let Some(core) = &self.sites[at].core else { return };
        let (me, timing) = (core.id(), core.roster().timing);
        let mine: Vec<_> =
            core.acting().filter(|node| core.acts(node, self.sites[at].now(time).boot)).cloned().collect();
        if !mine.is_empty() {
            self.checker.acts_as(time, at, me, timing);
        }
        for node in mine {
            let acting: Vec<_> = (0..self.sites.len()).filter(|site| self.acts(*site, &node)).collect();
            *self.coverage.entry("act").or_default() += acting.len() as u64;
            self.checker.acting(time, node.as_str(), &acting);
        }
    }

    fn check_quorums(&mut self) {
        // Under one voter set two majorities always meet; only different ones need a look.
        let versions: BTreeSet<_> = self.seen_roster.iter().flatten().copied().collect();
        if versions.len() < 2 {
            return;
        }
        let mut held = Vec::new();
        for at in 0..self.sites.len() {
            if let Some(voters) = self.voters_of(at)
                && let Some(core) = &self.sites[at].core
                && core.is_quorate(self.sites[at].now(self.time).boot)
            {
                held.push((at, voters));
            }
        }
        let held: Vec<_> = held.iter().map(|(at, voters)| (*at, &**voters)).collect();
        self.checker.quorums(self.time, &held);
    }

    /// Returns whether a member acts for a node at this very moment, by its own clock.
    pub(crate) fn acts(&self, at: usize, node: &NodeName) -> bool {
        let site = &self.sites[at];
        site.core.as_ref().is_some_and(|core| core.acts(node, site.now(self.time).boot))
    }

    /// Returns how many of those voters have a value on their disks.
    pub(crate) fn copies(&self, voters: &BTreeSet<MemberId>, node: &NodeName, key: &str, value: &str) -> usize {
        let entity = Entity::Node(node.clone());
        self.sites.iter().filter(|site| site.holds(voters, &entity, key, value)).count()
    }

    pub(crate) fn is_seated(&self, at: usize) -> bool {
        self.sites[at].core.as_ref().is_some_and(|core| core.standing() == Standing::Seated)
    }

    pub(crate) fn is_quorate(&self, at: usize) -> bool {
        let site = &self.sites[at];
        site.core.as_ref().is_some_and(|core| core.is_quorate(site.now(self.time).boot))
    }
}

/// Returns what a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without words".to_owned())
}
