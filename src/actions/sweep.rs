//! Finds and kills what a job started and let slip out of its process group.

use std::fs::File;
use std::io::Read;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable by which everything a job starts is known, whatever process group or session it moves to.
pub(super) const MARK: &str = "COLLECTIVE_JOB";
/// Bytes of an environment that are searched.
const ENVIRONMENT_BYTES_MAX: u64 = 1 << 20;

/// Kills every process that carries the mark of job `id`, and returns how many there were.
///
/// A process that was killed and is not gone yet has no environment any more, so it is counted only while it may
/// still run. Who clears its environment as well as its group gets away; only the service manager's control group
/// holds those.
pub(super) fn kill_marked(id: &str) -> usize {
    let mark = format!("{MARK}={id}\0");
    kill_where(|variable| variable == mark.as_bytes())
}

/// Kills every process that a job of the daemon with that process id started; ids of jobs begin with it.
pub(super) fn kill_marked_by(daemon: u32) -> usize {
    let prefix = format!("{MARK}={daemon}-");
    kill_where(|variable| variable.starts_with(prefix.as_bytes()))
}

/// Returns whether a process carries the mark of job `id`.
pub(super) fn is_marked(pid: Pid, id: &str) -> bool {
    let mark = format!("{MARK}={id}\0");
    has_variable(pid, &|variable| variable == mark.as_bytes())
}

fn kill_where(is_mark: impl Fn(&[u8]) -> bool) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .filter(|pid| kill_if_marked(*pid, &is_mark))
        .count()
}

fn kill_if_marked(pid: Pid, is_mark: &impl Fn(&[u8]) -> bool) -> bool {
    // First the handle, then the look: a process that takes the number in between is not the one that is killed.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    has_variable(pid, is_mark) && pidfd_send_signal(process, Signal::KILL).is_ok()
}

fn has_variable(pid: Pid, is_mark: &impl Fn(&[u8]) -> bool) -> bool {
    let Ok(file) = File::open(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { return false };
    let mut environment = Vec::new();
    if file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment).is_err() {
        return false;
    }
    environment.split_inclusive(|byte| *byte == 0).any(is_mark)
}
