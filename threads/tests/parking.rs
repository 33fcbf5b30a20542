//! Checks every history of the rules of parking up to a number of steps, each step against the
//! promise of the rules.
//!
//! Must never know: how the rules keep their queues. They are judged by the requests they wake and
//! by their lists.
//!
//! The world around the rules: two keys that requests and an outsider claim and give back, and the
//! condition that something has been given back since a request looked. Giving a key back and
//! reporting it are two steps, and so are looking at a place and parking there, so that every other
//! step can happen in between.
//!
//! Histories that lead to the same situation are continued as one and counted as many.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map::DefaultHasher};
use std::hash::BuildHasherDefault;

use threads::parking::{Arrival, state::ParkingRules};

/// The places: keys 0 and 1, and the condition that key 0 has been given back since the look.
type Place = usize;
const KEYS: [Place; 2] = [0, 1];
const CHANGE: Place = 2;
const REQUESTS: usize = 3;

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    /// It runs a step.
    Runs,
    /// It has found a place shut and is about to park there. For [`CHANGE`]: whether that place has
    /// opened since.
    Looked(Place, bool),
    Waits(Place, bool),
    /// Its step has found what it needs and has claimed this key, or none.
    Goes(Option<Place>),
    /// Its step is over.
    Holds(Place),
    Gone,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Claim(Place),
    GiveBack(Place),
    Report(Place),
    Look(usize, Place),
    Park(usize),
    Take(usize, Place),
    Pass(usize),
    End(usize),
    GiveUp(usize),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    state: ParkingRules<Place>,
    requests: [Doing; REQUESTS],
    claimed: [bool; 2],
    /// Openings that have not been reported yet.
    unreported: [u8; 3],
}

type Frontier = HashMap<World, (Vec<Move>, u128), BuildHasherDefault<DefaultHasher>>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    fn new(state: ParkingRules<Place>) -> Self {
        Self { state, requests: [Doing::Runs; REQUESTS], claimed: [false; 2], unreported: [0; 3] }
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let by_request = |key| self.requests.iter().any(|doing| matches!(doing, Doing::Goes(Some(k)) if *k == key));
        for key in KEYS {
            match self.claimed[key] {
                false => moves.push(Move::Claim(key)),
                true if !by_request(key) => moves.push(Move::GiveBack(key)),
                true => {}
            }
        }
        moves.extend((0..3).filter(|place| self.unreported[*place] > 0).map(Move::Report));
        for (who, doing) in self.requests.iter().enumerate() {
            match doing {
                Doing::Runs => {
                    moves.push(Move::Look(who, CHANGE));
                    moves.push(Move::Pass(who));
                    for key in KEYS {
                        moves.push(if self.claimed[key] { Move::Look(who, key) } else { Move::Take(who, key) });
                    }
                    moves.push(Move::GiveUp(who));
                }
                Doing::Looked(..) => moves.push(Move::Park(who)),
                Doing::Waits(..) => moves.push(Move::GiveUp(who)),
                Doing::Goes(_) => moves.push(Move::End(who)),
                Doing::Holds(_) | Doing::Gone => {}
            }
        }
        moves
    }

    fn make(&mut self, step: Move) -> Result<(), String> {
        let claimed = self.claimed;
        // After a change the next request may look, too.
        let is_open = |place: &Place| claimed.get(*place).is_none_or(|claimed| !claimed);
        let arrival = |who: usize| Arrival(u64::try_from(who).expect("few requests"));
        let woken = match step {
            Move::Claim(key) => {
                self.claimed[key] = true;
                Vec::new()
            }
            Move::GiveBack(key) => {
                self.claimed[key] = false;
                self.unreported[key] += 1;
                for doing in &mut self.requests {
                    match doing {
                        Doing::Holds(held) if *held == key => *doing = Doing::Gone,
                        Doing::Looked(CHANGE, changed) | Doing::Waits(CHANGE, changed) if key == 0 => *changed = true,
                        _ => {}
                    }
                }
                if key == 0 {
                    self.unreported[CHANGE] += 1;
                }
                Vec::new()
            }
            Move::Report(place) => {
                self.unreported[place] -= 1;
                self.state.opened(&place).into_iter().collect()
            }
            Move::Look(who, place) => {
                self.requests[who] = Doing::Looked(place, false);
                Vec::new()
            }
            Move::Park(who) => {
                let Doing::Looked(place, changed) = self.requests[who] else {
                    return Err("the request has not looked".into());
                };
                self.requests[who] = Doing::Waits(place, changed);
                let is_shut = if place == CHANGE { !changed } else { self.claimed[place] };
                self.state.park(arrival(who), place, is_shut, is_open)
            }
            Move::Take(who, key) => {
                self.claimed[key] = true;
                self.requests[who] = Doing::Goes(Some(key));
                Vec::new()
            }
            Move::Pass(who) => {
                self.requests[who] = Doing::Goes(None);
                Vec::new()
            }
            Move::End(who) => {
                let Doing::Goes(claimed) = self.requests[who] else { return Err("the request does not go on".into()) };
                self.requests[who] = claimed.map_or(Doing::Gone, Doing::Holds);
                self.state.leave(arrival(who), is_open).into_iter().collect()
            }
            Move::GiveUp(who) => {
                self.requests[who] = Doing::Gone;
                self.state.leave(arrival(who), is_open).into_iter().collect()
            }
        };
        self.woken(&woken)?;
        self.check()
    }

    /// Each woken request waited, and no earlier arrival waits at its place.
    fn woken(&mut self, woken: &[Arrival]) -> Result<(), String> {
        for arrival in woken {
            let who = usize::try_from(arrival.0).expect("few requests");
            let Doing::Waits(place, _) = self.requests[who] else { return Err(format!("{arrival} did not wait")) };
            let earlier = self.waiting_at(place).find(|other| *other < who);
            ensure(earlier.is_none(), || format!("{arrival} was woken before {earlier:?}"))?;
            self.requests[who] = Doing::Runs;
        }
        Ok(())
    }

    fn waiting_at(&self, place: Place) -> impl Iterator<Item = usize> + '_ {
        let waits = move |doing: &Doing| matches!(doing, Doing::Waits(at, _) if *at == place);
        self.requests.iter().enumerate().filter(move |(_, doing)| waits(doing)).map(|(who, _)| who)
    }

    fn check(&self) -> Result<(), String> {
        ensure(self.state.is_consistent(), || "places and requests disagree".into())?;
        let waits: BTreeMap<_, _> = self.state.waiters().into_iter().map(|(who, place)| (who.0, *place)).collect();
        let ours = (0..3).flat_map(|place| self.waiting_at(place).map(move |who| (who as u64, place))).collect();
        ensure(waits == ours, || format!("the rules list {waits:?} as waiting"))?;
        let turns: HashSet<Place> = self.state.turns().into_iter().map(|(_, place)| *place).collect();
        for (who, _) in self.state.turns() {
            let doing = self.requests[usize::try_from(who.0).expect("few requests")];
            let active = matches!(doing, Doing::Runs | Doing::Looked(..) | Doing::Goes(_));
            ensure(active, || format!("{who} has a turn and {doing:?}"))?;
        }
        for place in 0..3 {
            let Some(first) = self.waiting_at(place).next() else { continue };
            let shut = match self.requests[first] {
                Doing::Waits(CHANGE, changed) => !changed,
                _ => self.claimed[place],
            };
            let fine = shut || self.unreported[place] > 0 || turns.contains(&place);
            ensure(fine, || format!("no wake-up is left for request {first} at place {place}"))?;
        }
        Ok(())
    }

    /// Lets every request run to its end; no request may be left. At the end the keys are given
    /// back once more, for the requests that wait for a change.
    fn drain(mut self) -> Result<(), String> {
        let mut changes = 0;
        loop {
            let next = self.moves().into_iter().find(|step| match step {
                Move::GiveBack(_) | Move::Report(_) | Move::Park(_) | Move::Pass(_) | Move::End(_) => true,
                Move::Claim(_) | Move::Look(..) | Move::Take(..) | Move::GiveUp(_) => false,
            });
            match next {
                Some(next) => self.make(next)?,
                None if changes == 0 && self.waiting_at(CHANGE).next().is_some() => {
                    changes += 1;
                    self.make(Move::Claim(0))?;
                }
                None => {
                    let left: Vec<_> = (0..3).flat_map(|place| self.waiting_at(place)).collect();
                    return ensure(left.is_empty(), || format!("{left:?} wait forever"));
                }
            }
        }
    }
}

/// The beginnings of histories: two requests that wait for a change, and three that wait for a key.
/// Without them the histories would be long.
const BEGINNINGS: [&[Move]; 3] = [
    &[],
    &[Move::Claim(0), Move::Look(0, CHANGE), Move::Look(1, CHANGE), Move::Park(0), Move::Park(1)],
    &[
        Move::Claim(0),
        Move::Look(0, 0),
        Move::Look(1, 0),
        Move::Look(2, 0),
        Move::Park(2),
        Move::Park(1),
        Move::Park(0),
    ],
];

/// Walks all histories of this many steps after each beginning. Returns the number of histories and
/// of situations at their ends.
fn walk(state: &ParkingRules<Place>, steps: usize) -> Result<(u128, usize), String> {
    let walked = BEGINNINGS.map(|beginning| walk_on(state.clone(), beginning, steps));
    walked.into_iter().try_fold((0, 0), |(histories, situations), walked| {
        let (more, further) = walked?;
        Ok((histories + more, situations + further))
    })
}

fn walk_on(state: ParkingRules<Place>, beginning: &[Move], steps: usize) -> Result<(u128, usize), String> {
    let mut world = World::new(state);
    for step in beginning {
        world.make(*step).map_err(|what| format!("{what}\nat {step:?} of {beginning:?}"))?;
    }
    let mut frontier = Frontier::default();
    frontier.insert(world, (beginning.to_vec(), 1));
    let (mut histories, mut situations) = (1, 1);
    for _ in 0..steps {
        let mut next = Frontier::default();
        for (world, (history, count)) in frontier {
            for step in world.moves() {
                let mut world = world.clone();
                let told = |what| format!("{what}\nafter {history:?}, {step:?}");
                world.make(step).map_err(told)?;
                histories += count;
                match next.get_mut(&world) {
                    Some((_, known)) => *known += count,
                    None => {
                        world.clone().drain().map_err(told)?;
                        let history = history.iter().copied().chain([step]).collect();
                        next.insert(world, (history, count));
                    }
                }
            }
        }
        situations += next.len();
        frontier = next;
    }
    Ok((histories, situations))
}

fn steps() -> usize {
    std::env::var("PARKING_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(7)
}

#[test]
fn every_history_keeps_what_parking_promises() {
    let steps = steps();
    let (histories, situations) = walk(&ParkingRules::new(), steps).unwrap_or_else(|broken| panic!("{broken}"));
    println!("{histories} histories of up to {steps} steps, in {situations} situations");
}

#[cfg(feature = "planted-faults")]
mod planted {
    use super::*;
    use threads::parking::ParkingFault;

    #[test]
    fn every_planted_fault_of_the_rules_is_found() {
        for (fault, told) in [
            (ParkingFault::QueuesAtOpenPlace, "no wake-up is left"),
            (ParkingFault::KeepsTurn, "no wake-up is left"),
            (ParkingFault::TakesTurnAlong, "places and requests"),
            (ParkingFault::WakesNewest, "was woken before"),
            (ParkingFault::WakesBesideTurn, "places and requests"),
            (ParkingFault::ForgetsOpening, "no wake-up is left"),
            (ParkingFault::StaysInQueue, "did not wait"),
            (ParkingFault::LeaverWakesNobody, "no wake-up is left"),
        ] {
            let found = walk(&ParkingRules::with_fault(fault), steps()).expect_err(&format!("{fault:?} must be found"));
            assert!(found.contains(told), "{fault:?} is found as: {found}");
            println!("{fault:?}: {found}");
        }
    }
}
