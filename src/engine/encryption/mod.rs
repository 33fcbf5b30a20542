//! Encryption as values: what the tokens of LUKS2 headers say about unlocking a pool, how requests
//! change them, and where passphrases come from (`docs/spec/engine/encryption.md` §2 to 4, 6.2,
//! 6.3, 7).
//!
//! This module is pure except for [`unlock`] and related functions, which ask a
//! [`Platform`](crate::platform::Platform) for keys. It does not depend on pools, stacks or
//! devices. Other modules read and change headers and bring up crypt devices.

mod bindings;
mod clevis;
mod error;
mod info;
mod key_description;
mod mechanism;
mod passphrase;
mod plan;
mod request;
mod slots;
pub mod strict_json;
mod tokens;

pub use bindings::{Binding, Bindings};
pub use error::{EncryptionError, Result};
pub use info::{Agreement, Info};
pub use key_description::{KeyDescription, KeyDescriptionError};
pub use mechanism::{
    BINDINGS_MAX, CLEVIS_TOKEN, KEYRING_TOKEN, Kind, Mechanism, STRATIS_TOKEN, UNFINISHED_TOKEN, UnlockMethod,
};
pub use passphrase::{every_passphrase, key, passphrase, random_passphrase, unlock};
pub use plan::{BindingPlan, RebindRequest, SlotRequest, plan_bind, plan_rebind, plan_unbind};
pub use request::{BindRequest, ClevisRequest, TRUST_URL};
pub use slots::{Assigned, NewBinding, assign, requested};
pub use tokens::{
    DeviceHeader, StratisToken, clevis_token, keyring_token, read_device_header, read_pool_header, unfinished_token,
    with_keyslot,
};
