//! The partition simulator: shipped members in virtual time, on simulated networks, disks and clocks.
//!
//! Run `collective-sim list` for what it can show, and see docs/simulation.md.

mod check;
mod cli;
mod clock;
mod disk;
mod enrol;
mod fault;
mod inject;
mod mix;
mod network;
mod quic;
mod run;
mod scenario;
mod site;
mod step;
mod workload;
mod world;

fn main() -> std::process::ExitCode {
    cli::main()
}
