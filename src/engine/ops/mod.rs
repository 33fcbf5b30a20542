//! The operations: each a chain of steps ([`Next`]).

use std::path::PathBuf;

use crate::engine::{
    error::Result,
    ids::{DevUuid, FsUuid, PoolUuid},
    metadata::IntegritySpec,
    name::Name,
    request::Next,
    units::Sectors,
};
use crate::platform::DeviceEvent;

/// What a new pool is to be.
#[derive(Debug, Clone)]
pub struct NewPool {
    /// Its name.
    pub name: Name,
    /// Absolute paths of its data devices.
    pub devices: Vec<PathBuf>,
    /// Space to reserve for integrity data.
    pub integrity: IntegritySpec,
}

/// What a new filesystem is to be.
#[derive(Debug, Clone)]
pub struct NewFilesystem {
    /// Its name.
    pub name: Name,
    /// Size of the thin device; the default if `None`.
    pub size: Option<Sectors>,
    /// It will not grow past this.
    pub size_limit: Option<Sectors>,
}

/// Creates a pool. `None`: it exists already with just these data devices.
pub fn create_pool(_new: NewPool) -> Next<Result<Option<(PoolUuid, Vec<DevUuid>)>>> {
    unimplemented!()
}
/// Destroys a pool that has no filesystems. `false`: there is no such pool.
pub fn destroy_pool(_pool: PoolUuid) -> Next<Result<bool>> {
    unimplemented!()
}
/// Renames a pool. `false`: it has that name already.
pub fn rename_pool(_pool: PoolUuid, _name: Name) -> Next<Result<bool>> {
    unimplemented!()
}
/// Adds data devices; gives the new ones, none if all are there already.
pub fn add_data_devices(_pool: PoolUuid, _devices: Vec<PathBuf>) -> Next<Result<Vec<DevUuid>>> {
    unimplemented!()
}
/// Creates filesystems, their mkfs side by side; gives the new ones, none if all are there already.
pub fn create_filesystems(_pool: PoolUuid, _new: Vec<NewFilesystem>) -> Next<Result<Vec<(FsUuid, Name)>>> {
    unimplemented!()
}
/// Destroys filesystems; gives those that existed.
pub fn destroy_filesystems(_pool: PoolUuid, _filesystems: Vec<FsUuid>) -> Next<Result<Vec<FsUuid>>> {
    unimplemented!()
}
/// Renames a filesystem. `false`: it has that name already.
pub fn rename_filesystem(_pool: PoolUuid, _filesystem: FsUuid, _name: Name) -> Next<Result<bool>> {
    unimplemented!()
}
/// Makes a snapshot. `None`: a filesystem of that name and of the origin's size exists already.
pub fn snapshot_filesystem(_pool: PoolUuid, _origin: FsUuid, _name: Name) -> Next<Result<Option<FsUuid>>> {
    unimplemented!()
}
/// Sets or removes what the user says of a device. `false`: that is what it says already.
pub fn set_user_info(_pool: PoolUuid, _device: DevUuid, _info: Option<String>) -> Next<Result<bool>> {
    unimplemented!()
}
/// Reads the usage of a pool and its filesystems anew.
pub fn check_pool(_pool: PoolUuid) -> Next<()> {
    unimplemented!()
}
/// Takes note of an event of a block device; sets up a pool that it completes.
pub fn device_event(_event: DeviceEvent) -> Next<()> {
    unimplemented!()
}
/// Looks at all devices and sets up the pools found, side by side: one chain each.
pub fn discover(_engine: &crate::engine::Engine) -> Result<Vec<Next<()>>> {
    unimplemented!()
}
