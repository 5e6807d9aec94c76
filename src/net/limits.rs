//! Limits: how much of anything a peer or a stranger can make this member hold or do.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use tokio::time::Instant;

/// A link without a packet for so long is down.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often an idle link says that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// How long a handshake may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first application bytes may take after the handshake.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an incoming connection waits for our own dial to the same peer, which is preferred.
pub(crate) const HOLD_TIMEOUT: Duration = Duration::from_millis(500);
/// How long after one address the next one is tried.
pub(crate) const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// Addresses tried in one dial.
pub(crate) const ADDRESSES_MAX: usize = 16;
/// How long a name server may take.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a shutdown waits for peers to hear of it.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that may be on their way before the first of them is acknowledged: more than a member says to another in
/// [`IDLE_TIMEOUT`]. What a cut swallows counts as on its way until something is acknowledged again, and a window that is
/// full lets nothing out but probes, which come ever more rarely: a way that is open again would stay unused for seconds.
const INITIAL_WINDOW: u64 = 1 << 18;

/// Bytes in the largest stream frame.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes in the largest frame of [`Channel::Sync`](super::Channel::Sync): small enough that nothing waits long behind it.
pub const SYNC_FRAME_BYTES_MAX: usize = 512 << 10;
/// Bytes in the largest frame sent as [`Delivery::Datagram`](super::Delivery::Datagram).
pub const DATAGRAM_FRAME_BYTES_MAX: usize = 128 << 10;
/// Bytes in the largest hello.
pub const HELLO_BYTES_MAX: usize = 16 << 10;
/// Bytes that may wait for one peer on one channel.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Bytes of large datagrams that may wait for one peer.
pub(crate) const FALLBACK_QUEUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of bulk frames of one peer that were handed out and not dropped yet.
pub(crate) const BULK_BYTES_IN_FLIGHT_MAX: usize = 2 << 20;
/// Bytes of a close message; more would not fit into the one packet that carries it.
pub const CLOSE_MESSAGE_BYTES_MAX: usize = 1000;

/// Joins that may be under way at once.
pub(crate) const JOINS_MAX: usize = 4;
/// How long a join may take.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take from the proof on, while the members decide.
pub const JOIN_DECISION_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes in the largest frame of a join.
pub const JOIN_FRAME_BYTES_MAX: usize = 4 << 10;
/// Bytes in the longest frame of an inviting member: it may hold the whole roster.
pub const JOIN_ANSWER_BYTES_MAX: usize = 1 << 20;

/// Handshakes of unknown addresses under way at once.
pub(crate) const STRANGER_HANDSHAKES_MAX: usize = 8;
/// Handshakes of one known address under way at once; more and it counts as unknown, for addresses can be forged.
pub(crate) const KNOWN_HANDSHAKES_MAX: usize = 4;
/// Unknown addresses that are answered, a second.
pub(crate) const STRANGERS_PER_SECOND: u32 = 50;
/// Refusals reported, a second.
pub(crate) const REFUSALS_PER_SECOND: u32 = 5;

const RECEIVE_WINDOW: u32 = 4 << 20;
/// Three stalled bulk streams and four large datagrams together stay below the receive window, so that bulk which waits
/// for us never keeps a lease from arriving.
const STREAM_RECEIVE_WINDOW: u32 = 768 << 10;
const STRANGER_RECEIVE_WINDOW: u32 = 64 << 10;
/// More than the peer lets three bulk streams fill, so that bulk never keeps a lease from leaving.
const SEND_WINDOW: u64 = 8 << 20;
const DATAGRAM_BUFFER_BYTES: usize = 64 << 10;
const BIDI_STREAMS: u32 = 16;
const UNI_STREAMS: u32 = 4;
/// quinn's default of 333 ms makes the first retransmission of a handshake a second late.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Returns the transport of connections that we dial: who answers has shown its key before it can send anything.
pub(crate) fn dialled_transport() -> Arc<TransportConfig> {
    let mut transport = base_transport();
    transport
        .max_concurrent_bidi_streams(BIDI_STREAMS.into())
        .max_concurrent_uni_streams(UNI_STREAMS.into())
        .receive_window(RECEIVE_WINDOW.into());
    Arc::new(transport)
}

/// Returns the transport of connections that come in: one stream and little memory until we know whose they are.
pub(crate) fn accepted_transport() -> Arc<TransportConfig> {
    let mut transport = base_transport();
    transport
        .max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .receive_window(STRANGER_RECEIVE_WINDOW.into());
    Arc::new(transport)
}

/// Gives an incoming connection of a member what a dialled one has from the start.
pub(crate) fn trust(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(BIDI_STREAMS.into());
    connection.set_max_concurrent_uni_streams(UNI_STREAMS.into());
    connection.set_receive_window(RECEIVE_WINDOW.into());
}

fn base_transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = u32::try_from(IDLE_TIMEOUT.as_millis()).map_or(VarInt::MAX, VarInt::from_u32);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    transport
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(STREAM_RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(congestion))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    transport
}

/// Lets a steady number of things happen a second, and a burst of one second's worth.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    cost: Duration,
    saved: Duration,
    filled: Instant,
}

impl TokenBucket {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { cost: Duration::from_secs(1) / per_second.max(1), saved: Duration::from_secs(1), filled: now }
    }

    /// Takes one token; returns whether there was one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        self.saved = self.saved.saturating_add(elapsed).min(Duration::from_secs(1));
        self.filled = now;
        let left = self.saved.checked_sub(self.cost);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(50, start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 50);
        assert!(!bucket.take(start + Duration::from_millis(19)));
        assert!(bucket.take(start + Duration::from_millis(20)));
        assert!(!bucket.take(start + Duration::from_millis(20)));
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 50, "an hour saves no more than a second");
    }

    #[test]
    fn bulk_that_stalls_leaves_room_for_leases() {
        let stalled = 3 * STREAM_RECEIVE_WINDOW as usize + UNI_STREAMS as usize * DATAGRAM_FRAME_BYTES_MAX;
        assert!(stalled < RECEIVE_WINDOW as usize);
        assert!((stalled as u64) < SEND_WINDOW);
    }
}
