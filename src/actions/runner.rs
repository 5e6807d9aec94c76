//! Runs jobs, a few at a time, and moves their deadlines while the right to act is renewed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::clock;
use super::guard::Guard;
use super::process::{supervise, too_late};
use super::watchdog::Control;
use super::{Job, Outcome, Stop, Stream};
use crate::proto::name::NodeName;
use crate::proto::time::Instant;

/// The job was refused, because too many wait already. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{jobs} jobs are running or waiting already: try again later")]
pub struct Busy {
    /// How many there are.
    pub jobs: usize,
}

/// Runs jobs. Clones share the limits.
#[derive(Clone, Debug)]
pub struct Runner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    permits: Semaphore,
    jobs_max: usize,
    next: AtomicU64,
    guard: Option<Guard>,
    jobs: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    node: Option<NodeName>,
    control: watch::Sender<Control>,
}

impl Default for Runner {
    /// Eight jobs at a time, so that taking over many nodes at once is no storm, and 1,000 waiting.
    fn default() -> Self {
        Self::new(8, 1_000)
    }
}

impl Runner {
    /// Makes a runner of at most `concurrent` jobs at a time and `queued` more that wait.
    pub fn new(concurrent: usize, queued: usize) -> Self {
        Self::with_guard(concurrent, queued, None)
    }

    /// Makes a runner whose jobs are watched by a guard process too: `program` with [`GUARD_FLAG`](super::GUARD_FLAG).
    pub fn guarded(concurrent: usize, queued: usize, program: &Path) -> Self {
        Self::with_guard(concurrent, queued, Some(Guard::new(program)))
    }

    fn with_guard(concurrent: usize, queued: usize, guard: Option<Guard>) -> Self {
        Self(Arc::new(Inner {
            guard,
            permits: Semaphore::new(concurrent.clamp(1, Semaphore::MAX_PERMITS)),
            jobs_max: concurrent.max(1) + queued,
            next: AtomicU64::new(0),
            jobs: Mutex::default(),
        }))
    }

    /// Runs a job when its turn comes, and returns when nothing of it is left. Lines of output are passed to
    /// `on_line`, which must not block.
    ///
    /// A job whose deadline comes before its turn is never started. Dropping the future kills the job.
    ///
    /// # Errors
    /// [`Busy`] when too many wait already.
    pub async fn run(&self, job: Job, on_line: impl FnMut(Stream, &str)) -> Result<Outcome, Busy> {
        let (ticket, mut control) = self.enter(&job)?;
        let _turn = tokio::select! {
            biased;
            stop = ended(&mut control) => return Ok(too_late(stop)),
            turn = self.0.permits.acquire() => turn,
        };
        let outcome = supervise(job, &mut control, self.0.guard.as_ref(), on_line).await;
        drop(ticket);
        Ok(outcome)
    }

    /// Moves the deadline of every job of a node forward, never back, and returns how many there are.
    pub fn renew(&self, node: &NodeName, deadline: Instant) -> usize {
        self.control(Some(node), |control| {
            let later = deadline > control.deadline;
            control.deadline = control.deadline.max(deadline);
            later
        })
    }

    /// Stops every job of a node, and returns how many there are: told to at once, killed before the deadline. Those
    /// that wait are never started.
    pub fn cancel(&self, node: &NodeName) -> usize {
        self.control(Some(node), |control| !std::mem::replace(&mut control.cancelled, true))
    }

    /// Stops every job, and returns how many there are.
    pub fn cancel_all(&self) -> usize {
        self.control(None, |control| !std::mem::replace(&mut control.cancelled, true))
    }

    /// Returns how many jobs run or wait.
    pub fn len(&self) -> usize {
        self.0.jobs().len()
    }

    /// Returns whether no job runs or waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes what is decided about the jobs of a node, or of all.
    fn control(&self, node: Option<&NodeName>, mut change: impl FnMut(&mut Control) -> bool) -> usize {
        let jobs = self.0.jobs();
        let chosen = jobs.values().filter(|entry| node.is_none() || entry.node.as_ref() == node);
        chosen.map(|entry| entry.control.send_if_modified(&mut change)).count()
    }

    fn enter(&self, job: &Job) -> Result<(Ticket, watch::Receiver<Control>), Busy> {
        let (sender, control) = watch::channel(Control { deadline: job.deadline, cancelled: false });
        let mut jobs = self.0.jobs();
        if jobs.len() >= self.0.jobs_max {
            return Err(Busy { jobs: jobs.len() });
        }
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        jobs.insert(number, Entry { node: job.node.clone(), control: sender });
        Ok((Ticket { runner: self.clone(), number }, control))
    }
}

impl Inner {
    fn jobs(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One job's place among the others, given up however the job ends.
struct Ticket {
    runner: Runner,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.runner.0.jobs().remove(&self.number);
    }
}

/// Waits until a job that waits for its turn need not wait any more.
async fn ended(control: &mut watch::Receiver<Control>) -> Stop {
    loop {
        let current = *control.borrow_and_update();
        if let Some(stop) = current.stop(clock::now()) {
            return stop;
        }
        tokio::select! {
            biased;
            () = clock::until(current.term_at()) => {}
            result = control.changed() => {
                if result.is_err() {
                    return Stop::Cancelled;
                }
            }
        }
    }
}
