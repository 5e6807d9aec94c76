//! The wire format: every frame that one member sends another, versioned. docs/protocol.md describes it byte by byte.
//!
//! A frame is one CBOR item on a channel, which the stream or datagram tells by a byte: an array of the number that names
//! the message and of its body. Bodies are maps of numbered fields; unknown ones are skipped, so a later version may add
//! some.

use minicbor::{Decode, Encode};

use super::epoch::EpochMessage;
use super::identity::{ClusterId, SessionId};
use super::lease::{LeaseAck, LeaseRelease, LeaseRequest};
use super::roster::Version;
use super::swim::SwimFrame;
use super::sync::SyncMessage;

/// The oldest wire version this software speaks.
pub const WIRE_MIN: u16 = 1;
/// The newest wire version this software speaks.
pub const WIRE_MAX: u16 = 1;
/// Bytes in the longest frame.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes that fit a datagram on every path.
pub const DATAGRAM_BYTES_MAX: usize = 1_100;

/// What a frame is about; the one-byte tag in front of datagrams and streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// chitchat's own messages.
    Gossip = 0,
    /// Probes.
    Swim = 1,
    /// Leases.
    Lease = 2,
    /// Deciding rosters.
    Epoch = 3,
    /// Documents.
    Sync = 4,
    /// Requests that another member must serve.
    Request = 5,
}

impl Channel {
    /// Every channel, in the order of their tags.
    pub const ALL: [Self; 6] = [Self::Gossip, Self::Swim, Self::Lease, Self::Epoch, Self::Sync, Self::Request];

    /// Returns the channel of a tag byte, or nothing when the tag is unknown.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag)).copied()
    }
}

/// How a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// May be lost, doubled or overtaken; a stream of its own when it does not fit.
    Datagram,
    /// In order with the other frames of its channel, while the link lives.
    Stream,
}

/// The first thing each side of a new link says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The oldest wire version the sender speaks.
    #[n(0)]
    pub wire_min: u16,
    /// The newest wire version the sender speaks.
    #[n(1)]
    pub wire_max: u16,
    /// The sender's software version.
    #[n(2)]
    pub software: String,
    /// The collective it is a member of.
    #[n(3)]
    pub cluster: ClusterId,
    /// The run of its daemon.
    #[n(4)]
    pub session: SessionId,
    /// The roster it has in force.
    #[n(5)]
    pub version: Version,
}

impl Hello {
    /// Returns whether both sides speak a common wire version.
    pub fn speaks_ours(&self) -> bool {
        self.wire_min <= WIRE_MAX && self.wire_max >= WIRE_MIN
    }
}

/// One frame between members.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Message {
    /// A probe or its answer.
    #[n(0)]
    Swim(#[n(0)] SwimFrame),
    /// A holder asks a voter.
    #[n(1)]
    LeaseRequest(#[n(0)] LeaseRequest),
    /// A voter answers.
    #[n(2)]
    LeaseAck(#[n(0)] LeaseAck),
    /// A session ends cleanly.
    #[n(3)]
    LeaseRelease(#[n(0)] LeaseRelease),
    /// A step in deciding a roster: rare, and several times as large as the others.
    #[n(4)]
    Epoch(#[n(0)] Box<EpochMessage>),
    /// A step in comparing or sending documents.
    #[n(5)]
    Sync(#[n(0)] SyncMessage),
    /// Something another member must do.
    #[n(6)]
    Call(#[n(0)] Call),
    /// What came of it.
    #[n(7)]
    Return(#[n(0)] Return),
}

/// Something another member must do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Call {
    /// Chosen by the caller; comes back in the answer.
    #[n(0)]
    pub id: u64,
    /// What to do.
    #[n(1)]
    pub what: Errand,
}

/// What one member asks another to do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Errand {
    /// Answer, so that the round trip can be timed.
    #[n(0)]
    Echo,
    /// Run an action on nodes that the asked member acts for.
    #[n(1)]
    Run {
        /// The nodes.
        #[n(0)]
        nodes: Vec<super::name::NodeName>,
        /// The action.
        #[n(1)]
        action: String,
        /// Its arguments.
        #[n(2)]
        arguments: Vec<String>,
        /// How long the caller waits, in milliseconds.
        #[n(3)]
        within_ms: u64,
    },
}

/// What came of a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Return {
    /// The id of the call.
    #[n(0)]
    pub id: u64,
    /// For [`Errand::Run`]: a list of `ActionResult` as JSON, as the administrator will see it.
    #[n(1)]
    pub results: Option<String>,
}

/// A frame that is not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// More than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not a message of this version.
    #[error("a frame cannot be read: {0}")]
    Malformed(String),
    /// A message on a channel that does not carry such.
    #[error("a message came on the wrong channel")]
    WrongChannel,
}

impl Message {
    /// Writes the message as one frame.
    pub fn encode(&self) -> Vec<u8> {
        // Room for most frames, so that encoding one does not move it about.
        let mut bytes = Vec::with_capacity(160);
        self.encode_to(&mut bytes);
        bytes
    }

    /// Writes the message as one frame behind those bytes.
    pub fn encode_to(&self, bytes: &mut Vec<u8>) {
        let _ = minicbor::encode(self, bytes); // Encoding into a Vec cannot fail.
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// [`MessageError`] when the frame is too long, not a message, or not one of this channel. Nothing was changed; the
    /// caller drops it, as it may be a message of a later version.
    pub fn decode(channel: Channel, bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let message: Self = minicbor::decode(bytes).map_err(|error| MessageError::Malformed(error.to_string()))?;
        if message.channel() == channel { Ok(message) } else { Err(MessageError::WrongChannel) }
    }

    /// Returns the channel that carries such messages.
    pub const fn channel(&self) -> Channel {
        match self {
            Self::Swim(_) => Channel::Swim,
            Self::LeaseRequest(_) | Self::LeaseAck(_) | Self::LeaseRelease(_) => Channel::Lease,
            Self::Epoch(_) => Channel::Epoch,
            Self::Sync(_) => Channel::Sync,
            Self::Call(_) | Self::Return(_) => Channel::Request,
        }
    }

    /// Returns how such messages travel.
    pub const fn delivery(&self) -> Delivery {
        match self {
            Self::Swim(_) | Self::LeaseRequest(_) | Self::LeaseAck(_) | Self::LeaseRelease(_) => Delivery::Datagram,
            Self::Epoch(_) | Self::Sync(_) | Self::Call(_) | Self::Return(_) => Delivery::Stream,
        }
    }
}
