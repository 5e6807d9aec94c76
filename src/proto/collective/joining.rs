//! Invitations and strangers: who may join, and how an invitation is used up by the very epoch that adds the member.

use std::net::SocketAddr;
use std::time::Duration;

use super::changes::Origin;
use super::{AfterSave, Collective, Effect, JoinId, RequestId, Ticket};
use crate::proto::identity::{Fingerprint, InviteId, MemberId};
use crate::proto::invite::{self, InviteState, InviteTerms, JoinAnswer, JoinHello, JoinProof, JoinRefusal, Transcript};
use crate::proto::message::{WIRE_MAX, WIRE_MIN};
use crate::proto::name::MemberName;
use crate::proto::record::Record;
use crate::proto::request::{
    ErrorCode, Invited, Invites as Pending, PendingInvite, Refusal, Response, Standing, TokenText,
};
use crate::proto::roster::{Role, Roster, RosterError};
use crate::proto::time::Instant;

/// How long a stranger may take between its first words and its proof.
const PROVE_WITHIN: Duration = Duration::from_secs(10);
/// How long the way of a proven stranger through the epochs may take.
const ENTER_WITHIN: Duration = Duration::from_secs(60);
/// Addresses in an answer for each member.
const ADDRESSES_TOLD_MAX: usize = 4;

/// A stranger on its way in.
#[derive(Debug)]
pub(super) struct Joining {
    invite: InviteId,
    name: MemberName,
    role: Role,
    /// The key it presented, once its proof was accepted.
    proven: Option<Fingerprint>,
    until: Instant,
}

/// What came of the epoch that would add a stranger.
#[derive(Debug)]
pub(super) enum JoinOutcome {
    Decided(Box<Roster>),
    Impossible(RosterError),
    Late,
}

impl Collective {
    /// Makes an invitation; it is told once it is durable.
    pub(super) fn invite(&mut self, request: RequestId, terms: InviteTerms, entropy: &[u8; 40]) {
        let present = self.roster.by_name(&terms.name).map(|member| member.id);
        if let Some(id) = present.filter(|id| self.is_live(*id)) {
            let name = self.name_of(id);
            let message = format!("{name} is a member and answers");
            let hint = format!("to replace it, stop its daemon first; to remove it: collective delete {name} --force");
            self.reply(request, Refusal::new(ErrorCode::Exists, message, hint));
            return;
        }
        let replaces = present.map(|_| terms.name.clone());
        let addresses = self.addresses.clone();
        match self.invites.create(terms, *entropy, self.fingerprint, &addresses, self.now.wall) {
            Ok(created) => {
                let response = Response::Invited(Invited {
                    schema: Default::default(),
                    member: created.invite.name.clone(),
                    token: TokenText(created.token.reveal().to_string()),
                    expires: super::answers::time_text(created.invite.expires),
                    replaced: created.replaced.is_some(),
                    replaces,
                });
                self.save_invites(vec![AfterSave::Invited(request, Box::new(response))]);
            }
            Err(error) => {
                self.reply(request, Refusal::new(ErrorCode::Usage, error.to_string(), "collective help invite"));
            }
        }
    }

    /// Whoever asked for an invitation is not kept waiting for a disk that takes nothing; it may be made yet.
    pub(super) fn on_invites_not_saved(&mut self, ticket: Ticket, reason: &str) {
        let Some(after) = self.saves.get_mut(&ticket) else { return };
        let asked: Vec<_> = after.extract_if(.., |after| matches!(after, AfterSave::Invited(..))).collect();
        for after in asked {
            let AfterSave::Invited(request, _) = after else { continue };
            let message = format!("not confirmed (indeterminate): the store takes no writes: {reason}");
            let hint =
                "make room on the disk that holds the state directory, look with `collective invites`, then try again";
            self.reply(request, Refusal::new(ErrorCode::Indeterminate, message, hint));
        }
    }

    pub(super) fn pending_invites(&self) -> Pending {
        Pending {
            schema: Default::default(),
            invites: self
                .invites
                .list()
                .into_iter()
                .filter(|invite| invite.state(self.now.wall) == InviteState::Open)
                .map(|invite| PendingInvite {
                    member: invite.name.clone(),
                    role: invite.role,
                    expires: super::answers::time_text(invite.expires),
                    uses_left: invite.uses_max.saturating_sub(invite.uses),
                    attempts_left: u32::from(invite.attempts_left),
                })
                .collect(),
        }
    }

    pub(super) fn revoke_invite(&mut self, request: RequestId, name: &MemberName) {
        if self.invites.revoke(name, self.now.wall).is_some() {
            let response = super::writes::done(format!("the invitation for {name} is revoked"));
            self.save_invites(vec![AfterSave::Invited(request, Box::new(response))]);
        } else {
            let message = format!("there is no pending invitation for {name} on this member");
            self.reply(request, Refusal::new(ErrorCode::NotFound, message, "collective invites"));
        }
    }

    /// Makes the book of invitations durable, if it was changed.
    fn save_invites(&mut self, after: Vec<AfterSave>) {
        if !self.invites.take_changed() && after.is_empty() {
            return;
        }
        let kept: std::collections::BTreeMap<_, _> =
            self.invites.list().into_iter().map(|invite| (invite.id, invite.clone())).collect();
        let gone =
            self.saved_invites.iter().filter(|(id, _)| !kept.contains_key(id)).map(|(id, _)| Record::DropInvite(*id));
        let new = kept.iter().filter(|(id, invite)| self.saved_invites.get(id) != Some(invite));
        let records = gone.chain(new.map(|(_, invite)| Record::Invite(invite.clone()))).collect();
        self.saved_invites = kept;
        self.save(records, after);
    }

    pub(super) fn on_join_hello(&mut self, id: JoinId, hello: JoinHello) {
        let answer = match hello.wire(WIRE_MIN..=WIRE_MAX) {
            Ok(wire) => self.invites.challenge(&hello, wire, self.roster.cluster),
            Err(refusal) => refusal.into(),
        };
        if let JoinAnswer::Challenge { role, .. } = answer {
            let until = self.now.boot + PROVE_WITHIN;
            self.joins.insert(id, Joining { invite: hello.id, name: hello.name, role, proven: None, until });
        }
        self.effects.push(Effect::AnswerJoin { id, answer: Box::new(answer) });
    }

    pub(super) fn on_join_proof(
        &mut self,
        id: JoinId,
        proof: JoinProof,
        peer: Fingerprint,
        exporter: [u8; 32],
        address: SocketAddr,
    ) {
        let Some(joining) = self.joins.get(&id).filter(|joining| joining.proven.is_none()) else { return };
        let transcript = Transcript {
            cluster: self.roster.cluster,
            invite: joining.invite,
            name: joining.name.clone(),
            role: joining.role,
            exporter,
            server: self.fingerprint,
            joiner: peer,
        };
        let checked = self.invites.check(&transcript, &proof.proof, self.now.wall).cloned();
        self.save_invites(Vec::new());
        // A stranger whose welcome was lost asks again, perhaps with an invitation that is used by now.
        if matches!(checked, Ok(_) | Err(JoinRefusal::Used))
            && let Some(member) = invite::enrolled(&self.roster, transcript.invite, &transcript.name, peer)
        {
            self.welcome(id, member);
            return;
        }
        let invite = match checked {
            Ok(invite) => invite,
            Err(refusal) => {
                self.turn_away(id, refusal);
                return;
            }
        };
        if self.standing != Standing::Seated {
            self.turn_away(id, JoinRefusal::NoQuorum);
            return;
        }
        let present = self.roster.by_name(&transcript.name).map(|member| member.id);
        if present.is_some_and(|id| self.is_live(id) || !invite.may_replace()) {
            self.turn_away(id, JoinRefusal::Exists);
            return;
        }
        if let Some(joining) = self.joins.get_mut(&id) {
            joining.proven = Some(peer);
            joining.until = self.now.boot + ENTER_WITHIN;
        }
        // R2: a stale entry that votes goes by an epoch of its own, before the newcomer's.
        if let Some(stale) = present.filter(|stale| self.voters.contains(stale)) {
            self.want_change(crate::proto::roster::Change::Remove { id: stale }, Origin::Housekeeping);
        }
        let change = invite.change(&self.roster, transcript.name, peer);
        if let crate::proto::roster::Change::Add { member, .. } = &change {
            let told: Vec<_> = proof.addresses.into_iter().rev().chain([address]).collect();
            told.into_iter().for_each(|address| self.learn_address(member.id, address));
        }
        self.want_change(change, Origin::Join(id));
    }

    pub(super) fn on_join_decided(&mut self, id: JoinId, outcome: JoinOutcome) {
        let Some(joining) = self.joins.get(&id) else { return };
        let (spent, name, proven) = (joining.invite, joining.name.clone(), joining.proven);
        match outcome {
            JoinOutcome::Decided(roster) => {
                self.invites.consumed(spent, roster.uses(spent));
                self.save_invites(Vec::new());
                match proven.and_then(|peer| invite::enrolled(&roster, spent, &name, peer)) {
                    Some(member) => self.welcome_to(id, member, &roster),
                    None => self.turn_away(id, JoinRefusal::Used),
                }
            }
            JoinOutcome::Impossible(error) => self.turn_away(id, error.into()),
            JoinOutcome::Late => self.turn_away(id, JoinRefusal::Undecided),
        }
    }

    fn welcome(&mut self, id: JoinId, member: MemberId) {
        let roster = self.roster.clone();
        self.welcome_to(id, member, &roster);
    }

    fn welcome_to(&mut self, id: JoinId, member: MemberId, roster: &Roster) {
        let mut addresses: Vec<_> = self
            .peers
            .iter()
            .filter(|(peer, _)| **peer != member && **peer != self.me && roster.member(**peer).is_some())
            .map(|(peer, record)| {
                (*peer, record.socket_addresses().into_iter().take(ADDRESSES_TOLD_MAX).collect::<Vec<_>>())
            })
            .collect();
        addresses.push((self.me, self.addresses.iter().copied().take(ADDRESSES_TOLD_MAX).collect()));
        self.joins.remove(&id);
        let answer = JoinAnswer::Welcome { roster: roster.clone(), member, addresses };
        self.effects.push(Effect::AnswerJoin { id, answer: Box::new(answer) });
    }

    fn turn_away(&mut self, id: JoinId, refusal: JoinRefusal) {
        self.joins.remove(&id);
        self.effects.push(Effect::AnswerJoin { id, answer: Box::new(refusal.into()) });
    }

    /// Forgets strangers that fell silent.
    pub(super) fn settle_joins(&mut self) {
        let now = self.now.boot;
        if self.joins_due().is_some_and(|due| due <= now) {
            self.joins.retain(|_, joining| joining.until > now);
        }
    }

    pub(super) fn joins_due(&self) -> Option<Instant> {
        self.joins.values().map(|joining| joining.until).min()
    }
}
