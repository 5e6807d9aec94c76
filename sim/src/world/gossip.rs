//! Gossip: a stand-in for chitchat, which tells what is new only, and lets others pass it on.

use std::collections::VecDeque;
use std::rc::Rc;

use collective::proto::collective::{Collective, Event};
use collective::proto::facts::Facts;

use super::{Due, World};
use crate::fault::MS;
use crate::mix::Purpose;

/// What a member tells of itself, by a number that no other telling has.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    number: u64,
    facts: Rc<Facts>,
}

/// Who heard what.
#[derive(Debug)]
pub(super) struct Heard {
    sites: usize,
    /// The last telling of the second that the first heard in its present life; 0 for none.
    numbers: Vec<u64>,
    last: u64,
}

impl Heard {
    pub(super) fn new(sites: usize) -> Self {
        Self { sites, numbers: vec![0; sites * sites], last: 0 }
    }

    /// Gives what a member publishes its number.
    pub(super) fn publish(&mut self, facts: Facts) -> Told {
        self.last += 1;
        Told { number: self.last, facts: Rc::new(facts) }
    }

    /// A member starts, and knows nothing that it was told before.
    pub(super) fn forget(&mut self, at: usize) {
        self.numbers[at * self.sites..][..self.sites].fill(0);
    }
}

impl World {
    pub(super) fn gossip_interval(&self, at: usize) -> u64 {
        let roster = self.sites[at].core.as_ref().map(Collective::roster);
        let usual = roster.map_or(500, |roster| u64::from(roster.timing.gossip_interval_ms)) * MS;
        usual * self.mix.range(Purpose::Gossip, self.queue.count(), 90, 110) / 100
    }

    /// Tells a member's facts to everybody that links reach from it, unless they were heard there.
    pub(super) fn gossip(&mut self, at: usize) {
        let Some(told) = self.sites[at].told.clone().filter(|_| self.sites[at].is_awake()) else { return };
        let key = self.sites[at].fingerprint;
        let wants = |world: &Self, to: usize| {
            to != at
                && world.heard.numbers[to * world.heard.sites + at] != told.number
                && world.sites[to].is_awake()
                && world.sites[to].peers.contains(&key)
        };
        let wanting: Vec<_> = (0..self.sites.len()).filter(|to| wants(self, *to)).collect();
        if wanting.is_empty() {
            return;
        }
        let hops = self.hops(at, &wanting);
        for to in wanting {
            let packet = self.network.packet(at, to);
            if hops[to] == 0 || self.mix.chance(Purpose::Loss, packet, self.active.loss()) {
                continue;
            }
            let life = self.sites[to].life;
            let delay = self.delay(at, to) * hops[to];
            self.after(delay, Due::Heard { to, life, from: at, told: told.clone() });
        }
    }

    /// Returns over how many links each site is reached, 0 for those that are not; others than the wanted ones only as
    /// far as it is found on the way.
    fn hops(&self, at: usize, wanted: &[usize]) -> Vec<u64> {
        let mut hops = vec![0; self.sites.len()];
        let mut front = VecDeque::from([at]);
        while let Some(from) = front.pop_front() {
            for to in self.network.linked(from) {
                if to != at
                    && hops[to] == 0
                    && self.sites[to].is_awake()
                    && self.network.link(from, to).is_some()
                    && self.active.passes(from, to, self.time)
                {
                    hops[to] = hops[from] + 1;
                    front.push_back(to);
                }
            }
            if wanted.iter().all(|to| hops[*to] > 0) {
                break;
            }
        }
        hops
    }

    pub(super) fn hear(&mut self, to: usize, life: u64, from: usize, told: &Told) {
        let last = &mut self.heard.numbers[to * self.heard.sites + from];
        // What was overtaken by news is no news.
        if self.sites[to].life == life && self.sites[to].is_up() && *last < told.number {
            *last = told.number;
            let peer = self.sites[from].fingerprint;
            self.handle(to, Event::Gossip { peer, facts: (*told.facts).clone() });
        }
    }
}
