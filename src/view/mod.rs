//! The published state: plain immutable values that answer every read.
//!
//! The engine keeps these values up to date beside its own state; the tree writer publishes them and compares old with
//! new to make signals. Knows no locks, no D-Bus types, no object paths. Maps share structure, so a copy is cheap and
//! a comparison looks only at what differs.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use imbl::OrdMap;

use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        units::{Bytes, Sectors},
    },
    platform::{Timestamp, luks},
};

/// Everything that clients can see, one version of it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Running pools.
    pub pools: OrdMap<PoolUuid, Arc<Pool>>,
    /// Pools that are known but not running.
    pub stopped: Arc<Stopped>,
}

impl View {
    /// The one pool that has this UUID or name, whether it runs or not.
    pub fn pool_of(&self, id: &str) -> Option<PoolUuid> {
        if let Ok(uuid) = id.parse() {
            return Some(uuid);
        }
        let running = self.pools.values().filter(|pool| pool.name.as_str() == id).map(|pool| pool.uuid);
        let named = |pool: &&StoppedPool| pool.name.as_ref().is_some_and(|name| name.as_str() == id);
        let mut found = running.chain(self.stopped.pools.iter().filter(named).map(|pool| pool.uuid));
        found.next().filter(|_| found.next().is_none())
    }
}

/// What may still be done with a pool (`docs/spec/dbus/dbus-api.md` §8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Availability {
    /// Everything.
    #[default]
    Full,
    /// No requests of clients that change the pool.
    NoRequests,
    /// No changes at all, not even by the daemon itself.
    NoPoolChanges,
}

impl Availability {
    /// The word on the bus.
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
pub struct Encryption {
    /// Keyring bindings: token slot and key description.
    pub keys: Vec<(u32, String)>,
    /// Clevis bindings: token slot, pin and configuration.
    pub clevis: Vec<(u32, String, String)>,
    /// Whether every device agrees on its keyring binding (version 1; always true for version 2).
    pub keys_agree: bool,
    /// Whether every device agrees on its Clevis binding.
    pub clevis_agree: bool,
}

/// A running pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its identifier.
    pub uuid: PoolUuid,
    /// Its name.
    pub name: Name,
    /// 1 or 2.
    pub metadata_version: u8,
    /// How it is encrypted; `None` if it is not.
    pub encryption: Option<Encryption>,
    /// Whether the volume key is in the daemon's keyring.
    pub volume_key_loaded: bool,
    /// Seconds since 1970 of the last completed re-encryption.
    pub last_reencrypt: Option<u64>,
    /// What is being done with all of its data.
    pub work: Option<Arc<Work>>,
    /// What may be done.
    pub availability: Availability,
    /// Why not everything; `None` if everything may be done.
    pub restriction: Option<Arc<str>>,
    /// Whether it has a cache tier.
    pub has_cache: bool,
    /// Largest number of filesystems.
    pub fs_limit: u64,
    /// Whether filesystems may be larger together than the pool.
    pub overprovisioning: bool,
    /// Nothing is left to give to the thin pool.
    pub no_alloc_space: bool,
    /// Sum of the data devices.
    pub total: Sectors,
    /// Given to the thin pool and to metadata.
    pub allocated: Sectors,
    /// In use; `None` when the thin pool does not say.
    pub used: Option<Sectors>,
    /// Its filesystems.
    pub filesystems: OrdMap<FsUuid, Arc<Filesystem>>,
    /// Filesystems of it that could not be set up.
    pub left_out: Arc<[LeftOut]>,
    /// Its block devices, data and cache.
    pub devices: OrdMap<DevUuid, Arc<Device>>,
}

#[cfg(test)]
impl Pool {
    /// A pool with nothing in it, for tests.
    pub fn bare(uuid: PoolUuid, name: Name) -> Pool {
        Pool {
            uuid,
            name,
            metadata_version: 2,
            encryption: None,
            volume_key_loaded: false,
            last_reencrypt: None,
            work: None,
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
            left_out: Arc::default(),
            devices: OrdMap::new(),
        }
    }
}

/// A work on all data of a pool, that takes as long as there is much. How far it has come is the one thing here that changes by
/// itself: signals do not tell of it, reports do.
#[derive(Debug)]
pub struct Work {
    /// What is done.
    pub kind: luks::ReencryptionMode,
    /// Since when.
    pub since: Timestamp,
    /// Why nobody is at it any more, as a sentence; `None` while somebody is, or will be by himself.
    pub halted: Option<Arc<str>>,
    /// Bytes that are as they are to be.
    done: AtomicU64,
    /// Bytes in all; 0: nothing has been noted yet.
    total: AtomicU64,
    /// Bytes done when first noted: one that goes on after an interruption begins with some.
    first_done: AtomicU64,
    /// When first noted, in milliseconds since 1970.
    first_ms: AtomicU64,
    /// When last noted.
    last_ms: AtomicU64,
}

/// How far a work has come, and how fast it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes that are as they are to be.
    pub done: u64,
    /// Bytes in all; 0: that is not known yet.
    pub total: u64,
    /// Bytes done in a second, on the average of what has been done without an interruption; `None`: too little has.
    pub per_second: Option<u64>,
    /// What is left to do takes so long at this pace.
    pub seconds_left: Option<u64>,
}

impl Work {
    /// A work that begins now.
    pub fn new(kind: luks::ReencryptionMode, since: Timestamp) -> Work {
        let [done, total, first_done, first_ms, last_ms] = Default::default();
        Work { kind, since, halted: None, done, total, first_done, first_ms, last_ms }
    }

    /// The same, given up for now.
    pub fn halted(&self, why: impl Into<Arc<str>>) -> Work {
        let copy = |value: &AtomicU64| AtomicU64::new(value.load(Ordering::Relaxed));
        Work {
            kind: self.kind,
            since: self.since,
            halted: Some(why.into()),
            done: copy(&self.done),
            total: copy(&self.total),
            first_done: copy(&self.first_done),
            first_ms: copy(&self.first_ms),
            last_ms: copy(&self.last_ms),
        }
    }

    /// What is done, in one word.
    pub fn word(&self) -> &'static str {
        match self.kind {
            luks::ReencryptionMode::Encrypt => "encrypt",
            luks::ReencryptionMode::Reencrypt => "reencrypt",
            luks::ReencryptionMode::Decrypt => "decrypt",
        }
    }

    /// Takes note of how far it has come: bytes done, and in all. Called by who does it, and by nobody else.
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

    /// How far it has come.
    pub fn pace(&self) -> Pace {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (done, total) = (read(&self.done), read(&self.total));
        let moved = u128::from(done.saturating_sub(read(&self.first_done)));
        let elapsed_ms = u128::from(read(&self.last_ms).saturating_sub(read(&self.first_ms)));
        let per_second = (moved * 1000).checked_div(elapsed_ms).filter(|rate| *rate > 0);
        let left = u128::from(total.saturating_sub(done));
        let seconds_left = per_second.map(|rate| left.div_ceil(rate));
        let [per_second, seconds_left] =
            [per_second, seconds_left].map(|value| value.map(|value| u64::try_from(value).unwrap_or(u64::MAX)));
        Pace { done, total, per_second, seconds_left }
    }
}

/// The same work, however far it has come.
impl PartialEq for Work {
    fn eq(&self, other: &Work) -> bool {
        (self.kind, self.since, &self.halted) == (other.kind, other.since, &other.halted)
    }
}

/// A filesystem that is recorded but could not be set up. It has no object: nothing can be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its identifier.
    pub uuid: FsUuid,
    /// Its name as recorded.
    pub name: String,
    /// Why it could not be set up, as a sentence.
    pub reason: String,
}

/// A filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its identifier.
    pub uuid: FsUuid,
    /// Its name.
    pub name: Name,
    /// Seconds since 1970 of its creation.
    pub created: u64,
    /// Size of the thin device.
    pub size: Sectors,
    /// Bytes in use, where known.
    pub used: Option<Bytes>,
    /// It will not grow past this.
    pub size_limit: Option<Sectors>,
    /// The filesystem that it is a snapshot of.
    pub origin: Option<FsUuid>,
    /// It replaces its origin at the next start of the pool.
    pub merge_scheduled: bool,
}

/// Which tier a block device belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Holds data.
    Data,
    /// Holds the cache.
    Cache,
}

/// A block device of a running pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its identifier.
    pub uuid: DevUuid,
    /// Its tier.
    pub tier: Tier,
    /// Node on which the Stratis metadata lies.
    pub node: PathBuf,
    /// Node of the real device.
    pub physical: PathBuf,
    /// What udev said of it when it was initialized.
    pub hardware_info: Option<String>,
    /// What the user said of it.
    pub user_info: Option<String>,
    /// Seconds since 1970 of its initialization.
    pub initialized: u64,
    /// Size as recorded.
    pub size: Sectors,
    /// Size as the kernel sees it now, if different.
    pub new_size: Option<Sectors>,
    /// Space of it is handed out for more than metadata of its own.
    pub in_use: bool,
    /// Logical and physical sector size in bytes.
    pub sector_bytes: (u32, u32),
}

/// Pools that are known but not running; sorted by identifier.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Counts the versions, so that a late one does not replace a newer one.
    pub version: u64,
    /// The pools.
    pub pools: Vec<StoppedPool>,
    /// Devices that say that they belong to a pool, running or not, and are not used as its devices; with their pools.
    pub left_aside: Vec<(PoolUuid, LeftAside)>,
}

/// A device with a pool's signature that the pool does not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAside {
    /// Its node.
    pub path: PathBuf,
    /// The device of the pool that it says it is.
    pub device: DevUuid,
    /// Why it is left aside.
    pub reason: Arc<str>,
}

/// A pool that is known but not running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedPool {
    /// Its identifier.
    pub uuid: PoolUuid,
    /// Its name, if it can be told. Other pools that do not run may have it, too.
    pub name: Option<Name>,
    /// The devices found: node and identifier.
    pub devices: Vec<(PathBuf, DevUuid)>,
    /// 1 or 2; `None` if the devices disagree.
    pub metadata_version: Option<u8>,
    /// What the metadata says of encryption; `None` if it cannot be read.
    pub features: Option<Features>,
    /// Encryption as the LUKS headers of version 1 devices tell it.
    pub encryption: Option<Encryption>,
    /// Some of its device-mapper devices are up.
    pub partial: bool,
    /// Why it does not run, or what keeps some of it up, as a sentence; `None` while it is being set up.
    pub reason: Option<Arc<str>>,
}

/// Features that a stopped pool's metadata names (`docs/spec/engine/ondisk-metadata.md` §6.7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// The pool is encrypted.
    pub encryption: bool,
    /// At least one key of the kernel keyring opens it.
    pub key_description: bool,
    /// At least one Clevis binding opens it.
    pub clevis: bool,
}

/// One difference between two versions of the view, as the engine reports it.
#[derive(Debug, Clone)]
pub enum Change {
    /// The pool is new or has changed: this is its state now.
    Pool(Arc<Pool>),
    /// The pool no longer runs.
    PoolGone(PoolUuid),
    /// The pools that do not run, now.
    Stopped(Arc<Stopped>),
}

/// What one step of a request hands to the tree writer: its changes, in commit order, and the reply if it is the last
/// step. `R` is whatever answers the caller, once the changes can be seen.
pub struct Update<R> {
    /// What changed, in order; several belong to one version of the view.
    pub changes: Vec<Change>,
    /// Sent after the changes have been published and signalled.
    pub reply: Option<R>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(notes: &[(u64, u64)]) -> Pace {
        let work = Work::new(luks::ReencryptionMode::Reencrypt, Timestamp::default());
        for (done, ms) in notes {
            let now = Timestamp { seconds: ms / 1000, nanoseconds: (ms % 1000) as u32 * 1_000_000 };
            work.note(*done, 10_000, now);
        }
        work.pace()
    }

    #[test]
    fn the_pace_of_a_work_is_that_of_what_was_done_without_interruption() {
        assert_eq!(noted(&[]), Pace::default());
        assert_eq!(noted(&[(0, 5000)]), Pace { done: 0, total: 10_000, per_second: None, seconds_left: None });
        let pace = |done, rate, left| Pace { done, total: 10_000, per_second: Some(rate), seconds_left: Some(left) };
        assert_eq!(noted(&[(0, 5000), (500, 7500)]), pace(500, 200, 48));
        // It went on at 4000: what was done before does not count for how fast it is.
        assert_eq!(noted(&[(4000, 5000), (4500, 6000), (5000, 7000)]), pace(5000, 500, 10));
        assert_eq!(noted(&[(0, 5000), (10_000, 6000)]), pace(10_000, 10_000, 0));
        // A clock that was set back, and no time at all.
        assert_eq!(noted(&[(0, 5000), (500, 4000)]).per_second, None);
        assert_eq!(noted(&[(0, 5000), (500, 5000)]).per_second, None);
    }

    #[test]
    fn how_far_a_work_has_come_is_no_change() {
        let begun = |kind| Work::new(kind, Timestamp { seconds: 7, nanoseconds: 0 });
        let (one, other) = (begun(luks::ReencryptionMode::Encrypt), begun(luks::ReencryptionMode::Encrypt));
        other.note(1, 2, Timestamp::default());
        assert_eq!(one, other);
        assert_ne!(one, begun(luks::ReencryptionMode::Decrypt));
    }
}
