//! A member's disk under the shipped store: bytes are there when written, and safe when synced.
//!
//! A process that is killed leaves what it wrote; a power cut leaves what was synced, and any part of what was written
//! since, in any order.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collective::net::Identity;
use redb::StorageBackend;

use crate::mix::{Mix, Purpose};

/// Bytes that a disk loses or keeps as a whole.
const SECTOR_BYTES: usize = 512;

/// One disk; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    /// Key in use, and the one that waits. They are stored by renaming, so always whole.
    identities: [Option<Identity>; 2],
    /// What is read.
    current: Vec<u8>,
    /// What survives a power cut.
    synced: Vec<u8>,
    /// What was written since the last sync.
    unsynced: Vec<Write>,
    /// Which process may write; what an earlier one still holds open is dead.
    epoch: u64,
    set_aside: u64,
    /// Nothing more fits on it.
    full: bool,
    /// It cannot say what is durable.
    broken: bool,
}

#[derive(Debug)]
enum Write {
    At(usize, Vec<u8>),
    Length(usize),
}

impl Write {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::At(offset, data) => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn identity(&self, slot: usize) -> Option<Identity> {
        self.lock().identities[slot].clone()
    }

    pub(super) fn set_identity(&self, slot: usize, identity: Option<Identity>) {
        self.lock().identities[slot] = identity;
    }

    /// Returns the file of records as the process that runs now sees it.
    pub(super) fn open(&self) -> Box<dyn StorageBackend> {
        let epoch = self.lock().epoch;
        Box::new(File { disk: self.clone(), epoch })
    }

    /// Makes the file of records an empty one; the old one is kept elsewhere.
    pub(super) fn set_aside(&self) {
        let mut contents = self.lock();
        contents.set_aside += 1;
        contents.epoch += 1;
        contents.current.clear();
        contents.synced.clear();
        contents.unsynced.clear();
    }

    /// Makes a disk that holds what is durable on this one.
    pub(super) fn copied(&self) -> Self {
        let contents = self.lock();
        let (identities, bytes) = (contents.identities.clone(), contents.synced.clone());
        Self(Arc::new(Mutex::new(Contents {
            identities,
            current: bytes.clone(),
            synced: bytes,
            ..Contents::default()
        })))
    }

    /// Holds what another one holds, and nothing else.
    pub(super) fn become_copy_of(&self, other: &Self) {
        let other = other.copied();
        let from = other.lock();
        self.wipe();
        let mut contents = self.lock();
        contents.identities.clone_from(&from.identities);
        contents.current.clone_from(&from.current);
        contents.synced.clone_from(&from.synced);
    }

    /// Holds nothing any more.
    pub(super) fn wipe(&self) {
        let mut contents = self.lock();
        contents.epoch += 1;
        contents.identities = [None, None];
        contents.current.clear();
        contents.synced.clear();
        contents.unsynced.clear();
    }

    /// The process ended: nothing that it still holds is written any more.
    pub(super) fn detach(&self) {
        self.lock().epoch += 1;
    }

    /// Lets nothing more be written, or lets it again.
    pub(super) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Lets every sync fail, or succeed again.
    pub(super) fn set_broken(&self, broken: bool) {
        self.lock().broken = broken;
    }

    /// The power fails. What was not synced is gone; if it is torn, each sector of it may be there all the same.
    pub(super) fn cut_power(&self, mix: Mix, torn: bool) {
        let mut contents = self.lock();
        contents.epoch += 1;
        let mut index = 0;
        let mut survives = || {
            index += 1;
            torn && mix.chance(Purpose::Crash, index, 500)
        };
        let mut left = std::mem::take(&mut contents.synced);
        for write in std::mem::take(&mut contents.unsynced) {
            match write {
                Write::At(offset, data) => {
                    for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        if survives() {
                            Write::At(offset + number * SECTOR_BYTES, sector.to_vec()).apply(&mut left);
                        }
                    }
                }
                length => {
                    if survives() {
                        length.apply(&mut left);
                    }
                }
            }
        }
        contents.current.clone_from(&left);
        contents.synced = left;
    }
}

/// The file of records, held open by one process.
struct File {
    disk: Disk,
    epoch: u64,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("File")
    }
}

impl File {
    fn write(&self, write: Write) -> io::Result<()> {
        let mut contents = self.disk.lock();
        if contents.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if contents.epoch == self.epoch {
            write.apply(&mut contents.current);
            contents.unsynced.push(write);
        }
        Ok(())
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let contents = self.disk.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match contents.current.get(start..start.saturating_add(out.len())) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(Write::Length(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        let contents = &mut *self.disk.lock();
        if contents.broken {
            return Err(io::Error::other("the disk does not answer"));
        }
        if contents.epoch == self.epoch {
            for write in contents.unsynced.drain(..) {
                write.apply(&mut contents.synced);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(Write::At(usize::try_from(offset).map_err(io::Error::other)?, data.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &Disk) -> Vec<u8> {
        let file = disk.open();
        let mut bytes = vec![0; file.len().expect("a length") as usize];
        file.read(0, &mut bytes).expect("readable");
        bytes
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_a_kill_keeps_all() {
        let disk = Disk::default();
        let file = disk.open();
        file.write(0, b"safe").expect("written");
        file.sync_data().expect("synced");
        file.write(0, b"risk").expect("written");
        disk.detach();
        file.write(0, b"late").expect("said to be written");
        assert_eq!(read(&disk), b"risk", "what the dead process writes goes nowhere");
        let outcomes: std::collections::BTreeSet<_> = (0..20)
            .map(|seed| {
                let disk = Disk::default();
                let file = disk.open();
                file.write(0, b"safe").expect("written");
                file.sync_data().expect("synced");
                file.write(0, b"risk").expect("written");
                disk.cut_power(Mix::new(seed), true);
                read(&disk)
            })
            .collect();
        assert_eq!(outcomes, [b"risk".to_vec(), b"safe".to_vec()].into());
    }
}
