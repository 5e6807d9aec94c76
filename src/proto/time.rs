//! Time as the core sees it: given from outside, never read.

use std::ops::Add;
use std::time::Duration;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A point on this machine's CLOCK_BOOTTIME, in nanoseconds since boot.
///
/// Every lease and timeout is measured on this clock: it runs on while the machine is suspended, so a lease does not
/// outlive a nap. Instants of different machines must never be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of the clock; earlier than every instant that a running machine reads.
    pub const ZERO: Self = Self(0);

    /// Makes an instant from nanoseconds since boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns how much later this instant is than `earlier`, or zero when it is not later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Adds a duration, stopping at the end of the clock (584 years).
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A reading of the wall clock, in milliseconds since 1970-01-01T00:00:00Z. Untrusted.
///
/// It dates what people read and ends invitations; no other decision uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct WallTime(#[n(0)] pub u64);

impl WallTime {
    /// Returns this time plus `duration`, in whole milliseconds.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Both clocks at the moment an event is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The clock that leases and timeouts use.
    pub boot: Instant,
    /// The clock that people read.
    pub wall: WallTime,
}
