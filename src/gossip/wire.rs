//! The bytes of a gossip message, and what is looked at before chitchat may see them.
//!
//! chitchat trusts its peers: it keeps a record for every id it reads, believes every heartbeat, and inflates without
//! a limit. So its format is walked here first, without allocating, and records of strangers are cut out of the digest,
//! the only place where a record begins.
//!
//! ```text
//! message  = 0 chitchat | 1 deflate(chitchat)
//! chitchat = 45139:u16 0:u8 kind:u8 body         all numbers little-endian
//! body     = Syn 0: digest text | SynAck 1: digest delta | Ack 2: delta | BadCluster 3
//! digest   = count:u16 { text generation:u64 address heartbeat:u64 gc:u64 max:u64 }
//! delta    = { 1|2 length:u16 block } 0
//! text     = length:u16 utf-8;  address = (4 ip:4 | 6 ip:16) port:u16
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use chitchat::{ChitchatMessage, Deserializable, Serializable};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::admission::{Admission, Record};

/// Bytes in the longest message after inflating.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes up to which compressing does not pay.
const PLAIN_BYTES_MAX: usize = 256;
/// Blocks in a delta. Honest ones hold 16 KiB of keys each and arrive four or five at a time; chitchat would inflate
/// any number, up to 64 KiB each.
const BLOCKS_MAX: usize = 64;

const PLAIN: u8 = 0;
const DEFLATED: u8 = 1;

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum WireError {
    /// It ends before it should, or goes on after that.
    #[error("the message is cut off or too long")]
    Length,
    /// It begins with another number, or has an unknown kind, block or address.
    #[error("the message is of no known kind")]
    Unknown,
    /// It would be larger than any honest message.
    #[error("the message is larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
    /// Its compressed part is damaged.
    #[error("the message cannot be inflated")]
    Deflate,
    /// chitchat did not take it.
    #[error("the message cannot be decoded")]
    Decode,
}

/// Encodes a message, compressed when that pays: the digests in it are not.
pub(super) fn encode(message: &ChitchatMessage) -> Vec<u8> {
    let mut plain = vec![PLAIN];
    message.serialize(&mut plain);
    if plain.len() <= PLAIN_BYTES_MAX {
        return plain;
    }
    let mut encoder = DeflateEncoder::new(vec![DEFLATED], Compression::fast());
    match encoder.write_all(&plain[1..]).and_then(|()| encoder.finish()) {
        Ok(deflated) if deflated.len() < plain.len() => deflated,
        _ => plain,
    }
}

/// Decodes a message, with the records that `admission` does not let in left out.
///
/// # Errors
/// [`WireError`] when it is none; nothing was changed but what `admission` remembers of the records.
pub(super) fn decode(bytes: &[u8], admission: &Admission) -> Result<ChitchatMessage, WireError> {
    let plain = inflate(bytes)?;
    let vetted = vet(&plain, admission)?;
    // chitchat's decoder has no known panic behind these checks; if it has one, it costs one message.
    catch_unwind(AssertUnwindSafe(|| ChitchatMessage::deserialize(&mut vetted.as_slice())))
        .map_err(|_| WireError::Decode)?
        .map_err(|_| WireError::Decode)
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, WireError> {
    let (kind, body) = bytes.split_first().ok_or(WireError::Length)?;
    match *kind {
        PLAIN if body.len() > MESSAGE_BYTES_MAX => Err(WireError::TooLarge),
        PLAIN => Ok(body.to_vec()),
        DEFLATED => {
            let mut plain = Vec::new();
            let limit = MESSAGE_BYTES_MAX as u64 + 1;
            DeflateDecoder::new(body).take(limit).read_to_end(&mut plain).map_err(|_| WireError::Deflate)?;
            if plain.len() > MESSAGE_BYTES_MAX { Err(WireError::TooLarge) } else { Ok(plain) }
        }
        _ => Err(WireError::Unknown),
    }
}

/// Walks a message from end to end and returns it without the records of strangers.
fn vet(plain: &[u8], admission: &Admission) -> Result<Vec<u8>, WireError> {
    let mut rest = plain;
    if take::<2>(&mut rest)? != 45_139_u16.to_le_bytes() || take::<1>(&mut rest)? != [0] {
        return Err(WireError::Unknown);
    }
    let [kind] = take::<1>(&mut rest)?;
    let mut vetted = plain[..4].to_vec();
    let tail = match kind {
        0 => {
            vet_digest(&mut rest, admission, &mut vetted)?;
            let tail = rest;
            skip_text(&mut rest)?;
            tail
        }
        1 => {
            vet_digest(&mut rest, admission, &mut vetted)?;
            let tail = rest;
            skip_delta(&mut rest)?;
            tail
        }
        2 => {
            let tail = rest;
            skip_delta(&mut rest)?;
            tail
        }
        3 => rest,
        _ => return Err(WireError::Unknown),
    };
    if !rest.is_empty() {
        return Err(WireError::Length);
    }
    vetted.extend_from_slice(tail);
    Ok(vetted)
}

/// Copies the entries of a digest that are let in.
fn vet_digest(rest: &mut &[u8], admission: &Admission, vetted: &mut Vec<u8>) -> Result<(), WireError> {
    let count = u16::from_le_bytes(take(rest)?);
    let at = vetted.len();
    vetted.extend_from_slice(&[0, 0]);
    let mut kept = 0_u16;
    for _ in 0..count {
        let entry = *rest;
        let name = skip_text(rest)?;
        let generation = u64::from_le_bytes(take(rest)?);
        let address = take_address(rest)?;
        let heartbeat = u64::from_le_bytes(take(rest)?);
        take::<16>(rest)?;
        if admission.admits(&Record { name, generation, address, heartbeat }) {
            vetted.extend_from_slice(&entry[..entry.len() - rest.len()]);
            kept += 1;
        }
    }
    vetted[at..at + 2].copy_from_slice(&kept.to_le_bytes());
    Ok(())
}

fn skip_delta(rest: &mut &[u8]) -> Result<(), WireError> {
    for _ in 0..=BLOCKS_MAX {
        match take::<1>(rest)? {
            [0] => return Ok(()),
            [1 | 2] => {
                let length = u16::from_le_bytes(take(rest)?);
                *rest = rest.get(usize::from(length)..).ok_or(WireError::Length)?;
            }
            _ => return Err(WireError::Unknown),
        }
    }
    Err(WireError::TooLarge)
}

fn skip_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], WireError> {
    let length = usize::from(u16::from_le_bytes(take(rest)?));
    let (text, after) = rest.split_at_checked(length).ok_or(WireError::Length)?;
    *rest = after;
    Ok(text)
}

fn take_address(rest: &mut &[u8]) -> Result<SocketAddr, WireError> {
    let ip: IpAddr = match take::<1>(rest)? {
        [4] => Ipv4Addr::from(take::<4>(rest)?).into(),
        [6] => Ipv6Addr::from(take::<16>(rest)?).into(),
        _ => return Err(WireError::Unknown),
    };
    Ok(SocketAddr::new(ip, u16::from_le_bytes(take(rest)?)))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (bytes, after) = rest.split_first_chunk().ok_or(WireError::Length)?;
    *rest = after;
    Ok(*bytes)
}

#[cfg(test)]
mod tests {
    use super::super::address_of;
    use super::super::admission::name_of;
    use super::*;
    use crate::proto::identity::Fingerprint;

    const A: Fingerprint = Fingerprint([1; 32]);
    const B: Fingerprint = Fingerprint([2; 32]);
    const STRANGER: Fingerprint = Fingerprint([3; 32]);

    fn admission() -> Admission {
        let admission = Admission::default();
        admission.set_members([A, B]);
        admission
    }

    /// A Syn with one record for each fingerprint, at generation 1 and the heartbeat given.
    fn syn(records: &[(Fingerprint, u64)]) -> Vec<u8> {
        let mut bytes = vec![PLAIN];
        bytes.extend_from_slice(&45_139_u16.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&(records.len() as u16).to_le_bytes());
        for (fingerprint, heartbeat) in records {
            let name = name_of(*fingerprint);
            bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&1_u64.to_le_bytes());
            address_of(*fingerprint).serialize(&mut bytes);
            for number in [*heartbeat, 0, 0] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        "cluster".to_owned().serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_message_reads_back_small_and_large() {
        let admission = Admission::default();
        let many: Vec<_> = (0..=255).map(|n| (Fingerprint([n; 32]), 5)).collect();
        admission.set_members(many.iter().map(|(fingerprint, _)| *fingerprint));
        for (records, first) in [(&many[..2], PLAIN), (&many[..], DEFLATED)] {
            let bytes = syn(records);
            let message = decode(&bytes, &admission).expect("well formed");
            let encoded = encode(&message);
            assert_eq!(encoded[0], first);
            assert!(encoded.len() <= bytes.len());
            assert_eq!(decode(&encoded, &admission), Ok(message));
        }
    }

    #[test]
    fn the_record_of_a_stranger_is_cut_out() {
        let mixed = decode(&syn(&[(A, 5), (STRANGER, 5), (B, 5)]), &admission());
        assert_eq!(mixed, decode(&syn(&[(A, 5), (B, 5)]), &admission()));
        assert!(mixed.is_ok());
    }

    #[test]
    fn an_implausible_heartbeat_is_cut_out() {
        let admission = admission();
        decode(&syn(&[(A, 5), (B, 7)]), &admission).expect("well formed");
        // One such message would make the member look dead for ever: its own heartbeat never gets there.
        let poisoned = decode(&syn(&[(A, u64::MAX), (B, 8)]), &admission);
        assert_eq!(poisoned, decode(&syn(&[(B, 8)]), &admission));
    }

    #[test]
    fn a_cut_or_prolonged_message_is_an_error() {
        let bytes = syn(&[(A, 5), (B, 5)]);
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], &admission()).is_err(), "cut at {end}");
        }
        let mut long = bytes;
        long.push(0);
        assert_eq!(decode(&long, &admission()), Err(WireError::Length));
    }

    #[test]
    fn a_bomb_is_not_inflated() {
        let mut encoder = DeflateEncoder::new(vec![DEFLATED], Compression::best());
        encoder.write_all(&vec![0; 64 * MESSAGE_BYTES_MAX]).expect("a Vec takes everything");
        let bomb = encoder.finish().expect("a Vec takes everything");
        assert!(bomb.len() < 20_000);
        assert_eq!(decode(&bomb, &admission()), Err(WireError::TooLarge));

        let mut blocks = vec![PLAIN];
        blocks.extend_from_slice(&45_139_u16.to_le_bytes());
        blocks.extend_from_slice(&[0, 2]);
        blocks.extend((0..=BLOCKS_MAX).flat_map(|_| [2, 0, 0]));
        blocks.push(0);
        assert_eq!(decode(&blocks, &admission()), Err(WireError::TooLarge));
    }

    #[test]
    fn random_bytes_are_an_error_and_no_panic() {
        use rand_core::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::from_seed([1; 32]);
        let good = syn(&[(A, 5), (B, 5)]);
        for round in 0..20_000_u32 {
            let mut bytes = if round % 2 == 0 { good.clone() } else { vec![0; (rng.next_u32() % 200) as usize] };
            if round % 2 == 0 {
                let at = rng.next_u32() as usize % bytes.len();
                bytes[at] ^= 1 << (rng.next_u32() % 8);
            } else {
                rng.fill_bytes(&mut bytes);
                // Beyond the head, or the first check would catch them all.
                for (to, from) in bytes.iter_mut().zip([PLAIN, 0x53, 0xb0, 0, (round % 4) as u8]) {
                    *to = from;
                }
            }
            drop(decode(&bytes, &admission()));
        }
    }
}
