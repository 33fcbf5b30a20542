//! Requests of clients to bind a pool (`docs/spec/engine/encryption.md` §4).

use std::fmt;

use serde_json::Value;

use super::{
    error::{EncryptionError, Result},
    key_description::KeyDescription,
    mechanism::{DEPTH_MAX, Kind, Mechanism},
};

/// A member of a configuration that Clevis does not know: trust the keys that the servers send.
pub const TRUST_URL: &str = "stratis:tang:trust_url";

/// The target of a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindRequest {
    /// A passphrase in the kernel keyring.
    Keyring(KeyDescription),
    /// Clevis.
    Clevis(ClevisRequest),
}

/// The configuration with which Clevis encrypts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClevisRequest {
    /// The pin.
    pub pin: String,
    /// The pin's configuration, with only Clevis' own members.
    pub config: Value,
    /// Trust the keys that servers send.
    pub trust: bool,
}

impl BindRequest {
    /// The kind of the binding.
    pub fn kind(&self) -> Kind {
        match self {
            BindRequest::Keyring(_) => Kind::Keyring,
            BindRequest::Clevis(_) => Kind::Clevis,
        }
    }

    /// Whether a binding to `mechanism` fulfils the request. Clevis configurations are not
    /// compared, because the shown configuration differs from the requested one.
    pub(super) fn is_met_by(&self, mechanism: &Mechanism) -> bool {
        match (self, mechanism) {
            (BindRequest::Keyring(asked), Mechanism::Keyring(bound)) => asked == bound,
            (BindRequest::Clevis(asked), Mechanism::Clevis { pin, .. }) => asked.pin == *pin,
            _ => false,
        }
    }

    /// Refuses a key description that could not be found again: a token with an empty description
    /// does not count as a binding.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            BindRequest::Keyring(description) if description.as_str().is_empty() => {
                Err(EncryptionError::EmptyKeyDescription)
            }
            _ => Ok(()),
        }
    }
}

/// The form used in messages.
impl fmt::Display for BindRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindRequest::Keyring(description) => write!(f, "key description {description}"),
            BindRequest::Clevis(ClevisRequest { pin, config, .. }) => write!(f, "Clevis ({pin}, {config})"),
        }
    }
}

impl ClevisRequest {
    /// Makes a request from what a client sent.
    ///
    /// # Errors
    /// If the configuration is unusable, or does not say which keys to trust.
    pub fn from_client(pin: &str, mut config: Value) -> Result<ClevisRequest> {
        let trusted = is_trusted(pin, &config, 0)?;
        let asked = match (pin, config.as_object_mut()) {
            ("tang" | "sss", Some(members)) => members.remove(TRUST_URL),
            _ => None,
        };
        let trust = match asked {
            None => false,
            Some(Value::Bool(trust)) => trust,
            Some(_) => return Err(member(pin, TRUST_URL, "true or false")),
        };
        match trusted || trust {
            true => Ok(ClevisRequest { pin: pin.to_owned(), config, trust }),
            false => Err(EncryptionError::NotTrusted { pin: pin.to_owned() }),
        }
    }
}

fn member(pin: &str, member: &'static str, expected: &'static str) -> EncryptionError {
    EncryptionError::Member { pin: pin.to_owned(), member, expected }
}

/// Whether a configuration says for every server which keys to trust.
fn is_trusted(pin: &str, config: &Value, depth: usize) -> Result<bool> {
    if depth > DEPTH_MAX {
        return Err(EncryptionError::TooDeep);
    }
    if !["tang", "tpm2", "sss"].contains(&pin) {
        return Err(EncryptionError::Pin(pin.to_owned()));
    }
    let members = config.as_object().ok_or_else(|| EncryptionError::NotAnObject { pin: pin.to_owned() })?;
    match pin {
        "tang" => {
            if !members.get("url").is_some_and(Value::is_string) {
                return Err(member(pin, "url", "the address of a Tang server"));
            }
            match (members.get("thp"), members.get("adv")) {
                (Some(Value::String(_)), _) => Ok(true),
                (Some(_), _) => Err(member(pin, "thp", "a thumbprint")),
                (None, Some(adv)) => Ok(adv.is_string() || adv.is_object()),
                (None, None) => Ok(false),
            }
        }
        "sss" => {
            let pins = members.get("pins").and_then(Value::as_object);
            let pins = pins.ok_or_else(|| member(pin, "pins", "an object of pins and their configurations"))?;
            // Check all of them: the error must name a mistake in a later one even if an earlier
            // one is not trusted.
            pins.iter().try_fold(true, |trusted, (pin, config)| Ok(are_trusted(pin, config, depth + 1)? && trusted))
        }
        _ => Ok(true),
    }
}

/// As [`is_trusted`], for the value of a pin in `sss`: one configuration, or a list of them, each
/// for a share of its own.
fn are_trusted(pin: &str, configs: &Value, depth: usize) -> Result<bool> {
    match configs {
        Value::Array(configs) if configs.is_empty() => Err(EncryptionError::NoShare { pin: pin.to_owned() }),
        Value::Array(configs) => {
            configs.iter().try_fold(true, |trusted, config| Ok(is_trusted(pin, config, depth)? && trusted))
        }
        config => is_trusted(pin, config, depth),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
