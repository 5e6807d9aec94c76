//! Hooks: executables in a directory, each run for every event.

use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use super::{Authority, Busy, Job, OUTPUT_BYTES_MAX, Outcome, Runner, TIMEOUT, environment, trust};
use crate::proto::name::NodeName;

/// Something that hooks are told of.
#[derive(Clone, Debug, PartialEq)]
pub struct HookEvent {
    /// What happened, such as `manager-changed`.
    pub kind: String,
    /// The node it happened to.
    pub node: Option<NodeName>,
    /// By what right the hooks act.
    pub authority: Authority,
    /// Everything about it, as hooks read it from their standard input.
    pub body: serde_json::Value,
}

/// What became of one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookResult {
    /// Its file name.
    pub hook: String,
    /// How it ended, or why it was not begun.
    pub outcome: Result<Outcome, Busy>,
    /// What it wrote, both outputs in the order they came.
    pub output: Vec<String>,
}

/// The hooks of one directory.
#[derive(Clone, Debug)]
pub struct Hooks {
    dir: PathBuf,
}

impl Hooks {
    /// Names the directory, which is read anew for every event.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Returns the hooks that may run, in the order of their names, and for each that may not, why.
    ///
    /// Hidden files, editors' copies and what package managers leave behind are passed over.
    pub fn scan(&self) -> (Vec<PathBuf>, Vec<String>) {
        let (mut hooks, mut skipped) = (Vec::new(), Vec::new());
        // A directory that is not there has no hooks in it.
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return (hooks, skipped) };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| is_meant(path)).collect();
        paths.sort();
        for path in paths {
            match trust::executable(&path) {
                Ok(_) => hooks.push(path),
                Err(reason) => skipped.push(format!("hook {} skipped: it {reason}", path.display())),
            }
        }
        (hooks, skipped)
    }

    /// Makes the job of one hook for one event.
    pub fn job(hook: &Path, event: &HookEvent) -> Job {
        let mut env = environment(&event.authority, event.node.as_ref());
        env.insert("COLLECTIVE_EVENT".to_owned(), event.kind.clone());
        Job {
            node: event.node.clone(),
            argv: vec![hook.to_string_lossy().into_owned()],
            env,
            stdin_json: event.body.clone(),
            deadline: event.authority.deadline,
            timeout: TIMEOUT,
            output_bytes_max: OUTPUT_BYTES_MAX / 16,
        }
    }

    /// Runs every hook for an event and returns when the last one has ended.
    pub async fn fire(&self, runner: &Runner, event: &HookEvent) -> Vec<HookResult> {
        let (hooks, skipped) = self.scan();
        skipped.iter().for_each(|reason| tracing::warn!("{reason}"));
        join_all(hooks.iter().map(|hook| run(hook, runner, event))).await
    }
}

async fn run(path: &Path, runner: &Runner, event: &HookEvent) -> HookResult {
    let hook = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut output = Vec::new();
    let outcome = runner.run(Hooks::job(path, event), |_, line| output.push(line.to_owned())).await;
    match &outcome {
        Ok(outcome) if outcome.is_success() => tracing::debug!(%hook, event = %event.kind, "hook done"),
        Ok(outcome) => {
            let said = output.last().map_or("", String::as_str);
            tracing::warn!(%hook, event = %event.kind, status = %outcome.status, stopped = ?outcome.stopped, said, "hook failed");
        }
        Err(busy) => tracing::warn!(%hook, event = %event.kind, "hook not run: {busy}"),
    }
    HookResult { hook, outcome, output }
}

fn is_meant(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let leftovers = ["~", ".bak", ".swp", ".rpmnew", ".rpmsave", ".rpmorig", ".dpkg-old", ".dpkg-new", ".dpkg-dist"];
    !name.starts_with('.') && !leftovers.iter().any(|end| name.ends_with(end))
}
