//! Imports: which nodes, groups and attributes an inventory in another tool's format stands for.
//!
//! Text comes in, a [`Plan`] goes out, and [`changes`] says what it would change in a store. An import only ever adds
//! and sets: nothing that is not in the inventory is removed.

mod ansible;
mod csv;

use std::collections::{BTreeMap, BTreeSet};

use super::attributes::plan::Draft;
use super::attributes::{Assignment, AttributeError, Change, EVERYTHING, GROUPS, Owner, Source};
use super::name::{AttributeName, GroupName, NameError, NodeName};
use super::request::ImportFormat;
use super::schema;

pub use ansible::parse_ansible;
pub use csv::parse_csv;

/// Nodes in the largest inventory.
pub const NODES_MAX: usize = 100_000;

/// What an inventory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The groups.
    pub groups: BTreeSet<GroupName>,
    /// The nodes, each with its groups in order of precedence.
    pub nodes: BTreeMap<NodeName, Vec<GroupName>>,
    /// Values of attributes.
    pub assignments: BTreeMap<Owner, BTreeMap<AttributeName, String>>,
    /// What was left out, and why.
    pub warnings: Vec<String>,
    /// The name of each attribute that occurs, once: the same few are set of many nodes.
    attributes: BTreeMap<String, AttributeName>,
}

/// An inventory that cannot be taken in. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct InventoryError {
    /// Where: a JSON path such as `$.web.hosts[3]`, or a line.
    pub place: String,
    /// What is wrong there.
    pub problem: InventoryProblem,
}

/// What is wrong with an inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryProblem {
    /// The text is not in the format.
    #[error("{0}")]
    Format(String),
    /// A value has another shape than the format says.
    #[error("{0} expected")]
    Expected(&'static str),
    /// A node or group has a name that cannot be one here.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The value is not one that the attribute takes.
    #[error("{attribute}: {value:?} {rule}")]
    Value {
        /// The attribute.
        attribute: String,
        /// The value, cut to 80 characters.
        value: String,
        /// What it should be.
        rule: String,
    },
    /// Groups contain one another.
    #[error("the group contains itself, by way of {0}")]
    Cycle(String),
    /// There is too much of something: of what, and how much there may be.
    #[error("more than {1} {0}")]
    TooMany(&'static str, usize),
}

impl InventoryError {
    fn at(place: impl Into<String>, problem: impl Into<InventoryProblem>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// Reads an inventory.
///
/// # Errors
/// [`InventoryError`] says where it is not one.
pub fn parse(format: ImportFormat, document: &str) -> Result<Plan, InventoryError> {
    match format {
        ImportFormat::Ansible => parse_ansible(document),
        ImportFormat::Csv => parse_csv(document),
    }
}

/// Returns the changes that an inventory makes: what is new is defined, what differs is set, nothing is removed.
///
/// A node that exists gets the inventory's groups in front of those it has. `known` are groups that another part of the
/// same inventory defines.
///
/// # Errors
/// [`AttributeError`] that names the node or group, and its attribute, that cannot be changed so.
pub fn changes(source: &impl Source, plan: &Plan, known: &BTreeSet<GroupName>) -> Result<Vec<Change>, AttributeError> {
    let mut draft = Draft::new(source).knowing(known);
    for group in &plan.groups {
        draft.define(&Owner::Group(group.clone()));
    }
    for (node, groups) in &plan.nodes {
        let entity = Owner::Node(node.clone());
        draft.define(&entity);
        if let (false, Ok(attribute)) = (groups.is_empty(), AttributeName::new(GROUPS)) {
            let items = groups.iter().map(ToString::to_string).collect();
            draft.assign(&entity, &Assignment::Add { attribute, items })?;
        }
    }
    for (entity, attributes) in &plan.assignments {
        for (attribute, value) in attributes {
            let assignment = Assignment::Set { attribute: attribute.clone(), value: value.clone() };
            draft.assign(entity, &assignment)?;
        }
    }
    Ok(draft.changes())
}

impl Plan {
    /// Takes a part out that can be worked out by itself: first the groups, then at most so many nodes at a time. None
    /// when all is taken.
    pub fn take_part(&mut self, nodes: usize) -> Option<Self> {
        let mut part = Self { groups: std::mem::take(&mut self.groups), ..Self::default() };
        while let Some(entry) = self.assignments.last_entry().filter(|entry| matches!(entry.key(), Owner::Group(_))) {
            let (group, attributes) = entry.remove_entry();
            part.assignments.insert(group, attributes);
        }
        if part.groups.is_empty() && part.assignments.is_empty() {
            while part.nodes.len() < nodes
                && let Some((node, groups)) = self.nodes.pop_first()
            {
                let entity = Owner::Node(node.clone());
                part.assignments.extend(self.assignments.remove_entry(&entity));
                part.nodes.insert(node, groups);
            }
        }
        (part != Self::default()).then_some(part)
    }

    /// Takes a variable in: under its own name where that is an attribute, else under `custom`.
    ///
    /// What must not be stored in clear, and what is no name, is left out with a warning.
    fn set(&mut self, entity: &Owner, key: &str, value: String, place: &str) -> Result<(), InventoryError> {
        let name = schema::canonical(key);
        let name = match name {
            _ if schema::is_sealed(name) || is_secret(key) => {
                self.warn(place, "left out: secrets are not supported yet");
                return Ok(());
            }
            GROUPS | EVERYTHING => {
                self.warn(place, "left out: a node's groups come from the groups of the inventory");
                return Ok(());
            }
            "ansible_host" if is_address(&value, "", "") => "net.ipv4_address".to_owned(),
            "ansible_host" if is_address(&value, "[", "]") => "net.ipv6_address".to_owned(),
            "ansible_host" => "net.hostname".to_owned(),
            _ if schema::is_known(name) => name.to_owned(),
            _ => format!("custom.{name}"),
        };
        let Some(attribute) = self.attribute(&name) else {
            self.warn(place, "left out: the name cannot be an attribute's");
            return Ok(());
        };
        schema::check_value(&name, &value).map_err(|rule| {
            let value = value.chars().take(80).collect();
            InventoryError::at(place, InventoryProblem::Value { attribute: name.clone(), value, rule })
        })?;
        let attributes = self.assignments.entry(entity.clone()).or_default();
        // A name of ours is meant as it is written; what a name of theirs was turned into gives way to it.
        if name == schema::canonical(key) {
            attributes.insert(attribute, value);
        } else {
            attributes.entry(attribute).or_insert(value);
        }
        Ok(())
    }

    fn attribute(&mut self, name: &str) -> Option<AttributeName> {
        if let Some(known) = self.attributes.get(name) {
            return Some(known.clone());
        }
        let new = AttributeName::new(name).ok()?;
        self.attributes.insert(name.to_owned(), new.clone());
        Some(new)
    }

    fn warn(&mut self, place: &str, message: &str) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(format!("{place}: {message}"));
        } else if self.warnings.len() == WARNINGS_MAX {
            self.warnings.push("and more".to_owned());
        }
    }

    fn add_node(&mut self, name: &str, place: &str) -> Result<NodeName, InventoryError> {
        let node = NodeName::new(name).map_err(|error| InventoryError::at(place, error))?;
        self.nodes.entry(node.clone()).or_default();
        if self.nodes.len() > NODES_MAX {
            return Err(InventoryError::at(place, InventoryProblem::TooMany("nodes", NODES_MAX)));
        }
        Ok(node)
    }
}

/// Warnings that are listed one by one.
const WARNINGS_MAX: usize = 100;

/// Returns whether a variable is likely to hold a secret: those must not end up in the store in clear.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "passwd", "passphrase", "secret", "vault", "private_key", "api_key", "token"]
        .iter()
        .any(|word| key.contains(word))
        || key.ends_with("_pass")
}

/// Returns whether a text is an IP address, by whether it makes a socket address between these brackets.
fn is_address(text: &str, open: &str, close: &str) -> bool {
    format!("{open}{text}{close}:0").parse::<std::net::SocketAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::attributes::testing::{Memory, group, node};
    use super::super::attributes::{PRESENT, effective};
    use super::*;

    const SMALL: &str = r#"{
        "all": {"children": ["rack1", "ungrouped"], "vars": {"location.room": "A"}},
        "rack1": {"hosts": ["n1", "n2"], "vars": {"collective.managercandidates": "mgt[1-2]"}},
        "ungrouped": {"hosts": ["n3"]},
        "_meta": {"hostvars": {"n1": {"location.u": 3, "owner": "ann"}}}
    }"#;

    fn text(changes: &[Change]) -> Vec<String> {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        changes.iter().map(|(entity, name, value)| format!("{entity} {name}={}", show(value))).collect()
    }

    #[test]
    fn an_import_defines_sets_and_is_done_after_once() {
        let mut memory = Memory::default();
        let plan = parse_ansible(SMALL).expect("an inventory");

        let first = changes(&memory, &plan, &BTreeSet::new()).expect("changes");

        assert_eq!(
            text(&first),
            [
                "node n1 !present=1",
                "node n1 custom.owner=ann",
                "node n1 groups=rack1",
                "node n1 location.u=3",
                "node n2 !present=1",
                "node n2 groups=rack1",
                "node n3 !present=1",
                "group everything location.room=A",
                "group rack1 !present=1",
                "group rack1 collective.managercandidates=mgt[1-2]",
            ]
        );
        memory.apply(&first);
        assert_eq!(changes(&memory, &plan, &BTreeSet::new()), Ok(vec![]), "a second import changes nothing");
        let n2 = NodeName::new("n2").expect("a name");
        assert_eq!(effective(&memory, &n2, "location.room").map(|found| found.value), Some("A"));
    }

    #[test]
    fn the_parts_of_an_inventory_make_the_changes_of_the_whole() {
        let memory = Memory::default();
        let mut plan = parse_ansible(SMALL).expect("an inventory");
        let mut whole = text(&changes(&memory, &plan, &BTreeSet::new()).expect("changes"));
        let known = plan.groups.clone();
        let (mut parts, mut sizes) = (Vec::new(), Vec::new());
        while let Some(part) = plan.take_part(2) {
            sizes.push(part.nodes.len());
            parts.extend(text(&changes(&memory, &part, &known).expect("changes")));
        }
        assert_eq!(sizes, [0, 2, 1]);
        whole.sort();
        parts.sort();
        assert_eq!(parts, whole);
    }

    #[test]
    fn an_import_removes_nothing() {
        let mut memory = Memory::default();
        memory.apply(&[
            (group("own"), PRESENT.into(), Some("1".to_owned())),
            (node("n1"), PRESENT.into(), Some("1".to_owned())),
            (node("n1"), GROUPS.into(), Some("own".to_owned())),
            (node("n9"), PRESENT.into(), Some("1".to_owned())),
        ]);

        let plan = parse_ansible(SMALL).expect("an inventory");
        let found = changes(&memory, &plan, &BTreeSet::new()).expect("changes");

        let found = text(&found);
        assert!(found.contains(&"node n1 groups=rack1,own".to_owned()), "{found:?}");
        assert!(!found.iter().any(|change| change.contains("n9") || change.contains("n1 !present")), "{found:?}");
    }

    #[test]
    fn secrets_are_left_out_with_a_warning() {
        let mut plan = Plan::default();
        for key in ["secret.ipmikg", "bmcpass", "ansible_password", "ansible_become_pass", "vault_x", "API_TOKEN"] {
            plan.set(&node("n1"), key, "hidden".to_owned(), "$.x").expect("a warning only");
        }
        assert_eq!(plan.warnings.len(), 6);
        assert!(plan.assignments.is_empty() && !format!("{plan:?}").contains("hidden"));
    }

    #[test]
    fn variables_find_their_attributes() {
        for (key, value, attribute) in [
            ("location.rack", "1", "location.rack"),
            ("net.eth0.switch", "s1", "net.eth0.switch"),
            ("bmc", "10.0.0.1", "hardwaremanagement.manager"),
            ("ansible_host", "10.0.0.1", "net.ipv4_address"),
            ("ansible_host", "fe80::1", "net.ipv6_address"),
            ("ansible_host", "n1.example.com", "net.hostname"),
            ("ansible_port", "22", "custom.ansible_port"),
            ("rack", "1", "custom.rack"),
        ] {
            let mut plan = Plan::default();
            plan.set(&node("n1"), key, value.to_owned(), "$").expect(key);
            let names: Vec<_> = plan.assignments[&node("n1")].keys().map(ToString::to_string).collect();
            assert_eq!(names, [attribute]);
        }
        let mut plan = Plan::default();
        plan.set(&node("n1"), "net.hostname", "ours".to_owned(), "$").expect("a name of ours");
        plan.set(&node("n1"), "ansible_host", "theirs".to_owned(), "$").expect("a name of theirs");
        assert_eq!(plan.assignments[&node("n1")].values().collect::<Vec<_>>(), ["ours"]);
    }
}
