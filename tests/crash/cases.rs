//! The operations to strike (a *strike* is a fault, panic, kill or power cut at one step).

use stratisd::{
    engine::{
        Result,
        dm_names::Role,
        metadata::MetadataVersion,
        ops::{self, StopOutcome},
    },
    platform::Platform,
};
use support::bench::{Bench, name};

use crate::Then;

/// An operation, and the machine that it needs.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Metadata versions of its pool.
    pub versions: &'static [MetadataVersion],
    /// What happens before the state is compared.
    pub then: Then,
    /// Prepares the machine with a pool of this version.
    pub prepare: fn(&mut Bench, MetadataVersion),
    /// The operation.
    pub act: fn(&mut Bench) -> Result<()>,
    /// Another operation that must succeed afterwards, in either state.
    pub next: fn(&mut Bench) -> Result<()>,
}

const V1: MetadataVersion = MetadataVersion::V1;
const V2: MetadataVersion = MetadataVersion::V2;
/// Both metadata versions.
pub const BOTH: &[MetadataVersion] = &[V2, V1];

fn nothing(_: &mut Bench, _: MetadataVersion) {}

fn pool(bench: &mut Bench, version: MetadataVersion) {
    bench.create_pool_of(version, "p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
}

pub fn filesystems(bench: &mut Bench, version: MetadataVersion) {
    pool(bench, version);
    bench.create_filesystems("p", &["f", "g"]).expect("the filesystems can be created");
}

pub fn snapshots(bench: &mut Bench, version: MetadataVersion) {
    filesystems(bench, version);
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

/// Filesystem `f` with snapshots `s` and `r`, and `t`, a snapshot of `s`. Each has its own
/// contents.
fn marked_snapshots(bench: &mut Bench, version: MetadataVersion) {
    pool(bench, version);
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

pub fn reverting(bench: &mut Bench, version: MetadataVersion) {
    marked_snapshots(bench, version);
    schedule(bench, "s", true).expect("it can be scheduled");
}

/// Stops a pool completely.
pub fn stop(bench: &mut Bench, pool: &str) -> Result<()> {
    match bench.stop_pool(pool)? {
        StopOutcome::Partly(_, error) => Err(error),
        StopOutcome::Done(_) | StopOutcome::CleanedUp(_) | StopOutcome::Already => Ok(()),
    }
}

fn start_again(bench: &mut Bench) -> Result<()> {
    bench.start_pool("p")?;
    one_more(bench)
}

fn stopped(bench: &mut Bench, prepare: fn(&mut Bench, MetadataVersion), version: MetadataVersion) {
    prepare(bench, version);
    stop(bench, "p").expect("the pool can be stopped");
}

/// A pool whose stop was interrupted.
fn stopped_in_part(bench: &mut Bench, version: MetadataVersion) {
    filesystems(bench, version);
    // The number of attempts of a stop.
    bench.sim.hold_device(&Role::OriginSub.name(bench.id("p")), 10).expect("the pool runs");
    let stopped = bench.stop_pool("p").expect("it is stopped as far as possible");
    assert!(matches!(stopped, StopOutcome::Partly(..)), "{stopped:?}");
}

fn start(bench: &mut Bench) -> Result<()> {
    bench.start_pool("p").map(drop)
}

/// All operations of the engine, except those in `growth_cases`, `encryption_cases` and `online`.
pub const CASES: &[Case] = &[
    Case {
        name: "create a pool of version 2",
        versions: &[V2],
        then: Then::Look,
        prepare: nothing,
        act: |bench| bench.create_pool("p", &["/dev/a", "/dev/b"]).map(drop),
        next: other_pool,
    },
    Case {
        name: "create a pool of version 1",
        versions: &[V1],
        then: Then::Look,
        prepare: nothing,
        act: |bench| bench.create_pool_of(V1, "p", &["/dev/a"]).map(drop),
        next: other_pool,
    },
    Case {
        name: "destroy a pool",
        versions: BOTH,
        then: Then::Look,
        prepare: pool,
        act: |bench| bench.run(ops::destroy_pool(bench.id("p"))).map(drop),
        next: other_pool,
    },
    Case {
        name: "rename a pool with filesystems",
        versions: BOTH,
        then: Then::Look,
        prepare: filesystems,
        act: |bench| bench.run(ops::rename_pool(bench.id("p"), name("q"))).map(drop),
        next: one_more_in_any,
    },
    Case {
        name: "create a filesystem",
        versions: BOTH,
        then: Then::Look,
        prepare: filesystems,
        act: |bench| bench.create_filesystems("p", &["h"]).map(drop),
        next: one_more,
    },
    Case {
        name: "create three filesystems at once",
        versions: &[V2],
        then: Then::LookAtEach,
        prepare: filesystems,
        act: |bench| bench.create_filesystems("p", &["h", "i", "j"]).map(drop),
        next: one_more,
    },
    Case {
        name: "snapshot a filesystem",
        versions: BOTH,
        then: Then::Look,
        prepare: filesystems,
        act: |bench| snapshot(bench, "f", "s"),
        next: one_more,
    },
    Case {
        name: "snapshot a mounted filesystem",
        versions: &[V2],
        then: Then::Look,
        prepare: |bench, version| {
            filesystems(bench, version);
            bench.mount("p", "f");
        },
        act: |bench| snapshot(bench, "f", "s"),
        next: one_more,
    },
    Case {
        name: "rename a filesystem",
        versions: BOTH,
        then: Then::Look,
        prepare: filesystems,
        act: |bench| {
            let id = bench.filesystem("p", "f");
            bench.run(ops::rename_filesystem(bench.id("p"), id, name("renamed"))).map(drop)
        },
        next: one_more,
    },
    Case {
        name: "destroy two filesystems with snapshots",
        versions: BOTH,
        then: Then::Look,
        prepare: snapshots,
        act: |bench| {
            let doomed = vec![bench.filesystem("p", "f"), bench.filesystem("p", "s")];
            bench.run(ops::destroy_filesystems(bench.id("p"), doomed)).map(drop)
        },
        next: one_more,
    },
    Case {
        name: "say something of a device",
        versions: BOTH,
        then: Then::Look,
        prepare: pool,
        act: |bench| {
            let device = bench.device("p", "/dev/b");
            bench.run(ops::set_user_info(bench.id("p"), device, Some("front-left".to_owned()))).map(drop)
        },
        next: one_more,
    },
    Case {
        name: "stop a pool",
        versions: BOTH,
        then: Then::Look,
        prepare: snapshots,
        act: |bench| stop(bench, "p"),
        next: start_again,
    },
    Case {
        name: "start a pool",
        versions: BOTH,
        then: Then::Look,
        prepare: |bench, version| stopped(bench, snapshots, version),
        act: start,
        next: one_more,
    },
    Case {
        name: "start a pool of which thin metadata is damaged",
        versions: BOTH,
        then: Then::Look,
        prepare: |bench, version| {
            filesystems(bench, version);
            let metadata = Role::ThinMeta.name(bench.id("p"));
            bench.sim.damage_metadata(&bench.sim.dm_node(&metadata)).expect("there is a thin pool");
            stop(bench, "p").expect("the pool can be stopped");
        },
        act: start,
        next: one_more,
    },
    Case {
        name: "start a pool with a revert",
        versions: BOTH,
        then: Then::Look,
        prepare: |bench, version| stopped(bench, reverting, version),
        act: start,
        next: one_more,
    },
    Case {
        name: "clean up a pool of which the stop did not come to its end",
        versions: &[V2],
        then: Then::Look,
        prepare: stopped_in_part,
        act: |bench| stop(bench, "p"),
        next: start_again,
    },
    Case {
        name: "start a pool of which the stop did not come to its end",
        versions: &[V2],
        then: Then::Look,
        prepare: stopped_in_part,
        act: start,
        next: start_again,
    },
    Case {
        name: "schedule a revert",
        versions: &[V2],
        then: Then::Look,
        prepare: marked_snapshots,
        act: |bench| schedule(bench, "s", true),
        next: one_more,
    },
    Case {
        name: "cancel a revert",
        versions: &[V2],
        then: Then::Look,
        prepare: reverting,
        act: |bench| schedule(bench, "s", false),
        next: one_more,
    },
    Case {
        name: "refresh",
        versions: &[V2],
        then: Then::Look,
        prepare: snapshots,
        act: |bench| bench.run(ops::refresh()),
        next: one_more,
    },
];
