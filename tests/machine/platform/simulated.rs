//! The checks of the word `simulation`: a real kernel must pass what the simulation passes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use stratisd::platform::Platform;
use support::alike::{self, Place};

use crate::{Check, Machine, command, outside};

pub(crate) const CHECKS: &[Check] = &[
    ("metadata space runs out and comes back", |machine| run(machine, alike::metadata_space)),
    ("a deletion gives metadata space back", |machine| run(machine, alike::metadata_deletion)),
    ("many blocks at once overrun the reserve", |machine| run(machine, alike::metadata_overrun)),
    ("a full pool fails queued writes after a timeout", |machine| run(machine, alike::patience)),
    ("xfs_db leaves a dirty log alone", |machine| run(machine, alike::dirty_log)),
    ("an XFS is mounted with its own log only", |machine| run(machine, alike::own_log)),
    ("mkfs maps its log", |machine| run(machine, alike::mkfs_blocks)),
    ("an XFS without its log is shut down", |machine| run(machine, alike::shutdown)),
    ("a device is removed right after its use", |machine| run(machine, alike::lingering)),
    ("the udev database lags behind", |machine| run(machine, alike::late_udev)),
];

/// How long the kernel queues writes when out of data space, in seconds; 60 by default.
const PATIENCE: &str = "/sys/module/dm_thin_pool/parameters/no_space_timeout";

struct Real<'a> {
    machine: &'a Machine,
    disk: PathBuf,
}

fn run(machine: &Machine, body: fn(&dyn Place)) {
    let disk = machine.disk(0).path;
    fs::write(PATIENCE, "3").unwrap();
    body(&Real { machine, disk });
}

impl Place for Real<'_> {
    fn platform(&self) -> &dyn Platform {
        &self.machine.linux
    }

    fn disk(&self) -> &Path {
        &self.disk
    }

    fn mount(&self, node: &Path, at: &Path) {
        outside("mkdir", &["-p", at.to_str().unwrap()]);
        outside("mount", &[node.to_str().unwrap(), at.to_str().unwrap()]);
    }

    fn unmount(&self, at: &Path) {
        outside("umount", &[at.to_str().unwrap()]);
    }

    fn lose_patience(&self) {
        // On a real machine, the time passes without help.
    }

    fn hold_udev(&self) {
        command("udevadm", &["settle"]);
        command("udevadm", &["control", "--stop-exec-queue"]);
    }

    fn release_udev(&self) {
        command("udevadm", &["control", "--start-exec-queue"]);
    }
}
