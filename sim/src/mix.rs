//! Chance: every draw is a function of the seed, what it is for, and which one it is.
//!
//! Because no draw depends on how many were made before, taking one fault out of a run shifts nothing else: that is what
//! makes failures shrink.

/// What a number is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Identity = 1,
    Birth,
    Clock,
    Delay,
    Loss,
    Duplicate,
    Fsync,
    Gossip,
    Workload,
    Faults,
    Crash,
    Entropy,
    Exporter,
    Dial,
    Resend,
    Corrupt,
    Reorder,
    Job,
}

/// A run's chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix(u64);

impl Mix {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(scramble(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// Draws 64 bits.
    pub(crate) const fn bits(self, purpose: Purpose, index: u64) -> u64 {
        scramble(scramble(self.0 ^ (purpose as u64).wrapping_mul(0xd6e8_feb8_6659_fd93)) ^ index)
    }

    /// Draws a number of `low..=high`.
    pub(crate) const fn range(self, purpose: Purpose, index: u64, low: u64, high: u64) -> u64 {
        low + self.bits(purpose, index) % (high - low + 1)
    }

    /// Draws whether something of that probability, in thousandths, happens.
    pub(crate) const fn chance(self, purpose: Purpose, index: u64, permille: u64) -> bool {
        self.bits(purpose, index) % 1_000 < permille
    }

    /// Draws bytes.
    pub(crate) fn bytes<const N: usize>(self, purpose: Purpose, index: u64) -> [u8; N] {
        std::array::from_fn(|i| {
            let word = self.bits(purpose, scramble(index).wrapping_add(i as u64 / 8));
            word.to_le_bytes()[i % 8]
        })
    }

    /// Returns a chance of its own for one part of the run.
    pub(crate) const fn fork(self, purpose: Purpose, index: u64) -> Self {
        Self(self.bits(purpose, index))
    }
}

/// SplitMix64's finaliser.
const fn scramble(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_purpose_and_index_alone() {
        let mix = Mix::new(7);
        assert_eq!(mix.bits(Purpose::Delay, 3), Mix::new(7).bits(Purpose::Delay, 3));
        assert_ne!(mix.bits(Purpose::Delay, 3), mix.bits(Purpose::Delay, 4));
        assert_ne!(mix.bits(Purpose::Delay, 3), mix.bits(Purpose::Loss, 3));
        assert_ne!(mix.bits(Purpose::Delay, 3), Mix::new(8).bits(Purpose::Delay, 3));
    }

    #[test]
    fn draws_spread_over_their_range() {
        let mix = Mix::new(1);
        let hits = (0..1_000).filter(|index| mix.chance(Purpose::Loss, *index, 100)).count();
        assert!((60..140).contains(&hits), "{hits} of 1000 at one in ten");
        assert!((0..1_000).all(|index| (5..=9).contains(&mix.range(Purpose::Delay, index, 5, 9))));
    }
}
