//! Holders and voters against a hostile world, from a seed: messages are lost, late, doubled and out of order, sites
//! crash, stop, pause and lose sight of one another, clocks drift and voters change. I1 is checked at every step.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::super::identity::{MemberId, SessionId};
use super::super::quorum::majority;
use super::super::roster::{Change, Role, Roster};
use super::super::time::Instant;
use super::fixture::{TIMING, add, at, changed, id, node, roster, session, stamp};
use super::{
    ClaimEvent, Holder, LeaseAck, LeaseRelease, LeaseRequest, NodeName, Recorded, RefusalReason, Stamp, Verdict, Voter,
};

const STEP_MS: u64 = 20;
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How far a clock may run fast or slow, in millionths: 2.4 %. The margin covers 2.5 %.
const DRIFT_PPM: u64 = 24_000;

/// What is switched off to see that it is needed.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// R6.
    QuietStart,
    /// The margin's premise: here clocks drift by 20 %.
    DriftBound,
}

#[derive(Clone)]
enum Packet {
    Request(LeaseRequest),
    Ack(LeaseAck),
    Release(LeaseRelease),
}

struct Site {
    roster: Roster,
    holder: Holder,
    voter: Voter,
    stamp: Stamp,
    offset_ns: u64,
    /// Nanoseconds of this site's clock in a true millisecond.
    rate: u64,
    paused_until: u64,
    down_until: u64,
    is_up: bool,
    /// When it claimed a node that is not confirmed.
    pending: BTreeMap<NodeName, u64>,
    /// The lowest terms that may do, by what voters said.
    terms: BTreeMap<NodeName, u64>,
    /// The roster it will learn of, and when.
    news: Option<(u64, Roster)>,
}

impl Site {
    fn clock(&self, ms: u64) -> Instant {
        Instant::from_nanos(self.offset_ns + ms * self.rate)
    }

    fn adopt(&mut self, next: &Roster, ms: u64) {
        let voters_changed = !self.roster.same_voters(next);
        self.roster = next.clone();
        self.stamp.sequence += 1;
        self.voter.on_epoch(voters_changed, self.clock(ms));
        self.holder.hurry();
    }
}

struct World {
    rng: ChaCha8Rng,
    without: Without,
    ms: u64,
    sites: BTreeMap<MemberId, Site>,
    /// Packets by when they arrive; the second number tells those of one moment apart.
    network: BTreeMap<(u64, u64), (MemberId, MemberId, Packet)>,
    packets: u64,
    /// Members that nobody reaches, or that reach nobody, and until when.
    cut: BTreeMap<(MemberId, bool), u64>,
    decided: Roster,
    next_change: u64,
    sessions: u64,
    recorded: BTreeMap<NodeName, Recorded>,
    seen: Seen,
}

/// How often what the checks stand on came about, over a run.
#[derive(Debug, Default)]
struct Seen {
    acting: u64,
    confirmed: u64,
    refused: u64,
    epochs: u64,
    crashes: u64,
    violations: u64,
}

impl World {
    fn new(seed: u64, without: Without) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let size = 3 + (seed % 3) as u8;
        let decided = roster(size);
        let drift = if without == Without::DriftBound { 200_000 } else { DRIFT_PPM };
        let mut world = Self {
            rng: ChaCha8Rng::seed_from_u64(seed.wrapping_add(1 << 32)),
            without,
            ms: 0,
            sites: BTreeMap::new(),
            network: BTreeMap::new(),
            packets: 0,
            cut: BTreeMap::new(),
            decided: decided.clone(),
            next_change: 5_000,
            sessions: 0,
            recorded: BTreeMap::new(),
            seen: Seen::default(),
        };
        for number in 1..=size {
            let session = world.new_session();
            let site = Site {
                roster: decided.clone(),
                holder: Holder::new(id(number), session),
                voter: Voter::new(session, at(0), TIMING, true),
                stamp: Stamp { incarnation: 1, sequence: 0 },
                offset_ns: u64::from(rng.next_u32()),
                // Half of the clocks are as wrong as they may be.
                rate: [1_000_000 - drift, 1_000_000 + drift, 1_000_000 - drift / 3, 1_000_000 + drift / 3]
                    [rng.next_u32() as usize % 4],
                paused_until: 0,
                down_until: 0,
                is_up: true,
                pending: BTreeMap::new(),
                terms: BTreeMap::new(),
                news: None,
            };
            world.sites.insert(id(number), site);
        }
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// Whether something happens that happens that often in a thousand steps.
    fn chance(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    fn new_session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions.to_be_bytes())
    }

    fn send(&mut self, from: MemberId, to: MemberId, packet: &Packet) {
        let is_cut = |end| self.cut.get(&end).is_some_and(|until| *until > self.ms);
        if from != to && (is_cut((from, true)) || is_cut((to, false)) || self.chance(100)) {
            return;
        }
        let copies = if self.chance(50) { 2 } else { 1 };
        for _ in 0..copies {
            let late = match self.below(100) {
                0..70 => self.below(30),
                70..97 => self.below(600),
                _ => self.below(6_000),
            };
            let delay = if from == to { 0 } else { late };
            self.packets += 1;
            self.network.insert((self.ms + delay, self.packets), (from, to, packet.clone()));
        }
    }

    fn step(&mut self) {
        self.ms += STEP_MS;
        self.trouble();
        self.change_voters();
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.ms) {
            let (from, to, packet) = entry.remove();
            self.deliver(from, to, packet);
        }
        for site in self.sites.keys().copied().collect::<Vec<_>>() {
            self.live(site);
        }
        self.check();
    }

    fn trouble(&mut self) {
        let ids: Vec<_> = self.sites.keys().copied().collect();
        let victim = ids[self.below(ids.len() as u64) as usize];
        let long = self.ms + self.below(4_000);
        if self.chance(3) {
            let direction = self.chance(500);
            self.cut.insert((victim, direction), long);
            if self.chance(500) {
                self.cut.insert((victim, !direction), long);
            }
        }
        if self.chance(3) {
            self.sites.get_mut(&victim).expect("a site").paused_until = long;
        }
        if self.chance(5) {
            self.stop(victim, long);
        }
        if self.chance(1) {
            // A power cut takes several at once, and they come back together.
            for id in &ids {
                if self.chance(600) {
                    self.stop(*id, self.ms);
                }
            }
        }
    }

    /// Crashes a site, or stops it cleanly.
    fn stop(&mut self, id: MemberId, until: u64) {
        let is_clean = self.chance(300);
        let site = self.sites.get_mut(&id).expect("a site");
        if !std::mem::replace(&mut site.is_up, false) {
            return;
        }
        site.down_until = until;
        self.seen.crashes += 1;
        if is_clean {
            let farewell = Packet::Release(LeaseRelease { session: site.holder.session() });
            for to in self.sites.keys().copied().collect::<Vec<_>>() {
                self.send(id, to, &farewell);
            }
        }
    }

    /// Decides a new roster now and then, one vote at a time (R2); who took part has it, the others learn of it later.
    fn change_voters(&mut self) {
        if self.ms < self.next_change {
            return;
        }
        self.next_change = self.ms + 500;
        let members: Vec<_> = self.decided.ids().collect();
        let victim = members[self.below(members.len() as u64) as usize];
        let member = self.decided.member(victim).expect("a member");
        let change = if member.learner {
            Change::Promote { id: victim }
        } else if member.role == Role::Nonvoting {
            Change::SetRole { id: victim, role: Role::Voter }
        } else {
            Change::SetRole { id: victim, role: Role::Nonvoting }
        };
        let next = changed(&self.decided, &change);
        if next.voters().len() < 2 {
            return;
        }
        let awake: Vec<_> = self
            .sites
            .iter()
            .filter(|(_, site)| site.is_up && site.paused_until < self.ms)
            .map(|(id, _)| *id)
            .collect();
        let mut adopters: Vec<MemberId> = Vec::new();
        for voters in [self.decided.voters().clone(), next.voters().clone()] {
            let mut present: Vec<_> = voters.iter().filter(|id| awake.contains(id)).copied().collect();
            if present.len() < majority(voters.len()) {
                return;
            }
            // The fewest that can decide: the others act on the former roster for as long as they can.
            while present.len() > majority(voters.len()) {
                let index = self.below(present.len() as u64) as usize;
                present.swap_remove(index);
            }
            adopters.extend(present);
        }
        let voters_changed = !self.decided.same_voters(&next);
        for id in members {
            let delay = self.below(4_000);
            let site = self.sites.get_mut(&id).expect("a site");
            if adopters.contains(&id) {
                site.news = None;
                site.adopt(&next, self.ms);
            } else {
                site.news = Some((self.ms + delay, next.clone()));
            }
        }
        self.decided = next;
        self.seen.epochs += 1;
        // R2: T(1+2rho) on the clock of who proposes the next one, which may run fast.
        let pause = if voters_changed { 2_060 } else { 20 };
        self.next_change = self.ms + pause + self.below(10_000);
    }

    fn deliver(&mut self, from: MemberId, to: MemberId, packet: Packet) {
        let site = self.sites.get_mut(&to).expect("a site");
        if !site.is_up {
            return;
        }
        if site.paused_until > self.ms {
            self.packets += 1;
            self.network.insert((site.paused_until, self.packets), (from, to, packet));
            return;
        }
        let now = site.clock(self.ms);
        match packet {
            Packet::Request(request) => {
                let recorded = |node: &NodeName| self.recorded.get(node).copied().unwrap_or_default();
                let ack = site.voter.on_request(&site.roster, site.stamp, from, &request, &recorded, now);
                self.send(to, from, &Packet::Ack(ack));
            }
            Packet::Ack(ack) => {
                for event in site.holder.on_ack(&site.roster, from, &ack, now) {
                    match event {
                        ClaimEvent::Confirmed { node, term } => {
                            self.seen.confirmed += 1;
                            let recorded = self.recorded.entry(node).or_default();
                            assert!(self.without != Without::Nothing || term >= recorded.term, "tokens rise");
                            if term > recorded.term {
                                *recorded = Recorded { term, holder: Some(to) };
                            }
                        }
                        ClaimEvent::Refused { node, reason, .. } => {
                            self.seen.refused += 1;
                            if let RefusalReason::StaleTerm { at_least } = reason {
                                site.holder.release(&node, now);
                                site.terms.insert(node, at_least);
                            }
                        }
                    }
                }
            }
            Packet::Release(release) => site.voter.on_release(from, &release, now),
        }
    }

    /// What a site does by itself in one step.
    fn live(&mut self, id: MemberId) {
        let index = self.below(NODES.len() as u64);
        let name = node(NODES[index as usize]);
        // The election favours one site at a time; the others claim now and then all the same.
        let is_favoured = (u64::from(id.0[0]) + index + self.ms / 1_000).is_multiple_of(self.sites.len() as u64);
        let claims = self.chance(if is_favoured { 200 } else { 10 });
        let (releases, session) = (self.chance(2), self.new_session());
        let recorded = self.recorded.get(&name).map_or(0, |recorded| recorded.term);
        let site = self.sites.get_mut(&id).expect("a site");
        let now = site.clock(self.ms);
        if !site.is_up && site.down_until <= self.ms {
            site.is_up = true;
            site.stamp.incarnation += 1;
            site.holder = Holder::new(id, session);
            site.voter = Voter::new(session, now, TIMING, self.without == Without::QuietStart);
        }
        if !site.is_up || site.paused_until > self.ms {
            return;
        }
        if let Some((_, news)) = site.news.take_if(|(when, _)| *when <= self.ms) {
            site.adopt(&news, self.ms);
        }
        if claims {
            let term = site.terms.get(&name).copied().unwrap_or_default().max(recorded + 1);
            if site.holder.claims().all(|claim| claim.node != &name) {
                site.holder.claim(name.clone(), term, now);
                site.pending.insert(name.clone(), self.ms);
            }
        } else if releases {
            site.holder.release(&name, now);
        } else if site.holder.quorum_until(&site.roster).is_some_and(|end| end <= now) {
            site.holder.release_all(now); // R12.
        }
        // R10: no majority within T/2: release.
        let is_late = site.pending.get(&name).is_some_and(|since| self.ms - since > 1_000);
        if is_late && site.holder.claims().any(|claim| claim.node == &name && !claim.is_confirmed) {
            site.holder.release(&name, now);
        }
        for (to, request) in site.holder.tick(&site.roster, site.stamp, true, now) {
            self.send(id, to, &Packet::Request(request));
        }
    }

    /// I1: at any instant at most one member acts for a node. A paused one counts: it may wake at this instant.
    fn check(&mut self) {
        let mut acting = [0_u64; NODES.len()];
        for site in self.sites.values().filter(|site| site.is_up && site.holder.claims().next().is_some()) {
            let (grants, now) = (site.holder.under(&site.roster), site.clock(self.ms));
            for (count, name) in acting.iter_mut().zip(NODES) {
                *count += u64::from(grants.acts(&node(name), now));
            }
        }
        self.seen.acting += acting.iter().sum::<u64>();
        self.seen.violations += acting.iter().filter(|count| **count > 1).count() as u64;
    }
}

/// Runs 50 seeds for a virtual minute each, or until the first violation that is looked for, and returns what came
/// about.
fn run(without: Without) -> Seen {
    let mut total = Seen::default();
    // What is broken need only be found once.
    for seed in 0..if without == Without::Nothing { 50 } else { 500 } {
        let mut world = World::new(seed, without);
        for _ in 0..3_000 {
            world.step();
            if without == Without::Nothing {
                assert_eq!(world.seen.violations, 0, "I1: seed {seed}, {} ms", world.ms);
            } else if world.seen.violations > 0 {
                return world.seen;
            }
        }
        let seen = world.seen;
        total.acting += seen.acting;
        total.confirmed += seen.confirmed;
        total.refused += seen.refused;
        total.epochs += seen.epochs;
        total.crashes += seen.crashes;
        total.violations += seen.violations;
    }
    total
}

#[test]
fn at_most_one_member_acts_for_a_node_whatever_happens() {
    let seen = run(Without::Nothing);
    let steps = 50 * 3_000 * NODES.len() as u64;
    assert!(seen.acting > steps / 4, "somebody acts often enough for the check to mean something: {seen:?}");
    assert!(seen.confirmed > 500 && seen.refused > 1_000 && seen.epochs > 100 && seen.crashes > 500, "{seen:?}");
}

#[test]
fn the_check_sees_what_a_voter_without_a_quiet_start_breaks() {
    let seen = run(Without::QuietStart);
    assert!(seen.violations > 0, "{seen:?}");
}

#[test]
fn the_check_sees_what_clocks_beyond_the_margin_break() {
    let seen = run(Without::DriftBound);
    assert!(seen.violations > 0, "{seen:?}");
}

/// One holder and one voter after another, without delay.
fn exchange(holder: &mut Holder, roster: &Roster, voters: &mut [(MemberId, &mut Voter)], from: MemberId, now: Instant) {
    for (to, request) in holder.tick(roster, stamp(1), true, now) {
        if let Some((_, voter)) = voters.iter_mut().find(|(id, _)| *id == to) {
            let ack = voter.on_request(roster, stamp(1), from, &request, &|_| Recorded::default(), now);
            holder.on_ack(roster, to, &ack, now);
        }
    }
}

#[test]
fn a_voter_that_forgot_its_grants_waits_until_they_have_expired() {
    // R6: member 1 acts by voters 1 and 2; voter 2 restarts; member 3 asks voters 2 and 3.
    let roster = roster(3);
    for (skip_quiet, both_act) in [(false, false), (true, true)] {
        let mut voters = [1, 2, 3].map(|number| Voter::new(session(100 + number), at(0), TIMING, true));
        let [one, two, three] = &mut voters;
        let mut first = Holder::new(id(1), session(1));
        first.claim(node("n1"), 1, at(0));
        exchange(&mut first, &roster, &mut [(id(1), one), (id(2), two)], id(1), at(0));
        *two = Voter::new(session(202), at(500), TIMING, skip_quiet);
        let mut second = Holder::new(id(3), session(3));
        second.claim(node("n1"), 2, at(600));
        exchange(&mut second, &roster, &mut [(id(2), two), (id(3), three)], id(3), at(600));
        assert!(first.acts(&roster, &node("n1"), at(600)));
        assert_eq!(second.acts(&roster, &node("n1"), at(600)), both_act, "R6 off: {skip_quiet}");
    }
}

#[test]
fn new_voters_wait_for_what_the_former_ones_confirmed() {
    // R7: member 1 acts by voters 1 and 2 of {1, 2, 3} and does not learn that 2 lost its vote and 4 got one. Here R2
    // is broken too, two voters change at once; R7 alone keeps member 3 from acting by the majority {3, 4}.
    let former = roster(3);
    let learner = changed(&former, &add(4));
    let without = changed(&learner, &Change::SetRole { id: id(2), role: Role::Nonvoting });
    let next = changed(&without, &Change::Promote { id: id(4) });
    for (settles, both_act) in [(true, false), (false, true)] {
        let mut voters = [1, 2, 3, 4].map(|number| Voter::new(session(100 + number), at(0), TIMING, true));
        let [one, two, three, four] = &mut voters;
        let mut first = Holder::new(id(1), session(1));
        first.claim(node("n1"), 1, at(0));
        exchange(&mut first, &former, &mut [(id(1), one), (id(2), two)], id(1), at(0));
        three.on_epoch(settles, at(100));
        four.on_epoch(settles, at(100));
        let mut second = Holder::new(id(3), session(3));
        second.claim(node("n1"), 2, at(200));
        exchange(&mut second, &next, &mut [(id(3), three), (id(4), four)], id(3), at(200));
        assert!(first.acts(&former, &node("n1"), at(200)));
        assert_eq!(second.acts(&next, &node("n1"), at(200)), both_act, "R7 on: {settles}");
        assert!(matches!(second.verdict(id(4)), Some(Verdict::Granted { .. })));
    }
}
