//! One run: assemble, load and faults, heal, converge; and what is reported of it.

use std::collections::BTreeMap;

use collective::proto::collective::Collective;
use collective::proto::document::Entity;
use collective::proto::request::Request;
use serde::Serialize;

use crate::check::{Final, Rule, Violation, unconverged};
use crate::fault::{MS, SECOND};
use crate::scenario::Scenario;
use crate::spent::Spent;
use crate::step::Shown;
use crate::trace::{Head, Line, Seen};
use crate::workload::Op;
use crate::world::World;

/// What a report is called in JSON; the number changes with its fields.
pub(crate) const SCHEMA: &str = "collective.sim.report/1";

/// What is wanted of a run besides its report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Everything that happens, in lines for people.
    pub(crate) story: bool,
    /// What somebody outside sees.
    pub(crate) trace: bool,
    /// When to stop, in true milliseconds after load and faults begin; only after everything is equal when not said.
    pub(crate) until_ms: Option<u64>,
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// [`SCHEMA`].
    pub(crate) schema: &'static str,
    pub(crate) scenario: String,
    pub(crate) seed: u64,
    /// SHA-256 over everything that happened, in hexadecimal.
    pub(crate) hash: String,
    /// The exit code: 0, or that of the first violation.
    pub(crate) exit: u8,
    /// What was violated first.
    #[serde(skip)]
    pub(crate) first: Option<Rule>,
    pub(crate) violations: Vec<String>,
    /// When the first one was, in true milliseconds after load and faults began.
    #[serde(skip)]
    pub(crate) violated_ms: Option<u64>,
    pub(crate) faults: Vec<String>,
    pub(crate) virtual_s: f64,
    /// How long it took until everything was equal again, in true milliseconds.
    pub(crate) converged_after_ms: Option<u64>,
    pub(crate) events: u64,
    pub(crate) coverage: BTreeMap<&'static str, u64>,
    #[serde(skip)]
    pub(crate) story: Vec<String>,
    #[serde(skip)]
    pub(crate) trace: Option<(Head, Vec<Line>)>,
    /// How many seconds of a processor it took here; not part of what is compared.
    #[serde(skip)]
    pub(crate) took_s: f64,
}

/// Runs a scenario with a seed.
pub(crate) fn run(scenario: &Scenario, seed: u64, story: bool) -> Report {
    run_with(scenario, seed, &Options { story, ..Options::default() })
}

/// Runs a scenario with a seed, and keeps what is wanted of it.
pub(crate) fn run_with(scenario: &Scenario, seed: u64, options: &Options) -> Report {
    let spent = Spent::new();
    let scenario = &scenario.expanded(seed);
    let mut world = World::new(scenario, seed, options);
    let mut begin = None;
    let converged = drive(&mut world, scenario, options.until_ms, &mut begin);
    if converged.is_some() {
        world.note(None, || Seen::Converged);
    }
    world.tally();
    expectations(&mut world, scenario, options.until_ms.is_none());
    let violations: &[Violation] = &world.checker.violations;
    let lines = world.trace.take().map(|mut trace| {
        trace.lines.extend(violations.iter().map(Violation::line));
        trace.lines
    });
    Report {
        schema: SCHEMA,
        scenario: scenario.name.clone(),
        seed,
        hash: world.trace_hash(),
        exit: violations.first().map_or(0, |first| first.rule.exit()),
        first: violations.first().map(|first| first.rule),
        violated_ms: violations.first().zip(begin).map(|(first, begin)| first.at.saturating_sub(begin) / MS),
        violations: violations.iter().map(ToString::to_string).collect(),
        faults: world.faults.iter().map(ToString::to_string).collect(),
        virtual_s: world.time as f64 / 1e9,
        converged_after_ms: converged.map(|time| time / MS),
        events: world.events,
        coverage: world.coverage.clone(),
        story: world.story.take().unwrap_or_default(),
        trace: lines.map(|lines| (world.head(scenario, seed), lines)),
        took_s: spent.seconds(),
    }
}

/// Judges what a scenario expects in the end: what must have been seen, and, where an assumption is broken on purpose,
/// the violation that must come of it.
fn expectations(world: &mut World, scenario: &Scenario, is_whole: bool) {
    let Some(wanted) = scenario.violates else {
        if let Err(what) = world.seen(&scenario.seen)
            && is_whole
        {
            world.violate(Rule::BoundedTime, what);
        }
        return;
    };
    let is_found = world.checker.violations.first().is_some_and(|first| first.rule == wanted);
    if is_found {
        // It is told all the same, though it is no failure.
        for violation in std::mem::take(&mut world.checker.violations) {
            if let Some(trace) = &mut world.trace {
                trace.lines.push(violation.line());
            }
        }
        world.count("violated as expected");
    } else if is_whole {
        world.violate(Rule::BoundedTime, format!("{wanted} should have been violated, and was not"));
    }
}

fn drive(world: &mut World, scenario: &Scenario, until_ms: Option<u64>, started: &mut Option<u64>) -> Option<u64> {
    match scenario.restored {
        Some(_) => world.await_restored(),
        None => world.assemble(scenario.joined),
    }
    if !world.checker.violations.is_empty() {
        return None;
    }
    world.define_nodes(scenario);
    let begin = world.time;
    *started = Some(begin);
    world.note(None, || Seen::Begin);
    let window_ms = until_ms.map_or(scenario.window_ms, |until| until.min(scenario.window_ms));
    world.schedule(scenario.faults.clone());
    if scenario.load.churn || scenario.faults.iter().any(|fault| !fault.kind.forgets().is_empty()) {
        world.start_care();
    }
    world.start_work(scenario.load.every_ms * MS);
    world.start_actions(scenario.load.actions_every_ms * MS);
    for step in scenario.steps.iter().filter(|step| step.at_ms <= window_ms) {
        world.run_until(begin + step.at_ms * MS);
        if !world.checker.violations.is_empty() {
            return None;
        }
        if let Err(what) = world.take_step(step) {
            world.violate(Rule::BoundedTime, format!("not so in time: {what}"));
        }
    }
    world.run_until(begin + window_ms * MS);
    (world.work_every, world.act_every) = (0, 0);
    if until_ms.is_some_and(|until| until <= scenario.window_ms) {
        return None;
    }
    world.note(None, || Seen::Calm);
    converge(world, scenario)
}

/// The last phase: whatever is not broken for ever must become equal, quorate and managed.
fn converge(world: &mut World, scenario: &Scenario) -> Option<u64> {
    let healed = world.time;
    let core = healthy(world);
    let end = healed + scenario.converge_ms * MS;
    let mut since = None;
    let mut why = None;
    while world.time < end && world.checker.violations.is_empty() {
        world.run_until((world.time + 250 * MS).min(end));
        why = look(world, &core);
        match (&why, since) {
            (None, None) => since = Some(world.time),
            (Some(_), _) => since = None,
            // It must stay so for a while: what converged once may fall apart again.
            (None, Some(time)) if world.time >= time + 5 * SECOND => break,
            (None, Some(_)) => {}
        }
    }
    if !world.checker.violations.is_empty() {
        return None;
    }
    if since.is_none() {
        let why = why.unwrap_or_else(|| "nothing is left".into());
        post_mortem(world, &core);
        world.violate(Rule::Convergence, format!("{} s after the last fault: {why}", scenario.converge_ms / 1_000));
        return None;
    }
    world.settle_accounts(&core);
    since.map(|time| time - healed)
}

/// Asks every member who manages what and why, for whoever reads the story.
fn post_mortem(world: &mut World, core: &[usize]) {
    if world.story.is_none() {
        return;
    }
    for at in core {
        for request in [Request::Managers { nodes: None, why: true }, Request::Status] {
            world.ask(*at, Op::Named("post-mortem"), request);
        }
    }
}

/// Returns the members that no fault breaks for ever.
fn healthy(world: &World) -> Vec<usize> {
    let broken = |at| world.faults.iter().any(|fault| fault.until.is_none() && fault.kind.breaks(at));
    let enrolled = |at: usize| world.sites[at].me.is_some() && world.sites[at].downs == 0;
    (0..world.sites.len()).filter(|at| !broken(*at) && enrolled(*at)).collect()
}

fn look(world: &World, core: &[usize]) -> Option<String> {
    let mut finals = Vec::new();
    for at in core {
        let Some(mind) = world.sites[*at].core.as_ref() else { return Some(format!("m{at} is down")) };
        if mind.is_removed() && !world.cares {
            continue; // It knows, and nobody invites it again.
        }
        if mind.roster().member(mind.id()).is_none() {
            return Some(format!("m{at} is not on its roster"));
        }
        finals.push(Final {
            member: *at,
            roster: (mind.roster().version, mind.roster().hash()),
            root: mind.documents().root(),
            seated: world.is_seated(*at) && world.is_quorate(*at),
        });
    }
    let first = core.first().and_then(|at| world.sites[*at].core.as_ref())?;
    let is_draining = |at: &usize| {
        let id = world.sites[*at].me;
        id.is_none_or(|id| first.documents().get(&Entity::Settings, &format!("!drain/{id}")).is_some())
    };
    let can_manage = |at: &usize| core.contains(at) && !is_draining(at) && manages(first, world, *at);
    let nodes: Vec<_> = world
        .nodes
        .iter()
        .filter(|(_, candidates)| candidates.iter().any(can_manage))
        .map(|(node, _)| {
            let acting = (0..world.sites.len()).filter(|at| world.acts(*at, node)).collect();
            (node.to_string(), acting)
        })
        .collect();
    unconverged(&finals, &nodes)
}

fn manages(mind: &Collective, world: &World, at: usize) -> bool {
    world.sites[at].me.is_some_and(|id| mind.roster().member(id).is_some_and(|member| member.role.manages()))
}
