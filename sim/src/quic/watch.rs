//! What is seen of each core after each event, and what is checked of it; the checkers are those of level `core`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use collective::proto::collective::{Collective, Effect, Event, RequestId};
use collective::proto::document::Entity;
use collective::proto::identity::{ClusterId, MemberId, RosterHash};
use collective::proto::lease::Verdict;
use collective::proto::message::Message;
use collective::proto::name::NodeName;
use collective::proto::record::Record;
use collective::proto::request::{Request, Response, Standing};
use collective::proto::roster::{Timing, Version};
use collective::proto::time::{Instant, Now};

use super::ledger::Ledger;
use super::stage::{Site, State};
use crate::check::{Authority, Final, Rule};
use crate::workload::Outcome;

/// Lease requests that are remembered.
const ASKED_MAX: usize = 400;

/// A core after its last event. Authority in it ends by itself, on the member's own clock.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) me: MemberId,
    pub(super) standing: Standing,
    pub(super) root: [u8; 8],
    pub(super) roster: Arc<SeenRoster>,
    quorum_until: Option<Instant>,
    acting: BTreeMap<NodeName, Instant>,
    /// Members that manage nothing for now, by the documents.
    draining: Arc<BTreeSet<MemberId>>,
}

/// A roster in force.
#[derive(Debug)]
pub(super) struct SeenRoster {
    pub(super) cluster: ClusterId,
    pub(super) version: Version,
    pub(super) hash: RosterHash,
    pub(super) voters: BTreeSet<MemberId>,
    managing: BTreeSet<MemberId>,
    pub(super) members: BTreeSet<MemberId>,
    timing: Timing,
}

impl SeenRoster {
    fn of(core: &Collective) -> Self {
        let roster = core.roster();
        let manages = |id: &MemberId| roster.member(*id).is_some_and(|member| member.role.manages());
        Self {
            cluster: roster.cluster,
            version: roster.version,
            hash: roster.hash(),
            voters: roster.voters().clone(),
            managing: roster.ids().filter(manages).collect(),
            members: roster.ids().collect(),
            timing: roster.timing,
        }
    }
}

impl Seen {
    fn of(core: &Collective, last: Option<&Self>) -> Self {
        let roster = last
            .map(|last| &last.roster)
            .filter(|roster| (roster.cluster, roster.version) == (core.roster().cluster, core.roster().version));
        let roster = roster.cloned().unwrap_or_else(|| Arc::new(SeenRoster::of(core)));
        let root = core.documents().root();
        let same = last.filter(|last| last.root == root && Arc::ptr_eq(&last.roster, &roster));
        let draining = same.map(|last| last.draining.clone()).unwrap_or_else(|| {
            let is_draining =
                |id: &&MemberId| core.documents().get(&Entity::Settings, &format!("!drain/{id}")).is_some();
            Arc::new(roster.members.iter().filter(is_draining).copied().collect())
        });
        let acting = core.acting().filter_map(|node| Some((node.clone(), core.acts_until(node)?))).collect();
        Self {
            me: core.id(),
            standing: core.standing(),
            root,
            roster,
            quorum_until: core.quorum_until(),
            acting,
            draining,
        }
    }

    fn is_quorate(&self, now: Instant) -> bool {
        self.quorum_until.is_some_and(|until| until > now)
    }

    fn acts(&self, node: &NodeName, now: Instant) -> bool {
        self.acting.get(node).is_some_and(|until| *until > now)
    }

    /// Returns whether the member is on its own roster.
    pub(super) fn is_member(&self) -> bool {
        self.roster.members.contains(&self.me)
    }

    /// Returns whether that member may manage nodes, as far as this one knows.
    pub(super) fn lets_manage(&self, id: MemberId) -> bool {
        self.roster.managing.contains(&id) && !self.draining.contains(&id)
    }
}

impl State {
    /// A life of a member begins: whatever was asked or granted before counts for nothing.
    pub(super) fn born(&mut self, at: usize, core: &Collective) {
        self.trace(at, b"born", &[&core.id().0]);
        let site = &mut self.sites[at];
        let is_new = site.member.replace(core.id()) != Some(core.id());
        site.birth += 1;
        site.asked.clear();
        site.seen = None;
        self.ledger.requests.retain(|(member, _), _| *member != at);
        if is_new { self.checker.enrolled(at) } else { self.checker.born(at) }
    }

    /// Takes note of an event before the core does.
    pub(super) fn before(&mut self, at: usize, event: &Event) {
        match event {
            Event::Wake => {}
            Event::Received { peer, message: Message::LeaseAck(ack) } => {
                let granted = matches!(ack.verdict, Verdict::Granted { .. });
                // It stays: of a request that came twice, the first copy may have been refused.
                let sent = self.sites[at].asked.get(&ack.seq).copied().filter(|_| granted);
                let voter = self.sites[at].keys.get(peer).copied();
                if let (Some(sent), Some(voter)) = (sent, voter) {
                    self.checker.contact(at, voter, sent);
                }
            }
            Event::Received { .. } => {}
            event => {
                let text = format!("{event:?}");
                self.trace(at, b"event", &[text.as_bytes()]);
            }
        }
        self.disturb_before(at, event);
        if matches!(event, Event::Expelled { .. }) {
            self.count("expelled");
        }
        if let Event::Request { id, request, .. } = event {
            self.on_request(at, *id, request);
        }
    }

    fn on_request(&mut self, at: usize, id: RequestId, request: &Request) {
        let Request::SetAttributes { assignments, .. } = request else { return };
        if let Some(number) = assignments.first().and_then(|first| Ledger::number_of(first)) {
            self.ledger.requests.insert((at, id), number);
        }
    }

    /// Takes note of what a core decided, and checks what must hold at every moment.
    pub(super) fn after(&mut self, at: usize, core: &Collective, effects: &[Effect], now: Now) {
        for effect in effects {
            match effect {
                Effect::Send { message, .. } => {
                    if let Message::LeaseRequest(request) = message {
                        let asked = &mut self.sites[at].asked;
                        asked.insert(request.seq, now.boot.as_nanos());
                        if asked.len() > ASKED_MAX {
                            asked.pop_first();
                        }
                    }
                }
                Effect::WakeAt(_) => {}
                effect => {
                    let text = format!("{effect:?}");
                    self.trace(at, b"effect", &[text.as_bytes()]);
                    self.on_effect(at, effect);
                }
            }
        }
        if let (Some(event_ms), Some(running)) = (self.active.event_ms(at), &self.sites[at].running) {
            running.process.work_for(Duration::from_millis(event_ms));
        }
        let last = self.sites[at].seen.clone();
        let seen = Arc::new(Seen::of(core, last.as_deref()));
        if last.as_ref().is_none_or(|last| !Arc::ptr_eq(&last.roster, &seen.roster)) {
            self.on_roster(at, core, &seen);
        }
        self.sites[at].seen = Some(seen.clone());
        if self.wanted.remove(&at) {
            let written = |write: &super::ledger::Write| {
                core.documents().get(&Entity::Node(write.node.clone()), &write.key).map(str::to_owned)
            };
            self.found.insert(at, self.ledger.writes.iter().map(written).collect());
        }
        // Checked last: what a member acknowledges it must be entitled to under what it sees now.
        self.check(at, &seen, now.boot);
        for effect in effects {
            if let Effect::Reply { id, response } = effect {
                self.on_reply(at, *id, response, &seen, now.boot);
            }
        }
    }

    fn on_effect(&mut self, at: usize, effect: &Effect) {
        self.disturb_after(at, effect);
        match effect {
            Effect::Save { records, .. } => {
                for record in records {
                    if let Record::Change { id, bytes } = record {
                        self.ledger.note_change(at, *id, bytes);
                    }
                }
            }
            Effect::Publish(facts) => {
                let site = &mut self.sites[at];
                let is_start = site.told != site.birth;
                site.told = site.birth;
                let durable = site.durable.incarnation;
                let time = self.time();
                self.checker.incarnation(time, at, facts.incarnation, durable, is_start);
            }
            Effect::Happened { event, .. } => {
                self.count(crate::trace::counted_as(event.kind));
                self.tell(|| format!("m{at} {:?} {}", event.kind, event.message));
            }
            Effect::SwitchIdentity { .. } => self.count("key switched"),
            Effect::Rebirth { reason } => {
                self.violate(Rule::NothingLost, format!("a document broke on m{at}: {reason}"));
            }
            _ => {}
        }
    }

    /// A roster came into force at a member, or a life began.
    fn on_roster(&mut self, at: usize, core: &Collective, seen: &Seen) {
        let roster = core.roster();
        self.sites[at].keys =
            roster.members().flat_map(|member| member.fingerprints.iter().map(|key| (*key, member.id))).collect();
        if at == 0 && self.cluster.is_none() {
            self.cluster = Some(roster.cluster);
        }
        if self.is_ours(seen) {
            let time = self.time();
            self.checker.roster(time, at, seen.roster.version, seen.roster.hash);
        }
    }

    /// Returns whether a member is in the collective that is watched.
    pub(super) fn is_ours(&self, seen: &Seen) -> bool {
        self.cluster == Some(seen.roster.cluster)
    }

    fn check(&mut self, at: usize, seen: &Seen, now: Instant) {
        if !self.is_ours(seen) {
            return;
        }
        let time = self.time();
        if seen.is_quorate(now) {
            self.count("quorate");
            let who = Authority { member: at, me: seen.me, voters: &seen.roster.voters, timing: seen.roster.timing };
            self.checker.authority(time, who, now.as_nanos(), "holds quorum");
            self.check_quorums(time);
        }
        for node in seen.acting.keys() {
            let acting: Vec<_> = (0..self.sites.len()).filter(|other| self.acts(*other, node)).collect();
            *self.coverage.entry("act").or_default() += acting.len() as u64;
            self.checker.acting(time, node.as_str(), &acting);
        }
    }

    fn check_quorums(&mut self, time: u64) {
        let seen: Vec<_> = self.sites.iter().map(|site| site.seen.clone()).collect();
        let ours: Vec<_> = seen.iter().enumerate().filter_map(|(at, seen)| Some((at, seen.as_deref()?))).collect();
        // Under one voter set two majorities always meet; only different ones need a look.
        if ours.windows(2).all(|pair| pair[0].1.roster.version == pair[1].1.roster.version) {
            return;
        }
        let held: Vec<_> = ours
            .into_iter()
            .filter(|(at, seen)| self.is_ours(seen) && self.is_quorate(*at))
            .map(|(at, seen)| (at, &seen.roster.voters))
            .collect();
        self.checker.quorums(time, &held);
    }

    fn on_reply(&mut self, at: usize, id: RequestId, response: &Response, seen: &Seen, now: Instant) {
        let Some(number) = self.ledger.requests.remove(&(at, id)) else { return };
        if Outcome::of(response) != Outcome::Done {
            return;
        }
        let time = self.time();
        let write = self.ledger.writes[number].clone();
        if write.changes.is_empty() {
            return self.violate(Rule::NothingLost, format!("{} was acknowledged without a change", write.key));
        }
        let votes = |site: &&Site| site.member.is_some_and(|id| seen.roster.voters.contains(&id));
        let holds = |site: &&Site| write.changes.iter().all(|change| site.durable.holds(change));
        let copies = self.sites.iter().filter(votes).filter(holds).count();
        self.count("copies counted");
        self.checker.acknowledged(time, &write.key, copies, seen.roster.voters.len());
        let who = Authority { member: at, me: seen.me, voters: &seen.roster.voters, timing: seen.roster.timing };
        self.checker.authority(time, who, now.as_nanos(), &format!("acknowledges {}", write.key));
    }

    /// Returns whether a member acts for a node at this very moment, by its own clock.
    pub(super) fn acts(&self, at: usize, node: &NodeName) -> bool {
        let site = &self.sites[at];
        let now = site.clock.now(self.time()).boot;
        site.seen.as_ref().is_some_and(|seen| self.is_ours(seen) && seen.acts(node, now))
    }

    /// Returns whether a member holds quorum at this very moment, by its own clock.
    pub(super) fn is_quorate(&self, at: usize) -> bool {
        let site = &self.sites[at];
        let now = site.clock.now(self.time()).boot;
        site.seen.as_ref().is_some_and(|seen| self.is_ours(seen) && seen.is_quorate(now))
    }

    /// Returns whether a member has its seat in the collective that is watched.
    pub(super) fn is_seated(&self, at: usize) -> bool {
        let seen = self.sites[at].seen.as_ref();
        seen.is_some_and(|seen| self.is_ours(seen) && seen.standing == Standing::Seated)
    }

    /// Returns what a member looks like now, for the last check.
    pub(super) fn final_of(&self, at: usize) -> Option<Final> {
        let seen = self.sites[at].seen.as_ref()?;
        let roster = (seen.roster.version, seen.roster.hash);
        let seated = self.is_seated(at) && self.is_quorate(at);
        Some(Final { member: at, roster, root: seen.root, seated })
    }
}
