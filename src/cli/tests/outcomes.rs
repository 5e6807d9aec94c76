//! What commands for scripts answer by their exit codes, and what goes on for a while.

use super::*;

#[test]
fn quorum_answers_by_exit_code() {
    let daemon = Daemon::start(|request| {
        let held = Votes { quorate: true, votes: 2, expected: 3, needed: 2, failure_tolerance: 0 };
        let lost = Votes { quorate: false, votes: 1, ..held };
        let thought = matches!(request, Request::Quorum { without: Some(_) });
        Response::Quorum(QuorumReport {
            quorum: held,
            without: thought.then(|| name("mgt2")).into_iter().collect(),
            then: thought.then_some(lost),
            ..QuorumReport::default()
        })
    });
    assert_eq!(daemon.run("collective quorum").code, 0);
    let without = daemon.run("collective quorum --without mgt2 --no-header");
    assert_eq!(without.code, 1);
    assert_eq!(
        without.out,
        "Quorum: YES   2 of 3 votes, 2 needed, can lose 0 more\nWithout mgt2: NO   1 of 3 votes, 2 needed\n"
    );
}

#[test]
fn check_answers_as_a_nagios_plugin() {
    let tolerance = |failure_tolerance| Votes { quorate: true, votes: 3, expected: 3, needed: 2, failure_tolerance };
    let fine = Status { quorum: tolerance(1), health: vec![], ..sample_status() };
    let lost = Status { quorum: Votes { quorate: false, ..tolerance(0) }, ..sample_status() };
    for (status, code, words) in [
        (fine, 0, "COLLECTIVE OK - 3 of 3 votes, 2 needed, can lose 1 more | votes=3;;;0;3 tolerance=1 alive=2;;;0;3"),
        (sample_status(), 1, "COLLECTIVE WARNING - one more failure stops writes; mgt3 down"),
        (lost, 2, "COLLECTIVE CRITICAL - no quorum; mgt3 down"),
    ] {
        let answer = status_daemon(status).run("collective check");
        assert_eq!(answer.code, code);
        assert!(answer.out.starts_with(words) && answer.out.lines().count() == 1, "{answer:?}");
    }
    let answer = Call::new("collective check -s /nowhere/admin.sock").run();
    assert!(answer.code == 3 && answer.out.starts_with("COLLECTIVE UNKNOWN - there is no socket"), "{answer:?}");
}

#[test]
fn wait_ends_when_the_conditions_hold_and_fails_in_time_when_not() {
    let looks = Mutex::new(0);
    let daemon = Daemon::start(move |_| {
        let mut looks = looks.lock().expect("no panic before");
        *looks += 1;
        match *looks {
            1 => Refusal::new(ErrorCode::TryAgain, "joining", "").into(),
            2 => Response::Status(Box::default()),
            _ => Response::Status(Box::new(sample_status())),
        }
    });
    let answer = daemon.run("collective wait --quorum --members 2 --converged");
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert_eq!(daemon.asked().len(), 3);

    let answer = daemon.run("collective wait --members 3 --timeout 250ms");
    assert_eq!(answer.code, 124);
    assert!(answer.err.starts_with("collective: waited 250ms in vain: 2 members alive\n"), "{answer:?}");
    assert_eq!(Call::new("collective wait --quorum --timeout 150ms -s /nowhere/x").run().code, 124);
}

#[test]
fn actions_print_by_node_and_one_failure_is_a_failure() {
    let daemon = Daemon::start(|_| {
        let result = |text: &str, status, error| ActionResult {
            node: node(text),
            manager: None,
            token: None,
            status,
            output: vec!["on".to_owned(), "fine".to_owned()],
            error,
        };
        let refusal = Refusal::new(ErrorCode::NoQuorum, "no quorum", "");
        let results = vec![result("n1", Some(0), None), result("n2", Some(3), None), result("n3", None, Some(refusal))];
        Response::Ran(Ran { results, ..Ran::default() })
    });
    let answer = daemon.run("collective run n[1-3] power status --hard");
    assert_eq!(answer.code, 1);
    assert_eq!(answer.out, "n1: on\nn1: fine\nn2: on\nn2: fine\nn3: on\nn3: fine\n");
    assert_eq!(answer.err, "n2: exit status 3\nn3: no quorum\n");
    let arguments = vec!["status".to_owned(), "--hard".to_owned()];
    assert_eq!(daemon.asked()[0], Request::Run { nodes: "n[1-3]".to_owned(), action: "power".to_owned(), arguments });
}

#[test]
fn events_are_filtered_by_kind_and_time() {
    let daemon = Daemon::start(|_| {
        let event = |seq, time: &str| LoggedEvent {
            schema: EventSchema::V1,
            seq,
            time: time.to_owned(),
            kind: EventKind::MemberDown,
            member: Some(name("mgt3")),
            node: None,
            token: None,
            message: "mgt3 is down".to_owned(),
        };
        let events = vec![event(1, "2020-01-01T00:00:00Z"), event(2, "2030-01-01T00:00:00Z")];
        Response::Events(Events { events, ..Events::default() })
    });
    let line = "     2  2030-01-01 00:00:00Z  member-down         mgt3 is down\n";
    assert_eq!(
        daemon.run("collective events --since 2025-01-01T00:00:00Z --kind member-down,quorum-lost -n 5").out,
        line
    );
    assert_eq!(
        daemon.asked()[0],
        Request::Events { after: None, kinds: vec![EventKind::MemberDown, EventKind::QuorumLost], limit: Some(5) }
    );
    assert_eq!(daemon.run("collective events -o jsonl").out.lines().count(), 2);
    assert_eq!(daemon.run("collective events --kind party").code, 64);
    assert_eq!(daemon.run("collective events --since yesterday").code, 64);
}

#[test]
fn follow_goes_on_after_the_last_event_it_saw() {
    let daemon = Daemon::start(|request| match request {
        Request::Events { after: None, .. } => {
            let event = LoggedEvent {
                schema: EventSchema::V1,
                seq: 41,
                time: String::new(),
                kind: EventKind::QuorumLost,
                member: None,
                node: None,
                token: None,
                message: "lost".to_owned(),
            };
            Response::Events(Events { events: vec![event], ..Events::default() })
        }
        Request::Events { after: Some(41), .. } => Refusal::new(ErrorCode::Unreachable, "stopped", "").into(),
        _ => done(""),
    });
    let answer = daemon.run("collective events -f -o json");
    assert_eq!((answer.code, answer.err.as_str()), (69, ""));
    assert_eq!(answer.out.lines().count(), 2, "{answer:?}");
}
