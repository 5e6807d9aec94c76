//! Answers from this member's own view: they need no quorum, and give every fact its age.

use std::time::Duration;

use super::Collective;
use super::settle::state_of_letter;
use crate::proto::facts;
use crate::proto::identity::MemberId;
use crate::proto::liveness::Liveness;
use crate::proto::name::MemberName;
use crate::proto::quorum::Quorum;
use crate::proto::request::{
    DataSummary, EventKind, Events, Health, MemberStatus, Members, QuorumReport, Refusal, Sees, Show, Silent, Status,
    View, ViewRow, ViewSummary, VoterReport, Votes,
};
use crate::proto::roster::Member;
use crate::proto::time::WallTime;

/// Writes a wall time as RFC 3339 in UTC, to the second.
pub(super) fn time_text(time: WallTime) -> String {
    // Year 9999 is the last that the format can write.
    let time = std::time::UNIX_EPOCH + Duration::from_millis(time.0.min(253_402_300_799_000));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A name for a member that nothing is known of.
pub(super) fn nobody() -> MemberName {
    MemberName::new("unknown").expect("a valid name")
}

impl Collective {
    pub(super) fn show(&self) -> Show {
        let leader = self.leader.clone();
        let mut show = Show { quorum: self.is_quorate(self.now.boot), leader: leader.clone(), ..Show::default() };
        for member in self.roster.members() {
            if !member.role.votes() {
                show.nonvoting.push(member.name.clone());
            }
            if Some(&member.name) == leader.as_ref() {
                continue;
            }
            if self.removed.is_none() && self.is_live(member.id) {
                show.active.push(member.name.clone());
            } else {
                show.offline.push(member.name.clone());
            }
        }
        show
    }

    pub(super) fn votes(&self) -> Votes {
        votes(self.holder.quorum(&self.roster, self.now.boot), self.removed.is_none())
    }

    pub(super) fn status(&self) -> Status {
        let members: Vec<_> = self.roster.members().map(|member| self.member_status(member)).collect();
        let nodes = self.documents.nodes().count();
        let managed = self.documents.nodes().filter(|node| self.manager_of(node).is_some()).count();
        Status {
            schema: Default::default(),
            collective: self.roster.cluster.to_string(),
            me: self.name.clone(),
            id: self.me.to_string(),
            incarnation: self.stamp.incarnation,
            time: time_text(self.now.wall),
            standing: self.standing,
            roster: self.roster.version.to_string(),
            roster_hash: self.roster.hash().to_string(),
            quorum: self.votes(),
            leader: self.leader.clone(),
            no_quorum_for_ms: self.isolated_since.map(|since| millis(self.now.boot.since(since))),
            view: self.view_summary(),
            data: DataSummary {
                converged: self.is_converged(),
                heads: data_encoding::HEXLOWER.encode(&self.documents.root()),
                nodes,
                groups: self.documents.groups().count(),
            },
            managed,
            health: self.health(&members),
            members,
        }
    }

    /// Returns whether every live member's documents are known to equal this member's.
    pub(super) fn is_converged(&self) -> bool {
        let root = self.documents.root();
        self.roster.ids().filter(|id| *id != self.me && self.is_live(*id)).all(|id| {
            self.facts.get(&id).is_some_and(|(facts, _)| facts.root == root)
                && self.links.get(&id).is_some_and(|link| link.has_resynced)
        })
    }

    fn view_summary(&self) -> ViewSummary {
        let hash = self.swim.view().hash().to_be_bytes();
        ViewSummary {
            hash: data_encoding::HEXLOWER.encode(&hash),
            agreed_by: self
                .roster
                .members()
                .filter(|member| {
                    member.id == self.me || self.facts.get(&member.id).is_some_and(|(facts, _)| facts.view == hash)
                })
                .map(|member| member.name.clone())
                .collect(),
            silent: self
                .roster
                .members()
                .filter(|member| !self.is_live(member.id))
                .map(|member| Silent { member: member.name.clone(), for_ms: self.silent_for(member.id).map(millis) })
                .collect(),
        }
    }

    fn member_status(&self, member: &Member) -> MemberStatus {
        let id = member.id;
        let belief = self.swim.view().get(id);
        let me = id == self.me;
        let state = if me { Some(Liveness::Alive) } else { belief.map(|belief| belief.state) };
        let facts = self.facts.get(&id).map(|(facts, _)| facts);
        MemberStatus {
            name: member.name.clone(),
            id: id.to_string(),
            state: state.map_or_else(|| "unknown".to_owned(), |state| state.to_string()),
            since_ms: belief.map(|belief| millis(self.now.boot.since(belief.since))),
            role: member.role,
            votes: member.is_voter(),
            learner: member.learner,
            draining: self.is_draining(id),
            manages: if me { self.managers.acting_count() } else { facts.map_or(0, |facts| facts.manages as usize) },
            rtt_us: belief.and_then(|belief| belief.rtt_us).map(u64::from),
            last_heard_ms: if me { Some(0) } else { self.silent_for(id).map(millis) },
            lag: self.lag(id),
            version: if me { Some(self.software.clone()) } else { facts.map(|facts| facts.software.clone()) },
            address: if me {
                self.addresses.first().map(ToString::to_string)
            } else {
                self.links
                    .get(&id)
                    .map(|link| link.address.to_string())
                    .or_else(|| self.peers.get(&id)?.addresses.first().cloned())
            },
            fingerprint: member.fingerprints.last().map(ToString::to_string).unwrap_or_default(),
            trouble: self.trouble.get(&id).filter(|_| !self.links.contains_key(&id)).cloned(),
        }
    }

    /// Returns in how many documents a member differs from this one, as far as this one knows.
    fn lag(&self, id: MemberId) -> Option<usize> {
        if id == self.me {
            return Some(0);
        }
        let (facts, _) = self.facts.get(&id)?;
        if facts.root == self.documents.root() {
            Some(0)
        } else {
            Some(self.links.get(&id)?.resync.owed().len().max(1))
        }
    }

    fn health(&self, members: &[MemberStatus]) -> Vec<Health> {
        let mut health = Vec::new();
        let mut tell = |code: &str, severity: &str, message: String, hint: String| {
            health.push(Health { code: code.into(), severity: severity.into(), message, hint });
        };
        if let Some(notice) = &self.removed {
            let name = self.name.as_ref().map_or("NAME", MemberName::as_str);
            tell("removed", "critical", notice.clone(), format!("collective invite {name}"));
            return health;
        }
        let votes = self.votes();
        if !votes.quorate {
            let message = format!("no quorum: {} of {} votes, {} needed", votes.votes, votes.expected, votes.needed);
            tell("no-quorum", "critical", message, "collective members".into());
        } else if votes.failure_tolerance == 0 && votes.expected > 1 {
            let message = "one more failure stops writes".to_owned();
            let hint = if votes.expected == 2 { "collective invite NAME" } else { "collective members" };
            tell("quorum-at-risk", "warning", message, hint.into());
        }
        for member in members.iter().filter(|member| member.state == "down") {
            let why = member.trouble.clone().unwrap_or_else(|| "no answer, direct or through others".into());
            let message = format!("{} is down: {why}", member.name);
            tell(
                "member-down",
                "warning",
                message,
                format!("if it is gone for good: collective delete {}", member.name),
            );
        }
        for id in self.voter.duplicate_sessions(self.now.boot) {
            let name = self.name_of(id);
            let places: Vec<_> = self.peers.get(&id).map(|record| record.addresses.clone()).unwrap_or_default();
            let message = format!("two daemons run as {name}, seen at {}", places.join(" and "));
            tell("duplicate-identity", "critical", message, format!("stop one, then: collective invite {name}"));
        }
        if self.wants_fewer_voters() {
            let message =
                format!("{} members vote, and each decision waits for {} of them", votes.expected, votes.needed);
            tell("many-voters", "info", message, "collective voters --ideal 5".into());
        }
        if let Some(reason) = &self.writes.disk_trouble {
            tell("store", "critical", format!("the store takes no writes: {reason}"), "df -h".into());
        }
        health
    }

    pub(super) fn members(&self, only: Option<&[MemberName]>) -> Members {
        Members {
            schema: Default::default(),
            quorum: self.is_quorate(self.now.boot),
            members: self
                .roster
                .members()
                .filter(|member| only.is_none_or(|only| only.contains(&member.name)))
                .map(|member| self.member_status(member))
                .collect(),
        }
    }

    pub(super) fn view(&self) -> View {
        let ids: Vec<_> = self.roster.ids().collect();
        let row = |id: MemberId, runs: &str, age, hash: [u8; 8]| ViewRow {
            member: self.name_of(id),
            age_ms: age,
            hash: data_encoding::HEXLOWER.encode(&hash),
            sees: ids
                .iter()
                .zip(facts::of_runs(runs))
                .filter(|(other, _)| **other != id)
                .map(|(other, letter)| Sees { member: self.name_of(*other), state: state_of_letter(letter).into() })
                .collect(),
        };
        let mut rows: Vec<_> = self
            .facts
            .iter()
            // Another roster has other columns.
            .filter(|(_, (facts, _))| facts.version == self.roster.version)
            .map(|(id, (facts, at))| row(*id, &facts.sees, millis(self.now.boot.since(*at)), facts.view))
            .collect();
        if let Some(own) = self.published.as_ref().map(|published| &published.facts) {
            rows.push(row(self.me, &own.sees, 0, own.view));
        }
        rows.sort_by(|a, b| a.member.cmp(&b.member));
        View { schema: Default::default(), rows }
    }

    pub(super) fn quorum_report(&self, without: &[MemberName]) -> QuorumReport {
        let lost = without.iter().filter_map(|name| self.roster.by_name(name)).map(|member| member.id).collect();
        let grants = self.holder.under(&self.roster);
        let granted = grants.granted(self.now.boot);
        QuorumReport {
            schema: Default::default(),
            quorum: self.votes(),
            without: without.to_vec(),
            then: (!without.is_empty())
                .then(|| votes(Quorum::what_if(&self.voters, &granted, &lost), self.removed.is_none())),
            voters: self
                .roster
                .members()
                .filter(|member| member.is_voter())
                .map(|member| {
                    let until = grants.until(member.id).filter(|until| *until > self.now.boot);
                    VoterReport {
                        member: member.name.clone(),
                        granted: until.is_some(),
                        for_ms: until.map_or(0, |until| millis(until.since(self.now.boot))),
                    }
                })
                .collect(),
        }
    }

    pub(super) fn events(&self, after: Option<u64>, kinds: &[EventKind], limit: Option<usize>) -> Events {
        let chosen: Vec<_> = self
            .happened
            .iter()
            .filter(|event| after.is_none_or(|after| event.seq > after))
            .filter(|event| kinds.is_empty() || kinds.contains(&event.kind))
            .cloned()
            .collect();
        let skip = limit.map_or(0, |limit| chosen.len().saturating_sub(limit));
        Events { schema: Default::default(), events: chosen.into_iter().skip(skip).collect() }
    }

    /// Says that there is no quorum, since when, and who is missing.
    pub(super) fn no_quorum(&self) -> Refusal {
        use crate::proto::request::ErrorCode;
        if let Some(notice) = &self.removed {
            return Refusal::new(ErrorCode::NoQuorum, notice.clone(), "collective show");
        }
        let votes = self.votes();
        let missing: Vec<_> = self
            .roster
            .members()
            .filter(|member| member.is_voter() && !self.is_live(member.id))
            .map(|member| member.name.to_string())
            .collect();
        let since = self.isolated_since.map(|since| self.now.boot.since(since)).unwrap_or_default();
        let who = if missing.is_empty() { String::new() } else { format!("; missing: {}", missing.join(", ")) };
        Refusal::new(
            ErrorCode::NoQuorum,
            format!(
                "Collective does not have quorum: {} of {} votes, {} needed, for {:.1} s{who}",
                votes.votes,
                votes.expected,
                votes.needed,
                since.as_secs_f64()
            ),
            "look with `collective status`; reads work with --stale",
        )
    }
}

/// Returns whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn votes(quorum: Quorum, member: bool) -> Votes {
    Votes {
        quorate: member && quorum.is_held(),
        votes: quorum.granted,
        expected: quorum.voters,
        needed: quorum.needed(),
        failure_tolerance: quorum.failure_tolerance(),
    }
}
