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
mod model;
mod network;
mod planted;
mod run;
mod scenario;
mod site;
mod step;
mod workload;
mod world;

fn main() -> std::process::ExitCode {
    cli::main()
}
