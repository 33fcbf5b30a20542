//! Takes a pool's devices down from the top (`docs/spec/engine/storage-stack.md` §10.3), and finds
//! out which of them are up.

use crate::{
    base::ids::PoolUuid,
    engine::{
        dm_names::{self, Role},
        error::Result,
        luks_devices::{device::LuksDevice, volume_keys},
        mdv::Mdv,
        registry::DeviceSet,
        stack::Stack,
    },
    platform::Platform,
};

/// Takes the whole stack of a pool down, from the top.
///
/// # Errors
/// When a device is busy. Devices that were removed before stay removed.
pub(super) fn take_down(platform: &dyn Platform, stack: &mut Stack, uuid: PoolUuid) -> Result<()> {
    take_filesystems_down(platform, uuid)?;
    take_thin_pool_down(platform, stack)?;
    take_backstore_down(platform, stack, uuid)
}

/// Removes the thin devices of all filesystems of a pool that device-mapper lists. A request that
/// panicked may have left devices that the daemon has no record of.
///
/// # Errors
/// When a device is busy. Devices that were removed before stay removed.
pub(super) fn take_filesystems_down(platform: &dyn Platform, uuid: PoolUuid) -> Result<()> {
    let listed = platform.dm_list()?;
    let mut filesystems =
        listed.iter().filter(|device| dm_names::filesystem_of(&device.name).is_some_and(|(pool, _)| pool == uuid));
    filesystems.try_for_each(|device| Ok(platform.dm_remove(&device.name)?))
}

/// The first part of [`take_down`] (`docs/spec/engine/storage-stack.md` §10.3): the devices that
/// the kernel writes to.
///
/// # Errors
/// Those of [`take_down`].
pub(super) fn take_thin_pool_down(platform: &dyn Platform, stack: &mut Stack) -> Result<()> {
    let roles = [Role::ThinPool, Role::ThinData, Role::ThinMeta, Role::ThinMetaSpare];
    roles.into_iter().try_for_each(|role| stack.remove(platform, role))
}

/// The second part of [`take_down`]: the remaining devices.
///
/// # Errors
/// Those of [`take_down`].
pub(super) fn take_backstore_down(platform: &dyn Platform, stack: &mut Stack, uuid: PoolUuid) -> Result<()> {
    Mdv::new(platform, uuid).unmount()?;
    let roles = [Role::Mdv, Role::Crypt, Role::Cache, Role::CacheSub, Role::CacheMeta, Role::OriginSub];
    roles.into_iter().try_for_each(|role| stack.remove(platform, role))
}

/// Takes down all devices of a stopped pool that are up.
///
/// # Errors
/// Those of [`take_down`]. A filesystem in use keeps the pool busy.
pub(super) fn clean_up(platform: &dyn Platform, uuid: PoolUuid, set: Option<&DeviceSet>) -> Result<()> {
    take_down(platform, &mut Stack::new(uuid), uuid)?;
    set.iter().flat_map(|set| set.luks_devices()).try_for_each(|luks_device| luks_device.close(platform))?;
    volume_keys::forget(platform, uuid);
    Ok(())
}

/// Whether any device-mapper device of the pool is up. Does not count thin devices of filesystems,
/// which cannot be up without the other devices.
pub(super) fn partly_up(platform: &dyn Platform, pool: PoolUuid) -> bool {
    match platform.dm_list() {
        Ok(list) => Role::ALL.iter().any(|role| list.iter().any(|device| device.name == role.name(pool))),
        Err(error) => {
            log::warn!("could not list device-mapper devices, looking for each by name: {error}");
            Role::ALL.iter().any(|role| matches!(platform.dm_find(&role.name(pool)), Ok(Some(_))))
        }
    }
}

/// As [`partly_up`], including the crypt devices below the members.
pub(super) fn anything_up(platform: &dyn Platform, pool: PoolUuid, set: &DeviceSet) -> bool {
    let is_open = |luks_device: &LuksDevice| matches!(platform.dm_find(&luks_device.name()), Ok(Some(_)));
    partly_up(platform, pool) || set.luks_devices().any(is_open)
}
