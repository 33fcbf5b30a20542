//! A header for plaintext data that is in use: it is built elsewhere and written to the device when
//! it is complete.
//!
//! The header is built in anonymous memory (a memfd), so that no part of it stays behind after a
//! failure. This module knows nothing of the data.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use libcryptsetup_rs::{
    consts::{flags::CryptReencrypt, vals::CryptReencryptModeInfo},
    get_sector_size,
};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use super::{
    device::{CIPHER, LoadedLuksDevice, ReceivedSecrets, bytes, fill},
    fault::{LuksFault, Result, with_key},
    steps::parameters,
    wire::SentKeyslot,
};
use crate::{
    base::units::Sectors,
    platform::luks::{Header, HeaderLayout},
};

/// Formats a header that says that nothing is encrypted yet, and writes it to the device.
pub(super) fn format(
    device: &Path,
    layout: &HeaderLayout,
    keyslots: &[SentKeyslot],
    tokens: &BTreeMap<u32, Value>,
    secrets: &ReceivedSecrets<'_>,
) -> Result<Header> {
    let first = keyslots.first().ok_or_else(|| "the header would have no keyslot".to_owned())?;
    let file = File::from(memfd_create("luks-header", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    let metadata = bytes(layout.metadata)?;
    let length = 2 * metadata + bytes(layout.keyslots)?;
    file.set_len(length)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));

    let mut luks = LoadedLuksDevice::make(Some(&path), device, layout)?;
    fill(&mut luks, keyslots, tokens, secrets)?;
    let sector_size = u32::try_from(get_sector_size(Some(&mut luks.library)))
        .map_err(|_| LuksFault::Other("the library does not return the encryption sector size".to_owned()))?;
    let parameters =
        parameters(CryptReencryptModeInfo::Encrypt, sector_size, Sectors::ZERO, CryptReencrypt::INITIALIZE_ONLY);
    let passphrase = secrets.get(first.passphrase)?;
    let mut library = luks.library.reencrypt_handle();
    library
        .reencrypt_init_by_passphrase(None, passphrase, None, Some(first.number), Some(CIPHER), parameters)
        .map_err(with_key)?;
    drop(luks);
    put_in_place(&file, metadata, length, device)?;
    LoadedLuksDevice::load(device)?.header()
}

/// Copies the header to the device: the keyslots first, then the second copy of the metadata, then
/// the first, with a flush after each. So no valid header exists before all of it is on the device.
fn put_in_place(file: &File, metadata: u64, length: u64, device: &Path) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open(device)?;
    for part in [2 * metadata..length, metadata..2 * metadata, 0..metadata] {
        let size = usize::try_from(part.end - part.start).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, part.start)?;
        device.write_all_at(&bytes, part.start)?;
        device.sync_all()?;
    }
    Ok(())
}
