//! The metadata of a pool and of its filesystems as text, for users who want to see the records.

use std::collections::BTreeMap;

use crate::{
    base::ids::{FsUuid, PoolUuid},
    engine::{
        bda,
        error::{Error, Result},
        mdv::Mdv,
        metadata::FilesystemRecord,
        ops::pool_access::read_pool,
        pool::Pool,
        request::Step,
    },
    platform::Platform,
};

/// Which copy of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataCopy {
    /// As in memory; this is what would be written next.
    Current,
    /// As it is on disk.
    Written,
}

/// The pool metadata as JSON.
pub fn pool_metadata(uuid: PoolUuid, copy: MetadataCopy) -> Step<Result<String>> {
    look_at(uuid, move |platform, pool| {
        let json = match copy {
            MetadataCopy::Current => pool.meta().encode(pool.version()),
            MetadataCopy::Written => {
                let data = pool.meta().data_devices().filter_map(|device| pool.members.get(device));
                let devices: Vec<_> = data.map(|member| (member.device.path.as_path(), &member.bda)).collect();
                bda::newest(platform, &devices)?.ok_or(Error::NoMetadata(uuid))?.json
            }
        };
        Ok(String::from_utf8_lossy(&json).into_owned())
    })
}

/// The filesystem records as a JSON object by UUID. With `name`, only the record of that
/// filesystem; an unknown name is no error.
pub fn filesystem_metadata(uuid: PoolUuid, name: Option<String>, copy: MetadataCopy) -> Step<Result<String>> {
    look_at(uuid, move |platform, pool| {
        let records: Vec<FilesystemRecord> = match copy {
            MetadataCopy::Current => pool.filesystems.records().cloned().collect(),
            MetadataCopy::Written => {
                let mdv = Mdv::new(platform, uuid);
                mdv.records(&mdv.journal()?)?
            }
        };
        let wanted = records.iter().filter(|record| name.as_ref().is_none_or(|name| *name == record.name));
        let by_uuid: BTreeMap<FsUuid, &FilesystemRecord> = wanted.map(|record| (record.uuid, record)).collect();
        Ok(serde_json::to_string(&by_uuid).expect("plain structs with string keys always have a JSON form"))
    })
}

fn look_at(
    uuid: PoolUuid,
    look: impl FnOnce(&dyn Platform, &Pool) -> Result<String> + Send + 'static,
) -> Step<Result<String>> {
    read_pool(uuid, move |engine, pool| Step::Done(look(engine.platform(), pool)))
}
