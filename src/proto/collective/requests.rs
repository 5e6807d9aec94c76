//! Requests of administrators: answered from this member's view, refused, or turned into writes and changes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::changes::Origin;
use super::refusals::{refuse_change, refuse_range};
use super::writes::{Then, done};
use super::{Collective, Deferred, RequestId};
use crate::proto::identity::{Fingerprint, MemberId};
use crate::proto::invite::InviteTerms;
use crate::proto::name::MemberName;
use crate::proto::noderange;
use crate::proto::request::{Done, ErrorCode, Needs, Nodes, Refusal, Request, Response, Standing, Wait};
use crate::proto::roster::{Change, Role, RosterError};
use crate::proto::schema;

type Answer = Result<Response, Refusal>;

impl Collective {
    pub(super) fn on_request(&mut self, id: RequestId, request: Request, within: Duration, entropy: Box<[u8; 40]>) {
        // What would be said of quorum in this moment is true and of no use to anybody.
        if self.changing_over.is_some() {
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
            Request::TakeIn { inventory, dry_run } => {
                self.take_in(id, *inventory, dry_run, within);
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
                Response::Nodes(Nodes { schema: Default::default(), folded: super::lookups::fold(&nodes), nodes })
            }
            Request::Expand { expression, .. } => {
                let nodes = self.nodes_of(expression)?;
                Response::Nodes(Nodes { schema: Default::default(), folded: super::lookups::fold(&nodes), nodes })
            }
            Request::Voters { .. } => self.voters_report(),
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
                // What an administrator says of a vote is not for the elastic set to change.
                if let Some(put) = self.off_the_bench(member) {
                    drop(self.write(vec![put], Wait::Majority, self.roster.timing.lease(), Then::Nothing));
                }
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

    pub(super) fn member_named(&self, name: &MemberName) -> Result<MemberId, Refusal> {
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
}
