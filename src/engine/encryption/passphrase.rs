//! Coming by passphrases: from the kernel's keyring, from Clevis, by chance (`spec/engine/encryption.md` §6.1, 6.3, 7.2).
//!
//! What a passphrase is used for is the caller's: it is handed to a closure, and the next one is tried when it does not fit.

use zeroize::Zeroizing;

use super::{Binding, Bindings, EncryptionError, Kind, Mechanism, Result, UnlockMethod};
use crate::{
    engine::ops::KeyDescription,
    platform::{
        self, Platform,
        keyring::Secret,
        luks::{PASSPHRASE_BYTES_MAX, Unlock},
    },
};

/// What random passphrases consist of. Clevis takes them on a line, and the existing daemon makes them so.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A passphrase that nobody knows, of letters and digits, as long as may be.
pub fn random_passphrase(platform: &dyn Platform) -> Secret {
    // Never grown: what it has outgrown would not be wiped.
    let mut text = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX));
    while text.len() < PASSPHRASE_BYTES_MAX {
        let chance = Zeroizing::new(platform.random());
        // Six bits of a byte stand for a character or for nothing, so that none is likelier than another.
        let drawn = chance.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)).copied());
        let room = PASSPHRASE_BYTES_MAX - text.len();
        text.extend(drawn.take(room));
    }
    Secret::new(text)
}

/// A passphrase in the kernel's keyring.
///
/// # Errors
/// If it is not there.
pub fn key(platform: &dyn Platform, description: &KeyDescription) -> Result<Secret> {
    let found = platform.key_read(&description.in_kernel())?;
    found.ok_or_else(|| EncryptionError::KeyMissing(description.clone()))
}

/// The passphrase of a binding. Clevis may take long.
///
/// # Errors
/// If it cannot be had.
pub fn passphrase(platform: &dyn Platform, mechanism: &Mechanism) -> Result<Secret> {
    match mechanism {
        Mechanism::Keyring(description) => key(platform, description),
        Mechanism::Clevis { jwe, .. } => Ok(platform.clevis_decrypt(jwe)?),
    }
}

/// The passphrases of all bindings, in their order.
///
/// # Errors
/// If one cannot be had; says which.
pub fn every_passphrase(platform: &dyn Platform, bindings: &Bindings) -> Result<Vec<(Binding, Secret)>> {
    let each = bindings.iter().map(|binding| match passphrase(platform, &binding.mechanism) {
        Ok(secret) => Ok((binding.clone(), secret)),
        Err(error) => Err(EncryptionError::NothingWorks(vec![(binding.to_string(), error)])),
    });
    each.collect()
}

/// Opens something with a passphrase: the one that was given, or each that can be had, in turn, until one fits. Keys of the
/// kernel's keyring come before Clevis, which may have to wait for servers.
///
/// # Errors
/// If nothing fits, with the reason for each; if `open` fails for another reason than the passphrase, then with that at once.
pub fn unlock<T>(
    platform: &dyn Platform,
    bindings: &Bindings,
    method: UnlockMethod,
    given: Option<&Secret>,
    open: impl FnMut(Unlock<'_>) -> platform::Result<T>,
) -> Result<T> {
    try_each(bindings, method, given, |mechanism| passphrase(platform, mechanism), open)
}

fn try_each<T>(
    bindings: &Bindings,
    method: UnlockMethod,
    given: Option<&Secret>,
    mut obtain: impl FnMut(&Mechanism) -> Result<Secret>,
    mut open: impl FnMut(Unlock<'_>) -> platform::Result<T>,
) -> Result<T> {
    let candidates: Vec<&Binding> = match method {
        UnlockMethod::Token(token) => vec![bindings.get(token).ok_or(EncryptionError::NothingInSlot(token))?],
        UnlockMethod::Kind(kind) => {
            // Those who name a kind may mean the token that it has in version 1, whatever holds that here.
            let meant = |binding: &&Binding| binding.kind() == kind || binding.token == kind.fixed_token();
            let found: Vec<&Binding> = bindings.iter().filter(meant).collect();
            if found.is_empty() {
                return Err(EncryptionError::NothingOfKind(kind));
            }
            found
        }
        UnlockMethod::Any => {
            let of = |kind| bindings.iter().filter(move |binding| binding.kind() == kind);
            of(Kind::Keyring).chain(of(Kind::Clevis)).collect()
        }
    };
    if let Some(passphrase) = given {
        let keyslot = match (method, &candidates[..]) {
            (UnlockMethod::Token(_), [binding]) => keyslot(binding),
            _ => None,
        };
        return Ok(open(Unlock { passphrase, keyslot })?);
    }
    let mut failures = Vec::new();
    for binding in candidates {
        let error = match obtain(&binding.mechanism) {
            Ok(passphrase) => match open(Unlock { passphrase: &passphrase, keyslot: keyslot(binding) }) {
                Ok(opened) => return Ok(opened),
                Err(error @ platform::Error::WrongKey { .. }) => error.into(),
                Err(error) => return Err(error.into()),
            },
            Err(error) => error,
        };
        failures.push((binding.to_string(), error));
    }
    Err(EncryptionError::NothingWorks(failures))
}

/// The keyslot to try. While the volume key is being replaced either of the two may be the one that counts.
fn keyslot(binding: &Binding) -> Option<u32> {
    binding.next.is_none().then_some(binding.keyslot)
}

#[cfg(test)]
#[path = "passphrase_tests.rs"]
mod tests;
