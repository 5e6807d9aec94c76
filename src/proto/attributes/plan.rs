//! Plans: the changes that a command on nodes and groups stands for, checked as a whole before anything is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::lineage::listed;
use super::{AttributeError, EVERYTHING, GROUPS, Owner, PRESENT, Problem, Source, check_name};
use crate::proto::name::{AttributeName, GroupName, MemberName};
use crate::proto::{noderange, schema};

/// One change of one attribute: whose, which, and its new value, or nothing to clear it.
pub type Change = (Owner, Arc<str>, Option<String>);

/// One thing to do with one attribute, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// `NAME=VALUE`; a blank value masks what would be inherited.
    Set {
        /// The attribute.
        attribute: AttributeName,
        /// Its new value.
        value: String,
    },
    /// `NAME,=ITEM`: puts items in front of the list.
    Add {
        /// The attribute.
        attribute: AttributeName,
        /// The items, in order.
        items: Vec<String>,
    },
    /// `NAME^=ITEM`: takes items out of the list.
    Remove {
        /// The attribute.
        attribute: AttributeName,
        /// The items.
        items: Vec<String>,
    },
    /// Clears every own attribute that fits; what was masked is inherited again.
    Clear {
        /// A name, or a pattern with `*`. A pattern leaves the list of groups alone.
        pattern: String,
    },
}

/// Reads `NAME=VALUE`, `NAME=`, `NAME,=ITEM,ITEM` or `NAME^=ITEM,ITEM`.
///
/// # Errors
/// [`Problem::Malformed`] without an equals sign or a name, [`Problem::NoSuchAttribute`] with the nearest name,
/// [`Problem::Sealed`] for secrets.
pub fn parse_assignment(text: &str) -> Result<Assignment, AttributeError> {
    let malformed =
        || AttributeError { entity: None, attribute: None, problem: Problem::Malformed { text: excerpt(text) } };
    let (left, value) = text.split_once('=').filter(|(left, _)| !left.is_empty()).ok_or_else(malformed)?;
    let items = || -> Result<Vec<String>, AttributeError> {
        let items: Vec<String> = value.split(',').map(|item| item.trim().to_owned()).collect();
        if items.iter().any(String::is_empty) { Err(malformed()) } else { Ok(items) }
    };
    if let Some(name) = left.strip_suffix(',') {
        Ok(Assignment::Add { attribute: check_name(name)?, items: items()? })
    } else if let Some(name) = left.strip_suffix('^') {
        Ok(Assignment::Remove { attribute: check_name(name)?, items: items()? })
    } else {
        Ok(Assignment::Set { attribute: check_name(left)?, value: value.to_owned() })
    }
}

/// Reads the name of an attribute to clear, or a pattern with `*`.
///
/// Whether it is the name of an attribute at all is for [`plan`] to see: what an older version stored can be cleared.
///
/// # Errors
/// [`Problem::Name`] when it is neither.
pub fn parse_clear(text: &str) -> Result<Assignment, AttributeError> {
    let name = schema::canonical(text);
    AttributeName::new(&name.replace('*', "x")).map_err(|error| AttributeError::of(text, error.into()))?;
    Ok(Assignment::Clear { pattern: name.to_owned() })
}

/// Returns the changes that the assignments make on nodes and groups that are defined, in order; none for values that
/// are so already.
///
/// # Errors
/// [`AttributeError`] that names the first node or group, and its attribute, that cannot be changed so.
pub fn plan(
    source: &impl Source,
    targets: &[Owner],
    assignments: &[Assignment],
) -> Result<Vec<Change>, AttributeError> {
    let mut draft = Draft::new(source);
    draft.check_clears(targets, assignments)?;
    for target in targets {
        draft.check_defined(target)?;
        for assignment in assignments {
            draft.assign(target, assignment)?;
        }
    }
    Ok(draft.changes())
}

/// Returns the changes that define nodes and groups with these attributes.
///
/// # Errors
/// [`Problem::Exists`] for the first that is defined already, and everything that [`plan`] refuses.
pub fn plan_define(
    source: &impl Source,
    targets: &[Owner],
    assignments: &[Assignment],
) -> Result<Vec<Change>, AttributeError> {
    let mut draft = Draft::new(source);
    for target in targets {
        if target.exists(source) {
            return Err(AttributeError::on(target, Problem::Exists));
        }
        draft.define(target);
    }
    draft.check_clears(targets, assignments)?;
    for target in targets {
        for assignment in assignments {
            draft.assign(target, assignment)?;
        }
    }
    Ok(draft.changes())
}

/// Returns the changes that remove nodes and groups with all their attributes; a group is taken out of the lists of
/// its nodes.
///
/// # Errors
/// [`Problem::NoSuchEntity`] for the first that is not defined, [`Problem::Everything`] for that group.
pub fn plan_remove(source: &impl Source, targets: &[Owner]) -> Result<Vec<Change>, AttributeError> {
    let mut draft = Draft::new(source);
    let mut groups = BTreeSet::new();
    for target in targets {
        draft.check_defined(target)?;
        if let Owner::Group(group) = target {
            if group.as_str() == EVERYTHING {
                return Err(AttributeError::on(target, Problem::Everything));
            }
            groups.insert(group.clone());
        }
    }
    if !groups.is_empty() {
        for node in source.nodes() {
            let mut list = listed(source.node_attribute(node, GROUPS).unwrap_or_default());
            if list.iter().any(|group| groups.contains(group)) {
                list.retain(|group| !groups.contains(group));
                draft.put_groups(&Owner::Node(node.clone()), &list);
            }
        }
    }
    for target in targets {
        draft.remove(target);
    }
    Ok(draft.changes())
}

/// Checks what changes say about managers against the members, and returns warnings.
///
/// A name among the candidates that is no member is only a warning: the member may be invited later.
///
/// # Errors
/// [`Problem::NoSuchMember`] when `collective.manager` names no member, [`Problem::Noderange`] when the candidates
/// cannot be read.
pub fn check_managers(changes: &[Change], members: &BTreeSet<MemberName>) -> Result<Vec<String>, AttributeError> {
    let mut unknown = BTreeSet::new();
    let mut checked = BTreeSet::new();
    for (entity, attribute, value) in changes {
        let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else { continue };
        if &**attribute == "collective.manager" {
            if !MemberName::new(value).is_ok_and(|name| members.contains(&name)) {
                let nearest = schema::nearest(value, members.iter().map(MemberName::as_str)).map(str::to_owned);
                let problem = Problem::NoSuchMember { member: excerpt(value), nearest };
                return Err(AttributeError::at(entity, attribute, problem));
            }
        } else if &**attribute == "collective.managercandidates" && checked.insert(value) {
            let expand = || noderange::parse(value).and_then(|parsed| noderange::expand_lenient(&parsed, members));
            let expansion = expand().map_err(|error| AttributeError::at(entity, attribute, error.into()))?;
            unknown.extend(expansion.unknown);
        }
    }
    Ok(unknown.into_iter().map(|name| format!("collective.managercandidates: there is no member {name}")).collect())
}

/// Changes in the making: what is stored, with what was decided so far laid over it.
pub(in crate::proto) struct Draft<'a, S> {
    source: &'a S,
    /// Groups that are about to be defined by others.
    known: Option<&'a BTreeSet<GroupName>>,
    changed: BTreeMap<Owner, BTreeMap<Arc<str>, Option<String>>>,
    /// Each name that occurs, once: an inventory sets the same few of many nodes.
    names: BTreeSet<Arc<str>>,
}

impl<'a, S: Source> Draft<'a, S> {
    pub(in crate::proto) fn new(source: &'a S) -> Self {
        Self { source, known: None, changed: BTreeMap::new(), names: BTreeSet::new() }
    }

    /// Takes groups as defined.
    pub(in crate::proto) fn knowing(self, groups: &'a BTreeSet<GroupName>) -> Self {
        Self { known: Some(groups), ..self }
    }

    /// Makes a node or group exist.
    pub(in crate::proto) fn define(&mut self, entity: &Owner) {
        if !entity.exists(self.source) {
            self.put(entity, PRESENT, Some("1".to_owned()));
        }
    }

    /// Removes a node or group, and clears its attributes so that they do not return with its name.
    fn remove(&mut self, entity: &Owner) {
        for (name, _) in entity.all_own(self.source) {
            self.put(entity, name, None);
        }
        // Always a change, whether or not the source shows the presence key among the attributes.
        self.put(entity, PRESENT, None);
    }

    /// Makes one assignment on one node or group.
    pub(in crate::proto) fn assign(&mut self, entity: &Owner, assignment: &Assignment) -> Result<(), AttributeError> {
        let (attribute, value) = match assignment {
            Assignment::Clear { pattern } => {
                self.clear(entity, pattern);
                return Ok(());
            }
            Assignment::Set { attribute, value } => (attribute.as_str(), value.clone()),
            Assignment::Add { attribute, items } => {
                let mut list = items.clone();
                list.extend(self.items(entity, attribute.as_str()).into_iter().filter(|item| !items.contains(item)));
                (attribute.as_str(), list.join(","))
            }
            Assignment::Remove { attribute, items } => {
                let mut list = self.items(entity, attribute.as_str());
                if attribute.as_str() == GROUPS {
                    let gone = items.iter().filter(|item| !list.contains(item));
                    gone.map(|item| self.check_group(entity, item)).collect::<Result<Vec<_>, _>>()?;
                }
                list.retain(|item| !items.contains(item));
                (attribute.as_str(), list.join(","))
            }
        };
        schema::check_value(attribute, &value)
            .map_err(|rule| AttributeError::at(entity, attribute, Problem::Value { value: excerpt(&value), rule }))?;
        match attribute {
            GROUPS if matches!(entity, Owner::Group(_)) => {
                Err(AttributeError::at(entity, attribute, Problem::Misplaced("only nodes have groups")))
            }
            GROUPS => {
                let stored = self.items(entity, GROUPS);
                for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                    // A group that was removed elsewhere meanwhile may stay in the list: it is passed over.
                    if !stored.iter().any(|group| group == word) {
                        self.check_group(entity, word)?;
                    }
                }
                self.put_groups(entity, &listed(&value));
                Ok(())
            }
            "collective.managercandidates" if !value.is_empty() => {
                noderange::parse(&value).map_err(|error| AttributeError::at(entity, attribute, error.into()))?;
                self.put(entity, attribute, Some(value));
                Ok(())
            }
            _ => {
                self.put(entity, attribute, Some(value));
                Ok(())
            }
        }
    }

    /// Returns what changes, by entity and attribute; nothing that is stored so already.
    pub(in crate::proto) fn changes(self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (entity, attributes) in self.changed {
            for (attribute, value) in attributes {
                if &*attribute == PRESENT || entity.own(self.source, &attribute) != value.as_deref() {
                    changes.push((entity.clone(), attribute, value));
                }
            }
        }
        changes
    }

    /// Returns a value as it would be after what was decided so far.
    pub(in crate::proto) fn own(&self, entity: &Owner, attribute: &str) -> Option<&str> {
        match self.changed.get(entity).and_then(|attributes| attributes.get(attribute)) {
            Some(value) => value.as_deref(),
            None => entity.own(self.source, attribute),
        }
    }

    fn put(&mut self, entity: &Owner, attribute: &str, value: Option<String>) {
        let name = match self.names.get(attribute) {
            Some(name) => name.clone(),
            None => {
                let name: Arc<str> = attribute.into();
                self.names.insert(name.clone());
                name
            }
        };
        if !self.changed.contains_key(entity) {
            self.changed.insert(entity.clone(), BTreeMap::new());
        }
        if let Some(attributes) = self.changed.get_mut(entity) {
            attributes.insert(name, value);
        }
    }

    fn put_groups(&mut self, entity: &Owner, groups: &[GroupName]) {
        let list: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
        self.put(entity, GROUPS, Some(list.join(",")).filter(|list| !list.is_empty()));
    }

    fn items(&self, entity: &Owner, attribute: &str) -> Vec<String> {
        let list = self.own(entity, attribute).unwrap_or_default();
        list.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn clear(&mut self, entity: &Owner, pattern: &str) {
        let is_pattern = pattern.contains('*');
        let mut names: BTreeSet<Arc<str>> = entity.all_own(self.source).map(|(name, _)| name.into()).collect();
        names.extend(self.changed.get(entity).into_iter().flatten().map(|(name, _)| name.clone()));
        names.retain(|name| schema::matches(pattern, name) && !schema::is_internal(name));
        for name in names.into_iter().filter(|name| !(is_pattern && &**name == GROUPS)) {
            self.put(entity, &name, None);
        }
    }

    /// A name to clear must be an attribute, or one of the targets must have it from another version.
    fn check_clears(&self, targets: &[Owner], assignments: &[Assignment]) -> Result<(), AttributeError> {
        for assignment in assignments {
            let Assignment::Clear { pattern } = assignment else { continue };
            let is_set = || targets.iter().any(|target| target.own(self.source, pattern).is_some());
            if !pattern.contains('*') && !schema::is_known(pattern) && !is_set() {
                let nearest = schema::nearest_attribute(pattern);
                return Err(AttributeError::of(pattern, Problem::NoSuchAttribute { nearest }));
            }
        }
        Ok(())
    }

    fn check_defined(&self, entity: &Owner) -> Result<(), AttributeError> {
        if entity.exists(self.source) {
            return Ok(());
        }
        let nearest = match entity {
            Owner::Node(node) => schema::nearest(node.as_str(), self.source.nodes().map(|node| node.as_str())),
            Owner::Group(group) => schema::nearest(group.as_str(), self.source.groups().map(GroupName::as_str)),
        };
        Err(AttributeError::on(entity, Problem::NoSuchEntity { nearest: nearest.map(str::to_owned) }))
    }

    /// A group that a node is put into must be defined, here or in this very plan.
    fn check_group(&self, entity: &Owner, word: &str) -> Result<(), AttributeError> {
        let is_defined = GroupName::new(word).is_ok_and(|name| {
            if self.known.is_some_and(|known| known.contains(&name)) {
                return true;
            }
            let group = Owner::Group(name);
            group.exists(self.source) || self.changed.get(&group).is_some_and(|changed| changed.contains_key(PRESENT))
        });
        if is_defined {
            return Ok(());
        }
        let nearest = schema::nearest(word, self.source.groups().map(GroupName::as_str)).map(str::to_owned);
        Err(AttributeError::at(entity, GROUPS, Problem::NoSuchGroup { group: excerpt(word), nearest }))
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Memory, group, node};
    use super::*;

    fn memory() -> Memory {
        let mut memory = Memory::default();
        let changes = plan_define(&memory, &[group("rack1"), group("rack2"), group("gpu")], &[]);
        memory.apply(&changes.expect("three groups"));
        let changes = plan_define(&memory, &[node("n1"), node("n2")], &parsed(&["groups=rack1,gpu"]));
        memory.apply(&changes.expect("two nodes"));
        memory
    }

    fn parsed(texts: &[&str]) -> Vec<Assignment> {
        texts.iter().map(|text| parse_assignment(text).expect("an assignment")).collect()
    }

    fn change(entity: Owner, attribute: &str, value: Option<&str>) -> Change {
        (entity, attribute.into(), value.map(str::to_owned))
    }

    fn refusal(result: Result<Vec<Change>, AttributeError>) -> String {
        result.expect_err("a refusal").to_string()
    }

    #[test]
    fn an_assignment_is_read_as_typed() {
        let name = |text| AttributeName::new(text).expect("a name");
        let set = |attribute, value: &str| Assignment::Set { attribute: name(attribute), value: value.to_owned() };
        assert_eq!(parse_assignment("custom.x=a=b, c"), Ok(set("custom.x", "a=b, c")));
        assert_eq!(parse_assignment("location.rack="), Ok(set("location.rack", "")));
        assert_eq!(parse_assignment("bmc=10.0.0.1"), Ok(set("hardwaremanagement.manager", "10.0.0.1")));
        assert_eq!(parse_assignment("info.note={location.u}"), Ok(set("info.note", "{location.u}")));
        let items = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(
            parse_assignment("groups,=a, b"),
            Ok(Assignment::Add { attribute: name("groups"), items: items.clone() })
        );
        assert_eq!(parse_assignment("groups^=a,b"), Ok(Assignment::Remove { attribute: name("groups"), items }));
    }

    #[test]
    fn what_is_no_assignment_is_refused_with_what_to_write() {
        for (text, message) in [
            ("location.rack", "\"location.rack\" is no assignment; write NAME=VALUE, NAME,=ITEM or NAME^=ITEM"),
            ("=x", "\"=x\" is no assignment; write NAME=VALUE, NAME,=ITEM or NAME^=ITEM"),
            ("groups,=", "\"groups,=\" is no assignment; write NAME=VALUE, NAME,=ITEM or NAME^=ITEM"),
            ("location.rak=1", "location.rak: there is no such attribute; did you mean location.rack?"),
            ("!present=1", "!present: there is no such attribute; the names of your own attributes begin with custom."),
            ("nodes=n1", "nodes: nodes list their groups: set groups,=GROUP on the nodes"),
            ("noderange=n1", "noderange: groups that follow a noderange are not supported yet"),
        ] {
            assert_eq!(parse_assignment(text).expect_err(text).to_string(), message);
        }
    }

    #[test]
    fn a_secret_is_refused_and_never_kept() {
        for text in ["secret.ipmikg=abc", "crypted.rootpassword=abc", "bmcpass=abc", "secret.other=abc"] {
            let error = parse_assignment(text).expect_err(text);
            assert_eq!(error.problem, Problem::Sealed);
            assert!(!format!("{error} {error:?}").contains("abc"), "{error:?}");
        }
    }

    #[test]
    fn a_plan_changes_every_target_and_skips_what_is_so_already() {
        let memory = memory();
        let first = plan(&memory, &[node("n1"), node("n2")], &parsed(&["location.u=1"])).expect("a plan");
        assert_eq!(first, [change(node("n1"), "location.u", Some("1")), change(node("n2"), "location.u", Some("1"))]);
        let again = plan(&memory, &[node("n1")], &parsed(&["groups=rack1,gpu", "location.u="])).expect("a plan");
        assert_eq!(again, [change(node("n1"), "location.u", Some(""))]);
    }

    #[test]
    fn one_bad_value_refuses_the_whole_plan_and_is_named() {
        let memory = memory();
        let bad = parsed(&["location.u=1", "console.logging=loud"]);
        assert_eq!(
            refusal(plan(&memory, &[node("n1")], &bad)),
            "node n1, console.logging: \"loud\" must be one of full, memory, interactive, none"
        );
        let fine = parsed(&["location.u=1"]);
        assert_eq!(refusal(plan(&memory, &[node("n1"), node("m2")], &fine)), "node m2: not defined; did you mean n2?");
        assert!(plan(&memory, &[group(EVERYTHING)], &fine).is_ok());
    }

    #[test]
    fn groups_are_put_in_front_and_taken_out() {
        let memory = memory();
        for (text, list) in [
            ("groups,=rack2", Some("rack2,rack1,gpu")),
            ("groups,=gpu", Some("gpu,rack1")),
            ("groups^=rack1", Some("gpu")),
            ("groups^=rack1,gpu", None),
            ("groups=rack2,everything,rack2", Some("rack2")),
            ("groups=", None),
        ] {
            let changes = plan(&memory, &[node("n1")], &parsed(&[text])).expect(text);
            assert_eq!(changes, [change(node("n1"), GROUPS, list)], "{text}");
        }
        assert_eq!(plan(&memory, &[node("n1")], &parsed(&["groups^=rack2"])), Ok(vec![]));
    }

    #[test]
    fn a_group_must_exist_to_be_joined_or_left() {
        let memory = memory();
        for text in ["groups=rack1,rack3", "groups,=rack3", "groups^=rack3"] {
            assert_eq!(
                refusal(plan(&memory, &[node("n1")], &parsed(&[text]))),
                "node n1, groups: there is no group rack3; did you mean rack1?"
            );
        }
        assert_eq!(
            refusal(plan(&memory, &[group("gpu")], &parsed(&["groups=rack1"]))),
            "group gpu, groups: only nodes have groups"
        );
    }

    #[test]
    fn assignments_of_one_command_build_on_one_another() {
        let memory = memory();
        let both = parsed(&["groups=rack2", "groups,=gpu", "net.hostname,=b", "net.hostname,=a"]);
        let changes = plan(&memory, &[node("n1")], &both).expect("a plan");
        assert_eq!(
            changes,
            [change(node("n1"), GROUPS, Some("gpu,rack2")), change(node("n1"), "net.hostname", Some("a,b"))]
        );
    }

    #[test]
    fn clearing_takes_a_name_or_a_pattern() {
        let mut memory = memory();
        let set = parsed(&["net.a.mtu=1", "net.b.mtu=2", "custom.x=3"]);
        let changes = plan(&memory, &[node("n1")], &set).expect("a plan");
        memory.apply(&changes);
        let clear = |text| plan(&memory, &[node("n1")], &[parse_clear(text).expect(text)]);

        assert_eq!(clear("custom.x"), Ok(vec![change(node("n1"), "custom.x", None)]));
        assert_eq!(clear("location.u"), Ok(vec![]));
        assert_eq!(
            clear("net.*"),
            Ok(vec![change(node("n1"), "net.a.mtu", None), change(node("n1"), "net.b.mtu", None)])
        );
        assert_eq!(clear("*").expect("a plan").len(), 3, "groups and presence stay");
        assert_eq!(
            refusal(clear("location.rak")),
            "location.rak: there is no such attribute; did you mean location.rack?"
        );
        assert!(parse_clear("!present").is_err() && parse_clear("a b").is_err());
    }

    #[test]
    fn defining_what_exists_is_refused() {
        let memory = memory();
        assert_eq!(refusal(plan_define(&memory, &[node("n3"), node("n1")], &[])), "node n1: defined already");
        assert_eq!(refusal(plan_define(&memory, &[group(EVERYTHING)], &[])), "group everything: defined already");
        let changes = plan_define(&memory, &[node("n3")], &parsed(&["groups=gpu"])).expect("a plan");
        assert_eq!(changes, [change(node("n3"), PRESENT, Some("1")), change(node("n3"), GROUPS, Some("gpu"))]);
    }

    #[test]
    fn removing_clears_everything_and_empties_lists() {
        let mut memory = memory();
        let changes = plan_remove(&memory, &[group("rack1"), node("n2")]).expect("a plan");
        assert_eq!(changes[0], change(node("n1"), GROUPS, Some("gpu")));
        memory.apply(&changes);

        assert_eq!(memory.nodes.len(), 1);
        assert_eq!(memory.groups.len(), 2);
        assert!(changes.contains(&change(node("n2"), GROUPS, None)), "a new n2 must not inherit the old one's groups");
        assert_eq!(refusal(plan_remove(&memory, &[group("rack1")])), "group rack1: not defined; did you mean rack2?");
        assert_eq!(refusal(plan_remove(&memory, &[group(EVERYTHING)])), "group everything: it is always there");
    }

    #[test]
    fn a_manager_must_be_a_member_and_an_unknown_candidate_is_a_warning() {
        let members = ["mgt1", "mgt2"].map(|name| MemberName::new(name).expect("a name")).into();
        let check = |text| {
            let changes = plan(&memory(), &[node("n1")], &parsed(&[text])).expect("a plan");
            check_managers(&changes, &members)
        };
        assert_eq!(check("collective.manager=mgt1"), Ok(vec![]));
        assert_eq!(check("collective.manager="), Ok(vec![]));
        assert_eq!(
            check("collective.manager=mgt3").expect_err("no member").to_string(),
            "node n1, collective.manager: there is no member mgt3; did you mean mgt1?"
        );
        assert_eq!(
            check("collective.managercandidates=mgt[1-3]"),
            Ok(vec!["collective.managercandidates: there is no member mgt3".to_owned()])
        );
        let unreadable = plan(&memory(), &[node("n1")], &parsed(&["collective.managercandidates=mgt[1"]));
        assert!(refusal(unreadable).starts_with("node n1, collective.managercandidates: "));
    }
}
