//! The model check: small models of the safety rules, every state that they can reach, and what each rule is good for.
//!
//! A search with all rules on must look at every state within its bounds and find no violation. A search with one rule
//! off must find the shortest way to one: else the rule would do nothing, or the model would not see what it does.

mod epochs;
mod explore;
mod leases;
mod writes;

use epochs::Epochs;
use explore::{Explored, explore};
use leases::{Bounds, Leases, Ticks, Watch};
use writes::Writes;

/// A safety rule, or a part of one, that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// R1: what a voter answers under, it has stored.
    StoredEpoch,
    /// R1: an epoch is in force, and the next one possible, once a majority of its voters has stored it.
    InForce,
    /// R1: an answer about an epoch is given once its record is durable.
    DurableFirst,
    /// R1: a record is there after a restart.
    Remembers,
    /// R1: the record holds what was accepted, not only what was promised.
    KeepsAccepted,
    /// R1: a lower ballot than was promised is refused.
    Promises,
    /// R1: a proposer goes on with what was accepted before.
    AcceptedFirst,
    /// R1: and of that with what has the highest ballot.
    HighestFirst,
    /// R1: more than half of the voters decide.
    PaxosMajority,
    /// R1: a proposer that restarted begins a ballot that it never had.
    UniqueBallots,
    /// R2: the next epoch waits for T.
    Spacing,
    /// R4: a claim that another holder has is not confirmed.
    Exclusive,
    /// R4: one session of a member at a time.
    OneSession,
    /// R4: an older epoch gets no grant.
    OldEpoch,
    /// R5: more than half of the voters.
    Majority,
    /// R5: the answer's epoch is the holder's.
    AnswersOfEpoch,
    /// R5: counted from when it was asked for.
    CountFromSending,
    /// R5: the margin m.
    Margin,
    /// No rule but an assumption: clocks are no more wrong than m covers.
    Drift,
    /// R5, R10: answers to a claim that was given up count for nothing.
    LateAnswers,
    /// R6: a voter grants nothing for T after its start.
    QuietStart,
    /// R7: new claims wait for T after a voter adopted an epoch.
    Settling,
    /// R13: a majority of the next voters holds what a majority of the present ones held.
    Handover,
    /// R13: which is read once R2's wait is over.
    ReadAfterWait,
}

/// A search: within which bounds, and without which rules.
#[derive(Clone, Copy, Debug)]
struct Check {
    name: &'static str,
    /// One sentence.
    about: &'static str,
    subject: Subject,
}

#[derive(Clone, Copy, Debug)]
enum Subject {
    Leases(Leases),
    Epochs(epochs::Bounds, &'static [Rule]),
    Writes(Writes),
}

impl Subject {
    const fn model(self) -> &'static str {
        match self {
            Self::Leases(_) => "leases",
            Self::Epochs(..) => "epochs",
            Self::Writes(_) => "writes",
        }
    }
}

impl Check {
    const fn leases(name: &'static str, about: &'static str, bounds: Bounds, without: &'static [Rule]) -> Self {
        Self { name, about, subject: Subject::Leases(Leases::new(bounds, without)) }
    }

    const fn epochs(name: &'static str, about: &'static str, bounds: epochs::Bounds, without: &'static [Rule]) -> Self {
        Self { name, about, subject: Subject::Epochs(bounds, without) }
    }

    const fn writes(name: &'static str, about: &'static str, rosters: &'static [u8], without: &'static [Rule]) -> Self {
        Self { name, about, subject: Subject::Writes(Writes::new(rosters, without)) }
    }

    fn explore(&self) -> Explored {
        match self.subject {
            Subject::Leases(model) => explore(&model, STATES_MAX),
            Subject::Epochs(bounds, without) => explore(&Epochs::new(bounds, without), STATES_MAX),
            Subject::Writes(model) => explore(&model, STATES_MAX),
        }
    }
}

/// No search within the bounds below comes near it.
const STATES_MAX: usize = 20_000_000;

const GROW: &[u8] = &[0b00111, 0b01111, 0b11111];
const REPLACE: &[u8] = &[0b00111, 0b01111, 0b01110];
const FOUND: &[u8] = &[0b00001, 0b00011, 0b00111];
const DISSOLVE: &[u8] = &[0b00111, 0b00011, 0b00001];
const SHRINK: &[u8] = &[0b00111, 0b00110, 0b01110];
/// Three voters become five others, and three of those in the end.
const WANDER: &[u8] = &[0b00111, 0b01111, 0b11111, 0b11110, 0b11100];
const COME_AND_GO: &[u8] = &[0b00001, 0b00011, 0b00111, 0b00110, 0b01110, 0b01100];

const EPOCHS: Bounds = Bounds {
    rosters: GROW,
    watch: Watch::Claims,
    restarts: 1,
    under_way: 0,
    releases: 0,
    twins: false,
    ticks: Ticks::COARSE,
};
const QUORUMS: Bounds = Bounds { watch: Watch::Quorums, ..EPOCHS };
const MESSAGES: Bounds = Bounds { rosters: &[0b111], under_way: 2, ..EPOCHS };
const FINE: Bounds = Bounds { ticks: Ticks::FINE, ..MESSAGES };
const RELEASES: Bounds = Bounds { releases: 1, ..MESSAGES };

const RIVALS: epochs::Bounds = epochs::Bounds { acceptors: 3, proposers: 2, rounds: 2, saving: 0, crashes: 0 };
const THREE: epochs::Bounds = epochs::Bounds { proposers: 3, rounds: 1, ..RIVALS };
const FOUR: epochs::Bounds = epochs::Bounds { acceptors: 4, ..RIVALS };
const CRASHES: epochs::Bounds = epochs::Bounds { rounds: 1, saving: 2, crashes: 2, ..RIVALS };

/// The searches with every rule on.
const CHECKS: &[Check] = &[
    Check::leases("grow", "Claims of two holders while three voters become four, then five.", EPOCHS, &[]),
    Check::leases(
        "replace",
        "Claims while a voter is added, then another one removed.",
        Bounds { rosters: REPLACE, ..EPOCHS },
        &[],
    ),
    Check::leases(
        "shrink",
        "Claims while a voter is removed, then another one added.",
        Bounds { rosters: SHRINK, ..EPOCHS },
        &[],
    ),
    Check::leases("quorums-grow", "Quorum while three voters become four, then five.", QUORUMS, &[]),
    Check::leases(
        "quorums-replace",
        "Quorum while a voter is added, then another one removed.",
        Bounds { rosters: REPLACE, ..QUORUMS },
        &[],
    ),
    Check::leases(
        "quorums-shrink",
        "Quorum while a voter is removed, then another one added.",
        Bounds { rosters: SHRINK, ..QUORUMS },
        &[],
    ),
    Check::leases("quorums-found", "Quorum while one voter becomes three.", Bounds { rosters: FOUND, ..QUORUMS }, &[]),
    Check::leases(
        "quorums-dissolve",
        "Quorum while three voters become one.",
        Bounds { rosters: DISSOLVE, ..QUORUMS },
        &[],
    ),
    Check::leases("messages", "Claims with requests and answers that are late, lost, copied and overtaken.", FINE, &[]),
    Check::leases("releases", "The same, while a holder gives the node up and wants it again.", RELEASES, &[]),
    Check::leases(
        "twins",
        "Two sessions of one member, as of a cloned machine.",
        Bounds { twins: true, ..RELEASES },
        &[],
    ),
    Check::leases(
        "hasty-epochs",
        "R7 alone: claims while epochs follow one another without R2's wait.",
        EPOCHS,
        &[Rule::Spacing],
    ),
    Check::epochs("rivals", "Two proposers with two ballots each and three voters.", RIVALS, &[]),
    Check::epochs("three-rivals", "Three proposers and three voters.", THREE, &[]),
    Check::epochs("four-voters", "Two proposers with two ballots each and four voters.", FOUR, &[]),
    Check::epochs("crashes", "Two proposers and three voters whose disks are slow, and who crash.", CRASHES, &[]),
    Check::writes("wander", "A write while three voters become five, then three others.", WANDER, &[]),
    Check::writes("come-and-go", "A write while voters are added and removed in turn.", COME_AND_GO, &[]),
];

/// The searches with a rule off.
const ABLATIONS: &[Check] = &[
    Check::epochs("R1-durable", "A voter answers before its record is durable.", CRASHES, &[Rule::DurableFirst]),
    Check::epochs("R1-remembers", "A voter that crashed has an empty record.", CRASHES, &[Rule::Remembers]),
    Check::epochs("R1-accepted", "A voter that crashed knows only what it promised.", CRASHES, &[Rule::KeepsAccepted]),
    Check::epochs("R1-promises", "A voter takes lower ballots than it promised.", RIVALS, &[Rule::Promises]),
    Check::epochs("R1-own-first", "A proposer ignores what was accepted before.", RIVALS, &[Rule::AcceptedFirst]),
    Check::epochs(
        "R1-highest",
        "A proposer goes on with the lowest ballot it hears of.",
        RIVALS,
        &[Rule::HighestFirst],
    ),
    Check::epochs("R1-majority", "Half of the voters decide.", FOUR, &[Rule::PaxosMajority]),
    Check::epochs("R1-ballots", "A proposer that restarted uses a ballot again.", CRASHES, &[Rule::UniqueBallots]),
    Check::leases("R1-stored", "A voter answers under an epoch that it has not stored.", QUORUMS, &[Rule::StoredEpoch]),
    Check::leases("R1-in-force", "The next epoch does not wait for this one to be stored.", QUORUMS, &[Rule::InForce]),
    Check::leases(
        "R2-one-at-a-time",
        "Two voters are added at once.",
        Bounds { rosters: &[0b00111, 0b11111], ..QUORUMS },
        &[],
    ),
    Check::leases("R2-wait", "The next epoch does not wait for older grants to expire.", QUORUMS, &[Rule::Spacing]),
    Check::leases("R4-exclusive", "A voter confirms a claim that another holder has.", MESSAGES, &[Rule::Exclusive]),
    Check::leases(
        "R4-one-session",
        "A voter takes a second session of a member in place of the first.",
        Bounds { twins: true, ..MESSAGES },
        &[Rule::OneSession],
    ),
    Check::leases("R4-old-epoch", "A voter grants who shows an older epoch.", QUORUMS, &[Rule::OldEpoch]),
    Check::leases(
        "R5-majority",
        "Half of the voters is enough.",
        Bounds { rosters: &[0b1111], ..MESSAGES },
        &[Rule::Majority],
    ),
    Check::leases("R5-epoch", "Answers of an older epoch go on to count.", QUORUMS, &[Rule::AnswersOfEpoch]),
    Check::leases("R5-sending", "An answer counts from when it came.", MESSAGES, &[Rule::CountFromSending]),
    Check::leases("R5-margin", "A holder uses T, not T(1-m).", FINE, &[Rule::Margin]),
    Check::leases("R5-drift", "Clocks are twice as wrong as the margin covers.", FINE, &[Rule::Drift]),
    Check::leases("R5-late", "Answers to a claim that was given up count.", RELEASES, &[Rule::LateAnswers]),
    Check::leases("R6-quiet-start", "A voter grants as soon as it starts.", MESSAGES, &[Rule::QuietStart]),
    Check::leases(
        "R7-settling",
        "New claims do not wait after an epoch was adopted; R2's wait is off in both.",
        EPOCHS,
        &[Rule::Settling, Rule::Spacing],
    ),
    Check::writes("R13-handover", "A vote moves whatever the next voters hold.", WANDER, &[Rule::Handover]),
    Check::writes("R13-after-wait", "The voters are read before R2's wait is over.", WANDER, &[Rule::ReadAfterWait]),
];

/// Returns how many of that many voters are more than half.
const fn majority(voters: u32) -> u32 {
    voters / 2 + 1
}

/// Runs the searches of one model or of all, or those without a rule, and prints what they find; returns the exit code.
///
/// `without` is the number of a rule (`R5`) or the name of one of its parts (`R5-margin`).
///
/// # Errors
/// There is no search of that name.
pub(crate) fn run(model: Option<&str>, without: Option<&str>) -> anyhow::Result<u8> {
    let is_asked = |check: &&Check| {
        let is_of_rule = |rule: &str| check.name == rule || check.name.split('-').next() == Some(rule);
        model.is_none_or(|model| check.subject.model() == model) && without.is_none_or(is_of_rule)
    };
    let (checks, is_off) = if without.is_some() { (ABLATIONS, true) } else { (CHECKS, false) };
    let mut checks = checks.iter().filter(is_asked).peekable();
    anyhow::ensure!(checks.peek().is_some(), "there is no such model or rule; the rules are {}", rules().join(", "));
    let mut exit = 0;
    for check in checks {
        let explored = check.explore();
        println!("{:18} {}", check.name, check.about);
        println!("{:18} {}", "", explored);
        match &explored.counterexample {
            Some(counterexample) => println!("{counterexample}"),
            None if is_off => println!("{:18} NO COUNTEREXAMPLE", ""),
            None => {}
        }
        let is_expected = explored.counterexample.is_some() == is_off && (is_off || explored.is_complete);
        if !is_expected {
            exit = crate::check::Rule::OneManager.exit();
        }
    }
    Ok(exit)
}

/// Returns what can be switched off.
fn rules() -> Vec<&'static str> {
    ABLATIONS.iter().map(|check| check.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_every_rule_on_every_state_is_looked_at_and_nothing_is_violated() {
        for check in CHECKS {
            let explored = check.explore();
            println!("{}: {explored}", check.name);
            assert_eq!(explored.counterexample, None, "{}", check.name);
            assert!(explored.is_complete && explored.states > 1_000, "{}: {explored}", check.name);
        }
    }

    #[test]
    fn each_rule_that_is_off_lets_something_be_violated() {
        for check in ABLATIONS {
            let counterexample = check.explore().counterexample;
            let counterexample = counterexample.unwrap_or_else(|| panic!("{} does nothing", check.name));
            assert!(counterexample.steps.len() >= 2, "{}: {counterexample}", check.name);
        }
        for rule in ["R1", "R2", "R4", "R5", "R6", "R7", "R13"] {
            assert!(rules().iter().any(|name| name.starts_with(rule)), "{rule} is never off");
        }
    }
}
