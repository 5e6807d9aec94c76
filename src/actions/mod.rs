//! Commands that act for a node, or because something happened: each with a fencing token, and none past its deadline.
//!
//! [`Hooks`] are executables run for events, [`Actions`] are commands an administrator asks for; both make a [`Job`],
//! and the [`Runner`] runs it. Nothing here ever meets a shell: a command is a list of arguments, and what an attribute
//! holds is never split or interpreted.

mod clock;
mod definition;
mod guard;
mod hooks;
mod output;
mod process;
mod runner;
mod sweep;
mod template;
mod trust;
mod watchdog;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::proto::name::{MemberName, NodeName};
use crate::proto::time::Instant;

pub use clock::now;
pub use definition::{Action, ActionError, Actions, Problem};
pub use guard::{GUARD_FLAG, keep_watch};
pub use hooks::{HookEvent, HookResult, Hooks};
pub use output::LINE_BYTES_MAX;
pub use runner::{Busy, Runner};
pub use watchdog::{KILL_BEFORE, TERM_BEFORE};

/// Bytes of output that are kept of one job unless it says otherwise.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// How long a job may run unless it says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// One command to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The node it acts for; the deadline of its jobs moves with that node's claim.
    pub node: Option<NodeName>,
    /// The executable, an absolute path, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// Written to its standard input.
    pub stdin_json: serde_json::Value,
    /// When nothing of it may run any more. R5: the end of the right to act, on CLOCK_BOOTTIME.
    pub deadline: Instant,
    /// How long it may run, however far the deadline is.
    pub timeout: Duration,
    /// Bytes of output after which no more is passed on.
    pub output_bytes_max: usize,
}

/// By what right a job acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The member that acts.
    pub member: MemberName,
    /// The fencing token: whatever it acts upon may refuse a lower one.
    pub token: String,
    /// When the right ends, unless it is renewed.
    pub deadline: Instant,
}

/// Which of its two outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

/// Why a job was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The right to act was about to end.
    Deadline,
    /// It took longer than it may.
    Timeout,
    /// It was cancelled.
    Cancelled,
}

/// How the process of a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It ended by itself with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It was never started, for this reason.
    NotStarted(String),
    /// It was killed, but the kernel had not let go of it by the deadline.
    Unkillable,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
            Self::NotStarted(reason) => write!(f, "not started: {reason}"),
            Self::Unkillable => f.write_str("could not be killed in time"),
        }
    }
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How its process ended.
    pub status: Status,
    /// Why it was stopped, if it did not end by itself.
    pub stopped: Option<Stop>,
    /// Whether some of its output was left out.
    pub truncated: bool,
    /// Whether something it started was still there at the deadline.
    pub survived: bool,
}

impl Outcome {
    /// Returns whether it ended by itself and well.
    pub fn is_success(&self) -> bool {
        self.status == Status::Exited(0) && self.stopped.is_none()
    }

    /// Returns whether it ran out of time.
    pub fn timed_out(&self) -> bool {
        matches!(self.stopped, Some(Stop::Deadline | Stop::Timeout))
    }

    fn not_started(reason: impl Into<String>, stopped: Option<Stop>) -> Self {
        Self { status: Status::NotStarted(reason.into()), stopped, truncated: false, survived: false }
    }
}

/// Returns what every job has in its environment: how to find programs, and by what right it acts.
///
/// `COLLECTIVE_DEADLINE_MS` is on CLOCK_BOOTTIME, the clock that /proc/uptime shows; the lease may have been renewed
/// since.
fn environment(authority: &Authority, node: Option<&NodeName>) -> BTreeMap<String, String> {
    let inherited = ["PATH", "HOME", "LANG"];
    let mut env: BTreeMap<_, _> =
        inherited.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect();
    env.insert("COLLECTIVE_MEMBER".to_owned(), authority.member.to_string());
    env.insert("COLLECTIVE_TOKEN".to_owned(), authority.token.clone());
    env.insert("COLLECTIVE_DEADLINE_MS".to_owned(), (authority.deadline.as_nanos() / 1_000_000).to_string());
    if let Some(node) = node {
        env.insert("COLLECTIVE_NODE".to_owned(), node.to_string());
    }
    env
}

#[cfg(test)]
mod tests;
