//! The ledger of one session's claims: each claim and release gets a number, and any voter can be told what it missed.

use std::collections::BTreeMap;

use super::{ClaimOp, NodeName, OPS_MAX};

/// Claims and releases by number. A change that a later one of the same node replaced is forgotten, so the ledger is
/// never larger than the number of nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// The number of the last change.
    version: u64,
    entries: BTreeMap<NodeName, Entry>,
    /// The same changes in the order of their numbers.
    log: BTreeMap<u64, NodeName>,
    /// The highest number of a release that was dropped from the ledger.
    dropped: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    /// The term of a claim; none for a release.
    term: Option<u64>,
}

/// Some changes in a row, as a voter is told them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part<T> {
    pub(super) changes: Vec<T>,
    /// The version of who applied them.
    pub(super) version: u64,
    /// Whether nothing newer is left.
    pub(super) complete: bool,
}

impl Ledger {
    /// Returns the number of the last change.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Returns the number and the term of a claim; none when the node is not claimed.
    pub(super) fn hold(&self, node: &NodeName) -> Option<(u64, u64)> {
        let entry = self.entries.get(node)?;
        Some((entry.number, entry.term?))
    }

    /// Returns every claim with its term.
    pub(super) fn holds(&self) -> impl Iterator<Item = (&NodeName, u64)> {
        self.entries.iter().filter_map(|(node, entry)| Some((node, entry.term?)))
    }

    /// Claims a node (`Some` term) or releases it.
    pub(super) fn record(&mut self, node: NodeName, term: Option<u64>) {
        self.version += 1;
        let entry = Entry { number: self.version, term };
        if let Some(former) = self.entries.insert(node.clone(), entry) {
            self.log.remove(&former.number);
        }
        self.log.insert(self.version, node);
    }

    /// Releases everything without keeping the releases: whoever has applied less needs the (empty) full set.
    pub(super) fn clear(&mut self) {
        self.version += 1;
        self.dropped = self.version;
        self.entries.clear();
        self.log.clear();
    }

    /// Drops the releases up to a number, when everybody has applied them.
    pub(super) fn drop_releases(&mut self, up_to: u64) {
        let Self { entries, log, dropped, .. } = self;
        log.retain(|number, node| {
            let is_kept = *number > up_to || entries.get(node).is_some_and(|entry| entry.term.is_some());
            if !is_kept {
                entries.remove(node);
                *dropped = (*dropped).max(*number);
            }
            is_kept
        });
    }

    /// Returns the highest number of a release that was dropped: changes since an older version are not known any more.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns whether there is a release to drop.
    pub(super) fn has_releases(&self) -> bool {
        self.entries.values().any(|entry| entry.term.is_none())
    }

    /// Returns the oldest changes after a version.
    pub(super) fn changes_after(&self, base: u64) -> Part<ClaimOp> {
        let newer = self.log.range(base.saturating_add(1)..);
        self.part(newer.map(|(number, node)| {
            let node = node.clone();
            let op = match self.entries.get(&node).and_then(|entry| entry.term) {
                Some(term) => ClaimOp::Hold { node, term },
                None => ClaimOp::Release { node },
            };
            (*number, op)
        }))
    }

    /// Returns the oldest claims.
    pub(super) fn oldest_holds(&self) -> Part<(NodeName, u64)> {
        self.part(self.log.iter().filter_map(|(number, node)| {
            let term = self.entries.get(node)?.term?;
            Some((*number, (node.clone(), term)))
        }))
    }

    fn part<T>(&self, mut changes: impl Iterator<Item = (u64, T)>) -> Part<T> {
        let (numbers, first): (Vec<u64>, Vec<T>) = changes.by_ref().take(OPS_MAX).unzip();
        let complete = changes.next().is_none();
        // Numbers above the last claim belong to releases that the reader of a full set need not hear of.
        let version = if complete { self.version } else { numbers.last().copied().unwrap_or_default() };
        Part { changes: first, version, complete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).expect("valid")
    }

    #[test]
    fn only_the_last_change_of_a_node_is_told() {
        let mut ledger = Ledger::default();
        ledger.record(node("a"), Some(1));
        ledger.record(node("b"), Some(1));
        ledger.record(node("a"), None);
        ledger.record(node("a"), Some(2));
        let part = ledger.changes_after(0);
        let told = [ClaimOp::Hold { node: node("b"), term: 1 }, ClaimOp::Hold { node: node("a"), term: 2 }];
        assert_eq!((part.changes.as_slice(), part.version, part.complete), (told.as_slice(), 4, true));
        assert_eq!(ledger.hold(&node("a")), Some((4, 2)));
    }

    #[test]
    fn a_large_ledger_is_told_in_parts_that_miss_nothing() {
        let mut ledger = Ledger::default();
        for i in 0..OPS_MAX * 2 + 5 {
            ledger.record(node(&format!("n{i}")), Some(1));
        }
        let first = ledger.oldest_holds();
        let second = ledger.changes_after(first.version);
        let third = ledger.changes_after(second.version);
        assert_eq!([first.complete, second.complete, third.complete], [false, false, true]);
        assert_eq!([first.changes.len(), second.changes.len(), third.changes.len()], [OPS_MAX, OPS_MAX, 5]);
        assert_eq!(third.version, ledger.version());
    }

    #[test]
    fn dropped_releases_are_remembered_by_their_number() {
        let mut ledger = Ledger::default();
        ledger.record(node("a"), Some(1));
        ledger.record(node("b"), Some(1));
        ledger.record(node("a"), None);
        ledger.drop_releases(2);
        assert!(ledger.has_releases() && ledger.dropped() == 0);
        ledger.drop_releases(3);
        assert!(!ledger.has_releases() && ledger.dropped() == 3);
        assert_eq!(ledger.holds().count(), 1, "claims stay");
    }
}
