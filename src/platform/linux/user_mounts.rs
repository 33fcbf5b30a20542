//! Mounts of users in any mount namespace: where they are, how full they are, and how to grow them.
//!
//! The namespace of PID 1 comes first. Only if an open device is not mounted there, the other
//! namespaces are searched: through one process of each, whose mounts are reached as
//! `/proc/PROCESS/root`. The daemon keeps no descriptor of a namespace, because that would keep its
//! mounts alive.
//!
//! This module knows nothing of what is mounted.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{
    database,
    limits::{self, Activity},
    mount_table::{self, MountEntry},
    namespace::Origin,
    processes::{ChildEnd, Input, Invocation},
    programs, xfs_child,
};
use crate::{
    base::units::Bytes,
    platform::{DeviceNumber, Error, Mount, Result, Usage},
};

/// Finds the mounts of these devices, except those in the private directory. For each device,
/// mounts of the whole file system come before mounts of a part of it. `is_open` says whether any
/// process, or a mount, has a device open.
///
/// # Errors
/// If the mount table of PID 1 cannot be read.
pub(super) fn find(devices: &[DeviceNumber], is_open: impl Fn(DeviceNumber) -> bool) -> Result<Vec<Mount>> {
    let wanted: BTreeSet<DeviceNumber> = devices.iter().copied().collect();
    let mut missing = wanted.clone();
    let mut found = Vec::new();
    for entry in mount_table::read("1")?.into_iter().filter(|entry| wanted.contains(&entry.number)) {
        missing.remove(&entry.number);
        found.push((entry, None));
    }
    missing.retain(|device| is_open(*device));
    if !missing.is_empty() {
        let ours = mount_table::namespace("self");
        let first = mount_table::namespace("1");
        for process in mount_table::namespaces()? {
            let text = process.to_string();
            // The process has exited. If its namespace still exists, the next search finds it
            // through another process.
            let Ok(table) = mount_table::read(&text) else { continue };
            if [ours, first].contains(&mount_table::namespace(&text)) {
                continue;
            }
            let mounts = table.into_iter().filter(|entry| missing.contains(&entry.number));
            found.extend(mounts.map(|entry| (entry, Some(process))));
        }
    }
    found.sort_by_key(|(entry, _)| !entry.is_whole);
    Ok(found
        .into_iter()
        .map(|(MountEntry { number, mount_point, .. }, process)| Mount { number, mount_point, process })
        .collect())
}

/// The root directory that the path of a mount is relative to.
fn root(origin: Option<&Origin>, mount: &Mount) -> Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/{}/root", mount.process.unwrap_or(1)));
    let opened = match (origin, mount.process) {
        (Some(origin), None) => origin.root().try_clone_to_owned(),
        _ => rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from),
    };
    opened.map_err(|source| Error::Io { action: "open", path, source })
}

/// The path relative to the root.
fn below(path: &Path) -> &Path {
    match path.strip_prefix("/") {
        Ok(rest) if rest.as_os_str().is_empty() => Path::new("."),
        Ok(rest) => rest,
        Err(_) => path,
    }
}

/// Returns how full the file system of a mount is.
///
/// The path is opened once, so that the device that is compared is the one that is measured,
/// whatever is mounted there meanwhile.
///
/// # Errors
/// [`Error::OtherMount`] if something else is mounted there.
pub(super) fn usage(origin: Option<&Origin>, mount: &Mount) -> Result<Usage> {
    let failed =
        |errno: rustix::io::Errno| Error::Io { action: "read the usage of", path: mount.shown(), source: errno.into() };
    let root = root(origin, mount)?;
    let place = rustix::fs::openat(&root, below(&mount.mount_point), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let place = place.map_err(failed)?;
    if database::number(rustix::fs::fstat(&place).map_err(failed)?.st_dev) != mount.number {
        return Err(Error::OtherMount { path: mount.shown(), number: mount.number });
    }
    let counted = rustix::fs::fstatvfs(&place).map_err(failed)?;
    let bytes = |blocks: u64| Bytes(u128::from(blocks) * u128::from(counted.f_frsize));
    Ok(Usage { total: bytes(counted.f_blocks), used: bytes(counted.f_blocks.saturating_sub(counted.f_bfree)) })
}

/// Grows the XFS of a mount to the size of its device. A child process makes the call, because it
/// may block in the kernel.
///
/// # Errors
/// [`Error::OtherMount`] if something else is mounted there; otherwise [`Error::Grow`].
pub(super) fn grow_xfs(origin: Option<&Origin>, mount: &Mount) -> Result<()> {
    let failed = |what: String| Error::Grow { path: mount.shown(), what };
    let root = root(origin, mount)?;
    let number = mount.number.to_string();
    let arguments = [OsStr::new(xfs_child::CHILD), OsStr::new(&number), below(&mount.mount_point).as_os_str()];
    let limit = limits::of(Activity::GrowXfs, database::size(mount.number));
    let invocation = Invocation {
        label: format!("growth of the XFS at {}", mount.shown().display()),
        path: Path::new(programs::THIS_PROGRAM),
        arguments: &arguments,
        environment: &[],
        input: Input::Descriptor(root),
        limit,
        namespace: None,
    };
    let ended = invocation.run().map_err(|fault| failed(format!("cannot start the child process: {fault}")))?;
    match ended.end {
        ChildEnd::Exited(status) if status.success() => Ok(()),
        ChildEnd::Exited(status) if status.code() == Some(xfs_child::OTHER_MOUNT.into()) => {
            Err(Error::OtherMount { path: mount.shown(), number: mount.number })
        }
        ChildEnd::Exited(status) => Err(failed(programs::complaint(status, &ended.errors.bytes))),
        ChildEnd::TimedOut => Err(failed(limits::timed_out(limit))),
        ChildEnd::Unkillable => Err(failed(limits::unkillable(limit))),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, process};

    use super::*;

    fn here(path: &str) -> Mount {
        let number = database::number(Path::new(path).metadata().unwrap().dev());
        Mount { number, mount_point: path.into(), process: Some(process::id()) }
    }

    #[test]
    fn usage_counts_bytes() {
        let root = here("/");
        let counted = usage(None, &root).unwrap();
        assert!(counted.total >= counted.used && counted.total > Bytes(1 << 20), "{counted:?}");
        let nowhere = Mount { mount_point: "/nonexistent".into(), ..root.clone() };
        assert!(matches!(usage(None, &nowhere), Err(Error::Io { .. })));
        // Another device is mounted at the path.
        let number = DeviceNumber { minor: root.number.minor + 1, ..root.number };
        let error = usage(None, &Mount { number, ..root.clone() }).unwrap_err();
        assert!(matches!(&error, Error::OtherMount { number: named, .. } if *named == number), "{error}");
        assert!(matches!(usage(None, &Mount { mount_point: "/proc".into(), ..root }), Err(Error::OtherMount { .. })));
    }

    #[test]
    fn an_unknown_device_has_no_mounts() {
        let nowhere = DeviceNumber { major: 4000, minor: 1 };
        assert_eq!(find(&[nowhere], |_| false).unwrap(), []);
        assert_eq!(find(&[nowhere], |_| true).unwrap(), []);
    }
}
