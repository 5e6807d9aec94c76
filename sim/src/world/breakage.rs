//! Faults as they begin and end: processes die and come back, clocks stop, the network asks what is cut.

use collective::proto::collective::Event;

use super::{Due, World};
use crate::fault::{Fault, Kind};
use crate::mix::Purpose;
use crate::site::Death;

impl World {
    /// Schedules faults relative to now.
    pub(crate) fn schedule(&mut self, faults: Vec<Fault>) {
        for fault in faults {
            let number = self.faults.len();
            self.at(self.time + fault.at, Due::Begin(number));
            if let Some(until) = fault.until {
                self.at(self.time + until, Due::End(number));
            }
            self.faults.push(fault);
        }
    }

    pub(super) fn begin(&mut self, number: usize) {
        let kind = self.faults[number].kind.clone();
        self.count(kind.word());
        self.tell(|| format!("FAULT {kind:?}"));
        self.active.begin(number, self.time, kind.clone());
        match &kind {
            Kind::Crash(at) => self.doom(*at, number, Death::Killed),
            Kind::Power(victims) => victims.iter().for_each(|at| self.doom(*at, number, Death::Power)),
            Kind::Stop(at) => {
                self.sites[*at].downs += 1;
                self.handle(*at, Event::Stop);
            }
            Kind::Pause(at) | Kind::Freeze(at) => self.sites[*at].pauses += 1,
            _ => {}
        }
    }

    /// Kills a process, in half of the cases only in the middle of what its next event makes it do.
    fn doom(&mut self, at: usize, number: usize, death: Death) {
        self.sites[at].downs += 1;
        let draw = self.mix.bits(Purpose::Crash, (number as u64) << 32 | at as u64);
        if draw.is_multiple_of(2) || self.sites[at].is_paused() {
            self.die(at, death);
        } else if self.sites[at].is_up() {
            self.sites[at].doomed = Some(((draw / 2 % 5) as usize, death));
        }
    }

    pub(super) fn end(&mut self, number: usize) {
        let Fault { kind, until, at } = self.faults[number].clone();
        self.tell(|| format!("END {kind:?}"));
        self.active.end(number);
        match &kind {
            Kind::Crash(at) | Kind::Stop(at) => self.revive(*at),
            Kind::Power(victims) => victims.iter().for_each(|at| self.revive(*at)),
            Kind::Pause(at) => self.go_on(*at),
            Kind::Freeze(member) => {
                let since = self.time - (until.unwrap_or(at) - at);
                self.sites[*member].clock.freeze(since, self.time);
                self.go_on(*member);
            }
            _ => {}
        }
    }

    fn revive(&mut self, at: usize) {
        let site = &mut self.sites[at];
        site.downs = site.downs.saturating_sub(1);
        if let Some((_, death)) = site.doomed.take() {
            self.die(at, death);
        }
        if self.sites[at].is_up() {
            // A stop that had not come to its end.
            self.die(at, Death::Killed);
        }
        self.boot(at);
    }

    fn go_on(&mut self, at: usize) {
        let site = &mut self.sites[at];
        site.pauses = site.pauses.saturating_sub(1);
        if site.pauses > 0 {
            return;
        }
        for event in self.sites[at].take_inbox() {
            self.handle(at, event);
        }
        self.handle(at, Event::Wake);
    }
}
