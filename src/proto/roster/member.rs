//! One member as the roster has it.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::proto::identity::{Fingerprint, MemberId};
use crate::proto::name::MemberName;

/// What a member may do in a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes and manages nodes.
    #[n(0)]
    Voter,
    /// Manages nodes and holds all data, without a vote.
    #[n(1)]
    Nonvoting,
    /// Votes and holds all data, but never manages a node.
    #[n(2)]
    Witness,
}

impl Role {
    /// Returns whether members of this role vote once they have caught up.
    pub const fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Witness)
    }

    /// Returns whether members of this role may manage nodes.
    pub const fn manages(self) -> bool {
        matches!(self, Self::Voter | Self::Nonvoting)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Voter => "voter",
            Self::Nonvoting => "nonvoting",
            Self::Witness => "witness",
        })
    }
}

/// One member of a decided epoch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Member {
    /// The enrolment.
    #[n(0)]
    pub id: MemberId,
    /// The name, unique in the roster.
    #[n(1)]
    pub name: MemberName,
    /// What the member may do.
    #[n(2)]
    pub role: Role,
    /// Whether the member is still catching up. R3: a learner has no vote, whatever its role.
    #[n(3)]
    pub learner: bool,
    /// The keys it may present, oldest first: one, or two while a key is being rotated.
    #[n(4)]
    pub fingerprints: Vec<Fingerprint>,
}

impl Member {
    /// Returns whether this member's grant counts.
    pub const fn is_voter(&self) -> bool {
        self.role.votes() && !self.learner
    }
}
