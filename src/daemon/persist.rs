//! Between what the core wants kept and what the store keeps: encoding, and decoding with every damage named.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};

use crate::proto::document::{Actor, ChangeId, Damage, Documents, Generation, ShardId, StoredSnapshot};
use crate::proto::epoch::AcceptorState;
use crate::proto::facts::PeerRecord;
use crate::proto::identity::MemberId;
use crate::proto::invite::Invite;
use crate::proto::record::Record;
use crate::proto::roster::Roster;
use crate::store;

/// The setting that holds this member's id.
const ME: &str = "me";
/// The setting that says why this member is no longer on the roster.
const REMOVED: &str = "removed";

/// What a store kept, decoded.
#[derive(Debug)]
pub struct Kept {
    /// This member's enrolment; none in a store that was never used.
    pub me: Option<MemberId>,
    /// The last incarnation.
    pub incarnation: u64,
    /// The last sequence.
    pub sequence: u64,
    /// The roster in force.
    pub roster: Option<Roster>,
    /// What was promised and accepted.
    pub acceptor: Option<AcceptorState>,
    /// Invitations made here.
    pub invites: Vec<Invite>,
    /// What is remembered of other members.
    pub peers: BTreeMap<MemberId, PeerRecord>,
    /// The documents.
    pub documents: Documents,
    /// Why this member is no longer on the roster.
    pub removed: Option<String>,
    /// What could not be read, for the log.
    pub damage: Vec<String>,
}

/// Decodes what a store holds.
///
/// # Errors
/// When something that safety rests on cannot be read: the daemon must not start as if it were not there.
pub fn decode(loaded: store::Loaded) -> anyhow::Result<Kept> {
    if loaded.has_forgotten_promises() {
        let what: Vec<_> = loaded.damaged.iter().map(ToString::to_string).collect();
        return Err(anyhow!(
            "the store lost what safety rests on ({}); move the state directory away, start again, and have another \
             member invite this one anew",
            what.join("; ")
        ));
    }
    let mut damage: Vec<_> = loaded.damaged.iter().map(ToString::to_string).collect();
    let roster = loaded.roster.map(|bytes| minicbor::decode::<Roster>(&bytes)).transpose().context("the roster")?;
    if let Some(roster) = &roster {
        roster.check().context("the stored roster makes no sense")?;
    }
    let acceptor =
        loaded.acceptor.map(|bytes| minicbor::decode::<AcceptorState>(&bytes)).transpose().context("the promises")?;
    let me = match loaded.settings.get(ME) {
        Some(bytes) => Some(MemberId(bytes.as_slice().try_into().context("this member's id")?)),
        None => None,
    };
    let removed = loaded.settings.get(REMOVED).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let mut invites = Vec::new();
    for (id, bytes) in &loaded.invites {
        match minicbor::decode(bytes) {
            Ok(invite) => invites.push(invite),
            Err(error) => damage.push(format!("invitation {id}: {error}")),
        }
    }
    let mut peers = BTreeMap::new();
    for (id, bytes) in &loaded.peers {
        match minicbor::decode(bytes) {
            Ok(peer) => {
                peers.insert(*id, peer);
            }
            Err(error) => damage.push(format!("what is known of member {id}: {error}")),
        }
    }
    let (documents, lost) = documents(loaded.snapshots, loaded.changes);
    damage.extend(lost.into_iter().map(|damage| damage.to_string()));
    Ok(Kept {
        me,
        incarnation: loaded.incarnation.unwrap_or(0),
        sequence: loaded.sequence.unwrap_or(0),
        roster,
        acceptor,
        invites,
        peers,
        documents,
        removed,
        damage,
    })
}

fn documents(snapshots: BTreeMap<(u8, u64), Vec<u8>>, changes: Vec<store::StoredChange>) -> (Documents, Vec<Damage>) {
    let snapshots = snapshots
        .into_iter()
        .filter_map(|((shard, generation), bytes)| {
            Some(StoredSnapshot { shard: ShardId::new(shard)?, generation: Generation(generation), bytes })
        })
        .collect();
    let changes = changes
        .into_iter()
        .filter_map(|change| {
            let id = ChangeId {
                shard: ShardId::new(change.shard)?,
                generation: Generation(change.generation),
                actor: Actor(change.actor),
                seq: change.seq,
            };
            Some((id, change.bytes))
        })
        .collect();
    Documents::load(snapshots, changes)
}

/// Encodes what the core wants kept.
pub fn encode(record: Record) -> Vec<store::Record> {
    match record {
        Record::Incarnation(incarnation) => vec![store::Record::Incarnation(incarnation)],
        Record::Sequence(sequence) => vec![store::Record::Sequence(sequence)],
        Record::Roster(roster) => vec![store::Record::Roster(bytes(&roster))],
        Record::Acceptor(state) => vec![store::Record::Acceptor(bytes(&state))],
        Record::Invite(invite) => vec![store::Record::Invite { id: invite.id, bytes: bytes(&invite) }],
        Record::DropInvite(id) => vec![store::Record::DropInvite(id)],
        Record::Change { id, bytes } => vec![store::Record::Change {
            shard: id.shard.number(),
            generation: id.generation.0,
            actor: id.actor.0,
            seq: id.seq,
            bytes,
        }],
        Record::Snapshot { snapshot, covers } => vec![store::Record::Snapshot {
            shard: snapshot.shard.number(),
            generation: snapshot.generation.0,
            bytes: snapshot.bytes,
            covers,
        }],
        Record::Peer { id, record } => vec![store::Record::Peer { id, bytes: bytes(&record) }],
        Record::Removed(notice) => {
            vec![store::Record::Setting { key: REMOVED.into(), value: notice.into_bytes() }]
        }
    }
}

/// Encodes a new member's first facts: who it is, the roster it starts with, and where the others are.
pub fn encode_birth(me: MemberId, roster: &Roster, peers: &BTreeMap<MemberId, PeerRecord>) -> Vec<store::Record> {
    let mut records =
        vec![store::Record::Setting { key: ME.into(), value: me.0.to_vec() }, store::Record::Roster(bytes(roster))];
    records.extend(peers.iter().map(|(id, peer)| store::Record::Peer { id: *id, bytes: bytes(peer) }));
    records
}

fn bytes(value: &impl minicbor::Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).unwrap_or_default() // Encoding into a Vec cannot fail.
}
