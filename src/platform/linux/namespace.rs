//! The daemon's mount namespace: its own, private, and without the mounts of users.
//!
//! A new mount namespace starts with a copy of every mount. A copy keeps the file system busy after
//! its user unmounts it: the unmount reaches the copy only if the mount below it is shared, and
//! containers and administrators change that at will. So the daemon drops every mount that neither
//! it nor its libraries need, and no new mount propagates into its namespace. Mounts of users are
//! examined from outside ([`super::user_mounts`]), in every namespace alike.
//!
//! A namespace may hold more mounts than its table lists: a table lists only the mounts that can be
//! reached from the root. For a confined unit, systemd 252 makes a namespace, mounts a copy of all
//! mounts over its root, and leaves the original tree beneath. A copy of that namespace has both
//! trees. So the daemon also unmounts what lies beneath its root ([`let_go_beneath`]).
//!
//! This module knows nothing of what the mounts are for.

use std::{
    env, fs,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process,
};

use log::{info, warn};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    mount_table::{self, MountEntry},
    mounts::{PRIVATE_DIRECTORY, error},
    processes::PLACES,
};
use crate::platform::{Error, Result};

/// Paths that the daemon and its libraries use.
const NEEDED: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/etc", "/var/run", PRIVATE_DIRECTORY];
/// Mounts of the kernel's own file systems at or below these paths stay. systemd mounts over the
/// last one for a confined unit.
const KERNEL: [&str; 4] = ["/proc", "/sys", "/dev", "/usr/lib/modules"];
/// Environment variables with addresses of sockets that the daemon connects to.
const ADDRESSES: [&str; 2] = ["DBUS_SYSTEM_BUS_ADDRESS", "NOTIFY_SOCKET"];

/// The mount namespace of PID 1, where administrators mount things. Holding it open keeps no mount
/// busy that PID 1 does not keep busy anyway. The daemon may have been started in another
/// namespace, because systemd makes one for a confined unit.
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

/// Moves the process into a new mount namespace, unless it is PID 1, and drops the mounts of users
/// there. Returns the namespace of PID 1, or `None` if it cannot be reached.
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
    let is_confined = mount_table::namespace("1") != mount_table::namespace("self");
    let origin = open_origin()
        .inspect_err(|error| {
            warn!("cannot open the mount namespace of PID 1, so programs will not see mounts of users: {error}")
        })
        .ok();
    unshare(CloneFlags::CLONE_NEWNS).map_err(error("leave the mount namespace of", root))?;
    make_private(root)?;
    let needed = needed();
    let mut count = let_go(|entry| stays(entry, &needed))?;
    if is_confined {
        count += let_go_beneath(root)?;
    }
    info!("the daemon entered its own mount namespace and dropped {count} mounts there");
    Ok(origin)
}

/// From now on mounts and unmounts below `root` stay in this namespace, and those in other
/// namespaces do not reach it.
fn make_private(root: &Path) -> Result<()> {
    let nothing: Option<&str> = None;
    mount(nothing, root, nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(error("make mounts private under", root))
}

/// Detaches all mounts in the table except those that stay, and returns their number.
///
/// # Errors
/// When the table cannot be read.
fn let_go(stays: impl Fn(&MountEntry) -> bool) -> Result<usize> {
    let mut count = 0;
    // The table lists a mount after the one below it, so go backwards.
    for entry in mount_table::read("self")?.iter().rev().filter(|entry| !stays(entry)) {
        match umount2(&entry.mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => count += 1,
            Err(errno) => {
                let path = entry.mount_point.display();
                warn!("cannot drop the copy of the mount at {path}, which may keep it busy: {errno}");
            }
        }
    }
    Ok(count)
}

/// Detaches the mounts beneath the root. The root covers them, so they have no paths. Therefore the
/// tree of the root is copied, detached, and put back afterwards. The namespace is new, so no other
/// thread or process sees this.
///
/// # Errors
/// The tree of the root was detached and could not be put back. The daemon cannot work without it.
fn let_go_beneath(root: &Path) -> Result<usize> {
    let take_away = || -> io::Result<Option<(OwnedFd, File)>> {
        // Nothing lies beneath the lowest mount, and a namespace without it is useless.
        if mount_table::lowest_is_root()? {
            return Ok(None);
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let taken = (open_tree(CWD, root, flags)?, File::open("/proc/self/ns/mnt")?);
        umount2(root, MntFlags::MNT_DETACH)?;
        Ok(Some(taken))
    };
    let (tree, namespace) = match take_away() {
        Ok(Some(taken)) => taken,
        Ok(None) => return Ok(0),
        Err(error) => {
            warn!("copies of mounts may stay beneath the daemon's root and keep file systems busy: {error}");
            return Ok(0);
        }
    };
    // A process that enters a namespace gets the topmost mount at its root.
    setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(error("go to what is beneath the root of", root))?;
    // The first call did not reach this tree.
    make_private(root)?;
    // This may be the initial root of the boot, which has no /proc.
    let listed = mount_table::read("self").is_ok();
    let count = if listed { let_go(|entry| entry.mount_point == root)? } else { 0 };
    let put_back = || -> io::Result<()> {
        rustix::process::fchdir(&tree)?;
        move_mount(&tree, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        rustix::process::chroot(".")?;
        env::set_current_dir(root)
    };
    put_back().map_err(|source| Error::Io {
        action: "put the daemon's root back to",
        path: root.to_owned(),
        source,
    })?;
    Ok(count)
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
    // A line ends with the path of the mapped file, if the mapping has one.
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
fn stays(entry: &MountEntry, needed: &[PathBuf]) -> bool {
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
            let entry = MountEntry { number, is_whole: true, mount_point: mount_point.into() };
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
