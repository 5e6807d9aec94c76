//! The network between sites: which links are up at which end, and what is on its way over them.
//!
//! A link has two ends, and they may differ: one end may have given the link up while the other has not noticed. Each
//! link has a number of its own, so nothing of an old link arrives on a new one.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use collective::proto::message::Channel;

/// After how much silence an end gives its link up, in nanoseconds; `net::limits::IDLE_TIMEOUT`.
pub(crate) const IDLE_TIMEOUT: u64 = 15_000_000_000;

/// The bytes of one frame.
pub(crate) type Frame = Rc<[u8]>;

/// What IP and UDP put in front of a datagram, in bytes.
pub(crate) const HEADER_BYTES: usize = 28;
/// What QUIC puts around a frame in a datagram, in bytes: its header, the frame's, and the seal.
pub(crate) const SEAL_BYTES: usize = 40;
/// Bytes of the largest datagram that QUIC sends where it does not know of a wider path, without those of IP and UDP.
pub(crate) const PACKET_BYTES_MAX: usize = 1_200;
/// How much a narrow way holds back before it drops what comes, in nanoseconds.
const BUFFER: u64 = 500_000_000;

/// Ways that carry only so much at a time: when each is free again.
#[derive(Debug, Default)]
pub(crate) struct Narrow(BTreeMap<(usize, usize), u64>);

impl Narrow {
    /// Sends that many bytes one way; returns for how long they wait there and pass, in nanoseconds.
    pub(crate) fn carry(&mut self, way: (usize, usize), now: u64, bytes: usize, kbit: u64) -> u64 {
        let free = self.0.entry(way).or_default();
        let takes = bytes as u64 * 8_000_000 / kbit.max(1);
        *free = now.max(*free) + takes;
        *free - now
    }

    /// Returns whether so much waits there that a datagram is dropped.
    pub(crate) fn is_full(&self, way: (usize, usize), now: u64) -> bool {
        self.0.get(&way).is_some_and(|free| *free > now + BUFFER)
    }
}

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The number of the link.
    pub(crate) link: u64,
    /// When this end heard anything last, in true time.
    pub(crate) heard: u64,
}

/// One stream in one direction: frames arrive in order, none is lost while the link lives.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(crate) link: u64,
    pub(crate) frames: VecDeque<(u64, Frame)>,
}

/// All links of a number of sites.
#[derive(Debug)]
pub(crate) struct Network {
    sites: usize,
    /// By the site and the one it is linked to.
    ends: Vec<Option<End>>,
    pipes: BTreeMap<(usize, usize, Channel), Pipe>,
    /// How many links there ever were.
    links: u64,
    /// How many packets each direction carried, so that each has its own chance.
    packets: Vec<u64>,
    /// Pairs whose two ends differ.
    odd: usize,
    /// The ways, when they are narrow.
    pub(crate) narrow: Narrow,
    /// When each site heard everybody it has a link to.
    heard_all: Vec<u64>,
}

impl Network {
    pub(crate) fn new(sites: usize) -> Self {
        Self {
            sites,
            ends: vec![None; sites * sites],
            pipes: BTreeMap::new(),
            links: 0,
            packets: vec![0; sites * sites],
            odd: 0,
            narrow: Narrow::default(),
            heard_all: vec![0; sites],
        }
    }

    fn place(&self, at: usize, to: usize) -> usize {
        at * self.sites + to
    }

    /// Returns the end of a link that `at` has to `to`.
    pub(crate) fn end(&self, at: usize, to: usize) -> Option<End> {
        let end = self.ends[self.place(at, to)]?;
        Some(End { heard: end.heard.max(self.heard_all[at]), ..end })
    }

    /// Returns whether the two ends of every link agree.
    pub(crate) const fn is_even(&self) -> bool {
        self.odd == 0
    }

    /// Notes that a site heard everybody it has a link to.
    pub(crate) fn hears_all(&mut self, at: usize, now: u64) {
        self.heard_all[at] = now;
    }

    fn set(&mut self, at: usize, to: usize, end: Option<End>) {
        let (here, there) = (self.place(at, to), self.place(to, at));
        let is_odd = |network: &Self| {
            let [here, there] = [here, there].map(|place| network.ends[place].map(|end| end.link));
            here != there
        };
        self.odd -= usize::from(is_odd(self));
        self.ends[here] = end;
        self.odd += usize::from(is_odd(self));
    }

    /// Returns the number of the link whose both ends are up.
    pub(crate) fn link(&self, a: usize, b: usize) -> Option<u64> {
        let (here, there) = (self.end(a, b)?, self.end(b, a)?);
        (here.link == there.link).then_some(here.link)
    }

    /// Brings a new link up at both ends.
    pub(crate) fn connect(&mut self, a: usize, b: usize, now: u64) {
        self.links += 1;
        let end = End { link: self.links, heard: now };
        self.set(a, b, Some(end));
        self.set(b, a, Some(end));
    }

    /// Takes one end down; returns whether it was up.
    pub(crate) fn drop_end(&mut self, at: usize, to: usize) -> bool {
        for channel in Channel::ALL {
            self.pipes.remove(&(at, to, channel));
        }
        let was_up = self.end(at, to).is_some();
        self.set(at, to, None);
        was_up
    }

    /// Notes that an end heard something.
    pub(crate) fn heard(&mut self, at: usize, from: usize, now: u64) {
        let place = self.place(at, from);
        if let Some(end) = &mut self.ends[place] {
            end.heard = now;
        }
    }

    /// Returns the members that one has an end of a link to.
    pub(crate) fn linked(&self, at: usize) -> Vec<usize> {
        let ends = &self.ends[self.place(at, 0)..self.place(at + 1, 0)];
        ends.iter().enumerate().filter(|(_, end)| end.is_some()).map(|(to, _)| to).collect()
    }

    /// Returns the number of a new packet in that direction, over the whole run.
    pub(crate) fn packet(&mut self, from: usize, to: usize) -> u64 {
        let place = self.place(from, to);
        self.packets[place] += 1;
        // Which direction it is takes the upper bits: two bytes will do for most runs.
        let bits = if self.sites <= 256 { 8 } else { 12 };
        (from as u64) << (64 - bits) | (to as u64) << (64 - 2 * bits) | self.packets[place]
    }

    /// Queues a frame on a stream; returns whether nothing else was queued there.
    pub(crate) fn push(
        &mut self,
        from: usize,
        to: usize,
        channel: Channel,
        link: u64,
        ready: u64,
        frame: Frame,
    ) -> bool {
        let pipe = self.pipes.entry((from, to, channel)).or_default();
        if pipe.link != link {
            *pipe = Pipe { link, frames: VecDeque::new() };
        }
        let was_empty = pipe.frames.is_empty();
        pipe.frames.push_back((ready, frame));
        was_empty
    }

    /// Returns the first frame of a stream.
    pub(crate) fn first(&self, from: usize, to: usize, channel: Channel, link: u64) -> Option<Frame> {
        let pipe = self.pipes.get(&(from, to, channel)).filter(|pipe| pipe.link == link)?;
        pipe.frames.front().map(|(_, frame)| frame.clone())
    }

    /// Takes the first frame of a stream if it is ready; otherwise says when the first one will be.
    pub(crate) fn pop(
        &mut self,
        from: usize,
        to: usize,
        channel: Channel,
        link: u64,
        now: u64,
    ) -> (Option<Frame>, Option<u64>) {
        let Some(pipe) = self.pipes.get_mut(&(from, to, channel)).filter(|pipe| pipe.link == link) else {
            return (None, None);
        };
        let frame = match pipe.frames.front() {
            Some((ready, _)) if *ready <= now => pipe.frames.pop_front().map(|(_, frame)| frame),
            _ => None,
        };
        (frame, pipe.frames.front().map(|(ready, _)| (*ready).max(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_stream_keep_their_order() {
        let mut network = Network::new(2);
        network.connect(0, 1, 0);
        let link = network.link(0, 1).expect("up");
        assert!(network.push(0, 1, Channel::Sync, link, 9, [1].into()));
        assert!(!network.push(0, 1, Channel::Sync, link, 2, [2].into()));
        assert_eq!(network.pop(0, 1, Channel::Sync, link, 5), (None, Some(9)));
        assert_eq!(network.pop(0, 1, Channel::Sync, link, 9), (Some([1].into()), Some(9)));
        assert_eq!(network.pop(0, 1, Channel::Sync, link, 9), (Some([2].into()), None));
    }

    #[test]
    fn a_narrow_way_carries_one_after_the_other_and_overflows() {
        let mut narrow = Narrow::default();
        // 1,000 bytes at 8 kbit/s are a second.
        assert_eq!(narrow.carry((0, 1), 0, 1_000, 8), 1_000_000_000);
        assert_eq!(narrow.carry((0, 1), 500_000_000, 1_000, 8), 1_500_000_000);
        assert_eq!(narrow.carry((1, 0), 500_000_000, 1_000, 8), 1_000_000_000, "the way back is another one");
        assert!(narrow.is_full((0, 1), 1_400_000_000) && !narrow.is_full((0, 1), 1_500_000_000));
        assert_eq!(narrow.carry((0, 1), 9_000_000_000, 1_000, 8), 1_000_000_000, "it is free again");
    }

    #[test]
    fn a_link_that_only_one_side_knows_is_odd() {
        let mut network = Network::new(3);
        network.connect(0, 1, 0);
        network.connect(1, 2, 0);
        assert!(network.is_even());
        network.drop_end(0, 1);
        network.drop_end(2, 1);
        assert!(!network.is_even());
        network.drop_end(1, 0);
        assert!(!network.is_even());
        network.connect(1, 2, 5);
        assert!(network.is_even());
    }

    #[test]
    fn nothing_of_an_old_link_arrives_on_a_new_one() {
        let mut network = Network::new(2);
        network.connect(0, 1, 0);
        let old = network.link(0, 1).expect("up");
        network.push(0, 1, Channel::Sync, old, 0, [1].into());
        network.drop_end(0, 1);
        assert_eq!(network.link(0, 1), None, "one end is not enough");
        network.connect(0, 1, 5);
        let new = network.link(0, 1).expect("up");
        assert_ne!(old, new);
        assert_eq!(network.pop(0, 1, Channel::Sync, new, 9), (None, None));
    }
}
