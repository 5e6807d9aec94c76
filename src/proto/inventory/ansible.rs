//! Ansible: the JSON that `ansible-inventory --list` and dynamic inventory scripts print.
//!
//! Children are flattened: a node is in its groups and in all that contain them, the deepest first, as Ansible lets the
//! deeper group win; among groups of one depth the later name wins there, so it comes first here. `all` becomes the
//! group `everything`, and `ungrouped` is left away.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{InventoryError, InventoryProblem, Plan};
use crate::proto::attributes::{EVERYTHING, Owner};
use crate::proto::name::{GroupName, NodeName};

const ALL: &str = "all";
const UNGROUPED: &str = "ungrouped";
const META: &str = "_meta";

/// Memberships of nodes and groups in groups, in the largest inventory.
const MEMBERSHIPS_MAX: usize = 2_000_000;

/// One group as it is written.
#[derive(Default)]
struct Group<'a> {
    hosts: Vec<(&'a str, String)>,
    children: Vec<&'a str>,
    vars: Option<&'a Map<String, Value>>,
}

/// Reads an Ansible inventory.
///
/// # Errors
/// [`InventoryError`] with the JSON path of what cannot be taken in.
pub fn parse_ansible(text: &str) -> Result<Plan, InventoryError> {
    let mut document = members(read(text, "$")?, "$")?;
    // Most of an inventory is in here. It is read host by host at the end, so that there is never all of it twice.
    let meta = document.remove(META);
    let document = read_all(document)?;
    let groups = read_groups(&document)?;
    let depths = depths(&groups)?;
    let mut plan = Plan::default();
    for (name, group) in &groups {
        let path = member("$", name);
        for (host, place) in &group.hosts {
            plan.add_node(host, place)?;
        }
        let entity = match *name {
            ALL => EVERYTHING,
            UNGROUPED if group.vars.is_some() => {
                plan.warn(&member(&path, "vars"), "left out: there is no group for nodes without one");
                continue;
            }
            UNGROUPED => continue,
            name => name,
        };
        let entity = GroupName::new(entity).map_err(|error| InventoryError::at(&path, error))?;
        if entity.as_str() != EVERYTHING {
            plan.groups.insert(entity.clone());
        }
        if let Some(vars) = group.vars {
            set_all(&mut plan, &Owner::Group(entity), vars.clone(), &member(&path, "vars"))?;
        }
    }
    join_groups(&mut plan, &groups, &depths)?;
    if let Some(meta) = meta {
        read_host_variables(&mut plan, meta)?;
    }
    Ok(plan)
}

/// Reads each part of the document, but for the variables of hosts.
fn read_all(document: BTreeMap<String, &RawValue>) -> Result<Map<String, Value>, InventoryError> {
    let part = |(name, part): (String, &RawValue)| {
        let value = read(part.get(), &member("$", &name))?;
        Ok((name, value))
    };
    document.into_iter().map(part).collect()
}

fn read_groups(document: &Map<String, Value>) -> Result<BTreeMap<&str, Group<'_>>, InventoryError> {
    let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    for (name, value) in document {
        let path = member("$", name);
        // The oldest form of a group is a plain list of hosts.
        let group = if value.is_array() {
            Group { hosts: names(value, &path)?, ..Group::default() }
        } else {
            let fields = object(value, &path)?;
            let list = |field: &str| match fields.get(field) {
                Some(value) => names(value, &member(&path, field)),
                None => Ok(Vec::new()),
            };
            let vars = fields.get("vars").map(|vars| object(vars, &member(&path, "vars"))).transpose()?;
            let children = list("children")?.into_iter().map(|(name, _)| name).collect();
            Group { hosts: list("hosts")?, children, vars }
        };
        groups.insert(name, group);
    }
    // A child may be named without being described.
    let named: Vec<&str> = groups.values().flat_map(|group| group.children.iter().copied()).collect();
    for name in named {
        groups.entry(name).or_default();
    }
    Ok(groups)
}

/// Returns how deep each group is below `all`: one more than the deepest group that contains it.
fn depths<'a>(groups: &BTreeMap<&'a str, Group<'a>>) -> Result<BTreeMap<&'a str, usize>, InventoryError> {
    let mut containers: BTreeMap<&str, usize> = groups.keys().map(|name| (*name, 0)).collect();
    for child in groups.values().flat_map(|group| &group.children) {
        *containers.entry(child).or_default() += 1;
    }
    // Kahn's order: a group is done when all that contain it are; what is left contains itself.
    let mut ready: Vec<&str> = containers.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    while let Some(name) = ready.pop() {
        let depth = *depths.entry(name).or_default();
        containers.remove(name);
        for child in groups.get(name).into_iter().flat_map(|group| &group.children) {
            let below = depths.entry(child).or_default();
            *below = (*below).max(depth + 1);
            if let Some(count) = containers.get_mut(child) {
                *count -= 1;
                if *count == 0 {
                    ready.push(child);
                }
            }
        }
    }
    match cycle(groups, &containers) {
        Some((name, through)) => {
            let problem = InventoryProblem::Cycle(through.to_owned());
            Err(InventoryError::at(member(&member("$", name), "children"), problem))
        }
        None => Ok(depths),
    }
}

/// Returns a group that contains itself, and by which child, from the groups that are no way down from a top one.
fn cycle<'a>(groups: &BTreeMap<&'a str, Group<'a>>, left: &BTreeMap<&'a str, usize>) -> Option<(&'a str, &'a str)> {
    let mut container: BTreeMap<&str, &str> = BTreeMap::new();
    for name in left.keys() {
        container.extend(groups.get(name).into_iter().flat_map(|group| &group.children).map(|child| (*child, *name)));
    }
    // Each of them is in one of them, so that many steps up must end on a cycle.
    let mut name = *left.keys().next()?;
    for _ in left {
        name = container.get(name)?;
    }
    Some((container.get(name)?, name))
}

/// Puts every node into its groups and into those that contain them.
///
/// # Errors
/// [`InventoryProblem::TooMany`] when nesting multiplies a short inventory into more than [`MEMBERSHIPS_MAX`].
fn join_groups(
    plan: &mut Plan,
    groups: &BTreeMap<&str, Group<'_>>,
    depths: &BTreeMap<&str, usize>,
) -> Result<(), InventoryError> {
    let mut memberships = 0;
    let mut spend = |count: usize| {
        memberships += count;
        let too_many = InventoryProblem::TooMany("memberships of groups", MEMBERSHIPS_MAX);
        if memberships > MEMBERSHIPS_MAX { Err(InventoryError::at("$", too_many)) } else { Ok(()) }
    };
    let mut above: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut by_depth: Vec<(&str, usize)> = depths.iter().map(|(name, depth)| (*name, *depth)).collect();
    by_depth.sort_unstable_by_key(|(_, depth)| *depth);
    for (name, _) in by_depth {
        let mut own = above.get(name).cloned().unwrap_or_default();
        own.insert(name);
        for child in groups.get(name).into_iter().flat_map(|group| &group.children) {
            spend(own.len())?;
            above.entry(child).or_default().extend(own.iter().copied());
        }
        above.insert(name, own);
    }
    let mut joined: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, group) in groups {
        let above = above.get(name).into_iter().flatten();
        for (host, _) in &group.hosts {
            spend(above.clone().count())?;
            joined.entry(host).or_default().extend(above.clone());
        }
    }
    for (host, names) in joined {
        let mut names: Vec<&str> =
            names.into_iter().filter(|name| ![ALL, UNGROUPED, EVERYTHING].contains(name)).collect();
        names.sort_unstable_by_key(|name| std::cmp::Reverse((depths.get(name), *name)));
        if let Some(list) = NodeName::new(host).ok().and_then(|node| plan.nodes.get_mut(&node)) {
            *list = names.into_iter().filter_map(|name| GroupName::new(name).ok()).collect();
        }
    }
    Ok(())
}

fn read_host_variables(plan: &mut Plan, meta: &RawValue) -> Result<(), InventoryError> {
    let path = member("$", META);
    let Some(variables) = members(meta, &path)?.remove("hostvars") else { return Ok(()) };
    let path = member(&path, "hostvars");
    for (host, vars) in members(variables, &path)? {
        let path = member(&path, &host);
        let node = plan.add_node(&host, &path)?;
        set_all(plan, &Owner::Node(node), read(object_text(vars, &path)?, &path)?, &path)?;
    }
    Ok(())
}

fn set_all(plan: &mut Plan, entity: &Owner, vars: Map<String, Value>, path: &str) -> Result<(), InventoryError> {
    for (key, value) in vars {
        let place = member(path, &key);
        let value = match value {
            // Ansible's null says that there is no value.
            Value::Null => continue,
            Value::Object(fields) if fields.contains_key("__ansible_vault") => {
                plan.warn(&place, "left out: secrets are not supported yet");
                continue;
            }
            Value::String(text) => text,
            // Compact JSON, which is also how numbers and truth values are written.
            other => other.to_string(),
        };
        plan.set(entity, &key, value, &place)?;
    }
    Ok(())
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, InventoryError> {
    value.as_object().ok_or_else(|| InventoryError::at(path, InventoryProblem::Expected("an object")))
}

/// Returns the members of an object, each still as it is written. The last of a name counts.
fn members<'a>(value: &'a RawValue, path: &str) -> Result<BTreeMap<String, &'a RawValue>, InventoryError> {
    read(object_text(value, path)?, path)
}

/// Returns the text of an object.
fn object_text<'a>(value: &'a RawValue, path: &str) -> Result<&'a str, InventoryError> {
    let text = value.get();
    if text.starts_with('{') {
        Ok(text)
    } else {
        Err(InventoryError::at(path, InventoryProblem::Expected("an object")))
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str, path: &str) -> Result<T, InventoryError> {
    serde_json::from_str(text).map_err(|error| InventoryError::at(path, InventoryProblem::Format(error.to_string())))
}

/// Reads a list of names; each comes with its path. An object's keys will do, as in the YAML form.
fn names<'a>(value: &'a Value, path: &str) -> Result<Vec<(&'a str, String)>, InventoryError> {
    if let Some(fields) = value.as_object() {
        return Ok(fields.keys().map(|name| (name.as_str(), member(path, name))).collect());
    }
    let items = value.as_array().ok_or_else(|| InventoryError::at(path, InventoryProblem::Expected("a list")))?;
    let name = |(index, item): (usize, &'a Value)| {
        let place = format!("{path}[{index}]");
        match item.as_str() {
            Some(name) => Ok((name, place)),
            None => Err(InventoryError::at(place, InventoryProblem::Expected("a name"))),
        }
    };
    items.iter().enumerate().map(name).collect()
}

/// Returns the path of a member of an object: `$.web`, `$["web.1"]`.
fn member(path: &str, name: &str) -> String {
    let name: String = name.chars().take(80).collect();
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        format!("{path}.{name}")
    } else {
        format!("{path}[{name:?}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::attributes::testing::{group, node};

    fn plan(text: &str) -> Plan {
        parse_ansible(text).expect("an inventory")
    }

    fn refusal(text: &str) -> String {
        parse_ansible(text).expect_err("a refusal").to_string()
    }

    fn groups(plan: &Plan, name: &str) -> String {
        let groups = &plan.nodes[&NodeName::new(name).expect("a name")];
        groups.iter().map(GroupName::as_str).collect::<Vec<_>>().join(",")
    }

    fn values(plan: &Plan, entity: &Owner) -> Vec<String> {
        plan.assignments[entity].iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn children_are_flattened_and_the_deepest_group_comes_first() {
        let plan = plan(
            r#"{
                "all": {"children": ["ungrouped", "site", "web", "db"]},
                "site": {"children": ["row1"]},
                "row1": {"children": ["rack1"], "hosts": ["n3"]},
                "rack1": {"hosts": ["n1", "n2"]},
                "web": {"hosts": ["n1"]},
                "db": ["n1", "n4"],
                "ungrouped": {"hosts": ["n5"]}
            }"#,
        );
        assert_eq!(groups(&plan, "n1"), "rack1,row1,web,site,db");
        assert_eq!(groups(&plan, "n2"), "rack1,row1,site");
        assert_eq!(groups(&plan, "n3"), "row1,site");
        assert_eq!(groups(&plan, "n5"), "");
        let names: Vec<_> = plan.groups.iter().map(GroupName::as_str).collect();
        assert_eq!(names, ["db", "rack1", "row1", "site", "web"]);
    }

    #[test]
    fn variables_go_to_nodes_groups_and_everything() {
        let plan = plan(
            r#"{
                "all": {"vars": {"ntp.servers": "10.0.0.1"}},
                "rack1": {"hosts": ["n1"], "vars": {"location.rack": 1, "tags": ["a", {"b": null}]}},
                "ungrouped": {"vars": {"x": 1}},
                "_meta": {"hostvars": {
                    "n1": {"up": true, "none": null, "ansible_host": "10.1.0.1", "pw": {"__ansible_vault": "x"}},
                    "n2": {"odd name": 1}
                }}
            }"#,
        );
        assert_eq!(values(&plan, &group("everything")), ["ntp.servers=10.0.0.1"]);
        assert_eq!(values(&plan, &group("rack1")), ["custom.tags=[\"a\",{\"b\":null}]", "location.rack=1"]);
        assert_eq!(values(&plan, &node("n1")), ["custom.up=true", "net.ipv4_address=10.1.0.1"]);
        assert_eq!(plan.nodes.len(), 2, "a node of hostvars alone is a node");
        assert_eq!(
            plan.warnings,
            [
                "$.ungrouped.vars: left out: there is no group for nodes without one",
                "$._meta.hostvars.n1.pw: left out: secrets are not supported yet",
                "$._meta.hostvars.n2[\"odd name\"]: left out: the name cannot be an attribute's",
            ]
        );
    }

    #[test]
    fn an_error_names_its_json_path() {
        for (text, message) in [
            ("[]", "$: an object expected"),
            (r#"{"web": 1}"#, "$.web: an object expected"),
            (r#"{"web": {"hosts": 1}}"#, "$.web.hosts: a list expected"),
            (r#"{"web": {"hosts": ["n1", 2]}}"#, "$.web.hosts[1]: a name expected"),
            (r#"{"_meta": {"hostvars": {"n1": []}}}"#, "$._meta.hostvars.n1: an object expected"),
            (
                r#"{"web": {"hosts": ["n1"], "vars": {"console.logging": "loud"}}}"#,
                "$.web.vars[\"console.logging\"]: console.logging: \"loud\" must be one of full, memory, interactive, none",
            ),
            (
                r#"{"a": {"children": ["b"]}, "b": {"children": ["a"]}}"#,
                "$.b.children: the group contains itself, by way of a",
            ),
            (r#"{"a": {"children": ["a"]}}"#, "$.a.children: the group contains itself, by way of a"),
        ] {
            assert_eq!(refusal(text), message);
        }
        assert!(refusal("{").starts_with("$: EOF"), "{}", refusal("{"));
        let torn = refusal("{\n\"_meta\": {\"hostvars\": {\"n1\": {\"a\" 1}}}}");
        assert_eq!(torn, "$: expected `:` at line 2 column 35", "where it is in the file");
        let deep =
            format!("{{\"_meta\": {{\"hostvars\": {{\"n1\": {{\"a\": {}}}}}}}}}", "[".repeat(200) + &"]".repeat(200));
        assert!(refusal(&deep).starts_with("$._meta.hostvars.n1: recursion limit exceeded"), "{}", refusal(&deep));
        assert!(
            refusal(r#"{"web": {"hosts": ["a b"]}}"#).starts_with("$.web.hosts[0]: \"a b\" is not a valid node name")
        );
        assert!(refusal(r#"{"a b": {}}"#).starts_with("$[\"a b\"]: \"a b\" is not a valid group name"));
    }

    #[test]
    fn a_short_inventory_cannot_ask_for_much() {
        let list = |prefix: &str| (0..3_000).map(|n| format!("\"{prefix}{n}\"")).collect::<Vec<_>>().join(",");
        let tops: String = (0..3_000).map(|n| format!("\"a{n}\": {{\"children\": [\"hub\"]}},")).collect();
        let text = format!("{{{tops} \"hub\": {{\"children\": [{}]}}}}", list("b"));
        assert_eq!(refusal(&text), "$: more than 2000000 memberships of groups");
    }
}
