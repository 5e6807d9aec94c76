//! The pure room: every decision, and nothing else.
//!
//! No clock, socket, file, task, random source or hash order is named here. Facts come in as events, decisions go out
//! as effects; see [`collective`].

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod attributes;
pub mod collective;
pub mod document;
pub mod elastic;
pub mod election;
pub mod epoch;
pub mod facts;
pub mod identity;
pub mod inventory;
pub mod invite;
pub mod lease;
pub mod liveness;
pub mod message;
pub mod name;
pub mod noderange;
pub mod planted;
pub mod quorum;
pub mod record;
pub mod request;
pub mod roster;
pub mod schema;
pub mod swim;
pub mod sync;
pub mod time;
