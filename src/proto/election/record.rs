//! Manager records: what the winner of an election writes down, and which of several records counts.

use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Encode};

use crate::proto::name::MemberName;
use crate::proto::roster::Version;

/// Which claim on a node: compared by the roster it was made under, then by its number.
///
/// Written as `generation.epoch.term`, such as `0.4.2`. Actions carry it, so that what an old manager started can be
/// told from what the new one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Token {
    /// The recovery generation of the roster.
    #[n(0)]
    pub generation: u64,
    /// The epoch of the roster.
    #[n(1)]
    pub epoch: u64,
    /// The number of the claim.
    #[n(2)]
    pub term: u64,
}

impl Token {
    /// Makes the token of a claim made under a roster.
    pub const fn new(version: Version, term: u64) -> Self {
        Self { generation: version.generation, epoch: version.epoch, term }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.generation, self.epoch, self.term)
    }
}

/// A text that is no token or no manager record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a manager record")]
pub struct RecordError {
    /// The text, cut to 80 characters.
    pub text: String,
}

impl RecordError {
    fn of(text: &str) -> Self {
        Self { text: text.chars().take(80).collect() }
    }
}

impl FromStr for Token {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        // One number has one form, so that equal tokens are equal texts.
        let number = |part: &str| part.parse::<u64>().ok().filter(|number| number.to_string() == part);
        let parts: Option<Vec<u64>> = text.split('.').map(number).collect();
        match parts.as_deref() {
            Some([generation, epoch, term]) => Ok(Self { generation: *generation, epoch: *epoch, term: *term }),
            _ => Err(RecordError::of(text)),
        }
    }
}

/// Whose decision a manager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum By {
    /// The election's, among candidates.
    #[n(0)]
    Auto,
    /// An administrator's, by `collective.manager`.
    #[n(1)]
    Admin,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Admin => "admin",
        })
    }
}

/// Who took a node over, on whose decision, and by which claim.
///
/// Its text, as the document stores it: `mgt2 auto 0.4.2`, or `mgt2 auto 0.4.2 despite mgt1` when the pinned member
/// was not available, or `mgt2 auto 0.4.2 to mgt1` once the manager hands the node over.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    /// The manager.
    #[n(0)]
    pub value: MemberName,
    /// Whose decision it was.
    #[n(1)]
    pub by: By,
    /// The claim.
    #[n(2)]
    pub token: Token,
    /// The member that `collective.manager` named and that was not available.
    #[n(3)]
    pub despite: Option<MemberName>,
    /// The member that the manager hands the node to; it claims once the node is released.
    #[n(4)]
    pub to: Option<MemberName>,
}

impl Record {
    /// The attribute of a node that holds its record.
    pub const ATTRIBUTE: &str = "!manager";
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.value, self.by, self.token)?;
        if let Some(pinned) = &self.despite {
            write!(f, " despite {pinned}")?;
        }
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        Ok(())
    }
}

impl FromStr for Record {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let error = || RecordError::of(text);
        let name = |word| MemberName::new(word).map_err(|_| error());
        let words: Vec<&str> = text.split(' ').collect();
        let (value, by, token, despite, to) = match words[..] {
            [value, by, token] => (value, by, token, None, None),
            [value, by, token, "despite", pinned] => (value, by, token, Some(name(pinned)?), None),
            [value, by, token, "to", to] => (value, by, token, None, Some(name(to)?)),
            [value, by, token, "despite", pinned, "to", to] => (value, by, token, Some(name(pinned)?), Some(name(to)?)),
            _ => return Err(error()),
        };
        let by = match by {
            "auto" => By::Auto,
            "admin" => By::Admin,
            _ => return Err(error()),
        };
        Ok(Self { value: name(value)?, by, token: token.parse().map_err(|_| error())?, despite, to })
    }
}

/// Returns the record that counts among those that concurrent writers left: the one with the highest token.
///
/// Two records of one token cannot be (R4: a claim is confirmed once); the lower name wins, so that all members agree.
pub fn highest<'a>(records: impl IntoIterator<Item = &'a Record>) -> Option<&'a Record> {
    records.into_iter().max_by(|a, b| a.token.cmp(&b.token).then_with(|| b.value.cmp(&a.value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_from_its_text() {
        let longest = "mgt2 auto 0.4.2 despite mgt1 to mgt3";
        let shorter = ["mgt2 auto 0.4.2", "mgt2 auto 0.4.2 despite mgt1", "mgt2 auto 0.4.2 to mgt1"];
        for text in shorter.into_iter().chain(["mgt1 admin 1.0.18446744073709551615", longest]) {
            let record: Record = text.parse().expect(text);
            assert_eq!(record.to_string(), text);
            let bytes = minicbor::to_vec(&record).expect("bytes");
            assert_eq!(minicbor::decode::<Record>(&bytes).expect("a record"), record);
        }
        for text in ["", "mgt2", "mgt2 auto 0.4", "mgt2 auto 0.4.2.1", "mgt2 auto 0.04.2", "mgt2 auto 0.+4.2"] {
            assert!(text.parse::<Record>().is_err(), "{text}");
        }
        for text in
            ["-x auto 0.4.2", "mgt2 self 0.4.2", "mgt2 auto 0.4.2 despite", "mgt2 auto 0.4.2 to", "mgt2  auto 0.4.2"]
        {
            assert!(text.parse::<Record>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_highest_token_counts() {
        let records: Vec<Record> = ["mgt3 auto 0.9.9", "mgt1 auto 1.0.0", "mgt2 admin 0.10.1"]
            .iter()
            .map(|text| text.parse().expect("a record"))
            .collect();
        assert_eq!(highest(&records).map(|record| record.value.as_str()), Some("mgt1"));
        assert_eq!(highest(&records[..1]), Some(&records[0]));
        assert_eq!(highest(&[]), None);
        let token = |text: &str| text.parse::<Token>().expect("a token");
        assert!(token("0.10.1") > token("0.9.9") && token("1.0.0") > token("0.10.1"));
    }
}
