//! One machine: its directories, and the shipped daemon that runs on it, when it runs.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::lab::{Lab, listen};
use crate::site::name;

/// How long a daemon that was asked to stop may take until it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How often the end of a process is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// How every machine of a run is set up.
#[derive(Debug)]
pub(super) struct Setup {
    /// The shipped daemon.
    pub(super) daemon: PathBuf,
    /// What an action of the load runs; this very program.
    pub(super) marker: PathBuf,
    /// The bug that is planted; this very program is the daemon then.
    pub(super) planted: Option<&'static str>,
    pub(super) profile: String,
    /// Where the run keeps everything; gone with it.
    pub(super) home: PathBuf,
}

impl Setup {
    /// Returns the file into which actions write that they run.
    pub(super) fn marks(&self) -> PathBuf {
        self.home.join("marks")
    }
}

/// One machine. Its process is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    number: usize,
    /// Whose member runs here: its own, or the one that it is a copy of.
    runs: usize,
    namespace: String,
    home: PathBuf,
    profile: String,
    /// The program to start, with what comes before the daemon's own flags.
    daemon: Vec<OsString>,
    child: Option<Child>,
}

impl Machine {
    /// Makes the directories of a machine; nothing runs on it yet.
    pub(super) fn new(number: usize, lab: &Lab, setup: &Setup) -> anyhow::Result<Self> {
        let home = setup.home.join(name(number));
        for directory in ["hooks.d", "actions.d", "run"] {
            std::fs::create_dir_all(home.join(directory))?;
        }
        // The configuration of whoever runs this is not for these daemons.
        std::fs::write(home.join("collective.toml"), "")?;
        let action = format!("command = [{:?}, \"mark\", {:?}]\n", setup.marker, setup.marks());
        std::fs::write(home.join("actions.d/power-cycle.toml"), action)?;
        let daemon = match setup.planted {
            None => vec![setup.daemon.clone().into()],
            Some(bug) => {
                let (this, guard) = (setup.marker.clone().into(), setup.daemon.clone().into());
                vec![this, "daemon".into(), "--planted".into(), bug.into(), "--guard".into(), guard]
            }
        };
        let profile = setup.profile.clone();
        Ok(Self { number, runs: number, namespace: lab.namespace(number), home, profile, daemon, child: None })
    }

    /// Returns the path of the socket that takes every request.
    pub(super) fn socket(&self) -> PathBuf {
        self.home.join("run/admin.sock")
    }

    /// Returns what its daemons logged.
    pub(super) fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    /// Starts the daemon, unless it runs.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new("ip");
        for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("COLLECTIVE_")) {
            command.env_remove(variable);
        }
        command.args(["netns", "exec", &self.namespace]).args(&self.daemon);
        command.args(["--name", &name(self.runs), "--profile", &self.profile, "--listen", &listen(self.number)]);
        for (flag, at) in [
            ("--config", "collective.toml"),
            ("--state-dir", "state"),
            ("--runtime-dir", "run"),
            ("--hooks-dir", "hooks.d"),
            ("--actions-dir", "actions.d"),
        ] {
            command.arg(flag).arg(self.home.join(at));
        }
        // A group of its own: what is typed at the terminal is for this program, which ends the daemons itself.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("ip netns exec")?);
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(pid) = pid {
            // It has not been waited for, so the number is still its own.
            let _ = kill_process(pid, signal);
        }
    }

    /// Stops the process in its tracks, or lets it go on.
    pub(super) fn pause(&self, pauses: bool) {
        self.signal(if pauses { Signal::STOP } else { Signal::CONT });
    }

    /// Kills the process, and returns when it is gone.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// Asks the process to stop.
    pub(super) fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Returns how the process ended, once it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        Some(status.to_string())
    }

    pub(super) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Empties the disk of a machine on which nothing runs.
    pub(super) fn wipe(&self) -> anyhow::Result<()> {
        remove(&self.state())
    }

    /// Copies what is on the disk right now, as a snapshot of the machine would have it: the process stands still
    /// meanwhile.
    pub(super) fn snapshot(&self, number: usize) -> anyhow::Result<()> {
        self.pause(true);
        let copied = copy(&self.state(), &self.kept(number));
        self.pause(false);
        copied
    }

    /// Puts a snapshot back on a machine on which nothing runs.
    pub(super) fn roll_back(&self, number: usize) -> anyhow::Result<()> {
        let kept = self.kept(number);
        if !kept.exists() {
            bail!("there is no snapshot {number} of {}", name(self.number));
        }
        remove(&self.state())?;
        copy(&kept, &self.state())
    }

    /// Gives a machine on which nothing runs the disk of another one, as a snapshot kept it.
    pub(super) fn become_copy_of(&mut self, original: &Self, number: usize) -> anyhow::Result<()> {
        self.runs = original.number;
        remove(&self.state())?;
        copy(&original.kept(number), &self.state())
    }

    fn kept(&self, number: usize) -> PathBuf {
        self.home.join(format!("snapshot-{number}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a process that was asked to stop is gone; kills it when that takes too long.
pub(super) async fn gone(machine: &std::sync::Mutex<Machine>) -> bool {
    let end = tokio::time::Instant::now() + STOP_WITHIN;
    loop {
        {
            let mut machine = machine.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if machine.ended().is_some() || !machine.is_running() {
                return true;
            }
            if tokio::time::Instant::now() >= end {
                machine.kill();
                return false;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    remove(to)?;
    std::fs::create_dir_all(to)?;
    std::fs::set_permissions(to, std::fs::metadata(from)?.permissions())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
