//! The stored format: how a record becomes keys and framed values, and back. docs/storage.md has the tables.

use data_encoding::HEXLOWER;

use super::{
    Actor, Damage, Loaded, Record, RecordKind, SETTING_KEY_BYTES_MAX, StoreError, StoredChange, VALUE_BYTES_MAX,
};
use crate::proto::identity::{InviteId, MemberId};

/// The version of the whole file: which keys there are and what they mean.
pub(super) const FILE_VERSION: u32 = 1;
/// The version of the frame around every value. Its first nine bytes mean the same in every version.
const FRAME_VERSION: u8 = 1;
/// Version, length of the payload, checksum.
const FRAME_BYTES: usize = 1 + 4 + 4;

/// The key of the file version, before all others.
pub(super) const FILE_VERSION_KEY: &[u8] = &[0];

// The first byte of a key. A number is never used again for anything else.
const INCARNATION: u8 = 1;
const SEQUENCE: u8 = 2;
const ROSTER: u8 = 3;
const ACCEPTOR: u8 = 4;
const INVITE: u8 = 5;
const PEER: u8 = 6;
const SETTING: u8 = 7;
const SNAPSHOT: u8 = 8;
const CHANGE: u8 = 9;

/// What a record does to the ordered map of keys and values.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    /// Deletes every key from `first` to `last`, both included.
    DeleteRange {
        first: Vec<u8>,
        last: Vec<u8>,
    },
}

/// Turns a record into what it does, appended to `out`.
pub(super) fn operations(record: &Record, out: &mut Vec<Operation>) -> Result<(), StoreError> {
    match record {
        Record::Incarnation(number) => out.push(put(vec![INCARNATION], &number.to_be_bytes())?),
        Record::Sequence(number) => out.push(put(vec![SEQUENCE], &number.to_be_bytes())?),
        Record::Roster(bytes) => out.push(put(vec![ROSTER], bytes)?),
        Record::Acceptor(bytes) => out.push(put(vec![ACCEPTOR], bytes)?),
        Record::ClearAcceptor => out.push(Operation::Delete { key: vec![ACCEPTOR] }),
        Record::Invite { id, bytes } => out.push(put(key(INVITE, &[&id.0]), bytes)?),
        Record::DropInvite(id) => out.push(Operation::Delete { key: key(INVITE, &[&id.0]) }),
        Record::Peer { id, bytes } => out.push(put(key(PEER, &[&id.0]), bytes)?),
        Record::DropPeer(id) => out.push(Operation::Delete { key: key(PEER, &[&id.0]) }),
        Record::Setting { key: name, .. } if name.len() > SETTING_KEY_BYTES_MAX => {
            return Err(StoreError::Refused(format!("the key of a setting has {} bytes", name.len())));
        }
        Record::Setting { key: name, value } => out.push(put(key(SETTING, &[name.as_bytes()]), value)?),
        Record::Change { shard, generation, actor, seq, bytes } => {
            out.push(put(change_key(*shard, *generation, actor, *seq), bytes)?);
        }
        Record::Snapshot { shard, generation, bytes, covers } => {
            out.push(put(key(SNAPSHOT, &[&[*shard], &generation.to_be_bytes()]), bytes)?);
            out.extend(covers.iter().map(|(actor, seq)| Operation::DeleteRange {
                first: change_key(*shard, *generation, actor, 0),
                last: change_key(*shard, *generation, actor, *seq),
            }));
        }
    }
    Ok(())
}

/// Returns what marks a file as one of this version.
pub(super) fn file_version() -> Vec<u8> {
    file_version_of(FILE_VERSION)
}

/// Returns what marks a file as one of any version.
pub(super) fn file_version_of(version: u32) -> Vec<u8> {
    frame(FILE_VERSION_KEY, &version.to_be_bytes())
}

/// Reads which version a file has, from the value of [`FILE_VERSION_KEY`].
pub(super) fn read_file_version(value: &[u8]) -> Result<u32, &'static str> {
    let payload = match unframe(FILE_VERSION_KEY, value) {
        Ok(payload) => payload,
        // The number below is that of the frame; it is all that can be said, and it is newer.
        Err(FrameError::Newer(version)) => return Ok(FILE_VERSION.saturating_add(u32::from(version))),
        Err(FrameError::Damaged(reason)) => return Err(reason),
    };
    payload.try_into().map(u32::from_be_bytes).map_err(|_| "the file version is not four bytes")
}

/// Adds one stored key and value to what was loaded, or to what is damaged.
///
/// # Errors
/// The frame's version, when it is newer than this program knows.
pub(super) fn absorb(loaded: &mut Loaded, key: &[u8], value: &[u8]) -> Result<(), u8> {
    if key == FILE_VERSION_KEY {
        return Ok(());
    }
    let (kind, shard) = classify(key);
    let reason = match unframe(key, value) {
        Ok(payload) => match place(loaded, key, payload) {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        },
        Err(FrameError::Newer(version)) => return Err(version),
        Err(FrameError::Damaged(reason)) => reason,
    };
    let key = HEXLOWER.encode(&key[..key.len().min(40)]);
    loaded.damaged.push(Damage { kind, shard, key, reason });
    Ok(())
}

/// Puts a checked payload where it belongs.
fn place(loaded: &mut Loaded, key: &[u8], payload: &[u8]) -> Result<(), &'static str> {
    const BAD_KEY: &str = "its key has the wrong length";
    let number = || payload.try_into().map(u64::from_be_bytes).map_err(|_| "its value is not eight bytes");
    let [kind, rest @ ..] = key else { return Err("its key is empty") };
    match (*kind, rest) {
        (INCARNATION, []) => loaded.incarnation = Some(number()?),
        (SEQUENCE, []) => loaded.sequence = Some(number()?),
        (ROSTER, []) => loaded.roster = Some(payload.to_vec()),
        (ACCEPTOR, []) => loaded.acceptor = Some(payload.to_vec()),
        (INVITE, id) => {
            let id = InviteId(id.try_into().map_err(|_| BAD_KEY)?);
            loaded.invites.insert(id, payload.to_vec());
        }
        (PEER, id) => {
            let id = MemberId(id.try_into().map_err(|_| BAD_KEY)?);
            loaded.peers.insert(id, payload.to_vec());
        }
        (SETTING, name) => {
            let name = std::str::from_utf8(name).map_err(|_| "its key is not text")?;
            loaded.settings.insert(name.to_owned(), payload.to_vec());
        }
        (SNAPSHOT, rest) => {
            let (shard, generation) =
                document(rest).filter(|(.., rest)| rest.is_empty()).map(|(s, g, _)| (s, g)).ok_or(BAD_KEY)?;
            loaded.snapshots.insert((shard, generation), payload.to_vec());
        }
        (CHANGE, rest) => {
            let (shard, generation, rest) = document(rest).ok_or(BAD_KEY)?;
            let (actor, seq) = rest.split_first_chunk().ok_or(BAD_KEY)?;
            let seq = u64::from_be_bytes(seq.try_into().map_err(|_| BAD_KEY)?);
            loaded.changes.push(StoredChange { shard, generation, actor: *actor, seq, bytes: payload.to_vec() });
        }
        _ => return Err("no such kind of record is known"),
    }
    Ok(())
}

/// Splits the rest of a key into shard, generation and what follows.
fn document(rest: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (shard, rest) = rest.split_first()?;
    let (generation, rest) = rest.split_first_chunk()?;
    Some((*shard, u64::from_be_bytes(*generation), rest))
}

/// Says what a key is about, however damaged its value is.
fn classify(key: &[u8]) -> (RecordKind, Option<u8>) {
    let kind = match key.first() {
        Some(&INCARNATION) => RecordKind::Incarnation,
        Some(&SEQUENCE) => RecordKind::Sequence,
        Some(&ROSTER) => RecordKind::Roster,
        Some(&ACCEPTOR) => RecordKind::Acceptor,
        Some(&INVITE) => RecordKind::Invite,
        Some(&PEER) => RecordKind::Peer,
        Some(&SETTING) => RecordKind::Setting,
        Some(&SNAPSHOT) => RecordKind::Snapshot,
        Some(&CHANGE) => RecordKind::Change,
        _ => RecordKind::Unknown,
    };
    let has_shard = matches!(kind, RecordKind::Snapshot | RecordKind::Change);
    (kind, key.get(1).copied().filter(|_| has_shard))
}

/// Makes a key: its kind and its parts, numbers big-endian, so that the order of keys is the order of their fields.
fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![kind];
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// The changes of one actor in one document are neighbours, ordered by sequence: what a version vector asks for.
fn change_key(shard: u8, generation: u64, actor: &Actor, seq: u64) -> Vec<u8> {
    key(CHANGE, &[&[shard], &generation.to_be_bytes(), actor, &seq.to_be_bytes()])
}

fn put(key: Vec<u8>, payload: &[u8]) -> Result<Operation, StoreError> {
    if payload.len() > VALUE_BYTES_MAX {
        return Err(StoreError::Refused(format!("a value of {} bytes, {VALUE_BYTES_MAX} at most", payload.len())));
    }
    let value = frame(&key, payload);
    Ok(Operation::Put { key, value })
}

/// Frames a value. The checksum covers the key too: a value under the wrong key is found out.
fn frame(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(FRAME_BYTES + payload.len());
    value.push(FRAME_VERSION);
    value.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    value.extend_from_slice(&checksum(&value, key, payload).to_be_bytes());
    value.extend_from_slice(payload);
    value
}

enum FrameError {
    Damaged(&'static str),
    Newer(u8),
}

fn unframe<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], FrameError> {
    let (head, payload) = value.split_at_checked(FRAME_BYTES).ok_or(FrameError::Damaged("it is cut short"))?;
    let (head, sum) = head.split_at(FRAME_BYTES - 4);
    if head[1..] != u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes() {
        return Err(FrameError::Damaged("its length is wrong"));
    }
    if sum != checksum(head, key, payload).to_be_bytes() {
        return Err(FrameError::Damaged("its checksum is wrong"));
    }
    // Only now: a damaged byte must not pass for a newer version.
    if head[0] > FRAME_VERSION {
        return Err(FrameError::Newer(head[0]));
    }
    Ok(payload)
}

/// CRC32C of version and length, key, and payload.
fn checksum(head: &[u8], key: &[u8], payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c(head);
    let sum = crc32c::crc32c_append(sum, key);
    crc32c::crc32c_append(sum, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(record: &Record) -> Operation {
        let mut out = Vec::new();
        operations(record, &mut out).expect("within bounds");
        out.remove(0)
    }

    fn framed(record: &Record) -> (Vec<u8>, Vec<u8>) {
        match one(record) {
            Operation::Put { key, value } => (key, value),
            other => panic!("not a put: {other:?}"),
        }
    }

    #[test]
    fn a_change_has_these_bytes() {
        let (key, value) =
            framed(&Record::Change { shard: 7, generation: 2, actor: [0xab; 16], seq: 258, bytes: b"change".to_vec() });
        assert_eq!(HEXLOWER.encode(&key), "09070000000000000002abababababababababababababababab0000000000000102");
        assert_eq!(HEXLOWER.encode(&value), "01000000063f9cddba6368616e6765");
    }

    #[test]
    fn an_incarnation_has_these_bytes() {
        let (key, value) = framed(&Record::Incarnation(3));
        assert_eq!(HEXLOWER.encode(&key), "01");
        assert_eq!(HEXLOWER.encode(&value), "010000000883d8ac050000000000000003");
        assert_eq!(HEXLOWER.encode(&file_version()), "010000000468153fba00000001");
    }

    #[test]
    fn keys_of_changes_are_ordered_by_shard_generation_actor_and_number() {
        let mut keys = vec![
            change_key(0, 0, &[1; 16], 1),
            change_key(0, 0, &[1; 16], 256),
            change_key(0, 0, &[2; 16], 2),
            change_key(0, 1, &[0; 16], 1),
            change_key(0, 256, &[0; 16], 1),
            change_key(1, 0, &[0; 16], 1),
        ];
        let sorted = keys.clone();
        keys.reverse();
        keys.sort();
        assert_eq!(keys, sorted);
    }

    #[test]
    fn every_flipped_bit_of_a_value_is_found() {
        let (key, value) = framed(&Record::Setting { key: "name".into(), value: b"mgt1".to_vec() });
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut loaded = Loaded::default();
            assert_eq!(absorb(&mut loaded, &key, &damaged), Ok(()), "bit {bit} passes for a newer version");
            assert!(loaded.settings.is_empty() && loaded.damaged.len() == 1, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn a_value_under_a_foreign_key_is_damaged() {
        let (_, value) = framed(&Record::Invite { id: InviteId([1; 8]), bytes: b"x".to_vec() });
        let (key, _) = framed(&Record::Invite { id: InviteId([2; 8]), bytes: b"x".to_vec() });
        let mut loaded = Loaded::default();
        assert_eq!(absorb(&mut loaded, &key, &value), Ok(()));
        assert_eq!(loaded.damaged[0].kind, RecordKind::Invite);
    }

    #[test]
    fn a_damaged_change_names_its_shard() {
        let (key, mut value) =
            framed(&Record::Change { shard: 41, generation: 0, actor: [1; 16], seq: 1, bytes: b"x".to_vec() });
        value.truncate(5);
        let mut loaded = Loaded::default();
        assert_eq!(absorb(&mut loaded, &key, &value), Ok(()));
        assert_eq!((loaded.damaged[0].shard, loaded.damaged[0].reason), (Some(41), "it is cut short"));
        assert!(!loaded.has_forgotten_promises());
    }

    #[test]
    fn a_frame_of_a_newer_version_is_told_apart_from_damage() {
        let key = [ROSTER];
        let mut value = vec![FRAME_VERSION + 1, 0, 0, 0, 1];
        value.extend_from_slice(&checksum(&value, &key, b"?").to_be_bytes());
        value.push(b'?');
        assert_eq!(absorb(&mut Loaded::default(), &key, &value), Err(FRAME_VERSION + 1));
    }

    #[test]
    fn keys_of_the_wrong_shape_are_damage_and_never_a_panic() {
        let keys: [&[u8]; 8] = [&[], &[1, 1], &[5, 1], &[6], &[7, 0xff], &[8, 1], &[9, 1, 2], &[200]];
        for key in keys {
            let mut loaded = Loaded::default();
            assert_eq!(absorb(&mut loaded, key, &frame(key, &[0; 8])), Ok(()));
            assert_eq!(loaded.damaged.len(), 1, "{key:?}");
        }
    }

    #[test]
    fn what_breaks_a_bound_is_refused() {
        let long = Record::Setting { key: "k".repeat(SETTING_KEY_BYTES_MAX + 1), value: Vec::new() };
        let large = Record::Roster(vec![0; VALUE_BYTES_MAX + 1]);
        for record in [long, large] {
            assert!(matches!(operations(&record, &mut Vec::new()), Err(StoreError::Refused(_))));
        }
    }
}
