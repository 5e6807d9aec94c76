//! The pure room: every decision, and nothing else.
//!
//! No clock, socket, file, task, random source or hash order is named here. Facts come in as events, decisions go out
//! as effects; see [`collective`].

pub mod epoch;
pub mod document;
pub mod attributes;
pub mod identity;
pub mod lease;
pub mod liveness;
pub mod name;
pub mod request;
pub mod quorum;
pub mod roster;
pub mod swim;
pub mod sync;
pub mod noderange;
pub mod schema;
pub mod time;
