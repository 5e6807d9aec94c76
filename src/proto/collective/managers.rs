//! Which nodes this member acts for: the election names it, the voters confirm it, the record tells it.
//!
//! ```text
//!   desired ─> Waiting ─(holder gone, k x T/8)─> Claiming ─(majority)─> Recording ─(durable)─> Acting
//!      └──────── no longer desired, refused, no majority within T/2 ────────┴─> released, Waiting or gone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand_core::Rng;

use super::failback::FailBacks;
use super::writes::Then;
use super::{About, Collective, Effect};
use crate::proto::attributes::{self, Lineage, Source};
use crate::proto::document::{Documents, Entity, Put};
use crate::proto::election::{
    self, By, Contest, Electorate, Expressions, FailBack, Policy, Ranked, Record, Runner, Token, Verdict,
};
use crate::proto::identity::MemberId;
use crate::proto::lease::{Recorded, RefusalReason};
use crate::proto::liveness::Liveness;
use crate::proto::name::{MemberName, NodeName};
use crate::proto::planted::Bug;
use crate::proto::request::{EventKind, ManagerStatus, RuledOut, Standing, Wait};
use crate::proto::roster::Roster;
use crate::proto::time::Instant;

/// Nodes that are looked at in one turn, so that nothing waits long when there are tens of thousands.
const TURN_NODES: usize = 250;
/// Managers that are recorded in one write.
const RECORDS_MAX: usize = 1_000;
/// The prefix of the settings that name draining members.
pub(super) const DRAIN: &str = "!drain/";

/// Nodes that this member acts for or wants to.
#[derive(Debug, Default)]
pub(super) struct Managers {
    duties: Duties,
    dirty: BTreeSet<NodeName>,
    all_dirty: bool,
    /// Who could manage when last looked.
    available: BTreeSet<MemberId>,
    look_again: bool,
    /// Members of whom something was heard that tells whether they could manage.
    look_at: BTreeSet<MemberId>,
    /// The members as the last election saw them; none once something about them changed.
    electorate: Option<Electorate>,
    /// When somebody's availability may end by itself.
    available_until: Option<Instant>,
    confirmed: Vec<(NodeName, u64)>,
    /// Nodes whose claim had no majority any more when last looked at, and when to look again.
    lapsed: BTreeSet<NodeName>,
    look_for_lapsed_at: Instant,
    pub(super) fail_backs: FailBacks,
    expressions: Expressions,
}

/// How far this member has come with one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Desired here; the claim waits for the holder to go and for better-ranked members.
    Waiting { since: Instant, at: Instant },
    /// The voters were asked, and have until then to answer.
    Claiming { term: u64, until: Instant },
    /// The voters confirmed; the record is on its way to a majority's disks.
    Recording { term: u64 },
    /// This member acts, as long as the lease holds.
    Acting { token: Token },
}

impl Duty {
    /// Returns when it moves on by itself.
    const fn due(self) -> Option<Instant> {
        match self {
            Self::Waiting { at, .. } => Some(at),
            Self::Claiming { until, .. } => Some(until),
            Self::Recording { .. } | Self::Acting { .. } => None,
        }
    }
}

/// Duties by node, with what is asked of all of them at every event kept beside them: a member with ten thousand nodes
/// must not walk over them whenever a packet comes in.
#[derive(Debug, Default)]
struct Duties {
    by_node: BTreeMap<NodeName, Duty>,
    due: BTreeSet<(Instant, NodeName)>,
    acting: usize,
}

impl Duties {
    fn get(&self, node: &NodeName) -> Option<Duty> {
        self.by_node.get(node).copied()
    }

    fn insert(&mut self, node: NodeName, duty: Duty) {
        self.remove(&node);
        if let Some(due) = duty.due() {
            self.due.insert((due, node.clone()));
        }
        self.acting += usize::from(matches!(duty, Duty::Acting { .. }));
        self.by_node.insert(node, duty);
    }

    fn remove(&mut self, node: &NodeName) -> Option<Duty> {
        let duty = self.by_node.remove(node)?;
        if let Some(due) = duty.due() {
            self.due.remove(&(due, node.clone()));
        }
        self.acting -= usize::from(matches!(duty, Duty::Acting { .. }));
        Some(duty)
    }

    /// Returns so many of those that are to be moved on now, in the order of their nodes.
    fn due_by(&self, now: Instant, count: usize) -> BTreeMap<NodeName, Duty> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now).take(count);
        due.filter_map(|(_, node)| Some((node.clone(), self.get(node)?))).collect()
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }
}

impl Managers {
    pub(super) fn touch(&mut self, node: NodeName) {
        self.dirty.insert(node);
    }

    pub(super) fn touch_all(&mut self) {
        self.electorate = None;
        self.all_dirty = true;
        self.look_again = true;
    }

    pub(super) fn touch_availability(&mut self, of: MemberId) {
        self.look_at.insert(of);
    }

    pub(super) fn is_acting(&self, node: &NodeName) -> bool {
        matches!(self.duties.get(node), Some(Duty::Acting { .. }))
    }

    pub(super) fn acting(&self) -> impl Iterator<Item = &NodeName> {
        self.duties.by_node.iter().filter(|(_, duty)| matches!(duty, Duty::Acting { .. })).map(|(node, _)| node)
    }

    /// Returns how many nodes this member acts for, without counting them.
    pub(super) fn acting_count(&self) -> usize {
        self.duties.acting
    }

    pub(super) fn token(&self, node: &NodeName) -> Option<Token> {
        match self.duties.get(node) {
            Some(Duty::Acting { token }) => Some(token),
            _ => None,
        }
    }

    pub(super) fn on_confirmed(&mut self, node: NodeName, term: u64) {
        if matches!(self.duties.get(&node), Some(Duty::Claiming { term: claimed, .. }) if claimed == term) {
            self.duties.insert(node.clone(), Duty::Recording { term });
            self.confirmed.push((node, term));
        }
    }

    /// A record did not reach a majority in time: the claim holds, so it is written again.
    pub(super) fn on_not_recorded(&mut self, nodes: &[(NodeName, Token)]) {
        for (node, token) in nodes {
            if self.duties.get(node) == Some(Duty::Recording { term: token.term }) {
                self.confirmed.push((node.clone(), token.term));
            }
        }
    }
}

/// Returns what the documents record of a node's managers: the floor under the terms of new claims.
pub(super) fn recorded(documents: &Documents, roster: &Roster, node: &NodeName) -> Recorded {
    record_of(documents, node).map_or_else(Recorded::default, |record| Recorded {
        term: record.token.term,
        holder: roster.by_name(&record.value).map(|member| member.id),
    })
}

/// Returns the manager record of a node; of concurrent ones, that with the highest token.
pub(super) fn record_of(documents: &Documents, node: &NodeName) -> Option<Record> {
    highest_of(&documents.all(&Entity::Node(node.clone()), Record::ATTRIBUTE))
}

/// Returns the manager record of a node as it will be once everything that was taken in is durable: what a new one is
/// worked out from.
pub(super) fn record_ahead(documents: &Documents, node: &Entity) -> Option<Record> {
    highest_of(&documents.all_ahead(node, Record::ATTRIBUTE))
}

fn highest_of(values: &[String]) -> Option<Record> {
    let records: Vec<Record> = values.iter().filter_map(|text| text.parse().ok()).collect();
    election::highest(&records).cloned()
}

impl Collective {
    /// Brings what this member manages in line with the election.
    pub(super) fn settle_managers(&mut self) {
        if self.standing != Standing::Seated || self.stopping.is_some() {
            return;
        }
        self.look_who_is_available();
        if std::mem::take(&mut self.managers.all_dirty) {
            // Nodes that are gone may still be held.
            let held = self.managers.duties.by_node.keys();
            self.managers.dirty = self.documents.nodes().chain(held).cloned().collect();
        }
        let mut dirty = std::mem::take(&mut self.managers.dirty);
        // Nodes are mostly touched a few at a time, and then all of them are looked at.
        if let Some(later) = dirty.iter().nth(TURN_NODES).cloned() {
            self.managers.dirty = dirty.split_off(&later);
        }
        if !dirty.is_empty() {
            let electorate = self.managers.electorate.take().unwrap_or_else(|| self.electorate());
            let mut expressions = std::mem::take(&mut self.managers.expressions);
            for node in dirty {
                self.review(&node, &electorate, &mut expressions);
            }
            self.managers.expressions = expressions;
            self.managers.electorate = Some(electorate);
        }
        self.give_up_lapsed();
        self.fail_back();
        self.serve_duties();
        self.record_confirmed();
    }

    /// Gives up claims that lapsed while quorum was held, so that they are made anew, by a higher term.
    ///
    /// A voter that knows a higher term from the other side of a partition refuses a claim for good; when one of those
    /// that confirmed it is lost, no majority is left. A round is given to grants that are on their way.
    fn give_up_lapsed(&mut self) {
        let now = self.now.boot;
        if now < self.managers.look_for_lapsed_at {
            return;
        }
        self.managers.look_for_lapsed_at = now + self.roster.timing.renewal();
        let grants = self.holder.under(&self.roster);
        if !grants.quorum(now).is_held() {
            return;
        }
        let duties = self.managers.duties.by_node.iter();
        let lapsed: BTreeSet<_> = duties
            .filter(|(_, duty)| matches!(duty, Duty::Recording { .. } | Duty::Acting { .. }))
            .filter(|(node, _)| !grants.acts(node, now))
            .map(|(node, _)| node.clone())
            .collect();
        let before = std::mem::replace(&mut self.managers.lapsed, lapsed);
        let twice: Vec<_> = before.intersection(&self.managers.lapsed).cloned().collect();
        for node in twice {
            self.give_up(&node);
            self.managers.touch(node);
        }
    }

    fn look_who_is_available(&mut self) {
        let look_at = std::mem::take(&mut self.managers.look_at);
        let is_over = self.managers.available_until.is_some_and(|until| until <= self.now.boot);
        if std::mem::take(&mut self.managers.look_again) || is_over {
            self.managers.available_until = None;
            let ids: Vec<_> = self.roster.ids().collect();
            self.managers.available.retain(|id| self.roster.member(*id).is_some());
            ids.into_iter().for_each(|id| self.look_whether_available(id));
            self.managers.fail_backs.on_available(&self.managers.available, self.now.boot);
        } else {
            look_at.into_iter().for_each(|id| self.look_whether_available(id));
        }
    }

    fn look_whether_available(&mut self, id: MemberId) {
        let until = self.available_until(id);
        let managers = &mut self.managers;
        managers.available_until = managers.available_until.into_iter().chain(until).min();
        let has_changed = if until.is_some() { managers.available.insert(id) } else { managers.available.remove(&id) };
        if has_changed {
            managers.all_dirty = true;
            if let Some(electorate) = &mut managers.electorate {
                electorate.set_available(id, until.is_some());
            }
            managers.fail_backs.on_change(id, until.is_some(), self.now.boot);
        }
    }

    /// Returns until when a member may be believed able to manage, unless it is heard again: a hint, since the voters
    /// decide.
    fn available_until(&self, id: MemberId) -> Option<Instant> {
        let now = self.now.boot;
        let far = now + Duration::from_secs(3_600);
        if id == self.me {
            return (self.standing == Standing::Seated).then_some(far);
        }
        if matches!(self.state_of(id), Some(Liveness::Left)) {
            return None;
        }
        // A voter that keeps quiet (R6) has an empty lease table.
        if self.voters.contains(&self.me) && self.voter.quiet_until() <= now {
            if self.planted.has(Bug::DeadStayAvailable) && self.seated.contains_key(&id) {
                return Some(far);
            }
            let (_, expiry) = self.voter.session(id, now)?;
            self.seated.contains_key(&id).then_some(expiry)
        } else {
            // Without a vote there is no lease table: its own word counts, and the prober's that it is there. In a large
            // collective two members without a vote hear each other seldom, so silence alone says nothing.
            let (facts, _) = self.facts.get(&id)?;
            let is_there = matches!(self.state_of(id), Some(Liveness::Alive));
            let end = if self.voters.contains(&self.me) { self.voter.quiet_until() } else { far };
            (facts.standing == Standing::Seated && !facts.leaving && is_there).then_some(end)
        }
    }

    pub(super) fn is_draining(&self, id: MemberId) -> bool {
        self.documents.get(&Entity::Settings, &format!("{DRAIN}{id}")).is_some()
    }

    /// Returns the members as the election sees them now.
    pub(super) fn electorate(&self) -> Electorate {
        self.roster
            .members()
            .map(|member| {
                let runner = Runner {
                    id: member.id,
                    role: member.role,
                    draining: self.is_draining(member.id),
                    available: self.managers.available.contains(&member.id),
                };
                (member.name.clone(), runner)
            })
            .collect()
    }

    /// Elects the manager of one node.
    fn verdict(&self, node: &NodeName, electorate: &Electorate, expressions: &mut Expressions) -> Verdict {
        let lineage = Lineage::new(&self.documents, node);
        let value = |attribute: &str| lineage.get(attribute).and_then(|found| found.filled());
        let record = record_of(&self.documents, node);
        let id_of = |name: &MemberName| self.roster.by_name(name).map(|member| member.id);
        let recorded = || id_of(&record.as_ref()?.value);
        // Who holds the node has released it, or is about to, for this one.
        let handed_to = record.as_ref().and_then(|record| id_of(record.to.as_ref()?));
        let held_by = || self.voter.holder(node, self.now.boot).map(|(id, _, _)| id);
        let contest = Contest {
            cluster: self.roster.cluster,
            node,
            pinned: value("collective.manager"),
            candidates: value("collective.managercandidates"),
            policy: value("collective.managerpolicy").map(Policy::from_attribute).unwrap_or_default(),
            fail_back: value("collective.failback").map(FailBack::from_attribute).unwrap_or_default(),
            holder: handed_to.or_else(held_by).or_else(recorded).filter(|_| !self.planted.has(Bug::NotSticky)),
            despite: record.as_ref().and_then(|record| record.despite.as_ref()).map(MemberName::as_str),
        };
        let mut verdict = election::elect(&contest, electorate, expressions);
        if self.planted.has(Bug::BadCandidateStops) && !verdict.unknown.is_empty() {
            verdict.desired = None;
        }
        verdict
    }

    fn review(&mut self, node: &NodeName, electorate: &Electorate, expressions: &mut Expressions) {
        let exists = self.documents.node_exists(node);
        let verdict = exists.then(|| self.verdict(node, electorate, expressions));
        let desired = verdict.as_ref().and_then(|verdict| verdict.desired.as_ref());
        let here = desired.filter(|desired| Some(*desired) == self.name.as_ref());
        match (here, self.managers.duties.get(node)) {
            (Some(me), None) => {
                // R10: the k-th ranked waits k x T/8.
                let position = verdict.as_ref().and_then(|verdict| verdict.position(me)).unwrap_or(0);
                let position = if self.planted.has(Bug::NoBackOff) { 0 } else { position };
                let wait = self.roster.timing.lease() / 8 * u32::try_from(position).unwrap_or(u32::MAX);
                let since = self.now.boot;
                self.managers.duties.insert(node.clone(), Duty::Waiting { since, at: since + wait });
            }
            (None, Some(_)) => self.give_up(node),
            _ => {}
        }
        let is_acting = self.managers.is_acting(node);
        self.managers
            .fail_backs
            .on_review(node, verdict.and_then(|verdict| verdict.fail_back_to).filter(|_| is_acting));
    }

    /// Stops acting, then releases: break before make.
    fn give_up(&mut self, node: &NodeName) {
        match self.managers.duties.remove(node) {
            Some(Duty::Acting { token }) => {
                self.tell_ceased(node, token);
                self.holder.release(node, self.now.boot);
            }
            Some(Duty::Claiming { .. } | Duty::Recording { .. }) => self.holder.release(node, self.now.boot),
            Some(Duty::Waiting { .. }) | None => {}
        }
    }

    fn tell_ceased(&mut self, node: &NodeName, token: Token) {
        self.effects.push(Effect::Cease { node: node.clone() });
        let about =
            About { member: self.name.clone(), node: Some(node.clone()), token: Some(token.to_string()), until: None };
        self.happen(EventKind::ManagerChanged, about, format!("ceased to manage {node}"));
    }

    /// Ends every duty at once: quorum is lost or the daemon stops.
    pub(super) fn cease_all(&mut self) {
        for (node, duty) in std::mem::take(&mut self.managers.duties).by_node {
            if let Duty::Acting { token } = duty {
                self.tell_ceased(&node, token);
            }
        }
        self.managers.confirmed.clear();
        self.managers.fail_backs.clear();
        self.managers.all_dirty = true;
    }

    /// Moves duties on whose time has come.
    fn serve_duties(&mut self) {
        if self.managers.duties.next_due().is_none_or(|due| due > self.now.boot) {
            return;
        }
        for (node, duty) in self.managers.duties.due_by(self.now.boot, TURN_NODES) {
            match duty {
                Duty::Waiting { since, .. } => self.try_claim(&node, since),
                // R10: no majority within T/2: release, and try again after a random while.
                Duty::Claiming { .. } if !self.planted.has(Bug::NoBackOff) => self.back_off(&node),
                Duty::Claiming { .. } | Duty::Recording { .. } | Duty::Acting { .. } => {}
            }
        }
    }

    fn try_claim(&mut self, node: &NodeName, since: Instant) {
        let now = self.now.boot;
        if let Some((holder, _, expiry)) = self.voter.holder(node, now)
            && holder != self.me
        {
            // Looked at again soon, since the holder may release before its lease ends.
            let at = expiry.min(now + self.roster.timing.lease() / 24);
            self.managers.duties.insert(node.clone(), Duty::Waiting { since, at });
            return;
        }
        if let Some(at) = self.holder_speaks_until(node).filter(|at| *at > now) {
            self.managers.duties.insert(node.clone(), Duty::Waiting { since, at });
            return;
        }
        let last = recorded(&self.documents, &self.roster, node).term.max(self.voter.highest_term(node));
        self.claim(node, if self.planted.has(Bug::TermsUsedAgain) { 1 } else { 1 + last });
    }

    /// R10: returns until when the recorded holder of a node may still tell a voter that has just started what it holds.
    ///
    /// A claim by a higher term would be refused by the voters that know the holder, but not by our own; and that one
    /// would then refuse the holder's lower term for good.
    fn holder_speaks_until(&self, node: &NodeName) -> Option<Instant> {
        let holder = recorded(&self.documents, &self.roster, node).holder.filter(|id| *id != self.me)?;
        let is_gone = matches!(self.state_of(holder), Some(Liveness::Down | Liveness::Left));
        let is_unheard = self.voters.contains(&self.me) && self.voter.session(holder, self.now.boot).is_none();
        // Two rounds: one may be lost.
        (is_unheard && !is_gone).then(|| self.voter.quiet_until() + self.roster.timing.renewal() * 2)
    }

    fn claim(&mut self, node: &NodeName, term: u64) {
        let until = self.now.boot + self.roster.timing.lease() / 2;
        self.managers.duties.insert(node.clone(), Duty::Claiming { term, until });
        self.holder.claim(node.clone(), term, self.now.boot);
    }

    fn back_off(&mut self, node: &NodeName) {
        self.holder.release(node, self.now.boot);
        // R10: T/20 to T/4.
        let lease = self.roster.timing.lease();
        let spread = u64::try_from((lease / 5).as_nanos()).unwrap_or(u64::MAX).max(1);
        let wait = lease / 20 + Duration::from_nanos(self.rng.next_u64() % spread);
        let now = self.now.boot;
        self.managers.duties.insert(node.clone(), Duty::Waiting { since: now, at: now + wait });
    }

    pub(super) fn on_claim_refused(&mut self, node: &NodeName, reason: &RefusalReason) {
        let now = self.now.boot;
        match (self.managers.duties.get(node), reason) {
            (Some(Duty::Claiming { term, .. }), RefusalReason::StaleTerm { at_least }) => {
                self.holder.release(node, now);
                self.claim(node, term.max(*at_least) + 1);
            }
            (Some(Duty::Claiming { .. }), RefusalReason::Held { for_ms, .. }) if !self.planted.has(Bug::NoBackOff) => {
                // Asked again each round, since the holder may release before its lease ends: its release may only be
                // late at this one voter.
                self.claim_later(node, Duration::from_millis(u64::from(*for_ms)).min(self.roster.timing.renewal()));
            }
            (Some(Duty::Claiming { .. }), RefusalReason::Settling { for_ms }) => {
                self.claim_later(node, Duration::from_millis(u64::from(*for_ms)).min(self.roster.timing.lease()));
            }
            (Some(Duty::Recording { .. } | Duty::Acting { .. }), _) => {
                // Somebody else has it: a voter lost its memory, or our lease lapsed unseen.
                self.give_up(node);
                self.managers.touch(node.clone());
            }
            _ => {}
        }
    }

    fn claim_later(&mut self, node: &NodeName, wait: Duration) {
        let now = self.now.boot;
        self.holder.release(node, now);
        let at = now + wait.max(self.roster.timing.lease() / 20);
        self.managers.duties.insert(node.clone(), Duty::Waiting { since: now, at });
    }

    /// Records what the voters confirmed, many nodes in one write.
    fn record_confirmed(&mut self) {
        if self.managers.confirmed.is_empty() {
            return;
        }
        let count = self.managers.confirmed.len().min(RECORDS_MAX);
        let confirmed: Vec<_> = self.managers.confirmed.drain(..count).collect();
        let Some(me) = self.name.clone() else { return };
        let confirmed: Vec<_> = confirmed.into_iter().map(|(node, term)| (node, self.token_of(term))).collect();
        let puts: Vec<_> = confirmed
            .iter()
            .map(|(node, token)| {
                let pinned = attributes::effective(&self.documents, node, "collective.manager");
                let pinned = pinned.and_then(|found| MemberName::new(found.value).ok());
                let by = if pinned.as_ref() == Some(&me) { By::Admin } else { By::Auto };
                let despite = pinned.filter(|pinned| *pinned != me);
                let record = Record { value: me.clone(), by, token: *token, despite, to: None };
                Put {
                    entity: Entity::Node(node.clone()),
                    attribute: Record::ATTRIBUTE.into(),
                    value: Some(record.to_string()),
                }
            })
            .collect();
        let within = self.roster.timing.lease();
        if let Err(failed) = self.write(puts, Wait::Majority, within, Then::Act(confirmed)) {
            let (_, then) = *failed;
            if let Then::Act(nodes) = then {
                nodes.iter().for_each(|(node, _)| self.back_off(node));
            }
        }
    }

    fn token_of(&self, term: u64) -> Token {
        Token::new(self.roster.version, term)
    }

    /// The records are durable on a majority: this member acts from now on.
    ///
    /// They need not be durable here: then the documents still show the record of whoever managed the node before.
    pub(super) fn on_recorded(&mut self, nodes: &[(NodeName, Token)]) {
        for (node, token) in nodes {
            if self.managers.duties.get(node) != Some(Duty::Recording { term: token.term }) {
                continue;
            }
            let token = *token;
            self.managers.duties.insert(node.clone(), Duty::Acting { token });
            // Whether it is to fail back is asked of acting managers only.
            self.managers.touch(node.clone());
            let about = About {
                member: self.name.clone(),
                node: Some(node.clone()),
                token: Some(token.to_string()),
                until: self.holder.acts_until(&self.roster, node),
            };
            let me = self.name_of(self.me);
            self.happen(EventKind::ManagerChanged, about, format!("{me} manages {node}"));
        }
    }

    /// Returns the member that acts for a node, as far as this one knows.
    pub(super) fn manager_of(&self, node: &NodeName) -> Option<MemberId> {
        if self.managers.is_acting(node) {
            return Some(self.me);
        }
        if let Some((id, _, _)) = self.voter.holder(node, self.now.boot) {
            return Some(id).filter(|id| *id != self.me);
        }
        let record = record_of(&self.documents, node)?;
        let id = self.roster.by_name(&record.value)?.id;
        // The record is older than the lease table, so it counts only where there is no table to ask.
        let has_table = self.voters.contains(&self.me) && self.voter.complete_from() <= self.now.boot;
        (id != self.me && !has_table && self.is_live(id)).then_some(id)
    }

    /// Says who manages a node, and why.
    pub(super) fn manager_status(
        &self,
        node: &NodeName,
        why: bool,
        electorate: &Electorate,
        expressions: &mut Expressions,
    ) -> ManagerStatus {
        let verdict = self.verdict(node, electorate, expressions);
        let record = record_of(&self.documents, node);
        let manager = self.manager_of(node).map(|id| self.name_of(id));
        let ruled_out =
            |ranked: &Ranked| Some(RuledOut { member: ranked.member.clone(), reason: ranked.ruled_out?.to_string() });
        ManagerStatus {
            node: node.clone(),
            token: record
                .filter(|record| Some(&record.value) == manager.as_ref())
                .map(|record| record.token.to_string()),
            manager,
            candidates: verdict.ranked.iter().map(|ranked| ranked.member.clone()).collect(),
            ruled_out: if why { verdict.ranked.iter().filter_map(ruled_out).collect() } else { Vec::new() },
            desired: verdict.desired,
            preferred: verdict.preferred,
            reason: verdict.reason.to_string(),
            unknown: verdict.unknown,
        }
    }

    pub(super) fn managers_due(&self) -> Option<Instant> {
        if self.standing != Standing::Seated {
            return None;
        }
        if !self.managers.dirty.is_empty() || !self.managers.confirmed.is_empty() {
            // The next turn.
            return Some(self.now.boot);
        }
        let due = [self.managers.duties.next_due(), self.managers.available_until, self.managers.fail_backs.next_due()];
        due.into_iter().flatten().min()
    }
}
