//! A block device or an image of one, opened read-only.
//!
//! This module must never write, and must never block on something that is neither a block device
//! nor a file.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
};

use crate::{
    engine::bda::Disks,
    platform::{self, DeviceWrite, Error, WriteStep},
};

/// An open device or image.
pub struct Image {
    file: File,
    path: PathBuf,
}

impl Image {
    /// Opens a device or image.
    ///
    /// # Errors
    /// If it does not exist, or is neither a block device nor a file.
    pub fn open(path: &Path) -> io::Result<Image> {
        let kind = fs::metadata(path)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(io::Error::other("it is neither a block device nor a file"));
        }
        Ok(Image { file: File::open(path)?, path: path.to_owned() })
    }

    fn refused(&self, action: &'static str, source: io::Error) -> Error {
        Error::Io { action, path: self.path.clone(), source }
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    /// If reading fails, or the image ends before the range does.
    pub fn bytes(&self, offset: u64, length: usize) -> platform::Result<Vec<u8>> {
        // The length may be forged, so it must not decide how much memory is allocated.
        let end = offset.checked_add(length as u64).ok_or_else(|| self.past_end())?;
        if self.file.metadata().is_ok_and(|found| found.is_file() && found.len() < end) {
            return Err(self.past_end());
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(|source| self.refused("read", source))?;
        Ok(bytes)
    }

    fn past_end(&self) -> Error {
        self.refused("read", io::Error::new(io::ErrorKind::UnexpectedEof, "it ends before what is to be read"))
    }
}

impl Disks for Image {
    fn read_at(&self, _path: &Path, offset: u64, length: usize) -> platform::Result<Vec<u8>> {
        self.bytes(offset, length)
    }

    fn write_steps(&self, _path: &Path, _steps: &[WriteStep<'_>]) -> platform::Result<()> {
        Err(self.refused("write to", io::ErrorKind::ReadOnlyFilesystem.into()))
    }

    fn write_steps_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<platform::Result<()>> {
        writes.iter().map(|write| self.write_steps(write.path, &write.steps)).collect()
    }
}
