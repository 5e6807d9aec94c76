//! A member's own clocks: they start anywhere and drift, and nobody else ever reads them.

use collective::proto::time::{Instant, Now, WallTime};

/// 2026-01-01T00:00:00Z, when every run begins.
const EPOCH_MS: u64 = 1_767_225_600_000;
const MILLION: i64 = 1_000_000;

/// How one member's clocks relate to the true time, in nanoseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What CLOCK_BOOTTIME read when the run began; negative after a reboot.
    offset: i128,
    /// How much faster than the truth it runs, in millionths.
    pub(crate) drift_ppm: i64,
    /// How far the wall clock is off, in milliseconds.
    wall_skew_ms: i64,
}

impl Clock {
    pub(crate) const fn new(offset_ns: u64, drift_ppm: i64, wall_skew_ms: i64) -> Self {
        Self { offset: offset_ns as i128, drift_ppm, wall_skew_ms }
    }

    fn nanos(self, time: u64) -> i128 {
        let time = i128::from(time);
        self.offset + time + in_proportion(time, self.drift_ppm, MILLION)
    }

    /// Reads both clocks.
    pub(crate) fn now(self, time: u64) -> Now {
        let boot = u64::try_from(self.nanos(time)).unwrap_or(0);
        let wall = (EPOCH_MS + time / 1_000_000).saturating_add_signed(self.wall_skew_ms);
        Now { boot: Instant::from_nanos(boot), wall: WallTime(wall) }
    }

    /// Returns the first true time at which the boot clock reads `at` or more.
    pub(crate) fn when(self, at: Instant) -> u64 {
        let target = i128::from(at.as_nanos());
        let estimate = in_proportion(target - self.offset, MILLION, MILLION + self.drift_ppm);
        let mut time = u64::try_from(estimate - 2).unwrap_or(0);
        while self.nanos(time) < target {
            time += 1;
        }
        time
    }

    /// Starts the boot clock anew, as a machine does that lost power.
    pub(crate) fn reboot(&mut self, time: u64) {
        self.offset += 5_000_000_000 - self.nanos(time);
    }

    /// Sets the wall clock ahead or back.
    pub(crate) const fn set_wall(&mut self, by_ms: i64) {
        self.wall_skew_ms += by_ms;
    }

    /// Stops the clock from `since` until `now`, as a frozen virtual machine's. Breaks what the leases assume.
    pub(crate) fn freeze(&mut self, since: u64, now: u64) {
        self.offset -= self.nanos(now) - self.nanos(since);
    }
}

/// Returns `part` of each `whole` of a duration, rounded towards zero.
fn in_proportion(duration: i128, part: i64, whole: i64) -> i128 {
    // The clocks are read at every event, dividing 128 bits is slow, and what has no more than 64 is always enough for an
    // hour or two.
    let product = i64::try_from(duration).ok().and_then(|duration| duration.checked_mul(part));
    product.map_or_else(|| duration * i128::from(part) / i128::from(whole), |product| i128::from(product / whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_as_long_in_few_bits_as_in_many() {
        for duration in [0, 7, -7, 9_223_372_036_854, 9_223_372_036_855, -9_223_372_036_855, i128::from(u64::MAX)] {
            for (part, whole) in [(-20_000, MILLION), (13, MILLION), (MILLION, MILLION - 20_000)] {
                let exact = duration * i128::from(part) / i128::from(whole);
                assert_eq!(in_proportion(duration, part, whole), exact, "{duration} * {part} / {whole}");
            }
        }
    }

    #[test]
    fn a_wish_to_wake_comes_true_when_the_clock_reads_it() {
        for drift in [-20_000, -7, 0, 13, 20_000] {
            let clock = Clock::new(987_654_321, drift, 0);
            for time in [0, 1, 999_999_999, 77_000_000_123] {
                let at = clock.now(time).boot;
                let due = clock.when(at);
                assert!(due <= time && clock.now(due).boot >= at, "drift {drift}, time {time}, due {due}");
            }
        }
    }

    #[test]
    fn a_reboot_starts_the_clock_near_its_beginning() {
        let mut clock = Clock::new(3_600_000_000_000, 100, 0);
        clock.reboot(9_000_000_000);
        assert_eq!(clock.now(9_000_000_000).boot, Instant::from_nanos(5_000_000_000));
    }
}
