//! The cryptography of the shipped network with its two random parts seeded: what TLS draws, and the keys it agrees on.

use std::sync::Arc;

use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::{Error, NamedGroup, PeerMisbehaved};
use x25519_dalek::{PublicKey, StaticSecret};

use super::entropy;

/// Returns ring's provider, but for the random bytes and for the key exchange, whose ring hides where it draws.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![&SeededX25519],
        secure_random: &Seeded,
        ..rustls::crypto::ring::default_provider()
    })
}

#[derive(Debug)]
struct Seeded;

impl SecureRandom for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        if entropy::fill(bytes) { Ok(()) } else { Err(GetRandomFailed) }
    }
}

#[derive(Debug)]
struct SeededX25519;

impl SupportedKxGroup for SeededX25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut bytes = [0; 32];
        Seeded.fill(&mut bytes)?;
        let secret = StaticSecret::from(bytes);
        let public = PublicKey::from(&secret);
        Ok(Box::new(Exchange { secret, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Exchange {
    secret: StaticSecret,
    public: PublicKey,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; 32] = peer.try_into().map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        let shared = self.secret.diffie_hellman(&PublicKey::from(peer));
        Ok(SharedSecret::from(shared.as_bytes().as_slice()))
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_exchange_agrees_with_rings() {
        let ring = rustls::crypto::ring::kx_group::X25519.start().expect("ring starts");
        let ours = SeededX25519.start().expect("ours starts");
        let (ring_public, our_public) = (ring.pub_key().to_vec(), ours.pub_key().to_vec());
        let (theirs, ours) = (ring.complete(&our_public).expect("ring"), ours.complete(&ring_public).expect("ours"));
        assert_eq!(theirs.secret_bytes(), ours.secret_bytes());
    }
}
