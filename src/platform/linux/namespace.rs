//! The daemon's mount namespace: its own, private, and without the mounts of users.
//!
//! A new mount namespace starts with a copy of every mount. A copy keeps the file system busy after
//! its user unmounts it: the unmount reaches the copy only if the mount below it is shared, which
//! containers and administrators change at will. So the daemon drops every mount that neither it
//! nor its libraries need, and no new mount propagates into its namespace. Mounts of users are
//! examined from outside ([`super::user_mounts`]), in every namespace alike.
//!
//! Knows nothing of what the mounts are for.

use std::{
    env, fs,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process,
};

use log::{info, warn};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{Mode, OFlags};

use super::{
    mount_table::{self, Entry},
    mounts::{PLACE, error},
    programs::PLACES,
};
use crate::platform::{Error, Result};

/// Paths that the daemon and its libraries use.
const NEEDED: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/etc", "/var/run", PLACE];
/// Mounts of the kernel's own file systems below these stay.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Environment variables with addresses of sockets that the daemon connects to.
const ADDRESSES: [&str; 2] = ["DBUS_SYSTEM_BUS_ADDRESS", "NOTIFY_SOCKET"];

/// The mount namespace of PID 1, where administrators mount things. Holding it keeps nothing busy
/// that PID 1 would not. The daemon may have been started in another one, because systemd makes one
/// for a confined unit.
pub(super) struct Origin {
    root: OwnedFd,
    namespace: File,
}

impl Origin {
    /// Its root directory, from which paths are resolved.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The namespace itself, in which programs run.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Moves the process into a mount namespace of its own, unless it is PID 1, and drops the mounts of
/// users there. Returns the namespace of PID 1, or `None` if it cannot be reached.
///
/// # Errors
/// If the process has several threads (only the calling one would move), or lacks the privilege.
pub(super) fn leave() -> Result<Option<Origin>> {
    if process::id() == 1 {
        return Ok(None);
    }
    let threads = Path::new("/proc/self/task");
    let count =
        fs::read_dir(threads).map_err(|source| Error::Io { action: "list", path: threads.to_owned(), source })?.count();
    if count != 1 {
        return Err(Error::Missing(format!(
            "cannot leave the mount namespace: the process has {count} threads already; this is a bug, please report it"
        )));
    }
    let root = Path::new("/");
    // A working directory below a mount would keep that mount.
    env::set_current_dir(root).map_err(|source| Error::Io { action: "change to", path: root.to_owned(), source })?;
    let origin = open_origin()
        .inspect_err(|error| {
            warn!("cannot open the mount namespace of PID 1, so programs will not see mounts of users: {error}")
        })
        .ok();
    unshare(CloneFlags::CLONE_NEWNS).map_err(error("leave the mount namespace of", root))?;
    let nothing: Option<&str> = None;
    mount(nothing, root, nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(error("make mounts private under", root))?;
    let needed = needed();
    let mut count = 0;
    // The table lists a mount after the one below it, so go backwards.
    for entry in mount_table::read("self")?.iter().rev().filter(|entry| !stays(entry, &needed)) {
        match umount2(&entry.mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => count += 1,
            Err(errno) => {
                let path = entry.mount_point.display();
                warn!("cannot drop the copy of the mount at {path}, which may keep it busy: {errno}");
            }
        }
    }
    info!("the daemon entered its own mount namespace and dropped {count} mounts there");
    Ok(origin)
}

fn open_origin() -> Result<Origin> {
    let path = Path::new("/proc/1/root");
    let root = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|errno| Error::Io { action: "open", path: path.to_owned(), source: errno.into() })?;
    let path = Path::new("/proc/1/ns/mnt");
    let namespace = File::open(path).map_err(|source| Error::Io { action: "open", path: path.to_owned(), source })?;
    Ok(Origin { root, namespace })
}

/// Paths that must exist as long as the daemon runs.
fn needed() -> Vec<PathBuf> {
    let fixed = NEEDED.into_iter().chain(PLACES.split(':')).map(PathBuf::from);
    let program = fs::read_link("/proc/self/exe").into_iter();
    // A line ends with the path of the mapped file, if there is one.
    let mapped = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped = mapped.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    let sockets = ADDRESSES.into_iter().filter_map(env::var_os).flat_map(|address| {
        let address = address.to_string_lossy().into_owned();
        let parts: Vec<PathBuf> =
            address.split([';', ',', '=', ':']).filter(|part| part.starts_with('/')).map(PathBuf::from).collect();
        parts
    });
    let mut paths: Vec<PathBuf> = fixed.chain(program).chain(mapped).chain(sockets).collect();
    let behind_links: Vec<PathBuf> = paths.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    paths.extend(behind_links);
    paths.sort();
    paths.dedup();
    paths
}

/// Whether the daemon needs a mount: it lies on the way to a needed path, or is one of the kernel's
/// own.
fn stays(entry: &Entry, needed: &[PathBuf]) -> bool {
    let is_kernel = || entry.number.major == 0 && KERNEL.iter().any(|place| entry.mount_point.starts_with(place));
    needed.iter().any(|path| path.starts_with(&entry.mount_point)) || is_kernel()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::DeviceNumber;

    #[test]
    fn needed_mounts_stay_and_mounts_of_users_go() {
        let needed = needed();
        let check = |mount_point: &str, major, expected: bool| {
            let number = DeviceNumber { major, minor: 1 };
            let entry = Entry { number, is_whole: true, mount_point: mount_point.into() };
            assert_eq!(stays(&entry, &needed), expected, "{mount_point}");
        };
        for stays in ["/", "/usr", "/proc", "/dev", "/run", "/run/stratisd/ns_mounts"] {
            check(stays, 8, true);
        }
        for kernel in ["/sys/fs/cgroup", "/dev/pts", "/proc/sys/fs/binfmt_misc"] {
            check(kernel, 0, true);
        }
        for goes in ["/mnt/a", "/home", "/run/media/user/disk", "/var/lib/docker", "/sys/mounted", "/runaway"] {
            check(goes, 253, false);
        }
        // This program and its libraries.
        let program = fs::read_link("/proc/self/exe").unwrap();
        check(program.parent().unwrap().to_str().unwrap(), 253, true);
    }
}
