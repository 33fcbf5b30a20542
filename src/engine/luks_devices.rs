//! LUKS devices of pools: that of a whole pool on its cap device (version 2), those below the
//! members (version 1), and volume keys in the daemon's keyring.
//!
//! The values behind a header (bindings, tokens, mechanisms, decisions) are in `encryption/`, which
//! makes no call of the platform but to get a passphrase.

pub mod device;
pub mod lifecycle;
pub mod volume_keys;
