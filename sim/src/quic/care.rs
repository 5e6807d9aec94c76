//! What administrators do: whoever lost its disk, brought back an old one, was cloned or is no member any more is set up
//! anew and invited again, until it is let in.

use collective::proto::collective::{Effect, Event};
use collective::proto::invite::JoinAnswer;
use tokio::sync::mpsc;
use tokio::time::sleep;

use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::drive::{Director, LOOK};
use super::ledger::Durable;
use super::stage::{Site, State};
use super::watch::SeenRoster;
use crate::check::Rule;
use crate::fault::SECOND;
use crate::site::Death;

/// How often an administrator looks after everybody.
const LOOKS_AFTER: Duration = Duration::from_secs(1);
/// After how long it is noticed that a member's votes are refused.
const NOTICED_AFTER: u64 = 3 * SECOND;
/// How long a host that died in the middle of a join stays down.
const HOST_DOWN: Duration = Duration::from_secs(3);

/// A host that is to die, after so long.
pub(super) type Doom = (usize, Duration);

/// A disk as it was, with what is known of it.
#[derive(Debug)]
pub(super) struct Past {
    disk: Disk,
    durable: Durable,
}

impl Site {
    /// Copies the disk as a snapshot of the machine would: what is durable.
    pub(super) fn copied(&self) -> Past {
        Past { disk: self.disk.copied(), durable: self.durable.clone() }
    }

    /// Puts a copy in the place of the disk. The process must have ended.
    pub(super) fn put_back(&mut self, past: &Past) {
        self.forget();
        self.disk.become_copy_of(&past.disk);
        self.durable = past.durable.clone();
    }

    /// Loses the disk, and with it everything that the machine ever was. The process must have ended.
    pub(super) fn wipe(&mut self) {
        self.forget();
        self.disk.wipe();
    }

    fn forget(&mut self) {
        self.durable = Durable::default();
        self.member = None;
        self.seen = None;
        self.set_back = None;
        self.cloned_by = None;
        self.asked.clear();
        self.keys.clear();
    }
}

impl Director {
    /// Looks after the first members of a run until it ends.
    pub(super) fn start_care(&self, members: usize) {
        let (sender, mut doomed) = mpsc::unbounded_channel::<Doom>();
        self.stage.lock().doomed = Some(sender);
        let director = self.clone();
        tokio::spawn(async move {
            while let Some((host, delay)) = doomed.recv().await {
                let director = director.clone();
                tokio::spawn(async move {
                    sleep(delay).await;
                    director.stage.lock().count("join disturbed");
                    director.bring_down(&[host], Death::Killed);
                    sleep(HOST_DOWN).await;
                    director.bring_up(&[host]);
                });
            }
        });
        let director = self.clone();
        tokio::spawn(async move {
            while !director.is_over() {
                sleep(LOOKS_AFTER).await;
                for member in 0..members {
                    director.care_for(member);
                }
            }
        });
    }

    fn care_for(&self, member: usize) {
        let is_noticed = {
            let state = self.stage.lock();
            state.sites[member].set_back.is_some_and(|since| state.time() >= since + NOTICED_AFTER)
        };
        if is_noticed {
            self.set_up_anew(member);
        }
        let host = {
            let mut state = self.stage.lock();
            let Some(host) = state.host_for(member) else { return };
            state.sites[member].host = Some(host);
            state.tell(|| format!("m{member} is invited again through m{host}"));
            host
        };
        let director = self.clone();
        tokio::spawn(async move {
            // A new daemon needs a moment to found the collective of its own that it leaves again.
            sleep(LOOK).await;
            if let Err(why) = director.enrol(member, host).await {
                director.stage.lock().tell(|| format!("m{member} was not let in: {why}"));
            }
            director.stage.lock().sites[member].host = None;
        });
    }

    /// R9: what was rolled back or cloned is stopped, and set up anew.
    pub(super) fn set_up_anew(&self, member: usize) {
        self.die(member, Death::Stopped);
        let mut state = self.stage.lock();
        state.sites[member].wipe();
        state.tell(|| format!("m{member} is set up anew"));
        drop(state);
        self.boot(member);
    }

    /// Starts a copy of a member on a spare machine, by a fault.
    pub(super) fn start_clone(&self, member: usize, on: usize, fault: usize) {
        {
            let mut state = self.stage.lock();
            if state.sites[on].is_up() || state.sites[on].member.is_some() || state.sites[member].member.is_none() {
                return;
            }
            let copy = state.sites[member].copied();
            state.sites[on].put_back(&copy);
            state.sites[on].cloned_by = Some(fault);
        }
        self.boot(on);
    }

    /// Switches the copy off; the original has a rival's past and is set up anew.
    pub(super) fn end_clone(&self, member: usize, on: usize, fault: usize) {
        let was_up = {
            let state = self.stage.lock();
            // Another one may run there, when two were to begin at once.
            if state.sites[on].cloned_by != Some(fault) {
                return;
            }
            state.sites[on].is_up()
        };
        self.die(on, Death::Power);
        let mut state = self.stage.lock();
        state.sites[on].wipe();
        if was_up {
            state.sites[member].set_back = Some(state.time());
        }
    }

    /// A machine finds on its disk what it held at an earlier time.
    pub(super) fn roll_back(&self, member: usize, fault: usize) {
        // A stop that had not come to its end.
        self.die(member, Death::Power);
        let mut state = self.stage.lock();
        let Some(past) = state.past.remove(&(fault, member)) else {
            return state.violate(Rule::NothingLost, format!("nobody copied the disk of m{member}"));
        };
        let time = state.time();
        state.sites[member].put_back(&past);
        state.sites[member].set_back = Some(time);
        state.checker.enrolled(member);
    }
}

impl State {
    /// Returns through whom a member is to be invited again; nobody when it needs none, or none can.
    fn host_for(&self, member: usize) -> Option<usize> {
        let site = &self.sites[member];
        let newest = self.newest_roster()?;
        let is_member = site.member.is_some_and(|id| newest.members.contains(&id));
        if is_member || !site.is_awake() || site.downs > 0 || site.host.is_some() {
            return None;
        }
        let is_host = |at: &usize| *at != member && self.is_seated(*at) && self.sites[*at].is_awake();
        let wished = self.disturbed.get(&member).map(|(via, _)| *via).filter(is_host);
        wished.or_else(|| (0..self.sites.len()).find(is_host))
    }

    /// Returns the newest roster in force anywhere.
    fn newest_roster(&self) -> Option<&Arc<SeenRoster>> {
        let seen = self.sites.iter().filter_map(|site| site.seen.as_deref());
        seen.filter(|seen| self.is_ours(seen)).map(|seen| &seen.roster).max_by_key(|roster| roster.version)
    }

    /// A stranger says something to a host: 0 when that one dies at the greeting, 2 at the proof, 4 a moment after it.
    pub(super) fn disturb_before(&mut self, host: usize, event: &Event) {
        match event {
            Event::JoinHello { .. } => self.disturb(host, &[(0, 0)]),
            Event::JoinProof { .. } => self.disturb(host, &[(2, 0), (4, 40)]),
            _ => {}
        }
    }

    /// A host answers a stranger: 1 when it dies at the challenge, 3 at the welcome, 5 some time after it.
    pub(super) fn disturb_after(&mut self, host: usize, effect: &Effect) {
        let Effect::AnswerJoin { answer, .. } = effect else { return };
        match **answer {
            JoinAnswer::Challenge { .. } => self.disturb(host, &[(1, 0)]),
            JoinAnswer::Welcome { .. } => self.disturb(host, &[(3, 0), (5, 400)]),
            _ => {}
        }
    }

    /// Kills the host of a join when it has come to the step that a fault names; each with its delay in milliseconds.
    fn disturb(&mut self, host: usize, steps: &[(u64, u64)]) {
        let is_its = |(joiner, (_, wanted)): (&usize, &(usize, u64))| {
            let (_, delay_ms) = steps.iter().find(|(step, _)| step == wanted)?;
            (self.sites[*joiner].host == Some(host)).then_some((*joiner, *delay_ms))
        };
        let Some((joiner, delay_ms)) = self.disturbed.iter().find_map(is_its) else { return };
        self.disturbed.remove(&joiner);
        if let Some(doomed) = &self.doomed {
            let _ = doomed.send((host, Duration::from_millis(delay_ms)));
        }
    }
}
