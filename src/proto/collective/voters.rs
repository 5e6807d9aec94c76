//! The elastic voter set at work: what was asked for, who may be given a vote, and the leader's next step.
//!
//! What is asked for is in the settings document, for all members to read. The leader takes one step at a time as an
//! epoch, so R1 to R3 hold for it as for any other change of the roster.

use std::sync::Arc;
use std::time::Duration;

use super::Collective;
use super::changes::Origin;
use super::plans::Plan;
use super::writes::Then;
use crate::proto::document::{Entity, Put};
use crate::proto::elastic::{self, Place, Seat, Step, Wish};
use crate::proto::identity::MemberId;
use crate::proto::liveness::Liveness;
use crate::proto::request::{Done, Response, Wait};
use crate::proto::roster::{Change, Member, Role};
use crate::proto::time::Instant;

/// Voters above which a number is recommended.
const VOTERS_UNASKED_MAX: usize = 9;
/// The setting that says how many voters there shall be.
const IDEAL: &str = "!voters/ideal";
/// The setting that says after how many seconds a dead voter is replaced.
const REPLACE_AFTER: &str = "!voters/replace-after";
/// The prefix of the settings that name members whose vote was taken because there were enough.
const BENCH: &str = "!voters/bench/";
/// The prefix of the settings that name members which want no vote.
const STAY_OUT: &str = "!voters/stay-out/";

/// What a member's own configuration says of voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// How many voters there shall be; counts for who founds a collective.
    pub ideal_voters: Option<usize>,
    /// Whether this member may be given a vote.
    pub volunteer: bool,
}

impl Default for Intent {
    fn default() -> Self {
        Self { ideal_voters: None, volunteer: true }
    }
}

/// What this member has to do about voters.
#[derive(Debug)]
pub(super) struct Voters {
    intent: Intent,
    /// Whether the configuration was told since this member was last seated.
    is_told: bool,
    look_at: Instant,
}

impl Voters {
    pub(super) fn new(intent: Intent) -> Self {
        Self { intent, is_told: false, look_at: Instant::ZERO }
    }
}

fn setting(attribute: impl Into<Arc<str>>, value: Option<String>) -> Put {
    Put { entity: Entity::Settings, attribute: attribute.into(), value }
}

impl Collective {
    /// Takes the next step towards the voters that are asked for, once a round; the leader calls this.
    pub(super) fn settle_voters(&mut self) {
        let now = self.now.boot;
        if now < self.voter_set.look_at {
            return;
        }
        self.voter_set.look_at = now + self.roster.timing.renewal();
        match elastic::next(self.wish(), &self.seats()) {
            Some(Step::Promote(id)) => self.want_change(Change::Promote { id }, Origin::Housekeeping),
            Some(Step::Nominate(id)) => {
                self.want_change(Change::SetRole { id, role: Role::Voter }, Origin::Housekeeping);
            }
            Some(Step::Bench(id)) if self.is_benched(id) => {
                self.want_change(Change::SetRole { id, role: Role::Nonvoting }, Origin::Housekeeping);
            }
            Some(Step::Bench(id)) => {
                // Written first: a member without a vote must be known to be one that may get it back.
                let put = setting(format!("{BENCH}{id}"), Some("1".into()));
                self.voter_set.look_at = now + self.roster.timing.lease();
                drop(self.write(vec![put], Wait::Majority, self.roster.timing.lease(), Then::Nothing));
            }
            None => return,
        }
        self.settle_changes();
    }

    /// Returns when the next step may be taken at the earliest.
    pub(super) fn voters_looked_at_again(&self) -> Instant {
        self.voter_set.look_at
    }

    /// Tells the others what this member's configuration says, once it is seated.
    pub(super) fn tell_intent(&mut self) {
        if std::mem::replace(&mut self.voter_set.is_told, true) {
            return;
        }
        let Intent { ideal_voters, volunteer } = self.voter_set.intent;
        let stay_out = format!("{STAY_OUT}{}", self.me);
        let mut puts = Vec::new();
        if self.stays_out(self.me) == volunteer {
            puts.push(setting(stay_out, (!volunteer).then(|| "1".into())));
        }
        let is_founder = self.roster.version.epoch == 1 && self.documents.get(&Entity::Settings, IDEAL).is_none();
        puts.extend(ideal_voters.filter(|_| is_founder).map(|ideal| setting(IDEAL, Some(ideal.to_string()))));
        if !puts.is_empty() {
            drop(self.write(puts, Wait::Majority, self.roster.timing.lease(), Then::Nothing));
        }
    }

    /// The next seat tells it anew.
    pub(super) fn forget_told_intent(&mut self) {
        self.voter_set.is_told = false;
    }

    pub(super) fn plan_voters(&self, ideal: Option<usize>, replace_after_ms: Option<u64>) -> Plan {
        let mut puts = Vec::new();
        puts.extend(ideal.map(|ideal| setting(IDEAL, (ideal > 0).then(|| ideal.to_string()))));
        let seconds = replace_after_ms.map(|after| after.div_ceil(1_000));
        puts.extend(seconds.map(|after| setting(REPLACE_AFTER, (after > 0).then(|| after.to_string()))));
        let wish = self.wish();
        let wish = Wish {
            ideal: ideal.unwrap_or(wish.ideal),
            replace_after: seconds.map_or(wish.replace_after, |after| (after > 0).then(|| Duration::from_secs(after))),
        };
        let notes = if wish.ideal > 1 && wish.ideal.is_multiple_of(2) {
            vec![format!("{} voters survive no more failures than {}", wish.ideal, wish.ideal - 1)]
        } else {
            Vec::new()
        };
        Plan { puts, message: in_words(wish), notes, ..Plan::default() }
    }

    /// Says how many voters there shall be, and who has which place.
    pub(super) fn voters_report(&self) -> Response {
        let place = |member: &Member| match (member.is_voter(), member.learner, self.is_benched(member.id)) {
            (true, ..) => "votes",
            (_, true, _) => "votes once it has caught up",
            (.., true) if self.stays_out(member.id) => "has no vote and wants none",
            (.., true) => "may be given a vote",
            _ => "has no vote",
        };
        let members = self.roster.members();
        Response::Done(Done {
            message: in_words(self.wish()),
            changes: members.map(|member| format!("{} {}", member.name, place(member))).collect(),
            ..Done::default()
        })
    }

    /// Returns a put that keeps a member without a vote because an administrator says so, if it was on the bench.
    pub(super) fn off_the_bench(&self, id: MemberId) -> Option<Put> {
        self.is_benched(id).then(|| setting(format!("{BENCH}{id}"), None))
    }

    fn wish(&self) -> Wish {
        let number = |attribute| self.documents.get(&Entity::Settings, attribute)?.parse::<u64>().ok();
        Wish {
            ideal: number(IDEAL).and_then(|ideal| usize::try_from(ideal).ok()).unwrap_or(0),
            replace_after: number(REPLACE_AFTER).map(Duration::from_secs),
        }
    }

    /// Returns whether there are more voters than do any good, and nobody has said how many there shall be.
    pub(super) fn wants_fewer_voters(&self) -> bool {
        self.wish().ideal == 0 && self.voters.len() > VOTERS_UNASKED_MAX
    }

    fn is_benched(&self, id: MemberId) -> bool {
        self.documents.get(&Entity::Settings, &format!("{BENCH}{id}")).is_some()
    }

    fn stays_out(&self, id: MemberId) -> bool {
        self.documents.get(&Entity::Settings, &format!("{STAY_OUT}{id}")).is_some()
    }

    fn seats(&self) -> Vec<Seat> {
        let seat = |member: &Member| {
            let id = member.id;
            let place = match (member.is_voter(), member.learner) {
                (true, _) => Place::Voter,
                (false, true) => Place::Learner { is_ready: self.is_ready(id) },
                (false, false) if self.is_benched(id) => Place::Bench,
                (false, false) => return None,
            };
            let is_fixed = member.role == Role::Witness || id == self.me;
            Some(Seat { id, place, dead_for: self.dead_for(id), volunteers: !self.stays_out(id), is_fixed })
        };
        self.roster.members().filter_map(seat).collect()
    }

    fn dead_for(&self, id: MemberId) -> Option<Duration> {
        if self.is_live(id) {
            return None;
        }
        let belief = self.swim.view().get(id)?;
        matches!(belief.state, Liveness::Down | Liveness::Left).then(|| self.now.boot.since(belief.since))
    }
}

fn in_words(wish: Wish) -> String {
    let ideal = match wish.ideal {
        0 => "every member votes that was not invited as nonvoting".to_owned(),
        1 => "1 voter is wanted".to_owned(),
        ideal => format!("{ideal} voters are wanted"),
    };
    match wish.replace_after {
        Some(after) => format!("{ideal}; a dead one is replaced after {} s", after.as_secs()),
        None => format!("{ideal}; a dead one is not replaced"),
    }
}
