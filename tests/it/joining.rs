//! Joining: the man page's one line, and every token that must not open the door.

use std::time::Duration;

use crate::site::{PATIENCE, Plan, Site, assemble, clean, collective, run, settle, three, wait_until};

#[test]
fn the_line_of_the_man_page_joins_three_members_that_all_show_one_another() {
    let sites = ["mgt1", "mgt2", "mgt3"].map(Site::on_loopback);
    sites[0].shows("Quorum: True\nLeader: mgt1\n");

    // The third is invited by the second: every member can invite.
    assemble(&sites);

    for site in &sites {
        site.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3\n");
        let show = site.json(&["show"]);
        assert_eq!(show["schema"], "collective.show/1");
        assert_eq!(show["quorum"], true);
        assert_eq!(show["leader"], "mgt1");
        assert_eq!(show["active"], serde_json::json!(["mgt2", "mgt3"]));
        assert_eq!(show["offline"], serde_json::json!([]));
        assert_eq!(show["nonvoting"], serde_json::json!([]));
    }
}

#[test]
fn a_nonvoting_member_is_marked_and_a_lost_one_is_listed_offline() {
    let mut sites = ["mgt1", "mgt2", "mgt3"].map(Site::on_loopback);
    sites[1].join(&sites[0]);
    sites[2].join_with(&sites[0], "-n");
    sites[0].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3 (nonvoting)\n");

    sites[2].kill();

    let text = "Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n\
                Offline collective members:\n    mgt3 (nonvoting)\n";
    sites[0].shows(text);
    sites[1].shows(text);
    assert_eq!(sites[0].json(&["show"])["offline"], serde_json::json!(["mgt3"]));
    assert_eq!(sites[0].json(&["show"])["nonvoting"], serde_json::json!(["mgt3"]));
}

#[test]
fn the_token_comes_alone_on_stdout_and_goes_in_without_the_command_line() {
    let [one, two, three] = ["mgt1", "mgt2", "mgt3"].map(Site::on_loopback);
    let output = one.run(&["invite", "mgt2"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
    assert!(output.stderr.starts_with("holds until "), "{output:?}");
    let listed = one.ok(&["invites"]);
    assert!(listed.contains("mgt2") && !listed.contains(output.stdout.trim()), "{listed}");

    // By stdin, and without the server: the token says where it was made.
    assert_eq!(two.run_with(&["join", "-i", "-"], &output.stdout).good().lines().last(), Some("Success"));

    // By a file.
    let file = three.home().join("token");
    std::fs::write(&file, one.ok(&["invite", "mgt3"])).expect("a file in our own directory");
    three.ok(&["join", &one.address(), "-i", &format!("@{}", file.display())]);
    settle(&[&one, &two, &three]);
}

#[test]
fn a_token_that_was_used_expired_or_revoked_opens_nothing_and_says_so() {
    let [one, two, late] = ["mgt1", "mgt2", "mgt4"].map(Site::on_loopback);
    let address = one.address();
    let token = one.ok(&["invite", "mgt2"]);
    two.ok(&["join", &address, "-i", token.trim()]);

    let used = late.refuses(&["join", &address, "-i", token.trim()], 110);
    assert!(used.contains("used"), "{used}");

    let short = one.ok(&["invite", "mgt4", "--ttl", "1s"]);
    wait_until("the invitation expires", Duration::from_secs(5), || {
        late.run(&["join", &address, "-i", short.trim(), "--no-wait", "--dry-run"]).code == 64
            && one.ok(&["invites", "--no-header"]).is_empty()
    });
    let expired = late.refuses(&["join", &address, "-i", short.trim()], 110);
    assert!(expired.contains("expired"), "{expired}");

    let revoked = one.ok(&["invite", "mgt4"]);
    one.ok(&["invites", "revoke", "mgt4"]);
    late.refuses(&["join", &address, "-i", revoked.trim()], 104);
    one.refuses(&["invites", "revoke", "mgt4"], 105);

    // A new invitation for a name takes the place of the earlier one.
    let first = one.ok(&["invite", "mgt4"]);
    let second = one.run(&["invite", "mgt4"]);
    assert!(second.stderr.contains("revoked"), "{second:?}");
    late.refuses(&["join", &address, "-i", first.trim()], 104);
    late.ok(&["join", &address, "-i", second.stdout.trim()]);
    settle(&[&one, &two, &late]);
}

#[test]
fn a_wrong_token_opens_nothing_and_says_so() {
    let [one, other, late] = ["mgt1", "mgt9", "mgt2"].map(Site::on_loopback);
    let (address, elsewhere) = (one.address(), other.address());
    let token = one.ok(&["invite", "mgt2"]).trim().to_owned();

    // Not a token at all, empty, cut short, and one letter changed.
    late.refuses(&["join", &address, "-i", "rubbish"], 65);
    late.refuses(&["join", &address, "-i", ""], 65);
    late.refuses(&["join", &address, "-i", &token[..token.len() - 5]], 65);
    let mut letters = token.clone().into_bytes();
    let middle = letters.len() / 2;
    letters[middle] = if letters[middle] == b'A' { b'B' } else { b'A' };
    let garbled = String::from_utf8(letters).expect("one letter for another");
    late.refuses(&["join", &address, "-i", &garbled], 65);
    late.refuses(&["join", &address, "-i", "@/nonexistent/token"], 65);

    // A right token at the wrong member: nothing is sent to a server that is not the inviter.
    let text = late.refuses(&["join", &elsewhere, "-i", &token], 104);
    assert!(!text.contains(&token), "a token is never repeated: {text}");

    // Nobody there.
    late.refuses(&["join", "127.0.0.1:9", "-i", &token, "--timeout", "20s"], 1);

    // None of it burned the token, and nobody joined anywhere.
    one.shows("Quorum: True\nLeader: mgt1\n");
    other.shows("Quorum: True\nLeader: mgt9\n");
    late.ok(&["join", &address, "-i", &token]);
    settle(&[&one, &late]);
}

#[test]
fn a_token_names_its_holder() {
    let [one, late] = ["mgt1", "mgt7"].map(Site::on_loopback);

    // The name that counts is the token's: the inviter decides who it is.
    let token = one.ok(&["invite", "mgt2"]);
    late.ok(&["join", &one.address(), "-i", token.trim()]);

    one.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n");
    one.refuses(&["invite", "mgt1"], 108);
}

#[test]
fn a_member_with_nodes_of_its_own_joins_only_when_told_to_replace_them() {
    let [one, two] = ["mgt1", "mgt2"].map(Site::on_loopback);
    one.ok(&["node", "define", "theirs"]);
    two.ok(&["node", "define", "mine"]);
    let (address, token) = (one.address(), one.ok(&["invite", "mgt2"]));

    let text = two.refuses(&["join", &address, "-i", token.trim()], 107);
    assert!(text.contains("--replace"), "{text}");
    assert_eq!(two.ok(&["node", "list"]), "mine\n");

    two.ok(&["join", &address, "-i", token.trim(), "--replace"]);
    assert_eq!(two.ok(&["node", "list"]), "theirs\n");
    let kept = std::fs::read_dir(two.state_dir()).expect("our own directory").flatten();
    assert!(kept.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("replaced")));

    // Once in, a member does not join again.
    let again = one.ok(&["invite", "mgt5"]);
    two.refuses(&["join", &address, "-i", again.trim()], 108);
}

#[test]
fn two_servers_with_one_token_race_and_one_wins() {
    let [one, left, right] = ["mgt1", "left", "right"].map(Site::on_loopback);
    let (address, token) = (one.address(), one.ok(&["invite", "mgt2"]));
    let race = |site: &Site| {
        let mut client = site.client();
        client.args(["join", &address, "-i", token.trim()]);
        std::thread::spawn(move || run(&mut client).code)
    };

    let codes = [race(&left), race(&right)].map(|racer| racer.join().expect("the racer ends"));

    let winners = codes.iter().filter(|code| **code == 0).count();
    assert_eq!(winners, 1, "{codes:?}");
    assert!(codes.iter().all(|code| [0, 75, 104, 110].contains(code)), "{codes:?}");
    one.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n");
}

#[test]
fn s10_a_joiner_that_dies_at_once_costs_no_quorum() {
    let [one, mut two] = ["mgt1", "mgt2"].map(Site::on_loopback);
    let (address, token) = (one.address(), one.ok(&["invite", "mgt2"]));
    one.ok(&["node", "define", "n1"]);

    // In the roster, but a learner has no vote yet.
    let joined = two.run(&["join", &address, "-i", token.trim(), "--no-wait"]);
    assert!([0, 75].contains(&joined.code), "{joined:?}");
    two.kill();

    wait_until("the dead joiner is listed offline", Duration::from_secs(10), || {
        one.run(&["show"]).stdout.contains("Offline collective members:\n    mgt2\n")
    });
    one.ok(&["attrib", "n1", "custom.x=1"]);
    let status = one.json(&["status"]);
    assert_eq!(status["quorum"]["quorate"], true, "{status}");
    assert_eq!(status["quorum"]["expected"], 1, "{status}");

    // It comes back, learns, and votes.
    two.start();
    settle(&[&one, &two]);
    assert_eq!(two.attribute("n1", "custom.x").as_deref(), Some("1"));
}

#[test]
fn a_client_without_a_daemon_is_told_which_socket_it_tried() {
    let site = Plan::new("mgt1").prepare();
    for words in [&["show"][..], &["attrib", "n1"], &["invite", "mgt2"], &["join", "mgt1", "-i", "x"]] {
        let text = site.refuses(words, 69);
        assert!(text.contains("admin.sock"), "{text}");
    }
    // By the variable, too.
    let output = run(clean(crate::site::COLLECTIVE).arg("show").env("COLLECTIVE_SOCKET", "/nonexistent/admin.sock"));
    assert!(output.refused(69).contains("/nonexistent/admin.sock"));
    assert_eq!(collective(&["frobnicate"]).refused(64).lines().count(), 2);
}

#[test]
fn members_of_three_survive_a_clean_stop_of_one_without_a_gap() {
    let mut sites = three();
    sites[0].ok(&["node", "define", "n[1-3]"]);

    assert_eq!(sites[0].stop(), 0);

    sites[1].ok(&["attrib", "n1", "custom.x=1"]);
    sites[2].ok(&["attrib", "n2", "custom.x=2"]);
    sites[0].start();
    sites[0].sees("n1", "custom.x", "1");
    sites[0].sees("n2", "custom.x", "2");
}

#[test]
fn a_member_with_seeds_and_a_token_joins_by_itself_once_one_of_them_is_there() {
    let mut one = Site::on_loopback("mgt1");
    let address = one.address();
    let file = one.home().join("token");
    std::fs::write(&file, one.ok(&["invite", "mgt2"])).expect("a file in our own directory");
    one.stop();

    // The first seed never answers, the second only later.
    let two = Plan::new("mgt2").seeded(&format!("127.0.0.1:1,{address}"), &file).start();
    wait_until("it says why it is still alone", PATIENCE, || two.log().contains("could not join"));
    two.shows("Quorum: True\nLeader: mgt2\n");
    let mut one = one.moved_to(&address);
    one.start();

    settle(&[&one, &two]);
    two.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n");
    assert!(!two.log().contains(std::fs::read_to_string(&file).expect("the token").trim()), "the token is in the log");
}
