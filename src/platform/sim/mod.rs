//! A machine in memory: `stratisd --sim` runs on it, and so does every proof about faults and power
//! cuts.
//!
//! The machine does everything that [`Platform`](super::Platform) requires, or refuses with the
//! error of a kernel. The rules and their limits are at the top of each file: disks (`disks`),
//! device-mapper (`dm`, `thin`, `io`), file systems (`xfs`), programs (`programs`), udev (`udev`,
//! `events`), power (`machine`), steps and faults (`faults`), LUKS2 (`luks`, `luks_device`,
//! `luks_header`, `luks_reencrypt`, `crypt`), Clevis (`clevis`).
//!
//! The state of each part of the machine is defined below `machine` (`disks`, `dm_devices`,
//! `pool_run`, `thin`, `cipher`, `xfs`, `udev_queue`, `key_servers`). The behaviour is defined
//! above it, in methods of the one [`MachineState`], so that every part can use every other: `dm`,
//! `targets`, `io`, `crypt`, `mounts`, `udev`.
//!
//! In short: any absolute path is a large sparse disk that appears when it is first used, unless
//! the machine has only the given disks. Bytes pass through the table stack down to the disks.
//! Every random choice comes from one seed: the same calls in the same order give the same history.
//! Any thread may make calls; no lock is held while one waits.
//!
//! Limit of waiting: I/O that waits for a suspended device or a full pool fails with ETIMEDOUT
//! after [`STALL_MAX`], so that a mistake shows as an error instead of a test that never ends.
//!
//! This module knows nothing of pools, plans and requests. The real clock and eventfds are the only
//! real things that it uses.

mod builder;
mod cipher;
mod clevis;
mod clock;
mod crypt;
mod disks;
mod dm;
mod dm_devices;
mod events;
mod faults;
mod incomplete;
mod inspect;
mod io;
mod key_servers;
mod luks;
mod luks_device;
mod luks_header;
mod luks_reencrypt;
mod machine;
mod mounts;
mod platform;
mod pool_run;
mod programs;
mod sparse;
mod targets;
mod thin;
mod udev;
mod udev_queue;
mod xfs;
mod xfs_log;

use std::{
    collections::BTreeMap,
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

pub use builder::{Builder, DISK_SIZE_DEFAULT, Preset};
pub use faults::{CallKind, Faults, Gate, LuksCall, RecordedCall};
pub use inspect::{Leftovers, Snapshot};
pub use key_servers::Trouble;

use self::{
    clock::Clock,
    events::{ChangeNotifier, Flag},
    faults::{Control, StepEffect, dm_error, io_error},
    incomplete::{Incomplete, Patience},
    machine::MachineState,
};
use super::{DeviceAction, DeviceHold, DeviceNumber, Error, Geometry, PendingLinks, Result, WriteStep};
use crate::base::units::Sectors;

/// Longest time that I/O waits for a suspended device or a full pool.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// Attempts to remove a busy device. A real machine waits 200 ms between them.
const REMOVE_ATTEMPTS: u32 = 5;

/// A simulated machine. Clones are the same machine.
#[derive(Clone)]
pub struct Sim(Arc<Simulation>);

struct Simulation {
    machine: Mutex<MachineState>,
    /// Notified of everything that may let waiting I/O continue, of links, and of power.
    changed: ChangeNotifier,
    /// Notified when I/O starts to wait. Separate, so that waiting I/O does not wake itself.
    stalls: Condvar,
    control: Arc<Control>,
    clock: Clock,
    /// Pages per step of a re-encryption job, if set.
    hot_zone: Option<u64>,
    /// mkfs.xfs is of version 5.
    old_mkfs: bool,
    /// Number of calls that are slow on any machine.
    slow_calls: AtomicU64,
    /// Number of rounds of flushes; flushes of several devices in the same round count once.
    flush_waits: AtomicU64,
    /// Number of calls that requested links from udev.
    announcements: AtomicU64,
    /// Running programs, numbered.
    running: Mutex<BTreeMap<u64, (String, Instant)>>,
    random: Mutex<StdRng>,
}

impl Sim {
    /// Locks the machine, if it has power.
    fn machine(&self) -> Result<MutexGuard<'_, MachineState>> {
        let machine = self.0.machine.lock();
        if machine.powered { Ok(machine) } else { Err(Error::PowerCut) }
    }

    /// Runs one step: waits at gates, counts the step, fails if planned, and otherwise takes
    /// effect.
    fn step<T>(&self, call: CallKind, subject: &str, effect: impl FnOnce() -> Result<T>) -> Result<T> {
        let _running = call.is_program().then(|| {
            self.note_slow_call();
            RunningGuard::begin(self, call, subject)
        });
        match self.0.control.begin(call, subject)? {
            StepEffect::Do => {
                let done = effect()?;
                self.0.control.end(call, subject)?;
                Ok(done)
            }
            StepEffect::DoThenFail(error) => effect().and(Err(error)),
            StepEffect::CutPower => {
                self.cut_power();
                Err(Error::PowerCut)
            }
        }
    }

    /// Counts a slow call: a key derivation, a program, a request to a server.
    fn note_slow_call(&self) {
        self.0.slow_calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Retries until nothing blocks the I/O.
    fn wait_for_io<T>(
        &self,
        mut act: impl FnMut(&mut MachineState) -> std::result::Result<T, Incomplete>,
        failed: impl Fn(i32) -> Error,
    ) -> Result<T> {
        let mut machine = self.machine()?;
        let (boot, mut until) = (machine.boot, None);
        let mut was_queued = false;
        loop {
            machine.give_up_waiting();
            let acted = act(&mut machine);
            if std::mem::take(&mut was_queued) {
                // A suspend may be waiting until this I/O is served.
                self.0.changed.notify_all();
            }
            let incomplete = match acted {
                Ok(done) => return Ok(done),
                Err(Incomplete::Errno(errno)) => return Err(failed(errno)),
                Err(incomplete) => incomplete,
            };
            let until = *until.get_or_insert_with(|| Instant::now() + STALL_MAX);
            machine.stalled += 1;
            if let Incomplete::Full { pool, id } = incomplete {
                machine.queued.push((pool, id));
            }
            self.0.stalls.notify_all();
            let patience = machine.gives_up_in().filter(|_| self.0.clock.is_real());
            let wake = patience.map_or(until, |patience| until.min(Instant::now() + patience));
            let late = self.0.changed.wait_until(&mut machine, wake).timed_out() && Instant::now() >= until;
            machine.stalled -= 1;
            if let Incomplete::Full { pool, id } = incomplete {
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

    /// A step of I/O on a named subject.
    fn io<T>(
        &self,
        call: CallKind,
        subject: &str,
        act: impl FnMut(&mut MachineState) -> std::result::Result<T, Incomplete>,
    ) -> Result<T> {
        self.step(call, subject, || self.wait_for_io(act, |errno| io_error(call, subject, errno)))
    }

    /// A device-mapper step.
    fn dm<T>(
        &self,
        call: CallKind,
        name: &str,
        act: impl FnOnce(&mut MachineState) -> std::result::Result<T, i32>,
    ) -> Result<T> {
        self.step(call, name, || {
            let mut machine = self.machine()?;
            machine.give_up_waiting();
            let done = act(&mut machine).map_err(|errno| dm_error(call, name, errno));
            self.0.changed.notify_all();
            done
        })
    }

    /// The node and device number of a path.
    fn node(&self, path: &Path) -> Result<(PathBuf, DeviceNumber)> {
        self.machine()?.node(path).ok_or_else(|| Error::NoDevice { path: path.to_owned() })
    }

    /// Notes that a device that was open for writing is closed: udev probes it again.
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

    fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.random.lock().fill_bytes(&mut bytes);
        bytes
    }
}

/// A held device.
struct SimulatedHold {
    sim: Sim,
    number: DeviceNumber,
    serial: u64,
}

impl std::fmt::Debug for SimulatedHold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hold of {}", self.number)
    }
}

impl DeviceHold for SimulatedHold {}

impl Drop for SimulatedHold {
    fn drop(&mut self) {
        self.sim.0.machine.lock().release(self.number, self.serial);
    }
}

/// A running program, until dropped.
struct RunningGuard<'a> {
    sim: &'a Sim,
    number: u64,
}

impl<'a> RunningGuard<'a> {
    fn begin(sim: &'a Sim, call: CallKind, subject: &str) -> RunningGuard<'a> {
        let mut running = sim.0.running.lock();
        let number = running.keys().next_back().map_or(1, |last| last + 1);
        running.insert(number, (format!("{} {subject}", call.program_name()), Instant::now()));
        RunningGuard { sim, number }
    }
}

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.sim.0.running.lock().remove(&self.number);
    }
}

/// A path as the subject of a step.
fn text(path: &Path) -> std::borrow::Cow<'_, str> {
    path.to_string_lossy()
}

impl Sim {
    fn write_step(&self, path: &Path, number: DeviceNumber, step: &WriteStep<'_>) -> Result<()> {
        match step {
            WriteStep::At(offset, bytes) => self
                .io(CallKind::Write, &text(path), |machine| machine.write_at(number, *offset, bytes, Patience::Wait)),
            WriteStep::Sectors(offset, bytes) => self.io(CallKind::Write, &text(path), |machine| {
                let sector = u64::from(machine.logical_sector(number));
                match offset.is_multiple_of(sector) && (bytes.len() as u64).is_multiple_of(sector) {
                    true => machine.write_at(number, *offset, bytes, Patience::Wait),
                    false => Err(Incomplete::Errno(libc::EINVAL)),
                }
            }),
            WriteStep::Flush => self.io(CallKind::Flush, &text(path), |machine| machine.flush(number, Patience::Wait)),
        }
    }

    fn sync_directory(&self, path: &str) -> Result<()> {
        let synced = self.io(CallKind::SyncDirectory, path, |machine| {
            machine.flush_files(path)?;
            machine.files(path).map(|(files, _)| files.sync_directory())
        });
        self.shut_down_after(synced, path)
    }

    /// Handles an I/O error, planned or not, on a write of the XFS log: the file system shuts down
    /// until it is mounted again.
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

impl MachineState {
    /// Logical sector size of a device in bytes: the largest among the devices below it.
    fn logical_sector(&self, number: DeviceNumber) -> u32 {
        let below = self.disks_below(number);
        let largest = below.iter().filter_map(|disk| self.disks.get(*disk)).map(|disk| disk.shape.logical).max();
        largest.unwrap_or(512).max(self.encryption_sector(number))
    }

    /// Writes out the device that holds a private path.
    fn flush_files(&mut self, path: &str) -> std::result::Result<(), Incomplete> {
        let device = self.device_of_file(path).ok_or(Incomplete::Errno(libc::ENOENT))?;
        self.write_log(device)
    }

    fn geometry(&self, number: DeviceNumber) -> std::result::Result<Geometry, Incomplete> {
        let size = self.size_of(number).ok_or(Incomplete::Errno(libc::ENXIO))?;
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

struct AnnouncedLinks {
    sim: Sim,
    /// Links with their devices, and the numbers of their announcements.
    wanted: Vec<((PathBuf, DeviceNumber), u64)>,
    boot: u64,
    /// Raised when anything may have changed.
    told: Arc<Flag>,
}

impl AnnouncedLinks {
    /// The missing links, and whether to stop waiting for them.
    fn look(&self, machine: &MachineState) -> (Vec<PathBuf>, bool) {
        let missing = || self.wanted.iter().filter(|((link, number), _)| machine.udev.link(link) != Some(*number));
        // A link that was made and is gone will not come back: a newer event removed it.
        let may_come = missing().any(|(_, announcement)| machine.udev.may_come(*announcement));
        let over = !machine.powered || machine.boot != self.boot;
        (missing().map(|((link, _), _)| link.clone()).collect(), over || !may_come)
    }
}

impl PendingLinks for AnnouncedLinks {
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

#[cfg(test)]
mod tests;
