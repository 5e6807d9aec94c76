//! The guard: a second process that kills what runs when the daemon cannot.
//!
//! A daemon that is killed, or stopped in the middle of a job, keeps nobody's deadline, and another member takes the node
//! over when the lease ends. So jobs are watched from outside too: the daemon tells its guard, over the guard's standard
//! input, what runs until when; at the end of that pipe, or of a deadline, the guard kills.
//!
//! ```text
//! until ID DEADLINE GROUP      ID may run until DEADLINE (CLOCK_BOOTTIME, nanoseconds); GROUP is 0 before it has started
//! done ID                      nothing is left of it
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;

use super::{clock, sweep};
use crate::proto::time::Instant;

/// The flag by which the daemon's program becomes a guard.
pub const GUARD_FLAG: &str = "--guard";
/// How long before a deadline the guard kills: after the daemon should have.
const KILL_BEFORE: Duration = Duration::from_millis(50);
/// How long the guard sleeps at most, so that it notices the end of a nap of the machine.
const NAP: Duration = Duration::from_millis(20);
/// Bytes read from the daemon at once, and kept of a line.
const CHUNK: usize = 4_096;

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Guard {
    program: PathBuf,
    lines: Mutex<Option<mpsc::UnboundedSender<String>>>,
}

impl Guard {
    pub(super) fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), lines: Mutex::default() }
    }

    /// Tells the guard until when a job may run; starts the guard when there is none.
    ///
    /// # Errors
    /// When it cannot be started. The job must not be started then.
    pub(super) fn watch(&self, id: &str, group: Option<Pid>, deadline: Instant) -> io::Result<()> {
        let group = group.map_or(0, |group| group.as_raw_nonzero().get());
        self.tell(format!("until {id} {} {group}\n", deadline.as_nanos()))
    }

    /// Tells the guard that nothing is left of a job.
    pub(super) fn done(&self, id: &str) {
        // A guard that is gone has nothing to forget.
        let _ = self.tell(format!("done {id}\n"));
    }

    fn tell(&self, line: String) -> io::Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match lines.as_ref() {
            Some(guard) => match guard.send(line) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
            None => line,
        };
        // None was started yet, or it is gone: a new one.
        self.start(&mut lines).map(|guard| drop(guard.send(unsent)))
    }

    fn start<'a>(
        &self,
        lines: &'a mut Option<mpsc::UnboundedSender<String>>,
    ) -> io::Result<&'a mpsc::UnboundedSender<String>> {
        let mut command = Command::new(&self.program);
        command.arg(GUARD_FLAG).arg(std::process::id().to_string()).env_clear().current_dir("/").process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pipe = child.stdin.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            write(pipe, receiver).await;
            let _ = child.wait().await;
        });
        Ok(lines.insert(sender))
    }
}

/// Passes lines on until the daemon ends or the guard is gone.
async fn write(mut pipe: ChildStdin, mut lines: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = lines.recv().await {
        if pipe.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What the guard knows of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watched {
    deadline: Instant,
    group: Option<Pid>,
}

/// Keeps watch over the jobs of the daemon with that process id, as told on standard input, until that ends.
///
/// The main function of a guard process. At the end of the input everything that the daemon started is killed.
pub fn keep_watch(daemon: u32) {
    let mut watched = BTreeMap::new();
    let mut text = Vec::new();
    let stdin = rustix::stdio::stdin();
    loop {
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: NAP.subsec_nanos().into() };
        let timeout = (!watched.is_empty()).then_some(&wait);
        let ready = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], timeout);
        if ready.is_ok_and(|ready| ready > 0) {
            let mut chunk = [0; CHUNK];
            match rustix::io::read(stdin, &mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    text.extend_from_slice(&chunk[..length]);
                    take_lines(&mut text, &mut watched);
                }
            }
        }
        let now = clock::now();
        let late: Vec<String> = watched
            .iter()
            .filter(|(_, job): &(&String, &Watched)| now + KILL_BEFORE >= job.deadline)
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            if let Some(job) = watched.remove(&id) {
                kill(&id, job);
            }
        }
    }
    for (id, job) in watched {
        kill(&id, job);
    }
    // A job that was started and not told of yet.
    sweep::kill_marked_by(daemon);
}

fn kill(id: &str, job: Watched) {
    // The number of a group that has ended may be another's by now, unless its first process is still this job's.
    if let Some(group) = job.group.filter(|group| sweep::is_marked(*group, id)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    sweep::kill_marked(id);
}

/// Takes complete lines off the front of what was read.
fn take_lines(text: &mut Vec<u8>, watched: &mut BTreeMap<String, Watched>) {
    while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = text.drain(..=end).collect();
        take_line(&String::from_utf8_lossy(&line), watched);
    }
    if text.len() > CHUNK {
        text.clear();
    }
}

fn take_line(line: &str, watched: &mut BTreeMap<String, Watched>) {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        ["until", id, deadline, group] => {
            let (Ok(deadline), Ok(group)) = (deadline.parse(), group.parse()) else { return };
            let job = Watched { deadline: Instant::from_nanos(deadline), group: Pid::from_raw(group) };
            watched.insert(id.to_owned(), job);
        }
        ["done", id] => drop(watched.remove(id)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole_and_odd_ones_are_passed_over() {
        let mut watched = BTreeMap::new();
        let mut text = b"until a 5 0\nuntil b 7 42\nnonsense\nuntil c x 1\ndone a\nuntil d 9".to_vec();
        take_lines(&mut text, &mut watched);
        let job = Watched { deadline: Instant::from_nanos(7), group: Pid::from_raw(42) };
        assert_eq!(watched, BTreeMap::from([("b".to_owned(), job)]));
        assert_eq!(text, b"until d 9");
    }
}
