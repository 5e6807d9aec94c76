//! Gossip: a stand-in for chitchat, which tells what is new only, and lets others pass it on.

use std::collections::BTreeMap;

use collective::proto::collective::Collective;

use super::{Due, World};
use crate::fault::MS;
use crate::mix::Purpose;

impl World {
    pub(super) fn gossip_interval(&self, at: usize) -> u64 {
        let roster = self.sites[at].core.as_ref().map(Collective::roster);
        let usual = roster.map_or(500, |roster| u64::from(roster.timing.gossip_interval_ms)) * MS;
        usual * self.mix.range(Purpose::Gossip, self.queue.count(), 90, 110) / 100
    }

    /// Tells a member's facts to everybody that links reach from it: a stand-in for chitchat, which tells what is new
    /// only, and lets others pass it on.
    pub(super) fn gossip(&mut self, at: usize) {
        let Some(facts) = self.sites[at].facts.clone().filter(|_| self.sites[at].is_awake()) else { return };
        let mut hops = BTreeMap::from([(at, 0_u64)]);
        let mut front = vec![at];
        while let Some(from) = front.pop() {
            for to in self.network.linked(from) {
                if !hops.contains_key(&to)
                    && self.sites[to].is_awake()
                    && self.network.link(from, to).is_some()
                    && self.active.passes(from, to, self.time)
                {
                    hops.insert(to, hops[&from] + 1);
                    front.insert(0, to);
                }
            }
        }
        for (to, hops) in hops.into_iter().filter(|(to, _)| *to != at) {
            let life = self.sites[to].life;
            let told = self.told.get(&(to, at)).is_some_and(|(of, told)| *of == life && *told == facts);
            let is_peer = self.sites[to].peers.contains(&self.sites[at].fingerprint);
            let packet = self.network.packet(at, to);
            if told || !is_peer || self.mix.chance(Purpose::Loss, packet, self.active.loss()) {
                continue;
            }
            let delay = self.delay(at, to) * hops;
            self.after(delay, Due::Heard { to, life, from: at, facts: facts.clone() });
        }
    }
}
