//! The endpoint: one QUIC socket for dialling and accepting, and the order in which callers are let in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use quinn::{
    Connection, ConnectionId, ConnectionIdGenerator, EndpointConfig, Incoming, NoneTokenStore, ServerConfig,
    TransportConfig,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use super::dial::dial;
use super::limits::{
    CLOSE_MESSAGE_BYTES_MAX, CONNECT_TIMEOUT, HELLO_TIMEOUT, HOLD_TIMEOUT, JOINS_MAX, KNOWN_HANDSHAKES_MAX,
    REFUSALS_PER_SECOND, STRANGER_HANDSHAKES_MAX, STRANGERS_PER_SECOND, TokenBucket, accepted_transport,
    dialled_transport, trust,
};
use super::link::{Control, Ending, Hello, Link, answer, hear, run};
use super::slot::{Slot, Verdict, judge};
use super::tls::{Door, Identity, Pins, Standing, Tls, peer_of};
use super::{CloseCode, NetConfig, NetEvent, Peer, Refusal, Resolver, join};
use crate::proto::identity::Fingerprint;

/// Every secret and random start value of an endpoint. Given from outside, so that a simulation repeats itself.
#[derive(Clone)]
pub struct EndpointSeeds {
    /// Key of the tokens by which a restarted endpoint tells peers that it forgot their links.
    pub reset_key: [u8; 64],
    /// Key of the tokens by which an unknown address shows that it can be reached.
    pub token_key: [u8; 64],
    /// Seed of quinn's own random choices.
    pub rng_seed: [u8; 32],
    /// Seed of connection ids.
    pub cid_seed: [u8; 32],
    /// Seed of the jitter of dials.
    pub dial_seed: [u8; 32],
    /// Tells this run from earlier ones of the same member.
    pub instance: [u8; 16],
}

impl EndpointSeeds {
    /// Draws seeds from the operating system.
    ///
    /// The reset key is derived from the identity, so that after a crash the first packet of an old link is answered
    /// with "forgotten" instead of silence, and the peer need not wait for its idle timeout.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn from_os(identity: &Identity) -> anyhow::Result<Self> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| anyhow::anyhow!("the system gave no random bytes"))?;
        Ok(Self::of(identity, seed))
    }

    /// Derives all seeds from one, but the reset key from the identity.
    pub fn of(identity: &Identity, seed: [u8; 32]) -> Self {
        let mut seeds = Self::derive(seed);
        let key = hmac::Key::new(hmac::HMAC_SHA512, identity.key());
        seeds.reset_key.copy_from_slice(hmac::sign(&key, b"collective stateless reset").as_ref());
        seeds
    }

    /// Derives all seeds from one.
    pub fn derive(seed: [u8; 32]) -> Self {
        let mut random = ChaCha20Rng::from_seed(seed);
        let mut seeds = Self {
            reset_key: [0; 64],
            token_key: [0; 64],
            rng_seed: [0; 32],
            cid_seed: [0; 32],
            dial_seed: [0; 32],
            instance: [0; 16],
        };
        random.fill_bytes(&mut seeds.reset_key);
        random.fill_bytes(&mut seeds.token_key);
        random.fill_bytes(&mut seeds.rng_seed);
        random.fill_bytes(&mut seeds.cid_seed);
        random.fill_bytes(&mut seeds.dial_seed);
        random.fill_bytes(&mut seeds.instance);
        seeds
    }
}

/// Connection ids from a seed: eight bytes nobody can guess.
struct SeededIds(ChaCha20Rng);

impl SeededIds {
    const BYTES: usize = 8;
}

impl ConnectionIdGenerator for SeededIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; Self::BYTES];
        self.0.fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        Self::BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// What every task of the endpoint shares.
pub(crate) struct Inner {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) own: Fingerprint,
    pub(crate) tls: Tls,
    pub(crate) pins: Pins,
    pub(crate) resolver: Resolver,
    pub(crate) joins: Arc<Semaphore>,
    runtime: Arc<dyn quinn::Runtime>,
    transport: Arc<TransportConfig>,
    server: ServerConfig,
    /// Draws the first connection id of every dial.
    first_ids: Arc<Mutex<ChaCha20Rng>>,
    hello: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
    instance: [u8; 16],
    dial_seed: [u8; 32],
    events: mpsc::Sender<NetEvent>,
    /// Each slot stands under every fingerprint of its peer.
    slots: RwLock<BTreeMap<Fingerprint, Arc<Slot>>>,
    slots_made: AtomicU64,
    /// Where members are or were said to be.
    known: RwLock<BTreeSet<SocketAddr>>,
    refusals: Mutex<Refusals>,
}

/// Refusals of strangers: how many may still be reported, and how many were not.
struct Refusals {
    bucket: TokenBucket,
    suppressed: u64,
}

impl Inner {
    pub(crate) fn start(config: NetConfig, events: mpsc::Sender<NetEvent>) -> anyhow::Result<Arc<Self>> {
        let NetConfig { identity, socket, runtime, provider, time_source, resolver, seeds, hello } = config;
        let pins = Pins::default();
        let tls = Tls::new(&identity, provider, time_source.clone(), pins.clone())?;
        let (first_crypto, _) = tls.server()?;
        let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&seeds.token_key);
        let mut server = ServerConfig::new(Arc::new(first_crypto), Arc::new(token_key));
        server
            .transport_config(accepted_transport())
            .migration(false)
            .max_incoming(256)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(4 << 20)
            .time_source(time_source);
        let mut ids = ChaCha20Rng::from_seed(seeds.cid_seed);
        let mut local_ids = [0; 32];
        ids.fill_bytes(&mut local_ids);
        let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &seeds.reset_key)));
        endpoint
            .rng_seed(Some(seeds.rng_seed))
            .cid_generator(move || Box::new(SeededIds(ChaCha20Rng::from_seed(local_ids))));
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(endpoint, Some(server.clone()), socket, runtime.clone())?;
        let refusals = Refusals { bucket: TokenBucket::new(REFUSALS_PER_SECOND, Instant::now()), suppressed: 0 };
        let inner = Arc::new(Self {
            endpoint,
            own: identity.fingerprint(),
            tls,
            pins,
            resolver,
            joins: Arc::new(Semaphore::new(JOINS_MAX)),
            runtime,
            transport: dialled_transport(),
            server,
            first_ids: Arc::new(Mutex::new(ids)),
            hello,
            instance: seeds.instance,
            dial_seed: seeds.dial_seed,
            events,
            slots: RwLock::default(),
            slots_made: AtomicU64::new(0),
            known: RwLock::default(),
            refusals: Mutex::new(refusals),
        });
        inner.spawn(accept(inner.clone()));
        Ok(inner)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(Box::pin(task));
    }

    /// Waits until the daemon has room for the event; without a daemon it is dropped.
    pub(crate) async fn report(&self, event: NetEvent) {
        let _ = self.events.send(event).await;
    }

    /// Reports that somebody was not let in; never waits, and no more often than a person can read.
    pub(crate) fn refused(&self, mut refusal: Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.suppressed = refusals.suppressed;
        if refusals.bucket.take(Instant::now()) && self.events.try_send(NetEvent::Refused(refusal)).is_ok() {
            refusals.suppressed = 0;
        } else {
            refusals.suppressed += 1;
        }
    }

    /// Returns the hello that a connection to that peer starts with.
    pub(crate) fn hello(&self, slot: &Slot) -> Hello {
        Hello { instance: self.instance, losses: slot.lock().losses, body: (self.hello)() }
    }

    /// Makes the configuration of one dial.
    pub(crate) fn client(&self, crypto: quinn::crypto::rustls::QuicClientConfig) -> quinn::ClientConfig {
        let ids = self.first_ids.clone();
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(self.transport.clone());
        client.token_store(Arc::new(NoneTokenStore));
        client.initial_dst_cid_provider(Arc::new(move || {
            let mut id = [0; 20];
            ids.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut id);
            ConnectionId::new(&id)
        }));
        client
    }

    pub(crate) fn slot(&self, fingerprint: Fingerprint) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&fingerprint).cloned()
    }

    /// Returns every slot once.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let unique: BTreeMap<u64, Arc<Slot>> = slots.values().map(|slot| (slot.id, slot.clone())).collect();
        unique.into_values().collect()
    }

    /// Takes over the peers of a roster: new ones are dialled, those that are gone lose their link at once.
    pub(crate) fn set_peers(self: &Arc<Self>, peers: Vec<Peer>, removed: BTreeMap<Fingerprint, Vec<u8>>) {
        let members = peers.iter().flat_map(|peer| peer.fingerprints.iter().copied()).collect();
        let removed = removed
            .into_iter()
            .map(|(fingerprint, mut message)| {
                message.truncate(CLOSE_MESSAGE_BYTES_MAX);
                (fingerprint, Bytes::from(message))
            })
            .collect();
        self.pins.set(members, removed);
        let mut index = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *index);
        let mut kept = BTreeSet::new();
        for peer in peers.into_iter().filter(|peer| !peer.fingerprints.contains(&self.own)) {
            let known = peer.fingerprints.iter().find_map(|fingerprint| old.get(fingerprint));
            let slot = match known.filter(|slot| !kept.contains(&slot.id)) {
                Some(slot) => {
                    slot.change(|state| state.peer = peer.clone());
                    slot.clone()
                }
                None => self.make_slot(peer.clone()),
            };
            kept.insert(slot.id);
            index.extend(peer.fingerprints.into_iter().map(|fingerprint| (fingerprint, slot.clone())));
        }
        drop(index);
        for slot in old.values() {
            if !kept.contains(&slot.id) {
                slot.change(|state| state.retired = true);
            }
            if let Some(link) = slot.live_link() {
                let standing = self.pins.standing(link.peer);
                self.close_unwelcome(&link, &standing);
            }
        }
        self.note_known();
    }

    fn make_slot(self: &Arc<Self>, peer: Peer) -> Arc<Slot> {
        let id = self.slots_made.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot::new(id, peer, self.own, &self.dial_seed, Instant::now()));
        self.spawn(dial(self.clone(), slot.clone()));
        slot
    }

    /// Closes the link of a key that is not on the roster any more.
    fn close_unwelcome(&self, link: &Link, standing: &Standing) {
        match standing {
            Standing::Member => {}
            Standing::Removed(message) => link.close(CloseCode::Removed, message, "the member was removed"),
            Standing::Stranger => link.close(CloseCode::NotPinned, &[], "its key is not on the roster any more"),
        }
    }

    fn note_known(&self) {
        let mut known = BTreeSet::new();
        for slot in self.slots() {
            let state = slot.lock();
            known.extend(state.addresses().into_iter().map(canonical));
            known.extend(state.link.iter().map(|link| link.address));
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn is_known(&self, address: SocketAddr) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }

    /// Ends every slot and closes the endpoint.
    pub(crate) fn stop(&self, code: CloseCode, message: &[u8]) {
        for slot in self.slots() {
            slot.change(|state| state.retired = true);
            if let Some(link) = slot.live_link() {
                link.close(code, message, "this member stops");
            }
        }
        self.endpoint.close(code.into(), &message[..message.len().min(CLOSE_MESSAGE_BYTES_MAX)]);
    }
}

/// A connection whose peer said hello, on its way to become a link.
pub(crate) struct Agreed {
    pub(crate) connection: Connection,
    pub(crate) peer: Fingerprint,
    pub(crate) dialled: bool,
    pub(crate) hello: Hello,
    pub(crate) control: Control,
}

impl Inner {
    /// Makes a connection the link of its peer, after the end of the one before was reported.
    ///
    /// The caller holds the slot's turn. An acceptor answers the hello here, which tells the dialler that it is in.
    pub(crate) async fn establish(self: &Arc<Self>, slot: &Arc<Slot>, agreed: Agreed) {
        let Agreed { connection, peer, dialled, hello, mut control } = agreed;
        let previous = slot.lock().link.clone();
        if let Some(previous) = previous {
            previous.close(CloseCode::Replaced, &[], "a newer connection of the same peer took its place");
            previous.ended().await;
        }
        if !dialled {
            if answer(&mut control.0, &self.hello(slot)).await.is_err() {
                return;
            }
            trust(&connection);
        }
        let address = canonical(connection.remote_address());
        let (link, outlets) = Link::new(connection, peer, address, dialled, hello.mark());
        let standing = slot.change(|state| {
            let standing = self.pins.standing(peer);
            let standing = if state.retired && standing == Standing::Member { Standing::Stranger } else { standing };
            if standing == Standing::Member {
                state.link_up(link.clone());
            }
            standing
        });
        if standing != Standing::Member {
            return self.close_unwelcome(&link, &standing);
        }
        self.note_known();
        let (inner, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            inner.report(NetEvent::LinkUp { peer, address, hello: hello.body, dialled }).await;
            let Ending { reason, code, message, by_peer } = run(&link, outlets, control, &inner.events).await;
            inner.report(NetEvent::LinkDown { peer, reason, code, by_peer, close_message: message }).await;
            // Only now may another connection become the link: its "up" comes after this "down".
            slot.change(|state| {
                state.link = None;
                state.link_ended(link.age(), Instant::now());
            });
            link.set_ended();
        });
    }
}

/// Lets callers in until the endpoint is closed: known addresses at once, others as far as they do no harm.
async fn accept(inner: Arc<Inner>) {
    let mut gate = Gate {
        bucket: TokenBucket::new(STRANGERS_PER_SECOND, Instant::now()),
        strangers: Arc::new(Semaphore::new(STRANGER_HANDSHAKES_MAX)),
        known: BTreeMap::new(),
    };
    while let Some(incoming) = inner.endpoint.accept().await {
        let address = canonical(incoming.remote_address());
        let validated = incoming.remote_address_validated();
        match gate.admit(address, inner.is_known(address), validated, Instant::now()) {
            Admission::Enter(permit) => inner.spawn(welcome(inner.clone(), incoming, permit)),
            Admission::Retry => {
                // Only an address that is validated already cannot be asked to retry, and those are not.
                let _ = incoming.retry();
            }
            Admission::Ignore => incoming.ignore(),
            Admission::Refuse => incoming.refuse(),
        }
    }
}

/// Counts who is at the door.
struct Gate {
    bucket: TokenBucket,
    strangers: Arc<Semaphore>,
    known: BTreeMap<SocketAddr, Arc<Semaphore>>,
}

/// How a caller is answered.
#[derive(Debug)]
enum Admission {
    /// With a handshake; the permit is held as long as it takes.
    Enter(OwnedSemaphorePermit),
    /// With the request to show that it can be reached at its address; costs us one packet and no memory.
    Retry,
    /// With silence.
    Ignore,
    /// With "busy".
    Refuse,
}

impl Gate {
    fn admit(&mut self, address: SocketAddr, known: bool, validated: bool, now: Instant) -> Admission {
        if known {
            self.known.retain(|_, permits| permits.available_permits() < KNOWN_HANDSHAKES_MAX);
            let permits = self.known.entry(address).or_insert_with(|| Arc::new(Semaphore::new(KNOWN_HANDSHAKES_MAX)));
            if let Ok(permit) = permits.clone().try_acquire_owned() {
                return Admission::Enter(permit);
            }
        }
        if !validated {
            return if self.bucket.take(now) { Admission::Retry } else { Admission::Ignore };
        }
        match self.strangers.clone().try_acquire_owned() {
            Ok(permit) => Admission::Enter(permit),
            Err(_) => Admission::Refuse,
        }
    }
}

/// Shakes hands with a caller and sends it where it belongs.
async fn welcome(inner: Arc<Inner>, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let address = canonical(incoming.remote_address());
    let refused = |peer, reason: String| {
        inner.refused(Refusal {
            peer,
            address,
            dialled: false,
            reason,
            code: None,
            close_message: vec![],
            suppressed: 0,
        });
    };
    let (crypto, visit) = match inner.tls.server() {
        Ok(server) => server,
        Err(error) => return refused(None, format!("this member's TLS cannot be set up: {error}")),
    };
    let mut config = inner.server.clone();
    config.crypto = Arc::new(crypto);
    let handshake = async { incoming.accept_with(Arc::new(config))?.await };
    let connection = match timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return refused(visit.presented(), refusal_words(&error)),
        Err(_) => return refused(visit.presented(), "its handshake took longer than 2 s".into()),
    };
    drop(permit);
    match peer_of(&connection) {
        Some((peer, Door::Join)) => join::serve(&inner, connection, peer).await,
        Some((peer, Door::Member)) => match (inner.pins.standing(peer), inner.slot(peer)) {
            (Standing::Member, Some(slot)) => accept_member(&inner, &slot, connection, peer).await,
            (Standing::Removed(message), _) => {
                connection.close(CloseCode::Removed.into(), &message);
                refused(Some(peer), "it was removed from the collective, and was told so".into());
            }
            _ => connection.close(CloseCode::NotPinned.into(), &[]),
        },
        None => connection.close(CloseCode::Protocol.into(), &[]),
    }
}

fn refusal_words(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::TransportError(error) if u64::from(error.code) == 0x131 => {
            "its key is not on the roster".into()
        }
        error => Ending::of(error).reason,
    }
}

/// Hears a member's hello and decides whether its connection becomes the link.
async fn accept_member(inner: &Arc<Inner>, slot: &Arc<Slot>, connection: Connection, peer: Fingerprint) {
    let (hello, control) = match timeout(HELLO_TIMEOUT, hear(&connection)).await {
        Ok(Ok(heard)) => heard,
        // It dialled twice and thought better of it, or its path broke; it will dial again.
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "no hello"),
        Err(_) => return connection.close(CloseCode::Timeout.into(), b"no hello"),
    };
    let deadline = Instant::now() + HOLD_TIMEOUT;
    let mut changed = slot.watch();
    loop {
        let turn = slot.turn.lock().await;
        changed.borrow_and_update();
        if connection.close_reason().is_some() {
            return;
        }
        let current = slot.live_link().map(|link| link.mark);
        let dialling = slot.lock().dialling;
        match judge(inner.own < peer, current, hello.mark(), dialling, Instant::now() >= deadline) {
            Verdict::Take => {
                let agreed = Agreed { connection, peer, dialled: false, hello, control };
                return inner.establish(slot, agreed).await;
            }
            Verdict::Duplicate => return connection.close(CloseCode::Duplicate.into(), &[]),
            Verdict::Hold => drop(turn),
        }
        tokio::select! {
            biased;
            _ = connection.closed() => return,
            _ = changed.changed() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

/// Returns the address without its IPv6 disguise: a socket for both families shows IPv4 peers as `::ffff:a.b.c.d`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(now: Instant) -> Gate {
        let strangers = Arc::new(Semaphore::new(STRANGER_HANDSHAKES_MAX));
        Gate { bucket: TokenBucket::new(STRANGERS_PER_SECOND, now), strangers, known: BTreeMap::new() }
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 7420))
    }

    #[test]
    fn a_known_address_enters_during_a_flood_of_unknown_ones() {
        let now = Instant::now();
        let mut gate = gate(now);
        let mut retried = 0;
        for _ in 0..10_000 {
            match gate.admit(address(1), false, false, now) {
                Admission::Retry => retried += 1,
                Admission::Ignore => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(retried, STRANGERS_PER_SECOND);
        assert!(matches!(gate.admit(address(2), true, false, now), Admission::Enter(_)));
    }

    #[test]
    fn unknown_addresses_that_showed_themselves_enter_eight_at_a_time() {
        let now = Instant::now();
        let mut gate = gate(now);
        let mut inside: Vec<_> =
            (0..STRANGER_HANDSHAKES_MAX).map(|_| gate.admit(address(1), false, true, now)).collect();
        assert!(inside.iter().all(|admission| matches!(admission, Admission::Enter(_))));
        assert!(matches!(gate.admit(address(1), false, true, now), Admission::Refuse));
        inside.pop();
        assert!(matches!(gate.admit(address(1), false, true, now), Admission::Enter(_)));
    }

    #[test]
    fn a_forged_known_address_soon_counts_as_unknown() {
        let now = Instant::now();
        let mut gate = gate(now);
        let inside: Vec<_> = (0..KNOWN_HANDSHAKES_MAX).map(|_| gate.admit(address(1), true, false, now)).collect();
        assert!(inside.iter().all(|admission| matches!(admission, Admission::Enter(_))));
        assert!(matches!(gate.admit(address(1), true, false, now), Admission::Retry));
        assert!(matches!(gate.admit(address(2), true, false, now), Admission::Enter(_)), "others are not affected");
        drop(inside);
        assert!(matches!(gate.admit(address(1), true, false, now), Admission::Enter(_)));
    }

    #[test]
    fn seeds_repeat_and_the_reset_key_outlives_a_restart() {
        let identity = Identity::generate(&[1; 32]).expect("identity");
        assert_eq!(EndpointSeeds::derive([1; 32]).cid_seed, EndpointSeeds::derive([1; 32]).cid_seed);
        let [one, two] = [(), ()].map(|()| EndpointSeeds::from_os(&identity).expect("seeds"));
        assert_eq!(one.reset_key, two.reset_key);
        assert_ne!(one.instance, two.instance);
    }
}
