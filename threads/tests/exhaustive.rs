//! Every history of the lock's rules up to a number of steps, each step checked against what the rules promise.
//!
//! Must never know: how the state machine counts and queues; it is judged by what it grants and by its lists of holders and
//! waiters, against a plain restatement of the promise.
//!
//! A step is one of: a request of every mode, by key and by name, with and without a rank, for entries that exist, do not exist
//! yet or do not exist any more; the release of any grant; the cancelling of any waiter; and under WriteAll the addition,
//! removal and renaming of entries.
//!
//! Histories that arrive at the same state (same entries, holders and queue) go on as one, and are counted as many: what may
//! follow depends on the state alone, which `counts_match` makes sure of at each step. A second test walks all histories
//! of fewer steps one by one, without that, and must count the same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::DefaultHasher},
    hash::BuildHasherDefault,
};

use threads::lock::{
    Access, Held, RequestId, Target,
    state::{Grant, Mode, State, conflict},
};

type Key = u8;
type Name = char;
type Ask = Access<Key, Name>;

/// One step of a history. Grants and waiters are meant by their place in the state machine's lists.
#[derive(Clone, Debug)]
enum Move {
    Request(Ask),
    /// With a rank: ahead of all that have none.
    RequestRanked(Ask),
    Release(usize),
    Cancel(usize),
    Insert(Key, Name),
    Remove(Key),
    Rename(Key, Name),
}

/// The state machine, and beside it our own book of what it said.
#[derive(Clone)]
struct World {
    state: State<Key, Name>,
    entries: BTreeMap<Key, Name>,
    waiting: BTreeMap<RequestId, Ask>,
    holding: BTreeMap<RequestId, Held<Key>>,
    /// Those that were given a rank.
    ranked: BTreeSet<RequestId>,
}

/// A state without its history: entries, what is held (the order does not matter), who waits for what (it does).
type Situation = (Vec<(Key, Name)>, Vec<String>, Vec<(bool, Ask)>);

/// For each state: one history that leads there (to tell it), and how many do. Without a random seed, so that a fault is told
/// by the same history each time.
type Frontier = HashMap<Situation, (World, Vec<Move>, u64), BuildHasherDefault<DefaultHasher>>;

impl World {
    /// Two entries: 1 is named a, 2 is named b.
    fn new(mut state: State<Key, Name>) -> Result<Self, String> {
        let entries = BTreeMap::from([(1, 'a'), (2, 'b')]);
        let (id, held) = state.request(Access::WriteAll);
        ensure(held == Some(Held::WriteAll), || "the first request must be granted".into())?;
        for (key, name) in &entries {
            ensure(state.insert(*key, *name), || "a new entry must be taken in".into())?;
        }
        ensure(state.release(id).is_empty(), || "nobody waits yet".into())?;
        Ok(Self { state, entries, waiting: BTreeMap::new(), holding: BTreeMap::new(), ranked: BTreeSet::new() })
    }

    fn situation(&self) -> Situation {
        let mut held: Vec<_> = self.holding.values().map(|held| format!("{held:?}")).collect();
        held.sort();
        let waiting = self.waiting.iter().map(|(id, ask)| (self.ranked.contains(id), ask.clone())).collect();
        (self.entries.iter().map(|(key, name)| (*key, *name)).collect(), held, waiting)
    }

    /// All that can happen next.
    fn moves(&self) -> Vec<Move> {
        let mut moves = vec![Move::Request(Access::ReadAll), Move::Request(Access::WriteAll)];
        // Both ways to the first entry, one to the second, and two that are absent at first.
        for target in [Target::Key(1), Target::Name('a'), Target::Key(2), Target::Key(3), Target::Name('c')] {
            moves.push(Move::Request(Access::Read(target.clone())));
            moves.push(Move::Request(Access::Write(target)));
        }
        // One mode that reads and one that writes, so that all others find such a one ahead.
        moves.extend([Access::ReadAll, Access::Write(Target::Name('a'))].map(Move::RequestRanked));
        moves.extend((0..self.holding.len()).map(Move::Release));
        moves.extend((0..self.waiting.len()).map(Move::Cancel));
        if self.holding.values().any(|held| *held == Held::WriteAll) {
            moves.extend([Move::Insert(3, 'c'), Move::Insert(3, 'a'), Move::Remove(1), Move::Remove(2)]);
            moves.extend([Move::Rename(1, 'c'), Move::Rename(2, 'a')]);
        }
        moves
    }

    /// Makes the move and checks everything that was promised.
    fn make(&mut self, step: &Move) -> Result<(), String> {
        let holder = |place: usize| *self.holding.keys().nth(place).expect("moves name holders that are there");
        match step {
            Move::Request(access) => {
                let (id, held) = self.state.request(access.clone());
                let newest = self.waiting.keys().chain(self.holding.keys()).max();
                ensure(newest < Some(&id), || "ids grow".into())?;
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
                let id = *self.waiting.keys().nth(*place).expect("moves name waiters that are there");
                self.waiting.remove(&id);
                let grants = self.state.cancel(id).ok_or("whoever waits can be cancelled")?;
                ensure(self.state.cancel(id).is_none(), || "a request is cancelled once".into())?;
                self.granted(grants)?;
            }
            Move::Insert(key, name) => {
                let free = !self.entries.contains_key(key) && !self.entries.values().any(|other| other == name);
                ensure(self.state.insert(*key, *name) == free, || format!("an insertion works when free: {free}"))?;
                if free {
                    self.entries.insert(*key, *name);
                }
            }
            Move::Remove(key) => {
                let there = self.entries.remove(key).is_some();
                ensure(self.state.remove(key) == there, || format!("a removal works when there: {there}"))?;
            }
            Move::Rename(key, name) => {
                let taken = self.entries.iter().any(|(other, has)| other != key && has == name);
                let works = !taken && self.entries.contains_key(key);
                ensure(self.state.rename(key, *name) == works, || format!("a renaming works when free: {works}"))?;
                if works {
                    self.entries.insert(*key, *name);
                }
            }
        }
        self.check()
    }

    fn requested(&mut self, id: RequestId, access: &Ask, held: Option<Held<Key>>) -> Result<(), String> {
        ensure(!self.holding.contains_key(&id), || "ids are used once".into())?;
        self.waiting.insert(id, access.clone());
        self.granted(held.map(|held| Grant { id, held }).into_iter().collect())
    }

    /// Enters grants in our book. Each must have waited, and hold what its request means now.
    fn granted(&mut self, grants: Vec<Grant<Key>>) -> Result<(), String> {
        ensure(grants.is_sorted_by_key(|grant| grant.id), || "grants come in the order of arrival".into())?;
        for Grant { id, held } in &grants {
            let access = self.waiting.remove(id).ok_or("only who waits is granted, and once")?;
            let meant = self.meaning(&access);
            ensure(*held == meant, || format!("{access:?} means {meant:?} now, not {held:?}"))?;
            if meant != Held::Absent {
                self.holding.insert(*id, meant);
            }
        }
        // Nobody passes an earlier waiter that it conflicts with.
        for Grant { id, held } in &grants {
            let passed = self.waiting.range(..id).find(|(_, earlier)| in_conflict(held, &self.meaning(earlier)));
            ensure(passed.is_none(), || format!("{held:?} passed {passed:?}"))?;
        }
        Ok(())
    }

    /// What must be true between any two steps.
    fn check(&self) -> Result<(), String> {
        let theirs: Vec<_> = self.state.holders().into_iter().map(|(id, held)| (id, held.clone())).collect();
        ensure(theirs.iter().map(|(id, held)| (id, held)).eq(&self.holding), || format!("holders: {theirs:?}"))?;
        let theirs: Vec<_> = self.state.waiters().into_iter().map(|(id, ask)| (id, ask.clone())).collect();
        ensure(theirs.iter().map(|(id, ask)| (id, ask)).eq(&self.waiting), || format!("waiters: {theirs:?}"))?;
        ensure(self.state.counts_match(), || "the counters are the lists, counted".into())?;

        for (id, held) in &self.holding {
            let other = self.holding.range(..id).find(|(_, other)| in_conflict(held, other));
            ensure(other.is_none(), || format!("{held:?} is held beside {other:?}"))?;
        }
        // Nobody waits without need.
        for (id, access) in &self.waiting {
            let wants = self.meaning(access);
            let held = self.holding.values().any(|held| in_conflict(&wants, held));
            let queued = self.waiting.range(..id).any(|(_, earlier)| in_conflict(&wants, &self.meaning(earlier)));
            ensure(held || queued, || format!("{access:?} waits for nothing"))?;
        }
        Ok(())
    }

    /// What a request would hold if it were granted now.
    fn meaning(&self, access: &Ask) -> Held<Key> {
        let key = |target: &Target<Key, Name>| match target {
            Target::Key(key) => self.entries.contains_key(key).then_some(*key),
            Target::Name(name) => self.entries.iter().find(|(_, has)| *has == name).map(|(key, _)| *key),
        };
        match access {
            Access::ReadAll => Held::ReadAll,
            Access::WriteAll => Held::WriteAll,
            Access::Read(target) => key(target).map_or(Held::Absent, Held::Read),
            Access::Write(target) => key(target).map_or(Held::Absent, Held::Write),
        }
    }
}

/// The table of the design, written down once more and in another way than in the code.
fn in_conflict(a: &Held<Key>, b: &Held<Key>) -> bool {
    let writes = |held: &Held<Key>| matches!(held, Held::Write(_) | Held::WriteAll);
    let overlap = match (a, b) {
        // What does not exist is part of nothing but "everything there may ever be".
        (Held::Absent, other) | (other, Held::Absent) => *other == Held::WriteAll,
        (Held::ReadAll | Held::WriteAll, _) | (_, Held::ReadAll | Held::WriteAll) => true,
        (Held::Read(p) | Held::Write(p), Held::Read(q) | Held::Write(q)) => p == q,
    };
    overlap && (writes(a) || writes(b))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Walks all histories of up to `steps` steps. Says for each number of steps how many there are and how many different
/// states their last steps set out from; or which one breaks which promise.
fn check_all(state: State<Key, Name>, steps: usize) -> Result<Vec<(u64, usize)>, String> {
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
                // What the last step leads to is checked, but nothing follows from it.
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

/// The same, history by history.
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

/// More with `LOCK_STEPS=7` and up, see the README.
fn steps() -> usize {
    std::env::var("LOCK_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(6)
}

#[test]
fn every_history_keeps_the_promise() {
    let checked = check_all(State::new(), steps()).unwrap_or_else(|broken| panic!("{broken}"));
    for (step, (histories, states)) in checked.iter().enumerate() {
        println!("{} steps: {histories} histories checked, the last step from {states} different states", step + 1);
    }
}

#[test]
fn histories_that_meet_may_go_on_as_one() {
    let world = World::new(State::new()).unwrap();
    for (step, (merged, _)) in check_all(State::new(), 4).unwrap().into_iter().enumerate() {
        assert_eq!(check_each(&world, step + 1).unwrap(), merged);
    }
}

#[test]
fn conflicts_are_symmetric_and_those_of_the_table() {
    let kinds =
        [Held::ReadAll, Held::WriteAll, Held::Read(1), Held::Read(2), Held::Write(1), Held::Write(2), Held::Absent];
    for a in &kinds {
        for b in &kinds {
            let same = matches!((a, b), (Held::Read(p) | Held::Write(p), Held::Read(q) | Held::Write(q)) if p == q);
            assert_eq!(conflict(a.mode(), b.mode(), same), conflict(b.mode(), a.mode(), same), "{a:?} {b:?}");
            assert_eq!(conflict(a.mode(), b.mode(), same), in_conflict(a, b), "{a:?} {b:?}");
        }
    }
    // The picture in the design, as it stands there: rows are held, columns are asked.
    let (r, w) = (false, true);
    let order = [Mode::ReadAll, Mode::WriteAll, Mode::Read, Mode::Write];
    let picture = [[r, w, r, w], [w, w, w, w], [r, w, r, w], [w, w, w, w]];
    for (held, row) in order.iter().zip(picture) {
        for (asked, waits) in order.iter().zip(row) {
            assert_eq!(conflict(*held, *asked, true), waits, "{held:?} {asked:?}");
        }
    }
}

/// The checker is itself checked: each of these mistakes must be found.
#[cfg(feature = "planted-faults")]
mod planted {
    use super::{State, check_all};
    use threads::lock::Fault;

    /// `what` are the broken promises as which the shortest histories show the fault.
    fn check_finds(fault: Fault, what: &[&str]) {
        let found = check_all(State::with_fault(fault), 5).expect_err("the mistake must be noticed");
        println!("{fault:?}: {found}");
        assert!(what.iter().any(|what| found.contains(what)), "{fault:?} is noticed as: {found}");
    }

    #[test]
    fn passing_waiters() {
        check_finds(Fault::PassesWaiters, &["passed"]);
    }

    #[test]
    fn ignoring_ranks() {
        check_finds(Fault::IgnoresRank, &["behind those of its rank"]);
    }

    #[test]
    fn writing_beside_readers() {
        check_finds(Fault::WritesBesideReaders, &["is held beside"]);
    }

    #[test]
    fn granting_only_one() {
        check_finds(Fault::GrantsOnlyOne, &["waits for nothing"]);
    }

    #[test]
    fn cancelling_without_grants() {
        check_finds(Fault::CancelGrantsNobody, &["waits for nothing"]);
    }

    #[test]
    fn waiting_behind_anyone() {
        check_finds(Fault::WaitsBehindAnyone, &["waits for nothing"]);
    }

    #[test]
    fn overlooking_names() {
        check_finds(Fault::OverlooksNames, &["waits for nothing", "passed"]);
    }

    #[test]
    fn keeping_former_names() {
        check_finds(Fault::KeepsFormerName, &["the counters are the lists"]);
    }
}
