//! Brings a pool up again whose take-down failed half-way.

use crate::{
    base::name::Name,
    engine::{
        dm_names::Role,
        error::{Error, Result},
        mdv::Mdv,
        metadata::FilesystemRecord,
        pool::{Filesystem, Pool},
        stack::ensure_device,
        thin_devices,
        undo::Rollback,
    },
    platform::{Platform, dm::Visibility},
    view::Availability,
};

/// Brings a pool up again whose take-down failed, and returns the error to report.
pub(in crate::engine) fn back_up_after(platform: &dyn Platform, pool: &mut Pool, cause: Error) -> Error {
    match bring_up_again(platform, pool) {
        Ok(()) => cause,
        Err(error) => Error::Rollback {
            cause: Box::new(cause),
            failures: vec![("bring the pool up again".to_owned(), error)],
            leaves: Availability::NoPoolChanges,
        },
    }
}

/// Brings a pool's stack and its filesystems up again after a take-down that failed half-way.
///
/// # Errors
/// When bringing them up fails too.
fn bring_up_again(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    let layers = pool.shape().layers();
    let filesystems: Vec<FilesystemRecord> =
        pool.filesystems.values().map(|filesystem| filesystem.record.clone()).collect();
    let mut undo = Rollback::new();
    let up = pool.stack.ensure_all(platform, layers, &mut undo).and_then(|()| {
        filesystems.into_iter().try_for_each(|record| set_up_filesystem(platform, pool, record, &mut undo))
    });
    // What is up now stays up: those are the devices of a running pool.
    undo.forget();
    up?;
    Ok(Mdv::new(platform, pool.uuid()).mount(&platform.dm_node(&pool.stack.name(Role::Mdv)))?)
}

/// Brings a filesystem of the pool up again, and stores the number that its device has then.
fn set_up_filesystem(
    platform: &dyn Platform,
    pool: &mut Pool,
    record: FilesystemRecord,
    undo: &mut Rollback,
) -> Result<()> {
    let name = Name::new(&record.name)?;
    let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
    let table = thin_devices::thin_table(thin_pool, record.thin_id, record.size);
    let device = pool.thin_name(record.uuid);
    let (number, _) = ensure_device(platform, &device, &table, Visibility::Public, undo)?;
    pool.put_filesystem(platform, Filesystem { record, name, number });
    Ok(())
}
