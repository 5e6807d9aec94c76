//! Level `netns`: the shipped daemon, a process each, in network namespaces, in real time.
//!
//! The scenarios are those of the other levels, and so are the trace and what is checked of it. See
//! docs/simulation-netns.md for what is seen from outside and what is not.

mod drive;
mod lab;
mod limits;
mod load;
mod machine;
pub(crate) mod mark;
mod nemesis;
mod stage;
mod steps;
mod switch;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use collective::actions::now;
use collective::config::DaemonArgs;
use collective::daemon::{self, Options};
use collective::proto::planted::{Bug, Planted};
use ring::digest;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::audit::audit;
use crate::check::{Rule, Violation};
use crate::fault::{Active, MS};
use crate::mix::Mix;
use crate::run::{Report, SCHEMA};
use crate::scenario::Scenario;
use crate::site::name;
use crate::step::Shown;
use crate::trace::{self, FORMAT, Head, Line, Seen, seconds};
use drive::Director;
use lab::{Between, Lab};
use machine::{Machine, Setup};
use stage::{Fabric, Stage};
use switch::{Switch, Weather};

/// The most machines of one run: each is a process, and all share this machine.
const MACHINES_MAX: usize = 32;
/// The most machines on a switch in user space, which has a socket for each pair of them.
const PORTS_MAX: usize = 16;

/// What is run at this level, besides the scenario.
#[derive(Clone, Debug, Default)]
pub(crate) struct How {
    pub(crate) seed: u64,
    /// Where `collectived` is; beside this program when not said.
    pub(crate) bin_dir: Option<PathBuf>,
    /// When to stop, in milliseconds after load and faults begin.
    pub(crate) until_ms: Option<u64>,
    /// Whether everything that happens is told on stderr while it does.
    pub(crate) tells: bool,
}

/// Runs a scenario, which was found under that name and which `text` says.
///
/// # Errors
/// When it cannot be run at this level, or here, or was interrupted; nothing that was started is left then.
pub(crate) fn run(scenario: &Scenario, named: &str, text: &str, how: &How) -> anyhow::Result<Report> {
    let scenario = limits::at_this_level(scenario, how.seed, text).map_err(|wrong| anyhow!("{named}:{wrong}"))?;
    if scenario.members > MACHINES_MAX {
        bail!(
            "{} machines are too many: level netns starts a process for each, {MACHINES_MAX} at most",
            scenario.members
        );
    }
    let between = limits::between(&scenario);
    if between == Between::Ports && scenario.members > PORTS_MAX {
        bail!(
            "{} machines are too many for packets that are late, doubled or damaged: {PORTS_MAX} at most",
            scenario.members
        );
    }
    let marker = std::env::current_exe().context("this program's own path")?;
    let daemon = daemon_in(how.bin_dir.as_deref(), &marker)?;
    Lab::is_possible()?;
    let home = tempfile::Builder::new().prefix("collective-sim-").tempdir()?;
    let profile = limits::profile(scenario.timing, text)?.to_string();
    let planted = scenario.planted.map(|bug| bug.name());
    let setup = Setup { daemon, marker, planted, profile, home: home.path().to_owned() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    let report = runtime.block_on(perform(&scenario, how, &setup))?;
    if report.exit != 0 {
        eprintln!("collective-sim: logs and state of the members are kept in {}", home.keep().display());
    }
    Ok(Report { took_s: started.elapsed().as_secs_f64(), ..report })
}

/// Finds the shipped daemon.
fn daemon_in(directory: Option<&Path>, this: &Path) -> anyhow::Result<PathBuf> {
    let directory = directory.or_else(|| this.parent()).unwrap_or(Path::new("."));
    let daemon = directory.join("collectived");
    if !daemon.is_file() {
        bail!(
            "there is no collectived in {}: build it with `cargo build --bin collectived`, or name its directory with --bin-dir",
            directory.display()
        );
    }
    Ok(std::path::absolute(daemon)?)
}

/// Runs as the shipped daemon, with a bug planted, until the process is told to stop.
///
/// # Errors
/// There is no such bug, this build has none at all, or the daemon fails.
pub(crate) fn planted(bug: &str, guard: PathBuf, daemon: DaemonArgs) -> anyhow::Result<()> {
    ensure!(Planted::POSSIBLE, "a release build plants no bugs; build it with `--features planted`");
    let known = Bug::ALL.iter().find(|known| known.name() == bug);
    let bug = known.with_context(|| format!("there is no bug {bug} to plant; `collective-sim selftest` names them"))?;
    let (config, _) = daemon.load(std::env::vars().collect())?;
    let options = Options { guard: Some(guard), planted: Planted::one(*bug), ..Options::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon::run(config, options))
}

async fn perform(scenario: &Scenario, how: &How, setup: &Setup) -> anyhow::Result<Report> {
    // Asked for before there is anything to take away.
    let mut signals = Signals::watch()?;
    // Dropped in this order, however the run ends: processes, then their networks.
    let between = limits::between(scenario);
    let lab = Lab::build(scenario.members, between)?;
    let machines = (0..scenario.members).map(|number| Machine::new(number, &lab, setup)).collect::<Result<_, _>>()?;
    let base = now().as_nanos();
    let fabric = match between {
        Between::Bridge => Fabric::Bridge(lab.switch()),
        Between::Ports => {
            let ports: Vec<_> = (0..scenario.members).map(|machine| lab.port(machine)).collect();
            let weather = Weather { active: Active::without(&scenario.unlinked), usual: scenario.network };
            Fabric::Switch(Switch::start(&ports, Mix::new(how.seed), base, weather)?)
        }
    };
    let stage = Stage::new(scenario, how, base, machines, fabric);
    let _ends = Ends(stage.clone());
    let director = Director { stage: stage.clone() };
    for at in 0..scenario.members {
        tokio::spawn(watch::watch(stage.clone(), at));
    }
    let converged = tokio::select! {
        biased;
        () = signals.come() => bail!("interrupted; everything that was started is taken away again"),
        converged = director.play(scenario, how.until_ms) => converged,
    };
    stage.end_all();
    let marks = std::fs::read_to_string(setup.marks()).unwrap_or_default();
    let mut state = stage.lock();
    if let Some(trouble) = state.trouble.take() {
        bail!("{trouble}");
    }
    if let Fabric::Switch(switch) = stage.fabric.as_ref() {
        for (what, times) in switch.counted() {
            *state.coverage.entry(what).or_default() += times;
        }
    }
    for (id, mark) in (0_u64..).zip(mark::read(&marks)) {
        state.count("action");
        if !mark.is_whole {
            state.count("action killed");
        }
        let (from, until) = (seconds(state.time_of(mark.from)), seconds(state.time_of(mark.to)));
        let seen = Seen::Action { node: mark.node, id, until, token: Some(mark.token) };
        state.lines.push(Line { t: from, member: Some(mark.member), seen });
    }
    if how.until_ms.is_none()
        && !state.is_over()
        && let Err(what) = state.seen(&scenario.seen)
    {
        state.violate(Rule::BoundedTime, what);
    }
    let head = head(scenario, how.seed);
    let mut lines = std::mem::take(&mut state.lines);
    // What was found out later about an earlier time is told at that time.
    lines.sort_by(|a, b| a.t.total_cmp(&b.t));
    let audit = audit(&head, &lines);
    for (what, times) in audit.premises {
        *state.coverage.entry(told_as(what)).or_default() += times;
    }
    let mut violations: Vec<Violation> = state.checker.violations.iter().cloned().chain(audit.violations).collect();
    violations.sort_by_key(|violation| violation.at);
    let begin = lines.iter().find(|line| line.seen == Seen::Begin).map(|line| line.t);
    lines.extend(violations.iter().map(Violation::line));
    let text = trace::write(&head, &lines)?;
    Ok(Report {
        schema: SCHEMA,
        scenario: scenario.name.clone(),
        seed: how.seed,
        hash: data_encoding::HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()),
        exit: violations.first().map_or(0, |first| first.rule.exit()),
        first: violations.first().map(|first| first.rule),
        violated_ms: violations
            .first()
            .zip(begin)
            .map(|(first, begin)| first.at.saturating_sub((begin * 1e9) as u64) / MS),
        violations: violations.iter().map(ToString::to_string).collect(),
        faults: state.faults.iter().map(ToString::to_string).collect(),
        virtual_s: seconds(state.time()),
        converged_after_ms: converged.map(|time| time / MS),
        events: lines.len() as u64,
        coverage: std::mem::take(&mut state.coverage),
        story: Vec::new(),
        trace: Some((head, lines)),
        took_s: 0.0,
    })
}

fn head(scenario: &Scenario, seed: u64) -> Head {
    Head {
        trace: FORMAT,
        scenario: scenario.name.clone(),
        seed,
        lease: f64::from(scenario.timing.lease_ms) / 1e3,
        margin: f64::from(scenario.timing.margin_permille) / 1e3,
        // All members have one clock, which is this program's, too: what others need for drift is for our own lateness.
        drift: 0.025,
        members: (0..scenario.members).map(name).collect(),
    }
}

/// Returns under which words the report counts what the checkers judged, apart from what the run counted itself.
fn told_as(premise: &'static str) -> &'static str {
    match premise {
        "act" => "spans judged",
        "action" => "actions judged",
        "acknowledged" => "acknowledgements judged",
        premise => premise,
    }
}

/// By which the user or the system says that this shall end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn come(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Kills every daemon when the run is over, whichever task still knows of it.
struct Ends(Arc<Stage>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

/// Prints what came of one run.
pub(crate) fn print(report: &Report) {
    for fault in &report.faults {
        println!("  fault {fault}");
    }
    for violation in &report.violations {
        println!("{violation}");
    }
    let verdict = if report.exit == 0 { "clean" } else { "VIOLATED" };
    println!("{} at level netns: {verdict}, {:.1} s, {} lines of trace", report.scenario, report.took_s, report.events);
    if let Some(time) = report.converged_after_ms {
        println!("everything equal again after {time} ms");
    }
    crate::report::print_coverage(&report.coverage);
}
