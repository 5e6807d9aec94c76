//! What is told of runs on the terminal.

use std::collections::BTreeMap;

use crate::run::Report;

/// Prints what came of one run.
pub(crate) fn print(report: &Report) {
    for fault in &report.faults {
        println!("  fault {fault}");
    }
    for violation in &report.violations {
        println!("{violation}");
    }
    let verdict = if report.exit == 0 { "clean" } else { "VIOLATED" };
    let (name, seed, events) = (&report.scenario, report.seed, report.events);
    println!("{name} seed {seed}: {verdict}, {:.1} virtual s, {events} events", report.virtual_s);
    if let Some(time) = report.converged_after_ms {
        println!("everything equal again after {time} ms");
    }
    print_coverage(&report.coverage);
    println!("trace {}", report.hash);
}

/// Prints how often each thing was seen.
pub(crate) fn print_coverage(coverage: &BTreeMap<&str, u64>) {
    let words: Vec<_> = coverage.iter().map(|(what, count)| format!("{what} {count}")).collect();
    println!("seen: {}", words.join(", "));
}

/// Adds up what was seen in several runs.
pub(crate) fn coverage<'a>(reports: impl Iterator<Item = &'a Report>) -> BTreeMap<&'static str, u64> {
    let mut sum = BTreeMap::new();
    for (what, count) in reports.flat_map(|report| &report.coverage) {
        *sum.entry(*what).or_default() += count;
    }
    sum
}

/// What must have been seen for the checks to mean anything, apart from the faults.
pub(crate) const PREMISES: [&str; 17] = [
    "quorate",
    "act",
    "quorum lost",
    "quorum regained",
    "member suspect",
    "member down",
    "epoch",
    "enrolled",
    "resync",
    "acknowledged",
    "refused",
    "unknown",
    "action",
    "action killed",
    "crash between effects",
    "datagram cut",
    "change of members",
];
