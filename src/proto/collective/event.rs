//! What goes into the core and what comes out of it: events, effects, and what a member starts with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::proto::document::{Actor, Documents};
use crate::proto::epoch::AcceptorState;
use crate::proto::facts::{Facts, PeerRecord};
use crate::proto::identity::{Fingerprint, MemberId, SessionId};
use crate::proto::invite::{Invite, JoinAnswer, JoinHello, JoinProof, Seed};
use crate::proto::lease::Stamp;
use crate::proto::message::{Delivery, Hello, Message};
use crate::proto::name::NodeName;
use crate::proto::record::Record;
use crate::proto::request::{ActionResult, LoggedEvent, Request, Response};
use crate::proto::roster::Roster;
use crate::proto::time::Instant;

/// Names one request of an administrator, chosen by the shell.
pub type RequestId = u64;
/// Names one save, chosen by the core.
pub type Ticket = u64;
/// Names one stranger's join stream, chosen by the shell.
pub type JoinId = u64;
/// Names one run of an action, chosen by the core.
pub type JobId = u64;

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The time an earlier [`Effect::WakeAt`] asked for has come. A stale one does no harm.
    Wake,
    /// A link to the member with that key is up, and it said hello.
    LinkUp {
        /// Its key.
        peer: Fingerprint,
        /// Where it is.
        address: SocketAddr,
        /// What it said.
        hello: Hello,
    },
    /// That link is gone.
    LinkDown {
        /// Its key.
        peer: Fingerprint,
        /// Why, in words.
        reason: String,
    },
    /// A member told us that we were taken off the roster (R8).
    Expelled {
        /// By whom and when, in words.
        notice: String,
    },
    /// A frame came from the member with that key.
    Received {
        /// Its key.
        peer: Fingerprint,
        /// The frame.
        message: Message,
    },
    /// Gossip brought a member's facts.
    Gossip {
        /// Its key.
        peer: Fingerprint,
        /// What it says of itself.
        facts: Facts,
    },
    /// Saves are durable.
    Saved {
        /// Which, in the order they were asked for.
        tickets: Vec<Ticket>,
    },
    /// A save was refused, by a full disk for one; nothing of it was stored.
    NotSaved {
        /// Which.
        ticket: Ticket,
        /// Why, in words.
        reason: String,
    },
    /// An administrator asks.
    Request {
        /// To answer by.
        id: RequestId,
        /// What.
        request: Request,
        /// How long the asker waits, in milliseconds.
        within_ms: u64,
        /// Fresh random bytes, for an invitation's secret.
        entropy: Box<[u8; 40]>,
    },
    /// A stranger opened a join stream.
    JoinHello {
        /// To answer by.
        id: JoinId,
        /// What it said.
        hello: JoinHello,
    },
    /// The stranger proved that it was invited, or tried to.
    JoinProof {
        /// To answer by.
        id: JoinId,
        /// What it said.
        proof: JoinProof,
        /// The key it presented.
        peer: Fingerprint,
        /// What binds the proof to this very connection.
        exporter: [u8; 32],
        /// Where it is.
        address: SocketAddr,
    },
    /// An action that ran here has ended.
    JobDone {
        /// Which.
        id: JobId,
        /// What came of it.
        result: ActionResult,
    },
    /// The shell has switched to this key of ours, after [`Effect::SwitchIdentity`] or by itself.
    IdentityInUse {
        /// The key.
        fingerprint: Fingerprint,
    },
    /// A new key of ours is stored and shall be accepted beside the old one.
    Rotate {
        /// The request to answer by.
        id: RequestId,
        /// The key.
        fingerprint: Fingerprint,
    },
    /// The daemon shall end: hand over what this member holds and say farewell.
    Stop,
}

impl Event {
    /// Returns what happened in one word, for logs.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::LinkUp { .. } => "link-up",
            Self::LinkDown { .. } => "link-down",
            Self::Expelled { .. } => "expelled",
            Self::Received { message: Message::Sync(_), .. } => "documents",
            Self::Received { .. } => "message",
            Self::Gossip { .. } => "gossip",
            Self::Saved { .. } => "saved",
            Self::NotSaved { .. } => "not-saved",
            Self::Request { request, .. } => request.kind(),
            Self::JoinHello { .. } | Self::JoinProof { .. } => "join",
            Self::JobDone { .. } => "job-done",
            Self::IdentityInUse { .. } | Self::Rotate { .. } => "rotate",
            Self::Stop => "stop",
        }
    }
}

/// What the shell must do. Performed in the order given.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// Make durable, then report [`Event::Saved`]. Saves complete in the order they were asked for.
    Save {
        /// To report by.
        ticket: Ticket,
        /// What; stored together or not at all.
        records: Vec<Record>,
    },
    /// Send a frame, if there is a link.
    Send {
        /// To whom; any of these keys.
        to: Fingerprint,
        /// The frame.
        message: Message,
        /// How it travels.
        delivery: Delivery,
    },
    /// Keep links to these members and to nobody else, at once.
    Peers {
        /// The other members.
        peers: Vec<Peer>,
        /// Keys of members that were removed, with what to tell them.
        removed: BTreeMap<Fingerprint, String>,
    },
    /// Call [`Collective::handle`](super::Collective::handle) with [`Event::Wake`] at that time; replaces an earlier wish.
    WakeAt(Instant),
    /// Tell these facts by gossip.
    Publish(Facts),
    /// Evidence of life: dial that member now.
    DialNow(Fingerprint),
    /// Answer an administrator.
    Reply {
        /// Which request.
        id: RequestId,
        /// The answer.
        response: Response,
    },
    /// Answer a stranger on its join stream; anything but a challenge ends it.
    AnswerJoin {
        /// Which stream.
        id: JoinId,
        /// The answer; a welcome is several times as large as any other effect.
        answer: Box<JoinAnswer>,
    },
    /// Run an action for a node that this member acts for.
    Run {
        /// To report by.
        id: JobId,
        /// What.
        job: Job,
        /// Kill it before this; moved on by [`Effect::Extend`] while the lease is renewed.
        until: Instant,
    },
    /// A running action may go on until then.
    Extend {
        /// Which.
        id: JobId,
        /// Until when.
        until: Instant,
    },
    /// This member acts for the node no longer: stop everything that runs for it.
    Cease {
        /// The node.
        node: NodeName,
    },
    /// Something happened that people, logs and hooks want to know.
    Happened {
        /// What.
        event: LoggedEvent,
        /// For `manager-changed` on the member that acts: hooks must end before this.
        until: Option<Instant>,
    },
    /// Present this key of ours from now on; report [`Event::IdentityInUse`].
    SwitchIdentity {
        /// The key.
        fingerprint: Fingerprint,
    },
    /// A document broke in memory: end this life and start anew from the store.
    Rebirth {
        /// Why, in words.
        reason: String,
    },
    /// Everything is said; end the process once it is sent.
    Halt,
}

/// One action to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// For which node.
    pub node: NodeName,
    /// Which action.
    pub action: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The fencing token, `generation.epoch.term`.
    pub token: String,
    /// The node's attributes in effect.
    pub attributes: BTreeMap<String, String>,
}

/// Another member as the network sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The keys it may present.
    pub fingerprints: Vec<Fingerprint>,
    /// Where it was, the best address first.
    pub addresses: Vec<SocketAddr>,
}

/// What a member starts with: what its store kept, and fresh randomness.
#[derive(Debug)]
pub struct Birth {
    /// This member's enrolment.
    pub me: MemberId,
    /// Drawn for this run.
    pub session: SessionId,
    /// This run's stamp; its incarnation is raised and durable already.
    pub stamp: Stamp,
    /// The key in use.
    pub fingerprint: Fingerprint,
    /// The roster in force.
    pub roster: Roster,
    /// What was promised and accepted for the next epoch.
    pub acceptor: Option<AcceptorState>,
    /// Invitations made here.
    pub invites: Vec<Invite>,
    /// What is remembered of other members.
    pub peers: BTreeMap<MemberId, PeerRecord>,
    /// The documents.
    pub documents: Documents,
    /// Why this member is no longer on the roster, when it was told so.
    pub removed: Option<String>,
    /// Members whose documents broke one of ours in an earlier life of this process; they are not listened to.
    pub quarantined: BTreeSet<MemberId>,
    /// Where this member can be reached.
    pub addresses: Vec<SocketAddr>,
    /// The software version.
    pub software: String,
    /// For shuffles and jitter.
    pub seed: [u8; 32],
    /// A secret that is the same at every start, from which answers about unknown invitations are made.
    pub decoy: Seed,
    /// For this run's document changes.
    pub actor: Actor,
    /// What the configuration says of voters.
    pub intent: super::Intent,
}
