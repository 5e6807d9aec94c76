//! Gossip: a stand-in for chitchat, which tells what is new only, and lets others pass it on.

use std::collections::VecDeque;
use std::rc::Rc;

use collective::proto::collective::{Collective, Event};
use collective::proto::facts::Facts;

use super::{Due, World};
use crate::fault::MS;
use crate::mix::Purpose;

/// What a member tells of itself, by a number that rises from one telling to the next.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    number: u64,
    facts: Rc<Facts>,
}

/// Who heard what.
#[derive(Debug)]
pub(super) struct Heard {
    sites: usize,
    /// By teller and hearer: the last telling that was heard, in the hearer's present life; 0 for none.
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

    /// A member starts, and knows nothing of what it was told before.
    pub(super) fn forget(&mut self, hearer: usize) {
        self.numbers.iter_mut().skip(hearer).step_by(self.sites).for_each(|number| *number = 0);
    }

    /// Returns what each member heard of one last.
    fn of(&self, teller: usize) -> &[u64] {
        &self.numbers[teller * self.sites..][..self.sites]
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
        let is_news = |(to, heard): (usize, &u64)| (to != at && *heard != told.number).then_some(to);
        let asks = |to: &usize| self.sites[*to].is_awake() && self.sites[*to].peers.contains(&key);
        let asking: Vec<_> = self.heard.of(at).iter().enumerate().filter_map(is_news).filter(asks).collect();
        if asking.is_empty() {
            return;
        }
        let hops = self.hops(at, &asking);
        for to in asking.into_iter().filter(|to| hops[*to] > 0) {
            let packet = self.network.packet(at, to);
            if !self.mix.chance(Purpose::Loss, packet, self.active.loss()) {
                let life = self.sites[to].life;
                let delay = self.delay(at, to) * hops[to];
                self.after(delay, Due::Heard { to, life, from: at, told: told.clone() });
            }
        }
    }

    /// Returns over how many links each site is reached, 0 for those that are not; others than the wanted ones only as
    /// far as they are found on the way.
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

    /// A member hears what another one tells, unless it heard something newer meanwhile.
    pub(super) fn hear(&mut self, to: usize, life: u64, from: usize, told: &Told) {
        let heard = &mut self.heard.numbers[from * self.heard.sites + to];
        if self.sites[to].life == life && self.sites[to].is_up() && *heard < told.number {
            *heard = told.number;
            self.trace(to, b"heard", &told.number.to_le_bytes());
            let peer = self.sites[from].fingerprint;
            self.handle(to, Event::Gossip { peer, facts: (*told.facts).clone() });
        }
    }
}
