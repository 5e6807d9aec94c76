//! A store on its own thread: whoever submits a group never waits, and groups that meet share one fsync.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use super::{Record, Store, StoreError};

/// Records after which no further group joins a transaction.
pub const GROUP_RECORDS_MAX: usize = 1_000;

/// What became of submitted groups. Reports come in the order of submission, and every ticket is in exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// These groups survive a crash from now on.
    Saved {
        /// Their tickets, in the order of submission.
        tickets: Vec<u64>,
    },
    /// This group was not stored; after a fatal error it is unknown whether it was, and the process must stop.
    Failed {
        /// Its ticket.
        ticket: u64,
        /// Why.
        error: StoreError,
    },
}

struct Group {
    ticket: u64,
    records: Vec<Record>,
}

/// Whoever writes to a store, so that nobody else waits for it.
pub trait Saver: std::fmt::Debug + Send {
    /// Hands in a group of records to be stored in one transaction. Never blocks.
    fn submit(&self, ticket: u64, records: Vec<Record>);

    /// Stores everything submitted, reports it, and gives the store back; `None` when the writer died.
    fn stop(self: Box<Self>) -> Option<Box<dyn Store>>;
}

/// The thread that owns a store.
#[derive(Debug)]
pub struct StoreThread {
    groups: Sender<Group>,
    thread: JoinHandle<Box<dyn Store>>,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl StoreThread {
    /// Starts the thread. `report` is called on it and must not block.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(mut store: Box<dyn Store>, mut report: impl FnMut(Report) + Send + 'static) -> io::Result<Self> {
        let (groups, queue) = channel();
        let thread = Builder::new().name("store".to_owned()).spawn(move || {
            serve(store.as_mut(), &queue, &mut report);
            store
        })?;
        Ok(Self { groups, thread })
    }
}

impl Saver for StoreThread {
    fn submit(&self, ticket: u64, records: Vec<Record>) {
        // The thread only ends when this sender is gone; should it have died, joining it says so.
        let _ = self.groups.send(Group { ticket, records });
    }

    fn stop(self: Box<Self>) -> Option<Box<dyn Store>> {
        drop(self.groups);
        self.thread.join().ok()
    }
}

/// Commits until nobody can submit any more. While one commit is under way the next groups queue up; they are taken
/// together, so load adds to the size of a transaction and never to the wait for one.
fn serve(store: &mut dyn Store, queue: &Receiver<Group>, report: &mut impl FnMut(Report)) {
    while let Ok(first) = queue.recv() {
        let mut records = first.records;
        let mut ends = vec![(first.ticket, records.len())];
        while records.len() < GROUP_RECORDS_MAX
            && let Ok(group) = queue.try_recv()
        {
            records.extend(group.records);
            ends.push((group.ticket, records.len()));
        }
        commit(store, &records, &ends, report);
    }
}

/// Commits groups together, or one by one when together fails: a bad one must not take its neighbours with it.
fn commit(store: &mut dyn Store, records: &[Record], ends: &[(u64, usize)], report: &mut impl FnMut(Report)) {
    match attempt(store, records) {
        Ok(()) => report(Report::Saved { tickets: ends.iter().map(|(ticket, _)| *ticket).collect() }),
        Err(error) if error.is_fatal() || ends.len() == 1 => {
            ends.iter().for_each(|(ticket, _)| report(Report::Failed { ticket: *ticket, error: error.clone() }));
        }
        Err(_) => {
            let mut start = 0;
            for &(ticket, end) in ends {
                commit(store, &records[start..end], &[(ticket, end - start)], report);
                start = end;
            }
        }
    }
}

/// Commits, and takes a panic for a fatal error: a thread that died would leave everybody waiting for their saves.
fn attempt(store: &mut dyn Store, records: &[Record]) -> Result<(), StoreError> {
    catch_unwind(AssertUnwindSafe(|| store.commit(records))).unwrap_or_else(|_| {
        Err(StoreError::Fatal { path: "the database".into(), reason: "the store's thread panicked".into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Loaded, MemoryStore};

    /// A store whose commits wait until the test lets them go, and which remembers how large they were.
    struct Gated {
        store: MemoryStore,
        began: Sender<usize>,
        gate: Receiver<Result<(), StoreError>>,
    }

    impl Store for Gated {
        fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
            self.began.send(records.len()).expect("the test listens");
            self.gate.recv().unwrap_or(Ok(()))?;
            self.store.commit(records)
        }

        fn load(&mut self) -> Result<Loaded, StoreError> {
            self.store.load()
        }

        fn size_bytes(&self) -> u64 {
            self.store.size_bytes()
        }
    }

    struct Rig {
        thread: StoreThread,
        began: Receiver<usize>,
        gate: Sender<Result<(), StoreError>>,
        reports: Receiver<Report>,
        store: MemoryStore,
    }

    fn rig() -> Rig {
        let store = MemoryStore::new();
        let (began_tx, began) = channel();
        let (gate, gate_rx) = channel();
        let (report, reports) = channel();
        let gated = Gated { store: store.clone(), began: began_tx, gate: gate_rx };
        let thread = StoreThread::start(Box::new(gated), move |r| report.send(r).expect("the test listens"));
        Rig { thread: thread.expect("a thread"), began, gate, reports, store }
    }

    fn setting(key: u64) -> Vec<Record> {
        vec![Record::Setting { key: key.to_string(), value: Vec::new() }]
    }

    fn saved(tickets: impl IntoIterator<Item = u64>) -> Report {
        Report::Saved { tickets: tickets.into_iter().collect() }
    }

    #[test]
    fn groups_that_meet_share_one_commit() {
        let rig = rig();
        rig.thread.submit(1, setting(1));
        assert_eq!(rig.began.recv(), Ok(1));
        // The first commit is under way: these collect.
        (2..=5).for_each(|ticket| rig.thread.submit(ticket, setting(ticket)));
        rig.gate.send(Ok(())).expect("the store waits");
        assert_eq!(rig.reports.recv(), Ok(saved([1])));
        assert_eq!(rig.began.recv(), Ok(4));
        rig.gate.send(Ok(())).expect("the store waits");
        assert_eq!(rig.reports.recv(), Ok(saved(2..=5)));
    }

    #[test]
    fn a_transaction_takes_a_thousand_records_and_leaves_the_rest_for_the_next() {
        let rig = rig();
        rig.thread.submit(0, setting(0));
        assert_eq!(rig.began.recv(), Ok(1));
        (1..=1_500).for_each(|ticket| rig.thread.submit(ticket, setting(ticket)));
        (0..3).for_each(|_| rig.gate.send(Ok(())).expect("the store waits"));
        assert_eq!((rig.began.recv(), rig.began.recv()), (Ok(1_000), Ok(500)));
        let reports = [rig.reports.recv(), rig.reports.recv(), rig.reports.recv()];
        assert_eq!(reports, [Ok(saved([0])), Ok(saved(1..=1_000)), Ok(saved(1_001..=1_500))]);
    }

    #[test]
    fn stopping_stores_what_was_submitted() {
        let mut rig = rig();
        (1..=20).for_each(|ticket| rig.thread.submit(ticket, setting(ticket)));
        drop(rig.gate);
        assert!(Box::new(rig.thread).stop().is_some());
        let tickets: Vec<u64> = rig
            .reports
            .try_iter()
            .flat_map(|report| match report {
                Report::Saved { tickets } => tickets,
                Report::Failed { .. } => Vec::new(),
            })
            .collect();
        assert_eq!(tickets, (1..=20).collect::<Vec<_>>());
        assert_eq!(rig.store.load().expect("readable").settings.len(), 20);
    }

    #[test]
    fn a_refused_group_leaves_its_neighbours_alone() {
        let mut rig = rig();
        rig.thread.submit(1, setting(1));
        assert_eq!(rig.began.recv(), Ok(1));
        rig.thread.submit(2, setting(2));
        rig.thread.submit(3, vec![Record::Setting { key: "k".repeat(1_000), value: Vec::new() }]);
        rig.thread.submit(4, setting(4));
        drop(rig.gate);
        assert!(Box::new(rig.thread).stop().is_some());
        let reports: Vec<_> = rig.reports.try_iter().collect();
        assert_eq!(reports[..2], [saved([1]), saved([2])]);
        assert!(matches!(reports[2], Report::Failed { ticket: 3, error: StoreError::Refused(_) }), "{reports:?}");
        assert_eq!(reports[3..], [saved([4])]);
        assert_eq!(rig.store.load().expect("readable").settings.len(), 3);
    }

    #[test]
    fn a_fatal_error_fails_every_group_once_and_in_order() {
        let rig = rig();
        let fatal = StoreError::Fatal { path: "db".into(), reason: "EIO".into() };
        (1..=3).for_each(|ticket| rig.thread.submit(ticket, setting(ticket)));
        (0..3).for_each(|_| rig.gate.send(Err(fatal.clone())).expect("the store waits"));
        assert!(Box::new(rig.thread).stop().is_some());
        let failed = |ticket| Report::Failed { ticket, error: fatal.clone() };
        assert_eq!(rig.reports.try_iter().collect::<Vec<_>>(), [failed(1), failed(2), failed(3)]);
    }

    #[test]
    fn a_panic_in_the_store_is_reported_as_fatal() {
        struct Broken;
        impl Store for Broken {
            fn commit(&mut self, _: &[Record]) -> Result<(), StoreError> {
                panic!("a bug")
            }

            fn load(&mut self) -> Result<Loaded, StoreError> {
                Ok(Loaded::default())
            }

            fn size_bytes(&self) -> u64 {
                0
            }
        }
        let (report, reports) = channel();
        let thread = StoreThread::start(Box::new(Broken), move |r| report.send(r).expect("the test listens"));
        let thread = thread.expect("a thread");
        thread.submit(7, Vec::new());
        let Ok(Report::Failed { ticket, error }) = reports.recv() else { panic!("no report") };
        assert!(ticket == 7 && error.is_fatal(), "{error}");
        assert!(Box::new(thread).stop().is_some(), "the thread lives");
    }
}
