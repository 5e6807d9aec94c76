//! The server's side: two sockets, bounded clients, and one trait behind which the daemon answers.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{ADMIN_SOCKET, DEADLINE_HEADER, SERVER_PREFIX, SOCKET_PATH_BYTES_MAX, STATUS_SOCKET, http_status};
use crate::proto::request::{ErrorCode, EventKind, Refusal, Refused, Request, Response, Standing};

/// Clients of one socket at once; the next one waits in the kernel's queue.
const CLIENTS_MAX: usize = 64;
/// Event streams of one socket at once; fewer than clients, so that watchers never keep a request out.
const STREAMS_MAX: usize = 32;
/// How long a client may take to send a request's head, and to send each further 64 KiB of its body.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in the largest request on the status socket, and on the admin socket for all but an import.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes in the largest import; the admin socket only.
const IMPORT_BYTES_MAX: usize = 64 << 20;
/// Bytes in the largest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long a request may take when its client does not say.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest that a client may ask for.
const DEADLINE_MAX: Duration = Duration::from_secs(3_600);
/// How often a stream asks for new events.
const STREAM_INTERVAL: Duration = Duration::from_millis(250);
/// How often an idle stream sends a comment, so that a client that went away is noticed.
const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The group whose members may use the admin socket, where the system has it.
const ADMIN_GROUP: &str = "collective";

/// The daemon, as the local API sees it.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    ///
    /// It runs to its end even when the client goes away, but is dropped at `deadline` from now.
    async fn request(&self, request: Request, peer: PeerCredentials, deadline: Duration) -> Response;
}

/// Who asks: what the kernel says of the process at the other end. Nothing is known of a client over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its effective user.
    pub uid: Option<u32>,
    /// Its effective group.
    pub gid: Option<u32>,
    /// Its process id.
    pub pid: Option<i32>,
}

/// What the clients of a socket may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// What [`Request::is_read_only`] allows.
    ReadOnly,
}

/// Why the sockets could not be made. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody answers there already.
    #[error("another daemon answers on {0}; stop it or use another --runtime-dir")]
    InUse(PathBuf),
    /// There is something that is no socket, and it is not ours to remove.
    #[error("{0} is in the way: it is not a socket; remove it or use another --runtime-dir")]
    NotASocket(PathBuf),
    /// The system's limit for paths of sockets.
    #[error("the path {0} is longer than {SOCKET_PATH_BYTES_MAX} bytes; use a shorter --runtime-dir")]
    TooLong(PathBuf),
    /// The system refused.
    #[error("cannot make {path}: {source}")]
    Io {
        /// What was to be made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The two sockets, bound and listening.
#[derive(Debug)]
pub struct AdminSockets {
    admin: StdListener,
    status: StdListener,
}

impl AdminSockets {
    /// Makes the directory when it is missing, and both sockets in it with their modes.
    ///
    /// A socket that a daemon left behind is removed; one that somebody listens on is not.
    ///
    /// # Errors
    /// [`BindError`], each with what to do about it.
    pub fn bind(runtime_dir: &Path) -> Result<Self, BindError> {
        let error = |source| BindError::Io { path: runtime_dir.to_owned(), source };
        if !runtime_dir.is_dir() {
            std::fs::create_dir_all(runtime_dir).map_err(error)?;
            // Everybody may enter, for the status socket; the admin socket guards itself.
            std::fs::set_permissions(runtime_dir, PermissionsExt::from_mode(0o755)).map_err(error)?;
        }
        let admin = listen(&runtime_dir.join(ADMIN_SOCKET), 0o660)?;
        let status = listen(&runtime_dir.join(STATUS_SOCKET), 0o666)?;
        Ok(Self { admin, status })
    }
}

/// Listens on a path.
fn listen(path: &Path, mode: u32) -> Result<StdListener, BindError> {
    let error = |source| BindError::Io { path: path.to_owned(), source };
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(BindError::TooLong(path.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match StdStream::connect(path) {
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(error)?;
            }
            // Anything but a refusal means that the socket has an owner, be it a busy or a foreign one.
            _ => return Err(BindError::InUse(path.to_owned())),
        },
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(error(source)),
    }
    // Bound under another name and moved when its mode is right, so that nobody slips in between.
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let listener = StdListener::bind(&fresh).map_err(error)?;
    if let Some(group) = admin_group() {
        // Only root may give a file to another group; without that the file's own group has the rights.
        let _ = std::os::unix::fs::chown(&fresh, None, Some(group));
    }
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(mode)).map_err(error)?;
    std::fs::rename(&fresh, path).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok(listener)
}

/// Finds the number of the administrators' group.
fn admin_group() -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(ADMIN_GROUP))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Serves both sockets until it is dropped; no client ends it.
pub async fn serve(sockets: AdminSockets, handler: Arc<dyn Handler>) {
    let admin = serve_socket(sockets.admin, router(Arc::clone(&handler), Access::Full));
    let status = serve_socket(sockets.status, router(handler, Access::ReadOnly));
    tokio::join!(admin, status);
}

/// Accepts clients of one socket for ever.
async fn serve_socket(listener: StdListener, router: Router) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the local API cannot be served");
            return;
        }
    };
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut connections = JoinSet::new();
    let mut pause = Duration::from_millis(10);
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                pause = Duration::from_millis(10);
                connections.spawn(serve_client(stream, router.clone(), permit));
                while connections.try_join_next().is_some() {}
            }
            Err(error) => {
                // EMFILE and its like pass when other files are closed; asking again at once would only burn time.
                tracing::warn!(%error, "a local client could not be accepted");
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// Serves one client until it is done, errs or idles.
async fn serve_client(stream: UnixStream, router: Router, _permit: OwnedSemaphorePermit) {
    let peer = stream.peer_cred().map_or_else(
        |_| PeerCredentials::default(),
        |found| PeerCredentials { uid: Some(found.uid()), gid: Some(found.gid()), pid: found.pid() },
    );
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        inner.call(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(FIRST_BYTE_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(uid = peer.uid, pid = peer.pid, %error, "a local client was cut off");
    }
}

/// Makes the routes; the daemon serves the read-only ones over loopback TCP, too.
pub fn router(handler: Arc<dyn Handler>, access: Access) -> Router {
    let api = Api { handler, access, streams: Arc::new(Semaphore::new(STREAMS_MAX)) };
    let mut router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/v1/requests", post(requests))
        .route("/v1/events/stream", get(event_stream));
    for (path, build) in VIEWS {
        let view = move |api: State<Api>, caller: Caller, filter: Result<Query<Filter>, QueryRejection>| async move {
            match read_filter(filter).and_then(build) {
                Ok(request) => answer(&api.ask(request, &caller).await),
                Err(refusal) => answer(&refusal.into()),
            }
        };
        router = router.route(path, get(view));
    }
    router.fallback(unknown_route).method_not_allowed_fallback(wrong_method).with_state(api)
}

/// Makes a request from what a query says.
type BuildRequest = fn(Filter) -> Result<Request, Refusal>;

/// The GET routes and the requests they stand for.
const VIEWS: [(&str, BuildRequest); 10] = [
    ("/v1/show", |_| Ok(Request::Show)),
    ("/v1/status", |_| Ok(Request::Status)),
    ("/v1/members", |filter| Ok(Request::Members { expression: filter.expression })),
    ("/v1/view", |_| Ok(Request::View)),
    ("/v1/quorum", |filter| Ok(Request::Quorum { without: filter.without })),
    ("/v1/managers", |filter| Ok(Request::Managers { why: on(&filter.why), nodes: filter.nodes })),
    ("/v1/nodes", |filter| Ok(Request::ListNodes { stale: on(&filter.stale), nodes: filter.nodes })),
    ("/v1/groups", |filter| Ok(Request::ListGroups { stale: on(&filter.stale) })),
    ("/v1/invites", |_| Ok(Request::Invites)),
    ("/v1/events", |filter| filter.events()),
];

/// What a query may narrow.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    expression: Option<String>,
    without: Option<String>,
    nodes: Option<String>,
    why: Option<String>,
    stale: Option<String>,
    after: Option<u64>,
    kind: Option<String>,
    limit: Option<usize>,
}

impl Filter {
    /// Makes the request for events.
    fn events(self) -> Result<Request, Refusal> {
        let words = self.kind.as_deref().unwrap_or_default().split(',').filter(|word| !word.is_empty());
        let kinds = words.map(event_kind).collect::<Result<_, _>>()?;
        Ok(Request::Events { after: self.after, kinds, limit: self.limit })
    }
}

/// Reads the word of a kind of event.
fn event_kind(word: &str) -> Result<EventKind, Refusal> {
    EventKind::from_word(word).ok_or_else(|| {
        Refusal::new(ErrorCode::Usage, format!("there is no kind of event {word:?}"), "collective events --help")
    })
}

/// Returns whether a flag of a query is set: `?why`, `?why=true`, `?why=1`.
fn on(flag: &Option<String>) -> bool {
    flag.as_deref().is_some_and(|text| !matches!(text, "false" | "0" | "no"))
}

fn read_filter(filter: Result<Query<Filter>, QueryRejection>) -> Result<Filter, Refusal> {
    filter.map(|Query(filter)| filter).map_err(|error| Refusal::new(ErrorCode::Usage, error.body_text(), ""))
}

/// What the routes share.
#[derive(Clone)]
struct Api {
    handler: Arc<dyn Handler>,
    access: Access,
    streams: Arc<Semaphore>,
}

impl Api {
    /// Checks a request against the socket's rights, notes it and has it answered in time.
    async fn ask(&self, request: Request, caller: &Caller) -> Response {
        if self.access == Access::ReadOnly && !request.is_read_only() {
            return Refusal::new(
                ErrorCode::Permission,
                format!("the status socket does not answer `{}`: it only reads", request.kind()),
                "use admin.sock, as root or as a member of the group `collective`",
            )
            .into();
        }
        let Caller { peer, deadline } = *caller;
        if request.is_read_only() {
            tracing::debug!(uid = peer.uid, pid = peer.pid, request = request.kind(), "asked");
        } else {
            tracing::info!(uid = peer.uid, pid = peer.pid, request = request.kind(), "asked");
        }
        let handler = Arc::clone(&self.handler);
        // A task of its own: a client that goes away does not stop half of a change.
        let work = tokio::spawn(async move {
            timeout(deadline, handler.request(request, peer, deadline)).await.unwrap_or_else(|_| {
                let message = format!("no answer within {}", humantime::format_duration(deadline));
                Refusal::new(ErrorCode::TimedOut, message, "collective status; or allow more time with --timeout")
                    .into()
            })
        });
        work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "answering a request failed");
            let hint = "see the daemon's log and report it";
            Refusal::new(ErrorCode::Internal, "the daemon failed while answering", hint).into()
        })
    }
}

/// Who asks, and how long it waits.
struct Caller {
    peer: PeerCredentials,
    deadline: Duration,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let header = parts.headers.get(DEADLINE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Self {
            peer: parts.extensions.get().copied().unwrap_or_default(),
            deadline: header.map_or(DEADLINE_DEFAULT, Duration::from_millis).min(DEADLINE_MAX),
        })
    }
}

/// `POST /v1/requests`: any request.
async fn requests(State(api): State<Api>, caller: Caller, body: Body) -> HttpResponse {
    match read_request(api.access, body).await {
        Ok(request) => answer(&api.ask(request, &caller).await),
        Err(refusal) => {
            let mut response = answer(&refusal.into());
            // The rest of a body that was not read must not be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

/// Reads a request, bounded in size and time.
async fn read_request(access: Access, body: Body) -> Result<Request, Refusal> {
    let limit = if access == Access::Full { IMPORT_BYTES_MAX } else { REQUEST_BYTES_MAX };
    let bytes = read_body(body, limit).await?;
    let request: Request = serde_json::from_slice(&bytes).map_err(|error| {
        let hint = "POST /v1/requests takes a document such as {\"request\":\"status\"}";
        Refusal::new(ErrorCode::Usage, format!("the request cannot be read: {error}"), hint)
    })?;
    if bytes.len() > REQUEST_BYTES_MAX && !matches!(request, Request::Import { .. }) {
        return Err(too_large(REQUEST_BYTES_MAX));
    }
    Ok(request)
}

/// Collects a body of at most `limit` bytes, from a sender that does not dawdle.
async fn read_body(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    use http_body_util::BodyExt;
    let mut body = body;
    let mut bytes = Vec::new();
    let mut budget = Instant::now() + FIRST_BYTE_TIMEOUT;
    let mut paid = 0;
    while let Ok(frame) = tokio::time::timeout_at(budget, body.frame()).await {
        let Some(frame) = frame else { return Ok(bytes) };
        let broken = |_| Refusal::new(ErrorCode::Usage, "the request broke off", "");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&data);
        if bytes.len() - paid >= 64 << 10 {
            paid = bytes.len();
            budget = Instant::now() + FIRST_BYTE_TIMEOUT;
        }
    }
    Err(Refusal::new(ErrorCode::TimedOut, "the request came too slowly", ""))
}

fn too_large(limit: usize) -> Refusal {
    let message = format!("the request is larger than {} MiB", limit >> 20);
    Refusal::new(ErrorCode::BadData, message, "send it in smaller parts")
}

/// Writes a response as HTTP.
fn answer(response: &Response) -> HttpResponse {
    let status = match response {
        Response::Error(Refused { error }) => StatusCode::from_u16(http_status(error.code)),
        _ => Ok(StatusCode::OK),
    };
    // Every response is plain data with text keys, which JSON can always hold.
    let mut body = serde_json::to_vec(response).unwrap_or_default();
    body.push(b'\n');
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::SERVER, SERVER)];
    (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), headers, body).into_response()
}

/// The `server` header.
const SERVER: &str = concat!("collective/", env!("CARGO_PKG_VERSION"));
const _: () = assert!(SERVER.len() > SERVER_PREFIX.len());

/// What is not served: says what is.
async fn unknown_route(uri: Uri) -> HttpResponse {
    let mut routes = vec!["POST /v1/requests", "/v1/events/stream", "/livez", "/readyz?verbose"];
    routes.extend(VIEWS.iter().map(|(path, _)| *path));
    let message = format!("there is no {}", uri.path().chars().take(200).collect::<String>());
    answer(&Refusal::new(ErrorCode::NotFound, message, format!("routes: {}", routes.join(" "))).into())
}

/// A route that is there, asked in the wrong way.
async fn wrong_method(uri: Uri) -> HttpResponse {
    let hint = "POST to /v1/requests; GET everything else";
    let mut response =
        answer(&Refusal::new(ErrorCode::Usage, format!("{} does not take this method", uri.path()), hint).into());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// `GET /readyz`: whether this member may write, with one line a part on `?verbose`.
async fn readyz(State(api): State<Api>, caller: Caller, uri: Uri) -> HttpResponse {
    let parts = match api.ask(Request::Status, &caller).await {
        Response::Status(status) => vec![
            ("daemon", Ok("ok".to_owned())),
            (
                "quorum",
                if status.quorum.quorate {
                    Ok("ok".to_owned())
                } else {
                    Err(format!("{} of {} votes", status.quorum.votes, status.quorum.needed))
                },
            ),
            (
                "data",
                match status.standing {
                    Standing::Seated => Ok("ok".to_owned()),
                    Standing::Rejoining => Err("resyncing".to_owned()),
                    Standing::Isolated => Err("isolated".to_owned()),
                },
            ),
        ],
        Response::Error(Refused { error }) => vec![("daemon", Err(error.message))],
        _ => vec![("daemon", Err("an unexpected answer".to_owned()))],
    };
    let ready = parts.iter().all(|(_, state)| state.is_ok());
    let mut text = String::new();
    if uri.query().is_some_and(|query| query.split('&').any(|flag| flag == "verbose" || flag.starts_with("verbose="))) {
        for (part, state) in &parts {
            match state {
                Ok(word) => text.push_str(&format!("[+]{part} {word}\n")),
                Err(word) => text.push_str(&format!("[-]{part} {word}\n")),
            }
        }
    }
    text.push_str(if ready { "ok\n" } else { "not ready\n" });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text).into_response()
}

/// `GET /v1/events/stream?after=&kind=`: events as they come, as server-sent events, or as JSON lines for
/// `Accept: application/x-ndjson`.
async fn event_stream(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    filter: Result<Query<Filter>, QueryRejection>,
) -> HttpResponse {
    let (after, kinds) = match read_filter(filter).and_then(Filter::events) {
        Ok(Request::Events { after, kinds, .. }) => (after, kinds),
        Ok(_) => (None, Vec::new()),
        Err(refusal) => return answer(&refusal.into()),
    };
    let Ok(permit) = Arc::clone(&api.streams).try_acquire_owned() else {
        let message = format!("{STREAMS_MAX} clients follow events already");
        return answer(&Refusal::new(ErrorCode::TryAgain, message, "try again when one of them ended").into());
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let lines = accept.contains("ndjson") || accept.contains("jsonl");
    let follower = Follower { api, caller, after, kinds, lines, spoke: Instant::now(), _permit: permit };
    let content = if lines { "application/x-ndjson" } else { "text/event-stream" };
    let headers = [(header::CONTENT_TYPE, content), (header::CACHE_CONTROL, "no-store"), (header::SERVER, SERVER)];
    (headers, Body::from_stream(stream::unfold(follower, Follower::next))).into_response()
}

/// One client that follows events.
struct Follower {
    api: Api,
    caller: Caller,
    after: Option<u64>,
    kinds: Vec<EventKind>,
    lines: bool,
    spoke: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// Waits for the next piece of the stream; none ends it.
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        loop {
            let request = Request::Events { after: self.after, kinds: self.kinds.clone(), limit: None };
            let Response::Events(found) = self.api.ask(request, &self.caller).await else { return None };
            let mut text = String::new();
            for event in &found.events {
                self.after = Some(event.seq);
                let data = serde_json::to_string(event).unwrap_or_default();
                if self.lines {
                    text.push_str(&format!("{data}\n"));
                } else {
                    text.push_str(&format!("id: {}\ndata: {data}\n\n", event.seq));
                }
            }
            if text.is_empty() && self.spoke.elapsed() >= STREAM_KEEP_ALIVE {
                text.push_str(if self.lines { "\n" } else { ":\n\n" });
            }
            if !text.is_empty() {
                self.spoke = Instant::now();
                return Some((Ok(Bytes::from(text)), self));
            }
            sleep(STREAM_INTERVAL).await;
        }
    }
}
