//! Facts: the small public things a member tells about itself, and the keys they travel as.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use data_encoding::HEXLOWER;

use crate::proto::facts::Facts;
use crate::proto::identity::MemberId;
use crate::proto::request::Standing;
use crate::proto::roster::{MEMBERS_MAX, Version};

/// Bytes in the longest value. A value near 64 KiB would block all later keys of its member for ever.
pub const VALUE_BYTES_MAX: usize = 512;
/// Addresses that are told; a member with more tells the first.
pub const ADDRESSES_MAX: usize = 8;

/// Before the id of a suspected member.
const SUSPICION: &str = "sus.";
/// Set after all others, so that a record which has it is whole.
const INCARNATION: &str = "inc";

impl Facts {
    /// Returns the keys and values to publish, the one that completes the record last.
    pub(super) fn to_keys(&self) -> Vec<(String, String)> {
        let mut addresses = self.addresses.clone();
        addresses.truncate(ADDRESSES_MAX);
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        let mut keys = vec![
            ("addr", addresses.join(",")),
            ("epoch", self.version.to_string()),
            ("manages", self.manages.to_string()),
            ("root", HEXLOWER.encode(&self.root)),
            ("sees", cut(&self.sees)),
            ("software", cut(&self.software)),
            ("standing", word(self.standing).to_owned()),
            ("state", if self.leaving { "leaving" } else { "running" }.to_owned()),
            ("view", HEXLOWER.encode(&self.view)),
            ("wire", format!("{}-{}", self.wire.0, self.wire.1)),
        ];
        if let Some(session) = self.session {
            keys.push(("session", session.to_string()));
        }
        let mut keys: Vec<_> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        keys.extend(self.suspicions.iter().map(|(id, incarnation)| (suspicion_key(*id), incarnation.to_string())));
        keys.push((INCARNATION.to_owned(), self.incarnation.to_string()));
        keys
    }

    /// Reads a record back; none when it is not whole yet. What cannot be read is left at its default: a later version
    /// may write it otherwise, and one odd fact must not hide the others.
    pub(super) fn from_keys<'a>(keys: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let mut facts = Self::default();
        let mut whole = false;
        for (key, value) in keys.filter(|(_, value)| value.len() <= VALUE_BYTES_MAX) {
            match key {
                "addr" => {
                    facts.addresses = value.split(',').filter_map(|it| it.parse().ok()).take(ADDRESSES_MAX).collect();
                }
                "epoch" => facts.version = read_version(value).unwrap_or_default(),
                "root" => facts.root = read_hash(value).unwrap_or_default(),
                "view" => facts.view = read_hash(value).unwrap_or_default(),
                "sees" => value.clone_into(&mut facts.sees),
                "manages" => facts.manages = value.parse().unwrap_or_default(),
                "session" => facts.session = value.parse().ok(),
                "software" => value.clone_into(&mut facts.software),
                "standing" => facts.standing = read_standing(value),
                "state" => facts.leaving = value == "leaving",
                "wire" => facts.wire = read_wire(value).unwrap_or_default(),
                INCARNATION => {
                    facts.incarnation = value.parse().ok()?;
                    whole = true;
                }
                _ => {
                    let accused = key.strip_prefix(SUSPICION).and_then(|id| id.parse().ok());
                    if let Some((accused, incarnation)) = accused.zip(value.parse().ok())
                        && facts.suspicions.len() < MEMBERS_MAX
                    {
                        facts.suspicions.insert(accused, incarnation);
                    }
                }
            }
        }
        whole.then_some(facts)
    }

    /// Returns the suspicion keys among `published` that no longer stand.
    pub(super) fn withdrawn<'a>(&self, published: impl Iterator<Item = &'a str>) -> Vec<String> {
        let standing: BTreeSet<_> = self.suspicions.keys().map(|id| suspicion_key(*id)).collect();
        published.filter(|key| key.starts_with(SUSPICION) && !standing.contains(*key)).map(str::to_owned).collect()
    }
}

const fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Isolated => "isolated",
        Standing::Rejoining => "rejoining",
        Standing::Seated => "seated",
    }
}

/// Reads a standing; a word of a later version counts as the least of them.
fn read_standing(text: &str) -> Standing {
    match text {
        "seated" => Standing::Seated,
        "rejoining" => Standing::Rejoining,
        _ => Standing::Isolated,
    }
}

fn suspicion_key(accused: MemberId) -> String {
    format!("{SUSPICION}{accused}")
}

/// Cuts a text to what a value may hold, at a character's end.
fn cut(text: &str) -> String {
    let fits = |(at, character): &(usize, char)| at + character.len_utf8() <= VALUE_BYTES_MAX;
    text.char_indices().take_while(fits).map(|(_, character)| character).collect()
}

fn read_version(text: &str) -> Option<Version> {
    let (generation, epoch) = text.split_once('.')?;
    Some(Version { generation: generation.parse().ok()?, epoch: epoch.parse().ok()? })
}

fn read_hash(text: &str) -> Option<[u8; 8]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn read_wire(text: &str) -> Option<(u16, u16)> {
    let (oldest, newest) = text.split_once('-')?;
    Some((oldest.parse().ok()?, newest.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proto::identity::SessionId;

    fn sample() -> Facts {
        Facts {
            addresses: vec!["192.0.2.1:4711".parse().expect("an address"), "[2001:db8::1]:4711".parse().expect("one")],
            software: "0.1.0".to_owned(),
            wire: (1, 3),
            incarnation: 17,
            leaving: true,
            root: [1, 2, 3, 4, 5, 6, 7, 255],
            view: [9; 8],
            sees: "A2SD".to_owned(),
            version: Version { generation: 1, epoch: 9 },
            standing: Standing::Seated,
            manages: 1_200,
            suspicions: BTreeMap::from([(MemberId([3; 16]), 4), (MemberId([9; 16]), 0)]),
            session: Some(SessionId([8; 8])),
        }
    }

    fn read(keys: &[(String, String)]) -> Option<Facts> {
        Facts::from_keys(keys.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    #[test]
    fn facts_read_back_from_their_keys() {
        assert_eq!(read(&sample().to_keys()), Some(sample()));
        assert_eq!(read(&Facts::default().to_keys()), Some(Facts::default()));
    }

    #[test]
    fn a_record_without_its_last_key_is_not_read() {
        let keys = sample().to_keys();
        for end in 0..keys.len() {
            assert_eq!(read(&keys[..end]), None);
        }
    }

    #[test]
    fn odd_values_leave_the_other_facts_readable() {
        let mut keys = sample().to_keys();
        for (key, value) in &mut keys {
            if key != INCARNATION {
                *value = "\u{1F980} odd".to_owned();
            }
        }
        keys.push(("sus.nobody".to_owned(), "1".to_owned()));
        keys.push(("from a later version".to_owned(), "1".to_owned()));
        let facts = read(&keys).expect("whole");
        assert_eq!(facts.incarnation, 17);
        assert!(facts.suspicions.is_empty() && facts.addresses.is_empty() && facts.session.is_none());
    }

    #[test]
    fn a_value_never_exceeds_its_limit() {
        let long = "\u{1F980}".repeat(300);
        let mut facts = Facts { software: long.clone(), sees: long, ..sample() };
        facts.addresses = vec!["[2001:db8:1111:2222:3333:4444:5555:6666%4294967295]:65535".parse().expect("one"); 50];
        for (key, value) in facts.to_keys() {
            assert!(value.len() <= VALUE_BYTES_MAX, "{key} has {}", value.len());
        }
        let huge = [(INCARNATION.to_owned(), "1".to_owned()), ("software".to_owned(), "x".repeat(VALUE_BYTES_MAX + 1))];
        assert_eq!(read(&huge).expect("whole").software, "");
    }

    #[test]
    fn suspicions_that_no_longer_stand_are_found() {
        let keys = sample().to_keys();
        let mut facts = sample();
        facts.suspicions.remove(&MemberId([3; 16]));
        let withdrawn = facts.withdrawn(keys.iter().map(|(key, _)| key.as_str()));
        assert_eq!(withdrawn, [suspicion_key(MemberId([3; 16]))]);
    }
}
