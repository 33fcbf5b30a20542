//! Turns wake-ups into requests: events of block devices, events of device-mapper, and time.
//!
//! Must never know: what the engine does with an event, who runs a request and how.
//!
//! Each watcher is a thread that waits in poll for its source and for its [`Waker`], which the stop switch and the ends of its
//! own requests wake. None looks at anything while nothing happens.

mod dm_events;
mod merge;
mod running;
mod timers;
mod udev;

use std::{
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use threads::{
    stop::Stop,
    wake::{PollFd, PollFlags, Waker, poll},
};

pub use dm_events::DmWatch;
pub use running::Running;
pub use timers::Timers;
pub use udev::DeviceWatch;

use crate::{
    base::ids::PoolUuid,
    engine::{
        ops::{self, Depth},
        request::Next,
    },
    platform,
};

/// Something that a watcher wants done.
pub struct Task {
    /// Why, for the log.
    pub label: String,
    /// What is to be done.
    pub chain: Next<()>,
}

/// Takes tasks and returns at once.
pub type Submit = Box<dyn Fn(Task) + Send>;

/// Tells a watcher that a task of its has come to its end. It is moved into the last step of the task's chain and tells by
/// being dropped, so it tells also of a chain that panics or is given up.
struct Ended<K> {
    key: Option<K>,
    to: Sender<K>,
    waker: Waker,
}

impl<K> Drop for Ended<K> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // The watcher may be gone; then nobody wants to know.
            let _ = self.to.send(key);
            self.waker.wake();
        }
    }
}

impl<K: Send + 'static> Ended<K> {
    fn of(key: K, to: &Sender<K>, waker: &Waker) -> Ended<K> {
        Ended { key: Some(key), to: to.clone(), waker: waker.clone() }
    }

    fn after(self, chain: Next<()>) -> Next<()> {
        chain.map(move |()| drop(self))
    }

    /// A check of a pool and its filesystems. The end that is told is that of the quick part, so that what comes after it,
    /// which may wait for others, keeps no check back that may be just what is waited for. What is told then is made of the time
    /// after which to look again.
    fn after_check_of(
        mut self,
        pool: PoolUuid,
        depth: Depth,
        tells: impl FnOnce(Option<Duration>) -> K + Send + 'static,
    ) -> Next<()> {
        ops::check_all(pool, depth, move |look_again| {
            self.key = Some(tells(look_again));
            drop(self);
        })
    }
}

/// Why a watcher gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Waiting is not possible.
    #[error("waiting for events failed")]
    Wait(#[source] io::Error),
    /// The source of events is broken.
    #[error("the source of events failed")]
    Source(#[source] platform::Error),
}

/// Why a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The daemon stops.
    Stop,
    /// The source has something to say. There may be other reasons as well.
    Source,
    /// The waker or the deadline.
    Other,
}

/// Waits for the source or the waker, or until the deadline.
fn wait(source: Option<BorrowedFd<'_>>, waker: &Waker, stop: &Stop, deadline: Option<Instant>) -> Result<Woken, Error> {
    let fds = [Some(waker.fd()), source].into_iter().flatten();
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    poll(&mut fds, deadline).map_err(Error::Wait)?;
    let source_speaks = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    // Before the look at what there is to do, so that no wake-up after that look is lost.
    waker.drain();
    Ok(match (stop.is_on(), source_speaks) {
        (true, _) => Woken::Stop,
        (false, true) => Woken::Source,
        (false, false) => Woken::Other,
    })
}

#[cfg(test)]
mod tests;
