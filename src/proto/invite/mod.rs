//! Invitations: who may join, proven by a token that is shown once and kept by nobody but the invited.
//!
//! ```text
//!   joiner                                    inviter
//!     |  TLS: accepts only the key in the token  |
//!     | ---- JoinHello(id, name) ------------->  |
//!     | <--- Challenge(cluster, role) ---------  |  also for ids it never heard of
//!     | ---- JoinProof(signature) ------------>  |  checks the proof, then decides the epoch with the new member
//!     | <--- Welcome(roster) | Refused --------  |
//! ```
//!
//! The token holds an Ed25519 seed, the inviter's [`Invites`] only its public half. The joiner signs a [`Transcript`]
//! that names both ends of this very connection, so a proof is worth nothing on another one. The invitation is used up by
//! the epoch that adds the member ([`Change::Add`](super::roster::Change::Add)), so of two racing joins one wins. I6.

mod book;
mod join;
mod token;

pub use book::{
    ATTEMPTS_MAX, Created, INVITES_MAX, Invite, InviteError, InviteState, InviteTerms, Invites, TTL_DEFAULT, TTL_MAX,
    TTL_MIN, USES_MAX,
};
pub use join::{
    ADDRESSES_MAX, JOIN_BYTES_MAX, JoinAnswer, JoinHello, JoinProof, JoinRefusal, Transcript, WELCOME_BYTES_MAX,
    enrolled, member_id, prove, verify,
};
pub use token::{Seed, TOKEN_ADDRESSES_MAX, Token, TokenError};
