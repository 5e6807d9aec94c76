//! A store that forgets at the end of the process, for tests and the simulator; the stored format is the real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::format::{self, Operation};
use super::{Loaded, Record, Store, StoreError};

/// Keeps records in memory. A clone is a second door to the same records, as a reopened file would be.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    values: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let mut operations = Vec::new();
        records.iter().try_for_each(|record| format::operations(record, &mut operations))?;
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        for operation in operations {
            match operation {
                Operation::Put { key, value } => drop(values.insert(key, value)),
                Operation::Delete { key } => drop(values.remove(&key)),
                Operation::DeleteRange { first, last } => values.retain(|key, _| *key < first || *key > last),
            }
        }
        Ok(())
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        for (key, value) in self.values.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            format::absorb(&mut loaded, key, value).map_err(|found| StoreError::NewerVersion {
                path: "memory".into(),
                found: found.into(),
                known: format::FILE_VERSION,
            })?;
        }
        Ok(loaded)
    }

    fn size_bytes(&self) -> u64 {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.iter().map(|(key, value)| key.len() as u64 + value.len() as u64).sum()
    }
}
