//! Starts of the daemon with a fault at every step: with no devices active, with an active table
//! stack, and by the event of a device that was missing.
//!
//! A fault must not keep the daemon from starting. After it the pool runs, or the daemon lists it
//! as stopped and logs the reason. The next discovery then reaches the same state as a start
//! without a fault.

use std::path::Path;

use stratisd::{
    engine::{metadata::MetadataVersion, ops},
    platform::{DeviceAction, DeviceEvent, Platform, sim::Sim},
};
use support::{
    bench::{Bench, GIB},
    state::State,
};

use crate::{Strike, cases, encryption_cases, growth_cases};

/// The situations in which a daemon starts.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// After a power cut, with no devices active.
    Boot,
    /// The previous daemon left the devices active.
    Adoption,
    /// A device was missing at boot. Later udev reports it.
    Event,
}

/// Prepares the machine for the start of the daemon.
type Prepare = fn(&mut Bench, MetadataVersion);

const V1: MetadataVersion = MetadataVersion::V1;
const V2: MetadataVersion = MetadataVersion::V2;

const ALL: &[Way] = &[Way::Boot, Way::Adoption, Way::Event];

const FOUND: &[(&str, MetadataVersion, &[Way], Prepare)] = &[
    ("a pool with snapshots", V2, ALL, cases::snapshots),
    ("a pool of version 1 with snapshots", V1, ALL, cases::snapshots),
    ("a pool with a cache", V2, ALL, growth_cases::cached),
    ("a pool of version 1 with a cache", V1, ALL, growth_cases::cached),
    ("a pool with a revert", V2, ALL, cases::reverting),
    ("a pool with filesystems in the making", V2, ALL, |bench, version| {
        cases::filesystems(bench, version);
        // Kill the daemon after the thin devices are made and before the records are written.
        let first = bench.sim.steps();
        let mut other = Bench::start(Sim::builder().seed(1).record().build());
        cases::filesystems(&mut other, version);
        other.create_filesystems("p", &["h", "i"]).expect("they can be created");
        bench.sim.faults().kill_at(first + (other.sim.steps() - first) / 2);
        bench.create_filesystems("p", &["h", "i"]).expect_err("the daemon is killed");
        bench.sim.faults().clear();
    }),
    // At a boot these pools stay locked until a user starts them, so only adoption applies.
    ("an encrypted pool", V2, &[Way::Adoption], encryption_cases::with_both),
    ("an encrypted pool of version 1", V1, &[Way::Adoption], encryption_cases::with_both),
    ("an encrypted pool with a cache", V2, &[Way::Adoption], encryption_cases::cached),
    ("an encrypted pool of version 1 with a cache", V1, &[Way::Adoption], encryption_cases::cached),
];

/// A machine just before the start of the daemon, or just before the event of the device.
fn prepared(prepare: Prepare, version: MetadataVersion, way: Way) -> Bench {
    let mut bench = Bench::start(Sim::builder().seed(1).record().build());
    prepare(&mut bench, version);
    match way {
        Way::Adoption => {}
        Way::Boot => {
            bench.sim.cut_power();
            bench.sim.power_on();
        }
        Way::Event => {
            bench.sim.cut_power();
            bench.sim.power_on();
            bench.sim.pull_disk(Path::new("/dev/b")).expect("the disk is there");
            bench = Bench::start(bench.sim);
            assert!(bench.names().is_empty(), "a device is missing");
            bench.sim.add_disk(Path::new("/dev/b"), GIB).expect("the disk was there");
        }
    }
    bench
}

fn go(mut bench: Bench, way: Way) -> Bench {
    match way {
        Way::Adoption | Way::Boot => Bench::start(bench.sim),
        Way::Event => {
            let path = Path::new("/dev/b");
            // udev's own probe does not fail.
            let device = Some(device_at(&mut bench, path));
            bench.run(ops::device_event(DeviceEvent {
                action: DeviceAction::Add,
                path: path.into(),
                device,
                unlinked: None,
            }));
            bench
        }
    }
}

fn device_at(bench: &mut Bench, path: &Path) -> stratisd::platform::BlockDevice {
    let find = || bench.sim.find_device(path);
    find().or_else(|_| find()).expect("the disk is there")
}

#[test]
fn faults_during_a_start_withhold_nothing_forever() {
    let (mut total, mut ran) = (0, 0);
    for (what, version, ways, prepare) in FOUND {
        for way in *ways {
            let bench = prepared(*prepare, *version, *way);
            let first = bench.sim.steps();
            let bench = go(bench, *way);
            let steps = bench.sim.steps() - first;
            let expected = State::of(&bench);
            assert_eq!(bench.names(), ["p"], "{what}: {way:?}");
            bench.check_nothing_left(what);
            for step in 0..steps {
                for strike in [Strike::FailBefore, Strike::FailAfter] {
                    let at = format!("{what}: {way:?} with {strike:?} at step {step} of {steps}");
                    let bench = prepared(*prepare, *version, *way);
                    strike.at(&bench.sim, first + step);
                    let mut bench = go(bench, *way);
                    assert_eq!(bench.sim.faults().struck(), 1, "{at}");
                    let runs = bench.names() == ["p"];
                    let trace = bench.tail(first);
                    assert!(runs || !bench.stopped().list().is_empty(), "{at}: the pool is not shown\n{trace}");
                    ran += u32::from(runs);
                    // Either a refresh or a new daemon reads the device again.
                    if step % 2 == 0 {
                        bench.run(ops::refresh()).unwrap_or_else(|error| panic!("{at}: {}\n{trace}", error.sentence()));
                    } else {
                        bench = Bench::start(bench.sim);
                    }
                    assert_eq!(State::of(&bench), expected, "{at}\n{trace}");
                    bench.check_nothing_left(&at);
                    let more = bench.create_filesystems("p", &["one-more"]);
                    more.unwrap_or_else(|error| panic!("{at}: {}", error.sentence()));
                    total += 1;
                }
            }
            println!("{what}: {way:?}: {steps} steps, each struck twice");
        }
    }
    println!("{total} faults injected into starts; the pool ran at once after {ran} of them");
    assert!(ran < total, "faults that never keep a pool from running were not injected");
}
