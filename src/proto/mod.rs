//! The pure room: every decision, and nothing else.
//!
//! No clock, socket, file, task, random source or hash order is named here. Facts come in as events, decisions go out
//! as effects; see [`collective`].

pub mod epoch;
pub mod identity;
pub mod invite;
pub mod name;
pub mod roster;
pub mod time;
