//! The acceptor: what a voter promised and accepted for the next epoch, and what it answers.

use minicbor::{Decode, Encode};

use super::{Accepted, Ballot, EpochMessage};
use crate::proto::identity::MemberId;
use crate::proto::roster::{Roster, Version};

/// What a member must never forget about the epoch after its own; one record, saved over its predecessor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AcceptorState {
    /// The version that is being decided.
    #[n(0)]
    pub target: Version,
    /// The highest ballot it answered; it takes no lower one.
    #[n(1)]
    pub promised: Option<Ballot>,
    /// The roster it accepted under the highest ballot.
    #[n(2)]
    pub accepted: Option<Accepted>,
}

impl AcceptorState {
    fn blank(target: Version) -> Self {
        Self { target, promised: None, accepted: None }
    }
}

/// What to do about a message to the acceptor, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptorAnswer {
    /// The record to make durable first.
    pub save: Option<AcceptorState>,
    /// What to answer the sender; once the record is durable, and not before. R1.
    pub reply: Option<EpochMessage>,
}

impl AcceptorAnswer {
    fn say(reply: EpochMessage) -> Self {
        Self { save: None, reply: Some(reply) }
    }
}

/// One member's part in deciding the epoch after its own.
#[derive(Clone, Debug)]
pub struct Acceptor {
    me: MemberId,
    state: AcceptorState,
}

impl Acceptor {
    /// Makes the acceptor of the member `me` from its last durable record, if any, and the roster it has stored.
    pub fn new(me: MemberId, state: Option<AcceptorState>, roster: &Roster) -> Self {
        let state = state.unwrap_or_else(|| AcceptorState::blank(roster.version.next()));
        let mut acceptor = Self { me, state };
        acceptor.on_roster(roster);
        acceptor
    }

    /// Starts anew for the epoch after `roster`, which was adopted and stored.
    ///
    /// Needs no saving: a stored record for an epoch that was decided is recognised by its target.
    pub fn on_roster(&mut self, roster: &Roster) {
        if roster.version.next() > self.state.target {
            self.state = AcceptorState::blank(roster.version.next());
        }
    }

    /// Returns the roster that was accepted here for the epoch after `roster`, and is not known to be decided.
    pub fn accepted(&self, roster: &Roster) -> Option<&Roster> {
        let is_next = self.state.target == roster.version.next();
        self.state.accepted.as_ref().filter(|_| is_next).map(|accepted| &accepted.roster)
    }

    /// Answers a message to the acceptor; `roster` is the one in force here, `from` the member at the other end.
    ///
    /// Messages that are not for acceptors, or from no member, get no answer.
    pub fn on_message(&mut self, roster: &Roster, from: MemberId, message: &EpochMessage) -> AcceptorAnswer {
        self.on_roster(roster);
        if roster.member(from).is_none() {
            return AcceptorAnswer::default();
        }
        match message {
            EpochMessage::Want { version } if *version < roster.version => {
                AcceptorAnswer::say(EpochMessage::Decided { roster: roster.clone() })
            }
            EpochMessage::Prepare { target, previous, ballot } => self
                .before_deciding(roster, *target)
                .or_else(|| (*previous != roster.hash()).then(AcceptorAnswer::default))
                .or_else(|| self.reject(*ballot))
                .unwrap_or_else(|| self.promise(*ballot)),
            EpochMessage::Accept { target, ballot, roster: value } => self
                .before_deciding(roster, *target)
                .or_else(|| (!value.follows(roster) || value.check().is_err()).then(AcceptorAnswer::default))
                .or_else(|| self.reject(*ballot))
                .unwrap_or_else(|| self.accept(*ballot, value)),
            _ => AcceptorAnswer::default(),
        }
    }

    /// Answers a message about any epoch but the one after `roster`, or to a member that has no say in it.
    fn before_deciding(&self, roster: &Roster, target: Version) -> Option<AcceptorAnswer> {
        if target <= roster.version {
            return Some(AcceptorAnswer::say(EpochMessage::Decided { roster: roster.clone() }));
        }
        // R9: a record from beyond the stored roster means that the roster was rolled back; what was decided since is
        // unknown here, so nothing may be promised until the others have told.
        if target > roster.version.next() || self.state.target > roster.version.next() {
            return Some(AcceptorAnswer::say(EpochMessage::Want { version: roster.version }));
        }
        let votes = roster.member(self.me).is_some_and(|member| member.is_voter());
        (!votes).then(AcceptorAnswer::default)
    }

    fn reject(&self, ballot: Ballot) -> Option<AcceptorAnswer> {
        let promised = self.state.promised.filter(|promised| ballot < *promised)?;
        Some(AcceptorAnswer::say(EpochMessage::Reject { target: self.state.target, ballot, promised }))
    }

    fn promise(&mut self, ballot: Ballot) -> AcceptorAnswer {
        self.state.promised = Some(ballot);
        let accepted = self.state.accepted.clone();
        self.save_then(EpochMessage::Promise { target: self.state.target, ballot, accepted })
    }

    fn accept(&mut self, ballot: Ballot, roster: &Roster) -> AcceptorAnswer {
        if self.state.accepted.as_ref().is_some_and(|old| old.ballot == ballot && old.roster != *roster) {
            return AcceptorAnswer::default(); // One ballot stands for one roster.
        }
        self.state.promised = Some(ballot);
        self.state.accepted = Some(Accepted { ballot, roster: roster.clone() });
        self.save_then(EpochMessage::Accepted { target: self.state.target, ballot })
    }

    /// R1: the record goes with every such reply, even when nothing changed: the record that a repeated message finds
    /// in memory may still be on its way to the disk, and this reply must not overtake it.
    fn save_then(&self, reply: EpochMessage) -> AcceptorAnswer {
        AcceptorAnswer { save: Some(self.state.clone()), reply: Some(reply) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::identity::RosterHash;
    use crate::proto::roster::tests::{add, member, voters};
    use crate::proto::roster::{Change, Role};
    use crate::proto::time::WallTime;

    fn id(n: u8) -> MemberId {
        MemberId([n; 16])
    }

    fn ballot(round: u64) -> Ballot {
        Ballot { round, proposer: id(2), nonce: 0 }
    }

    fn next(roster: &Roster) -> Roster {
        roster.next(&Change::Remove { id: id(3) }, WallTime(0)).expect("possible")
    }

    fn prepare(roster: &Roster, round: u64) -> EpochMessage {
        EpochMessage::Prepare { target: roster.version.next(), previous: roster.hash(), ballot: ballot(round) }
    }

    fn accept(roster: &Roster, round: u64) -> EpochMessage {
        EpochMessage::Accept { target: roster.version.next(), ballot: ballot(round), roster: next(roster) }
    }

    #[test]
    fn a_promise_and_an_acceptance_carry_the_record_that_goes_before_them() {
        // R1.
        let roster = voters(3);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        let target = roster.version.next();
        for message in [prepare(&roster, 1), prepare(&roster, 1)] {
            let answer = acceptor.on_message(&roster, id(2), &message);
            assert_eq!(answer.save, Some(AcceptorState { target, promised: Some(ballot(1)), accepted: None }));
            let promise = EpochMessage::Promise { target, ballot: ballot(1), accepted: None };
            assert_eq!(answer.reply, Some(promise));
        }
        let accepted = Accepted { ballot: ballot(1), roster: next(&roster) };
        for message in [accept(&roster, 1), accept(&roster, 1)] {
            let answer = acceptor.on_message(&roster, id(2), &message);
            let state = AcceptorState { target, promised: Some(ballot(1)), accepted: Some(accepted.clone()) };
            assert_eq!(answer.save, Some(state));
            assert_eq!(answer.reply, Some(EpochMessage::Accepted { target, ballot: ballot(1) }));
        }
        let answer = acceptor.on_message(&roster, id(2), &prepare(&roster, 2));
        assert_eq!(answer.reply, Some(EpochMessage::Promise { target, ballot: ballot(2), accepted: Some(accepted) }));
    }

    #[test]
    fn lower_ballots_are_rejected_with_what_was_promised() {
        let roster = voters(3);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        acceptor.on_message(&roster, id(2), &prepare(&roster, 5));
        let target = roster.version.next();
        for message in [prepare(&roster, 4), accept(&roster, 4)] {
            let answer = acceptor.on_message(&roster, id(2), &message);
            let reject = EpochMessage::Reject { target, ballot: ballot(4), promised: ballot(5) };
            assert_eq!(answer, AcceptorAnswer { save: None, reply: Some(reject) });
        }
    }

    #[test]
    fn accepting_promises_as_well() {
        let roster = voters(3);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        acceptor.on_message(&roster, id(2), &accept(&roster, 5));
        let answer = acceptor.on_message(&roster, id(2), &prepare(&roster, 4));
        assert!(matches!(answer.reply, Some(EpochMessage::Reject { .. })));
    }

    #[test]
    fn one_ballot_stands_for_one_roster() {
        let roster = voters(3);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        acceptor.on_message(&roster, id(2), &accept(&roster, 5));
        let other = roster.next(&add(member(9, Role::Voter), 9), WallTime(0)).expect("possible");
        let forged = EpochMessage::Accept { target: other.version, ballot: ballot(5), roster: other };
        assert_eq!(acceptor.on_message(&roster, id(2), &forged), AcceptorAnswer::default());
    }

    #[test]
    fn whoever_knows_less_is_told_and_whoever_knows_more_is_asked() {
        let old = voters(3);
        let roster = next(&old);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        let decided = AcceptorAnswer::say(EpochMessage::Decided { roster: roster.clone() });
        for message in [prepare(&old, 1), accept(&old, 1), EpochMessage::Want { version: old.version }] {
            assert_eq!(acceptor.on_message(&roster, id(2), &message), decided);
        }
        let mut behind = Acceptor::new(id(1), None, &old);
        let want = AcceptorAnswer::say(EpochMessage::Want { version: old.version });
        assert_eq!(behind.on_message(&old, id(2), &prepare(&roster, 1)), want);
        let same = EpochMessage::Want { version: old.version };
        assert_eq!(behind.on_message(&old, id(2), &same), AcceptorAnswer::default());
    }

    #[test]
    fn nothing_is_promised_to_strangers_forks_or_for_impossible_rosters() {
        let roster = voters(3);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        let target = roster.version.next();
        assert_eq!(acceptor.on_message(&roster, id(8), &prepare(&roster, 1)), AcceptorAnswer::default());
        let fork = EpochMessage::Prepare { target, previous: RosterHash([1; 32]), ballot: ballot(1) };
        assert_eq!(acceptor.on_message(&roster, id(2), &fork), AcceptorAnswer::default());
        let mut forked = next(&roster);
        forked.previous = RosterHash([1; 32]);
        let mut unsound = next(&roster);
        unsound.timing.lease_ms = 0;
        for value in [forked, unsound] {
            let message = EpochMessage::Accept { target, ballot: ballot(1), roster: value };
            assert_eq!(acceptor.on_message(&roster, id(2), &message), AcceptorAnswer::default());
        }
    }

    #[test]
    fn a_member_without_a_vote_decides_nothing() {
        let roster = voters(3).next(&add(member(4, Role::Voter), 4), WallTime(0)).expect("possible");
        let mut learner = Acceptor::new(id(4), None, &roster);
        assert_eq!(learner.on_message(&roster, id(2), &prepare(&roster, 1)), AcceptorAnswer::default());
        assert_eq!(learner.on_message(&roster, id(2), &accept(&roster, 1)), AcceptorAnswer::default());
    }

    #[test]
    fn a_new_epoch_starts_from_nothing_and_an_old_record_does_not_follow_it() {
        let old = voters(3);
        let roster = next(&old);
        let mut acceptor = Acceptor::new(id(1), None, &old);
        let stale = acceptor.on_message(&old, id(2), &accept(&old, 7)).save;
        acceptor.on_roster(&roster);
        for mut acceptor in [acceptor, Acceptor::new(id(1), stale, &roster)] {
            let answer = acceptor.on_message(&roster, id(2), &prepare(&roster, 1));
            assert!(matches!(answer.reply, Some(EpochMessage::Promise { accepted: None, .. })), "{answer:?}");
        }
    }

    #[test]
    fn a_rolled_back_roster_promises_nothing_until_it_has_caught_up() {
        // R9.
        let old = voters(3);
        let roster = next(&old);
        let ahead = Acceptor::new(id(1), None, &roster).on_message(&roster, id(2), &prepare(&roster, 1)).save;
        let mut rolled_back = Acceptor::new(id(1), ahead, &old);
        let want = AcceptorAnswer::say(EpochMessage::Want { version: old.version });
        assert_eq!(rolled_back.on_message(&old, id(2), &prepare(&old, 9)), want);
        let answer = rolled_back.on_message(&roster, id(2), &prepare(&roster, 1));
        assert!(matches!(answer.reply, Some(EpochMessage::Promise { .. })));
    }

    #[test]
    fn a_record_reads_back() {
        let roster = voters(3);
        let mut acceptor = Acceptor::new(id(1), None, &roster);
        let state = acceptor.on_message(&roster, id(2), &accept(&roster, 7)).save.expect("saved");
        let bytes = minicbor::to_vec(&state).expect("encodes");
        assert_eq!(minicbor::decode::<AcceptorState>(&bytes).expect("decodes"), state);
    }
}
