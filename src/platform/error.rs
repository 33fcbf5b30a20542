//! Errors of platform calls.

use std::{io, path::PathBuf};

use crate::{
    base::name::shortened,
    platform::{DeviceNumber, Program},
};

/// Result of a platform call.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed platform call: what was tried, on what, and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device, file or directory could not be used.
    #[error("cannot {action} {}", shortened(&path.to_string_lossy()))]
    Io {
        /// What was tried: the verb in "cannot … /dev/sda".
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no such block device.
    #[error("{} is not a block device known to udev; check the path", shortened(&path.to_string_lossy()))]
    NoDevice {
        /// The path as given.
        path: PathBuf,
    },
    /// The mount point does not, or no longer, belong to the expected device.
    #[error("{} is not where device {}:{} is mounted; look up its mount points again", shortened(&path.to_string_lossy()), number.major, number.minor)]
    OtherMount {
        /// The mount point.
        path: PathBuf,
        /// The expected device.
        number: DeviceNumber,
    },
    /// A device-mapper call failed.
    #[error("device-mapper cannot {action} {name}")]
    Dm {
        /// What was tried.
        action: &'static str,
        /// Name of the device.
        name: String,
        /// The errno of the ioctl. `raw_os_error` is always set if the kernel refused.
        source: io::Error,
    },
    /// Something uses the device.
    #[error("{name} is in use; unmount it or stop the program that uses it, then try again")]
    Busy {
        /// Device name or path.
        name: String,
    },
    /// A program did not start, or exited with an error.
    #[error("{} failed: {what}", program.name())]
    Program {
        /// The program.
        program: Program,
        /// How it ended.
        end: ProgramEnd,
        /// Exit status and standard error on one line, truncated to a readable length.
        what: String,
    },
    /// An XFS could not be grown.
    #[error("cannot grow the XFS at {}: {what}", shortened(&path.to_string_lossy()))]
    Grow {
        /// Its mount point.
        path: PathBuf,
        /// The cause, on one line.
        what: String,
    },
    /// The passphrase opens no keyslot.
    #[error("the passphrase does not open {}; give the right one", shortened(&device.to_string_lossy()))]
    WrongKey {
        /// The LUKS device.
        device: PathBuf,
    },
    /// An operation on a LUKS device failed.
    #[error("cannot {action} LUKS device {}: {what}", shortened(&device.to_string_lossy()))]
    Luks {
        /// What was tried.
        action: &'static str,
        /// The LUKS device.
        device: PathBuf,
        /// The cause in the words of the library or the kernel.
        what: String,
    },
    /// Clevis could not encrypt or decrypt a passphrase.
    #[error("Clevis cannot {action} a passphrase with {with}: {what}")]
    Clevis {
        /// `encrypt` or `decrypt`.
        action: &'static str,
        /// The pin and its servers: `tang (http://10.0.0.1)`.
        with: String,
        /// The cause, on one line.
        what: String,
    },
    /// The kernel or a program printed something that the daemon cannot parse.
    #[error("cannot parse {what}: {text}")]
    Unexpected {
        /// The source of the text.
        what: &'static str,
        /// The text, truncated.
        text: String,
    },
    /// The machine lacks something that the daemon needs.
    #[error("{0}")]
    Missing(String),
    /// The simulated machine has no power; every call fails until it is switched on.
    #[error("the simulated machine has no power")]
    PowerCut,
}

/// How a program failed. Only an exit status is a verdict of the program; all other ends say
/// nothing about what it was to examine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProgramEnd {
    /// It could not be started, or its output could not be read.
    NotRun,
    /// It exited with this status.
    Status(i32),
    /// A signal from elsewhere ended it: the OOM killer, or a user.
    Signal(i32),
    /// It was killed at its time limit.
    TimedOut,
    /// It was killed at its time limit and has not exited: it waits in the kernel for a device.
    Unkillable,
}

impl Error {
    /// The kernel's errno, if the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } | Error::Dm { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel rejects the request itself (EINVAL), so that a retry cannot succeed.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Dm { .. }) && self.errno() == Some(nix::libc::EINVAL)
    }

    /// Whether another user of the device is the cause.
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::Busy { .. }) || self.errno() == Some(nix::libc::EBUSY)
    }
}
