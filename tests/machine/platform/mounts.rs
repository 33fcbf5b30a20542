//! The private directory, the mounts in it, and the files on them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use stratisd::{
    base::units::{Bytes, Sectors},
    platform::{
        Error, Platform, Program, WriteStep,
        dm::{Line, Target, Visibility},
        linux::Linux,
    },
};

use crate::{Check, Machine, outside};

pub(crate) const CHECKS: &[Check] = &[
    ("the private directory is visible to no other process", private),
    ("a volume is mounted, used and unmounted", volume),
    ("a failed mount is reported", failed_mounts),
    ("mounts of users are found", users),
    ("mounts in other namespaces are found, grown and not pinned", elsewhere),
    ("the daemon keeps no mount of a user busy", copies),
    ("a new start finds a clean private directory", leftovers),
];

const PLACE: &str = "/run/stratisd/ns_mounts";
const AT: &str = ".mdv-0123456789abcdef0123456789abcdef";

fn private(_machine: &Machine) {
    assert_ne!(fs::read_link("/proc/self/ns/mnt").unwrap(), fs::read_link("/proc/1/ns/mnt").unwrap());
    // The root disk of the machine stays mounted.
    assert!(Path::new("/usr/sbin").exists() && Path::new("/proc/self").exists());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(PLACE)).unwrap();
    assert!(line.contains("tmpfs") && line.contains("size=1024k"), "{line}");
    assert!(!line.contains("shared:"), "{line}");
    assert!(!fs::read_to_string("/proc/1/mountinfo").unwrap().contains("stratisd"));
}

/// Creates a device with an XFS.
fn make_volume(machine: &Machine) -> (String, String) {
    let (name, _) = machine.linear("flex-mdv", 1, 0, 1_048_576);
    let node = machine.linux.dm_node(&name).to_str().unwrap().to_owned();
    let uuid = "uuid=01234567-89ab-cdef-0123-456789abcdef";
    machine.linux.run(Program::MkfsXfs, &["-f", &node, "-m", uuid]).unwrap();
    (name, node)
}

fn volume(machine: &Machine) {
    let linux = &machine.linux;
    let (name, node) = make_volume(machine);
    let number = linux.dm_find(&name).unwrap().unwrap().number;
    let path = Path::new(PLACE).join(AT);
    for _ in 0..2 {
        linux.mount(Path::new(&node), AT, "").unwrap();
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(table.matches(AT).count(), 1);
    assert!(!fs::read_to_string("/proc/1/mountinfo").unwrap().contains(AT));
    // Private mounts are not reported as mount points.
    assert_eq!(linux.mount_points(number).unwrap(), Vec::<PathBuf>::new());
    assert!(matches!(linux.dm_remove(&name), Err(Error::Busy { .. })));

    let directory = format!("{AT}/filesystems");
    assert_eq!(linux.list_files(&directory).unwrap(), Vec::<String>::new());
    let file = format!("{directory}/3f2504e04f8941d39a0c0305e82c3301.json");
    for content in ["{}", r#"{"name":"home"}"#] {
        linux.replace_file(&file, content.as_bytes()).unwrap();
        assert_eq!(linux.read_file(&file).unwrap(), content.as_bytes());
    }
    assert_eq!(linux.list_files(&directory).unwrap(), ["3f2504e04f8941d39a0c0305e82c3301.json"]);

    // Files survive an unmount. An unmounted directory has no files.
    linux.unmount(AT).unwrap();
    assert!(!path.exists());
    linux.unmount(AT).unwrap();
    linux.mount(Path::new(&node), AT, "ro,nouuid").unwrap();
    assert_eq!(linux.read_file(&file).unwrap(), br#"{"name":"home"}"#);
    let error = linux.replace_file(&file, b"x").unwrap_err();
    assert_eq!(error.errno(), Some(nix::libc::EROFS), "{error}");
    linux.unmount(AT).unwrap();
    linux.mount(Path::new(&node), AT, "").unwrap();
    linux.remove_file(&file).unwrap();
    linux.remove_file(&file).unwrap();
    assert_eq!(linux.list_files(&directory).unwrap(), Vec::<String>::new());

    // The mount stays while a file on it is open.
    let open = fs::File::open(path.join("filesystems")).unwrap();
    assert!(linux.unmount(AT).unwrap_err().is_busy());
    drop(open);
    linux.unmount(AT).unwrap();
    linux.dm_remove(&name).unwrap();
}

fn failed_mounts(machine: &Machine) {
    let linux = &machine.linux;
    let (name, number) = machine.linear("empty", 2, 0, 1_048_576);
    let node = linux.dm_node(&name);
    linux.write(&node, &[WriteStep::At(0, &[0; 4096]), WriteStep::Flush]).unwrap();
    assert_eq!(linux.mount(&node, AT, "").unwrap_err().errno(), Some(nix::libc::EINVAL));
    // Exclusive use of the device by another process is not the same as "already mounted".
    let above = machine.private("above");
    let table = [Line::linear(Sectors(0), Sectors(8192), number, Sectors(0))];
    linux.dm_create(&above, &above, &table, Visibility::Private).unwrap();
    let error = linux.mount(&node, AT, "").unwrap_err();
    assert!(error.is_busy(), "{error:?}");
    linux.dm_remove(&above).unwrap();
    linux.dm_remove(&name).unwrap();
    assert!(linux.mount(Path::new("/dev/nonexistent"), AT, "").is_err());
    for at in ["../x", "/x", "a/../../x", ""] {
        assert!(matches!(linux.mount(&node, at, ""), Err(Error::Unexpected { .. })), "{at}");
    }
    linux.unmount(AT).unwrap();
    assert!(!Path::new(PLACE).join(AT).exists());
}

fn users(machine: &Machine) {
    let linux = &machine.linux;
    let (name, node) = make_volume(machine);
    let number = linux.dm_find(&name).unwrap().unwrap().number;
    let place = "/mnt/a place\twith\\odd characters";
    let part = "/mnt/part";
    outside("mkdir", &["-p", place, part]);
    outside("mount", &[&node, place]);
    outside("mkdir", &[&format!("{place}/inside")]);
    outside("mount", &["--bind", &format!("{place}/inside"), part]);
    assert_eq!(linux.mount_points(number).unwrap(), [Path::new(place), Path::new(part)]);
    let mounts = linux.mounts(&[number]).unwrap();
    assert!(mounts.iter().all(|mount| mount.process.is_none()), "{mounts:?}");
    assert!(linux.usage(&mounts[0]).unwrap().total > Bytes(400 << 20));
    assert!(linux.hold(Path::new(&node)).is_err_and(|error| error.is_busy()));
    assert!(matches!(linux.dm_remove(&name), Err(Error::Busy { .. })));
    // The daemon does not keep it mounted after users unmount it.
    outside("umount", &[part]);
    outside("umount", &[place]);
    assert_eq!(linux.mount_points(number).unwrap(), Vec::<PathBuf>::new());
    linux.dm_remove(&name).unwrap();
}

/// A mount in another namespace, which propagates nowhere else.
fn elsewhere(machine: &Machine) {
    let linux = &machine.linux;
    let (name, node) = make_volume(machine);
    let found = linux.dm_find(&name).unwrap().unwrap();
    fs::create_dir_all("/mnt/elsewhere").unwrap();
    // The shell is the only process in its namespace.
    let script = format!("mount {node} /mnt/elsewhere && touch /mnt/elsewhere/ready && read line; true");
    // The shell belongs to a user, and the daemon does not start it.
    #[allow(clippy::disallowed_methods)]
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let mounts = loop {
        let mounts = linux.mounts(&[found.number]).unwrap();
        match mounts.first().and_then(|mount| mount.process) {
            Some(process) if Path::new(&format!("/proc/{process}/root/mnt/elsewhere/ready")).exists() => break mounts,
            _ => assert!(shell.try_wait().unwrap().is_none(), "the shell has exited"),
        }
    };
    assert_eq!(mounts.len(), 1);
    assert_eq!(linux.mount_points(found.number).unwrap(), [mounts[0].shown()]);
    let before = linux.usage(&mounts[0]).unwrap().total;
    assert!(before > Bytes(400 << 20), "{before:?}");
    let Target::Linear { device, offset } = found.table[0].target else { panic!("{:?}", found.table) };
    linux.dm_load(&name, &[Line::linear(Sectors(0), Sectors(2 * 1_048_576), device, offset)]).unwrap();
    linux.dm_resume(&name, Visibility::Private).unwrap();
    linux.grow_xfs(&mounts[0]).unwrap();
    let after = linux.usage(&mounts[0]).unwrap().total;
    assert!(after.0 > before.0 * 19 / 10, "{before:?} {after:?}");
    // Without its user, nothing holds the mount.
    drop(shell.stdin.take());
    assert!(shell.wait().unwrap().success());
    assert_eq!(linux.mounts(&[found.number]).unwrap(), []);
    assert!(matches!(linux.usage(&mounts[0]), Err(Error::Io { .. } | Error::OtherMount { .. })));
    linux.dm_remove(&name).unwrap();
}

/// A mount that existed before the daemon's start, below a mount that is not shared: an unmount by
/// users did not reach the daemon's copy of it.
fn copies(machine: &Machine) {
    let linux = &machine.linux;
    let (name, node) = make_volume(machine);
    outside("mkdir", &["-p", "/mnt/parent"]);
    outside("mount", &["-t", "tmpfs", "--make-private", "tmpfs", "/mnt/parent"]);
    outside("mkdir", &["-p", "/mnt/parent/child"]);
    outside("mount", &[&node, "/mnt/parent/child"]);
    let again = Linux::start().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("/mnt/"), "{table}");
    outside("umount", &["/mnt/parent/child"]);
    again.dm_remove(&name).unwrap();
    outside("umount", &["/mnt/parent"]);
    drop(again);
    assert!(linux.dm_find(&name).unwrap().is_none());
}

fn leftovers(machine: &Machine) {
    let linux = &machine.linux;
    let (name, node) = make_volume(machine);
    linux.mount(Path::new(&node), AT, "").unwrap();
    linux.mount(Path::new(&node), ".another", "").unwrap();
    // The state after a kill, but in the same namespace.
    let again = Linux::start().unwrap();
    assert_eq!(fs::read_dir(PLACE).unwrap().count(), 0);
    linux.dm_remove(&name).unwrap();
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(table().matches(PLACE).count(), 1);
    again.leave();
    assert_eq!(table().matches(PLACE).count(), 0);
    // Restores the private directory for later checks.
    drop(Linux::start().unwrap());
    assert_eq!(table().matches(PLACE).count(), 1);
}
