//! The scenarios of parking for the model checkers. A request is a thread that waits for its
//! callback.
//!
//! Must never know: which checker runs it, and how schedules are chosen.
//!
//! The scenarios look for: a wake-up that is not delivered (a thread waits forever, which both
//! checkers report), a callback that is called twice, two owners of one key.

use super::increase;
use crate::checker::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use threads::parking::{Arrival, Parking};

checked! {
    Lot:
    takers_come_through
    passers_come_through
    parking_elsewhere_passes_the_turn
    left_or_woken
    callbacks_may_use_the_parking
}

pub type Lot = Parking<usize>;

/// Two keys behind mutexes of their own, like real conditions, and a value that the owner of key 0
/// uses.
struct Site {
    lot: Lot,
    taken: [Mutex<bool>; 2],
    used: Mutex<Option<AtomicUsize>>,
}

/// A signal that is given once.
struct Signal {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn new() -> Arc<Self> {
        Arc::new(Self { told: Mutex::new(false), changed: Condvar::new() })
    }

    fn tell(&self) {
        let before = std::mem::replace(&mut *self.told.lock().unwrap(), true);
        assert!(!before, "a callback is called once");
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut told = self.told.lock().unwrap();
        while !*told {
            told = self.changed.wait(told).unwrap();
        }
    }
}

impl Site {
    /// Keys that are taken at first belong to no request.
    fn new(lot: Lot, taken: [bool; 2]) -> Arc<Self> {
        Arc::new(Self { lot, taken: taken.map(Mutex::new), used: Mutex::new(Some(AtomicUsize::new(0))) })
    }

    fn is_taken(&self, key: usize) -> bool {
        *self.taken[key].lock().unwrap()
    }

    fn try_take(&self, key: usize) -> bool {
        !std::mem::replace(&mut *self.taken[key].lock().unwrap(), true)
    }

    fn park(&self, who: u64, key: usize, woken: impl FnOnce() + Send + 'static) {
        self.lot.park(Arrival(who), key, || self.is_taken(key), |key| !self.is_taken(*key), woken);
    }

    fn leave(&self, who: u64) -> bool {
        self.lot.leave(Arrival(who), |key| !self.is_taken(*key))
    }

    /// Parks until `look` succeeds at the key. The request then has the turn, if it has waited.
    fn until(&self, who: u64, key: usize, look: impl Fn() -> bool) {
        while !look() {
            let signal = Signal::new();
            let theirs = Arc::clone(&signal);
            self.park(who, key, move || theirs.tell());
            signal.wait();
        }
    }

    fn take(&self, who: u64, key: usize) {
        self.until(who, key, || self.try_take(key));
        self.leave(who);
    }

    fn pass(&self, who: u64, key: usize) {
        self.until(who, key, || !self.is_taken(key));
        self.leave(who);
    }

    fn give_back(&self, key: usize) {
        *self.taken[key].lock().unwrap() = false;
        self.lot.opened([key]);
    }

    /// The owner of key 0 uses the value alone, without holding a mutex.
    fn use_it(&self) {
        let mut value = self.used.lock().unwrap().take().expect("nobody else has the key");
        increase(&mut value);
        *self.used.lock().unwrap() = Some(value);
    }

    fn all_over(&self, uses: usize) {
        assert!(self.lot.waiters().is_empty());
        assert_eq!(self.used.lock().unwrap().as_ref().unwrap().load(Ordering::SeqCst), uses);
    }
}

fn spawn(site: &Arc<Site>, body: impl FnOnce(&Site) + Send + 'static) -> thread::JoinHandle<()> {
    let site = Arc::clone(site);
    thread::spawn(move || body(&site))
}

/// Two requests take a key one after the other, while a third thread gives it back.
pub fn takers_come_through(lot: Lot) {
    let site = Site::new(lot, [true, false]);
    let taker = |who| {
        move |site: &Site| {
            site.take(who, 0);
            site.use_it();
            site.give_back(0);
        }
    };
    let threads = [spawn(&site, taker(1)), spawn(&site, taker(2))];
    site.give_back(0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    site.all_over(2);
}

/// Two requests only need the key to be free: both continue after it is given back once.
pub fn passers_come_through(lot: Lot) {
    let site = Site::new(lot, [true, false]);
    let threads = [spawn(&site, |site| site.pass(1, 0)), spawn(&site, |site| site.pass(2, 0))];
    site.give_back(0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    site.all_over(0);
}

/// A request that parks at another key does not block the first one.
pub fn parking_elsewhere_passes_the_turn(lot: Lot) {
    let site = Site::new(lot, [true, true]);
    let second = Signal::new();
    let passed = Arc::clone(&second);
    let threads = [
        spawn(&site, |site| {
            site.until(1, 0, || !site.is_taken(0));
            // The request does not leave in between, like a step that finds the first key free and
            // the second one taken.
            site.pass(1, 1);
        }),
        spawn(&site, move |site| {
            site.pass(2, 0);
            passed.tell();
        }),
    ];
    site.give_back(0);
    second.wait();
    site.give_back(1);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    site.all_over(0);
}

/// A request gives up while the key is given back: it was either waiting or woken, and the next
/// request continues.
pub fn left_or_woken(lot: Lot) {
    let site = Site::new(lot, [true, false]);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    site.park(1, 0, move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let threads = [spawn(&site, |site| site.pass(2, 0)), spawn(&site, |site| site.give_back(0))];
    let waited = site.leave(1);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(calls.load(Ordering::SeqCst) + usize::from(waited), 1);
    site.all_over(0);
}

/// Callbacks run without the mutex: this one observes the parking and leaves it.
pub fn callbacks_may_use_the_parking(lot: Lot) {
    let site = Site::new(lot, [true, false]);
    let (inside, left) = (Arc::clone(&site), Signal::new());
    let leaving = Arc::clone(&left);
    site.park(1, 0, move || {
        assert!(inside.lot.waiters().len() < 2);
        assert!(!inside.leave(1));
        leaving.tell();
    });
    let threads = [spawn(&site, |site| site.pass(2, 0)), spawn(&site, |site| site.give_back(0))];
    left.wait();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    site.all_over(0);
}
