//! The published state: plain immutable values that answer every read.
//!
//! The engine keeps these values up to date beside its own state. The tree writer publishes them
//! and compares old with new values to make signals. This module knows no locks, no D-Bus types and
//! no object paths. Maps share structure, so a copy is cheap and a comparison visits only the
//! differences.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use imbl::{OrdMap, OrdSet};

use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        units::{Bytes, Sectors},
    },
    platform::{Timestamp, luks},
};

/// One version of everything that clients can see.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Running pools.
    pub pools: OrdMap<PoolUuid, Arc<PoolView>>,
    /// Stopped pools.
    pub stopped: Arc<StoppedPoolsView>,
}

impl View {
    /// The UUID in `id`, or that of the one pool, running or stopped, with this name; `None` if no
    /// pool or several pools have the name.
    pub fn pool_of(&self, id: &str) -> Option<PoolUuid> {
        if let Ok(uuid) = id.parse() {
            return Some(uuid);
        }
        let running = self.pools.values().filter(|pool| pool.name.as_str() == id).map(|pool| pool.uuid);
        let mut found = running.chain(self.stopped.named(id));
        found.next().filter(|_| found.next().is_none())
    }
}

/// Which changes of a pool are allowed (`docs/spec/dbus/dbus-api.md` §8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Availability {
    /// All changes.
    #[default]
    Full,
    /// No client requests that change the pool.
    NoRequests,
    /// No changes at all, not even by the daemon itself.
    NoPoolChanges,
}

impl Availability {
    /// The word that clients see.
    pub fn word(self) -> &'static str {
        match self {
            Availability::Full => "fully_operational",
            Availability::NoRequests => "no_ipc_requests",
            Availability::NoPoolChanges => "no_pool_changes",
        }
    }
}

/// How a pool can be unlocked, as shown to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionView {
    /// Keyring bindings: token slot and key description.
    pub keys: Vec<(u32, String)>,
    /// Clevis bindings: token slot, pin and configuration.
    pub clevis: Vec<(u32, String, String)>,
    /// Whether all devices agree on the keyring binding (version 1; always true for version 2).
    pub keys_agree: bool,
    /// Whether all devices agree on the Clevis binding.
    pub clevis_agree: bool,
}

/// A running pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolView {
    /// Its UUID.
    pub uuid: PoolUuid,
    /// Its name.
    pub name: Name,
    /// Metadata version, 1 or 2.
    pub metadata_version: u8,
    /// How it is encrypted; `None` if it is not.
    pub encryption: Option<EncryptionView>,
    /// Whether the volume key is in the daemon's keyring.
    pub volume_key_loaded: bool,
    /// Seconds since 1970 of the last completed re-encryption.
    pub last_reencrypt: Option<u64>,
    /// Its re-encryption job, if there is one.
    pub reencryption: Option<Arc<ReencryptionJob>>,
    /// Its availability.
    pub availability: Availability,
    /// The reason of a restriction; `None` without one.
    pub restriction: Option<Arc<str>>,
    /// Whether it has a cache tier.
    pub has_cache: bool,
    /// Maximum number of filesystems.
    pub fs_limit: u64,
    /// Whether the pool may be overprovisioned.
    pub overprovisioning: bool,
    /// The pool has no space left for the thin pool.
    pub no_alloc_space: bool,
    /// Total size of the data devices.
    pub total: Sectors,
    /// Allocated to the thin pool and to metadata.
    pub allocated: Sectors,
    /// In use; `None` if the thin pool does not report it.
    pub used: Option<Sectors>,
    /// Its filesystems.
    pub filesystems: OrdMap<FsUuid, Arc<FilesystemView>>,
    /// Its recorded filesystems that could not be set up.
    pub failed_filesystems: Arc<[FailedFilesystemView]>,
    /// Its block devices, data and cache.
    pub devices: OrdMap<DevUuid, Arc<DeviceView>>,
}

#[cfg(test)]
impl PoolView {
    /// An empty pool, for tests.
    pub fn bare(uuid: PoolUuid, name: Name) -> PoolView {
        PoolView {
            uuid,
            name,
            metadata_version: 2,
            encryption: None,
            volume_key_loaded: false,
            last_reencrypt: None,
            reencryption: None,
            restriction: None,
            availability: Availability::Full,
            has_cache: false,
            fs_limit: 0,
            overprovisioning: true,
            no_alloc_space: false,
            total: Sectors::ZERO,
            allocated: Sectors::ZERO,
            used: None,
            filesystems: OrdMap::new(),
            failed_filesystems: Arc::default(),
            devices: OrdMap::new(),
        }
    }
}

/// A re-encryption job. Its progress is the only value of the view that changes by itself: reports
/// show it, signals do not.
#[derive(Debug)]
pub struct ReencryptionJob {
    /// The kind of the job.
    pub kind: luks::ReencryptionMode,
    /// When it started.
    pub since: Timestamp,
    /// The error that has stopped the job, as a sentence; `None` while it runs or resumes by
    /// itself.
    pub error: Option<Arc<str>>,
    /// Bytes processed.
    done: AtomicU64,
    /// Total bytes; 0: no progress has been recorded yet.
    total: AtomicU64,
    /// Bytes processed when first recorded: a resumed job starts above 0.
    first_done: AtomicU64,
    /// When first recorded, in milliseconds since 1970.
    first_ms: AtomicU64,
    /// When last recorded.
    last_ms: AtomicU64,
}

/// Progress and speed of a re-encryption job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobPace {
    /// Bytes processed.
    pub done: u64,
    /// Total bytes; 0: not known yet.
    pub total: u64,
    /// Average bytes per second since the last interruption; `None`: not enough progress.
    pub per_second: Option<u64>,
    /// Seconds left at this speed.
    pub seconds_left: Option<u64>,
}

impl ReencryptionJob {
    /// A job that starts now.
    pub fn new(kind: luks::ReencryptionMode, since: Timestamp) -> ReencryptionJob {
        let [done, total, first_done, first_ms, last_ms] = Default::default();
        ReencryptionJob { kind, since, error: None, done, total, first_done, first_ms, last_ms }
    }

    /// The same job, stopped by this error.
    pub fn stopped_by(&self, error: impl Into<Arc<str>>) -> ReencryptionJob {
        let copy = |value: &AtomicU64| AtomicU64::new(value.load(Ordering::Relaxed));
        ReencryptionJob {
            kind: self.kind,
            since: self.since,
            error: Some(error.into()),
            done: copy(&self.done),
            total: copy(&self.total),
            first_done: copy(&self.first_done),
            first_ms: copy(&self.first_ms),
            last_ms: copy(&self.last_ms),
        }
    }

    /// The kind of the job, in one word.
    pub fn word(&self) -> &'static str {
        match self.kind {
            luks::ReencryptionMode::Encrypt => "encrypt",
            luks::ReencryptionMode::Reencrypt => "reencrypt",
            luks::ReencryptionMode::Decrypt => "decrypt",
        }
    }

    /// Records the progress: processed and total bytes. Only the thread that runs the job calls it.
    pub fn note(&self, done: u64, total: u64, now: Timestamp) {
        let now_ms = now.seconds.saturating_mul(1000).saturating_add(u64::from(now.nanoseconds / 1_000_000));
        if self.total.load(Ordering::Relaxed) == 0 {
            self.first_done.store(done, Ordering::Relaxed);
            self.first_ms.store(now_ms, Ordering::Relaxed);
        }
        self.done.store(done, Ordering::Relaxed);
        self.last_ms.store(now_ms, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Progress and speed.
    pub fn pace(&self) -> JobPace {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (done, total) = (read(&self.done), read(&self.total));
        let moved = u128::from(done.saturating_sub(read(&self.first_done)));
        let elapsed_ms = u128::from(read(&self.last_ms).saturating_sub(read(&self.first_ms)));
        let per_second = (moved * 1000).checked_div(elapsed_ms).filter(|rate| *rate > 0);
        let left = u128::from(total.saturating_sub(done));
        let seconds_left = per_second.map(|rate| left.div_ceil(rate));
        let [per_second, seconds_left] =
            [per_second, seconds_left].map(|value| value.map(|value| u64::try_from(value).unwrap_or(u64::MAX)));
        JobPace { done, total, per_second, seconds_left }
    }
}

/// Compares jobs without their progress.
impl PartialEq for ReencryptionJob {
    fn eq(&self, other: &ReencryptionJob) -> bool {
        (self.kind, self.since, &self.error) == (other.kind, other.since, &other.error)
    }
}

/// A filesystem that is recorded but could not be set up. It has no D-Bus object: no operation is
/// possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedFilesystemView {
    /// Its UUID.
    pub uuid: FsUuid,
    /// Its name as recorded.
    pub name: String,
    /// Why it could not be set up, as a sentence.
    pub reason: String,
}

/// A filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemView {
    /// Its UUID.
    pub uuid: FsUuid,
    /// Its name.
    pub name: Name,
    /// Seconds since 1970 of its creation.
    pub created: u64,
    /// Size of the thin device.
    pub size: Sectors,
    /// Bytes in use, where known.
    pub used: Option<Bytes>,
    /// Its maximum size.
    pub size_limit: Option<Sectors>,
    /// Its origin, if it is a snapshot.
    pub origin: Option<FsUuid>,
    /// A revert is scheduled: it replaces its origin when the pool is next set up.
    pub merge_scheduled: bool,
}

/// The tier of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceTier {
    /// Holds data.
    Data,
    /// Holds the cache.
    Cache,
}

/// A block device of a running pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceView {
    /// Its UUID.
    pub uuid: DevUuid,
    /// Its tier.
    pub tier: DeviceTier,
    /// The node with the Stratis metadata.
    pub node: PathBuf,
    /// The node of the physical device.
    pub physical: PathBuf,
    /// The hardware information that udev had at its initialization.
    pub hardware_info: Option<String>,
    /// The user's description of it.
    pub user_info: Option<String>,
    /// Seconds since 1970 of its initialization.
    pub initialized: u64,
    /// Its recorded size.
    pub size: Sectors,
    /// Its current size in the kernel, if different.
    pub new_size: Option<Sectors>,
    /// Space of it is allocated to more than the pool's metadata.
    pub in_use: bool,
    /// Logical and physical sector size in bytes.
    pub sector_bytes: (u32, u32),
}

/// Stopped pools. A copy costs the same for any number of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoppedPoolsView {
    /// The version number. An old value must not replace a newer one.
    pub version: u64,
    pools: OrdMap<PoolUuid, Arc<StoppedPoolView>>,
    /// The pools by name.
    names: OrdMap<Name, OrdSet<PoolUuid>>,
    /// Devices with the signature of a pool, running or stopped, that are left aside.
    pub left_aside: OrdMap<PoolUuid, Arc<[LeftAsideView]>>,
}

impl StoppedPoolsView {
    /// A version without pools.
    pub fn new(version: u64) -> StoppedPoolsView {
        StoppedPoolsView { version, ..StoppedPoolsView::default() }
    }

    /// The pools.
    pub fn pools(&self) -> &OrdMap<PoolUuid, Arc<StoppedPoolView>> {
        &self.pools
    }

    /// The pools, sorted by UUID.
    pub fn list(&self) -> Vec<Arc<StoppedPoolView>> {
        self.pools.values().cloned().collect()
    }

    /// The pools with this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = PoolUuid> {
        self.names.get(name).into_iter().flatten().copied()
    }

    /// Adds or replaces a pool.
    pub fn insert(&mut self, pool: impl Into<Arc<StoppedPoolView>>) {
        let pool = pool.into();
        self.remove(pool.uuid);
        if let Some(name) = &pool.name {
            self.names.entry(name.clone()).or_default().insert(pool.uuid);
        }
        self.pools.insert(pool.uuid, pool);
    }

    /// Removes a pool.
    pub fn remove(&mut self, uuid: PoolUuid) {
        let Some(name) = self.pools.remove(&uuid).and_then(|pool| pool.name.clone()) else { return };
        if let Some(pools) = self.names.get_mut(&name) {
            pools.remove(&uuid);
            if pools.is_empty() {
                self.names.remove(&name);
            }
        }
    }
}

/// A device that is left aside: it has the signature of a pool that does not use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAsideView {
    /// Its node.
    pub path: PathBuf,
    /// The member UUID in its signature.
    pub device: DevUuid,
    /// Why it is left aside.
    pub reason: Arc<str>,
}

/// A stopped pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedPoolView {
    /// Its UUID.
    pub uuid: PoolUuid,
    /// Its name, if known. Other stopped pools may have the same name.
    pub name: Option<Name>,
    /// The devices found: node and UUID.
    pub devices: Vec<(PathBuf, DevUuid)>,
    /// 1 or 2; `None` if the devices disagree.
    pub metadata_version: Option<u8>,
    /// Its features according to the metadata; `None` if the metadata cannot be read.
    pub features: Option<FeaturesView>,
    /// Its encryption according to the LUKS headers of version 1 devices.
    pub encryption: Option<EncryptionView>,
    /// Some of its device-mapper devices are set up.
    pub partial: bool,
    /// Why it is stopped, or why some of its devices are set up, as a sentence; `None` while the
    /// pool is being set up.
    pub reason: Option<Arc<str>>,
}

/// Features in the metadata of a stopped pool (`docs/spec/engine/ondisk-metadata.md` §6.7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeaturesView {
    /// The pool is encrypted.
    pub encryption: bool,
    /// At least one key of the kernel keyring unlocks it.
    pub key_description: bool,
    /// At least one Clevis binding unlocks it.
    pub clevis: bool,
}

/// One difference between two versions of the view, as the engine reports it.
#[derive(Debug, Clone)]
pub enum Change {
    /// The pool is new or has changed; this is its current state.
    Pool(Arc<PoolView>),
    /// The pool no longer runs.
    PoolGone(PoolUuid),
    /// The current stopped pools.
    Stopped(Arc<StoppedPoolsView>),
}

/// What one step of a request gives to the tree writer: its changes in commit order, and the reply
/// if it is the last step. `R` answers the caller once the changes are visible.
pub struct Update<R> {
    /// The changes in order; several of them may belong to one version of the view.
    pub changes: Vec<Change>,
    /// Sent after the changes have been published and signalled.
    pub reply: Option<R>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(notes: &[(u64, u64)]) -> JobPace {
        let work = ReencryptionJob::new(luks::ReencryptionMode::Reencrypt, Timestamp::default());
        for (done, ms) in notes {
            let now = Timestamp { seconds: ms / 1000, nanoseconds: (ms % 1000) as u32 * 1_000_000 };
            work.note(*done, 10_000, now);
        }
        work.pace()
    }

    #[test]
    fn the_pace_counts_only_uninterrupted_work() {
        assert_eq!(noted(&[]), JobPace::default());
        assert_eq!(noted(&[(0, 5000)]), JobPace { done: 0, total: 10_000, per_second: None, seconds_left: None });
        let pace = |done, rate, left| JobPace { done, total: 10_000, per_second: Some(rate), seconds_left: Some(left) };
        assert_eq!(noted(&[(0, 5000), (500, 7500)]), pace(500, 200, 48));
        // Resumed at 4000: earlier progress does not count for the speed.
        assert_eq!(noted(&[(4000, 5000), (4500, 6000), (5000, 7000)]), pace(5000, 500, 10));
        assert_eq!(noted(&[(0, 5000), (10_000, 6000)]), pace(10_000, 10_000, 0));
        // The clock was set back in the first case; no time has passed in the second.
        assert_eq!(noted(&[(0, 5000), (500, 4000)]).per_second, None);
        assert_eq!(noted(&[(0, 5000), (500, 5000)]).per_second, None);
    }

    #[test]
    fn progress_alone_is_no_change() {
        let begun = |kind| ReencryptionJob::new(kind, Timestamp { seconds: 7, nanoseconds: 0 });
        let (one, other) = (begun(luks::ReencryptionMode::Encrypt), begun(luks::ReencryptionMode::Encrypt));
        other.note(1, 2, Timestamp::default());
        assert_eq!(one, other);
        assert_ne!(one, begun(luks::ReencryptionMode::Decrypt));
    }
}
