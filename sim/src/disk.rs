//! A member's disk: saves become durable one after another, each after a delay; what is not durable may be lost.

use std::collections::VecDeque;

use collective::daemon::persist::{self, Kept};
use collective::proto::collective::Ticket;
use collective::proto::record::Record;
use collective::store::{self, MemoryStore, Store};

/// One disk with the shipped record format on it.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    store: MemoryStore,
    queue: VecDeque<Save>,
    /// When the last save in the queue will be durable, in true time.
    busy_until: u64,
    /// Counts saves, so that each has its own delay.
    pub(crate) saves: u64,
    /// The highest incarnation that is durable.
    pub(crate) incarnation: u64,
}

#[derive(Debug)]
struct Save {
    ticket: Ticket,
    records: Vec<store::Record>,
}

impl Disk {
    /// Stores records at once, as a start does before anybody is told.
    pub(crate) fn commit(&mut self, records: &[store::Record]) {
        for record in records {
            if let store::Record::Incarnation(incarnation) = record {
                self.incarnation = *incarnation;
            }
        }
        self.store.commit(records).expect("records of the core fit the store's format");
    }

    /// Takes a save in; returns when it will be durable.
    pub(crate) fn submit(&mut self, ticket: Ticket, records: Vec<Record>, now: u64, delay: u64) -> u64 {
        let records = records.into_iter().flat_map(persist::encode).collect();
        self.queue.push_back(Save { ticket, records });
        self.busy_until = self.busy_until.max(now) + delay;
        self.busy_until
    }

    /// Makes the oldest save durable.
    pub(crate) fn complete(&mut self) -> Option<Ticket> {
        let save = self.queue.pop_front()?;
        self.commit(&save.records);
        Some(save.ticket)
    }

    /// How many saves are on their way.
    pub(crate) fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Ends the life of the process: of the saves on their way the first `survive` still become durable, the others
    /// are lost.
    pub(crate) fn crash(&mut self, survive: usize) {
        for _ in 0..survive.min(self.queue.len()) {
            self.complete();
        }
        self.queue.clear();
        self.busy_until = 0;
    }

    /// Reads everything that is durable, exactly as the daemon does.
    pub(crate) fn load(&mut self) -> anyhow::Result<Kept> {
        persist::decode(self.store.load()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_complete_in_order_and_a_power_cut_loses_the_rest() {
        let mut disk = Disk::default();
        assert_eq!(disk.submit(1, vec![Record::Incarnation(1)], 100, 50), 150);
        assert_eq!(disk.submit(2, vec![Record::Incarnation(2)], 110, 10), 160, "behind the one before");
        assert_eq!(disk.complete(), Some(1));
        disk.crash(0);
        assert_eq!((disk.load().expect("readable").incarnation, disk.pending()), (1, 0));
    }

    #[test]
    fn a_killed_process_may_leave_a_prefix_of_its_saves() {
        let mut disk = Disk::default();
        for incarnation in 1..=3 {
            disk.submit(incarnation, vec![Record::Incarnation(incarnation)], 0, 1);
        }
        disk.crash(2);
        assert_eq!(disk.load().expect("readable").incarnation, 2);
    }
}
