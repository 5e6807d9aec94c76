//! Real processes: what they are given, what is taken of them, and that none outlives its deadline.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::*;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// A job of /bin/sh, which is the command under test and not how jobs are run.
fn shell(script: &str, arguments: &[&str], deadline: Instant) -> Job {
    let mut argv: Vec<_> = ["/bin/sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Job {
        node: Some(node()),
        argv,
        env: environment(&authority(deadline), Some(&node())),
        stdin_json: serde_json::Value::Null,
        deadline,
        timeout: LONG,
        output_bytes_max: OUTPUT_BYTES_MAX,
    }
}

fn node() -> NodeName {
    NodeName::new("n1").expect("a name")
}

fn authority(deadline: Instant) -> Authority {
    Authority { member: MemberName::new("mgt1").expect("a name"), token: "0.4.2".to_owned(), deadline }
}

async fn run(job: Job) -> (Outcome, Vec<String>) {
    let mut lines = Vec::new();
    let outcome = Runner::default().run(job, |_, line| lines.push(line.to_owned())).await.expect("not busy");
    (outcome, lines)
}

/// Starts a job and returns once it has written its first line.
async fn started(
    runner: &Runner,
    job: Job,
) -> (tokio::task::JoinHandle<Result<Outcome, Busy>>, mpsc::UnboundedReceiver<String>) {
    let (send, mut lines) = mpsc::unbounded_channel();
    let (runner, echo) = (runner.clone(), send.clone());
    let task = tokio::spawn(async move { runner.run(job, |_, line| drop(send.send(line.to_owned()))).await });
    let first = lines.recv().await.expect("a first line");
    echo.send(first).expect("the receiver is here");
    (task, lines)
}

/// Returns whether a process is gone, or dead and only waiting for its parent to notice.
fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn pids(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.strip_prefix("pid ")).collect()
}

#[tokio::test]
async fn nothing_of_a_job_runs_past_its_deadline_not_even_what_hides() {
    // All refuse to be told; one is in another session, where signals to the group do not reach.
    let script = r#"trap "" TERM
        sh -c 'trap "" TERM; echo pid $$; while :; do sleep 0.1; done' &
        setsid sh -c 'trap "" TERM; echo pid $$; while :; do sleep 0.1; done' &
        echo pid $$
        while :; do sleep 0.1; done"#;
    let deadline = now() + Duration::from_millis(1_500);
    let (outcome, lines) = run(shell(script, &[], deadline)).await;
    let returned = now();
    assert_eq!((&outcome.status, outcome.stopped), (&Status::Signaled(9), Some(Stop::Deadline)));
    assert!(outcome.timed_out() && !outcome.survived && !outcome.is_success());
    let pids = pids(&lines);
    assert_eq!(pids.len(), 3, "{lines:?}");
    assert!(pids.iter().all(|pid| is_gone(pid)), "{pids:?}");
    assert!(returned < deadline, "{:?} late", returned.since(deadline));
}

#[tokio::test]
async fn a_job_is_told_before_it_is_killed() {
    let script = r#"trap 'echo told; exit 7' TERM; echo up; while :; do sleep 0.01; done"#;
    let (outcome, lines) = run(shell(script, &[], now() + Duration::from_millis(900))).await;
    assert_eq!((outcome.status, outcome.stopped), (Status::Exited(7), Some(Stop::Deadline)));
    // Its shell may say on the other output that a child of it was told too.
    assert!(lines.contains(&"told".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_renewed_job_runs_on_and_one_that_is_not_renewed_any_more_ends() {
    let runner = Runner::default();
    let first_deadline = now() + Duration::from_millis(1_200);
    let (task, mut lines) =
        started(&runner, shell("echo up; while :; do sleep 0.05; echo tick; done", &[], first_deadline)).await;
    while now() < first_deadline + Duration::from_millis(300) {
        assert_eq!(runner.renew(&node(), now() + Duration::from_millis(1_200)), 1);
        assert_eq!(runner.renew(&node(), first_deadline), 1, "a deadline never moves back");
        assert!(lines.recv().await.is_some(), "it ended although it was renewed");
    }
    assert!(!task.is_finished());
    let outcome = task.await.expect("no panic").expect("not busy");
    assert_eq!(outcome.stopped, Some(Stop::Deadline));
    assert_eq!(runner.renew(&node(), now() + LONG), 0, "there is nothing left to renew");
}

#[tokio::test]
async fn a_timeout_ends_a_job_however_far_its_deadline_is() {
    let mut job = shell("echo up; exec sleep 1000", &[], now() + LONG);
    job.timeout = Duration::from_millis(100);
    let (outcome, _) = run(job).await;
    assert_eq!((outcome.status, outcome.stopped), (Status::Signaled(15), Some(Stop::Timeout)));
}

#[tokio::test]
async fn cancelling_stops_what_runs_and_what_waits_on_that_node_only() {
    let runner = Runner::new(2, 10);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mark = dir.path().join("started");
    let elsewhere = NodeName::new("n2").expect("a name");
    let other = Job { node: Some(elsewhere.clone()), ..shell("echo up; exec sleep 1000", &[], now() + LONG) };
    let (other, _other_lines) = started(&runner, other).await;
    let (task, _lines) = started(&runner, shell("echo up; exec sleep 1000", &[], now() + LONG)).await;
    let waiting = tokio::spawn({
        let job = shell(": > \"$1\"", &[mark.to_str().expect("text")], now() + LONG);
        let runner = runner.clone();
        async move { runner.run(job, |_, _| {}).await }
    });
    while runner.len() < 3 {
        tokio::task::yield_now().await;
    }

    assert_eq!(runner.cancel(&node()), 2);

    let outcome = task.await.expect("no panic").expect("not busy");
    assert_eq!((outcome.status, outcome.stopped), (Status::Signaled(15), Some(Stop::Cancelled)));
    let outcome = waiting.await.expect("no panic").expect("not busy");
    assert!(matches!(outcome.status, Status::NotStarted(_)), "{outcome:?}");
    assert!(!mark.exists());
    assert!(!other.is_finished());
    assert_eq!(runner.cancel_all(), 1);
    assert_eq!(other.await.expect("no panic").expect("not busy").stopped, Some(Stop::Cancelled));
    assert!(runner.is_empty());
}

#[tokio::test]
async fn more_jobs_than_may_wait_are_refused() {
    let runner = Runner::new(1, 0);
    let (task, _lines) = started(&runner, shell("echo up; exec sleep 1000", &[], now() + LONG)).await;
    let refused = runner.run(shell(":", &[], now() + LONG), |_, _| {}).await;
    assert_eq!(refused, Err(Busy { jobs: 1 }));
    runner.cancel_all();
    assert!(task.await.expect("no panic").is_ok());
    assert!(runner.run(shell(":", &[], now() + LONG), |_, _| {}).await.expect("free again").is_success());
}

#[tokio::test]
async fn a_job_whose_deadline_passes_while_it_waits_is_never_started() {
    let runner = Runner::new(1, 1);
    let (task, _lines) = started(&runner, shell("echo up; exec sleep 1000", &[], now() + LONG)).await;
    let outcome = runner.run(shell("echo no", &[], now() + Duration::from_millis(500)), |_, _| panic!("it ran")).await;
    let outcome = outcome.expect("may wait");
    assert!(matches!(outcome.status, Status::NotStarted(_)) && outcome.timed_out(), "{outcome:?}");
    runner.cancel_all();
    assert!(task.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn a_job_whose_deadline_is_near_is_never_started() {
    for deadline in [Instant::ZERO, now(), now() + TERM_BEFORE] {
        let (outcome, lines) = run(shell("echo no", &[], deadline)).await;
        assert!(matches!(outcome.status, Status::NotStarted(_)) && outcome.timed_out(), "{outcome:?}");
        assert!(lines.is_empty());
    }
}

#[tokio::test]
async fn what_a_job_leaves_in_the_background_ends_with_it() {
    // In the group, in another session, and without the mark: each is found in another way.
    let script = "sleep 1000 & echo pid $!; setsid sleep 1000 & echo pid $!; env -i sleep 1000 & echo pid $!; exit 3";
    let (outcome, lines) = run(shell(script, &[], now() + LONG)).await;
    assert_eq!((outcome.status, outcome.stopped), (Status::Exited(3), None));
    assert_eq!(pids(&lines).len(), 3);
    while !pids(&lines).iter().all(|pid| is_gone(pid)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_job_that_is_dropped_is_killed() {
    let runner = Runner::default();
    let (task, mut lines) = started(&runner, shell("echo pid $$; exec sleep 1000", &[], now() + LONG)).await;
    let line = lines.recv().await.expect("a line");
    task.abort();
    while !(is_gone(line.trim_start_matches("pid ")) && runner.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn hostile_values_arrive_as_they_are_each_as_one_argument() {
    let hostile = [
        "$(touch /tmp/pwned)",
        "`id`",
        "a b\tc",
        "two\nlines",
        "\"'\\",
        "; rm -rf /",
        "{node}",
        "-rf",
        "*",
        "",
        "é\u{1f4a5}",
    ];
    let script = r#"for argument; do printf '<%s>' "$argument"; done"#;
    let (outcome, lines) = run(shell(script, &hostile, now() + LONG)).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(lines.join("\n"), hostile.map(|value| format!("<{value}>")).concat());
}

#[tokio::test]
async fn a_nul_or_a_missing_program_is_an_outcome_and_no_panic() {
    let nul = shell(":", &["a\0b"], now() + LONG);
    let missing = Job { argv: vec!["/no/such/program".to_owned()], ..shell(":", &[], now() + LONG) };
    let empty = Job { argv: Vec::new(), ..missing.clone() };
    let huge = shell(":", &[&"x".repeat(1 << 20)], now() + LONG);
    for job in [nul, missing, empty, huge] {
        let (outcome, _) = run(job).await;
        assert!(matches!(outcome.status, Status::NotStarted(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_the_job_is_not_held_up() {
    let mut job = shell("i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; exit 5", &[], now() + LONG);
    job.output_bytes_max = 1_000;
    let (outcome, lines) = run(job).await;
    assert_eq!((outcome.status, outcome.truncated), (Status::Exited(5), true));
    assert!(lines.iter().map(String::len).sum::<usize>() <= 1_000);
    assert_eq!(lines[0], "0123456789");
}

#[tokio::test]
async fn both_outputs_are_told_apart() {
    let mut lines = Vec::new();
    let job = shell("echo out; echo err >&2", &[], now() + LONG);
    let outcome = Runner::default().run(job, |stream, line| lines.push((stream, line.to_owned()))).await;
    assert!(outcome.expect("not busy").is_success());
    lines.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(lines, [(Stream::Stderr, "err".to_owned()), (Stream::Stdout, "out".to_owned())]);
}

#[tokio::test]
async fn a_large_input_arrives_whole_and_need_not_be_read() {
    let text = "x".repeat(1 << 20);
    let with_input = |script| Job { stdin_json: text.clone().into(), ..shell(script, &[], now() + LONG) };
    let (outcome, lines) = run(with_input("wc -c")).await;
    assert!(outcome.is_success());
    assert_eq!(lines[0].trim(), (text.len() + 3).to_string(), "with its quotes and a newline");
    assert!(run(with_input("exit 0")).await.0.is_success());
}

// Hooks.

fn hook(dir: &Path, name: &str, script: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("can be written");
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("own file");
    path
}

fn event() -> HookEvent {
    HookEvent {
        kind: "manager-changed".to_owned(),
        node: Some(node()),
        authority: authority(now() + LONG),
        body: serde_json::json!({"owner": "$(touch /tmp/pwned)\n\"'"}),
    }
}

#[tokio::test]
async fn a_hook_reads_the_event_and_has_its_right_to_act_in_a_clean_environment() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    hook(dir.path(), "10-env", "env", 0o755);
    hook(dir.path(), "20-input", "cat; exit 4", 0o700);
    let event = event();
    let results = Hooks::new(dir.path()).fire(&Runner::default(), &event).await;
    let [env, input] = &results[..] else { panic!("{results:?}") };
    for variable in [
        "COLLECTIVE_EVENT=manager-changed".to_owned(),
        "COLLECTIVE_NODE=n1".to_owned(),
        "COLLECTIVE_MEMBER=mgt1".to_owned(),
        "COLLECTIVE_TOKEN=0.4.2".to_owned(),
        format!("COLLECTIVE_DEADLINE_MS={}", event.authority.deadline.as_nanos() / 1_000_000),
    ] {
        assert!(env.output.contains(&variable), "{variable} is not in {:?}", env.output);
    }
    let known = ["COLLECTIVE_", "PATH=", "HOME=", "LANG=", "PWD=", "OLDPWD=", "SHLVL=", "_="];
    let inherited = env.output.iter().find(|line| !known.iter().any(|name| line.starts_with(name)));
    assert_eq!(inherited, None);
    assert_eq!(input.output, [event.body.to_string()]);
    assert_eq!(input.outcome.as_ref().map(|outcome| &outcome.status), Ok(&Status::Exited(4)));
}

#[test]
fn hooks_that_others_can_change_are_skipped_and_said_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let good = hook(dir.path(), "good", ":", 0o755);
    hook(dir.path(), "world", ":", 0o757);
    hook(dir.path(), "group", ":", 0o775);
    hook(dir.path(), "plain", ":", 0o644);
    hook(dir.path(), "copy~", ":", 0o755);
    hook(dir.path(), ".hidden", ":", 0o755);
    std::fs::create_dir(dir.path().join("dir")).expect("can be made");
    std::os::unix::fs::symlink(dir.path().join("world"), dir.path().join("link")).expect("can be made");
    std::os::unix::fs::symlink("/nowhere", dir.path().join("dangling")).expect("can be made");

    let (hooks, skipped) = Hooks::new(dir.path()).scan();

    assert_eq!(hooks, [good]);
    let words =
        ["dangling", "dir skipped: it is not a regular", "group", "link", "plain skipped: it is not exec", "world"];
    assert_eq!(skipped.len(), words.len(), "{skipped:?}");
    skipped.iter().zip(words).for_each(|(reason, word)| assert!(reason.contains(word), "{reason}"));
    assert!(skipped[5].contains("others may write (mode 0757)"), "{skipped:?}");

    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("own directory");
    assert!(Hooks::new(dir.path()).scan().0.is_empty(), "who can write the directory can put any hook in it");
    assert_eq!(Hooks::new(&dir.path().join("missing")).scan(), (Vec::new(), Vec::new()));
}

#[test]
fn a_hook_of_a_stranger_is_skipped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = hook(dir.path(), "hook", ":", 0o755);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).expect("root may");
        let (hooks, skipped) = Hooks::new(dir.path()).scan();
        assert!(hooks.is_empty() && skipped[0].contains("belongs to user 12345"), "{skipped:?}");
    }
}

// Node actions.

#[tokio::test]
async fn an_action_runs_with_the_attributes_of_its_node() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: &str, mode| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("can be written");
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("own file");
    };
    let text = "command = [\"sh\", \"-c\", 'printf \"%s=%s \" \"$@\" \"$PASSWORD\"', \"{node}\", \"{bmc}\", \"{0}\"]\n\
                env = { PASSWORD = \"{secret.password}\" }\nquorum = false\n";
    write("power.toml", text, 0o644);
    write("typo.toml", "command = [\"sh\"]\nquorom = true\n", 0o644);
    write("open.toml", "command = [\"sh\"]\n", 0o666);
    write("bad name.toml", "command = [\"sh\"]\n", 0o644);
    write("README", "not an action", 0o644);

    let actions = Actions::load(dir.path());

    assert_eq!(
        actions.list().map(|action| (action.name.as_str(), action.quorum)).collect::<Vec<_>>(),
        [("power", false)]
    );
    let problems: Vec<_> = actions.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(
        problems[1].contains("open.toml: it others may write") || problems[1].contains("others may write"),
        "{problems:?}"
    );
    assert!(problems[2].contains("typo.toml:2: unknown field `quorom`"), "{problems:?}");

    let attributes = |name: &str| match name {
        "bmc" => Some("$(id) '\"\n".to_owned()),
        "secret.password" => Some("hush".to_owned()),
        _ => None,
    };
    let job = actions.prepare("power", &node(), &["on".to_owned()], &authority(now() + LONG), &attributes);
    let (outcome, lines) = run(job.expect("all there")).await;
    assert!(outcome.is_success());
    assert_eq!(lines.join("\n"), "$(id) '\"\n=on hush= ");
}
