//! Removes the kernel devices that an interrupted creation of a cache has left.

use crate::{
    engine::{
        dm_names::Role,
        error::Result,
        stack::{Shape, Stack},
    },
    platform::Platform,
};

/// Removes the kernel devices that an interrupted creation of a cache has left while the record
/// names no cache: the daemon was killed before it wrote that record. The cap device must be in
/// place.
///
/// # Errors
/// When a device cannot be removed.
pub(super) fn remove(platform: &dyn Platform, stack: &mut Stack, shape: &Shape) -> Result<()> {
    let is_up = |role| platform.dm_find(&stack.name(role)).map(|found| found.is_some());
    if shape.cache.is_some() || !is_up(Role::CacheMeta)? && !is_up(Role::CacheSub)? {
        return Ok(());
    }
    log::info!("removing the leftovers of a cache that was never recorded");
    match shape.backstore().into_iter().find(|layer| layer.role == Role::Cache) {
        // The cache table may have been loaded into the placeholder. Loading the placeholder's own
        // table discards it.
        Some(placeholder) => stack.put(platform, &placeholder)?,
        None => {
            // A table that leads to the cache may have been loaded into a device that was to move
            // to the cache. Such a table keeps the cache in use.
            for layer in shape.flexible_layers() {
                if is_up(layer.role)? {
                    stack.put(platform, &layer)?;
                }
            }
            stack.remove(platform, Role::Cache)?;
        }
    }
    stack.remove(platform, Role::CacheSub)?;
    stack.remove(platform, Role::CacheMeta)
}
