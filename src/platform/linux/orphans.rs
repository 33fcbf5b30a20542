//! LUKS children that outlive their daemon. Each holds a lock while it works, and the next daemon
//! waits for that lock. Otherwise that daemon would see device-mapper devices in the middle of a
//! change.
//!
//! The children notice that the daemon is gone and exit by themselves, at the latest after one step
//! of a re-encryption job.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use log::{info, warn};
use rustix::fs::{FlockOperation, flock};

use super::wait;

/// The lock file, beside the private directory.
const LOCK: &str = "/run/stratisd/luks-children";
/// Polling interval. A blocking lock would wait for ever.
const LOOK: Duration = Duration::from_millis(50);

fn open() -> Option<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(LOCK).ok()
}

/// Marks this process as a working child until the mark is dropped. `None` if the daemon's
/// directory does not exist, as in tests; then no daemon waits either.
pub(super) fn mark() -> Option<File> {
    open().filter(|file| flock(file, FlockOperation::NonBlockingLockShared).is_ok())
}

/// Waits until no child of an earlier daemon works any more, for at most `limit`.
pub(super) fn wait_for_end(limit: Duration) {
    let Some(file) = open() else { return };
    let deadline = Instant::now() + limit;
    let mut logged = false;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            warn!(
                "the LUKS child process of an earlier stratisd did not exit within {} s; the daemon starts without waiting for it",
                limit.as_secs()
            );
            return;
        }
        if !logged {
            info!("the daemon waits for the LUKS child process of an earlier stratisd");
            logged = true;
        }
        wait::pause(LOOK);
    }
}
