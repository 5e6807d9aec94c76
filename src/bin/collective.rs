//! The command line of a collective.

fn main() {}
