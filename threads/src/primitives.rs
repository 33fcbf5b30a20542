//! The only source of sync types in this crate, so that a model checker can replace them.
//!
//! Must never know: what is built from them.
//!
//! Three sets of types have the same interface: parking_lot for production, loom and shuttle
//! (features of the same names) for checking. The interface is as small as the lock needs: a mutex
//! without poisoning, a condition variable, a reference-counted pointer, a thread-local. Channels
//! are not here: neither checker knows crossbeam's, so the modelled part (the lock and the parking)
//! uses none. The other modules also take their mutexes from here, but are tested with the real
//! ones only.

// For pointers that are not worth modelling: every modelled pointer multiplies the schedules.
pub(crate) use std::sync::Arc as PlainArc;

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod chosen {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::{sync::Arc, thread_local};

    /// Waits for a notification. It may also return without one, so the caller checks its condition
    /// again.
    pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(&mut guard);
        guard
    }
}

// If both features are on (`--all-features`), loom wins, so that clippy can check everything.
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

    /// The checker's mutex with parking_lot's interface, without poisoning. A model that panicked
    /// has failed anyway.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(checker::sync::Mutex::new(value))
        }

        /// Returns the guard itself, like parking_lot's `lock`.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) use chosen::*;
