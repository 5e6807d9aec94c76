//! Load: what administrators ask while things break.

use std::time::Duration;

use collective::proto::request::Request;

use super::drive::{Director, WITHIN};
use super::stage::Write;
use crate::check::Rule;
use crate::fault::{Kind, MS};
use crate::mix::Purpose;
use crate::scenario::Load;
use crate::trace::Seen;
use crate::workload::{Outcome, Turn};

impl Director {
    /// Asks at random times until the end.
    pub(super) fn start_load(&self, load: Load, end: u64) {
        if load.every_ms > 0 {
            let director = self.clone();
            self.aside(async move {
                for turn in 1.. {
                    let draw =
                        |mix: crate::mix::Mix| mix.range(Purpose::Workload, turn << 8, 1, 2 * load.every_ms * MS);
                    if !director.rest(draw, end).await {
                        return;
                    }
                    director.work(turn, load);
                }
            });
        }
        if load.actions_every_ms > 0 {
            let director = self.clone();
            self.aside(async move {
                for turn in 1.. {
                    let draw = |mix: crate::mix::Mix| {
                        let mix = mix.fork(Purpose::Job, turn);
                        mix.range(Purpose::Job, 2, 1, 2 * load.actions_every_ms * MS)
                    };
                    if !director.rest(draw, end).await {
                        return;
                    }
                    director.act_now(turn);
                }
            });
        }
    }

    /// Waits for as long as is drawn; returns whether the load goes on.
    async fn rest(&self, draw: impl Fn(crate::mix::Mix) -> u64, end: u64) -> bool {
        let pause = draw(self.stage.lock().mix);
        tokio::time::sleep(Duration::from_nanos(pause)).await;
        let state = self.stage.lock();
        !state.is_over() && state.time() < end
    }

    /// Writes one attribute of its own through a member, or what was written last again; what becomes of it is in the
    /// ledger, and returned.
    pub(super) async fn write(&self, at: usize, node: usize, again: bool) -> Outcome {
        let (number, life, request) = {
            let mut state = self.stage.lock();
            if !again || state.writes.is_empty() {
                let number = state.writes.len();
                let (key, value) = (format!("custom.w{number}"), format!("v{number}"));
                let node = state.nodes[node].0.clone();
                state.writes.push(Write { node, key, value, outcome: None });
            }
            state.count(if again { "write said again" } else { "write" });
            let number = state.writes.len() - 1;
            let Write { node, key, value, .. } = &state.writes[number];
            (number, state.sites[at].life, crate::step::set(node.as_str(), &format!("{key}={value}")))
        };
        let response = self.ask(at, request, WITHIN).await;
        let mut state = self.stage.lock();
        let outcome = response.as_ref().map_or(Outcome::Unknown, Outcome::of);
        let key = state.writes[number].key.clone();
        match &outcome {
            Outcome::Done => {
                state.count("acknowledged");
                let voters = crate::step::Shown::voters_at(&*state, at);
                state.note_grants(true);
                // On whose disks it is cannot be seen from outside.
                state.note(Some(at), Seen::Acknowledged { write: key, copies: None, voters });
            }
            Outcome::Refused(code) => {
                state.count("refused");
                let what = format!("the write of {key}");
                state.note(Some(at), Seen::Answered { what, answer: format!("refused, {code:?}") });
            }
            Outcome::Unknown => {
                state.count("unknown");
                let what = format!("the write of {key}");
                state.note(Some(at), Seen::Answered { what, answer: "nobody knows".to_owned() });
            }
        }
        let stood_still = state.faults.iter().any(|fault| fault.kind == Kind::Pause(at));
        if response.is_none() && state.lives(at, life) && state.sites[at].is_awake() && !stood_still {
            state.violate(Rule::Answered, format!("m{at} never answered write {number}"));
        }
        let told = &mut state.writes[number].outcome;
        *told = Some(outcome.clone().said_after(told.take()));
        outcome
    }

    /// Asks something whose answer nobody looks at.
    pub(super) fn ask_aside(&self, at: usize, request: Request) {
        let director = self.clone();
        self.aside(async move { drop(director.ask(at, request, WITHIN).await) });
    }

    /// One turn of the random load.
    fn work(&self, turn: u64, load: Load) {
        let drawn = {
            let mut state = self.stage.lock();
            let mix = state.mix.fork(Purpose::Workload, turn);
            let awake: Vec<_> = (0..state.sites.len()).filter(|at| state.is_member(*at)).collect();
            let drawn = Turn::draw(mix, load, &awake, &state.nodes, state.sites.len());
            if let Some(Turn::Ask { word, .. }) = &drawn {
                state.count(Turn::counted_as(word));
            }
            drawn
        };
        match drawn {
            Some(Turn::Write { at, node }) => {
                let director = self.clone();
                self.aside(async move {
                    director.write(at, node, false).await;
                });
            }
            Some(Turn::Ask { at, request, .. }) => self.ask_aside(at, request),
            None => {}
        }
    }

    /// Asks anybody to run an action on a node.
    fn act_now(&self, turn: u64) {
        let (at, node) = {
            let state = self.stage.lock();
            let mix = state.mix.fork(Purpose::Job, turn);
            let awake: Vec<_> = (0..state.sites.len()).filter(|at| state.is_member(*at)).collect();
            if awake.is_empty() || state.nodes.is_empty() {
                return;
            }
            let node = mix.bits(Purpose::Job, 1) as usize % state.nodes.len();
            (awake[mix.bits(Purpose::Job, 0) as usize % awake.len()], state.nodes[node].0.to_string())
        };
        self.ask_aside(at, crate::step::run_action(&node));
    }
}
