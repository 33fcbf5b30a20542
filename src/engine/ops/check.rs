//! The check of a pool: how full it is, and the growth of its thin pool
//! (`docs/spec/engine/storage-stack.md` §7.6, 7.7). Device-mapper events, timers, and every
//! operation that brings space ask for a check.
//!
//! # Order, and why it survives a power cut
//!
//! Space is recorded as the thin pool's before the kernel may use it. In the reverse order, the
//! kernel could put data into blocks that no record gives to the thin pool. After a power cut, the
//! thin pool would be set up without these blocks, and synced data in them would be lost. In the
//! chosen order, a power cut leaves a record that is ahead of the size that the thin pool itself
//! knows. Setting up the thin pool on larger devices than it knows is exactly what extends it.
//!
//! So the write of the pool metadata is the commit point, and from then on the growth is completed,
//! not undone. Tables that could not be put in place now (`GrowthMonitor::is_behind`) are put in
//! place by the next check, or by the next daemon that adopts the stack. A record is taken back
//! only if the kernel refuses its table for good and has used none of the space.
//!
//! # Locks
//!
//! A check holds the pool exclusively to read the status, write the metadata once and swap a few
//! tables. I/O stops only for the swap of each table, which has been loaded before. A program
//! computes the need for thin metadata, so it runs without a lock, once for each size of the pool
//! and each filesystem limit. Data does not wait for the result: it grows before, but leaves the
//! space that metadata may need.

use std::time::Duration;

use crate::{
    base::{ids::PoolUuid, units::Sectors},
    engine::{
        Engine,
        claims::Key,
        error::{Error, Result},
        layout,
        ops::pool_access::writable,
        plan::{
            growth::{self, Exhausted},
            sizes,
            watching::{self, Watched, Watching},
        },
        pool::Pool,
        request::{Granted, Step},
        thin_devices::{self, thin_metadata_size},
        thin_growth::{carry_out, facts, fill, follow},
        thin_status::{PoolStatus, State},
    },
    platform::Platform,
};

/// How much a check covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything, including the use of each filesystem that clients see.
    Whole,
    /// Only the space that must not run out. The time since the last check is the time after which
    /// that check asked for another.
    Space,
}

/// Checks a pool; errors are logged. [`check_filesystems`](super::check_filesystems) checks its
/// filesystems, which may take longer.
pub fn check_pool(uuid: PoolUuid) -> Step<()> {
    check_now(uuid).map(move |checked| note(uuid, &checked))
}

fn note(uuid: PoolUuid, checked: &Result<()>) {
    if let Err(error) = checked {
        log::warn!("check of pool {uuid} failed: {}", error.sentence());
    }
}

/// As [`check_pool`], but returns the error. Skips a pool that is gone or must not be changed.
pub fn check_now(uuid: PoolUuid) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let Checked { result, unknown, .. } = check_as_known(engine, granted, uuid, Depth::Whole);
        match unknown {
            None => Step::Done(result),
            Some(asked) => learn_need(uuid, asked).map(|learnt| result.and(learnt)),
        }
    })
}

/// Checks a pool and then its filesystems; errors are logged. `checked` is called between the two,
/// after everything that is quick: programs may have to wait for programs of other pools, and an
/// XFS that is being extended may wait for space that only the next check of the pool brings.
/// `checked` gets the time after which to check again, if no event will report writes.
pub fn check_all(uuid: PoolUuid, depth: Depth, checked: impl FnOnce(Option<Duration>) + Send + 'static) -> Step<()> {
    let pool = Step::write(uuid, move |engine, granted| {
        let Checked { result, unknown, look_again } = check_as_known(engine, granted, uuid, depth);
        note(uuid, &result);
        checked(look_again);
        // One request computes the need, however often the pool is checked before the result is
        // known.
        let asked = unknown.and_then(|asked| Some((asked, engine.claims().claim([Key::Need(uuid)]).ok()?)));
        match asked {
            None => Step::Done(()),
            Some((asked, claim)) => learn_need(uuid, asked).map(move |learnt| {
                note(uuid, &learnt);
                drop(claim);
            }),
        }
    });
    let filesystems = pool.then(move |()| super::check_filesystems(uuid));
    match depth {
        Depth::Whole => filesystems.then(move |()| super::check_links(uuid, None)),
        Depth::Space => filesystems,
    }
}

/// The result of a check that uses what is already known about a pool.
struct Checked {
    result: Result<()>,
    /// The pool size and number of filesystems whose need for metadata is unknown.
    unknown: Option<(Sectors, u64)>,
    /// The time after which the pool has to be checked again.
    look_again: Option<Duration>,
}

/// Checks a pool, using what is already known about it.
fn check_as_known(engine: &Engine, granted: Granted<'_>, uuid: PoolUuid, depth: Depth) -> Checked {
    let nothing = Checked { result: Ok(()), unknown: None, look_again: None };
    let Ok(pool) = writable(granted, uuid) else { return nothing };
    if depth == Depth::Whole {
        pool.make_sure(engine.platform());
    }
    if pool.check_changes().is_err() {
        return nothing;
    }
    let asked = pool.metadata_demand();
    let needed = pool.growth.metadata_needed(asked);
    let result = check(engine.platform(), pool, needed, depth);
    Checked { result, unknown: needed.is_none().then_some(asked), look_again: pool.growth.look_again() }
}

/// Whether the thin pool has free data blocks. If it has none, it first gets some, as far as the
/// pool has space to give.
///
/// # Errors
/// When the status cannot be read.
pub(super) fn has_data_space(platform: &dyn Platform, pool: &mut Pool) -> Result<bool> {
    if pool.thin_pool_status(platform)?.state != State::OutOfDataSpace {
        return Ok(true);
    }
    let needed = pool.growth.metadata_needed(pool.metadata_demand());
    note(pool.uuid(), &check(platform, pool, needed, Depth::Space));
    Ok(pool.thin_pool_status(platform)?.state != State::OutOfDataSpace)
}

/// Computes how much metadata a thin pool of this size needs, then checks the pool again.
fn learn_need(uuid: PoolUuid, asked: (Sectors, u64)) -> Step<Result<()>> {
    Step::blocking(move |engine| {
        let needed = match thin_metadata_size(engine.platform(), asked.0, asked.1) {
            Ok(needed) => needed,
            Err(error) => return Step::Done(Err(error)),
        };
        Step::write(uuid, move |_, granted| {
            let Ok(pool) = writable(granted, uuid) else { return Step::Done(Ok(())) };
            pool.growth.note_metadata_needed(asked, needed);
            check_now(uuid)
        })
    })
}

/// Runs the chain. If `brings` says that the chain has brought space to the pool, a check that uses
/// the space follows. The result waits for the check but does not depend on it: the requested
/// change has been made.
pub(super) fn and_use<T: Send + 'static>(
    uuid: PoolUuid,
    chain: Step<Result<T>>,
    brings: impl FnOnce(&T) -> bool + Send + 'static,
) -> Step<Result<T>> {
    chain.then(move |result| match result.as_ref().is_ok_and(brings) {
        true => check_pool(uuid).map(|()| result),
        false => Step::Done(result),
    })
}

fn check(platform: &dyn Platform, pool: &mut Pool, metadata_needed: Option<Sectors>, depth: Depth) -> Result<()> {
    let mut since = pool.growth.look_again().filter(|_| depth == Depth::Space).unwrap_or_default();
    loop {
        // The status is read once and passed on, as long as nothing in between changes it. It is
        // slightly older than the figures of the filesystems. At worst, that makes the low-water
        // mark, and so the next check, come earlier.
        let mut status = None;
        let checked = grow(platform, pool, metadata_needed, &mut status);
        // Refresh after a failure, too: clients see the actual state.
        let status = match depth {
            Depth::Whole => pool.refresh(platform, status),
            Depth::Space => pool.refresh_thin_pool(platform, status),
        };
        if let Some(status) = &status {
            pool.growth.note_use(status.data_used, std::mem::take(&mut since));
        }
        thin_devices::judge_thin_pool(pool, status.as_ref());
        // If writes outpace the checks, check again at once: the use may already be past the new
        // mark, so that the mark would raise no event.
        let watched = pool.watched().collect();
        if !arm_or_later(platform, pool, status, watched) || checked.is_err() {
            return checked;
        }
    }
}

/// Sets the low-water mark at which the kernel reports that these filesystems have to be checked.
/// The mark stays if the kernel reports earlier anyway, or if it is better to check again after
/// some time. Errors are logged. `status` is that of the thin pool, if known. `true`: the use
/// passed the mark while the mark was put in place.
pub(super) fn arm_or_later(
    platform: &dyn Platform,
    pool: &mut Pool,
    status: Option<PoolStatus>,
    watched: Vec<Watched>,
) -> bool {
    arm(platform, pool, status, watched).unwrap_or_else(|error| {
        let what = error.sentence();
        log::warn!("pool {}: falling back to periodic polling until the next check: {what}", pool.name());
        false
    })
}

fn arm(platform: &dyn Platform, pool: &mut Pool, status: Option<PoolStatus>, watched: Vec<Watched>) -> Result<bool> {
    pool.growth.set_look_again(None);
    let status = status.map_or_else(|| pool.thin_pool_status(platform), Ok)?;
    if status.state != State::ReadWrite
        || status.needs_check
        || pool.growth.is_behind()
        || pool.check_changes().is_err()
    {
        return Ok(false);
    }
    let usual = sizes::low_water(layout::total(&pool.meta().flex_devs.thin_data_dev));
    let free = status.data_total.saturating_sub(status.data_used);
    let now = pool.growth.low_water(usual);
    let facts = watching::WatchFacts {
        mark: now,
        usual,
        free,
        devices: pool.filesystems.len() as u64,
        // The very first mark cannot have been passed.
        quiet: if now == usual { Duration::MAX } else { pool.growth.quiet() },
    };
    let Watching { mark, look_again } = watching::watch(&facts, watched);
    pool.growth.set_look_again(look_again);
    if mark == now {
        return Ok(false);
    }
    let before = pool.growth.move_low_water(mark);
    pool.stack.put(platform, &pool.shape().thin_pool()).inspect_err(|_| {
        pool.growth.take_back_low_water(before);
    })?;
    let status = pool.thin_pool_status(platform)?;
    Ok(mark < free && status.data_total.saturating_sub(status.data_used) <= mark)
}

/// Lets the thin pool grow. `known` is the status after that, if it has been read and nothing has
/// changed it since.
fn grow(
    platform: &dyn Platform,
    pool: &mut Pool,
    metadata_needed: Option<Sectors>,
    known: &mut Option<PoolStatus>,
) -> Result<()> {
    let mut status = pool.thin_pool_status(platform);
    // A damaged thin pool can use space that is recorded for it only after the next start of the
    // pool. A thin pool that is only out of metadata space uses it at once.
    if status.as_ref().is_ok_and(PoolStatus::is_damaged) {
        *known = status.ok();
        return Ok(());
    }
    if pool.growth.is_behind() {
        follow(platform, pool)?;
        status = pool.thin_pool_status(platform);
    }
    if let Ok(overtaken) = &status {
        if thin_devices::show_sizes(platform, pool, overtaken)? {
            status = pool.thin_pool_status(platform);
        }
    }
    let read = status.as_ref().ok().copied();
    let fill = status.map(|status| fill(&status));
    let plan = growth::pool(&facts(pool, metadata_needed, fill.as_ref().ok().copied()));
    if !carry_out(platform, pool, &plan)? {
        *known = read;
    }
    if plan.exhausted.is_some() {
        pool.growth.note_metadata_exhausted();
    }
    let pool = pool.name().clone();
    match plan.exhausted {
        Some(Exhausted::Devices) => Err(Error::MetadataExhausted { pool }),
        Some(Exhausted::Promised) => Err(Error::MetadataPromised { pool }),
        None => fill.map(drop),
    }
}
