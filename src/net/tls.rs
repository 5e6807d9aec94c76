//! TLS: which keys this member accepts, decided from the fingerprints of the roster alone.
//!
//! There is no certificate authority. A member is its Ed25519 key; certificates only carry the key, so their names and
//! dates are ignored on purpose. What is never ignored is the signature over the handshake: a certificate is public, and
//! only that signature shows that the peer has the key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use quinn::TimeSource;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, SerialNumber};
use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName as RootHint, Error as TlsError, PeerIncompatible,
    SignatureScheme,
};
use zeroize::Zeroizing;

use crate::proto::identity::Fingerprint;

/// The protocol between members; both sides are pinned.
pub const ALPN_MEMBER: &[u8] = b"collective/1";
/// The protocol of a stranger with a token; only the server is pinned. Also the label of the exporter it signs.
pub const ALPN_JOIN: &[u8] = b"collective-join/1";
/// The name diallers ask for. Nobody checks it: the fingerprint is the identity.
pub(crate) const SERVER_NAME: &str = "collective";

/// What comes before the 32 bytes of an Ed25519 seed in PKCS #8 version 1 (RFC 8410, section 7).
const PKCS8_ED25519_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A key or certificate that cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The bytes are no certificate.
    #[error("the certificate cannot be read: {0}")]
    Certificate(TlsError),
    /// The private key cannot be read, is not Ed25519, or belongs to another certificate.
    #[error("the private key does not fit the certificate: {0}")]
    Key(String),
}

/// A member's key and the certificate that carries it.
#[derive(Clone)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Zeroizing<Vec<u8>>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes the identity of an Ed25519 seed: 32 secret bytes from the operating system, or fixed ones in a simulation.
    ///
    /// The same seed makes the same certificate, byte for byte.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the certificate cannot be signed.
    pub fn generate(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        let key = Zeroizing::new([PKCS8_ED25519_PREFIX.as_slice(), seed.as_slice()].concat());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key.as_slice()), &PKCS_ED25519)
            .map_err(|error| IdentityError::Key(error.to_string()))?;
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&[1]));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "collective member");
        let certificate = params.self_signed(&pair).map_err(|error| IdentityError::Key(error.to_string()))?;
        Self::from_parts(certificate.der().to_vec(), key.to_vec())
    }

    /// Takes a stored identity: the certificate in DER, the private key in PKCS #8.
    ///
    /// # Errors
    /// [`IdentityError`] when either cannot be read or they do not belong together.
    pub fn from_parts(certificate: Vec<u8>, key: Vec<u8>) -> Result<Self, IdentityError> {
        let key = Zeroizing::new(key);
        let fingerprint = fingerprint_of(&certificate)?;
        let identity = Self { certificate: CertificateDer::from(certificate), key, fingerprint };
        let certified = identity.certified(&rustls::crypto::ring::default_provider())?;
        if certified.key.algorithm() != rustls::SignatureAlgorithm::ED25519 {
            return Err(IdentityError::Key("it is not an Ed25519 key".into()));
        }
        Ok(identity)
    }

    /// Returns the certificate in DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Returns the private key in PKCS #8. Secret.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns the fingerprint by which others know this identity.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn certified(&self, provider: &CryptoProvider) -> Result<CertifiedKey, IdentityError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.to_vec()));
        CertifiedKey::from_der(vec![self.certificate.clone()], key, provider)
            .map_err(|error| IdentityError::Key(error.to_string()))
    }
}

/// Returns the fingerprint of a certificate in DER: the SHA-256 of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`IdentityError::Certificate`] when the bytes are no X.509 certificate.
pub fn fingerprint_of(certificate: &[u8]) -> Result<Fingerprint, IdentityError> {
    let certificate = CertificateDer::from(certificate);
    let parsed = ParsedCertificate::try_from(&certificate).map_err(IdentityError::Certificate)?;
    let hash = digest::digest(&digest::SHA256, &parsed.subject_public_key_info());
    Ok(Fingerprint(hash.as_ref().try_into().expect("SHA-256 has 32 bytes")))
}

/// What a key is to this member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// On the roster.
    Member,
    /// Was on the roster; is told so, in these bytes, and nothing else.
    Removed(Bytes),
    /// Never heard of.
    Stranger,
}

/// The keys this member accepts, shared by every handshake; a change holds from the next look on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Arc<RwLock<PinSet>>);

#[derive(Debug, Default)]
struct PinSet {
    members: BTreeSet<Fingerprint>,
    removed: BTreeMap<Fingerprint, Bytes>,
}

impl Pins {
    pub(crate) fn set(&self, members: BTreeSet<Fingerprint>, removed: BTreeMap<Fingerprint, Bytes>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = PinSet { members, removed };
    }

    /// Removal is final: a key that is in both lists is removed.
    pub(crate) fn standing(&self, fingerprint: Fingerprint) -> Standing {
        let pins = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match pins.removed.get(&fingerprint) {
            Some(message) => Standing::Removed(message.clone()),
            None if pins.members.contains(&fingerprint) => Standing::Member,
            None => Standing::Stranger,
        }
    }
}

/// Which of the two protocols a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// `collective/1`
    Member,
    /// `collective-join/1`
    Join,
}

/// What one incoming handshake has shown so far.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    door: OnceLock<Door>,
    fingerprint: OnceLock<Fingerprint>,
}

impl Visit {
    /// Returns the key the visitor presented, even when it was refused; it has not shown that it owns it.
    pub(crate) fn presented(&self) -> Option<Fingerprint> {
        self.fingerprint.get().copied()
    }
}

/// Everything needed to make the TLS side of a connection.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    time: Arc<Wall>,
    own: Arc<CertifiedKey>,
    pins: Pins,
}

impl Tls {
    pub(crate) fn new(
        identity: &Identity,
        provider: Arc<CryptoProvider>,
        time_source: Arc<dyn TimeSource>,
        pins: Pins,
    ) -> Result<Self, IdentityError> {
        let own = Arc::new(identity.certified(&provider)?);
        Ok(Self { provider, time: Arc::new(Wall(time_source)), own, pins })
    }

    /// Makes the server side of one incoming connection.
    ///
    /// One configuration a connection: the client's key is judged by the protocol it asked for, and rustls shows the
    /// protocol to the certificate resolver but not to the verifier.
    pub(crate) fn server(&self) -> anyhow::Result<(QuicServerConfig, Arc<Visit>)> {
        let visit = Arc::new(Visit::default());
        let verifier = ClientPin { visit: visit.clone(), pins: self.pins.clone(), provider: self.provider.clone() };
        let resolver = NoteDoor { visit: visit.clone(), own: self.own.clone() };
        let mut config = rustls::ServerConfig::builder_with_details(self.provider.clone(), self.time.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN_MEMBER.to_vec(), ALPN_JOIN.to_vec()];
        // No resumption, no 0-RTT: a resumed session would get past the pins without showing its key again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok((QuicServerConfig::try_from(config)?, visit))
    }

    /// Makes the client side of a dial to a member that must present one of `expected`.
    pub(crate) fn member_client(&self, expected: Vec<Fingerprint>) -> anyhow::Result<QuicClientConfig> {
        let pins = Some(self.pins.clone());
        let verifier = ServerPin { expected, pins, provider: self.provider.clone() };
        self.client(verifier, self.own.clone(), ALPN_MEMBER)
    }

    /// Makes the client side of a join: the server must present `expected`, we present `identity`.
    pub(crate) fn join_client(&self, expected: Fingerprint, identity: &Identity) -> anyhow::Result<QuicClientConfig> {
        let verifier = ServerPin { expected: vec![expected], pins: None, provider: self.provider.clone() };
        self.client(verifier, Arc::new(identity.certified(&self.provider)?), ALPN_JOIN)
    }

    fn client(&self, pin: ServerPin, key: Arc<CertifiedKey>, alpn: &[u8]) -> anyhow::Result<QuicClientConfig> {
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(key));
        let mut config = rustls::ClientConfig::builder_with_details(self.provider.clone(), self.time.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pin))
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![alpn.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(QuicClientConfig::try_from(config)?)
    }
}

/// Returns who is at the other end of a connection whose handshake is complete, and which protocol it speaks.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Option<(Fingerprint, Door)> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let handshake = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    let door = match handshake.protocol.as_deref() {
        Some(protocol) if protocol == ALPN_MEMBER => Door::Member,
        Some(protocol) if protocol == ALPN_JOIN => Door::Join,
        _ => return None,
    };
    Some((fingerprint_of(chain.first()?).ok()?, door))
}

/// The wall clock for rustls; no decision rests on it, since certificate dates are ignored.
struct Wall(Arc<dyn TimeSource>);

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wall")
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(std::time::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

fn refuse() -> TlsError {
    TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn read_fingerprint(certificate: &CertificateDer<'_>) -> Result<Fingerprint, TlsError> {
    fingerprint_of(certificate).map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, TlsError> {
    verify_tls13_signature(message, certificate, signature, &provider.signature_verification_algorithms)
}

/// Notes which protocol the client asked for, in the order the server prefers.
#[derive(Debug)]
struct NoteDoor {
    visit: Arc<Visit>,
    own: Arc<CertifiedKey>,
}

impl ResolvesServerCert for NoteDoor {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wants_member = hello.alpn().is_some_and(|mut offered| offered.any(|alpn| alpn == ALPN_MEMBER));
        // A second hello (after a retry request) cannot change the door that was noted first.
        self.visit.door.get_or_init(|| if wants_member { Door::Member } else { Door::Join });
        Some(self.own.clone())
    }
}

/// Judges the key of a client.
#[derive(Debug)]
struct ClientPin {
    visit: Arc<Visit>,
    pins: Pins,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ClientPin {
    fn root_hint_subjects(&self) -> &[RootHint] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let fingerprint = read_fingerprint(certificate)?;
        self.visit.fingerprint.get_or_init(|| fingerprint);
        let accepted = match self.visit.door.get() {
            // Whoever joins has no standing yet; the token is judged inside.
            Some(Door::Join) => true,
            // A removed member may finish the handshake, only to be told that it was removed.
            _ => self.pins.standing(fingerprint) != Standing::Stranger,
        };
        if accepted { Ok(ClientCertVerified::assertion()) } else { Err(refuse()) }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Judges the key of a server.
#[derive(Debug)]
struct ServerPin {
    expected: Vec<Fingerprint>,
    /// The roster's keys, unless a token vouches for the server.
    pins: Option<Pins>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerPin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let fingerprint = read_fingerprint(certificate)?;
        let pinned = self.pins.as_ref().is_none_or(|pins| pins.standing(fingerprint) == Standing::Member);
        if self.expected.contains(&fingerprint) && pinned { Ok(ServerCertVerified::assertion()) } else { Err(refuse()) }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_makes_one_identity() {
        let [one, same, other] = [1, 1, 2].map(|byte| Identity::generate(&[byte; 32]).expect("identity"));
        assert_eq!(one.certificate(), same.certificate());
        assert_eq!(one.fingerprint(), fingerprint_of(one.certificate()).expect("certificate"));
        assert_ne!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_stored_identity_reads_back_and_a_foreign_key_is_refused() {
        let [one, other] = [1, 2].map(|byte| Identity::generate(&[byte; 32]).expect("identity"));
        let again = Identity::from_parts(one.certificate().to_vec(), one.key().to_vec()).expect("stored");
        assert_eq!(again.fingerprint(), one.fingerprint());
        let mixed = Identity::from_parts(one.certificate().to_vec(), other.key().to_vec());
        assert!(matches!(mixed, Err(IdentityError::Key(_))));
    }

    #[test]
    fn damaged_certificates_are_an_error() {
        let whole = Identity::generate(&[1; 32]).expect("identity").certificate().to_vec();
        for end in 0..whole.len() {
            assert!(fingerprint_of(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_debug_print_shows_no_key() {
        let identity = Identity::generate(&[7; 32]).expect("identity");
        assert!(!format!("{identity:?}").contains("7, 7"));
    }

    #[test]
    fn removal_outranks_membership() {
        let key = Fingerprint([1; 32]);
        let pins = Pins::default();
        assert_eq!(pins.standing(key), Standing::Stranger);
        pins.set([key].into(), BTreeMap::new());
        assert_eq!(pins.standing(key), Standing::Member);
        pins.set([key].into(), [(key, Bytes::from_static(b"gone"))].into());
        assert_eq!(pins.standing(key), Standing::Removed(Bytes::from_static(b"gone")));
    }
}
