//! Black-box tests: the real programs, over real QUIC, on loopback and in network namespaces of their own.
//!
//! Every test makes its own members in a temporary directory, ends only what it started, and waits for conditions,
//! never for a time. Tests named `s1_...` to `s14_...` are the situations of the feature table.

mod abuse;
mod actions;
mod answers;
mod data;
mod joining;
mod lab;
mod members;
mod nodes;
mod partitions;
mod site;
mod tidy;
mod watch;
