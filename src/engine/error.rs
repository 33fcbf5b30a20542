//! What can go wrong in the engine. Each error is one sentence that says what is wrong and what to
//! do. It keeps its source and does not repeat the source's text; [`Error::sentence`] joins the
//! chain, once, for the reply or the log.

use std::{fmt, path::PathBuf};

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
    view::{Availability, DeviceTier},
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
        "no pool named {name} is known, but the names of these stopped pools could not be read: {}; use the UUID to refer to \
         one of them", uuids(.nameless)
    )]
    UnknownName { name: Name, nameless: Vec<PoolUuid> },
    #[error("several stopped pools are named {name} ({}); use a UUID", uuids(.pools))]
    AmbiguousName { name: Name, pools: Vec<PoolUuid> },
    #[error("pool {pool} is not encrypted; omit {given}")]
    NotEncrypted { pool: Name, given: &'static str },
    #[error("the passphrase does not open pool {pool}; give the right one")]
    WrongPassphrase { pool: String },
    #[error("the devices of pool {pool} are encrypted; give an unlock method")]
    Locked { pool: PoolUuid },
    #[error("only some devices of pool {0} are encrypted; disconnect those that do not belong to it")]
    PartlyEncrypted(PoolUuid),
    #[error("pool {pool} is encrypted; give an unlock method")]
    NoUnlockMethod { pool: Name },
    #[error("pool {pool} has no filesystem with UUID {filesystem}; list its filesystems and check the identifier")]
    NoFilesystem { pool: Name, filesystem: FsUuid },
    #[error("pool {pool} has no block device with UUID {device}; list its devices and check the identifier")]
    NoDevice { pool: Name, device: DevUuid },
    #[error("a pool named {0} already exists; choose another name")]
    PoolNameTaken(Name),
    #[error("another running pool is named {0}; rename or stop one of the two")]
    NameRuns(Name),
    #[error("pool {pool} already has a filesystem named {name}; choose another name")]
    FilesystemNameTaken { pool: Name, name: Name },
    #[error(
        "pool {pool} already has a filesystem named {name}, which could not be set up; see the log for the reason, or choose \
         another name"
    )]
    FailedFilesystem { pool: Name, name: Name },
    #[error("device paths must be absolute: {}; give full paths, such as /dev/sda", list(.0))]
    RelativePaths(Vec<PathBuf>),
    #[error("a pool needs at least one block device; give one")]
    NoDevices,
    #[error("a cache needs at least one block device; give one")]
    NoCacheDevices,
    #[error(
        "a pool named {name} already exists with other devices{}{}; choose another name, or give exactly its devices",
        only(" - only requested: ", .only_requested), only(" - only in the pool: ", .only_present)
    )]
    OtherDevices { name: Name, only_requested: Vec<PathBuf>, only_present: Vec<PathBuf> },
    #[error("{} belongs to pool {pool}; remove it from that pool or destroy the pool first", path.display())]
    OwnedByPool { path: PathBuf, pool: PoolUuid },
    #[error(
        "{} carries the signature of this pool, but the pool does not list it; wipe its first sectors if it holds nothing of \
         value", path.display()
    )]
    UnknownMember { path: PathBuf },
    #[error("{} is already in the {} tier of this pool; give another device", path.display(), tier_word(*.tier))]
    InOtherTier { path: PathBuf, tier: DeviceTier },
    #[error("{} holds {what}; wipe it if its contents are not needed", path.display())]
    Foreign { path: PathBuf, what: String },
    #[error("{} is in use by the system (mounted, or part of another device); release it first", path.display())]
    InUse { path: PathBuf },
    #[error("{} is read-only; make it writable or give another device", path.display())]
    ReadOnly { path: PathBuf },
    #[error(
        "{} is too small: it has {}, and a pool needs {} of each device; give a larger one",
        path.display(), .size.readable(), .minimum.readable()
    )]
    TooSmall { path: PathBuf, size: Sectors, minimum: Sectors },
    #[error("{} and {} are the same device; give it once", .0.display(), .1.display())]
    SameDevice(PathBuf, PathBuf),
    #[error(
        "{} has no readable signature, although udev reports a Stratis device; wipe its first sectors if it holds nothing of \
         value", path.display()
    )]
    NoSignature { path: PathBuf },
    #[error(
        "pool {pool} has filesystems ({}); destroy them first",
        names(.filesystems)
    )]
    HasFilesystems { pool: Name, filesystems: Vec<Name> },
    #[error(
        "pool {pool} has filesystems that could not be set up ({}), and their contents would be lost; stop and start the pool to \
         set them up again, and see the engine state report for the reason; to discard them, stop the pool and wipe its \
         devices", some(.filesystems.iter().map(|name| shortened(name).into_owned()))
    )]
    HasFailedFilesystems { pool: Name, filesystems: Vec<String> },
    #[error("pool {pool} would have {wanted} filesystems, and its limit is {limit}; raise the limit or destroy some")]
    FilesystemLimit { pool: Name, limit: u64, wanted: u64 },
    #[error(
        "filesystem {name} already exists with a size of {}, not {}; choose another name or the same size",
        .existing.readable(), .requested.readable()
    )]
    OtherSize { name: Name, existing: Sectors, requested: Sectors },
    #[error(
        "pool {pool} does not allow overprovisioning: its filesystems would need {}, and it has room for {}; \
         add a data device, choose a smaller size or allow overprovisioning", .needed.readable(), .room.readable()
    )]
    NoRoom { pool: Name, needed: Sectors, room: Sectors },
    #[error(
        "pool {pool} already has a cache with other devices{}{}; give exactly its devices, or add devices to the cache",
        only(" - only requested: ", .only_requested), only(" - only in the cache: ", .only_present)
    )]
    OtherCache { pool: Name, only_requested: Vec<PathBuf>, only_present: Vec<PathBuf> },
    #[error("pool {pool} has no cache; initialize one first")]
    NoCache { pool: Name },
    #[error("cannot grow {}: it is a cache device of pool {pool}, and only data devices can be grown", path.display())]
    CacheDoesNotGrow { pool: Name, path: PathBuf },
    #[error("the filesystem limit of pool {pool} can only be raised, and it is {limit}; choose a larger one")]
    FilesystemLimitNotRaised { pool: Name, limit: u64 },
    #[error("the metadata volume of pool {pool} has room for {maximum} filesystems; choose a limit up to that")]
    FilesystemLimitTooHigh { pool: Name, maximum: u64 },
    #[error("cannot set the size limit of filesystem {name}")]
    SizeLimit { name: Name, source: plan::sizes::SizeError },
    #[error(
        "cannot extend the thin metadata of pool {pool}: no space is left; add a data device or destroy filesystems"
    )]
    MetadataExhausted { pool: Name },
    #[error(
        "cannot extend the thin metadata of pool {pool}: all space is reserved for filesystems; add a data device, \
         destroy filesystems or allow overprovisioning"
    )]
    MetadataPromised { pool: Name },
    #[error(
        "cannot create a snapshot of filesystem {origin}: pool {pool} has no free space; add a data device or destroy \
         filesystems, then try again"
    )]
    PoolFull { pool: Name, origin: Name },
    #[error("filesystem {name} is in use (mounted on {}); unmount it first", list(.mount_points))]
    Mounted { name: Name, mount_points: Vec<PathBuf> },
    #[error("filesystem {name} is not a snapshot, so it has no origin to replace")]
    NoOrigin { name: Name },
    #[error(
        "filesystem {name} cannot replace {origin}: {origin} is itself scheduled to replace its origin; cancel that first"
    )]
    OriginScheduled { name: Name, origin: String },
    #[error(
        "filesystem {name} cannot replace its origin: {sibling} is already scheduled to replace it; cancel that first"
    )]
    SiblingScheduled { name: Name, sibling: String },
    #[error(
        "filesystem {name} cannot replace its origin: {snapshot} is scheduled to replace {name}; cancel that first"
    )]
    SnapshotScheduled { name: Name, snapshot: String },
    #[error("filesystem {name} is part of a scheduled revert; cancel that first")]
    RevertScheduled { name: Name },
    #[error(
        "pool {pool} is restricted to {} ({reason}); stop and start the pool, or restart the daemon, to check it again", .level.word()
    )]
    Restricted { pool: Name, level: Availability, reason: String },
    #[error("pool {pool} is not encrypted; encrypt it first")]
    NothingToOpen { pool: Name },
    #[error(
        "cannot resize the crypt device of pool {pool}: its volume key is not in the daemon's keyring; set a key that opens \
         the pool, or stop and start the pool"
    )]
    VolumeKey { pool: PoolUuid },
    #[error(
        "pool {pool} is being {}; wait until that has finished (the engine state report shows its progress)",
        job_word(*.mode)
    )]
    ReencryptionRunning { pool: Name, mode: ReencryptionMode },
    #[error(
        "pool {pool} is only partly {}: the job stopped ({why}); fix the cause and repeat the request to resume it", job_word(*.mode)
    )]
    ReencryptionStopped { pool: Name, mode: ReencryptionMode, why: String },
    #[error(
        "the re-encryption job of pool {pool} was interrupted, because the {by}; it resumes when the pool is next set up, or \
         when the request is repeated"
    )]
    Interrupted { pool: Name, by: &'static str },
    #[error(
        "the re-encryption job of pool {pool} was interrupted before it began, and nothing has changed; repeat the request"
    )]
    NotBegun { pool: Name },
    #[error("pool {pool} is not completely {}, although the job reported success; repeat the request, and report this as a bug", job_word(*.mode))]
    ReencryptionIncomplete { pool: Name, mode: ReencryptionMode },
    #[error("pool {pool} has metadata version 1, which does not support this; create a new pool and copy the data")]
    OnlyVersion2 { pool: Name },
    #[error("pool {pool} has used all thin device numbers; create a new pool and move the data there")]
    ThinIdsUsedUp { pool: Name },
    #[error("the devices have no room for another {}; use larger or more devices", .what.readable())]
    NoSpace { what: Sectors },

    #[error(
        "cannot record this change of pool {pool}: its metadata would take {length} of {capacity} bytes, and the rest is kept for \
         stopping and destroying it; shorten the user information of its devices, or move data to a pool of fewer, larger \
         devices"
    )]
    RecordFull { pool: Name, length: u64, capacity: u64 },

    // ---- failed: what was found ----
    #[error("{} of the {total} devices of pool {pool} are missing; connect them", .missing.len())]
    DevicesMissing { pool: Name, missing: Vec<DevUuid>, total: usize },
    #[error(
        "several devices ({}) carry the identity of device {device} of pool {pool}; disconnect all but the right one", list(.paths)
    )]
    Clash { pool: String, device: DevUuid, paths: Vec<PathBuf> },
    #[error(
        "device {device} holds the newest metadata of pool {pool}, which does not list the device; disconnect it if it is not \
         part of the pool"
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
    #[error("pool {0} has been destroyed; its remaining devices are wiped when they are next connected")]
    Destroyed(PoolUuid),
    #[error("cannot replace active device {0}; close what uses it")]
    StillUp(String),
    #[error(
        "device-mapper device {name} exists, but its table or UUID does not match the pool metadata; remove it with dmsetup"
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
    #[error("the thin metadata of pool {pool} could not be checked, and nothing was changed; start the pool again")]
    NotChecked { pool: Name, source: platform::Error },
    #[error(
        "the thin metadata of pool {pool} is damaged, and thin_repair could not repair it ({said}); nothing was changed: repair \
         it by hand, or restore the data from a backup"
    )]
    BadRepair { pool: Name, said: String },
    #[error(
        "the thin metadata of pool {pool} is damaged again after a repair ({said}); the spare still holds the metadata from \
         before the repair, and nothing was changed: repair it by hand, or restore the data from a backup"
    )]
    DamagedAgain { pool: Name, said: String },
    #[error("cannot parse the status of the thin pool of {pool}: {status}")]
    ThinStatus { pool: Name, status: String },
    #[error("the metadata volume of pool {pool} holds a damaged record {file}")]
    Record { pool: PoolUuid, file: String, source: metadata::filesystem::RecordError },
    #[error(
        "{} reported success, but the XFS on {} has UUID {} instead of {expected}; see the kernel log, and try again",
        program.name(), node.display(), .found.map_or("(none)".to_owned(), |found| found.to_string())
    )]
    XfsIdentity { node: PathBuf, expected: uuid::Uuid, found: Option<uuid::Uuid>, program: platform::Program },
    #[error(
        "the kernel reported that it extended the XFS mounted on {}, but its size has not changed; see the kernel log",
        mount_point.display()
    )]
    NotExtended { mount_point: PathBuf },
    #[error("the request failed because of a bug in the daemon; report it with the log")]
    Panicked,
    #[error("the daemon is stopping, and nothing was changed; try again when it runs")]
    Ending,

    #[error("{cause}; some changes could not be undone: {}", undone(.failures))]
    Rollback {
        #[source]
        cause: Box<Error>,
        failures: Vec<(String, Error)>,
        leaves: Availability,
    },

    #[error(
        "{cause}; the former metadata of pool {pool} could not be restored, so the change may be in effect at the next start"
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
    #[error("the metadata of pool {pool} is inconsistent and may be damaged; restore it from a backup")]
    Broken { pool: Name, source: metadata::pool::Broken },
    #[error(transparent)]
    Allocation(#[from] plan::alloc::AllocError),
    #[error(transparent)]
    Cap(#[from] plan::cap::CapError),
    #[error(transparent)]
    Size(#[from] plan::sizes::SizeError),
    #[error("cannot create filesystem {name}")]
    FilesystemSize { name: Name, source: plan::sizes::SizeError },
    #[error(transparent)]
    SectorSizes(#[from] plan::sector_rules::SectorError),
}

impl Error {
    /// The whole chain of causes as one sentence: cause, and what to do.
    pub fn sentence(&self) -> String {
        error_chain::sentence(self)
    }

    /// If a passphrase did not open a LUKS device of this pool, names the pool instead of the device:
    /// the person who typed the passphrase knows only the pool.
    pub fn naming_pool(self, pool: impl fmt::Display) -> Error {
        match self {
            Error::Encryption(EncryptionError::Platform(platform::Error::WrongKey { .. })) => {
                Error::WrongPassphrase { pool: pool.to_string() }
            }
            other => other,
        }
    }

    /// What an undo that failed leaves of the pool's availability.
    pub fn leaves(&self) -> Availability {
        match self {
            Error::Rollback { cause, leaves, .. } => (*leaves).max(cause.leaves()),
            Error::Unrecorded { .. } => Availability::NoPoolChanges,
            _ => Availability::Full,
        }
    }

    /// As [`Error::leaves`], without the restriction of an unsure record, which may become sure
    /// again.
    pub fn leaves_in_kernel(&self) -> Availability {
        match self {
            Error::Rollback { cause, leaves, .. } => (*leaves).max(cause.leaves_in_kernel()),
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

    /// Whether the kernel refuses a table as it is, so that another attempt would fail as well.
    pub fn is_refusal(&self) -> bool {
        match self {
            Error::Platform(error) => error.is_refusal(),
            Error::OtherTable { .. } => true,
            _ => false,
        }
    }

    /// Whether the cause was a device in use.
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

/// The word for a job in messages.
fn job_word(mode: ReencryptionMode) -> &'static str {
    match mode {
        ReencryptionMode::Encrypt => "encrypted",
        ReencryptionMode::Reencrypt => "re-encrypted",
        ReencryptionMode::Decrypt => "decrypted",
    }
}

/// The word for a tier in messages.
fn tier_word(tier: DeviceTier) -> &'static str {
    match tier {
        DeviceTier::Data => "data",
        DeviceTier::Cache => "cache",
    }
}

/// Paths for messages: the first ones, and the number of the others.
pub(super) fn list(paths: &[PathBuf]) -> String {
    some(paths.iter().map(|path| shortened(&path.to_string_lossy()).into_owned()))
}

fn names(names: &[Name]) -> String {
    some(names.iter().map(ToString::to_string))
}

/// The first words, and the number of the others, so that a sentence stays readable when it names
/// thousands of things.
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
