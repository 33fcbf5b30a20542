//! Waits for links that the daemon has requested from udev: one thread on behalf of all requests.
//!
//! Must never know: which request waits, and what it does next.

use std::{
    collections::HashSet,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use threads::{
    pulse::Pulse,
    wake::{PollFd, PollFlags, Waker, poll},
};

use crate::platform::PendingLinks;

/// Called with the links that are still missing. The function must return quickly: other requests
/// wait for the calling thread.
pub type Then = Box<dyn FnOnce(Vec<PathBuf>) + Send>;

/// Takes the links that requests wait for. Clones are the same object.
#[derive(Clone)]
pub struct Links {
    shared: Arc<LinksCore>,
}

struct LinksCore {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

#[derive(Default)]
struct Inbox {
    /// Requests that the thread has not seen yet. Bounded by the number of admitted requests.
    new: Vec<LinkWaiter>,
    closed: bool,
}

struct LinkWaiter {
    links: Box<dyn PendingLinks>,
    until: Instant,
    then: Then,
}

impl Links {
    /// An object without waiting requests; no thread runs yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new() -> io::Result<Links> {
        let shared = LinksCore { inbox: Mutex::default(), waker: Waker::new()? };
        Ok(Links { shared: Arc::new(shared) })
    }

    /// Calls `then` when all links exist, when no further link will come, or after `limit`.
    pub fn wait(&self, links: Box<dyn PendingLinks>, limit: Duration, then: Then) {
        let until = Instant::now() + limit;
        self.shared.inbox.lock().new.push(LinkWaiter { links, until, then });
        self.shared.waker.wake();
    }

    /// Ends [`Links::run`]. Waiting requests are called at once with their missing links.
    pub fn close(&self) {
        self.shared.inbox.lock().closed = true;
        self.shared.waker.wake();
    }

    /// Makes the thread run its loop once.
    pub fn nudge(&self) {
        self.shared.waker.wake();
    }

    /// The body of the thread.
    ///
    /// # Errors
    /// Waiting on the descriptors failed.
    pub fn run(&self, pulse: &Pulse) -> io::Result<()> {
        let mut waiting: Vec<LinkWaiter> = Vec::new();
        loop {
            // The waker is drained before the look at the inbox and the links: a later wake-up ends
            // the next wait.
            self.shared.waker.drain();
            pulse.beat();
            let closed = {
                let mut inbox = self.shared.inbox.lock();
                waiting.append(&mut inbox.new);
                inbox.closed
            };
            read_all(&mut waiting);
            let now = Instant::now();
            for over in waiting.extract_if(.., |one| closed || one.links.advance() || one.until <= now) {
                (over.then)(over.links.missing());
            }
            if closed {
                return Ok(());
            }
            let until = waiting.iter().map(|one| one.until).min();
            let sources = sources(&waiting).into_iter().map(|at| waiting[at].links.fd());
            let sources = sources.flatten().chain([self.shared.waker.fd()]);
            let mut fds: Vec<_> = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            poll(&mut fds, until)?;
        }
    }
}

/// The positions of one waiting request for each descriptor: usually all have the same descriptor.
fn sources(waiting: &[LinkWaiter]) -> Vec<usize> {
    let mut seen = HashSet::new();
    let is_new = |at: &usize| waiting[*at].links.fd().is_some_and(|fd| seen.insert(fd.as_raw_fd()));
    (0..waiting.len()).filter(is_new).collect()
}

/// Reads the messages of each descriptor.
fn read_all(waiting: &mut [LinkWaiter]) {
    for at in sources(waiting) {
        waiting[at].links.hear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use crossbeam_channel::{Receiver, unbounded};
    use threads::group::Group;

    use super::*;

    const HANG: Duration = Duration::from_secs(60);

    /// A link that exists once its waker has been woken.
    struct OneLink {
        name: &'static str,
        made: Waker,
        there: bool,
    }

    impl PendingLinks for OneLink {
        fn wait(self: Box<Self>, _: Duration) -> Vec<PathBuf> {
            unreachable!("no request waits in its own thread")
        }

        fn hear(&mut self) {
            self.there |= self.made.drain();
        }

        fn advance(&mut self) -> bool {
            self.there
        }

        fn fd(&self) -> Option<BorrowedFd<'_>> {
            Some(self.made.fd())
        }

        fn missing(self: Box<Self>) -> Vec<PathBuf> {
            if self.there { Vec::new() } else { vec![self.name.into()] }
        }
    }

    struct Bench {
        links: Links,
        group: Group,
        told: Receiver<(&'static str, usize)>,
    }

    /// A thread that waits for links of these names, each up to its limit; and the wakers that
    /// create them.
    fn bench<const N: usize>(wanted: [(&'static str, Duration); N]) -> (Bench, [Waker; N]) {
        let (links, group) = (Links::new().unwrap(), Group::new(&["links"]));
        let runs = links.clone();
        group.spawn("links", move || runs.run(&Pulse::default()).map_err(|error| error.to_string())).unwrap();
        let (tell, told) = unbounded();
        let makers = wanted.map(|(name, limit)| {
            let (made, tell) = (Waker::new().unwrap(), tell.clone());
            let link = OneLink { name, made: made.clone(), there: false };
            links.wait(Box::new(link), limit, Box::new(move |missing| tell.send((name, missing.len())).unwrap()));
            made
        });
        (Bench { links, group, told }, makers)
    }

    impl Bench {
        fn next(&self) -> (&'static str, usize) {
            self.told.recv_timeout(HANG).expect("a request is called")
        }

        fn end(self) {
            self.links.close();
            self.group.join(&["links"], HANG).unwrap();
        }
    }

    #[test]
    fn each_request_goes_on_with_its_own_link() {
        let (bench, [a, b, _c]) = bench([("a", HANG), ("b", HANG), ("c", HANG)]);
        b.wake();
        assert_eq!(bench.next(), ("b", 0));
        a.wake();
        assert_eq!(bench.next(), ("a", 0));
        assert!(bench.told.is_empty());
        bench.end();
    }

    #[test]
    fn each_descriptor_is_polled_once() {
        let (one, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        let waiting = [&one, &other, &one, &one, &other].map(|made| LinkWaiter {
            links: Box::new(OneLink { name: "", made: made.clone(), there: false }),
            until: Instant::now(),
            then: Box::new(drop),
        });
        assert_eq!(sources(&waiting), [0, 1]);
    }

    #[test]
    fn a_missing_link_is_reported_after_its_limit() {
        let (bench, [_slow, quick]) = bench([("slow", Duration::ZERO), ("quick", HANG)]);
        assert_eq!(bench.next(), ("slow", 1));
        quick.wake();
        assert_eq!(bench.next(), ("quick", 0));
        bench.end();
    }

    #[test]
    fn closing_reports_the_missing_links() {
        let (bench, [_a]) = bench([("a", HANG)]);
        let told = bench.told.clone();
        bench.end();
        assert_eq!(told.try_recv(), Ok(("a", 1)));
    }
}
