//! Links between members: dialled, looked at, lost.

use collective::proto::collective::{Collective, Event};
use collective::proto::message::Hello;

use super::{Due, World};
use crate::fault::MS;
use crate::mix::Purpose;
use crate::network::IDLE_TIMEOUT;
use crate::site::name;
use crate::trace::Seen;

/// How often a link that is down is dialled.
const DIAL_EVERY: u64 = 300 * MS;

impl World {
    /// Dials in a while, and again and again until the link is up, unless that is under way.
    pub(super) fn keep_dialling(&mut self, a: usize, b: usize) {
        let (a, b) = (a.min(b), a.max(b));
        let place = a * self.sites.len() + b;
        if !std::mem::replace(&mut self.is_dialling[place], true) {
            self.dial_later(a, b);
        }
    }

    fn dial_later(&mut self, a: usize, b: usize) {
        let every = DIAL_EVERY + self.mix.range(Purpose::Dial, self.queue.count(), 0, 200) * MS;
        self.after(every, Due::Dial { a, b });
    }

    pub(super) fn dial_again(&mut self, a: usize, b: usize) {
        if self.network.link(a, b).is_some() {
            self.is_dialling[a * self.sites.len() + b] = false;
        } else {
            self.dial(a, b);
            self.dial_later(a, b);
        }
    }

    /// Takes one end of a link down; returns whether it was up.
    pub(super) fn drop_end(&mut self, at: usize, peer: usize) -> bool {
        self.keep_dialling(at, peer);
        self.network.drop_end(at, peer)
    }

    /// Tries to bring a link up.
    pub(super) fn dial(&mut self, a: usize, b: usize) {
        let (a, b) = (a.min(b), a.max(b));
        let there = self.sites[a].is_awake() && self.sites[b].is_awake();
        if a == b || !there || self.network.link(a, b).is_some() || !self.passes_both(a, b) {
            return;
        }
        if self.active.jam(a, b).is_some() || self.is_same_identity(a, b) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let key = self.sites[from].fingerprint;
            if !self.sites[to].peers.contains(&key) {
                // A member that was removed while it was away learns it when it dials.
                if let Some(notice) = self.sites[to].removed.get(&key).cloned() {
                    let delay = self.delay(to, from);
                    let life = self.sites[from].life;
                    self.after(delay, Due::Expelled { at: from, life, notice });
                }
                return;
            }
        }
        let hellos = [a, b].map(|at| self.sites[at].core.as_ref().map(Collective::hello));
        if let [Some(hello_a), Some(hello_b)] = hellos {
            let delay = self.delay(a, b) + self.delay(b, a) + self.delay(a, b);
            self.after(delay, Due::Shake { a, b, hellos: Box::new((hello_a, hello_b)) });
        }
    }

    pub(crate) fn passes_both(&self, a: usize, b: usize) -> bool {
        self.active.passes(a, b, self.time) && self.active.passes(b, a, self.time)
    }

    pub(super) fn shake(&mut self, a: usize, b: usize, (hello_a, hello_b): (Hello, Hello)) {
        let sessions = [(a, &hello_a), (b, &hello_b)];
        let same = sessions.iter().all(|(at, hello)| {
            self.sites[*at].is_awake()
                && self.sites[*at].core.as_ref().is_some_and(|core| core.hello().session == hello.session)
        });
        if !same || self.network.link(a, b).is_some() || !self.passes_both(a, b) {
            return;
        }
        for (at, peer) in [(a, b), (b, a)] {
            // One link a key: a cloned identity takes the place of the member it was cloned from.
            let twins = if self.has_clones { self.network.linked(at) } else { Vec::new() };
            for other in twins.into_iter().filter(|other| self.is_same_identity(*other, peer)).collect::<Vec<_>>() {
                self.lose_end(at, other, "replaced by a new link");
            }
            self.lose_end(at, peer, "replaced by a new link");
        }
        self.network.connect(a, b, self.time);
        self.count("link up");
        self.tell(|| format!("link m{a} m{b} up"));
        self.note(Some(a), || Seen::LinkUp { peer: name(b) });
        for (at, peer, hello) in [(a, b, hello_b), (b, a, hello_a)] {
            let (key, address) = (self.sites[peer].fingerprint, self.sites[peer].address);
            self.handle(at, Event::LinkUp { peer: key, address, hello });
        }
    }

    pub(super) fn lose_end(&mut self, at: usize, peer: usize, reason: &'static str) {
        if self.drop_end(at, peer) {
            self.tell(|| format!("link m{at} to m{peer} down: {reason}"));
            self.note(Some(at), || Seen::LinkDown { peer: name(peer), why: reason.to_owned() });
            let key = self.sites[peer].fingerprint;
            self.handle(at, Event::LinkDown { peer: key, reason: reason.to_owned() });
        }
    }

    /// Looks whether the links of a member still live: silence ends one, and so does a peer that has forgotten it.
    pub(super) fn look(&mut self, at: usize) {
        if !self.sites[at].is_awake() {
            return;
        }
        if self.active.is_nothing() && self.network.is_even() {
            // Nothing is cut, and nobody has forgotten a link: everybody hears everybody.
            return self.network.hears_all(at, self.time);
        }
        for peer in self.network.linked(at) {
            let Some(end) = self.network.end(at, peer) else { continue };
            let hears = self.sites[peer].is_awake()
                && self.active.passes(peer, at, self.time)
                && self.active.jam(peer, at).is_none();
            let knows = self.network.end(peer, at).is_some_and(|other| other.link == end.link);
            if hears && knows {
                self.network.heard(at, peer, self.time);
            } else if self.time.saturating_sub(end.heard) > IDLE_TIMEOUT {
                self.lose_end(at, peer, "timed out");
            } else if hears && self.active.passes(at, peer, self.time) {
                self.lose_end(at, peer, "forgotten by the peer");
            }
        }
    }

    /// Closes links to keys that a member keeps no link to any more.
    pub(super) fn cut_strangers(&mut self, at: usize) {
        for peer in self.network.linked(at) {
            let key = self.sites[peer].fingerprint;
            if self.sites[at].peers.contains(&key) {
                continue;
            }
            if let Some(link) = self.network.link(at, peer).filter(|_| self.active.passes(at, peer, self.time)) {
                let delay = self.delay(at, peer);
                match self.sites[at].removed.get(&key).cloned() {
                    Some(notice) => {
                        let life = self.sites[peer].life;
                        self.after(delay, Due::Expelled { at: peer, life, notice });
                    }
                    None => self.after(delay, Due::Gone { at: peer, peer: at, link, reason: "closed by the peer" }),
                }
            }
            if let Some(end) = self.network.end(at, peer) {
                self.after(0, Due::Gone { at, peer, link: end.link, reason: "no member any more" });
            }
        }
    }
}
