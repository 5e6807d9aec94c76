//! The deciding of an epoch as a model: the Paxos of rule R1, with crashes, rivals, and messages that never go away.
//!
//! What an acceptor does with a message and what a proposer makes of its promises is not modelled: both are read from the
//! shipped [`Acceptor`] and [`Proposer`], for each record and message there can be, before the search begins. The model
//! adds what surrounds them: a disk that is behind the memory, crashes, and a network on which a message that was sent
//! may arrive never, at any later time, and any number of times.

use std::collections::BTreeMap;

use collective::proto::epoch::{
    Accepted, Acceptor as Shipped, AcceptorState, Ballot, EpochMessage, Proposer, ProposerOut,
};
use collective::proto::identity::{ClusterId, Fingerprint, InviteId, MemberId};
use collective::proto::name::MemberName;
use collective::proto::roster::{Change, Member, Role, Roster, Timing};
use collective::proto::time::{Instant, WallTime};

use super::Rule;
use super::explore::{Model, Step};

/// Acceptors and ballots in the largest model.
const ACCEPTORS: usize = 4;
const BALLOTS: usize = 4;
/// Rosters that are proposed: one by the first proposer, one by all others.
const VALUES: usize = 2;
/// Saves that may be under way at one acceptor.
const SAVING: usize = 2;

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Voters of the epoch before, which decide.
    pub(crate) acceptors: usize,
    pub(crate) proposers: usize,
    /// Ballots of each proposer.
    pub(crate) rounds: usize,
    /// Saves that may be under way at one acceptor; with none, what is read is durable at once.
    pub(crate) saving: usize,
    /// Acceptors that start again from their disk.
    pub(crate) crashes: u8,
}

/// The model within some bounds, with some rule switched off.
#[derive(Debug)]
pub(crate) struct Epochs {
    bounds: Bounds,
    without: &'static [Rule],
    shipped: Drawn,
}

/// What an acceptor must not forget, in small: the number of the ballot it promised, and the number of the ballot and
/// the roster it accepted. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Record {
    promised: u8,
    accepted: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Reply {
    #[default]
    Nothing,
    Promise,
    Accepted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Acceptor {
    memory: Record,
    disk: Record,
    /// What is being saved, the first first, and what is answered once it is durable.
    saving: [(Record, Reply); SAVING],
    /// For each ballot, what was told as accepted before in the promises that were sent: a bit for each record.
    promises: [u16; BALLOTS],
    /// For each ballot, the rosters of which it said that it accepted them: a bit each.
    accepted: [u8; BALLOTS],
}

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    acceptors: [Acceptor; ACCEPTORS],
    /// Ballots that were begun, a bit each.
    begun: u8,
    /// Ballots that were begun once more by a proposer that forgot, a bit each.
    begun_again: u8,
    /// For each ballot, the roster that its proposer wants accepted, one more.
    wanted: [u8; BALLOTS],
    /// For each ballot, the rosters in the messages that were sent: a bit each.
    sent: [u8; BALLOTS],
    /// Rosters that a proposer said were decided, a bit each.
    reported: u8,
    crashes: u8,
}

impl Record {
    /// Returns the ballot and the roster that were accepted, both counted from zero.
    const fn accepted(self) -> Option<(usize, usize)> {
        match (self.accepted as usize).checked_sub(1) {
            Some(code) => Some((code / VALUES, code % VALUES)),
            None => None,
        }
    }
}

impl Epochs {
    /// Makes the model and reads from the shipped code what acceptors and proposers do.
    pub(crate) fn new(bounds: Bounds, without: &'static [Rule]) -> Self {
        Self { bounds, without, shipped: Drawn::new(&bounds) }
    }

    fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    fn ballots(&self) -> usize {
        self.bounds.proposers * self.bounds.rounds
    }

    /// Returns who makes a ballot: rounds go before proposers.
    fn proposer(&self, ballot: usize) -> usize {
        ballot % self.bounds.proposers
    }

    /// Returns how many promises, and how many acceptances, a proposer takes for a majority.
    fn needed(&self) -> usize {
        if self.has(Rule::PaxosMajority) { self.shipped.needed } else { self.bounds.acceptors / 2 }
    }

    /// Returns whether a ballot is the last one that its proposer began.
    fn is_live(&self, state: &State, ballot: usize) -> bool {
        let later = (ballot + 1..self.ballots()).filter(|later| self.proposer(*later) == self.proposer(ballot));
        state.begun >> ballot & 1 == 1 && later.fold(0, |all, later| all | state.begun >> later & 1) == 0
    }

    /// Returns the roster that a proposer would like.
    fn own(&self, state: &State, ballot: usize) -> usize {
        let own = self.proposer(ballot).min(VALUES - 1);
        if state.begun_again >> ballot & 1 == 1 { VALUES - 1 - own } else { own }
    }

    /// Returns the roster that a proposer goes on with after these promises: what each of them said was accepted.
    fn choose(&self, state: &State, ballot: usize, heard: &[u8]) -> usize {
        let of = |code: u8| Record { promised: 0, accepted: code }.accepted().map(|(_, value)| value);
        let own = self.own(state, ballot);
        if !self.has(Rule::AcceptedFirst) {
            own
        } else if !self.has(Rule::HighestFirst) {
            heard.iter().filter(|code| **code > 0).min().and_then(|code| of(*code)).unwrap_or(own)
        } else if !self.has(Rule::PaxosMajority) {
            heard.iter().max().and_then(|code| of(*code)).unwrap_or(own)
        } else {
            match self.shipped.choices.get(&(ballot, heard.to_vec())) {
                Some(Choice::Of(value)) => *value,
                Some(Choice::Own) | None => own,
            }
        }
    }

    /// An acceptor reads a message: what is to be saved, and answered then.
    fn read(&self, record: Record, message: Message) -> Option<(Record, Reply)> {
        let promised = if self.has(Rule::Promises) { record.promised } else { 0 };
        let answer = self.shipped.answers.get(&(Record { promised, ..record }, message))?;
        Some(*answer)
    }

    fn receive(&self, state: &State, at: usize, message: Message, says: Step, then: &mut dyn FnMut(Step, State)) {
        let Some((record, reply)) = self.read(state.acceptors[at].memory, message) else { return };
        let mut after = *state;
        let acceptor = &mut after.acceptors[at];
        acceptor.memory = record;
        if self.bounds.saving == 0 {
            acceptor.disk = record;
            self.answer(&mut after, at, record, reply);
        } else {
            let free = acceptor.saving[..self.bounds.saving].iter().position(|(_, reply)| *reply == Reply::Nothing);
            let Some(free) = free else { return };
            acceptor.saving[free] = (record, reply);
            if !self.has(Rule::DurableFirst) {
                self.answer(&mut after, at, record, reply);
            }
        }
        then(says, after);
    }

    /// An answer is sent. Promises that no proposer waits for are left out: nobody would read them.
    fn answer(&self, state: &mut State, at: usize, record: Record, reply: Reply) {
        match (reply, record.accepted()) {
            (Reply::Promise, _) => {
                let ballot = usize::from(record.promised) - 1;
                if state.wanted[ballot] == 0 && self.is_live(state, ballot) {
                    state.acceptors[at].promises[ballot] |= 1 << record.accepted;
                }
            }
            (Reply::Accepted, Some((ballot, value))) => state.acceptors[at].accepted[ballot] |= 1 << value,
            (Reply::Accepted, None) | (Reply::Nothing, _) => {}
        }
    }

    fn steps_of_acceptors(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        for at in 0..self.bounds.acceptors {
            for ballot in 0..self.ballots() {
                let (proposer, number) = (self.proposer(ballot), ballot as u8 + 1);
                if state.begun >> ballot & 1 == 1 {
                    let says = Step::new("{b} reads that {a} asks for promises, ballot {n}", proposer, at, number);
                    self.receive(state, at, Message::Prepare(ballot), says, then);
                }
                for value in (0..VALUES).filter(|value| state.sent[ballot] >> value & 1 == 1) {
                    let says = if value == 0 {
                        "{b} reads {a}'s ballot {n}, with the first roster"
                    } else {
                        "{b} reads {a}'s ballot {n}, with the other roster"
                    };
                    let says = Step::new(says, proposer, at, number);
                    self.receive(state, at, Message::Accept(ballot, value), says, then);
                }
            }
            let (record, reply) = state.acceptors[at].saving[0];
            if reply != Reply::Nothing {
                let mut after = *state;
                let acceptor = &mut after.acceptors[at];
                acceptor.disk = record;
                if !self.has(Rule::KeepsAccepted) {
                    acceptor.disk.accepted = 0;
                }
                acceptor.saving.rotate_left(1);
                acceptor.saving[SAVING - 1] = Default::default();
                if self.has(Rule::DurableFirst) {
                    self.answer(&mut after, at, record, reply);
                }
                then(Step::new("{b} has saved that, and answers", 0, at, 0), after);
            }
            if state.crashes < self.bounds.crashes {
                let mut after = *state;
                after.crashes += 1;
                let acceptor = &mut after.acceptors[at];
                if !self.has(Rule::Remembers) {
                    acceptor.disk = Record::default();
                }
                (acceptor.memory, acceptor.saving) = (acceptor.disk, Default::default());
                then(Step::new("{b} crashes and starts again from its disk", 0, at, 0), after);
            }
        }
    }

    fn steps_of_proposers(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        for ballot in 0..self.ballots() {
            let (proposer, number) = (self.proposer(ballot), ballot as u8 + 1);
            let is_last =
                (ballot..self.ballots()).all(|later| self.proposer(later) != proposer || state.begun >> later & 1 == 0);
            if is_last {
                let mut after = *state;
                after.begun |= 1 << ballot;
                for earlier in (0..ballot).filter(|earlier| self.proposer(*earlier) == proposer) {
                    after.acceptors.iter_mut().for_each(|acceptor| acceptor.promises[earlier] = 0);
                }
                then(Step::new("{a} begins ballot {n}", proposer, 0, number), after);
            }
            if !self.is_live(state, ballot) {
                continue;
            }
            if state.wanted[ballot] == 0 {
                self.steps_of_promises(state, ballot, 0, &mut Vec::new(), then);
                continue;
            }
            let accepted = state.acceptors.iter().filter(|acceptor| acceptor.accepted[ballot] != 0).count();
            if accepted >= self.needed() {
                let mut after = *state;
                after.reported |= 1 << (state.wanted[ballot] - 1);
                then(Step::new("{a} reports ballot {n} as decided", proposer, 0, number), after);
            }
            if !self.has(Rule::UniqueBallots) && state.begun_again >> ballot & 1 == 0 {
                let mut after = *state;
                after.begun_again |= 1 << ballot;
                after.wanted[ballot] = 0;
                then(Step::new("{a} restarts and begins ballot {n} once more", proposer, 0, number), after);
            }
        }
    }

    /// Every majority of promises that a proposer may have heard of when it goes on.
    fn steps_of_promises(
        &self,
        state: &State,
        ballot: usize,
        from: usize,
        heard: &mut Vec<u8>,
        then: &mut dyn FnMut(Step, State),
    ) {
        if heard.len() == self.needed() {
            let mut codes = heard.clone();
            codes.sort_unstable();
            let value = self.choose(state, ballot, &codes);
            let mut after = *state;
            after.wanted[ballot] = value as u8 + 1;
            after.sent[ballot] |= 1 << value;
            after.acceptors.iter_mut().for_each(|acceptor| acceptor.promises[ballot] = 0);
            let says = match value {
                0 => "{a} has enough promises for ballot {n}, and sends the first roster",
                _ => "{a} has enough promises for ballot {n}, and sends the other roster",
            };
            then(Step::new(says, self.proposer(ballot), 0, ballot as u8 + 1), after);
            return;
        }
        for at in from..self.bounds.acceptors {
            let promises = state.acceptors[at].promises[ballot];
            for code in (0..16).filter(|code| promises >> code & 1 == 1) {
                heard.push(code);
                self.steps_of_promises(state, ballot, at + 1, heard, then);
                heard.pop();
            }
        }
    }
}

impl Model for Epochs {
    type State = State;

    fn start(&self) -> State {
        State::default()
    }

    fn steps(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        self.steps_of_proposers(state, then);
        self.steps_of_acceptors(state, then);
    }

    fn violation(&self, state: &State) -> Option<String> {
        // Decided is what a majority of all voters said it accepted, under one ballot, whoever heard of it.
        let mut decided = 0;
        for (ballot, value) in (0..self.ballots()).flat_map(|ballot| (0..VALUES).map(move |value| (ballot, value))) {
            let count = state.acceptors.iter().filter(|acceptor| acceptor.accepted[ballot] >> value & 1 == 1).count();
            if count > self.bounds.acceptors / 2 {
                decided |= 1 << value;
            }
        }
        if (decided | state.reported).count_ones() > 1 {
            return Some("I2: two rosters are decided for one epoch".into());
        }
        (state.reported & !decided != 0).then(|| "I2: a roster is reported that no majority accepted".into())
    }

    fn canonical(&self, mut state: State) -> State {
        state.acceptors[..self.bounds.acceptors].sort_unstable();
        state
    }
}

/// A message to an acceptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Prepare(usize),
    /// A ballot and its roster.
    Accept(usize, usize),
}

/// What a proposer goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Own,
    Of(usize),
}

/// What the shipped code does, read from it.
#[derive(Debug, Default)]
struct Drawn {
    /// How many of the acceptors a proposer takes for a majority.
    needed: usize,
    /// What an acceptor with a record answers to a message, if it is more than a refusal.
    answers: BTreeMap<(Record, Message), (Record, Reply)>,
    /// What a proposer goes on with: by its ballot, and by what the promises said was accepted, in order.
    choices: BTreeMap<(usize, Vec<u8>), Choice>,
}

/// The roster before, the ballots and the rosters that are proposed, as the shipped code knows them.
struct Cast {
    roster: Roster,
    /// Each with the proposer that has just begun it, in the order of the ballots.
    ballots: Vec<(Ballot, Proposer)>,
    values: Vec<Roster>,
}

const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

impl Cast {
    fn new(bounds: &Bounds) -> Self {
        let mut roster = Roster::genesis(ClusterId([9; 16]), Timing::LAN, member(1));
        for number in 2..=bounds.acceptors as u8 {
            roster = after(&roster, &add(number));
            roster = after(&roster, &Change::Promote { id: id(number) });
        }
        let values = (0..VALUES as u8).map(|value| after(&roster, &add(20 + value))).collect();
        let mut ballots = Vec::new();
        for round in 1..=bounds.rounds as u64 {
            for proposer in 0..bounds.proposers {
                ballots.push(begun(&roster, proposer, round));
            }
        }
        ballots.sort_by_key(|(ballot, _)| *ballot);
        Self { roster, ballots, values }
    }

    fn accepted(&self, code: u8) -> Option<Accepted> {
        let (ballot, value) = Record { promised: 0, accepted: code }.accepted()?;
        Some(Accepted { ballot: self.ballots[ballot].0, roster: self.values[value].clone() })
    }

    fn codes(&self) -> std::ops::RangeInclusive<u8> {
        0..=(self.ballots.len() * VALUES) as u8
    }

    fn number(&self, ballot: Option<Ballot>) -> u8 {
        let found = ballot.and_then(|ballot| self.ballots.iter().position(|(known, _)| *known == ballot));
        found.map_or(0, |at| at as u8 + 1)
    }

    fn value(&self, roster: &Roster) -> usize {
        self.values.iter().position(|value| value == roster).unwrap_or_default()
    }

    fn message(&self, message: Message) -> EpochMessage {
        let (target, previous) = (self.roster.version.next(), self.roster.hash());
        match message {
            Message::Prepare(ballot) => EpochMessage::Prepare { target, previous, ballot: self.ballots[ballot].0 },
            Message::Accept(ballot, value) => {
                let roster = self.values[value].clone();
                EpochMessage::Accept { target, ballot: self.ballots[ballot].0, roster }
            }
        }
    }

    /// Lets the shipped acceptor with that record read a message.
    fn read(&self, record: Record, message: Message) -> Option<(Record, Reply)> {
        let promised = usize::from(record.promised).checked_sub(1).map(|at| self.ballots[at].0);
        let target = self.roster.version.next();
        let state = AcceptorState { target, promised, accepted: self.accepted(record.accepted) };
        let mut acceptor = Shipped::new(id(1), Some(state), &self.roster);
        let answer = acceptor.on_message(&self.roster, id(2), &self.message(message));
        let saved = answer.save?;
        let accepted = saved.accepted.map_or(0, |accepted| {
            let ballot = usize::from(self.number(Some(accepted.ballot))) - 1;
            (ballot * VALUES + self.value(&accepted.roster)) as u8 + 1
        });
        let reply = match answer.reply? {
            EpochMessage::Promise { .. } => Reply::Promise,
            EpochMessage::Accepted { .. } => Reply::Accepted,
            _ => return None,
        };
        Some((Record { promised: self.number(saved.promised), accepted }, reply))
    }

    /// Tells a proposer promises until it goes on; returns after how many it does, and with which roster.
    fn tell(&self, ballot: usize, heard: &[u8]) -> Option<(usize, usize)> {
        let (ballot, mut proposer) = self.ballots[ballot].clone();
        let target = self.roster.version.next();
        for (nth, code) in heard.iter().enumerate() {
            let promise = EpochMessage::Promise { target, ballot, accepted: self.accepted(*code) };
            let out = proposer.on_message(&self.roster, id(nth as u8 + 1), &promise, NOW);
            let roster = out.iter().find_map(|out| match out {
                ProposerOut::Send(_, EpochMessage::Accept { roster, .. }) => Some(roster),
                _ => None,
            });
            if let Some(roster) = roster {
                return Some((nth + 1, self.value(roster)));
            }
        }
        None
    }
}

impl Drawn {
    fn new(bounds: &Bounds) -> Self {
        let cast = Cast::new(bounds);
        let mut drawn = Self::default();
        let accepts = |ballot| (0..VALUES).map(move |value| Message::Accept(ballot, value));
        let of_ballot = |ballot| std::iter::once(Message::Prepare(ballot)).chain(accepts(ballot));
        let messages: Vec<_> = (0..cast.ballots.len()).flat_map(of_ballot).collect();
        for promised in 0..=cast.ballots.len() as u8 {
            for record in cast.codes().map(|accepted| Record { promised, accepted }) {
                for message in &messages {
                    drawn.answers.extend(cast.read(record, *message).map(|answer| ((record, *message), answer)));
                }
            }
        }
        drawn.needed = cast.tell(0, &vec![0; bounds.acceptors]).map_or(usize::MAX, |(count, _)| count);
        for ballot in 0..cast.ballots.len() {
            drawn.draw_choices(&cast, ballot, &mut Vec::new());
        }
        drawn
    }

    fn draw_choices(&mut self, cast: &Cast, ballot: usize, heard: &mut Vec<u8>) {
        if heard.len() == self.needed {
            let choice = match cast.tell(ballot, heard) {
                // Whose the roster is does not matter when nothing was accepted before.
                _ if heard.iter().all(|code| *code == 0) => Choice::Own,
                Some((_, value)) => Choice::Of(value),
                None => return,
            };
            self.choices.insert((ballot, heard.clone()), choice);
            return;
        }
        for code in heard.last().copied().unwrap_or_default()..=*cast.codes().end() {
            heard.push(code);
            self.draw_choices(cast, ballot, heard);
            heard.pop();
        }
    }
}

/// Makes a shipped proposer that has just begun a ballot of that round.
fn begun(roster: &Roster, proposer: usize, round: u64) -> (Ballot, Proposer) {
    let change = add(20 + proposer.min(VALUES - 1) as u8);
    let mut made = Proposer::new(id(proposer as u8 + 1), round);
    let mut out = made.propose(roster, change, WallTime(0), NOW).unwrap_or_default();
    if round > 1 {
        let promised = Ballot { round: round - 1, proposer: id(99), nonce: 0 };
        let target = roster.version.next();
        made.on_message(roster, id(1), &EpochMessage::Reject { target, ballot: ballot_in(&out), promised }, NOW);
        out = made.tick(roster, made.next_due().unwrap_or(NOW));
    }
    (ballot_in(&out), made)
}

fn ballot_in(out: &[ProposerOut]) -> Ballot {
    let ballot = out.iter().find_map(|out| match out {
        ProposerOut::Send(_, EpochMessage::Prepare { ballot, .. }) => Some(*ballot),
        _ => None,
    });
    ballot.expect("a proposal begins by asking for promises")
}

fn id(number: u8) -> MemberId {
    MemberId([number; 16])
}

fn member(number: u8) -> Member {
    let name = MemberName::new(&format!("mgt{number}")).expect("a valid name");
    let fingerprints = vec![Fingerprint([number; 32])];
    Member { id: id(number), name, role: Role::Voter, learner: false, fingerprints }
}

fn add(number: u8) -> Change {
    let invite = InviteId([number; 8]);
    Change::Add { member: member(number), invite, expires: WallTime(u64::MAX), uses_max: 1 }
}

fn after(roster: &Roster, change: &Change) -> Roster {
    roster.next(change, WallTime(0)).expect("the change can be made")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { acceptors: 3, proposers: 2, rounds: 2, saving: 0, crashes: 0 };

    #[test]
    fn what_the_shipped_code_does_is_drawn_whole() {
        let drawn = Drawn::new(&BOUNDS);
        assert_eq!(drawn.needed, 2);
        let blank = Record::default();
        let promised = Record { promised: 3, accepted: 0 };
        assert_eq!(drawn.answers[&(blank, Message::Prepare(2))], (promised, Reply::Promise));
        assert!(!drawn.answers.contains_key(&(promised, Message::Prepare(1))), "a lower ballot is refused");
        let accepted = Record { promised: 4, accepted: 8 };
        assert_eq!(drawn.answers[&(promised, Message::Accept(3, 1))], (accepted, Reply::Accepted));
        assert!(!drawn.answers.contains_key(&(accepted, Message::Accept(3, 0))), "one ballot, one roster");
        assert_eq!(drawn.choices[&(3, vec![0, 0])], Choice::Own);
        assert_eq!(drawn.choices[&(3, vec![1, 4])], Choice::Of(1), "the roster of the highest ballot");
        assert_eq!(drawn.choices.len(), 4 * 45);
    }

    #[test]
    fn the_order_of_promises_does_not_matter() {
        let cast = Cast::new(&BOUNDS);
        for (one, other) in [(0, 3), (1, 4), (2, 3), (5, 0)] {
            assert_eq!(cast.tell(3, &[one, other]), cast.tell(3, &[other, one]), "{one} and {other}");
        }
    }

    #[test]
    fn a_shipped_proposer_reports_what_a_majority_accepted_and_not_sooner() {
        let cast = Cast::new(&BOUNDS);
        let (ballot, mut proposer) = cast.ballots[0].clone();
        let target = cast.roster.version.next();
        for voter in [1, 2] {
            let promise = EpochMessage::Promise { target, ballot, accepted: None };
            proposer.on_message(&cast.roster, id(voter), &promise, NOW);
        }
        let accepted = EpochMessage::Accepted { target, ballot };
        assert!(proposer.on_message(&cast.roster, id(1), &accepted, NOW).is_empty());
        assert!(proposer.on_message(&cast.roster, id(1), &accepted, NOW).is_empty(), "the same one again");
        let out = proposer.on_message(&cast.roster, id(3), &accepted, NOW);
        assert!(matches!(&out[0], ProposerOut::Decided { roster, .. } if *roster == cast.values[0]));
    }
}
