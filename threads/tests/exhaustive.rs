//! Checks every history of the lock's rules up to a number of steps, each step against the promise
//! of the rules.
//!
//! Must never know: how the state machine counts and queues. It is judged by its grants and by its
//! lists of holders and waiters, against an independent statement of the promise.
//!
//! A step is one of: a request in any mode, by key and by name, with and without a rank, for
//! entries that exist, do not exist yet or no longer exist; the release of any grant; the
//! cancellation of any waiter; and, under WriteAll, the addition, removal and renaming of entries.
//!
//! Histories that lead to the same state (same entries, holders and queue) are continued as one and
//! counted as many: what may follow depends on the state alone, which `counts_match` verifies at
//! each step. A second test walks all shorter histories one by one and must get the same count.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::DefaultHasher},
    hash::BuildHasherDefault,
};

use threads::lock::{
    EntryRef, HeldAccess, RequestId, WantedAccess,
    state::{Grant, LockMode, LockRules, conflict},
};

type Key = u8;
type Name = char;
type Ask = WantedAccess<Key, Name>;

/// One step of a history. Holders and waiters are named by their position in the state machine's
/// lists.
#[derive(Clone, Debug)]
enum Move {
    Request(Ask),
    /// With a rank: ahead of all requests without one.
    RequestRanked(Ask),
    Release(usize),
    Cancel(usize),
    Insert(Key, Name),
    Remove(Key),
    Rename(Key, Name),
}

/// The state machine, and the test's own record of its answers.
#[derive(Clone)]
struct World {
    state: LockRules<Key, Name>,
    entries: BTreeMap<Key, Name>,
    waiting: BTreeMap<RequestId, Ask>,
    holding: BTreeMap<RequestId, HeldAccess<Key>>,
    /// Requests that were given a rank.
    ranked: BTreeSet<RequestId>,
}

/// A state without its history: entries, grants (in no order), waiters and what they ask for (in
/// order).
type Situation = (Vec<(Key, Name)>, Vec<String>, Vec<(bool, Ask)>);

/// For each state: one history that leads to it (for the report), and how many do. Without a random
/// seed, so that a fault is reported with the same history each time.
type Frontier = HashMap<Situation, (World, Vec<Move>, u64), BuildHasherDefault<DefaultHasher>>;

impl World {
    /// Two entries: 1 is named a, 2 is named b.
    fn new(mut state: LockRules<Key, Name>) -> Result<Self, String> {
        let entries = BTreeMap::from([(1, 'a'), (2, 'b')]);
        let (id, held) = state.request(WantedAccess::WriteAll);
        ensure(held == Some(HeldAccess::WriteAll), || "the first request must be granted".into())?;
        for (key, name) in &entries {
            ensure(state.insert(*key, *name), || "a new entry must be accepted".into())?;
        }
        ensure(state.release(id).is_empty(), || "no request waits yet".into())?;
        Ok(Self { state, entries, waiting: BTreeMap::new(), holding: BTreeMap::new(), ranked: BTreeSet::new() })
    }

    fn situation(&self) -> Situation {
        let mut held: Vec<_> = self.holding.values().map(|held| format!("{held:?}")).collect();
        held.sort();
        let waiting = self.waiting.iter().map(|(id, ask)| (self.ranked.contains(id), ask.clone())).collect();
        (self.entries.iter().map(|(key, name)| (*key, *name)).collect(), held, waiting)
    }

    /// All steps that can come next.
    fn moves(&self) -> Vec<Move> {
        let mut moves = vec![Move::Request(WantedAccess::ReadAll), Move::Request(WantedAccess::WriteAll)];
        // Both ways to the first entry, one to the second, and two that do not exist at first.
        for target in [EntryRef::Key(1), EntryRef::Name('a'), EntryRef::Key(2), EntryRef::Key(3), EntryRef::Name('c')] {
            moves.push(Move::Request(WantedAccess::Read(target.clone())));
            moves.push(Move::Request(WantedAccess::Write(target)));
        }
        // One mode that reads and one that writes, so that all others meet one of each ahead.
        moves.extend([WantedAccess::ReadAll, WantedAccess::Write(EntryRef::Name('a'))].map(Move::RequestRanked));
        moves.extend((0..self.holding.len()).map(Move::Release));
        moves.extend((0..self.waiting.len()).map(Move::Cancel));
        if self.holding.values().any(|held| *held == HeldAccess::WriteAll) {
            moves.extend([Move::Insert(3, 'c'), Move::Insert(3, 'a'), Move::Remove(1), Move::Remove(2)]);
            moves.extend([Move::Rename(1, 'c'), Move::Rename(2, 'a')]);
        }
        moves
    }

    /// Makes the step and checks the whole promise.
    fn make(&mut self, step: &Move) -> Result<(), String> {
        let holder = |place: usize| *self.holding.keys().nth(place).expect("a step names an existing holder");
        match step {
            Move::Request(access) => {
                let (id, held) = self.state.request(access.clone());
                let newest = self.waiting.keys().chain(self.holding.keys()).max();
                ensure(newest < Some(&id), || "ids must grow".into())?;
                self.requested(id, access, held)?;
            }
            Move::RequestRanked(access) => {
                let (id, held) = self.state.request_ranked(0, access.clone());
                let ahead = |other: &RequestId| self.ranked.contains(other) == (*other < id);
                ensure(self.waiting.keys().all(ahead), || "behind those of its rank, ahead of the others".into())?;
                self.ranked.insert(id);
                self.requested(id, access, held)?;
            }
            Move::Release(place) => {
                let id = holder(*place);
                self.holding.remove(&id);
                let grants = self.state.release(id);
                self.granted(grants)?;
            }
            Move::Cancel(place) => {
                let id = *self.waiting.keys().nth(*place).expect("a step names an existing waiter");
                self.waiting.remove(&id);
                let grants = self.state.cancel(id).ok_or("a waiter cannot be cancelled")?;
                ensure(self.state.cancel(id).is_none(), || "a request was cancelled twice".into())?;
                self.granted(grants)?;
            }
            Move::Insert(key, name) => {
                let free = !self.entries.contains_key(key) && !self.entries.values().any(|other| other == name);
                ensure(self.state.insert(*key, *name) == free, || {
                    format!("an insertion must succeed if free: {free}")
                })?;
                if free {
                    self.entries.insert(*key, *name);
                }
            }
            Move::Remove(key) => {
                let there = self.entries.remove(key).is_some();
                ensure(self.state.remove(key) == there, || {
                    format!("a removal must succeed if the entry exists: {there}")
                })?;
            }
            Move::Rename(key, name) => {
                let taken = self.entries.iter().any(|(other, has)| other != key && has == name);
                let works = !taken && self.entries.contains_key(key);
                ensure(self.state.rename(key, *name) == works, || format!("a renaming must succeed if free: {works}"))?;
                if works {
                    self.entries.insert(*key, *name);
                }
            }
        }
        self.check()
    }

    fn requested(&mut self, id: RequestId, access: &Ask, held: Option<HeldAccess<Key>>) -> Result<(), String> {
        ensure(!self.holding.contains_key(&id), || "an id was reused".into())?;
        self.waiting.insert(id, access.clone());
        self.granted(held.map(|held| Grant { id, held }).into_iter().collect())
    }

    /// Records grants. Each request must have waited, and must hold what it means now.
    fn granted(&mut self, grants: Vec<Grant<Key>>) -> Result<(), String> {
        ensure(grants.is_sorted_by_key(|grant| grant.id), || "grants must come in the order of arrival".into())?;
        for Grant { id, held } in &grants {
            let access = self.waiting.remove(id).ok_or("only a waiter may be granted, and once")?;
            let meant = self.meaning(&access);
            ensure(*held == meant, || format!("{access:?} means {meant:?} now, not {held:?}"))?;
            if meant != HeldAccess::Absent {
                self.holding.insert(*id, meant);
            }
        }
        // No request passes an earlier waiter with which it conflicts.
        for Grant { id, held } in &grants {
            let passed = self.waiting.range(..id).find(|(_, earlier)| in_conflict(held, &self.meaning(earlier)));
            ensure(passed.is_none(), || format!("{held:?} passed {passed:?}"))?;
        }
        Ok(())
    }

    /// The invariants between any two steps.
    fn check(&self) -> Result<(), String> {
        let theirs: Vec<_> = self.state.holders().into_iter().map(|(id, held)| (id, held.clone())).collect();
        ensure(theirs.iter().map(|(id, held)| (id, held)).eq(&self.holding), || format!("holders: {theirs:?}"))?;
        let theirs: Vec<_> = self.state.waiters().into_iter().map(|(id, ask)| (id, ask.clone())).collect();
        ensure(theirs.iter().map(|(id, ask)| (id, ask)).eq(&self.waiting), || format!("waiters: {theirs:?}"))?;
        ensure(self.state.counts_match(), || "the counters differ from the lists".into())?;

        for (id, held) in &self.holding {
            let other = self.holding.range(..id).find(|(_, other)| in_conflict(held, other));
            ensure(other.is_none(), || format!("{held:?} is held beside {other:?}"))?;
        }
        // No request waits without need.
        for (id, access) in &self.waiting {
            let wants = self.meaning(access);
            let held = self.holding.values().any(|held| in_conflict(&wants, held));
            let queued = self.waiting.range(..id).any(|(_, earlier)| in_conflict(&wants, &self.meaning(earlier)));
            ensure(held || queued, || format!("{access:?} waits for nothing"))?;
        }
        Ok(())
    }

    /// What a request would hold if it were granted now.
    fn meaning(&self, access: &Ask) -> HeldAccess<Key> {
        let key = |target: &EntryRef<Key, Name>| match target {
            EntryRef::Key(key) => self.entries.contains_key(key).then_some(*key),
            EntryRef::Name(name) => self.entries.iter().find(|(_, has)| *has == name).map(|(key, _)| *key),
        };
        match access {
            WantedAccess::ReadAll => HeldAccess::ReadAll,
            WantedAccess::WriteAll => HeldAccess::WriteAll,
            WantedAccess::Read(target) => key(target).map_or(HeldAccess::Absent, HeldAccess::Read),
            WantedAccess::Write(target) => key(target).map_or(HeldAccess::Absent, HeldAccess::Write),
        }
    }
}

/// The conflict table of the README, written independently of the code.
fn in_conflict(a: &HeldAccess<Key>, b: &HeldAccess<Key>) -> bool {
    let writes = |held: &HeldAccess<Key>| matches!(held, HeldAccess::Write(_) | HeldAccess::WriteAll);
    let overlap = match (a, b) {
        // An absent entry is part of nothing except "every entry that may exist".
        (HeldAccess::Absent, other) | (other, HeldAccess::Absent) => *other == HeldAccess::WriteAll,
        (HeldAccess::ReadAll | HeldAccess::WriteAll, _) | (_, HeldAccess::ReadAll | HeldAccess::WriteAll) => true,
        (HeldAccess::Read(p) | HeldAccess::Write(p), HeldAccess::Read(q) | HeldAccess::Write(q)) => p == q,
    };
    overlap && (writes(a) || writes(b))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Walks all histories of up to `steps` steps. Returns for each number of steps the number of
/// histories and the number of different states before their last step; or the broken promise with
/// its history.
fn check_all(state: LockRules<Key, Name>, steps: usize) -> Result<Vec<(u64, usize)>, String> {
    let start = World::new(state)?;
    let mut frontier = Frontier::from_iter([(start.situation(), (start, Vec::new(), 1))]);
    let mut checked = Vec::new();
    for step in 1..=steps {
        let mut next = Frontier::default();
        let (mut histories, states) = (0, frontier.len());
        for (world, past, count) in frontier.into_values() {
            for choice in world.moves() {
                let mut after = world.clone();
                after.make(&choice).map_err(|what| format!("{what}\nafter {past:?}\nand then {choice:?}"))?;
                histories += count;
                // The state after the last step is checked but not continued.
                if step < steps {
                    let entry = next.entry(after.situation()).or_insert_with(|| {
                        let history = past.iter().cloned().chain([choice.clone()]).collect();
                        (after, history, 0)
                    });
                    entry.2 += count;
                }
            }
        }
        checked.push((histories, states));
        frontier = next;
    }
    Ok(checked)
}

/// The same, one history at a time.
fn check_each(world: &World, steps: usize) -> Result<u64, String> {
    if steps == 0 {
        return Ok(1);
    }
    let mut histories = 0;
    for choice in world.moves() {
        let mut after = world.clone();
        after.make(&choice)?;
        histories += check_each(&after, steps - 1)?;
    }
    Ok(histories)
}

/// `LOCK_STEPS=7` and more: see the README.
fn steps() -> usize {
    std::env::var("LOCK_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(6)
}

#[test]
fn every_history_keeps_the_promise() {
    let checked = check_all(LockRules::new(), steps()).unwrap_or_else(|broken| panic!("{broken}"));
    for (step, (histories, states)) in checked.iter().enumerate() {
        println!("{} steps: {histories} histories checked, the last step from {states} different states", step + 1);
    }
}

#[test]
fn merging_equal_states_loses_no_history() {
    let world = World::new(LockRules::new()).unwrap();
    for (step, (merged, _)) in check_all(LockRules::new(), 4).unwrap().into_iter().enumerate() {
        assert_eq!(check_each(&world, step + 1).unwrap(), merged);
    }
}

#[test]
fn conflicts_are_symmetric_and_match_the_table() {
    let kinds = [
        HeldAccess::ReadAll,
        HeldAccess::WriteAll,
        HeldAccess::Read(1),
        HeldAccess::Read(2),
        HeldAccess::Write(1),
        HeldAccess::Write(2),
        HeldAccess::Absent,
    ];
    for a in &kinds {
        for b in &kinds {
            let same = matches!((a, b), (HeldAccess::Read(p) | HeldAccess::Write(p), HeldAccess::Read(q) | HeldAccess::Write(q)) if p == q);
            assert_eq!(conflict(a.mode(), b.mode(), same), conflict(b.mode(), a.mode(), same), "{a:?} {b:?}");
            assert_eq!(conflict(a.mode(), b.mode(), same), in_conflict(a, b), "{a:?} {b:?}");
        }
    }
    // The table of the README: rows are held, columns are asked.
    let (r, w) = (false, true);
    let order = [LockMode::ReadAll, LockMode::WriteAll, LockMode::Read, LockMode::Write];
    let picture = [[r, w, r, w], [w, w, w, w], [r, w, r, w], [w, w, w, w]];
    for (held, row) in order.iter().zip(picture) {
        for (asked, waits) in order.iter().zip(row) {
            assert_eq!(conflict(*held, *asked, true), waits, "{held:?} {asked:?}");
        }
    }
}

/// Checks the checker: it must find each of these faults.
#[cfg(feature = "planted-faults")]
mod planted {
    use super::{LockRules, check_all};
    use threads::lock::LockFault;

    /// `what`: the promises that the shortest histories with this fault can break.
    fn check_finds(fault: LockFault, what: &[&str]) {
        let found = check_all(LockRules::with_fault(fault), 5).expect_err("the fault must be found");
        println!("{fault:?}: {found}");
        assert!(what.iter().any(|what| found.contains(what)), "{fault:?} is found as: {found}");
    }

    #[test]
    fn passing_waiters() {
        check_finds(LockFault::PassesWaiters, &["passed"]);
    }

    #[test]
    fn ignoring_ranks() {
        check_finds(LockFault::IgnoresRank, &["behind those of its rank"]);
    }

    #[test]
    fn writing_beside_readers() {
        check_finds(LockFault::WritesBesideReaders, &["is held beside"]);
    }

    #[test]
    fn granting_only_one() {
        check_finds(LockFault::GrantsOnlyOne, &["waits for nothing"]);
    }

    #[test]
    fn cancelling_without_grants() {
        check_finds(LockFault::CancelGrantsNobody, &["waits for nothing"]);
    }

    #[test]
    fn waiting_behind_anyone() {
        check_finds(LockFault::WaitsBehindAnyone, &["waits for nothing"]);
    }

    #[test]
    fn overlooking_names() {
        check_finds(LockFault::OverlooksNames, &["waits for nothing", "passed"]);
    }

    #[test]
    fn keeping_former_names() {
        check_finds(LockFault::KeepsFormerName, &["the counters differ"]);
    }
}
