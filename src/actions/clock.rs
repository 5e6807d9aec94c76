//! CLOCK_BOOTTIME, read and waited for.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::proto::time::Instant;

const NANOS: u64 = 1_000_000_000;
/// How late a nap of the machine may be noticed once it is over.
const TICK: Duration = Duration::from_millis(20);

/// Reads CLOCK_BOOTTIME.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    Instant::from_nanos(u64::try_from(time.tv_sec).unwrap_or(0) * NANOS + u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Waits until an instant of CLOCK_BOOTTIME; at once if it is past.
///
/// tokio's timers stand still while the machine is suspended, and a lease does not: so it waits in short steps.
pub(super) async fn until(instant: Instant) {
    loop {
        match instant.since(now()) {
            Duration::ZERO => return,
            left => tokio::time::sleep(left.min(TICK)).await,
        }
    }
}
