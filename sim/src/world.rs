//! The second shell: an event queue in virtual time around shipped cores, performing their effects in the order given.

mod breakage;
mod gossip;
mod links;
mod process;
mod restored;
mod traffic;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use collective::proto::collective::{Event, JobId, JoinId, RequestId, Ticket};
use collective::proto::identity::{ClusterId, Fingerprint, MemberId};
use collective::proto::message::{Channel, Hello};
use collective::proto::name::NodeName;
use collective::proto::planted::{Bug, Planted};
use collective::proto::request::{Request, Standing};
use collective::proto::roster::Version;

use crate::check::Checker;
use crate::enrol::Enrolment;
use crate::fault::{Active, Fault, MS, SECOND};
use crate::hash::Hash;
use crate::inject::Jobs;
use crate::mix::{Mix, Purpose};
use crate::network::{Frame, Network};
use crate::queue::Queue;
use crate::run::Options;
use crate::scenario::{Load, Scenario, Usual};
use crate::site::{Death, Site};
use crate::trace::Trace;
use crate::workload::Ledger;
use gossip::Heard;
pub(crate) use gossip::Told;
use watch::Seen;

/// How often the links that are up are looked at.
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

/// The frames that were sent, and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// One run.
pub(crate) struct World {
    pub(crate) mix: Mix,
    pub(crate) time: u64,
    queue: Queue<Due>,
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
    /// What is asked, besides writes.
    pub(crate) load: Load,
    /// Whether who is no member any more is invited again.
    pub(crate) cares: bool,
    heard: Heard,
    /// The site of each key that was looked up, while no two share one.
    keys: BTreeMap<Fingerprint, usize>,
    /// Whether an identity was ever cloned.
    pub(crate) has_clones: bool,
    /// Which pairs are being dialled until their link is up.
    is_dialling: Vec<bool>,
    voters: BTreeMap<Version, Rc<BTreeSet<MemberId>>>,
    /// What was seen of each member after its last event.
    pub(crate) seen: Seen,
    seen_incarnation: Vec<(u64, u64)>,
    /// How far each member had come when last looked at, and since when it has quorum.
    pub(crate) seen_standing: Vec<(Standing, u64)>,
    hash: Hash,
    /// The frame that was encoded last: room for the next one.
    encoded: Vec<u8>,
    pub(crate) events: u64,
    pub(crate) sent: Sent,
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
            queue: Queue::default(),
            sites,
            network: Network::new(count),
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
            load: scenario.load,
            cares: false,
            heard: Heard::new(count),
            keys: BTreeMap::new(),
            has_clones: false,
            is_dialling: vec![false; count * count],
            voters: BTreeMap::new(),
            seen: Seen::new(count),
            seen_incarnation: vec![(0, 0); count],
            seen_standing: vec![(Standing::Isolated, 0); count],
            hash: Hash::new(),
            encoded: Vec::new(),
            events: 0,
            sent: Sent::default(),
            trace: options.trace.then(Trace::default),
            story: options.story.then(Vec::new),
        };
        for a in 0..count {
            for b in a + 1..count {
                world.keep_dialling(a, b);
            }
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
        self.hash.text()
    }

    // ---- Time ----

    pub(crate) fn at(&mut self, time: u64, due: Due) {
        self.queue.push(time.max(self.time), due);
    }

    pub(crate) fn after(&mut self, delay: u64, due: Due) {
        self.at(self.time + delay, due);
    }

    /// Lets everything happen that is due until `time`; ends early at the first violation.
    pub(crate) fn run_until(&mut self, time: u64) {
        while self.checker.violations.is_empty() {
            let Some((when, due)) = self.queue.pop_by(time) else { break };
            self.time = when;
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

    /// Begins to invite whoever is no member any more.
    pub(crate) fn start_care(&mut self) {
        self.cares = true;
        self.after(SECOND, Due::Care);
    }

    pub(crate) fn join_later(&mut self, delay: u64, enrolment: usize, step: crate::enrol::Step) {
        self.after(delay, Due::Join { enrolment, step });
    }

    pub(crate) fn boot_later(&mut self, delay: u64, at: usize) {
        self.after(delay, Due::Boot { at });
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

/// Returns what a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without words".to_owned())
}
