//! Disks: what udev, libblkid and the kernel report about them, and their contents.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use stratisd::{
    base::units::Sectors,
    platform::{
        Contents, DeviceAction, DeviceClass, DeviceEvents, Error, Platform, WriteStep,
        dm::{Line, Target, Visibility},
    },
};

use support::examples::SIGNATURE_BLOCK;

use crate::{Check, Machine, command, event_where, readable};

pub(crate) const CHECKS: &[Check] = &[
    ("an empty disk is unowned and has its size", empty_disk),
    ("paths without a device are refused", no_device),
    ("udev, libblkid and events show a new signature", signature),
    ("a partition table is recognized", partition_table),
    ("writes and reads of odd sizes agree", odd_sizes),
    ("reads are not served from a stale cache", stale_cache),
    ("a failed write is not read back", failed_write),
    ("read errors are reported", read_error),
    ("a device in use is recognized", in_use),
    ("a held device is used through its descriptor", held),
    ("a released device is free while threads read it", released),
    ("a read-only device is recognized", read_only),
    ("devices that come and go raise events", come_and_go),
    ("events continue after an overflow", overflow),
];

/// Waits until udev has probed a disk after a write.
fn seen(events: &mut dyn DeviceEvents, path: &Path, class: &DeviceClass) {
    event_where(events, |event| {
        event.path == path && event.device.as_ref().is_some_and(|device| device.class == *class)
    });
}

fn wipe(machine: &Machine, disk: usize, events: &mut dyn DeviceEvents) {
    let path = machine.disk(disk).path;
    machine.linux.write(&path, &[WriteStep::At(0, &[0; 8192]), WriteStep::Flush]).unwrap();
    seen(events, &path, &DeviceClass::Unowned);
}

fn empty_disk(machine: &Machine) {
    let disk = machine.disk(0);
    assert_eq!(disk.class, DeviceClass::Unowned);
    assert_eq!(disk.path, machine.disks[0]);
    assert_eq!(machine.linux.block_devices().unwrap(), []);
    assert_eq!(machine.linux.contents(&disk.path).unwrap(), Contents::default());
    let geometry = machine.linux.geometry(&disk.path).unwrap();
    let size: u64 = fs::read_to_string(format!("/sys/dev/block/{}/size", disk.number)).unwrap().trim().parse().unwrap();
    assert_eq!(geometry.size, Sectors(size));
    assert_eq!((geometry.logical, geometry.read_only), (512, false));
    assert!(geometry.physical >= 512);
    assert!(!machine.linux.hold(&disk.path).is_err_and(|error| error.is_busy()));
}

fn no_device(machine: &Machine) {
    for path in ["/dev/null", "/dev/nonexistent", "/etc/passwd", "/"] {
        let error = machine.linux.find_device(Path::new(path)).unwrap_err();
        assert!(matches!(error, Error::NoDevice { .. }), "{path}: {error}");
    }
    // A user's symbolic link resolves to the canonical node.
    let link = Path::new("/tmp/my-disk");
    std::os::unix::fs::symlink(&machine.disks[0], link).unwrap();
    assert_eq!(machine.linux.find_device(link).unwrap(), machine.disk(0));
    fs::remove_file(link).unwrap();
}

fn signature(machine: &Machine) {
    let path = machine.disk(0).path;
    let mut events = machine.linux.device_events().unwrap();
    let mut half = [0; 4096];
    half[512..512 + SIGNATURE_BLOCK.len()].copy_from_slice(&SIGNATURE_BLOCK);
    let steps = [WriteStep::At(0, &half), WriteStep::Flush, WriteStep::At(4096, &half), WriteStep::Flush];
    machine.linux.write(&path, &steps).unwrap();
    assert_eq!(machine.linux.contents(&path).unwrap().superblock.as_deref(), Some("stratis"));
    seen(events.as_mut(), &path, &DeviceClass::Stratis);
    assert_eq!(machine.linux.block_devices().unwrap(), [machine.disk(0)]);
    assert_eq!(machine.disk(0).class, DeviceClass::Stratis);
    wipe(machine, 0, events.as_mut());
    assert_eq!(machine.linux.block_devices().unwrap(), []);
    assert_eq!(machine.linux.contents(&path).unwrap(), Contents::default());
}

fn partition_table(machine: &Machine) {
    let path = machine.disk(1).path;
    let mut events = machine.linux.device_events().unwrap();
    let mut sector = [0; 512];
    // One entry: type 0x83, starting at sector 2048, 4096 sectors long.
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    machine.linux.write(&path, &[WriteStep::At(0, &sector), WriteStep::Flush]).unwrap();
    assert_eq!(machine.linux.contents(&path).unwrap(), Contents { partitions: 1, superblock: None });
    seen(events.as_mut(), &path, &DeviceClass::Other("partition table dos".to_owned()));
    wipe(machine, 1, events.as_mut());
}

fn odd_sizes(machine: &Machine) {
    let path = machine.disk(0).path;
    let bytes: Vec<u8> = (0..20_000_u32).map(|i| (i % 253) as u8).collect();
    let base = 16 << 20;
    machine.linux.write(&path, &[WriteStep::At(base + 7, &bytes), WriteStep::Flush]).unwrap();
    for (offset, length) in [(0, 20_000), (1, 1), (505, 600), (4089, 8200), (19_999, 1)] {
        let read = machine.linux.read(&path, base + 7 + offset as u64, length).unwrap();
        assert_eq!(read, bytes[offset..offset + length], "{length} at {offset}");
    }
    // A read returns the new bytes before the flush, too.
    machine.linux.write(&path, &[WriteStep::At(base, b"unflushed")]).unwrap();
    assert_eq!(machine.linux.read(&path, base, 9).unwrap(), b"unflushed");
    let end = machine.linux.geometry(&path).unwrap().size.0 * 512;
    assert_eq!(machine.linux.read(&path, end - 3, 3).unwrap().len(), 3);
    assert!(machine.linux.read(&path, end - 3, 4).is_err());
    assert!(machine.linux.write(&path, &[WriteStep::At(end - 3, b"four"), WriteStep::Flush]).is_err());
}

fn stale_cache(machine: &Machine) {
    let path = machine.disk(0).path;
    // An open device node keeps its page cache.
    let cached = fs::File::open(&path).unwrap();
    let mut seen = [0; 9];
    machine.linux.write(&path, &[WriteStep::At(0, b"old bytes"), WriteStep::Flush]).unwrap();
    cached.read_exact_at(&mut seen, 0).unwrap();
    let (name, _) = machine.linear("stale", 0, 0, 8192);
    let above = machine.linux.dm_node(&name);
    machine.linux.write(&above, &[WriteStep::At(0, b"new bytes"), WriteStep::Flush]).unwrap();
    assert_eq!(machine.linux.read(&path, 0, 9).unwrap(), b"new bytes");
    cached.read_exact_at(&mut seen, 0).unwrap();
    println!("        (through the cache: {:?})", String::from_utf8_lossy(&seen));
    machine.linux.dm_remove(&name).unwrap();
    machine.linux.write(&path, &[WriteStep::At(0, &[0; 9]), WriteStep::Flush]).unwrap();
}

fn failed_write(machine: &Machine) {
    let path = machine.disk(0).path;
    machine.linux.write(&path, &[WriteStep::At(0, b"old"), WriteStep::Flush]).unwrap();
    let name = machine.private("flakey");
    // The device fails all the time, in a mode in which reads pass and writes fail.
    let parameters = format!("{} 0 0 3600 1 error_writes", machine.disk(0).number);
    let target = Target::Foreign { kind: "flakey".to_owned(), parameters };
    let table = [Line { start: Sectors(0), length: Sectors(8192), target }];
    machine.linux.dm_create(&name, &name, &table, Visibility::Private).unwrap();
    let flakey = machine.linux.dm_node(&name);
    // Keeps the page cache of the failing device node, so that a cached read would return the new
    // bytes.
    let held = fs::File::open(&flakey).unwrap();
    let error = machine.linux.write(&flakey, &[WriteStep::At(0, b"new"), WriteStep::Flush]).unwrap_err();
    assert_eq!(error.errno(), Some(nix::libc::EIO), "{error}");
    assert_eq!(machine.linux.read(&flakey, 0, 3).unwrap(), b"old");
    let mut cached = [0; 3];
    held.read_exact_at(&mut cached, 0).unwrap();
    println!("        (through the cache: {:?})", String::from_utf8_lossy(&cached));
    drop(held);
    machine.linux.dm_remove(&name).unwrap();
    machine.linux.write(&path, &[WriteStep::At(0, &[0; 3]), WriteStep::Flush]).unwrap();
}

fn read_error(machine: &Machine) {
    let name = machine.private("error");
    let disk = machine.disk(0).number;
    let bad = Target::Foreign { kind: "error".to_owned(), parameters: String::new() };
    let table = [
        Line::linear(Sectors(0), Sectors(1), disk, Sectors(0)),
        Line { start: Sectors(1), length: Sectors(1), target: bad },
        Line::linear(Sectors(2), Sectors(6), disk, Sectors(2)),
    ];
    machine.linux.dm_create(&name, &name, &table, Visibility::Private).unwrap();
    let node = machine.linux.dm_node(&name);
    let error = machine.linux.read(&node, 512, 512).unwrap_err();
    assert_eq!(error.errno(), Some(nix::libc::EIO), "{error}");
    // The neighbours of the bad sector, on the same page, are readable.
    assert_eq!(machine.linux.read(&node, 0, 512).unwrap().len(), 512);
    assert_eq!(machine.linux.read(&node, 1024, 3072).unwrap().len(), 3072);
    machine.linux.dm_remove(&name).unwrap();
}

fn in_use(machine: &Machine) {
    let path = machine.disk(2).path;
    assert!(!machine.linux.hold(&path).is_err_and(|error| error.is_busy()));
    let (name, _) = machine.linear("user", 2, 0, 8192);
    assert!(machine.linux.hold(&path).is_err_and(|error| error.is_busy()));
    assert!(!machine.linux.hold(&machine.linux.dm_node(&name)).is_err_and(|error| error.is_busy()));
    machine.linux.dm_remove(&name).unwrap();
    assert!(!machine.linux.hold(&path).is_err_and(|error| error.is_busy()));
    // Another descriptor has the device open, but not exclusively.
    let _open = fs::File::open(&path).unwrap();
    assert!(!machine.linux.hold(&path).is_err_and(|error| error.is_busy()));
}

/// In the past, the path was checked on one device and written to on another.
fn held(machine: &Machine) {
    let linux = &machine.linux;
    let (one, two) = (machine.disk(1).path, machine.disk(2).path);
    linux.write(&two, &[WriteStep::At(0, &[0; 512]), WriteStep::Flush]).unwrap();
    let link = PathBuf::from("/run/held-disk");
    let point_to = |disk: &Path| {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(disk, &link).unwrap();
    };
    point_to(&one);
    let hold = linux.hold(&link).unwrap();
    assert!(linux.hold(&one).unwrap_err().is_busy());
    let table = [Line::linear(Sectors(0), Sectors(8), machine.disk(1).number, Sectors(0))];
    let name = machine.private("held");
    assert!(linux.dm_create(&name, &name, &table, Visibility::Private).unwrap_err().is_busy());
    point_to(&two);
    linux.write(&link, &[WriteStep::At(0, &[7; 512]), WriteStep::Flush]).unwrap();
    assert_eq!(linux.read(&link, 0, 512).unwrap(), [7; 512]);
    assert_eq!(linux.read(&one, 0, 512).unwrap(), [7; 512]);
    assert_eq!(linux.read(&two, 0, 512).unwrap(), [0; 512]);
    drop(hold);
    assert_eq!(linux.read(&link, 0, 512).unwrap(), [0; 512]);
    drop(linux.hold(&one).unwrap());
    linux.write(&one, &[WriteStep::At(0, &[0; 512]), WriteStep::Flush]).unwrap();
    fs::remove_file(&link).unwrap();
}

/// A release used to return while another thread still read the device through the hold. A table that
/// was loaded at once then found it in use.
fn released(machine: &Machine) {
    let path = machine.disk(0).path;
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    machine.linux.read(&path, 0, 1 << 20).unwrap();
                }
            });
        }
        // The read takes longer than one of theirs, so each of them reads through the hold.
        let held = |_: &i32| match machine.linux.hold(&path) {
            Ok(hold) => {
                machine.linux.read(&path, 0, 4 << 20).unwrap();
                drop(hold);
                true
            }
            Err(_) => false,
        };
        let busy = (0..100).filter(|round| !held(round)).count();
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(busy, 0, "of 100 holds");
    });
}

fn read_only(machine: &Machine) {
    let path = machine.disk(2).path;
    let path_text = path.to_str().unwrap();
    command("blockdev", &["--setro", path_text]);
    let geometry = machine.linux.geometry(&path).unwrap();
    command("blockdev", &["--setrw", path_text]);
    assert!(geometry.read_only);
    assert!(!machine.linux.geometry(&path).unwrap().read_only);
}

fn come_and_go(machine: &Machine) {
    let mut events = machine.linux.device_events().unwrap();
    let (name, number) = machine.linear("gone", 0, 0, 8192);
    let node = Path::new("/dev").join(format!("dm-{}", number.minor));
    let event = event_where(events.as_mut(), |event| event.path == node && event.action == DeviceAction::Change);
    assert_eq!(event.device.map(|device| (device.number, device.path)), Some((number, node.clone())));
    machine.linux.dm_remove(&name).unwrap();
    let event = event_where(events.as_mut(), |event| event.path == node && event.action == DeviceAction::Remove);
    assert_eq!(event.device, None);
    // Without a waiting event, `next` returns `None` and the descriptor is not readable.
    while readable(events.fd(), Duration::ZERO) {
        while events.next().unwrap().is_some() {}
    }
    assert_eq!(events.next().unwrap(), None);
}

fn overflow(machine: &Machine) {
    let path = machine.disk(0).path;
    let mut events = machine.linux.device_events().unwrap();
    // The smallest buffer that the kernel allows: it holds some events, but not fifty.
    setsockopt(&events.fd(), RcvBufForce, &0).unwrap();
    for _ in 0..50 {
        command("udevadm", &["trigger", "--settle", "--action=change", path.to_str().unwrap()]);
    }
    let mut count = 0;
    while readable(events.fd(), Duration::ZERO) {
        while events.next().unwrap().is_some() {
            count += 1;
        }
    }
    assert!(count < 50, "no event was lost, {count} arrived");
    // Events continue after the loss.
    machine.linux.write(&path, &[WriteStep::At(0, &[0; 8192]), WriteStep::Flush]).unwrap();
    seen(events.as_mut(), &path, &DeviceClass::Unowned);
}
