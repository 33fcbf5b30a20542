//! Ends a wait on file descriptors from another thread: a descriptor to wait on beside the others,
//! and the wait itself.
//!
//! Must never know: what the other descriptors are, and why a thread is woken.
//!
//! No wake-up gets lost: it is a counter in the kernel that stays set until it is drained. The
//! waiting thread drains first and then looks at its work; a wake-up after that look leaves the
//! descriptor readable for the next wait.

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

/// An eventfd that [`Waker::wake`] makes readable. Clones are the same waker.
#[derive(Clone, Debug)]
pub struct Waker {
    /// Shared, not duplicated: one descriptor for all clones, closed by the last one.
    fd: PlainArc<OwnedFd>,
}

impl Waker {
    /// A waker in the state "not woken".
    ///
    /// # Errors
    /// The process or the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // Non-blocking, so that neither side can block on it: threads wait in `poll` only.
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: PlainArc::new(fd) })
    }

    /// Makes the descriptor readable until the next [`Waker::drain`]. Several wake-ups before a
    /// drain count as one. Does not block.
    pub fn wake(&self) {
        loop {
            match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
                Err(Errno::INTR) => {}
                // EAGAIN: the counter is at its limit, so the descriptor is readable, which is all
                // a wake-up needs. An open eventfd returns no other error, and it stays open as
                // long as this value exists.
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Takes all wake-ups so far. Returns `true` if there was one. Does not block. Call it *before*
    /// looking at the work.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.fd, &mut count) {
                Err(Errno::INTR) => {}
                // One read takes the whole counter. EAGAIN: there was no wake-up.
                outcome => return outcome.is_ok(),
            }
        }
    }

    /// The descriptor to poll for `PollFlags::IN`.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of `fds` has an event or the deadline has passed. Returns how many have one (0:
/// deadline). Without a deadline it waits indefinitely. A signal does not end the wait.
///
/// # Errors
/// All errors of poll(2) except EINTR.
pub fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        // Computed in each round, so that interruptions do not postpone the deadline. A time too
        // long for the kernel's type counts as no limit.
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use std::time::{Duration, Instant};

    use super::{PollFd, PollFlags, Waker, poll};

    /// How many of two wakers `poll` reports, and which ones.
    fn ready(wakers: [&Waker; 2], deadline: Option<Instant>) -> (usize, [bool; 2]) {
        let mut fds = wakers.map(|waker| PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN));
        let count = poll(&mut fds, deadline).unwrap();
        (count, fds.map(|fd| fd.revents().contains(PollFlags::IN)))
    }

    #[test]
    fn a_wake_up_stays_until_it_is_drained() {
        let (woken, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        woken.clone().wake();
        woken.wake();
        // Polled twice without a deadline: if the first poll had consumed the wake-up, the second
        // would not return.
        assert_eq!(ready([&woken, &other], None), (1, [true, false]));
        assert_eq!(ready([&woken, &other], None), (1, [true, false]));
        assert!(woken.drain());
        assert!(!woken.drain(), "one drain takes all wake-ups");
        assert_eq!(ready([&woken, &other], Some(Instant::now())), (0, [false, false]));
    }

    #[test]
    fn a_wake_up_ends_another_threads_wait() {
        let (here, there) = (Waker::new().unwrap(), Waker::new().unwrap());
        let (wakes, waits) = (there.clone(), here.clone());
        let thread = std::thread::Builder::new().spawn(move || {
            let found = ready([&there, &there], None);
            assert!(there.drain());
            here.wake();
            found
        });
        wakes.wake();
        assert_eq!(ready([&waits, &wakes], None).0.min(1), 1);
        assert_eq!(thread.unwrap().join().unwrap(), (2, [true, true]));
    }

    #[test]
    fn far_and_past_deadlines_work() {
        let (a, b) = (Waker::new().unwrap(), Waker::new().unwrap());
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or_else(Instant::now);
        assert_eq!(ready([&a, &b], Some(past)).0, 0);
        b.wake();
        let far = Instant::now() + Duration::from_secs(u32::MAX.into());
        assert_eq!(ready([&a, &b], Some(far)), (1, [false, true]));
    }

    #[test]
    fn a_full_counter_neither_blocks_nor_loses() {
        let waker = Waker::new().unwrap();
        // One less than the maximum: the next wake-up does not fit.
        rustix::io::write(&waker.fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        waker.wake();
        assert!(waker.drain());
    }
}
