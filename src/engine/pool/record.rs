//! What is recorded of a pool. The record does not depend on devices: `commit.rs` writes it to
//! them.

use crate::{
    base::ids::PoolUuid,
    engine::metadata::{MetadataVersion, PoolMetadata, pool::Tier},
};

/// What is recorded of a pool.
#[derive(Debug)]
pub(super) struct PoolRecord {
    uuid: PoolUuid,
    version: MetadataVersion,
    /// The pool metadata as recorded on the devices, without the cache tier that the pool was set
    /// up without.
    meta: PoolMetadata,
    /// The recorded cache tier, if the pool was set up without it.
    former_cache: Option<Tier>,
}

impl PoolRecord {
    /// A record of the pool with this metadata.
    pub fn new(uuid: PoolUuid, version: MetadataVersion, meta: PoolMetadata) -> PoolRecord {
        PoolRecord { uuid, version, meta, former_cache: None }
    }

    /// The identifier of the pool.
    pub fn uuid(&self) -> PoolUuid {
        self.uuid
    }

    /// The version of its metadata.
    pub fn version(&self) -> MetadataVersion {
        self.version
    }

    /// The metadata from which the pool is set up.
    pub fn meta(&self) -> &PoolMetadata {
        &self.meta
    }

    /// The metadata as recorded on the devices.
    pub fn on_disk(&self) -> PoolMetadata {
        let mut recorded = self.meta.clone();
        if let Some(tier) = &self.former_cache {
            recorded.backstore.cache_tier = Some(tier.clone());
        }
        recorded
    }

    /// Accepts a state that is on the devices now. If it has no cache tier, the record gives up the
    /// tier that the pool was set up without.
    pub fn accept(&mut self, mut new: PoolMetadata) {
        if new.backstore.cache_tier.is_none() {
            self.former_cache = None;
        } else if self.former_cache.is_some() {
            self.former_cache = new.backstore.cache_tier.take();
        }
        self.meta = new;
    }

    /// Goes back to `old`, a former state of [`PoolRecord::meta`]. Returns the state until now.
    pub fn go_back(&mut self, old: PoolMetadata) -> PoolMetadata {
        std::mem::replace(&mut self.meta, old)
    }

    /// Notes that the pool was set up without the recorded cache tier. The tier stays on record
    /// until a state without it is accepted.
    pub fn set_up_without(&mut self, cache: Option<Tier>) {
        self.former_cache = cache;
    }
}
