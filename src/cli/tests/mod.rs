//! The command line against a daemon that answers as it is told, over real sockets.

mod input;
mod outcomes;
mod printing;
mod refusals;
mod setup;

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

    fn with(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
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
