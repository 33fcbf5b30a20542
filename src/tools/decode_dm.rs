//! `stratis-decode-dm`: prints the name, pool or link of a filesystem, given its device-mapper path
//! (`docs/spec/tools/utilities.md` §3). Other programs run it and read its output.
//!
//! The names come from the daemon: the path holds UUIDs only. This module must never depend on a
//! device: the path need not exist.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use dbus::{Message, Path as ObjectPath, arg::PropMap, arg::RefArg};

use crate::{
    base::{
        ids::{FsUuid, NotAUuid, PoolUuid},
        name::Name,
    },
    cli::stratis_decode_dm::DecodedName,
    tools::client::{self, Unanswered},
};

/// The time limit of the daemon's answer, which comes from the published state without a wait.
pub const LIMIT: Duration = Duration::from_secs(20);
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const POOL: &str = "org.storage.stratis3.pool.r";
const FILESYSTEM: &str = "org.storage.stratis3.filesystem.r";

/// Why there is no name. Programs know the texts.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NoName {
    #[error("error decomposing Stratis filesystem devicemapper path: {}", .0.display())]
    Path(PathBuf),
    #[error("error parsing Stratis filesystem devicemapper name \"{0}\"")]
    DeviceName(String),
    #[error(transparent)]
    Uuid(#[from] NotAUuid),
    #[error("Unable to retrieve Stratis information from the D-Bus: {0}")]
    Bus(#[from] Unanswered),
    #[error("Name for {kind} with UUID {uuid} not found")]
    Unknown { kind: &'static str, uuid: String },
    #[error("{0} could not be found; can not synthesize Stratis filesystem symlink")]
    NoLink(&'static str),
}

/// The line to print for this path.
///
/// # Errors
/// If the path is not that of a filesystem, or the daemon does not know its names.
pub fn decode(path: &Path, wanted: DecodedName) -> Result<String, NoName> {
    let (pool, filesystem) = parse(path)?;
    let names = client::call(OBJECT_MANAGER, "GetManagedObjects", LIMIT, read)?;
    choose(&names, pool, filesystem, wanted)
}

/// The UUIDs in the path of a filesystem.
fn parse(path: &Path) -> Result<(PoolUuid, FsUuid), NoName> {
    let no_path = || NoName::Path(path.to_owned());
    let name = path.strip_prefix("/dev/mapper").ok().and_then(Path::to_str).ok_or_else(no_path)?;
    if name.is_empty() || name.contains('/') || path.as_os_str().len() != "/dev/mapper/".len() + name.len() {
        return Err(no_path());
    }
    match name.split('-').collect::<Vec<_>>()[..] {
        ["stratis", "1", pool, "thin", "fs", filesystem] => Ok((pool.parse()?, filesystem.parse()?)),
        _ => Err(NoName::DeviceName(name.to_owned())),
    }
}

/// Names of all pools and filesystems, by UUID in simple form.
#[derive(Debug, Default)]
struct Names {
    pools: HashMap<String, String>,
    filesystems: HashMap<String, String>,
}

/// Reads the list of objects. Every revision of an interface has the same names, so any serves.
fn read(list: &Message) -> Result<Names, String> {
    let objects: HashMap<ObjectPath<'static>, HashMap<String, PropMap>> =
        list.read1().map_err(|error| error.to_string())?;
    let mut names = Names::default();
    for (interface, properties) in objects.values().flatten() {
        let text = |property: &str| Some(properties.get(property)?.0.as_str()?.to_owned());
        let into = match () {
            () if interface.starts_with(POOL) => &mut names.pools,
            () if interface.starts_with(FILESYSTEM) => &mut names.filesystems,
            () => continue,
        };
        into.extend(text("Uuid").zip(text("Name")));
    }
    Ok(names)
}

fn choose(names: &Names, pool: PoolUuid, filesystem: FsUuid, wanted: DecodedName) -> Result<String, NoName> {
    let pool_name = names.pools.get(&pool.simple());
    let filesystem_name = names.filesystems.get(&filesystem.simple());
    let named = |name: Option<&String>, kind, uuid| name.cloned().ok_or(NoName::Unknown { kind, uuid });
    match wanted {
        DecodedName::PoolName => named(pool_name, "pool", pool.hyphenated()),
        DecodedName::FilesystemName => named(filesystem_name, "filesystem", filesystem.hyphenated()),
        DecodedName::Symlink => match (pool_name, filesystem_name) {
            (Some(pool), Some(filesystem)) => Ok(link(pool, filesystem)),
            (None, Some(_)) => Err(NoName::NoLink("Pool name")),
            (Some(_), None) => Err(NoName::NoLink("Filesystem name")),
            (None, None) => Err(NoName::NoLink("Pool name and filesystem name")),
        },
    }
}

/// The link that udev makes. It encodes some characters of old names.
fn link(pool: &str, filesystem: &str) -> String {
    let plain = || format!("/dev/stratis/{pool}/{filesystem}");
    match (Name::new(pool), Name::new(filesystem)) {
        (Ok(pool), Ok(filesystem)) => filesystem.link_in(&pool).to_string_lossy().into_owned(),
        _ => plain(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const POOL: &str = "3524f7f329154326aa341c9750598037";
    const FS: &str = "7da3bdccfafe4783bf420f2a2d22b37a";

    fn refused(path: &str, text: &str) {
        assert_eq!(parse(Path::new(path)).unwrap_err().to_string(), text);
    }

    #[test]
    fn only_paths_of_filesystems_are_parsed() {
        let (pool, filesystem) = parse(Path::new(&format!("/dev/mapper/stratis-1-{POOL}-thin-fs-{FS}"))).unwrap();
        assert_eq!((pool.simple(), filesystem.simple()), (POOL.to_owned(), FS.to_owned()));
        for path in ["/dev/mapper", "/dev/mapper/a/b", "/dev/dm-1", "/dev/mapper/../mapper/a", "/dev//mapper/a"] {
            refused(path, &format!("error decomposing Stratis filesystem devicemapper path: {path}"));
        }
        for name in ["name", "stratis-1-a-thin-fs", "stratis-1-a-thin-fs-b-c", "stratis-2-a-thin-fs-b"] {
            let text = format!("error parsing Stratis filesystem devicemapper name \"{name}\"");
            refused(&format!("/dev/mapper/{name}"), &text);
        }
        let error = parse(Path::new(&format!("/dev/mapper/stratis-1-{POOL}-thin-fs-x"))).unwrap_err();
        assert!(matches!(error, NoName::Uuid(_)), "{error}");
    }

    #[test]
    fn each_output_needs_only_its_own_names() {
        let (pool, filesystem) = (POOL.parse().unwrap(), FS.parse().unwrap());
        let check = |has_pool: bool, has_filesystem: bool, wanted, expected: &str| {
            let entry =
                |has: bool, id: &str, name: &str| has.then(|| (id.to_owned(), name.to_owned())).into_iter().collect();
            let names = Names { pools: entry(has_pool, POOL, "p1"), filesystems: entry(has_filesystem, FS, "f1") };
            let said = choose(&names, pool, filesystem, wanted).unwrap_or_else(|error| error.to_string());
            assert_eq!(said, expected);
        };
        check(true, false, DecodedName::PoolName, "p1");
        check(false, true, DecodedName::FilesystemName, "f1");
        check(true, true, DecodedName::Symlink, "/dev/stratis/p1/f1");
        let no_link = |what: &str| format!("{what} could not be found; can not synthesize Stratis filesystem symlink");
        check(false, true, DecodedName::Symlink, &no_link("Pool name"));
        check(true, false, DecodedName::Symlink, &no_link("Filesystem name"));
        check(false, false, DecodedName::Symlink, &no_link("Pool name and filesystem name"));
        check(
            false,
            true,
            DecodedName::PoolName,
            "Name for pool with UUID 3524f7f3-2915-4326-aa34-1c9750598037 not found",
        );
        let unknown = "Name for filesystem with UUID 7da3bdcc-fafe-4783-bf42-0f2a2d22b37a not found";
        check(true, false, DecodedName::FilesystemName, unknown);
    }
}
