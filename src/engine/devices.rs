//! Block devices that a user names. The daemon finds and examines each. It is then already known,
//! fit to be initialized, or refused with a reason (`docs/spec/engine/storage-stack.md` §12).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    base::ids::{DevUuid, PoolUuid},
    engine::{
        bda::{self, Bda, Repair},
        error::{Error, Result, list},
        layout::NewDevice,
        luks_devices::device::{LuksDevice, LuksFormat},
        metadata::{HeaderFlags, MetadataVersion, StaticHeader},
        undo::{Rollback, When},
    },
    platform::{self, BlockDevice, DeviceHold, Geometry, Platform, Timestamp},
};

/// A device that may be initialized.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What udev reports about it.
    pub device: BlockDevice,
    /// Its size and sector sizes.
    pub geometry: Geometry,
    /// The LUKS device that was made on the block device that the user named. `device` is then the
    /// crypt device on it.
    pub luks_device: Option<LuksDevice>,
    /// Keeps other programs from using the device between the first look and the last write.
    pub(super) hold: Option<Arc<dyn DeviceHold>>,
}

impl Candidate {
    /// Turns the block device into a LUKS device.
    ///
    /// # Errors
    /// When the LUKS device cannot be made. `undo` removes it again.
    pub fn format_luks(
        mut self,
        platform: &dyn Platform,
        format: &LuksFormat,
        undo: &mut Rollback,
    ) -> Result<Candidate> {
        // The code that makes the LUKS device opens the device exclusively itself, and refuses a
        // device in use.
        self.hold = None;
        let (luks_device, device) = format.format(platform, &self.device, self.geometry, undo)?;
        let geometry = platform.geometry(&device.path)?;
        // The headers of a LUKS device can be read without a key, so what udev reports about the
        // block device is not recorded there.
        Ok(Candidate {
            device: BlockDevice { wwn: None, ..device },
            geometry,
            luks_device: Some(luks_device),
            hold: None,
        })
    }
}

/// Finds the devices behind the paths that a user gave. Several paths to one device count once.
///
/// # Errors
/// Paths that are not absolute (the error names all of them) or do not lead to a block device.
pub fn find(platform: &dyn Platform, paths: &[PathBuf]) -> Result<Vec<BlockDevice>> {
    let relative: Vec<PathBuf> = paths.iter().filter(|path| !path.is_absolute()).cloned().collect();
    if !relative.is_empty() {
        return Err(Error::RelativePaths(relative));
    }
    let mut found: Vec<BlockDevice> = Vec::new();
    for path in paths {
        let device = platform.find_device(path)?;
        match found.iter().find(|other| other.number == device.number) {
            Some(other) if other.path != device.path => {
                return Err(Error::SameDevice(other.path.clone(), device.path));
            }
            Some(_) => {}
            None => found.push(device),
        }
    }
    Ok(found)
}

/// Wipes devices in parallel. The results are in their order. A device in use no longer belongs to
/// Stratis and is left alone.
pub fn wipe_each<'a>(platform: &dyn Platform, paths: impl IntoIterator<Item = &'a Path>) -> Vec<Result<()>> {
    let held: Vec<_> = paths.into_iter().map(|path| (path, platform.hold(path))).collect();
    let ours = held.iter().filter(|(_, hold)| hold.is_ok()).map(|(path, _)| *path);
    let mut wiped = bda::wipe_each(platform, ours).into_iter();
    let result = |(path, hold): (&Path, platform::Result<_>)| match hold {
        Ok(_hold) => wiped.next().expect("each device that is held has been wiped").map_err(Error::from),
        Err(error) if error.is_busy() => Err(Error::InUse { path: path.to_owned() }),
        Err(error) => Err(error.into()),
    };
    held.into_iter().map(result).collect()
}

/// A device that has just been initialized, with its BDA as it is on disk.
#[derive(Debug)]
pub struct Initialized {
    /// The device.
    pub candidate: Candidate,
    /// Its BDA.
    pub bda: Bda,
}

/// A device with the header that it will get. Space on it can be planned before anything is
/// written.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The device.
    pub candidate: Candidate,
    /// Its header, marked as not committed. Until pool metadata names the device and the mark is
    /// removed, the device belongs to no pool after a crash.
    pub header: StaticHeader,
}

impl<'a> From<&'a Planned> for NewDevice<'a> {
    fn from(planned: &'a Planned) -> NewDevice<'a> {
        NewDevice { header: &planned.header, hardware_info: planned.candidate.device.wwn.as_deref() }
    }
}

/// Plans the headers of devices that are to be initialized for a pool.
pub fn plan(
    platform: &dyn Platform,
    pool: PoolUuid,
    version: MetadataVersion,
    candidates: Vec<Candidate>,
) -> Vec<Planned> {
    let plan = |candidate: Candidate| {
        let device = candidate.luks_device.as_ref().map(LuksDevice::id);
        let device = device.unwrap_or_else(|| DevUuid::from_random(platform.random()));
        let size = candidate.geometry.size;
        let mut header = StaticHeader::new(pool, device, version, size, platform.now().seconds);
        header.flags = HeaderFlags::UNCOMMITTED;
        Planned { candidate, header }
    };
    candidates.into_iter().map(plan).collect()
}

/// Wipes devices that were initialized for a pool that was not completed. Devices with the newest
/// metadata come last, and only after all others were wiped: their metadata says that there is no
/// pool, while the metadata on the others may not say so.
fn wipe(platform: &dyn Platform, paths: &[PathBuf]) -> Result<()> {
    let stamp = |path: &Path| Bda::load(platform, path, Repair::ReadOnly).ok()??.last_update();
    let stamped: Vec<_> = paths.iter().map(|path| (path.as_path(), stamp(path))).collect();
    let newest = stamped.iter().filter_map(|(_, stamp)| *stamp).max();
    let is_telling = |stamp: &Option<Timestamp>| stamp.is_some() && *stamp == newest;
    let (telling, others): (Vec<_>, Vec<_>) = stamped.into_iter().partition(|(_, stamp)| is_telling(stamp));
    for group in [others, telling] {
        let wiped = wipe_each(platform, group.into_iter().map(|(path, _)| path));
        wiped.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

/// Initializes devices in parallel.
///
/// # Errors
/// When a device cannot be written. `undo` wipes all of them, because even a device whose write
/// failed half way may have a signature.
pub fn initialize(platform: &dyn Platform, planned: Vec<Planned>, undo: &mut Rollback) -> Result<Vec<Initialized>> {
    let paths: Vec<PathBuf> = planned.iter().map(|planned| planned.candidate.device.path.clone()).collect();
    undo.push(When::Unused, format!("wipe {}", list(&paths)), move |platform| wipe(platform, &paths));
    let headers: Vec<_> = planned.iter().map(|p| (p.candidate.device.path.as_path(), p.header)).collect();
    let areas = Bda::initialize(platform, &headers)?;
    let mut done = Vec::new();
    for (Planned { mut candidate, .. }, bda) in planned.into_iter().zip(areas) {
        // From here on device-mapper uses the device.
        candidate.hold = None;
        if let Some(luks_device) = &mut candidate.luks_device {
            luks_device.finish(platform, undo)?;
        }
        done.push(Initialized { candidate, bda });
    }
    Ok(done)
}
