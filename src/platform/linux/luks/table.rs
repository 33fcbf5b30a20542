//! The device-mapper table of a crypt device, made from its header, for the cases in which
//! libcryptsetup does not make it.
//!
//! This module knows headers and tables, but not why a table is needed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use nix::libc;

use super::{
    device::LoadedLuksDevice,
    fault::{LuksFault, Result},
};
use crate::{
    base::units::{SECTOR, Sectors},
    platform::{
        DeviceNumber,
        dm::{Line, Target, Visibility},
        linux::{dm::Mapper, keyring},
        luks::VOLUME_KEY_BYTES,
    },
};

/// Activates the crypt device as the library would, but while its LUKS device is in use.
/// libcryptsetup up to 2.6 refuses that if a re-encryption job is unfinished.
pub(super) fn bring_up(device: &Path, name: &str, passphrase: &[u8]) -> Result<()> {
    let uuid = LoadedLuksDevice::load(device)?.library.status_handle().get_uuid()?.simple().to_string();
    let table = table(device, passphrase)?;
    Mapper::open()?.create(name, &format!("CRYPT-LUKS2-{uuid}-{name}"), &table, Visibility::Public)?;
    Ok(())
}

/// The table of the crypt device by its header, with the keys loaded into the keyring.
pub(super) fn table(device: &Path, passphrase: &[u8]) -> Result<Vec<Line>> {
    let mut luks = LoadedLuksDevice::load(device)?;
    let uuid = luks.library.status_handle().get_uuid()?.to_string();
    let number = number(device)?;
    let mut lines = Vec::new();
    let mut start = Sectors(0);
    let mut loaded = Vec::new();
    for segment in luks.segments()? {
        if segment.hot {
            return Err(LuksFault::Other(
                "a step of its re-encryption job was interrupted; resume the job first".to_owned(),
            ));
        }
        let (length, offset) = (segment.length, segment.offset);
        match &segment.crypt {
            None => lines.push(Line::linear(start, length, number, offset)),
            Some(crypt) => {
                let key = format!("cryptsetup:{uuid}-d{}", crypt.digest);
                if !loaded.contains(&crypt.digest) {
                    keyring::lend_to_kernel(&key, &luks.key_with(crypt.digest, passphrase)?)?;
                    loaded.push(crypt.digest);
                }
                let sectors = match u64::from(crypt.sector_size) {
                    SECTOR => String::new(),
                    size => format!(" 1 sector_size:{size}"),
                };
                let (cipher, iv_offset) = (&crypt.cipher, crypt.iv_offset);
                let parameters =
                    format!("{cipher} :{VOLUME_KEY_BYTES}:logon:{key} {iv_offset} {number} {}{sectors}", offset.0);
                lines.push(foreign(start, length, "crypt", parameters));
            }
        }
        start = Sectors(start.0 + length.0);
    }
    Ok(lines)
}

/// A line with a target that only the kernel interprets.
pub(super) fn foreign(start: Sectors, length: Sectors, kind: &str, parameters: String) -> Line {
    Line { start, length, target: Target::Foreign { kind: kind.to_owned(), parameters } }
}

/// Device number of a node.
pub(super) fn number(device: &Path) -> Result<DeviceNumber> {
    let number = fs::metadata(device)?.rdev();
    Ok(DeviceNumber { major: libc::major(number), minor: libc::minor(number) })
}
