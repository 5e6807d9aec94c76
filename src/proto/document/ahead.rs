//! The documents as they will be once everything that was taken in here is durable.
//!
//! Nobody is shown that, since a crash may take it back. But what is worked out from what was there before, such as a
//! list with one more item, must start from here: made from what shows, it would undo what is on its way to the disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::key::{Entity, PRESENT};
use super::vet::{Op, OpId};
use super::{Documents, ShardId};
use crate::proto::name::{GroupName, NodeName};

/// A look at the documents with what is not durable yet; made by [`Documents::ahead`].
#[derive(Debug)]
pub struct Ahead<'a> {
    documents: &'a Documents,
    /// The versions of every value that something not durable writes, the visible one last.
    written: BTreeMap<(&'a Entity, &'a str), Vec<(OpId, &'a str)>>,
}

impl Documents {
    /// Looks at the documents as they will be once everything that was taken in is durable; what writes are worked out
    /// from.
    pub fn ahead(&self) -> Ahead<'_> {
        let mut written: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for shard in ShardId::all() {
            for (op, id) in self.shards[shard.index()].pending() {
                let versions = written.entry((&op.entity, &*op.attribute)).or_insert_with(|| {
                    let durable = self.read.versions(&op.entity, &op.attribute);
                    durable.map(|stored| (stored.op, stored.value)).collect()
                });
                follow(versions, op, id);
            }
        }
        for versions in written.values_mut() {
            versions.sort_unstable_by_key(|(id, _)| (id.counter, id.actor));
        }
        Ahead { documents: self, written }
    }

    /// Returns every concurrent value of one attribute as it will be then, the visible one first, present or not.
    pub fn all_ahead(&self, entity: &Entity, attribute: &str) -> Vec<String> {
        let mut versions = self.shards[entity.shard().index()].versions(&self.read, entity, attribute);
        versions.sort_unstable_by_key(|(id, _)| Reverse((id.counter, id.actor)));
        versions.into_iter().map(|(_, value)| value.to_owned()).collect()
    }
}

/// Applies an operation to the versions of its value, in no particular order.
pub(super) fn follow<'a>(versions: &mut Vec<(OpId, &'a str)>, op: &'a Op, id: OpId) {
    versions.retain(|(other, _)| !op.preds.contains(other));
    versions.extend(op.value.as_deref().map(|value| (id, value)));
}

impl<'a> Ahead<'a> {
    /// Returns the value of an attribute; none if the entity is not present.
    pub fn get(&self, entity: &Entity, attribute: &str) -> Option<&'a str> {
        self.is_present(entity).then(|| self.visible(entity, attribute)).flatten()
    }

    /// Returns the attributes of an entity with their values, in order of their names, or none if it is not present.
    pub fn entity(&self, entity: &Entity) -> Option<impl Iterator<Item = (&'a str, &'a str)> + use<'a>> {
        self.is_present(entity).then(|| {
            let mut values: BTreeMap<_, _> = self.documents.stored_attributes(entity).collect();
            let written = self.written.range((entity, "")..).take_while(|((of, _), _)| *of == entity);
            for ((_, attribute), versions) in written {
                match versions.last() {
                    Some((_, value)) => drop(values.insert(attribute, value)),
                    None => drop(values.remove(attribute)),
                }
            }
            values.into_iter()
        })
    }

    /// Returns the nodes that are present, in natural order.
    pub fn nodes(&self) -> impl Iterator<Item = &'a NodeName> + use<'a> {
        let name_of = |entity: &'a Entity| if let Entity::Node(name) = entity { Some(name) } else { None };
        self.names(self.documents.nodes(), name_of).into_iter()
    }

    /// Returns the groups that are present, in natural order.
    pub fn groups(&self) -> impl Iterator<Item = &'a GroupName> + use<'a> {
        let name_of = |entity: &'a Entity| if let Entity::Group(name) = entity { Some(name) } else { None };
        self.names(self.documents.groups(), name_of).into_iter()
    }

    /// Returns these names without those that will be gone and with those that will be there.
    fn names<N: Ord + 'a>(
        &self,
        visible: impl Iterator<Item = &'a N>,
        name_of: impl Fn(&'a Entity) -> Option<&'a N>,
    ) -> BTreeSet<&'a N> {
        let mut names: BTreeSet<_> = visible.collect();
        for ((entity, _), versions) in self.written.iter().filter(|((_, attribute), _)| *attribute == PRESENT) {
            match name_of(entity) {
                Some(name) if versions.is_empty() => drop(names.remove(name)),
                Some(name) => drop(names.insert(name)),
                None => {}
            }
        }
        names
    }

    fn is_present(&self, entity: &Entity) -> bool {
        *entity == Entity::Settings || self.visible(entity, PRESENT).is_some()
    }

    fn visible(&self, entity: &Entity, attribute: &str) -> Option<&'a str> {
        match self.written.get(&(entity, attribute)) {
            Some(versions) => versions.last().map(|(_, value)| *value),
            None => self.documents.read.versions(entity, attribute).next_back().map(|stored| stored.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Actor, Put};
    use super::*;
    use crate::proto::time::WallTime;

    fn node(name: &str) -> Entity {
        Entity::Node(NodeName::new(name).expect("a valid name"))
    }

    fn put<'a>(of: &str, attribute: &str, value: impl Into<Option<&'a str>>) -> Put {
        Put { entity: node(of), attribute: attribute.into(), value: value.into().map(str::to_owned) }
    }

    fn names(ahead: &Ahead<'_>) -> Vec<String> {
        ahead.nodes().map(ToString::to_string).collect()
    }

    fn values(ahead: &Ahead<'_>, name: &str) -> Option<Vec<(String, String)>> {
        let of = ahead.entity(&node(name))?;
        Some(of.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn what_is_not_durable_is_ahead_and_shows_nowhere_else() {
        let mut documents = Documents::new();
        let puts =
            [put("n1", PRESENT, "1"), put("n1", "custom.a", "1"), put("n1", "custom.b", "1"), put("n3", PRESENT, "1")];
        let written = documents.write(&puts, Actor([1; 16]), WallTime(0)).expect("writable");
        for change in &written.changes {
            documents.durable(&change.id);
        }
        let puts = [
            put("n1", "custom.a", "2"),
            put("n1", "custom.b", None),
            put("n1", "custom.c", "3"),
            put("n2", PRESENT, "1"),
            put("n3", PRESENT, None),
        ];
        let written = documents.write(&puts, Actor([1; 16]), WallTime(0)).expect("writable");
        let more = documents.write(&[put("n1", "custom.a", "4")], Actor([1; 16]), WallTime(0)).expect("writable");
        let ahead = documents.ahead();
        assert_eq!(names(&ahead), ["n1", "n2"]);
        assert_eq!(ahead.groups().count(), 0);
        let expected = [(PRESENT, "1"), ("custom.a", "4"), ("custom.c", "3")];
        assert_eq!(values(&ahead, "n1"), Some(expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()));
        assert_eq!(values(&ahead, "n3"), None);
        assert_eq!((ahead.get(&node("n1"), "custom.b"), ahead.get(&node("n3"), PRESENT)), (None, None));
        assert_eq!(documents.get(&node("n1"), "custom.a"), Some("1"));
        assert_eq!(documents.nodes().map(ToString::to_string).collect::<Vec<_>>(), ["n1", "n3"]);
        let before = [values(&ahead, "n1"), values(&ahead, "n2"), values(&ahead, "n3")];
        for change in written.changes.iter().chain(&more.changes) {
            documents.durable(&change.id);
        }
        let ahead = documents.ahead();
        assert_eq!([values(&ahead, "n1"), values(&ahead, "n2"), values(&ahead, "n3")], before, "as it was told");
        assert_eq!(documents.get(&node("n1"), "custom.a"), Some("4"));
    }

    #[test]
    fn versions_of_a_peer_that_are_not_durable_count_too() {
        let (mut here, mut there) = (Documents::new(), Documents::new());
        let ours = here.write(&[put("n1", "custom.a", "ours")], Actor([1; 16]), WallTime(0)).expect("writable");
        let theirs = there.write(&[put("n1", "custom.a", "theirs")], Actor([2; 16]), WallTime(0)).expect("writable");
        here.durable(&ours.changes[0].id);
        let change = &theirs.changes[0];
        here.receive(change.id.shard, change.id.generation, &change.bytes, &|_| true).expect("a sound change");
        assert_eq!(here.all(&node("n1"), "custom.a"), ["ours"]);
        assert_eq!(here.all_ahead(&node("n1"), "custom.a"), ["theirs", "ours"]);
        let both = here.write(&[put("n1", "custom.a", "both")], Actor([1; 16]), WallTime(0)).expect("writable");
        assert_eq!(here.all_ahead(&node("n1"), "custom.a"), ["both"]);
        here.durable(&both.changes[0].id);
        assert_eq!(here.all(&node("n1"), "custom.a"), ["both"]);
    }
}
