//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use collective::config::DaemonArgs;

use crate::audit::audit;
use crate::case::{CODE, Case, difference, trace_of};
use crate::quic::apart::Apart;
use crate::run::{Options, Report, run, run_with};
use crate::scenario::{self, Scenario, units};
use crate::shrink::shrink;
use crate::sweep::{Sweep, run_all, sweep};
use crate::{bench, fault, figures, html, model, netns, planted, quic, report, selftest, trace};

/// The exit code of something that did not come to pass.
const NOT_SEEN: u8 = 4;
/// Why there are things that level netns does not do.
const REAL_TIME: &str = "level netns runs in real time, on a machine that has other things to do";
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
        #[command(flatten)]
        which: Which,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// How much of what ships is run
        #[arg(long, value_enum, default_value_t)]
        level: Level,
        /// Stop that long after load and faults begin, such as 300s
        #[arg(long, value_parser = duration)]
        until: Option<u64>,
        /// Tell everything that happens, on stderr
        #[arg(long)]
        story: bool,
        /// Where the shipped programs are, for level netns; beside this one when not said
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
    },
    /// Runs many seeds and stops at the first that violates anything
    Sweep {
        #[command(flatten)]
        which: Which,
        /// From the first to before the last, as A..B
        #[arg(long, value_parser = seeds)]
        seeds: (u64, u64),
        /// How many run at the same time
        #[arg(short, long, default_value_t = 1)]
        jobs: usize,
        /// How much of what ships is run
        #[arg(long, value_enum, default_value_t)]
        level: Level,
        /// How long it may take, such as 10m
        #[arg(long, value_parser = duration)]
        budget: Option<u64>,
        /// Go on after a violation
        #[arg(long)]
        keep_going: bool,
        /// Keep each failure there as a case, with its trace
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Do not shrink the first failure
        #[arg(long)]
        no_shrink: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Plain,
    },
    /// Runs a case again and compares, or one seed of a scenario twice
    Replay {
        /// A case file, or a scenario
        #[arg(default_value = "random")]
        case: String,
        /// The seed, for a scenario
        #[arg(long)]
        seed: Option<u64>,
        /// How much of what ships is run, for a scenario
        #[arg(long, value_enum, default_value_t)]
        level: Level,
        /// Tell where another case or trace goes a different way
        #[arg(long, value_name = "CASE|TRACE")]
        diff: Option<PathBuf>,
    },
    /// Finds the least that still fails in the same way
    Shrink {
        /// A case file, or a scenario
        case: String,
        /// The seed, for a scenario
        #[arg(long)]
        seed: Option<u64>,
        /// How long it may take
        #[arg(long, value_parser = duration, default_value = "30s")]
        budget: u64,
        /// Keep the result there as a case; otherwise it is written to stdout
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Checks a trace of JSON lines, a simulated or a real one
    Check {
        /// The trace, as `run -o jsonl` writes it
        trace: PathBuf,
    },
    /// Tells what many seeds have seen, and what never happened
    Coverage {
        #[command(flatten)]
        which: Which,
        /// From the first to before the last, as A..B
        #[arg(long, value_parser = seeds, default_value = "0..100")]
        seeds: (u64, u64),
        /// How many run at the same time
        #[arg(short, long, default_value_t = 1)]
        jobs: usize,
    },
    /// Measures how long it takes until members see what happened, over many seeds
    Figures {
        /// From the first to before the last, as A..B
        #[arg(long, value_parser = seeds, default_value = "0..1000")]
        seeds: (u64, u64),
        /// How many run at the same time
        #[arg(short, long, default_value_t = 1)]
        jobs: usize,
        /// Only the figures whose name contains this
        only: Option<String>,
    },
    /// Measures what a member of an idle collective costs, at different sizes
    Bench {
        /// How many members, as a list
        #[arg(long, value_delimiter = ',', default_value = "3,10,100,300,1000", value_parser = clap::value_parser!(u16).range(1..=1_000))]
        members: Vec<u16>,
        /// How many virtual seconds are measured, such as 60s
        #[arg(long = "for", value_parser = duration, default_value = "10s")]
        window: u64,
    },
    /// Feeds each checker what it must not let pass, and looks again for every bug that can be planted
    Selftest {
        /// Look for this bug only
        bug: Option<String>,
        /// Search these seeds for it, as A..B
        #[arg(long, value_parser = seeds, requires = "bug")]
        search: Option<(u64, u64)>,
        /// In which scenario to search
        #[arg(long, default_value = "random", requires = "search")]
        scenario: String,
        /// Give up after that many seconds of one core
        #[arg(long, default_value_t = 60, requires = "search")]
        budget: u64,
    },
    /// Searches every state of small models of the safety rules
    Model {
        /// Which of them; all when none is named
        model: Option<String>,
        /// Shows what goes wrong without a rule, as R5, or without a part of one, as R5-margin
        #[arg(long)]
        without: Option<String>,
    },
    /// Runs as the shipped daemon with a bug planted, at level netns
    #[command(hide = true)]
    Daemon {
        /// Which bug
        #[arg(long)]
        planted: String,
        /// The shipped program, which watches the actions
        #[arg(long)]
        guard: PathBuf,
        #[command(flatten)]
        daemon: Box<DaemonArgs>,
    },
    /// Runs as an action at level netns: writes down from when to when it ran
    #[command(hide = true)]
    Mark {
        /// Where to
        marks: PathBuf,
    },
    /// Names the scenarios
    List,
    /// Explains a scenario
    Describe {
        /// Which; `collective-sim list` names them
        scenario: String,
    },
}

/// Which scenario, and what is different about it.
#[derive(Debug, ClapArgs)]
struct Which {
    /// A name, see `collective-sim list`, or a file
    #[arg(default_value = "random")]
    scenario: String,
    /// How long load and faults last, such as 600s
    #[arg(long, value_parser = duration)]
    window: Option<u64>,
}

impl Which {
    /// Returns it as level `quic` takes it.
    fn named(&self) -> Apart {
        Apart { named: self.scenario.clone(), window: self.window }
    }

    /// Returns the text of the scenario, for mistakes that are told with their place.
    fn text(&self) -> anyhow::Result<String> {
        match scenario::text_of(&self.scenario) {
            Some(text) => Ok(text.to_owned()),
            None => std::fs::read_to_string(&self.scenario).with_context(|| format!("cannot read {}", self.scenario)),
        }
    }

    fn find(&self) -> anyhow::Result<Scenario> {
        let mut scenario = scenario::find(&self.scenario)?;
        if let Some(window) = self.window {
            scenario.window_ms = window / fault::MS;
        }
        Ok(scenario)
    }
}

/// How much of what ships is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Level {
    /// The decisions and documents
    #[default]
    Core,
    /// Whole daemons over simulated UDP
    Quic,
    /// The shipped programs in network namespaces, in real time
    Netns,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
    /// The trace, a line for each thing that is seen
    Jsonl,
    /// A page with the timeline
    Html,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Plain {
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

fn duration(text: &str) -> Result<u64, String> {
    units::duration(text).ok_or_else(|| "a duration such as 250ms, 90s, 10m or 1h".to_owned())
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
        Command::Run { which, seed, output, level: Level::Netns, until, story, bin_dir } => {
            let (scenario, text) = (which.find()?, which.text()?);
            let how = netns::How { seed, bin_dir, until_ms: until.map(|until| until / fault::MS), tells: story };
            let report = netns::run(&scenario, &which.scenario, &text, &how)?;
            match output {
                Output::Text => netns::print(&report),
                other => show(&report, other)?,
            }
            Ok(report.exit)
        }
        Command::Run { which, seed, output, level: Level::Quic, until, story, .. } => {
            if matches!(output, Output::Jsonl | Output::Html) || until.is_some() {
                bail!("level quic tells text and JSON, and runs to the end");
            }
            let report = quic::run(&which.named(), seed, story)?;
            report.story.iter().for_each(|line| eprintln!("{line}"));
            show(&report, output)?;
            Ok(report.exit)
        }
        Command::Run { which, seed, output, level: Level::Core, until, story, .. } => {
            let is_traced = matches!(output, Output::Jsonl | Output::Html);
            let options = Options { story, trace: is_traced, until_ms: until.map(|until| until / fault::MS) };
            let report = run_with(&which.find()?, seed, &options);
            report.story.iter().for_each(|line| eprintln!("{line}"));
            show(&report, output)?;
            Ok(report.exit)
        }
        Command::Sweep { which, seeds, jobs, level, budget, keep_going, out, no_shrink, output } => {
            let budget = budget.map(Duration::from_nanos);
            let (scenario, apart) = match level {
                Level::Core => (which.find()?, None),
                Level::Quic => (quic::find(&which.named())?, Some(which.named())),
                Level::Netns => bail!("{REAL_TIME}: run one seed after the other"),
            };
            let how = Sweep { seeds, jobs: jobs.max(1), keep_going, budget, out, shrinks: !no_shrink, apart };
            sweep(&scenario, &how, output == Plain::Json)
        }
        Command::Replay { case, seed, level, diff } => match seed {
            Some(_) if level == Level::Netns => bail!("{REAL_TIME}, and two runs of one seed are never the same"),
            Some(seed) if level == Level::Quic => {
                let named = Apart { named: case, window: None };
                quic::find(&named)?;
                compare(seed, &named.run(seed, true)?, &named.run(seed, true)?)
            }
            Some(seed) => {
                let scenario = scenario::find(&case)?;
                compare(seed, &run(&scenario, seed, true), &run(&scenario, seed, true))
            }
            None => replay(Path::new(&case), diff.as_deref()),
        },
        Command::Shrink { case, seed, budget, out } => shrink_one(&case, seed, budget, out.as_deref()),
        Command::Check { trace } => check(&trace),
        Command::Coverage { which, seeds, jobs } => coverage(&which.find()?, seeds, jobs.max(1)),
        Command::Figures { seeds, jobs, only } => Ok(figures::measure(seeds, jobs.max(1), only.as_deref())),
        Command::Bench { members, window } => {
            let sizes: Vec<_> = members.into_iter().map(usize::from).collect();
            bench::bench(&sizes, window).map_err(|violation| anyhow!(violation))?;
            Ok(0)
        }
        Command::Selftest { bug, search, scenario, budget } => match (bug, search) {
            (Some(bug), Some(seeds)) => planted::search(&bug, &scenario, seeds, budget),
            (Some(bug), None) => planted::look_again(Some(&bug)),
            (None, _) => Ok(selftest::run().max(planted::look_again(None)?)),
        },
        Command::Model { model, without } => model::run(model.as_deref(), without.as_deref()),
        Command::Daemon { planted, guard, daemon } => netns::planted(&planted, guard, *daemon).map(|()| 0),
        Command::Mark { marks } => netns::mark::run(&marks).map(|()| 0),
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
        Command::Describe { scenario } => {
            print!("{}", describe(&scenario)?);
            Ok(0)
        }
    }
}

fn show(report: &Report, output: Output) -> anyhow::Result<()> {
    let trace = || report.trace.as_ref().context("a trace was asked for");
    match output {
        Output::Text => report::print(report),
        Output::Json => println!("{}", serde_json::to_string_pretty(report)?),
        Output::Jsonl => {
            let (head, lines) = trace()?;
            print!("{}", trace::write(head, lines)?);
        }
        Output::Html => {
            let (head, lines) = trace()?;
            print!("{}", html::page(head, lines));
        }
    }
    Ok(())
}

/// Compares everything that happened in two runs of one seed.
fn compare(seed: u64, first: &Report, second: &Report) -> anyhow::Result<u8> {
    if first.hash == second.hash {
        println!("seed {seed}: {} events twice, trace {}", first.events, first.hash);
        return Ok(first.exit);
    }
    println!("seed {seed}: traces {} and {} differ", first.hash, second.hash);
    tell_difference(&first.story.join("\n"), &second.story.join("\n"));
    Ok(NOT_DETERMINISTIC)
}

/// Runs a case again; it must come to the same hash.
fn replay(path: &Path, other: Option<&Path>) -> anyhow::Result<u8> {
    if !path.exists() {
        bail!("there is no case {}; a scenario is replayed with --seed N", path.display());
    }
    let case = Case::load(path)?;
    let (report, trace) = traced(&case)?;
    let is_same = report.hash == case.hash;
    if is_same {
        report::print(&report);
        println!("the same as when it was kept");
    } else {
        println!("trace {} was kept, {} came of it now", case.hash, report.hash);
        if case.code != CODE {
            println!("the code is another one: {} then, {CODE} now", case.code);
        }
        match std::fs::read_to_string(trace_of(path)) {
            Ok(kept) => tell_difference(&kept, &trace),
            Err(error) => println!("no trace was kept beside it: {error}"),
        }
    }
    if let Some(other) = other {
        let theirs = match Case::load(other) {
            Ok(case) => traced(&case)?.1,
            Err(_) => std::fs::read_to_string(other).with_context(|| format!("cannot read {}", other.display()))?,
        };
        tell_difference(&trace, &theirs);
    }
    Ok(if is_same { report.exit } else { NOT_DETERMINISTIC })
}

fn traced(case: &Case) -> anyhow::Result<(Report, String)> {
    let report = run_with(&case.scenario, case.seed, &Options { trace: true, ..Options::default() });
    let (head, lines) = report.trace.as_ref().context("a trace was asked for")?;
    let text = trace::write(head, lines)?;
    Ok((report, text))
}

fn tell_difference(a: &str, b: &str) {
    match difference(a, b) {
        Some((number, a, b)) => println!("first difference, line {number}:\n  {a}\n  {b}"),
        None => println!("no difference is seen from outside"),
    }
}

fn shrink_one(named: &str, seed: Option<u64>, budget: u64, out: Option<&Path>) -> anyhow::Result<u8> {
    let (scenario, seed) = match seed {
        Some(seed) => (scenario::find(named)?, seed),
        None => {
            let case = Case::load(Path::new(named))?;
            (case.scenario, case.seed)
        }
    };
    let Some(rule) = run(&scenario, seed, false).first else {
        bail!("seed {seed} of {} violates nothing, so there is nothing to shrink", scenario.name);
    };
    let before = scenario.expanded(seed).faults.len();
    let shrunk = shrink(&scenario, seed, rule, Duration::from_nanos(budget));
    let least = run(&shrunk.scenario, seed, false);
    eprintln!(
        "{} runs, {:.1} s{}: {before} faults became {}, {} members, {:.1} virtual s of load",
        shrunk.runs,
        shrunk.took.as_secs_f64(),
        if shrunk.is_cut_short { ", then the time was up" } else { "" },
        shrunk.scenario.faults.len(),
        shrunk.scenario.joined,
        shrunk.scenario.window_ms as f64 / 1e3
    );
    let case = Case::new(&shrunk.scenario, &least);
    match out {
        None => print!("{}", case.text()),
        Some(out) => {
            let path = case.save(out, "-shrunk")?;
            report::print(&least);
            println!("again: collective-sim replay {}", path.display());
        }
    }
    Ok(least.exit)
}

fn check(path: &Path) -> anyhow::Result<u8> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (head, lines) = trace::read(&text).map_err(|wrong| anyhow!("{}: {wrong}", path.display()))?;
    let audit = audit(&head, &lines);
    for violation in &audit.violations {
        println!("{violation}");
    }
    report::print_coverage(&audit.premises);
    println!("{} lines: {}", lines.len(), if audit.violations.is_empty() { "clean" } else { "VIOLATED" });
    Ok(audit.violations.first().map_or(0, |first| first.rule.exit()))
}

fn coverage(scenario: &Scenario, seeds: (u64, u64), jobs: usize) -> anyhow::Result<u8> {
    let how = Sweep { seeds, jobs, keep_going: true, budget: None, out: None, shrinks: false, apart: None };
    let reports = run_all(scenario, &how)?;
    let seen = report::coverage(reports.values());
    let kinds = scenario.random.as_ref().map(|random| random.kinds.clone());
    let kinds = kinds.unwrap_or_else(|| scenario.faults.iter().map(|fault| fault.kind.word()).collect());
    println!("{} runs", reports.len());
    let mut never = Vec::new();
    for what in kinds.iter().copied().chain(report::PREMISES) {
        let times = seen.get(what).copied().unwrap_or(0);
        println!("{times:10}  {}{what}", if kinds.contains(&what) { "fault " } else { "" });
        if times == 0 {
            never.push(what);
        }
    }
    if never.is_empty() {
        return Ok(0);
    }
    println!("never seen: {}", never.join(", "));
    Ok(NOT_SEEN)
}

fn describe(named: &str) -> anyhow::Result<String> {
    let scenario = scenario::find(named)?;
    let mut told = format!("{}\n{}\n\n", scenario.name, scenario.about);
    let spare = match scenario.members - scenario.joined {
        0 => String::new(),
        spare => format!(", {spare} more that may join"),
    };
    for (a, b) in &scenario.unlinked {
        told.push_str(&format!("no way between m{a} and m{b}, ever\n"));
    }
    let (window_s, converge_s) = (scenario.window_ms as f64 / 1e3, scenario.converge_ms as f64 / 1e3);
    told.push_str(&format!(
        "{} members{spare}, {} nodes, leases of {:.1} s\n",
        scenario.joined,
        scenario.nodes,
        f64::from(scenario.timing.lease_ms) / 1e3
    ));
    told.push_str(&format!("{window_s:.1} s of load and faults, then equal within {converge_s:.1} s\n"));
    for fault in &scenario.faults {
        told.push_str(&format!("  {fault}\n"));
    }
    if let Some(random) = &scenario.random {
        let (least, most) = random.count;
        told.push_str(&format!("  {least} to {most} faults a minute of: {}\n", random.kinds.join(", ")));
    }
    if let Some(text) = scenario::text_of(named) {
        told.push_str(&format!("\n{text}"));
    }
    Ok(told)
}
