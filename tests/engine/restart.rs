//! A daemon starts on a machine that kept running. It adopts active devices, and cleans up
//! unfinished ones.

use std::path::Path;

use stratisd::{
    engine::{
        dm_names::{self, Role},
        ops,
    },
    platform::{Platform, sim::Sim},
};
use support::{
    bench::{Bench, GIB, name},
    disks,
};

use crate::{
    discovery::two_disks,
    witness::{Witness, listen},
};

#[test]
fn a_running_stack_is_adopted_as_it_is() {
    let mut bench = Bench::with_two_filesystems();
    bench.mount("p", "f");
    let f = bench.filesystem("p", "f");
    bench.run(ops::snapshot_filesystem(bench.id("p"), f, name("s"))).unwrap();
    bench.create_pool_of(stratisd::engine::metadata::MetadataVersion::V1, "old", &["/dev/c"]).unwrap();
    bench.run(ops::check_pool(bench.id("p")));
    let before = Witness::of(&bench);
    let (bench, said) = listen(|| Bench::start(bench.sim));
    before.check_unchanged(&bench, &said);
    bench.check_nothing_left("after a restart");
    // The next daemon adopts the stack too, after a predecessor that unmounted its metadata volumes
    // at its end, which the logs of these volumes show.
    for pool in ["p", "old"] {
        bench.sim.unmount(&format!(".mdv-{}", bench.id(pool).simple())).unwrap();
    }
    let bench = Bench::start(bench.sim);
    before.check_same_stack(&bench, "after an orderly end");
}

#[test]
fn every_device_that_was_left_suspended_goes_on() {
    let names = |bench: &Bench| -> Vec<String> {
        let (pool, f) = (bench.id("p"), bench.filesystem("p", "f"));
        let mut names: Vec<String> =
            [Role::OriginSub, Role::Cache, Role::Mdv, Role::ThinMeta, Role::ThinData, Role::ThinPool]
                .map(|role| role.name(pool))
                .to_vec();
        names.push(dm_names::filesystem(pool, f));
        names
    };
    for at in 0..7 {
        let mut bench = Bench::with_two_filesystems();
        bench.mount("p", "g");
        let device = names(&bench)[at].clone();
        bench.sim.dm_suspend(&device, true).unwrap();
        let (found, said) = listen(|| Bench::start(bench.sim));
        bench = found;
        assert_eq!(bench.names(), ["p"], "{device}: {said}");
        let suspended = names(&bench).into_iter().filter(|name| bench.sim.dm_find(name).unwrap().unwrap().suspended);
        assert_eq!(suspended.collect::<Vec<_>>(), Vec::<String>::new(), "{device}");
        assert!(said.contains("left suspended"), "{said}");
        assert_eq!(bench.create_filesystems("p", &["h"]).unwrap(), 1, "{device}");
    }
}

#[test]
fn a_partial_table_stack_is_completed() {
    let roles = [Role::ThinPool, Role::ThinData, Role::ThinMeta, Role::Mdv, Role::Cache, Role::OriginSub];
    for up_to in 0..roles.len() {
        let mut bench = Bench::with_two_filesystems();
        let pool = bench.id("p");
        let filesystems = bench.pool("p").unwrap().filesystems.clone();
        filesystems.keys().for_each(|id| bench.sim.dm_remove(&dm_names::filesystem(pool, *id)).unwrap());
        for role in &roles[..=up_to] {
            if *role == Role::Mdv {
                bench.sim.unmount(&format!(".mdv-{}", pool.simple())).unwrap();
            }
            bench.sim.dm_remove(&role.name(pool)).unwrap();
        }
        bench = Bench::start(bench.sim);
        assert_eq!(bench.names(), ["p"], "up to {up_to}");
        bench.check_nothing_left("completed");
        for filesystem in bench.pool("p").unwrap().filesystems.values() {
            assert!(bench.is_linked("p", filesystem), "{}", filesystem.name);
        }
    }
}

#[test]
fn a_device_of_another_table_is_not_touched() {
    let bench = Bench::with_two_filesystems();
    let pool = bench.id("p");
    let (f, table) = (dm_names::filesystem(pool, bench.filesystem("p", "f")), Role::ThinPool.name(pool));
    // Another program has replaced the thin device.
    let other = dm_names::filesystem(pool, bench.filesystem("p", "g"));
    let other = bench.sim.dm_find(&other).unwrap().unwrap().table;
    bench.sim.dm_remove(&f).unwrap();
    assert!(bench.sim.dm_find(&table).unwrap().is_some());
    bench.sim.dm_create(&f, &f, &other, stratisd::platform::dm::Visibility::Public).unwrap();
    let (bench, said) = listen(|| Bench::start(bench.sim));
    assert_eq!(bench.names(), ["p"]);
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 1);
    assert!(said.contains("left out") && said.contains("does not match"), "{said}");
    assert_eq!(bench.sim.dm_find(&f).unwrap().unwrap().table, other);
}

/// Formerly, after a SIGKILL during a creation, the active devices of the new pool kept its disks
/// busy.
#[test]
fn disks_of_an_interrupted_creation_are_free() {
    let sim = Sim::builder().record().build();
    let mut bench = Bench::start(sim);
    let start = bench.sim.steps();
    bench.create_pool("p", &["/dev/a", "/dev/b"]).unwrap();
    let steps = bench.sim.steps() - start;
    let (mut left, mut made) = (0, 0);
    for step in 0..steps {
        let mut bench = Bench::start(Sim::builder().record().build());
        bench.sim.faults().kill_at(start + step);
        // A failure after the commit point may be silent.
        let _ = bench.create_pool("p", &["/dev/a", "/dev/b"]);
        bench.sim.faults().clear();
        let at = format!("killed at step {step} of {steps}");
        let (found, said) = listen(|| Bench::start(bench.sim));
        bench = found;
        bench.check_nothing_left(&at);
        match bench.names().len() {
            0 => left += 1,
            _ => made += 1,
        }
        let again = bench.create_pool("p", &["/dev/a", "/dev/b"]);
        again.unwrap_or_else(|error| panic!("{at}: {}\n{said}\n{}", error.sentence(), bench.tail(start)));
        assert_eq!(bench.engine.take_stopped_change().map_or(0, |stopped| stopped.list().len()), 0, "{at}");
    }
    assert!(left > 0 && made > 0, "{left} creations were taken back, {made} were completed");
}

/// The chain ends between two of its steps, as after a kill while no step runs.
#[test]
fn an_interrupted_creation_is_undone_or_completed() {
    for steps in 0.. {
        let mut scheduler = support::scheduler::Scheduler::new(Bench::with_two_filesystems(), 1);
        let pool = scheduler.bench.id("p");
        let new = ["h", "i"].map(|text| ops::NewFilesystem { name: name(text), size: Some(GIB), size_limit: None });
        scheduler.begin("create", ops::create_filesystems(pool, new.to_vec()));
        let over = (0..steps).any(|_| !scheduler.step());
        let mut bench = Bench::start(scheduler.bench.sim.clone());
        drop(scheduler);
        let there = bench.pool("p").unwrap().filesystems.len();
        assert!(there == 2 || there == 4, "after {steps} steps: {there}");
        bench.check_nothing_left(&format!("after {steps} steps"));
        assert_eq!(bench.create_filesystems("p", &["h", "i"]).unwrap(), 4 - there);
        if over {
            assert_eq!(there, 4);
            return;
        }
    }
}

/// Of two pools with one name, the one that is already up continues after a restart of the daemon.
#[test]
fn the_pool_that_is_up_keeps_its_name() {
    for [first, second] in [["/dev/a", "/dev/b"], ["/dev/b", "/dev/a"]] {
        let mut bench = Bench::start(Sim::builder().build());
        bench.create_pool("p", &["/dev/a"]).unwrap();
        bench.create_pool("q", &["/dev/b"]).unwrap();
        disks::reboot(&bench.sim);
        disks::change(&bench.sim, "/dev/b", |json| json["name"] = "p".into());
        bench.sim.pull_disk(Path::new(second)).unwrap();
        let bench = Bench::start(bench.sim);
        let running = bench.id("p");
        bench.sim.add_disk(Path::new(second), GIB).unwrap();
        let bench = Bench::start(bench.sim);
        assert_eq!(bench.id("p"), running, "the one on {first}");
        bench.check_nothing_left(first);
    }
}

/// The disk that tells of the destruction is wiped after all others: alone, an older one would show
/// the pool again.
#[test]
fn a_destruction_cut_short_shows_no_pool() {
    for step in 0.. {
        let sim = two_disks();
        disks::condemn(&sim, "/dev/a");
        let end = sim.steps() + step;
        sim.faults().kill_at(end);
        let mut killed = Bench::without_discovery(sim.clone());
        for chain in ops::discover(&killed.engine).unwrap_or_default() {
            killed.run(chain);
        }
        if sim.steps() < end {
            break;
        }
        sim.faults().clear();
        let mut bench = killed.reboot();
        assert_eq!(bench.stopped().list(), [], "step {step}");
        assert!(bench.create_pool("new", &["/dev/a", "/dev/b"]).unwrap(), "step {step}");
    }
}
