//! A switch in user space: every datagram between two machines passes through here, and is cut, lost, late, doubled, held
//! back or damaged as the faults say. What becomes of which one is decided as at the other levels: by the seed, the
//! direction, and how many went that way before.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::UdpSocket as StdSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use collective::actions::now;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::lab::listen;
use crate::fault::{Active, MS};
use crate::mix::{Mix, Purpose};
use crate::network::{HEADER_BYTES, Narrow};
use crate::scenario::Usual;

/// Bytes in the largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// What the network is like right now.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    pub(super) active: Active,
    pub(super) usual: Usual,
}

/// Everything that carries datagrams.
#[derive(Debug)]
struct Carrier {
    mix: Mix,
    /// When the run began, on the boot clock: the faults count from then.
    base: u64,
    weather: Mutex<Weather>,
    /// How many datagrams went each way.
    packets: Mutex<BTreeMap<(usize, usize), u64>>,
    narrow: Mutex<Narrow>,
    counted: Mutex<BTreeMap<&'static str, u64>>,
    /// By the machine that a datagram comes from, or goes to, and the one that it is to think it speaks with.
    sockets: BTreeMap<(usize, usize), UdpSocket>,
}

/// The switch. It carries nothing any more when this is dropped.
#[derive(Debug)]
pub(super) struct Switch {
    carrier: Arc<Carrier>,
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Switch {
    /// Opens, in the port of each machine, a socket for each other machine, and begins to carry.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub(super) fn start(ports: &[String], mix: Mix, base: u64, weather: Weather) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut sockets = BTreeMap::new();
        for (machine, port) in ports.iter().enumerate() {
            for (other, socket) in open(port.clone(), machine, ports.len())? {
                let _inside = runtime.enter();
                sockets.insert((machine, other), UdpSocket::from_std(socket)?);
            }
        }
        let (weather, packets) = (Mutex::new(weather), Mutex::default());
        let carrier = Arc::new(Carrier {
            mix,
            base,
            weather,
            packets,
            narrow: Mutex::default(),
            counted: Mutex::default(),
            sockets,
        });
        let (stop, stopped) = oneshot::channel();
        let carries = carrier.clone();
        // A thread of its own: nothing else that the run does makes a datagram late.
        let thread = std::thread::Builder::new().name("switch".into()).spawn(move || {
            runtime.block_on(async {
                for way in carries.sockets.keys().copied() {
                    tokio::spawn(carry(carries.clone(), way));
                }
                let _ = stopped.await;
            });
        })?;
        Ok(Self { carrier, thread: Some(thread), stop: Some(stop) })
    }

    /// Changes the weather, for whatever is sent from now on.
    pub(super) fn set(&self, weather: Weather) {
        *self.carrier.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// Returns what became of how many datagrams.
    pub(super) fn counted(&self) -> BTreeMap<&'static str, u64> {
        self.carrier.counted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Opens the sockets of a machine's port, on a thread that enters the port's namespace for that and ends in it.
fn open(port: String, machine: usize, machines: usize) -> anyhow::Result<Vec<(usize, StdSocket)>> {
    let opening = move || {
        let namespace = File::open(Path::new("/run/netns").join(&port)).context("the namespace of a port")?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let others = (0..machines).filter(|other| *other != machine);
        let socket = |other: usize| {
            let socket = StdSocket::bind(listen(other)).with_context(|| format!("{} in {port}", listen(other)))?;
            socket.set_nonblocking(true)?;
            Ok((other, socket))
        };
        others.map(socket).collect()
    };
    std::thread::spawn(opening).join().map_err(|_| anyhow!("a port of the switch cannot be opened"))?
}

/// Carries what one machine sends another one, for ever.
async fn carry(carrier: Arc<Carrier>, (from, to): (usize, usize)) {
    let Some(socket) = carrier.sockets.get(&(from, to)) else { return };
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is an ICMP message about an earlier datagram: nobody listens there right now.
        let Ok((length, _)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        for (delay, bytes) in carrier.decide(from, to, &buffer[..length]) {
            let carrier = carrier.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_nanos(delay)).await;
                carrier.deliver(from, to, &bytes).await;
            });
        }
    }
}

impl Carrier {
    fn count(&self, what: &'static str) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    fn time(&self) -> u64 {
        now().as_nanos().saturating_sub(self.base)
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner).active.passes(from, to, self.time())
    }

    /// Returns what arrives of a datagram, and after how many nanoseconds.
    fn decide(&self, from: usize, to: usize, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let packet = {
            let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
            let count = packets.entry((from, to)).or_default();
            *count += 1;
            (from as u64) << 56 | (to as u64) << 48 | *count
        };
        self.count("datagram");
        let weather = self.weather.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (active, now) = (&weather.active, self.time());
        if !active.passes(from, to, now) {
            self.count("datagram cut");
            return Vec::new();
        }
        if active.is_too_large(bytes.len()) {
            self.count("datagram too large");
            return Vec::new();
        }
        let waits = {
            let mut narrow = self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
            if narrow.is_full((from, to), now) {
                self.count("datagram dropped");
                return Vec::new();
            }
            let carry = |kbit| narrow.carry((from, to), now, bytes.len() + HEADER_BYTES, kbit);
            active.bandwidth_kbit().map_or(0, carry)
        };
        if self.mix.chance(Purpose::Loss, packet, active.loss().max(weather.usual.loss)) {
            self.count("datagram lost");
            return Vec::new();
        }
        let mut bytes = bytes.to_vec();
        if self.mix.chance(Purpose::Corrupt, packet, active.corrupted()) {
            let place = self.mix.bits(Purpose::Corrupt, packet ^ 1 << 63) as usize % bytes.len().max(1);
            bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 1);
            self.count("packet damaged");
        }
        let mut arrives = Vec::new();
        if self.mix.chance(Purpose::Duplicate, packet, active.duplicates()) {
            self.count("datagram doubled");
            arrives.push((self.delay(&weather, from, to, packet ^ 1 << 62), bytes.clone()));
        }
        let mut delay = waits + self.delay(&weather, from, to, packet);
        if self.mix.chance(Purpose::Reorder, packet, active.reordered()) {
            self.count("datagram held back");
            delay += self.mix.range(Purpose::Reorder, packet ^ 1 << 63, 10, 800) * MS;
        }
        arrives.push((delay, bytes));
        arrives
    }

    /// Returns how long a datagram takes, as at level `quic`: every path has its length, and jitter is less than that.
    fn delay(&self, weather: &Weather, from: usize, to: usize, packet: u64) -> u64 {
        let (least, most) = weather.usual.delay;
        let spread = (most - least) / 8;
        let path = (from.min(to) << 8 | from.max(to)) as u64;
        let length = self.mix.range(Purpose::Delay, path, least, most - spread);
        let jitter = self.mix.range(Purpose::Delay, packet, 0, spread);
        let late = match weather.active.jitter_ms() {
            0 => 0,
            most => self.mix.range(Purpose::Resend, packet, 0, most) * MS,
        };
        let jammed = weather.active.jam(from, to).map_or(0, |until| until.saturating_sub(self.time()));
        length + jitter + weather.active.delay_ms() * MS + late + jammed
    }

    async fn deliver(&self, from: usize, to: usize, bytes: &[u8]) {
        // It was on its way when the way was cut.
        if !self.passes(from, to) {
            return self.count("datagram cut");
        }
        if let Some(socket) = self.sockets.get(&(to, from)) {
            // Whoever is not there does not get it.
            let _ = socket.send_to(bytes, listen(to)).await;
        }
    }
}
