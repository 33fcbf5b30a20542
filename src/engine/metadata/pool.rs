//! The pool-level JSON: what a pool is made of (`docs/spec/engine/ondisk-metadata.md` §6).
//!
//! One set of structs serves both metadata versions; the version is a value that decides which keys there are. Keys
//! are written in the order of the specification's tables, which is that of the fields here. Keys that this daemon does
//! not know, written by a newer one, are kept at every level ([`Rest`]) and written again after the others. Knows the text
//! and the rules that its numbers keep ([`check`](mod@check)); must never know where it is stored.

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

/// A data block of a thin pool; no other size is ever recorded.
pub const DATA_BLOCK: Sectors = Sectors(2048);
/// What is held for a LUKS2 header at the start of the device on top of the tiers (version 2), encrypted or not.
pub const CRYPT_RESERVATION: Sectors = Sectors(34_816);
/// Space for integrity data is a multiple of this.
pub const INTEGRITY_UNIT: Sectors = Sectors(8);

/// Why a text is not pool-level metadata.
#[derive(Debug, thiserror::Error)]
#[error("the pool's metadata is not as it must be; a newer daemon may have written it")]
pub struct Unparsable(#[from] serde_json::Error);

/// A stretch of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(Sectors, Sectors)", into = "(Sectors, Sectors)")]
pub struct Segment {
    /// First sector.
    pub start: Sectors,
    /// Number of sectors.
    pub length: Sectors,
}

/// A stretch of one of a tier's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceSegment {
    /// The device.
    pub parent: DevUuid,
    /// First sector, from the start of the Stratis device.
    pub start: Sectors,
    /// Number of sectors.
    pub length: Sectors,
}

impl Segment {
    /// A stretch of `length` sectors from `start` on.
    pub const fn new(start: Sectors, length: Sectors) -> Segment {
        Segment { start, length }
    }

    /// The first sector after it; `None` past all devices.
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
    /// The stretch, the device left out.
    pub fn segment(&self) -> Segment {
        Segment { start: self.start, length: self.length }
    }
}

/// Everything that is recorded of a pool, its filesystems excepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMetadata {
    /// Its name, as recorded: not checked against the rules for names.
    #[serde(serialize_with = "write_cut")]
    pub name: String,
    /// Its devices and what has been taken of them.
    pub backstore: Backstore,
    /// The devices on the cap device.
    pub flex_devs: FlexDevs,
    /// The thin pool.
    pub thinpool_dev: ThinPoolDev,
    /// Whether it is to be set up when found. `None`, read from old metadata, counts as `true`.
    pub started: Option<bool>,
    /// What it can do that can be told before it is set up (version 2).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<Feature>,
    /// When it was last re-encrypted completely, seconds since 1970.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub last_reencrypt: Option<u64>,
    /// Its destruction has been decided: the time stamp of the generation of metadata that says so. A key of this daemon. Others
    /// do not know it, and drop it or keep it when they write; see [`PoolMetadata::is_condemned`].
    #[serde(
        default,
        deserialize_with = "stamp",
        serialize_with = "write_stamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub destroying: Option<Timestamp>,
    /// The spare for the thin pool's metadata holds what that was before a repair, and nothing has found the repaired metadata
    /// sound since. A key of this daemon, written when `true` only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repaired: bool,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What a pool can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Feature {
    /// Never written today.
    Raid,
    /// Never written today.
    Integrity,
    /// It is encrypted.
    Encryption,
    /// At least one key of the kernel keyring opens it.
    KeyDescriptionEnabled,
    /// At least one Clevis binding opens it.
    ClevisEnabled,
}

/// The devices and what has been taken of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backstore {
    /// The devices that hold data.
    pub data_tier: Tier,
    /// What has been handed out of the device on top of the tiers.
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
#[serde(from = "form::Tier", into = "form::Tier")]
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
#[serde(from = "form::BlockDevs", into = "form::BlockDevs")]
pub struct BlockDevs {
    /// What is taken of them, in the order in which it is assembled. Data tier: one list, that of the origin. Cache
    /// tier: two, that of the cache and that of its metadata.
    pub allocs: Vec<Vec<DeviceSegment>>,
    /// The devices in pool order: space is taken device by device in this order.
    pub devs: Vec<BlockDev>,
    /// Other keys of segments, by the place of their list, their device and their first sector: a segment keeps these
    /// when it becomes longer.
    pub segment_rests: BTreeMap<(usize, DevUuid, Sectors), Rest>,
    /// Other keys.
    pub rest: Rest,
}

impl Tier {
    /// A tier of these devices.
    pub fn new(blockdev: BlockDevs, integrity_spec: Option<IntegritySpec>) -> Tier {
        Tier { blockdev, integrity_spec, spec_rest: Rest::default(), rest: Rest::default() }
    }
}

impl BlockDevs {
    /// These devices, and what is taken of them.
    pub fn new(allocs: Vec<Vec<DeviceSegment>>, devs: Vec<BlockDev>) -> BlockDevs {
        BlockDevs { allocs, devs, segment_rests: BTreeMap::new(), rest: Rest::default() }
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDev {
    /// Its identifier.
    pub uuid: DevUuid,
    /// Reserved for integrity data: data devices of version 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub integrity_meta_allocs: Vec<Segment>,
    /// What the user said of it.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "write_cut_if")]
    pub user_info: Option<String>,
    /// What udev said of it when it was initialized.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "write_cut_if")]
    pub hardware_info: Option<String>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What has been handed out of the cap device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// Version 1: one element, `[0, total]`. Version 2: ranges that follow one another.
    pub allocs: Vec<Segment>,
    /// Held for a LUKS2 header (version 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crypt_meta_allocs: Vec<Segment>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The devices on the cap device: stretches of it, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlexDevs {
    /// The metadata volume.
    pub meta_dev: Vec<Segment>,
    /// The thin pool's metadata.
    pub thin_meta_dev: Vec<Segment>,
    /// The thin pool's data.
    pub thin_data_dev: Vec<Segment>,
    /// As large as the thin pool's metadata, for its repair.
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
    /// Feature arguments in force when this was saved, sorted. `None` in old metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_args: Option<BTreeSet<String>>,
    /// Largest number of filesystems. `None` in old metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_limit: Option<u64>,
    /// Whether filesystems may be larger together than the pool. `None`, in old metadata, counts as `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_overprov: Option<bool>,
    /// Other keys.
    #[serde(flatten)]
    pub rest: Rest,
}

impl PoolMetadata {
    /// Reads the JSON of a pool of this version. Keys of the other version are ignored like any unknown key.
    ///
    /// # Errors
    /// If it is no JSON, or required keys are missing, or values have the wrong type, or a feature is unknown.
    pub fn parse(json: &[u8], version: MetadataVersion) -> Result<PoolMetadata, Unparsable> {
        let mut metadata: PoolMetadata = serde_json::from_slice(json)?;
        metadata.keep_keys_of(version);
        Ok(metadata)
    }

    /// Whether the destruction of the pool is to be completed, by metadata that was written at `stamp`. Not if somebody has
    /// written it since, as a daemon does that starts the pool.
    pub fn is_condemned(&self, stamp: Timestamp) -> bool {
        self.destroying == Some(stamp) && self.started == Some(false)
    }

    /// As it is written at `stamp`.
    #[must_use]
    pub fn stamped(&self, stamp: Timestamp) -> PoolMetadata {
        PoolMetadata { destroying: self.destroying.map(|_| stamp), ..self.clone() }
    }

    /// The JSON for a pool of this version: compact, with the keys that the version has.
    pub fn encode(&self, version: MetadataVersion) -> Vec<u8> {
        let mut metadata = self.clone();
        metadata.keep_keys_of(version);
        metadata.started.get_or_insert(true);
        serde_json::to_vec(&metadata).expect("plain structs with string keys always have a JSON form")
    }

    /// Drops the keys that the version does not have, and fills in those that it always has.
    fn keep_keys_of(&mut self, version: MetadataVersion) {
        let data_tier = &mut self.backstore.data_tier;
        if version == MetadataVersion::V2 {
            data_tier.integrity_spec.get_or_insert_default();
        } else {
            // Existing daemons take the absence of these keys for the sign of a version 1 pool.
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

    /// Whether the pool's whole stack is encrypted (version 2).
    pub fn is_encrypted(&self) -> bool {
        self.features.contains(&Feature::Encryption)
    }

    /// Every device of the pool: identifiers of the data tier, then of the cache tier.
    pub fn devices(&self) -> impl Iterator<Item = DevUuid> + '_ {
        let cache = self.backstore.cache_tier.iter().flat_map(|tier| &tier.blockdev.devs);
        self.backstore.data_tier.blockdev.devs.iter().chain(cache).map(|dev| dev.uuid)
    }
}

/// See [`write_cut`]; `None` is skipped before.
fn write_cut_if<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(cut).serialize(to)
}

/// A time stamp as seconds and nanoseconds. Anything else is none: nothing is destroyed because of it.
fn stamp<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    let parts: Option<(u64, u32)> = serde_json::from_value(value).ok();
    Ok(parts.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }))
}

fn write_stamp<S: Serializer>(stamp: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    stamp.map(|stamp| (stamp.seconds, stamp.nanoseconds)).serialize(to)
}

/// A key that may be missing but, if there, has a value.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
