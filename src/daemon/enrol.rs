//! Joining, both sides of the stream: frames in and out; every decision is the core's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::driver::News;
use crate::config::QUIC_PORT;
use crate::net::{Identity, JoinClient, JoinError, JoinStream, Net};
use crate::proto::collective::{Collective, Event, JoinId};
use crate::proto::facts::PeerRecord;
use crate::proto::identity::MemberId;
use crate::proto::invite::{JoinAnswer, JoinHello, JoinProof, Token, Transcript, prove};
use crate::proto::message::{WIRE_MAX, WIRE_MIN};
use crate::proto::request::{ErrorCode, Refusal};
use crate::proto::roster::Roster;
use crate::proto::time::WallTime;

/// How long the inviting member may take for its first answer.
const CHALLENGE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the members may take to decide the epoch that lets this one in.
const DECISION_PATIENCE: Duration = Duration::from_secs(20);

/// Serves a stranger's join stream.
pub(super) async fn serve(mut stream: JoinStream, id: JoinId, tell: mpsc::UnboundedSender<News>) {
    if let Err(error) = converse(&mut stream, id, &tell).await {
        tracing::info!(from = %stream.address(), %error, "a join came to nothing");
    }
    stream.finish().await;
}

async fn converse(stream: &mut JoinStream, id: JoinId, tell: &mpsc::UnboundedSender<News>) -> Result<(), JoinError> {
    let Ok(hello) = minicbor::decode::<JoinHello>(&stream.recv().await?) else { return Ok(()) };
    let answer = ask(id, Event::JoinHello { id, hello }, tell).await;
    let Some(answer) = answer else { return Ok(()) };
    stream.send(&encode(&answer)).await?;
    if !matches!(answer, JoinAnswer::Challenge { .. }) {
        return Ok(());
    }
    let Ok(proof) = minicbor::decode::<JoinProof>(&stream.recv().await?) else { return Ok(()) };
    stream.allow_decision();
    let event =
        Event::JoinProof { id, proof, peer: stream.peer(), exporter: stream.exporter(), address: stream.address() };
    if let Some(answer) = ask(id, event, tell).await {
        stream.send(&encode(&answer)).await?;
    }
    Ok(())
}

/// Hands an event to the loop and waits for the core's answer; none when the daemon is about to end.
async fn ask(id: JoinId, event: Event, tell: &mpsc::UnboundedSender<News>) -> Option<JoinAnswer> {
    let (reply, answer) = oneshot::channel();
    tell.send(News::JoinOpen(id, reply)).ok()?;
    tell.send(News::Join(event)).ok()?;
    answer.await.ok()
}

fn encode(answer: &JoinAnswer) -> Vec<u8> {
    minicbor::to_vec(answer).unwrap_or_default() // Encoding into a Vec cannot fail.
}

/// A checked wish to join.
#[derive(Debug)]
pub(super) struct Plan {
    token: Token,
    places: Vec<String>,
    addresses: Vec<SocketAddr>,
}

/// What this member was given when it was let in.
#[derive(Debug)]
pub(super) struct Enrolled {
    pub(super) identity: Identity,
    pub(super) me: MemberId,
    pub(super) roster: Roster,
    pub(super) peers: BTreeMap<MemberId, PeerRecord>,
}

/// Checks everything that can be checked without the network.
///
/// # Errors
/// A refusal that says what to do; nothing was changed.
pub(super) fn prepare(
    core: &Collective,
    server: Option<String>,
    token: &str,
    replace: bool,
    wall: WallTime,
    enrolling: bool,
) -> Result<Plan, Refusal> {
    if enrolling {
        let message = "this member is joining a collective right now";
        return Err(Refusal::new(ErrorCode::TryAgain, message, "collective status"));
    }
    let token = Token::parse(token).map_err(|error| {
        Refusal::new(ErrorCode::BadData, error.to_string(), "make a new one on a member: collective invite NAME")
    })?;
    if token.is_expired(wall) {
        let message = "the invitation has expired";
        return Err(Refusal::new(
            ErrorCode::InviteSpent,
            message,
            format!("on a member: collective invite {}", token.name),
        ));
    }
    if core.roster().len() > 1 && !core.is_removed() {
        let message = "this member is in a collective already";
        return Err(Refusal::new(ErrorCode::Exists, message, "to change over: collective leave, then join"));
    }
    if !replace
        && !core.is_removed()
        && (core.documents().nodes().next().is_some() || core.documents().groups().next().is_some())
    {
        let message = "this member has nodes or groups of its own, which joining would replace";
        let hint = "add --replace; what was there is kept beside the new data in the state directory";
        return Err(Refusal::new(ErrorCode::NeedsForce, message, hint));
    }
    let places = match server {
        Some(server) => vec![with_port(&server)],
        None => token.addresses.iter().map(ToString::to_string).collect(),
    };
    if places.is_empty() {
        let message = "the token does not say where the inviting member is";
        return Err(Refusal::new(ErrorCode::Usage, message, "collective join SERVER -i TOKEN"));
    }
    Ok(Plan { token, places, addresses: core.addresses().to_vec() })
}

impl Plan {
    /// Goes to the inviting member and asks to be let in under that key.
    ///
    /// # Errors
    /// A refusal that says what to do; nothing was changed here, and only an indeterminate one may have changed
    /// anything there.
    pub(super) async fn carry_out(self, net: &Net, identity: Identity) -> Result<Enrolled, Refusal> {
        let mut client = net
            .join(&self.places, self.token.inviter, &identity)
            .await
            .map_err(|error| refuse(&error, &self.places))?;
        self.converse(&mut client, identity).await
    }

    async fn converse(&self, client: &mut JoinClient, identity: Identity) -> Result<Enrolled, Refusal> {
        let refused = |error: JoinError| refuse(&error, &self.places);
        let hello =
            JoinHello { wire_min: WIRE_MIN, wire_max: WIRE_MAX, id: self.token.id, name: self.token.name.clone() };
        client.send(&minicbor::to_vec(&hello).unwrap_or_default()).await.map_err(refused)?;
        let (cluster, role) = match read(&client.recv(CHALLENGE_PATIENCE).await.map_err(refused)?)? {
            JoinAnswer::Challenge { cluster, role, .. } => (cluster, role),
            JoinAnswer::Refused { code, message } => return Err(turned_away(code, message)),
            JoinAnswer::Welcome { .. } => return Err(nonsense()),
        };
        let transcript = Transcript {
            cluster,
            invite: self.token.id,
            name: self.token.name.clone(),
            role,
            exporter: client.exporter(),
            server: client.server(),
            joiner: identity.fingerprint(),
        };
        let proof = JoinProof {
            proof: prove(&self.token.seed, &transcript),
            addresses: self.addresses.clone(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
        };
        client.send(&minicbor::to_vec(&proof).unwrap_or_default()).await.map_err(refused)?;
        match read(&client.recv(DECISION_PATIENCE).await.map_err(refused)?)? {
            JoinAnswer::Welcome { roster, member, addresses } => {
                let known =
                    roster.member(member).is_some_and(|entry| entry.fingerprints.contains(&identity.fingerprint()));
                if !known || roster.cluster != cluster || roster.check().is_err() {
                    return Err(nonsense());
                }
                let peers = addresses
                    .into_iter()
                    .map(|(id, addresses)| {
                        let addresses = addresses.iter().map(ToString::to_string).collect();
                        (id, PeerRecord { addresses, ..PeerRecord::default() })
                    })
                    .collect();
                Ok(Enrolled { identity, me: member, roster, peers })
            }
            JoinAnswer::Refused { code, message } => Err(turned_away(code, message)),
            JoinAnswer::Challenge { .. } => Err(nonsense()),
        }
    }
}

fn read(frame: &[u8]) -> Result<JoinAnswer, Refusal> {
    minicbor::decode(frame).map_err(|_| nonsense())
}

fn nonsense() -> Refusal {
    let message = "the inviting member answered something that this version does not understand";
    Refusal::new(ErrorCode::VersionMismatch, message, "bring both to the same version")
}

/// Puts the inviting member's refusal into our own words for codes we know.
fn turned_away(code: u8, message: String) -> Refusal {
    let (code, hint) = match code {
        75 => (ErrorCode::TryAgain, "try again in a moment with the same token"),
        76 => (ErrorCode::VersionMismatch, "collective --version on both"),
        104 => (ErrorCode::ProofFailed, "make a new one on a member: collective invite NAME"),
        106 => (ErrorCode::NoQuorum, "look with `collective status` on the inviting member"),
        108 => (ErrorCode::Exists, "collective members, on a member"),
        109 => (ErrorCode::Indeterminate, "try again with the same token"),
        110 => (ErrorCode::InviteSpent, "make a new one on a member: collective invite NAME"),
        _ => (ErrorCode::Failure, "look at the log of the inviting member"),
    };
    Refusal::new(code, message, hint)
}

fn refuse(error: &JoinError, places: &[String]) -> Refusal {
    let (code, hint) = match error {
        JoinError::Unreachable(_) => (ErrorCode::Failure, "is its daemon up, and UDP port 7461 open?"),
        JoinError::OtherKey(_) => (
            ErrorCode::ProofFailed,
            "join the member that made the token, or make one on this one: collective invite NAME",
        ),
        JoinError::Timeout => (ErrorCode::TimedOut, "try again with the same token"),
        _ => (ErrorCode::Failure, "look at the log of the inviting member"),
    };
    let message = match error {
        JoinError::OtherKey(why) => format!("the token was made on another member: {why}"),
        JoinError::Unreachable(why) => format!("{} cannot be reached: {why}", places.join(", ")),
        other => format!("joining by {} failed: {other}", places.join(", ")),
    };
    Refusal::new(code, message, hint)
}

/// Adds the port of QUIC to a host without one.
fn with_port(server: &str) -> String {
    let has_port = server.parse::<SocketAddr>().is_ok()
        || (server.matches(':').count() == 1
            && server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()));
    match server.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{QUIC_PORT}"),
        Err(_) if has_port => server.to_owned(),
        Err(_) => format!("{server}:{QUIC_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_port_gets_the_usual_one() {
        assert_eq!(with_port("mgt1"), "mgt1:7461");
        assert_eq!(with_port("mgt1:99"), "mgt1:99");
        assert_eq!(with_port("10.0.0.1"), "10.0.0.1:7461");
        assert_eq!(with_port("10.0.0.1:99"), "10.0.0.1:99");
        assert_eq!(with_port("fd00::1"), "[fd00::1]:7461");
        assert_eq!(with_port("[fd00::1]:99"), "[fd00::1]:99");
    }
}
