//! The links in `/dev/mapper`: the nodes of devices by name. udev makes and removes them. If udev
//! does not do so in time, the daemon does.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use log::warn;

use super::database;
use crate::platform::DeviceNumber;

/// The node that udev makes for a device. It exists once the device has been resumed.
pub(super) fn node(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// Makes the link in `/dev/mapper` that udev has not made, as libdevmapper does. udev takes the
/// link over when it processes the device.
pub(super) fn mend_link(name: &str, number: DeviceNumber) {
    let link = node(name);
    let is_right = fs::metadata(&link)
        .is_ok_and(|found| found.file_type().is_block_device() && database::number(found.rdev()) == number);
    if is_right {
        return;
    }
    let target = Path::new("..").join(format!("dm-{}", number.minor));
    let _ = fs::remove_file(&link);
    match symlink(target, &link) {
        Ok(()) => warn!("udev did not create {}, so the daemon did", link.display()),
        // udev made the link first.
        Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => {}
        Err(fault) => warn!("cannot create {} in place of udev: {fault}", link.display()),
    }
}

/// Removes the link of a device that no longer has the name.
pub(super) fn remove_link(name: &str) {
    let link = node(name);
    if fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()) {
        if let Err(fault) = fs::remove_file(&link) {
            warn!("cannot remove {}: {fault}", link.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::node;

    #[test]
    fn nodes_lie_in_dev_mapper() {
        assert_eq!(node("stratis-1-x"), Path::new("/dev/mapper/stratis-1-x"));
    }
}
