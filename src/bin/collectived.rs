//! The daemon of one member.

fn main() {}
