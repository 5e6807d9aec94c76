//! The simulator as people run it: the same seed gives the same trace in any process and at any number of jobs.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collective-sim")).args(arguments).output().expect("the simulator starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn two_processes_tell_the_same_of_one_seed() {
    let runs = [(); 2].map(|()| sim(&["run", "random", "--seed", "3", "-o", "json"]));
    let report: serde_json::Value = serde_json::from_slice(&runs[0].stdout).expect("JSON");
    assert_eq!(report["hash"].as_str().map(str::len), Some(64));
    assert_eq!(text(&runs[0]), text(&runs[1]));
    assert_eq!(runs[0].status.code(), Some(0), "{}", text(&runs[0]));
}

#[test]
fn a_sweep_tells_the_same_at_any_number_of_jobs() {
    let sweep = |jobs| sim(&["sweep", "split-minority", "--seeds", "0..4", "-j", jobs, "-o", "json"]);
    let (alone, together) = (sweep("1"), sweep("3"));
    assert!(!alone.stdout.is_empty());
    assert_eq!(text(&alone), text(&together));
}

#[test]
fn a_replay_compares_two_runs() {
    let replay = sim(&["replay", "healthy-three", "--seed", "5"]);
    assert_eq!(replay.status.code(), Some(0), "{}", text(&replay));
    assert!(text(&replay).contains("events twice"), "{}", text(&replay));
}

#[test]
fn the_figures_of_failover_are_kept_and_are_the_same_at_any_number_of_jobs() {
    let figures = |jobs, only| sim(&["figures", "--seeds", "0..6", "-j", jobs, only]);
    let (lock_down, takeover) = (figures("1", "lock-down"), figures("2", "takeover"));
    assert_eq!(text(&lock_down), text(&figures("3", "lock-down")));
    for output in [&lock_down, &takeover] {
        let lines: Vec<_> = text(output).lines().skip(1).map(str::to_owned).collect();
        assert!(lines.len() >= 2 && lines.iter().all(|line| line.ends_with(": met")), "{lines:#?}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn other_seeds_are_other_runs() {
    let runs = ["1", "2"].map(|seed| text(&sim(&["run", "healthy-three", "--seed", seed])));
    assert_ne!(runs[0], runs[1]);
}

#[test]
fn a_wrong_command_line_is_told_from_a_violation() {
    assert_eq!(sim(&["run", "no-such-scenario"]).status.code(), Some(1));
    assert_eq!(sim(&["sweep", "--seeds", "9..3"]).status.code(), Some(1));
    let list = sim(&["list"]);
    assert_eq!(list.status.code(), Some(0));
    assert!(text(&list).contains("split-minority"));
}
