//! Slots: what is known of one peer, and which of several connections to it is the link.
//!
//! Both ends must choose the same connection, so one of them decides: the member with the smaller fingerprint. It
//! prefers the connection that it dialled itself. As dialler it says hello only when there is no link yet; as acceptor
//! it answers a hello only when the connection is to be the link. The other member follows: a hello from the one who
//! decides outranks whatever it holds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use ring::digest::{Context, SHA256};
use tokio::sync::watch;
use tokio::time::Instant;

use super::link::Link;
use super::{DialError, Peer};
use crate::proto::identity::Fingerprint;

/// Which stretch of a peer's life a hello speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Drawn at every start of the peer.
    pub(crate) instance: [u8; 16],
    /// Links to us that the peer has lost since.
    pub(crate) losses: u64,
}

impl Mark {
    /// Returns whether the peer cannot have the link of `current` any more when it says this.
    fn supersedes(self, current: Self) -> bool {
        self.instance != current.instance || self.losses > current.losses
    }
}

/// What to do with a connection of a peer that said hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the link from now on.
    Take,
    /// Our own dial is under way and would be preferred; look again when it has come to something.
    Hold,
    /// There is a link already.
    Duplicate,
}

/// Judges an incoming connection.
///
/// `current` is the link that is up, `dialling` whether we are dialling the peer, `waited` whether this connection was
/// held as long as it may be.
pub(crate) fn judge(we_decide: bool, current: Option<Mark>, offered: Mark, dialling: bool, waited: bool) -> Verdict {
    match current {
        _ if !we_decide => Verdict::Take,
        Some(current) if offered.supersedes(current) => Verdict::Take,
        Some(_) => Verdict::Duplicate,
        None if dialling && !waited => Verdict::Hold,
        None => Verdict::Take,
    }
}

/// How long to wait before the next dial: doubling from 100 ms to 10 s, of which half is drawn.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    random: ChaCha8Rng,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    /// The longest wait; also how long a link must have lasted to count as a success.
    pub(crate) const CAP: Duration = Duration::from_secs(10);

    fn new(seed: [u8; 32]) -> Self {
        Self { failures: 0, random: ChaCha8Rng::from_seed(seed) }
    }

    fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the wait that follows it.
    fn next(&mut self) -> Duration {
        let full = Self::FIRST.saturating_mul(1 << self.failures.min(20)).min(Self::CAP);
        self.failures = self.failures.saturating_add(1);
        full / 2 + (full / 2).mul_f64(f64::from(self.random.next_u32()) / f64::from(u32::MAX))
    }
}

/// One peer: how to reach it, its link, and how dialling it goes.
pub(crate) struct Slot {
    /// Tells slots apart; never used twice.
    pub(crate) id: u64,
    state: Mutex<SlotState>,
    /// Told after every change that somebody may wait for.
    changed: watch::Sender<()>,
    /// Held while a connection becomes the link: one at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

pub(crate) struct SlotState {
    pub(crate) peer: Peer,
    pub(crate) link: Option<Arc<Link>>,
    pub(crate) dialling: bool,
    pub(crate) losses: u64,
    /// No longer on the roster: whatever still runs for it must end.
    pub(crate) retired: bool,
    /// Evidence of life arrived: dial without waiting.
    pub(crate) hurry: bool,
    pub(crate) next_dial: Instant,
    pub(crate) error: Option<DialError>,
    /// Where the last link led.
    pub(crate) learned: Option<SocketAddr>,
    backoff: Backoff,
}

impl Slot {
    /// Makes the slot of a new peer; the member that decides dials at once, the other gives it a moment.
    pub(crate) fn new(id: u64, peer: Peer, own: Fingerprint, seed: &[u8; 32], now: Instant) -> Self {
        let first = peer.fingerprints.first().copied().unwrap_or(Fingerprint([0; 32]));
        let mut context = Context::new(&SHA256);
        context.update(seed);
        context.update(&first.0);
        context.update(&id.to_be_bytes());
        let seed = context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        let mut backoff = Backoff::new(seed);
        let next_dial = if own < first { now } else { now + backoff.next() };
        let state = SlotState {
            peer,
            link: None,
            dialling: false,
            // A peer that comes back on the roster must not find its losses counted from zero again.
            losses: id << 32,
            retired: false,
            hurry: false,
            next_dial,
            error: None,
            learned: None,
            backoff,
        };
        Self { id, state: Mutex::new(state), changed: watch::Sender::new(()), turn: tokio::sync::Mutex::new(()) }
    }

    /// Returns the state; no caller waits for anything while it holds it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells whoever waits.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut SlotState) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the link that is up, if its connection has not ended.
    pub(crate) fn live_link(&self) -> Option<Arc<Link>> {
        self.lock().link.clone().filter(|link| link.is_open())
    }
}

impl SlotState {
    /// Counts a failed dial.
    pub(crate) fn dial_failed(&mut self, error: Option<DialError>, now: Instant) {
        self.error = error.or(self.error.take());
        self.next_dial = now + self.backoff.next();
    }

    /// Counts a link that ended after `lasted`.
    pub(crate) fn link_ended(&mut self, lasted: Duration, now: Instant) {
        self.losses += 1;
        // Two machines with one identity replace each other's link: only a link that lasts ends the back-off.
        if lasted >= Backoff::CAP {
            self.backoff.reset();
        }
        self.next_dial = now + self.backoff.next();
    }

    /// Takes note that the peer lives.
    pub(crate) fn evidence(&mut self) {
        self.backoff.reset();
        self.hurry = true;
    }

    /// Takes note of a link; one that came in shows that the peer is there.
    pub(crate) fn link_up(&mut self, link: Arc<Link>) {
        if !link.dialled {
            self.backoff.reset();
        }
        self.hurry = false;
        self.error = None;
        self.learned = Some(link.address);
        self.link = Some(link);
    }

    /// Returns the addresses to try: where it was last, then the given ones.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in self.learned.iter().chain(&self.peer.addresses) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(instance: u8, losses: u64) -> Mark {
        Mark { instance: [instance; 16], losses }
    }

    #[test]
    fn the_follower_takes_what_the_decider_offers() {
        for current in [None, Some(mark(1, 0)), Some(mark(2, 9))] {
            assert_eq!(judge(false, current, mark(1, 0), true, false), Verdict::Take);
        }
    }

    #[test]
    fn the_decider_prefers_its_own_dial_but_not_for_ever() {
        assert_eq!(judge(true, None, mark(1, 0), true, false), Verdict::Hold);
        assert_eq!(judge(true, None, mark(1, 0), true, true), Verdict::Take);
        assert_eq!(judge(true, None, mark(1, 0), false, false), Verdict::Take);
    }

    #[test]
    fn a_second_connection_of_the_same_moment_is_a_duplicate() {
        assert_eq!(judge(true, Some(mark(1, 3)), mark(1, 3), false, false), Verdict::Duplicate);
        assert_eq!(judge(true, Some(mark(1, 3)), mark(1, 2), true, true), Verdict::Duplicate);
    }

    #[test]
    fn a_peer_that_restarted_or_lost_its_link_replaces_it() {
        assert_eq!(judge(true, Some(mark(1, 3)), mark(2, 0), false, false), Verdict::Take);
        assert_eq!(judge(true, Some(mark(1, 3)), mark(1, 4), false, false), Verdict::Take);
    }

    #[test]
    fn back_off_doubles_to_its_cap_and_draws_half() {
        let mut backoff = Backoff::new([1; 32]);
        let mut full = Duration::from_millis(100);
        for _ in 0..40 {
            let wait = backoff.next();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(Backoff::CAP);
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
        let draws = |seed| {
            let mut backoff = Backoff::new([seed; 32]);
            (0..5).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
