//! Turns wake-ups into requests: events of block devices, events of device-mapper, and time.
//!
//! Must never know: what the engine does with an event, who runs a request and how.
//!
//! Each watcher is a thread that waits in `poll` for its source and for its [`Waker`], which the
//! stop switch and the ends of its own requests wake. A watcher does nothing while nothing happens.

mod dm_events;
mod merge;
mod running_pools;
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
pub use running_pools::RunningPools;
pub use timers::Timers;
pub use udev::DeviceWatch;

use crate::{
    base::ids::PoolUuid,
    engine::{
        ops::{self, Depth},
        request::Step,
    },
    platform,
};

/// A request of a watcher.
pub struct WatchRequest {
    /// The reason of the request, for the log.
    pub label: String,
    /// The steps.
    pub chain: Step<()>,
}

/// Takes tasks and returns at once.
pub type SubmitWatched = Box<dyn Fn(WatchRequest) + Send>;

/// Reports to a watcher that one of its tasks has ended. It is moved into the last step of the
/// task's chain and reports when it is dropped, so it also reports a chain that panics or is
/// cancelled.
struct EndReport<K> {
    key: Option<K>,
    to: Sender<K>,
    waker: Waker,
}

impl<K> Drop for EndReport<K> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // If the watcher has ended, no thread needs the report.
            let _ = self.to.send(key);
            self.waker.wake();
        }
    }
}

impl<K: Send + 'static> EndReport<K> {
    fn of(key: K, to: &Sender<K>, waker: &Waker) -> EndReport<K> {
        EndReport { key: Some(key), to: to.clone(), waker: waker.clone() }
    }

    fn after(self, chain: Step<()>) -> Step<()> {
        chain.map(move |()| drop(self))
    }

    /// A check of a pool and its filesystems. The report comes after the quick part: what follows
    /// may wait for other requests, and must not delay a check on which those may depend. `report`
    /// makes the report from the time until the next check.
    fn after_check_of(
        mut self,
        pool: PoolUuid,
        depth: Depth,
        report: impl FnOnce(Option<Duration>) -> K + Send + 'static,
    ) -> Step<()> {
        ops::check_all(pool, depth, move |look_again| {
            self.key = Some(report(look_again));
            drop(self);
        })
    }
}

/// Why a watcher stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `poll` failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// The event source failed.
    #[error("cannot read events")]
    Source(#[source] platform::Error),
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The daemon stops.
    Stop,
    /// The source has an event. There may be other reasons as well.
    Source,
    /// The waker or the deadline.
    Other,
}

/// Waits for the source or the waker, or until the deadline.
fn wait(source: Option<BorrowedFd<'_>>, waker: &Waker, stop: &Stop, deadline: Option<Instant>) -> Result<Woken, Error> {
    let fds = [Some(waker.fd()), source].into_iter().flatten();
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    poll(&mut fds, deadline).map_err(Error::Wait)?;
    let source_ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    // Drained before the caller looks at its work, so that no later wake-up is lost.
    waker.drain();
    Ok(match (stop.is_on(), source_ready) {
        (true, _) => Woken::Stop,
        (false, true) => Woken::Source,
        (false, false) => Woken::Other,
    })
}

#[cfg(test)]
mod tests;
