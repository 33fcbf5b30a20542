//! What can go wrong in the engine: one sentence each for people, saying what is wrong and what to do. The source is kept
//! and not repeated in the text; [`Error::sentence`] joins the chain once, for the edge.

use std::path::PathBuf;

use crate::{
    base::{
        error_chain,
        ids::{DevUuid, FsUuid, PoolUuid},
        name::{Name, NameError, shortened},
        pool_ref::PoolRef,
        units::Sectors,
    },
    engine::{bda, encryption::EncryptionError, metadata, plan},
    platform::{self, luks::ReencryptionMode},
    view::{Availability, Tier},
};

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    // ---- refused: what was asked for ----
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no running pool with UUID {0}; list the pools and check the identifier")]
    NoPool(PoolUuid),
    #[error("no pool with {0} is known, running or stopped; list the pools and check the identifier")]
    UnknownPool(PoolRef),
    #[error(
        "no pool named {name} is known, running or stopped, but the names of these pools that do not run could not be read: {}; \
         name one by its UUID if it is meant", uuids(.nameless)
    )]
    UnknownName { name: Name, nameless: Vec<PoolUuid> },
    #[error("several pools that do not run are named {name} ({}); use the UUID of the one that is meant", uuids(.pools))]
    AmbiguousName { name: Name, pools: Vec<PoolUuid> },
    #[error("pool {pool} is not encrypted, but {given} was given; leave that out")]
    NotEncrypted { pool: Name, given: &'static str },
    #[error("the devices of pool {pool} are encrypted; say how they are to be unlocked")]
    Locked { pool: PoolUuid },
    #[error("some devices of pool {0} are encrypted and some are not; disconnect those that do not belong to it")]
    PartlyEncrypted(PoolUuid),
    #[error("pool {pool} is encrypted; say how it is to be unlocked")]
    NoUnlockMethod { pool: Name },
    #[error("pool {pool} has no filesystem with UUID {filesystem}; list its filesystems and check the identifier")]
    NoFilesystem { pool: Name, filesystem: FsUuid },
    #[error("pool {pool} has no block device with UUID {device}; list its devices and check the identifier")]
    NoDevice { pool: Name, device: DevUuid },
    #[error("a pool named {0} exists already; choose another name")]
    PoolNameTaken(Name),
    #[error("a running pool is named {0} too; rename or stop one of the two")]
    NameRuns(Name),
    #[error("pool {pool} has a filesystem named {name} already; choose another name")]
    FilesystemNameTaken { pool: Name, name: Name },
    #[error(
        "pool {pool} has a filesystem named {name} already, which could not be set up; see the log for the reason, or choose \
         another name"
    )]
    LeftOut { pool: Name, name: Name },
    #[error("these device paths are not absolute: {}; give full paths, as /dev/sda", list(.0))]
    RelativePaths(Vec<PathBuf>),
    #[error("a pool needs at least one block device; name one")]
    NoDevices,
    #[error("a cache needs at least one block device; name one")]
    NoCacheDevices,
    #[error(
        "a pool named {name} exists already with other devices{}{}; choose another name, or name just its devices",
        only(" - only requested: ", .only_requested), only(" - only in the pool: ", .only_present)
    )]
    OtherDevices { name: Name, only_requested: Vec<PathBuf>, only_present: Vec<PathBuf> },
    #[error("{} belongs to pool {pool}; remove it from that pool or destroy the pool first", path.display())]
    OwnedByPool { path: PathBuf, pool: PoolUuid },
    #[error(
        "{} says that it belongs to this pool, but the pool does not know it; wipe its first sectors if it holds nothing of \
         value", path.display()
    )]
    UnknownMember { path: PathBuf },
    #[error("{} is in the {} tier of this pool already; name another device", path.display(), tier_word(*.tier))]
    InOtherTier { path: PathBuf, tier: Tier },
    #[error("{} holds {what}; wipe it first if that is of no value", path.display())]
    Foreign { path: PathBuf, what: String },
    #[error("{} is in use by the system (mounted, or part of another device); release it first", path.display())]
    InUse { path: PathBuf },
    #[error("{} is read-only; make it writable or name another device", path.display())]
    ReadOnly { path: PathBuf },
    #[error(
        "{} has {}, which is less than the {} that a pool needs of a device; name a larger one",
        path.display(), .size.readable(), .minimum.readable()
    )]
    TooSmall { path: PathBuf, size: Sectors, minimum: Sectors },
    #[error("{} and {} are the same device; name it once", .0.display(), .1.display())]
    SameDevice(PathBuf, PathBuf),
    #[error(
        "{} has been formatted for this pool and lost track of: udev calls it a Stratis device, but it has no readable \
         signature; wipe its first sectors if it holds nothing of value", path.display()
    )]
    NoSignature { path: PathBuf },
    #[error(
        "pool {pool} has filesystems ({}); destroy them first",
        names(.filesystems)
    )]
    HasFilesystems { pool: Name, filesystems: Vec<Name> },
    #[error(
        "pool {pool} has filesystems that could not be set up ({}), and what is in them would be lost; stop and start the pool to \
         have them set up again, and see the engine state report for the reason if that does not help; to give them up, stop \
         the pool and wipe its devices", some(.filesystems.iter().map(|name| shortened(name).into_owned()))
    )]
    HasLeftOut { pool: Name, filesystems: Vec<String> },
    #[error(
        "pool {pool} may have {limit} filesystems and would have {wanted}; raise its filesystem limit or destroy some"
    )]
    FilesystemLimit { pool: Name, limit: u64, wanted: u64 },
    #[error(
        "filesystem {name} exists with {}, not with the {} asked for; choose another name or its size",
        .existing.readable(), .requested.readable()
    )]
    OtherSize { name: Name, existing: Sectors, requested: Sectors },
    #[error(
        "pool {pool} does not allow overprovisioning, and {} of filesystems do not fit into its {}; \
         add a data device, choose a smaller size or allow overprovisioning", .needed.readable(), .room.readable()
    )]
    NoRoom { pool: Name, needed: Sectors, room: Sectors },
    #[error(
        "pool {pool} has a cache already with other devices{}{}; use just its devices, or add devices to the cache",
        only(" - only requested: ", .only_requested), only(" - only in the cache: ", .only_present)
    )]
    OtherCache { pool: Name, only_requested: Vec<PathBuf>, only_present: Vec<PathBuf> },
    #[error("pool {pool} has no cache; initialize one first")]
    NoCache { pool: Name },
    #[error("{} is a cache device of pool {pool}, and only data devices can be grown", path.display())]
    CacheDoesNotGrow { pool: Name, path: PathBuf },
    #[error("pool {pool} has a filesystem limit of {limit} now; choose a larger one than that")]
    FilesystemLimitNotRaised { pool: Name, limit: u64 },
    #[error("the metadata volume of pool {pool} has room for {maximum} filesystems; choose a limit up to that")]
    FilesystemLimitTooHigh { pool: Name, maximum: u64 },
    #[error("filesystem {name} cannot have this size limit")]
    SizeLimit { name: Name, source: plan::sizes::SizeError },
    #[error(
        "the thin pool of {pool} needs more space for its metadata, and there is none left; add a data device or \
         destroy filesystems"
    )]
    MetadataExhausted { pool: Name },
    #[error(
        "the thin pool of {pool} needs more space for its metadata, and all there is has been promised to filesystems; \
         add a data device, destroy filesystems or allow overprovisioning"
    )]
    MetadataPromised { pool: Name },
    #[error(
        "pool {pool} has no free space, which a snapshot of filesystem {origin} needs; add a data device or destroy \
         filesystems, then try again"
    )]
    PoolFull { pool: Name, origin: Name },
    #[error("filesystem {name} is in use (mounted on {}); unmount it first", list(.mount_points))]
    Mounted { name: Name, mount_points: Vec<PathBuf> },
    #[error("filesystem {name} is no snapshot of another, so there is nothing that it could replace")]
    NoOrigin { name: Name },
    #[error(
        "filesystem {name} cannot replace {origin}, which is itself to replace another at the next start; cancel that first"
    )]
    OriginScheduled { name: Name, origin: String },
    #[error(
        "filesystem {name} cannot replace its origin, which {sibling} is to replace at the next start; cancel that first"
    )]
    SiblingScheduled { name: Name, sibling: String },
    #[error(
        "filesystem {name} cannot replace its origin, since {snapshot} is to replace {name} at the next start; cancel that first"
    )]
    SnapshotScheduled { name: Name, snapshot: String },
    #[error("filesystem {name} is to replace its origin, or to be replaced, at the next start; cancel that first")]
    RevertScheduled { name: Name },
    #[error(
        "pool {pool} is in state {}, in which this is not done ({reason}); stop and start the pool, or restart the daemon, to \
         have it looked at anew", .level.word()
    )]
    Restricted { pool: Name, level: Availability, reason: String },
    #[error("pool {pool} is not encrypted, so this cannot be done with it; encrypt it first")]
    NothingToOpen { pool: Name },
    #[error(
        "the volume key of pool {pool} is not in the daemon's keyring, and without it the pool's encrypted device cannot be made \
         larger; set a key that opens the pool, or stop and start the pool"
    )]
    VolumeKey { pool: PoolUuid },
    #[error(
        "pool {pool} is being {}, and this has to wait until that is done; its progress is in the report of the engine's state",
        work_word(*.work)
    )]
    AtWork { pool: Name, work: ReencryptionMode },
    #[error(
        "pool {pool} has been {} in part only, and nobody is at it any more ({why}); put that right and ask for it once more, \
         and it goes on", work_word(*.work)
    )]
    WorkHalted { pool: Name, work: ReencryptionMode, why: String },
    #[error(
        "the work on pool {pool} has been interrupted, since the {by}; it goes on when the pool is next set up, and if it does not, \
         ask for it again"
    )]
    Interrupted { pool: Name, by: &'static str },
    #[error("the work on pool {pool} was interrupted before it began, and nothing has changed; ask for it again")]
    NotBegun { pool: Name },
    #[error("not all of pool {pool} has been {}, though it was said so; ask for it again, and report this as a bug", work_word(*.work))]
    WorkNotDone { pool: Name, work: ReencryptionMode },
    #[error("pool {pool} has metadata of version 1, with which this cannot be done; make a new pool and copy the data")]
    OnlyVersion2 { pool: Name },
    #[error("pool {pool} has no free thin device numbers left; destroy the pool to begin anew")]
    ThinIdsUsedUp { pool: Name },
    #[error("the devices do not have room for {} more; use larger or more devices", .what.readable())]
    NoSpace { what: Sectors },

    #[error(
        "cannot record this change of pool {pool}: its metadata would have {length} bytes of the {capacity} that fit on its \
         devices, and the rest is kept for stopping and destroying it; shorten the texts that users gave its devices, or move \
         data to a pool of fewer, larger devices"
    )]
    RecordFull { pool: Name, length: u64, capacity: u64 },

    // ---- failed: what was found ----
    #[error("{} of the {total} devices of pool {pool} are missing; connect them", .missing.len())]
    DevicesMissing { pool: Name, missing: Vec<DevUuid>, total: usize },
    #[error(
        "several devices ({}) say that they are device {device} of pool {pool}, and it cannot be told which one is; disconnect \
         all but that one", list(.paths)
    )]
    Clash { pool: String, device: DevUuid, paths: Vec<PathBuf> },
    #[error(
        "device {device} holds the newest metadata of pool {pool}, which does not name the device; disconnect it if it is not part \
         of the pool"
    )]
    ExtraDevice { pool: Name, device: DevUuid },
    #[error("none of the data devices of pool {pool} can be read; connect them, or stop the pool")]
    DevicesGone { pool: Name },
    #[error("the devices of pool {0} have different metadata versions; disconnect those that do not belong to it")]
    MixedVersions(PoolUuid),
    #[error(
        "the devices of pool {0} hold no pool metadata; the pool was never completed, or its data devices are missing"
    )]
    NoMetadata(PoolUuid),
    #[error("the metadata of pool {pool} cannot be used: {why}")]
    Unusable { pool: PoolUuid, why: String },
    #[error("pool {0} has been destroyed; what is left of it is wiped when its devices are next seen")]
    Destroyed(PoolUuid),
    #[error("device-mapper device {0} is up, which another has to take the place of")]
    StillUp(String),
    #[error(
        "device-mapper device {name} exists with another table or UUID than pool metadata asks for; remove it by hand"
    )]
    OtherTable { name: String },
    #[error(
        "pool {pool} is recorded as encrypted, but there is no LUKS2 header on it; restore the header from a backup if there \
         is one"
    )]
    NoHeader { pool: Name },
    #[error(
        "pool {pool} is recorded as not encrypted, but there is a LUKS2 header on it; another daemon may have been interrupted \
         when it encrypted the pool: let that daemon complete it"
    )]
    UnrecordedHeader { pool: Name },
    #[error(
        "the metadata of the thin pool of {pool} could not be checked, and nothing was changed; start the pool again"
    )]
    NotChecked { pool: Name, source: platform::Error },
    #[error(
        "the metadata of the thin pool of {pool} is damaged, and thin_repair made nothing sound of it ({said}); nothing was \
         changed: repair it by hand, or restore the data from a backup"
    )]
    BadRepair { pool: Name, said: String },
    #[error(
        "the metadata of the thin pool of {pool} is damaged again after a repair ({said}); the spare still holds what it was \
         before that, and nothing was changed: repair it by hand, or restore the data from a backup"
    )]
    DamagedAgain { pool: Name, said: String },
    #[error("thin pool of {pool} does not say how full it is: {status}")]
    ThinStatus { pool: Name, status: String },
    #[error("the metadata volume of pool {pool} holds a damaged record {file}")]
    Record { pool: PoolUuid, file: String, source: metadata::filesystem::RecordError },
    #[error(
        "{} ended without an error, but the XFS on {} has UUID {} and not {expected}; see the log of the kernel, and try again",
        program.name(), node.display(), .found.map_or("(none)".to_owned(), |found| found.to_string())
    )]
    XfsIdentity { node: PathBuf, expected: uuid::Uuid, found: Option<uuid::Uuid>, program: platform::Program },
    #[error(
        "the kernel extended the XFS mounted on {} without an error, but it is as large as before; see the log of the kernel",
        mount_point.display()
    )]
    NotExtended { mount_point: PathBuf },
    #[error("the request panicked and was abandoned; please report this as a bug")]
    Panicked,
    #[error("the daemon is stopping, and nothing was changed; try again when it is up")]
    Ending,

    #[error("{cause}; and it could not all be taken back: {}", undone(.failures))]
    Rollback {
        #[source]
        cause: Box<Error>,
        failures: Vec<(String, Error)>,
        leaves: Availability,
    },

    #[error(
        "{cause}; and the former metadata of pool {pool} could not be written again, so the next start of the pool may find \
         the change made"
    )]
    Unrecorded { pool: Name, cause: Box<Error>, source: Box<Error> },

    #[error(transparent)]
    Platform(#[from] platform::Error),
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    #[error(transparent)]
    Bda(#[from] bda::BdaError),
    #[error(transparent)]
    Records(#[from] metadata::filesystem::RecordError),
    #[error("the metadata of pool {pool} contradicts itself; it may be damaged")]
    Broken { pool: Name, source: metadata::pool::Broken },
    #[error(transparent)]
    Allocation(#[from] plan::alloc::AllocError),
    #[error(transparent)]
    Cap(#[from] plan::cap::CapError),
    #[error(transparent)]
    Size(#[from] plan::sizes::SizeError),
    #[error("filesystem {name} cannot be created")]
    FilesystemSize { name: Name, source: plan::sizes::SizeError },
    #[error(transparent)]
    SectorSizes(#[from] plan::sector_rules::SectorError),
}

impl Error {
    /// The whole chain of causes as one sentence: cause, and what to do.
    pub fn sentence(&self) -> String {
        error_chain::sentence(self)
    }

    /// What an undo that failed leaves of the pool's availability.
    pub fn leaves(&self) -> Availability {
        match self {
            Error::Rollback { cause, leaves, .. } => (*leaves).max(cause.leaves()),
            Error::Unrecorded { .. } => Availability::NoPoolChanges,
            _ => Availability::Full,
        }
    }

    /// Whether it is not known if a change is on record: what that change needs on disk must stay.
    pub fn is_unsure(&self) -> bool {
        match self {
            Error::Unrecorded { .. } => true,
            Error::Rollback { cause, .. } => cause.is_unsure(),
            _ => false,
        }
    }

    /// Whether the kernel refuses a table as it is, so that asking again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Error::Platform(error) => error.is_refusal(),
            Error::OtherTable { .. } => true,
            _ => false,
        }
    }

    /// Whether somebody's use of a device was the cause.
    pub fn is_busy(&self) -> bool {
        match self {
            Error::Platform(error) => error.is_busy(),
            Error::Encryption(error) => error.is_busy(),
            Error::InUse { .. } | Error::Mounted { .. } => true,
            Error::Rollback { cause, .. } | Error::Unrecorded { cause, .. } => cause.is_busy(),
            _ => false,
        }
    }
}

/// The word for a work in messages.
fn work_word(work: ReencryptionMode) -> &'static str {
    match work {
        ReencryptionMode::Encrypt => "encrypted",
        ReencryptionMode::Reencrypt => "re-encrypted",
        ReencryptionMode::Decrypt => "decrypted",
    }
}

/// The word for a tier in messages.
fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::Data => "data",
        Tier::Cache => "cache",
    }
}

/// Paths for messages: the first ones, and how many more there are.
pub(super) fn list(paths: &[PathBuf]) -> String {
    some(paths.iter().map(|path| shortened(&path.to_string_lossy()).into_owned()))
}

fn names(names: &[Name]) -> String {
    some(names.iter().map(ToString::to_string))
}

/// The first ones, and how many more there are: a sentence stays one when thousands are named.
fn some(words: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let more = words.len().saturating_sub(SHOWN);
    let shown = words.take(SHOWN).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn uuids(pools: &[PoolUuid]) -> String {
    some(pools.iter().map(ToString::to_string))
}

fn only(label: &str, paths: &[PathBuf]) -> String {
    if paths.is_empty() { String::new() } else { format!("{label}{}", list(paths)) }
}

fn undone(failures: &[(String, Error)]) -> String {
    failures
        .iter()
        .map(|(what, error)| format!("could not {what} ({})", error.sentence()))
        .collect::<Vec<_>>()
        .join(", ")
}
