//! Waiting for descriptors or for a short time. This module knows nothing of what they mean.

use std::{
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// Waits until `fd` is readable or in error, at most until `deadline`. `false` on timeout.
///
/// # Errors
/// If the kernel refuses to wait. Interruption by a signal is no error.
pub(super) fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll_until(&mut fds, Some(deadline))
}

/// Waits until any of the descriptors is ready, at most until `deadline`; their `revents` show
/// which. `false` on timeout.
///
/// # Errors
/// As for [`readable`].
pub(super) fn any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    poll_until(fds, deadline)
}

/// Sleeps. Only for conditions that the kernel does not announce; each caller limits the
/// repetitions.
pub(super) fn pause(length: Duration) {
    // A poll on nothing fails only by interruption, which `poll_until` handles, or if the kernel is
    // out of memory; the caller then checks again at once, which is harmless.
    let _ = poll_until(&mut [], Some(Instant::now() + length));
}

fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A limit too long to express is no limit.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::AsFd,
        time::{Duration, Instant},
    };

    use rustix::event::{PollFd, PollFlags};

    use super::{any, readable};

    #[test]
    fn a_ready_descriptor_wins_over_the_deadline() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let past = Instant::now();
        assert!(!readable(reader.as_fd(), past).unwrap());
        writer.write_all(b"x").unwrap();
        // A deadline in the past still checks once.
        assert!(readable(reader.as_fd(), past).unwrap());
        assert!(readable(reader.as_fd(), Instant::now() + Duration::from_secs(3600)).unwrap());
    }

    #[test]
    fn each_ready_descriptor_is_reported() {
        let (one, mut one_end) = std::io::pipe().unwrap();
        let (other, other_end) = std::io::pipe().unwrap();
        let ready = || {
            let mut fds = [PollFd::new(&one, PollFlags::IN), PollFd::new(&other, PollFlags::IN)];
            let some = any(&mut fds, Some(Instant::now())).unwrap();
            (some, fds.map(|fd| !fd.revents().is_empty()))
        };
        assert_eq!(ready(), (false, [false, false]));
        one_end.write_all(b"x").unwrap();
        assert_eq!(ready(), (true, [true, false]));
        drop(other_end);
        assert_eq!(ready(), (true, [true, true]));
    }

    #[test]
    fn a_closed_writer_is_ready() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        assert!(readable(reader.as_fd(), Instant::now() + Duration::from_secs(3600)).unwrap());
    }
}
