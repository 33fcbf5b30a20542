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

use std::{io, os::fd::BorrowedFd, time::Instant};

use threads::{
    stop::Stop,
    wake::{PollFd, PollFlags, Waker, poll},
};

pub use dm_events::DmWatch;
pub use running::Running;
pub use timers::Timers;
pub use udev::DeviceWatch;

use crate::{engine::request::Next, platform};

/// Something that a watcher wants done.
pub struct Task {
    /// Why, for the log.
    pub label: String,
    /// What is to be done.
    pub chain: Next<()>,
    /// To be called once when the chain has come to its end, also if that is a panic or the stop of the daemon.
    pub ended: Box<dyn FnOnce() + Send>,
}

/// Takes tasks and returns at once.
pub type Submit = Box<dyn Fn(Task) + Send>;

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
