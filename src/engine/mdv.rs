//! The metadata volume (MDV): the records of a pool's filesystems, and the journal of what is being made or destroyed.
//!
//! Records are those of `spec/engine/ondisk-metadata.md` §7. The journal is ours: a directory `pending` beside
//! `filesystems`, which other daemons do not look at. It closes the gap between two stores that cannot be written in one
//! go, the records here and the thin devices in the pool's own metadata:
//!
//! - [`Journal::Create`] is written before thin devices are made and removed after their records are saved. After a crash,
//!   thin devices in it that have no record are deleted: the creation did not happen.
//! - [`Journal::Destroy`] is written after the device-mapper devices are gone and before the first record is removed: from
//!   then on the destruction happens. After a crash it is carried out again from the beginning; each step can be repeated.
//! - [`Journal::Revert`] is written when the thin device that is to take the place of another is up, and before the first
//!   record is changed: from then on the revert happens, as above.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        error::{Error, Result},
        ids::{FsUuid, PoolUuid},
        metadata::filesystem::{self, FilesystemRecord, RecordError},
    },
    platform::{self, Platform},
};

/// A thin device that is being made or destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The filesystem on it.
    pub uuid: FsUuid,
    /// Its number in the thin pool.
    pub thin_id: u32,
    /// Destroying: what the snapshots of this filesystem are snapshots of afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heir: Option<FsUuid>,
}

/// A snapshot that takes the place of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revert {
    /// The origin: its name and identity stay.
    pub origin: FsUuid,
    /// The origin's thin device so far, which goes.
    pub replaced: u32,
    /// The snapshot, which goes as such.
    pub snapshot: FsUuid,
    /// The snapshot's thin device: the origin's from now on.
    pub thin_id: u32,
}

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Journal {
    /// These are being made.
    Create(Vec<Pending>),
    /// These are being destroyed.
    Destroy(Vec<Pending>),
    /// This is being carried out.
    Revert(Revert),
}

impl Journal {
    /// The thin devices of the entry that come or go.
    pub fn pending(&self) -> &[Pending] {
        match self {
            Journal::Create(pending) | Journal::Destroy(pending) => pending,
            Journal::Revert(_) => &[],
        }
    }

    /// Whether the destruction of this filesystem has been decided.
    pub fn destroys(&self, filesystem: FsUuid) -> bool {
        matches!(self, Journal::Destroy(pending) if pending.iter().any(|gone| gone.uuid == filesystem))
    }

    /// Name of the entry's file: that of the first filesystem in it that comes or goes, which is in no other entry.
    fn file(&self) -> Option<String> {
        let first = match self {
            Journal::Create(pending) | Journal::Destroy(pending) => pending.first()?.uuid,
            Journal::Revert(revert) => revert.snapshot,
        };
        Some(filesystem::file_name(first))
    }
}

/// The metadata volume of one pool, through a platform.
#[derive(Clone, Copy)]
pub struct Mdv<'a> {
    platform: &'a dyn Platform,
    pool: PoolUuid,
}

impl<'a> Mdv<'a> {
    /// That of this pool. It must be mounted for all but [`Mdv::mount`] and [`Mdv::unmount`].
    pub fn new(platform: &'a dyn Platform, pool: PoolUuid) -> Mdv<'a> {
        Mdv { platform, pool }
    }

    fn directory(&self) -> String {
        format!(".mdv-{}", self.pool.simple())
    }

    fn records_directory(&self) -> String {
        format!("{}/{}", self.directory(), filesystem::FILESYSTEMS)
    }

    fn journal_directory(&self) -> String {
        format!("{}/{}", self.directory(), filesystem::PENDING)
    }

    /// Mounts it from its device node, in the private place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mount(&self, node: &std::path::Path) -> platform::Result<()> {
        self.platform.mount(node, &self.directory(), "")
    }

    /// Unmounts it; not mounted is no error.
    ///
    /// # Errors
    /// When it is busy.
    pub fn unmount(&self) -> platform::Result<()> {
        self.platform.unmount(&self.directory())
    }

    /// All records but those of filesystems that the journal says are gone: their names may be in use again. Left-over
    /// temporary files are removed, not read.
    ///
    /// # Errors
    /// A record that cannot be read or parsed, or two with one name or UUID.
    pub fn records(&self, journal: &[Journal]) -> Result<Vec<FilesystemRecord>> {
        let mut records = self.parse_all(&self.records_directory(), FilesystemRecord::parse)?;
        records.retain(|record| journal.iter().all(|entry| !entry.destroys(record.uuid)));
        filesystem::check_records(&records)?;
        Ok(records)
    }

    /// All entries of the journal.
    ///
    /// # Errors
    /// As [`Mdv::records`].
    pub fn journal(&self) -> Result<Vec<Journal>> {
        self.parse_all(&self.journal_directory(), |bytes| serde_json::from_slice(bytes).map_err(RecordError::from))
    }

    fn parse_all<T>(
        &self,
        directory: &str,
        parse: impl Fn(&[u8]) -> std::result::Result<T, RecordError>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        for file in self.platform.list_files(directory)? {
            let path = format!("{directory}/{file}");
            if filesystem::is_leftover(&file) {
                self.platform.remove_file(&path)?;
                continue;
            }
            let bytes = self.platform.read_file(&path)?;
            found.push(parse(&bytes).map_err(|source| Error::Record { pool: self.pool, file, source })?);
        }
        Ok(found)
    }

    /// Puts a record in place of the one of that filesystem, durably.
    ///
    /// # Errors
    /// When it cannot be written; the old record is still there then, or the new one.
    pub fn save(&self, record: &FilesystemRecord) -> Result<()> {
        let path = format!("{}/{}", self.records_directory(), filesystem::file_name(record.uuid));
        Ok(self.platform.replace_file(&path, &record.encode())?)
    }

    /// Removes a record, durably; a missing one is no error.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn remove(&self, id: FsUuid) -> platform::Result<()> {
        let file = filesystem::file_name(id);
        self.platform.remove_file(&format!("{}/{file}", self.records_directory()))
    }

    /// Writes an entry of the journal, durably. An empty one is not written.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn begin(&self, entry: &Journal) -> Result<()> {
        let Some(file) = entry.file() else { return Ok(()) };
        let bytes = serde_json::to_vec(entry).map_err(RecordError::from)?;
        // The directory of the journal is ours and may not exist yet on a volume made by another daemon.
        self.platform.list_files(&self.journal_directory())?;
        Ok(self.platform.replace_file(&format!("{}/{file}", self.journal_directory()), &bytes)?)
    }

    /// Removes an entry of the journal, durably. Tried twice, because what it would be worked off for has been done.
    ///
    /// # Errors
    /// When the volume cannot be written; the entry is then worked off at the next set-up.
    pub fn end(&self, entry: &Journal) -> platform::Result<()> {
        let Some(file) = entry.file() else { return Ok(()) };
        let path = format!("{}/{file}", self.journal_directory());
        self.platform.remove_file(&path).or_else(|_| self.platform.remove_file(&path))
    }
}
