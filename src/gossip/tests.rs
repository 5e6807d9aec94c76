//! Members in one process, over queues in place of links.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::*;
use crate::proto::identity::MemberId;

const WAIT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(50);

type Queue = mpsc::Sender<(Fingerprint, Bytes)>;
type Queues = Arc<Mutex<BTreeMap<Fingerprint, Queue>>>;

/// The links between all members.
#[derive(Clone, Default)]
struct Net {
    queues: Queues,
    /// The longest message that went over it.
    longest: Arc<Mutex<usize>>,
    /// How many messages were sent.
    sent: Arc<AtomicUsize>,
}

struct Peer {
    me: Fingerprint,
    gossip: Gossip,
    heard: mpsc::Receiver<Heard>,
    known: BTreeMap<Fingerprint, Facts>,
    transport: PeerTransport,
    admission: Admission,
}

fn print(n: u8) -> Fingerprint {
    Fingerprint([n; 32])
}

fn facts(n: u8) -> Facts {
    Facts { software: format!("software of {n}"), incarnation: 1, ..Facts::default() }
}

impl Net {
    fn send(&self, from: Fingerprint, to: Fingerprint, bytes: Bytes) {
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = bytes.len().max(*longest);
        self.sent.fetch_add(1, Ordering::Relaxed);
        if let Some(queue) = self.queues.lock().unwrap_or_else(PoisonError::into_inner).get(&to) {
            let _ = queue.try_send((from, bytes));
        }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Loses everything that is sent to a member.
    fn cut(&self, to: Fingerprint) -> Queue {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(&to).expect("it is linked")
    }

    fn heal(&self, to: Fingerprint, queue: Queue) {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).insert(to, queue);
    }

    async fn join(&self, n: u8, roster: &[u8]) -> Peer {
        let (me, admission) = (print(n), Admission::default());
        admission.set_members(roster.iter().map(|n| print(*n)));
        let (sender, incoming) = mpsc::channel(100);
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).insert(me, sender);
        let net = self.clone();
        let transport = PeerTransport::new(admission.clone(), move |to, bytes| net.send(me, to, bytes), incoming);
        Peer::start(me, 1, admission, transport).await
    }
}

impl Peer {
    async fn start(me: Fingerprint, generation: u64, admission: Admission, transport: PeerTransport) -> Self {
        let (sender, heard) = mpsc::channel(100);
        let config = GossipConfig {
            cluster: ClusterId([1; 16]),
            me,
            generation,
            interval: INTERVAL,
            admission: admission.clone(),
        };
        let gossip = Gossip::start(config, &transport, sender).await.expect("the transport is free");
        gossip.publish(&facts(me.0[0])).await;
        Self { me, gossip, heard, known: BTreeMap::new(), transport, admission }
    }

    /// Stops and starts again with the next generation.
    async fn restart(self, generation: u64) -> Self {
        self.gossip.shutdown().await;
        Self::start(self.me, generation, self.admission, self.transport).await
    }

    /// Waits until what is known of a member is as wanted.
    async fn sees(&mut self, n: u8, wanted: impl Fn(&Facts) -> bool) {
        let hear = async {
            while !self.known.get(&print(n)).is_some_and(&wanted) {
                match self.heard.recv().await.expect("gossip goes on") {
                    Heard::Facts { fingerprint, facts } => drop(self.known.insert(fingerprint, facts)),
                    Heard::Ended(reason) => panic!("{reason}"),
                }
            }
        };
        let seen = timeout(WAIT, hear).await;
        assert!(seen.is_ok(), "member {n} is known as {:?}", self.known.get(&print(n)));
    }
}

#[tokio::test]
async fn facts_of_each_member_reach_the_others() {
    let net = Net::default();
    let mut peers = [net.join(1, &[1, 2, 3]).await, net.join(2, &[1, 2, 3]).await, net.join(3, &[1, 2, 3]).await];
    for peer in &mut peers {
        let me = peer.me;
        for n in (1..=3).filter(|n| print(*n) != me) {
            peer.sees(n, |it| *it == facts(n)).await;
        }
        assert!(!peer.known.contains_key(&peer.me), "our own facts are no news");
    }

    let changed = Facts { leaving: true, manages: 7, ..facts(1) };
    peers[0].gossip.publish(&changed).await;

    peers[1].sees(1, |it| *it == changed).await;
    peers[2].sees(1, |it| *it == changed).await;
}

#[tokio::test]
async fn the_record_of_a_stranger_is_ignored() {
    let net = Net::default();
    let mut one = net.join(1, &[1, 2]).await;
    // Member 2 still has 9 on its roster and passes its record on.
    let mut two = net.join(2, &[1, 2, 9]).await;
    let nine = net.join(9, &[1, 2, 9]).await;
    two.sees(9, |it| *it == facts(9)).await;
    one.sees(2, |it| *it == facts(2)).await;
    for round in 2..12 {
        two.gossip.publish(&Facts { incarnation: round, ..facts(2) }).await;
        nine.gossip.push(print(1));
        one.sees(2, |it| it.incarnation == round).await;
    }
    assert!(!one.known.contains_key(&print(9)));
    let kept = one.gossip.handle.with_chitchat(|chitchat| chitchat.node_states().len()).await;
    assert_eq!(kept, 2, "not even chitchat keeps it");

    one.gossip.set_members([print(1), print(2), print(9)]);
    one.sees(9, |it| *it == facts(9)).await;
}

#[tokio::test]
async fn nobody_is_sent_again_what_it_has() {
    let net = Net::default();
    let (mut one, mut two) = (net.join(1, &[1, 2]).await, net.join(2, &[1, 2]).await);
    // As the daemon does: it names the others.
    one.gossip.set_members([print(2)]);
    two.gossip.set_members([print(1)]);
    one.sees(2, |it| *it == facts(2)).await;
    two.sees(1, |it| *it == facts(1)).await;
    tokio::time::sleep(INTERVAL * (NEWS_INTERVALS + 3)).await;
    *net.longest.lock().expect("nobody panicked") = 0;
    one.gossip.push(print(2));
    two.gossip.push(print(1));
    tokio::time::sleep(INTERVAL * 2).await;
    let longest = *net.longest.lock().expect("nobody panicked");
    assert!((1..=170).contains(&longest), "a digest of two records and no more, not {longest} bytes");
}

#[tokio::test]
async fn a_suspicion_appears_and_disappears() {
    let net = Net::default();
    let (one, mut two) = (net.join(1, &[1, 2]).await, net.join(2, &[1, 2]).await);
    let accused = MemberId([7; 16]);
    for _ in 0..2 {
        one.gossip.publish(&Facts { suspicions: BTreeMap::from([(accused, 4)]), ..facts(1) }).await;
        one.gossip.push(print(2));
        two.sees(1, |it| it.suspicions.get(&accused) == Some(&4)).await;
        one.gossip.publish(&facts(1)).await;
        two.sees(1, |it| it.suspicions.is_empty()).await;
    }
}

#[tokio::test]
async fn a_restart_with_the_next_generation_is_seen_with_new_facts() {
    let net = Net::default();
    let (one, mut two) = (net.join(1, &[1, 2]).await, net.join(2, &[1, 2]).await);
    one.gossip.publish(&Facts { suspicions: BTreeMap::from([(MemberId([7; 16]), 4)]), ..facts(1) }).await;
    two.sees(1, |it| it.suspicions.len() == 1).await;

    let one = one.restart(2).await;

    two.sees(1, |it| it.suspicions.is_empty()).await;
    one.gossip.publish(&Facts { incarnation: 2, ..facts(1) }).await;
    two.sees(1, |it| it.incarnation == 2).await;
}

#[tokio::test]
async fn garbage_is_survived() {
    let net = Net::default();
    let (one, mut two) = (net.join(1, &[1, 2]).await, net.join(2, &[1, 2]).await);
    let mut rng = ChaCha8Rng::from_seed([5; 32]);
    for length in 0..2_000 {
        let mut bytes = vec![0; length % 300];
        rng.fill_bytes(&mut bytes);
        net.send(print(1), print(2), bytes.into());
        tokio::task::yield_now().await;
    }
    one.gossip.publish(&Facts { manages: 5, ..facts(1) }).await;
    two.sees(1, |it| it.manages == 5).await;
}

#[tokio::test]
async fn a_message_of_sixty_kilobytes_gets_through() {
    let net = Net::default();
    let (one, mut two) = (net.join(1, &[1, 2]).await, net.join(2, &[1, 2]).await);
    two.sees(1, |_| true).await;
    // Random ids cannot be compressed: 16 bytes of each remain, whatever is tried.
    let mut rng = ChaCha8Rng::from_seed([6; 32]);
    let suspicions = (0..1_000).map(|_| {
        let mut id = [0; 16];
        rng.fill_bytes(&mut id);
        (MemberId(id), rng.next_u64())
    });
    let many = Facts { suspicions: suspicions.collect(), ..facts(1) };
    one.gossip.publish(&many).await;
    two.sees(1, |it| *it == many).await;

    let text = |rng: &mut ChaCha8Rng| {
        let mut bytes = [0; 256];
        rng.fill_bytes(&mut bytes);
        data_encoding::HEXLOWER.encode(&bytes)
    };
    let big: Vec<_> = (0..200).map(|n| (format!("big{n}"), text(&mut rng))).collect();
    one.gossip
        .handle
        .with_chitchat(|chitchat| {
            for (key, value) in &big {
                chitchat.self_node_state().set(key, value);
            }
        })
        .await;
    one.gossip.publish(&Facts { manages: 9, ..many.clone() }).await;
    two.sees(1, |it| it.manages == 9).await;
    let longest = *net.longest.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(longest > 45_000, "the longest had {longest} bytes");
}

#[tokio::test]
async fn the_end_of_the_links_is_told() {
    let net = Net::default();
    let mut one = net.join(1, &[1, 2]).await;
    net.queues.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let ended = timeout(WAIT, async {
        loop {
            if let Some(Heard::Ended(reason)) = one.heard.recv().await {
                return reason;
            }
        }
    });
    assert_eq!(ended.await.expect("told"), "the links are gone");
}

#[tokio::test]
async fn a_transport_is_opened_once_at_a_time() {
    let (_sender, incoming) = mpsc::channel(1);
    let transport = PeerTransport::new(Admission::default(), |_, _| {}, incoming);
    let socket = transport.open(address_of(print(1))).await.expect("free");
    assert!(transport.open(address_of(print(1))).await.is_err());
    drop(socket);
    assert!(transport.open(address_of(print(1))).await.is_ok());
}

#[tokio::test]
async fn members_without_news_say_little_and_still_find_what_was_lost() {
    let net = Net::default();
    let (one, mut two) = (net.join(1, &[1, 2]).await, net.join(2, &[1, 2]).await);
    two.sees(1, |it| *it == facts(1)).await;
    let said_in = async |news: bool| {
        let before = net.sent();
        for round in 0..20 {
            if news {
                one.gossip.publish(&Facts { manages: round, ..facts(1) }).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        net.sent() - before
    };
    let with_news = said_in(true).await;
    // News are passed on for a while after the last.
    tokio::time::sleep(INTERVAL * 2 * NEWS_INTERVALS).await;
    let calm = said_in(false).await;
    assert!(0 < calm && calm * 2 < with_news, "{calm} messages without news, {with_news} with");

    let queue = net.cut(print(2));
    one.gossip.publish(&Facts { manages: 77, ..facts(1) }).await;
    tokio::time::sleep(INTERVAL * 2 * NEWS_INTERVALS).await;
    net.heal(print(2), queue);
    two.sees(1, |it| it.manages == 77).await;
}
