//! The switch that brings a program to its end: once on, it stays on, and everybody who waits for anything learns of it.
//!
//! Must never know: who stops how. It says that and why, not what to do.
//!
//! No stop is missed: whoever asks ([`Stop::is_on`]), waits on a channel ([`Stop::receiver`]) or on descriptors
//! ([`Stop::on_stop`]) before *or after* the trigger sees it, since all three are states, not events.

//!
//! ```
//! use crossbeam_channel::{select, unbounded};
//! use threads::stop::Stop;
//!
//! let stop = Stop::new();
//! let (requests, queue) = unbounded::<u32>();
//! stop.trigger("asked to by a signal");
//! let on_stop = stop.receiver();
//! select! {
//!     recv(on_stop) -> _ => assert_eq!(stop.reason().as_deref(), Some("asked to by a signal")),
//!     recv(queue) -> request => println!("{request:?}"),
//! }
//! drop(requests);
//! ```

use std::convert::Infallible;

use crossbeam_channel::{Receiver, Sender};

use crate::{
    primitives::{Mutex, PlainArc},
    wake::Waker,
};

/// The switch. Clones are the same switch.
#[derive(Clone, Debug)]
pub struct Stop {
    shared: PlainArc<Shared>,
}

/// The receiver stands outside the mutex: to clone it is no look at the state.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    receiver: Receiver<Infallible>,
}

#[derive(Debug)]
enum State {
    /// `_open` keeps the channel connected. The list grows only by registrations, one for each thread that waits in poll.
    Off { wakers: Vec<Waker>, _open: Sender<Infallible> },
    /// For good: there is no way back, so what was seen on stays true.
    On { reason: String },
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// A switch that is off.
    #[must_use]
    pub fn new() -> Self {
        // Nothing is ever sent (there is no value of the type), so the bound does not matter.
        let (sender, receiver) = crossbeam_channel::bounded(0);
        let state = Mutex::new(State::Off { wakers: Vec::new(), _open: sender });
        Self { shared: PlainArc::new(Shared { state, receiver }) }
    }

    /// Turns it on. The first reason is kept: what comes later is mostly a consequence of it.
    pub fn trigger(&self, reason: impl Into<String>) {
        let mut state = self.shared.state.lock();
        if let State::On { .. } = *state {
            return;
        }
        let reason = reason.into();
        log::info!("stopping: {reason}");
        // Sets the state and drops the sender in one step under the mutex; each registration is either in this list or
        // comes later and finds the switch on. So every waker is woken.
        let former = std::mem::replace(&mut *state, State::On { reason });
        drop(state);
        // Outside the mutex: who is woken will want to look at the state at once. The state came first, so whoever learns of
        // the stop by a channel or a waker and then asks is told that it is on.
        if let State::Off { wakers, _open } = former {
            drop(_open);
            wakers.iter().for_each(Waker::wake);
        }
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(*self.shared.state.lock(), State::On { .. })
    }

    /// Why it is on; None if it is off.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match &*self.shared.state.lock() {
            State::On { reason } => Some(reason.clone()),
            State::Off { .. } => None,
        }
    }

    /// Has `waker` woken by the trigger; at once if that was before.
    pub fn on_stop(&self, waker: Waker) {
        let mut state = self.shared.state.lock();
        match &mut *state {
            // The trigger comes later, takes the mutex after this, and finds it in the list.
            State::Off { wakers, .. } => wakers.push(waker),
            // The trigger was before, and has taken the list as it was.
            State::On { .. } => {
                drop(state);
                waker.wake();
            }
        }
    }

    /// A channel on which nothing ever comes and that is disconnected by the trigger: for `select!`.
    #[must_use]
    pub fn receiver(&self) -> Receiver<Infallible> {
        self.shared.receiver.clone()
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use std::time::{Duration, Instant};

    use super::Stop;
    use crate::wake::{PollFd, PollFlags, Waker, poll};

    /// Long enough for any machine; reached only by a test that has failed.
    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn it_is_off_until_it_is_on_and_keeps_the_first_reason() {
        let stop = Stop::new();
        assert!(!stop.is_on());
        assert_eq!(stop.reason(), None);
        stop.clone().trigger("asked to");
        stop.trigger("asked again");
        assert!(stop.is_on());
        assert_eq!(stop.reason().as_deref(), Some("asked to"));
    }

    #[test]
    fn receivers_are_disconnected_by_the_trigger_and_not_before() {
        let stop = Stop::new();
        let before = stop.receiver();
        assert!(before.try_recv().is_err_and(|error| error.is_empty()));
        let trigger = stop.clone();
        let waits = std::thread::Builder::new().spawn(move || trigger.trigger("other thread")).unwrap();
        assert!(before.recv_timeout(LIMIT).is_err_and(|error| error.is_disconnected()));
        assert!(stop.receiver().try_recv().is_err_and(|error| error.is_disconnected()));
        // What a receiver tells is true for those who ask.
        assert!(stop.is_on());
        waits.join().unwrap();
    }

    #[test]
    fn wakers_are_woken_whether_they_come_before_or_after() {
        let stop = Stop::new();
        let (before, after, other) = (Waker::new().unwrap(), Waker::new().unwrap(), Waker::new().unwrap());
        stop.on_stop(before.clone());
        stop.on_stop(other.clone());
        assert!(!before.drain());
        stop.trigger("test");
        stop.on_stop(after.clone());
        for waker in [&before, &after, &other] {
            let mut fds = [PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(Instant::now() + LIMIT)).unwrap(), 1);
            assert!(waker.drain());
        }
        stop.trigger("again");
        assert!(!before.drain(), "a stop wakes once");
    }
}
