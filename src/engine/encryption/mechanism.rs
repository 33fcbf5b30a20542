//! The ways to unlock a pool as values, and their token numbers (`docs/spec/engine/encryption.md`
//! §2).

use serde_json::Value;

use super::key_description::KeyDescription;

/// The largest number of bindings of a pool.
pub const BINDINGS_MAX: usize = 15;
/// Version 1: the token that names the pool and the device.
pub const STRATIS_TOKEN: u32 = 0;
/// The token of the keyring binding: always in version 1, and in version 2 for requests of old
/// clients.
pub const KEYRING_TOKEN: u32 = 1;
/// The token of the Clevis binding: always in version 1, and in version 2 for requests of old
/// clients.
pub const CLEVIS_TOKEN: u32 = 2;
/// This daemon's mark on a version 1 device that is not initialized yet, or no longer: its contents
/// have no value.
pub const UNFINISHED_TOKEN: u32 = 3;
/// How deep Clevis configurations may be nested.
pub(super) const DEPTH_MAX: usize = 20;

/// The two kinds of binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// To a passphrase in the kernel keyring.
    Keyring,
    /// To a source that Clevis can reach: servers, a TPM.
    Clevis,
}

impl Kind {
    /// Both kinds.
    pub const BOTH: [Kind; 2] = [Kind::Keyring, Kind::Clevis];

    /// The fixed token of this kind, where bindings have fixed tokens.
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

/// The source of a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// The kernel keyring.
    Keyring(KeyDescription),
    /// Clevis, which decrypts it.
    Clevis {
        /// The encrypted passphrase.
        jwe: Value,
        /// The Clevis pin that decrypts it: `tang`, `tpm2`, `sss`.
        pin: String,
        /// The pin's configuration as shown to clients.
        config: Value,
    },
}

impl Mechanism {
    /// The kind of binding that this mechanism belongs to.
    pub fn kind(&self) -> Kind {
        match self {
            Mechanism::Keyring(_) => Kind::Keyring,
            Mechanism::Clevis { .. } => Kind::Clevis,
        }
    }
}

/// The unlock method: how a pool is unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnlockMethod {
    /// By any binding that works.
    Any,
    /// By any binding of this kind that works.
    Kind(Kind),
    /// By the binding with this token.
    Token(u32),
}
