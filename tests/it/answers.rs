//! Answers and exit codes: what scripts rely on.

use std::time::{Duration, Instant};

use crate::site::{PATIENCE, Site, settle, three, wait_for, wait_until};

#[test]
fn every_request_that_names_what_is_not_there_says_so() {
    let site = Site::on_loopback("mgt1");
    site.ok(&["node", "define", "n1"]);
    for words in [
        &["attrib", "n9"][..],
        &["attrib", "n1", "nosuch.thing=1"],
        &["attrib", "n1", "collective.manager=mgt9"],
        &["attrib", "--group", "g9"],
        &["managers", "n9"],
        &["ping", "mgt9"],
        &["drain", "mgt9"],
        &["node", "remove", "n9"],
        &["group", "remove", "g9"],
        &["run", "n9", "power"],
        &["quorum", "--without", "mgt9"],
    ] {
        site.refuses(words, 105);
    }
    let text = site.refuses(&["ping", "mgt11"], 105);
    assert!(text.contains("did you mean mgt1?"), "{text}");
}

#[test]
fn what_cannot_be_understood_says_so() {
    let site = Site::on_loopback("mgt1");
    site.ok(&["node", "define", "n1"]);
    for words in
        [&["range", "expand", "n[1-"][..], &["node", "define", "b@d"], &["invite", "b@d"], &["attrib", "n1", "=1"]]
    {
        site.refuses(words, 65);
    }
    for words in [
        &["frobnicate"][..],
        &["invite"],
        &["invite", "mgt2", "--ttl", "soon"],
        &["invite", "mgt2", "--ttl", "25h"],
        &["events", "--kind", "nosuch"],
        &["show", "--output", "xml"],
        &["help", "nosuch"],
    ] {
        site.refuses(words, 64);
    }
    site.refuses(&["node", "define", "n1"], 108);
    let error = site.run(&["node", "define", "n1", "-o", "json"]);
    assert_eq!(error.code, 108, "{error:?}");
    let document: serde_json::Value = serde_json::from_str(&error.stdout).expect("an error document");
    assert_eq!((&document["error"]["code"], &document["error"]["exit"]), (&"exists".into(), &108.into()));
}

#[test]
fn wait_check_quorum_and_ping_answer_by_exit_code() {
    let mut sites = three();
    sites[0].ok(&["wait", "--quorum", "--members", "3", "--converged", "--timeout", "20s"]);
    sites[0].refuses(&["wait", "--members", "4", "--timeout", "300ms"], 124);
    assert_eq!(sites[0].run(&["quorum"]).code, 0);
    assert_eq!(sites[0].run(&["quorum", "--without", "mgt2"]).code, 0);
    assert_eq!(sites[0].run(&["quorum", "--without", "mgt[2-3]"]).code, 1);
    sites[0].ok(&["ping", "mgt2"]);
    let check = wait_for("all is well", PATIENCE, || Some(sites[0].run(&["check"])).filter(|check| check.code == 0));
    assert!(check.stdout.starts_with("COLLECTIVE OK - ") && check.stdout.contains(" | votes=3"), "{check:?}");

    sites[2].kill();
    wait_until("a lost member is a warning", PATIENCE, || sites[0].run(&["check"]).code == 1);
    // At first it is not known to be gone, only silent.
    assert!([1, 124].contains(&sites[0].run(&["ping", "mgt3", "--timeout", "300ms"]).code));
    sites[1].kill();
    wait_until("a lost majority is critical", PATIENCE, || sites[0].run(&["check"]).code == 2);
    assert_eq!(sites[0].run(&["quorum"]).code, 1);
    let check = sites[1].run(&["check"]);
    assert_eq!(check.code, 3, "{check:?}");
    assert!(check.stdout.starts_with("COLLECTIVE UNKNOWN - "), "{check:?}");
}

#[test]
fn a_write_that_no_majority_confirms_is_told_apart() {
    let sites = three();
    sites[0].ok(&["node", "define", "n1"]);
    settle(&sites.iter().collect::<Vec<_>>());
    let output = wait_for("a write meets a majority that falls silent", PATIENCE, || {
        sites[1].pause();
        sites[2].pause();
        let output = sites[0].run(&["attrib", "n1", "custom.x=1"]);
        sites[1].resume();
        sites[2].resume();
        wait_until("all write again", PATIENCE, || sites[0].run(&["attrib", "n1", "custom.y=1"]).code == 0);
        (output.code == 109).then_some(output)
    });
    let text = output.refused(109);
    assert!(text.contains("indeterminate"), "{text}");
    // It was stored, and is there once the others are back.
    sites[2].sees("n1", "custom.x", "1");
    // Who asks for no more than this member's own disk is not kept waiting.
    sites[0].ok(&["attrib", "n1", "custom.z=1", "--wait", "local"]);
    sites[0].ok(&["attrib", "n1", "custom.z=2", "--wait", "all"]);
}

#[test]
fn a_daemon_that_is_stopped_is_not_waited_for_without_end() {
    let site = Site::on_loopback("mgt1");
    site.pause();
    let start = Instant::now();
    site.refuses(&["show", "--timeout", "300ms"], 124);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    site.resume();
    site.shows("Quorum: True\nLeader: mgt1\n");
}

#[test]
fn events_tell_what_happened_in_order() {
    let mut sites = three();
    sites[2].kill();
    let kinds = |site: &Site| -> Vec<String> {
        let lines = site.ok(&["events", "-o", "jsonl"]);
        let event = |line| serde_json::from_str::<serde_json::Value>(line).expect("one object a line");
        lines.lines().map(|line| event(line)["kind"].as_str().unwrap_or_default().to_owned()).collect()
    };
    wait_until("the loss is told", PATIENCE, || kinds(&sites[0]).iter().any(|kind| kind == "member-down"));

    let told = kinds(&sites[0]);
    let place =
        |kind: &str| told.iter().position(|other| other == kind).unwrap_or_else(|| panic!("{kind} in {told:?}"));
    assert!(place("quorum-regained") < place("member-join"));
    assert!(place("member-join") < place("epoch-decided"));
    assert!(place("epoch-decided") < place("member-suspect"));
    assert!(place("member-suspect") < place("member-down"));
    let only = sites[0].ok(&["events", "--kind", "member-down", "--no-header"]);
    assert_eq!(only.lines().count(), 1, "{only}");
    assert!(only.contains("mgt3"), "{only}");
}

#[test]
fn documents_have_the_shapes_that_others_script_against() {
    let sites = three();
    sites[0].ok(&["node", "define", "n1", "collective.managercandidates=mgt1"]);
    wait_until("the node is managed", PATIENCE, || sites[1].json(&["managers"])["nodes"][0]["manager"] == "mgt1");

    let status = sites[1].json(&["status"]);
    assert_eq!(status["schema"], "collective.status/1");
    assert_eq!((&status["self"], &status["standing"]), (&"mgt2".into(), &"seated".into()));
    assert_eq!(
        status["quorum"],
        serde_json::json!({"quorate": true, "votes": 3, "expected": 3, "needed": 2, "failure_tolerance": 1})
    );
    for key in ["collective", "time", "view", "data", "members", "health"] {
        assert!(!status[key].is_null(), "{key} in {status}");
    }
    let manager = &sites[1].json(&["managers"])["nodes"][0];
    assert_eq!((&manager["node"], &manager["desired"]), (&"n1".into(), &"mgt1".into()));
    assert_eq!(manager["candidates"], serde_json::json!(["mgt1"]));
    let token: Vec<_> = manager["token"].as_str().unwrap_or_default().split('.').map(str::to_owned).collect();
    assert!(token.len() == 3 && token.iter().all(|part| part.parse::<u64>().is_ok()), "{token:?}");
    let range = sites[2].json(&["range", "expand", "n1"]);
    assert_eq!(range, serde_json::json!({"schema": "collective.range/1", "nodes": ["n1"], "folded": "n1"}));
    let table = sites[1].ok(&["members", "--no-header"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(sites[1].ok(&["members", "-o", "names"]), "mgt1\nmgt2\nmgt3\n");
}

#[test]
fn the_small_commands_need_no_daemon() {
    for words in [
        &["--version"][..],
        &["--help"],
        &["help", "exit-codes"],
        &["help", "noderange"],
        &["gen", "completions", "bash"],
        &["config", "show", "--origin"],
    ] {
        let output = crate::site::collective(words);
        assert!(!output.clone().good().is_empty(), "{output:?}");
    }
    let codes = crate::site::collective(&["help", "exit-codes"]).good();
    for code in [64, 65, 69, 70, 75, 76, 77, 78, 104, 105, 106, 107, 108, 109, 110, 124] {
        assert!(codes.contains(&code.to_string()), "{code} in {codes}");
    }
}
