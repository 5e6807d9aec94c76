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
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .filter(|pid| kill_if_marked(*pid, mark.as_bytes()))
        .count()
}

fn kill_if_marked(pid: Pid, mark: &[u8]) -> bool {
    // First the handle, then the look: a process that takes the number in between is not the one that is killed.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let Ok(file) = File::open(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { return false };
    let mut environment = Vec::new();
    if file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment).is_err() {
        return false;
    }
    let is_marked = environment.split_inclusive(|byte| *byte == 0).any(|variable| variable == mark);
    is_marked && pidfd_send_signal(process, Signal::KILL).is_ok()
}
