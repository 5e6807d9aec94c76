//! The partition simulator: shipped members in virtual time, on simulated networks, disks and clocks.
//!
//! Run `collective-sim list` for what it can show, and see docs/simulation.md.

mod audit;
mod bench;
mod case;
mod check;
mod cli;
mod clock;
mod disk;
mod enrol;
mod fault;
mod figures;
mod hash;
mod html;
mod inject;
mod mix;
mod model;
mod netns;
mod network;
mod planted;
mod queue;
mod quic;
mod report;
mod run;
mod scenario;
mod selftest;
mod shrink;
mod site;
mod spent;
mod step;
mod sweep;
mod trace;
mod workload;
mod world;

fn main() -> std::process::ExitCode {
    cli::main()
}
