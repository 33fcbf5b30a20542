//! File descriptors that a C library hands out as plain numbers. This module knows nothing of what
//! they refer to.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

/// A close-on-exec copy of a descriptor that another owner keeps.
///
/// # Errors
/// If the number is not an open descriptor.
#[allow(unsafe_code)]
pub fn duplicate(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes a number and looks it up; a closed one gives an error.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::duplicate;

    #[test]
    fn copies_what_is_open_and_refuses_the_rest() {
        let file = tempfile::tempfile().unwrap();
        let copy = duplicate(file.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        assert!(duplicate(1_000_000).is_err());
        assert!(duplicate(-1).is_err());
    }
}
