//! The thin pool at set-up. Its metadata is checked and, if damaged, repaired; then the thin pool
//! is brought up or adopted (`docs/spec/engine/storage-stack.md` §8). Only a verdict of thin_check
//! leads to a repair.

use crate::{
    engine::{
        bda::Choose,
        dm_names::Role,
        error::{Error, Result},
        layout,
        pool::Pool,
        stack::{Ensured, Shape},
        thin_check::{self, ThinCheckVerdict},
        thin_devices,
        undo::Rollback,
    },
    platform::{Platform, Program, dm::Target},
};

/// Brings up the thin pool and its two devices.
pub(super) fn bring_up_thin_pool(platform: &dyn Platform, pool: &mut Pool, undo: &mut Rollback) -> Result<()> {
    let shape = pool.shape();
    pool.stack.ensure(platform, &shape.thin_meta(), undo)?;
    let found = platform.dm_find(&pool.stack.name(Role::ThinPool))?;
    // A running thin pool keeps its low-water mark until a check finds a better one: replacing the
    // mark would suspend I/O.
    let mark = found.iter().flat_map(|device| &device.table).find_map(|line| match line.target {
        Target::ThinPool { low_water, .. } => Some(low_water),
        _ => None,
    });
    pool.growth.adopt_low_water(mark);
    // The metadata of a running thin pool belongs to the kernel; no other program may read it.
    if found.is_none() {
        make_sound(platform, pool, &shape, undo)?;
    }
    let shape = pool.shape();
    pool.stack.ensure(platform, &shape.thin_data(), undo)?;
    if pool.stack.ensure(platform, &shape.thin_pool(), undo)? == Ensured::Adopted {
        if let Ok(status) = pool.thin_pool_status(platform) {
            thin_devices::show_sizes(platform, pool, &status)?;
        }
    }
    Ok(())
}

/// Checks the metadata, and repairs it if it is damaged.
fn make_sound(platform: &dyn Platform, pool: &mut Pool, shape: &Shape, undo: &mut Rollback) -> Result<()> {
    match check(platform, pool, Role::ThinMeta)? {
        ThinCheckVerdict::Sound => {
            if pool.meta().repaired {
                let sound = pool.change(platform, Choose::Some(platform.random()), |meta| {
                    meta.repaired = false;
                    Ok(())
                });
                if let Err(error) = sound {
                    let what = error.sentence();
                    log::warn!("pool {}: cannot record that its repaired metadata is sound: {what}", pool.name());
                }
            }
            Ok(())
        }
        ThinCheckVerdict::Damaged(said) if pool.meta().repaired => {
            Err(Error::DamagedAgain { pool: pool.name().clone(), said })
        }
        ThinCheckVerdict::Damaged(said) => {
            log::warn!("pool {}: thin_check found its metadata damaged ({said}); repairing it", pool.name());
            repair(platform, pool, shape, undo)
        }
    }
}

fn check(platform: &dyn Platform, pool: &Pool, role: Role) -> Result<ThinCheckVerdict> {
    let size = layout::total(&pool.meta().flex_devs.thin_meta_dev);
    thin_check::check(platform, &platform.dm_node(&pool.stack.name(role)), size)
        .map_err(|source| Error::NotChecked { pool: pool.name().clone(), source })
}

/// Repairs damaged thin metadata into the spare, which replaces the damaged metadata once it has
/// been found sound. The swap is recorded while neither of the two is in use. So an existing device
/// never differs from what the pool metadata says, and no set-up returns to the damaged metadata
/// and loses what the repaired thin pool has written.
///
/// The damaged metadata becomes the spare. It stays unchanged until a later set-up finds the
/// repaired metadata sound: a repair that turns out to be bad can be taken back by hand.
fn repair(platform: &dyn Platform, pool: &mut Pool, shape: &Shape, undo: &mut Rollback) -> Result<()> {
    pool.stack.ensure(platform, &shape.thin_meta_spare(), undo)?;
    let [damaged, spare] = [Role::ThinMeta, Role::ThinMetaSpare].map(|role| platform.dm_node(&pool.stack.name(role)));
    platform.run(Program::ThinRepair, &["-i", &damaged.to_string_lossy(), "-o", &spare.to_string_lossy()])?;
    if let ThinCheckVerdict::Damaged(said) = check(platform, pool, Role::ThinMetaSpare)? {
        return Err(Error::BadRepair { pool: pool.name().clone(), said });
    }
    pool.stack.remove(platform, Role::ThinMeta)?;
    pool.stack.remove(platform, Role::ThinMetaSpare)?;
    pool.change(platform, Choose::Some(platform.random()), |meta| {
        let flex = &mut meta.flex_devs;
        std::mem::swap(&mut flex.thin_meta_dev, &mut flex.thin_meta_dev_spare);
        meta.repaired = true;
        Ok(())
    })?;
    log::warn!("pool {}: its thin metadata has been repaired; the spare keeps the damaged metadata", pool.name());
    pool.stack.ensure(platform, &pool.shape().thin_meta(), undo).map(drop)
}
