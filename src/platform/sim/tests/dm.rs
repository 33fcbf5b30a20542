//! Devices and tables follow the kernel's rules.

use nix::libc::{EACCES, EBUSY, EILSEQ, EINVAL, EIO, ENODATA, ENXIO};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

const MIB: u64 = 2048;

#[test]
fn names_are_unique_and_minors_reused() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    let one = create(&sim, "one", &linear(disk, 0, MIB));
    let table = linear(disk, MIB, MIB);
    assert_eq!(errno(sim.dm_create("one", "other", &table, Visibility::Private)), EBUSY);
    assert_eq!(errno(sim.dm_create("other", "one", &table, Visibility::Private)), EBUSY);
    assert_eq!(errno(sim.dm_create("a/b", "x", &table, Visibility::Private)), EINVAL);
    assert_eq!(errno(sim.dm_create(&"n".repeat(128), "x", &table, Visibility::Private)), EINVAL);
    assert_eq!(sim.leftovers().devices, ["one"]);
    sim.dm_remove("one").unwrap();
    assert_eq!(create(&sim, "two", &table), one);
    assert_eq!(sim.dm_find("one").unwrap(), None);
    assert_eq!(sim.dm_find("two").unwrap().unwrap().table, table);
}

#[test]
fn bad_tables_are_refused_and_leave_nothing() {
    let sim = Sim::builder().disk("/dev/ro", Sectors(MIB)).read_only().disk("/dev/used", Sectors(MIB)).in_use().build();
    let disk = number(&sim, "/dev/a");
    let gap = vec![
        Line::linear(Sectors(0), Sectors(8), disk, Sectors(0)),
        Line::linear(Sectors(16), Sectors(8), disk, Sectors(0)),
    ];
    let nowhere = DeviceNumber { major: 254, minor: 77 };
    let foreign = vec![Line::parse(Sectors(0), Sectors(8), "crypt", "aes 0 259:0 0")];
    let size = sim.geometry(Path::new("/dev/a")).unwrap().size.0;
    let cases = [
        (vec![], EINVAL),
        (gap, EINVAL),
        (linear(disk, 0, 0), EINVAL),
        (foreign, EINVAL),
        (linear(nowhere, 0, 8), ENXIO),
        (linear(number(&sim, "/dev/ro"), 0, 8), EACCES),
        (linear(number(&sim, "/dev/used"), 0, 8), EBUSY),
        // The kernel detects this error at the resume.
        (linear(disk, size - 8, 16), EINVAL),
    ];
    for (table, expected) in cases {
        assert_eq!(errno(sim.dm_create("x", "x", &table, Visibility::Private)), expected, "{table:?}");
        assert!(sim.leftovers().is_empty());
    }
    assert!(!sim.hold(Path::new("/dev/a")).is_err_and(|error| error.is_busy()));
}

#[test]
fn a_device_in_use_is_not_removed() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 1000, "");
    thin(&sim, pool, "fs", 0);
    for name in ["meta", "data", "pool"] {
        assert!(sim.dm_remove(name).unwrap_err().is_busy(), "{name}");
    }
    // A loaded table holds its devices, too.
    let spare = create(&sim, "spare", &linear(number(&sim, "/dev/a"), 0, 8));
    sim.dm_load("data", &linear(spare, 0, 8)).unwrap();
    assert!(sim.dm_remove("spare").unwrap_err().is_busy());
    sim.dm_load("data", &linear(number(&sim, "/dev/a"), METADATA.0, 1000 * MIB)).unwrap();
    sim.dm_remove("spare").unwrap();

    sim.run(crate::platform::Program::MkfsXfs, &["/dev/mapper/fs"]).unwrap();
    sim.mount_user(Path::new("/dev/mapper/fs"), Path::new("/mnt")).unwrap();
    assert!(matches!(sim.dm_remove("fs"), Err(Error::Busy { name }) if name == "fs"));
    sim.unmount_user(Path::new("/mnt")).unwrap();
    assert!(sim.hold(Path::new("/dev/a")).is_err_and(|error| error.is_busy()));
    for name in ["fs", "pool", "data", "meta"] {
        sim.dm_remove(name).unwrap();
    }
    assert!(sim.leftovers().is_empty());
    assert!(!sim.hold(Path::new("/dev/a")).is_err_and(|error| error.is_busy()));
    assert_eq!(errno(sim.dm_remove("fs")), ENXIO);
}

#[test]
fn removal_outlasts_only_a_short_probe() {
    let sim = Sim::builder().build();
    create(&sim, "x", &linear(number(&sim, "/dev/a"), 0, MIB));
    sim.hold_device("x", 6).unwrap();
    assert!(sim.dm_remove("x").unwrap_err().is_busy());
    sim.dm_remove("x").unwrap();
}

#[test]
fn a_loaded_table_waits_for_the_resume() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    create(&sim, "x", &linear(disk, 0, 8));
    write(&sim, "x", 0, b"here").unwrap();
    sim.dm_load("x", &linear(disk, 1000, 16)).unwrap();
    assert_eq!(read(&sim, "x", 0, 4), b"here");
    assert_eq!(sim.dm_find("x").unwrap().unwrap().table, linear(disk, 0, 8));
    sim.dm_resume("x", Visibility::Private).unwrap();
    assert_eq!(read(&sim, "x", 0, 4), [0; 4]);
    assert_eq!(sim.geometry(&sim.dm_node("x")).unwrap().size, Sectors(16));
    write(&sim, "x", 0, b"there").unwrap();
    assert_eq!(sim.read(Path::new("/dev/a"), 512_000, 5).unwrap(), b"there");
    assert_eq!(errno(sim.read(&sim.dm_node("x"), 8190, 4)), EIO);
}

#[test]
fn a_failed_resume_leaves_the_old_table_suspended() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    create(&sim, "x", &linear(disk, 0, 8));
    let size = sim.geometry(Path::new("/dev/a")).unwrap().size.0;
    sim.dm_load("x", &linear(disk, size, 8)).unwrap();
    assert_eq!(errno(sim.dm_resume("x", Visibility::Private)), EINVAL);
    let left = sim.dm_find("x").unwrap().unwrap();
    assert!(left.suspended);
    assert_eq!(left.table, linear(disk, 0, 8));
    sim.dm_resume("x", Visibility::Private).unwrap();
    assert!(!sim.dm_find("x").unwrap().unwrap().suspended);
}

/// A table of several ranges serves I/O that crosses them.
#[test]
fn io_may_cross_ranges_of_a_table() {
    let sim = Sim::builder().build();
    let (a, b) = (number(&sim, "/dev/a"), number(&sim, "/dev/b"));
    let table = [(0, 3, a, 100), (3, 2, b, 7), (5, 3, a, 50)];
    let table = table
        .map(|(start, length, device, offset)| Line::linear(Sectors(start), Sectors(length), device, Sectors(offset)));
    create(&sim, "x", &table);
    let bytes: Vec<u8> = (0..8 * 512_u32).map(|i| (i / 7) as u8).collect();
    write(&sim, "x", 0, &bytes).unwrap();
    assert_eq!(read(&sim, "x", 700, 3000), bytes[700..3700]);
    assert_eq!(sim.read(Path::new("/dev/b"), 7 * 512, 1024).unwrap(), bytes[3 * 512..5 * 512]);
    assert_eq!(sim.read(Path::new("/dev/a"), 50 * 512, 1536).unwrap(), bytes[5 * 512..]);
}

#[test]
fn writes_wait_for_a_suspended_device_below() {
    let sim = Sim::builder().build();
    let below = create(&sim, "below", &linear(number(&sim, "/dev/a"), 0, MIB));
    create(&sim, "above", &linear(below, 0, MIB));
    sim.dm_suspend("below", true).unwrap();
    sim.dm_suspend("below", true).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&sim, "above", 0, b"late"));
        assert!(sim.wait_for_stalled(1, LIMIT));
        assert_eq!(sim.read(Path::new("/dev/a"), 0, 4).unwrap(), [0; 4]);
        sim.dm_resume("below", Visibility::Private).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(sim.read(Path::new("/dev/a"), 0, 4).unwrap(), b"late");
}

#[test]
fn power_ends_the_wait_for_a_suspended_device() {
    let sim = Sim::builder().build();
    create(&sim, "x", &linear(number(&sim, "/dev/a"), 0, MIB));
    sim.dm_suspend("x", true).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&sim, "x", 0, b"never"));
        assert!(sim.wait_for_stalled(1, LIMIT));
        sim.cut_power();
        assert!(matches!(writer.join().unwrap(), Err(Error::PowerCut)));
    });
}

#[test]
fn a_thin_pool_refuses_bad_tables() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    let metadata = create(&sim, "meta", &linear(disk, 0, METADATA.0));
    let data = create(&sim, "data", &linear(disk, METADATA.0, 100 * MIB));
    let refused = |table: &[Line]| errno(sim.dm_create("pool", "pool", table, Visibility::Private));
    assert_eq!(refused(&pool_table(metadata, data, 100, 1, "no_such_feature")), EINVAL);
    assert_eq!(refused(&pool_table(metadata, data, 101, 1, "")), EINVAL);
    assert_eq!(refused(&pool_table(metadata, metadata, 1, 1, "")), EINVAL);
    let mut small = pool_table(metadata, data, 100, 1, "");
    if let Target::ThinPool { block, .. } = &mut small[0].target {
        *block = Sectors(100);
    }
    assert_eq!(refused(&small), EINVAL);
    // None of the refused loads has taken the metadata device.
    let pool = create(&sim, "pool", &pool_table(metadata, data, 99, 1, "skip_block_zeroing"));
    let table = &sim.dm_find("pool").unwrap().unwrap().table[0];
    assert_eq!(table.target.to_string(), format!("{metadata} {data} 2048 1 1 skip_block_zeroing"));

    // One metadata device, one pool. A pool stays a pool on the same devices and does not shrink.
    let other = sim.dm_create("other", "other", &pool_table(metadata, data, 1, 1, ""), Visibility::Private);
    assert_eq!(errno(other), EBUSY);
    assert_eq!(errno(sim.dm_load("pool", &linear(disk, 0, 8))), EINVAL);
    assert_eq!(errno(sim.dm_load("pool", &pool_table(metadata, disk, 99, 1, ""))), EINVAL);
    sim.dm_load("pool", &pool_table(metadata, data, 98, 1, "")).unwrap();
    assert_eq!(errno(sim.dm_resume("pool", Visibility::Private)), EINVAL);
    sim.dm_load("pool", &pool_table(metadata, data, 100, 1, "")).unwrap();
    sim.dm_resume("pool", Visibility::Private).unwrap();

    // A thin device needs an existing pool that runs and has the thin device number.
    let made = |pool, id| errno(sim.dm_create("fs", "fs", &thin_table(pool, id, 8), Visibility::Public));
    assert_eq!(made(data, 0), EINVAL);
    assert_eq!(made(disk, 0), EINVAL);
    assert_eq!(made(pool, 0), ENODATA);
    sim.dm_message("pool", "create_thin 0").unwrap();
    sim.dm_suspend("pool", true).unwrap();
    assert_eq!(made(pool, 0), EINVAL);
    sim.dm_resume("pool", Visibility::Private).unwrap();
    assert_eq!(made(pool, 0), 0);
}

#[test]
fn a_pool_refuses_foreign_metadata() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    sim.put(Path::new("/dev/a"), 100, b"somebody's").unwrap();
    let metadata = create(&sim, "meta", &linear(disk, 0, METADATA.0));
    let table = pool_table(metadata, number(&sim, "/dev/b"), 10, 1, "");
    assert_eq!(errno(sim.dm_create("pool", "", &table, Visibility::Private)), EILSEQ);
}

/// Whichever step of a create fails, before or after its effect, no device is left.
#[test]
fn a_failed_create_leaves_nothing() {
    let attempts = |after: bool| {
        (0..).map_while(move |k| {
            let sim = Sim::builder().build();
            let table = linear(number(&sim, "/dev/a"), 0, 8);
            let step = sim.steps() + k;
            if after {
                sim.faults().fail_after(step)
            } else {
                sim.faults().fail_at(step)
            }
            let made = sim.dm_create("x", "x", &table, Visibility::Private);
            assert_eq!(made.is_err(), sim.faults().struck() == 1);
            assert_eq!(made.is_err(), sim.leftovers().is_empty(), "step {k}");
            made.is_err().then_some(())
        })
    };
    assert_eq!(attempts(false).count(), 3);
    assert_eq!(attempts(true).count(), 3);
}

fn readable(fd: impl std::os::fd::AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

#[test]
fn events_are_reported_until_armed_again() {
    let sim = Sim::builder().build();
    let mut events = sim.dm_events().unwrap();
    assert!(!readable(events.fd()));
    let pool = stack(&sim, 3, "error_if_no_space");
    thin(&sim, pool, "fs", 0);
    assert!(readable(events.fd()));
    events.arm().unwrap();
    assert!(!readable(events.fd()));

    let event = || sim.dm_event("pool").unwrap().unwrap();
    assert_eq!(sim.dm_event("nobody").unwrap(), None);
    let before = event();
    write(&sim, "fs", 0, b"1").unwrap();
    assert_eq!(event(), before);
    // Two of three blocks are free, then one; the low-water mark is one.
    write(&sim, "fs", BLOCK, b"2").unwrap();
    assert_eq!(event(), before);
    write(&sim, "fs", 2 * BLOCK, b"3").unwrap();
    assert_eq!(event(), before + 1);
    assert!(readable(events.fd()));
    events.arm().unwrap();
    // The next event reports that the pool is out of space, once.
    for _ in 0..2 {
        assert!(write(&sim, "fs", 3 * BLOCK, b"4").is_err());
        assert_eq!(event(), before + 2);
    }
    events.arm().unwrap();
    sim.dm_remove("fs").unwrap();
    assert!(readable(events.fd()));
    sim.cut_power();
    assert!(matches!(events.arm(), Err(Error::PowerCut)));
}

#[test]
fn a_cache_writes_through() {
    let sim = Sim::builder().build();
    let (origin, fast) = (number(&sim, "/dev/a"), number(&sim, "/dev/f"));
    let metadata = create(&sim, "metasub", &linear(fast, 0, MIB));
    let cache = create(&sim, "cachesub", &linear(fast, MIB, 10 * MIB));
    let table = |features: &str| {
        let text = format!("{metadata} {cache} {origin} 2048 1 {features} default 0");
        vec![Line::parse(Sectors(0), Sectors(100 * MIB), "cache", &text)]
    };
    assert_eq!(errno(sim.dm_create("c", "c", &table("writeback"), Visibility::Private)), EINVAL);
    create(&sim, "c", &table("writethrough"));
    write(&sim, "c", 4096, b"bytes").unwrap();
    assert_eq!(sim.read(Path::new("/dev/a"), 4096, 5).unwrap(), b"bytes");
    let status = sim.dm_status("c").unwrap();
    assert!(status[0].starts_with("8 ") && status[0].contains(" 2048 0/10 "), "{status:?}");
    assert!(status[0].contains(" 1 writethrough 2 migration_threshold 2048 smq 0 rw - "), "{status:?}");
}
