//! Snapshots of a machine and its pools, for comparison; and the engine's log messages.

use std::{cell::RefCell, sync::Once};

use stratisd::{
    platform::{
        Platform, dm,
        sim::{Leftovers, Snapshot},
    },
    view,
};
use support::bench::Bench;

/// All state that a refused operation must not change.
pub struct Witness {
    disks: Snapshot,
    devices: Vec<(String, Option<dm::Device>)>,
    left: Leftovers,
    pools: Vec<view::PoolView>,
}

impl Witness {
    /// Takes a snapshot.
    pub fn of(bench: &Bench) -> Witness {
        let listed = bench.sim.dm_list().expect("the machine runs");
        let mut pools: Vec<view::PoolView> = bench.pools.0.values().map(|pool| (*pool.view()).clone()).collect();
        pools.sort_by_key(|pool| pool.uuid);
        Witness {
            disks: bench.sim.snapshot(),
            devices: listed
                .into_iter()
                .map(|device| (device.name.clone(), bench.sim.dm_find(&device.name).expect("the machine runs")))
                .collect(),
            left: bench.sim.leftovers(),
            pools,
        }
    }

    /// Checks that nothing has changed.
    pub fn check_unchanged(&self, bench: &Bench, at: &str) {
        assert_eq!(self.disks.differences(&bench.sim.snapshot()), [], "{at}: bytes on disks");
        self.check_same_stack(bench, at);
    }

    /// Checks that nothing but bytes on disks has changed.
    pub fn check_same_stack(&self, bench: &Bench, at: &str) {
        let now = Witness::of(bench);
        assert_eq!(self.devices, now.devices, "{at}: device-mapper devices");
        assert_eq!(self.left, now.left, "{at}: mounts and links");
        assert_eq!(self.pools, now.pools, "{at}: pools");
    }
}

thread_local! {
    static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Info {
            SAID.with_borrow_mut(|said| said.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Runs a closure. Returns its result and the messages that this thread logged meanwhile, one per
/// line.
pub fn listen<T>(run: impl FnOnce() -> T) -> (T, String) {
    static LISTENER: Once = Once::new();
    LISTENER.call_once(|| {
        log::set_logger(&Listener).expect("nobody else listens in this test");
        log::set_max_level(log::LevelFilter::Info);
    });
    SAID.with_borrow_mut(Vec::clear);
    let done = run();
    (done, SAID.with_borrow_mut(std::mem::take).join("\n"))
}
