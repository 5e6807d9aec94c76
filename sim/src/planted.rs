//! The self-test: each safety rule that is switched off, and each mistake that is planted, must be found.

use crate::check::Rule;
use crate::run::run;
use crate::scenario::{Scenario, find};
use anyhow::{Context, ensure};
use collective::proto::planted::{Bug, Planted};

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

impl Find {
    /// Runs the seed with the bug and without: returns what was violated with it, in words.
    ///
    /// # Errors
    /// The bug is not found any more, or something is violated without it, too.
    pub(crate) fn again(&self) -> anyhow::Result<String> {
        let scenario = of_name(self.scenario)?;
        let with = run(&Scenario { planted: Some(self.bug), ..scenario.clone() }, self.seed, false);
        let what = with.violations.first().map_or("nothing", |violation| violation.trim()).to_owned();
        ensure!(with.first == Some(self.rule), "{}: {what}", self.bug.name());
        let without = run(&scenario, self.seed, false);
        ensure!(without.exit == 0, "without {}: {}", self.bug.name(), without.violations.join("; "));
        Ok(what)
    }
}

/// Looks again for every bug of the table, or for one, and prints what comes of it; returns the exit code.
///
/// # Errors
/// This build plants no bugs, or there is none of that name.
pub(crate) fn look_again(only: Option<&str>) -> anyhow::Result<u8> {
    ensure!(Planted::POSSIBLE, "a release build plants no bugs; build it with `--features planted`");
    let finds: Vec<_> = TABLE.iter().filter(|find| only.is_none_or(|only| find.bug.name() == only)).collect();
    ensure!(!finds.is_empty(), "there is no such bug; see `collective-sim selftest`");
    let mut exit = 0;
    for find in finds {
        let (what, verdict) = match find.again() {
            Ok(what) => (what, "found"),
            Err(error) => (error.to_string(), "NOT FOUND"),
        };
        if verdict != "found" {
            exit = Rule::OneManager.exit();
        }
        println!("{:24} {verdict}: {}", find.bug.name(), find.bug.about());
        let (scenario, from, seed, took_s) = (find.scenario, find.from, find.seed, find.took_s);
        println!("{:24} {scenario}, seeds {from}..={seed} in {took_s:.1} s: {what}", "");
    }
    Ok(exit)
}

/// Searches seeds until one finds the bug, and prints which; returns the exit code.
///
/// # Errors
/// There is no such bug or scenario.
pub(crate) fn search(bug: &str, scenario: &str, (from, to): (u64, u64), budget_s: u64) -> anyhow::Result<u8> {
    let named = Bug::ALL.iter().find(|named| named.name() == bug).context("there is no such bug")?;
    let sound = of_name(scenario)?;
    let planted = Scenario { planted: Some(*named), ..sound.clone() };
    let started = cpu_s();
    for seed in from..to {
        let report = run(&planted, seed, false);
        // A seed that finds something without the bug, too, has not found the bug.
        if report.exit != 0 && run(&sound, seed, false).exit == 0 {
            println!("{bug}: seed {seed} of {scenario}, {:.1} s: {}", cpu_s() - started, report.violations[0].trim());
            return Ok(0);
        }
        if cpu_s() - started > budget_s as f64 {
            break;
        }
    }
    println!("{bug}: not found in {:.1} s", cpu_s() - started);
    Ok(Rule::Convergence.exit())
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
