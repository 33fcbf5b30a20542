//! The pool metadata: the JSON that describes what a pool consists of
//! (`docs/spec/engine/ondisk-metadata.md` §6).
//!
//! One set of structs serves both metadata versions. The version is a value that decides which keys
//! exist. Keys are written in the order of the specification's tables, which is the order of the
//! fields here. Unknown keys of a newer daemon are kept at every level ([`Rest`]) and written after
//! the others. This module handles the text and the rules for its numbers ([`check`](mod@check)).
//! It must never depend on where the text is stored.

mod check;
mod form;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::check::{Broken, check, check_members};
use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::metadata::{IntegritySpec, MetadataVersion, Rest, cut, write_cut},
    platform::Timestamp,
};

/// Size of a data block of a thin pool. No other size is ever recorded.
pub const DATA_BLOCK: Sectors = Sectors(2048);
/// Space reserved for a LUKS2 header at the start of the device above the tiers (version 2),
/// whether the pool is encrypted or not.
pub const CRYPT_RESERVATION: Sectors = Sectors(34_816);
/// The space for integrity data is a multiple of this.
pub const INTEGRITY_UNIT: Sectors = Sectors(8);

/// Why a text is not pool metadata.
#[derive(Debug, thiserror::Error)]
#[error("the pool's metadata is not as it must be; a newer daemon may have written it")]
pub struct Unparsable(#[from] serde_json::Error);

/// A range of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(Sectors, Sectors)", into = "(Sectors, Sectors)")]
pub struct Segment {
    /// First sector.
    pub start: Sectors,
    /// Number of sectors.
    pub length: Sectors,
}

/// A range of one of a tier's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceSegment {
    /// The device.
    pub parent: DevUuid,
    /// First sector, from the start of the block device.
    pub start: Sectors,
    /// Number of sectors.
    pub length: Sectors,
}

impl Segment {
    /// A range of `length` sectors that begins at `start`.
    pub const fn new(start: Sectors, length: Sectors) -> Segment {
        Segment { start, length }
    }

    /// The first sector after the range; `None` if it lies past all devices.
    pub fn end(&self) -> Option<Sectors> {
        self.start.checked_add(self.length)
    }
}

impl From<(Sectors, Sectors)> for Segment {
    fn from((start, length): (Sectors, Sectors)) -> Segment {
        Segment { start, length }
    }
}

impl From<Segment> for (Sectors, Sectors) {
    fn from(segment: Segment) -> (Sectors, Sectors) {
        (segment.start, segment.length)
    }
}

impl DeviceSegment {
    /// The range without the device.
    pub fn segment(&self) -> Segment {
        Segment { start: self.start, length: self.length }
    }
}

/// Everything that is recorded about a pool, except its filesystems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMetadata {
    /// The recorded name, not checked against the rules for names.
    #[serde(serialize_with = "write_cut")]
    pub name: String,
    /// The pool's devices and the space taken from them.
    pub backstore: Backstore,
    /// The flex devices on the cap device.
    pub flex_devs: FlexDevs,
    /// The thin pool.
    pub thinpool_dev: ThinPoolDev,
    /// Whether the pool is to be set up when found. `None`, in old metadata, counts as `true`.
    pub started: Option<bool>,
    /// Features of the pool that readers need before the set-up (version 2).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<Feature>,
    /// Time of the last complete re-encryption, in seconds since 1970.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub last_reencrypt: Option<u64>,
    /// The destruction of the pool was decided, in the generation of the metadata with this time
    /// stamp. Only this daemon writes the key. Other daemons do not know it, and drop it or keep it
    /// when they write; see [`PoolMetadata::is_condemned`].
    #[serde(
        default,
        deserialize_with = "stamp",
        serialize_with = "write_stamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub destroying: Option<Timestamp>,
    /// The spare thin metadata holds the thin metadata from before a repair, and no check has found
    /// the repaired metadata sound since. Only this daemon writes the key, and only when it is
    /// `true`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repaired: bool,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A feature of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Feature {
    /// Never written today.
    Raid,
    /// Never written today.
    Integrity,
    /// The pool is encrypted.
    Encryption,
    /// At least one key of the kernel keyring unlocks the pool.
    KeyDescriptionEnabled,
    /// At least one Clevis binding unlocks the pool.
    ClevisEnabled,
}

/// The devices and the space taken from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backstore {
    /// The devices that hold data.
    pub data_tier: Tier,
    /// The space handed out from the cap device, above the tiers.
    pub cap: Cap,
    /// The devices that hold the cache, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_tier: Option<Tier>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A set of devices with one purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "form::TierForm", into = "form::TierForm")]
pub struct Tier {
    /// Its devices.
    pub blockdev: BlockDevs,
    /// Space reserved for integrity data on each device: data tiers of version 2.
    pub integrity_spec: Option<IntegritySpec>,
    /// Other keys of the integrity settings.
    pub spec_rest: Rest,
    /// Other keys.
    pub rest: Rest,
}

/// Devices of a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "form::BlockDevsForm", into = "form::BlockDevsForm")]
pub struct BlockDevs {
    /// The ranges taken from the devices, in the order in which they are assembled. Data tier: one
    /// list, for the origin. Cache tier: two, for the cache and for the cache metadata.
    pub allocs: Vec<Vec<DeviceSegment>>,
    /// The devices in pool order. Space is taken device by device in this order.
    pub devs: Vec<BlockDev>,
    /// Other keys of segments, by index of the list, device and first sector. So a segment keeps
    /// its keys when it becomes longer.
    pub segment_rests: BTreeMap<(usize, DevUuid, Sectors), Rest>,
    /// Other keys.
    pub rest: Rest,
}

impl Tier {
    /// Makes a tier of these devices.
    pub fn new(blockdev: BlockDevs, integrity_spec: Option<IntegritySpec>) -> Tier {
        Tier { blockdev, integrity_spec, spec_rest: Rest::default(), rest: Rest::default() }
    }
}

impl BlockDevs {
    /// Makes the record of these devices, with the space taken from them.
    pub fn new(allocs: Vec<Vec<DeviceSegment>>, devs: Vec<BlockDev>) -> BlockDevs {
        BlockDevs { allocs, devs, segment_rests: BTreeMap::new(), rest: Rest::default() }
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDev {
    /// Its identifier.
    pub uuid: DevUuid,
    /// Ranges reserved for integrity data, on data devices of version 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub integrity_meta_allocs: Vec<Segment>,
    /// The user's text about the device.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "write_cut_if")]
    pub user_info: Option<String>,
    /// What udev reported about the device when it was initialized.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "write_cut_if")]
    pub hardware_info: Option<String>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The space handed out from the cap device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// Version 1: one element, `[0, total]`. Version 2: consecutive ranges.
    pub allocs: Vec<Segment>,
    /// Space reserved for a LUKS2 header (version 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crypt_meta_allocs: Vec<Segment>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The flex devices: ranges of the cap device, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlexDevs {
    /// The metadata volume.
    pub meta_dev: Vec<Segment>,
    /// The thin metadata.
    pub thin_meta_dev: Vec<Segment>,
    /// The thin data.
    pub thin_data_dev: Vec<Segment>,
    /// The spare thin metadata, as large as the thin metadata.
    pub thin_meta_dev_spare: Vec<Segment>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

impl FlexDevs {
    /// The four lists with their keys.
    pub fn lists(&self) -> [(&'static str, &[Segment]); 4] {
        [
            ("meta_dev", &self.meta_dev),
            ("thin_meta_dev", &self.thin_meta_dev),
            ("thin_data_dev", &self.thin_data_dev),
            ("thin_meta_dev_spare", &self.thin_meta_dev_spare),
        ]
    }
}

/// The thin pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThinPoolDev {
    /// Size of a data block.
    pub data_block_size: Sectors,
    /// Feature arguments in force when the metadata was saved, sorted. `None` in old metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_args: Option<BTreeSet<String>>,
    /// Largest number of filesystems. `None` in old metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_limit: Option<u64>,
    /// Whether the filesystems together may be larger than the pool. `None`, in old metadata,
    /// counts as `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_overprov: Option<bool>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

impl PoolMetadata {
    /// Parses the JSON of a pool of this version. Keys of the other version are ignored like any
    /// unknown key.
    ///
    /// # Errors
    /// If the text is not JSON, required keys are missing, values have the wrong type, or a feature
    /// is unknown.
    pub fn parse(json: &[u8], version: MetadataVersion) -> Result<PoolMetadata, Unparsable> {
        let mut metadata: PoolMetadata = serde_json::from_slice(json)?;
        metadata.keep_keys_of(version);
        Ok(metadata)
    }

    /// Whether the destruction of the pool is to be completed, for metadata that was written at
    /// `stamp`. It is not if a daemon has written the metadata since, as it does when it starts the
    /// pool.
    pub fn is_condemned(&self, stamp: Timestamp) -> bool {
        self.destroying == Some(stamp) && self.started == Some(false)
    }

    /// The metadata as written at `stamp`.
    #[must_use]
    pub fn stamped(&self, stamp: Timestamp) -> PoolMetadata {
        PoolMetadata { destroying: self.destroying.map(|_| stamp), ..self.clone() }
    }

    /// The JSON for a pool of this version: compact, with the keys of that version.
    pub fn encode(&self, version: MetadataVersion) -> Vec<u8> {
        let mut metadata = self.clone();
        metadata.keep_keys_of(version);
        metadata.started.get_or_insert(true);
        serde_json::to_vec(&metadata).expect("plain structs with string keys always have a JSON form")
    }

    /// Removes keys that the version does not have, and adds those that it always has.
    fn keep_keys_of(&mut self, version: MetadataVersion) {
        let data_tier = &mut self.backstore.data_tier;
        if version == MetadataVersion::V2 {
            data_tier.integrity_spec.get_or_insert_default();
        } else {
            // Existing daemons recognize a version 1 pool by the absence of these keys.
            data_tier.integrity_spec = None;
            data_tier.blockdev.devs.iter_mut().for_each(|dev| dev.integrity_meta_allocs.clear());
            self.backstore.cap.crypt_meta_allocs.clear();
            self.features.clear();
        }
        if let Some(tier) = &mut self.backstore.cache_tier {
            tier.integrity_spec = None;
            tier.blockdev.devs.iter_mut().for_each(|dev| dev.integrity_meta_allocs.clear());
        }
    }

    /// Whether the whole stack of the pool is encrypted (version 2).
    pub fn is_encrypted(&self) -> bool {
        self.features.contains(&Feature::Encryption)
    }

    /// UUIDs of all devices of the pool: first the data tier, then the cache tier.
    pub fn devices(&self) -> impl Iterator<Item = DevUuid> + '_ {
        let cache = self.backstore.cache_tier.iter().flat_map(|tier| &tier.blockdev.devs);
        self.backstore.data_tier.blockdev.devs.iter().chain(cache).map(|dev| dev.uuid)
    }
}

/// See [`write_cut`]. `None` never gets here, because serde skips it.
fn write_cut_if<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(cut).serialize(to)
}

/// Parses a time stamp of seconds and nanoseconds. Any other value counts as no stamp, so that it
/// never causes a destruction.
fn stamp<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    let parts: Option<(u64, u32)> = serde_json::from_value(value).ok();
    Ok(parts.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }))
}

fn write_stamp<S: Serializer>(stamp: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    stamp.map(|stamp| (stamp.seconds, stamp.nanoseconds)).serialize(to)
}

/// A key that may be missing but must not be null.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
