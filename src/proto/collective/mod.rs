//! One member's whole mind: facts go in as events, decisions come out as effects.
//!
//! ```text
//!   Event ──> handle(event, now) ──> absorb: change state ──> settle: derive what follows ──> Vec<Effect>
//! ```
//!
//! An event never acts by itself: it changes state, and `settle` decides what follows from roster, view,
//! leases and documents. The shell performs the effects in the order given; what must be durable before it is told is
//! saved first, and told when the save's completion comes back as an event.

mod answers;
mod changes;
mod event;
mod failback;
mod handover;
mod imports;
mod joining;
mod links;
mod lookups;
mod managers;
mod plans;
mod refusals;
mod requests;
mod runs;
mod settle;
#[cfg(test)]
mod tests;
mod voters;
mod writes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::document::{Actor, ChangeId, Documents, NewChange};
use super::epoch::{Acceptor, Proposer, Tenure};
use super::facts::{Facts, PeerRecord};
use super::identity::{Fingerprint, InviteId, MemberId, SessionId};
use super::invite::{Invite, Invites};
use super::lease::{Holder, Stamp, Voter};
use super::message::{Delivery, Hello, Message};
use super::name::{MemberName, NodeName};
use super::planted::{Bug, Planted};
use super::record::Record;
use super::request::{EventKind, LoggedEvent, Request, Response, Standing};
use super::roster::Roster;
use super::swim::Swim;
use super::sync::Acks;
use super::time::{Instant, Now, WallTime};

use changes::PendingChange;
pub use event::{Birth, Effect, Event, Job, JobId, JoinId, Peer, RequestId, Ticket};
use handover::Handover;
use links::Link;
use managers::Managers;
use runs::Runs;
pub use voters::Intent;
use voters::Voters;
use writes::Writes;

/// Events kept for `collective events`.
const EVENTS_MAX: usize = 2_000;

/// What follows once a save is durable.
#[derive(Debug)]
enum AfterSave {
    /// The roster is in force.
    Adopt(Box<Roster>),
    /// This may be said.
    Say(MemberId, Box<Message>),
    /// These changes are visible; a peer sent them.
    Received(Vec<ChangeId>),
    /// These changes are visible and may be sent; a request or the core made them.
    Written(Vec<NewChange>),
    /// This incarnation may be told.
    Incarnation(u64),
    /// This stamp may be told.
    Sequence(u64),
    /// The invitation holds.
    Invited(RequestId, Box<Response>),
}

/// One member's whole mind. See the module's documentation.
#[derive(Debug)]
pub struct Collective {
    me: MemberId,
    /// The name this member had when it was last on the roster.
    name: Option<MemberName>,
    session: SessionId,
    stamp: Stamp,
    /// The sequence of the newest safety-critical save, which may not be durable yet.
    sequence: u64,
    fingerprint: Fingerprint,
    roster: Roster,
    voters: BTreeSet<MemberId>,
    removed: Option<String>,
    addresses: Vec<SocketAddr>,
    software: String,
    rng: ChaCha8Rng,

    acceptor: Acceptor,
    proposer: Proposer,
    pending_changes: VecDeque<PendingChange>,
    /// A roster that was accepted here and is not decided, and when to look after it.
    left_open: Option<(super::roster::Version, Instant)>,
    /// The version of a roster that is being stored.
    adopting: Option<super::roster::Version>,

    holder: Holder,
    voter: Voter,
    standing: Standing,
    /// Until when quorum may be missing because a roster was just adopted: every grant is of the one before.
    changing_over: Option<Instant>,
    /// Requests that came in that moment.
    deferred: Vec<Deferred>,
    /// For how long quorum has been held under the present voters (R2).
    tenure: Tenure,
    /// When quorum was lost; none while it is held.
    isolated_since: Option<Instant>,
    /// Voters whose documents were received in full since quorum came back (R12).
    resynced: BTreeSet<MemberId>,
    /// Since when each member's lease requests say that it is seated; others are not in it.
    seated: BTreeMap<MemberId, Instant>,
    /// Members of whom two live sessions were seen.
    duplicates: BTreeSet<MemberId>,
    leader: Option<MemberName>,

    swim: Swim,
    facts: BTreeMap<MemberId, (Facts, Instant)>,
    suspicions: BTreeMap<MemberId, u64>,
    peers: BTreeMap<MemberId, PeerRecord>,
    links: BTreeMap<MemberId, Link>,
    trouble: BTreeMap<MemberId, String>,
    published: Option<settle::Published>,

    documents: Documents,
    actor: Actor,
    acks: Acks,
    writes: Writes,
    handover: Handover,
    managers: Managers,
    runs: Runs,
    imports: imports::Imports,
    voter_set: Voters,
    invites: Invites,
    /// The invitations as they were last given to the store.
    saved_invites: BTreeMap<InviteId, Invite>,
    joins: BTreeMap<JoinId, joining::Joining>,

    saves: BTreeMap<Ticket, Vec<AfterSave>>,
    last_ticket: Ticket,
    happened: VecDeque<LoggedEvent>,
    happened_seq: u64,
    stopping: Option<Instant>,
    halted: bool,
    wake: Option<Instant>,
    /// Messages from this member to itself, taken before the next step.
    to_self: VecDeque<Message>,
    effects: Vec<Effect>,
    now: Now,
    planted: Planted,
}

impl Collective {
    /// Starts a member's mind from what its store kept.
    ///
    /// Returns it with the first effects: links to keep, facts to tell, when to wake.
    pub fn start(birth: Birth, now: Now) -> (Self, Vec<Effect>) {
        let Birth { me, session, stamp, fingerprint, roster, acceptor, invites, peers, documents, .. } = birth;
        let timing = roster.timing;
        // R6 may be skipped when no other session of this collective can exist: the first epoch has one member only.
        let alone = roster.version.epoch == 1 && roster.len() == 1;
        let mut holder = Holder::new(me, session);
        let mut voter = Voter::new(session, now.boot, timing, alone);
        for (id, record) in &peers {
            let stamp = Stamp { incarnation: record.incarnation, sequence: record.sequence };
            voter.remember(*id, stamp);
            holder.remember(*id, stamp);
        }
        let mut rng = ChaCha8Rng::from_seed(birth.seed);
        let proposer_seed = rng.next_u64();
        let mut collective = Self {
            me,
            name: roster.member(me).map(|member| member.name.clone()),
            session,
            stamp,
            sequence: stamp.sequence,
            fingerprint,
            voters: roster.voters().clone(),
            removed: birth.removed,
            addresses: birth.addresses,
            software: birth.software,
            acceptor: Acceptor::new(me, acceptor, &roster),
            proposer: Proposer::new(me, proposer_seed),
            pending_changes: VecDeque::new(),
            adopting: None,
            left_open: None,
            holder,
            voter,
            standing: Standing::Isolated,
            changing_over: None,
            deferred: Vec::new(),
            tenure: Tenure::default(),
            isolated_since: Some(now.boot),
            resynced: BTreeSet::new(),
            seated: BTreeMap::new(),
            duplicates: BTreeSet::new(),
            leader: None,
            swim: Swim::new(me, stamp.incarnation, timing, birth.seed, now.boot),
            facts: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            peers,
            links: BTreeMap::new(),
            trouble: BTreeMap::new(),
            published: None,
            documents,
            actor: birth.actor,
            acks: Acks::default(),
            writes: Writes::new(birth.quarantined),
            handover: Handover::default(),
            managers: Managers::default(),
            runs: Runs::default(),
            imports: imports::Imports::new(),
            voter_set: Voters::new(birth.intent),
            saved_invites: invites.iter().map(|invite| (invite.id, invite.clone())).collect(),
            invites: Invites::restore(birth.decoy, invites),
            joins: BTreeMap::new(),
            saves: BTreeMap::new(),
            last_ticket: 0,
            happened: VecDeque::new(),
            happened_seq: 0,
            stopping: None,
            halted: false,
            wake: None,
            to_self: VecDeque::new(),
            effects: Vec::new(),
            now,
            planted: Planted::default(),
            rng,
            roster,
        };
        let ids: Vec<_> = collective.roster.ids().collect();
        collective.swim.set_members(ids.into_iter(), now.boot);
        collective.tell_peers();
        collective.managers.touch_all();
        let effects = collective.finish();
        (collective, effects)
    }

    /// Plants bugs, for the simulator to find; without effect in a release build.
    #[doc(hidden)]
    pub fn plant(&mut self, planted: Planted) {
        self.planted = planted;
        self.voter.plant(planted);
        self.holder.plant(planted);
        self.proposer.plant(planted);
    }

    /// Takes one event in and returns what must be done about it, in order.
    ///
    /// `now` is read from both clocks just before the call and never goes back on the boot clock.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.now = now;
        if !self.halted {
            self.absorb(event);
        }
        self.finish()
    }

    /// Returns whether this member acts for that node at that very moment (R5). Never cached.
    pub fn acts(&self, node: &NodeName, now: Instant) -> bool {
        if self.planted.has(Bug::ActingIsCached) {
            return self.managers.is_acting(node);
        }
        self.acts_until(node).is_some_and(|until| until > now)
    }

    /// Returns until when this member acts for that node, unless something happens before; that may be over already.
    pub fn acts_until(&self, node: &NodeName) -> Option<Instant> {
        let may_act = self.removed.is_none() && self.managers.is_acting(node);
        self.holder.acts_until(&self.roster, node).filter(|_| may_act)
    }

    /// Returns the nodes that this member acts for, and until when, as [`Self::acts_until`] says it.
    pub fn acting_until(&self) -> impl Iterator<Item = (&NodeName, Instant)> {
        let grants = self.holder.under(&self.roster);
        let acting = self.managers.acting().filter(|_| self.removed.is_none());
        acting.filter_map(move |node| Some((node, grants.acts_until(node)?)))
    }

    /// Returns whether this member holds quorum at that very moment.
    pub fn is_quorate(&self, now: Instant) -> bool {
        self.removed.is_none() && self.holder.quorum(&self.roster, now).is_held()
    }

    /// Returns until when this member holds quorum, unless something happens before; that may be over already.
    pub fn quorum_until(&self) -> Option<Instant> {
        self.holder.quorum_until(&self.roster).filter(|_| self.removed.is_none())
    }

    /// Returns how far this session has come.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Returns the roster in force.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Returns the documents.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Returns the nodes that this member acts for, whether or not the lease still holds.
    pub fn acting(&self) -> impl Iterator<Item = &NodeName> {
        self.managers.acting()
    }

    /// Returns what this member believes of another.
    pub fn believes(&self, member: MemberId) -> Option<super::liveness::Liveness> {
        self.swim.view().get(member).map(|belief| belief.state)
    }

    /// Returns the members whose documents are not listened to.
    pub fn quarantined(&self) -> &BTreeSet<MemberId> {
        self.writes.quarantined()
    }

    /// Returns the name this member has, or had when it was last on the roster.
    pub fn name(&self) -> Option<MemberName> {
        self.name.clone()
    }

    /// Returns whether this member was taken off the roster.
    pub fn is_removed(&self) -> bool {
        self.removed.is_some()
    }

    /// Returns where this member can be reached, as far as it knows itself.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns this member's id.
    pub fn id(&self) -> MemberId {
        self.me
    }

    /// Returns what this member says first on a new link.
    pub fn hello(&self) -> Hello {
        Hello {
            wire_min: super::message::WIRE_MIN,
            wire_max: super::message::WIRE_MAX,
            software: self.software.clone(),
            cluster: self.roster.cluster,
            session: self.session,
            version: self.roster.version,
        }
    }

    fn absorb(&mut self, event: Event) {
        match event {
            Event::Wake => {}
            Event::LinkUp { peer, address, hello } => self.on_link_up(peer, address, hello),
            Event::LinkDown { peer, reason } => self.on_link_down(peer, reason),
            Event::Expelled { notice } => self.on_expelled(notice),
            Event::Received { peer, message } => {
                // A frame of a key that is no longer on the roster may still be under way; it counts for nothing.
                if let Some(from) = self.roster.by_fingerprint(peer).map(|member| member.id) {
                    self.on_frame_of(from, &message);
                    self.on_message(from, message);
                }
            }
            Event::Gossip { peer, facts } => self.on_gossip(peer, facts),
            Event::Saved { tickets } => tickets.into_iter().for_each(|ticket| self.on_saved(ticket)),
            Event::NotSaved { ticket, reason } => self.on_not_saved(ticket, &reason),
            Event::Request { id, request, within_ms, entropy } => {
                self.on_request(id, request, Duration::from_millis(within_ms), entropy);
            }
            Event::JoinHello { id, hello } => self.on_join_hello(id, hello),
            Event::JoinProof { id, proof, peer, exporter, address } => {
                self.on_join_proof(id, proof, peer, exporter, address);
            }
            Event::JobDone { id, result } => self.on_job_done(id, result),
            Event::IdentityInUse { fingerprint } => self.fingerprint = fingerprint,
            Event::Rotate { id, fingerprint } => self.on_rotate(id, fingerprint),
            Event::Stop => self.on_stop(),
        }
    }

    /// Settles until nothing is left to say to oneself, and hands the effects over.
    fn finish(&mut self) -> Vec<Effect> {
        loop {
            while let Some(message) = self.to_self.pop_front() {
                self.on_message(self.me, message);
            }
            if self.halted {
                break;
            }
            self.settle();
            if self.to_self.is_empty() {
                break;
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// Says something to a member; to oneself too.
    fn say(&mut self, to: MemberId, message: Message) {
        let delivery = message.delivery();
        self.say_by(to, message, delivery);
    }

    fn say_by(&mut self, to: MemberId, message: Message, delivery: Delivery) {
        if to == self.me {
            self.to_self.push_back(message);
        } else if let Some(fingerprint) = self.link_fingerprint(to) {
            self.effects.push(Effect::Send { to: fingerprint, message, delivery });
        }
    }

    /// Asks for a save; `after` follows once it is durable.
    fn save(&mut self, records: Vec<Record>, after: Vec<AfterSave>) {
        self.last_ticket += 1;
        self.saves.insert(self.last_ticket, after);
        self.effects.push(Effect::Save { ticket: self.last_ticket, records });
    }

    fn on_saved(&mut self, ticket: Ticket) {
        // Whatever save it was: the disk has room again.
        self.writes.disk_trouble = None;
        for after in self.saves.remove(&ticket).unwrap_or_default() {
            match after {
                AfterSave::Adopt(roster) => self.enforce(*roster),
                AfterSave::Say(to, message) => self.say(to, *message),
                AfterSave::Received(ids) => self.on_received_durable(&ids),
                AfterSave::Written(changes) => self.on_written_durable(&changes),
                AfterSave::Incarnation(incarnation) => {
                    self.stamp.incarnation = incarnation;
                    self.holder.on_raised();
                    let outs = self.swim.incarnation_saved(incarnation);
                    self.on_swim(outs);
                }
                AfterSave::Sequence(sequence) => {
                    self.stamp.sequence = sequence;
                    self.holder.on_raised();
                }
                AfterSave::Invited(id, response) => self.reply(id, *response),
            }
        }
    }

    fn reply(&mut self, id: RequestId, response: impl Into<Response>) {
        self.effects.push(Effect::Reply { id, response: response.into() });
    }

    /// Notes that something happened, for people, logs and hooks.
    fn happen(&mut self, kind: EventKind, about: About, message: String) {
        self.happened_seq += 1;
        let event = LoggedEvent {
            schema: Default::default(),
            seq: self.happened_seq,
            time: answers::time_text(self.now.wall),
            kind,
            member: about.member,
            node: about.node,
            token: about.token,
            message,
        };
        if self.happened.len() >= EVENTS_MAX {
            self.happened.pop_front();
        }
        self.happened.push_back(event.clone());
        self.effects.push(Effect::Happened { event, until: about.until });
    }

    fn name_of(&self, id: MemberId) -> MemberName {
        self.roster
            .member(id)
            .map(|member| member.name.clone())
            .or_else(|| self.roster.removed(id).map(|removed| removed.name.clone()))
            .unwrap_or_else(|| self.name.clone().unwrap_or_else(answers::nobody))
    }

    fn wall(&self) -> WallTime {
        self.now.wall
    }
}

/// A request that waits for the first grants under a new roster.
#[derive(Debug)]
struct Deferred {
    id: RequestId,
    request: Request,
    /// When its asker gives up.
    until: Instant,
    entropy: Box<[u8; 40]>,
}

/// What an event of the log is about.
#[derive(Clone, Debug, Default)]
struct About {
    member: Option<MemberName>,
    node: Option<NodeName>,
    token: Option<String>,
    until: Option<Instant>,
}

impl About {
    fn nothing() -> Self {
        Self::default()
    }

    fn member(name: MemberName) -> Self {
        Self { member: Some(name), ..Self::default() }
    }
}
