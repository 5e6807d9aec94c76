//! Commands about nodes, groups, their managers and actions.

use std::path::Path;
use std::time::Duration;

use super::args::{Format, ImportArg, RangeAction};
use super::attributes::{WRITE_TIMEOUT, change_many};
use super::context::{Context, Failure, member, refuse, unexpected};
use super::render::Form;
use crate::proto::request::{ErrorCode, ImportFormat, Request, Response};

/// How long an import may take.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long actions may take, each of which has a deadline of its own.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes in the largest inventory; what the daemon takes, less its quoting.
const IMPORT_BYTES_MAX: u64 = 32 << 20;

/// Names nodes.
pub(super) fn list_nodes(cx: &mut Context<'_, '_>, nodes: Option<String>, stale: bool) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::ListNodes { nodes, stale }, Form::Plain)
}

/// Makes nodes.
pub(super) fn define_nodes(cx: &mut Context<'_, '_>, nodes: String, assignments: Vec<String>) -> Result<u8, Failure> {
    cx.change(&Request::DefineNodes { nodes, assignments }, WRITE_TIMEOUT)
}

/// Removes nodes.
pub(super) fn remove_nodes(cx: &mut Context<'_, '_>, nodes: String, dry_run: bool, yes: bool) -> Result<u8, Failure> {
    change_many(cx, |yes| Request::RemoveNodes { nodes: nodes.clone(), dry_run, yes }, yes)
}

/// Takes in an inventory.
pub(super) fn import(
    cx: &mut Context<'_, '_>,
    file: &Path,
    format: Option<ImportArg>,
    dry_run: bool,
) -> Result<u8, Failure> {
    let document = cx.read_file(file, IMPORT_BYTES_MAX)?;
    let guess = if document.trim_start().starts_with('{') { ImportFormat::Ansible } else { ImportFormat::Csv };
    let format = format.map_or(guess, Into::into);
    cx.change(&Request::Import { format, document, dry_run }, IMPORT_TIMEOUT)
}

/// Names groups.
pub(super) fn list_groups(cx: &mut Context<'_, '_>, stale: bool) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::ListGroups { stale }, Form::Plain)
}

/// Makes groups.
pub(super) fn define_groups(cx: &mut Context<'_, '_>, groups: String, assignments: Vec<String>) -> Result<u8, Failure> {
    cx.change(&Request::DefineGroups { groups, assignments }, WRITE_TIMEOUT)
}

/// Removes groups.
pub(super) fn remove_groups(cx: &mut Context<'_, '_>, groups: String, dry_run: bool) -> Result<u8, Failure> {
    cx.change(&Request::RemoveGroups { groups, dry_run }, WRITE_TIMEOUT)
}

/// Shows who manages what.
pub(super) fn managers(
    cx: &mut Context<'_, '_>,
    nodes: Option<String>,
    why: bool,
    by_member: bool,
) -> Result<u8, Failure> {
    let form = match (why, by_member) {
        (true, _) => Form::Why,
        (_, true) => Form::ByMember,
        _ => Form::Plain,
    };
    cx.ask_and_print(&Request::Managers { nodes, why }, form)
}

/// Sets the preferred manager.
pub(super) fn move_nodes(cx: &mut Context<'_, '_>, nodes: String, to: &str, dry_run: bool) -> Result<u8, Failure> {
    cx.change(&Request::Move { nodes, to: member(to)?, dry_run }, WRITE_TIMEOUT)
}

/// Expands, folds or counts.
pub(super) fn range(cx: &mut Context<'_, '_>, action: RangeAction) -> Result<u8, Failure> {
    let (args, form) = match action {
        RangeAction::Expand(args) => (args, Form::Plain),
        RangeAction::Fold(args) => (args, Form::Folded),
        RangeAction::Count(args) => (args, Form::Count),
    };
    cx.ask_and_print(&Request::Expand { expression: args.expressions.join(","), stale: args.stale }, form)
}

/// Runs an action; exit code 1 when it failed on any node.
pub(super) fn run(
    cx: &mut Context<'_, '_>,
    nodes: String,
    action: String,
    arguments: Vec<String>,
) -> Result<u8, Failure> {
    let response = cx.ask(&Request::Run { nodes, action, arguments }, RUN_TIMEOUT)?;
    cx.print(&response, Form::Plain)?;
    let Response::Ran(ran) = &response else { return Err(unexpected()) };
    let mut code = 0;
    for result in &ran.results {
        let trouble = match (&result.error, result.status) {
            (Some(error), _) => error.message.clone(),
            (None, Some(0)) => continue,
            (None, Some(status)) => format!("exit status {status}"),
            (None, None) => "did not run to its end".to_owned(),
        };
        code = ErrorCode::Failure.exit();
        if matches!(cx.format, Format::Table | Format::Wide) {
            writeln!(cx.io.stderr, "{}: {trouble}", result.node)?;
        }
    }
    if ran.results.is_empty() {
        return Err(refuse(ErrorCode::NotFound, "no node was meant", "collective range expand NODERANGE"));
    }
    Ok(code)
}
