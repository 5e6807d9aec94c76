//! Shrinking: the least of a scenario that still violates the same rule.
//!
//! Every draw is a function of seed, purpose and number, so what is taken out shifts nothing else. First the faults are
//! thinned out (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002), then everything else
//! is made smaller, round by round, until nothing gives way or the time is up.

use std::time::{Duration, Instant};

use crate::check::Rule;
use crate::fault::{Fate, Fault, Kind, MS};
use crate::run::run;
use crate::scenario::Scenario;

/// What shrinking came to.
#[derive(Debug)]
pub(crate) struct Shrunk {
    pub(crate) scenario: Scenario,
    /// How many runs it took.
    pub(crate) runs: usize,
    pub(crate) took: Duration,
    /// Whether there was no time to try everything.
    pub(crate) is_cut_short: bool,
}

struct Shrinker {
    seed: u64,
    rule: Rule,
    until: Instant,
    runs: usize,
}

/// Shrinks a scenario that violates a rule with a seed, for at most that long.
pub(crate) fn shrink(scenario: &Scenario, seed: u64, rule: Rule, budget: Duration) -> Shrunk {
    let began = Instant::now();
    let mut shrinker = Shrinker { seed, rule, until: began + budget, runs: 0 };
    let mut least = scenario.expanded(seed);
    loop {
        let before = least.clone();
        shrinker.end_early(&mut least);
        // What makes runs cheap comes first.
        shrinker.lighten(&mut least);
        shrinker.thin_out(&mut least);
        shrinker.fewer_members(&mut least);
        shrinker.simplify(&mut least);
        shrinker.shorten(&mut least);
        if least == before || shrinker.is_late() {
            break;
        }
    }
    Shrunk { scenario: least, runs: shrinker.runs, took: began.elapsed(), is_cut_short: shrinker.is_late() }
}

impl Shrinker {
    fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Takes a smaller scenario if it still fails in the same way.
    fn takes(&mut self, least: &mut Scenario, smaller: Scenario) -> bool {
        if smaller == *least || self.is_late() {
            return false;
        }
        self.runs += 1;
        let fails = run(&smaller, self.seed, false).first == Some(self.rule);
        if fails {
            *least = smaller;
        }
        fails
    }

    /// Ends load and faults where the violation was.
    fn end_early(&mut self, least: &mut Scenario) {
        self.runs += 1;
        let Some(violated_ms) = run(least, self.seed, false).violated_ms else { return };
        let window_ms = (violated_ms + 1).min(least.window_ms);
        let begun = |fault: &&Fault| fault.at < window_ms * MS;
        let faults = least.faults.iter().filter(begun).cloned().collect();
        let steps = least.steps.iter().filter(|step| step.at_ms <= window_ms).cloned().collect();
        self.takes(least, Scenario { window_ms, faults, steps, ..least.clone() });
    }

    /// Takes out as many faults as possible: halves first, then smaller parts.
    fn thin_out(&mut self, least: &mut Scenario) {
        if self.takes(least, Scenario { faults: Vec::new(), ..least.clone() }) {
            return;
        }
        let mut part = least.faults.len().div_ceil(2);
        while part > 0 && !self.is_late() {
            let mut from = 0;
            while from < least.faults.len() {
                let mut faults = least.faults.clone();
                faults.drain(from..(from + part).min(least.faults.len()));
                if !self.takes(least, Scenario { faults, ..least.clone() }) {
                    from += part;
                }
            }
            part /= 2;
        }
    }

    /// Takes load, drift and whatever else may not be needed away.
    fn lighten(&mut self, least: &mut Scenario) {
        let tries: [fn(&mut Scenario); 9] = [
            |scenario| scenario.load.churn = false,
            |scenario| scenario.load.actions_every_ms = 0,
            |scenario| scenario.load.moves = false,
            |scenario| scenario.load.every_ms = 0,
            |scenario| scenario.steps.clear(),
            |scenario| scenario.drift_ppm = vec![0; scenario.members],
            |scenario| scenario.nodes = 1,
            |scenario| scenario.nodes = scenario.nodes.div_ceil(2),
            |scenario| scenario.seen.clear(),
        ];
        for lighter in tries {
            let mut smaller = least.clone();
            lighter(&mut smaller);
            self.takes(least, smaller);
        }
    }

    /// Puts a plainer fault in the place of each.
    fn simplify(&mut self, least: &mut Scenario) {
        for number in 0..least.faults.len() {
            for kind in plainer(&least.faults[number].kind) {
                let mut smaller = least.clone();
                smaller.faults[number].kind = kind;
                if self.takes(least, smaller) {
                    break;
                }
            }
        }
    }

    /// Halves how long each fault lasts, for as long as it goes.
    fn shorten(&mut self, least: &mut Scenario) {
        for number in 0..least.faults.len() {
            while let Some(until) = least.faults[number].until {
                let length = until - least.faults[number].at;
                let mut smaller = least.clone();
                smaller.faults[number].until = Some(least.faults[number].at + length / 2 / MS * MS);
                if length < 20 * MS || !self.takes(least, smaller) {
                    break;
                }
            }
        }
    }

    /// Leaves the last members out that no fault and no step names.
    fn fewer_members(&mut self, least: &mut Scenario) {
        while least.members == least.joined && least.joined > 1 {
            let members = least.joined - 1;
            let mut smaller = Scenario { members, joined: members, ..least.clone() };
            smaller.drift_ppm.truncate(members);
            // What names a member that is not there any more cannot be read back.
            if Scenario::parse(&smaller.text()).as_ref() != Ok(&smaller) || !self.takes(least, smaller) {
                break;
            }
        }
    }
}

/// Returns faults that do less than this one, in a like way.
fn plainer(kind: &Kind) -> Vec<Kind> {
    match kind {
        Kind::Split(groups) => {
            let single = groups.iter().filter(|group| group.len() == 1).map(|group| Kind::Isolate(group[0]));
            single.collect()
        }
        Kind::Power { members, disk } if members.len() > 1 => {
            let without = |gone: &usize| members.iter().copied().filter(|at| at != gone).collect();
            members.iter().map(|gone| Kind::Power { members: without(gone), disk: *disk }).collect()
        }
        Kind::Power { members, disk: Fate::Clean } => members.iter().map(|at| Kind::Crash(*at)).collect(),
        Kind::Power { members, .. } => vec![Kind::Power { members: members.clone(), disk: Fate::Clean }],
        Kind::Isolate(at) => vec![Kind::Deaf(*at), Kind::Mute(*at)],
        Kind::Flap { member, .. } => vec![Kind::Isolate(*member)],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use collective::proto::planted::Bug;

    use crate::scenario::find;

    /// Two voters forget what they promised while the holder is cut off, in the middle of what does no harm.
    #[test]
    fn a_failure_among_many_faults_shrinks_to_those_that_matter() {
        let fault = |at, length, kind| Fault::new(at, length, kind);
        let mut faults = vec![
            fault(2_000, 6_000, Kind::Isolate(0)),
            fault(2_000, 50, Kind::Crash(1)),
            fault(2_000, 50, Kind::Crash(2)),
        ];
        for at in [100, 500, 900] {
            faults.push(fault(at, 300, Kind::Duplicate(100)));
            faults.push(fault(at, 300, Kind::WallClock { member: 1, by_ms: 5_000 }));
            faults.push(fault(at, 300, Kind::SlowDisk { member: 2, fsync_ms: 20 }));
        }
        for (number, fault) in faults.iter_mut().enumerate() {
            fault.number = number as u64;
        }
        let scenario = Scenario { faults, planted: Some(Bug::NoQuietStart), ..Scenario::new("noise", 3) };
        let (seed, rule) =
            (0..9).find_map(|seed| Some((seed, run(&scenario, seed, false).first?))).expect("a seed that fails");
        let shrunk = shrink(&scenario, seed, rule, Duration::from_secs(30));
        assert_eq!(run(&shrunk.scenario, seed, false).first, Some(rule), "it still fails");
        assert!(shrunk.scenario.faults.len() <= 3, "{:?}", shrunk.scenario.faults);
        assert!(shrunk.scenario.window_ms < scenario.window_ms);
    }

    #[test]
    fn what_is_taken_out_shifts_no_other_fault() {
        let whole = find("random").expect("in the library").expanded(11);
        let mut thinned = whole.clone();
        thinned.faults.remove(0);
        let read = Scenario::parse(&thinned.text()).expect("sound");
        assert_eq!(read.faults[0].number, whole.faults[1].number);
    }
}
