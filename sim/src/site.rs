//! One simulated site: a machine with its clock and disk, and the process that runs on it, when it runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use collective::daemon::persist::Kept;
use collective::proto::collective::{Birth, Collective, Effect, Event};
use collective::proto::document::{Actor, Documents, Entity};
use collective::proto::identity::{Fingerprint, MemberId, SessionId};
use collective::proto::invite::Seed;
use collective::proto::lease::Stamp;
use collective::proto::name::MemberName;
use collective::proto::planted::Planted;
use collective::proto::time::Now;
use collective::store;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::mix::{Mix, Purpose};
use crate::world::Told;

/// What a process had to do before it could go on with what came meanwhile.
const INBOX_MAX: usize = 2_000;

/// One site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: MemberName,
    pub(crate) fingerprint: Fingerprint,
    /// Keys it used before.
    pub(crate) former: Vec<Fingerprint>,
    pub(crate) address: SocketAddr,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// Its enrolment, once it was let in.
    pub(crate) me: Option<MemberId>,
    /// How often its process was started.
    pub(crate) life: u64,
    /// The process, while it runs.
    pub(crate) core: Option<Collective>,
    /// What is on the disk, while the process does not run.
    kept: Option<Kept>,
    /// Faults that keep the process from doing anything.
    pub(crate) pauses: u32,
    inbox: VecDeque<Event>,
    /// Whether a slow processor is busy, so that events wait their turn.
    pub(crate) is_busy: bool,
    /// Since when its disk is one of the past, or its identity was cloned, so that it must be invited again.
    pub(crate) rolled_back: Option<u64>,
    /// The fault by which it is a copy of another one.
    pub(crate) cloned_by: Option<usize>,
    /// The enrolments whose disks are gone, with what was on them.
    lost: Vec<(MemberId, Documents)>,
    /// Faults that keep it from being started.
    pub(crate) downs: u32,
    /// The true time at which the core wants to wake.
    pub(crate) wake: Option<u64>,
    /// What it tells by gossip.
    pub(crate) told: Option<Told>,
    /// The keys it links to.
    pub(crate) peers: BTreeSet<Fingerprint>,
    /// The keys of removed members, with what to tell them.
    pub(crate) removed: BTreeMap<Fingerprint, String>,
    /// When each lease request was sent, on its own clock.
    pub(crate) asked: BTreeMap<u64, u64>,
    /// At which effect of the next event the process dies, and what becomes of its machine.
    pub(crate) doomed: Option<(usize, Death)>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// It is killed; others are told by their first packet to it.
    Killed,
    /// Its machine goes dark.
    Power,
    /// Its machine goes dark in the middle of a write: some of what was on its way is on the disk.
    Torn,
    /// It ended by itself and said so.
    Stopped,
}

impl Death {
    /// Returns how people call it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Power => "power lost",
            Self::Torn => "power lost in the middle of a write",
            Self::Stopped => "stopped",
        }
    }

    /// Returns whether the machine went dark with the process.
    pub(crate) fn is_dark(self) -> bool {
        matches!(self, Self::Power | Self::Torn)
    }
}

impl Site {
    pub(crate) fn new(mix: Mix, number: usize) -> Self {
        let index = number as u64;
        let drift = mix.range(Purpose::Clock, 3 * index, 0, 40_000) as i64 - 20_000;
        let offset = mix.range(Purpose::Clock, 3 * index + 1, 10, 5_000_000) * 1_000_000_000;
        let skew = mix.range(Purpose::Clock, 3 * index + 2, 0, 20_000) as i64 - 10_000;
        Self {
            name: MemberName::new(&name(number)).expect("a letter and a number are a member name"),
            fingerprint: Fingerprint(mix.bytes(Purpose::Identity, index)),
            former: Vec::new(),
            address: SocketAddr::from(([10, 0, (number / 250) as u8, (number % 250) as u8 + 1], 4747)),
            clock: Clock::new(offset, drift, skew),
            disk: Disk::default(),
            me: None,
            life: 0,
            core: None,
            kept: None,
            pauses: 0,
            inbox: VecDeque::new(),
            is_busy: false,
            rolled_back: None,
            cloned_by: None,
            lost: Vec::new(),
            downs: 0,
            wake: None,
            told: None,
            peers: BTreeSet::new(),
            removed: BTreeMap::new(),
            asked: BTreeMap::new(),
            doomed: None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pauses > 0
    }

    /// Returns whether events wait for a slow processor.
    pub(crate) fn has_backlog(&self) -> bool {
        self.is_busy
    }

    /// Takes the next event that waits.
    pub(crate) fn next_waiting(&mut self) -> Option<Event> {
        self.inbox.pop_front()
    }

    /// Returns whether a key is one that it uses, or used before.
    pub(crate) fn has_key(&self, key: Fingerprint) -> bool {
        self.fingerprint == key || self.former.contains(&key)
    }

    /// Returns whether it answers packets right now.
    pub(crate) fn is_awake(&self) -> bool {
        self.is_up() && !self.is_paused()
    }

    /// Returns what is durable of the documents, whether or not the process runs.
    pub(crate) fn documents(&self) -> Option<&Documents> {
        self.core.as_ref().map(Collective::documents).or_else(|| self.kept.as_ref().map(|kept| &kept.documents))
    }

    /// Returns whether one of those enrolments holds a value durably. One whose disk is gone still counts: it never votes
    /// again, so no majority can be found without those that hold it too.
    pub(crate) fn holds(&self, voters: &BTreeSet<MemberId>, entity: &Entity, key: &str, value: &str) -> bool {
        let now = self.me.zip(self.documents()).into_iter();
        let before = self.lost.iter().map(|(me, documents)| (*me, documents));
        now.chain(before).any(|(me, documents)| voters.contains(&me) && documents.get(entity, key) == Some(value))
    }

    /// Starts the process from what the disk kept, as the daemon does.
    pub(crate) fn boot(&mut self, mix: Mix, number: usize, time: u64, planted: Planted) -> anyhow::Result<Vec<Effect>> {
        let kept = match self.kept.take() {
            Some(kept) => kept,
            None => self.disk.load()?,
        };
        self.life += 1;
        let me = kept.me.ok_or_else(|| anyhow::anyhow!("a disk without an enrolment"))?;
        let roster = kept.roster.ok_or_else(|| anyhow::anyhow!("a disk without a roster"))?;
        anyhow::ensure!(kept.damage.is_empty(), "the disk is damaged: {:?}", kept.damage);
        let incarnation = kept.incarnation + 1;
        self.disk.commit(&[store::Record::Incarnation(incarnation)]);
        let mix = mix.fork(Purpose::Birth, (number as u64) << 32 | self.life);
        let birth = Birth {
            me,
            session: SessionId(mix.bytes(Purpose::Birth, 1)),
            stamp: Stamp { incarnation, sequence: kept.sequence },
            fingerprint: self.fingerprint,
            roster,
            acceptor: kept.acceptor,
            invites: kept.invites,
            peers: kept.peers,
            documents: kept.documents,
            removed: kept.removed,
            quarantined: BTreeSet::new(),
            addresses: vec![self.address],
            software: "sim".to_owned(),
            seed: mix.bytes(Purpose::Birth, 2),
            decoy: Seed::new(mix.bytes(Purpose::Birth, 3)),
            actor: Actor::new(me, mix.bytes(Purpose::Birth, 4)),
            intent: Default::default(),
        };
        let (mut core, effects) = Collective::start(birth, self.clock.now(time));
        core.plant(planted);
        self.core = Some(core);
        self.me = Some(me);
        self.asked.clear();
        Ok(effects)
    }

    /// Ends the process. Of the saves on their way the first `survive` still become durable.
    pub(crate) fn die(&mut self, survive: usize) -> anyhow::Result<()> {
        self.core = None;
        self.disk.crash(survive);
        self.kept = Some(self.disk.load()?);
        self.inbox.clear();
        self.is_busy = false;
        self.wake = None;
        self.told = None;
        self.doomed = None;
        self.peers.clear();
        self.removed.clear();
        Ok(())
    }

    /// Sets the disk aside: what comes next begins with an empty one.
    pub(crate) fn forget_everything(&mut self) {
        self.lost.extend(self.me.zip(self.documents().cloned()));
        self.disk = self.disk.emptied();
        self.kept = None;
        self.me = None;
        self.rolled_back = None;
        self.cloned_by = None;
        self.former.clear();
    }

    /// Replaces the disk of a machine that is down by what was on it at that time.
    pub(crate) fn roll_back(&mut self, to: u64, now: u64) -> anyhow::Result<()> {
        self.disk.roll_back(to);
        self.kept = Some(self.disk.load()?);
        self.rolled_back = Some(now);
        Ok(())
    }

    pub(crate) fn now(&self, time: u64) -> Now {
        self.clock.now(time)
    }

    /// Keeps an event for when the process goes on.
    pub(crate) fn keep_for_later(&mut self, event: Event) {
        if self.inbox.len() < INBOX_MAX || !matches!(event, Event::Gossip { .. } | Event::Wake) {
            self.inbox.push_back(event);
        }
    }

    pub(crate) fn take_inbox(&mut self) -> VecDeque<Event> {
        std::mem::take(&mut self.inbox)
    }
}

/// Returns the name of the member of that number.
pub(crate) fn name(number: usize) -> String {
    format!("m{number}")
}
