//! Restores missing links under `/dev/stratis`.
//!
//! udev makes the links when it is asked, and may lose them again: one of its workers is killed,
//! its database is deleted, an event gets lost. So links are looked at when an event of a device
//! says that it has none, and with each check of a pool. Missing links are asked for again. Nobody
//! waits for them here.
//!
//! Each new filesystem causes events without a link, before udev has been asked for the link. So an
//! event says nothing as long as the filesystem is in the making or a request waits for its link
//! (`engine::awaited_links`).

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        pool_ref::PoolRef,
    },
    engine::{
        Engine, dm_names,
        pool::{Filesystem, Pool},
        request::{Access, Granted, Mode, Step},
    },
    platform::Announcement,
};

/// A missing link is asked for after 1, 2, 4, 8 and so on looks in a row that found it missing;
/// from this number of looks on, only at its multiples. A udev that cannot make links must not be
/// kept busy.
const LOOKS_MAX: u32 = 64;

/// What udev is told about a filesystem.
pub(super) fn announcement(pool: &Pool, filesystem: &Filesystem) -> Announcement {
    Announcement {
        number: filesystem.number,
        filesystem: filesystem.record.uuid,
        pool_name: pool.recorded_name(),
        name: filesystem.name.clone(),
    }
}

/// Asks for the link of the filesystem on a device-mapper device that has none, if the filesystem
/// belongs to a running pool.
pub(super) fn of_device(dm_name: &str) -> Step<()> {
    match dm_names::filesystem_of(dm_name) {
        Some((pool, filesystem)) => Step::brief(move |engine| match engine.links_awaited().contains(filesystem) {
            true => Step::Done(()),
            false => check(pool, Some(filesystem)),
        }),
        None => Step::Done(()),
    }
}

/// Asks for the missing links of a pool's filesystems; with `only`, for the link of that one.
pub fn check(uuid: PoolUuid, only: Option<FsUuid>) -> Step<()> {
    let look = move |engine: &Engine, granted: Granted<'_>| {
        let wanted = wanted(granted, uuid, only);
        if only.is_some_and(|filesystem| engine.links_awaited().contains(filesystem)) {
            return Step::Done(());
        }
        if wanted.is_empty() && only.is_none() {
            engine.links_asked().retain(|(pool, _), _| *pool != uuid);
            return Step::Done(());
        }
        if wanted.is_empty() {
            return Step::Done(());
        }
        // The pool is not locked meanwhile: a look at a thousand links takes milliseconds.
        Step::blocking(move |engine| {
            let (linked, missing): (Vec<_>, Vec<_>) =
                wanted.into_iter().partition(|filesystem| engine.platform().is_linked(filesystem));
            let mut asked = engine.links_asked();
            linked.iter().for_each(|filesystem| {
                asked.remove(&(uuid, filesystem.filesystem));
            });
            let due = |filesystem: &Announcement| {
                let looks = asked.entry((uuid, filesystem.filesystem)).or_default();
                *looks += 1;
                looks.is_power_of_two() && *looks < LOOKS_MAX || *looks % LOOKS_MAX == 0
            };
            let due: Vec<FsUuid> = missing.into_iter().filter(due).map(|filesystem| filesystem.filesystem).collect();
            drop(asked);
            if due.is_empty() { Step::Done(()) } else { ask_again(uuid, due) }
        })
    };
    Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), look)
}

/// Asks for links again, under the pool's lock. Thus udev is told names in the order in which they
/// are given: if a filesystem is also being renamed, the last name that udev hears is the valid
/// one.
fn ask_again(uuid: PoolUuid, due: Vec<FsUuid>) -> Step<()> {
    Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |engine, granted| {
        let mut missing = wanted(granted, uuid, None);
        missing.retain(|filesystem| due.contains(&filesystem.filesystem) && !engine.platform().is_linked(filesystem));
        if missing.is_empty() {
            return Step::Done(());
        }
        for filesystem in &missing {
            log::warn!("the link {} is missing; asking udev for it", filesystem.link().display());
        }
        if let Err(error) = engine.platform().announce(&missing) {
            log::warn!("could not tell udev of filesystems of pool {uuid}: {error}");
        }
        Step::Done(())
    })
}

/// The links that should exist.
fn wanted(granted: Granted<'_>, uuid: PoolUuid, only: Option<FsUuid>) -> Vec<Announcement> {
    let Ok(pool) = super::readable(granted, uuid) else { return Vec::new() };
    let filesystems = pool.filesystems.values().filter(|filesystem| only.is_none_or(|id| id == filesystem.record.uuid));
    filesystems.map(|filesystem| announcement(pool, filesystem)).collect()
}
