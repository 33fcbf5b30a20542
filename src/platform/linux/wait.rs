//! Waiting for descriptors or for a short time. Knows nothing of what is waited for.

use std::{
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// Waits until `fd` has something to read (or an error to tell), at most until `deadline`. `false`: time is up.
///
/// # Errors
/// When the kernel refuses to wait; interruption by a signal is not an error.
pub(super) fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll_until(&mut fds, Some(deadline))
}

/// Waits until something of these is ready, at most until `deadline`; the descriptors tell what is. `false`: time is up.
///
/// # Errors
/// As for [`readable`].
pub(super) fn any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    poll_until(fds, deadline)
}

/// Lets time pass. For the few conditions of which the kernel tells nobody, each of them bounded by its caller.
pub(super) fn pause(length: Duration) {
    // A poll on nothing cannot fail for a reason other than interruption, which `poll_until` deals with; should the
    // kernel be out of memory for it, the caller looks again at once, which is harmless.
    let _ = poll_until(&mut [], Some(Instant::now() + length));
}

fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A limit too long to be written down is no limit.
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
    fn tells_ready_from_late() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let past = Instant::now();
        assert!(!readable(reader.as_fd(), past).unwrap());
        writer.write_all(b"x").unwrap();
        // Ready wins over late: a deadline in the past still looks once.
        assert!(readable(reader.as_fd(), past).unwrap());
        assert!(readable(reader.as_fd(), Instant::now() + Duration::from_secs(3600)).unwrap());
    }

    #[test]
    fn of_two_the_ready_ones_are_told() {
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
