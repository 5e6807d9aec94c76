//! Conversations of real endpoints over UDP on this machine.

mod joins;
mod keys;
mod links;

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
