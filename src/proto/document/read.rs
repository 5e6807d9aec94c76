//! The read map: every durable value, ordered, updated from what each change touched and never rebuilt for a request.
//!
//! A put replaces exactly the versions its author had seen (its predecessors) and stands beside all others; the
//! version with the highest operation counter is shown, the actor breaks ties. These are Automerge's rules for scalars
//! in a map; a test holds the two against each other. Keeping them here lets the map show durable changes only, while
//! the Automerge document runs ahead of the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::key::{Actor, Entity, PRESENT};
use super::vet::{Op, OpId};
use crate::proto::name::{GroupName, NodeName};

/// One value of one attribute of an entity; there are several when members wrote at the same time.
#[derive(Clone, Debug)]
struct Cell {
    attribute: Arc<str>,
    value: Box<str>,
    counter: u32,
    /// Index into [`ReadMap::actors`].
    actor: u32,
}

/// The cells of one entity by attribute, then by counter and actor: the last of an attribute is the visible one.
#[derive(Clone, Debug, Default)]
struct Record(Vec<Cell>);

/// Every durable value, by entity and attribute.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadMap {
    nodes: BTreeMap<NodeName, Record>,
    groups: BTreeMap<GroupName, Record>,
    settings: Record,
    /// Each attribute name once: 200,000 cells share a few dozen.
    attributes: BTreeSet<Arc<str>>,
    actors: Vec<Actor>,
    actor_index: BTreeMap<Actor, u32>,
}

/// One stored value and the operation that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored<'a> {
    pub(super) value: &'a str,
    pub(super) op: OpId,
}

impl Record {
    fn range(&self, attribute: &str) -> std::ops::Range<usize> {
        let start = self.0.partition_point(|cell| &*cell.attribute < attribute);
        let len = self.0[start..].iter().take_while(|cell| &*cell.attribute == attribute).count();
        start..start + len
    }

    fn visible(&self, attribute: &str) -> Option<&str> {
        let end = self.0.partition_point(|cell| &*cell.attribute <= attribute);
        let last = self.0[..end].last()?;
        (*last.attribute == *attribute).then_some(&*last.value)
    }

    fn is_present(&self) -> bool {
        // Names that start as this one does come before all others, and there are few of them.
        self.0.iter().find(|cell| &*cell.attribute >= PRESENT).is_some_and(|cell| &*cell.attribute == PRESENT)
    }

    /// Returns each attribute's visible value.
    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut cells = self.0.iter().peekable();
        std::iter::from_fn(move || {
            loop {
                let cell = cells.next()?;
                if cells.peek().is_none_or(|next| next.attribute != cell.attribute) {
                    return Some((&*cell.attribute, &*cell.value));
                }
            }
        })
    }

    fn insert(&mut self, at: usize, cell: Cell) {
        if self.0.len() == self.0.capacity() {
            // Records are many and small: doubling would waste a third of the memory.
            self.0.reserve_exact(4);
        }
        self.0.insert(at, cell);
    }
}

impl ReadMap {
    /// Applies one durable operation and returns whether the visible value changed.
    pub(super) fn apply(&mut self, op: &Op, id: OpId) -> bool {
        let actor = self.intern_actor(id.actor);
        let preds: Vec<(u32, u32)> =
            op.preds.iter().map(|pred| (pred.counter, self.intern_actor(pred.actor))).collect();
        let cell = op.value.as_deref().map(|value| Cell {
            attribute: self.intern_attribute(&op.attribute),
            value: value.into(),
            counter: id.counter,
            actor,
        });
        let actors = std::mem::take(&mut self.actors);
        let record = self.record_mut(&op.entity);
        let mut range = record.range(&op.attribute);
        let before = record.0[range.clone()].last().map(|cell| cell.value.clone());
        for index in range.clone().rev() {
            if preds.contains(&(record.0[index].counter, record.0[index].actor)) {
                record.0.remove(index);
                range.end -= 1;
            }
        }
        if let Some(cell) = cell {
            let order = |other: &Cell| (other.counter, actors[other.actor as usize]).cmp(&(cell.counter, id.actor));
            if let Err(at) = record.0[range.clone()].binary_search_by(order) {
                record.insert(range.start + at, cell);
                range.end += 1;
            }
        }
        let changed = record.0[range].last().map(|cell| &cell.value) != before.as_ref();
        let is_empty = record.0.is_empty();
        self.actors = actors;
        if is_empty {
            self.drop_record(&op.entity);
        }
        changed
    }

    /// Forgets every entity of a document that is about to be read again.
    pub(super) fn forget(&mut self, mut is_of_shard: impl FnMut(&Entity) -> bool) {
        self.nodes.retain(|name, _| !is_of_shard(&Entity::Node(name.clone())));
        self.groups.retain(|name, _| !is_of_shard(&Entity::Group(name.clone())));
        if is_of_shard(&Entity::Settings) {
            self.settings = Record::default();
        }
    }

    /// Returns the visible value, if the entity is present.
    pub(super) fn get(&self, entity: &Entity, attribute: &str) -> Option<&str> {
        self.present(entity)?.visible(attribute)
    }

    /// Returns the attributes and visible values of an entity, if it is present.
    pub(super) fn entity<'a>(&'a self, entity: &Entity) -> Option<impl Iterator<Item = (&'a str, &'a str)> + use<'a>> {
        self.present(entity).map(Record::iter)
    }

    /// Returns the attributes of an entity whether or not it is present.
    pub(super) fn stored_attributes(&self, entity: &Entity) -> impl Iterator<Item = (&str, &str)> {
        self.record(entity).into_iter().flat_map(Record::iter)
    }

    /// Returns every version of a value, the visible one last, whether or not the entity is present.
    pub(super) fn versions(&self, entity: &Entity, attribute: &str) -> impl DoubleEndedIterator<Item = Stored<'_>> {
        self.record(entity).map(|record| &record.0[record.range(attribute)]).unwrap_or_default().iter().map(|cell| {
            Stored { value: &cell.value, op: OpId { counter: cell.counter, actor: self.actors[cell.actor as usize] } }
        })
    }

    /// Returns the nodes that are present, in natural order.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().filter(|(_, record)| record.is_present()).map(|(name, _)| name)
    }

    /// Returns the groups that are present, in natural order.
    pub(super) fn groups(&self) -> impl Iterator<Item = &GroupName> {
        self.groups.iter().filter(|(_, record)| record.is_present()).map(|(name, _)| name)
    }

    fn record(&self, entity: &Entity) -> Option<&Record> {
        match entity {
            Entity::Node(name) => self.nodes.get(name),
            Entity::Group(name) => self.groups.get(name),
            Entity::Settings => Some(&self.settings),
        }
    }

    fn present(&self, entity: &Entity) -> Option<&Record> {
        self.record(entity).filter(|record| *entity == Entity::Settings || record.is_present())
    }

    fn record_mut(&mut self, entity: &Entity) -> &mut Record {
        match entity {
            Entity::Node(name) => self.nodes.entry(name.clone()).or_default(),
            Entity::Group(name) => self.groups.entry(name.clone()).or_default(),
            Entity::Settings => &mut self.settings,
        }
    }

    fn drop_record(&mut self, entity: &Entity) {
        match entity {
            Entity::Node(name) => drop(self.nodes.remove(name)),
            Entity::Group(name) => drop(self.groups.remove(name)),
            Entity::Settings => {}
        }
    }

    fn intern_attribute(&mut self, attribute: &str) -> Arc<str> {
        if let Some(known) = self.attributes.get(attribute) {
            return known.clone();
        }
        let new: Arc<str> = attribute.into();
        self.attributes.insert(new.clone());
        new
    }

    fn intern_actor(&mut self, actor: Actor) -> u32 {
        if let Some(index) = self.actor_index.get(&actor) {
            return *index;
        }
        // More than 2^32 actors would need as many daemon starts.
        let index = u32::try_from(self.actors.len()).unwrap_or(u32::MAX);
        self.actors.push(actor);
        self.actor_index.insert(actor, index);
        index
    }
}
