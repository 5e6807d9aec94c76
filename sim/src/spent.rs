//! What a run costs here: the time that a thread was on a processor, whatever else the machine did meanwhile.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Counts the processor time of the thread that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent(Duration);

impl Spent {
    /// Begins to count.
    pub(crate) fn new() -> Self {
        Self(on_processor())
    }

    /// Returns what was spent since then, in seconds.
    pub(crate) fn seconds(self) -> f64 {
        on_processor().saturating_sub(self.0).as_secs_f64()
    }
}

fn on_processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
