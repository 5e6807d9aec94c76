//! The second shell: an event queue in virtual time around shipped cores, performing their effects in the order given.

mod breakage;
mod gossip;
mod links;
mod process;
mod restored;
mod traffic;
mod watch;

use std::collections::BTreeMap;

use collective::proto::collective::{Event, JoinId, RequestId, Ticket};
use collective::proto::identity::{ClusterId, Fingerprint};
use collective::proto::message::{Channel, Hello};
use collective::proto::name::NodeName;
use collective::proto::request::Request;

use crate::check::Checker;
use crate::enrol::Enrolment;
use crate::fault::{Active, Fault, MS, SECOND};
use crate::mix::{Mix, Purpose};
use crate::network::{Frame, Network};
use crate::queue::Queue;
use crate::scenario::{Plan, Sabotage, Scenario};
use crate::site::Site;
use crate::trace::Trace;
use crate::workload::Ledger;
pub(crate) use gossip::Told;

/// How often a member's links are looked at.
const LOOK_EVERY: u64 = SECOND;

/// Something that is due.
#[derive(Debug)]
enum Due {
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
        told: Told,
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
}

/// One run.
pub(crate) struct World {
    pub(crate) mix: Mix,
    pub(crate) time: u64,
    queue: Queue<Due>,
    pub(crate) sites: Vec<Site>,
    /// The number of the site with each key.
    by_key: BTreeMap<Fingerprint, usize>,
    network: Network,
    /// The pairs, lower number first, whose link is being dialled.
    is_dialling: Vec<bool>,
    /// When every link was looked at last and found well.
    calm_at: u64,
    pub(crate) active: Active,
    pub(crate) faults: Vec<Fault>,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) ledger: Ledger,
    pub(crate) enrolments: Vec<Enrolment>,
    pub(crate) checker: Checker,
    pub(crate) coverage: BTreeMap<&'static str, u64>,
    pub(crate) nodes: Vec<(NodeName, Vec<usize>)>,
    /// Who acted for each node when a scenario looked.
    pub(crate) noted: Vec<Option<usize>>,
    /// How often the workload asks something; not at all when zero.
    pub(crate) work_every: u64,
    pub(crate) works: u64,
    /// Whether the load moves and drains nothing.
    pub(crate) only_writes: bool,
    /// Whether members are deleted and invited again.
    pub(crate) churn: bool,
    /// The number of the last write in the ledger.
    pub(crate) last_write: usize,
    /// The write that a scenario looks for.
    pub(crate) noted_write: usize,
    heard: gossip::Heard,
    seen: watch::Seen,
    seen_incarnation: Vec<(u64, u64)>,
    trace: Trace,
    pub(crate) events: u64,
    /// Lines for people, when they are wanted.
    pub(crate) story: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, seed: u64, tell: bool) -> Self {
        let mix = Mix::new(seed);
        let sites: Vec<_> = (0..scenario.members).map(|number| Site::new(mix, number)).collect();
        let count = sites.len();
        let mut world = Self {
            mix,
            time: 0,
            queue: Queue::default(),
            by_key: sites.iter().enumerate().map(|(number, site)| (site.fingerprint, number)).collect(),
            sites,
            network: Network::new(count),
            is_dialling: vec![false; count * count],
            calm_at: 0,
            active: Active::default(),
            faults: Vec::new(),
            sabotage: scenario.sabotage,
            ledger: Ledger::default(),
            enrolments: Vec::new(),
            checker: Checker::default(),
            coverage: BTreeMap::new(),
            nodes: Vec::new(),
            noted: Vec::new(),
            work_every: 0,
            works: 0,
            only_writes: !matches!(scenario.faults, Plan::Random),
            churn: false,
            last_write: 0,
            noted_write: 0,
            heard: gossip::Heard::new(count),
            seen: watch::Seen::new(count),
            seen_incarnation: vec![(0, 0); count],
            trace: Trace::default(),
            events: 0,
            story: tell.then(Vec::new),
        };
        for a in 0..count {
            (a + 1..count).for_each(|b| world.keep_dialling(a, b));
            world.after(LOOK_EVERY, Due::Look { at: a });
            world.after(500 * MS, Due::Gossip { at: a });
        }
        let cluster = ClusterId(mix.bytes(Purpose::Identity, 1_000));
        match scenario.restored {
            Some(voters) => world.restore(cluster, scenario.timing, voters),
            None => world.found(cluster, scenario.timing),
        }
        world
    }

    /// Returns the hash over everything that happened so far.
    pub(crate) fn trace_hash(&self) -> String {
        self.trace.hash()
    }

    // ---- Time ----

    fn at(&mut self, time: u64, due: Due) {
        self.queue.push(time.max(self.time), due);
    }

    fn after(&mut self, delay: u64, due: Due) {
        self.at(self.time + delay, due);
    }

    /// Lets everything happen that is due until `time`; ends early at the first violation.
    pub(crate) fn run_until(&mut self, time: u64) {
        while self.checker.violations.is_empty() {
            let Some((at, due)) = self.queue.pop_by(time) else { break };
            self.time = at;
            self.happen(due);
        }
        self.tally();
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
                if self.sites[at].life == life && self.sites[at].is_up() {
                    let tickets = self.sites[at].disk.complete();
                    self.sync(at);
                    if self.sabotage != Some(Sabotage::LyingDisk) {
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
            Due::Dial { a, b } => self.dial_again(a, b),
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
            Due::Heard { to, life, from, told } => self.hear(to, life, from, &told),
            Due::Begin(number) => self.begin(number),
            Due::End(number) => self.end(number),
            Due::Join { enrolment, step } => self.on_join(enrolment, step),
            Due::Boot { at } => self.boot(at),
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

    /// Begins to change who is a member, beside the rest of the load.
    pub(crate) fn start_churn(&mut self) {
        self.churn = true;
        self.after(SECOND, Due::Care);
    }

    pub(crate) fn join_later(&mut self, delay: u64, enrolment: usize, step: crate::enrol::Step) {
        self.after(delay, Due::Join { enrolment, step });
    }

    pub(crate) fn boot_later(&mut self, delay: u64, at: usize) {
        self.after(delay, Due::Boot { at });
    }

    pub(crate) fn site_of(&self, key: Fingerprint) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// Gives a site a fresh key.
    pub(crate) fn give_key(&mut self, at: usize, key: Fingerprint) {
        self.by_key.remove(&self.sites[at].fingerprint);
        self.by_key.insert(key, at);
        self.sites[at].fingerprint = key;
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
}
