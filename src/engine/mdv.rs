//! The metadata volume (MDV): the records of a pool's filesystems (`docs/spec/engine/ondisk-metadata.md` §7), and the
//! [journal](Journal) of what is being made or destroyed.

use crate::{
    base::ids::{FsUuid, PoolUuid},
    engine::{
        dm_names::Role,
        error::{Error, Result},
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

    /// Does something with the volume. An XFS that met an error while it wrote its log is shut down: it fails every call until
    /// it has been mounted again, however well its device works by then. So it is mounted again, and asked once more; all
    /// that is asked here can be repeated.
    fn revived<T>(&self, act: impl Fn() -> platform::Result<T>) -> platform::Result<T> {
        act().or_else(|error| {
            let is_shut_down = match error.errno() {
                Some(nix::libc::EIO) => true,
                // An earlier attempt did not get further than the unmount; mounting what is mounted changes nothing.
                Some(nix::libc::ENOENT) => false,
                _ => return Err(error),
            };
            if is_shut_down && self.unmount().is_err() {
                return Err(error);
            }
            let node = self.platform.dm_node(&Role::Mdv.name(self.pool));
            match self.mount(&node).or_else(|_| self.mount(&node)) {
                Ok(()) => act(),
                Err(again) => {
                    log::warn!("the metadata volume of pool {} cannot be mounted again: {again}", self.pool);
                    Err(error)
                }
            }
        })
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
        for file in self.revived(|| self.platform.list_files(directory))? {
            let path = format!("{directory}/{file}");
            if filesystem::is_leftover(&file) {
                self.revived(|| self.platform.remove_file(&path))?;
                continue;
            }
            let bytes = self.revived(|| self.platform.read_file(&path))?;
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
        let record = record.encode();
        Ok(self.revived(|| self.platform.replace_file(&path, &record))?)
    }

    /// Removes a record, durably; a missing one is no error.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn remove(&self, id: FsUuid) -> platform::Result<()> {
        let file = filesystem::file_name(id);
        let path = format!("{}/{file}", self.records_directory());
        self.revived(|| self.platform.remove_file(&path))
    }

    /// Writes an entry of the journal, durably. An empty one is not written.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn begin(&self, entry: &Journal) -> Result<()> {
        let Some(file) = entry.file() else { return Ok(()) };
        // The directory of the journal is ours and may not exist yet on a volume made by another daemon.
        let (directory, entry) = (self.journal_directory(), entry.encode());
        let write = || {
            self.platform.list_files(&directory)?;
            self.platform.replace_file(&format!("{directory}/{file}"), &entry)
        };
        Ok(self.revived(write)?)
    }

    /// Removes an entry of the journal, durably. Tried twice, because what it would be worked off for has been done.
    ///
    /// # Errors
    /// When the volume cannot be written; the entry is then worked off at the next set-up.
    pub fn end(&self, entry: &Journal) -> platform::Result<()> {
        let Some(file) = entry.file() else { return Ok(()) };
        let path = format!("{}/{file}", self.journal_directory());
        let remove = || self.revived(|| self.platform.remove_file(&path));
        remove().or_else(|_| remove())
    }
}
