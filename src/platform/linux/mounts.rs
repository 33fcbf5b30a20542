//! Mounts: a mount namespace of the daemon's own, a private directory in it, what is mounted there and elsewhere.
//!
//! The private directory is a small tmpfs at [`PLACE`] that no other program sees: metadata volumes are mounted in
//! it. Mounts that users make do reach the daemon's namespace, so that it can tell where a filesystem is in use.
//! Knows nothing of what is mounted.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::OsStringExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use log::{info, warn};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{Mode, OFlags};

use super::{database, files::Place, wait};
use crate::{
    engine::units::Bytes,
    platform::{DeviceNumber, Error, Result, Usage},
};

/// The private directory.
const PLACE: &str = "/run/stratisd/ns_mounts";
/// Holds mount points only.
const PLACE_OPTIONS: &str = "size=1M,mode=0700";
/// Nothing in the private directory is a program or a device, whatever is on the disks.
const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const MOUNT_TABLE: &str = "/proc/self/mountinfo";
/// How often an unmount is tried while something still uses the mount, and how long it waits between two tries. Of
/// the end of that use the kernel tells nobody.
const UNMOUNT_TRIES: u32 = 3;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(100);

fn error(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::Io { action, path, source: errno.into() }
}

/// Moves the process into a mount namespace of its own, unless it is in one already or is the first process.
///
/// # Errors
/// When the process has several threads (only the calling one would move) or lacks the right.
pub(super) fn leave_root_namespace() -> Result<()> {
    let namespace = |process: &str| {
        let path = PathBuf::from(format!("/proc/{process}/ns/mnt"));
        fs::read_link(&path).map_err(|source| Error::Io { action: "look at", path, source })
    };
    if process::id() == 1 || namespace("self")? != namespace("1")? {
        return Ok(());
    }
    let threads = Path::new("/proc/self/task");
    let count = fs::read_dir(threads)
        .map_err(|source| Error::Io { action: "look at", path: threads.to_owned(), source })?
        .count();
    if count != 1 {
        return Err(Error::Missing(format!(
            "the mount namespace must be left before threads are started, but there are {count}"
        )));
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(error("leave the mount namespace of", Path::new("/")))?;
    // From now on mounts reach us from outside, and ours do not get out.
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
        .map_err(error("keep mounts private under", Path::new("/")))
}

/// Makes the private directory: a tmpfs, empty. What an earlier daemon left there is unmounted first.
///
/// # Errors
/// When it cannot be made or mounted, or is no directory.
pub(super) fn make_place() -> Result<Place> {
    let place = Path::new(PLACE);
    if fs::symlink_metadata(place).is_ok_and(|found| !found.is_dir()) {
        return Err(Error::Missing(format!("{PLACE} is not a directory; remove it")));
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(place).map_err(|source| Error::Io {
        action: "make the directory",
        path: place.to_owned(),
        source,
    })?;
    clear_place()?;
    mount(Some("tmpfs"), place, Some("tmpfs"), SAFE, Some(PLACE_OPTIONS)).map_err(error("mount a tmpfs on", place))?;
    let nothing: Option<&str> = None;
    mount(nothing, place, nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
        .map_err(error("keep mounts private under", place))?;
    Ok(Place::new(place))
}

/// Unmounts everything in the private directory, and what is mounted on it.
///
/// # Errors
/// When something there is in use.
pub(super) fn clear_place() -> Result<()> {
    // The table lists a mount after the one it lies on, so backwards is from the inside out.
    for entry in table()?.iter().rev().filter(|entry| entry.is_private()) {
        info!("unmounting {}", entry.mount_point.display());
        unmount_busy(&entry.mount_point).map_err(error("unmount", &entry.mount_point))?;
    }
    Ok(())
}

/// Mounts the XFS on `node` in the private directory.
pub(super) fn mount_xfs(place: &Place, node: &Path, at: &str, options: &str) -> Result<()> {
    let target = place.make_directory(at)?;
    let (flags, data) = split_options(options);
    let result = mount(Some(node), &target, Some("xfs"), SAFE | flags, Some(data.as_str()));
    match result {
        Ok(()) => Ok(()),
        // Also said when somebody else has the device for himself: look which it is.
        Err(Errno::EBUSY) if is_mounted(node, &target)? => Ok(()),
        Err(errno) => Err(error("mount a file system from", node)(errno)),
    }
}

/// Unmounts what is mounted in the private directory and removes its mount point.
pub(super) fn unmount(place: &Place, at: &str) -> Result<()> {
    let target = place.path(at)?;
    match unmount_busy(&target) {
        // Not a mount point; not there at all.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(error("unmount", &target)(errno)),
    }
    match fs::remove_dir(&target) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove the directory", path: target, source })
        }
        _ => Ok(()),
    }
}

fn unmount_busy(target: &Path) -> std::result::Result<(), Errno> {
    for _ in 1..UNMOUNT_TRIES {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => wait::pause(UNMOUNT_PAUSE),
            other => return other,
        }
    }
    umount2(target, MntFlags::UMOUNT_NOFOLLOW)
}

fn is_mounted(node: &Path, target: &Path) -> Result<bool> {
    let found = fs::metadata(node).map_err(|source| Error::Io { action: "look at", path: node.to_owned(), source })?;
    let number = database::number(found.rdev());
    Ok(table()?.iter().any(|entry| entry.number == number && entry.mount_point == target))
}

/// Where a device is mounted, the private directory not counted. Mounts of the whole file system come before those
/// of a part of it, since those serve for every purpose.
pub(super) fn mount_points(number: DeviceNumber) -> Result<Vec<PathBuf>> {
    let found = mounts()?.into_iter().filter(|(device, _)| *device == number);
    Ok(found.map(|(_, mount_point)| mount_point).collect())
}

/// Where all devices are mounted; order and exception as for [`mount_points`].
pub(super) fn mounts() -> Result<Vec<(DeviceNumber, PathBuf)>> {
    let mut found = table()?;
    found.retain(|entry| !entry.is_private());
    found.sort_by_key(|entry| !entry.is_whole);
    Ok(found.into_iter().map(|entry| (entry.number, entry.mount_point)).collect())
}

/// How full the file system mounted at this path is.
///
/// The path is opened once, so that what is compared is what is counted, whatever is mounted there meanwhile.
pub(super) fn usage(mount_point: &Path, number: DeviceNumber) -> Result<Usage> {
    let path = || mount_point.to_owned();
    let failed =
        |errno: rustix::io::Errno| Error::Io { action: "read the usage of", path: path(), source: errno.into() };
    let place = rustix::fs::open(mount_point, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let device = rustix::fs::fstat(&place).map_err(failed)?.st_dev;
    if (rustix::fs::major(device), rustix::fs::minor(device)) != (number.major, number.minor) {
        return Err(Error::OtherMount { path: path(), number });
    }
    let counted = rustix::fs::fstatvfs(&place).map_err(failed)?;
    let bytes = |blocks: u64| Bytes(u128::from(blocks) * u128::from(counted.f_frsize));
    Ok(Usage { total: bytes(counted.f_blocks), used: bytes(counted.f_blocks.saturating_sub(counted.f_bfree)) })
}

/// Options as of mount(8): those that the kernel knows by a flag, and the text for the file system.
fn split_options(options: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut text = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "rw" | "defaults" => {}
            other => text.push(other),
        }
    }
    (flags, text.join(","))
}

/// A line of the mount table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    number: DeviceNumber,
    /// Its root is mounted, not a directory below.
    is_whole: bool,
    mount_point: PathBuf,
}

impl Entry {
    fn is_private(&self) -> bool {
        self.mount_point.starts_with(PLACE)
    }
}

fn table() -> Result<Vec<Entry>> {
    let text = fs::read(MOUNT_TABLE).map_err(|source| Error::Io {
        action: "read the mount table",
        path: MOUNT_TABLE.into(),
        source,
    })?;
    parse_table(&text)
}

/// Reads `mountinfo` (proc_pid_mountinfo(5)): identifiers, `MAJOR:MINOR`, root, mount point, and more.
fn parse_table(text: &[u8]) -> Result<Vec<Entry>> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            parse_line(line).ok_or_else(|| Error::Unexpected {
                what: "a line of the mount table",
                text: String::from_utf8_lossy(line).chars().take(200).collect(),
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let number = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let root = fields.next()?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    mount_point.is_absolute().then_some(Entry { number, is_whole: root == b"/", mount_point })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()))
        });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Unmounts everything private, at the end of the daemon. What cannot be unmounted is logged: the kernel does it when
/// the namespace ends with its last process.
pub(super) fn leave_place() {
    if let Err(fault) = clear_place() {
        warn!("the private mounts are left to the kernel: {fault}");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        os::unix::{ffi::OsStrExt, fs::MetadataExt},
        path::{Path, PathBuf},
    };

    use nix::mount::MsFlags;
    use proptest::prelude::*;

    use super::{Entry, mount_points, parse_table, split_options, table, unescape, usage};
    use crate::{
        engine::units::Bytes,
        platform::{DeviceNumber, Error},
    };

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 22 253:5 / /mnt/with\\040space\\011and\\134backslash rw master:3 - xfs /dev/dm-5 rw,attr2
36 22 253:5 /part /srv/\\303\\274 rw - xfs /dev/dm-5 rw
37 22 0:45 / /run/stratisd/ns_mounts rw - tmpfs tmpfs rw,size=1024k
38 37 253:2 / /run/stratisd/ns_mounts/.mdv-0123 rw - xfs /dev/mapper/x rw
";

    #[test]
    fn the_mount_table_is_read() {
        let entry = |minor, is_whole, path: &str| Entry {
            number: DeviceNumber { major: 253, minor },
            is_whole,
            mount_point: PathBuf::from(path),
        };
        let entries = parse_table(TABLE.as_bytes()).unwrap();
        assert_eq!(entries.len(), 5);
        assert_eq!(entries[1], entry(5, true, "/mnt/with space\tand\\backslash"));
        assert_eq!(entries[2], entry(5, false, "/srv/ü"));
        assert_eq!(entries[4], entry(2, true, "/run/stratisd/ns_mounts/.mdv-0123"));
        let private: Vec<bool> = entries.iter().map(Entry::is_private).collect();
        assert_eq!(private, [false, false, false, true, true]);
    }

    #[test]
    fn a_neighbour_of_the_private_place_is_not_private() {
        let entries = parse_table(b"1 2 8:1 / /run/stratisd/ns_mounts2 rw - xfs a rw").unwrap();
        assert!(!entries[0].is_private());
    }

    #[test]
    fn bad_lines_are_errors() {
        for bad in ["x", "1 2", "1 2 8:1", "1 2 8:1 /", "1 2 8-1 / /x rw", "1 2 8:1 / relative rw"] {
            assert!(matches!(parse_table(bad.as_bytes()), Err(Error::Unexpected { .. })), "{bad}");
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        let check = |written: &str, expected: &[u8]| {
            assert_eq!(unescape(written.as_bytes()).as_os_str(), OsStr::from_bytes(expected), "{written}");
        };
        check("\\040", b" ");
        check("a\\012b", b"a\nb");
        check("\\377", b"\xff");
        check("\\", b"\\");
        check("\\04", b"\\04");
        check("\\0z0", b"\\0z0");
        check("\\+40", b"\\+40");
        check("\\400", b"\\400");
    }

    proptest! {
        #[test]
        fn any_path_survives_the_kernels_way_of_writing(path in proptest::collection::vec(1_u8.., 0..40)) {
            let written: Vec<u8> = path
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                    other => vec![*other],
                })
                .collect();
            let read = unescape(&written);
            prop_assert_eq!(read.as_bytes(), &path[..]);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_table(&text);
        }
    }

    #[test]
    fn options_are_split() {
        let check = |options, flags, text: &str| assert_eq!(split_options(options), (flags, text.to_owned()));
        check("", MsFlags::empty(), "");
        check("nouuid", MsFlags::empty(), "nouuid");
        check("ro,nouuid,noatime,logbsize=32k", MsFlags::MS_RDONLY | MsFlags::MS_NOATIME, "nouuid,logbsize=32k");
    }

    #[test]
    fn this_machine_has_a_table_and_proc_in_it() {
        let proc = table().unwrap().into_iter().find(|entry| entry.mount_point == Path::new("/proc")).unwrap();
        assert!(mount_points(proc.number).unwrap().contains(&PathBuf::from("/proc")));
    }

    #[test]
    fn usage_counts_bytes() {
        let root = Path::new("/");
        let device = root.metadata().unwrap().dev();
        let number = DeviceNumber { major: rustix::fs::major(device), minor: rustix::fs::minor(device) };
        let counted = usage(root, number).unwrap();
        assert!(counted.total >= counted.used && counted.total > Bytes(1 << 20), "{counted:?}");
        assert!(matches!(usage(Path::new("/nonexistent"), number), Err(Error::Io { .. })));
        // Something else is mounted there.
        let other = DeviceNumber { minor: number.minor + 1, ..number };
        let error = usage(root, other).unwrap_err();
        assert!(matches!(&error, Error::OtherMount { number, .. } if *number == other), "{error}");
        assert!(matches!(usage(Path::new("/proc"), number), Err(Error::OtherMount { .. })));
    }
}
