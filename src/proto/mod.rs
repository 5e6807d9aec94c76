//! The pure room: every decision, and nothing else.
//!
//! No clock, socket, file, task, random source or hash order is named here. Facts come in as events, decisions go out
//! as effects; see [`collective`].

pub mod attributes;
pub mod election;
pub mod identity;
pub mod inventory;
pub mod name;
pub mod noderange;
pub mod roster;
pub mod schema;
pub mod time;
