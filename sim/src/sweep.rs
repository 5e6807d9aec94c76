//! Sweeps: many seeds, on several threads, with a bar to watch; the first failure is kept and shrunk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::case::Case;
use crate::quic::apart::Apart;
use crate::report;
use crate::run::{Report, run};
use crate::scenario::Scenario;
use crate::shrink::shrink;

/// What a sweep is called in JSON; the number changes with its fields.
const SCHEMA: &str = "collective.sim.sweep/1";
/// The exit code of a sweep whose time was up before its last seed.
const BUDGET_USED_UP: u8 = 7;
/// How long the first failure is shrunk.
const SHRINK_FOR: Duration = Duration::from_secs(30);

/// What is swept, and how.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    /// From the first to before the last.
    pub(crate) seeds: (u64, u64),
    /// How many run at the same time.
    pub(crate) jobs: usize,
    /// Whether to go on after a violation.
    pub(crate) keep_going: bool,
    /// How long it may take.
    pub(crate) budget: Option<Duration>,
    /// Where failures are kept.
    pub(crate) out: Option<PathBuf>,
    /// Whether the first failure is shrunk.
    pub(crate) shrinks: bool,
    /// How a seed is run at level `quic`: in a process of its own. Cases are kept and shrunk at level `core` only.
    pub(crate) apart: Option<Apart>,
}

/// What came of a sweep.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    schema: &'static str,
    exit: u8,
    runs: usize,
    failed: usize,
    virtual_s: f64,
    coverage: BTreeMap<&'static str, u64>,
    reports: Vec<&'a Report>,
}

/// Runs seeds until one fails, the time is up or all are done, in whatever order; reports come by seed.
pub(crate) fn run_all(scenario: &Scenario, sweep: &Sweep) -> anyhow::Result<BTreeMap<u64, Report>> {
    let (from, to) = sweep.seeds;
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let until = sweep.budget.map(|budget| Instant::now() + budget);
    let reports = Mutex::new(BTreeMap::new());
    let broken = Mutex::new(None);
    // Drawn on stderr, and only where that is a terminal.
    let bar = ProgressBar::new(to - from);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} seeds, {msg}{eta} left") {
        bar.set_style(style);
    }
    std::thread::scope(|scope| {
        for _ in 0..sweep.jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    let report = match &sweep.apart {
                        None => run(scenario, seed, false),
                        Some(apart) => match apart.run(seed, false) {
                            Ok(report) => report,
                            Err(error) => {
                                stop.store(true, Ordering::Relaxed);
                                if let Ok(mut broken) = broken.lock() {
                                    broken.get_or_insert(error);
                                }
                                break;
                            }
                        },
                    };
                    if report.exit != 0 {
                        stop.fetch_or(!sweep.keep_going, Ordering::Relaxed);
                        bar.suspend(|| eprintln!("seed {seed}: {}", report.violations.join("\n  ")));
                        bar.set_message("with failures, ");
                    }
                    bar.inc(1);
                    if let Ok(mut reports) = reports.lock() {
                        reports.insert(seed, report);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    if let Some(error) = broken.into_inner().ok().flatten() {
        return Err(error);
    }
    reports.into_inner().ok().context("a run panicked outside the core")
}

/// Sweeps, tells what came of it, and returns the exit code.
///
/// # Errors
/// When a failure cannot be written where it should.
pub(crate) fn sweep(scenario: &Scenario, sweep: &Sweep, json: bool) -> anyhow::Result<u8> {
    let reports = run_all(scenario, sweep)?;
    let failed: Vec<_> = reports.values().filter(|report| report.exit != 0).collect();
    let is_cut_short = failed.is_empty() && (reports.len() as u64) < sweep.seeds.1 - sweep.seeds.0;
    let exit = failed.first().map_or(if is_cut_short { BUDGET_USED_UP } else { 0 }, |first| first.exit);
    let virtual_s: f64 = reports.values().map(|report| report.virtual_s).sum();
    let coverage = report::coverage(reports.values());
    if json {
        let reports: Vec<_> = reports.values().collect();
        let (runs, failed) = (reports.len(), failed.len());
        let summary = Summary { schema: SCHEMA, exit, runs, failed, virtual_s, coverage, reports };
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        let took_s: f64 = reports.values().map(|report| report.took_s).sum();
        let slowest = reports.values().filter_map(|report| report.converged_after_ms).max().unwrap_or(0);
        println!("{} runs, {:.1} virtual hours, {took_s:.0} s of work", reports.len(), virtual_s / 3_600.0);
        println!("{} failed; the others were equal again after at most {slowest} ms", failed.len());
        if is_cut_short {
            println!("the time was up before the last seed");
        }
        report::print_coverage(&coverage);
    }
    for report in failed.iter().filter(|_| sweep.out.is_some() && sweep.apart.is_none()) {
        keep(scenario, report, sweep)?;
    }
    if let Some(first) = failed.first() {
        // Whoever reads JSON from stdout is not disturbed.
        let tell = |line: String| if json { eprintln!("{line}") } else { println!("{line}") };
        if !json {
            report::print(first);
        }
        tell(again(scenario, first, sweep)?);
    }
    Ok(exit)
}

fn keep(scenario: &Scenario, report: &Report, sweep: &Sweep) -> anyhow::Result<()> {
    let Some(out) = &sweep.out else { return Ok(()) };
    let path = Case::new(scenario, report).save(out, "")?;
    eprintln!("kept as {}", path.display());
    Ok(())
}

/// Shrinks the first failure, and returns the words and the command that show it again.
fn again(scenario: &Scenario, first: &Report, sweep: &Sweep) -> anyhow::Result<String> {
    let seed = first.seed;
    if let Some(apart) = &sweep.apart {
        return Ok(format!("again: collective-sim run {} --seed {seed} --level quic --story", apart.named));
    }
    let plain = format!("again: collective-sim run {} --seed {seed} --story", scenario.name);
    let Some(rule) = first.first.filter(|_| sweep.shrinks) else { return Ok(plain) };
    let shrunk = shrink(scenario, seed, rule, SHRINK_FOR);
    let least = run(&shrunk.scenario, seed, false);
    let faults: Vec<_> = least.faults.iter().map(|fault| format!("\n  {fault}")).collect();
    let told = format!(
        "shrunk in {} runs, {:.1} s, to {} members and, of {} faults, {}:{}",
        shrunk.runs,
        shrunk.took.as_secs_f64(),
        shrunk.scenario.joined,
        scenario.expanded(seed).faults.len(),
        least.faults.len(),
        faults.concat()
    );
    let Some(out) = &sweep.out else {
        return Ok(format!("{told}\n{plain}\nor: collective-sim shrink {} --seed {seed} --out DIR", scenario.name));
    };
    let path = Case::new(&shrunk.scenario, &least).save(out, "-shrunk")?;
    Ok(format!("{told}\nagain: collective-sim replay {}", path.display()))
}
