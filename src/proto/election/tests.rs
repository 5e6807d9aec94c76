//! The election, one decision a test.

use super::*;

const CLUSTER: ClusterId =
    ClusterId([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);

/// Members by one letter each: `1` to `9` are voters, and what follows says what is the matter with the one before:
/// `-` away, `d` draining, `w` a witness, `n` nonvoting.
fn electorate(text: &str) -> Electorate {
    let mut runners: Vec<(MemberName, Runner)> = Vec::new();
    for letter in text.chars() {
        if let Some(number) = letter.to_digit(10) {
            let id = MemberId([u8::try_from(number).expect("a digit"); 16]);
            let runner = Runner { id, role: Role::Voter, draining: false, available: true };
            runners.push((name(&format!("mgt{number}")), runner));
        } else {
            let (_, runner) = runners.last_mut().expect("a member before its letter");
            match letter {
                '-' => runner.available = false,
                'd' => runner.draining = true,
                'w' => runner.role = Role::Witness,
                'n' => runner.role = Role::Nonvoting,
                other => panic!("no such letter: {other}"),
            }
        }
    }
    runners.into_iter().collect()
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).expect("a name")
}

fn node(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

fn contest(node: &NodeName) -> Contest<'_> {
    Contest {
        cluster: CLUSTER,
        node,
        pinned: None,
        candidates: None,
        policy: Policy::Ordered,
        fail_back: FailBack::None,
        holder: None,
        despite: None,
    }
}

fn run(contest: &Contest<'_>, members: &str) -> Verdict {
    elect(contest, &electorate(members), &mut Expressions::default())
}

fn held_by(number: u8) -> Option<MemberId> {
    Some(MemberId([number; 16]))
}

#[test]
fn the_election_follows_its_table() {
    // members | pinned | candidates | holder | desired | reason
    const TABLE: &str = "
        123    |      |             |   |      | neither collective.manager nor collective.managercandidates is set
        123    |      |             | 1 |      | neither collective.manager nor collective.managercandidates is set
        123    | mgt2 |             |   | mgt2 | collective.manager names it
        123    | mgt2 |             | 1 | mgt2 | collective.manager names it
        12-3   | mgt2 |             |   |      | collective.manager=mgt2: not available; there are no candidates to take over
        12-3   | mgt2 |             | 2 |      | collective.manager=mgt2: not available; there are no candidates to take over
        12-3   | mgt2 |             | 1 | mgt1 | it holds the node; collective.manager=mgt2 is pending: not available
        12w3   | mgt2 |             |   |      | collective.manager=mgt2: a witness never manages; there are no candidates to take over
        123    | mgt9 |             |   |      | collective.manager=mgt9: not a member; there are no candidates
        123    | mgt9 | mgt2        |   | mgt2 | it is the first of the candidates
        123    |      | mgt[2-3]    |   | mgt2 | it is the first of the candidates
        12-3   |      | mgt[2-3]    |   | mgt3 | it is the first of the candidates that is available
        12n3   |      | mgt[2-3]    |   | mgt2 | it is the first of the candidates
        12w3   |      | mgt[2-3]    |   | mgt3 | it is the first of the candidates that is available
        12d3   |      | mgt[2-3]    |   | mgt3 | it is the first of the candidates that is available
        12-3-  |      | mgt[2-3]    |   |      | no candidate is available
        123    |      | mgt[2-3]    | 3 | mgt3 | it holds the node
        123-   |      | mgt[2-3]    | 3 | mgt2 | it is the first of the candidates
        123d   |      | mgt[2-3]    | 3 | mgt2 | it is the first of the candidates
        123    |      | mgt[2-3]    | 1 | mgt2 | it is the first of the candidates
        12-3-  |      | mgt[2-3]    | 1 |      | no candidate is available
        123    | mgt1 | mgt[2-3]    | 3 | mgt1 | collective.manager names it
        1-23   | mgt1 | mgt[2-3]    |   | mgt2 | it stands in; collective.manager=mgt1 is pending: not available
        1-23   | mgt1 | mgt[2-3]    | 3 | mgt3 | it holds the node; collective.manager=mgt1 is pending: not available
        1d23   | mgt1 | mgt[1-3]    | 1 | mgt2 | it stands in; collective.manager=mgt1 is pending: draining
        123    |      | mgt[9,7],x  |   |      | no candidate is available
        123    |      | mgt9,mgt3,x |   | mgt3 | it is the first of the candidates
        123    |      | mgt[        |   |      | collective.managercandidates cannot be read: this bracket is not closed
        123    |      | mgt[        | 2 | mgt2 | it holds the node
        123    | mgt1 | mgt[        |   | mgt1 | collective.manager names it
    ";
    for row in TABLE.lines().filter(|row| row.contains('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [members, pinned, candidates, holder, desired, reason] = cells[..] else { panic!("a bad row: {row}") };
        let n1 = node("n1");
        let contest = Contest {
            pinned: Some(pinned),
            candidates: Some(candidates),
            holder: holder.parse().ok().and_then(held_by),
            ..contest(&n1)
        };

        let verdict = run(&contest, members);

        let found = verdict.desired.as_ref().map_or("", MemberName::as_str);
        assert_eq!((found, verdict.reason.to_string().as_str()), (desired, reason), "{row}");
    }
}

#[test]
fn scores_are_the_published_ones() {
    for (node_name, member, expected) in [
        ("n1", "mgt1", 0x4039_c365_805b_6adf),
        ("n1", "mgt2", 0x7e27_40a7_2005_9283),
        ("n1", "mgt3", 0x37fd_e6b3_17c3_bf30),
        ("n2", "mgt1", 0x29a5_9781_7811_7476),
    ] {
        assert_eq!(score(CLUSTER, &node(node_name), &name(member)), expected, "{node_name} {member}");
    }
}

#[test]
fn spreading_ranks_by_score_and_moves_only_the_nodes_of_the_member_that_left() {
    let n1 = node("n1");
    let spread = Contest { candidates: Some("mgt[1-3]"), policy: Policy::Spread, ..contest(&n1) };
    let order: Vec<_> = run(&spread, "123").ranked.into_iter().map(|ranked| ranked.member.to_string()).collect();
    assert_eq!(order, ["mgt2", "mgt1", "mgt3"]);

    let mut counts = BTreeMap::new();
    for number in 0..300 {
        let node = node(&format!("n{number}"));
        let contest = Contest { node: &node, ..spread };
        let before = run(&contest, "123").desired.expect("a manager");
        let after = run(&contest, "12-3").desired.expect("a manager");
        assert!(before == name("mgt2") || before == after, "{node} moved from {before} to {after}");
        *counts.entry(before).or_insert(0) += 1;
    }
    assert!(counts.values().all(|count| (70..130).contains(count)), "{counts:?}");
}

#[test]
fn what_happens_does_not_depend_on_the_order_in_which_candidates_are_written() {
    let n1 = node("n1");
    let one = Contest { candidates: Some("mgt[1-3]"), policy: Policy::Spread, ..contest(&n1) };
    let other = Contest { candidates: Some("mgt3,mgt1,mgt2,mgt1"), ..one };
    assert_eq!(run(&one, "123"), run(&other, "123"));
}

#[test]
fn a_failover_is_undone_only_when_that_is_preferred() {
    let n1 = node("n1");
    let back = Contest {
        pinned: Some("mgt1"),
        candidates: Some("mgt[1-3]"),
        holder: held_by(2),
        despite: Some("mgt1"),
        ..contest(&n1)
    };
    let kept = run(&back, "123");
    assert_eq!((kept.desired.clone(), kept.preferred.clone()), (Some(name("mgt2")), Some(name("mgt1"))));
    assert_eq!(kept.reason, Reason::HoldsAfterFailover(name("mgt1")));
    assert_eq!(kept.fail_back_to, None);

    let preferring = Contest { fail_back: FailBack::Prefer, ..back };
    assert_eq!(run(&preferring, "123").fail_back_to, Some(name("mgt1")));
    assert_eq!(run(&preferring, "1-23").fail_back_to, None, "who is away gets nothing back");
    let settled = Contest { holder: held_by(1), ..preferring };
    assert_eq!(run(&settled, "123").fail_back_to, None);

    let ordered_anew = Contest { pinned: Some("mgt3"), ..back };
    assert_eq!(run(&ordered_anew, "123").desired, Some(name("mgt3")), "another pin is an order");
}

#[test]
fn unknown_names_are_reported_and_stop_nothing() {
    let n1 = node("n1");
    let contest = Contest { pinned: Some("gone"), candidates: Some("x,mgt2,y[1-2]"), ..contest(&n1) };
    let verdict = run(&contest, "123");
    assert_eq!(verdict.unknown, ["gone", "x", "y1", "y2"]);
    assert_eq!(verdict.desired, Some(name("mgt2")));
}

#[test]
fn the_wait_of_r10_counts_who_may_come_first_but_not_the_last_holder() {
    let n1 = node("n1");
    let contest = Contest { candidates: Some("mgt[1-5]"), holder: held_by(2), ..contest(&n1) };
    let verdict = run(&contest, "12-34w5");
    let position = |member| verdict.position(&name(member));
    // mgt1 first; mgt2 held the node and is not waited for; mgt4 never manages.
    assert_eq!(position("mgt1"), Some(0));
    assert_eq!(position("mgt3"), Some(1));
    assert_eq!(position("mgt5"), Some(2));
    assert_eq!(position("mgt4"), None);
    assert_eq!(position("mgt9"), None);
    let pinned = Contest { pinned: Some("mgt5"), ..contest };
    assert_eq!(run(&pinned, "12345").position(&name("mgt5")), Some(0));
    assert_eq!(run(&pinned, "12345").position(&name("mgt1")), Some(1));
}

#[test]
fn what_was_read_is_forgotten_when_the_members_change() {
    let n1 = node("n1");
    let contest = Contest { candidates: Some("mgt[3-4]"), ..contest(&n1) };
    let mut expressions = Expressions::default();
    let mut elect_among = |members| elect(&contest, &electorate(members), &mut expressions);
    assert_eq!(elect_among("12").unknown, ["mgt3", "mgt4"]);
    assert_eq!(elect_among("124").desired, Some(name("mgt4")));
    assert_eq!(elect_among("1234").desired, Some(name("mgt3")));
    assert_eq!(elect_among("123-4").desired, Some(name("mgt4")), "being away is no change of names");
    assert_eq!(expressions.read.len(), 1);
}

#[test]
fn attributes_say_policies() {
    assert_eq!(Policy::from_attribute("ordered"), Policy::Ordered);
    assert_eq!(Policy::from_attribute(""), Policy::Spread);
    assert_eq!(FailBack::from_attribute("prefer"), FailBack::Prefer);
    assert_eq!(FailBack::from_attribute("none"), FailBack::None);
}
