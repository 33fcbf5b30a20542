//! Makes the view of a pool from its parts.

use std::sync::Arc;

use super::Pool;
use crate::{engine::plan::sizes, view};

impl Pool {
    /// The pool as clients see it now.
    pub fn view(&self) -> Arc<view::PoolView> {
        self.projection.view()
    }

    /// The pool as clients see it, if that changed since the last call.
    pub fn take_change(&mut self) -> Option<Arc<view::PoolView>> {
        self.projection.take_change()
    }

    /// Updates the view from the record, the members and the state of the encryption.
    pub(in crate::engine) fn show(&mut self) {
        let meta = self.meta();
        let mut shown = self.projection.shown().clone();
        shown.name = self.name.clone();
        shown.last_reencrypt = meta.last_reencrypt;
        self.encryption.show_in(&mut shown);
        shown.has_cache = meta.backstore.cache_tier.is_some();
        shown.fs_limit = self.fs_limit();
        shown.overprovisioning = self.overprovisioning();
        shown.no_alloc_space = meta.thinpool_dev.errors_if_no_space();
        shown.total = self.total_size();
        shown.allocated = meta.allocated(self.version()).saturating_add(self.metadata_size());
        let other = meta.flexible_metadata_size().saturating_add(self.metadata_size());
        shown.used = self.projection.blocks_used().map(|blocks| sizes::sectors(blocks).saturating_add(other));
        // Unchanged values keep their allocation, so that a comparison does not look into them.
        let mut devices = imbl::OrdMap::new();
        for device in self.devices_view() {
            let kept = shown.devices.get(&device.uuid).filter(|known| ***known == device).cloned();
            devices.insert(device.uuid, kept.unwrap_or_else(|| Arc::new(device)));
        }
        shown.devices = devices;
        self.projection.replace(shown);
    }

    /// The block devices as clients see them.
    fn devices_view(&self) -> impl Iterator<Item = view::DeviceView> {
        let meta = self.meta();
        meta.device_entries().filter_map(|(tier, entry)| {
            let member = self.members.get(entry.uuid)?;
            let header = member.bda.header();
            let size_now = member.geometry.size;
            Some(view::DeviceView {
                uuid: entry.uuid,
                tier,
                node: member.device.path.clone(),
                physical: member.outer().path.clone(),
                hardware_info: entry.hardware_info.clone(),
                user_info: entry.user_info.clone(),
                initialized: header.initialized,
                size: header.device_size,
                new_size: (size_now != header.device_size).then_some(size_now),
                in_use: meta.is_in_use(entry.uuid),
                sector_bytes: (member.geometry.logical, member.geometry.physical),
            })
        })
    }
}
