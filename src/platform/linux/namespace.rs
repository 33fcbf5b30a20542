//! The daemon's mount namespace: its own, private, and with nothing in it that users have mounted.
//!
//! A new mount namespace begins with a copy of every mount. A copy keeps the file system busy when its user unmounts it: the
//! unmount reaches the copy only if the mount below it is shared, which containers and administrators change at will. So
//! nothing is left of what the daemon and its libraries do not need, and nothing new gets in. What users have mounted is seen
//! from outside ([`super::user_mounts`]), in every namespace alike.
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

/// Places that the daemon and its libraries use.
const NEEDED: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/etc", "/var/run", PLACE];
/// Mounts below these are of the kernel's own file systems, and stay.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Variables with the addresses of sockets that the daemon connects to, or will.
const ADDRESSES: [&str; 2] = ["DBUS_SYSTEM_BUS_ADDRESS", "NOTIFY_SOCKET"];

/// The mount namespace of the first process, where administrators mount things. To hold it keeps nothing busy that is not kept
/// anyway. The daemon may have been started in another one, which systemd makes for a unit that is confined.
pub(super) struct Origin {
    root: OwnedFd,
    namespace: File,
}

impl Origin {
    /// Its root directory; only good for paths from there.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The namespace itself, in which programs are run.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Moves the process into a mount namespace of its own, unless it is the first process, and lets go of what users have mounted.
/// Gives the namespace of the first process; `None` if that cannot be reached.
///
/// # Errors
/// When the process has several threads (only the calling one would move) or lacks the right.
pub(super) fn leave() -> Result<Option<Origin>> {
    if process::id() == 1 {
        return Ok(None);
    }
    let threads = Path::new("/proc/self/task");
    let count = fs::read_dir(threads)
        .map_err(|source| Error::Io { action: "look at", path: threads.to_owned(), source })?
        .count();
    if count != 1 {
        return Err(Error::Missing(format!(
            "the mount namespace must be left before threads are started, but there are {count}"
        )));
    }
    let root = Path::new("/");
    // A working directory below a mount would hold that.
    env::set_current_dir(root).map_err(|source| Error::Io { action: "go to", path: root.to_owned(), source })?;
    let origin = open_origin()
        .inspect_err(|error| {
            warn!("programs run in the daemon's own mount namespace, and do not see what users mount: {error}")
        })
        .ok();
    unshare(CloneFlags::CLONE_NEWNS).map_err(error("leave the mount namespace of", root))?;
    let nothing: Option<&str> = None;
    mount(nothing, root, nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(error("keep mounts private under", root))?;
    let needed = needed();
    let mut count = 0;
    // The table lists a mount after the one it lies on, so backwards is from the inside out.
    for entry in mount_table::read("self")?.iter().rev().filter(|entry| !stays(entry, &needed)) {
        match umount2(&entry.mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => count += 1,
            Err(errno) => {
                let path = entry.mount_point.display();
                warn!(
                    "a copy of the mount at {path} stays in the daemon's mount namespace and may keep it busy: {errno}"
                );
            }
        }
    }
    info!("the daemon's mount namespace is its own; {count} mounts were let go of in it");
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

/// Paths that must be there as long as the daemon runs.
fn needed() -> Vec<PathBuf> {
    let fixed = NEEDED.into_iter().chain(PLACES.split(':')).map(PathBuf::from);
    let program = fs::read_link("/proc/self/exe").into_iter();
    // Each line ends with the path of the file, if it is one.
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

/// Whether a mount is one that the daemon needs: on the way to a path, or of the kernel's own.
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
        // This program, and what it is linked with.
        let program = fs::read_link("/proc/self/exe").unwrap();
        check(program.parent().unwrap().to_str().unwrap(), 253, true);
    }
}
