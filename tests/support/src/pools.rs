//! The running pools of an engine, and the simplest way to run its chains: one after the other, in
//! a loop, without threads and locks. This module depends on no particular platform.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use stratisd::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{
        Engine,
        pool::Pool,
        request::{Access, Granted, Mode, Part, Step, Table},
    },
    view::Availability,
};

/// No chain of a test has so many steps. One that has is in an endless loop, maybe without a step of
/// the machine.
const STEPS_MAX: u32 = 1_000_000;

/// The running pools.
#[derive(Default)]
pub struct Pools(pub HashMap<PoolUuid, Pool>);

impl Pools {
    /// The pool with this name or UUID.
    pub fn resolve(&self, which: &PoolRef) -> Option<PoolUuid> {
        match which {
            PoolRef::Uuid(uuid) => self.0.contains_key(uuid).then_some(*uuid),
            PoolRef::Name(name) => self.0.values().find(|pool| pool.name() == name).map(Pool::uuid),
        }
    }

    /// Runs a chain to its end. A panic has the same consequences as in the daemon.
    ///
    /// # Panics
    /// If the chain panics, waits for another one, or has more than [`STEPS_MAX`] steps.
    pub fn run<T>(&mut self, engine: &Engine, mut next: Step<T>) -> T {
        for _ in 0..STEPS_MAX {
            next = match next {
                Step::Done(value) => {
                    engine.take_follow_ups().into_iter().for_each(|(_, work)| self.run(engine, work));
                    return value;
                }
                Step::Blocking(_, step) | Step::Background(step) => step(engine),
                Step::Linked(links, limit, step) => step(engine, links.wait(limit)),
                Step::Parallel(parts, join) => {
                    let run = |part: Part| catch_unwind(AssertUnwindSafe(|| part(engine))).ok();
                    let results = parts.into_iter().map(run).collect();
                    join(engine, results)
                }
                Step::Locked(Access::Table(_), step) => step(engine, Granted::Table(self)),
                Step::Locked(Access::Pool(which, mode), step) => {
                    let uuid = self.resolve(&which);
                    match (uuid.and_then(|uuid| self.0.get_mut(&uuid)), mode) {
                        (None, _) => step(engine, Granted::NoPool),
                        (Some(pool), Mode::Shared) => step(engine, Granted::Read(pool)),
                        (Some(pool), Mode::Exclusive) => {
                            let granted = AssertUnwindSafe(|| step(engine, Granted::Write(&mut *pool)));
                            catch_unwind(granted).unwrap_or_else(|panic| {
                                pool.restrict(Availability::NoPoolChanges, "a request panicked");
                                resume_unwind(panic)
                            })
                        }
                    }
                }
                Step::Parked(wait, _) => panic!("a request waits for {wait:?}, but no other request is under way"),
            };
        }
        panic!("a chain is in an endless loop: it has had {STEPS_MAX} steps");
    }
}

impl Table for Pools {
    fn list(&self) -> Vec<(PoolUuid, Name)> {
        self.0.values().map(|pool| (pool.uuid(), pool.name().clone())).collect()
    }

    fn pool(&self, which: &PoolRef) -> Option<&Pool> {
        self.0.get(&self.resolve(which)?)
    }

    fn insert(&mut self, pool: Pool) -> Result<(), Pool> {
        if self.resolve(&PoolRef::Name(pool.name().clone())).is_some() || self.0.contains_key(&pool.uuid()) {
            return Err(pool);
        }
        self.0.insert(pool.uuid(), pool);
        Ok(())
    }

    fn remove(&mut self, uuid: PoolUuid) -> Option<Pool> {
        self.0.remove(&uuid)
    }

    fn rename(&mut self, uuid: PoolUuid, _name: Name) -> Option<&mut Pool> {
        self.0.get_mut(&uuid)
    }
}
