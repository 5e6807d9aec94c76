//! Attributes: what a node's attributes are, from its own values and those of its groups, and what a command changes.
//!
//! [`lineage`] decides which value holds, [`plan()`] which changes a command stands for. Both see the store through
//! [`Source`] only. Values are stored and shown as they were typed: expressions in braces are not evaluated.

pub mod lineage;
pub mod plan;
mod stored;

use std::fmt;

use minicbor::{Decode, Encode};

use super::name::{AttributeName, GroupName, NameError, NodeName};
use super::schema;

pub use lineage::{Effective, Lineage, Nodes, Origin, effective, effective_all, groups_of};
pub use plan::{Assignment, Change, check_managers, parse_assignment, parse_clear, plan, plan_define, plan_remove};

/// The attribute that makes an entity exist; without it, its other attributes are hidden.
pub const PRESENT: &str = "!present";
/// The attribute that lists a node's groups, in order of precedence.
pub const GROUPS: &str = "groups";
/// The group that every node is in, after all others. It needs no definition and cannot be removed.
pub const EVERYTHING: &str = "everything";

/// Who owns attributes that people read and write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Owner {
    /// A managed machine.
    #[n(0)]
    Node(#[n(0)] NodeName),
    /// A named set of nodes.
    #[n(1)]
    Group(#[n(0)] GroupName),
}

impl Owner {
    /// Returns whether the store has it. The group `everything` is always there.
    pub fn exists(&self, source: &impl Source) -> bool {
        match self {
            Self::Node(node) => source.node_exists(node),
            Self::Group(group) => group_exists(source, group),
        }
    }

    /// Returns its own value of an attribute, without what it inherits.
    pub fn own<'a>(&self, source: &'a impl Source, attribute: &str) -> Option<&'a str> {
        match self {
            Self::Node(node) => source.node_attribute(node, attribute),
            Self::Group(group) => source.group_attribute(group, attribute),
        }
    }

    /// Returns its own attributes, without what it inherits.
    fn all_own<'a>(&self, source: &'a impl Source) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a> {
        match self {
            Self::Node(node) => source.node_attributes(node),
            Self::Group(group) => source.group_attributes(group),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// The attributes as they are stored: every entity's own values, nothing inherited.
pub trait Source {
    /// Returns whether a node is defined.
    fn node_exists(&self, node: &NodeName) -> bool;
    /// Returns whether a group is defined.
    fn group_exists(&self, group: &GroupName) -> bool;
    /// Returns a node's own value.
    fn node_attribute(&self, node: &NodeName, attribute: &str) -> Option<&str>;
    /// Returns a group's own value.
    fn group_attribute(&self, group: &GroupName, attribute: &str) -> Option<&str>;
    /// Returns a node's own attributes.
    fn node_attributes<'a>(&'a self, node: &NodeName) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a>;
    /// Returns a group's own attributes.
    fn group_attributes<'a>(&'a self, group: &GroupName) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a>;
    /// Returns every node, in natural order.
    fn nodes<'a>(&'a self) -> Box<dyn Iterator<Item = &'a NodeName> + 'a>;
    /// Returns every group, in natural order.
    fn groups<'a>(&'a self) -> Box<dyn Iterator<Item = &'a GroupName> + 'a>;
}

/// Returns whether a group may be named: it is defined, or it is `everything`.
pub fn group_exists(source: &impl Source, group: &GroupName) -> bool {
    group.as_str() == EVERYTHING || source.group_exists(group)
}

/// Why a command on attributes was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", place(entity.as_ref(), attribute.as_deref()))]
pub struct AttributeError {
    /// Whose attribute, when the problem is with one.
    pub entity: Option<Owner>,
    /// Which attribute, when the problem is with one.
    pub attribute: Option<String>,
    /// What is wrong.
    pub problem: Problem,
}

fn place(entity: Option<&Owner>, attribute: Option<&str>) -> String {
    match (entity, attribute) {
        (Some(entity), Some(attribute)) => format!("{entity}, {attribute}: "),
        (Some(entity), None) => format!("{entity}: "),
        (None, Some(attribute)) => format!("{attribute}: "),
        (None, None) => String::new(),
    }
}

/// What is wrong with a command on attributes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No attribute is called so.
    #[error("there is no such attribute{}", nearest.as_ref().map_or_else(own_names, |_| meant(nearest)))]
    NoSuchAttribute {
        /// The defined attribute that is spelled most like it.
        nearest: Option<String>,
    },
    /// The node or group is not defined.
    #[error("not defined{}", meant(nearest))]
    NoSuchEntity {
        /// The defined one that is spelled most like it.
        nearest: Option<String>,
    },
    /// A group that the value names is not defined.
    #[error("there is no group {group}{}", meant(nearest))]
    NoSuchGroup {
        /// The group.
        group: String,
        /// The defined one that is spelled most like it.
        nearest: Option<String>,
    },
    /// A member that the value names is not on the roster.
    #[error("there is no member {member}{}", meant(nearest))]
    NoSuchMember {
        /// The member.
        member: String,
        /// The one that is spelled most like it.
        nearest: Option<String>,
    },
    /// The node or group is defined already.
    #[error("defined already")]
    Exists,
    /// The group `everything` cannot be removed.
    #[error("it is always there")]
    Everything,
    /// The value is not one that the attribute takes.
    #[error("{value:?} {rule}")]
    Value {
        /// The value, cut to 80 characters.
        value: String,
        /// What it should be.
        rule: String,
    },
    /// The value must be sealed, which is not possible yet.
    #[error("secrets are not supported yet: they need to be sealed, and would be stored in clear")]
    Sealed,
    /// The attribute cannot be set here.
    #[error("{0}")]
    Misplaced(&'static str),
    /// The text is no assignment.
    #[error("{text:?} is no assignment; write NAME=VALUE, NAME,=ITEM or NAME^=ITEM")]
    Malformed {
        /// The text, cut to 80 characters.
        text: String,
    },
    /// The text names nothing.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The value is no noderange.
    #[error("{0}")]
    Noderange(Box<super::noderange::NoderangeError>),
}

fn meant(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"))
}

fn own_names() -> String {
    "; the names of your own attributes begin with custom.".to_owned()
}

impl From<super::noderange::NoderangeError> for Problem {
    fn from(error: super::noderange::NoderangeError) -> Self {
        Self::Noderange(Box::new(error))
    }
}

impl AttributeError {
    fn of(attribute: &str, problem: Problem) -> Self {
        Self { entity: None, attribute: Some(attribute.chars().take(80).collect()), problem }
    }

    fn on(entity: &Owner, problem: Problem) -> Self {
        Self { entity: Some(entity.clone()), attribute: None, problem }
    }

    fn at(entity: &Owner, attribute: &str, problem: Problem) -> Self {
        Self { entity: Some(entity.clone()), ..Self::of(attribute, problem) }
    }
}

/// Checks that a name as typed is an attribute that people may write, and returns its full form.
///
/// # Errors
/// [`Problem::NoSuchAttribute`] with the nearest one, or [`Problem::Sealed`] for secrets.
pub fn check_name(typed: &str) -> Result<AttributeName, AttributeError> {
    let name = schema::canonical(typed);
    if schema::is_sealed(name) {
        return Err(AttributeError::of(name, Problem::Sealed));
    }
    match name {
        "nodes" => {
            let hint = "nodes list their groups: set groups,=GROUP on the nodes";
            return Err(AttributeError::of(name, Problem::Misplaced(hint)));
        }
        "noderange" => {
            let hint = "groups that follow a noderange are not supported yet";
            return Err(AttributeError::of(name, Problem::Misplaced(hint)));
        }
        _ => {}
    }
    if !schema::is_known(name) {
        return Err(AttributeError::of(name, Problem::NoSuchAttribute { nearest: schema::nearest_attribute(name) }));
    }
    AttributeName::new(name).map_err(|error| AttributeError::of(name, error.into()))
}

/// A store in memory, for the tests of everything that reads a [`Source`].
#[cfg(test)]
pub(crate) mod testing {
    use std::collections::BTreeMap;

    use super::*;

    /// Nodes and groups with their own attributes.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub(crate) struct Memory {
        pub(crate) nodes: BTreeMap<NodeName, BTreeMap<String, String>>,
        pub(crate) groups: BTreeMap<GroupName, BTreeMap<String, String>>,
    }

    impl Memory {
        /// Stores changes as a document would: presence makes and unmakes, anything else is set or cleared.
        pub(crate) fn apply(&mut self, changes: &[Change]) {
            for (entity, attribute, value) in changes {
                match (entity, value) {
                    (Owner::Node(name), Some(value)) => {
                        self.nodes.entry(name.clone()).or_default().insert(attribute.to_string(), value.clone());
                    }
                    (Owner::Group(name), Some(value)) => {
                        self.groups.entry(name.clone()).or_default().insert(attribute.to_string(), value.clone());
                    }
                    (Owner::Node(name), None) if &**attribute == PRESENT => drop(self.nodes.remove(name)),
                    (Owner::Group(name), None) if &**attribute == PRESENT => drop(self.groups.remove(name)),
                    (Owner::Node(name), None) => {
                        self.nodes.get_mut(name).map(|attributes| attributes.remove(&**attribute));
                    }
                    (Owner::Group(name), None) => {
                        self.groups.get_mut(name).map(|attributes| attributes.remove(&**attribute));
                    }
                }
            }
        }
    }

    fn pairs(attributes: Option<&BTreeMap<String, String>>) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
        Box::new(attributes.into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    impl Source for Memory {
        fn node_exists(&self, node: &NodeName) -> bool {
            self.nodes.contains_key(node)
        }
        fn group_exists(&self, group: &GroupName) -> bool {
            self.groups.contains_key(group)
        }
        fn node_attribute(&self, node: &NodeName, attribute: &str) -> Option<&str> {
            self.nodes.get(node)?.get(attribute).map(String::as_str)
        }
        fn group_attribute(&self, group: &GroupName, attribute: &str) -> Option<&str> {
            self.groups.get(group)?.get(attribute).map(String::as_str)
        }
        fn node_attributes<'a>(&'a self, node: &NodeName) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a> {
            pairs(self.nodes.get(node))
        }
        fn group_attributes<'a>(&'a self, group: &GroupName) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a> {
            pairs(self.groups.get(group))
        }
        fn nodes<'a>(&'a self) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
            Box::new(self.nodes.keys())
        }
        fn groups<'a>(&'a self) -> Box<dyn Iterator<Item = &'a GroupName> + 'a> {
            Box::new(self.groups.keys())
        }
    }

    pub(crate) fn node(name: &str) -> Owner {
        Owner::Node(NodeName::new(name).expect("a test's name"))
    }

    pub(crate) fn group(name: &str) -> Owner {
        Owner::Group(GroupName::new(name).expect("a test's name"))
    }
}
