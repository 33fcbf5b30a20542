//! Ending a wait on file descriptors from another thread: a descriptor to wait on beside the others, and the wait itself.
//!
//! Must never know: what the other descriptors are, and why somebody is woken.
//!
//! A wake-up is never lost: it is a count in the kernel, which stays until it is drained. Whoever waits drains first and then
//! looks at what it was woken for; what is asked for after that look leaves the descriptor readable for the next wait.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, Timespec, eventfd},
    io::Errno,
};

pub use rustix::event::{PollFd, PollFlags};

use crate::primitives::PlainArc;

/// A descriptor (an eventfd) that becomes readable by [`Waker::wake`]. Clones are the same waker.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: PlainArc<OwnedFd>,
}

impl Waker {
    /// A waker that nobody has woken yet.
    ///
    /// # Errors
    /// The process or the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // Non-blocking, so that neither side can ever get stuck in it: a wait is in `poll` and nowhere else.
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: PlainArc::new(fd) })
    }

    /// Makes the descriptor readable until the next [`Waker::drain`]. Many wake-ups before a drain are one. Does not block.
    pub fn wake(&self) {
        loop {
            match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
                Err(Errno::INTR) => {}
                // AGAIN: the count is at its limit, so the descriptor is readable, and that is all a wake-up is. Nothing
                // else can come from an eventfd that is open, and it is open as long as this value exists.
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Takes all wake-ups so far; true if there was one. Does not block. To be called *before* looking at the work.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.fd, &mut count) {
                Err(Errno::INTR) => {}
                // One read takes the whole count. AGAIN says that there was none.
                outcome => return outcome.is_ok(),
            }
        }
    }

    /// The descriptor to wait on for `PollFlags::IN`.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of `fds` has an event or the deadline has come, and returns how many have one (0: the deadline).
/// Without a deadline it waits as long as it takes. A signal does not end the wait.
///
/// # Errors
/// What poll(2) says, except EINTR.
pub fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        // Computed anew in each round, so interruptions do not put the deadline off. A time too great for the kernel's
        // type is no limit at all.
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}
