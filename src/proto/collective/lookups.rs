//! Reading: nodes, groups, attributes and managers, as requests ask for them.

use std::collections::BTreeMap;

use super::Collective;
use super::refusals::{refuse_attribute, refuse_range};
use crate::proto::attributes::{self, Effective, Origin, Owner, Source};
use crate::proto::document::{self, Actor, Entity};
use crate::proto::election::Expressions;
use crate::proto::name::{AttributeName, GroupName, NodeName};
use crate::proto::noderange;
use crate::proto::request::{
    AttributeValue, Attributes, Conflict, Conflicts, EntityAttributes, ErrorCode, GroupSummary, Groups, Managers,
    Refusal, Standing, Target,
};
use crate::proto::schema;

impl Collective {
    pub(super) fn nodes_of(&self, expression: &str) -> Result<Vec<NodeName>, Refusal> {
        let parsed = noderange::parse(expression).map_err(|error| refuse_range(&error))?;
        let universe = attributes::Nodes::new(&self.documents);
        let found = noderange::expand(&parsed, &universe).map_err(|error| refuse_range(&error))?;
        Ok(found.iter().filter_map(|name| NodeName::new(name).ok()).collect())
    }

    pub(super) fn nodes_or_all(&self, expression: Option<&str>) -> Result<Vec<NodeName>, Refusal> {
        match expression {
            Some(expression) => self.nodes_of(expression),
            None => Ok(self.documents.nodes().cloned().collect()),
        }
    }

    pub(super) fn owners(&self, target: &Target) -> Result<Vec<Owner>, Refusal> {
        match target {
            Target::Nodes(expression) => Ok(self.nodes_of(expression)?.into_iter().map(Owner::Node).collect()),
            Target::Group(group) if attributes::group_exists(&self.documents, group) => {
                Ok(vec![Owner::Group(group.clone())])
            }
            Target::Group(group) => {
                let nearest = schema::nearest(group.as_str(), self.documents.groups().map(GroupName::as_str));
                let hint =
                    nearest.map_or_else(|| "collective group list".to_owned(), |name| format!("did you mean {name}?"));
                Err(Refusal::new(ErrorCode::NotFound, format!("there is no group {group}"), hint))
            }
        }
    }

    pub(super) fn attributes(&self, target: &Target, names: &[String], blame: bool) -> Result<Attributes, Refusal> {
        let quorate = self.standing == Standing::Seated;
        let mut nodes = Vec::new();
        for owner in self.owners(target)? {
            let mut values = BTreeMap::new();
            let all = match &owner {
                Owner::Node(node) => attributes::effective_all(&self.documents, node),
                Owner::Group(group) => self
                    .documents
                    .group_attributes(group)
                    .filter(|(name, _)| !schema::is_internal(name))
                    .map(|(name, value)| (name, Effective { value, from: Origin::Own }))
                    .collect(),
            };
            for (name, effective) in all {
                let Ok(name) = AttributeName::new(name) else { continue };
                if names.is_empty() || names.iter().any(|pattern| schema::matches(pattern, name.as_str())) {
                    let from = match &effective.from {
                        Origin::Own => None,
                        Origin::Group(group) => Some(group.clone()),
                    };
                    let place = from.as_ref().map_or_else(|| place(&owner), |group| Entity::Group(group.clone()));
                    let author = blame.then(|| self.documents.author(&place, name.as_str())).flatten();
                    let value = AttributeValue {
                        value: Some(effective.value.to_owned()),
                        inherited_from: from,
                        written_by: author.map(|(actor, _)| self.author_name(actor)),
                        written_at: author.map(|(_, time)| super::answers::time_text(time)),
                    };
                    values.insert(name, value);
                }
            }
            // A known attribute without a value is shown as such when it was asked for by name.
            for name in names.iter().filter(|name| !name.contains('*')) {
                let name = attributes::check_name(name).map_err(|error| refuse_attribute(&error))?;
                values.entry(name).or_default();
            }
            nodes.push(EntityAttributes { node: owner_name(&owner), attributes: values });
        }
        Ok(Attributes {
            schema: Default::default(),
            stale: !quorate,
            stale_for_ms: self
                .isolated_since
                .filter(|_| !quorate)
                .map(|since| super::answers::millis(self.now.boot.since(since))),
            nodes,
        })
    }

    pub(super) fn author_name(&self, actor: Actor) -> String {
        self.roster
            .ids()
            .chain(self.roster.removed_ids())
            .find(|id| document::actor_prefix(*id) == actor.prefix())
            .map_or_else(|| actor.to_string(), |id| self.name_of(id).to_string())
    }

    pub(super) fn conflicts(&self, nodes: Option<&str>) -> Result<Conflicts, Refusal> {
        let mut conflicts = Vec::new();
        for node in self.nodes_or_all(nodes)? {
            let entity = Entity::Node(node.clone());
            let names: Vec<_> = self
                .documents
                .entity(&entity)
                .into_iter()
                .flatten()
                .map(|(name, _)| name.to_owned())
                .filter(|name| !name.starts_with('!'))
                .collect();
            for attribute in names {
                let versions = self.documents.conflicts(&entity, &attribute);
                if versions.len() > 1 {
                    let values = versions
                        .into_iter()
                        .map(|version| AttributeValue {
                            value: Some(version.value),
                            inherited_from: None,
                            written_by: Some(self.author_name(version.actor)),
                            written_at: Some(super::answers::time_text(version.time)),
                        })
                        .collect();
                    conflicts.push(Conflict { node: node.to_string(), attribute, values });
                }
            }
        }
        Ok(Conflicts { schema: Default::default(), conflicts })
    }

    pub(super) fn groups(&self) -> Groups {
        let mut counts: BTreeMap<GroupName, usize> = self.documents.groups().map(|group| (group.clone(), 0)).collect();
        for node in self.documents.nodes() {
            for group in attributes::groups_of(&self.documents, node) {
                *counts.entry(group).or_default() += 1;
            }
        }
        Groups {
            schema: Default::default(),
            groups: counts.into_iter().map(|(group, nodes)| GroupSummary { group, nodes }).collect(),
        }
    }

    pub(super) fn managers_of(&self, nodes: Option<&str>, why: bool) -> Result<Managers, Refusal> {
        let electorate = self.electorate();
        let mut expressions = Expressions::default();
        Ok(Managers {
            schema: Default::default(),
            stale: self.standing != Standing::Seated,
            nodes: self
                .nodes_or_all(nodes)?
                .iter()
                .map(|node| self.manager_status(node, why, &electorate, &mut expressions))
                .collect(),
        })
    }
}

/// Returns where the attributes of a node or group are stored.
pub(super) fn place(owner: &Owner) -> Entity {
    match owner {
        Owner::Node(node) => Entity::Node(node.clone()),
        Owner::Group(group) => Entity::Group(group.clone()),
    }
}

fn owner_name(owner: &Owner) -> String {
    match owner {
        Owner::Node(node) => node.to_string(),
        Owner::Group(group) => group.to_string(),
    }
}

/// Returns the shortest noderange of these nodes.
pub(super) fn fold(nodes: &[NodeName]) -> String {
    noderange::fold(nodes.iter().map(NodeName::as_str))
}
