//! What the engine asks of a machine: one trait with two implementations, `linux` and `sim`.
//!
//! The trait has the level of a kernel and its disks: bytes of a device, device-mapper calls, named
//! programs, mounts in a private directory, udev properties. No decision about pools is made here.

pub mod clevis;
mod device_number;
pub mod dm;
mod error;
pub mod keyring;
pub mod linux;
pub mod luks;
pub mod sim;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

pub use device_number::DeviceNumber;
pub use error::{Error, ProgramEnd, Result};

use crate::base::{
    ids::FsUuid,
    name::Name,
    units::{Bytes, Sectors},
};

/// What the udev database says a device belongs to. Order of the decision:
/// `docs/spec/engine/ondisk-metadata.md` §4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceClass {
    /// Holds a Stratis signature block.
    Stratis,
    /// Holds a LUKS header.
    Luks,
    /// A path of a multipath device. The daemon never uses it directly.
    MultipathMember,
    /// udev has found nothing on the device.
    Unowned,
    /// Belongs to something else; the text says what was found (`xfs`, `partition table dos`).
    Other(String),
}

/// A block device as the udev database describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The device node, canonical.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// What it belongs to.
    pub class: DeviceClass,
    /// World-wide name (udev `ID_WWN`), if it has one.
    pub wwn: Option<String>,
}

/// What a fresh libblkid probe found on a device: superblocks and partition tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Number of partitions in the partition table.
    pub partitions: u32,
    /// Superblock type, such as `stratis`, `xfs`, `crypto_LUKS`.
    pub superblock: Option<String>,
}

/// Size and sector sizes of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the whole device.
    pub size: Sectors,
    /// Logical sector size in bytes: the unit of I/O.
    pub logical: u32,
    /// Physical sector size in bytes: the unit of atomic writes.
    pub physical: u32,
    /// The kernel refuses writes to it.
    pub read_only: bool,
}

/// One step of a write to a device. Steps run in order; only a later `Flush` makes a write durable.
#[derive(Debug, Clone, Copy)]
pub enum WriteStep<'a> {
    /// Writes these bytes at this offset in bytes.
    At(u64, &'a [u8]),
    /// Writes these whole logical sectors at this offset in bytes, past the page cache. [`At`] may
    /// also write the bytes around its own, up to a page, as the page cache has them; a file system
    /// that was mounted may have changed them on the device.
    ///
    /// [`At`]: WriteStep::At
    Sectors(u64, &'a [u8]),
    /// Makes everything written to the device so far durable.
    Flush,
}

/// A write to one of several devices.
#[derive(Debug, Clone)]
pub struct DeviceWrite<'a> {
    /// The device.
    pub path: &'a Path,
    /// The steps, in order.
    pub steps: Vec<WriteStep<'a>>,
}

/// A program that the engine runs. The platform finds its path and checks it at start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Program {
    MkfsXfs,
    XfsDb,
    ThinCheck,
    ThinRepair,
    ThinMetadataSize,
}

impl Program {
    /// Every program, for the check at start-up.
    pub const ALL: [Program; 5] =
        [Program::MkfsXfs, Program::XfsDb, Program::ThinCheck, Program::ThinRepair, Program::ThinMetadataSize];

    /// Name of the executable file.
    pub fn name(self) -> &'static str {
        match self {
            Program::MkfsXfs => "mkfs.xfs",
            Program::XfsDb => "xfs_db",
            Program::ThinCheck => "thin_check",
            Program::ThinRepair => "thin_repair",
            Program::ThinMetadataSize => "thin_metadata_size",
        }
    }
}

/// A running program, or any other child process of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProgram {
    /// What it does, for users: `mkfs.xfs on /dev/mapper/x`.
    pub label: String,
    /// Its process ID.
    pub process: u32,
    /// How long it has run so far.
    pub age: Duration,
    /// It was killed at its time limit and has not exited.
    pub is_stuck: bool,
}

/// A mount of a device outside the private directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device.
    pub number: DeviceNumber,
    /// The mount point as seen in the mount's own namespace.
    pub mount_point: PathBuf,
    /// A process in that mount namespace; `None` for the namespace of PID 1.
    pub process: Option<u32>,
}

impl Mount {
    /// The mount point as a path that the administrator can open.
    pub fn shown(&self) -> PathBuf {
        match self.process {
            None => self.mount_point.clone(),
            Some(process) => {
                let below = self.mount_point.strip_prefix("/").unwrap_or(&self.mount_point);
                Path::new("/proc").join(process.to_string()).join("root").join(below)
            }
        }
    }
}

/// A point in time: seconds and nanoseconds since 1970-01-01 00:00 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: u64,
    /// The rest, below 10^9.
    pub nanoseconds: u32,
}

/// The names of a filesystem for udev, which makes the link `/dev/stratis/POOL/FILESYSTEM` from
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The thin device.
    pub number: DeviceNumber,
    /// The filesystem on it.
    pub filesystem: FsUuid,
    /// Name of its pool.
    pub pool_name: Name,
    /// Its name.
    pub name: Name,
}

impl Announcement {
    /// The link that must point to the device.
    pub fn link(&self) -> PathBuf {
        self.name.link_in(&self.pool_name)
    }

    /// The link that other daemons would make, if it differs.
    pub fn former_link(&self) -> Option<PathBuf> {
        self.name.former_link_in(&self.pool_name)
    }
}

/// Links that were requested from udev and may not exist yet.
pub trait PendingLinks: Send {
    /// Waits until every link exists and points to its device, for at most `limit` in all. For
    /// callers that do nothing else: one thread at a time may wait for links. The caller holds no
    /// lock. Returns the links that are missing at the end.
    fn wait(self: Box<Self>, limit: Duration) -> Vec<PathBuf>;
    /// Reads the pending messages, for all values with the same [`PendingLinks::fd`].
    fn hear(&mut self);
    /// Takes in the messages read so far, without waiting. Returns `true` when there is nothing
    /// left to wait for: every link exists, or the missing ones will not come.
    fn advance(&mut self) -> bool;
    /// Becomes readable when [`PendingLinks::hear`] is worth a call on one of the values that share
    /// the descriptor, and then [`PendingLinks::advance`] on all of them. `None` if no descriptor
    /// announces the links.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// The links that are missing now.
    fn missing(self: Box<Self>) -> Vec<PathBuf>;
}

/// Space of a file system, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Size of the file system.
    pub total: Bytes,
    /// Bytes in use.
    pub used: Bytes,
}

/// What happened to a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceAction {
    /// The device appeared.
    Add,
    /// Its contents or properties may have changed.
    Change,
    /// The device is gone.
    Remove,
}

/// An event from udev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// What happened.
    pub action: DeviceAction,
    /// The device node. For a removed device nothing else is certain.
    pub path: PathBuf,
    /// The device as the database describes it after the event; `None` when it is removed or not
    /// yet initialized.
    pub device: Option<BlockDevice>,
    /// Name of a device-mapper device that has no link under `/dev/stratis` after this event.
    /// `None` if the device has its link, is gone, or is not a device-mapper device, and for events
    /// that answer an announcement: some always come between the creation of a filesystem and that
    /// of its link.
    pub unlinked: Option<String>,
}

/// Exclusive use of a device ([`Platform::hold`]). Dropping it releases the device.
pub trait DeviceHold: Send + Sync + fmt::Debug {}

/// A source of udev events. One thread owns it, waits for its descriptor and reads without
/// blocking.
pub trait DeviceEvents: Send {
    /// Becomes readable when there is an event to read.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The next event; `None` if there is none now.
    ///
    /// # Errors
    /// If the source is broken for good. Lost events (an overflow) are no error.
    fn next(&mut self) -> Result<Option<DeviceEvent>>;
    /// Whether events were lost since the last call. If so, any device may have come, changed or
    /// gone.
    fn take_lost(&mut self) -> bool;
}

/// A source of device-mapper events. An event says that some device has changed, but not which. One
/// thread owns the source.
pub trait DmEvents: Send {
    /// Becomes readable when any device had an event since the last [`DmEvents::arm`].
    fn fd(&self) -> BorrowedFd<'_>;
    /// Arms the source again. Call it before reading event numbers, so that no event is missed.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn arm(&mut self) -> Result<()>;
}

/// A machine: the calls that the engine needs. Every call may fail, and any thread may make it.
///
/// Paths in the mount and file calls are relative to a private directory that no other program sees
/// (`/run/stratisd/ns_mounts` in a private mount namespace).
pub trait Platform: Send + Sync + 'static {
    // ---- devices ----

    /// Every initialized block device that carries a Stratis signature or a LUKS header.
    fn block_devices(&self) -> Result<Vec<BlockDevice>>;
    /// The device behind an absolute path. Follows links.
    fn find_device(&self, path: &Path) -> Result<BlockDevice>;
    /// Probes the contents of the device.
    fn contents(&self, path: &Path) -> Result<Contents>;
    /// Size and sector sizes.
    fn geometry(&self, path: &Path) -> Result<Geometry>;
    /// Takes exclusive use of a device until the hold is dropped. Meanwhile every call with this
    /// path reaches the held device, whatever the path leads to.
    ///
    /// # Errors
    /// An error that [is busy](Error::is_busy) if something else uses the device: a mount, swap,
    /// md, multipath, another device-mapper device, or an earlier hold.
    fn hold(&self, path: &Path) -> Result<Box<dyn DeviceHold>>;
    /// The block devices that this one lies on, directly or not: those below device-mapper and md
    /// devices, and those below loop devices that are backed by one. Empty for a disk.
    fn lower_devices(&self, number: DeviceNumber) -> Result<BTreeSet<DeviceNumber>>;
    /// Reads `length` bytes at `offset`, bypassing the page cache where that could be stale.
    fn read(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>>;
    /// Runs the steps in order, with the device opened once.
    fn write(&self, path: &Path, steps: &[WriteStep<'_>]) -> Result<()>;
    /// Writes to several devices in parallel, each as [`Platform::write`] does. The call takes as
    /// long as the slowest device. A failure on one device does not stop the others. Returns the
    /// results in the order of the writes.
    fn write_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<Result<()>>;

    // ---- device-mapper ----

    /// All device-mapper devices.
    fn dm_list(&self) -> Result<Vec<dm::Listed>>;
    /// Finds one device by name, with its active table.
    fn dm_find(&self, name: &str) -> Result<Option<dm::Device>>;
    /// Event number of one device, by name; `None` if there is no such device. The cost does not
    /// depend on the number of other devices; for many devices, the list is a single call.
    fn dm_event(&self, name: &str) -> Result<Option<u32>>;
    /// Creates a device, loads its table and resumes it. Leaves nothing behind on error. Returns
    /// its number.
    fn dm_create(&self, name: &str, uuid: &str, table: &[dm::Line], visibility: dm::Visibility)
    -> Result<DeviceNumber>;
    /// Loads a table, which becomes live at the next resume.
    fn dm_load(&self, name: &str, table: &[dm::Line]) -> Result<()>;
    /// Suspends the device. `flush` first writes out file system and thin-pool data.
    fn dm_suspend(&self, name: &str, flush: bool) -> Result<()>;
    /// Makes a loaded table live and resumes I/O.
    fn dm_resume(&self, name: &str, visibility: dm::Visibility) -> Result<()>;
    /// Removes a device; retries for about a second while it is busy.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is still open then. Also if there is no such device.
    fn dm_remove(&self, name: &str) -> Result<()>;
    /// Sends a message to the target at sector 0.
    fn dm_message(&self, name: &str, message: &str) -> Result<()>;
    /// The status lines of the device's targets.
    fn dm_status(&self, name: &str) -> Result<Vec<String>>;
    /// The device node for a device-mapper name.
    fn dm_node(&self, name: &str) -> PathBuf;

    // ---- programs ----

    /// Runs a program to its end and returns its standard output.
    ///
    /// # Errors
    /// [`Error::Program`] with the text of standard error if the exit status is not 0.
    fn run(&self, program: Program, arguments: &[&str]) -> Result<String>;
    /// Running programs and other child processes, the oldest first.
    fn running_programs(&self) -> Vec<RunningProgram>;
    /// Number of udev events since start-up that udev did not finish in time. The operations that
    /// waited for them went on.
    fn unanswered_udev_events(&self) -> u64;

    // ---- mounts and files ----

    /// Mounts the XFS on `node` at the directory `at` of the private directory, which it creates if
    /// needed. Succeeds if it is already mounted there. `options` as for mount(8), empty for none.
    fn mount(&self, node: &Path, at: &str, options: &str) -> Result<()>;
    /// Unmounts and removes the directory. Succeeds if nothing is mounted there.
    fn unmount(&self, at: &str) -> Result<()>;
    /// Mounts of these devices in any mount namespace, except those in the private directory. For
    /// each device, mounts of the whole file system come before mounts of a part of it.
    fn mounts(&self, devices: &[DeviceNumber]) -> Result<Vec<Mount>>;
    /// Mount points of a device, for users.
    ///
    /// # Errors
    /// As [`Platform::mounts`].
    fn mount_points(&self, number: DeviceNumber) -> Result<Vec<PathBuf>> {
        Ok(self.mounts(&[number])?.iter().map(Mount::shown).collect())
    }
    /// How full the file system of a mount is.
    ///
    /// # Errors
    /// [`Error::OtherMount`] if something else is mounted there.
    fn usage(&self, mount: &Mount) -> Result<Usage>;
    /// Grows the XFS of a mount to the size of its device.
    ///
    /// # Errors
    /// [`Error::OtherMount`] if something else is mounted there.
    fn grow_xfs(&self, mount: &Mount) -> Result<()>;
    /// Names of the files in a directory. Creates a missing directory.
    fn list_files(&self, directory: &str) -> Result<Vec<String>>;
    /// Reads a whole file.
    fn read_file(&self, path: &str) -> Result<Vec<u8>>;
    /// Creates or replaces a file atomically and durably (`NAME.temp`, fsync, rename, fsync of the
    /// directory; `docs/spec/engine/ondisk-metadata.md` §7.2).
    fn replace_file(&self, path: &str, bytes: &[u8]) -> Result<()>;
    /// Removes a file durably. Succeeds if there is none.
    fn remove_file(&self, path: &str) -> Result<()>;

    // ---- keys ----

    /// Sets a key in the kernel's persistent keyring of root, which keeps it until the next boot.
    /// `name` is the full name.
    fn key_set(&self, name: &str, value: &keyring::Secret) -> Result<keyring::KeyChange>;
    /// Removes a key. `false` if there was none.
    fn key_unset(&self, name: &str) -> Result<bool>;
    /// Names of all keys.
    fn key_list(&self) -> Result<Vec<String>>;
    /// Reads a key; `None` if there is none of that name.
    fn key_read(&self, name: &str) -> Result<Option<keyring::Secret>>;
    /// Stores or replaces a volume key in the daemon's process keyring, which keeps it as long as
    /// the daemon runs. `name` is the full name.
    fn volume_key_set(&self, name: &str, value: &keyring::Secret) -> Result<()>;
    /// Reads a volume key from there.
    fn volume_key_read(&self, name: &str) -> Result<Option<keyring::Secret>>;
    /// Removes a volume key. `false` if there was none.
    fn volume_key_unset(&self, name: &str) -> Result<bool>;

    // ---- LUKS2 ----
    //
    // Each call may take seconds, since key derivation is slow. Calls on different devices run in
    // parallel.

    /// Reads the header of a device; `None` if it has no LUKS2 header.
    ///
    /// # Errors
    /// If both copies are damaged, or the device cannot be read.
    fn luks_read(&self, device: &Path) -> Result<Option<luks::Header>>;
    /// Formats a LUKS2 header with these keyslots (at least one) and tokens. For
    /// [`luks::FormatPurpose::New`] an error may leave a useless header behind, which the caller
    /// wipes. For [`luks::FormatPurpose::Encrypt`] the device stays unchanged until the header is
    /// complete.
    ///
    /// # Errors
    /// Also if the data would not start at the requested offset.
    fn luks_format(
        &self,
        device: &Path,
        layout: &luks::HeaderLayout,
        purpose: luks::FormatPurpose,
        keyslots: &[luks::NewKeyslot<'_>],
        tokens: &BTreeMap<u32, serde_json::Value>,
    ) -> Result<luks::Header>;
    /// Applies the changes in order up to the first that fails, and returns the resulting header.
    /// Changes that add keyslots need `unlock`.
    fn luks_change(
        &self,
        device: &Path,
        unlock: Option<luks::Unlock<'_>>,
        changes: &[luks::HeaderChange<'_>],
    ) -> Result<luks::Header>;
    /// Finds the volume key. With `name`, also activates the crypt device `/dev/mapper/NAME`. If a
    /// re-encryption job was cut short, recovers its hot zone first; the crypt device then serves
    /// both parts of the data.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if the passphrase opens no keyslot, or not the given one. Also if a
    /// device of that name is active.
    fn luks_open(&self, device: &Path, name: Option<&str>, unlock: luks::Unlock<'_>) -> Result<keyring::Secret>;
    /// Activates the crypt device as [`Platform::luks_open`] does, with the volume key itself.
    ///
    /// # Errors
    /// Also if a re-encryption job is unfinished: to resume it takes a passphrase.
    fn luks_reopen(&self, device: &Path, name: &str, volume_key: &keyring::Secret) -> Result<()>;
    /// Resizes a crypt device to all the space of its LUKS device, or to `size`.
    fn luks_resize(&self, device: &Path, name: &str, volume_key: &keyring::Secret, size: Option<Sectors>)
    -> Result<()>;
    /// Runs a re-encryption job on a LUKS device whose crypt device `name` is active and may be in
    /// use, until it is complete or `watch` returns `false`. Calls `watch` at least once every few
    /// seconds.
    ///
    /// # Errors
    /// The header then says how far the job came. The crypt device still serves all data.
    fn luks_reencrypt(
        &self,
        device: &Path,
        name: &str,
        unlock: luks::Unlock<'_>,
        begin: luks::Begin,
        watch: &(dyn Fn(luks::Progress) -> bool + Sync),
    ) -> Result<luks::ReencryptionEnd>;

    // ---- Clevis ----

    /// Encrypts a passphrase so that it takes the resource of the pin (a Tang server, the TPM, or a
    /// threshold of several) to decrypt it. Returns the JWE as a token holds it. `trust`: accept
    /// the keys that a server sends.
    ///
    /// # Errors
    /// [`Error::Clevis`]; [`Error::Missing`] names the missing programs.
    fn clevis_encrypt(
        &self,
        pin: &str,
        config: &serde_json::Value,
        trust: bool,
        passphrase: &keyring::Secret,
    ) -> Result<serde_json::Value>;
    /// Decrypts a passphrase.
    ///
    /// # Errors
    /// As [`Platform::clevis_encrypt`].
    fn clevis_decrypt(&self, jwe: &serde_json::Value) -> Result<keyring::Secret> {
        let nothing = Error::Unexpected { what: "the result of Clevis", text: "no passphrase and no error".to_owned() };
        let mut found = Err(nothing);
        self.clevis_decrypt_each(&[jwe], &mut |_, decrypted| {
            found = decrypted;
            true
        });
        found
    }
    /// Decrypts passphrases in parallel. Hands each over to `take` with its index as it arrives, or
    /// the reason why not. `take` returns `true` when it needs no more; the rest is then cancelled.
    fn clevis_decrypt_each(
        &self,
        jwes: &[&serde_json::Value],
        take: &mut dyn FnMut(usize, Result<keyring::Secret>) -> bool,
    );

    // ---- udev, time, random numbers ----

    /// Asks udev to make the links of these filesystems, or to make them again.
    fn announce(&self, filesystems: &[Announcement]) -> Result<Box<dyn PendingLinks>>;
    /// Whether the link of this filesystem exists and points to its device. Cheap.
    fn is_linked(&self, filesystem: &Announcement) -> bool;
    /// A new source of udev events.
    fn device_events(&self) -> Result<Box<dyn DeviceEvents>>;
    /// A new source of device-mapper events.
    fn dm_events(&self) -> Result<Box<dyn DmEvents>>;
    /// The current calendar time.
    fn now(&self) -> Timestamp;
    /// Random bytes.
    fn random(&self) -> [u8; 16];
}
