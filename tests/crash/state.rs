//! What counts as the state of a machine: all that a user could tell, without what differs from run to run.

use std::collections::BTreeMap;

use crate::bench::Bench;

/// Pools by name.
#[derive(Debug, PartialEq, Eq)]
pub struct State(BTreeMap<String, PoolState>);

#[derive(Debug, PartialEq, Eq)]
struct PoolState {
    version: u8,
    availability: &'static str,
    fs_limit: u64,
    /// Path, user info and size of each device.
    devices: BTreeMap<String, (Option<String>, u64)>,
    /// Name to size, name of the origin, and whether its link leads to it.
    filesystems: BTreeMap<String, (u64, Option<String>, bool)>,
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
                let linked = bench.is_linked(&pool_name, filesystem);
                (filesystem.name.to_string(), (filesystem.size.0, origin, linked))
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
        State(pools.collect())
    }
}
