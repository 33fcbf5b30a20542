//! How much space a pool has, and what uses it (`docs/spec/engine/storage-stack.md` §4, 11). These
//! figures follow from the record, the sizes of the members and the filesystems.

use super::Pool;
use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::{
        layout,
        metadata::{MetadataVersion, StaticHeader},
        plan::sizes,
    },
};

fn sum(sizes: impl Iterator<Item = Sectors>) -> Sectors {
    sizes.fold(Sectors::ZERO, Sectors::saturating_add)
}

impl Pool {
    /// Signature blocks of the devices, for allocating space. Where a device has shrunk, the block
    /// gives only the size that is left, because the kernel accepts no table that goes past the end
    /// of a device.
    pub(in crate::engine) fn headers_as_found(&self) -> Vec<StaticHeader> {
        let mut headers = self.members.headers();
        for header in &mut headers {
            let found = self.members.get(header.device).map_or(header.device_size, |member| member.geometry.size);
            header.device_size = header.device_size.min(found.max(self.meta().used_up_to(header.device)));
        }
        headers
    }

    /// Space of a device that could be handed out if the device had not shrunk.
    fn lost(&self, device: DevUuid) -> Sectors {
        let Some(member) = self.members.get(device) else { return Sectors::ZERO };
        let end = member.bda.header().device_size.saturating_sub(self.meta().integrity_reserved(device));
        end.saturating_sub(member.geometry.size.max(self.meta().used_up_to(device)))
    }

    /// Space that Stratis' own metadata takes on the data devices.
    pub(in crate::engine) fn metadata_size(&self) -> Sectors {
        let of_device = |uuid: DevUuid| {
            let area = self.members.get(uuid).map_or(Sectors::ZERO, |member| member.bda.header().extended_size());
            area.saturating_add(self.meta().integrity_reserved(uuid))
        };
        sum(self.meta().data_devices().map(of_device)).saturating_add(self.meta().crypt_reserved())
    }

    /// Recorded size of all data devices.
    pub(in crate::engine) fn total_size(&self) -> Sectors {
        let size = |uuid: DevUuid| self.members.get(uuid).map_or(Sectors::ZERO, |m| m.bda.header().device_size);
        sum(self.meta().data_devices().map(size))
    }

    /// Space of the data devices that is available to the layers above.
    pub(in crate::engine) fn usable_size(&self) -> Sectors {
        self.total_size().saturating_sub(self.metadata_size())
    }

    /// Usable space that has not been handed out.
    pub(in crate::engine) fn available(&self) -> Sectors {
        let lost = sum(self.meta().data_devices().map(|device| self.lost(device)));
        self.usable_size().saturating_sub(self.meta().handed_out()).saturating_sub(lost)
    }

    /// Space that the thin pool can get now. During a re-encryption job there is none, because the
    /// LUKS device cannot be made larger.
    pub(in crate::engine) fn growable(&self) -> Sectors {
        match self.job() {
            Some(_) if self.version() == MetadataVersion::V2 => {
                self.available().min(self.meta().taken_ahead(self.version()))
            }
            _ => self.available(),
        }
    }

    /// Size of the thin pool's metadata device.
    pub(in crate::engine) fn thin_metadata(&self) -> Sectors {
        layout::total(&self.meta().flex_devs.thin_meta_dev)
    }

    /// Space left for filesystems if each of them uses its whole size.
    pub(in crate::engine) fn room(&self) -> Sectors {
        sizes::room(self.usable_size(), self.thin_metadata())
    }

    /// Largest number of filesystems.
    pub(in crate::engine) fn fs_limit(&self) -> u64 {
        let recorded = u64::try_from(self.filesystems.recorded()).unwrap_or(u64::MAX);
        self.meta().thinpool_dev.fs_limit.unwrap_or(sizes::FS_LIMIT.max(recorded))
    }

    /// Whether the filesystems together may be larger than the pool.
    pub(in crate::engine) fn overprovisioning(&self) -> bool {
        self.meta().thinpool_dev.enable_overprov.unwrap_or(true)
    }

    /// What the need for thin metadata depends on.
    pub(in crate::engine) fn metadata_demand(&self) -> super::growth_monitor::MetadataDemand {
        (self.usable_size(), self.fs_limit())
    }
}
