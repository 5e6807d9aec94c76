//! What was asked, what came of it, and what is durable: the two sides of "nothing acknowledged is lost".

use std::collections::{BTreeMap, BTreeSet};

use crate::workload::Outcome;
use collective::proto::document::ChangeId;
use collective::proto::name::NodeName;
use collective::store::Record;

/// One write of an attribute that nothing else writes.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) node: NodeName,
    pub(super) key: String,
    pub(super) value: String,
    /// What the core made of it.
    pub(super) changes: Vec<ChangeId>,
    pub(super) outcome: Option<Outcome>,
}

/// Every write of a run, by number.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) writes: Vec<Write>,
    /// Which request of which life of a member is which write.
    pub(super) requests: BTreeMap<(usize, u64), usize>,
}

impl Ledger {
    /// A member stores a change: it is one of each write that it was asked for and whose attribute is in it. A write may
    /// wait for a new roster, so it need not become a change when it is asked for.
    pub(super) fn note_change(&mut self, at: usize, change: ChangeId, bytes: &[u8]) {
        let asked = self.requests.range((at, 0)..=(at, u64::MAX)).map(|(_, number)| *number);
        for write in asked {
            let write = &mut self.writes[write];
            if names(bytes, write.key.as_bytes()) && !write.changes.contains(&change) {
                write.changes.push(change);
            }
        }
    }

    /// Returns the number of the write that sets that attribute.
    pub(super) fn number_of(assignment: &str) -> Option<usize> {
        assignment.strip_prefix("custom.w")?.split_once('=')?.0.parse().ok()
    }
}

/// Returns whether a change names an attribute: its text is in the bytes, and no longer number begins with it.
fn names(bytes: &[u8], key: &[u8]) -> bool {
    let ends = |rest: &[u8]| rest.starts_with(key) && !rest.get(key.len()).is_some_and(u8::is_ascii_digit);
    (0..bytes.len()).any(|start| ends(&bytes[start..]))
}

/// The changes that a member's disk holds, and the incarnation.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    pub(super) incarnation: u64,
    changes: BTreeSet<(u8, u64, [u8; 16], u64)>,
    /// Up to which of an actor's changes snapshots hold them.
    covered: BTreeMap<(u8, u64, [u8; 16]), u64>,
}

impl Durable {
    /// Takes note of a record that was just made durable.
    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Incarnation(incarnation) => self.incarnation = *incarnation,
            Record::Change { shard, generation, actor, seq, .. } => {
                self.changes.insert((*shard, *generation, *actor, *seq));
            }
            Record::Snapshot { shard, generation, covers, .. } => {
                for (actor, seq) in covers {
                    let covered = self.covered.entry((*shard, *generation, *actor)).or_default();
                    *covered = (*seq).max(*covered);
                }
            }
            _ => {}
        }
    }

    /// Returns whether a change is on the disk.
    pub(super) fn holds(&self, change: &ChangeId) -> bool {
        let (shard, generation, actor) = (change.shard.number(), change.generation.0, change.actor.0);
        let covered = self.covered.get(&(shard, generation, actor)).copied().unwrap_or(0);
        change.seq <= covered || self.changes.contains(&(shard, generation, actor, change.seq))
    }
}

#[cfg(test)]
mod tests {
    use collective::proto::document::{Actor, Generation, ShardId};

    use super::*;

    #[test]
    fn a_change_is_held_by_itself_or_within_a_snapshot() {
        let shard = ShardId::new(3).expect("a shard");
        let change = |seq| ChangeId { shard, generation: Generation(1), actor: Actor([7; 16]), seq };
        let mut durable = Durable::default();
        durable.note(&Record::Change { shard: 3, generation: 1, actor: [7; 16], seq: 5, bytes: vec![] });
        assert!(durable.holds(&change(5)) && !durable.holds(&change(2)));
        let covers = vec![([7; 16], 2)];
        durable.note(&Record::Snapshot { shard: 3, generation: 1, bytes: vec![], covers });
        assert!(durable.holds(&change(2)) && !durable.holds(&change(3)));
    }

    #[test]
    fn a_change_belongs_to_the_writes_that_it_names() {
        let change = b"..node/n1/custom.w17...v17";
        assert!(names(change, b"custom.w17"));
        assert!(!names(change, b"custom.w1") && !names(change, b"custom.w171"));
    }

    #[test]
    fn the_number_of_a_write_is_in_its_name() {
        assert_eq!(Ledger::number_of("custom.w17=v17"), Some(17));
        assert_eq!(Ledger::number_of("location.rack=r1"), None);
    }
}
