//! The files of the system that is examined, below its root. Symbolic links are followed as the
//! kernel follows them, so a link of another system may lead out of its root. This module must
//! never write.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Scope;

/// The system that is examined.
pub(super) struct System {
    root: PathBuf,
    /// Devices to examine instead of those of the system.
    pub(super) devices: Vec<PathBuf>,
}

impl System {
    pub(super) fn new(scope: &Scope) -> System {
        System { root: scope.root.clone(), devices: scope.devices.clone() }
    }

    /// Whether this is the running system.
    pub(super) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The root.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The path below the root for an absolute path of the system.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether a path exists; a dangling link counts.
    pub(super) fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// The text of a file, or `None` if it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        fs::read(self.path(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Like [`System::text`], with the reason if the file cannot be read.
    pub(super) fn read(&self, path: &str) -> io::Result<String> {
        fs::read(self.path(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Names of the files in a folder, sorted.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The first of these folders that has a file of this name, with the file.
    pub(super) fn find_in(&self, folders: &[&str], name: &str) -> Option<String> {
        folders.iter().map(|folder| format!("{folder}/{name}")).find(|path| self.exists(path))
    }

    /// Whether a path is a link to `/dev/null`, which masks a unit or a rules file.
    pub(super) fn is_masked(&self, path: &str) -> bool {
        fs::read_link(self.path(path)).is_ok_and(|target| target == Path::new("/dev/null"))
    }
}
