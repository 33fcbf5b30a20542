//! What counts as the state of a machine: all that a user could tell, without what differs from run to run.

use std::collections::{BTreeMap, BTreeSet};

use crate::bench::Bench;

/// Pools by name.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    running: BTreeMap<String, PoolState>,
    /// The devices of those that do not run, and whether some of them is up.
    stopped: BTreeMap<String, (BTreeSet<String>, bool)>,
}

#[derive(Debug, PartialEq, Eq)]
struct PoolState {
    version: u8,
    availability: &'static str,
    fs_limit: u64,
    /// Path, user info and size of each device.
    devices: BTreeMap<String, (Option<String>, u64)>,
    filesystems: BTreeMap<String, FilesystemState>,
}

#[derive(Debug, PartialEq, Eq)]
struct FilesystemState {
    size: u64,
    /// Name of the origin.
    origin: Option<String>,
    merge_scheduled: bool,
    /// Its link leads to it.
    linked: bool,
    /// What a test has left in it.
    mark: u8,
}

impl State {
    /// That of a bench now.
    pub fn of(bench: &Bench) -> State {
        let pools = bench.names().into_iter().map(|pool_name| {
            let pool = bench.pool(&pool_name).expect("the name was just listed");
            let devices = pool
                .devices
                .values()
                .map(|device| (device.node.display().to_string(), (device.user_info.clone(), device.size.0)));
            let filesystems = pool.filesystems.values().map(|filesystem| {
                let origin = filesystem.origin.map(|origin| {
                    pool.filesystems.get(&origin).map_or("(gone)".to_owned(), |origin| origin.name.to_string())
                });
                let state = FilesystemState {
                    size: filesystem.size.0,
                    origin,
                    merge_scheduled: filesystem.merge_scheduled,
                    linked: bench.is_linked(&pool_name, filesystem),
                    mark: bench.mark_of(pool.uuid, filesystem.uuid),
                };
                (filesystem.name.to_string(), state)
            });
            let state = PoolState {
                version: pool.metadata_version,
                availability: pool.availability.word(),
                fs_limit: pool.fs_limit,
                devices: devices.collect(),
                filesystems: filesystems.collect(),
            };
            (pool_name, state)
        });
        let running = pools.collect();
        let stopped = bench
            .stopped()
            .pools
            .iter()
            .map(|pool| {
                let devices = pool.devices.iter().map(|(path, _)| path.display().to_string()).collect();
                (pool.name.as_ref().map_or("(unknown)".to_owned(), ToString::to_string), (devices, pool.partial))
            })
            .collect();
        State { running, stopped }
    }
}
