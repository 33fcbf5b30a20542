//! Sector sizes of a pool's devices, under the rules of `docs/spec/engine/storage-stack.md` §12.

use crate::{
    engine::{
        error::Result,
        plan::sector_rules::{self, SectorSizes},
        pool::Pool,
    },
    platform::Geometry,
    view::DeviceTier,
};

/// Sector sizes of a device.
pub(in crate::engine) fn of_device(geometry: &Geometry) -> SectorSizes {
    SectorSizes { logical: geometry.logical, physical: geometry.physical }
}

/// The devices of a tier, as the sector size rules need them.
pub(in crate::engine) fn of_tier(pool: &Pool, tier: DeviceTier) -> Vec<sector_rules::MemberSizes> {
    pool.meta()
        .device_entries()
        .filter(|(of_tier, _)| *of_tier == tier)
        .filter_map(|(_, entry)| {
            let member = pool.members.get(entry.uuid)?;
            let inside = of_device(&member.geometry);
            let (base, crypt) = match &member.luks_device {
                Some(luks_device) => (of_device(&luks_device.geometry), Some(inside)),
                None => (inside, None),
            };
            Some(sector_rules::MemberSizes { base, crypt, in_use: pool.meta().is_in_use(entry.uuid) })
        })
        .collect()
}

/// Refuses a pool whose tiers mix sector sizes in a way that may tear writes.
pub(in crate::engine) fn check(pool: &Pool) -> Result<()> {
    for tier in [DeviceTier::Data, DeviceTier::Cache] {
        let sizes = of_tier(pool, tier);
        if !sizes.is_empty() {
            sector_rules::effective(&sizes)?;
        }
    }
    Ok(())
}
