//! What a device carries, as far as discovery needs to know: the signature of a pool, or no Stratis
//! contents.

use crate::{
    base::ids::PoolUuid,
    engine::{
        Engine,
        claims::Key,
        error::Error,
        luks_devices::device::LuksDevice,
        ops::{leftovers::clear_unfinished, read_devices::read},
        registry::Seen,
        ties::Ties,
    },
    platform::{BlockDevice, DeviceClass},
    view::LeftAsideView,
};

/// The contents of a device.
pub(super) enum Look {
    Seen(Seen),
    /// The device has no Stratis contents.
    Nothing,
    /// The device could not be read, so what is known about it stays valid.
    Unread,
}

impl Look {
    pub fn seen(self) -> Option<Seen> {
        match self {
            Look::Seen(seen) => Some(seen),
            Look::Nothing | Look::Unread => None,
        }
    }
}

/// Whether a device may have Stratis contents.
pub(super) fn is_ours(device: &BlockDevice) -> bool {
    matches!(device.class, DeviceClass::Stratis | DeviceClass::Luks)
}

/// Reads the Stratis area of a device, or the header of a LUKS device of a pool. A device that
/// cannot be read is logged and left alone.
pub(super) fn identify(engine: &Engine, device: BlockDevice) -> Look {
    let look = || match device.class {
        DeviceClass::Stratis => Ok(read(engine, device.clone())?.map(Seen::Area)),
        DeviceClass::Luks => Ok(LuksDevice::read(engine.platform(), &device)?.map(Seen::LuksDevice)),
        _ => Ok(None),
    };
    let path = device.path.clone();
    // Try once more after an error: it may be long before the next look, and a pool does not start
    // without the device.
    match look().or_else(|_: Error| look()) {
        Ok(Some(Seen::LuksDevice(luks_device))) if luks_device.unfinished => {
            clear_unfinished(engine, &luks_device.device);
            Look::Nothing
        }
        Ok(seen) => seen.map_or(Look::Nothing, Look::Seen),
        Err(error) => {
            log::warn!("could not read {}, so it is ignored: {}", path.display(), error.sentence());
            Look::Unread
        }
    }
}

/// The claim of the request that initializes the device, makes its pool or sets the pool up. For
/// LUKS devices that join a running pool, the claim to look for is the one on the pool's growth.
pub(super) fn in_the_making(engine: &Engine, seen: &Seen) -> Option<Key> {
    let keys = [Key::Pool(seen.pool()), Key::Device(seen.device().number), Key::Growth(seen.pool())];
    keys.into_iter().find(|key| engine.claims().is_claimed(key))
}

/// Asks the kernel about devices that carry the same identity.
pub(super) fn settle(engine: &Engine, pool: PoolUuid) {
    let doubt = engine.registry().doubt(pool);
    if let Some(doubt) = doubt {
        let ties = Ties::look(engine.platform(), pool, &doubt);
        engine.registry().note_ties(pool, ties);
    }
}

pub(super) fn tell_of(pool: PoolUuid, aside: &LeftAsideView) {
    let LeftAsideView { path, device, reason } = aside;
    log::warn!("{} (device {device} of pool {pool}) is left aside: {reason}", path.display());
}
