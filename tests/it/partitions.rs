//! Partitions of three members with the timing that members have unless told otherwise, in network namespaces.

use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::nodes::{define_nodes, managers, taken_over};
use crate::site::{PATIENCE, Site, settle, wait_until};
use crate::watch::{ActingWatch, Write, Writer, longest_gap};

/// A cut member knows by then: T of the `lan` profile is 2 s.
const LOCK_DOWN: Duration = Duration::from_secs(3);
/// A cut member's nodes have another acting manager by then.
const TAKEOVER: Duration = Duration::from_secs(4);
/// The cut member has what it missed by then after the heal.
const RESYNC: Duration = Duration::from_secs(4);

#[track_caller]
fn nothing_is_lost(sites: &[Site; 3], node: &str, writes: &[Write]) {
    for site in sites {
        let document = site.json(&["attrib", node]);
        let attributes = &document["nodes"][0]["attributes"];
        for write in writes.iter().filter(|write| write.accepted()) {
            assert!(
                attributes[&write.attribute]["value"].is_string(),
                "{}: {} was acknowledged and is lost",
                site.name(),
                write.attribute
            );
        }
    }
}

/// Cuts one member off, with writers on all three, and checks every promise of the feature table's first row.
#[track_caller]
fn cut_and_heal(cut: usize) {
    let Some(lab) = Lab::build(3) else { return };
    let sites = lab.three();
    define_nodes(&sites);
    let name = sites[cut].name().to_owned();
    let others: Vec<_> = sites.iter().filter(|site| site.name() != name).collect();
    let watch = ActingWatch::start(&sites.iter().collect::<Vec<_>>());
    let writers: Vec<_> = sites.iter().map(|site| Writer::start(site, "n1")).collect();

    let moment = Instant::now();
    lab.isolate(cut + 1);

    // The lonely member locks down in time, and says why.
    wait_until("the cut member knows", PATIENCE, || sites[cut].run(&["show"]).stdout.starts_with("Quorum: False\n"));
    let locked = moment.elapsed();
    let refusal = sites[cut].refuses(&["attrib", "n1", "custom.no=1"], 106);
    assert!(refusal.contains("quorum"), "{refusal}");
    let taken: Vec<_> = others.iter().map(|site| taken_over(site, &name, moment)).collect();
    sites[cut].refuses(&["attrib", "n1"], 106);
    assert_eq!(sites[cut].run(&["attrib", "n1", "custom.no", "--stale"]).code, 0);
    others[0].ok(&["attrib", "n2", "custom.meanwhile=yes"]);
    wait_until("the others list it offline", PATIENCE, || {
        others[1].run(&["show"]).stdout.contains(&format!("Offline collective members:\n    {name}\n"))
    });

    let healed = Instant::now();
    lab.heal();
    wait_until("the missed write arrives", PATIENCE, || {
        sites[cut].attribute("n2", "custom.meanwhile").as_deref() == Some("yes")
    });
    let resynced = healed.elapsed();
    wait_until("the member writes again", PATIENCE, || sites[cut].run(&["attrib", "n3", "custom.back=1"]).code == 0);
    let writes: Vec<_> = writers.into_iter().map(Writer::finish).collect();
    settle(&sites.iter().collect::<Vec<_>>());

    watch.finish();
    for writes in &writes {
        nothing_is_lost(&sites, "n1", writes);
    }
    // No write was taken by the cut member between its lock-down and the heal.
    let leaked = writes[cut]
        .iter()
        .find(|write| write.accepted() && write.asked > moment + LOCK_DOWN && write.answered < healed);
    assert!(leaked.is_none(), "{leaked:?}");
    for (site, writes) in sites.iter().zip(&writes).filter(|(site, _)| site.name() != name) {
        let refused = writes.iter().find(|write| !write.accepted());
        assert!(refused.is_none(), "{} accepts writes throughout: {refused:?}", site.name());
    }
    println!("locked down after {locked:?}, taken over after {taken:?}, resynced after {resynced:?}");
    assert!(locked <= LOCK_DOWN, "locked down after {locked:?}");
    assert!(taken.iter().all(|taken| *taken <= TAKEOVER), "taken over after {taken:?}");
    assert!(resynced <= RESYNC, "resynced after {resynced:?}");
}

#[test]
fn s1_a_cut_leader_locks_down_and_nothing_is_lost() {
    cut_and_heal(0);
}

#[test]
fn a_cut_follower_locks_down_and_nothing_is_lost() {
    cut_and_heal(2);
}

#[test]
fn s4_the_others_go_on_writing_when_the_leader_is_killed() {
    let Some(lab) = Lab::build(3) else { return };
    let mut sites = lab.three();
    define_nodes(&sites);
    let watch = ActingWatch::start(&sites.iter().collect::<Vec<_>>());
    let writers = [Writer::start(&sites[1], "n1"), Writer::start(&sites[2], "n2")];
    wait_until("the leader is known", PATIENCE, || sites[1].run(&["show"]).stdout.contains("Leader: mgt1\n"));

    let moment = Instant::now();
    sites[0].kill();
    let taken = taken_over(&sites[1], "mgt1", moment);
    sites[1].shows(
        "Quorum: True\nLeader: mgt2\nActive collective members:\n    mgt3\nOffline collective members:\n    mgt1\n",
    );

    let writes = writers.map(Writer::finish);
    let gaps = [0, 1].map(|writer| longest_gap(&writes[writer], moment));
    println!("longest gaps {gaps:?}, taken over after {taken:?}");
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_secs(1)), "gaps {gaps:?}");
    assert!(taken <= TAKEOVER, "taken over after {taken:?}");

    // The old leader returns with nothing lost, and no node moves for its sake (S13).
    let before = managers(&sites[1]);
    sites[0].start();
    settle(&sites.iter().collect::<Vec<_>>());
    assert_eq!(managers(&sites[1]), before);
    watch.finish();
    nothing_is_lost(&sites, "n1", &writes[0]);
    nothing_is_lost(&sites, "n2", &writes[1]);
}

#[test]
fn s8_a_minority_cannot_change_the_member_list() {
    let Some(lab) = Lab::build(3) else { return };
    let sites = lab.three();
    lab.isolate(3);
    wait_until("the cut member knows", PATIENCE, || sites[2].run(&["show"]).stdout.starts_with("Quorum: False\n"));

    for words in [
        &["delete", "mgt1", "--force"][..],
        &["delete", "mgt1"],
        &["delete", "mgt2"],
        &["invite", "mgt4"],
        &["role", "mgt1", "nonvoting"],
        &["leave"],
        &["drain", "mgt1"],
        &["node", "define", "n1"],
        &["group", "define", "g1"],
    ] {
        sites[2].refuses(words, 106);
    }

    assert_eq!(sites[2].run(&["quorum"]).code, 1);
    assert_eq!(sites[2].run(&["check"]).code, 2);
    lab.heal();
    settle(&sites.iter().collect::<Vec<_>>());
    for site in &sites {
        site.shows("Quorum: True\nLeader: mgt1\nActive collective members:\n    mgt2\n    mgt3\n");
    }
}

#[test]
fn a_member_that_is_not_heard_is_not_followed() {
    let Some(lab) = Lab::build(3) else { return };
    let sites = lab.three();
    define_nodes(&sites);
    let watch = ActingWatch::start(&sites.iter().collect::<Vec<_>>());
    let writers = [Writer::start(&sites[0], "n1"), Writer::start(&sites[1], "n1")];

    // What mgt3 says is lost; it hears the others well.
    let moment = Instant::now();
    lab.deafen(3, 1);
    lab.deafen(3, 2);
    wait_until("the mute member knows", PATIENCE, || sites[2].run(&["show"]).stdout.starts_with("Quorum: False\n"));
    let locked = moment.elapsed();
    let taken = taken_over(&sites[0], "mgt3", moment);

    lab.heal();
    let writes = writers.map(Writer::finish);
    settle(&sites.iter().collect::<Vec<_>>());
    watch.finish();
    for writes in writes {
        assert!(writes.iter().all(Write::accepted), "{:?}", writes.iter().find(|write| !write.accepted()));
        nothing_is_lost(&sites, "n1", &writes);
    }
    assert!(locked <= LOCK_DOWN, "locked down after {locked:?}");
    assert!(taken <= TAKEOVER, "taken over after {taken:?}");
}

#[test]
fn two_members_that_reach_each_other_by_a_third_only_never_act_for_one_node() {
    let Some(lab) = Lab::build(3) else { return };
    let sites = lab.three();
    define_nodes(&sites);
    let watch = ActingWatch::start(&sites.iter().collect::<Vec<_>>());
    let writers: Vec<_> = sites.iter().map(|site| Writer::start(site, "n1")).collect();

    // Each end has the middle's vote and its own: both have quorum, but a node's claim is given once.
    lab.cut(1, 3);
    let moment = Instant::now();
    wait_until("everything stays managed over the bridge", PATIENCE, || {
        moment.elapsed() > Duration::from_secs(5) && managers(&sites[1]).iter().all(|(_, manager)| manager.is_some())
    });
    for site in &sites {
        assert!(site.run(&["show"]).stdout.starts_with("Quorum: True\n"), "{}", site.name());
    }
    lab.heal();
    let writes: Vec<_> = writers.into_iter().map(Writer::finish).collect();

    settle(&sites.iter().collect::<Vec<_>>());
    watch.finish();
    for writes in writes {
        nothing_is_lost(&sites, "n1", &writes);
    }
}

#[test]
fn s14_three_members_that_all_start_cold_have_quorum_soon() {
    let Some(lab) = Lab::build(3) else { return };
    let mut sites = lab.three();
    define_nodes(&sites);
    sites[0].ok(&["attrib", "n1", "custom.kept=yes"]);
    for site in &mut sites {
        site.kill();
    }

    let moment = Instant::now();
    for site in &mut sites {
        site.launch();
    }
    for site in &sites {
        wait_until(&format!("{} has quorum", site.name()), PATIENCE, || {
            site.run(&["show"]).stdout.starts_with("Quorum: True\n")
        });
    }
    let quorate = moment.elapsed();
    wait_until("a write is accepted", PATIENCE, || sites[2].run(&["attrib", "n1", "custom.again=1"]).code == 0);

    // 3 s, and the quiet start of 1.05 T during which no voter grants (R6).
    assert!(quorate <= Duration::from_millis(3_000 + 2_100), "quorate after {quorate:?}");
    assert_eq!(sites[1].attribute("n1", "custom.kept").as_deref(), Some("yes"));
}

#[test]
fn a_collective_of_two_halves_stops_on_both_sides() {
    let Some(lab) = Lab::build(2) else { return };
    let sites = [1, 2].map(|member| lab.plan(member).start());
    sites[1].join(&sites[0]);
    settle(&[&sites[0], &sites[1]]);
    sites[0].ok(&["node", "define", "n1"]);

    lab.cut(1, 2);
    for site in &sites {
        wait_until("half knows that it is no majority", PATIENCE, || {
            site.run(&["show"]).stdout.starts_with("Quorum: False\n")
        });
        site.refuses(&["attrib", "n1", "custom.x=1"], 106);
    }

    lab.heal();
    for site in &sites {
        wait_until("both write again", PATIENCE, || {
            site.run(&["attrib", "n1", &format!("custom.{}=1", site.name())]).code == 0
        });
    }
    sites[0].sees("n1", "custom.mgt2", "1");
    sites[1].sees("n1", "custom.mgt1", "1");
}
