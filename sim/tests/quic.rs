//! Level `quic` as people run it: whole daemons, repeatable to the byte.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collective-sim")).args(arguments).output().expect("the simulator starts")
}

fn report(scenario: &str, seed: &str) -> serde_json::Value {
    let output = sim(&["run", scenario, "--level", "quic", "--seed", seed, "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0), "{scenario} seed {seed}: {}", report["violations"]);
    report
}

#[test]
fn two_processes_send_the_same_bytes_at_the_same_time_for_one_seed_and_others_for_another() {
    let runs = ["4", "4", "5"].map(|seed| report("random", seed));
    assert_eq!(runs[0]["hash"].as_str().map(str::len), Some(64));
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0]["hash"], runs[2]["hash"]);
}

#[test]
fn a_sweep_tells_the_same_at_any_number_of_jobs() {
    let sweep = |jobs| sim(&["sweep", "healthy-three", "--level", "quic", "--seeds", "0..3", "-j", jobs, "-o", "json"]);
    let (alone, together) = (sweep("1"), sweep("3"));
    assert!(!alone.stdout.is_empty());
    assert_eq!(String::from_utf8_lossy(&alone.stdout), String::from_utf8_lossy(&together.stdout));
}

/// With the usual window of a new connection, of these seeds only one is in time.
#[test]
fn what_a_cut_swallowed_does_not_keep_a_member_from_its_seat() {
    for seed in ["0", "1", "2", "3"] {
        report("way-back", seed);
    }
}

#[test]
fn scenarios_of_level_core_hold_for_whole_daemons() {
    for scenario in ["split-minority", "leader-killed", "one-way", "cold-start", "pause", "joiner-dies"] {
        let report = report(scenario, "2");
        for what in ["enrolled", "act", "quorate"] {
            assert!(report["coverage"][what].as_u64() > Some(0), "{scenario}: {what} never came up");
        }
    }
}

#[test]
fn who_lost_its_disk_or_its_name_is_set_up_anew_and_let_in_again() {
    for (scenario, what) in [
        ("disk-lost", "power-wiped"),
        ("backup-restored", "restore"),
        ("cloned-identity", "clone"),
        ("key-rotation", "key switched"),
        ("join-crash", "join disturbed"),
    ] {
        let report = report(scenario, "1");
        assert!(report["coverage"][what].as_u64() > Some(0), "{scenario}: {what} never came up");
        let enrolled = report["coverage"]["enrolled"].as_u64();
        assert!(what == "key switched" || enrolled > Some(4), "{scenario}: nobody was invited again");
    }
}

#[test]
fn an_acknowledged_write_is_looked_for_on_the_disks() {
    let report = report("healthy-three", "1");
    let seen = |what: &str| report["coverage"][what].as_u64();
    assert!(seen("acknowledged") > Some(20));
    assert_eq!(seen("acknowledged"), seen("copies counted"));
}

#[test]
fn every_encounter_ends_as_it_should() {
    let list = sim(&["list"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let (_, ours) = list.split_once("at level quic only:\n").expect("the encounters are listed");
    let names: Vec<_> = ours.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        for seed in ["1", "2"] {
            report(name, seed);
        }
    }
}

#[test]
fn what_this_level_cannot_do_is_said() {
    let output = sim(&["run", "no-such-scenario", "--level", "quic"]);
    assert_eq!(output.status.code(), Some(1));
}
