//! A table of entries behind one lock, which queues requests instead of threads. [`state`] decides
//! everything (modes, order, fairness); this module is the shell that makes its promises hold
//! between threads.
//!
//! Must never know: the rules. The shell asks the state machine what a call grants, and delivers
//! that.
//!
//! # Why the promises hold between threads
//!
//! One mutex guards the state machine and the table. Every call takes it once and briefly: no
//! callback, no log line, no destructor of a value and no wait happens under it. The mutex is a
//! leaf: no other lock is taken under it. So calls happen one after the other, each as a whole, and
//! what [`state`] promises for a sequence of calls holds between threads.
//!
//! A grant is *made* under the mutex and *delivered* after it (the callback is called with the
//! guard), by the same thread in the same call. No grant gets lost in between: nothing there can
//! fail or wait, and the callback was stored under the same lock of the mutex as the request, so
//! the thread that grants a waiter finds its callback. Two deliveries by different threads may
//! overtake each other. Then their grants are compatible, or the second one was made after the
//! first guard was dropped.
//!
//! A callback may drop its guard, call the lock again, or panic; `outbox.rs` says what happens to
//! the other deliveries then.
//!
//! The next holder sees what a holder wrote: a value is put back under the mutex before its grant
//! is ended there.
//!
//! # Use
//!
//! Threads that have other work submit a request and receive the guard through a channel:
//!
//! ```
//! use threads::lock::{EntryRef, Guard, Lock, UNRANKED, WantedAccess};
//!
//! let lock: Lock<u32, String, Vec<u8>> = Lock::new();
//! let (granted, guards) = crossbeam_channel::unbounded();
//!
//! // Entries come and go under WriteAll.
//! let sender = granted.clone();
//! lock.submit(UNRANKED, WantedAccess::WriteAll, "fill".into(), move |guard| drop(sender.send(guard)));
//! if let Ok(Guard::WriteAll(mut table)) = guards.recv() {
//!     assert!(table.insert(1, "first".to_owned(), vec![7]).is_ok());
//! } // dropping the guard grants the next request
//!
//! // Others find them by key or by name, and hold that entry alone.
//! let by_name = WantedAccess::Write(EntryRef::Name("first".to_owned()));
//! lock.submit(UNRANKED, by_name, "grow".into(), move |guard| drop(granted.send(guard)));
//! match guards.recv() {
//!     Ok(Guard::Write(mut entry)) => entry.push(8),
//!     Ok(Guard::Absent) => println!("there is no such entry"),
//!     _ => unreachable!("a request for one entry is granted that or nothing"),
//! }
//!
//! lock.submit(UNRANKED, WantedAccess::ReadAll, "list".into(), move |guard| match guard {
//!     Guard::ReadAll(table) => assert_eq!(table.iter().next(), Some((&1, &"first".to_owned(), &vec![7, 8]))),
//!     _ => unreachable!("asked for ReadAll"),
//! });
//! ```

use std::{
    borrow::Cow,
    fmt::{Debug, Formatter},
    time::{Duration, Instant},
};

#[cfg(feature = "planted-faults")]
mod fault;
mod guard;
pub mod state;
#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;

#[cfg(feature = "planted-faults")]
pub use fault::LockFault;
pub use guard::{Guard, ReadAllGuard, ReadGuard, WriteAllGuard, WriteGuard};
pub use state::{EntryRef, HeldAccess, Ident, RequestId, UNRANKED, WantedAccess};

use crate::{
    fault::planted,
    outbox::{self, Delivery},
    primitives::{Arc, Mutex},
};
use guard::{EntryRow, EntryTable, GrantHold, Lent};
use state::{Grant, LockRules, Map};

/// A handle to one table of entries with keys `K`, names `N` and values `T`. Clones are handles to
/// the same table.
pub struct Lock<K: Ident, N: Ident, T: Send + Sync + 'static> {
    shared: Arc<LockCore<K, N, T>>,
}

impl<K: Ident, N: Ident, T: Send + Sync> Clone for Lock<K, N, T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> Debug for Lock<K, N, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.observe().fmt(f)
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> Default for Lock<K, N, T> {
    fn default() -> Self {
        Self::new()
    }
}

/// State shared by all handles and guards of one table. It lives as long as any of them, so a guard
/// may outlive the handles.
struct LockCore<K: Ident, N: Ident, T: Send + Sync + 'static> {
    inner: Mutex<LockState<K, N, T>>,
    #[cfg(feature = "planted-faults")]
    fault: Option<LockFault>,
}

/// Everything that the mutex guards. The fields change together. Whenever the mutex is free: a
/// waiting request has a callback, a holder has its value out of `table` or shared from it, and
/// both have a ticket.
struct LockState<K: Ident, N: Ident, T: Send + Sync + 'static> {
    state: LockRules<K, N>,
    /// None while a WriteAll guard owns it. ReadAll guards share it, so a ReadAll grant costs the
    /// same for any number of entries.
    table: Option<Arc<EntryTable<K, N, T>>>,
    /// The callback of each waiting request. Grows with the number of waiting requests, which the
    /// submitter bounds.
    callbacks: Map<RequestId, OnGrant<K, N, T>>,
    /// One ticket per holder and waiter, for people.
    tickets: Map<RequestId, RequestAge>,
}

/// The callback given to `submit`. Called once or dropped, never under the mutex, because it is the
/// caller's code.
type OnGrant<K, N, T> = Box<dyn FnOnce(Guard<K, N, T>) + Send>;

/// The label of a request, and since when it has held or waited. For people and the log, never for
/// a decision.
#[derive(Clone)]
struct RequestAge {
    label: Cow<'static, str>,
    since: Instant,
}

/// The holders and waiters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Holders, in the order of their requests.
    pub holders: Vec<Observed>,
    /// Waiters, in the order of arrival.
    pub waiters: Vec<Observed>,
}

/// One holder or waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The request.
    pub id: RequestId,
    /// The label given to `submit`.
    pub label: Cow<'static, str>,
    /// The access held or asked for, for people.
    pub access: String,
    /// How long the request has held or waited.
    pub age: Duration,
}

// Why the steps below cannot fail. Each reason follows from the rules, which have their own checks.
// If a rule were broken, a panic would be better than a table with two writers.
const TABLE_PRESENT: &str = "the table is present: no other grant exists beside WriteAll";
const TABLE_UNSHARED: &str = "nobody shares the table: no ReadAll grant exists beside a writer";
const KNOWN_ENTRY: &str = "the entry of a grant is in the table: entries are removed only under WriteAll";

impl<K: Ident, N: Ident, T: Send + Sync> Lock<K, N, T> {
    /// A table without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::with_state(LockRules::new())
    }

    /// A lock with a planted fault, to show that a checker finds it.
    #[cfg(feature = "planted-faults")]
    #[must_use]
    pub fn with_fault(fault: LockFault) -> Self {
        Self::with_state(LockRules::with_fault(fault))
    }

    fn with_state(state: LockRules<K, N>) -> Self {
        let table = Some(Arc::new(EntryTable { rows: Map::default() }));
        let inner = LockState { state, table, callbacks: Map::default(), tickets: Map::default() };
        // The fault is kept outside the mutex as well: reading it must not add a step that hides
        // the fault.
        let shared = LockCore {
            #[cfg(feature = "planted-faults")]
            fault: inner.state.fault,
            inner: Mutex::new(inner),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Queues a request. `granted` is called exactly once with the guard, by the thread that makes
    /// the grant: this one, or the thread that ends what is in the way. It is called without any
    /// mutex held and may call the lock, but it delays that thread, so it should only pass the
    /// guard on. If the request is cancelled, `granted` is dropped without a call.
    ///
    /// Waiters are served by `rank`, and those of the same rank in the order of their requests
    /// ([`UNRANKED`]: behind all others). `label` names the request for people.
    pub fn submit(
        &self,
        rank: u64,
        access: WantedAccess<K, N>,
        label: Cow<'static, str>,
        granted: impl FnOnce(Guard<K, N, T>) + Send + 'static,
    ) -> RequestId {
        // Built before the mutex is taken, which keeps formatting and clones out of it.
        let traced = log::log_enabled!(log::Level::Trace).then(|| (label.clone(), format!("{access:?}")));
        let mut inner = self.shared.inner.lock();
        let (id, held) = inner.state.request_ranked(rank, access);
        inner.tickets.insert(id, RequestAge { label, since: Instant::now() });
        // Queueing the request and storing the callback happen under one lock of the mutex, so the
        // thread that grants this request later finds the callback.
        let now = match held {
            Some(held) => Some((granted, make_guard(&self.shared, &mut inner, Grant { id, held }))),
            None => {
                if planted!(self.shared, LockFault::NotesCallbackLater) {
                    drop(inner);
                    inner = self.shared.inner.lock();
                }
                inner.callbacks.insert(id, Box::new(granted));
                None
            }
        };
        drop(inner);
        if let Some((label, access)) = traced {
            let outcome = if now.is_some() { "granted" } else { "waits" };
            log::trace!("{id} {label}: {access} {outcome}");
        }
        // The grant goes through the outbox even in this call: a callback that submits must not run
        // another callback inside itself.
        if let Some((granted, guard)) = now {
            outbox::deliver([Box::new(move || granted(guard)) as Delivery]);
        }
        id
    }

    /// Removes a request from the queue. Returns `true` if the request was still waiting; its
    /// callback will not be called. Returns `false` if its guard has been delivered or is about to
    /// be.
    pub fn cancel(&self, id: RequestId) -> bool {
        let mut inner = self.shared.inner.lock();
        let mut callback = None;
        if planted!(self.shared, LockFault::CancelsInTwoSteps) {
            callback = inner.callbacks.remove(&id);
            drop(inner);
            inner = self.shared.inner.lock();
        }
        let Some(grants) = inner.state.cancel(id) else { return false };
        callback = inner.callbacks.remove(&id).or(callback);
        inner.tickets.remove(&id);
        // The request waited until now, under the mutex, so no other thread takes the callback.
        // Requests that waited only for this one are granted here and delivered below.
        let due = collect(&self.shared, &mut inner, grants);
        drop(inner);
        log::trace!("{id} cancelled");
        // Dropped outside the mutex: a destructor of the callback's data may call the lock.
        drop(callback);
        outbox::deliver(due);
        true
    }

    /// The current holders and waiters.
    #[must_use]
    pub fn observe(&self) -> Observation {
        // Under one lock of the mutex, so the result describes one moment: no request appears twice
        // or is missing between queue and grant.
        let inner = self.shared.inner.lock();
        let ticket = |id: RequestId| inner.tickets.get(&id).cloned();
        let holders: Vec<_> =
            inner.state.holders().into_iter().map(|(id, held)| (id, held.clone(), ticket(id))).collect();
        let waiters: Vec<_> =
            inner.state.waiters().into_iter().map(|(id, ask)| (id, ask.clone(), ticket(id))).collect();
        drop(inner);
        // The texts are formatted outside the mutex: they cost more than everything else here.
        Observation {
            holders: holders.into_iter().filter_map(|(id, held, ticket)| observed(id, &held, ticket?)).collect(),
            waiters: waiters.into_iter().filter_map(|(id, access, ticket)| observed(id, &access, ticket?)).collect(),
        }
    }
}

/// One entry of an observation.
fn observed(id: RequestId, access: &impl Debug, ticket: RequestAge) -> Option<Observed> {
    Some(Observed { id, label: ticket.label, access: format!("{access:?}"), age: ticket.since.elapsed() })
}

/// Makes the guard of a grant: takes what it gives access to out of the table, or shares it.
fn make_guard<K: Ident, N: Ident, T: Send + Sync>(
    shared: &Arc<LockCore<K, N, T>>,
    inner: &mut LockState<K, N, T>,
    grant: Grant<K>,
) -> Guard<K, N, T> {
    let hold = |lent| GrantHold { shared: Arc::clone(shared), id: Some(grant.id), lent };
    // From here on the age counts the time held, not the time waited.
    if let Some(ticket) = inner.tickets.get_mut(&grant.id) {
        ticket.since = Instant::now();
    }
    match grant.held {
        HeldAccess::Absent => {
            // An absent entry holds nothing, so no release will come; the ticket is removed now.
            inner.tickets.remove(&grant.id);
            Guard::Absent
        }
        // A share of the value: other readers have their own, and the table keeps one.
        HeldAccess::Read(key) => {
            let row = inner.table.as_ref().expect(TABLE_PRESENT).rows.get(&key).expect(KNOWN_ENTRY);
            let value = Arc::clone(row.value.as_ref().expect(guard::VALUE_PRESENT));
            let name = row.name.clone();
            Guard::Read(ReadGuard { key, name, hold: hold(Lent::Read(value)) })
        }
        // The value itself. The row stays because the entry does, and no other thread reads it
        // while this grant exists.
        HeldAccess::Write(key) => {
            let row = inner.row_mut(&key);
            let value = row.value.take().expect(guard::VALUE_PRESENT);
            let name = row.name.clone();
            Guard::Write(WriteGuard { key: key.clone(), name, hold: hold(Lent::Write(key, value)) })
        }
        // A share of the table. While it exists no value can leave its row, so a ReadAll guard
        // finds all values there.
        HeldAccess::ReadAll => {
            let table = Arc::clone(inner.table.as_ref().expect(TABLE_PRESENT));
            Guard::ReadAll(ReadAllGuard { hold: hold(Lent::ReadAll(table)) })
        }
        // The table itself, which the guard changes without the mutex.
        HeldAccess::WriteAll => {
            let table = inner.table.take().expect(TABLE_PRESENT);
            let table = Arc::try_unwrap(table).ok().expect(TABLE_UNSHARED);
            Guard::WriteAll(WriteAllGuard { hold: hold(Lent::WriteAll(table)) })
        }
    }
}

/// Makes the guards of these grants and pairs each with its callback, under the lock of the mutex
/// that granted them. From then on no other thread can interfere between grant and delivery.
fn collect<K: Ident, N: Ident, T: Send + Sync>(
    shared: &Arc<LockCore<K, N, T>>,
    inner: &mut LockState<K, N, T>,
    grants: Vec<Grant<K>>,
) -> Vec<Delivery> {
    let each = grants.into_iter().map(|grant| {
        let id = grant.id;
        // Taken before the guard is made, which resets the age: the log line reports the time
        // waited.
        let ticket = inner.tickets.get(&id).filter(|_| log::log_enabled!(log::Level::Trace)).cloned();
        let guard = make_guard(shared, inner, grant);
        let callback = inner.callbacks.remove(&id).expect("a waiter's callback is stored when it is queued");
        Box::new(move || {
            if let Some(RequestAge { label, since }) = ticket {
                log::trace!("{id} {label}: granted after {:?}", since.elapsed());
            }
            callback(guard);
        }) as Delivery
    });
    each.collect()
}

/// Ends a grant and grants everything that became compatible. Runs when a guard is dropped, also
/// during unwinding, so it touches nothing that the panicking code could have broken.
fn release<K: Ident, N: Ident, T: Send + Sync>(shared: &Arc<LockCore<K, N, T>>, id: RequestId, lent: Lent<K, N, T>) {
    let mut inner = shared.inner.lock();
    // The loan is returned before the grant ends: the next holder finds everything in place.
    let late = match &lent {
        Lent::Read(value) if planted!(shared, LockFault::SharesTooLong) => Some(Arc::clone(value)),
        _ => None,
    };
    inner.take_back(lent);
    let grants = inner.state.release(id);
    let ticket = inner.tickets.remove(&id);
    let due = collect(shared, &mut inner, grants);
    if planted!(shared, LockFault::CallsBackUnderMutex) {
        return outbox::deliver(due);
    }
    drop(inner);
    drop(late);
    if let Some(RequestAge { label, since }) = ticket {
        log::trace!("{id} {label}: ended after {:?}", since.elapsed());
    }
    outbox::deliver(due);
}

impl<K: Ident, N: Ident, T: Send + Sync> LockState<K, N, T> {
    /// Puts back what a guard took, or drops what it shared, before its grant ends.
    fn take_back(&mut self, lent: Lent<K, N, T>) {
        match lent {
            Lent::Nothing => {}
            // The table keeps its own pointer, so no value and no table is destroyed under the
            // mutex.
            Lent::Read(value) => drop(value),
            Lent::ReadAll(table) => drop(table),
            Lent::Write(key, value) => self.row_mut(&key).value = Some(value),
            Lent::WriteAll(table) => self.table = Some(Arc::new(table)),
        }
    }

    /// The row of an entry, to take its value or put it back.
    fn row_mut(&mut self, key: &K) -> &mut EntryRow<N, T> {
        let table = self.table.as_mut().expect(TABLE_PRESENT);
        Arc::get_mut(table).expect(TABLE_UNSHARED).rows.get_mut(key).expect(KNOWN_ENTRY)
    }
}
