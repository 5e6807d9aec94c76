//! Writes and their confirmation, and the flow of changes between members.
//!
//! ```text
//!   request ─> Documents::write ─> Save ─(durable)─> visible here, sent on every link ─> peers: vet, Save, Durable
//!                                                    └─ a majority of voters durable ─> "ok"
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{About, AfterSave, Collective, Effect, RequestId};
use crate::proto::document::{self, Actor, ChangeId, Entity, NewChange, Put, Rejected, ShardId, Touched};
use crate::proto::identity::MemberId;
use crate::proto::message::Message;
use crate::proto::name::NodeName;
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
}

/// One write that is not answered yet.
#[derive(Debug)]
struct Waiting {
    changes: Vec<ChangeId>,
    wait: Wait,
    until: Instant,
    then: Then,
}

/// What follows a confirmed write.
#[derive(Debug)]
pub(super) enum Then {
    /// An administrator is answered.
    Reply(RequestId, Box<Response>),
    /// The nodes whose manager record this is may be acted for.
    Act(Vec<(NodeName, u64)>),
}

impl Writes {
    pub(super) fn new(quarantined: BTreeSet<MemberId>) -> Self {
        Self { quarantined, ..Self::default() }
    }

    pub(super) fn quarantined(&self) -> &BTreeSet<MemberId> {
        &self.quarantined
    }
}

impl Collective {
    /// Writes puts, and does `then` once `wait` is fulfilled.
    ///
    /// # Errors
    /// A refusal when the puts cannot be written at all; nothing is stored then.
    pub(super) fn write(
        &mut self,
        puts: &[Put],
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
        let written = match self.documents.write(puts, self.actor, self.now.wall) {
            Ok(written) => written,
            Err(error) => {
                let refusal = Refusal::new(ErrorCode::BadData, error.to_string(), "");
                return Err(Box::new((refusal, then)));
            }
        };
        if !written.changes.is_empty() {
            let records = written.changes.iter().map(record_of_change).collect();
            self.save(records, vec![AfterSave::Written(written.changes)]);
        }
        self.writes.last += 1;
        let waiting = Waiting { changes: written.awaits, wait, until: self.now.boot + within, then };
        self.writes.waiting.insert(self.writes.last, waiting);
        Ok(())
    }

    /// Our own changes are durable: they become visible and are sent to everybody.
    pub(super) fn on_written_durable(&mut self, changes: &[NewChange]) {
        self.writes.disk_trouble = None;
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
            let snapshot = self.documents.snapshot(shard);
            self.save(vec![Record::Snapshot { snapshot, covers }], Vec::new());
        }
    }

    fn author_of(&self, actor: Actor) -> Option<MemberId> {
        self.roster.ids().find(|id| document::actor_prefix(*id) == actor.prefix())
    }

    pub(super) fn on_not_saved(&mut self, ticket: u64, reason: &str) {
        if self.saves.contains_key(&ticket) {
            self.writes.disk_trouble = Some(reason.to_owned());
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
        let name = self.name_of(peer);
        self.happen(EventKind::ResyncStart, About::member(name.clone()), format!("comparing documents with {name}"));
        self.say(peer, Message::Sync(question));
    }

    pub(super) fn on_sync(&mut self, from: MemberId, message: SyncMessage) {
        if !self.links.contains_key(&from) || self.writes.quarantined.contains(&from) {
            return;
        }
        if let Some(answer) = sync::answer(&message, &self.documents) {
            self.say(from, Message::Sync(answer));
        }
        let outcome = match message {
            SyncMessage::Durable { entries } => {
                self.acks.on_durable(from, &entries);
                Ok(())
            }
            SyncMessage::Digests { round, root, digests } => self.on_digests(from, round, root, &digests),
            SyncMessage::Changes(changes) => self.on_changes(from, &changes),
            _ => Ok(()),
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

    fn on_changes(&mut self, from: MemberId, changes: &sync::Changes) -> Result<(), SyncError> {
        let known: BTreeSet<_> =
            self.roster.ids().chain(self.roster.removed_ids()).map(document::actor_prefix).collect();
        let Some(link) = self.links.get_mut(&from) else { return Ok(()) };
        let step =
            link.resync.on_changes(changes, &mut self.documents, &|actor: Actor| known.contains(&actor.prefix()))?;
        if !step.save.is_empty() {
            let ids = step.save.iter().map(|change| change.id).collect();
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
        for (author, ids) in std::mem::take(&mut self.writes.owed) {
            for message in SyncMessage::durable(ids) {
                self.say(author, Message::Sync(message));
            }
        }
        self.finish_resyncs();
        self.answer_writes();
        self.watch_roots();
    }

    fn finish_resyncs(&mut self) {
        let mut done = Vec::new();
        for (id, link) in &mut self.links {
            if !link.has_resynced && link.resync.is_done(&self.documents) {
                link.has_resynced = true;
                done.push(*id);
            }
        }
        for id in done {
            self.resynced.insert(id);
            let name = self.name_of(id);
            self.happen(EventKind::ResyncDone, About::member(name.clone()), format!("holds all that {name} holds"));
        }
    }

    fn answer_writes(&mut self) {
        let majority = crate::proto::quorum::majority(self.voters.len());
        let live: BTreeSet<_> = self.links.keys().copied().chain([self.me]).collect();
        let ended: Vec<_> = self
            .writes
            .waiting
            .iter()
            .filter_map(|(key, waiting)| {
                let confirmed = waiting.changes.iter().all(|id| {
                    let mut copies = self.acks.durable_on(id);
                    if self.documents.is_durable(id) {
                        copies.insert(self.me);
                    }
                    match waiting.wait {
                        Wait::Local => copies.contains(&self.me),
                        Wait::Majority => copies.intersection(&self.voters).count() >= majority,
                        Wait::All => copies.intersection(&self.voters).count() >= majority && live.is_subset(&copies),
                    }
                });
                (confirmed || self.now.boot >= waiting.until).then_some((*key, confirmed))
            })
            .collect();
        for (key, confirmed) in ended {
            let Some(waiting) = self.writes.waiting.remove(&key) else { continue };
            match waiting.then {
                Then::Reply(id, response) if confirmed => self.reply(id, *response),
                Then::Reply(id, _) => {
                    let refusal = self.indeterminate();
                    self.reply(id, refusal);
                }
                Then::Act(nodes) if confirmed => self.on_recorded(&nodes),
                Then::Act(nodes) => self.managers.on_not_recorded(&nodes),
            }
        }
    }

    fn indeterminate(&self) -> Refusal {
        let message = match &self.writes.disk_trouble {
            Some(reason) => format!("not confirmed (indeterminate): the store takes no writes: {reason}"),
            None => "stored here but not confirmed by a majority (indeterminate)".to_owned(),
        };
        Refusal::new(
            ErrorCode::Indeterminate,
            message,
            "it may still take effect; look with `collective status`, then read the value again",
        )
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
            let theirs = self.facts.get(id).map_or(root, |(facts, _)| facts.root);
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
        self.writes.waiting.values().map(|waiting| waiting.until).chain(watch).min()
    }

    /// Writes that wait for a majority when quorum is lost are answered at once: nobody knows.
    pub(super) fn fail_writes(&mut self) {
        for waiting in self.writes.waiting.values_mut() {
            waiting.until = self.now.boot;
        }
    }
}

fn record_of_change(change: &NewChange) -> Record {
    Record::Change { id: change.id, bytes: change.bytes.clone() }
}

/// Answers a request with a sentence.
pub(super) fn done(message: impl Into<String>) -> Response {
    Response::Done(Done { message: message.into(), ..Done::default() })
}
