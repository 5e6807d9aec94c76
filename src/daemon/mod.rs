//! The daemon: one loop around the core, and the rooms it is wired to.
//!
//! [`run`] opens the state directory and the sockets once, then lives one *life* after another: a life ends when the
//! member joins another collective, since then everything it holds is replaced; the next one starts from the new store.
//! What it has from the operating system comes through [`machine::Machine`], which [`run_on`] takes from outside.

pub mod clock;
mod demo;
mod driver;
mod enrol;
mod handler;
mod jobs;
pub mod machine;
pub mod persist;
mod seeds;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::admin::{AdminSockets, ServerThread};
use crate::config::Config;
use crate::net::Switch;
use crate::proto::planted::Planted;
pub use demo::demo;
use driver::{Ended, Life, Surroundings};
pub use handler::Asked;
use machine::{Host, Machine};
use state::State;
pub use state::initialise;

/// How a daemon differs from what its configuration says; for several in one process.
#[derive(Debug, Default)]
pub struct Options {
    /// Told the QUIC address once the daemon serves.
    pub ready: Option<oneshot::Sender<SocketAddr>>,
    /// Ends the daemon cleanly; signals do so too.
    pub stop: Option<oneshot::Receiver<()>>,
    /// The program that watches jobs from outside, which is the daemon's own with a flag.
    pub guard: Option<PathBuf>,
    /// Lets the demo cut this member off.
    pub switch: Option<Switch>,
    /// Bugs that the simulator plants; never any in a release build (see docs/decisions/0013-planted-bugs.md).
    pub planted: Planted,
}

/// Runs a daemon until it is told to stop.
///
/// # Errors
/// When it cannot start, with what to do about it; or when its disk failed, after which the process must end.
pub async fn run(config: Config, options: Options) -> anyhow::Result<()> {
    let Options { ready, stop, guard, switch, planted } = options;
    let surroundings = Surroundings { machine: Arc::new(Host::new(switch, planted)), guard };
    let state = State::open(&config, surroundings.machine.as_ref())?;
    let sockets = AdminSockets::bind(&config.runtime_dir)?;
    let (handler, inner, requests) = handler::channel();
    if !config.seeds.is_empty() && state.is_alone() {
        tokio::spawn(seeds::join(config.clone(), inner));
    }
    let admin = ServerThread::start(sockets, handler)?;
    let result = lives(&config, &surroundings, state, requests, stopped(stop)?, ready).await;
    drop(admin);
    remove_sockets(&config.runtime_dir);
    result
}

/// Runs a daemon on a machine until `stop` is done, with `requests` in the place of the admin sockets.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    machine: Arc<dyn Machine>,
    config: &Config,
    requests: mpsc::Receiver<Asked>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let state = State::open(config, machine.as_ref())?;
    lives(config, &Surroundings { machine, guard: None }, state, requests, stop, None).await
}

/// Lives one life after another.
async fn lives(
    config: &Config,
    surroundings: &Surroundings,
    state: State,
    mut requests: mpsc::Receiver<Asked>,
    stop: impl Future<Output = ()>,
    mut ready: Option<oneshot::Sender<SocketAddr>>,
) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop);
    let mut next = state;
    loop {
        let mut life = Life::begin(config, surroundings, next).await.context("the daemon cannot start")?;
        if let Some(ready) = ready.take() {
            let _ = ready.send(life.address());
        }
        match life.live(&mut requests, stop.as_mut()).await? {
            Ended::Stopped => return Ok(()),
            Ended::Reborn(state) => next = *state,
        }
    }
}

/// Waits for whichever comes first: the caller's word, SIGTERM or SIGINT.
fn stopped(stop: Option<oneshot::Receiver<()>>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?;
    Ok(async move {
        let told = async {
            // A sender that was dropped says nothing.
            if let Some(stop) = stop
                && stop.await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = told => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn remove_sockets(runtime_dir: &std::path::Path) {
    for name in [crate::admin::ADMIN_SOCKET, crate::admin::STATUS_SOCKET] {
        let path: PathBuf = runtime_dir.join(name);
        if let Err(error) = fs_err::remove_file(&path) {
            tracing::debug!(%error, "a socket could not be removed");
        }
    }
}
