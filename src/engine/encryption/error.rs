//! Why a binding is refused, cannot be read, or does not work.

use std::path::PathBuf;

use crate::{
    base::{error_chain, name::shortened},
    engine::encryption::{
        key_description::KeyDescription,
        mechanism::{BINDINGS_MAX, DEPTH_MAX, Kind},
    },
    platform::{self, luks::NUMBERS},
};

/// Result of the functions in this module.
pub type Result<T> = std::result::Result<T, EncryptionError>;

/// Why a binding is refused, cannot be read, or does not work.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum EncryptionError {
    // ---- a header with nothing usable ----
    #[error(
        "the LUKS2 header has no token that says which Stratis pool the device belongs to; if it is one of a pool, restore the \
         header from a backup"
    )]
    NoStratisToken,
    #[error(
        "the LUKS2 header's token that says which Stratis pool the device belongs to cannot be used ({0}); restore the header \
         from a backup"
    )]
    StratisToken(String),
    #[error(
        "the LUKS2 header's token {token} is of type `{}`, where one of type `{expected}` should be; restore the header from a \
         backup", shortened(.found)
    )]
    TokenType { token: u32, found: String, expected: &'static str },
    #[error("the LUKS2 header has no token that can unlock a Stratis pool; restore the header from a backup")]
    NoBinding,
    #[error(
        "token {token} of the LUKS2 header is linked to {count} keyslots instead of one; remove the token and bind again, or \
         restore the header from a backup"
    )]
    Keyslots { token: u32, count: usize },
    #[error(
        "cannot use the encrypted passphrase that Clevis wrote ({0}); bind to Clevis again, or restore the LUKS2 header from a \
         backup"
    )]
    Jwe(&'static str),
    #[error("Clevis pin `{}` is unknown; bind to tang, tpm2 or sss instead", shortened(.0))]
    JwePin(String),

    // ---- a configuration of Clevis from a client ----
    #[error("Clevis pin `{}` cannot be used; choose tang, tpm2 or sss", shortened(.0))]
    Pin(String),
    #[error("the Clevis configuration for {pin} must be a JSON object; correct it")]
    NotAnObject { pin: String },
    #[error("in the Clevis configuration for {pin}, `{member}` must be {expected}; correct it")]
    Member { pin: String, member: &'static str, expected: &'static str },
    #[error(
        "the Clevis configuration for sss has an empty list for `{}`; give it one configuration or more, or leave it out",
        shortened(.pin)
    )]
    NoShare { pin: String },
    #[error("the Clevis configuration is nested more than {DEPTH_MAX} levels deep; use a simpler one")]
    TooDeep,
    #[error(
        "the Clevis configuration for {pin} does not say which keys of its Tang servers to trust; give each server's thumbprint \
         as `thp` or its advertisement as `adv`, or set `stratis:tang:trust_url` to true to trust what they send"
    )]
    NotTrusted { pin: String },

    // ---- slots ----
    #[error("token slot {0} is named twice; name each slot once")]
    SlotTwice(u32),
    #[error("there is no token slot {0}; choose a number below {NUMBERS}")]
    NoSuchSlot(u32),
    #[error("{0} unlock methods were requested, and a pool can have {BINDINGS_MAX}; choose fewer")]
    TooMany(usize),
    #[error("no unlock method was given; name a key description or a Clevis configuration")]
    NoMechanism,
    #[error("all {BINDINGS_MAX} token slots of the pool are in use; unbind one first")]
    Full,
    #[error("pools of metadata version 1 do not let token slots be chosen; name none")]
    SlotsNeedVersion2,
    #[error("token slot {token} holds a binding to {}, not to {}; name another slot", .bound.word(), .asked.word())]
    OtherKind { token: u32, bound: Kind, asked: Kind },
    #[error("token slot {0} holds a token that does not belong to Stratis; name another slot")]
    Foreign(u32),
    #[error("token slot {0} is empty; name one that holds a binding")]
    EmptySlot(u32),

    // ---- bindings ----
    #[error("the key description is empty; choose one of at least one character")]
    EmptyKeyDescription,
    #[error(
        "the pool is bound to {bound} already, not to {asked}; unbind or rebind that, or bind to another token slot"
    )]
    BoundOtherwise { bound: String, asked: String },
    #[error("the pool has no binding to {} to replace; bind it first", .0.word())]
    NoSource(Kind),
    #[error("cannot remove the last unlock method of the pool; bind another one first")]
    LastBinding,
    #[error(
        "the devices of the pool do not agree on its binding to {}; stop and start the pool, which repairs interrupted changes, \
         and if they still do not agree, restore their LUKS2 headers from backups",
        .0.word()
    )]
    Inconsistent(Kind),
    #[error("some devices of the pool are encrypted and some are not; disconnect those that do not belong to it")]
    Mixed,

    // ---- passphrases ----
    #[error("key {0} is not in the kernel's keyring; set it first")]
    KeyMissing(KeyDescription),
    #[error("token slot {0} holds no binding that can unlock the pool; name another slot, or none")]
    NothingInSlot(u32),
    #[error("the pool has no binding to {}; choose the other unlock method, or `any`", .0.word())]
    NothingOfKind(Kind),
    #[error("nothing opens it: {}", attempts(.0))]
    NothingWorks(Vec<(String, EncryptionError)>),
    #[error("there are not enough free keyslots for a new volume key; remove some of the bindings")]
    NoKeyslots,
    #[error("there is no LUKS2 header on {}; restore it from a backup if there is one", .0.display())]
    NoHeader(PathBuf),
    #[error(transparent)]
    Platform(#[from] platform::Error),
}

impl EncryptionError {
    /// Whether the cause was a device in use.
    pub fn is_busy(&self) -> bool {
        matches!(self, EncryptionError::Platform(error) if error.is_busy())
    }
}

fn attempts(attempts: &[(String, EncryptionError)]) -> String {
    let told =
        attempts.iter().map(|(with, error)| format!("with {} ({})", shortened(with), error_chain::sentence(error)));
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_errors_say_what_to_do() {
        use EncryptionError as E;
        let wrong = [
            E::NoStratisToken,
            E::StratisToken("`pool_uuid` is missing".to_owned()),
            E::TokenType { token: 1, found: "clevis".to_owned(), expected: "luks2-keyring" },
            E::NoBinding,
            E::Keyslots { token: 1, count: 3 },
            E::Jwe("it names no pin"),
            E::JwePin("yubikey".to_owned()),
            E::Inconsistent(Kind::Clevis),
            E::Mixed,
            E::NoHeader("/dev/a".into()),
        ];
        for error in wrong {
            let text = error.to_string();
            let (what, remedy) = text.split_once("; ").unwrap_or_else(|| panic!("{text}"));
            let verbs = ["restore", "bind", "remove", "if it is", "stop and start", "disconnect"];
            assert!(!what.is_empty() && verbs.iter().any(|verb| remedy.starts_with(verb)), "{text}");
        }
    }
}
