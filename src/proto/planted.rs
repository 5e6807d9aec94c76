//! Planted bugs: what the simulator breaks on purpose, to see that its checkers notice.
//!
//! Nothing but the simulator plants anything, and a release build has none of it: there [`Planted::has`] is false before
//! the program is compiled, and what stands behind it is left out. See docs/decisions/0013-planted-bugs.md.

/// Bugs that a core is made to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted(u64);

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $bug:ident = $name:literal),* $(,)?) => {
        /// A safety rule that is switched off, or a mistake of the kind that was made elsewhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[doc = $doc])* $bug),*
        }

        impl Bug {
            /// Every bug.
            pub const ALL: &[Self] = &[$(Self::$bug),*];

            /// Returns the name by which scenarios and the table of the self-test call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name),*
                }
            }

            /// Returns what is broken, in a sentence or two.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$bug => concat!($($doc),*).trim_ascii()),*
                }
            }
        }
    };
}

bugs! {
    /// R1: a voter answers a proposer before its record is durable.
    AnswersBeforeSaved = "R1-durable",
    /// R1: a proposer goes on with its own roster, whatever was accepted before.
    OwnRosterFirst = "R1-own-first",
    /// R1: half of the voters decide an epoch, not more than half.
    HalfDecides = "R1-majority",
    /// R2: a vote is moved as soon as the one before was.
    VotesMoveAtOnce = "R2-wait",
    /// R3: a learner gets its vote before it has anything.
    LearnersVoteAtOnce = "R3-learner",
    /// R4: a voter confirms a claim that another member holds.
    SharedClaims = "R4-exclusive",
    /// R4: a voter takes a second session of a member in place of the first.
    ManySessions = "R4-one-session",
    /// R4: a voter grants who shows an older epoch.
    OldEpochGranted = "R4-old-epoch",
    /// R5: half of the grants are quorum, not more than half.
    HalfIsQuorum = "R5-majority",
    /// R5: a grant is used for T, not for T(1-m).
    NoMargin = "R5-margin",
    /// R5: a grant counts from when its answer came.
    CountedFromAnswer = "R5-sending",
    /// R5: a claim counts before an answer confirmed it.
    UnconfirmedClaims = "R5-claim",
    /// R5: whether a member acts is remembered from when it last looked.
    ActingIsCached = "R5-cached",
    /// R6: a voter grants as soon as it starts.
    NoQuietStart = "R6-quiet-start",
    /// R7: new claims do not wait after other voters were adopted.
    NoSettling = "R7-settling",
    /// R8: a removed member does not care.
    RemovedGoesOn = "R8-removed",
    /// R9: counters that went back are not noticed.
    NoAmnesiaGuard = "R9-amnesia",
    /// R10: every candidate claims at once, and none gives up a claim that no majority confirms.
    NoBackOff = "R10-back-off",
    /// R12: a member has its seat as soon as it has quorum, whatever documents it holds.
    SeatWithoutResync = "R12-resync",
    /// R13: a vote moves although the new majority lacks what the old one acknowledged.
    VotesLeaveWritesBehind = "R13-handover",
    /// A write is acknowledged when one disk has it.
    AckedOnOneDisk = "acked-on-one-disk",
    /// A member says that it holds a change durably when it has received it.
    AckedOnReceipt = "acked-on-receipt",
    /// The majority of a write is one of the members that are linked.
    MajorityOfTheLinked = "majority-of-the-linked",
    /// A write of what is there already is acknowledged, wherever it is.
    UnchangedIsHeld = "unchanged-is-held",
    /// A write that was stored here is refused when quorum is lost.
    StoredButRefused = "stored-but-refused",
    /// Quorum is a majority of the voters that answer: its denominator shrinks by itself.
    ShrinkingQuorum = "shrinking-quorum",
    /// Documents are not compared when a link comes up.
    NoResync = "no-resync",
    /// Changes of authors who were removed since are refused.
    RemovedAuthorsRefused = "removed-authors-refused",
    /// A voter reads requests in whatever order they come.
    RequestsInAnyOrder = "requests-in-any-order",
    /// A raised incarnation is told before it is durable.
    IncarnationTooEarly = "incarnation-too-early",
    /// A decided roster is in force before it is stored.
    RosterNotStored = "roster-not-stored",
    /// An epoch that was accepted is not brought to its end when its proposer is gone.
    AcceptedLeftOpen = "accepted-left-open",
    /// One candidate that nobody knows stops the election of its node.
    BadCandidateStops = "bad-candidate-stops",
    /// A manager that returns gets its nodes back at once, without need.
    NotSticky = "not-sticky",
    /// Who was able to manage once is believed to be able for ever.
    DeadStayAvailable = "dead-stay-available",
    /// Requests that came in while an epoch changed are never answered.
    DeferredForgotten = "deferred-forgotten",
    /// Fencing tokens of a node do not rise.
    TermsUsedAgain = "terms-used-again",
    /// A disk says that something is durable before it is.
    LyingDisk = "lying-disk",
}

impl Planted {
    /// Whether this build can have a bug planted at all.
    pub const POSSIBLE: bool = cfg!(any(debug_assertions, feature = "planted"));

    /// Plants one bug.
    pub const fn one(bug: Bug) -> Self {
        Self(1 << bug as u64)
    }

    /// Returns whether a bug is planted; never in a release build.
    pub const fn has(self, bug: Bug) -> bool {
        Self::POSSIBLE && self.0 & 1 << bug as u64 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planted_is_there_and_nothing_else() {
        for (number, bug) in Bug::ALL.iter().enumerate() {
            assert_eq!(*bug as usize, number);
            assert!(Bug::ALL.iter().all(|other| Planted::one(*bug).has(*other) == (bug == other)));
            assert!(!Planted::default().has(*bug));
            assert!(bug.about().ends_with('.'), "{}", bug.name());
        }
        assert!(Bug::ALL.len() <= 64);
    }
}
