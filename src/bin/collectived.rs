//! The daemon of one member: parse, log, run.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use collective::actions;
use collective::config::DaemonArgs;
use collective::daemon::{self, Options};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
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
