//! Runs several chains at once, without threads: a step of one chain, then a step of another, in an
//! order that a seed determines.
//!
//! A step under a lock ends before any other step begins. So the seeds cover every order of steps
//! that the daemon's lock and workers allow. A parked chain may continue when the claim that it
//! waits for is given back.

use std::any::Any;

use rand::{Rng, SeedableRng, rngs::StdRng};
use stratisd::engine::request::{Access, Granted, Join, Mode, Part, Step, Wait};

use crate::bench::Bench;

/// The number of times that a chain may park in a row before it counts as spinning.
const PARKS_MAX: u32 = 50;

enum State<T> {
    Ready(Step<T>),
    /// The claim that it waits for, and the count of claims given back before the step that parked.
    Parked(Wait, u64, Step<T>),
    Together(Vec<Option<Part>>, Vec<Option<Box<dyn Any + Send>>>, Join<T>),
    Done(T),
    /// Only while a step runs.
    Running,
}

struct Chain<T> {
    label: String,
    state: State<T>,
    parks: u32,
}

/// Chains on a bench.
pub struct Scheduler<T> {
    /// Where they run.
    pub bench: Bench,
    chains: Vec<Chain<T>>,
    chance: StdRng,
    /// The steps so far, for messages.
    pub history: Vec<String>,
}

impl<T: Send + 'static> Scheduler<T> {
    /// Without chains. The seed decides the order.
    pub fn new(bench: Bench, seed: u64) -> Scheduler<T> {
        Scheduler { bench, chains: Vec::new(), chance: StdRng::seed_from_u64(seed), history: Vec::new() }
    }

    /// Begins a chain.
    pub fn begin(&mut self, label: &str, chain: Step<T>) {
        self.chains.push(Chain { label: label.to_owned(), state: State::Ready(chain), parks: 0 });
    }

    /// Runs one step of one chain. False if no chain can continue.
    pub fn step(&mut self) -> bool {
        let engine = &self.bench.engine;
        let can_go_on = |chain: &Chain<T>| match &chain.state {
            State::Ready(_) | State::Together(..) => true,
            State::Parked(wait, seen, _) => !engine.is_taken(wait, *seen),
            State::Done(_) | State::Running => false,
        };
        let able: Vec<usize> = (0..self.chains.len()).filter(|i| can_go_on(&self.chains[*i])).collect();
        if able.is_empty() {
            return false;
        }
        let at = able[self.chance.random_range(0..able.len())];
        let state = std::mem::replace(&mut self.chains[at].state, State::Running);
        let (state, what) = self.advance(state);
        let parked = matches!(state, State::Parked(..));
        let chain = &mut self.chains[at];
        self.history.push(format!("{}: {what}{}", chain.label, if parked { ", parked" } else { "" }));
        chain.parks = if parked { chain.parks + 1 } else { 0 };
        assert!(chain.parks < PARKS_MAX, "{} spins:\n{}", chain.label, self.history.join("\n"));
        chain.state = state;
        true
    }

    fn advance(&mut self, state: State<T>) -> (State<T>, &'static str) {
        let Bench { engine, pools, .. } = &mut self.bench;
        let seen = engine.claims_given_back();
        let (next, what) = match state {
            State::Together(mut parts, mut results, join) => {
                let left: Vec<usize> = (0..parts.len()).filter(|i| parts[*i].is_some()).collect();
                if let Some(&part) = left.get(self.chance.random_range(0..left.len().max(1))) {
                    let run = parts[part].take().expect("it is one of those left");
                    results[part] = Some(run(engine));
                    return (State::Together(parts, results, join), "part");
                }
                (join(engine, results), "join")
            }
            State::Ready(next) | State::Parked(_, _, next) => match next {
                Step::Done(value) => return (State::Done(value), "done"),
                Step::Blocking(_, step) | Step::Background(step) => (step(engine), "act"),
                Step::Linked(links, limit, step) => (step(engine, links.wait(limit)), "links"),
                Step::Locked(Access::Table(_), step) => (step(engine, Granted::Table(pools)), "table"),
                Step::Locked(Access::Pool(which, mode), step) => {
                    let uuid = pools.resolve(&which);
                    match (uuid.and_then(|uuid| pools.0.get_mut(&uuid)), mode) {
                        (None, _) => (step(engine, Granted::NoPool), "no pool"),
                        (Some(pool), Mode::Shared) => (step(engine, Granted::Read(pool)), "read"),
                        (Some(pool), Mode::Exclusive) => (step(engine, Granted::Write(pool)), "write"),
                    }
                }
                Step::Parallel(parts, join) => {
                    let results = parts.iter().map(|_| None).collect();
                    return (State::Together(parts.into_iter().map(Some).collect(), results, join), "together");
                }
                Step::Parked(wait, next) => return (State::Parked(wait, seen, *next), "parked"),
            },
            State::Done(_) | State::Running => unreachable!("it was chosen among those that can go on"),
        };
        match next {
            Step::Parked(wait, next) => (State::Parked(wait, seen, *next), what),
            next => (State::Ready(next), what),
        }
    }

    /// Runs all chains to their end. Returns their results in the order in which they began.
    ///
    /// # Panics
    /// If one is stuck.
    pub fn finish(&mut self) -> Vec<T> {
        while self.step() {}
        let result = |chain: Chain<T>| match chain.state {
            State::Done(value) => Ok(value),
            _ => Err(chain.label),
        };
        let results: Result<Vec<T>, String> = std::mem::take(&mut self.chains).into_iter().map(result).collect();
        results.unwrap_or_else(|label| panic!("{label} is stuck:\n{}", self.history.join("\n")))
    }
}
