//! What is looked at after every event, and what a run tells of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};
use std::rc::Rc;

use collective::proto::collective::{Effect, Job, Ticket};
use collective::proto::document::Entity;
use collective::proto::identity::MemberId;
use collective::proto::name::{MemberName, NodeName};
use collective::proto::planted::Bug;
use collective::proto::record::Record;
use collective::proto::request::{LoggedEvent, Standing};
use collective::proto::roster::Version;
use collective::proto::time::Instant;

use super::World;
use crate::check::{Authority, Rule};

/// What was seen of each member after its last event; until its next one nothing but time changes any of it.
#[derive(Debug)]
pub(crate) struct Seen {
    members: Vec<Member>,
    /// How many members have each roster.
    versions: BTreeMap<Version, usize>,
    /// For each node the members that act for it, or did until their lease ended.
    managers: Vec<Vec<usize>>,
    numbers: BTreeMap<NodeName, usize>,
    /// Counted at nearly every event, so not by word.
    quorate: u64,
    acts: u64,
}

/// What was seen of one member.
#[derive(Debug, Default)]
struct Member {
    roster: Option<Version>,
    voters: Option<Rc<BTreeSet<MemberId>>>,
    /// The nodes that it acts for, by number too, and until when on its own clock.
    acting: Vec<(NodeName, usize, Instant)>,
}

impl Seen {
    pub(super) fn new(members: usize) -> Self {
        Self {
            members: (0..members).map(|_| Member::default()).collect(),
            versions: BTreeMap::new(),
            managers: Vec::new(),
            numbers: BTreeMap::new(),
            quorate: 0,
            acts: 0,
        }
    }

    /// Returns the roster that a member had after its last event.
    pub(crate) fn roster(&self, at: usize) -> Option<Version> {
        self.members[at].roster
    }

    /// A member starts or ends: it acts for nothing, and its roster is looked at anew.
    pub(super) fn forget(&mut self, at: usize) {
        for (_, number, _) in std::mem::take(&mut self.members[at].acting) {
            self.managers[number].retain(|member| *member != at);
        }
        self.see_roster(at, None, None);
    }

    fn see_roster(&mut self, at: usize, version: Option<Version>, voters: Option<Rc<BTreeSet<MemberId>>>) {
        let member = &mut self.members[at];
        member.voters = voters;
        if let Some(before) = std::mem::replace(&mut member.roster, version)
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

    /// Takes note of what a member acts for, and until when. Mostly it is what it was, for a little longer.
    fn see_acting<'a>(&mut self, at: usize, acting: impl Iterator<Item = (&'a NodeName, Instant)>) {
        let mut before = std::mem::take(&mut self.members[at].acting);
        let mut same = 0;
        for (node, until) in acting {
            match before.get_mut(same) {
                Some((known, _, known_until)) if known == node => *known_until = until,
                _ => {
                    before.drain(same..).for_each(|(_, number, _)| self.managers[number].retain(|other| *other != at));
                    let number = self.number(node);
                    self.managers[number].push(at);
                    before.push((node.clone(), number, until));
                }
            }
            same += 1;
        }
        before.drain(same..).for_each(|(_, number, _)| self.managers[number].retain(|other| *other != at));
        self.members[at].acting = before;
    }

    fn number(&mut self, node: &NodeName) -> usize {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        let number = self.managers.len();
        self.numbers.insert(node.clone(), number);
        self.managers.push(Vec::new());
        number
    }

    /// Returns until when a member acts for a node.
    fn until(&self, at: usize, node: usize) -> Option<Instant> {
        self.members[at].acting.iter().find(|(_, number, _)| *number == node).map(|(.., until)| *until)
    }
}

impl World {
    pub(crate) fn violate(&mut self, rule: Rule, what: String) {
        self.checker.violate(self.time, rule, what);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    /// Adds what is not counted by word to what is.
    pub(crate) fn tally(&mut self) {
        for (what, count) in [("quorate", &mut self.seen.quorate), ("act", &mut self.seen.acts)] {
            match std::mem::take(count) {
                0 => {}
                count => *self.coverage.entry(what).or_default() += count,
            }
        }
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:9.3}s {}", self.time as f64 / 1e9, line()));
        }
    }

    pub(super) fn trace(&mut self, at: usize, what: &[u8], bytes: &[u8]) {
        self.trace_head(at, what);
        self.hash.update(bytes);
    }

    fn trace_head(&mut self, at: usize, what: &[u8]) {
        self.hash.update(&self.time.to_le_bytes());
        self.hash.update(&(at as u64).to_le_bytes());
        self.hash.update(what);
    }

    /// Hashes what happened as words say it.
    pub(super) fn trace_words(&mut self, at: usize, what: &[u8], happened: &impl Debug) {
        self.trace_head(at, what);
        // Hashing words cannot fail.
        let _ = write!(self.hash, "{happened:?}");
    }

    /// Hashes what a core decided as words say it, but texts in it by their bytes when there are many.
    pub(super) fn trace_effect(&mut self, at: usize, effect: &Effect) {
        match effect {
            Effect::Run { id, job: Job { node, action, arguments, token, attributes }, until } => {
                self.trace_words(at, b"run", &(id, until, node, action, arguments, token, attributes.len()));
                attributes.iter().flat_map(|(name, value)| [name, value]).for_each(|text| self.hash_text(text));
            }
            Effect::Happened { event, until } => {
                let LoggedEvent { schema: _, seq, time, kind, member, node, token, message } = event;
                self.trace(at, b"happened", &seq.to_le_bytes());
                let names = [member.as_ref().map(MemberName::as_str), node.as_ref().map(NodeName::as_str)];
                let texts = [Some(time.as_str()), Some(kind.word()), token.as_deref(), Some(message.as_str())];
                names.into_iter().chain(texts).for_each(|text| self.hash_text(text.unwrap_or_default()));
                self.hash.update(&until.map_or(0, Instant::as_nanos).to_le_bytes());
            }
            effect => self.trace_words(at, b"effect", effect),
        }
    }

    fn hash_text(&mut self, text: &str) {
        self.hash.update(&(text.len() as u64).to_le_bytes());
        self.hash.update(text.as_bytes());
    }

    /// Hashes what is given to the disk: changes by their bytes, of which they mostly consist.
    pub(super) fn trace_save(&mut self, at: usize, ticket: Ticket, records: &[Record]) {
        self.trace(at, b"save", &ticket.to_le_bytes());
        for record in records {
            match record {
                Record::Change { id, bytes } => {
                    self.trace_words(at, b"change", id);
                    self.hash.update(bytes);
                }
                record => self.trace_words(at, b"record", record),
            }
        }
    }

    /// Checks what must hold at every moment, after a member did something: only then can anything begin.
    pub(super) fn check(&mut self, at: usize) {
        self.watch_roster(at);
        self.look_at_roster(at);
        self.check_seat(at);
        self.check_authority(at);
        self.check_managers(at);
        self.watch(at);
    }

    fn look_at_roster(&mut self, at: usize) {
        let Some(core) = &self.sites[at].core else { return };
        let roster = core.roster();
        let version = roster.version;
        if self.seen.roster(at) == Some(version) {
            return;
        }
        let voters = self.voters.entry(version).or_insert_with(|| Rc::new(roster.voters().clone())).clone();
        self.checker.roster(self.time, at, version, roster.hash());
        self.checker.members(self.time, version, roster.ids().collect());
        self.seen.see_roster(at, Some(version), Some(voters));
    }

    /// I5 and I2: looks whether a member may hold the quorum it holds.
    fn check_authority(&mut self, at: usize) {
        let site = &self.sites[at];
        let (Some(core), Some(voters)) = (&site.core, &self.seen.members[at].voters) else { return };
        let now = site.now(self.time).boot;
        if !core.is_quorate(now) {
            return;
        }
        self.seen.quorate += 1;
        let who = Authority { member: at, me: core.id(), voters, timing: core.roster().timing };
        self.checker.authority(self.time, who, now.as_nanos(), "holds quorum");
        // Under one voter set two majorities always meet; only different ones need a look.
        if self.seen.versions.len() > 1 {
            self.check_quorums();
        }
    }

    fn check_quorums(&mut self) {
        let held = self.sites.iter().zip(&self.seen.members).enumerate().filter_map(|(at, (site, seen))| {
            let core = site.core.as_ref().filter(|core| core.is_quorate(site.now(self.time).boot))?;
            // A core that has a newer roster than was seen has not had its own check yet: it comes right after.
            seen.voters.as_deref().filter(|_| seen.roster == Some(core.roster().version)).map(|voters| (at, voters))
        });
        let held: Vec<_> = held.collect();
        self.checker.quorums(self.time, &held);
    }

    /// I1: looks whether anybody else acts for what this member acts for.
    fn check_managers(&mut self, at: usize) {
        let site = &self.sites[at];
        let Some(core) = &site.core else { return };
        let is_cached = self.planted.has(Bug::ActingIsCached);
        if is_cached {
            self.seen.see_acting(at, core.acting().map(|node| (node, FOREVER)));
        } else {
            self.seen.see_acting(at, core.acting_until());
        }
        let (me, timing, now) = (core.id(), core.roster().timing, site.now(self.time).boot);
        let mut acts = false;
        for (node, number, _) in self.seen.members[at].acting.iter().filter(|(.., until)| *until > now) {
            acts = true;
            let managers = &self.seen.managers[*number];
            if managers.len() == 1 {
                self.seen.acts += 1;
                continue;
            }
            let acts = |member: &usize| {
                let now = self.sites[*member].now(self.time).boot;
                self.seen.until(*member, *number).is_some_and(|until| until > now)
            };
            let mut acting: Vec<_> = managers.iter().copied().filter(acts).collect();
            acting.sort_unstable();
            self.seen.acts += acting.len() as u64;
            self.checker.acting(self.time, node.as_str(), &acting);
        }
        if acts {
            self.checker.acts_as(self.time, at, me, timing);
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
        self.sites.iter().filter(|site| site.holds(voters, &entity, key, value)).count()
    }

    pub(crate) fn is_seated(&self, at: usize) -> bool {
        self.sites[at].core.as_ref().is_some_and(|core| core.standing() == Standing::Seated)
    }

    pub(crate) fn is_quorate(&self, at: usize) -> bool {
        let site = &self.sites[at];
        site.core.as_ref().is_some_and(|core| core.is_quorate(site.now(self.time).boot))
    }
}

/// Later than any clock reads.
const FOREVER: Instant = Instant::from_nanos(u64::MAX);
