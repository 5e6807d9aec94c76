//! Fail-back: nodes go home to the manager they prefer, a few at a time, once it has been back for a while.
//!
//! The manager writes into the node's record whom it hands the node to. Every member that reads it elects that one, so
//! the manager releases and the other claims: break before make, as with an administrator's order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Collective;
use super::managers::record_ahead;
use super::writes::Then;
use crate::proto::document::{Entity, Put};
use crate::proto::election::Record;
use crate::proto::identity::MemberId;
use crate::proto::name::{MemberName, NodeName};
use crate::proto::request::Wait;
use crate::proto::time::Instant;

/// How long quorum must have been held here, and the other manager have been available, before a node goes home.
const STABLE_FOR: Duration = Duration::from_secs(60);
/// How often some nodes go home.
const EVERY: Duration = Duration::from_secs(60);
/// How often it is looked at whether any may.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// One of so many nodes goes home at a time.
const PART: usize = 10;

/// Nodes that are to go home, and since when there is somebody to go to.
#[derive(Debug, Default)]
pub(super) struct FailBacks {
    homes: BTreeMap<NodeName, MemberName>,
    available_since: BTreeMap<MemberId, Instant>,
    /// When to look whether nodes may go home.
    look_at: Instant,
}

impl FailBacks {
    /// Takes note of who can manage nodes now.
    pub(super) fn on_available(&mut self, available: &BTreeSet<MemberId>, now: Instant) {
        self.available_since.retain(|id, _| available.contains(id));
        for id in available {
            self.available_since.entry(*id).or_insert(now);
        }
    }

    /// Takes note of whether one more can manage nodes, or one less.
    pub(super) fn on_change(&mut self, id: MemberId, is_available: bool, now: Instant) {
        if is_available {
            self.available_since.entry(id).or_insert(now);
        } else {
            self.available_since.remove(&id);
        }
    }

    /// Takes note of where a node is to go, if anywhere.
    pub(super) fn on_review(&mut self, node: &NodeName, home: Option<MemberName>) {
        match home {
            Some(home) => drop(self.homes.insert(node.clone(), home)),
            None => drop(self.homes.remove(node)),
        }
    }

    /// Forgets everything: quorum is lost, and what comes after it must prove stable anew.
    pub(super) fn clear(&mut self) {
        self.homes.clear();
        self.available_since.clear();
    }

    /// Returns when to look at it again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        (!self.homes.is_empty()).then_some(self.look_at)
    }
}

impl Collective {
    /// Hands a tenth of this member's nodes a minute, and at least one, to those they prefer.
    pub(super) fn fail_back(&mut self) {
        let now = self.now.boot;
        if self.managers.fail_backs.next_due().is_none_or(|due| due > now) {
            return;
        }
        let fail_backs = &self.managers.fail_backs;
        let is_stable = |home: &MemberName| {
            let id = self.roster.by_name(home).map(|member| member.id);
            let since = id.and_then(|id| fail_backs.available_since.get(&id));
            since.is_some_and(|since| *since + STABLE_FOR <= now)
        };
        let count = (self.managers.acting_count() / PART).max(1);
        let going = fail_backs.homes.iter().filter(|(_, home)| is_stable(home)).take(count);
        let puts: Vec<_> = going.filter_map(|(node, home)| self.handing_over(node, home)).collect();
        if puts.is_empty() {
            self.managers.fail_backs.look_at = now + LOOK_EVERY;
            return;
        }
        self.managers.fail_backs.look_at = now + EVERY;
        // Whoever reads the record acts on it; when it cannot be written, the next minute tries again.
        drop(self.write(puts, Wait::Majority, self.roster.timing.lease(), Then::Nothing));
    }

    fn handing_over(&self, node: &NodeName, home: &MemberName) -> Option<Put> {
        let entity = Entity::Node(node.clone());
        let record = record_ahead(&self.documents, &entity)?;
        let record = Record { despite: None, to: Some(home.clone()), ..record };
        Some(Put { entity, attribute: Record::ATTRIBUTE.into(), value: Some(record.to_string()) })
    }
}
