//! Volume keys of running pools in the kernel's keyring (`docs/spec/engine/encryption.md` §6).

use crate::{base::ids::PoolUuid, platform::Platform};

/// Name of a pool's volume key in the daemon's keyring.
pub fn name(pool: PoolUuid) -> String {
    format!("stratis-1-vk-{}", pool.hyphenated())
}

/// Forgets the volume key of a pool that is down.
pub fn forget(platform: &dyn Platform, uuid: PoolUuid) {
    if let Err(error) = platform.volume_key_unset(&name(uuid)) {
        log::error!("the volume key of pool {uuid} could not be removed from the keyring: {error}");
    }
}
