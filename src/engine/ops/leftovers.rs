//! Takes down and wipes what is left of pools that must not run: pools that were never completed,
//! and pools whose destruction has been decided but was interrupted.

use crate::{
    base::ids::PoolUuid,
    engine::{
        Engine,
        claims::Key,
        dm_names::Role,
        error::{Error, Result},
        luks_devices::{device::LuksDevice, volume_keys},
        metadata::PoolMetadata,
        ops::read_devices::renew,
        registry::{DeviceSet, DeviceSetVerdict},
        setup::{self, DeviceToWipe},
        stack::Stack,
        take_down,
    },
    platform::{
        BlockDevice, Platform,
        dm::{Line, Target},
    },
};

/// Wipes a LUKS device whose creation or wiping was interrupted, but not one that is being made
/// now.
pub(super) fn clear_unfinished(engine: &Engine, device: &BlockDevice) {
    let Ok(_claim) = engine.claims().claim([Key::Device(device.number)]) else { return };
    let clear = || match LuksDevice::read(engine.platform(), device)? {
        Some(luks_device) if luks_device.unfinished => {
            clear_above(engine.platform(), &luks_device)?;
            luks_device.wipe(engine.platform())
        }
        // The request that was making the LUKS device has completed it meanwhile.
        _ => Ok(()),
    };
    log::info!("wiping {}, which an unfinished request left behind", device.path.display());
    if let Err(error) = clear().or_else(|_| clear()) {
        log::warn!(
            "could not wipe {}, which an unfinished request left behind: {}",
            device.path.display(),
            error.sentence()
        );
    }
}

/// Takes down the devices that were made on a LUKS device that belongs to no pool: the creation of
/// its pool failed and could not take them down.
fn clear_above(platform: &dyn Platform, luks_device: &LuksDevice) -> Result<()> {
    let pool = luks_device.token.pool;
    let (opened, joined) = (platform.dm_find(&luks_device.name())?, platform.dm_find(&Role::OriginSub.name(pool))?);
    let is_on = |line: &Line, number| matches!(line.target, Target::Linear { device, .. } if device == number);
    match (opened, joined) {
        (Some(opened), Some(joined)) if joined.table.iter().any(|line| is_on(line, opened.number)) => {
            take_down::take_down(platform, &mut Stack::new(pool), pool)
        }
        _ => Ok(()),
    }
}

/// Takes down all device-mapper devices of a pool that must not run. Logs the error.
pub(super) fn clear_away(engine: &Engine, uuid: PoolUuid, set: &DeviceSet) -> Result<()> {
    let platform = engine.platform();
    if !take_down::partly_up(platform, uuid) && set.luks_devices().next().is_none() {
        return Ok(());
    }
    take_down::clean_up(platform, uuid, Some(set)).inspect_err(|error| {
        log::warn!("could not take down the devices of pool {uuid}: {}", error.sentence());
    })
}

/// Ends what is left of a pool that was never completed or has been destroyed, now that the
/// contents of its devices can be read. Block devices without LUKS that never held metadata stay as
/// they are: they can be used for a new pool.
///
/// Each device to be wiped is read again while it is claimed, so that no other request can start to
/// use it: since the last look it may have become a member of another pool.
///
/// # Errors
/// When a device has become a member of another pool, or when some devices of this pool are still
/// up.
pub(super) fn end(engine: &Engine, uuid: PoolUuid, set: &DeviceSet) -> Result<()> {
    let verdict = set.verdict();
    let ended = match verdict {
        DeviceSetVerdict::Destroying(_) => Error::Destroyed(uuid),
        DeviceSetVerdict::NeverCommitted => Error::NoMetadata(uuid),
        _ => return Ok(()),
    };
    // A request that has claimed a device is using it for something else. The other devices are
    // looked at again with the next event.
    let Ok(_claim) = engine.claims().claim(set.numbers().map(Key::Device)) else { return Err(ended) };
    let mut now = set.clone();
    if let Some(error) = renew(engine, uuid, &mut now) {
        return Err(error);
    }
    let mut set = set.clone();
    set.retain_known(&now);
    if set.is_empty() {
        engine.registry().take(uuid);
        return Err(ended);
    }
    let set = &set;
    match verdict {
        DeviceSetVerdict::Destroying(metadata) => {
            let platform = engine.platform();
            let take_down = || take_down::take_down(platform, &mut Stack::new(uuid), uuid);
            // The devices above must be taken down before their block devices are wiped: later they
            // could not be found any more.
            if let Err(error) = take_down().or_else(|_| take_down()) {
                log::error!(
                    "pool {uuid} is destroyed, but some of its devices could not be taken down: {}",
                    error.sentence()
                );
                engine.registry().note_down(uuid, true, Some(&error));
                return Err(error);
            }
            volume_keys::forget(platform, uuid);
            engine.registry().take(uuid);
            finish_destruction(engine, uuid, set, &metadata);
            Err(Error::Destroyed(uuid))
        }
        DeviceSetVerdict::NeverCommitted => {
            for luks_device in set.luks_devices() {
                let path = luks_device.device.path.display();
                log::info!("wiping {path}, which the unfinished creation of pool {uuid} left behind");
                if let Err(error) = luks_device.wipe(engine.platform()).or_else(|_| luks_device.wipe(engine.platform()))
                {
                    log::warn!(
                        "could not wipe {path}, which the unfinished creation of pool {uuid} left behind: {}",
                        error.sentence()
                    );
                }
            }
            if set.devices().all(|found| set.luks_device(found.bda.header().device).is_some()) {
                engine.registry().take(uuid);
            }
            Err(Error::NoMetadata(uuid))
        }
        _ => Ok(()),
    }
}

/// Completes a destruction that was decided but interrupted.
fn finish_destruction(engine: &Engine, uuid: PoolUuid, set: &DeviceSet, metadata: &PoolMetadata) {
    log::info!("completing the destruction of pool {} ({uuid})", metadata.name);
    // The contents of closed LUKS devices are unknown.
    let closed = set.closed().filter(|luks_device| metadata.devices().any(|device| device == luks_device.id()));
    let closed = closed.map(|luks_device| {
        let path = &luks_device.device.path;
        DeviceToWipe { path, luks_device: Some(luks_device), parts: vec![], stamp: None }
    });
    let open = set.devices().map(|found| {
        let device = found.bda.header().device;
        let (luks_device, parts) = (set.luks_device(device), metadata.luks_device_on(device));
        DeviceToWipe { path: &found.device.path, luks_device, parts, stamp: found.bda.last_update() }
    });
    setup::wipe_destroyed(engine.platform(), closed.chain(open));
}
