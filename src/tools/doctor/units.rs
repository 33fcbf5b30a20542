//! Checks that the systemd units are installed, not masked, enabled and not failed.
//!
//! This module must never start or stop a unit.

use std::{collections::BTreeSet, ffi::OsStr, time::Duration};

use super::{Diagnosis, boot::FstabLine, system::System};
use crate::platform::linux::needed;

const DAEMON: &str = "stratisd.service";
const FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn check(system: &System, fstab: &[FstabLine], has_pools: bool, report: &mut Diagnosis) {
    let mut needed_units = BTreeSet::from([DAEMON.to_owned()]);
    for unit in fstab.iter().flat_map(FstabLine::units) {
        if let Some((template, _)) = unit.split_once('@') {
            needed_units.insert(format!("{template}@.service"));
            needed_units.insert("stratisd-min-postinitrd.service".to_owned());
        }
    }
    for unit in &needed_units {
        let why =
            if unit == DAEMON { "the daemon does not start" } else { "a line of fstab needs it to start its pool" };
        match system.find_in(&FOLDERS, unit) {
            None => report.problem(
                "unit-missing",
                format!("The unit {unit} is not installed"),
                why,
                "install stratisd again",
            ),
            Some(path) if system.is_masked(&path) => {
                report.problem(
                    "unit-missing",
                    format!("The unit {unit} is masked"),
                    why,
                    format!("systemctl unmask {unit}"),
                );
            }
            Some(_) => {}
        }
    }
    let wanted = FOLDERS.iter().any(|folder| {
        let mut names =
            system.names(folder).into_iter().filter(|name| name.ends_with(".wants") || name.ends_with(".requires"));
        names.any(|name| system.exists(&format!("{folder}/{name}/{DAEMON}")))
    });
    if !wanted {
        let what = format!("Nothing starts {DAEMON} at boot");
        let why = match has_pools {
            true => "this system has pools, but no daemon starts, watches or extends them",
            false => "no pool is started, watched or extended after a boot",
        };
        report.warning("unit-disabled", what, why, format!("systemctl enable --now {DAEMON}"));
    }
    if system.is_live() {
        check_state(&needed_units, report);
    }
}

fn check_state(units: &BTreeSet<String>, report: &mut Diagnosis) {
    let asked: Vec<&str> = units.iter().map(String::as_str).filter(|unit| !unit.contains('@')).collect();
    let mut words: Vec<&OsStr> = ["show", "--property=Id,LoadState,ActiveState,Result", "--"].map(OsStr::new).into();
    words.extend(asked.iter().map(OsStr::new));
    words.push(OsStr::new("stratis-fstab-setup*"));
    match needed::output("systemctl", words, LIMIT) {
        Ok(shown) => check_properties(&shown, report),
        Err(why) => report.unexamined("unit-failed", why.to_string()),
    }
}

/// Reads what `systemctl show` prints: one property on each line, an empty line between units.
fn check_properties(shown: &str, report: &mut Diagnosis) {
    for unit in shown.split("\n\n") {
        let value =
            |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        if value("ActiveState") == "failed" {
            let name = value("Id");
            report.problem(
                "unit-failed",
                format!("The unit {name} has failed (result: {})", value("Result")),
                "its work is not done until it is restarted",
                format!("read `journalctl -b -u {name}`, remove the cause, and `systemctl restart {name}`"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_units_are_named_with_their_result() {
        let mut report = Diagnosis::default();
        let shown = "Id=stratisd.service\nLoadState=loaded\nActiveState=active\nResult=success\n\n\
                     Id=stratis-fstab-setup@x.service\nLoadState=loaded\nActiveState=failed\nResult=exit-code\n";
        check_properties(shown, &mut report);
        let what: Vec<&str> = report.findings().iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(what, ["The unit stratis-fstab-setup@x.service has failed (result: exit-code)"]);
    }
}
