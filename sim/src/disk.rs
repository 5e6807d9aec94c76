//! A member's disk: saves become durable in order, those that came during one fsync by the next one together, as the
//! store's thread groups them; what is not durable may be lost.

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
    /// How many of them the fsync under way will make durable; none when the disk is idle.
    syncing: usize,
    /// How many of those that wait were told to have no room.
    refused: usize,
    /// Counts fsyncs, so that each has its own delay.
    pub(crate) syncs: u64,
    /// The highest incarnation that is durable.
    pub(crate) incarnation: u64,
    /// Everything that was ever stored, with its time, when a backup may be wanted.
    history: Option<Vec<(u64, Vec<store::Record>)>>,
    /// The true time, for the history.
    pub(crate) time: u64,
}

#[derive(Debug)]
struct Save {
    ticket: Ticket,
    records: Vec<store::Record>,
}

impl Disk {
    /// Remembers from now on what was stored when.
    pub(crate) fn keep_history(&mut self) {
        self.history = Some(Vec::new());
    }

    /// Returns a new disk in its place, which keeps history if this one did.
    pub(crate) fn emptied(&self) -> Self {
        Self { history: self.history.as_ref().map(|_| Vec::new()), time: self.time, ..Self::default() }
    }

    /// Returns a copy of the disk, of what is durable.
    pub(crate) fn copied(&self) -> Self {
        Self::replayed(self.history.iter().flatten().cloned())
    }

    fn replayed(history: impl Iterator<Item = (u64, Vec<store::Record>)>) -> Self {
        let mut disk = Self { history: Some(Vec::new()), ..Self::default() };
        for (time, records) in history {
            disk.time = time;
            disk.commit(&records);
        }
        disk
    }

    /// Makes the disk what it was at an earlier time; as it first was when it is younger than that.
    pub(crate) fn roll_back(&mut self, to: u64) {
        let history = std::mem::take(&mut self.history).unwrap_or_default();
        // A disk without an enrolment is none of a member: the first save is its birth.
        let kept = history.iter().take_while(|(time, _)| *time <= to).count().max(1);
        let mut earlier = Self::replayed(history.into_iter().take(kept));
        (earlier.time, earlier.syncs) = (self.time, self.syncs);
        *self = earlier;
    }

    /// Stores records at once, as a start does before anybody is told.
    pub(crate) fn commit(&mut self, records: &[store::Record]) {
        for record in records {
            if let store::Record::Incarnation(incarnation) = record {
                self.incarnation = *incarnation;
            }
        }
        if let Some(history) = &mut self.history {
            history.push((self.time, records.to_vec()));
        }
        self.store.commit(records).expect("records of the core fit the store's format");
    }

    /// Takes a save in.
    pub(crate) fn submit(&mut self, ticket: Ticket, records: Vec<Record>) {
        let records = records.into_iter().flat_map(persist::encode).collect();
        self.queue.push_back(Save { ticket, records });
    }

    /// Begins an fsync of everything that waits, if none is under way; returns whether it did.
    pub(crate) fn sync(&mut self) -> bool {
        let begins = self.syncing == 0 && !self.queue.is_empty();
        if begins {
            self.syncing = self.queue.len();
            self.syncs += 1;
        }
        begins
    }

    /// Ends the fsync under way; returns what is durable now.
    pub(crate) fn complete(&mut self) -> Vec<Ticket> {
        self.refused = self.refused.saturating_sub(self.syncing);
        (0..std::mem::take(&mut self.syncing)).filter_map(|_| self.complete_one()).collect()
    }

    fn complete_one(&mut self) -> Option<Ticket> {
        let save = self.queue.pop_front()?;
        self.commit(&save.records);
        Some(save.ticket)
    }

    /// Ends the fsync under way without having stored anything; returns the saves that had no room for the first time.
    pub(crate) fn refuse(&mut self) -> Vec<Ticket> {
        self.syncing = 0;
        let told = std::mem::replace(&mut self.refused, self.queue.len());
        self.queue.iter().skip(told).map(|save| save.ticket).collect()
    }

    /// How many saves are on their way.
    pub(crate) fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Ends the life of the process: of the saves on their way the first `survive` still become durable, the others
    /// are lost.
    pub(crate) fn crash(&mut self, survive: usize) {
        for _ in 0..survive.min(self.queue.len()) {
            self.complete_one();
        }
        self.queue.clear();
        (self.syncing, self.refused) = (0, 0);
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
    fn what_comes_during_an_fsync_waits_for_the_next_and_a_power_cut_loses_it() {
        let mut disk = Disk::default();
        disk.submit(1, vec![Record::Incarnation(1)]);
        assert!(disk.sync());
        disk.submit(2, vec![Record::Incarnation(2)]);
        disk.submit(3, vec![Record::Incarnation(3)]);
        assert!(!disk.sync(), "one at a time");
        assert_eq!(disk.complete(), [1]);
        assert!(disk.sync());
        disk.crash(0);
        assert_eq!((disk.load().expect("readable").incarnation, disk.pending()), (1, 0));
    }

    #[test]
    fn a_killed_process_may_leave_a_prefix_of_its_saves() {
        let mut disk = Disk::default();
        (1..=3).for_each(|incarnation| disk.submit(incarnation, vec![Record::Incarnation(incarnation)]));
        disk.crash(2);
        assert_eq!(disk.load().expect("readable").incarnation, 2);
    }
}
