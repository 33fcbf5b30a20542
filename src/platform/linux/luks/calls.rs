//! Serves requests in the child by calls of libcryptsetup.
//!
//! Runs in one thread of the child, because the library is not thread-safe. This module knows
//! nothing of pools.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path};

use libcryptsetup_rs::{
    TokenInput,
    consts::{
        flags::{CryptActivate, CryptVolumeKey},
        vals::KeyslotInfo,
    },
};
use rand::{TryRngCore, rngs::OsRng};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    connection::{DaemonConnection, may_use},
    device::{LoadedLuksDevice, ReceivedSecrets, fill, sync},
    fault::{LuksFault, Result, with_key},
    header::Metadata,
    reencrypt, repair, staged, table,
    wire::{LuksAnswer, LuksRequest, SentChange, SentKeyslot, SentUnlock},
};
use crate::{
    base::units::{Bytes, Sectors},
    platform::{
        keyring::Secret,
        luks::{Cost, DataEncryption, FormatPurpose, Header, HeaderLayout, ReencryptionMode, VOLUME_KEY_BYTES},
    },
};

/// Most memory that a key derivation with the library's defaults takes.
const DERIVATION_BYTES_MAX: Bytes = Bytes(1 << 30);
/// Magic bytes of the first and the second copy of a header.
const MAGIC: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
/// Possible offsets of the second copy.
const SECOND_COPIES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];

/// Serves a request. Returns the answer and the secret that belongs to it.
pub(super) fn serve(
    request: &LuksRequest,
    secrets: &[Secret],
    connection: &mut DaemonConnection,
) -> Result<(LuksAnswer, Option<Secret>)> {
    let secrets = ReceivedSecrets(secrets);
    match request {
        LuksRequest::Read { device } => {
            let header = if is_luks2(device)? { Some(LoadedLuksDevice::load(device)?.header()?) } else { None };
            Ok((LuksAnswer::Header(header), None))
        }
        LuksRequest::Format { device, layout, purpose, keyslots, tokens } => {
            if keyslots.iter().any(|keyslot| keyslot.cost == Cost::Guessable) {
                may_use(connection, DERIVATION_BYTES_MAX)?;
            }
            let header = match purpose {
                FormatPurpose::New => format(device, layout, keyslots, tokens, &secrets)?,
                FormatPurpose::Encrypt => staged::format(device, layout, keyslots, tokens, &secrets)?,
            };
            Ok((LuksAnswer::Header(Some(header)), None))
        }
        LuksRequest::Change { device, unlock, changes } => {
            let header = change(device, unlock.as_ref(), changes, &secrets, connection)?;
            Ok((LuksAnswer::Header(Some(header)), None))
        }
        LuksRequest::Open { device, name, unlock } => {
            let key = open(device, name.as_deref(), *unlock, &secrets, connection)?;
            Ok((LuksAnswer::VolumeKey, Some(key)))
        }
        LuksRequest::Reopen { device, name, volume_key } => {
            let (mut luks, flags) = (LoadedLuksDevice::load(device)?, CryptActivate::empty());
            let key = secrets.get(*volume_key)?;
            luks.library.activate_handle().activate_by_volume_key(Some(name), Some(key), flags).map_err(with_key)?;
            Ok((LuksAnswer::Done, None))
        }
        LuksRequest::Resize { device, name, volume_key, size } => {
            resize(device, name, secrets.get(*volume_key)?, *size)?;
            Ok((LuksAnswer::Done, None))
        }
        LuksRequest::Reencrypt { device, name, unlock, begin } => {
            let passphrase = secrets.get(unlock.passphrase)?;
            let ended = reencrypt::run(device, name, unlock.keyslot, passphrase, *begin, connection)?;
            Ok((LuksAnswer::Ended(ended), None))
        }
        LuksRequest::Repair { device, name, unlock } => {
            let json = LoadedLuksDevice::load(device)?.json()?;
            may_use(connection, Metadata::new(&json, Sectors::ZERO).memory(None)?)?;
            repair::repair(device, name, secrets.get(unlock.passphrase)?)?;
            Ok((LuksAnswer::Done, None))
        }
    }
}

/// Whether the device has a LUKS2 header, or at least its second copy.
fn is_luks2(device: &Path) -> io::Result<bool> {
    let file = File::open(device)?;
    let begins = |offset: u64, magic: &[u8; 6]| {
        let mut bytes = [0; 8];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes[..6] == *magic && bytes[6..] == 2_u16.to_be_bytes()),
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(fault) => Err(fault),
        }
    };
    let [first, second] = MAGIC;
    if begins(0, first)? {
        return Ok(true);
    }
    for offset in SECOND_COPIES {
        if begins(offset, second)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn format(
    device: &Path,
    layout: &HeaderLayout,
    keyslots: &[SentKeyslot],
    tokens: &BTreeMap<u32, Value>,
    secrets: &ReceivedSecrets<'_>,
) -> Result<Header> {
    let mut luks = LoadedLuksDevice::make(None, device, layout)?;
    fill(&mut luks, keyslots, tokens, secrets)?;
    sync(device)?;
    luks.header()
}

fn change(
    device: &Path,
    unlock: Option<&SentUnlock>,
    changes: &[SentChange],
    secrets: &ReceivedSecrets<'_>,
    connection: &mut DaemonConnection,
) -> Result<Header> {
    let mut luks = LoadedLuksDevice::load(device)?;
    let json = luks.json()?;
    let adds = changes.iter().any(|change| matches!(change, SentChange::AddKeyslot(_)));
    // Only with the passphrase can the library return the volume key.
    let unlock = unlock.filter(|_| adds);
    let mut memory = Bytes(0);
    if let Some(unlock) = unlock {
        memory = luks.metadata(&json).memory(unlock.keyslot)?;
    }
    let is_guessable = |change: &SentChange| match change {
        SentChange::AddKeyslot(keyslot) | SentChange::AddNextKeyslot(keyslot) => keyslot.cost == Cost::Guessable,
        _ => false,
    };
    if changes.iter().any(is_guessable) {
        memory = memory.max(DERIVATION_BYTES_MAX);
    }
    may_use(connection, memory)?;
    let present = match unlock {
        Some(unlock) => Some(luks.key_in_use(unlock.keyslot, secrets.get(unlock.passphrase)?)?),
        None => None,
    };
    let mut next = None;
    for change in changes {
        make(&mut luks, change, present.as_deref().map(Vec::as_slice), &mut next, secrets)?;
        sync(device)?;
    }
    luks.header()
}

fn make(
    luks: &mut LoadedLuksDevice,
    change: &SentChange,
    present: Option<&[u8]>,
    next: &mut Option<Zeroizing<Vec<u8>>>,
    secrets: &ReceivedSecrets<'_>,
) -> Result<()> {
    match change {
        SentChange::AddKeyslot(keyslot) => {
            let key = present.ok_or_else(|| {
                LuksFault::Other("adding a keyslot takes a passphrase that opens the device; give one".to_owned())
            })?;
            luks.add(keyslot, Some(key), CryptVolumeKey::empty(), secrets)
        }
        SentChange::AddNextKeyslot(keyslot) => match next {
            Some(key) => {
                let flags = CryptVolumeKey::NO_SEGMENT | CryptVolumeKey::DIGEST_REUSE;
                luks.add(keyslot, Some(key), flags, secrets)
            }
            None => {
                let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
                OsRng.try_fill_bytes(&mut key).map_err(|fault| LuksFault::Other(fault.to_string()))?;
                luks.add(keyslot, Some(&key), CryptVolumeKey::NO_SEGMENT, secrets)?;
                *next = Some(key);
                Ok(())
            }
        },
        SentChange::DestroyKeyslot(number) => match luks.library.keyslot_handle().status(*number)? {
            KeyslotInfo::Inactive | KeyslotInfo::Invalid => Ok(()),
            _ => Ok(luks.library.keyslot_handle().destroy(*number)?),
        },
        SentChange::PutToken(number, token) => luks.put(*number, token),
        SentChange::RemoveToken(number) => {
            let json = luks.json()?;
            if json.get("tokens").and_then(|tokens| tokens.get(number.to_string())).is_some() {
                luks.library.token_handle().json_set(TokenInput::RemoveToken(*number))?;
            }
            Ok(())
        }
    }
}

fn open(
    device: &Path,
    name: Option<&str>,
    unlock: SentUnlock,
    secrets: &ReceivedSecrets<'_>,
    connection: &mut DaemonConnection,
) -> Result<Secret> {
    let passphrase = secrets.get(unlock.passphrase)?;
    let mut luks = LoadedLuksDevice::load(device)?;
    let json = luks.json()?;
    let metadata = luks.metadata(&json);
    let state = metadata.state(&metadata.segments()?)?;
    may_use(connection, metadata.memory(unlock.keyslot)?)?;
    let key = match state {
        DataEncryption::Clear => {
            return Err(LuksFault::Other(
                "the data of the device has been decrypted; use the device itself".to_owned(),
            ));
        }
        DataEncryption::Encrypted => {
            let key = luks.key_in_use(unlock.keyslot, passphrase)?;
            if let Some(name) = name {
                let flags = CryptActivate::empty();
                let mut activate = luks.library.activate_handle();
                activate.activate_by_volume_key(Some(name), Some(&key), flags).map_err(with_key)?;
            }
            key
        }
        DataEncryption::Unfinished { mode, done } => {
            // The final volume key of all data, or for a decryption the previous one.
            let digest = metadata.final_digest()?.or(metadata.previous_digest()?);
            let digest = digest.ok_or_else(|| "its header does not name the volume key".to_owned())?;
            if unlock.keyslot.is_some() {
                luks.key(unlock.keyslot, passphrase)?;
            }
            let key = luks.key_with(digest, passphrase)?;
            if let Some(name) = name {
                if mode == ReencryptionMode::Encrypt && done == Bytes(0) {
                    // The plaintext is still in use through the device itself.
                    table::bring_up(device, name, passphrase)?;
                } else {
                    let mut activate = luks.library.activate_handle();
                    let flags = CryptActivate::empty();
                    activate.activate_by_passphrase(Some(name), None, passphrase, flags).map_err(with_key)?;
                }
            }
            key
        }
    };
    Ok(Secret::new(key))
}

fn resize(device: &Path, name: &str, volume_key: &[u8], size: Option<Sectors>) -> Result<()> {
    let mut luks = LoadedLuksDevice::load(device)?;
    // The new table refers to the key by name, so the key must be in a keyring.
    let flags = CryptActivate::KEYRING_KEY;
    luks.library.activate_handle().activate_by_volume_key(None, Some(volume_key), flags).map_err(with_key)?;
    luks.library.context_handle().resize(name, size.map_or(0, |size| size.0))?;
    Ok(())
}
