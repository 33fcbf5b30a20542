//! Disks that come and go, and how udev reports them.

use std::path::PathBuf;

use nix::libc::{EIO, ENOSPC, EPERM};

use super::*;
use crate::{
    base::{ids::FsUuid, name::Name},
    platform::{
        Announcement, DeviceAction, DeviceClass, DeviceEvent, DeviceEvents,
        sim::{CallKind, DISK_SIZE_DEFAULT, Preset},
    },
};

fn class(sim: &Sim, path: &str) -> DeviceClass {
    sim.find_device(Path::new(path)).unwrap().class
}

fn unknown(sim: &Sim, path: &str) -> bool {
    matches!(sim.find_device(Path::new(path)), Err(Error::NoDevice { path: given }) if given == Path::new(path))
}

#[test]
fn any_absolute_path_is_a_disk() {
    let sim = Sim::builder().build();
    let one = sim.find_device(Path::new("/dev/one")).unwrap();
    assert_eq!((one.class, one.wwn), (DeviceClass::Unowned, None));
    assert_ne!(one.number, number(&sim, "/two"));
    assert_eq!(sim.find_device(Path::new("/dev/../dev//./one")).unwrap().path, Path::new("/dev/one"));
    let geometry = sim.geometry(Path::new("/dev/one")).unwrap();
    assert_eq!((geometry.size, geometry.logical, geometry.physical), (DISK_SIZE_DEFAULT, 512, 512));
    for bad in ["dev/one", "", ".", "/", "/dev", "/dev/mapper/x", "/dev/stratis/p/f", "/dev/dm-0", "/dev/mapper"] {
        assert!(unknown(&sim, bad), "{bad}");
    }
    assert_eq!(errno(sim.read(Path::new("/dev/one"), geometry.size.0 * 512 - 1, 2)), EIO);
    assert_eq!(errno(sim.write(Path::new("/dev/one"), &[WriteStep::At(geometry.size.0 * 512, b"x")])), ENOSPC);
}

#[test]
fn a_machine_can_have_given_disks_only() {
    let sim = Sim::builder()
        .disk("/dev/a", Sectors(1 << 21))
        .logical(4096)
        .wwn("0x5000c500a1b2c3d4")
        .second_node("/dev/twin")
        .disk("/dev/ro", Sectors(8))
        .read_only()
        .disk("/dev/used", Sectors(8))
        .in_use()
        .link("/dev/disk/by-id/a", "/dev/a")
        .only_these()
        .build();
    assert!(unknown(&sim, "/dev/b"));
    let a = sim.find_device(Path::new("/dev/disk/by-id/a")).unwrap();
    assert_eq!((a.path, a.wwn), (PathBuf::from("/dev/a"), Some("0x5000c500a1b2c3d4".to_owned())));
    let twin = sim.find_device(Path::new("/dev/twin")).unwrap();
    assert_eq!((twin.path.as_path(), twin.number), (Path::new("/dev/twin"), a.number));
    let geometry = sim.geometry(Path::new("/dev/a")).unwrap();
    assert_eq!((geometry.size, geometry.logical, geometry.physical), (Sectors(1 << 21), 4096, 4096));
    assert!(sim.geometry(Path::new("/dev/ro")).unwrap().read_only);
    assert_eq!(errno(sim.write(Path::new("/dev/ro"), &[WriteStep::At(0, b"x")])), EPERM);
    assert!(sim.hold(Path::new("/dev/used")).is_err_and(|error| error.is_busy()));
    assert!(!sim.hold(Path::new("/dev/a")).is_err_and(|error| error.is_busy()));
}

/// The worked example of the specification (ondisk-metadata §2.2): the first 128 bytes of a
/// signature block.
const SIGNATURE: &str = "ec385920215374726130746973 86ff025e41726800004001 0000000002000000\
    3031323334353637383961626364656630313233343536373839616263646566\
    6665646362613938373635343332313066656463626139383736353433323130\
    f00700000000000000180000000000000000000000000000 00f1536500000000";

pub(super) fn signature() -> Vec<u8> {
    let digits: Vec<u8> = SIGNATURE.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let mut block: Vec<u8> = digits.chunks(2).map(byte).collect();
    assert_eq!(block.len(), 128);
    block.resize(512, 0);
    block
}

#[test]
fn udev_classifies_devices_by_their_bytes() {
    let sim = Sim::builder().disk("/dev/m", Sectors(1 << 21)).multipath_member().build();
    for (path, preset) in [
        ("/dev/xfs", Preset::Xfs),
        ("/dev/luks", Preset::Luks),
        ("/dev/parts", Preset::PartitionTable(2)),
        ("/dev/empty-table", Preset::PartitionTable(0)),
    ] {
        sim.preset(Path::new(path), preset).unwrap();
    }
    let block = signature();
    sim.put(Path::new("/dev/first"), 512, &block).unwrap();
    sim.put(Path::new("/dev/second"), 4608, &block).unwrap();
    sim.put(Path::new("/dev/m"), 512, &block).unwrap();
    let mut broken = block;
    broken[200] = 1;
    sim.put(Path::new("/dev/broken"), 512, &broken).unwrap();

    assert_eq!(class(&sim, "/dev/xfs"), DeviceClass::Other("xfs".to_owned()));
    assert_eq!(class(&sim, "/dev/luks"), DeviceClass::Luks);
    assert_eq!(class(&sim, "/dev/parts"), DeviceClass::Other("partition table dos".to_owned()));
    assert_eq!(class(&sim, "/dev/empty-table"), DeviceClass::Other("partition table dos".to_owned()));
    assert_eq!(class(&sim, "/dev/first"), DeviceClass::Stratis);
    assert_eq!(class(&sim, "/dev/second"), DeviceClass::Stratis);
    assert_eq!(class(&sim, "/dev/m"), DeviceClass::MultipathMember);
    assert_eq!(class(&sim, "/dev/broken"), DeviceClass::Unowned);
    let contents = |path: &str| sim.contents(Path::new(path)).unwrap();
    assert_eq!((contents("/dev/parts").partitions, contents("/dev/parts").superblock), (2, None));
    assert_eq!(contents("/dev/luks").superblock.as_deref(), Some("crypto_LUKS"));
    assert_eq!(contents("/dev/second").superblock.as_deref(), Some("stratis"));
    let listed: Vec<PathBuf> = sim.block_devices().unwrap().into_iter().map(|device| device.path).collect();
    assert_eq!(listed, ["/dev/first", "/dev/luks", "/dev/second"].map(PathBuf::from));
    // A bad sector under one copy does not hide the other.
    sim.put(Path::new("/dev/second"), 512, &signature()).unwrap();
    sim.spoil(Path::new("/dev/second"), 1..2).unwrap();
    assert_eq!(class(&sim, "/dev/second"), DeviceClass::Stratis);
    assert_eq!(errno(sim.read(Path::new("/dev/second"), 512, 512)), EIO);
    sim.write(Path::new("/dev/second"), &[WriteStep::At(512, &[0; 512])]).unwrap();
    assert_eq!(sim.read(Path::new("/dev/second"), 512, 512).unwrap(), [0; 512]);
}

fn all(events: &mut Box<dyn DeviceEvents>) -> Vec<DeviceEvent> {
    std::iter::from_fn(|| events.next().unwrap()).collect()
}

#[test]
fn disk_changes_raise_events() {
    let sim = Sim::builder().disk("/dev/a", Sectors(1 << 21)).only_these().build();
    let mut events = sim.device_events().unwrap();
    assert_eq!(all(&mut events), []);
    let (a, b) = (Path::new("/dev/a"), Path::new("/dev/b"));
    sim.add_disk(b, Sectors(100)).unwrap();
    sim.write(a, &[WriteStep::At(512, &signature()), WriteStep::Flush]).unwrap();
    sim.resize_disk(a, Sectors(1 << 22)).unwrap();
    sim.pull_disk(b).unwrap();
    let seen = all(&mut events);
    let summary: Vec<_> = seen.iter().map(|e| (e.action, e.path.as_path(), e.device.is_some())).collect();
    // Two unread change events are merged into one, with the present properties.
    let (add, change, remove) = (DeviceAction::Add, DeviceAction::Change, DeviceAction::Remove);
    assert_eq!(summary, [(add, b, true), (change, a, true), (remove, b, false)]);
    assert_eq!(seen[1].device.as_ref().unwrap().class, DeviceClass::Stratis);
    assert_eq!(sim.geometry(a).unwrap().size, Sectors(1 << 22));

    // A pulled disk is absent and not created again; plugged in, it has its contents.
    assert!(unknown(&sim, "/dev/b"));
    assert!(sim.pull_disk(b).is_err());
    sim.pull_disk(a).unwrap();
    assert_eq!(sim.block_devices().unwrap(), []);
    sim.add_disk(a, Sectors(1)).unwrap();
    assert_eq!(class(&sim, "/dev/a"), DeviceClass::Stratis);
    sim.cut_power();
    assert!(matches!(events.next(), Err(Error::PowerCut)));
}

#[test]
fn devices_on_a_pulled_disk_fail() {
    let sim = Sim::builder().build();
    create(&sim, "x", &linear(number(&sim, "/dev/a"), 0, 8));
    sim.pull_disk(Path::new("/dev/a")).unwrap();
    assert_eq!(errno(write(&sim, "x", 0, b"x")), EIO);
    // A disk that comes back does not revive the devices on it: the kernel treats it as another
    // device.
    let before = number(&sim, "/dev/b");
    sim.add_disk(Path::new("/dev/a"), Sectors(1)).unwrap();
    assert!(number(&sim, "/dev/a").minor > before.minor);
    assert_eq!(errno(write(&sim, "x", 0, b"x")), EIO);
    sim.dm_remove("x").unwrap();
    create(&sim, "x", &linear(number(&sim, "/dev/a"), 0, 8));
    write(&sim, "x", 0, b"x").unwrap();
}

#[test]
fn a_disk_comes_back_under_any_node() {
    let sim = Sim::builder().build();
    let [a, z] = ["/dev/a", "/dev/z"].map(Path::new);
    let before = number(&sim, "/dev/a");
    sim.put(a, 0, b"x").unwrap();
    assert!(sim.replug_disk(a, z).is_err(), "a disk that was not pulled");
    sim.pull_disk(a).unwrap();
    sim.replug_disk(a, z).unwrap();
    assert_eq!(number(&sim, "/dev/z"), before, "nothing held the number");
    assert_eq!(sim.read(z, 0, 1).unwrap(), b"x");
    assert_eq!(sim.read(a, 0, 1).unwrap(), [0], "another disk, made on demand");
    assert!(sim.replug_disk(z, a).is_err(), "that node is in use");
}

const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
const DEVICE: &str = "stratis-1-0123456789abcdef0123456789abcdef-thin-fs-3f2504e04f8941d39a0c0305e82c3301";

/// A machine with one filesystem, and a function that announces it under a name.
fn filesystem() -> (Sim, impl Fn(&str) -> Announcement) {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 1000, "");
    // The rule uses the name of the device, not its contents.
    let number = thin(&sim, pool, DEVICE, 0);
    let announcement = move |name: &str| Announcement {
        number,
        filesystem: UUID.parse::<FsUuid>().unwrap(),
        pool_name: Name::new("pool").unwrap(),
        name: Name::new(name).unwrap(),
    };
    (sim, announcement)
}

#[test]
fn links_follow_announcements() {
    let (sim, announcement) = filesystem();
    let link = |name: &str| sim.link(Path::new(&format!("/dev/stratis/pool/{name}")));
    let one = announcement("one");
    assert_eq!(sim.announce(std::slice::from_ref(&one)).unwrap().wait(LIMIT), Vec::<PathBuf>::new());
    assert_eq!(link("one"), Some(one.number));
    assert_eq!(sim.find_device(&one.link()).unwrap().number, one.number);
    // With another name, the former link is removed.
    sim.announce(&[announcement("two")]).unwrap();
    assert_eq!((link("one"), link("two")), (None, Some(one.number)));
    // For another filesystem than the one on the device, no link is made.
    let wrong = Announcement { filesystem: FsUuid::from_random(sim.random()), ..announcement("three") };
    sim.announce(&[wrong]).unwrap();
    assert_eq!((link("three"), link("two")), (None, Some(one.number)));
    sim.dm_remove(DEVICE).unwrap();
    assert_eq!(sim.leftovers().links, Vec::<PathBuf>::new());
}

#[test]
fn links_can_be_late_or_lost() {
    let (sim, announcement) = filesystem();
    sim.hold_links();
    let pending = sim.announce(&[announcement("late")]).unwrap();
    let late = announcement("late").link();
    assert_eq!(sim.link(&late), None);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| pending.wait(LIMIT));
        sim.release_links();
        assert_eq!(waiter.join().unwrap(), Vec::<PathBuf>::new());
    });
    assert!(sim.link(&late).is_some());
    sim.lose_links(1);
    let pending = sim.announce(&[announcement("lost")]).unwrap();
    assert_eq!(pending.wait(Duration::ZERO), [announcement("lost").link()]);
    // udev cannot probe a suspended device; it probes the device after the resume.
    sim.dm_suspend(DEVICE, true).unwrap();
    let pending = sim.announce(&[announcement("then")]).unwrap();
    assert_eq!(sim.link(&announcement("then").link()), None);
    sim.dm_resume(DEVICE, Visibility::Public).unwrap();
    assert_eq!(pending.wait(Duration::ZERO), Vec::<PathBuf>::new());
}

/// If a filesystem was destroyed or renamed before its creator checked for the link, the creator
/// used to wait until the limit, 10 s.
#[test]
fn no_wait_for_a_link_that_is_superseded() {
    let forever = Duration::from_secs(3600);
    let (sim, announcement) = filesystem();
    let one = sim.announce(&[announcement("one")]).unwrap();
    let two = sim.announce(&[announcement("two")]).unwrap();
    assert_eq!(one.wait(forever), [announcement("one").link()]);
    sim.dm_remove(DEVICE).unwrap();
    assert_eq!(two.wait(forever), [announcement("two").link()]);
}

#[test]
fn private_devices_raise_no_events() {
    let sim = Sim::builder().build();
    let mut events = sim.device_events().unwrap();
    let pool = stack(&sim, 10, "");
    assert_eq!(all(&mut events), []);
    let node = PathBuf::from(format!("/dev/dm-{}", thin(&sim, pool, "fs", 0).minor));
    let told = all(&mut events);
    assert_eq!(told.iter().map(|e| (e.action, &e.path)).collect::<Vec<_>>(), [(DeviceAction::Add, &node)]);
    sim.dm_remove("fs").unwrap();
    assert_eq!(all(&mut events).last().map(|e| e.action), Some(DeviceAction::Remove));
}

#[test]
fn options_come_from_variables() {
    let from = |pairs: &'static [(&str, &str)]| {
        let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Sim::builder().variables(get)
    };
    let sim = from(&[("STRATISD_SIM_DISK_GIB", "3"), ("STRATISD_SIM_SEED", "9")]).ok().unwrap().build();
    assert_eq!(sim.geometry(Path::new("/dev/x")).unwrap().size, Sectors(3 << 21));
    assert_eq!(sim.random(), Sim::builder().seed(9).build().random());
    assert_eq!(from(&[("STRATISD_SIM_SLOW_MS", "soon")]).err(), Some("STRATISD_SIM_SLOW_MS"));
}

#[test]
fn steps_without_changes_are_known() {
    assert!(CallKind::Write.changes() && CallKind::DmMessage.changes() && CallKind::SyncDirectory.changes());
    assert!(!CallKind::Read.changes() && !CallKind::DmStatus.changes() && !CallKind::Usage.changes());
}

#[test]
fn a_held_device_is_exclusive() {
    let sim = Sim::builder().build();
    let path = Path::new("/dev/a");
    let number = sim.find_device(path).unwrap().number;
    let table = [Line::linear(Sectors(0), Sectors(8), number, Sectors(0))];
    let hold = sim.hold(path).unwrap();
    assert!(sim.hold(path).unwrap_err().is_busy());
    assert!(sim.dm_create("x", "x", &table, Visibility::Private).unwrap_err().is_busy());
    // The holder of the device can use it.
    sim.write(path, &[WriteStep::At(0, b"x")]).unwrap();
    drop(hold);
    let hold = sim.hold(path).unwrap();
    sim.end_process();
    let next = sim.hold(path).unwrap();
    drop(hold);
    assert!(sim.hold(path).unwrap_err().is_busy(), "the hold of a dead process released another");
    drop(next);
    sim.dm_create("x", "x", &table, Visibility::Private).unwrap();
    assert!(sim.hold(path).unwrap_err().is_busy());
}

/// The database and the events lag behind until udev catches up; lost events never arrive.
#[test]
fn udev_is_late_and_loses_events() {
    let sim = Sim::builder().disk("/dev/a", Sectors(1 << 21)).build();
    let mut events = sim.device_events().unwrap();
    let mut told = || std::iter::from_fn(|| events.next().unwrap()).collect::<Vec<_>>();
    sim.hold_udev();
    sim.put(Path::new("/dev/a"), 512, &signature()).unwrap();
    sim.add_disk(Path::new("/dev/late"), Sectors(1 << 21)).unwrap();
    assert_eq!(class(&sim, "/dev/a"), DeviceClass::Unowned);
    assert!(unknown(&sim, "/dev/late"));
    assert_eq!(sim.contents(Path::new("/dev/a")).unwrap().superblock.as_deref(), Some("stratis"));
    assert!(told().is_empty() && sim.block_devices().unwrap().is_empty());
    sim.release_udev();
    let late: Vec<_> = told().into_iter().map(|event| (event.action, event.device.unwrap().class)).collect();
    assert_eq!(late, [(DeviceAction::Change, DeviceClass::Stratis), (DeviceAction::Add, DeviceClass::Unowned)]);

    sim.lose_events(1);
    sim.pull_disk(Path::new("/dev/late")).unwrap();
    assert!(told().is_empty());
    sim.set_read_only(Path::new("/dev/a"), true).unwrap();
    assert_eq!(told().len(), 1);
}
