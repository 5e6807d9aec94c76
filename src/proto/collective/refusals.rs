//! Refusals: errors of the rooms below in an administrator's words, each with the next command to type.

use crate::proto::attributes::{AttributeError, Problem};
use crate::proto::noderange::{NoderangeError, NoderangeProblem};
use crate::proto::request::{ErrorCode, Refusal};
use crate::proto::roster::{Change, RosterError};

pub(super) fn refuse_range(error: &NoderangeError) -> Refusal {
    let code = match error.problem {
        NoderangeProblem::Unknown { .. } => ErrorCode::NotFound,
        _ => ErrorCode::BadData,
    };
    Refusal::new(code, error.to_string(), "collective help noderange")
}

pub(super) fn refuse_attribute(error: &AttributeError) -> Refusal {
    let (code, hint) = match &error.problem {
        Problem::NoSuchEntity { .. } => (ErrorCode::NotFound, "collective node list"),
        Problem::NoSuchAttribute { .. } => (ErrorCode::NotFound, "own attributes are named custom.NAME"),
        Problem::NoSuchMember { .. } => (ErrorCode::NotFound, "collective members"),
        Problem::Exists => (ErrorCode::Exists, "change it with `collective attrib`"),
        _ => (ErrorCode::BadData, "nothing was changed"),
    };
    Refusal::new(code, error.to_string(), hint)
}

pub(super) fn refuse_change(change: &Change, error: &RosterError) -> Refusal {
    let code = match error {
        RosterError::NoSuchMember => ErrorCode::NotFound,
        RosterError::InviteUsed => ErrorCode::InviteSpent,
        RosterError::KeyInUse(_) | RosterError::NoChange => ErrorCode::Exists,
        _ => ErrorCode::Failure,
    };
    let hint = match change {
        Change::Add { .. } => "collective invites",
        _ => "collective members",
    };
    Refusal::new(code, error.to_string(), hint)
}
