//! The unlock methods in a LUKS2 header: the key descriptions and Clevis bindings of its tokens.
//! They are read from the bytes, which needs neither libcryptsetup nor an active device and works
//! on an image too.
//!
//! This module must never take a token for more than a hint: the engine decides what unlocks.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    engine::encryption::StratisToken,
    platform::{keyring::KEY_PREFIX, linux},
};

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Size of the binary part, which the JSON follows.
const BINARY_BYTES: u64 = 4096;
/// The largest header that LUKS2 allows.
const HEADER_BYTES_MAX: u64 = 4 << 20;

/// Unlock methods of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UnlockWays {
    /// Key descriptions.
    pub(super) keys: BTreeSet<String>,
    /// Clevis bindings: pins and servers.
    pub(super) clevis: Vec<(BTreeSet<String>, Vec<String>)>,
}

impl UnlockWays {
    /// The pins of all Clevis bindings.
    pub(super) fn pins(&self) -> impl Iterator<Item = &str> {
        self.clevis.iter().flat_map(|(pins, _)| pins).map(String::as_str)
    }

    /// The servers of all Clevis bindings.
    pub(super) fn servers(&self) -> impl Iterator<Item = &str> {
        self.clevis.iter().flat_map(|(_, servers)| servers).map(String::as_str)
    }

    /// Whether there is no unlock method.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.clevis.is_empty()
    }
}

/// The contents of the tokens of a header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// The unlock methods.
    pub(super) locks: UnlockWays,
    /// The pool and device of a version 1 device.
    pub(super) identity: Option<StratisToken>,
}

/// Reads the tokens of the header at the start of what `read` reads; `None` if there is no usable
/// header.
pub(super) fn read(mut read: impl FnMut(u64, usize) -> Option<Vec<u8>>) -> Option<Tokens> {
    let start = read(0, 16)?;
    let version: [u8; 2] = start.get(6..8)?.try_into().ok()?;
    let size = u64::from_be_bytes(start.get(8..16)?.try_into().ok()?);
    if start.get(..6)? != MAGIC || version != [0, 2] || !(BINARY_BYTES + 1..=HEADER_BYTES_MAX).contains(&size) {
        return None;
    }
    let json = read(BINARY_BYTES, usize::try_from(size - BINARY_BYTES).ok()?)?;
    let text = json.split(|byte| *byte == 0).next()?;
    let header: Value = serde_json::from_slice(text).ok()?;
    let mut tokens = Tokens::default();
    for token in header.get("tokens")?.as_object()?.values() {
        match token.get("type").and_then(Value::as_str) {
            Some("luks2-keyring") => {
                let description = token.get("key_description").and_then(Value::as_str);
                tokens.locks.keys.extend(description.and_then(|name| name.strip_prefix(KEY_PREFIX)).map(str::to_owned));
            }
            Some("clevis") => tokens.locks.clevis.extend(token.get("jwe").and_then(linux::pins_and_servers)),
            Some("stratis") => tokens.identity = StratisToken::parse(token).ok(),
            _ => {}
        }
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use serde_json::json;

    use super::*;

    /// A header with these tokens.
    pub(in crate::tools::doctor) fn header(tokens: &Value) -> Vec<u8> {
        let mut bytes = vec![0; 16384];
        bytes[..6].copy_from_slice(MAGIC);
        bytes[7] = 2;
        bytes[8..16].copy_from_slice(&16384_u64.to_be_bytes());
        let json = json!({ "tokens": tokens }).to_string();
        bytes[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        bytes
    }

    fn tokens_in(bytes: &[u8]) -> Option<Tokens> {
        read(|offset, length| {
            let from = usize::try_from(offset).ok()?;
            bytes.get(from..from.checked_add(length)?).map(<[u8]>::to_vec)
        })
    }

    #[test]
    fn keys_and_servers_are_found_in_tokens() {
        let protected = json!({ "clevis": { "pin": "tang", "tang": { "url": "http://10.0.0.1" } } }).to_string();
        let protected = BASE64URL_NOPAD.encode(protected.as_bytes());
        let bytes = header(&json!({
            "0": { "type": "luks2-keyring", "keyslots": ["0"], "key_description": "stratis-1-key-k" },
            "1": { "type": "clevis", "keyslots": ["1"], "jwe": { "protected": protected } },
            "2": { "type": "luks2-keyring", "keyslots": [], "key_description": "of another program" },
        }));
        let locks = tokens_in(&bytes).unwrap().locks;
        assert_eq!(locks.keys.iter().collect::<Vec<_>>(), ["k"]);
        assert_eq!(locks.servers().collect::<Vec<_>>(), ["http://10.0.0.1"]);
        assert_eq!(locks.pins().collect::<Vec<_>>(), ["tang"]);
    }

    #[test]
    fn other_bytes_have_no_tokens() {
        let good = header(&json!({}));
        assert_eq!(tokens_in(&good), Some(Tokens::default()));
        for (at, byte) in [(0, b'X'), (7, 1), (8, 0xff), (4096, b'!')] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(tokens_in(&bad), None, "byte {at}");
        }
        assert_eq!(tokens_in(&good[..5000]), None);
    }
}
