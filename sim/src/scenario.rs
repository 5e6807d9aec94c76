//! Scenarios: what is run, by name, with one sentence about each.

use std::collections::BTreeMap;

use collective::proto::liveness::Liveness;
use collective::proto::name::NodeName;
use collective::proto::request::{ErrorCode, Request};
use collective::proto::roster::Timing;

use crate::fault::{Fault, Kind};
use crate::workload::{Op, Outcome};
use crate::world::World;

/// A step of a scenario: does or checks something; an error is what should have been in time and was not.
pub(crate) type Step = fn(&mut World) -> Result<(), String>;

/// One scenario.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One sentence.
    pub(crate) about: &'static str,
    /// Sites, and how many of them join before anything breaks.
    pub(crate) members: usize,
    pub(crate) joined: usize,
    /// Whether all start as members from what is on their disks, and how many of them vote.
    pub(crate) restored: Option<usize>,
    pub(crate) nodes: usize,
    pub(crate) timing: Timing,
    pub(crate) faults: Plan,
    /// How long faults and load last, in true milliseconds.
    pub(crate) window_ms: u64,
    /// How long it may take afterwards until everything is equal.
    pub(crate) converge_ms: u64,
    /// The mean time between two requests; none when zero.
    pub(crate) work_every_ms: u64,
    pub(crate) steps: Vec<(u64, Step)>,
    /// A rule that is broken on purpose.
    pub(crate) sabotage: Option<Sabotage>,
}

/// Where faults come from.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Fixed(Vec<Fault>),
    /// From the seed.
    Random,
}

/// Rules that a run breaks on purpose, to see that the checkers notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// R6: voters grant as soon as they start.
    NoQuietStart,
    /// Disks say "durable" before it is so.
    LyingDisk,
}

impl Scenario {
    fn new(name: &'static str, about: &'static str, members: usize) -> Self {
        Self {
            name,
            about,
            members,
            joined: members,
            restored: None,
            nodes: 6,
            timing: Timing::LAN,
            faults: Plan::Fixed(Vec::new()),
            window_ms: 20_000,
            converge_ms: 30_000,
            work_every_ms: 400,
            steps: Vec::new(),
            sabotage: None,
        }
    }

    /// Returns the scenario with faults and load over that long. As much is asked in all, so that a longer run is a
    /// quieter one: a fault a minute, and a request in a few seconds.
    pub(crate) fn lasting(self, window_ms: u64) -> Self {
        let work_every_ms = self.work_every_ms * window_ms / self.window_ms.max(1);
        Self { window_ms, work_every_ms: work_every_ms.max(self.work_every_ms), ..self }
    }

    fn with(self, faults: Vec<Fault>) -> Self {
        Self { faults: Plan::Fixed(faults), ..self }
    }
}

/// What a sweep runs unless it is told otherwise: everything at random.
pub(crate) fn random() -> Scenario {
    Scenario {
        nodes: 8,
        faults: Plan::Random,
        window_ms: 60_000,
        ..Scenario::new("random", "Five members, and whatever faults the seed draws.", 5)
    }
}

/// Returns every scenario.
pub(crate) fn all() -> Vec<Scenario> {
    vec![
        random(),
        healthy_three(),
        split_minority(),
        leader_killed(),
        follower_restarts(),
        bad_candidate(),
        delete_in_minority(),
        joiner_dies(),
        manager_returns(),
        bridge(),
        one_way(),
        cold_start(),
        pause(),
        lost_confirmation(),
        crash_of_hundred(),
    ]
}

/// Returns the scenario of that name.
pub(crate) fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

fn healthy_three() -> Scenario {
    Scenario {
        steps: vec![(19_500, |world| {
            let seen = |what| world.coverage.get(what).copied().unwrap_or(0);
            expect(seen("quorum lost") == 0 && seen("refused") == 0 && seen("unknown") == 0, "every write is confirmed")
        })],
        ..Scenario::new("healthy-three", "Three members, and nothing breaks: every write is confirmed.", 3)
    }
}

fn split_minority() -> Scenario {
    let about =
        "Two of five are cut off, the leader among them: they refuse within a lease, the others carry on (S1, S3).";
    Scenario {
        steps: vec![
            // T is two seconds, and a slow clock makes it 2 % longer.
            (4_040, |world| {
                expect(!world.is_quorate(0) && !world.is_quorate(1), "the minority is locked after a lease")?;
                expect([2, 3, 4].iter().all(|at| world.is_quorate(*at)), "the majority never loses quorum")?;
                write(world, 0);
                expect_refused(world, ErrorCode::NoQuorum)
            }),
            (5_000, |world| {
                expect_managed(world, &[2, 3, 4])?;
                write(world, 2);
                Ok(())
            }),
            (5_500, |world| expect(last(world) == Some(Outcome::Done), "the majority takes writes")),
        ],
        ..Scenario::new("split-minority", about, 5).with(vec![Fault::new(
            2_000,
            10_000,
            Kind::Split(vec![vec![0, 1], vec![2, 3, 4]]),
        )])
    }
}

fn leader_killed() -> Scenario {
    let about = "The leader's process is killed: the others never lose quorum, and take its nodes over (S4).";
    let still: Step = |world| expect(world.is_quorate(1) && world.is_quorate(2), "there is no gap in the quorum");
    Scenario {
        steps: vec![
            (2_100, |world| {
                write(world, 1);
                Ok(())
            }),
            (2_500, |world| expect(last(world) == Some(Outcome::Done), "a write right after is confirmed")),
            (3_000, still),
            (4_000, still),
            (5_000, |world| expect_managed(world, &[1, 2])),
        ],
        work_every_ms: 0,
        ..Scenario::new("leader-killed", about, 3).with(vec![Fault::new(2_000, 8_000, Kind::Crash(0))])
    }
}

fn follower_restarts() -> Scenario {
    let about = "A follower is restarted six times while others write: all end with the same documents (S2).";
    let faults = (0..6).map(|time| Fault::new(1_000 + 3_000 * time, 400 + 200 * time, Kind::Crash(1))).collect();
    Scenario { work_every_ms: 60, ..Scenario::new("follower-restarts", about, 3).with(faults) }
}

fn bad_candidate() -> Scenario {
    let about = "A node's candidates name somebody who does not exist: the others take it over all the same (S5).";
    Scenario {
        steps: vec![
            (500, |world| {
                define(world, "bad", "nobody,m1,m2", vec![1, 2]);
                Ok(())
            }),
            (2_500, |world| {
                expect(world.ledger.named("define") == Some(&Outcome::Done), "the bad name only warns")?;
                expect_managed(world, &[0, 1, 2])
            }),
            (6_100, |world| expect_managed(world, &[0, 2])),
        ],
        ..Scenario::new("bad-candidate", about, 3).with(vec![Fault::new(3_000, 8_000, Kind::Crash(1))])
    }
}

fn delete_in_minority() -> Scenario {
    let about = "A member that is cut off is told to delete another one: it refuses, and the roster stays (S8).";
    Scenario {
        steps: vec![
            (4_100, |world| {
                let member = world.sites[1].name.clone();
                world.ask(0, Op::Named("delete"), Request::Delete { member, force: true, dry_run: false });
                expect_refused(world, ErrorCode::NoQuorum)
            }),
            (19_000, |world| expect(voters(world, 0) == 3 && voters(world, 1) == 3, "three voters stay")),
        ],
        ..Scenario::new("delete-in-minority", about, 3).with(vec![Fault::new(2_000, 8_000, Kind::Isolate(0))])
    }
}

fn joiner_dies() -> Scenario {
    let about = "A fourth member is let in and dies at once, then another one dies: the other two still decide (S10).";
    Scenario {
        members: 4,
        joined: 3,
        steps: vec![
            (500, |world| {
                world.enrol(3, 0, true);
                Ok(())
            }),
            (5_000, |world| {
                let welcome = world.enrolments.last().and_then(|enrolment| enrolment.outcome.clone());
                expect(matches!(welcome, Some(Ok(_))), "the fourth is let in")?;
                expect(voters(world, 0) == 3, "a learner has no vote")
            }),
            (9_000, |world| {
                expect(world.is_quorate(0) && world.is_quorate(1), "two of three are a majority")?;
                write(world, 1);
                Ok(())
            }),
            (9_500, |world| expect(last(world) == Some(Outcome::Done), "they take writes")),
        ],
        work_every_ms: 0,
        ..Scenario::new("joiner-dies", about, 3).with(vec![Fault::new(6_000, 8_000, Kind::Crash(2))])
    }
}

fn manager_returns() -> Scenario {
    let about = "A manager dies and returns: its nodes stay where they went, since nothing moves without need (S13).";
    Scenario {
        steps: vec![
            (7_900, |world| {
                world.noted = managers(world);
                expect_managed(world, &[0, 2])
            }),
            (16_000, |world| expect(world.noted == managers(world), "no node moved when the member returned")),
        ],
        work_every_ms: 0,
        ..Scenario::new("manager-returns", about, 3).with(vec![Fault::new(2_000, 6_000, Kind::Crash(1))])
    }
}

fn bridge() -> Scenario {
    let about = "Two pairs only share the member between them: every node keeps one manager, and writes go on.";
    let faults = vec![Fault::new(2_000, 12_000, Kind::Bridge { left: vec![0, 1], via: 2, right: vec![3, 4] })];
    Scenario {
        steps: vec![
            (6_000, |world| expect_managed(world, &[0, 1, 2, 3, 4])),
            (6_100, |world| {
                expect((0..5).all(|at| world.is_quorate(at)), "each side has a majority with the member between")?;
                write(world, 0);
                Ok(())
            }),
            (6_600, |world| expect(last(world) == Some(Outcome::Done), "a write reaches a majority")),
        ],
        ..Scenario::new("bridge", about, 5).with(faults)
    }
}

fn one_way() -> Scenario {
    let about = "A member is heard but hears nobody, then the reverse: it locks, and others take its nodes over.";
    let taken: Step = |world| {
        expect(!world.is_quorate(0), "the member locks within a lease")?;
        expect(world.is_quorate(1) && world.is_quorate(2), "the others keep quorum")
    };
    Scenario {
        steps: vec![
            (4_040, taken),
            (5_000, |world| expect_managed(world, &[1, 2])),
            (22_040, taken),
            (23_000, |world| expect_managed(world, &[1, 2])),
        ],
        window_ms: 32_000,
        ..Scenario::new("one-way", about, 3)
            .with(vec![Fault::new(2_000, 8_000, Kind::Deaf(0)), Fault::new(20_000, 8_000, Kind::Mute(0))])
    }
}

fn cold_start() -> Scenario {
    let about =
        "The power fails everywhere and comes back: three seconds after the quiet start all is as it was (S14).";
    Scenario {
        steps: vec![(10_100, |world| {
            expect((0..3).all(|at| world.is_seated(at)), "everybody has a seat")?;
            expect_managed(world, &[0, 1, 2])
        })],
        ..Scenario::new("cold-start", about, 3).with(vec![Fault::new(2_000, 3_000, Kind::Power(vec![0, 1, 2]))])
    }
}

fn pause() -> Scenario {
    let about = "A manager stands still for three leases and goes on: it finds that it acts for nothing any more.";
    Scenario {
        steps: vec![
            (5_000, |world| expect_managed(world, &[0, 2])),
            (9_001, |world| {
                let acts = world.nodes.iter().any(|(node, _)| world.acts(1, node));
                expect(!acts, "who stood still acts for nothing")
            }),
            (13_000, |world| expect(world.is_seated(1), "it has its seat again")),
        ],
        ..Scenario::new("pause", about, 3).with(vec![Fault::new(2_000, 7_000, Kind::Pause(1))])
    }
}

/// Found by seeds 5, 30 and 54 of the first sweep: see `give_up_lapsed` in the core.
fn lost_confirmation() -> Scenario {
    let about = "A holder's claim is refused for good by voters from the other side of a split, then a voter that \
                 confirmed it dies: the claim is made anew.";
    let faults = vec![
        Fault::new(1_000, 4_000, Kind::Split(vec![vec![0, 3, 4], vec![1, 2]])),
        Fault::new(9_000, 1_000, Kind::Split(vec![vec![1, 2, 3], vec![0, 4]])),
        Fault::new(12_000, 4_000, Kind::Split(vec![vec![0, 2, 4], vec![1, 3]])),
        Fault::forever(19_000, Kind::Crash(4)),
    ];
    Scenario { window_ms: 24_000, nodes: 10, ..Scenario::new("lost-confirmation", about, 5).with(faults) }
}

/// The bounds of a crash in a large collective: half of the runs see it within 6 s, nearly all within 10.
fn crash_of_hundred() -> Scenario {
    let about =
        "One of a hundred members crashes: within ten seconds everybody else has noticed, and nobody is wronged.";
    let faults = vec![Fault::forever(2_000, Kind::Crash(50))];
    let steps: Vec<(u64, Step)> = vec![
        (1_900, |world| expect(believed_down(world).is_empty(), "nobody is thought to be down")),
        (12_000, |world| {
            let noticed = believed_down(world);
            expect(noticed.get(&50) == Some(&99), "everybody knows that the member is down")?;
            expect(noticed.len() == 1, "nobody else is thought to be down")
        }),
    ];
    Scenario { steps, ..large("crash-of-hundred", about, 100).with(faults) }
}

/// Members that start from their disks: five vote, and nobody asks for anything.
pub(crate) fn large(name: &'static str, about: &'static str, members: usize) -> Scenario {
    let restored = Some(members.min(5));
    Scenario { restored, work_every_ms: 0, window_ms: 13_000, ..Scenario::new(name, about, members) }
}

// ---- What steps ask ----

/// Returns by how many running members each member is believed to be down.
pub(crate) fn believed_down(world: &World) -> BTreeMap<usize, usize> {
    let mut down = BTreeMap::new();
    for core in world.sites.iter().filter_map(|site| site.core.as_ref()) {
        for (number, site) in world.sites.iter().enumerate() {
            if site.me.and_then(|id| core.believes(id)) == Some(Liveness::Down) {
                *down.entry(number).or_insert(0) += 1;
            }
        }
    }
    down
}

fn expect(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("not so in time: {what}")) }
}

/// Asks a member to write something, and notes which write that was.
fn write(world: &mut World, at: usize) {
    world.write(at, 0);
    world.noted_write = world.last_write;
}

/// Returns what came of the noted write.
fn last(world: &World) -> Option<Outcome> {
    world.ledger.0.get(world.noted_write)?.outcome.clone()
}

/// Checks that the request just made was refused on the spot.
fn expect_refused(world: &World, code: ErrorCode) -> Result<(), String> {
    let outcome = world.ledger.0.last().and_then(|asked| asked.outcome.clone());
    expect(outcome == Some(Outcome::Refused(code)), "what needs quorum is refused")
}

/// Checks that each node with a candidate among these members has exactly one of them acting for it.
fn expect_managed(world: &World, members: &[usize]) -> Result<(), String> {
    for (node, candidates) in &world.nodes {
        let acting: Vec<_> = (0..world.sites.len()).filter(|at| world.acts(*at, node)).collect();
        let is_theirs = acting.len() == 1 && members.contains(&acting[0]);
        if candidates.iter().any(|candidate| members.contains(candidate)) && !is_theirs {
            return Err(format!("not so in time: one of members {members:?} acts for {node}; it is {acting:?}"));
        }
    }
    Ok(())
}

/// Returns who acts for each node.
fn managers(world: &World) -> Vec<Option<usize>> {
    world.nodes.iter().map(|(node, _)| (0..world.sites.len()).find(|at| world.acts(*at, node))).collect()
}

fn voters(world: &World, at: usize) -> usize {
    world.sites[at].core.as_ref().map_or(0, |core| core.roster().voters().len())
}

fn define(world: &mut World, name: &str, candidates: &str, members: Vec<usize>) {
    let Ok(node) = NodeName::new(name) else { return };
    world.nodes.push((node, members));
    let assignments = vec![format!("collective.managercandidates={candidates}")];
    world.ask(0, Op::Named("define"), Request::DefineNodes { nodes: name.to_owned(), assignments });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Rule;
    use crate::run::run;

    #[test]
    fn every_named_scenario_is_clean() {
        for scenario in all().iter().filter(|scenario| scenario.name != "random") {
            for seed in 0..3 {
                let report = run(scenario, seed, false);
                assert_eq!(report.violations, Vec::<String>::new(), "{} seed {seed}", scenario.name);
                assert!(report.coverage["act"] > 0 && report.coverage["quorate"] > 0, "{}", scenario.name);
            }
        }
    }

    #[test]
    fn random_faults_leave_every_rule_standing_and_exercised() {
        let mut seen = BTreeMap::new();
        for seed in 0..12 {
            let report = run(&random(), seed, false);
            assert_eq!(report.violations, Vec::<String>::new(), "seed {seed}");
            for (what, count) in report.coverage {
                *seen.entry(what).or_insert(0) += count;
            }
        }
        for what in ["acknowledged", "refused", "unknown", "act", "quorum lost", "crash", "power", "split", "pause"] {
            assert!(seen.get(what).is_some_and(|count| *count > 0), "{what} never came up: {seen:?}");
        }
    }

    fn first_violation(scenario: &Scenario, seeds: u64) -> Option<Rule> {
        (0..seeds).find_map(|seed| {
            let report = run(scenario, seed, false);
            report.violations.iter().for_each(|violation| println!("seed {seed}: {violation}"));
            report.first
        })
    }

    /// Two voters restart while the holder of a node is cut off: what they promised it, they have forgotten.
    fn forgetful() -> Scenario {
        let faults = vec![
            Fault::new(2_000, 6_000, Kind::Isolate(0)),
            Fault::new(2_000, 50, Kind::Crash(1)),
            Fault::new(2_000, 50, Kind::Crash(2)),
        ];
        Scenario { work_every_ms: 0, ..Scenario::new("forgetful", "", 3).with(faults) }
    }

    #[test]
    fn voters_that_grant_right_after_a_restart_are_caught() {
        assert_eq!(first_violation(&forgetful(), 3), None, "the quiet start (R6) keeps the two sides apart");
        let sabotaged = Scenario { sabotage: Some(Sabotage::NoQuietStart), ..forgetful() };
        assert_eq!(first_violation(&sabotaged, 3), Some(Rule::OneManager));
    }

    #[test]
    fn a_disk_that_lies_about_durability_is_caught() {
        let slow = (0..3).map(|member| Fault::new(1_000, 3_000, Kind::SlowDisk { member, fsync_ms: 1_500 }));
        let faults: Vec<_> = slow.chain([Fault::new(3_500, 500, Kind::Power(vec![0, 1, 2]))]).collect();
        let honest = Scenario { work_every_ms: 100, ..Scenario::new("lying", "", 3).with(faults) };
        assert_eq!(first_violation(&honest, 2), None);
        let sabotaged = Scenario { sabotage: Some(Sabotage::LyingDisk), ..honest };
        assert_eq!(first_violation(&sabotaged, 2).map(Rule::exit), Some(2), "a broken promise, or a lost write");
    }

    #[test]
    fn a_clock_that_stands_still_is_caught() {
        let frozen = vec![Fault::new(2_000, 6_000, Kind::Freeze(0))];
        let scenario = Scenario { work_every_ms: 0, ..Scenario::new("frozen", "", 3).with(frozen) };
        assert_eq!(first_violation(&scenario, 3), Some(Rule::OneManager));
    }

    #[test]
    fn a_margin_that_is_smaller_than_the_drift_is_caught() {
        let timing = Timing { margin_permille: 0, ..Timing::LAN };
        let faults = vec![Fault::new(2_000, 6_000, Kind::Isolate(0))];
        let sound = Scenario { work_every_ms: 0, ..Scenario::new("drifting", "", 3).with(faults) };
        assert_eq!(first_violation(&sound, 4), None);
        assert_eq!(first_violation(&Scenario { timing, ..sound }, 40), Some(Rule::OneManager));
    }
}
