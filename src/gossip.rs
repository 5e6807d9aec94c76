//! Gossip: carries every member's small public facts to every other, by chitchat over any transport.
//!
//! The only room where chitchat's words appear: what it calls a node is a member here, and its addresses are made up
//! from fingerprints ([`address_of`]). Its idea of who is alive is used to decide whom to gossip with, and for nothing
//! else; it means that somebody hears the member.
//!
//! News are told at once and passed on for a few intervals, each time to a few members. When there are none, chitchat's
//! own rounds, which are rarer, find what was lost on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::transport::Transport;
use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::proto::facts::Facts;
use crate::proto::identity::{ClusterId, Fingerprint};

mod admission;
mod facts;
mod transport;
mod wire;

pub use admission::{Admission, RECORDS_MAX, address_of};
pub use facts::{ADDRESSES_MAX, VALUE_BYTES_MAX};
pub use transport::{Outgoing, PeerTransport};
pub use wire::MESSAGE_BYTES_MAX;

/// How long the record of a member that is away, and the mark of a deleted key, are kept.
const GRACE: Duration = Duration::from_secs(15 * 60);
/// The first and the longest pause between two tries to reach members that are not heard.
const REJOIN_FIRST: Duration = Duration::from_secs(5);
const REJOIN_MAX: Duration = Duration::from_secs(10);
/// Members that are tried at once.
const REJOIN_AT_ONCE: usize = 64;
/// The shortest pause between two readings of the records, however many keys change.
const READ_PAUSE: Duration = Duration::from_millis(50);
/// The shortest pause between two tellings of our own facts, however often they change.
const TELL_PAUSE: Duration = Duration::from_millis(100);
/// Members that are told of news at once: with every one of them doing the same, all of a thousand know after five
/// intervals.
const FANOUT: usize = 3;
/// Intervals for which news are passed on.
const NEWS_INTERVALS: u32 = 5;
/// Intervals between two of chitchat's own rounds, which are all there are when nothing is new.
const CALM_INTERVALS: u32 = 5;
/// How long a shutdown waits for chitchat.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// What gossip needs to start.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// The collective; messages of another are refused.
    pub cluster: ClusterId,
    /// Our own fingerprint.
    pub me: Fingerprint,
    /// The persisted incarnation at this start. Never a clock: a number used before would revive old facts.
    pub generation: u64,
    /// The gossip interval: how often news are passed on.
    pub interval: Duration,
    /// Whose records are heard; the same one that the transport was made with.
    pub admission: Admission,
}

/// What gossip heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The facts of another member, new or changed.
    Facts {
        /// Whose.
        fingerprint: Fingerprint,
        /// All of them.
        facts: Facts,
    },
    /// Gossip ended by itself; start it again with the next generation.
    Ended(String),
}

/// A running gossip. Dropping it stops it.
pub struct Gossip {
    me: Fingerprint,
    handle: Arc<ChitchatHandle>,
    admission: Admission,
    rejoin: Arc<Notify>,
    published: Arc<Notify>,
    reader: JoinHandle<()>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").finish_non_exhaustive()
    }
}

impl Gossip {
    /// Starts gossiping. Facts of others arrive on `heard`; when that is full they wait for the next interval.
    ///
    /// # Errors
    /// When the transport cannot be opened, because it is in use.
    pub async fn start(
        config: GossipConfig,
        transport: &dyn Transport,
        heard: mpsc::Sender<Heard>,
    ) -> anyhow::Result<Self> {
        let GossipConfig { cluster, me, generation, interval, admission } = config;
        let address = address_of(me);
        let chitchat = ChitchatConfig {
            chitchat_id: ChitchatId::new(admission::name_of(me), generation, address),
            cluster_id: cluster.to_string(),
            gossip_interval: interval * CALM_INTERVALS,
            listen_addr: address,
            seed_nodes: admission.addresses().iter().map(SocketAddr::to_string).collect(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: interval * CALM_INTERVALS,
                // A heartbeat that took longer than this says nothing; one round may be lost.
                max_interval: interval * CALM_INTERVALS * 3,
                dead_node_grace_period: GRACE,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let handle = Arc::new(spawn_chitchat(chitchat, Vec::new(), transport).await?);

        // Called under chitchat's lock, so it does no more than ring. Deletions ring nothing: hence the interval too.
        let changed = Arc::new(Notify::new());
        let ring = changed.clone();
        let listener = handle
            .with_chitchat(|chitchat| {
                let ring = ring.clone();
                chitchat.subscribe_event("", move |_| ring.notify_one())
            })
            .await;
        listener.forever();

        let mut seed = me.0;
        for (byte, of_generation) in seed.iter_mut().zip(generation.to_be_bytes()) {
            *byte ^= of_generation;
        }
        let rejoin = Arc::new(Notify::new());
        let published = Arc::new(Notify::new());
        let reader = Reader {
            handle: handle.clone(),
            admission: admission.clone(),
            me,
            heard,
            told: BTreeMap::new(),
            live: BTreeSet::new(),
            rng: ChaCha8Rng::from_seed(seed),
            pause: REJOIN_FIRST,
            interval,
            news_until: Instant::now(),
        };
        let reader = tokio::spawn(reader.run(changed, rejoin.clone(), published.clone()));
        Ok(Self { me, handle, admission, rejoin, published, reader })
    }

    /// Sets whose records are heard: all fingerprints of the roster. New ones are gossiped with at once.
    ///
    /// Ours is always among them. Were it cut out of the digests that others send, chitchat would take it that they do not
    /// have our record, and send it to them whole in every round.
    pub fn set_members(&self, members: impl IntoIterator<Item = Fingerprint>) {
        self.admission.set_members(members.into_iter().chain([self.me]));
        self.rejoin.notify_one();
    }

    /// Publishes our facts: sets the keys that changed, deletes the suspicions that no longer stand, and tells a few
    /// members at once.
    pub async fn publish(&self, facts: &Facts) {
        let keys = facts.to_keys();
        self.handle
            .with_chitchat(|chitchat| {
                let mine = chitchat.self_node_state();
                let withdrawn = facts.withdrawn(mine.key_values().map(|(key, _)| key));
                for key in &withdrawn {
                    mine.delete(key);
                }
                for (key, value) in &keys {
                    mine.set(key, value);
                }
            })
            .await;
        self.published.notify_one();
    }

    /// Gossips with a member now: to tell an accused of its suspicion, or because something was heard of it.
    pub fn push(&self, to: Fingerprint) {
        // It fails when chitchat has ended; the reader says so.
        let _ = self.handle.gossip(address_of(to));
    }

    /// Gossips now with every member that is not heard: something says that the network healed.
    pub fn rejoin(&self) {
        self.rejoin.notify_one();
    }

    /// Stops and waits for it, so that the transport can be opened again.
    pub async fn shutdown(&self) {
        self.reader.abort();
        let ended = self.handle.termination_watcher();
        if self.handle.initiate_shutdown().is_ok() && timeout(SHUTDOWN_MAX, ended).await.is_err() {
            self.handle.abort();
        }
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads the records of others and keeps trying to reach those that are away.
struct Reader {
    handle: Arc<ChitchatHandle>,
    admission: Admission,
    me: Fingerprint,
    heard: mpsc::Sender<Heard>,
    /// What was told of each member, and of which generation.
    told: BTreeMap<Fingerprint, (u64, Facts)>,
    live: BTreeSet<SocketAddr>,
    rng: ChaCha8Rng,
    pause: Duration,
    interval: Duration,
    /// Until when there are news to pass on.
    news_until: Instant,
}

impl Reader {
    async fn run(mut self, changed: Arc<Notify>, rejoin: Arc<Notify>, published: Arc<Notify>) {
        let ended = self.handle.termination_watcher();
        tokio::pin!(ended);
        let mut every = interval(self.interval);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rejoin_at = Instant::now();
        let mut read_at = Instant::now();
        let mut pending = false;
        let mut told_at = Instant::now();
        let mut to_tell = false;
        loop {
            tokio::select! {
                biased;
                end = &mut ended => {
                    let reason = end.err().map_or_else(|| "it was stopped".to_owned(), |error| error.to_string());
                    let _ = self.heard.send(Heard::Ended(reason)).await;
                    return;
                }
                () = self.heard.closed() => return,
                () = rejoin.notified() => {
                    self.pause = REJOIN_FIRST;
                    rejoin_at = Instant::now();
                }
                () = sleep_until(rejoin_at) => {
                    self.try_the_absent();
                    rejoin_at = Instant::now() + self.next_pause();
                }
                () = changed.notified(), if !pending => pending = true,
                () = sleep_until(read_at + READ_PAUSE), if pending => {
                    pending = false;
                    read_at = Instant::now();
                    self.read().await;
                }
                () = published.notified(), if !to_tell => to_tell = true,
                () = sleep_until(told_at + TELL_PAUSE), if to_tell => {
                    to_tell = false;
                    told_at = Instant::now();
                    self.has_news();
                    self.pass_on();
                }
                _ = every.tick() => {
                    if Instant::now() < self.news_until {
                        self.pass_on();
                    }
                    read_at = Instant::now();
                    if self.read().await {
                        // Somebody is back, so others may be: ask them at once.
                        self.pause = REJOIN_FIRST;
                        rejoin_at = read_at;
                    }
                }
            }
        }
    }

    /// Tells what is new in the records; returns whether a member is heard that was not before.
    async fn read(&mut self) -> bool {
        let admission = self.admission.clone();
        let (records, live) = self
            .handle
            .with_chitchat(|chitchat| {
                admission.set_kept(chitchat.node_states().len());
                (newest(chitchat, &admission), live(chitchat))
            })
            .await;
        self.told.retain(|member, _| admission.member_at(address_of(*member)).is_some());
        for (member, (generation, facts)) in records {
            let told = self.told.get(&member).is_some_and(|(of, told)| *of == generation && *told == facts);
            let news = member != self.me && !told;
            // A full queue is tried again at the next reading.
            if news && self.heard.try_send(Heard::Facts { fingerprint: member, facts: facts.clone() }).is_ok() {
                self.told.insert(member, (generation, facts));
                self.has_news();
            }
        }
        let returned = live.difference(&self.live).next().is_some();
        self.live = live;
        returned
    }

    fn has_news(&mut self) {
        self.news_until = Instant::now() + self.interval * NEWS_INTERVALS;
    }

    /// Gossips with a few members, drawn at random.
    fn pass_on(&mut self) {
        let others = self.admission.addresses().into_iter().filter(|address| *address != address_of(self.me)).collect();
        self.gossip_with(others, FANOUT);
    }

    /// Gossips with members that are not heard. Without this, islands whose grace period ended never meet again.
    fn try_the_absent(&mut self) {
        let mut absent = self.admission.addresses();
        absent.retain(|address| *address != address_of(self.me) && !self.live.contains(address));
        self.gossip_with(absent, REJOIN_AT_ONCE);
    }

    fn gossip_with(&mut self, mut candidates: Vec<SocketAddr>, count: usize) {
        for _ in 0..count.min(candidates.len()) {
            let at = self.rng.next_u32() as usize % candidates.len();
            // It fails when chitchat has ended; the loop says so.
            let _ = self.handle.gossip(candidates.swap_remove(at));
        }
    }

    /// Draws the next pause: 5 s, backing off to 10 s, a quarter less at random so that members do not act in step.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 5 / 4).min(REJOIN_MAX);
        pause - pause * (self.rng.next_u32() % 250) / 1_000
    }
}

/// Returns each member's facts, from its record of the highest generation that is whole.
fn newest(chitchat: &Chitchat, admission: &Admission) -> BTreeMap<Fingerprint, (u64, Facts)> {
    let mut newest: BTreeMap<Fingerprint, (u64, Facts)> = BTreeMap::new();
    for (id, state) in chitchat.node_states() {
        let Some(member) = admission.member_at(id.gossip_advertise_addr) else { continue };
        if *id.node_id != *admission::name_of(member) {
            continue;
        }
        if newest.get(&member).is_some_and(|(generation, _)| *generation > id.generation_id) {
            continue;
        }
        if let Some(facts) = Facts::from_keys(state.key_values()) {
            newest.insert(member, (id.generation_id, facts));
        }
    }
    newest
}

fn live(chitchat: &Chitchat) -> BTreeSet<SocketAddr> {
    chitchat.live_nodes().map(|id| id.gossip_advertise_addr).collect()
}

#[cfg(test)]
mod tests;
