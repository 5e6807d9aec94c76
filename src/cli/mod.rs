//! The command line: builds a request, prints the response; no decision between.
//!
//! [`run`] takes everything from outside (arguments, environment, streams), so that tests reach every exit code.

mod args;
mod attributes;
mod context;
mod data;
mod local;
mod members;
mod personality;
mod render;
mod topics;
mod watch;
mod words;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Read, Write};

use clap::Parser;
use clap::error::{ContextKind, ErrorKind};

pub use args::{DemoArgs, InitArgs};

use self::args::{AttribAction, Cli, Command, GroupAction, InvitesAction, NodeAction};
use self::context::{Context, Failure};
use crate::config::Environment;
use crate::proto::request::{ErrorCode, Refusal, Refused, Response};

/// The three streams, and what is at their other ends.
pub struct Io<'a> {
    /// Where tokens, inventories and answers to questions come from.
    pub stdin: &'a mut dyn Read,
    /// Where data goes.
    pub stdout: &'a mut dyn Write,
    /// Where hints, notes and errors go.
    pub stderr: &'a mut dyn Write,
    /// Whether stdin is a terminal, so that a person can be asked.
    pub stdin_is_terminal: bool,
    /// Whether stdout is a terminal, so that words may be coloured.
    pub stdout_is_terminal: bool,
    /// Shows a prompt on the terminal and reads a line unseen.
    pub read_secret: fn(&str) -> io::Result<String>,
}

/// What the command line cannot do itself, as it knows nothing of QUIC, stores and documents.
#[derive(Clone, Copy)]
pub struct Offline {
    /// Runs the demo; returns the exit code.
    pub demo: fn(DemoArgs) -> u8,
    /// Makes an identity and a collective of one on disk, when no daemon runs.
    pub init: fn(InitArgs, &Environment) -> Response,
}

/// Runs one command line and returns its exit code.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    io: &mut Io<'_>,
    offline: &Offline,
) -> u8 {
    let args = personality::translate(args.into_iter().collect());
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, wants_json(&args, environment), io),
    };
    let json = cli.global.output.map_or_else(
        || wants_json(&args, environment),
        |format| matches!(format, args::Format::Json | args::Format::Jsonl),
    );
    let done = Context::new(cli.global, environment, io, offline).and_then(|mut cx| command(&mut cx, cli.command));
    match done.and_then(|code| io.stdout.flush().map(|()| code).map_err(Failure::Output)) {
        Ok(code) => code,
        Err(Failure::Refused(refusal)) => report(&refusal, json, io),
        // Whoever read the output has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(Failure::Output(error)) => {
            report(&Refusal::new(ErrorCode::Failure, format!("cannot write the output: {error}"), ""), false, io)
        }
    }
}

/// Runs the command.
fn command(cx: &mut Context<'_, '_>, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Init(args) => members::init(cx, args),
        Command::Gencert { rotate } => members::gencert(cx, rotate),
        Command::Invite(args) => members::invite(cx, &args),
        Command::Invites { action: None | Some(InvitesAction::List) } => members::invites(cx),
        Command::Invites { action: Some(InvitesAction::Revoke { name }) } => members::revoke(cx, &name),
        Command::Join(args) => members::join(cx, args),
        Command::Leave => members::leave(cx),
        Command::Delete { member, force, dry_run } => members::delete(cx, &member, force, dry_run),
        Command::Show => members::show(cx),
        Command::Status { watch } => watch::status(cx, watch),
        Command::Members { expression } => members::members(cx, expression),
        Command::View { matrix } => members::view(cx, matrix),
        Command::Quorum { without } => members::quorum(cx, without),
        Command::Ping { member, count } => members::ping(cx, &member, count),
        Command::Wait(args) => watch::wait(cx, &args),
        Command::Check => watch::check(cx),
        Command::Role { member, role } => members::role(cx, &member, role.into()),
        Command::Voters { ideal, replace_after } => members::voters(cx, ideal, replace_after),
        Command::Drain { member } => members::drain(cx, &member, true),
        Command::Undrain { member } => members::drain(cx, &member, false),
        Command::Attrib(args) => match args.action {
            Some(AttribAction::Conflicts { noderange }) => attributes::conflicts(cx, noderange),
            None => attributes::attrib(cx, args),
        },
        Command::Node { action } => match action {
            NodeAction::List { noderange, stale } => data::list_nodes(cx, noderange, stale),
            NodeAction::Define { nodes, assignments } => data::define_nodes(cx, nodes, assignments),
            NodeAction::Remove { noderange, dry_run, yes } => data::remove_nodes(cx, noderange, dry_run, yes),
            NodeAction::Import { file, format, dry_run } => data::import(cx, &file, format, dry_run),
        },
        Command::Group { action } => match action {
            GroupAction::List { stale } => data::list_groups(cx, stale),
            GroupAction::Define { groups, assignments } => data::define_groups(cx, groups, assignments),
            GroupAction::Remove { groups, dry_run } => data::remove_groups(cx, groups, dry_run),
        },
        Command::Managers { noderange, why, by_member } => data::managers(cx, noderange, why, by_member),
        Command::Move { noderange, to, dry_run } => data::move_nodes(cx, noderange, &to, dry_run),
        Command::Range { action } => data::range(cx, action),
        Command::Run { noderange, action, arguments } => data::run(cx, noderange, action, arguments),
        Command::Events(args) => watch::events(cx, &args),
        Command::Hooks { action } => local::hooks(cx, action),
        Command::Config { action } => local::config(cx, action),
        Command::Gen { action } => local::generate(cx, action),
        Command::Demo(args) => Ok((cx.offline.demo)(args)),
        Command::Help { words } => topics::help(cx, &words),
    }
}

/// Reports a refusal: a line and a hint on stderr, or a document on stdout.
fn report(refusal: &Refusal, json: bool, io: &mut Io<'_>) -> u8 {
    // There is nowhere left to complain to when these streams are closed; the exit code still tells.
    if json {
        let document = serde_json::to_string(&Refused { error: refusal.clone() }).unwrap_or_default();
        let _ = writeln!(io.stdout, "{document}").and_then(|()| io.stdout.flush());
    } else {
        let _ = writeln!(io.stderr, "collective: {}", refusal.message);
        if !refusal.hint.is_empty() {
            let _ = writeln!(io.stderr, "hint: {}", refusal.hint);
        }
    }
    refusal.exit
}

/// Answers a command line that clap did not take: help and version are no errors, the rest is a usage error.
fn usage(error: &clap::Error, json: bool, io: &mut Io<'_>) -> u8 {
    let text = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = write!(io.stdout, "{text}").and_then(|()| io.stdout.flush());
            return 0;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(io.stderr, "{text}");
            return ErrorCode::Usage.exit();
        }
        _ => {}
    }
    let text = text.to_string();
    let words = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let message = words.strip_prefix("error: ").unwrap_or(&words);
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned));
    let usage = error.get(ContextKind::Usage).map(|usage| usage.to_string());
    let usage =
        usage.as_deref().and_then(|usage| usage.trim().strip_prefix("Usage: ")).map(|usage| format!("usage: {usage}"));
    let hint = tip.or(usage).unwrap_or_else(|| "collective --help".to_owned());
    report(&Refusal::new(ErrorCode::Usage, message, hint), json, io)
}

/// Returns whether the words ask for JSON, also when they cannot be parsed.
fn wants_json(args: &[OsString], environment: &Environment) -> bool {
    let words: Vec<_> = args.iter().filter_map(|word| word.to_str()).collect();
    let named = words.windows(2).find_map(|pair| matches!(pair[0], "-o" | "--output").then_some(pair[1]));
    let joined = words.iter().find_map(|word| word.strip_prefix("--output=").or(word.strip_prefix("-o")));
    let format = named.or(joined.filter(|word| !word.is_empty()));
    matches!(format.or(environment.get("COLLECTIVE_OUTPUT").map(String::as_str)), Some("json" | "jsonl"))
}
