//! Traffic: frames between members, as the network of the moment lets them pass.

use collective::proto::collective::Event;
use collective::proto::identity::Fingerprint;
use collective::proto::message::{Channel, DATAGRAM_BYTES_MAX, Delivery, Message};

use super::{Due, World};
use crate::check::Rule;
use crate::fault::MS;
use crate::mix::Purpose;
use crate::network::{Frame, HEADER_BYTES, PACKET_BYTES_MAX, SEAL_BYTES};

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
        self.encoded.clear();
        message.encode_to(&mut self.encoded);
        let bytes: Frame = self.encoded.as_slice().into();
        self.trace(from, b"send", &bytes);
        self.sent.frames += 1;
        self.sent.bytes += bytes.len() as u64;
        let Some(link) = self.network.end(from, to).map(|end| end.link) else { return };
        let channel = message.channel();
        let delay = self.delay(from, to) + self.squeezed(from, to, bytes.len());
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
                if self.is_too_large(&bytes) {
                    self.count("datagram too large");
                    return;
                }
                if self.network.narrow.is_full((from, to), self.time) {
                    self.count("datagram dropped");
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

    /// Returns how much longer a frame takes since all that goes its way does not fit at once.
    fn squeezed(&mut self, from: usize, to: usize, bytes: usize) -> u64 {
        let Some(kbit) = self.active.bandwidth_kbit() else { return 0 };
        let packets = bytes.div_ceil(PACKET_BYTES_MAX).max(1);
        self.network.narrow.carry((from, to), self.time, bytes + packets * (SEAL_BYTES + HEADER_BYTES), kbit)
    }

    /// Returns whether the path drops the datagrams that carry a frame: longer ones are as many as it takes, each full.
    fn is_too_large(&self, frame: &[u8]) -> bool {
        self.active.is_too_large((frame.len() + SEAL_BYTES).min(PACKET_BYTES_MAX))
    }

    pub(super) fn is_live(&self, at: usize, peer: usize, link: u64) -> bool {
        self.network.end(at, peer).is_some_and(|end| end.link == link)
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, link: u64, channel: Channel, frame: Frame, reliable: bool) {
        if !self.is_live(to, from, link) {
            return;
        }
        if !self.active.passes(from, to, self.time) || self.is_too_large(&frame) {
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
        let first = self.network.first(from, to, channel, link);
        let is_too_large = first.as_ref().is_some_and(|frame| self.is_too_large(frame));
        if is_too_large {
            self.count("datagram too large");
        }
        if !self.active.passes(from, to, self.time) || is_lost || is_damaged || is_too_large {
            if is_damaged && let Some(frame) = first {
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
        // Its bytes were hashed when it was sent.
        let of = [from as u32, channel as u32, frame.len() as u32].map(u32::to_le_bytes);
        self.trace(to, b"frame", of.as_flattened());
        match Message::decode(channel, frame) {
            Ok(message) => {
                let peer = self.sites[from].fingerprint;
                self.handle(to, Event::Received { peer, message });
            }
            Err(error) => self.violate(Rule::NoPanic, format!("m{to} cannot read a frame of m{from}: {error}")),
        }
    }
}
