//! The member list under change: who leaves, who is deleted, who returns, and under which role and key.

use std::time::{Duration, Instant};

use crate::nodes::{define_nodes, managers, manages, taken_over};
use crate::site::{PATIENCE, Plan, Site, assemble, settle, three, wait_until};

#[test]
fn s12_a_member_deleted_while_it_was_away_is_told_stops_and_explains() {
    let mut sites = three();
    define_nodes(&sites);
    sites[2].kill();
    wait_until("it is missed", PATIENCE, || sites[0].run(&["show"]).stdout.contains("Offline collective members:"));

    let dry = sites[0].ok(&["delete", "mgt3", "--dry-run"]);
    assert!(dry.contains("would be deleted"), "{dry}");
    sites[0].ok(&["delete", "mgt3"]);
    for site in &sites[..2] {
        site.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n");
    }
    sites[0].refuses(&["delete", "mgt3"], 105);

    // It returns with everything it had, and is told.
    sites[2].start();
    wait_until("the deleted member knows", PATIENCE, || {
        sites[2].status().is_some_and(|status| status["health"][0]["code"] == "removed")
    });
    assert!(sites[2].run(&["show"]).stdout.starts_with("Quorum: False\n"));
    let refusal = sites[2].refuses(&["attrib", "n1", "custom.x=1"], 106);
    assert!(refusal.contains("taken off the roster") && refusal.contains("collective invite mgt3"), "{refusal}");
    assert_eq!(manages(&sites[2], "mgt3"), 0);
    assert!(sites[2].log().contains("taken off the roster"));
    // What it holds stays readable, and the others do not list it again.
    assert!(sites[2].ok(&["node", "list", "--stale"]).contains("n12"));
    sites[0].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n");

    // So it stays after a restart; and a new invitation lets it in again.
    sites[2].kill();
    sites[2].start();
    sites[2].refuses(&["attrib", "n1", "custom.x=1"], 106);
    sites[2].join(&sites[0]);
    settle(&sites.iter().collect::<Vec<_>>());
    sites[2].ok(&["attrib", "n1", "custom.x=1"]);
}

#[test]
fn deleting_a_live_member_must_be_insisted_on_and_is_final_at_once() {
    let sites = three();
    define_nodes(&sites);
    let text = sites[0].refuses(&["delete", "mgt2"], 107);
    assert!(text.contains("--force"), "{text}");
    sites[1].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3\n");

    sites[0].ok(&["delete", "mgt2", "--force"]);

    wait_until("it is told at once", Duration::from_secs(5), || {
        sites[1].status().is_some_and(|status| status["health"][0]["code"] == "removed")
    });
    sites[1].refuses(&["attrib", "n1", "custom.x=1"], 106);
    sites[1].refuses(&["invite", "mgt9"], 106);
    taken_over(&sites[0], "mgt2", Instant::now());
    sites[0].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt3\n");
    // One cannot delete oneself, nor whoever is not there.
    sites[0].refuses(&["delete", "mgt1", "--force"], 64);
    sites[0].refuses(&["delete", "mgt8"], 105);
}

#[test]
fn a_member_that_leaves_hands_over_and_is_gone() {
    let sites = three();
    define_nodes(&sites);

    sites[1].ok(&["leave"]);

    for site in [&sites[0], &sites[2]] {
        site.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt3\n");
        taken_over(site, "mgt2", Instant::now());
    }
    sites[1].refuses(&["attrib", "n1", "custom.x=1"], 106);
    sites[0].ok(&["attrib", "n1", "custom.x=1"]);
    let lonely = Site::on_loopback("mgt7");
    lonely.refuses(&["leave"], 64);
}

#[test]
fn roles_change_one_vote_at_a_time() {
    let sites = three();
    assert_eq!(sites[0].json(&["status"])["quorum"]["expected"], 3);

    sites[1].ok(&["role", "mgt3", "nonvoting"]);
    for site in &sites {
        wait_until("two votes are left", PATIENCE, || {
            site.status().is_some_and(|status| status["quorum"]["expected"] == 2)
        });
    }
    sites[0].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3 (nonvoting)\n");

    sites[0].ok(&["role", "mgt3", "voter"]);
    for site in &sites {
        wait_until("three votes again", PATIENCE, || {
            site.status().is_some_and(|status| status["quorum"]["expected"] == 3 && status["quorum"]["votes"] == 3)
        });
    }
    sites[0].refuses(&["role", "mgt8", "voter"], 105);
    sites[0].refuses(&["role", "mgt3", "king"], 64);
}

#[test]
fn drained_members_keep_no_node_and_undrained_ones_may_take_them() {
    let sites = three();
    define_nodes(&sites);
    sites[0].ok(&["drain", "mgt2"]);
    for site in &sites {
        wait_until("mgt2 is empty and every node is managed", PATIENCE, || {
            let managers = managers(site);
            managers.iter().all(|(_, manager)| manager.as_deref().is_some_and(|name| name != "mgt2"))
        });
    }

    sites[2].ok(&["undrain", "mgt2"]);
    wait_until("mgt2 no longer drains", PATIENCE, || sites[0].member("mgt2")["draining"] == false);
    sites[0].ok(&["move", "n1", "--to", "mgt2"]);
    for site in &sites {
        wait_until("n1 is where it was sent", PATIENCE, || {
            managers(site).contains(&("n1".into(), Some("mgt2".into())))
        });
    }
    sites[0].refuses(&["move", "n1", "--to", "mgt8"], 105);
}

#[test]
fn s9_a_member_that_returns_at_another_address_keeps_its_identity_and_role() {
    let mut sites = ["mgt1", "mgt2", "mgt3"].map(Site::on_loopback);
    sites[1].join(&sites[0]);
    sites[2].join_with(&sites[0], "--nonvoting");
    settle(&sites.iter().collect::<Vec<_>>());
    sites[0].ok(&["node", "define", "n1"]);
    let before = sites[0].member("mgt3");

    // Port 0 gives another port at every start.
    sites[2].kill();
    sites[0].ok(&["attrib", "n1", "custom.x=1"]);
    sites[2].start();

    settle(&sites.iter().collect::<Vec<_>>());
    sites[2].sees("n1", "custom.x", "1");
    let after = sites[0].member("mgt3");
    assert_ne!(before["address"], after["address"], "the address is another");
    for same in ["role", "votes", "fingerprint", "name"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_eq!(after["role"], "nonvoting");
    assert_eq!(sites[0].json(&["status"])["quorum"]["expected"], 2);

    // A voter, too.
    let before = sites[0].member("mgt2");
    sites[1].kill();
    sites[1].start();
    settle(&sites.iter().collect::<Vec<_>>());
    let after = sites[0].member("mgt2");
    assert_ne!(before["address"], after["address"], "the address is another");
    assert_eq!((&before["fingerprint"], "voter"), (&after["fingerprint"], after["role"].as_str().unwrap_or("")));
}

#[test]
fn all_members_may_return_at_other_addresses_one_after_the_other() {
    let mut sites = three();
    sites[0].ok(&["node", "define", "n1"]);
    for round in 0..3 {
        sites[round].kill();
        sites[round].start();
        settle(&sites.iter().collect::<Vec<_>>());
        sites[round].ok(&["attrib", "n1", &format!("custom.round{round}=1")]);
    }
    for site in &sites {
        site.sees("n1", "custom.round0", "1");
        site.sees("n1", "custom.round2", "1");
    }
}

#[test]
fn s11_gencert_on_a_live_member_rotates_its_key_and_evicts_nobody() {
    let mut sites = three();
    sites[0].ok(&["node", "define", "n1"]);
    let before = sites[0].member("mgt2")["fingerprint"].clone();

    let output = sites[1].run(&["gencert"]);
    // Confluent's verb on a member that is in a collective: a rotation, never an eviction.
    let output = if output.code == 0 { output } else { sites[1].run(&["gencert", "--rotate"]) };
    assert!(output.clone().good().contains("Certificate generated successfully"), "{output:?}");

    wait_until("the others accept the new key only", PATIENCE, || sites[0].member("mgt2")["fingerprint"] != before);
    settle(&sites.iter().collect::<Vec<_>>());
    sites[1].ok(&["attrib", "n1", "custom.x=1"]);
    sites[2].sees("n1", "custom.x", "1");

    // The new key lasts.
    sites[1].kill();
    sites[1].start();
    settle(&sites.iter().collect::<Vec<_>>());
    sites[1].ok(&["attrib", "n1", "custom.x=2"]);
}

#[test]
fn s13_the_old_manager_returns_and_no_node_moves_for_its_sake() {
    let mut sites = three();
    define_nodes(&sites);
    sites[0].kill();
    taken_over(&sites[1], "mgt1", Instant::now());
    let after_failover = managers(&sites[1]);
    sites[0].start();
    settle(&sites.iter().collect::<Vec<_>>());

    // It would take some back within a few rounds of renewals, if it did.
    let returned = Instant::now();
    wait_until("three lease times pass", PATIENCE, || {
        assert_eq!(managers(&sites[1]), after_failover);
        returned.elapsed() > Duration::from_secs(3)
    });
    wait_until("the old manager agrees", PATIENCE, || managers(&sites[0]) == after_failover);

    // What an administrator asks for moves, of course.
    sites[0].ok(&["attrib", "n1", "collective.manager=mgt1"]);
    wait_until("n1 moves to the manager that is preferred", PATIENCE, || {
        managers(&sites[2]).contains(&("n1".into(), Some("mgt1".into())))
    });
}

#[test]
fn s5_a_candidate_that_nobody_knows_is_skipped() {
    let mut sites = three();
    let output = sites[0].run(&["node", "define", "n[1-6]", "collective.managercandidates=mgt9,mgt1,mgt2"]);
    if output.code != 0 {
        // It is told at once, and nothing is stored; a member that was deleted later is the same situation.
        output.refused(105);
        let spare = Site::on_loopback("mgt9");
        spare.join(&sites[0]);
        sites[0].ok(&["node", "define", "n[1-6]", "collective.managercandidates=mgt9,mgt1,mgt2"]);
        sites[0].ok(&["delete", "mgt9", "--force"]);
    }
    wait_until("every node is managed", PATIENCE, || {
        let managers = managers(&sites[1]);
        managers.len() == 6 && managers.iter().all(|(_, manager)| matches!(manager.as_deref(), Some("mgt1" | "mgt2")))
    });

    sites[0].kill();

    // The other candidate takes every node; mgt3 is none.
    wait_until("failover is not stopped by the bad name", PATIENCE, || {
        managers(&sites[1]).iter().all(|(_, manager)| manager.as_deref() == Some("mgt2"))
    });
    let why = sites[1].ok(&["managers", "n1", "--why"]);
    assert!(why.contains("mgt9"), "{why}");
}

#[test]
fn a_paused_member_wakes_without_believing_in_its_old_lease() {
    let sites = three();
    define_nodes(&sites);

    sites[0].pause();
    taken_over(&sites[1], "mgt1", Instant::now());
    sites[1].ok(&["attrib", "n1", "custom.meanwhile=1"]);
    sites[0].resume();

    // The very first answer knows: what it managed is taken.
    assert_eq!(manages(&sites[0], "mgt1"), 0);
    settle(&sites.iter().collect::<Vec<_>>());
    sites[0].sees("n1", "custom.meanwhile", "1");
    sites[0].ok(&["attrib", "n1", "custom.after=1"]);
}

#[test]
fn a_restarted_collective_of_one_has_its_data() {
    let mut site = Site::on_loopback("mgt1");
    site.ok(&["node", "define", "n[1-3]", "custom.x=1"]);
    site.kill();
    site.start();
    wait_until("it writes again", PATIENCE, || site.run(&["attrib", "n1", "custom.y=2"]).code == 0);
    assert_eq!(site.stop(), 0);
    assert!(!site.socket().exists(), "a clean stop takes its sockets away");
    site.start();
    site.sees("n1", "custom.y", "2");
    assert_eq!(site.attribute("n3", "custom.x").as_deref(), Some("1"));
}

#[test]
fn a_dead_member_is_replaced_by_inviting_its_name_again() {
    let mut sites = three();
    sites[0].ok(&["node", "define", "n1"]);
    sites[2].kill();
    wait_until("it is missed", PATIENCE, || sites[0].run(&["show"]).stdout.contains("Offline collective members:"));

    // A new machine under the old name.
    let new = Plan::new("mgt3").start();
    new.join(&sites[1]);

    settle(&[&sites[0], &sites[1], &new]);
    new.ok(&["attrib", "n1", "custom.x=1"]);
    sites[0].sees("n1", "custom.x", "1");
    // The old one, switched on again, is not it any more.
    sites[2].start();
    wait_until("the old one knows", PATIENCE, || sites[2].run(&["attrib", "n1", "custom.x=2"]).code == 106);
    sites[0].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3\n");
}

#[test]
fn five_members_lose_two_and_go_on() {
    let mut sites = ["mgt1", "mgt2", "mgt3", "mgt4", "mgt5"].map(Site::on_loopback);
    assemble(&sites);
    sites[0].ok(&["node", "define", "n1"]);
    assert_eq!(sites[0].run(&["quorum", "--without", "mgt[1-2]"]).code, 0);
    assert_eq!(sites[0].run(&["quorum", "--without", "mgt[1-3]"]).code, 1);

    sites[0].kill();
    sites[1].kill();

    wait_until("three of five write", PATIENCE, || sites[2].run(&["attrib", "n1", "custom.x=1"]).code == 0);
    sites[3].shows(
        "Quorum: True\nLeader: mgt3\nActive collective members:\n    mgt4\n    mgt5\n\
         Offline collective members:\n    mgt1\n    mgt2\n",
    );
    sites[2].kill();
    wait_until("two of five do not", PATIENCE, || sites[3].run(&["attrib", "n1", "custom.x=2"]).code == 106);
}

/// Returns the members that vote, as one sees it.
fn voters(site: &Site) -> Vec<String> {
    let report = site.json(&["quorum"]);
    let voters = report["voters"].as_array().into_iter().flatten();
    voters.filter_map(|voter| voter["member"].as_str().map(str::to_owned)).collect()
}

#[test]
fn so_many_members_vote_as_are_wanted_and_a_dead_one_is_replaced() {
    let mut sites = ["mgt1", "mgt2", "mgt3", "mgt4", "mgt5"].map(Site::on_loopback);
    for site in &sites[1..4] {
        site.join(&sites[0]);
    }
    // Invited as nonvoting, it is never given a vote.
    sites[4].join_with(&sites[0], "-n");
    wait_until("four vote", PATIENCE, || voters(&sites[0]).len() == 4);

    let said = sites[1].ok(&["voters", "--ideal", "3", "--replace-after", "1s"]);
    assert!(said.starts_with("3 voters are wanted; a dead one is replaced after 1 s"), "{said}");
    wait_until("three vote", PATIENCE, || voters(&sites[2]) == ["mgt1", "mgt2", "mgt3"]);
    let said = sites[3].ok(&["voters"]);
    assert!(said.contains("mgt4 may be given a vote") && said.contains("mgt5 has no vote"), "{said}");
    sites[3].shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3\n    mgt4 (nonvoting)\n    mgt5 (nonvoting)\n");

    sites[1].kill();

    wait_until("the dead one is replaced", PATIENCE, || voters(&sites[0]) == ["mgt1", "mgt3", "mgt4"]);
    sites[1].start();
    wait_until("it is back without a vote", PATIENCE, || {
        sites[1].run(&["voters"]).stdout.contains("mgt2 may be given a vote")
    });
    sites[0].ok(&["voters", "--ideal", "0"]);
    wait_until("everyone has its vote back but who never had one", PATIENCE, || {
        voters(&sites[4]) == ["mgt1", "mgt2", "mgt3", "mgt4"]
    });
}
