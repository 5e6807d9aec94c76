//! The two clocks, read in one place.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::proto::time::{Instant, Now, WallTime};

/// Reads CLOCK_BOOTTIME and the wall clock.
///
/// BOOTTIME runs on while the machine is suspended; CLOCK_MONOTONIC, which `std` and tokio read, does not, and a lease
/// measured on it would outlive a nap.
pub fn now() -> Now {
    let boot = clock_gettime(ClockId::Boottime);
    let wall = clock_gettime(ClockId::Realtime);
    Now { boot: Instant::from_nanos(nanos(boot)), wall: WallTime(nanos(wall) / 1_000_000) }
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the moment of tokio's clock that corresponds to an instant of ours.
pub fn to_tokio(at: Instant) -> tokio::time::Instant {
    tokio::time::Instant::now() + at.since(now().boot)
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
