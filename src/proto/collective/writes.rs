//! Writes and their confirmation, and the flow of changes between members.
//!
//! ```text
//!   request ─> Documents::cut ─> write_batch ─> Save ─(durable)─> visible here, sent ─> peers: vet, Save, Durable
//!                                    ^                                                └─ a majority of voters ─> "ok"
//!                                    └── the next turn, while few are under way
//! ```
//! A large write is made in turns, so that nothing else, leases above all, waits for longer than one of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::managers::record_ahead;
use super::{About, AfterSave, Collective, Effect, RequestId};
use crate::proto::document::{
    Actor, Batch, ChangeId, DocumentError, Documents, Entity, Generation, NewChange, Put, Rejected, ShardId, Touched,
};
use crate::proto::election::{self, Token};
use crate::proto::identity::MemberId;
use crate::proto::message::Message;
use crate::proto::name::NodeName;
use crate::proto::planted::Bug;
use crate::proto::record::Record;
use crate::proto::request::{Done, ErrorCode, EventKind, Refusal, Response, Wait};
use crate::proto::sync::{self, Resync, SyncError, SyncMessage, Watch};
use crate::proto::time::Instant;

/// How often the roots that members tell are compared.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// How long a comparison of documents may take that gets no answer.
const COMPARE_WITHIN: Duration = Duration::from_secs(10);
/// Changes in one document after which it is stored whole again.
const SNAPSHOT_AFTER: usize = 1_000;
/// Values that a write sets in one turn, about.
const TURN_PUTS: usize = 1_000;
/// Turns of one write that may be under way, so that it never outruns the disks and the links.
pub(super) const TURNS_AHEAD: usize = 4;

/// Writes that wait for copies, and changes that wait to be acknowledged to their authors.
#[derive(Debug, Default)]
pub(super) struct Writes {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
    /// What was made durable here in this step, by the member whose writes they are.
    owed: BTreeMap<MemberId, Vec<ChangeId>>,
    watch: Watch,
    watch_at: Instant,
    /// Members whose documents are not listened to, since they sent what broke one.
    quarantined: BTreeSet<MemberId>,
    /// Why the last save failed; none once one succeeded.
    pub(super) disk_trouble: Option<String>,
    /// A number for each comparison of documents.
    pub(super) round: u64,
    /// Members with whom one is under way, and those of them with whom it may have ended in this step.
    comparing: BTreeSet<MemberId>,
    compared: BTreeSet<MemberId>,
}

/// One write that is not answered yet.
#[derive(Debug)]
struct Waiting {
    /// What is still to be written.
    rest: VecDeque<Batch>,
    /// How many values there are in all.
    puts: usize,
    /// The last change of each author in each document: what a majority must hold (I3).
    awaits: BTreeMap<(ShardId, Generation, Actor), u64>,
    /// The last change of each turn that was not seen to be held yet.
    ahead: VecDeque<ChangeId>,
    wait: Wait,
    until: Instant,
    then: Then,
}

impl Waiting {
    fn awaits(&self) -> impl Iterator<Item = ChangeId> {
        self.awaits.iter().map(|((shard, generation, actor), seq)| ChangeId {
            shard: *shard,
            generation: *generation,
            actor: *actor,
            seq: *seq,
        })
    }

    fn await_also(&mut self, ids: &[ChangeId]) {
        for id in ids {
            let seq = self.awaits.entry((id.shard, id.generation, id.actor)).or_default();
            *seq = id.seq.max(*seq);
        }
        self.ahead.extend(ids.last());
    }
}

/// What follows a confirmed write.
#[derive(Debug)]
pub(super) enum Then {
    /// An administrator is answered.
    Reply(RequestId, Box<Response>),
    /// The nodes whose manager record this is may be acted for.
    Act(Vec<(NodeName, Token)>),
    /// Nothing: whoever reads what was written acts on it.
    Nothing,
}

impl Writes {
    pub(super) fn new(quarantined: BTreeSet<MemberId>) -> Self {
        Self { quarantined, ..Self::default() }
    }

    pub(super) fn quarantined(&self) -> &BTreeSet<MemberId> {
        &self.quarantined
    }

    /// Returns the numbers of the writes of which something is still to be written.
    fn unfinished(&self) -> Vec<u64> {
        self.waiting.iter().filter(|(_, waiting)| !waiting.rest.is_empty()).map(|(key, _)| *key).collect()
    }
}

impl Collective {
    /// Writes puts, and does `then` once `wait` is fulfilled.
    ///
    /// # Errors
    /// A refusal when the puts cannot be written at all; nothing is stored then.
    pub(super) fn write(
        &mut self,
        puts: Vec<Put>,
        wait: Wait,
        within: Duration,
        then: Then,
    ) -> Result<(), Box<(Refusal, Then)>> {
        self.write_beside(BTreeSet::new(), puts, wait, within, then)
    }

    /// Writes puts where something else that was asked for is so already, in these documents: `wait` is for that, too.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn write_beside(
        &mut self,
        unchanged: BTreeSet<ShardId>,
        puts: Vec<Put>,
        wait: Wait,
        within: Duration,
        then: Then,
    ) -> Result<(), Box<(Refusal, Then)>> {
        if let Some(reason) = &self.writes.disk_trouble {
            let refusal = Refusal::new(
                ErrorCode::Failure,
                format!("the store takes no writes: {reason}"),
                "make room on the disk that holds the state directory, then try again",
            );
            return Err(Box::new((refusal, then)));
        }
        let rest = match self.documents.cut(puts) {
            Ok(batches) => batches,
            Err(error) => return Err(Box::new((refuse_write(&error), then))),
        };
        let mut waiting = Waiting {
            puts: rest.iter().map(Batch::puts).sum(),
            rest,
            awaits: BTreeMap::new(),
            ahead: VecDeque::new(),
            wait,
            until: self.now.boot + within,
            then,
        };
        // I3: what is there already may be on this member alone. A change of the same document brings it along.
        let changed: BTreeSet<_> = waiting.rest.iter().map(Batch::shard).collect();
        let is_overlooked = self.planted.has(Bug::UnchangedIsHeld);
        let unchanged = unchanged.difference(&changed).filter(|_| !is_overlooked);
        let latest: Vec<_> = unchanged.flat_map(|shard| self.documents.tips(*shard)).collect();
        if let Err(error) = self.take_turn(&mut waiting) {
            return Err(Box::new((refuse_write(&error), waiting.then)));
        }
        waiting.await_also(&latest);
        self.ask_voters(&latest);
        self.writes.last += 1;
        self.writes.waiting.insert(self.writes.last, waiting);
        Ok(())
    }

    /// Writes the next part of a write.
    fn take_turn(&mut self, waiting: &mut Waiting) -> Result<(), DocumentError> {
        let mut puts = 0;
        let (mut changes, mut awaits, mut latest) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(batch) = waiting.rest.front_mut()
            && (puts == 0 || puts + batch.puts() <= TURN_PUTS)
        {
            puts += batch.puts();
            keep_newest_records(&self.documents, batch);
            let written = self.documents.write_batch(batch, self.actor, self.now.wall)?;
            if written.changes.is_empty() {
                latest.extend_from_slice(&written.awaits);
            }
            changes.extend(written.changes);
            awaits.extend(written.awaits);
            waiting.rest.pop_front();
        }
        waiting.await_also(&awaits);
        self.ask_voters(&latest);
        if !changes.is_empty() {
            let records = changes.iter().map(record_of_change).collect();
            self.save(records, vec![AfterSave::Written(changes)]);
        }
        Ok(())
    }

    /// Asks the voters what they hold of changes that others may have made: unasked they tell the authors alone.
    fn ask_voters(&mut self, latest: &[ChangeId]) {
        for voter in self.voters.clone() {
            for question in SyncMessage::ask(self.not_known_to_hold(voter, latest)) {
                self.say(voter, Message::Sync(question));
            }
        }
    }

    /// Asks a member that was started anew for what it holds of the changes that writes wait for.
    pub(super) fn ask_for_waiting(&mut self, member: MemberId) {
        let awaited: Vec<_> = self.writes.waiting.values().flat_map(Waiting::awaits).collect();
        for question in SyncMessage::ask(awaited) {
            self.say(member, Message::Sync(question));
        }
    }

    /// Goes on with the writes that are made in turns: one turn of each.
    fn go_on_writing(&mut self) {
        let unfinished = self.writes.unfinished();
        // I5: asked at this very moment; without quorum the rest is never written.
        if unfinished.is_empty() || !self.is_quorate(self.now.boot) {
            return;
        }
        for key in unfinished {
            let Some(mut waiting) = self.writes.waiting.remove(&key) else { continue };
            while waiting.ahead.front().is_some_and(|id| self.is_held(id, waiting.wait)) {
                waiting.ahead.pop_front();
            }
            if waiting.ahead.len() < TURNS_AHEAD
                && let Err(error) = self.take_turn(&mut waiting)
            {
                self.trouble.insert(self.me, error.to_string());
                waiting.until = self.now.boot;
            }
            self.writes.waiting.insert(key, waiting);
        }
    }

    /// Our own changes are durable: they become visible and are sent to everybody.
    pub(super) fn on_written_durable(&mut self, changes: &[NewChange]) {
        let ids: Vec<_> = changes.iter().map(|change| change.id).collect();
        self.make_visible(&ids);
        for message in sync::push(changes) {
            let peers: Vec<_> = self.links.keys().copied().collect();
            for peer in peers {
                self.say(peer, Message::Sync(message.clone()));
            }
        }
    }

    /// A peer's changes are durable here: they become visible, and their author is told.
    pub(super) fn on_received_durable(&mut self, ids: &[ChangeId]) {
        self.make_visible(ids);
        for id in ids {
            if let Some(author) = self.author_of(id.actor).filter(|author| *author != self.me) {
                self.writes.owed.entry(author).or_default().push(*id);
            }
        }
    }

    fn make_visible(&mut self, ids: &[ChangeId]) {
        // What a comparison waits for may be durable now.
        self.writes.compared.extend(&self.writes.comparing);
        let mut attributes = 0_usize;
        for id in ids {
            let touched = self.documents.durable(id);
            attributes += touched.iter().filter(|touched| !touched.attribute.starts_with('!')).count();
            self.touch(&touched);
            self.keep_snapshot(id.shard);
        }
        if attributes > 0 {
            let message = format!("{attributes} attribute values changed");
            self.happen(EventKind::AttributeChanged, About::nothing(), message);
        }
    }

    fn touch(&mut self, touched: &[Touched]) {
        for touched in touched {
            match &touched.entity {
                Entity::Node(node) => {
                    if touched.attribute.starts_with('!')
                        || touched.attribute == "groups"
                        || touched.attribute.starts_with("collective.")
                    {
                        self.managers.touch(node.clone());
                    }
                }
                Entity::Group(_) => {
                    if touched.attribute.starts_with('!') || touched.attribute.starts_with("collective.") {
                        self.managers.touch_all();
                    }
                }
                Entity::Settings => self.managers.touch_all(),
            }
        }
    }

    fn keep_snapshot(&mut self, shard: ShardId) {
        if self.documents.changes_since_snapshot(shard) >= SNAPSHOT_AFTER {
            let covers = self.documents.vector(shard).iter().map(|(actor, seq)| (actor.0, *seq)).collect();
            if let Some(snapshot) = self.documents.snapshot(shard) {
                self.save(vec![Record::Snapshot { snapshot, covers }], Vec::new());
            }
        }
    }

    fn author_of(&self, actor: Actor) -> Option<MemberId> {
        self.roster.by_prefix(actor.prefix()).filter(|id| self.roster.member(*id).is_some())
    }

    pub(super) fn on_not_saved(&mut self, ticket: u64, reason: &str) {
        if self.saves.contains_key(&ticket) {
            self.writes.disk_trouble = Some(reason.to_owned());
            self.on_invites_not_saved(ticket, reason);
        }
    }

    /// Compares all documents with a peer: on every new link, and when quorum came back (R12).
    pub(super) fn begin_resync(&mut self, peer: MemberId) {
        self.writes.round += 1;
        let (resync, question) = Resync::start(self.writes.round, &self.documents);
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.resync = resync;
        link.has_resynced = false;
        link.compared_at = self.now.boot;
        if self.planted.has(Bug::NoResync) {
            link.has_resynced = true;
            self.resynced.insert(peer);
            return;
        }
        self.writes.comparing.insert(peer);
        let name = self.name_of(peer);
        self.happen(EventKind::ResyncStart, About::member(name.clone()), format!("comparing documents with {name}"));
        self.say(peer, Message::Sync(question));
    }

    pub(super) fn on_sync(&mut self, from: MemberId, message: SyncMessage) {
        if !self.links.contains_key(&from) || self.writes.quarantined.contains(&from) {
            return;
        }
        if matches!(message, SyncMessage::Digests { .. } | SyncMessage::Changes(_)) {
            self.writes.compared.insert(from);
        }
        if let Some(answer) = sync::answer(&message, &mut self.documents) {
            self.say(from, Message::Sync(answer));
        }
        let outcome = match message {
            SyncMessage::Durable { entries } => {
                self.acks.on_durable(from, &entries);
                Ok(())
            }
            SyncMessage::Digests { round, root, digests } => self.on_digests(from, round, root, &digests),
            SyncMessage::Changes(changes) => self.on_changes(from, &changes),
            SyncMessage::Ask { entries } => {
                self.on_asked(from, &entries);
                Ok(())
            }
            SyncMessage::Compare { .. } | SyncMessage::Pull { .. } => Ok(()),
        };
        if let Err(error) = outcome {
            let name = self.name_of(from);
            self.trouble.insert(from, format!("{name} sent documents that cannot be read: {error}"));
        }
    }

    fn on_digests(&mut self, from: MemberId, round: u64, root: [u8; 8], digests: &[u8]) -> Result<(), SyncError> {
        self.acks.on_digests(from, root, digests, &self.documents)?;
        let Some(link) = self.links.get_mut(&from) else { return Ok(()) };
        for message in link.resync.on_digests(round, digests, &self.documents)? {
            self.say(from, Message::Sync(message));
        }
        Ok(())
    }

    /// R13: a peer wants to know that this is durable here; what is missing is pulled from it.
    fn on_asked(&mut self, from: MemberId, entries: &[ChangeId]) {
        let has_resynced = self.links.get(&from).is_some_and(|link| link.has_resynced);
        if has_resynced && !entries.iter().all(|id| self.documents.is_durable(id)) {
            self.begin_resync(from);
        }
    }

    fn on_changes(&mut self, from: MemberId, changes: &sync::Changes) -> Result<(), SyncError> {
        let (roster, refuses_removed) = (&self.roster, self.planted.has(Bug::RemovedAuthorsRefused));
        let known = |actor: Actor| {
            let author = roster.by_prefix(actor.prefix());
            author.is_some_and(|id| !refuses_removed || roster.member(id).is_some())
        };
        let Some(link) = self.links.get_mut(&from) else { return Ok(()) };
        let step = link.resync.on_changes(changes, &mut self.documents, &known)?;
        if !step.save.is_empty() {
            let ids: Vec<_> = step.save.iter().map(|change| change.id).collect();
            if self.planted.has(Bug::AckedOnReceipt) {
                SyncMessage::durable(ids.clone())
                    .into_iter()
                    .for_each(|message| self.say(from, Message::Sync(message)));
            }
            let records = step.save.iter().map(record_of_change).collect();
            self.save(records, vec![AfterSave::Received(ids)]);
        }
        for message in step.send {
            self.say(from, Message::Sync(message));
        }
        for (shard, rejected) in step.rejected {
            self.on_rejected(from, shard, &rejected);
        }
        Ok(())
    }

    fn on_rejected(&mut self, from: MemberId, shard: ShardId, rejected: &Rejected) {
        let name = self.name_of(from);
        self.trouble.insert(from, format!("a change of document {shard} from {name} was refused: {rejected}"));
        if *rejected == Rejected::Poisoned {
            // Whoever sent what broke a document is not listened to again in this session.
            self.writes.quarantined.insert(from);
            let reason = format!("document {shard} broke on a change from {}", self.name_of(from));
            self.effects.push(Effect::Rebirth { reason });
        }
    }

    /// Finishes what waits on copies, tells authors what is durable here, and looks for documents that differ.
    pub(super) fn settle_writes(&mut self) {
        while let Some((author, ids)) = self.writes.owed.pop_first() {
            for message in SyncMessage::durable(ids) {
                self.say(author, Message::Sync(message));
            }
        }
        self.finish_resyncs();
        if !self.writes.waiting.is_empty() {
            self.go_on_writing();
            self.answer_writes();
        }
        self.watch_roots();
    }

    fn finish_resyncs(&mut self) {
        while let Some(id) = self.writes.compared.pop_first() {
            let Some(link) = self.links.get_mut(&id).filter(|link| !link.has_resynced) else {
                self.writes.comparing.remove(&id);
                continue;
            };
            if !link.resync.is_done(&self.documents) {
                continue;
            }
            link.has_resynced = true;
            self.handover.on_resynced(id, link.resync.round(), self.now.boot);
            self.writes.comparing.remove(&id);
            self.resynced.insert(id);
            let name = self.name_of(id);
            self.happen(EventKind::ResyncDone, About::member(name.clone()), format!("holds all that {name} holds"));
        }
    }

    /// Returns whether as many members hold a change as a write asks for.
    fn is_held(&self, id: &ChangeId, wait: Wait) -> bool {
        let is_here = self.documents.is_durable(id);
        let has_it =
            |member: &MemberId| if *member == self.me { is_here } else { self.acks.is_durable_on(*member, id) };
        if self.planted.has(Bug::MajorityOfTheLinked) {
            let voters: Vec<_> = self.links.keys().chain([&self.me]).filter(|id| self.voters.contains(id)).collect();
            return 2 * voters.iter().filter(|voter| has_it(voter)).count() > voters.len();
        }
        let majority = || {
            let copies = self.voters.iter().filter(|voter| has_it(voter)).count();
            copies >= crate::proto::quorum::majority(self.voters.len())
        };
        match wait {
            Wait::Local => is_here,
            Wait::Majority => majority() || (self.planted.has(Bug::AckedOnOneDisk) && is_here),
            Wait::All => majority() && self.links.keys().chain([&self.me]).all(has_it),
        }
    }

    fn answer_writes(&mut self) {
        // I5: without quorum the roster may be an old one, and a majority of its voters none any more.
        let may_confirm = self.is_quorate(self.now.boot);
        let is_confirmed = |waiting: &Waiting| {
            may_confirm && waiting.rest.is_empty() && waiting.awaits().all(|id| self.is_held(&id, waiting.wait))
        };
        let ended: Vec<_> = self
            .writes
            .waiting
            .iter()
            .map(|(key, waiting)| (*key, is_confirmed(waiting), waiting.until))
            .filter(|(_, confirmed, until)| *confirmed || self.now.boot >= *until)
            .collect();
        for (key, confirmed, _) in ended {
            let Some(waiting) = self.writes.waiting.remove(&key) else { continue };
            let refusal = self.indeterminate(&waiting);
            match waiting.then {
                Then::Reply(id, response) if confirmed => self.reply(id, *response),
                Then::Reply(id, _) => self.reply(id, refusal),
                Then::Act(nodes) if confirmed => self.on_recorded(&nodes),
                Then::Act(nodes) => self.managers.on_not_recorded(&nodes),
                Then::Nothing => {}
            }
        }
    }

    fn indeterminate(&self, waiting: &Waiting) -> Refusal {
        let missing: usize = waiting.rest.iter().map(Batch::puts).sum();
        let message = match &self.writes.disk_trouble {
            Some(reason) => format!("not confirmed (indeterminate): the store takes no writes: {reason}"),
            None if missing > 0 => format!(
                "only {} of {} values are stored here, and not all of them confirmed by a majority (indeterminate)",
                waiting.puts - missing,
                waiting.puts
            ),
            None => "stored here but not confirmed by a majority (indeterminate)".to_owned(),
        };
        let hint = if missing > 0 {
            "look with `collective status`, then do the same again: what is there already is left as it is"
        } else {
            "it may still take effect; look with `collective status`, then read the value again"
        };
        let is_hidden = self.planted.has(Bug::StoredButRefused);
        Refusal::new(if is_hidden { ErrorCode::NoQuorum } else { ErrorCode::Indeterminate }, message, hint)
    }

    /// Looks at the roots that members tell by gossip. A difference that does not go away by itself is looked into,
    /// and so is a comparison that came to nothing, as when the peer knew an author before we did.
    fn watch_roots(&mut self) {
        if self.now.boot < self.writes.watch_at {
            return;
        }
        self.writes.watch_at = self.now.boot + WATCH_EVERY;
        let root = self.documents.root();
        let mut again = Vec::new();
        for (id, link) in &self.links {
            let theirs = self.facts.get(id).filter(|_| self.watches(*id)).map_or(root, |(facts, _)| facts.root);
            let differs = self.writes.watch.observe(*id, theirs, root);
            let stuck = !link.has_resynced && self.now.boot.since(link.compared_at) >= COMPARE_WITHIN;
            if (differs && link.has_resynced) || stuck {
                again.push(*id);
            }
        }
        again.into_iter().for_each(|id| self.begin_resync(id));
    }

    /// Returns when a write's time is up or the roots are looked at again.
    pub(super) fn writes_due(&self) -> Option<Instant> {
        let watch = (!self.links.is_empty()).then_some(self.writes.watch_at);
        let due = |waiting: &Waiting| {
            // A turn is due at once, unless copies are waited for: they wake the core when they are there.
            let may_go_on = !waiting.rest.is_empty() && waiting.ahead.len() < TURNS_AHEAD;
            if may_go_on { self.now.boot } else { waiting.until }
        };
        self.writes.waiting.values().map(due).chain(watch).min()
    }

    /// Writes that wait for a majority when quorum is lost are answered at once: nobody knows.
    pub(super) fn fail_writes(&mut self) {
        for waiting in self.writes.waiting.values_mut() {
            waiting.until = self.now.boot;
        }
    }
}

/// Leaves out manager records that a later claim has overtaken since they were worked out: the next claim must find the
/// highest term there.
fn keep_newest_records(documents: &Documents, batch: &mut Batch) {
    batch.retain(|put| {
        let record = put.value.as_deref().filter(|_| &*put.attribute == election::Record::ATTRIBUTE);
        let Some(record) = record.and_then(|text| text.parse::<election::Record>().ok()) else { return true };
        record_ahead(documents, &put.entity).is_none_or(|there| there.token <= record.token)
    });
}

fn refuse_write(error: &DocumentError) -> Refusal {
    Refusal::new(ErrorCode::BadData, error.to_string(), "")
}

fn record_of_change(change: &NewChange) -> Record {
    Record::Change { id: change.id, bytes: change.bytes.clone() }
}

/// Answers a request with a sentence.
pub(super) fn done(message: impl Into<String>) -> Response {
    Response::Done(Done { message: message.into(), ..Done::default() })
}
