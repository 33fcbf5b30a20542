//! Destruction of encrypted pools: no device of the pool stays active, and its disks are free
//! again.

use stratisd::{
    base::pool_ref::PoolRef,
    engine::{
        dm_names::Role,
        metadata::MetadataVersion,
        ops::{self, StopOutcome},
    },
    platform::Platform,
};
use support::{
    bench::Bench,
    keys::{by_key, create, machine},
};

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
