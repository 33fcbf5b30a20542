//! What the initrd contains (`boot/contents.sh`) compared with what the daemon can run and load: a
//! program that is missing there would be noticed at a boot.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use stratisd::platform::{
    Program,
    linux::{needed::MODULES, programs_to_decrypt},
};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The lists of the file, by their names.
fn lists() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("boot/contents.sh");
    let assignments = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    assignments
        .map(|line| {
            let (name, words) = line.split_once("='").unwrap();
            let words = words.strip_suffix('\'').unwrap();
            (name.to_owned(), words.split(' ').map(str::to_owned).collect())
        })
        .collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

#[test]
fn every_program_of_the_daemon_is_contained() {
    assert_eq!(lists()["STRATIS_PROGRAMS"], set(Program::ALL.map(Program::name)));
}

#[test]
fn every_program_of_clevis_is_contained() {
    let lists = lists();
    let common = &lists["STRATIS_CLEVIS_PROGRAMS"];
    for (pin, list) in [("tang", "TANG"), ("tpm2", "TPM2"), ("sss", "SSS")] {
        let own = &lists[&format!("STRATIS_CLEVIS_PROGRAMS_{list}")];
        assert_eq!(common | own, programs_to_decrypt(pin), "{pin}");
    }
}

/// The module of each target that the daemon creates. The module of the filesystem is in another
/// list.
#[test]
fn every_target_has_its_kernel_module() {
    let modules = MODULES.iter().map(|module| module.name).filter(|name| *name != "xfs");
    assert_eq!(lists()["STRATIS_TARGET_MODULES"], set(modules));
}

#[test]
fn every_list_is_used_by_both_generators() {
    let of = |names: &[&str]| names.iter().map(|name| read(name)).collect::<String>();
    let dracut = of(&["boot/dracut/50stratis/module-setup.sh", "boot/dracut/50stratis-clevis/module-setup.sh"]);
    let initramfs_tools = of(&["boot/initramfs-tools/hook", "boot/initramfs-tools/hook-clevis"]);
    for name in lists().keys() {
        assert!(dracut.contains(&format!("${name}")), "dracut does not use {name}");
        // busybox has the programs of the shell.
        let by_busybox = ["STRATIS_SCRIPT_PROGRAMS", "STRATIS_CLEVIS_SCRIPT_PROGRAMS"].contains(&name.as_str());
        assert!(by_busybox || initramfs_tools.contains(&format!("${name}")), "initramfs-tools does not use {name}");
    }
}

/// The scripts wait for a pool whose devices are missing, and recognize it by the error.
#[test]
fn the_scripts_recognize_missing_devices() {
    use stratisd::{base::name::Name, engine::Error};
    let error = Error::DevicesMissing { pool: Name::new("p").unwrap(), missing: Vec::new(), total: 3 };
    let functions = read("boot/stratis-setup-functions");
    let (_, pattern) = functions.split_once("case $stratis_why in\n            *'").unwrap();
    let (pattern, _) = pattern.split_once("'*)").unwrap();
    assert!(error.to_string().contains(pattern), "{error}: {pattern}");
}
