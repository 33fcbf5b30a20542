//! Keys as the kernel's keyring holds them: secrets that are wiped from memory when they are let go.
//!
//! Knows names and bytes; nothing of what a key opens.

use std::fmt;

use zeroize::Zeroizing;

/// What the names of our keys begin with in the kernel (`docs/spec/engine/encryption.md` §3).
pub const KEY_PREFIX: &str = "stratis-1-key-";

/// Longest name of a key that the kernel takes, in bytes.
pub const NAME_BYTES_MAX: usize = 4095;

/// Bytes that nobody may see: not printed, not compared in public, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Secret {
        Secret(bytes)
    }

    /// The bytes, for those who must hand them to a machine.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both hold the same; takes the same time wherever they differ.
    pub fn same(&self, other: &[u8]) -> bool {
        self.0.len() == other.len() && self.0.iter().zip(other).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What setting a key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// There was no key of that name.
    Created,
    /// There was one with another value.
    Replaced,
    /// There was one with this value.
    Same,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::new(Zeroizing::new(b"hunter2".to_vec()));
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(..) Some(Secret(..))");
        assert!(secret.same(b"hunter2"));
        assert!(!secret.same(b"hunter3") && !secret.same(b"hunter") && !secret.same(b""));
    }
}
