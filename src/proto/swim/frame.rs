//! The frames of the prober: what one member asks another about life, and how it is answered.
//!
//! ```text
//!  prober              accused             helper
//!    | Ping ------------->|                   |      a datagram
//!    |<-------------- Ack |                   |      or, when none came within the probe timeout:
//!    | PingReq ---------------------------- ->|      to k helpers, datagrams
//!    | Ping ------------->|<------------ Ping |      on a stream; the helper's is a datagram
//!    |<-------------- Ack | Ack ------------->|
//!    |<-------------------------- IndirectAck |      or Nack, when the helper got no answer either
//! ```

use minicbor::{Decode, Encode};

use crate::proto::identity::MemberId;

/// Bytes in the longest encoded frame.
pub const FRAME_BYTES_MAX: usize = 100;

/// One frame between two members. At most [`FRAME_BYTES_MAX`] bytes, so it fits any datagram.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SwimFrame {
    /// Asks for an [`SwimFrame::Ack`].
    #[n(0)]
    #[cbor(map)]
    Ping {
        /// Comes back in the answer.
        #[n(0)]
        seq: u32,
        /// The asker's own incarnation.
        #[n(1)]
        incarnation: u64,
        /// "I suspect you at this incarnation" (Lifeguard's buddy system): the accused is the first to know.
        #[n(2)]
        accuses: Option<u64>,
        /// Whether the answer shall be sent reliably too.
        #[n(3)]
        reliable: bool,
    },
    /// Answers a ping.
    #[n(1)]
    #[cbor(map)]
    Ack {
        /// That of the ping.
        #[n(0)]
        seq: u32,
        /// The answerer's own incarnation.
        #[n(1)]
        incarnation: u64,
    },
    /// Asks a helper to ping the target.
    #[n(2)]
    #[cbor(map)]
    PingReq {
        /// Comes back in the answer.
        #[n(0)]
        seq: u32,
        /// Whom to ping.
        #[n(1)]
        target: MemberId,
    },
    /// Answers a ping request: the helper is well, but the target did not answer it in time.
    #[n(3)]
    #[cbor(map)]
    Nack {
        /// That of the request.
        #[n(0)]
        seq: u32,
    },
    /// Answers a ping request: the target answered the helper.
    #[n(4)]
    #[cbor(map)]
    IndirectAck {
        /// That of the request.
        #[n(0)]
        seq: u32,
        /// Who answered.
        #[n(1)]
        target: MemberId,
        /// The target's incarnation.
        #[n(2)]
        incarnation: u64,
    },
    /// Says farewell.
    #[n(5)]
    #[cbor(map)]
    Leave {
        /// The incarnation that ends.
        #[n(0)]
        incarnation: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest() -> [SwimFrame; 6] {
        let (seq, incarnation, target) = (u32::MAX, u64::MAX, MemberId([255; 16]));
        [
            SwimFrame::Ping { seq, incarnation, accuses: Some(u64::MAX), reliable: true },
            SwimFrame::Ack { seq, incarnation },
            SwimFrame::PingReq { seq, target },
            SwimFrame::Nack { seq },
            SwimFrame::IndirectAck { seq, target, incarnation },
            SwimFrame::Leave { incarnation },
        ]
    }

    #[test]
    fn every_frame_reads_back_and_is_small() {
        for frame in largest() {
            let bytes = minicbor::to_vec(&frame).expect("a Vec takes everything");
            assert!(bytes.len() <= FRAME_BYTES_MAX, "{frame:?} has {} bytes", bytes.len());
            assert_eq!(minicbor::decode::<SwimFrame>(&bytes).expect("its own encoding"), frame);
        }
    }

    #[test]
    fn a_cut_or_unknown_frame_is_an_error() {
        for frame in largest() {
            let bytes = minicbor::to_vec(&frame).expect("a Vec takes everything");
            for end in 0..bytes.len() {
                assert!(minicbor::decode::<SwimFrame>(&bytes[..end]).is_err(), "{frame:?} cut at {end}");
            }
        }
        assert!(minicbor::decode::<SwimFrame>(&[0x82, 0x18, 99, 0xa0]).is_err());
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        // [1, {0: 7, 1: 9, 200: "new"}]
        let bytes = [0x82, 1, 0xa3, 0, 7, 1, 9, 0x18, 200, 0x63, b'n', b'e', b'w'];
        assert_eq!(minicbor::decode::<SwimFrame>(&bytes).ok(), Some(SwimFrame::Ack { seq: 7, incarnation: 9 }));
    }
}
