//! The faults at work on real processes, real packets and real directories.

use std::collections::BTreeSet;
use std::time::Duration;

use collective::proto::request::{Request, Response};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::drive::{Director, LOOK};
use super::lab::{self, Cuts};
use super::stage::Fabric;
use super::switch::Weather;
use crate::check::Rule;
use crate::fault::{Fate, Fault, Kind, MS, SECOND};
use crate::site::{Death, name};
use crate::step::Shown;
use crate::trace::Seen;

/// How long after its return an administrator notices that a disk is one of the past.
const NOTICED_AFTER: Duration = Duration::from_secs(3);
/// How long a member that lost its disk is invited again and again.
const INVITED_FOR: u64 = 60 * SECOND;
/// How long two keys take to change places.
const ROTATED_WITHIN: Duration = Duration::from_secs(20);
/// How long the network of a fault that never ends flaps.
const FLAPS_FOR: u64 = 600 * SECOND;

/// What is due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The disk of a machine is copied, for a fault that brings it back later.
    Keep(usize),
    Begin(usize),
    /// The network changes although no fault begins or ends.
    Flap,
    End(usize),
}

impl Director {
    /// Begins and ends faults when it is their time, relative to `begin`; the task ends after the last one.
    pub(super) fn schedule(&self, faults: Vec<Fault>, begin: u64) -> JoinHandle<()> {
        let due = timetable(&faults, begin);
        self.stage.lock().faults = faults;
        let director = self.clone();
        tokio::spawn(async move {
            director.rewire(begin).await;
            for (time, what) in due {
                director.sleep_until(time).await;
                if director.stage.lock().is_over() {
                    return;
                }
                match what {
                    Due::Keep(number) => director.keep(number),
                    Due::Begin(number) => director.begin(number, time).await,
                    Due::Flap => director.rewire(time).await,
                    Due::End(number) => director.end(number, time).await,
                }
            }
        })
    }

    /// Puts what the faults cut at that time in the place of what the switch drops.
    pub(super) async fn rewire(&self, time: u64) {
        let (cuts, before) = {
            let mut state = self.stage.lock();
            let members = state.sites.len();
            let all = (0..members).flat_map(|from| (0..members).map(move |to| (from, to)));
            let is_cut = |(from, to): &(usize, usize)| from != to && !state.active.passes(*from, *to, time);
            let cuts = Cuts { pairs: all.filter(is_cut).collect(), loss: state.active.loss().max(state.usual.loss) };
            if let Fabric::Switch(switch) = self.stage.fabric.as_ref() {
                // It keeps the time of what flaps by itself, and this is at one stroke.
                state.wire.pairs.retain(|pair| cuts.pairs.contains(pair));
                state.note_grants(true);
                switch.set(Weather { active: state.active.clone(), usual: state.usual });
                state.note_grants(true);
                state.wire = cuts;
                return;
            }
            if cuts == state.wire {
                return;
            }
            // While the rules change, only what is cut before and afterwards is cut for certain.
            let before = state.wire.clone();
            state.wire.pairs.retain(|pair| cuts.pairs.contains(pair));
            state.note_grants(true);
            (cuts, before)
        };
        let (fabric, rules) = (self.stage.fabric.clone(), cuts.clone());
        let applied = spawn_blocking(move || match fabric.as_ref() {
            Fabric::Bridge(namespace) => lab::apply(namespace, &rules),
            Fabric::Switch(_) => Ok(()),
        })
        .await;
        let mut state = self.stage.lock();
        state.note_grants(true);
        match applied {
            Ok(Ok(())) => state.wire = cuts,
            Ok(Err(error)) => {
                state.wire = before;
                state.give_up(format!("the switch does not take its rules: {error:#}"));
            }
            Err(error) => state.give_up(error.to_string()),
        }
    }

    fn keep(&self, number: usize) {
        let kind = self.stage.lock().faults[number].kind.clone();
        for at in copied(&kind) {
            let machine = self.stage.machine(at);
            if let Err(error) = machine.snapshot(number) {
                self.stage.lock().give_up(format!("the disk of {} cannot be copied: {error:#}", name(at)));
            }
        }
    }

    async fn begin(&self, number: usize, time: u64) {
        let fault = {
            let mut state = self.stage.lock();
            let fault = state.faults[number].clone();
            state.count(fault.kind.word());
            let (kind, what) = (fault.kind.word().to_owned(), fault.kind.to_string());
            state.note(None, Seen::Fault { number: fault.number, kind, what });
            let until = fault.until.map(|until| time + until - fault.at);
            state.active.begin(number, time, until, fault.kind.clone());
            fault
        };
        match &fault.kind {
            Kind::Crash(member) => self.bring_down(&[*member], Death::Killed),
            Kind::Power { members, .. } => self.bring_down(members, Death::Power),
            Kind::Restore { member, .. } => self.bring_down(&[*member], Death::Killed),
            Kind::Stop(member) => {
                self.stage.lock().sites[*member].downs += 1;
                let (director, member) = (self.clone(), *member);
                self.aside(async move { director.stop(member).await });
            }
            Kind::Pause(member) => self.pause(*member, true),
            Kind::Rotate(member) => self.rotate(*member),
            Kind::Clone { member, on } => self.start_clone(*member, *on, number),
            _ => self.rewire(time).await,
        }
    }

    async fn end(&self, number: usize, time: u64) {
        let fault = {
            let mut state = self.stage.lock();
            let fault = state.faults[number].clone();
            state.note(None, Seen::Healed { number: fault.number, what: fault.kind.to_string() });
            state.active.end(number);
            fault
        };
        match &fault.kind {
            Kind::Crash(member) | Kind::Stop(member) => self.bring_up(*member),
            Kind::Power { members, disk } => {
                for member in members {
                    self.return_from(*member, *disk, number);
                }
            }
            Kind::Restore { member, age_ms } => self.return_from(*member, Fate::Stale(*age_ms), number),
            Kind::Pause(member) => self.pause(*member, false),
            Kind::Rotate(_) => {}
            Kind::Clone { member, on } => {
                self.bring_down(&[*on], Death::Power);
                self.set_up_anew(*member, Duration::ZERO);
            }
            _ => self.rewire(time).await,
        }
    }

    // ---- Processes ----

    fn bring_down(&self, members: &[usize], death: Death) {
        for member in members {
            self.stage.lock().sites[*member].downs += 1;
            self.kill(*member, death);
        }
    }

    fn bring_up(&self, member: usize) {
        self.stage.lock().sites[member].downs -= 1;
        // A stop that had not come to its end.
        if self.stage.machine(member).is_running() {
            self.kill(member, Death::Killed);
        }
        self.boot(member);
    }

    fn pause(&self, member: usize, pauses: bool) {
        let machine = self.stage.machine(member);
        if pauses {
            machine.pause(true);
            let mut state = self.stage.lock();
            // Until now it may have granted.
            state.note_grants(true);
            state.sites[member].pauses += 1;
            state.note(Some(member), Seen::Pause);
        } else {
            let mut state = self.stage.lock();
            state.sites[member].pauses -= 1;
            if state.sites[member].pauses == 0 {
                state.note(Some(member), Seen::Resume);
                machine.pause(false);
            }
        }
    }

    // ---- Disks and identities ----

    /// A machine has its power again, or its backup: it finds on its disk what the fault left there.
    fn return_from(&self, member: usize, disk: Fate, number: usize) {
        let changed = {
            let machine = self.stage.machine(member);
            match disk {
                Fate::Clean | Fate::Torn => Ok(()),
                Fate::Wiped => machine.wipe(),
                Fate::Stale(_) => machine.roll_back(number),
            }
        };
        if let Err(error) = changed {
            return self.stage.lock().give_up(format!("the disk of {}: {error:#}", name(member)));
        }
        match disk {
            Fate::Clean | Fate::Torn => {}
            Fate::Wiped => self.stage.lock().sites[member].forget(),
            Fate::Stale(_) => {
                let mut state = self.stage.lock();
                state.sites[member].forget();
                state.sites[member].is_set_back = true;
            }
        }
        self.bring_up(member);
        match disk {
            Fate::Clean | Fate::Torn => {}
            Fate::Wiped => self.invite_again(member),
            Fate::Stale(_) => self.set_up_anew(member, NOTICED_AFTER),
        }
    }

    /// R9: what was rolled back or cloned is stopped, and set up anew, as an administrator would.
    fn set_up_anew(&self, member: usize, after: Duration) {
        let director = self.clone();
        self.aside(async move {
            sleep(after).await;
            director.kill(member, Death::Stopped);
            let wiped = director.stage.machine(member).wipe();
            if let Err(error) = wiped {
                return director.stage.lock().give_up(format!("the disk of {}: {error:#}", name(member)));
            }
            director.stage.lock().sites[member].forget();
            director.boot(member);
            director.invite_again(member);
        });
    }

    /// Invites a member that lost its disk, through anybody who has a seat, until it is let in.
    fn invite_again(&self, member: usize) {
        let director = self.clone();
        self.aside(async move {
            let end = director.stage.lock().time() + INVITED_FOR;
            let mut why = "nobody has a seat".to_owned();
            while !director.stage.lock().is_over() {
                let via = {
                    let state = director.stage.lock();
                    if state.time() >= end {
                        break;
                    }
                    (0..state.sites.len()).find(|at| *at != member && state.is_seated(*at))
                };
                if let Some(via) = via {
                    match director.enrol(member, via).await {
                        Ok(()) => return,
                        Err(error) => why = error,
                    }
                }
                sleep(10 * LOOK).await;
            }
            director.fail(Rule::Convergence, format!("{} was not let in again: {why}", name(member)));
        });
    }

    fn rotate(&self, member: usize) {
        let director = self.clone();
        self.aside(async move {
            if let Some(Response::Done(_)) =
                director.ask(member, Request::Gencert { rotate: true }, ROTATED_WITHIN).await
            {
                director.stage.lock().count("key switched");
            }
        });
    }

    /// Starts a copy of a member on a spare machine.
    fn start_clone(&self, member: usize, on: usize, number: usize) {
        let copied = {
            let original = self.stage.machine(member);
            original.snapshot(number).and_then(|()| self.stage.machine(on).become_copy_of(&original, number))
        };
        match copied {
            Ok(()) => self.boot(on),
            Err(error) => self.stage.lock().give_up(format!("{} cannot be copied: {error:#}", name(member))),
        }
    }
}

/// Returns what is due when.
fn timetable(faults: &[Fault], begin: u64) -> BTreeSet<(u64, Due)> {
    let mut due = BTreeSet::new();
    for (number, fault) in faults.iter().enumerate() {
        due.insert((begin + fault.at, Due::Begin(number)));
        if let Some(until) = fault.until {
            due.insert((begin + until, Due::End(number)));
        }
        if let Some(age_ms) = age_ms(&fault.kind) {
            due.insert((begin + fault.at.saturating_sub(age_ms * MS), Due::Keep(number)));
        }
        if let Kind::Flap { period_ms, .. } = &fault.kind {
            let until = fault.until.unwrap_or(fault.at + FLAPS_FOR);
            let edges = (1..).map(|turn| fault.at + turn * period_ms.max(&1) * MS).take_while(|at| *at < until);
            due.extend(edges.map(|at| (begin + at, Due::Flap)));
        }
    }
    due
}

fn age_ms(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::Restore { age_ms, .. } | Kind::Power { disk: Fate::Stale(age_ms), .. } => Some(*age_ms),
        _ => None,
    }
}

/// Returns the members whose disks a fault brings back from the past.
fn copied(kind: &Kind) -> Vec<usize> {
    match kind {
        Kind::Restore { member, .. } => vec![*member],
        Kind::Power { members, disk: Fate::Stale(_) } => members.clone(),
        _ => Vec::new(),
    }
}
