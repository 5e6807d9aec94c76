//! What somebody outside sees of a run, line by line: who runs, who holds what until when, what was asked and answered.
//!
//! The format is JSON lines, documented in docs/simulation.md; real daemons can be watched into the same one.

use std::collections::{BTreeMap, BTreeSet};

use collective::proto::collective::Collective;
use collective::proto::identity::MemberId;
use collective::proto::name::NodeName;
use collective::proto::request::{EventKind, Standing};
use collective::proto::time::Instant;
use serde::{Deserialize, Serialize};

use crate::fault::MS;
use crate::site::name;
use crate::world::World;

/// The number of the format.
pub(crate) const FORMAT: u32 = 1;

/// The first line: what the others are about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// [`FORMAT`].
    pub(crate) trace: u32,
    pub(crate) scenario: String,
    pub(crate) seed: u64,
    /// T, in seconds.
    pub(crate) lease: f64,
    /// The margin m, as a share.
    pub(crate) margin: f64,
    /// How much faster or slower than the truth a clock may run, as a share.
    pub(crate) drift: f64,
    pub(crate) members: Vec<String>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When, in seconds of the true time.
    pub(crate) t: f64,
    /// Who; nobody for what happens to several.
    #[serde(rename = "m", skip_serializing_if = "Option::is_none", default)]
    pub(crate) member: Option<String>,
    #[serde(flatten)]
    pub(crate) seen: Seen,
}

/// What is seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Seen {
    /// Everybody has a seat, nodes are defined: load and faults begin.
    Begin,
    /// The last fault that ends has ended, and so does the load.
    Calm,
    /// Everything is equal, quorate and managed again.
    Converged,
    /// A process starts, as this enrolment and with this incarnation.
    Start {
        id: String,
        incarnation: u64,
    },
    /// A process ends.
    End {
        how: String,
    },
    /// A process stands still.
    Pause,
    /// It goes on.
    Resume,
    Fault {
        number: u64,
        kind: String,
        what: String,
    },
    Healed {
        number: u64,
        what: String,
    },
    Standing {
        to: String,
    },
    LinkUp {
        peer: String,
    },
    LinkDown {
        peer: String,
        why: String,
    },
    /// A roster is in force there.
    Roster {
        version: String,
        hash: String,
        voters: Vec<String>,
        ids: Vec<String>,
    },
    /// A voter granted what was asked for at `sent`.
    Granted {
        voter: String,
        sent: f64,
    },
    /// The member acts for a node, until its lease ends unless it is renewed.
    Acts {
        node: String,
        until: f64,
        /// The fencing token, `generation.epoch.term`, where it was seen.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        token: Option<String>,
    },
    /// The member acts for a node no longer.
    Rests {
        node: String,
    },
    /// An action starts, and is killed at `until` at the latest.
    Action {
        node: String,
        id: u64,
        until: f64,
        /// The fencing token that it ran under, where it was seen.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        token: Option<String>,
    },
    /// It may go on until then; when it has ended, until now.
    ActionUntil {
        id: u64,
        until: f64,
    },
    /// A write was acknowledged, durable on so many of the voters, where that was seen.
    Acknowledged {
        write: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        copies: Option<usize>,
        voters: usize,
    },
    /// A request was answered otherwise.
    Answered {
        what: String,
        answer: String,
    },
    /// An invitation let this enrolment in.
    Joined {
        invite: String,
        id: String,
    },
    /// Something that a member's log tells.
    Event {
        kind: String,
        message: String,
    },
    Violation {
        rule: String,
        what: String,
    },
}

/// A trace that is being written, and what each member was last seen to be.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) lines: Vec<Line>,
    standings: BTreeMap<usize, &'static str>,
    /// Until when each member acts for each node, in true nanoseconds.
    acting: BTreeMap<(usize, NodeName), u64>,
}

/// Returns a true time in seconds.
pub(crate) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl World {
    /// Adds a line to the trace, when there is one.
    pub(crate) fn note(&mut self, at: Option<usize>, seen: impl FnOnce() -> Seen) {
        if let Some(trace) = &mut self.trace {
            trace.lines.push(Line { t: seconds(self.time), member: at.map(name), seen: seen() });
        }
    }

    /// Adds what changed about a member since it was looked at last.
    pub(crate) fn watch(&mut self, at: usize) {
        let Some(mut trace) = self.trace.take() else { return };
        self.watch_standing(&mut trace, at);
        self.watch_acting(&mut trace, at);
        self.trace = Some(trace);
    }

    /// Adds the roster that came in force at a member.
    pub(crate) fn watch_roster(&mut self, at: usize) {
        let Some(core) = self.sites[at].core.as_ref().filter(|_| self.trace.is_some()) else { return };
        let roster = core.roster();
        if self.seen.roster(at) == Some(roster.version) {
            return;
        }
        let ids = |ids: &mut dyn Iterator<Item = MemberId>| ids.map(|id| id.to_string()).collect();
        let seen = Seen::Roster {
            version: format!("{}.{}", roster.version.generation, roster.version.epoch),
            hash: roster.hash().to_string(),
            voters: ids(&mut roster.voters().iter().copied()),
            ids: ids(&mut roster.ids()),
        };
        self.note(Some(at), || seen);
    }

    fn watch_standing(&self, trace: &mut Trace, at: usize) {
        let standing = match self.sites[at].core.as_ref() {
            None => "down",
            Some(core) if core.is_removed() => "removed",
            Some(core) => match core.standing() {
                Standing::Isolated => "isolated",
                Standing::Rejoining => "rejoining",
                Standing::Seated => "seated",
            },
        };
        if trace.standings.insert(at, standing) != Some(standing) && standing != "down" {
            let seen = Seen::Standing { to: standing.to_owned() };
            trace.lines.push(Line { t: seconds(self.time), member: Some(name(at)), seen });
        }
    }

    fn watch_acting(&self, trace: &mut Trace, at: usize) {
        let mut line = |seen| trace.lines.push(Line { t: seconds(self.time), member: Some(name(at)), seen });
        let before: Vec<_> = trace.acting.range((at, first_node())..).take_while(|((of, _), _)| *of == at).collect();
        let gone: Vec<_> =
            before.iter().filter(|((_, node), _)| !self.acts(at, node)).map(|((_, node), _)| node.clone()).collect();
        for node in gone {
            trace.acting.remove(&(at, node.clone()));
            line(Seen::Rests { node: node.to_string() });
        }
        let Some(core) = &self.sites[at].core else { return };
        for node in core.acting().filter(|node| self.acts(at, node)) {
            let until = self.lease_end(core, at, node);
            let known = trace.acting.insert((at, node.clone()), until);
            if known.is_none_or(|known| until >= known + MS) {
                line(Seen::Acts { node: node.to_string(), until: seconds(until), token: None });
            }
        }
    }

    /// Returns the true time at which a member's right to act for a node ends, to the millisecond, by asking its core.
    fn lease_end(&self, core: &Collective, at: usize, node: &NodeName) -> u64 {
        let clock = self.sites[at].clock;
        let now = clock.now(self.time).boot.as_nanos();
        let lease = core.roster().timing.lease().as_nanos() as u64;
        let (mut holds, mut ends) = (now, now + 2 * lease);
        while ends - holds > MS {
            let middle = holds + (ends - holds) / 2;
            if core.acts(node, Instant::from_nanos(middle)) { holds = middle } else { ends = middle }
        }
        clock.when(Instant::from_nanos(holds))
    }

    /// Returns the first line of a trace of this run.
    pub(crate) fn head(&self, scenario: &crate::scenario::Scenario, seed: u64) -> Head {
        Head {
            trace: FORMAT,
            scenario: scenario.name.clone(),
            seed,
            lease: f64::from(scenario.timing.lease_ms) / 1e3,
            margin: f64::from(scenario.timing.margin_permille) / 1e3,
            drift: 0.025,
            members: (0..self.sites.len()).map(name).collect(),
        }
    }
}

fn first_node() -> NodeName {
    NodeName::new("!").or_else(|_| NodeName::new("0")).expect("a digit is a node name")
}

/// Writes a trace as JSON lines.
pub(crate) fn write(head: &Head, lines: &[Line]) -> serde_json::Result<String> {
    let mut text = serde_json::to_string(head)?;
    text.push('\n');
    for line in lines {
        text.push_str(&serde_json::to_string(line)?);
        text.push('\n');
    }
    Ok(text)
}

/// Reads a trace of JSON lines.
///
/// # Errors
/// When a line is none, with its number.
pub(crate) fn read(text: &str) -> Result<(Head, Vec<Line>), String> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, first) = lines.next().ok_or("the trace is empty")?;
    let head: Head = serde_json::from_str(first).map_err(|error| format!("line 1, the head of the trace: {error}"))?;
    if head.trace != FORMAT {
        return Err(format!("the trace has format {}; this program reads {FORMAT}", head.trace));
    }
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))
    };
    Ok((head, lines.map(line).collect::<Result<_, _>>()?))
}

/// Tells the lines that people care about, as text: times count from the beginning of the load.
pub(crate) fn tell(lines: &[Line]) -> Vec<String> {
    let begin = lines.iter().find(|line| line.seen == Seen::Begin).map_or(0.0, |line| line.t);
    let mut telling = Telling::default();
    for line in lines {
        let member = line.member.as_deref().unwrap_or("");
        match &line.seen {
            // What was taken up before is told when the load begins.
            Seen::Acts { node, .. } if line.t < begin => {
                telling.acting.insert((member, node));
            }
            Seen::Rests { node } if line.t < begin => {
                telling.acting.remove(&(member, node));
            }
            _ if line.t < begin => {}
            seen => telling.line(&format!("{:8.3}s", line.t - begin), member, seen),
        }
    }
    telling.told()
}

/// Lines for people on their way.
#[derive(Default)]
struct Telling<'a> {
    /// When, what, and for which nodes.
    told: Vec<(String, String, Vec<&'a str>)>,
    acting: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Telling<'a> {
    fn line(&mut self, time: &str, member: &'a str, seen: &'a Seen) {
        let what = match seen {
            Seen::Begin => {
                self.say(time, "everybody has a seat; load and faults begin".to_owned());
                for (member, node) in self.acting.clone() {
                    self.say_of_node(time, format!("{member} acts for"), node);
                }
                return;
            }
            Seen::Acts { node, .. } => {
                if self.acting.insert((member, node)) {
                    self.say_of_node(time, format!("{member} acts for"), node);
                }
                return;
            }
            Seen::Rests { node } => {
                self.acting.remove(&(member, node));
                return self.say_of_node(time, format!("{member} rests from"), node);
            }
            Seen::Calm => "load and faults end".to_owned(),
            Seen::Converged => "everything is equal, quorate and managed".to_owned(),
            Seen::Start { incarnation, .. } => format!("{member} starts, incarnation {incarnation}"),
            Seen::End { how } => format!("{member} ends: {how}"),
            Seen::Pause => format!("{member} stands still"),
            Seen::Resume => format!("{member} goes on"),
            Seen::Fault { what, .. } => format!("FAULT {what}"),
            Seen::Healed { what, .. } => format!("ended {what}"),
            Seen::Standing { to } => format!("{member} is {to}"),
            Seen::Roster { version, voters, .. } => {
                format!("{member} has roster {version} with {} voters", voters.len())
            }
            Seen::Answered { what, answer } => format!("{member} answers {what}: {answer}"),
            Seen::Joined { .. } => format!("{member} is let in"),
            Seen::Violation { rule, what } => format!("VIOLATION {rule}: {what}"),
            Seen::LinkUp { .. }
            | Seen::LinkDown { .. }
            | Seen::Granted { .. }
            | Seen::Action { .. }
            | Seen::ActionUntil { .. }
            | Seen::Acknowledged { .. }
            | Seen::Event { .. } => return,
        };
        self.say(time, what);
    }

    fn say(&mut self, time: &str, what: String) {
        self.told.push((time.to_owned(), what, Vec::new()));
    }

    /// What one member begins or ends for several nodes at one moment is one line.
    fn say_of_node(&mut self, time: &str, what: String, node: &'a str) {
        match self.told.last_mut() {
            Some((at, same, nodes)) if at == time && *same == what => nodes.push(node),
            _ => self.told.push((time.to_owned(), what, vec![node])),
        }
    }

    fn told(self) -> Vec<String> {
        let line = |(time, what, nodes): (String, String, Vec<&str>)| {
            format!("{time} {what} {}", nodes.join(" ")).trim_end().to_owned()
        };
        self.told.into_iter().map(line).collect()
    }
}

/// Returns under which words an event of a member is counted.
pub(crate) fn counted_as(kind: EventKind) -> &'static str {
    match kind {
        EventKind::QuorumLost => "quorum lost",
        EventKind::QuorumRegained => "quorum regained",
        EventKind::MemberDown => "member down",
        EventKind::MemberSuspect => "member suspect",
        EventKind::EpochDecided => "epoch",
        EventKind::ResyncDone => "resync",
        _ => "other event",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Options, run_with};
    use crate::scenario::short;

    /// Compares what each scenario of the library tells with what it told before; `UPDATE=1` writes it anew.
    #[test]
    fn every_scenario_tells_what_it_told_before() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
        let mut differ = Vec::new();
        for scenario in short() {
            let report = run_with(&scenario, 1, &Options { trace: true, ..Options::default() });
            let (_, lines) = report.trace.expect("a trace was asked for");
            let told = tell(&lines).join("\n") + "\n";
            let path = format!("{directory}/{}.txt", scenario.name);
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, told).expect("the golden directory takes files");
            } else if let Some((line, was, is)) =
                crate::case::difference(&std::fs::read_to_string(&path).unwrap_or_default(), &told)
            {
                differ.push(format!("{}, line {line}:\n  {was}\n  {is}", scenario.name));
            }
        }
        let hint = "when they are right, write them anew: UPDATE=1 cargo test -p collective-sim told_before";
        assert!(differ.is_empty(), "traces differ; {hint}\n{}", differ.join("\n"));
    }

    #[test]
    fn what_happens_to_several_nodes_at_once_is_one_line() {
        let line = |t, seen| Line { t, member: Some("m1".to_owned()), seen };
        let acts = |node: &str| Seen::Acts { node: node.to_owned(), until: 9.0, token: None };
        let lines = [line(5.0, Seen::Begin), line(6.5, acts("n1")), line(6.5, acts("n2")), line(6.6, acts("n1"))];
        assert_eq!(tell(&lines)[1..], ["   1.500s m1 acts for n1 n2"]);
    }
}
