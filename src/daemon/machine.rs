//! What a daemon has from the machine it runs on: clocks, chance, a socket, a place to keep things.
//!
//! `Host` is the machine of the operating system. The simulator brings machines of its own, so that all else of the
//! daemon is the same there.

use std::fmt;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow};
use ring::rand::{SecureRandom, SystemRandom};

use super::clock;
use crate::config::Config;
use crate::net::{Identity, NetConfig, Switch};
use crate::proto::collective::{Collective, Effect, Event};
use crate::proto::planted::Planted;
use crate::proto::time::{Instant, Now};
use crate::store::{self, OnDamage, RedbStore, Report, Saver, StateDir, Store, StoreThread};

/// Returns what a daemon says first on each new link.
pub type SayHello = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;
/// Is told what became of saves; must not block.
pub type Reporter = Box<dyn FnMut(Report) + Send>;

/// One machine, as a daemon on it sees it.
pub trait Machine: fmt::Debug + Send + Sync {
    /// Reads both clocks.
    fn now(&self) -> Now;

    /// Returns the moment of tokio's clock that corresponds to an instant of the boot clock.
    fn moment(&self, at: Instant) -> tokio::time::Instant;

    /// Fills a buffer with secret random bytes.
    ///
    /// # Errors
    /// When there are none to give.
    fn fill(&self, bytes: &mut [u8]) -> anyhow::Result<()>;

    /// Returns the network for one life. Every life of a daemon has the same address.
    ///
    /// # Errors
    /// When the configured address cannot be used.
    fn network(&self, config: &Config, identity: Identity, hello: SayHello) -> anyhow::Result<NetConfig>;

    /// Opens the place where a daemon keeps what must outlive it; nobody else can until it is dropped.
    ///
    /// # Errors
    /// When it is in use or cannot be trusted.
    fn home(&self, config: &Config) -> anyhow::Result<Box<dyn Home>>;

    /// Returns the bugs that a core here is made to have: none, but where somebody tries what finds them.
    fn planted(&self) -> Planted {
        Planted::default()
    }

    /// Is told that a life begins. Nobody watches a real daemon.
    fn born(&self, _core: &Collective) {}

    /// Is told of each event just before the core takes it in.
    fn before(&self, _event: &Event) {}

    /// Is told what the core decided, before any of it is performed.
    fn after(&self, _core: &Collective, _effects: &[Effect], _now: Now) {}
}

/// Draws random bytes of a machine.
///
/// # Errors
/// When there are none to give.
pub(super) fn random<const N: usize>(machine: &dyn Machine) -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    machine.fill(&mut bytes)?;
    Ok(bytes)
}

/// One of the two keys that a member may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The one in use.
    Current,
    /// One that waits until the roster accepts it.
    Next,
}

/// Where a member keeps its keys and its records.
pub trait Home: fmt::Debug + Send {
    /// Reads a key and its certificate; none when there is none.
    ///
    /// # Errors
    /// When it is there but cannot be used.
    fn load_identity(&self, key: Key) -> anyhow::Result<Option<Identity>>;

    /// Stores a key and its certificate. On return they survive a crash.
    ///
    /// # Errors
    /// When the disk fails; what was there is there still.
    fn save_identity(&mut self, key: Key, identity: &Identity) -> anyhow::Result<()>;

    /// Forgets the key that waits.
    ///
    /// # Errors
    /// When the disk fails.
    fn drop_next_identity(&mut self) -> anyhow::Result<()>;

    /// Opens the records, making an empty store when there is none.
    ///
    /// # Errors
    /// When they are damaged and `on_damage` says to refuse, or the disk fails.
    fn open_store(&mut self, on_damage: OnDamage) -> anyhow::Result<OpenedStore>;

    /// Puts all records aside, where they are kept, so that the next opening finds none. The store must be closed.
    ///
    /// # Errors
    /// When the disk fails; then they are where they were.
    fn set_store_aside(&mut self) -> anyhow::Result<()>;

    /// Lets a store be written to without anybody waiting for it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    fn saver(&self, store: Box<dyn Store>, report: Reporter) -> anyhow::Result<Box<dyn Saver>>;
}

/// A store that was just opened.
#[derive(Debug)]
pub struct OpenedStore {
    /// The store.
    pub store: Box<dyn Store>,
    /// Whether what was there was damaged, and is put aside: this member then remembers nothing. R9.
    pub lost: bool,
}

/// The machine of the operating system.
#[derive(Debug, Default)]
pub(super) struct Host {
    switch: Option<Switch>,
    planted: Planted,
    /// Kept over lives: the address stays, and nobody else can take it meanwhile.
    socket: Mutex<Option<UdpSocket>>,
}

impl Host {
    pub(super) fn new(switch: Option<Switch>, planted: Planted) -> Self {
        Self { switch, planted, socket: Mutex::default() }
    }

    fn socket(&self, config: &Config) -> anyhow::Result<UdpSocket> {
        let mut kept = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = kept.as_ref() {
            return Ok(socket.try_clone()?);
        }
        let socket =
            UdpSocket::bind(config.listen).with_context(|| format!("UDP address {} cannot be used", config.listen))?;
        *kept = Some(socket.try_clone()?);
        Ok(socket)
    }
}

impl Machine for Host {
    fn now(&self) -> Now {
        clock::now()
    }

    fn planted(&self) -> Planted {
        self.planted
    }

    fn moment(&self, at: Instant) -> tokio::time::Instant {
        clock::to_tokio(at)
    }

    fn fill(&self, bytes: &mut [u8]) -> anyhow::Result<()> {
        SystemRandom::new().fill(bytes).map_err(|_| anyhow!("the system gives no random bytes"))
    }

    fn network(&self, config: &Config, identity: Identity, hello: SayHello) -> anyhow::Result<NetConfig> {
        let mut network = NetConfig::production(identity, self.socket(config)?, hello)?;
        if let Some(switch) = &self.switch {
            network.socket = switch.wrap(network.socket);
        }
        Ok(network)
    }

    fn home(&self, config: &Config) -> anyhow::Result<Box<dyn Home>> {
        Ok(Box::new(StateDir::open(&config.state_dir)?))
    }
}

/// The folder of a key that is not in use yet.
const NEXT: &str = "next";

fn folder(dir: &StateDir, key: Key) -> PathBuf {
    match key {
        Key::Current => dir.path().to_owned(),
        Key::Next => dir.path().join(NEXT),
    }
}

impl Home for StateDir {
    fn load_identity(&self, key: Key) -> anyhow::Result<Option<Identity>> {
        let folder = folder(self, key);
        let Some(files) = store::load_identity(&folder)? else { return Ok(None) };
        let identity = Identity::from_parts(files.certificate, files.key.to_vec())
            .map_err(|error| anyhow!("{error}; restore the identity files of {} from a backup", folder.display()))?;
        Ok(Some(identity))
    }

    fn save_identity(&mut self, key: Key, identity: &Identity) -> anyhow::Result<()> {
        let folder = folder(self, key);
        if key == Key::Next {
            fs_err::create_dir_all(&folder)?;
            fs_err::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        let files =
            store::Identity { certificate: identity.certificate().to_vec(), key: identity.key().to_vec().into() };
        Ok(store::save_identity(&folder, &files)?)
    }

    fn drop_next_identity(&mut self) -> anyhow::Result<()> {
        Ok(fs_err::remove_dir_all(folder(self, Key::Next))?)
    }

    fn open_store(&mut self, on_damage: OnDamage) -> anyhow::Result<OpenedStore> {
        let opened = RedbStore::open(self.path(), on_damage)?;
        for notice in &opened.notices {
            tracing::warn!("{notice}");
        }
        Ok(OpenedStore { store: Box::new(opened.store), lost: opened.set_aside.is_some() })
    }

    fn set_store_aside(&mut self) -> anyhow::Result<()> {
        let database = self.path().join(store::DATABASE_FILE);
        let aside = free_name(&database);
        fs_err::rename(&database, &aside)?;
        tracing::info!(kept = %aside.display(), "the data from before joining is kept");
        Ok(())
    }

    fn saver(&self, store: Box<dyn Store>, report: Reporter) -> anyhow::Result<Box<dyn Saver>> {
        Ok(Box::new(StoreThread::start(store, report)?))
    }
}

fn free_name(path: &Path) -> PathBuf {
    (1_u32..)
        .map(|number| path.with_extension(format!("redb.replaced-{number}")))
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| path.with_extension("redb.replaced"))
}
