//! A disk for tests that loses what was not synced, tears writes, fails syncs and fills up.

use std::io;
use std::sync::{Arc, Mutex};

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use redb::StorageBackend;

/// Bytes that a disk writes as one.
const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug)]
enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct State {
    /// What is on the disk for sure.
    durable: Vec<u8>,
    /// What the process sees.
    cached: Vec<u8>,
    /// What was written since the last sync.
    pending: Vec<Write>,
    writes: u64,
    syncs: u64,
    /// After that many writes and syncs everything fails.
    dies_after: Option<u64>,
    /// The sync that fails, counted from 0.
    failing_sync: Option<u64>,
    /// The file cannot get longer than this.
    bytes_max: Option<u64>,
}

/// A disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultyDisk(Arc<Mutex<State>>);

impl FaultyDisk {
    /// Makes a disk with these bytes on it.
    pub(super) fn with(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { cached: image.clone(), durable: image, ..State::default() })))
    }

    /// Returns how many writes and syncs there were.
    pub(super) fn steps(&self) -> u64 {
        self.with_state(|state| state.writes + state.syncs)
    }

    pub(super) fn die_after(&self, steps: u64) {
        self.with_state(|state| state.dies_after = Some(steps));
    }

    pub(super) fn fail_sync(&self, number: u64) {
        self.with_state(|state| state.failing_sync = Some(state.syncs + number));
    }

    pub(super) fn fill_up_at(&self, bytes_max: Option<u64>) {
        self.with_state(|state| state.bytes_max = bytes_max);
    }

    pub(super) fn len_now(&self) -> u64 {
        self.with_state(|state| state.cached.len() as u64)
    }

    /// Returns what the process sees, as after a kill.
    pub(super) fn image(&self) -> Vec<u8> {
        self.with_state(|state| state.cached.clone())
    }

    /// Returns what a power cut leaves: a prefix of the unsynced writes, the last one torn.
    pub(super) fn image_after_power_cut(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        self.with_state(|state| {
            let mut image = state.durable.clone();
            let kept = below(rng, state.pending.len() + 1);
            state.pending[..kept].iter().for_each(|write| apply(&mut image, write));
            if let Some(Write::Bytes(offset, bytes)) = state.pending.get(kept) {
                let torn = below(rng, bytes.len() + 1);
                apply(&mut image, &Write::Bytes(*offset, bytes[..torn].to_vec()));
            }
            image
        })
    }

    /// Returns what a power cut leaves of a disk that reorders: any sectors of any unsynced writes.
    pub(super) fn image_after_reordering_power_cut(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        self.with_state(|state| {
            let mut image = state.durable.clone();
            for write in &state.pending {
                match write {
                    Write::Length(_) => apply(&mut image, write),
                    Write::Bytes(offset, bytes) => {
                        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                            if rng.next_u32() & 1 == 0 {
                                apply(
                                    &mut image,
                                    &Write::Bytes(offset + (index * SECTOR_BYTES) as u64, sector.to_vec()),
                                );
                            }
                        }
                    }
                }
            }
            image
        })
    }

    fn with_state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().expect("no test panics while it holds the lock"))
    }

    fn step(state: &State) -> io::Result<()> {
        match state.dies_after {
            Some(steps) if state.writes + state.syncs >= steps => Err(io::Error::other("power cut")),
            _ => Ok(()),
        }
    }
}

/// Draws a number below `end`.
pub(super) fn below(rng: &mut ChaCha8Rng, end: usize) -> usize {
    usize::try_from(rng.next_u64() % end as u64).expect("below a usize")
}

fn apply(image: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Length(len) => image.resize(usize::try_from(*len).expect("small"), 0),
        Write::Bytes(offset, bytes) => {
            let start = usize::try_from(*offset).expect("small");
            if image.len() < start + bytes.len() {
                image.resize(start + bytes.len(), 0);
            }
            image[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len_now())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with_state(|state| {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = start.checked_add(out.len()).and_then(|end| state.cached.get(start..end));
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_state(|state| {
            Self::step(state)?;
            if state.bytes_max.is_some_and(|max| len > max) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.writes += 1;
            apply(&mut state.cached, &Write::Length(len));
            state.pending.push(Write::Length(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with_state(|state| {
            Self::step(state)?;
            let number = state.syncs;
            state.syncs += 1;
            if state.failing_sync == Some(number) {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
            }
            let pending = std::mem::take(&mut state.pending);
            pending.iter().for_each(|write| apply(&mut state.durable, write));
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_state(|state| {
            Self::step(state)?;
            state.writes += 1;
            let write = Write::Bytes(offset, data.to_vec());
            apply(&mut state.cached, &write);
            state.pending.push(write);
            Ok(())
        })
    }
}
