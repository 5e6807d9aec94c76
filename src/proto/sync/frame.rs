//! Frames: the messages of a sync stream, and how changes are packed into them within fixed bounds.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use minicbor::{Decode, Encode};

use crate::proto::document::{CHANGE_BYTES_MAX, ChangeId, Generation, Missing, NewChange, ShardId, Vector};

/// Bytes in the largest frame.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Bytes of changes in the largest frame; the rest is for what stands around them.
const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;
/// Bytes that a body may inflate to.
const INFLATED_BYTES_MAX: usize = BODY_BYTES_MAX;
/// Bytes of changes that are sent in one frame, unless a single one has more: a member takes them in within
/// milliseconds, and sees to its leases before the next.
pub(super) const SENT_BYTES: usize = 128 * 1024;
/// Bodies shorter than this are not worth deflating.
const DEFLATE_BYTES_MIN: usize = 512;
/// Entries in one message that says or asks what is durable; each takes some 30 bytes.
const ENTRIES_MAX: usize = 4_000;

// A single change always fits, so every pull can go on.
const _: () = assert!(CHANGE_BYTES_MAX + 4 <= BODY_BYTES_MAX && SENT_BYTES <= BODY_BYTES_MAX);

/// A frame that is not one. Nothing was changed; the link should be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// It is longer than [`FRAME_BYTES_MAX`].
    #[error("a sync frame has {0} bytes; 262144 are the most")]
    TooLong(usize),
    /// It is no sync message.
    #[error("a sync frame cannot be read: {0}")]
    Decode(String),
    /// It inflates to too much or not at all.
    #[error("a sync frame does not inflate within bounds")]
    Inflate,
    /// The lengths of its changes do not add up.
    #[error("a sync frame is cut within a change")]
    Cut,
    /// It does not have one digest for each document.
    #[error("a sync frame does not have a digest for each document")]
    Digests,
    /// It has no changes, yet says that there are more.
    #[error("a sync frame is empty but promises more")]
    NoProgress,
}

/// What members tell each other on a sync stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum SyncMessage {
    /// Asks for digests.
    #[n(0)]
    Compare {
        /// Comes back in every answer.
        #[n(0)]
        round: u64,
        /// The asker's digest of its whole database.
        #[cbor(n(1), with = "minicbor::bytes")]
        root: [u8; 8],
    },
    /// Answers [`SyncMessage::Compare`].
    #[n(1)]
    Digests {
        /// The round of the question.
        #[n(0)]
        round: u64,
        /// The answerer's digest of its whole database.
        #[cbor(n(1), with = "minicbor::bytes")]
        root: [u8; 8],
        /// Eight bytes for each document, or nothing when the root is the asker's.
        #[cbor(n(2), with = "minicbor::bytes")]
        digests: Vec<u8>,
    },
    /// Asks for the changes of a document that the asker lacks.
    #[n(2)]
    Pull {
        /// Comes back in every answer.
        #[n(0)]
        round: u64,
        /// The document.
        #[n(1)]
        shard: ShardId,
        /// Its generation at the asker.
        #[n(2)]
        generation: Generation,
        /// What the asker has, durable or not.
        #[n(3)]
        vector: Vector,
    },
    /// Answers a pull, or tells of new changes.
    #[n(3)]
    Changes(#[n(0)] Changes),
    /// Says what is durable at the sender: of each entry's actor, every change up to the entry's.
    #[n(4)]
    Durable {
        /// The last durable change of each actor.
        #[n(0)]
        entries: Vec<ChangeId>,
    },
    /// Asks what is durable at the receiver of these entries' actors. [`SyncMessage::Durable`] answers it.
    #[n(5)]
    Ask {
        /// The last change of each actor that the asker wants to be sure of.
        #[n(0)]
        entries: Vec<ChangeId>,
    },
}

impl SyncMessage {
    /// Returns the message as the bytes of a frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap_or_default() // Encoding into a Vec cannot fail.
    }

    /// Reads the bytes of a frame.
    ///
    /// # Errors
    /// [`SyncError`] when they are too many or no message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SyncError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(SyncError::TooLong(bytes.len()));
        }
        let mut decoder = minicbor::Decoder::new(bytes);
        let message = decoder.decode().map_err(|error| SyncError::Decode(error.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(SyncError::Decode("bytes are left over".to_owned()));
        }
        Ok(message)
    }

    /// Makes messages that say what is durable here.
    pub fn durable(ids: impl IntoIterator<Item = ChangeId>) -> Vec<Self> {
        let mut last = std::collections::BTreeMap::new();
        for id in ids {
            let seq = last.entry((id.shard, id.generation, id.actor)).or_insert(0);
            *seq = id.seq.max(*seq);
        }
        let entries: Vec<_> = last
            .into_iter()
            .map(|((shard, generation, actor), seq)| ChangeId { shard, generation, actor, seq })
            .collect();
        entries.chunks(ENTRIES_MAX).map(|entries| Self::Durable { entries: entries.to_vec() }).collect()
    }

    /// Makes messages that ask what of this is durable at the receiver.
    pub fn ask(entries: Vec<ChangeId>) -> impl Iterator<Item = Self> {
        let chunks: Vec<_> = entries.chunks(ENTRIES_MAX).map(<[_]>::to_vec).collect();
        chunks.into_iter().map(|entries| Self::Ask { entries })
    }
}

/// How the body of a frame of changes is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Encoding {
    /// As it is.
    #[n(0)]
    Raw,
    /// Deflated (RFC 1951).
    #[n(1)]
    Deflate,
}

/// Changes of one document, each after those it follows on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Changes {
    /// The round of the pull, or 0 for new changes that nobody asked for.
    #[n(0)]
    pub round: u64,
    /// The document.
    #[n(1)]
    pub shard: ShardId,
    /// Its generation.
    #[n(2)]
    pub generation: Generation,
    /// How `body` is packed.
    #[n(3)]
    pub encoding: Encoding,
    /// Each change behind its length, four bytes with the highest first.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// Whether another pull would bring more.
    #[n(5)]
    pub more: bool,
}

impl Changes {
    /// Packs what a peer lacks into the answer to its pull.
    pub(super) fn of_pull(round: u64, shard: ShardId, generation: Generation, missing: Missing) -> Self {
        let (encoding, body, packed) = pack(&missing.changes);
        let more = missing.more || packed < missing.changes.len();
        Self { round, shard, generation, encoding, body, more }
    }

    /// Returns the changes in the frame, not yet vetted.
    ///
    /// # Errors
    /// [`SyncError`] when it inflates beyond bounds or is cut.
    pub fn unpack(&self) -> Result<Vec<Vec<u8>>, SyncError> {
        let inflated;
        let mut rest = match self.encoding {
            Encoding::Raw => &self.body[..],
            Encoding::Deflate => {
                inflated = inflate(&self.body)?;
                &inflated
            }
        };
        let mut changes = Vec::new();
        while !rest.is_empty() {
            let (len, behind) = rest.split_first_chunk().ok_or(SyncError::Cut)?;
            let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| SyncError::Cut)?;
            let (change, behind) = behind.split_at_checked(len).ok_or(SyncError::Cut)?;
            changes.push(change.to_vec());
            rest = behind;
        }
        Ok(changes)
    }
}

/// Packs changes that have just become durable here, for every link.
pub fn push(changes: &[NewChange]) -> Vec<SyncMessage> {
    let mut by_shard: std::collections::BTreeMap<_, Vec<Vec<u8>>> = std::collections::BTreeMap::new();
    for change in changes {
        by_shard.entry((change.id.shard, change.id.generation)).or_default().push(change.bytes.clone());
    }
    let mut messages = Vec::new();
    for ((shard, generation), changes) in by_shard {
        let mut rest = &changes[..];
        while !rest.is_empty() {
            let (encoding, body, packed) = pack(rest);
            messages.push(SyncMessage::Changes(Changes { round: 0, shard, generation, encoding, body, more: false }));
            rest = &rest[packed..];
        }
    }
    messages
}

/// Packs as many changes as one frame may have, and at least one; returns how many.
fn pack(changes: &[Vec<u8>]) -> (Encoding, Vec<u8>, usize) {
    let mut bytes = 0;
    let fits = |change: &&Vec<u8>| {
        bytes += change.len() + 4;
        bytes <= SENT_BYTES
    };
    let count = changes.iter().take_while(fits).count().max(1).min(changes.len());
    let body = join(&changes[..count]);
    if body.len() >= DEFLATE_BYTES_MIN {
        let deflated = deflate(&body);
        if deflated.len() < body.len() {
            return (Encoding::Deflate, deflated, count);
        }
    }
    (Encoding::Raw, body, count)
}

fn join(changes: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for change in changes {
        body.extend(u32::try_from(change.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend(change);
    }
    body
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Writing into a Vec cannot fail; were it to, the bytes come back no shorter and are sent as they are.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_else(|_| bytes.to_vec())
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, SyncError> {
    let mut inflated = Vec::new();
    let mut decoder = DeflateDecoder::new(bytes).take(INFLATED_BYTES_MAX as u64 + 1);
    decoder.read_to_end(&mut inflated).map_err(|_| SyncError::Inflate)?;
    if inflated.len() > INFLATED_BYTES_MAX { Err(SyncError::Inflate) } else { Ok(inflated) }
}
