//! What a test can do to the machine and read from it, in addition to the platform's calls.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use nix::libc;

use super::{
    CallKind, Faults, Gate, Preset, RecordedCall, Sim,
    disks::DiskShape,
    dm_devices::dm_node,
    faults::{CallingProcess, dm_error, io_error},
    luks_device, machine,
    machine::MachineState,
    sparse::Sparse,
    xfs,
};
use crate::{
    base::units::{Bytes, Sectors},
    platform::{DeviceAction, DeviceNumber, Error, Mount, Platform, Result, Timestamp, luks::Header},
};

/// The durable bytes of all disks: what remains if a power cut loses every cached write.
#[derive(Clone)]
pub struct Snapshot(Vec<(PathBuf, Sparse)>);

impl Snapshot {
    /// Where this and another snapshot differ: node and ranges of whole 4 KiB pages, in bytes. A
    /// disk that is in one snapshot only differs where it is not zero.
    pub fn differences(&self, other: &Snapshot) -> Vec<(PathBuf, Vec<Range<u64>>)> {
        let empty = Sparse::default();
        let find = |snapshot: &Snapshot, path: &Path| -> Sparse {
            snapshot.0.iter().find(|(p, _)| p == path).map_or_else(|| empty.clone(), |(_, bytes)| bytes.clone())
        };
        let mut paths: Vec<&PathBuf> = self.0.iter().chain(&other.0).map(|(path, _)| path).collect();
        paths.sort();
        paths.dedup();
        let differing = paths.into_iter().map(|path| (path.clone(), find(self, path).differences(&find(other, path))));
        differing.filter(|(_, ranges)| !ranges.is_empty()).collect()
    }
}

/// What is set up on the machine. After everything was taken down, this must be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Names of device-mapper devices.
    pub devices: Vec<String>,
    /// Mount points, including private ones.
    pub mounts: Vec<PathBuf>,
    /// Links under `/dev/stratis`.
    pub links: Vec<PathBuf>,
}

impl Leftovers {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Leftovers::default()
    }
}

impl CallingProcess for Sim {
    fn end(&self) {
        self.end_process();
    }
}

impl Sim {
    // ---- steps, faults, power ----

    /// Plans failures and power cuts.
    pub fn faults(&self) -> Faults<'_> {
        Faults::new(&self.0.control, self)
    }

    /// Number of steps taken so far; also the number of the next one.
    pub fn steps(&self) -> u64 {
        self.0.control.steps()
    }

    /// The steps in order, if the machine was built with [`record`](super::Builder::record): entry
    /// `k` is step `k`.
    pub fn trace(&self) -> Vec<RecordedCall> {
        self.0.control.trace()
    }

    /// Number of key derivations, program runs, and requests to servers or the TPM so far: calls
    /// that are slow on any machine and must not be made under a lock.
    pub fn slow_calls(&self) -> u64 {
        self.0.slow_calls.load(Ordering::Relaxed)
    }

    /// Number of times a caller of [`Platform::write`] or [`Platform::write_each`] has waited for a
    /// flush so far.
    pub fn flush_waits(&self) -> u64 {
        self.0.flush_waits.load(Ordering::Relaxed)
    }

    /// Number of calls so far that requested links from udev.
    pub fn announcements(&self) -> u64 {
        self.0.announcements.load(Ordering::Relaxed)
    }

    /// Closes a gate for calls of one kind whose subject (path, device name, program arguments)
    /// contains `subject`.
    pub fn delay(&self, call: CallKind, subject: &str) -> Gate {
        self.0.control.close_gate(call, subject, None)
    }

    /// Closes a gate for a single call, after `later` other matching ones, which waits there after
    /// its effect.
    pub fn delay_after(&self, call: CallKind, subject: &str, later: usize) -> Gate {
        self.0.control.close_gate(call, subject, Some(later))
    }

    /// Ends the process that uses the machine, and with it its keyring. Devices and mounts stay.
    pub fn end_process(&self) {
        let mut machine = self.0.machine.lock();
        machine.volume_keys.clear();
        machine.held.clear();
    }

    /// Cuts power now.
    pub fn cut_power(&self) {
        self.0.control.power_off();
        self.0.machine.lock().lose_power();
        self.0.changed.notify_all();
    }

    /// Switches the machine on again: the disks are as the power cut left them, nothing is set up.
    /// Does nothing if the machine has power.
    pub fn power_on(&self) {
        let mut machine = self.0.machine.lock();
        if !machine.powered {
            machine.power_on();
            self.0.control.power_on();
        }
        self.0.changed.notify_all();
    }

    /// Whether the machine has power.
    pub fn has_power(&self) -> bool {
        self.0.machine.lock().powered
    }

    /// Advances the logical clock.
    pub fn advance_clock(&self, by: Duration) {
        self.0.clock.advance(by);
        self.0.machine.lock().give_up_waiting();
        self.0.changed.notify_all();
    }

    /// Sets the logical clock.
    pub fn set_clock(&self, to: Timestamp) {
        self.0.clock.set(to);
    }

    // ---- disks ----

    fn change<T>(&self, path: &Path, act: impl FnOnce(&mut MachineState, PathBuf) -> Option<T>) -> Result<T> {
        let done = {
            let mut machine = self.machine()?;
            machine::normal(path).and_then(|path| act(&mut machine, path))
        };
        self.0.changed.notify_all();
        done.ok_or_else(|| Error::NoDevice { path: path.to_owned() })
    }

    /// Plugs in a new disk, or plugs in a pulled one again, which keeps its contents and size (see
    /// [`Sim::replug_disk`]).
    ///
    /// # Errors
    /// A relative path.
    pub fn add_disk(&self, path: &Path, size: Sectors) -> Result<()> {
        if self.0.machine.lock().disks.number_at(path).is_some() {
            return self.replug_disk(path, path).or(Ok(()));
        }
        self.change(path, |machine, path| {
            let shape = DiskShape { size, ..machine.disks.template().clone() };
            machine.disks.add(path.clone(), shape);
            machine.device_event(DeviceAction::Add, &path);
            Some(())
        })
    }

    /// Plugs a pulled disk in again, under the same node or another. As in the kernel, it gets
    /// another number if a device still lies on the dead one.
    ///
    /// # Errors
    /// If no disk with that node has been pulled, or if the node `to` belongs to another disk.
    pub fn replug_disk(&self, from: &Path, to: &Path) -> Result<()> {
        let to = machine::normal(to).ok_or_else(|| Error::NoDevice { path: to.to_owned() })?;
        self.change(from, |machine, from| {
            let MachineState { disks, dm, .. } = machine;
            let back = disks.put_back(&from, to.clone(), |number| dm.is_open(number));
            back.then(|| machine.device_event(DeviceAction::Add, &to))
        })
    }

    /// Pulls a disk. Its users find it dead; cached writes are partly lost.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn pull_disk(&self, path: &Path) -> Result<()> {
        self.change(path, |machine, path| {
            machine.pull(&path).then(|| machine.device_event(DeviceAction::Remove, &path))
        })
    }

    /// Resizes a disk.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn resize_disk(&self, path: &Path, size: Sectors) -> Result<()> {
        self.change_disk(path, |disk| disk.shape.size = size)
    }

    /// Sets whether the kernel refuses writes to a disk.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn set_read_only(&self, path: &Path, read_only: bool) -> Result<()> {
        self.change_disk(path, |disk| disk.shape.read_only = read_only)
    }

    /// Sets whether a disk is open exclusively elsewhere.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn set_in_use(&self, path: &Path, in_use: bool) -> Result<()> {
        self.change_disk(path, |disk| disk.shape.in_use = in_use)
    }

    /// Puts bytes on a disk as if they had always been there: without a step, past the cache, even
    /// on a read-only disk.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn put(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change_disk(path, |disk| disk.preset(offset, bytes))
    }

    /// Gives a disk foreign contents.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn preset(&self, path: &Path, preset: Preset) -> Result<()> {
        self.change_disk(path, |disk| {
            preset.content(disk.shape.size).iter().for_each(|(offset, bytes)| disk.preset(*offset, bytes));
        })
    }

    /// Makes sectors of a disk unreadable until they are written.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn spoil(&self, path: &Path, sectors: Range<u64>) -> Result<()> {
        self.change_disk(path, |disk| disk.spoil(sectors))
    }

    fn change_disk(&self, path: &Path, act: impl FnOnce(&mut super::disks::Disk)) -> Result<()> {
        self.change(path, |machine, path| {
            machine.disks.find(&path)?;
            act(machine.disks.known(&path)?);
            machine.device_event(DeviceAction::Change, &path);
            Some(())
        })
    }

    /// The durable bytes of a disk: what remains if a power cut loses every cached write. Works
    /// without power.
    pub fn durable(&self, path: &Path, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        if let Some(disk) = self.0.machine.lock().disks.known(path) {
            disk.durable().read(range.start, &mut bytes);
        }
        bytes
    }

    /// The durable bytes of all disks, for comparison. Works without power.
    pub fn snapshot(&self) -> Snapshot {
        let machine = self.0.machine.lock();
        Snapshot(machine.disks.nodes().map(|(path, disk)| (path.clone(), disk.durable().clone())).collect())
    }

    /// Memory that the durable contents of all disks take, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.0.machine.lock().disks.nodes().map(|(_, disk)| disk.durable().stored_bytes()).sum()
    }

    // ---- device-mapper ----

    /// Makes the next `count` attempts to remove a device find it open, as while udev probes it.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn hold_device(&self, name: &str, count: u32) -> Result<()> {
        let mut machine = self.machine()?;
        let minor = machine.dm.by_name(name);
        let device = minor.and_then(|minor| machine.dm.device_mut(minor));
        device.map(|device| device.holds = count).ok_or_else(|| dm_error(CallKind::DmFind, name, libc::ENXIO))
    }

    /// Raises an event of a device, as its target would.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn raise_event(&self, name: &str) -> Result<()> {
        let device = self.dm_find(name)?.ok_or_else(|| dm_error(CallKind::DmFind, name, libc::ENXIO))?;
        self.machine()?.raise_dm_event(device.number.minor);
        Ok(())
    }

    /// Puts a thin pool into Fail mode.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn fail_pool(&self, name: &str) -> Result<()> {
        self.machine()?.fail_pool(name).map_err(|errno| dm_error(CallKind::DmFind, name, errno))
    }

    /// Makes a thin pool fail to write its metadata: it goes back to its last commit, becomes
    /// read-only and needs a check.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn fail_metadata(&self, name: &str) -> Result<()> {
        let mut machine = self.machine()?;
        let minor = machine.dm.by_name(name).ok_or_else(|| dm_error(CallKind::DmFind, name, libc::ENXIO))?;
        machine.metadata_failed(minor);
        Ok(())
    }

    /// Uses up metadata blocks of a thin pool until `free` are free besides its reserve, as
    /// mappings would. The pool notices at its next commit.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn take_metadata(&self, name: &str, free: u64) -> Result<()> {
        let mut machine = self.machine()?;
        let minor = machine.dm.by_name(name);
        let key = minor.and_then(|minor| machine.dm.pool(minor)).map(|run| run.key);
        let store = key.and_then(|key| machine.thin.get_mut(&key));
        let store = store.ok_or_else(|| dm_error(CallKind::DmFind, name, libc::ENXIO))?;
        store.current.taken += store.current.free_metadata().saturating_sub(free);
        store.dirty = true;
        Ok(())
    }

    /// Damages the thin-pool metadata on a device, so that `thin_check` fails and `thin_repair` can
    /// repair it.
    ///
    /// # Errors
    /// If there is no such device or no such metadata on it.
    pub fn damage_metadata(&self, node: &Path) -> Result<()> {
        let (_, number) = self.node(node)?;
        let mut machine = self.machine()?;
        let key = machine.metadata_key(number).ok().flatten();
        let store = key.and_then(|key| machine.thin.get_mut(&key));
        store.map(|store| store.damaged = true).ok_or_else(|| Error::NoDevice { path: node.to_owned() })
    }

    /// Thin device numbers of a running pool; `None` if the device is not a pool.
    pub fn thin_ids(&self, pool: &str) -> Option<Vec<u32>> {
        let machine = self.0.machine.lock();
        let run = machine.dm.pool(machine.dm.by_name(pool)?)?;
        Some(machine.thin.get(&run.key)?.current.ids())
    }

    /// Waits until `count` calls wait at the same time for a suspended device or a full pool, for
    /// at most `limit`. Returns whether they do.
    pub fn wait_for_stalled(&self, count: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut machine = self.0.machine.lock();
        while machine.stalled < count {
            if self.0.stalls.wait_until(&mut machine, until).timed_out() {
                return machine.stalled >= count;
            }
        }
        true
    }

    // ---- LUKS2 ----

    /// Names of all crypt devices, sorted.
    pub fn opened(&self) -> Vec<String> {
        let machine = self.0.machine.lock();
        machine.dm.names().filter(|name| machine.opened_named(name).is_some()).cloned().collect()
    }

    /// The header on a device, regardless of planned faults.
    pub fn header(&self, path: &Path) -> Option<Header> {
        let (_, number) = self.node(path).ok()?;
        luks_device::header_on(&self.0.machine.lock(), number)
    }

    // ---- file systems ----

    /// Mounts a filesystem as a user.
    ///
    /// # Errors
    /// As [`Platform::mount`], with the path of the device in it.
    pub fn mount_user(&self, node: &Path, at: &Path) -> Result<()> {
        let (_, number) = self.node(node)?;
        self.wait_for_io(
            |machine| machine.mount(number, at, ""),
            |errno| io_error(CallKind::Mount, &node.to_string_lossy(), errno),
        )
    }

    /// Mounts a filesystem as a user, visible only in the mount namespace of this process. Returns
    /// the path by which others can reach it.
    ///
    /// # Errors
    /// As [`Sim::mount_user`].
    pub fn mount_elsewhere(&self, process: u32, node: &Path, at: &Path) -> Result<PathBuf> {
        let (_, number) = self.node(node)?;
        let path = Mount { number, mount_point: at.to_owned(), process: Some(process) }.shown();
        self.mount_user(node, &path).map(|()| path)
    }

    /// Unmounts as a user.
    ///
    /// # Errors
    /// If nothing is mounted there.
    pub fn unmount_user(&self, at: &Path) -> Result<()> {
        let failed = |errno| io_error(CallKind::Unmount, &at.to_string_lossy(), errno);
        let there = self.wait_for_io(|machine| machine.unmount(at), failed)?;
        if there { Ok(()) } else { Err(failed(libc::EINVAL)) }
    }

    /// Sets the used space of the file system that is mounted there.
    ///
    /// # Errors
    /// If nothing is mounted there.
    pub fn set_used(&self, at: &Path, used: Bytes) -> Result<()> {
        let mut machine = self.machine()?;
        let device = machine.xfs.device_at(at);
        let device = device.ok_or_else(|| io_error(CallKind::Usage, &at.to_string_lossy(), libc::ENOENT))?;
        machine.xfs.set_used(device, used);
        Ok(())
    }

    /// The UUID of the XFS on a device, if there is one.
    pub fn xfs_uuid(&self, node: &Path) -> Option<uuid::Uuid> {
        self.superblock(node).map(|superblock| uuid::Uuid::from_bytes(superblock.uuid))
    }

    /// The size of the XFS on a device, if there is one.
    pub fn xfs_size(&self, node: &Path) -> Option<Bytes> {
        self.superblock(node).map(|superblock| Bytes(u128::from(superblock.blocks) * u128::from(xfs::BLOCK)))
    }

    fn superblock(&self, node: &Path) -> Option<xfs::Superblock> {
        let (_, number) = self.node(node).ok()?;
        self.0.machine.lock().superblock(number, super::incomplete::Patience::Pass).ok()?
    }

    /// Sets how many removals find a device still busy after a program, a write or a mount has
    /// closed it.
    pub fn set_lingering(&self, attempts: u32) {
        self.0.machine.lock().lingering = attempts;
    }

    /// Shuts down a mounted file system, as an error on its log does.
    ///
    /// # Errors
    /// If nothing is mounted there.
    pub fn shut_down(&self, at: &Path) -> Result<()> {
        let mut machine = self.machine()?;
        let device = machine.xfs.device_at(at);
        let device = device.ok_or_else(|| io_error(CallKind::Mount, &at.to_string_lossy(), libc::ENOENT))?;
        machine.xfs.shut_down(device);
        Ok(())
    }

    // ---- udev ----

    /// Holds udev back: its database stays as it is now, and events wait.
    pub fn hold_udev(&self) {
        let mut machine = self.0.machine.lock();
        machine.udev.held = true;
        machine.hold_database();
    }

    /// Lets udev catch up: the events come in order, with what the devices contain then.
    pub fn release_udev(&self) {
        self.0.machine.lock().release_database();
        self.release_links();
    }

    /// Loses the next `count` device events on their way, as when a netlink socket overflows.
    pub fn lose_events(&self, count: u32) {
        self.0.machine.lock().udev.events_to_lose = count;
    }

    /// The device that a link points to.
    pub fn link(&self, path: &Path) -> Option<DeviceNumber> {
        self.0.machine.lock().udev.link(path)
    }

    /// Holds links back.
    pub fn hold_links(&self) {
        self.0.machine.lock().udev.held = true;
    }

    /// Makes the links that were held back, and later ones.
    pub fn release_links(&self) {
        let mut machine = self.0.machine.lock();
        machine.udev.held = false;
        machine.serve_udev();
        self.0.changed.notify_all();
    }

    /// Loses the next `count` announcements.
    pub fn lose_links(&self, count: u32) {
        self.0.machine.lock().udev.to_lose = count;
    }

    /// Removes a link, as when the udev worker that processes an event of its device is killed.
    pub fn drop_link(&self, path: &Path) {
        let mut machine = self.0.machine.lock();
        if let Some(number) = machine.udev.link(path) {
            machine.udev.remove_links(number);
        }
    }

    /// Sends an `add` event of a device-mapper device, as coldplug does.
    pub fn coldplug(&self, number: DeviceNumber) {
        self.0.machine.lock().device_event(DeviceAction::Add, &dm_node(number.minor));
    }

    /// Raises a `change` event of a device-mapper device, as udev does when a writer closes it.
    pub fn written_and_closed(&self, number: DeviceNumber) {
        self.0.machine.lock().device_event(DeviceAction::Change, &dm_node(number.minor));
    }

    /// What is set up now.
    pub fn leftovers(&self) -> Leftovers {
        let machine = self.0.machine.lock();
        Leftovers {
            devices: machine.dm.names().cloned().collect(),
            mounts: machine.xfs.mounts().map(|(at, _)| at.clone()).collect(),
            links: machine.udev.links().keys().cloned().collect(),
        }
    }

    /// The directory of the private mounts.
    pub fn private_directory() -> &'static Path {
        Path::new(xfs::PRIVATE)
    }
}
