//! The transport: gossip messages in and out of queues that are keyed by fingerprint.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::ChitchatMessage;
use chitchat::transport::{Socket, Transport};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::admission::{Admission, address_of};
use super::wire;
use crate::proto::identity::Fingerprint;

/// Sends one message to a member. It must return at once, and drop the message when its queue is full: chitchat
/// waits for it with all its work.
pub type Outgoing = dyn Fn(Fingerprint, Bytes) + Send + Sync;

/// Carries gossip over links that somebody else keeps.
pub struct PeerTransport {
    admission: Admission,
    outgoing: Arc<Outgoing>,
    incoming: Arc<Mutex<mpsc::Receiver<(Fingerprint, Bytes)>>>,
}

impl PeerTransport {
    /// Makes a transport.
    ///
    /// `outgoing` takes a message for a member and never blocks. `incoming` yields messages with the member whose link
    /// they came on; it ends the gossip when it is closed. Whoever is not in `admission` is neither told nor heard.
    pub fn new(
        admission: Admission,
        outgoing: impl Fn(Fingerprint, Bytes) + Send + Sync + 'static,
        incoming: mpsc::Receiver<(Fingerprint, Bytes)>,
    ) -> Self {
        Self { admission, outgoing: Arc::new(outgoing), incoming: Arc::new(Mutex::new(incoming)) }
    }
}

#[async_trait]
impl Transport for PeerTransport {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let Ok(incoming) = self.incoming.clone().try_lock_owned() else {
            anyhow::bail!("the gossip transport is open already");
        };
        Ok(Box::new(PeerSocket { admission: self.admission.clone(), outgoing: self.outgoing.clone(), incoming }))
    }
}

struct PeerSocket {
    admission: Admission,
    outgoing: Arc<Outgoing>,
    incoming: OwnedMutexGuard<mpsc::Receiver<(Fingerprint, Bytes)>>,
}

#[async_trait]
impl Socket for PeerSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if let Some(member) = self.admission.member_at(to) {
            (self.outgoing)(member, wire::encode(&message).into());
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            // Cancel-safe: nothing is awaited between taking a message and returning it.
            let Some((from, bytes)) = self.incoming.recv().await else {
                anyhow::bail!("the links are gone");
            };
            let address = address_of(from);
            if self.admission.member_at(address).is_none() {
                tracing::debug!(%from, "gossip of a stranger dropped");
                continue;
            }
            // An error would end chitchat's server, so bad input ends here.
            match wire::decode(&bytes, &self.admission) {
                Ok(message) => return Ok((address, message)),
                Err(error) => tracing::debug!(%from, bytes = bytes.len(), %error, "gossip message dropped"),
            }
        }
    }
}
