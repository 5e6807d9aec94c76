//! Liveness: what one member believes of every other, and which of two claims about a member holds.
//!
//! A belief is a hint. It says whom to ask and whom to show as away; the right to act is a lease and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use minicbor::{Decode, Encode};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::identity::MemberId;
use super::time::Instant;

/// What is believed of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// It answers.
    #[n(0)]
    Alive,
    /// Somebody got no answer, or nothing was heard of it yet; it may still refute.
    #[n(1)]
    Suspect,
    /// It did not refute in time.
    #[n(2)]
    Down,
    /// It said farewell.
    #[n(3)]
    Left,
}

impl Liveness {
    /// Returns whether the member is treated as there: a suspect is innocent until its time is up (SWIM 4.2).
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        })
    }
}

/// A statement about one member, valid for one incarnation of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is said.
    pub state: Liveness,
    /// Of which incarnation.
    pub incarnation: u64,
}

impl Claim {
    /// Returns whether this claim replaces `held`: the order of precedence of SWIM 4.2.
    ///
    /// Two rows differ from the paper. Being down is final there, for a process that restarts is a new process; here a
    /// member keeps its id over restarts and rises with a higher incarnation. And `Left` is told by the member alone,
    /// so it beats everything but a later incarnation.
    pub const fn overrides(self, held: Self) -> bool {
        use Liveness::{Alive, Down, Left, Suspect};
        let (newer, as_new) = (self.incarnation > held.incarnation, self.incarnation >= held.incarnation);
        match (self.state, held.state) {
            // SWIM 4.2: Alive{j} overrides Suspect{i} and Alive{i} for j > i. Only the member itself raises j.
            (Alive, Alive | Suspect | Down | Left) => newer,
            // SWIM 4.2: Suspect{j} overrides Alive{i} for j >= i and Suspect{i} for j > i.
            (Suspect, Alive) => as_new,
            (Suspect, Suspect | Down | Left) => newer,
            // SWIM 4.2: Confirm overrides Alive and Suspect. Not those of an incarnation it does not know of.
            (Down, Alive | Suspect) => as_new,
            (Down, Down | Left) => newer,
            (Left, Alive | Suspect | Down) => as_new,
            (Left, Left) => newer,
        }
    }
}

/// Everything believed of one member, with the facts about the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belief {
    /// Whether it is there.
    pub state: Liveness,
    /// The highest incarnation heard of; 0 before the first.
    pub incarnation: u64,
    /// When `state` became what it is.
    pub since: Instant,
    /// When it last answered a probe of ours, on the direct way.
    pub last_ack: Option<Instant>,
    /// When anything last came straight from it.
    pub last_heard: Option<Instant>,
    /// The smoothed round trip of its answers, in microseconds (RFC 6298: an eighth of each new sample).
    pub rtt_us: Option<u32>,
    /// The share of direct probes that got no answer in time, smoothed, in thousandths.
    pub loss_permille: u16,
}

impl Belief {
    /// Makes the belief about a member of which nothing was heard yet: a suspect, so that a dead one is shown soon.
    pub const fn unheard(now: Instant) -> Self {
        Self {
            state: Liveness::Suspect,
            incarnation: 0,
            since: now,
            last_ack: None,
            last_heard: None,
            rtt_us: None,
            loss_permille: 0,
        }
    }

    /// Returns what is claimed of the member.
    pub const fn claim(&self) -> Claim {
        Claim { state: self.state, incarnation: self.incarnation }
    }

    /// Takes in the fate of one direct probe: its round trip, or none when it was lost or late.
    pub(crate) fn probed(&mut self, round_trip: Option<Duration>) {
        let lost: i32 = if round_trip.is_some() { 0 } else { 1_000 };
        let loss = i32::from(self.loss_permille);
        self.loss_permille = u16::try_from((loss * 15 + lost + 8) / 16).unwrap_or(1_000);
        if let Some(round_trip) = round_trip {
            let sample = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
            self.rtt_us = Some(match self.rtt_us {
                None => sample,
                Some(smooth) => u32::try_from((u64::from(smooth) * 7 + u64::from(sample)) / 8).unwrap_or(u32::MAX),
            });
        }
    }
}

/// One member's beliefs about the members on the roster, itself among them.
///
/// Local: the views of two members may differ, for good when the network between some of them is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LivenessView {
    beliefs: BTreeMap<MemberId, Belief>,
    /// How often a state, or who is believed anything of, changed.
    changes: u64,
}

impl LivenessView {
    /// Returns what is believed of one member, or none when it is not on the roster.
    pub fn get(&self, id: MemberId) -> Option<&Belief> {
        self.beliefs.get(&id)
    }

    /// Returns whether one member is there; false for one that is not on the roster.
    pub fn is_up(&self, id: MemberId) -> bool {
        self.get(id).is_some_and(|belief| belief.state.is_up())
    }

    /// Returns every belief, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Belief)> {
        self.beliefs.iter().map(|(id, belief)| (*id, belief))
    }

    /// Returns the ids of the members that are there.
    pub fn up(&self) -> BTreeSet<MemberId> {
        self.iter().filter(|(_, belief)| belief.state.is_up()).map(|(id, _)| id).collect()
    }

    /// Returns how many members are in a state.
    pub fn count(&self, state: Liveness) -> usize {
        self.beliefs.values().filter(|belief| belief.state == state).count()
    }

    /// Returns how many members are known.
    pub fn len(&self) -> usize {
        self.beliefs.len()
    }

    /// Returns whether no member is known.
    pub fn is_empty(&self) -> bool {
        self.beliefs.is_empty()
    }

    /// Returns how often a state changed, or who is on the roster: while this number stays, so does all that depends on
    /// states alone.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Returns a number that two views share when they agree on who is there, who is away and who left.
    ///
    /// A suspect counts as there, so that a suspicion on its way around does not look like disagreement.
    pub fn hash(&self) -> u64 {
        let mut bytes = Vec::with_capacity(17 * self.beliefs.len());
        for (id, belief) in &self.beliefs {
            bytes.extend_from_slice(&id.0);
            bytes.push(match belief.state {
                Liveness::Alive | Liveness::Suspect => 0,
                Liveness::Down => 1,
                Liveness::Left => 2,
            });
        }
        let hash = digest::digest(&digest::SHA256, &bytes);
        u64::from_be_bytes(hash.as_ref()[..8].try_into().expect("SHA-256 has more than eight bytes"))
    }

    /// Keeps the members of the roster and no others; one that was not known begins as [`Belief::unheard`].
    ///
    /// Returns those that are new.
    pub(crate) fn retain(&mut self, ids: &BTreeSet<MemberId>, now: Instant) -> Vec<MemberId> {
        self.changes += 1;
        self.beliefs.retain(|id, _| ids.contains(id));
        let added: Vec<_> = ids.iter().copied().filter(|id| !self.beliefs.contains_key(id)).collect();
        self.beliefs.extend(added.iter().map(|id| (*id, Belief::unheard(now))));
        added
    }

    /// Returns what is believed of one member, to note facts about it; its state is changed by [`Self::turn`] alone.
    pub(crate) fn get_mut(&mut self, id: MemberId) -> Option<&mut Belief> {
        self.beliefs.get_mut(&id)
    }

    /// Changes the state that one member is believed to be in.
    pub(crate) fn turn(&mut self, id: MemberId, state: Liveness, now: Instant) {
        if let Some(belief) = self.beliefs.get_mut(&id) {
            self.changes += 1;
            belief.state = state;
            belief.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    fn id(n: u8) -> MemberId {
        MemberId([n; 16])
    }

    fn view(ids: &[u8]) -> LivenessView {
        let mut view = LivenessView::default();
        view.retain(&ids.iter().map(|n| id(*n)).collect(), NOW);
        view
    }

    #[test]
    fn precedence_is_that_of_swim() {
        use Liveness::{Alive, Down, Left, Suspect};
        // For each told state over each held one: wins with an older, the same, a newer incarnation.
        let table = [
            (Alive, Alive, [false, false, true]),
            (Alive, Suspect, [false, false, true]),
            (Alive, Down, [false, false, true]),
            (Alive, Left, [false, false, true]),
            (Suspect, Alive, [false, true, true]),
            (Suspect, Suspect, [false, false, true]),
            (Suspect, Down, [false, false, true]),
            (Suspect, Left, [false, false, true]),
            (Down, Alive, [false, true, true]),
            (Down, Suspect, [false, true, true]),
            (Down, Down, [false, false, true]),
            (Down, Left, [false, false, true]),
            (Left, Alive, [false, true, true]),
            (Left, Suspect, [false, true, true]),
            (Left, Down, [false, true, true]),
            (Left, Left, [false, false, true]),
        ];
        for (told, held, wins) in table {
            for (incarnation, wins) in [4, 5, 6].into_iter().zip(wins) {
                let told = Claim { state: told, incarnation };
                let held = Claim { state: held, incarnation: 5 };
                assert_eq!(told.overrides(held), wins, "{told:?} over {held:?}");
            }
        }
    }

    #[test]
    fn only_members_of_the_roster_are_kept() {
        let mut view = view(&[1, 2]);

        let added = view.retain(&BTreeSet::from([id(2), id(3)]), NOW);

        assert_eq!(added, [id(3)]);
        assert!(view.get(id(1)).is_none());
        assert_eq!(view.len(), 2);
    }

    #[test]
    fn a_member_that_is_still_on_the_roster_keeps_its_belief() {
        let mut view = view(&[1]);
        view.turn(id(1), Liveness::Down, NOW);

        view.retain(&BTreeSet::from([id(1), id(2)]), NOW);

        assert_eq!(view.get(id(1)).expect("known").state, Liveness::Down);
        assert_eq!(view.count(Liveness::Suspect), 1);
        assert_eq!(view.up(), BTreeSet::from([id(2)]));
    }

    #[test]
    fn views_agree_when_the_same_members_are_there() {
        let (mut one, mut two) = (view(&[1, 2]), view(&[1, 2]));
        one.turn(id(1), Liveness::Alive, NOW);
        assert_eq!(one.hash(), two.hash(), "a suspicion is no disagreement");

        two.turn(id(1), Liveness::Down, NOW);
        assert_ne!(one.hash(), two.hash());
        two.turn(id(1), Liveness::Left, NOW);
        assert_ne!(one.hash(), two.hash());
        assert_ne!(view(&[1, 2]).hash(), view(&[1, 3]).hash());
    }

    #[test]
    fn loss_and_round_trip_are_smoothed() {
        let mut belief = Belief::unheard(NOW);
        belief.probed(Some(Duration::from_micros(800)));
        assert_eq!((belief.rtt_us, belief.loss_permille), (Some(800), 0));
        belief.probed(Some(Duration::from_micros(1_600)));
        assert_eq!(belief.rtt_us, Some(900));
        for _ in 0..100 {
            belief.probed(None);
        }
        assert!(belief.loss_permille >= 990, "{}", belief.loss_permille);
        for _ in 0..100 {
            belief.probed(Some(Duration::from_millis(1)));
        }
        assert!(belief.loss_permille <= 10, "{}", belief.loss_permille);
    }
}
