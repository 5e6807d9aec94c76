//! The join stream: what the joiner signs, what both sides send, and how a refusal is told.
//!
//! Nothing on the wire tells a wrong secret from an invitation that does not exist.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::{Decode, Encode};
use ring::digest::{Context, SHA256};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::token::Seed;
use crate::proto::identity::{ClusterId, Fingerprint, InviteId, MemberId};
use crate::proto::name::MemberName;
use crate::proto::roster::{MEMBERS_MAX, Role, Roster, RosterError};

/// Bytes in the longest message of a joiner, and so all that is read from one that has proven nothing.
pub const JOIN_BYTES_MAX: usize = 4_096;
/// Bytes in the longest answer to a joiner: the largest roster with its addresses.
pub const WELCOME_BYTES_MAX: usize = 1 << 20;
/// Addresses of one member in a message.
pub const ADDRESSES_MAX: usize = 8;

const PROTOCOL: &[u8] = b"collective-join/1";
/// Bytes in the longest text in a message.
const TEXT_BYTES_MAX: usize = 300;

/// Everything that the joiner's signature covers: who joins what, as what, and over which connection.
///
/// The exporter value alone does not cover the joiner's certificate, hence both fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// The collective.
    pub cluster: ClusterId,
    /// The invitation.
    pub invite: InviteId,
    /// The name the joiner asks for.
    pub name: MemberName,
    /// The role it gets.
    pub role: Role,
    /// The TLS exporter value of this connection.
    pub exporter: [u8; 32],
    /// The key that the server presented on it.
    pub server: Fingerprint,
    /// The key that the joiner presented on it.
    pub joiner: Fingerprint,
}

impl Transcript {
    /// Returns the bytes to sign: every field with its length (2 bytes, big-endian) before it, in this order: protocol
    /// label, cluster, invitation, name, role as text, exporter value, server's and joiner's fingerprint.
    pub fn bytes(&self) -> Vec<u8> {
        let role = self.role.to_string();
        let fields: [&[u8]; 8] = [
            PROTOCOL,
            &self.cluster.0,
            &self.invite.0,
            self.name.as_str().as_bytes(),
            role.as_bytes(),
            &self.exporter,
            &self.server.0,
            &self.joiner.0,
        ];
        let mut bytes = Vec::with_capacity(256);
        for field in fields {
            bytes.extend((field.len() as u16).to_be_bytes()); // None is longer than a name, 63 bytes.
            bytes.extend(field);
        }
        bytes
    }
}

/// Signs a transcript with the seed of a token.
pub fn prove(seed: &Seed, transcript: &Transcript) -> [u8; 64] {
    seed.key().sign(&transcript.bytes()).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
}

/// Returns whether `proof` signs this transcript with the seed whose public half is given.
pub fn verify(public: &[u8; 32], transcript: &Transcript, proof: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(&transcript.bytes(), proof).is_ok()
}

/// Returns the id of the member that joins by the `use_number`-th use (from 0) of an invitation.
///
/// Another invitation, another use or another key makes another member, so an enrolment that was removed never comes back
/// (R8); the same joiner trying again makes the same one.
pub fn member_id(cluster: ClusterId, invite: InviteId, joiner: Fingerprint, use_number: u32) -> MemberId {
    let mut hash = Context::new(&SHA256);
    for part in [&b"collective-member"[..], &cluster.0, &invite.0, &joiner.0, &use_number.to_be_bytes()] {
        hash.update(part); // Every part has a fixed length, so they need no separators.
    }
    MemberId(*hash.finish().as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
}

/// Returns the member that this joiner became by an earlier use of the same invitation.
///
/// A joiner whose `Welcome` was lost asks again with a token that is used by now; it gets its welcome, and no new
/// enrolment. To be asked only once the secret is proven.
pub fn enrolled(roster: &Roster, invite: InviteId, name: &MemberName, joiner: Fingerprint) -> Option<MemberId> {
    let member = roster.by_fingerprint(joiner).filter(|member| member.name == *name)?;
    (0..roster.uses(invite))
        .any(|use_number| member_id(roster.cluster, invite, joiner, use_number) == member.id)
        .then_some(member.id)
}

/// The joiner's first message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinHello {
    /// The oldest wire version it speaks.
    #[n(0)]
    pub wire_min: u16,
    /// The newest wire version it speaks.
    #[n(1)]
    pub wire_max: u16,
    /// The invitation.
    #[n(2)]
    pub id: InviteId,
    /// The name it asks for.
    #[n(3)]
    pub name: MemberName,
}

impl JoinHello {
    /// Picks the newest wire version that both sides speak.
    ///
    /// # Errors
    /// [`JoinRefusal::Version`] when there is none.
    pub fn wire(&self, ours: RangeInclusive<u16>) -> Result<u16, JoinRefusal> {
        let wire = self.wire_max.min(*ours.end());
        if wire >= self.wire_min && wire >= *ours.start() { Ok(wire) } else { Err(JoinRefusal::Version) }
    }
}

/// The joiner's second message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinProof {
    /// The signature of the [`Transcript`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub proof: [u8; 64],
    /// Where the joiner can be reached; at most [`ADDRESSES_MAX`].
    #[cbor(n(1), decode_with = "decode_addresses")]
    pub addresses: Vec<SocketAddr>,
    /// Its software version, for people.
    #[cbor(n(2), decode_with = "decode_text")]
    pub software: String,
}

/// The server's messages: first `Challenge` or `Refused`, then `Welcome` or `Refused`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
#[expect(clippy::large_enum_variant, reason = "one a join: the large variant is the one that is wanted")]
pub enum JoinAnswer {
    /// What the joiner needs to know to sign; plausible whether the invitation exists or not.
    #[n(0)]
    Challenge {
        /// The wire version to go on with.
        #[n(0)]
        wire: u16,
        /// The collective.
        #[n(1)]
        cluster: ClusterId,
        /// The role that goes with the invitation.
        #[n(2)]
        role: Role,
    },
    /// The joiner is a member now.
    #[n(1)]
    Welcome {
        /// The roster that has it.
        #[n(0)]
        roster: Roster,
        /// Which member it is.
        #[n(1)]
        member: MemberId,
        /// Where the members were reached last.
        #[cbor(n(2), decode_with = "decode_address_book")]
        addresses: Vec<(MemberId, Vec<SocketAddr>)>,
    },
    /// The joiner is no member.
    #[n(2)]
    Refused {
        /// The exit code of `collective join`; see [`JoinRefusal::exit_code`].
        #[n(0)]
        code: u8,
        /// One sentence for people.
        #[cbor(n(1), decode_with = "decode_text")]
        message: String,
    },
}

impl From<JoinRefusal> for JoinAnswer {
    fn from(refusal: JoinRefusal) -> Self {
        Self::Refused { code: refusal.exit_code(), message: refusal.to_string() }
    }
}

/// Why somebody may not join. Only [`Self::Undecided`] may have changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The secret is wrong, or the invitation unknown, revoked, burnt or for another name: one text for all of them.
    #[error("Invalid token")]
    Invalid,
    /// The secret is right, but too late.
    #[error("The invitation has expired; ask for a new one")]
    Expired,
    /// The secret is right, but was used as often as it may be.
    #[error("The invitation was used already; ask for a new one")]
    Used,
    /// A living member has that name, or another member has that key.
    #[error("A member with that name or key exists already; delete it first or choose another name")]
    Exists,
    /// The inviter cannot change the roster now.
    #[error("Collective does not have quorum; try again when it has")]
    NoQuorum,
    /// The two releases have no wire version in common.
    #[error("The releases of joiner and collective are too far apart; upgrade the older one")]
    Version,
    /// The roster is full.
    #[error("The collective is full")]
    Full,
    /// The inviter is busy with other changes of the roster.
    #[error("The collective is busy with other changes; try again")]
    Busy,
    /// No majority confirmed the change in time. It may be confirmed later; the same token can be tried again.
    #[error("No majority confirmed the join in time; try again with the same token")]
    Undecided,
}

impl JoinRefusal {
    /// Returns the exit code of `collective join`.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Busy => 75,
            Self::Version => 76,
            Self::Invalid => 104,
            Self::NoQuorum => 106,
            Self::Exists => 108,
            Self::Undecided => 109,
            Self::Expired | Self::Used => 110,
        }
    }
}

impl From<RosterError> for JoinRefusal {
    /// Tells a joiner why its [`Change::Add`](crate::proto::roster::Change::Add) cannot be made.
    fn from(error: RosterError) -> Self {
        match error {
            RosterError::Full => Self::Full,
            RosterError::KeyInUse(_) | RosterError::IsMember(_) | RosterError::ReplacesVoter => Self::Exists,
            // What is left of adding: the invitation is used up, or its enrolment was removed since.
            _ => Self::Used,
        }
    }
}

fn decode_text<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<String, DecodeError> {
    let text = d.str()?;
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(DecodeError::message("a line of at most 300 bytes expected"));
    }
    Ok(text.to_owned())
}

fn decode_addresses<C>(d: &mut Decoder<'_>, context: &mut C) -> Result<Vec<SocketAddr>, DecodeError> {
    at_most(ADDRESSES_MAX, d.array_iter_with(context)?)
}

fn decode_address_book<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<(MemberId, Vec<SocketAddr>)>, DecodeError> {
    let book: Vec<(MemberId, Vec<SocketAddr>)> = at_most(MEMBERS_MAX, d.array_iter()?)?;
    if book.iter().any(|(_, addresses)| addresses.len() > ADDRESSES_MAX) {
        return Err(DecodeError::message("too many addresses"));
    }
    Ok(book)
}

/// Collects a list, and stops at the first item too many.
fn at_most<T>(max: usize, items: impl Iterator<Item = Result<T, DecodeError>>) -> Result<Vec<T>, DecodeError> {
    let mut list = Vec::new();
    for item in items {
        if list.len() == max {
            return Err(DecodeError::message("too many items"));
        }
        list.push(item?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::roster::Change;
    use crate::proto::roster::tests::{member, voters};
    use crate::proto::time::WallTime;
    use proptest::prelude::*;

    const INVITE: InviteId = InviteId([5; 8]);

    fn transcript() -> Transcript {
        Transcript {
            cluster: ClusterId([1; 16]),
            invite: INVITE,
            name: MemberName::new("mgt2").expect("valid"),
            role: Role::Voter,
            exporter: [2; 32],
            server: Fingerprint([3; 32]),
            joiner: Fingerprint([4; 32]),
        }
    }

    #[test]
    fn a_proof_holds_for_its_own_transcript_only() {
        let seed = Seed::new([7; 32]);
        let proof = prove(&seed, &transcript());
        assert!(verify(&seed.public(), &transcript(), &proof));
        assert!(!verify(&Seed::new([8; 32]).public(), &transcript(), &proof));
        assert!(!verify(&seed.public(), &transcript(), &[0; 64]));
        let t = transcript;
        for other in [
            Transcript { cluster: ClusterId([9; 16]), ..t() },
            Transcript { invite: InviteId([9; 8]), ..t() },
            Transcript { name: MemberName::new("mgt3").expect("valid"), ..t() },
            Transcript { role: Role::Witness, ..t() },
            Transcript { exporter: [9; 32], ..t() },
            Transcript { server: Fingerprint([9; 32]), ..t() },
            Transcript { joiner: Fingerprint([9; 32]), ..t() },
            Transcript { server: t().joiner, joiner: t().server, ..t() },
        ] {
            assert!(!verify(&seed.public(), &other, &proof), "{other:?}");
        }
    }

    #[test]
    fn the_signed_bytes_do_not_change() {
        let bytes = transcript().bytes();
        assert!(bytes.starts_with(b"\x00\x11collective-join/1\x00\x10\x01\x01"));
        assert_eq!(bytes[19 + 18 + 10..][..6], *b"\x00\x04mgt2");
        assert_eq!(bytes[19 + 18 + 10 + 6..][..7], *b"\x00\x05voter");
        assert_eq!(bytes.len(), 19 + 18 + 10 + 6 + 7 + 3 * 34);
    }

    #[test]
    fn every_enrolment_has_an_id_of_its_own() {
        let id = |cluster, invite, joiner, use_number| {
            member_id(ClusterId([cluster; 16]), InviteId([invite; 8]), Fingerprint([joiner; 32]), use_number)
        };
        assert_eq!(id(1, 2, 3, 4), id(1, 2, 3, 4));
        for other in [id(0, 2, 3, 4), id(1, 0, 3, 4), id(1, 2, 0, 4), id(1, 2, 3, 0)] {
            assert_ne!(id(1, 2, 3, 4), other);
        }
    }

    #[test]
    fn a_joiner_whose_welcome_was_lost_is_recognised_and_nobody_else_is() {
        let roster = voters(1);
        let joiner = Fingerprint([40; 32]);
        let id = member_id(roster.cluster, INVITE, joiner, 0);
        let name = MemberName::new("mgt2").expect("valid");
        let newcomer = crate::proto::roster::Member {
            id,
            name: name.clone(),
            fingerprints: vec![joiner],
            ..member(2, Role::Voter)
        };
        let change = Change::Add { member: newcomer, invite: INVITE, expires: WallTime(1_000), uses_max: 1 };
        assert_eq!(enrolled(&roster, INVITE, &name, joiner), None);
        let roster = roster.next(&change, WallTime(0)).expect("possible");
        assert_eq!(enrolled(&roster, INVITE, &name, joiner), Some(id));
        assert_eq!(enrolled(&roster, InviteId([6; 8]), &name, joiner), None);
        assert_eq!(enrolled(&roster, INVITE, &name, Fingerprint([41; 32])), None);
        assert_eq!(enrolled(&roster, INVITE, &MemberName::new("mgt3").expect("valid"), joiner), None);
        let roster = roster.next(&Change::Remove { id }, WallTime(0)).expect("possible");
        assert_eq!(enrolled(&roster, INVITE, &name, joiner), None, "R8");
    }

    #[test]
    fn the_newest_common_wire_version_is_picked() {
        let hello = |wire_min, wire_max| JoinHello { wire_min, wire_max, id: INVITE, name: transcript().name };
        assert_eq!(hello(1, 3).wire(1..=2), Ok(2));
        assert_eq!(hello(1, 3).wire(2..=9), Ok(3));
        assert_eq!(hello(3, 4).wire(1..=2), Err(JoinRefusal::Version));
        assert_eq!(hello(1, 2).wire(3..=4), Err(JoinRefusal::Version));
        assert_eq!(hello(2, 1).wire(1..=4), Err(JoinRefusal::Version));
    }

    #[test]
    fn every_refusal_has_the_exit_code_that_is_documented() {
        for (refusal, code) in [
            (JoinRefusal::Invalid, 104),
            (JoinRefusal::Expired, 110),
            (JoinRefusal::Used, 110),
            (JoinRefusal::Exists, 108),
            (JoinRefusal::NoQuorum, 106),
            (JoinRefusal::Version, 76),
            (JoinRefusal::Busy, 75),
            (JoinRefusal::Undecided, 109),
            (JoinRefusal::Full, 1),
            (JoinRefusal::from(RosterError::InviteUsed), 110),
            (JoinRefusal::from(RosterError::KeyInUse(transcript().name)), 108),
            (JoinRefusal::from(RosterError::ReplacesVoter), 108),
        ] {
            assert_eq!(refusal.exit_code(), code, "{refusal}");
            assert_eq!(JoinAnswer::from(refusal), JoinAnswer::Refused { code, message: refusal.to_string() });
        }
        assert_eq!(JoinRefusal::Invalid.to_string(), "Invalid token");
    }

    #[test]
    fn messages_read_back() {
        let addresses: Vec<SocketAddr> = ["10.0.0.1:1", "[::1]:2"].map(|text| text.parse().expect("valid")).into();
        let hello = JoinHello { wire_min: 1, wire_max: 2, id: INVITE, name: transcript().name };
        let bytes = minicbor::to_vec(&hello).expect("encodes");
        assert_eq!(minicbor::decode::<JoinHello>(&bytes).expect("decodes"), hello);
        let proof = JoinProof { proof: [7; 64], addresses: addresses.clone(), software: "0.1.0".into() };
        let bytes = minicbor::to_vec(&proof).expect("encodes");
        assert_eq!(minicbor::decode::<JoinProof>(&bytes).expect("decodes"), proof);
        let roster = voters(2);
        for answer in [
            JoinAnswer::Challenge { wire: 1, cluster: roster.cluster, role: Role::Witness },
            JoinAnswer::Welcome { roster, member: MemberId([2; 16]), addresses: vec![(MemberId([1; 16]), addresses)] },
            JoinRefusal::Invalid.into(),
        ] {
            let bytes = minicbor::to_vec(&answer).expect("encodes");
            assert_eq!(minicbor::decode::<JoinAnswer>(&bytes).expect("decodes"), answer);
        }
    }

    #[test]
    fn a_message_with_too_much_in_it_is_refused() {
        let address: SocketAddr = "10.0.0.1:1".parse().expect("valid");
        let proof = |count, text: &str| {
            let proof = JoinProof { proof: [7; 64], addresses: vec![address; count], software: text.into() };
            minicbor::decode::<JoinProof>(&minicbor::to_vec(&proof).expect("encodes")).is_ok()
        };
        assert!(proof(ADDRESSES_MAX, "0.1.0"));
        assert!(!proof(ADDRESSES_MAX + 1, "0.1.0"));
        assert!(!proof(0, &"x".repeat(TEXT_BYTES_MAX + 1)));
        assert!(!proof(0, "an escape \u{1b}[2J"));
        let welcome = |members, each| {
            let addresses = vec![(MemberId([1; 16]), vec![address; each]); members];
            let answer = JoinAnswer::Welcome { roster: voters(1), member: MemberId([2; 16]), addresses };
            minicbor::decode::<JoinAnswer>(&minicbor::to_vec(&answer).expect("encodes")).is_ok()
        };
        assert!(welcome(MEMBERS_MAX, 1));
        assert!(!welcome(MEMBERS_MAX + 1, 1));
        assert!(!welcome(1, ADDRESSES_MAX + 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in any::<Vec<u8>>()) {
            let _ = minicbor::decode::<JoinHello>(&bytes);
            let _ = minicbor::decode::<JoinProof>(&bytes);
            let _ = minicbor::decode::<JoinAnswer>(&bytes);
        }
    }
}
