//! Dialling: every peer without a link is called, at all its addresses, for as long as it is on the roster.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{ClientConfig, ConnectError, Connection, ConnectionError};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::endpoint::{Agreed, Inner, canonical};
use super::limits::{ADDRESS_STAGGER, ADDRESSES_MAX, CONNECT_TIMEOUT, HELLO_TIMEOUT, RESOLVE_TIMEOUT};
use super::link::{Ending, FrameError, greet};
use super::slot::Slot;
use super::tls::{Door, SERVER_NAME, peer_of};
use super::{CloseCode, DialError, Refusal};

/// Keeps one peer called until its slot is retired.
pub(crate) async fn dial(inner: Arc<Inner>, slot: Arc<Slot>) {
    let mut changed = slot.watch();
    loop {
        changed.borrow_and_update();
        let due = {
            let state = slot.lock();
            if state.retired {
                return;
            }
            let reachable = !state.addresses().is_empty() || !state.peer.names.is_empty();
            let wanted = state.link.is_none() && reachable;
            wanted.then(|| if state.hurry { Instant::now() } else { state.next_dial })
        };
        match due {
            Some(due) if due <= Instant::now() => attempt(&inner, &slot).await,
            Some(due) => tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = sleep_until(due) => {}
            },
            None => {
                // The slot is ours, so its sender lives.
                let _ = changed.changed().await;
            }
        }
    }
}

/// How a dial that led to no link ended.
enum Failure {
    /// The peer has a link to us, or our own side took one meanwhile: nothing to report.
    Superseded,
    /// Nobody was reached, or not the right one.
    Unreachable(DialError),
    /// The peer was reached and turned us away.
    Refused(SocketAddr, Ending),
}

async fn attempt(inner: &Arc<Inner>, slot: &Arc<Slot>) {
    slot.change(|state| {
        state.dialling = true;
        state.hurry = false;
    });
    let result = call(inner, slot).await;
    let now = Instant::now();
    let refusal = slot.change(|state| {
        state.dialling = false;
        match result {
            Ok(()) => None,
            Err(Failure::Superseded) => {
                state.dial_failed(None, now);
                None
            }
            Err(Failure::Unreachable(error)) => {
                state.dial_failed(Some(error), now);
                None
            }
            Err(Failure::Refused(address, Ending { reason, code, message, .. })) => {
                state.dial_failed(Some(DialError { address: Some(address), reason: reason.clone() }), now);
                let peer = state.peer.fingerprints.first().copied();
                Some(Refusal { peer, address, dialled: true, reason, code, close_message: message, suppressed: 0 })
            }
        }
    });
    if let Some(refusal) = refusal {
        // Not rate-limited: a removed member must learn of its removal, and the back-off limits how often it asks.
        inner.report(super::NetEvent::Refused(refusal)).await;
    }
}

async fn call(inner: &Arc<Inner>, slot: &Arc<Slot>) -> Result<(), Failure> {
    let connection = reach(inner, slot).await?;
    let address = canonical(connection.remote_address());
    let (peer, door) = peer_of(&connection).ok_or(Failure::Superseded)?;
    if door != Door::Member {
        return Err(Failure::Superseded);
    }
    // The member that decides offers a connection only while it has no link, and no second one meanwhile.
    let turn = if inner.own < peer { Some(slot.turn.lock().await) } else { None };
    if slot.live_link().is_some() {
        connection.close(CloseCode::Duplicate.into(), &[]);
        return Err(Failure::Superseded);
    }
    let hello = inner.hello(slot);
    let (hello, control) = match timeout(HELLO_TIMEOUT, greet(&connection, &hello)).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => return Err(turned_away(&connection, address, error)),
        Err(_) => {
            connection.close(CloseCode::Timeout.into(), b"no hello");
            let reason = "the peer took the connection but did not answer within 3 s".into();
            return Err(Failure::Unreachable(DialError { address: Some(address), reason }));
        }
    };
    let _turn = match turn {
        Some(turn) => turn,
        None => slot.turn.lock().await,
    };
    if connection.close_reason().is_some() {
        return Err(Failure::Superseded);
    }
    inner.establish(slot, Agreed { connection, peer, dialled: true, hello, control }).await;
    Ok(())
}

fn turned_away(connection: &Connection, address: SocketAddr, error: FrameError) -> Failure {
    match (connection.close_reason(), error) {
        (Some(error), _) | (None, FrameError::Lost(error)) => match Ending::of(&error) {
            Ending { code: Some(code), .. } if CloseCode::is_benign(code) => Failure::Superseded,
            ending => Failure::Refused(address, ending),
        },
        (None, error) => {
            connection.close(CloseCode::Protocol.into(), &[]);
            Failure::Unreachable(DialError { address: Some(address), reason: error.to_string() })
        }
    }
}

/// Calls all addresses of a peer, one a little after the other, until one answers with the right key.
async fn reach(inner: &Arc<Inner>, slot: &Arc<Slot>) -> Result<Connection, Failure> {
    let failed = |address, reason: String| Failure::Unreachable(DialError { address, reason });
    let mut changed = slot.watch();
    let (peer, addresses) = {
        let state = slot.lock();
        (state.peer.clone(), state.addresses())
    };
    let (addresses, mut problems) = resolve(inner, addresses, &peer.names).await;
    let crypto = inner.tls.member_client(peer.fingerprints.clone()).map_err(|error| failed(None, error.to_string()))?;
    let client = inner.client(crypto);
    let mut last = None;
    let mut calls: FuturesUnordered<_> =
        (0u32..).zip(addresses).map(|(place, address)| call_address(inner, &client, place, address)).collect();
    while !calls.is_empty() {
        tokio::select! {
            biased;
            _ = changed.changed() => {
                let state = slot.lock();
                if state.retired || state.link.is_some() || state.peer != peer {
                    return Err(Failure::Superseded);
                }
            }
            Some((address, result)) = calls.next() => match result {
                Ok(connection) => return Ok(connection),
                Err(reason) => {
                    problems.push(format!("{address}: {reason}"));
                    last = Some(address);
                }
            }
        }
    }
    Err(failed(last, problems.join("; ")))
}

/// Adds the addresses of host names, asked anew every time; returns what went wrong beside them.
pub(crate) async fn resolve(
    inner: &Inner,
    mut addresses: Vec<SocketAddr>,
    names: &[String],
) -> (Vec<SocketAddr>, Vec<String>) {
    let mut problems = Vec::new();
    for name in names {
        match timeout(RESOLVE_TIMEOUT, (inner.resolver)(name.clone())).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(error)) => problems.push(format!("{name} cannot be looked up: {error}")),
            Err(_) => problems.push(format!("{name} cannot be looked up: the name server does not answer")),
        }
    }
    let mut unique: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique.truncate(ADDRESSES_MAX);
    (unique, problems)
}

/// Calls one address when it is its turn; the error is in words.
pub(crate) async fn call_address(
    inner: &Inner,
    client: &ClientConfig,
    place: u32,
    address: SocketAddr,
) -> (SocketAddr, Result<Connection, String>) {
    sleep(ADDRESS_STAGGER * place).await;
    let result = async {
        let connecting =
            inner.endpoint.connect_with(client.clone(), address, SERVER_NAME).map_err(|error| match error {
                ConnectError::InvalidRemoteAddress(_) => "this member listens on IPv4 only and cannot call it".into(),
                error => error.to_string(),
            })?;
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Err(_) | Ok(Err(ConnectionError::TimedOut)) => {
                Err("no answer within 2 s (does collectived run there, and does a firewall let UDP through?)".into())
            }
            Ok(Err(error)) => Err(Ending::of(&error).reason),
        }
    };
    (address, result.await)
}
