//! Scenarios: what is run, by name, with one sentence about each.

use collective::proto::name::MemberName;
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
    /// Every run of a member writes as the same actor.
    SameActor,
}

impl Scenario {
    fn new(name: &'static str, about: &'static str, members: usize) -> Self {
        Self {
            name,
            about,
            members,
            joined: members,
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
    vec![random(), healthy_three()]
}

/// Returns the scenario of that name.
pub(crate) fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

fn healthy_three() -> Scenario {
    Scenario::new("healthy-three", "Three members and nothing breaks: every write is acknowledged.", 3)
}
