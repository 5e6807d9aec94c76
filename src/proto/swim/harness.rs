//! A small network in virtual time, with loss, cuts, crashes and pauses, on which the prober's figures are measured.
//!
//! Every run follows from its seed. What the rest of the daemon does for the prober is imitated: gossip that carries
//! suspicions and incarnations, durable incarnations, streams that repeat what was lost, and lease traffic.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::*;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
enum Event {
    Tick {
        member: usize,
        token: u64,
    },
    Frame {
        from: usize,
        to: usize,
        frame: SwimFrame,
        reliable: bool,
        tries: u32,
    },
    Lease {
        from: usize,
        to: usize,
    },
    LeaseRound {
        member: usize,
    },
    /// `from` and `to` gossip: what `to` has not heard of the owner's keys arrives.
    Gossip {
        owner: usize,
        to: usize,
    },
    Saved {
        member: usize,
        incarnation: u64,
    },
}

/// What one member publishes.
#[derive(Clone, Debug, Default)]
struct Keys {
    incarnation: u64,
    leaving: bool,
    suspicions: BTreeMap<MemberId, u64>,
}

struct Net {
    now: Instant,
    rng: ChaCha8Rng,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    members: Vec<Swim>,
    ids: BTreeMap<MemberId, usize>,
    tokens: Vec<u64>,
    keys: Vec<Keys>,
    /// What each member last applied of each other's keys.
    seen: BTreeMap<(usize, usize), Keys>,
    dead: BTreeSet<usize>,
    paused: BTreeSet<usize>,
    waiting: BTreeMap<usize, Vec<Event>>,
    /// Directed pairs that pass nothing.
    cut: BTreeSet<(usize, usize)>,
    loss_percent: u32,
    gossip_ms: u32,
    leases: bool,
    changes: Vec<(Instant, usize, MemberId, Liveness)>,
    frames: u64,
    suspected: usize,
}

fn id(n: usize) -> MemberId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    MemberId(bytes)
}

impl Net {
    fn new(n: usize, seed: u64, loss_percent: u32, leases: bool) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(bytes);
        let start = Instant::from_nanos(1_000_000_000);
        let mut members = Vec::new();
        for at in 0..n {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            let mut swim = Swim::new(id(at), 1, Timing::LAN, seed, start);
            swim.set_members((0..n).map(id), start);
            members.push(swim);
        }
        let mut net = Self {
            now: start,
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            members,
            ids: (0..n).map(|at| (id(at), at)).collect(),
            tokens: vec![0; n],
            keys: vec![Keys { incarnation: 1, ..Keys::default() }; n],
            seen: BTreeMap::new(),
            dead: BTreeSet::new(),
            paused: BTreeSet::new(),
            waiting: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss_percent,
            // Twice what chitchat needs to bring a key to all of 3, 10 and 100 members.
            gossip_ms: match n {
                0..=3 => 700,
                4..=10 => 1_000,
                _ => 2_600,
            },
            leases,
            changes: Vec::new(),
            frames: 0,
            suspected: 0,
        };
        for member in 0..n {
            net.wake(member);
            if leases {
                let phase = net.draw(333);
                net.at(MS * phase, Event::LeaseRound { member });
            }
        }
        net
    }

    fn draw(&mut self, end: u32) -> u32 {
        self.rng.next_u32() % end
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.queue.push(Reverse((self.now + delay, self.count)));
        self.events.insert(self.count, event);
    }

    /// Plans the member's next tick; an earlier plan is void.
    fn wake(&mut self, member: usize) {
        self.tokens[member] += 1;
        let token = self.tokens[member];
        let delay = self.members[member].next_due().since(self.now);
        if delay < Duration::from_secs(86_400) {
            self.at(delay, Event::Tick { member, token });
        }
    }

    fn run(&mut self, for_: Duration) {
        let end = self.now + for_;
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = at;
            let event = self.events.remove(&number).expect("every number has its event");
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        let owner = match event {
            Event::Tick { member, .. } | Event::LeaseRound { member } | Event::Saved { member, .. } => member,
            Event::Frame { to, .. } | Event::Lease { to, .. } | Event::Gossip { to, .. } => to,
        };
        if self.dead.contains(&owner) {
            return;
        }
        if self.paused.contains(&owner) {
            self.waiting.entry(owner).or_default().push(event);
            return;
        }
        match event {
            Event::Tick { member, token } if self.tokens[member] == token => {
                let out = self.members[member].tick(self.now);
                self.perform(member, out);
                self.wake(member);
            }
            Event::Tick { .. } => {}
            Event::Frame { from, to, frame, reliable, tries } => {
                if self.lost(from, to) {
                    // A stream's packet is sent again after 100, 200, 400 ms: more patient than QUIC on a campus.
                    // Over a cut it would have to be dialled anew, so nothing waits there for the heal.
                    let cut = self.cut.contains(&(from, to));
                    if reliable && tries < 6 && !cut && !self.dead.contains(&from) {
                        let again = Event::Frame { from, to, frame, reliable, tries: tries + 1 };
                        self.at(MS * 100 * (1 << tries), again);
                    }
                    return;
                }
                let out = self.members[to].on_frame(id(from), frame, self.now);
                self.perform(to, out);
                self.wake(to);
            }
            Event::Lease { from, to } => {
                if !self.lost(from, to) {
                    let out = self.members[to].heard_lease(id(from), self.now);
                    self.perform(to, out);
                }
            }
            Event::LeaseRound { member } => {
                for to in (0..self.members.len()).filter(|to| *to != member) {
                    let latency = 1 + self.draw(4);
                    self.at(MS * latency, Event::Lease { from: member, to });
                }
                self.at(MS * 333, Event::LeaseRound { member });
            }
            Event::Gossip { owner, to } => self.gossip(owner, to),
            Event::Saved { member, incarnation } => {
                let out = self.members[member].incarnation_saved(incarnation);
                self.keys[member].incarnation = incarnation;
                self.publish(member);
                self.perform(member, out);
            }
        }
    }

    fn lost(&mut self, from: usize, to: usize) -> bool {
        let percent = self.loss_percent;
        self.cut.contains(&(from, to)) || self.draw(100) < percent
    }

    fn publish(&mut self, owner: usize) {
        for to in (0..self.members.len()).filter(|to| *to != owner) {
            let delay = 10 + self.draw(self.gossip_ms);
            self.at(MS * delay, Event::Gossip { owner, to });
        }
    }

    fn gossip(&mut self, owner: usize, to: usize) {
        if self.dead.contains(&owner) || self.cut.contains(&(owner, to)) || self.cut.contains(&(to, owner)) {
            return;
        }
        let keys = self.keys[owner].clone();
        let before = self.seen.insert((owner, to), keys.clone()).unwrap_or_default();
        let mut out = Vec::new();
        if (before.incarnation, before.leaving) != (keys.incarnation, keys.leaving) {
            out.extend(self.members[to].on_gossip(id(owner), keys.incarnation, keys.leaving, self.now));
        }
        for (accused, incarnation) in &keys.suspicions {
            if before.suspicions.get(accused) != Some(incarnation) {
                out.extend(self.members[to].on_suspicion(id(owner), *accused, Some(*incarnation), self.now));
            }
        }
        for accused in before.suspicions.keys().filter(|accused| !keys.suspicions.contains_key(accused)) {
            out.extend(self.members[to].on_suspicion(id(owner), *accused, None, self.now));
        }
        self.perform(to, out);
        self.wake(to);
    }

    fn perform(&mut self, member: usize, out: Vec<SwimOut>) {
        for out in out {
            match out {
                SwimOut::Send { to, frame, reliable } => {
                    self.frames += 1;
                    let bytes = minicbor::to_vec(&frame).expect("a Vec takes everything");
                    assert!(bytes.len() <= FRAME_BYTES_MAX);
                    let latency = 1 + self.draw(4);
                    let to = self.ids[&to];
                    self.at(MS * latency, Event::Frame { from: member, to, frame, reliable, tries: 0 });
                }
                SwimOut::PublishSuspicion { accused, incarnation } => {
                    self.suspected += 1;
                    self.keys[member].suspicions.insert(accused, incarnation);
                    self.publish(member);
                }
                SwimOut::ClearSuspicion { accused } => {
                    self.keys[member].suspicions.remove(&accused);
                    self.publish(member);
                }
                SwimOut::RaiseIncarnation { to } => {
                    let fsync = 5 + self.draw(45);
                    self.at(MS * fsync, Event::Saved { member, incarnation: to });
                }
                SwimOut::Changed { member: about, to, .. } => self.changes.push((self.now, member, about, to)),
            }
        }
    }

    fn crash(&mut self, member: usize) {
        self.dead.insert(member);
    }

    /// Starts a crashed member again, with the next incarnation and no memory.
    fn restart(&mut self, member: usize) {
        self.dead.remove(&member);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let incarnation = self.keys[member].incarnation + 1;
        self.keys[member] = Keys { incarnation, ..Keys::default() };
        self.seen.retain(|(_, to), _| *to != member);
        let mut swim = Swim::new(id(member), incarnation, Timing::LAN, seed, self.now);
        swim.set_members((0..self.members.len()).map(id), self.now);
        self.members[member] = swim;
        self.publish(member);
        self.wake(member);
        if self.leases {
            self.at(MS, Event::LeaseRound { member });
        }
    }

    fn pause(&mut self, member: usize, for_: Duration) {
        self.paused.insert(member);
        self.run(for_);
        self.paused.remove(&member);
        for event in self.waiting.remove(&member).unwrap_or_default() {
            self.at(Duration::ZERO, event);
        }
    }

    /// Cuts the members below `at` from the others.
    fn split(&mut self, at: usize) {
        let n = self.members.len();
        for (a, b) in (0..at).flat_map(|a| (at..n).map(move |b| (a, b))) {
            self.cut.extend([(a, b), (b, a)]);
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        // Gossip catches up on its own.
        for owner in 0..self.members.len() {
            self.publish(owner);
        }
    }

    fn state(&self, of: usize, about: usize) -> Liveness {
        self.members[of].view().get(id(about)).expect("on the roster").state
    }

    /// Runs until `done`, looking every 10 ms; returns how long that took, or none when it was not within `limit`.
    fn until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        while !done(self) {
            if self.now.since(start) >= limit {
                return None;
            }
            self.run(MS * 10);
        }
        Some(self.now.since(start))
    }

    fn deaths(&self) -> usize {
        self.changes.iter().filter(|(_, _, _, to)| *to == Liveness::Down).count()
    }

    fn all_alive(&self) -> bool {
        let n = self.members.len();
        (0..n).all(|of| (0..n).all(|about| self.state(of, about) == Liveness::Alive))
    }
}

/// Median and 99th percentile.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[(times.len() * 99).div_ceil(100) - 1])
}

fn crash_times(n: usize, seeds: u64, loss: u32, leases: bool) -> Vec<Duration> {
    (0..seeds)
        .map(|seed| {
            let mut net = Net::new(n, seed, loss, leases);
            let warm_up = MS * (5_000 + net.draw(3_000));
            net.run(warm_up);
            let victim = net.draw(n as u32) as usize;
            net.crash(victim);
            let seen = |net: &Net| (0..n).all(|of| of == victim || net.state(of, victim) == Liveness::Down);
            net.until(Duration::from_secs(60), seen).expect("a crash is seen")
        })
        .collect()
}

fn assert_spread(what: &str, times: Vec<Duration>, median: Duration, p99: Duration) {
    let (m, p) = spread(times);
    println!("{what}: median {m:?}, p99 {p:?}");
    assert!(m <= median && p <= p99, "{what}: median {m:?} of {median:?}, p99 {p:?} of {p99:?}");
}

const S: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn a_crash_is_seen_by_all_within_the_goal() {
    assert_spread("crash of 1 in 3", crash_times(3, 100, 0, true), S(4), S(6));
    assert_spread("crash of 1 in 10", crash_times(10, 100, 0, true), S(4), S(6));
    assert_spread("crash of 1 in 100", crash_times(100, 3, 0, true), S(6), S(10));
}

#[test]
fn a_crash_is_seen_without_lease_traffic_too() {
    assert_spread("crash of 1 in 3, no leases", crash_times(3, 100, 0, false), S(4), S(6));
    assert_spread("crash of 1 in 10, no leases", crash_times(10, 100, 0, false), S(6), S(8));
    assert_spread("crash of 1 in 100, no leases", crash_times(100, 3, 0, false), S(8), S(12));
}

#[test]
fn a_crash_is_seen_at_ten_percent_loss() {
    assert_spread("crash of 1 in 3, 10 % loss", crash_times(3, 100, 10, true), S(6), S(12));
    assert_spread("crash of 1 in 10, 10 % loss", crash_times(10, 50, 10, true), S(6), S(12));
}

#[test]
fn a_crash_is_seen_after_a_cold_start_without_the_dead() {
    for seed in 0..50 {
        let mut net = Net::new(3, seed, 0, true);
        net.crash(2);
        let seen = net.until(S(10), |net| (0..2).all(|of| net.state(of, 2) == Liveness::Down)).expect("seen");
        assert!(seen <= S(4), "seed {seed}: {seen:?}");
        assert_eq!(net.deaths(), 2, "the living saw each other in time");
    }
}

#[test]
fn members_that_start_seconds_apart_end_up_alive() {
    for seed in 0..50 {
        let mut net = Net::new(3, seed, 0, false);
        net.crash(1);
        net.crash(2);
        net.run(S(1));
        net.restart(1);
        net.run(S(8));
        assert_eq!(net.state(0, 2), Liveness::Down);
        net.restart(2);
        let seen = net.until(S(3), Net::all_alive);
        assert!(seen.is_some(), "seed {seed}");
    }
}

#[test]
fn nobody_alive_is_declared_down_at_ten_percent_loss() {
    for (n, seeds) in [(3, 60), (10, 10)] {
        let mut suspected = 0;
        for seed in 0..seeds {
            let mut net = Net::new(n, seed, 10, false);
            net.run(S(300));
            assert_eq!(net.deaths(), 0, "{n} members, seed {seed}");
            suspected += net.suspected;
        }
        println!("{n} members: {suspected} suspicions in {seeds} x 300 s");
    }
}

#[test]
fn the_small_side_of_a_split_sees_it_within_the_goal() {
    for (n, at, seeds, goal) in [(3, 1, 30, 6), (10, 4, 10, 8), (10, 1, 10, 8), (50, 20, 1, 12)] {
        for leases in [true, false] {
            for seed in 0..seeds {
                let mut net = Net::new(n, seed, 0, leases);
                net.run(S(7));
                net.split(at);
                let seen = |net: &Net| (0..at).all(|of| (at..n).all(|other| net.state(of, other) == Liveness::Down));
                assert!(net.until(S(goal), seen).is_some(), "{at} of {n}, leases {leases}, seed {seed}");
                assert!((0..at).all(|of| (0..at).all(|other| net.state(of, other) == Liveness::Alive)));
            }
        }
    }
}

#[test]
fn a_split_of_any_length_ends_in_one_view() {
    let mut times = Vec::new();
    for seed in 0..30 {
        let mut net = Net::new(5, seed, 0, false);
        net.run(S(5));
        net.split(2);
        let length = if seed % 3 == 0 { S(3_600) } else { S(30) };
        let phase = net.draw(1_000);
        net.run(length + MS * phase);
        net.heal();
        times.push(net.until(S(20), Net::all_alive).expect("whole again"));
        let views: BTreeSet<_> = net.members.iter().map(|member| member.view().hash()).collect();
        assert_eq!(views.len(), 1, "views agree");
    }
    assert_spread("heal of 2 from 5", times, S(2), S(10));
}

#[test]
fn a_farewell_is_seen_at_once_and_is_no_crash() {
    for seed in 0..30 {
        let mut net = Net::new(10, seed, 10, true);
        net.run(S(5));
        let out = net.members[4].leave(net.now);
        net.perform(4, out);
        net.keys[4].leaving = true;
        net.publish(4);
        let seen = |net: &Net| (0..10).all(|of| net.state(of, 4) == Liveness::Left);
        assert!(net.until(MS * 1_500, seen).is_some(), "seed {seed}");
        net.run(S(1));
        net.crash(4);
        net.run(S(30));
        assert!(seen(&net), "who left stays left");
        assert_eq!(net.deaths(), 0);

        net.restart(4);
        assert!(net.until(S(3), Net::all_alive).is_some(), "seed {seed}: back with a later incarnation");
    }
}

#[test]
fn a_restart_is_seen_within_three_seconds() {
    for seed in 0..30 {
        for away in [S(1), S(20)] {
            let mut net = Net::new(3, seed, 0, false);
            net.run(S(5));
            net.crash(1);
            net.run(away);
            net.restart(1);
            let seen = |net: &Net| {
                net.all_alive()
                    && [0, 2].iter().all(|of| net.members[*of].view().get(id(1)).expect("on").incarnation == 2)
            };
            assert!(net.until(S(3), seen).is_some(), "seed {seed}, away {away:?}");
        }
    }
}

#[test]
fn a_short_pause_kills_nobody_and_a_long_one_only_the_paused() {
    for seed in 0..30 {
        let mut net = Net::new(3, seed, 0, true);
        net.run(S(5));
        net.pause(1, MS * 1_500);
        net.run(S(10));
        assert_eq!(net.deaths(), 0, "seed {seed}: one and a half seconds");

        net.pause(1, S(20));
        assert_eq!((net.state(0, 1), net.state(2, 1)), (Liveness::Down, Liveness::Down));
        let back = net.until(S(2), Net::all_alive);
        assert!(back.is_some(), "seed {seed}: heard again");
        net.run(S(10));
        let by_the_paused = net.changes.iter().filter(|(_, of, _, to)| *of == 1 && *to == Liveness::Down).count();
        assert_eq!(by_the_paused, 0, "seed {seed}: who was paused blames nobody");
    }
}

#[test]
fn a_bad_link_between_two_members_stays_their_affair() {
    for (n, one_way) in [(3, true), (3, false), (10, true), (10, false)] {
        for seed in 0..8 {
            let mut net = Net::new(n, seed, 0, true);
            net.run(S(5));
            net.cut.insert((0, 1));
            if !one_way {
                net.cut.insert((1, 0));
            }
            net.run(S(120));
            assert_eq!(net.deaths(), 0, "{n} members, one way {one_way}, seed {seed}");
            let belief = *net.members[0].view().get(id(1)).expect("on the roster");
            assert!(net.now.since(belief.last_ack.expect("answered before")) > S(110), "the pair's own fact is kept");
            assert!(belief.loss_permille > 400, "{}", belief.loss_permille);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut net = Net::new(10, 7, 10, true);
        net.run(S(20));
        net.crash(3);
        net.run(S(20));
        (net.frames, net.changes)
    };
    assert_eq!(run(), run());
}
