//! The partition simulator.

fn main() {}
