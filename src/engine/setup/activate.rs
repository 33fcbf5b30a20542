//! Brings up the thin device of a filesystem with the size that it should have. That is the
//! recorded size, unless a daemon was interrupted between the kernel's change and the record:
//!
//! - Other daemons extend the device and its XFS first and write the record last. So a device that
//!   is up and larger than its record keeps its size. A device that is made again becomes as large
//!   as its XFS, because no kernel mounts an XFS on a smaller device.
//! - The kernel accepts no table whose size is not a multiple of the pool's logical sector size.
//!   Such a recorded size is rounded down: neither the device nor its XFS ever had it.

use crate::{
    base::{ids::PoolUuid, units::Sectors},
    engine::{
        dm_names,
        error::Result,
        metadata::{FilesystemRecord, xfs_size},
        plan::growth,
        stack::{Ensured, ensure_device},
        thin_devices::thin_table,
        thin_status,
        undo::Rollback,
    },
    platform::{
        DeviceNumber, Platform,
        dm::{Line, Target, Visibility},
    },
};

/// The first sector of an XFS, which says how large it is.
const SUPERBLOCK_BYTES: usize = 512;

/// A thin device that was to be brought up, and the outcome.
pub(super) struct Activated {
    /// The device's number and size.
    pub device: Result<(DeviceNumber, Sectors)>,
    /// Takes the device down again.
    pub undo: Rollback,
}

/// What a filesystem's thin device is made from.
#[derive(Clone)]
pub(super) struct Activation {
    name: String,
    thin_pool: DeviceNumber,
    thin_id: u32,
    recorded: Sectors,
    limit: Option<Sectors>,
}

impl Activation {
    /// Prepares the thin device of the filesystem with this record, in a pool with this logical
    /// sector size.
    pub fn new(pool: PoolUuid, thin_pool: DeviceNumber, record: &FilesystemRecord, sector: Sectors) -> Activation {
        Activation {
            name: dm_names::filesystem(pool, record.uuid),
            thin_pool,
            thin_id: record.thin_id,
            recorded: record.size.round_down(sector),
            limit: record.fs_size_limit,
        }
    }

    /// Brings the device up. Tries twice: after a failure, users lack the filesystem until the next
    /// set-up of the pool.
    pub fn run(&self, platform: &dyn Platform) -> Activated {
        let mut undo = Rollback::new();
        let device = self.up(platform, &mut undo).or_else(|_| self.up(platform, &mut undo));
        Activated { device, undo }
    }

    /// Brings the device up.
    ///
    /// # Errors
    /// When the kernel refuses; with ENODATA if there is no such thin device.
    pub fn up(&self, platform: &dyn Platform, undo: &mut Rollback) -> Result<(DeviceNumber, Sectors)> {
        let mut size = self.recorded.max(self.live_size(platform)?);
        let (number, ensured) = self.ensure(platform, size, undo)?;
        if ensured == Ensured::Created {
            let outgrown = growth::outgrown(size, self.limit, self.xfs_size(platform), self.mapped(platform));
            if outgrown > size {
                size = outgrown;
                self.ensure(platform, size, undo)?;
            }
        }
        Ok((number, size))
    }

    fn ensure(&self, platform: &dyn Platform, size: Sectors, undo: &mut Rollback) -> Result<(DeviceNumber, Ensured)> {
        let table = thin_table(self.thin_pool, self.thin_id, size);
        ensure_device(platform, &self.name, &table, Visibility::Public, undo)
    }

    /// Size of the device if it is up; zero if it is not, or if a device other than the one in the
    /// record is up.
    fn live_size(&self, platform: &dyn Platform) -> Result<Sectors> {
        let table = platform.dm_find(&self.name)?.map(|device| device.table);
        Ok(match table.as_deref() {
            Some(&[Line { start: Sectors::ZERO, length, target: Target::Thin { pool, id } }])
                if (pool, id) == (self.thin_pool, self.thin_id) =>
            {
                length
            }
            _ => Sectors::ZERO,
        })
    }

    /// Size of the XFS on the device; `None` if there is no readable XFS.
    fn xfs_size(&self, platform: &dyn Platform) -> Option<Sectors> {
        let read = platform.read(&platform.dm_node(&self.name), 0, SUPERBLOCK_BYTES);
        let sector =
            read.inspect_err(|error| log::warn!("cannot read the superblock of {}: {error}", self.name)).ok()?;
        xfs_size(&sector)
    }

    /// End of the last mapped data block.
    fn mapped(&self, platform: &dyn Platform) -> Option<Sectors> {
        thin_status::mapped_end(platform.dm_status(&self.name).ok()?.first()?)
    }
}
