//! Keys of the kernel keyring: secrets that are wiped from memory when dropped.
//!
//! This module knows names and bytes, but not what a key unlocks.

use std::fmt;

use zeroize::Zeroizing;

/// Prefix of our key names in the kernel (`docs/spec/engine/encryption.md` §3).
pub const KEY_PREFIX: &str = "stratis-1-key-";

/// Longest key name that the kernel accepts, in bytes.
pub const NAME_BYTES_MAX: usize = 4095;

/// Secret bytes: never printed, compared in constant time, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of the bytes.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Secret {
        Secret(bytes)
    }

    /// The bytes, for calls that pass them on to the kernel or a program.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are equal, in a time that does not depend on where they differ.
    pub fn same(&self, other: &[u8]) -> bool {
        self.0.len() == other.len() && self.0.iter().zip(other).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Result of setting a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// No key had that name.
    Created,
    /// The key had another value.
    Replaced,
    /// The key had this value already.
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
