//! Single decisions of the prober, one conversation at a time.

use super::*;

const T0: Instant = Instant::from_nanos(10_000_000_000);
const ME: MemberId = id(0);

const fn id(n: u8) -> MemberId {
    MemberId([n; 16])
}

fn at(ms: u64) -> Instant {
    T0 + Duration::from_millis(ms)
}

/// A prober among members 1 to `others`, all of whom were heard at T0.
fn prober(others: u8) -> Swim {
    let mut swim = Swim::new(ME, 5, Timing::LAN, [7; 32], T0);
    swim.set_members((0..=others).map(id), T0);
    for n in 1..=others {
        swim.on_frame(id(n), SwimFrame::Ack { seq: 0, incarnation: 1 }, T0);
    }
    swim
}

/// Ticks whenever something is due until `end`, and returns all that came out.
fn run(swim: &mut Swim, end: Instant) -> Vec<SwimOut> {
    let mut out = Vec::new();
    while swim.next_due() <= end {
        let due = swim.next_due();
        out.extend(swim.tick(due));
    }
    out
}

/// Like [`run`], while the members of `hearty` are heard every 100 ms.
fn run_hearing(swim: &mut Swim, from: u64, to: u64, hearty: &[u8]) -> Vec<SwimOut> {
    let mut out = Vec::new();
    for ms in (from..=to).step_by(100) {
        out.extend(run(swim, at(ms)));
        for n in hearty {
            out.extend(swim.heard_lease(id(*n), at(ms)));
        }
    }
    out
}

fn state(swim: &Swim, n: u8) -> Liveness {
    swim.view().get(id(n)).expect("on the roster").state
}

fn sent(out: &[SwimOut]) -> Vec<(MemberId, SwimFrame, bool)> {
    let send = |out: &SwimOut| match out {
        SwimOut::Send { to, frame, reliable } => Some((*to, frame.clone(), *reliable)),
        _ => None,
    };
    out.iter().filter_map(send).collect()
}

fn changes(out: &[SwimOut]) -> Vec<(MemberId, Liveness)> {
    let change = |out: &SwimOut| match out {
        SwimOut::Changed { member, to, .. } => Some((*member, *to)),
        _ => None,
    };
    out.iter().filter_map(change).collect()
}

#[test]
fn a_stranger_is_ignored() {
    let mut swim = prober(2);
    let before = swim.view().clone();

    let ping = SwimFrame::Ping { seq: 1, incarnation: 9, accuses: Some(5), reliable: false };
    assert!(swim.on_frame(id(9), ping, T0).is_empty());
    assert!(swim.on_suspicion(id(9), id(1), Some(1), T0).is_empty());
    assert!(swim.on_suspicion(id(1), id(9), Some(1), T0).is_empty());
    assert!(swim.on_gossip(id(9), 3, false, T0).is_empty());
    assert!(swim.heard(id(9), T0).is_empty());
    assert_eq!(*swim.view(), before);
}

#[test]
fn a_member_that_left_the_roster_is_forgotten() {
    let mut swim = prober(2);

    swim.set_members([ME, id(2)].into_iter(), T0);

    assert!(swim.view().get(id(1)).is_none());
    let out = run(&mut swim, at(10_000));
    assert!(sent(&out).iter().all(|(to, ..)| *to == id(2)));
}

#[test]
fn a_ping_is_answered_the_way_it_came() {
    let mut swim = prober(2);
    for reliable in [false, true] {
        let ping = SwimFrame::Ping { seq: 77, incarnation: 1, accuses: None, reliable };
        let out = swim.on_frame(id(1), ping, T0);
        assert_eq!(sent(&out), [(id(1), SwimFrame::Ack { seq: 77, incarnation: 5 }, reliable)]);
    }
}

#[test]
fn a_silent_member_is_probed_on_every_way_before_it_is_suspected() {
    let mut swim = prober(5);

    let out = run_hearing(&mut swim, 0, 10_000, &[1, 2, 3, 4]);

    let to_five = |frame: &SwimFrame| matches!(frame, SwimFrame::PingReq { target, .. } if *target == id(5));
    let suspected = out.iter().position(|out| matches!(out, SwimOut::PublishSuspicion { .. })).expect("suspected");
    let before = sent(&out[..suspected]);
    assert_eq!(before.iter().filter(|(_, frame, _)| to_five(frame)).count(), HELPERS);
    assert!(before.iter().any(|(to, _, reliable)| *to == id(5) && !reliable));
    assert!(before.iter().any(|(to, _, reliable)| *to == id(5) && *reliable));
    // And the accused is the first to know.
    let told = sent(&out[suspected..])[0].clone();
    assert!(matches!(told, (to, SwimFrame::Ping { accuses: Some(1), .. }, true) if to == id(5)));
}

#[test]
fn among_three_members_the_third_is_always_the_helper() {
    for seed in 0..50 {
        let mut swim = prober(2);
        swim.rng = ChaCha8Rng::from_seed([seed; 32]);
        let out = run_hearing(&mut swim, 0, 6_000, &[1]);
        let out = sent(&out);
        let escalations = out.iter().filter(|(to, _, reliable)| *to == id(2) && *reliable).count();
        let helped = out.iter().filter(|(to, it, _)| *to == id(1) && matches!(it, SwimFrame::PingReq { .. }));
        assert!(escalations > 0);
        // One reliable ping tells the accused; every other one goes out beside a request.
        assert_eq!(helped.count(), escalations - 1, "seed {seed}");
    }
}

#[test]
fn a_confirmed_suspicion_ends_sooner_than_a_lonely_one() {
    let verdict = |confirmed: bool| {
        let mut swim = prober(4);
        let mut out = run_hearing(&mut swim, 0, 3_000, &[1, 2, 3]);
        if confirmed {
            for accuser in 1..=3 {
                out.extend(swim.on_suspicion(id(accuser), id(4), Some(1), at(3_000)));
            }
        }
        (31..300)
            .find(|tenth| {
                run_hearing(&mut swim, tenth * 100, tenth * 100, &[1, 2, 3]);
                state(&swim, 4) == Liveness::Down
            })
            .expect("a verdict") as u128
            * 100
    };
    let (confirmed, lonely) = (verdict(true), verdict(false));
    assert!(confirmed <= 6_000, "{confirmed}");
    assert!(lonely >= 12_000, "{lonely}");
}

#[test]
fn a_remote_suspicion_is_no_verdict_while_the_member_answers_us() {
    let mut swim = prober(4);
    for accuser in 1..=3 {
        swim.on_suspicion(id(accuser), id(4), Some(1), at(10));
    }
    assert_eq!(state(&swim, 4), Liveness::Suspect);

    let out = run_hearing(&mut swim, 100, 10_000, &[1, 2, 3, 4]);

    assert_eq!(changes(&out), [(id(4), Liveness::Alive)]);
}

#[test]
fn a_remote_suspicion_makes_us_ask_at_once() {
    let mut swim = prober(4);
    let out = swim.on_suspicion(id(1), id(4), Some(1), at(10));
    assert!(sent(&out).iter().any(|(to, frame, _)| *to == id(4) && matches!(frame, SwimFrame::Ping { .. })));
    assert!(swim.on_suspicion(id(1), id(4), Some(1), at(20)).is_empty(), "the same key once more is no news");
    assert!(changes(&swim.on_suspicion(id(2), id(3), Some(0), at(20))).is_empty(), "of an older incarnation");
}

#[test]
fn a_withdrawn_suspicion_is_forgotten() {
    let mut swim = prober(3);
    swim.on_suspicion(id(1), id(3), Some(1), at(10));
    swim.on_suspicion(id(2), id(3), Some(1), at(10));

    assert!(changes(&swim.on_suspicion(id(1), id(3), None, at(20))).is_empty(), "another one stands");
    assert_eq!(changes(&swim.on_suspicion(id(2), id(3), None, at(30))), [(id(3), Liveness::Alive)]);
}

#[test]
fn our_suspicion_is_published_once_and_withdrawn_when_the_member_is_heard() {
    let mut swim = prober(3);
    let out = run_hearing(&mut swim, 0, 5_000, &[1, 2]);
    let published = SwimOut::PublishSuspicion { accused: id(3), incarnation: 1 };
    assert_eq!(out.iter().filter(|it| **it == published).count(), 1);

    let out = swim.heard(id(3), at(5_010));

    assert!(out.contains(&SwimOut::ClearSuspicion { accused: id(3) }));
    assert_eq!(changes(&out), [(id(3), Liveness::Alive)]);
}

#[test]
fn an_accusation_is_refuted_once_and_told_when_it_is_durable() {
    let mut swim = prober(2);
    let health = swim.health();

    let out = swim.on_suspicion(id(1), ME, Some(5), at(10));
    assert_eq!(out, [SwimOut::RaiseIncarnation { to: 6 }]);
    assert_eq!(swim.incarnation(), 5, "not before it is durable");
    assert_eq!(swim.health(), health + 1);
    let again = SwimFrame::Ping { seq: 9, incarnation: 1, accuses: Some(5), reliable: true };
    let out = swim.on_frame(id(2), again, at(20));
    assert_eq!(sent(&out), [(id(2), SwimFrame::Ack { seq: 9, incarnation: 5 }, true)]);
    assert!(!out.iter().any(|out| matches!(out, SwimOut::RaiseIncarnation { .. })));

    let out = sent(&swim.incarnation_saved(6));

    assert_eq!(out.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [id(1), id(2)]);
    assert!(out.iter().all(|(_, frame, _)| matches!(frame, SwimFrame::Ping { incarnation: 6, .. })));
    // The old accusation is answered by what we are now.
    let out = sent(&swim.on_suspicion(id(1), ME, Some(5), at(30)));
    assert!(matches!(out[..], [(to, SwimFrame::Ping { incarnation: 6, .. }, true)] if to == id(1)));
}

#[test]
fn an_absurd_incarnation_is_not_believed() {
    let mut swim = prober(2);
    assert!(swim.on_suspicion(id(1), ME, Some(u64::MAX), at(10)).is_empty());
    swim.on_gossip(id(2), u64::MAX, false, at(10));
    swim.on_gossip(id(2), u64::MAX, true, at(10));
    swim.on_suspicion(id(1), id(2), Some(u64::MAX), at(10));
    let belief = swim.view().get(id(2)).expect("on the roster");
    assert_eq!((belief.state, belief.incarnation), (Liveness::Alive, 1));
}

#[test]
fn gossip_raises_the_dead_only_with_a_later_incarnation() {
    let mut swim = prober(2);
    run_hearing(&mut swim, 0, 20_000, &[1]);
    assert_eq!(state(&swim, 2), Liveness::Down);

    assert!(changes(&swim.on_gossip(id(2), 1, false, at(20_010))).is_empty());
    assert_eq!(changes(&swim.on_gossip(id(2), 2, false, at(20_020))), [(id(2), Liveness::Alive)]);
}

#[test]
fn the_first_gossip_about_a_member_that_was_never_heard_is_no_proof_of_life() {
    let mut swim = Swim::new(ME, 1, Timing::LAN, [7; 32], T0);
    swim.set_members((0..3).map(id), T0);
    swim.heard(id(1), at(10));
    assert!(changes(&swim.on_gossip(id(2), 4, false, at(20))).is_empty());
    run_hearing(&mut swim, 100, 20_000, &[1]);
    assert_eq!(state(&swim, 2), Liveness::Down);
    assert!(changes(&swim.on_gossip(id(2), 4, false, at(20_000))).is_empty());
}

#[test]
fn a_member_that_said_farewell_returns_with_a_later_incarnation_only() {
    let mut swim = prober(2);
    let out = swim.on_frame(id(1), SwimFrame::Leave { incarnation: 1 }, at(10));
    assert_eq!(changes(&out), [(id(1), Liveness::Left)]);

    assert!(swim.heard(id(1), at(20)).is_empty(), "a frame that was overtaken");
    assert_eq!(state(&swim, 1), Liveness::Left);
    let out = run_hearing(&mut swim, 100, 5_000, &[2]);
    assert!(sent(&out).iter().all(|(to, ..)| *to != id(1)), "nobody bothers who left");

    let ping = SwimFrame::Ping { seq: 1, incarnation: 2, accuses: None, reliable: false };
    assert_eq!(changes(&swim.on_frame(id(1), ping, at(5_010))), [(id(1), Liveness::Alive)]);
    let stale = swim.on_gossip(id(1), 1, true, at(5_020));
    assert!(changes(&stale).is_empty(), "the farewell of its former life");
}

#[test]
fn who_leaves_tells_all_and_then_only_repeats_it() {
    let mut swim = prober(2);
    let out = sent(&swim.leave(at(10)));
    assert_eq!(out.len(), 4);
    assert!(out.iter().all(|(_, frame, _)| *frame == SwimFrame::Leave { incarnation: 5 }));
    assert!(swim.tick(at(60_000)).is_empty());
    let ping = SwimFrame::Ping { seq: 1, incarnation: 1, accuses: None, reliable: false };
    assert_eq!(sent(&swim.on_frame(id(1), ping, at(20))), [(id(1), SwimFrame::Leave { incarnation: 5 }, false)]);
    assert_eq!(swim.view().get(ME).expect("on the roster").state, Liveness::Left);
}

#[test]
fn a_helper_passes_the_answer_on_or_says_that_there_was_none() {
    for answers in [true, false] {
        let mut swim = prober(2);
        let out = sent(&swim.on_frame(id(1), SwimFrame::PingReq { seq: 42, target: id(2) }, at(10)));
        let [(to, SwimFrame::Ping { seq, .. }, false)] = out[..] else { panic!("{out:?}") };
        assert_eq!(to, id(2));
        let out = if answers {
            swim.on_frame(id(2), SwimFrame::Ack { seq, incarnation: 1 }, at(20))
        } else {
            run_hearing(&mut swim, 100, 1_000, &[1])
        };
        let wanted = if answers {
            SwimFrame::IndirectAck { seq: 42, target: id(2), incarnation: 1 }
        } else {
            SwimFrame::Nack { seq: 42 }
        };
        assert!(sent(&out).contains(&(id(1), wanted, false)), "{out:?}");
    }
    let mut swim = prober(2);
    let out = sent(&swim.on_frame(id(1), SwimFrame::PingReq { seq: 43, target: id(9) }, at(10)));
    assert_eq!(out, [(id(1), SwimFrame::Nack { seq: 43 }, false)], "a stranger is not probed");
}

#[test]
fn an_indirect_answer_counts_only_from_a_helper_that_was_asked() {
    let mut swim = prober(3);
    swim.on_suspicion(id(1), id(3), Some(1), at(10));
    let probe = swim.probes.get(id(3)).expect("it is being asked").seq;
    let forged = SwimFrame::IndirectAck { seq: probe, target: id(3), incarnation: 1 };
    assert!(changes(&swim.on_frame(id(2), forged.clone(), at(20))).is_empty(), "nobody was asked yet");

    run_hearing(&mut swim, 100, 600, &[1, 2]);
    assert_eq!(state(&swim, 3), Liveness::Suspect);
    let out = swim.on_frame(id(2), forged, at(610));
    assert_eq!(changes(&out), [(id(3), Liveness::Alive)]);
}

#[test]
fn a_late_tick_gives_no_verdict_and_lowers_the_health() {
    let mut swim = prober(2);
    // Member 2 is a suspect whose time would be up.
    let suspected = |tenth: u64| {
        run_hearing(&mut swim, tenth * 100, tenth * 100, &[1]);
        state(&swim, 2) == Liveness::Suspect
    };
    assert!((0..100).any(suspected));
    let health = swim.health();

    let out = swim.tick(at(60_000));

    assert!(out.is_empty());
    assert_eq!(swim.health(), health + 1);
    let out = run(&mut swim, at(60_500));
    assert!(!changes(&out).iter().any(|(_, to)| *to == Liveness::Down));
    assert!(sent(&out).iter().any(|(to, ..)| *to == id(2)), "it is asked anew");
}

#[test]
fn a_broken_link_brings_the_probe_forward_and_nothing_more() {
    let mut swim = prober(50);
    run(&mut swim, at(50));
    swim.link_down(id(33), at(60));
    assert_eq!(swim.next_due(), at(60));

    let out = swim.tick(at(60));

    assert!(sent(&out).iter().any(|(to, ..)| *to == id(33)));
    assert!(changes(&out).is_empty());
}

#[test]
fn silence_after_regular_traffic_brings_the_probe_forward() {
    let mut swim = prober(50);
    let all: Vec<u8> = (1..=50).collect();
    run_hearing(&mut swim, 0, 5_000, &all);
    let probed = |out: &[SwimOut]| sent(out).iter().any(|(to, ..)| *to == id(50));
    let out = run_hearing(&mut swim, 5_100, 6_200, &all[..49]);
    assert!(probed(&out), "its turn in the round may be 50 s away");
}

#[test]
fn who_is_cut_off_asks_everybody_at_once() {
    let mut swim = prober(9);
    let out = run(&mut swim, at(5_500));
    let down = changes(&out).iter().filter(|(_, to)| *to == Liveness::Down).count();
    assert_eq!(down, 9);
    assert!(swim.health() > 0);
}

#[test]
fn a_poor_health_stretches_the_period() {
    let count = |health| {
        let mut swim = prober(1);
        swim.next_period = at(100);
        let mut pings = 0;
        for ms in (0..9_000).step_by(100) {
            swim.health = health;
            swim.on_frame(id(1), SwimFrame::Nack { seq: 0 }, at(ms));
            for (to, frame, _) in sent(&run(&mut swim, at(ms))) {
                if let SwimFrame::Ping { seq, .. } = frame {
                    pings += 1;
                    swim.on_frame(to, SwimFrame::Ack { seq, incarnation: 1 }, at(ms));
                }
            }
        }
        pings
    };
    assert_eq!((count(0), count(8)), (9, 1));
}

#[test]
fn who_talks_by_itself_is_seldom_asked() {
    let mut swim = prober(2);
    swim.next_period = at(100);
    let mut asked = BTreeMap::new();
    for ms in (0..40_000).step_by(100) {
        swim.heard(id(1), at(ms));
        for (to, frame, _) in sent(&run(&mut swim, at(ms))) {
            if let SwimFrame::Ping { seq, .. } = frame {
                *asked.entry(to.0[0]).or_insert(0) += 1;
                swim.on_frame(to, SwimFrame::Ack { seq, incarnation: 1 }, at(ms));
            }
        }
    }
    assert!((3..=5).contains(&asked[&1]), "every ten periods, so that the way stays known: {asked:?}");
    assert!(asked[&2] >= 30, "who says nothing is asked in its place: {asked:?}");
}

#[test]
fn answers_heal_and_misses_hurt() {
    let mut swim = prober(2);
    swim.feel(3);
    swim.next_period = at(10);
    for (to, frame, _) in sent(&swim.tick(at(10))) {
        let SwimFrame::Ping { seq, .. } = frame else { panic!("{frame:?}") };
        swim.on_frame(to, SwimFrame::Ack { seq, incarnation: 1 }, at(12));
        let belief = swim.view().get(to).expect("on the roster");
        assert_eq!((belief.last_ack, belief.rtt_us), (Some(at(12)), Some(2_000)));
    }
    assert_eq!(swim.health(), 2);
    swim.feel(100);
    assert_eq!(swim.health(), HEALTH_MAX);
}

#[test]
fn quorum_regained_gives_the_down_a_fresh_chance() {
    let mut swim = prober(2);
    run(&mut swim, at(20_000));
    assert_eq!((state(&swim, 1), state(&swim, 2)), (Liveness::Down, Liveness::Down));

    let out = swim.reconsider(at(20_000));

    // R12: without this a member that rejoins would elect on what it concluded in isolation.
    assert_eq!(changes(&out), [(id(1), Liveness::Suspect), (id(2), Liveness::Suspect)]);
    assert!(swim.probes.contains(id(1)) && swim.probes.contains(id(2)), "they are asked now");
    let out = run(&mut swim, at(21_400));
    assert!(changes(&out).is_empty(), "a chance has a length");
    run(&mut swim, at(24_500));
    assert_eq!((state(&swim, 1), state(&swim, 2)), (Liveness::Down, Liveness::Down));
}

#[test]
fn the_lost_are_asked_again_for_ever_and_ever_more_rarely() {
    let mut swim = prober(1);
    run(&mut swim, at(20_000));
    let rounds = |swim: &mut Swim, from: u64, to: u64| {
        let out = run(swim, at(to));
        let reliable = sent(&out).iter().filter(|(_, _, reliable)| *reliable).count() as u64;
        assert!(reliable > 0);
        (to - from) / reliable
    };
    let pause = rounds(&mut swim, 20_000, 3_600_000);
    assert!((7_000..=10_000).contains(&pause), "one try every {pause} ms");
}

#[test]
fn a_verdict_says_what_was_tried() {
    let mut swim = prober(2);
    let out = run_hearing(&mut swim, 0, 20_000, &[1]);
    let cause = out.iter().find_map(|out| match out {
        SwimOut::Changed { to: Liveness::Down, cause, .. } => Some(cause.describe(|id| format!("mgt{}", id.0[0]))),
        _ => None,
    });
    let cause = cause.expect("a verdict");
    assert!(cause.starts_with("no answer direct or through mgt1 for "), "{cause}");
}

#[test]
fn no_verdict_comes_before_our_own_question_went_unanswered() {
    let mut swim = prober(4);
    // Not being well, we wait three periods for an answer; the suspect's time of two is over before that.
    swim.health = HEALTH_MAX;
    run_hearing(&mut swim, 0, 3_000, &[1, 2, 3]);
    swim.probes.clear();
    swim.health = HEALTH_MAX;
    for accuser in 1..=3 {
        swim.on_suspicion(id(accuser), id(4), Some(1), at(3_050));
    }

    run_hearing(&mut swim, 3_100, 5_900, &[1, 2, 3]);
    assert_eq!(state(&swim, 4), Liveness::Suspect);
    run_hearing(&mut swim, 6_000, 6_200, &[1, 2, 3]);
    assert_eq!(state(&swim, 4), Liveness::Down);
}

#[test]
fn in_a_crowd_who_was_never_heard_is_given_a_period_for_its_link() {
    for (others, first) in [(30, 0), (40, 1_000)] {
        let mut swim = Swim::new(ME, 1, Timing::LAN, [7; 32], T0);
        swim.set_members((0..=others).map(id), T0);
        swim.next_period = at(3_600_000); // Only what is asked out of turn counts.
        let out = run(&mut swim, at(first).max(at(1)));
        let asked: BTreeSet<_> = sent(&out).iter().map(|(to, ..)| *to).collect();
        assert_eq!(asked.len(), usize::from(others));
        assert_eq!(swim.probes.get(id(1)).map(|probe| probe.started), Some(at(first)));
        // Nothing waits longer for its verdict.
        run(&mut swim, at(20_000));
        assert_eq!(state(&swim, 1), Liveness::Down);
    }
}

#[test]
fn what_was_heard_between_two_scans_costs_the_next_one_nothing() {
    let mut swim = prober(50);
    run(&mut swim, at(100));
    assert!(swim.watched.is_empty(), "all are well, and none talks regularly");

    swim.heard_lease(id(1), at(110));
    swim.heard_lease(id(1), at(400));
    swim.on_suspicion(id(2), id(3), Some(1), at(400));
    run(&mut swim, at(700));
    assert_eq!(swim.watched, BTreeSet::from([id(1), id(3)]));
}

#[test]
fn a_suspicion_that_enough_others_published_is_kept_to_ourselves() {
    for (accusers, publishes) in [(2, true), (3, false)] {
        let mut swim = prober(8);
        for accuser in 1..=accusers {
            swim.on_suspicion(id(accuser), id(8), Some(1), at(10));
        }
        let out = run_hearing(&mut swim, 100, 20_000, &[1, 2, 3, 4, 5, 6, 7]);
        let published = out.contains(&SwimOut::PublishSuspicion { accused: id(8), incarnation: 1 });
        assert_eq!(published, publishes, "{accusers} accusers");
        assert_eq!(state(&swim, 8), Liveness::Down);
    }
}

#[test]
fn in_a_crowd_a_suspicion_that_all_come_to_is_published_by_some() {
    let publishes_by = |seed: u8, ms: u64| {
        let mut swim = prober(100);
        swim.rng = ChaCha8Rng::from_seed([seed; 32]);
        run(&mut swim, at(5));
        let all: Vec<u8> = (1..100).collect();
        swim.link_down(id(100), at(10));
        let out = run_hearing(&mut swim, 100, ms, &all);
        assert_eq!(state(&swim, 100), Liveness::Suspect);
        out.iter().any(|out| matches!(out, SwimOut::PublishSuspicion { .. }))
    };
    let at_once = (0..100).filter(|seed| publishes_by(*seed, 1_100)).count();
    assert!((4..=40).contains(&at_once), "{at_once} of a hundred");
    assert!((0..100).all(|seed| publishes_by(seed, 6_000)), "nobody else did");
}

#[test]
fn members_that_said_a_few_words_are_not_asked_early_for_good() {
    let mut swim = prober(1);
    swim.next_period = at(3_600_000); // Only what is asked early counts.
    for ms in [0, 2, 5] {
        swim.heard_lease(id(1), at(ms));
    }
    let mut asked = 0;
    for ms in (10..60_000).step_by(100) {
        for (to, frame, _) in sent(&run(&mut swim, at(ms))) {
            if let SwimFrame::Ping { seq, .. } = frame {
                asked += 1;
                swim.on_frame(to, SwimFrame::Ack { seq, incarnation: 1 }, at(ms));
            }
        }
    }
    assert!((1..=8).contains(&asked), "asked {asked} times in a minute");
}
