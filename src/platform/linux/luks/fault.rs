//! Why the child cannot serve a request. This module knows the library's errors and the daemon's
//! answers.

use std::io;

use libcryptsetup_rs::LibcryptErr;
use nix::libc;

use super::wire::LuksAnswer;
use crate::platform::Error;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LuksFault {
    /// The passphrase opens no keyslot.
    #[error("the passphrase does not fit")]
    WrongKey,
    /// The device is in use.
    #[error("the device is in use")]
    Busy,
    /// The daemon no longer waits for the answer. Nothing was changed.
    #[error("it was cancelled")]
    Alone,
    /// Communication with the daemon failed.
    #[error("{0}")]
    Connection(io::Error),
    /// Another error, in words.
    #[error("{0}")]
    Other(String),
}

impl LuksFault {
    /// The message to the daemon.
    pub(super) fn into_answer(self) -> LuksAnswer {
        match self {
            LuksFault::WrongKey => LuksAnswer::WrongKey,
            LuksFault::Busy => LuksAnswer::Busy,
            other => LuksAnswer::Failed(other.to_string()),
        }
    }
}

impl From<LibcryptErr> for LuksFault {
    fn from(fault: LibcryptErr) -> LuksFault {
        match fault {
            LibcryptErr::IOError(fault) => LuksFault::Other(fault.to_string()),
            fault => LuksFault::Other(fault.to_string()),
        }
    }
}

impl From<Error> for LuksFault {
    fn from(fault: Error) -> LuksFault {
        let cause = std::error::Error::source(&fault).map(|cause| format!(": {cause}")).unwrap_or_default();
        LuksFault::Other(format!("{fault}{cause}"))
    }
}

impl From<io::Error> for LuksFault {
    fn from(fault: io::Error) -> LuksFault {
        LuksFault::Other(fault.to_string())
    }
}

impl From<String> for LuksFault {
    fn from(what: String) -> LuksFault {
        LuksFault::Other(what)
    }
}

pub(super) type Result<T> = std::result::Result<T, LuksFault>;

/// Converts an error of a call that takes a passphrase: the library returns `EPERM` if the
/// passphrase opens nothing, `ENOENT` if there is nothing to open.
pub(super) fn with_key(fault: LibcryptErr) -> LuksFault {
    match &fault {
        LibcryptErr::IOError(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOENT) => LuksFault::WrongKey,
            Some(libc::EBUSY) => LuksFault::Busy,
            _ => fault.into(),
        },
        _ => fault.into(),
    }
}
