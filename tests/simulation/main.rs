//! The simulation compared with the kernel: the same commands must give the same output. The
//! comparisons are in `support::alike`. docs/simulation.md says what the simulation does not model.
//! `make test-machine ONLY=simulation` runs the comparisons on a real kernel.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]

use std::{path::Path, time::Duration};

use stratisd::{
    base::units::Sectors,
    platform::{Platform, sim::Sim},
};
use support::alike::{self, Place};

/// A simulated machine with one disk.
struct Simulated(Sim);

impl Place for Simulated {
    fn platform(&self) -> &dyn Platform {
        &self.0
    }

    fn disk(&self) -> &Path {
        Path::new("/dev/a")
    }

    fn mount(&self, node: &Path, at: &Path) {
        self.0.mount_user(node, at).unwrap();
    }

    fn unmount(&self, at: &Path) {
        self.0.unmount_user(at).unwrap();
    }

    fn lose_patience(&self) {
        // Waits until both the write and the suspend wait for space.
        assert!(self.0.wait_for_stalled(2, alike::LIMIT));
        self.0.advance_clock(Duration::from_secs(60));
    }

    fn hold_udev(&self) {
        self.0.hold_udev();
    }

    fn release_udev(&self) {
        self.0.release_udev();
    }
}

fn run(body: fn(&dyn Place)) {
    body(&Simulated(Sim::builder().disk("/dev/a", Sectors(6 << 20)).only_these().build()));
}

#[test]
fn metadata_space_runs_out_and_comes_back() {
    run(alike::metadata_space);
}

#[test]
fn a_deletion_gives_metadata_space_back() {
    run(alike::metadata_deletion);
}

#[test]
fn many_blocks_at_once_overrun_the_reserve() {
    run(alike::metadata_overrun);
}

#[test]
fn queued_writes_fail_after_a_timeout() {
    run(alike::patience);
}

#[test]
fn an_xfs_is_mounted_with_its_own_log() {
    run(alike::own_log);
}

#[test]
fn xfs_db_leaves_a_dirty_log_alone() {
    run(alike::dirty_log);
}

#[test]
fn mkfs_maps_its_log() {
    run(alike::mkfs_blocks);
}

#[test]
fn an_xfs_without_its_log_is_shut_down() {
    run(alike::shutdown);
}

#[test]
fn a_device_is_removed_right_after_its_use() {
    run(alike::lingering);
}

#[test]
fn the_udev_database_lags_behind() {
    run(alike::late_udev);
}
