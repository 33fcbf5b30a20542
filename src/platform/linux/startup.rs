//! Prepares a machine for the daemon in the order of `docs/spec/engine/engine-behaviour.md` §1.3,
//! with the checks on the way. This module knows nothing of pools.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use log::warn;

use super::{
    Linux, devices::DeviceAccess, dm::Mapper, keyring, listener::Listener, luks::Luks, monitor::udev_runs, mounts,
    namespace, orphans, programs::Programs, secrecy,
};
use crate::platform::{Error, Result};

/// The directories of udev's rules.
const RULES: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];
/// How long to wait for processes that still re-encrypt devices for an earlier daemon; a step takes
/// about a second.
const ORPHANS_LIMIT: Duration = Duration::from_secs(30);
/// The command that a device-mapper rule runs when udev has processed a device.
const COMPLETION: &str = "udevcomplete";

impl Linux {
    /// Prepares the machine: leaves the root mount namespace, checks programs and device-mapper,
    /// creates the private directory. Call it before any thread is started: only the calling thread
    /// changes its namespace, and later threads inherit it. The program must have called
    /// [`run_as_child`](super::run_as_child) before.
    ///
    /// # Errors
    /// [`Error::Missing`] says what the machine lacks; other
    /// errors name the call that failed.
    pub fn start() -> Result<Linux> {
        secrecy::no_core_dumps().map_err(|fault| {
            Error::Missing(format!("cannot disable core dumps of this process: {fault}; run as root"))
        })?;
        if let Err(fault) = secrecy::lock_memory() {
            warn!("cannot lock the memory of this process, so keys may reach swap: {fault}; raise LimitMEMLOCK");
        }
        keyring::make_process_keyring()?;
        let origin = namespace::leave()?;
        let programs = Programs::find()?;
        let mapper = Mapper::open()?;
        check_udev(udev_runs(), &RULES.map(PathBuf::from))?;
        let private_directory = mounts::make_private_directory()?;
        Ok(Linux {
            devices: DeviceAccess::default(),
            origin,
            programs,
            mapper,
            private_directory,
            luks: Luks::default(),
            listener: Listener::default(),
        })
    }

    /// Waits a bounded time for processes that still work on LUKS2 devices for an earlier daemon.
    /// Call it when that daemon has ended.
    pub fn wait_for_orphans(&self) {
        orphans::wait_for_end(ORPHANS_LIMIT);
    }
}

/// Without udev, no device is found and no link is made. Without device-mapper's own rules, udev
/// never reports back, and every wait for it would time out. So the daemon refuses at once.
fn check_udev(runs: bool, directories: &[PathBuf]) -> Result<()> {
    if !runs {
        return Err(Error::Missing(
            "udev does not run, so the daemon cannot find devices; start it (systemctl start systemd-udevd)".to_owned(),
        ));
    }
    let rules = directories.iter().flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    let reports = |path: &Path| {
        path.extension().is_some_and(|extension| extension == "rules")
            && fs::read(path)
                .is_ok_and(|text| text.windows(COMPLETION.len()).any(|window| window == COMPLETION.as_bytes()))
    };
    if rules.into_iter().any(|rule| reports(&rule.path())) {
        return Ok(());
    }
    Err(Error::Missing(
        "udev runs, but the rules of device-mapper (95-dm-notify.rules) are not installed; install dmsetup \
         (package dmsetup or device-mapper)"
            .to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::check_udev;
    use crate::platform::Error;

    #[test]
    fn the_rules_of_device_mapper_are_recognized() {
        let directory = tempfile::tempdir().unwrap();
        let places = [PathBuf::from("/nonexistent"), directory.path().to_owned()];
        let rule = "ENV{DM_COOKIE}==\"?*\", RUN+=\"/usr/sbin/dmsetup udevcomplete $env{DM_COOKIE}\"\n";
        assert!(matches!(check_udev(true, &places), Err(Error::Missing(_))));
        fs::write(directory.path().join("60-block.rules"), "SUBSYSTEM!=\"block\", GOTO=\"end\"\n").unwrap();
        fs::write(directory.path().join("95-dm-notify.rules.off"), rule).unwrap();
        assert!(matches!(check_udev(true, &places), Err(Error::Missing(_))));
        fs::write(directory.path().join("95-dm-notify.rules"), rule).unwrap();
        assert!(check_udev(true, &places).is_ok());
        let error = check_udev(false, &places).unwrap_err();
        assert!(error.to_string().contains("udev does not run"), "{error}");
    }
}
