//! A running thin pool: its mode, its features, its users. The rules are in `dm` and `io`.

use std::{collections::HashMap, time::Duration};

use nix::libc;

use super::thin::MappingsKey;
use crate::platform::DeviceNumber;

/// Mode of a thin pool, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PoolMode {
    Write,
    OutOfData,
    OutOfMetadata,
    ReadOnly,
    Fail,
}

/// Feature arguments of a thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolFeatures {
    pub(super) zero_new_blocks: bool,
    pub(super) discard: bool,
    pub(super) discard_passdown: bool,
    pub(super) read_only: bool,
    pub(super) error_if_no_space: bool,
}

impl PoolFeatures {
    pub(super) fn parse(words: &[String]) -> Result<PoolFeatures, i32> {
        let mut features = PoolFeatures {
            zero_new_blocks: true,
            discard: true,
            discard_passdown: true,
            read_only: false,
            error_if_no_space: false,
        };
        for word in words {
            match word.as_str() {
                "skip_block_zeroing" => features.zero_new_blocks = false,
                "ignore_discard" => features.discard = false,
                "no_discard_passdown" => features.discard_passdown = false,
                "read_only" => features.read_only = true,
                "error_if_no_space" => features.error_if_no_space = true,
                _ => return Err(libc::EINVAL),
            }
        }
        Ok(features)
    }

    /// The arguments in the kernel's order.
    pub(super) fn words(self) -> Vec<String> {
        [
            (!self.zero_new_blocks, "skip_block_zeroing"),
            (!self.discard, "ignore_discard"),
            (!self.discard_passdown, "no_discard_passdown"),
            (self.read_only, "read_only"),
            (self.error_if_no_space, "error_if_no_space"),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, word)| word.to_owned())
        .collect()
    }
}

/// A running thin pool; it exists while any table names it.
pub(super) struct PoolRun {
    pub(super) key: MappingsKey,
    pub(super) metadata: DeviceNumber,
    pub(super) data: DeviceNumber,
    pub(super) features: PoolFeatures,
    pub(super) mode: PoolMode,
    /// The time at which the pool stops queueing writes, if it is out of data space and queues
    /// them.
    pub(super) gives_up_at: Option<Duration>,
    pub(super) low_water: u64,
    pub(super) low_water_triggered: bool,
    /// Free metadata blocks are below the threshold, and the event for that was raised.
    pub(super) metadata_low: bool,
    pub(super) tables: u32,
    /// Number of tables that have each thin device open.
    pub(super) open: HashMap<u32, u32>,
}
