//! The invariants of the pool metadata, checked before a pool is set up and before the metadata is
//! written (§6.8).
//!
//! These functions are pure. They take metadata and the headers of the devices and return the first
//! broken rule.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::Sectors,
    },
    engine::metadata::{
        IntegritySpec, MetadataVersion, StaticHeader,
        pool::{CRYPT_RESERVATION, DATA_BLOCK, DeviceSegment, INTEGRITY_UNIT, PoolMetadata, Segment},
    },
};

/// A rule that the pool metadata breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Broken {
    #[error("the sizes recorded under {0} are larger than any device can be")]
    Overflow(&'static str),
    #[error("the list {0} in the metadata is empty")]
    EmptyList(&'static str),
    #[error("a segment of {what} at {at} has no length")]
    EmptySegment { what: String, at: Sectors },
    #[error("the metadata has {found} lists under {list}; there must be {expected}")]
    Lists { list: &'static str, expected: usize, found: usize },
    #[error("segments of {what} overlap at {at}")]
    Overlap { what: String, at: Sectors },
    #[error("a segment of {what} ends at {end}, after the end at {limit}")]
    Beyond { what: String, end: Sectors, limit: Sectors },
    #[error("a segment of device {device} begins at {start}, inside the device's own metadata")]
    InDeviceMetadata { device: DevUuid, start: Sectors },
    #[error("a segment under {tier} lies on device {device}, which is not of that tier")]
    Foreign { tier: &'static str, device: DevUuid },
    #[error("{used} of the cap device are in use, but {handed_out} are recorded as handed out")]
    HandedOut { used: Sectors, handed_out: Sectors },
    #[error("the data tier has {tier}, less than the {needed} that are handed out of it")]
    DataTier { tier: Sectors, needed: Sectors },
    #[error("the allocations of the cap device are not one after the other from {0} on")]
    CapOrder(Sectors),
    #[error("the space for a LUKS2 header is not recorded as the first {CRYPT_RESERVATION}")]
    CryptReservation,
    #[error("thin metadata ({metadata}) and its spare ({spare}) differ in size")]
    Spare { metadata: Sectors, spare: Sectors },
    #[error("the reservation for integrity data of device {0} does not agree with the pool's integrity settings")]
    Integrity(DevUuid),
    #[error("the cache tier has unallocated space on device {0}")]
    CacheSpace(DevUuid),
    #[error("the thin pool's data block has {0}; only {DATA_BLOCK} are supported")]
    DataBlock(Sectors),
    #[error("device {0} is recorded twice, or found twice")]
    Duplicate(DevUuid),
    #[error("device {0} of the pool was not found; connect it")]
    Missing(DevUuid),
    #[error("device {0} says that it belongs to the pool, but the pool's metadata does not know it")]
    Unlisted(DevUuid),
    #[error("the devices of the pool have different metadata versions")]
    MixedVersions,
    #[error("device {device} belongs to another pool, {pool}")]
    OtherPool { device: DevUuid, pool: PoolUuid },
}

type Result<T> = std::result::Result<T, Broken>;

/// Checks that the devices found are those of the metadata: each listed device is found, each found
/// one is listed, none occurs twice, and all have one pool and one version.
///
/// # Errors
/// The first rule that is broken.
pub fn check_members(metadata: &PoolMetadata, found: &[StaticHeader]) -> Result<()> {
    let mut listed = BTreeSet::new();
    if let Some(twice) = metadata.devices().find(|device| !listed.insert(*device)) {
        return Err(Broken::Duplicate(twice));
    }
    let mut seen = BTreeSet::new();
    for header in found {
        if !seen.insert(header.device) {
            return Err(Broken::Duplicate(header.device));
        }
        if !listed.contains(&header.device) {
            return Err(Broken::Unlisted(header.device));
        }
        if header.pool != found[0].pool {
            return Err(Broken::OtherPool { device: header.device, pool: header.pool });
        }
        if header.version != found[0].version {
            return Err(Broken::MixedVersions);
        }
    }
    listed.difference(&seen).next().map_or(Ok(()), |missing| Err(Broken::Missing(*missing)))
}

/// Checks the numbers of the pool metadata against each other and against the sizes of the devices.
/// [`check_members`] checks whether the devices are the right ones, but a listed device without a
/// header is an error here, too.
///
/// # Errors
/// The first rule that is broken.
pub fn check(metadata: &PoolMetadata, version: MetadataVersion, headers: &[StaticHeader]) -> Result<()> {
    if metadata.thinpool_dev.data_block_size != DATA_BLOCK {
        return Err(Broken::DataBlock(metadata.thinpool_dev.data_block_size));
    }
    let tier_size = check_data_tier(metadata, version, headers)?;
    check_cache_tier(metadata, headers)?;
    for (list, segments) in metadata.flex_devs.lists() {
        if segments.is_empty() {
            return Err(Broken::EmptyList(list));
        }
    }
    let mut flex: Vec<Segment> = metadata.flex_devs.lists().iter().flat_map(|(_, list)| *list).copied().collect();
    let used = total("flex_devs", &flex)?;
    match version {
        MetadataVersion::V1 => {
            let [cap] = metadata.backstore.cap.allocs[..] else {
                let found = metadata.backstore.cap.allocs.len();
                return Err(Broken::Lists { list: "cap.allocs", expected: 1, found });
            };
            if cap.start != Sectors::ZERO {
                return Err(Broken::CapOrder(Sectors::ZERO));
            }
            check_apart("the cap device", &mut flex, Sectors::ZERO, cap.length)?;
            // Without overlaps or gaps and with this sum, the highest segment also ends at the sum.
            check_handed_out(used, cap.length)?;
            check_room(tier_size, used)
        }
        MetadataVersion::V2 => {
            let base = check_cap(metadata)?;
            let handed_out = total("cap.allocs", &metadata.backstore.cap.allocs)?;
            let end = base.checked_add(handed_out).ok_or(Broken::Overflow("cap.allocs"))?;
            check_apart("the cap device", &mut flex, base, end)?;
            check_handed_out(used, handed_out)?;
            let header = CRYPT_RESERVATION.checked_add(used).ok_or(Broken::Overflow("cap.allocs"))?;
            check_room(tier_size, header)?;
            let spare = total("thin_meta_dev_spare", &metadata.flex_devs.thin_meta_dev_spare)?;
            let thin_metadata = total("thin_meta_dev", &metadata.flex_devs.thin_meta_dev)?;
            if spare == thin_metadata { Ok(()) } else { Err(Broken::Spare { metadata: thin_metadata, spare }) }
        }
    }
}

fn check_handed_out(used: Sectors, handed_out: Sectors) -> Result<()> {
    if used == handed_out { Ok(()) } else { Err(Broken::HandedOut { used, handed_out }) }
}

fn check_room(tier: Sectors, needed: Sectors) -> Result<()> {
    if tier > Sectors::ZERO && tier >= needed { Ok(()) } else { Err(Broken::DataTier { tier, needed }) }
}

/// Version 2: checks that the space handed out from the cap device is contiguous. Returns its
/// start.
fn check_cap(metadata: &PoolMetadata) -> Result<Sectors> {
    let cap = &metadata.backstore.cap;
    if cap.crypt_meta_allocs != [Segment::new(Sectors::ZERO, CRYPT_RESERVATION)] {
        return Err(Broken::CryptReservation);
    }
    // Offsets of an encrypted pool begin after the LUKS2 header.
    let base = if metadata.is_encrypted() { Sectors::ZERO } else { CRYPT_RESERVATION };
    let mut sorted = cap.allocs.clone();
    sorted.sort_unstable();
    let mut next = base;
    for segment in sorted {
        if segment.start != next {
            return Err(Broken::CapOrder(base));
        }
        next = segment.end().ok_or(Broken::Overflow("cap.allocs"))?;
    }
    Ok(base)
}

/// Checks segments and reservations of the data tier. Returns the sum of its segments.
fn check_data_tier(metadata: &PoolMetadata, version: MetadataVersion, headers: &[StaticHeader]) -> Result<Sectors> {
    let tier = &metadata.backstore.data_tier;
    let [allocs] = &tier.blockdev.allocs[..] else {
        return Err(Broken::Lists { list: "data_tier", expected: 1, found: tier.blockdev.allocs.len() });
    };
    let mut places = by_device("data_tier", metadata, allocs)?;
    for device in &tier.blockdev.devs {
        let header = header_of(device.uuid, headers)?;
        if version == MetadataVersion::V2 {
            let spec = tier.integrity_spec.unwrap_or_default();
            check_integrity(device.uuid, &device.integrity_meta_allocs, &spec)?;
        }
        let segments = places.entry(device.uuid).or_default();
        segments.extend(&device.integrity_meta_allocs);
        check_on_device(header, segments)?;
    }
    total("data_tier", &allocs.iter().map(DeviceSegment::segment).collect::<Vec<_>>())
}

/// Checks the reservation of one device: whole blocks, or none at all if the settings reserve none.
fn check_integrity(device: DevUuid, reserved: &[Segment], spec: &IntegritySpec) -> Result<()> {
    let whole = reserved.iter().all(|segment| segment.length.0 % INTEGRITY_UNIT.0 == 0);
    if whole && (!spec.asks_for_nothing() || reserved.is_empty()) { Ok(()) } else { Err(Broken::Integrity(device)) }
}

/// Checks the segments of the cache tier, and that they cover its devices completely.
fn check_cache_tier(metadata: &PoolMetadata, headers: &[StaticHeader]) -> Result<()> {
    let Some(tier) = &metadata.backstore.cache_tier else { return Ok(()) };
    let [cache, cache_metadata] = &tier.blockdev.allocs[..] else {
        return Err(Broken::Lists { list: "cache_tier", expected: 2, found: tier.blockdev.allocs.len() });
    };
    if cache.is_empty() || cache_metadata.is_empty() {
        return Err(Broken::EmptyList("cache_tier"));
    }
    let mut places = by_device("cache_tier", metadata, cache.iter().chain(cache_metadata))?;
    for device in &tier.blockdev.devs {
        let header = header_of(device.uuid, headers)?;
        let segments = places.entry(device.uuid).or_default();
        check_on_device(header, segments)?;
        let taken = total("cache_tier", segments)?.checked_add(header.extended_size());
        if taken != Some(header.device_size) {
            return Err(Broken::CacheSpace(device.uuid));
        }
    }
    Ok(())
}

fn header_of(device: DevUuid, headers: &[StaticHeader]) -> Result<&StaticHeader> {
    headers.iter().find(|header| header.device == device).ok_or(Broken::Missing(device))
}

/// Groups segments by device. Each device must belong to the tier.
fn by_device<'a>(
    tier: &'static str,
    metadata: &PoolMetadata,
    segments: impl IntoIterator<Item = &'a DeviceSegment>,
) -> Result<BTreeMap<DevUuid, Vec<Segment>>> {
    let devs = match (tier, &metadata.backstore.cache_tier) {
        ("cache_tier", Some(cache)) => &cache.blockdev.devs,
        _ => &metadata.backstore.data_tier.blockdev.devs,
    };
    let mut places: BTreeMap<DevUuid, Vec<Segment>> = devs.iter().map(|dev| (dev.uuid, Vec::new())).collect();
    for segment in segments {
        let device = segment.parent;
        places.get_mut(&device).ok_or(Broken::Foreign { tier, device })?.push(segment.segment());
    }
    Ok(places)
}

/// Checks that the segments of one device lie after its metadata and before its end, and do not
/// overlap.
fn check_on_device(header: &StaticHeader, segments: &mut [Segment]) -> Result<()> {
    let (device, first) = (header.device, header.extended_size());
    if let Some(early) = segments.iter().find(|segment| segment.start < first) {
        return Err(Broken::InDeviceMetadata { device, start: early.start });
    }
    check_apart(&format!("device {device}"), segments, first, header.device_size)
}

/// Sorts segments and checks that they lie between `first` and `limit` and do not overlap.
fn check_apart(what: &str, segments: &mut [Segment], first: Sectors, limit: Sectors) -> Result<()> {
    segments.sort_unstable();
    let mut next = first;
    for segment in segments {
        if segment.length == Sectors::ZERO {
            return Err(Broken::EmptySegment { what: what.to_owned(), at: segment.start });
        }
        if segment.start < next {
            return Err(Broken::Overlap { what: what.to_owned(), at: segment.start });
        }
        match segment.end() {
            Some(end) if end <= limit => next = end,
            end => {
                let end = end.unwrap_or(Sectors(u64::MAX));
                return Err(Broken::Beyond { what: what.to_owned(), end, limit });
            }
        }
    }
    Ok(())
}

/// The sum of all lengths.
fn total(list: &'static str, segments: &[Segment]) -> Result<Sectors> {
    Sectors::checked_sum(segments.iter().map(|segment| segment.length)).ok_or(Broken::Overflow(list))
}
