//! Thin devices and their thin pool: tables, deletion, the size of the metadata device, and what a status means for the
//! pool (`docs/spec/engine/storage-stack.md` §7).

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

/// Deletes a device in a thin pool; one that is not there is deleted already. A thin pool that is out of metadata space
/// takes no messages, not even this one that would give it some. A table, also the one that it has, lets it try again: the
/// metadata that it keeps back is enough for a deletion.
pub(super) fn delete_thin_id(platform: &dyn Platform, thin_pool: &str, id: u32) -> platform::Result<()> {
    let delete = || platform.dm_message(thin_pool, &format!("delete {id}"));
    let deleted = match delete() {
        Err(error) if error.errno() == Some(nix::libc::EOPNOTSUPP) => match platform.dm_find(thin_pool)? {
            Some(found) if !found.table.is_empty() => platform
                .dm_load(thin_pool, &found.table)
                .and_then(|()| platform.dm_resume(thin_pool, Visibility::Private))
                .and_then(|()| delete()),
            _ => Err(error),
        },
        other => other,
    };
    match deleted {
        Err(error) if error.errno() == Some(nix::libc::ENODATA) => Ok(()),
        other => other,
    }
}

/// Size of the thin pool's metadata device for a pool of this size and number of filesystems.
pub(super) fn thin_metadata_size(platform: &dyn Platform, pool: Sectors, filesystems: u64) -> Result<Sectors> {
    let arguments = sizes::thin_metadata_size_arguments(pool, filesystems);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(sizes::thin_metadata(&platform.run(Program::ThinMetadataSize, &arguments)?)?)
}

/// Has the thin pool look at its devices again if it knows less of them than is recorded: whoever made them larger was
/// killed, or failed, before the thin pool could see it. One that can only be read does not change its size however often it
/// is asked. `true`: it was so, and the status is out of date.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn show_sizes(platform: &dyn Platform, pool: &Pool, status: &PoolStatus) -> Result<bool> {
    let metadata = Sectors(status.metadata_total.saturating_mul(sizes::METADATA_BLOCK.0));
    // A few blocks of a metadata device may be of no use to the kernel.
    let behind = pool.thin_metadata().saturating_sub(metadata) >= sizes::DATA_BLOCK
        || status.data_total < sizes::blocks(layout::total(&pool.meta.flex_devs.thin_data_dev));
    let overlooked = behind && !status.is_damaged();
    if overlooked {
        pool.stack.put(platform, &pool.shape().thin_pool())?;
    }
    Ok(overlooked)
}

/// Restricts a pool whose thin pool has failed or must be checked before it is written again. It is shown all the same:
/// what can still be read may be all that its users have. One that is merely out of metadata space is restricted until it
/// has some. `status` is what the thin pool has just said, if that was understood.
pub(super) fn judge_thin_pool(pool: &mut Pool, status: Option<&PoolStatus>) {
    let needs_check = status.is_some_and(|status| status.needs_check);
    pool.note_starved(status.is_some_and(PoolStatus::is_out_of_metadata));
    let (level, what) = match pool.thin_state() {
        Some(thin_status::State::Failed) => (Availability::NoPoolChanges, "its thin pool has failed"),
        Some(thin_status::State::ReadOnly) => {
            (Availability::NoRequests, "the metadata of its thin pool could not be written")
        }
        _ if needs_check => (Availability::NoRequests, "the metadata of its thin pool must be checked"),
        _ => return,
    };
    pool.restrict(level, format!("{what}; the next start of the pool checks and repairs it"));
}
