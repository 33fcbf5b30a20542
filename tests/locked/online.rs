//! Re-encryption jobs: all data of a running pool is encrypted, re-encrypted or decrypted while the
//! pool stays in use.

use stratisd::{
    base::units::Sectors,
    engine::{Error, dm_names::Role, encryption::UnlockMethod, metadata::MetadataVersion, ops},
    platform::{
        Platform,
        luks::ReencryptionMode,
        sim::{CallKind, Sim},
    },
};
use support::{
    bench::{Bench, GIB},
    disks,
    keys::{adopted_without_key, by_key, by_tang, create, machine, set_key, shown, start, unset_key},
};

use crate::under_way::begun;

/// An unencrypted pool with marks in two filesystems.
fn clear() -> Bench {
    let mut bench = machine();
    create(&mut bench, MetadataVersion::V2, "p", &["/dev/a", "/dev/b"], vec![]).unwrap();
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    bench.mark("p", "f", 7);
    bench.mark("p", "g", 9);
    bench
}

fn marks(bench: &Bench) -> [u8; 2] {
    ["f", "g"].map(|name| bench.mark_of(bench.id("p"), bench.filesystem("p", name)))
}

fn encrypt(bench: &mut Bench) -> bool {
    let bindings = vec![by_key(None, "k"), by_tang(None, "http://tang")];
    bench.run(ops::encrypt_pool(bench.id("p"), bindings)).unwrap()
}

#[test]
fn a_pool_in_use_is_encrypted_and_decrypted() {
    let mut bench = clear();
    bench.mount("p", "f");
    assert!(encrypt(&mut bench));
    assert_eq!(marks(&bench), [7, 9]);
    let pool = bench.pool("p").unwrap();
    assert!(pool.volume_key_loaded && pool.reencryption.is_none());
    assert_eq!(shown(&bench, "p").keys, [(0, "k".to_owned())]);
    bench.check_nothing_left("encrypted");
    assert!(!encrypt(&mut bench), "it is so already");
    bench.check_pools();
    assert_eq!(bench.pool("p").unwrap(), pool, "the sizes are those after the change");
    bench.create_filesystems("p", &["h"]).unwrap();
    assert!(bench.run(ops::decrypt_pool(bench.id("p"))).unwrap());
    assert_eq!(marks(&bench), [7, 9]);
    let pool = bench.pool("p").unwrap();
    bench.check_pools();
    assert_eq!(bench.pool("p").unwrap(), pool, "the sizes are those after the change");
    assert!(pool.encryption.is_none() && !pool.volume_key_loaded && pool.reencryption.is_none());
    bench.check_nothing_left("decrypted");
    assert!(!bench.run(ops::decrypt_pool(bench.id("p"))).unwrap());
    for _ in 0..2 {
        bench.sim.cut_power();
        bench.sim.power_on();
        bench = Bench::start(bench.sim);
        assert_eq!(marks(&bench), [7, 9]);
        bench.check_nothing_left("after a reboot");
    }
}

#[test]
fn a_newly_encrypted_pool_needs_its_key() {
    let mut bench = clear();
    encrypt(&mut bench);
    bench.stop_pool("p").unwrap();
    assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
    assert!(start(&mut bench, "p", None, None).is_err());
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), Some("wrong")).is_err());
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
    assert_eq!(marks(&bench), [7, 9]);
}

#[test]
fn a_new_volume_key_replaces_the_old() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = machine();
        let bindings = vec![by_key(Some(1), "k"), by_tang(Some(2), "http://tang")];
        create(&mut bench, version, "p", &["/dev/a", "/dev/b"], bindings).unwrap();
        bench.create_filesystems("p", &["f", "g"]).unwrap();
        bench.mark("p", "f", 7);
        bench.mark("p", "g", 9);
        assert_eq!(bench.pool("p").unwrap().last_reencrypt, None);
        assert!(bench.run(ops::reencrypt_pool(bench.id("p"))).unwrap());
        assert!(bench.pool("p").unwrap().last_reencrypt.is_some());
        assert_eq!(marks(&bench), [7, 9]);
        let before = shown(&bench, "p");
        for method in [UnlockMethod::Token(1), UnlockMethod::Token(2)] {
            bench.stop_pool("p").unwrap();
            assert!(start(&mut bench, "p", Some(method), None).unwrap(), "{version:?} {method:?}");
            assert_eq!((marks(&bench), shown(&bench, "p")), ([7, 9], before.clone()));
        }
        bench.check_nothing_left("at the end");
    }
}

#[test]
fn impossible_jobs_are_refused_and_change_nothing() {
    let mut bench = clear();
    let pool = bench.id("p");
    assert!(matches!(bench.run(ops::reencrypt_pool(pool)), Err(Error::NothingToOpen { .. })));
    assert!(bench.run(ops::encrypt_pool(pool, vec![])).is_err());
    assert!(bench.run(ops::encrypt_pool(pool, vec![by_key(None, "nobody")])).is_err());
    assert_eq!(bench.sim.luks_read(&bench.sim.dm_node(&cap(&bench))).unwrap(), None);
    assert_eq!(marks(&bench), [7, 9]);
    bench.check_nothing_left("refused");
    encrypt(&mut bench);
    unset_key(&mut bench, "k");
    assert!(bench.run(ops::reencrypt_pool(pool)).is_err(), "all passphrases are needed");
    set_key(&mut bench, "k", "secret of k");
    assert!(bench.run(ops::reencrypt_pool(pool)).unwrap());
    let mut old = machine();
    create(&mut old, MetadataVersion::V1, "p", &["/dev/a"], vec![]).unwrap();
    for refused in [ops::encrypt_pool(old.id("p"), vec![by_key(None, "k")]), ops::decrypt_pool(old.id("p"))] {
        assert!(matches!(old.run(refused), Err(Error::OnlyVersion2 { .. })));
    }
}

fn cap(bench: &Bench) -> String {
    Role::Cache.name(bench.id("p"))
}

/// A partial save of the pool metadata covers only ten devices. Here a device with an older state
/// would do harm.
#[test]
fn every_device_records_whether_it_is_encrypted() {
    let paths: Vec<String> = (10..34).map(|number| format!("/dev/d{number}")).collect();
    let mut bench = machine();
    let devices: Vec<&str> = paths.iter().map(String::as_str).collect();
    create(&mut bench, MetadataVersion::V2, "p", &devices, vec![]).unwrap();
    let recorded = |bench: &Bench| {
        let features: Vec<_> = paths.iter().map(|path| disks::json_on(&bench.sim, path)["features"].clone()).collect();
        assert!(features.iter().all(|other| *other == features[0]), "{features:?}");
        features[0].to_string()
    };
    let clear = recorded(&bench);
    assert!(encrypt(&mut bench));
    assert_ne!(recorded(&bench), clear);
    assert!(bench.run(ops::decrypt_pool(bench.id("p"))).unwrap());
    assert_eq!(recorded(&bench), clear);
}

/// A pool on a disk of 10 GiB, encrypted or not, that has just got a disk of 200 GiB. A failed
/// check has kept it from using the new disk.
fn enlarged(is_encrypted: bool) -> Bench {
    let sim =
        Sim::builder().disk("/dev/a", Sectors(10 * GIB.0)).disk("/dev/b", Sectors(200 * GIB.0)).only_these().build();
    let mut bench = Bench::start(sim);
    set_key(&mut bench, "k", "secret of k");
    let bindings = if is_encrypted { vec![by_key(Some(1), "k")] } else { vec![] };
    create(&mut bench, MetadataVersion::V2, "p", &["/dev/a"], bindings).unwrap();
    (0..9).for_each(|_| bench.sim.faults().fail_next(CallKind::DmStatus, "thinpool"));
    assert_eq!(bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/b".into()])).unwrap().len(), 1);
    bench.sim.faults().clear();
    bench
}

/// A job cannot make the crypt device larger, so it allocates space for the pool before it begins.
#[test]
fn a_pool_grows_by_fifty_gib_during_jobs() {
    let thin_data = |bench: &Bench| bench.sim.dm_find(&Role::ThinData.name(bench.id("p"))).unwrap().unwrap().size();
    for work in [ReencryptionMode::Encrypt, ReencryptionMode::Reencrypt, ReencryptionMode::Decrypt] {
        let mut bench = enlarged(work != ReencryptionMode::Encrypt);
        let before = thin_data(&bench);
        assert!(before < Sectors(10 * GIB.0), "{work:?}: {before:?}");
        let rest = begun(&mut bench, work);
        let recorded = |bench: &Bench| disks::json_on(&bench.sim, "/dev/b")["backstore"]["data_tier"].clone();
        let tier = recorded(&bench);
        bench.run(ops::check_now(bench.id("p"))).unwrap();
        assert_eq!(thin_data(&bench).0 - before.0, 50 * GIB.0, "{work:?}");
        assert_eq!(recorded(&bench), tier, "{work:?}: the space was allocated in advance");
        assert!(bench.run(rest).unwrap(), "{work:?}");
        bench.check_nothing_left("after the job");
    }
}

/// In version 1, the pool has no crypt device that could not be extended.
#[test]
fn a_reencryption_takes_nothing_in_version_1() {
    let mut bench = machine();
    create(&mut bench, MetadataVersion::V1, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap();
    let node = bench.pool("p").unwrap().devices.values().next().unwrap().node.clone();
    let allocs = |bench: &Bench| {
        disks::json_on(&bench.sim, &node.to_string_lossy())["backstore"]["data_tier"]["blockdev"]["allocs"].clone()
    };
    bench.check_pools();
    let before = allocs(&bench);
    assert!(bench.run(ops::reencrypt_pool(bench.id("p"))).unwrap());
    assert_eq!(allocs(&bench), before);
}

/// A power cut could tear a larger sector where filesystems rely on an atomic smaller one.
#[test]
fn encryption_uses_the_smallest_sector_of_the_pool() {
    let sim = Sim::builder().physical(4096).build();
    let mut bench = Bench::start(sim);
    set_key(&mut bench, "k", "secret of k");
    create(&mut bench, MetadataVersion::V2, "p", &["/dev/a"], vec![]).unwrap();
    assert!(bench.run(ops::encrypt_pool(bench.id("p"), vec![by_key(None, "k")])).unwrap());
    let header = bench.sim.luks_read(&bench.sim.dm_node(&cap(&bench))).unwrap().unwrap();
    assert_eq!(header.sector_size, 512, "{header:?}");
}

/// After a restart of the daemon, a running pool may lack its volume key.
#[test]
fn a_job_without_the_volume_key_is_refused() {
    let mut bench = adopted_without_key();
    let before = (bench.pool("p").unwrap(), disks::json_on(&bench.sim, "/dev/a"));
    for refused in [ops::reencrypt_pool(bench.id("p")), ops::decrypt_pool(bench.id("p"))] {
        let refusal = bench.run(refused);
        assert!(matches!(refusal, Err(Error::VolumeKey { .. })), "{refusal:?}");
    }
    assert_eq!((bench.pool("p").unwrap(), disks::json_on(&bench.sim, "/dev/a")), before);
}
