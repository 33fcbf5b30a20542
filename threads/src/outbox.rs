//! Runs callbacks (grants, wake-ups) outside the mutex under which they were stored, and never one
//! inside another.
//!
//! Must never know: what is delivered, and by which lock or parking.
//!
//! A callback may drop its guard at once (a closed channel does that). The drop grants the next
//! request, whose callback may do the same. If the calls were nested, ten thousand such waiters
//! would need ten thousand stack frames. So a thread that is already delivering only queues further
//! deliveries, and the outermost call runs them.
//!
//! No delivery gets lost: the thread that queues a delivery does so inside a call that its own
//! outermost loop is running, so the loop sees the queue afterwards.

use std::{cell::RefCell, collections::VecDeque};

use crate::primitives::thread_local;

/// A grant or wake-up on its way to its request.
pub(crate) type Delivery = Box<dyn FnOnce()>;

/// The deliveries of one thread. No thread waits for another thread's callbacks.
#[derive(Default)]
struct Outbox {
    delivering: bool,
    /// Never longer than the number of grants that one thread made at once.
    due: VecDeque<Delivery>,
}

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::new(Outbox::default());
}

/// Runs deliveries in order. If this thread is already inside a delivery, they run after it.
pub(crate) fn deliver(deliveries: impl IntoIterator<Item = Delivery>) {
    let outermost = OUTBOX.with(|outbox| {
        let mut outbox = outbox.borrow_mut();
        outbox.due.extend(deliveries);
        !std::mem::replace(&mut outbox.delivering, true)
    });
    if outermost {
        let rest = DeliverRest;
        deliver_due();
        drop(rest);
    }
}

fn deliver_due() {
    // The borrow ends before the call, because the callback may call `deliver`.
    while let Some(delivery) = OUTBOX.with(|outbox| outbox.borrow_mut().due.pop_front()) {
        delivery();
    }
}

/// Delivers the rest even if a callback panics. The panic propagates, but the other grants have
/// already been made, and their requests would wait forever.
struct DeliverRest;

impl Drop for DeliverRest {
    fn drop(&mut self) {
        deliver_due();
        OUTBOX.with(|outbox| outbox.borrow_mut().delivering = false);
    }
}
