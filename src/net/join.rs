//! Joining: one stream between a stranger with a token and the member that invited it.
//!
//! The stranger knows the member's key from the token and sends nothing to anybody else. The member accepts any key
//! here and believes nothing: both sides sign the exporter of this very TLS session inside, which the room above does.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::dial::{call_address, resolve};
use super::endpoint::{Inner, canonical};
use super::limits::{JOIN_ANSWER_BYTES_MAX, JOIN_DECISION_TIMEOUT, JOIN_FRAME_BYTES_MAX, JOIN_TIMEOUT};
use super::link::{Ending, FrameError, OTHER_KEY, read_frame, write_frame};
use super::tls::{ALPN_JOIN, Identity};
use super::{CloseCode, NetEvent};
use crate::proto::identity::Fingerprint;

/// Why a join came to nothing. Neither side has changed anything that this room knows of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Nobody answered; nothing was sent. Says what happened at each address.
    #[error("the inviting member cannot be reached: {0}")]
    Unreachable(String),
    /// Somebody answered, but not with the key of the token; nothing was sent. Says what happened at each address.
    #[error("that is not the inviting member: {0}")]
    OtherKey(String),
    /// This side's own key cannot be used.
    #[error("this member's identity cannot be used: {0}")]
    Identity(String),
    /// The other side ended the connection; the text says why.
    #[error("{reason}")]
    Closed {
        /// Why, in words.
        reason: String,
        /// The code it gave, a [`CloseCode`].
        code: Option<u64>,
    },
    /// The other side ended its half of the stream; there is no further frame.
    #[error("the other side has nothing more to say")]
    Finished,
    /// A frame, sent or received, is longer than a join allows.
    #[error("a frame of {0} bytes is longer than a join allows")]
    TooLong(usize),
    /// No frame came in time.
    #[error("no answer in time")]
    Timeout,
}

/// Both halves of the one stream, on either side.
struct Line {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    /// Bytes in the longest frame of this side, and of the other.
    bytes_max: (usize, usize),
}

impl Line {
    async fn send(&mut self, frame: &[u8]) -> Result<(), JoinError> {
        if frame.len() > self.bytes_max.0 {
            return Err(JoinError::TooLong(frame.len()));
        }
        let result = write_frame(&mut self.send, Bytes::copy_from_slice(frame)).await;
        result.map_err(|error| self.failed(&error))
    }

    async fn recv(&mut self) -> Result<Vec<u8>, JoinError> {
        match read_frame(&mut self.recv, self.bytes_max.1).await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(JoinError::Finished),
            Err(FrameError::TooLong(bytes)) => {
                self.connection.close(CloseCode::Protocol.into(), b"frame too long");
                Err(JoinError::TooLong(bytes))
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &FrameError) -> JoinError {
        match self.connection.close_reason() {
            Some(error) => closed(&error),
            None => JoinError::Closed { reason: error.to_string(), code: None },
        }
    }
}

fn closed(error: &ConnectionError) -> JoinError {
    let Ending { reason, code, .. } = Ending::of(error);
    JoinError::Closed { reason, code }
}

fn exporter(connection: &Connection) -> Option<[u8; 32]> {
    let mut exporter = [0; 32];
    connection.export_keying_material(&mut exporter, ALPN_JOIN, &[]).ok()?;
    Some(exporter)
}

/// The inviting member's side of a join. Dropping it ends the connection.
pub struct JoinStream {
    peer: Fingerprint,
    address: SocketAddr,
    exporter: [u8; 32],
    line: Line,
    deadline: watch::Sender<Instant>,
}

impl fmt::Debug for JoinStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinStream").field("peer", &self.peer).field("address", &self.address).finish_non_exhaustive()
    }
}

impl JoinStream {
    /// Returns the key the stranger owns; it has shown so in the handshake.
    pub fn peer(&self) -> Fingerprint {
        self.peer
    }

    /// Returns where the stranger calls from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the secret that only the two ends of this TLS session share.
    pub fn exporter(&self) -> [u8; 32] {
        self.exporter
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// [`JoinError`] when there is none; the join is over then. A join that takes longer than
    /// [`JOIN_TIMEOUT`] is closed.
    pub async fn recv(&mut self) -> Result<Vec<u8>, JoinError> {
        self.line.recv().await
    }

    /// Sends a frame of at most [`JOIN_ANSWER_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`JoinError`] when it cannot be sent.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), JoinError> {
        self.line.send(frame).await
    }

    /// Gives the members [`JOIN_DECISION_TIMEOUT`] from now to decide; to be called once the proof was found right.
    pub fn allow_decision(&self) {
        self.deadline.send_replace(Instant::now() + JOIN_DECISION_TIMEOUT);
    }

    /// Ends the join once the stranger has received everything, or its time is up.
    pub async fn finish(mut self) {
        let _ = self.line.send.finish();
        let _ = self.line.send.stopped().await;
    }
}

impl Drop for JoinStream {
    fn drop(&mut self) {
        self.line.connection.close(CloseCode::Shutdown.into(), &[]);
    }
}

/// Hands a stranger's join out, unless too many are under way, and sees to it that it ends.
pub(crate) async fn serve(inner: &Arc<Inner>, connection: Connection, peer: Fingerprint) {
    let Ok(permit) = inner.joins.clone().try_acquire_owned() else {
        return connection.close(CloseCode::Busy.into(), b"too many joins at once; try again");
    };
    let (deadline, watched) = watch::channel(Instant::now() + JOIN_TIMEOUT);
    inner.spawn(end_in_time(connection.clone(), watched, permit));
    let Some(exporter) = exporter(&connection) else {
        return connection.close(CloseCode::Protocol.into(), &[]);
    };
    // The first stream is the only one: the transport allows a stranger no other.
    let Ok((send, recv)) = connection.accept_bi().await else { return };
    let address = canonical(connection.remote_address());
    let line = Line { connection, send, recv, bytes_max: (JOIN_ANSWER_BYTES_MAX, JOIN_FRAME_BYTES_MAX) };
    inner.report(NetEvent::Join(JoinStream { peer, address, exporter, line, deadline })).await;
}

/// Closes a join at its deadline, and keeps its place until it has ended.
async fn end_in_time(connection: Connection, mut deadline: watch::Receiver<Instant>, permit: OwnedSemaphorePermit) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            biased;
            _ = connection.closed() => break,
            Ok(()) = deadline.changed() => {}
            () = sleep_until(at) => connection.close(CloseCode::Timeout.into(), b"the join took too long"),
        }
    }
    drop(permit);
}

/// The joining side. Dropping it ends the connection.
pub struct JoinClient {
    server: Fingerprint,
    exporter: [u8; 32],
    line: Line,
}

impl fmt::Debug for JoinClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinClient").field("server", &self.server).finish_non_exhaustive()
    }
}

impl JoinClient {
    /// Returns the key of the inviting member; it is the one of the token.
    pub fn server(&self) -> Fingerprint {
        self.server
    }

    /// Returns the secret that only the two ends of this TLS session share.
    pub fn exporter(&self) -> [u8; 32] {
        self.exporter
    }

    /// Sends a frame of at most [`JOIN_FRAME_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`JoinError`] when it cannot be sent.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), JoinError> {
        self.line.send(frame).await
    }

    /// Waits for the next frame, at most for `patience`.
    ///
    /// # Errors
    /// [`JoinError`] when none came; after [`JoinError::Timeout`] the join is over.
    pub async fn recv(&mut self, patience: Duration) -> Result<Vec<u8>, JoinError> {
        timeout(patience, self.line.recv()).await.unwrap_or(Err(JoinError::Timeout))
    }
}

impl Drop for JoinClient {
    fn drop(&mut self) {
        self.line.connection.close(CloseCode::Shutdown.into(), &[]);
    }
}

/// Calls the inviting member at any of `places`, which are `host:port` or `address:port`.
pub(crate) async fn join(
    inner: &Inner,
    places: &[String],
    server: Fingerprint,
    identity: &Identity,
) -> Result<JoinClient, JoinError> {
    let crypto = inner.tls.join_client(server, identity).map_err(|error| JoinError::Identity(error.to_string()))?;
    let client = inner.client(crypto);
    let (addresses, mut problems) = resolve(inner, Vec::new(), places).await;
    let mut calls: FuturesUnordered<_> =
        (0u32..).zip(addresses).map(|(place, address)| call_address(inner, &client, place, address)).collect();
    let mut other_key = false;
    while let Some((address, result)) = calls.next().await {
        match result {
            Ok(connection) => return open(connection, server).await,
            Err(reason) => {
                other_key |= reason == OTHER_KEY;
                problems.push(format!("{address}: {reason}"));
            }
        }
    }
    let problems = problems.join("; ");
    Err(if other_key { JoinError::OtherKey(problems) } else { JoinError::Unreachable(problems) })
}

async fn open(connection: Connection, server: Fingerprint) -> Result<JoinClient, JoinError> {
    let exporter = exporter(&connection)
        .ok_or_else(|| JoinError::Closed { reason: "the session has no exporter".into(), code: None })?;
    let (send, recv) = connection.open_bi().await.map_err(|error| closed(&error))?;
    Ok(JoinClient {
        server,
        exporter,
        line: Line { connection, send, recv, bytes_max: (JOIN_FRAME_BYTES_MAX, JOIN_ANSWER_BYTES_MAX) },
    })
}
