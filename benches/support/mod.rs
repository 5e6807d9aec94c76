//! What the benchmarks share: samples, the table they print, and the disk's own speed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

/// Durations of one measurement, in order of length.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Sorts what was measured; there must be something.
    pub(crate) fn new(mut measured: Vec<Duration>) -> Self {
        assert!(!measured.is_empty(), "nothing was measured");
        measured.sort_unstable();
        Self(measured)
    }

    /// Returns the duration that so many of a hundred do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    /// Writes median and 99th percentile.
    pub(crate) fn p50_p99(&self) -> String {
        format!("{} / {}", time(self.percentile(50)), time(self.percentile(99)))
    }
}

/// Writes a duration with three digits that mean something.
pub(crate) fn time(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    let (value, unit) = match micros {
        us if us < 1_000.0 => (us, "us"),
        us if us < 1_000_000.0 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// Writes a size in decimal units.
pub(crate) fn bytes(bytes: f64) -> String {
    match bytes {
        b if b < 1e3 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.2} kB", b / 1e3),
        b => format!("{:.1} MB", b / 1e6),
    }
}

/// The table: what was measured, its value, and the goal beside it. A row is printed as soon as it is known.
#[derive(Debug)]
pub(crate) struct Table {
    only: Vec<String>,
}

impl Table {
    /// Starts a table. Words on the command line choose sections: those whose title contains one of them.
    pub(crate) fn new(title: &str) -> Self {
        let only = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        println!("{title}");
        Self { only }
    }

    /// Returns whether a section was asked for.
    pub(crate) fn wants(&self, title: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| title.contains(word.as_str()))
    }

    /// Starts a section and returns whether it was asked for.
    pub(crate) fn section(&self, title: &str) -> bool {
        let wanted = self.wants(title);
        if wanted {
            println!("\n{title}");
        }
        wanted
    }

    /// Prints one row; `goal` may be empty.
    pub(crate) fn row(&self, what: &str, value: impl AsRef<str>, goal: &str) {
        let mut line = format!("  {what:<58} {:>22}", value.as_ref());
        if !goal.is_empty() {
            let _ = write!(line, "   goal {goal}");
        }
        println!("{line}");
        let _ = std::io::stdout().flush();
    }
}
