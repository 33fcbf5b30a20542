//! Thin devices with filesystems, and the links that udev makes for them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use stratisd::{
    base::{ids::FsUuid, name::Name, units::Sectors},
    platform::{
        Announcement, DeviceNumber, Error, Platform, Program,
        dm::{Line, Target, Visibility},
    },
};

use crate::{
    Check, LIMIT, Machine, POOL,
    mapper::{make_pool, remove_pool},
    outside,
};

pub(crate) const CHECKS: &[Check] = &[
    ("programs work and report errors", programs),
    ("a link exists when the wait ends", link),
    ("links asked for from many threads", many_links),
    ("a filesystem grows while mounted", grow),
];

/// Longer than the whole run: a wait for a link that will never appear must end earlier.
const FOR_EVER: Duration = Duration::from_secs(36_000);
const SIZE: u64 = 1 << 20;

struct Filesystem {
    device: String,
    node: String,
    number: DeviceNumber,
    uuid: FsUuid,
}

impl Filesystem {
    fn new(machine: &Machine, id: u32, pool: DeviceNumber) -> Filesystem {
        let linux = &machine.linux;
        let uuid = FsUuid::from_random(linux.random());
        let device = format!("stratis-1-{POOL}-thin-fs-{}", uuid.simple());
        linux.dm_message(&machine.private("thinpool-pool"), &format!("create_thin {id}")).unwrap();
        let number = linux.dm_create(&device, &device, &[line(SIZE, pool, id)], Visibility::Public).unwrap();
        let node = linux.dm_node(&device).to_str().unwrap().to_owned();
        let arguments = ["-f", &node, "-m", &format!("uuid={}", uuid.hyphenated())];
        linux.run(Program::MkfsXfs, &arguments).unwrap();
        Filesystem { device, node, number, uuid }
    }

    fn announcement(&self, pool: &str, name: &str) -> Announcement {
        Announcement {
            number: self.number,
            filesystem: self.uuid,
            pool_name: Name::new(pool).unwrap(),
            name: Name::new(name).unwrap(),
        }
    }
}

fn line(length: u64, pool: DeviceNumber, id: u32) -> Line {
    Line { start: Sectors(0), length: Sectors(length), target: Target::Thin { pool, id } }
}

fn node_behind(link: &Path) -> Option<PathBuf> {
    fs::canonicalize(link).ok()
}

fn programs(machine: &Machine) {
    let linux = &machine.linux;
    // The worked example of the specification (storage-stack.md §7.2).
    let sectors =
        linux.run(Program::ThinMetadataSize, &["-b", "1048576b", "-s", "1073741824b", "-m", "100", "-n"]).unwrap();
    assert_eq!(sectors.trim(), "872");
    let error = linux.run(Program::MkfsXfs, &["/dev/nonexistent"]).unwrap_err();
    assert!(matches!(&error, Error::Program { what, .. } if what.contains("nonexistent")), "{error}");
    println!("        ({error})");
    let (_, pool) = make_pool(machine, 256, 0);
    let filesystem = Filesystem::new(machine, 0, pool);
    let asked = linux.run(Program::XfsDb, &["-x", "-c", "uuid", &filesystem.node]).unwrap();
    assert_eq!(asked.trim(), format!("UUID = {}", filesystem.uuid.hyphenated()));
    linux.dm_remove(&filesystem.device).unwrap();
    remove_pool(machine);
}

fn link(machine: &Machine) {
    let linux = &machine.linux;
    let (_, pool) = make_pool(machine, 256, 0);
    let filesystem = Filesystem::new(machine, 0, pool);
    let node = PathBuf::from(format!("/dev/dm-{}", filesystem.number.minor));
    let announce = |filesystems: &[Announcement], limit| linux.announce(filesystems).unwrap().wait(limit);
    // The name changes repeatedly. Each time the new link exists and the old one is gone.
    let mut old: Option<PathBuf> = None;
    for round in 0..50 {
        let pool = if round % 2 == 0 { "pool" } else { "pö:#" };
        let announcement = filesystem.announcement(pool, &format!("fs-{round}"));
        let link = announcement.link();
        assert_eq!(announce(&[announcement], LIMIT), Vec::<PathBuf>::new());
        assert_eq!(node_behind(&link), Some(node.clone()));
        if let Some(old) = old.replace(link) {
            assert!(fs::symlink_metadata(&old).is_err(), "{}", old.display());
        }
    }
    // The same name again: the link already exists.
    let same = filesystem.announcement("pö:#", "fs-49");
    assert_eq!(announce(std::slice::from_ref(&same), FOR_EVER), Vec::<PathBuf>::new());
    // The UUID of another filesystem: udev refuses, and the wait ends then.
    let wrong = Announcement { filesystem: FsUuid::from_random(linux.random()), ..filesystem.announcement("p", "x") };
    assert_eq!(announce(std::slice::from_ref(&wrong), FOR_EVER), [wrong.link()]);
    // A device that does not exist.
    let nowhere = Announcement { number: DeviceNumber { major: 4000, minor: 1 }, ..filesystem.announcement("p", "y") };
    assert_eq!(announce(&[nowhere.clone(), same.clone()], FOR_EVER), [nowhere.link()]);
    // A wait that times out returns the missing links. They still appear later.
    let late = filesystem.announcement("p", "late");
    let mut pending = announce(std::slice::from_ref(&late), Duration::ZERO);
    if !pending.is_empty() {
        assert_eq!(pending, [late.link()]);
        pending = announce(std::slice::from_ref(&late), LIMIT);
    }
    assert_eq!(pending, Vec::<PathBuf>::new());
    // The link survives other events of the device.
    linux.dm_suspend(&filesystem.device, true).unwrap();
    linux.dm_resume(&filesystem.device, Visibility::Public).unwrap();
    assert_eq!(node_behind(&late.link()), Some(node));
    // The link is removed with the device.
    linux.dm_remove(&filesystem.device).unwrap();
    assert!(fs::symlink_metadata(late.link()).is_err());
    remove_pool(machine);
}

fn many_links(machine: &Machine) {
    let linux = &machine.linux;
    let (_, pool) = make_pool(machine, 1024, 0);
    let filesystems: Vec<Filesystem> = (0..6).map(|id| Filesystem::new(machine, id, pool)).collect();
    std::thread::scope(|scope| {
        for (index, filesystem) in filesystems.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..20 {
                    let announcement = filesystem.announcement("pool", &format!("fs-{index}-{round}"));
                    let link = announcement.link();
                    assert_eq!(linux.announce(&[announcement]).unwrap().wait(LIMIT), Vec::<PathBuf>::new());
                    let node = PathBuf::from(format!("/dev/dm-{}", filesystem.number.minor));
                    assert_eq!(node_behind(&link), Some(node));
                }
            });
        }
    });
    // Announces all filesystems in one call, as at the start of a pool.
    let all: Vec<Announcement> = filesystems
        .iter()
        .enumerate()
        .map(|(index, filesystem)| filesystem.announcement("renamed", &format!("fs-{index}")))
        .collect();
    assert_eq!(linux.announce(&all).unwrap().wait(LIMIT), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir("/dev/stratis/renamed").unwrap().count(), filesystems.len());
    assert!(!Path::new("/dev/stratis/pool").exists());
    for filesystem in filesystems {
        linux.dm_remove(&filesystem.device).unwrap();
    }
    assert!(!Path::new("/dev/stratis/renamed").exists());
    remove_pool(machine);
}

fn grow(machine: &Machine) {
    let linux = &machine.linux;
    let (_, pool) = make_pool(machine, 1024, 0);
    let filesystem = Filesystem::new(machine, 0, pool);
    let announcement = filesystem.announcement("pool", "fs");
    let link = announcement.link();
    assert_eq!(linux.announce(&[announcement]).unwrap().wait(LIMIT), Vec::<PathBuf>::new());
    // A user can mount the filesystem by its link as soon as it is announced.
    outside("mkdir", &["-p", "/mnt/fs"]);
    outside("mount", &[link.to_str().unwrap(), "/mnt/fs"]);
    let mounts = linux.mounts(&[filesystem.number]).unwrap();
    assert_eq!(linux.mount_points(filesystem.number).unwrap(), [Path::new("/mnt/fs")]);
    let before = linux.usage(&mounts[0]).unwrap().total;
    linux.dm_load(&filesystem.device, &[line(2 * SIZE, pool, 0)]).unwrap();
    linux.dm_resume(&filesystem.device, Visibility::Public).unwrap();
    linux.grow_xfs(&mounts[0]).unwrap();
    linux.grow_xfs(&mounts[0]).unwrap();
    let after = linux.usage(&mounts[0]).unwrap().total;
    assert!(after.0 > before.0 * 19 / 10, "{before:?} {after:?}");
    assert_eq!(node_behind(&link), Some(PathBuf::from(format!("/dev/dm-{}", filesystem.number.minor))));
    assert!(matches!(linux.dm_remove(&filesystem.device), Err(Error::Busy { .. })));
    outside("umount", &["/mnt/fs"]);
    linux.dm_remove(&filesystem.device).unwrap();
    remove_pool(machine);
}
