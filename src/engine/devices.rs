//! Devices that a user names: found, looked at, and either known already, or good to be initialized, or refused with the
//! reason (`docs/spec/engine/storage-stack.md` §12).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    base::ids::{DevUuid, PoolUuid},
    engine::{
        Engine,
        bda::{self, Bda, Repair},
        error::{Error, Result, list},
        layout::NewDevice,
        luks_device::{LuksDevice, LuksFormat},
        metadata::{HeaderFlags, MetadataVersion, PoolMetadata, StaticHeader},
        plan::sizes::DEVICE_MIN,
        undo::{Rollback, When},
    },
    platform::{self, BlockDevice, DeviceClass, Geometry, Hold, Platform, Timestamp},
};

/// A device that may be initialized.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What udev knows of it.
    pub device: BlockDevice,
    /// Its size and sector sizes.
    pub geometry: Geometry,
    /// The container that was made on the block device that was named; `device` is what has been opened of it then.
    pub container: Option<LuksDevice>,
    /// Keeps it from everybody else between the first look and the last write.
    hold: Option<Arc<dyn Hold>>,
}

impl Candidate {
    /// Puts it into a container.
    ///
    /// # Errors
    /// When that cannot be made; `undo` takes it away again.
    pub fn format_luks(
        mut self,
        platform: &dyn Platform,
        format: &LuksFormat<'_>,
        undo: &mut Rollback,
    ) -> Result<Candidate> {
        // Who makes the container opens the device exclusively in turn, and refuses one that is in use.
        self.hold = None;
        let (luks_device, device) = format.format(platform, &self.device, self.geometry, undo)?;
        let geometry = platform.geometry(&device.path)?;
        // What udev says of the block device stands in headers that can be read without a key, and so is not recorded.
        Ok(Candidate {
            device: BlockDevice { wwn: None, ..device },
            geometry,
            container: Some(luks_device),
            hold: None,
        })
    }
}

/// Finds the devices behind paths as a user gave them. Paths that lead to one device count once.
///
/// # Errors
/// Paths that are not absolute (all of them named) or do not lead to a block device.
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

/// Looks at a device that is to be initialized for a pool. Whether it is a member of that pool already has been decided
/// before.
///
/// # Errors
/// The reason why it must not be touched.
pub fn examine(engine: &Engine, device: BlockDevice, target: Option<PoolUuid>) -> Result<Candidate> {
    let platform = engine.platform();
    let path = device.path.clone();
    // Told last: what is on a device explains best why it is in use.
    let hold = match platform.hold(&path) {
        Ok(hold) => Some(Arc::from(hold)),
        Err(error) if error.is_busy() => None,
        Err(error) => return Err(error.into()),
    };
    let foreign = |what: &str| Error::Foreign { path: path.clone(), what: what.to_owned() };
    match &device.class {
        DeviceClass::Stratis | DeviceClass::Unowned => {}
        DeviceClass::Luks => return Err(foreign("a LUKS volume")),
        DeviceClass::MultipathMember => {
            return Err(foreign("a path of a multipath device (name the multipath device instead)"));
        }
        DeviceClass::Other(what) => return Err(foreign(what)),
    }
    let contents = platform.contents(&path)?;
    if contents.partitions > 0 {
        return Err(foreign(&format!("a table of {} partitions", contents.partitions)));
    }
    if let Some(superblock) = contents.superblock.as_deref().filter(|kind| *kind != "stratis") {
        return Err(foreign(&format!("a {superblock} signature")));
    }
    let geometry = platform.geometry(&path)?;
    if geometry.read_only {
        return Err(Error::ReadOnly { path });
    }
    match Bda::load(platform, &path, Repair::ReadOnly)? {
        Some(bda) => {
            if !left_over(engine, &path, &bda)? {
                let pool = bda.header().pool;
                return Err(match target {
                    Some(target) if target == pool => Error::UnknownMember { path },
                    _ => Error::OwnedByPool { path, pool },
                });
            }
            log::info!("{} was left over by an unfinished request of pool {}", path.display(), bda.header().pool);
        }
        // Where a fresh look finds nothing of Stratis either, the device database is behind: the device was wiped just now.
        None if contents.superblock.is_some() => return Err(Error::NoSignature { path }),
        None => {}
    }
    if hold.is_none() {
        return Err(Error::InUse { path });
    }
    if geometry.size < DEVICE_MIN {
        return Err(Error::TooSmall { path, size: geometry.size, minimum: DEVICE_MIN });
    }
    Ok(Candidate { device, geometry, container: None, hold })
}

/// Whether a device with a signature belongs to nobody all the same: its initialization was cut short before its pool's
/// metadata named it, or its pool's destruction was cut short after it had been decided.
fn left_over(engine: &Engine, path: &Path, bda: &Bda) -> Result<bool> {
    let platform = engine.platform();
    let header = bda.header();
    match bda.read_json(platform, path)? {
        Some(json) if !is_condemned(bda, &json) => Ok(false),
        None if !header.flags.contains(HeaderFlags::UNCOMMITTED) => Ok(false),
        // Newer metadata on another device may say otherwise.
        _ => Ok(!engine.registry().lists(header.pool, header.device)),
    }
}

fn is_condemned(bda: &Bda, json: &[u8]) -> bool {
    let metadata = PoolMetadata::parse(json, bda.header().version).ok();
    metadata.zip(bda.last_update()).is_some_and(|(metadata, stamp)| metadata.is_condemned(stamp))
}

/// Wipes devices side by side; the results in their order. One that somebody uses is not ours any more, and is left alone.
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

/// A device that has just been initialized: its area as it is on disk now.
#[derive(Debug)]
pub struct Initialized {
    /// The device.
    pub candidate: Candidate,
    /// Its Stratis area.
    pub bda: Bda,
}

/// A device with the header that it is to get. Space on it can be planned before anything is written.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The device.
    pub candidate: Candidate,
    /// Its header, marked as not yet committed: until pool metadata names the device and the mark is removed, a crash leaves
    /// it to nobody.
    pub header: StaticHeader,
}

impl<'a> From<&'a Planned> for NewDevice<'a> {
    fn from(planned: &'a Planned) -> NewDevice<'a> {
        NewDevice { header: &planned.header, hardware_info: planned.candidate.device.wwn.as_deref() }
    }
}

/// Gives headers to devices that are to be initialized for a pool.
pub fn plan(
    platform: &dyn Platform,
    pool: PoolUuid,
    version: MetadataVersion,
    candidates: Vec<Candidate>,
) -> Vec<Planned> {
    let plan = |candidate: Candidate| {
        let device = candidate.container.as_ref().map(LuksDevice::id);
        let device = device.unwrap_or_else(|| DevUuid::from_random(platform.random()));
        let size = candidate.geometry.size;
        let mut header = StaticHeader::new(pool, device, version, size, platform.now().seconds);
        header.flags = HeaderFlags::UNCOMMITTED;
        Planned { candidate, header }
    };
    candidates.into_iter().map(plan).collect()
}

/// Wipes devices that were initialized in vain. Those with the newest metadata come last, and only when the others are
/// wiped: it says that there is no pool, where others may hold metadata that says nothing of it.
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

/// Initializes devices, side by side.
///
/// # Errors
/// When one cannot be written. `undo` wipes all of them: also one whose write failed half way may have a signature.
pub fn initialize(platform: &dyn Platform, planned: Vec<Planned>, undo: &mut Rollback) -> Result<Vec<Initialized>> {
    let paths: Vec<PathBuf> = planned.iter().map(|planned| planned.candidate.device.path.clone()).collect();
    undo.push(When::Unused, format!("wipe {}", list(&paths)), move |platform| wipe(platform, &paths));
    let headers: Vec<_> = planned.iter().map(|p| (p.candidate.device.path.as_path(), p.header)).collect();
    let areas = Bda::initialize(platform, &headers)?;
    let mut done = Vec::new();
    for (Planned { mut candidate, .. }, bda) in planned.into_iter().zip(areas) {
        // From here on it is device-mapper that uses it.
        candidate.hold = None;
        if let Some(luks_device) = &mut candidate.container {
            luks_device.finish(platform, undo)?;
        }
        done.push(Initialized { candidate, bda });
    }
    Ok(done)
}
