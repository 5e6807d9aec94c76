//! Level `netns` as people run it: the shipped daemon in network namespaces, and a checker that would see it fail.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const SIM: &str = env!("CARGO_BIN_EXE_collective-sim");
/// How long something may take that has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three members; the first is cut off for a while, and actions run on their nodes.
const CUT_OFF: &str = r#"
name = "cut-off"
about = "One of three is cut off for six seconds while actions run on the nodes."
[mesh]
members = 3
[workload]
for = "10s"
every = "200ms"
actions-every = "100ms"
[[fault]]
at = "1s"
for = "6s"
isolate = "m0"
[[step]]
at = "3.1s"
within = "500ms"
locked = ["m0"]
quorate = ["m1", "m2"]
[[step]]
at = "4s"
within = "1s"
managed-by = ["m1", "m2"]
write = { via = "m1", answer = "done", within = "1s" }
[expect]
seen = { "quorum lost" = 1, acknowledged = "10..", action = "20.." }
"#;

/// Voters that forget what they promised; the quiet start is what guards against it (R6).
const FORGETFUL: &str = r#"
name = "forgetful"
about = "Two voters restart while the holder of a node is cut off: what they promised it, they have forgotten."
[mesh]
members = 3
[workload]
for = "8s"
every = "0s"
[[fault]]
at = "1s"
for = "6s"
isolate = "m0"
[[fault]]
at = "1s"
for = "50ms"
crash = "m1"
[[fault]]
at = "1s"
for = "50ms"
crash = "m2"
"#;

/// Says why these tests cannot be run here, and prints it.
fn is_impossible() -> bool {
    let daemon = Path::new(SIM).with_file_name("collectived");
    if !daemon.is_file() {
        println!("skipped: {} is not built; `cargo test --workspace` builds it", daemon.display());
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return true;
    }
    for tool in ["ip", "nft"] {
        if Command::new(tool).arg("-V").output().is_err() {
            println!("skipped: `{tool}` is not installed");
            return true;
        }
    }
    let name = format!("cst{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output().expect("ip was there a moment ago");
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    if !made.status.success() {
        println!("skipped: no network namespaces here: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    !made.status.success()
}

/// A directory of its own, removed in the end.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    /// Starts a run whose members keep what they have in here.
    fn start(&self, scenario: &str, output: &str) -> Child {
        let mut command = Command::new(SIM);
        command.args(["run", scenario, "--level", "netns", "-o", output]).env("TMPDIR", self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the simulator")
    }

    fn run(&self, scenario: &str, output: &str) -> Output {
        self.start(scenario, output).wait_with_output().expect("it ends")
    }

    /// Returns what runs have left in here.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("our own directory");
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("collective-sim-")).collect()
    }
}

/// Returns the namespaces that a run has made and not taken away.
fn namespaces(run: u32) -> Vec<String> {
    let output = Command::new("ip").args(["netns", "list"]).output().expect("ip was there a moment ago");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let prefix = format!("cs{run}x");
    text.lines().filter(|line| line.starts_with(&prefix)).map(str::to_owned).collect()
}

fn check(room: &Room, trace: &[Value]) -> (Option<i32>, String) {
    let text: String = trace.iter().map(|line| format!("{line}\n")).collect();
    let output = Command::new(SIM).args(["check", &room.file("trace.jsonl", &text)]).output().expect("the simulator");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn shipped_daemons_hold_every_rule_while_one_is_cut_off_and_a_doctored_trace_of_them_does_not() {
    if is_impossible() {
        return;
    }
    let room = Room::new();
    let child = room.start(&room.file("cut-off.toml", CUT_OFF), "jsonl");
    let run = child.id();
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((namespaces(run), room.left()), (Vec::new(), Vec::new()), "nothing is left");
    let trace: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |is: &str| trace.iter().filter(|line| line["is"] == is).count();
    for (is, least) in [("granted", 50), ("acts", 200), ("action", 20), ("acknowledged", 10), ("roster", 3)] {
        assert!(of(is) >= least, "{is}: {}", of(is));
    }
    let (code, told) = check(&room, &trace);
    assert_eq!(code, Some(0), "{told}");

    // The same trace with one thing changed at a time.
    let doctored = |what: &str, change: &dyn Fn(&mut Vec<Value>), rule: &str| {
        let mut trace = trace.clone();
        change(&mut trace);
        let (code, told) = check(&room, &trace);
        assert_eq!(code, Some(2), "{what}: {told}");
        assert!(told.contains(&format!("VIOLATION {rule}")), "{what}: {told}");
    };
    let place = |is: &str| trace.iter().position(|line| line["is"] == is).expect("just counted");
    let other = |line: &Value| if line["m"] == "m1" { json!("m2") } else { json!("m1") };
    let beside = |is: &'static str| {
        move |trace: &mut Vec<Value>| {
            let mut line = trace[place(is)].clone();
            line["m"] = other(&line);
            trace.insert(place(is) + 1, line);
        }
    };
    doctored("another member acts for the node as well", &beside("acts"), "I1");
    doctored("an action runs on another member as well", &beside("action"), "I1");
    let last = trace.iter().rposition(|line| line["is"] == "roster").expect("just counted");
    let other_roster = |trace: &mut Vec<Value>| trace[last]["hash"] = json!("00");
    doctored("a member has another roster of that version", &other_roster, "I2");
    let nobody_grants = |trace: &mut Vec<Value>| {
        let half = trace[trace.len() - 1]["t"].as_f64().expect("a time") / 2.0;
        trace.retain(|line| line["is"] != "granted" || line["t"].as_f64() < Some(half));
    };
    doctored("no voter can have granted anything for a while", &nobody_grants, "I5");
    let same_run = |trace: &mut Vec<Value>| {
        let start = trace[place("start")].clone();
        trace.push(start);
    };
    doctored("a run tells the incarnation of the one before", &same_run, "incarnation");
}

#[test]
fn a_daemon_without_the_quiet_start_is_caught_and_the_shipped_one_is_clean() {
    if is_impossible() {
        return;
    }
    let room = Room::new();
    let planted = format!("{FORGETFUL}[expect]\nplanted = \"R6-quiet-start\"\n");
    let runs = [
        room.start(&room.file("forgetful.toml", FORGETFUL), "json"),
        room.start(&room.file("planted.toml", &planted), "json"),
    ];
    let [sound, planted] = runs.map(|run| run.wait_with_output().expect("it ends"));
    assert_eq!(sound.status.code(), Some(0), "{}", String::from_utf8_lossy(&sound.stdout));
    let report: Value = serde_json::from_slice(&planted.stdout).expect("JSON");
    assert_eq!(planted.status.code(), Some(2), "{report}");
    let violations = report["violations"].as_array().cloned().unwrap_or_default();
    assert!(violations.iter().any(|what| what.as_str().is_some_and(|what| what.contains("act for"))), "{report}");
}

#[test]
fn a_run_that_is_interrupted_takes_everything_away() {
    if is_impossible() {
        return;
    }
    let room = Room::new();
    let mut child = room.start("healthy-three", "text");
    let run = child.id();
    let begun = Instant::now();
    while !Path::new(&format!("/run/netns/cs{run}x0m2")).exists() || room.left().is_empty() {
        assert!(begun.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)), "the run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(run.cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our own child");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("interrupted"), "{told}");
    assert_eq!((namespaces(run), room.left()), (Vec::new(), Vec::new()), "nothing is left");
}

#[test]
fn what_this_level_cannot_do_is_told_with_its_place() {
    let room = Room::new();
    let text = "name = \"full\"\nabout = \"y\"\n[[fault]]\nat = \"1s\"\nfor = \"1s\"\ndisk-full = \"m0\"\n";
    let path = room.file("full.toml", text);
    let output = room.run(&path, "text");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&format!("{path}:6:1: level netns cannot do the fault `disk-full`")), "{told}");
}
