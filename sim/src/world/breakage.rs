//! Faults as they begin and end: processes die and come back, clocks stop, the network asks what is cut.

use collective::proto::collective::Event;

use super::{Due, World};
use crate::fault::{Fate, Fault, Kind};
use crate::mix::Purpose;
use crate::site::Death;
use crate::trace::Seen;

impl World {
    /// Schedules faults relative to now.
    pub(crate) fn schedule(&mut self, faults: Vec<Fault>) {
        let late = self.time - *self.begun.get_or_insert(self.time);
        for mut fault in faults {
            let number = self.faults.len();
            self.at(self.time + fault.at, Due::Begin(number));
            if let Some(until) = fault.until {
                self.at(self.time + until, Due::End(number));
            }
            // Kept, and told, by when it is since load and faults began.
            fault.at += late;
            fault.until = fault.until.map(|until| until + late);
            self.faults.push(fault);
        }
    }

    pub(super) fn begin(&mut self, number: usize) {
        let Fault { kind, at, until, .. } = self.faults[number].clone();
        self.count(kind.word());
        self.tell(|| format!("FAULT {kind}"));
        let until = until.map(|until| self.time + (until - at));
        self.active.begin(number, self.time, until, kind.clone());
        let draw = self.faults[number].number;
        self.note(None, || Seen::Fault { number: draw, kind: kind.word().to_owned(), what: kind.to_string() });
        match &kind {
            Kind::Crash(at) => self.doom(*at, number, Death::Killed),
            Kind::Power { members, disk } => {
                let death = if *disk == Fate::Torn { Death::Torn } else { Death::Power };
                members.iter().for_each(|at| self.doom(*at, number, death));
            }
            Kind::Stop(at) => {
                self.sites[*at].downs += 1;
                self.handle(*at, Event::Stop);
            }
            Kind::Pause(at) | Kind::Freeze(at) => {
                self.sites[*at].pauses += 1;
                self.note(Some(*at), || Seen::Pause);
            }
            kind => self.begin_rare(kind, number),
        }
    }

    /// Kills a process, in half of the cases only in the middle of what its next event makes it do.
    pub(crate) fn doom(&mut self, at: usize, number: usize, death: Death) {
        self.sites[at].downs += 1;
        let draw = self.mix.bits(Purpose::Crash, self.faults[number].number << 32 | at as u64);
        if draw.is_multiple_of(2) || self.sites[at].is_paused() {
            self.die(at, death);
        } else if self.sites[at].is_up() {
            self.sites[at].doomed = Some(((draw / 2 % 5) as usize, death));
        }
    }

    pub(super) fn end(&mut self, number: usize) {
        let Fault { kind, until, at, .. } = self.faults[number].clone();
        self.tell(|| format!("END {kind}"));
        self.active.end(number);
        let draw = self.faults[number].number;
        self.note(None, || Seen::Healed { number: draw, what: kind.to_string() });
        match &kind {
            Kind::Crash(at) | Kind::Stop(at) => self.revive(*at),
            Kind::Power { members, disk } => {
                members.iter().for_each(|member| self.return_from(*member, *disk, until, at));
            }
            Kind::Pause(at) => self.go_on(*at),
            Kind::Freeze(member) => {
                let since = self.time - (until.unwrap_or(at) - at);
                self.sites[*member].clock.freeze(since, self.time);
                self.go_on(*member);
            }
            kind => self.end_rare(kind, number, until, at),
        }
    }

    pub(crate) fn revive(&mut self, at: usize) {
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

    pub(crate) fn go_on(&mut self, at: usize) {
        let site = &mut self.sites[at];
        site.pauses = site.pauses.saturating_sub(1);
        if site.pauses > 0 {
            return;
        }
        self.note(Some(at), || Seen::Resume);
        for event in self.sites[at].take_inbox() {
            self.handle(at, event);
        }
        self.handle(at, Event::Wake);
    }
}
