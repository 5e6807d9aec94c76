//! A simulated process: all tasks of one daemon, which can be stopped in their tracks, let go on, and killed together.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::task::AbortHandle;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One process. It is also the runtime that quinn finds: tasks and timers of the simulation's only thread.
#[derive(Clone, Default)]
pub(super) struct Process(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    paused: bool,
    /// Until when its only processor is at work.
    busy_until: Option<tokio::time::Instant>,
    dead: bool,
    /// Who wants to go on when the pause is over.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

impl Process {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task as a part of the process.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let gated = Gated { process: self.clone(), task: Box::pin(task) };
        let mut state = self.lock();
        if state.tasks.len() >= 64 {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(tokio::spawn(gated).abort_handle());
    }

    /// Lets nothing of it happen, or lets it go on.
    pub(super) fn pause(&self, paused: bool) {
        let mut state = self.lock();
        state.paused = paused;
        if !paused && state.busy_until.is_none() {
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Lets nothing of it happen for that much longer: it is still at what it did last.
    pub(super) fn work_for(&self, long: Duration) {
        let now = tokio::time::Instant::now();
        let mut state = self.lock();
        let is_first = state.busy_until.is_none();
        state.busy_until = Some(state.busy_until.unwrap_or(now) + long);
        drop(state);
        if is_first {
            tokio::spawn(self.clone().rest());
        }
    }

    /// Waits until its work is done, and lets it go on.
    async fn rest(self) {
        loop {
            let until = self.lock().busy_until;
            match until.filter(|until| *until > tokio::time::Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => break,
            }
        }
        let mut state = self.lock();
        state.busy_until = None;
        if !state.paused {
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Ends it between two of its steps: nothing is said or written any more.
    pub(super) fn kill(&self) {
        let mut state = self.lock();
        state.dead = true;
        state.waiting.clear();
        state.tasks.drain(..).for_each(|task| task.abort());
    }
}

/// A task that goes on only while its process does.
struct Gated {
    process: Process,
    task: Task,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        {
            let mut state = self.process.lock();
            if state.dead {
                return Poll::Ready(());
            }
            if state.paused || state.busy_until.is_some() {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.task.as_mut().poll(cx)
    }
}

impl Runtime for Process {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Task) {
        self.run(task);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "there are no sockets of the system in a simulation"))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_process_does_nothing_and_a_killed_one_never_again() {
        let steps = Arc::new(AtomicU32::new(0));
        let counter = steps.clone();
        let process = Process::default();
        process.run(async move {
            loop {
                sleep(Duration::from_millis(10)).await;
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let count = || steps.load(Ordering::Relaxed);
        sleep(Duration::from_millis(55)).await;
        assert_eq!(count(), 5);
        process.pause(true);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(count(), 5);
        process.pause(false);
        sleep(Duration::from_millis(15)).await;
        assert_eq!(count(), 7, "what was due, and the next");
        process.work_for(Duration::from_millis(30));
        process.work_for(Duration::from_millis(30));
        sleep(Duration::from_millis(59)).await;
        assert_eq!(count(), 7, "one piece of work after the other");
        sleep(Duration::from_millis(15)).await;
        assert_eq!(count(), 9, "what was due, and the next");
        process.kill();
        sleep(Duration::from_millis(100)).await;
        assert_eq!(count(), 9);
    }
}
