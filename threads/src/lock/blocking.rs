//! The blocking form of the lock, for threads that have nothing else to do: a queued request whose callback wakes its thread.
//!
//! Must never know: the rules; it only submits.
//!
//! Workers of a fixed pool should not use it: a pool whose workers all wait for grants has none left for the requests whose
//! end they wait for. It is for start-up, tests, and threads of their own.

use std::{borrow::Cow, cell::RefCell};

#[cfg(feature = "planted-faults")]
use super::Fault;
use super::{
    Access, Guard, Lock,
    state::{Ident, UNRANKED},
};
use crate::{
    fault::planted,
    outbox,
    primitives::{Arc, Condvar, Mutex, PlainArc, PlainWeak, thread_local, wait},
};

/// Where the granting thread puts the guard for the waiting one.
/// One mutex of its own, which is held neither while the lock's is taken nor the other way round.
struct Slot<G> {
    guard: Mutex<Option<G>>,
    filled: Condvar,
}

thread_local! {
    // The checkers' macros know no const initializers.
    #[allow(clippy::missing_const_for_thread_local)]
    /// Points at the mark in the last guard that this thread got by waiting, as long as that guard lives.
    static HELD: RefCell<PlainWeak<()>> = RefCell::new(PlainWeak::new());
}

impl<K: Ident, N: Ident, T: Send + Sync> Lock<K, N, T> {
    /// Waits for a grant. The guard belongs to the calling thread until it is dropped: to hand one to another thread, use
    /// [`Lock::submit`].
    ///
    /// # Panics
    /// In debug builds: when the thread still holds a guard that it got by waiting (of any lock), since two threads doing
    /// that can wait for each other for ever; or when called from a `granted` callback, which would wait for itself.
    pub fn acquire(&self, access: Access<K, N>, label: Cow<'static, str>) -> Guard<K, N, T> {
        let holds_one = HELD.with(|held| held.borrow().strong_count() > 0);
        debug_assert!(!holds_one, "one thread waits for a grant while it holds another");
        debug_assert!(!outbox::is_delivering(), "a `granted` callback waits for a grant");
        // A new slot for each wait: a late hand-over of an earlier one could not be mistaken for this.
        let slot = Arc::new(Slot { guard: Mutex::new(None), filled: Condvar::new() });
        let theirs = Arc::clone(&slot);
        let early = planted!(self.shared, NotifiesBeforeFilling);
        self.submit(UNRANKED, access, label, move |guard| {
            if early {
                theirs.filled.notify_one();
            }
            *theirs.guard.lock() = Some(guard);
            // Not lost: the slot was filled under the mutex under which the waiting thread looks and falls asleep, so that
            // thread either finds the guard or is asleep by now.
            if !early {
                theirs.filled.notify_one();
            }
        });
        let mut place = slot.guard.lock();
        let mut guard = loop {
            match place.take() {
                Some(guard) => break guard,
                None => place = wait(&slot.filled, place),
            }
        };
        drop(place);
        // Pointed at weakly by the thread and owned by the guard, so it vanishes with the guard, wherever that is dropped.
        let mark = cfg!(debug_assertions).then(|| PlainArc::new(()));
        if let Some(mark) = &mark {
            HELD.with(|held| *held.borrow_mut() = PlainArc::downgrade(mark));
        }
        guard.set_mark(mark);
        guard
    }
}
