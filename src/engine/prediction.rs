//! What a new pool would use, computed with the engine's own planning on devices that need not
//! exist (`docs/spec/tools/utilities.md` §2).
//!
//! This module must never depend on a platform: the caller runs the program that knows the size of
//! thin metadata.

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::Sectors,
    },
    engine::{
        error::{Error, Result},
        layout::{LayoutDraft, NewDevice},
        metadata::{IntegritySpec, MetadataVersion, StaticHeader},
        plan::sizes,
    },
};

/// Why the pool would not be created.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The devices cannot be planned at all.
    #[error(transparent)]
    Devices(Error),
    /// No space would be left for a thin pool.
    #[error("too little space is left for a thin pool")]
    NoSpace,
    /// The engine initializes no device of this size.
    #[error("a device of {}", .0.readable())]
    DeviceTooSmall(Sectors),
    /// The size of the thin metadata is not known.
    #[error(transparent)]
    ThinMetadata(Error),
}

/// The space of a new pool without filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpace {
    /// Size of all devices.
    pub total: Sectors,
    /// Space of the layers above the data tier, including the metadata of the thin pool.
    pub usable: Sectors,
    /// Thin metadata, spare thin metadata and metadata volume.
    pub admin: Sectors,
}

impl PoolSpace {
    /// Space that filesystems can use.
    pub fn free(&self) -> Sectors {
        self.usable.saturating_sub(self.admin)
    }
}

/// The space of a new pool of version 2 on devices of these sizes. Its limit of filesystems is raised
/// if it is to have more than a new pool may. Encryption makes no difference: the space for a LUKS2
/// header is always reserved. `thin_metadata_size` runs the program of that name with these
/// arguments and returns its output.
///
/// # Errors
/// If the engine would refuse to make the pool.
pub fn pool_space(
    devices: &[Sectors],
    integrity: IntegritySpec,
    filesystems: usize,
    thin_metadata_size: impl FnOnce(&[String]) -> Result<String>,
) -> std::result::Result<PoolSpace, Refused> {
    let (pool, version) = (PoolUuid::from_random([0; 16]), MetadataVersion::V2);
    let header = |(at, size): (usize, &Sectors)| {
        let mut identity = [0; 16];
        identity[8..].copy_from_slice(&(at as u64).to_be_bytes());
        StaticHeader::new(pool, DevUuid::from_random(identity), version, *size, 0)
    };
    let headers: Vec<StaticHeader> = devices.iter().enumerate().map(header).collect();
    let new: Vec<NewDevice<'_>> = headers.iter().map(|header| NewDevice { header, hardware_info: None }).collect();
    let total = Sectors::checked_sum(devices.iter().copied())
        .ok_or(Refused::Devices(Error::from(sizes::SizeError::Overflow)))?;
    let draft = LayoutDraft::new(version, integrity, &new).map_err(Refused::Devices)?;
    let usable = draft.usable();
    if usable == Sectors::ZERO {
        return Err(Refused::NoSpace);
    }
    let arguments = sizes::thin_metadata_size_arguments(usable, sizes::FS_LIMIT.max(filesystems as u64));
    let thin_metadata = thin_metadata_size(&arguments)
        .and_then(|printed| Ok(sizes::thin_metadata(&printed)?))
        .map_err(Refused::ThinMetadata)?;
    let planned = draft.lay_out("", thin_metadata).map_err(|_| Refused::NoSpace)?;
    match devices.iter().find(|size| **size < sizes::DEVICE_MIN) {
        Some(small) => Err(Refused::DeviceTooSmall(*small)),
        None => Ok(PoolSpace { total, usable, admin: planned.flexible_metadata_size() }),
    }
}
