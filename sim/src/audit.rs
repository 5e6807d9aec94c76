//! Checks a trace alone, whoever wrote it: the same checkers, fed from its lines.

use std::collections::{BTreeMap, BTreeSet};

use collective::proto::identity::{InviteId, MemberId, RosterHash};
use collective::proto::roster::{Timing, Version};

use crate::check::{Authority, Checker, Rule, Violation, token_of};
use crate::trace::{Head, Line, Seen};

/// What was found in a trace.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) violations: Vec<Violation>,
    /// How often each rule's premise was met.
    pub(crate) premises: BTreeMap<&'static str, u64>,
}

/// Checks I1, I2, I3, I5, I6 and the incarnations over a trace.
pub(crate) fn audit(head: &Head, lines: &[Line]) -> Audit {
    let mut auditor = Auditor { head, checker: Checker::default(), state: State::default(), premises: BTreeMap::new() };
    for line in lines {
        auditor.line(line);
    }
    Audit { violations: auditor.checker.violations, premises: auditor.premises }
}

struct Auditor<'a> {
    head: &'a Head,
    checker: Checker,
    state: State<'a>,
    premises: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct State<'a> {
    /// Until when each member acts for each node.
    acting: BTreeMap<&'a str, BTreeMap<usize, u64>>,
    /// What each action runs for, and until when.
    actions: BTreeMap<(usize, u64), (&'a str, u64)>,
    voters: BTreeMap<usize, BTreeSet<MemberId>>,
    ids: BTreeMap<usize, MemberId>,
}

impl<'a> Auditor<'a> {
    fn count(&mut self, what: &'static str) {
        *self.premises.entry(what).or_default() += 1;
    }

    /// How long a grant may be used: T(1-m) on a clock that may be slow.
    fn timing(&self) -> Timing {
        let usable_ms = self.head.lease * (1.0 - self.head.margin) * (1.0 + self.head.drift) * 1e3;
        // The checkers take the margin off by themselves.
        Timing { lease_ms: usable_ms.ceil() as u32 + 1, margin_permille: 0, ..Timing::LAN }
    }

    fn line(&mut self, line: &'a Line) {
        let at = (line.t * 1e9) as u64;
        let who = line.member.as_deref().and_then(|name| self.head.members.iter().position(|other| other == name));
        let Some(member) = who else { return };
        match &line.seen {
            Seen::Start { id, incarnation } => {
                self.count("start");
                self.checker.born(member);
                let id = MemberId(key(id));
                // Another enrolment has its incarnations to itself.
                if self.state.ids.insert(member, id).is_some_and(|before| before != id) {
                    self.checker.enrolled(member);
                }
                self.checker.incarnation(at, member, *incarnation, *incarnation, true);
            }
            Seen::Roster { version, hash, voters, ids } => self.roster(at, member, version, hash, voters, ids),
            Seen::Granted { voter, sent } => {
                self.count("grant");
                self.checker.contact(member, MemberId(key(voter)), (*sent * 1e9) as u64);
            }
            Seen::Acts { node, until, token } => {
                self.count("act");
                self.token(at, node, member, token.as_deref());
                self.state.acting.entry(node).or_default().insert(member, (*until * 1e9) as u64);
                self.acting(at, node);
                self.authority(at, member, &format!("acts for {node}"));
                if let Some(id) = self.state.ids.get(&member).copied() {
                    let timing = Timing { lease_ms: (self.head.lease * 1e3) as u32, ..Timing::LAN };
                    self.checker.acts_as(at, member, id, timing);
                }
            }
            Seen::Rests { node } => {
                self.state.acting.entry(node).or_default().remove(&member);
            }
            Seen::End { .. } => self.state.acting.values_mut().for_each(|acting| {
                acting.remove(&member);
            }),
            Seen::Action { node, id, until, token } => {
                self.count("action");
                self.token(at, node, member, token.as_deref());
                self.state.actions.insert((member, *id), (node, (*until * 1e9) as u64));
                let running = self.state.actions.iter().filter(|(_, (of, until))| of == node && *until > at);
                let members: BTreeSet<_> = running.map(|((member, _), _)| *member).collect();
                self.checker.acting(at, node, &members.into_iter().collect::<Vec<_>>());
            }
            Seen::ActionUntil { id, until } => {
                if let Some((_, end)) = self.state.actions.get_mut(&(member, *id)) {
                    *end = (*until * 1e9) as u64;
                }
            }
            Seen::Acknowledged { write, copies, voters } => {
                self.count("acknowledged");
                if let Some(copies) = copies {
                    self.checker.acknowledged(at, write, *copies, *voters);
                }
                self.authority(at, member, &format!("acknowledges {write}"));
            }
            Seen::Joined { invite, id } => {
                self.count("join");
                self.checker.consumed(at, InviteId(key(invite)), MemberId(key(id)));
            }
            _ => {}
        }
    }

    fn roster(&mut self, at: u64, member: usize, version: &str, hash: &str, voters: &[String], ids: &[String]) {
        self.count("roster");
        let parts = version.split_once('.').and_then(|(high, low)| Some((high.parse().ok()?, low.parse().ok()?)));
        let Some((generation, epoch)) = parts else {
            return self.checker.violate(at, Rule::OneRoster, format!("{version:?} is no version of a roster"));
        };
        let version = Version { generation, epoch };
        self.checker.roster(at, member, version, RosterHash(key(hash)));
        self.checker.members(at, version, ids.iter().map(|id| MemberId(key(id))).collect());
        self.state.voters.insert(member, voters.iter().map(|id| MemberId(key(id))).collect());
    }

    /// Tokens rise from one manager of a node to the next.
    fn token(&mut self, at: u64, node: &str, member: usize, token: Option<&str>) {
        if let Some(token) = token.and_then(token_of) {
            self.count("token");
            self.checker.token(at, node, member, token);
        }
    }

    fn acting(&mut self, at: u64, node: &str) {
        let Some(acting) = self.state.acting.get(node) else { return };
        let members: Vec<_> = acting.iter().filter(|(_, until)| **until > at).map(|(member, _)| *member).collect();
        self.checker.acting(at, node, &members);
    }

    fn authority(&mut self, at: u64, member: usize, what: &str) {
        let timing = self.timing();
        let (Some(voters), Some(me)) = (self.state.voters.get(&member), self.state.ids.get(&member)) else { return };
        self.checker.authority(at, Authority { member, me: *me, voters, timing }, at, what);
    }
}

/// Makes an id of fixed length of whatever text names it.
fn key<const N: usize>(text: &str) -> [u8; N] {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    std::array::from_fn(|i| digest.as_ref()[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Options, run_with};
    use crate::scenario::find;
    use crate::trace;

    fn head() -> Head {
        let members = ["a", "b", "c"].map(str::to_owned).to_vec();
        Head { trace: 1, scenario: "x".into(), seed: 0, lease: 2.0, margin: 0.05, drift: 0.025, members }
    }

    fn rules(text: &str) -> Vec<Rule> {
        let head = serde_json::to_string(&head()).expect("JSON");
        let (head, lines) = trace::read(&format!("{head}\n{text}")).expect("a trace");
        audit(&head, &lines).violations.iter().map(|violation| violation.rule).collect()
    }

    const STARTS: &str = r#"{"t":0,"m":"a","is":"start","id":"A","incarnation":1}
{"t":0,"m":"a","is":"roster","version":"0.3","hash":"x","voters":["A","B","C"],"ids":["A","B","C"]}
{"t":1,"m":"a","is":"granted","voter":"B","sent":0.99}
{"t":1,"m":"a","is":"acts","node":"n1","until":2.8}
"#;

    #[test]
    fn two_that_act_at_once_are_seen_and_two_in_turn_are_not() {
        let other =
            |t: f64| format!("{STARTS}{{\"t\":{t},\"m\":\"b\",\"is\":\"acts\",\"node\":\"n1\",\"until\":{}}}", t + 1.8);
        assert_eq!(rules(&other(2.9)), []);
        assert_eq!(rules(&other(2.7)), [Rule::OneManager]);
        let ended = STARTS.to_owned() + "{\"t\":2,\"m\":\"a\",\"is\":\"end\",\"how\":\"killed\"}\n";
        assert_eq!(rules(&format!("{ended}{{\"t\":2.1,\"m\":\"b\",\"is\":\"acts\",\"node\":\"n1\",\"until\":4}}")), []);
    }

    #[test]
    fn acting_without_a_majority_is_seen() {
        assert_eq!(
            rules(&format!("{STARTS}{}", r#"{"t":3.5,"m":"a","is":"acts","node":"n2","until":4}"#)),
            [Rule::LockDown]
        );
    }

    #[test]
    fn what_each_other_rule_forbids_is_seen() {
        let two = r#"{"t":1,"m":"b","is":"roster","version":"0.3","hash":"y","voters":["A"],"ids":["A"]}"#;
        assert_eq!(rules(&format!("{STARTS}{two}")), [Rule::OneRoster]);
        let early = r#"{"t":1,"m":"a","is":"acknowledged","write":"w","copies":1,"voters":3}"#;
        assert_eq!(rules(&format!("{STARTS}{early}")), [Rule::NothingLost]);
        let twice = r#"{"t":2,"m":"a","is":"start","id":"A","incarnation":1}"#;
        assert_eq!(rules(&format!("{STARTS}{twice}")), [Rule::Incarnation]);
        let joins = |id| format!("{{\"t\":2,\"m\":\"c\",\"is\":\"joined\",\"invite\":\"i\",\"id\":\"{id}\"}}\n");
        assert_eq!(rules(&format!("{}{}", joins("X"), joins("Y"))), [Rule::Once]);
        let action =
            |m, id| format!("{{\"t\":2,\"m\":\"{m}\",\"is\":\"action\",\"node\":\"n1\",\"id\":{id},\"until\":3}}\n");
        assert_eq!(rules(&format!("{}{}", action("b", 1), action("c", 2))), [Rule::OneManager]);
    }

    #[test]
    fn a_token_that_falls_is_seen_where_tokens_are_told() {
        let acts = |t: f64, m: &str, token: &str| {
            let until = t + 0.1;
            format!("{{\"t\":{t},\"m\":\"{m}\",\"is\":\"acts\",\"node\":\"n9\",\"until\":{until}{token}}}\n")
        };
        let (first, second) = (",\"token\":\"0.3.1\"", ",\"token\":\"0.3.2\"");
        assert_eq!(rules(&format!("{STARTS}{}{}", acts(1.5, "a", first), acts(2.0, "b", second))), []);
        assert_eq!(rules(&format!("{STARTS}{}{}", acts(1.5, "a", second), acts(2.0, "b", first))), [Rule::OneManager]);
        assert_eq!(rules(&format!("{STARTS}{}{}", acts(1.5, "a", ""), acts(2.0, "b", ""))), []);
    }

    #[test]
    fn a_line_that_is_none_is_told_with_its_number() {
        let head = serde_json::to_string(&head()).expect("JSON");
        assert!(trace::read(&format!("{head}\n\nnonsense")).expect_err("a mistake").starts_with("line 3: "));
        assert!(trace::read("{}").expect_err("a mistake").starts_with("line 1"));
    }

    #[test]
    fn a_sound_run_is_sound_in_its_trace_too() {
        for (name, seed) in [("split-minority", 1), ("random", 3), ("cold-start", 2)] {
            let options = Options { trace: true, ..Options::default() };
            let report = run_with(&find(name).expect("a scenario"), seed, &options);
            let (head, lines) = report.trace.expect("a trace was asked for");
            let text = trace::write(&head, &lines).expect("JSON");
            let (head, lines) = trace::read(&text).expect("what was written");
            let audit = audit(&head, &lines);
            assert_eq!(audit.violations, [], "{name}");
            assert!(["act", "grant", "roster", "acknowledged"].iter().all(|what| audit.premises[what] > 5));
        }
    }
}
