//! Mounts, and the use of the mounted file systems. The rules are in `xfs`.

use std::path::Path;

use nix::libc;

use super::{
    dm_devices::DM_MAJOR,
    incomplete::{Incomplete, Patience},
    machine::MachineState,
    xfs::{BLOCK, Files, FilesKey, MountedXfs, PRIVATE, Superblock},
    xfs_log,
};
use crate::{
    base::units::Bytes,
    platform::{
        DeviceNumber, Usage,
        dm::{Line, Target},
    },
};

/// Divisor for the default usage of a file system (logs and tables).
const USED_PART: u128 = 128;

impl MachineState {
    pub(super) fn superblock(
        &self,
        device: DeviceNumber,
        patience: Patience,
    ) -> Result<Option<Superblock>, Incomplete> {
        let mut sector = [0; 512];
        self.read_at(device, 0, &mut sector, patience)?;
        Ok(Superblock::decode(&sector))
    }

    /// Whether the device is open exclusively.
    pub(super) fn is_in_use(&self, device: DeviceNumber) -> bool {
        self.dm.is_open(device)
            || self.held.contains_key(&device)
            || self.disks.get(device).is_some_and(|disk| disk.shape.in_use)
    }

    pub(super) fn mount(&mut self, device: DeviceNumber, at: &Path, options: &str) -> Result<(), Incomplete> {
        let mut nouuid = false;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "nouuid" => nouuid = true,
                "ro" | "rw" | "defaults" => {}
                _ => return Err(Incomplete::Errno(libc::EINVAL)),
            }
        }
        if let Some(mount) = self.xfs.mounts.get(at) {
            return if mount.device == device { Ok(()) } else { Err(Incomplete::Errno(libc::EBUSY)) };
        }
        if self.is_in_use(device) && !self.xfs.is_mounted(device) {
            return Err(Incomplete::Errno(libc::EBUSY));
        }
        let superblock = self.superblock(device, Patience::Wait)?.ok_or(Incomplete::Errno(libc::EINVAL))?;
        let size = self.size_of(device).unwrap_or(0);
        let twins = self.xfs.by_uuid.get(&superblock.uuid);
        let twin = twins.is_some_and(|devices| !devices.contains(&device));
        if superblock.blocks.saturating_mul(BLOCK) > size || (twin && !nouuid) {
            return Err(Incomplete::Errno(libc::EINVAL));
        }
        if !self.xfs.files.contains_key(&superblock.key) {
            // A foreign XFS: real, but without the files that only the simulation knows.
            self.xfs.new_files(superblock.key);
        }
        if !self.accepts_log(device, &superblock)? {
            return Err(Incomplete::Errno(libc::EUCLEAN));
        }
        self.end_log(device, &superblock, true)?;
        let mut parts = at.components().skip(1);
        let process = parts.next().filter(|part| part.as_os_str() == "proc").and_then(|_| parts.next());
        let process = process.and_then(|part| part.as_os_str().to_str()?.parse().ok());
        let mount = MountedXfs { device, key: superblock.key, uuid: superblock.uuid, process };
        self.xfs.by_uuid.entry(mount.uuid).or_default().insert(device);
        self.xfs.by_device.entry(device).or_default().push(at.to_owned());
        self.xfs.mounts.insert(at.to_owned(), mount);
        self.dm.open(device);
        Ok(())
    }

    /// Whether the log of an XFS belongs to it.
    pub(super) fn accepts_log(&self, device: DeviceNumber, superblock: &Superblock) -> Result<bool, Incomplete> {
        let mut record = [0; xfs_log::RECORD];
        self.read_at(device, superblock.record(superblock.end), &mut record, Patience::Wait)?;
        Ok(xfs_log::is_accepted(&record, superblock.end, &superblock.uuid))
    }

    /// Writes another record to the log: that of a mount, or the last one of an unmount.
    fn end_log(&mut self, device: DeviceNumber, superblock: &Superblock, dirty: bool) -> Result<(), Incomplete> {
        let end = superblock.next_record();
        let record = xfs_log::record(end, &superblock.uuid, !dirty, xfs_log::RecordWriter::Kernel);
        // Durable before the superblock names it: the kernel searches the log, and would find the
        // record before.
        self.write_at(device, superblock.record(end), &record, Patience::Wait)?;
        self.flush(device, Patience::Wait)?;
        self.write_at(device, 0, &superblock.with_end(end, dirty).encode(), Patience::Wait)?;
        self.flush(device, Patience::Wait)
    }

    /// Returns false if nothing was mounted there.
    pub(super) fn unmount(&mut self, at: &Path) -> Result<bool, Incomplete> {
        let Some(mount) = self.xfs.mounts.get(at) else { return Ok(false) };
        let (device, key, uuid) = (mount.device, mount.key, mount.uuid);
        let last = self.xfs.by_device.get(&device).is_none_or(|all| all.len() == 1);
        if last {
            let alive = !self.xfs.is_shut_down(device);
            let synced = if alive { self.sync_file_system(device) } else { Err(Incomplete::Errno(libc::EIO)) };
            let synced = synced.and_then(|()| {
                let superblock = self.superblock(device, Patience::Wait)?.filter(|found| found.key == key);
                let Some(superblock) = superblock else { return Ok(()) };
                self.end_log(device, &superblock, false)
            });
            match synced {
                Ok(()) => {}
                // A dead device does not stay mounted. Changes that could not be written are lost.
                Err(Incomplete::Errno(_)) => self.lose_files(device, key),
                Err(wait) => return Err(wait),
            }
            self.xfs.shut_down.remove(&device);
        }
        self.xfs.mounts.remove(at);
        if let Some(all) = self.xfs.by_device.get_mut(&device) {
            all.retain(|point| point != at);
        }
        if last {
            self.xfs.by_device.remove(&device);
            if let Some(devices) = self.xfs.by_uuid.get_mut(&uuid) {
                devices.remove(&device);
                if devices.is_empty() {
                    self.xfs.by_uuid.remove(&uuid);
                }
            }
        }
        self.dm.close(device);
        self.left(device);
        Ok(true)
    }

    /// Loses the files of a device that are not durable, as a power cut does.
    fn lose_files(&mut self, device: DeviceNumber, key: FilesKey) {
        if self.is_thin(device) {
            return;
        }
        if let Some(files) = self.xfs.files.get_mut(&key) {
            files.lose_power(&mut self.chance);
        }
    }

    /// Makes the log of a mounted file system durable, or shuts the file system down.
    pub(super) fn write_log(&mut self, device: DeviceNumber) -> Result<(), Incomplete> {
        if self.xfs.is_shut_down(device) {
            return Err(Incomplete::Errno(libc::EIO));
        }
        let written = self.flush(device, Patience::Wait);
        if let Err(Incomplete::Errno(_)) = written {
            self.xfs.shut_down(device);
        }
        written
    }

    /// Writes out everything that a mounted file system holds.
    pub(super) fn sync_file_system(&mut self, device: DeviceNumber) -> Result<(), Incomplete> {
        self.write_log(device)?;
        let at = self.xfs.by_device.get(&device).and_then(|all| all.first());
        let key = at.and_then(|at| self.xfs.mounts.get(at)).map(|mount| mount.key).filter(|_| !self.is_thin(device));
        if let Some(files) = key.and_then(|key| self.xfs.files.get_mut(&key)) {
            files.sync_all();
        }
        Ok(())
    }

    pub(super) fn is_thin_named(&self, name: &str) -> bool {
        self.dm.by_name(name).is_some_and(|minor| self.is_thin(DeviceNumber { major: DM_MAJOR, minor }))
    }

    fn is_thin(&self, device: DeviceNumber) -> bool {
        let thin = |line: &Line| matches!(line.target, Target::Thin { .. });
        device.major == DM_MAJOR && self.dm.get(device).is_some_and(|found| found.table.iter().any(thin))
    }

    pub(super) fn usage(&self, at: &Path) -> Result<(DeviceNumber, Usage), Incomplete> {
        let device = self.xfs.device_at(at).ok_or(Incomplete::Errno(libc::ENOENT))?;
        let superblock = self.superblock(device, Patience::Wait)?.ok_or(Incomplete::Errno(libc::EIO))?;
        let total = Bytes(u128::from(superblock.blocks) * u128::from(BLOCK));
        let used = self.xfs.used.get(&device).copied().unwrap_or(Bytes(total.0 / USED_PART));
        Ok((device, Usage { total, used: used.min(total) }))
    }

    /// The files of the file system that contains a private path, and the path within it. Checks
    /// that the device works.
    pub(super) fn files(&mut self, path: &str) -> Result<(&mut Files, String), Incomplete> {
        let full = Path::new(PRIVATE).join(path);
        let at =
            full.ancestors().find(|at| self.xfs.mounts.contains_key(*at)).ok_or(Incomplete::Errno(libc::ENOENT))?;
        let mount = &self.xfs.mounts[at];
        let (device, key) = (mount.device, mount.key);
        if self.is_thin(device) {
            return Err(Incomplete::Errno(libc::EOPNOTSUPP));
        }
        if self.xfs.is_shut_down(device) {
            return Err(Incomplete::Errno(libc::EIO));
        }
        let inside = full.strip_prefix(at).unwrap_or(Path::new("")).to_string_lossy().into_owned();
        let superblock = self.superblock(device, Patience::Wait).inspect_err(|incomplete| {
            if matches!(incomplete, Incomplete::Errno(_)) {
                self.xfs.shut_down(device);
            }
        })?;
        superblock.filter(|superblock| superblock.key == key).ok_or(Incomplete::Errno(libc::EIO))?;
        let files = self.xfs.files.get_mut(&key).ok_or(Incomplete::Errno(libc::EIO))?;
        Ok((files, inside))
    }

    /// The device that contains a private path.
    pub(super) fn device_of_file(&self, path: &str) -> Option<DeviceNumber> {
        let full = Path::new(PRIVATE).join(path);
        full.ancestors().find_map(|at| self.xfs.device_at(at))
    }
}
