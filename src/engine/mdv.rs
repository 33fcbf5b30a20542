//! The metadata volume (MDV): the records of a pool's filesystems (`spec/engine/ondisk-metadata.md` §7), and the
//! [journal](Journal) of what is being made or destroyed.

use crate::{
    engine::{
        error::{Error, Result},
        ids::{FsUuid, PoolUuid},
        metadata::{
            filesystem::{self, FilesystemRecord, RecordError},
            journal::{self, Journal},
        },
    },
    platform::{self, Platform},
};

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
        format!("{}/{}", self.directory(), journal::PENDING)
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

    /// All records but those of filesystems that the journal says are gone, unless somebody has changed them since: their names
    /// may be in use again. Left-over
    /// temporary files are removed, not read.
    ///
    /// # Errors
    /// A record that cannot be read or parsed, or two with one name or UUID.
    pub fn records(&self, journal: &[Journal]) -> Result<Vec<FilesystemRecord>> {
        let mut records = self.parse_all(&self.records_directory(), FilesystemRecord::parse)?;
        records.retain(|record| journal.iter().all(|entry| !entry.destroys(record)));
        filesystem::check_records(&records)?;
        Ok(records)
    }

    /// All entries of the journal.
    ///
    /// # Errors
    /// As [`Mdv::records`].
    pub fn journal(&self) -> Result<Vec<Journal>> {
        self.parse_all(&self.journal_directory(), Journal::parse)
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
        // The directory of the journal is ours and may not exist yet on a volume made by another daemon.
        self.platform.list_files(&self.journal_directory())?;
        Ok(self.platform.replace_file(&format!("{}/{file}", self.journal_directory()), &entry.encode())?)
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
