//! `stratis-legacy-pool`: its command line, and the pool that it makes.

use std::{io::Write, path::PathBuf, process::Stdio, sync::Arc};

use stratisd::{
    base::name::Name,
    engine::metadata::{IntegritySpec, MetadataVersion},
    engine::ops::NewPool,
    platform::{Platform, sim::Sim},
    tools::legacy_pool::make,
};
use support::{bench::Bench, keys, processes::command};

use crate::{Said, TOOLS};

fn asked(words: &[&str], answer: &str) -> Said {
    let mut child = command(TOOLS)
        .arg("legacy-pool")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    Said::of(&child.wait_with_output().unwrap())
}

#[test]
fn without_a_yes_nothing_happens() {
    for answer in ["", "\n", "n\n", "YES\n"] {
        let said = asked(&["p", "/dev/nonexistent"], answer);
        assert!(said.status == 0 && said.stderr.is_empty(), "{said:?}");
        assert!(said.stdout.contains("for tests only") && said.stdout.ends_with("Do you want to continue? [Y/n] "));
    }
}

#[test]
fn wrong_options_are_refused_before_the_question() {
    for words in [
        "p",
        "p /dev/a --clevis tang",
        "p /dev/a --clevis tang --tang-url http://t",
        "p /dev/a --clevis nbde --trust-url",
        "p /dev/a --clevis tang --tang-url http://t --trust-url --thumbprint T",
        "p /dev/a --clevis yubikey",
    ] {
        let said = asked(&words.split(' ').collect::<Vec<_>>(), "y\n");
        assert!(said.status == 2 && said.stdout.is_empty(), "{words}: {said:?}");
    }
    let said = asked(&["a/b", "/dev/a"], "y\n");
    assert!(said.status == 1 && said.stdout.is_empty() && !said.stderr.is_empty(), "{said:?}");
}

/// A daemon that starts afterwards takes the pool over; so does one after a reboot.
#[test]
fn the_pool_is_of_version_1() {
    for encrypted in [false, true] {
        let mut bench = Bench::start(Sim::builder().build());
        keys::set_key(&mut bench, "k", "secret of k");
        let sim = bench.sim.clone();
        let new = NewPool {
            name: Name::new("old").unwrap(),
            devices: vec![PathBuf::from("/dev/a"), PathBuf::from("/dev/b")],
            integrity: IntegritySpec::default(),
            version: MetadataVersion::V1,
            bindings: if encrypted { vec![keys::by_key(Some(1), "k")] } else { Vec::new() },
        };
        make(Arc::new(sim.clone()) as Arc<dyn Platform>, new).unwrap();
        let mut bench = Bench::start(sim);
        let pool = bench.pool("old").unwrap();
        assert_eq!((pool.metadata_version, pool.encryption.is_some()), (1, encrypted));
        bench.create_filesystems("old", &["f"]).unwrap();
        bench.check_nothing_left("adopted");
    }
}
