//! Contents, size and sector sizes of block devices, and what libblkid finds on them. This module
//! knows nothing of what the bytes mean.
//!
//! Reads are direct (`O_DIRECT`). Writes go through the page cache and become durable by an fsync.
//! The reasons:
//! - After a failed write or fsync, the cache still holds the new bytes and marks them as clean.
//!   Only a direct read shows what a restart would find, and the engine bases its decision on that.
//! - The device may change without its node's cache noticing: through a device-mapper device above
//!   it, one of its partitions, another path to it, another machine.
//! - A direct read first writes back what the cache of the same node holds of that range, so the
//!   two agree.
//! - Buffered writes may have any alignment; direct ones to disks with 4096-byte sectors may not.
//!
//! A held device is used only through the descriptors of its hold, so that nothing can intervene
//! between a check of it and a write to it.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    num::NonZeroUsize,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use libblkid_rs::{BlkidProbe, BlkidSublks, BlkidSublksFlags};
use nix::libc;
use parking_lot::Mutex;
use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget};
use threads::side_by_side::side_by_side;

use crate::{
    base::units::{SECTOR, Sectors},
    platform::{Contents, DeviceHold, DeviceWrite, Error, Geometry, Result, WriteStep},
};

mod blkroget {
    //! An ioctl that no crate wraps.
    #![allow(unsafe_code)]

    use std::{
        fs::File,
        io,
        os::fd::{AsRawFd, RawFd},
    };

    use nix::libc::c_int;

    mod request {
        nix::ioctl_read_bad!(
            /// `BLKROGET`: whether the kernel refuses writes.
            blkroget,
            nix::request_code_none!(0x12, 94),
            nix::libc::c_int
        );
    }

    /// Whether the kernel refuses writes to the device.
    pub(super) fn read_only(device: &File) -> io::Result<bool> {
        let fd: RawFd = device.as_raw_fd();
        let mut answer: c_int = 0;
        // SAFETY: BLKROGET writes one int to its argument, which is a valid int that outlives the
        // call. On descriptors of other kinds it fails without writing.
        unsafe { request::blkroget(fd, &mut answer) }?;
        Ok(answer != 0)
    }
}

/// Number of devices written in parallel: more than any expected pool has, few enough for one
/// thread each.
const DEVICES_AT_ONCE: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// Direct I/O needs memory aligned to at most the logical sector size; no kernel asks for more than
/// a page.
const MEMORY_ALIGNMENT: usize = 4096;

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Opens a node and checks that it is a block device: a removed device may have left a plain file
/// of its name behind.
fn open(path: &Path, options: &OpenOptions) -> Result<File> {
    let file = options.open(path).map_err(error("open", path))?;
    let kind = file.metadata().map_err(error("stat", path))?.file_type();
    if kind.is_block_device() { Ok(file) } else { Err(Error::NoDevice { path: path.to_owned() }) }
}

/// A device open for exclusive use.
struct HeldDevice {
    /// Opened with `O_EXCL` for reading.
    exclusive: File,
    /// The same device, for direct reads.
    direct: File,
    /// The same device, for writing. Opened at the first write only: udev probes every device again
    /// that was open for writing, and a refused device must be left alone.
    writable: OnceLock<File>,
    /// Dropped after the files, which tells [`Release`] that they are closed.
    _closed: Sender<Infallible>,
}

impl HeldDevice {
    /// Opens the device again through its descriptor, because its path may lead to another device
    /// by now.
    fn reopen(exclusive: &File, path: &Path, options: &OpenOptions) -> Result<File> {
        let same = format!("/proc/self/fd/{}", exclusive.as_raw_fd());
        options.open(same).map_err(error("open", path))
    }

    fn writable(&self, path: &Path) -> Result<&File> {
        if self.writable.get().is_none() {
            let file = HeldDevice::reopen(&self.exclusive, path, OpenOptions::new().read(true).write(true))?;
            // If two threads race, one of the files is closed again.
            let _ = self.writable.set(file);
        }
        Ok(self.writable.get().unwrap_or(&self.exclusive))
    }
}

/// Access to block devices, with the current holds. Clones share them.
#[derive(Clone, Default)]
pub(super) struct DeviceAccess {
    held: Arc<Mutex<HashMap<PathBuf, Arc<HeldDevice>>>>,
}

/// Releases a hold when dropped.
struct Release {
    path: PathBuf,
    devices: DeviceAccess,
    /// Disconnected when the device is closed.
    closed: Mutex<Receiver<Infallible>>,
}

/// How long a release waits for threads that are using the device.
const USED_FOR: Duration = Duration::from_secs(10);

impl std::fmt::Debug for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hold of {}", self.path.display())
    }
}

impl DeviceHold for Release {}

impl Drop for Release {
    /// Closing the device makes udev probe it again, as after [`DeviceAccess::write`]. When this
    /// returns, the device can be opened exclusively: other threads may be reading it through the
    /// hold, such as one that handles an event of the device. A device that does not respond is left
    /// to them.
    fn drop(&mut self) {
        // Close it outside the lock, because closing writes out the page cache of the device.
        let held = self.devices.held.lock().remove(&self.path);
        drop(held);
        let _ = self.closed.get_mut().recv_timeout(USED_FOR);
    }
}

impl DeviceAccess {
    /// Opens a device exclusively. The kernel grants that to one user at a time: a mount, a swap
    /// area, md, multipath and device-mapper tables all count. A disk counts as used if one of its
    /// partitions is.
    pub(super) fn hold(&self, path: &Path) -> Result<Box<dyn DeviceHold>> {
        let exclusive = open(path, OpenOptions::new().read(true).custom_flags(libc::O_EXCL))?;
        let direct = HeldDevice::reopen(&exclusive, path, OpenOptions::new().read(true).custom_flags(libc::O_DIRECT))?;
        let (closes, closed) = mpsc::channel();
        let held = HeldDevice { exclusive, direct, writable: OnceLock::new(), _closed: closes };
        self.held.lock().insert(path.to_owned(), Arc::new(held));
        Ok(Box::new(Release { path: path.to_owned(), devices: self.clone(), closed: Mutex::new(closed) }))
    }

    fn held(&self, path: &Path) -> Option<Arc<HeldDevice>> {
        self.held.lock().get(path).cloned()
    }

    /// Calls `work` with the device opened for buffered reads.
    fn with<T>(&self, path: &Path, work: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        match self.held(path) {
            Some(held) => work(&held.exclusive),
            None => work(&open(path, OpenOptions::new().read(true))?),
        }
    }

    /// Size and sector sizes.
    pub(super) fn geometry(&self, path: &Path) -> Result<Geometry> {
        self.with(path, |file| {
            let mut from = file;
            let mut look = || -> io::Result<Geometry> {
                Ok(Geometry {
                    size: Sectors(from.seek(SeekFrom::End(0))? / SECTOR),
                    logical: ioctl_blksszget(file)?,
                    physical: ioctl_blkpbszget(file)?,
                    read_only: blkroget::read_only(file)?,
                })
            };
            look().map_err(error("read the size of", path))
        })
    }

    /// Reads `length` bytes at `offset` from the device itself.
    pub(super) fn read(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
        let read = |file: &File| {
            // Round by no more than the device requires: a bad sector must not make the good ones
            // next to it unreadable.
            let unit = ioctl_blksszget(file).map_err(|errno| error("read the sector size of", path)(errno.into()))?;
            read_aligned(file, u64::from(unit), offset, length).map_err(error("read", path))
        };
        match self.held(path) {
            Some(held) => read(&held.direct),
            None => read(&open(path, OpenOptions::new().read(true).custom_flags(libc::O_DIRECT))?),
        }
    }

    /// Runs the steps in order. Closing the device afterwards makes udev probe it again, which
    /// announces a new or wiped signature to the rest of the system.
    pub(super) fn write(&self, path: &Path, steps: &[WriteStep<'_>]) -> Result<()> {
        let write = |file: &File| {
            steps.iter().try_for_each(|step| match step {
                WriteStep::At(offset, bytes) => file.write_all_at(bytes, *offset).map_err(error("write to", path)),
                WriteStep::Sectors(offset, bytes) => {
                    let mut options = OpenOptions::new();
                    let direct = HeldDevice::reopen(file, path, options.write(true).custom_flags(libc::O_DIRECT))?;
                    let write = |aligned: &mut [u8]| {
                        aligned.copy_from_slice(bytes);
                        direct.write_all_at(aligned, *offset)
                    };
                    with_aligned(bytes.len(), write).map_err(error("write to", path))
                }
                WriteStep::Flush => file.sync_all().map_err(error("flush writes to", path)),
            })
        };
        match self.held(path) {
            Some(held) => write(held.writable(path)?),
            None => write(&open(path, OpenOptions::new().read(true).write(true))?),
        }
    }

    /// Calls [`DeviceAccess::write`] for several devices in parallel, with a thread for each: a
    /// flush blocks its caller but takes no processor time.
    pub(super) fn write_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<Result<()>> {
        side_by_side(DEVICES_AT_ONCE, writes, |DeviceWrite { path, steps }| self.write(path, steps))
    }

    /// Probes the contents of the device.
    pub(super) fn contents(&self, path: &Path) -> Result<Contents> {
        self.with(path, |file| probe(file).map_err(|fault| error("probe", path)(io::Error::other(fault.to_string()))))
    }
}

/// Reads with offset, length and memory aligned as direct I/O requires. `unit` is in bytes and a
/// power of two.
fn read_aligned(file: &File, unit: u64, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::from(io::ErrorKind::InvalidInput);
    let start = offset - offset % unit;
    let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length)).ok_or_else(too_large)?;
    let end = end.checked_next_multiple_of(unit).ok_or_else(too_large)?;
    let span = usize::try_from(end - start).map_err(|_| too_large())?;
    let lead = usize::try_from(offset - start).map_err(|_| too_large())?;

    with_aligned(span, |window| {
        let mut filled = 0;
        while filled < lead + length {
            match file.read_at(&mut window[filled..], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(window[lead..lead + length].to_vec())
    })
}

/// Calls `work` with so many zeros, in memory that is aligned as direct I/O requires.
fn with_aligned<T>(length: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut memory = vec![0; length + MEMORY_ALIGNMENT];
    let shift = memory.as_ptr().align_offset(MEMORY_ALIGNMENT);
    work(&mut memory[shift..shift + length])
}

fn probe(file: &File) -> libblkid_rs::Result<Contents> {
    let mut probe = BlkidProbe::new()?;
    // The probe borrows the descriptor; `file` outlives it.
    probe.set_device(file.as_raw_fd(), 0, 0)?;
    probe.enable_superblocks(true)?;
    probe.set_superblock_flags(BlkidSublksFlags::new(vec![BlkidSublks::Type]))?;
    probe.enable_partitions(true)?;
    // Not the "safe" probe: if it finds several signatures it names none, so a device with two
    // foreign signatures would look empty.
    probe.do_fullprobe()?;
    let superblock = if probe.has_value("TYPE")? { Some(probe.lookup_value("TYPE")?) } else { None };
    // The library fails to list partitions if there is no table.
    let partitions = if probe.has_value("PTTYPE")? { probe.get_partitions()?.number_of_partitions()? } else { 0 };
    Ok(Contents { partitions: u32::try_from(partitions).unwrap_or(0), superblock })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, path::Path};

    use super::{open, read_aligned};
    use crate::platform::Error;

    #[test]
    fn any_range_is_read_with_aligned_calls() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        for unit in [512, 4096] {
            for (offset, length) in [(0, 0), (0, 1), (511, 2), (4095, 2), (1, 9998), (0, 10_000), (9999, 1)] {
                let read = read_aligned(&file, unit, offset as u64, length).unwrap();
                assert_eq!(read, bytes[offset..offset + length], "{length} bytes at {offset}, unit {unit}");
            }
        }
    }

    #[test]
    fn reading_past_the_end_fails() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 1000]).unwrap();
        for (offset, length) in [(999, 2), (1000, 1), (1 << 40, 1)] {
            let error = read_aligned(&file, 512, offset, length).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{length} bytes at {offset}");
        }
        let error = read_aligned(&file, 512, u64::MAX - 1, 1).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }

    #[test]
    fn only_block_devices_are_opened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/dev/null"), Path::new("/")] {
            let error = open(path, std::fs::OpenOptions::new().read(true)).unwrap_err();
            assert!(matches!(error, Error::NoDevice { .. }), "{}: {error:?}", path.display());
        }
    }
}
