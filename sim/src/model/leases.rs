//! The leases as a model: rules R1, R2 and R4 to R7, over every order of exchanges, delays, restarts and epochs.
//!
//! Two holders want one node, at whatever voters the rosters name. Time passes in ticks. Each duration is as wrong as
//! the clocks may make it, in the direction that hurts: what a voter times ends early, what a holder times ends late.
//! How an epoch is decided is the other model's business ([`super::epochs`]); here it is one step, possible once a
//! majority of the voters of the epoch before has stored that one.
//!
//! An exchange is one step: the request is read when it is sent, the answer may be lost. In the bounds that allow it,
//! requests and answers are also under way for any time, are repeated, and overtake one another.

use std::hash::{Hash, Hasher};

use super::explore::{Model, Step};
use super::{Rule, majority};

/// The members there are.
const MEMBERS: usize = 5;
/// The two that want the node.
const HOLDERS: usize = 2;
/// Messages that can be under way at the same time, in the bounds that allow any.
const UNDER_WAY: usize = 2;

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The voters of each epoch, a bit each.
    pub(crate) rosters: &'static [u8],
    pub(crate) watch: Watch,
    /// Voters that lose their memory.
    pub(crate) restarts: u8,
    /// Messages that may be under way at the same time.
    pub(crate) under_way: usize,
    /// Times that a holder gives the node up and wants it again.
    pub(crate) releases: u8,
    /// Whether both holders are sessions of one member, as of a cloned machine.
    pub(crate) twins: bool,
    pub(crate) ticks: Ticks,
}

/// Which invariant is looked at; each needs its own part of the state, which keeps both small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// I1: claims. A voter confirms the node to one holder at a time.
    Claims,
    /// I2: quorum. A voter grants to everybody.
    Quorums,
}

/// Durations in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    /// T: what a voter promises.
    pub(crate) lease: u8,
    /// By how much a clock may be wrong over T.
    pub(crate) drift: u8,
}

impl Bounds {
    const fn are_alike(&self, a: usize, b: usize) -> bool {
        let mut epoch = 0;
        while epoch < self.rosters.len() {
            let roster = self.rosters[epoch];
            if roster >> a & 1 != roster >> b & 1 {
                return false;
            }
            epoch += 1;
        }
        true
    }
}

impl Ticks {
    /// The shortest for which the margin matters: whatever is promised in a tick ends with the next one.
    pub(crate) const COARSE: Self = Self { lease: 2, drift: 1 };
    /// Promises of different ticks end at different ticks.
    pub(crate) const FINE: Self = Self { lease: 3, drift: 1 };
}

/// The durations as they are in the worst case, by the rules that are in force.
#[derive(Clone, Copy, Debug)]
struct Worst {
    /// How soon a promise of T ends at a voter whose clock is fast.
    promised: u8,
    /// How late a holder whose clock is slow stops to use an answer.
    used: u8,
    /// How soon a voter, or a proposer, whose clock is fast has waited for T.
    waited: u8,
}

/// The model within some bounds, with some rule switched off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leases {
    bounds: Bounds,
    without: &'static [Rule],
    /// For each member the next one that votes in the same epochs; the two are alike.
    next_alike: [Option<usize>; MEMBERS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Voter {
    /// The roster it has stored, by number.
    epoch: u8,
    /// The holder whose claim it has confirmed, one more; zero when the node is free.
    holder: u8,
    /// Ticks until that promise ends.
    left: u8,
    /// R6: ticks until it grants anything.
    quiet: u8,
    /// R7: ticks until it confirms new claims.
    settling: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    epoch: u8,
    /// The number of its claim; odd when it has given the node up.
    claim: u8,
    /// Ticks since it first held quorum under the present voters, one more; zero when it has not.
    tenure: u8,
    /// Ticks for which each voter's answer may still be used.
    answers: [u8; MEMBERS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    #[default]
    Nothing,
    Request,
    Answer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    kind: Kind,
    holder: u8,
    voter: u8,
    epoch: u8,
    /// The claim that it is about.
    claim: u8,
    /// Ticks since the request was sent.
    age: u8,
    /// Whether the voter has read a later request; true until it forgets that.
    is_outdated: bool,
}

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    voters: [Voter; MEMBERS],
    holders: [Holder; HOLDERS],
    under_way: [Message; UNDER_WAY],
    /// The number of the last decided roster.
    decided: u8,
    /// Ticks since a majority of its voters had stored it. Only for claims: who proposes may hold none.
    in_force_for: u8,
    restarts: u8,
}

impl Leases {
    /// Makes the model within these bounds and without these rules.
    pub(crate) const fn new(bounds: Bounds, without: &'static [Rule]) -> Self {
        let mut next_alike = [None; MEMBERS];
        let mut at = 0;
        while at < MEMBERS {
            let mut other = MEMBERS - 1;
            while other > at {
                if bounds.are_alike(at, other) {
                    next_alike[at] = Some(other);
                }
                other -= 1;
            }
            at += 1;
        }
        Self { bounds, without, next_alike }
    }

    fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    /// Returns the durations in the worst case.
    fn worst(&self) -> Worst {
        let Ticks { lease, drift } = self.bounds.ticks;
        // m covers twice the drift: the holder's clock may be slow while the voter's is fast.
        let margin = if self.has(Rule::Margin) { 2 * drift } else { 0 };
        let drift = if self.has(Rule::Drift) { drift } else { 2 * drift };
        Worst {
            promised: lease.saturating_sub(drift),
            used: lease - margin + drift,
            waited: lease.saturating_sub(drift),
        }
    }

    fn roster(&self, epoch: u8) -> u8 {
        self.bounds.rosters[usize::from(epoch)]
    }

    /// Returns whether more than half of an epoch's voters are among these.
    fn is_majority(&self, epoch: u8, members: u8) -> bool {
        let voters = self.roster(epoch);
        let needed = majority(voters.count_ones());
        let needed = if self.has(Rule::Majority) { needed } else { voters.count_ones() / 2 };
        (voters & members).count_ones() >= needed
    }

    /// Returns the voters, a bit each, whose answers the holder may use.
    fn answering(&self, holder: &Holder) -> u8 {
        let used = holder.answers.iter().enumerate().filter(|(_, left)| **left > 0);
        used.fold(0, |set, (voter, _)| set | 1 << voter)
    }

    /// R5, the acting test; the same without a claim is quorum.
    fn passes(&self, holder: &Holder) -> bool {
        holder.claim.is_multiple_of(2) && self.is_majority(holder.epoch, self.answering(holder))
    }

    /// R1: returns whether a majority of the voters of the last decided roster has stored it.
    fn is_in_force(&self, state: &State) -> bool {
        let stored = state.voters.iter().enumerate().filter(|(_, voter)| voter.epoch >= state.decided);
        let stored = stored.fold(0, |set, (voter, _)| set | 1 << voter);
        (self.roster(state.decided) & stored).count_ones() >= majority(self.roster(state.decided).count_ones())
    }

    /// A voter reads a request: returns whether it grants it, and for a claim confirms it.
    fn read(&self, voter: &mut Voter, holder: u8, epoch: u8) -> bool {
        let is_known = if self.has(Rule::OldEpoch) { epoch == voter.epoch } else { epoch <= voter.epoch };
        if !is_known || voter.quiet > 0 {
            return false;
        }
        if self.bounds.watch == Watch::Quorums {
            return true;
        }
        let own = holder + 1;
        let is_held = voter.left > 0;
        // R4: a claim is confirmed that is free, expired or already the asker's. Of twins, the voter knows one session.
        let keeps = if self.bounds.twins { Rule::OneSession } else { Rule::Exclusive };
        if is_held && voter.holder != own && self.has(keeps) {
            return false;
        }
        // R7: new claims wait, renewals do not.
        if voter.settling > 0 && !(is_held && voter.holder == own) {
            return false;
        }
        (voter.holder, voter.left) = (own, self.worst().promised);
        true
    }

    /// A holder reads the answer to what it asked `age` ticks ago.
    fn take(&self, holder: &mut Holder, voter: usize, age: u8) {
        let used = self.worst().used;
        // R5: counted from when it was asked for.
        let left = if self.has(Rule::CountFromSending) { used.saturating_sub(age) } else { used };
        holder.answers[voter] = holder.answers[voter].max(left);
    }

    fn tick(&self, state: &mut State) {
        let in_force = self.is_in_force(state);
        for voter in &mut state.voters {
            voter.left = voter.left.saturating_sub(1);
            voter.quiet = voter.quiet.saturating_sub(1);
            voter.settling = voter.settling.saturating_sub(1);
            if voter.left == 0 {
                voter.holder = 0;
            }
        }
        for holder in &mut state.holders {
            holder.answers = holder.answers.map(|left| left.saturating_sub(1));
        }
        let oldest = self.worst().used;
        for message in state.under_way.iter_mut().filter(|message| message.kind != Kind::Nothing) {
            message.age = oldest.min(message.age + 1);
        }
        if in_force || !self.has(Rule::InForce) {
            state.in_force_for = self.worst().waited.min(state.in_force_for + 1);
        }
        for holder in state.holders.iter_mut().filter(|holder| holder.tenure > 0) {
            holder.tenure = (holder.tenure + 1).min(self.worst().waited + 1);
        }
    }

    /// R1, R2: returns whether the next epoch may be proposed, and can be decided.
    ///
    /// The voters that decide must have stored the epoch before. Where quorum is looked at, the proposer is one of the
    /// holders: it holds quorum now and held it first long enough ago that nothing older counts any more.
    fn may_decide(&self, state: &State) -> bool {
        // R2: a sole voter needs no wait, being in every majority of the epoch before and of the next one.
        let waits = self.has(Rule::Spacing) && self.roster(state.decided).count_ones() > 1;
        let wait = if waits { self.worst().waited } else { 0 };
        let may_propose =
            |holder: &Holder| holder.epoch == state.decided && self.passes(holder) && holder.tenure > wait;
        self.is_in_force(state)
            && match self.bounds.watch {
                Watch::Claims => state.in_force_for >= wait,
                Watch::Quorums => state.holders.iter().any(may_propose),
            }
    }

    /// R1: an epoch is in force once a majority of its voters has stored it, which quorum under it proves.
    fn note_quorum(&self, state: &mut State) {
        for holder in &mut state.holders {
            if holder.tenure == 0 && (self.passes(holder) || !self.has(Rule::InForce)) {
                holder.tenure = 1;
            }
        }
    }

    fn steps_of_epochs(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        let next = state.decided + 1;
        if usize::from(next) < self.bounds.rosters.len() && self.may_decide(state) {
            let mut after = *state;
            (after.decided, after.in_force_for) = (next, 0);
            then(Step::new("epoch {n} is decided", 0, 0, next + 1), after);
        }
        for at in 0..MEMBERS {
            for epoch in state.voters[at].epoch + 1..=state.decided {
                let mut after = *state;
                let voter = &mut after.voters[at];
                voter.epoch = epoch;
                voter.settling = if self.has(Rule::Settling) { self.worst().waited } else { 0 };
                then(Step::new("{b} stores epoch {n}", 0, at, epoch + 1), after);
            }
        }
        for at in 0..HOLDERS {
            for epoch in state.holders[at].epoch + 1..=state.decided {
                let mut after = *state;
                (after.holders[at].epoch, after.holders[at].tenure) = (epoch, 0);
                if self.has(Rule::AnswersOfEpoch) {
                    after.holders[at].answers = [0; MEMBERS]; // R5: an answer's epoch must be the holder's.
                }
                then(Step::new("{a} learns epoch {n}", at, 0, epoch + 1), after);
            }
        }
    }

    fn steps_of_restarts(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        if state.restarts == self.bounds.restarts {
            return;
        }
        for (at, voter) in state.voters.iter().enumerate() {
            let mut after = *state;
            after.restarts += 1;
            // R1: what it answered under, it has stored.
            let epoch = if self.has(Rule::StoredEpoch) { voter.epoch } else { voter.epoch.saturating_sub(1) };
            // R6.
            let quiet = if self.has(Rule::QuietStart) { self.worst().waited } else { 0 };
            after.voters[at] = Voter { epoch, quiet, ..Voter::default() };
            for message in after.under_way.iter_mut().filter(|message| usize::from(message.voter) == at) {
                message.is_outdated = false;
            }
            then(Step::new("{b} restarts and forgets", 0, at, 0), after);
        }
    }

    /// Requests and answers that take no time.
    fn steps_of_exchanges(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        for (at, holder) in state.holders.iter().enumerate().filter(|(_, holder)| holder.claim.is_multiple_of(2)) {
            for to in self.voters_of(holder.epoch) {
                let mut after = *state;
                if !self.read(&mut after.voters[to], at as u8, holder.epoch) {
                    continue;
                }
                for message in after.under_way.iter_mut().filter(|message| message.is_between(at, to)) {
                    message.is_outdated = true;
                }
                self.take(&mut after.holders[at], to, 0);
                for message in after.under_way.iter_mut().filter(|message| message.is_between(at, to)) {
                    if message.kind == Kind::Answer {
                        *message = Message::default(); // A later answer was read.
                    }
                }
                then(Step::new("{b} confirms {a}'s claim", at, to, 0), after);
            }
        }
    }

    /// Gives both holders every grant that there can be: quorum is asked for all the time. A grant costs a voter nothing
    /// and takes quorum from nobody, so a run with fewer of them shows nothing that this one does not show.
    fn grant_all(&self, state: &mut State) {
        for (at, holder) in state.holders.iter_mut().enumerate() {
            for to in self.voters_of(holder.epoch) {
                if self.read(&mut state.voters[to], at as u8, holder.epoch) {
                    self.take(holder, to, 0);
                }
            }
        }
    }

    /// Requests and answers that are under way for a while.
    fn steps_of_messages(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        let count = state.under_way.iter().filter(|message| message.kind != Kind::Nothing).count();
        let free = state.under_way.iter().position(|message| message.kind == Kind::Nothing);
        let free = free.filter(|_| count < self.bounds.under_way);
        if let Some(free) = free {
            for (at, holder) in state.holders.iter().enumerate().filter(|(_, holder)| holder.claim.is_multiple_of(2)) {
                for to in self.voters_of(holder.epoch) {
                    let mut after = *state;
                    let (holder_at, voter) = (at as u8, to as u8);
                    let (kind, epoch, claim) = (Kind::Request, holder.epoch, holder.claim);
                    let sent = Message { kind, holder: holder_at, voter, epoch, claim, ..Message::default() };
                    after.under_way[free] = sent;
                    then(Step::new("{a} sends {b} a request", at, to, 0), after);
                }
            }
        }
        for (slot, message) in state.under_way.iter().enumerate() {
            let (at, to) = (usize::from(message.holder), usize::from(message.voter));
            match message.kind {
                Kind::Nothing => continue,
                Kind::Request if !message.is_outdated => {
                    let mut after = *state;
                    if self.read(&mut after.voters[to], message.holder, message.epoch) {
                        for other in after.under_way.iter_mut().filter(|other| other.is_between(at, to)) {
                            other.is_outdated |= other.age >= message.age;
                        }
                        let answer = Message { kind: Kind::Answer, is_outdated: false, ..*message };
                        if let Some(free) = free {
                            let mut twice = after;
                            twice.under_way[free] = answer;
                            then(Step::new("{b} reads a copy of {a}'s request, and answers", at, to, 0), twice);
                        }
                        after.under_way[slot] = answer;
                        then(Step::new("{b} reads {a}'s request, and answers", at, to, 0), after);
                    }
                }
                Kind::Answer => {
                    let mut after = *state;
                    let holder = &mut after.holders[at];
                    let is_mine = !self.has(Rule::AnswersOfEpoch) || message.epoch == holder.epoch;
                    // R10: an answer to a claim that was given up since counts for nothing.
                    if is_mine && (message.claim == holder.claim || !self.has(Rule::LateAnswers)) {
                        self.take(holder, to, message.age);
                        after.under_way[slot] = Message::default();
                        then(Step::new("{a} reads {b}'s answer, asked for {n} ticks ago", at, to, message.age), after);
                    }
                }
                Kind::Request => {}
            }
            let mut after = *state;
            after.under_way[slot] = Message::default();
            then(Step::new("a message between {a} and {b} is lost", at, to, 0), after);
        }
    }

    fn steps_of_releases(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        for (at, holder) in state.holders.iter().enumerate() {
            let released: u8 = state.holders.iter().map(|holder| holder.claim.div_ceil(2)).sum();
            if holder.claim.is_multiple_of(2) && released < self.bounds.releases {
                let mut after = *state;
                after.holders[at].claim += 1;
                after.holders[at].answers = [0; MEMBERS];
                then(Step::new("{a} gives the node up", at, 0, 0), after);
            }
            if holder.claim % 2 == 1 {
                let mut after = *state;
                after.holders[at].claim += 1;
                then(Step::new("{a} wants the node again", at, 0, 0), after);
                for to in self.voters_of(holder.epoch) {
                    if state.voters[to].holder == at as u8 + 1 {
                        let mut after = *state;
                        (after.voters[to].holder, after.voters[to].left) = (0, 0);
                        for message in after.under_way.iter_mut().filter(|message| message.is_between(at, to)) {
                            message.is_outdated = true;
                        }
                        then(Step::new("{b} reads that {a} gave the node up", at, to, 0), after);
                    }
                }
            }
        }
    }

    fn voters_of(&self, epoch: u8) -> impl Iterator<Item = usize> + use<> {
        let roster = self.roster(epoch);
        (0..MEMBERS).filter(move |member| roster >> member & 1 == 1)
    }
}

impl Message {
    fn is_between(&self, holder: usize, voter: usize) -> bool {
        self.kind != Kind::Nothing && usize::from(self.holder) == holder && usize::from(self.voter) == voter
    }
}

/// Every state is hashed many times, so in words rather than byte by byte.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for voter in &self.voters {
            let Voter { epoch, holder, left, quiet, settling } = *voter;
            hasher.write_u64(u64::from_le_bytes([epoch, holder, left, quiet, settling, 0, 0, 0]));
        }
        for holder in &self.holders {
            let Holder { epoch, claim, tenure, answers: [a, b, c, d, e] } = *holder;
            hasher.write_u64(u64::from_le_bytes([epoch, claim, tenure, a, b, c, d, e]));
        }
        for message in &self.under_way {
            let Message { kind, holder, voter, epoch, claim, age, is_outdated } = *message;
            hasher.write_u64(u64::from_le_bytes([
                kind as u8,
                holder,
                voter,
                epoch,
                claim,
                age,
                u8::from(is_outdated),
                0,
            ]));
        }
        let Self { decided, in_force_for, restarts, .. } = *self;
        hasher.write_u64(u64::from_le_bytes([decided, in_force_for, restarts, 0, 0, 0, 0, 0]));
    }
}

impl State {
    /// Exchanges the names of two voters.
    fn swap_voters(&mut self, a: usize, b: usize) {
        self.voters.swap(a, b);
        for holder in &mut self.holders {
            holder.answers.swap(a, b);
        }
        for message in self.under_way.iter_mut().filter(|message| message.kind != Kind::Nothing) {
            if usize::from(message.voter) == a {
                message.voter = b as u8;
            } else if usize::from(message.voter) == b {
                message.voter = a as u8;
            }
        }
    }

    /// Exchanges the names of the holders.
    fn swap_holders(&mut self) {
        self.holders.swap(0, 1);
        for voter in self.voters.iter_mut().filter(|voter| voter.holder > 0) {
            voter.holder = 3 - voter.holder;
        }
        for message in self.under_way.iter_mut().filter(|message| message.kind != Kind::Nothing) {
            message.holder = 1 - message.holder;
        }
    }

    /// What tells like voters apart.
    fn of_voter(&self, at: usize) -> (Voter, [u8; HOLDERS], [Message; UNDER_WAY]) {
        let mut messages = [Message::default(); UNDER_WAY];
        for (theirs, message) in messages.iter_mut().zip(self.under_way) {
            if message.kind != Kind::Nothing && usize::from(message.voter) == at {
                *theirs = Message { voter: 0, ..message };
            }
        }
        messages.sort_unstable();
        (self.voters[at], self.holders.map(|holder| holder.answers[at]), messages)
    }
}

impl Model for Leases {
    type State = State;

    fn start(&self) -> State {
        let mut state = State { in_force_for: self.worst().waited, ..State::default() };
        if self.bounds.watch == Watch::Quorums {
            self.grant_all(&mut state);
            state.holders.iter_mut().for_each(|holder| holder.tenure = self.worst().waited + 1);
        }
        state
    }

    fn steps(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        let then = &mut |step, mut after| {
            if self.bounds.watch == Watch::Quorums {
                self.grant_all(&mut after);
                self.note_quorum(&mut after);
            }
            then(step, after);
        };
        if self.bounds.watch == Watch::Claims {
            self.steps_of_exchanges(state, then);
            self.steps_of_releases(state, then);
        }
        self.steps_of_epochs(state, then);
        self.steps_of_restarts(state, then);
        if self.bounds.under_way > 0 {
            self.steps_of_messages(state, then);
        }
        let mut after = *state;
        self.tick(&mut after);
        then(Step::new("a tick passes", 0, 0, 0), after);
    }

    fn violation(&self, state: &State) -> Option<String> {
        let [a, b] = &state.holders;
        if !(self.passes(a) && self.passes(b)) {
            return None;
        }
        if self.bounds.watch == Watch::Claims {
            return Some("I1: A and B act for the node".into());
        }
        let (voters_a, voters_b) = (self.roster(a.epoch), self.roster(b.epoch));
        let needed = majority(voters_a.count_ones()) + majority(voters_b.count_ones());
        let need_not_meet = needed <= (voters_a | voters_b).count_ones();
        let disjoint = self.answering(a) & self.answering(b) & voters_a & voters_b == 0;
        (need_not_meet || disjoint).then(|| {
            let (of_a, of_b) = (a.epoch + 1, b.epoch + 1);
            format!("I2: A holds quorum in epoch {of_a} and B in epoch {of_b}, with voters that need not meet")
        })
    }

    fn canonical(&self, mut state: State) -> State {
        let mut swapped = state;
        swapped.swap_holders();
        for state in [&mut state, &mut swapped] {
            // Members that vote in the same epochs are alike: put them in order.
            for end in (1..MEMBERS).rev() {
                for at in 0..end {
                    if let Some(other) = self.next_alike[at]
                        && state.of_voter(other) < state.of_voter(at)
                    {
                        state.swap_voters(at, other);
                    }
                }
            }
            state.under_way.sort_unstable();
        }
        state.min(swapped)
    }
}

#[cfg(test)]
mod conformance;
