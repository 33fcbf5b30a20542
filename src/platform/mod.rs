//! What the engine asks of a machine: one trait, two homes (`linux`, `sim`).
//!
//! The level is that of a kernel and its disks: bytes of a device, device-mapper calls, named programs, mounts in a
//! private place, what udev knows. Nothing here decides anything about pools.

pub mod clevis;
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

pub use error::{Error, ProgramEnd, Result};

use crate::base::{
    ids::FsUuid,
    name::Name,
    units::{Bytes, Sectors},
};

/// A kernel device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Major number: the driver.
    pub major: u32,
    /// Minor number: the device.
    pub minor: u32,
}

/// What the device database (udev) says a device belongs to. Order of the decision: `docs/spec/engine/ondisk-metadata.md` §4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceClass {
    /// Holds a Stratis signature block.
    Stratis,
    /// Holds a LUKS header.
    Luks,
    /// A path of a multipath device; never to be used itself.
    MultipathMember,
    /// Nothing is known to be on it.
    Unowned,
    /// Somebody else's; the text says what was seen (`xfs`, `partition table dos`).
    Other(String),
}

/// A block device as the device database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The device node, canonical.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Whose it is.
    pub class: DeviceClass,
    /// World-wide name (udev `ID_WWN`), if it has one.
    pub wwn: Option<String>,
}

/// What a fresh look at a device's contents (libblkid: superblocks and partition tables) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Partitions in a partition table.
    pub partitions: u32,
    /// Type of the superblock, as `stratis`, `xfs`, `crypto_LUKS`.
    pub superblock: Option<String>,
}

/// Size and sector sizes of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the whole device.
    pub size: Sectors,
    /// Logical sector size in bytes: the unit of transfer.
    pub logical: u32,
    /// Physical sector size in bytes: the unit of atomic writing.
    pub physical: u32,
    /// The kernel refuses to write to it.
    pub read_only: bool,
}

/// One step of a write to a device. Steps take effect in order; nothing is durable before a `Flush` after it.
#[derive(Debug, Clone, Copy)]
pub enum WriteStep<'a> {
    /// These bytes at this offset, both in bytes.
    At(u64, &'a [u8]),
    /// Everything written to the device so far is on stable storage when this step is done.
    Flush,
}

/// A write to one of several devices.
#[derive(Debug, Clone)]
pub struct DeviceWrite<'a> {
    /// The device.
    pub path: &'a Path,
    /// What is done with it, in order.
    pub steps: Vec<WriteStep<'a>>,
}

/// A program that the engine runs. Where it lies is the platform's business, checked at start-up.
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

/// A program that runs at the moment, or any other child of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProgram {
    /// What it does, for people: `mkfs.xfs on /dev/mapper/x`.
    pub label: String,
    /// Its process.
    pub process: u32,
    /// How long it has been running.
    pub age: Duration,
    /// It was killed because its time was up, and has not ended.
    pub is_stuck: bool,
}

/// Where a user has mounted a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device.
    pub number: DeviceNumber,
    /// The path, as it is seen in the mount namespace that the mount is in.
    pub mount_point: PathBuf,
    /// A process of that namespace; `None`: it is that of the first process.
    pub process: Option<u32>,
}

impl Mount {
    /// The path as the administrator of the machine can use it.
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

/// A moment: seconds and nanoseconds since 1970-01-01 00:00 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: u64,
    /// The rest, below 10^9.
    pub nanoseconds: u32,
}

/// Names of a filesystem to be told to udev, which makes the link `/dev/stratis/POOL/FILESYSTEM` from them.
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
    /// The link that is to point to the device.
    pub fn link(&self) -> PathBuf {
        self.name.link_in(&self.pool_name)
    }

    /// The link under other daemons, if that is another.
    pub fn former_link(&self) -> Option<PathBuf> {
        self.name.former_link_in(&self.pool_name)
    }
}

/// Links that udev has been asked for and may not have made yet.
pub trait PendingLinks: Send {
    /// Waits until every link is there and points to its device, at most `limit` in all. For those who do nothing else: one
    /// thread at a time may wait for links. Called without any lock. Returns the links that are not there in the end.
    fn wait(self: Box<Self>, limit: Duration) -> Vec<PathBuf>;
    /// Takes in what has been said, for all that have the same [`PendingLinks::fd`].
    fn hear(&mut self);
    /// Takes note of what has been heard, without waiting. Whether there is nothing left to wait for: every link is there, or
    /// those that are missing will not come.
    fn advance(&mut self) -> bool;
    /// Readable when it is worth calling [`PendingLinks::hear`], by one of those that have it, and [`PendingLinks::advance`],
    /// by all of them. `None`: nothing would tell.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// The links that are not there now.
    fn missing(self: Box<Self>) -> Vec<PathBuf>;
}

/// A file system somewhere in the private place, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Size of the file system.
    pub total: Bytes,
    /// Bytes of it in use.
    pub used: Bytes,
}

/// What happened to a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceAction {
    /// It appeared.
    Add,
    /// Its contents or properties may have changed.
    Change,
    /// It is gone.
    Remove,
}

/// A message from the device database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// What happened.
    pub action: DeviceAction,
    /// The node; the only thing that is sure for a removed device.
    pub path: PathBuf,
    /// The device as it is known after the event; `None` when removed or not yet initialized in the database.
    pub device: Option<BlockDevice>,
    /// Name of a device-mapper device that has no link under `/dev/stratis` after it was added, which coldplug also says of
    /// devices that have been there for long. `None` if it has one, or is no such device. Not told of changes: there is
    /// always one between the making of a filesystem and that of its link.
    pub unlinked: Option<String>,
}

/// A device taken for this process alone ([`Platform::hold`]); dropping it gives it back.
pub trait Hold: Send + Sync + fmt::Debug {}

/// A source of device events. Owned by one thread, which waits for its descriptor and reads without blocking.
pub trait DeviceEvents: Send {
    /// Becomes readable when there is something to read.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The next event, `None` if there is none now.
    ///
    /// # Errors
    /// When the source is broken for good; lost events (an overflow) are not an error.
    fn next(&mut self) -> Result<Option<DeviceEvent>>;
    /// Whether events have been lost since this was last asked: any device may have come, changed or gone.
    fn take_lost(&mut self) -> bool;
}

/// A source of "some device-mapper device had an event". Owned by one thread.
pub trait DmEvents: Send {
    /// Becomes readable when any device had an event since the last [`DmEvents::arm`].
    fn fd(&self) -> BorrowedFd<'_>;
    /// Arms it again; call before reading event numbers, so that none is missed.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn arm(&mut self) -> Result<()>;
}

/// A machine: the calls that the engine needs. Every call may fail, and each is safe to make from any thread.
///
/// Paths given to the mount and file calls are relative to a private directory that no other program sees
/// (`/run/stratisd/ns_mounts` in a private mount namespace).
pub trait Platform: Send + Sync + 'static {
    // ---- devices ----

    /// Every initialized block device that holds a Stratis signature or a LUKS header.
    fn block_devices(&self) -> Result<Vec<BlockDevice>>;
    /// The device behind an absolute path (links followed).
    fn find_device(&self, path: &Path) -> Result<BlockDevice>;
    /// A fresh look at what is on the device.
    fn contents(&self, path: &Path) -> Result<Contents>;
    /// Size and sector sizes.
    fn geometry(&self, path: &Path) -> Result<Geometry>;
    /// Takes a device for this process alone, until the hold is dropped. Meanwhile every call with this path is about the device
    /// that is held, whatever the path leads to.
    ///
    /// # Errors
    /// One that [is busy](Error::is_busy) if somebody has the device open for their own use: mounted, swap, part of md,
    /// multipath or another device-mapper device; also if it is held already.
    fn hold(&self, path: &Path) -> Result<Box<dyn Hold>>;
    /// The block devices that this one lies on, directly or not: those below device-mapper and md devices, and below loop devices
    /// that are made of one. None for a disk.
    fn lower_devices(&self, number: DeviceNumber) -> Result<BTreeSet<DeviceNumber>>;
    /// `length` bytes at `offset`, past the page cache where that could be stale.
    fn read(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>>;
    /// Carries out the steps in order, opening the device once.
    fn write(&self, path: &Path, steps: &[WriteStep<'_>]) -> Result<()>;
    /// Writes to several devices, each as [`Platform::write`] does, side by side: it takes as long as the slowest of
    /// them, not as long as all of them. A device that fails does not keep the others from being written. Gives the
    /// results in the order of the writes.
    fn write_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<Result<()>>;

    // ---- device-mapper ----

    /// All device-mapper devices.
    fn dm_list(&self) -> Result<Vec<dm::Listed>>;
    /// One device by name, with its active table.
    fn dm_find(&self, name: &str) -> Result<Option<dm::Device>>;
    /// How many events one device has had, by name; `None`: there is no such device. Costs the same beside any number of
    /// others; for many devices the list is one call.
    fn dm_event(&self, name: &str) -> Result<Option<u32>>;
    /// Makes, loads and starts a device; nothing is left of it on error. Gives its number.
    fn dm_create(&self, name: &str, uuid: &str, table: &[dm::Line], visibility: dm::Visibility)
    -> Result<DeviceNumber>;
    /// Loads a table that becomes active at the next resume.
    fn dm_load(&self, name: &str, table: &[dm::Line]) -> Result<()>;
    /// Stops I/O to the device. `flush` writes file system and thin-pool data out first.
    fn dm_suspend(&self, name: &str, flush: bool) -> Result<()>;
    /// Makes a loaded table active and lets I/O go on.
    fn dm_resume(&self, name: &str, visibility: dm::Visibility) -> Result<()>;
    /// Removes a device, trying again for about a second while it is busy.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is still open then. A device that does not exist is an error too.
    fn dm_remove(&self, name: &str) -> Result<()>;
    /// Gives a device another name.
    fn dm_rename(&self, name: &str, new_name: &str) -> Result<()>;
    /// Sends a message to the target at sector 0.
    fn dm_message(&self, name: &str, message: &str) -> Result<()>;
    /// The status texts of the device's targets.
    fn dm_status(&self, name: &str) -> Result<Vec<String>>;
    /// The node of a device-mapper device of that name.
    fn dm_node(&self, name: &str) -> PathBuf;

    // ---- programs ----

    /// Runs a program to its end and gives its standard output.
    ///
    /// # Errors
    /// [`Error::Program`] with its standard error text if it ends with another status than 0.
    fn run(&self, program: Program, arguments: &[&str]) -> Result<String>;
    /// Programs and other children that run at the moment, the oldest first.
    fn running_programs(&self) -> Vec<RunningProgram>;
    /// How many events udev has not answered in time since the start. What waited for them has gone on without it.
    fn unanswered_udev_events(&self) -> u64;

    // ---- mounts and files ----

    /// Mounts the XFS on `node` on the directory `at` (made if missing) of the private place. Mounted there already
    /// is no error. `options` as for mount(8), empty for none.
    fn mount(&self, node: &Path, at: &str, options: &str) -> Result<()>;
    /// Unmounts and removes the directory; nothing mounted there is no error.
    fn unmount(&self, at: &str) -> Result<()>;
    /// Where these devices are mounted, in any mount namespace, the private place not counted. Of a device's mounts those of the
    /// whole file system come before those of a part of it.
    fn mounts(&self, devices: &[DeviceNumber]) -> Result<Vec<Mount>>;
    /// Where a device is mounted, for people.
    ///
    /// # Errors
    /// As [`Platform::mounts`].
    fn mount_points(&self, number: DeviceNumber) -> Result<Vec<PathBuf>> {
        Ok(self.mounts(&[number])?.iter().map(Mount::shown).collect())
    }
    /// How full the file system of a mount is.
    ///
    /// # Errors
    /// [`Error::OtherMount`] when something else is there.
    fn usage(&self, mount: &Mount) -> Result<Usage>;
    /// Extends the XFS of a mount to the size of its device.
    ///
    /// # Errors
    /// [`Error::OtherMount`] when something else is there.
    fn grow_xfs(&self, mount: &Mount) -> Result<()>;
    /// Names of the files in a directory; a missing directory is made and empty.
    fn list_files(&self, directory: &str) -> Result<Vec<String>>;
    /// A whole file.
    fn read_file(&self, path: &str) -> Result<Vec<u8>>;
    /// Puts a file in place of any of that name: all or nothing, durable when done
    /// (`NAME.temp`, fsync, rename, fsync of the directory; `docs/spec/engine/ondisk-metadata.md` §7.2).
    fn replace_file(&self, path: &str, bytes: &[u8]) -> Result<()>;
    /// Removes a file, durable when done; a missing one is no error.
    fn remove_file(&self, path: &str) -> Result<()>;

    // ---- keys ----

    /// Sets a key of the kernel's persistent keyring of root; it is there until the next boot. `name` is the whole name.
    fn key_set(&self, name: &str, value: &keyring::Secret) -> Result<keyring::KeyChange>;
    /// Removes a key. `false`: there was none.
    fn key_unset(&self, name: &str) -> Result<bool>;
    /// The names of all keys.
    fn key_list(&self) -> Result<Vec<String>>;
    /// A key of it; `None`: there is none of that name.
    fn key_read(&self, name: &str) -> Result<Option<keyring::Secret>>;
    /// Keeps a volume key in the daemon's own (process) keyring, where it is as long as the daemon runs. `name` is the
    /// whole name. One that is there is replaced.
    fn volume_key_set(&self, name: &str, value: &keyring::Secret) -> Result<()>;
    /// A volume key that is kept there.
    fn volume_key_read(&self, name: &str) -> Result<Option<keyring::Secret>>;
    /// Removes a volume key. `false`: there was none.
    fn volume_key_unset(&self, name: &str) -> Result<bool>;

    // ---- LUKS2 ----
    //
    // Each call may take seconds: keys are derived at a cost. Calls on different devices run side by side.

    /// The header on a device; `None`: there is no LUKS2 header.
    ///
    /// # Errors
    /// When both copies are damaged, or the device cannot be read.
    fn luks_read(&self, device: &Path) -> Result<Option<luks::Header>>;
    /// Makes a header with these keyslots (at least one) and tokens. For [`luks::Purpose::New`] an error may leave a header
    /// without use, which the caller wipes; for [`luks::Purpose::Encrypt`] nothing of it is on the device before it is
    /// complete.
    ///
    /// # Errors
    /// Also if the data would not begin at the offset asked for.
    fn luks_format(
        &self,
        device: &Path,
        layout: &luks::Layout,
        purpose: luks::Purpose,
        keyslots: &[luks::NewKeyslot<'_>],
        tokens: &BTreeMap<u32, serde_json::Value>,
    ) -> Result<luks::Header>;
    /// Carries out the changes in order, up to the first that fails; gives the header as it is then. `unlock` is needed for
    /// changes that add keyslots.
    fn luks_change(
        &self,
        device: &Path,
        unlock: Option<luks::Unlock<'_>>,
        changes: &[luks::HeaderChange<'_>],
    ) -> Result<luks::Header>;
    /// Finds the volume key; with `name` also brings the opened device up, `/dev/mapper/NAME`. Where a work on the data was
    /// cut short, what it was at is put right first, and the device serves both parts of the data.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if the passphrase fits no keyslot (or not the one named). A device of that name that is up
    /// already is an error, too.
    fn luks_open(&self, device: &Path, name: Option<&str>, unlock: luks::Unlock<'_>) -> Result<keyring::Secret>;
    /// Brings an opened device up, as [`Platform::luks_open`] does, with the volume key itself.
    ///
    /// # Errors
    /// Also where a work on the data is unfinished: that needs a passphrase.
    fn luks_reopen(&self, device: &Path, name: &str, volume_key: &keyring::Secret) -> Result<()>;
    /// Lets an opened device be as large as what it lies on gives room for, or `size`.
    fn luks_resize(&self, device: &Path, name: &str, volume_key: &keyring::Secret, size: Option<Sectors>)
    -> Result<()>;
    /// Works on the data of a container whose opened device `name` is up and in use, until all is done or `watch` says
    /// `false`, which is asked again and again, at least once in a few seconds.
    ///
    /// # Errors
    /// The header says how far it came, and the opened device serves all data nevertheless.
    fn luks_reencrypt(
        &self,
        device: &Path,
        name: &str,
        unlock: luks::Unlock<'_>,
        begin: luks::Begin,
        watch: &(dyn Fn(luks::Progress) -> bool + Sync),
    ) -> Result<luks::Ended>;

    // ---- Clevis ----

    /// Encrypts a passphrase so that only what the pin stands for (a Tang server, the TPM, a number of such) helps to
    /// decrypt it. Gives the JWE as it stands in a token. `trust`: take the keys that a server sends.
    ///
    /// # Errors
    /// [`Error::Clevis`]; [`Error::Missing`] names the programs that are not there.
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
        let nothing = Error::Unexpected { what: "the end of Clevis", text: "nothing came of it".to_owned() };
        let mut found = Err(nothing);
        self.clevis_decrypt_each(&[jwe], &mut |_, decrypted| {
            found = decrypted;
            true
        });
        found
    }
    /// Decrypts passphrases side by side; each is handed over with its number as it comes, or why it cannot be had. `true`: that
    /// is enough, and the others are given up.
    fn clevis_decrypt_each(
        &self,
        jwes: &[&serde_json::Value],
        take: &mut dyn FnMut(usize, Result<keyring::Secret>) -> bool,
    );

    // ---- udev, time, chance ----

    /// Asks udev to make (or remake) the links of these filesystems.
    fn announce(&self, filesystems: &[Announcement]) -> Result<Box<dyn PendingLinks>>;
    /// Whether the link of this filesystem is there and leads to its device. Cheap.
    fn is_linked(&self, filesystem: &Announcement) -> bool;
    /// A new source of device events.
    fn device_events(&self) -> Result<Box<dyn DeviceEvents>>;
    /// A new source of device-mapper events.
    fn dm_events(&self) -> Result<Box<dyn DmEvents>>;
    /// Now, by the calendar.
    fn now(&self) -> Timestamp;
    /// Random bytes.
    fn random(&self) -> [u8; 16];
}
