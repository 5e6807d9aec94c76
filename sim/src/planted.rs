//! The self-test: each safety rule that is switched off, and each mistake that is planted, must be found.

use std::time::Duration;

use collective::proto::planted::{Bug, Planted};
use serde::Serialize;

use crate::check::Rule;
use crate::run::{Report, run};
use crate::scenario::{Scenario, find};

/// How a bug was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Find {
    pub(crate) bug: Bug,
    /// The scenario of the library, or one of [`DIRECTED`].
    pub(crate) scenario: &'static str,
    /// The first seed of the range that was searched.
    pub(crate) from: u64,
    /// The first one that found it.
    pub(crate) seed: u64,
    /// What was violated.
    pub(crate) rule: Rule,
    /// How long the search took, in seconds of one core.
    pub(crate) took_s: f64,
}

/// What came of looking for a bug again.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) bug: &'static str,
    pub(crate) about: &'static str,
    pub(crate) scenario: &'static str,
    /// From the first seed that was searched to the one that found it.
    pub(crate) seeds: String,
    pub(crate) violated: Option<String>,
    /// Whether what was violated is what the table says.
    pub(crate) as_before: bool,
    /// Whether the same run without the bug is clean.
    pub(crate) clean_without: bool,
    /// How long the search took once, in seconds of one core.
    pub(crate) searched_s: f64,
    /// How long both runs took now.
    pub(crate) took_s: f64,
}

impl Found {
    /// Returns what was violated, in words.
    pub(crate) fn first(&self) -> &str {
        self.violated.as_deref().map_or("nothing", str::trim)
    }
}

impl Find {
    /// Runs the seed with the bug and without.
    pub(crate) fn again(&self) -> anyhow::Result<Found> {
        anyhow::ensure!(Planted::POSSIBLE, "this is a release build; build it with `--features planted`");
        let scenario = of_name(self.scenario)?;
        let started = cpu_s();
        let with = run(&Scenario { planted: Some(self.bug), ..scenario.clone() }, self.seed, false);
        let without = run(&scenario, self.seed, false);
        Ok(Found {
            bug: self.bug.name(),
            about: self.bug.about(),
            scenario: self.scenario,
            seeds: format!("{}..={}", self.from, self.seed),
            violated: with.violations.first().cloned(),
            as_before: with.first == Some(self.rule),
            clean_without: without.exit == 0,
            searched_s: self.took_s,
            took_s: cpu_s() - started,
        })
    }
}

/// Searches seeds until one finds the bug; returns that one and the seconds that all of them took.
pub(crate) fn search(
    bug: Bug,
    scenario: &Scenario,
    seeds: std::ops::Range<u64>,
    budget: Duration,
) -> (Option<(u64, Report)>, f64) {
    let planted = Scenario { planted: Some(bug), ..scenario.clone() };
    let started = cpu_s();
    for seed in seeds {
        let report = run(&planted, seed, false);
        // A seed that finds something without the bug, too, has not found the bug.
        if report.exit != 0 && run(scenario, seed, false).exit == 0 {
            return (Some((seed, report)), cpu_s() - started);
        }
        if cpu_s() - started > budget.as_secs_f64() {
            break;
        }
    }
    (None, cpu_s() - started)
}

/// Returns how long this thread has worked, in seconds; the machine's other work is left out.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: f64 = stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0.0);
    nanos / 1e9
}

/// Returns a scenario of the library, or one that was made for a bug.
pub(crate) fn of_name(name: &str) -> anyhow::Result<Scenario> {
    match DIRECTED.iter().find(|(directed, _)| *directed == name) {
        Some((_, text)) => Scenario::parse(text).map_err(|mistake| anyhow::anyhow!("{name}: {mistake}")),
        None => find(name),
    }
}

macro_rules! directed {
    ($name:literal) => {
        ($name, include_str!(concat!("../planted/", $name, ".toml")))
    };
}

/// Scenarios for what random faults find too seldom.
const DIRECTED: &[(&str, &str)] = &[
    directed!("forgetful"),
    directed!("unsaved-promises"),
    directed!("half-told"),
    directed!("lonely-decision"),
    directed!("votes-in-a-row"),
    directed!("slow-to-learn"),
    directed!("deleted-while-away"),
    directed!("old-disk"),
    directed!("two-machines"),
    directed!("rush"),
    directed!("returning"),
    directed!("overtaken"),
];

/// Every bug and how it was found; `collective-sim selftest` looks again.
pub(crate) const TABLE: &[Find] = &[];
