//! A real machine: the Linux kernel, udev and the installed programs.
//!
//! One file per concern; this one ties them together. This module knows nothing of pools. It is the
//! only place in the workspace that calls the kernel.

mod announce;
mod clevis;
mod cookie;
mod database;
pub mod descriptors;
mod devices;
mod dm;
mod files;
pub mod heap;
mod keyring;
mod limits;
mod listener;
pub mod luks;
mod mapper_nodes;
mod monitor;
mod mount_table;
mod mounts;
mod namespace;
pub mod needed;
mod orphans;
pub mod pid_file;
mod processes;
mod programs;
mod secrecy;
mod secret_bytes;
mod startup;
mod user_mounts;
mod wait;
mod xfs_child;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use rand::{TryRngCore, rngs::OsRng};
use serde_json::Value;

pub use self::clevis::{pins_and_servers, programs_to_decrypt};
pub use self::programs::run_program;
use self::{
    clevis::Clevis, devices::DeviceAccess, dm::Mapper, files::PrivateDirectory, listener::Listener, luks::Luks,
    namespace::Origin, programs::Programs,
};
use crate::base::units::Sectors;
use crate::platform::{
    Announcement, BlockDevice, Contents, DeviceEvents, DeviceHold, DeviceNumber, DeviceWrite, DmEvents, Geometry,
    Mount, PendingLinks, Platform, Program, Result, RunningProgram, Timestamp, Usage, WriteStep,
    dm::{Device, Line, Listed, Visibility},
    keyring::{KeyChange, Secret},
    luks::{Begin, FormatPurpose, Header, HeaderChange, HeaderLayout, NewKeyslot, Progress, ReencryptionEnd, Unlock},
};

/// Runs the work of a child process if this program was started as one, otherwise returns `None`.
/// Call it before arguments are read or threads are started.
pub fn run_as_child() -> Option<ExitCode> {
    luks::child::run_if_asked().or_else(xfs_child::run_if_asked)
}

/// A machine that runs Linux.
pub struct Linux {
    devices: DeviceAccess,
    /// The mount namespace of PID 1, if the daemon can reach it.
    origin: Option<Origin>,
    programs: Programs,
    mapper: Mapper,
    /// The private directory.
    private_directory: PrivateDirectory,
    luks: Luks,
    /// Subscriptions of the requests that wait for links.
    listener: Listener,
}

impl Linux {
    /// Unmounts everything in the private directory, as the last step of a clean exit. Pools stay
    /// up. Mounts still in use are logged and left to the kernel.
    pub fn leave(&self) {
        mounts::leave_private_directory();
    }

    fn clevis(&self) -> Clevis<'_> {
        Clevis::new(self.origin.as_ref().map(Origin::namespace))
    }
}

impl Platform for Linux {
    fn block_devices(&self) -> Result<Vec<BlockDevice>> {
        database::block_devices()
    }

    fn find_device(&self, path: &Path) -> Result<BlockDevice> {
        database::find_device(path)
    }

    fn contents(&self, path: &Path) -> Result<Contents> {
        self.devices.contents(path)
    }

    fn geometry(&self, path: &Path) -> Result<Geometry> {
        self.devices.geometry(path)
    }

    fn hold(&self, path: &Path) -> Result<Box<dyn DeviceHold>> {
        self.devices.hold(path)
    }

    fn lower_devices(&self, number: DeviceNumber) -> Result<BTreeSet<DeviceNumber>> {
        database::lower_devices(number)
    }

    fn read(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.devices.read(path, offset, length)
    }

    fn write(&self, path: &Path, steps: &[WriteStep<'_>]) -> Result<()> {
        self.devices.write(path, steps)
    }

    fn write_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<Result<()>> {
        self.devices.write_each(writes)
    }

    fn dm_list(&self) -> Result<Vec<Listed>> {
        self.mapper.list()
    }

    fn dm_find(&self, name: &str) -> Result<Option<Device>> {
        self.mapper.find(name)
    }

    fn dm_event(&self, name: &str) -> Result<Option<u32>> {
        self.mapper.event(name)
    }

    fn dm_create(&self, name: &str, uuid: &str, table: &[Line], visibility: Visibility) -> Result<DeviceNumber> {
        self.mapper.create(name, uuid, table, visibility)
    }

    fn dm_load(&self, name: &str, table: &[Line]) -> Result<()> {
        self.mapper.load(name, table)
    }

    fn dm_suspend(&self, name: &str, flush: bool) -> Result<()> {
        self.mapper.suspend(name, flush)
    }

    fn dm_resume(&self, name: &str, visibility: Visibility) -> Result<()> {
        self.mapper.resume(name, visibility)
    }

    fn dm_remove(&self, name: &str) -> Result<()> {
        self.mapper.remove(name)
    }

    fn dm_message(&self, name: &str, message: &str) -> Result<()> {
        self.mapper.message(name, message)
    }

    fn dm_status(&self, name: &str) -> Result<Vec<String>> {
        self.mapper.status(name)
    }

    fn dm_node(&self, name: &str) -> PathBuf {
        mapper_nodes::node(name)
    }

    fn run(&self, program: Program, arguments: &[&str]) -> Result<String> {
        self.programs.run(program, arguments, self.origin.as_ref().map(Origin::namespace))
    }

    fn running_programs(&self) -> Vec<RunningProgram> {
        processes::running()
    }

    fn unanswered_udev_events(&self) -> u64 {
        cookie::unanswered()
    }

    fn mount(&self, node: &Path, at: &str, options: &str) -> Result<()> {
        mounts::mount_xfs(&self.private_directory, node, at, options)
    }

    fn unmount(&self, at: &str) -> Result<()> {
        mounts::unmount(&self.private_directory, at)
    }

    fn mounts(&self, devices: &[DeviceNumber]) -> Result<Vec<Mount>> {
        user_mounts::find(devices, |number| self.mapper.is_open(number))
    }

    fn usage(&self, mount: &Mount) -> Result<Usage> {
        user_mounts::usage(self.origin.as_ref(), mount)
    }

    fn grow_xfs(&self, mount: &Mount) -> Result<()> {
        user_mounts::grow_xfs(self.origin.as_ref(), mount)
    }

    fn list_files(&self, directory: &str) -> Result<Vec<String>> {
        self.private_directory.check_mounted(directory)?;
        self.private_directory.list(directory)
    }

    fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.private_directory.check_mounted(path)?;
        self.private_directory.read(path)
    }

    fn replace_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.private_directory.check_mounted(path)?;
        self.private_directory.replace(path, bytes)
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        self.private_directory.check_mounted(path)?;
        self.private_directory.remove(path)
    }

    fn announce(&self, filesystems: &[Announcement]) -> Result<Box<dyn PendingLinks>> {
        Ok(announce::announce(&self.listener, filesystems))
    }

    fn is_linked(&self, filesystem: &Announcement) -> bool {
        announce::is_linked(filesystem)
    }

    fn device_events(&self) -> Result<Box<dyn DeviceEvents>> {
        monitor::device_events()
    }

    fn dm_events(&self) -> Result<Box<dyn DmEvents>> {
        dm::events()
    }

    fn key_set(&self, name: &str, value: &Secret) -> Result<KeyChange> {
        keyring::set(name, value)
    }

    fn key_unset(&self, name: &str) -> Result<bool> {
        keyring::unset(name)
    }

    fn key_list(&self) -> Result<Vec<String>> {
        keyring::list()
    }

    fn key_read(&self, name: &str) -> Result<Option<Secret>> {
        keyring::key_read(name)
    }

    fn volume_key_set(&self, name: &str, value: &Secret) -> Result<()> {
        keyring::volume_key_set(name, value)
    }

    fn volume_key_read(&self, name: &str) -> Result<Option<Secret>> {
        keyring::volume_key_read(name)
    }

    fn volume_key_unset(&self, name: &str) -> Result<bool> {
        keyring::volume_key_unset(name)
    }

    fn luks_read(&self, device: &Path) -> Result<Option<Header>> {
        self.luks.read(device)
    }

    fn luks_format(
        &self,
        device: &Path,
        layout: &HeaderLayout,
        purpose: FormatPurpose,
        keyslots: &[NewKeyslot<'_>],
        tokens: &BTreeMap<u32, Value>,
    ) -> Result<Header> {
        self.luks.format(device, layout, purpose, keyslots, tokens)
    }

    fn luks_change(&self, device: &Path, unlock: Option<Unlock<'_>>, changes: &[HeaderChange<'_>]) -> Result<Header> {
        self.luks.change(device, unlock, changes)
    }

    fn luks_open(&self, device: &Path, name: Option<&str>, unlock: Unlock<'_>) -> Result<Secret> {
        self.luks.open(device, name, unlock)
    }

    fn luks_reopen(&self, device: &Path, name: &str, volume_key: &Secret) -> Result<()> {
        self.luks.reopen(device, name, volume_key)
    }

    fn luks_resize(&self, device: &Path, name: &str, volume_key: &Secret, size: Option<Sectors>) -> Result<()> {
        self.luks.resize(device, name, volume_key, size)
    }

    fn luks_reencrypt(
        &self,
        device: &Path,
        name: &str,
        unlock: Unlock<'_>,
        begin: Begin,
        watch: &(dyn Fn(Progress) -> bool + Sync),
    ) -> Result<ReencryptionEnd> {
        self.luks.reencrypt(device, name, unlock, begin, watch)
    }

    fn clevis_encrypt(&self, pin: &str, config: &Value, trust: bool, passphrase: &Secret) -> Result<Value> {
        self.clevis().encrypt(pin, config, trust, passphrase)
    }

    fn clevis_decrypt_each(&self, jwes: &[&Value], take: &mut dyn FnMut(usize, Result<Secret>) -> bool) {
        self.clevis().decrypt_each(jwes, take);
    }

    fn now(&self) -> Timestamp {
        // A clock before 1970 is wrong anyway; treat it as 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        OsRng.try_fill_bytes(&mut bytes).expect("the kernel's generator never fails once it has been seeded at boot");
        bytes
    }
}
