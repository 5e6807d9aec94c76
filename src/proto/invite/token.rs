//! The token: the text form of an invitation, checked without the network.
//!
//! URL-safe base64 without padding, so that no shell touches it, of these bytes (integers big-endian):
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1; it makes the text begin with a letter, never with a dash |
//! | 8 | invitation |
//! | 8 | expiry, milliseconds since 1970 |
//! | 32 | the inviter's fingerprint |
//! | 32 | the seed |
//! | 1 + n | length of the name, name |
//! | 1 | number of addresses, at most 2 |
//! | (1 + 4 or 16 + 2) each | 4 or 6, the address, the port |
//! | 4 | the first bytes of the SHA-256 of all before: for typing errors, not for attackers |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use data_encoding::{BASE64URL_NOPAD, DecodeKind};
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::proto::identity::{Fingerprint, InviteId};
use crate::proto::name::{MemberName, NameError};
use crate::proto::time::WallTime;

/// Addresses in a token.
pub const TOKEN_ADDRESSES_MAX: usize = 2;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// More characters than any token has.
const TEXT_BYTES_MAX: usize = 512;

/// The secret half of an invitation: the seed of an Ed25519 key. Wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Takes 32 random bytes for a seed.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the public half.
    pub fn public(&self) -> [u8; 32] {
        self.key().public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// Returns the seed itself.
    pub(super) const fn secret(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn key(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.0).expect("every 32 bytes are an Ed25519 seed")
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// What an invited administrator pastes: enough to find the inviter, to know it, and to be known by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The invitation.
    pub id: InviteId,
    /// When it expires.
    pub expires: WallTime,
    /// The only server that may be told anything.
    pub inviter: Fingerprint,
    /// The secret half.
    pub seed: Seed,
    /// Whom it invites; a proposal for the name where the invitation may be used more than once.
    pub name: MemberName,
    /// Where the inviter was reached when it wrote this; at most [`TOKEN_ADDRESSES_MAX`] are kept.
    pub addresses: Vec<SocketAddr>,
}

/// A text that is no usable token. Found without the network; never quotes the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Nothing about it looks like a token.
    #[error("this is not an invitation token; `collective invite NAME` prints one")]
    NotAToken,
    /// Its end is missing.
    #[error("the token is cut off; copy all of it")]
    Truncated,
    /// A newer release wrote it.
    #[error("the token is of version {0}, and this release knows only version {VERSION}; upgrade this member first")]
    Version(u8),
    /// A character was changed, or some were added.
    #[error("the token has a typing error; copy it again")]
    Checksum,
    /// The name in it is no member name.
    #[error("the token names nobody: {0}")]
    Name(#[from] NameError),
    /// The checksum is right, but the content makes no sense.
    #[error("the token was not written by collective")]
    Malformed,
}

impl Token {
    /// Returns the token as text. It is a secret; hence not `Display`, which ends up in logs.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(256)); // Room for all, so that no copy is left behind.
        bytes.push(VERSION);
        bytes.extend(self.id.0);
        bytes.extend(self.expires.0.to_be_bytes());
        bytes.extend(self.inviter.0);
        bytes.extend(self.seed.0);
        bytes.push(self.name.as_str().len() as u8); // A name has at most 63 bytes.
        bytes.extend(self.name.as_str().bytes());
        let addresses = &self.addresses[..self.addresses.len().min(TOKEN_ADDRESSES_MAX)];
        bytes.push(addresses.len() as u8);
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        Zeroizing::new(BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// [`TokenError`] names the defect.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::NotAToken);
        }
        let bytes = match BASE64URL_NOPAD.decode(text.as_bytes()) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if matches!(error.kind, DecodeKind::Length | DecodeKind::Trailing) => {
                let whole = text.len() - text.len() % 4;
                let bytes = BASE64URL_NOPAD.decode(&text.as_bytes()[..whole]).map_err(|_| TokenError::NotAToken)?;
                return Err(defect(&Zeroizing::new(bytes)));
            }
            Err(_) => return Err(TokenError::NotAToken),
        };
        match bytes.split_last_chunk::<CHECKSUM_BYTES>() {
            Some((body, sum)) if *sum == checksum(body) => {
                let (&version, fields) = body.split_first().ok_or(TokenError::NotAToken)?;
                if version != VERSION {
                    return Err(TokenError::Version(version));
                }
                let mut reader = Reader(fields);
                let token = reader.token().map_err(|error| match error {
                    TokenError::Truncated => TokenError::Malformed,
                    error => error,
                })?;
                if reader.0.is_empty() { Ok(token) } else { Err(TokenError::Malformed) }
            }
            _ => Err(defect(&bytes)),
        }
    }

    /// Returns whether the invitation has expired by this wall clock.
    pub fn is_expired(&self, wall: WallTime) -> bool {
        wall >= self.expires
    }
}

/// Says what is wrong with bytes whose checksum is wrong.
fn defect(bytes: &[u8]) -> TokenError {
    let Some((&VERSION, fields)) = bytes.split_first() else {
        return TokenError::NotAToken;
    };
    let mut reader = Reader(fields);
    match reader.token() {
        Err(TokenError::Truncated) => TokenError::Truncated,
        Ok(_) if reader.0.len() < CHECKSUM_BYTES => TokenError::Truncated,
        _ => TokenError::Checksum,
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *digest(&SHA256, bytes).as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(TokenError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, TokenError> {
        self.take().map(|[byte]| byte)
    }

    fn token(&mut self) -> Result<Token, TokenError> {
        Ok(Token {
            id: InviteId(self.take()?),
            expires: WallTime(u64::from_be_bytes(self.take()?)),
            inviter: Fingerprint(self.take()?),
            seed: Seed(self.take()?),
            name: self.name()?,
            addresses: self.addresses()?,
        })
    }

    fn name(&mut self) -> Result<MemberName, TokenError> {
        let length = usize::from(self.byte()?);
        let (name, rest) = self.0.split_at_checked(length).ok_or(TokenError::Truncated)?;
        self.0 = rest;
        Ok(MemberName::new(&String::from_utf8_lossy(name))?)
    }

    fn addresses(&mut self) -> Result<Vec<SocketAddr>, TokenError> {
        let count = usize::from(self.byte()?);
        if count > TOKEN_ADDRESSES_MAX {
            return Err(TokenError::Malformed);
        }
        (0..count).map(|_| self.address()).collect()
    }

    fn address(&mut self) -> Result<SocketAddr, TokenError> {
        let ip = match self.byte()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
            _ => return Err(TokenError::Malformed),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(name: &str, addresses: &[&str]) -> Token {
        Token {
            id: InviteId([1; 8]),
            expires: WallTime(1_800_000_000_000),
            inviter: Fingerprint([2; 32]),
            seed: Seed([3; 32]),
            name: MemberName::new(name).expect("valid"),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        }
    }

    /// Writes bytes as a token would be, with a right checksum.
    fn sealed(body: &[u8]) -> String {
        BASE64URL_NOPAD.encode(&[body, &checksum(body)].concat())
    }

    fn body(token: &Token) -> Vec<u8> {
        let bytes = BASE64URL_NOPAD.decode(token.reveal().as_bytes()).expect("base64");
        bytes[..bytes.len() - CHECKSUM_BYTES].to_vec()
    }

    #[test]
    fn the_text_form_does_not_change() {
        // A golden token, made from the table above by other means: releases must read one another's.
        let text = "AQEBAQEBAQEBAAABoxhcUAACAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgMDAw\
                    MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDBG1ndDIBBAoAAAEPChvEHJc";
        assert_eq!(*token("mgt2", &["10.0.0.1:3850"]).reveal(), text);
    }

    #[test]
    fn a_token_is_one_short_line_that_no_shell_and_no_option_parser_touches() {
        for (addresses, characters) in [(&[][..], 122), (&["10.0.0.1:1"], 131), (&["10.0.0.1:1", "10.0.0.2:1"], 140)] {
            let text = token("mgt2", addresses).reveal();
            assert_eq!(text.len(), characters);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
            assert!(text.starts_with('A'));
        }
    }

    #[test]
    fn white_space_around_a_token_is_ignored() {
        let token = token("mgt2", &["[2001:db8::1]:7"]);
        assert_eq!(Token::parse(&format!("\t {}\r\n", *token.reveal())), Ok(token));
    }

    #[test]
    fn more_addresses_than_fit_are_left_out() {
        let read = Token::parse(&token("mgt2", &["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]).reveal());
        assert_eq!(read, Ok(token("mgt2", &["10.0.0.1:1", "10.0.0.2:1"])));
    }

    #[test]
    fn every_defect_is_named() {
        let good = token("mgt2", &["10.0.0.1:3850"]);
        for text in
            ["", " ", "hello", "A", "not a token", "a\0b", "é", &"A".repeat(600), &good.reveal().replace('A', "/")]
        {
            assert_eq!(Token::parse(text), Err(TokenError::NotAToken), "{text:?}");
        }
        let text = good.reveal();
        for end in 2..text.len() {
            assert_eq!(Token::parse(&text[..end]), Err(TokenError::Truncated), "cut to {end}");
        }
        for more in ["A", "AA", "AAA", "AAAA"] {
            assert_eq!(Token::parse(&format!("{}{more}", *text)), Err(TokenError::Checksum));
        }
        let mut future = body(&good);
        future[0] = 2;
        assert_eq!(Token::parse(&sealed(&future)), Err(TokenError::Version(2)));
        let mut nameless = body(&good);
        nameless[82] = b'-';
        assert!(matches!(Token::parse(&sealed(&nameless)), Err(TokenError::Name(_))));
        let longer = [body(&good), vec![0]].concat();
        assert_eq!(Token::parse(&sealed(&longer)), Err(TokenError::Malformed));
        assert_eq!(Token::parse(&sealed(&body(&good)[..60])), Err(TokenError::Malformed));
        assert_eq!(Token::parse(&sealed(&[])), Err(TokenError::NotAToken));
    }

    #[test]
    fn a_token_expires_at_its_time() {
        let token = token("mgt2", &[]);
        assert!(!token.is_expired(WallTime(token.expires.0 - 1)));
        assert!(token.is_expired(token.expires));
    }

    #[test]
    fn debug_output_and_errors_hold_no_secret() {
        let good = token("mgt2", &[]);
        assert!(format!("{good:?}").contains("Seed(..)"));
        let mut text = good.reveal().to_string();
        text.replace_range(70..71, "B");
        let error = Token::parse(&text).expect_err("a typing error");
        assert!(!format!("{error:?}{error}").contains(&text[60..90]));
    }

    fn any_token() -> impl Strategy<Value = Token> {
        let address = (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
        let ids = (any::<[u8; 8]>(), any::<u64>(), any::<[u8; 32]>(), any::<[u8; 32]>());
        (ids, "[A-Za-z0-9][A-Za-z0-9._-]{0,62}", prop::collection::vec(address, 0..=2)).prop_map(
            |((id, expires, inviter, seed), name, addresses)| Token {
                id: InviteId(id),
                expires: WallTime(expires),
                inviter: Fingerprint(inviter),
                seed: Seed(seed),
                name: MemberName::new(&name).expect("valid"),
                addresses,
            },
        )
    }

    proptest! {
        #[test]
        fn every_token_reads_back(token in any_token()) {
            prop_assert_eq!(Token::parse(&token.reveal()), Ok(token));
        }

        #[test]
        fn every_change_of_one_character_is_noticed(token in any_token(), at in any::<prop::sample::Index>(), to in any::<char>()) {
            let text = token.reveal();
            let at = at.index(text.len());
            for to in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_ =".chars().chain([to]) {
                let changed: String = text.chars().enumerate().map(|(n, c)| if n == at { to } else { c }).collect();
                let only_trimmed = changed.trim() == text.as_str();
                prop_assert!(only_trimmed || Token::parse(&changed).is_err(), "{} became {}", *text, changed);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>(), ascii in "[A-Za-z0-9_-]{0,300}", body in any::<Vec<u8>>()) {
            for text in [text, format!("AQ{ascii}"), ascii, sealed(&body), sealed(&[&[1], &body[..]].concat())] {
                let _ = Token::parse(&text);
            }
        }
    }
}
