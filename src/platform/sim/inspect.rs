//! What a test does to the machine and asks of it, beyond what the engine can.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use nix::libc;

use super::{
    Call, Faults, Gate, Preset, Sim, Step,
    disks::DiskShape,
    faults::{dm_error, io_error},
    luks_device, machine,
    machine::Machine,
    sparse::Sparse,
    udev, xfs,
};
use crate::{
    base::units::{Bytes, Sectors},
    platform::{DeviceAction, DeviceNumber, Error, Mount, Platform, Result, Timestamp, luks::Header},
};

/// The bytes of all disks that a power cut would leave if it lost every write that waits.
#[derive(Clone)]
pub struct Snapshot(Vec<(PathBuf, Sparse)>);

impl Snapshot {
    /// Where this and a later one differ: node and ranges of whole 4 KiB pages, in bytes. A disk that only one of them
    /// has differs in what it holds.
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

/// What is set up on the machine: nothing of it should be left when everything was taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Names of device-mapper devices.
    pub devices: Vec<String>,
    /// Mount points, private ones too.
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

impl Sim {
    // ---- steps, faults, power ----

    /// Plans failures and power cuts.
    pub fn faults(&self) -> Faults<'_> {
        Faults(self)
    }

    /// How many steps were taken; also the number of the next.
    pub fn steps(&self) -> u64 {
        self.0.control.steps()
    }

    /// The steps in order, if the machine was built with [`record`](super::Builder::record): entry `k` is step `k`.
    pub fn trace(&self) -> Vec<Step> {
        self.0.control.trace()
    }

    /// How often so far a key was derived, a program run, a server or the TPM asked: what takes long on any machine and must
    /// not be done under a lock.
    pub fn long_calls(&self) -> u64 {
        self.0.long_calls.load(Ordering::Relaxed)
    }

    /// How often a caller of [`Platform::write`] or
    /// [`Platform::write_each`] has waited for a flush since the machine was made.
    pub fn flush_waits(&self) -> u64 {
        self.0.flush_waits.load(Ordering::Relaxed)
    }

    /// How often so far udev was told of filesystems.
    pub fn announcements(&self) -> u64 {
        self.0.announcements.load(Ordering::Relaxed)
    }

    /// Closes a gate for calls of one kind whose subject (path, device name, program arguments) contains `subject`.
    pub fn delay(&self, call: Call, subject: &str) -> Gate {
        self.0.control.close_gate(call, subject, None)
    }

    /// Closes a gate for one such call, `later` of them after the next, which waits there when it has had its effect.
    pub fn delay_after(&self, call: Call, subject: &str, later: usize) -> Gate {
        self.0.control.close_gate(call, subject, Some(later))
    }

    /// The process that uses the machine ends, and with it its own keyring. What it has set up stays.
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

    /// Switches the machine on again: disks as the cut left them, nothing set up. On a machine that is on it does
    /// nothing.
    pub fn power_on(&self) {
        let mut machine = self.0.machine.lock();
        if !machine.powered {
            machine.power_on();
            self.0.control.power_on();
        }
        self.0.changed.notify_all();
    }

    /// Whether it is on.
    pub fn has_power(&self) -> bool {
        self.0.machine.lock().powered
    }

    /// Moves the logical clock on.
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

    fn change<T>(&self, path: &Path, act: impl FnOnce(&mut Machine, PathBuf) -> Option<T>) -> Result<T> {
        let done = {
            let mut machine = self.machine()?;
            machine::normal(path).and_then(|path| act(&mut machine, path))
        };
        self.0.changed.notify_all();
        done.ok_or_else(|| Error::NoDevice { path: path.to_owned() })
    }

    /// Plugs a new disk in, or one that was pulled out back in (which keeps what it holds and its size; see
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

    /// Plugs a disk that was pulled out back in, under the same node or another. As in the kernel, it has another number than
    /// before if something still lies on the dead one.
    ///
    /// # Errors
    /// If no disk with that node has been pulled out, or the node `to` is another disk's.
    pub fn replug_disk(&self, from: &Path, to: &Path) -> Result<()> {
        let to = machine::normal(to).ok_or_else(|| Error::NoDevice { path: to.to_owned() })?;
        self.change(from, |machine, from| {
            let Machine { disks, dm, .. } = machine;
            let back = disks.put_back(&from, to.clone(), |number| dm.is_open(number));
            back.then(|| machine.device_event(DeviceAction::Add, &to))
        })
    }

    /// Pulls a disk out. What uses it finds it dead; what waited in its cache is partly lost.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn pull_disk(&self, path: &Path) -> Result<()> {
        self.change(path, |machine, path| {
            machine.pull(&path).then(|| machine.device_event(DeviceAction::Remove, &path))
        })
    }

    /// Gives a disk another size.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn resize_disk(&self, path: &Path, size: Sectors) -> Result<()> {
        self.change_disk(path, |disk| disk.shape.size = size)
    }

    /// Sets whether the kernel refuses to write to a disk.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn set_read_only(&self, path: &Path, read_only: bool) -> Result<()> {
        self.change_disk(path, |disk| disk.shape.read_only = read_only)
    }

    /// Sets whether somebody else has a disk open exclusively.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn set_in_use(&self, path: &Path, in_use: bool) -> Result<()> {
        self.change_disk(path, |disk| disk.shape.in_use = in_use)
    }

    /// Puts bytes on a disk as if they had always been there: no step, no cache, also on a read-only disk.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn put(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change_disk(path, |disk| disk.preset(offset, bytes))
    }

    /// Makes a disk somebody else's.
    ///
    /// # Errors
    /// If there is no such disk.
    pub fn preset(&self, path: &Path, preset: Preset) -> Result<()> {
        self.change_disk(path, |disk| disk.preset(0, &preset.content(disk.shape.size)))
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

    /// The durable bytes of a disk: what is left if a power cut loses every write that waits. Works without power.
    pub fn durable(&self, path: &Path, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        if let Some(disk) = self.0.machine.lock().disks.known(path) {
            disk.durable().read(range.start, &mut bytes);
        }
        bytes
    }

    /// The durable bytes of all disks, to compare. Works without power.
    pub fn snapshot(&self) -> Snapshot {
        let machine = self.0.machine.lock();
        Snapshot(machine.disks.nodes().map(|(path, disk)| (path.clone(), disk.durable().clone())).collect())
    }

    /// Bytes of memory that the durable contents of all disks take.
    pub fn stored_bytes(&self) -> u64 {
        self.0.machine.lock().disks.nodes().map(|(_, disk)| disk.durable().stored_bytes()).sum()
    }

    // ---- device-mapper ----

    /// The next `count` attempts to remove a device find it open, as while udev looks at it.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn hold_device(&self, name: &str, count: u32) -> Result<()> {
        let mut machine = self.machine()?;
        let minor = machine.dm.by_name(name);
        let device = minor.and_then(|minor| machine.dm.device_mut(minor));
        device.map(|device| device.holds = count).ok_or_else(|| dm_error(Call::DmFind, name, libc::ENXIO))
    }

    /// Raises an event of a device, as its target does when it has something to tell.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn raise_event(&self, name: &str) -> Result<()> {
        let device = self.dm_find(name)?.ok_or_else(|| dm_error(Call::DmFind, name, libc::ENXIO))?;
        self.machine()?.raise_dm_event(device.number.minor);
        Ok(())
    }

    /// Puts a thin pool into its failed mode.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn fail_pool(&self, name: &str) -> Result<()> {
        self.machine()?.fail_pool(name).map_err(|errno| dm_error(Call::DmFind, name, errno))
    }

    /// Lets a thin pool fail to write its metadata: it goes back to its last commit, can only be read, and wants a check.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn fail_metadata(&self, name: &str) -> Result<()> {
        let mut machine = self.machine()?;
        let minor = machine.dm.by_name(name).ok_or_else(|| dm_error(Call::DmFind, name, libc::ENXIO))?;
        machine.metadata_failed(minor);
        Ok(())
    }

    /// Takes metadata blocks of a thin pool until so many are free beside its reserve, as mappings would take them. The pool
    /// finds that out when it next commits.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn take_metadata(&self, name: &str, free: u64) -> Result<()> {
        let mut machine = self.machine()?;
        let minor = machine.dm.by_name(name);
        let key = minor.and_then(|minor| machine.dm.pool(minor)).map(|run| run.key);
        let store = key.and_then(|key| machine.thin.get_mut(&key));
        let store = store.ok_or_else(|| dm_error(Call::DmFind, name, libc::ENXIO))?;
        store.current.taken += store.current.free_metadata().saturating_sub(free);
        store.dirty = true;
        Ok(())
    }

    /// Damages the thin-pool metadata on a device, so that `thin_check` fails and `thin_repair` can mend it.
    ///
    /// # Errors
    /// If there is no device or no such metadata on it.
    pub fn damage_metadata(&self, node: &Path) -> Result<()> {
        let (_, number) = self.node(node)?;
        let mut machine = self.machine()?;
        let key = machine.metadata_key(number).ok().flatten();
        let store = key.and_then(|key| machine.thin.get_mut(&key));
        store.map(|store| store.damaged = true).ok_or_else(|| Error::NoDevice { path: node.to_owned() })
    }

    /// Numbers of the thin devices of a running pool; `None` if it is not one.
    pub fn thin_ids(&self, pool: &str) -> Option<Vec<u32>> {
        let machine = self.0.machine.lock();
        let run = machine.dm.pool(machine.dm.by_name(pool)?)?;
        Some(machine.thin.get(&run.key)?.current.ids())
    }

    /// Waits until `count` calls at once wait for a suspended device or a full pool, at most `limit`. True if they do.
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

    /// Names of the opened devices of containers, in order.
    pub fn opened(&self) -> Vec<String> {
        let machine = self.0.machine.lock();
        machine.dm.names().filter(|name| machine.opened_named(name).is_some()).cloned().collect()
    }

    /// The header on a device, whatever is planned to fail.
    pub fn header(&self, path: &Path) -> Option<Header> {
        let (_, number) = self.node(path).ok()?;
        luks_device::header_on(&self.0.machine.lock(), number)
    }

    // ---- file systems ----

    /// A user mounts a filesystem.
    ///
    /// # Errors
    /// As [`Platform::mount`], with the path of the device in it.
    pub fn mount_user(&self, node: &Path, at: &Path) -> Result<()> {
        let (_, number) = self.node(node)?;
        self.wait_for_io(
            |machine| machine.mount(number, at, ""),
            |errno| io_error(Call::Mount, &node.to_string_lossy(), errno),
        )
    }

    /// A user mounts a filesystem where only the mount namespace of this process sees it; gives the path by which others come
    /// to it.
    ///
    /// # Errors
    /// As [`Sim::mount_user`].
    pub fn mount_elsewhere(&self, process: u32, node: &Path, at: &Path) -> Result<PathBuf> {
        let (_, number) = self.node(node)?;
        let path = Mount { number, mount_point: at.to_owned(), process: Some(process) }.shown();
        self.mount_user(node, &path).map(|()| path)
    }

    /// A user unmounts it.
    ///
    /// # Errors
    /// If nothing is mounted there.
    pub fn unmount_user(&self, at: &Path) -> Result<()> {
        let failed = |errno| io_error(Call::Unmount, &at.to_string_lossy(), errno);
        let there = self.wait_for_io(|machine| machine.unmount(at), failed)?;
        if there { Ok(()) } else { Err(failed(libc::EINVAL)) }
    }

    /// Sets how much of the file system mounted there is used.
    ///
    /// # Errors
    /// If nothing is mounted there.
    pub fn set_used(&self, at: &Path, used: Bytes) -> Result<()> {
        let mut machine = self.machine()?;
        let device = machine.xfs.device_at(at);
        let device = device.ok_or_else(|| io_error(Call::Usage, &at.to_string_lossy(), libc::ENOENT))?;
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
        self.0.machine.lock().superblock(number, super::io::Patience::Pass).ok()?
    }

    /// How often a device that a program, a write or a mount has left is found open by those who would remove it.
    pub fn set_lingering(&self, attempts: u32) {
        self.0.machine.lock().lingering = attempts;
    }

    /// A mounted file system has met an error of its log.
    ///
    /// # Errors
    /// If nothing is mounted there.
    pub fn shut_down(&self, at: &Path) -> Result<()> {
        let mut machine = self.machine()?;
        let device = machine.xfs.device_at(at);
        let device = device.ok_or_else(|| io_error(Call::Mount, &at.to_string_lossy(), libc::ENOENT))?;
        machine.xfs.shut_down(device);
        Ok(())
    }

    // ---- udev ----

    /// From now on udev is behind: its database says what it says now, and events wait.
    pub fn hold_udev(&self) {
        let mut machine = self.0.machine.lock();
        machine.udev.held = true;
        machine.hold_database();
    }

    /// Udev catches up: the events come in their order, with what the devices hold now.
    pub fn release_udev(&self) {
        self.0.machine.lock().release_database();
        self.release_links();
    }

    /// The next `count` device events get lost on their way, as when a netlink socket overflows.
    pub fn lose_events(&self, count: u32) {
        self.0.machine.lock().udev.events_to_lose = count;
    }

    /// The device that a link points to.
    pub fn link(&self, path: &Path) -> Option<DeviceNumber> {
        self.0.machine.lock().udev.link(path)
    }

    /// Holds back the making of links.
    pub fn hold_links(&self) {
        self.0.machine.lock().udev.held = true;
    }

    /// Makes the links that were held back, and those to come.
    pub fn release_links(&self) {
        let mut machine = self.0.machine.lock();
        machine.udev.held = false;
        machine.serve_udev();
        self.0.changed.notify_all();
    }

    /// The next `count` announcements get lost.
    pub fn lose_links(&self, count: u32) {
        self.0.machine.lock().udev.to_lose = count;
    }

    /// A link vanishes, as when the worker of udev that deals with an event of its device is killed.
    pub fn drop_link(&self, path: &Path) {
        let mut machine = self.0.machine.lock();
        if let Some(number) = machine.udev.link(path) {
            machine.udev.remove_links(number);
        }
    }

    /// An `add` event of a device-mapper device, as coldplug sends it.
    pub fn coldplug(&self, number: DeviceNumber) {
        self.0.machine.lock().device_event(DeviceAction::Add, &udev::dm_node(number.minor));
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

    /// Where the private mounts are.
    pub fn private_directory() -> &'static Path {
        Path::new(xfs::PRIVATE)
    }
}
