//! The two clocks, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::actions;
use crate::proto::time::{Instant, Now, WallTime};

/// Reads CLOCK_BOOTTIME and the wall clock.
///
/// BOOTTIME runs on while the machine is suspended; CLOCK_MONOTONIC, which `std` and tokio read, does not, and a lease
/// measured on it would outlive a nap.
pub fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { boot: actions::now(), wall: WallTime(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)) }
}

/// Returns the moment of tokio's clock that corresponds to an instant of ours.
pub fn to_tokio(at: Instant) -> tokio::time::Instant {
    tokio::time::Instant::now() + at.since(actions::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_does_not_go_back() {
        let first = now();
        let second = now();
        assert!(second.boot >= first.boot);
        assert!(first.wall.0 > 1_500_000_000_000, "the wall clock is set");
    }
}
