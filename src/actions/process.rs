//! One process from start to end: its own group, its input, its output, and its death in time.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use super::clock;
use super::guard::Guard;
use super::output::{Lines, Output};
use super::sweep;
use super::watchdog::{Control, Watchdog};
use super::{Job, Outcome, Status, Stop, Stream};
use crate::proto::time::Instant;

/// How often, and after which pause, a start is tried again while somebody still writes the executable.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// How long output is waited for once everything that could write it was killed.
const DRAIN: Duration = Duration::from_millis(200);
/// How long between two looks for what slipped out of the group.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// Runs a job to its end. Nothing of it is left when this returns, unless the outcome says so.
///
/// The job ends with its first process: what that leaves behind in the background would outlive the deadline, so it is
/// killed. Dropped before its end, it kills the group.
pub(super) async fn supervise(
    job: Job,
    control: &mut watch::Receiver<Control>,
    guard: Option<&Guard>,
    on_line: impl FnMut(Stream, &str),
) -> Outcome {
    if let Some(stop) = control.borrow().stop(clock::now()) {
        return too_late(stop);
    }
    let id = job_id();
    let watch = Watch { guard, id: &id };
    // The guard knows of a job before it starts, so that none ever runs unwatched.
    if let Err(error) = watch.until(None, job.deadline) {
        return Outcome::not_started(format!("the guard cannot be started: {error}"), None);
    }
    match Running::start(&job, &id, control).await {
        Ok(running) => running.follow(&job, &watch, control, on_line).await,
        Err(Start::Stopped(stop)) => too_late(stop),
        Err(Start::Failed(error)) => {
            Outcome::not_started(format!("{}: {error}", job.argv.first().map_or("", String::as_str)), None)
        }
    }
}

/// What the guard is told of one job; it forgets the job when this is dropped.
struct Watch<'a> {
    guard: Option<&'a Guard>,
    id: &'a str,
}

impl Watch<'_> {
    fn until(&self, group: Option<Pid>, deadline: Instant) -> io::Result<()> {
        self.guard.map_or(Ok(()), |guard| guard.watch(self.id, group, deadline))
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(guard) = self.guard {
            guard.done(self.id);
        }
    }
}

/// The outcome of a job whose time was over before it began.
pub(super) fn too_late(stop: Stop) -> Outcome {
    let reason = match stop {
        Stop::Cancelled => "it was cancelled",
        Stop::Deadline | Stop::Timeout => "its deadline is too near",
    };
    Outcome::not_started(reason, Some(stop))
}

/// Makes an id that no other job on this machine has.
fn job_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}-{}", std::process::id(), clock::now().as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

enum Start {
    Stopped(Stop),
    Failed(io::Error),
}

impl From<io::Error> for Start {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A process group that is killed unless it is let go of.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        // An error means that nobody is left in it.
        let _ = self.0.map(|pid| kill_process_group(pid, signal));
    }

    /// Lets go of it. Once its first process is reaped, its number may be somebody else's.
    fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A started process.
struct Running {
    // Before the child: dropping the child may reap it.
    group: Group,
    /// Done once the first process has ended; it keeps its number, and so the group's, until it is reaped.
    exit: JoinHandle<()>,
    child: Child,
}

impl Running {
    async fn start(job: &Job, id: &str, control: &watch::Receiver<Control>) -> Result<Self, Start> {
        let child = spawn(job, id, control).await?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let group = Group(pid);
        let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { group, exit: spawn_blocking(move || wait_for_end(pid)), child })
    }

    async fn follow(
        mut self,
        job: &Job,
        watch: &Watch<'_>,
        control: &mut watch::Receiver<Control>,
        on_line: impl FnMut(Stream, &str),
    ) -> Outcome {
        let mut output = Output::new(on_line, job.output_bytes_max);
        let mut stdout = Lines::new(self.child.stdout.take(), Stream::Stdout);
        let mut stderr = Lines::new(self.child.stderr.take(), Stream::Stderr);
        let mut input = Input::new(self.child.stdin.take(), job);
        let mut watchdog = Watchdog::new(clock::now(), job.timeout);
        let (mut open, mut told) = (true, None);
        let exited = loop {
            let current = *control.borrow_and_update();
            if told != Some(current.deadline) {
                told = Some(current.deadline);
                // It was started, so it can be told; should it be gone, the daemon itself still keeps the deadline.
                let _ = watch.until(self.group.0, current.deadline);
            }
            while let Some(signal) = watchdog.due(current, clock::now()) {
                self.group.signal(signal);
            }
            if watchdog.has_killed() && clock::now() >= current.deadline {
                break false;
            }
            tokio::select! {
                biased;
                () = clock::until(watchdog.next(current)) => {}
                changed = control.changed(), if open => open = changed.is_ok(),
                _ = &mut self.exit => break true,
                length = stdout.read() => stdout.take(length, &mut output),
                length = stderr.read() => stderr.take(length, &mut output),
                () = input.feed() => {}
            }
        };
        // First the rest of the group, while the number of the dead one still stands for it.
        self.group.signal(Signal::KILL);
        let status = if exited { self.reap().await } else { Status::Unkillable };
        let deadline = control.borrow().deadline;
        let survived = sweep_up(watch.id, deadline).await || !exited;
        let _ = tokio::time::timeout(DRAIN, async {
            while !(stdout.is_closed() && stderr.is_closed()) {
                tokio::select! {
                    biased;
                    length = stdout.read() => stdout.take(length, &mut output),
                    length = stderr.read() => stderr.take(length, &mut output),
                }
            }
        })
        .await;
        stdout.finish(&mut output);
        stderr.finish(&mut output);
        Outcome { status, stopped: watchdog.stopped(), truncated: output.truncated, survived }
    }

    async fn reap(&mut self) -> Status {
        let status = self.child.wait().await;
        self.group.release();
        match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Status::Exited(code),
                (None, signal) => Status::Signaled(signal.unwrap_or(0)),
            },
            Err(error) => Status::NotStarted(error.to_string()),
        }
    }
}

/// Waits for the end of a process without reaping it.
fn wait_for_end(pid: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
}

/// Kills what slipped out of the group, until nothing is found. Returns whether something was still there at the
/// deadline.
async fn sweep_up(id: &str, deadline: Instant) -> bool {
    loop {
        let id = id.to_owned();
        if spawn_blocking(move || sweep::kill_marked(&id)).await.unwrap_or(0) == 0 {
            return false;
        }
        if clock::now() >= deadline {
            return true;
        }
        tokio::time::sleep(SWEEP_PAUSE).await;
    }
}

async fn spawn(job: &Job, id: &str, control: &watch::Receiver<Control>) -> Result<Child, Start> {
    let (program, arguments) = job.argv.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&job.env).env(sweep::MARK, id).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut tries = 0;
    loop {
        // Here and not earlier: R5 asks at the moment of every action.
        if let Some(stop) = control.borrow().stop(clock::now()) {
            return Err(Start::Stopped(stop));
        }
        match command.spawn() {
            // Somebody is about to close it: an editor, or a process that was just forked off and has yet to begin.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            result => return Ok(result?),
        }
    }
}

/// What is written to the standard input.
struct Input {
    pipe: Option<ChildStdin>,
    bytes: Vec<u8>,
    written: usize,
}

impl Input {
    fn new(pipe: Option<ChildStdin>, job: &Job) -> Self {
        let mut bytes = job.stdin_json.to_string().into_bytes();
        bytes.push(b'\n');
        Self { pipe, bytes, written: 0 }
    }

    /// Writes some more, and closes it after the last byte. Safe to drop while it waits.
    async fn feed(&mut self) {
        let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
        match pipe.write(&self.bytes[self.written..]).await {
            Ok(written) if written > 0 && self.written + written < self.bytes.len() => self.written += written,
            // Whoever does not read it does not want it.
            _ => self.pipe = None,
        }
    }
}
