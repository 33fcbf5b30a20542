//! How an operation asks for what it needs: a lock, time without one, company, or patience.
//!
//! An operation is a chain of steps. The engine only says what the next step needs ([`Next`]); who grants locks,
//! on which thread a step runs, and what happens while it waits is not its business. The daemon runs chains over
//! the lock of the `threads` crate and its workers; a test can run the same chains in a plain loop.
//!
//! Rules of the game:
//! - a step that runs [`Next::Under`] a lock is quick: memory, device-mapper calls, metadata writes. Formatting,
//!   checking, waiting for others is a [`Next::Act`], which says what it may hold up if it hangs ([`Share`]);
//! - between steps the lock is released. What must not change meanwhile is *claimed* (a name, a device, a pool)
//!   under the lock before, and the claim is given back by the step that commits or undoes;
//! - a step that finds what it needs claimed by another answers [`Next::Parked`] with what it waits for. When that has come
//!   about the chain goes on; it should begin with the step that claims. Those that wait for the same are woken one after the
//!   other, in the order of their arrival: the next one when the step of the one before has not claimed it again.

use std::{any::Any, path::PathBuf, time::Duration};

pub use crate::engine::claims::{Key, Wait};
use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{Engine, pool::Pool},
    platform::PendingLinks,
};

/// Whether others may look on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Read: others may read too.
    Shared,
    /// Write: alone.
    Exclusive,
}

/// What a step must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access {
    /// One pool.
    Pool(PoolRef, Mode),
    /// The table of all pools; exclusive to insert, remove or rename.
    Table(Mode),
}

/// The table of running pools, as a step under [`Access::Table`] sees it.
pub trait Table<P = Pool> {
    /// The running pools: identifier and name, in no particular order.
    fn list(&self) -> Vec<(PoolUuid, Name)>;
    /// Looks at one pool.
    fn pool(&self, which: &PoolRef) -> Option<&P>;
    /// Adds a pool. Only under exclusive access.
    ///
    /// # Errors
    /// Gives the pool back if its identifier or name is taken.
    #[allow(clippy::result_large_err)]
    fn insert(&mut self, pool: P) -> Result<(), P>;
    /// Takes a pool out. Only under exclusive access.
    fn remove(&mut self, uuid: PoolUuid) -> Option<P>;
    /// Lets the pool's entry follow the name that `change` gives to it. Only under exclusive access; the caller has
    /// made sure that the new name is free.
    fn rename(&mut self, uuid: PoolUuid, name: Name) -> Option<&mut P>;
}

/// What a step is given under its lock.
pub enum Granted<'a, P = Pool> {
    /// Shared access to the pool.
    Read(&'a P),
    /// Exclusive access to the pool.
    Write(&'a mut P),
    /// There is no running pool of that name or identifier.
    NoPool,
    /// The table, shared or exclusive as asked.
    Table(&'a mut dyn Table<P>),
}

/// A step that runs under a lock.
pub type UnderStep<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E, Granted<'_, P>) -> Next<T, E, P> + Send>;
/// A step that runs without one.
pub type ActStep<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E) -> Next<T, E, P> + Send>;
/// One of several parts of slow work that may run side by side; its result is for the join only.
pub type Part<E = Engine> = Box<dyn FnOnce(&E) -> Box<dyn Any + Send> + Send>;
/// What follows when all parts are done; their results in the order of the parts. A part that panicked gives `None`.
pub type Join<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E, Vec<Option<Box<dyn Any + Send>>>) -> Next<T, E, P> + Send>;

/// What follows when links are there, or will not come: it is given those that are missing.
pub type LinkedStep<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E, Vec<PathBuf>) -> Next<T, E, P> + Send>;

/// How long a step without a lock may take, and what it may hold up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pace {
    /// What people do not notice: memory, the keyring, a look at names. It never waits for slow steps.
    Brief,
    /// Disks, programs, the network; and what it holds up if it hangs, if that is not the pool which the request was about so
    /// far.
    Slow(Option<Share>),
}

/// What a step that hangs may hold up. Everything else goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Share {
    /// What else is to be done with this pool.
    Pool(PoolUuid),
    /// What else is to be done with this device, which belongs to no pool yet.
    Device(PathBuf),
}

/// What a chain needs next. Chains of the engine are about its pools; who runs chains has no need to know, and is
/// tested with chains about something smaller.
pub enum Next<T, E = Engine, P = Pool> {
    /// Nothing: this is the result.
    Done(T),
    /// A lock, then this step.
    Under(Access, UnderStep<T, E, P>),
    /// Time without a lock.
    Act(Pace, ActStep<T, E, P>),
    /// Links that udev has been asked for, at most for this time. No thread waits meanwhile.
    Linked(Box<dyn PendingLinks>, Duration, LinkedStep<T, E, P>),
    /// As `Act`, for what may take hours: it gets a thread of its own, so that it keeps nobody else from a worker.
    Long(ActStep<T, E, P>),
    /// Time without a lock for parts that may run side by side, then the join.
    Together(Vec<Part<E>>, Join<T, E, P>),
    /// Something is claimed by another request. When this has changed, go on.
    Parked(Wait, Box<Next<T, E, P>>),
}

/// Asks for the lock once more when nobody uses the pool alone any more.
fn until_ended<T: Send + 'static>(
    pool: &Pool,
    again: Access,
    step: impl FnOnce(&Engine, Granted<'_>) -> Next<T> + Send + 'static,
) -> Next<T> {
    Next::parked(Key::Drain(pool.uuid()), Next::under(again, step))
}

/// Whether somebody ends the pool now. If that panicked nobody does, and the pool is still in the table.
fn ends(engine: &Engine, pool: &Pool) -> bool {
    pool.is_gone() && engine.claims().is_claimed(&Key::Drain(pool.uuid()))
}

impl<T: Send + 'static> Next<T> {
    /// Asks for a lock. The step does not find a pool that another request is ending: such a pool has given up its devices,
    /// but is still in the table and in what clients see, so that whatever is answered about it could be taken back by the
    /// next answer. The step waits until the end has been published.
    pub fn under(access: Access, step: impl FnOnce(&Engine, Granted<'_>) -> Next<T> + Send + 'static) -> Next<T> {
        let again = access.clone();
        Next::Under(
            access,
            Box::new(move |engine, granted| match &granted {
                Granted::Read(pool) if ends(engine, pool) => until_ended(pool, again, step),
                Granted::Write(pool) if ends(engine, pool) => until_ended(pool, again, step),
                _ => step(engine, granted),
            }),
        )
    }

    /// Waits until nobody has claimed the key any more, or for whatever [`Wait`] says, and then goes on with `again`.
    pub fn parked(wait: impl Into<Wait>, again: Next<T>) -> Next<T> {
        Next::Parked(wait.into(), Box::new(again))
    }

    /// Asks for exclusive access to a pool of which the caller has claimed [`Key::Drain`], whether or not it is ending.
    pub fn alone(pool: PoolUuid, step: impl FnOnce(&Engine, Granted<'_>) -> Next<T> + Send + 'static) -> Next<T> {
        Next::Under(Access::Pool(pool.into(), Mode::Exclusive), Box::new(step))
    }

    /// Asks for exclusive access to a pool.
    pub fn write(
        pool: impl Into<PoolRef>,
        step: impl FnOnce(&Engine, Granted<'_>) -> Next<T> + Send + 'static,
    ) -> Next<T> {
        Next::under(Access::Pool(pool.into(), Mode::Exclusive), step)
    }

    /// Asks for time without a lock for a slow step, about the pool that the request was about so far.
    pub fn act(step: impl FnOnce(&Engine) -> Next<T> + Send + 'static) -> Next<T> {
        Next::Act(Pace::Slow(None), Box::new(step))
    }

    /// Asks for time without a lock for a slow step about `share`.
    pub fn slow(share: Share, step: impl FnOnce(&Engine) -> Next<T> + Send + 'static) -> Next<T> {
        Next::Act(Pace::Slow(Some(share)), Box::new(step))
    }

    /// Asks for a moment without a lock.
    pub fn brief(step: impl FnOnce(&Engine) -> Next<T> + Send + 'static) -> Next<T> {
        Next::Act(Pace::Brief, Box::new(step))
    }

    /// Asks for a thread for hours.
    pub fn long(step: impl FnOnce(&Engine) -> Next<T> + Send + 'static) -> Next<T> {
        Next::Long(Box::new(step))
    }

    /// The chain followed by another, made from its result.
    pub fn then<U: Send + 'static>(self, follow: impl FnOnce(T) -> Next<U> + Send + 'static) -> Next<U> {
        match self {
            Next::Done(value) => follow(value),
            Next::Under(access, step) => {
                Next::Under(access, Box::new(move |engine, granted| step(engine, granted).then(follow)))
            }
            Next::Act(pace, step) => Next::Act(pace, Box::new(move |engine| step(engine).then(follow))),
            Next::Linked(links, limit, step) => {
                Next::Linked(links, limit, Box::new(move |engine, missing| step(engine, missing).then(follow)))
            }
            Next::Long(step) => Next::Long(Box::new(move |engine| step(engine).then(follow))),
            Next::Together(parts, join) => {
                Next::Together(parts, Box::new(move |engine, results| join(engine, results).then(follow)))
            }
            Next::Parked(wait, next) => Next::Parked(wait, Box::new(next.then(follow))),
        }
    }

    /// The same chain with another result.
    pub fn map<U: Send + 'static>(self, change: impl FnOnce(T) -> U + Send + 'static) -> Next<U> {
        self.then(move |value| Next::Done(change(value)))
    }
}

impl From<Key> for Wait {
    fn from(key: Key) -> Wait {
        Wait::Key(key)
    }
}
