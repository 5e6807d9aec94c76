//! Keys: which document and which bucket of it an attribute of an entity lives in, decided by the entity's name.

use std::cmp::Ordering;
use std::fmt;

use automerge::ChangeHash;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use ring::digest;

use crate::proto::identity::{MemberId, cmp_bytes};
use crate::proto::name::{ATTRIBUTE_NAME_BYTES_MAX, AttributeName, GroupName, NodeName};

/// Documents in the database: 64 of nodes, and [`ShardId::SETTINGS`].
pub const SHARDS: usize = 65;
/// Documents that hold nodes.
const NODE_SHARDS: u8 = 64;
/// Bucket maps in each document.
pub(super) const BUCKETS: u8 = 64;
/// Bytes in the longest value.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// The attribute that makes an entity exist; without it, its other attributes are hidden.
pub const PRESENT: &str = "!present";

/// Which document of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u8);

impl ShardId {
    /// The document of groups and cluster settings.
    pub const SETTINGS: Self = Self(NODE_SHARDS);

    /// Returns the document of that number, if there is one.
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < SHARDS).then_some(Self(number))
    }

    /// Returns every document, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=NODE_SHARDS).map(Self)
    }

    /// Returns the number, 0 to 64.
    pub fn number(self) -> u8 {
        self.0
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

impl<C> Encode<C> for ShardId {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.u8(self.0)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for ShardId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        Self::new(d.u8()?).ok_or_else(|| DecodeError::message("a document number from 0 to 64 expected"))
    }
}

/// How often a document was compacted into a new one. Changes of different generations never meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Generation(#[n(0)] pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who wrote a change: one run of one member's daemon.
///
/// Never used twice: an actor that writes two different changes of one number splits the collective for good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Actor(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl Ord for Actor {
    fn cmp(&self, other: &Self) -> Ordering {
        cmp_bytes(&self.0, &other.0)
    }
}

impl PartialOrd for Actor {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Actor {
    /// Makes the actor of one run of a member's daemon from eight random bytes drawn for that run.
    pub fn new(member: MemberId, run: [u8; 8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&actor_prefix(member));
        bytes[8..].copy_from_slice(&run);
        Self(bytes)
    }

    /// Returns the half that names the member; compare it with [`actor_prefix`].
    pub fn prefix(self) -> [u8; 8] {
        std::array::from_fn(|i| self.0[i])
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..10]))
    }
}

/// Returns the first half of every actor of a member.
pub fn actor_prefix(member: MemberId) -> [u8; 8] {
    std::array::from_fn(|i| member.0[i])
}

/// The name of one change: the `seq`-th of its actor in its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(map)]
pub struct ChangeId {
    /// The document.
    #[n(0)]
    pub shard: ShardId,
    /// Its generation.
    #[n(1)]
    pub generation: Generation,
    /// Who wrote it.
    #[n(2)]
    pub actor: Actor,
    /// Which of the actor's changes in this document, from 1.
    #[n(3)]
    pub seq: u64,
}

/// What the keys of a document are about: an [`Owner`](crate::proto::attributes::Owner), or the collective itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// A managed machine.
    Node(NodeName),
    /// A named set of nodes.
    Group(GroupName),
    /// The collective itself.
    Settings,
}

impl Entity {
    /// Returns the document that holds the entity.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Node(name) => ShardId(hash(name.as_str())[0] % NODE_SHARDS),
            Self::Group(_) | Self::Settings => ShardId::SETTINGS,
        }
    }

    /// Returns the bucket map of that document; the apply of a change scans its bucket, so buckets are small.
    pub(super) fn bucket(&self) -> u8 {
        match self {
            Self::Node(name) => hash(name.as_str())[1] % BUCKETS,
            Self::Group(name) => hash(name.as_str())[1] % BUCKETS,
            Self::Settings => 0,
        }
    }

    /// Returns the key of an attribute in the bucket map: `node\0attribute`, `g/group\0attribute`, `s/\0attribute`.
    ///
    /// No name has a slash, so the three never meet.
    pub(super) fn key(&self, attribute: &str) -> String {
        match self {
            Self::Node(name) => format!("{name}\0{attribute}"),
            Self::Group(name) => format!("g/{name}\0{attribute}"),
            Self::Settings => format!("s/\0{attribute}"),
        }
    }

    /// Reads a key back; the attribute is checked too.
    pub(super) fn from_key(key: &str) -> Option<(Self, &str)> {
        let (entity, attribute) = key.split_once('\0')?;
        if !is_attribute(attribute) {
            return None;
        }
        let entity = match entity.split_once('/') {
            None => Self::Node(NodeName::new(entity).ok()?),
            Some(("g", group)) => Self::Group(GroupName::new(group).ok()?),
            Some(("s", "")) => Self::Settings,
            Some(_) => return None,
        };
        Some((entity, attribute))
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Settings => f.write_str("settings"),
        }
    }
}

/// Returns whether a text may name an attribute in a document: an [`AttributeName`], or `!` and printable ASCII for
/// what the collective keeps for itself.
pub(super) fn is_attribute(text: &str) -> bool {
    match text.strip_prefix('!') {
        Some(rest) => {
            text.len() <= ATTRIBUTE_NAME_BYTES_MAX && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic())
        }
        None => AttributeName::new(text).is_ok(),
    }
}

/// Returns eight bytes that are equal when two members hold the same changes of a document.
pub(super) fn digest_of(generation: Generation, heads: impl IntoIterator<Item = ChangeHash>) -> [u8; 8] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&generation.0.to_be_bytes());
    for head in heads {
        context.update(&head.0);
    }
    first_eight(context.finish().as_ref())
}

pub(super) fn first_eight(bytes: &[u8]) -> [u8; 8] {
    std::array::from_fn(|i| bytes[i])
}

fn hash(text: &str) -> [u8; 2] {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    std::array::from_fn(|i| hash.as_ref()[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_nodes_groups_and_settings_never_meet() {
        let entities = [
            Entity::Node(NodeName::new("a").expect("a valid name")),
            Entity::Group(GroupName::new("a").expect("a valid name")),
            Entity::Settings,
        ];
        for entity in entities {
            for attribute in ["custom.x", "!present"] {
                let key = entity.key(attribute);
                assert_eq!(Entity::from_key(&key), Some((entity.clone(), attribute)));
            }
        }
    }

    #[test]
    fn foreign_keys_are_refused() {
        for key in ["", "n1", "n1\0", "\0a", "n1\0a\0b", "g/\0a", "h/a\0b", "s/x\0a", "n 1\0a", "n1\0!", "n1\0!a b"] {
            assert_eq!(Entity::from_key(key), None, "{key:?}");
        }
    }

    #[test]
    fn the_place_of_a_node_is_a_published_constant() {
        // SHA-256("n1") starts with 67 6b. Another place would split the database between versions.
        let node = Entity::Node(NodeName::new("n1").expect("a valid name"));
        assert_eq!((node.shard().number(), node.bucket()), (0x67 % 64, 0x6b % 64));
    }
}
