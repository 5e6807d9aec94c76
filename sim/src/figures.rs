//! The figures of membership and of safety: how long people wait until something is seen, over many seeds.
//!
//! Each seed is a collective of its own, found on its disks, with clocks, delays and fsyncs that it draws; something
//! happens to it at a moment that it draws, and the answer is how much later everybody it concerns knows. All checkers
//! look on. What is measured is true time, in steps of ten milliseconds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use collective::proto::collective::Event;
use collective::proto::identity::MemberId;
use collective::proto::liveness::Liveness;

use crate::fault::{Kind, MS, SECOND};
use crate::mix::Purpose;
use crate::run::Options;
use crate::scenario::Scenario;
use crate::site::Death;
use crate::world::World;

/// How exactly it is measured.
const STEP: u64 = 10 * MS;
/// After how long something is taken for never.
const GIVE_UP: u64 = 120 * SECOND;
/// Voters of a collective that is too large for everybody to vote.
const ELECTED: usize = 5;
/// Members of which everybody votes.
const ALL_VOTE_MAX: usize = 10;

/// One figure.
#[derive(Clone, Copy)]
struct Figure {
    /// What is asked, in a few words.
    about: &'static str,
    members: usize,
    /// Datagrams of a thousand that are lost.
    loss: u64,
    nodes: usize,
    /// Makes it happen; returns how long it took in nanoseconds, or nothing when it was given up.
    measure: fn(&mut World) -> Option<u64>,
    /// The median and the 99th percentile that were promised, in seconds.
    goal: (Option<f64>, Option<f64>),
    /// Runs for each that the others get; the long ones get fewer.
    share: u64,
}

impl Figure {
    const fn new(about: &'static str, members: usize, measure: fn(&mut World) -> Option<u64>) -> Self {
        Self { about, members, loss: 0, nodes: 0, measure, goal: (None, None), share: 1 }
    }

    const fn goal(self, median: f64, p99: f64) -> Self {
        Self { goal: (Some(median), Some(p99)), ..self }
    }

    const fn most(self, p99: f64) -> Self {
        Self { goal: (None, Some(p99)), ..self }
    }

    const fn loss(self, loss: u64) -> Self {
        Self { loss, ..self }
    }

    const fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    const fn share(self, share: u64) -> Self {
        Self { share, ..self }
    }
}

/// The promises of design/20-membership.md and design/30-safety.md, with the durations of the profile `lan`: T is 2 s.
const FIGURES: &[Figure] = &[
    Figure::new("crash seen by every live member", 3, crash_seen).goal(4.0, 6.0),
    Figure::new("crash seen by every live member", 10, crash_seen).goal(4.0, 6.0),
    Figure::new("crash seen by every live member", 100, crash_seen).goal(6.0, 10.0).share(50),
    Figure::new("crash seen, 10 % loss", 3, crash_seen).loss(100).most(12.0),
    Figure::new("crash seen, 10 % loss", 10, crash_seen).loss(100).most(12.0),
    Figure::new("partition seen by the smaller side", 3, partition_seen).most(6.0),
    Figure::new("partition seen by the smaller side", 10, partition_seen).most(8.0),
    Figure::new("partition seen by the smaller side", 50, partition_seen).most(12.0).share(50),
    Figure::new("first false death in 300 s, 10 % loss", 3, false_death).loss(100),
    Figure::new("first false death in 300 s, 10 % loss", 10, false_death).loss(100).share(10),
    Figure::new("leaving seen by all", 3, leave_seen).most(1.5),
    Figure::new("leaving seen by all", 10, leave_seen).most(1.5),
    Figure::new("restart seen alive by all", 3, restart_seen).most(3.0),
    Figure::new("restart seen alive by all", 10, restart_seen).most(3.0),
    Figure::new("restart at a new address seen alive by all", 3, moved_seen).most(3.0),
    Figure::new("whole again after 30 s of partition", 5, |world| whole_again(world, 30 * SECOND)).goal(2.0, 10.0),
    Figure::new("whole again after an hour", 5, |world| whole_again(world, 3_600 * SECOND)).goal(2.0, 10.0).share(100),
    Figure::new("whole again after a day", 3, |world| whole_again(world, 86_400 * SECOND)).goal(2.0, 10.0).share(500),
    Figure::new("lock-down of whoever is cut off", 3, lock_down).most(2.0),
    Figure::new("lock-down of whoever is cut off", 5, lock_down).most(2.0),
    Figure::new("takeover after a kill", 5, taken_over_after_kill).nodes(20).goal(2.5, 3.0),
    Figure::new("takeover after a host vanished", 5, taken_over_after_cut).nodes(20).goal(2.5, 3.0),
    Figure::new("takeover after a clean stop", 5, taken_over_after_stop).nodes(20).most(0.5),
    Figure::new("needless move when a member returns", 5, moved_on_return).nodes(20),
];

/// What came of one figure.
struct Answers {
    /// In seconds, the shortest first.
    took: Vec<f64>,
    /// Seeds in which it never came to that.
    never: usize,
    /// The first violation, by its seed.
    violated: Option<(u64, String)>,
}

/// Measures all figures, or those whose words contain `only`, and prints a table; returns the exit code.
pub(crate) fn measure(seeds: (u64, u64), jobs: usize, only: Option<&str>) -> u8 {
    println!(
        "{:44} {:>7} {:>6} {:>8} {:>8} {:>8} {:>7}  goal",
        "seconds until", "members", "seeds", "median", "p99", "worst", "never"
    );
    let mut exit = 0;
    for figure in FIGURES.iter().filter(|figure| only.is_none_or(|only| figure.about.contains(only))) {
        let (from, to) = seeds;
        let to = from + ((to - from) / figure.share).max(1);
        let answers = ask(figure, (from, to), jobs);
        println!("{}", line(figure, &answers, to - from));
        if let Some((seed, what)) = answers.violated {
            println!("  seed {seed}: {what}");
            exit = crate::check::Rule::OneManager.exit();
        }
    }
    exit
}

fn line(figure: &Figure, answers: &Answers, seeds: u64) -> String {
    let at = |share: f64| {
        let index = ((answers.took.len() as f64 * share).ceil() as usize).clamp(1, answers.took.len().max(1)) - 1;
        answers.took.get(index).copied()
    };
    let tell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    let (median, p99, worst) = (at(0.5), at(0.99), answers.took.last().copied());
    let is_over =
        |value: Option<f64>, goal: Option<f64>| goal.is_some_and(|goal| value.is_none_or(|value| value > goal));
    let goal = match figure.goal {
        // What must never come at all.
        (_, None) => format!("never: {}", if answers.took.is_empty() { "met" } else { "MISSED" }),
        (of_median, of_p99) => {
            let words = [("median", of_median), ("p99", of_p99)];
            let words: Vec<_> =
                words.iter().filter_map(|(name, goal)| goal.map(|goal| format!("{name} {goal:.1}"))).collect();
            let is_missed = is_over(median, of_median) || is_over(p99, of_p99) || answers.never > 0;
            format!("{}: {}", words.join(", "), if is_missed { "MISSED" } else { "met" })
        }
    };
    let (median, p99, worst) = (tell(median), tell(p99), tell(worst));
    let (about, members, never) = (figure.about, figure.members, answers.never);
    format!("{about:44} {members:>7} {seeds:>6} {median:>8} {p99:>8} {worst:>8} {never:>7}  {goal}")
}

fn ask(figure: &Figure, (from, to): (u64, u64), jobs: usize) -> Answers {
    let next = AtomicU64::new(from);
    let answers = Mutex::new(Answers { took: Vec::new(), never: 0, violated: None });
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    let answer = one(figure, seed);
                    let Ok(mut answers) = answers.lock() else { break };
                    match answer {
                        Ok(Some(took)) => answers.took.push(took as f64 / 1e9),
                        Ok(None) => answers.never += 1,
                        Err(what) => drop(answers.violated.get_or_insert((seed, what))),
                    }
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    answers.took.sort_by(f64::total_cmp);
    answers
}

/// Returns how long it took with one seed.
///
/// # Errors
/// The first violation of any rule.
fn one(figure: &Figure, seed: u64) -> Result<Option<u64>, String> {
    let voters = if figure.members <= ALL_VOTE_MAX { figure.members } else { ELECTED };
    let nodes = figure.nodes;
    let mut scenario = Scenario { restored: Some(voters), nodes, ..Scenario::new("figures", figure.members) };
    scenario.network.loss = figure.loss;
    let mut world = World::new(&scenario, seed, &Options::default());
    world.await_restored();
    if figure.nodes > 0 {
        world.define_nodes(&scenario);
    }
    // Any moment of the rounds of probes, leases and gossip.
    let moment = world.mix.range(Purpose::Faults, 0, 10_000, 20_000);
    world.run_until(world.time + moment * MS);
    let took = (figure.measure)(&mut world);
    match world.checker.violations.first() {
        Some(violation) => Err(violation.to_string()),
        None => Ok(took),
    }
}

impl World {
    /// Draws a member.
    fn somebody(&self) -> usize {
        self.mix.bits(Purpose::Faults, 1) as usize % self.sites.len()
    }

    /// Returns how long it is until something is so, unless that is given up.
    fn until(&mut self, most: u64, is_so: impl Fn(&Self) -> bool) -> Option<u64> {
        let began = self.time;
        while !is_so(self) {
            if self.time - began >= most || !self.checker.violations.is_empty() {
                return None;
            }
            self.run_until(self.time + STEP);
        }
        Some(self.time - began)
    }

    fn id(&self, at: usize) -> Option<MemberId> {
        self.sites[at].me
    }

    /// Returns whether a member believes that of another.
    fn believes(&self, at: usize, other: usize, states: &[Liveness]) -> bool {
        let core = self.sites[at].core.as_ref();
        let state = self.id(other).and_then(|id| core?.believes(id));
        state.is_some_and(|state| states.contains(&state))
    }

    /// Returns whether each of those believes that of each of these.
    fn all_believe(&self, those: &[usize], these: &[usize], states: &[Liveness]) -> bool {
        those.iter().all(|at| these.iter().filter(|other| *other != at).all(|other| self.believes(*at, *other, states)))
    }

    fn everybody_but(&self, gone: usize) -> Vec<usize> {
        (0..self.sites.len()).filter(|at| *at != gone).collect()
    }

    fn everybody(&self) -> Vec<usize> {
        (0..self.sites.len()).collect()
    }

    fn cut(&mut self, kind: Kind) {
        self.active.begin(0, self.time, None, kind);
    }

    /// Returns whether all are seated and equal, and nobody is missed.
    fn is_whole(&self) -> bool {
        let all = self.everybody();
        let told =
            |at: usize| self.sites[at].core.as_ref().map(|core| (core.documents().root(), core.roster().version));
        all.iter().all(|at| self.is_seated(*at) && told(*at) == told(0))
            && self.all_believe(&all, &all, &[Liveness::Alive])
    }

    /// Returns a member that acts for something, and the nodes it acts for.
    fn holder(&self) -> Option<(usize, Vec<usize>)> {
        let holds = |at: usize| (0..self.nodes.len()).filter(|node| self.acts(at, &self.nodes[*node].0)).collect();
        let first = self.somebody();
        let holders = (0..self.sites.len()).map(|k| (first + k) % self.sites.len()).map(|at| (at, holds(at)));
        holders.into_iter().find(|(_, nodes): &(usize, Vec<usize>)| !nodes.is_empty())
    }

    /// Returns how long it is until others act for all of these.
    fn taken_over(&mut self, gone: usize, nodes: &[usize]) -> Option<u64> {
        let others = self.everybody_but(gone);
        let is_taken = |world: &Self, node: usize| others.iter().any(|at| world.acts(*at, &world.nodes[node].0));
        self.until(GIVE_UP, |world| nodes.iter().all(|node| is_taken(world, *node)))
    }

    fn managers(&self) -> Vec<Option<usize>> {
        let manager = |node: usize| (0..self.sites.len()).find(|at| self.acts(*at, &self.nodes[node].0));
        (0..self.nodes.len()).map(manager).collect()
    }
}

const GONE: &[Liveness] = &[Liveness::Down, Liveness::Left];

fn crash_seen(world: &mut World) -> Option<u64> {
    let gone = world.somebody();
    world.die(gone, Death::Killed);
    let others = world.everybody_but(gone);
    world.until(GIVE_UP, |world| world.all_believe(&others, &[gone], GONE))
}

fn partition_seen(world: &mut World) -> Option<u64> {
    let members = world.sites.len();
    let first = world.somebody();
    // The voters of a large collective are the first members; a minority of them goes along.
    let small: Vec<_> = (0..(members - 1) / 2).map(|k| (first + 2 * k) % members).collect();
    let large: Vec<_> = (0..members).filter(|at| !small.contains(at)).collect();
    world.cut(Kind::Split(vec![small.clone(), large.clone()]));
    world.until(GIVE_UP, |world| world.all_believe(&small, &large, GONE))
}

fn false_death(world: &mut World) -> Option<u64> {
    let all = world.everybody();
    let is_dead = |world: &World| all.iter().any(|at| all.iter().any(|other| world.believes(*at, *other, GONE)));
    world.until(300 * SECOND, is_dead)
}

fn leave_seen(world: &mut World) -> Option<u64> {
    let gone = world.somebody();
    world.handle(gone, Event::Stop);
    let others = world.everybody_but(gone);
    world.until(GIVE_UP, |world| world.all_believe(&others, &[gone], GONE))
}

fn restart_seen(world: &mut World) -> Option<u64> {
    come_back(world, |_, _| {})
}

fn moved_seen(world: &mut World) -> Option<u64> {
    come_back(world, |world, at| {
        let address = &mut world.sites[at].address;
        address.set_port(address.port() ^ 1);
    })
}

fn come_back(world: &mut World, meanwhile: fn(&mut World, usize)) -> Option<u64> {
    let gone = world.somebody();
    let others = world.everybody_but(gone);
    world.die(gone, Death::Killed);
    world.until(GIVE_UP, |world| world.all_believe(&others, &[gone], GONE))?;
    meanwhile(world, gone);
    world.boot(gone);
    world.until(GIVE_UP, |world| world.all_believe(&others, &[gone], &[Liveness::Alive]))
}

fn whole_again(world: &mut World, after: u64) -> Option<u64> {
    let alone = world.somebody();
    world.cut(Kind::Isolate(alone));
    world.run_until(world.time + after);
    world.active.end(0);
    world.until(GIVE_UP, World::is_whole)
}

fn lock_down(world: &mut World) -> Option<u64> {
    let alone = world.somebody();
    world.cut(Kind::Isolate(alone));
    world.until(GIVE_UP, |world| !world.is_quorate(alone))
}

fn taken_over_after_kill(world: &mut World) -> Option<u64> {
    let (gone, nodes) = world.holder()?;
    world.die(gone, Death::Killed);
    world.taken_over(gone, &nodes)
}

fn taken_over_after_cut(world: &mut World) -> Option<u64> {
    let (gone, nodes) = world.holder()?;
    world.cut(Kind::Isolate(gone));
    world.taken_over(gone, &nodes)
}

fn taken_over_after_stop(world: &mut World) -> Option<u64> {
    let (gone, nodes) = world.holder()?;
    world.handle(gone, Event::Stop);
    world.taken_over(gone, &nodes)
}

/// Returns after how long somebody else acts for a node although nobody went away.
fn moved_on_return(world: &mut World) -> Option<u64> {
    let (gone, nodes) = world.holder()?;
    world.die(gone, Death::Killed);
    world.taken_over(gone, &nodes)?;
    let before = world.managers();
    world.boot(gone);
    let has_moved = |now: &Option<usize>, before: &Option<usize>| now.is_some() && before.is_some() && now != before;
    world.until(60 * SECOND, |world| world.managers().iter().zip(&before).any(|(now, before)| has_moved(now, before)))
}
