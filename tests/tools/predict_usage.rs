//! `stratis-predict-usage`: the examples of the specification, and a comparison with the engine.

use std::path::{Path, PathBuf};

use clap::Parser;
use proptest::prelude::*;
use serde_json::Value;
use stratisd::{
    base::units::{Bytes, Sectors},
    cli::stratis_predict_usage::PredictUsage,
    engine::{
        self,
        metadata::{IntegritySpec, MetadataVersion, TagSpec},
        ops::{self, NewFilesystem, NewPool},
    },
    platform::{Platform, Program, sim::Sim},
    tools::predict_usage::predict,
};
use support::{
    bench::{Bench, name},
    keys,
};

use crate::run;

const PREDICT: &str = env!("CARGO_BIN_EXE_stratis-predict-usage");

/// The prediction for a command line, with the simulated `thin_metadata_size` (version 0.9, which
/// the examples used).
fn said(words: &str) -> Result<String, String> {
    let command_line = PredictUsage::parse_from(["stratis-predict-usage"].into_iter().chain(words.split_whitespace()));
    let sim = Sim::builder().build();
    let run = |arguments: &[String]| -> engine::Result<String> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(sim.run(Program::ThinMetadataSize, &arguments)?)
    };
    predict(&command_line.what, run).map_err(|error| error.to_string())
}

#[test]
fn pool_examples_of_the_specification_hold() {
    for (words, expected) in [
        (
            "pool --device-size 1099511627776",
            r#"{"free":"1081093386240","stratis-admin-space":"1082130432","stratis-metadata-space":"17336111104","total":"1099511627776","used":"18418241536"}"#,
        ),
        (
            "pool --encrypted --device-size 1099511627776",
            r#"{"free":"1081093386240","stratis-admin-space":"1082130432","stratis-metadata-space":"17336111104","total":"1099511627776","used":"18418241536"}"#,
        ),
        (
            "pool --device-size 10737418240 --device-size 10737418240",
            r#"{"free":"20288888832","stratis-admin-space":"555745280","stratis-metadata-space":"630202368","total":"21474836480","used":"1185947648"}"#,
        ),
        (
            "pool --device-size 10737418240",
            r#"{"free":"9863950336","stratis-admin-space":"549453824","stratis-metadata-space":"324014080","total":"10737418240","used":"873467904"}"#,
        ),
        (
            "pool --device-size 10737418340",
            r#"{"free":"9863950336","stratis-admin-space":"549453824","stratis-metadata-space":"324014080","total":"10737418240","used":"873467904"}"#,
        ),
        (
            "pool --device-size 10737418240 --filesystem-size 1073741824",
            r#"{"free":"9841930240","stratis-admin-space":"549453824","stratis-metadata-space":"324014080","total":"10737418240","used":"895488000"}"#,
        ),
        (
            "pool --no-overprovision --device-size 10737418240 --filesystem-size 1073741824",
            r#"{"free":"8790208512","stratis-admin-space":"549453824","stratis-metadata-space":"324014080","total":"10737418240","used":"1947209728"}"#,
        ),
        (
            "pool --integrity-tag-spec 0b --integrity-journal-size 0 --no-integrity-superblock --device-size 10737418240",
            r#"{"free":"10165944320","stratis-admin-space":"549453824","stratis-metadata-space":"22020096","total":"10737418240","used":"571473920"}"#,
        ),
        (
            "pool --integrity-tag-spec 32b --device-size 10737418240",
            r#"{"free":"10021236736","stratis-admin-space":"549453824","stratis-metadata-space":"166727680","total":"10737418240","used":"716181504"}"#,
        ),
        (
            "pool --device-size 1073741824",
            r#"{"free":"355463168","stratis-admin-space":"545259520","stratis-metadata-space":"173019136","total":"1073741824","used":"718278656"}"#,
        ),
    ] {
        assert_eq!(said(words).as_deref(), Ok(expected), "{words}");
    }
}

#[test]
fn filesystem_examples_of_the_specification_hold() {
    for (words, used) in [
        ("--filesystem-size 536870912", "20971520"),
        ("--filesystem-size 1073741824", "22020096"),
        ("--filesystem-size 1073741824 --filesystem-size 2147483648", "45088768"),
        ("--no-overprovision --filesystem-size 1073741824 --filesystem-size 2147483648", "3221225472"),
        ("--filesystem-size 36028797018963456", "36498833408"),
    ] {
        assert_eq!(said(&format!("filesystem {words}")), Ok(format!(r#"{{"used":"{used}"}}"#)), "{words}");
    }
}

#[test]
fn impossible_pools_are_refused() {
    let refused = |words: &str, expected: &str| assert_eq!(said(words).unwrap_err(), expected, "{words}");
    let limits =
        |size: &str| format!(r#"PredictError("Specified filesystem size {size} bytes is not within allowed limits.")"#);
    refused("filesystem --filesystem-size 536870400", &limits("536870400"));
    refused("filesystem --filesystem-size 36028797018963968", &limits("36028797018963968"));
    // Sizes of filesystems are checked before everything else.
    refused("pool --device-size 1 --filesystem-size 5 --integrity-journal-size 1", &limits("5"));
    refused(
        "filesystem --filesystem-size 1073741825",
        r#"PredictError("Specified filesystem size 1073741825 bytes is not a multiple of sector size, 512.")"#,
    );
    refused("pool --device-size 104857600", r#"PredictError("Some device sizes too small for DM metadata.")"#);
    let journal = r#"Msg("specified integrity journal size 1000 bytes is not a multiple of 4096")"#;
    refused("pool --integrity-journal-size 1000 --device-size 10737418240", journal);
    let none = "--integrity-tag-spec 0b --integrity-journal-size 0 --no-integrity-superblock";
    let sum = r#"PredictError("Sum of all device sizes too small for a Stratis pool.")"#;
    refused(&format!("pool {none} --device-size 5000000"), sum);
    refused(&format!("pool {none} --device-size 536870912"), sum);
    refused(
        "pool --no-overprovision --device-size 10737418240 --filesystem-size 10737418240",
        r#"PredictError("Filesystems will take up too much space on specified pool.")"#,
    );
    // The engine takes no such device, however large the others are.
    let small = said("pool --device-size 1073741312 --device-size 10737418240").unwrap_err();
    assert!(small.starts_with("PredictError(\"Some device sizes too small: stratisd takes no device of"), "{small}");
    // thin_metadata_size refuses a pool that is smaller than a block.
    let tool = said("pool --device-size 159383552").unwrap_err();
    assert!(tool.starts_with("Msg(\"thin_metadata_size failed: "), "{tool}");
    let large = said(&format!("pool --device-size {} --device-size {}", u128::MAX, 1_u64 << 40)).unwrap_err();
    assert!(large.contains("larger than any device can be"), "{large}");
}

/// What a pool of the engine has, in the words of the prediction.
#[derive(Debug, PartialEq, Eq)]
struct Space {
    total: u128,
    used: u128,
}

fn bytes(size: Sectors) -> u128 {
    size.bytes().0
}

/// One case of the table: devices, integrity settings, encryption.
fn compare(sizes: &[u64], integrity: IntegritySpec, encrypted: bool) {
    let disks: Vec<PathBuf> = (0..sizes.len()).map(|at| PathBuf::from(format!("/dev/d{at}"))).collect();
    let builder = disks.iter().zip(sizes).fold(Sim::builder(), |sim, (disk, size)| sim.disk(disk, Sectors(*size)));
    let mut bench = Bench::start(builder.build());
    keys::set_key(&mut bench, "k", "secret of k");
    let bindings = if encrypted { vec![keys::by_key(None, "k")] } else { Vec::new() };
    let new = NewPool { name: name("p"), devices: disks, integrity, version: MetadataVersion::V2, bindings };
    let created = bench.run(ops::create_pool(new));

    let mut words = vec!["pool".to_owned()];
    words.extend(sizes.iter().map(|size| format!("--device-size {}", size * 512)));
    words.push(format!("--integrity-journal-size {}", integrity.journal_size.0 * 512));
    let tag = match integrity.tag_spec {
        TagSpec::B0 => "0b",
        TagSpec::B32 => "32b",
        TagSpec::B512 => "512b",
    };
    words.push(format!("--integrity-tag-spec {tag}"));
    words.extend((!integrity.allocate_superblock).then(|| "--no-integrity-superblock".to_owned()));
    words.extend(encrypted.then(|| "--encrypted".to_owned()));
    let words = words.join(" ");
    let predicted = said(&words);
    match created {
        Err(error) => assert!(predicted.is_err(), "{words}: the engine refuses ({error}), but {predicted:?}"),
        Ok(_) => {
            let predicted: Value =
                serde_json::from_str(&predicted.unwrap_or_else(|error| panic!("{words}: {error}"))).unwrap();
            let number = |key: &str| predicted[key].as_str().unwrap().parse::<u128>().unwrap();
            let pool = bench.pool("p").unwrap();
            let is = Space { total: bytes(pool.total), used: bytes(pool.used.expect("the thin pool reports it")) };
            assert_eq!(Space { total: number("total"), used: number("used") }, is, "{words}");
            assert_eq!(number("free"), is.total - is.used, "{words}");
            assert_eq!(number("stratis-metadata-space") + number("stratis-admin-space"), is.used, "{words}");
        }
    }
}

const GIB: u64 = 2 << 20;

fn spec(tag_spec: TagSpec, journal: u64, allocate_superblock: bool) -> IntegritySpec {
    IntegritySpec { tag_spec, journal_size: Sectors(journal), allocate_superblock, ..IntegritySpec::default() }
}

#[test]
fn predictions_equal_new_pools() {
    let default = IntegritySpec::default();
    let none = spec(TagSpec::B0, 0, false);
    let devices: [&[u64]; 7] = [
        &[GIB],
        &[10 * GIB],
        &[10 * GIB, 10 * GIB],
        &[GIB, 3 * GIB + 1, 7 * GIB + 8],
        &[1024 * GIB],
        &[GIB; 12],
        &[GIB - 1],
    ];
    for sizes in devices {
        for encrypted in [false, true] {
            for integrity in [default, none, spec(TagSpec::B32, 8, true), spec(TagSpec::B512, 262_144, false)] {
                compare(sizes, integrity, encrypted);
            }
        }
    }
}

/// A new pool may have 100 filesystems. For more its limit is raised, which takes thin metadata.
#[test]
fn raised_limits_take_what_was_predicted() {
    for count in [100, 101, 400, 3000] {
        let mut bench = Bench::start(Sim::builder().disk("/dev/a", Sectors(1024 * GIB)).build());
        bench.create_pool("p", &["/dev/a"]).unwrap();
        if count > 100 {
            bench.run(ops::set_fs_limit(bench.id("p"), count)).unwrap();
        }
        let mut words = format!("pool --device-size {}", 1024_u64 << 30);
        (0..count).for_each(|_| words += " --filesystem-size 536870912");
        let predicted: Value = serde_json::from_str(&said(&words).unwrap()).unwrap();
        let number = |key: &str| predicted[key].as_str().unwrap().parse::<u128>().unwrap();
        let used = bytes(bench.pool("p").unwrap().used.unwrap());
        assert_eq!(number("stratis-metadata-space") + number("stratis-admin-space"), used, "{count} filesystems");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn predictions_equal_pools_of_any_devices(
        sizes in prop::collection::vec(GIB - 64..40 * GIB, 1..6),
        tag in prop::sample::select(vec![TagSpec::B0, TagSpec::B32, TagSpec::B512]),
        journal in 0..40_000_u64,
        superblock: bool,
        encrypted: bool,
    ) {
        compare(&sizes, spec(tag, journal * 8, superblock), encrypted);
    }
}

/// The table is that of the existing program, measured when the log of a small XFS had a few
/// mebibytes. Now it has 64 MiB at least. Between two powers of two the table counts the greater
/// one, so from 128 GiB on it is an upper bound.
#[test]
fn filesystems_take_about_what_was_predicted() {
    const LOG_MIN: u128 = 64 << 20;
    for gib in [1, 2, 3, 16, 100, 128, 200, 512, 1024, 3000] {
        let mut bench = Bench::start(Sim::builder().disk("/dev/a", Sectors(4096 * GIB)).build());
        bench.create_pool("p", &["/dev/a"]).unwrap();
        let before = bench.pool("p").unwrap().used.unwrap();
        let size = Some(Sectors(gib * GIB));
        let new = vec![NewFilesystem { name: name("f"), size, size_limit: None }];
        bench.run(ops::create_filesystems(bench.id("p"), new)).unwrap();
        bench.check_pools();
        let taken = Bytes(bytes(bench.pool("p").unwrap().used.unwrap()) - bytes(before)).0;
        let predicted: Value =
            serde_json::from_str(&said(&format!("filesystem --filesystem-size {}", gib << 30)).unwrap()).unwrap();
        let predicted: u128 = predicted["used"].as_str().unwrap().parse().unwrap();
        let bound = if gib < 128 { predicted + LOG_MIN } else { predicted };
        assert!((1..=bound).contains(&taken), "{gib} GiB: {taken} of {predicted}");
    }
}

/// Without overprovisioning, the engine takes as many filesystems as the prediction does.
#[test]
fn whole_filesystems_fit_as_predicted() {
    for (gib, fits) in [(4, true), (9, true), (10, false)] {
        let mut bench = Bench::start(Sim::builder().disk("/dev/a", Sectors(10 * GIB)).build());
        bench.create_pool("p", &["/dev/a"]).unwrap();
        bench.run(ops::set_overprovisioning(bench.id("p"), false)).unwrap();
        let new = vec![NewFilesystem { name: name("f"), size: Some(Sectors(gib * GIB)), size_limit: None }];
        let made = bench.run(ops::create_filesystems(bench.id("p"), new)).is_ok();
        let words = format!("pool --no-overprovision --device-size {} --filesystem-size {}", 10_u64 << 30, gib << 30);
        assert_eq!((made, said(&words).is_ok()), (fits, fits), "{gib} GiB");
    }
}

#[test]
fn the_program_prints_and_exits_as_documented() {
    let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
    run(PREDICT, &words("filesystem --filesystem-size 1073741824")).is(0, "{\"used\":\"22020096\"}\n", "");
    let refused = "Error: PredictError(\"Some device sizes too small for DM metadata.\")\n";
    run(PREDICT, &words("pool --device-size 104857600")).is(1, "", refused);
    let wrong = run(PREDICT, &words("pool --device-size abc"));
    assert_eq!(wrong.status, 2);
    let expected = "error: invalid value 'abc' for '--device-size <device-size>': invalid digit found in string\n";
    assert!(wrong.stderr.starts_with(expected), "{}", wrong.stderr);
    assert_eq!(run(PREDICT, &["pool"]).status, 2);
    let explained = run(PREDICT, &words("--log-level info pool --device-size 104857600"));
    assert_eq!(explained.status, 1);
    // The real program, if it is installed; the machine has it in any case.
    let real = run(PREDICT, &words("--log-level info pool --device-size 10737418240"));
    match Path::new("/usr/sbin/thin_metadata_size").exists() {
        true => {
            assert!(real.stdout.starts_with("{\"free\":\"") && real.status == 0, "{real:?}");
            assert!(real.stderr.contains("device of 20971520 sectors: 589832 sectors"), "{}", real.stderr);
        }
        false => assert!(real.status == 1 && real.stderr.contains("cannot find thin_metadata_size"), "{real:?}"),
    }
}
