//! The lock's shell under shuttle: random schedules, so more threads and longer histories than loom
//! can explore.
//!
//! A failure prints the schedule for `shuttle::replay`. `LOCK_ITERATIONS` sets their number; see
//! the README.

use shuttle as checker;

mod scenarios;

use scenarios::{Table, acquire, all_over, increase, spawn, with_entries};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use threads::lock::{EntryRef, Guard, UNRANKED, WantedAccess};

fn iterations() -> usize {
    std::env::var("LOCK_ITERATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(2000)
}

/// Runs `body` with a new subject in each schedule.
fn model<T>(body: impl Fn(T) + Send + Sync + 'static, table: impl Fn() -> T + Send + Sync + 'static) {
    let body = Arc::new(move || body(table()));
    let again = Arc::clone(&body);
    // One half of the schedules is uniformly random, the other half has few preemptions at the
    // worst places.
    shuttle::check_random(move || body(), iterations() / 2);
    shuttle::check_pct(move || again(), iterations() / 2, 3);
}

/// Five threads, each with four requests of any kind, used in every possible way.
#[test]
fn random_requests_keep_the_promises() {
    model(all_sorts, Table::new);
}

fn all_sorts(lock: Table) {
    let lock = with_entries(lock);
    let changes = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let changes = Arc::clone(&changes);
            spawn(&lock, move |lock| {
                for _ in 0..4 {
                    one_of_all_sorts(&lock, &changes);
                }
            })
        })
        .collect();
    all_over(&lock, threads);
    let Guard::ReadAll(table) = acquire(&lock, WantedAccess::ReadAll, "sum".into()) else {
        panic!("asked for ReadAll")
    };
    let sum: usize = table.iter().map(|(_, _, value)| value.load(Ordering::SeqCst)).sum();
    assert_eq!(sum, changes.load(Ordering::SeqCst), "a change was lost");
}

fn one_of_all_sorts(lock: &Table, changes: &AtomicUsize) {
    let mut random = thread_rng();
    let target = match random.gen_range(0..5) {
        0 => EntryRef::Key(1),
        1 => EntryRef::Key(2),
        2 => EntryRef::Name('a'),
        3 => EntryRef::Name('b'),
        _ => EntryRef::Name('c'),
    };
    let access = match random.gen_range(0..8) {
        0 => WantedAccess::ReadAll,
        1 | 2 => WantedAccess::WriteAll,
        3 | 4 => WantedAccess::Read(target),
        _ => WantedAccess::Write(target),
    };
    let more = random.gen_range(0..3);
    if random.gen_range(0..6) == 0 {
        // Whether or not this request is granted, the requests behind it must be granted.
        let id = lock.submit(UNRANKED, access, "cancelled".into(), drop);
        lock.cancel(id);
        return;
    }
    let change = |value: &mut AtomicUsize| {
        increase(value);
        changes.fetch_add(1, Ordering::SeqCst);
    };
    match acquire(&lock, access, "any".into()) {
        Guard::Absent => {}
        Guard::Read(value) => {
            let before = value.load(Ordering::SeqCst);
            shuttle::thread::yield_now();
            assert_eq!(before, value.load(Ordering::SeqCst));
        }
        Guard::Write(mut value) => change(&mut value),
        Guard::ReadAll(table) => assert_eq!(table.iter().count(), 2),
        Guard::WriteAll(mut table) => match more {
            0 => {
                for key in [1, 2] {
                    change(table.get_mut(&EntryRef::Key(key)).expect("the entry exists between the grants"));
                }
            }
            1 => {
                // The free name depends on the other threads.
                let _ =
                    table.rename(&1, 'c') || table.rename(&2, 'c') || table.rename(&1, 'a') && table.rename(&2, 'b');
            }
            _ => {
                let value = table.remove(&2).expect("entry 2 exists between the grants");
                assert!(table.get(&EntryRef::Key(2)).is_none());
                let free = ['a', 'b', 'c'].into_iter().find(|name| table.get(&EntryRef::Name(*name)).is_none());
                let free = free.expect("two entries do not have three names");
                assert!(table.insert(2, free, value).is_ok());
            }
        },
    }
}
