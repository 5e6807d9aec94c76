//! Three cores with a perfect disk and network between them, in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use collective::proto::collective::{Birth, Collective, Effect, Event};
use collective::proto::document::{Actor, Documents};
use collective::proto::facts::Facts;
use collective::proto::identity::{ClusterId, Fingerprint, InviteId, MemberId, SessionId};
use collective::proto::invite::Seed;
use collective::proto::lease::Stamp;
use collective::proto::name::MemberName;
use collective::proto::roster::{Change, Member, Role, Roster, Timing};
use collective::proto::time::{Instant, Now, WallTime};

pub(crate) struct Trio {
    pub(crate) cores: Vec<Collective>,
    wakes: Vec<Instant>,
    now: Instant,
    queue: VecDeque<(usize, Event)>,
    /// What each member tells by gossip, and the others have not heard.
    told: BTreeMap<usize, Facts>,
    gossip_at: Instant,
}

fn key(index: usize) -> Fingerprint {
    Fingerprint([index as u8 + 1; 32])
}

fn member(index: usize) -> Member {
    Member {
        id: MemberId([index as u8 + 1; 16]),
        name: MemberName::new(&format!("mgt{}", index + 1)).expect("a valid name"),
        role: Role::Voter,
        learner: false,
        fingerprints: vec![key(index)],
    }
}

fn roster() -> Roster {
    let mut roster = Roster::genesis(ClusterId([9; 16]), Timing::LAN, member(0));
    for index in 1..3 {
        let invite = InviteId([index as u8; 8]);
        let add = Change::Add { member: member(index), invite, expires: WallTime(1_000), uses_max: 1 };
        for change in [add, Change::Promote { id: member(index).id }] {
            roster = roster.next(&change, WallTime(1)).expect("a valid change");
        }
    }
    roster
}

impl Trio {
    /// Starts three members that hold the same documents and are linked.
    pub(crate) fn start(documents: &Documents) -> Self {
        let now = Instant::ZERO + Duration::from_secs(100);
        let mut trio = Self {
            cores: Vec::new(),
            wakes: vec![now + Duration::from_secs(3_600); 3],
            now,
            queue: VecDeque::new(),
            told: BTreeMap::new(),
            gossip_at: now,
        };
        for index in 0..3 {
            let seed = [index as u8 + 1; 32];
            let me = member(index).id;
            let birth = Birth {
                me,
                session: SessionId([index as u8 + 1; 8]),
                stamp: Stamp { incarnation: 1, sequence: 0 },
                fingerprint: key(index),
                roster: roster(),
                acceptor: None,
                invites: Vec::new(),
                peers: BTreeMap::new(),
                documents: documents.clone(),
                removed: None,
                quarantined: Default::default(),
                addresses: vec![address(index)],
                software: "bench".to_owned(),
                seed,
                decoy: Seed::new(seed),
                actor: Actor::new(me, [1; 8]),
                intent: Default::default(),
            };
            let (core, effects) = Collective::start(birth, trio.clocks());
            trio.cores.push(core);
            trio.perform(index, effects);
        }
        for (here, there) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            let hello = trio.cores[there].hello();
            trio.handle(here, Event::LinkUp { peer: key(there), address: address(there), hello });
        }
        trio.deliver();
        trio
    }

    fn clocks(&self) -> Now {
        Now { boot: self.now, wall: WallTime(1_000_000) }
    }

    /// Gives one core an event now.
    pub(crate) fn handle(&mut self, index: usize, event: Event) {
        let now = self.clocks();
        let effects = self.cores[index].handle(event, now);
        self.perform(index, effects);
    }

    fn perform(&mut self, index: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Save { ticket, .. } => self.queue.push_back((index, Event::Saved { tickets: vec![ticket] })),
                Effect::Send { to, message, .. } => {
                    let to = usize::from(to.0[0]) - 1;
                    self.queue.push_back((to, Event::Received { peer: key(index), message }));
                }
                Effect::Publish(facts) => drop(self.told.insert(index, facts)),
                Effect::WakeAt(at) => self.wakes[index] = at,
                _ => {}
            }
        }
    }

    /// Delivers everything that is under way, in no time.
    pub(crate) fn deliver(&mut self) {
        while let Some((index, event)) = self.queue.pop_front() {
            self.handle(index, event);
        }
    }

    /// Goes on to the next moment at which a core wants to be woken or gossip comes, once a second.
    fn step(&mut self) {
        self.deliver();
        let index = (0..3).min_by_key(|index| self.wakes[*index]).unwrap_or(0);
        if self.gossip_at <= self.wakes[index] {
            self.now = self.now.max(self.gossip_at);
            self.gossip_at = self.now + Duration::from_secs(1);
            for (from, facts) in std::mem::take(&mut self.told) {
                for to in (0..3).filter(|to| *to != from) {
                    self.queue.push_back((to, Event::Gossip { peer: key(from), facts: facts.clone() }));
                }
            }
        } else {
            self.now = self.now.max(self.wakes[index]);
            self.wakes[index] = self.now + Duration::from_secs(3_600);
            self.handle(index, Event::Wake);
        }
        self.deliver();
    }

    /// Lets time pass until something is so, for a minute at most; returns how much passed.
    pub(crate) fn run_until(&mut self, is_so: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !is_so(self) && self.now.since(start) < Duration::from_secs(60) {
            self.step();
        }
        self.now.since(start)
    }

    /// Lets some time pass.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    /// Goes on to a moment at which nothing is due.
    pub(crate) fn rest(&mut self) {
        self.run_for(Duration::from_secs(5));
    }
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1_000 + index as u16))
}
