//! The daemon of one member: parse, log, run.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use collective::actions;
use collective::config::DaemonArgs;
use collective::daemon::{self, Options};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How the C library's allocator is told to give back at once what is free: one arena, and every block of 128 KiB and more
/// is the system's own. By default these bounds grow with the largest block that was ever freed, and an import leaves
/// tens of megabytes behind that nobody uses.
const THRIFT: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

/// The daemon of one member of a collective
#[derive(Debug, Parser)]
#[command(name = "collectived", version, about)]
struct Arguments {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    if let Some(daemon) = guarded_daemon() {
        actions::keep_watch(daemon);
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    be_thrifty();
    let environment = std::env::vars().collect();
    let config = match arguments.daemon.load(environment) {
        Ok((config, _)) => config,
        Err(error) => {
            eprintln!("collectived: {error}");
            eprintln!("hint: collective config check");
            return ExitCode::from(78);
        }
    };
    let filter = config.log.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(filter);
    if std::io::stderr().is_terminal() {
        subscriber.with(logs).init();
    } else {
        subscriber.with(logs.json().flatten_event(true)).init();
    }
    // One thread: what comes in on the socket is nearly always for the loop, and every hand-over between threads costs
    // more than the work itself. The local API has its own thread, the store another.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            runtime.block_on(daemon::run(config, Options { guard: std::env::current_exe().ok(), ..Options::default() }))
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("collectived: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the process id of the daemon whose jobs this process shall watch, when it was started for that.
fn guarded_daemon() -> Option<u32> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == actions::GUARD_FLAG).then(|| arguments.next()?.parse().ok())?
}

/// Starts this program again with an environment that tells the allocator how to behave, unless it has one that says
/// anything about it. The allocator reads it before `main`, and there is no safe way to tell it later.
fn be_thrifty() {
    if std::env::vars_os().any(|(name, _)| name.as_encoded_bytes().starts_with(b"MALLOC_")) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).envs(THRIFT);
    if let Some(name) = std::env::args_os().next() {
        again.arg0(name);
    }
    // It only returns when it failed; then the daemon does what it is for, with more memory.
    let error = again.exec();
    eprintln!("collectived: cannot be started with a thrifty allocator: {error}");
}
