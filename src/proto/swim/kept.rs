//! What the prober keeps under way, with what is asked of all of it at every event kept beside it: with a thousand
//! members everything may be under way at once, and a frame must not cost a walk over it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use super::{Probe, Relay, Suspicion};
use crate::proto::identity::MemberId;
use crate::proto::time::Instant;

/// Probes under way, one at a time for a member.
#[derive(Clone, Debug, Default)]
pub(super) struct Probes {
    by_member: BTreeMap<MemberId, Probe>,
    due: BTreeSet<(Instant, MemberId)>,
}

impl Probes {
    pub(super) fn contains(&self, id: MemberId) -> bool {
        self.by_member.contains_key(&id)
    }

    pub(super) fn get(&self, id: MemberId) -> Option<&Probe> {
        self.by_member.get(&id)
    }

    pub(super) fn insert(&mut self, id: MemberId, probe: Probe) {
        self.remove(id);
        self.due.insert((probe.due(), id));
        self.by_member.insert(id, probe);
    }

    pub(super) fn remove(&mut self, id: MemberId) -> Option<Probe> {
        let probe = self.by_member.remove(&id)?;
        self.due.remove(&(probe.due(), id));
        Some(probe)
    }

    /// Changes a probe, if there is one.
    pub(super) fn change(&mut self, id: MemberId, change: impl FnOnce(&mut Probe)) {
        if let Some(mut probe) = self.remove(id) {
            change(&mut probe);
            self.insert(id, probe);
        }
    }

    /// Takes note that a helper got no answer either.
    pub(super) fn note_silence(&mut self, seq: u32, helper: MemberId) {
        // None of this changes when a probe is due.
        let probe = self.by_member.values_mut().find(|probe| probe.seq == seq);
        if let Some(said) = probe.and_then(|probe| probe.helpers.get_mut(&helper)) {
            *said = true;
        }
    }

    /// Returns the members whose probe is to be moved on, in the order of their ids.
    pub(super) fn due_by(&self, now: Instant) -> BTreeSet<MemberId> {
        self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, id)| *id).collect()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    pub(super) fn retain(&mut self, ids: &BTreeSet<MemberId>) {
        self.by_member.retain(|id, _| ids.contains(id));
        self.due.retain(|(_, id)| ids.contains(id));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Probes made for others, by the number of the question to the target.
#[derive(Clone, Debug, Default)]
pub(super) struct Relays {
    by_seq: BTreeMap<u32, Relay>,
    due: BTreeSet<(Instant, u32)>,
}

impl Relays {
    pub(super) fn len(&self) -> usize {
        self.by_seq.len()
    }

    pub(super) fn get(&self, seq: u32) -> Option<&Relay> {
        self.by_seq.get(&seq)
    }

    pub(super) fn insert(&mut self, seq: u32, relay: Relay) {
        self.remove(seq);
        self.due.insert((relay.due(), seq));
        self.by_seq.insert(seq, relay);
    }

    pub(super) fn remove(&mut self, seq: u32) {
        if let Some(relay) = self.by_seq.remove(&seq) {
            self.due.remove(&(relay.due(), seq));
        }
    }

    /// Returns those that are to be moved on, in the order of their numbers.
    pub(super) fn due_by(&self, now: Instant) -> BTreeMap<u32, Relay> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        due.filter_map(|(_, seq)| Some((*seq, *self.by_seq.get(seq)?))).collect()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    pub(super) fn retain(&mut self, is_kept: impl Fn(&Relay) -> bool) {
        self.by_seq.retain(|_, relay| is_kept(relay));
        let by_seq = &self.by_seq;
        self.due.retain(|(_, seq)| by_seq.contains_key(seq));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Members that are suspects.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicions {
    by_member: BTreeMap<MemberId, Suspicion>,
    /// Those of whom a probe of our own failed.
    own: BTreeSet<MemberId>,
    /// When the first verdict is due, and as of which change of the view. Emptied whenever anything else changes that a
    /// verdict rests on.
    verdict: OnceLock<(u64, Option<Instant>)>,
}

impl Suspicions {
    /// Returns whether a probe of our own to a suspect failed.
    pub(super) fn is_own(&self, id: MemberId) -> bool {
        self.own.contains(&id)
    }

    /// Returns the suspects of whom a probe of our own failed.
    pub(super) fn own(&self) -> impl ExactSizeIterator<Item = (MemberId, &Suspicion)> {
        let suspicion = |id: &MemberId| (*id, self.by_member.get(id).expect("a suspect of our own is a suspect"));
        self.own.iter().map(suspicion)
    }

    /// Returns when the first verdict is due; `find` looks for it when that is not known for this view.
    pub(super) fn next_due(&self, of_view: u64, find: impl Fn() -> Option<Instant>) -> Option<Instant> {
        if self.own.is_empty() {
            return None;
        }
        let (of, verdict) = *self.verdict.get_or_init(|| (of_view, find()));
        if of == of_view { verdict } else { find() }
    }

    /// Takes note that something changed that verdicts rest on.
    pub(super) fn judge_anew(&mut self) {
        self.verdict = OnceLock::new();
    }

    /// Takes a suspicion in, unless the member is a suspect already; its time runs from the earlier of both.
    pub(super) fn add(&mut self, id: MemberId, suspicion: Suspicion, is_earlier: bool) {
        self.judge_anew();
        let since = suspicion.since;
        let kept = self.by_member.entry(id).or_insert(suspicion);
        if is_earlier {
            kept.since = kept.since.min(since);
        }
    }

    /// Notes that our own probe of a suspect failed, and through whom it was tried.
    pub(super) fn make_own(&mut self, id: MemberId, through: Vec<MemberId>) {
        self.judge_anew();
        if let Some(suspicion) = self.by_member.get_mut(&id) {
            suspicion.through = through;
            self.own.insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: MemberId) {
        if self.by_member.remove(&id).is_some() && self.own.remove(&id) {
            self.judge_anew();
        }
    }

    /// Gives every suspect its time anew from then on.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.judge_anew();
        for suspicion in self.by_member.values_mut() {
            suspicion.since = suspicion.since.max(now);
        }
    }

    pub(super) fn retain(&mut self, ids: &BTreeSet<MemberId>) {
        self.judge_anew();
        self.by_member.retain(|id, _| ids.contains(id));
        self.own.retain(|id| ids.contains(id));
    }
}
