//! The command line: run, sweep, replay, list.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::quic;
use crate::run::{Report, run};
use crate::scenario::{self, Scenario};

/// The exit code of two runs of one seed that differ.
const NOT_DETERMINISTIC: u8 = 6;

/// What happens to members when their network, disks and processes fail.
#[derive(Debug, Parser)]
#[command(name = "collective-sim", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one scenario with one seed
    Run {
        /// Which; `collective-sim list` names them
        scenario: String,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// How much of what ships is run
        #[arg(long, value_enum, default_value_t)]
        level: Level,
        /// Tell everything that happens, on stderr
        #[arg(long)]
        story: bool,
    },
    /// Runs many seeds and stops at the first that violates anything
    Sweep {
        /// Which scenario
        #[arg(default_value = "random")]
        scenario: String,
        /// From the first to before the last, as A..B
        #[arg(long, value_parser = seeds)]
        seeds: (u64, u64),
        /// How many run at the same time
        #[arg(short, long, default_value_t = 1)]
        jobs: usize,
        /// How much of what ships is run
        #[arg(long, value_enum, default_value_t)]
        level: Level,
        /// Go on after a violation
        #[arg(long)]
        keep_going: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Runs one seed twice and compares everything that happened
    Replay {
        /// Which scenario
        #[arg(default_value = "random")]
        scenario: String,
        #[arg(long)]
        seed: u64,
        /// How much of what ships is run
        #[arg(long, value_enum, default_value_t)]
        level: Level,
    },
    /// Names the scenarios
    List,
}

/// How much of what ships is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Level {
    /// The decisions and documents
    #[default]
    Core,
    /// Whole daemons over simulated UDP
    Quic,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("seeds are given as A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok((from, to)) } else { Err(format!("there is no seed from {from} to before {to}")) }
}

/// Parses the command line, runs, and returns the exit code.
pub(crate) fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    // A panic of the core is a violation, told with the others.
    std::panic::set_hook(Box::new(|panic| {
        if let Some(place) = panic.location() {
            eprintln!("panic at {}:{}", place.file(), place.line());
            quic::note_panic(format!("panic at {}:{}", place.file(), place.line()));
        }
    }));
    match carry_out(args.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("collective-sim: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Run { scenario, seed, output, level, story } => {
            let report = match level {
                Level::Core => run(&scenario::find(&scenario)?, seed, story),
                Level::Quic => quic::run(&scenario, seed, story)?,
            };
            report.story.iter().for_each(|line| eprintln!("{line}"));
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
                Output::Text => print_report(&report),
            }
            Ok(report.exit)
        }
        Command::Sweep { scenario, seeds, jobs, level, keep_going, output } => {
            let runner = Runner::new(level, scenario)?;
            sweep(&runner, seeds, jobs.max(1), keep_going, output)
        }
        Command::Replay { scenario, seed, level } => {
            let runner = Runner::new(level, scenario)?;
            let (first, second) = (runner.run(seed, true)?, runner.run(seed, true)?);
            if first.hash == second.hash {
                println!("seed {seed}: {} events twice, trace {}", first.events, first.hash);
                return Ok(first.exit);
            }
            println!("seed {seed}: traces {} and {} differ", first.hash, second.hash);
            let differing = first.story.iter().zip(&second.story).find(|(a, b)| a != b);
            if let Some((a, b)) = differing {
                println!("first told difference:\n  {a}\n  {b}");
            }
            Ok(NOT_DETERMINISTIC)
        }
        Command::List => {
            for (scenario, _) in scenario::all()? {
                println!("{:20} {}", scenario.name, scenario.about);
            }
            println!("\nat level quic only:");
            for encounter in quic::encounters::ALL {
                println!("{:20} {}", encounter.name, encounter.about);
            }
            Ok(0)
        }
    }
}

/// Runs one scenario at one level, as often as wanted.
struct Runner {
    /// The name or file it was found by.
    named: String,
    /// What was found there; level `quic` reads it anew in each of its processes.
    core: Option<Scenario>,
}

impl Runner {
    fn new(level: Level, named: String) -> anyhow::Result<Self> {
        let core = match level {
            Level::Core => Some(scenario::find(&named)?),
            Level::Quic => {
                quic::find(&named)?;
                None
            }
        };
        Ok(Self { named, core })
    }

    fn run(&self, seed: u64, tell: bool) -> anyhow::Result<Report> {
        match &self.core {
            Some(scenario) => Ok(run(scenario, seed, tell)),
            None => quic::apart::run(&self.named, seed, tell),
        }
    }

    /// Returns the command that runs a seed of it again.
    fn again(&self, seed: u64) -> String {
        let level = if self.core.is_none() { " --level quic" } else { "" };
        format!("collective-sim run {} --seed {seed}{level} --story", self.named)
    }
}

fn sweep(runner: &Runner, (from, to): (u64, u64), jobs: usize, keep_going: bool, output: Output) -> anyhow::Result<u8> {
    let next = AtomicU64::new(from);
    let failed = AtomicBool::new(false);
    let broken = AtomicBool::new(false);
    let reports = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while keep_going || !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    let report = match runner.run(seed, false) {
                        Ok(report) => report,
                        Err(error) => {
                            failed.store(true, Ordering::Relaxed);
                            eprintln!("seed {seed}: {error:#}");
                            broken.store(true, Ordering::Relaxed);
                            break;
                        }
                    };
                    if report.exit != 0 {
                        failed.store(true, Ordering::Relaxed);
                        eprintln!("seed {seed}: {}", report.violations.join("\n  "));
                    }
                    if let Ok(mut reports) = reports.lock() {
                        reports.insert(seed, report);
                    }
                }
            });
        }
    });
    let reports = reports.into_inner().ok().context("a run panicked outside the core")?;
    if broken.into_inner() {
        bail!("a seed could not be run");
    }
    let mut coverage: BTreeMap<&str, u64> = BTreeMap::new();
    for report in reports.values() {
        for (what, count) in &report.coverage {
            *coverage.entry(what).or_default() += count;
        }
    }
    let first = reports.values().find(|report| report.exit != 0);
    match output {
        Output::Json => println!("{}", serde_json::to_string(&reports.values().collect::<Vec<_>>())?),
        Output::Text => {
            let virtual_s: f64 = reports.values().map(|report| report.virtual_s).sum();
            let took_s: f64 = reports.values().map(|report| report.took_s).sum();
            let slowest = reports.values().filter_map(|report| report.converged_after_ms).max().unwrap_or(0);
            println!("{} runs, {:.1} virtual hours, {took_s:.0} s of work", reports.len(), virtual_s / 3_600.0);
            println!("everything equal again after at most {slowest} ms");
            print_coverage(&coverage);
            if let Some(first) = first {
                print_report(first);
                println!("again: {}", runner.again(first.seed));
            }
        }
    }
    Ok(first.map_or(0, |report| report.exit))
}

fn print_coverage(coverage: &BTreeMap<&str, u64>) {
    let words: Vec<_> = coverage.iter().map(|(what, count)| format!("{what} {count}")).collect();
    println!("seen: {}", words.join(", "));
}

fn print_report(report: &Report) {
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
