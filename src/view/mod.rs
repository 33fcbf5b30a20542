//! The published state: plain immutable values that answer every read.
//!
//! The engine keeps these values up to date beside its own state; the tree writer publishes them and compares old with
//! new to make signals. Knows no locks, no D-Bus types, no object paths. Maps share structure, so a copy is cheap and
//! a comparison looks only at what differs.

use std::{path::PathBuf, sync::Arc};

use imbl::OrdMap;

use crate::engine::{
    ids::{DevUuid, FsUuid, PoolUuid},
    name::Name,
    units::{Bytes, Sectors},
};

/// Everything that clients can see, one version of it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Running pools.
    pub pools: OrdMap<PoolUuid, Arc<Pool>>,
    /// Pools that are known but not running.
    pub stopped: Arc<Stopped>,
}

/// What may still be done with a pool (`spec/dbus/dbus-api.md` §8).
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
    /// Whether every device agrees on these (version 1; always true for version 2).
    pub consistent: bool,
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
}

/// A pool that is known but not running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedPool {
    /// Its identifier.
    pub uuid: PoolUuid,
    /// Its name, if it can be told.
    pub name: Option<Name>,
    /// Other pools that do not run have that name, too; it is in no list of names then.
    pub ambiguous: bool,
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

/// Features that a stopped pool's metadata names (`spec/engine/ondisk-metadata.md` §6.7).
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
