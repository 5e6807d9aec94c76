//! The small public facts that a member tells everybody by gossip. Hints only: nothing is decided by them alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use minicbor::{Decode, Encode};

use super::identity::{MemberId, SessionId};
use super::request::Standing;
use super::roster::{MEMBERS_MAX, Version};

/// What one member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where it can be reached; the best address first.
    pub addresses: Vec<SocketAddr>,
    /// Its software version.
    pub software: String,
    /// The oldest and the newest wire version it speaks.
    pub wire: (u16, u16),
    /// Its incarnation.
    pub incarnation: u64,
    /// The run of its daemon.
    pub session: Option<SessionId>,
    /// Whether it is about to leave or stop.
    pub leaving: bool,
    /// The hash over all its document digests.
    pub root: [u8; 8],
    /// The roster it has in force.
    pub version: Version,
    /// How far its session has come.
    pub standing: Standing,
    /// How many nodes it manages.
    pub manages: u32,
    /// The hash of its view.
    pub view: [u8; 8],
    /// What it believes of each member in the order of the roster's ids, as [`in_runs`] of a letter each: `A`live,
    /// `S`uspect, `D`own, `L`eft.
    pub sees: String,
    /// The members it suspects, and at which incarnation.
    pub suspicions: BTreeMap<MemberId, u64>,
}

/// Returns letters with how often each follows on itself, when that is more than once: `AAAADA` is `A4DA`.
///
/// Everybody keeps the row of everybody, so a row must not be as long as the roster; and one of a thousand letters would
/// not fit where it is told.
pub fn in_runs(letters: impl Iterator<Item = char>) -> String {
    let mut runs: Vec<(char, usize)> = Vec::new();
    for letter in letters {
        match runs.last_mut() {
            Some((last, count)) if *last == letter => *count += 1,
            _ => runs.push((letter, 1)),
        }
    }
    let text = |(letter, count)| if count == 1 { String::from(letter) } else { format!("{letter}{count}") };
    runs.into_iter().map(text).collect()
}

/// Returns the letters of [`in_runs`], as many as there may be members; what is odd is passed over.
pub fn of_runs(runs: &str) -> impl Iterator<Item = char> {
    let is_letter = |at: &(usize, char)| at.1.is_ascii_alphabetic();
    let run = |(at, letter): (usize, char)| {
        let rest = &runs[at + 1..];
        let digits = rest.find(|next: char| !next.is_ascii_digit()).unwrap_or(rest.len());
        let count = if digits == 0 { 1 } else { rest[..digits].parse().unwrap_or(0) };
        std::iter::repeat_n(letter, count)
    };
    runs.char_indices().filter(is_letter).flat_map(run).take(MEMBERS_MAX)
}

/// What a member keeps on disk of another: how to reach it, and what it must not fall below (R9).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PeerRecord {
    /// Addresses that worked or were told, the best first, as text.
    #[n(0)]
    pub addresses: Vec<String>,
    /// The highest incarnation seen.
    #[n(1)]
    pub incarnation: u64,
    /// The highest sequence seen.
    #[n(2)]
    pub sequence: u64,
}

impl PeerRecord {
    /// Returns the addresses that read as such.
    pub fn socket_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_back_from_their_runs() {
        for (letters, runs) in [("", ""), ("A", "A"), ("AAAADA", "A4DA"), ("SSLLLLLLLLLLLL", "S2L12")] {
            assert_eq!(in_runs(letters.chars()), runs);
            assert_eq!(of_runs(runs).collect::<String>(), letters);
        }
    }

    #[test]
    fn odd_runs_make_no_more_letters_than_there_may_be_members() {
        assert_eq!(of_runs("A999999999999999D99999").count(), MEMBERS_MAX);
        assert_eq!(of_runs("A99999999999999999999999").count(), 0);
        assert_eq!(of_runs("\u{1F980} 12A2\u{e9}3S").collect::<String>(), "AAS");
    }
}
