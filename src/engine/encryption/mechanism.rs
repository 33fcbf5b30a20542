//! The ways to unlock a pool as values, and the numbers of their tokens (`docs/spec/engine/encryption.md` §2).

use serde_json::Value;

use super::key_description::KeyDescription;

/// Most ways to unlock a pool.
pub const BINDINGS_MAX: usize = 15;
/// Version 1: the token that says whose the device is.
pub const STRATIS_TOKEN: u32 = 0;
/// The token of the keyring binding: always in version 1, when old clients ask in version 2.
pub const KEYRING_TOKEN: u32 = 1;
/// The token of the Clevis binding: always in version 1, when old clients ask in version 2.
pub const CLEVIS_TOKEN: u32 = 2;
/// Our mark on a device of version 1 that is not initialized yet, or not any more: nothing in it is of value.
pub const UNFINISHED_TOKEN: u32 = 3;
/// How deep configurations of Clevis may be nested.
pub(super) const DEPTH_MAX: usize = 20;

/// The two kinds of binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// To a passphrase in the kernel's keyring.
    Keyring,
    /// To what Clevis can reach: servers, a TPM.
    Clevis,
}

impl Kind {
    /// Both.
    pub const BOTH: [Kind; 2] = [Kind::Keyring, Kind::Clevis];

    /// Its token where it has a fixed one.
    pub fn fixed_token(self) -> u32 {
        match self {
            Kind::Keyring => KEYRING_TOKEN,
            Kind::Clevis => CLEVIS_TOKEN,
        }
    }

    /// The word in messages.
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Keyring => "key description",
            Kind::Clevis => "Clevis",
        }
    }
}

/// What a passphrase is to be had from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// It is in the kernel's keyring.
    Keyring(KeyDescription),
    /// Clevis decrypts it.
    Clevis {
        /// The encrypted passphrase.
        jwe: Value,
        /// What it takes to decrypt it: `tang`, `tpm2`, `sss`.
        pin: String,
        /// The pin's configuration as shown to clients.
        config: Value,
    },
}

impl Mechanism {
    /// Of which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Mechanism::Keyring(_) => Kind::Keyring,
            Mechanism::Clevis { .. } => Kind::Clevis,
        }
    }
}

/// How a pool is to be unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnlockMethod {
    /// By whatever works.
    Any,
    /// By whatever of this kind works.
    Kind(Kind),
    /// By the binding with this token.
    Token(u32),
}
