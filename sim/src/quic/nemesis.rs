//! The faults at work on whole daemons.

use std::collections::BTreeSet;

use collective::proto::request::Request;
use tokio::time::sleep_until;

use super::drive::Director;
use crate::fault::{Fate, Fault, Kind, MS};
use crate::site::Death;

/// Kinds that this level does not simulate: a datagram does not show what it carries, and the timers of quinn and tokio
/// do not stand still with the clock of one machine.
const MISSING: [&str; 2] = ["stall", "freeze"];

/// What is due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The disk of a member is copied, for a fault that brings it back later.
    Keep {
        fault: usize,
        member: usize,
    },
    Begin(usize),
    End(usize),
}

/// Returns whether this level can break that.
pub(super) fn is_simulated(word: &str) -> bool {
    !MISSING.contains(&word)
}

impl Director {
    /// Begins and ends faults when it is their time, relative to now.
    pub(super) fn schedule(&self, faults: Vec<Fault>) {
        let due: BTreeSet<_> = {
            let mut state = self.stage.lock();
            let now = state.time();
            let due = timetable(&faults, now);
            state.faults = faults;
            due
        };
        let director = self.clone();
        tokio::spawn(async move {
            for (time, what) in due {
                let moment = director.stage.lock().moment(time);
                sleep_until(moment).await;
                if director.is_over() {
                    return;
                }
                match what {
                    Due::Keep { fault, member } => {
                        let mut state = director.stage.lock();
                        let past = state.sites[member].copied();
                        state.past.insert((fault, member), past);
                    }
                    Due::Begin(number) => director.begin(number),
                    Due::End(number) => director.end(number),
                }
            }
        });
    }

    fn begin(&self, number: usize) {
        let Fault { kind, until, at, .. } = {
            let mut state = self.stage.lock();
            let fault = state.faults[number].clone();
            state.count(fault.kind.word());
            state.tell(|| format!("FAULT {}", fault.kind));
            fault
        };
        {
            let mut state = self.stage.lock();
            let now = state.time();
            state.active.begin(number, now, until.map(|until| now + until - at), kind.clone());
        }
        match &kind {
            Kind::Crash(member) => self.bring_down(&[*member], Death::Killed),
            Kind::Power { members, disk: Fate::Torn } => self.bring_down(members, Death::Torn),
            Kind::Power { members, .. } => self.bring_down(members, Death::Power),
            Kind::Stop(member) => {
                let mut state = self.stage.lock();
                let site = &mut state.sites[*member];
                site.downs += 1;
                if let Some(stop) = site.running.as_mut().and_then(|running| running.stop.take()) {
                    let _ = stop.send(());
                }
            }
            Kind::Pause(member) => self.pause(*member, true),
            Kind::DiskFull(member) => self.stage.lock().sites[*member].disk.set_full(true),
            Kind::FsyncError(member) => self.stage.lock().sites[*member].disk.set_broken(true),
            Kind::WallClock { member, by_ms } => self.stage.lock().sites[*member].clock.set_wall(*by_ms),
            Kind::Rotate(member) => self.ask_aside(*member, Request::Gencert { rotate: true }),
            Kind::Restore { member, .. } => self.bring_down(&[*member], Death::Killed),
            Kind::Clone { member, on } => self.start_clone(*member, *on, number),
            Kind::JoinCrash { joiner, via, step } => {
                self.set_up_anew(*joiner);
                self.stage.lock().disturbed.insert(*joiner, (*via, *step));
            }
            _ => {}
        }
    }

    fn end(&self, number: usize) {
        let kind = {
            let mut state = self.stage.lock();
            let kind = state.faults[number].kind.clone();
            state.tell(|| format!("END {kind}"));
            state.active.end(number);
            kind
        };
        match &kind {
            Kind::Crash(member) | Kind::Stop(member) => self.bring_up(&[*member]),
            Kind::Power { members, disk } => {
                for member in members {
                    match disk {
                        Fate::Clean | Fate::Torn => {}
                        Fate::Wiped => self.stage.lock().sites[*member].wipe(),
                        Fate::Stale(_) => self.roll_back(*member, number),
                    }
                }
                self.bring_up(members);
            }
            Kind::Restore { member, .. } => {
                self.roll_back(*member, number);
                self.bring_up(&[*member]);
            }
            Kind::Clone { member, on } => self.end_clone(*member, *on, number),
            Kind::Pause(member) => self.pause(*member, false),
            Kind::DiskFull(member) => {
                self.stage.lock().sites[*member].disk.set_full(false);
                self.boot(*member);
            }
            Kind::FsyncError(member) => {
                self.stage.lock().sites[*member].disk.set_broken(false);
                self.boot(*member);
            }
            Kind::WallClock { member, by_ms } => self.stage.lock().sites[*member].clock.set_wall(-by_ms),
            _ => {}
        }
    }

    pub(super) fn bring_down(&self, members: &[usize], death: Death) {
        for member in members {
            self.stage.lock().sites[*member].downs += 1;
            self.die(*member, death);
        }
    }

    pub(super) fn bring_up(&self, members: &[usize]) {
        for member in members {
            self.stage.lock().sites[*member].downs -= 1;
            // A stop that had not come to its end.
            self.die(*member, Death::Killed);
            self.boot(*member);
        }
    }

    fn pause(&self, member: usize, pauses: bool) {
        let mut state = self.stage.lock();
        let site = &mut state.sites[member];
        if pauses {
            site.pauses += 1;
        } else {
            site.pauses -= 1;
        }
        let paused = site.pauses > 0;
        if let Some(running) = &site.running {
            running.process.pause(paused);
        }
    }
}

/// Returns what is due when.
fn timetable(faults: &[Fault], begin: u64) -> BTreeSet<(u64, Due)> {
    let mut due = BTreeSet::new();
    for (number, fault) in faults.iter().enumerate() {
        due.insert((begin + fault.at, Due::Begin(number)));
        due.extend(fault.until.map(|until| (begin + until, Due::End(number))));
        let (members, age_ms) = match &fault.kind {
            Kind::Restore { member, age_ms } => (vec![*member], *age_ms),
            Kind::Power { members, disk: Fate::Stale(age_ms) } => (members.clone(), *age_ms),
            _ => continue,
        };
        let at = begin + fault.at.saturating_sub(age_ms * MS);
        due.extend(members.into_iter().map(|member| (at, Due::Keep { fault: number, member })));
    }
    due
}
