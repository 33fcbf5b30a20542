//! The operations by which pools, devices and filesystems grow and caches begin. The pools are as
//! small as possible, so that they are soon full.

use std::path::Path;

use stratisd::{
    base::{
        pool_ref::PoolRef,
        units::{Bytes, Sectors},
    },
    engine::{
        Result,
        metadata::MetadataVersion,
        ops::{self, CacheTier, StopOutcome, UnlockOptions},
    },
    platform::{Platform, WriteStep},
};
use support::bench::{Bench, GIB, name};

use crate::{
    Then,
    cases::{BOTH, Case},
};

const SMALL: Sectors = Sectors(2 * GIB.0);

/// A pool with a filesystem, on a small disk that is completely allocated.
fn full(bench: &mut Bench, version: MetadataVersion) {
    bench.sim.add_disk(Path::new("/dev/small"), SMALL).expect("a disk can be plugged in");
    bench.create_pool_of(version, "p", &["/dev/small"]).expect("the pool can be created");
    bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
    bench.mark("p", "f", 5);
    check(bench).expect("the pool can be checked");
    let pool = bench.pool("p").expect("it was just created");
    assert!(pool.no_alloc_space, "a small pool has nothing left to hand out");
}

fn check(bench: &mut Bench) -> Result<()> {
    bench.run(ops::check_now(bench.id("p")))
}

fn add(bench: &mut Bench, devices: &[&str]) -> Result<()> {
    bench.run(ops::add_data_devices(bench.id("p"), devices.iter().map(Into::into).collect())).map(drop)
}

/// A full pool to which a disk of 100 GiB has been added.
fn with_space(bench: &mut Bench, version: MetadataVersion) {
    full(bench, version);
    bench.sim.add_disk(Path::new("/dev/large"), Sectors(100 * GIB.0)).expect("a disk can be plugged in");
    add(bench, &["/dev/large"]).expect("the disk can be added");
}

fn grow(bench: &mut Bench) -> Result<()> {
    let device = bench.device("p", "/dev/small");
    bench.run(ops::grow_device(bench.id("p"), device)).map(drop)
}

fn resized(bench: &mut Bench, version: MetadataVersion) {
    full(bench, version);
    bench.sim.resize_disk(Path::new("/dev/small"), Sectors(4 * GIB.0)).expect("the disk is there");
}

fn one_more(bench: &mut Bench) -> Result<()> {
    bench.create_filesystems("p", &["one-more"]).map(drop)
}

fn roomy(bench: &mut Bench, version: MetadataVersion) {
    bench.create_pool_of(version, "p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
    bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
    bench.mark("p", "f", 9);
    check(bench).expect("the pool can be checked");
}

fn init_cache(bench: &mut Bench, devices: &[&str]) -> Result<()> {
    bench.run(ops::init_cache(bench.id("p"), devices.iter().map(Into::into).collect())).map(drop)
}

pub fn cached(bench: &mut Bench, version: MetadataVersion) {
    roomy(bench, version);
    init_cache(bench, &["/dev/fast"]).expect("a cache can be begun");
}

fn add_to_cache(bench: &mut Bench) -> Result<()> {
    bench.run(ops::add_cache_devices(bench.id("p"), vec!["/dev/faster".into()])).map(drop)
}

fn stop(bench: &mut Bench) -> Result<()> {
    match bench.stop_pool("p")? {
        StopOutcome::Partly(_, error) => Err(error),
        StopOutcome::Done(_) | StopOutcome::CleanedUp(_) | StopOutcome::Already => Ok(()),
    }
}

fn stopped_with_cache(bench: &mut Bench, version: MetadataVersion) {
    cached(bench, version);
    stop(bench).expect("the pool can be stopped");
}

fn start_without_cache(bench: &mut Bench) -> Result<()> {
    let pool = PoolRef::Name(name("p"));
    bench.run(ops::start_pool(pool, UnlockOptions::default(), CacheTier::Drop)).map(drop)
}

fn start_and_write(bench: &mut Bench) -> Result<()> {
    bench.start_pool("p")?;
    write_more(bench)
}

/// A cached pool without unallocated space, to which a disk is then added.
fn cached_with_space(bench: &mut Bench, version: MetadataVersion) {
    full(bench, version);
    init_cache(bench, &["/dev/fast"]).expect("a cache can be begun");
    add(bench, &["/dev/large"]).expect("the disk can be added");
}

fn empty_with_cache(bench: &mut Bench, version: MetadataVersion) {
    bench.create_pool_of(version, "p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
    init_cache(bench, &["/dev/fast"]).expect("a cache can be begun");
}

fn destroy(bench: &mut Bench) -> Result<()> {
    bench.run(ops::destroy_pool(bench.id("p"))).map(drop)
}

/// Writes user data through the devices below the filesystem.
fn write_more(bench: &mut Bench) -> Result<()> {
    bench.mark("p", "f", 77);
    one_more(bench)
}

/// Two mounted filesystems, more than half full, and one that is not mounted.
fn used(bench: &mut Bench, version: MetadataVersion) {
    bench.create_pool_of(version, "p", &["/dev/a"]).expect("the pool can be created");
    bench.create_filesystems("p", &["f", "g", "h"]).expect("the filesystems can be created");
    check(bench).expect("the pool can be checked");
    mount(bench);
}

fn mount(bench: &mut Bench) {
    for name in ["f", "g"] {
        bench.mount("p", name);
        bench.sim.set_used(&Path::new("/mnt").join(name), Bytes(600 << 20)).expect("it is mounted");
    }
}

/// Mounts the filesystems again after a power cut. The kernel refuses to mount an XFS that is
/// larger than its device.
fn mount_after(bench: &mut Bench) -> Result<()> {
    for name in ["f", "g"] {
        let _ = bench.sim.unmount_user(&Path::new("/mnt").join(name));
    }
    mount(bench);
    one_more(bench)
}

const V2: &[MetadataVersion] = &[MetadataVersion::V2];

/// The operations that grow a pool.
pub const GROWTH_CASES: &[Case] = &[
    Case {
        name: "check a pool with new space",
        versions: BOTH,
        then: Then::Forward,
        prepare: with_space,
        act: check,
        next: write_more,
    },
    Case {
        name: "check a cached pool with new space",
        versions: BOTH,
        then: Then::Forward,
        prepare: cached_with_space,
        act: check,
        next: write_more,
    },
    Case {
        name: "check a pool that has just handed out everything",
        versions: V2,
        then: Then::Forward,
        prepare: |bench, version| {
            bench.sim.add_disk(Path::new("/dev/small"), SMALL).expect("a disk can be plugged in");
            bench.create_pool_of(version, "p", &["/dev/small"]).expect("the pool can be created");
            bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
        },
        act: check,
        next: write_more,
    },
    Case {
        name: "check a pool of which a filesystem is being filled",
        versions: V2,
        then: Then::Forward,
        prepare: |bench, version| {
            roomy(bench, version);
            let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
            // Write past the low-water mark.
            let blocks =
                (65..365).map(|block| WriteStep::At(block << 20, b"x")).chain([WriteStep::Flush]).collect::<Vec<_>>();
            bench.sim.write(&node, &blocks).expect("the machine runs");
        },
        act: check,
        next: write_more,
    },
    Case {
        name: "add two data devices",
        versions: BOTH,
        then: Then::Check,
        prepare: roomy,
        act: |bench| add(bench, &["/dev/c", "/dev/d"]),
        next: write_more,
    },
    Case {
        name: "add a data device to a full pool",
        versions: V2,
        then: Then::Check,
        prepare: full,
        act: |bench| add(bench, &["/dev/large"]),
        next: write_more,
    },
    Case { name: "grow a device", versions: BOTH, then: Then::Check, prepare: resized, act: grow, next: write_more },
    Case {
        name: "begin a cache",
        versions: BOTH,
        then: Then::Check,
        prepare: roomy,
        act: |bench| init_cache(bench, &["/dev/fast", "/dev/faster"]),
        next: write_more,
    },
    Case {
        name: "add a cache device",
        versions: BOTH,
        then: Then::Check,
        prepare: cached,
        act: add_to_cache,
        next: write_more,
    },
    Case {
        name: "raise the filesystem limit",
        versions: V2,
        then: Then::Check,
        prepare: roomy,
        act: |bench| bench.run(ops::set_fs_limit(bench.id("p"), 5000)),
        next: write_more,
    },
    Case {
        name: "forbid overprovisioning",
        versions: V2,
        then: Then::Check,
        prepare: roomy,
        act: |bench| bench.run(ops::set_overprovisioning(bench.id("p"), false)).map(drop),
        next: write_more,
    },
    Case {
        name: "set a size limit",
        versions: V2,
        then: Then::Look,
        prepare: roomy,
        act: |bench| {
            let id = bench.filesystem("p", "f");
            bench.run(ops::set_size_limit(bench.id("p"), id, Some(Sectors(3 * GIB.0)))).map(drop)
        },
        next: one_more,
    },
    Case {
        name: "extend filesystems",
        versions: V2,
        then: Then::EachForward,
        prepare: used,
        act: |bench| {
            // The filesystems are mounted, unless the power has been cut since.
            if !bench.sim.leftovers().mounts.iter().any(|at| at.starts_with("/mnt")) {
                mount(bench);
            }
            bench.run(ops::check_filesystems_now(bench.id("p")))
        },
        next: mount_after,
    },
    Case {
        name: "stop a pool with a cache",
        versions: BOTH,
        then: Then::Look,
        prepare: cached,
        act: stop,
        next: start_and_write,
    },
    Case {
        name: "start a pool with a cache",
        versions: BOTH,
        then: Then::Look,
        prepare: stopped_with_cache,
        act: |bench| bench.start_pool("p").map(drop),
        next: write_more,
    },
    Case {
        name: "start a pool without its cache",
        versions: BOTH,
        then: Then::Look,
        prepare: stopped_with_cache,
        act: start_without_cache,
        next: start_and_write,
    },
    Case {
        name: "refresh a pool with a cache",
        versions: &[MetadataVersion::V1],
        then: Then::Look,
        prepare: cached,
        act: |bench| bench.run(ops::refresh()),
        next: write_more,
    },
    Case {
        name: "destroy a pool with a cache",
        versions: BOTH,
        then: Then::Look,
        prepare: empty_with_cache,
        act: destroy,
        next: |bench| bench.create_pool("other", &["/dev/x"]).map(drop),
    },
];
