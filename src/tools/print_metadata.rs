//! `stratis-printmetadata`: shows how a pool uses its devices (`docs/spec/tools/utilities.md`
//! §5.2).
//!
//! This module must never judge what it prints.

use std::{
    fmt::{Display, Write},
    path::Path,
};

use super::extents::{self, Extent, ExtentTable, ExtentTables, Unsound};
use crate::{
    base::ids::DevUuid,
    engine::metadata::{IntegritySpec, PoolMetadata, TagSpec},
};

/// Describes the pool metadata in a file.
///
/// # Errors
/// If the file is not pool metadata, or its allocations name a device that it does not list.
pub fn print_file(path: &Path) -> Result<String, Unsound> {
    print(&extents::read(path)?).map_err(|broken| Unsound::Broken(vec![broken]))
}

/// Describes pool metadata of version 2.
///
/// # Errors
/// If its allocations name a device that it does not list.
pub fn print(pool: &PoolMetadata) -> Result<String, String> {
    let tables = ExtentTables::new(pool)?;
    let thin = &pool.thinpool_dev;
    let mut text =
        format!("Thinpool specification:\n    Data block size: {}\n    Feature Args:\n", thin.data_block_size);
    let features = thin.feature_args.iter().flatten();
    features.for_each(|feature| line(&mut text, format_args!("        {feature}")));
    let limit = thin.fs_limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    let overprovisioning = thin.enable_overprov.map_or("N/A", |on| if on { "true" } else { "false" });
    line(&mut text, format_args!("    Filesystem limit: {limit}"));
    line(&mut text, format_args!("    Overprovisioning enabled: {overprovisioning}\n"));
    line(&mut text, "Integrity specification for data devices:");
    line(&mut text, integrity(pool.backstore.data_tier.integrity_spec.as_ref()));
    line(&mut text, "\n\nAllocations from each data device:");
    devices(&mut text, "Data", &tables.data);
    line(&mut text, "\nAllocations from each cache device:");
    devices(&mut text, "Cache", &tables.cache);
    line(&mut text, "\nAllocations for crypt metadata:");
    table(&mut text, &tables.crypt);
    line(&mut text, "\nAllocations from cap device:");
    table(&mut text, &tables.cap);
    line(&mut text, "\n\nAllocations from flex device:");
    table(&mut text, &tables.flex);
    Ok(text)
}

fn line(text: &mut String, line: impl Display) {
    let _ = writeln!(text, "{line}");
}

fn integrity(spec: Option<&IntegritySpec>) -> String {
    let Some(IntegritySpec { tag_spec, journal_size, block_size, allocate_superblock }) = spec else {
        return "None".to_owned();
    };
    let tag = match tag_spec {
        TagSpec::B0 => "0b",
        TagSpec::B32 => "32b",
        TagSpec::B512 => "512b",
    };
    format!(
        "Allocate Superblock: {allocate_superblock}\nTag Specification: {tag}\nJournal Size: {journal_size}\n\
         Block Size: {block_size} bytes"
    )
}

fn devices(text: &mut String, title: &str, tables: &[(DevUuid, ExtentTable)]) {
    for (device, of_device) in tables {
        line(text, format_args!("{title} device: {device}"));
        table(text, of_device);
        line(text, "");
    }
}

fn table(text: &mut String, of: &ExtentTable) {
    for (index, Extent { range, usage }) in of.rows().into_iter().enumerate() {
        let end = u128::from(range.start.0) + u128::from(range.length.0);
        let (start, length) = (range.start.0, range.length.0);
        line(text, format_args!("{index}: Use: {usage:<20} {start:>12} + {length:>12} = {end:>12} sectors"));
    }
}
