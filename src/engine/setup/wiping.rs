//! Wipes devices that a pool has given up: those of a destroyed pool, and those of a cache that the
//! pool no longer uses.

use std::path::Path;

use crate::{
    engine::{
        devices,
        error::{Error, Result},
        luks_devices::{device::LuksDevice, lifecycle},
        metadata::pool::Segment,
    },
    platform::{Platform, Timestamp},
};

/// A device of a destroyed pool, or of a cache that has been given up.
pub(in crate::engine) struct DeviceToWipe<'a> {
    /// The device that holds the Stratis area.
    pub path: &'a Path,
    /// The LUKS device below the device, if any.
    pub luks_device: Option<&'a LuksDevice>,
    /// Where parts of the pool's own LUKS device lie on the device.
    pub parts: Vec<Segment>,
    /// When the pool metadata on the device was written, if known.
    pub stamp: Option<Timestamp>,
}

impl DeviceToWipe<'_> {
    /// Wipes all but the Stratis area of a device: the parts of the pool's own LUKS device on it,
    /// and the LUKS device below it.
    fn wipe_other(&self, platform: &dyn Platform) -> Result<()> {
        self.parts.iter().try_for_each(|part| lifecycle::wipe(platform, self.path, part.start, part.length))?;
        self.luks_device.map_or(Ok(()), |luks_device| luks_device.wipe(platform))
    }
}

/// Wipes devices, the Stratis areas side by side. A device that cannot be wiped does not keep the
/// others from being wiped. Each device is tried twice, because it may be a long time before it is
/// looked at again. Returns those that could not be wiped.
pub(super) fn wipe_each<'a>(platform: &dyn Platform, to_wipe: Vec<DeviceToWipe<'a>>) -> Vec<(DeviceToWipe<'a>, Error)> {
    let wipe = |to_wipe: Vec<DeviceToWipe<'a>>| -> Vec<(DeviceToWipe<'a>, Error)> {
        let mut wiped: Vec<Result<()>> = to_wipe.iter().map(|device| device.wipe_other(platform)).collect();
        let areas = |(at, device): (usize, &DeviceToWipe<'a>)| {
            let is_next = device.luks_device.is_none() && wiped[at].is_ok();
            is_next.then_some((at, device.path))
        };
        let areas: Vec<(usize, &Path)> = to_wipe.iter().enumerate().filter_map(areas).collect();
        let results = devices::wipe_each(platform, areas.iter().map(|(_, path)| *path));
        areas.iter().zip(results).for_each(|((at, _), result)| wiped[*at] = result);
        to_wipe.into_iter().zip(wiped).filter_map(|(device, wiped)| Some((device, wiped.err()?))).collect()
    };
    let left = wipe(to_wipe);
    wipe(left.into_iter().map(|(device, _)| device).collect())
}

/// Wipes the devices of a destroyed pool, with the parts of the pool's LUKS2 header on them. The
/// devices with the newest metadata, which says that the pool is destroyed, are wiped last, and
/// only after all others: cache devices hold no pool metadata, and some devices may hold metadata
/// that does not say so. What cannot be wiped now is wiped when the devices are next looked at.
pub(in crate::engine) fn wipe_destroyed<'a>(platform: &dyn Platform, to_wipe: impl Iterator<Item = DeviceToWipe<'a>>) {
    let wipe = |to_wipe: Vec<DeviceToWipe<'_>>| {
        let left = wipe_each(platform, to_wipe);
        for (DeviceToWipe { path, .. }, error) in &left {
            let (path, what) = (path.display(), error.sentence());
            log::error!("cannot wipe {path}, which belongs to a pool that has been destroyed: {what}");
        }
        left.is_empty()
    };
    let to_wipe: Vec<_> = to_wipe.collect();
    let newest = to_wipe.iter().filter_map(|device| device.stamp).max();
    let (telling, others): (Vec<_>, Vec<_>) =
        to_wipe.into_iter().partition(|device| device.stamp.is_some_and(|s| Some(s) == newest));
    if wipe(others) {
        wipe(telling);
    }
}
