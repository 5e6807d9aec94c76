//! Imports: an inventory worked out in turns, checked as a whole, and only then written.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::plans::Plan;
use super::refusals::refuse_attribute;
use super::{Collective, RequestId};
use crate::proto::document::{Entity, Put};
use crate::proto::inventory;
use crate::proto::name::GroupName;
use crate::proto::request::{ErrorCode, Refusal};
use crate::proto::time::Instant;

/// Nodes that are worked out in one turn: a few milliseconds with twenty attributes each.
const TURN_NODES: usize = 200;

/// An inventory that is being worked out. Nothing of it is stored yet.
#[derive(Debug)]
pub(super) struct Import {
    id: RequestId,
    /// What is still to be worked out.
    left: inventory::Plan,
    /// All its groups.
    groups: BTreeSet<GroupName>,
    /// What it would write so far.
    plan: Plan,
    until: Instant,
}

/// Inventories that are being worked out, one after the other.
pub(super) type Imports = VecDeque<Import>;

impl Collective {
    /// Begins to take in an inventory.
    pub(super) fn take_in(&mut self, id: RequestId, inventory: inventory::Plan, dry_run: bool, within: Duration) {
        let plan = Plan {
            message: format!("{} nodes and {} groups imported", inventory.nodes.len(), inventory.groups.len()),
            notes: inventory.warnings.clone(),
            dry_run,
            ..Plan::default()
        };
        let until = self.now.boot + within;
        self.imports.push_back(Import { id, groups: inventory.groups.clone(), left: inventory, plan, until });
    }

    /// Works out one more part of the first inventory, and writes it once it is complete.
    pub(super) fn settle_imports(&mut self) {
        // The first grants under a new roster are on their way: nobody knows of quorum, and nobody has lost it.
        if self.changing_over.is_some() {
            return;
        }
        let Some(mut import) = self.imports.pop_front() else { return };
        // I5: asked at this very moment.
        if !self.is_quorate(self.now.boot) {
            let refusal = self.no_quorum();
            self.reply(import.id, refusal);
        } else if self.now.boot >= import.until {
            let hint = "give it longer with --timeout; nothing was changed";
            self.reply(import.id, Refusal::new(ErrorCode::TimedOut, "the inventory was not read in time", hint));
        } else if let Some(part) = import.left.take_part(TURN_NODES) {
            match self.plan_part(&part, &import.groups) {
                Ok((puts, notes)) => {
                    let groups = part.groups.iter().cloned().map(Entity::Group);
                    let nodes = part.nodes.keys().cloned().map(Entity::Node);
                    import.plan.unchanged.extend(groups.chain(nodes).map(|entity| entity.shard()));
                    import.plan.puts.extend(puts);
                    for note in notes {
                        // The same unknown member is among the candidates of many.
                        if !import.plan.notes.contains(&note) {
                            import.plan.notes.push(note);
                        }
                    }
                    self.imports.push_front(import);
                }
                Err(refusal) => self.reply(import.id, refusal),
            }
        } else {
            let within = import.until.since(self.now.boot);
            match self.carry_out(import.id, import.plan, within) {
                Ok(Some(response)) => self.reply(import.id, response),
                Ok(None) => {}
                Err(refusal) => self.reply(import.id, refusal),
            }
        }
    }

    fn plan_part(
        &self,
        part: &inventory::Plan,
        groups: &BTreeSet<GroupName>,
    ) -> Result<(Vec<Put>, Vec<String>), Refusal> {
        let changes =
            inventory::changes(&self.documents.ahead(), part, groups).map_err(|error| refuse_attribute(&error))?;
        self.puts_of(changes)
    }

    /// Returns when the next turn is due: at once, while there is anything to do and nothing to wait for.
    pub(super) fn imports_due(&self) -> Option<Instant> {
        self.imports.front().filter(|_| self.changing_over.is_none()).map(|_| self.now.boot)
    }
}
