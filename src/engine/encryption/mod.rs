//! Encryption as values: what the tokens of LUKS2 headers say of the ways to unlock a pool, what is to become of them, and
//! how a passphrase is come by (`docs/spec/engine/encryption.md` §2 to 4, 6.2, 6.3, 7).
//!
//! Pure but for [`unlock`] and its kin, which ask a [`Platform`](crate::platform::Platform) for keys. Knows neither pools nor
//! stacks nor devices: who reads headers, changes them and brings opened devices up is elsewhere.

mod bindings;
mod clevis;
mod error;
mod info;
mod passphrase;
mod plan;
mod request;
mod slots;
pub mod strict_json;
mod tokens;

use serde_json::Value;

pub use bindings::{Binding, Bindings};
pub use error::EncryptionError;
pub use info::{Agreement, Info};
pub use passphrase::{every_passphrase, key, passphrase, random_passphrase, unlock};
pub use plan::{Plan, RebindRequest, SlotRequest, plan_bind, plan_rebind, plan_unbind};
pub use request::{BindRequest, ClevisRequest};
pub use slots::{Assigned, NewBinding, assign, requested};
pub use tokens::{
    DeviceHeader, StratisToken, clevis_token, keyring_token, read_device_header, read_pool_header, unfinished_token,
    with_keyslot,
};

use crate::engine::ops::KeyDescription;

/// Result of what this room does.
pub type Result<T> = std::result::Result<T, EncryptionError>;

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
const DEPTH_MAX: usize = 20;

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
    fn word(self) -> &'static str {
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

    /// What a binding to the same is to be made from, on another device of the pool.
    ///
    /// # Errors
    /// If the encrypted passphrase does not say what it takes.
    pub fn elsewhere(&self) -> Result<BindRequest> {
        Ok(match self {
            Mechanism::Keyring(description) => BindRequest::Keyring(description.clone()),
            Mechanism::Clevis { jwe, .. } => BindRequest::Clevis(clevis::elsewhere(jwe)?),
        })
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
