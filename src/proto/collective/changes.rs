//! Leases and epochs: grants given and received, and the one road by which the roster changes.

use std::time::Duration;

use super::joining::JoinOutcome;
use super::{About, AfterSave, Collective, JoinId, RequestId};
use crate::proto::epoch::{Adoption, EpochMessage, NotYet, ProposeError, ProposerOut, adopts, may_propose};
use crate::proto::identity::MemberId;
use crate::proto::lease::{ClaimEvent, LeaseAck, LeaseRequest, Verdict};
use crate::proto::message::Message;
use crate::proto::planted::Bug;
use crate::proto::record::Record;
use crate::proto::request::{Done, ErrorCode, EventKind, Refusal, Standing};
use crate::proto::roster::{Change, Roster, RosterError};
use crate::proto::time::Instant;

/// How long a change that a person asked for may wait to be decided.
const DECIDE_WITHIN: Duration = Duration::from_secs(15);

/// How many T a roster may be accepted and not decided before it is looked after.
const LEFT_OPEN_LEASES: u32 = 2;

/// A change of the roster that waits to be decided.
#[derive(Debug)]
pub(super) struct PendingChange {
    change: Change,
    origin: Origin,
    until: Instant,
    /// Whether the proposer has it in hand.
    proposed: bool,
}

/// Who wants a change.
#[derive(Debug)]
pub(super) enum Origin {
    /// An administrator; answered with this sentence.
    Request(RequestId, String),
    /// A stranger that proved its invitation.
    Join(JoinId),
    /// The leader's housekeeping.
    Housekeeping,
}

impl Collective {
    pub(super) fn on_lease_request(&mut self, from: MemberId, request: &LeaseRequest) {
        if !self.voters.contains(&self.me) && from != self.me {
            // A former voter; the asker learns so from the newer roster.
            if request.version < self.roster.version {
                self.send_roster(from);
            }
            return;
        }
        let documents = &self.documents;
        let roster = &self.roster;
        self.holder.meet(from, roster, self.now.boot);
        let recorded = |node: &_| super::managers::recorded(documents, roster, node);
        let ack = self.voter.on_request(roster, self.stamp, from, request, &recorded, self.now.boot);
        match &ack.verdict {
            Verdict::Granted { .. } => {
                self.remember_stamp(from, request.stamp);
                if request.seated != self.seated.contains_key(&from) {
                    if request.seated {
                        self.seated.insert(from, self.now.boot);
                    } else {
                        self.seated.remove(&from);
                    }
                    self.managers.touch_availability(from);
                }
            }
            Verdict::StaleEpoch => self.send_roster(from),
            Verdict::NewerEpoch => self.want_roster(from),
            Verdict::DuplicateSession => self.note_duplicates(),
            _ => {}
        }
        self.say(from, Message::LeaseAck(ack));
    }

    /// Tells once when two live sessions of one identity are seen: a cloned machine.
    fn note_duplicates(&mut self) {
        let duplicates: std::collections::BTreeSet<_> =
            self.voter.duplicate_sessions(self.now.boot).into_iter().collect();
        for id in duplicates.difference(&self.duplicates.clone()) {
            let name = self.name_of(*id);
            let message = format!("two daemons run as {name}; neither gets new nodes until one is stopped");
            self.happen(EventKind::DuplicateIdentity, About::member(name), message);
        }
        self.duplicates = duplicates;
    }

    fn tell_disowned(&mut self, by: MemberId) {
        let name = self.name_of(self.me);
        let message = format!(
            "{} knows a later run of {name} than this one: its disk is an old one, or {name} runs elsewhere too; its vote \
             counts no more here. Stop the other, or `collective invite {name}` on a member and `collective join` here",
            self.name_of(by)
        );
        self.happen(EventKind::DuplicateIdentity, About::member(name), message);
    }

    pub(super) fn on_lease_ack(&mut self, from: MemberId, ack: &LeaseAck) {
        if from != self.me {
            self.remember_stamp(from, ack.stamp);
        }
        if matches!(ack.verdict, Verdict::StaleEpoch) {
            self.want_roster(from);
        }
        let was_disowned = self.holder.is_disowned();
        let outcomes = self.holder.on_ack(&self.roster, from, ack, self.now.boot);
        if self.holder.is_disowned() && !was_disowned {
            self.tell_disowned(from);
        }
        for outcome in outcomes {
            match outcome {
                ClaimEvent::Confirmed { node, term } => self.managers.on_confirmed(node, term),
                ClaimEvent::Refused { node, reason, .. } => self.on_claim_refused(&node, &reason),
            }
        }
        self.extend_jobs();
    }

    pub(super) fn want_roster(&mut self, from: MemberId) {
        let version = self.roster.version;
        self.say(from, Message::Epoch(Box::new(EpochMessage::Want { version })));
    }

    pub(super) fn send_roster(&mut self, to: MemberId) {
        let roster = self.roster.clone();
        self.say(to, Message::Epoch(Box::new(EpochMessage::Decided { roster })));
    }

    pub(super) fn on_epoch_message(&mut self, from: MemberId, message: EpochMessage) {
        match message {
            EpochMessage::Decided { roster } => self.offer(roster),
            EpochMessage::Want { version } => {
                if version < self.roster.version {
                    self.send_roster(from);
                }
            }
            EpochMessage::Prepare { .. } | EpochMessage::Accept { .. } => {
                let answer = self.acceptor.on_message(&self.roster, from, &message);
                let reply = answer.reply.map(|reply| Message::Epoch(Box::new(reply)));
                match (answer.save, reply) {
                    // R1: durable before the reply.
                    (Some(state), mut reply) => {
                        if self.planted.has(Bug::AnswersBeforeSaved)
                            && let Some(reply) = reply.take()
                        {
                            self.say(from, reply);
                        }
                        let sequence = self.next_sequence();
                        let mut after = vec![AfterSave::Sequence(sequence)];
                        after.extend(reply.map(|reply| AfterSave::Say(from, Box::new(reply))));
                        self.save(vec![Record::Acceptor(Box::new(state)), Record::Sequence(sequence)], after);
                    }
                    (None, Some(reply)) => self.say(from, reply),
                    (None, None) => {}
                }
            }
            EpochMessage::Promise { .. } | EpochMessage::Accepted { .. } | EpochMessage::Reject { .. } => {
                let outs = self.proposer.on_message(&self.roster, from, &message, self.now.boot);
                self.on_proposer(outs);
            }
        }
    }

    pub(super) fn on_proposer(&mut self, outs: Vec<ProposerOut>) {
        for out in outs {
            match out {
                ProposerOut::Send(to, message) => self.say(to, Message::Epoch(Box::new(message))),
                ProposerOut::Decided { roster, mine } => {
                    if let Some(pending) = self.pending_changes.front_mut().filter(|pending| pending.proposed) {
                        pending.proposed = false;
                        if mine && let Some(pending) = self.pending_changes.pop_front() {
                            self.on_change_decided(pending, &roster);
                        }
                    }
                    for member in roster.members() {
                        if member.id != self.me {
                            self.say(
                                member.id,
                                Message::Epoch(Box::new(EpochMessage::Decided { roster: roster.clone() })),
                            );
                        }
                    }
                    self.offer(roster);
                }
                ProposerOut::Failed(_) => {
                    // Tried again from `settle` until its time is up.
                    if let Some(pending) = self.pending_changes.front_mut() {
                        pending.proposed = false;
                    }
                }
            }
        }
    }

    /// Looks at a decided roster that somebody offers, and stores it when it is newer.
    fn offer(&mut self, roster: Roster) {
        if adopts(&self.roster, &roster) != Adoption::Newer || self.adopting >= Some(roster.version) {
            return;
        }
        self.adopting = Some(roster.version);
        let sequence = self.next_sequence();
        let records = vec![Record::Roster(Box::new(roster.clone())), Record::Sequence(sequence)];
        if self.planted.has(Bug::RosterNotStored) {
            self.save(vec![Record::Sequence(sequence)], vec![AfterSave::Sequence(sequence)]);
            self.enforce(roster);
            return;
        }
        self.save(records, vec![AfterSave::Sequence(sequence), AfterSave::Adopt(Box::new(roster))]);
    }

    /// Puts a stored roster in force.
    pub(super) fn enforce(&mut self, roster: Roster) {
        if adopts(&self.roster, &roster) != Adoption::Newer {
            return;
        }
        let voters_changed = !roster.same_voters(&self.roster);
        let before = std::mem::replace(&mut self.roster, roster);
        self.voters = self.roster.voters().clone();
        if self.standing != Standing::Isolated {
            self.changing_over = Some(self.now.boot + self.roster.timing.lease() / 2);
        }
        self.tenure.on_roster(&before, &self.roster);
        self.acceptor.on_roster(&self.roster);
        let outs = self.proposer.on_roster(&self.roster);
        self.on_proposer(outs);
        self.voter.on_epoch(voters_changed, self.now.boot);
        // R7: a holder asks again at once when it learns an epoch.
        self.holder.hurry();
        let ids: Vec<_> = self.roster.ids().collect();
        self.swim.set_members(ids.into_iter(), self.now.boot);
        self.forget_strangers();
        // A change refused because its author was unknown may be welcome now.
        let unfinished: Vec<_> = self.links.iter().filter(|(_, link)| !link.has_resynced).map(|(id, _)| *id).collect();
        unfinished.into_iter().for_each(|id| self.begin_resync(id));
        self.managers.touch_all();
        self.tell_changes(&before);
        if self.roster.member(self.me).is_none() {
            let notice = format!(
                "this member was taken off the roster in epoch {}; its data stays readable with --stale; to rejoin, run `collective invite {}` on a member and `collective join` here",
                self.roster.version.epoch,
                self.name.as_ref().map_or("NAME", |name| name.as_str()),
            );
            self.on_expelled(notice);
        } else {
            self.tell_peers();
        }
    }

    fn forget_strangers(&mut self) {
        let gone: Vec<_> = self.links.keys().copied().filter(|id| self.roster.member(*id).is_none()).collect();
        gone.into_iter().for_each(|id| self.lose_calls(id));
        let roster = &self.roster;
        let is_stranger = |id: MemberId, link: &super::links::Link| {
            roster.member(id).is_none_or(|member| !member.fingerprints.contains(&link.fingerprint))
        };
        let gone: Vec<_> = self.links.iter().filter(|(id, link)| is_stranger(**id, link)).map(|(id, _)| *id).collect();
        for id in gone {
            self.links.remove(&id);
            self.lose_calls(id);
        }
        let roster = &self.roster;
        self.facts.retain(|id, _| roster.member(*id).is_some());
        self.seated.retain(|id, _| roster.member(*id).is_some());
        self.acks.keep_only(|id| roster.member(*id).is_some());
        self.resynced.retain(|id| roster.member(*id).is_some());
        self.suspicions.retain(|id, _| roster.member(*id).is_some());
        self.trouble.retain(|id, _| roster.member(*id).is_some());
    }

    fn tell_changes(&mut self, before: &Roster) {
        let after = self.roster.clone();
        for member in after.members() {
            if before.member(member.id).is_none() {
                let message = format!("{} joined as {}", member.name, member.role);
                self.happen(EventKind::MemberJoin, About::member(member.name.clone()), message);
            }
        }
        for member in before.members() {
            if after.member(member.id).is_none() && member.id != self.me {
                let message = format!("{} was taken off the roster", member.name);
                self.happen(EventKind::MemberDeleted, About::member(member.name.clone()), message);
            }
        }
        let message =
            format!("roster {} is in force: {} members, {} voters", after.version, after.len(), after.voters().len());
        self.happen(EventKind::EpochDecided, About::nothing(), message);
    }

    /// Queues a change of the roster.
    pub(super) fn want_change(&mut self, change: Change, origin: Origin) {
        let until = self.now.boot + DECIDE_WITHIN;
        self.pending_changes.push_back(PendingChange { change, origin, until, proposed: false });
    }

    /// Returns whether the leader's housekeeping has a change under way already.
    pub(super) fn is_changing(&self) -> bool {
        !self.pending_changes.is_empty()
    }

    /// Proposes the first change that waits, when the rules let it.
    pub(super) fn settle_changes(&mut self) {
        let outs = self.proposer.tick(&self.roster, self.now.boot);
        self.on_proposer(outs);
        self.handover.rest();
        self.complete_what_was_accepted();
        while let Some(pending) = self.pending_changes.front() {
            if self.now.boot >= pending.until {
                if let Some(pending) = self.pending_changes.pop_front() {
                    self.on_change_late(pending);
                }
                continue;
            }
            if pending.proposed
                || self.adopting.is_some_and(|version| version > self.roster.version)
                || self.must_wait(&pending.change).is_some()
            {
                return;
            }
            let change = pending.change.clone();
            if !self.is_handed_over(&change) {
                return;
            }
            match self.proposer.propose(&self.roster, change, self.now.wall, self.now.boot) {
                Ok(outs) => {
                    if let Some(pending) = self.pending_changes.front_mut() {
                        pending.proposed = true;
                    }
                    self.on_proposer(outs);
                    return;
                }
                Err(ProposeError::Roster(error)) => {
                    if let Some(pending) = self.pending_changes.pop_front() {
                        self.on_change_impossible(pending, error);
                    }
                }
                // Tried again when the proposal under way has ended.
                Err(_) => return,
            }
        }
    }

    /// Finishes an epoch whose proposer died after a majority had accepted it, or before: nobody might ever propose again,
    /// and whoever was let in by it would be a stranger to all but that one.
    ///
    /// The first of the voters that hold it tries first.
    fn complete_what_was_accepted(&mut self) {
        let accepted = self.acceptor.accepted(&self.roster);
        let Some(accepted) = accepted.filter(|_| !self.planted.has(Bug::AcceptedLeftOpen)) else {
            self.left_open = None;
            return;
        };
        let is_known = self.left_open.is_some_and(|(version, _)| version == accepted.version);
        let is_looked_after = self.is_changing() || self.proposer.is_busy() || self.standing != Standing::Seated;
        if is_known && !is_looked_after && self.left_open.is_some_and(|(_, at)| at > self.now.boot) {
            return;
        }
        let rank = self.voters.iter().position(|id| *id == self.me).unwrap_or_default();
        let timing = &self.roster.timing;
        let wait = timing.lease() * LEFT_OPEN_LEASES + timing.renewal() * u32::try_from(rank).unwrap_or(u32::MAX);
        self.left_open = Some((accepted.version, self.now.boot + wait));
        if is_known && !is_looked_after {
            let outs = self.proposer.complete(&self.roster, accepted, self.now.boot);
            self.on_proposer(outs);
        }
    }

    /// Returns when changes want to be looked at again.
    pub(super) fn changes_due(&self) -> Option<Instant> {
        [self.left_open.map(|(_, at)| at), self.proposer.next_due(), self.queue_due()].into_iter().flatten().min()
    }

    fn queue_due(&self) -> Option<Instant> {
        let pending = self.pending_changes.front()?;
        let next = match self.must_wait(&pending.change) {
            _ if pending.proposed => None,
            Some(NotYet::Wait { until }) => Some(until),
            Some(_) => None,
            None => self.handover.due(),
        };
        [Some(pending.until), next].into_iter().flatten().min()
    }

    /// R2: says what a change still has to wait for; none when it may be proposed, or never will.
    fn must_wait(&self, change: &Change) -> Option<NotYet> {
        let quorate = self.is_quorate(self.now.boot);
        match may_propose(self.me, &self.roster, change, quorate, self.tenure, self.now.boot) {
            // What cannot be made at all is refused by the proposal itself.
            Ok(()) | Err(NotYet::Roster(_)) => None,
            Err(NotYet::Wait { .. }) if self.planted.has(Bug::VotesMoveAtOnce) => None,
            Err(wait) => Some(wait),
        }
    }

    fn on_change_decided(&mut self, pending: PendingChange, roster: &Roster) {
        match pending.origin {
            Origin::Request(id, message) => {
                let left = matches!(&pending.change, Change::Remove { id } if *id == self.me);
                let notes = if left {
                    vec!["this member's data stays readable with --stale; nothing is managed from here any more".into()]
                } else {
                    Vec::new()
                };
                self.reply(id, super::Response::Done(Done { message, notes, ..Done::default() }));
            }
            Origin::Join(id) => self.on_join_decided(id, JoinOutcome::Decided(Box::new(roster.clone()))),
            Origin::Housekeeping => {}
        }
    }

    fn on_change_impossible(&mut self, pending: PendingChange, error: RosterError) {
        match pending.origin {
            Origin::Request(id, _) => {
                let refusal = super::refusals::refuse_change(&pending.change, &error);
                self.reply(id, refusal);
            }
            Origin::Join(id) => self.on_join_decided(id, JoinOutcome::Impossible(error)),
            Origin::Housekeeping => {}
        }
    }

    fn on_change_late(&mut self, pending: PendingChange) {
        match pending.origin {
            Origin::Request(id, _) => {
                let refusal = Refusal::new(
                    ErrorCode::TimedOut,
                    "the change of the roster was not decided in time; it may still be",
                    "look with `collective status`, then try again",
                );
                self.reply(id, refusal);
            }
            Origin::Join(id) => self.on_join_decided(id, JoinOutcome::Late),
            Origin::Housekeeping => {}
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}
