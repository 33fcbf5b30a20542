//! `stratis-checkmetadata`: checks pool metadata against itself (`docs/spec/tools/utilities.md`
//! §5.1). It collects all findings. If no tables can be made, it stops at the first.
//!
//! This module must never depend on devices: the metadata comes from a file.

use std::path::Path;

use super::extents::{self, ExtentTables, Unsound};
use crate::{
    base::units::Sectors,
    engine::metadata::{
        PoolMetadata,
        pool::{CRYPT_RESERVATION, INTEGRITY_UNIT, Segment},
    },
};

/// Checks the pool metadata in a file.
///
/// # Errors
/// The findings, if there are any.
pub fn check_file(path: &Path) -> Result<(), Unsound> {
    let findings = check(&extents::read(path)?);
    if findings.is_empty() { Ok(()) } else { Err(Unsound::Broken(findings)) }
}

/// What is wrong with pool metadata of version 2, as sentences.
pub fn check(pool: &PoolMetadata) -> Vec<String> {
    let tables = match ExtentTables::new(pool) {
        Ok(tables) => tables,
        Err(broken) => return vec![broken],
    };
    let mut findings = Vec::new();
    for (device, table) in tables.data.iter().chain(&tables.cache) {
        findings.extend(table.overlaps().into_iter().map(|overlap| format!("Device {device}: {overlap}")));
    }
    check_integrity(pool, &mut findings);
    check_crypt(&pool.backstore.cap.crypt_meta_allocs, &mut findings);
    findings.extend(tables.cap.overlaps());
    findings.extend(tables.flex.overlaps());
    let sum = |ranges: &[Segment]| ranges.iter().map(|range| range.length).fold(Sectors::ZERO, Sectors::saturating_add);
    let (meta, spare) = (sum(&pool.flex_devs.thin_meta_dev), sum(&pool.flex_devs.thin_meta_dev_spare));
    if meta != spare {
        findings.push(format!(
            "The sum of the allocations for the thin meta device, {meta}, does not equal the sum of the allocations for the \
             thin meta spare device, {spare}."
        ));
    }
    findings
}

fn check_integrity(pool: &PoolMetadata, findings: &mut Vec<String>) {
    let tier = &pool.backstore.data_tier;
    for device in &tier.blockdev.devs {
        let (uuid, reserved) = (device.uuid, &device.integrity_meta_allocs);
        let partial = reserved.iter().filter(|range| !range.length.0.is_multiple_of(INTEGRITY_UNIT.0));
        findings.extend(partial.map(|range| {
            let length = range.length;
            format!("Device {uuid}: Allocation {length} for integrity meta data not a multiple of 4KiB")
        }));
        if tier.integrity_spec.is_some_and(|spec| spec.asks_for_nothing()) && !reserved.is_empty() {
            findings.push(format!(
                "Device {uuid}: Allocations for integrity meta data, but the integrity specification reserves none"
            ));
        }
    }
}

fn check_crypt(allocs: &[Segment], findings: &mut Vec<String>) {
    match allocs {
        [] => findings.push(
            "No allocations for crypt metadata; metadata of version 1 has none, and these checks are for version 2"
                .to_owned(),
        ),
        [only] => {
            if only.start != Sectors::ZERO {
                findings.push(format!("Crypt meta allocs offset, {} is not 0", only.start));
            }
            if only.length != CRYPT_RESERVATION {
                findings.push(format!(
                    "Crypt meta allocs entry has unexpected length {}; it must be {CRYPT_RESERVATION}",
                    only.length
                ));
            }
        }
        several => findings.push(format!("Multiple allocations for crypt metadata: {}", several.len())),
    }
}

#[cfg(test)]
#[path = "check_metadata_tests.rs"]
mod tests;
