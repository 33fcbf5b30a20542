//! What the shell adds to the rules: callbacks, and where they run. `tests/parking.rs` tests the
//! rules.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crossbeam_channel::unbounded;

use super::*;

fn always(_: &u8) -> bool {
    true
}

#[test]
fn an_opened_place_wakes_the_first_arrival() {
    let parking = Parking::new();
    let (woken, wakes) = unbounded();
    for who in [3, 1, 2] {
        let woken = woken.clone();
        parking.park(Arrival(who), 7, || true, always, move || woken.send(who).unwrap());
    }
    parking.opened([7]);
    parking.opened([7]);
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), [1]);
    assert!(!parking.leave(Arrival(1), always), "a woken request does not wait");
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), [2]);
    parking.leave(Arrival(2), |_| false);
    assert_eq!(parking.waiters(), [(Arrival(3), 7)]);
    parking.opened([7]);
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), [3]);
}

#[test]
fn a_request_that_leaves_early_is_never_called() {
    let parking = Parking::new();
    let called = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&called);
    parking.park(Arrival(1), 7, || true, always, move || told.store(true, Ordering::SeqCst));
    assert!(parking.leave(Arrival(1), always));
    parking.opened([7]);
    assert!(!called.load(Ordering::SeqCst));
    assert_eq!(Arc::strong_count(&called), 1, "the callback is dropped");
    assert!(!parking.leave(Arrival(1), always));
}

#[test]
fn ten_thousand_callbacks_that_leave_are_not_nested() {
    // Each callback wakes the next request: nested calls would overflow the stack.
    const MANY: u64 = 10_000;
    let parking = Parking::new();
    let count = Arc::new(AtomicUsize::new(0));
    for who in 0..MANY {
        let (inside, count) = (parking.clone(), Arc::clone(&count));
        let woken = move || {
            count.fetch_add(1, Ordering::SeqCst);
            inside.leave(Arrival(who), always);
        };
        parking.park(Arrival(who), 7, || true, always, woken);
    }
    parking.opened([7]);
    assert_eq!(count.load(Ordering::SeqCst), usize::try_from(MANY).unwrap());
    assert_eq!(parking.waiters(), []);
}
