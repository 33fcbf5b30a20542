//! The child process that grows a mounted XFS. The ioctl needs a directory of the file system, and
//! xfs_growfs looks that up in its own mount namespace only.
//!
//! The child gets the root directory of the mount's namespace as standard input, and the expected
//! device and the path as arguments. This module knows nothing of who mounted what.
#![allow(unsafe_code)]

use std::{
    env, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use rustix::fs::{Mode, OFlags};

use super::database;
use crate::platform::DeviceNumber;

/// First argument of such a child.
pub(super) const CHILD: &str = "grow-xfs-as-child";
/// Its exit status if something else is mounted at the path.
pub(super) const OTHER_MOUNT: u8 = 3;

mod calls {
    //! The two ioctls of `xfs/libxfs/xfs_fs.h` and their arguments.

    /// `struct xfs_fsop_geom_v4`.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct XfsFsopGeom {
        pub(super) block_bytes: u32,
        _sizes: [u32; 6],
        pub(super) inode_percent: u32,
        pub(super) data_blocks: u64,
        _realtime: [u64; 3],
        _uuid: [u8; 16],
        _layout: [u32; 8],
    }

    /// `struct xfs_growfs_data`.
    #[repr(C)]
    pub(super) struct XfsGrowfsData {
        pub(super) data_blocks: u64,
        pub(super) inode_percent: u32,
    }

    nix::ioctl_read!(geometry, b'X', 124, XfsFsopGeom);
    nix::ioctl_write_ptr!(grow, b'X', 110, XfsGrowfsData);
}

/// Does the work if this program was started as such a child, otherwise returns `None`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != CHILD {
        return None;
    }
    let number = arguments.next()?.to_str()?.parse().ok()?;
    let path = PathBuf::from(arguments.next()?);
    Some(match serve(number, &path) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(OTHER_MOUNT),
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    })
}

/// Returns `false` if another device is mounted at the path.
fn serve(number: DeviceNumber, path: &Path) -> io::Result<bool> {
    // The mount may be of a single file, such as a FIFO, which must not block the child.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(io::stdin().as_fd(), path, flags, Mode::empty())?;
    if database::number(rustix::fs::fstat(&place)?.st_dev) != number {
        return Ok(false);
    }
    let mut geometry = calls::XfsFsopGeom::default();
    // SAFETY: the descriptor is open, and the kernel fills in a structure of the size in the
    // request number.
    unsafe { calls::geometry(place.as_raw_fd(), &raw mut geometry) }?;
    let blocks = database::size(number).0 / u128::from(geometry.block_bytes.max(1));
    let data_blocks = u64::try_from(blocks).unwrap_or(u64::MAX);
    if data_blocks <= geometry.data_blocks {
        return Ok(true);
    }
    let growth = calls::XfsGrowfsData { data_blocks, inode_percent: geometry.inode_percent };
    // SAFETY: as above; the kernel only reads the structure.
    unsafe { calls::grow(place.as_raw_fd(), &raw const growth) }?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::calls::{XfsFsopGeom, XfsGrowfsData};

    /// The request number contains the size.
    #[test]
    fn the_structures_have_the_kernels_size() {
        assert_eq!((size_of::<XfsFsopGeom>(), size_of::<XfsGrowfsData>()), (112, 16));
    }
}
