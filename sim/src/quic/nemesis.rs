//! The faults at work on whole daemons.

use std::collections::BTreeSet;

use collective::proto::request::Request;
use tokio::time::sleep_until;

use super::drive::Director;
use crate::fault::{Fate, Fault, Kind};
use crate::site::Death;

/// Kinds that this level does not simulate: what takes a disk into the past or away needs administrators who invite
/// again, the processes of one thread share their processor and its clock, and a datagram does not show what it carries.
const MISSING: [&str; 9] =
    ["stall", "power-wiped", "power-stale", "freeze", "slow-cpu", "restore", "clone", "join-crash", "rotate"];

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
            let begins = faults.iter().enumerate().map(|(number, fault)| (now + fault.at, number, true));
            let ends = faults.iter().enumerate();
            let ends = ends.filter_map(|(number, fault)| Some((now + fault.until?, number, false)));
            let due = begins.chain(ends).collect();
            state.faults = faults;
            due
        };
        let director = self.clone();
        tokio::spawn(async move {
            for (time, number, begins) in due {
                let moment = director.stage.lock().moment(time);
                sleep_until(moment).await;
                if director.is_over() {
                    return;
                }
                if begins { director.begin(number) } else { director.end(number) }
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
            Kind::Power { members, .. } => self.bring_up(members),
            Kind::Pause(member) => self.pause(*member, false),
            Kind::DiskFull(member) => self.stage.lock().sites[*member].disk.set_full(false),
            Kind::FsyncError(member) => {
                self.stage.lock().sites[*member].disk.set_broken(false);
                self.boot(*member);
            }
            Kind::WallClock { member, by_ms } => self.stage.lock().sites[*member].clock.set_wall(-by_ms),
            _ => {}
        }
    }

    fn bring_down(&self, members: &[usize], death: Death) {
        for member in members {
            self.stage.lock().sites[*member].downs += 1;
            self.die(*member, death);
        }
    }

    fn bring_up(&self, members: &[usize]) {
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
