//! Load: what administrators ask while things break.

use std::time::Duration;

use collective::proto::name::MemberName;
use collective::proto::request::Request;
use tokio::task::JoinHandle;

use super::drive::{Director, WITHIN};
use super::ledger::Write;
use super::stage::State;
use crate::check::Rule;
use crate::fault::{Kind, MS};
use crate::mix::Purpose;
use crate::scenario::Load;
use crate::site::name;
use crate::workload::{Outcome, change_of_members, member_to_change};

impl Director {
    /// Asks at random times until the end.
    pub(super) fn start_load(&self, load: Load, end: u64) {
        if load.every_ms == 0 {
            return;
        }
        let director = self.clone();
        tokio::spawn(async move {
            for turn in 1.. {
                let pause = director.stage.lock().mix.range(Purpose::Workload, turn << 8, 1, 2 * load.every_ms * MS);
                tokio::time::sleep(Duration::from_nanos(pause)).await;
                if director.is_over() || director.stage.lock().time() >= end {
                    return;
                }
                director.work(turn, load);
            }
        });
    }

    /// Writes one attribute of its own through a member; what becomes of it is in the ledger, and returned.
    pub(super) fn write(&self, member: usize, node: usize) -> JoinHandle<Outcome> {
        let (number, request) = {
            let mut state = self.stage.lock();
            let number = state.ledger.writes.len();
            let (key, value) = (format!("custom.w{number}"), format!("v{number}"));
            let node = state.nodes[node].0.clone();
            state.count("write");
            let request = crate::step::set(node.as_str(), &format!("{key}={value}"));
            state.ledger.writes.push(Write { node, key, value, changes: Vec::new(), outcome: None });
            (number, request)
        };
        let director = self.clone();
        tokio::spawn(async move {
            let life = director.stage.lock().sites[member].birth;
            let response = director.ask(member, request, WITHIN).await;
            let mut state = director.stage.lock();
            let outcome = response.as_ref().map_or(Outcome::Unknown, Outcome::of);
            state.count(match outcome {
                Outcome::Done => "acknowledged",
                Outcome::Refused(_) => "refused",
                Outcome::Unknown => "unknown",
            });
            state.tell(|| format!("m{member} answers write {number}: {outcome:?}"));
            let site = &state.sites[member];
            if response.is_none() && site.birth == life && site.is_awake() && !state.was_paused(member) {
                state.violate(Rule::Answered, format!("m{member} never answered write {number}"));
            }
            state.ledger.writes[number].outcome = Some(outcome.clone());
            outcome
        })
    }

    /// Asks something whose answer nobody looks at.
    pub(super) fn ask_aside(&self, member: usize, request: Request) {
        let director = self.clone();
        tokio::spawn(async move { drop(director.ask(member, request, WITHIN).await) });
    }

    /// One turn of the random load.
    fn work(&self, turn: u64, load: Load) {
        let mut state = self.stage.lock();
        let mix = state.mix.fork(Purpose::Workload, turn);
        let draw = |index| mix.bits(Purpose::Workload, index) as usize;
        let awake: Vec<_> = (0..state.sites.len()).filter(|at| state.sites[*at].is_awake()).collect();
        if awake.is_empty() || state.nodes.is_empty() {
            return;
        }
        let at = awake[draw(0) % awake.len()];
        let node = draw(1) % state.nodes.len();
        let (nodes, candidates) = (state.nodes[node].0.to_string(), state.nodes[node].1.clone());
        let kind = if load.moves { draw(2) % 20 } else { 19 };
        let member_of = |number: usize| MemberName::new(&name(number)).ok();
        let request = match kind {
            0 | 1 => {
                member_of(candidates[draw(3) % candidates.len()]).map(|to| Request::Move { nodes, to, dry_run: false })
            }
            2 => member_of(draw(3) % state.sites.len())
                .map(|member| Request::Drain { member, drain: draw(4).is_multiple_of(2) }),
            3 if load.churn => {
                state.count("change of members");
                let member = member_of(member_to_change(mix, state.sites.len()));
                member.map(|member| change_of_members(mix, member).1)
            }
            3 => Some(Request::Status),
            4 => Some(Request::Managers { nodes: None, why: true }),
            _ => None,
        };
        if request.is_some() {
            state.count("other request");
        }
        drop(state);
        match request {
            Some(request) => self.ask_aside(at, request),
            None => drop(self.write(at, node)),
        }
    }
}

impl State {
    /// Returns whether a member may answer late because its process was made to stand still.
    fn was_paused(&self, member: usize) -> bool {
        let slows = |kind: &Kind| match kind {
            Kind::Pause(at) | Kind::DiskFull(at) => *at == member,
            Kind::SlowDisk { .. } => true,
            _ => false,
        };
        self.faults.iter().any(|fault| slows(&fault.kind))
    }
}
