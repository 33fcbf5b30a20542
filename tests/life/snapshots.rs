//! Snapshots of crashed origins and in full pools, and programs that exit with 0 without having
//! done anything.

use std::{path::Path, time::Duration};

use stratisd::{
    base::{ids::FsUuid, units::Sectors},
    engine::{
        Error, Result,
        dm_names::Role,
        metadata::{MetadataVersion, SUPERBLOCK_BYTES_MAX, XfsIdentity},
        ops,
        thin_status::PoolStatus,
    },
    platform::{
        Platform, Program, WriteStep,
        sim::{CallKind, Sim},
    },
    view::Availability,
};
use support::bench::{Bench, GIB, name};

const HANG: Duration = Duration::from_secs(60);
const BLOCK: u64 = 1 << 20;

fn machine(version: MetadataVersion) -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool_of(version, "p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench
}

fn snapshot(bench: &mut Bench, origin: &str, to: &str) -> Result<Option<FsUuid>> {
    let origin = bench.filesystem("p", origin);
    bench.run(ops::snapshot_filesystem(bench.id("p"), origin, name(to)))
}

/// Checks that each XFS has the UUID of its filesystem, and thus a link.
fn expect_identities(bench: &Bench, expected: &[&str]) {
    let pool = bench.pool("p").unwrap();
    let mut names: Vec<&str> = pool.filesystems.values().map(|filesystem| filesystem.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    for filesystem in pool.filesystems.values() {
        let uuid = bench.sim.xfs_uuid(&bench.thin_node(pool.uuid, filesystem.uuid)).map(|uuid| *uuid.as_bytes());
        assert_eq!(uuid, Some(*filesystem.uuid.as_bytes()), "{}", filesystem.name);
        assert!(bench.is_linked("p", filesystem), "{}", filesystem.name);
    }
}

/// Formerly xfs_db kept the UUID of the origin and exited with 0, so the snapshot never got a link.
#[test]
fn a_snapshot_of_a_crashed_origin_is_itself() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let bench = machine(version);
        bench.mount("p", "f");
        bench.mark("p", "f", 5);
        let mut bench = bench.reboot();
        let made = snapshot(&mut bench, "f", "s").unwrap().unwrap();
        expect_identities(&bench, &["f", "s"]);
        assert_eq!(bench.mark_of(bench.id("p"), made), 5);
        bench.mount("p", "f");
        bench.mount("p", "s");
    }
}

/// The same for a revert: formerly the filesystem kept the UUID of its snapshot and had no link.
#[test]
fn reverting_to_a_crashed_snapshot_keeps_the_identity() {
    let mut bench = machine(MetadataVersion::V2);
    let made = snapshot(&mut bench, "f", "s").unwrap().unwrap();
    bench.mount("p", "s");
    bench.mark("p", "s", 6);
    let mut bench = bench.reboot();
    assert!(bench.run(ops::schedule_revert(bench.id("p"), made, true)).unwrap());
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    expect_identities(&bench, &["f"]);
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 6);
    bench.check_nothing_left("after the revert");
}

#[test]
fn a_program_without_effect_is_an_error() {
    let mut bench = machine(MetadataVersion::V2);
    // The first call asks mkfs.xfs for its version.
    bench.sim.faults().idle_next(Program::MkfsXfs);
    bench.sim.faults().idle_next(Program::MkfsXfs);
    let error = bench.create_filesystems("p", &["g"]).unwrap_err();
    assert!(matches!(error, Error::XfsIdentity { program: Program::MkfsXfs, .. }), "{error:?}");
    // xfs_db runs for an XFS that the daemon does not understand: here, with a bad copy of its
    // superblock.
    spoil_copy(&bench);
    for _ in 0..2 {
        bench.sim.faults().idle_next(Program::XfsDb);
    }
    let error = snapshot(&mut bench, "f", "s").unwrap_err();
    assert!(matches!(error, Error::XfsIdentity { program: Program::XfsDb, .. }), "{error:?}");
    expect_identities(&bench, &["f"]);
    bench.check_nothing_left("after both");
}

fn status(sim: &Sim, thin_pool: &str) -> PoolStatus {
    PoolStatus::parse(&sim.dm_status(thin_pool).unwrap().remove(0)).unwrap()
}

/// Number of data blocks that the pool uses.
fn used(bench: &Bench) -> u64 {
    status(&bench.sim, &Role::ThinPool.name(bench.id("p"))).data_used.0
}

/// Formerly the log was a 2048th of the filesystem, and each snapshot wrote it anew: 545 blocks for
/// either.
#[test]
fn filesystems_and_snapshots_take_little_space() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = machine(version);
        let made = used(&bench);
        assert!(made <= 80, "{made}");
        bench.sim.faults().fail_next(CallKind::Run(Program::XfsDb), "");
        bench.mount("p", "f");
        snapshot(&mut bench, "f", "of-mounted").unwrap().unwrap();
        let of_mounted = used(&bench) - made;
        bench.sim.unmount_user(Path::new("/mnt/f")).unwrap();
        let before = used(&bench);
        snapshot(&mut bench, "f", "of-unmounted").unwrap().unwrap();
        let of_unmounted = used(&bench) - before;
        assert!(of_mounted <= 16 && of_unmounted <= 16, "{of_mounted} {of_unmounted}");
        assert_eq!(bench.sim.faults().struck(), 0, "xfs_db was run");
        bench.sim.faults().clear();
        expect_identities(&bench, &["f", "of-mounted", "of-unmounted"]);
    }
}

/// xfs_db writes the log of an XFS that the daemon does not understand, and the copies of its
/// superblock.
#[test]
fn an_xfs_not_understood_goes_to_xfs_db() {
    let mut bench = machine(MetadataVersion::V2);
    spoil_copy(&bench);
    snapshot(&mut bench, "f", "s").unwrap().unwrap();
    expect_identities(&bench, &["f", "s"]);
}

/// Overwrites the first copy of the superblock of filesystem f.
fn spoil_copy(bench: &Bench) {
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    let identity = XfsIdentity::read(&bench.sim.read(&node, 0, SUPERBLOCK_BYTES_MAX).unwrap()).unwrap();
    bench.sim.write(&node, &[WriteStep::At(identity.superblocks().nth(1).unwrap(), &[0; 512])]).unwrap();
}

/// A thin pool of 50 GiB that no check has extended since its creation, and a larger filesystem on
/// it.
fn unchecked(disk: u64) -> Bench {
    let mut bench = Bench::start(Sim::builder().disk("/dev/a", Sectors(disk)).build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    let new = ops::NewFilesystem { name: name("f"), size: Some(Sectors(1024 * GIB.0)), size_limit: None };
    bench.run(ops::create_filesystems(bench.id("p"), vec![new])).unwrap();
    bench
}

/// Takes all free data blocks, and tries to take some more.
fn fill(sim: &Sim, thin_pool: &str, node: &Path) -> stratisd::platform::Result<()> {
    let status = status(sim, thin_pool);
    let free = status.data_total.0 - status.data_used.0;
    // mkfs has already written some of the blocks.
    let writes: Vec<WriteStep<'_>> = (0..free + 64).map(|block| WriteStep::At((block + 1) * BLOCK, b"x")).collect();
    sim.write(node, &writes)
}

/// Formerly the suspend waited for the writes, the writes for space, and the check that would have
/// allocated space for the snapshot: 63 s in all.
#[test]
fn a_full_pool_gets_space_before_a_snapshot() {
    let mut bench = unchecked(60 * GIB.0);
    let (sim, thin_pool) = (bench.sim.clone(), Role::ThinPool.name(bench.id("p")));
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| fill(&sim, &thin_pool, &node));
        assert!(sim.wait_for_stalled(1, HANG));
        snapshot(&mut bench, "f", "s").unwrap().unwrap();
        writer.join().unwrap().unwrap();
    });
    expect_identities(&bench, &["f", "s"]);
    bench.check_nothing_left("after the snapshot");
}

#[test]
fn a_full_pool_without_space_refuses_a_snapshot() {
    let mut bench = unchecked(5 * GIB.0);
    bench.run(ops::check_now(bench.id("p"))).unwrap();
    let thin_pool = Role::ThinPool.name(bench.id("p"));
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    assert_eq!(fill(&bench.sim, &thin_pool, &node).unwrap_err().errno(), Some(nix::libc::ENOSPC));
    let error = snapshot(&mut bench, "f", "s").unwrap_err();
    assert!(matches!(error, Error::PoolFull { .. }), "{error:?}");
    let pool = bench.pool("p").unwrap();
    assert_eq!(pool.availability, Availability::Full);
    bench.run(ops::add_data_devices(pool.uuid, vec!["/dev/more".into()])).unwrap();
    snapshot(&mut bench, "f", "s").unwrap().unwrap();
    expect_identities(&bench, &["f", "s"]);
}

/// If the origin cannot be suspended, it keeps running and no snapshot is made.
#[test]
fn an_origin_that_cannot_be_suspended_goes_on() {
    let mut bench = machine(MetadataVersion::V2);
    let device = stratisd::engine::dm_names::filesystem(bench.id("p"), bench.filesystem("p", "f"));
    bench.sim.faults().fail_next(CallKind::DmSuspend, &device);
    snapshot(&mut bench, "f", "s").unwrap_err();
    assert!(!bench.sim.dm_find(&device).unwrap().unwrap().suspended);
    snapshot(&mut bench, "f", "s").unwrap().unwrap();
    expect_identities(&bench, &["f", "s"]);
}

/// The origin is suspended for the moment of the snapshot. However that ends, the daemon tries to
/// resume the origin, and says so if it cannot.
#[test]
fn an_origin_that_stays_suspended_is_reported() {
    for (failures, is_left) in [(4, false), (5, true)] {
        let mut bench = machine(MetadataVersion::V2);
        let device = stratisd::engine::dm_names::filesystem(bench.id("p"), bench.filesystem("p", "f"));
        for _ in 0..failures {
            bench.sim.faults().fail_next(CallKind::DmResume, &device);
        }
        snapshot(&mut bench, "f", "s").unwrap_err();
        assert_eq!(bench.sim.faults().struck(), failures);
        assert_eq!(bench.sim.dm_find(&device).unwrap().unwrap().suspended, is_left, "{failures} failures");
        let pool = bench.pool("p").unwrap();
        assert_eq!(pool.availability == Availability::Full, !is_left, "{:?}", pool.restriction);
        let is_told = pool.restriction.as_deref().is_some_and(|why| why.contains(&format!("resume {device}")));
        assert_eq!(is_told, is_left, "{:?}", pool.restriction);
    }
}

/// A thin device that an interrupted request has left may have the number of the new one. The
/// snapshot is taken with another number, and its origin stays suspended until then.
#[test]
fn a_snapshot_with_a_taken_number_is_repeated() {
    let mut bench = Bench::start(Sim::builder().record().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let (thin_pool, pool) = (Role::ThinPool.name(bench.id("p")), bench.id("p"));
    let origin = stratisd::engine::dm_names::filesystem(pool, bench.filesystem("p", "f"));
    let next = bench.sim.thin_ids(&thin_pool).unwrap().into_iter().max().unwrap() + 1;
    bench.sim.dm_message(&thin_pool, &format!("create_thin {next}")).unwrap();
    let first = usize::try_from(bench.sim.steps()).unwrap();
    snapshot(&mut bench, "f", "s").unwrap().unwrap();
    let trace = bench.sim.trace().split_off(first);
    let calls = trace.iter().filter_map(|step| match step.call {
        CallKind::DmMessage if step.subject.contains(&thin_pool) => Some("message"),
        CallKind::DmSuspend if step.subject == origin => Some("suspend"),
        CallKind::DmResume if step.subject == origin => Some("resume"),
        _ => None,
    });
    let calls: Vec<_> = calls.collect();
    let resumed = calls.iter().position(|call| *call == "resume").unwrap();
    let last = calls.iter().rposition(|call| *call == "message").unwrap();
    assert!(calls[..resumed].contains(&"suspend") && last < resumed, "{calls:?}");
}

/// The log of a crashed origin is replayed in a mount. A daemon that is killed meanwhile leaves the
/// mount to the next one.
#[test]
fn a_replay_cut_short_leaves_no_mount() {
    let mut mounted = 0;
    for step in 0.. {
        let bench = machine(MetadataVersion::V2);
        bench.mount("p", "f");
        bench.mark("p", "f", 5);
        let mut bench = bench.reboot();
        let before = bench.sim.leftovers().mounts.len();
        bench.sim.faults().kill_at(bench.sim.steps() + step);
        let is_made = snapshot(&mut bench, "f", "s").is_ok();
        bench.sim.faults().clear();
        if is_made {
            break;
        }
        mounted += usize::from(bench.sim.leftovers().mounts.len() > before);
        Bench::start(bench.sim).check_nothing_left(&format!("killed at step {step}"));
    }
    assert!(mounted > 0, "no kill has struck while the snapshot was mounted");
}
