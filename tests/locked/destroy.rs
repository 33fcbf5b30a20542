//! Destruction of encrypted pools: no device of the pool stays active, and its disks are free
//! again.

use std::path::Path;

use stratisd::{
    base::{ids::PoolUuid, pool_ref::PoolRef},
    engine::{
        dm_names::Role,
        metadata::MetadataVersion,
        ops::{self, StopOutcome},
    },
    platform::{Platform, sim::Sim},
};
use support::{
    bench::{Bench, GIB},
    disks,
    keys::{by_key, create, machine, set_key},
};

use crate::clones::name_pool;

/// More than the number of attempts to remove a device.
const FOR_LONG: u32 = 1000;

fn create_another(bench: &mut Bench) -> bool {
    create(bench, MetadataVersion::V2, "q", &["/dev/a", "/dev/b"], vec![]).is_ok()
}

/// A device in use cannot be wiped, but the pool is destroyed nevertheless.
#[test]
fn a_held_device_is_wiped_after_its_release() {
    for again in ["a stop", "another daemon"] {
        let mut bench = machine();
        create(&mut bench, MetadataVersion::V2, "p", &["/dev/a", "/dev/b"], vec![by_key(None, "k")]).unwrap();
        let pool = bench.id("p");
        bench.sim.hold_device(&Role::Crypt.name(pool), FOR_LONG).unwrap();
        assert!(bench.run(ops::destroy_pool(pool)).unwrap());
        assert!(bench.pool("p").is_none());
        assert!(bench.sim.dm_find(&Role::Crypt.name(pool)).unwrap().is_some());
        assert!(!create_another(&mut bench), "the devices are in use");
        assert!(bench.run(ops::stop_pool(PoolRef::Uuid(pool))).is_err(), "it is still held");
        bench.sim.hold_device(&Role::Crypt.name(pool), 0).unwrap();
        match again {
            "a stop" => {
                let stopped = bench.run(ops::stop_pool(PoolRef::Uuid(pool))).unwrap();
                assert!(matches!(stopped, StopOutcome::CleanedUp(_)), "{stopped:?}");
            }
            _ => bench = Bench::start(bench.sim),
        }
        assert!(bench.sim.leftovers().is_empty(), "{again}: {:?}", bench.sim.leftovers());
        assert!(create_another(&mut bench), "{again}");
        bench.check_nothing_left(again);
    }
}

/// Adds a closed LUKS device to a machine that is off: its token names a pool whose metadata does
/// not name the device, and another key opens it.
fn leave_foreign(sim: &Sim, disk: &str, pool: PoolUuid) {
    let mut bench = Bench::start(sim.clone());
    set_key(&mut bench, "other", "secret of other");
    assert!(create(&mut bench, MetadataVersion::V1, "other", &[disk], vec![by_key(Some(1), "other")]).unwrap());
    bench.stop_pool("other").unwrap();
    name_pool(sim, disk, pool, "p");
    disks::reboot(sim);
}

/// A destruction that was cut short wipes the disks of its pool, and no others.
#[test]
fn a_completed_destruction_spares_foreign_devices() {
    let mut bench = Bench::start(Sim::builder().build());
    create(&mut bench, MetadataVersion::V1, "p", &["/dev/a", "/dev/b"], vec![]).unwrap();
    let (pool, sim) = (bench.id("p"), bench.sim);
    disks::reboot(&sim);
    for disk in ["/dev/a", "/dev/b"] {
        sim.pull_disk(Path::new(disk)).unwrap();
    }
    leave_foreign(&sim, "/dev/c", pool);
    for disk in ["/dev/a", "/dev/b"] {
        sim.add_disk(Path::new(disk), GIB).unwrap();
    }
    disks::condemn(&sim, "/dev/a");
    let mut bench = Bench::start(sim);
    assert!(bench.sim.header(Path::new("/dev/c")).is_some());
    assert!(create_another(&mut bench), "its disks are free");
}
