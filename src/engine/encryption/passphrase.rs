//! Gets passphrases: from the kernel keyring, from Clevis, or at random
//! (`docs/spec/engine/encryption.md` §6.1, 6.3, 7.2).
//!
//! The caller passes a closure that uses the passphrase. If the passphrase does not fit, the next
//! one is tried.

use zeroize::Zeroizing;

use super::{Binding, Bindings, EncryptionError, Kind, Mechanism, Result, UnlockMethod};
use crate::{
    engine::encryption::KeyDescription,
    platform::{
        self, Platform,
        keyring::Secret,
        luks::{PASSPHRASE_BYTES_MAX, Unlock},
    },
};

/// The characters of random passphrases. Clevis takes a passphrase as one line, and the existing
/// daemon uses the same characters.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A random passphrase of letters and digits, of the greatest allowed length.
pub fn random_passphrase(platform: &dyn Platform) -> Secret {
    // The buffer must never grow: growth would leave an old buffer behind that is not wiped.
    let mut text = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX));
    while text.len() < PASSPHRASE_BYTES_MAX {
        let chance = Zeroizing::new(platform.random());
        // Six bits of a byte stand for one character or for none, so that all characters are
        // equally likely.
        let drawn = chance.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)).copied());
        let room = PASSPHRASE_BYTES_MAX - text.len();
        text.extend(drawn.take(room));
    }
    Secret::new(text)
}

/// Reads a passphrase from the kernel keyring.
///
/// # Errors
/// If the keyring does not have the key.
pub fn key(platform: &dyn Platform, description: &KeyDescription) -> Result<Secret> {
    let found = platform.key_read(&description.in_kernel())?;
    found.ok_or_else(|| EncryptionError::KeyMissing(description.clone()))
}

/// Gets the passphrase of a binding. Clevis may take a long time.
///
/// # Errors
/// If the passphrase cannot be obtained.
pub fn passphrase(platform: &dyn Platform, mechanism: &Mechanism) -> Result<Secret> {
    match mechanism {
        Mechanism::Keyring(description) => key(platform, description),
        Mechanism::Clevis { jwe, .. } => Ok(platform.clevis_decrypt(jwe)?),
    }
}

/// Receives the result for each of several bindings: its index, and the passphrase or the error.
/// Returns `true` when no more are needed.
type Take<'a> = dyn FnMut(usize, Result<Secret>) -> bool + 'a;

/// Gets passphrases: first keys of the kernel keyring, in order, then all those that Clevis has to
/// decrypt, in parallel, each as it arrives. So one server that answers is enough, and a silent
/// server delays no other binding.
fn obtain_each(platform: &dyn Platform, mechanisms: &[&Mechanism], take: &mut Take<'_>) {
    let (mut numbers, mut jwes) = (Vec::new(), Vec::new());
    for (number, mechanism) in mechanisms.iter().enumerate() {
        match mechanism {
            Mechanism::Keyring(description) => {
                if take(number, key(platform, description)) {
                    return;
                }
            }
            Mechanism::Clevis { jwe, .. } => {
                numbers.push(number);
                jwes.push(jwe);
            }
        }
    }
    platform.clevis_decrypt_each(&jwes, &mut |nth, found| take(numbers[nth], found.map_err(EncryptionError::from)));
}

/// Gets the passphrases of all bindings, in their order.
///
/// # Errors
/// If one cannot be obtained. The error names the binding.
pub fn every_passphrase(platform: &dyn Platform, bindings: &Bindings) -> Result<Vec<(Binding, Secret)>> {
    let all: Vec<&Binding> = bindings.iter().collect();
    let mechanisms: Vec<&Mechanism> = all.iter().map(|binding| &binding.mechanism).collect();
    let mut found: Vec<Option<Secret>> = all.iter().map(|_| None).collect();
    let mut failed = None;
    obtain_each(platform, &mechanisms, &mut |number, obtained| {
        match obtained {
            Ok(secret) => found[number] = Some(secret),
            Err(error) => failed = Some((all[number].to_string(), error)),
        }
        failed.is_some()
    });
    if let Some(failed) = failed {
        return Err(EncryptionError::NothingWorks(vec![failed]));
    }
    Ok(all.into_iter().zip(found).filter_map(|(binding, secret)| Some((binding.clone(), secret?))).collect())
}

/// Calls `open` with a passphrase: with the given one, or with each available one, as it arrives,
/// until one fits. Keys of the kernel keyring come before Clevis, which may have to wait for
/// servers.
///
/// # Errors
/// If no passphrase fits, with the reason for each. If `open` fails for any other reason, with that
/// error at once.
pub fn unlock<T>(
    platform: &dyn Platform,
    bindings: &Bindings,
    method: UnlockMethod,
    given: Option<&Secret>,
    open: impl FnMut(Unlock<'_>) -> platform::Result<T>,
) -> Result<T> {
    try_each(bindings, method, given, |mechanisms, take| obtain_each(platform, mechanisms, take), open)
}

fn try_each<T>(
    bindings: &Bindings,
    method: UnlockMethod,
    given: Option<&Secret>,
    obtain: impl FnOnce(&[&Mechanism], &mut Take<'_>),
    mut open: impl FnMut(Unlock<'_>) -> platform::Result<T>,
) -> Result<T> {
    let candidates: Vec<&Binding> = match method {
        UnlockMethod::Token(token) => vec![bindings.get(token).ok_or(EncryptionError::NothingInSlot(token))?],
        UnlockMethod::Kind(kind) => {
            // A client that names a kind may mean the token of that kind in version 1, whatever
            // this token is in this header.
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
    let mechanisms: Vec<&Mechanism> = candidates.iter().map(|binding| &binding.mechanism).collect();
    let mut failures: Vec<Option<EncryptionError>> = candidates.iter().map(|_| None).collect();
    let mut opened = None;
    obtain(&mechanisms, &mut |number, obtained| {
        let error = match obtained {
            Ok(passphrase) => match open(Unlock { passphrase: &passphrase, keyslot: keyslot(candidates[number]) }) {
                Err(error @ platform::Error::WrongKey { .. }) => error.into(),
                // Either the LUKS device is open, or no passphrase would open it.
                other => {
                    opened = Some(other);
                    return true;
                }
            },
            Err(error) => error,
        };
        failures[number] = Some(error);
        false
    });
    if let Some(opened) = opened {
        return Ok(opened?);
    }
    let told = candidates.iter().zip(failures).filter_map(|(binding, error)| Some((binding.to_string(), error?)));
    Err(EncryptionError::NothingWorks(told.collect()))
}

/// The keyslot to try. While the volume key is being replaced, either of the two may be the valid
/// one.
fn keyslot(binding: &Binding) -> Option<u32> {
    binding.next.is_none().then_some(binding.keyslot)
}

#[cfg(test)]
#[path = "passphrase_tests.rs"]
mod tests;
