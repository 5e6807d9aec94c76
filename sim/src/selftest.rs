//! Are the checkers alive? Each is fed what it must let pass, and what it must not.

use std::collections::BTreeSet;

use collective::proto::identity::{InviteId, MemberId, RosterHash};
use collective::proto::roster::{Timing, Version};

use crate::check::{Authority, Checker, Final, Rule, unconverged};

/// One trial of a checker.
struct Trial {
    rule: Rule,
    /// What is wrong in it.
    about: &'static str,
    feed: fn(&mut Checker, Feed),
}

/// Whether a checker is fed something sound or something broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Feed {
    Sound,
    Broken,
}

const VERSION: Version = Version { generation: 0, epoch: 4 };
/// T(1-m) of the usual durations, in nanoseconds.
const USABLE: u64 = 1_900_000_000;

fn ids(numbers: std::ops::Range<u8>) -> BTreeSet<MemberId> {
    numbers.map(|number| MemberId([number; 16])).collect()
}

/// Returns the sound thing or the broken one.
fn either<T>(feed: Feed, sound: T, broken: T) -> T {
    if feed == Feed::Sound { sound } else { broken }
}

const TRIALS: [Trial; 9] = [
    Trial {
        rule: Rule::OneManager,
        about: "two members act for one node",
        feed: |checker, feed| checker.acting(1, "n1", either(feed, &[1], &[1, 2])),
    },
    Trial {
        rule: Rule::OneRoster,
        about: "two rosters of one version",
        feed: |checker, feed| {
            checker.roster(1, 0, VERSION, RosterHash([1; 32]));
            checker.roster(2, 1, VERSION, RosterHash(either(feed, [1; 32], [2; 32])));
        },
    },
    Trial {
        rule: Rule::OneRoster,
        about: "two members hold quorum under voters whose majorities need not meet",
        feed: |checker, feed| {
            let (mine, theirs) = (ids(0..3), either(feed, ids(0..4), ids(3..6)));
            checker.quorums(1, &[(0, &mine), (1, &theirs)]);
        },
    },
    Trial {
        rule: Rule::NothingLost,
        about: "a write is acknowledged with too few copies",
        feed: |checker, feed| checker.acknowledged(1, "w1", either(feed, 3, 2), 5),
    },
    Trial {
        rule: Rule::LockDown,
        about: "a member acts when its grants are over",
        feed: |checker, feed| {
            let voters = ids(0..3);
            let who = Authority { member: 0, me: MemberId([0; 16]), voters: &voters, timing: Timing::LAN };
            checker.contact(0, MemberId([1; 16]), 5);
            checker.authority(1, who, either(feed, USABLE, USABLE + 5), "acts");
        },
    },
    Trial {
        rule: Rule::Once,
        about: "an invitation lets two in",
        feed: |checker, feed| {
            checker.consumed(1, InviteId([1; 8]), MemberId([1; 16]));
            checker.consumed(2, InviteId([1; 8]), MemberId(either(feed, [1; 16], [2; 16])));
        },
    },
    Trial {
        rule: Rule::Once,
        about: "a removed member goes on acting",
        feed: |checker, feed| {
            checker.members(1, VERSION, ids(0..3));
            checker.members(2, VERSION.next(), either(feed, ids(0..3), ids(0..2)));
            checker.acts_as(10_000_000_000, 2, MemberId([2; 16]), Timing::LAN);
        },
    },
    Trial {
        rule: Rule::Incarnation,
        about: "an incarnation is told before it is durable",
        feed: |checker, feed| checker.incarnation(1, 0, 4, either(feed, 4, 3), true),
    },
    Trial {
        rule: Rule::Convergence,
        about: "documents differ in the end",
        feed: |checker, feed| {
            let member = |member, root| Final { member, roster: (VERSION, RosterHash([1; 32])), root, seated: true };
            let ends = [member(0, [1; 8]), member(1, either(feed, [1; 8], [2; 8]))];
            if let Some(what) = unconverged(&ends, &[("n1".to_owned(), vec![1])]) {
                checker.violate(1, Rule::Convergence, what);
            }
        },
    },
];

/// Runs all trials, tells what came of each, and returns the exit code.
pub(crate) fn run() -> u8 {
    let mut exit = 0;
    for Trial { rule, about, feed } in TRIALS {
        let violated = |how| {
            let mut checker = Checker::default();
            feed(&mut checker, how);
            checker.violations.iter().map(|violation| violation.rule).collect::<Vec<_>>()
        };
        let is_alive = violated(Feed::Sound).is_empty() && violated(Feed::Broken) == [rule];
        println!("{:8} {rule:18} {about}", if is_alive { "caught" } else { "MISSED" });
        if !is_alive {
            exit = rule.exit();
        }
    }
    exit
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_checker_is_alive() {
        assert_eq!(super::run(), 0);
    }
}
