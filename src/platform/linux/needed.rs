//! What a machine must have for the daemon: programs and kernel modules. The lists follow from what
//! the code runs and loads.
//!
//! This module examines files below a root folder, which need not be that of this machine. It must
//! never depend on pools.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    clevis,
    processes::{ChildEnd, Input, Invocation, PLACES},
    programs,
};
use crate::platform::{DeviceClass, Program, Result};

/// A program that the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededProgram {
    /// Name of the executable file.
    pub name: String,
    /// The package that contains it, as Debian or Fedora names it.
    pub package: &'static str,
}

/// A part of the kernel that may be built as a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededModule {
    /// Name of the module.
    pub name: &'static str,
    /// The device-mapper target, or the filesystem, that it provides.
    pub provides: &'static str,
    /// The effect of its absence.
    pub without: &'static str,
    /// Whether every pool needs it.
    pub always: bool,
}

/// Every part of the kernel that tables and mounts of the daemon refer to. An initrd must contain
/// them (`boot/contents.sh`).
pub const MODULES: [NeededModule; 6] = [
    NeededModule { name: "dm_mod", provides: "linear", without: "no pool can be set up", always: true },
    NeededModule { name: "dm_thin_pool", provides: "thin-pool", without: "no pool can be set up", always: true },
    NeededModule { name: "xfs", provides: "xfs", without: "no filesystem can be mounted", always: true },
    NeededModule {
        name: "dm_cache",
        provides: "cache",
        without: "pools with a cache cannot be started",
        always: false,
    },
    NeededModule {
        name: "dm_cache_smq",
        provides: "smq",
        without: "pools with a cache cannot be started",
        always: false,
    },
    NeededModule { name: "dm_crypt", provides: "crypt", without: "encrypted pools cannot be started", always: false },
];

/// The programs without which the daemon does not start.
pub fn programs() -> Vec<NeededProgram> {
    let package = |program| match program {
        Program::MkfsXfs | Program::XfsDb => "xfsprogs",
        Program::ThinCheck | Program::ThinRepair | Program::ThinMetadataSize => {
            "thin-provisioning-tools or device-mapper-persistent-data"
        }
    };
    Program::ALL.map(|program| NeededProgram { name: program.name().to_owned(), package: package(program) }).into()
}

/// The programs below this root that Clevis needs to decrypt with these pins.
pub fn clevis_programs<'a>(root: &Path, pins: impl IntoIterator<Item = &'a str>) -> Vec<NeededProgram> {
    let needed = clevis::needed_to_decrypt(pins, &places(root));
    let unique: BTreeMap<String, &'static str> = needed.into_iter().collect();
    unique.into_iter().map(|(name, package)| NeededProgram { name, package }).collect()
}

/// Where the daemon would find a program if this were its root.
pub fn find(root: &Path, name: &str) -> Option<PathBuf> {
    programs::find(name, &places(root))
}

fn places(root: &Path) -> String {
    let below = |place: &str| root.join(place.trim_start_matches('/')).to_string_lossy().into_owned();
    PLACES.split(':').map(below).collect::<Vec<_>>().join(":")
}

/// The result of a program that ended in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// It exited with status 0.
    pub succeeded: bool,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

/// Runs programs of this machine side by side, each for `limit` at most. Returns the results in
/// their order; `None` for a program that was killed at its limit.
///
/// # Errors
/// For each program that is not installed or cannot be started.
pub fn run_each(commands: &[(&str, Vec<&OsStr>)], limit: Duration) -> Vec<io::Result<Option<Ran>>> {
    let mut results: Vec<io::Result<Option<Ran>>> =
        commands.iter().map(|_| Err(io::Error::from(io::ErrorKind::NotFound))).collect();
    let paths: Vec<(usize, PathBuf)> =
        commands.iter().enumerate().filter_map(|(at, (name, _))| Some((at, programs::find(name, PLACES)?))).collect();
    let invocations = paths.iter().map(|(at, path)| Invocation {
        label: commands[*at].0.to_owned(),
        path,
        arguments: &commands[*at].1,
        environment: &[],
        input: Input::Bytes(&[]),
        limit: Some(limit),
        namespace: None,
    });
    super::processes::run_all(invocations.collect(), |number, finished| {
        results[paths[number].0] = finished.map(|finished| match finished.end {
            ChildEnd::Exited(status) => Some(Ran {
                succeeded: status.success(),
                output: String::from_utf8_lossy(&finished.output.bytes).into_owned(),
                errors: programs::one_line(&finished.errors.bytes),
            }),
            ChildEnd::TimedOut | ChildEnd::Unkillable => None,
        });
        false
    });
    results
}

/// Why a program has no output. Each text names the program.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NoOutput {
    #[error("{0} is not installed")]
    NotInstalled(String),
    #[error("{0} did not end in time and was killed")]
    Endless(String),
    #[error("{program} failed: {errors}")]
    Failed { program: String, errors: String },
    #[error("cannot start {program}: {source}")]
    NotStarted { program: String, source: io::Error },
}

/// The output of a program of this machine, which must exit with status 0 within `limit`.
///
/// # Errors
/// The program is not installed, fails, or does not end in time.
pub fn output(program: &str, arguments: Vec<&OsStr>, limit: Duration) -> std::result::Result<String, NoOutput> {
    let name = || program.to_owned();
    match run_each(&[(program, arguments)], limit).pop() {
        Some(Ok(Some(ran))) if ran.succeeded => Ok(ran.output),
        Some(Ok(Some(ran))) => Err(NoOutput::Failed { program: name(), errors: ran.errors }),
        Some(Ok(None)) => Err(NoOutput::Endless(name())),
        Some(Err(source)) if source.kind() != io::ErrorKind::NotFound => {
            Err(NoOutput::NotStarted { program: name(), source })
        }
        _ => Err(NoOutput::NotInstalled(name())),
    }
}

/// Nodes of the block devices on which udev has found a Stratis signature or a LUKS header.
///
/// # Errors
/// If udev's database cannot be read.
pub fn stratis_devices() -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = super::database::block_devices()?
        .into_iter()
        .filter(|device| matches!(device.class, DeviceClass::Stratis | DeviceClass::Luks))
        .map(|device| device.path)
        .collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{base::units::Sectors, platform::dm};

    #[test]
    fn every_target_has_its_module() {
        // One row for each target that a table of the engine has; the kernel's own names.
        let device = crate::platform::DeviceNumber { major: 1, minor: 1 };
        let targets = [
            dm::Target::Linear { device, offset: Sectors::ZERO },
            dm::Target::Thin { pool: device, id: 0 },
            dm::Target::ThinPool {
                metadata: device,
                data: device,
                block: Sectors(2048),
                low_water: crate::base::units::DataBlocks(0),
                features: Vec::new(),
            },
            dm::Target::Cache {
                metadata: device,
                cache: device,
                origin: device,
                block: Sectors(2048),
                features: Vec::new(),
                policy: "smq".to_owned(),
            },
            dm::Target::Crypt { cipher: String::new(), iv_offset: Sectors::ZERO, device, offset: Sectors::ZERO },
        ];
        for target in targets {
            let line = dm::Line { start: Sectors::ZERO, length: Sectors::ZERO, target };
            let kind = line.kind();
            // The module of thin pools provides thin devices too.
            let provided = if kind == "thin" { "thin-pool" } else { kind };
            assert!(MODULES.iter().any(|module| module.provides == provided), "no module for {kind}");
        }
    }

    #[test]
    fn programs_are_found_below_a_root() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path(), "xfs_db"), None);
        let path = root.path().join("usr/sbin/xfs_db");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(root.path(), "xfs_db"), Some(path));
        let named: Vec<String> = clevis_programs(root.path(), ["tang"]).into_iter().map(|needed| needed.name).collect();
        assert_eq!(named, ["clevis", "clevis-decrypt", "clevis-decrypt-tang", "curl", "jose"]);
    }
}
