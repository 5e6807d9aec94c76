//! From the core's words to the actions room: which command a job is, by what right it runs, and what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::actions::{self, ActionError, Actions, Authority, HookEvent, Hooks, Outcome, Runner, Status};
use crate::proto::collective::{Job, JobId};
use crate::proto::name::{MemberName, NodeName};
use crate::proto::request::{ActionResult, ErrorCode, EventKind, LoggedEvent, Refusal};
use crate::proto::time::Instant;

/// Commands that run at the same time, and that may wait.
const CONCURRENT: usize = 8;
const QUEUED: usize = 4_000;
/// How long a hook may run that acts for no node.
const HOOK_WITHIN: Duration = Duration::from_secs(30);
/// How long a stopping daemon waits for what it killed.
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// What runs on behalf of this member.
#[derive(Debug)]
pub(super) struct Jobs {
    actions_dir: PathBuf,
    hooks: Hooks,
    runner: Runner,
    nodes: BTreeMap<JobId, NodeName>,
}

impl Jobs {
    pub(super) fn new(actions_dir: &Path, hooks_dir: &Path, guard: Option<&Path>) -> Self {
        let runner = match guard {
            Some(program) => Runner::guarded(CONCURRENT, QUEUED, program),
            None => Runner::new(CONCURRENT, QUEUED),
        };
        Self { actions_dir: actions_dir.to_owned(), hooks: Hooks::new(hooks_dir), runner, nodes: BTreeMap::new() }
    }

    /// Starts an action; `done` is told what came of it.
    pub(super) fn run(
        &mut self,
        id: JobId,
        job: Job,
        member: MemberName,
        until: Instant,
        done: impl FnOnce(ActionResult) + Send + 'static,
    ) {
        let authority = Authority { member: member.clone(), token: job.token.clone(), deadline: until };
        let attribute = |name: &str| job.attributes.get(name).cloned();
        // Read anew each time: an administrator who corrects an action need not restart anything.
        let actions = Actions::load(&self.actions_dir);
        for problem in actions.problems() {
            tracing::warn!(%problem, "an action cannot be used");
        }
        let prepared = actions.prepare(&job.action, &job.node, &job.arguments, &authority, &attribute);
        let command = match prepared {
            Ok(command) => command,
            Err(error) => return done(refused(job, member, &error)),
        };
        self.nodes.insert(id, job.node.clone());
        tracing::info!(node = %job.node, action = job.action, token = job.token, "action started");
        let runner = self.runner.clone();
        tokio::spawn(async move {
            let mut output = Vec::new();
            let outcome = runner.run(command, |_, line| output.push(line.to_owned())).await;
            let (status, error) = match outcome {
                Ok(outcome) => judge(&outcome),
                Err(busy) => (None, Some(Refusal::new(ErrorCode::TryAgain, busy.to_string(), "try again in a moment"))),
            };
            tracing::info!(node = %job.node, action = job.action, token = job.token, status, "action ended");
            done(ActionResult { node: job.node, manager: Some(member), token: Some(job.token), status, output, error });
        });
    }

    /// An action has ended.
    pub(super) fn forget(&mut self, id: JobId) {
        self.nodes.remove(&id);
    }

    /// The right to act for the node of a job was renewed.
    pub(super) fn extend(&self, id: JobId, until: Instant) {
        if let Some(node) = self.nodes.get(&id) {
            self.runner.renew(node, until);
        }
    }

    /// Kills everything that runs for a node.
    pub(super) fn cease(&self, node: &NodeName) {
        self.runner.cancel(node);
    }

    /// Runs the hooks for an event.
    ///
    /// What happened to a node is told on the member that acts for it, and only while it does: `until` is the end of
    /// its right.
    pub(super) fn happened(&self, event: &LoggedEvent, member: Option<MemberName>, until: Option<Instant>) {
        let (Some(member), Some(deadline)) = (member, deadline_of(event, until)) else { return };
        let told = HookEvent {
            kind: event.kind.word().to_owned(),
            node: event.node.clone(),
            authority: Authority { member, token: event.token.clone().unwrap_or_default(), deadline },
            body: serde_json::to_value(event).unwrap_or_default(),
        };
        let (hooks, runner) = (self.hooks.clone(), self.runner.clone());
        tokio::spawn(async move { hooks.fire(&runner, &told).await });
    }

    /// Kills everything.
    pub(super) async fn stop(&self) {
        self.runner.cancel_all();
        let end = tokio::time::Instant::now() + STOP_WITHIN;
        while !self.runner.is_empty() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn deadline_of(event: &LoggedEvent, until: Option<Instant>) -> Option<Instant> {
    match event.kind {
        EventKind::ManagerChanged => until,
        _ => Some(actions::now() + HOOK_WITHIN),
    }
}

fn refused(job: Job, member: MemberName, error: &ActionError) -> ActionResult {
    let (code, hint) = match error {
        ActionError::Unknown { .. } => (ErrorCode::NotFound, "actions are defined in actions.d of the node's manager"),
        ActionError::MissingAttribute { .. } => (ErrorCode::NotFound, "set the attribute, then try again"),
        ActionError::Arguments { .. } => (ErrorCode::Usage, "collective run NODERANGE ACTION [ARG...]"),
        _ => (ErrorCode::Configuration, "correct the action on the node's manager"),
    };
    ActionResult {
        node: job.node,
        manager: Some(member),
        token: Some(job.token),
        status: None,
        output: Vec::new(),
        error: Some(Refusal::new(code, error.to_string(), hint)),
    }
}

fn judge(outcome: &Outcome) -> (Option<i32>, Option<Refusal>) {
    let status = match outcome.status {
        Status::Exited(code) => Some(code),
        Status::Signaled(_) | Status::NotStarted(_) | Status::Unkillable => None,
    };
    let why = |code, message: String| Some(Refusal::new(code, message, "collective events"));
    let error = match (outcome.stopped, &outcome.status) {
        (Some(actions::Stop::Timeout), _) => why(ErrorCode::TimedOut, "it took longer than the action allows".into()),
        (Some(actions::Stop::Deadline), _) => why(ErrorCode::NoQuorum, "the right to act for the node ended".into()),
        (Some(actions::Stop::Cancelled), _) => why(ErrorCode::Failure, "the node got another manager".into()),
        (None, Status::Exited(_)) => None,
        (None, other) => why(ErrorCode::Failure, other.to_string()),
    };
    (status, error)
}
