//! Device-mapper: devices, their two table slots, open counts, event numbers.
//!
//! Rules, with the kernel's errors:
//! - create: a name or UUID in use EBUSY; a `/` in the name, or a name that is too long, EINVAL.
//! - load: unknown device ENXIO. Lines that do not follow each other from 0, or that exceed a
//!   device of less than 8 EiB, an unknown target, bad parameters, a thin pool replaced by another
//!   target EINVAL. A device below that does not exist ENXIO, is mounted or otherwise in exclusive
//!   use EBUSY, is read-only EACCES. Thin pool: metadata device of another pool EBUSY, with other
//!   contents EILSEQ. Thin: no pool there, or a suspended one, EINVAL; unknown id ENODATA.
//! - resume: no table at all, a line past the end of the device below or not of whole logical
//!   sectors of it, a pool that shrank EINVAL. A failure after a load leaves the device suspended,
//!   as in the kernel.
//! - suspend: with flush, the suspend waits until no write of the device is queued in a thin pool
//!   that is out of space; without flush such writes are requeued and wait for the resume. A file
//!   system that cannot write its log shuts down, and the suspend fails.
//! - remove: open (a mount, another device's live or loaded table, a holder that a test simulates)
//!   EBUSY; also the first times after a program or a mount closed the device.
//! - message: no live table ENXIO, a target that takes none or malformed words EINVAL, a read-only
//!   pool EOPNOTSUPP, `create_thin`/`create_snap` of a used id EEXIST, an unknown origin or a
//!   deletion of an unknown id ENODATA, a deletion of a device in use EBUSY. The effect is durable
//!   at return.
//! - status: causes no commit (`DM_NOFLUSH`), so the mode of a pool is that of its last commit.
//! - events: a device's event number grows with each event of its target. The global event is
//!   raised by these, and by create, remove and the swap of a table.
//!
//! Targets: linear, error, thin-pool, thin, cache (`writethrough` or `passthrough`; `writeback` is
//! refused with EINVAL). The origin serves all I/O of a cache: nothing is ever promoted. Crypt
//! tables are made by opening a LUKS device (`crypt`) and refused in a load.
//!
//! This module knows neither what names mean nor how a disk works.

use nix::libc;

use super::{
    dm_devices::{dm_node, number},
    incomplete::Incomplete,
    machine::MachineState,
    pool_run::PoolMode,
    thin::THIN_ID_MAX,
};
use crate::platform::{
    DeviceAction,
    dm::{self, Line, Target, Visibility},
};

const NAME_BYTES_MAX: usize = 127;
const UUID_BYTES_MAX: usize = 128;

impl MachineState {
    pub(super) fn raise_dm_event(&mut self, minor: u32) {
        if let Some(device) = self.dm.device_mut(minor) {
            device.event = device.event.wrapping_add(1);
        }
        self.events.dm_event();
    }

    pub(super) fn dm_new(&mut self, name: &str, uuid: &str) -> Result<u32, i32> {
        if name.is_empty() || name.contains('/') || name.len() > NAME_BYTES_MAX || uuid.len() > UUID_BYTES_MAX {
            return Err(libc::EINVAL);
        }
        let minor = self.dm.insert(name, uuid)?;
        self.events.dm_event();
        Ok(minor)
    }

    pub(super) fn dm_find(&self, name: &str) -> Option<dm::Device> {
        let minor = self.dm.by_name(name)?;
        let device = self.dm.get_minor(minor)?;
        Some(dm::Device {
            number: number(minor),
            uuid: device.uuid.clone(),
            suspended: device.suspended,
            table: device.table.clone(),
        })
    }

    pub(super) fn dm_load(&mut self, name: &str, table: &[Line]) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        let table = self.construct(minor, table)?;
        let replaced = self.dm.device_mut(minor).and_then(|device| device.waiting.replace(table));
        if let Some(table) = replaced {
            self.destruct(&table, minor);
        }
        Ok(())
    }

    pub(super) fn dm_resume(&mut self, name: &str, visibility: Visibility) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        let waiting = self.dm.device_mut(minor).and_then(|device| device.waiting.take());
        let mut swapped = false;
        if let Some(table) = waiting {
            if !self.areas_fit(&table) {
                self.destruct(&table, minor);
                if let Some(device) = self.dm.device_mut(minor) {
                    device.suspended = true;
                }
                return Err(libc::EINVAL);
            }
            let old = self.dm.device_mut(minor).map(|device| {
                device.suspended = true;
                device.opened = None;
                std::mem::replace(&mut device.table, table)
            });
            if let Some(old) = old {
                self.destruct(&old, minor);
            }
            self.events.dm_event();
            swapped = true;
        }
        if self.dm.active(minor).is_empty() {
            return Err(libc::EINVAL);
        }
        if self.dm.is_suspended(minor) {
            self.pre_resume(minor, swapped)?;
        }
        let was_private = self.dm.device_mut(minor).is_some_and(|device| {
            device.suspended = false;
            std::mem::replace(&mut device.visibility, visibility) == Visibility::Private
        });
        if let Some(run) = self.dm.pool_mut(minor) {
            run.low_water_triggered = false;
        }
        if visibility == Visibility::Public {
            let action = if swapped && was_private { DeviceAction::Add } else { DeviceAction::Change };
            self.device_event(action, &dm_node(minor));
        }
        Ok(())
    }

    pub(super) fn dm_suspend(&mut self, name: &str, flush: bool) -> Result<(), Incomplete> {
        let minor = self.dm.minor_of(name).map_err(Incomplete::Errno)?;
        if self.dm.is_suspended(minor) {
            return Ok(());
        }
        if flush && self.has_queued_writes(minor) {
            return Err(Incomplete::Queued);
        }
        if flush && self.xfs.is_mounted(number(minor)) {
            self.sync_file_system(number(minor))?;
        }
        // As in the kernel, a failed commit shows in the pool's mode and not in this result.
        let _ = self.commit_pool(minor);
        if let Some(device) = self.dm.device_mut(minor) {
            device.suspended = true;
        }
        Ok(())
    }

    pub(super) fn dm_remove(&mut self, name: &str) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        let held = self.dm.device_mut(minor).is_some_and(|device| {
            let held = device.holds > 0;
            device.holds = device.holds.saturating_sub(1);
            held
        });
        if held || self.dm.is_open(number(minor)) {
            return Err(libc::EBUSY);
        }
        let Some(device) = self.dm.remove(minor) else { return Err(libc::ENXIO) };
        self.destruct(&device.table, minor);
        if let Some(waiting) = &device.waiting {
            self.destruct(waiting, minor);
        }
        self.xfs.forget_usage(number(minor));
        self.udev.remove_links(number(minor));
        if device.visibility == Visibility::Public {
            self.device_event(DeviceAction::Remove, &dm_node(minor));
        }
        self.events.dm_event();
        Ok(())
    }

    pub(super) fn dm_message(&mut self, name: &str, message: &str) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        match self.dm.active(minor).first().map(|line| &line.target) {
            None => return Err(libc::ENXIO),
            Some(Target::ThinPool { .. }) => {}
            Some(_) => return Err(libc::EINVAL),
        }
        let run = self.dm.pool(minor).ok_or(libc::EINVAL)?;
        if run.mode >= PoolMode::OutOfMetadata {
            return Err(libc::EOPNOTSUPP);
        }
        let id = |word: &str| word.parse::<u64>().ok().filter(|id| *id <= THIN_ID_MAX).map(|id| id as u32);
        let words: Vec<&str> = message.split_ascii_whitespace().collect();
        let verb = words.first().ok_or(libc::EINVAL)?.to_ascii_lowercase();
        let store = self.thin.get_mut(&run.key).ok_or(libc::EINVAL)?;
        let meta = &mut store.current;
        match (verb.as_str(), &words[1..]) {
            ("create_thin", [new]) => meta.create(id(new).ok_or(libc::EINVAL)?)?,
            ("create_snap", [new, origin]) => {
                meta.snapshot(id(new).ok_or(libc::EINVAL)?, id(origin).ok_or(libc::EINVAL)?)?;
            }
            ("delete", [old]) => {
                let old = id(old).ok_or(libc::EINVAL)?;
                if run.open.contains_key(&old) {
                    return Err(libc::EBUSY);
                }
                meta.delete(old)?;
            }
            ("set_transaction_id", [from, to]) => {
                let number = |word: &str| word.parse::<u64>().map_err(|_| libc::EINVAL);
                let (from, to) = (number(from)?, number(to)?);
                if meta.transaction != from {
                    return Err(libc::EINVAL);
                }
                meta.transaction = to;
            }
            ("reserve_metadata_snap", []) if !meta.held_root => meta.held_root = true,
            ("reserve_metadata_snap", []) => return Err(libc::EBUSY),
            ("release_metadata_snap", []) if meta.held_root => meta.held_root = false,
            _ => return Err(libc::EINVAL),
        }
        store.dirty = true;
        // As in the kernel, a failed commit shows in the pool's mode and not in the result of the
        // message.
        let _ = self.commit_pool(minor);
        Ok(())
    }

    pub(super) fn dm_status(&self, name: &str) -> Result<Vec<String>, i32> {
        let minor = self.dm.minor_of(name)?;
        let lines = self.dm.active(minor);
        Ok(lines.iter().map(|line| self.status(minor, &line.target)).collect())
    }

    /// Puts a pool into Fail mode, as when even its metadata cannot be read any more.
    pub(super) fn fail_pool(&mut self, name: &str) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        self.set_pool_mode(minor, PoolMode::Fail);
        Ok(())
    }
}
