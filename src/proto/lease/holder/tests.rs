//! A holder at its voters: what it may do, and until when, from what they answer.

use super::super::super::roster::Change;
use super::super::Voter;
use super::super::fixture::{TIMING, add, at, changed, id, node, roster, session, stamp};
use super::super::voter::Recorded;
use super::*;

/// Member 1's holder and the voters it asks, some of which may be away.
struct Bench {
    roster: Roster,
    holder: Holder,
    voters: BTreeMap<u8, Voter>,
}

impl Bench {
    fn new(voters: u8) -> Self {
        let make = |number| (number, Voter::new(session(100 + number), at(0), TIMING, true));
        let holder = Holder::new(id(1), session(1));
        Self { roster: roster(voters), holder, voters: (1..=voters).map(make).collect() }
    }

    fn tick(&mut self, now: Instant) -> Vec<(MemberId, LeaseRequest)> {
        self.holder.tick(&self.roster, stamp(1), true, now)
    }

    fn answer(&mut self, voter: u8, request: &LeaseRequest, now: Instant) -> LeaseAck {
        let voter = self.voters.get_mut(&voter).expect("a voter that is there");
        voter.on_request(&self.roster, stamp(1), id(1), request, &|_| Recorded::default(), now)
    }

    fn on_ack(&mut self, voter: u8, ack: &LeaseAck, now: Instant) -> Vec<ClaimEvent> {
        self.holder.on_ack(&self.roster, id(voter), ack, now)
    }

    /// One round in no time with the voters that are there.
    fn round(&mut self, now: Instant) -> Vec<ClaimEvent> {
        self.holder.hurry();
        let mut events = Vec::new();
        for (to, request) in self.tick(now) {
            if self.voters.contains_key(&to.0[0]) {
                let ack = self.answer(to.0[0], &request, now);
                events.extend(self.on_ack(to.0[0], &ack, now));
            }
        }
        events
    }

    fn acts(&self, now: Instant) -> bool {
        self.holder.acts(&self.roster, &node("n1"), now)
    }

    /// Lets another member hold a node at some voters.
    fn held_by_other(&mut self, voters: &[u8], term: u64, now: Instant) {
        let mut other = Holder::new(id(2), session(2));
        other.claim(node("n1"), term, now);
        for (to, request) in other.tick(&self.roster, stamp(1), true, now) {
            if voters.contains(&to.0[0]) {
                let voter = self.voters.get_mut(&to.0[0]).expect("a voter that is there");
                voter.on_request(&self.roster, stamp(1), id(2), &request, &|_| Recorded::default(), now);
            }
        }
    }
}

fn confirmed(term: u64) -> ClaimEvent {
    ClaimEvent::Confirmed { node: node("n1"), term }
}

#[test]
fn a_majority_lets_a_member_act_until_its_grants_could_end() {
    let mut bench = Bench::new(3);
    bench.holder.claim(node("n1"), 1, at(0));
    assert!(!bench.acts(at(0)));
    assert_eq!(bench.round(at(0)), [confirmed(1)], "once, though three voters confirm");
    assert_eq!(bench.holder.acts_until(&bench.roster, &node("n1")), Some(at(1_900)));
    assert_eq!(bench.holder.quorum_until(&bench.roster), Some(at(1_900)));
    assert!(bench.acts(at(1_899)));
    assert!(!bench.acts(at(1_900)), "R5: T(1-m) after the request was sent");
    assert_eq!(bench.holder.quorum(&bench.roster, at(1_899)), Quorum { granted: 3, voters: 3 });
    assert_eq!(bench.holder.quorum(&bench.roster, at(1_900)), Quorum { granted: 0, voters: 3 });
}

#[test]
fn half_of_the_voters_is_no_majority() {
    let mut bench = Bench::new(4);
    bench.voters.retain(|voter, _| *voter <= 2);
    bench.holder.claim(node("n1"), 1, at(0));
    assert!(bench.round(at(0)).is_empty());
    assert!(!bench.acts(at(0)) && bench.holder.quorum_until(&bench.roster).is_none());
}

#[test]
fn a_grant_counts_from_when_it_was_asked_for() {
    // R5. Counted from the answer, member 1 would act until 3,500 while voters are free to confirm others from
    // 2,000 on: they counted from when they read the request.
    let mut bench = Bench::new(3);
    bench.holder.claim(node("n1"), 1, at(0));
    let acks: Vec<_> = bench.tick(at(0)).iter().map(|(to, request)| bench.answer(to.0[0], request, at(0))).collect();
    for (voter, ack) in (1..).zip(&acks) {
        bench.on_ack(voter, ack, at(1_600));
    }
    assert!(bench.acts(at(1_899)) && !bench.acts(at(1_900)));
    bench.held_by_other(&[2, 3], 2, at(2_000));
    let others = bench.voters.values().filter(|voter| voter.holder(&node("n1"), at(2_000)).is_some());
    assert_eq!(others.count(), 2, "another member has a majority before 1,600 + 1,900");
}

#[test]
fn quorum_lasts_as_long_as_the_grants_of_a_majority() {
    let mut bench = Bench::new(3);
    bench.round(at(0));
    let away = bench.voters.remove(&3);
    bench.round(at(500));
    bench.voters.remove(&2);
    bench.round(at(1_000));
    assert_eq!(bench.holder.quorum_until(&bench.roster), Some(at(2_400)));
    bench.voters.extend(away.map(|voter| (3, voter)));
    bench.round(at(1_500));
    assert_eq!(bench.holder.quorum_until(&bench.roster), Some(at(3_400)));
}

#[test]
fn a_released_claim_never_acts_again() {
    // R10: the answer to the claim comes after the release, and after the node was claimed anew.
    let mut bench = Bench::new(3);
    bench.holder.claim(node("n1"), 1, at(0));
    let requests = bench.tick(at(0));
    let acks: Vec<_> = requests.iter().map(|(to, request)| bench.answer(to.0[0], request, at(0))).collect();
    bench.holder.release(&node("n1"), at(10));
    assert!(bench.on_ack(1, &acks[0], at(20)).is_empty() && bench.on_ack(2, &acks[1], at(20)).is_empty());
    assert!(!bench.acts(at(20)));
    bench.holder.claim(node("n1"), 1, at(30));
    assert!(bench.on_ack(3, &acks[2], at(40)).is_empty());
    assert!(!bench.acts(at(40)), "the claim is newer than what the voters confirmed");
    assert_eq!(bench.round(at(50)), [confirmed(1)]);
    assert!(bench.acts(at(50)));
    bench.holder.release(&node("n1"), at(60));
    assert!(!bench.acts(at(60)), "from this very moment");
    bench.round(at(70));
    assert!(bench.voters.values().all(|voter| voter.holder(&node("n1"), at(70)).is_none()));
}

#[test]
fn another_term_is_another_claim() {
    let mut bench = Bench::new(3);
    bench.holder.claim(node("n1"), 1, at(0));
    bench.round(at(0));
    bench.holder.claim(node("n1"), 1, at(10));
    assert!(bench.acts(at(10)), "the same claim again changes nothing");
    bench.holder.claim(node("n1"), 2, at(20));
    assert!(!bench.acts(at(20)));
    assert_eq!(bench.round(at(30)), [confirmed(2)]);
}

#[test]
fn grants_of_another_roster_do_not_count() {
    // R5: the ack's epoch must be mine.
    let mut bench = Bench::new(3);
    bench.holder.claim(node("n1"), 1, at(0));
    bench.round(at(0));
    let next = changed(&bench.roster, &add(4));
    assert!(!bench.holder.acts(&next, &node("n1"), at(10)));
    assert_eq!(bench.holder.quorum(&next, at(10)), Quorum { granted: 0, voters: 3 });
    let mut other = bench.roster.clone();
    other.previous.0[0] ^= 1;
    assert!(!bench.holder.acts(&other, &node("n1"), at(10)), "same version, other mark");
    bench.roster = next;
    bench.round(at(20));
    assert!(bench.acts(at(20)), "the voters adopted it too");
}

#[test]
fn who_is_not_on_the_roster_never_acts_and_asks_nobody() {
    let mut bench = Bench::new(3);
    bench.holder = Holder::new(id(3), session(3));
    let without = changed(&bench.roster, &Change::Remove { id: id(3) });
    assert_eq!(bench.holder.tick(&bench.roster, stamp(1), true, at(0)).len(), 3);
    bench.holder.hurry();
    assert!(bench.holder.tick(&without, stamp(1), true, at(10)).is_empty());
    assert!(bench.holder.next_due(&without) > at(10), "and does not keep its caller awake");
    assert_eq!(bench.holder.quorum(&without, at(10)), Quorum { granted: 0, voters: 2 });
}

#[test]
fn a_question_goes_along_with_an_answer_when_it_is_nearly_due() {
    let mut bench = Bench::new(3);
    bench.holder = Holder::new(id(3), session(3));
    assert_eq!(bench.tick(at(0)).len(), 3);
    // T/6 is 333 ms.
    for (ms, is_early) in [(100, false), (160, false), (170, true)] {
        bench.holder.meet(id(1), &bench.roster, at(ms));
        assert_eq!(bench.holder.next_due(&bench.roster) <= at(ms), is_early, "after {ms} ms");
    }
    let asked: Vec<_> = bench.tick(at(170)).into_iter().map(|(to, _)| to).collect();
    assert_eq!(asked, [id(1)]);
    bench.holder.meet(id(9), &bench.roster, at(170));
    assert!(bench.holder.next_due(&bench.roster) > at(170), "nobody else is asked");
}

#[test]
fn nobody_is_asked_later_than_after_a_sixth_of_the_lease() {
    for me in 1..=3 {
        let mut bench = Bench::new(3);
        bench.holder = Holder::new(id(me), session(me));
        bench.tick(at(0));
        let mut asked = BTreeSet::new();
        for ms in 1..=333 {
            asked.extend(bench.tick(at(ms)).into_iter().map(|(to, _)| to));
        }
        assert!(asked.is_superset(&BTreeSet::from([id(me)])));
        asked.extend(bench.tick(at(334)).into_iter().map(|(to, _)| to));
        assert_eq!(asked.len(), 3, "member {me} asked {asked:?} only");
    }
}

#[test]
fn a_refused_claim_does_not_count_and_is_asked_again_when_the_reason_has_passed() {
    let mut bench = Bench::new(3);
    bench.held_by_other(&[2, 3], 1, at(0));
    bench.holder.claim(node("n1"), 2, at(100));
    let events = bench.round(at(100));
    let reason = RefusalReason::Held { by: id(2), for_ms: 1_900 };
    let refused = |by| ClaimEvent::Refused { node: node("n1"), term: 2, reason, by: id(by) };
    assert_eq!(events, [refused(2), refused(3)]);
    assert!(bench.round(at(1_000)).is_empty(), "it is not asked again too early");
    assert!(!bench.acts(at(1_000)), "a later grant without refusals does not confirm it");
    assert_eq!(bench.round(at(2_000)), [confirmed(2)]);
    assert!(bench.acts(at(2_000)));
}

#[test]
fn a_pending_claim_is_due_again_when_its_holder_expires() {
    let mut bench = Bench::new(3);
    bench.held_by_other(&[2, 3], 1, at(0));
    bench.holder.claim(node("n1"), 2, at(100));
    bench.round(at(1_900));
    assert_eq!(bench.holder.next_due(&bench.roster), at(2_000));
    let requests = bench.tick(at(2_000));
    assert_eq!(requests.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [id(2), id(3)]);
}

#[test]
fn a_refusal_of_a_former_claim_says_nothing_of_the_present_one() {
    let mut bench = Bench::new(3);
    bench.held_by_other(&[2, 3], 1, at(0));
    bench.holder.claim(node("n1"), 2, at(100));
    let (_, request) = bench.tick(at(100)).swap_remove(1);
    let ack = bench.answer(2, &request, at(100));
    bench.holder.claim(node("n1"), 3, at(110));
    assert!(bench.on_ack(2, &ack, at(120)).is_empty());
    assert_eq!(bench.round(at(2_000)), [confirmed(3)]);
}

#[test]
fn a_lost_refusal_is_told_again() {
    let mut bench = Bench::new(3);
    bench.voters.remove(&1);
    bench.round(at(0)); // The empty full set is acknowledged.
    bench.held_by_other(&[2, 3], 1, at(0));
    bench.holder.claim(node("n1"), 2, at(100));
    for (to, request) in bench.tick(at(100)).iter().skip(1) {
        bench.answer(to.0[0], request, at(100)); // The answers are lost.
    }
    let events = bench.round(at(200));
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(!bench.acts(at(200)));
}

#[test]
fn a_voter_that_restarted_is_told_everything_again() {
    let mut bench = Bench::new(3);
    bench.voters.remove(&3);
    bench.holder.claim(node("n1"), 1, at(0));
    bench.round(at(0));
    bench.voters.insert(2, Voter::new(session(202), at(100), TIMING, true));
    bench.round(at(100));
    assert!(!bench.acts(at(100)), "two voters are left and one of them has forgotten");
    assert_eq!(bench.holder.quorum(&bench.roster, at(100)).granted, 2, "the session itself is granted");
    assert_eq!(bench.holder.next_due(&bench.roster), Instant::ZERO, "it is told at once");
    bench.round(at(110));
    assert!(bench.acts(at(110)));
}

#[test]
fn a_grant_of_a_restarted_voter_says_nothing_of_what_the_former_one_acknowledged() {
    // A copy of an old request rebuilds the full set at a restarted voter, which refuses the claim meanwhile.
    let mut bench = Bench::new(3);
    bench.voters.remove(&1);
    bench.holder.claim(node("n1"), 2, at(0));
    let requests = bench.tick(at(0));
    for (to, request) in requests.iter().skip(1) {
        let ack = bench.answer(to.0[0], request, at(0));
        bench.on_ack(to.0[0], &ack, at(0));
    }
    bench.round(at(1_500));
    assert!(bench.acts(at(1_500)));
    bench.voters.insert(3, Voter::new(session(203), at(2_500), TIMING, true));
    bench.held_by_other(&[3], 1, at(2_500));
    bench.answer(3, &requests[2].1, at(2_600));
    bench.round(at(2_700));
    assert!(!bench.acts(at(2_700)), "voter 3 confirmed it to another member");
}

#[test]
fn an_answer_of_a_voter_whose_counters_went_back_is_ignored() {
    // R9.
    let mut bench = Bench::new(3);
    bench.holder.remember(id(2), Stamp { incarnation: 1, sequence: 2 });
    bench.holder.remember(id(3), Stamp { incarnation: 2, sequence: 0 });
    bench.round(at(0));
    assert_eq!(bench.holder.quorum(&bench.roster, at(0)).granted, 1);
    assert!(bench.holder.last_ack(id(2)).is_none() && bench.holder.verdict(id(3)).is_none());
}

#[test]
fn who_is_told_of_a_later_run_of_itself_does_not_count_its_own_vote_any_more() {
    // R9.
    let mut bench = Bench::new(3);
    bench.voters.remove(&3);
    bench.round(at(0));
    assert_eq!(bench.holder.quorum(&bench.roster, at(0)).granted, 2);
    let later = Stamp { incarnation: 2, ..stamp(1) };
    // A request that shows what the counters were before they rose proves nothing.
    bench.holder.hurry();
    let early = bench.tick(at(400));
    bench.voters.get_mut(&2).expect("it is there").remember(id(1), later);
    bench.holder.on_raised();
    let refused = bench.answer(2, &early[1].1, at(400));
    assert_eq!(refused.verdict, Verdict::RolledBack);
    bench.on_ack(2, &refused, at(400));
    assert!(!bench.holder.is_disowned());
    assert_eq!(bench.holder.quorum(&bench.roster, at(400)).granted, 2);
    bench.round(at(800));
    assert!(bench.holder.is_disowned());
    assert_eq!(bench.holder.quorum(&bench.roster, at(800)).granted, 1, "what the other granted, and not its own");
}

#[test]
fn answers_to_others_to_nothing_and_to_what_is_long_answered_are_ignored() {
    let mut bench = Bench::new(3);
    let (_, request) = bench.tick(at(0)).swap_remove(1);
    let ack = bench.answer(2, &request, at(0));
    bench.on_ack(2, &LeaseAck { session: session(9), ..ack.clone() }, at(10));
    bench.on_ack(2, &LeaseAck { seq: 77, ..ack.clone() }, at(10));
    bench.on_ack(7, &ack, at(10));
    assert_eq!(bench.holder.quorum(&bench.roster, at(10)).granted, 0);
    bench.holder.hurry();
    let (_, later) = bench.tick(at(100)).swap_remove(1);
    let later = bench.answer(2, &later, at(100));
    bench.on_ack(2, &later, at(120));
    assert_eq!(bench.holder.last_ack(id(2)), Some(at(100)));
    assert_eq!(bench.holder.round_trip(id(2)), Some(Duration::from_millis(20)));
    bench.on_ack(2, &ack, at(130));
    assert_eq!(bench.holder.last_ack(id(2)), Some(at(100)), "an answer overtaken by a later one");
}

#[test]
fn rounds_come_every_sixth_of_t_and_at_once_when_there_is_news() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.tick(at(0)).len(), 3);
    // The member with the smallest id is a sixteenth of a round early.
    assert!(bench.tick(at(312)).is_empty());
    assert_eq!(bench.tick(at(313)).len(), 3);
    bench.holder.claim(node("n1"), 1, at(340));
    assert!(bench.holder.next_due(&bench.roster) <= at(340));
    assert_eq!(bench.tick(at(340)).len(), 3);
    bench.holder.release(&node("n1"), at(350));
    assert_eq!(bench.tick(at(350)).len(), 3);
    bench.holder.hurry();
    assert_eq!(bench.tick(at(360)).len(), 3);
}

#[test]
fn without_quorum_every_claim_is_forgotten_in_one_small_message() {
    let mut bench = Bench::new(3);
    for i in 0..500 {
        bench.holder.claim(node(&format!("n{i}")), 1, at(0));
    }
    bench.round(at(0));
    bench.round(at(10));
    assert_eq!(bench.voters[&2].held_by(id(1), at(10)).len(), 500);
    bench.holder.release_all(at(20));
    assert!(!bench.acts(at(20)) && bench.holder.claims().next().is_none());
    assert!(bench.tick(at(20)).iter().all(|(_, request)| request.is_small()));
    bench.round(at(30)); // That message was lost, which the voters say now.
    bench.round(at(40));
    assert!(bench.voters[&2].held_by(id(1), at(40)).is_empty());
}

#[test]
fn ten_thousand_claims_are_confirmed_in_a_few_exchanges_and_renewed_in_one_datagram() {
    let mut bench = Bench::new(3);
    for i in 0..10_000 {
        bench.holder.claim(node(&format!("node-{i}.rack")), 1, at(0));
    }
    let (mut events, mut exchanges) = (0, 0);
    while bench.holder.next_due(&bench.roster) <= at(0) {
        exchanges += 1;
        for (to, request) in bench.tick(at(0)) {
            let ack = bench.answer(to.0[0], &request, at(0));
            events += bench.on_ack(to.0[0], &ack, at(0)).len();
        }
    }
    assert_eq!((events, exchanges), (10_000, 4), "one to see that they are there, three of 4,000 claims at most");
    assert!(bench.holder.claims().all(|claim| claim.is_confirmed && claim.term == 1));
    let renewals = bench.tick(at(1_000));
    assert!(renewals.iter().all(|(_, request)| minicbor::to_vec(request).expect("encodes").len() < 200));
}

#[test]
fn a_voter_that_is_away_is_sent_little() {
    let mut bench = Bench::new(3);
    for i in 0..1_000 {
        bench.holder.claim(node(&format!("n{i}")), 1, at(0));
    }
    for round in 0..10 {
        assert!(bench.tick(at(round * 400)).iter().all(|(_, request)| request.is_small()));
    }
}

#[test]
fn a_request_on_a_stream_is_not_overtaken_by_the_next_round() {
    let mut bench = Bench::new(1);
    for i in 0..1_000 {
        bench.holder.claim(node(&format!("n{i}")), 1, at(0));
    }
    bench.round(at(0));
    let bulk = bench.tick(at(0));
    assert!(bulk.len() == 1 && !bulk[0].1.is_small());
    assert!(bench.tick(at(400)).is_empty());
    let renewal = bench.tick(at(734));
    assert!(renewal.len() == 1 && renewal[0].1.is_small(), "but the session is renewed before it expires");
    let ack = bench.answer(1, &renewal[0].1, at(734));
    bench.on_ack(1, &ack, at(734));
    let bulk = bench.tick(at(734));
    let ack = bench.answer(1, &bulk[0].1, at(734));
    assert_eq!(bench.on_ack(1, &ack, at(734)).len(), 1_000);
}

#[test]
fn a_voter_far_away_is_kept_in_step() {
    // The round trip takes three rounds: answers to replaced full sets keep coming.
    let mut bench = Bench::new(1);
    bench.holder.claim(node("n1"), 1, at(0));
    let mut acks: Vec<(u64, LeaseAck)> = Vec::new();
    for ms in (0..6_000).step_by(50) {
        let (due, later) = acks.into_iter().partition(|(when, _)| *when <= ms);
        acks = later;
        for (_, ack) in due {
            bench.on_ack(1, &ack, at(ms));
        }
        for (_, request) in bench.tick(at(ms)) {
            acks.push((ms + 1_000, bench.answer(1, &request, at(ms + 500))));
        }
        assert!(ms < 2_500 || bench.acts(at(ms)), "lost at {ms}");
    }
}

#[test]
fn releases_are_dropped_once_every_voter_knows() {
    let mut bench = Bench::new(3);
    let away = bench.voters.remove(&3).expect("a voter");
    for i in 0..100 {
        bench.holder.claim(node(&format!("n{i}")), 1, at(i));
        bench.round(at(i));
        bench.holder.release(&node(&format!("n{i}")), at(i));
        bench.round(at(i));
    }
    for ms in 100..120 {
        bench.round(at(ms));
    }
    assert!(!bench.holder.ledger.has_releases());
    bench.voters.insert(3, away);
    bench.holder.claim(node("n1"), 9, at(130));
    bench.voters.remove(&2);
    bench.round(at(130));
    bench.round(at(131));
    assert!(bench.acts(at(131)), "who was away starts from the full set");
}
