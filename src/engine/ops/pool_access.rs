//! How operations get at a pool: steps that start with the pool or end with the reason why it is
//! not available, and the wait for sole use of a pool.

use crate::{
    base::ids::PoolUuid,
    engine::{
        Engine,
        claims::{Claim, Key},
        error::{Error, Result},
        pool::Pool,
        request::{Granted, Step, Wait},
    },
};

/// The pool, for a step that asked to read it.
pub(super) fn readable(granted: Granted<'_>, uuid: PoolUuid) -> Result<&Pool> {
    match granted {
        Granted::Read(pool) if !pool.is_gone() => Ok(pool),
        Granted::Write(pool) if !pool.is_gone() => Ok(pool),
        _ => Err(Error::NoPool(uuid)),
    }
}

/// The pool, for a step that asked to change it.
pub(super) fn writable(granted: Granted<'_>, uuid: PoolUuid) -> Result<&mut Pool> {
    match granted {
        Granted::Write(pool) if !pool.is_gone() => Ok(pool),
        _ => Err(Error::NoPool(uuid)),
    }
}

/// The pool, for a step that takes it down and has drained it. If the pool's devices have already
/// been given up, a request that was ending the pool panicked; the next request to drain the pool
/// ends it.
pub(super) fn drained(granted: Granted<'_>, uuid: PoolUuid) -> Result<&mut Pool> {
    match granted {
        Granted::Write(pool) => {
            pool.set_gone(false);
            Ok(pool)
        }
        _ => Err(Error::NoPool(uuid)),
    }
}

/// A step that reads a pool.
pub(super) fn read_pool<T: Send + 'static>(
    uuid: PoolUuid,
    step: impl FnOnce(&Engine, &Pool) -> Step<Result<T>> + Send + 'static,
) -> Step<Result<T>> {
    Step::read(uuid, move |engine, granted| match readable(granted, uuid) {
        Ok(pool) => step(engine, pool),
        Err(error) => Step::Done(Err(error)),
    })
}

/// A step that changes a pool.
pub(super) fn write_pool<T: Send + 'static>(
    uuid: PoolUuid,
    step: impl FnOnce(&Engine, &mut Pool) -> Step<Result<T>> + Send + 'static,
) -> Step<Result<T>> {
    Step::write(uuid, move |engine, granted| match writable(granted, uuid) {
        Ok(pool) => step(engine, pool),
        Err(error) => Step::Done(Err(error)),
    })
}

/// Makes a change to a pool that takes one step. If the change fails, the pool is restricted as the
/// error demands.
pub(super) fn change<T: Send + 'static>(
    uuid: PoolUuid,
    change: impl FnOnce(&Engine, &mut Pool) -> Result<T> + Send + 'static,
) -> Step<Result<T>> {
    write_pool(uuid, move |engine, pool| {
        let changed = change(engine, pool);
        Step::Done(changed.inspect_err(|error| pool.note_failure(error)))
    })
}

/// Waits until a key is no longer `taken`, and then continues with `again`. It does not wait for a
/// re-encryption job, which may take hours. A request that uses the pool alone never takes hours.
pub(super) fn unless_at_work<T: Send + 'static>(
    uuid: PoolUuid,
    taken: Wait,
    again: Step<Result<T>>,
) -> Step<Result<T>> {
    if taken == Wait::Key(Key::Drain(uuid)) {
        return Step::parked(taken, again);
    }
    read_pool(uuid, move |_, pool| match pool.check_no_job() {
        Ok(()) => Step::parked(taken, again),
        Err(error) => Step::Done(Err(error)),
    })
}

/// The pool for a step with sole use of it: [`writable`] or [`drained`].
type Find = for<'a> fn(Granted<'a>, PoolUuid) -> Result<&'a mut Pool>;

/// A step with sole use of a pool. It gets the claim on the pool's drain: while the claim is held,
/// new work in the pool waits. The step starts when the work under way in the pool has ended, or at
/// once when there is no pool.
pub(super) fn drain_pool<T: Send + 'static>(
    uuid: PoolUuid,
    find: Find,
    step: impl FnOnce(&Engine, Result<&mut Pool>, Claim) -> Step<T> + Send + 'static,
) -> Step<T> {
    Step::brief(move |engine| match engine.claims().claim([Key::Drain(uuid)]) {
        Ok(drain) => when_idle(uuid, find, drain, step),
        Err(taken) => Step::parked(taken, drain_pool(uuid, find, step)),
    })
}

fn when_idle<T: Send + 'static>(
    uuid: PoolUuid,
    find: Find,
    drain: Claim,
    step: impl FnOnce(&Engine, Result<&mut Pool>, Claim) -> Step<T> + Send + 'static,
) -> Step<T> {
    Step::alone(uuid, move |engine, granted| match find(granted, uuid) {
        Ok(_) if engine.claims().work_in(uuid) => Step::parked(Wait::Idle(uuid), when_idle(uuid, find, drain, step)),
        found => step(engine, found, drain),
    })
}
