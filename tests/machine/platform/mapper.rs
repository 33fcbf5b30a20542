//! Device-mapper devices: creating, changing, inspecting and removing them, synchronized with udev.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, kill},
    unistd::Pid,
};
use stratisd::{
    base::units::{DataBlocks, Sectors},
    platform::{
        DeviceNumber, Error, Platform, Program, WriteStep,
        dm::{Line, Target, Visibility},
    },
};

use crate::{Check, LIMIT, Machine, command, readable};

pub(crate) const CHECKS: &[Check] = &[
    ("a device is made, listed, found and removed", life),
    ("nodes come and go with the calls", nodes),
    ("udev rules ignore private devices", visibility),
    ("a failed creation leaves nothing", failed_creation),
    ("calls on a missing device fail", absent),
    ("suspend, load and resume", suspend),
    ("messages are sent or refused", message),
    ("a busy device is not removed", busy),
    ("a device is removed when udev has probed it", looked_at),
    ("a thin pool works and raises events", thin_pool),
    ("many threads make calls", many_threads),
    ("signals do not disturb the wait for udev", signals),
];

fn life(machine: &Machine) {
    let linux = &machine.linux;
    let before = linux.dm_list().unwrap();
    let (name, number) = machine.linear("a", 0, 2048, 8192);
    let listed = linux.dm_list().unwrap();
    assert_eq!(listed.len(), before.len() + 1);
    let listed = listed.into_iter().find(|listed| listed.name == name).unwrap();
    assert_eq!(listed.number, number);
    let found = linux.dm_find(&name).unwrap().unwrap();
    assert_eq!((found.number, found.uuid.as_str(), found.suspended), (number, name.as_str(), false));
    assert_eq!(found.table, [Line::linear(Sectors(0), Sectors(8192), machine.disk(0).number, Sectors(2048))]);
    assert_eq!(linux.dm_status(&name).unwrap(), [String::new()]);
    assert_eq!(linux.geometry(&linux.dm_node(&name)).unwrap().size, Sectors(8192));
    linux.dm_remove(&name).unwrap();
    assert_eq!(linux.dm_find(&name).unwrap(), None);
    assert_eq!(linux.dm_list().unwrap(), before);
}

fn nodes(machine: &Machine) {
    for _ in 0..20 {
        let (name, number) = machine.linear("a", 0, 0, 8192);
        let node = machine.linux.dm_node(&name);
        assert_eq!(machine.linux.find_device(&node).unwrap().number, number);
        machine.linux.dm_remove(&name).unwrap();
        assert!(fs::symlink_metadata(&node).is_err());
    }
}

fn visibility(machine: &Machine) {
    let flag = "DM_UDEV_DISABLE_OTHER_RULES_FLAG=1";
    let (name, number) = machine.linear("a", 0, 0, 8192);
    let properties =
        |number: DeviceNumber| command("udevadm", &["info", "--query=property", &format!("/dev/dm-{}", number.minor)]);
    assert!(properties(number).contains(flag));
    // The flag is still set after the table has changed.
    machine.linux.dm_suspend(&name, true).unwrap();
    machine.linux.dm_resume(&name, Visibility::Private).unwrap();
    assert!(properties(number).contains(flag));
    machine.linux.dm_remove(&name).unwrap();

    let name = format!("stratis-1-{POOL}-public", POOL = crate::POOL);
    let table = [Line::linear(Sectors(0), Sectors(8192), machine.disk(0).number, Sectors(0))];
    let number = machine.linux.dm_create(&name, &name, &table, Visibility::Public).unwrap();
    assert!(!properties(number).contains(flag));
    machine.linux.dm_remove(&name).unwrap();
}

fn failed_creation(machine: &Machine) {
    let linux = &machine.linux;
    let before = linux.dm_list().unwrap();
    let name = machine.private("bad");
    let create = |table: &[Line]| linux.dm_create(&name, &name, table, Visibility::Private).unwrap_err();
    let disk = machine.disk(0).number;
    let size = linux.geometry(&machine.disks[0]).unwrap().size;
    // A table beyond the end of the disk, an unknown target, a device that does not exist, and an
    // empty table.
    let foreign = Target::Foreign { kind: "no-such-thing".to_owned(), parameters: String::new() };
    let nowhere = DeviceNumber { major: 4000, minor: 1 };
    for table in [
        vec![Line::linear(Sectors(0), Sectors(8192), disk, size)],
        vec![Line { start: Sectors(0), length: Sectors(8), target: foreign }],
        vec![Line::linear(Sectors(0), Sectors(8192), nowhere, Sectors(0))],
        vec![],
    ] {
        let error = create(&table);
        assert!(matches!(error, Error::Dm { .. }) && error.errno().is_some(), "{error:?}");
        assert_eq!(linux.dm_list().unwrap(), before);
    }
    // If the name or the UUID is in use, the first device stays unchanged.
    let (name, number) = machine.linear("a", 0, 0, 8192);
    let other = machine.private("b");
    let table = [Line::linear(Sectors(0), Sectors(16), disk, Sectors(0))];
    for (name, uuid) in [(&name, &other), (&other, &name)] {
        let error = linux.dm_create(name, uuid, &table, Visibility::Private).unwrap_err();
        assert_eq!(error.errno(), Some(nix::libc::EBUSY), "{error:?}");
    }
    assert_eq!(linux.dm_find(&other).unwrap(), None);
    assert_eq!(linux.dm_find(&name).unwrap().unwrap().number, number);
    linux.dm_remove(&name).unwrap();
    assert!(linux.dm_create("", "x", &table, Visibility::Private).is_err());
    assert!(linux.dm_create(&"n".repeat(200), "x", &table, Visibility::Private).is_err());
}

fn absent(machine: &Machine) {
    let linux = &machine.linux;
    let name = machine.private("absent");
    assert_eq!(linux.dm_find(&name).unwrap(), None);
    for error in [
        linux.dm_remove(&name).unwrap_err(),
        linux.dm_suspend(&name, true).unwrap_err(),
        linux.dm_resume(&name, Visibility::Private).unwrap_err(),
        linux.dm_status(&name).unwrap_err(),
        linux.dm_message(&name, "x").unwrap_err(),
    ] {
        assert_eq!(error.errno(), Some(nix::libc::ENXIO), "{error:?}");
    }
}

fn suspend(machine: &Machine) {
    let linux = &machine.linux;
    let disk = machine.disk(0).number;
    let (name, _) = machine.linear("a", 0, 0, 8192);
    for flush in [true, false] {
        linux.dm_suspend(&name, flush).unwrap();
        assert!(linux.dm_find(&name).unwrap().unwrap().suspended);
        linux.dm_resume(&name, Visibility::Private).unwrap();
        assert!(!linux.dm_find(&name).unwrap().unwrap().suspended);
    }
    // A loaded table becomes live at the resume and not before, even without a suspend.
    for (length, suspend) in [(16384, true), (32768, false)] {
        let before = linux.dm_find(&name).unwrap().unwrap().table;
        let table = [
            Line::linear(Sectors(0), Sectors(8192), disk, Sectors(0)),
            Line::linear(Sectors(8192), Sectors(length - 8192), disk, Sectors(100_000)),
        ];
        if suspend {
            linux.dm_suspend(&name, true).unwrap();
        }
        linux.dm_load(&name, &table).unwrap();
        assert_eq!(linux.dm_find(&name).unwrap().unwrap().table, before);
        linux.dm_resume(&name, Visibility::Private).unwrap();
        assert_eq!(linux.dm_find(&name).unwrap().unwrap().table, table);
        assert_eq!(linux.geometry(&linux.dm_node(&name)).unwrap().size, Sectors(length));
    }
    // A table that cannot be loaded changes nothing.
    let before = linux.dm_find(&name).unwrap();
    let foreign = Target::Foreign { kind: "no-such-thing".to_owned(), parameters: String::new() };
    let bad = [Line { start: Sectors(0), length: Sectors(8), target: foreign }];
    assert!(linux.dm_load(&name, &bad).is_err());
    linux.dm_resume(&name, Visibility::Private).unwrap();
    assert_eq!(linux.dm_find(&name).unwrap(), before);
    // A table that the kernel refuses at the resume changes nothing either: the device continues
    // with the old one.
    let bad = [Line::linear(Sectors(0), Sectors(8192), disk, Sectors(1 << 40))];
    let refused = linux.dm_load(&name, &bad).and_then(|()| linux.dm_resume(&name, Visibility::Private));
    assert_eq!(refused.unwrap_err().errno(), Some(nix::libc::EINVAL));
    assert_eq!(linux.dm_find(&name).unwrap(), before);
    assert_eq!(linux.read(&linux.dm_node(&name), 0, 512).unwrap().len(), 512);
    // A table with more lines than fit into the library's first buffer.
    let many: Vec<Line> =
        (0..2000).map(|i| Line::linear(Sectors(i * 8), Sectors(8), disk, Sectors((2000 - i) * 16))).collect();
    linux.dm_load(&name, &many).unwrap();
    linux.dm_resume(&name, Visibility::Private).unwrap();
    assert_eq!(linux.dm_find(&name).unwrap().unwrap().table, many);
    linux.dm_remove(&name).unwrap();
}

fn message(machine: &Machine) {
    let (name, _) = machine.linear("a", 0, 0, 8192);
    let error = machine.linux.dm_message(&name, "hello").unwrap_err();
    assert_eq!(error.errno(), Some(nix::libc::EINVAL), "{error:?}");
    machine.linux.dm_remove(&name).unwrap();
}

fn busy(machine: &Machine) {
    let linux = &machine.linux;
    let (name, number) = machine.linear("a", 0, 0, 8192);
    let open = fs::File::open(linux.dm_node(&name)).unwrap();
    let error = linux.dm_remove(&name).unwrap_err();
    assert!(matches!(&error, Error::Busy { name: busy } if *busy == name), "{error:?}");
    assert!(error.is_busy());
    assert_eq!(linux.dm_find(&name).unwrap().unwrap().number, number);
    drop(open);
    // A device in use by another device.
    let above = machine.private("above");
    let table = [Line::linear(Sectors(0), Sectors(8192), number, Sectors(0))];
    linux.dm_create(&above, &above, &table, Visibility::Private).unwrap();
    assert!(matches!(linux.dm_remove(&name), Err(Error::Busy { .. })));
    linux.dm_remove(&above).unwrap();
    linux.dm_remove(&name).unwrap();
}

fn looked_at(machine: &Machine) {
    let name = format!("stratis-1-{}-looked-at", crate::POOL);
    let table = [Line::linear(Sectors(0), Sectors(8192), machine.disk(0).number, Sectors(0))];
    for _ in 0..20 {
        machine.linux.dm_create(&name, &name, &table, Visibility::Public).unwrap();
        // When the node is closed after a write, udev probes it just at the time of the removal.
        let node = machine.linux.dm_node(&name);
        machine.linux.write(&node, &[WriteStep::At(0, &[0; 4096]), WriteStep::Flush]).unwrap();
        machine.linux.dm_remove(&name).unwrap();
    }
}

/// Creates a thin pool of `blocks` blocks of 1 MiB on disk 0.
pub(crate) fn make_pool(machine: &Machine, blocks: u64, low_water: u64) -> (String, DeviceNumber) {
    let linux = &machine.linux;
    let (_, metadata) = machine.linear("flex-thinmeta", 0, 0, 8192);
    let node = linux.dm_node(&machine.private("flex-thinmeta"));
    linux.write(&node, &[WriteStep::At(0, &[0; 4096]), WriteStep::Flush]).unwrap();
    let (_, data) = machine.linear("flex-thindata", 0, 8192, blocks * 2048);
    let name = machine.private("thinpool-pool");
    let target = Target::ThinPool {
        metadata,
        data,
        block: Sectors(2048),
        low_water: DataBlocks(low_water),
        features: vec!["no_discard_passdown".to_owned(), "skip_block_zeroing".to_owned()],
    };
    let table = [Line { start: Sectors(0), length: Sectors(blocks * 2048), target }];
    let number = linux.dm_create(&name, &name, &table, Visibility::Private).unwrap();
    // The kernel reorders the features.
    let mut found = linux.dm_find(&name).unwrap().unwrap().table;
    if let Target::ThinPool { features, .. } = &mut found[0].target {
        features.sort();
    }
    assert_eq!(found, table);
    (name, number)
}

/// Removes the thin pool and the devices below it.
pub(crate) fn remove_pool(machine: &Machine) {
    for role in ["thinpool-pool", "flex-thindata", "flex-thinmeta"] {
        machine.linux.dm_remove(&machine.private(role)).unwrap();
    }
}

fn thin_pool(machine: &Machine) {
    let linux = &machine.linux;
    let (pool, number) = make_pool(machine, 64, 32);
    let used = |status: &[String]| -> Vec<String> { status[0].split(' ').map(str::to_owned).collect() };
    let status = used(&linux.dm_status(&pool).unwrap());
    assert_eq!((status[2].as_str(), status[4].as_str()), ("0/64", "rw"), "{status:?}");

    let name = format!("stratis-1-{}-thin-fs-{}", crate::POOL, "3f2504e04f8941d39a0c0305e82c3301");
    let table = [Line { start: Sectors(0), length: Sectors(1 << 20), target: Target::Thin { pool: number, id: 0 } }];
    linux.dm_message(&pool, "create_thin 0").unwrap();
    assert!(linux.dm_message(&pool, "create_thin 0").is_err());
    linux.dm_create(&name, &name, &table, Visibility::Public).unwrap();
    assert_eq!(linux.dm_find(&name).unwrap().unwrap().table, table);

    // When the free data space falls below the low-water mark, the kernel raises an event.
    let event = |name: &str| linux.dm_event(name).unwrap().expect("no such device");
    assert_eq!(linux.dm_event("stratis-1-nobody").unwrap(), None);
    let before = event(&pool);
    let mut events = linux.dm_events().unwrap();
    events.arm().unwrap();
    assert!(!readable(events.fd(), Duration::ZERO));
    let mebibyte = vec![1; 1 << 20];
    let steps: Vec<WriteStep<'_>> = (0..40).map(|i| WriteStep::At(i << 20, &mebibyte)).collect();
    linux.write(&linux.dm_node(&name), &steps).unwrap();
    linux.write(&linux.dm_node(&name), &[WriteStep::Flush]).unwrap();
    assert!(readable(events.fd(), LIMIT), "no event");
    events.arm().unwrap();
    assert!(event(&pool) > before);
    assert!(!readable(events.fd(), Duration::ZERO));
    let status = used(&linux.dm_status(&pool).unwrap());
    assert_eq!(status[2], "40/64", "{status:?}");
    assert_eq!(linux.dm_status(&name).unwrap(), [format!("{} {}", 40 * 2048, 40 * 2048 - 1)]);

    // A snapshot, and thin_check on the metadata afterwards.
    linux.dm_suspend(&name, true).unwrap();
    linux.dm_message(&pool, "create_snap 1 0").unwrap();
    linux.dm_resume(&name, Visibility::Public).unwrap();
    linux.dm_remove(&name).unwrap();
    linux.dm_message(&pool, "delete 0").unwrap();
    linux.dm_message(&pool, "delete 1").unwrap();
    assert_eq!(used(&linux.dm_status(&pool).unwrap())[2], "0/64");
    linux.dm_remove(&pool).unwrap();
    let metadata = linux.dm_node(&machine.private("flex-thinmeta"));
    linux.run(Program::ThinCheck, &[metadata.to_str().unwrap()]).unwrap();
    // The output of thin_check on damaged metadata.
    linux.write(&metadata, &[WriteStep::At(0, &[0xff; 4096]), WriteStep::Flush]).unwrap();
    let error = linux.run(Program::ThinCheck, &[metadata.to_str().unwrap()]).unwrap_err();
    assert!(matches!(&error, Error::Program { what, .. } if what.starts_with("exit status 1: ")), "{error}");
    println!("        ({error})");
    for role in ["flex-thindata", "flex-thinmeta"] {
        linux.dm_remove(&machine.private(role)).unwrap();
    }
}

fn many_threads(machine: &Machine) {
    // These are the only threads of the process. All of them end here.
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for _ in 0..20 {
                    let (name, number) = machine.linear(&format!("thread-{thread}"), 0, thread * 8192, 8192);
                    assert_eq!(machine.linux.dm_find(&name).unwrap().unwrap().number, number);
                    assert!(machine.linux.dm_list().unwrap().iter().any(|listed| listed.name == name));
                    machine.linux.dm_remove(&name).unwrap();
                }
            });
        }
    });
}

fn signals(machine: &Machine) {
    let semaphores = || fs::read_to_string("/proc/sysvipc/sem").unwrap().lines().count();
    let before = semaphores();
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&seen)).unwrap();
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        let work = scope.spawn(move || {
            tell.send(()).unwrap();
            for _ in 0..20 {
                let (name, number) = machine.linear("a", 0, 0, 8192);
                // The device exists, and udev has processed it.
                assert_eq!(machine.linux.find_device(&machine.linux.dm_node(&name)).unwrap().number, number);
                machine.linux.dm_remove(&name).unwrap();
                assert!(fs::symlink_metadata(machine.linux.dm_node(&name)).is_err());
            }
        });
        told.recv().unwrap();
        // While the calls run, sends a signal every millisecond to the thread that does not block
        // it.
        let ours = SigSet::from(Signal::SIGUSR1).thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
        while let Err(RecvTimeoutError::Timeout) = told.recv_timeout(Duration::from_millis(1)) {
            kill(Pid::this(), Signal::SIGUSR1).unwrap();
        }
        work.join().unwrap();
        ours.thread_set_mask().unwrap();
    });
    assert!(seen.load(Ordering::SeqCst));
    assert_eq!(semaphores(), before);
}
