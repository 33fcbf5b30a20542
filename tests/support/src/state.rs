//! The state of a machine: all that a user can see, without what differs from run to run.

use std::collections::{BTreeMap, BTreeSet};

use stratisd::{
    base::ids::PoolUuid,
    engine::{
        dm_names::{self, Role},
        thin_status::PoolStatus,
    },
    platform::{
        Platform,
        dm::{Line, Target},
        luks::ReencryptionMode,
    },
    view::DeviceTier,
};

use crate::bench::Bench;

/// The table of an active device.
fn table(bench: &Bench, name: &str) -> Vec<Line> {
    bench.sim.dm_find(name).expect("the machine runs").map_or(Vec::new(), |device| device.table)
}

fn size_of(bench: &Bench, name: &str) -> u64 {
    table(bench, name).iter().map(|line| line.length.0).sum()
}

fn metadata_of(bench: &Bench, pool: PoolUuid) -> u64 {
    // The thin pool is missing if the pool could not be set up again.
    let status = bench.sim.dm_status(&Role::ThinPool.name(pool)).unwrap_or_default();
    status.first().and_then(|line| PoolStatus::parse(line)).map_or(0, |status| status.metadata_total)
}

/// Whether the metadata volume, the thin pool's metadata and its data all lie on a cache.
fn goes_through_cache(bench: &Bench, pool: PoolUuid) -> bool {
    let cap = bench.sim.dm_find(&Role::Cache.name(pool)).expect("the machine runs");
    let Some(cap) = cap.filter(|cap| cap.table.iter().all(|line| line.kind() == "cache")) else { return false };
    [Role::Mdv, Role::ThinMeta, Role::ThinData].iter().all(|role| {
        let lines = table(bench, &role.name(pool));
        lines.iter().all(|line| matches!(line.target, Target::Linear { device, .. } if device == cap.number))
    })
}

/// Pools by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    running: BTreeMap<String, PoolState>,
    /// The devices of stopped pools, and whether one of them is active.
    stopped: BTreeMap<String, (BTreeSet<String>, bool)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PoolState {
    version: u8,
    availability: &'static str,
    fs_limit: u64,
    overprovisioning: bool,
    no_alloc_space: bool,
    allocated: u64,
    /// Size of the thin pool in the kernel.
    mapped: u64,
    /// Metadata blocks of the thin pool.
    metadata: u64,
    has_cache: bool,
    /// Whether all I/O goes through the cache.
    cached: bool,
    /// Path, user info and size of each device, and whether it belongs to the cache.
    devices: BTreeMap<String, (Option<String>, u64, bool)>,
    encryption: Option<EncryptionState>,
    /// Whether the volume key of the pool has ever been replaced.
    reencrypted: bool,
    /// The unfinished re-encryption job.
    reencryption: Option<ReencryptionMode>,
    filesystems: BTreeMap<String, FilesystemState>,
}

/// The unlock methods of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EncryptionState {
    /// Token slots and their bindings.
    keys: Vec<(u32, String)>,
    clevis: Vec<(u32, String, String)>,
    /// Whether the bindings of all devices agree, for keys and for Clevis.
    agree: (bool, bool),
    volume_key_loaded: bool,
}

impl PoolState {
    /// Whether everything except the filesystems is equal, and the filesystems have the same names.
    fn is_but_for_filesystems(&self, other: &PoolState) -> bool {
        let bare = |pool: &PoolState| PoolState { filesystems: BTreeMap::new(), ..pool.clone() };
        bare(self) == bare(other) && self.filesystems.keys().eq(other.filesystems.keys())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FilesystemState {
    size: u64,
    size_limit: Option<u64>,
    /// Size of the thin device in the kernel.
    mapped: u64,
    /// Size of the XFS on it.
    xfs: Option<u64>,
    /// Name of the origin.
    origin: Option<String>,
    merge_scheduled: bool,
    /// Whether the filesystem's link leads to its device.
    linked: bool,
    /// The mark that a test has written.
    mark: u8,
}

impl State {
    /// Whether each filesystem is as in one of two states between which nothing has changed but
    /// that filesystems have grown. No XFS may be larger than its device; an old XFS in a grown
    /// device is about to grow.
    pub fn is_between(&self, before: &State, after: &State) -> bool {
        let grown =
            |state: &State, pool: &str, name: &str| Some(state.running.get(pool)?.filesystems.get(name)?.clone());
        let is_one_of = |pool: &str, name: &str, found: &FilesystemState| {
            let (Some(old), Some(new)) = (grown(before, pool, name), grown(after, pool, name)) else { return false };
            let on_its_way = FilesystemState { xfs: old.xfs, ..new.clone() };
            found.xfs.is_some_and(|xfs| xfs <= found.mapped) && [old, on_its_way, new].contains(found)
        };
        self.running.keys().eq(after.running.keys())
            && self.stopped == after.stopped
            && self.running.iter().all(|(name, pool)| {
                let alike = after.running.get(name).is_some_and(|other| pool.is_but_for_filesystems(other));
                alike && pool.filesystems.iter().all(|(id, found)| is_one_of(name, id, found))
            })
    }

    /// Whether this state has all filesystems of `before` and some of those of `after`, if between
    /// the two nothing has changed but that filesystems were created.
    pub fn has_some_of(&self, before: &State, after: &State) -> bool {
        let is_between = |name: &str, pool: &PoolState| {
            let (Some(old), Some(new)) = (before.running.get(name), after.running.get(name)) else { return false };
            let in_full = PoolState { filesystems: new.filesystems.clone(), ..pool.clone() };
            let in_new = pool.filesystems.iter().all(|(id, found)| new.filesystems.get(id) == Some(found));
            let has_old = old.filesystems.keys().all(|id| pool.filesystems.contains_key(id));
            in_full == *new && in_new && has_old
        };
        self.stopped == after.stopped
            && self.running.len() == after.running.len()
            && self.running.iter().all(|(name, pool)| is_between(name, pool))
    }

    /// Whether no pool runs.
    pub fn runs_nothing(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether a pool has an unfinished re-encryption job.
    pub fn is_at_work(&self) -> bool {
        self.running.values().any(|pool| pool.reencryption.is_some())
    }

    /// Whether a pool is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.running.values().any(|pool| pool.encryption.is_some())
    }

    /// The current state of a bench.
    pub fn of(bench: &Bench) -> State {
        let pools = bench.names().into_iter().map(|pool_name| {
            let pool = bench.pool(&pool_name).expect("the name was just listed");
            let devices = pool.devices.values().map(|device| {
                let of_cache = device.tier == DeviceTier::Cache;
                (device.physical.display().to_string(), (device.user_info.clone(), device.size.0, of_cache))
            });
            let encryption = pool.encryption.as_ref().map(|encryption| EncryptionState {
                keys: encryption.keys.clone(),
                clevis: encryption.clevis.clone(),
                agree: (encryption.keys_agree, encryption.clevis_agree),
                volume_key_loaded: pool.volume_key_loaded,
            });
            let filesystems = pool.filesystems.values().map(|filesystem| {
                let origin = filesystem.origin.map(|origin| {
                    pool.filesystems.get(&origin).map_or("(gone)".to_owned(), |origin| origin.name.to_string())
                });
                let device = dm_names::filesystem(pool.uuid, filesystem.uuid);
                let xfs = bench.sim.xfs_size(&bench.sim.dm_node(&device)).and_then(|size| size.sectors());
                let state = FilesystemState {
                    size: filesystem.size.0,
                    size_limit: filesystem.size_limit.map(|limit| limit.0),
                    mapped: size_of(bench, &device),
                    xfs: xfs.map(|size| size.0),
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
                overprovisioning: pool.overprovisioning,
                no_alloc_space: pool.no_alloc_space,
                allocated: pool.allocated.0,
                mapped: size_of(bench, &Role::ThinPool.name(pool.uuid)),
                metadata: metadata_of(bench, pool.uuid),
                has_cache: pool.has_cache,
                cached: goes_through_cache(bench, pool.uuid),
                devices: devices.collect(),
                encryption,
                reencrypted: pool.last_reencrypt.is_some(),
                reencryption: pool.reencryption.as_ref().map(|work| work.kind),
                filesystems: filesystems.collect(),
            };
            (pool_name, state)
        });
        let running = pools.collect();
        let stopped = bench
            .stopped()
            .list()
            .iter()
            .map(|pool| {
                let devices = pool.devices.iter().map(|(path, _)| path.display().to_string()).collect();
                (pool.name.as_ref().map_or("(unknown)".to_owned(), ToString::to_string), (devices, pool.partial))
            })
            .collect();
        State { running, stopped }
    }
}
