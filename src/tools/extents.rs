//! Tables of extents: how a pool uses each of its devices, according to its metadata
//! (`docs/spec/tools/utilities.md` §5). One program checks the tables, another prints them.
//!
//! This module must never depend on devices: the metadata comes from a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::metadata::{
        PoolMetadata,
        pool::{BlockDevs, CRYPT_RESERVATION, Segment, Tier},
    },
};

/// Space for Stratis' own metadata at the start of each device.
const DEVICE_METADATA: Segment = Segment::new(Sectors::ZERO, Sectors(8192));
/// The size limit of a file, which is larger than any metadata area.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a file is not pool metadata, or which checks it fails.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Unsound {
    #[error("Error opening file: {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("Error parsing json into structs: {0}")]
    Parse(#[from] serde_json::Error),
    #[error("Error: {}", .0.join("\n"))]
    Broken(Vec<String>),
}

/// Reads pool metadata as `stratis-dumpmetadata --only pool` prints it.
///
/// # Errors
/// If the file cannot be read, or has another form.
pub fn read(path: &Path) -> Result<PoolMetadata, Unsound> {
    let open = |source| Unsound::Open { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(open)?;
    if !found.is_file() || found.len() > FILE_BYTES_MAX {
        return Err(open(io::Error::other("it is not a file of at most 64 MiB")));
    }
    Ok(serde_json::from_slice(&fs::read(path).map_err(open)?)?)
}

/// A range of a device and what uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The range.
    pub range: Segment,
    /// What uses it.
    pub usage: &'static str,
}

/// The extents of one device, by their start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentTable {
    offset: Sectors,
    extents: BTreeMap<Sectors, Extent>,
}

impl ExtentTable {
    /// A table that begins at this offset.
    ///
    /// # Errors
    /// If two extents begin at the same sector.
    fn new(offset: Sectors, extents: impl IntoIterator<Item = Extent>) -> Result<ExtentTable, String> {
        let mut table = BTreeMap::new();
        for extent in extents {
            let start = extent.range.start;
            if table.insert(start, extent).is_some() {
                return Err(format!("Key collision: {start} already in extents table"));
            }
        }
        Ok(ExtentTable { offset, extents: table })
    }

    /// Extents that overlap, as sentences.
    pub fn overlaps(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut end = self.offset;
        for Extent { range: range @ Segment { start, length }, usage } in self.extents.values() {
            if *start < end {
                found.push(format!(
                    "allocation ({start}, {length}) for {usage} overlaps with previous allocation which extends to {end}"
                ));
            }
            match range.end() {
                Some(next) => end = end.max(next),
                None => {
                    found.push(format!("allocation ({start}, {length}) for {usage} ends past any device"));
                    end = Sectors(u64::MAX);
                }
            }
        }
        found
    }

    /// The extents in order, with the gaps between them.
    pub fn rows(&self) -> Vec<Extent> {
        let mut rows = Vec::new();
        let mut end = self.offset;
        for extent in self.extents.values() {
            let start = extent.range.start;
            if start > end {
                rows.push(Extent { range: Segment::new(end, start.saturating_sub(end)), usage: "unused" });
            }
            rows.push(*extent);
            end = end.max(extent.range.end().unwrap_or(Sectors(u64::MAX)));
        }
        rows
    }
}

/// The tables of a pool.
#[derive(Debug)]
pub struct ExtentTables {
    /// Of the data devices, in pool order.
    pub data: Vec<(DevUuid, ExtentTable)>,
    /// Of the cache devices, in pool order.
    pub cache: Vec<(DevUuid, ExtentTable)>,
    /// Of the space for a LUKS2 header.
    pub crypt: ExtentTable,
    /// Of the cap device, with the ranges that are allocated from it.
    pub cap: ExtentTable,
    /// Of the flex devices, with the use of each range.
    pub flex: ExtentTable,
}

impl ExtentTables {
    /// Makes the tables.
    ///
    /// # Errors
    /// If the metadata lists a device twice or allocates from a device that it does not list, or
    /// two extents begin at the same sector.
    pub fn new(pool: &PoolMetadata) -> Result<ExtentTables, String> {
        let allocated = |usage: &'static str| move |range: &Segment| Extent { range: *range, usage };
        let offset = if pool.is_encrypted() { Sectors::ZERO } else { CRYPT_RESERVATION };
        let flex = &pool.flex_devs;
        let parts: [(&'static str, &[Segment]); 4] = [
            ("thin_meta_dev", &flex.thin_meta_dev),
            ("thin_meta_dev_spare", &flex.thin_meta_dev_spare),
            ("meta_dev", &flex.meta_dev),
            ("thin_data_dev", &flex.thin_data_dev),
        ];
        let flex = parts.iter().flat_map(|(usage, ranges)| ranges.iter().map(allocated(usage)));
        let cap = &pool.backstore.cap;
        Ok(ExtentTables {
            data: of_tier(&pool.backstore.data_tier, &["allocated"])?,
            // The metadata lists the cache blocks first, then the metadata of the cache.
            cache: pool
                .backstore
                .cache_tier
                .as_ref()
                .map_or(Ok(Vec::new()), |tier| of_tier(tier, &["cache_data", "cache_metadata"]))?,
            crypt: ExtentTable::new(Sectors::ZERO, cap.crypt_meta_allocs.iter().map(allocated("metadata")))?,
            cap: ExtentTable::new(offset, cap.allocs.iter().map(allocated("allocated")))?,
            flex: ExtentTable::new(offset, flex)?,
        })
    }
}

/// The tables of a tier's devices. `usages` names the lists of its allocations.
fn of_tier(tier: &Tier, usages: &[&'static str]) -> Result<Vec<(DevUuid, ExtentTable)>, String> {
    let BlockDevs { allocs, devs, .. } = &tier.blockdev;
    let mut known = BTreeSet::new();
    if let Some(twice) = devs.iter().find(|dev| !known.insert(dev.uuid)) {
        return Err(format!("Two devices with same UUID {} in devs structure", twice.uuid));
    }
    if let Some(foreign) = allocs.iter().flatten().find(|segment| !known.contains(&segment.parent)) {
        return Err(format!("No device in devs for uuid {} in blockdevs", foreign.parent));
    }
    if allocs.len() > usages.len() {
        let (found, expected) = (allocs.len(), usages.len());
        return Err(format!("{found} lists of allocations in blockdevs, more than the {expected} that a tier has"));
    }
    let table = |device: DevUuid, integrity: &[Segment]| {
        let own = [Extent { range: DEVICE_METADATA, usage: "stratis_metadata" }];
        let integrity = integrity.iter().map(|range| Extent { range: *range, usage: "integrity_metadata" });
        let lists = allocs.iter().zip(usages).flat_map(|(list, usage)| {
            let of_device = list.iter().filter(|segment| segment.parent == device);
            of_device.map(|segment| Extent { range: segment.segment(), usage })
        });
        ExtentTable::new(Sectors::ZERO, own.into_iter().chain(integrity).chain(lists))
    };
    devs.iter().map(|dev| Ok((dev.uuid, table(dev.uuid, &dev.integrity_meta_allocs)?))).collect()
}
