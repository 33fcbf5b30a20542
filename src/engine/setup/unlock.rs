//! Encrypted pools at set-up: opens or adopts LUKS devices, repairs their headers, and stores in
//! the pool what the headers say (`docs/spec/engine/encryption.md` §6.3, 6.4, 7.3).

use std::{path::Path, sync::Arc};

use crate::{
    base::{
        ids::PoolUuid,
        name::Name,
        units::{Bytes, Sectors},
    },
    engine::{
        bda::Choose,
        dm_names::Role,
        encryption::{Info, Kind, UnlockMethod},
        error::{Error, Result},
        luks_devices::{
            device::{self, LuksDevice},
            lifecycle::{self, UnlockOptions},
            volume_keys,
        },
        metadata::PoolMetadata,
        pool::{Members, Pool},
        registry::DeviceSet,
        stack::remove_surely,
        undo::{Rollback, When},
    },
    platform::{
        Platform,
        luks::{DataEncryption, Header, ReencryptionMode},
    },
    view::{self, Availability},
};

/// How the LUKS devices below the members can be unlocked. Repairs headers where a change of
/// bindings was interrupted. `None`: no member lies on a LUKS device.
pub(super) fn encryption_of(
    platform: &dyn Platform,
    uuid: PoolUuid,
    members: &mut Members,
    name: &str,
) -> Result<Option<Info>> {
    let all = members.values().len();
    let mut luks_devices: Vec<&mut LuksDevice> = members.luks_devices_mut().collect();
    if luks_devices.is_empty() {
        return Ok(None);
    }
    if luks_devices.len() < all {
        return Err(Error::PartlyEncrypted(uuid));
    }
    if let Err(error) = device::mend(platform, &mut luks_devices) {
        log::warn!("pool {name}: cannot repair the LUKS2 headers of its devices: {}", error.sentence());
    }
    for luks_device in
        luks_devices.iter_mut().filter(|luks_device| luks_device.token.pool_name.as_deref() != Some(name))
    {
        if let Err(error) = luks_device.rename(platform, name) {
            let path = luks_device.device.path.display();
            log::warn!("pool {name}: cannot write its name into the header of {path}: {}", error.sentence());
        }
    }
    Ok(Info::of_devices(luks_devices.iter().map(|luks_device| Some(&luks_device.bindings)))?)
}

/// Stores in the pool how its LUKS devices can be unlocked, and whether a re-encryption job has to
/// continue.
pub(super) fn note_encryption(platform: &dyn Platform, pool: &mut Pool, encryption: Option<Info>) {
    let Some(info) = encryption else { return };
    if let Err(error) = info.agreed() {
        pool.restrict(Availability::NoRequests, error.to_string());
    }
    pool.note_encryption(Some(info));
    let unfinished = pool.members.luks_devices().map(|luks_device| luks_device.state).find_map(|state| match state {
        DataEncryption::Unfinished { mode, .. } => Some(mode),
        _ => None,
    });
    if let Some(mode) = unfinished {
        pool.note_job(Some(Arc::new(view::ReencryptionJob::new(mode, platform.now()))));
    }
}

/// Wipes LUKS devices whose addition to the pool was interrupted: they would stay open beside the
/// pool. Closes other LUKS devices that the pool metadata does not name.
pub(super) fn discard_unrecorded(platform: &dyn Platform, set: &DeviceSet, meta: &PoolMetadata) {
    let unrecorded = set.luks_devices().filter(|luks_device| meta.devices().all(|device| device != luks_device.id()));
    for luks_device in unrecorded {
        let path = luks_device.device.path.display();
        if set.devices().any(|found| found.bda.header().device == luks_device.id() && found.is_uncommitted()) {
            log::info!("wiping {path}, which an interrupted addition to the pool left behind");
            if let Err(error) = luks_device.wipe(platform).or_else(|_| luks_device.wipe(platform)) {
                log::warn!("cannot wipe {path}: {}", error.sentence());
            }
        } else if let Err(error) = luks_device.close(platform) {
            log::warn!("cannot close {path}, which does not belong to the pool: {}", error.sentence());
        }
    }
}

/// What to do about the LUKS device of a version 2 pool (`docs/spec/engine/encryption.md`
/// §6.4). The pool's record decides whether the pool is encrypted. The record is written after a
/// header has been made and before any data is encrypted, and again after all data has been
/// decrypted and before the header is wiped.
#[derive(Debug, PartialEq, Eq)]
enum Containment {
    /// The pool has no LUKS device.
    None,
    /// The LUKS device has to be opened.
    Open(Header),
    /// The pool has been decrypted, but the record does not say so yet.
    Decrypted,
    /// The LUKS device holds no data: the record says that the pool is not encrypted.
    Stale,
}

fn containment(pool: &Name, recorded: bool, header: Option<Header>) -> Result<Containment> {
    let untouched = DataEncryption::Unfinished { mode: ReencryptionMode::Encrypt, done: Bytes(0) };
    match (recorded, header) {
        (false, None) => Ok(Containment::None),
        (true, None) => Err(Error::NoHeader { pool: pool.clone() }),
        (true, Some(header)) if header.state == DataEncryption::Clear => Ok(Containment::Decrypted),
        (true, Some(header)) => Ok(Containment::Open(header)),
        (false, Some(header)) if [DataEncryption::Clear, untouched].contains(&header.state) => Ok(Containment::Stale),
        (false, Some(_)) => Err(Error::UnrecordedHeader { pool: pool.clone() }),
    }
}

/// Opens the LUKS device of a version 2 pool, if it has one, or adopts its open crypt device.
pub(super) fn open_luks_device(
    platform: &dyn Platform,
    pool: &mut Pool,
    unlock: Option<&UnlockOptions>,
    undo: &mut Rollback,
) -> Result<()> {
    let device = platform.dm_node(&pool.stack.name(Role::Cache));
    let found = pool.stack.find(platform, Role::Crypt)?;
    let header = platform.luks_read(&device)?;
    match containment(pool.name(), pool.meta().is_encrypted(), header)? {
        Containment::None => Ok(()),
        Containment::Stale => {
            log::info!("pool {}: removing a LUKS2 header with nothing behind it", pool.name());
            drop_luks_device(platform, pool)
        }
        Containment::Decrypted => {
            log::info!("pool {}: recording that it has been decrypted", pool.name());
            pool.change(platform, Choose::Everywhere, PoolMetadata::set_clear)?;
            drop_luks_device(platform, pool)
        }
        Containment::Open(header) => {
            pool.note_header(&header)?;
            match found {
                Some(_) => adopt_luks_device(platform, pool, &device, unlock.is_some()),
                None => open_closed(platform, pool, unlock, &device, undo)?,
            }
            let opened = pool.shape().backstore().into_iter().filter(|layer| layer.role == Role::Crypt);
            pool.stack.ensure_all(platform, opened, undo)?;
            if let DataEncryption::Unfinished { mode, .. } = header.state {
                pool.note_job(Some(Arc::new(view::ReencryptionJob::new(mode, platform.now()))));
            }
            mend_header(platform, pool, &device, &header);
            Ok(())
        }
    }
}

fn open_closed(
    platform: &dyn Platform,
    pool: &mut Pool,
    unlock: Option<&UnlockOptions>,
    device: &Path,
    undo: &mut Rollback,
) -> Result<()> {
    let locked = || Error::NoUnlockMethod { pool: pool.name().clone() };
    let UnlockOptions { method, passphrase } = unlock.ok_or_else(locked)?;
    let method = method.ok_or_else(locked)?;
    let name = pool.stack.name(Role::Crypt);
    let opened = name.clone();
    undo.push(When::Always, format!("remove {name}"), move |platform| remove_surely(platform, &opened));
    let bindings = pool.encryption()?.agreed()?.clone();
    let volume_key = lifecycle::open(platform, device, Some(&name), &bindings, method, passphrase.as_ref())
        .map_err(|error| error.naming_pool(pool.name()))?;
    let key_name = volume_keys::name(pool.uuid());
    let unset = key_name.clone();
    undo.push(When::Always, "remove the volume key from the keyring", move |platform| {
        platform.volume_key_unset(&unset).map(drop)
    });
    let kept = platform.volume_key_set(&key_name, &volume_key);
    if let Err(error) = &kept {
        log::warn!("pool {}: cannot keep its volume key, so the pool cannot grow: {error}", pool.name());
    }
    pool.note_volume_key(kept.is_ok());
    Ok(())
}

/// Adopts the crypt device that a former daemon has opened. The volume key was lost with that
/// daemon. If the recorded size is ahead of the crypt device, the key is needed at once. Otherwise,
/// or if there is no time to derive a key, the daemon looks for it later.
fn adopt_luks_device(platform: &dyn Platform, pool: &mut Pool, device: &Path, has_time: bool) {
    let key_name = volume_keys::name(pool.uuid());
    let known = platform.volume_key_read(&key_name).is_ok_and(|key| key.is_some());
    let find = || {
        let bindings = pool.encryption().ok().and_then(|info| info.agreed().ok()).cloned().unwrap_or_default();
        let keys = bindings.of_kind(Kind::Keyring);
        let opened = lifecycle::open(platform, device, None, &keys, UnlockMethod::Any, None);
        opened.is_ok_and(|key| platform.volume_key_set(&key_name, &key).is_ok())
    };
    let found = known || has_time && find();
    pool.note_volume_key(found);
}

/// Removes what interrupted header changes have left: keyslots for a volume key that was never
/// used.
fn mend_header(platform: &dyn Platform, pool: &mut Pool, device: &Path, header: &Header) {
    let changes = lifecycle::mends(header);
    if changes.is_empty() {
        return;
    }
    let mended = platform.luks_change(device, None, &changes).map_err(Error::from);
    if let Err(error) = mended.and_then(|header| pool.note_header(&header)) {
        log::warn!("pool {}: cannot remove unused keyslots from its LUKS2 header: {}", pool.name(), error.sentence());
    }
}

/// Removes an unused LUKS device of a pool.
pub(in crate::engine) fn drop_luks_device(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    let device = platform.dm_node(&pool.stack.name(Role::Cache));
    pool.stack.move_to_cap(platform, &pool.shape())?;
    pool.stack.remove(platform, Role::Crypt)?;
    lifecycle::wipe(platform, &device, Sectors::ZERO, pool.meta().crypt_reserved())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(recorded: bool, state: Option<DataEncryption>, expected: fn(&Result<Containment>) -> bool) {
        let header = state.map(|state| Header {
            uuid: String::new(),
            data_offset: Sectors(34_816),
            sector_size: 512,
            state,
            keyslots: [0].into(),
            unused: [].into(),
            tokens: [].into(),
        });
        let found = containment(&Name::new("p").unwrap(), recorded, header);
        assert!(expected(&found), "recorded: {recorded}, {state:?}: {found:?}");
    }

    /// A header that does not count may be wiped only if the data behind it has never been changed.
    #[test]
    fn the_record_decides_whether_a_pool_is_encrypted() {
        let unfinished = |mode, done| Some(DataEncryption::Unfinished { mode, done: Bytes(done) });
        let is_refused = |found: &Result<Containment>| matches!(found, Err(Error::UnrecordedHeader { .. }));
        let is_opened = |found: &Result<Containment>| matches!(found, Ok(Containment::Open(_)));
        let is_stale = |found: &Result<Containment>| matches!(found, Ok(Containment::Stale));
        check(false, None, |found| matches!(found, Ok(Containment::None)));
        check(true, None, |found| matches!(found, Err(Error::NoHeader { .. })));
        check(true, Some(DataEncryption::Encrypted), is_opened);
        check(false, Some(DataEncryption::Encrypted), is_refused);
        check(true, Some(DataEncryption::Clear), |found| matches!(found, Ok(Containment::Decrypted)));
        check(false, Some(DataEncryption::Clear), is_stale);
        check(false, unfinished(ReencryptionMode::Encrypt, 0), is_stale);
        // The job was working on its first part.
        check(false, unfinished(ReencryptionMode::Encrypt, 1), is_refused);
        for work in [ReencryptionMode::Reencrypt, ReencryptionMode::Decrypt] {
            for done in [0, 1, 4096] {
                check(false, unfinished(work, done), is_refused);
            }
        }
        for work in [ReencryptionMode::Encrypt, ReencryptionMode::Reencrypt, ReencryptionMode::Decrypt] {
            for done in [0, 1, 4096] {
                check(true, unfinished(work, done), is_opened);
            }
        }
    }
}
