//! Simulated UDP: datagrams between members, late, lost, doubled or cut, each of them in the trace.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use collective::config::QUIC_PORT;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Sleep, sleep_until};

use super::stage::{Stage, State};
use crate::fault::MS;
use crate::mix::Purpose;
use crate::network::{HEADER_BYTES, Narrow};

/// Returns where the member of that number is.
pub(super) fn address(member: usize) -> SocketAddr {
    let number = member + 1;
    SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], QUIC_PORT))
}

/// Returns whose address that is.
fn member_at(address: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(address) = address else { return None };
    let [10, 0, high, low] = address.ip().octets() else { return None };
    (usize::from(high) << 8 | usize::from(low)).checked_sub(1)
}

/// One datagram on its way.
#[derive(Debug)]
struct Datagram {
    from: usize,
    bytes: Box<[u8]>,
    ecn: Option<EcnCodepoint>,
}

/// What is on its way to one member.
#[derive(Debug, Default)]
struct Inbox {
    /// The number of the socket that is open there; what another one sends or asks for goes nowhere.
    socket: u64,
    datagrams: BTreeMap<(u64, u64), Datagram>,
    waker: Option<Waker>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sent,
    Doubled,
    Damaged,
    HeldBack,
    Lost,
    Cut,
    TooLarge,
    Dropped,
    Nowhere,
}

impl Fate {
    /// Returns the word that the coverage counts it under.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Sent => "datagram",
            Self::Doubled => "datagram doubled",
            Self::Damaged => "packet damaged",
            Self::HeldBack => "datagram held back",
            Self::Lost => "datagram lost",
            Self::Cut => "datagram cut",
            Self::TooLarge => "datagram too large",
            Self::Dropped => "datagram dropped",
            Self::Nowhere => "datagram to nobody",
        }
    }
}

/// Everything that is on its way.
#[derive(Debug, Default)]
pub(super) struct Wire {
    inboxes: Vec<Inbox>,
    count: u64,
    sockets: u64,
    /// How many datagrams each direction carried, so that each has its own chance.
    packets: BTreeMap<(usize, usize), u64>,
    /// The ways, when they are narrow.
    narrow: Narrow,
}

impl Wire {
    pub(super) fn new(members: usize) -> Self {
        Self { inboxes: (0..members).map(|_| Inbox::default()).collect(), ..Self::default() }
    }

    /// Opens a member's socket, in the place of the one before.
    fn open(&mut self, member: usize) -> u64 {
        self.sockets += 1;
        self.inboxes[member].socket = self.sockets;
        self.sockets
    }

    /// Takes a member's socket away: nobody is there any more.
    pub(super) fn close(&mut self, member: usize) {
        self.inboxes[member].socket = 0;
        self.inboxes[member].waker = None;
    }

    /// Returns the number of a new datagram in that direction, over the whole run.
    fn packet(&mut self, from: usize, to: usize) -> u64 {
        let count = self.packets.entry((from, to)).or_default();
        *count += 1;
        (from as u64) << 56 | (to as u64) << 48 | *count
    }

    fn put(&mut self, to: usize, due: u64, datagram: Datagram) {
        self.count += 1;
        let inbox = &mut self.inboxes[to];
        let is_first = inbox.datagrams.first_key_value().is_none_or(|((first, _), _)| due < *first);
        inbox.datagrams.insert((due, self.count), datagram);
        if is_first && let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }

    /// Takes the next datagram that is there by now; otherwise says when the next one will be.
    fn take(&mut self, to: usize, now: u64) -> Result<Datagram, Option<u64>> {
        let inbox = &mut self.inboxes[to];
        match inbox.datagrams.first_entry() {
            Some(first) if first.key().0 <= now => Ok(first.remove()),
            Some(first) => Err(Some(first.key().0)),
            None => Err(None),
        }
    }

    /// Drops what came while nobody was there.
    fn forget_until(&mut self, member: usize, now: u64) {
        let later = self.inboxes[member].datagrams.split_off(&(now, 0));
        self.inboxes[member].datagrams = later;
    }
}

/// One end of the wire, as quinn takes it.
pub(super) struct Socket {
    stage: Arc<Stage>,
    member: usize,
    number: u64,
    timer: Mutex<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.member)
    }
}

impl Socket {
    /// Opens the socket of a member.
    pub(super) fn open(stage: &Arc<Stage>, member: usize) -> Arc<Self> {
        let mut state = stage.lock();
        let now = state.time();
        state.wire.forget_until(member, now);
        let number = state.wire.open(member);
        let timer = Mutex::new(Box::pin(sleep_until(tokio::time::Instant::now())));
        Arc::new(Self { stage: stage.clone(), member, number, timer })
    }
}

impl State {
    /// Takes a datagram in; returns what became of it.
    fn send(&mut self, to: usize, mut datagram: Datagram) -> Fate {
        let (from, now, mix) = (datagram.from, self.time(), self.mix);
        if self.wire.inboxes.get(to).is_none_or(|inbox| inbox.socket == 0) {
            return Fate::Nowhere;
        }
        let packet = self.wire.packet(from, to);
        if self.active.is_too_large(datagram.bytes.len()) {
            return Fate::TooLarge;
        }
        if self.wire.narrow.is_full((from, to), now) {
            return Fate::Dropped;
        }
        if !self.active.passes(from, to, now) {
            return Fate::Cut;
        }
        if mix.chance(Purpose::Loss, packet, self.active.loss().max(self.network.loss)) {
            return Fate::Lost;
        }
        let mut fate = Fate::Sent;
        if mix.chance(Purpose::Corrupt, packet, self.active.corrupted()) {
            let place = mix.bits(Purpose::Corrupt, packet ^ 1 << 63) as usize % datagram.bytes.len().max(1);
            datagram.bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 1);
            fate = Fate::Damaged;
        }
        if mix.chance(Purpose::Duplicate, packet, self.active.duplicates()) {
            let again = Datagram { from, bytes: datagram.bytes.clone(), ecn: datagram.ecn };
            let due = now + self.delay(from, to, packet ^ 1 << 62);
            self.wire.put(to, due, again);
            fate = Fate::Doubled;
        }
        let waits = self
            .active
            .bandwidth_kbit()
            .map_or(0, |kbit| self.wire.narrow.carry((from, to), now, datagram.bytes.len() + HEADER_BYTES, kbit));
        let mut due = now + waits + self.delay(from, to, packet);
        if mix.chance(Purpose::Reorder, packet, self.active.reordered()) {
            due += mix.range(Purpose::Reorder, packet ^ 1 << 63, 10, 800) * MS;
            fate = Fate::HeldBack;
        }
        self.wire.put(to, due, datagram);
        fate
    }

    /// Returns how long a datagram takes. Every path has its length; jitter is less than that, so that datagrams mostly
    /// keep their order unless a fault says otherwise.
    fn delay(&self, from: usize, to: usize, packet: u64) -> u64 {
        let (least, most) = self.network.delay;
        let spread = (most - least) / 8;
        let path = (from.min(to) << 8 | from.max(to)) as u64;
        let length = self.mix.range(Purpose::Delay, path, least, most - spread);
        let jitter = self.mix.range(Purpose::Delay, packet, 0, spread);
        let late = match self.active.jitter_ms() {
            0 => 0,
            most => self.mix.range(Purpose::Resend, packet, 0, most) * MS,
        };
        let jammed = self.active.jam(from, to).map_or(0, |until| until.saturating_sub(self.time()));
        length + jitter + self.active.delay_ms() * MS + late + jammed
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.stage.lock();
        if state.wire.inboxes[self.member].socket != self.number {
            return Ok(());
        }
        let to = member_at(transmit.destination).unwrap_or(usize::MAX);
        state.trace(self.member, b"datagram", &[&(to as u64).to_le_bytes(), transmit.contents]);
        let datagram = Datagram { from: self.member, bytes: transmit.contents.into(), ecn: transmit.ecn };
        let fate = state.send(to, datagram);
        state.count(fate.word());
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.stage.lock();
        if state.wire.inboxes[self.member].socket != self.number {
            return Poll::Pending;
        }
        let now = state.time();
        let mut taken = 0;
        while taken < buffers.len().min(metas.len()) {
            match state.wire.take(self.member, now) {
                Ok(datagram) if state.active.passes(datagram.from, self.member, now) => {
                    let length = datagram.bytes.len().min(buffers[taken].len());
                    buffers[taken][..length].copy_from_slice(&datagram.bytes[..length]);
                    let mut meta = RecvMeta::default();
                    (meta.addr, meta.len, meta.stride) = (address(datagram.from), length, length);
                    meta.ecn = datagram.ecn;
                    metas[taken] = meta;
                    taken += 1;
                }
                // It was on its way when the way was cut.
                Ok(_) => state.count(Fate::Cut.word()),
                Err(_) if taken > 0 => break,
                Err(next) => {
                    state.wire.inboxes[self.member].waker = Some(cx.waker().clone());
                    let Some(next) = next else { return Poll::Pending };
                    let due = state.moment(next);
                    let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
                    timer.as_mut().reset(due);
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(self.member))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A datagram never waits for room here.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
