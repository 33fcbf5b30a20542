//! Restores missing links under `/dev/stratis`.
//!
//! udev makes the links on request, and may lose them again: one of its workers is killed, its
//! database is deleted, an event gets lost. So links are checked when an event of a device reports
//! that it has none, and with each check of a pool. Missing links are requested again. No request
//! waits for them here.
//!
//! Each new filesystem causes events without a link before udev has been asked for the link. So an
//! event means nothing as long as the filesystem is being made or a request waits for its link
//! (`engine::awaited_links`).

use std::time::Duration;

use crate::{
    base::ids::{FsUuid, PoolUuid},
    engine::{
        Engine,
        awaited_links::AwaitedMark,
        dm_names,
        ops::pool_access::readable,
        pool::{Filesystem, Pool},
        request::{Granted, Step},
    },
    platform::{Announcement, PendingLinks},
};

/// Longest wait for udev to make the links of filesystems. A machine under load takes tens of
/// milliseconds.
const LINKS_WAIT_MAX: Duration = Duration::from_secs(10);

/// A missing link is requested after 1, 2, 4, 8 and so on checks in a row that found it missing;
/// from this number of checks on, only at its multiples. A udev that cannot make links must not be
/// kept busy.
const LOOKS_MAX: u32 = 64;

/// What the daemon tells udev about a filesystem.
fn announcement(pool: &Pool, filesystem: &Filesystem) -> Announcement {
    Announcement {
        number: filesystem.number,
        filesystem: filesystem.record.uuid,
        pool_name: pool.recorded_name(),
        name: filesystem.name.clone(),
    }
}

/// Requests the link of the filesystem on a device-mapper device that has none, if the filesystem
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

/// Requests the missing links of a pool's filesystems; with `only`, the link of that one.
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
        // The pool is not locked meanwhile: checking a thousand links takes milliseconds.
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
    Step::read(uuid, look)
}

/// Requests links again, under the pool's lock. Thus udev gets names in the order in which they are
/// assigned: if a filesystem is also being renamed, the last name that udev gets is the valid one.
fn ask_again(uuid: PoolUuid, due: Vec<FsUuid>) -> Step<()> {
    Step::read(uuid, move |engine, granted| {
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
    let Ok(pool) = readable(granted, uuid) else { return Vec::new() };
    let filesystems = pool.filesystems.values().filter(|filesystem| only.is_none_or(|id| id == filesystem.record.uuid));
    filesystems.map(|filesystem| announcement(pool, filesystem)).collect()
}

/// Asks udev for the links of filesystems. A failure is only logged: the filesystems exist without
/// their links.
pub(super) fn announce<'a>(
    engine: &Engine,
    pool: &Pool,
    filesystems: impl IntoIterator<Item = &'a Filesystem>,
) -> Option<Box<dyn PendingLinks>> {
    let announcements: Vec<Announcement> =
        filesystems.into_iter().map(|filesystem| announcement(pool, filesystem)).collect();
    let pool_name = &announcements.first()?.pool_name;
    for announcement in announcements.iter().filter(|announcement| announcement.former_link().is_some()) {
        log::warn!(
            "the link of filesystem {} of pool {pool_name} is {}, because udev does not keep the names as they are; \
             rename the pool or the filesystem",
            announcement.name,
            announcement.link().display()
        );
    }
    // Noted before udev can answer.
    let awaited = AwaitedMark::note(engine.links_awaited(), announcements.iter().map(|announced| announced.filesystem));
    let announced = engine.platform().announce(&announcements);
    // Try once more: a user waits for the link, and a second request does no harm.
    announced
        .or_else(|_| engine.platform().announce(&announcements))
        .inspect_err(|error| log::warn!("could not tell udev of filesystems of pool {pool_name}: {error}"))
        .map(|links| awaited.hold(links))
        .ok()
}

/// Returns `value` when the links exist, or when a longer wait would not help.
pub(super) fn when_linked<T: Send + 'static>(links: Option<Box<dyn PendingLinks>>, value: T) -> Step<T> {
    match links {
        None => Step::Done(value),
        Some(links) => Step::Linked(
            links,
            LINKS_WAIT_MAX,
            Box::new(move |_, missing| {
                for missing in missing {
                    log::warn!("udev has not made the link {}", missing.display());
                }
                Step::Done(value)
            }),
        ),
    }
}
