//! Collective: a few management servers that act as one.
//!
//! *Gossip finds, leases decide, CRDTs store.* Members find one another by SWIM-style gossip carried on QUIC, the
//! right to act is a lease granted by a majority of the voters of a persisted roster, and node attributes are
//! Automerge documents that resync in full when a member reconnects.
//!
//! # The rooms
//!
//! | room | what it holds |
//! |---|---|
//! | [`proto`] | every decision, as one pure state machine: [`proto::collective::Collective`] |
//! | [`gossip`] | chitchat over any transport, and the one place where its words are translated |
//! | [`net`] | QUIC: TLS with pinned fingerprints, the endpoint, links, the join handshake |
//! | [`store`] | what must survive a crash |
//! | [`admin`] | the local API over two unix sockets, client and server |
//! | [`actions`] | hooks and node actions, run with a deadline and a fencing token |
//! | [`daemon`] | the one loop: events in, effects out, in order |
//! | [`cli`] | the command line: builds a request, prints the response |
//!
//! `proto` imports nothing from above it. docs/architecture.md says who may import whom, and `tests/tidy.rs` checks it.

pub mod actions;
pub mod proto;
pub mod store;
