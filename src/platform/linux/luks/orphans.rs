//! Children that have outlived their daemon: each holds a lock while it is at work, which the next daemon waits for.
//! Otherwise it would see device-mapper devices that are just being changed.
//!
//! They end by themselves, since they see that the daemon has gone: at the latest after one step of a work on data.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use log::{info, warn};
use rustix::fs::{FlockOperation, flock};

use super::super::wait;

/// The file with the lock; beside the private directory.
const LOCK: &str = "/run/stratisd/luks-children";
/// How often is looked whether they have ended. The kernel would tell, but then for ever.
const LOOK: Duration = Duration::from_millis(50);

fn open() -> Option<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(LOCK).ok()
}

/// Marks this process as a child at work, until the mark is dropped. `None`: where the daemon has no directory (in
/// tests) nobody waits either.
pub(super) fn mark() -> Option<File> {
    open().filter(|file| flock(file, FlockOperation::NonBlockingLockShared).is_ok())
}

/// Waits until no child of an earlier daemon is at work, at most so long.
pub(in super::super) fn wait_for_end(limit: Duration) {
    let Some(file) = open() else { return };
    let deadline = Instant::now() + limit;
    let mut told = false;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            warn!("a process that works on an encrypted device for an earlier stratisd does not end; going on");
            return;
        }
        if !told {
            info!("waiting for a process that still works on an encrypted device for an earlier stratisd");
            told = true;
        }
        wait::pause(LOOK);
    }
}
