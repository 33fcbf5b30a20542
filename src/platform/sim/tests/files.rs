//! File systems and the programs that create and change them.

use nix::libc::{EBUSY, EINVAL, EIO, ENOENT, EOPNOTSUPP};

use super::*;
use crate::{
    base::units::Bytes,
    platform::{Mount, Program, sim::Preset},
};

const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
const OTHER: &str = "11111111-2222-4333-8444-555555555555";

fn mkfs(sim: &Sim, node: &str, uuid: &str) {
    sim.run(Program::MkfsXfs, &["-f", node, "-m", &format!("uuid={uuid}"), "-i", "nrext64=0"]).unwrap();
}

fn uuid(sim: &Sim, node: &str) -> Option<String> {
    sim.xfs_uuid(Path::new(node)).map(|uuid| uuid.hyphenated().to_string())
}

fn fails(sim: &Sim, program: Program, words: &[&str], why: &str) {
    match sim.run(program, words) {
        Err(Error::Program { program: named, what, .. }) if named == program && what.contains(why) => {}
        other => panic!("{words:?} gave {other:?}, not {why:?}"),
    }
}

#[test]
fn mkfs_follows_its_arguments() {
    let sim = Sim::builder().disk("/dev/small", Sectors(200 << 11)).disk("/dev/x", Sectors(1 << 21)).build();
    sim.preset(Path::new("/dev/x"), Preset::Xfs).unwrap();
    assert_eq!(sim.run(Program::MkfsXfs, &["-V"]).unwrap(), "mkfs.xfs version 6.1.0\n");
    let fails = |words: &[&str], why: &str| fails(&sim, Program::MkfsXfs, words, why);
    fails(&["/dev/small"], "larger than 300MB");
    fails(&["/dev/x"], "existing filesystem");
    fails(&["-f", "/dev/x", "-m", "uuid=12"], "illegal uuid");
    fails(&["-f", "/dev/x", "-m", "sparkle=1"], "unknown option");
    fails(&["-f", "/dev/x", "-Z"], "unrecognized option");
    fails(&["-f", "/dev/x", "/dev/y"], "extra arguments");
    fails(&["-f"], "no device name");
    fails(&["-f", "relative"], "No such file");
    assert_eq!(sim.contents(Path::new("/dev/x")).unwrap().superblock.as_deref(), Some("xfs"));
    assert_ne!(uuid(&sim, "/dev/x"), None);
    mkfs(&sim, "/dev/x", UUID);
    assert_eq!(uuid(&sim, "/dev/x").as_deref(), Some(UUID));
    sim.mount_user(Path::new("/dev/x"), Path::new("/mnt")).unwrap();
    fails(&["-f", "/dev/x"], "mounted filesystem");
    sim.unmount_user(Path::new("/mnt")).unwrap();
    create(&sim, "d", &linear(number(&sim, "/dev/x"), 0, 8));
    fails(&["-f", "/dev/x"], "busy");
}

#[test]
fn mounts_are_checked() {
    let sim = Sim::builder().build();
    for (device, uuid) in [("/dev/a", UUID), ("/dev/b", UUID), ("/dev/c", OTHER)] {
        mkfs(&sim, device, uuid);
    }
    let mount = |device: &str, at: &str, options: &str| errno(sim.mount(Path::new(device), at, options));
    assert_eq!(mount("/dev/blank", "x", ""), EINVAL);
    assert_eq!(mount("/dev/a", "x", "shiny"), EINVAL);
    assert_eq!(mount("/dev/a", "x", ""), 0);
    // Mounting again at the same place succeeds; another device there fails.
    assert_eq!(mount("/dev/a", "x", ""), 0);
    assert_eq!(mount("/dev/c", "x", ""), EBUSY);
    assert_eq!(mount("/dev/b", "y", ""), EINVAL);
    assert_eq!(mount("/dev/b", "y", "nouuid"), 0);
    assert!(sim.hold(Path::new("/dev/a")).is_err_and(|error| error.is_busy()));
    // Private mounts do not count.
    let a = number(&sim, "/dev/a");
    assert_eq!(sim.mount_points(a).unwrap(), Vec::<std::path::PathBuf>::new());
    sim.mount_user(Path::new("/dev/a"), Path::new("/home")).unwrap();
    assert_eq!(sim.mount_points(a).unwrap(), [Path::new("/home")]);
    for at in ["x", "y", "never"] {
        sim.unmount(at).unwrap();
    }
    sim.unmount_user(Path::new("/home")).unwrap();
    assert!(sim.leftovers().is_empty());
    assert!(!sim.hold(Path::new("/dev/a")).is_err_and(|error| error.is_busy()));
    // The device has become too small.
    sim.resize_disk(Path::new("/dev/a"), Sectors(1 << 20)).unwrap();
    assert_eq!(mount("/dev/a", "x", ""), EINVAL);
}

#[test]
fn files_stay_with_the_device() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    create(&sim, "mdv", &linear(disk, 0, 1 << 20));
    mkfs(&sim, "/dev/mapper/mdv", UUID);
    let node = sim.dm_node("mdv");
    assert_eq!(errno(sim.list_files("m/filesystems")), ENOENT);
    sim.mount(&node, "m", "").unwrap();
    assert_eq!(errno(sim.replace_file("m/filesystems/a.json", b"1")), ENOENT);
    assert_eq!(sim.list_files("m/filesystems").unwrap(), Vec::<String>::new());
    for (name, text) in [("a", b"1"), ("b", b"2"), ("a", b"3")] {
        sim.replace_file(&format!("m/filesystems/{name}.json"), text).unwrap();
    }
    sim.remove_file("m/filesystems/c.json").unwrap();
    sim.remove_file("m/filesystems/b.json").unwrap();
    assert_eq!(sim.list_files("m/filesystems").unwrap(), ["a.json"]);
    assert_eq!(sim.list_files("m").unwrap(), Vec::<String>::new());
    assert_eq!(errno(sim.read_file("m/filesystems/b.json")), ENOENT);
    sim.unmount("m").unwrap();
    sim.dm_remove("mdv").unwrap();

    // The same bytes under another device give the same files, other bytes none. After a new format
    // there are no files.
    create(&sim, "again", &linear(disk, 0, 1 << 20));
    sim.mount(&sim.dm_node("again"), "n", "").unwrap();
    assert_eq!(sim.read_file("n/filesystems/a.json").unwrap(), b"3");
    sim.unmount("n").unwrap();
    create(&sim, "else", &linear(disk, 1 << 20, 1 << 20));
    assert_eq!(errno(sim.mount(&sim.dm_node("else"), "e", "")), EINVAL);
    mkfs(&sim, "/dev/mapper/again", UUID);
    sim.mount(&sim.dm_node("again"), "n", "").unwrap();
    assert_eq!(sim.list_files("n/filesystems").unwrap(), Vec::<String>::new());

    sim.pull_disk(Path::new("/dev/a")).unwrap();
    assert_eq!(errno(sim.list_files("n/filesystems")), EIO);
    assert_eq!(errno(sim.replace_file("n/filesystems/a.json", b"4")), EIO);
    sim.unmount("n").unwrap();
}

#[test]
fn a_snapshot_needs_its_log_replayed() {
    let sim = Sim::builder().build();
    // xfs_db writes the whole log of the snapshot.
    let pool = stack(&sim, 2000, "skip_block_zeroing");
    thin(&sim, pool, "fs", 0);
    mkfs(&sim, "/dev/mapper/fs", UUID);
    sim.mount_user(&sim.dm_node("fs"), Path::new("/mnt")).unwrap();
    sim.dm_suspend("fs", true).unwrap();
    sim.dm_message("pool", "create_snap 1 0").unwrap();
    sim.dm_resume("fs", Visibility::Public).unwrap();
    sim.dm_create("snap", "snap", &thin_table(pool, 1, 1 << 31), Visibility::Public).unwrap();
    let command = format!("-c uuid {OTHER}");
    let words = ["-x", &command, "/dev/mapper/snap"];
    // xfs_db prints the refusal and exits successfully.
    assert!(sim.run(Program::XfsDb, &words).unwrap().contains("in a log which needs to"));
    assert_eq!(uuid(&sim, "/dev/mapper/snap").as_deref(), Some(UUID));
    assert_eq!(errno(sim.mount(&sim.dm_node("snap"), "t", "")), EINVAL);
    sim.mount(&sim.dm_node("snap"), "t", "nouuid").unwrap();
    // A snapshot would share the files of its origin, so file calls on it are refused.
    assert_eq!(errno(sim.list_files("t")), EOPNOTSUPP);
    sim.unmount("t").unwrap();
    sim.run(Program::XfsDb, &words).unwrap();
    assert_eq!(uuid(&sim, "/dev/mapper/snap").as_deref(), Some(OTHER));
    assert_eq!(uuid(&sim, "/dev/mapper/fs").as_deref(), Some(UUID));
    fails(&sim, Program::XfsDb, &["-x", &command, "/dev/mapper/fs"], "mounted filesystem");
    fails(&sim, Program::XfsDb, &[&command, "/dev/mapper/snap"], "not in expert mode");
    fails(&sim, Program::XfsDb, &["-x", "-c frob", "/dev/mapper/snap"], "not found");
    fails(&sim, Program::XfsDb, &["-x", &command, "/dev/blank"], "not a valid XFS");
}

#[test]
fn growing_follows_the_device() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    create(&sim, "x", &linear(disk, 0, 1 << 20));
    mkfs(&sim, "/dev/mapper/x", UUID);
    let at = Path::new("/mnt");
    let x = sim.dm_find("x").unwrap().unwrap().number;
    let mount = Mount { number: x, mount_point: at.to_owned(), process: None };
    assert!(matches!(sim.grow_xfs(&mount), Err(Error::Grow { .. })));
    sim.mount_user(&sim.dm_node("x"), at).unwrap();
    let total = |sim: &Sim| sim.usage(&mount).unwrap().total;
    assert_eq!(total(&sim), Bytes(512 << 20));
    sim.dm_load("x", &linear(disk, 0, 1 << 21)).unwrap();
    sim.dm_resume("x", Visibility::Private).unwrap();
    assert_eq!(total(&sim), Bytes(512 << 20));
    sim.grow_xfs(&mount).unwrap();
    assert_eq!(total(&sim), Bytes(1 << 30));
    sim.set_used(at, Bytes(700 << 20)).unwrap();
    assert_eq!(sim.usage(&mount).unwrap().used, Bytes(700 << 20));
    assert_eq!(errno(sim.usage(&Mount { mount_point: "/nowhere".into(), ..mount.clone() })), ENOENT);
    let other = Mount { number: disk, ..mount.clone() };
    assert!(matches!(sim.usage(&other), Err(Error::OtherMount { number, .. }) if number == disk));
    assert!(matches!(sim.grow_xfs(&other), Err(Error::OtherMount { number, .. }) if number == disk));
}

#[test]
fn a_mount_is_visible_in_its_namespace_only() {
    let sim = Sim::builder().build();
    create(&sim, "x", &linear(number(&sim, "/dev/a"), 0, 1 << 20));
    mkfs(&sim, "/dev/mapper/x", UUID);
    let x = sim.dm_find("x").unwrap().unwrap().number;
    let path = sim.mount_elsewhere(77, &sim.dm_node("x"), Path::new("/data/a")).unwrap();
    let mount = Mount { number: x, mount_point: "/data/a".into(), process: Some(77) };
    assert_eq!(sim.mounts(&[x]).unwrap(), std::slice::from_ref(&mount));
    assert_eq!((path.as_path(), mount.shown().as_path()), (Path::new("/proc/77/root/data/a"), path.as_path()));
    assert!(sim.usage(&mount).is_ok());
    assert_eq!(errno(sim.usage(&Mount { process: None, ..mount })), ENOENT);
    sim.unmount_user(&path).unwrap();
    assert_eq!(sim.mounts(&[x]).unwrap(), []);
}

#[test]
fn damaged_metadata_is_found_and_repaired() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 100, "");
    thin(&sim, pool, "fs", 0);
    write(&sim, "fs", 0, b"kept").unwrap();
    flush(&sim, "fs");
    let node = sim.dm_node("meta");
    let text = node.to_str().unwrap();
    fails(&sim, Program::ThinCheck, &["--auto-repair", text], "busy");
    for name in ["fs", "pool"] {
        sim.dm_remove(name).unwrap();
    }
    sim.run(Program::ThinCheck, &["--auto-repair", text]).unwrap();
    sim.damage_metadata(&node).unwrap();
    fails(&sim, Program::ThinCheck, &["--auto-repair", text], "corrupt");
    fails(&sim, Program::ThinCheck, &["--frob", text], "unrecognized option");
    fails(&sim, Program::ThinCheck, &["--auto-repair", "/dev/blank"], "corrupt");

    let spare = create(&sim, "spare", &linear(number(&sim, "/dev/b"), 0, METADATA.0));
    fails(&sim, Program::ThinRepair, &["-i", text], "no output");
    fails(&sim, Program::ThinRepair, &["-i", "/dev/blank", "-o", "/dev/mapper/spare"], "corruption");
    sim.run(Program::ThinRepair, &["-i", text, "-o", "/dev/mapper/spare"]).unwrap();
    sim.run(Program::ThinCheck, &["--auto-repair", "/dev/mapper/spare"]).unwrap();
    let data = sim.dm_find("data").unwrap().unwrap().number;
    let pool = create(&sim, "pool", &pool_table(spare, data, 100, 1, ""));
    sim.dm_create("fs", "fs", &thin_table(pool, 0, 8), Visibility::Public).unwrap();
    assert_eq!(read(&sim, "fs", 0, 4), b"kept");
}

#[test]
fn a_program_stops_at_its_failed_write() {
    let sim = Sim::builder().build();
    sim.faults().fail_next(super::super::CallKind::ProgramWrite(Program::MkfsXfs), "");
    fails(&sim, Program::MkfsXfs, &["/dev/a"], "Input/output error");
    assert_eq!(uuid(&sim, "/dev/a"), None);
    sim.run(Program::MkfsXfs, &["/dev/a"]).unwrap();
    assert!(uuid(&sim, "/dev/a").is_some());
}
