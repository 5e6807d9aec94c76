//! One life of a daemon: the loop that turns what happens into events for the core, and performs its effects in order.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::enrol::{self, Enrolled};
use super::handler::Asked;
use super::jobs::Jobs;
use super::machine::{Home, Key, Machine, random};
use super::persist;
use super::state::{self, Arrival, State};
use crate::config::Config;
use crate::gossip::{Admission, Gossip, GossipConfig, Heard, PeerTransport};
use crate::net::{CloseCode, Net, NetEvent};
use crate::proto::collective::{Birth, Collective, Effect, Event, Intent, JobId, JoinId, Peer, RequestId, Ticket};
use crate::proto::document::Actor;
use crate::proto::facts::Facts;
use crate::proto::identity::{Fingerprint, SessionId};
use crate::proto::inventory;
use crate::proto::invite::JoinAnswer;
use crate::proto::lease::Stamp;
use crate::proto::message::{Channel, Delivery, Hello, Message};
use crate::proto::request::{
    ActionResult, Done, ErrorCode, EventKind, ImportFormat, LoggedEvent, Refusal, Request, Response, Standing,
};
use crate::store::{Record, Report, Saver, Store, StoreError};

/// Frames and other news of the network that may wait for the loop.
const NEWS_MAX: usize = 4_096;
/// How long a full disk is given before the save is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// How long one event may take before the log says so: renewals are due every 167 ms in the quickest profile.
const BUSY: Duration = Duration::from_millis(150);
/// How long the last frames of a stopping daemon may take to leave.
const FAREWELL: Duration = Duration::from_millis(150);

/// What every life of a daemon finds around itself.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) machine: Arc<dyn Machine>,
    pub(super) guard: Option<PathBuf>,
}

/// How a life ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The daemon was told to stop.
    Stopped,
    /// Everything this life held is replaced or must be read again; the next starts from this.
    Reborn(Box<State>),
}

/// News for the loop from tasks that the loop started.
#[derive(Debug)]
pub(super) enum News {
    /// The store has finished.
    Store(Report),
    /// A stranger's join stream says something.
    Join(Event),
    /// A task that serves a join stream can be answered here.
    JoinOpen(JoinId, oneshot::Sender<JoinAnswer>),
    /// This member was let into another collective, or was not.
    Enrolled(Result<Box<Enrolled>, Refusal>, Arrival),
    /// An action has ended.
    JobDone(JobId, ActionResult),
    /// An inventory was read, for who asked and for how long they wait.
    Inventory(Result<Request, Refusal>, Duration, oneshot::Sender<Response>),
}

/// One life.
#[derive(Debug)]
pub(super) struct Life {
    core: Collective,
    machine: Arc<dyn Machine>,
    /// Given up when a life ends.
    ground: Option<(Box<dyn Home>, Box<dyn Saver>)>,
    net: Arc<Net>,
    net_events: mpsc::Receiver<NetEvent>,
    hello: Arc<RwLock<Vec<u8>>>,
    gossip: Arc<Gossip>,
    gossip_in: mpsc::Sender<(Fingerprint, Bytes)>,
    heard: mpsc::Receiver<Heard>,
    /// Frames of documents that wait until nothing more urgent is there; the network bounds how many bytes they hold.
    bulk: VecDeque<(Fingerprint, Bytes)>,
    jobs: Jobs,
    /// Facts on their way to gossip.
    facts: watch::Sender<Facts>,
    publisher: tokio::task::JoinHandle<()>,
    news: mpsc::UnboundedReceiver<News>,
    tell: mpsc::UnboundedSender<News>,
    replies: BTreeMap<RequestId, oneshot::Sender<Response>>,
    join_replies: BTreeMap<JoinId, oneshot::Sender<JoinAnswer>>,
    /// Saves that a full disk refused, in order, with everything that came after them.
    held_back: BTreeMap<Ticket, Vec<Record>>,
    unsaved: BTreeMap<Ticket, Vec<Record>>,
    arrival: Option<Arrival>,
    /// Whether this member is being let into another collective right now.
    enrolling: bool,
    listen: SocketAddr,
    last_id: u64,
    wake: tokio::time::Instant,
    save_again: Option<tokio::time::Instant>,
    /// Why this life must end and another begin.
    rebirth: Option<String>,
    halted: bool,
    fatal: Option<StoreError>,
}

impl Life {
    /// Starts a life: raises the incarnation, opens the network, wakes the core.
    ///
    /// # Errors
    /// When the address cannot be bound or the disk fails.
    pub(super) async fn begin(config: &Config, around: &Surroundings, state: State) -> anyhow::Result<Self> {
        let State { home, mut store, kept, identity, arrival, quarantined } = state;
        let machine = around.machine.clone();
        let roster = kept.roster.context("a store without a roster")?;
        let me = kept.me.context("a store without this member's id")?;
        let incarnation = kept.incarnation + 1;
        // Durable before anybody is told of it.
        store.commit(&[Record::Incarnation(incarnation)])?;

        let hello = Arc::new(RwLock::new(Vec::new()));
        let hello_out = hello.clone();
        let say_hello = move || hello_out.read().unwrap_or_else(PoisonError::into_inner).clone();
        let network = machine.network(config, identity.clone(), Arc::new(say_hello))?;
        let address = network.socket.local_addr()?;
        let (tell, news) = mpsc::unbounded_channel();
        let reports = tell.clone();
        let report = move |report| drop(reports.send(News::Store(report)));
        let saver = home.saver(store, Box::new(report))?;

        let fingerprint = identity.fingerprint();
        let cluster = roster.cluster;
        let interval = Duration::from_millis(u64::from(roster.timing.gossip_interval_ms));
        let birth = Birth {
            me,
            session: SessionId(random(machine.as_ref())?),
            stamp: Stamp { incarnation, sequence: kept.sequence },
            fingerprint,
            roster,
            acceptor: kept.acceptor,
            invites: kept.invites,
            peers: kept.peers,
            documents: kept.documents,
            removed: kept.removed,
            quarantined,
            addresses: advertised(config, address).await,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            seed: random(machine.as_ref())?,
            decoy: state::decoy(&identity),
            actor: Actor::new(me, random(machine.as_ref())?),
            intent: Intent { ideal_voters: config.ideal_voters, volunteer: config.volunteer },
        };
        let now = machine.now();
        let (mut core, effects) = Collective::start(birth, now);
        core.plant(machine.planted());
        machine.born(&core);
        machine.after(&core, &effects, now);

        *hello.write().unwrap_or_else(PoisonError::into_inner) = encode_hello(&core);
        let (net_in, net_events) = mpsc::channel(NEWS_MAX);
        let net = Arc::new(Net::start(network, net_in)?);
        let (gossip_in, frames) = mpsc::channel(NEWS_MAX);
        let (heard_in, heard) = mpsc::channel(NEWS_MAX);
        let admission = Admission::default();
        let outgoing = net.clone();
        let transport = PeerTransport::new(
            admission.clone(),
            move |to, bytes| outgoing.send(to, Channel::Gossip, Delivery::Datagram, bytes),
            frames,
        );
        let config_of_gossip = GossipConfig { cluster, me: fingerprint, generation: incarnation, interval, admission };
        let gossip = Arc::new(Gossip::start(config_of_gossip, &transport, heard_in).await?);
        let (facts, facts_out) = watch::channel(Facts::default());
        let publisher = tokio::spawn(publish(gossip.clone(), facts_out));

        let mut life = Self {
            core,
            machine,
            ground: Some((home, saver)),
            net,
            net_events,
            hello,
            gossip,
            gossip_in,
            heard,
            bulk: VecDeque::new(),
            jobs: Jobs::new(&config.actions_dir, &config.hooks_dir, around.guard.as_deref()),
            facts,
            publisher,
            news,
            tell,
            replies: BTreeMap::new(),
            join_replies: BTreeMap::new(),
            held_back: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            arrival,
            enrolling: false,
            listen: address,
            last_id: 0,
            wake: tokio::time::Instant::now(),
            save_again: None,
            rebirth: None,
            halted: false,
            fatal: None,
        };
        life.perform(effects);
        Ok(life)
    }

    /// Returns the UDP address of QUIC.
    pub(super) fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Lives until it is told to stop, or until this member must be reborn: in another collective, under a new key, or
    /// because a document broke.
    ///
    /// # Errors
    /// When the disk failed: nothing that the process holds can be trusted to be on it any more (fsyncgate).
    pub(super) async fn live(
        &mut self,
        requests: &mut mpsc::Receiver<Asked>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> anyhow::Result<Ended> {
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                () = &mut stop, if !stopping => {
                    stopping = true;
                    self.handle(Event::Stop);
                }
                Some(news) = self.news.recv() => {
                    if let Some(ended) = self.on_news(news).await? {
                        return Ok(ended);
                    }
                }
                Some(event) = self.net_events.recv() => self.on_net(event),
                Some(heard) = self.heard.recv() => self.on_heard(heard),
                Some(asked) = requests.recv() => self.on_request(asked),
                () = tokio::time::sleep_until(self.wake) => {
                    self.wake = tokio::time::Instant::now() + Duration::from_secs(3_600);
                    self.handle(Event::Wake);
                }
                () = sleep_until_some(self.save_again) => self.try_saves_again(),
                // Last: no lease waits for documents, however many there are.
                () = tokio::task::yield_now(), if !self.bulk.is_empty() => self.on_bulk(),
            }
            self.greet_arrival();
            if let Some(error) = self.fatal.take() {
                return Err(error.into());
            }
            if let Some(reason) = self.rebirth.take() {
                return self.be_reborn(&reason).await.map(|state| Ended::Reborn(Box::new(state)));
            }
            if self.halted {
                self.end().await?;
                return Ok(Ended::Stopped);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let (what, now) = (event.what(), self.machine.now());
        self.machine.before(&event);
        let effects = self.core.handle(event, now);
        self.machine.after(&self.core, &effects, now);
        self.perform(effects);
        let took = self.machine.now().boot.since(now.boot);
        if took >= BUSY {
            tracing::warn!(what, ms = took.as_millis(), "one event kept this member busy; leases waited for it");
        }
    }

    /// Performs effects in the order given.
    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Save { ticket, records } => self.save(ticket, records),
                Effect::Send { to, message, delivery } => {
                    self.net.send(to, message.channel(), delivery, message.encode().into());
                }
                Effect::Peers { peers, removed } => self.keep_links(peers, removed),
                Effect::WakeAt(at) => self.wake = self.machine.moment(at),
                Effect::Publish(facts) => drop(self.facts.send_replace(facts)),
                Effect::DialNow(peer) => self.net.dial_now(peer),
                Effect::Reply { id, response } => {
                    if let Some(answer) = self.replies.remove(&id) {
                        let _ = answer.send(response);
                    }
                }
                Effect::AnswerJoin { id, answer } => {
                    if let Some(stream) = self.join_replies.remove(&id) {
                        let _ = stream.send(*answer);
                    }
                }
                Effect::Rebirth { reason } => self.rebirth = Some(reason),
                Effect::Run { id, job, until } => {
                    let tell = self.tell.clone();
                    // Only a member on the roster acts, so it has a name.
                    let Some(me) = self.core.name() else { continue };
                    self.jobs.run(id, job, me, until, move |result| {
                        let _ = tell.send(News::JobDone(id, result));
                    });
                }
                Effect::Extend { id, until } => self.jobs.extend(id, until),
                Effect::Cease { node } => self.jobs.cease(&node),
                Effect::Happened { event, until } => {
                    log(&event);
                    self.jobs.happened(&event, self.core.name(), until);
                }
                Effect::SwitchIdentity { fingerprint } => self.switch_identity(fingerprint),
                Effect::Halt => self.halted = true,
            }
        }
        *self.hello.write().unwrap_or_else(PoisonError::into_inner) = encode_hello(&self.core);
    }

    fn submit(&self, ticket: Ticket, records: Vec<Record>) {
        if let Some((_, saver)) = &self.ground {
            saver.submit(ticket, records);
        }
    }

    fn save(&mut self, ticket: Ticket, records: Vec<crate::proto::record::Record>) {
        let records: Vec<_> = records.into_iter().flat_map(persist::encode).collect();
        if self.held_back.is_empty() {
            self.unsaved.insert(ticket, records.clone());
            self.submit(ticket, records);
        } else {
            // Saves are durable in order; one that must wait holds the later ones back.
            self.held_back.insert(ticket, records);
        }
    }

    fn try_saves_again(&mut self) {
        self.save_again = None;
        for (ticket, records) in std::mem::take(&mut self.held_back) {
            self.unsaved.insert(ticket, records.clone());
            self.submit(ticket, records);
        }
    }

    fn keep_links(&mut self, peers: Vec<Peer>, removed: BTreeMap<Fingerprint, String>) {
        self.gossip.set_members(peers.iter().flat_map(|peer| peer.fingerprints.iter().copied()));
        let peers = peers
            .into_iter()
            .map(|peer| crate::net::Peer {
                fingerprints: peer.fingerprints,
                addresses: peer.addresses,
                names: Vec::new(),
            })
            .collect();
        let removed = removed.into_iter().map(|(fingerprint, notice)| (fingerprint, notice.into_bytes())).collect();
        self.net.set_peers(peers, removed);
    }

    async fn on_news(&mut self, news: News) -> anyhow::Result<Option<Ended>> {
        match news {
            News::Store(report) => self.on_store(report),
            News::Join(event) => self.handle(event),
            News::JoinOpen(id, reply) => {
                self.join_replies.insert(id, reply);
            }
            News::JobDone(id, result) => {
                self.jobs.forget(id);
                self.handle(Event::JobDone { id, result });
            }
            News::Inventory(Ok(request), within, answer) => self.on_request(Asked { request, within, answer }),
            News::Inventory(Err(refusal), _, answer) => drop(answer.send(refusal.into())),
            News::Enrolled(Ok(enrolled), arrival) => {
                return self.enter(*enrolled, arrival).await.map(|state| Some(Ended::Reborn(Box::new(state))));
            }
            News::Enrolled(Err(refusal), arrival) => {
                self.enrolling = false;
                let _ = arrival.answer.send(refusal.into());
            }
        }
        Ok(None)
    }

    fn on_store(&mut self, report: Report) {
        match report {
            Report::Saved { tickets } => {
                for ticket in &tickets {
                    self.unsaved.remove(ticket);
                }
                self.handle(Event::Saved { tickets });
            }
            Report::Failed { error, .. } if error.is_fatal() => self.fatal = Some(error),
            Report::Failed { ticket, error } => {
                tracing::error!(%error, "a save was refused; it is tried again");
                // The store refused this one; those after it may have been stored, but are reported in order only.
                let later = self.unsaved.split_off(&ticket);
                self.held_back.extend(later);
                self.save_again = Some(tokio::time::Instant::now() + SAVE_AGAIN);
                self.handle(Event::NotSaved { ticket, reason: error.to_string() });
            }
        }
    }

    fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::LinkUp { peer, address, hello, .. } => match minicbor::decode::<Hello>(&hello) {
                Ok(hello) => {
                    // Whatever was told while it was away is told now, both ways.
                    self.gossip.push(peer);
                    self.handle(Event::LinkUp { peer, address, hello });
                }
                Err(error) => tracing::warn!(%peer, %error, "a link's first words cannot be read"),
            },
            NetEvent::LinkDown { peer, reason, code, by_peer, close_message } => {
                if by_peer && code == Some(CloseCode::Removed as u64) {
                    let notice = String::from_utf8_lossy(&close_message).into_owned();
                    self.handle(Event::Expelled { notice });
                } else {
                    // What came on that link must not be taken for what comes on the next.
                    self.bulk.retain(|(from, _)| *from != peer);
                    self.handle(Event::LinkDown { peer, reason });
                }
            }
            NetEvent::Frame { peer, channel: Channel::Gossip, bytes } => {
                // Gossip may be lost; a full queue says that we are slow.
                let _ = self.gossip_in.try_send((peer, bytes));
            }
            NetEvent::Frame { peer, channel: Channel::Sync, bytes } => self.bulk.push_back((peer, bytes)),
            NetEvent::Frame { peer, channel, bytes } => self.on_frame(peer, channel, &bytes),
            // A member that was removed while it was away learns it when it dials.
            NetEvent::Refused(refusal) if refusal.dialled && refusal.code == Some(CloseCode::Removed as u64) => {
                let notice = String::from_utf8_lossy(&refusal.close_message).into_owned();
                self.handle(Event::Expelled { notice });
            }
            NetEvent::Refused(refusal) => {
                let peer = refusal.peer.map(tracing::field::display);
                tracing::info!(peer, address = %refusal.address, dialled = refusal.dialled, "refused: {}", refusal.reason);
            }
            NetEvent::Join(stream) => {
                self.last_id += 1;
                tokio::spawn(enrol::serve(stream, self.last_id, self.tell.clone()));
            }
        }
    }

    fn on_bulk(&mut self) {
        if let Some((peer, bytes)) = self.bulk.pop_front() {
            self.on_frame(peer, Channel::Sync, &bytes);
        }
    }

    fn on_frame(&mut self, peer: Fingerprint, channel: Channel, bytes: &[u8]) {
        match Message::decode(channel, bytes) {
            Ok(message) => self.handle(Event::Received { peer, message }),
            Err(error) => tracing::warn!(%peer, %error, "a frame was refused"),
        }
    }

    fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Facts { fingerprint, facts } => self.handle(Event::Gossip { peer: fingerprint, facts }),
            Heard::Ended(reason) => {
                // Everything that decides goes on without gossip; only discovery is poorer.
                tracing::error!(reason, "gossip ended");
            }
        }
    }

    fn on_request(&mut self, asked: Asked) {
        let Asked { request, within, answer } = asked;
        match request {
            Request::Join { server, token, replace, wait_ms } => {
                let arrival = Arrival { answer, until: tokio::time::Instant::now() + Duration::from_millis(wait_ms) };
                self.begin_enrolment(server, &token.0, replace, arrival);
            }
            Request::Gencert { .. } => self.rotate(answer),
            Request::Import { format, document, dry_run } => {
                let read = move || read_inventory(format, &document, dry_run);
                let tell = self.tell.clone();
                // A large inventory takes longer to read than a lease may wait.
                tokio::task::spawn_blocking(move || {
                    let _ = tell.send(News::Inventory(read(), within, answer));
                });
            }
            request => {
                self.last_id += 1;
                let id = self.last_id;
                let Ok(entropy) = random(self.machine.as_ref()) else {
                    let _ = answer.send(internal("the system gives no random bytes").into());
                    return;
                };
                self.replies.insert(id, answer);
                let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.handle(Event::Request { id, request, within_ms, entropy: Box::new(entropy) });
            }
        }
    }

    fn begin_enrolment(&mut self, server: Option<String>, token: &str, replace: bool, arrival: Arrival) {
        let wall = self.machine.now().wall;
        let ready = enrol::prepare(&self.core, server, token, replace, wall, self.enrolling).and_then(|plan| {
            // A fresh key for every enrolment: an old one may be known to a collective that removed it.
            let identity =
                state::fresh_identity(self.machine.as_ref()).map_err(|error| internal(&error.to_string()))?;
            Ok((plan, identity))
        });
        match ready {
            Ok((plan, identity)) => {
                self.enrolling = true;
                let (net, tell) = (self.net.clone(), self.tell.clone());
                tokio::spawn(async move {
                    let outcome = plan.carry_out(&net, identity).await.map(Box::new);
                    let _ = tell.send(News::Enrolled(outcome, arrival));
                });
            }
            Err(refusal) => {
                let _ = arrival.answer.send(refusal.into());
            }
        }
    }

    /// Ends this life and lays the ground for the next in the collective this member was let into.
    async fn enter(&mut self, enrolled: Enrolled, arrival: Arrival) -> anyhow::Result<State> {
        self.handle(Event::Stop);
        let (home, store) = self.end().await?;
        let Enrolled { identity, me, roster, peers } = enrolled;
        let mut state = State::replace(home, store, identity, me, &roster, &peers)?;
        state.arrival = Some(arrival);
        Ok(state)
    }

    /// Ends this life and reads everything again for the next.
    async fn be_reborn(&mut self, reason: &str) -> anyhow::Result<State> {
        tracing::warn!(reason, "starting anew from the store");
        self.handle(Event::Stop);
        let (home, store) = self.end().await?;
        let mut state = State::reread(home, store)?;
        state.quarantined = self.core.quarantined().clone();
        Ok(state)
    }

    /// Answers who asked this member to join, once it has all the data or the time is up.
    fn greet_arrival(&mut self) {
        let Some(arrival) = &self.arrival else { return };
        let seated = self.core.standing() == Standing::Seated;
        if !seated && tokio::time::Instant::now() < arrival.until {
            return;
        }
        let Some(arrival) = self.arrival.take() else { return };
        let response = if seated {
            Response::Done(Done {
                message: "Success".into(),
                changes: vec!["Certificate generated successfully".into()],
                ..Done::default()
            })
        } else {
            Refusal::new(
                ErrorCode::TryAgain,
                "joined, but the data has not arrived yet",
                "it goes on by itself; look with `collective status`, or wait with `collective wait --converged`",
            )
            .into()
        };
        let _ = arrival.answer.send(response);
    }

    /// Makes a new key and asks the roster to accept it beside the old one.
    fn rotate(&mut self, answer: oneshot::Sender<Response>) {
        let Some((home, _)) = &mut self.ground else { return };
        let made = state::fresh_identity(self.machine.as_ref()).and_then(|identity| {
            home.save_identity(Key::Next, &identity)?;
            Ok(identity.fingerprint())
        });
        match made {
            Ok(fingerprint) => {
                self.last_id += 1;
                self.replies.insert(self.last_id, answer);
                self.handle(Event::Rotate { id: self.last_id, fingerprint });
            }
            Err(error) => {
                let _ = answer.send(internal(&error.to_string()).into());
            }
        }
    }

    /// Takes the new key in use; the endpoint is bound to the old one, so a new life begins.
    fn switch_identity(&mut self, fingerprint: Fingerprint) {
        let Some((home, _)) = &mut self.ground else { return };
        match state::promote_next_identity(home.as_mut(), fingerprint) {
            Ok(()) => self.rebirth = Some("the key was rotated".into()),
            Err(error) => tracing::error!(%error, "the new key cannot be used; the old one stays in use"),
        }
    }

    /// Says farewell, closes the network, and gives up what the next life needs.
    async fn end(&mut self) -> anyhow::Result<(Box<dyn Home>, Box<dyn Store>)> {
        self.jobs.stop().await;
        tokio::time::sleep(FAREWELL).await;
        self.publisher.abort();
        self.gossip.shutdown().await;
        self.net.shutdown(CloseCode::Shutdown, b"the daemon ended").await;
        let (home, saver) = self.ground.take().context("a life ends once")?;
        let store = saver.stop().context("the store's thread died")?;
        Ok((home, store))
    }
}

fn read_inventory(format: ImportFormat, document: &str, dry_run: bool) -> Result<Request, Refusal> {
    match inventory::parse(format, document) {
        Ok(inventory) => Ok(Request::TakeIn { inventory: Box::new(inventory), dry_run }),
        Err(error) => {
            let hint = "correct the inventory; nothing was changed";
            Err(Refusal::new(ErrorCode::BadData, error.to_string(), hint))
        }
    }
}

/// Tells gossip the newest facts; older ones that were not told yet are passed over.
async fn publish(gossip: Arc<Gossip>, mut facts: watch::Receiver<Facts>) {
    while facts.changed().await.is_ok() {
        let newest = facts.borrow_and_update().clone();
        gossip.publish(&newest).await;
    }
}

fn encode_hello(core: &Collective) -> Vec<u8> {
    minicbor::to_vec(core.hello()).unwrap_or_default() // Encoding into a Vec cannot fail.
}

async fn sleep_until_some(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn internal(message: &str) -> Refusal {
    Refusal::new(ErrorCode::Internal, message, "journalctl -u collectived")
}

/// Returns where others can reach this member: what is configured, or the address it listens on when that is one.
async fn advertised(config: &Config, listen: SocketAddr) -> Vec<SocketAddr> {
    let Some(text) = &config.advertise else {
        return if listen.ip().is_unspecified() { Vec::new() } else { vec![listen] };
    };
    let with_port = if text.parse::<SocketAddr>().is_ok()
        || text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        text.clone()
    } else {
        format!("{text}:{}", listen.port())
    };
    match tokio::net::lookup_host(&with_port).await {
        Ok(addresses) => addresses.take(2).collect(),
        Err(error) => {
            tracing::warn!(advertise = with_port, %error, "the advertised address cannot be resolved");
            Vec::new()
        }
    }
}

/// Writes what a person acts on to the log.
fn log(event: &LoggedEvent) {
    let member = event.member.as_ref().map(tracing::field::display);
    let node = event.node.as_ref().map(tracing::field::display);
    match event.kind {
        EventKind::QuorumLost | EventKind::MemberDown | EventKind::VersionSkew | EventKind::DuplicateIdentity => {
            tracing::warn!(kind = ?event.kind, member, node, "{}", event.message);
        }
        EventKind::AttributeChanged | EventKind::ResyncStart | EventKind::ResyncDone | EventKind::ManagerChanged => {
            tracing::debug!(kind = ?event.kind, member, node, token = event.token, "{}", event.message);
        }
        _ => tracing::info!(kind = ?event.kind, member, node, "{}", event.message),
    }
}
