//! Writes under moving votes as a model: what is acknowledged stays where every majority meets it (I3, R13).
//!
//! One write goes from member to member as it likes, and is acknowledged once a majority of the voters holds it: of those
//! in force, or of those before, until R2's wait is over. Meanwhile a proposer moves one vote after the other along a
//! list of voter sets. What the rules say is small, and modelled as they say it; `votes-and-writes` runs the shipped core.

use super::explore::{Model, Step};
use super::{Rule, majority};

/// Members in every model.
const MEMBERS: usize = 5;

/// The model within some bounds, with some rule switched off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writes {
    /// The voters of each epoch, a bit each.
    rosters: &'static [u8],
    without: &'static [Rule],
}

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The epoch in force.
    epoch: u8,
    /// Whether grants of the epoch before may still be used: R2's wait is not over.
    is_early: bool,
    /// Who holds the write on its disk.
    holders: u8,
    is_acknowledged: bool,
    proposer: u8,
    /// Whose documents the proposer has received since it began.
    read: u8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Stage {
    #[default]
    Idle,
    Reading,
    /// What the proposer held when it had read enough has to be on a majority of the next voters; the write, if it is
    /// among it.
    Spreading {
        has_write: bool,
    },
}

impl Writes {
    pub(crate) const fn new(rosters: &'static [u8], without: &'static [Rule]) -> Self {
        Self { rosters, without }
    }

    fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    fn voters(&self, epoch: u8) -> u8 {
        self.rosters[usize::from(epoch)]
    }

    /// Returns whether these are a majority of the voters of an epoch.
    fn decide(&self, epoch: u8, members: u8) -> bool {
        (self.voters(epoch) & members).count_ones() >= majority(self.voters(epoch).count_ones())
    }

    fn may_acknowledge(&self, state: &State) -> bool {
        let of = |epoch| self.decide(epoch, state.holders);
        of(state.epoch) || (state.is_early && state.epoch > 0 && of(state.epoch - 1))
    }

    fn may_move(&self, state: &State) -> bool {
        let next = state.epoch + 1;
        let is_handed_over = match state.stage {
            Stage::Spreading { has_write } => !has_write || self.decide(next, state.holders),
            Stage::Idle | Stage::Reading => !self.has(Rule::Handover),
        };
        usize::from(next) < self.rosters.len() && is_handed_over && (!state.is_early || !self.has(Rule::Spacing))
    }

    fn may_read(&self, state: &State) -> bool {
        usize::from(state.epoch) + 1 < self.rosters.len() && !(state.is_early && self.has(Rule::ReadAfterWait))
    }
}

impl Model for Writes {
    type State = State;

    fn start(&self) -> State {
        State::default()
    }

    fn steps(&self, state: &State, then: &mut dyn FnMut(Step, State)) {
        for member in (0..MEMBERS).filter(|member| state.holders >> member & 1 == 0) {
            let says = Step::new("the write is on {b}'s disk", 0, member, 0);
            then(says, State { holders: state.holders | 1 << member, ..*state });
        }
        if !state.is_acknowledged && self.may_acknowledge(state) {
            then(Step::new("the write is acknowledged", 0, 0, 0), State { is_acknowledged: true, ..*state });
        }
        if state.is_early {
            then(Step::new("R2's wait is over in epoch {n}", 0, 0, state.epoch), State { is_early: false, ..*state });
        }
        if state.stage == Stage::Idle && self.may_read(state) {
            for proposer in (0..MEMBERS).filter(|member| self.voters(state.epoch) >> member & 1 == 1) {
                let says = Step::new("{b} begins to read what the voters hold", 0, proposer, 0);
                let read = 1 << proposer;
                then(says, State { stage: Stage::Reading, proposer: proposer as u8, read, ..*state });
            }
        }
        if state.stage == Stage::Reading {
            let proposer = 1 << state.proposer;
            for voter in (0..MEMBERS).filter(|voter| (self.voters(state.epoch) & !state.read) >> voter & 1 == 1) {
                let brought = if state.holders >> voter & 1 == 1 { proposer } else { 0 };
                let says = Step::new("the proposer has what {b} holds", 0, voter, 0);
                let (read, holders) = (state.read | 1 << voter, state.holders | brought);
                then(says, State { read, holders, ..*state });
            }
            if self.decide(state.epoch, state.read) {
                let stage = Stage::Spreading { has_write: state.holders & proposer != 0 };
                then(Step::new("a majority was read", 0, 0, 0), State { stage, ..*state });
            }
        }
        if self.may_move(state) {
            let epoch = state.epoch + 1;
            let after = State { epoch, is_early: true, stage: Stage::Idle, read: 0, proposer: 0, ..*state };
            then(Step::new("epoch {n} is in force", 0, 0, epoch), after);
        }
    }

    fn violation(&self, state: &State) -> Option<String> {
        let is_lost = state.is_acknowledged && self.decide(state.epoch, !state.holders);
        is_lost.then(|| "a majority of the voters knows nothing of a write that was acknowledged".to_owned())
    }
}
