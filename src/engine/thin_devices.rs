//! Thin devices and their thin pool: tables, deletion, the size of the metadata device, and what a
//! status means for the pool (`docs/spec/engine/storage-stack.md` §7).

use crate::{
    base::units::Sectors,
    engine::{
        error::Result,
        layout,
        plan::sizes,
        pool::Pool,
        thin_status::{self, PoolStatus},
    },
    platform::{
        self, DeviceNumber, Platform, Program,
        dm::{self, Visibility},
    },
    view::Availability,
};

/// The table of a thin device.
pub(super) fn thin_table(pool: DeviceNumber, id: u32, size: Sectors) -> [dm::Line; 1] {
    [dm::Line { start: Sectors::ZERO, length: size, target: dm::Target::Thin { pool, id } }]
}

/// Deletes a thin device from a thin pool. A thin device that does not exist counts as deleted. A
/// thin pool without metadata space accepts no messages, not even this one, which would free some.
/// When a table is loaded, even the same one, the thin pool tries again: the metadata space that it
/// keeps in reserve is enough for a deletion.
pub(super) fn delete_thin_id(platform: &dyn Platform, thin_pool: &str, id: u32) -> platform::Result<()> {
    let delete = || platform.dm_message(thin_pool, &format!("delete {id}"));
    let deleted = match delete() {
        Err(error) if error.errno() == Some(nix::libc::EOPNOTSUPP) => match platform.dm_find(thin_pool)? {
            Some(found) => platform
                .dm_load(thin_pool, &found.table)
                .and_then(|()| platform.dm_resume(thin_pool, Visibility::Private))
                .and_then(|()| delete()),
            None => Err(error),
        },
        other => other,
    };
    match deleted {
        Err(error) if error.errno() == Some(nix::libc::ENODATA) => Ok(()),
        other => other,
    }
}

/// The size of the metadata device that a pool of this size with this number of filesystems needs.
pub(super) fn thin_metadata_size(platform: &dyn Platform, pool: Sectors, filesystems: u64) -> Result<Sectors> {
    let arguments = sizes::thin_metadata_size_arguments(pool, filesystems);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(sizes::thin_metadata(&platform.run(Program::ThinMetadataSize, &arguments)?)?)
}

/// Makes the thin pool read the sizes of its devices again if the sizes it knows are smaller than
/// the recorded ones. That happens if the daemon that extended the devices was killed, or failed,
/// before the thin pool saw the new sizes. A read-only thin pool never changes its size, however
/// often it is asked. `true`: the thin pool was behind, and the status is out of date.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn show_sizes(platform: &dyn Platform, pool: &Pool, status: &PoolStatus) -> Result<bool> {
    let metadata = Sectors(status.metadata_total.saturating_mul(sizes::METADATA_BLOCK.0));
    // The kernel may be unable to use a few blocks of a metadata device.
    let behind = pool.thin_metadata().saturating_sub(metadata) >= sizes::DATA_BLOCK
        || status.data_total < sizes::blocks(layout::total(&pool.meta().flex_devs.thin_data_dev));
    let overlooked = behind && !status.is_damaged();
    if overlooked {
        pool.stack.put(platform, &pool.shape().thin_pool())?;
    }
    Ok(overlooked)
}

/// Restricts a pool whose thin pool has failed or must be checked before the next write to it.
/// Clients still see the pool: what can be read may be all that its users have left. A pool that is
/// only out of metadata space is restricted until it has some. `status` is the current status of
/// the thin pool, if it could be parsed.
pub(super) fn judge_thin_pool(pool: &mut Pool, status: Option<&PoolStatus>) {
    let needs_check = status.is_some_and(|status| status.needs_check);
    pool.note_starved(status.is_some_and(PoolStatus::is_out_of_metadata));
    let (level, what) = match pool.growth.thin_state() {
        Some(thin_status::State::Failed) => (Availability::NoPoolChanges, "its thin pool has failed"),
        Some(thin_status::State::ReadOnly) => {
            (Availability::NoRequests, "the metadata of its thin pool could not be written")
        }
        _ if needs_check => (Availability::NoRequests, "the metadata of its thin pool must be checked"),
        _ => return,
    };
    pool.restrict(level, format!("{what}; the next start of the pool checks and repairs it"));
}
