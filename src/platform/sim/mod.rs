//! A machine in memory: what `stratisd --sim` runs on, and what every proof about faults and power cuts runs on.
//!
//! It does everything that [`Platform`] asks, or refuses with the error that a kernel would give; the rules and their
//! limits stand at the head of each file: disks (`disks`), device-mapper (`dm`, `thin`, `io`), file systems (`xfs`),
//! programs (`programs`), udev (`udev`, `events`), power (`machine`), steps and faults (`faults`), LUKS2 containers (`luks`,
//! `luks_header`, `luks_reencrypt`, `crypt`), Clevis (`clevis`).
//!
//! In short: any absolute path is a large sparse disk that appears when it is first named, unless the machine has only
//! the disks it was given. Bytes go through the stack of tables down to the disks. Everything that depends on chance
//! comes from one seed: the same calls in the same order give the same history. Calls may come from any thread; no
//! lock is held while one waits.
//!
//! Limit of waiting: I/O that waits for a suspended device or a full pool fails with ETIMEDOUT after [`STALL_MAX`], so
//! that a mistake shows as an error and not as a test that never ends.
//!
//! Knows nothing of pools, plans and requests, and nothing real but the clock and eventfds.

mod builder;
mod clevis;
mod clock;
mod crypt;
mod disks;
mod dm;
mod events;
mod faults;
mod inspect;
mod io;
mod luks;
mod luks_header;
mod luks_reencrypt;
mod machine;
mod programs;
mod sparse;
mod targets;
mod thin;
mod udev;
mod xfs;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::libc;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rand::{RngCore, rngs::StdRng};
use serde_json::Value;

pub use builder::{Builder, DISK_SIZE_DEFAULT, Preset};
pub use clevis::Trouble;
pub use faults::{Call, Faults, Gate, LuksCall, Step};
pub use inspect::{Leftovers, Snapshot};

use self::{
    clock::Clock,
    events::{Changed, Flag},
    faults::{Control, Verdict, dm_error, io_error},
    io::{Patience, Stop},
    machine::Machine,
};
use super::{
    Announcement, BlockDevice, Contents, DeviceAction, DeviceEvents, DeviceNumber, DeviceWrite, DmEvents, Error,
    Geometry, Hold, Mount, PendingLinks, Platform, Program, Result, RunningProgram, Timestamp, Usage, WriteStep,
    dm::{Device, Line, Listed, Visibility},
    keyring::{KeyChange, Secret},
    luks::{Begin, Ended, Header, HeaderChange, Layout, NewKeyslot, Progress, Purpose, Unlock},
};
use crate::base::units::Sectors;

/// The longest that I/O waits for a suspended device or a full pool.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// Attempts at the removal of a busy device. A real machine waits 200 ms between them.
const REMOVE_ATTEMPTS: u32 = 5;

/// A simulated machine. Copies are the same machine.
#[derive(Clone)]
pub struct Sim(Arc<Inner>);

struct Inner {
    machine: Mutex<Machine>,
    /// Told of everything that may let waiting I/O go on, of links, and of power.
    changed: Changed,
    /// Told when I/O begins to wait. Its own, so that what waits does not wake itself.
    stalls: Condvar,
    control: Arc<Control>,
    clock: Clock,
    /// How many pages a work on the data of a container takes at a time, if it was said.
    hot_zone: Option<u64>,
    /// Counts what takes long on any machine.
    long_calls: AtomicU64,
    /// Counts the flushes of writes; those of several devices in the same round count once.
    flush_waits: AtomicU64,
    /// How often udev was told of filesystems.
    announcements: AtomicU64,
    /// What runs, with a number for each.
    running: Mutex<BTreeMap<u64, (String, Instant)>>,
    random: Mutex<StdRng>,
}

impl Sim {
    /// Begins a machine.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Takes the machine, if it is on.
    fn machine(&self) -> Result<MutexGuard<'_, Machine>> {
        let machine = self.0.machine.lock();
        if machine.powered { Ok(machine) } else { Err(Error::PowerCut) }
    }

    /// One step: waits at gates, counts, fails if that is planned, has the effect.
    fn step<T>(&self, call: Call, subject: &str, effect: impl FnOnce() -> Result<T>) -> Result<T> {
        let _runs = call.is_program().then(|| {
            self.takes_long();
            Runs::begin(self, call, subject)
        });
        match self.0.control.begin(call, subject)? {
            Verdict::Do => {
                let done = effect()?;
                self.0.control.end(call, subject)?;
                Ok(done)
            }
            Verdict::DoThenFail(error) => effect().and(Err(error)),
            Verdict::CutPower => {
                self.cut_power();
                Err(Error::PowerCut)
            }
        }
    }

    /// Takes note of a key derivation, a program, a question to a server.
    fn takes_long(&self) {
        self.0.long_calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries until nothing holds the I/O back.
    fn wait_for_io<T>(
        &self,
        mut act: impl FnMut(&mut Machine) -> std::result::Result<T, Stop>,
        failed: impl Fn(i32) -> Error,
    ) -> Result<T> {
        let mut machine = self.machine()?;
        let (boot, mut until) = (machine.boot, None);
        let mut was_queued = false;
        loop {
            machine.give_up_waiting();
            let acted = act(&mut machine);
            if std::mem::take(&mut was_queued) {
                // A suspend may wait for it to have been served.
                self.0.changed.notify_all();
            }
            let stop = match acted {
                Ok(done) => return Ok(done),
                Err(Stop::Errno(errno)) => return Err(failed(errno)),
                Err(stop) => stop,
            };
            let until = *until.get_or_insert_with(|| Instant::now() + STALL_MAX);
            machine.stalled += 1;
            if let Stop::Full { pool, id } = stop {
                machine.queued.push((pool, id));
            }
            self.0.stalls.notify_all();
            let patience = machine.gives_up_in().filter(|_| self.0.clock.is_real());
            let wake = patience.map_or(until, |patience| until.min(Instant::now() + patience));
            let late = self.0.changed.wait_until(&mut machine, wake).timed_out() && Instant::now() >= until;
            machine.stalled -= 1;
            if let Stop::Full { pool, id } = stop {
                if let Some(at) = machine.queued.iter().position(|queued| *queued == (pool, id)) {
                    machine.queued.swap_remove(at);
                }
                was_queued = true;
            }
            if !machine.powered || machine.boot != boot {
                return Err(Error::PowerCut);
            }
            if late {
                return Err(failed(libc::ETIMEDOUT));
            }
        }
    }

    /// A step of I/O on something named by a text.
    fn io<T>(
        &self,
        call: Call,
        subject: &str,
        act: impl FnMut(&mut Machine) -> std::result::Result<T, Stop>,
    ) -> Result<T> {
        self.step(call, subject, || self.wait_for_io(act, |errno| io_error(call, subject, errno)))
    }

    /// A step of device-mapper.
    fn dm<T>(
        &self,
        call: Call,
        name: &str,
        act: impl FnOnce(&mut Machine) -> std::result::Result<T, i32>,
    ) -> Result<T> {
        self.step(call, name, || {
            let mut machine = self.machine()?;
            machine.give_up_waiting();
            let done = act(&mut machine).map_err(|errno| dm_error(call, name, errno));
            self.0.changed.notify_all();
            done
        })
    }

    /// The node and number behind a path.
    fn node(&self, path: &Path) -> Result<(PathBuf, DeviceNumber)> {
        self.machine()?.node(path).ok_or_else(|| Error::NoDevice { path: path.to_owned() })
    }

    /// A device was open for writing and is closed: udev looks at it again.
    fn written(&self, number: DeviceNumber) -> Result<()> {
        let mut machine = self.machine()?;
        machine.left(number);
        if let Some(disk) = machine.disks.get(number) {
            let path = disk.path.clone();
            machine.device_event(DeviceAction::Change, &path);
        } else if machine.opened(number.minor).is_some() {
            machine.changed_event(number.minor);
        }
        Ok(())
    }

    fn random_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.random.lock().fill_bytes(&mut bytes);
        bytes
    }
}

/// A device that is held.
struct Held {
    sim: Sim,
    number: DeviceNumber,
    serial: u64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hold of {}", self.number)
    }
}

impl Hold for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        self.sim.0.machine.lock().release(self.number, self.serial);
    }
}

/// A program that runs, until this is dropped.
struct Runs<'a> {
    sim: &'a Sim,
    number: u64,
}

impl<'a> Runs<'a> {
    fn begin(sim: &'a Sim, call: Call, subject: &str) -> Runs<'a> {
        let mut running = sim.0.running.lock();
        let number = running.keys().next_back().map_or(1, |last| last + 1);
        running.insert(number, (format!("{} {subject}", call.program_name()), Instant::now()));
        Runs { sim, number }
    }
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        self.sim.0.running.lock().remove(&self.number);
    }
}

/// A path as a subject of steps.
fn text(path: &Path) -> std::borrow::Cow<'_, str> {
    path.to_string_lossy()
}

impl Platform for Sim {
    fn block_devices(&self) -> Result<Vec<BlockDevice>> {
        self.step(Call::BlockDevices, "/dev", || Ok(self.machine()?.block_devices()))
    }

    fn find_device(&self, path: &Path) -> Result<BlockDevice> {
        self.step(Call::FindDevice, &text(path), || {
            let (node, number) = self.node(path)?;
            self.machine()?.block_device(node, number).ok_or_else(|| Error::NoDevice { path: path.to_owned() })
        })
    }

    fn contents(&self, path: &Path) -> Result<Contents> {
        let (_, number) = self.node(path)?;
        self.io(Call::Contents, &text(path), |machine| machine.probe(number))
    }

    fn geometry(&self, path: &Path) -> Result<Geometry> {
        let (_, number) = self.node(path)?;
        self.io(Call::Geometry, &text(path), |machine| machine.geometry(number))
    }

    fn hold(&self, path: &Path) -> Result<Box<dyn Hold>> {
        let (_, number) = self.node(path)?;
        let mut made = None;
        let held = self.io(Call::Hold, &text(path), |machine| match machine.is_in_use(number) {
            true => Err(Stop::Errno(libc::EBUSY)),
            false => {
                made = Some(machine.hold(number));
                Ok(())
            }
        });
        // Of a call that fails after its effect nothing stays: the kernel gives no descriptor then.
        let hold = made.map(|serial| Held { sim: self.clone(), number, serial });
        held?;
        Ok(Box::new(hold.expect("a device is held when the call succeeds")))
    }

    fn lower_devices(&self, number: DeviceNumber) -> Result<BTreeSet<DeviceNumber>> {
        self.step(Call::LowerDevices, &format!("{}:{}", number.major, number.minor), || {
            Ok(self.machine()?.lower_devices(number))
        })
    }

    fn read(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
        let (_, number) = self.node(path)?;
        self.io(Call::Read, &text(path), |machine| {
            // Checked first, so that a wrong length is not allocated.
            let end = offset.checked_add(length as u64).ok_or(Stop::Errno(libc::EINVAL))?;
            if machine.size_of(number).is_none_or(|size| end > size) {
                return Err(Stop::Errno(libc::EIO));
            }
            let mut bytes = vec![0; length];
            machine.read_at(number, offset, &mut bytes, Patience::Wait).map(|()| bytes)
        })
    }

    fn write(&self, path: &Path, steps: &[WriteStep<'_>]) -> Result<()> {
        let (_, number) = self.node(path)?;
        let done = steps.iter().try_for_each(|step| {
            if matches!(step, WriteStep::Flush) {
                self.0.flush_waits.fetch_add(1, Ordering::Relaxed);
            }
            self.write_step(path, number, step)
        });
        done.and(self.written(number))
    }

    /// The first step of each device, then the second of each, and so on: of all orders the one that leaves the most
    /// devices unfinished at a fault.
    fn write_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<Result<()>> {
        let open = |write: &DeviceWrite<'_>| match self.node(write.path) {
            Ok((_, number)) => (Some(number), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let (opened, mut results): (Vec<Option<DeviceNumber>>, Vec<Result<()>>) = writes.iter().map(open).unzip();
        let rounds = writes.iter().map(|write| write.steps.len()).max().unwrap_or(0);
        for round in 0..rounds {
            let mut waits = false;
            for ((write, number), result) in writes.iter().zip(&opened).zip(&mut results) {
                let (Some(number), Some(step), Ok(())) = (number, write.steps.get(round), &result) else { continue };
                waits |= matches!(step, WriteStep::Flush);
                *result = self.write_step(write.path, *number, step);
            }
            self.0.flush_waits.fetch_add(u64::from(waits), Ordering::Relaxed);
        }
        let closed = opened.into_iter().map(|number| number.map_or(Ok(()), |number| self.written(number)));
        results.into_iter().zip(closed).map(|(result, closed)| result.and(closed)).collect()
    }

    fn dm_list(&self) -> Result<Vec<Listed>> {
        self.dm(Call::DmList, "", |machine| Ok(machine.dm.list()))
    }

    fn dm_find(&self, name: &str) -> Result<Option<Device>> {
        self.dm(Call::DmFind, name, |machine| Ok(machine.dm_find(name)))
    }

    fn dm_event(&self, name: &str) -> Result<Option<u32>> {
        self.dm(Call::DmFind, name, |machine| Ok(machine.dm.event(name)))
    }

    fn dm_create(&self, name: &str, uuid: &str, table: &[Line], visibility: Visibility) -> Result<DeviceNumber> {
        // Whether it is there is looked up and not remembered: a create that fails after its effect has made it too.
        let was_there = self.machine()?.dm.by_name(name).is_some();
        let made = self
            .dm(Call::DmCreate, name, |machine| machine.dm_new(name, uuid))
            .and_then(|minor| self.dm_load(name, table).map(|()| minor))
            .and_then(|minor| self.dm_resume(name, visibility).map(|()| dm::number(minor)));
        if made.is_err() && !was_there && !self.0.control.has_ended() {
            let mut machine = self.machine()?;
            // It may not have been made; what is below it may go now.
            let _ = machine.dm_remove(name);
            self.0.changed.notify_all();
        }
        made
    }

    fn dm_load(&self, name: &str, table: &[Line]) -> Result<()> {
        self.dm(Call::DmLoad, name, |machine| machine.dm_load(name, table))
    }

    fn dm_suspend(&self, name: &str, flush: bool) -> Result<()> {
        let failed = |errno| dm_error(Call::DmSuspend, name, errno);
        if flush && self.machine()?.is_thin_named(name) {
            // It waits for what is queued in a full pool.
            self.takes_long();
        }
        self.step(Call::DmSuspend, name, || {
            let done = self.wait_for_io(|machine| machine.dm_suspend(name, flush), failed);
            self.0.changed.notify_all();
            done
        })
    }

    fn dm_resume(&self, name: &str, visibility: Visibility) -> Result<()> {
        self.dm(Call::DmResume, name, |machine| {
            machine.dm_resume(name, visibility)?;
            machine.serve_udev();
            Ok(())
        })
    }

    fn dm_remove(&self, name: &str) -> Result<()> {
        let removed = self.dm(Call::DmRemove, name, |machine| {
            let mut removed = machine.dm_remove(name);
            for _ in 1..REMOVE_ATTEMPTS {
                if removed == Err(libc::EBUSY) {
                    removed = machine.dm_remove(name);
                }
            }
            removed
        });
        removed.map_err(|error| match error.errno() {
            Some(libc::EBUSY) => Error::Busy { name: name.to_owned() },
            _ => error,
        })
    }

    fn dm_rename(&self, name: &str, new_name: &str) -> Result<()> {
        self.dm(Call::DmRename, name, |machine| machine.dm_rename(name, new_name))
    }

    fn dm_message(&self, name: &str, message: &str) -> Result<()> {
        self.dm(Call::DmMessage, name, |machine| machine.dm_message(name, message))
    }

    fn dm_status(&self, name: &str) -> Result<Vec<String>> {
        self.dm(Call::DmStatus, name, |machine| machine.dm_status(name))
    }

    fn dm_node(&self, name: &str) -> PathBuf {
        Path::new("/dev/mapper").join(name)
    }

    fn run(&self, program: Program, arguments: &[&str]) -> Result<String> {
        self.step(Call::Run(program), &arguments.join(" "), || match self.0.control.is_idle(program) {
            true => Ok(String::new()),
            false => self.run_program(program, arguments),
        })
    }

    fn running_programs(&self) -> Vec<RunningProgram> {
        let running = self.0.running.lock();
        let told = |(number, (label, since)): (&u64, &(String, Instant))| RunningProgram {
            label: label.clone(),
            process: u32::try_from(*number).unwrap_or(u32::MAX),
            age: since.elapsed(),
            is_stuck: false,
        };
        running.iter().map(told).collect()
    }

    /// None: changes of device-mapper devices wait for nobody here, and those who wait for links see themselves what is missing.
    fn unanswered_udev_events(&self) -> u64 {
        0
    }

    fn mount(&self, node: &Path, at: &str, options: &str) -> Result<()> {
        let (_, number) = self.node(node)?;
        let at = Path::new(xfs::PRIVATE).join(at);
        self.io(Call::Mount, &text(node), |machine| machine.mount(number, &at, options))
    }

    fn unmount(&self, at: &str) -> Result<()> {
        let full = Path::new(xfs::PRIVATE).join(at);
        self.io(Call::Unmount, at, |machine| machine.unmount(&full).map(|_| ()))
    }

    fn mounts(&self, devices: &[DeviceNumber]) -> Result<Vec<Mount>> {
        self.io(Call::MountPoints, "/proc/*/mountinfo", |machine| Ok(machine.xfs.mounts_of(devices)))
    }

    fn usage(&self, mount: &Mount) -> Result<Usage> {
        let path = mount.shown();
        let (device, usage) = self.io(Call::Usage, &text(&path), |machine| machine.usage(&path))?;
        if device == mount.number { Ok(usage) } else { Err(Error::OtherMount { path, number: mount.number }) }
    }

    fn grow_xfs(&self, mount: &Mount) -> Result<()> {
        let path = mount.shown();
        self.step(Call::GrowXfs, &text(&path), || self.grow(&path, mount.number))
    }

    fn list_files(&self, directory: &str) -> Result<Vec<String>> {
        self.io(Call::ListFiles, directory, |machine| {
            machine.files(directory).map(|(files, inside)| files.list(&inside))
        })
    }

    fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.io(Call::ReadFile, path, |machine| {
            let (files, inside) = machine.files(path)?;
            files.read(&inside).ok_or(Stop::Errno(libc::ENOENT))
        })
    }

    fn replace_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let temp = Path::new(path).with_extension("temp");
        let temp = text(&temp);
        let found = |there: bool| if there { Ok(()) } else { Err(Stop::Errno(libc::ENOENT)) };
        self.io(Call::WriteTemp, &temp, |machine| {
            let (files, inside) = machine.files(&temp)?;
            found(files.write(&inside, bytes))
        })?;
        let synced = self.io(Call::SyncFile, &temp, |machine| {
            machine.flush_files(&temp)?;
            let (files, inside) = machine.files(&temp)?;
            found(files.sync(&inside))
        });
        self.shut_down_after(synced, &temp)?;
        self.io(Call::RenameFile, path, |machine| {
            let (_, from) = machine.files(&temp)?;
            let (files, to) = machine.files(path)?;
            found(files.rename(&from, &to))
        })?;
        self.sync_directory(path)
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        let there = self.io(Call::RemoveFile, path, |machine| {
            let (files, inside) = machine.files(path)?;
            Ok(files.remove(&inside))
        })?;
        if there { self.sync_directory(path) } else { Ok(()) }
    }

    fn announce(&self, filesystems: &[Announcement]) -> Result<Box<dyn PendingLinks>> {
        let wanted: Vec<(PathBuf, DeviceNumber)> =
            filesystems.iter().map(|announcement| (announcement.link(), announcement.number)).collect();
        let subject = wanted.first().map(|(link, _)| text(link).into_owned()).unwrap_or_default();
        self.0.announcements.fetch_add(1, Ordering::Relaxed);
        self.step(Call::Announce, &subject, || {
            let (numbers, boot) = {
                let mut machine = self.machine()?;
                (machine.announce(filesystems), machine.boot)
            };
            let told = self.0.changed.listen()?;
            self.0.changed.notify_all();
            let wanted = wanted.into_iter().zip(numbers).collect();
            Ok(Box::new(Pending { sim: self.clone(), wanted, boot, told }) as Box<dyn PendingLinks>)
        })
    }

    fn is_linked(&self, filesystem: &Announcement) -> bool {
        self.machine().is_ok_and(|machine| machine.udev.link(&filesystem.link()) == Some(filesystem.number))
    }

    fn device_events(&self) -> Result<Box<dyn DeviceEvents>> {
        self.step(Call::DeviceEvents, "udev", || self.machine()?.events.listen_devices())
    }

    fn dm_events(&self) -> Result<Box<dyn DmEvents>> {
        self.step(Call::DmEvents, "/dev/mapper/control", || self.machine()?.events.listen_dm())
    }

    fn key_set(&self, name: &str, value: &Secret) -> Result<KeyChange> {
        self.step(Call::Key, name, || {
            let keys = &mut self.machine()?.keyring;
            let known = keys.get(name).map(|known| known.same(value.bytes()));
            if known != Some(true) {
                keys.insert(name.to_owned(), value.clone());
            }
            Ok(match known {
                None => KeyChange::Created,
                Some(false) => KeyChange::Replaced,
                Some(true) => KeyChange::Same,
            })
        })
    }

    fn key_unset(&self, name: &str) -> Result<bool> {
        self.step(Call::Key, name, || Ok(self.machine()?.keyring.remove(name).is_some()))
    }

    fn key_list(&self) -> Result<Vec<String>> {
        self.step(Call::Key, "(all)", || Ok(self.machine()?.keyring.keys().cloned().collect()))
    }

    fn key_read(&self, name: &str) -> Result<Option<Secret>> {
        self.step(Call::Key, name, || Ok(self.machine()?.keyring.get(name).cloned()))
    }

    fn volume_key_set(&self, name: &str, value: &Secret) -> Result<()> {
        self.step(Call::Key, name, || {
            self.machine()?.volume_keys.insert(name.to_owned(), value.clone());
            Ok(())
        })
    }

    fn volume_key_read(&self, name: &str) -> Result<Option<Secret>> {
        self.step(Call::Key, name, || Ok(self.machine()?.volume_keys.get(name).cloned()))
    }

    fn volume_key_unset(&self, name: &str) -> Result<bool> {
        self.step(Call::Key, name, || Ok(self.machine()?.volume_keys.remove(name).is_some()))
    }

    fn luks_read(&self, device: &Path) -> Result<Option<Header>> {
        luks::read(self, device)
    }

    fn luks_format(
        &self,
        device: &Path,
        layout: &Layout,
        purpose: Purpose,
        keyslots: &[NewKeyslot<'_>],
        tokens: &BTreeMap<u32, Value>,
    ) -> Result<Header> {
        luks::format(self, device, layout, purpose, keyslots, tokens)
    }

    fn luks_change(&self, device: &Path, unlock: Option<Unlock<'_>>, changes: &[HeaderChange<'_>]) -> Result<Header> {
        luks::change(self, device, unlock, changes)
    }

    fn luks_open(&self, device: &Path, name: Option<&str>, unlock: Unlock<'_>) -> Result<Secret> {
        luks::open(self, device, name, unlock)
    }

    fn luks_reopen(&self, device: &Path, name: &str, volume_key: &Secret) -> Result<()> {
        luks::reopen(self, device, name, volume_key)
    }

    fn luks_resize(&self, device: &Path, name: &str, volume_key: &Secret, size: Option<Sectors>) -> Result<()> {
        luks::resize(self, device, name, volume_key, size)
    }

    fn luks_reencrypt(
        &self,
        device: &Path,
        name: &str,
        unlock: Unlock<'_>,
        begin: Begin,
        watch: &(dyn Fn(Progress) -> bool + Sync),
    ) -> Result<Ended> {
        luks_reencrypt::reencrypt(self, device, name, unlock, begin, watch)
    }

    fn clevis_encrypt(&self, pin: &str, config: &Value, trust: bool, passphrase: &Secret) -> Result<Value> {
        clevis::encrypt(self, pin, config, trust, passphrase)
    }

    fn clevis_decrypt_each(&self, jwes: &[&Value], take: &mut dyn FnMut(usize, Result<Secret>) -> bool) {
        clevis::decrypt_each(self, jwes, take);
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    fn random(&self) -> [u8; 16] {
        self.random_bytes()
    }
}

impl Sim {
    fn write_step(&self, path: &Path, number: DeviceNumber, step: &WriteStep<'_>) -> Result<()> {
        match step {
            WriteStep::At(offset, bytes) => {
                self.io(Call::Write, &text(path), |machine| machine.write_at(number, *offset, bytes, Patience::Wait))
            }
            WriteStep::Flush => self.io(Call::Flush, &text(path), |machine| machine.flush(number, Patience::Wait)),
        }
    }

    fn sync_directory(&self, path: &str) -> Result<()> {
        let synced = self.io(Call::SyncDirectory, path, |machine| {
            machine.flush_files(path)?;
            machine.files(path).map(|(files, _)| files.sync_directory())
        });
        self.shut_down_after(synced, path)
    }

    /// The log of a file system was to be written: an I/O error there, also a planned one, is its end until it is mounted
    /// again.
    fn shut_down_after(&self, synced: Result<()>, path: &str) -> Result<()> {
        if synced.as_ref().is_err_and(|error| error.errno() == Some(libc::EIO)) && !self.0.control.has_ended() {
            let mut machine = self.machine()?;
            if let Some(device) = machine.device_of_file(path) {
                machine.xfs.shut_down(device);
            }
        }
        synced
    }
}

impl Machine {
    /// Logical sector size of a device in bytes: the largest of what it stands on.
    fn logical_sector(&self, number: DeviceNumber) -> u32 {
        let below = self.disks_below(number);
        let largest = below.iter().filter_map(|disk| self.disks.get(*disk)).map(|disk| disk.shape.logical).max();
        largest.unwrap_or(512).max(self.encryption_sector(number))
    }

    /// Writes out the device that a private path lies on.
    fn flush_files(&mut self, path: &str) -> std::result::Result<(), Stop> {
        let device = self.device_of_file(path).ok_or(Stop::Errno(libc::ENOENT))?;
        self.write_log(device)
    }

    fn geometry(&self, number: DeviceNumber) -> std::result::Result<Geometry, Stop> {
        let size = self.size_of(number).ok_or(Stop::Errno(libc::ENXIO))?;
        let below = self.disks_below(number);
        let physical = below.iter().filter_map(|disk| self.disks.get(*disk)).map(|disk| disk.shape.physical).max();
        Ok(Geometry {
            size: Sectors(size / crate::base::units::SECTOR),
            logical: self.logical_sector(number),
            physical: physical.unwrap_or(512).max(self.encryption_sector(number)),
            read_only: self.disks.get(number).is_some_and(|disk| disk.shape.read_only),
        })
    }
}

struct Pending {
    sim: Sim,
    /// Links with their devices, and the numbers of the announcements.
    wanted: Vec<((PathBuf, DeviceNumber), u64)>,
    boot: u64,
    /// Up when anything may have changed.
    told: Arc<Flag>,
}

impl Pending {
    /// Those that are not there, and whether it is not worth waiting for them.
    fn look(&self, machine: &Machine) -> (Vec<PathBuf>, bool) {
        let missing = || self.wanted.iter().filter(|((link, number), _)| machine.udev.link(link) != Some(*number));
        // A link that has been made and is gone again will not come back: something newer has seen to that.
        let may_come = missing().any(|(_, announcement)| machine.udev.may_come(*announcement));
        let over = !machine.powered || machine.boot != self.boot;
        (missing().map(|((link, _), _)| link.clone()).collect(), over || !may_come)
    }
}

impl PendingLinks for Pending {
    fn wait(self: Box<Self>, limit: Duration) -> Vec<PathBuf> {
        let until = Instant::now() + limit;
        let mut machine = self.sim.0.machine.lock();
        loop {
            let (missing, over) = self.look(&machine);
            if over || self.sim.0.changed.wait_until(&mut machine, until).timed_out() {
                return missing;
            }
        }
    }

    fn hear(&mut self) {
        self.told.lower();
    }

    fn advance(&mut self) -> bool {
        self.look(&self.sim.0.machine.lock()).1
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.told.fd())
    }

    fn missing(self: Box<Self>) -> Vec<PathBuf> {
        self.look(&self.sim.0.machine.lock()).0
    }
}
