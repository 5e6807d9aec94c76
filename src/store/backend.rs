//! The file under the database, and a watch over it that tells a full disk from a failed one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The database file. The state directory's lock keeps other daemons out, so it takes none of its own.
#[derive(Debug)]
pub(super) struct DiskFile(pub(super) File);

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    /// Reserves the room before the file takes it: a full disk is then met here, where a transaction can be given up,
    /// and never while pages are written, not even by the repair at the next start.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            match fallocate(&self.0, FallocateFlags::KEEP_SIZE, old, len - old) {
                // Not every file system can reserve.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => {
                    self.0.set_len(old)?;
                    return Err(error.into());
                }
            }
        }
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// The worst that happened to a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// There was no room for a write; what is on disk is as good as before.
    Full(String),
    /// A read or a write failed.
    Io(String),
    /// A sync failed: what the kernel holds is no longer what the disk holds.
    Sync(String),
}

/// What is known of a backend after it was handed to the database.
#[derive(Debug, Default)]
pub(super) struct Health {
    fault: Mutex<Option<Fault>>,
    len: AtomicU64,
}

impl Health {
    /// Returns the worst fault so far.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the length of the file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn note<T>(&self, result: io::Result<T>, fault: impl FnOnce(String) -> Fault) -> io::Result<T> {
        if let Err(error) = &result {
            let fault = fault(error.to_string());
            let mut worst = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
            *worst = worst.take().max(Some(fault));
        }
        result
    }

    fn note_write<T>(&self, result: io::Result<T>) -> io::Result<T> {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let full = result.as_ref().is_err_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge));
        self.note(result, if full { Fault::Full } else { Fault::Io })
    }
}

/// A backend that remembers what went wrong, because the database's own errors do not say where.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) inner: Box<dyn StorageBackend>,
    pub(super) health: Arc<Health>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        let len = self.health.note(self.inner.len(), Fault::Io)?;
        self.health.len.store(len, Ordering::Relaxed);
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let result = self.inner.read(offset, out);
        // A read past the end is damage of the file, not a fault of the disk.
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            return result;
        }
        self.health.note(result, Fault::Io)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.health.note_write(self.inner.set_len(len))?;
        self.health.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.health.note(self.inner.sync_data(), Fault::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.health.note_write(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}
