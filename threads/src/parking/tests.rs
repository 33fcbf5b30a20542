//! What the shell adds to the rules: callbacks, and where they are called. The rules have `tests/parking.rs`.

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
fn a_place_that_opens_wakes_the_first_arrival_only() {
    let parking = Parking::new();
    let (woken, wakes) = unbounded();
    for who in [3, 1, 2] {
        let woken = woken.clone();
        parking.park(Arrival(who), 7, || true, always, move || woken.send(who).unwrap());
    }
    parking.opened([7]);
    parking.opened([7]);
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), [1]);
    assert!(!parking.leave(Arrival(1), always), "it had been woken");
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), [2]);
    parking.leave(Arrival(2), |_| false);
    assert_eq!(parking.waiters(), [(Arrival(3), 7)]);
    parking.opened([7]);
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), [3]);
}

#[test]
fn who_leaves_before_it_is_woken_is_never_called() {
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
fn a_callback_may_leave_at_once_ten_thousand_times() {
    // Each wakes the next from inside its own callback: nested calls would overflow the stack.
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
