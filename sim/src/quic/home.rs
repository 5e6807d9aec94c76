//! A member's home on a simulated disk: the shipped store on it, and a writer whose fsyncs take their time.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use collective::daemon::machine::{Home, Key, OpenedStore, Reporter};
use collective::net::Identity;
use collective::store::{Loaded, OnDamage, Record, RedbStore, Report, Saver, Store, StoreError};
use tokio::sync::Notify;

use super::disk::Disk;
use super::process::Process;
use super::stage::Stage;

/// The home of one member, as one process of it has it open.
#[derive(Debug)]
pub(super) struct SimHome {
    pub(super) stage: Arc<Stage>,
    pub(super) member: usize,
    pub(super) process: Process,
    pub(super) disk: Disk,
}

const fn slot(key: Key) -> usize {
    match key {
        Key::Current => 0,
        Key::Next => 1,
    }
}

impl Home for SimHome {
    fn load_identity(&self, key: Key) -> anyhow::Result<Option<Identity>> {
        Ok(self.disk.identity(slot(key)))
    }

    fn save_identity(&mut self, key: Key, identity: &Identity) -> anyhow::Result<()> {
        self.disk.set_identity(slot(key), Some(identity.clone()));
        Ok(())
    }

    fn drop_next_identity(&mut self) -> anyhow::Result<()> {
        self.disk.set_identity(slot(Key::Next), None);
        Ok(())
    }

    fn open_store(&mut self, _: OnDamage) -> anyhow::Result<OpenedStore> {
        let disk = self.disk.clone();
        let store = RedbStore::on_backend(Path::new("simulated"), Box::new(move || Ok(disk.open())))?;
        let watched = Watched { store, stage: self.stage.clone(), member: self.member };
        Ok(OpenedStore { store: Box::new(watched), lost: false })
    }

    fn set_store_aside(&mut self) -> anyhow::Result<()> {
        self.disk.set_aside();
        self.stage.lock().sites[self.member].durable = Default::default();
        Ok(())
    }

    fn saver(&self, store: Box<dyn Store>, report: Reporter) -> anyhow::Result<Box<dyn Saver>> {
        let writer = Writer(Arc::new(Shared {
            inner: Mutex::new(Inner { store: Some(store), report, waiting: VecDeque::new() }),
            rung: Notify::new(),
        }));
        self.process.run(serve(writer.clone(), self.stage.clone(), self.member));
        self.stage.lock().sites[self.member].writer = Some(writer.clone());
        Ok(Box::new(writer))
    }
}

/// The shipped store; tells the stage what is durable.
struct Watched {
    store: RedbStore,
    stage: Arc<Stage>,
    member: usize,
}

impl Store for Watched {
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.store.commit(records)?;
        let mut state = self.stage.lock();
        records.iter().for_each(|record| state.sites[self.member].durable.note(record));
        Ok(())
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.store.load()
    }

    fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }
}

/// Writes to a store as the shipped thread does: what waits goes into one transaction.
#[derive(Clone)]
pub(super) struct Writer(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    rung: Notify,
}

struct Inner {
    /// Given up when a life ends.
    store: Option<Box<dyn Store>>,
    report: Reporter,
    waiting: VecDeque<(u64, Vec<Record>)>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many groups are on their way.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Stores the first groups that wait, and reports them, unless the store was given up.
    pub(super) fn commit(&self, groups: usize) {
        let mut inner = self.lock();
        let Inner { store: Some(store), report, waiting } = &mut *inner else { return };
        let groups: Vec<_> = waiting.drain(..groups.min(waiting.len())).collect();
        let all: Vec<_> = groups.iter().flat_map(|(_, records)| records.iter().cloned()).collect();
        if store.commit(&all).is_ok() {
            return report(Report::Saved { tickets: groups.iter().map(|(ticket, _)| *ticket).collect() });
        }
        // One by one when together fails: a bad one must not take its neighbours with it.
        for (ticket, records) in groups {
            match store.commit(&records) {
                Ok(()) => report(Report::Saved { tickets: vec![ticket] }),
                Err(error) => report(Report::Failed { ticket, error }),
            }
        }
    }
}

impl Saver for Writer {
    fn submit(&self, ticket: u64, records: Vec<Record>) {
        self.lock().waiting.push_back((ticket, records));
        self.0.rung.notify_one();
    }

    fn stop(self: Box<Self>) -> Option<Box<dyn Store>> {
        self.commit(usize::MAX);
        self.0.rung.notify_one();
        self.lock().store.take()
    }
}

/// Makes durable what waits, each time with the delay of an fsync, until the store is given up.
async fn serve(writer: Writer, stage: Arc<Stage>, member: usize) {
    loop {
        let groups = writer.waiting();
        if writer.lock().store.is_none() {
            return;
        }
        if groups == 0 {
            writer.0.rung.notified().await;
            continue;
        }
        let delay = stage.lock().fsync_delay(member);
        tokio::time::sleep(Duration::from_nanos(delay)).await;
        writer.commit(groups);
    }
}
