//! The local API: HTTP/1 and JSON over two unix sockets, whose file modes say who may do what.
//!
//! `admin.sock` (0660) takes every request; `status.sock` (0666) takes those that only read. `POST /v1/requests` takes a
//! [`Request`](crate::proto::request::Request) and answers with a [`Response`](crate::proto::request::Response); a few
//! GET routes say the same to curl.

pub mod client;
pub mod server;
mod thread;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use server::{Access, AdminSockets, BindError, Handler, PeerCredentials, router, serve};
pub use thread::ServerThread;

use crate::proto::request::ErrorCode;

/// The file name of the socket that takes every request.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The file name of the socket that takes requests that only read.
pub const STATUS_SOCKET: &str = "status.sock";

/// The header by which a client says how long it waits, in milliseconds.
const DEADLINE_HEADER: &str = "collective-deadline-ms";
/// What the `server` header of every answer begins with; the version follows.
const SERVER_PREFIX: &str = "collective/";
/// Bytes in the longest path of a unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Returns the HTTP status that goes with a kind of refusal.
pub const fn http_status(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Usage => 400,
        ErrorCode::Permission | ErrorCode::ProofFailed => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::NeedsForce | ErrorCode::Exists | ErrorCode::VersionMismatch => 409,
        ErrorCode::InviteSpent => 410,
        ErrorCode::BadData => 422,
        ErrorCode::Failure | ErrorCode::Internal | ErrorCode::Configuration => 500,
        ErrorCode::Unreachable => 502,
        ErrorCode::NoQuorum | ErrorCode::TryAgain => 503,
        ErrorCode::Indeterminate | ErrorCode::TimedOut => 504,
    }
}
