//! The hash of a run: SHA-256 over everything that happened, in the order in which it did.

use std::fmt;

use ring::digest;

/// Bytes that are hashed at once: each call has a cost of its own, and what happens is mostly told in a few bytes.
const AT_ONCE: usize = 4_096;

/// A hash that takes many small pieces.
pub(crate) struct Hash {
    context: digest::Context,
    /// What is hashed next.
    pending: Vec<u8>,
}

impl Hash {
    pub(crate) fn new() -> Self {
        Self { context: digest::Context::new(&digest::SHA256), pending: Vec::with_capacity(2 * AT_ONCE) }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= AT_ONCE {
            self.context.update(&self.pending);
            self.pending.clear();
        }
    }

    /// Returns the hash of everything so far, in hexadecimal.
    pub(crate) fn text(&self) -> String {
        let mut context = self.context.clone();
        context.update(&self.pending);
        data_encoding::HEXLOWER.encode(context.finish().as_ref())
    }
}

impl fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.update(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hash_as_the_whole_does() {
        let whole: Vec<_> = (0..3 * AT_ONCE).map(|i| i as u8).collect();
        let mut hash = Hash::new();
        let mut rest = &whole[..];
        for piece in [0, 1, AT_ONCE - 1, AT_ONCE + 5, 7] {
            let (first, behind) = rest.split_at(piece);
            hash.update(first);
            rest = behind;
            let so_far = digest::digest(&digest::SHA256, &whole[..whole.len() - rest.len()]);
            assert_eq!(hash.text(), data_encoding::HEXLOWER.encode(so_far.as_ref()));
        }
    }
}
