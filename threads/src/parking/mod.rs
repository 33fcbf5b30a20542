//! Parks requests, as entries and not as threads, until a claim of another request is given back.
//! [`state`] decides everything (rules, order, fairness); this module is the shell that makes its
//! promises hold between threads.
//!
//! Must never know: the rules, what a place stands for, and what a request does when it is woken.
//!
//! # Why no wake-up gets lost between threads
//!
//! The conditions live outside, behind mutexes of their own. Two agreements prevent lost wake-ups:
//!
//! - Code that opens a place does so *first* and calls [`Parking::opened`] *after* that.
//! - A request that parks checks once more whether the place is shut, *under the mutex* of the
//!   parking.
//!
//! If the place is still shut, it is opened later, so its report comes later too and finds the
//! request in the queue. If the place is open, the request is woken at once. Therefore the mutex of
//! the parking is taken before those of the conditions. `is_shut` and `is_open` must not change a
//! condition or call `opened`.
//!
//! A wake-up is decided under the mutex and delivered after it (the callback is called), by the
//! same thread in the same call. The callback was stored under the same lock of the mutex as the
//! request, so the thread that wakes a request finds it. A callback may call the parking again;
//! like the callbacks of the lock, they never run inside one another.
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
//! use threads::parking::{Arrival, Parking};
//!
//! let claimed = Arc::new(AtomicBool::new(true));
//! let parking: Parking<&str> = Parking::new();
//! let (woken, wakes) = crossbeam_channel::unbounded();
//!
//! // Request 7 has found the key claimed.
//! let is_shut = || claimed.load(Ordering::SeqCst);
//! parking.park(Arrival(7), "key", is_shut, |_| true, move || drop(woken.send(7)));
//! assert!(wakes.is_empty());
//!
//! // The key is given back first, and reported after that.
//! claimed.store(false, Ordering::SeqCst);
//! parking.opened(["key"]);
//! assert_eq!(wakes.recv(), Ok(7));
//!
//! // It has the turn until it has looked at the key again. Leaving would wake the next request.
//! parking.leave(Arrival(7), |_| !claimed.load(Ordering::SeqCst));
//! ```

use std::collections::BTreeMap;

#[cfg(feature = "planted-faults")]
mod fault;
pub mod state;
#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;

#[cfg(feature = "planted-faults")]
pub use fault::ParkingFault;
pub use state::{Arrival, Spot};

use crate::{
    fault::planted,
    outbox::{self, Delivery},
    primitives::{Arc, Mutex, MutexGuard},
};
use state::ParkingRules;

/// A handle to one set of places. Clones are handles to the same set.
pub struct Parking<P: Spot> {
    shared: Arc<ParkingCore<P>>,
}

impl<P: Spot> Clone for Parking<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<P: Spot> Default for Parking<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// State shared by all handles.
struct ParkingCore<P> {
    inner: Mutex<ParkingState<P>>,
    #[cfg(feature = "planted-faults")]
    fault: Option<ParkingFault>,
}

/// Everything that the mutex guards. Whenever it is free, exactly the requests that wait in `state`
/// have a callback.
struct ParkingState<P> {
    state: ParkingRules<P>,
    callbacks: BTreeMap<Arrival, OnWake>,
}

/// The callback given to `park`. Called once or dropped, never under the mutex, because it is the
/// caller's code.
type OnWake = Box<dyn FnOnce() + Send>;

impl<P: Spot> Parking<P> {
    /// A parking without waiters.
    #[must_use]
    pub fn new() -> Self {
        Self::with_state(ParkingRules::new())
    }

    /// A parking with a planted fault, to show that a checker finds it.
    #[cfg(feature = "planted-faults")]
    #[must_use]
    pub fn with_fault(fault: ParkingFault) -> Self {
        Self::with_state(ParkingRules::with_fault(fault))
    }

    fn with_state(state: ParkingRules<P>) -> Self {
        // The fault is kept outside the mutex as well: reading it must not add a step that hides
        // the fault.
        let shared = ParkingCore {
            #[cfg(feature = "planted-faults")]
            fault: state.fault,
            inner: Mutex::new(ParkingState { state, callbacks: BTreeMap::new() }),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Parks `who`, which has found `place` shut. `woken` is called once when the request is woken,
    /// without any mutex held; that may be before this call returns. If the request leaves first,
    /// `woken` is dropped without a call.
    ///
    /// `is_shut` and `is_open` are called under the mutex: the [module](self) says what they must
    /// not do.
    pub fn park(
        &self,
        who: Arrival,
        place: P,
        is_shut: impl FnOnce() -> bool,
        is_open: impl FnOnce(&P) -> bool,
        woken: impl FnOnce() + Send + 'static,
    ) {
        let is_shut: Box<dyn FnOnce() -> bool + '_> = if planted!(self.shared, ParkingFault::LooksBeforeMutex) {
            let shut = is_shut();
            Box::new(move || shut)
        } else {
            Box::new(is_shut)
        };
        let mut inner = self.shared.inner.lock();
        let shut = is_shut();
        if planted!(self.shared, ParkingFault::StoresCallbackLater) {
            let due = inner.state.park(who, place, shut, is_open);
            drop(inner);
            inner = self.shared.inner.lock();
            inner.callbacks.insert(who, Box::new(woken));
            return self.deliver(inner, due);
        }
        inner.callbacks.insert(who, Box::new(woken));
        let due = inner.state.park(who, place, shut, is_open);
        self.deliver(inner, due);
    }

    /// Reports places that were opened before this call. Wakes the first arrival at each of them.
    pub fn opened(&self, places: impl IntoIterator<Item = P>) {
        let mut inner = self.shared.inner.lock();
        let due = places.into_iter().filter_map(|place| inner.state.opened(&place)).collect();
        self.deliver(inner, due);
    }

    /// `who` continues or gives up. Returns `true` if it was waiting; its callback will not be
    /// called.
    pub fn leave(&self, who: Arrival, is_open: impl FnOnce(&P) -> bool) -> bool {
        let mut inner = self.shared.inner.lock();
        let next = inner.state.leave(who, is_open);
        let callback = inner.callbacks.remove(&who);
        let waited = callback.is_some();
        self.deliver(inner, next.into_iter().collect());
        // Dropped outside the mutex: a destructor of the callback's data may call the parking.
        drop(callback);
        waited
    }

    /// The waiting requests and their places, in the order of arrival.
    #[must_use]
    pub fn waiters(&self) -> Vec<(Arrival, P)> {
        let inner = self.shared.inner.lock();
        inner.state.waiters().into_iter().map(|(who, place)| (who, place.clone())).collect()
    }

    /// Takes the callbacks of woken requests under the lock of the mutex that woke them, and calls
    /// them after it.
    fn deliver(&self, mut inner: MutexGuard<'_, ParkingState<P>>, woken: Vec<Arrival>) {
        let mut callback = |who| inner.callbacks.remove(&who).expect("a waiter's callback is stored when it is queued");
        let due: Vec<Delivery> = woken.into_iter().map(|who| callback(who) as Delivery).collect();
        if planted!(self.shared, ParkingFault::CallsBackUnderMutex) {
            return outbox::deliver(due);
        }
        drop(inner);
        outbox::deliver(due);
    }
}
