//! Traffic: frames and links between members, as the network of the moment lets them pass.

use collective::proto::collective::{Collective, Event};
use collective::proto::identity::Fingerprint;
use collective::proto::message::{Channel, DATAGRAM_BYTES_MAX, Delivery, Hello, Message};

use super::{Due, World};
use crate::check::Rule;
use crate::fault::MS;
use crate::mix::Purpose;
use crate::network::{Frame, IDLE_TIMEOUT};
use crate::site::name;
use crate::trace::Seen;

impl World {
    pub(crate) fn delay(&mut self, from: usize, to: usize) -> u64 {
        let packet = self.network.packet(from, to);
        let (least, most) = self.usual.delay;
        let usual = self.mix.range(Purpose::Delay, packet, least / 1_000, most / 1_000) * 1_000;
        let jitter = self.active.jitter_ms();
        let late = if jitter > 0 { self.mix.range(Purpose::Resend, packet, 0, jitter) * MS } else { 0 };
        let jammed = self.active.jam(from, to).map_or(0, |until| until.saturating_sub(self.time));
        usual + self.active.delay_ms() * MS + late + jammed
    }

    pub(super) fn send(&mut self, from: usize, to: Fingerprint, message: &Message, delivery: Delivery) {
        let Some(to) = self.site_linked(from, to) else { return };
        if let Message::LeaseRequest(request) = message {
            let now = self.sites[from].now(self.time).boot.as_nanos();
            self.sites[from].asked.insert(request.seq, now);
            if self.sites[from].asked.len() > 400 {
                self.sites[from].asked.pop_first();
            }
        }
        let bytes: Frame = message.encode().into();
        self.trace(from, b"send", &bytes);
        let Some(link) = self.network.end(from, to).map(|end| end.link) else { return };
        let channel = message.channel();
        let delay = self.delay(from, to);
        let large = bytes.len() > DATAGRAM_BYTES_MAX;
        match delivery {
            Delivery::Stream => {
                let stalled = self.active.stall(from, to).filter(|_| channel == Channel::Sync);
                let ready = (self.time + delay).max(stalled.unwrap_or(0));
                if self.network.push(from, to, channel, link, ready, bytes) {
                    self.at(ready, Due::Stream { from, to, link, channel });
                }
            }
            Delivery::Datagram if large => {
                self.after(delay, Due::Frame { from, to, link, channel, frame: bytes, reliable: true });
            }
            Delivery::Datagram => {
                if !self.active.passes(from, to, self.time) {
                    self.count("datagram cut");
                    return;
                }
                let packet = self.network.packet(from, to);
                if self.mix.chance(Purpose::Loss, packet, self.active.loss().max(self.usual.loss)) {
                    self.count("datagram lost");
                    return;
                }
                if self.mix.chance(Purpose::Corrupt, packet, self.active.corrupted()) {
                    return self.damage(packet, channel, &bytes);
                }
                let delay = delay + self.held_back(packet);
                if self.mix.chance(Purpose::Duplicate, packet, self.active.duplicates()) {
                    self.count("datagram doubled");
                    let again = delay + self.delay(from, to);
                    self.after(again, Due::Frame { from, to, link, channel, frame: bytes.clone(), reliable: false });
                }
                self.after(delay, Due::Frame { from, to, link, channel, frame: bytes, reliable: false });
            }
        }
    }

    pub(super) fn is_live(&self, at: usize, peer: usize, link: u64) -> bool {
        self.network.end(at, peer).is_some_and(|end| end.link == link)
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, link: u64, channel: Channel, frame: Frame, reliable: bool) {
        if !self.is_live(to, from, link) {
            return;
        }
        if !self.active.passes(from, to, self.time) {
            if reliable && self.is_live(from, to, link) {
                let again = self.resend(from, to);
                self.after(again, Due::Frame { from, to, link, channel, frame, reliable });
            }
            return;
        }
        self.deliver(from, to, channel, &frame);
    }

    /// After how long a lost packet of a stream is sent again.
    pub(super) fn resend(&mut self, from: usize, to: usize) -> u64 {
        let packet = self.network.packet(from, to);
        self.mix.range(Purpose::Resend, packet, 40, 250) * MS
    }

    pub(super) fn pump(&mut self, from: usize, to: usize, link: u64, channel: Channel) {
        if !self.is_live(from, to, link) || !self.is_live(to, from, link) {
            return;
        }
        let packet = self.network.packet(from, to);
        let is_damaged = self.mix.chance(Purpose::Corrupt, packet, self.active.corrupted());
        let is_lost = self.mix.chance(Purpose::Loss, packet, self.active.loss());
        if !self.active.passes(from, to, self.time) || is_lost || is_damaged {
            if is_damaged && let Some(frame) = self.network.first(from, to, channel, link) {
                self.damage(packet, channel, &frame);
            }
            let again = self.resend(from, to);
            self.after(again, Due::Stream { from, to, link, channel });
            return;
        }
        let (frame, next) = self.network.pop(from, to, channel, link, self.time);
        if let Some(next) = next {
            self.at(next, Due::Stream { from, to, link, channel });
        }
        if let Some(frame) = frame {
            self.deliver(from, to, channel, &frame);
        }
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, channel: Channel, frame: &[u8]) {
        self.network.heard(to, from, self.time);
        self.trace(to, b"frame", frame);
        match Message::decode(channel, frame) {
            Ok(message) => {
                let peer = self.sites[from].fingerprint;
                self.handle(to, Event::Received { peer, message });
            }
            Err(error) => self.violate(Rule::NoPanic, format!("m{to} cannot read a frame of m{from}: {error}")),
        }
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
            for other in self.network.linked(at) {
                if other == peer || self.is_same_identity(other, peer) {
                    self.lose_end(at, other, "replaced by a new link");
                }
            }
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
        if self.network.drop_end(at, peer) {
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
