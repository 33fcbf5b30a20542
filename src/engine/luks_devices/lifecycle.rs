//! The LUKS devices of pools: their layout, how they are made, opened and wiped, and what their
//! headers say about how a pool can be unlocked (`docs/spec/engine/encryption.md` §1, 6).
//!
//! A version 2 pool has one LUKS device: the layer below its crypt device. In an encrypted version
//! 1 pool, each member lies on a separate LUKS device. The code treats all of them alike. It does
//! not depend on locks or requests.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::{
    base::units::{Bytes, Sectors},
    engine::{
        dm_names::Role,
        encryption::{
            self, Assigned, BindRequest, Bindings, EncryptionError, KeyDescription, Kind, UnlockMethod, clevis_token,
            keyring_token,
        },
        error::Result,
        luks_devices::volume_keys,
        plan::sizes,
        stack::{Stack, remove_surely},
        undo::{Rollback, When},
    },
    platform::{
        Platform, WriteStep,
        keyring::Secret,
        luks::{self, Cost, DataEncryption, FormatPurpose, Header, HeaderChange, HeaderLayout, NUMBERS, NewKeyslot},
    },
};

/// The LUKS device of a version 2 pool.
pub const LAYOUT_V2: HeaderLayout = HeaderLayout {
    metadata: Bytes(64 << 10),
    keyslots: Bytes(16_352 << 10),
    data_offset: sizes::CRYPT_RESERVATION,
    sector_size: None,
};

/// The LUKS device below a member of a version 1 pool.
pub const LAYOUT_V1: HeaderLayout = HeaderLayout {
    metadata: Bytes(16 << 10),
    keyslots: Bytes(16_352 << 10),
    data_offset: Sectors(32_768),
    sector_size: None,
};

/// How a pool is to be unlocked.
#[derive(Debug, Clone, Default)]
pub struct UnlockOptions {
    /// Which bindings may be used; `None`: the user named none.
    pub method: Option<UnlockMethod>,
    /// The passphrase, if the user gave one; `None`: the binding says where to get it.
    pub passphrase: Option<Secret>,
}

impl UnlockOptions {
    /// Allows every binding.
    pub fn any() -> UnlockOptions {
        UnlockOptions { method: Some(UnlockMethod::Any), passphrase: None }
    }
}

/// Opens a LUKS device as `name`. Without a name, only finds its volume key.
///
/// # Errors
/// If no passphrase opens the LUKS device. The error gives the reason for each binding that was
/// tried.
pub fn open(
    platform: &dyn Platform,
    device: &Path,
    name: Option<&str>,
    bindings: &Bindings,
    method: UnlockMethod,
    given: Option<&Secret>,
) -> Result<Secret> {
    let opened =
        encryption::unlock(platform, bindings, method, given, |unlock| platform.luks_open(device, name, unlock));
    Ok(opened?)
}

/// A binding that is being made: its passphrase, and its token without the keyslot.
struct BindingDraft {
    token: u32,
    passphrase: Secret,
    source: Source,
}

/// Where the passphrase comes from.
enum Source {
    Keyring(KeyDescription),
    /// The encrypted passphrase.
    Clevis(Value),
}

/// A keyslot for the passphrase of a binding.
pub fn keyslot(kind: Kind, number: u32, passphrase: &Secret) -> NewKeyslot<'_> {
    // The passphrases that Clevis encrypts are random.
    let cost = match kind {
        Kind::Keyring => Cost::Guessable,
        Kind::Clevis => Cost::Random,
    };
    NewKeyslot { number, passphrase, cost }
}

/// Bindings that are being made. Keyrings and servers have been asked; nothing has been written
/// yet.
pub struct Prepared(Vec<BindingDraft>);

impl Prepared {
    /// Gets the passphrases: existing ones from the keyring, or new ones that Clevis encrypts. This
    /// may take a long time.
    ///
    /// # Errors
    /// If a key is missing, or Clevis fails.
    pub fn new(platform: &dyn Platform, assigned: &[Assigned]) -> Result<Prepared> {
        let draft = |Assigned { token, request }: &Assigned| -> Result<BindingDraft> {
            let (passphrase, source) = match request {
                BindRequest::Keyring(description) => {
                    (encryption::key(platform, description)?, Source::Keyring(description.clone()))
                }
                BindRequest::Clevis(request) => {
                    let passphrase = encryption::random_passphrase(platform);
                    let jwe = platform.clevis_encrypt(&request.pin, &request.config, request.trust, &passphrase);
                    (passphrase, Source::Clevis(jwe.map_err(EncryptionError::from)?))
                }
            };
            Ok(BindingDraft { token: *token, passphrase, source })
        };
        Ok(Prepared(assigned.iter().map(draft).collect::<Result<_>>()?))
    }

    /// Keyslots for the bindings, with these numbers.
    pub fn keyslots(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<NewKeyslot<'_>> {
        let kind = |source: &Source| match source {
            Source::Keyring(_) => Kind::Keyring,
            Source::Clevis(_) => Kind::Clevis,
        };
        let drafts = self.0.iter().zip(numbers);
        drafts.map(|(draft, number)| keyslot(kind(&draft.source), number, &draft.passphrase)).collect()
    }

    /// Tokens for the bindings, with keyslots of these numbers.
    pub fn tokens(&self, numbers: impl IntoIterator<Item = u32>) -> BTreeMap<u32, Value> {
        let token = |(draft, keyslot): (&BindingDraft, u32)| {
            let token = match &draft.source {
                Source::Keyring(description) => keyring_token(description, keyslot),
                Source::Clevis(jwe) => clevis_token(jwe.clone(), keyslot),
            };
            (draft.token, token)
        };
        self.0.iter().zip(numbers).map(token).collect()
    }
}

/// Makes and opens the LUKS device of a version 2 pool. Puts its volume key into the daemon's
/// keyring.
///
/// # Errors
/// `undo` takes back what was done.
pub fn make(
    platform: &dyn Platform,
    stack: &Stack,
    prepared: &Prepared,
    layout: &HeaderLayout,
    purpose: FormatPurpose,
    undo: &mut Rollback,
) -> Result<Header> {
    let device = platform.dm_node(&stack.name(Role::Cache));
    let wiped = device.clone();
    undo.push(When::Unused, "wipe the LUKS2 header", move |platform| {
        wipe(platform, &wiped, Sectors::ZERO, LAYOUT_V2.data_offset)
    });
    let header =
        platform.luks_format(&device, layout, purpose, &prepared.keyslots(0..NUMBERS), &prepared.tokens(0..NUMBERS))?;
    bring_up(platform, stack, &device, prepared, undo)?;
    Ok(header)
}

/// Opens a LUKS device whose header was made with `prepared`.
///
/// # Errors
/// Those of [`make`].
pub fn bring_up(
    platform: &dyn Platform,
    stack: &Stack,
    device: &Path,
    prepared: &Prepared,
    undo: &mut Rollback,
) -> Result<()> {
    let Some(BindingDraft { passphrase, .. }) = prepared.0.first() else {
        return Err(EncryptionError::NoMechanism.into());
    };
    let name = stack.name(Role::Crypt);
    let opened = name.clone();
    undo.push(When::Always, format!("remove {name}"), move |platform| remove_surely(platform, &opened));
    let volume_key = platform.luks_open(device, Some(&name), luks::Unlock { passphrase, keyslot: Some(0) })?;
    let key_name = volume_keys::name(stack.pool());
    let unset = key_name.clone();
    undo.push(When::Always, "remove the volume key from the keyring", move |platform| {
        platform.volume_key_unset(&unset).map(drop)
    });
    Ok(platform.volume_key_set(&key_name, &volume_key)?)
}

/// The changes that repair a header after interrupted changes of it. In the repaired header, each
/// interrupted change is either completed or has never happened. In the middle of a change, a token
/// has a second keyslot.
pub fn mends(header: &Header) -> Vec<HeaderChange<'static>> {
    if header.state != DataEncryption::Encrypted {
        return Vec::new();
    }
    let unused = header.unused.iter().copied().map(HeaderChange::DestroyKeyslot);
    // The first keyslot is the one that was to be removed.
    let replaced = header.tokens.values().filter_map(|token| {
        let listed = token.get("keyslots")?.as_array()?;
        let numbers: Vec<u32> = listed.iter().filter_map(|slot| slot.as_str()?.parse().ok()).collect();
        match numbers[..] {
            [old, new] if !header.unused.contains(&new) => Some(HeaderChange::DestroyKeyslot(old)),
            _ => None,
        }
    });
    // The keyslots of these tokens were destroyed. That happens before the token is removed.
    let empty = header.tokens.iter().filter(|(_, token)| {
        let is_ours = ["clevis", "luks2-keyring"].map(Some).contains(&token.get("type").and_then(Value::as_str));
        is_ours && token.get("keyslots").and_then(Value::as_array).is_some_and(Vec::is_empty)
    });
    let empty = empty.map(|(number, _)| HeaderChange::RemoveToken(*number));
    unused.chain(replaced).chain(empty).collect()
}

/// Overwrites a LUKS device except for its data. It cannot be opened afterwards.
///
/// # Errors
/// When the device cannot be written.
pub fn wipe(platform: &dyn Platform, device: &Path, start: Sectors, length: Sectors) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let zeros = vec![0; CHUNK];
    let in_bytes = |sectors: Sectors| u64::try_from(sectors.bytes().0).unwrap_or(u64::MAX);
    let (start, length) = (in_bytes(start), in_bytes(length));
    let chunks = (0..length).step_by(CHUNK).map(|at| {
        let length = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
        WriteStep::At(start.saturating_add(at), &zeros[..length])
    });
    let steps: Vec<WriteStep<'_>> = chunks.chain([WriteStep::Flush]).collect();
    Ok(platform.write(device, &steps)?)
}
