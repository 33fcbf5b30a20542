//! The two device-mapper calls that raise a udev event, resume and remove, synchronized with udev.
//!
//! The library makes these calls too, but waits for udev without a deadline. This module knows
//! nothing of what the devices are for.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use devicemapper::DmUdevFlags;
use log::warn;

use crate::platform::linux::{
    cookie::{self, Cookie},
    database,
    mapper_nodes::{mend_link, remove_link},
    monitor::udev_runs,
};

/// Longest wait for udev to process a change. udev's queue is long on a machine that sets up
/// thousands of disks at once; its own limit for an event is three minutes.
const LIMIT: Duration = Duration::from_secs(30);
/// Limit after a wait that timed out, until udev answers in time again. A hung udev worker must not
/// cost half a minute per device of a pool.
const LIMIT_WHEN_LATE: Duration = Duration::from_secs(1);

/// A change of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DmChange {
    /// Makes the loaded table live and resumes I/O.
    Resume,
    /// Removes the device.
    Remove,
}

impl DmChange {
    fn word(self) -> &'static str {
        match self {
            DmChange::Resume => "resume",
            DmChange::Remove => "remove",
        }
    }
}

mod ioctl {
    //! The ioctls.
    #![allow(unsafe_code)]

    use std::{
        ffi::c_char,
        io,
        os::fd::{AsRawFd, BorrowedFd},
    };

    use crate::platform::linux::dm::change::DmChange;

    /// Argument of every call (`struct dm_ioctl` of linux/dm-ioctl.h).
    #[repr(C)]
    struct DmIoctl {
        version: [u32; 3],
        data_size: u32,
        data_start: u32,
        target_count: u32,
        open_count: i32,
        flags: u32,
        event_nr: u32,
        padding: u32,
        dev: u64,
        name: [c_char; 128],
        uuid: [c_char; 129],
        data: [c_char; 7],
    }

    const DM_IOCTL: u8 = 0xfd;
    /// DM_UEVENT_GENERATED_FLAG: the kernel raised an event.
    const UEVENT_GENERATED: u32 = 1 << 13;

    /// Sends a call. Returns the kernel's device number and whether an event was raised.
    pub(super) fn send(control: BorrowedFd<'_>, name: &str, change: DmChange, event: u32) -> io::Result<(u64, bool)> {
        let number: u8 = match change {
            DmChange::Remove => 4,
            DmChange::Resume => 6,
        };
        let mut call = DmIoctl {
            version: [4, 0, 0],
            data_size: size_of::<DmIoctl>() as u32,
            data_start: size_of::<DmIoctl>() as u32,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr: event,
            padding: 0,
            dev: 0,
            name: text(name)?,
            uuid: [0; 129],
            data: [0; 7],
        };
        let request = nix::request_code_readwrite!(DM_IOCTL, number, size_of::<DmIoctl>());
        // SAFETY: the kernel reads and writes `data_size` bytes, which is the size of the
        // structure. The structure has no pointers, every value of its fields is valid, and it
        // outlives the call.
        let answer = unsafe { nix::libc::ioctl(control.as_raw_fd(), request, &raw mut call) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((call.dev, call.flags & UEVENT_GENERATED != 0))
    }

    /// A NUL-terminated copy of a text.
    fn text(text: &str) -> io::Result<[c_char; 128]> {
        let mut bytes = [0; 128];
        if text.len() >= bytes.len() || text.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from.cast_signed() as c_char);
        Ok(bytes)
    }
}

/// Whether udev has answered in time so far.
#[derive(Debug, Default)]
pub(super) struct Punctuality {
    /// The last wait timed out.
    is_late: AtomicBool,
}

impl Punctuality {
    /// Makes a change and waits until udev has processed it. If udev is late, gives up the wait and
    /// creates or removes the node itself: users of the device need nothing else.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn make(
        &self,
        control: BorrowedFd<'_>,
        name: &str,
        change: DmChange,
        flags: DmUdevFlags,
    ) -> io::Result<()> {
        let cookie = if udev_runs() {
            let no_cookie = |fault: &io::Error| warn!("cannot wait for udev to {} {name}: {fault}", change.word());
            Cookie::new().inspect_err(no_cookie).ok()
        } else {
            None
        };
        let flags = flags | DmUdevFlags::DM_UDEV_PRIMARY_SOURCE_FLAG;
        let event = flags.bits() << 16 | cookie.as_ref().map_or(0, Cookie::number);
        let (dev, raised) = ioctl::send(control, name, change, event)?;
        let in_time = match &cookie {
            Some(cookie) if raised => self.wait(cookie, name, change),
            other => other.is_some(),
        };
        if !in_time {
            let number = database::number(dev);
            match change {
                DmChange::Resume => mend_link(name, number),
                DmChange::Remove => remove_link(name),
            }
        }
        Ok(())
    }

    fn wait(&self, cookie: &Cookie, name: &str, change: DmChange) -> bool {
        let limit = if self.is_late.load(Ordering::Relaxed) { LIMIT_WHEN_LATE } else { LIMIT };
        let in_time = cookie.wait(limit).unwrap_or_else(|fault| {
            warn!("cannot wait for udev to {} {name}: {fault}", change.word());
            false
        });
        self.is_late.store(!in_time, Ordering::Relaxed);
        if !in_time {
            let count = cookie::note_unanswered(1);
            warn!(
                "udev did not process the {} of device {name} within {} s ({count} events unanswered so far); continuing without it",
                change.word(),
                limit.as_secs()
            );
        }
        in_time
    }
}
