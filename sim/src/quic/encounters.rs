//! What only this level can show: handshakes, idle links, pins and tokens, between two networks or whole daemons.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use collective::net::{Delivery, Identity, Net, NetEvent, Peer};
use collective::proto::invite::Token;
use collective::proto::message::Channel;
use collective::proto::name::MemberName;
use collective::proto::request::{ErrorCode, Request, Response};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::drive::{Director, WITHIN};
use super::machine::SimMachine;
use super::process::Process;
use super::wire;
use crate::fault::{Fault, Kind};
use crate::site::name;

type Play = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// One encounter.
pub(crate) struct Encounter {
    pub(crate) name: &'static str,
    /// One sentence.
    pub(crate) about: &'static str,
    pub(super) members: usize,
    pub(super) play: fn(Director) -> Play,
}

/// Every encounter.
pub(crate) const ALL: &[Encounter] = &[
    Encounter {
        name: "handshake-under-loss",
        about: "Two networks link up though three of ten datagrams are lost, and every frame of a stream arrives in order.",
        members: 2,
        play: |director| Box::pin(handshake_under_loss(director)),
    },
    Encounter {
        name: "idle-timeout",
        about: "Two networks hear nothing of each other: each gives the link up after 15 s, and it is back soon after.",
        members: 2,
        play: |director| Box::pin(idle_timeout(director)),
    },
    Encounter {
        name: "restarted-peer",
        about: "A network is killed and starts again: the other is told that the link is forgotten, and need not wait.",
        members: 2,
        play: |director| Box::pin(restarted_peer(director)),
    },
    Encounter {
        name: "wrong-pin",
        about: "Who answers at a member's address with another key is not spoken to, whichever side calls.",
        members: 2,
        play: |director| Box::pin(wrong_pin(director)),
    },
    Encounter {
        name: "small-mtu",
        about: "A path that takes no more than 1,250 bytes, found out half way: the link stays, and large frames arrive.",
        members: 2,
        play: |director| Box::pin(small_mtu(director)),
    },
    Encounter {
        name: "deleted-is-told",
        about: "A member is deleted while it is cut off: when it calls again it is turned away with the code for that.",
        members: 3,
        play: |director| Box::pin(deleted_is_told(director)),
    },
    Encounter {
        name: "bad-token",
        about: "A stranger with a forged token, one that was used before, or one for another host is not let in.",
        members: 4,
        play: |director| Box::pin(bad_token(director)),
    },
];

/// Returns the encounter of that name.
pub(crate) fn named(name: &str) -> Option<&'static Encounter> {
    ALL.iter().find(|encounter| encounter.name == name)
}

/// One shipped network without a daemon.
struct Site {
    net: Net,
    identity: Identity,
    events: mpsc::Receiver<NetEvent>,
    process: Process,
}

impl Site {
    fn start(director: &Director, member: usize, key: u8) -> Result<Self, String> {
        let identity = Identity::generate(&[key; 32]).map_err(|error| error.to_string())?;
        let process = Process::default();
        let machine = SimMachine { stage: director.stage.clone(), member, process: process.clone() };
        let config = machine.net_config(identity.clone(), std::sync::Arc::new(move || vec![key; 40]));
        let (tell, events) = mpsc::channel(4_096);
        let net = Net::start(config, tell).map_err(|error| error.to_string())?;
        Ok(Self { net, identity, events, process })
    }

    /// Keeps a link to the network at that member's address, if it has that key.
    fn meet(&self, member: usize, identity: &Identity) {
        let peer = Peer {
            fingerprints: vec![identity.fingerprint()],
            addresses: vec![wire::address(member)],
            names: Vec::new(),
        };
        self.net.set_peers(vec![peer], BTreeMap::new());
    }

    /// Waits for the first event that fits, passing over others.
    async fn expect<T>(
        &mut self,
        what: &str,
        within: Duration,
        fits: impl Fn(&NetEvent) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + within;
        while let Ok(Some(event)) = timeout_at(deadline, self.events.recv()).await {
            if let Some(found) = fits(&event) {
                return Ok(found);
            }
        }
        Err(format!("not within {within:?}: {what}"))
    }

    async fn link_up(&mut self, within_s: u64) -> Result<(), String> {
        let up = |event: &NetEvent| matches!(event, NetEvent::LinkUp { .. }).then_some(());
        self.expect("a link", Duration::from_secs(within_s), up).await
    }

    async fn link_down(&mut self, within_s: u64) -> Result<String, String> {
        let down = |event: &NetEvent| match event {
            NetEvent::LinkDown { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.expect("the end of a link", Duration::from_secs(within_s), down).await
    }
}

/// Starts two networks that know each other.
fn pair(director: &Director) -> Result<(Site, Site), String> {
    let (a, b) = (Site::start(director, 0, 1)?, Site::start(director, 1, 2)?);
    a.meet(1, &b.identity);
    b.meet(0, &a.identity);
    Ok((a, b))
}

fn expect(is_so: bool, what: impl Into<String>) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what.into()) }
}

async fn handshake_under_loss(director: Director) -> Result<(), String> {
    director.schedule(vec![Fault::forever(0, Kind::Loss(300)), Fault::forever(0, Kind::Jitter { most_ms: 40 })]);
    sleep(Duration::from_millis(1)).await;
    let (mut a, mut b) = pair(&director)?;
    a.link_up(30).await?;
    b.link_up(30).await?;
    for number in 0..200_u32 {
        let frame = number.to_be_bytes().repeat(200);
        a.net.send(b.identity.fingerprint(), Channel::Sync, Delivery::Stream, frame.into());
    }
    for number in 0..200_u32 {
        let frame = |event: &NetEvent| match event {
            NetEvent::Frame { bytes, .. } => Some(bytes.first_chunk() == Some(&number.to_be_bytes())),
            _ => None,
        };
        let in_order = b.expect("a frame", Duration::from_secs(20), frame).await?;
        expect(in_order, format!("frame {number} is out of order"))?;
    }
    let lost = director.stage.lock().coverage.get("datagram lost").copied().unwrap_or(0);
    expect(lost > 10, "nothing was lost")
}

async fn idle_timeout(director: Director) -> Result<(), String> {
    let (mut a, mut b) = pair(&director)?;
    a.link_up(5).await?;
    b.link_up(5).await?;
    director.schedule(vec![Fault::new(0, 20_000, Kind::Link(0, 1))]);
    sleep(Duration::from_secs(11)).await;
    expect(a.net.links().len() == 1 && b.net.links().len() == 1, "a link ended before its time")?;
    for reason in [a.link_down(7).await?, b.link_down(7).await?] {
        expect(reason.contains("15 s"), format!("the link ended for another reason: {reason}"))?;
    }
    a.link_up(12).await?;
    b.link_up(2).await
}

async fn restarted_peer(director: Director) -> Result<(), String> {
    let (mut a, mut b) = pair(&director)?;
    a.link_up(5).await?;
    b.link_up(5).await?;
    b.process.kill();
    director.stage.lock().wire.close(1);
    sleep(Duration::from_millis(500)).await;
    let mut again = Site::start(&director, 1, 2)?;
    // It knows whom to let in, but not where to call.
    let peer = Peer { fingerprints: vec![a.identity.fingerprint()], ..Peer::default() };
    again.net.set_peers(vec![peer], BTreeMap::new());
    let reason = a.link_down(4).await?;
    expect(reason.contains("restarted"), format!("the link ended for another reason: {reason}"))?;
    a.link_up(4).await?;
    again.link_up(4).await
}

async fn wrong_pin(director: Director) -> Result<(), String> {
    let (mut a, mut b) = (Site::start(&director, 0, 1)?, Site::start(&director, 1, 2)?);
    let other = Identity::generate(&[3; 32]).map_err(|error| error.to_string())?;
    // The one who calls expects another key.
    a.meet(1, &other);
    b.meet(0, &a.identity);
    expect(a.link_up(20).await.is_err(), "it linked to a key that it does not expect")?;
    let told: Vec<_> = a.net.unlinked().into_iter().filter_map(|peer| peer.error).map(|error| error.reason).collect();
    expect(!told.is_empty(), "nobody is told why there is no link")?;
    let refused = |event: &NetEvent| match event {
        NetEvent::Refused(refusal) => Some(refusal.clone()),
        _ => None,
    };
    b.expect("a refusal", Duration::from_secs(1), refused).await.map(drop)
}

async fn small_mtu(director: Director) -> Result<(), String> {
    let (mut a, mut b) = pair(&director)?;
    a.link_up(5).await?;
    b.link_up(5).await?;
    // Long enough for both to have found out that the path takes more.
    sleep(Duration::from_secs(5)).await;
    director.schedule(vec![Fault::forever(0, Kind::Mtu { bytes: 1_250 })]);
    let large = vec![7; 300_000];
    a.net.send(b.identity.fingerprint(), Channel::Sync, Delivery::Stream, large.into());
    let frame = |event: &NetEvent| match event {
        NetEvent::Frame { bytes, .. } => Some(bytes.len()),
        NetEvent::LinkDown { .. } => Some(0),
        _ => None,
    };
    let length = b.expect("the frame", Duration::from_secs(14), frame).await?;
    expect(length == 300_000, format!("a frame of {length} bytes came"))?;
    let dropped = director.stage.lock().coverage.get("datagram too large").copied().unwrap_or(0);
    expect(dropped > 0, "no datagram was too large")
}

async fn deleted_is_told(director: Director) -> Result<(), String> {
    expect(director.assemble(3).await, "no collective")?;
    let member = MemberName::new(&name(2)).map_err(|error| error.to_string())?;
    director.schedule(vec![Fault::new(0, 8_000, Kind::Isolate(2))]);
    sleep(Duration::from_secs(3)).await;
    let delete = Request::Delete { member, force: true, dry_run: false };
    let answer = director.ask(0, delete, WITHIN * 4).await;
    expect(matches!(answer, Some(Response::Done(_))), format!("not deleted: {answer:?}"))?;
    expect(!director.stage.lock().coverage.contains_key("expelled"), "it was told through a cut")?;
    let told = director.wait(20, |state| state.coverage.get("expelled").is_some_and(|count| *count > 0)).await;
    expect(told, "the deleted member was not told")?;
    let state = director.stage.lock();
    expect(!state.is_quorate(2), "the deleted member still holds quorum")?;
    let left = state.sites[0].seen.as_ref().map_or(0, |seen| seen.roster.voters.len());
    expect(left == 2 && state.is_quorate(0) && state.is_quorate(1), "the others are not a collective of two")
}

async fn bad_token(director: Director) -> Result<(), String> {
    expect(director.assemble(2).await, "no collective")?;
    let good = director.invite(2, 0).await?;
    let token = Token::parse(&good).map_err(|error| error.to_string())?;
    let roster = director.stage.lock().sites[0].seen.as_ref().map(|seen| seen.roster.version);
    director.boot(2);
    director.boot(3);
    sleep(Duration::from_secs(1)).await;
    // The right invitation, but another secret.
    let forged = Token { seed: collective::proto::invite::Seed::new([9; 32]), ..token.clone() };
    refused(&director, forged.reveal().to_string(), None, ErrorCode::ProofFailed).await?;
    // The right token, taken to a member that did not make it: nothing is sent there.
    let elsewhere = Some(wire::address(1).to_string());
    refused(&director, good.clone(), elsewhere, ErrorCode::ProofFailed).await?;
    let after = director.stage.lock().sites[0].seen.as_ref().map(|seen| seen.roster.version);
    expect(roster == after, "the roster changed")?;
    director.join(2, good.clone(), None).await?;
    // It lets one in, and no second one.
    let again = director.join(3, good, None).await;
    expect(again.is_err(), "a token let two in")
}

/// Has the third member try to join, which must be refused for that reason.
async fn refused(director: &Director, token: String, server: Option<String>, why: ErrorCode) -> Result<(), String> {
    let token = collective::proto::request::TokenText(token);
    let join = Request::Join { server, token, replace: false, wait_ms: 20_000 };
    match director.ask(2, join, WITHIN * 5).await {
        Some(Response::Error(refused)) if refused.error.code == why => Ok(()),
        other => Err(format!("not refused for {why:?}: {other:?}")),
    }
}
