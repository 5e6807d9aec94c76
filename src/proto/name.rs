//! Names of members, nodes, groups and attributes: checked once, at the door.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Bytes in the longest name of a member, node or group.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes in the longest name of an attribute.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 128;

/// A text that is no valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind} name: {rule}")]
pub struct NameError {
    /// What was to be named: `member`, `node`, `group` or `attribute`.
    pub kind: &'static str,
    /// The text, cut to 80 characters.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

const SIMPLE_RULE: &str =
    "it must be 1 to 63 letters, digits, dots, dashes or underscores and start with a letter or digit";
const ATTRIBUTE_RULE: &str = "it must be words of letters, digits, dashes and underscores joined by dots, such as custom.owner, at most 128 bytes";

fn is_simple(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_attribute(text: &str) -> bool {
    text.len() <= ATTRIBUTE_NAME_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.split('.').all(|word| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        })
}

/// Compares names as people order them: runs of digits by their number, the rest by bytes; `n2` before `n10`.
///
/// A total order: names that only differ in leading zeros are ordered by their bytes.
pub fn natural_cmp(left: &str, right: &str) -> Ordering {
    let (mut l, mut r) = (left.as_bytes(), right.as_bytes());
    while let (Some(a), Some(b)) = (l.first(), r.first()) {
        let step = if a.is_ascii_digit() && b.is_ascii_digit() {
            let (digits_l, rest_l) = split_digits(l);
            let (digits_r, rest_r) = split_digits(r);
            (l, r) = (rest_l, rest_r);
            digits_l.len().cmp(&digits_r.len()).then_with(|| digits_l.cmp(digits_r))
        } else {
            let step = a.cmp(b);
            (l, r) = (&l[1..], &r[1..]);
            step
        };
        if step != Ordering::Equal {
            return step;
        }
    }
    l.len().cmp(&r.len()).then_with(|| left.cmp(right))
}

/// Splits off the leading run of digits, without its leading zeros.
fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let zeros = text[..end].iter().take_while(|byte| **byte == b'0').count();
    (&text[zeros..end], &text[end..])
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $check:ident, $rule:ident) => {
        $(#[$doc])*
        ///
        /// Cheap to clone. Ordered as people order names: `n2` before `n10`.
        #[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks a text and makes it a name.
            ///
            /// # Errors
            /// [`NameError`] when the text breaks the rule for such names; it says which rule.
            pub fn new(text: &str) -> Result<Self, NameError> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { kind: $kind, text: text.chars().take(80).collect(), rule: $rule })
                }
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> Ordering {
                // Every name that is found is compared with itself.
                if self.0 == other.0 { Ordering::Equal } else { natural_cmp(&self.0, &other.0) }
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<C> Encode<C> for $type {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
                e.str(&self.0)?;
                Ok(())
            }
        }

        impl<'b, C> Decode<'b, C> for $type {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                Self::new(d.str()?).map_err(|_| DecodeError::message(concat!("invalid ", $kind, " name")))
            }
        }
    };
}

name!(
    /// The name of a member, such as `mgt1`; unique in a roster.
    MemberName, "member", is_simple, SIMPLE_RULE
);
name!(
    /// The name of a managed machine, such as `n17`.
    NodeName, "node", is_simple, SIMPLE_RULE
);
name!(
    /// The name of a group of nodes, such as `rack1`.
    GroupName, "group", is_simple, SIMPLE_RULE
);
name!(
    /// The name of an attribute, such as `custom.owner`.
    AttributeName, "attribute", is_attribute, ATTRIBUTE_RULE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_door() {
        for good in ["n1", "mgt-1.site_a", "9lives", &"a".repeat(63)] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-n1", ".x", "n 1", "n\0", "é", &"a".repeat(64), "a/b", "_x"] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
        for good in ["custom.owner", "id.index", "net.eth0.ipv4_address", "groups"] {
            assert!(AttributeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".x", "x.", "x..y", "1x", "a b", "a\0b"] {
            assert!(AttributeName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn order_is_natural_and_total() {
        let mut names: Vec<_> = ["n10", "n2", "n02", "n1", "a", "n", "n1a", "n1-1"]
            .into_iter()
            .map(|text| NodeName::new(text).expect("valid"))
            .collect();
        names.sort();
        let sorted: Vec<_> = names.iter().map(NodeName::as_str).collect();
        assert_eq!(sorted, ["a", "n", "n1", "n1-1", "n1a", "n02", "n2", "n10"]);
    }
}
