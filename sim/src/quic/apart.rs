//! Runs in processes of their own: tokio counts the runtimes of a process and lets the count into what `select!` draws,
//! so only the first run of a process repeats itself.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::Deserialize;

use crate::run::{Report, SCHEMA};
use crate::scenario::units::tell_duration;

/// What a run says of itself, as JSON.
#[derive(Debug, Deserialize)]
struct Said {
    scenario: String,
    seed: u64,
    hash: String,
    exit: u8,
    violations: Vec<String>,
    faults: Vec<String>,
    virtual_s: f64,
    converged_after_ms: Option<u64>,
    events: u64,
    coverage: BTreeMap<String, u64>,
}

/// What is run in processes of its own.
#[derive(Clone, Debug)]
pub(crate) struct Apart {
    /// The name or file of a scenario, or an encounter.
    pub(crate) named: String,
    /// How long load and faults last, in nanoseconds, if not as the scenario says.
    pub(crate) window: Option<u64>,
}

impl Apart {
    /// Runs it with a seed.
    ///
    /// # Errors
    /// When the process cannot be started or says nothing that can be read.
    pub(crate) fn run(&self, seed: u64, tell: bool) -> anyhow::Result<Report> {
        let started = Instant::now();
        let program = std::env::current_exe().context("this program's own file")?;
        let window = self.window.map(|window| format!("--window={}", tell_duration(window)));
        let output = Command::new(program)
            .args(["run", &self.named, "--level", "quic", "--seed", &seed.to_string(), "-o", "json"])
            .args(window)
            .args(tell.then_some("--story"))
            .stdin(Stdio::null())
            .output()
            .context("a run cannot be started")?;
        let told = String::from_utf8_lossy(&output.stderr);
        let last = told.lines().last().unwrap_or("it wrote nothing");
        let said: Said =
            serde_json::from_slice(&output.stdout).with_context(|| format!("seed {seed} came to no report: {last}"))?;
        Ok(Report {
            schema: SCHEMA,
            scenario: said.scenario,
            seed: said.seed,
            hash: said.hash,
            exit: said.exit,
            first: None,
            violations: said.violations,
            violated_ms: None,
            faults: said.faults,
            virtual_s: said.virtual_s,
            converged_after_ms: said.converged_after_ms,
            events: said.events,
            coverage: said.coverage.into_iter().map(|(what, count)| (word(what), count)).collect(),
            story: told.lines().map(str::to_owned).collect(),
            trace: None,
            took_s: started.elapsed().as_secs_f64(),
        })
    }
}

/// Returns a word of the coverage; there are few, and each is kept once.
fn word(word: String) -> &'static str {
    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = words.get(word.as_str()) {
        return known;
    }
    let kept: &'static str = word.leak();
    words.insert(kept);
    kept
}
