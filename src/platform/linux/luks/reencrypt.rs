//! The child's long work: encrypting, reencrypting and decrypting the data of a container that is in use.
//!
//! Data is worked on step by step. While a step is at work, I/O to its stretch of the device waits, and what the stretch
//! is protected by (checksums of its blocks) lies in the header, so that a step that was cut short can be completed.
//! Knows nothing of who uses the data.

use std::{
    ffi::{c_int, c_void},
    path::Path,
};

use libcryptsetup_rs::{
    CryptParamsReencrypt, LibcryptErr,
    consts::{
        flags::CryptReencrypt,
        vals::{CryptReencryptDirectionInfo, CryptReencryptModeInfo},
    },
};
use rustix::mm::{MlockAllFlags, mlockall};

use super::{
    calls::{Container, Fault, Result, luks2_parameters, may_use, sync, with_key},
    child::Talk,
    repair,
    wire::Answer,
};
use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::luks::{Begin, Ended, Progress, ReencryptionMode, State},
};

/// How a step is protected: the method and its hash.
pub(super) const RESILIENCE: (&str, &str) = ("checksum", "sha256");
/// Longest step. Without a bound the library takes up to 1 GiB at a time, in memory, and I/O to it waits so long.
const STEP: Sectors = Sectors((64 << 20) / SECTOR);

/// Begins a work or goes on with it, until all is done or it is told to stop.
pub(super) fn run(
    device: &Path,
    name: &str,
    keyslot: Option<u32>,
    passphrase: &[u8],
    begin: Begin,
    talk: &mut Talk,
) -> Result<Ended> {
    let mut container = Container::load(device)?;
    let json = container.json()?;
    let metadata = container.metadata(&json);
    let segments = metadata.segments()?;
    let total = segments.iter().fold(Sectors::ZERO, |sum, segment| sum.saturating_add(segment.length)).bytes();
    let (unfinished, done) = match metadata.state(&segments)? {
        State::Unfinished { mode, done } => (Some(mode), done),
        State::Encrypted | State::Clear => (None, Bytes(0)),
    };
    talk.say(&Answer::Progress(Progress { done, total }), &[]).map_err(Fault::Talk)?;
    match may_use(talk, metadata.memory(None)?) {
        Err(Fault::Alone) => return Ok(Ended::Interrupted),
        other => other?,
    }
    if repair::is_needed(name)? {
        repair::repair(device, name, passphrase)?;
        container = Container::load(device)?;
        if unfinished.is_some() && unfinished_work(&mut container)?.is_none() {
            return Ok(Ended::Finished);
        }
    }
    let json = container.json()?;
    let metadata = container.metadata(&json);
    let sector_size = metadata.header(String::new())?.sector_size;
    let cipher = metadata.segments()?.into_iter().find_map(|segment| Some(segment.crypt?.cipher));

    let (mode, from, to, flags) = match (begin, unfinished) {
        (Begin::Resume, Some(mode)) => {
            // The passphrase may open a keyslot for each of two keys; where it was said which, one need not be tried.
            let digest = keyslot.map(|keyslot| metadata.digest_of_keyslot(keyslot)).transpose()?.flatten();
            let is_new =
                mode == ReencryptionMode::Encrypt || (digest.is_some() && digest == metadata.final_digest()?);
            let (from, to) = if is_new { (None, keyslot) } else { (keyslot, None) };
            (crypt_mode(mode), from, to, CryptReencrypt::RESUME_ONLY)
        }
        (Begin::Resume, None) => return Err(Fault::Other("no work on its data is unfinished".to_owned())),
        (_, Some(_)) => return Err(Fault::Other("another work on its data is unfinished".to_owned())),
        (Begin::Reencrypt { from, to }, None) => {
            (crypt_mode(ReencryptionMode::Reencrypt), Some(from), Some(to), CryptReencrypt::empty())
        }
        (Begin::Decrypt, None) => (crypt_mode(ReencryptionMode::Decrypt), keyslot, None, CryptReencrypt::empty()),
    };
    let parameters = CryptParamsReencrypt {
        mode,
        direction: CryptReencryptDirectionInfo::Forward,
        resilience: RESILIENCE.0.to_owned(),
        hash: RESILIENCE.1.to_owned(),
        data_shift: 0,
        max_hotzone_size: STEP.0,
        device_size: 0,
        luks2: Some(luks2_parameters(sector_size)),
        flags,
    };
    // For the new data; the library wants none where there is none, or where it has been said before.
    let cipher = cipher.as_deref().filter(|_| matches!(begin, Begin::Reencrypt { .. }));
    let cipher = cipher.and_then(|cipher| cipher.split_once('-'));
    container
        .library
        .reencrypt_handle()
        .reencrypt_init_by_passphrase(Some(name), passphrase, from, to, cipher, parameters)
        .map_err(with_key)?;
    // From here on the keys are in memory for hours; what the derivation took has been given back.
    let _ = mlockall(MlockAllFlags::CURRENT);
    let worked = steps(&mut container, &mut |progress| {
        // Nobody to tell is nobody who wants it.
        talk.say(&Answer::Progress(progress), &[]).is_err() || talk.is_to_stop()
    });
    drop(container);
    if let Err(fault) = worked {
        // The library leaves devices as they were in the midst of the step. What was wrong first is told; if more is
        // wrong, it is for the log.
        if repair::is_needed(name)? {
            if let Err(also) = repair::repair(device, name, passphrase) {
                eprintln!("{also}");
            }
        }
        return Err(fault.into());
    }
    sync(device)?;
    match unfinished_work(&mut Container::load(device)?)? {
        Some(_) => Ok(Ended::Interrupted),
        None => Ok(Ended::Finished),
    }
}

/// The work that the header says is unfinished.
fn unfinished_work(container: &mut Container) -> Result<Option<ReencryptionMode>> {
    match container.header()?.state {
        State::Unfinished { mode, .. } => Ok(Some(mode)),
        State::Encrypted | State::Clear => Ok(None),
    }
}

fn crypt_mode(mode: ReencryptionMode) -> CryptReencryptModeInfo {
    match mode {
        ReencryptionMode::Encrypt => CryptReencryptModeInfo::Encrypt,
        ReencryptionMode::Reencrypt => CryptReencryptModeInfo::Reencrypt,
        ReencryptionMode::Decrypt => CryptReencryptModeInfo::Decrypt,
    }
}

/// Asked between two steps; `true`: it is to stop.
type IsToStop<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// Has the library go through the steps of a work that has been begun with it.
#[allow(unsafe_code)]
pub(super) fn steps(container: &mut Container, mut is_to_stop: IsToStop<'_>) -> std::result::Result<(), LibcryptErr> {
    extern "C" fn between(total: u64, done: u64, is_to_stop: *mut c_void) -> c_int {
        // SAFETY: the library hands on the pointer that it was given below, to a closure that lives until the library
        // returns and that nobody else uses meanwhile; it calls in the same thread.
        let is_to_stop = unsafe { &mut *is_to_stop.cast::<IsToStop<'_>>() };
        c_int::from(is_to_stop(Progress { done: Bytes(done.into()), total: Bytes(total.into()) }))
    }
    container.library.reencrypt_handle().reencrypt2(Some(between), Some(&mut is_to_stop))
}
