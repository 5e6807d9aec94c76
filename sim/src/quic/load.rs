//! Load: what administrators ask while things break.

use std::time::Duration;

use collective::proto::request::Request;
use tokio::task::JoinHandle;

use super::drive::{Director, WITHIN};
use super::ledger::Write;
use super::stage::State;
use crate::check::Rule;
use crate::fault::{Kind, MS};
use crate::mix::Purpose;
use crate::scenario::Load;
use crate::workload::{Outcome, Turn};

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

    /// Writes one attribute of its own through a member, or what was written last again; what becomes of it is in the
    /// ledger, and returned.
    pub(super) fn write(&self, member: usize, node: usize, again: bool) -> JoinHandle<Outcome> {
        let (number, request) = {
            let mut state = self.stage.lock();
            if !again || state.ledger.writes.is_empty() {
                let number = state.ledger.writes.len();
                let (key, value) = (format!("custom.w{number}"), format!("v{number}"));
                let node = state.nodes[node].0.clone();
                state.ledger.writes.push(Write { node, key, value, changes: Vec::new(), outcome: None });
            }
            state.count(if again { "write said again" } else { "write" });
            let number = state.ledger.writes.len() - 1;
            let Write { node, key, value, .. } = &state.ledger.writes[number];
            (number, crate::step::set(node.as_str(), &format!("{key}={value}")))
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
            let told = &mut state.ledger.writes[number].outcome;
            *told = Some(outcome.clone().said_after(told.take()));
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
        let drawn = {
            let mut state = self.stage.lock();
            let mix = state.mix.fork(Purpose::Workload, turn);
            let awake: Vec<_> = (0..state.sites.len()).filter(|at| state.sites[*at].is_awake()).collect();
            let drawn = Turn::draw(mix, load, &awake, &state.nodes, state.sites.len());
            if let Some(Turn::Ask { word, .. }) = &drawn {
                state.count(Turn::counted_as(word));
            }
            drawn
        };
        match drawn {
            Some(Turn::Write { at, node }) => drop(self.write(at, node, false)),
            Some(Turn::Ask { at, request, .. }) => self.ask_aside(at, request),
            None => {}
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
