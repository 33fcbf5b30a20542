//! Waits for links that udev has been asked for: one thread, on behalf of all requests that have nothing else to do.
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
use threads::wake::{PollFd, PollFlags, Waker, poll};

use crate::platform::PendingLinks;

/// Told which links are not there in the end. It must be quick: others wait for the thread that calls it.
pub type Then = Box<dyn FnOnce(Vec<PathBuf>) + Send>;

/// Where requests leave what they wait for. Clones are the same place.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

#[derive(Default)]
struct Inbox {
    /// Those that the thread does not know yet. Bounded by the requests let in.
    new: Vec<Waiting>,
    closed: bool,
}

struct Waiting {
    links: Box<dyn PendingLinks>,
    until: Instant,
    then: Then,
}

impl Links {
    /// Nobody waits, and no thread runs.
    ///
    /// # Errors
    /// The process or the system has no descriptor left.
    pub fn new() -> io::Result<Links> {
        let shared = Shared { inbox: Mutex::default(), waker: Waker::new()? };
        Ok(Links { shared: Arc::new(shared) })
    }

    /// Has `then` called when all links are there, when waiting longer would not help, or after `limit`.
    pub fn wait(&self, links: Box<dyn PendingLinks>, limit: Duration, then: Then) {
        let until = Instant::now() + limit;
        self.shared.inbox.lock().new.push(Waiting { links, until, then });
        self.shared.waker.wake();
    }

    /// Ends [`Links::run`]. Those that wait by then are told at once what is missing.
    pub fn close(&self) {
        self.shared.inbox.lock().closed = true;
        self.shared.waker.wake();
    }

    /// The life of the thread.
    ///
    /// # Errors
    /// When the kernel does not let it wait.
    pub fn run(&self) -> io::Result<()> {
        let mut waiting: Vec<Waiting> = Vec::new();
        loop {
            // Drained before the look at the inbox and the links: what comes after that look wakes the next wait.
            self.shared.waker.drain();
            let closed = {
                let mut inbox = self.shared.inbox.lock();
                waiting.append(&mut inbox.new);
                inbox.closed
            };
            heard(&mut waiting);
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

/// One of those that wait for each descriptor: as a rule all have the same.
fn sources(waiting: &[Waiting]) -> Vec<usize> {
    let mut seen = HashSet::new();
    let is_new = |at: &usize| waiting[*at].links.fd().is_some_and(|fd| seen.insert(fd.as_raw_fd()));
    (0..waiting.len()).filter(is_new).collect()
}

/// Takes in what has been said.
fn heard(waiting: &mut [Waiting]) {
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

    /// A link that is there when its waker has been woken.
    struct OneLink {
        name: &'static str,
        made: Waker,
        there: bool,
    }

    impl PendingLinks for OneLink {
        fn wait(self: Box<Self>, _: Duration) -> Vec<PathBuf> {
            unreachable!("nobody waits in its own thread")
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

    /// A thread that waits for links of these names, each up to its time; and what makes them.
    fn bench<const N: usize>(wanted: [(&'static str, Duration); N]) -> (Bench, [Waker; N]) {
        let (links, group) = (Links::new().unwrap(), Group::new(&["links"]));
        let runs = links.clone();
        group.spawn("links", move || runs.run().map_err(|error| error.to_string())).unwrap();
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
            self.told.recv_timeout(HANG).expect("somebody should be told")
        }

        fn end(self) {
            self.links.close();
            self.group.join(&["links"], HANG).unwrap();
        }
    }

    #[test]
    fn each_goes_on_when_its_own_link_is_there() {
        let (bench, [a, b, _c]) = bench([("a", HANG), ("b", HANG), ("c", HANG)]);
        b.wake();
        assert_eq!(bench.next(), ("b", 0));
        a.wake();
        assert_eq!(bench.next(), ("a", 0));
        assert!(bench.told.is_empty());
        bench.end();
    }

    #[test]
    fn those_with_one_descriptor_are_waited_for_once() {
        let (one, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        let waiting = [&one, &other, &one, &one, &other].map(|made| Waiting {
            links: Box::new(OneLink { name: "", made: made.clone(), there: false }),
            until: Instant::now(),
            then: Box::new(drop),
        });
        assert_eq!(sources(&waiting), [0, 1]);
    }

    #[test]
    fn a_link_that_does_not_come_is_told_after_its_time() {
        let (bench, [_slow, quick]) = bench([("slow", Duration::ZERO), ("quick", HANG)]);
        assert_eq!(bench.next(), ("slow", 1));
        quick.wake();
        assert_eq!(bench.next(), ("quick", 0));
        bench.end();
    }

    #[test]
    fn closing_tells_those_that_wait() {
        let (bench, [_a]) = bench([("a", HANG)]);
        let told = bench.told.clone();
        bench.end();
        assert_eq!(told.try_recv(), Ok(("a", 1)));
    }
}
