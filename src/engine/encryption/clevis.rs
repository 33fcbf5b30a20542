//! What the encrypted passphrases of Clevis say about how they were made: the pin and its
//! configuration, in the protected header of a JWE (`docs/spec/engine/encryption.md` §2.4). This
//! module does not decrypt anything.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    error::{EncryptionError, Result},
    mechanism::{DEPTH_MAX, Mechanism},
    request::{BindRequest, ClevisRequest},
};

const NO_HEADER: EncryptionError = EncryptionError::Jwe("it has no readable header");

/// The purpose of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConfigPurpose {
    /// For display to clients.
    Shown,
    /// For encrypting the passphrase again, with the keys that the servers have now.
    Renewal,
    /// For encrypting on another device, with the keys that are already trusted.
    Elsewhere,
}

/// Pin and configuration for display to clients.
///
/// # Errors
/// If the JWE does not contain them, or the pin is unknown.
pub(super) fn shown(jwe: &Value) -> Result<(String, Value)> {
    of_object(jwe, ConfigPurpose::Shown)
}

impl ClevisRequest {
    /// The request that renews the binding with this encrypted passphrase. If the servers have new
    /// keys, the request trusts these: that is the purpose of `clevis luks regen`.
    ///
    /// # Errors
    /// If the JWE does not say how it was made.
    pub fn renewal(jwe: &Value) -> Result<ClevisRequest> {
        of_object(jwe, ConfigPurpose::Renewal).map(|(pin, config)| ClevisRequest { pin, config, trust: true })
    }

    /// The request that makes the same binding on another device. The servers must still have the
    /// same keys.
    ///
    /// # Errors
    /// Those of [`ClevisRequest::renewal`].
    fn elsewhere(jwe: &Value) -> Result<ClevisRequest> {
        of_object(jwe, ConfigPurpose::Elsewhere).map(|(pin, config)| ClevisRequest { pin, config, trust: false })
    }
}

impl Mechanism {
    /// The request that makes the same binding on another device of the pool.
    ///
    /// # Errors
    /// If the encrypted passphrase does not say how it was made.
    pub fn elsewhere(&self) -> Result<BindRequest> {
        Ok(match self {
            Mechanism::Keyring(description) => BindRequest::Keyring(description.clone()),
            Mechanism::Clevis { jwe, .. } => BindRequest::Clevis(ClevisRequest::elsewhere(jwe)?),
        })
    }
}

fn of_object(jwe: &Value, purpose: ConfigPurpose) -> Result<(String, Value)> {
    let protected = jwe.get("protected").and_then(Value::as_str).ok_or(NO_HEADER)?;
    of_header(protected, purpose, 0)
}

fn of_header(protected: &str, purpose: ConfigPurpose, depth: usize) -> Result<(String, Value)> {
    if depth > DEPTH_MAX {
        return Err(EncryptionError::TooDeep);
    }
    let bytes = BASE64URL_NOPAD.decode(protected.as_bytes()).map_err(|_| NO_HEADER)?;
    let header: Value = serde_json::from_slice(&bytes).map_err(|_| NO_HEADER)?;
    let pin = header["clevis"]["pin"].as_str().ok_or(EncryptionError::Jwe("it names no pin"))?;
    let made_with = &header["clevis"][pin];
    let config = match pin {
        "tang" => tang(made_with, purpose)?,
        "tpm2" => tpm2(made_with, purpose)?,
        "sss" => sss(made_with, purpose, depth)?,
        _ => return Err(EncryptionError::JwePin(pin.to_owned())),
    };
    Ok((pin.to_owned(), config))
}

fn tang(made_with: &Value, purpose: ConfigPurpose) -> Result<Value> {
    let url = made_with["url"].as_str().ok_or(EncryptionError::Jwe("it names no Tang server"))?;
    Ok(match purpose {
        ConfigPurpose::Renewal => json!({ "url": url }),
        ConfigPurpose::Shown | ConfigPurpose::Elsewhere => json!({ "url": url, "thp": thumbprint(&made_with["adv"])? }),
    })
}

/// Leaves out the TPM's own values of the old passphrase. The user's choices stay.
fn tpm2(made_with: &Value, purpose: ConfigPurpose) -> Result<Value> {
    if purpose == ConfigPurpose::Shown {
        return Ok(Value::Object(Map::new()));
    }
    let mut config = made_with.as_object().ok_or(EncryptionError::Jwe("it names no TPM values"))?.clone();
    config.retain(|key, _| key != "jwk_pub" && key != "jwk_priv");
    Ok(Value::Object(config))
}

fn sss(made_with: &Value, purpose: ConfigPurpose, depth: usize) -> Result<Value> {
    let parts = made_with["jwe"].as_array().ok_or(EncryptionError::Jwe("it has no parts"))?;
    let threshold = made_with["t"].as_u64().ok_or(EncryptionError::Jwe("it does not say how many parts it takes"))?;
    let mut pins: Map<String, Value> = Map::new();
    for part in parts {
        let part = part.as_str().ok_or(EncryptionError::Jwe("a part of it is not a string"))?;
        let (protected, _) = part.split_once('.').ok_or(EncryptionError::Jwe("a part of it is not complete"))?;
        let (pin, config) = of_header(protected, purpose, depth + 1)?;
        match pins.entry(pin).or_insert_with(|| Value::Array(Vec::new())) {
            Value::Array(list) => list.push(config),
            _ => unreachable!("only lists are put in"),
        }
    }
    Ok(json!({ "t": threshold, "pins": pins }))
}

/// The thumbprint of the key that signs a Tang server's advertisement: a hash of its public members
/// as in RFC 7638.
fn thumbprint(advertisement: &Value) -> Result<String> {
    let signs = |key: &&Value| key["key_ops"] == json!(["verify"]);
    let key = advertisement["keys"].as_array().and_then(|keys| keys.iter().find(signs));
    let mut key = key.and_then(Value::as_object).ok_or(EncryptionError::Jwe("it has no signing key"))?.clone();
    key.retain(|member, _| member != "key_ops" && member != "alg");
    // Maps keep their keys sorted, and each number and text has only one written form.
    Ok(BASE64URL_NOPAD.encode(&Sha256::digest(Value::Object(key).to_string())))
}

#[cfg(test)]
#[path = "clevis_tests.rs"]
pub(in crate::engine::encryption) mod tests;
