//! The private directory: a small tmpfs at [`PRIVATE_DIRECTORY`] that no other program sees. The
//! metadata volumes are mounted in it. This module knows nothing of what is mounted.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
    time::Duration,
};

use log::{info, warn};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::{database, files::PrivateDirectory, mount_table, wait};
use crate::platform::{Error, Result};

/// The private directory.
pub(super) const PRIVATE_DIRECTORY: &str = "/run/stratisd/ns_mounts";
/// The tmpfs holds mount points only.
const PRIVATE_DIRECTORY_OPTIONS: &str = "size=1M,mode=0700";
/// Nothing in the private directory is a program or a device, whatever the disks contain.
const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Attempts to unmount a busy mount, and the pause between two attempts. The kernel does not
/// announce the end of the use.
const UNMOUNT_TRIES: u32 = 3;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(100);

/// Wraps the errno of a call on a path.
pub(super) fn error(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::Io { action, path, source: errno.into() }
}

/// Creates the private directory as an empty tmpfs. First unmounts what an earlier daemon left
/// there.
///
/// # Errors
/// If it cannot be created or mounted, or is not a directory.
pub(super) fn make_private_directory() -> Result<PrivateDirectory> {
    let directory = Path::new(PRIVATE_DIRECTORY);
    if fs::symlink_metadata(directory).is_ok_and(|found| !found.is_dir()) {
        return Err(Error::Missing(format!("cannot use {PRIVATE_DIRECTORY}: it is not a directory; remove it")));
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(|source| Error::Io {
        action: "create the directory",
        path: directory.to_owned(),
        source,
    })?;
    clear_private_directory()?;
    mount(Some("tmpfs"), directory, Some("tmpfs"), SAFE, Some(PRIVATE_DIRECTORY_OPTIONS))
        .map_err(error("mount a tmpfs on", directory))?;
    let nothing: Option<&str> = None;
    mount(nothing, directory, nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
        .map_err(error("make mounts private under", directory))?;
    Ok(PrivateDirectory::new(directory))
}

/// Unmounts everything in the private directory, and the tmpfs itself.
///
/// # Errors
/// If something there is in use.
pub(super) fn clear_private_directory() -> Result<()> {
    // The table lists a mount after the one below it, so go backwards.
    for entry in
        mount_table::read("self")?.iter().rev().filter(|entry| entry.mount_point.starts_with(PRIVATE_DIRECTORY))
    {
        info!("the daemon unmounts {}", entry.mount_point.display());
        unmount_busy(&entry.mount_point).map_err(error("unmount", &entry.mount_point))?;
    }
    Ok(())
}

/// Mounts the XFS on `node` in the private directory.
pub(super) fn mount_xfs(directory: &PrivateDirectory, node: &Path, at: &str, options: &str) -> Result<()> {
    let target = directory.make_directory(at)?;
    let (flags, data) = split_options(options);
    let result = mount(Some(node), &target, Some("xfs"), SAFE | flags, Some(data.as_str()));
    match result {
        Ok(()) => Ok(()),
        // The kernel also returns EBUSY if something else has the device open exclusively, so look
        // at the mount table.
        Err(Errno::EBUSY) if is_mounted(node, &target)? => Ok(()),
        Err(errno) => Err(error("mount a file system from", node)(errno)),
    }
}

/// Unmounts what is mounted in the private directory and removes its mount point.
pub(super) fn unmount(directory: &PrivateDirectory, at: &str) -> Result<()> {
    let target = directory.path(at)?;
    match unmount_busy(&target) {
        // Not a mount point, or it does not exist.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(error("unmount", &target)(errno)),
    }
    match fs::remove_dir(&target) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove the directory", path: target, source })
        }
        _ => Ok(()),
    }
}

fn unmount_busy(target: &Path) -> std::result::Result<(), Errno> {
    for _ in 1..UNMOUNT_TRIES {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => wait::pause(UNMOUNT_PAUSE),
            other => return other,
        }
    }
    umount2(target, MntFlags::UMOUNT_NOFOLLOW)
}

fn is_mounted(node: &Path, target: &Path) -> Result<bool> {
    let found = fs::metadata(node).map_err(|source| Error::Io { action: "stat", path: node.to_owned(), source })?;
    let number = database::number(found.rdev());
    Ok(mount_table::read("self")?.iter().any(|entry| entry.number == number && entry.mount_point == target))
}

/// Splits options of mount(8) into kernel flags and the text for the file system.
fn split_options(options: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut text = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "rw" | "defaults" => {}
            other => text.push(other),
        }
    }
    (flags, text.join(","))
}

/// Unmounts everything private at the end of the daemon. Logs what cannot be unmounted; the kernel
/// unmounts it when the last process of the namespace exits.
pub(super) fn leave_private_directory() {
    if let Err(fault) = clear_private_directory() {
        warn!("cannot unmount the private directory, leaving it to the kernel: {fault}");
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::MsFlags;

    use super::split_options;

    #[test]
    fn options_are_split() {
        let check = |options, flags, text: &str| assert_eq!(split_options(options), (flags, text.to_owned()));
        check("", MsFlags::empty(), "");
        check("nouuid", MsFlags::empty(), "nouuid");
        check("ro,nouuid,noatime,logbsize=32k", MsFlags::MS_RDONLY | MsFlags::MS_NOATIME, "nouuid,logbsize=32k");
    }
}
