//! The proposer: drives one change of the roster until an epoch is decided, with its own roster or another's.

use std::collections::BTreeSet;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::{Accepted, Adoption, Ballot, EpochMessage, adopts, is_majority};
use crate::proto::identity::{MemberId, RosterHash};
use crate::proto::planted::{Bug, Planted};
use crate::proto::roster::{Change, Roster, RosterError, Version};
use crate::proto::time::{Instant, WallTime};

/// How many T an attempt may take before it is given up.
const DEADLINE_LEASES: u32 = 5;

/// What comes of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposerOut {
    /// Send this message; the member may be the proposer itself.
    Send(MemberId, EpochMessage),
    /// The epoch is decided: adopt and store this roster. The proposal is over.
    Decided {
        /// The roster.
        roster: Roster,
        /// Whether it holds the change that was proposed here; if not, propose it again on this roster.
        mine: bool,
    },
    /// The proposal is over without an answer.
    Failed(ProposeError),
}

/// A proposal that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another proposal is under way here; nothing was sent.
    #[error("another change of the roster is being decided")]
    Busy,
    /// The change cannot be made; nothing was sent.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// No majority of the voters answered in time. The change may have been accepted by some of them, and be decided
    /// yet by whoever proposes next: look at the roster before trying again.
    #[error("no majority of the voters answered in time; the change may be decided yet")]
    NoMajority,
}

/// Proposes changes of the roster, one at a time.
#[derive(Clone, Debug)]
pub struct Proposer {
    me: MemberId,
    random: ChaCha8Rng,
    /// The highest round heard of, whatever the epoch.
    round: u64,
    proposal: Option<Proposal>,
    planted: Planted,
}

#[derive(Clone, Debug)]
struct Proposal {
    target: Version,
    previous: RosterHash,
    /// What is wanted here; nothing when what others left open is brought to its end.
    change: Option<Change>,
    /// What is to be decided unless something was accepted already.
    value: Roster,
    /// The voters of the epoch before, which decide.
    acceptors: BTreeSet<MemberId>,
    lease: Duration,
    resend: Duration,
    ballot: Ballot,
    phase: Phase,
    /// Whether somebody promised more to another. The round may succeed without them; if it has not when the pause is
    /// over, the next one starts. The pause is random, or two proposers would outbid one another for ever.
    outbid: bool,
    /// When to act next: resend, or start the next round.
    due: Instant,
    deadline: Instant,
    planted: Planted,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Collecting promises, and the accepted roster of the highest ballot among them.
    Preparing { promised: BTreeSet<MemberId>, best: Option<Accepted> },
    /// Collecting acceptances of one roster.
    Accepting { value: Roster, accepted: BTreeSet<MemberId> },
}

impl Proposer {
    /// Makes the proposer of the member `me`. The seed must be drawn anew at every start: ballots are made from it.
    pub fn new(me: MemberId, seed: u64) -> Self {
        Self { me, random: ChaCha8Rng::seed_from_u64(seed), round: 0, proposal: None, planted: Planted::default() }
    }

    /// Plants bugs, for the simulator to find.
    pub(crate) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    /// Returns whether a proposal is under way.
    pub fn is_busy(&self) -> bool {
        self.proposal.is_some()
    }

    /// Starts to decide `change` as the epoch after `roster`, and returns what to send.
    ///
    /// Call it when [`may_propose`](super::may_propose) allows it.
    ///
    /// # Errors
    /// [`ProposeError::Busy`] and [`ProposeError::Roster`]; nothing was sent.
    pub fn propose(
        &mut self,
        roster: &Roster,
        change: Change,
        wall: WallTime,
        now: Instant,
    ) -> Result<Vec<ProposerOut>, ProposeError> {
        if self.is_busy() {
            return Err(ProposeError::Busy);
        }
        let value = roster.next(&change, wall)?;
        Ok(self.start(roster, value, Some(change), now))
    }

    /// Brings to its end what was accepted for the epoch after `roster` and may be decided without anybody knowing, since
    /// its proposer died; returns what to send, which is nothing while another proposal is under way.
    ///
    /// R2 and R13 were looked at when it was proposed.
    pub fn complete(&mut self, roster: &Roster, accepted: &Roster, now: Instant) -> Vec<ProposerOut> {
        if self.is_busy() || !accepted.follows(roster) {
            return Vec::new();
        }
        self.start(roster, accepted.clone(), None, now)
    }

    fn start(&mut self, roster: &Roster, value: Roster, change: Option<Change>, now: Instant) -> Vec<ProposerOut> {
        let ballot = self.next_ballot();
        let mut proposal = Proposal {
            target: value.version,
            previous: value.previous,
            change,
            value,
            acceptors: roster.voters().clone(),
            lease: roster.timing.lease(),
            resend: roster.timing.renewal(),
            ballot,
            phase: Phase::preparing(),
            outbid: false,
            due: now,
            deadline: now + roster.timing.lease() * DEADLINE_LEASES,
            planted: self.planted,
        };
        let out = proposal.send(now);
        self.proposal = Some(proposal);
        out
    }

    /// Takes an answer of an acceptor, or a decided roster; `roster` is the one in force here.
    pub fn on_message(
        &mut self,
        roster: &Roster,
        from: MemberId,
        message: &EpochMessage,
        now: Instant,
    ) -> Vec<ProposerOut> {
        if let EpochMessage::Decided { roster: offered } = message
            && adopts(roster, offered) == Adoption::Newer
        {
            return self.on_roster(offered);
        }
        let over = self.on_roster(roster);
        let Some(proposal) = self.proposal.as_mut().filter(|proposal| proposal.acceptors.contains(&from)) else {
            return over;
        };
        match message {
            EpochMessage::Promise { target, ballot, accepted } if proposal.is_current(*target, *ballot) => {
                proposal.on_promise(from, accepted.as_ref(), roster, now)
            }
            EpochMessage::Accepted { target, ballot } if proposal.is_current(*target, *ballot) => {
                match proposal.on_accepted(from) {
                    Some(decided) => self.finish(roster, decided),
                    None => Vec::new(),
                }
            }
            EpochMessage::Reject { target, ballot, promised } if proposal.is_current(*target, *ballot) => {
                self.round = self.round.max(promised.round);
                let pause = pause(&mut self.random, proposal.lease);
                proposal.on_reject(now + pause);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Ends the proposal if `roster`, which was decided, is of its epoch or a later one.
    pub fn on_roster(&mut self, roster: &Roster) -> Vec<ProposerOut> {
        match self.proposal.take_if(|proposal| roster.version >= proposal.target) {
            Some(proposal) => {
                vec![ProposerOut::Decided { roster: roster.clone(), mine: proposal.is_made_in(roster) }]
            }
            None => Vec::new(),
        }
    }

    /// Resends what was not answered, starts the next round, or gives up; call it at [`Self::next_due`].
    pub fn tick(&mut self, roster: &Roster, now: Instant) -> Vec<ProposerOut> {
        let over = self.on_roster(roster);
        if self.next_due().is_none_or(|due| now < due) {
            return over;
        }
        if self.proposal.take_if(|proposal| now >= proposal.deadline).is_some() {
            return vec![ProposerOut::Failed(ProposeError::NoMajority)];
        }
        let ballot = if self.proposal.as_ref().is_some_and(|proposal| proposal.outbid) {
            Some(self.next_ballot())
        } else {
            None
        };
        let Some(proposal) = &mut self.proposal else {
            return over;
        };
        if let Some(ballot) = ballot {
            proposal.ballot = ballot;
            proposal.phase = Phase::preparing();
            proposal.outbid = false;
        }
        proposal.send(now)
    }

    /// Returns when [`Self::tick`] has something to do, if nothing comes in before.
    pub fn next_due(&self) -> Option<Instant> {
        self.proposal.as_ref().map(|proposal| proposal.due.min(proposal.deadline))
    }

    fn next_ballot(&mut self) -> Ballot {
        self.round = self.round.saturating_add(1);
        Ballot { round: self.round, proposer: self.me, nonce: self.random.next_u64() }
    }

    /// Reports a roster that a majority accepted, and tells those whom it concerns first: the voters of both epochs and
    /// whoever was added or removed (R8). Everyone else learns it with its next lease round.
    fn finish(&mut self, before: &Roster, decided: Roster) -> Vec<ProposerOut> {
        let Some(proposal) = self.proposal.take() else {
            return Vec::new();
        };
        let mine = proposal.is_made_in(&decided);
        let present: BTreeSet<_> = before.ids().collect();
        let mut told: BTreeSet<_> = present.symmetric_difference(&decided.ids().collect()).copied().collect();
        told.extend(proposal.acceptors);
        told.extend(decided.voters());
        told.remove(&self.me);
        let news = EpochMessage::Decided { roster: decided.clone() };
        let mut out = vec![ProposerOut::Decided { roster: decided, mine }];
        out.extend(told.into_iter().map(|member| ProposerOut::Send(member, news.clone())));
        out
    }
}

impl Phase {
    fn preparing() -> Self {
        Self::Preparing { promised: BTreeSet::new(), best: None }
    }
}

impl Proposal {
    /// Returns whether a roster holds what is wanted here.
    fn is_made_in(&self, roster: &Roster) -> bool {
        self.change.as_ref().is_some_and(|change| change.is_made_in(roster))
    }

    fn is_current(&self, target: Version, ballot: Ballot) -> bool {
        target == self.target && ballot == self.ballot
    }

    /// Sends the message of this phase to every acceptor that has not answered it.
    fn send(&mut self, now: Instant) -> Vec<ProposerOut> {
        self.due = now + self.resend;
        let (target, previous, ballot) = (self.target, self.previous, self.ballot);
        let (message, answered) = match &self.phase {
            Phase::Preparing { promised, .. } => (EpochMessage::Prepare { target, previous, ballot }, promised),
            Phase::Accepting { value, accepted } => {
                (EpochMessage::Accept { target, ballot, roster: value.clone() }, accepted)
            }
        };
        self.acceptors.difference(answered).map(|member| ProposerOut::Send(*member, message.clone())).collect()
    }

    fn on_promise(
        &mut self,
        from: MemberId,
        accepted: Option<&Accepted>,
        roster: &Roster,
        now: Instant,
    ) -> Vec<ProposerOut> {
        let half = usize::from(self.planted.has(Bug::HalfDecides));
        let Phase::Preparing { promised, best } = &mut self.phase else {
            return Vec::new();
        };
        if let Some(accepted) = accepted {
            if !accepted.roster.follows(roster) || accepted.roster.check().is_err() {
                return Vec::new(); // Such a promise cannot be honoured, so it must not be counted.
            }
            if best.as_ref().is_none_or(|best| best.ballot < accepted.ballot) {
                *best = Some(accepted.clone());
            }
        }
        promised.insert(from);
        if !is_majority(promised.len() + half, self.acceptors.len()) {
            return Vec::new();
        }
        // R1: what may have been decided already goes before what is wanted here.
        let best = best.take().filter(|_| !self.planted.has(Bug::OwnRosterFirst));
        let value = best.map_or_else(|| self.value.clone(), |best| best.roster);
        self.phase = Phase::Accepting { value, accepted: BTreeSet::new() };
        self.outbid = false;
        self.send(now)
    }

    fn on_accepted(&mut self, from: MemberId) -> Option<Roster> {
        let half = usize::from(self.planted.has(Bug::HalfDecides));
        let Phase::Accepting { value, accepted } = &mut self.phase else {
            return None;
        };
        accepted.insert(from);
        is_majority(accepted.len() + half, self.acceptors.len()).then(|| value.clone())
    }

    fn on_reject(&mut self, until: Instant) {
        if !self.outbid {
            self.outbid = true;
            self.due = until;
        }
    }
}

/// Draws a pause of T/20 to T/4.
fn pause(random: &mut ChaCha8Rng, lease: Duration) -> Duration {
    lease / 20 + lease / 5 * (random.next_u32() % 1_024) / 1_024
}

#[cfg(test)]
mod tests {
    use super::super::{Acceptor, AcceptorState};
    use super::*;
    use crate::proto::roster::Role;
    use crate::proto::roster::tests::{add, member, voters};

    const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

    fn id(n: u8) -> MemberId {
        MemberId([n; 16])
    }

    fn add_m9() -> Change {
        add(member(9, Role::Voter), 9)
    }

    fn started(roster: &Roster) -> (Proposer, Vec<ProposerOut>) {
        let mut proposer = Proposer::new(id(1), 1);
        let out = proposer.propose(roster, add_m9(), WallTime(0), NOW).expect("can be proposed");
        (proposer, out)
    }

    /// Sends everything to acceptors that answer at once; returns what comes of the answers.
    fn round_trip(
        roster: &Roster,
        proposer: &mut Proposer,
        acceptors: &mut [Acceptor],
        sends: &[ProposerOut],
    ) -> Vec<ProposerOut> {
        let mut out = Vec::new();
        for send in sends {
            let ProposerOut::Send(to, message) = send else { continue };
            let Some(acceptor) = acceptors.get_mut(usize::from(to.0[0]) - 1) else { continue };
            if let Some(reply) = acceptor.on_message(roster, id(1), message).reply {
                out.extend(proposer.on_message(roster, *to, &reply, NOW));
            }
        }
        out
    }

    fn acceptors(roster: &Roster) -> Vec<Acceptor> {
        roster.voters().iter().map(|voter| Acceptor::new(*voter, None, roster)).collect()
    }

    fn decided(out: &[ProposerOut]) -> Option<(Roster, bool)> {
        out.iter().find_map(|out| match out {
            ProposerOut::Decided { roster, mine } => Some((roster.clone(), *mine)),
            _ => None,
        })
    }

    fn ballot_of(out: &[ProposerOut]) -> Ballot {
        match out.first() {
            Some(ProposerOut::Send(_, EpochMessage::Prepare { ballot, .. } | EpochMessage::Accept { ballot, .. })) => {
                *ballot
            }
            other => panic!("{other:?} has no ballot"),
        }
    }

    #[test]
    fn a_lone_proposer_is_done_in_two_round_trips() {
        for count in 1..=5 {
            let roster = voters(count);
            let mut acceptors = acceptors(&roster);
            let (mut proposer, prepares) = started(&roster);
            let accepts = round_trip(&roster, &mut proposer, &mut acceptors, &prepares);
            let out = round_trip(&roster, &mut proposer, &mut acceptors, &accepts);
            let (next, mine) = decided(&out).expect("decided");
            assert!(mine && next.follows(&roster) && !proposer.is_busy() && proposer.next_due().is_none());
            let told = |n| out.iter().any(|out| matches!(out, ProposerOut::Send(to, _) if *to == id(n)));
            assert!(told(9) && !told(1) && (2..=count).all(told));
        }
    }

    #[test]
    fn what_a_proposer_left_open_is_brought_to_its_end_by_another() {
        let roster = voters(3);
        let mut acceptors = acceptors(&roster);
        let (mut first, prepares) = started(&roster);
        let accepts = round_trip(&roster, &mut first, &mut acceptors, &prepares);
        assert!(acceptors.iter().all(|acceptor| acceptor.accepted(&roster).is_none()));
        // It dies before anybody hears that a majority accepted.
        drop(round_trip(&roster, &mut first, &mut acceptors[..2], &accepts));
        let open = acceptors[1].accepted(&roster).expect("accepted").clone();
        assert!(acceptors[2].accepted(&roster).is_none());
        let mut second = Proposer::new(id(2), 2);
        let prepares = second.complete(&roster, &open, NOW);
        assert!(second.complete(&roster, &open, NOW).is_empty(), "one at a time");
        // The first ballot may be the higher one.
        let mut sends = prepares;
        let mut out = Vec::new();
        for round in 1..=4 {
            sends = round_trip(&roster, &mut second, &mut acceptors, &sends);
            if decided(&sends).is_some() {
                out = sends;
                break;
            }
            if sends.is_empty() {
                sends = second.tick(&roster, NOW + roster.timing.lease() * round / 2);
            }
        }
        assert_eq!(decided(&out), Some((open.clone(), false)));
        let mut late = Proposer::new(id(3), 3);
        assert!(late.complete(&open, &open, NOW).is_empty(), "it is in force already");
    }

    #[test]
    fn one_proposal_at_a_time() {
        let roster = voters(3);
        let (mut proposer, _) = started(&roster);
        let again = proposer.propose(&roster, add_m9(), WallTime(0), NOW);
        assert_eq!(again, Err(ProposeError::Busy));
    }

    #[test]
    fn an_impossible_change_is_refused_before_anything_is_sent() {
        let mut proposer = Proposer::new(id(1), 1);
        let refusal = proposer.propose(&voters(1), Change::Remove { id: id(1) }, WallTime(0), NOW);
        assert_eq!(refusal, Err(ProposeError::Roster(RosterError::LastVoter)));
        assert!(!proposer.is_busy());
    }

    #[test]
    fn what_was_accepted_before_is_finished_first() {
        // R1: m2 accepted the removal of m3 under an earlier ballot; it may have been decided.
        let roster = voters(3);
        let earlier = roster.next(&Change::Remove { id: id(3) }, WallTime(0)).expect("possible");
        let state = AcceptorState {
            target: roster.version.next(),
            promised: None,
            accepted: Some(Accepted {
                ballot: Ballot { round: 0, proposer: id(2), nonce: 0 },
                roster: earlier.clone(),
            }),
        };
        let mut acceptors = acceptors(&roster);
        acceptors[1] = Acceptor::new(id(2), Some(state), &roster);
        let (mut proposer, prepares) = started(&roster);
        let accepts = round_trip(&roster, &mut proposer, &mut acceptors, &prepares);
        let out = round_trip(&roster, &mut proposer, &mut acceptors, &accepts);
        assert_eq!(decided(&out), Some((earlier, false)));
    }

    #[test]
    fn silence_is_answered_by_resending_to_the_silent_and_in_the_end_by_giving_up() {
        let roster = voters(3);
        let (mut proposer, prepares) = started(&roster);
        let promise =
            EpochMessage::Promise { target: roster.version.next(), ballot: ballot_of(&prepares), accepted: None };
        assert!(proposer.on_message(&roster, id(3), &promise, NOW).is_empty());
        assert!(proposer.on_message(&roster, id(3), &promise, NOW).is_empty(), "one voter counts once");
        assert!(proposer.tick(&roster, NOW).is_empty(), "nothing is due yet");
        let due = proposer.next_due().expect("something is due");
        let again = proposer.tick(&roster, due);
        assert_eq!(again, prepares[..2], "the same ballot, to m1 and m2");
        let end = NOW + roster.timing.lease() * DEADLINE_LEASES;
        assert_eq!(proposer.tick(&roster, end), [ProposerOut::Failed(ProposeError::NoMajority)]);
        assert!(!proposer.is_busy());
    }

    #[test]
    fn an_outbid_proposer_pauses_and_then_bids_higher() {
        let roster = voters(3);
        let (mut proposer, prepares) = started(&roster);
        let ballot = ballot_of(&prepares);
        let promised = Ballot { round: 40, proposer: id(2), nonce: 0 };
        let reject = EpochMessage::Reject { target: roster.version.next(), ballot, promised };
        assert!(proposer.on_message(&roster, id(2), &reject, NOW).is_empty());
        let due = proposer.next_due().expect("something is due");
        let lease = roster.timing.lease();
        assert!((lease / 20..=lease / 4).contains(&due.since(NOW)));
        let next = proposer.tick(&roster, due);
        assert_eq!((next.len(), ballot_of(&next).round), (3, 41));
        assert!(proposer.on_message(&roster, id(3), &reject, due).is_empty(), "a late answer to the last round");
        assert!(!proposer.proposal.as_ref().expect("busy").outbid);
    }

    #[test]
    fn a_majority_that_promised_is_enough_even_when_one_voter_rejects() {
        let roster = voters(3);
        let mut acceptors = acceptors(&roster);
        let rival = Ballot { round: 40, proposer: id(2), nonce: 0 };
        let state = AcceptorState { target: roster.version.next(), promised: Some(rival), accepted: None };
        acceptors[0] = Acceptor::new(id(1), Some(state), &roster);
        let (mut proposer, prepares) = started(&roster);
        let accepts = round_trip(&roster, &mut proposer, &mut acceptors, &prepares);
        let out = round_trip(&roster, &mut proposer, &mut acceptors, &accepts);
        assert!(decided(&out).is_some());
    }

    #[test]
    fn only_voters_are_counted() {
        let roster = voters(3).next(&add(member(4, Role::Nonvoting), 4), WallTime(0)).expect("possible");
        let (mut proposer, prepares) = started(&roster);
        assert_eq!(prepares.len(), 3);
        let target = roster.version.next();
        let promise = EpochMessage::Promise { target, ballot: ballot_of(&prepares), accepted: None };
        for from in [4, 5, 1] {
            assert!(proposer.on_message(&roster, id(from), &promise, NOW).is_empty());
        }
        assert!(!proposer.on_message(&roster, id(2), &promise, NOW).is_empty());
    }

    #[test]
    fn a_promise_with_an_impossible_roster_is_not_counted() {
        let roster = voters(3);
        let (mut proposer, prepares) = started(&roster);
        let ballot = ballot_of(&prepares);
        let accepted = Some(Accepted { ballot, roster: voters(5) });
        let target = roster.version.next();
        let bad = EpochMessage::Promise { target, ballot, accepted };
        let good = EpochMessage::Promise { target, ballot, accepted: None };
        assert!(proposer.on_message(&roster, id(2), &bad, NOW).is_empty());
        assert!(proposer.on_message(&roster, id(1), &good, NOW).is_empty());
        assert!(!proposer.on_message(&roster, id(3), &good, NOW).is_empty());
    }

    #[test]
    fn a_roster_decided_elsewhere_ends_the_proposal() {
        let roster = voters(3);
        let theirs = roster.next(&Change::Remove { id: id(3) }, WallTime(0)).expect("possible");
        let ours = roster.next(&add_m9(), WallTime(0)).expect("possible");
        let beyond = ours.next(&Change::Remove { id: id(3) }, WallTime(0)).expect("possible");
        for (offered, mine) in [(theirs, false), (ours, true), (beyond, true)] {
            let (mut proposer, _) = started(&roster);
            let news = EpochMessage::Decided { roster: offered.clone() };
            let out = proposer.on_message(&roster, id(3), &news, NOW);
            assert_eq!(out, [ProposerOut::Decided { roster: offered.clone(), mine }]);
            let (mut proposer, _) = started(&roster);
            assert_eq!(proposer.tick(&offered, NOW), [ProposerOut::Decided { roster: offered, mine }]);
        }
        let (mut proposer, _) = started(&roster);
        let foreign =
            Roster::genesis(crate::proto::identity::ClusterId([1; 16]), roster.timing, member(3, Role::Voter));
        assert!(proposer.on_message(&roster, id(3), &EpochMessage::Decided { roster: foreign }, NOW).is_empty());
        assert!(proposer.is_busy());
    }

    #[test]
    fn no_ballot_is_used_twice_even_after_a_restart() {
        let roster = voters(3);
        let first = ballot_of(&started(&roster).1);
        let mut restarted = Proposer::new(id(1), 2);
        let out = restarted.propose(&roster, add_m9(), WallTime(0), NOW).expect("can be proposed");
        assert_eq!(ballot_of(&out).round, first.round);
        assert_ne!(ballot_of(&out), first);
    }
}
