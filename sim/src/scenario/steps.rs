//! The text form of a step, read and written.

use collective::proto::request::ErrorCode;
use collective::proto::roster::Role;

use super::faults::list;
use super::parse::seen;
use super::reader::{Mistake, Table, Value};
use super::units::tell_duration;
use crate::fault::MS;
use crate::step::{Act, Answer, Bound, Check, Step, What};

/// What can be asked.
const ACTS: [&str; 11] =
    ["write", "define", "set", "voters-wanted", "delete", "leave", "role", "move", "drain", "invite", "run"];
const ROLES: [(&str, Role); 3] = [("voter", Role::Voter), ("nonvoting", Role::Nonvoting), ("witness", Role::Witness)];
const ANSWERS: [(&str, Answer); 9] = [
    ("done", Answer::Done),
    ("unknown", Answer::Unknown),
    ("no-quorum", Answer::Refused(ErrorCode::NoQuorum)),
    ("not-found", Answer::Refused(ErrorCode::NotFound)),
    ("exists", Answer::Refused(ErrorCode::Exists)),
    ("needs-force", Answer::Refused(ErrorCode::NeedsForce)),
    ("try-again", Answer::Refused(ErrorCode::TryAgain)),
    ("unreachable", Answer::Refused(ErrorCode::Unreachable)),
    ("failure", Answer::Refused(ErrorCode::Failure)),
];

/// What must be so of a list of members.
type OfMembers = fn(Vec<usize>) -> Check;

/// Reads one `[[step]]` among that many sites.
pub(super) fn read(table: &mut Table<'_>, members: usize) -> Result<Step, Mistake> {
    let at_ms = table.require("at")?.duration()? / MS;
    let mut time = |key| Ok(table.get(key).map(|value| value.duration()).transpose()?.unwrap_or(0) / MS);
    let (within_ms, stays_ms) = (time("within")?, time("for")?);
    let mut checks = Vec::new();
    let lists: [(&'static str, OfMembers); 5] = [
        ("quorate", Check::Quorate),
        ("locked", Check::Locked),
        ("seated", Check::Seated),
        ("idle", Check::Idle),
        ("managed-by", Check::ManagedBy),
    ];
    for (key, check) in lists {
        if let Some(value) = table.get(key) {
            checks.push(check(value.members(members)?));
        }
    }
    if let Some(value) = table.get("down") {
        let mut down = value.members(members)?;
        down.sort_unstable();
        checks.push(Check::Down(down));
    }
    if let Some(value) = table.get("voters") {
        checks.push(value.inline(|table| {
            let of = table.require("of")?.members(members)?;
            Ok(Check::Voters { of, count: table.require("count")?.count(0..=1_000)? })
        })?);
    }
    if let Some(value) = table.get("managers") {
        let is_note = value.word(&[("note", true), ("same", false)])?;
        checks.push(if is_note { Check::NoteManagers } else { Check::SameManagers });
    }
    if let Some(value) = table.get("seen") {
        checks.push(Check::Seen(seen(&value)?));
    }
    let mut asked: Vec<_> = ACTS.iter().filter_map(|key| Some((*key, table.get(key)?))).collect();
    if let Some((_, second)) = asked.get(1) {
        return Err(second.mistake(format!("[[step]] asks two things, `{}` and this one", asked[0].0)));
    }
    let act = asked.pop().map(|(key, value)| act(key, &value, members)).transpose()?;
    if checks.is_empty() && act.is_none() {
        // A misspelt key is told before an empty step is.
        table.one_of(&["quorate"], "check and no act")?;
    }
    Ok(Step { at_ms, within_ms, stays_ms, checks, act })
}

fn act(key: &str, value: &Value<'_>, members: usize) -> Result<Act, Mistake> {
    value.inline(|table| {
        let via = table.require("via")?.member(members)?;
        let answer = table.get("answer").map(|value| value.word(&ANSWERS)).transpose()?;
        let within_ms = table.get("within").map(|value| value.duration()).transpose()?.unwrap_or(0) / MS;
        let member = |table: &mut Table<'_>| table.require("member")?.member(members);
        let what = match key {
            "write" => {
                What::Write { again: table.get("again").map(|value| value.boolean()).transpose()?.unwrap_or(false) }
            }
            "leave" => What::Leave,
            "define" => What::Define {
                node: table.require("node")?.string()?.to_owned(),
                candidates: table.require("candidates")?.string()?.to_owned(),
            },
            "set" => What::Set {
                nodes: table.require("nodes")?.string()?.to_owned(),
                assignment: table.require("assignment")?.string()?.to_owned(),
            },
            "voters-wanted" => What::Voters {
                ideal: table.require("ideal")?.count(0..=1_000)?,
                replace_after_ms: table.get("replace-after").map(|value| value.duration()).transpose()?.unwrap_or(0)
                    / MS,
            },
            "delete" => What::Delete { member: member(table)? },
            "role" => What::Role { member: member(table)?, role: table.require("role")?.word(&ROLES)? },
            "move" => What::Move {
                node: table.require("node")?.string()?.to_owned(),
                to: table.require("to")?.member(members)?,
            },
            "drain" => {
                let drain = table.get("drain").map(|value| value.boolean()).transpose()?.unwrap_or(true);
                What::Drain { member: member(table)?, drain }
            }
            "invite" => {
                let dies = table.get("dies").map(|value| value.boolean()).transpose()?.unwrap_or(false);
                What::Invite { member: member(table)?, dies }
            }
            _ => What::Run { nodes: table.require("nodes")?.string()?.to_owned() },
        };
        Ok(Act { what, via, answer, within_ms })
    })
}

/// Writes one `[[step]]`.
pub(super) fn write(step: &Step) -> String {
    let ms = |ms: u64| tell_duration(ms * MS);
    let mut text = format!("[[step]]\nat = \"{}\"\n", ms(step.at_ms));
    if step.within_ms > 0 {
        text.push_str(&format!("within = \"{}\"\n", ms(step.within_ms)));
    }
    if step.stays_ms > 0 {
        text.push_str(&format!("for = \"{}\"\n", ms(step.stays_ms)));
    }
    for check in &step.checks {
        let (key, value) = match check {
            Check::Quorate(members) => ("quorate", list(members)),
            Check::Locked(members) => ("locked", list(members)),
            Check::Seated(members) => ("seated", list(members)),
            Check::Idle(members) => ("idle", list(members)),
            Check::ManagedBy(members) => ("managed-by", list(members)),
            Check::Down(members) => ("down", list(members)),
            Check::Voters { of, count } => ("voters", format!("{{ of = {}, count = {count} }}", list(of))),
            Check::NoteManagers => ("managers", "\"note\"".to_owned()),
            Check::SameManagers => ("managers", "\"same\"".to_owned()),
            Check::Seen(bounds) => ("seen", tell_seen(bounds)),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    if let Some(act) = &step.act {
        text.push_str(&tell_act(act));
    }
    text
}

/// Writes how often things must have been seen.
pub(super) fn tell_seen(bounds: &[(String, Bound)]) -> String {
    let one = |(what, Bound { least, most }): &(String, Bound)| match (*least, *most) {
        (least, most) if least == most => format!("{what:?} = {least}"),
        (least, u64::MAX) => format!("{what:?} = \"{least}..\""),
        (least, most) => format!("{what:?} = \"{least}..{most}\""),
    };
    format!("{{ {} }}", bounds.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn tell_act(act: &Act) -> String {
    let (key, more) = match &act.what {
        What::Write { again } => ("write", if *again { ", again = true".to_owned() } else { String::new() }),
        What::Leave => ("leave", String::new()),
        What::Define { node, candidates } => ("define", format!(", node = {node:?}, candidates = {candidates:?}")),
        What::Set { nodes, assignment } => ("set", format!(", nodes = {nodes:?}, assignment = {assignment:?}")),
        What::Voters { ideal, replace_after_ms } => {
            let after = tell_duration(replace_after_ms * MS);
            ("voters-wanted", format!(", ideal = {ideal}, replace-after = \"{after}\""))
        }
        What::Delete { member } => ("delete", format!(", member = \"m{member}\"")),
        What::Role { member, role } => ("role", format!(", member = \"m{member}\", role = {:?}", word(&ROLES, role))),
        What::Move { node, to } => ("move", format!(", node = {node:?}, to = \"m{to}\"")),
        What::Drain { member, drain } => ("drain", format!(", member = \"m{member}\", drain = {drain}")),
        What::Invite { member, dies } => ("invite", format!(", member = \"m{member}\", dies = {dies}")),
        What::Run { nodes } => ("run", format!(", nodes = {nodes:?}")),
    };
    let answer = act.answer.map_or_else(String::new, |answer| format!(", answer = {:?}", word(&ANSWERS, &answer)));
    let within = match act.within_ms {
        0 => String::new(),
        ms => format!(", within = \"{}\"", tell_duration(ms * MS)),
    };
    format!("{key} = {{ via = \"m{}\"{more}{answer}{within} }}\n", act.via)
}

fn word<T: PartialEq>(words: &[(&'static str, T)], of: &T) -> &'static str {
    words.iter().find(|(_, means)| means == of).map_or("", |(word, _)| *word)
}
