//! Calls whose client has not written the passphrase yet. The reader waits for all of them through
//! one descriptor.
//!
//! The kernel keeps the list (epoll). If the reader polled all descriptors itself, it would scan
//! them in each round, and each round serves a client's read: 256 awaited passphrases made a `Get`
//! six times as slow. This module does not know what happens once a passphrase has arrived.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
};

/// The most ready descriptors that one call takes from the kernel. The others are still readable in
/// the next round.
const READY_AT_ONCE: usize = 64;

/// Calls that wait until their descriptor is readable.
pub struct AwaitedPassphrases<T> {
    epoll: OwnedFd,
    /// The number of the next call. Numbers are never reused.
    next: u64,
    waiting: HashMap<u64, (Arc<OwnedFd>, Instant, T)>,
    deadlines: BTreeSet<(Instant, u64)>,
}

impl<T> AwaitedPassphrases<T> {
    /// An empty list.
    ///
    /// # Errors
    /// The process or the system has no descriptor left.
    pub fn new() -> io::Result<AwaitedPassphrases<T>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(AwaitedPassphrases { epoll, next: 0, waiting: HashMap::new(), deadlines: BTreeSet::new() })
    }

    /// Adds a call that waits for `descriptor`, at most until `until`. Gives the call back if the
    /// kernel cannot wait for the descriptor.
    pub fn add(&mut self, descriptor: Arc<OwnedFd>, until: Instant, what: T) -> Option<T> {
        let number = self.next;
        self.next += 1;
        let data = EventData::new_u64(number);
        if epoll::add(&self.epoll, &*descriptor, data, EventFlags::IN).is_err() {
            return Some(what);
        }
        self.deadlines.insert((until, number));
        self.waiting.insert(number, (descriptor, until, what));
        None
    }

    /// The descriptor that becomes readable when one in the list does.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The earliest time at which a call has waited long enough.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// Removes the calls whose descriptor is readable and those that have waited long enough.
    pub fn take_due(&mut self, now: Instant) -> Vec<T> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut ready = Vec::with_capacity(READY_AT_ONCE);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // If the wait is interrupted, the next round asks again.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&at_once));
        let ready = ready.into_iter().map(|event| event.data.u64());
        let late = self.deadlines.iter().take_while(|(until, _)| *until <= now).map(|(_, number)| *number);
        let due: Vec<u64> = ready.chain(late).collect();
        due.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Removes all calls.
    pub fn take_all(&mut self) -> Vec<T> {
        let numbers: Vec<u64> = self.deadlines.iter().map(|(_, number)| *number).collect();
        numbers.into_iter().filter_map(|number| self.take(number)).collect()
    }

    fn take(&mut self, number: u64) -> Option<T> {
        let (descriptor, until, what) = self.waiting.remove(&number)?;
        self.deadlines.remove(&(until, number));
        // The client holds the same pipe, so closing the daemon's descriptor would not remove it
        // from the epoll list.
        let _ = epoll::delete(&self.epoll, &*descriptor);
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use threads::wake::{PollFd, PollFlags, poll};

    use super::*;

    fn pipe() -> (Arc<OwnedFd>, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Arc::new(reader.into()), writer)
    }

    fn is_readable(awaited: &AwaitedPassphrases<u32>) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(awaited.fd(), PollFlags::IN)];
        poll(&mut fds, Some(Instant::now())).unwrap() > 0
    }

    #[test]
    fn only_readable_descriptors_are_due() {
        let mut awaited = AwaitedPassphrases::new().unwrap();
        let now = Instant::now();
        let later = now + Duration::from_secs(3600);
        let mut writers: Vec<_> = (0..100)
            .map(|number| {
                let (descriptor, writer) = pipe();
                // A client may pass one pipe in several calls.
                assert!(awaited.add(descriptor.clone(), later, number).is_none());
                writer
            })
            .collect();
        assert!(!is_readable(&awaited) && awaited.take_due(now).is_empty());
        writers[7].write_all(b"key").unwrap();
        drop(writers.remove(50));
        assert!(is_readable(&awaited));
        let mut due = awaited.take_due(now);
        due.sort_unstable();
        assert_eq!(due, [7, 50]);
        assert!(!is_readable(&awaited), "a call that was taken is no longer waited for");
        assert_eq!(awaited.take_all().len(), 98);
        assert!(awaited.deadline().is_none());
    }

    #[test]
    fn calls_that_waited_long_enough_are_due() {
        let mut awaited = AwaitedPassphrases::new().unwrap();
        let now = Instant::now();
        let ends: Vec<_> = (0..3)
            .map(|number| {
                let (descriptor, writer) = pipe();
                awaited.add(descriptor, now + Duration::from_secs(number), number as u32);
                writer
            })
            .collect();
        assert_eq!(awaited.deadline(), Some(now));
        assert_eq!(awaited.take_due(now + Duration::from_secs(1)), [0, 1]);
        assert_eq!(awaited.deadline(), Some(now + Duration::from_secs(2)));
        drop(ends);
    }

    #[test]
    fn calls_without_pollable_descriptors_are_given_back() {
        let file = tempfile::tempfile().unwrap();
        let mut awaited = AwaitedPassphrases::new().unwrap();
        assert_eq!(awaited.add(Arc::new(file.into()), Instant::now(), 1), Some(1));
    }
}
