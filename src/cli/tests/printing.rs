//! What is printed: texts for people, tables as wide as the terminal, documents for programs.

use super::*;

#[test]
fn show_is_confluents_text() {
    let daemon = Daemon::start(|_| Response::Show(sample_show()));
    let answer = daemon.run("collective show");
    assert_eq!(
        answer.out,
        "Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\nOffline collective members:\n    mgt3 (nonvoting)\n"
    );
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
}

#[test]
fn show_names_no_empty_list_and_no_leader_without_quorum() {
    let daemon = Daemon::start(|_| Response::Show(Show::default()));
    assert_eq!(daemon.run("collective show").out, "Quorum: False\nLeader: none\n");
}

#[test]
fn show_in_json_is_the_fixed_document() {
    let daemon = Daemon::start(|_| Response::Show(sample_show()));
    let document: serde_json::Value = serde_json::from_str(&daemon.run("collective show -o json").out).expect("json");
    let expected = serde_json::json!({"schema": "collective.show/1", "quorum": true, "leader": "mgt1",
        "active": ["mgt2"], "offline": ["mgt3"], "nonvoting": ["mgt3"]});
    assert_eq!(document, expected);
    assert_eq!(daemon.run("collective -o jsonl show").out.lines().count(), 1);
    assert_eq!(daemon.run("collective show -o names").out, "mgt1\nmgt2\nmgt3\n");
    assert_eq!(daemon.run("collective show --output=fold").out, "mgt[1-3]\n");
}

#[test]
fn status_says_the_state_in_words() {
    let daemon = status_daemon(sample_status());
    let answer = daemon.run("collective status");
    assert_eq!(
        answer.out,
        "\
collective hpc-prod   as seen by mgt1   2026-11-21 09:15:44Z
Quorum    YES   2 of 3 votes, 2 needed, can lose 0 more   ! one more failure stops writes
View      agreed by mgt[1-2]; mgt3 silent for 4m12s
Data      converged, 412 nodes, 3 groups
Managers  412 of 412 nodes managed
MEMBER  STATE  SINCE  VOTE  MANAGES  RTT    LAG  VERSION  ADDRESS
mgt1 *  alive  2d4h   yes   205      812us  0    0.1.0    10.0.0.1:7461
mgt2    alive  2d4h   yes   205      812us  0    0.1.0    10.0.0.1:7461
mgt3    down   4m12s  no    0        -      -    -        -
! mgt3 down: no answer, direct or through mgt2. If it is gone for good: collective delete mgt3
"
    );
    let painted = daemon.run("collective status --color always").out;
    assert!(painted.contains("\u{1b}[32malive\u{1b}[0m"), "{painted}");
}

#[test]
fn a_view_without_quorum_says_so_first() {
    let quorum = Votes { quorate: false, votes: 1, expected: 3, needed: 2, failure_tolerance: 0 };
    let status = Status { standing: Standing::Isolated, quorum, no_quorum_for_ms: Some(61_000), ..sample_status() };
    let text = status_daemon(status).run("collective status").out;
    assert!(text.starts_with("! NO QUORUM for 1m1s: writes and actions are refused; no answer from mgt3\n"), "{text}");
    assert!(text.contains("Quorum    NO   1 of 3 votes, 2 needed\n"), "{text}");

    let daemon = Daemon::start(|_| Response::Members(Members::default()));
    assert!(daemon.run("collective members").out.starts_with("! NO QUORUM"));
    let daemon = Daemon::start(|_| Response::Managers(Managers { stale: true, ..Managers::default() }));
    assert!(daemon.run("collective managers").out.starts_with("! STALE"));
}

#[test]
fn members_have_more_columns_when_there_is_room() {
    let daemon = Daemon::start(|_| {
        Response::Members(Members { quorum: true, members: vec![sample_member("mgt1", "alive")], ..Members::default() })
    });
    let plain = daemon.run("collective members mgt1");
    assert_eq!(plain.out.lines().count(), 2);
    assert!(!plain.out.contains("FINGERPRINT"));
    assert!(daemon.run("collective members -o wide").out.contains(&"ab".repeat(32)));
    assert_eq!(daemon.run("collective members --no-header -o table").out.lines().count(), 1);
    assert_eq!(daemon.asked()[0], Request::Members { expression: Some("mgt1".to_owned()) });
}

fn sample_managers() -> Response {
    let managed = |text: &str, manager: Option<&str>| ManagerStatus {
        node: node(text),
        manager: manager.map(name),
        desired: manager.map(name),
        preferred: None,
        candidates: vec![name("mgt1"), name("mgt2")],
        token: manager.map(|_| "0.4.2".to_owned()),
        reason: "first live candidate by rank".to_owned(),
        ruled_out: vec![RuledOut { member: name("mgt2"), reason: "down".to_owned() }],
        unknown: vec!["mgt9".to_owned()],
    };
    let nodes = vec![managed("n1", Some("mgt1")), managed("n2", Some("mgt1")), managed("n10", None)];
    Response::Managers(Managers { nodes, ..Managers::default() })
}

#[test]
fn a_member_of_very_many_nodes_takes_one_line_that_can_be_read() {
    let daemon = Daemon::start(|_| {
        let Response::Managers(mut managers) = sample_managers() else { panic!("a sample") };
        let one = managers.nodes.remove(0);
        managers.nodes =
            (0..500).map(|n| ManagerStatus { node: node(&format!("n{}", 2 * n)), ..one.clone() }).collect();
        Response::Managers(managers)
    });
    let table = daemon.run("collective managers --by-member").out;
    let line = table.lines().nth(1).expect("a line");
    assert!(line.starts_with("mgt1    500      n0,n2,n4,") && line.ends_with(",..."), "{line}");
    assert!(line.len() < 250, "{line}");
    let wide = daemon.run("collective managers --by-member -o wide").out;
    assert!(wide.contains(",n998"), "{wide}");
}

#[test]
fn managers_are_listed_counted_and_explained() {
    let daemon = Daemon::start(|_| sample_managers());
    assert_eq!(
        daemon.run("collective managers").out,
        "\
NODE  MANAGER    DESIRED  TOKEN  REASON
n1    mgt1       mgt1     0.4.2  first live candidate by rank
n2    mgt1       mgt1     0.4.2  first live candidate by rank
n10   unmanaged  -        -      first live candidate by rank
"
    );
    assert_eq!(
        daemon.run("collective managers --by-member").out,
        "MEMBER     MANAGES  NODES\nmgt1       2        n[1-2]\nunmanaged  1        n10\n"
    );
    let why = daemon.run("collective managers n1 --why").out;
    assert!(
        why.starts_with(
            "\
n1
  manager     mgt1, under token 0.4.2
  desired     mgt1
  candidates  mgt1, mgt2
  reason      first live candidate by rank
  ruled out   mgt2: down
  ignored     mgt9: no such member
"
        ),
        "{why}"
    );
    assert_eq!(daemon.asked()[2], Request::Managers { nodes: Some("n1".to_owned()), why: true });
}

fn sample_attributes(stale: bool) -> Response {
    let value = AttributeValue {
        value: Some("1".to_owned()),
        inherited_from: "rack1".parse().ok(),
        written_by: Some("mgt2".to_owned()),
        written_at: Some("2026-11-21T09:15:44Z".to_owned()),
    };
    let attribute = |text: &str| AttributeName::new(text).expect("valid");
    let attributes =
        [(attribute("location.rack"), value), (attribute("location.row"), AttributeValue::default())].into();
    let nodes = vec![EntityAttributes { node: "n1".to_owned(), attributes }];
    Response::Attributes(Attributes { nodes, stale, stale_for_ms: stale.then_some(5_000), ..Attributes::default() })
}

#[test]
fn attributes_print_as_nodeattrib_does() {
    let daemon = Daemon::start(|_| sample_attributes(false));
    assert_eq!(daemon.run("collective attrib n1").out, "n1: location.rack: 1\nn1: location.row:\n");
    assert_eq!(
        daemon.run("nodeattrib n1 -b location").out,
        "n1: location.rack: 1 (inherited from group rack1, written by mgt2 at 2026-11-21T09:15:44Z)\nn1: location.row:\n"
    );
    assert_eq!(daemon.run("nodegroupattrib rack1 all").code, 0);
    let read = |target, names: &[&str], blame| Request::Attributes {
        target,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        blame,
        stale: false,
    };
    let nodes = || Target::Nodes("n1".to_owned());
    let group = Target::Group("rack1".parse().expect("valid"));
    assert_eq!(
        daemon.asked(),
        [read(nodes(), &[], false), read(nodes(), &["location"], true), read(group, &["*"], false)]
    );
}

#[test]
fn a_stale_read_says_so_beside_the_data() {
    let daemon = Daemon::start(|_| sample_attributes(true));
    let answer = daemon.run("collective attrib n1 --stale");
    assert!(answer.out.starts_with("n1: ") && answer.err.starts_with("! STALE: no quorum for 5s"), "{answer:?}");
}
