//! What users have mounted, in whichever mount namespace: where, how full it is, and its extension.
//!
//! The namespace of the first process is looked at first. Only if a device that is in use is not mounted there, the
//! others are: a process of each is found, and its mounts are reached through `/proc/PROCESS/root`. Nothing of them is kept,
//! since to hold a namespace is to hold its mounts.
//!
//! Knows nothing of what is mounted.

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
    mount_table::{self, Entry},
    namespace::Origin,
    processes::{Input, Outcome, Task},
    programs, xfs_child,
};
use crate::{
    base::units::Bytes,
    platform::{DeviceNumber, Error, Mount, Result, Usage},
};

/// Where these devices are mounted, the private directory not counted. Of one device's mounts those of the whole file system
/// come before those of a part of it. `is_open` tells whether somebody has a device open, as who has mounted it has.
///
/// # Errors
/// When the table of the first process cannot be read.
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
            // One that has ended meanwhile has let go of what it had; should its namespace go on, the next look finds it.
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
        .map(|(Entry { number, mount_point, .. }, process)| Mount { number, mount_point, process })
        .collect())
}

/// The root directory from which the path of a mount leads to it.
fn root(origin: Option<&Origin>, mount: &Mount) -> Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/{}/root", mount.process.unwrap_or(1)));
    let opened = match (origin, mount.process) {
        (Some(origin), None) => origin.root().try_clone_to_owned(),
        _ => rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from),
    };
    opened.map_err(|source| Error::Io { action: "open", path, source })
}

/// The path from the root.
fn below(path: &Path) -> &Path {
    match path.strip_prefix("/") {
        Ok(rest) if rest.as_os_str().is_empty() => Path::new("."),
        Ok(rest) => rest,
        Err(_) => path,
    }
}

/// How full the file system of a mount is.
///
/// The path is opened once, so that what is compared is what is counted, whatever is mounted there meanwhile.
///
/// # Errors
/// [`Error::OtherMount`] when something else is mounted there.
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

/// Extends the XFS of a mount to the size of its device. A child does it, since the kernel may let it wait.
///
/// # Errors
/// [`Error::OtherMount`] when something else is mounted there; [`Error::Grow`].
pub(super) fn grow_xfs(origin: Option<&Origin>, mount: &Mount) -> Result<()> {
    let failed = |what: String| Error::Grow { path: mount.shown(), what };
    let root = root(origin, mount)?;
    let number = mount.number.to_string();
    let arguments = [OsStr::new(xfs_child::CHILD), OsStr::new(&number), below(&mount.mount_point).as_os_str()];
    let limit = limits::of(Activity::GrowXfs, database::size(mount.number));
    let task = Task {
        label: format!("extension of the XFS at {}", mount.shown().display()),
        path: Path::new(programs::THIS_PROGRAM),
        arguments: &arguments,
        environment: &[],
        input: Input::Descriptor(root),
        limit,
        namespace: None,
    };
    let ended = task.run().map_err(|fault| failed(format!("no process for it could be started: {fault}")))?;
    match ended.outcome {
        Outcome::Exited(status) if status.success() => Ok(()),
        Outcome::Exited(status) if status.code() == Some(xfs_child::OTHER_MOUNT.into()) => {
            Err(Error::OtherMount { path: mount.shown(), number: mount.number })
        }
        Outcome::Exited(status) => Err(failed(programs::complaint(status, &ended.errors.bytes))),
        Outcome::TimedOut => Err(failed(limits::timed_out(limit))),
        Outcome::Unkillable => Err(failed(limits::unkillable(limit))),
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
        // Something else is mounted there.
        let number = DeviceNumber { minor: root.number.minor + 1, ..root.number };
        let error = usage(None, &Mount { number, ..root.clone() }).unwrap_err();
        assert!(matches!(&error, Error::OtherMount { number: named, .. } if *named == number), "{error}");
        assert!(matches!(usage(None, &Mount { mount_point: "/proc".into(), ..root }), Err(Error::OtherMount { .. })));
    }

    #[test]
    fn a_device_that_nobody_has_open_is_mounted_nowhere() {
        let nowhere = DeviceNumber { major: 4000, minor: 1 };
        assert_eq!(find(&[nowhere], |_| false).unwrap(), []);
        assert_eq!(find(&[nowhere], |_| true).unwrap(), []);
    }
}
