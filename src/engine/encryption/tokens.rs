//! Reads and writes the tokens of a LUKS2 header (`docs/spec/engine/encryption.md` §2.1 to 2.3).
//!
//! A token that should be a binding but is unusable (no keyslot, three of them, an unknown pin) is
//! left out, and logged: the other tokens unlock the pool without it. Its number counts as taken.

use serde_json::{Value, json};

use super::{
    Binding, Bindings, CLEVIS_TOKEN, EncryptionError, KEYRING_TOKEN, Mechanism, Result, STRATIS_TOKEN,
    UNFINISHED_TOKEN, clevis,
};
use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        name::shortened,
    },
    engine::{dm_names, encryption::KeyDescription},
    platform::luks::{Header, NUMBERS},
};

const STRATIS: &str = "stratis";
const KEYRING: &str = "luks2-keyring";
const CLEVIS: &str = "clevis";
const UNFINISHED: &str = "stratis-unfinished";

/// The header of a version 1 LUKS device: the pool and member it belongs to, and its bindings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceHeader {
    /// The token that names pool and device.
    pub token: StratisToken,
    /// The bindings, at most one of each kind.
    pub bindings: Bindings,
    /// The header carries the mark of an uninitialized device.
    pub unfinished: bool,
}

/// The token that names the pool and the device on a version 1 device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StratisToken {
    /// Name of the crypt device.
    pub activation_name: String,
    /// The pool.
    pub pool: PoolUuid,
    /// The device.
    pub device: DevUuid,
    /// Name of the pool, which old daemons did not write.
    pub pool_name: Option<String>,
}

impl StratisToken {
    /// Makes the token for a device of a pool with that name.
    pub fn new(pool: PoolUuid, device: DevUuid, pool_name: &str) -> StratisToken {
        let activation_name = dm_names::opened_device(device);
        StratisToken { activation_name, pool, device, pool_name: Some(pool_name.to_owned()) }
    }

    /// The JSON form for a header.
    pub fn to_value(&self) -> Value {
        let mut token = json!({
            "type": STRATIS,
            "keyslots": [],
            "activation_name": self.activation_name,
            "pool_uuid": self.pool.hyphenated(),
            "device_uuid": self.device.hyphenated(),
        });
        if let Some(name) = &self.pool_name {
            token["pool_name"] = Value::from(name.as_str());
        }
        token
    }

    /// Parses a token.
    ///
    /// # Errors
    /// If a key is unexpected or missing, or has a wrong type.
    pub fn parse(token: &Value) -> Result<StratisToken> {
        let wrong = |why: String| EncryptionError::StratisToken(why);
        let object = token.as_object().ok_or_else(|| wrong("it is not an object".to_owned()))?;
        let text = |key: &'static str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(wrong(format!("`{key}` is not a string"))),
            None => Err(wrong(format!("`{key}` is missing"))),
        };
        const KEYS: [&str; 6] = ["type", "keyslots", "activation_name", "pool_uuid", "device_uuid", "pool_name"];
        if let Some(unknown) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(wrong(format!("`{}` is unknown", shortened(unknown))));
        }
        if text("type")? != STRATIS {
            return Err(wrong(format!("its type is `{}`", shortened(text("type")?))));
        }
        if object.get("keyslots").and_then(Value::as_array).is_none_or(|slots| !slots.is_empty()) {
            return Err(wrong("`keyslots` is not an empty list".to_owned()));
        }
        let uuid = |key| {
            let text = text(key)?;
            text.parse::<uuid::Uuid>().map_err(|_| wrong(format!("`{key}` is not a UUID")))
        };
        Ok(StratisToken {
            activation_name: text("activation_name")?.to_owned(),
            pool: uuid("pool_uuid")?.into(),
            device: uuid("device_uuid")?.into(),
            pool_name: object.get("pool_name").map(|_| text("pool_name").map(str::to_owned)).transpose()?,
        })
    }
}

/// A keyring token for one keyslot.
pub fn keyring_token(description: &KeyDescription, keyslot: u32) -> Value {
    json!({ "type": KEYRING, "keyslots": [keyslot.to_string()], "key_description": description.in_kernel() })
}

/// A Clevis token for one keyslot.
pub fn clevis_token(jwe: Value, keyslot: u32) -> Value {
    json!({ "type": CLEVIS, "keyslots": [keyslot.to_string()], "jwe": jwe })
}

/// The mark of a LUKS device that is not initialized.
pub fn unfinished_token() -> Value {
    json!({ "type": UNFINISHED, "keyslots": [] })
}

/// The token with one more keyslot at the end of its list.
pub fn with_keyslot(token: &Value, keyslot: u32) -> Value {
    let mut token = token.clone();
    if let Some(keyslots) = token.get_mut("keyslots").and_then(Value::as_array_mut) {
        keyslots.push(Value::from(keyslot.to_string()));
    }
    token
}

/// Parses the header of a version 1 LUKS device.
///
/// # Errors
/// If the device is not Stratis', or no binding in the header can unlock it.
pub fn read_device_header(header: &Header) -> Result<DeviceHeader> {
    let token = StratisToken::parse(header.tokens.get(&STRATIS_TOKEN).ok_or(EncryptionError::NoStratisToken)?)?;
    if let Some(found) = header.tokens.get(&KEYRING_TOKEN).map(type_of).filter(|found| *found != Some(KEYRING)) {
        let found = found.unwrap_or_default().to_owned();
        return Err(EncryptionError::TokenType { token: KEYRING_TOKEN, found, expected: KEYRING });
    }
    let fixed = |number: &u32, token: &Value| match *number {
        KEYRING_TOKEN => type_of(token) == Some(KEYRING),
        CLEVIS_TOKEN => type_of(token) == Some(CLEVIS),
        _ => false,
    };
    let unfinished = header.tokens.get(&UNFINISHED_TOKEN).and_then(type_of) == Some(UNFINISHED);
    Ok(DeviceHeader { token, bindings: read_bindings(header, fixed)?, unfinished })
}

/// Parses the header of a version 2 pool.
///
/// # Errors
/// If no binding in the header can unlock the pool.
pub fn read_pool_header(header: &Header) -> Result<Bindings> {
    read_bindings(header, |_, _| true)
}

fn read_bindings(header: &Header, counts: impl Fn(&u32, &Value) -> bool) -> Result<Bindings> {
    let mut found = Vec::new();
    for (number, token) in header.tokens.iter().filter(|(number, token)| counts(number, token)) {
        match read_binding(header, *number, token) {
            Ok(binding) => found.extend(binding),
            Err(error) => log::warn!("ignoring token {number} of a LUKS2 header: {error}"),
        }
    }
    match found.is_empty() {
        true => Err(EncryptionError::NoBinding),
        false => Ok(Bindings::new(found, header.tokens.keys().copied().collect())),
    }
}

fn type_of(token: &Value) -> Option<&str> {
    token.get("type").and_then(Value::as_str)
}

/// Parses a binding. `None`: the token belongs to other software.
fn read_binding(header: &Header, number: u32, token: &Value) -> Result<Option<Binding>> {
    let mechanism = match type_of(token) {
        Some(KEYRING) => {
            let name = token.get("key_description").and_then(Value::as_str);
            match name.and_then(KeyDescription::from_kernel) {
                Some(description) => Mechanism::Keyring(description),
                None => return Ok(None),
            }
        }
        Some(CLEVIS) => {
            let jwe = token.get("jwe").unwrap_or(&Value::Null);
            let (pin, config) = clevis::shown(jwe)?;
            Mechanism::Clevis { jwe: jwe.clone(), pin, config }
        }
        Some(other) => {
            log::info!("ignoring token {number} of a LUKS2 header, which has the unknown type `{}`", shortened(other));
            return Ok(None);
        }
        None => {
            log::warn!("ignoring token {number} of a LUKS2 header, which has no type");
            return Ok(None);
        }
    };
    let (keyslot, next) = keyslots(header, number, token)?;
    Ok(Some(Binding { token: number, keyslot, next, mechanism }))
}

/// The keyslot of the current volume key, and that of the next one. The next keyslot was added
/// after the current one. Until it is put in place, it counts as unused, as do keyslots left by an
/// interrupted attempt.
fn keyslots(header: &Header, number: u32, token: &Value) -> Result<(u32, Option<u32>)> {
    let listed = token.get("keyslots").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let error = || EncryptionError::Keyslots { token: number, count: listed.len() };
    let numbers = listed.iter().map(|slot| keyslot(slot.as_str()?)).collect::<Option<Vec<u32>>>().ok_or_else(error)?;
    let (unused, used): (Vec<u32>, Vec<u32>) = numbers.iter().partition(|slot| header.unused.contains(slot));
    match used[..] {
        [keyslot] => Ok((keyslot, unused.last().copied())),
        [keyslot, next] if keyslot != next => Ok((keyslot, Some(next))),
        _ => Err(error()),
    }
}

fn keyslot(text: &str) -> Option<u32> {
    let decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| decimal && *number < NUMBERS)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
