//! The stage: everything the members of one simulation share, and what is watched of them.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use collective::daemon::Asked;
use collective::proto::identity::{ClusterId, Fingerprint, MemberId};
use collective::proto::name::NodeName;
use ring::digest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::care::{Doom, Past};
use super::disk::Disk;
use super::home::Writer;
use super::ledger::{Durable, Ledger};
use super::process::Process;
use super::watch::Seen;
use super::wire::Wire;
use crate::check::{Checker, Rule};
use crate::clock::Clock;
use crate::fault::{Active, Fault, MS};
use crate::mix::{Mix, Purpose};
use crate::scenario::{Scenario, Usual};

/// One simulation, shared by everything in it.
pub(super) struct Stage(Mutex<State>);

impl Stage {
    pub(super) fn new(mix: Mix, scenario: &Scenario, tell: bool) -> Arc<Self> {
        let members = scenario.members;
        Arc::new(Self(Mutex::new(State {
            base: Instant::now(),
            mix,
            wire: Wire::new(members),
            active: Active::without(&scenario.unlinked),
            faults: Vec::new(),
            network: scenario.network,
            fsync: scenario.fsync,
            sites: (0..members).map(|number| Site::new(mix, number, scenario.drift_ppm.get(number).copied())).collect(),
            cluster: None,
            nodes: Vec::new(),
            noted: Vec::new(),
            ledger: Ledger::default(),
            wanted: BTreeSet::new(),
            found: BTreeMap::new(),
            past: BTreeMap::new(),
            disturbed: BTreeMap::new(),
            doomed: None,
            checker: Checker::default(),
            coverage: BTreeMap::new(),
            hash: digest::Context::new(&digest::SHA256),
            events: 0,
            story: tell.then(Vec::new),
        })))
    }

    /// Everything happens on one thread, and nobody waits while holding this.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stage")
    }
}

/// What is shared.
pub(super) struct State {
    base: Instant,
    pub(super) mix: Mix,
    pub(super) wire: Wire,
    pub(super) active: Active,
    pub(super) faults: Vec<Fault>,
    /// What the network and the disks do when nothing is broken.
    pub(super) network: Usual,
    fsync: (u64, u64),
    pub(super) sites: Vec<Site>,
    /// The collective that the first member founded; the others begin in ones of their own.
    pub(super) cluster: Option<ClusterId>,
    pub(super) nodes: Vec<(NodeName, Vec<usize>)>,
    /// Who acted for each node when a scenario looked.
    pub(super) noted: Vec<Option<usize>>,
    pub(super) ledger: Ledger,
    /// Members whose documents shall be read when they do something next, and what was read there of each write.
    pub(super) wanted: BTreeSet<usize>,
    pub(super) found: BTreeMap<usize, Vec<Option<String>>>,
    /// Copies of disks, by the fault that brings them back and the member.
    pub(super) past: BTreeMap<(usize, usize), Past>,
    /// Members that lost their disk, with who is to invite them again and at which step of the join that one dies.
    pub(super) disturbed: BTreeMap<usize, (usize, u64)>,
    /// Who kills hosts of joins, once somebody does.
    pub(super) doomed: Option<mpsc::UnboundedSender<Doom>>,
    pub(super) checker: Checker,
    pub(super) coverage: BTreeMap<&'static str, u64>,
    hash: digest::Context,
    pub(super) events: u64,
    /// Lines for people, when they are wanted.
    pub(super) story: Option<Vec<String>>,
}

impl State {
    /// Returns the true time in nanoseconds since the run began.
    pub(super) fn time(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the moment of tokio's clock at which the true time is that.
    pub(super) fn moment(&self, time: u64) -> Instant {
        self.base + Duration::from_nanos(time)
    }

    /// Writes what happened at a member into the trace.
    pub(super) fn trace(&mut self, member: usize, what: &[u8], parts: &[&[u8]]) {
        self.events += 1;
        let time = self.time();
        self.hash.update(&time.to_le_bytes());
        self.hash.update(&(member as u64).to_le_bytes());
        self.hash.update(what);
        for part in parts {
            self.hash.update(&(part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
    }

    /// Returns the hash over everything that happened so far.
    pub(super) fn trace_hash(&self) -> String {
        data_encoding::HEXLOWER.encode(self.hash.clone().finish().as_ref())
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        let time = self.time();
        if let Some(story) = &mut self.story {
            story.push(format!("{:9.3}s {}", time as f64 / 1e9, line()));
        }
    }

    pub(super) fn violate(&mut self, rule: Rule, what: String) {
        let time = self.time();
        self.checker.violate(time, rule, what);
    }

    /// Returns how long the next fsync of a member takes, in nanoseconds.
    pub(super) fn fsync_delay(&mut self, member: usize) -> u64 {
        let site = &mut self.sites[member];
        site.syncs += 1;
        let (least, most) = self.fsync;
        let usual = self.mix.range(Purpose::Fsync, (member as u64) << 48 | site.syncs, least, most);
        self.active.fsync_ms(member).map_or(usual, |slow| usual + slow * MS)
    }
}

/// One site: a machine, and the process that runs on it, when it runs.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) clock: Clock,
    pub(super) disk: Disk,
    pub(super) running: Option<Running>,
    pub(super) writer: Option<Writer>,
    /// How often its process was started.
    pub(super) life: u64,
    /// Faults that keep the process from being started.
    pub(super) downs: u32,
    /// Faults that keep it from doing anything.
    pub(super) pauses: u32,
    syncs: u64,
    /// How often it drew random bytes.
    pub(super) draws: u64,
    pub(super) durable: Durable,
    /// What was last seen of the core, while it runs.
    pub(super) seen: Option<Arc<Seen>>,
    /// When each lease request was sent, on its own clock.
    pub(super) asked: BTreeMap<u64, u64>,
    /// Its enrolment, as the last core had it.
    pub(super) member: Option<MemberId>,
    /// Who is behind which key, by the roster in force here.
    pub(super) keys: BTreeMap<Fingerprint, MemberId>,
    /// How many lives of the daemon began; one process may live several.
    pub(super) birth: u64,
    /// The life that told an incarnation last.
    pub(super) told: u64,
    /// Since when its disk is one of the past, or has a rival's.
    pub(super) set_back: Option<u64>,
    /// The fault by which it is a copy of another one.
    pub(super) cloned_by: Option<usize>,
    /// Through whom it is being invited again.
    pub(super) host: Option<usize>,
}

/// A process that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) requests: mpsc::Sender<Asked>,
    pub(super) stop: Option<oneshot::Sender<()>>,
}

impl Site {
    fn new(mix: Mix, number: usize, drift_ppm: Option<i64>) -> Self {
        let index = number as u64;
        let drift = mix.range(Purpose::Clock, 3 * index, 0, 40_000) as i64 - 20_000;
        let offset = mix.range(Purpose::Clock, 3 * index + 1, 10, 5_000_000) * 1_000_000_000;
        let skew = mix.range(Purpose::Clock, 3 * index + 2, 0, 20_000) as i64 - 10_000;
        Self {
            clock: Clock::new(offset, drift_ppm.unwrap_or(drift), skew),
            disk: Disk::default(),
            running: None,
            writer: None,
            life: 0,
            downs: 0,
            pauses: 0,
            syncs: 0,
            draws: 0,
            durable: Durable::default(),
            seen: None,
            asked: BTreeMap::new(),
            member: None,
            keys: BTreeMap::new(),
            birth: 0,
            told: 0,
            set_back: None,
            cloned_by: None,
            host: None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Returns whether it answers packets right now.
    pub(super) fn is_awake(&self) -> bool {
        self.is_up() && self.pauses == 0
    }
}
