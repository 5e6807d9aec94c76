//! The simulator's files, as people use them: scenarios of their own, cases that are kept, shrunk and replayed, traces.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collective-sim")).args(arguments).output().expect("the simulator starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A directory of its own, removed in the end.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("collective-sim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Two voters forget what they promised, without the quiet start that guards against it; and noise.
const FORGETFUL: &str = r#"
name = "forgetful"
about = "Two voters forget what they promised while the holder is cut off."
[mesh]
members = 3
[expect]
planted = "R6-quiet-start"
[[fault]]
at = "500ms"
for = "500ms"
slow-disk = { member = "m1", fsync = "30ms" }
[[fault]]
at = "2s"
for = "6s"
isolate = "m0"
[[fault]]
at = "2s"
for = "50ms"
crash = "m1"
[[fault]]
at = "2s"
for = "50ms"
crash = "m2"
[[fault]]
at = "12s"
for = "2s"
loss = "10%"
"#;

#[test]
fn a_failure_is_kept_shrunk_and_replayed_bit_for_bit() {
    let room = Room::new("case");
    let scenario = room.file("forgetful.toml", FORGETFUL);
    let failures = room.path("failures");
    let swept = sim(&["sweep", &scenario, "--seeds", "0..3", "--out", &failures]);
    assert_eq!(swept.status.code(), Some(2), "{}", text(&swept));
    let told = text(&swept);
    let again = told.lines().find(|line| line.starts_with("again: ")).expect("the command that replays it");
    let case = again.rsplit_once(' ').expect("a command with a path").1;
    assert!(Path::new(case).is_file() && case.ends_with("-shrunk.toml"), "{told}");

    let replayed = sim(&["replay", case]);
    assert_eq!(replayed.status.code(), Some(2), "{}", text(&replayed));
    assert!(text(&replayed).contains("the same as when it was kept"), "{}", text(&replayed));
    let kept = std::fs::read_to_string(case).expect("a case");
    let is_noise = |line: &str| line.contains("slow-disk") || line.contains("10%");
    // Of five faults the two that make voters forget, and at most what keeps the holder from hearing of it.
    assert!(
        (2..=3).contains(&kept.matches("[[fault]]").count()) && !kept.lines().any(is_noise),
        "the noise is gone: {kept}"
    );

    // Whatever is changed about the case is told.
    let other = room.file("other.toml", &kept.replace("members = 3", "members = 4"));
    let trace = std::fs::read_to_string(case.replace(".toml", ".jsonl")).expect("its trace");
    room.file("other.jsonl", &trace);
    let refused = sim(&["replay", &other]);
    assert_eq!(refused.status.code(), Some(6), "{}", text(&refused));
    assert!(text(&refused).contains("first difference, line"), "{}", text(&refused));

    let differing = sim(&["replay", case, "--diff", &other]);
    assert!(text(&differing).contains("first difference, line"), "{}", text(&differing));
}

#[test]
fn shrinking_writes_a_case_to_stdout() {
    let room = Room::new("shrink");
    let scenario = room.file("forgetful.toml", FORGETFUL);
    let found = (0..4).find(|seed| sim(&["run", &scenario, "--seed", &seed.to_string()]).status.code() == Some(2));
    let seed = found.expect("a seed that fails").to_string();
    let shrunk = sim(&["shrink", &scenario, "--seed", &seed]);
    let case = room.file("case.toml", &String::from_utf8_lossy(&shrunk.stdout));
    let replayed = sim(&["replay", &case]);
    assert_eq!(replayed.status.code(), Some(2), "{}", text(&replayed));
    let sound = sim(&["shrink", "healthy-three", "--seed", "1"]);
    assert_eq!(sound.status.code(), Some(1));
    assert!(text(&sound).contains("violates nothing"), "{}", text(&sound));
}

#[test]
fn a_trace_is_checked_on_its_own() {
    let room = Room::new("trace");
    let run = sim(&["run", "leader-killed", "-o", "jsonl"]);
    let trace = String::from_utf8_lossy(&run.stdout).into_owned();
    let sound = sim(&["check", &room.file("sound.jsonl", &trace)]);
    assert_eq!(sound.status.code(), Some(0), "{}", text(&sound));
    // Somebody else acts for whatever anybody acts for.
    let last = trace.lines().rfind(|line| line.contains("\"is\":\"acts\"")).expect("somebody acts");
    let other = ["m1", "m2"].into_iter().find(|other| !last.contains(other)).expect("two are alive");
    let broken: String = trace.lines().map(|line| format!("{line}\n")).collect::<String>()
        + &last.replace("\"m1\"", "\"x\"").replace("\"m2\"", "\"x\"").replace("\"x\"", &format!("\"{other}\""));
    let broken = sim(&["check", &room.file("broken.jsonl", &broken)]);
    assert_eq!(broken.status.code(), Some(2), "{}", text(&broken));
    assert!(text(&broken).contains("I1 one manager"), "{}", text(&broken));
    let none = sim(&["check", &room.file("none.jsonl", "hello")]);
    assert_eq!(none.status.code(), Some(1), "{}", text(&none));
}

#[test]
fn each_outcome_has_its_exit_code() {
    let room = Room::new("exit");
    let head = "name = \"x\"\nabout = \"y\"\n[mesh]\nmembers = 3\n[workload]\nfor = \"2s\"\n";
    let run = |name: &str, more: &str| {
        let output = sim(&["run", &room.file(name, &format!("{head}{more}"))]);
        (output.status.code(), text(&output))
    };
    let (clean, told) = run("clean.toml", "");
    assert_eq!(clean, Some(0), "{told}");
    let (mistake, told) = run("mistake.toml", "[expect]\nconverg = \"1s\"\n");
    assert_eq!(mistake, Some(1), "{told}");
    assert!(told.contains("mistake.toml:8:1: ") && told.contains("did you mean `converge`?"), "{told}");
    let (late, told) = run("late.toml", "[[step]]\nat = \"1s\"\nlocked = [\"m0\"]\n");
    assert_eq!(late, Some(3), "{told}");
    let (never, told) =
        run("never.toml", "[[fault]]\nat = \"1s\"\nfor = \"1s\"\ncrash = \"m0\"\n[expect]\nconverge = \"100ms\"\n");
    assert_eq!(never, Some(4), "{told}");
    let budget = sim(&["sweep", "--seeds", "0..100000", "--budget", "1s"]);
    assert_eq!(budget.status.code(), Some(7), "{}", text(&budget));
    assert_eq!(sim(&["selftest"]).status.code(), Some(0));
    let seen = sim(&["coverage", "split-minority", "--seeds", "0..2"]);
    assert_eq!(seen.status.code(), Some(4), "{}", text(&seen));
    assert!(text(&seen).contains("never seen: ") && text(&seen).contains("fault split"), "{}", text(&seen));
}

#[test]
fn a_run_stops_when_it_is_told_to() {
    let run = |until| serde_json::from_slice(&sim(&["run", "split-minority", "-o", "json", "--until", until]).stdout);
    let [short, long] = ["3s", "6s"].map(|until| run(until).unwrap_or(serde_json::Value::Null));
    assert_eq!(short["schema"], "collective.sim.report/1");
    let seconds = |report: &serde_json::Value| report["virtual_s"].as_f64().unwrap_or(0.0);
    assert!((seconds(&long) - seconds(&short) - 3.0).abs() < 0.1, "{short} {long}");
    assert_eq!(long["exit"], 0);
}

#[test]
fn a_scenario_is_explained() {
    let told = text(&sim(&["describe", "bridge"]));
    for words in ["Two pairs", "5 members", "bridge m0 m1 | m2 | m3 m4", "[[fault]]"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}
