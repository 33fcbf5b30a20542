//! Assigns tokens to the bindings of a newly encrypted pool (`docs/spec/engine/encryption.md`
//! §6.2).

use std::collections::BTreeSet;

use super::{BINDINGS_MAX, BindRequest, EncryptionError, Kind, Result};
use crate::platform::luks::NUMBERS;

/// A binding to be made together with the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBinding {
    /// The requested token; `None`: a free one.
    pub token: Option<u32>,
    /// The target of the binding.
    pub request: BindRequest,
}

/// A binding with its assigned token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Its token.
    pub token: u32,
    /// The target of the binding.
    pub request: BindRequest,
}

/// Checks the requested tokens and returns them.
///
/// # Errors
/// If a token does not exist or is requested twice, or there are too many bindings.
pub fn requested(tokens: impl IntoIterator<Item = Option<u32>>) -> Result<BTreeSet<u32>> {
    let mut count = 0;
    let mut requested = BTreeSet::new();
    for token in tokens {
        count += 1;
        match token {
            Some(token) if token >= NUMBERS => return Err(EncryptionError::NoSuchSlot(token)),
            Some(token) if !requested.insert(token) => return Err(EncryptionError::SlotTwice(token)),
            _ => {}
        }
    }
    if count > BINDINGS_MAX { Err(EncryptionError::TooMany(count)) } else { Ok(requested) }
}

/// Assigns a token to each binding: first to those that request one; then the lowest free tokens to
/// the others, keyring bindings before Clevis.
///
/// # Errors
/// If no token is free, and those of [`requested`].
pub fn assign(new: Vec<NewBinding>) -> Result<Vec<Assigned>> {
    if new.is_empty() {
        return Err(EncryptionError::NoMechanism);
    }
    let taken = requested(new.iter().map(|binding| binding.token))?;
    new.iter().try_for_each(|binding| binding.request.check())?;
    let mut new = new;
    new.sort_by_key(|binding| (binding.token.is_none(), binding.request.kind() == Kind::Clevis));
    let mut free = (0..NUMBERS).filter(|number| !taken.contains(number));
    let assigned = new.into_iter().map(|NewBinding { token, request }| {
        let token = token.or_else(|| free.next()).ok_or(EncryptionError::Full)?;
        Ok(Assigned { token, request })
    });
    assigned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::encryption::{ClevisRequest, EncryptionError as E, KeyDescription};

    fn key(token: Option<u32>, description: &str) -> NewBinding {
        NewBinding { token, request: BindRequest::Keyring(KeyDescription::new(description).unwrap()) }
    }

    fn clevis(token: Option<u32>) -> NewBinding {
        let request = ClevisRequest::from_client("tpm2", serde_json::json!({})).unwrap();
        NewBinding { token, request: BindRequest::Clevis(request) }
    }

    fn told(new: Vec<NewBinding>) -> Vec<(u32, String)> {
        assign(new).unwrap().into_iter().map(|a| (a.token, a.request.to_string())).collect()
    }

    #[test]
    fn requested_tokens_first_then_the_lowest_free() {
        let c = "Clevis (tpm2, {})".to_owned();
        let k = |name: &str| format!("key description {name}");
        assert_eq!(told(vec![key(Some(1), "a"), clevis(Some(2))]), [(1, k("a")), (2, c.clone())]);
        assert_eq!(
            told(vec![clevis(None), clevis(Some(0)), key(None, "b"), key(Some(5), "a"), key(None, "b")]),
            [(5, k("a")), (0, c.clone()), (1, k("b")), (2, k("b")), (3, c)]
        );
        assert_eq!(told(vec![key(Some(31), "a")]), [(31, k("a"))]);
        assert_eq!(told(vec![clevis(None); 15]).last().unwrap().0, 14);
    }

    #[test]
    fn impossible_token_slots_are_refused() {
        assert!(matches!(assign(vec![]), Err(E::NoMechanism)));
        assert!(matches!(assign(vec![key(Some(3), "a"), clevis(Some(3))]), Err(E::SlotTwice(3))));
        assert!(matches!(assign(vec![key(Some(32), "a")]), Err(E::NoSuchSlot(32))));
        assert!(matches!(assign(vec![clevis(None); 16]), Err(E::TooMany(16))));
        assert!(matches!(assign(vec![key(None, "")]), Err(E::EmptyKeyDescription)));
    }
}
