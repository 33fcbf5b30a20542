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
    /// Shared and not duplicated: one descriptor, however many hold it, and closed by the last.
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

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use std::time::{Duration, Instant};

    use super::{PollFd, PollFlags, Waker, poll};

    /// How many of two wakers `poll` finds, and which.
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
        // Twice without a deadline: had it not stayed, the second would not return.
        assert_eq!(ready([&woken, &other], None), (1, [true, false]));
        assert_eq!(ready([&woken, &other], None), (1, [true, false]));
        assert!(woken.drain());
        assert!(!woken.drain(), "one drain takes all wake-ups");
        assert_eq!(ready([&woken, &other], Some(Instant::now())), (0, [false, false]));
    }

    #[test]
    fn it_ends_the_wait_of_another_thread() {
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
    fn a_deadline_far_away_or_long_past_is_one_too() {
        let (a, b) = (Waker::new().unwrap(), Waker::new().unwrap());
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or_else(Instant::now);
        assert_eq!(ready([&a, &b], Some(past)).0, 0);
        b.wake();
        let far = Instant::now() + Duration::from_secs(u32::MAX.into());
        assert_eq!(ready([&a, &b], Some(far)), (1, [false, true]));
    }

    #[test]
    fn a_full_count_neither_blocks_nor_is_lost() {
        let waker = Waker::new().unwrap();
        // One less than the greatest count: the next wake-up has no room.
        rustix::io::write(&waker.fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        waker.wake();
        assert!(waker.drain());
    }
}
