//! The machine that a simulated daemon finds: drifting clocks, seeded chance, a simulated socket and disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use collective::config::Config;
use collective::daemon::machine::{Home, Machine, SayHello};
use collective::net::{EndpointSeeds, Identity, NetConfig};
use collective::proto::collective::{Collective, Effect, Event};
use collective::proto::time::{Instant, Now};
use quinn::TimeSource;

use super::crypto;
use super::home::SimHome;
use super::process::Process;
use super::stage::Stage;
use super::wire::Socket;
use crate::mix::Purpose;

/// The machine of one member, as one process on it sees it.
#[derive(Clone, Debug)]
pub(super) struct SimMachine {
    pub(super) stage: Arc<Stage>,
    pub(super) member: usize,
    pub(super) process: Process,
}

impl SimMachine {
    /// Draws bytes: a function of the seed, the member, and how many it drew before.
    fn draw<const N: usize>(&self) -> [u8; N] {
        let mut state = self.stage.lock();
        let mix = state.mix.fork(Purpose::Entropy, self.member as u64);
        let site = &mut state.sites[self.member];
        site.draws += 1;
        mix.bytes(Purpose::Entropy, site.draws)
    }

    /// Makes the shipped network's configuration: everything in it is simulated or seeded.
    pub(super) fn net_config(&self, identity: Identity, hello: SayHello) -> NetConfig {
        NetConfig {
            socket: Socket::open(&self.stage, self.member),
            runtime: Arc::new(self.process.clone()),
            provider: crypto::provider(),
            time_source: Arc::new(self.clone()),
            resolver: Arc::new(|name| Box::pin(async move { literal(&name) })),
            seeds: EndpointSeeds::of(&identity, self.draw()),
            identity,
            hello,
        }
    }
}

/// Reads an address; there are no name servers in a simulation.
fn literal(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    name.parse().map(|address| vec![address]).map_err(std::io::Error::other)
}

impl TimeSource for SimMachine {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(Machine::now(self).wall.0)
    }
}

impl Machine for SimMachine {
    fn now(&self) -> Now {
        let state = self.stage.lock();
        state.sites[self.member].clock.now(state.time())
    }

    fn moment(&self, at: Instant) -> tokio::time::Instant {
        let state = self.stage.lock();
        state.moment(state.sites[self.member].clock.when(at))
    }

    fn fill(&self, bytes: &mut [u8]) -> anyhow::Result<()> {
        for chunk in bytes.chunks_mut(32) {
            chunk.copy_from_slice(&self.draw::<32>()[..chunk.len()]);
        }
        Ok(())
    }

    fn network(&self, _: &Config, identity: Identity, hello: SayHello) -> anyhow::Result<NetConfig> {
        Ok(self.net_config(identity, hello))
    }

    fn home(&self, _: &Config) -> anyhow::Result<Box<dyn Home>> {
        let disk = self.stage.lock().sites[self.member].disk.clone();
        let (stage, process) = (self.stage.clone(), self.process.clone());
        Ok(Box::new(SimHome { stage, member: self.member, process, disk }))
    }

    fn born(&self, core: &Collective) {
        self.stage.lock().born(self.member, core);
    }

    fn before(&self, event: &Event) {
        self.stage.lock().before(self.member, event);
    }

    fn after(&self, core: &Collective, effects: &[Effect], now: Now) {
        self.stage.lock().after(self.member, core, effects, now);
    }
}
