//! What pool metadata means: which devices and segments it names, how much space there is on which
//! layer, and the layout of a new pool or a new device (`docs/spec/engine/storage-stack.md` §4, 5,
//! 7.3, 11).
//!
//! These functions are pure: they turn metadata into metadata. [`crate::engine::metadata`] decides
//! where the bytes lie on disk.

use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::{
        error::{Error, Result},
        metadata::{
            IntegritySpec, MetadataVersion, PoolMetadata, Rest, StaticHeader,
            pool::{Backstore, BlockDev, BlockDevs, Cap, DeviceSegment, Feature, FlexDevs, Segment, ThinPoolDev, Tier},
        },
        plan::{
            alloc::{DeviceSpace, TierSpace},
            cap::{self, CapBase},
            segments, sizes,
        },
    },
    view::{DeviceTier, FeaturesView},
};

/// The feature argument that makes writes fail when no data blocks are left.
const ERROR_IF_NO_SPACE: &str = "error_if_no_space";
/// Feature arguments that a thin pool always has.
const FEATURES_ALWAYS: [&str; 2] = ["no_discard_passdown", "skip_block_zeroing"];

/// Sum of the lengths of segments. Segments were checked against the size of their devices when
/// they were read or planned.
pub(super) fn total(segments: &[Segment]) -> Sectors {
    segments.iter().map(|segment| segment.length).fold(Sectors::ZERO, Sectors::saturating_add)
}

impl PoolMetadata {
    /// Every device that the metadata names, with its tier, in pool order.
    pub fn device_entries(&self) -> impl Iterator<Item = (DeviceTier, &BlockDev)> {
        let data = self.backstore.data_tier.blockdev.devs.iter().map(|entry| (DeviceTier::Data, entry));
        let cache = self.backstore.cache_tier.iter().flat_map(|tier| &tier.blockdev.devs);
        data.chain(cache.map(|entry| (DeviceTier::Cache, entry)))
    }

    /// Identifiers of the data devices, in pool order.
    pub fn data_devices(&self) -> impl Iterator<Item = DevUuid> {
        self.backstore.data_tier.blockdev.devs.iter().map(|entry| entry.uuid)
    }

    /// Segments taken from the data devices, in the order in which they are joined.
    pub fn data_segments(&self) -> &[DeviceSegment] {
        self.backstore.data_tier.blockdev.allocs.first().map_or(&[], Vec::as_slice)
    }

    /// Segments taken from the cache devices, if there are any: those for blocks, and those for
    /// cache metadata.
    pub fn cache_segments(&self) -> Option<(&[DeviceSegment], &[DeviceSegment])> {
        let allocs = &self.backstore.cache_tier.as_ref()?.blockdev.allocs;
        Some((allocs.first().map_or(&[], Vec::as_slice), allocs.get(1).map_or(&[], Vec::as_slice)))
    }

    /// Space of a data device that is reserved for integrity data.
    pub fn integrity_reserved(&self, device: DevUuid) -> Sectors {
        let entry = self.backstore.data_tier.blockdev.devs.iter().find(|entry| entry.uuid == device);
        entry.map_or(Sectors::ZERO, |entry| total(&entry.integrity_meta_allocs))
    }

    /// Space reserved for a LUKS2 header.
    pub fn crypt_reserved(&self) -> Sectors {
        total(&self.backstore.cap.crypt_meta_allocs)
    }

    /// Space handed out from the cap device.
    pub fn handed_out(&self) -> Sectors {
        total(&self.backstore.cap.allocs)
    }

    /// Space that counts as allocated, without Stratis' own metadata.
    pub fn allocated(&self, version: MetadataVersion) -> Sectors {
        match version {
            MetadataVersion::V1 => device_total(self.data_segments()),
            MetadataVersion::V2 => self.handed_out(),
        }
    }

    /// Total size of the thin metadata, the spare thin metadata and the metadata volume.
    pub fn flexible_metadata_size(&self) -> Sectors {
        let flex = &self.flex_devs;
        let parts = [&flex.thin_meta_dev, &flex.thin_meta_dev_spare, &flex.meta_dev];
        parts.into_iter().map(|part| total(part)).fold(Sectors::ZERO, Sectors::saturating_add)
    }

    /// Whether the device holds anything besides its own metadata.
    pub fn is_in_use(&self, device: DevUuid) -> bool {
        let cache = self.cache_segments().unwrap_or_default();
        [self.data_segments(), cache.0, cache.1].into_iter().flatten().any(|segment| segment.parent == device)
    }

    /// The end of the space in use on a device, not counting its own metadata and the space for
    /// integrity data.
    pub fn used_up_to(&self, device: DevUuid) -> Sectors {
        let cache = self.cache_segments().unwrap_or_default();
        let segments = [self.data_segments(), cache.0, cache.1].into_iter().flatten();
        let ends = segments.filter(|segment| segment.parent == device).filter_map(|segment| segment.segment().end());
        ends.max().unwrap_or_default()
    }

    /// Encoded size in bytes of the parts that grow without a bound: names, texts, lists of devices
    /// and segments.
    pub fn unbounded_bytes(&self) -> usize {
        serde_json::to_vec(&(&self.name, &self.backstore, &self.flex_devs)).map_or(usize::MAX, |text| text.len())
    }

    /// The pool's features, for the view.
    pub fn features_view(&self) -> FeaturesView {
        FeaturesView {
            encryption: self.features.contains(&Feature::Encryption),
            key_description: self.features.contains(&Feature::KeyDescriptionEnabled),
            clevis: self.features.contains(&Feature::ClevisEnabled),
        }
    }

    /// Records that the pool as a whole is encrypted, and by which kinds of bindings (version 2).
    ///
    /// # Errors
    /// When a segment of the cap device does not begin after the space reserved for the LUKS2
    /// header.
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

    /// Records that the pool is no longer encrypted.
    ///
    /// # Errors
    /// When a segment of the cap device would end past the range of sizes.
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

    /// Moves the start of every segment of the cap device.
    fn move_cap(&mut self, to: impl Fn(Sectors) -> Option<Sectors>) -> Result<()> {
        let flex = &mut self.flex_devs;
        let lists =
            [&mut flex.meta_dev, &mut flex.thin_meta_dev, &mut flex.thin_data_dev, &mut flex.thin_meta_dev_spare];
        for segment in lists.into_iter().flatten().chain(&mut self.backstore.cap.allocs) {
            segment.start = to(segment.start).ok_or(cap::CapError::Overflow)?;
        }
        Ok(())
    }

    /// Space that is taken from the data devices but not yet handed out from the cap device
    /// (version 2).
    pub fn taken_ahead(&self, version: MetadataVersion) -> Sectors {
        let taken = device_total(self.data_segments());
        self.needed_of_data(version).map_or(Sectors::ZERO, |needed| taken.saturating_sub(needed))
    }

    /// Space that the data devices must provide for what is handed out from the cap device.
    fn needed_of_data(&self, version: MetadataVersion) -> Result<Sectors> {
        let cap = &self.backstore.cap;
        let base = CapBase::of(version, self.is_encrypted());
        // Offsets of an encrypted pool begin after the space reserved for its header.
        let held = if base == CapBase::Opened { total(&cap.crypt_meta_allocs) } else { Sectors::ZERO };
        Ok(cap::next(cap, base)?.saturating_add(held))
    }

    /// Takes space from the data devices so that `ahead` can later be handed out without taking
    /// more.
    ///
    /// # Errors
    /// When the devices do not have that space.
    pub fn take_ahead(&mut self, version: MetadataVersion, headers: &[&StaticHeader], ahead: Sectors) -> Result<()> {
        let more = ahead.saturating_sub(self.taken_ahead(version));
        take_from_tier(&mut self.backstore.data_tier, headers, &[more])
    }

    /// The parts of a data device that hold the pool's LUKS2 header and keyslots, if the pool is
    /// encrypted (version 2). These lie at the beginning of the joined devices.
    pub fn luks_device_on(&self, device: DevUuid) -> Vec<Segment> {
        let mut left = if self.is_encrypted() { self.crypt_reserved() } else { Sectors::ZERO };
        let parts = self.data_segments().iter().map(|segment| {
            let length = segment.length.min(left);
            left = left.saturating_sub(length);
            (segment.parent, Segment::new(segment.start, length))
        });
        let parts = parts.filter(|(parent, part)| *parent == device && part.length > Sectors::ZERO);
        parts.map(|(_, part)| part).collect()
    }

    /// Sets or removes the user's text about a device.
    pub fn set_user_info(&mut self, device: DevUuid, info: Option<String>) {
        let data = self.backstore.data_tier.blockdev.devs.iter_mut();
        let cache = self.backstore.cache_tier.iter_mut().flat_map(|tier| &mut tier.blockdev.devs);
        if let Some(entry) = data.chain(cache).find(|entry| entry.uuid == device) {
            entry.user_info = info;
        }
    }

    /// Whether keys are missing that old daemons did not write
    /// (`docs/spec/engine/ondisk-metadata.md` §8).
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

    /// Adds data devices with these headers. In version 2, each gets a reservation for integrity
    /// data.
    ///
    /// # Errors
    /// When a device is too small for the reservation.
    pub fn add_data_devices(&mut self, devices: &[NewDevice<'_>]) -> Result<()> {
        let tier = &mut self.backstore.data_tier;
        for device in devices {
            let entry = new_entry(device, tier.integrity_spec.as_ref())?;
            tier.blockdev.devs.push(entry);
        }
        Ok(())
    }

    /// Makes a cache tier of these devices: takes space for the cache metadata first, and the rest
    /// for cache blocks.
    ///
    /// # Errors
    /// When there is not enough space for the cache metadata, or more space for blocks than a cache
    /// may have.
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
        self.backstore.cache_tier = Some(Tier::new(BlockDevs::new(vec![blocks, metadata], devs), None));
        Ok(())
    }

    /// Adds devices to the cache tier. All their space is for cache blocks.
    ///
    /// # Errors
    /// When the cache would have more blocks than it may have.
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

    /// Reserves more space for integrity data at the end of a data device that has grown.
    ///
    /// # Errors
    /// When the device has not grown by enough.
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

    /// Gives space to the thin pool: `metadata` to its metadata device and the same to the spare,
    /// `data` to its data device.
    ///
    /// # Errors
    /// When the devices do not have the space. The thin pool then gets none.
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
    /// Feature arguments of the thin pool. If none are recorded, writes wait for space.
    pub fn features(&self) -> Vec<String> {
        match &self.feature_args {
            Some(recorded) => recorded.iter().cloned().collect(),
            None => FEATURES_ALWAYS.map(str::to_owned).to_vec(),
        }
    }

    /// Whether writes fail when no data blocks are left. They do when there is no space left to
    /// give to the thin pool.
    pub fn errors_if_no_space(&self) -> bool {
        self.feature_args.as_ref().is_some_and(|features| features.contains(ERROR_IF_NO_SPACE))
    }

    /// Sets whether writes fail or wait when no data blocks are left.
    pub fn set_errors_if_no_space(&mut self, fail: bool) {
        let mut features = self.features();
        features.retain(|feature| feature != ERROR_IF_NO_SPACE);
        features.extend(fail.then(|| ERROR_IF_NO_SPACE.to_owned()));
        self.feature_args = Some(features.into_iter().collect());
    }
}

/// A device to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct NewDevice<'a> {
    /// Its signature block.
    pub header: &'a StaticHeader,
    /// What udev reports about it.
    pub hardware_info: Option<&'a str>,
}

/// The record of a new data device. Integrity data lies at the end of the device
/// (`docs/spec/engine/storage-stack.md` §4).
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

/// The free space of a device, without its own metadata and the `taken` segments.
fn space(header: &StaticHeader, taken: impl IntoIterator<Item = Segment>) -> Result<DeviceSpace> {
    let mut space = DeviceSpace::new(header.device_size);
    space.take_range(Segment::new(Sectors::ZERO, header.extended_size()))?;
    taken.into_iter().try_for_each(|segment| space.take_range(segment))?;
    Ok(space)
}

/// A planned pool, as far as it can be planned before the size of its thin metadata is known.
#[derive(Debug)]
pub struct LayoutDraft<'a> {
    version: MetadataVersion,
    devices: &'a [NewDevice<'a>],
    tier: Tier,
}

impl<'a> LayoutDraft<'a> {
    /// Plans a pool on these devices.
    ///
    /// # Errors
    /// When a device is too small.
    pub fn new(
        version: MetadataVersion,
        integrity: IntegritySpec,
        devices: &'a [NewDevice<'a>],
    ) -> Result<LayoutDraft<'a>> {
        let integrity_spec = (version == MetadataVersion::V2).then_some(integrity);
        let devs = devices.iter().map(|device| new_entry(device, integrity_spec.as_ref())).collect::<Result<_>>()?;
        let tier = Tier::new(BlockDevs::new(vec![Vec::new()], devs), integrity_spec);
        Ok(LayoutDraft { version, devices, tier })
    }

    fn crypt_reserved(&self) -> Sectors {
        match self.version {
            MetadataVersion::V1 => Sectors::ZERO,
            MetadataVersion::V2 => sizes::CRYPT_RESERVATION,
        }
    }

    /// Space for the layers above the data tier.
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

    /// The metadata of the new pool with thin metadata of this size.
    ///
    /// # Errors
    /// When the devices do not have enough space.
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

/// Takes space from the data tier and hands it out from the cap device: one segment for each size,
/// or nothing at all.
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
    // The tier may have taken more than was handed out: ahead of a re-encryption job, or for a
    // request that was not completed.
    let more = new.needed_of_data(version)?.saturating_sub(device_total(new.data_segments()));
    take_from_tier(&mut new.backstore.data_tier, headers, &[more])?;
    *record = new;
    Ok(granted)
}

/// Takes space from the devices of a tier, in pool order and from the front of each.
fn take_from_tier(tier: &mut Tier, headers: &[&StaticHeader], wanted: &[Sectors]) -> Result<()> {
    let devs = &mut tier.blockdev;
    let taken = devs.allocs.first().cloned().unwrap_or_default();
    let mut space_of = TierSpace::new([]);
    for entry in &devs.devs {
        let Some(header) = headers.iter().find(|header| header.device == entry.uuid) else { continue };
        let allocated = taken.iter().filter(|segment| segment.parent == entry.uuid).map(DeviceSegment::segment);
        // If a device has shrunk, reservations past its end are gone.
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
