//! The check of a pool: how full it is, and the growth of its thin pool (`docs/spec/engine/storage-stack.md` §7.6, 7.7). Asked
//! for by events of device-mapper, by time, and after everything that brings space.
//!
//! # Order, and why it survives a power cut
//!
//! Space is recorded as the thin pool's before the kernel may use it. With the order reversed, the kernel could put data
//! into blocks that no record gives to the thin pool; after a power cut a thin pool without these blocks would be set up, and
//! what was synced to them would be lost. In the order chosen a cut leaves a record that is ahead of the thin pool's own
//! idea of its size, and to set up a thin pool on devices larger than it knows is just what extends it.
//!
//! So the write of the pool's metadata decides, and from then on the way is forward: tables that could not be put in place
//! now ([`Pool::is_behind`]) are put in place by the next check, or by the next daemon that adopts the stack. There is a
//! way back only from a record of which the kernel makes no table, now or ever, and has seen nothing.
//!
//! # What is done where
//!
//! The pool is held alone for one look at the status, one write of metadata and a few swaps of tables; I/O stops only
//! for the swap of each table, which has been loaded before. The need for metadata is found out by a program, and so
//! without a lock, once for each size of the pool and each filesystem limit. Data does not wait for that: it grows
//! before, except by what metadata may need.

use std::time::Duration;

use crate::{
    base::{ids::PoolUuid, units::Sectors},
    engine::{
        Engine,
        claims::Key,
        error::{Error, Result},
        layout,
        plan::{
            growth::{self, Exhausted},
            sizes,
            watching::{self, Watched, Watching},
        },
        pool::Pool,
        request::{Granted, Next},
        thin_devices::{self, thin_metadata_size},
        thin_growth::{carry_out, facts, fill, follow},
        thin_status::{PoolStatus, State},
    },
    platform::Platform,
};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All, also what each filesystem uses, as clients see it.
    Whole,
    /// What must not run out. The time since the look before is that for which it asked to be looked at again.
    Space,
}

/// Checks a pool; what goes wrong is logged. Filesystems are checked by
/// [`check_filesystems`](super::check_filesystems), which may take longer.
pub fn check_pool(uuid: PoolUuid) -> Next<()> {
    check_now(uuid).map(move |checked| note(uuid, &checked))
}

fn note(uuid: PoolUuid, checked: &Result<()>) {
    if let Err(error) = checked {
        log::warn!("check of pool {uuid}: {}", error.sentence());
    }
}

/// As [`check_pool`], and tells what went wrong. A pool that is gone, or must not be changed, is not checked.
pub fn check_now(uuid: PoolUuid) -> Next<Result<()>> {
    Next::write(uuid, move |engine, granted| {
        let Checked { result, unknown, .. } = check_as_known(engine, granted, uuid, Depth::Whole);
        match unknown {
            None => Next::Done(result),
            Some(asked) => learn_need(uuid, asked).map(|learnt| result.and(learnt)),
        }
    })
}

/// Checks a pool and then its filesystems; what goes wrong is logged. `checked` is called in between, after all that is quick:
/// programs may have to wait for others of other pools, and an XFS that is extended may wait for space that only the next
/// check of the pool brings. It is told after which time to look again, if no event will tell that somebody writes.
pub fn check_all(uuid: PoolUuid, depth: Depth, checked: impl FnOnce(Option<Duration>) + Send + 'static) -> Next<()> {
    let pool = Next::write(uuid, move |engine, granted| {
        let Checked { result, unknown, look_again } = check_as_known(engine, granted, uuid, depth);
        note(uuid, &result);
        checked(look_again);
        // Asked for once, however often the pool is checked before it is told.
        let asked = unknown.and_then(|asked| Some((asked, engine.claims().claim([Key::Need(uuid)]).ok()?)));
        match asked {
            None => Next::Done(()),
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

/// What a check with what is known of a pool has come to.
struct Checked {
    result: Result<()>,
    /// For which size and how many filesystems the need for metadata is not known.
    unknown: Option<(Sectors, u64)>,
    /// After which time the pool is to be looked at again.
    look_again: Option<Duration>,
}

/// Checks a pool with what is known of it.
fn check_as_known(engine: &Engine, granted: Granted<'_>, uuid: PoolUuid, depth: Depth) -> Checked {
    let nothing = Checked { result: Ok(()), unknown: None, look_again: None };
    let Ok(pool) = super::writable(granted, uuid) else { return nothing };
    if depth == Depth::Whole {
        pool.make_sure(engine.platform());
    }
    if pool.check_changes().is_err() {
        return nothing;
    }
    let asked = (pool.usable_size(), pool.fs_limit());
    let needed = known_need(pool);
    let result = check(engine.platform(), pool, needed, depth);
    Checked { result, unknown: needed.is_none().then_some(asked), look_again: pool.look_again }
}

/// The need for metadata, if it has been found out for the pool as it is.
fn known_need(pool: &Pool) -> Option<Sectors> {
    let asked = (pool.usable_size(), pool.fs_limit());
    pool.metadata_needed.filter(|(known, _)| *known == asked).map(|(_, needed)| needed)
}

/// Whether the thin pool has free data blocks. If not it is given some first, as far as there is something to give.
///
/// # Errors
/// When it does not say.
pub(super) fn has_data_space(platform: &dyn Platform, pool: &mut Pool) -> Result<bool> {
    if pool.thin_pool_status(platform)?.state != State::OutOfDataSpace {
        return Ok(true);
    }
    let needed = known_need(pool);
    note(pool.uuid(), &check(platform, pool, needed, Depth::Space));
    Ok(pool.thin_pool_status(platform)?.state != State::OutOfDataSpace)
}

/// Finds out how much metadata a thin pool of this size needs, then checks the pool once more.
fn learn_need(uuid: PoolUuid, asked: (Sectors, u64)) -> Next<Result<()>> {
    Next::act(move |engine| {
        let needed = match thin_metadata_size(engine.platform(), asked.0, asked.1) {
            Ok(needed) => needed,
            Err(error) => return Next::Done(Err(error)),
        };
        Next::write(uuid, move |_, granted| {
            let Ok(pool) = super::writable(granted, uuid) else { return Next::Done(Ok(())) };
            pool.metadata_needed = Some((asked, needed));
            check_now(uuid)
        })
    })
}

/// The chain, and if `brings` says that it has brought space to the pool, a check that uses it. The result waits for the check
/// but does not depend on it: what was asked for is done.
pub(super) fn and_use<T: Send + 'static>(
    uuid: PoolUuid,
    chain: Next<Result<T>>,
    brings: impl FnOnce(&T) -> bool + Send + 'static,
) -> Next<Result<T>> {
    chain.then(move |result| match result.as_ref().is_ok_and(brings) {
        true => check_pool(uuid).map(|()| result),
        false => Next::Done(result),
    })
}

fn check(platform: &dyn Platform, pool: &mut Pool, metadata_needed: Option<Sectors>, depth: Depth) -> Result<()> {
    let mut since = pool.look_again.filter(|_| depth == Depth::Space).unwrap_or_default();
    loop {
        // Read once and handed on, as long as nothing is done in between that changes it. That it is a moment older than what is
        // seen of the filesystems brings the mark, and so the next look, forward at most.
        let mut status = None;
        let checked = grow(platform, pool, metadata_needed, &mut status);
        // Also when something failed: clients see what there is.
        let status = match depth {
            Depth::Whole => pool.refresh(platform, status),
            Depth::Space => pool.refresh_thin_pool(platform, status),
        };
        if let Some(status) = &status {
            pool.note_use(status.data_used, std::mem::take(&mut since));
        }
        thin_devices::judge_thin_pool(pool, status.as_ref());
        // Who writes faster than is looked has the next look at once: past the new mark already, there may be no event.
        let watched = pool.watched().collect();
        if !arm_or_later(platform, pool, status, watched) || checked.is_err() {
            return checked;
        }
    }
}

/// Puts the mark in place at which the kernel tells that these filesystems have to be looked at, unless it comes before that
/// already, or it is better to look again after some time; an error is logged. `status` is the thin pool's, where it is
/// known. `true`: the mark was passed while it was put in place.
pub(super) fn arm_or_later(
    platform: &dyn Platform,
    pool: &mut Pool,
    status: Option<PoolStatus>,
    watched: Vec<Watched>,
) -> bool {
    arm(platform, pool, status, watched).unwrap_or_else(|error| {
        let what = error.sentence();
        log::warn!("pool {}: filesystems are looked at by time only until the next check: {what}", pool.name());
        false
    })
}

fn arm(platform: &dyn Platform, pool: &mut Pool, status: Option<PoolStatus>, watched: Vec<Watched>) -> Result<bool> {
    pool.look_again = None;
    let status = status.map_or_else(|| pool.thin_pool_status(platform), Ok)?;
    if status.state != State::ReadWrite || status.needs_check || pool.is_behind || pool.check_changes().is_err() {
        return Ok(false);
    }
    let usual = sizes::low_water(layout::total(&pool.meta.flex_devs.thin_data_dev));
    let free = status.data_total.saturating_sub(status.data_used);
    let now = pool.low_water.unwrap_or(usual);
    let facts = watching::Pool {
        mark: now,
        usual,
        free,
        devices: pool.filesystems.len() as u64,
        // The first mark of all has not been passed by anybody.
        quiet: if now == usual { Duration::MAX } else { pool.quiet },
    };
    let Watching { mark, look_again } = watching::watch(&facts, watched);
    pool.look_again = look_again;
    if mark == now {
        return Ok(false);
    }
    pool.quiet = Duration::ZERO;
    let before = pool.low_water.replace(mark);
    pool.stack.put(platform, &pool.shape().thin_pool()).inspect_err(|_| {
        pool.low_water = before;
        // It may even have been left suspended.
        pool.is_behind = true;
    })?;
    let status = pool.thin_pool_status(platform)?;
    Ok(mark < free && status.data_total.saturating_sub(status.data_used) <= mark)
}

/// Lets the thin pool grow. `known` is its status afterwards, if that has been read and not been changed since.
fn grow(
    platform: &dyn Platform,
    pool: &mut Pool,
    metadata_needed: Option<Sectors>,
    known: &mut Option<PoolStatus>,
) -> Result<()> {
    let mut status = pool.thin_pool_status(platform);
    // Whatever is recorded for it, the kernel does not use it; the next start of the pool will. One that is merely out of
    // metadata space uses what it is given.
    if status.as_ref().is_ok_and(PoolStatus::is_damaged) {
        *known = status.ok();
        return Ok(());
    }
    if pool.is_behind {
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
    pool.metadata_exhausted |= plan.exhausted.is_some();
    let pool = pool.name().clone();
    match plan.exhausted {
        Some(Exhausted::Devices) => Err(Error::MetadataExhausted { pool }),
        Some(Exhausted::Promised) => Err(Error::MetadataPromised { pool }),
        None => fill.map(drop),
    }
}
