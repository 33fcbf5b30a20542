//! Recorded sizes and sizes in the kernel: which sizes are refused, and what happens to records
//! that differ from the kernel or that the kernel refuses.

use std::path::Path;

use stratisd::{
    base::{
        ids::FsUuid,
        units::{Bytes, Sectors},
    },
    engine::{
        Error, dm_names,
        metadata::FilesystemRecord,
        ops::{self, NewFilesystem},
    },
    platform::{
        DeviceAction, DeviceEvent, Platform, WriteStep,
        dm::Visibility,
        sim::{CallKind, Sim},
    },
};
use support::bench::{Bench, GIB, name};

/// More than half of a filesystem of 1 GiB.
const FULL: Bytes = Bytes(600 << 20);
/// Not a multiple of 4096 bytes.
const ODD: Sectors = Sectors(GIB.0 + GIB.0 / 2 + 1);

/// A pool with a filesystem, on disks with this logical sector size.
fn machine(logical: u32) -> Bench {
    let size = Sectors(100 * GIB.0);
    let sim = Sim::builder().disk("/dev/a", size).logical(logical).physical(4096);
    let sim = sim.disk("/dev/b", size).logical(logical).physical(4096).build();
    let mut bench = Bench::start(sim);
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench
}

fn record_path(bench: &Bench, id: FsUuid) -> String {
    format!(".mdv-{}/filesystems/{}.json", bench.id("p").simple(), id.simple())
}

fn record(bench: &Bench) -> FilesystemRecord {
    let path = record_path(bench, bench.filesystem("p", "f"));
    FilesystemRecord::parse(&bench.sim.read_file(&path).unwrap()).unwrap()
}

/// Changes the record on disk, as another daemon could.
fn put_record(bench: &Bench, change: impl FnOnce(&mut FilesystemRecord)) {
    let mut record = record(bench);
    change(&mut record);
    bench.sim.replace_file(&record_path(bench, record.uuid), &record.encode()).unwrap();
}

/// The size on record, in the view, of the device and of the XFS.
fn sizes(bench: &Bench) -> [Sectors; 4] {
    let pool = bench.pool("p").unwrap();
    let id = bench.filesystem("p", "f");
    let device = dm_names::filesystem(pool.uuid, id);
    let xfs = bench.sim.xfs_size(&bench.sim.dm_node(&device)).unwrap().sectors().unwrap();
    [record(bench).size, pool.filesystems[&id].size, bench.sim.dm_find(&device).unwrap().unwrap().size(), xfs]
}

/// Makes the thin device larger, as another daemon does that ends before it writes the record.
fn extend_device(bench: &Bench, size: Sectors) {
    let device = dm_names::filesystem(bench.id("p"), bench.filesystem("p", "f"));
    let mut table = bench.sim.dm_find(&device).unwrap().unwrap().table;
    table[0].length = size;
    bench.sim.dm_load(&device, &table).unwrap();
    bench.sim.dm_resume(&device, Visibility::Public).unwrap();
}

fn set_limit(bench: &mut Bench, limit: Sectors) -> Result<bool, Error> {
    bench.run(ops::set_size_limit(bench.id("p"), bench.filesystem("p", "f"), Some(limit)))
}

fn create(bench: &mut Bench, size: Sectors, size_limit: Option<Sectors>) -> Result<(), Error> {
    let new = NewFilesystem { name: name("g"), size: Some(size), size_limit };
    bench.run(ops::create_filesystems(bench.id("p"), vec![new])).map(drop)
}

fn fill_and_check(bench: &mut Bench) -> Result<(), Error> {
    bench.mount("p", "f");
    bench.sim.set_used(Path::new("/mnt/f"), FULL).unwrap();
    bench.run(ops::check_filesystems_now(bench.id("p")))
}

/// Formerly such a limit was accepted and recorded. The kernel refused the growth to it every time,
/// and the filesystem could not be set up any more.
#[test]
fn sizes_of_part_of_a_sector_are_refused() {
    let mut bench = machine(4096);
    let before = bench.pool("p").unwrap();
    assert!(matches!(set_limit(&mut bench, ODD), Err(Error::SizeLimit { .. })));
    assert!(matches!(create(&mut bench, ODD, None), Err(Error::FilesystemSize { .. })));
    assert!(matches!(create(&mut bench, GIB, Some(ODD)), Err(Error::FilesystemSize { .. })));
    assert_eq!(bench.pool("p").unwrap(), before);
    assert!(set_limit(&mut bench, Sectors(ODD.0 + 7)).unwrap());
    create(&mut bench, Sectors(ODD.0 + 7), None).unwrap();
}

#[test]
fn small_sectors_allow_every_whole_sector() {
    let mut bench = machine(512);
    assert!(set_limit(&mut bench, ODD).unwrap());
    create(&mut bench, ODD, None).unwrap();
    fill_and_check(&mut bench).unwrap();
    let [record, view, device, _] = sizes(&bench);
    assert_eq!([record, view, device], [ODD; 3]);
    assert_eq!(bench.reboot().pool("p").unwrap().filesystems.len(), 2);
}

/// The limit was recorded by a daemon that ignored sector sizes.
#[test]
fn growth_to_an_odd_limit_ends_sector_aligned() {
    let bench = machine(4096);
    put_record(&bench, |record| record.fs_size_limit = Some(ODD));
    let mut bench = Bench::start(bench.sim);
    fill_and_check(&mut bench).unwrap();
    assert_eq!(sizes(&bench), [Sectors(ODD.0 - 1); 4]);
    bench.run(ops::check_filesystems_now(bench.id("p"))).unwrap();
    assert_eq!(sizes(&bench), [Sectors(ODD.0 - 1); 4]);
    let bench = bench.reboot();
    assert_eq!(sizes(&bench), [Sectors(ODD.0 - 1); 4]);
}

/// Formerly such a filesystem could not be used, repaired or destroyed.
#[test]
fn an_impossible_recorded_size_is_corrected() {
    let bench = machine(4096);
    bench.mark("p", "f", 5);
    put_record(&bench, |record| record.size = Sectors(GIB.0 + 3));
    let bench = bench.reboot();
    assert_eq!(sizes(&bench), [GIB; 4]);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
}

/// Formerly the recorded size stayed larger than the size in the kernel, so the filesystem could
/// not be set up any more.
#[test]
fn a_refused_extension_leaves_the_former_record() {
    let mut bench = machine(512);
    let device = dm_names::filesystem(bench.id("p"), bench.filesystem("p", "f"));
    bench.sim.faults().refuse_next(CallKind::DmLoad, &device);
    assert!(fill_and_check(&mut bench).is_err_and(|error| error.is_refusal()));
    assert_eq!(sizes(&bench), [GIB; 4]);
    // A transient failure does not undo the growth.
    bench.sim.faults().fail_next(CallKind::DmLoad, &device);
    bench.run(ops::check_filesystems_now(bench.id("p"))).unwrap_err();
    assert_eq!(sizes(&bench), [Sectors(2 * GIB.0), Sectors(2 * GIB.0), GIB, GIB]);
    bench.run(ops::check_filesystems_now(bench.id("p"))).unwrap();
    assert_eq!(sizes(&bench), [Sectors(2 * GIB.0); 4]);
}

/// Another daemon extends the device and the XFS first, and writes the record last. Formerly such a
/// device counted as one with a foreign table, and its filesystem failed.
#[test]
fn a_device_larger_than_its_record_is_adopted() {
    let bench = machine(512);
    extend_device(&bench, Sectors(2 * GIB.0));
    let bench = Bench::start(bench.sim);
    assert_eq!(sizes(&bench), [Sectors(2 * GIB.0), Sectors(2 * GIB.0), Sectors(2 * GIB.0), GIB]);
}

/// As [`a_device_larger_than_its_record_is_adopted`], with a power cut before the other daemon
/// wrote the record.
#[test]
fn an_xfs_larger_than_its_record_fits_again() {
    let bench = machine(512);
    extend_device(&bench, Sectors(2 * GIB.0));
    bench.mount("p", "f");
    let device = dm_names::filesystem(bench.id("p"), bench.filesystem("p", "f"));
    let number = bench.sim.dm_find(&device).unwrap().unwrap().number;
    let mount = bench.sim.mounts(&[number]).unwrap().remove(0);
    bench.sim.grow_xfs(&mount).unwrap();
    bench.sim.unmount_user(Path::new("/mnt/f")).unwrap();
    let bench = bench.reboot();
    assert_eq!(sizes(&bench), [Sectors(2 * GIB.0); 4]);
    bench.mount("p", "f");
}

/// Only blocks past the recorded end show that the XFS has grown, because the new superblock may
/// exist only in the log.
#[test]
fn blocks_past_the_recorded_end_are_kept() {
    let bench = machine(512);
    extend_device(&bench, Sectors(2 * GIB.0));
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    let past = u64::try_from(GIB.bytes().0).unwrap() + (5 << 20);
    bench.sim.write(&node, &[WriteStep::At(past, &[7; 512]), WriteStep::Flush]).unwrap();
    let bench = bench.reboot();
    assert_eq!(sizes(&bench), [Sectors(2 * GIB.0), Sectors(2 * GIB.0), Sectors(2 * GIB.0), GIB]);
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    assert_eq!(bench.sim.read(&node, past, 1).unwrap(), [7]);
}

/// The size of the thin pool's data device in the kernel, and the space that the pool has
/// allocated.
fn data_sizes(bench: &Bench) -> (Sectors, Sectors) {
    let name = dm_names::Role::ThinData.name(bench.id("p"));
    let device = bench.sim.dm_find(&name).unwrap().unwrap().size();
    (device, bench.pool("p").unwrap().allocated)
}

/// Formerly the recorded size stayed larger than the size in the kernel, and each check failed with
/// the same refusal.
#[test]
fn a_refused_thin_pool_growth_is_undone() {
    let mut bench = machine(512);
    fill_thin_pool(&mut bench);
    let before = data_sizes(&bench);
    bench.sim.faults().refuse_next(CallKind::DmLoad, "originsub");
    assert!(bench.run(ops::check_now(bench.id("p"))).is_err_and(|error| error.is_refusal()));
    assert_eq!(data_sizes(&bench), before);
    // The next check does not repeat the refused request.
    let steps = bench.sim.flush_waits();
    bench.run(ops::check_now(bench.id("p"))).unwrap();
    assert_eq!((data_sizes(&bench), bench.sim.flush_waits()), (before, steps));
    // With more space, a check tries again.
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/b".into()])).unwrap();
    assert!(data_sizes(&bench).0 > before.0);
    let bench = bench.reboot();
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 2);
}

/// Formerly a check allocated space past the end of a shrunken device, and the kernel refused every
/// such table.
#[test]
fn lost_space_is_not_handed_out() {
    let mut bench = machine(512);
    let path = Path::new("/dev/a");
    bench.sim.resize_disk(path, Sectors(60 * GIB.0)).unwrap();
    let device = bench.sim.find_device(path).ok();
    bench.run(ops::device_event(DeviceEvent {
        action: DeviceAction::Change,
        path: path.into(),
        device,
        unlinked: None,
    }));
    fill_thin_pool(&mut bench);
    let before = data_sizes(&bench).0;
    bench.run(ops::check_now(bench.id("p"))).unwrap();
    bench.run(ops::check_now(bench.id("p"))).unwrap();
    let after = data_sizes(&bench).0;
    assert!(before < after && after < Sectors(60 * GIB.0), "{before} {after}");
}

/// Fills the thin pool up to its low-water mark.
fn fill_thin_pool(bench: &mut Bench) {
    // This check learns how much thin metadata the pool needs.
    bench.check_pools();
    create(bench, Sectors(60 * GIB.0), None).unwrap();
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "g"));
    let used = u64::try_from(data_sizes(bench).0.bytes().0).unwrap() >> 20;
    let steps: Vec<WriteStep<'_>> = (0..used - 10_000).map(|mib| WriteStep::At(mib << 20, &[1; 512])).collect();
    bench.sim.write(&node, &steps).unwrap();
}

/// Another daemon extends device and XFS before it writes the record. The XFS alone tells how far.
#[test]
fn a_device_is_as_large_as_its_xfs() {
    let mut bench = machine(512);
    let size = Sectors(GIB.0 + GIB.0 / 2);
    assert!(set_limit(&mut bench, size).unwrap());
    fill_and_check(&mut bench).unwrap();
    assert_eq!(sizes(&bench), [size; 4]);
    put_record(&bench, |record| (record.size, record.fs_size_limit) = (GIB, None));
    let bench = bench.reboot();
    assert_eq!(sizes(&bench), [size; 4]);
}
