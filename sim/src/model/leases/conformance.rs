//! Walks at random through the model and the shipped voters and holders side by side: what they do, the model allows.
//!
//! A tick is a second on a voter's clock and 0.95 s on a holder's, which is as far as the margin lets them part. The
//! shipped code may be more careful than the model, as when it does not ask again before a refusal may have passed; then
//! the model loses the message. It must never be less careful, and it must follow often enough for that to mean much.

use std::collections::BTreeMap;
use std::time::Duration;

use collective::proto::identity::{ClusterId, Fingerprint, InviteId, MemberId, SessionId};
use collective::proto::lease::{Holder, LeaseRequest, Recorded, Stamp, Verdict, Voter};
use collective::proto::name::{MemberName, NodeName};
use collective::proto::roster::{Change, Member, Role, Roster, Timing};
use collective::proto::time::{Instant, WallTime};

use super::*;
use crate::mix::{Mix, Purpose};

const STAMP: Stamp = Stamp { incarnation: 1, sequence: 1 };

fn id(number: usize) -> MemberId {
    MemberId([number as u8 + 1; 16])
}

fn after(roster: &Roster, change: &Change) -> Roster {
    roster.next(change, WallTime(0)).expect("the change can be made")
}

fn add(roster: &Roster, number: usize, role: Role) -> Roster {
    let name = MemberName::new(&format!("mgt{number}")).expect("a valid name");
    let fingerprints = vec![Fingerprint([number as u8; 32])];
    let member = Member { id: id(number), name, role, learner: false, fingerprints };
    let invite = InviteId([number as u8; 8]);
    let added = after(roster, &Change::Add { member, invite, expires: WallTime(u64::MAX), uses_max: 1 });
    if role.votes() { after(&added, &Change::Promote { id: id(number) }) } else { added }
}

/// The rosters of the model: three voters, then four, then five. The holders are members without a vote.
fn rosters() -> Vec<Roster> {
    let name = MemberName::new("mgt0").expect("a valid name");
    let fingerprints = vec![Fingerprint([0; 32])];
    let founder = Member { id: id(0), name, role: Role::Voter, learner: false, fingerprints };
    let mut roster = Roster::genesis(ClusterId([9; 16]), Timing::LAN, founder);
    for number in 1..3 {
        roster = add(&roster, number, Role::Voter);
    }
    for number in [10, 11] {
        roster = add(&roster, number, Role::Nonvoting);
    }
    let four = add(&roster, 3, Role::Voter);
    let five = add(&four, 4, Role::Voter);
    vec![roster, four, five]
}

/// Draws one number after the other.
struct Dice(Mix, u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.1 += 1;
        self.0.bits(Purpose::Workload, self.1) % end
    }
}

struct Walk {
    model: Leases,
    state: State,
    rosters: Vec<Roster>,
    voters: Vec<Voter>,
    holders: Vec<Holder>,
    ticks: u64,
    terms: u64,
    sessions: u8,
    /// How often the shipped code did and did not do what the model allows.
    followed: u64,
    declined: u64,
    acted: u64,
    seen: BTreeMap<&'static str, u64>,
}

impl Walk {
    fn new(model: Leases) -> Self {
        let voter = |at: usize| Voter::new(SessionId([at as u8; 8]), Instant::ZERO, Timing::LAN, true);
        let holder = |at: usize| Holder::new(id(10 + at), SessionId([100 + at as u8; 8]));
        Self {
            model,
            state: model.start(),
            rosters: rosters(),
            voters: (0..MEMBERS).map(voter).collect(),
            holders: (0..HOLDERS).map(holder).collect(),
            ticks: 0,
            terms: 0,
            sessions: 10,
            followed: 0,
            declined: 0,
            acted: 0,
            seen: BTreeMap::new(),
        }
    }

    fn now(&self, millis_a_tick: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000) + Duration::from_millis(self.ticks * millis_a_tick)
    }

    fn step(&mut self, dice: &mut Dice) {
        let (at, to) = (dice.below(HOLDERS as u64) as usize, dice.below(MEMBERS as u64) as usize);
        let seen = match dice.below(20) {
            0..=11 => {
                self.exchange(at, to, dice.below(4) == 0);
                "exchange"
            }
            12..=14 => {
                self.model.tick(&mut self.state);
                self.ticks += 1;
                "tick"
            }
            15 if usize::from(self.state.decided) + 1 < self.rosters.len() && self.model.may_decide(&self.state) => {
                self.state.decided += 1;
                self.state.in_force_for = 0;
                "decided"
            }
            16 if self.state.voters[to].epoch < self.state.decided => {
                let voter = &mut self.state.voters[to];
                voter.epoch += 1;
                voter.settling = self.model.worst().waited;
                let now = self.now(1_000);
                self.voters[to].on_epoch(true, now);
                "stored"
            }
            17 if self.state.holders[at].epoch < self.state.decided => {
                let holder = &mut self.state.holders[at];
                holder.epoch += 1;
                holder.answers = [0; MEMBERS];
                "learnt"
            }
            18 if dice.below(4) == 0 => {
                let epoch = self.state.voters[to].epoch;
                let fresh = super::Voter { epoch, quiet: self.model.worst().waited, ..Default::default() };
                self.state.voters[to] = fresh;
                self.sessions = self.sessions.wrapping_add(1);
                let session = SessionId([self.sessions, 1, to as u8, 0, 0, 0, 0, 0]);
                self.voters[to] = Voter::new(session, self.now(1_000), Timing::LAN, false);
                "restart"
            }
            _ => return,
        };
        *self.seen.entry(seen).or_default() += 1;
        self.compare();
    }

    /// A holder asks a voter in both worlds; what the shipped voter confirms, the model must confirm.
    fn exchange(&mut self, at: usize, to: usize, is_answer_lost: bool) {
        let epoch = self.state.holders[at].epoch;
        let node = NodeName::new("n1").expect("a valid name");
        let (holder_now, voter_now) = (self.now(950), self.now(1_000));
        let roster = &self.rosters[usize::from(epoch)];
        let holder = &mut self.holders[at];
        if holder.claims().next().is_none() || self.model.answering(&self.state.holders[at]) == 0 {
            // Claimed anew, so that no refusal of before holds it up.
            self.terms += 1;
            holder.release(&node, holder_now);
            holder.claim(node.clone(), self.terms, holder_now);
        }
        holder.hurry();
        let requests = holder.tick(roster, STAMP, true, holder_now);
        let Some((_, request)) = requests.into_iter().find(|(voter, _)| *voter == id(to)) else { return };
        let mut asked = self.ask(at, to, &request, voter_now);
        if self.voters[to].holder(&node, voter_now).is_none_or(|(member, ..)| member != id(10 + at)) {
            // The voter wants to be told everything first.
            let roster = &self.rosters[usize::from(epoch)];
            self.holders[at].on_ack(roster, id(to), &asked, holder_now);
            self.holders[at].hurry();
            let requests = self.holders[at].tick(roster, STAMP, true, holder_now);
            let Some((_, request)) = requests.into_iter().find(|(voter, _)| *voter == id(to)) else { return };
            asked = self.ask(at, to, &request, voter_now);
        }
        let holds = self.voters[to].holder(&node, voter_now);
        let has_it = holds.is_some_and(|(member, ..)| member == id(10 + at));
        let is_granted = matches!(asked.verdict, Verdict::Granted { .. });
        let mut allowed = self.state.voters[to];
        let is_allowed = self.model.read(&mut allowed, at as u8, epoch);
        if has_it && is_granted {
            assert!(is_allowed, "v{to} confirmed {at}'s claim, which the model does not: {:?}", self.state);
            self.state.voters[to] = allowed;
            self.followed += 1;
            if !is_answer_lost {
                let roster = &self.rosters[usize::from(epoch)];
                self.holders[at].on_ack(roster, id(to), &asked, holder_now);
                self.model.take(&mut self.state.holders[at], to, 0);
            }
        } else if is_allowed {
            self.declined += 1;
        }
    }

    fn ask(
        &mut self,
        at: usize,
        to: usize,
        request: &LeaseRequest,
        now: Instant,
    ) -> collective::proto::lease::LeaseAck {
        let roster = &self.rosters[usize::from(self.state.voters[to].epoch)];
        self.voters[to].on_request(roster, STAMP, id(10 + at), request, &|_| Recorded::default(), now)
    }

    /// Who acts in the shipped code acts in the model, and a node that a shipped voter calls free may be free.
    fn compare(&mut self) {
        let node = NodeName::new("n1").expect("a valid name");
        for (at, holder) in self.state.holders.iter().enumerate() {
            let roster = &self.rosters[usize::from(holder.epoch)];
            if self.holders[at].acts(roster, &node, self.now(950)) {
                self.acted += 1;
                assert!(self.model.passes(holder), "{at} acts, which the model does not: {:?}", self.state);
            }
        }
        for (to, voter) in self.state.voters.iter().enumerate() {
            let holds = self.voters[to].holder(&node, self.now(1_000));
            let held_by = holds.map(|(member, ..)| member);
            let in_model = (voter.left > 0).then(|| id(10 + usize::from(voter.holder) - 1));
            assert_eq!(held_by, in_model, "v{to}: {:?}", self.state);
        }
        assert_eq!(self.model.violation(&self.state), None);
    }
}

#[test]
fn what_shipped_voters_and_holders_do_the_model_allows() {
    let bounds = Bounds {
        rosters: &[0b00111, 0b01111, 0b11111],
        watch: Watch::Claims,
        restarts: 1,
        under_way: 0,
        releases: 0,
        twins: false,
        ticks: Ticks::FINE,
    };
    let (mut followed, mut declined, mut acted) = (0, 0, 0);
    let mut seen = BTreeMap::new();
    for seed in 0..200 {
        let mut walk = Walk::new(Leases::new(bounds, &[]));
        let mut dice = Dice(Mix::new(seed), 0);
        for _ in 0..300 {
            walk.step(&mut dice);
        }
        followed += walk.followed;
        declined += walk.declined;
        acted += walk.acted;
        for (what, count) in walk.seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    println!("{followed} confirmed in both, {declined} only in the model, {acted} times acting; {seen:?}");
    assert!(followed > 4 * declined && followed > 2_000 && acted > 2_000);
    for what in ["exchange", "tick", "decided", "stored", "learnt", "restart"] {
        assert!(seen.get(what).is_some_and(|count| *count > 100), "{what}: {seen:?}");
    }
}
