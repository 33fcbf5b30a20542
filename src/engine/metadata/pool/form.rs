//! The JSON form of values that have another shape in memory: objects whose known keys form a plain
//! value in memory, next to which the other keys are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BlockDev, DeviceSegment};
use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::metadata::{IntegritySpec, Rest, TagSpec},
};

/// See [`super::Tier`].
#[derive(Serialize, Deserialize)]
pub struct TierForm {
    blockdev: super::BlockDevs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    integrity_spec: Option<SpecForm>,
    #[serde(flatten)]
    rest: Rest,
}

/// See [`IntegritySpec`].
#[derive(Serialize, Deserialize)]
struct SpecForm {
    tag_spec: TagSpec,
    journal_size: Sectors,
    block_size: u64,
    allocate_superblock: bool,
    #[serde(flatten)]
    rest: Rest,
}

impl From<TierForm> for super::Tier {
    fn from(form: TierForm) -> super::Tier {
        let TierForm { blockdev, integrity_spec, rest } = form;
        let (integrity_spec, spec_rest) = integrity_spec
            .map(|spec| {
                let SpecForm { tag_spec, journal_size, block_size, allocate_superblock, rest } = spec;
                (IntegritySpec { tag_spec, journal_size, block_size, allocate_superblock }, rest)
            })
            .unzip();
        super::Tier { blockdev, integrity_spec, spec_rest: spec_rest.unwrap_or_default(), rest }
    }
}

impl From<super::Tier> for TierForm {
    fn from(tier: super::Tier) -> TierForm {
        let super::Tier { blockdev, integrity_spec, spec_rest, rest } = tier;
        let integrity_spec = integrity_spec.map(|spec| {
            let IntegritySpec { tag_spec, journal_size, block_size, allocate_superblock } = spec;
            SpecForm { tag_spec, journal_size, block_size, allocate_superblock, rest: spec_rest }
        });
        TierForm { blockdev, integrity_spec, rest }
    }
}

/// See [`super::BlockDevs`].
#[derive(Serialize, Deserialize)]
pub struct BlockDevsForm {
    allocs: Vec<Vec<SegmentForm>>,
    devs: Vec<BlockDev>,
    #[serde(flatten)]
    rest: Rest,
}

/// See [`DeviceSegment`].
#[derive(Serialize, Deserialize)]
struct SegmentForm {
    parent: DevUuid,
    start: Sectors,
    length: Sectors,
    #[serde(flatten)]
    rest: Rest,
}

impl From<BlockDevsForm> for super::BlockDevs {
    fn from(form: BlockDevsForm) -> super::BlockDevs {
        let mut segment_rests = BTreeMap::new();
        let lists = form.allocs.into_iter().enumerate().map(|(list, segments)| {
            let plain = segments.into_iter().map(|SegmentForm { parent, start, length, rest }| {
                if !rest.is_empty() {
                    segment_rests.insert((list, parent, start), rest);
                }
                DeviceSegment { parent, start, length }
            });
            plain.collect()
        });
        let allocs = lists.collect();
        super::BlockDevs { allocs, devs: form.devs, segment_rests, rest: form.rest }
    }
}

impl From<super::BlockDevs> for BlockDevsForm {
    fn from(devs: super::BlockDevs) -> BlockDevsForm {
        let super::BlockDevs { allocs, devs, mut segment_rests, rest } = devs;
        let lists = allocs.into_iter().enumerate().map(|(list, segments)| {
            let full = segments.into_iter().map(|DeviceSegment { parent, start, length }| {
                let rest = segment_rests.remove(&(list, parent, start)).unwrap_or_default();
                SegmentForm { parent, start, length, rest }
            });
            full.collect()
        });
        BlockDevsForm { allocs: lists.collect(), devs, rest }
    }
}
