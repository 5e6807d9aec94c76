//! Inheritance: which value of an attribute holds for a node, from its own value and its ordered list of groups.
//!
//! The node's own value beats all; then the first of its groups that has one; the group `everything` comes last, on
//! every node. A blank value counts as one and so masks what comes after it. Nothing inherited is ever stored, so it
//! is never stale. [`Nodes`] is the other way round: which nodes a group stands for.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::{EVERYTHING, GROUPS, Source, group_exists};
use crate::proto::name::{GroupName, NodeName};
use crate::proto::noderange::Universe;
use crate::proto::schema;

/// A value that holds for a node, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective<'a> {
    /// The value; blank when something was masked.
    pub value: &'a str,
    /// Whose value it is.
    pub from: Origin,
}

impl<'a> Effective<'a> {
    /// Returns the value, or nothing when it is blank.
    pub fn filled(&self) -> Option<&'a str> {
        Some(self.value).filter(|value| !value.is_empty())
    }
}

/// Whose value it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The node's own.
    Own,
    /// Inherited from this group.
    Group(GroupName),
}

/// Where a node's values come from, in order. Made once a node, then asked for every attribute.
#[derive(Debug)]
pub struct Lineage<'a, S> {
    source: &'a S,
    node: &'a NodeName,
    groups: Vec<GroupName>,
}

impl<'a, S: Source> Lineage<'a, S> {
    /// Reads a node's list of groups.
    pub fn new(source: &'a S, node: &'a NodeName) -> Self {
        Self { source, node, groups: groups_of(source, node) }
    }

    /// Returns the node's groups in order of precedence; `everything` is the last.
    pub fn groups(&self) -> &[GroupName] {
        &self.groups
    }

    /// Returns the value that holds for an attribute.
    pub fn get(&self, attribute: &str) -> Option<Effective<'a>> {
        if let Some(value) = self.source.node_attribute(self.node, attribute) {
            return Some(Effective { value, from: Origin::Own });
        }
        if !is_inherited(attribute) {
            return None;
        }
        self.groups.iter().find_map(|group| {
            let value = self.source.group_attribute(group, attribute)?;
            Some(Effective { value, from: Origin::Group(group.clone()) })
        })
    }

    /// Returns every value that holds, by attribute; the list of groups and internal keys are left out.
    pub fn all(&self) -> BTreeMap<&'a str, Effective<'a>> {
        let mut all = BTreeMap::new();
        for (name, value) in self.source.node_attributes(self.node).filter(|(name, _)| is_inherited(name)) {
            all.insert(name, Effective { value, from: Origin::Own });
        }
        for group in &self.groups {
            for (name, value) in self.source.group_attributes(group).filter(|(name, _)| is_inherited(name)) {
                all.entry(name).or_insert_with(|| Effective { value, from: Origin::Group(group.clone()) });
            }
        }
        all
    }
}

/// The list of groups is the node's own: the order of inheritance must not depend on itself.
fn is_inherited(attribute: &str) -> bool {
    attribute != GROUPS && !schema::is_internal(attribute)
}

/// Returns the value of an attribute that holds for a node.
pub fn effective<'a>(source: &'a impl Source, node: &'a NodeName, attribute: &str) -> Option<Effective<'a>> {
    Lineage::new(source, node).get(attribute)
}

/// Returns every value that holds for a node, by attribute; the list of groups and internal keys are left out.
pub fn effective_all<'a>(source: &'a impl Source, node: &'a NodeName) -> BTreeMap<&'a str, Effective<'a>> {
    Lineage::new(source, node).all()
}

/// Returns a node's groups in order of precedence; `everything` is the last.
///
/// A group that is not defined is skipped: it may have been removed by one member while another one added the node.
pub fn groups_of(source: &impl Source, node: &NodeName) -> Vec<GroupName> {
    let mut groups = listed(source.node_attribute(node, GROUPS).unwrap_or_default());
    groups.retain(|group| group_exists(source, group));
    groups.extend(GroupName::new(EVERYTHING));
    groups
}

/// Reads a stored list of groups: names in order, duplicates and `everything` dropped.
pub(super) fn listed(value: &str) -> Vec<GroupName> {
    let mut groups = Vec::new();
    for group in value.split(',').filter_map(|word| GroupName::new(word.trim()).ok()) {
        if group.as_str() != EVERYTHING && !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// The nodes and groups that a noderange can name.
///
/// Who is in which group is read once, when the first group is named.
pub struct Nodes<'a, S> {
    source: &'a S,
    members: OnceCell<BTreeMap<GroupName, Vec<&'a str>>>,
}

impl<'a, S: Source> Nodes<'a, S> {
    /// Looks at a store.
    pub fn new(source: &'a S) -> Self {
        Self { source, members: OnceCell::new() }
    }

    fn members(&self) -> &BTreeMap<GroupName, Vec<&'a str>> {
        self.members.get_or_init(|| {
            let mut members: BTreeMap<GroupName, Vec<&'a str>> =
                self.source.groups().map(|group| (group.clone(), Vec::new())).collect();
            for node in self.source.nodes() {
                for group in listed(self.source.node_attribute(node, GROUPS).unwrap_or_default()) {
                    if let Some(nodes) = members.get_mut(&group) {
                        nodes.push(node.as_str());
                    }
                }
            }
            members
        })
    }
}

impl<S: Source> Universe for Nodes<'_, S> {
    fn contains(&self, name: &str) -> bool {
        NodeName::new(name).is_ok_and(|node| self.source.node_exists(&node))
    }

    fn group<'b>(&'b self, name: &str) -> Option<Box<dyn Iterator<Item = &'b str> + 'b>> {
        if name == EVERYTHING {
            return Some(Box::new(self.source.nodes().map(NodeName::as_str)));
        }
        let group = GroupName::new(name).ok().filter(|group| self.source.group_exists(group))?;
        Some(Box::new(self.members().get(&group)?.iter().copied()))
    }

    fn kind(&self) -> &'static str {
        "node or group"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::testing::{Memory, group, node};
    use super::super::{Owner, parse_assignment, parse_clear, plan, plan_define, plan_remove};
    use super::*;
    use crate::proto::noderange;

    fn set(memory: &mut Memory, entity: Owner, assignments: &[&str]) {
        let assignments: Vec<_> =
            assignments.iter().map(|text| parse_assignment(text).expect("an assignment")).collect();
        let changes = plan(memory, &[entity], &assignments).expect("a valid plan");
        memory.apply(&changes);
    }

    fn define(memory: &mut Memory, entities: &[Owner], assignments: &[&str]) {
        let assignments: Vec<_> =
            assignments.iter().map(|text| parse_assignment(text).expect("an assignment")).collect();
        let changes = plan_define(memory, entities, &assignments).expect("a valid plan");
        memory.apply(&changes);
    }

    fn clear(memory: &mut Memory, entity: Owner, name: &str) {
        let changes = plan(memory, &[entity], &[parse_clear(name).expect("a name")]).expect("a valid plan");
        memory.apply(&changes);
    }

    /// Performs one operation of the recorded session.
    fn perform(memory: &mut Memory, op: &str) {
        match op {
            "nodegroupdefine g1,g2" => define(memory, &[group("g1"), group("g2")], &[]),
            "nodedefine n1 groups=g1,g2" => {
                define(memory, &[node("n1")], &["groups=g1,g2"]);
                define(memory, &[node("n2")], &["groups=g2,g1"]);
            }
            "g2 location.rack=G2" => set(memory, group("g2"), &["location.rack=G2"]),
            "g1 location.rack=G1" => set(memory, group("g1"), &["location.rack=G1"]),
            "everything location.rack=E, location.room=E" => {
                set(memory, group("everything"), &["location.rack=E", "location.room=E"]);
            }
            "n1 location.rack=own" => set(memory, node("n1"), &["location.rack=own"]),
            "clear n1 location.rack" => clear(memory, node("n1"), "location.rack"),
            "n1 location.rack=\"\" (mask)" => set(memory, node("n1"), &["location.rack="]),
            "clear g1 location.rack" => clear(memory, group("g1"), "location.rack"),
            "g1 location.u={n1} (expression on group)" => set(memory, group("g1"), &["location.u={n1+10}"]),
            "n1 info.note={location.u}-{location.room}" => {
                set(memory, node("n1"), &["info.note={location.u}-{location.room}"]);
            }
            "g1 location.u={n1*2} (dependent recompute)" => set(memory, group("g1"), &["location.u={n1*2}"]),
            "everything location.room=R2 (dependent recompute)" => {
                set(memory, group("everything"), &["location.room=R2"]);
            }
            "rename n1->n5" => {
                let old = memory.nodes[&NodeName::new("n1").expect("a name")].clone();
                let changes = plan_remove(memory, &[node("n1")]).expect("a valid plan");
                memory.apply(&changes);
                memory.nodes.insert(NodeName::new("n5").expect("a name"), old);
            }
            "n5 groups,=nosuch" => {
                let assignment = parse_assignment("groups,=nosuch").expect("an assignment");
                let error = plan(memory, &[node("n5")], &[assignment]).expect_err("there is no such group");
                assert_eq!(error.to_string(), "node n5, groups: there is no group nosuch");
            }
            "nodegroupdefine g3 with location.rack=G3" => define(memory, &[group("g3")], &["location.rack=G3"]),
            "n5 groups,=g3 (prepend)" => set(memory, node("n5"), &["groups,=g3"]),
            other => panic!("the recorded session has an operation this test does not know: {other}"),
        }
    }

    /// What a recorded value should read here: as long as expressions are not evaluated, the expression itself.
    fn expected(value: &Value) -> (&str, Option<&str>) {
        let text = value.get("expression").or_else(|| value.get("value")).and_then(Value::as_str);
        (text.expect("a value"), value.get("inheritedfrom").and_then(Value::as_str))
    }

    #[test]
    fn inheritance_agrees_with_what_confluent_recorded() {
        let session: Value = serde_json::from_str(include_str!("../testdata/inheritance.json")).expect("JSON");
        let mut memory = Memory::default();
        for step in session.as_array().expect("a list") {
            let op = step["op"].as_str().expect("an operation");

            perform(&mut memory, op);

            let after = step["after"].as_object().expect("the state after it");
            assert_eq!(memory.nodes.len(), after.len(), "{op}");
            for (name, recorded) in after {
                let name = NodeName::new(name).expect("a name");
                let recorded = recorded.as_object().expect("attributes");
                let groups: Vec<_> = groups_of(&memory, &name).iter().map(ToString::to_string).collect();
                assert_eq!(serde_json::json!(groups), recorded["groups"], "{op}: groups of {name}");
                let all = effective_all(&memory, &name);
                assert_eq!(all.len(), recorded.len() - 1, "{op}: {all:?}");
                for (attribute, value) in recorded.iter().filter(|(attribute, _)| *attribute != GROUPS) {
                    let found = effective(&memory, &name, attribute).expect("a value");
                    assert_eq!(Some(&found), all.get(attribute.as_str()));
                    let from = match &found.from {
                        Origin::Own => None,
                        Origin::Group(group) => Some(group.as_str()),
                    };
                    assert_eq!((found.value, from), expected(value), "{op}: {name} {attribute}");
                }
            }
        }
    }

    #[test]
    fn a_blank_masks_and_reads_as_nothing() {
        let mut memory = Memory::default();
        define(&mut memory, &[group("g1")], &["location.rack=1"]);
        define(&mut memory, &[node("n1")], &["groups=g1", "location.rack="]);

        let n1 = NodeName::new("n1").expect("a name");
        let found = effective(&memory, &n1, "location.rack").expect("a blank is a value");

        assert_eq!((found.filled(), &found.from), (None, &Origin::Own));
    }

    #[test]
    fn a_group_that_is_gone_is_passed_over() {
        let mut memory = Memory::default();
        define(&mut memory, &[group("g1")], &["location.rack=1"]);
        define(&mut memory, &[node("n1")], &["groups=g1"]);
        memory.groups.clear();

        let n1 = NodeName::new("n1").expect("a name");

        assert_eq!(groups_of(&memory, &n1).len(), 1);
        assert_eq!(effective(&memory, &n1, "location.rack"), None);
    }

    #[test]
    fn internal_keys_are_neither_shown_nor_inherited() {
        let mut memory = Memory::default();
        define(&mut memory, &[node("n1")], &["location.u=3"]);
        memory.groups.entry(GroupName::new(EVERYTHING).expect("a name")).or_default().insert("!x".into(), "y".into());

        let n1 = NodeName::new("n1").expect("a name");

        assert_eq!(effective_all(&memory, &n1).into_keys().collect::<Vec<_>>(), ["location.u"]);
        assert_eq!(effective(&memory, &n1, "!x"), None);
    }

    #[test]
    fn a_noderange_names_nodes_and_groups() {
        let mut memory = Memory::default();
        define(&mut memory, &[group("g1"), group("g2")], &[]);
        define(&mut memory, &[node("n10"), node("n2")], &["groups=g1"]);
        define(&mut memory, &[node("n1"), node("g2")], &[]);

        let expand = |text| {
            let parsed = noderange::parse(text).expect(text);
            noderange::expand(&parsed, &Nodes::new(&memory)).map(|names| names.join(","))
        };

        assert_eq!(expand("g1").as_deref(), Ok("n2,n10"));
        assert_eq!(expand("everything,-g1").as_deref(), Ok("g2,n1"));
        assert_eq!(expand("g2").as_deref(), Ok("g2"), "a node goes before a group of its name");
        assert!(expand("g3").is_err());
    }
}
