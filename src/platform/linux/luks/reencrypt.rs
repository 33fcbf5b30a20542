//! Re-encryption jobs in the child: encryption, re-encryption and decryption of a LUKS device in
//! use.
//!
//! A job proceeds in steps. During a step, I/O to its hot zone waits. The header holds checksums of
//! the blocks in the hot zone, so that a step that was cut short can be completed. This module
//! knows nothing of who uses the data.

use std::path::Path;

use libcryptsetup_rs::consts::{flags::CryptReencrypt, vals::CryptReencryptModeInfo};
use rustix::mm::{MlockAllFlags, mlockall};

use super::{
    connection::{DaemonConnection, may_use},
    device::{LoadedLuksDevice, sync},
    fault::{LuksFault, Result, with_key},
    repair,
    steps::{parameters, steps},
    wire::LuksAnswer,
};
use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::luks::{Begin, DataEncryption, Progress, ReencryptionEnd, ReencryptionMode},
};

/// Longest step. Without a limit the library processes up to 1 GiB at a time in memory, and I/O to
/// that range waits as long.
const STEP: Sectors = Sectors((64 << 20) / SECTOR);

/// Starts or resumes a re-encryption job and runs it until it is complete or must stop.
pub(super) fn run(
    device: &Path,
    name: &str,
    keyslot: Option<u32>,
    passphrase: &[u8],
    begin: Begin,
    connection: &mut DaemonConnection,
) -> Result<ReencryptionEnd> {
    let mut luks = LoadedLuksDevice::load(device)?;
    let json = luks.json()?;
    let metadata = luks.metadata(&json);
    let segments = metadata.segments()?;
    let total = segments.iter().fold(Sectors::ZERO, |sum, segment| sum.saturating_add(segment.length)).bytes();
    let (unfinished, done) = match metadata.state(&segments)? {
        DataEncryption::Unfinished { mode, done } => (Some(mode), done),
        DataEncryption::Encrypted | DataEncryption::Clear => (None, Bytes(0)),
    };
    connection.say(&LuksAnswer::Progress(Progress { done, total }), &[]).map_err(LuksFault::Connection)?;
    match may_use(connection, metadata.memory(None)?) {
        Err(LuksFault::Alone) => return Ok(ReencryptionEnd::Interrupted),
        other => other?,
    }
    if repair::is_needed(name)? {
        repair::repair(device, name, passphrase)?;
        luks = LoadedLuksDevice::load(device)?;
        if unfinished.is_some() && unfinished_mode(&mut luks)?.is_none() {
            return Ok(ReencryptionEnd::Finished);
        }
    }
    let json = luks.json()?;
    let metadata = luks.metadata(&json);
    let sector_size = metadata.header(String::new())?.sector_size;
    let cipher = metadata.segments()?.into_iter().find_map(|segment| Some(segment.crypt?.cipher));

    let (mode, from, to, flags) = match (begin, unfinished) {
        (Begin::Resume, Some(mode)) => {
            // The passphrase may open keyslots of both volume keys. If the caller named the
            // keyslot, the library need not try the other key.
            let digest = keyslot.map(|keyslot| metadata.digest_of_keyslot(keyslot)).transpose()?.flatten();
            let is_new =
                mode == ReencryptionMode::Encrypt || (digest.is_some() && digest == metadata.final_digest()?);
            let (from, to) = if is_new { (None, keyslot) } else { (keyslot, None) };
            (crypt_mode(mode), from, to, CryptReencrypt::RESUME_ONLY)
        }
        (Begin::Resume, None) => return Err(LuksFault::Other("there is no re-encryption job to resume".to_owned())),
        (_, Some(_)) => {
            return Err(LuksFault::Other("another re-encryption job is unfinished; resume it first".to_owned()));
        }
        (Begin::Reencrypt { from, to }, None) => {
            (crypt_mode(ReencryptionMode::Reencrypt), Some(from), Some(to), CryptReencrypt::empty())
        }
        (Begin::Decrypt, None) => (crypt_mode(ReencryptionMode::Decrypt), keyslot, None, CryptReencrypt::empty()),
    };
    let parameters = parameters(mode, sector_size, STEP, flags);
    // Cipher of the new data. The library wants none if there is no new cipher, or if the header
    // has it already.
    let cipher = cipher.as_deref().filter(|_| matches!(begin, Begin::Reencrypt { .. }));
    let cipher = cipher.and_then(|cipher| cipher.split_once('-'));
    luks.library
        .reencrypt_handle()
        .reencrypt_init_by_passphrase(Some(name), passphrase, from, to, cipher, parameters)
        .map_err(with_key)?;
    // From here on the keys are in memory for hours. The memory of the key derivation has been
    // freed.
    let _ = mlockall(MlockAllFlags::CURRENT);
    let worked = steps(&mut luks, &mut |progress| {
        // If the daemon has ended, stop.
        connection.say(&LuksAnswer::Progress(progress), &[]).is_err() || connection.is_to_stop()
    });
    drop(luks);
    if let Err(fault) = worked {
        // The library leaves the devices as they were in the middle of the step. The first error is
        // returned; a second one goes to the log.
        if repair::is_needed(name)? {
            if let Err(also) = repair::repair(device, name, passphrase) {
                eprintln!("{also}");
            }
        }
        return Err(fault.into());
    }
    sync(device)?;
    match unfinished_mode(&mut LoadedLuksDevice::load(device)?)? {
        Some(_) => Ok(ReencryptionEnd::Interrupted),
        None => Ok(ReencryptionEnd::Finished),
    }
}

/// The mode of the unfinished re-encryption job, by the header.
fn unfinished_mode(luks: &mut LoadedLuksDevice) -> Result<Option<ReencryptionMode>> {
    match luks.header()?.state {
        DataEncryption::Unfinished { mode, .. } => Ok(Some(mode)),
        DataEncryption::Encrypted | DataEncryption::Clear => Ok(None),
    }
}

fn crypt_mode(mode: ReencryptionMode) -> CryptReencryptModeInfo {
    match mode {
        ReencryptionMode::Encrypt => CryptReencryptModeInfo::Encrypt,
        ReencryptionMode::Reencrypt => CryptReencryptModeInfo::Reencrypt,
        ReencryptionMode::Decrypt => CryptReencryptModeInfo::Decrypt,
    }
}
