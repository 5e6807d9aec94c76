//! Writing: what a request would change, worked out and checked as a whole before anything is stored.

use std::collections::BTreeSet;
use std::time::Duration;

use super::lookups::place;
use super::managers::{DRAIN, record_ahead};
use super::refusals::{refuse_attribute, refuse_range};
use super::writes::Then;
use super::{Collective, RequestId};
use crate::proto::attributes::{self, Assignment, Owner, Source};
use crate::proto::document::{Entity, PRESENT, Put, ShardId};
use crate::proto::election::Record;
use crate::proto::name::{AttributeName, GroupName, MemberName, NodeName};
use crate::proto::noderange;
use crate::proto::request::{Done, ErrorCode, Refusal, Request, Response, Target, Wait};

/// Nodes that one write may touch without being told to.
const NODES_UNASKED_MAX: usize = 500;

/// What a request would write.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) puts: Vec<Put>,
    /// Documents in which something that was asked for may be so already.
    pub(super) unchanged: BTreeSet<ShardId>,
    pub(super) message: String,
    pub(super) notes: Vec<String>,
    pub(super) wait: Wait,
    pub(super) dry_run: bool,
}

impl Collective {
    /// Works out what a request would write; none for one that writes nothing.
    pub(super) fn plan(&self, request: &Request) -> Option<Result<Plan, Refusal>> {
        Some(match request {
            Request::SetAttributes { target, assignments, clear, wait, dry_run, yes } => self
                .plan_set(target, assignments, clear, *yes || *dry_run)
                .map(|plan| Plan { wait: *wait, dry_run: *dry_run, ..plan }),
            Request::DefineNodes { nodes, assignments } => self.plan_define(nodes, assignments, true),
            Request::DefineGroups { groups, assignments } => self.plan_define(groups, assignments, false),
            Request::RemoveNodes { nodes, dry_run, yes } => {
                self.plan_remove_nodes(nodes, *yes || *dry_run).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::RemoveGroups { groups, dry_run } => {
                self.plan_remove_groups(groups).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::Move { nodes, to, dry_run } => {
                self.plan_move(nodes, to).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::Drain { member, drain } => self.plan_drain(member, *drain),
            Request::Voters { ideal, replace_after_ms } if ideal.is_some() || replace_after_ms.is_some() => {
                Ok(self.plan_voters(*ideal, *replace_after_ms))
            }
            _ => return None,
        })
    }

    pub(super) fn carry_out(
        &mut self,
        id: RequestId,
        plan: Plan,
        within: Duration,
    ) -> Result<Option<Response>, Refusal> {
        let Plan { puts, unchanged, message, notes, wait, dry_run } = plan;
        if dry_run {
            let changes = puts.iter().filter(|put| !put.attribute.starts_with('!')).map(describe).collect();
            return Ok(Some(Response::Done(Done { message, notes, changes, dry_run, ..Done::default() })));
        }
        let response = Response::Done(Done { message, notes, ..Done::default() });
        match self.write_beside(unchanged, puts, wait, within, Then::Reply(id, Box::new(response))) {
            Ok(()) => Ok(None),
            Err(failed) => Err(failed.0),
        }
    }

    fn plan_set(&self, target: &Target, assignments: &[String], clear: &[String], yes: bool) -> Result<Plan, Refusal> {
        let owners = self.owners(target)?;
        ask_about_many(owners.len(), yes)?;
        let mut parsed = parse_all(assignments)?;
        for name in clear {
            parsed.push(attributes::parse_clear(name).map_err(|error| refuse_attribute(&error))?);
        }
        let changes =
            attributes::plan(&self.documents.ahead(), &owners, &parsed).map_err(|error| refuse_attribute(&error))?;
        let count = owners.len();
        let what = match target {
            Target::Group(group) => format!("group {group}"),
            Target::Nodes(_) => format!("{count} node{}", if count == 1 { "" } else { "s" }),
        };
        Ok(Plan { unchanged: places(&owners), ..self.plan_of(changes, format!("{what} set"))? })
    }

    fn plan_define(&self, names: &str, assignments: &[String], nodes: bool) -> Result<Plan, Refusal> {
        let parsed = noderange::parse(names).map_err(|error| refuse_range(&error))?;
        let names = noderange::expand_names(&parsed).map_err(|error| refuse_range(&error))?;
        let owners = names
            .iter()
            .map(
                |name| {
                    if nodes { NodeName::new(name).map(Owner::Node) } else { GroupName::new(name).map(Owner::Group) }
                },
            )
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Refusal::new(ErrorCode::BadData, error.to_string(), ""))?;
        let assignments = parse_all(assignments)?;
        let changes = attributes::plan_define(&self.documents.ahead(), &owners, &assignments)
            .map_err(|error| refuse_attribute(&error))?;
        let what = if nodes { "node" } else { "group" };
        let plural = if owners.len() == 1 { "" } else { "s" };
        self.plan_of(changes, format!("{} {what}{plural} defined", owners.len()))
    }

    fn plan_remove_nodes(&self, nodes: &str, yes: bool) -> Result<Plan, Refusal> {
        let owners: Vec<_> = self.nodes_of(nodes)?.into_iter().map(Owner::Node).collect();
        ask_about_many(owners.len(), yes)?;
        let changes =
            attributes::plan_remove(&self.documents.ahead(), &owners).map_err(|error| refuse_attribute(&error))?;
        let plural = if owners.len() == 1 { "" } else { "s" };
        self.plan_of(changes, format!("{} node{plural} removed", owners.len()))
    }

    fn plan_remove_groups(&self, groups: &str) -> Result<Plan, Refusal> {
        let parsed = noderange::parse(groups).map_err(|error| refuse_range(&error))?;
        let names = noderange::expand_names(&parsed).map_err(|error| refuse_range(&error))?;
        let owners = names
            .iter()
            .map(|name| GroupName::new(name).map(Owner::Group))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Refusal::new(ErrorCode::BadData, error.to_string(), ""))?;
        let changes =
            attributes::plan_remove(&self.documents.ahead(), &owners).map_err(|error| refuse_attribute(&error))?;
        let plural = if owners.len() == 1 { "" } else { "s" };
        self.plan_of(changes, format!("{} group{plural} removed", owners.len()))
    }

    fn plan_move(&self, nodes: &str, to: &MemberName) -> Result<Plan, Refusal> {
        let target = self.member_named(to)?;
        let owners: Vec<_> = self.nodes_of(nodes)?.into_iter().map(Owner::Node).collect();
        let assignment = Assignment::Set {
            attribute: AttributeName::new("collective.manager").expect("a valid name"),
            value: to.to_string(),
        };
        let mut plan = self.plan_of(
            attributes::plan(&self.documents.ahead(), &owners, &[assignment])
                .map_err(|error| refuse_attribute(&error))?,
            format!("{} node{} to be managed by {to}", owners.len(), if owners.len() == 1 { "" } else { "s" }),
        )?;
        plan.unchanged = places(&owners);
        // An order given again counts, even where a failover had overruled the same one.
        for entity in owners.iter().map(place) {
            if let Some(record) = record_ahead(&self.documents, &entity).filter(|record| record.despite.is_some()) {
                let record = Record { despite: None, to: None, ..record };
                plan.puts.push(Put { entity, attribute: Record::ATTRIBUTE.into(), value: Some(record.to_string()) });
            }
        }
        if !self.is_live(target) {
            plan.notes.push(format!("{to} is down; its nodes move to it once it is back"));
        }
        Ok(plan)
    }

    fn plan_drain(&self, name: &MemberName, drain: bool) -> Result<Plan, Refusal> {
        let member = self.member_named(name)?;
        let put = Put {
            entity: Entity::Settings,
            attribute: format!("{DRAIN}{member}").into(),
            value: drain.then(|| "1".to_owned()),
        };
        let message = if drain {
            format!("{name} hands over its nodes and takes no new ones")
        } else {
            format!("{name} may manage nodes again")
        };
        Ok(Plan { puts: vec![put], message, ..Plan::default() })
    }

    /// Makes a plan of attribute changes.
    fn plan_of(&self, changes: Vec<attributes::Change>, message: String) -> Result<Plan, Refusal> {
        let (puts, notes) = self.puts_of(changes)?;
        Ok(Plan { puts, message, notes, ..Plan::default() })
    }

    /// Turns attribute changes into puts, and says what is odd about them.
    pub(super) fn puts_of(&self, changes: Vec<attributes::Change>) -> Result<(Vec<Put>, Vec<String>), Refusal> {
        let members = self.roster.members().map(|member| member.name.clone()).collect();
        let notes = attributes::check_managers(&changes, &members).map_err(|error| refuse_attribute(&error))?;
        let mut puts: Vec<_> = changes
            .into_iter()
            .map(|(owner, attribute, value)| Put { entity: place(&owner), attribute, value })
            .collect();
        self.bury_leftovers(&mut puts);
        self.show_everything(&mut puts);
        Ok((puts, notes))
    }

    /// What is defined anew must not show what was written to its namesake in a partition, after that was removed.
    fn bury_leftovers(&self, puts: &mut Vec<Put>) {
        let new: Vec<_> = puts
            .iter()
            .filter(|put| &*put.attribute == PRESENT && put.value.is_some())
            .map(|put| put.entity.clone())
            .collect();
        let set: BTreeSet<_> = puts.iter().map(|put| (put.entity.clone(), put.attribute.clone())).collect();
        for entity in new {
            for (attribute, _) in self.documents.stored_attributes(&entity) {
                // The manager record stays: tokens must rise for the new machine of that name too.
                if attribute != Record::ATTRIBUTE && !set.contains(&(entity.clone(), attribute.into())) {
                    puts.push(Put { entity: entity.clone(), attribute: attribute.into(), value: None });
                }
            }
        }
    }

    /// The group `everything` needs no definition, but only what is present is shown.
    fn show_everything(&self, puts: &mut Vec<Put>) {
        let Ok(everything) = GroupName::new(attributes::EVERYTHING) else { return };
        let entity = Entity::Group(everything.clone());
        if puts.iter().any(|put| put.entity == entity) && !Source::group_exists(&self.documents, &everything) {
            puts.push(Put { entity, attribute: PRESENT.into(), value: Some("1".into()) });
        }
    }
}

/// Returns the documents that hold what is written of nodes and groups.
fn places(owners: &[Owner]) -> BTreeSet<ShardId> {
    owners.iter().map(|owner| place(owner).shard()).collect()
}

fn ask_about_many(nodes: usize, yes: bool) -> Result<(), Refusal> {
    if nodes > NODES_UNASKED_MAX && !yes {
        let message = format!("this would change {nodes} nodes");
        return Err(Refusal::new(ErrorCode::NeedsForce, message, "look with --dry-run, then insist with --yes"));
    }
    Ok(())
}

fn parse_all(assignments: &[String]) -> Result<Vec<Assignment>, Refusal> {
    assignments
        .iter()
        .map(|text| attributes::parse_assignment(text).map_err(|error| refuse_attribute(&error)))
        .collect()
}

fn describe(put: &Put) -> String {
    match &put.value {
        Some(value) => format!("{}: {}={value}", put.entity, put.attribute),
        None => format!("{}: {} cleared", put.entity, put.attribute),
    }
}
