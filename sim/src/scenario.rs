//! Scenarios: what is run, as TOML texts say it; the library of named ones is such texts, too.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use collective::proto::planted::Bug;
use collective::proto::roster::Timing;

use crate::check::Rule;
use crate::fault::{FORBIDDEN, Fault, WORDS, plan};
use crate::mix::Mix;
use crate::step::{Bound, Step};

mod faults;
mod parse;
mod reader;
mod steps;
pub(crate) mod units;
mod write;

pub(crate) use parse::scenario as top;
pub(crate) use reader::{Mistake, read};

/// One scenario.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// One sentence.
    pub(crate) about: String,
    /// Sites, and how many of them join before anything breaks.
    pub(crate) members: usize,
    pub(crate) joined: usize,
    pub(crate) nodes: usize,
    /// Who may manage the nodes, a list for each node in turn; three of all for each when there is none.
    pub(crate) candidates: Vec<Vec<usize>>,
    /// Pairs of members between whom there is no way, ever.
    pub(crate) unlinked: Vec<(usize, usize)>,
    /// Whether all start as members from what is on their disks, and how many of them then vote.
    pub(crate) restored: Option<usize>,
    pub(crate) timing: Timing,
    pub(crate) network: Usual,
    /// How long an fsync takes, at least and at most, in nanoseconds.
    pub(crate) fsync: (u64, u64),
    /// By how much each boot clock is fast, in millionths; drawn where it is not said.
    pub(crate) drift_ppm: Vec<i64>,
    pub(crate) faults: Vec<Fault>,
    /// What the seed draws besides, if anything.
    pub(crate) random: Option<Random>,
    /// How long faults and load last, in true milliseconds.
    pub(crate) window_ms: u64,
    /// How long it may take afterwards until everything is equal.
    pub(crate) converge_ms: u64,
    pub(crate) load: Load,
    pub(crate) steps: Vec<Step>,
    /// How often each thing must have been seen in the end.
    pub(crate) seen: Vec<(String, Bound)>,
    /// The rule that must be violated, where an assumption is broken on purpose.
    pub(crate) violates: Option<Rule>,
    /// A bug that is planted, to see that the checkers notice.
    pub(crate) planted: Option<Bug>,
}

/// What the network does when nothing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usual {
    /// How long a packet takes, at least and at most, in nanoseconds.
    pub(crate) delay: (u64, u64),
    /// How many of a thousand datagrams are lost.
    pub(crate) loss: u64,
}

/// What administrators ask while things break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// The mean time between two requests; none when zero.
    pub(crate) every_ms: u64,
    /// Whether nodes are moved and members drained, besides writes.
    pub(crate) moves: bool,
    /// Whether members are deleted, leave and change their roles, and are invited again.
    pub(crate) churn: bool,
    /// The mean time between two actions on nodes; none when zero.
    pub(crate) actions_every_ms: u64,
}

/// What a seed draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Random {
    /// The kinds of faults, of [`WORDS`].
    pub(crate) kinds: Vec<&'static str>,
    /// How many a minute, at least and at most.
    pub(crate) count: (u64, u64),
    /// Whether each seed draws from its own subset of the kinds.
    pub(crate) swarm: bool,
    /// Whether in a third of the runs something stays broken.
    pub(crate) forever: bool,
    /// Whether in half of the runs in which everything heals members come and go.
    pub(crate) churn: bool,
}

impl Default for Random {
    fn default() -> Self {
        let kinds = WORDS.into_iter().filter(|word| *word != FORBIDDEN).collect();
        Self { kinds, count: (3, 12), swarm: true, forever: true, churn: true }
    }
}

impl Scenario {
    /// Makes a scenario in which nothing breaks.
    pub(crate) fn new(name: &str, members: usize) -> Self {
        Self {
            name: name.to_owned(),
            about: String::new(),
            members,
            joined: members,
            nodes: 6,
            candidates: Vec::new(),
            unlinked: Vec::new(),
            restored: None,
            timing: Timing::LAN,
            network: Usual { delay: (300_000, 6_000_000), loss: 0 },
            fsync: (200_000, 8_000_000),
            drift_ppm: Vec::new(),
            faults: Vec::new(),
            random: None,
            window_ms: 20_000,
            converge_ms: 30_000,
            load: Load { every_ms: 400, moves: false, churn: false, actions_every_ms: 0 },
            steps: Vec::new(),
            seen: Vec::new(),
            violates: None,
            planted: None,
        }
    }

    /// Reads a scenario from its text.
    pub(crate) fn parse(text: &str) -> Result<Self, Mistake> {
        read(text, parse::scenario)
    }

    /// Writes a scenario so that [`Self::parse`] reads the same.
    pub(crate) fn text(&self) -> String {
        write::scenario(self)
    }

    /// Returns who may manage the node of that number.
    pub(crate) fn candidates_of(&self, node: usize) -> Vec<usize> {
        match self.candidates.len() {
            0 => (0..self.joined.min(3)).map(|k| (node + k) % self.joined).collect(),
            lists => self.candidates[node % lists].clone(),
        }
    }

    /// Returns the same scenario with everything that the seed draws written out.
    pub(crate) fn expanded(&self, seed: u64) -> Self {
        let Some(random) = &self.random else { return self.clone() };
        let mut expanded = Self { random: None, ..self.clone() };
        let first = expanded.faults.len() as u64;
        let drawn = plan(Mix::new(seed), self.joined, self.window_ms, random);
        // A cloned identity needs a machine to run on.
        let is_clone = |fault: &Fault| matches!(fault.kind, crate::fault::Kind::Clone { .. });
        if drawn.iter().any(is_clone) {
            expanded.members = expanded.members.max(self.joined + 1);
        }
        expanded.faults.extend(drawn.into_iter().map(|fault| Fault { number: first + fault.number, ..fault }));
        let heals = expanded.faults.iter().all(|fault| fault.until.is_some());
        // Who may be out of the roster for a while cannot be counted on when disks are lost besides.
        let remembers = expanded.faults.iter().all(|fault| fault.kind.forgets().is_empty());
        expanded.load.churn |= random.churn && heals && remembers && seed % 2 == 1;
        expanded
    }
}

macro_rules! library {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../scenarios/", $name, ".toml")))),*]
    };
}

/// The library: each name with its text, in the order in which they are listed.
const LIBRARY: &[(&str, &str)] = &library![
    "random",
    "healthy-three",
    "split-minority",
    "leader-killed",
    "follower-restarts",
    "bad-candidate",
    "delete-in-minority",
    "joiner-dies",
    "manager-returns",
    "fail-back",
    "elastic-voters",
    "crash-of-hundred",
    "crowd-mends",
    "elastic-crowd",
    "bridge",
    "ring",
    "one-way",
    "link-cut",
    "way-back",
    "topology-flat",
    "topology-hierarchical",
    "topology-redundant-hierarchy",
    "topology-segmented",
    "deaf-forever",
    "flapping",
    "jam",
    "votes-and-writes",
    "rough-network",
    "narrow-lines",
    "mtu-black-hole",
    "cold-start",
    "clean-stop",
    "pause",
    "slow-cpu",
    "wall-clock",
    "vm-freeze",
    "slow-disks",
    "torn-write",
    "disk-full",
    "fsync-error",
    "disk-lost",
    "old-snapshot",
    "backup-restored",
    "cloned-identity",
    "key-rotation",
    "join-crash",
    "actions-under-split",
    "lost-confirmation",
    "said-again",
    "decided-unheard",
];

/// Returns every scenario of the library, with its text.
pub(crate) fn all() -> anyhow::Result<Vec<(Scenario, &'static str)>> {
    let parse = |(name, text): &(&str, &'static str)| {
        let scenario = Scenario::parse(text).map_err(|mistake| anyhow!("scenario {name}: {mistake}"))?;
        Ok((scenario, *text))
    };
    LIBRARY.iter().map(parse).collect()
}

/// Scenarios that take a minute or more, and are run by hand.
#[cfg(test)]
const LONG: [&str; 1] = ["elastic-crowd"];

/// Returns the scenarios of the library that the tests run.
#[cfg(test)]
pub(crate) fn short() -> Vec<Scenario> {
    let all = all().expect("the library is sound").into_iter().map(|(scenario, _)| scenario);
    all.filter(|scenario| !LONG.contains(&scenario.name.as_str())).collect()
}

/// Returns a scenario by its name in the library, or reads it from a file.
///
/// # Errors
/// When there is neither, or the file has a mistake, with its place.
pub(crate) fn find(named: &str) -> anyhow::Result<Scenario> {
    if let Some((_, text)) = LIBRARY.iter().find(|(name, _)| *name == named) {
        return Scenario::parse(text).map_err(|mistake| anyhow!("scenario {named}: {mistake}"));
    }
    if !Path::new(named).exists() {
        let like = LIBRARY.iter().map(|(name, _)| *name).min_by_key(|name| reader::distance(name, named));
        let like = like.filter(|name| reader::distance(name, named) <= named.len() / 2);
        let hint = like.map_or_else(String::new, |name| format!("; did you mean {name}?"));
        bail!("there is no scenario and no file {named}{hint} `collective-sim list` names the scenarios");
    }
    let text = std::fs::read_to_string(named).with_context(|| format!("cannot read {named}"))?;
    Scenario::parse(&text).map_err(|mistake| anyhow!("{named}:{mistake}"))
}

/// Returns the text of a scenario of the library.
pub(crate) fn text_of(named: &str) -> Option<&'static str> {
    LIBRARY.iter().find(|(name, _)| *name == named).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::run;

    #[test]
    fn every_scenario_is_clean() {
        for scenario in short() {
            let report = run(&scenario, 2, false);
            assert_eq!(report.violations, Vec::<String>::new(), "{}", scenario.name);
        }
    }

    #[test]
    fn every_kind_of_fault_has_a_scenario_of_its_own() {
        let library = all().expect("the library is sound");
        let faults = library.iter().flat_map(|(scenario, _)| &scenario.faults);
        let shown: std::collections::BTreeSet<_> = faults.map(|fault| fault.kind.word()).collect();
        let missing: Vec<_> = WORDS.into_iter().filter(|word| !shown.contains(word)).collect();
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn every_file_is_in_the_library_under_its_name() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).expect("a directory");
        let mut names: Vec<_> = files
            .filter_map(|file| file.ok()?.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
            .collect();
        names.sort_unstable();
        let mut listed: Vec<_> = all().expect("sound").into_iter().map(|(scenario, _)| scenario.name).collect();
        listed.sort_unstable();
        assert_eq!(listed, names);
        assert!(LIBRARY.iter().all(|(name, _)| listed.iter().any(|listed| listed == name)));
    }

    #[test]
    fn an_unknown_name_is_told_with_the_nearest_one() {
        let told = find("split-minorty").expect_err("no such scenario").to_string();
        assert!(told.contains("did you mean split-minority?"), "{told}");
    }

    fn first_violation(scenario: &Scenario, seeds: u64) -> Option<Rule> {
        (0..seeds).find_map(|seed| run(scenario, seed, false).first)
    }

    fn three(faults: &str) -> Scenario {
        let head = "name = \"x\"\nabout = \"y\"\n[mesh]\nmembers = 3\n[workload]\nevery = \"0s\"\n";
        Scenario::parse(&format!("{head}{faults}")).expect("sound")
    }

    /// Two voters restart while the holder of a node is cut off: what they promised it, they have forgotten.
    const FORGETFUL: &str = "[[fault]]\nat = \"2s\"\nfor = \"6s\"\nisolate = \"m0\"\n\
        [[fault]]\nat = \"2s\"\nfor = \"50ms\"\ncrash = \"m1\"\n\
        [[fault]]\nat = \"2s\"\nfor = \"50ms\"\ncrash = \"m2\"\n";

    #[test]
    fn voters_that_grant_right_after_a_restart_are_caught() {
        assert_eq!(first_violation(&three(FORGETFUL), 3), None, "the quiet start (R6) keeps the two sides apart");
        let planted = Scenario { planted: Some(Bug::NoQuietStart), ..three(FORGETFUL) };
        assert_eq!(first_violation(&planted, 3), Some(Rule::OneManager));
    }

    #[test]
    fn a_disk_that_lies_about_durability_is_caught() {
        let slow = |at| {
            format!("[[fault]]\nat = \"1s\"\nfor = \"3s\"\nslow-disk = {{ member = \"m{at}\", fsync = \"1.5s\" }}\n")
        };
        let power = "[[fault]]\nat = \"3.5s\"\nfor = \"500ms\"\npower = \"all\"\n";
        let mut honest = three(&format!("{}{}{}{power}", slow(0), slow(1), slow(2)));
        honest.load.every_ms = 100;
        assert_eq!(first_violation(&honest, 2), None);
        let planted = Scenario { planted: Some(Bug::LyingDisk), ..honest };
        assert_eq!(first_violation(&planted, 2).map(Rule::exit), Some(2), "a broken promise, or a lost write");
    }

    #[test]
    fn a_clock_that_stands_still_is_caught() {
        let frozen = three("[[fault]]\nat = \"2s\"\nfor = \"6s\"\nfreeze = \"m0\"\n");
        assert_eq!(first_violation(&frozen, 3), Some(Rule::OneManager));
    }

    #[test]
    fn a_margin_that_is_smaller_than_the_drift_is_caught() {
        let sound = three("[[fault]]\nat = \"2s\"\nfor = \"6s\"\nisolate = \"m0\"\n");
        assert_eq!(first_violation(&sound, 4), None);
        let timing = Timing { margin_permille: 0, ..sound.timing };
        assert_eq!(first_violation(&Scenario { timing, ..sound }, 40), Some(Rule::OneManager));
    }
}
