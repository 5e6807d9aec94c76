//! What an action of the load runs: it writes down from when to when it ran, by the clock that leases count on.
//!
//! All members of a run share one kernel, and so one `CLOCK_BOOTTIME`: what is written here says exactly whether two
//! actions for one node ever ran at the same time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use collective::actions::now;

/// How often a mark is renewed: an action that is killed is known to have run until its last one.
const EVERY: Duration = Duration::from_millis(5);
/// How long an action takes at most, in milliseconds, when nobody kills it.
const TAKES_MOST_MS: u64 = 1_500;

/// One action that ran somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) member: String,
    pub(super) node: String,
    pub(super) token: String,
    /// From when to when it is known to have run, in nanoseconds of the boot clock.
    pub(super) from: u64,
    pub(super) to: u64,
    /// Whether it came to its end by itself.
    pub(super) is_whole: bool,
}

/// Runs as an action: marks that it does, for a while of random length.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn run(marks: &Path) -> anyhow::Result<()> {
    let began = now().as_nanos();
    let told = |name: &str| std::env::var(name).unwrap_or_default();
    let mut file = File::options().create(true).append(true).open(marks)?;
    let id = format!("{}-{began}", std::process::id());
    // Each line is one write to the end of the file, so lines of several processes do not mix.
    let line = format!(
        "begin {id} {began} {} {} {}\n",
        told("COLLECTIVE_MEMBER"),
        told("COLLECTIVE_NODE"),
        told("COLLECTIVE_TOKEN")
    );
    file.write_all(line.as_bytes())?;
    let takes = 20 + began / 1_000 % TAKES_MOST_MS;
    while now().as_nanos() < began + takes * 1_000_000 {
        std::thread::sleep(EVERY);
        file.write_all(format!("still {id} {}\n", now().as_nanos()).as_bytes())?;
    }
    file.write_all(format!("end {id} {}\n", now().as_nanos()).as_bytes())?;
    Ok(())
}

/// Reads what actions wrote, in the order in which they began.
pub(super) fn read(text: &str) -> Vec<Mark> {
    let mut marks: BTreeMap<&str, Mark> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let (Some(what), Some(id)) = (words.first(), words.get(1)) else { continue };
        let Some(at) = words.get(2).and_then(|at| at.parse::<u64>().ok()) else { continue };
        match (*what, words.get(3..)) {
            ("begin", Some([member, node, token])) => {
                let mark = Mark {
                    member: (*member).to_owned(),
                    node: (*node).to_owned(),
                    token: (*token).to_owned(),
                    from: at,
                    to: at,
                    is_whole: false,
                };
                marks.insert(id, mark);
            }
            ("still" | "end", _) => {
                if let Some(mark) = marks.get_mut(id) {
                    mark.to = at;
                    mark.is_whole = *what == "end";
                }
            }
            _ => {}
        }
    }
    let mut marks: Vec<_> = marks.into_values().collect();
    marks.sort_by_key(|mark| mark.from);
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_actions_wrote_is_told_apart_and_a_killed_one_ended_with_its_last_mark() {
        let text = "begin 7-1 100 m0 n1 0.3.1\nbegin 8-2 150 m1 n1 0.3.2\nstill 7-1 120\nend 8-2 180\nnonsense\n";
        let mark = |member: &str, token: &str, from, to, is_whole| Mark {
            member: member.to_owned(),
            node: "n1".to_owned(),
            token: token.to_owned(),
            from,
            to,
            is_whole,
        };
        assert_eq!(read(text), [mark("m0", "0.3.1", 100, 120, false), mark("m1", "0.3.2", 150, 180, true)]);
    }
}
