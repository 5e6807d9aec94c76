//! The small public facts that a member tells everybody by gossip. Hints only: nothing is decided by them alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use minicbor::{Decode, Encode};

use super::identity::{MemberId, SessionId};
use super::request::Standing;
use super::roster::Version;

/// What one member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where it can be reached; the best address first.
    pub addresses: Vec<SocketAddr>,
    /// Its software version.
    pub software: String,
    /// The oldest and the newest wire version it speaks.
    pub wire: (u16, u16),
    /// Its incarnation.
    pub incarnation: u64,
    /// The run of its daemon.
    pub session: Option<SessionId>,
    /// Whether it is about to leave or stop.
    pub leaving: bool,
    /// The hash over all its document digests.
    pub root: [u8; 8],
    /// The roster it has in force.
    pub version: Version,
    /// How far its session has come.
    pub standing: Standing,
    /// How many nodes it manages.
    pub manages: u32,
    /// The hash of its view.
    pub view: [u8; 8],
    /// What it believes of each member, a letter each in the order of the roster's ids: `A`live, `S`uspect, `D`own, `L`eft.
    pub sees: String,
    /// The members it suspects, and at which incarnation.
    pub suspicions: BTreeMap<MemberId, u64>,
}

/// What a member keeps on disk of another: how to reach it, and what it must not fall below (R9).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PeerRecord {
    /// Addresses that worked or were told, the best first, as text.
    #[n(0)]
    pub addresses: Vec<String>,
    /// The highest incarnation seen.
    #[n(1)]
    pub incarnation: u64,
    /// The highest sequence seen.
    #[n(2)]
    pub sequence: u64,
}

impl PeerRecord {
    /// Returns the addresses that read as such.
    pub fn socket_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().filter_map(|text| text.parse().ok()).collect()
    }
}
