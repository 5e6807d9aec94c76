//! The elastic voter set: which one vote is given or taken next, from how many there shall be and who is there.
//!
//! It only ever names one step; R1 to R3 decide whether and when that step is taken. The number of voters is quorum's
//! denominator, so it never shrinks because somebody is silent: a dead voter keeps its place until a live volunteer has
//! taken another (`replace_after`), or until fewer voters are wanted.

use std::time::Duration;

use super::identity::MemberId;
use super::quorum::majority;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// How many voters there shall be; 0 is everyone who was not invited as nonvoting.
    pub ideal: usize,
    /// How long a voter must have been dead before a live volunteer takes its place; never without.
    pub replace_after: Option<Duration>,
}

/// One member that has a vote or may get one. Who was invited as nonvoting is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its enrolment.
    pub id: MemberId,
    /// What it has.
    pub place: Place,
    /// How long it has been dead; none while it is there.
    pub dead_for: Option<Duration>,
    /// Whether it may be given a vote, or keep one.
    pub volunteers: bool,
    /// Whether its vote is not for this to take: a witness, or whoever takes the step.
    pub is_fixed: bool,
}

/// What a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A vote.
    Voter,
    /// A vote once it has caught up (R3).
    Learner {
        /// Whether it has.
        is_ready: bool,
    },
    /// No vote, for enough others have one.
    Bench,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Gives a learner its vote.
    Promote(MemberId),
    /// Makes a member on the bench a learner.
    Nominate(MemberId),
    /// Takes a vote, or the prospect of one, away: the member goes to the bench.
    Bench(MemberId),
}

/// Returns the next step towards what is wished; none when it is so, or when nothing can be done now.
///
/// `seats` are in the order in which votes are given; they are taken in the reverse order.
pub fn next(wish: Wish, seats: &[Seat]) -> Option<Step> {
    let voters: Vec<_> = seats.iter().filter(|seat| seat.place == Place::Voter).collect();
    let learners = || seats.iter().filter(|seat| matches!(seat.place, Place::Learner { .. }));
    let ready = || learners().find(|seat| seat.place == Place::Learner { is_ready: true });
    let spare = || seats.iter().find(|seat| seat.place == Place::Bench && seat.volunteers && seat.dead_for.is_none());
    if wish.ideal == 0 {
        return match ready() {
            Some(learner) => Some(Step::Promote(learner.id)),
            None if learners().next().is_some() => None,
            None => spare().map(|seat| Step::Nominate(seat.id)),
        };
    }
    let can_go = |seat: &Seat| !seat.is_fixed && keeps_quorum(&voters, seat.id);
    let unwilling = voters.iter().find(|seat| !seat.volunteers && can_go(seat));
    if let Some(seat) = unwilling {
        return Some(Step::Bench(seat.id));
    }
    let lost = |seat: &&&Seat| wish.replace_after.is_some_and(|after| seat.dead_for.is_some_and(|dead| dead >= after));
    let lost = voters.iter().filter(lost).find(|seat| can_go(seat));
    let is_replaced = lost.is_some() && (spare().is_some() || learners().any(|seat| seat.dead_for.is_none()));
    let wanted = wanted(wish.ideal, seats) + usize::from(is_replaced);
    if voters.len() > wanted || (lost.is_some() && voters.len() > wish.ideal) {
        let dead = voters.iter().rev().find(|seat| seat.dead_for.is_some() && can_go(seat));
        let live = voters.iter().rev().find(|seat| can_go(seat));
        return lost.or(dead).or(live).map(|seat| Step::Bench(seat.id));
    }
    if voters.len() < wanted {
        return match ready() {
            Some(learner) => Some(Step::Promote(learner.id)),
            None if learners().any(|seat| seat.dead_for.is_none()) => None,
            None => spare().map(|seat| Step::Nominate(seat.id)),
        };
    }
    // Enough others have a vote.
    learners().next().map(|seat| Step::Bench(seat.id))
}

/// Returns how many voters there can be: an even number of four or more that nobody asked for survives no more failures
/// than the odd one below it.
fn wanted(ideal: usize, seats: &[Seat]) -> usize {
    let possible = |seat: &&Seat| seat.place == Place::Voter || (seat.volunteers && seat.dead_for.is_none());
    let possible = seats.iter().filter(possible).count();
    if possible >= ideal {
        ideal
    } else if possible >= 4 && possible.is_multiple_of(2) {
        possible - 1
    } else {
        possible
    }
}

/// Returns whether those that stay have a majority of live voters among them.
fn keeps_quorum(voters: &[&Seat], without: MemberId) -> bool {
    let stay: Vec<_> = voters.iter().filter(|seat| seat.id != without).collect();
    let live = stay.iter().filter(|seat| seat.dead_for.is_none()).count();
    !stay.is_empty() && live >= majority(stay.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> MemberId {
        MemberId([n; 16])
    }

    fn seat(n: u8, place: Place) -> Seat {
        Seat { id: id(n), place, dead_for: None, volunteers: true, is_fixed: n == 1 }
    }

    /// Members 1 to `voters` vote, those after them to `all` are on the bench.
    fn seats(voters: u8, all: u8) -> Vec<Seat> {
        (1..=all).map(|n| seat(n, if n <= voters { Place::Voter } else { Place::Bench })).collect()
    }

    fn dead(mut seats: Vec<Seat>, n: u8, seconds: u64) -> Vec<Seat> {
        seats[usize::from(n) - 1].dead_for = Some(Duration::from_secs(seconds));
        seats
    }

    fn ideal(ideal: usize) -> Wish {
        Wish { ideal, replace_after: None }
    }

    const REPLACING: Wish = Wish { ideal: 5, replace_after: Some(Duration::from_secs(60)) };

    #[test]
    fn everyone_votes_unless_a_number_is_wished() {
        let mut all = seats(3, 3);
        assert_eq!(next(ideal(0), &all), None);
        all.push(seat(4, Place::Learner { is_ready: false }));
        assert_eq!(next(ideal(0), &all), None, "it has not caught up (R3)");
        all[3].place = Place::Learner { is_ready: true };
        assert_eq!(next(ideal(0), &all), Some(Step::Promote(id(4))));
        assert_eq!(next(ideal(0), &seats(3, 5)), Some(Step::Nominate(id(4))), "the bench is called back");
    }

    #[test]
    fn votes_are_given_until_there_are_enough() {
        assert_eq!(next(ideal(5), &seats(3, 9)), Some(Step::Nominate(id(4))));
        let mut all = seats(3, 9);
        all[3].place = Place::Learner { is_ready: false };
        assert_eq!(next(ideal(5), &all), None, "one at a time");
        all[3].place = Place::Learner { is_ready: true };
        assert_eq!(next(ideal(5), &all), Some(Step::Promote(id(4))));
        assert_eq!(next(ideal(5), &seats(5, 9)), None);
        let mut full = seats(5, 6);
        full[5].place = Place::Learner { is_ready: true };
        assert_eq!(next(ideal(5), &full), Some(Step::Bench(id(6))), "a newcomer finds all votes taken");
    }

    #[test]
    fn a_dead_learner_does_not_keep_others_from_a_vote() {
        let mut all = dead(seats(3, 9), 4, 5);
        all[3].place = Place::Learner { is_ready: false };
        assert_eq!(next(ideal(5), &all), Some(Step::Nominate(id(5))));
    }

    #[test]
    fn votes_are_taken_from_the_dead_first_and_never_from_who_takes_the_step() {
        assert_eq!(next(ideal(3), &seats(5, 5)), Some(Step::Bench(id(5))));
        assert_eq!(next(ideal(3), &dead(seats(5, 5), 2, 1)), Some(Step::Bench(id(2))));
        assert_eq!(next(ideal(1), &seats(2, 2)), Some(Step::Bench(id(2))));
        assert_eq!(next(ideal(1), &seats(1, 2)), None);
    }

    #[test]
    fn no_vote_is_taken_that_quorum_needs() {
        // Three of five live: without one of them it would be two of four.
        let all = dead(dead(seats(5, 5), 2, 1), 3, 1);
        assert_eq!(next(ideal(4), &all), Some(Step::Bench(id(3))), "a dead one may go");
        let mut fixed = all;
        (fixed[1].is_fixed, fixed[2].is_fixed) = (true, true);
        assert_eq!(next(ideal(4), &fixed), None);
    }

    #[test]
    fn odd_numbers_are_preferred_where_the_wish_cannot_be_met() {
        assert_eq!(next(ideal(5), &seats(3, 4)), None, "four would survive no more than three");
        assert_eq!(next(ideal(5), &seats(4, 4)), Some(Step::Bench(id(4))));
        assert_eq!(next(ideal(4), &seats(3, 4)), Some(Step::Nominate(id(4))), "but four were asked for");
        assert_eq!(next(ideal(5), &seats(1, 2)), Some(Step::Nominate(id(2))));
    }

    #[test]
    fn the_denominator_does_not_shrink_by_itself() {
        assert_eq!(next(ideal(5), &dead(seats(5, 9), 2, 1_000_000)), None, "nobody asked for a replacement");
        assert_eq!(next(REPLACING, &dead(seats(5, 5), 2, 61)), None, "there is nobody to take its place");
        assert_eq!(next(REPLACING, &dead(seats(5, 9), 2, 59)), None, "it may come back");
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_live_one_first_seated_and_then_benched() {
        let mut all = dead(seats(5, 9), 2, 61);
        assert_eq!(next(REPLACING, &all), Some(Step::Nominate(id(6))));
        all[5].place = Place::Learner { is_ready: false };
        assert_eq!(next(REPLACING, &all), None);
        all[5].place = Place::Learner { is_ready: true };
        assert_eq!(next(REPLACING, &all), Some(Step::Promote(id(6))));
        all[5].place = Place::Voter;
        assert_eq!(next(REPLACING, &all), Some(Step::Bench(id(2))));
        all[1].place = Place::Bench;
        assert_eq!(next(REPLACING, &all), None);
    }

    #[test]
    fn who_does_not_volunteer_is_not_asked_and_may_give_its_vote_back() {
        let mut all = seats(3, 5);
        all[3].volunteers = false;
        assert_eq!(next(ideal(4), &all), Some(Step::Nominate(id(5))));
        let mut all = seats(3, 3);
        all[1].volunteers = false;
        assert_eq!(next(ideal(3), &all), Some(Step::Bench(id(2))));
    }
}
