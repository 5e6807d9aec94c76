//! What is looked at after every event, and what a run tells of itself.

use std::collections::{BTreeMap, BTreeSet};

use collective::proto::document::Entity;
use collective::proto::identity::MemberId;
use collective::proto::name::NodeName;
use collective::proto::request::Standing;
use collective::proto::roster::Version;
use collective::proto::time::Instant;

use super::World;
use crate::check::{Authority, Rule};

/// What was seen of each member after its last event; between two of them only time changes anything.
#[derive(Debug)]
pub(super) struct Seen {
    rosters: Vec<Option<Version>>,
    /// How many members have each roster.
    versions: BTreeMap<Version, usize>,
    /// For each member the nodes that it acts for, by number, and until when on its own clock.
    acting: Vec<Vec<(usize, Instant)>>,
    /// For each node the members that act for it, or did until their lease ended.
    managers: Vec<Vec<usize>>,
    numbers: BTreeMap<NodeName, usize>,
    names: Vec<NodeName>,
    /// Counted at nearly every event, so not by word.
    quorate: u64,
    acts: u64,
}

impl Seen {
    pub(super) fn new(members: usize) -> Self {
        Self {
            rosters: vec![None; members],
            versions: BTreeMap::new(),
            acting: vec![Vec::new(); members],
            managers: Vec::new(),
            numbers: BTreeMap::new(),
            names: Vec::new(),
            quorate: 0,
            acts: 0,
        }
    }

    /// A member starts or ends: it acts for nothing, and its roster is looked at anew.
    pub(super) fn forget(&mut self, at: usize) {
        self.see_roster(at, None);
        self.see_acting(at, Vec::new());
    }

    fn see_roster(&mut self, at: usize, version: Option<Version>) {
        if let Some(before) = std::mem::replace(&mut self.rosters[at], version)
            && let Some(count) = self.versions.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                self.versions.remove(&before);
            }
        }
        if let Some(version) = version {
            *self.versions.entry(version).or_default() += 1;
        }
    }

    fn see_acting(&mut self, at: usize, acting: Vec<(usize, Instant)>) {
        let before = std::mem::replace(&mut self.acting[at], acting);
        let acting = &self.acting[at];
        if !before.iter().map(|(node, _)| node).eq(acting.iter().map(|(node, _)| node)) {
            before.iter().for_each(|(node, _)| self.managers[*node].retain(|member| *member != at));
            acting.iter().for_each(|(node, _)| self.managers[*node].push(at));
        }
    }

    fn number(&mut self, node: &NodeName) -> usize {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        let number = self.names.len();
        self.numbers.insert(node.clone(), number);
        self.names.push(node.clone());
        self.managers.push(Vec::new());
        number
    }

    /// Returns until when a member acts for a node.
    fn until(&self, at: usize, node: usize) -> Option<Instant> {
        self.acting[at].iter().find(|(other, _)| *other == node).map(|(_, until)| *until)
    }
}

impl World {
    pub(crate) fn violate(&mut self, rule: Rule, what: String) {
        self.checker.violate(self.time, rule, what);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:9.3}s {}", self.time as f64 / 1e9, line()));
        }
    }

    /// Checks what must hold at every moment, after a member did something: only then can anything begin.
    pub(super) fn check(&mut self, at: usize) {
        let time = self.time;
        let site = &self.sites[at];
        let Some(core) = &site.core else { return };
        let (roster, now) = (core.roster(), site.now(time).boot);
        if self.seen.rosters[at] != Some(roster.version) {
            self.seen.see_roster(at, Some(roster.version));
            self.checker.roster(time, at, roster.version, roster.hash());
        }
        let is_quorate = core.is_quorate(now);
        if is_quorate {
            self.seen.quorate += 1;
            let who = Authority { member: at, me: core.id(), voters: roster.voters(), timing: roster.timing };
            self.checker.authority(time, who, now.as_nanos(), "holds quorum");
        }
        let acting = core.acts_until().map(|(node, until)| (self.seen.number(node), until)).collect();
        self.seen.see_acting(at, acting);
        if is_quorate {
            self.check_quorums();
        }
        self.check_managers(at);
    }

    /// I1: looks whether anybody else acts for what this member acts for.
    fn check_managers(&mut self, at: usize) {
        for (node, _) in &self.seen.acting[at] {
            let acts = |member: &usize| {
                let now = self.sites[*member].now(self.time).boot;
                self.seen.until(*member, *node).is_some_and(|until| until > now)
            };
            let managers = &self.seen.managers[*node];
            if managers.len() == 1 {
                self.seen.acts += u64::from(acts(&at));
                continue;
            }
            let mut acting: Vec<_> = managers.iter().copied().filter(acts).collect();
            acting.sort_unstable();
            self.seen.acts += acting.len() as u64;
            self.checker.acting(self.time, self.seen.names[*node].as_str(), &acting);
        }
    }

    fn check_quorums(&mut self) {
        // Under one voter set two majorities always meet; only different ones need a look.
        if self.seen.versions.len() < 2 {
            return;
        }
        let rosters = self.sites.iter().enumerate().filter_map(|(at, site)| {
            let core = site.core.as_ref().filter(|core| core.is_quorate(site.now(self.time).boot))?;
            Some((at, core.roster().voters()))
        });
        let held: Vec<_> = rosters.collect();
        self.checker.quorums(self.time, &held);
    }

    /// Adds what is not counted by word to what is.
    pub(super) fn tally(&mut self) {
        for (what, count) in [("quorate", &mut self.seen.quorate), ("act", &mut self.seen.acts)] {
            match std::mem::take(count) {
                0 => {}
                count => *self.coverage.entry(what).or_default() += count,
            }
        }
    }

    /// Returns whether a member acts for a node at this very moment, by its own clock.
    pub(crate) fn acts(&self, at: usize, node: &NodeName) -> bool {
        let site = &self.sites[at];
        site.core.as_ref().is_some_and(|core| core.acts(node, site.now(self.time).boot))
    }

    /// Returns how many of those voters have a value on their disks.
    pub(crate) fn copies(&self, voters: &BTreeSet<MemberId>, node: &NodeName, key: &str, value: &str) -> usize {
        let entity = Entity::Node(node.clone());
        self.sites
            .iter()
            .filter(|site| site.me.is_some_and(|me| voters.contains(&me)))
            .filter(|site| site.documents().is_some_and(|documents| documents.get(&entity, key) == Some(value)))
            .count()
    }

    pub(crate) fn is_seated(&self, at: usize) -> bool {
        self.sites[at].core.as_ref().is_some_and(|core| core.standing() == Standing::Seated)
    }

    pub(crate) fn is_quorate(&self, at: usize) -> bool {
        let site = &self.sites[at];
        site.core.as_ref().is_some_and(|core| core.is_quorate(site.now(self.time).boot))
    }
}
