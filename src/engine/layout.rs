//! What pool-level metadata means: which devices and segments it names, how much space is where, and how a new pool or a new
//! device is laid out (`docs/spec/engine/storage-stack.md` §4, 5, 7.3, 11).
//!
//! Pure: from metadata to metadata. Where its bytes lie on disk is the business of [`crate::engine::metadata`].

use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::{
        error::{Error, Result},
        metadata::{
            IntegritySpec, MetadataVersion, PoolMetadata, Rest, StaticHeader,
            pool::{
                Backstore, BlockDev, BlockDevs, Cap, DeviceSegment, Feature, FlexDevs, Segment, ThinPoolDev,
                Tier as TierRecord,
            },
        },
        plan::{
            alloc::{DeviceSpace, TierSpace},
            cap::{self, CapBase},
            segments, sizes,
        },
    },
    view::{Features, Tier},
};

/// The feature argument that makes writes fail when no data blocks are left.
const ERROR_IF_NO_SPACE: &str = "error_if_no_space";
/// Feature arguments that a thin pool always has.
const FEATURES_ALWAYS: [&str; 2] = ["no_discard_passdown", "skip_block_zeroing"];

/// Sum of the lengths of segments. They were checked to fit their devices when they were read or planned.
pub(super) fn total(segments: &[Segment]) -> Sectors {
    segments.iter().map(|segment| segment.length).fold(Sectors::ZERO, Sectors::saturating_add)
}

impl PoolMetadata {
    /// Every device it names, with its tier, in pool order.
    pub fn device_entries(&self) -> impl Iterator<Item = (Tier, &BlockDev)> {
        let data = self.backstore.data_tier.blockdev.devs.iter().map(|entry| (Tier::Data, entry));
        let cache = self.backstore.cache_tier.iter().flat_map(|tier| &tier.blockdev.devs);
        data.chain(cache.map(|entry| (Tier::Cache, entry)))
    }

    /// Identifiers of the data devices, in pool order.
    pub fn data_devices(&self) -> impl Iterator<Item = DevUuid> {
        self.backstore.data_tier.blockdev.devs.iter().map(|entry| entry.uuid)
    }

    /// What is taken of the data devices, in the order in which it is joined.
    pub fn data_segments(&self) -> &[DeviceSegment] {
        self.backstore.data_tier.blockdev.allocs.first().map_or(&[], Vec::as_slice)
    }

    /// What is taken of the cache devices, if there are any: for blocks, and for metadata.
    pub fn cache_segments(&self) -> Option<(&[DeviceSegment], &[DeviceSegment])> {
        let allocs = &self.backstore.cache_tier.as_ref()?.blockdev.allocs;
        Some((allocs.first().map_or(&[], Vec::as_slice), allocs.get(1).map_or(&[], Vec::as_slice)))
    }

    /// Space of a data device that is reserved for integrity data.
    pub fn integrity_reserved(&self, device: DevUuid) -> Sectors {
        let entry = self.backstore.data_tier.blockdev.devs.iter().find(|entry| entry.uuid == device);
        entry.map_or(Sectors::ZERO, |entry| total(&entry.integrity_meta_allocs))
    }

    /// Space that is held for a LUKS2 header.
    pub fn crypt_reserved(&self) -> Sectors {
        total(&self.backstore.cap.crypt_meta_allocs)
    }

    /// Space handed out of the cap device.
    pub fn handed_out(&self) -> Sectors {
        total(&self.backstore.cap.allocs)
    }

    /// Space that counts as allocated, Stratis' own metadata not included.
    pub fn allocated(&self, version: MetadataVersion) -> Sectors {
        match version {
            MetadataVersion::V1 => device_total(self.data_segments()),
            MetadataVersion::V2 => self.handed_out(),
        }
    }

    /// Size of the thin pool's metadata, its spare and the metadata volume.
    pub fn flexible_metadata_size(&self) -> Sectors {
        let flex = &self.flex_devs;
        let parts = [&flex.thin_meta_dev, &flex.thin_meta_dev_spare, &flex.meta_dev];
        parts.into_iter().map(|part| total(part)).fold(Sectors::ZERO, Sectors::saturating_add)
    }

    /// Whether space of a device is taken for more than metadata of its own.
    pub fn is_in_use(&self, device: DevUuid) -> bool {
        let cache = self.cache_segments().unwrap_or_default();
        [self.data_segments(), cache.0, cache.1].into_iter().flatten().any(|segment| segment.parent == device)
    }

    /// The end of what is taken of a device for more than metadata of its own and space held for integrity data.
    pub fn used_up_to(&self, device: DevUuid) -> Sectors {
        let cache = self.cache_segments().unwrap_or_default();
        let segments = [self.data_segments(), cache.0, cache.1].into_iter().flatten();
        let ends = segments.filter(|segment| segment.parent == device).filter_map(|segment| segment.segment().end());
        ends.max().unwrap_or_default()
    }

    /// Bytes of the parts that grow without a bound: names, texts, lists of devices and segments.
    pub fn unbounded_bytes(&self) -> usize {
        serde_json::to_vec(&(&self.name, &self.backstore, &self.flex_devs)).map_or(usize::MAX, |text| text.len())
    }

    /// The features, for clients.
    pub fn features_view(&self) -> Features {
        Features {
            encryption: self.features.contains(&Feature::Encryption),
            key_description: self.features.contains(&Feature::KeyDescriptionEnabled),
            clevis: self.features.contains(&Feature::ClevisEnabled),
        }
    }

    /// Notes that the pool as a whole is encrypted, and what opens it (version 2).
    ///
    /// # Errors
    /// When what is handed out of the cap device does not begin after the space held for the LUKS2 header.
    pub fn set_encrypted(&mut self, has_keys: bool, has_clevis: bool) -> Result<()> {
        if !self.is_encrypted() {
            let header = self.crypt_reserved();
            self.move_cap(|start| start.checked_sub(header))?;
        }
        let told = [
            (true, Feature::Encryption),
            (has_keys, Feature::KeyDescriptionEnabled),
            (has_clevis, Feature::ClevisEnabled),
        ];
        for (is_so, feature) in told {
            match is_so {
                true => self.features.insert(feature),
                false => self.features.remove(&feature),
            };
        }
        Ok(())
    }

    /// Notes that the pool is not encrypted any more.
    ///
    /// # Errors
    /// When what is handed out of the cap device ends past the range of sizes.
    pub fn set_clear(&mut self) -> Result<()> {
        if self.is_encrypted() {
            let header = self.crypt_reserved();
            self.move_cap(|start| start.checked_add(header))?;
        }
        for feature in [Feature::Encryption, Feature::KeyDescriptionEnabled, Feature::ClevisEnabled] {
            self.features.remove(&feature);
        }
        self.last_reencrypt = None;
        Ok(())
    }

    /// Counts what is handed out of the cap device from elsewhere.
    fn move_cap(&mut self, to: impl Fn(Sectors) -> Option<Sectors>) -> Result<()> {
        let flex = &mut self.flex_devs;
        let lists =
            [&mut flex.meta_dev, &mut flex.thin_meta_dev, &mut flex.thin_data_dev, &mut flex.thin_meta_dev_spare];
        for segment in lists.into_iter().flatten().chain(&mut self.backstore.cap.allocs) {
            segment.start = to(segment.start).ok_or(cap::CapError::Overflow)?;
        }
        Ok(())
    }

    /// Space that is taken of the data devices and not handed out of the cap device yet (version 2).
    pub fn taken_ahead(&self, version: MetadataVersion) -> Sectors {
        let taken = device_total(self.data_segments());
        self.needed_of_data(version).map_or(Sectors::ZERO, |needed| taken.saturating_sub(needed))
    }

    /// What is needed of the data devices for what is handed out of the cap device.
    fn needed_of_data(&self, version: MetadataVersion) -> Result<Sectors> {
        let cap = &self.backstore.cap;
        let base = CapBase::of(version, self.is_encrypted());
        // Offsets of an encrypted pool begin after the space held for its header.
        let held = if base == CapBase::Opened { total(&cap.crypt_meta_allocs) } else { Sectors::ZERO };
        Ok(cap::next(cap, base)?.saturating_add(held))
    }

    /// Takes space of the data devices so that this much can be handed out without taking more.
    ///
    /// # Errors
    /// When the devices do not have it.
    pub fn take_ahead(&mut self, version: MetadataVersion, headers: &[&StaticHeader], ahead: Sectors) -> Result<()> {
        let more = ahead.saturating_sub(self.taken_ahead(version));
        take_from_tier(&mut self.backstore.data_tier, headers, &[more])
    }

    /// Where on a data device parts of the pool's LUKS2 header and keyslots lie, if it is encrypted (version 2): it is the
    /// beginning of the joined devices.
    pub fn container_on(&self, device: DevUuid) -> Vec<Segment> {
        let mut left = if self.is_encrypted() { self.crypt_reserved() } else { Sectors::ZERO };
        let parts = self.data_segments().iter().map(|segment| {
            let length = segment.length.min(left);
            left = left.saturating_sub(length);
            (segment.parent, Segment::new(segment.start, length))
        });
        let parts = parts.filter(|(parent, part)| *parent == device && part.length > Sectors::ZERO);
        parts.map(|(_, part)| part).collect()
    }

    /// Sets or removes what the user says of a device.
    pub fn set_user_info(&mut self, device: DevUuid, info: Option<String>) {
        let data = self.backstore.data_tier.blockdev.devs.iter_mut();
        let cache = self.backstore.cache_tier.iter_mut().flat_map(|tier| &mut tier.blockdev.devs);
        if let Some(entry) = data.chain(cache).find(|entry| entry.uuid == device) {
            entry.user_info = info;
        }
    }

    /// Whether keys that old daemons did not write are missing (`docs/spec/engine/ondisk-metadata.md` §8).
    pub fn needs_completion(&self) -> bool {
        let thin = &self.thinpool_dev;
        self.started != Some(true) || thin.feature_args.is_none() || thin.fs_limit.is_none()
    }

    /// Adds the keys that old daemons did not write.
    pub fn complete(&mut self, fs_limit: u64) {
        self.started = Some(true);
        let features = self.thinpool_dev.features();
        self.thinpool_dev.feature_args.get_or_insert_with(|| features.into_iter().collect());
        self.thinpool_dev.fs_limit.get_or_insert(fs_limit);
        self.thinpool_dev.enable_overprov.get_or_insert(true);
    }

    /// Takes in data devices, whose headers are these; in version 2, space for integrity data is reserved on each.
    ///
    /// # Errors
    /// When a device is too small for that.
    pub fn add_data_devices(&mut self, devices: &[NewDevice<'_>]) -> Result<()> {
        let tier = &mut self.backstore.data_tier;
        for device in devices {
            let entry = new_entry(device, tier.integrity_spec.as_ref())?;
            tier.blockdev.devs.push(entry);
        }
        Ok(())
    }

    /// Makes these devices the cache tier: space for the cache's metadata first, and all the rest for its blocks.
    ///
    /// # Errors
    /// When there is not enough space for the metadata, or more for blocks than a cache may have.
    pub fn init_cache(&mut self, devices: &[NewDevice<'_>]) -> Result<()> {
        let devs = devices.iter().map(|device| new_entry(device, None)).collect::<Result<_>>()?;
        let mut spaces = TierSpace::new([]);
        for device in devices {
            spaces.push(device.header.device, space(device.header, [])?);
        }
        let metadata = spaces.request(&[sizes::CACHE_METADATA])?.and_then(|mut granted| granted.pop());
        let metadata = metadata.ok_or(Error::NoSpace { what: sizes::CACHE_METADATA })?;
        let blocks = spaces.take_all();
        sizes::check_cache(device_total(&blocks))?;
        self.backstore.cache_tier = Some(TierRecord::new(BlockDevs::new(vec![blocks, metadata], devs), None));
        Ok(())
    }

    /// Adds devices to the cache tier: all their space is for the cache's blocks.
    ///
    /// # Errors
    /// When the cache would have more than it may have.
    pub fn add_cache_devices(&mut self, devices: &[NewDevice<'_>]) -> Result<()> {
        let Some(tier) = &mut self.backstore.cache_tier else { return Ok(()) };
        for device in devices {
            let mut spaces = TierSpace::new([(device.header.device, space(device.header, [])?)]);
            tier.blockdev.devs.push(new_entry(device, None)?);
            if let Some(blocks) = tier.blockdev.allocs.first_mut() {
                segments::append(blocks, spaces.take_all());
            }
        }
        let blocks = tier.blockdev.allocs.first().map_or(Sectors::ZERO, |blocks| device_total(blocks));
        Ok(sizes::check_cache(blocks)?)
    }

    /// Reserves at the end of a data device that has grown what integrity data of its new size needs more.
    ///
    /// # Errors
    /// When it has not grown by as much.
    pub fn reserve_integrity(&mut self, header: &StaticHeader) -> Result<()> {
        let reserved = self.integrity_reserved(header.device);
        let taken = self.data_segments().iter().filter(|segment| segment.parent == header.device);
        let taken: Vec<Segment> = taken.map(DeviceSegment::segment).collect();
        let tier = &mut self.backstore.data_tier;
        let Some(spec) = &tier.integrity_spec else { return Ok(()) };
        let Some(entry) = tier.blockdev.devs.iter_mut().find(|entry| entry.uuid == header.device) else {
            return Ok(());
        };
        let more = sizes::integrity_reservation(header.device_size, spec)?.saturating_sub(reserved);
        let mut space = space(header, taken.into_iter().chain(entry.integrity_meta_allocs.iter().copied()))?;
        entry.integrity_meta_allocs.extend(space.reserve_back(more)?);
        Ok(())
    }

    /// Gives space to the thin pool: `metadata` to its metadata device and as much to the spare, `data` to its data device.
    ///
    /// # Errors
    /// When the devices do not have it; nothing is given then.
    pub fn extend(
        &mut self,
        version: MetadataVersion,
        headers: &[&StaticHeader],
        metadata: Sectors,
        data: Sectors,
    ) -> Result<()> {
        let wanted: Vec<Sectors> =
            [metadata, metadata, data].into_iter().filter(|size| *size > Sectors::ZERO).collect();
        let mut granted = grant(self, version, headers, &wanted)?.into_iter();
        if metadata > Sectors::ZERO {
            segments::append(&mut self.flex_devs.thin_meta_dev, granted.next());
            segments::append(&mut self.flex_devs.thin_meta_dev_spare, granted.next());
        }
        segments::append(&mut self.flex_devs.thin_data_dev, granted);
        Ok(())
    }
}

fn device_total(segments: &[DeviceSegment]) -> Sectors {
    segments.iter().map(|segment| segment.length).fold(Sectors::ZERO, Sectors::saturating_add)
}

impl ThinPoolDev {
    /// Feature arguments of the thin pool. Where none are recorded, writes wait for space.
    pub fn features(&self) -> Vec<String> {
        match &self.feature_args {
            Some(recorded) => recorded.iter().cloned().collect(),
            None => FEATURES_ALWAYS.map(str::to_owned).to_vec(),
        }
    }

    /// Whether writes fail when no data blocks are left: nothing is left to give to the thin pool.
    pub fn errors_if_no_space(&self) -> bool {
        self.feature_args.as_ref().is_some_and(|features| features.contains(ERROR_IF_NO_SPACE))
    }

    /// Lets writes fail, or wait, when no data blocks are left.
    pub fn set_errors_if_no_space(&mut self, fail: bool) {
        let mut features = self.features();
        features.retain(|feature| feature != ERROR_IF_NO_SPACE);
        features.extend(fail.then(|| ERROR_IF_NO_SPACE.to_owned()));
        self.feature_args = Some(features.into_iter().collect());
    }
}

/// A device that is to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct NewDevice<'a> {
    /// Its signature block.
    pub header: &'a StaticHeader,
    /// What udev says of it.
    pub hardware_info: Option<&'a str>,
}

/// The record of a new data device. Integrity data lies at its end (`docs/spec/engine/storage-stack.md` §4).
fn new_entry(device: &NewDevice<'_>, integrity: Option<&IntegritySpec>) -> Result<BlockDev> {
    let header = device.header;
    let integrity_meta_allocs = match integrity {
        Some(spec) => space(header, [])?.reserve_back(sizes::integrity_reservation(header.device_size, spec)?)?,
        None => Vec::new(),
    };
    Ok(BlockDev {
        uuid: header.device,
        integrity_meta_allocs,
        user_info: None,
        hardware_info: device.hardware_info.map(str::to_owned),
        rest: Rest::default(),
    })
}

/// The space of a device: its own metadata and these stretches are taken.
fn space(header: &StaticHeader, taken: impl IntoIterator<Item = Segment>) -> Result<DeviceSpace> {
    let mut space = DeviceSpace::new(header.device_size);
    space.take_range(Segment::new(Sectors::ZERO, header.extended_size()))?;
    taken.into_iter().try_for_each(|segment| space.take_range(segment))?;
    Ok(space)
}

/// A pool to be, as far as it is planned before the size of its thin metadata is known.
#[derive(Debug)]
pub struct Draft<'a> {
    version: MetadataVersion,
    devices: &'a [NewDevice<'a>],
    tier: TierRecord,
}

impl<'a> Draft<'a> {
    /// A pool of these devices.
    ///
    /// # Errors
    /// When a device is too small.
    pub fn new(version: MetadataVersion, integrity: IntegritySpec, devices: &'a [NewDevice<'a>]) -> Result<Draft<'a>> {
        let integrity_spec = (version == MetadataVersion::V2).then_some(integrity);
        let devs = devices.iter().map(|device| new_entry(device, integrity_spec.as_ref())).collect::<Result<_>>()?;
        let tier = TierRecord::new(BlockDevs::new(vec![Vec::new()], devs), integrity_spec);
        Ok(Draft { version, devices, tier })
    }

    fn crypt_reserved(&self) -> Sectors {
        match self.version {
            MetadataVersion::V1 => Sectors::ZERO,
            MetadataVersion::V2 => sizes::CRYPT_RESERVATION,
        }
    }

    /// Space for the upper layers.
    pub fn usable(&self) -> Sectors {
        let of_device = |(device, entry): (&NewDevice<'_>, &BlockDev)| {
            let header = device.header;
            header
                .device_size
                .saturating_sub(header.extended_size())
                .saturating_sub(total(&entry.integrity_meta_allocs))
        };
        let all = self.devices.iter().zip(&self.tier.blockdev.devs).map(of_device);
        all.fold(Sectors::ZERO, Sectors::saturating_add).saturating_sub(self.crypt_reserved())
    }

    /// The metadata of the new pool, its thin metadata of this size.
    ///
    /// # Errors
    /// When the devices do not have room for everything.
    pub fn lay_out(self, name: &str, thin_metadata: Sectors) -> Result<PoolMetadata> {
        let parts = sizes::initial(self.usable(), thin_metadata)?;
        let mut record = PoolMetadata {
            name: name.to_owned(),
            backstore: Backstore {
                data_tier: self.tier.clone(),
                cap: Cap::default(),
                cache_tier: None,
                rest: Rest::default(),
            },
            flex_devs: FlexDevs::default(),
            thinpool_dev: ThinPoolDev {
                data_block_size: sizes::DATA_BLOCK,
                feature_args: Some(FEATURES_ALWAYS.map(str::to_owned).into()),
                fs_limit: Some(sizes::FS_LIMIT),
                enable_overprov: Some(true),
                rest: Rest::default(),
            },
            started: Some(true),
            features: std::collections::BTreeSet::new(),
            last_reencrypt: None,
            destroying: None,
            repaired: false,
            rest: Rest::default(),
        };
        let headers: Vec<&StaticHeader> = self.devices.iter().map(|device| device.header).collect();
        if self.crypt_reserved() > Sectors::ZERO {
            take_from_tier(&mut record.backstore.data_tier, &headers, &[self.crypt_reserved()])?;
            cap::reserve_crypt(&mut record.backstore.cap, self.version)?;
        }
        let granted = grant(&mut record, self.version, &headers, &parts.request())?;
        let [meta, spare, data, mdv] = granted[..] else {
            unreachable!("one segment is granted for each of the four sizes")
        };
        record.flex_devs = FlexDevs {
            meta_dev: vec![mdv],
            thin_meta_dev: vec![meta],
            thin_data_dev: vec![data],
            thin_meta_dev_spare: vec![spare],
            rest: Rest::default(),
        };
        Ok(record)
    }
}

/// Takes space from the data tier and hands it out of the cap device: one segment for each size, or nothing at all.
///
/// # Errors
/// When the tier does not have the space.
pub(super) fn grant(
    record: &mut PoolMetadata,
    version: MetadataVersion,
    headers: &[&StaticHeader],
    wanted: &[Sectors],
) -> Result<Vec<Segment>> {
    let mut new = record.clone();
    let base = CapBase::of(version, record.is_encrypted());
    let granted = cap::hand_out(&mut new.backstore.cap, base, wanted)?;
    // More than was handed out may have been taken of the tier: ahead of a work on the data, or by a request that was not
    // completed.
    let more = new.needed_of_data(version)?.saturating_sub(device_total(new.data_segments()));
    take_from_tier(&mut new.backstore.data_tier, headers, &[more])?;
    *record = new;
    Ok(granted)
}

/// Takes space from the devices of a tier, in pool order and from the front of each.
fn take_from_tier(tier: &mut TierRecord, headers: &[&StaticHeader], wanted: &[Sectors]) -> Result<()> {
    let devs = &mut tier.blockdev;
    let taken = devs.allocs.first().cloned().unwrap_or_default();
    let mut space_of = TierSpace::new([]);
    for entry in &devs.devs {
        let Some(header) = headers.iter().find(|header| header.device == entry.uuid) else { continue };
        let allocated = taken.iter().filter(|segment| segment.parent == entry.uuid).map(DeviceSegment::segment);
        // Of a device that has shrunk, what is held past its end is gone.
        let held = entry.integrity_meta_allocs.iter().filter_map(|&Segment { start, length }| {
            let length = length.min(header.device_size.saturating_sub(start));
            (length > Sectors::ZERO).then_some(Segment { start, length })
        });
        space_of.push(entry.uuid, space(header, allocated.chain(held))?);
    }
    let Some(new) = space_of.request(wanted)? else {
        return Err(Error::NoSpace { what: Sectors::checked_sum(wanted.iter().copied()).unwrap_or_default() });
    };
    let mut joined = taken;
    segments::append(&mut joined, new.into_iter().flatten());
    match devs.allocs.first_mut() {
        Some(list) => *list = joined,
        None => devs.allocs.push(joined),
    }
    Ok(())
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
