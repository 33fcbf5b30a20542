//! The rules of the lock: which grants may exist together, and which request is next. A plain value
//! with methods.
//!
//! Must never know: threads, sync types, callbacks, time, and the values of the entries.
//!
//! # The promise
//!
//! **Exclusion.** No two holders conflict ([`conflict`]).
//!
//! **Order.** Each request has a *rank*; among requests of the same rank, the one made first is
//! earlier. A request is granted at once if it conflicts with no holder and with no earlier waiter;
//! otherwise it waits. So a request never passes an earlier one with which it conflicts. Requests
//! for one entry are served by rank, and in the order of arrival within a rank (compatible readers
//! together). A request that continues work it has begun keeps its old rank and need not queue
//! behind those that have not begun.
//!
//! **No starvation.** A waiter waits for holders and earlier waiters only. Only requests of a lower
//! rank can be added to these. If ranks are given in the order of arrival, and each arrival makes a
//! bounded number of requests, these additions come to an end. So if every holder releases
//! eventually, every waiter is granted eventually.
//!
//! **No wait without need.** Between two calls every waiter conflicts with a holder or with an
//! earlier waiter. A request that conflicts with nothing ahead of it overtakes, and each change
//! that frees something (`release`, `cancel`) grants *all* requests that became compatible. A
//! granted request holds when the call returns: no request is "woken but not yet holding", so no
//! other one can slip in between.
//!
//! **Names are resolved at the grant.** A waiting request by name counts as a request for the entry
//! that has the name now. A request for an entry that does not exist conflicts with WriteAll alone,
//! since only WriteAll can create the entry; its grant is [`HeldAccess::Absent`], which holds
//! nothing. Names change only under WriteAll, while every other request waits anyway. So no two
//! holders, and no holder and overtaking request, ever disagree about what a name meant.
//!
//! An example with one entry `p`. W and R are requests to write and to read it, A is ReadAll, N a
//! request for a name that no entry has:
//!
//! | call | holds afterwards | waits afterwards | because |
//! |---|---|---|---|
//! | W1 | W1 | | nothing is ahead |
//! | R2 | W1 | R2 | W1 holds |
//! | W3 | W1 | R2 W3 | W1 holds |
//! | N4 | W1 | R2 W3 | a missing entry conflicts with nothing here: N passes, gets Absent and is done |
//! | A5 | W1 | R2 W3 A5 | W1 holds, and W3 is ahead |
//! | release W1 | R2 | W3 A5 | A5 is compatible with R2, but may not pass W3 |
//! | cancel W3 | R2 A5 | | A5 has nothing left to wait for |
//!
//! # Cost
//!
//! A request looks at a fixed number of counters and queue heads, in the All modes too: it never
//! walks the entries. A release looks at the heads of the queues that it can have freed.

use std::{
    collections::{BTreeSet, HashMap, hash_map::DefaultHasher},
    fmt::{Debug, Display, Formatter},
    hash::{BuildHasherDefault, Hash},
};

#[cfg(feature = "planted-faults")]
use super::fault::LockFault;
use crate::fault::planted;

/// A hash map without a random seed: `iter` must walk the entries in the same order in each run, or
/// a model checker could not replay a schedule. Collision attacks do not matter: callers that
/// choose keys and names may change the table anyway.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// A type that can be a key or a name. Implemented for every type that qualifies.
pub trait Ident: Clone + Eq + Hash + Debug + Send + Sync + 'static {}

impl<X: Clone + Eq + Hash + Debug + Send + Sync + 'static> Ident for X {}

/// One request, from its submission until its guard is dropped. A later request has a greater id,
/// unless its rank is lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    rank: u64,
    number: u64,
}

impl Display for RequestId {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.number)
    }
}

/// The rank of a request without one: behind all others.
pub const UNRANKED: u64 = u64::MAX;

/// How a request names its entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EntryRef<K, N> {
    /// By key, which an entry keeps for life.
    Key(K),
    /// By name: the entry that has this name when the grant is made.
    Name(N),
}

/// The access that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WantedAccess<K, N> {
    /// To read the whole table.
    ReadAll,
    /// To change everything: values, names and the set of entries.
    WriteAll,
    /// To read one entry.
    Read(EntryRef<K, N>),
    /// To change the value of one entry.
    Write(EntryRef<K, N>),
}

/// What a grant holds, after names are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeldAccess<K> {
    /// Nothing: no entry has that key or name.
    Absent,
    /// One entry, for reading.
    Read(K),
    /// One entry, for changing its value.
    Write(K),
    /// The table, for reading.
    ReadAll,
    /// The table, for changing everything.
    WriteAll,
}

/// A request that has been granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant<K> {
    /// The request.
    pub id: RequestId,
    /// What it holds.
    pub held: HeldAccess<K>,
}

/// The kind of a request or grant, without its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// The table, for reading.
    ReadAll,
    /// The table, for changing everything.
    WriteAll,
    /// One entry, for reading.
    Read,
    /// One entry, for writing.
    Write,
    /// An entry that does not exist.
    Absent,
}

impl LockMode {
    /// The modes that can be requested and counted. Read and Write become `Absent` if there is no
    /// entry.
    const COUNTED: [LockMode; 4] = [LockMode::ReadAll, LockMode::WriteAll, LockMode::Read, LockMode::Write];
}

/// The only definition of conflicts. Symmetric in `a` and `b`; `same_entry` matters only between
/// two modes on single entries. It does not matter whether the other request holds or waits: a
/// request may not overtake what it could not hold together with.
///
/// | held or ahead \ asked | ReadAll | WriteAll | Read(p) | Write(p) | Absent |
/// |---|---|---|---|---|---|
/// | ReadAll | ok | wait | ok | wait | ok |
/// | WriteAll | wait | wait | wait | wait | wait |
/// | Read(q) | ok | wait | ok | wait if p = q | ok |
/// | Write(q) | wait | wait | wait if p = q | wait if p = q | ok |
#[must_use]
pub fn conflict(a: LockMode, b: LockMode, same_entry: bool) -> bool {
    match (a, b) {
        (LockMode::WriteAll, _) | (_, LockMode::WriteAll) => true,
        (LockMode::Absent, _) | (_, LockMode::Absent) => false,
        (LockMode::ReadAll, LockMode::Write) | (LockMode::Write, LockMode::ReadAll) => true,
        (LockMode::Write, LockMode::Read | LockMode::Write) | (LockMode::Read, LockMode::Write) => same_entry,
        (LockMode::Read | LockMode::ReadAll, LockMode::Read | LockMode::ReadAll) => false,
    }
}

impl<K, N> WantedAccess<K, N> {
    /// The mode asked for.
    fn mode(&self) -> LockMode {
        match self {
            WantedAccess::ReadAll => LockMode::ReadAll,
            WantedAccess::WriteAll => LockMode::WriteAll,
            WantedAccess::Read(_) => LockMode::Read,
            WantedAccess::Write(_) => LockMode::Write,
        }
    }

    /// The entry asked for, by key or name; None for the whole table.
    fn target(&self) -> Option<&EntryRef<K, N>> {
        match self {
            WantedAccess::ReadAll | WantedAccess::WriteAll => None,
            WantedAccess::Read(target) | WantedAccess::Write(target) => Some(target),
        }
    }
}

impl<K> HeldAccess<K> {
    /// The mode held.
    #[must_use]
    pub fn mode(&self) -> LockMode {
        match self {
            HeldAccess::Absent => LockMode::Absent,
            HeldAccess::Read(_) => LockMode::Read,
            HeldAccess::Write(_) => LockMode::Write,
            HeldAccess::ReadAll => LockMode::ReadAll,
            HeldAccess::WriteAll => LockMode::WriteAll,
        }
    }

    /// The key of the entry held; None for the whole table and for nothing.
    fn key(&self) -> Option<&K> {
        match self {
            HeldAccess::Read(key) | HeldAccess::Write(key) => Some(key),
            HeldAccess::Absent | HeldAccess::ReadAll | HeldAccess::WriteAll => None,
        }
    }
}

/// How many requests hold in each mode, indexed like [`LockMode::COUNTED`]. Counts are enough for
/// holders: every holder is ahead of a new request, which only needs to know whether there is one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts([usize; 4]);

impl Counts {
    /// Whether any request holds in this mode.
    fn any(&self, mode: LockMode) -> bool {
        self.0[mode as usize] > 0
    }

    /// No request holds, so the counts of the entry can be dropped.
    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// The waiters in each mode. Waiters are served in the order of their ids, so the least id answers
/// "is anyone ahead of me".
#[derive(Clone, Debug, Default, PartialEq)]
struct Queue([BTreeSet<RequestId>; 4]);

impl Queue {
    /// The first waiter in this mode.
    fn first(&self, mode: LockMode) -> Option<RequestId> {
        self.0[mode as usize].first().copied()
    }

    /// Whether a request earlier than `id` waits in this mode. Checking the first waiter is enough.
    fn any_before(&self, mode: LockMode, id: RequestId) -> bool {
        self.first(mode).is_some_and(|first| first < id)
    }

    /// The first waiter in any mode.
    fn first_of_all(&self) -> Option<RequestId> {
        LockMode::COUNTED.iter().filter_map(|mode| self.first(*mode)).min()
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeSet::is_empty)
    }
}

/// Holders and waiters. `K` is the key of an entry, `N` its name.
#[derive(Clone, Debug)]
pub struct LockRules<K, N> {
    /// The existing entries, held or not; changed under WriteAll only. The two maps are inverses of
    /// each other.
    names: Map<K, N>,
    keys: Map<N, K>,
    /// What each request asks for or holds. The counters and queues below are derived from these
    /// two maps, for quick answers.
    waiting: Map<RequestId, WantedAccess<K, N>>,
    holding: Map<RequestId, HeldAccess<K>>,
    /// Counters and queue of the whole table: every holder and every waiter is in them.
    held: Counts,
    queued: Queue,
    /// The same by key held, and by target as requested. A waiter by name stays under its name, so
    /// that a rename moves nothing: the waiters of an entry are those of its key and those of its
    /// current name. Empty items are removed, so clients that ask for ever new names leave nothing
    /// behind.
    held_by_key: Map<K, Counts>,
    queued_by_target: Map<EntryRef<K, N>, Queue>,
    next_id: u64,
    #[cfg(feature = "planted-faults")]
    pub(super) fault: Option<LockFault>,
}

impl<K: Ident, N: Ident> Default for LockRules<K, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ident, N: Ident> LockRules<K, N> {
    /// A table without entries, holders and waiters.
    #[must_use]
    pub fn new() -> Self {
        Self {
            names: Map::default(),
            keys: Map::default(),
            waiting: Map::default(),
            holding: Map::default(),
            held: Counts::default(),
            queued: Queue::default(),
            held_by_key: Map::default(),
            queued_by_target: Map::default(),
            next_id: 0,
            #[cfg(feature = "planted-faults")]
            fault: None,
        }
    }

    /// A table with a planted fault, to show that a checker finds it.
    #[cfg(feature = "planted-faults")]
    #[must_use]
    pub fn with_fault(fault: LockFault) -> Self {
        Self { fault: Some(fault), ..Self::new() }
    }

    /// Makes a request without a rank. Returns what it holds, or None if it waits.
    pub fn request(&mut self, access: WantedAccess<K, N>) -> (RequestId, Option<HeldAccess<K>>) {
        self.request_ranked(UNRANKED, access)
    }

    /// Makes a request with a rank. Returns what it holds, or None if it waits. If it waits,
    /// waiters of a greater rank are behind it from now on. They only get more to wait for, so none
    /// becomes grantable.
    pub fn request_ranked(&mut self, rank: u64, access: WantedAccess<K, N>) -> (RequestId, Option<HeldAccess<K>>) {
        let id = self.fresh_id(rank);
        let held = self.grantable(id, &access);
        match &held {
            Some(held) => self.hold(id, held.clone()),
            None => self.enqueue(id, access),
        }
        // A grant frees nothing, so no other request becomes grantable.
        (id, held)
    }

    /// Ends a grant. Returns the new grants in the order of arrival. An id that holds nothing (that
    /// of an absent entry) frees nothing.
    pub fn release(&mut self, id: RequestId) -> Vec<Grant<K>> {
        match self.unhold(id) {
            Some(held) => self.freed(&held),
            None => Vec::new(),
        }
    }

    /// Ends a wait without a grant. Returns the grants of the requests that waited only for this
    /// one, or `None` if the request does not wait (any more).
    pub fn cancel(&mut self, id: RequestId) -> Option<Vec<Grant<K>>> {
        let access = self.dequeue(id)?;
        if planted!(self, LockFault::CancelGrantsNobody) {
            return Some(Vec::new());
        }
        Some(match access.target() {
            Some(target) => {
                let touched = match self.resolve(target) {
                    Some(key) => self.targets_of(&key),
                    None => vec![target.clone()],
                };
                self.settle(touched)
            }
            None => self.settle_all(),
        })
    }

    /// Adds an entry; false if the key or the name is taken. Like `remove` and `rename` only under
    /// WriteAll: every other request waits then, whatever its name comes to mean, so nothing
    /// becomes grantable before the release.
    pub fn insert(&mut self, key: K, name: N) -> bool {
        debug_assert!(self.held.any(LockMode::WriteAll), "entries change under WriteAll");
        if self.names.contains_key(&key) || self.keys.contains_key(&name) {
            return false;
        }
        self.names.insert(key.clone(), name.clone());
        self.keys.insert(name, key);
        true
    }

    /// Removes an entry; false if there is none.
    pub fn remove(&mut self, key: &K) -> bool {
        debug_assert!(self.held.any(LockMode::WriteAll), "entries change under WriteAll");
        match self.names.remove(key) {
            Some(name) => {
                self.keys.remove(&name);
                true
            }
            None => false,
        }
    }

    /// Renames an entry; false if another entry has that name or there is no such entry.
    pub fn rename(&mut self, key: &K, name: N) -> bool {
        debug_assert!(self.held.any(LockMode::WriteAll), "entries change under WriteAll");
        if self.keys.get(&name).is_some_and(|owner| owner != key) {
            return false;
        }
        // Renaming an entry to its current name is no conflict and only rewrites the same values.
        let Some(present) = self.names.get_mut(key) else { return false };
        let former = std::mem::replace(present, name.clone());
        if !planted!(self, LockFault::KeepsFormerName) {
            self.keys.remove(&former);
        }
        self.keys.insert(name, key.clone());
        true
    }

    /// The entry that a target means now.
    #[must_use]
    pub fn resolve(&self, target: &EntryRef<K, N>) -> Option<K> {
        match target {
            EntryRef::Key(key) => self.names.contains_key(key).then(|| key.clone()),
            EntryRef::Name(name) => self.keys.get(name).cloned(),
        }
    }

    /// The holders and what they hold, in the order of ids.
    #[must_use]
    pub fn holders(&self) -> Vec<(RequestId, &HeldAccess<K>)> {
        let mut holders: Vec<_> = self.holding.iter().map(|(id, held)| (*id, held)).collect();
        holders.sort_unstable_by_key(|(id, _)| *id);
        holders
    }

    /// The waiters and what they ask for, in the order of arrival.
    #[must_use]
    pub fn waiters(&self) -> Vec<(RequestId, &WantedAccess<K, N>)> {
        let mut waiters: Vec<_> = self.waiting.iter().map(|(id, access)| (*id, access)).collect();
        waiters.sort_unstable_by_key(|(id, _)| *id);
        waiters
    }

    /// Whether the counters and queues agree with the lists of holders and waiters from which they
    /// are derived. For checkers: if they agree after every step, the next step depends on those
    /// lists and the entries alone.
    #[must_use]
    pub fn counts_match(&self) -> bool {
        let mut recount = Self { names: self.names.clone(), keys: self.keys.clone(), ..Self::new() };
        self.holding.iter().for_each(|(id, held)| recount.hold(*id, held.clone()));
        self.waiting.iter().for_each(|(id, access)| recount.enqueue(*id, access.clone()));
        (&recount.held, &recount.held_by_key) == (&self.held, &self.held_by_key)
            && (&recount.queued, &recount.queued_by_target) == (&self.queued, &self.queued_by_target)
            && self.names.len() == self.keys.len()
            && self.names.iter().all(|(key, name)| self.keys.get(name) == Some(key))
    }

    /// Ids are never reused: at a million requests per second they last for half a million years.
    fn fresh_id(&mut self, rank: u64) -> RequestId {
        self.next_id += 1;
        RequestId { rank: if planted!(self, LockFault::IgnoresRank) { UNRANKED } else { rank }, number: self.next_id }
    }

    /// What the waiter `id` can hold now for `access`; None if a holder or an earlier waiter blocks
    /// it.
    fn grantable(&self, id: RequestId, access: &WantedAccess<K, N>) -> Option<HeldAccess<K>> {
        let held = match access {
            WantedAccess::ReadAll => HeldAccess::ReadAll,
            WantedAccess::WriteAll => HeldAccess::WriteAll,
            WantedAccess::Read(target) => self.resolve(target).map_or(HeldAccess::Absent, HeldAccess::Read),
            WantedAccess::Write(target) => self.resolve(target).map_or(HeldAccess::Absent, HeldAccess::Write),
        };
        // `conflict` is asked once for each mode in use, not for each request: the answer is the
        // same for all requests of one mode.
        let mine = held.mode();
        let conflicts = |mode, same_entry| {
            conflict(mine, mode, same_entry)
                && !(planted!(self, LockFault::WritesBesideReaders)
                    && (mine, mode) == (LockMode::Write, LockMode::Read))
        };
        let waits = |queue: &Queue, mode| queue.any_before(mode, id) && !planted!(self, LockFault::PassesWaiters);
        // A waiter counted here as Read or Write may be absent and conflict with less. That never
        // blocks a request wrongly: an absent waiter waits for a WriteAll that holds or is ahead of
        // it. That WriteAll is also ahead of every request behind it, and blocks them all.
        let table = |mode| conflicts(mode, false) && (self.held.any(mode) || waits(&self.queued, mode));
        let entry = |mode, key: &K| {
            conflicts(mode, true)
                && (self.held_by_key.get(key).is_some_and(|counts| counts.any(mode))
                    || self
                        .targets_of(key)
                        .iter()
                        .any(|target| self.queued_by_target.get(target).is_some_and(|queue| waits(queue, mode))))
        };
        let blocked =
            LockMode::COUNTED.iter().any(|mode| table(*mode) || held.key().is_some_and(|key| entry(*mode, key)));
        let unneeded = planted!(self, LockFault::WaitsBehindAnyone) && self.waiting.keys().any(|other| *other < id);
        (!blocked && !unneeded).then_some(held)
    }

    /// The two ways to ask for an entry: its key and its current name. Exactly the requests for one
    /// of these wait for this entry, as long as the name stays, that is until a WriteAll, which
    /// looks at all queues when it ends.
    fn targets_of(&self, key: &K) -> Vec<EntryRef<K, N>> {
        let name = self.names.get(key).filter(|_| !planted!(self, LockFault::OverlooksNames));
        let name = name.map(|name| EntryRef::Name(name.clone()));
        std::iter::once(EntryRef::Key(key.clone())).chain(name).collect()
    }

    /// Grants all requests that became compatible when `held` was released or became less.
    fn freed(&mut self, held: &HeldAccess<K>) -> Vec<Grant<K>> {
        match held {
            HeldAccess::Absent => Vec::new(),
            // Only requests for this entry or the whole table can have waited for it.
            HeldAccess::Read(key) | HeldAccess::Write(key) => self.settle(self.targets_of(key)),
            HeldAccess::ReadAll | HeldAccess::WriteAll => self.settle_all(),
        }
    }

    /// Grants all that can be granted, by one look at the head of each queue. The cost depends on
    /// the number of entries with waiters, not on the number of entries.
    fn settle_all(&mut self) -> Vec<Grant<K>> {
        self.settle(self.queued_by_target.keys().cloned().collect())
    }

    /// Grants what can be granted of the requests for one of `targets` or for the whole table, in
    /// the order of arrival.
    ///
    /// Each queue is served from its head until a request has to stay. That request keeps all
    /// behind it waiting: whatever blocks a reader blocks the next reader too, and a writer behind
    /// it conflicts with it. The order in which queues are served makes no difference, since a
    /// waiter that becomes a holder blocks the same requests as before. The exception is an absent
    /// request, which disappears with its grant. It can block WriteAll alone, so WriteAll is served
    /// last.
    fn settle(&mut self, targets: Vec<EntryRef<K, N>>) -> Vec<Grant<K>> {
        let mut grants = Vec::new();
        for target in targets {
            self.serve(&mut grants, |state| state.queued_by_target.get(&target)?.first_of_all());
        }
        for mode in [LockMode::ReadAll, LockMode::WriteAll] {
            self.serve(&mut grants, |state| state.queued.first(mode));
        }
        grants.sort_unstable_by_key(|grant| grant.id);
        grants
    }

    /// Grants one queue from its head until a request has to stay. Each granted request holds
    /// before the next one is checked.
    fn serve(&mut self, grants: &mut Vec<Grant<K>>, head: impl Fn(&Self) -> Option<RequestId>) {
        while let Some(id) = head(self) {
            let Some(held) = self.waiting.get(&id).and_then(|access| self.grantable(id, access)) else { return };
            if planted!(self, LockFault::GrantsOnlyOne) && !grants.is_empty() {
                return;
            }
            self.dequeue(id);
            self.hold(id, held.clone());
            grants.push(Grant { id, held });
        }
    }

    /// Adds a waiter to the list and to the queues derived from it.
    fn enqueue(&mut self, id: RequestId, access: WantedAccess<K, N>) {
        let mode = access.mode() as usize;
        self.queued.0[mode].insert(id);
        if let Some(target) = access.target() {
            self.queued_by_target.entry(target.clone()).or_default().0[mode].insert(id);
        }
        self.waiting.insert(id, access);
    }

    /// Removes a waiter from the list and the queues; None if it does not wait.
    fn dequeue(&mut self, id: RequestId) -> Option<WantedAccess<K, N>> {
        let access = self.waiting.remove(&id)?;
        let mode = access.mode() as usize;
        self.queued.0[mode].remove(&id);
        if let Some(target) = access.target() {
            if let Some(queue) = self.queued_by_target.get_mut(target) {
                queue.0[mode].remove(&id);
                if queue.is_empty() {
                    self.queued_by_target.remove(target);
                }
            }
        }
        Some(access)
    }

    /// Adds a holder to the list and to the counters derived from it.
    fn hold(&mut self, id: RequestId, held: HeldAccess<K>) {
        // The grant of an absent entry holds nothing: it is over when it is made.
        if held.mode() == LockMode::Absent {
            return;
        }
        let mode = held.mode() as usize;
        self.held.0[mode] += 1;
        if let Some(key) = held.key() {
            self.held_by_key.entry(key.clone()).or_default().0[mode] += 1;
        }
        self.holding.insert(id, held);
    }

    /// Removes a holder from the list and the counters; None if it holds nothing. Does not grant
    /// anything by itself.
    fn unhold(&mut self, id: RequestId) -> Option<HeldAccess<K>> {
        let held = self.holding.remove(&id)?;
        let mode = held.mode() as usize;
        self.held.0[mode] -= 1;
        if let Some(key) = held.key() {
            if let Some(counts) = self.held_by_key.get_mut(key) {
                counts.0[mode] -= 1;
                if counts.is_empty() {
                    self.held_by_key.remove(key);
                }
            }
        }
        Some(held)
    }
}
