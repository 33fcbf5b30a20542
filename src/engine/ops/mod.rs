//! The operations: each is a chain of steps ([`Step`]) that a client, an event or the daemon's
//! start asks for.
//!
//! Each operation first checks everything that can refuse it. It then claims what it will touch,
//! acts, and ends with one durable write, the commit point. What follows the commit point can be
//! repeated; if it is cut short, the next set-up completes it.

mod bring_up;
mod cache;
mod candidates;
mod check;
mod create_pool;
mod device_event;
mod devices;
mod discover;
mod encryption;
mod filesystems;
mod grow_filesystems;
mod identify;
mod keys;
mod leftovers;
mod limits;
mod links;
mod locate;
mod metadata;
mod pools;
mod read_devices;
mod reencryption;
mod reencryption_job;
mod refresh;
mod snapshot;
mod start;
mod stop;

pub use bring_up::Started;
pub use check::{Depth, check_all, check_now, check_pool};
pub use create_pool::{Created, NewPool, create_pool};
pub use device_event::device_event;
pub use devices::{add_cache_devices, add_data_devices, grow_device, init_cache, set_user_info};
pub use discover::{FirstLook, Labelled, being_set_up, discover, first_look, present_devices};
pub use encryption::{bind, rebind, unbind};
pub use filesystems::{NewFilesystem, create_filesystems, destroy_filesystems, rename_filesystem};
pub use grow_filesystems::{check_filesystems, check_filesystems_now, set_size_limit};
pub use keys::{list_keys, set_key, unset_key};
pub use limits::{set_fs_limit, set_overprovisioning};
pub use links::check as check_links;
pub use metadata::{MetadataCopy, filesystem_metadata, pool_metadata};
pub use pools::{destroy_pool, rename_pool};
pub use reencryption::{decrypt_pool, encrypt_pool, reencrypt_pool};
pub use refresh::refresh;
pub use snapshot::{schedule_revert, snapshot_filesystem};
pub use start::start_pool;
pub use stop::{StopOutcome, stop_pool};

/// How a pool is to be unlocked.
pub use crate::engine::containers::UnlockOptions;
/// What a request for a new pool may contain, in the form that is recorded.
pub use crate::engine::metadata::{IntegritySpec, JOURNAL_UNIT, MetadataVersion, TagSpec};
pub use crate::engine::setup::CacheTier;
/// A passphrase, and the effect of setting it.
pub use crate::platform::keyring::{KeyChange, Secret};

use std::{collections::HashMap, path::PathBuf, time::Duration};

use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{
        Engine,
        awaited_links::AwaitedMark,
        error::{Error, Result},
        pool::{Filesystem, Pool},
        request::{Access, Granted, Key, Mode, Step, Wait},
    },
    platform::{Announcement, DeviceNumber, PendingLinks, Platform},
};

/// Longest wait for udev to make the links of filesystems. A machine under load takes tens of
/// milliseconds.
const LINKS_WAIT_MAX: Duration = Duration::from_secs(10);

/// The pool, for a step that asked to change it.
fn writable(granted: Granted<'_>, uuid: PoolUuid) -> Result<&mut Pool> {
    match granted {
        Granted::Write(pool) if !pool.is_gone() => Ok(pool),
        _ => Err(Error::NoPool(uuid)),
    }
}

/// Makes a change to a pool that takes one step. If the change fails, the pool's availability is
/// set from the error.
fn change<T: Send + 'static>(
    uuid: PoolUuid,
    change: impl FnOnce(&Engine, &mut Pool) -> Result<T> + Send + 'static,
) -> Step<Result<T>> {
    Step::write(uuid, move |engine, granted| {
        let pool = match writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Step::Done(Err(error)),
        };
        let changed = change(engine, pool);
        Step::Done(changed.inspect_err(|error| pool.note_failure(error)))
    })
}

/// Waits until a key is no longer `taken`, and then goes on with `again`. It does not wait for a
/// re-encryption job, which may take hours. A request that uses the pool alone never takes hours.
fn unless_at_work<T: Send + 'static>(uuid: PoolUuid, taken: Wait, again: Step<Result<T>>) -> Step<Result<T>> {
    if taken == Wait::Key(Key::Drain(uuid)) {
        return Step::parked(taken, again);
    }
    Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |_, granted| {
        match readable(granted, uuid).and_then(|pool| pool.check_no_work()) {
            Ok(()) => Step::parked(taken, again),
            Err(error) => Step::Done(Err(error)),
        }
    })
}

/// The pool, for a step that takes it down and has drained it. If the pool's devices have already
/// been given up, a request that was ending the pool panicked; the next request to drain the pool
/// ends it.
fn drained(granted: Granted<'_>, uuid: PoolUuid) -> Result<&mut Pool> {
    match granted {
        Granted::Write(pool) => {
            pool.set_gone(false);
            Ok(pool)
        }
        _ => Err(Error::NoPool(uuid)),
    }
}

/// The pool, for a step that asked to read it.
fn readable(granted: Granted<'_>, uuid: PoolUuid) -> Result<&Pool> {
    match granted {
        Granted::Read(pool) if !pool.is_gone() => Ok(pool),
        Granted::Write(pool) if !pool.is_gone() => Ok(pool),
        _ => Err(Error::NoPool(uuid)),
    }
}

/// Refuses if one of these filesystems is mounted. Reads the mounts once, however many filesystems
/// there are.
fn check_unmounted(platform: &dyn Platform, filesystems: impl Iterator<Item = (Name, DeviceNumber)>) -> Result<()> {
    let filesystems: Vec<(Name, DeviceNumber)> = filesystems.collect();
    let numbers: Vec<DeviceNumber> = filesystems.iter().map(|(_, number)| *number).collect();
    let mut mounts: HashMap<DeviceNumber, Vec<PathBuf>> = HashMap::new();
    for mount in platform.mounts(&numbers)? {
        mounts.entry(mount.number).or_default().push(mount.shown());
    }
    for (name, number) in filesystems {
        if let Some(mount_points) = mounts.remove(&number) {
            return Err(Error::Mounted { name, mount_points });
        }
    }
    Ok(())
}

/// Asks udev for the links of filesystems. A failure is only logged: the filesystems exist without
/// their links.
fn announce<'a>(
    engine: &Engine,
    pool: &Pool,
    filesystems: impl IntoIterator<Item = &'a Filesystem>,
) -> Option<Box<dyn PendingLinks>> {
    let announcements: Vec<Announcement> =
        filesystems.into_iter().map(|filesystem| links::announcement(pool, filesystem)).collect();
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
    // Try once more: a user waits for the link, and asking twice does no harm.
    announced
        .or_else(|_| engine.platform().announce(&announcements))
        .inspect_err(|error| log::warn!("could not tell udev of filesystems of pool {pool_name}: {error}"))
        .map(|links| awaited.hold(links))
        .ok()
}

/// Gives `value` when the links exist, or when a longer wait would not help.
fn when_linked<T: Send + 'static>(links: Option<Box<dyn PendingLinks>>, value: T) -> Step<T> {
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
