//! Links: what two members say over one connection, in which order, and how much of it may wait.
//!
//! The dialler opens the first bidirectional stream, the control stream, and says hello on it; the acceptor answers
//! there. After that each side opens one bidirectional stream a channel when it first has something to say on it, and
//! uses only its own half: a tag byte, then frames, each after its length as a big-endian `u32`. A datagram is a tag
//! byte and one frame; one that is too large travels alone on a unidirectional stream instead.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use minicbor::{Decode, Encode};
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::limits::{
    BULK_BYTES_IN_FLIGHT_MAX, CLOSE_MESSAGE_BYTES_MAX, DATAGRAM_FRAME_BYTES_MAX, FALLBACK_QUEUE_BYTES_MAX,
    FRAME_BYTES_MAX, HELLO_BYTES_MAX, QUEUE_BYTES_MAX, SYNC_FRAME_BYTES_MAX,
};
use super::slot::Mark;
use super::{Channel, CloseCode, Delivery, LinkInfo, NetEvent};
use crate::proto::identity::Fingerprint;

/// The tag of the control stream.
const CONTROL: u8 = 0xff;
const CONTROL_PRIORITY: i32 = 4;

/// The first thing either side says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Hello {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) instance: [u8; 16],
    #[n(1)]
    pub(crate) losses: u64,
    /// What the daemon has to say; opaque here.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub(crate) body: Vec<u8>,
}

impl Hello {
    pub(crate) fn mark(&self) -> Mark {
        Mark { instance: self.instance, losses: self.losses }
    }
}

/// Both halves of a control stream; kept as long as the link, for dropping them would end it.
pub(crate) type Control = (SendStream, RecvStream);

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the stream ended in the middle of a frame")]
    Cut,
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("the hello cannot be read")]
    Malformed,
    #[error("the connection was lost: {0}")]
    Lost(#[from] ConnectionError),
    #[error("the stream was stopped by the peer")]
    Stopped,
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Lost(error),
            _ => Self::Cut,
        }
    }
}

impl From<ReadExactError> for FrameError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Cut,
            ReadExactError::ReadError(error) => error.into(),
        }
    }
}

impl From<WriteError> for FrameError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error),
            _ => Self::Stopped,
        }
    }
}

/// Writes one frame after its length.
pub(crate) async fn write_frame(stream: &mut SendStream, frame: Bytes) -> Result<(), FrameError> {
    let length = u32::try_from(frame.len()).map_err(|_| FrameError::TooLong(frame.len()))?;
    let head = Bytes::copy_from_slice(&length.to_be_bytes());
    Ok(stream.write_all_chunks(&mut [head, frame]).await?)
}

/// Reads the length of the next frame; `None` when the stream ended before it.
async fn read_length(stream: &mut RecvStream, bytes_max: usize) -> Result<Option<usize>, FrameError> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > bytes_max { Err(FrameError::TooLong(length)) } else { Ok(Some(length)) }
}

/// Reads one frame of at most `bytes_max`; `None` when the stream ended before it.
pub(crate) async fn read_frame(stream: &mut RecvStream, bytes_max: usize) -> Result<Option<Vec<u8>>, FrameError> {
    let Some(length) = read_length(stream, bytes_max).await? else { return Ok(None) };
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(Some(frame))
}

/// Says hello as the dialler and waits for the answer, which shows that the peer took us in.
pub(crate) async fn greet(connection: &Connection, hello: &Hello) -> Result<(Hello, Control), FrameError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    // The priority only matters once there are other streams; a stream that is closed already has none.
    let _ = send.set_priority(CONTROL_PRIORITY);
    send.write_all(&[CONTROL]).await?;
    answer(&mut send, hello).await?;
    Ok((read_hello(&mut recv).await?, (send, recv)))
}

/// Waits for the hello of a dialler.
pub(crate) async fn hear(connection: &Connection) -> Result<(Hello, Control), FrameError> {
    let (send, mut recv) = connection.accept_bi().await?;
    let _ = send.set_priority(CONTROL_PRIORITY);
    let mut tag = [0];
    recv.read_exact(&mut tag).await?;
    if tag != [CONTROL] {
        return Err(FrameError::Malformed);
    }
    Ok((read_hello(&mut recv).await?, (send, recv)))
}

/// Says hello on an open control stream.
pub(crate) async fn answer(send: &mut SendStream, hello: &Hello) -> Result<(), FrameError> {
    let bytes = minicbor::to_vec(hello).map_err(|_| FrameError::Malformed)?;
    if bytes.len() > HELLO_BYTES_MAX {
        return Err(FrameError::TooLong(bytes.len()));
    }
    write_frame(send, bytes.into()).await
}

async fn read_hello(recv: &mut RecvStream) -> Result<Hello, FrameError> {
    let bytes = read_frame(recv, HELLO_BYTES_MAX).await?.ok_or(FrameError::Cut)?;
    minicbor::decode(&bytes).map_err(|_| FrameError::Malformed)
}

/// How a link ended, in words and in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: String,
    pub(crate) code: Option<u64>,
    pub(crate) message: Vec<u8>,
    /// Whether the other side gave the code.
    pub(crate) by_peer: bool,
}

impl Ending {
    /// Puts what quinn reports into words a person can act on.
    pub(crate) fn of(error: &ConnectionError) -> Self {
        let (reason, code, message) = match error {
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                (format!("the peer closed it: {}", CloseCode::words(code)), Some(code), close.reason.to_vec())
            }
            ConnectionError::TimedOut => ("nothing was heard for 15 s".into(), None, Vec::new()),
            ConnectionError::Reset => ("the peer was restarted and knows it no more".into(), None, Vec::new()),
            ConnectionError::LocallyClosed => ("this member closed it".into(), None, Vec::new()),
            ConnectionError::ConnectionClosed(close) => (alert_words(close.error_code.into(), true), None, Vec::new()),
            ConnectionError::TransportError(error) => (alert_words(error.code.into(), false), None, Vec::new()),
            other => (other.to_string(), None, Vec::new()),
        };
        Self { reason, by_peer: code.is_some(), code, message }
    }
}

/// What is said of a server whose key is not the one that is looked for.
pub(crate) const OTHER_KEY: &str = "whoever is there has another key than is expected";

/// Explains a QUIC error code; those from 0x100 on carry a TLS alert. `theirs` when the peer raised it.
fn alert_words(code: u64, theirs: bool) -> String {
    match (code, theirs) {
        (0x131, true) => "the peer does not accept this member's key (is this member on the peer's roster?)".into(),
        (0x131, false) => OTHER_KEY.into(),
        (0x133 | 0x12a | 0x12b, true) => "the peer says that this member does not own its key".into(),
        (0x133 | 0x12a | 0x12b, false) => "whoever is there does not own the key it showed".into(),
        (0x178, _) => "the peer does not speak this version of the protocol".into(),
        (0x2, true) => "the peer is too busy to talk to an address it does not know".into(),
        (0x100..=0x1ff, _) => format!("the TLS handshake failed with alert {}", code & 0xff),
        _ => format!("the QUIC connection failed with error {code:#x}"),
    }
}

/// What waits to be written on one stream of a link.
struct Lane {
    sender: mpsc::UnboundedSender<Bytes>,
    queued: AtomicUsize,
}

impl Lane {
    /// Queues a frame unless more than `bytes_max` would wait.
    fn push(&self, frame: Bytes, bytes_max: usize) -> bool {
        let length = frame.len();
        if self.queued.fetch_add(length, Ordering::Relaxed).saturating_add(length) > bytes_max {
            self.queued.fetch_sub(length, Ordering::Relaxed);
            return false;
        }
        self.sender.send(frame).is_ok()
    }

    fn written(&self, length: usize) {
        self.queued.fetch_sub(length, Ordering::Relaxed);
    }
}

/// The writing ends of a link's lanes: one for each channel, the last for large datagrams.
pub(crate) struct Outlets(Vec<mpsc::UnboundedReceiver<Bytes>>);

/// The lane of datagrams that are too large, after those of the channels.
const FALLBACK: usize = Channel::ALL.len();

/// One connection that both members agreed on.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) peer: Fingerprint,
    pub(crate) address: SocketAddr,
    pub(crate) dialled: bool,
    pub(crate) mark: Mark,
    since: Instant,
    lanes: Vec<Lane>,
    /// Why this side closed it, when it did.
    closed: OnceLock<Ending>,
    ended: watch::Sender<bool>,
}

impl Link {
    pub(crate) fn new(
        connection: Connection,
        peer: Fingerprint,
        address: SocketAddr,
        dialled: bool,
        mark: Mark,
    ) -> (Arc<Self>, Outlets) {
        let (lanes, outlets) = (0..=FALLBACK)
            .map(|_| {
                let (sender, outlet) = mpsc::unbounded_channel();
                (Lane { sender, queued: AtomicUsize::new(0) }, outlet)
            })
            .unzip();
        let link = Self {
            connection,
            peer,
            address,
            dialled,
            mark,
            since: Instant::now(),
            lanes,
            closed: OnceLock::new(),
            ended: watch::Sender::new(false),
        };
        (Arc::new(link), Outlets(outlets))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Returns how long it has been up.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Ends it; only the first call of either side says why.
    pub(crate) fn close(&self, code: CloseCode, message: &[u8], reason: &str) {
        let message = &message[..message.len().min(CLOSE_MESSAGE_BYTES_MAX)];
        let ending =
            Ending { reason: reason.into(), code: Some(code as u64), message: message.to_vec(), by_peer: false };
        if self.is_open() {
            self.closed.get_or_init(|| ending);
            self.connection.close(code.into(), message);
        }
    }

    /// Waits until its end was reported.
    pub(crate) async fn ended(&self) {
        // The sender lives in this link, so waiting cannot fail while we hold it.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    pub(crate) fn set_ended(&self) {
        self.ended.send_replace(true);
    }

    /// Sends a frame or queues it; never waits.
    pub(crate) fn send(&self, channel: Channel, delivery: Delivery, frame: Bytes) {
        match delivery {
            Delivery::Stream => self.send_on_stream(channel, frame),
            Delivery::Datagram => self.send_datagram(channel, &frame),
        }
    }

    fn send_on_stream(&self, channel: Channel, frame: Bytes) {
        if frame.len() > channel.frame_bytes_max() {
            tracing::error!(peer = %self.peer, ?channel, bytes = frame.len(), "frame is too long to send; dropped");
        } else if !self.lanes[channel as usize].push(frame, QUEUE_BYTES_MAX) {
            // A stream with a hole would mislead the peer; a new link makes both sides resync.
            self.close(CloseCode::Overflow, &[], "the peer is too slow: more than 8 MiB wait for it");
        }
    }

    fn send_datagram(&self, channel: Channel, frame: &Bytes) {
        let mut tagged = BytesMut::with_capacity(frame.len() + 1);
        tagged.put_u8(channel as u8);
        tagged.extend_from_slice(frame);
        let tagged = tagged.freeze();
        if self.connection.max_datagram_size().is_some_and(|bytes_max| tagged.len() <= bytes_max) {
            // A datagram may be lost on the way as well; quinn drops the oldest when too many wait.
            let _ = self.connection.send_datagram(tagged);
        } else if frame.len() > DATAGRAM_FRAME_BYTES_MAX {
            tracing::error!(peer = %self.peer, ?channel, bytes = frame.len(), "datagram is too long to send; dropped");
        } else if !self.lanes[FALLBACK].push(tagged, FALLBACK_QUEUE_BYTES_MAX) {
            tracing::debug!(peer = %self.peer, ?channel, "too many large datagrams wait; one was dropped");
        }
    }

    pub(crate) fn info(&self) -> LinkInfo {
        let stats = self.connection.stats();
        LinkInfo {
            peer: self.peer,
            address: self.address,
            rtt: self.connection.rtt(),
            dialled: self.dialled,
            up_for: self.age(),
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            datagram_bytes_max: self.connection.max_datagram_size().map(|bytes| bytes.saturating_sub(1)),
        }
    }
}

/// Carries frames both ways until the connection ends; returns how it ended.
pub(crate) async fn run(link: &Link, outlets: Outlets, control: Control, events: &mpsc::Sender<NetEvent>) -> Ending {
    let inlet = Inlet { link, events, budget: Arc::new(Semaphore::new(BULK_BYTES_IN_FLIGHT_MAX)) };
    let mut outlets = outlets.0.into_iter();
    let streams = Channel::ALL.into_iter().zip(&mut outlets);
    let writers = join_all(streams.map(|(channel, outlet)| write_channel(link, channel, outlet)).collect::<Vec<_>>());
    let fallback = join_all(outlets.map(|outlet| write_large_datagrams(link, outlet)).collect::<Vec<_>>());
    let work = async {
        tokio::join!(inlet.read_datagrams(), inlet.read_large_datagrams(), inlet.read_streams(), writers, fallback)
    };
    let error = tokio::select! {
        biased;
        error = link.connection.closed() => error,
        _ = work => link.connection.closed().await,
    };
    drop(control);
    match (&error, link.closed.get()) {
        (ConnectionError::LocallyClosed, Some(ending)) => ending.clone(),
        _ => Ending::of(&error),
    }
}

/// Writes the frames of one channel, in order, on a stream that it opens with the first.
async fn write_channel(link: &Link, channel: Channel, mut outlet: mpsc::UnboundedReceiver<Bytes>) {
    let mut stream: Option<SendStream> = None;
    while let Some(frame) = outlet.recv().await {
        let length = frame.len();
        let result = async {
            let open = match stream.as_mut() {
                Some(open) => open,
                None => stream.insert(open_channel(&link.connection, channel).await?),
            };
            write_frame(open, frame).await
        };
        match result.await {
            Ok(()) => link.lanes[channel as usize].written(length),
            Err(FrameError::Stopped) => {
                tracing::debug!(peer = %link.peer, ?channel, "the peer does not take this channel");
                break;
            }
            Err(_) => return,
        }
    }
    // The peer is older than the channel: what is meant for it goes nowhere, and must not pile up.
    while let Some(frame) = outlet.recv().await {
        link.lanes[channel as usize].written(frame.len());
    }
}

async fn open_channel(connection: &Connection, channel: Channel) -> Result<SendStream, FrameError> {
    let (mut send, _) = connection.open_bi().await?;
    let _ = send.set_priority(channel.priority());
    send.write_all(&[channel as u8]).await?;
    Ok(send)
}

/// Writes each large datagram on a stream of its own.
async fn write_large_datagrams(link: &Link, mut outlet: mpsc::UnboundedReceiver<Bytes>) {
    while let Some(tagged) = outlet.recv().await {
        let length = tagged.len();
        let Ok(mut stream) = link.connection.open_uni().await else { return };
        if let Some(channel) = tagged.first().and_then(|tag| Channel::from_tag(*tag)) {
            let _ = stream.set_priority(channel.priority());
        }
        // When the peer stops this one the next may still be welcome.
        if stream.write_all_chunks(&mut [tagged]).await.is_ok() {
            let _ = stream.finish();
        }
        link.lanes[FALLBACK].written(length);
    }
}

/// The reading side of a link.
struct Inlet<'a> {
    link: &'a Link,
    events: &'a mpsc::Sender<NetEvent>,
    /// Bytes of bulk that may still be handed out before earlier ones are dropped.
    budget: Arc<Semaphore>,
}

/// The peer broke the protocol; what it did, in words.
struct Violation(String);

impl Inlet<'_> {
    async fn deliver(&self, channel: Channel, bytes: Bytes) {
        // Nobody takes events any more when the daemon stops; then there is nothing to do with a frame.
        let _ = self.events.send(NetEvent::Frame { peer: self.link.peer, channel, bytes }).await;
    }

    fn refuse(&self, Violation(what): Violation) {
        self.link.close(CloseCode::Protocol, &[], &format!("the peer broke the protocol: {what}"));
    }

    async fn read_datagrams(&self) {
        while let Ok(datagram) = self.link.connection.read_datagram().await {
            // An unknown tag is a newer peer's.
            if let Some(channel) = datagram.first().and_then(|tag| Channel::from_tag(*tag)) {
                self.deliver(channel, datagram.slice(1..)).await;
            }
        }
    }

    async fn read_large_datagrams(&self) {
        while let Ok(mut stream) = self.link.connection.accept_uni().await {
            let mut tag = [0];
            let Ok(()) = stream.read_exact(&mut tag).await else { continue };
            let Some(channel) = Channel::from_tag(tag[0]) else { continue };
            let permit = self.permit(channel, DATAGRAM_FRAME_BYTES_MAX).await;
            match stream.read_to_end(DATAGRAM_FRAME_BYTES_MAX).await {
                Ok(bytes) => self.deliver(channel, owned(bytes, permit)).await,
                Err(quinn::ReadToEndError::TooLong) => {
                    return self.refuse(Violation("a large datagram is longer than allowed".into()));
                }
                Err(quinn::ReadToEndError::Read(_)) => {}
            }
        }
    }

    async fn read_streams(&self) {
        let mut open = BTreeSet::new();
        let mut readers = FuturesUnordered::new();
        loop {
            let stream = tokio::select! {
                biased;
                Some(result) = readers.next(), if !readers.is_empty() => match result {
                    Ok(()) => continue,
                    Err(violation) => return self.refuse(violation),
                },
                stream = self.link.connection.accept_bi() => stream,
            };
            // Our half of the stream is not used.
            let Ok((_, mut stream)) = stream else { return };
            let mut tag = [0];
            let Ok(()) = stream.read_exact(&mut tag).await else { continue };
            let Some(channel) = Channel::from_tag(tag[0]) else { continue };
            if !open.insert(channel) {
                return self.refuse(Violation(format!("it opened a second stream for {channel:?}")));
            }
            readers.push(self.read_channel(channel, stream));
        }
    }

    async fn read_channel(&self, channel: Channel, mut stream: RecvStream) -> Result<(), Violation> {
        loop {
            match self.read_channel_frame(channel, &mut stream).await {
                Ok(Some(frame)) => self.deliver(channel, frame).await,
                Ok(None) | Err(FrameError::Lost(_) | FrameError::Stopped) => return Ok(()),
                Err(error) => return Err(Violation(format!("{error} on {channel:?}"))),
            }
        }
    }

    async fn read_channel_frame(&self, channel: Channel, stream: &mut RecvStream) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = read_length(stream, channel.frame_bytes_max()).await? else { return Ok(None) };
        let permit = self.permit(channel, length).await;
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await?;
        Ok(Some(owned(frame, permit)))
    }

    /// Waits until a bulk frame of that length may be handed out.
    async fn permit(&self, channel: Channel, length: usize) -> Option<OwnedSemaphorePermit> {
        if !channel.is_bulk() {
            return None;
        }
        let count = u32::try_from(length).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        self.budget.clone().acquire_many_owned(count).await.ok()
    }
}

/// Joins a frame and its share of the budget, so that dropping the frame gives the share back.
fn owned(frame: Vec<u8>, permit: Option<OwnedSemaphorePermit>) -> Bytes {
    struct Owned {
        frame: Vec<u8>,
        _permit: OwnedSemaphorePermit,
    }
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            &self.frame
        }
    }
    match permit {
        Some(permit) => Bytes::from_owner(Owned { frame, _permit: permit }),
        None => frame.into(),
    }
}

impl Channel {
    /// Returns how many bytes a stream frame may have.
    pub fn frame_bytes_max(self) -> usize {
        if self == Self::Sync { SYNC_FRAME_BYTES_MAX } else { FRAME_BYTES_MAX }
    }

    /// Returns whether its frames may be many and large, so that they wait for the reader.
    fn is_bulk(self) -> bool {
        matches!(self, Self::Gossip | Self::Sync | Self::Request)
    }

    /// Larger goes first.
    fn priority(self) -> i32 {
        match self {
            Self::Swim | Self::Lease | Self::Epoch => 3,
            Self::Gossip => 2,
            Self::Request => 1,
            Self::Sync => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_read_back() {
        for channel in Channel::ALL {
            assert_eq!(Channel::from_tag(channel as u8), Some(channel));
        }
        assert_eq!(Channel::from_tag(6), None);
        assert_eq!(Channel::from_tag(CONTROL), None);
    }

    #[test]
    fn leases_go_before_bulk() {
        for urgent in [Channel::Swim, Channel::Lease, Channel::Epoch] {
            for bulk in [Channel::Gossip, Channel::Request, Channel::Sync] {
                assert!(urgent.priority() > bulk.priority());
                assert!(bulk.is_bulk() && !urgent.is_bulk());
            }
        }
        assert!(Channel::Sync.priority() < Channel::Request.priority());
    }

    #[test]
    fn a_lane_takes_no_more_than_its_bound() {
        let (sender, mut outlet) = mpsc::unbounded_channel();
        let lane = Lane { sender, queued: AtomicUsize::new(0) };
        let frame = Bytes::from_static(&[0; 4]);
        assert!(lane.push(frame.clone(), 8));
        assert!(lane.push(frame.clone(), 8));
        assert!(!lane.push(frame.clone(), 8));
        assert!(outlet.try_recv().is_ok());
        lane.written(4);
        assert!(lane.push(frame, 8));
    }

    #[test]
    fn a_bulk_frame_gives_its_share_back_when_it_is_dropped() {
        let budget = Arc::new(Semaphore::new(10));
        let permit = budget.clone().try_acquire_many_owned(10).ok();
        let frame = owned(vec![1, 2, 3], permit);
        let part = frame.slice(1..);
        drop(frame);
        assert_eq!((budget.available_permits(), part.as_ref()), (0, [2, 3].as_slice()));
        drop(part);
        assert_eq!(budget.available_permits(), 10);
    }

    #[test]
    fn damaged_hellos_are_an_error() {
        let hello = Hello { instance: [1; 16], losses: 7, body: vec![2; 40] };
        let bytes = minicbor::to_vec(&hello).expect("hello");
        assert_eq!(minicbor::decode::<Hello>(&bytes).expect("hello"), hello);
        for end in 0..bytes.len() {
            assert!(minicbor::decode::<Hello>(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
