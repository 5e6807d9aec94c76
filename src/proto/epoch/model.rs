//! A checker over seeds: acceptors that crash between saving and answering, proposers that restart, and a network that
//! loses, repeats and reorders. It counts what majorities accepted, and must find two decisions once a rule is broken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::*;
use crate::proto::roster::Role;
use crate::proto::roster::tests::{add, member, voters};

/// Which rule is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A crashed acceptor starts with an empty record.
    Durability,
    /// An answer leaves before its record is durable.
    Order,
    /// A promise is not kept.
    Promise,
    /// A restarted proposer draws the same ballots again.
    Seed,
}

struct Site {
    acceptor: Acceptor,
    durable: Option<AcceptorState>,
    saving: VecDeque<(AcceptorState, MemberId, EpochMessage)>,
}

struct World {
    broken: Broken,
    roster: Roster,
    random: ChaCha8Rng,
    now: Instant,
    sites: BTreeMap<MemberId, Site>,
    proposers: BTreeMap<MemberId, Proposer>,
    network: Vec<(MemberId, MemberId, EpochMessage)>,
    /// Who ever accepted which roster under which ballot.
    votes: BTreeMap<(Ballot, RosterHash), BTreeSet<MemberId>>,
    decided: BTreeSet<RosterHash>,
    reported: usize,
    changes: u8,
}

impl World {
    fn new(broken: Broken, voter_count: u8, seed: u64) -> Self {
        let roster = voters(voter_count);
        let site = |id| Site { acceptor: Acceptor::new(id, None, &roster), durable: None, saving: VecDeque::new() };
        let sites = roster.ids().map(|id| (id, site(id))).collect();
        let first = |n: u8| if broken == Broken::Seed { 1 } else { seed + u64::from(n) };
        let proposers = [1, 2].map(|n| (MemberId([n; 16]), Proposer::new(MemberId([n; 16]), first(n))));
        Self {
            broken,
            random: ChaCha8Rng::seed_from_u64(seed),
            now: Instant::from_nanos(1_000_000_000_000),
            sites,
            proposers: BTreeMap::from(proposers),
            network: Vec::new(),
            votes: BTreeMap::new(),
            decided: BTreeSet::new(),
            reported: 0,
            changes: 100,
            roster,
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.next_u32() as usize % end
    }

    fn any_site(&mut self) -> MemberId {
        let nth = self.below(self.sites.len());
        *self.sites.keys().nth(nth).expect("below the number of sites")
    }

    fn step(&mut self) {
        match self.below(100) {
            0..=59 if !self.network.is_empty() => {
                let nth = self.below(self.network.len());
                let (from, to, message) = self.network[nth].clone();
                if self.below(8) != 0 {
                    self.network.swap_remove(nth);
                }
                self.deliver(from, to, &message);
            }
            60..=64 if !self.network.is_empty() => {
                let nth = self.below(self.network.len());
                self.network.swap_remove(nth);
            }
            0..=84 => {
                let site = self.any_site();
                self.complete_save(site);
            }
            85..=88 => self.crash(),
            89..=90 => {
                let nth = self.below(2);
                let id = *self.proposers.keys().nth(nth).expect("two proposers");
                let seed = if self.broken == Broken::Seed { 1 } else { self.random.next_u64() };
                self.proposers.insert(id, Proposer::new(id, seed));
            }
            _ => self.tick(),
        }
    }

    fn deliver(&mut self, from: MemberId, to: MemberId, message: &EpochMessage) {
        if let EpochMessage::Prepare { .. } | EpochMessage::Accept { .. } = message {
            let site = self.sites.get_mut(&to).expect("a voter");
            if self.broken == Broken::Promise {
                let state = site.saving.back().map(|(state, ..)| state).or(site.durable.as_ref());
                let state = state.map(|state| AcceptorState { promised: None, ..state.clone() });
                site.acceptor = Acceptor::new(to, state, &self.roster);
            }
            let answer = site.acceptor.on_message(&self.roster, from, message);
            match (answer.save, answer.reply) {
                (Some(state), Some(reply)) if self.broken == Broken::Order => {
                    self.count(to, &reply, &state);
                    self.network.push((to, from, reply.clone()));
                    self.sites.get_mut(&to).expect("a voter").saving.push_back((state, from, reply));
                }
                (Some(state), Some(reply)) => site.saving.push_back((state, from, reply)),
                (_, Some(reply)) => self.network.push((to, from, reply)),
                _ => {}
            }
        } else if let Some(proposer) = self.proposers.get_mut(&to) {
            let out = proposer.on_message(&self.roster, from, message, self.now);
            self.perform(to, out);
        }
    }

    fn complete_save(&mut self, id: MemberId) {
        let site = self.sites.get_mut(&id).expect("a voter");
        let Some((state, to, reply)) = site.saving.pop_front() else { return };
        site.durable = Some(state.clone());
        if self.broken != Broken::Order {
            self.count(id, &reply, &state);
            self.network.push((id, to, reply));
        }
    }

    /// Counts an acceptance from the moment it may be relied on.
    fn count(&mut self, id: MemberId, reply: &EpochMessage, state: &AcceptorState) {
        let (EpochMessage::Accepted { .. }, Some(accepted)) = (reply, &state.accepted) else { return };
        let hash = accepted.roster.hash();
        let accepters = self.votes.entry((accepted.ballot, hash)).or_default();
        accepters.insert(id);
        if is_majority(accepters.len(), self.sites.len()) {
            self.decided.insert(hash);
        }
    }

    fn crash(&mut self) {
        let id = self.any_site();
        let site = self.sites.get_mut(&id).expect("a voter");
        site.saving.clear();
        if self.broken == Broken::Durability {
            site.durable = None;
        }
        site.acceptor = Acceptor::new(id, site.durable.clone(), &self.roster);
    }

    /// Lets some time pass, and every idle proposer propose something new.
    fn tick(&mut self) {
        self.now = self.now + Duration::from_millis(self.below(200) as u64);
        for id in self.proposers.keys().copied().collect::<Vec<_>>() {
            self.changes += 1;
            let change = add(member(self.changes, Role::Nonvoting), self.changes);
            let proposer = self.proposers.get_mut(&id).expect("just listed");
            let out = if proposer.is_busy() {
                proposer.tick(&self.roster, self.now)
            } else {
                proposer.propose(&self.roster, change, WallTime(0), self.now).expect("possible")
            };
            self.perform(id, out);
        }
    }

    /// Nobody adopts what is decided here: the same epoch stays contested to the end.
    fn perform(&mut self, from: MemberId, out: Vec<ProposerOut>) {
        for out in out {
            match out {
                ProposerOut::Send(_, EpochMessage::Decided { .. }) | ProposerOut::Failed(_) => {}
                ProposerOut::Send(to, message) => self.network.push((from, to, message)),
                ProposerOut::Decided { roster, .. } => {
                    self.reported += 1;
                    if self.broken == Broken::Nothing {
                        assert!(self.decided.contains(&roster.hash()), "reported, but no majority accepted it");
                    }
                    self.decided.insert(roster.hash());
                }
            }
        }
    }
}

/// Runs worlds of three and four voters; returns how many proposals were reported as decided, and in how many worlds two
/// rosters were decided for the one epoch.
fn run(broken: Broken, seeds: u64) -> (usize, usize) {
    let (mut reported, mut split) = (0, 0);
    for seed in 0..seeds {
        for voter_count in [3, 4] {
            let mut world = World::new(broken, voter_count, seed);
            for _ in 0..160 {
                world.step();
            }
            reported += world.reported;
            split += usize::from(world.decided.len() > 1);
        }
    }
    (reported, split)
}

#[test]
fn no_two_rosters_are_ever_decided_for_one_epoch() {
    // I2.
    let (reported, split) = run(Broken::Nothing, 1_500);
    assert_eq!(split, 0);
    assert!(reported > 1_500, "only {reported} decisions: the test shows nothing");
}

#[test]
fn each_rule_that_is_broken_lets_two_rosters_be_decided() {
    // R1: and so the checker is able to see it.
    for (broken, name) in [
        (Broken::Durability, "durability"),
        (Broken::Order, "durable before the reply"),
        (Broken::Promise, "promises"),
        (Broken::Seed, "unique ballots"),
    ] {
        let (_, split) = run(broken, 1_500);
        assert!(split > 0, "{name}");
    }
}

/// Lets the members `m1`, then `m2`, decide a change of their own with two voters each, the second of which is `m2` both
/// times; it starts again from `reload(its durable record)` in between. Returns what each of them decided.
fn decide_twice(reload: fn(AcceptorState) -> Option<AcceptorState>) -> [Roster; 2] {
    let roster = voters(3);
    let ids = [1, 2, 3].map(|n| MemberId([n; 16]));
    let mut acceptors = ids.map(|id| Acceptor::new(id, None, &roster));
    let now = Instant::from_nanos(1_000_000_000_000);
    let mut durable = None;
    [(0, [0, 1], 20), (1, [1, 2], 21)].map(|(proposer, quorum, joiner)| {
        let me = ids[proposer];
        if let Some(state) = durable.take() {
            acceptors[1] = Acceptor::new(ids[1], reload(state), &roster);
        }
        let mut proposer = Proposer::new(me, u64::from(joiner));
        let change = add(member(joiner, Role::Nonvoting), joiner);
        let mut out = VecDeque::from(proposer.propose(&roster, change, WallTime(0), now).expect("possible"));
        while let Some(next) = out.pop_front() {
            match next {
                ProposerOut::Decided { roster, .. } => return roster,
                ProposerOut::Send(to, message) => {
                    for nth in quorum.into_iter().filter(|nth| ids[*nth] == to) {
                        let answer = acceptors[nth].on_message(&roster, me, &message);
                        durable = answer.save.filter(|_| nth == 1).or(durable.take());
                        out.extend(answer.reply.iter().flat_map(|reply| proposer.on_message(&roster, to, reply, now)));
                    }
                }
                ProposerOut::Failed(error) => panic!("{error}"),
            }
        }
        panic!("nothing was decided")
    })
}

#[test]
fn the_voter_that_two_majorities_share_must_remember_what_it_accepted() {
    let [first, second] = decide_twice(Some);
    assert_eq!(first, second);
    let [first, second] = decide_twice(|_| None);
    assert_ne!(first, second, "R1: without durability, one epoch has two rosters");
    let [first, second] = decide_twice(|state| Some(AcceptorState { accepted: None, ..state }));
    assert_ne!(first, second, "a promise without the accepted roster is not enough");
}

#[test]
fn two_rivals_on_a_lossy_network_both_get_their_change_in_the_end() {
    for seed in 0..200 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let genesis = voters(3);
        let mut now = Instant::from_nanos(1_000_000_000_000);
        let ids: Vec<_> = genesis.ids().collect();
        let mut rosters: BTreeMap<_, _> = ids.iter().map(|id| (*id, genesis.clone())).collect();
        let mut acceptors: BTreeMap<_, _> = ids.iter().map(|id| (*id, Acceptor::new(*id, None, &genesis))).collect();
        let mut rivals = [1, 2].map(|n| (ids[n], Proposer::new(ids[n], seed * 2 + n as u64), 20 + n as u8, false));
        let mut network = VecDeque::new();
        for _ in 0..400 {
            if rivals.iter().all(|(.., done)| *done) {
                break;
            }
            now = now + Duration::from_millis(20);
            for (me, proposer, joiner, done) in &mut rivals {
                let roster = &rosters[me];
                let change = add(member(*joiner, Role::Nonvoting), *joiner);
                *done = change.is_made_in(roster);
                let out = if proposer.is_busy() || *done {
                    proposer.tick(roster, now)
                } else {
                    proposer.propose(roster, change, WallTime(0), now).expect("possible")
                };
                network.extend(out.into_iter().map(|out| (*me, out)));
            }
            for (from, out) in std::mem::take(&mut network) {
                let (to, message) = match out {
                    ProposerOut::Send(to, message) => (to, message),
                    ProposerOut::Decided { roster, .. } => (from, EpochMessage::Decided { roster }),
                    ProposerOut::Failed(_) => continue,
                };
                let Some(roster) = rosters.get_mut(&to).filter(|_| to == from || random.next_u32() % 10 < 7) else {
                    continue;
                };
                if let EpochMessage::Decided { roster: offered } = &message
                    && adopts(roster, offered) == Adoption::Newer
                {
                    *roster = offered.clone();
                }
                let answer = acceptors.get_mut(&to).expect("a voter").on_message(roster, from, &message);
                network.extend(answer.reply.map(|reply| (to, ProposerOut::Send(from, reply))));
                if let EpochMessage::Want { .. } = message {
                    continue;
                }
                for (_, proposer, ..) in rivals.iter_mut().filter(|(me, ..)| *me == to) {
                    network.extend(proposer.on_message(roster, from, &message, now).into_iter().map(|out| (to, out)));
                }
            }
        }
        assert!(rivals.iter().all(|(.., done)| *done), "seed {seed}");
    }
}
