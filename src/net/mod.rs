//! The network between members: opaque frames from one certificate fingerprint to another, over QUIC.
//!
//! This room knows who may talk (the fingerprints it is given), keeps one link to each of them, and tells what became
//! of it. It knows nothing of what the frames mean: no lease, document or gossip is named here.
//!
//! | file | what it decides |
//! |---|---|
//! | [`tls`] | which keys are accepted |
//! | [`endpoint`] | in which order callers are let in |
//! | `dial` | when and where a peer is called |
//! | `slot` | which of several connections to one peer is the link |
//! | `link` | what is said over a link, in which order, and how much may wait |
//! | [`join`] | how a stranger with a token is talked to |
//! | [`limits`] | every bound |
//! | `switch` | nothing: a cable that can be cut, for the demo |
//!
//! Whatever is random or timed comes in through [`NetConfig`] and tokio's clock, so that a simulator can be the world.

mod dial;
pub mod endpoint;
pub mod join;
pub mod limits;
mod link;
mod slot;
mod switch;
pub mod tls;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quinn::{AsyncUdpSocket, Runtime, TimeSource, VarInt};
use rustls::crypto::CryptoProvider;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::proto::identity::Fingerprint;
pub use crate::proto::message::{Channel, Delivery};
pub use endpoint::EndpointSeeds;
pub use join::{JoinClient, JoinError, JoinStream};
pub use switch::Switch;
pub use tls::{Identity, IdentityError, fingerprint_of};

/// Why a connection was closed; the number travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseCode {
    /// The member stops, or the join is over.
    Shutdown = 0,
    /// The peer was removed from the collective for good; the message says more.
    Removed = 1,
    /// There is a link already.
    Duplicate = 2,
    /// A newer connection took its place.
    Replaced = 3,
    /// The peer broke the protocol.
    Protocol = 4,
    /// Too much waits to be sent.
    Overflow = 5,
    /// The peer's key is not on the roster, or not any more.
    NotPinned = 6,
    /// Too many do the same at once.
    Busy = 7,
    /// It took too long.
    Timeout = 8,
}

impl CloseCode {
    /// Returns in words what a code means that a peer closed a connection with.
    pub fn words(code: u64) -> &'static str {
        match code {
            0 => "it stops",
            1 => "this member was removed from the collective",
            2 => "there is a link already",
            3 => "a newer connection took its place",
            4 => "it says that this member broke the protocol",
            5 => "this member is too slow to take what it has to send",
            6 => "this member's key is not on its roster",
            7 => "it is busy",
            8 => "it took too long",
            _ => "for a reason this version does not know",
        }
    }

    /// Returns whether a dial that ends so needs nobody's attention.
    fn is_benign(code: u64) -> bool {
        [Self::Shutdown as u64, Self::Duplicate as u64, Self::Replaced as u64].contains(&code)
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// A member to keep a link with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The keys it may present; two while it rotates them.
    pub fingerprints: Vec<Fingerprint>,
    /// Where it may be, the last known good address first.
    pub addresses: Vec<SocketAddr>,
    /// `host:port` to look up anew at every dial.
    pub names: Vec<String>,
}

/// What happened on the network.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetEvent {
    /// A link is usable: the peer has accepted this member and said hello.
    LinkUp {
        /// The key it presented.
        peer: Fingerprint,
        /// Where it is.
        address: SocketAddr,
        /// What its daemon said.
        hello: Vec<u8>,
        /// Whether this side dialled.
        dialled: bool,
    },
    /// A link ended; comes once after every `LinkUp`.
    LinkDown {
        /// The key it had presented.
        peer: Fingerprint,
        /// Why, in words.
        reason: String,
        /// The code of whoever closed it, a [`CloseCode`].
        code: Option<u64>,
        /// Whether that was the peer: what this side says to a removed member is not said to this side.
        by_peer: bool,
        /// What was said with the code.
        close_message: Vec<u8>,
    },
    /// A frame came; only between `LinkUp` and `LinkDown`.
    ///
    /// A link hands out no more bulk frames while 2 MiB of its earlier ones are still held: do not keep `bytes`.
    Frame {
        /// Who sent it.
        peer: Fingerprint,
        /// What it belongs to.
        channel: Channel,
        /// The frame.
        bytes: Bytes,
    },
    /// A stranger wants to join.
    Join(JoinStream),
    /// Somebody was not let in, or did not let us in.
    Refused(Refusal),
}

/// Somebody who was not let in, or who did not let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The key it presented, as far as that is known. A caller whose handshake failed has not shown that it owns it.
    pub peer: Option<Fingerprint>,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether this side dialled, and was refused.
    pub dialled: bool,
    /// Why, in words.
    pub reason: String,
    /// The code the peer closed with, a [`CloseCode`].
    pub code: Option<u64>,
    /// What it said with the code.
    pub close_message: Vec<u8>,
    /// Earlier refusals that were not reported, because there were too many.
    pub suppressed: u64,
}

/// A link as it stands.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    /// The key the peer presented.
    pub peer: Fingerprint,
    /// Where it is.
    pub address: SocketAddr,
    /// How long a packet takes there and back.
    pub rtt: Duration,
    /// Whether this side dialled.
    pub dialled: bool,
    /// How long it has been up.
    pub up_for: Duration,
    /// UDP payload sent, in bytes.
    pub bytes_sent: u64,
    /// UDP payload received, in bytes.
    pub bytes_received: u64,
    /// Bytes in the largest frame that fits a datagram; nothing when the peer takes none.
    pub datagram_bytes_max: Option<usize>,
}

/// Why the last dial failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError {
    /// The address that was tried last; nothing when no address was known.
    pub address: Option<SocketAddr>,
    /// What went wrong, in words; names every address that was tried.
    pub reason: String,
}

/// A peer without a link, and what is done about it.
#[derive(Clone, Debug)]
pub struct Unlinked {
    /// The keys it may present.
    pub fingerprints: Vec<Fingerprint>,
    /// Why the last dial failed; nothing when none has failed since the last link.
    pub error: Option<DialError>,
    /// How long until it is dialled again; zero while it is being dialled.
    pub dial_in: Duration,
}

/// Looks up `host:port`.
pub type Resolver = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Returns the resolver of the operating system.
pub fn system_resolver() -> Resolver {
    Arc::new(|name| Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) }))
}

/// All that the network is given; nothing else reaches it.
pub struct NetConfig {
    /// Who this member is.
    pub identity: Identity,
    /// Where it listens and from where it dials.
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// What runs its tasks and quinn's timers.
    pub runtime: Arc<dyn Runtime>,
    /// The cryptography, and its random source.
    pub provider: Arc<CryptoProvider>,
    /// The wall clock; it dates the tokens of unknown addresses and nothing else.
    pub time_source: Arc<dyn TimeSource>,
    /// How names are looked up.
    pub resolver: Resolver,
    /// Everything random.
    pub seeds: EndpointSeeds,
    /// Asked for the hello whenever one is due; at most a little less than [`limits::HELLO_BYTES_MAX`].
    pub hello: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
}

impl NetConfig {
    /// Makes the configuration of a daemon: a real socket, tokio, ring, and seeds from the operating system.
    ///
    /// # Errors
    /// When the socket cannot be used or the operating system gives no random bytes.
    pub fn production(
        identity: Identity,
        socket: UdpSocket,
        hello: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
    ) -> anyhow::Result<Self> {
        let runtime: Arc<dyn Runtime> = Arc::new(quinn::TokioRuntime);
        Ok(Self {
            socket: runtime.wrap_udp_socket(socket)?,
            runtime,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            time_source: Arc::new(quinn::StdSystemTime),
            resolver: system_resolver(),
            seeds: EndpointSeeds::from_os(&identity)?,
            identity,
            hello,
        })
    }
}

/// The network of one member. Dropping it closes all links.
pub struct Net(Arc<endpoint::Inner>);

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("own", &self.0.own).finish_non_exhaustive()
    }
}

impl Net {
    /// Starts to listen. Nobody is let in before [`Net::set_peers`] says who may.
    ///
    /// What happens is told through `events`; while that is full the network waits.
    ///
    /// # Errors
    /// When the socket or the identity cannot be used.
    pub fn start(config: NetConfig, events: mpsc::Sender<NetEvent>) -> anyhow::Result<Self> {
        endpoint::Inner::start(config, events).map(Self)
    }

    /// Sets who may talk to this member, and whom it keeps a link with.
    ///
    /// Links of keys that are not among them are closed at once: those of `removed` with [`CloseCode::Removed`] and
    /// their message (at most [`limits::CLOSE_MESSAGE_BYTES_MAX`] bytes), which they are told again whenever they dial;
    /// others with [`CloseCode::NotPinned`]. This member itself may be among `peers`; it is passed over.
    pub fn set_peers(&self, peers: Vec<Peer>, removed: BTreeMap<Fingerprint, Vec<u8>>) {
        self.0.set_peers(peers, removed);
    }

    /// Sends a frame to a peer, or queues it; never waits. Without a link it is dropped.
    ///
    /// When more than [`limits::QUEUE_BYTES_MAX`] wait on the channel, the link is closed, so that both sides resync;
    /// large datagrams are dropped instead. A frame that is longer than its channel allows is dropped with an error in
    /// the log.
    pub fn send(&self, to: Fingerprint, channel: Channel, delivery: Delivery, bytes: Bytes) {
        let link = self.0.slot(to).and_then(|slot| slot.live_link());
        if let Some(link) = link {
            link.send(channel, delivery, bytes);
        }
    }

    /// Takes note that a peer lives: it is dialled now, not when its back-off ends.
    pub fn dial_now(&self, peer: Fingerprint) {
        if let Some(slot) = self.0.slot(peer) {
            slot.change(slot::SlotState::evidence);
        }
    }

    /// Returns the links that are up.
    pub fn links(&self) -> Vec<LinkInfo> {
        self.0.slots().iter().filter_map(|slot| slot.live_link()).map(|link| link.info()).collect()
    }

    /// Returns the peers without a link, and why.
    pub fn unlinked(&self) -> Vec<Unlinked> {
        let now = tokio::time::Instant::now();
        let mut unlinked = Vec::new();
        for slot in self.0.slots() {
            if slot.live_link().is_none() {
                let state = slot.lock();
                let dial_in = state.next_dial.saturating_duration_since(now);
                unlinked.push(Unlinked {
                    fingerprints: state.peer.fingerprints.clone(),
                    error: state.error.clone(),
                    dial_in: if state.dialling { Duration::ZERO } else { dial_in },
                });
            }
        }
        unlinked
    }

    /// Returns where this member listens.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    /// Calls the inviting member of a token.
    ///
    /// `places` are tried in turn, `host:port` or `address:port`. Nothing is sent unless who answers owns the key
    /// `server`; it is shown the certificate of `identity`.
    ///
    /// # Errors
    /// [`JoinError`] when it cannot be reached.
    pub async fn join(
        &self,
        places: &[String],
        server: Fingerprint,
        identity: &Identity,
    ) -> Result<JoinClient, JoinError> {
        join::join(&self.0, places, server, identity).await
    }

    /// Closes all links with that code and message, and waits a little until the peers have heard it.
    pub async fn shutdown(&self, code: CloseCode, message: &[u8]) {
        self.0.stop(code, message);
        // A peer that is gone cannot confirm; then the time is up and nothing is lost.
        let _ = timeout(limits::SHUTDOWN_TIMEOUT, self.0.endpoint.wait_idle()).await;
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.0.stop(CloseCode::Shutdown, &[]);
    }
}
