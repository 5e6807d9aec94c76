//! What this level cannot do, told with the place in the scenario that asks for it.

use anyhow::bail;
use collective::config::Profile;
use collective::proto::planted::{Bug, Planted};
use collective::proto::roster::Timing;

use super::lab::Between;
use crate::fault::Fault;
use crate::scenario::Scenario;

/// Kinds of faults that need a network, a disk or a clock which can be told what to do, and why.
const MISSING: [(&str, &str); 9] = [
    ("stall", "what a packet carries is encrypted, so the switch cannot tell documents from leases"),
    ("power-torn", "a killed process loses nothing that the kernel holds"),
    ("freeze", "the machine's own clock cannot be made to stand still"),
    ("wall-clock", "the machine's own clock is not touched"),
    ("slow-cpu", "the processors are those of this machine"),
    ("slow-disk", "the disk is the one of this machine"),
    ("disk-full", "the disk is the one of this machine"),
    ("fsync-error", "the disk is the one of this machine"),
    ("join-crash", "the steps of a join are not seen from outside"),
];

/// What a bridge cannot do to packets, since its rules only drop them.
const MORE_THAN_DROPPED: [&str; 8] = ["jam", "delay", "jitter", "reorder", "duplicate", "corrupt", "bandwidth", "mtu"];

/// Returns what a scenario needs between its machines.
pub(super) fn between(scenario: &Scenario) -> Between {
    let is_more = |fault: &Fault| MORE_THAN_DROPPED.contains(&fault.kind.word());
    let is_slow = scenario.network.delay != Scenario::new("usual", 1).network.delay;
    if is_slow || scenario.faults.iter().any(is_more) { Between::Ports } else { Between::Bridge }
}

/// Returns a scenario as this level runs it, with everything that the seed draws written out.
///
/// # Errors
/// What of it this level cannot do, with its line where `text` has it.
pub(super) fn at_this_level(scenario: &Scenario, seed: u64, text: &str) -> anyhow::Result<Scenario> {
    let mut scenario = scenario.clone();
    if let Some(random) = &mut scenario.random {
        random.kinds.retain(|word| missing(word).is_none());
        random.churn = false;
        if random.kinds.is_empty() {
            bail!("{}level netns can break nothing of what [random] names", place(text, "kinds"));
        }
    }
    for fault in &scenario.faults {
        let word = fault.kind.word();
        if let Some(why) = missing(word) {
            // A power cut is told by what becomes of the disk.
            let key = if word.starts_with("power-") { "disk" } else { word };
            bail!(
                "{}level netns cannot do the fault `{word}`: {why}; level core can, and level quic most of them",
                place(text, key)
            );
        }
    }
    let mut scenario = scenario.expanded(seed);
    // Some faults are drawn with others, as slow disks are with a power cut.
    scenario.faults.retain(|fault| missing(fault.kind.word()).is_none());
    let usual = Scenario::new("usual", 1);
    if scenario.fsync != usual.fsync {
        bail!("{}level netns writes to the disk of this machine, which is as fast as it is", place(text, "fsync"));
    }
    if !scenario.drift_ppm.is_empty() {
        bail!("{}level netns has one clock for all members, that of this machine", place(text, "drift-ppm"));
    }
    if scenario.load.churn {
        bail!("{}level netns does not delete and invite members at random", place(text, "churn"));
    }
    if scenario.violates.is_some() {
        bail!("{}level netns breaks no assumption, so nothing has to be violated", place(text, "violates"));
    }
    if let Some(bug) = scenario.planted.filter(|bug| !Planted::POSSIBLE || *bug == Bug::LyingDisk) {
        bail!("{}level netns has no bug {} to plant in this build", place(text, "planted"), bug.name());
    }
    profile(scenario.timing, text)?;
    Ok(scenario)
}

/// Returns the profile that daemons are started with.
///
/// # Errors
/// When the durations are not those of one.
pub(super) fn profile(timing: Timing, text: &str) -> anyhow::Result<Profile> {
    let profiles = [Profile::Local, Profile::Lan, Profile::Wan];
    match profiles.into_iter().find(|profile| profile.timing() == timing) {
        Some(profile) => Ok(profile),
        None => {
            let key = if text.contains("lease") { "lease" } else { "margin" };
            bail!("{}level netns has the durations of the profiles local, lan and wan only", place(text, key))
        }
    }
}

fn missing(word: &str) -> Option<&'static str> {
    MISSING.iter().find(|(kind, _)| *kind == word).map(|(_, why)| *why)
}

/// Returns where a key stands in a text first, as `line:column: `; a blank when the seed drew what it names.
fn place(text: &str, key: &str) -> String {
    let is_it = |line: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    match text.lines().enumerate().find(|(_, line)| is_it(line)) {
        Some((number, line)) => format!("{}:{}: ", number + 1, line.len() - line.trim_start().len() + 1),
        None => " ".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{FORBIDDEN, WORDS};

    fn refused(more: &str) -> String {
        let text = format!("name = \"x\"\nabout = \"y\"\n[mesh]\nmembers = 3\n{more}");
        let scenario = Scenario::parse(&text).expect("sound");
        at_this_level(&scenario, 1, &text).expect_err("not at this level").to_string()
    }

    #[test]
    fn what_this_level_cannot_do_is_told_with_its_place() {
        let full = refused("[[fault]]\nat = \"1s\"\nfor = \"2s\"\ndisk-full = \"m0\"\n");
        assert!(full.starts_with("8:1: level netns cannot do the fault `disk-full`: "), "{full}");
        let torn = refused("[[fault]]\nat = \"1s\"\nfor = \"2s\"\npower = [\"m0\"]\n  disk = \"torn\"\n");
        assert!(torn.starts_with("9:3: level netns cannot do the fault `power-torn`: "), "{torn}");
        assert!(refused("[disk]\nfsync = \"1ms..2ms\"\n").starts_with("6:1: "));
        assert!(refused("[clock]\ndrift-ppm = [1, 2, 3]\n").starts_with("6:1: "));
        assert!(refused("[expect]\nplanted = \"lying-disk\"\n").starts_with("6:1: "));
        assert!(refused("[random]\nkinds = [\"stall\"]\n").starts_with("6:1: "));
    }

    #[test]
    fn a_lease_of_no_profile_is_refused() {
        let text = "name = \"x\"\nabout = \"y\"\n[mesh]\nlease = \"900ms\"\n";
        let scenario = Scenario::parse(text).expect("sound");
        assert!(at_this_level(&scenario, 1, text).expect_err("no profile").to_string().starts_with("4:1: "));
    }

    #[test]
    fn packets_that_are_more_than_dropped_need_a_switch() {
        let between = |more: &str| {
            let text = format!("name = \"x\"\nabout = \"y\"\n[mesh]\nmembers = 3\n{more}");
            between(&Scenario::parse(&text).expect("sound"))
        };
        let fault = |what: &str| format!("[[fault]]\nat = \"1s\"\nfor = \"2s\"\n{what}\n");
        assert_eq!(between("[net]\nloss = \"5%\"\n"), Between::Bridge);
        assert_eq!(between("[net]\ndelay = \"10ms..90ms\"\n"), Between::Ports);
        assert_eq!(between(&fault("jam = [\"m0\", \"m1\"]")), Between::Ports);
        assert_eq!(between(&fault("flap = { member = \"m0\", period = \"1s\" }")), Between::Bridge);
    }

    #[test]
    fn the_random_faults_of_a_seed_are_those_that_this_level_can_do() {
        assert!(MISSING.iter().all(|(word, _)| WORDS.contains(word)), "a word that is none");
        assert!(MISSING.iter().any(|(word, _)| *word == FORBIDDEN));
        let scenario = crate::scenario::find("random").expect("the library has it");
        for seed in 0..50 {
            let expanded = at_this_level(&scenario, seed, "").expect("what cannot be done is not drawn");
            assert!(expanded.faults.iter().all(|fault| missing(fault.kind.word()).is_none()));
        }
    }
}
