//! The rules of parking: which requests wait at which place, and which one has the turn there. A
//! plain value with methods.
//!
//! Must never know: threads, sync types, callbacks, time, and what a place stands for.
//!
//! A *place* stands for a condition that a request needs: a key is not claimed, a set of keys is
//! empty, something has changed since the request last looked. The conditions live outside this
//! module. A place is *open* while its condition holds, otherwise *shut*. Code that opens a place
//! reports it with [`ParkingRules::opened`] after the place is open.
//!
//! # The promise
//!
//! **No lost wake-up.** While requests wait at a place, at least one of these is true: the place is
//! shut for the first of them; its opening has yet to be reported; a request has been woken and has
//! the *turn*. A request ends its turn when it continues or gives up ([`ParkingRules::leave`]) or
//! parks again ([`ParkingRules::park`]). If it leaves the place open, the next waiter is woken.
//!
//! **Order.** A place wakes the waiter that arrived first, and one at a time: the next waiter is
//! woken when the previous turn has ended and left the place open.
//!
//! **Fairness across parking.** A request keeps the number of its arrival for life. A woken request
//! that finds the place shut again parks under the same number, so it stays ahead of all later
//! arrivals. A request that has not parked does not look at the queue: it may find the place open
//! and shut it before the woken request runs. That costs the woken request another run of its step
//! and costs those behind it nothing.
//!
//! **One place at a time.** A request that needs several conditions waits for the first that does
//! not hold and holds none of the others meanwhile, so it cannot deadlock with another request.
//!
//! An example with one place, a key that 1 has claimed:
//!
//! | call | turn | waits | because |
//! |---|---|---|---|
//! | park 3, shut | | 3 | |
//! | park 2, shut | | 2 3 | 2 arrived earlier, although it parks later |
//! | opened | 2 | 3 | 1 has given the key back |
//! | park 2, shut | | 2 3 | a newcomer has claimed the key; 2 keeps its place |
//! | opened | 2 | 3 | |
//! | leave 2, shut | | 3 | 2 has claimed the key; its end will open the place |
//! | opened | 3 | | |
//!
//! # Cost
//!
//! A call looks at one or two places and at the heads of their queues, and wakes at most one waiter
//! at each. The cost grows with the logarithm of the number of waiters and with nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Debug, Display, Formatter},
};

#[cfg(feature = "planted-faults")]
use super::fault::ParkingFault;
use crate::fault::planted;

/// A request, identified by its position in the order of arrival. The caller gives the number; it
/// is unique among live requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arrival(pub u64);

impl Display for Arrival {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// A type that can stand for a condition. Implemented for every type that qualifies.
pub trait Spot: Clone + Ord + Debug + Send + 'static {}

impl<X: Clone + Ord + Debug + Send + 'static> Spot for X {}

/// The waiters at a place and the request that has the turn. A place without either is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PlaceQueue {
    waiting: BTreeSet<Arrival>,
    turn: Option<Arrival>,
    #[cfg(feature = "planted-faults")]
    opened_in_turn: bool,
}

/// The state of a request. Requests that neither wait nor have a turn are dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Standing<P> {
    Waits(P),
    HasTurn(P),
}

/// All waiting requests and all turns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParkingRules<P> {
    places: BTreeMap<P, PlaceQueue>,
    /// The state of each request that waits or has a turn.
    standing: BTreeMap<Arrival, Standing<P>>,
    #[cfg(feature = "planted-faults")]
    pub(super) fault: Option<ParkingFault>,
}

impl<P: Spot> Default for ParkingRules<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Spot> ParkingRules<P> {
    /// No waiters.
    #[must_use]
    pub fn new() -> Self {
        Self {
            places: BTreeMap::new(),
            standing: BTreeMap::new(),
            #[cfg(feature = "planted-faults")]
            fault: None,
        }
    }

    /// Rules with a planted fault, to show that a checker finds it.
    #[cfg(feature = "planted-faults")]
    #[must_use]
    pub fn with_fault(fault: ParkingFault) -> Self {
        Self { fault: Some(fault), ..Self::new() }
    }

    /// `who` has found `place` shut and waits there; its turn elsewhere ends. `is_shut` says
    /// whether the place is still shut: it may have been opened, and reported, after `who` looked.
    /// `is_open` is asked about the place of the former turn. Returns the requests that have the
    /// turn now; `who` may be one of them.
    ///
    /// A request waits at one place at a time: a waiting request must not park.
    pub fn park(&mut self, who: Arrival, place: P, is_shut: bool, is_open: impl FnOnce(&P) -> bool) -> Vec<Arrival> {
        debug_assert!(!matches!(self.standing.get(&who), Some(Standing::Waits(_))), "{who} parks twice");
        let left = if planted!(self, ParkingFault::TakesTurnAlong) { None } else { self.end_turn(who) };
        self.standing.insert(who, Standing::Waits(place.clone()));
        self.places.entry(place.clone()).or_default().waiting.insert(who);
        let mut woken = Vec::new();
        match left {
            // An earlier waiter is ahead at the same place. Its condition may hold where that of
            // `who` does not, since it looked earlier.
            Some(left) if left == place && self.first_at(&place) == Some(who) => {}
            Some(left) => woken.extend(self.pass_on(left, is_open)),
            None => {}
        }
        // Wakes the first waiter, which need not be `who`: if no request has the turn, the report
        // of the opening is still on its way.
        if !is_shut && !planted!(self, ParkingFault::QueuesAtOpenPlace) {
            woken.extend(self.wake_first(&place));
        }
        woken
    }

    /// `place` was opened before this call. Returns the request that has the turn now. Returns
    /// `None` if no request waits, or if another request has the turn, whose end looks at the place
    /// again.
    pub fn opened(&mut self, place: &P) -> Option<Arrival> {
        self.wake_first(place)
    }

    /// `who` continues or gives up, whether it waits, has the turn or neither. Returns the request
    /// that has the turn now.
    pub fn leave(&mut self, who: Arrival, is_open: impl FnOnce(&P) -> bool) -> Option<Arrival> {
        if let Some(left) = self.end_turn(who) {
            let passes_on = !planted!(self, ParkingFault::KeepsTurn);
            return self.pass_on(left, |place| passes_on && is_open(place));
        }
        let Some(Standing::Waits(place)) = self.standing.remove(&who) else { return None };
        let was_first = self.first_at(&place) == Some(who);
        if let Some(at) = self.places.get_mut(&place).filter(|_| !planted!(self, ParkingFault::StaysInQueue)) {
            at.waiting.remove(&who);
        }
        if was_first && !planted!(self, ParkingFault::LeaverWakesNobody) {
            // A place can be open for one waiter and shut for another that looked later. Then the
            // first one has blocked the next.
            return self.pass_on(place, is_open);
        }
        self.tidy(&place);
        None
    }

    /// The waiting requests and their places, in the order of arrival.
    #[must_use]
    pub fn waiters(&self) -> Vec<(Arrival, &P)> {
        let waits = self.standing.iter().filter_map(|(who, standing)| match standing {
            Standing::Waits(place) => Some((*who, place)),
            Standing::HasTurn(_) => None,
        });
        waits.collect()
    }

    /// The requests that have a turn and its place, in the order of arrival.
    #[must_use]
    pub fn turns(&self) -> Vec<(Arrival, &P)> {
        let turns = self.standing.iter().filter_map(|(who, standing)| match standing {
            Standing::HasTurn(place) => Some((*who, place)),
            Standing::Waits(_) => None,
        });
        turns.collect()
    }

    /// Whether places and requests agree and no empty item is kept. For checkers.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let mut places: BTreeMap<P, PlaceQueue> = BTreeMap::new();
        for (who, standing) in &self.standing {
            match standing {
                Standing::Waits(place) => drop(places.entry(place.clone()).or_default().waiting.insert(*who)),
                Standing::HasTurn(place) if places.entry(place.clone()).or_default().turn.is_some() => return false,
                Standing::HasTurn(place) => places.entry(place.clone()).or_default().turn = Some(*who),
            }
        }
        let same = |(place, kept): (&P, &PlaceQueue)| {
            places.get(place).is_some_and(|place| (&place.waiting, place.turn) == (&kept.waiting, kept.turn))
        };
        places.len() == self.places.len() && self.places.iter().all(same)
    }

    /// Ends the turn of `who` and returns its place.
    fn end_turn(&mut self, who: Arrival) -> Option<P> {
        let Some(Standing::HasTurn(_)) = self.standing.get(&who) else { return None };
        let Some(Standing::HasTurn(place)) = self.standing.remove(&who) else { return None };
        if let Some(left) = self.places.get_mut(&place) {
            left.turn = None;
        }
        Some(place)
    }

    /// Wakes the next waiter if no request has the turn and the place is open. The opening of a
    /// shut place wakes the waiter later.
    fn pass_on(&mut self, place: P, is_open: impl FnOnce(&P) -> bool) -> Option<Arrival> {
        #[cfg(feature = "planted-faults")]
        if let Some(left) = self.places.get_mut(&place) {
            if std::mem::take(&mut left.opened_in_turn) && planted!(self, ParkingFault::ForgetsOpening) {
                return None;
            }
        }
        if is_open(&place) {
            return self.wake_first(&place);
        }
        self.tidy(&place);
        None
    }

    /// The first arrival among the waiters at a place.
    fn first_at(&self, place: &P) -> Option<Arrival> {
        self.places.get(place).and_then(|at| at.waiting.first().copied())
    }

    /// Gives the turn to the first arrival, if no request has it.
    fn wake_first(&mut self, place: &P) -> Option<Arrival> {
        let at = self.places.get_mut(place)?;
        if at.turn.is_some() && !planted!(self, ParkingFault::WakesBesideTurn) {
            #[cfg(feature = "planted-faults")]
            {
                at.opened_in_turn = true;
            }
            return None;
        }
        let next =
            if planted!(self, ParkingFault::WakesNewest) { at.waiting.pop_last() } else { at.waiting.pop_first() };
        match next {
            Some(next) => {
                at.turn = Some(next);
                self.standing.insert(next, Standing::HasTurn(place.clone()));
            }
            None => self.tidy(place),
        }
        next
    }

    /// Drops a place without waiters and without a turn.
    fn tidy(&mut self, place: &P) {
        if self.places.get(place).is_some_and(|place| place.waiting.is_empty() && place.turn.is_none()) {
            self.places.remove(place);
        }
    }
}
