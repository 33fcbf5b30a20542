//! Creates and extends a pool's cache (`docs/spec/engine/storage-stack.md` §6).
//!
//! The cache is in writethrough mode, so the data devices are complete at every moment. A cache
//! that the kernel uses but no record names can therefore be dropped without loss; a power cut in
//! the middle of a change may leave such a cache. A cache that the record names must be valid, so
//! its metadata is made before the record is written.

use std::path::PathBuf;

use crate::{
    base::ids::DevUuid,
    engine::{
        bda::Choose,
        dm_names::Role,
        error::{Error, Result},
        metadata::{MetadataVersion, PoolMetadata},
        ops::create_pool::zero,
        plan::sizes,
        pool::{self, Pool},
        stack::{Shape, Stack},
        thin_growth::follow_or_later,
        undo::{Rollback, When},
    },
    platform::{BlockDevice, Platform},
    view::DeviceTier,
};

/// Compares the requested devices with those of the pool's existing cache.
pub(super) fn compare(pool: &Pool, requested: &[BlockDevice]) -> Result<()> {
    let is_cache = |device: &BlockDevice| matches!(pool.tier_of(device.number), Some((_, DeviceTier::Cache)));
    let only_requested: Vec<PathBuf> =
        requested.iter().filter(|device| !is_cache(device)).map(|device| device.path.clone()).collect();
    let cache = pool.members.values().map(|member| &member.device).filter(|device| is_cache(device));
    let only_present: Vec<PathBuf> = cache
        .filter(|device| requested.iter().all(|other| other.number != device.number))
        .map(|device| device.path.clone())
        .collect();
    match only_requested.is_empty() && only_present.is_empty() {
        true => Ok(()),
        false => Err(Error::OtherCache { pool: pool.name().clone(), only_requested, only_present }),
    }
}

/// Makes admitted devices the pool's cache.
///
/// Everything that the kernel may refuse is tried before the record is written. After that, tables
/// are only swapped.
///
/// # Errors
/// The pool then has no cache again, in the kernel and on record. If that could not be recorded,
/// the error says so ([`Error::is_unsure`]), and the devices must not be wiped.
pub(super) fn begin(platform: &dyn Platform, pool: &mut Pool, admitted: &[DevUuid]) -> Result<()> {
    let with = pool.plan_devices(admitted, |meta, devices| meta.init_cache(devices))?;
    let (without, old_stack, old_shape) = (pool.meta().clone(), pool.stack.clone(), pool.shape());
    let shape = pool::shape(pool.version(), &with, &pool.members);
    let begun = Rollback::new().guard(platform, |undo| {
        prepare(platform, &mut pool.stack, &shape, &old_shape, undo)?;
        pool.commit(platform, Choose::Everywhere, Some(&without), with)?;
        put_in_place(platform, &pool.stack, &shape, &old_shape, undo)
    });
    let Err(cause) = begun.map(|((), undo)| undo.forget()) else { return Ok(()) };
    pool.stack = old_stack;
    match *pool.meta() == without {
        true => Err(cause),
        false => Err(pool.take_back(platform, without, cause)),
    }
}

/// Makes the devices of the cache, and loads the cache table so that the kernel validates it.
fn prepare(
    platform: &dyn Platform,
    stack: &mut Stack,
    shape: &Shape,
    old_shape: &Shape,
    undo: &mut Rollback,
) -> Result<()> {
    for layer in shape.backstore() {
        match layer.role {
            Role::CacheMeta => {
                stack.ensure(platform, &layer, undo)?;
                // The kernel takes a cache whose metadata begins with zeros for new.
                zero(platform, stack, Role::CacheMeta, sizes::METADATA_ZEROED)?;
            }
            Role::CacheSub => drop(stack.ensure(platform, &layer, undo)?),
            Role::Cache if shape.version == MetadataVersion::V1 => drop(stack.ensure(platform, &layer, undo)?),
            Role::Cache => {
                if let Some(placeholder) = old_shape.backstore().into_iter().find(|layer| layer.role == Role::Cache) {
                    let stack = stack.clone();
                    undo.push(When::Always, "put the cache's place-holder back", move |platform| {
                        stack.put(platform, &placeholder)
                    });
                }
                stack.load(platform, &layer)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Sends the I/O through the cache.
fn put_in_place(
    platform: &dyn Platform,
    stack: &Stack,
    shape: &Shape,
    old_shape: &Shape,
    undo: &mut Rollback,
) -> Result<()> {
    match shape.version {
        MetadataVersion::V1 => {
            let (back, old_shape) = (stack.clone(), old_shape.clone());
            undo.push(When::Always, "move the pool off its cache again", move |platform| {
                back.move_from_cap(platform, &old_shape)
            });
            stack.move_to_cap(platform, shape)
        }
        MetadataVersion::V2 => match shape.backstore().into_iter().find(|layer| layer.role == Role::Cache) {
            Some(cache) => stack.put(platform, &cache),
            None => Ok(()),
        },
    }
}

/// Adds admitted devices to the pool's cache.
///
/// # Errors
/// When the cache would be too large, when the devices cannot be recorded, or when the kernel
/// refuses the cache with them. Cache and record are then as before; if that could not be recorded,
/// the error says so ([`Error::is_unsure`]).
pub(super) fn extend(platform: &dyn Platform, pool: &mut Pool, admitted: &[DevUuid]) -> Result<()> {
    let with = pool.plan_devices(admitted, |meta, devices| meta.add_cache_devices(devices))?;
    // Write the record first: a cache must never use blocks that no record gives to it.
    let (former, without) = (pool.meta().clone(), pool.on_record());
    pool.commit(platform, Choose::Everywhere, Some(&without), with)?;
    let mut nothing_to_undo = Rollback::new();
    let below = pool.shape().backstore();
    let extended = pool.stack.ensure_all(platform, below, &mut nothing_to_undo);
    nothing_to_undo.forget();
    match extended {
        Err(refused) if refused.is_refusal() => back_to(platform, pool, former, refused),
        // Put the layers above in place, too. What fails now is done at the next check.
        _ => {
            follow_or_later(platform, pool);
            Ok(())
        }
    }
}

/// Goes back to the cache of the former record, because the kernel refuses a larger one for good.
/// The cache is in writethrough mode, so blocks that it may have begun to use can be dropped
/// without loss.
///
/// # Errors
/// Returns `refused` once the former record is in force again.
fn back_to(platform: &dyn Platform, pool: &mut Pool, former: PoolMetadata, refused: Error) -> Result<()> {
    let roles = [Role::CacheMeta, Role::CacheSub, Role::Cache];
    let layers = pool.shape_of(&former).backstore().into_iter().filter(|layer| roles.contains(&layer.role));
    let put_back = layers.into_iter().try_for_each(|layer| {
        // The cache target reads the sizes of its devices only when a table is loaded.
        match layer.role != Role::Cache && pool.stack.is_as(platform, &layer)? {
            true => Ok(()),
            false => pool.stack.put(platform, &layer),
        }
    });
    // Whatever the tables are now, the next check compares them with the record.
    pool.growth.note_behind(true);
    if let Err(error) = put_back {
        let (refused, what) = (refused.sentence(), error.sentence());
        log::error!(
            "could not extend the cache of pool {} ({refused}) nor restore its former size ({what}); the devices stay in the \
             pool, and each check tries to use them",
            pool.name()
        );
        return Ok(());
    }
    log::error!(
        "could not extend the cache of pool {}, because the kernel refuses it: {}",
        pool.name(),
        refused.sentence()
    );
    Err(pool.take_back(platform, former, refused))
}
