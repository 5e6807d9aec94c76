//! Conversations of real endpoints over UDP on this machine.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{UdpPoller, VarInt};
use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::time::Instant;

use super::*;

/// More than anything here takes, less than a person waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// One member with everything that was reported to it.
struct Site {
    net: Net,
    identity: Identity,
    events: mpsc::Receiver<NetEvent>,
    cut: Arc<AtomicBool>,
}

impl Site {
    fn start(seed: u8) -> Self {
        Self::start_as(identity(seed))
    }

    fn start_as(identity: Identity) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let body = identity.fingerprint().0.to_vec();
        let mut config =
            NetConfig::production(identity.clone(), socket, Arc::new(move || body.clone())).expect("a configuration");
        let cut = Arc::new(AtomicBool::new(false));
        config.socket = Arc::new(Cable { socket: config.socket, cut: cut.clone() });
        let (sender, events) = mpsc::channel(1024);
        Self { net: Net::start(config, sender).expect("a network"), identity, events, cut }
    }

    fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    fn address(&self) -> SocketAddr {
        self.net.local_addr().expect("an address")
    }

    fn as_peer(&self) -> Peer {
        Peer { fingerprints: vec![self.fingerprint()], addresses: vec![self.address()], names: vec![] }
    }

    /// Known, but not where.
    fn as_hidden_peer(&self) -> Peer {
        Peer { addresses: vec![], ..self.as_peer() }
    }

    fn meet(&self, peers: &[Peer]) {
        self.net.set_peers(peers.to_vec(), BTreeMap::new());
    }

    /// Waits for the first event that fits, passing over others.
    async fn expect<T>(&mut self, what: &str, mut fits: impl FnMut(&NetEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("waited in vain for {what}")).expect("an event");
            if let Some(found) = fits(&event) {
                return found;
            }
        }
    }

    async fn link_up(&mut self, with: Fingerprint) {
        self.expect("a link", |event| matches!(event, NetEvent::LinkUp { peer, .. } if *peer == with).then_some(()))
            .await;
    }

    async fn link_down(&mut self, with: Fingerprint) -> (Option<u64>, Vec<u8>, String) {
        self.expect("the end of a link", |event| match event {
            NetEvent::LinkDown { peer, code, close_message, reason, .. } if *peer == with => {
                Some((*code, close_message.clone(), reason.clone()))
            }
            _ => None,
        })
        .await
    }

    async fn frame(&mut self, on: Channel) -> Bytes {
        self.expect("a frame", |event| match event {
            NetEvent::Frame { channel, bytes, .. } if *channel == on => Some(bytes.clone()),
            _ => None,
        })
        .await
    }

    async fn refusal(&mut self) -> Refusal {
        self.expect("a refusal", |event| match event {
            NetEvent::Refused(refusal) => Some(refusal.clone()),
            _ => None,
        })
        .await
    }

    async fn join(&mut self) -> JoinStream {
        loop {
            match timeout(PATIENCE, self.events.recv()).await.expect("a join").expect("an event") {
                NetEvent::Join(join) => return join,
                _ => continue,
            }
        }
    }

    /// Returns the links that were reported up and not down, in all events so far; none may come out of order.
    fn check_order(&mut self, up: &mut BTreeMap<Fingerprint, usize>) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                NetEvent::LinkUp { peer, .. } => {
                    assert!(!up.contains_key(&peer), "up twice");
                    up.insert(peer, 0);
                }
                NetEvent::LinkDown { peer, .. } => assert!(up.remove(&peer).is_some(), "down without up"),
                NetEvent::Frame { peer, .. } => *up.get_mut(&peer).expect("a frame without a link") += 1,
                _ => {}
            }
        }
    }
}

fn identity(seed: u8) -> Identity {
    Identity::generate(&[seed; 32]).expect("an identity")
}

/// Two identities, the one that decides first.
fn ordered_pair() -> (Site, Site) {
    let (a, b) = (Site::start(1), Site::start(2));
    if a.fingerprint() < b.fingerprint() { (a, b) } else { (b, a) }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A socket whose cable can be cut: a crash, seen from outside.
#[derive(Debug)]
struct Cable {
    socket: Arc<dyn AsyncUdpSocket>,
    cut: Arc<AtomicBool>,
}

impl AsyncUdpSocket for Cable {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cut.load(Ordering::SeqCst) { Ok(()) } else { self.socket.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(_)) if self.cut.load(Ordering::SeqCst) => {}
                other => return other,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// A hand-made client: any certificate, any key, any protocol, and it believes every server.
struct Stranger {
    endpoint: quinn::Endpoint,
    config: Arc<rustls::ClientConfig>,
    tickets: Arc<Tickets>,
}

/// Keeps what a server gives to resume from.
#[derive(Debug, Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.0.lock().expect("tickets").push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().expect("tickets").pop()
    }
}

#[derive(Debug)]
struct BelieveAll(Arc<CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

impl Stranger {
    fn new(certificate: &Identity, key: &Identity, alpn: &[u8]) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let signer = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.key().to_vec()));
        let signer = provider.key_provider.load_private_key(signer).expect("a key");
        let certificate = CertificateDer::from(certificate.certificate().to_vec());
        let own = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], signer));
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(own);
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelieveAll(provider)))
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![alpn.to_vec()];
        // It would resume, and send early, if it were let.
        let tickets = Arc::new(Tickets::default());
        config.resumption = Resumption::store(tickets.clone());
        config.enable_early_data = true;
        let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
        Self { endpoint, config: Arc::new(config), tickets }
    }

    fn dial(&self, to: SocketAddr) -> quinn::Connecting {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(self.config.clone()).expect("TLS");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        self.endpoint.connect_with(config, to, "collective").expect("a dial")
    }

    /// Dials and waits until the server has had its say; returns how the connection ended.
    async fn turned_away(&self, to: SocketAddr) -> quinn::ConnectionError {
        let ended = async {
            match self.dial(to).await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        };
        timeout(PATIENCE, ended).await.expect("the server said nothing")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_one_link_a_pair_and_exchange_frames_of_every_size() {
    let mut sites = [Site::start(1), Site::start(2), Site::start(3)];
    let peers: Vec<Peer> = sites.iter().map(Site::as_peer).collect();
    for site in &sites {
        site.meet(&peers);
    }
    let fingerprints: Vec<Fingerprint> = sites.iter().map(Site::fingerprint).collect();
    until("all are linked", || sites.iter().all(|site| site.net.links().len() == 2)).await;
    // Whatever was dialled twice has been closed when each pair agrees on who dialled.
    until("all agree", || {
        let dialled = |site: &Site| site.net.links().iter().filter(|link| link.dialled).count();
        sites.iter().map(dialled).sum::<usize>() == 3
    })
    .await;
    for (at, from) in [(0, 1), (1, 2), (2, 0)] {
        let (to, big, bulk) = (fingerprints[at], vec![7; 60_000], vec![8; 500_000]);
        let net = &sites[from].net;
        net.send(to, Channel::Swim, Delivery::Datagram, Bytes::from_static(b"ping"));
        net.send(to, Channel::Gossip, Delivery::Datagram, big.clone().into());
        net.send(to, Channel::Sync, Delivery::Stream, bulk.clone().into());
        net.send(to, Channel::Lease, Delivery::Stream, Bytes::new());
        let mut expected = BTreeMap::from([
            (Channel::Swim, b"ping".to_vec()),
            (Channel::Gossip, big),
            (Channel::Sync, bulk),
            (Channel::Lease, vec![]),
        ]);
        while !expected.is_empty() {
            let (sender, channel, bytes) = sites[at]
                .expect("a frame", |event| match event {
                    NetEvent::Frame { peer, channel, bytes } => Some((*peer, *channel, bytes.clone())),
                    _ => None,
                })
                .await;
            assert_eq!(sender, fingerprints[from]);
            assert_eq!(expected.remove(&channel).as_deref(), Some(bytes.as_ref()), "{channel:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_settle_on_one_link_and_report_it_in_order() {
    for _ in 0..5 {
        let (mut a, mut b) = ordered_pair();
        a.meet(&[b.as_peer()]);
        b.meet(&[a.as_peer()]);
        a.net.dial_now(b.fingerprint());
        b.net.dial_now(a.fingerprint());
        until("both are linked the same way", || {
            let (left, right) = (a.net.links(), b.net.links());
            left.len() == 1 && right.len() == 1 && left[0].dialled != right[0].dialled
        })
        .await;
        a.net.send(b.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"1"));
        b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"2"));
        let mut up = [BTreeMap::new(), BTreeMap::new()];
        let deadline = Instant::now() + PATIENCE;
        while up.iter().any(|up| up.values().sum::<usize>() == 0) {
            assert!(Instant::now() < deadline, "no frame");
            a.check_order(&mut up[0]);
            b.check_order(&mut up[1]);
            tokio::task::yield_now().await;
        }
        assert_eq!((up[0].len(), up[1].len()), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_frames_arrive_in_order() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    for number in 0..2000_u32 {
        b.net.send(a.fingerprint(), Channel::Epoch, Delivery::Stream, Bytes::copy_from_slice(&number.to_be_bytes()));
    }
    for number in 0..2000_u32 {
        assert_eq!(a.frame(Channel::Epoch).await.as_ref(), number.to_be_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_that_nobody_takes_does_not_delay_a_lease() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    for _ in 0..12 {
        b.net.send(a.fingerprint(), Channel::Sync, Delivery::Stream, vec![1; 500_000].into());
    }
    // Holding on to bulk stops more of it from being handed out.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(a.frame(Channel::Sync).await);
    }
    b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"lease"));
    let lease = a
        .expect("the lease", |event| match event {
            NetEvent::Frame { channel, bytes, .. } => Some((*channel, bytes.clone())),
            _ => None,
        })
        .await;
    assert_eq!(lease, (Channel::Lease, Bytes::from_static(b"lease")));
    drop(held);
    for _ in 0..8 {
        a.frame(Channel::Sync).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_nothing_loses_its_link_when_too_much_waits() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    b.link_up(a.fingerprint()).await;
    a.cut.store(true, Ordering::SeqCst);
    for _ in 0..40 {
        b.net.send(a.fingerprint(), Channel::Sync, Delivery::Stream, vec![1; 500_000].into());
    }
    let (code, _, _) = b.link_down(a.fingerprint()).await;
    assert_eq!(code, Some(CloseCode::Overflow as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_refused_and_its_owner_never_sees_a_link() {
    let (mut member, mut stranger) = (Site::start(1), Site::start(2));
    member.meet(&[]);
    stranger.meet(&[member.as_peer()]);
    let refusal = stranger.refusal().await;
    assert!(refusal.dialled && refusal.reason.contains("roster"), "{refusal:?}");
    let refusal = member.refusal().await;
    assert_eq!((refusal.peer, refusal.dialled), (Some(stranger.fingerprint()), false));
    let error = stranger.net.unlinked()[0].error.clone().expect("an error");
    assert!(error.reason.contains("does not accept this member's key"), "{error:?}");
    let mut up = BTreeMap::new();
    stranger.check_order(&mut up);
    member.check_order(&mut up);
    assert!(up.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let (member, owner) = (Site::start(1), identity(2));
    member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
    let thief = Stranger::new(&owner, &identity(3), tls::ALPN_MEMBER);
    let error = thief.turned_away(member.address()).await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error:?}");
    // The same client with the right key gets in, so it was the key.
    let honest = Stranger::new(&owner, &owner, tls::ALPN_MEMBER);
    let connection = honest.dial(member.address()).await.expect("a connection");
    let hello = link::Hello { instance: [0; 16], losses: 0, body: vec![] };
    timeout(PATIENCE, link::greet(&connection, &hello)).await.expect("in time").expect("a hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_is_refused() {
    let (member, owner) = (Site::start(1), identity(2));
    member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
    let client = Stranger::new(&owner, &owner, b"h3");
    let error = client.turned_away(member.address()).await;
    let quinn::ConnectionError::ConnectionClosed(close) = error else { panic!("{error:?}") };
    assert_eq!(u64::from(close.error_code), 0x178);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_resumption_nor_early_data_is_offered() {
    let (member, owner) = (Site::start(1), identity(2));
    member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
    let client = Stranger::new(&owner, &owner, tls::ALPN_MEMBER);
    let hello = link::Hello { instance: [0; 16], losses: 0, body: vec![] };
    let connection = client.dial(member.address()).await.expect("a connection");
    timeout(PATIENCE, link::greet(&connection, &hello)).await.expect("in time").expect("a hello");
    // Tickets would have come before the answer to the hello.
    assert_eq!(client.tickets.0.lock().expect("tickets").len(), 0);
    connection.close(VarInt::from_u32(0), b"");
    assert!(client.dial(member.address()).into_0rtt().is_err(), "there is a ticket to resume from");
    // Removed, it is judged by its key again.
    member.meet(&[]);
    let error = client.turned_away(member.address()).await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_loses_its_link_at_once_and_is_told_again_when_it_dials() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    b.link_up(a.fingerprint()).await;
    let message = b"removed in epoch 7".to_vec();
    a.net.set_peers(vec![], BTreeMap::from([(b.fingerprint(), message.clone())]));
    let removed = Some(CloseCode::Removed as u64);
    let (code, said, reason) = b.link_down(a.fingerprint()).await;
    assert_eq!((code, &said), (removed, &message), "{reason}");
    // Whoever removes another must not take its own words for its own removal.
    let said_to_us = a.expect("the end of a link", |event| match event {
        NetEvent::LinkDown { by_peer, code, .. } => Some((*by_peer, *code)),
        _ => None,
    });
    assert_eq!(said_to_us.await, (false, removed));
    let again = b.refusal().await;
    assert_eq!((again.dialled, again.code, again.close_message), (true, removed, message));
    assert!(a.net.links().is_empty() && b.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_longer_pinned_loses_its_link() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    b.link_up(a.fingerprint()).await;
    a.link_up(b.fingerprint()).await;
    let rotated = Peer { fingerprints: vec![identity(9).fingerprint()], ..b.as_hidden_peer() };
    a.meet(&[rotated]);
    assert_eq!(b.link_down(a.fingerprint()).await.0, Some(CloseCode::NotPinned as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_survives_while_a_second_key_is_added() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    let both = Peer { fingerprints: vec![identity(9).fingerprint(), b.fingerprint()], ..b.as_hidden_peer() };
    a.meet(&[both]);
    b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"still here"));
    assert_eq!(a.frame(Channel::Lease).await.as_ref(), b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_crashed_and_returns_on_another_port_is_linked_again_at_once() {
    for crashed_decides in [false, true] {
        let (low, high) = ordered_pair();
        let (mut stays, mut crashes) = if crashed_decides { (high, low) } else { (low, high) };
        stays.meet(&[crashes.as_peer()]);
        crashes.meet(&[stays.as_peer()]);
        stays.link_up(crashes.fingerprint()).await;
        crashes.link_up(stays.fingerprint()).await;
        // No farewell leaves a machine that lost its power.
        crashes.cut.store(true, Ordering::SeqCst);
        let mut back = Site::start_as(crashes.identity.clone());
        assert_ne!(back.address(), crashes.address());
        let started = Instant::now();
        back.meet(&[stays.as_peer()]);
        back.link_up(stays.fingerprint()).await;
        let (code, ..) = stays.link_down(back.fingerprint()).await;
        assert_eq!(code, Some(CloseCode::Replaced as u64));
        stays.link_up(back.fingerprint()).await;
        assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
        assert_eq!(stays.net.links()[0].address, back.address());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_reported_up_only_after_the_one_before_is_reported_down() {
    let (mut stays, first) = ordered_pair();
    stays.meet(&[first.as_hidden_peer()]);
    let (identity, mut runs) = (first.identity.clone(), vec![first]);
    for _ in 0..20 {
        let last = runs.last_mut().expect("a run");
        last.meet(&[stays.as_peer()]);
        last.link_up(stays.fingerprint()).await;
        last.cut.store(true, Ordering::SeqCst);
        runs.push(Site::start_as(identity.clone()));
    }
    let mut up = BTreeMap::new();
    stays.check_order(&mut up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_makes_a_clear_dial_error() {
    let (a, b) = ordered_pair();
    let closed = UdpSocket::bind("127.0.0.1:0").expect("a socket").local_addr().expect("an address");
    a.meet(&[Peer { addresses: vec![closed], ..b.as_peer() }]);
    until("the dial has failed", || a.net.unlinked()[0].error.is_some()).await;
    let error = a.net.unlinked()[0].error.clone().expect("an error");
    assert_eq!(error.address, Some(closed));
    assert!(error.reason.contains("no answer") && error.reason.contains(&closed.to_string()), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_at_the_address_is_not_taken_for_the_peer() {
    let (a, b) = ordered_pair();
    let absent = identity(9).fingerprint();
    a.meet(&[b.as_hidden_peer(), Peer { fingerprints: vec![absent], addresses: vec![b.address()], names: vec![] }]);
    b.meet(&[a.as_hidden_peer()]);
    until("the dial has failed", || a.net.unlinked().iter().any(|peer| peer.error.is_some())).await;
    let unlinked = a.net.unlinked();
    let error = unlinked.iter().find_map(|peer| peer.error.clone()).expect("an error");
    assert!(error.reason.contains("another key"), "{error:?}");
    assert!(a.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_looked_up_and_every_address_is_tried() {
    let (mut a, b) = ordered_pair();
    let dead = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let name = format!("localhost:{}", b.address().port());
    let addresses = vec![dead.local_addr().expect("an address")];
    a.meet(&[Peer { fingerprints: vec![b.fingerprint()], addresses, names: vec![name] }]);
    b.meet(&[a.as_hidden_peer()]);
    a.link_up(b.fingerprint()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_on_the_port_do_no_harm() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    let noise = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut random = rand_chacha::ChaCha8Rng::from_seed([5; 32]);
    use rand_core::{Rng, SeedableRng};
    for round in 0..2000 {
        let mut bytes = vec![0; 1 + round % 1400];
        random.fill_bytes(&mut bytes);
        if round % 2 == 0 {
            bytes[0] |= 0xc0; // Looks like the start of a handshake.
        }
        noise.send_to(&bytes, a.address()).expect("noise");
    }
    b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"calm"));
    assert_eq!(a.frame(Channel::Lease).await.as_ref(), b"calm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_breaks_the_protocol_loses_its_link() {
    for breach in [vec![Channel::Sync as u8, 0xff, 0xff, 0xff, 0xff], vec![Channel::Lease as u8, 0, 0x20, 0, 0]] {
        let (mut member, owner) = (Site::start(1), identity(2));
        member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
        let client = Stranger::new(&owner, &owner, tls::ALPN_MEMBER);
        let connection = client.dial(member.address()).await.expect("a connection");
        let hello = link::Hello { instance: [0; 16], losses: 0, body: vec![] };
        let control = link::greet(&connection, &hello).await.expect("a hello");
        let (mut send, _recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&breach).await.expect("a write");
        let (code, _, reason) = member.link_down(owner.fingerprint()).await;
        assert_eq!(code, Some(CloseCode::Protocol as u64), "{reason}");
        drop(control);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_ends_well_and_both_sides_share_an_exporter() {
    let (mut member, joiner) = (Site::start(1), Site::start(2));
    member.meet(&[]);
    let (places, key) = ([member.address().to_string()], member.fingerprint());
    let mut client = joiner.net.join(&places, key, &joiner.identity).await.expect("a join");
    client.send(b"proof").await.expect("sent");
    let mut stream = member.join().await;
    assert_eq!(stream.peer(), joiner.fingerprint());
    assert_eq!(stream.exporter(), client.exporter());
    assert_ne!(stream.exporter(), [0; 32]);
    assert_eq!(stream.recv().await.expect("a frame"), b"proof");
    stream.allow_decision();
    stream.send(b"welcome").await.expect("sent");
    // The answer may hold a large roster; a stranger's words may not be as long.
    let bytes = limits::JOIN_ANSWER_BYTES_MAX + 1;
    assert_eq!(stream.send(&vec![0; bytes]).await, Err(JoinError::TooLong(bytes)));
    assert_eq!(client.send(&[0; 5000]).await, Err(JoinError::TooLong(5000)));
    let finished = tokio::spawn(stream.finish());
    assert_eq!(client.recv(PATIENCE).await.expect("a frame"), b"welcome");
    timeout(PATIENCE, finished).await.expect("in time").expect("finished");
    assert!(member.net.links().is_empty() && joiner.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_server_with_another_key_than_the_token_says() {
    let (mut member, joiner) = (Site::start(1), Site::start(2));
    let (places, key) = ([member.address().to_string()], identity(9).fingerprint());
    let error = joiner.net.join(&places, key, &joiner.identity).await.expect_err("another key");
    assert!(matches!(&error, JoinError::OtherKey(words) if words.contains("another key")), "{error:?}");
    // The server has not even seen whose call it was.
    assert_eq!(member.refusal().await.peer, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_strangers_may_join_at_once_and_the_fifth_is_told_to_come_again() {
    let (mut member, joiner) = (Site::start(1), Site::start(2));
    let (places, key) = ([member.address().to_string()], member.fingerprint());
    let (mut clients, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..limits::JOINS_MAX {
        let mut client = joiner.net.join(&places, key, &joiner.identity).await.expect("a join");
        client.send(b"here").await.expect("sent");
        streams.push(member.join().await);
        clients.push(client);
    }
    // The refusal may come while the stream is opened, or after.
    let error = match joiner.net.join(&places, key, &joiner.identity).await {
        Ok(mut late) => late.recv(PATIENCE).await.expect_err("busy"),
        Err(error) => error,
    };
    assert!(matches!(error, JoinError::Closed { code: Some(7), .. }), "{error:?}");
    // One that ends makes room.
    drop(streams.pop());
    until("there is room", || member.net.0.joins.available_permits() == 1).await;
    let mut next = joiner.net.join(&places, key, &joiner.identity).await.expect("a join");
    next.send(b"here").await.expect("sent");
    assert_eq!(member.join().await.recv().await.expect("a frame"), b"here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_a_join_gets_one_stream_and_no_link() {
    let (mut member, stranger) = (Site::start(1), identity(2));
    let client = Stranger::new(&stranger, &stranger, tls::ALPN_JOIN);
    let connection = client.dial(member.address()).await.expect("a connection");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    let second = timeout(Duration::from_millis(300), connection.open_bi()).await;
    assert!(second.is_err(), "a second stream was allowed");
    // A frame that claims more than a join allows ends it.
    send.write_all(&[0, 0, 0x20, 0]).await.expect("a write");
    assert_eq!(member.join().await.recv().await, Err(JoinError::TooLong(0x2000)));
    assert!(member.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_says_nothing_more_is_ended() {
    let (mut member, stranger) = (Site::start(1), identity(2));
    let client = Stranger::new(&stranger, &stranger, tls::ALPN_JOIN);
    let connection = client.dial(member.address()).await.expect("a connection");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&[0]).await.expect("a write");
    let mut stream = member.join().await;
    let error = timeout(PATIENCE, stream.recv()).await.expect("in time").expect_err("ended");
    assert!(matches!(error, JoinError::Closed { code: None, .. }), "{error:?}");
    let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else { panic!("another end") };
    assert_eq!(close.error_code, CloseCode::Timeout.into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stops_says_so() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    b.link_up(a.fingerprint()).await;
    a.net.shutdown(CloseCode::Shutdown, b"bye").await;
    let (code, said, _) = b.link_down(a.fingerprint()).await;
    assert_eq!((code, said.as_slice()), (Some(CloseCode::Shutdown as u64), b"bye".as_slice()));
}
