//! The udev database: which block devices exist and what they belong to.
//!
//! Reads what udev's rules have found, never the devices themselves. This module knows nothing of
//! pools.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::libc;
use udev::{DeviceType, Enumerator};

use crate::{
    base::units::{Bytes, Sectors},
    platform::{BlockDevice, DeviceClass, DeviceNumber, Error, Result},
};

/// Path of the database, for errors only.
const DATABASE: &str = "/run/udev/data";
const STRATIS: &str = "stratis";
const LUKS: &str = "crypto_LUKS";

/// Every initialized block device that carries a Stratis signature or a LUKS header.
pub(super) fn block_devices() -> Result<Vec<BlockDevice>> {
    let scan = || -> io::Result<Vec<BlockDevice>> {
        let mut devices = Enumerator::new()?;
        devices.match_subsystem("block")?;
        devices.match_is_initialized()?;
        // Several property matches are alternatives.
        devices.match_property("ID_FS_TYPE", STRATIS)?;
        devices.match_property("ID_FS_TYPE", LUKS)?;
        Ok(devices.scan_devices()?.filter_map(|device| record(&device)).collect())
    };
    let mut found =
        scan().map_err(|source| Error::Io { action: "list the block devices of", path: DATABASE.into(), source })?;
    // A path of a multipath device has the same contents but must not be used.
    found.retain(|device| matches!(device.class, DeviceClass::Stratis | DeviceClass::Luks));
    Ok(found)
}

/// The device behind a path. Follows links.
pub(super) fn find_device(path: &Path) -> Result<BlockDevice> {
    let number = number_of(path)?;
    udev::Device::from_devnum(DeviceType::Block, libc::makedev(number.major, number.minor))
        .ok()
        .and_then(|device| record(&device))
        .ok_or_else(|| no_device(path))
}

/// Device number of the block device behind a path.
fn number_of(path: &Path) -> Result<DeviceNumber> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => no_device(path),
        _ => Error::Io { action: "stat", path: path.to_owned(), source },
    })?;
    if metadata.file_type().is_block_device() { Ok(number(metadata.rdev())) } else { Err(no_device(path)) }
}

/// Path of a block device in sysfs.
fn shown_at(number: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", number.major, number.minor))
}

/// The block devices that this one lies on, directly or not.
pub(super) fn lower_devices(number: DeviceNumber) -> Result<BTreeSet<DeviceNumber>> {
    let mut found = BTreeSet::new();
    let mut ahead = vec![number];
    while let Some(number) = ahead.pop() {
        for below in directly_below(number)? {
            if found.insert(below) {
                ahead.push(below);
            }
        }
    }
    Ok(found)
}

fn directly_below(number: DeviceNumber) -> Result<Vec<DeviceNumber>> {
    let place = shown_at(number);
    let list = place.join("slaves");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action: "read", path, source }
    };
    let mut below = Vec::new();
    // A partition has no such list.
    for entry in fs::read_dir(&list).into_iter().flatten() {
        let file = entry.map_err(failed(&list))?.path().join("dev");
        let text = fs::read_to_string(&file).map_err(failed(&file))?;
        let parsed =
            text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        below.extend(parsed.map(|(major, minor)| DeviceNumber { major, minor }));
    }
    // sysfs does not list a loop device as the holder of its backing device.
    if let Ok(backing) = fs::read_to_string(place.join("loop/backing_file")) {
        below.extend(number_of(Path::new(backing.trim_end_matches('\n'))));
    }
    Ok(below)
}

fn no_device(path: &Path) -> Error {
    Error::NoDevice { path: path.to_owned() }
}

/// Splits the kernel's device number.
pub(super) fn number(devnum: libc::dev_t) -> DeviceNumber {
    DeviceNumber { major: libc::major(devnum), minor: libc::minor(devnum) }
}

/// Size of a block device, or 0 if unknown. Does not open the device, which might block.
pub(super) fn size(number: DeviceNumber) -> Bytes {
    let text = fs::read_to_string(format!("/sys/dev/block/{number}/size")).unwrap_or_default();
    Sectors(text.trim().parse().unwrap_or_default()).bytes()
}

/// What udev knows of a device. `None` if it is not initialized yet or has no node, in which case
/// it must not be used.
pub(super) fn record(device: &udev::Device) -> Option<BlockDevice> {
    if !device.is_initialized() {
        return None;
    }
    let property = |name: &str| device.property_value(name).map(|value| value.to_string_lossy().into_owned());
    Some(BlockDevice {
        path: PathBuf::from(device.devnode()?),
        number: number(device.devnum()?),
        class: classify(property),
        wwn: property("ID_WWN").filter(|wwn| !wwn.is_empty()),
    })
}

/// Decides from a device's properties what it belongs to, in the order of
/// `docs/spec/engine/ondisk-metadata.md` §4.
fn classify(property: impl Fn(&str) -> Option<String>) -> DeviceClass {
    if property("DM_MULTIPATH_DEVICE_PATH").as_deref() == Some("1") {
        return DeviceClass::MultipathMember;
    }
    let kind = property("ID_FS_TYPE");
    match kind.as_deref() {
        Some(STRATIS) => return DeviceClass::Stratis,
        Some(LUKS) => return DeviceClass::Luks,
        _ => {}
    }
    let table = property("ID_PART_TABLE_TYPE");
    let is_partition = property("ID_PART_ENTRY_DISK").is_some();
    let usage = property("ID_FS_USAGE");
    match (usage, table) {
        (Some(usage), _) => DeviceClass::Other(kind.unwrap_or(usage)),
        // A partition inherits this property from the disk with the table.
        (None, Some(table)) if !is_partition => DeviceClass::Other(format!("partition table {table}")),
        (None, _) => DeviceClass::Unowned,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{classify, find_device, number};
    use crate::platform::{DeviceClass, DeviceNumber, Error};

    fn check(properties: &[(&str, &str)], expected: DeviceClass) {
        let lookup =
            |name: &str| properties.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(classify(lookup), expected, "{properties:?}");
    }

    #[test]
    fn classification_follows_the_order() {
        let other = |text: &str| DeviceClass::Other(text.to_owned());
        check(&[], DeviceClass::Unowned);
        check(&[("ID_FS_TYPE", "stratis"), ("ID_FS_USAGE", "raid")], DeviceClass::Stratis);
        check(&[("ID_FS_TYPE", "crypto_LUKS"), ("ID_FS_USAGE", "crypto")], DeviceClass::Luks);
        check(&[("ID_FS_TYPE", "xfs"), ("ID_FS_USAGE", "filesystem")], other("xfs"));
        check(&[("ID_FS_USAGE", "filesystem")], other("filesystem"));
        check(&[("ID_PART_TABLE_TYPE", "dos")], other("partition table dos"));
        check(&[("ID_PART_TABLE_TYPE", "gpt"), ("ID_PART_ENTRY_DISK", "8:0")], DeviceClass::Unowned);
        check(
            &[("ID_PART_TABLE_TYPE", "gpt"), ("ID_PART_ENTRY_DISK", "8:0"), ("ID_FS_USAGE", "other")],
            other("other"),
        );
    }

    #[test]
    fn a_multipath_path_is_never_classified_otherwise() {
        check(
            &[("DM_MULTIPATH_DEVICE_PATH", "1"), ("ID_FS_TYPE", "stratis"), ("ID_FS_USAGE", "raid")],
            DeviceClass::MultipathMember,
        );
        // udev sets the property to 0 on devices that multipath has checked and left alone.
        check(&[("DM_MULTIPATH_DEVICE_PATH", "0"), ("ID_FS_TYPE", "stratis")], DeviceClass::Stratis);
    }

    #[test]
    fn only_block_devices_are_found() {
        for path in ["/", "/dev/null", "/nonexistent", "/dev/null/x"] {
            let error = find_device(Path::new(path)).unwrap_err();
            assert!(matches!(&error, Error::NoDevice { path: p } if p == Path::new(path)), "{path}: {error:?}");
        }
    }

    #[test]
    fn device_numbers_are_split() {
        assert_eq!(number(nix::libc::makedev(253, 1_048_575)), DeviceNumber { major: 253, minor: 1_048_575 });
    }
}
