//! The scenarios for the model checkers. Loom and shuttle run the same bodies, each with its own
//! threads and sync types: the file that includes this one names them `checker`.
//!
//! Must never know: which checker runs it, and how schedules are chosen.
//!
//! The value of an entry is one of the checker's atomics, but is only changed through `&mut`. The
//! scenarios look for: two conflicting holders (counts are wrong; loom also reports a change that
//! the next holder need not have seen), a grant that is not delivered (a thread waits forever,
//! which both checkers report), a callback that is called twice or never.

#![allow(clippy::unwrap_used, reason = "part of the tests, without their attribute")]

#[cfg(feature = "planted-faults")]
mod planted;

use std::borrow::Cow;

use crate::checker::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use threads::lock::{EntryRef, Guard, Lock, UNRANKED, WantedAccess};

/// Runs each of these functions under the checker, with a subject that `$subject` creates.
macro_rules! checked {
    ($subject:ident: $($scenario:ident)*) => {
        mod checked {
            $(
                #[test]
                fn $scenario() {
                    crate::model(super::$scenario, super::$subject::new);
                }
            )*
        }
    };
}

mod parking;

checked! {
    Table:
    writers_take_turns
    readers_see_whole_writes
    writer_follows_readers
    cancelled_or_granted
    callbacks_may_use_the_lock
    names_are_resolved_at_the_grant
}

pub type Table = Lock<u8, char, AtomicUsize>;

/// A table with two entries: 1 named a and 2 named b, both with the value 0.
pub fn with_entries(lock: Table) -> Table {
    let Guard::WriteAll(mut table) = acquire(&lock, WantedAccess::WriteAll, "fill".into()) else {
        panic!("asked for WriteAll")
    };
    for (key, name) in [(1, 'a'), (2, 'b')] {
        assert!(table.insert(key, name, AtomicUsize::new(0)).is_ok());
    }
    drop(table);
    lock
}

pub fn spawn(lock: &Table, body: impl FnOnce(Table) + Send + 'static) -> thread::JoinHandle<()> {
    let lock = lock.clone();
    thread::spawn(move || body(lock))
}

/// After all threads have ended, no request holds or waits.
pub fn all_over(lock: &Table, threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let seen = lock.observe();
    assert!(seen.holders.is_empty() && seen.waiters.is_empty(), "{seen:?}");
}

pub fn increase(value: &mut AtomicUsize) {
    let before = value.load(Ordering::Relaxed);
    // Other threads can run here. If one of them had the same entry, one increment would be lost.
    thread::yield_now();
    *value = AtomicUsize::new(before + 1);
}

fn write(lock: &Table, target: EntryRef<u8, char>) {
    match acquire(&lock, WantedAccess::Write(target), "writer".into()) {
        Guard::Write(mut value) => increase(&mut value),
        _ => panic!("the entry exists"),
    }
}

fn read(lock: &Table, target: EntryRef<u8, char>) -> usize {
    match acquire(&lock, WantedAccess::Read(target), "reader".into()) {
        Guard::Read(value) => value.load(Ordering::Relaxed),
        _ => panic!("the entry exists"),
    }
}

/// A mailbox for the guard of a submitted request.
struct Mailbox {
    guards: Mutex<Vec<Guard<u8, char, AtomicUsize>>>,
    changed: Condvar,
}

impl Mailbox {
    fn new() -> Arc<Self> {
        Arc::new(Self { guards: Mutex::new(Vec::new()), changed: Condvar::new() })
    }

    fn put(&self, guard: Guard<u8, char, AtomicUsize>) {
        self.guards.lock().unwrap().push(guard);
        self.changed.notify_all();
    }

    fn take(&self) -> Guard<u8, char, AtomicUsize> {
        let mut guards = self.guards.lock().unwrap();
        loop {
            match guards.pop() {
                Some(guard) => return guard,
                None => guards = self.changed.wait(guards).unwrap(),
            }
        }
    }
}

/// Submits a request and waits for its guard.
pub fn acquire(lock: &Table, access: WantedAccess<u8, char>, label: Cow<'static, str>) -> Guard<u8, char, AtomicUsize> {
    let mailbox = Mailbox::new();
    let theirs = Arc::clone(&mailbox);
    lock.submit(UNRANKED, access, label, move |guard| theirs.put(guard));
    mailbox.take()
}

/// Two writers of one entry, by key and by name.
fn writers_take_turns(lock: Table) {
    let lock = with_entries(lock);
    let threads =
        [spawn(&lock, |lock| write(&lock, EntryRef::Key(1))), spawn(&lock, |lock| write(&lock, EntryRef::Name('a')))];
    all_over(&lock, threads);
    assert_eq!(read(&lock, EntryRef::Key(1)), 2);
}

/// A reader of one entry, a reader of all and a writer of all.
fn readers_see_whole_writes(lock: Table) {
    let lock = with_entries(lock);
    let both = |lock: &Table| match acquire(&lock, WantedAccess::WriteAll, "both".into()) {
        Guard::WriteAll(mut table) => {
            increase(table.get_mut(&EntryRef::Key(1)).unwrap());
            increase(table.get_mut(&EntryRef::Name('b')).unwrap());
        }
        _ => panic!("asked for WriteAll"),
    };
    let compare = |lock: &Table| match acquire(&lock, WantedAccess::ReadAll, "compare".into()) {
        Guard::ReadAll(table) => {
            let values: Vec<_> = table.iter().map(|(_, _, value)| value.load(Ordering::Relaxed)).collect();
            assert_eq!(values[0], values[1], "the changes of a WriteAll grant are seen together");
        }
        _ => panic!("asked for ReadAll"),
    };
    let threads = [spawn(&lock, move |lock| both(&lock)), spawn(&lock, move |lock| compare(&lock))];
    read(&lock, EntryRef::Key(2));
    all_over(&lock, threads);
    assert_eq!(read(&lock, EntryRef::Key(1)), 1);
}

/// A reader's share of the value is dropped before the writer is granted.
fn writer_follows_readers(lock: Table) {
    let lock = with_entries(lock);
    let threads = [
        spawn(&lock, |lock| assert!(read(&lock, EntryRef::Key(1)) < 2)),
        spawn(&lock, |lock| write(&lock, EntryRef::Key(1))),
    ];
    read(&lock, EntryRef::Name('a'));
    all_over(&lock, threads);
}

/// A request is cancelled while the one before it ends: either it is cancelled or its callback is
/// called, never both.
fn cancelled_or_granted(lock: Table) {
    let lock = with_entries(lock);
    let holder = Mailbox::new();
    let theirs = Arc::clone(&holder);
    lock.submit(UNRANKED, WantedAccess::Write(EntryRef::Key(1)), "first".into(), move |guard| theirs.put(guard));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let second = lock.submit(UNRANKED, WantedAccess::WriteAll, "second".into(), move |guard| {
        counted.fetch_add(1, Ordering::SeqCst);
        drop(guard);
    });
    let cancelling = lock.clone();
    let outcome = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&outcome);
    let threads = [
        spawn(&lock, move |_| drop(holder.take())),
        thread::spawn(move || told.store(usize::from(cancelling.cancel(second)), Ordering::SeqCst)),
    ];
    // This request is behind both of them, so it is granted whatever happens to the second.
    read(&lock, EntryRef::Key(1));
    all_over(&lock, threads);
    assert_eq!(calls.load(Ordering::SeqCst) + outcome.load(Ordering::SeqCst), 1);
}

/// Callbacks run without the mutex: this one observes the lock and submits a request.
fn callbacks_may_use_the_lock(lock: Table) {
    let lock = with_entries(lock);
    let thread = spawn(&lock, |lock| write(&lock, EntryRef::Key(1)));
    let mailbox = Mailbox::new();
    let (theirs, inside) = (Arc::clone(&mailbox), lock.clone());
    lock.submit(UNRANKED, WantedAccess::Read(EntryRef::Key(1)), "asks for more".into(), move |guard| {
        assert!(!inside.observe().holders.is_empty());
        inside.submit(UNRANKED, WantedAccess::ReadAll, "more".into(), move |guard| theirs.put(guard));
        drop(guard);
    });
    assert!(matches!(mailbox.take(), Guard::ReadAll(_)));
    all_over(&lock, [thread]);
}

/// A name may change its meaning while a request waits for it: the value is always that of the
/// named entry.
fn names_are_resolved_at_the_grant(lock: Table) {
    let lock = with_entries(lock);
    let threads = [
        spawn(&lock, |lock| match acquire(&lock, WantedAccess::WriteAll, "renames".into()) {
            Guard::WriteAll(mut table) => {
                assert!(table.remove(&2).is_some());
                assert!(table.rename(&1, 'b'));
                increase(table.get_mut(&EntryRef::Name('b')).unwrap());
            }
            _ => panic!("asked for WriteAll"),
        }),
        spawn(&lock, |lock| match acquire(&lock, WantedAccess::Read(EntryRef::Name('b')), "by name".into()) {
            Guard::Read(value) => assert_eq!(usize::from(*value.key() == 1), value.load(Ordering::Relaxed)),
            _ => panic!("there is always a b"),
        }),
    ];
    match acquire(&lock, WantedAccess::Write(EntryRef::Key(2)), "by key".into()) {
        Guard::Write(value) => assert_eq!((*value.key(), *value.name()), (2, 'b')),
        Guard::Absent => {}
        _ => panic!("asked for an entry"),
    }
    all_over(&lock, threads);
}
