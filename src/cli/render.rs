//! Responses as text for people; the words here are tested one by one, as scripts lean on some of them.

use std::collections::BTreeMap;

use super::words::{age, count, fold, maybe_age, rtt, table, yes_no};
use crate::proto::request::{
    AttributeValue, Attributes, Conflicts, Done, Events, Groups, Invites, LoggedEvent, ManagerStatus, Managers,
    MemberStatus, Members, QuorumReport, Response, Show, Standing, Status, View, Votes,
};

/// How a text is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Whether there is room for more columns.
    pub(super) wide: bool,
    /// Whether tables have a header line.
    pub(super) header: bool,
    /// Which of several texts of one response.
    pub(super) form: Form,
}

/// Which of several texts of one response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// The usual one.
    #[default]
    Plain,
    /// Of attributes: with where they come from.
    Blame,
    /// Of a view: as a matrix.
    Matrix,
    /// Of managers: counted by member.
    ByMember,
    /// Of managers: with reasons.
    Why,
    /// Of nodes: how many.
    Count,
    /// Of nodes: folded.
    Folded,
}

impl Style {
    fn table(self, header: &[&str], rows: Vec<Vec<String>>) -> String {
        table(self.header.then_some(header), rows)
    }
}

/// Writes a response for people.
pub(super) fn text(response: &Response, style: Style) -> String {
    match response {
        Response::Error(refused) => format!("{}\n", refused.error.message),
        Response::Show(found) => show(found),
        Response::Status(found) => status(found, style),
        Response::Members(found) => members(found, style),
        Response::View(found) => view(found, style),
        Response::Quorum(found) => quorum(found, style),
        Response::Ping(found) => format!("{}: {}\n", found.member, rtt(found.rtt_us)),
        Response::Invited(found) => format!("{}\n", found.token.0),
        Response::Invites(found) => invites(found, style),
        Response::Attributes(found) => attributes(found, style),
        Response::Conflicts(found) => conflicts(found),
        Response::Nodes(found) => match style.form {
            Form::Count => format!("{}\n", found.nodes.len()),
            Form::Folded => format!("{}\n", found.folded),
            _ => found.nodes.iter().map(|node| format!("{node}\n")).collect(),
        },
        Response::Groups(found) => groups(found, style),
        Response::Managers(found) => managers(found, style),
        Response::Events(found) => events(found),
        Response::Ran(found) => {
            let lines = found.results.iter().flat_map(|one| one.output.iter().map(move |line| (&one.node, line)));
            lines.map(|(node, line)| format!("{node}: {line}\n")).collect()
        }
        Response::Done(done) => done_text(done),
    }
}

/// The names in a response, for `-o names` and `-o fold`.
pub(super) fn names(response: &Response) -> Vec<String> {
    fn all<T>(items: &[T], name: impl Fn(&T) -> String) -> Vec<String> {
        items.iter().map(name).collect()
    }
    match response {
        Response::Show(found) => {
            let members = found.leader.iter().chain(&found.active).chain(&found.offline);
            members.map(ToString::to_string).collect()
        }
        Response::Status(found) => all(&found.members, |member| member.name.to_string()),
        Response::Members(found) => all(&found.members, |member| member.name.to_string()),
        Response::View(found) => all(&found.rows, |row| row.member.to_string()),
        Response::Quorum(found) => all(&found.voters, |voter| voter.member.to_string()),
        Response::Ping(found) => vec![found.member.to_string()],
        Response::Invited(found) => vec![found.member.to_string()],
        Response::Invites(found) => all(&found.invites, |invite| invite.member.to_string()),
        Response::Attributes(found) => all(&found.nodes, |entity| entity.node.clone()),
        Response::Conflicts(found) => all(&found.conflicts, |conflict| conflict.node.clone()),
        Response::Nodes(found) => all(&found.nodes, ToString::to_string),
        Response::Groups(found) => all(&found.groups, |group| group.group.to_string()),
        Response::Managers(found) => all(&found.nodes, |node| node.node.to_string()),
        Response::Events(found) => all(&found.events, |event| event.kind.word().to_owned()),
        Response::Ran(found) => all(&found.results, |result| result.node.to_string()),
        Response::Error(_) | Response::Done(_) => Vec::new(),
    }
}

/// Confluent's text, to the byte; ` (nonvoting)` is ours.
fn show(show: &Show) -> String {
    let mut text = format!("Quorum: {}\n", if show.quorum { "True" } else { "False" });
    let leader = show.leader.as_ref().map_or("none", |leader| leader.as_str());
    text.push_str(&format!("Leader: {leader}\n"));
    for (title, members) in
        [("Active collective members:\n", &show.active), ("Offline collective members:\n", &show.offline)]
    {
        if members.is_empty() {
            continue;
        }
        text.push_str(title);
        for member in members {
            let mark = if show.nonvoting.contains(member) { " (nonvoting)" } else { "" };
            text.push_str(&format!("    {member}{mark}\n"));
        }
    }
    text
}

/// The count of votes in words.
pub(super) fn votes(votes: Votes) -> String {
    let tolerance = if votes.quorate { format!(", can lose {} more", votes.failure_tolerance) } else { String::new() };
    format!("{} of {}, {} needed{tolerance}", votes.votes, count(votes.expected, "vote"), votes.needed)
}

/// The line that comes first when there is no quorum.
fn no_quorum(status: &Status) -> String {
    let since = status.no_quorum_for_ms.map(|ms| format!(" for {}", age(ms))).unwrap_or_default();
    let silent = status.view.silent.iter().map(|silent| silent.member.as_str());
    let missing = fold(silent);
    let missing = if missing.is_empty() { missing } else { format!("; no answer from {missing}") };
    format!("! NO QUORUM{since}: writes and actions are refused{missing}\n")
}

fn status(status: &Status, style: Style) -> String {
    let mut text = String::new();
    match status.standing {
        Standing::Isolated => text.push_str(&no_quorum(status)),
        Standing::Rejoining => {
            text.push_str("! STALE: quorum is back, documents are being resynced; writes wait for that\n");
        }
        Standing::Seated => {}
    }
    let me = status.me.as_ref().map_or("a member that was removed", |me| me.as_str());
    text.push_str(&format!("collective {}   as seen by {me}   {}\n", status.collective, clock(&status.time)));
    let word = if status.quorum.quorate { "YES" } else { "NO" };
    text.push_str(&format!("Quorum    {word}   {}", votes(status.quorum)));
    if status.quorum.quorate && status.quorum.failure_tolerance == 0 && status.quorum.expected > 1 {
        text.push_str("   ! one more failure stops writes");
    }
    let agreed = fold(status.view.agreed_by.iter().chain(&status.me).map(|member| member.as_str()));
    text.push_str(&format!("\nView      agreed by {agreed}"));
    for silent in &status.view.silent {
        match silent.for_ms {
            Some(ms) => text.push_str(&format!("; {} silent for {}", silent.member, age(ms))),
            None => text.push_str(&format!("; {} never heard", silent.member)),
        }
    }
    let data = &status.data;
    let converged = if data.converged { "converged" } else { "not converged" };
    let (nodes, groups) = (count(data.nodes, "node"), count(data.groups, "group"));
    text.push_str(&format!("\nData      {converged}, {nodes}, {groups}\n"));
    text.push_str(&format!("Managers  {} of {nodes} managed\n", status.managed));
    text.push_str(&members_table(&status.members, status.me.as_ref().map(|me| me.as_str()), style));
    for health in &status.health {
        text.push_str(&format!("! {}", health.message));
        if !health.hint.is_empty() {
            text.push_str(&format!(". {}", health.hint));
        }
        text.push('\n');
    }
    text
}

/// Writes `2026-11-21T09:15:44.123Z` as `2026-11-21 09:15:44Z`.
fn clock(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(day), Some(second)) => format!("{day} {second}Z"),
        _ => time.to_owned(),
    }
}

fn members(members: &Members, style: Style) -> String {
    let first = if members.quorum { "" } else { "! NO QUORUM: this is what this member last knew\n" };
    format!("{first}{}", members_table(&members.members, None, style))
}

/// The table of members, with a star at `me`.
fn members_table(members: &[MemberStatus], me: Option<&str>, style: Style) -> String {
    let mut header = vec!["MEMBER", "STATE", "SINCE", "VOTE", "MANAGES", "RTT", "LAG", "VERSION", "ADDRESS"];
    if style.wide {
        header.extend(["ROLE", "HEARD", "FINGERPRINT", "TROUBLE"]);
    }
    let unknown = || "-".to_owned();
    let rows = members.iter().map(|member| {
        let star = if me == Some(member.name.as_str()) { " *" } else { "" };
        let vote = if member.learner { "learning" } else { yes_no(member.votes) };
        let draining = if member.draining { " (draining)" } else { "" };
        let mut row = vec![
            format!("{}{star}", member.name),
            member.state.clone(),
            maybe_age(member.since_ms),
            vote.to_owned(),
            format!("{}{draining}", member.manages),
            member.rtt_us.map_or_else(unknown, rtt),
            member.lag.map_or_else(unknown, |lag| lag.to_string()),
            member.version.clone().unwrap_or_else(unknown),
            member.address.clone().unwrap_or_else(unknown),
        ];
        if style.wide {
            row.extend([
                member.role.to_string(),
                maybe_age(member.last_heard_ms),
                member.fingerprint.clone(),
                member.trouble.clone().unwrap_or_else(unknown),
            ]);
        }
        row
    });
    style.table(&header, rows.collect())
}

fn view(view: &View, style: Style) -> String {
    if style.form == Form::Matrix {
        let mut header = vec!["FROM \\ TO"];
        header.extend(view.rows.iter().map(|row| row.member.as_str()));
        let rows = view.rows.iter().map(|row| {
            let states = view.rows.iter().map(|column| {
                if column.member == row.member {
                    return "-".to_owned();
                }
                let seen = row.sees.iter().find(|sees| sees.member == column.member);
                seen.map_or_else(|| "unknown".to_owned(), |sees| sees.state.clone())
            });
            std::iter::once(row.member.to_string()).chain(states).collect()
        });
        return style.table(&header, rows.collect());
    }
    let rows = view.rows.iter().map(|row| {
        let mut states: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for sees in &row.sees {
            states.entry(&sees.state).or_default().push(sees.member.as_str());
        }
        let sees: Vec<_> = states.into_iter().map(|(state, members)| format!("{} {state}", fold(members))).collect();
        vec![row.member.to_string(), age(row.age_ms), row.hash.chars().take(12).collect(), sees.join("; ")]
    });
    style.table(&["MEMBER", "AGE", "VIEW", "SEES"], rows.collect())
}

fn quorum(report: &QuorumReport, style: Style) -> String {
    let line = |title: &str, found: Votes| {
        format!("{title} {}   {}\n", if found.quorate { "YES" } else { "NO" }, votes(found))
    };
    let mut text = line("Quorum:", report.quorum);
    if let Some(then) = report.then {
        let without = fold(report.without.iter().map(|member| member.as_str()));
        text.push_str(&line(&format!("Without {without}:"), then));
    }
    let rows = report.voters.iter().map(|voter| {
        let granted = if voter.granted { format!("for {}ms", voter.for_ms) } else { "-".to_owned() };
        vec![voter.member.to_string(), yes_no(voter.granted).to_owned(), granted]
    });
    text.push_str(&style.table(&["VOTER", "GRANTED", "STILL"], rows.collect()));
    text
}

fn invites(invites: &Invites, style: Style) -> String {
    let rows = invites.invites.iter().map(|invite| {
        vec![
            invite.member.to_string(),
            invite.role.to_string(),
            clock(&invite.expires),
            invite.uses_left.to_string(),
            invite.attempts_left.to_string(),
        ]
    });
    style.table(&["MEMBER", "ROLE", "EXPIRES", "USES", "ATTEMPTS"], rows.collect())
}

/// Confluent's `node: attribute: value`, with its words for blame and our author and date.
fn attributes(attributes: &Attributes, style: Style) -> String {
    let mut text = String::new();
    for entity in &attributes.nodes {
        for (name, value) in &entity.attributes {
            text.push_str(&format!("{}: {name}:", entity.node));
            text.push_str(&value_text(value, style.form == Form::Blame));
            text.push('\n');
        }
    }
    text
}

fn value_text(value: &AttributeValue, blame: bool) -> String {
    let mut text = value.value.as_ref().map(|value| format!(" {value}")).unwrap_or_default();
    let mut origin = Vec::new();
    origin.extend(value.inherited_from.as_ref().map(|group| format!("inherited from group {group}")));
    match (&value.written_by, &value.written_at) {
        (Some(who), Some(when)) => origin.push(format!("written by {who} at {when}")),
        (Some(who), None) => origin.push(format!("written by {who}")),
        (None, Some(when)) => origin.push(format!("written at {when}")),
        (None, None) => {}
    }
    if blame && !origin.is_empty() {
        text.push_str(&format!(" ({})", origin.join(", ")));
    }
    text
}

fn conflicts(conflicts: &Conflicts) -> String {
    let mut text = String::new();
    for conflict in &conflicts.conflicts {
        for (place, value) in conflict.values.iter().enumerate() {
            let word = if place == 0 { "in force" } else { "overruled" };
            let value = value_text(value, true);
            text.push_str(&format!("{}: {}:{value} [{word}]\n", conflict.node, conflict.attribute));
        }
    }
    text
}

fn groups(groups: &Groups, style: Style) -> String {
    if !style.wide {
        return groups.groups.iter().map(|group| format!("{}\n", group.group)).collect();
    }
    let rows = groups.groups.iter().map(|group| vec![group.group.to_string(), group.nodes.to_string()]);
    style.table(&["GROUP", "NODES"], rows.collect())
}

fn managers(managers: &Managers, style: Style) -> String {
    let first = if managers.stale { "! STALE: no quorum; this is what this member last knew\n" } else { "" };
    let body = match style.form {
        Form::Why => managers.nodes.iter().map(why).collect(),
        Form::ByMember => by_member(managers, style),
        _ => managers_table(managers, style),
    };
    format!("{first}{body}")
}

fn managers_table(managers: &Managers, style: Style) -> String {
    let mut header = vec!["NODE", "MANAGER", "DESIRED", "TOKEN", "REASON"];
    if style.wide {
        header.extend(["PREFERRED", "CANDIDATES"]);
    }
    let rows = managers.nodes.iter().map(|node| {
        let name =
            |member: &Option<_>, none: &str| member.as_ref().map_or_else(|| none.to_owned(), ToString::to_string);
        let mut row = vec![
            node.node.to_string(),
            name(&node.manager, "unmanaged"),
            name(&node.desired, "-"),
            node.token.clone().unwrap_or_else(|| "-".to_owned()),
            node.reason.clone(),
        ];
        if style.wide {
            let candidates: Vec<_> = node.candidates.iter().map(|member| member.as_str()).collect();
            row.extend([name(&node.preferred, "-"), candidates.join(",")]);
        }
        row
    });
    style.table(&header, rows.collect())
}

fn by_member(managers: &Managers, style: Style) -> String {
    let mut members: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    let mut unmanaged = Vec::new();
    for node in &managers.nodes {
        match &node.manager {
            Some(member) => members.entry(member).or_default().push(node.node.as_str()),
            None => unmanaged.push(node.node.as_str()),
        }
    }
    let row = |name: &str, nodes: Vec<&str>| {
        let count = nodes.len();
        let folded = fold(nodes);
        vec![name.to_owned(), count.to_string(), if style.wide { folded } else { shortened(&folded) }]
    };
    let mut rows: Vec<_> = members.into_iter().map(|(member, nodes)| row(member.as_str(), nodes)).collect();
    if !unmanaged.is_empty() {
        rows.push(row("unmanaged", unmanaged));
    }
    style.table(&["MEMBER", "MANAGES", "NODES"], rows)
}

/// Cuts a list of nodes that no line holds; `-o wide` and `-o json` have all of it.
fn shortened(folded: &str) -> String {
    const LENGTH_MAX: usize = 200;
    match folded.get(..LENGTH_MAX).and_then(|start| start.rsplit_once(',')) {
        Some((start, _)) => format!("{start},..."),
        None => folded.to_owned(),
    }
}

fn why(node: &ManagerStatus) -> String {
    let mut text = format!("{}\n", node.node);
    let mut line = |key: &str, value: String| text.push_str(&format!("  {key:<11} {value}\n"));
    match (&node.manager, &node.token) {
        (Some(manager), Some(token)) => line("manager", format!("{manager}, under token {token}")),
        (Some(manager), None) => line("manager", manager.to_string()),
        (None, _) => line("manager", "unmanaged".to_owned()),
    }
    if let Some(desired) = &node.desired {
        line("desired", desired.to_string());
    }
    if let Some(preferred) = &node.preferred {
        line("preferred", preferred.to_string());
    }
    let candidates: Vec<_> = node.candidates.iter().map(|member| member.as_str()).collect();
    line("candidates", if candidates.is_empty() { "none".to_owned() } else { candidates.join(", ") });
    line("reason", node.reason.clone());
    for out in &node.ruled_out {
        line("ruled out", format!("{}: {}", out.member, out.reason));
    }
    for unknown in &node.unknown {
        line("ignored", format!("{unknown}: no such member"));
    }
    text
}

fn events(events: &Events) -> String {
    events.events.iter().map(event).collect()
}

fn event(event: &LoggedEvent) -> String {
    let token = event.token.as_ref().map(|token| format!(" [{token}]")).unwrap_or_default();
    let kind = event.kind.word();
    format!("{:>6}  {}  {kind:<18}  {}{token}\n", event.seq, clock(&event.time), event.message)
}

fn done_text(done: &Done) -> String {
    let mut text: String = done.changes.iter().map(|change| format!("{change}\n")).collect();
    if !done.message.is_empty() {
        text.push_str(&format!("{}\n", done.message));
    }
    text
}
