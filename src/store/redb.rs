//! The store on disk: one redb database, opened with suspicion and written with care.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError,
};

use super::backend::{DiskFile, Fault, Health, Watched};
use super::dir::{self, DirError, Make};
use super::format::{self, Operation};
use super::{Loaded, Record, Store, StoreError};

/// The name of the database in the state directory.
pub const DATABASE_FILE: &str = "collective.redb";

/// Everything is in one table, so that one commit touches one tree.
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
/// Bytes of pages redb keeps in memory. The daemon holds what it reads; the cache only serves writing.
const CACHE_BYTES: usize = 4 << 20;

/// Makes the storage under a database, each time it is opened.
pub type BackendFactory = Box<dyn FnMut() -> io::Result<Box<dyn StorageBackend>> + Send>;

/// What to do with a database that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// Renames it and starts empty. Only for a member that others can refill.
    SetAside,
    /// Leaves everything as it is and fails. A member alone never starts on half a database.
    Refuse,
}

/// An opened store.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: RedbStore,
    /// Whether there was no database before.
    pub created: bool,
    /// Where a damaged database was moved to. This member then remembers nothing: no roster, no promise. R9.
    pub set_aside: Option<PathBuf>,
    /// What an administrator should read, each with the next step.
    pub notices: Vec<String>,
}

/// A store in one redb database.
pub struct RedbStore {
    path: PathBuf,
    backends: BackendFactory,
    state: State,
}

enum State {
    Open(Database, Arc<Health>),
    /// A write found no room. redb takes nothing more until the file is opened anew.
    Closed,
    /// The disk failed, in these words.
    Failed(String),
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RedbStore {
    /// Opens the database in a state directory, making it when there is none.
    ///
    /// Every page of it is verified first.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it cannot be read and `on_damage` says to refuse;
    /// [`StoreError::NewerVersion`] when a later program wrote it; otherwise what the system said.
    pub fn open(dir: &Path, on_damage: OnDamage) -> Result<Opened, StoreError> {
        let path = dir.join(DATABASE_FILE);
        match Self::open_file(&path) {
            Ok(Some(store)) => Ok(Opened { store, created: false, set_aside: None, notices: Vec::new() }),
            Ok(None) => {
                let store = Self::create(&path)?;
                Ok(Opened { store, created: true, set_aside: None, notices: Vec::new() })
            }
            Err(StoreError::Damaged { path, reason }) if on_damage == OnDamage::SetAside => {
                let aside = set_aside(&path)?;
                let notice = format!(
                    "{} is damaged ({reason}) and was set aside as {}. This member starts empty; invite it again so \
                     that the others refill it, and delete the damaged file once it has converged",
                    path.display(),
                    aside.display()
                );
                let store = Self::create(&path)?;
                Ok(Opened { store, created: true, set_aside: Some(aside), notices: vec![notice] })
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a database on any storage; `path` only names it in errors. An empty storage becomes a new database.
    ///
    /// # Errors
    /// As [`RedbStore::open`]; nothing is set aside.
    pub fn on_backend(path: &Path, backends: BackendFactory) -> Result<Self, StoreError> {
        let mut store = Self { path: path.to_owned(), backends, state: State::Closed };
        store.reopen()?;
        if store.file_version()?.is_none() {
            store.write_file_version()?;
        }
        Ok(store)
    }

    /// Opens the file, which must be whole; `None` when there is none.
    fn open_file(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(file) = dir::open_private(path, Make::Never).map_err(|error| unopened(path, &error))? else {
            return Ok(None);
        };
        let damaged = |reason: &str| StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        // redb would take an empty file for a new database; ours are never empty, see `create`.
        if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Err(damaged("it is empty"));
        }
        drop(file);
        let mut store = Self { path: path.to_owned(), backends: disk(path), state: State::Closed };
        store.reopen()?;
        match store.file_version()? {
            Some(()) => Ok(Some(store)),
            None => Err(damaged("it does not say its version")),
        }
    }

    /// Makes a new database under another name and gives it its name when it is whole, so that a file of that name
    /// that is empty or has no version is always damaged and never new.
    fn create(path: &Path) -> Result<Self, StoreError> {
        let fails = |error: DirError| unopened(path, &error);
        let new = path.with_extension("redb.new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fails(DirError::io(&new, error))),
            _ => {}
        }
        drop(dir::open_private(&new, Make::New).map_err(fails)?);
        drop(Self::on_backend(&new, disk(&new))?);
        std::fs::rename(&new, path).map_err(|error| fails(DirError::io(path, error)))?;
        dir::sync_dir(path.parent().unwrap_or(path)).map_err(fails)?;
        Self::open_file(path)?.ok_or_else(|| fails(DirError::io(path, io::Error::from(io::ErrorKind::NotFound))))
    }

    /// Opens the database if it is closed, and verifies all of it.
    fn reopen(&mut self) -> Result<(), StoreError> {
        match &self.state {
            State::Open(..) => return Ok(()),
            State::Failed(reason) => return Err(self.fatal(reason.clone())),
            State::Closed => {}
        }
        let inner = (self.backends)().map_err(|error| unopened(&self.path, &error))?;
        let health = Arc::new(Health::default());
        let backend = Watched { inner, health: Arc::clone(&health) };
        let opened = caught(|| {
            // Without the check a damaged page is trusted when the last run ended well, and redb may panic over it.
            Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create_with_backend(backend)
        });
        let path = self.path.clone();
        match opened {
            Ok(Ok(database)) => {
                self.state = State::Open(database, health);
                Ok(())
            }
            Ok(Err(DatabaseError::UpgradeRequired(found))) if found > REDB_FORMAT => {
                Err(StoreError::NewerVersion { path, found: found.into(), known: REDB_FORMAT.into() })
            }
            Ok(Err(error)) => match health.fault() {
                Some(Fault::Full(reason)) => Err(StoreError::Full { path, reason }),
                Some(Fault::Io(reason)) => Err(StoreError::Unopened { path, reason }),
                Some(Fault::Sync(reason)) => Err(self.fail(format!("sync: {reason}"))),
                None => Err(StoreError::Damaged { path, reason: error.to_string() }),
            },
            Err(panic) => Err(StoreError::Damaged { path, reason: panic }),
        }
    }

    /// Reads the version of the file; `None` when it has none.
    fn file_version(&mut self) -> Result<Option<()>, StoreError> {
        let path = self.path.clone();
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        let read = self.read(|database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(RECORDS) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            Ok(table.get(format::FILE_VERSION_KEY)?.map(|value| format::read_file_version(value.value())))
        })?;
        match read {
            None => Ok(None),
            Some(Err(reason)) => Err(damaged(reason.to_owned())),
            Some(Ok(found)) if found > format::FILE_VERSION => {
                Err(StoreError::NewerVersion { path, found, known: format::FILE_VERSION })
            }
            Some(Ok(_)) => Ok(Some(())),
        }
    }

    fn write_file_version(&mut self) -> Result<(), StoreError> {
        let put = Operation::Put { key: format::FILE_VERSION_KEY.to_vec(), value: format::file_version() };
        self.perform(&[put])
    }

    /// Reads from the database; whatever cannot be read is damage, unless the disk failed.
    fn read<T>(&mut self, read: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.reopen()?;
        let State::Open(database, health) = &self.state else { return Err(self.fatal("it is closed".to_owned())) };
        let fault = match caught(|| read(database)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => match health.fault() {
                Some(Fault::Io(reason) | Fault::Sync(reason) | Fault::Full(reason)) => return Err(self.fail(reason)),
                None => error.to_string(),
            },
            Err(panic) => panic,
        };
        Err(StoreError::Damaged { path: self.path.clone(), reason: fault })
    }

    /// Writes in one transaction, and decides what a failure of it means.
    fn perform(&mut self, operations: &[Operation]) -> Result<(), StoreError> {
        self.reopen()?;
        let State::Open(database, health) = &self.state else { return Err(self.fatal("it is closed".to_owned())) };
        let error = match caught(|| transact(database, operations)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic,
        };
        match health.fault() {
            Some(Fault::Full(reason)) => {
                // Nothing of the transaction is reachable on disk. Opening anew takes redb back to the last commit.
                self.close();
                Err(StoreError::Full { path: self.path.clone(), reason })
            }
            Some(Fault::Sync(reason)) => Err(self.fail(format!("sync: {reason}"))),
            Some(Fault::Io(reason)) => Err(self.fail(reason)),
            None => Err(self.fail(error)),
        }
    }

    /// Puts any value under any key, as damage or another version would.
    #[cfg(test)]
    pub(super) fn write_raw(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.perform(&[Operation::Put { key: key.to_vec(), value: value.to_vec() }])
    }

    /// Gives the store up for good.
    fn fail(&mut self, reason: String) -> StoreError {
        self.close();
        self.state = State::Failed(reason.clone());
        self.fatal(reason)
    }

    fn fatal(&self, reason: String) -> StoreError {
        StoreError::Fatal { path: self.path.clone(), reason }
    }

    /// Closes the database. After a fault redb writes nothing more.
    fn close(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Closed);
        // What redb makes of a state it panicked in is of no interest: nothing of it is used any more.
        let _ = caught(|| drop(state));
    }
}

impl Store for RedbStore {
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if let State::Failed(reason) = &self.state {
            return Err(self.fatal(reason.clone()));
        }
        let mut operations = Vec::with_capacity(records.len());
        records.iter().try_for_each(|record| format::operations(record, &mut operations))?;
        if operations.is_empty() {
            return Ok(());
        }
        self.perform(&operations)
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let path = self.path.clone();
        let loaded = self.read(|database| {
            let mut loaded = Loaded::default();
            for entry in database.begin_read()?.open_table(RECORDS)?.iter()? {
                let (key, value) = entry?;
                if let Err(found) = format::absorb(&mut loaded, key.value(), value.value()) {
                    return Ok(Err(found));
                }
            }
            Ok(Ok(loaded))
        })?;
        loaded.map_err(|found| StoreError::NewerVersion { path, found: found.into(), known: format::FILE_VERSION })
    }

    fn size_bytes(&self) -> u64 {
        match &self.state {
            State::Open(_, health) => health.len(),
            State::Closed | State::Failed(_) => 0,
        }
    }
}

/// The newest file format of redb that this program's redb reads.
const REDB_FORMAT: u8 = 3;

fn transact(database: &Database, operations: &[Operation]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(RECORDS)?;
        for operation in operations {
            match operation {
                Operation::Put { key, value } => drop(table.insert(key.as_slice(), value.as_slice())?),
                Operation::Delete { key } => drop(table.remove(key.as_slice())?),
                Operation::DeleteRange { first, last } => {
                    table.retain_in(first.as_slice()..=last.as_slice(), |_, _| false)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Runs `work` and turns a panic into its words, where panics unwind: redb asserts what it believes of a file.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let words =
            panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        format!("the database library gave up: {}", words.unwrap_or("it did not say why"))
    })
}

fn disk(path: &Path) -> BackendFactory {
    let path = path.to_owned();
    Box::new(move || {
        let file = dir::open_private(&path, Make::Never).map_err(io::Error::other)?;
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(DiskFile(file)))
    })
}

fn unopened(path: &Path, error: &impl fmt::Display) -> StoreError {
    StoreError::Unopened { path: path.to_owned(), reason: error.to_string() }
}

/// Renames a damaged database to the first free name and makes that durable.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let name = |n: u32| path.with_extension(format!("redb.damaged-{n}"));
    let aside = (1..).map(name).find(|aside| !aside.exists()).unwrap_or_else(|| name(0));
    std::fs::rename(path, &aside).map_err(|error| unopened(path, &error))?;
    dir::sync_dir(path.parent().unwrap_or(path)).map_err(|error| unopened(path, &error))?;
    Ok(aside)
}
