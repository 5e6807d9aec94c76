//! The trace: a hash over the true time, the member, and the bytes of everything that happens.

use std::fmt::{self, Write as _};

use collective::proto::collective::{Effect, Event};
use collective::proto::record::Record;
use ring::digest;

/// Bytes that are hashed together.
const CHUNK: usize = 32 * 1024;

/// What a line of the trace is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    Boot = 1,
    Event,
    Effect,
    Send,
    Frame,
}

/// The hash of one run.
pub(crate) struct Trace {
    context: digest::Context,
    waiting: Vec<u8>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { context: digest::Context::new(&digest::SHA256), waiting: Vec::with_capacity(2 * CHUNK) }
    }
}

impl Trace {
    /// Takes in that something happened at a member.
    pub(crate) fn note(&mut self, time: u64, at: usize, mark: Mark, bytes: &[u8]) {
        self.begin(time, at, mark);
        self.put(bytes);
    }

    /// Takes in an event that is no frame, whose bytes were noted when it was sent.
    pub(crate) fn event(&mut self, time: u64, at: usize, event: &Event) {
        self.begin(time, at, Mark::Event);
        match event {
            Event::Saved { tickets } => tickets.iter().for_each(|ticket| self.put(&ticket.to_le_bytes())),
            // What is told was noted when it was published.
            Event::Gossip { peer, facts } => {
                self.put(&peer.0);
                self.put(&facts.incarnation.to_le_bytes());
                self.put(&facts.root);
                self.put(&facts.view);
            }
            event => self.describe(event),
        }
    }

    /// Takes in an effect.
    pub(crate) fn effect(&mut self, time: u64, at: usize, effect: &Effect) {
        self.begin(time, at, Mark::Effect);
        match effect {
            Effect::Save { ticket, records } => {
                self.put(&ticket.to_le_bytes());
                for record in records {
                    match record {
                        Record::Change { bytes, .. } => self.put(bytes),
                        Record::Snapshot { snapshot, .. } => self.put(&snapshot.bytes),
                        record => self.describe(record),
                    }
                }
            }
            Effect::Peers { peers, removed } => {
                peers.iter().flat_map(|peer| &peer.fingerprints).for_each(|key| self.put(&key.0));
                removed.keys().for_each(|key| self.put(&key.0));
            }
            effect => self.describe(effect),
        }
    }

    /// Returns the hash in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        let mut context = self.context.clone();
        context.update(&self.waiting);
        data_encoding::HEXLOWER.encode(context.finish().as_ref())
    }

    fn begin(&mut self, time: u64, at: usize, mark: Mark) {
        if self.waiting.len() > CHUNK {
            self.context.update(&self.waiting);
            self.waiting.clear();
        }
        self.put(&time.to_le_bytes());
        self.put(&[mark as u8, at as u8, (at >> 8) as u8]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    fn describe(&mut self, what: &dyn fmt::Debug) {
        // Writing into memory cannot fail.
        let _ = write!(self, "{what:?}");
    }
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_shows() {
        let hash = |time, at, mark, bytes: &[u8]| {
            let mut trace = Trace::default();
            trace.note(time, at, mark, bytes);
            trace.hash()
        };
        let hashes = [
            hash(1, 1, Mark::Send, b"a"),
            hash(2, 1, Mark::Send, b"a"),
            hash(1, 2, Mark::Send, b"a"),
            hash(1, 1, Mark::Frame, b"a"),
            hash(1, 1, Mark::Send, b"b"),
        ];
        assert_eq!(hashes.iter().collect::<std::collections::BTreeSet<_>>().len(), hashes.len());
        assert_eq!(hash(1, 1, Mark::Send, b"a"), hashes[0]);
    }

    #[test]
    fn what_waits_to_be_hashed_counts() {
        let mut trace = Trace::default();
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..10_000 {
            trace.note(round, 0, Mark::Frame, b"the bytes of a frame");
            assert!(round % 1_000 != 0 || seen.insert(trace.hash()), "at {round}");
        }
    }
}
