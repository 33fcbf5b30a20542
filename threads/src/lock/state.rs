//! The rules of the lock: who may hold what beside whom, and who is next. A plain value with methods.
//!
//! Must never know: threads, sync types, callbacks, time, and the values that the entries stand for.
//!
//! # The promise
//!
//! **Exclusion.** No two holders conflict ([`conflict`]).
//!
//! **Order.** Each request has a *rank*; of those of one rank, the one that was made first is earlier. A request is granted
//! at once if it conflicts with no holder and with no earlier waiter, else it waits. So a request never passes an earlier one
//! that it conflicts with, and requests on one entry are served by rank, and in the order in which they came (readers that
//! stand side by side, together). Whoever goes on with what it has begun takes its old rank along, and need not stand behind
//! those that have not begun.
//!
//! **No starvation.** What a waiter waits for is the holders and the earlier waiters. None can be added to these but requests
//! of a lower rank. Where ranks are given in the order of arrival, and each that has arrived makes so many requests and no
//! more, these come to an end; so when each holder lets go in the end, each waiter is granted in the end.
//!
//! **No wait without need.** Whoever waits conflicts with a holder or with an earlier waiter, at every moment between two
//! calls. A request that conflicts with nothing ahead of it overtakes, and each change that frees something (`release`,
//! `cancel`) grants *all* that became compatible. What is granted is held when the call returns: there is
//! nothing that is "woken but not yet holding", and so nobody who could snatch it in between.
//!
//! **Names are resolved at the grant.** While a request by name waits, it counts as the entry that has the name now. A
//! request for what does not exist conflicts with WriteAll alone, since only that can bring the entry about, and its grant is
//! [`Held::Absent`], which holds nothing. Names change only under WriteAll, where everybody else waits in any case; so no
//! two holders, and no holder and passer-by, ever come to disagree about what a name meant.
//!
//! An example, with one entry `p`. W and R are requests to write and to read it, A is ReadAll, N a request for a name that
//! nobody has:
//!
//! | call | holds afterwards | waits afterwards | because |
//! |---|---|---|---|
//! | W1 | W1 | | nothing is ahead |
//! | R2 | W1 | R2 | W1 holds |
//! | W3 | W1 | R2 W3 | W1 holds |
//! | N4 | W1 | R2 W3 | what does not exist is in nobody's way: it passes, is told so, and is done |
//! | A5 | W1 | R2 W3 A5 | W1 holds; and W3, which is ahead, will |
//! | release W1 | R2 | W3 A5 | A5 could stand beside R2, but may not pass W3 |
//! | cancel W3 | R2 A5 | | nobody is left for A5 to wait for |
//!
//! # Cost
//!
//!
//! A request looks at a fixed number of counters and queue heads, for the All modes too: entries are never walked. A release looks at the heads of the queues that it can have freed.

use std::{
    collections::{BTreeSet, HashMap, hash_map::DefaultHasher},
    fmt::{Debug, Display, Formatter},
    hash::{BuildHasherDefault, Hash},
};

#[cfg(feature = "planted-faults")]
use super::fault::Fault;
use crate::fault::planted;

/// A hash map without a random seed: the order in which `iter` walks the entries must repeat from run to run,
/// or a model checker could not replay a schedule. Keys and names come from whoever may change the table anyway.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// What can be a key or a name of an entry. Implemented for all that qualifies.
pub trait Ident: Clone + Eq + Hash + Debug + Send + Sync + 'static {}

impl<X: Clone + Eq + Hash + Debug + Send + Sync + 'static> Ident for X {}

/// One request, from when it is made until its guard is dropped. Later requests have greater ones, if their rank is not
/// lower.
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

/// The rank of those that have none: behind all others.
pub const UNRANKED: u64 = u64::MAX;

/// How a request points at its entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target<K, N> {
    /// By key, which an entry keeps for life.
    Key(K),
    /// By name, whichever entry has it when the grant is made.
    Name(N),
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Access<K, N> {
    /// To read the whole table.
    ReadAll,
    /// To change everything: values, names, which entries exist.
    WriteAll,
    /// To read one entry.
    Read(Target<K, N>),
    /// To change the value of one entry.
    Write(Target<K, N>),
}

/// What a grant holds, with names resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Held<K> {
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

/// A request that holds something from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant<K> {
    /// The request.
    pub id: RequestId,
    /// What it holds.
    pub held: Held<K>,
}

/// The kind of a claim, without the entry it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The table, for reading.
    ReadAll,
    /// The table, for everything.
    WriteAll,
    /// One entry, for reading.
    Read,
    /// One entry, for writing.
    Write,
    /// An entry that does not exist.
    Absent,
}

impl Mode {
    /// Those that can be asked for and counted; `Absent` is what Read and Write turn out to be.
    const COUNTED: [Mode; 4] = [Mode::ReadAll, Mode::WriteAll, Mode::Read, Mode::Write];
}

/// The one statement of who conflicts with whom. Symmetric in `a` and `b`; `same_entry` matters only between two claims on
/// single entries. Waiting and holding make no difference: what could not be held together may not overtake either.
///
/// | held or ahead \ asked | ReadAll | WriteAll | Read(p) | Write(p) | Absent |
/// |---|---|---|---|---|---|
/// | ReadAll | ok | wait | ok | wait | ok |
/// | WriteAll | wait | wait | wait | wait | wait |
/// | Read(q) | ok | wait | ok | wait if p = q | ok |
/// | Write(q) | wait | wait | wait if p = q | wait if p = q | ok |
#[must_use]
pub fn conflict(a: Mode, b: Mode, same_entry: bool) -> bool {
    match (a, b) {
        (Mode::WriteAll, _) | (_, Mode::WriteAll) => true,
        (Mode::Absent, _) | (_, Mode::Absent) => false,
        (Mode::ReadAll, Mode::Write) | (Mode::Write, Mode::ReadAll) => true,
        (Mode::Write, Mode::Read | Mode::Write) | (Mode::Read, Mode::Write) => same_entry,
        (Mode::Read | Mode::ReadAll, Mode::Read | Mode::ReadAll) => false,
    }
}

impl<K, N> Access<K, N> {
    /// The kind of what is asked for.
    fn mode(&self) -> Mode {
        match self {
            Access::ReadAll => Mode::ReadAll,
            Access::WriteAll => Mode::WriteAll,
            Access::Read(_) => Mode::Read,
            Access::Write(_) => Mode::Write,
        }
    }

    /// The entry that is asked for, as it was asked; None for the whole table.
    fn target(&self) -> Option<&Target<K, N>> {
        match self {
            Access::ReadAll | Access::WriteAll => None,
            Access::Read(target) | Access::Write(target) => Some(target),
        }
    }
}

impl<K> Held<K> {
    /// The kind of what is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self {
            Held::Absent => Mode::Absent,
            Held::Read(_) => Mode::Read,
            Held::Write(_) => Mode::Write,
            Held::ReadAll => Mode::ReadAll,
            Held::WriteAll => Mode::WriteAll,
        }
    }

    /// The entry that is held; None for the whole table and for nothing.
    fn key(&self) -> Option<&K> {
        match self {
            Held::Read(key) | Held::Write(key) => Some(key),
            Held::Absent | Held::ReadAll | Held::WriteAll => None,
        }
    }
}

/// How many hold in each mode, by the order of [`Mode::COUNTED`]. Counts are enough for holders: whether somebody holds is
/// all that a request has to know, since every holder is ahead of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts([usize; 4]);

impl Counts {
    /// Whether anybody holds in this mode.
    fn any(&self, mode: Mode) -> bool {
        self.0[mode as usize] > 0
    }

    /// Nobody holds: what is kept for an entry that nobody holds can go.
    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// Who waits in each mode. The order of ids is the order in which waiters are served, so "is anyone ahead of me" is a look at
/// the least id.
#[derive(Clone, Debug, Default, PartialEq)]
struct Queue([BTreeSet<RequestId>; 4]);

impl Queue {
    /// Who has waited longest of those in this mode.
    fn first(&self, mode: Mode) -> Option<RequestId> {
        self.0[mode as usize].first().copied()
    }

    /// Whether anybody who came before `id` waits in this mode. The first decides: if it is not before, none is.
    fn any_before(&self, mode: Mode, id: RequestId) -> bool {
        self.first(mode).is_some_and(|first| first < id)
    }

    /// Who has waited longest.
    fn first_of_all(&self) -> Option<RequestId> {
        Mode::COUNTED.iter().filter_map(|mode| self.first(*mode)).min()
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeSet::is_empty)
    }
}

/// Who holds and who waits. `K` is the key of an entry, `N` its name.
#[derive(Clone, Debug)]
pub struct State<K, N> {
    /// Which entries exist, whether held or not; changed under WriteAll only. Both maps say the same, one from each end.
    names: Map<K, N>,
    keys: Map<N, K>,
    /// What each request asked or holds. The counters and queues below are these two, sorted for quick answers.
    waiting: Map<RequestId, Access<K, N>>,
    holding: Map<RequestId, Held<K>>,
    /// The whole table's counters and queue: every holder and every waiter is in them.
    held: Counts,
    queued: Queue,
    /// The same by entry held, and by target as it was asked. A waiter by name stays under its name, so that a rename moves
    /// nothing: the entry's queue is what waits for its key and what waits for its present name, looked up together.
    /// Items without content are taken out, so clients that ask for ever new names leave nothing behind.
    held_by_key: Map<K, Counts>,
    queued_by_target: Map<Target<K, N>, Queue>,
    next_id: u64,
    #[cfg(feature = "planted-faults")]
    pub(super) fault: Option<Fault>,
}

impl<K: Ident, N: Ident> Default for State<K, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ident, N: Ident> State<K, N> {
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

    /// A table with a mistake in it, to see whether a checker notices.
    #[cfg(feature = "planted-faults")]
    #[must_use]
    pub fn with_fault(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::new() }
    }

    /// A new request without a rank: what it holds from now on, or None if it waits.
    pub fn request(&mut self, access: Access<K, N>) -> (RequestId, Option<Held<K>>) {
        self.request_ranked(UNRANKED, access)
    }

    /// A new request with a rank: what it holds from now on, or None if it waits. If it waits, those of a greater rank that wait
    /// are behind it from now on: nobody is granted by that, since nobody waits for less.
    pub fn request_ranked(&mut self, rank: u64, access: Access<K, N>) -> (RequestId, Option<Held<K>>) {
        let id = self.fresh_id(rank);
        let held = self.grantable(id, &access);
        match &held {
            Some(held) => self.hold(id, held.clone()),
            None => self.enqueue(id, access),
        }
        // A grant takes something away from others, or (Absent) nothing; it frees nothing. So there is nobody else to grant.
        (id, held)
    }

    /// The end of a grant. Returns who holds from now on, in the order of arrival. An id that holds nothing (an absent
    /// entry's) frees nothing.
    pub fn release(&mut self, id: RequestId) -> Vec<Grant<K>> {
        match self.unhold(id) {
            Some(held) => self.freed(&held),
            None => Vec::new(),
        }
    }

    /// The end of a wait without a grant; None if the request does not wait (any more). Those that waited only because this
    /// one was ahead of them hold from now on.
    pub fn cancel(&mut self, id: RequestId) -> Option<Vec<Grant<K>>> {
        let access = self.dequeue(id)?;
        if planted!(self, CancelGrantsNobody) {
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

    /// Adds an entry; false if the key or the name is taken. Only under WriteAll, as `remove` and `rename`: everybody else
    /// waits then, and waits on whatever a name comes to mean; so there is nobody to grant until its release.
    pub fn insert(&mut self, key: K, name: N) -> bool {
        debug_assert!(self.held.any(Mode::WriteAll), "entries change under WriteAll");
        if self.names.contains_key(&key) || self.keys.contains_key(&name) {
            return false;
        }
        self.names.insert(key.clone(), name.clone());
        self.keys.insert(name, key);
        true
    }

    /// Removes an entry; false if there is none.
    pub fn remove(&mut self, key: &K) -> bool {
        debug_assert!(self.held.any(Mode::WriteAll), "entries change under WriteAll");
        match self.names.remove(key) {
            Some(name) => {
                self.keys.remove(&name);
                true
            }
            None => false,
        }
    }

    /// Gives an entry another name; false if another entry has that name, or there is no such entry.
    pub fn rename(&mut self, key: &K, name: N) -> bool {
        debug_assert!(self.held.any(Mode::WriteAll), "entries change under WriteAll");
        if self.keys.get(&name).is_some_and(|owner| owner != key) {
            return false;
        }
        // To be given the name one has is no conflict, and changes nothing below but to write the same again.
        let Some(present) = self.names.get_mut(key) else { return false };
        let former = std::mem::replace(present, name.clone());
        if !planted!(self, KeepsFormerName) {
            self.keys.remove(&former);
        }
        self.keys.insert(name, key.clone());
        true
    }

    /// The entry that a target means now.
    #[must_use]
    pub fn resolve(&self, target: &Target<K, N>) -> Option<K> {
        match target {
            Target::Key(key) => self.names.contains_key(key).then(|| key.clone()),
            Target::Name(name) => self.keys.get(name).cloned(),
        }
    }

    /// The present name of an entry.
    #[must_use]
    pub fn name(&self, key: &K) -> Option<&N> {
        self.names.get(key)
    }

    /// Who holds what, in the order of ids.
    #[must_use]
    pub fn holders(&self) -> Vec<(RequestId, &Held<K>)> {
        let mut holders: Vec<_> = self.holding.iter().map(|(id, held)| (*id, held)).collect();
        holders.sort_unstable_by_key(|(id, _)| *id);
        holders
    }

    /// Who waits for what, in the order of arrival.
    #[must_use]
    pub fn waiters(&self) -> Vec<(RequestId, &Access<K, N>)> {
        let mut waiters: Vec<_> = self.waiting.iter().map(|(id, access)| (*id, access)).collect();
        waiters.sort_unstable_by_key(|(id, _)| *id);
        waiters
    }

    /// Whether the counters and queues say the same as the lists of holders and waiters that they are made from. For checkers:
    /// where this is true at every step, what a state does next depends on those lists and the entries alone.
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

    /// Ids are never used twice: at a million requests in a second they last for half a million years.
    fn fresh_id(&mut self, rank: u64) -> RequestId {
        self.next_id += 1;
        RequestId { rank: if planted!(self, IgnoresRank) { UNRANKED } else { rank }, number: self.next_id }
    }

    /// What `access`, waiting as `id`, can hold now; None if a holder or an earlier waiter stands in its way.
    fn grantable(&self, id: RequestId, access: &Access<K, N>) -> Option<Held<K>> {
        let held = match access {
            Access::ReadAll => Held::ReadAll,
            Access::WriteAll => Held::WriteAll,
            Access::Read(target) => self.resolve(target).map_or(Held::Absent, Held::Read),
            Access::Write(target) => self.resolve(target).map_or(Held::Absent, Held::Write),
        };
        // Asks the one statement about kinds instead of persons: it is the same for all holders and waiters of one kind, so it
        // needs to be asked once for each kind that is there.
        let mine = held.mode();
        let minds = |mode, same_entry| {
            conflict(mine, mode, same_entry)
                && !(planted!(self, WritesBesideReaders) && (mine, mode) == (Mode::Write, Mode::Read))
        };
        let waits = |queue: &Queue, mode| queue.any_before(mode, id) && !planted!(self, PassesWaiters);
        // One of the waiters counted here as Read or Write may in truth be absent and conflict with less. That never holds
        // anybody up wrongly: an absent waiter waits for a WriteAll that holds or is ahead of it, so also ahead of whoever is
        // behind it, and a WriteAll stops them all.
        let table = |mode| minds(mode, false) && (self.held.any(mode) || waits(&self.queued, mode));
        let entry = |mode, key: &K| {
            minds(mode, true)
                && (self.held_by_key.get(key).is_some_and(|counts| counts.any(mode))
                    || self
                        .targets_of(key)
                        .iter()
                        .any(|target| self.queued_by_target.get(target).is_some_and(|queue| waits(queue, mode))))
        };
        let blocked = Mode::COUNTED.iter().any(|mode| table(*mode) || held.key().is_some_and(|key| entry(*mode, key)));
        let needless = planted!(self, WaitsBehindAnyone) && self.waiting.keys().any(|other| *other < id);
        (!blocked && !needless).then_some(held)
    }

    /// The two ways to ask for an entry: its key and its present name. Who waits for one of these waits for this entry, and
    /// nobody else does, for as long as the name stays; that is until a WriteAll, which looks at all queues when it ends.
    fn targets_of(&self, key: &K) -> Vec<Target<K, N>> {
        let name = self.names.get(key).filter(|_| !planted!(self, OverlooksNames));
        let name = name.map(|name| Target::Name(name.clone()));
        std::iter::once(Target::Key(key.clone())).chain(name).collect()
    }

    /// Grants all that became compatible when `held` went, or became less.
    fn freed(&mut self, held: &Held<K>) -> Vec<Grant<K>> {
        match held {
            Held::Absent => Vec::new(),
            // Only who wants this entry or the whole table can have waited for it.
            Held::Read(key) | Held::Write(key) => self.settle(self.targets_of(key)),
            Held::ReadAll | Held::WriteAll => self.settle_all(),
        }
    }

    /// Grants all that can be granted, whatever they wait for: one look at the head of each queue there is. How many entries
    /// there are makes no difference, only for how many of them somebody waits.
    fn settle_all(&mut self) -> Vec<Grant<K>> {
        self.settle(self.queued_by_target.keys().cloned().collect())
    }

    /// Grants who can be granted of those that wait for one of `targets` or for the whole table, in the order of arrival.
    ///
    /// Each queue is served from its head until someone has to stay. Whoever stays keeps all behind it in the same queue: a
    /// reader that is stopped by something stops neither more nor less than the next reader, and a writer behind it conflicts
    /// with it. Queues do not depend on the order in which they are served, since a waiter that becomes a holder is in the way
    /// of the same others as before. The exception is an absent one, which vanishes with its grant: it can be in the way of
    /// WriteAll alone, so WriteAll is served last.
    fn settle(&mut self, targets: Vec<Target<K, N>>) -> Vec<Grant<K>> {
        let mut grants = Vec::new();
        for target in targets {
            self.serve(&mut grants, |state| state.queued_by_target.get(&target)?.first_of_all());
        }
        for mode in [Mode::ReadAll, Mode::WriteAll] {
            self.serve(&mut grants, |state| state.queued.first(mode));
        }
        grants.sort_unstable_by_key(|grant| grant.id);
        grants
    }

    /// Grants one queue from its head, until one has to stay. Each that is granted holds before the next is looked at, so the
    /// next is judged by what is true by then.
    fn serve(&mut self, grants: &mut Vec<Grant<K>>, head: impl Fn(&Self) -> Option<RequestId>) {
        while let Some(id) = head(self) {
            let Some(held) = self.waiting.get(&id).and_then(|access| self.grantable(id, access)) else { return };
            if planted!(self, GrantsOnlyOne) && !grants.is_empty() {
                return;
            }
            self.dequeue(id);
            self.hold(id, held.clone());
            grants.push(Grant { id, held });
        }
    }

    /// Enters a waiter in the list and in the queues made from it.
    fn enqueue(&mut self, id: RequestId, access: Access<K, N>) {
        let mode = access.mode() as usize;
        self.queued.0[mode].insert(id);
        if let Some(target) = access.target() {
            self.queued_by_target.entry(target.clone()).or_default().0[mode].insert(id);
        }
        self.waiting.insert(id, access);
    }

    /// Takes a waiter out of the list and the queues; None if it does not wait.
    fn dequeue(&mut self, id: RequestId) -> Option<Access<K, N>> {
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

    /// Enters a holder in the list and in the counters made from it.
    fn hold(&mut self, id: RequestId, held: Held<K>) {
        // An absent entry's grant holds nothing: it is over when it is made.
        if held.mode() == Mode::Absent {
            return;
        }
        let mode = held.mode() as usize;
        self.held.0[mode] += 1;
        if let Some(key) = held.key() {
            self.held_by_key.entry(key.clone()).or_default().0[mode] += 1;
        }
        self.holding.insert(id, held);
    }

    /// Takes a holder out of the list and the counters; None if it holds nothing. Nobody is granted by this alone.
    fn unhold(&mut self, id: RequestId) -> Option<Held<K>> {
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
