//! LUKS devices with the same identity, and LUKS devices that belong to no pool. Their contents
//! cannot be read before they are unlocked.

use std::path::Path;

use stratisd::{
    base::ids::PoolUuid,
    engine::{encryption::UnlockMethod, metadata::MetadataVersion},
    platform::{Platform, luks::HeaderChange, sim::Sim},
};
use support::{
    bench::Bench,
    keys::{by_key, create, machine, set_key, start, unset_key},
};

/// A version 1 pool `p` with a filesystem.
fn pool() -> Bench {
    let mut bench = machine();
    assert!(create(&mut bench, MetadataVersion::V1, "p", &["/dev/a", "/dev/b"], vec![by_key(Some(1), "k")]).unwrap());
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 7);
    bench
}

/// The number of devices left aside: they claim to belong to a pool that does not use them.
fn left_aside(bench: &Bench) -> usize {
    bench.stopped().left_aside.values().map(|devices| devices.len()).sum()
}

/// Copies the headers and the metadata of a disk to a new disk.
fn clone_disk(sim: &Sim, from: &str, to: &str) {
    sim.add_disk(Path::new(to), sim.geometry(Path::new(from)).unwrap().size).unwrap();
    for mebibyte in 0..20_u64 {
        let range = mebibyte << 20..(mebibyte + 1) << 20;
        sim.put(Path::new(to), range.start, &sim.durable(Path::new(from), range)).unwrap();
    }
}

/// Makes a leftover of a LUKS device: its token names this pool.
pub fn name_pool(sim: &Sim, disk: &str, pool: PoolUuid, name: &str) {
    let disk = Path::new(disk);
    let header = sim.header(disk).unwrap();
    let (number, mut token) = header.tokens.into_iter().find(|(_, token)| token.get("pool_uuid").is_some()).unwrap();
    token["pool_uuid"] = pool.simple().to_string().into();
    token["pool_name"] = name.into();
    sim.luks_change(disk, None, &[HeaderChange::PutToken(number, token)]).unwrap();
}

#[test]
fn equal_containers_are_named_and_none_is_opened() {
    let mut bench = pool();
    bench.stop_pool("p").unwrap();
    clone_disk(&bench.sim, "/dev/a", "/dev/clone");
    let mut bench = bench.reboot();
    set_key(&mut bench, "k", "secret of k");
    let reason = bench.stopped_pool("p").unwrap().reason.unwrap();
    assert!(reason.contains("/dev/a, /dev/clone"), "{reason}");
    let error = start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap_err().sentence();
    assert!(error.contains("/dev/a, /dev/clone"), "{error}");
    assert!(bench.sim.opened().is_empty(), "{:?}", bench.sim.opened());
    bench.sim.pull_disk(Path::new("/dev/clone")).unwrap();
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 7);
}

#[test]
fn the_open_luks_device_is_the_pools() {
    let bench = pool();
    for clone in ["/dev/0", "/dev/z"] {
        clone_disk(&bench.sim, "/dev/a", clone);
    }
    let bench = Bench::start(bench.sim);
    assert_eq!(bench.names(), ["p"]);
    assert_eq!(left_aside(&bench), 2);
    bench.check_nothing_left("beside clones");
}

/// Formerly the LUKS device of a dropped cache, with a key that the pool no longer has, kept the
/// pool stopped.
#[test]
fn a_foreign_luks_device_keeps_no_pool_down() {
    let mut bench = pool();
    set_key(&mut bench, "other", "secret of other");
    assert!(create(&mut bench, MetadataVersion::V1, "q", &["/dev/c"], vec![by_key(Some(1), "other")]).unwrap());
    let uuid = bench.id("p");
    bench.stop_pool("p").unwrap();
    bench.stop_pool("q").unwrap();
    unset_key(&mut bench, "other");
    name_pool(&bench.sim, "/dev/c", uuid, "p");
    let mut bench = bench.reboot();
    set_key(&mut bench, "k", "secret of k");
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
    bench.check_nothing_left("beside a container left over");
    assert_eq!(left_aside(&bench), 1, "{:?}", bench.stopped().left_aside);
}
