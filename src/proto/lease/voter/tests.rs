//! A voter and those who ask it: what it grants, confirms and refuses.

use super::super::fixture::{TIMING, add, at, changed, id, node, roster, session, stamp};
use super::*;

/// A voter past its quiet start, and what it is asked.
struct Bench {
    roster: Roster,
    voter: Voter,
    seq: u64,
    recorded: Recorded,
}

impl Bench {
    fn new() -> Self {
        let voter = Voter::new(session(101), at(0), TIMING, true);
        Self { roster: roster(3), voter, seq: 0, recorded: Recorded::default() }
    }

    fn request(&mut self, from: u8, claims: ClaimSet) -> LeaseRequest {
        self.seq += 1;
        let (version, mark) = (self.roster.version, self.roster.mark());
        let (session, stamp) = (session(from), stamp(1));
        LeaseRequest { version, mark, session, stamp, seq: self.seq, seated: true, claims }
    }

    fn send(&mut self, from: u8, request: &LeaseRequest, now: Instant) -> Verdict {
        let recorded = self.recorded;
        self.voter.on_request(&self.roster, stamp(1), id(from), request, &|_| recorded, now).verdict
    }

    /// Sends a complete full set of claims, all of one term.
    fn claim(&mut self, from: u8, nodes: &[&str], term: u64, now: Instant) -> Verdict {
        let holds: Vec<_> = nodes.iter().map(|name| (node(name), term)).collect();
        let version = holds.len() as u64;
        let request = self.request(from, ClaimSet::Full { version, complete: true, holds });
        self.send(from, &request, now)
    }

    fn holder(&self, name: &str, now: Instant) -> Option<MemberId> {
        self.voter.holder(&node(name), now).map(|(member, _, _)| member)
    }
}

fn granted(applied: u64) -> Verdict {
    Verdict::Granted { applied: Some(applied), refused: Vec::new() }
}

fn refused(applied: u64, name: &str, reason: RefusalReason) -> Verdict {
    Verdict::Granted { applied: Some(applied), refused: vec![Refusal { node: node(name), reason }] }
}

fn delta(full: u64, base: u64, version: u64, ops: Vec<ClaimOp>) -> ClaimSet {
    ClaimSet::Delta { full, base, version, complete: true, ops }
}

#[test]
fn the_next_expiry_is_never_told_too_late() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    bench.claim(2, &["n2"], 1, at(500));
    bench.claim(1, &["n1"], 1, at(900));
    assert_eq!(bench.voter.next_expiry(at(900)), Some(at(2_000)), "the one before the renewal, which is early");
    assert_eq!(bench.voter.next_expiry(at(2_000)), Some(at(2_500)), "member 2 was not heard again");
    assert_eq!(bench.voter.next_expiry(at(2_500)), Some(at(2_900)));
    assert_eq!(bench.voter.next_expiry(at(2_900)), None);
    bench.claim(2, &["n2"], 2, at(3_000));
    assert_eq!(bench.voter.next_expiry(at(3_000)), Some(at(5_000)));
}

#[test]
fn a_session_is_granted_for_t_and_its_claims_with_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.claim(1, &["n1"], 1, at(0)), granted(1));
    assert_eq!(bench.voter.session(id(1), at(1_999)), Some((session(1), at(2_000))));
    assert_eq!(bench.voter.holder(&node("n1"), at(1_999)), Some((id(1), 1, at(2_000))));
    assert_eq!(bench.voter.held_by(id(1), at(1_999)), [node("n1")]);
    assert_eq!(bench.voter.next_expiry(at(0)), Some(at(2_000)));
    assert_eq!(bench.voter.session(id(1), at(2_000)), None);
    assert_eq!(bench.holder("n1", at(2_000)), None);
    assert!(bench.voter.held_by(id(1), at(2_000)).is_empty());
    assert_eq!(bench.voter.next_expiry(at(2_000)), None);
}

#[test]
fn a_held_node_is_refused_to_others_until_its_holder_expired() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    let held = RefusalReason::Held { by: id(1), for_ms: 1 };
    assert_eq!(bench.claim(2, &["n1"], 2, at(1_999)), refused(1, "n1", held));
    assert_eq!(bench.claim(2, &["n1"], 2, at(2_000)), granted(1));
    assert_eq!(bench.holder("n1", at(2_000)), Some(id(2)));
}

#[test]
fn an_older_newer_or_other_roster_is_told_apart() {
    let mut bench = Bench::new();
    let empty = delta(0, 0, 0, Vec::new());
    let present = bench.request(1, empty);
    let epoch = present.version.epoch;
    let send = |bench: &mut Bench, change: &dyn Fn(&mut LeaseRequest)| {
        let mut request = present.clone();
        change(&mut request);
        bench.send(1, &request, at(0))
    };
    assert_eq!(send(&mut bench, &|request| request.version.epoch = epoch - 1), Verdict::StaleEpoch);
    assert_eq!(send(&mut bench, &|request| request.mark.0[0] ^= 1), Verdict::StaleEpoch);
    assert_eq!(send(&mut bench, &|request| request.version.epoch = epoch + 1), Verdict::NewerEpoch);
    assert_eq!(bench.send(9, &present, at(0)), Verdict::NotOnRoster);
    assert_eq!(bench.voter.session(id(1), at(0)), None, "nothing was granted");
}

#[test]
fn nothing_is_granted_before_the_quiet_start_is_over() {
    // R6.
    let mut bench = Bench::new();
    bench.voter = Voter::new(session(101), at(0), TIMING, false);
    assert_eq!(bench.claim(1, &["n1"], 1, at(2_099)), Verdict::Quiet { for_ms: 1 });
    assert_eq!(bench.voter.session(id(1), at(2_099)), None);
    assert_eq!(bench.claim(1, &["n1"], 1, at(2_100)), granted(1));
}

#[test]
fn new_claims_wait_after_a_change_of_voters_and_renewals_do_not() {
    // R7.
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    bench.roster = changed(&bench.roster, &add(4));
    bench.voter.on_epoch(false, at(100));
    assert_eq!(bench.claim(1, &["n1", "n2"], 1, at(100)), granted(2), "a learner changes no majority");
    bench.voter.on_epoch(true, at(200));
    let settling = RefusalReason::Settling { for_ms: 2_000 };
    assert_eq!(bench.claim(1, &["n1", "n2", "n3"], 1, at(300)), refused(3, "n3", settling));
    assert_eq!(bench.claim(2, &["n4"], 1, at(2_299)), refused(1, "n4", RefusalReason::Settling { for_ms: 1 }));
    assert_eq!(bench.claim(2, &["n4"], 1, at(2_300)), granted(1));
}

#[test]
fn a_member_whose_counters_went_back_gets_no_vote() {
    // R9, by either counter, for a session that is known and for a new one.
    let mut bench = Bench::new();
    bench.voter.remember(id(1), Stamp { incarnation: 3, sequence: 8 });
    for (incarnation, sequence, verdict) in [
        (2, 9, Verdict::RolledBack),
        (4, 7, Verdict::RolledBack),
        (4, 8, granted(0)),
        (3, 8, Verdict::RolledBack),
        (4, 7, Verdict::RolledBack),
    ] {
        let claims = ClaimSet::Full { version: 0, complete: true, holds: Vec::new() };
        let mut request = bench.request(1, claims);
        request.stamp = Stamp { incarnation, sequence };
        assert_eq!(bench.send(1, &request, at(0)), verdict, "{incarnation} {sequence}");
    }
    assert_eq!(bench.voter.stamps().collect::<Vec<_>>(), [(id(1), Stamp { incarnation: 4, sequence: 8 })]);
}

#[test]
fn a_second_session_of_a_member_waits_for_the_first_to_expire() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    let mut request = bench.request(1, ClaimSet::Full { version: 0, complete: true, holds: Vec::new() });
    request.session = session(51);
    assert_eq!(bench.send(1, &request, at(1_999)), Verdict::DuplicateSession);
    assert!(bench.voter.duplicate_sessions(at(1_999)).is_empty(), "a restart is no duplicate");
    assert_eq!(bench.holder("n1", at(1_999)), Some(id(1)));
    assert_eq!(bench.send(1, &request, at(2_000)), granted(0));
    assert_eq!(bench.holder("n1", at(2_000)), None, "the former session's claims ended with it");
}

#[test]
fn two_live_sessions_of_a_member_get_nothing_new() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    let mut rival = bench.request(1, ClaimSet::Full { version: 0, complete: true, holds: Vec::new() });
    rival.session = session(51);
    assert_eq!(bench.send(1, &rival, at(100)), Verdict::DuplicateSession);
    assert_eq!(bench.claim(1, &["n1", "n2"], 1, at(200)), refused(2, "n2", RefusalReason::Duplicate));
    assert_eq!(bench.voter.duplicate_sessions(at(200)), [id(1)]);
    assert!(bench.voter.duplicate_sessions(at(2_100)).is_empty(), "it is forgotten after T");
    assert_eq!(bench.claim(1, &["n1", "n2"], 1, at(2_100)), granted(2));
}

#[test]
fn an_old_request_changes_nothing() {
    let mut bench = Bench::new();
    let old = bench.request(1, ClaimSet::Full { version: 1, complete: true, holds: vec![(node("n1"), 1)] });
    bench.claim(1, &[], 1, at(500));
    assert_eq!(bench.send(1, &old, at(600)), Verdict::Outdated);
    assert_eq!(bench.voter.session(id(1), at(600)), Some((session(1), at(2_500))));
    assert_eq!(bench.holder("n1", at(600)), None);
    assert_eq!(bench.send(1, &old, at(5_000)), Verdict::Outdated, "also after the session expired");
}

#[test]
fn a_delta_counts_only_on_the_full_set_it_was_made_for() {
    let mut bench = Bench::new();
    let hold = |name: &str| vec![ClaimOp::Hold { node: node(name), term: 1 }];
    bench.claim(1, &["n1"], 1, at(0)); // Request 1, version 1.
    let request = bench.request(1, delta(1, 1, 2, hold("n2")));
    assert_eq!(bench.send(1, &request, at(100)), granted(2));
    let needs_full = Verdict::Granted { applied: None, refused: Vec::new() };
    for claims in [delta(7, 1, 3, hold("n3")), delta(1, 5, 6, hold("n3"))] {
        let request = bench.request(1, claims);
        assert_eq!(bench.send(1, &request, at(200)), needs_full);
    }
    assert_eq!(bench.holder("n3", at(200)), None);
    let request = bench.request(1, delta(1, 2, 3, hold("n3")));
    assert_eq!(bench.send(1, &request, at(2_200)), needs_full, "an expired session starts anew");
    assert_eq!(bench.holder("n1", at(2_200)), None);
}

#[test]
fn a_repeated_delta_applies_its_changes_once_and_never_goes_back() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    let release = delta(1, 1, 2, vec![ClaimOp::Release { node: node("n1") }]);
    for _ in 0..2 {
        let request = bench.request(1, release.clone());
        assert_eq!(bench.send(1, &request, at(100)), granted(2));
    }
    let request = bench.request(1, delta(1, 0, 1, Vec::new()));
    assert_eq!(bench.send(1, &request, at(100)), granted(2));
    assert_eq!(bench.claim(2, &["n1"], 2, at(100)), granted(1), "the release freed the node at once");
}

#[test]
fn only_the_last_part_of_a_full_set_drops_what_it_does_not_name() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1", "n2", "n3"], 1, at(0));
    let part = ClaimSet::Full { version: 4, complete: false, holds: vec![(node("n1"), 1)] };
    let request = bench.request(1, part);
    let full = request.seq;
    assert_eq!(bench.send(1, &request, at(100)), granted(4));
    assert_eq!(bench.holder("n2", at(100)), Some(id(1)), "its holder may be acting still");
    let request = bench.request(1, delta(full, 4, 5, vec![ClaimOp::Hold { node: node("n2"), term: 1 }]));
    assert_eq!(bench.send(1, &request, at(200)), granted(5));
    assert_eq!((bench.holder("n2", at(200)), bench.holder("n3", at(200))), (Some(id(1)), None));
}

#[test]
fn terms_rise_from_holder_to_holder() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 5, at(0));
    assert_eq!(bench.claim(1, &["n1"], 5, at(10)), granted(1), "a renewal");
    let stale = refused(1, "n1", RefusalReason::StaleTerm { at_least: 5 });
    assert_eq!(bench.claim(1, &["n1"], 4, at(20)), stale, "its own term does not fall");
    bench.claim(1, &[], 0, at(30));
    let stale = refused(1, "n1", RefusalReason::StaleTerm { at_least: 6 });
    assert_eq!(bench.claim(2, &["n1"], 5, at(40)), stale, "a term is remembered after its release");
    assert_eq!(bench.claim(1, &["n1"], 5, at(50)), granted(1), "nobody else had it since");
    bench.claim(1, &[], 0, at(60));
    assert_eq!(bench.claim(2, &["n1"], 6, at(70)), granted(1));
}

#[test]
fn what_the_documents_record_is_a_floor_under_new_terms() {
    let mut bench = Bench::new();
    bench.recorded = Recorded { term: 5, holder: Some(id(1)) };
    let stale = refused(1, "n1", RefusalReason::StaleTerm { at_least: 6 });
    assert_eq!(bench.claim(2, &["n1"], 5, at(0)), stale);
    assert_eq!(bench.claim(1, &["n1"], 4, at(0)), stale);
    assert_eq!(bench.claim(1, &["n1"], 5, at(0)), granted(1), "the recorded holder, to a voter that restarted");
    bench.recorded = Recorded { term: 9, holder: Some(id(2)) };
    assert_eq!(bench.claim(1, &["n1"], 5, at(10)), granted(1), "renewals go on");
}

#[test]
fn a_clean_stop_frees_everything_at_once_and_for_good() {
    let mut bench = Bench::new();
    bench.claim(1, &["n1"], 1, at(0));
    let late = bench.request(1, ClaimSet::Full { version: 1, complete: true, holds: vec![(node("n1"), 1)] });
    bench.voter.on_release(id(1), &LeaseRelease { session: session(2) }, at(50));
    assert_eq!(bench.holder("n1", at(50)), Some(id(1)), "another session's farewell");
    bench.voter.on_release(id(1), &LeaseRelease { session: session(1) }, at(100));
    assert_eq!(bench.voter.session(id(1), at(100)), None);
    assert_eq!(bench.send(1, &late, at(110)), Verdict::Outdated);
    assert_eq!(bench.claim(2, &["n1"], 2, at(120)), granted(1));
}
