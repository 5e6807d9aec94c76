//! Admission: whose records may enter, told from the roster's fingerprints.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use tokio::time::Instant;

use crate::proto::identity::Fingerprint;

/// Records kept of all members together. chitchat panics when a digest of them, at 61 bytes each, exceeds 65,407 bytes.
pub const RECORDS_MAX: usize = 1_000;
/// Generations kept of one member: a restart leaves the former one behind for the grace period.
const GENERATIONS: usize = 2;
/// How far a heartbeat may jump at once and for each second; an honest one counts ticks and messages.
const HEARTBEAT_LEAP: u64 = 100_000;
const HEARTBEATS_A_SECOND: u64 = 10_000;
/// The highest generation taken; it is a persisted count of starts.
const GENERATION_MAX: u64 = 1 << 62;

/// Returns the address by which gossip knows a member: fd00::/8, then 14 bytes of its fingerprint, port 1.
///
/// No packet goes there. chitchat tells its peers apart by address, our links by fingerprint; this is the translation,
/// the same on every member.
pub fn address_of(fingerprint: Fingerprint) -> SocketAddr {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[2..].copy_from_slice(&fingerprint.0[..14]);
    SocketAddr::from((Ipv6Addr::from(octets), 1))
}

/// Returns the name by which gossip knows a member: eight digits of its fingerprint.
///
/// All 64 would make a digest of 560 records too large to send; the address beside it makes the id unique.
pub(super) fn name_of(fingerprint: Fingerprint) -> String {
    HEXLOWER.encode(&fingerprint.0[..4])
}

/// One entry of a digest.
pub(super) struct Record<'a> {
    pub(super) name: &'a [u8],
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
    pub(super) heartbeat: u64,
}

/// The fingerprints on the roster, shared by the transport and the reader; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    members: BTreeMap<SocketAddr, Fingerprint>,
    /// The highest heartbeat of each generation and when it came.
    heartbeats: BTreeMap<Fingerprint, BTreeMap<u64, (u64, Instant)>>,
    /// How many new records may still come.
    room: usize,
}

impl Default for State {
    fn default() -> Self {
        Self { members: BTreeMap::new(), heartbeats: BTreeMap::new(), room: RECORDS_MAX }
    }
}

impl Admission {
    /// Sets whose records are let in: the fingerprints of the roster, our own among them.
    pub fn set_members(&self, members: impl IntoIterator<Item = Fingerprint>) {
        let mut state = self.state();
        state.members = members.into_iter().map(|member| (address_of(member), member)).collect();
        let State { members, heartbeats, .. } = &mut *state;
        heartbeats.retain(|member, _| members.contains_key(&address_of(*member)));
    }

    /// Returns the member behind a gossip address.
    pub(super) fn member_at(&self, address: SocketAddr) -> Option<Fingerprint> {
        self.state().members.get(&address).copied()
    }

    /// Returns the gossip addresses of all members.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.state().members.keys().copied().collect()
    }

    /// Takes note of how many records chitchat keeps.
    pub(super) fn set_kept(&self, records: usize) {
        self.state().room = RECORDS_MAX.saturating_sub(records);
    }

    /// Returns whether a record may enter, and remembers its heartbeat.
    pub(super) fn admits(&self, record: &Record) -> bool {
        let mut state = self.state();
        let Some(member) = state.members.get(&record.address).copied() else { return false };
        if record.name != name_of(member).as_bytes() || record.generation > GENERATION_MAX {
            return false;
        }
        let room = state.room;
        let generations = state.heartbeats.entry(member).or_default();
        let now = Instant::now();
        if let Some((heartbeat, at)) = generations.get_mut(&record.generation) {
            let leap = HEARTBEAT_LEAP + now.duration_since(*at).as_secs().saturating_mul(HEARTBEATS_A_SECOND);
            if record.heartbeat > heartbeat.saturating_add(leap) {
                return false;
            }
            if record.heartbeat > *heartbeat {
                (*heartbeat, *at) = (record.heartbeat, now);
            }
            return true;
        }
        let oldest = generations.first_key_value().map(|(generation, _)| *generation);
        if room == 0 || (generations.len() >= GENERATIONS && oldest > Some(record.generation)) {
            return false;
        }
        if generations.len() >= GENERATIONS {
            generations.pop_first();
        }
        // The first word of a record may carry any honest count: a year of a busy member.
        if record.heartbeat > HEARTBEATS_A_SECOND * Duration::from_secs(365 * 86_400).as_secs() {
            return false;
        }
        generations.insert(record.generation, (record.heartbeat, now));
        state.room -= 1;
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; if something did, the maps are whole all the same.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Fingerprint = Fingerprint([1; 32]);
    const STRANGER: Fingerprint = Fingerprint([2; 32]);

    fn admits(admission: &Admission, member: Fingerprint, generation: u64, heartbeat: u64) -> bool {
        let name = name_of(member);
        let address = address_of(member);
        admission.admits(&Record { name: name.as_bytes(), generation, address, heartbeat })
    }

    fn admission() -> Admission {
        let admission = Admission::default();
        admission.set_members([A]);
        admission
    }

    #[test]
    fn an_address_is_private_and_follows_from_the_fingerprint() {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(address_of(Fingerprint(bytes)).to_string(), "[fd00:1122:3344:5566:7788:90a:b0c:d0e]:1");
    }

    #[test]
    fn only_members_enter_under_their_own_name() {
        let admission = admission();
        assert!(admits(&admission, A, 1, 1));
        assert!(!admits(&admission, STRANGER, 1, 1));
        let other = name_of(STRANGER);
        let forged = Record { name: other.as_bytes(), generation: 1, address: address_of(A), heartbeat: 1 };
        assert!(!admission.admits(&forged));

        admission.set_members([STRANGER]);
        assert!(!admits(&admission, A, 1, 2), "no longer on the roster");
    }

    #[test]
    fn a_restart_storm_leaves_two_generations() {
        let admission = admission();
        for generation in 1..=100 {
            assert!(admits(&admission, A, generation, 1));
        }
        assert!(admits(&admission, A, 99, 2));
        assert!(!admits(&admission, A, 98, 2));
        assert!(!admits(&admission, A, u64::MAX, 2));
    }

    #[test]
    fn a_heartbeat_may_not_leap() {
        let admission = admission();
        assert!(!admits(&admission, A, 1, u64::MAX));
        assert!(admits(&admission, A, 1, 50));
        assert!(admits(&admission, A, 1, 500));
        assert!(!admits(&admission, A, 1, 1 << 40));
        assert!(admits(&admission, A, 1, 501), "the honest one goes on");
    }

    #[test]
    fn no_record_enters_a_full_house() {
        let admission = admission();
        assert!(admits(&admission, A, 1, 1));
        admission.set_kept(RECORDS_MAX);
        assert!(!admits(&admission, A, 2, 1));
        assert!(admits(&admission, A, 1, 2), "known ones stay");
    }
}
