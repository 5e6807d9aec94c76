//! The client's side: one connection to a member's socket, and errors that say what to do.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::{ADMIN_SOCKET, DEADLINE_HEADER, SERVER_PREFIX, SOCKET_PATH_BYTES_MAX, STATUS_SOCKET};
use crate::proto::request::{ErrorCode, Refusal, Request, Response};

/// Bytes in the largest answer: a dump of a database far beyond its limits still fits.
const RESPONSE_BYTES_MAX: usize = 1 << 30;
/// How much longer than the daemon the client waits, so that the daemon's own words about a timeout arrive.
const GRACE: Duration = Duration::from_millis(200);
/// How long to wait for a place in the daemon's queue of clients.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer. Whether something changed is unknown after [`Timeout`](Self::Timeout) and
/// [`Broken`](Self::Broken); nothing did in every other case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no such file.
    #[error("there is no socket {0}: the daemon is not running, or has another runtime directory")]
    Missing(PathBuf),
    /// Nobody listens.
    #[error("nobody answers on {0}: the daemon is not running")]
    Refused(PathBuf),
    /// There is a file, but no daemon's socket.
    #[error("{path} is {what}, not a daemon's socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// The system's limit for paths of sockets.
    #[error("the socket path {0} is longer than {SOCKET_PATH_BYTES_MAX} bytes")]
    TooLong(PathBuf),
    /// This user may not use the socket.
    #[error("this user may not use {0}")]
    Permission(PathBuf),
    /// Only the status socket is open to this user, and it does not answer such requests.
    #[error("this user may not use {path}, and its status socket does not answer `{request}`")]
    ReadOnly {
        /// The admin socket.
        path: PathBuf,
        /// The request's word.
        request: &'static str,
    },
    /// Something answers, but no daemon of a collective.
    #[error("what answers on {path} is not a collective daemon: {what}")]
    Foreign {
        /// The path.
        path: PathBuf,
        /// What was odd.
        what: String,
    },
    /// The daemon is of another version and its answer means nothing to this client.
    #[error("the daemon is version {daemon}, this command is version {}: they do not understand each other", env!("CARGO_PKG_VERSION"))]
    Version {
        /// The daemon's version.
        daemon: String,
    },
    /// The connection ended before the answer.
    #[error("the daemon closed the connection without an answer: {0}")]
    Broken(String),
    /// There was no answer in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The system refused in another way.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        const START: &str = "systemctl start collectived, or: collectived --state-dir DIR --runtime-dir DIR; another socket: --socket PATH";
        const OTHER: &str = "name the daemon's socket with --socket PATH or COLLECTIVE_SOCKET";
        let (code, hint) = match &error {
            ClientError::Missing(_) | ClientError::Refused(_) => (ErrorCode::Unreachable, START),
            ClientError::NotASocket { .. } | ClientError::TooLong(_) | ClientError::Foreign { .. } => {
                (ErrorCode::Unreachable, OTHER)
            }
            ClientError::Permission(_) => (
                ErrorCode::Permission,
                "use sudo or join the group `collective`; status.sock beside it answers everybody who only reads",
            ),
            ClientError::ReadOnly { .. } => (ErrorCode::Permission, "use sudo or join the group `collective`"),
            ClientError::Version { .. } => {
                (ErrorCode::VersionMismatch, "install the same version of both and restart collectived")
            }
            ClientError::Broken(_) => (ErrorCode::Unreachable, "see the daemon's log: journalctl -u collectived -e"),
            ClientError::Timeout(_) => (ErrorCode::TimedOut, "collective status; or allow more time with --timeout"),
            ClientError::Io { .. } => (ErrorCode::Unreachable, OTHER),
        };
        Self::new(code, error.to_string(), hint)
    }
}

/// One connection to a daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    /// Whether `path` was closed to this user, and the status socket beside it answers instead.
    read_only: bool,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to a socket; when it is an admin socket that this user may not use, to the status socket beside it.
    ///
    /// # Errors
    /// [`ClientError`]; nothing was asked.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let (stream, read_only) = match dial(path).await {
            Ok(stream) => (stream, false),
            Err(ClientError::Permission(denied)) => (status_socket(path, denied).await?, true),
            Err(error) => return Err(error),
        };
        Self::over(path, stream, read_only).await
    }

    /// Speaks HTTP over a connected socket.
    async fn over(path: &Path, stream: UnixStream, read_only: bool) -> Result<Self, ClientError> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| foreign(path, &error))?;
        // It ends when the sender is dropped or the daemon hangs up; a request then reports what went wrong.
        tokio::spawn(connection);
        Ok(Self { path: path.to_owned(), read_only, sender })
    }

    /// Asks, and waits for the answer; a refusal is an answer.
    ///
    /// # Errors
    /// [`ClientError`] when there is none that can be understood.
    pub async fn request(&mut self, request: &Request, limit: Duration) -> Result<Response, ClientError> {
        if self.read_only && !request.is_read_only() {
            return Err(ClientError::ReadOnly { path: self.path.clone(), request: request.kind() });
        }
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Broken(error.to_string()))?;
        let message = hyper::Request::post("/v1/requests")
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(DEADLINE_HEADER, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        timeout(limit + GRACE, self.exchange(message)).await.unwrap_or(Err(ClientError::Timeout(limit)))
    }

    /// Sends one message, over a new connection when the daemon closed the old one before anything was sent.
    async fn send(
        &mut self,
        message: hyper::Request<Full<Bytes>>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, ClientError> {
        let unsent = match self.sender.ready().await {
            Err(_) => message,
            Ok(()) => match self.sender.try_send_request(message).await {
                Ok(answer) => return Ok(answer),
                Err(mut error) => match error.take_message() {
                    Some(message) => message,
                    None => return Err(foreign(&self.path, error.error())),
                },
            },
        };
        *self = Self::connect(&self.path).await?;
        self.sender.send_request(unsent).await.map_err(|error| foreign(&self.path, &error))
    }

    /// Sends one message and reads its answer.
    async fn exchange(&mut self, message: hyper::Request<Full<Bytes>>) -> Result<Response, ClientError> {
        let answer = self.send(message).await?;
        let server = answer.headers().get(header::SERVER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let version = server.strip_prefix(SERVER_PREFIX).map(str::to_owned);
        let status = answer.status();
        let body = Limited::new(answer.into_body(), RESPONSE_BYTES_MAX);
        let bytes = body.collect().await.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| match version {
            Some(daemon) if daemon != env!("CARGO_PKG_VERSION") => ClientError::Version { daemon },
            Some(_) => ClientError::Broken(format!("its answer cannot be read: {error}")),
            None => ClientError::Foreign { path: self.path.clone(), what: format!("it answered HTTP {status}") },
        })
    }
}

/// Connects to one socket.
async fn dial(path: &Path) -> Result<UnixStream, ClientError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(ClientError::TooLong(path.to_owned()));
    }
    let start = Instant::now();
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            // The daemon's queue is full: unix sockets do not wait for a place in it by themselves.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < QUEUE_TIMEOUT => {
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => return Err(explain(path, error)),
        }
    }
}

/// Says why a socket cannot be connected to.
fn explain(path: &Path, error: io::Error) -> ClientError {
    let owned = path.to_owned();
    match (error.kind(), std::fs::metadata(path)) {
        (io::ErrorKind::NotFound, _) => ClientError::Missing(owned),
        (io::ErrorKind::PermissionDenied, _) => ClientError::Permission(owned),
        (_, Ok(found)) if found.is_dir() => ClientError::NotASocket { path: owned, what: "a directory" },
        (_, Ok(found)) if found.is_file() => ClientError::NotASocket { path: owned, what: "a file" },
        (_, Ok(found)) if !found.file_type().is_socket() => {
            ClientError::NotASocket { path: owned, what: "something else" }
        }
        (io::ErrorKind::ConnectionRefused, _) => ClientError::Refused(owned),
        _ => ClientError::Io { path: owned, source: error },
    }
}

/// Connects to the status socket beside an admin socket that was `denied`.
async fn status_socket(path: &Path, denied: PathBuf) -> Result<UnixStream, ClientError> {
    if path.file_name().is_none_or(|name| name != ADMIN_SOCKET) {
        return Err(ClientError::Permission(denied));
    }
    // Whatever is wrong with the status socket, the admin socket's mode is what the user has to know of.
    dial(&path.with_file_name(STATUS_SOCKET)).await.map_err(|_| ClientError::Permission(denied))
}

/// Tells a program that does not speak HTTP from a daemon that hung up.
fn foreign(path: &Path, error: &hyper::Error) -> ClientError {
    if error.is_parse() {
        return ClientError::Foreign { path: path.to_owned(), what: "it does not speak HTTP".to_owned() };
    }
    ClientError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_admin_socket_sends_readers_to_the_status_socket() {
        let dir = tempfile::tempdir().expect("writable");
        let admin = dir.path().join(ADMIN_SOCKET);
        let status = tokio::net::UnixListener::bind(dir.path().join(STATUS_SOCKET)).expect("free");
        let denied = explain(&admin, io::ErrorKind::PermissionDenied.into());
        let ClientError::Permission(path) = denied else { panic!("{denied:?}") };

        let stream = status_socket(&admin, path).await.expect("listening");
        let mut client = Client::over(&admin, stream, true).await.expect("open");
        let refused = client.request(&Request::Leave, Duration::from_secs(1)).await;

        assert!(matches!(refused, Err(ClientError::ReadOnly { request: "leave", .. })), "{refused:?}");
        assert!(status.accept().await.is_ok());
    }

    #[tokio::test]
    async fn a_connection_that_idled_too_long_is_made_anew() {
        let dir = tempfile::tempdir().expect("writable");
        let path = dir.path().join(ADMIN_SOCKET);
        let listener = tokio::net::UnixListener::bind(&path).expect("free");
        let mut client = Client::connect(&path).await.expect("listening");
        drop(listener.accept().await.expect("a client"));

        let request = client.request(&Request::Show, Duration::from_millis(50));
        let (answer, second) = tokio::join!(request, timeout(Duration::from_secs(5), listener.accept()));

        assert!(second.is_ok(), "nobody came back");
        assert!(answer.is_err(), "nobody answered");
    }

    #[tokio::test]
    async fn a_closed_socket_of_another_name_or_without_a_brother_is_a_matter_of_rights() {
        let dir = tempfile::tempdir().expect("writable");
        for path in [dir.path().join("mine.sock"), dir.path().join(ADMIN_SOCKET)] {
            let failed = status_socket(&path, path.clone()).await.map(drop);
            let Err(error) = failed else { panic!("connected") };
            let refusal = Refusal::from(error);
            assert_eq!((refusal.code, refusal.exit), (ErrorCode::Permission, 77));
        }
    }
}
