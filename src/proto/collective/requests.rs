//! Requests of administrators: answered from this member's view, refused, or turned into writes and changes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::changes::Origin;
use super::managers::{DRAIN, record_of};
use super::writes::{Then, done};
use super::{Collective, Deferred, RequestId};
use crate::proto::attributes::{
    self, Assignment, AttributeError, Effective, Entity as Owner, Origin as From, Problem, Source,
};
use crate::proto::document::{Entity, PRESENT, Put};
use crate::proto::election::{Expressions, Record};
use crate::proto::identity::{Fingerprint, MemberId};
use crate::proto::inventory;
use crate::proto::invite::InviteTerms;
use crate::proto::name::{AttributeName, GroupName, MemberName, NodeName};
use crate::proto::noderange::{self, NoderangeError, NoderangeProblem};
use crate::proto::request::{
    AttributeValue, Attributes, Conflict, Conflicts, Done, EntityAttributes, ErrorCode, GroupSummary, Groups,
    ImportFormat, Managers, Needs, Nodes, Refusal, Request, Response, Standing, Target, Wait,
};
use crate::proto::roster::{Change, Role, RosterError};
use crate::proto::schema;

/// Nodes that one write may touch without being told to.
const NODES_UNASKED_MAX: usize = 500;

type Answer = Result<Response, Refusal>;

impl Collective {
    pub(super) fn on_request(&mut self, id: RequestId, request: Request, within: Duration, entropy: Box<[u8; 40]>) {
        if self.changing_over.is_some() && request.needs() != Needs::Nothing {
            self.deferred.push(Deferred { id, request, until: self.now.boot + within, entropy });
            return;
        }
        if let Err(refusal) = self.may(&request) {
            self.reply(id, refusal);
            return;
        }
        let now = match request {
            // What is decided, invited, run or probed is answered later.
            Request::Ping { member } => self.ask_ping(id, &member, within),
            Request::Invite { name, role, ttl_ms, uses } => {
                self.invite(id, InviteTerms { name, role, ttl: Duration::from_millis(ttl_ms), uses }, &entropy);
                return;
            }
            Request::RevokeInvite { name } => {
                self.revoke_invite(id, &name);
                return;
            }
            Request::Leave => self.ask_leave(id),
            Request::Delete { member, force, dry_run } => self.ask_delete(id, &member, force, dry_run),
            Request::SetRole { member, role } => self.ask_role(id, &member, role),
            Request::Run { nodes, action, arguments } => self.nodes_of(&nodes).map(|nodes| {
                self.run(id, nodes, action, arguments, within);
                None
            }),
            other => match self.plan(&other) {
                Some(planned) => planned.and_then(|plan| self.carry_out(id, plan, within)),
                None => self.look_up(&other).map(Some),
            },
        };
        match now {
            Ok(Some(response)) => self.reply(id, response),
            Ok(None) => {}
            Err(refusal) => self.reply(id, refusal),
        }
    }

    /// Takes up what came in while the first grants under a new roster were on their way.
    pub(super) fn take_up_deferred(&mut self) {
        for Deferred { id, request, until, entropy } in std::mem::take(&mut self.deferred) {
            self.on_request(id, request, until.since(self.now.boot), entropy);
        }
    }

    /// The table "Without quorum": what needs a seat is refused before anything is stored.
    fn may(&self, request: &Request) -> Result<(), Refusal> {
        if request.needs() == Needs::Nothing {
            return Ok(());
        }
        // R5: asked at this very moment; what `settle` found last may be older than the lease.
        if !self.is_quorate(self.now.boot) {
            return Err(self.no_quorum());
        }
        if self.standing != Standing::Seated || self.stopping.is_some() {
            return Err(Refusal::new(
                ErrorCode::TryAgain,
                "this member has quorum, but is still resyncing its documents",
                "try again in a moment; look with `collective status`",
            ));
        }
        Ok(())
    }

    /// Answers what changes nothing.
    fn look_up(&self, request: &Request) -> Answer {
        Ok(match request {
            Request::Show => Response::Show(self.show()),
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Members { expression } => {
                let only = expression.as_deref().map(|text| self.members_of(text)).transpose()?;
                Response::Members(self.members(only.as_deref()))
            }
            Request::View => Response::View(self.view()),
            Request::Quorum { without } => {
                let without = without.as_deref().map(|text| self.members_of(text)).transpose()?.unwrap_or_default();
                Response::Quorum(self.quorum_report(&without))
            }
            Request::Invites => Response::Invites(self.pending_invites()),
            Request::Attributes { target, names, blame, .. } => {
                Response::Attributes(self.attributes(target, names, *blame)?)
            }
            Request::Conflicts { nodes } => Response::Conflicts(self.conflicts(nodes.as_deref())?),
            Request::ListNodes { nodes, .. } => {
                let nodes = self.nodes_or_all(nodes.as_deref())?;
                Response::Nodes(Nodes { schema: Default::default(), folded: fold(&nodes), nodes })
            }
            Request::Expand { expression, .. } => {
                let nodes = self.nodes_of(expression)?;
                Response::Nodes(Nodes { schema: Default::default(), folded: fold(&nodes), nodes })
            }
            Request::ListGroups { .. } => Response::Groups(self.groups()),
            Request::Managers { nodes, why } => Response::Managers(self.managers_of(nodes.as_deref(), *why)?),
            Request::Events { after, kinds, limit } => Response::Events(self.events(*after, kinds, *limit)),
            _ => {
                return Err(Refusal::new(
                    ErrorCode::Internal,
                    "this request reached a member that cannot serve it",
                    "bring all members and the command line to the same version",
                ));
            }
        })
    }

    // ---- Members ----

    fn ask_ping(&mut self, id: RequestId, name: &MemberName, within: Duration) -> Result<Option<Response>, Refusal> {
        let member = self.member_named(name)?;
        if member != self.me && !self.links.contains_key(&member) {
            let why = self.trouble.get(&member).cloned().unwrap_or_else(|| "there is no link to it".into());
            let hint = "look with `collective members`";
            return Err(Refusal::new(ErrorCode::Failure, format!("{name} cannot be reached: {why}"), hint));
        }
        self.ping(id, member, within);
        Ok(None)
    }

    fn ask_leave(&mut self, id: RequestId) -> Result<Option<Response>, Refusal> {
        if self.roster.len() == 1 {
            let message = "this member is the only one; there is no collective to leave";
            return Err(Refusal::new(ErrorCode::Usage, message, "collective show"));
        }
        self.cease_all();
        self.holder.release_all(self.now.boot);
        let change = Change::Remove { id: self.me };
        let me = self.name_of(self.me);
        self.want_change(change, Origin::Request(id, format!("{me} left the collective")));
        Ok(None)
    }

    fn ask_delete(
        &mut self,
        id: RequestId,
        name: &MemberName,
        force: bool,
        dry_run: bool,
    ) -> Result<Option<Response>, Refusal> {
        let member = self.member_named(name)?;
        if member == self.me {
            let message = "a member cannot delete itself";
            return Err(Refusal::new(ErrorCode::Usage, message, "to take this member out: collective leave"));
        }
        let change = Change::Remove { id: member };
        if let Err(error) = self.roster.next(&change, self.wall()) {
            return Err(refuse_change(&change, &error));
        }
        if dry_run {
            let voters = self.voters.len() - usize::from(self.voters.contains(&member));
            let changes = vec![format!("{name} is taken off the roster for good; {voters} voters stay")];
            let message = format!("{name} would be deleted");
            return Ok(Some(Response::Done(Done { message, changes, dry_run: true, ..Done::default() })));
        }
        if self.is_live(member) && !force {
            let message = format!("{name} is alive; deleting it is final and it would have to be invited again");
            return Err(Refusal::new(ErrorCode::NeedsForce, message, format!("collective delete {name} --force")));
        }
        self.want_change(change, Origin::Request(id, format!("{name} is deleted")));
        Ok(None)
    }

    fn ask_role(&mut self, id: RequestId, name: &MemberName, role: Role) -> Result<Option<Response>, Refusal> {
        let member = self.member_named(name)?;
        let change = Change::SetRole { id: member, role };
        match self.roster.next(&change, self.wall()) {
            Ok(_) => {
                self.want_change(change, Origin::Request(id, format!("{name} is {role} now")));
                Ok(None)
            }
            Err(RosterError::NoChange) => Ok(Some(done(format!("{name} is {role} already")))),
            Err(error) => Err(refuse_change(&change, &error)),
        }
    }

    /// Accepts a second key of this member; the shell made it.
    pub(super) fn on_rotate(&mut self, id: RequestId, fingerprint: Fingerprint) {
        if !self.is_quorate(self.now.boot) || self.standing != Standing::Seated {
            let refusal = self.no_quorum();
            self.reply(id, refusal);
            return;
        }
        let change = Change::AddFingerprint { id: self.me, fingerprint };
        self.want_change(change, Origin::Request(id, "Certificate generated successfully".into()));
    }

    fn member_named(&self, name: &MemberName) -> Result<MemberId, Refusal> {
        self.roster.by_name(name).map(|member| member.id).ok_or_else(|| {
            let names: Vec<_> = self.roster.members().into_iter().map(|member| member.name.to_string()).collect();
            let nearest = schema::nearest(name.as_str(), names.iter().map(String::as_str));
            let hint =
                nearest.map_or_else(|| "collective members".to_owned(), |nearest| format!("did you mean {nearest}?"));
            Refusal::new(ErrorCode::NotFound, format!("there is no member {name}"), hint)
        })
    }

    fn members_of(&self, expression: &str) -> Result<Vec<MemberName>, Refusal> {
        let names: BTreeSet<_> = self.roster.members().into_iter().map(|member| member.name.clone()).collect();
        let parsed = noderange::parse(expression).map_err(|error| refuse_range(&error))?;
        let found = noderange::expand(&parsed, &names).map_err(|error| refuse_range(&error))?;
        Ok(found.iter().filter_map(|name| MemberName::new(name).ok()).collect())
    }

    // ---- Nodes, groups and attributes: reading ----

    fn nodes_of(&self, expression: &str) -> Result<Vec<NodeName>, Refusal> {
        let parsed = noderange::parse(expression).map_err(|error| refuse_range(&error))?;
        let universe = attributes::Nodes::new(&self.documents);
        let found = noderange::expand(&parsed, &universe).map_err(|error| refuse_range(&error))?;
        Ok(found.iter().filter_map(|name| NodeName::new(name).ok()).collect())
    }

    fn nodes_or_all(&self, expression: Option<&str>) -> Result<Vec<NodeName>, Refusal> {
        match expression {
            Some(expression) => self.nodes_of(expression),
            None => Ok(self.documents.nodes().cloned().collect()),
        }
    }

    fn owners(&self, target: &Target) -> Result<Vec<Owner>, Refusal> {
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

    fn attributes(&self, target: &Target, names: &[String], blame: bool) -> Result<Attributes, Refusal> {
        let quorate = self.standing == Standing::Seated;
        let mut nodes = Vec::new();
        for owner in self.owners(target)? {
            let mut values = std::collections::BTreeMap::new();
            let all = match &owner {
                Owner::Node(node) => attributes::effective_all(&self.documents, node),
                Owner::Group(group) => self
                    .documents
                    .group_attributes(group)
                    .filter(|(name, _)| !schema::is_internal(name))
                    .map(|(name, value)| (name, Effective { value, from: From::Own }))
                    .collect(),
            };
            for (name, effective) in all {
                let Ok(name) = AttributeName::new(name) else { continue };
                if names.is_empty() || names.iter().any(|pattern| schema::matches(pattern, name.as_str())) {
                    let from = match &effective.from {
                        From::Own => None,
                        From::Group(group) => Some(group.clone()),
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

    fn author_name(&self, actor: crate::proto::document::Actor) -> String {
        self.roster
            .ids()
            .chain(self.roster.removed_ids())
            .find(|id| crate::proto::document::actor_prefix(*id) == actor.prefix())
            .map_or_else(|| actor.to_string(), |id| self.name_of(id).to_string())
    }

    fn conflicts(&self, nodes: Option<&str>) -> Result<Conflicts, Refusal> {
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

    fn groups(&self) -> Groups {
        let mut counts: std::collections::BTreeMap<GroupName, usize> =
            self.documents.groups().map(|group| (group.clone(), 0)).collect();
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

    fn managers_of(&self, nodes: Option<&str>, why: bool) -> Result<Managers, Refusal> {
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

    // ---- Nodes, groups and attributes: writing ----

    /// Works out what a request would write; none for one that writes nothing.
    fn plan(&self, request: &Request) -> Option<Result<Plan, Refusal>> {
        Some(match request {
            Request::SetAttributes { target, assignments, clear, wait, dry_run, yes } => self
                .plan_set(target, assignments, clear, *yes)
                .map(|plan| Plan { wait: *wait, dry_run: *dry_run, ..plan }),
            Request::DefineNodes { nodes, assignments } => self.plan_define(nodes, assignments, true),
            Request::DefineGroups { groups, assignments } => self.plan_define(groups, assignments, false),
            Request::RemoveNodes { nodes, dry_run, yes } => {
                self.plan_remove_nodes(nodes, *yes).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::RemoveGroups { groups, dry_run } => {
                self.plan_remove_groups(groups).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::Import { format, document, dry_run } => {
                self.plan_import(*format, document).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::Move { nodes, to, dry_run } => {
                self.plan_move(nodes, to).map(|plan| Plan { dry_run: *dry_run, ..plan })
            }
            Request::Drain { member, drain } => self.plan_drain(member, *drain),
            _ => return None,
        })
    }

    fn carry_out(&mut self, id: RequestId, plan: Plan, within: Duration) -> Result<Option<Response>, Refusal> {
        let Plan { puts, message, notes, wait, dry_run } = plan;
        let lines = || puts.iter().filter(|put| !put.attribute.starts_with('!')).map(describe).collect();
        if dry_run {
            let changes = lines();
            return Ok(Some(Response::Done(Done { message, notes, changes, dry_run, ..Done::default() })));
        }
        let response = Response::Done(Done { message, notes, ..Done::default() });
        match self.write(&puts, wait, within, Then::Reply(id, Box::new(response))) {
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
        let changes = attributes::plan(&self.documents, &owners, &parsed).map_err(|error| refuse_attribute(&error))?;
        let count = owners.len();
        let what = match target {
            Target::Group(group) => format!("group {group}"),
            Target::Nodes(_) => format!("{count} node{}", if count == 1 { "" } else { "s" }),
        };
        self.plan_of(changes, format!("{what} set"))
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
        let changes = attributes::plan_define(&self.documents, &owners, &assignments)
            .map_err(|error| refuse_attribute(&error))?;
        let what = if nodes { "node" } else { "group" };
        let plural = if owners.len() == 1 { "" } else { "s" };
        self.plan_of(changes, format!("{} {what}{plural} defined", owners.len()))
    }

    fn plan_remove_nodes(&self, nodes: &str, yes: bool) -> Result<Plan, Refusal> {
        let owners: Vec<_> = self.nodes_of(nodes)?.into_iter().map(Owner::Node).collect();
        ask_about_many(owners.len(), yes)?;
        let changes = attributes::plan_remove(&self.documents, &owners).map_err(|error| refuse_attribute(&error))?;
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
        let changes = attributes::plan_remove(&self.documents, &owners).map_err(|error| refuse_attribute(&error))?;
        let plural = if owners.len() == 1 { "" } else { "s" };
        self.plan_of(changes, format!("{} group{plural} removed", owners.len()))
    }

    fn plan_import(&self, format: ImportFormat, document: &str) -> Result<Plan, Refusal> {
        let read = match format {
            ImportFormat::Ansible => inventory::parse_ansible(document),
            ImportFormat::Csv => inventory::parse_csv(document),
        };
        let plan = read.map_err(|error| {
            Refusal::new(ErrorCode::BadData, error.to_string(), "correct the inventory; nothing was changed")
        })?;
        let (nodes, groups) = (plan.nodes.len(), plan.groups.len());
        let changes = inventory::changes(&self.documents, &plan).map_err(|error| refuse_attribute(&error))?;
        let mut planned = self.plan_of(changes, format!("{nodes} nodes and {groups} groups imported"))?;
        planned.notes.extend(plan.warnings);
        Ok(planned)
    }

    fn plan_move(&self, nodes: &str, to: &MemberName) -> Result<Plan, Refusal> {
        let target = self.member_named(to)?;
        let owners: Vec<_> = self.nodes_of(nodes)?.into_iter().map(Owner::Node).collect();
        let assignment = Assignment::Set {
            attribute: AttributeName::new("collective.manager").expect("a valid name"),
            value: to.to_string(),
        };
        let mut plan = self.plan_of(
            attributes::plan(&self.documents, &owners, &[assignment]).map_err(|error| refuse_attribute(&error))?,
            format!("{} node{} to be managed by {to}", owners.len(), if owners.len() == 1 { "" } else { "s" }),
        )?;
        // An order given again counts, even where a failover had overruled the same one.
        for owner in &owners {
            let Owner::Node(node) = owner else { continue };
            if let Some(record) = record_of(&self.documents, node).filter(|record| record.despite.is_some()) {
                let record = Record { despite: None, ..record };
                plan.puts.push(Put {
                    entity: place(owner),
                    attribute: Record::ATTRIBUTE.into(),
                    value: Some(record.to_string()),
                });
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
            attribute: format!("{DRAIN}{member}"),
            value: drain.then(|| "1".to_owned()),
        };
        let message = if drain {
            format!("{name} hands over its nodes and takes no new ones")
        } else {
            format!("{name} may manage nodes again")
        };
        Ok(Plan { puts: vec![put], message, notes: Vec::new(), wait: Wait::Majority, dry_run: false })
    }

    /// Makes a plan of attribute changes.
    fn plan_of(&self, changes: Vec<attributes::Change>, message: String) -> Result<Plan, Refusal> {
        let members = self.roster.members().into_iter().map(|member| member.name.clone()).collect();
        let notes = attributes::check_managers(&changes, &members).map_err(|error| refuse_attribute(&error))?;
        let mut puts: Vec<_> = changes
            .into_iter()
            .map(|(owner, attribute, value)| Put { entity: place(&owner), attribute, value })
            .collect();
        self.bury_leftovers(&mut puts);
        self.show_everything(&mut puts);
        Ok(Plan { puts, message, notes, wait: Wait::Majority, dry_run: false })
    }

    /// What is defined anew must not show what was written to its namesake in a partition, after that was removed.
    fn bury_leftovers(&self, puts: &mut Vec<Put>) {
        let new: Vec<_> = puts
            .iter()
            .filter(|put| put.attribute == PRESENT && put.value.is_some())
            .map(|put| put.entity.clone())
            .collect();
        let set: BTreeSet<_> = puts.iter().map(|put| (put.entity.clone(), put.attribute.clone())).collect();
        for entity in new {
            for (attribute, _) in self.documents.stored_attributes(&entity) {
                // The manager record stays: tokens must rise for the new machine of that name too.
                if attribute != Record::ATTRIBUTE && !set.contains(&(entity.clone(), attribute.to_owned())) {
                    puts.push(Put { entity: entity.clone(), attribute: attribute.to_owned(), value: None });
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

/// What a request would write.
#[derive(Debug)]
struct Plan {
    puts: Vec<Put>,
    message: String,
    notes: Vec<String>,
    wait: Wait,
    dry_run: bool,
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

fn place(owner: &Owner) -> Entity {
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

fn describe(put: &Put) -> String {
    match &put.value {
        Some(value) => format!("{}: {}={value}", put.entity, put.attribute),
        None => format!("{}: {} cleared", put.entity, put.attribute),
    }
}

fn fold(nodes: &[NodeName]) -> String {
    noderange::fold(nodes.iter().map(NodeName::as_str))
}

fn refuse_range(error: &NoderangeError) -> Refusal {
    let code = match error.problem {
        NoderangeProblem::Unknown { .. } => ErrorCode::NotFound,
        _ => ErrorCode::BadData,
    };
    Refusal::new(code, error.to_string(), "collective help noderange")
}

fn refuse_attribute(error: &AttributeError) -> Refusal {
    let (code, hint) = match &error.problem {
        Problem::NoSuchEntity { .. } => (ErrorCode::NotFound, "collective node list"),
        Problem::NoSuchAttribute { .. } => (ErrorCode::NotFound, "own attributes are named custom.NAME"),
        Problem::NoSuchMember { .. } => (ErrorCode::NotFound, "collective members"),
        Problem::Exists => (ErrorCode::Exists, "change it with `collective attrib`"),
        _ => (ErrorCode::BadData, "nothing was changed"),
    };
    Refusal::new(code, error.to_string(), hint)
}

pub(super) fn refuse_change(change: &Change, error: &RosterError) -> Refusal {
    let code = match error {
        RosterError::NoSuchMember => ErrorCode::NotFound,
        RosterError::InviteUsed => ErrorCode::InviteSpent,
        RosterError::KeyInUse(_) | RosterError::NoChange => ErrorCode::Exists,
        _ => ErrorCode::Failure,
    };
    let hint = match change {
        Change::Add { .. } => "collective invites",
        _ => "collective members",
    };
    Refusal::new(code, error.to_string(), hint)
}
