//! `stratis-dumpmetadata`, `stratis-checkmetadata` and `stratis-printmetadata`: on pools of the
//! engine, and on damaged images.

use std::{fs, os::unix::fs::FileExt, path::Path};

use proptest::prelude::*;
use serde_json::Value;
use stratisd::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::Sectors,
    },
    engine::{
        metadata::{
            Layout, Mda, MetadataVersion, PlannedWrite, PoolMetadata, StaticHeader,
            header::{RESERVED_SIZE, plan_initialize},
        },
        ops,
    },
    platform::{Timestamp, sim::Sim},
    tools::{check_metadata, print_metadata},
};
use support::{
    bench::{Bench, name},
    disks, keys,
};
use tempfile::TempDir;

use crate::{Said, TOOLS, image, run};

fn tool(words: &[&str], path: &Path) -> Said {
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    words.push(path.display().to_string());
    run(TOOLS, &words)
}

const JSON: &str = r#"{"name":"p1","started":true,"backstore":{"cap":{"allocs":[[34816,19965184]]}}}"#;

/// The image of the specification's example: 40000 sectors, version 2, one generation.
fn example(folder: &TempDir) -> std::path::PathBuf {
    let header = StaticHeader {
        reserved: RESERVED_SIZE,
        ..StaticHeader::new(
            "11111111-2222-3333-4444-555555555555".parse::<PoolUuid>().unwrap(),
            "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee".parse::<DevUuid>().unwrap(),
            MetadataVersion::V2,
            Sectors(40_000),
            1_700_000_000,
        )
    };
    let layout = Layout::new(header.mda_size).unwrap();
    let mut steps = Mda::plan_initialize(layout);
    let stamp = Timestamp { seconds: 1_700_000_100, nanoseconds: 123_456_789 };
    steps.extend(Mda::empty(layout).plan_write(JSON.as_bytes(), stamp).unwrap().steps);
    steps.extend(plan_initialize(&header));
    let path = folder.path().join("image");
    let file = fs::File::create(&path).unwrap();
    file.set_len(40_000 * 512).unwrap();
    for step in steps {
        if let PlannedWrite::At(offset, bytes) = step {
            file.write_all_at(&bytes, offset).unwrap();
        }
    }
    path
}

const HEADER: &str = "StaticHeader {
    blkdev_size: BlockdevSize(
        Sectors(40000),
    ),
    sigblock_version: V2,
    identifiers: StratisIdentifiers {
        pool_uuid: PoolUuid(
            11111111-2222-3333-4444-555555555555,
        ),
        device_uuid: DevUuid(
            aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee,
        ),
    },
    mda_size: MDASize(
        Sectors(2032),
    ),
    reserved_size: ReservedSize(
        Sectors(6144),
    ),
    flags: 0,
    initialization_time: 2023-11-14T22:13:20Z,
}
";

const POOL: &str = r#"{
  "backstore": {
    "cap": {
      "allocs": [
        [
          34816,
          19965184
        ]
      ]
    }
  },
  "name": "p1",
  "started": true
}
"#;

#[test]
fn the_documented_dump_is_reproduced() {
    let folder = tempfile::tempdir().unwrap();
    let path = example(&folder);
    let before = fs::read(&path).unwrap();
    let inner: String = HEADER.lines().map(|line| format!("    {line}\n")).collect();
    let area = format!(
        "BDA {{\n    header: {},\n    regions: MDARegions {{
        region_size: MDARegionSize(
            Sectors(508),
        ),
        mda_headers: [
            Some(
                MDAHeader {{
                    last_updated: 2023-11-14T22:15:00.123456789Z,
                    used: MetaDataSize(
                        Bytes({}),
                    ),
                    data_crc: ",
        inner.trim(),
        JSON.len()
    );
    let said = tool(&["dumpmetadata"], &path);
    let start = format!("Signature block: \n\nHeader:\n{HEADER}\n\n{area}");
    assert!(said.stdout.starts_with(&start), "{}\n---\n{start}", said.stdout);
    let end = format!(
        "                }},\n            ),\n            None,\n        ],\n    }},\n}}\n\nPool metadata:\n{POOL}"
    );
    assert!(said.stdout.ends_with(&end), "{}\n---\n{end}", said.stdout);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));

    tool(&["stratis-dumpmetadata", "--only", "pool"], &path).is(0, POOL, "");
    let bytes = tool(&["dumpmetadata", "-b"], &path).stdout;
    // The bytes of the checksum depend on the rest.
    let hex = "\n\nBytes:\n\nLength: 512 (0x200) bytes\n0000:   ";
    assert!(bytes.contains(hex), "{bytes}");
    assert!(bytes.contains("  21 53 74 72  61 30 74 69  73 86 ff 02   "), "{bytes}");
    assert!(
        bytes.contains("\n0010:   5e 41 72 68  40 9c 00 00  00 00 00 00  02 00 00 00   ^Arh@...........\n"),
        "{bytes}"
    );
    assert!(bytes.contains("\n01f0:   "), "{bytes}");
    assert_eq!(fs::read(&path).unwrap(), before, "the device was changed");
}

#[test]
fn links_run_the_command_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("stratis-dumpmetadata");
    std::os::unix::fs::symlink(TOOLS, &link).unwrap();
    let path = example(&folder);
    run(&link.display().to_string(), &["--only", "pool", &path.display().to_string()]).is(0, POOL, "");
    let version = run(&link.display().to_string(), &["-V"]);
    assert!(version.stdout.starts_with("stratis-dumpmetadata "), "{version:?}");
    let other = folder.path().join("stratis-other");
    std::os::unix::fs::symlink(TOOLS, &other).unwrap();
    run(&other.display().to_string(), &["x"]).is(2, "", "Unknown executable name stratis-other\n");
    assert_eq!(run::<&str>(TOOLS, &[]).status, 2);
    assert!(run(TOOLS, &["-V"]).stdout.starts_with("stratisd-tools "));
    assert_eq!(run(TOOLS, &["stratis-other"]).status, 2);
}

#[test]
fn damaged_copies_are_shown_and_not_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let path = example(&folder);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 512], 512).unwrap();
    let damaged = fs::read(&path).unwrap();
    let said = tool(&["dumpmetadata"], &path);
    let start = format!(
        "Signature block 1: \n\nHeader:\nNo signature buffer\n\n\nSignature block 2: \n\nHeader:\n{HEADER}\n\nBDA {{"
    );
    assert!(said.status == 0 && said.stdout.starts_with(&start), "{}", said.stdout);
    tool(&["dumpmetadata", "--only", "pool"], &path).is(0, POOL, "");
    // One byte of the other copy.
    file.write_all_at(&[0xff], 9 * 512 + 300).unwrap();
    let said = tool(&["dumpmetadata"], &path);
    assert!(said.status == 1 && said.stdout.contains("\nError: its checksum is wrong"), "{said:?}");
    assert!(said.stderr.starts_with("No valid StaticHeader found: "), "{said:?}");
    assert_eq!(fs::read(&path).unwrap()[512..1024], damaged[512..1024]);
}

#[test]
fn devices_without_metadata_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, vec![0; 1 << 20]).unwrap();
    let both = "Signature block 1: \n\nHeader:\nNo signature buffer\n\n\nSignature block 2: \n\nHeader:\nNo signature buffer\n";
    tool(&["dumpmetadata"], &empty).is(1, both, "No valid Stratis signature found\n");
    tool(&["dumpmetadata", "--only", "pool"], &empty).is(1, "", "No valid Stratis signature found\n");
    let short = folder.path().join("short");
    fs::write(&short, "").unwrap();
    let said = tool(&["dumpmetadata"], &short);
    assert!(said.status == 1 && said.stdout.contains("\nUnreadable\n"), "{said:?}");
    assert!(said.stderr.starts_with("No valid StaticHeader found: "), "{said:?}");
    let said = tool(&["dumpmetadata"], &folder.path().join("none"));
    assert!(said.status == 1 && said.stderr.starts_with("Error opening device: "), "{said:?}");
    let said = tool(&["dumpmetadata"], folder.path());
    assert!(said.status == 1 && said.stderr.starts_with("Error opening device: "), "{said:?}");

    // Initialized and never written.
    let path = example(&folder);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let layout = Layout::new(Sectors(2032)).unwrap();
    for step in Mda::plan_initialize(layout) {
        if let PlannedWrite::At(offset, bytes) = step {
            file.write_all_at(&bytes, offset).unwrap();
        }
    }
    let said = tool(&["dumpmetadata"], &path);
    assert!(said.status == 0 && said.stdout.ends_with("\n\nPool metadata:\nNone found\n"), "{said:?}");
    tool(&["dumpmetadata", "--only", "pool"], &path).is(0, "", "");
    // Headers of the area, then the contents.
    for (offset, start) in [(8192, "BDA detected but error found: "), (8192 + 32, "BDA detected but error found: ")] {
        let path = example(&folder);
        let file = fs::File::options().write(true).open(&path).unwrap();
        for region in 0..4 {
            file.write_all_at(&[0xff; 8], offset + region * 508 * 512).unwrap();
        }
        let said = tool(&["dumpmetadata"], &path);
        let expected = if offset == 8192 { start } else { "Error during load state: " };
        assert!(said.status == 1 && said.stderr.starts_with(expected), "{said:?}");
        assert!(said.stdout.starts_with("Signature block: \n"), "{said:?}");
    }
}

/// The pool metadata in a file, as the dump of a simulated disk gives it.
fn dumped(folder: &TempDir, sim: &Sim, disk: &str) -> std::path::PathBuf {
    let said = tool(&["dumpmetadata", "--only", "pool"], &image(folder, sim, disk));
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let path = folder.path().join("pool.json");
    fs::write(&path, said.stdout).unwrap();
    path
}

#[test]
fn real_metadata_dumps_checks_and_prints() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with_two_filesystems();
    let path = dumped(&folder, &bench.sim, "/dev/a");
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json, disks::json_on(&bench.sim, "/dev/a"));
    tool(&["checkmetadata"], &path).is(0, "", "");
    tool(&["stratis-checkmetadata"], &path).is(0, "", "");
    let printed = tool(&["printmetadata"], &path);
    assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
    for device in ["/dev/a", "/dev/b"] {
        let line = format!(
            "\nData device: {}\n0: Use: stratis_metadata                0 +         8192 =         8192 sectors\n",
            bench.device("p", device)
        );
        assert!(printed.stdout.contains(&line), "{}", printed.stdout);
    }
}

/// The example of the specification, in which the features are in the order of the alphabet.
#[test]
fn the_documented_print_is_reproduced() {
    let json = r#"{"name":"p","started":true,"backstore":{"data_tier":{"blockdev":{
        "allocs":[[{"parent":"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee","start":278992,"length":20000000}]],
        "devs":[{"uuid":"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee","integrity_meta_allocs":[[8192,270800]]}]},
        "integrity_spec":{"tag_spec":"512b","journal_size":262144,"block_size":4096,"allocate_superblock":true}},
        "cap":{"allocs":[[34816,19965184]],"crypt_meta_allocs":[[0,34816]]}},
        "flex_devs":{"meta_dev":[[51200,1048576]],"thin_meta_dev":[[34816,8192]],
        "thin_data_dev":[[1099776,18000000]],"thin_meta_dev_spare":[[43008,8192]]},
        "thinpool_dev":{"data_block_size":2048,"fs_limit":100,"enable_overprov":true,
        "feature_args":["error_if_no_space","no_discard_passdown","skip_block_zeroing"]}}"#;
    let expected = "\
Thinpool specification:
    Data block size: 2048 sectors
    Feature Args:
        error_if_no_space
        no_discard_passdown
        skip_block_zeroing
    Filesystem limit: 100
    Overprovisioning enabled: true

Integrity specification for data devices:
Allocate Superblock: true
Tag Specification: 512b
Journal Size: 262144 sectors
Block Size: 4096 bytes


Allocations from each data device:
Data device: aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee
0: Use: stratis_metadata                0 +         8192 =         8192 sectors
1: Use: integrity_metadata           8192 +       270800 =       278992 sectors
2: Use: allocated                  278992 +     20000000 =     20278992 sectors


Allocations from each cache device:

Allocations for crypt metadata:
0: Use: metadata                        0 +        34816 =        34816 sectors

Allocations from cap device:
0: Use: allocated                   34816 +     19965184 =     20000000 sectors


Allocations from flex device:
0: Use: thin_meta_dev               34816 +         8192 =        43008 sectors
1: Use: thin_meta_dev_spare         43008 +         8192 =        51200 sectors
2: Use: meta_dev                    51200 +      1048576 =      1099776 sectors
3: Use: thin_data_dev             1099776 +     18000000 =     19099776 sectors
";
    let pool: PoolMetadata = serde_json::from_str(json).unwrap();
    assert_eq!(print_metadata::print(&pool).unwrap(), expected);
    let gap =
        json.replace("[[51200,1048576]]", "[[51208,1048568]]").replace(r#","fs_limit":100,"enable_overprov":true"#, "");
    let printed = print_metadata::print(&serde_json::from_str(&gap).unwrap()).unwrap();
    assert!(
        printed.contains("2: Use: unused                      51200 +            8 =        51208 sectors\n"),
        "{printed}"
    );
    assert!(printed.contains("    Filesystem limit: none\n    Overprovisioning enabled: N/A\n"), "{printed}");
}

#[test]
fn other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for command in ["checkmetadata", "printmetadata"] {
        let missing = tool(&[command], &folder.path().join("none"));
        assert!(missing.status == 1 && missing.stderr.starts_with("Error opening file: "), "{missing:?}");
        for text in ["", "[", "{}", "{\"name\":\"p1\"}", "\u{0}", &"[".repeat(100_000)] {
            fs::write(&path, text).unwrap();
            let said = tool(&[command], &path);
            assert!(said.status == 1 && said.stdout.is_empty(), "{said:?}");
            assert!(said.stderr.starts_with("Error parsing json into structs: "), "{said:?}");
        }
        assert_eq!(run(TOOLS, &[command]).status, 2);
    }
    fs::write(&path, "{\"name\":\"p1\"}").unwrap();
    assert!(tool(&["checkmetadata"], &path).stderr.contains("missing field `backstore`"));
    // Version 1 has no space for a LUKS2 header. The existing program panics here.
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool_of(MetadataVersion::V1, "old", &["/dev/a"]).unwrap();
    let said = tool(&["checkmetadata"], &dumped(&folder, &bench.sim, "/dev/a"));
    assert_eq!(said.status, 1);
    assert!(said.stderr.starts_with("Error: No allocations for crypt metadata"), "{said:?}");
}

/// An operation of a random history. Refused operations are part of it.
#[derive(Debug, Clone, Copy)]
enum Change {
    Filesystem,
    Snapshot,
    Destroy,
    AddDevice,
    Cache,
    Grow,
    Encrypt,
    Decrypt,
    Limit,
    StopStart,
    Reboot,
}

const CHANGES: [Change; 11] = [
    Change::Filesystem,
    Change::Snapshot,
    Change::Destroy,
    Change::AddDevice,
    Change::Cache,
    Change::Grow,
    Change::Encrypt,
    Change::Decrypt,
    Change::Limit,
    Change::StopStart,
    Change::Reboot,
];

fn carry_out(mut bench: Bench, change: Change, at: usize) -> Bench {
    let Some(pool) = bench.pool("p").map(|pool| pool.uuid) else {
        let _ = bench.start_pool("p");
        return bench;
    };
    let new = name(&format!("n{at}"));
    let first = bench.pool("p").unwrap().filesystems.keys().next().copied();
    let device = std::path::PathBuf::from(format!("/dev/x{at}"));
    match (change, first) {
        (Change::Filesystem, _) => drop(bench.create_filesystems("p", &[new.as_str()])),
        (Change::Snapshot, Some(first)) => drop(bench.run(ops::snapshot_filesystem(pool, first, new))),
        (Change::Destroy, Some(first)) => drop(bench.run(ops::destroy_filesystems(pool, vec![first]))),
        (Change::AddDevice, _) => drop(bench.run(ops::add_data_devices(pool, vec![device]))),
        (Change::Cache, _) => drop(bench.run(ops::init_cache(pool, vec![device]))),
        (Change::Grow, _) => bench.check_pools(),
        (Change::Encrypt, _) => drop(bench.run(ops::encrypt_pool(pool, vec![keys::by_key(None, "k")]))),
        (Change::Decrypt, _) => drop(bench.run(ops::decrypt_pool(pool))),
        (Change::Limit, _) => drop(bench.run(ops::set_fs_limit(pool, 100 + at as u64 * 50))),
        (Change::StopStart, _) => {
            let _ = bench.stop_pool("p");
            let _ = bench.start_pool("p");
        }
        (Change::Reboot, _) => {
            bench = bench.reboot();
            keys::set_key(&mut bench, "k", "secret of k");
        }
        _ => {}
    }
    bench
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_metadata_of_the_engine_is_sound(changes in prop::collection::vec(prop::sample::select(CHANGES.to_vec()), 1..10)) {
        let mut bench = keys::machine();
        bench.create_pool("p", &["/dev/a", "/dev/b"]).unwrap();
        for (at, change) in changes.iter().enumerate() {
            bench = carry_out(bench, *change, at);
            let json = disks::json_on(&bench.sim, "/dev/a");
            let pool: PoolMetadata = serde_json::from_value(json).unwrap();
            prop_assert_eq!(check_metadata::check(&pool), Vec::<String>::new(), "after {:?} of {:?}", change, changes);
            prop_assert!(print_metadata::print(&pool).is_ok());
        }
    }
}
