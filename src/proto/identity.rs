//! Identities: fixed-size ids and the text in which people see them.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

/// A text that is not the hexadecimal form of an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {bytes} bytes in hexadecimal")]
pub struct IdError {
    /// The text, cut to 80 characters.
    pub text: String,
    /// How many bytes were expected.
    pub bytes: usize,
}

/// Compares bytes of one length, eight at a time: everything is looked up by ids, and a call that compares any number of
/// bytes would take longer than these.
pub(super) fn cmp_bytes<const N: usize>(left: &[u8; N], right: &[u8; N]) -> Ordering {
    const { assert!(N.is_multiple_of(8), "every id is of whole words") };
    for (left, right) in left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0) {
        if left != right {
            return u64::from_be_bytes(*left).cmp(&u64::from_be_bytes(*right));
        }
    }
    Ordering::Equal
}

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type(pub [u8; $bytes]);

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> Ordering {
                cmp_bytes(&self.0, &other.0)
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $type {
            /// Writes the first eight digits: enough to tell ids apart in a trace.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0[..4]))
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                HEXLOWER
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or_else(|| IdError { text: text.chars().take(80).collect(), bytes: $bytes })
            }
        }

        impl<C> Encode<C> for $type {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
                e.bytes(&self.0)?;
                Ok(())
            }
        }

        impl<'b, C> Decode<'b, C> for $type {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                d.bytes()?
                    .try_into()
                    .map(Self)
                    .map_err(|_| DecodeError::message(concat!("an id of ", $bytes, " bytes expected")))
            }
        }
    };
}

id!(
    /// The SHA-256 of a member's public key (the SubjectPublicKeyInfo of its certificate).
    Fingerprint, 32
);
id!(
    /// One enrolment of one member. Inviting a name again makes a new id, so an evicted enrolment never comes back.
    MemberId, 16
);
id!(
    /// One collective, drawn when its first member starts.
    ClusterId, 16
);
id!(
    /// One run of one member's daemon; it tells apart the few runs of one member, so half of a [`MemberId`] is plenty.
    SessionId, 8
);
id!(
    /// One pending invitation.
    InviteId, 8
);
id!(
    /// The SHA-256 of an encoded roster.
    RosterHash, 32
);
id!(
    /// The first bytes of a [`RosterHash`]: they tell two rosters of one version apart, which nobody makes on purpose.
    RosterMark, 8
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = MemberId([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("07".parse::<MemberId>().is_err());
        assert!("zz".repeat(16).parse::<MemberId>().is_err());
    }

    #[test]
    fn ids_are_ordered_as_their_bytes_are() {
        let ids: Vec<_> =
            (0..64_u8).map(|i| MemberId(std::array::from_fn(|at| i.rotate_left(at as u32 % 8)))).collect();
        for a in &ids {
            for b in &ids {
                assert_eq!(a.cmp(b), a.0.cmp(&b.0));
            }
        }
    }
}
