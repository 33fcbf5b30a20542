//! Calls what was stored by callers (grants, wake-ups) outside the mutex that it was stored under, and never one inside another.
//!
//! Must never know: what is handed over, and by which lock or parking.
//!
//! A callback may drop its guard at once (a closed channel does that), which grants the next request, whose callback may do
//! the same. Called from within each other, ten thousand such waiters would be ten thousand levels of stack. So a thread
//! that is handing over already only notes what else there is, and the outermost call does it.
//!
//! No hand-over gets lost: what is noted is noted by this very thread, inside a call that the outermost loop is waiting for;
//! so the loop looks at the list after it was noted.

use std::{cell::RefCell, collections::VecDeque};

use crate::primitives::thread_local;

/// One grant or wake-up on its way to whoever asked for it.
pub(crate) type Delivery = Box<dyn FnOnce()>;

/// What one thread has to hand over. Other threads have theirs: nobody waits for another's callbacks.
#[derive(Default)]
struct Outbox {
    delivering: bool,
    /// Never longer than the grants that one thread made at once.
    due: VecDeque<Delivery>,
}

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::new(Outbox::default());
}

/// Calls them in order; later, if this thread is in the middle of such a call.
pub(crate) fn deliver(deliveries: impl IntoIterator<Item = Delivery>) {
    let outermost = OUTBOX.with(|outbox| {
        let mut outbox = outbox.borrow_mut();
        outbox.due.extend(deliveries);
        !std::mem::replace(&mut outbox.delivering, true)
    });
    if outermost {
        let rest = Rest;
        deliver_due();
        drop(rest);
    }
}

fn deliver_due() {
    // The borrow ends before the call: the call may come back here.
    while let Some(delivery) = OUTBOX.with(|outbox| outbox.borrow_mut().due.pop_front()) {
        delivery();
    }
}

/// Also after a callback panicked the others get their guards: the panic goes on up, but their grants were made already, and
/// whoever waits for one of them would wait for ever.
struct Rest;

impl Drop for Rest {
    fn drop(&mut self) {
        deliver_due();
        OUTBOX.with(|outbox| outbox.borrow_mut().delivering = false);
    }
}
