//! `attrib`: Confluent's nodeattrib and nodegroupattrib in one command.

use std::path::Path;
use std::time::Duration;

use super::args::AttribArgs;
use super::context::{ANSWER_TIMEOUT, Context, Failure, refuse, unexpected};
use super::render::Form;
use super::words::age;
use crate::proto::name::GroupName;
use crate::proto::request::{ErrorCode, Request, Response, Target};

/// How long a write may take: a majority has to store it.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in the largest file of assignments.
const SET_BYTES_MAX: u64 = 512 << 10;

/// Shows the values that concurrent writers left.
pub(super) fn conflicts(cx: &mut Context<'_, '_>, nodes: Option<String>) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::Conflicts { nodes }, Form::Plain)
}

/// Reads, sets or clears attributes.
pub(super) fn attrib(cx: &mut Context<'_, '_>, mut args: AttribArgs) -> Result<u8, Failure> {
    let target = match &args.group {
        Some(group) => {
            let wrong = |error| refuse(ErrorCode::BadData, format!("{error}"), "collective group list");
            Target::Group(GroupName::new(group).map_err(wrong)?)
        }
        // Clap sees to it that there is a word when there is no group.
        None if args.words.is_empty() => return Err(refuse(ErrorCode::Usage, "a noderange is needed", "")),
        None => Target::Nodes(args.words.remove(0)),
    };
    let words = std::mem::take(&mut args.words);
    let (mut assignments, names): (Vec<_>, Vec<_>) = words.into_iter().partition(|word| word.contains('='));
    if args.clear {
        if !assignments.is_empty() {
            let message = "cannot clear and set attributes at the same time";
            return Err(refuse(ErrorCode::Usage, message, "collective attrib NODERANGE -c ATTR..."));
        }
        if names.is_empty() {
            let hint = "collective attrib NODERANGE -c ATTR...";
            return Err(refuse(ErrorCode::Usage, "no attribute to clear is named", hint));
        }
        return set(cx, &args, target, Vec::new(), names);
    }
    if args.prompt || args.environment {
        if names.is_empty() {
            let hint = "collective attrib NODERANGE -p ATTR...";
            return Err(refuse(ErrorCode::Usage, "no attribute to set is named", hint));
        }
        for name in &names {
            let value = if args.prompt { prompt(cx, name)? } else { variable(cx, name)? };
            assignments.push(format!("{name}={value}"));
        }
    } else if !names.is_empty() && (!assignments.is_empty() || args.set.is_some()) {
        let message = format!("cannot read `{}` and set attributes at the same time", names.join(" "));
        return Err(refuse(ErrorCode::Usage, message, "name values as ATTR=VALUE, or read in a command of its own"));
    }
    if let Some(file) = &args.set {
        assignments.extend(read_assignments(cx, file)?);
    }
    if assignments.is_empty() && args.set.is_none() {
        return read(cx, &args, target, names);
    }
    set(cx, &args, target, assignments, Vec::new())
}

/// Prints attributes.
fn read(cx: &mut Context<'_, '_>, args: &AttribArgs, target: Target, names: Vec<String>) -> Result<u8, Failure> {
    // Confluent's two words in front of names: what is set, and everything there is.
    let names = match names.split_first() {
        Some((first, rest)) if first == "current" => rest.to_vec(),
        Some((first, [])) if first == "all" => vec!["*".to_owned()],
        Some((first, rest)) if first == "all" => rest.to_vec(),
        _ => names,
    };
    let request = Request::Attributes { target, names, blame: args.blame, stale: args.stale };
    let response = cx.ask(&request, ANSWER_TIMEOUT)?;
    let Response::Attributes(found) = &response else { return Err(unexpected()) };
    if found.stale {
        let since = found.stale_for_ms.map(|ms| format!(" for {}", age(ms))).unwrap_or_default();
        cx.note(&format!("! STALE: no quorum{since}; this is the member's own copy"))?;
    }
    cx.print(&response, if args.blame { Form::Blame } else { Form::Plain })?;
    Ok(0)
}

/// Sets and clears, and asks the person first when very many nodes are meant.
fn set(
    cx: &mut Context<'_, '_>,
    args: &AttribArgs,
    target: Target,
    assignments: Vec<String>,
    clear: Vec<String>,
) -> Result<u8, Failure> {
    let wait = args.wait.into();
    let request = |yes| Request::SetAttributes {
        target: target.clone(),
        assignments: assignments.clone(),
        clear: clear.clone(),
        wait,
        dry_run: args.dry_run,
        yes,
    };
    change_many(cx, request, args.yes)
}

/// Sends a change that is refused when it touches very many nodes, unless `yes` or a person insists.
pub(super) fn change_many(
    cx: &mut Context<'_, '_>,
    request: impl Fn(bool) -> Request,
    yes: bool,
) -> Result<u8, Failure> {
    match cx.change(&request(yes), WRITE_TIMEOUT) {
        Err(Failure::Refused(refusal)) if refusal.code == ErrorCode::NeedsForce && !yes => {
            if cx.confirm(&format!("{}. Go on?", refusal.message))? {
                cx.change(&request(true), WRITE_TIMEOUT)
            } else {
                Err(refusal.into())
            }
        }
        done => done,
    }
}

/// Asks for a value twice, unseen.
fn prompt(cx: &mut Context<'_, '_>, name: &str) -> Result<String, Failure> {
    if !cx.io.stdin_is_terminal {
        let hint = "-e takes values from variables, --set - from stdin";
        return Err(refuse(ErrorCode::Usage, "there is no terminal to ask on", hint));
    }
    let failed = |error| refuse(ErrorCode::Failure, format!("cannot ask for {name}: {error}"), "");
    let value = (cx.io.read_secret)(&format!("Enter value for {name}: ")).map_err(failed)?;
    let again = (cx.io.read_secret)(&format!("Confirm value for {name}: ")).map_err(failed)?;
    if value != again {
        return Err(refuse(ErrorCode::BadData, format!("the two values for {name} differ"), "try again"));
    }
    Ok(value)
}

/// Takes a value from the variable of an attribute: `custom_owner` or `CUSTOM_OWNER` for `custom.owner`.
fn variable(cx: &Context<'_, '_>, name: &str) -> Result<String, Failure> {
    let lower = name.replace(['.', '-'], "_");
    let upper = lower.to_ascii_uppercase();
    cx.environment.get(&lower).or_else(|| cx.environment.get(&upper)).cloned().ok_or_else(|| {
        refuse(ErrorCode::Usage, format!("the variable {upper} is not set"), format!("export {upper}=VALUE"))
    })
}

/// Reads a file of assignments; blank lines and lines that begin with `#` are skipped.
fn read_assignments(cx: &mut Context<'_, '_>, file: &Path) -> Result<Vec<String>, Failure> {
    let text = cx.read_file(file, SET_BYTES_MAX)?;
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            if line.contains('=') {
                return Ok(line.to_owned());
            }
            let message = format!("{}:{number}: {line:?} is no assignment", file.display());
            Err(refuse(ErrorCode::BadData, message, "write one `name=value` a line"))
        })
        .collect()
}
