//! What follows: standing, leader, managers, housekeeping and the next wake-up, derived from state and kept nowhere else.

use std::time::Duration;

use super::changes::Origin;
use super::{About, Collective, Effect};
use crate::proto::facts::{self, Facts};
use crate::proto::identity::MemberId;
use crate::proto::lease::LeaseRelease;
use crate::proto::liveness::Liveness;
use crate::proto::message::{Message, WIRE_MAX, WIRE_MIN};
use crate::proto::name::MemberName;
use crate::proto::planted::Bug;
use crate::proto::request::{EventKind, Standing};
use crate::proto::roster::Change;
use crate::proto::swim::CROWD;
use crate::proto::time::Instant;

/// How long a clean stop may take to hand nodes over.
const STOP_WITHIN: Duration = Duration::from_millis(400);

/// How many views of others a member hears of in one gossip interval, at most about.
const VIEWS_AN_INTERVAL: usize = 8;

impl Collective {
    /// Derives everything that follows from the state, in one order: a later step may rely on an earlier one.
    pub(super) fn settle(&mut self) {
        if self.removed.is_none() {
            self.settle_swim();
            self.settle_standing();
            self.settle_leader();
            self.settle_changes();
            self.settle_housekeeping();
            self.settle_managers();
            self.settle_leases();
            self.settle_publish();
        } else {
            self.settle_standing();
        }
        self.settle_imports();
        self.settle_writes();
        self.settle_runs();
        self.settle_joins();
        self.settle_stop();
        self.settle_wake();
    }

    fn settle_swim(&mut self) {
        if self.swim.next_due() <= self.now.boot {
            let outs = self.swim.tick(self.now.boot);
            self.on_swim(outs);
        }
    }

    /// R12: Isolated, then Rejoining, then Seated.
    fn settle_standing(&mut self) {
        let quorate = self.is_quorate(self.now.boot);
        if quorate {
            self.tenure.on_quorum(self.now.boot);
        }
        if quorate || self.changing_over.is_some_and(|until| until <= self.now.boot) {
            self.changing_over = None;
        }
        let before = self.standing;
        self.standing = match (quorate || self.changing_over.is_some(), before) {
            (false, _) => Standing::Isolated,
            (true, Standing::Isolated) => Standing::Rejoining,
            (true, standing) => standing,
        };
        match (before, self.standing) {
            (Standing::Isolated, Standing::Rejoining) => self.on_quorum_regained(),
            (Standing::Rejoining | Standing::Seated, Standing::Isolated) => self.on_quorum_lost(),
            _ => {}
        }
        if self.standing == Standing::Rejoining && (self.has_resynced() || self.planted.has(Bug::SeatWithoutResync)) {
            self.standing = Standing::Seated;
            self.managers.touch_all();
            self.holder.hurry();
        }
        if self.changing_over.is_none() && !self.deferred.is_empty() {
            if self.planted.has(Bug::DeferredForgotten) {
                self.deferred.clear();
            }
            self.take_up_deferred();
        }
    }

    /// R12: the documents of a majority of the voters, its own among them, were received since quorum came back.
    fn has_resynced(&self) -> bool {
        let others = self.resynced.iter().filter(|id| **id != self.me && self.voters.contains(id)).count();
        let held = others + usize::from(self.voters.contains(&self.me));
        held >= crate::proto::quorum::majority(self.voters.len())
    }

    fn on_quorum_regained(&mut self) {
        let quorum = self.holder.quorum(&self.roster, self.now.boot);
        let after = self.isolated_since.take().map(|since| self.now.boot.since(since)).unwrap_or_default();
        let message = format!(
            "quorum is held with {} of {} votes, after {:.1} s without",
            quorum.granted,
            quorum.voters,
            after.as_secs_f64()
        );
        self.happen(EventKind::QuorumRegained, About::nothing(), message);
        self.resynced.clear();
        let outs = self.swim.reconsider(self.now.boot);
        self.on_swim(outs);
        // R12 asks for the voters; what others hold that these do not shows in the roots that they tell.
        let linked: Vec<_> = self.voters.iter().copied().filter(|id| self.links.contains_key(id)).collect();
        linked.into_iter().for_each(|id| self.begin_resync(id));
    }

    fn on_quorum_lost(&mut self) {
        let quorum = self.holder.quorum(&self.roster, self.now.boot);
        self.isolated_since = Some(self.now.boot);
        self.resynced.clear();
        let message = format!(
            "quorum is lost: {} of {} votes, {} needed; writes and actions are refused",
            quorum.granted,
            quorum.voters,
            quorum.needed()
        );
        self.happen(EventKind::QuorumLost, About::nothing(), message);
        self.cease_all();
        self.holder.release_all(self.now.boot);
        self.fail_writes();
        self.forget_told_intent();
    }

    /// The leader is the lowest-named live voter in a quorate view; nothing depends on it for safety.
    fn settle_leader(&mut self) {
        let leader = if self.standing == Standing::Isolated { None } else { self.lowest_live_voter() };
        if leader != self.leader.as_ref() {
            let leader = leader.cloned();
            if let Some(name) = &leader {
                self.happen(EventKind::LeaderChanged, About::member(name.clone()), format!("{name} leads"));
            }
            self.leader = leader;
        }
    }

    fn lowest_live_voter(&self) -> Option<&MemberName> {
        let lowest = self.roster.voters_by_name().iter().find(|id| self.is_live(**id))?;
        self.roster.member(*lowest).map(|member| &member.name)
    }

    /// Returns whether a member is there, as far as this one can tell: its lease here is proof, the prober's word the
    /// next best thing.
    pub(super) fn is_live(&self, id: MemberId) -> bool {
        id == self.me
            || self.voter.session(id, self.now.boot).is_some()
            || matches!(self.state_of(id), Some(Liveness::Alive))
    }

    /// The leader gives and takes votes, and each member finishes its own key rotation.
    fn settle_housekeeping(&mut self) {
        if self.standing != Standing::Seated || self.is_changing() || self.stopping.is_some() {
            return;
        }
        // A seat outlasts the moment in which a roster changes over. Quorum says that a majority has the present one: who
        // took its new key into use before that would be a stranger to all who have to be told of it.
        if !self.is_quorate(self.now.boot) {
            return;
        }
        self.tell_intent();
        if let Some(me) = self.roster.member(self.me)
            && me.fingerprints.len() > 1
        {
            let newest = *me.fingerprints.last().expect("a member has at least one key");
            if newest == self.fingerprint {
                let change = Change::KeepFingerprint { id: self.me, fingerprint: newest };
                self.want_change(change, Origin::Housekeeping);
            } else {
                self.effects.push(Effect::SwitchIdentity { fingerprint: newest });
            }
            return;
        }
        if self.leader != self.name {
            return;
        }
        self.settle_voters();
    }

    /// R3: returns whether a learner is fully resynced and holds grants, by its own word, and for so long that it may
    /// grant in turn: a voter in its quiet start (R6) would take quorum away from a collective of two.
    pub(super) fn is_ready(&self, id: MemberId) -> bool {
        if self.planted.has(Bug::LearnersVoteAtOnce) {
            return self.roster.member(id).is_some_and(|member| member.learner);
        }
        self.roster.member(id).is_some_and(|member| member.learner)
            && self.voter.session(id, self.now.boot).is_some()
            && self.ready_at(id).is_some_and(|at| at <= self.now.boot)
    }

    fn ready_at(&self, id: MemberId) -> Option<Instant> {
        self.seated.get(&id).map(|since| *since + self.roster.timing.quiet())
    }

    /// Returns when the next learner may be ready.
    fn housekeeping_due(&self) -> Option<Instant> {
        if self.standing != Standing::Seated || self.leader != self.name || self.is_changing() {
            return None;
        }
        let ready = self.roster.learners().iter().filter_map(|id| self.ready_at(*id));
        ready.min().map(|at| at.max(self.voters_looked_at_again()))
    }

    fn settle_leases(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let seated = self.standing == Standing::Seated;
        for (to, request) in self.holder.tick(&self.roster, self.stamp, seated, self.now.boot) {
            self.say(to, Message::LeaseRequest(request));
        }
    }

    /// Tells what changed about this member at once. How it sees the others is for people to look at, and while many
    /// come or go it would change with each of them: once a gossip interval is as often as anybody hears of it, and more
    /// seldom among many, each of whom hears all others.
    fn settle_publish(&mut self) {
        if let Some(published) = &self.published
            && self.is_told_of_me(published)
            && self.view_due(published).is_none_or(|due| due > self.now.boot)
        {
            return;
        }
        let of_view = self.swim.view().changes();
        let same_view = self.published.as_ref().filter(|published| published.of_view == of_view);
        let (view, sees) = match same_view {
            Some(published) => (published.facts.view, published.facts.sees.clone()),
            None => (self.swim.view().hash().to_be_bytes(), self.sees()),
        };
        let at = same_view.map_or(self.now.boot, |published| published.at);
        let root = self.documents.root();
        let same_root = self.published.as_ref().filter(|published| published.facts.root == root);
        let root_at = same_root.map_or(self.now.boot, |published| published.root_at);
        let facts = Facts {
            addresses: self.addresses.clone(),
            software: self.software.clone(),
            wire: (WIRE_MIN, WIRE_MAX),
            incarnation: self.stamp.incarnation,
            session: Some(self.session),
            leaving: self.stopping.is_some(),
            root,
            version: self.roster.version,
            standing: self.standing,
            manages: self.manages(),
            view,
            sees,
            suspicions: self.suspicions.clone(),
        };
        if self.published.as_ref().is_none_or(|published| published.facts != facts) {
            self.effects.push(Effect::Publish(facts.clone()));
        }
        self.published = Some(Published { facts, of_view, at, root_at });
    }

    /// Returns a letter for each member, in the order of the ids, in runs.
    fn sees(&self) -> String {
        // The view has the members of the roster, and this one even when it was taken off.
        let others = self.swim.view().iter().filter(|(id, _)| *id != self.me || self.roster.member(*id).is_some());
        facts::in_runs(others.map(|(id, belief)| letter(if id == self.me { None } else { Some(belief.state) })))
    }

    /// Returns whether what was published of this member itself is so still. Everything in [`Facts`] that changes in the
    /// life of a process is looked at here, or follows from the view.
    fn is_told_of_me(&self, published: &Published) -> bool {
        let facts = &published.facts;
        self.root_due(published).is_none_or(|due| due > self.now.boot)
            && facts.version == self.roster.version
            && facts.incarnation == self.stamp.incarnation
            && facts.standing == self.standing
            && facts.manages == self.manages()
            && facts.leaving == self.stopping.is_some()
            && facts.suspicions == self.suspicions
    }

    /// Returns from when on a root that is not told yet may be told. Voters tell it at once, since everybody compares with
    /// them; were all of a crowd to do so, each write would have each of them hear from all others.
    fn root_due(&self, published: &Published) -> Option<Instant> {
        let interval = Duration::from_millis(u64::from(self.roster.timing.gossip_interval_ms));
        let apart = u32::try_from(self.roster.len() / CROWD).unwrap_or(u32::MAX);
        let is_patient = self.roster.len() > CROWD && !self.voters.contains(&self.me);
        let due = if is_patient { published.root_at + interval * apart } else { self.now.boot };
        (published.facts.root != self.documents.root()).then_some(due)
    }

    /// Returns whether what another member holds is this one's to watch. In a crowd the voters watch everybody, and
    /// everybody else watches them as long as there is a link to one: what one has then reaches all.
    pub(super) fn watches(&self, id: MemberId) -> bool {
        self.roster.len() <= CROWD
            || self.voters.contains(&self.me)
            || self.voters.contains(&id)
            || !self.voters.iter().any(|voter| self.links.contains_key(voter))
    }

    /// Returns from when on a view that is not told yet may be told.
    fn view_due(&self, published: &Published) -> Option<Instant> {
        let interval = Duration::from_millis(u64::from(self.roster.timing.gossip_interval_ms));
        let apart = 1 + u32::try_from(self.roster.len() / VIEWS_AN_INTERVAL).unwrap_or(u32::MAX);
        (published.of_view != self.swim.view().changes()).then(|| published.at + interval * apart)
    }

    fn manages(&self) -> u32 {
        u32::try_from(self.managers.acting_count()).unwrap_or(u32::MAX)
    }

    /// A clean stop: others need not wait for the lease to end.
    pub(super) fn on_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(self.now.boot + STOP_WITHIN);
        self.cease_all();
        self.holder.release_all(self.now.boot);
        let release = LeaseRelease { session: self.session };
        for voter in self.voters.clone() {
            self.say(voter, Message::LeaseRelease(release));
        }
        let outs = self.swim.leave(self.now.boot);
        self.on_swim(outs);
    }

    fn settle_stop(&mut self) {
        if let Some(until) = self.stopping
            && (self.saves.is_empty() || self.now.boot >= until)
        {
            self.halted = true;
            self.effects.push(Effect::Halt);
        }
    }

    fn settle_wake(&mut self) {
        let alive = self.removed.is_none();
        let boot = self.now.boot;
        let wake = [
            alive.then(|| self.swim.next_due()),
            alive.then(|| self.holder.next_due(&self.roster)),
            alive.then(|| self.holder.quorum_until(&self.roster)).flatten().filter(|until| *until > boot),
            alive.then(|| self.voter.next_expiry(boot)).flatten(),
            self.changes_due(),
            self.housekeeping_due(),
            self.imports_due(),
            self.writes_due(),
            self.managers_due(),
            self.runs_due(),
            self.joins_due(),
            self.stopping,
            self.changing_over,
            self.published.as_ref().filter(|_| alive).and_then(|published| self.view_due(published)),
            self.published.as_ref().filter(|_| alive).and_then(|published| self.root_due(published)),
        ]
        .into_iter()
        .flatten()
        .min();
        // A due time that has passed and was not served now is served a moment later, never in a busy loop.
        let wake = wake.map(|wake| wake.max(boot + Duration::from_millis(1)));
        if let Some(wake) = wake
            && self.wake != Some(wake)
        {
            self.wake = Some(wake);
            self.effects.push(Effect::WakeAt(wake));
        }
    }
}

/// What this member told last, and as of which change of its view.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) facts: Facts,
    of_view: u64,
    /// When the view was told.
    at: Instant,
    /// When the root was told.
    root_at: Instant,
}

fn letter(state: Option<Liveness>) -> char {
    match state {
        None | Some(Liveness::Alive) => 'A',
        Some(Liveness::Suspect) => 'S',
        Some(Liveness::Down) => 'D',
        Some(Liveness::Left) => 'L',
    }
}

/// Reads a letter of [`Facts::sees`] back as a word.
pub(super) fn state_of_letter(letter: char) -> &'static str {
    match letter {
        'A' => "alive",
        'S' => "suspect",
        'D' => "down",
        'L' => "left",
        _ => "unknown",
    }
}
