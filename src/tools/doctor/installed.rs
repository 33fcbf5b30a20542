//! What must be installed: programs, udev rules, the D-Bus policy, kernel modules. The lists come
//! from the platform, which uses everything that they name.
//!
//! This module must never judge what a program does.

use std::{collections::BTreeSet, ffi::OsStr, time::Duration};

use super::{Diagnosis, identity::DeviceEvidence, system::System};
use crate::platform::linux::needed::{self, MODULES, NeededModule};

const LIMIT: Duration = Duration::from_secs(5);
const RULES: &str = "61-stratisd.rules";
const RULES_FOLDERS: [&str; 4] =
    ["/etc/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"];
const HELPER_FOLDERS: [&str; 2] = ["/usr/lib/udev", "/lib/udev"];
const HELPERS: [&str; 2] = ["stratis-base32-decode", "stratis-str-cmp"];
const POLICY: &str = "stratisd.conf";
const POLICY_FOLDERS: [&str; 3] =
    ["/usr/share/dbus-1/system.d", "/etc/dbus-1/system.d", "/usr/local/share/dbus-1/system.d"];

pub(super) fn check(system: &System, devices: &[DeviceEvidence], report: &mut Diagnosis) {
    check_programs(system, devices, report);
    check_udev(system, report);
    if system.find_in(&POLICY_FOLDERS, POLICY).is_none() {
        report.problem(
            "bus-policy-missing",
            format!("The policy {POLICY} of the system bus is not installed"),
            "the bus does not let the daemon own the name org.storage.stratis3, so the daemon does not start",
            "install stratisd again",
        );
    }
    check_modules(system, report);
}

fn check_programs(system: &System, devices: &[DeviceEvidence], report: &mut Diagnosis) {
    for program in needed::programs() {
        if needed::find(system.root(), &program.name).is_none() {
            report.problem(
                "program-missing",
                format!("The program {} is not installed", program.name),
                "stratisd refuses to start without it",
                format!("install {}", program.package),
            );
        }
    }
    let pins: BTreeSet<&str> = devices.iter().flat_map(|found| found.locks.pins()).collect();
    for program in needed::clevis_programs(system.root(), pins.iter().copied()).into_iter().filter(|_| !pins.is_empty())
    {
        if needed::find(system.root(), &program.name).is_none() {
            let bound = pins.iter().copied().collect::<Vec<_>>().join(", ");
            report.warning(
                "program-missing",
                format!("The program {} is not installed", program.name),
                format!("a pool is bound to Clevis ({bound}), which needs it to unlock the pool"),
                format!("install {}", program.package),
            );
        }
    }
}

fn check_udev(system: &System, report: &mut Diagnosis) {
    let why = "without it udev makes no links /dev/stratis/POOL/FILESYSTEM, and mounts by these names fail";
    match system.find_in(&RULES_FOLDERS, RULES) {
        None => {
            report.problem(
                "udev-rules-missing",
                format!("The udev rules {RULES} are not installed"),
                why,
                "install stratisd again",
            );
        }
        Some(path) if system.is_masked(&path) => {
            report.problem(
                "udev-rules-missing",
                format!("The udev rules {path} are masked"),
                why,
                format!("remove {path}"),
            );
        }
        Some(_) => {}
    }
    for helper in HELPERS {
        if system.find_in(&HELPER_FOLDERS, helper).is_none() {
            let what = format!("The program {helper}, which udev runs, is not installed");
            report.problem("udev-rules-missing", what, why, "install stratisd again");
        }
    }
    let mut rules = RULES_FOLDERS.iter().flat_map(|folder| {
        system
            .names(folder)
            .into_iter()
            .filter(|name| name.ends_with(".rules"))
            .map(move |name| format!("{folder}/{name}"))
    });
    if !rules.any(|rule| system.text(&rule).is_some_and(|text| text.contains("udevcomplete"))) {
        report.problem(
            "udev-rules-missing",
            "The udev rules of device-mapper (95-dm-notify.rules) are not installed",
            "stratisd refuses to start without them: udev would never report back",
            "install dmsetup or device-mapper",
        );
    }
}

/// What is known about the kernel.
struct Kernel {
    /// Its release, if it is that of the running system.
    release: String,
    /// Names of modules that are built in, loaded, or can be loaded.
    modules: BTreeSet<String>,
    /// Names of targets and filesystems that it provides now.
    provided: BTreeSet<String>,
}

fn check_modules(system: &System, report: &mut Diagnosis) {
    let kernels = kernels(system);
    if kernels.is_empty() {
        report.unexamined("module-missing", "/lib/modules has no kernel, and this is not the running system");
    }
    for kernel in kernels {
        if kernel.modules.is_empty() && kernel.provided.is_empty() {
            let why = format!("no list of the modules of kernel {} can be read, and this is not root", kernel.release);
            report.unexamined("module-missing", why);
            continue;
        }
        for NeededModule { name, provides, without, always } in MODULES {
            if kernel.modules.contains(name) || kernel.provided.contains(provides) {
                continue;
            }
            // The kernel does not list cache policies. A policy is part of the target if that is
            // built in.
            if name == "dm_cache_smq" && kernel.provided.contains("cache") {
                continue;
            }
            let what = format!("The kernel {} has no module {name} ({provides})", kernel.release);
            let remedy = "install the package with the modules of this kernel, or boot a kernel that has it";
            match always {
                true => report.problem("module-missing", what, without, remedy),
                false => report.warning("module-missing", what, without, remedy),
            }
        }
    }
}

fn kernels(system: &System) -> Vec<Kernel> {
    match system.text("/proc/sys/kernel/osrelease") {
        Some(release) => vec![kernel(system, release.trim(), true)],
        None => system.names("/lib/modules").iter().map(|release| kernel(system, release, false)).collect(),
    }
}

fn kernel(system: &System, release: &str, runs: bool) -> Kernel {
    let mut modules = BTreeSet::new();
    for list in ["modules.builtin", "modules.dep"] {
        let text = system.text(&format!("/lib/modules/{release}/{list}")).unwrap_or_default();
        modules.extend(text.lines().filter_map(module_name));
    }
    let mut provided = BTreeSet::new();
    if runs {
        modules.extend(system.names("/sys/module"));
        let filesystems = system.text("/proc/filesystems").unwrap_or_default();
        provided.extend(filesystems.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned));
    }
    if runs && system.is_live() {
        provided.extend(targets());
    }
    Kernel { release: release.to_owned(), modules, provided }
}

/// The module in a line of `modules.builtin` or `modules.dep`:
/// `kernel/drivers/md/dm-thin-pool.ko.xz: …`.
fn module_name(line: &str) -> Option<String> {
    let file = line.split(':').next()?.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// The device-mapper targets that the running kernel has now.
fn targets() -> Vec<String> {
    let listed = needed::output("dmsetup", vec![OsStr::new("targets")], LIMIT).unwrap_or_default();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::module_name;

    #[test]
    fn modules_are_read_from_either_list() {
        let check = |line: &str, name: &str| assert_eq!(module_name(line).as_deref(), Some(name));
        check("kernel/drivers/md/dm-thin-pool.ko.xz: kernel/drivers/md/dm-bufio.ko.xz", "dm_thin_pool");
        check("kernel/fs/xfs/xfs.ko", "xfs");
        assert_eq!(module_name(""), None);
    }
}
