//! When a running job must be told to stop, and when it is killed: from its deadline, its timeout and the clock.

use std::time::Duration;

use rustix::process::Signal;

use super::Stop;
use crate::proto::time::Instant;

/// How long before the deadline a job is told to stop. Well below what a renewal adds to the shortest lease.
pub const TERM_BEFORE: Duration = Duration::from_millis(400);
/// How long before the deadline whatever is left of a job is killed.
pub const KILL_BEFORE: Duration = Duration::from_millis(100);
/// How long a job that is told to stop has, if its deadline is no nearer.
const GRACE: Duration = Duration::from_secs(2);

/// What others decide about a running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// When nothing of it may run any more.
    pub(super) deadline: Instant,
    pub(super) cancelled: bool,
}

impl Control {
    /// Returns when the job must be told to stop, and why, as far as the deadline goes.
    pub(super) fn stop(&self, now: Instant) -> Option<Stop> {
        if self.cancelled {
            Some(Stop::Cancelled)
        } else if now >= self.term_at() {
            Some(Stop::Deadline)
        } else {
            None
        }
    }

    pub(super) fn term_at(&self) -> Instant {
        before(self.deadline, TERM_BEFORE)
    }

    fn kill_at(&self) -> Instant {
        before(self.deadline, KILL_BEFORE)
    }
}

/// Follows one job from its start to its end.
#[derive(Debug)]
pub(super) struct Watchdog {
    times_out: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Running,
    Told { why: Stop, kill_at: Instant },
    Killed { why: Stop },
}

impl Watchdog {
    pub(super) fn new(started: Instant, timeout: Duration) -> Self {
        Self { times_out: started + timeout, phase: Phase::Running }
    }

    /// Returns the signal that is due, each once.
    pub(super) fn due(&mut self, control: Control, now: Instant) -> Option<Signal> {
        match self.phase {
            Phase::Running => {
                let why = control.stop(now).or((now >= self.times_out).then_some(Stop::Timeout))?;
                // A renewal that comes now is too late: what is told to stop is not told to go on.
                self.phase = Phase::Told { why, kill_at: (now + GRACE).min(control.kill_at()) };
                Some(Signal::TERM)
            }
            Phase::Told { why, kill_at } if now >= kill_at => {
                self.phase = Phase::Killed { why };
                Some(Signal::KILL)
            }
            Phase::Told { .. } | Phase::Killed { .. } => None,
        }
    }

    /// Returns when to ask again.
    pub(super) fn next(&self, control: Control) -> Instant {
        match self.phase {
            Phase::Running => self.times_out.min(control.term_at()),
            Phase::Told { kill_at, .. } => kill_at,
            Phase::Killed { .. } => control.deadline,
        }
    }

    /// Returns whether the job was killed, so that nothing but the deadline is left to wait for.
    pub(super) fn has_killed(&self) -> bool {
        matches!(self.phase, Phase::Killed { .. })
    }

    /// Returns why the job was told to stop.
    pub(super) fn stopped(&self) -> Option<Stop> {
        match self.phase {
            Phase::Running => None,
            Phase::Told { why, .. } | Phase::Killed { why } => Some(why),
        }
    }
}

fn before(instant: Instant, duration: Duration) -> Instant {
    Instant::from_nanos(instant.as_nanos().saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn until(ms: u64) -> Control {
        Control { deadline: at(ms), cancelled: false }
    }

    fn watchdog() -> Watchdog {
        Watchdog::new(at(0), Duration::from_secs(30))
    }

    #[test]
    fn a_job_is_told_before_its_deadline_and_killed_before_it_too() {
        let (mut watchdog, control) = (watchdog(), until(5_000));
        assert_eq!((watchdog.due(control, at(4_599)), watchdog.next(control)), (None, at(4_600)));
        assert_eq!((watchdog.due(control, at(4_600)), watchdog.next(control)), (Some(Signal::TERM), at(4_900)));
        assert_eq!(watchdog.due(control, at(4_899)), None);
        assert_eq!((watchdog.due(control, at(4_900)), watchdog.next(control)), (Some(Signal::KILL), at(5_000)));
        assert_eq!((watchdog.due(control, at(4_950)), watchdog.stopped()), (None, Some(Stop::Deadline)));
    }

    #[test]
    fn a_renewed_deadline_lets_a_job_go_on_to_its_timeout() {
        let mut watchdog = watchdog();
        for renewed in (5_000..40_000).step_by(500) {
            let (control, now) = (until(renewed), at(renewed - 1_500));
            if now < at(30_000) {
                assert_eq!(watchdog.due(control, now), None);
            }
        }
        assert_eq!(watchdog.due(until(90_000), at(30_000)), Some(Signal::TERM));
        assert_eq!((watchdog.stopped(), watchdog.next(until(90_000))), (Some(Stop::Timeout), at(32_000)));
    }

    #[test]
    fn a_renewal_that_comes_after_the_word_to_stop_is_too_late() {
        let mut watchdog = watchdog();
        assert_eq!(watchdog.due(until(5_000), at(4_700)), Some(Signal::TERM));
        assert_eq!(watchdog.due(until(60_000), at(4_900)), Some(Signal::KILL));
    }

    #[test]
    fn a_cancelled_job_is_told_at_once_and_killed_before_its_deadline() {
        for (deadline, killed) in [(60_000, 3_000), (2_000, 1_900)] {
            let control = Control { cancelled: true, ..until(deadline) };
            let mut watchdog = watchdog();
            assert_eq!(watchdog.due(control, at(1_000)), Some(Signal::TERM));
            assert_eq!((watchdog.stopped(), watchdog.next(control)), (Some(Stop::Cancelled), at(killed)));
        }
    }

    #[test]
    fn a_nap_past_the_deadline_leads_to_both_signals_at_once() {
        let mut watchdog = watchdog();
        assert_eq!(watchdog.due(until(5_000), at(9_000)), Some(Signal::TERM));
        assert_eq!(watchdog.due(until(5_000), at(9_000)), Some(Signal::KILL));
    }
}
