//! The self-test: each safety rule that is switched off, and each mistake that is planted, must be found.

use crate::check::Rule;
use crate::run::run;
use crate::scenario::{Scenario, find};
use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use collective::proto::planted::{Bug, Planted};

/// How a bug was found.
#[derive(Clone, Debug)]
pub(crate) struct Find {
    bug: Bug,
    /// A scenario of the library, or one of [`DIRECTED`].
    scenario: &'static str,
    /// The seeds among which it must be found.
    seeds: Range<u64>,
    /// The first of them that found it, which moves whenever the core does something in another order.
    seed: u64,
    /// What was violated then.
    rule: Rule,
    /// How long the search took, in seconds of one core.
    took_s: f64,
}

/// Seeds that are clean without any bug, by scenario: many bugs share one.
type Clean = BTreeMap<(&'static str, u64), bool>;

impl Find {
    const fn new(bug: Bug, scenario: &'static str, seeds: Range<u64>, seed: u64, rule: Rule, took_s: f64) -> Self {
        Self { bug, scenario, seeds, seed, rule, took_s }
    }

    /// Runs the seed that found the bug, then others of the range, until one shows a violation with it and none without.
    ///
    /// Returns which, and what was violated.
    ///
    /// # Errors
    /// No seed of the range finds the bug any more.
    fn again(&self, clean: &mut Clean) -> anyhow::Result<(u64, String)> {
        let sound = of_name(self.scenario)?;
        let planted = Scenario { planted: Some(self.bug), ..sound.clone() };
        for seed in [self.seed].into_iter().chain(self.seeds.clone()) {
            let report = run(&planted, seed, false);
            let Some(what) = report.violations.first() else { continue };
            if *clean.entry((self.scenario, seed)).or_insert_with(|| run(&sound, seed, false).exit == 0) {
                return Ok((seed, what.trim().to_owned()));
            }
        }
        bail!("{} is found by no seed of {:?} of {}", self.bug.name(), self.seeds, self.scenario)
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
    let mut clean = Clean::new();
    let mut exit = 0;
    for find in finds {
        let (name, about, scenario) = (find.bug.name(), find.bug.about(), find.scenario);
        match find.again(&mut clean) {
            Ok((seed, what)) => {
                println!("{name:24} found: {about}");
                println!("{:24} {scenario}, seed {seed}: {what}", "");
                if seed != find.seed {
                    let (seed, rule, took_s) = (find.seed, find.rule, find.took_s);
                    println!("{:24} The table says seed {seed}, {rule}, in {took_s:.1} s.", "");
                }
            }
            Err(error) => {
                println!("{name:24} NOT FOUND: {about}\n{:24} {error}", "");
                exit = Rule::OneManager.exit();
            }
        }
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

/// Every bug and how it was found; `collective-sim selftest` looks again, and docs/simulation.md shows it.
///
/// R7 is not among them. While R2 waits nothing can be seen of it: see the model check, which shows what it is for.
const TABLE: &[Find] = &[
    Find::new(Bug::AnswersBeforeSaved, "unsaved-promises", 0..10, 0, Rule::OneRoster, 0.2),
    Find::new(Bug::OwnRosterFirst, "half-told", 0..15, 0, Rule::OneRoster, 0.1),
    Find::new(Bug::HalfDecides, "lonely-decision", 0..10, 0, Rule::OneRoster, 0.1),
    Find::new(Bug::VotesMoveAtOnce, "votes-in-a-row", 0..10, 0, Rule::OneRoster, 0.2),
    Find::new(Bug::LearnersVoteAtOnce, "joiner-dies", 0..10, 0, Rule::BoundedTime, 0.1),
    Find::new(Bug::SharedClaims, "random", 0..40, 2, Rule::OneManager, 1.5),
    Find::new(Bug::ManySessions, "two-machines", 0..15, 0, Rule::OneManager, 0.1),
    Find::new(Bug::OldEpochGranted, "slow-to-learn", 0..10, 0, Rule::OneRoster, 0.3),
    Find::new(Bug::HalfIsQuorum, "random", 0..20, 0, Rule::LockDown, 0.7),
    Find::new(Bug::NoMargin, "random", 0..20, 0, Rule::LockDown, 0.7),
    Find::new(Bug::CountedFromAnswer, "random", 0..20, 2, Rule::LockDown, 0.9),
    Find::new(Bug::UnconfirmedClaims, "random", 0..20, 2, Rule::OneManager, 1.6),
    Find::new(Bug::ActingIsCached, "pause", 0..10, 0, Rule::OneManager, 0.2),
    Find::new(Bug::NoQuietStart, "forgetful", 0..10, 0, Rule::OneManager, 0.1),
    Find::new(Bug::RemovedGoesOn, "deleted-while-away", 0..10, 0, Rule::Convergence, 0.1),
    Find::new(Bug::NoAmnesiaGuard, "old-disk", 0..40, 12, Rule::OneRoster, 0.2),
    Find::new(Bug::NoBackOff, "rush", 0..15, 0, Rule::Convergence, 1.2),
    Find::new(Bug::SeatWithoutResync, "returning", 0..15, 0, Rule::NothingLost, 0.3),
    Find::new(Bug::VotesLeaveWritesBehind, "votes-and-writes", 0..10, 0, Rule::BoundedTime, 0.3),
    Find::new(Bug::AckedOnOneDisk, "random", 0..10, 0, Rule::NothingLost, 0.6),
    Find::new(Bug::AckedOnReceipt, "random", 0..10, 0, Rule::NothingLost, 0.6),
    Find::new(Bug::MajorityOfTheLinked, "random", 0..20, 1, Rule::NothingLost, 0.9),
    Find::new(Bug::UnchangedIsHeld, "said-again", 0..10, 0, Rule::NothingLost, 0.1),
    Find::new(Bug::StoredButRefused, "random", 0..20, 0, Rule::RefusedStaysOut, 1.0),
    Find::new(Bug::ShrinkingQuorum, "random", 0..10, 0, Rule::LockDown, 0.6),
    Find::new(Bug::NoResync, "random", 0..20, 0, Rule::NothingLost, 0.7),
    Find::new(Bug::RemovedAuthorsRefused, "random", 0..20, 1, Rule::Convergence, 0.9),
    Find::new(Bug::RequestsInAnyOrder, "overtaken", 0..10, 0, Rule::OneManager, 0.1),
    Find::new(Bug::IncarnationTooEarly, "random", 0..20, 0, Rule::Incarnation, 0.7),
    Find::new(Bug::RosterNotStored, "random", 0..20, 0, Rule::OneRoster, 0.7),
    Find::new(Bug::AcceptedLeftOpen, "decided-unheard", 0..10, 0, Rule::Convergence, 0.3),
    Find::new(Bug::BadCandidateStops, "bad-candidate", 0..10, 0, Rule::BoundedTime, 0.1),
    Find::new(Bug::NotSticky, "manager-returns", 0..10, 0, Rule::BoundedTime, 0.1),
    Find::new(Bug::DeadStayAvailable, "random", 0..20, 5, Rule::Convergence, 1.1),
    Find::new(Bug::DeferredForgotten, "random", 0..10, 0, Rule::Convergence, 0.6),
    Find::new(Bug::TermsUsedAgain, "random", 0..10, 0, Rule::OneManager, 0.5),
    Find::new(Bug::LyingDisk, "random", 0..10, 0, Rule::Incarnation, 0.7),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planted_bug_is_found_and_none_where_none_is_planted() {
        let mut clean = Clean::new();
        for find in TABLE {
            let (seed, what) = find.again(&mut clean).expect("found");
            println!("{}: seed {seed} of {}: {what}", find.bug.name(), find.scenario);
        }
    }

    #[test]
    fn every_bug_but_one_is_in_the_table() {
        let missing: Vec<_> = Bug::ALL.iter().filter(|bug| TABLE.iter().all(|find| find.bug != **bug)).collect();
        assert_eq!(missing, [&Bug::NoSettling], "R7 cannot be seen while R2 waits");
        for rule in (1..=12).filter(|rule| ![7, 11].contains(rule)) {
            let is_of_rule = |find: &Find| find.bug.name().starts_with(&format!("R{rule}-"));
            assert!(TABLE.iter().any(is_of_rule), "R{rule}");
        }
        assert!(TABLE.iter().filter(|find| !find.bug.name().starts_with('R')).count() >= 14);
    }

    #[test]
    fn what_docs_say_of_the_table_is_what_it_says() {
        let docs = include_str!("../../docs/simulation.md");
        for Find { bug, scenario, seeds, seed, rule, took_s } in TABLE {
            let (name, about) = (bug.name(), bug.about().trim_end_matches('.'));
            let (from, to) = (seeds.start, seeds.end);
            let row = format!("| `{name}` | {about} | `{scenario}` {from}..{to} | {seed} | {rule} | {took_s:.1} s |");
            assert!(docs.contains(&row), "docs/simulation.md lacks this row:\n{row}");
        }
    }
}
