//! Commands that look at the state: once, again and again, or until it is as it should be.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::args::{EventsArgs, Format, WaitArgs};
use super::context::{ANSWER_TIMEOUT, Context, Failure, refuse, unexpected};
use super::render::{Form, votes};
use super::words::count;
use crate::proto::request::{ErrorCode, EventKind, LoggedEvent, Refusal, Request, Response, Standing, Status};

/// How often `status -w` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often `wait` looks.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);
/// How long `wait` waits unless told otherwise.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often `events -f` looks.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// Shows the state, once or until interrupted.
pub(super) fn status(cx: &mut Context<'_, '_>, watch: bool) -> Result<u8, Failure> {
    if !watch {
        return cx.ask_and_print(&Request::Status, Form::Plain);
    }
    loop {
        let answer = cx.ask(&Request::Status, ANSWER_TIMEOUT);
        if cx.io.stdout_is_terminal {
            // Home, and clear to the end: without flicker.
            cx.io.stdout.write_all(b"\x1b[H\x1b[J")?;
        }
        match answer {
            Ok(response) => cx.print(&response, Form::Plain)?,
            // A daemon that restarts is what one watches for.
            Err(Failure::Refused(refusal)) if may_pass(&refusal) => cx.note(&format!("! {}", refusal.message))?,
            Err(failure) => return Err(failure),
        }
        cx.io.stdout.flush()?;
        sleep(WATCH_INTERVAL);
    }
}

/// Returns whether a refusal may be gone at the next look.
fn may_pass(refusal: &Refusal) -> bool {
    matches!(refusal.code, ErrorCode::Unreachable | ErrorCode::TimedOut | ErrorCode::TryAgain)
}

/// Waits until all conditions hold; exit code 124 when they do not in time.
pub(super) fn wait(cx: &mut Context<'_, '_>, args: &WaitArgs) -> Result<u8, Failure> {
    let limit = cx.timeout.unwrap_or(WAIT_TIMEOUT);
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        // The last look gets a moment of its own, so that a short limit still means one answer.
        cx.timeout = Some(left.clamp(WAIT_INTERVAL, ANSWER_TIMEOUT));
        let missing = match cx.ask(&Request::Status, ANSWER_TIMEOUT) {
            Ok(response) => {
                let Response::Status(status) = &response else { return Err(unexpected()) };
                match missing(args, status) {
                    None => {
                        if matches!(cx.format, Format::Json | Format::Jsonl) {
                            cx.print(&response, Form::Plain)?;
                        }
                        return Ok(0);
                    }
                    Some(missing) => missing,
                }
            }
            Err(Failure::Refused(refusal)) if may_pass(&refusal) => refusal.message,
            Err(failure) => return Err(failure),
        };
        if start.elapsed() + WAIT_INTERVAL > limit {
            let message = format!("waited {} in vain: {missing}", humantime::format_duration(limit));
            return Err(refuse(ErrorCode::TimedOut, message, "collective status; or wait longer with --timeout"));
        }
        sleep(WAIT_INTERVAL);
    }
}

/// Says which condition does not hold yet.
fn missing(args: &WaitArgs, status: &Status) -> Option<String> {
    if args.quorum && !status.quorum.quorate {
        return Some(format!("no quorum, {}", votes(status.quorum)));
    }
    let alive = alive(status);
    if args.members.is_some_and(|wanted| alive < wanted) {
        return Some(format!("{} alive", count(alive, "member")));
    }
    if args.converged && !(status.data.converged && status.standing == Standing::Seated) {
        return Some("the documents are not converged".to_owned());
    }
    None
}

fn alive(status: &Status) -> usize {
    status.members.iter().filter(|member| member.state == "alive").count()
}

/// What a Nagios plugin answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

#[derive(Serialize)]
struct Checked {
    schema: &'static str,
    state: Verdict,
    code: u8,
    message: String,
}

/// Checks the state as a Nagios plugin does: one line, and exit code 0 to 3.
pub(super) fn check(cx: &mut Context<'_, '_>) -> Result<u8, Failure> {
    let (verdict, message, figures) = match cx.ask(&Request::Status, ANSWER_TIMEOUT) {
        Ok(Response::Status(status)) => judge(&status),
        Ok(_) => (Verdict::Unknown, "the daemon gave an answer of another kind".to_owned(), String::new()),
        Err(Failure::Refused(refusal)) => (Verdict::Unknown, refusal.message, String::new()),
        Err(failure) => return Err(failure),
    };
    let word = match verdict {
        Verdict::Ok => "OK",
        Verdict::Warning => "WARNING",
        Verdict::Critical => "CRITICAL",
        Verdict::Unknown => "UNKNOWN",
    };
    let bar = if figures.is_empty() { "" } else { " | " };
    let line = format!("COLLECTIVE {word} - {message}{bar}{figures}\n");
    let document = Checked { schema: "collective.check/1", state: verdict, code: verdict as u8, message };
    cx.print_document(&document, &line)?;
    Ok(verdict as u8)
}

/// Judges a state: verdict, sentence, figures.
fn judge(status: &Status) -> (Verdict, String, String) {
    let quorum = status.quorum;
    let mut findings = Vec::new();
    if !quorum.quorate {
        findings.push((Verdict::Critical, "no quorum".to_owned()));
    } else if quorum.failure_tolerance == 0 && quorum.expected > 2 {
        findings.push((Verdict::Warning, "one more failure stops writes".to_owned()));
    }
    if status.standing == Standing::Rejoining {
        findings.push((Verdict::Warning, "documents are being resynced".to_owned()));
    }
    // Advice is nothing that somebody must be woken for.
    for health in status.health.iter().filter(|health| health.severity != "info") {
        let verdict = if health.severity == "critical" { Verdict::Critical } else { Verdict::Warning };
        findings.push((verdict, health.message.clone()));
    }
    // The worst first; the order is otherwise kept.
    findings.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
    let verdict = findings.first().map_or(Verdict::Ok, |(verdict, _)| *verdict);
    let mut message: Vec<_> = findings.into_iter().map(|(_, sentence)| sentence).collect();
    message.push(votes(quorum));
    let figures = format!(
        "votes={};;;0;{} tolerance={} alive={};;;0;{} nodes={} managed={}",
        quorum.votes,
        quorum.expected,
        quorum.failure_tolerance,
        alive(status),
        status.members.len(),
        status.data.nodes,
        status.managed
    );
    // A bar would begin the figures.
    (verdict, message.join("; ").replace(['|', '\n'], " "), figures)
}

/// Shows what happened, and with `-f` what happens next.
pub(super) fn events(cx: &mut Context<'_, '_>, args: &EventsArgs) -> Result<u8, Failure> {
    let since = args.since.as_deref().map(moment).transpose()?;
    let kinds = args.kind.iter().map(|word| kind(word)).collect::<Result<Vec<_>, _>>()?;
    let mut after = args.after;
    let mut limit = args.limit;
    loop {
        let request = Request::Events { after, kinds: kinds.clone(), limit };
        let Response::Events(mut found) = cx.ask(&request, ANSWER_TIMEOUT)? else { return Err(unexpected()) };
        after = found.events.last().map(|event| event.seq).or(after);
        found.events.retain(|event| is_since(event, since));
        let nothing = found.events.is_empty();
        if args.follow && cx.format == Format::Json {
            // Documents that are to be read while they grow are a line each.
            cx.format = Format::Jsonl;
        }
        if !(nothing && args.follow) {
            cx.print(&Response::Events(found), Form::Plain)?;
            cx.io.stdout.flush()?;
        }
        if !args.follow {
            return Ok(0);
        }
        limit = None;
        sleep(FOLLOW_INTERVAL);
    }
}

/// Reads a time, or an age before now.
fn moment(text: &str) -> Result<SystemTime, Failure> {
    let age = humantime::parse_duration(text).ok().and_then(|age| SystemTime::now().checked_sub(age));
    age.or_else(|| humantime::parse_rfc3339_weak(text).ok()).ok_or_else(|| {
        let message = format!("{text:?} is neither a time nor an age");
        refuse(ErrorCode::Usage, message, "write --since 10m or --since 2026-11-21T09:15:00Z")
    })
}

/// Reads the word of a kind of event.
fn kind(word: &str) -> Result<EventKind, Failure> {
    EventKind::from_word(word).ok_or_else(|| {
        let words: Vec<_> = EventKind::ALL.iter().map(|kind| kind.word()).collect();
        refuse(ErrorCode::Usage, format!("there is no kind of event {word:?}"), format!("kinds: {}", words.join(", ")))
    })
}

/// Returns whether an event happened since; one without a readable time did.
fn is_since(event: &LoggedEvent, since: Option<SystemTime>) -> bool {
    let Some(since) = since else { return true };
    humantime::parse_rfc3339_weak(&event.time).map_or(true, |time| time >= since)
}
