//! The promises of the lock.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::Builder,
    time::Duration,
};

use crossbeam_channel::{Receiver, unbounded};

use super::{EntryRef, Guard, Lock, ReadGuard, RequestId, UNRANKED, WantedAccess, WriteGuard};

type EntryTable = Lock<u32, String, Vec<u32>>;
type Given = Guard<u32, String, Vec<u32>>;

/// Long enough for any machine; only a failing test reaches it.
const LIMIT: Duration = Duration::from_secs(60);

/// A table with `count` entries: key 0 named "0", and so on.
fn table(count: u32) -> EntryTable {
    let lock = EntryTable::new();
    let Guard::WriteAll(mut all) = acquire(&lock, WantedAccess::WriteAll, "fill".into()) else {
        panic!("asked for WriteAll")
    };
    for key in 0..count {
        assert!(all.insert(key, key.to_string(), vec![key]).is_ok());
    }
    drop(all);
    lock
}

/// Submits a request; returns its id and the receiver of its guard.
fn submit(lock: &EntryTable, access: WantedAccess<u32, String>, label: &'static str) -> (RequestId, Receiver<Given>) {
    let (given, guards) = unbounded();
    let id = lock.submit(UNRANKED, access, label.into(), move |guard| {
        // The test may have dropped the receiver.
        let _ = given.send(guard);
    });
    (id, guards)
}

/// The guard of a request that is granted at once.
fn acquire(lock: &EntryTable, access: WantedAccess<u32, String>, label: Cow<'static, str>) -> Given {
    let (given, guards) = unbounded();
    lock.submit(UNRANKED, access, label, move |guard| drop(given.send(guard)));
    guards.try_recv().expect("it is granted at once")
}

fn write(key: u32) -> WantedAccess<u32, String> {
    WantedAccess::Write(EntryRef::Key(key))
}

fn read_name(name: &str) -> WantedAccess<u32, String> {
    WantedAccess::Read(EntryRef::Name(name.to_owned()))
}

fn as_write(guard: Given) -> WriteGuard<u32, String, Vec<u32>> {
    let Guard::Write(guard) = guard else { panic!("not a Write guard") };
    guard
}

fn as_read(guard: Given) -> ReadGuard<u32, String, Vec<u32>> {
    let Guard::Read(guard) = guard else { panic!("not a Read guard") };
    guard
}

#[test]
fn another_thread_may_drop_a_guard() {
    fn owned<X: Send + 'static>() {}
    owned::<Given>();
    let lock = table(1);
    let (_, first) = submit(&lock, write(0), "first");
    let mut guard = as_write(first.recv_timeout(LIMIT).unwrap());
    guard.push(7);
    let (_, second) = submit(&lock, read_name("0"), "second");
    assert!(second.is_empty());
    Builder::new().spawn(move || drop(guard)).unwrap().join().unwrap();
    // The other thread granted it before its drop returned.
    let guard = as_read(second.try_recv().unwrap());
    assert_eq!((*guard.key(), guard.name().as_str(), guard.as_slice()), (0, "0", &[0, 7][..]));
}

#[test]
fn a_missing_entry_waits_for_write_all_only() {
    let lock = table(1);
    assert!(matches!(acquire(&lock, read_name("new"), "early".into()), Guard::Absent));
    let Guard::WriteAll(mut all) = submit(&lock, WantedAccess::WriteAll, "makes").1.try_recv().unwrap() else {
        panic!("asked for WriteAll")
    };
    let (_, made) = submit(&lock, read_name("new"), "waits");
    let (_, still) = submit(&lock, write(9), "waits in vain");
    assert!(made.is_empty() && still.is_empty());
    assert_eq!(all.insert(0, "new".into(), vec![1]), Err(vec![1]), "the key is taken");
    assert_eq!(all.insert(1, "0".into(), vec![1]), Err(vec![1]), "the name is taken");
    assert_eq!(all.insert(1, "new".into(), vec![1]), Ok(()));
    drop(all);
    assert_eq!(*as_read(made.try_recv().unwrap()), [1]);
    assert!(matches!(still.try_recv().unwrap(), Guard::Absent));
    assert_eq!(lock.observe().holders, []);
}

#[test]
fn write_all_and_read_all_reach_every_entry() {
    let lock = table(3);
    let Guard::WriteAll(mut all) = acquire(&lock, WantedAccess::WriteAll, "changes".into()) else {
        panic!("asked for WriteAll")
    };
    assert!(all.rename(&0, "zero".into()));
    assert!(all.rename(&0, "zero".into()), "to have the same name is no conflict");
    assert!(!all.rename(&1, "zero".into()));
    assert!(!all.rename(&9, "nine".into()));
    assert_eq!(all.remove(&1), Some(vec![1]));
    assert_eq!(all.remove(&1), None);
    all.get_mut(&EntryRef::Name("2".into())).unwrap().push(5);
    assert!(all.get_mut(&EntryRef::Name("1".into())).is_none());
    assert_eq!(all.get(&EntryRef::Name("zero".into())), Some((&0, &"zero".to_owned(), &vec![0])));
    assert_eq!(all.iter().count(), 2);
    drop(all);
    let Guard::ReadAll(all) = acquire(&lock, WantedAccess::ReadAll, "looks".into()) else {
        panic!("asked for ReadAll")
    };
    let mut seen: Vec<_> = all.iter().map(|(key, name, value)| (*key, name.as_str(), value.clone())).collect();
    seen.sort();
    assert_eq!(seen, [(0, "zero", vec![0]), (2, "2", vec![2, 5])]);
    assert_eq!(all.get(&EntryRef::Key(2)).map(|(_, _, value)| value.len()), Some(2));
    assert_eq!(all.get(&EntryRef::Name("0".into())), None);
}

#[test]
fn read_all_neither_copies_nor_walks_the_table() {
    // The test checks the cause of the cost instead of the time: both guards share one table.
    let lock = table(10_000);
    let shared = |guard: &Given| match guard {
        Guard::ReadAll(all) => all.get(&EntryRef::Key(5)).map(|(_, _, value)| std::ptr::from_ref(value)),
        _ => None,
    };
    let (first, second) = (submit(&lock, WantedAccess::ReadAll, "a").1, submit(&lock, WantedAccess::ReadAll, "b").1);
    let (first, second) = (first.try_recv().unwrap(), second.try_recv().unwrap());
    assert!(shared(&first).is_some());
    assert_eq!(shared(&first), shared(&second));
}

#[test]
fn a_cancelled_request_lets_others_pass() {
    let lock = table(1);
    let held = submit(&lock, read_name("0"), "holds").1.try_recv().unwrap();
    let (writer, refused) = submit(&lock, write(0), "cancelled");
    let (_, behind) = submit(&lock, read_name("0"), "behind");
    assert!(behind.is_empty());
    assert!(lock.cancel(writer));
    assert!(behind.try_recv().is_ok());
    assert!(refused.try_recv().is_err_and(|error| error.is_disconnected()), "its callback is gone");
    assert!(!lock.cancel(writer), "a second time");
    drop(held);
    let (granted, guard) = submit(&lock, write(0), "granted");
    assert!(!lock.cancel(granted));
    assert!(guard.try_recv().is_ok());
}

#[test]
fn deliveries_are_never_nested() {
    // Each callback drops its guard, which grants the next request: nested calls would overflow the
    // stack.
    let lock = table(1);
    let held = submit(&lock, write(0), "holds").1.try_recv().unwrap();
    let calls = Arc::new(());
    for _ in 0..100_000 {
        let call = Arc::clone(&calls);
        lock.submit(UNRANKED, write(0), "left".into(), move |guard| drop((guard, call)));
    }
    drop(held);
    assert_eq!(Arc::strong_count(&calls), 1, "all were called");
    assert_eq!(lock.observe(), super::Observation::default());
}

#[test]
fn a_panicking_callback_does_not_block_other_grants() {
    let lock = table(1);
    let held = submit(&lock, write(0), "holds").1.try_recv().unwrap();
    lock.submit(UNRANKED, read_name("0"), "panics".into(), |_| panic!("planned"));
    let (_, beside) = submit(&lock, read_name("0"), "beside");
    let (_, behind) = submit(&lock, write(0), "behind");
    assert!(catch_unwind(AssertUnwindSafe(|| drop(held))).is_err());
    drop(beside.try_recv().unwrap());
    // The request is granted, because the guard given to the panicking callback was dropped as
    // well.
    assert!(behind.try_recv().is_ok());
    // This thread still delivers.
    assert!(matches!(acquire(&lock, write(0), "later".into()), Guard::Write(_)));
}

#[test]
fn a_panic_ends_its_grant() {
    let lock = table(1);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut guard = as_write(acquire(&lock, write(0), "panics".into()));
        guard.push(1);
        panic!("planned");
    }));
    assert!(outcome.is_err());
    assert_eq!(*as_write(acquire(&lock, write(0), "next".into())), [0, 1]);
}

#[test]
fn an_observation_shows_holders_and_waiters() {
    let lock = table(2);
    let held = submit(&lock, write(0), "grow").1.try_recv().unwrap();
    let (waits, guard) = submit(&lock, read_name("0"), "list");
    let seen = lock.observe();
    let told = |observed: &super::Observed| (observed.label.to_string(), observed.access.clone());
    assert_eq!(seen.holders.iter().map(told).collect::<Vec<_>>(), [("grow".into(), "Write(0)".into())]);
    assert_eq!(seen.waiters.iter().map(told).collect::<Vec<_>>(), [("list".into(), "Read(Name(\"0\"))".into())]);
    assert_eq!(seen.waiters[0].id, waits);
    let later = lock.observe();
    assert!(later.holders[0].age >= seen.holders[0].age && later.waiters[0].age >= seen.waiters[0].age);
    drop((held, guard));
    assert_eq!(lock.observe(), super::Observation::default());
}
