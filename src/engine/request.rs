//! How an operation asks for what it needs next: a lock, time without one, parallel work, or a
//! wait.
//!
//! An operation is a chain of steps. The engine only says what the next step needs ([`Step`]). It
//! does not decide who grants locks, on which thread a step runs, or what happens while the step
//! waits. The daemon runs chains over the lock of the `threads` crate and its workers; a test can
//! run the same chains in a plain loop.
//!
//! This file and `engine/mod.rs` depend on each other, the only such cycle in the engine: a step
//! gets the [`Engine`], and the engine keeps the chains that steps have started in the background.
//!
//! Rules:
//! - A step under a lock ([`Step::Locked`]) is quick: memory, device-mapper calls, metadata writes.
//!   Formatting, checking and waiting each need a [`Step::Blocking`], which names what the step may
//!   block if it hangs ([`Share`]).
//! - The lock is released between steps. What must not change meanwhile is *claimed* (a name, a
//!   device, a pool) under the lock beforehand. The step that commits or undoes gives the claim
//!   back.
//! - A step that finds the keys it needs claimed by another request returns [`Step::Parked`] with
//!   what it waits for. The chain continues when that wait ends; it should start again with the
//!   step that claims. Requests that wait for the same claim are woken one by one, in the order of
//!   their arrival: a request is woken once the step of the request before it has ended without
//!   taking the claim again.

use std::{any::Any, path::PathBuf, time::Duration};

pub use crate::engine::claims::{Key, Wait};
use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{Engine, pool::Pool},
    platform::PendingLinks,
};

/// Whether other requests may have access at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Read access: other requests may read too.
    Shared,
    /// Write access: no other request has access.
    Exclusive,
}

/// What a step must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access {
    /// One pool.
    Pool(PoolRef, Mode),
    /// The table of all pools; exclusive access to insert, remove or rename.
    Table(Mode),
}

/// The table of running pools, as a step under [`Access::Table`] sees it.
pub trait Table<P = Pool> {
    /// The running pools: identifier and name, in no particular order.
    fn list(&self) -> Vec<(PoolUuid, Name)>;
    /// Returns one pool.
    fn pool(&self, which: &PoolRef) -> Option<&P>;
    /// Adds a pool. Requires exclusive access.
    ///
    /// # Errors
    /// Gives the pool back if its identifier or name is taken.
    #[allow(clippy::result_large_err)]
    fn insert(&mut self, pool: P) -> Result<(), P>;
    /// Takes a pool out. Requires exclusive access.
    fn remove(&mut self, uuid: PoolUuid) -> Option<P>;
    /// Moves the pool's entry to the new name. Requires exclusive access; the caller has made sure
    /// that the new name is free.
    fn rename(&mut self, uuid: PoolUuid, name: Name) -> Option<&mut P>;
}

/// What a step gets under its lock.
pub enum Granted<'a, P = Pool> {
    /// Shared access to the pool.
    Read(&'a P),
    /// Exclusive access to the pool.
    Write(&'a mut P),
    /// No running pool has that name or identifier.
    NoPool,
    /// The table, shared or exclusive as requested.
    Table(&'a mut dyn Table<P>),
}

/// A step that runs under a lock.
pub type LockedStep<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E, Granted<'_, P>) -> Step<T, E, P> + Send>;
/// A step that runs without a lock.
pub type BlockingStep<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E) -> Step<T, E, P> + Send>;
/// One of several parts of slow work that may run side by side. Only the join sees its result.
pub type Part<E = Engine> = Box<dyn FnOnce(&E) -> Box<dyn Any + Send> + Send>;
/// The step that follows when all parts are done. It gets their results in the order of the parts;
/// a part that panicked gives `None`.
pub type Join<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E, Vec<Option<Box<dyn Any + Send>>>) -> Step<T, E, P> + Send>;

/// The step that follows when the links exist or will not be made. It gets the links that are
/// missing.
pub type LinkedStep<T, E = Engine, P = Pool> = Box<dyn FnOnce(&E, Vec<PathBuf>) -> Step<T, E, P> + Send>;

/// How long a step without a lock may take, and what it may block if it hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pace {
    /// Work too short for people to notice: memory, the keyring, a lookup of names. A brief step
    /// never waits for slow steps.
    Brief,
    /// Disks, programs, the network. The share says what the step blocks if it hangs; `None` means
    /// the pool that the request has been about so far.
    Slow(Option<Share>),
}

/// What a step may block if it hangs. All other work continues.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Share {
    /// Other work on this pool.
    Pool(PoolUuid),
    /// Other work on this device, which belongs to no pool yet.
    Device(PathBuf),
}

/// What a chain needs next. The chains of the engine work on its pools. Code that runs chains does
/// not depend on the pool type, so its tests use a smaller one.
pub enum Step<T, E = Engine, P = Pool> {
    /// Nothing: this is the result.
    Done(T),
    /// A lock, then this step under it.
    Locked(Access, LockedStep<T, E, P>),
    /// Time without a lock.
    Blocking(Pace, BlockingStep<T, E, P>),
    /// Links that udev has been asked for. The chain waits for at most this time; no thread waits
    /// meanwhile.
    Linked(Box<dyn PendingLinks>, Duration, LinkedStep<T, E, P>),
    /// As `Blocking`, for work that may take hours: the step gets a dedicated thread, so that it
    /// does not occupy a worker.
    Background(BlockingStep<T, E, P>),
    /// Time without a lock for parts that may run side by side, then the join.
    Parallel(Vec<Part<E>>, Join<T, E, P>),
    /// Another request holds the claim. The chain continues when the wait ends.
    Parked(Wait, Box<Step<T, E, P>>),
}

/// Asks for the lock again when no request has sole use of the pool any more.
fn until_ended<T: Send + 'static>(
    pool: &Pool,
    again: Access,
    step: impl FnOnce(&Engine, Granted<'_>) -> Step<T> + Send + 'static,
) -> Step<T> {
    Step::parked(Key::Drain(pool.uuid()), Step::locked(again, step))
}

/// Whether a request is ending the pool now. If that request has panicked, no request is ending the
/// pool, and the pool is still in the table.
fn ends(engine: &Engine, pool: &Pool) -> bool {
    pool.is_gone() && engine.claims().is_claimed(&Key::Drain(pool.uuid()))
}

impl<T: Send + 'static> Step<T> {
    /// Asks for a lock. The step does not see a pool that another request is ending. Such a pool
    /// has given up its devices, but it is still in the table and in the published state, so the
    /// next answer could contradict any answer about it. The step waits until the end has been
    /// published.
    pub fn locked(access: Access, step: impl FnOnce(&Engine, Granted<'_>) -> Step<T> + Send + 'static) -> Step<T> {
        let again = access.clone();
        Step::Locked(
            access,
            Box::new(move |engine, granted| match &granted {
                Granted::Read(pool) if ends(engine, pool) => until_ended(pool, again, step),
                Granted::Write(pool) if ends(engine, pool) => until_ended(pool, again, step),
                _ => step(engine, granted),
            }),
        )
    }

    /// Waits until the key is no longer claimed, or until another [`Wait`] ends, and then continues
    /// with `again`.
    pub fn parked(wait: impl Into<Wait>, again: Step<T>) -> Step<T> {
        Step::Parked(wait.into(), Box::new(again))
    }

    /// Asks for exclusive access to a pool for which the caller holds [`Key::Drain`], whether or
    /// not the pool is ending.
    pub fn alone(pool: PoolUuid, step: impl FnOnce(&Engine, Granted<'_>) -> Step<T> + Send + 'static) -> Step<T> {
        Step::Locked(Access::Pool(pool.into(), Mode::Exclusive), Box::new(step))
    }

    /// Asks for shared access to a pool.
    pub fn read(
        pool: impl Into<PoolRef>,
        step: impl FnOnce(&Engine, Granted<'_>) -> Step<T> + Send + 'static,
    ) -> Step<T> {
        Step::locked(Access::Pool(pool.into(), Mode::Shared), step)
    }

    /// Asks for exclusive access to a pool.
    pub fn write(
        pool: impl Into<PoolRef>,
        step: impl FnOnce(&Engine, Granted<'_>) -> Step<T> + Send + 'static,
    ) -> Step<T> {
        Step::locked(Access::Pool(pool.into(), Mode::Exclusive), step)
    }

    /// Asks for time without a lock for a slow step on the pool that the request has been about so
    /// far.
    pub fn blocking(step: impl FnOnce(&Engine) -> Step<T> + Send + 'static) -> Step<T> {
        Step::Blocking(Pace::Slow(None), Box::new(step))
    }

    /// Asks for time without a lock for a slow step that may block `share`.
    pub fn slow(share: Share, step: impl FnOnce(&Engine) -> Step<T> + Send + 'static) -> Step<T> {
        Step::Blocking(Pace::Slow(Some(share)), Box::new(step))
    }

    /// Asks for time without a lock for a brief step.
    pub fn brief(step: impl FnOnce(&Engine) -> Step<T> + Send + 'static) -> Step<T> {
        Step::Blocking(Pace::Brief, Box::new(step))
    }

    /// Asks for a dedicated thread, for a step that may take hours.
    pub fn background(step: impl FnOnce(&Engine) -> Step<T> + Send + 'static) -> Step<T> {
        Step::Background(Box::new(step))
    }

    /// Appends another chain, made from the result of this one.
    pub fn then<U: Send + 'static>(self, follow: impl FnOnce(T) -> Step<U> + Send + 'static) -> Step<U> {
        match self {
            Step::Done(value) => follow(value),
            Step::Locked(access, step) => {
                Step::Locked(access, Box::new(move |engine, granted| step(engine, granted).then(follow)))
            }
            Step::Blocking(pace, step) => Step::Blocking(pace, Box::new(move |engine| step(engine).then(follow))),
            Step::Linked(links, limit, step) => {
                Step::Linked(links, limit, Box::new(move |engine, missing| step(engine, missing).then(follow)))
            }
            Step::Background(step) => Step::Background(Box::new(move |engine| step(engine).then(follow))),
            Step::Parallel(parts, join) => {
                Step::Parallel(parts, Box::new(move |engine, results| join(engine, results).then(follow)))
            }
            Step::Parked(wait, next) => Step::Parked(wait, Box::new(next.then(follow))),
        }
    }

    /// The same chain with another result.
    pub fn map<U: Send + 'static>(self, change: impl FnOnce(T) -> U + Send + 'static) -> Step<U> {
        self.then(move |value| Step::Done(change(value)))
    }
}

impl From<Key> for Wait {
    fn from(key: Key) -> Wait {
        Wait::Key(key)
    }
}
