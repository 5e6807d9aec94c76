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
            took_s: with.took_s + without.took_s,
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
    let scenario = Scenario { planted: Some(bug), ..scenario.clone() };
    let mut took = 0.0;
    for seed in seeds {
        let report = run(&scenario, seed, false);
        took += report.took_s;
        if report.exit != 0 {
            return (Some((seed, report)), took);
        }
        if took > budget.as_secs_f64() {
            break;
        }
    }
    (None, took)
}

/// Returns a scenario of the library, or one that was made for a bug.
pub(crate) fn of_name(name: &str) -> anyhow::Result<Scenario> {
    match DIRECTED.iter().find(|(directed, _)| *directed == name) {
        Some((_, text)) => Scenario::parse(text).map_err(|mistake| anyhow::anyhow!("{name}: {mistake}")),
        None => find(name),
    }
}

/// Scenarios for what random faults find too seldom.
const DIRECTED: &[(&str, &str)] = &[];

/// Every bug and how it was found; `collective-sim selftest` looks again.
pub(crate) const TABLE: &[Find] = &[];
