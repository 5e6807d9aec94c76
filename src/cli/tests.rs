//! The command line against a daemon that answers as it is told, over real sockets.

use std::io::{self, Cursor};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{DemoArgs, InitArgs, Io, Offline, run};
use crate::admin::{AdminSockets, Handler, PeerCredentials, serve};
use crate::config::Environment;
use crate::proto::name::{AttributeName, MemberName, NodeName};
use crate::proto::request::*;
use crate::proto::roster::Role;

/// A daemon whose answers are given.
struct Daemon {
    dir: TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
    _runtime: Runtime,
}

struct Scripted {
    answer: Box<dyn Fn(&Request) -> Response + Send + Sync>,
    asked: Arc<Mutex<Vec<Request>>>,
}

#[async_trait]
impl Handler for Scripted {
    async fn request(&self, request: Request, peer: PeerCredentials, deadline: Duration) -> Response {
        assert!(peer.uid.is_some() && peer.pid.is_some());
        let response = (self.answer)(&request);
        self.asked.lock().expect("no panic before").push(request);
        if matches!(&response, Response::Done(done) if done.message == "never") {
            tokio::time::sleep(deadline * 2).await;
        }
        response
    }
}

impl Daemon {
    fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().expect("writable");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let handler = Arc::new(Scripted { answer: Box::new(answer), asked: Arc::clone(&asked) });
        let sockets = AdminSockets::bind(dir.path()).expect("free");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads");
        runtime.spawn(serve(sockets, handler));
        Self { dir, asked, _runtime: runtime }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("no panic before").clone()
    }

    fn run(&self, line: &str) -> Answer {
        Call::new(line).variable("COLLECTIVE_SOCKET", &self.socket().to_string_lossy()).run()
    }
}

/// One call of the command line.
struct Call {
    words: Vec<String>,
    environment: Environment,
    stdin: String,
    terminal: bool,
}

/// What it said.
#[derive(Debug)]
struct Answer {
    code: u8,
    out: String,
    err: String,
}

impl Call {
    fn new(line: &str) -> Self {
        let words = line.split_whitespace().map(str::to_owned).collect();
        Self { words, environment: Environment::new(), stdin: String::new(), terminal: false }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.to_owned();
        self
    }

    fn run(self) -> Answer {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut io = Io {
            stdin: &mut Cursor::new(self.stdin),
            stdout: &mut out,
            stderr: &mut err,
            stdin_is_terminal: self.terminal,
            stdout_is_terminal: false,
            read_secret,
        };
        let offline = Offline { demo, init };
        let code = run(self.words.iter().map(Into::into), &self.environment, &mut io, &offline);
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Answer { code, out: text(out), err: text(err) }
    }
}

fn read_secret(prompt: &str) -> io::Result<String> {
    Ok(format!("typed at {prompt}"))
}

fn demo(args: DemoArgs) -> u8 {
    if args.stay { 7 } else { 0 }
}

fn init(args: InitArgs, _: &Environment) -> Response {
    done(&format!("made {}", args.name.unwrap_or_default()))
}

fn done(message: &str) -> Response {
    Response::Done(Done { message: message.to_owned(), ..Done::default() })
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).expect("valid")
}

fn node(text: &str) -> NodeName {
    NodeName::new(text).expect("valid")
}

fn sample_show() -> Show {
    Show {
        quorum: true,
        leader: Some(name("mgt1")),
        active: vec![name("mgt2")],
        offline: vec![name("mgt3")],
        nonvoting: vec![name("mgt3")],
        ..Show::default()
    }
}

fn sample_member(text: &str, state: &str) -> MemberStatus {
    MemberStatus {
        name: name(text),
        id: "11".repeat(16),
        state: state.to_owned(),
        since_ms: Some(187_200_000),
        role: Role::Voter,
        votes: true,
        learner: false,
        draining: false,
        manages: 205,
        rtt_us: Some(812),
        last_heard_ms: Some(300),
        lag: Some(0),
        version: Some("0.1.0".to_owned()),
        address: Some("10.0.0.1:7461".to_owned()),
        fingerprint: "ab".repeat(32),
        trouble: None,
    }
}

fn sample_status() -> Status {
    let down = MemberStatus {
        since_ms: Some(252_000),
        votes: false,
        manages: 0,
        rtt_us: None,
        lag: None,
        version: None,
        address: None,
        ..sample_member("mgt3", "down")
    };
    Status {
        collective: "hpc-prod".to_owned(),
        me: Some(name("mgt1")),
        time: "2026-11-21T09:15:44.123Z".to_owned(),
        standing: Standing::Seated,
        quorum: Votes { quorate: true, votes: 2, expected: 3, needed: 2, failure_tolerance: 0 },
        leader: Some(name("mgt1")),
        view: ViewSummary {
            hash: "77".to_owned(),
            agreed_by: vec![name("mgt2")],
            silent: vec![Silent { member: name("mgt3"), for_ms: Some(252_000) }],
        },
        data: DataSummary { converged: true, heads: "h".to_owned(), nodes: 412, groups: 3 },
        managed: 412,
        members: vec![sample_member("mgt1", "alive"), sample_member("mgt2", "alive"), down],
        health: vec![Health {
            code: "member-down".to_owned(),
            severity: "warning".to_owned(),
            message: "mgt3 down: no answer, direct or through mgt2".to_owned(),
            hint: "If it is gone for good: collective delete mgt3".to_owned(),
        }],
        ..Status::default()
    }
}

fn status_daemon(status: Status) -> Daemon {
    Daemon::start(move |_| Response::Status(Box::new(status.clone())))
}

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

#[test]
fn attributes_are_set_from_words_variables_files_and_prompts() {
    let daemon = Daemon::start(|_| Response::Done(Done { notes: vec!["noted".to_owned()], ..Done::default() }));
    let socket = daemon.socket().to_string_lossy().into_owned();
    let call = |line: &str| Call::new(line).variable("COLLECTIVE_SOCKET", &socket);

    let answer = call("collective attrib n1 custom.x=1 groups,=a").run();
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "", "noted\n"));
    call("collective attrib n1 -e custom.own-er").variable("CUSTOM_OWN_ER", "me").run();
    call("collective attrib n1 --set -").stdin("# comment\n\n custom.y=2 \n").run();
    call("collective attrib --group rack1 -c custom.*").run();
    let mut typed = call("collective attrib n1 -p secret.x");
    typed.terminal = true;
    // The two prompts answer differently, so nothing is stored.
    assert_eq!(typed.run().code, 65);

    let sent: Vec<_> = daemon
        .asked()
        .into_iter()
        .map(|request| match request {
            Request::SetAttributes { assignments, clear, .. } => (assignments, clear),
            other => panic!("{other:?}"),
        })
        .collect();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        sent,
        [
            (words(&["custom.x=1", "groups,=a"]), vec![]),
            (words(&["custom.own-er=me"]), vec![]),
            (words(&["custom.y=2"]), vec![]),
            (vec![], words(&["custom.*"])),
        ]
    );
}

#[test]
fn attributes_are_not_set_and_read_or_cleared_at_once() {
    for line in [
        "collective attrib n1 custom.x=1 -c",
        "collective attrib n1 custom.x=1 custom.y",
        "collective attrib n1 -c",
        "collective attrib n1 -p",
        "collective attrib n1 -e custom.missing",
        "collective attrib",
    ] {
        assert_eq!(Call::new(line).run().code, 64, "{line}");
    }
}

#[test]
fn very_many_nodes_are_touched_only_when_a_person_or_a_flag_insists() {
    let daemon = Daemon::start(|request| match request {
        Request::RemoveNodes { yes: false, .. } => {
            Refusal::new(ErrorCode::NeedsForce, "this removes 600 nodes", "add -y").into()
        }
        _ => done("600 nodes removed"),
    });
    let call = |terminal: bool, stdin: &str| {
        let call =
            Call::new("collective node remove all").variable("COLLECTIVE_SOCKET", &daemon.socket().to_string_lossy());
        Call { terminal, ..call.stdin(stdin) }.run()
    };
    assert_eq!(call(false, "y\n").code, 107);
    assert_eq!(call(true, "\n").code, 107);
    let answer = call(true, "y\n");
    assert_eq!((answer.code, answer.err.as_str()), (0, "this removes 600 nodes. Go on? [y/N] "));
    assert_eq!(daemon.run("collective node remove all -y").code, 0);
}

#[test]
fn the_one_liner_of_the_manual_works() {
    let daemon = Daemon::start(|request| match request {
        Request::Invite { name, .. } => Response::Invited(Invited {
            schema: InviteSchema::V1,
            member: name.clone(),
            token: TokenText("abc+/=".to_owned()),
            expires: "2026-11-21T10:15:44Z".to_owned(),
            replaced: true,
            replaces: Some(name.clone()),
        }),
        _ => Response::Done(Done {
            message: "Success".to_owned(),
            changes: vec!["Certificate generated successfully".to_owned()],
            ..Done::default()
        }),
    });
    let invited = daemon.run("collective invite mgt2");
    assert_eq!((invited.code, invited.out.as_str()), (0, "abc+/=\n"));
    assert!(invited.err.contains("revoked") && invited.err.contains("replaces"), "{invited:?}");
    assert_eq!(daemon.run("collective invite mgt2 -q").err, "");

    let joined = daemon.run("collective join mgt1 -i abc+/=");
    assert_eq!((joined.code, joined.out.as_str()), (0, "Certificate generated successfully\nSuccess\n"));
}

#[test]
fn a_token_comes_from_many_places_and_never_from_nowhere() {
    let daemon = Daemon::start(|_| done("Success"));
    let socket = daemon.socket().to_string_lossy().into_owned();
    let call = |line: &str| Call::new(line).variable("COLLECTIVE_SOCKET", &socket);
    let file = daemon.dir.path().join("token");
    std::fs::write(&file, "from-file\n").expect("writable");

    assert_eq!(call("collective join mgt1 -i word").run().code, 0);
    assert_eq!(call(&format!("collective join mgt1 -i @{}", file.display())).run().code, 0);
    assert_eq!(call("collective join mgt1 -i -").stdin("from-stdin\n").run().code, 0);
    assert_eq!(call("collective join mgt1").variable("COLLECTIVE_TOKEN", "from-variable").run().code, 0);
    assert_eq!(call("collective join mgt1").stdin("piped\n").run().code, 0);
    assert_eq!(Call { terminal: true, ..call("collective join mgt1") }.run().code, 0);
    assert_eq!(call("collective join mgt1").run().code, 65);
    assert_eq!(call("collective join mgt1 -i @/nowhere").run().code, 65);

    let tokens: Vec<_> = daemon
        .asked()
        .iter()
        .map(|request| match request {
            Request::Join { token, .. } => token.0.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let prompted = "typed at Paste the invitation here:";
    assert_eq!(tokens, ["word", "from-file", "from-stdin", "from-variable", "piped", prompted]);
}

#[test]
fn every_refusal_has_its_exit_code_and_its_two_lines() {
    use ErrorCode::*;
    for (code, exit) in [
        (Failure, 1),
        (Usage, 64),
        (BadData, 65),
        (Unreachable, 69),
        (Internal, 70),
        (TryAgain, 75),
        (VersionMismatch, 76),
        (Permission, 77),
        (Configuration, 78),
        (ProofFailed, 104),
        (NotFound, 105),
        (NoQuorum, 106),
        (NeedsForce, 107),
        (Exists, 108),
        (Indeterminate, 109),
        (InviteSpent, 110),
        (TimedOut, 124),
    ] {
        let daemon = Daemon::start(move |_| Refusal::new(code, "what and why", "the next command").into());
        let answer = daemon.run("collective leave");
        assert_eq!(answer.code, exit);
        assert_eq!(
            (answer.out.as_str(), answer.err.as_str()),
            ("", "collective: what and why\nhint: the next command\n")
        );
        let answer = daemon.run("collective leave -o json");
        let document: serde_json::Value = serde_json::from_str(&answer.out).expect("json");
        assert_eq!((answer.code, &document["error"]["exit"]), (exit, &serde_json::json!(exit)));
        assert_eq!(answer.err, "");
    }
}

#[test]
fn a_wrong_command_line_exits_64_and_help_exits_0() {
    for line in ["collective nonsense", "collective delete", "collective show --what", "collective wait", "collective"]
    {
        let answer = Call::new(line).run();
        assert_eq!((answer.code, answer.out.as_str()), (64, ""), "{answer:?}");
    }
    let answer = Call::new("collective delete").run();
    assert_eq!(answer.err.lines().count(), 2, "{}", answer.err);
    assert!(answer.err.starts_with("collective: the following required arguments were not provided: <MEMBER>\nhint: "));
    assert!(Call::new("collective delete -o json").run().out.starts_with("{\"error\":{\"code\":\"usage\",\"exit\":64"));
    for line in [
        "collective --help",
        "collective attrib -h",
        "collective --version",
        "collective help",
        "collective help node import",
        "collective help exit-codes",
        "collective help noderange",
        "collective help environment",
        "collective help files",
    ] {
        let answer = Call::new(line).run();
        assert!(answer.code == 0 && !answer.out.is_empty() && answer.err.is_empty(), "{line}: {answer:?}");
    }
    assert_eq!(Call::new("collective help me").run().code, 64);
}

#[test]
fn exit_codes_in_the_help_are_those_of_the_program() {
    let text = Call::new("collective help exit-codes").run().out;
    for code in [1, 64, 65, 69, 70, 75, 76, 77, 78, 104, 105, 106, 107, 108, 109, 110, 124] {
        assert!(text.lines().any(|line| line.trim().starts_with(&format!("{code} "))), "{code}");
    }
}

#[test]
fn a_wrong_name_is_bad_data_and_is_not_sent() {
    let daemon = Daemon::start(|_| done(""));
    for line in [
        "collective delete m!",
        "collective ping -- -x",
        "collective attrib --group g! a=b",
        "collective move n1 --to é",
    ] {
        let answer = daemon.run(line);
        assert_eq!(answer.code, 65, "{answer:?}");
    }
    assert_eq!(daemon.asked(), []);
}

#[test]
fn a_daemon_that_is_not_there_is_told_in_one_line() {
    let dir = tempfile::tempdir().expect("writable");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("writable");
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("free"));
    for (path, words) in [
        (dir.path().join("none.sock"), "there is no socket"),
        (dir.path().to_owned(), "is a directory"),
        (file, "is a file"),
        (dead, "nobody answers on"),
        (dir.path().join("x".repeat(200)), "longer than"),
    ] {
        let answer = Call::new("collective show -s").with(&path.to_string_lossy()).run();
        assert_eq!(answer.code, 69, "{answer:?}");
        assert!(answer.err.contains(words) && answer.err.lines().count() == 2, "{answer:?}");
    }
}

impl Call {
    fn with(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }
}

/// Answers every client on a socket with `answer`, then hangs up, or holds on.
fn other_program(dir: &TempDir, answer: &'static [u8], hold: bool) -> PathBuf {
    use std::io::{Read, Write};
    let path = dir.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("free");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut some = [0; 4096];
            let _ = client.read(&mut some);
            let _ = client.write_all(answer);
            if hold {
                // Until the client hangs up.
                let _ = client.read(&mut some);
            }
        }
    });
    path
}

#[test]
fn another_program_on_the_socket_is_told_in_one_line() {
    for (answer, hold, code, words) in [
        (&b"220 mail ready\r\n"[..], false, 69, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", false, 69, "not a collective daemon: it answered HTTP 200"),
        (b"HTTP/1.1 200 OK\r\nserver: collective/9.9.9\r\ncontent-length: 2\r\n\r\n{}", false, 76, "version 9.9.9"),
        (b"", false, 69, "without an answer"),
        (b"", true, 124, "no answer within 300ms"),
    ] {
        let dir = tempfile::tempdir().expect("writable");
        let path = other_program(&dir, answer, hold);
        let answer = Call::new("collective status --timeout 300ms -s").with(&path.to_string_lossy()).run();
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(answer.err.contains(words) && answer.err.lines().count() == 2, "{answer:?}");
    }
}

#[test]
fn the_daemon_ends_what_takes_too_long() {
    let daemon = Daemon::start(|_| done("never"));
    let answer = daemon.run("collective leave --timeout 100ms");
    assert_eq!((answer.code, answer.err.lines().next()), (124, Some("collective: no answer within 100ms")));
    let variable = Call::new("collective leave")
        .variable("COLLECTIVE_SOCKET", &daemon.socket().to_string_lossy())
        .variable("COLLECTIVE_TIMEOUT", "50ms");
    assert_eq!(variable.run().code, 124);
}

#[test]
fn quorum_answers_by_exit_code() {
    let daemon = Daemon::start(|request| {
        let held = Votes { quorate: true, votes: 2, expected: 3, needed: 2, failure_tolerance: 0 };
        let lost = Votes { quorate: false, votes: 1, ..held };
        let thought = matches!(request, Request::Quorum { without: Some(_) });
        Response::Quorum(QuorumReport {
            quorum: held,
            without: thought.then(|| name("mgt2")).into_iter().collect(),
            then: thought.then_some(lost),
            ..QuorumReport::default()
        })
    });
    assert_eq!(daemon.run("collective quorum").code, 0);
    let without = daemon.run("collective quorum --without mgt2 --no-header");
    assert_eq!(without.code, 1);
    assert_eq!(
        without.out,
        "Quorum: YES   2 of 3 votes, 2 needed, can lose 0 more\nWithout mgt2: NO   1 of 3 votes, 2 needed\n"
    );
}

#[test]
fn check_answers_as_a_nagios_plugin() {
    let tolerance = |failure_tolerance| Votes { quorate: true, votes: 3, expected: 3, needed: 2, failure_tolerance };
    let fine = Status { quorum: tolerance(1), health: vec![], ..sample_status() };
    let lost = Status { quorum: Votes { quorate: false, ..tolerance(0) }, ..sample_status() };
    for (status, code, words) in [
        (fine, 0, "COLLECTIVE OK - 3 of 3 votes, 2 needed, can lose 1 more | votes=3;;;0;3 tolerance=1 alive=2;;;0;3"),
        (sample_status(), 1, "COLLECTIVE WARNING - one more failure stops writes; mgt3 down"),
        (lost, 2, "COLLECTIVE CRITICAL - no quorum; mgt3 down"),
    ] {
        let answer = status_daemon(status).run("collective check");
        assert_eq!(answer.code, code);
        assert!(answer.out.starts_with(words) && answer.out.lines().count() == 1, "{answer:?}");
    }
    let answer = Call::new("collective check -s /nowhere/admin.sock").run();
    assert!(answer.code == 3 && answer.out.starts_with("COLLECTIVE UNKNOWN - there is no socket"), "{answer:?}");
}

#[test]
fn wait_ends_when_the_conditions_hold_and_fails_in_time_when_not() {
    let looks = Mutex::new(0);
    let daemon = Daemon::start(move |_| {
        let mut looks = looks.lock().expect("no panic before");
        *looks += 1;
        match *looks {
            1 => Refusal::new(ErrorCode::TryAgain, "joining", "").into(),
            2 => Response::Status(Box::default()),
            _ => Response::Status(Box::new(sample_status())),
        }
    });
    let answer = daemon.run("collective wait --quorum --members 2 --converged");
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert_eq!(daemon.asked().len(), 3);

    let answer = daemon.run("collective wait --members 3 --timeout 250ms");
    assert_eq!(answer.code, 124);
    assert!(answer.err.starts_with("collective: waited 250ms in vain: 2 members alive\n"), "{answer:?}");
    assert_eq!(Call::new("collective wait --quorum --timeout 150ms -s /nowhere/x").run().code, 124);
}

#[test]
fn actions_print_by_node_and_one_failure_is_a_failure() {
    let daemon = Daemon::start(|_| {
        let result = |text: &str, status, error| ActionResult {
            node: node(text),
            manager: None,
            token: None,
            status,
            output: vec!["on".to_owned(), "fine".to_owned()],
            error,
        };
        let refusal = Refusal::new(ErrorCode::NoQuorum, "no quorum", "");
        let results = vec![result("n1", Some(0), None), result("n2", Some(3), None), result("n3", None, Some(refusal))];
        Response::Ran(Ran { results, ..Ran::default() })
    });
    let answer = daemon.run("collective run n[1-3] power status --hard");
    assert_eq!(answer.code, 1);
    assert_eq!(answer.out, "n1: on\nn1: fine\nn2: on\nn2: fine\nn3: on\nn3: fine\n");
    assert_eq!(answer.err, "n2: exit status 3\nn3: no quorum\n");
    let arguments = vec!["status".to_owned(), "--hard".to_owned()];
    assert_eq!(daemon.asked()[0], Request::Run { nodes: "n[1-3]".to_owned(), action: "power".to_owned(), arguments });
}

#[test]
fn events_are_filtered_by_kind_and_time() {
    let daemon = Daemon::start(|_| {
        let event = |seq, time: &str| LoggedEvent {
            schema: EventSchema::V1,
            seq,
            time: time.to_owned(),
            kind: EventKind::MemberDown,
            member: Some(name("mgt3")),
            node: None,
            token: None,
            message: "mgt3 is down".to_owned(),
        };
        let events = vec![event(1, "2020-01-01T00:00:00Z"), event(2, "2030-01-01T00:00:00Z")];
        Response::Events(Events { events, ..Events::default() })
    });
    let line = "     2  2030-01-01 00:00:00Z  member-down         mgt3 is down\n";
    assert_eq!(
        daemon.run("collective events --since 2025-01-01T00:00:00Z --kind member-down,quorum-lost -n 5").out,
        line
    );
    assert_eq!(
        daemon.asked()[0],
        Request::Events { after: None, kinds: vec![EventKind::MemberDown, EventKind::QuorumLost], limit: Some(5) }
    );
    assert_eq!(daemon.run("collective events -o jsonl").out.lines().count(), 2);
    assert_eq!(daemon.run("collective events --kind party").code, 64);
    assert_eq!(daemon.run("collective events --since yesterday").code, 64);
}

#[test]
fn follow_goes_on_after_the_last_event_it_saw() {
    let daemon = Daemon::start(|request| match request {
        Request::Events { after: None, .. } => {
            let event = LoggedEvent {
                schema: EventSchema::V1,
                seq: 41,
                time: String::new(),
                kind: EventKind::QuorumLost,
                member: None,
                node: None,
                token: None,
                message: "lost".to_owned(),
            };
            Response::Events(Events { events: vec![event], ..Events::default() })
        }
        Request::Events { after: Some(41), .. } => Refusal::new(ErrorCode::Unreachable, "stopped", "").into(),
        _ => done(""),
    });
    let answer = daemon.run("collective events -f -o json");
    assert_eq!((answer.code, answer.err.as_str()), (69, ""));
    assert_eq!(answer.out.lines().count(), 2, "{answer:?}");
}

#[test]
fn ranges_are_expanded_folded_and_counted() {
    let daemon = Daemon::start(|_| {
        let nodes = vec![node("n1"), node("n2")];
        Response::Nodes(Nodes { nodes, folded: "n[1:2]".to_owned(), ..Nodes::default() })
    });
    assert_eq!(daemon.run("collective range expand n[1-2]").out, "n1\nn2\n");
    assert_eq!(daemon.run("collective range fold n1 n2").out, "n[1:2]\n");
    assert_eq!(daemon.run("collective range count rack1 --stale").out, "2\n");
    assert_eq!(daemon.run("nodelist rack1 -o fold").out, "n[1:2]\n");
    assert_eq!(daemon.asked()[1], Request::Expand { expression: "n1,n2".to_owned(), stale: false });
}

#[test]
fn an_inventory_is_recognised_by_its_first_character() {
    let daemon = Daemon::start(|_| Response::Done(Done { changes: vec!["n1: created".to_owned()], ..Done::default() }));
    for (document, expected) in [(" {\"all\":{}}", ImportFormat::Ansible), ("node,groups\nn1,\n", ImportFormat::Csv)] {
        let call =
            Call::new("collective node import -").variable("COLLECTIVE_SOCKET", &daemon.socket().to_string_lossy());
        assert_eq!(call.stdin(document).run().out, "n1: created\n");
        let Some(Request::Import { format, .. }) = daemon.asked().pop() else { panic!("not sent") };
        assert_eq!(format, expected);
    }
    assert_eq!(daemon.run("collective node import /nowhere").code, 65);
}

#[test]
fn configuration_mistakes_exit_78() {
    let dir = tempfile::tempdir().expect("writable");
    let file = dir.path().join("c.toml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(&file, "name = 'mgt1'\nlisten = 7\n").expect("writable");
    let answer = Call::new("collective config check").with(&path).run();
    assert!(answer.code == 78 && answer.err.contains("c.toml:2:10: "), "{answer:?}");

    std::fs::write(&file, "name = 'mgt1'\nseeds = ['a']\n").expect("writable");
    assert_eq!(Call::new("collective config check").with(&path).run().out, "the configuration is valid\n");
    let shown = Call::new("collective config show --origin").with(&path).variable("COLLECTIVE_LOG", "debug").run().out;
    let has = |start: &str, end: &str| shown.lines().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(has("name = \"mgt1\"", &format!("# {path}")), "{shown}");
    assert!(has("seeds = [\"a\"]", "c.toml") && has("log = \"debug\"", "# COLLECTIVE_LOG"), "{shown}");
    assert!(has("# http =", "# default"), "{shown}");
    let json = Call::new("collective config show -o json").variable("COLLECTIVE_CONFIG", &path).run().out;
    assert!(json.starts_with("{\"schema\":\"collective.config/1\""), "{json}");
}

#[test]
fn hooks_are_listed_with_what_keeps_them_from_running() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("writable");
    let hooks = dir.path().join("hooks.d");
    std::fs::create_dir(&hooks).expect("writable");
    for (file, mode) in [("10-plain", 0o644), ("20-open", 0o777)] {
        std::fs::write(hooks.join(file), "").expect("writable");
        std::fs::set_permissions(hooks.join(file), PermissionsExt::from_mode(mode)).expect("ours");
    }
    let list = |dir: &str| {
        let config = tempfile::NamedTempFile::new().expect("writable");
        let path = config.path().to_string_lossy().into_owned();
        Call::new("collective hooks list --config").with(&path).variable("COLLECTIVE_HOOKS_DIR", dir).run()
    };
    assert_eq!(
        list(&hooks.to_string_lossy()).out,
        "HOOK      STATE\n10-plain  not executable\n20-open   others may write it: chmod go-w\n"
    );
    let none = list("/nowhere");
    assert_eq!((none.code, none.err.as_str()), (0, "there is no /nowhere: no hooks\n"));
}

#[test]
fn what_packages_ship_is_generated() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(Call::new("collective gen completions").with(shell).run().out.contains("attrib"), "{shell}");
    }
    assert!(Call::new("collective gen man").run().out.contains(".TH"));
    let dir = tempfile::tempdir().expect("writable");
    let path = dir.path().to_string_lossy().into_owned();
    assert_eq!(Call::new("collective gen man").with(&path).run().code, 0);
    for page in ["collective.1", "collective-attrib.1", "collectived.8"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    for _ in 0..2 {
        let answer = Call::new("collective gen links").with(&path).run();
        assert_eq!(answer.code, 0, "{answer:?}");
    }
    assert!(std::fs::read_link(dir.path().join("nodeattrib")).is_ok());
}

#[test]
fn what_needs_no_daemon_is_handed_over() {
    assert_eq!(Call::new("collective demo").run().code, 0);
    assert_eq!(Call::new("collective demo --stay").run().code, 7);
    let answer = Call::new("collective init --name mgt1 -s /nowhere/x").run();
    assert_eq!((answer.code, answer.out.as_str()), (0, "made mgt1\n"));
    let daemon = Daemon::start(|_| done("mgt1 is a member of one already"));
    assert!(daemon.run("collective init").out.contains("already"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    struct Closed;
    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut err = Vec::new();
    let mut io = Io {
        stdin: &mut io::empty(),
        stdout: &mut Closed,
        stderr: &mut err,
        stdin_is_terminal: false,
        stdout_is_terminal: false,
        read_secret,
    };
    let words = ["collective", "help", "files"].map(Into::into);
    assert_eq!(run(words, &Environment::new(), &mut io, &Offline { demo, init }), 0);
    assert!(err.is_empty());
}

#[test]
fn wrong_variables_are_usage_errors() {
    for (variable, value) in
        [("COLLECTIVE_OUTPUT", "xml"), ("COLLECTIVE_TIMEOUT", "soon"), ("COLLECTIVE_COLOR", "blue")]
    {
        let answer = Call::new("collective show").variable(variable, value).run();
        assert!(answer.code == 64 && answer.err.contains(variable), "{answer:?}");
    }
}
