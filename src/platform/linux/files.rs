//! Files in the private directory, mostly on metadata volumes. This module knows nothing of their
//! contents.
//!
//! The disks may come from an untrusted source. So names are opened component by component and
//! never through a symbolic link, and only regular files of limited size are read.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use crate::platform::{Error, Result};

/// Largest file that is read; a filesystem record has a thousandth of that size.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that paths are relative to.
pub(super) struct PrivateDirectory {
    root: PathBuf,
}

/// What to do if a directory is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Refuse,
    Make,
}

impl PrivateDirectory {
    pub(super) fn new(root: &Path) -> PrivateDirectory {
        PrivateDirectory { root: root.to_owned() }
    }

    /// The absolute path of a name in this directory.
    ///
    /// # Errors
    /// If a component could lead out of the directory.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf> {
        components(name)?;
        Ok(self.root.join(name))
    }

    /// Refuses a path on which nothing is mounted: a file there would be on the tmpfs itself and be
    /// lost at power-off.
    ///
    /// # Errors
    /// `ENOENT`.
    pub(super) fn check_mounted(&self, path: &str) -> Result<()> {
        let failed = |errno: Errno| self.error("find a mounted file system for", path)(errno.into());
        let root = fs::stat(&self.root).map_err(failed)?;
        let first = components(path)?.first().map_or(Err(Errno::NOENT), |first| fs::stat(self.root.join(first)));
        match first.map_err(failed)?.st_dev == root.st_dev {
            true => Err(failed(Errno::NOENT)),
            false => Ok(()),
        }
    }

    /// Creates a directory if it is missing. Returns its absolute path.
    pub(super) fn make_directory(&self, name: &str) -> Result<PathBuf> {
        self.open_directory(&components(name)?, Absent::Make)?;
        self.path(name)
    }

    /// Names of everything in a directory except subdirectories. Creates a missing directory.
    pub(super) fn list(&self, directory: &str) -> Result<Vec<String>> {
        let open = self.open_directory(&components(directory)?, Absent::Make)?;
        let failed = |errno: Errno| self.error("list", directory)(errno.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&open).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if is_directory(&open, entry.file_name(), entry.file_type()).map_err(failed)? {
                continue;
            }
            let name = entry.file_name().to_str().map_err(|_| Error::Unexpected {
                what: "a file name",
                text: self
                    .root
                    .join(directory)
                    .join(entry.file_name().to_string_lossy().as_ref())
                    .display()
                    .to_string(),
            })?;
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// Reads a whole file.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>> {
        let (directory, name) = split(path)?;
        let open = self.open_directory(&directory, Absent::Refuse)?;
        // Non-blocking, in case it is a FIFO.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(
            fs::openat(&open, name, flags, Mode::empty()).map_err(|errno| self.error("open", path)(errno.into()))?,
        );
        let mut bytes = Vec::new();
        let plain = file.metadata().map_err(self.error("stat", path))?.is_file();
        if plain {
            file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(self.error("read", path))?;
        }
        if !plain || bytes.len() as u64 > FILE_BYTES_MAX {
            let text = self.root.join(path).display().to_string();
            return Err(Error::Unexpected { what: "a file that is too large or not regular", text });
        }
        Ok(bytes)
    }

    /// Creates or replaces a file in the order of `docs/spec/engine/ondisk-metadata.md` §7.2. After
    /// a power cut, either the old file or the new one exists, complete.
    pub(super) fn replace(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let (directory, name) = split(path)?;
        let open = self.open_directory(&directory, Absent::Refuse)?;
        let temporary = Path::new(name).with_extension("temp");
        let written = self.write_temporary(&open, &temporary, path, bytes).and_then(|()| {
            fs::renameat(&open, &temporary, &open, name).map_err(|errno| self.error("replace", path)(errno.into()))
        });
        if written.is_err() {
            // Readers skip the temporary file, so it may stay if even this fails.
            let _ = fs::unlinkat(&open, &temporary, AtFlags::empty());
        }
        written?;
        self.sync(&open, path)
    }

    fn write_temporary(&self, directory: &OwnedFd, temporary: &Path, path: &str, bytes: &[u8]) -> Result<()> {
        match fs::unlinkat(directory, temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.error("replace", path)(errno.into())),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = fs::openat(directory, temporary, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(opened.map_err(|errno| self.error("replace", path)(errno.into()))?);
        file.write_all(bytes).map_err(self.error("write", path))?;
        file.sync_all().map_err(self.error("flush writes to", path))
    }

    /// Removes a file durably. Succeeds if the file or its directory is missing.
    pub(super) fn remove(&self, path: &str) -> Result<()> {
        let (directory, name) = split(path)?;
        let open = match self.open_directory(&directory, Absent::Refuse) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match fs::unlinkat(&open, name, AtFlags::empty()) {
            Ok(()) => self.sync(&open, path),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", path)(errno.into())),
        }
    }

    fn sync(&self, directory: &OwnedFd, path: &str) -> Result<()> {
        fs::fsync(directory).map_err(|errno| self.error("flush the directory of", path)(errno.into()))
    }

    fn open_directory(&self, components: &[&str], absent: Absent) -> Result<OwnedFd> {
        let name = components.join("/");
        let failed = |errno: Errno| self.error("open the directory", &name)(errno.into());
        let mut open = fs::open(&self.root, DIRECTORY, Mode::empty()).map_err(failed)?;
        for component in components {
            open = match fs::openat(&open, *component, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if absent == Absent::Make => {
                    match fs::mkdirat(&open, *component, Mode::RWXU) {
                        Ok(()) => self.sync(&open, &name)?,
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(self.error("create the directory", &name)(errno.into())),
                    }
                    fs::openat(&open, *component, DIRECTORY, Mode::empty()).map_err(failed)?
                }
                other => other.map_err(failed)?,
            };
        }
        Ok(open)
    }

    fn error(&self, action: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error {
        let path = self.root.join(name);
        move |source| Error::Io { action, path, source }
    }
}

fn is_directory(parent: &OwnedFd, name: &CStr, kind: FileType) -> rustix::io::Result<bool> {
    match kind {
        FileType::Directory => Ok(true),
        // The file system does not report types in its listings.
        FileType::Unknown => {
            let found = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
        }
        _ => Ok(false),
    }
}

/// Splits a relative path into components, each a plain name.
fn components(path: &str) -> Result<Vec<&str>> {
    let parts: Vec<&str> = path.split('/').collect();
    let plain = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && !part.contains('\0');
    if parts.iter().all(plain) {
        return Ok(parts);
    }
    Err(Error::Unexpected { what: "a path in the private directory", text: path.chars().take(200).collect() })
}

/// Splits a path into its directory and file name.
fn split(path: &str) -> Result<(Vec<&str>, &str)> {
    let mut parts = components(path)?;
    // There is at least one part.
    let name = parts.pop().unwrap_or_default();
    Ok((parts, name))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::{FILE_BYTES_MAX, PrivateDirectory};
    use crate::platform::{Error, Result};

    fn private() -> (tempfile::TempDir, PrivateDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let private = PrivateDirectory::new(directory.path());
        (directory, private)
    }

    fn names(private: &PrivateDirectory, directory: &str) -> Vec<String> {
        let mut names = private.list(directory).unwrap();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_listed_read_and_removed() {
        let (root, private) = private();
        assert_eq!(names(&private, "v/filesystems"), Vec::<String>::new());
        assert!(root.path().join("v/filesystems").is_dir());
        private.replace("v/filesystems/a.json", b"one").unwrap();
        private.replace("v/filesystems/b.json", b"").unwrap();
        private.replace("v/filesystems/a.json", b"two").unwrap();
        fs::create_dir(root.path().join("v/filesystems/directory")).unwrap();
        assert_eq!(names(&private, "v/filesystems"), ["a.json", "b.json"]);
        assert_eq!(private.read("v/filesystems/a.json").unwrap(), b"two");
        assert_eq!(private.read("v/filesystems/b.json").unwrap(), b"");
        for _ in 0..2 {
            private.remove("v/filesystems/a.json").unwrap();
            assert_eq!(names(&private, "v/filesystems"), ["b.json"]);
        }
        private.remove("no/such/directory").unwrap();
    }

    #[test]
    fn a_leftover_temporary_file_is_replaced() {
        let (root, private) = private();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/a.temp"), "much more than the whole").unwrap();
        private.replace("d/a.json", b"whole").unwrap();
        assert_eq!(names(&private, "d"), ["a.json"]);
        assert_eq!(private.read("d/a.json").unwrap(), b"whole");
    }

    #[test]
    fn a_failed_replacement_leaves_only_the_old_file() {
        let (root, private) = private();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::create_dir_all(root.path().join("d/a.json/full")).unwrap();
        // A file cannot replace a directory.
        assert!(private.replace("d/a.json", b"new").is_err());
        assert!(root.path().join("d/a.json/full").is_dir());
        assert!(!root.path().join("d/a.temp").exists());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let (_root, private) = private();
        for name in ["", "/etc", "..", "a/../b", "a//b", "a/", ".", "./a", "a\0b", "a/.."] {
            let refused = |result: Result<()>| {
                assert!(matches!(result, Err(Error::Unexpected { .. })), "{name:?}: {result:?}");
            };
            refused(private.read(name).map(drop));
            refused(private.list(name).map(drop));
            refused(private.replace(name, b""));
            refused(private.remove(name));
            refused(private.path(name).map(drop));
            refused(private.make_directory(name).map(drop));
        }
        // These only look dangerous.
        for name in ["..a", "...", ".mdv-x"] {
            assert_eq!(private.make_directory(name).unwrap(), private.path(name).unwrap());
        }
    }

    #[test]
    fn links_are_not_followed() {
        let (root, private) = private();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        symlink(outside.path(), root.path().join("directory")).unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        symlink(&secret, root.path().join("d/link.json")).unwrap();
        symlink(&secret, root.path().join("d/x.temp")).unwrap();

        assert!(private.read("directory/secret").is_err());
        assert!(private.list("directory").is_err());
        assert!(private.replace("directory/new.json", b"x").is_err());
        assert!(private.remove("directory/secret").is_err());
        assert!(private.read("d/link.json").is_err());
        // Neither the link at the temporary name nor the link that is replaced is followed.
        private.replace("d/x.json", b"x").unwrap();
        private.replace("d/link.json", b"y").unwrap();
        assert_eq!(private.read("d/link.json").unwrap(), b"y");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_regular_files_of_limited_size_are_read() {
        let (root, private) = private();
        let path = |name: &str| root.path().join(name);
        let large = fs::File::create(path("large")).unwrap();
        large.set_len(FILE_BYTES_MAX).unwrap();
        assert_eq!(private.read("large").unwrap().len() as u64, FILE_BYTES_MAX);
        large.set_len(FILE_BYTES_MAX + 1).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(path("directory")).unwrap();
        for name in ["large", "pipe", "directory"] {
            assert!(matches!(private.read(name), Err(Error::Unexpected { .. })), "{name}");
        }
        assert!(matches!(private.read("missing"), Err(Error::Io { .. })));
        assert!(!Path::new(&path("missing")).exists());
    }
}
