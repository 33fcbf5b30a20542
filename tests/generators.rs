//! The systemd generators as systemd runs them: with three folders, under both names, in an initrd
//! and outside, with any kernel command line.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]
#![allow(clippy::disallowed_methods, reason = "the programs under test are run as others run them")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

const SETUP: &str = "stratis-setup-generator";
const CLEVIS: &str = "stratis-clevis-setup-generator";
const POOL: &str = "7f951e31-059b-48bd-ba8c-4fd0405974e5";

/// The three folders of a generator, and a folder with the program under its two names.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        for name in ["normal", "early", "late", "bin"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in [SETUP, CLEVIS, "other"] {
            symlink(env!("CARGO_BIN_EXE_stratis-generator"), folder.path().join("bin").join(name)).unwrap();
        }
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, name: &str, kernel_line: &str) -> Command {
        let mut command = Command::new(self.path("bin").join(name));
        command
            .env("SYSTEMD_PROC_CMDLINE", kernel_line)
            .env("SYSTEMD_IN_INITRD", "1")
            .env("SYSTEMD_LOG_TARGET", "console");
        command
    }

    fn run(&self, name: &str, kernel_line: &str) -> Output {
        let folders = ["normal", "early", "late"].map(|name| self.path(name));
        self.command(name, kernel_line).args(folders).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, name: &str, kernel_line: &str) {
        let output = self.run(name, kernel_line);
        assert!(output.status.success(), "{output:?}");
    }

    #[track_caller]
    fn refused(&self, name: &str, kernel_line: &str, why: &str) {
        let output = self.run(name, kernel_line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(said.starts_with(&format!("{name}: cannot ")) && said.contains(why), "{said}");
        assert_eq!(self.written(), [""; 0]);
    }

    /// All files and links below the folders of systemd.
    fn written(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = ["normal", "early", "late"].map(|name| self.path(name)).to_vec();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(self.folder.path()).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }
}

const SETUP_FILES: [&str; 2] = ["early/initrd.target.wants/stratis-setup.service", "early/stratis-setup.service"];

#[test]
fn the_pool_is_wanted_by_the_initrd() {
    let bench = Bench::new();
    bench.succeeds(SETUP, &format!("quiet root=/dev/stratis/p/f stratis.rootfs.pool_uuid={POOL}\n"));
    assert_eq!(bench.written(), SETUP_FILES);
    let link = bench.path(SETUP_FILES[0]);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../stratis-setup.service"));
    let unit = fs::read_to_string(link).unwrap();
    assert!(unit.contains(&format!("Environment='STRATIS_ROOTFS_UUID={POOL}'\n")), "{unit}");
}

/// A second run, at `systemctl daemon-reload`, failed because the link existed.
#[test]
fn a_second_run_changes_nothing() {
    let bench = Bench::new();
    for _ in 0..2 {
        bench.succeeds(SETUP, &format!("stratis.rootfs.pool_uuid={POOL}"));
        assert_eq!(bench.written(), SETUP_FILES);
    }
    // A link that leads elsewhere is made again.
    let link = bench.path(SETUP_FILES[0]);
    fs::remove_file(&link).unwrap();
    symlink("/elsewhere", &link).unwrap();
    bench.succeeds(SETUP, &format!("stratis.rootfs.pool_uuid={POOL}"));
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../stratis-setup.service"));
}

#[test]
fn clevis_writes_a_unit_without_a_link() {
    let bench = Bench::new();
    bench.succeeds(CLEVIS, &format!("stratis.rootfs.pool_uuid={POOL}"));
    assert_eq!(bench.written(), ["early/stratis-clevis-setup.service"]);
}

#[test]
fn every_form_of_a_uuid_is_understood() {
    for (line, pools) in [
        (format!("stratis.rootfs.pool_uuid=\"{POOL}\""), POOL.to_owned()),
        (format!("\"stratis.rootfs.pool_uuid={POOL}\""), POOL.to_owned()),
        (format!("stratis.rootfs.pool-uuid={}", POOL.replace('-', "").to_uppercase()), POOL.to_owned()),
        (
            format!("stratis.rootfs.pool_uuid= stratis.rootfs.pool_uuid={POOL} stratis.rootfs.pool_uuid={POOL}"),
            POOL.to_owned(),
        ),
        (
            format!("stratis.rootfs.pool_uuid={POOL} stratis.rootfs.pool_uuid={}", "a".repeat(32)),
            format!("{POOL} aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"),
        ),
    ] {
        let bench = Bench::new();
        bench.succeeds(SETUP, &line);
        let unit = fs::read_to_string(bench.path(SETUP_FILES[1])).unwrap();
        assert!(unit.contains(&format!("'STRATIS_ROOTFS_UUID={pools}'")), "{line}: {unit}");
    }
}

#[test]
fn nothing_to_do_writes_nothing() {
    let bench = Bench::new();
    for line in [
        "",
        "root=/dev/sda1 quiet",
        "stratis.rootfs.pool_uuid",
        "stratis.rootfs.pool_uuid=",
        &format!("xstratis.rootfs.pool_uuid={POOL} a=\"b stratis.rootfs.pool_uuid={POOL}\""),
    ] {
        for name in [SETUP, CLEVIS] {
            bench.succeeds(name, line);
            assert_eq!(bench.written(), [""; 0], "{line}");
        }
    }
    // Outside the initrd.
    let folders = ["normal", "early", "late"].map(|name| bench.path(name));
    let mut command = bench.command(SETUP, &format!("stratis.rootfs.pool_uuid={POOL}"));
    assert!(command.env("SYSTEMD_IN_INITRD", "0").args(folders).status().unwrap().success());
    assert_eq!(bench.written(), [""; 0]);
}

#[test]
fn bad_input_is_an_error() {
    let bench = Bench::new();
    for value in ["p1", "7f951e31-059b-48bd-ba8c-4fd0405974e", "'a b'", "{7f951e31-059b-48bd-ba8c-4fd0405974e5}"] {
        for name in [SETUP, CLEVIS] {
            bench.refused(name, &format!("stratis.rootfs.pool_uuid={value}"), "is not a UUID");
        }
    }
    let good = format!("stratis.rootfs.pool_uuid={POOL}");
    bench.refused("other", &good, "unknown program name");
    for count in [0, 1, 2, 4] {
        let output = bench.command(SETUP, &good).args(vec![bench.path("early"); count]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("three directories"));
        assert_eq!(bench.written(), [""; 0]);
    }
    fs::remove_dir(bench.path("early")).unwrap();
    let output = bench.run(SETUP, &good);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("early/stratis-setup.service"));
}
