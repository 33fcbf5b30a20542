//! The metadata volume (MDV). It holds the records of a pool's filesystems
//! (`docs/spec/engine/ondisk-metadata.md` §7) and the [journal](Journal) of filesystems that are
//! being created or destroyed.

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

/// The metadata volume of one pool, accessed through a platform.
#[derive(Clone, Copy)]
pub struct Mdv<'a> {
    platform: &'a dyn Platform,
    pool: PoolUuid,
}

impl<'a> Mdv<'a> {
    /// The metadata volume of this pool. It must be mounted for every method but [`Mdv::mount`] and
    /// [`Mdv::unmount`].
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

    /// Performs an action on the volume and repeats it after a remount if necessary. The kernel
    /// shuts down an XFS that met an error while it wrote its log. Every call then fails until the
    /// XFS has been mounted again, even if its device works again by then. Every action here can be
    /// repeated.
    fn revived<T>(&self, act: impl Fn() -> platform::Result<T>) -> platform::Result<T> {
        act().or_else(|error| {
            let is_shut_down = match error.errno() {
                Some(nix::libc::EIO) => true,
                // An earlier attempt got only as far as the unmount. Mounting a mounted volume
                // changes nothing.
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

    /// Mounts the volume from its device node, in the private place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mount(&self, node: &std::path::Path) -> platform::Result<()> {
        self.platform.mount(node, &self.directory(), "")
    }

    /// Unmounts the volume. It is no error if it is not mounted.
    ///
    /// # Errors
    /// When the volume is busy.
    pub fn unmount(&self) -> platform::Result<()> {
        self.platform.unmount(&self.directory())
    }

    /// Reads all records. Skips filesystems that the journal says are gone, unless their records
    /// were changed since: their names may be in use again. Left-over temporary files are removed,
    /// not read.
    ///
    /// # Errors
    /// A record that cannot be read or parsed, or two records with one name or UUID.
    pub fn records(&self, journal: &[Journal]) -> Result<Vec<FilesystemRecord>> {
        let mut records = self.parse_all(&self.records_directory(), FilesystemRecord::parse)?;
        records.retain(|record| journal.iter().all(|entry| !entry.destroys(record)));
        filesystem::check_records(&records)?;
        Ok(records)
    }

    /// Reads all entries of the journal.
    ///
    /// # Errors
    /// Those of [`Mdv::records`].
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

    /// Writes a filesystem's record durably, in place of its former one.
    ///
    /// # Errors
    /// When the record cannot be written. The volume then holds the old record or the new one.
    pub fn save(&self, record: &FilesystemRecord) -> Result<()> {
        let path = format!("{}/{}", self.records_directory(), filesystem::file_name(record.uuid));
        let record = record.encode();
        Ok(self.revived(|| self.platform.replace_file(&path, &record))?)
    }

    /// Removes a record durably. A missing record is no error.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn remove(&self, id: FsUuid) -> platform::Result<()> {
        let file = filesystem::file_name(id);
        let path = format!("{}/{file}", self.records_directory());
        self.revived(|| self.platform.remove_file(&path))
    }

    /// Writes a journal entry durably. An empty entry is not written.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn begin(&self, entry: &Journal) -> Result<()> {
        let Some(file) = entry.file() else { return Ok(()) };
        // Only this daemon has a journal directory. It may not exist yet on a volume that another
        // daemon made.
        let (directory, entry) = (self.journal_directory(), entry.encode());
        let write = || {
            self.platform.list_files(&directory)?;
            self.platform.replace_file(&format!("{directory}/{file}"), &entry)
        };
        Ok(self.revived(write)?)
    }

    /// Removes a journal entry durably. Tries twice, because the work that the entry describes has
    /// been done.
    ///
    /// # Errors
    /// When the volume cannot be written. The next set-up then processes the entry.
    pub fn end(&self, entry: &Journal) -> platform::Result<()> {
        let Some(file) = entry.file() else { return Ok(()) };
        let path = format!("{}/{file}", self.journal_directory());
        let remove = || self.revived(|| self.platform.remove_file(&path));
        remove().or_else(|_| remove())
    }
}
