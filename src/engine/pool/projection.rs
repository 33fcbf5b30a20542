//! A pool as clients see it. The engine keeps this value up to date beside its own state, and
//! notices when it changes.

use std::sync::Arc;

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        name::Name,
        units::{Bytes, DataBlocks, Sectors},
    },
    engine::{metadata::MetadataVersion, plan::sizes},
    view::{self, Availability},
};

/// The view of a pool.
#[derive(Debug)]
pub(super) struct Projection {
    shown: view::PoolView,
    /// `shown` has changed since it was last taken.
    changed: bool,
    /// Data blocks in use; `None` if the thin pool does not report them.
    blocks_used: Option<DataBlocks>,
}

impl Projection {
    /// The view of a pool before anything is known about it.
    pub fn new(uuid: PoolUuid, name: Name, version: MetadataVersion) -> Projection {
        let shown = view::PoolView {
            uuid,
            name,
            metadata_version: version.number(),
            encryption: None,
            volume_key_loaded: false,
            last_reencrypt: None,
            reencryption: None,
            availability: Availability::Full,
            restriction: None,
            has_cache: false,
            fs_limit: sizes::FS_LIMIT,
            overprovisioning: true,
            no_alloc_space: false,
            total: Sectors::ZERO,
            allocated: Sectors::ZERO,
            used: None,
            filesystems: imbl::OrdMap::new(),
            failed_filesystems: Arc::default(),
            devices: imbl::OrdMap::new(),
        };
        Projection { shown, changed: true, blocks_used: None }
    }

    /// The view now.
    pub fn view(&self) -> Arc<view::PoolView> {
        Arc::new(self.shown.clone())
    }

    /// The view, if it has changed since the last call.
    pub fn take_change(&mut self) -> Option<Arc<view::PoolView>> {
        std::mem::take(&mut self.changed).then(|| self.view())
    }

    /// Marks the view as changed, even if it equals the former one.
    pub fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// Shows a new or changed filesystem.
    pub fn show_filesystem(&mut self, filesystem: view::FilesystemView) {
        // An unchanged value keeps its allocation, so that a comparison does not look into it.
        if self.shown.filesystems.get(&filesystem.uuid).is_none_or(|known| **known != filesystem) {
            self.shown.filesystems.insert(filesystem.uuid, Arc::new(filesystem));
            self.changed = true;
        }
    }

    /// Removes a filesystem from the view.
    pub fn hide_filesystem(&mut self, uuid: FsUuid) {
        self.changed |= self.shown.filesystems.remove(&uuid).is_some();
    }

    /// How much of a filesystem is in use, as shown.
    pub fn used_by(&self, filesystem: FsUuid) -> Option<Bytes> {
        self.shown.filesystems.get(&filesystem).and_then(|shown| shown.used)
    }

    /// Shows the filesystems that could not be set up.
    pub fn show_failed(&mut self, failed: impl Iterator<Item = view::FailedFilesystemView>) {
        self.shown.failed_filesystems = failed.collect();
        self.changed = true;
    }

    /// Shows what is allowed in the pool, and what restricts it.
    pub fn show_availability(&mut self, availability: Availability, restriction: Option<Arc<str>>) {
        self.changed |= (availability, &restriction) != (self.shown.availability, &self.shown.restriction);
        (self.shown.availability, self.shown.restriction) = (availability, restriction);
    }

    /// Notes how many data blocks are in use. The next [`Projection::replace`] may show it.
    pub fn note_blocks_used(&mut self, used: Option<DataBlocks>) {
        self.blocks_used = used;
    }

    /// Shows another state of the pool.
    pub fn replace(&mut self, shown: view::PoolView) {
        if shown != self.shown {
            self.shown = shown;
            self.changed = true;
        }
    }

    /// The view, from which the next one is made.
    pub fn shown(&self) -> &view::PoolView {
        &self.shown
    }

    /// Data blocks in use, if known.
    pub fn blocks_used(&self) -> Option<DataBlocks> {
        self.blocks_used
    }
}
