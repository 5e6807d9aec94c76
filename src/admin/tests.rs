//! The server against clients of every kind, over real sockets.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::proto::request::*;

/// Answers as the request is, and counts on nothing else.
struct Fake;

#[async_trait]
impl Handler for Fake {
    async fn request(&self, request: Request, _: PeerCredentials, _: Duration) -> Response {
        match request {
            Request::Show => Response::Show(Show { quorum: true, ..Show::default() }),
            Request::Status => Response::Status(Box::new(Status {
                standing: Standing::Rejoining,
                quorum: Votes { quorate: true, ..Votes::default() },
                ..Status::default()
            })),
            Request::Managers { why: true, .. } => Refusal::new(ErrorCode::NotFound, "asked why", "").into(),
            Request::Managers { .. } => Response::Managers(Managers::default()),
            Request::Events { after, kinds, .. } => {
                let seq = after.unwrap_or(0) + 1;
                let event = LoggedEvent {
                    schema: EventSchema::V1,
                    seq,
                    time: "2026-11-21T09:15:44Z".to_owned(),
                    kind: kinds.first().copied().unwrap_or(EventKind::QuorumLost),
                    member: None,
                    node: None,
                    token: None,
                    message: "it happened".to_owned(),
                };
                // Two events, then silence.
                let events = if seq <= 2 { vec![event] } else { Vec::new() };
                Response::Events(Events { events, ..Events::default() })
            }
            Request::Import { document, .. } => {
                Response::Done(Done { message: document.len().to_string(), ..Done::default() })
            }
            Request::Leave => panic!("a bug in the daemon"),
            _ => Response::Done(Done::default()),
        }
    }
}

struct Server {
    dir: TempDir,
    runtime: Runtime,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("writable");
        let sockets = AdminSockets::bind(dir.path()).expect("free");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads");
        runtime.spawn(serve(sockets, Arc::new(Fake)));
        Self { dir, runtime }
    }

    /// Opens a connection by hand.
    fn dial(&self, socket: &str) -> StdStream {
        let stream = StdStream::connect(self.dir.path().join(socket)).expect("listening");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
        stream
    }

    /// Sends bytes and returns what comes back until the server hangs up.
    fn exchange(&self, socket: &str, bytes: &[u8]) -> String {
        let mut stream = self.dial(socket);
        // A server that refuses early may hang up before everything is written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, socket: &str, path: &str) -> String {
        self.exchange(socket, format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    }

    fn post(&self, socket: &str, body: &str) -> String {
        let length = body.len();
        let head = format!("POST /v1/requests HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}");
        self.exchange(socket, format!("{head}\r\n\r\n{body}").as_bytes())
    }

    fn ask(&self, path: &Path, request: &Request) -> Result<Response, ClientError> {
        self.runtime.block_on(async {
            let mut client = Client::connect(path).await?;
            client.request(request, Duration::from_secs(5)).await
        })
    }

    fn still_answers(&self) -> bool {
        let answer = self.ask(&self.dir.path().join(ADMIN_SOCKET), &Request::Show);
        matches!(answer, Ok(Response::Show(Show { quorum: true, .. })))
    }
}

#[test]
fn sockets_have_their_modes_and_leave_no_other_file() {
    let server = Server::start();
    for (socket, mode) in [(ADMIN_SOCKET, 0o660), (STATUS_SOCKET, 0o666)] {
        let found = std::fs::metadata(server.dir.path().join(socket)).expect("there");
        assert_eq!(found.permissions().mode() & 0o777, mode, "{socket}");
    }
    assert_eq!(std::fs::read_dir(server.dir.path()).expect("readable").count(), 2);
}

#[test]
fn a_socket_in_use_is_kept_and_a_stale_one_replaced() {
    let server = Server::start();
    let error = AdminSockets::bind(server.dir.path()).expect_err("in use");
    assert!(error.to_string().starts_with("another daemon answers on "), "{error}");
    assert!(server.still_answers());

    let dir = tempfile::tempdir().expect("writable");
    drop(StdListener::bind(dir.path().join(ADMIN_SOCKET)).expect("free"));
    assert!(AdminSockets::bind(dir.path()).is_ok());
}

#[test]
fn what_is_no_socket_is_not_removed() {
    let dir = tempfile::tempdir().expect("writable");
    std::fs::write(dir.path().join(STATUS_SOCKET), "precious").expect("writable");
    assert!(matches!(AdminSockets::bind(dir.path()), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(dir.path().join(STATUS_SOCKET)).expect("there"), b"precious");
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(AdminSockets::bind(&long), Err(BindError::TooLong(_))));
    assert!(matches!(AdminSockets::bind(&dir.path().join(STATUS_SOCKET)), Err(BindError::Io { .. })));
}

#[test]
fn a_missing_directory_is_made_and_everybody_may_enter() {
    let dir = tempfile::tempdir().expect("writable");
    let runtime_dir = dir.path().join("a/b");
    AdminSockets::bind(&runtime_dir).expect("free");
    let found = std::fs::metadata(&runtime_dir).expect("there");
    assert_eq!(found.permissions().mode() & 0o777, 0o755);
}

#[test]
fn the_status_socket_only_reads() {
    let server = Server::start();
    let status = server.dir.path().join(STATUS_SOCKET);
    assert!(matches!(server.ask(&status, &Request::Show), Ok(Response::Show(_))));
    for request in [Request::Gencert { rotate: false }, Request::Invites] {
        let Ok(Response::Error(refused)) = server.ask(&status, &request) else { panic!("not refused") };
        assert_eq!((refused.error.code, refused.error.exit), (ErrorCode::Permission, 77));
    }
    assert!(server.get(STATUS_SOCKET, "/v1/invites").starts_with("HTTP/1.1 403 "));
    assert!(server.get(ADMIN_SOCKET, "/v1/invites").starts_with("HTTP/1.1 200 "));
    assert!(server.post(STATUS_SOCKET, r#"{"request":"leave"}"#).starts_with("HTTP/1.1 403 "));
}

#[test]
fn curl_gets_the_same_answers() {
    let server = Server::start();
    let shown = server.get(STATUS_SOCKET, "/v1/show");
    assert!(shown.starts_with("HTTP/1.1 200 ") && shown.contains("\"schema\":\"collective.show/1\""), "{shown}");
    assert!(server.get(ADMIN_SOCKET, "/v1/managers?nodes=n1").contains("collective.managers/1"));
    let why = server.get(ADMIN_SOCKET, "/v1/managers?why");
    assert!(why.starts_with("HTTP/1.1 404 ") && why.contains("asked why"), "{why}");
    for (path, _) in [("/v1/members", 0), ("/v1/view", 0), ("/v1/quorum", 0), ("/v1/nodes", 0), ("/v1/groups", 0)] {
        assert!(server.get(ADMIN_SOCKET, path).starts_with("HTTP/1.1 200 "), "{path}");
    }
    for query in ["colour=red", "after=x"] {
        let answer = server.get(ADMIN_SOCKET, &format!("/v1/events?{query}"));
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"exit\":64"), "{answer}");
    }
    assert!(server.get(ADMIN_SOCKET, "/v1/events?kind=party").contains("there is no kind of event"));
}

#[test]
fn an_unknown_route_names_the_known_ones() {
    let server = Server::start();
    let answer = server.get(ADMIN_SOCKET, "/v2/nothing");
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("/v1/show"), "{answer}");
    let answer = server.get(ADMIN_SOCKET, "/v1/requests");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\"exit\":64"), "{answer}");
}

#[test]
fn health_is_told_a_line_a_part() {
    let server = Server::start();
    assert!(server.get(STATUS_SOCKET, "/livez").ends_with("\r\n\r\nok\n"));
    let ready = server.get(STATUS_SOCKET, "/readyz?verbose");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(ready.ends_with("[+]daemon ok\n[+]quorum ok\n[-]data resyncing\nnot ready\n"), "{ready}");
    assert!(server.get(STATUS_SOCKET, "/readyz").ends_with("\r\n\r\nnot ready\n"));
}

#[test]
fn garbage_is_answered_or_cut_off_and_harms_nobody() {
    let server = Server::start();
    for bytes in [
        &b"\x00\xff\x16\x03\x01 nonsense\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/requests HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/requests HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = server.exchange(ADMIN_SOCKET, bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let head = format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000));
    assert!(!server.exchange(ADMIN_SOCKET, head.as_bytes()).starts_with("HTTP/1.1 2"));
    for body in ["", "{", "[]", "null", r#"{"request":"fly"}"#, r#"{"request":"ping","member":"-"}"#, "\u{0}"] {
        let answer = server.post(ADMIN_SOCKET, body);
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("cannot be read"), "{body}: {answer}");
    }
    let deep = "[".repeat(200_000);
    assert!(server.post(ADMIN_SOCKET, &deep).starts_with("HTTP/1.1 400 "));
    assert!(server.still_answers());
}

#[test]
fn only_an_import_on_the_admin_socket_may_be_large() {
    let server = Server::start();
    let document = "x".repeat(2 << 20);
    let import = format!(r#"{{"request":"import","format":"csv","document":"{document}"}}"#);
    assert!(server.post(ADMIN_SOCKET, &import).contains("\"message\":\"2097152\""));
    let define = format!(r#"{{"request":"define-nodes","nodes":"{document}"}}"#);
    for (socket, body) in [(STATUS_SOCKET, &import), (ADMIN_SOCKET, &define)] {
        let answer = server.post(socket, body);
        assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("larger than 1 MiB"), "{answer}");
    }
    let head = "POST /v1/requests HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    drop(server.dial(ADMIN_SOCKET).write_all(head.as_bytes()));
    assert!(server.still_answers());
}

#[test]
fn silent_clients_keep_nobody_out_and_a_full_house_only_waits() {
    let server = Server::start();
    let mut silent: Vec<_> = (0..63).map(|_| server.dial(ADMIN_SOCKET)).collect();
    assert!(server.still_answers());
    // The house is full: the next client waits for a place, and has it as soon as one leaves.
    silent.extend([server.dial(ADMIN_SOCKET), server.dial(ADMIN_SOCKET)]);
    let path = server.dir.path().join(ADMIN_SOCKET);
    let limit = Duration::from_millis(100);
    let crowded = server
        .runtime
        .block_on(async { Client::connect(&path).await.expect("queued").request(&Request::Show, limit).await });
    assert!(matches!(crowded, Err(ClientError::Timeout(_))), "{crowded:?}");
    silent.truncate(10);
    assert!(server.still_answers());
    // The status socket has places of its own.
    assert!(server.get(STATUS_SOCKET, "/livez").ends_with("ok\n"));
}

#[test]
fn a_client_that_dawdles_is_cut_off() {
    let server = Server::start();
    let heads =
        ["", "GET /v1/show HTT", "POST /v1/requests HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"request\":"];
    let mut clients = heads.map(|head| {
        let mut client = server.dial(ADMIN_SOCKET);
        client.write_all(head.as_bytes()).expect("listening");
        client
    });
    let answers = clients.each_mut().map(|client| {
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("the server hangs up in time");
        answer
    });
    assert!(answers[2].starts_with("HTTP/1.1 504 ") && answers[2].contains("too slowly"), "{answers:?}");
    assert!(server.still_answers());
}

#[test]
fn a_panic_in_the_daemon_is_an_answer() {
    let server = Server::start();
    let answer = server.ask(&server.dir.path().join(ADMIN_SOCKET), &Request::Leave);
    let Ok(Response::Error(refused)) = answer else { panic!("{answer:?}") };
    assert_eq!(refused.error.code, ErrorCode::Internal);
    assert!(server.still_answers());
}

#[test]
fn events_are_streamed_as_they_come() {
    let server = Server::start();
    for (accept, first) in [
        ("text/event-stream", "id: 1\ndata: {\"schema\":\"collective.event/1\",\"seq\":1"),
        ("application/x-ndjson", "{\"schema\":\"collective.event/1\",\"seq\":1"),
    ] {
        let mut stream = server.dial(STATUS_SOCKET);
        let request = format!("GET /v1/events/stream?kind=member-down HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("listening");
        let mut seen = String::new();
        let mut bytes = [0; 4096];
        while !(seen.contains("\"seq\":1") && seen.contains("\"seq\":2")) {
            let count = stream.read(&mut bytes).expect("more comes");
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        assert!(seen.contains(&format!("content-type: {accept}")) && seen.contains(first), "{seen}");
        assert!(seen.contains("\"kind\":\"member-down\""), "{seen}");
    }
    assert!(server.still_answers());
}

#[test]
fn a_connection_answers_more_than_once() {
    let server = Server::start();
    let path = server.dir.path().join(ADMIN_SOCKET);
    server.runtime.block_on(async {
        let mut client = Client::connect(&path).await.expect("listening");
        for _ in 0..3 {
            assert!(client.request(&Request::Show, Duration::from_secs(5)).await.is_ok());
        }
    });
}

#[test]
fn every_refusal_is_an_http_error() {
    for code in [ErrorCode::Failure, ErrorCode::NoQuorum, ErrorCode::Indeterminate, ErrorCode::InviteSpent] {
        assert!((400..600).contains(&http_status(code)), "{code:?}");
    }
}
