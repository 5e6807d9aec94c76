//! The durations of a collective, in profiles and as configured.

use std::time::Duration;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The durations that every member of a collective must share, so they are part of the decided roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(map)]
pub struct Timing {
    /// T: how long a voter promises itself to a session, in milliseconds.
    #[n(0)]
    pub lease_ms: u32,
    /// m: the part of T that a holder gives away for clock drift, in thousandths.
    #[n(1)]
    pub margin_permille: u16,
    /// The SWIM protocol period, in milliseconds.
    #[n(2)]
    pub probe_interval_ms: u32,
    /// How long a direct probe may take, in milliseconds; less than the period.
    #[n(3)]
    pub probe_timeout_ms: u32,
    /// The shortest time a suspect has to refute, in protocol periods (see `swim.rs`).
    #[n(4)]
    pub suspicion_mult: u8,
    /// The gossip interval of chitchat, in milliseconds.
    #[n(5)]
    pub gossip_interval_ms: u32,
}

impl Timing {
    /// For several members on one machine.
    pub const LOCAL: Self = Self {
        lease_ms: 1_000,
        margin_permille: 50,
        probe_interval_ms: 1_000,
        probe_timeout_ms: 200,
        suspicion_mult: 2,
        gossip_interval_ms: 500,
    };
    /// For sites on one campus; the default.
    pub const LAN: Self = Self {
        lease_ms: 2_000,
        margin_permille: 50,
        probe_interval_ms: 1_000,
        probe_timeout_ms: 500,
        suspicion_mult: 2,
        gossip_interval_ms: 1_000,
    };
    /// For sites far apart.
    pub const WAN: Self = Self {
        lease_ms: 6_000,
        margin_permille: 50,
        probe_interval_ms: 5_000,
        probe_timeout_ms: 3_000,
        suspicion_mult: 3,
        gossip_interval_ms: 1_000,
    };

    /// Returns the profile of that name: `local`, `lan` or `wan`.
    pub fn profile(name: &str) -> Option<Self> {
        match name {
            "local" => Some(Self::LOCAL),
            "lan" => Some(Self::LAN),
            "wan" => Some(Self::WAN),
            _ => None,
        }
    }

    /// Returns T.
    pub const fn lease(self) -> Duration {
        Duration::from_millis(self.lease_ms as u64)
    }

    /// Returns T/6, the interval between lease rounds.
    pub const fn renewal(self) -> Duration {
        Duration::from_micros(self.lease_ms as u64 * 1_000 / 6)
    }

    /// Returns T(1-m): how long after sending a request its grant may be used.
    pub const fn usable(self) -> Duration {
        Duration::from_micros(self.lease_ms as u64 * 1_000_u64.saturating_sub(self.margin_permille as u64))
    }

    /// Returns T(1+2rho), where 2rho = m: how long a voter waits for what it may have promised to expire on any clock.
    pub const fn quiet(self) -> Duration {
        Duration::from_micros(self.lease_ms as u64 * (1_000 + self.margin_permille as u64))
    }

    /// Returns whether these durations can be worked with: none is zero, and a probe ends within its period.
    pub(super) const fn is_sound(self) -> bool {
        self.lease_ms > 0
            && self.margin_permille < 1_000
            && self.probe_timeout_ms > 0
            && self.probe_timeout_ms < self.probe_interval_ms
            && self.suspicion_mult > 0
            && self.gossip_interval_ms > 0
    }
}
