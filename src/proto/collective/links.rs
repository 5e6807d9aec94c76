//! Links, gossip and probes: who is there, where, and what is to be believed of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{About, AfterSave, Collective, Effect, Peer};
use crate::proto::facts::{Facts, PeerRecord};
use crate::proto::identity::{Fingerprint, MemberId};
use crate::proto::lease::Stamp;
use crate::proto::liveness::Liveness;
use crate::proto::message::{Call, Delivery, Errand, Hello, Message, Return};
use crate::proto::planted::Bug;
use crate::proto::record::Record;
use crate::proto::request::EventKind;
use crate::proto::swim::SwimOut;
use crate::proto::sync::Resync;
use crate::proto::time::Instant;

/// Addresses kept of one member.
const ADDRESSES_MAX: usize = 4;

/// One connection to another member, as the core sees it.
#[derive(Debug)]
pub(super) struct Link {
    /// The key it presented.
    pub(super) fingerprint: Fingerprint,
    /// Where it is.
    pub(super) address: SocketAddr,
    /// What is still to be had from it.
    pub(super) resync: Resync,
    /// Whether all was had from it that it had when it was compared.
    pub(super) has_resynced: bool,
    /// When the comparison under way began.
    pub(super) compared_at: Instant,
}

impl Collective {
    pub(super) fn on_link_up(&mut self, peer: Fingerprint, address: SocketAddr, hello: Hello) {
        let Some(id) = self.roster.by_fingerprint(peer).map(|member| member.id).filter(|id| *id != self.me) else {
            return;
        };
        if !hello.speaks_ours() || hello.cluster != self.roster.cluster {
            let name = self.name_of(id);
            let message = format!(
                "{name} runs {} and speaks wire versions {} to {}, this member speaks {} to {}; bring both to the same version",
                hello.software,
                hello.wire_min,
                hello.wire_max,
                crate::proto::message::WIRE_MIN,
                crate::proto::message::WIRE_MAX
            );
            self.trouble.insert(id, message.clone());
            self.happen(EventKind::VersionSkew, About::member(name), message);
            return;
        }
        self.trouble.remove(&id);
        self.learn_address(id, address);
        let behind = hello.version > self.roster.version;
        self.writes.round += 1;
        let (resync, _) = Resync::start(self.writes.round, &self.documents);
        let compared_at = self.now.boot;
        self.links.insert(id, Link { fingerprint: peer, address, resync, has_resynced: false, compared_at });
        self.on_heard(id);
        self.begin_resync(id);
        if self.acks.on_session(id, hello.session) {
            self.ask_for_waiting(id);
        }
        if behind {
            self.want_roster(id);
        }
        if self.voters.contains(&id) {
            // What it was asked before may be lost. Nobody else has a grant to give.
            self.holder.hurry();
        }
    }

    pub(super) fn on_link_down(&mut self, peer: Fingerprint, reason: String) {
        let Some(id) = self.links.iter().find(|(_, link)| link.fingerprint == peer).map(|(id, _)| *id) else {
            return;
        };
        self.links.remove(&id);
        self.trouble.insert(id, reason);
        self.lose_calls(id);
        self.swim.link_down(id, self.now.boot);
    }

    /// R8: a removed member locks, keeps its data readable, and says how to rejoin.
    pub(super) fn on_expelled(&mut self, notice: String) {
        if self.removed.is_some() || self.planted.has(Bug::RemovedGoesOn) {
            return;
        }
        self.save(vec![Record::Removed(notice.clone())], Vec::new());
        self.lock(notice);
    }

    /// Ends everything that only a member may do.
    pub(super) fn lock(&mut self, notice: String) {
        let about = self.name.clone().map_or_else(About::nothing, About::member);
        self.happen(EventKind::MemberDeleted, about, notice.clone());
        self.removed = Some(notice);
        self.links.clear();
        self.effects.push(Effect::Peers { peers: Vec::new(), removed: BTreeMap::new() });
    }

    pub(super) fn link_fingerprint(&self, to: MemberId) -> Option<Fingerprint> {
        self.links.get(&to).map(|link| link.fingerprint)
    }

    pub(super) fn on_heard(&mut self, from: MemberId) {
        let outs = self.swim.heard(from, self.now.boot);
        self.on_swim(outs);
    }

    /// Takes note that a frame came straight from a member.
    pub(super) fn on_frame_of(&mut self, from: MemberId, message: &Message) {
        let outs = match message {
            // The prober takes its own frames for what they are.
            Message::Swim(_) => return,
            Message::LeaseRequest(_) | Message::LeaseAck(_) => self.swim.heard_lease(from, self.now.boot),
            _ => self.swim.heard(from, self.now.boot),
        };
        self.on_swim(outs);
    }

    pub(super) fn on_message(&mut self, from: MemberId, message: Message) {
        match message {
            Message::Swim(frame) => {
                let outs = self.swim.on_frame(from, frame, self.now.boot);
                self.on_swim(outs);
            }
            Message::LeaseRequest(request) => self.on_lease_request(from, &request),
            Message::LeaseAck(ack) => self.on_lease_ack(from, &ack),
            Message::LeaseRelease(release) => {
                self.voter.on_release(from, &release, self.now.boot);
                self.seated.remove(&from);
                self.managers.touch_all();
            }
            Message::Epoch(message) => self.on_epoch_message(from, *message),
            Message::Sync(message) => self.on_sync(from, message),
            Message::Call(Call { id, what }) => match what {
                Errand::Echo => self.say(from, Message::Return(Return { id, results: None })),
                Errand::Run { nodes, action, arguments, within_ms } => {
                    self.on_run_call(from, id, nodes, action, arguments, within_ms);
                }
            },
            Message::Return(Return { id, results }) => self.on_return(from, id, results),
        }
    }

    pub(super) fn on_gossip(&mut self, peer: Fingerprint, facts: Facts) {
        let Some(id) = self.roster.by_fingerprint(peer).map(|member| member.id).filter(|id| *id != self.me) else {
            return;
        };
        let before = self.facts.get(&id).map(|(facts, _)| facts.suspicions.clone()).unwrap_or_default();
        let outs = self.swim.on_gossip(id, facts.incarnation, facts.leaving, self.now.boot);
        self.on_swim(outs);
        for (accused, incarnation) in &facts.suspicions {
            let outs = self.swim.on_suspicion(id, *accused, Some(*incarnation), self.now.boot);
            self.on_swim(outs);
        }
        for accused in before.keys().filter(|accused| !facts.suspicions.contains_key(accused)) {
            let outs = self.swim.on_suspicion(id, *accused, None, self.now.boot);
            self.on_swim(outs);
        }
        for address in facts.addresses.iter().rev() {
            self.learn_address(id, *address);
        }
        self.remember_stamp(id, Stamp { incarnation: facts.incarnation, sequence: 0 });
        // Gossip of a member without a link: somebody hears it, so it is worth a try right now.
        if !self.links.contains_key(&id) && !facts.leaving {
            self.effects.push(Effect::DialNow(peer));
        }
        if facts.version > self.roster.version {
            self.want_roster(id);
        }
        self.facts.insert(id, (facts, self.now.boot));
        self.managers.touch_availability(id);
    }

    pub(super) fn on_swim(&mut self, outs: Vec<SwimOut>) {
        for out in outs {
            match out {
                SwimOut::Send { to, frame, reliable } => {
                    let delivery = if reliable { Delivery::Stream } else { Delivery::Datagram };
                    self.say_by(to, Message::Swim(frame), delivery);
                }
                SwimOut::PublishSuspicion { accused, incarnation } => {
                    self.suspicions.insert(accused, incarnation);
                }
                SwimOut::ClearSuspicion { accused } => {
                    self.suspicions.remove(&accused);
                }
                SwimOut::RaiseIncarnation { to } => {
                    if self.planted.has(Bug::IncarnationTooEarly) {
                        self.stamp.incarnation = to;
                    }
                    self.save(vec![Record::Incarnation(to)], vec![AfterSave::Incarnation(to)]);
                }
                SwimOut::Changed { member, to, cause, .. } => {
                    let name = self.name_of(member);
                    let cause = cause.describe(|id| self.name_of(id).to_string());
                    let (kind, message) = match to {
                        Liveness::Alive => (EventKind::MemberAlive, format!("{name} answers: {cause}")),
                        Liveness::Suspect => (EventKind::MemberSuspect, format!("{name} may be down: {cause}")),
                        Liveness::Down => (EventKind::MemberDown, format!("lost contact with {name}: {cause}")),
                        Liveness::Left => (EventKind::MemberLeave, format!("{name} said farewell")),
                    };
                    self.happen(kind, About::member(name), message);
                    self.managers.touch_availability(member);
                }
            }
        }
    }

    /// Says which links to keep; called whenever roster or addresses change.
    pub(super) fn tell_peers(&mut self) {
        if self.removed.is_some() {
            return;
        }
        let peers = self
            .roster
            .members()
            .filter(|member| member.id != self.me)
            .map(|member| Peer {
                fingerprints: member.fingerprints.clone(),
                addresses: self.peers.get(&member.id).map(PeerRecord::socket_addresses).unwrap_or_default(),
            })
            .collect();
        let removed = self
            .roster
            .removed_ids()
            .filter_map(|id| self.roster.removed(id))
            .flat_map(|removed| {
                let notice = format!(
                    "{} was taken off the roster in epoch {}; to rejoin, run `collective invite {}` on a member and `collective join` here",
                    removed.name, removed.epoch, removed.name
                );
                removed.fingerprints.iter().map(move |fingerprint| (*fingerprint, notice.clone()))
            })
            // A key may have been enrolled again, under a new id.
            .filter(|(fingerprint, _)| self.roster.by_fingerprint(*fingerprint).is_none())
            .collect();
        self.effects.push(Effect::Peers { peers, removed });
    }

    /// Remembers where a member can be reached; the newest first.
    pub(super) fn learn_address(&mut self, id: MemberId, address: SocketAddr) {
        let record = self.peers.entry(id).or_default();
        if record.addresses.first().is_some_and(|first| first.parse() == Ok(address)) {
            return;
        }
        let text = address.to_string();
        let known = record.addresses.contains(&text);
        record.addresses.retain(|other| *other != text);
        record.addresses.insert(0, text);
        record.addresses.truncate(ADDRESSES_MAX);
        if !known {
            self.keep_peer(id);
            self.tell_peers();
        }
    }

    /// R9: what a member once showed is kept on disk, so that a rolled-back or cloned one is noticed after our own
    /// restart too.
    pub(super) fn remember_stamp(&mut self, id: MemberId, stamp: Stamp) {
        let record = self.peers.entry(id).or_default();
        // Voter and holder know what is on record, since it came or since the start: only what is higher is news.
        if stamp.incarnation > record.incarnation || stamp.sequence > record.sequence {
            record.incarnation = record.incarnation.max(stamp.incarnation);
            record.sequence = record.sequence.max(stamp.sequence);
            self.voter.remember(id, stamp);
            self.holder.remember(id, stamp);
            self.keep_peer(id);
        }
    }

    fn keep_peer(&mut self, id: MemberId) {
        if let Some(record) = self.peers.get(&id).cloned() {
            self.save(vec![Record::Peer { id, record }], Vec::new());
        }
    }

    /// Returns what is believed of a member.
    pub(super) fn state_of(&self, id: MemberId) -> Option<Liveness> {
        self.swim.view().get(id).map(|belief| belief.state)
    }

    /// Returns how long ago a member was heard, straight from itself.
    pub(super) fn silent_for(&self, id: MemberId) -> Option<Duration> {
        self.swim.view().get(id)?.last_heard.map(|heard| self.now.boot.since(heard))
    }
}
