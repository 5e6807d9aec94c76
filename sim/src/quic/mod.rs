//! Level `quic`: whole shipped daemons, with quinn, rustls, chitchat and redb, over in-memory UDP in virtual time.
//!
//! One run is one tokio runtime of one thread with a paused clock. Everything random follows from the seed, so a run
//! repeats itself byte for byte. See docs/simulation.md for what had to be set, and where.

pub(crate) mod apart;
mod care;
mod crypto;
mod disk;
mod drive;
pub(crate) mod encounters;
mod ending;
mod entropy;
mod home;
mod ledger;
mod load;
mod machine;
mod nemesis;
mod process;
mod stage;
mod steps;
mod watch;
mod wire;

use std::sync::Mutex;
use std::time::Instant;

use anyhow::bail;

use crate::check::Rule;
use crate::fault::MS;
use crate::mix::{Mix, Purpose};
use crate::run::{Report, SCHEMA};
use crate::scenario::{self, Scenario};
use crate::step::Shown;
use apart::Apart;
use drive::Director;
use encounters::Encounter;
use stage::Stage;

/// What panicked, wherever it was.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs a scenario, by its name or file, or an encounter, with a seed.
///
/// The hash repeats itself in the first run of a process only: tokio mixes into what its `select!` draws how many
/// runtimes there were before.
///
/// # Errors
/// When there is no such thing, or it cannot be run at this level.
pub(crate) fn run(what: &Apart, seed: u64, tell: bool) -> anyhow::Result<Report> {
    let encounter = encounters::named(&what.named);
    let scenario = at_this_level(&find(what)?, seed)?;
    // A thread of its own, whose entropy is the seed's from its first breath.
    let thread = std::thread::Builder::new().name("simulation".into()).spawn(move || {
        let mix = Mix::new(seed);
        entropy::sow(mix.bytes(Purpose::Entropy, u64::MAX));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let started = Instant::now();
        let report = runtime.block_on(perform(&scenario, encounter, seed, tell));
        report.map(|report| Report { took_s: started.elapsed().as_secs_f64(), ..report })
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("the simulation panicked"))?
}

/// Finds a scenario for this level.
///
/// # Errors
/// When there is no such thing, or this level cannot run it.
pub(crate) fn find(what: &Apart) -> anyhow::Result<Scenario> {
    let mut scenario = match encounters::named(&what.named) {
        Some(encounter) => Scenario::new(encounter.name, encounter.members),
        None => scenario::find(&what.named)?,
    };
    if let Some(window) = what.window {
        scenario.window_ms = window / MS;
    }
    at_this_level(&scenario, 0)?;
    Ok(scenario)
}

/// Returns a scenario as this level runs it, with everything that the seed draws written out.
fn at_this_level(scenario: &Scenario, seed: u64) -> anyhow::Result<Scenario> {
    let mut scenario = scenario.clone();
    if let Some(random) = &mut scenario.random {
        random.kinds.retain(|word| nemesis::is_simulated(word));
    }
    let scenario = scenario.expanded(seed);
    if let Some(fault) = scenario.faults.iter().find(|fault| !nemesis::is_simulated(fault.kind.word())) {
        bail!("the fault {} is not simulated at level quic", fault.kind.word());
    }
    if scenario.planted.is_some() || scenario.violates.is_some() {
        bail!("scenarios with a rule broken on purpose are not run at level quic");
    }
    Ok(scenario)
}

async fn perform(scenario: &Scenario, encounter: Option<&Encounter>, seed: u64, tell: bool) -> anyhow::Result<Report> {
    let stage = Stage::new(Mix::new(seed), scenario, tell);
    let director = Director::new(stage.clone(), scenario.timing)?;
    let converged = match encounter {
        Some(encounter) => {
            if let Err(what) = (encounter.play)(director.clone()).await {
                director.fail(Rule::BoundedTime, what);
            }
            None
        }
        None => director.play(scenario).await,
    };
    let seen = stage.lock().seen(&scenario.seen);
    if let Err(what) = seen.or_else(|what| if director.is_over() { Ok(()) } else { Err(what) }) {
        director.fail(Rule::BoundedTime, what);
    }
    let panic = PANIC.lock().ok().and_then(|mut panic| panic.take());
    if let Some(panic) = panic {
        director.fail(Rule::NoPanic, panic);
    }
    let mut state = stage.lock();
    let time = state.time();
    let violations = &state.checker.violations;
    Ok(Report {
        schema: SCHEMA,
        scenario: scenario.name.clone(),
        seed,
        hash: state.trace_hash(),
        exit: violations.first().map_or(0, |first| first.rule.exit()),
        first: violations.first().map(|first| first.rule),
        violations: violations.iter().map(ToString::to_string).collect(),
        violated_ms: violations.first().map(|first| first.at / MS),
        faults: state.faults.iter().map(ToString::to_string).collect(),
        virtual_s: time as f64 / 1e9,
        converged_after_ms: converged.map(|time| time / MS),
        events: state.events,
        coverage: state.coverage.clone(),
        story: state.story.take().unwrap_or_default(),
        trace: None,
        took_s: 0.0,
    })
}

/// Takes note of a panic in any task: it is a violation, told with the others.
pub(crate) fn note_panic(what: String) {
    if let Ok(mut panic) = PANIC.lock() {
        panic.get_or_insert(what);
    }
}
