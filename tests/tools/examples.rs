//! The examples on the manual pages of the tools, run by a shell as they stand there, and the
//! result that their page promises.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::Value;
use stratisd::cli::PROGRAMS;
use support::{bench::Bench, bus::Bus, processes::command};
use tempfile::TempDir;

use crate::{Said, TOOLS, doctor::Patient, image, pool_with_filesystem};

/// The programs whose examples run here. Those of the daemons are the first session of README.md.
const HERE: [(&str, &str); 7] = [
    ("stratis-predict-usage", env!("CARGO_BIN_EXE_stratis-predict-usage")),
    ("stratis-decode-dm", env!("CARGO_BIN_EXE_stratis-decode-dm")),
    ("stratisd-tools", TOOLS),
    ("stratis-dumpmetadata", TOOLS),
    ("stratis-doctor", TOOLS),
    ("stratis-base32-decode", env!("CARGO_BIN_EXE_stratis-base32-decode")),
    ("stratis-str-cmp", env!("CARGO_BIN_EXE_stratis-str-cmp")),
];

#[track_caller]
fn succeeded(said: &Said) {
    assert!(said.status == 0 && said.stderr.is_empty(), "{said:?}");
}

/// The real `thin_metadata_size` predicts, if it is installed; the machine has it in any case.
#[track_caller]
fn predicted(said: &Said, total: &str) {
    match Path::new("/usr/sbin/thin_metadata_size").exists() {
        true => assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap()["total"], total, "{said:?}"),
        false => assert!(said.status == 1 && said.stderr.contains("cannot find thin_metadata_size"), "{said:?}"),
    }
}

/// What the example does.
#[track_caller]
fn check(example: &str, said: &Said) {
    match example {
        "stratis-predict-usage pool --device-size 1099511627776 --device-size 1099511627776" => {
            predicted(said, "2199023255552");
        }
        "stratis-predict-usage pool --device-size 10737418240 --filesystem-size 1073741824" => {
            predicted(said, "10737418240");
        }
        "stratis-predict-usage filesystem --filesystem-size 1073741824" => said.is(0, "{\"used\":\"22020096\"}\n", ""),
        "stratis-decode-dm --output symlink /dev/mapper/stratis-1-$POOL-thin-fs-$FILESYSTEM" => {
            said.is(0, "/dev/stratis/p1/f1\n", "");
        }
        // What is found depends on the system on which this test runs.
        "stratisd-tools doctor" | "stratis-doctor" => assert!((0..=3).contains(&said.status), "{said:?}"),
        "stratisd-tools dumpmetadata --only pool /dev/sdb > pool.json\nstratisd-tools checkmetadata pool.json" => {
            succeeded(said);
        }
        "stratis-dumpmetadata --only pool /dev/sdb" => {
            succeeded(said);
            assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap()["name"], "p", "{said:?}");
        }
        "stratis-doctor --root /mnt --device /dev/sdb --device /dev/sdc" => succeeded(said),
        "/usr/lib/udev/stratis-base32-decode STRATIS_POOL_NAME OAYQ" => said.is(0, "STRATIS_POOL_NAME=p1\n", ""),
        "/usr/lib/udev/stratis-str-cmp one other" => said.is(0, "1\n", ""),
        _ => panic!("what does this example do? {example}"),
    }
}

#[test]
fn examples_of_the_pages_do_what_they_promise() {
    let folder = TempDir::new().unwrap();
    for (name, program) in HERE {
        symlink(program, folder.path().join(name)).unwrap();
    }
    let bench = Bench::with_two_filesystems();
    let disks = ["/dev/a", "/dev/b"].map(|disk| image(&folder, &bench.sim, disk).display().to_string());
    let system = Patient::healthy();
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let (pool, filesystem) = pool_with_filesystem(&bus);

    let here = folder.path().display().to_string();
    let mut seen = 0;
    for program in PROGRAMS.iter().filter(|program| HERE.iter().any(|(name, _)| *name == program.name)) {
        assert!(!program.page.examples.is_empty(), "{}(8) has no example", program.name);
        for example in program.page.examples {
            let line = [
                ("/usr/lib/udev", here.as_str()),
                ("/dev/sdb", disks[0].as_str()),
                ("/dev/sdc", disks[1].as_str()),
                ("/mnt", &system.at("").display().to_string()),
            ]
            .iter()
            .fold(example.command.to_owned(), |line, (there, here)| line.replace(there, here));
            let mut shell = command("sh");
            shell
                .args(["-ec", &line])
                .current_dir(&folder)
                .env("PATH", format!("{here}:/usr/sbin:/usr/bin:/sbin:/bin"));
            shell.env("POOL", &pool).env("FILESYSTEM", &filesystem);
            shell.env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address).env_remove("RUST_LOG");
            check(example.command, &Said::of(&shell.output().unwrap()));
            seen += 1;
        }
    }
    assert!(fs::metadata(folder.path().join("pool.json")).unwrap().len() > 0);
    assert!(seen >= HERE.len(), "only {seen} examples were run");
}
