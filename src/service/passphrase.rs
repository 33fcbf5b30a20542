//! Reads a passphrase from a descriptor that a client sent (`docs/spec/dbus/dbus-api.md` §4.1).
//!
//! The daemon makes one read, of at most one byte more than a key may have, and never reads to the
//! end of the file: clients keep their end of the pipe open until the call returns. The bytes are
//! used as they are, including a newline at their end. A client may send its descriptor before it
//! writes to it, so the front end waits for the data together with all its other sources. This
//! module does not know what the passphrase is for.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
    net::RecvFlags,
};
use threads::wake::{PollFd, PollFlags, poll};
use zeroize::Zeroizing;

use crate::engine::ops::Secret;

/// Longest passphrase in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 64;

/// How long to wait for a client that sends its descriptor before writing to it. Clients give up
/// after a minute or two.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PassphraseError {
    #[error("the key is longer than {PASSPHRASE_BYTES_MAX} bytes; give a shorter one")]
    TooLong,
    #[error("no key arrived on its descriptor within {} seconds; write the key before the call", WAIT_MAX.as_secs())]
    Nothing,
    #[error("another call with the same descriptor has read the key; open a descriptor for each call")]
    Taken,
    #[error("cannot read the key from its descriptor")]
    Read(#[source] io::Error),
}

/// Whether a read would not block: data or the end of file is available, or the descriptor cannot
/// be read at all.
pub fn is_ready(descriptor: BorrowedFd<'_>) -> bool {
    is_to_write(descriptor) || readable(descriptor).unwrap_or(true)
}

fn is_to_write(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::WRONLY)
}

fn readable(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    Ok(poll(&mut fds, Some(Instant::now()))? > 0)
}

/// Reads a passphrase if one is available now.
///
/// # Errors
/// If the passphrase is too long, nothing has been written, or the descriptor cannot be read.
pub fn read(descriptor: BorrowedFd<'_>) -> Result<Secret, PassphraseError> {
    if !is_ready(descriptor) {
        return Err(PassphraseError::Nothing);
    }
    // One byte more than a key may have shows whether it is longer, wherever it comes from.
    let mut bytes = Zeroizing::new(vec![0; PASSPHRASE_BYTES_MAX + 1]);
    let length = loop {
        match read_now(descriptor, &mut bytes) {
            Ok(length) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(PassphraseError::Taken),
            Err(error) => return Err(PassphraseError::Read(error.into())),
        }
    };
    if length > PASSPHRASE_BYTES_MAX {
        return Err(PassphraseError::TooLong);
    }
    bytes.truncate(length);
    Ok(Secret::new(bytes))
}

/// A read that never blocks, even if other calls read the same pipe: after the check for data,
/// another call may have taken the data. The flags of the descriptor stay as they are, since the
/// client shares them.
///
/// # Errors
/// AGAIN: no data now.
fn read_now(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> rustix::io::Result<usize> {
    // A write end is refused: opening it again would give access to the read end of the pipe.
    if is_to_write(fd) {
        return Err(Errno::BADF);
    }
    match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
        // A file has no writer to wait for.
        FileType::RegularFile => rustix::io::read(fd, bytes),
        FileType::Socket => Ok(rustix::net::recv(fd, bytes, RecvFlags::DONTWAIT)?.0),
        // Any other descriptor may have a writer: open it again, non-blocking.
        _ => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let own = rustix::fs::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty())?;
            rustix::io::read(own, bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::{AsFd, OwnedFd},
    };

    use super::*;

    fn pipe(bytes: &[u8], close: bool) -> (Result<Secret, PassphraseError>, Option<io::PipeWriter>) {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        // If the pipe is to be closed, the writer is dropped before the read.
        let kept = (!close).then_some(writer);
        (read(reader.as_fd()), kept)
    }

    fn check(bytes: &[u8], close: bool, expected: bool) {
        match pipe(bytes, close).0 {
            Ok(secret) => assert!(expected && secret.same(bytes), "{} bytes, closed: {close}", bytes.len()),
            Err(error) => assert!(!expected && matches!(error, PassphraseError::TooLong), "{error}"),
        }
    }

    #[test]
    fn a_passphrase_is_read_without_end_of_file() {
        check(b"pass-one\n", false, true);
        check(b"pass-one", true, true);
        check(b"", true, true);
        check(&[7; 64], false, true);
        check(&[7; 64], true, true);
    }

    #[test]
    fn descriptor_is_ready_when_written_or_unreadable() {
        let (reader, mut writer) = io::pipe().unwrap();
        let theirs = writer.try_clone().unwrap();
        let (theirs, ours) = (theirs.as_fd(), reader.as_fd());
        assert!(!is_ready(ours));
        assert!(matches!(read(ours), Err(PassphraseError::Nothing)));
        assert!(is_ready(theirs));
        assert!(matches!(read(theirs), Err(PassphraseError::Read(_))));
        writer.write_all(b"key").unwrap();
        assert!(is_ready(ours) && read(ours).unwrap().same(b"key"));
    }

    /// When several calls passed one pipe, all but one of them waited in a read for as long as the
    /// client lived, and each occupied a worker.
    #[test]
    fn a_key_read_by_another_call_ends_waiting() {
        let (pipe, mut writer) = io::pipe().unwrap();
        let (socket, mut other_end) = std::os::unix::net::UnixStream::pair().unwrap();
        for (reader, writer) in [
            (OwnedFd::from(pipe), &mut writer as &mut dyn Write),
            (OwnedFd::from(socket), &mut other_end as &mut dyn Write),
        ] {
            let flags = rustix::fs::fcntl_getfl(&reader).unwrap();
            let mut bytes = [0; 8];
            assert_eq!(read_now(reader.as_fd(), &mut bytes), Err(Errno::AGAIN));
            writer.write_all(b"key").unwrap();
            assert_eq!(read_now(reader.as_fd(), &mut bytes), Ok(3));
            assert_eq!(read_now(reader.as_fd(), &mut bytes), Err(Errno::AGAIN));
            assert_eq!(rustix::fs::fcntl_getfl(&reader).unwrap(), flags, "the client shares them");
        }
    }

    #[test]
    fn a_file_is_read_from_where_it_stands() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"skipped-key").unwrap();
        io::Seek::seek(&mut file, io::SeekFrom::Start(8)).unwrap();
        assert!(read(file.as_fd()).unwrap().same(b"key"));
    }

    #[test]
    fn refuses_longer_keys() {
        check(&[7; 65], false, false);
        check(&[7; 512], true, false);
    }
}
