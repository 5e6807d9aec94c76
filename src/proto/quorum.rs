//! Quorum: a strict majority of the roster's voters, as their grants show it.

use std::collections::BTreeSet;

/// Returns how many of that many voters are a majority: more than half.
///
/// Half is not enough: two halves of a split collective would both have it.
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many voters granted, of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// Voters whose grant has not expired.
    pub granted: usize,
    /// Voters on the roster.
    pub voters: usize,
}

impl Quorum {
    /// Returns how many grants are needed.
    pub const fn needed(self) -> usize {
        majority(self.voters)
    }

    /// Returns whether more than half of the voters granted.
    pub const fn is_held(self) -> bool {
        self.granted >= self.needed()
    }

    /// Returns how many more of the voters that granted may be lost before quorum is; zero also when it is not held.
    pub const fn failure_tolerance(self) -> usize {
        self.granted.saturating_sub(self.needed())
    }

    /// Returns the quorum that would be left if those members were lost.
    ///
    /// `voters` are the roster's, `live` the members that answer now. Members that are no voter change nothing, and
    /// the lost ones still count as voters: the roster never shrinks by itself.
    pub fn what_if<Id: Ord>(voters: &BTreeSet<Id>, live: &BTreeSet<Id>, lost: &BTreeSet<Id>) -> Self {
        let granted = voters.iter().filter(|id| live.contains(id) && !lost.contains(id)).count();
        Self { granted, voters: voters.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `name=(a b c)` from a line of the table.
    fn set<'a>(line: &'a str, name: &str) -> BTreeSet<&'a str> {
        let (_, rest) = line.split_once(&format!("{name}=(")).unwrap_or_else(|| panic!("no {name} in {line:?}"));
        let (members, _) = rest.split_once(')').unwrap_or_else(|| panic!("{name} is not closed in {line:?}"));
        members.split_whitespace().collect()
    }

    fn describe(quorum: Quorum) -> String {
        let held = if quorum.is_held() { "held" } else { "lost" };
        let (granted, voters, needed) = (quorum.granted, quorum.voters, quorum.needed());
        format!("{granted} of {voters}, {needed} needed: {held}, tolerates {}", quorum.failure_tolerance())
    }

    #[test]
    fn the_table_of_quorums_holds() {
        let table = include_str!("testdata/quorum.txt");
        let mut rows = 0;
        for row in table.split("\n\n").filter(|row| row.contains("\n----\n")) {
            let (question, answer) = row.split_once("\n----\n").expect("filtered for it");
            let question = question.lines().last().expect("a question before the dashes");
            let quorum = Quorum::what_if(&set(question, "voters"), &set(question, "live"), &set(question, "without"));
            assert_eq!(describe(quorum), answer.trim_end(), "{question}");
            rows += 1;
        }
        assert_eq!(rows, table.matches("----").count(), "every row was read");
        assert!(rows >= 15, "the table is there");
    }

    #[test]
    fn two_majorities_of_neighbouring_voter_sets_meet() {
        // R2 stands on it: whoever asks a majority of either set asks a voter of both.
        for voters in 1..50 {
            assert!(majority(voters) + majority(voters + 1) > voters + 1);
            assert!(majority(voters) * 2 > voters);
        }
    }
}
