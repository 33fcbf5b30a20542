//! What can go wrong when a machine is asked for something.

use std::{io, path::PathBuf};

use crate::{
    base::name::shortened,
    platform::{DeviceNumber, Program},
};

/// Result of a platform call.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed platform call: what was asked, of whom, and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device, file or directory could not be used.
    #[error("could not {action} {}", shortened(&path.to_string_lossy()))]
    Io {
        /// What was tried, as in "could not … /dev/sda".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no such block device.
    #[error("{} is not a block device known to udev; check the path", shortened(&path.to_string_lossy()))]
    NoDevice {
        /// The path as given.
        path: PathBuf,
    },
    /// What is mounted at a path is not, or no longer, the device that is meant.
    #[error("{} is not where device {}:{} is mounted; look up its mount points again", shortened(&path.to_string_lossy()), number.major, number.minor)]
    OtherMount {
        /// The path.
        path: PathBuf,
        /// The device that was expected there.
        number: DeviceNumber,
    },
    /// A device-mapper call failed.
    #[error("device-mapper could not {action} {name}")]
    Dm {
        /// What was tried.
        action: &'static str,
        /// Name of the device.
        name: String,
        /// Why not: the errno of the ioctl. `raw_os_error` is always there when the kernel refused.
        source: io::Error,
    },
    /// Somebody is using the device.
    #[error("{name} is in use; unmount it or stop the program that uses it, then try again")]
    Busy {
        /// Device name or path.
        name: String,
    },
    /// A program could not be started or ended with an error.
    #[error("{} failed: {what}", program.name())]
    Program {
        /// Which.
        program: Program,
        /// How it ended.
        end: ProgramEnd,
        /// Its exit status and what it said on standard error, on one line and cut to a readable length.
        what: String,
    },
    /// An XFS could not be extended.
    #[error("could not extend the XFS at {}: {what}", shortened(&path.to_string_lossy()))]
    Grow {
        /// Where it is mounted.
        path: PathBuf,
        /// Why not, on one line.
        what: String,
    },
    /// No keyslot opens with a passphrase.
    #[error("the passphrase does not open {}; give the right one", shortened(&device.to_string_lossy()))]
    WrongKey {
        /// The container.
        device: PathBuf,
    },
    /// Something could not be done with a LUKS2 container.
    #[error("could not {action} the LUKS2 container on {}: {what}", shortened(&device.to_string_lossy()))]
    Luks {
        /// What was tried.
        action: &'static str,
        /// On what.
        device: PathBuf,
        /// Why not, in the words of the library or the kernel.
        what: String,
    },
    /// Clevis could not encrypt or decrypt a passphrase.
    #[error("Clevis could not {action} a passphrase with {with}: {what}")]
    Clevis {
        /// `encrypt` or `decrypt`.
        action: &'static str,
        /// The pin, and the servers that it asks: `tang (http://10.0.0.1)`.
        with: String,
        /// Why not, on one line.
        what: String,
    },
    /// The kernel or a tool said something that is not understood.
    #[error("{what} could not be understood: {text}")]
    Unexpected {
        /// Whose words.
        what: &'static str,
        /// The words, cut.
        text: String,
    },
    /// The machine does not have what the daemon needs.
    #[error("{0}")]
    Missing(String),
    /// The simulated machine has lost power: nothing works until it is switched on again.
    #[error("the simulated machine has no power")]
    PowerCut,
}

/// How a program ended that did not succeed. Only an exit status is an answer of the program; all else says nothing of what
/// it was to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProgramEnd {
    /// It could not be started, or not be listened to.
    NotRun,
    /// With this exit status.
    Status(i32),
    /// By this signal, which somebody else sent: the kernel when memory is short, or a user.
    Signal(i32),
    /// It was killed because its time was up.
    TimedOut,
    /// It was killed because its time was up, and has not ended even so: it waits inside the kernel for a device.
    Unkillable,
}

impl Error {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } | Error::Dm { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel refuses what was asked for as it is, so that asking again changes nothing.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Dm { .. }) && self.errno() == Some(nix::libc::EINVAL)
    }

    /// Whether somebody else's use of a device was the cause.
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::Busy { .. }) || self.errno() == Some(nix::libc::EBUSY)
    }
}
