//! Writes a scenario as the text it can be read from, everything said.

use std::fmt::Write;

use collective::proto::roster::Timing;

use super::steps::tell_seen;
use super::units::{tell_duration, tell_permille};
use super::{Random, Scenario, faults, steps};
use crate::fault::MS;

/// Writes everything.
pub(super) fn scenario(scenario: &Scenario) -> String {
    let mut text = String::new();
    sections(scenario, &mut text).expect("writing to a String cannot fail");
    for fault in &scenario.faults {
        text.push('\n');
        text.push_str(&faults::write(fault));
    }
    for step in &scenario.steps {
        text.push('\n');
        text.push_str(&steps::write(step));
    }
    text
}

fn sections(scenario: &Scenario, text: &mut String) -> std::fmt::Result {
    let ms = |ms: u64| tell_duration(ms * MS);
    let range = |(low, high): (u64, u64)| format!("{}..{}", tell_duration(low), tell_duration(high));
    writeln!(text, "name = {:?}\nabout = {:?}\n", scenario.name, scenario.about)?;
    writeln!(text, "[mesh]\nmembers = {}\nspare = {}", scenario.joined, scenario.members - scenario.joined)?;
    writeln!(text, "nodes = {}", scenario.nodes)?;
    if let Some(voters) = scenario.restored {
        writeln!(text, "restored = {voters}")?;
    }
    if !scenario.candidates.is_empty() {
        let lists: Vec<_> = scenario.candidates.iter().map(|members| faults::list(members)).collect();
        writeln!(text, "candidates = [{}]", lists.join(", "))?;
    }
    if !scenario.unlinked.is_empty() {
        let pairs: Vec<_> = scenario.unlinked.iter().map(|(a, b)| faults::list(&[*a, *b])).collect();
        writeln!(text, "unlinked = [{}]", pairs.join(", "))?;
    }
    let profiles = [("local", Timing::LOCAL), ("lan", Timing::LAN), ("wan", Timing::WAN)];
    let alike = |timing: &Timing| Timing { lease_ms: 0, margin_permille: 0, ..*timing };
    if let Some((name, _)) = profiles.iter().find(|(_, timing)| alike(timing) == alike(&scenario.timing)) {
        writeln!(text, "profile = \"{name}\"")?;
    }
    writeln!(text, "lease = \"{}\"", ms(u64::from(scenario.timing.lease_ms)))?;
    writeln!(text, "margin = \"{}\"", tell_permille(u64::from(scenario.timing.margin_permille)))?;
    writeln!(text, "\n[net]\ndelay = \"{}\"", range(scenario.network.delay))?;
    writeln!(text, "loss = \"{}\"", tell_permille(scenario.network.loss))?;
    writeln!(text, "\n[disk]\nfsync = \"{}\"", range(scenario.fsync))?;
    if !scenario.drift_ppm.is_empty() {
        writeln!(text, "\n[clock]\ndrift-ppm = {:?}", scenario.drift_ppm)?;
    }
    let load = scenario.load;
    writeln!(text, "\n[workload]\nfor = \"{}\"\nevery = \"{}\"", ms(scenario.window_ms), ms(load.every_ms))?;
    writeln!(text, "moves = {}\nchurn = {}", load.moves, load.churn)?;
    writeln!(text, "actions-every = \"{}\"", ms(load.actions_every_ms))?;
    if let Some(Random { kinds, count: (least, most), swarm, forever, churn }) = &scenario.random {
        writeln!(text, "\n[random]\nkinds = {kinds:?}\ncount = \"{least}..{most}\"")?;
        writeln!(text, "swarm = {swarm}\nforever = {forever}\nchurn = {churn}")?;
    }
    writeln!(text, "\n[expect]\nconverge = \"{}\"", ms(scenario.converge_ms))?;
    if !scenario.seen.is_empty() {
        writeln!(text, "seen = {}", tell_seen(&scenario.seen))?;
    }
    if let Some(rule) = scenario.violates {
        writeln!(text, "violates = \"{}\"", rule.word())?;
    }
    match scenario.planted {
        Some(bug) => writeln!(text, "planted = \"{}\"", bug.name()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::scenario::{Scenario, all};

    #[test]
    fn what_is_written_reads_the_same() {
        for (scenario, _) in all().expect("the library is sound") {
            for seed in 0..30 {
                let expanded = scenario.expanded(seed);
                let again = Scenario::parse(&expanded.text());
                assert_eq!(again.as_ref(), Ok(&expanded), "{}", expanded.text());
            }
            assert_eq!(Scenario::parse(&scenario.text()).as_ref(), Ok(&scenario));
        }
    }
}
