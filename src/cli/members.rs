//! Commands about members: who is in, who comes, who goes.

use std::time::Duration;

use super::args::{Format, InitArgs, InviteArgs, JoinArgs};
use super::context::{ANSWER_TIMEOUT, Context, Failure, member, refuse, unexpected};
use super::render::Form;
use crate::proto::request::{ErrorCode, Refused, Request, Response, TokenText};
use crate::proto::roster::Role;

/// How long a change of the roster may take: two epochs, with the pause between them, on the slowest profile.
const EPOCH_TIMEOUT: Duration = Duration::from_secs(30);
/// What joining takes besides waiting for the data.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest life of an invitation.
const TTL_MAX: Duration = Duration::from_secs(86_400);

/// Makes an identity, through the daemon when one runs.
pub(super) fn init(cx: &mut Context<'_, '_>, args: InitArgs) -> Result<u8, Failure> {
    let name = args.name.as_deref().map(member).transpose()?;
    let request = Request::Init { name, advertise: args.advertise.clone() };
    match cx.ask(&request, ANSWER_TIMEOUT) {
        Err(Failure::Refused(refusal)) if refusal.code == ErrorCode::Unreachable => {
            match (cx.offline.init)(args, cx.environment) {
                Response::Error(Refused { error }) => Err(error.into()),
                response => cx.print_change(&response),
            }
        }
        answer => cx.print_change(&answer?),
    }
}

/// Makes or rotates key and certificate.
pub(super) fn gencert(cx: &mut Context<'_, '_>, rotate: bool) -> Result<u8, Failure> {
    cx.change(&Request::Gencert { rotate }, EPOCH_TIMEOUT)
}

/// Prints a token, and nothing else, on stdout.
pub(super) fn invite(cx: &mut Context<'_, '_>, args: &InviteArgs) -> Result<u8, Failure> {
    if args.ttl > TTL_MAX || args.ttl.is_zero() {
        return Err(refuse(ErrorCode::Usage, "an invitation holds for more than nothing and at most 24h", "--ttl 1h"));
    }
    let role = match (args.nonvoting, args.witness) {
        (true, _) => Role::Nonvoting,
        (_, true) => Role::Witness,
        _ => Role::Voter,
    };
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Invite { name: member(&args.name)?, role, ttl_ms, uses: args.reusable };
    let response = cx.ask(&request, EPOCH_TIMEOUT)?;
    let Response::Invited(invited) = &response else { return Err(unexpected()) };
    if invited.replaced {
        cx.note(&format!("the earlier invitation for {} is revoked", invited.member))?;
    }
    if let Some(stale) = &invited.replaces {
        cx.note(&format!("{stale} is a member already; whoever joins by this token replaces its entry"))?;
    }
    cx.note(&format!("holds until {}", invited.expires))?;
    cx.print(&response, Form::Plain)?;
    Ok(0)
}

/// Lists pending invitations.
pub(super) fn invites(cx: &mut Context<'_, '_>) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::Invites, Form::Plain)
}

/// Takes an invitation back.
pub(super) fn revoke(cx: &mut Context<'_, '_>, name: &str) -> Result<u8, Failure> {
    cx.change(&Request::RevokeInvite { name: member(name)? }, EPOCH_TIMEOUT)
}

/// Joins a collective.
pub(super) fn join(cx: &mut Context<'_, '_>, args: JoinArgs) -> Result<u8, Failure> {
    let token = token(cx, args.token)?;
    let wait = if args.no_wait { Duration::ZERO } else { args.wait };
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Join { server: args.server, token, replace: args.replace, wait_ms };
    cx.change(&request, wait.saturating_add(JOIN_TIMEOUT))
}

/// Takes the token from where it was said to be, or asks for it.
fn token(cx: &mut Context<'_, '_>, given: Option<String>) -> Result<TokenText, Failure> {
    let text = match given.or_else(|| cx.environment.get("COLLECTIVE_TOKEN").cloned()) {
        Some(word) if word == "-" => cx.read_line()?,
        Some(word) => match word.strip_prefix('@') {
            Some(path) => cx.read_file(path.as_ref(), 64 << 10)?,
            None => word,
        },
        None => {
            const PROMPT: &str = "Paste the invitation here: ";
            if cx.io.stdin_is_terminal {
                let failed =
                    |error| refuse(ErrorCode::Failure, format!("cannot ask for the token: {error}"), "-i @FILE");
                (cx.io.read_secret)(PROMPT).map_err(failed)?
            } else {
                cx.note(PROMPT.trim_end())?;
                cx.read_line()?
            }
        }
    };
    let text = TokenText(text);
    let token = TokenText(text.0.trim().to_owned());
    if token.0.is_empty() {
        let hint = "make one on a member: collective invite NAME; then: collective join MEMBER -i TOKEN";
        return Err(refuse(ErrorCode::BadData, "the token is empty", hint));
    }
    Ok(token)
}

/// Leaves the collective.
pub(super) fn leave(cx: &mut Context<'_, '_>) -> Result<u8, Failure> {
    cx.change(&Request::Leave, EPOCH_TIMEOUT)
}

/// Takes a member off the roster.
pub(super) fn delete(cx: &mut Context<'_, '_>, name: &str, force: bool, dry_run: bool) -> Result<u8, Failure> {
    cx.change(&Request::Delete { member: member(name)?, force, dry_run }, EPOCH_TIMEOUT)
}

/// Shows who is there.
pub(super) fn show(cx: &mut Context<'_, '_>) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::Show, Form::Plain)?;
    if cx.verbose && matches!(cx.format, Format::Table | Format::Wide) {
        let members = cx.ask(&Request::Members { expression: None }, ANSWER_TIMEOUT)?;
        cx.print_text("\n")?;
        cx.print(&members, Form::Plain)?;
    }
    Ok(0)
}

/// Lists members.
pub(super) fn members(cx: &mut Context<'_, '_>, expression: Option<String>) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::Members { expression }, Form::Plain)
}

/// Shows who sees whom.
pub(super) fn view(cx: &mut Context<'_, '_>, matrix: bool) -> Result<u8, Failure> {
    cx.ask_and_print(&Request::View, if matrix { Form::Matrix } else { Form::Plain })
}

/// Says whether there is quorum, or would be: exit code 0 for yes, 1 for no.
pub(super) fn quorum(cx: &mut Context<'_, '_>, without: Option<String>) -> Result<u8, Failure> {
    let response = cx.ask(&Request::Quorum { without }, ANSWER_TIMEOUT)?;
    cx.print(&response, Form::Plain)?;
    let Response::Quorum(report) = &response else { return Err(unexpected()) };
    Ok(u8::from(!report.then.unwrap_or(report.quorum).quorate))
}

/// Probes a member.
pub(super) fn ping(cx: &mut Context<'_, '_>, name: &str, count: u32) -> Result<u8, Failure> {
    let request = Request::Ping { member: member(name)? };
    for _ in 0..count {
        cx.ask_and_print(&request, Form::Plain)?;
    }
    Ok(0)
}

/// Changes what a member may do.
pub(super) fn role(cx: &mut Context<'_, '_>, name: &str, role: Role) -> Result<u8, Failure> {
    cx.change(&Request::SetRole { member: member(name)?, role }, EPOCH_TIMEOUT)
}

/// Shows who votes, or changes how many shall.
pub(super) fn voters(
    cx: &mut Context<'_, '_>,
    ideal: Option<usize>,
    replace_after: Option<Duration>,
) -> Result<u8, Failure> {
    let replace_after_ms = replace_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    cx.change(&Request::Voters { ideal, replace_after_ms }, EPOCH_TIMEOUT)
}

/// Drains a member, or ends that.
pub(super) fn drain(cx: &mut Context<'_, '_>, name: &str, drain: bool) -> Result<u8, Failure> {
    cx.change(&Request::Drain { member: member(name)?, drain }, EPOCH_TIMEOUT)
}
