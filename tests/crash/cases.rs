//! The operations that are struck.

use stratisd::{
    engine::{
        Result,
        dm_names::Role,
        metadata::MetadataVersion,
        ops::{self, Stopped},
    },
    platform::Platform,
};

use crate::bench::{Bench, name};

/// An operation on a prepared machine.
pub struct Case {
    /// What is done.
    pub name: &'static str,
    /// Prepares the machine.
    pub prepare: fn(&mut Bench),
    /// The operation.
    pub act: fn(&mut Bench) -> Result<()>,
    /// Something else that must work afterwards, in whichever state.
    pub next: fn(&mut Bench) -> Result<()>,
}

fn nothing(_: &mut Bench) {}

fn pool(bench: &mut Bench) {
    bench.create_pool("p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
}

fn old_pool(bench: &mut Bench) {
    bench.create_pool_of(MetadataVersion::V1, "p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
    bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
}

fn filesystems(bench: &mut Bench) {
    pool(bench);
    bench.create_filesystems("p", &["f", "g"]).expect("the filesystems can be created");
}

fn snapshots(bench: &mut Bench) {
    filesystems(bench);
    snapshot(bench, "f", "s").expect("the snapshot can be made");
    snapshot(bench, "s", "t").expect("the snapshot can be made");
}

fn snapshot(bench: &mut Bench, origin: &str, to: &str) -> Result<()> {
    let origin = bench.filesystem("p", origin);
    bench.run(ops::snapshot_filesystem(bench.id("p"), origin, name(to))).map(drop)
}

fn other_pool(bench: &mut Bench) -> Result<()> {
    bench.create_pool("other", &["/dev/x"]).map(drop)
}

fn one_more(bench: &mut Bench) -> Result<()> {
    bench.create_filesystems("p", &["one-more"]).map(drop)
}

fn one_more_in_any(bench: &mut Bench) -> Result<()> {
    let pool = bench.names().into_iter().next().expect("a pool is there");
    bench.create_filesystems(&pool, &["one-more"]).map(drop)
}

/// Filesystem f with snapshots s and r, s with snapshot t, each with another content.
fn marked_snapshots(bench: &mut Bench) {
    marked_snapshots_of(bench, MetadataVersion::V2);
}

fn marked_snapshots_of(bench: &mut Bench, version: MetadataVersion) {
    bench.create_pool_of(version, "p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
    bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
    for (origin, name) in [("f", "s"), ("f", "r"), ("s", "t")] {
        snapshot(bench, origin, name).expect("the snapshot can be made");
    }
    for (mark, name) in (1..).zip(["f", "s", "r", "t"]) {
        bench.mark("p", name, mark);
    }
}

fn schedule(bench: &mut Bench, snapshot: &str, scheduled: bool) -> Result<()> {
    let id = bench.filesystem("p", snapshot);
    bench.run(ops::schedule_revert(bench.id("p"), id, scheduled)).map(drop)
}

fn reverting(bench: &mut Bench, version: MetadataVersion) {
    marked_snapshots_of(bench, version);
    schedule(bench, "s", true).expect("it can be scheduled");
}

/// Stops a pool wholly.
fn stop(bench: &mut Bench, pool: &str) -> Result<()> {
    match bench.stop_pool(pool)? {
        Stopped::Partly(_, error) => Err(error),
        Stopped::Done(_) | Stopped::CleanedUp(_) | Stopped::Already => Ok(()),
    }
}

fn start_again(bench: &mut Bench) -> Result<()> {
    bench.start_pool("p")?;
    one_more(bench)
}

/// Every operation of the engine.
pub const CASES: &[Case] = &[
    Case {
        name: "create a pool of version 2",
        prepare: nothing,
        act: |bench| bench.create_pool("p", &["/dev/a", "/dev/b"]).map(drop),
        next: other_pool,
    },
    Case {
        name: "create a pool of version 1",
        prepare: nothing,
        act: |bench| bench.create_pool_of(MetadataVersion::V1, "p", &["/dev/a"]).map(drop),
        next: other_pool,
    },
    Case {
        name: "destroy a pool",
        prepare: pool,
        act: |bench| bench.run(ops::destroy_pool(bench.id("p"))).map(drop),
        next: |bench| bench.create_pool("other", &["/dev/x"]).map(drop),
    },
    Case {
        name: "rename a pool with filesystems",
        prepare: filesystems,
        act: |bench| bench.run(ops::rename_pool(bench.id("p"), name("q"))).map(drop),
        next: one_more_in_any,
    },
    Case {
        name: "create a filesystem",
        prepare: filesystems,
        act: |bench| bench.create_filesystems("p", &["h"]).map(drop),
        next: one_more,
    },
    Case {
        name: "create a filesystem in a pool of version 1",
        prepare: old_pool,
        act: |bench| bench.create_filesystems("p", &["h"]).map(drop),
        next: one_more,
    },
    Case {
        name: "snapshot a filesystem",
        prepare: filesystems,
        act: |bench| snapshot(bench, "f", "s"),
        next: one_more,
    },
    Case {
        name: "snapshot a mounted filesystem",
        prepare: |bench| {
            filesystems(bench);
            bench.mount("p", "f");
        },
        act: |bench| snapshot(bench, "f", "s"),
        next: one_more,
    },
    Case {
        name: "rename a filesystem",
        prepare: filesystems,
        act: |bench| {
            let id = bench.filesystem("p", "f");
            bench.run(ops::rename_filesystem(bench.id("p"), id, name("renamed"))).map(drop)
        },
        next: one_more,
    },
    Case {
        name: "destroy two filesystems with snapshots",
        prepare: snapshots,
        act: |bench| {
            let doomed = vec![bench.filesystem("p", "f"), bench.filesystem("p", "s")];
            bench.run(ops::destroy_filesystems(bench.id("p"), doomed)).map(drop)
        },
        next: one_more,
    },
    Case {
        name: "say something of a device",
        prepare: pool,
        act: |bench| {
            let device = bench.device("p", "/dev/b");
            bench.run(ops::set_user_info(bench.id("p"), device, Some("front-left".to_owned()))).map(drop)
        },
        next: one_more,
    },
    Case { name: "stop a pool", prepare: snapshots, act: |bench| stop(bench, "p"), next: start_again },
    Case { name: "stop a pool of version 1", prepare: old_pool, act: |bench| stop(bench, "p"), next: start_again },
    Case {
        name: "start a pool",
        prepare: |bench| {
            snapshots(bench);
            stop(bench, "p").expect("the pool can be stopped");
        },
        act: |bench| bench.start_pool("p").map(drop),
        next: one_more,
    },
    Case {
        name: "start a pool of version 1",
        prepare: |bench| {
            old_pool(bench);
            stop(bench, "p").expect("the pool can be stopped");
        },
        act: |bench| bench.start_pool("p").map(drop),
        next: one_more,
    },
    Case {
        name: "start a pool of which thin metadata is damaged",
        prepare: |bench| {
            filesystems(bench);
            let metadata = Role::ThinMeta.name(bench.id("p"));
            bench.sim.damage_metadata(&bench.sim.dm_node(&metadata)).expect("there is a thin pool");
            stop(bench, "p").expect("the pool can be stopped");
        },
        act: |bench| bench.start_pool("p").map(drop),
        next: one_more,
    },
    Case {
        name: "start a pool with a revert",
        prepare: |bench| {
            reverting(bench, MetadataVersion::V2);
            stop(bench, "p").expect("the pool can be stopped");
        },
        act: |bench| bench.start_pool("p").map(drop),
        next: one_more,
    },
    Case {
        name: "start a pool of version 1 with a revert",
        prepare: |bench| {
            reverting(bench, MetadataVersion::V1);
            stop(bench, "p").expect("the pool can be stopped");
        },
        act: |bench| bench.start_pool("p").map(drop),
        next: one_more,
    },
    Case {
        name: "clean up a pool of which the stop did not come to its end",
        prepare: |bench| {
            filesystems(bench);
            let bottom = Role::OriginSub.name(bench.id("p"));
            // As often as a stop tries.
            bench.sim.hold_device(&bottom, 10).expect("the pool runs");
            let stopped = bench.stop_pool("p").expect("it is stopped as far as possible");
            assert!(matches!(stopped, Stopped::Partly(..)), "{stopped:?}");
        },
        act: |bench| stop(bench, "p"),
        next: start_again,
    },
    Case {
        name: "start a pool of which the stop did not come to its end",
        prepare: |bench| {
            filesystems(bench);
            bench.sim.hold_device(&Role::OriginSub.name(bench.id("p")), 10).expect("the pool runs");
            bench.stop_pool("p").expect("it is stopped as far as possible");
        },
        act: |bench| bench.start_pool("p").map(drop),
        next: start_again,
    },
    Case {
        name: "schedule a revert",
        prepare: marked_snapshots,
        act: |bench| schedule(bench, "s", true),
        next: one_more,
    },
    Case {
        name: "cancel a revert",
        prepare: |bench| {
            marked_snapshots(bench);
            schedule(bench, "s", true).expect("it can be scheduled");
        },
        act: |bench| schedule(bench, "s", false),
        next: one_more,
    },
    Case { name: "refresh", prepare: snapshots, act: |bench| bench.run(ops::refresh()), next: one_more },
];
