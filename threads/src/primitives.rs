//! The one place this crate takes its sync types from, so that a model checker can put its own in their place.
//!
//! Must never know: what is built from them.
//!
//! Three sets have one shape: parking_lot for use, loom and shuttle (features of the same names) for checking. The shape
//! is as small as the lock needs: a mutex without poison, a condition variable, a counted pointer, a thread-local.
//! Channels are not here: neither checker knows crossbeam's, so channels stay out of what is modelled (the lock). The other
//! modules of the crate take their mutexes from here too, but are tested with the real ones only.

// For what is not worth modelling: every modelled pointer multiplies the schedules to look at.
pub(crate) use std::sync::Arc as PlainArc;

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod chosen {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::{sync::Arc, thread_local};

    /// Waits for a notification; may also return without one, so the caller looks at its condition again.
    pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(&mut guard);
        guard
    }
}

// When both are asked for (`--all-features`), loom wins: something has to, and clippy shall be able to look at everything.
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod chosen {
    #[cfg(feature = "loom")]
    use loom as checker;
    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    use shuttle as checker;

    pub(crate) use checker::{
        sync::{Arc, Condvar, MutexGuard},
        thread_local,
    };

    /// The checker's mutex in the shape of parking_lot's: no poison. A model that panicked has failed anyway.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(checker::sync::Mutex::new(value))
        }

        /// In the shape of parking_lot's, which returns the guard itself.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) use chosen::*;
