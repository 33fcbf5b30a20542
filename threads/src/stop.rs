//! The stop switch of a program: once on, it stays on, and every waiting thread learns of it.
//!
//! Must never know: how each thread stops. It says that the program stops and why, not what to do.
//!
//! No thread misses the stop: [`Stop::is_on`], the channel ([`Stop::receiver`]) and the descriptors
//! ([`Stop::on_stop`]) are states, not events. A thread sees the stop whether it asks before *or
//! after* the trigger.
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
    shared: PlainArc<SwitchCore>,
}

/// The receiver is kept outside the mutex: cloning it does not read the state.
#[derive(Debug)]
struct SwitchCore {
    state: Mutex<SwitchState>,
    receiver: Receiver<Infallible>,
}

#[derive(Debug)]
enum SwitchState {
    /// `_open` keeps the channel connected. The list grows by one entry for each thread that waits
    /// in `poll`.
    Off { wakers: Vec<Waker>, _open: Sender<Infallible> },
    /// Final: the switch cannot be turned off.
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
        // The channel carries no message (the type has no value), so its bound does not matter.
        let (sender, receiver) = crossbeam_channel::bounded(0);
        let state = Mutex::new(SwitchState::Off { wakers: Vec::new(), _open: sender });
        Self { shared: PlainArc::new(SwitchCore { state, receiver }) }
    }

    /// Turns the switch on. The first reason is kept: later ones are mostly consequences of it.
    pub fn trigger(&self, reason: impl Into<String>) {
        let mut state = self.shared.state.lock();
        if let SwitchState::On { .. } = *state {
            return;
        }
        let reason = reason.into();
        log::info!("stopping: {reason}");
        // The state changes and the list of wakers is taken in one step under the mutex. A
        // registration is either in this list or comes later and finds the switch on, so every
        // waker is woken.
        let former = std::mem::replace(&mut *state, SwitchState::On { reason });
        drop(state);
        // The wakers are called outside the mutex: a woken thread reads the state at once. The
        // state changed first, so a thread that learns of the stop by a channel or a waker then
        // finds the switch on.
        if let SwitchState::Off { wakers, _open } = former {
            drop(_open);
            wakers.iter().for_each(Waker::wake);
        }
    }

    /// Whether the switch is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(*self.shared.state.lock(), SwitchState::On { .. })
    }

    /// Why the switch is on; None if it is off.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match &*self.shared.state.lock() {
            SwitchState::On { reason } => Some(reason.clone()),
            SwitchState::Off { .. } => None,
        }
    }

    /// Registers `waker` to be woken by the trigger. If the switch is already on, wakes it at once.
    pub fn on_stop(&self, waker: Waker) {
        let mut state = self.shared.state.lock();
        match &mut *state {
            // The trigger comes later, takes the mutex after this call and finds the waker in the
            // list.
            SwitchState::Off { wakers, .. } => wakers.push(waker),
            // The trigger came first and has taken the list without this waker.
            SwitchState::On { .. } => {
                drop(state);
                waker.wake();
            }
        }
    }

    /// A channel for `select!`: it never carries a message and is disconnected by the trigger.
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

    /// Long enough for any machine; only a failing test reaches it.
    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_stop_keeps_its_first_reason() {
        let stop = Stop::new();
        assert!(!stop.is_on());
        assert_eq!(stop.reason(), None);
        stop.clone().trigger("asked to");
        stop.trigger("asked again");
        assert!(stop.is_on());
        assert_eq!(stop.reason().as_deref(), Some("asked to"));
    }

    #[test]
    fn only_the_trigger_disconnects_receivers() {
        let stop = Stop::new();
        let before = stop.receiver();
        assert!(before.try_recv().is_err_and(|error| error.is_empty()));
        let trigger = stop.clone();
        let waits = std::thread::Builder::new().spawn(move || trigger.trigger("other thread")).unwrap();
        assert!(before.recv_timeout(LIMIT).is_err_and(|error| error.is_disconnected()));
        assert!(stop.receiver().try_recv().is_err_and(|error| error.is_disconnected()));
        // A thread that learns of the stop by a receiver finds the switch on.
        assert!(stop.is_on());
        waits.join().unwrap();
    }

    #[test]
    fn wakers_registered_before_and_after_are_woken() {
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
