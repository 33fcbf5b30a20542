//! Mount tables of processes, each for its mount namespace. This module knows nothing of what is
//! mounted.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::PathBuf,
};

use crate::platform::{DeviceNumber, Error, Result};

/// A line of a mount table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    pub(super) number: DeviceNumber,
    /// The root of the file system is mounted, not a directory below it.
    pub(super) is_whole: bool,
    pub(super) mount_point: PathBuf,
}

/// Reads the table of a process, which may be `self`.
///
/// # Errors
/// If it cannot be read or parsed.
pub(super) fn read(process: &str) -> Result<Vec<MountEntry>> {
    let path = PathBuf::from(format!("/proc/{process}/mountinfo"));
    let text = fs::read(&path).map_err(|source| Error::Io { action: "read the mount table", path, source })?;
    parse(&text)
}

/// One process of each mount namespace in use: the one with the lowest ID. Skips processes that may
/// not be inspected.
///
/// # Errors
/// If the processes cannot be listed.
pub(super) fn namespaces() -> Result<Vec<u32>> {
    let path = PathBuf::from("/proc");
    let listed = |source: io::Error| Error::Io { action: "list the processes in", path: path.clone(), source };
    let mut first: BTreeMap<u64, u32> = BTreeMap::new();
    for entry in fs::read_dir(&path).map_err(listed)?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(namespace) = namespace(&process.to_string()) else { continue };
        let known = first.entry(namespace).or_insert(process);
        *known = process.min(*known);
    }
    Ok(first.into_values().collect())
}

/// The inode number of a process's mount namespace.
pub(super) fn namespace(process: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{process}/ns/mnt")).ok().map(|found| found.ino())
}

/// Whether the root of this process is the lowest mount of its namespace, so nothing lies beneath
/// it.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn lowest_is_root() -> io::Result<bool> {
    Ok(root_is_lowest(&fs::read("/proc/self/mountinfo")?))
}

/// The lowest mount is its own parent. Of several mounts at `/`, the last covers the others.
fn root_is_lowest(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' ').collect::<Vec<_>>());
    lines.rfind(|fields| fields.get(4) == Some(&&b"/"[..])).is_none_or(|fields| fields[0] == fields[1])
}

/// Parses `mountinfo` (proc_pid_mountinfo(5)): identifiers, `MAJOR:MINOR`, root, mount point, and
/// more.
pub(super) fn parse(text: &[u8]) -> Result<Vec<MountEntry>> {
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

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let number = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let root = fields.next()?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    mount_point.is_absolute().then_some(MountEntry { number, is_whole: root == b"/", mount_point })
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

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        os::unix::ffi::OsStrExt,
        path::{Path, PathBuf},
    };

    use proptest::prelude::*;

    use super::{MountEntry, namespace, namespaces, parse, read, root_is_lowest, unescape};
    use crate::platform::{DeviceNumber, Error};

    #[test]
    fn the_lowest_mount_lies_on_itself() {
        let rest = "0:1 / / rw - rootfs rootfs rw";
        assert!(!root_is_lowest(TABLE.as_bytes()));
        assert!(root_is_lowest(format!("1 1 {rest}\n2 1 0:2 / /proc rw - proc proc rw\n").as_bytes()));
        assert!(!root_is_lowest(format!("1 1 {rest}\n2 1 {rest}\n").as_bytes()));
        assert!(root_is_lowest(b""), "nothing is known");
    }

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 22 253:5 / /mnt/with\\040space\\011and\\134backslash rw master:3 - xfs /dev/dm-5 rw,attr2
36 22 253:5 /part /srv/\\303\\274 rw - xfs /dev/dm-5 rw
37 22 0:45 / /run/stratisd/ns_mounts rw - tmpfs tmpfs rw,size=1024k
38 37 253:2 / /run/stratisd/ns_mounts/.mdv-0123 rw - xfs /dev/mapper/x rw
";

    #[test]
    fn the_mount_table_is_read() {
        let entry = |minor, is_whole, path: &str| MountEntry {
            number: DeviceNumber { major: 253, minor },
            is_whole,
            mount_point: PathBuf::from(path),
        };
        let entries = parse(TABLE.as_bytes()).unwrap();
        assert_eq!(entries.len(), 5);
        assert_eq!(entries[1], entry(5, true, "/mnt/with space\tand\\backslash"));
        assert_eq!(entries[2], entry(5, false, "/srv/ü"));
        assert_eq!(entries[4], entry(2, true, "/run/stratisd/ns_mounts/.mdv-0123"));
    }

    #[test]
    fn bad_lines_are_errors() {
        for bad in ["x", "1 2", "1 2 8:1", "1 2 8:1 /", "1 2 8-1 / /x rw", "1 2 8:1 / relative rw"] {
            assert!(matches!(parse(bad.as_bytes()), Err(Error::Unexpected { .. })), "{bad}");
        }
    }

    #[test]
    fn other_backslashes_stay() {
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
            let _ = parse(&text);
        }
    }

    #[test]
    fn this_process_has_mounts_and_a_namespace() {
        assert!(read("self").unwrap().iter().any(|entry| entry.mount_point == Path::new("/proc")));
        let ours = namespace("self").unwrap();
        let found = namespaces().unwrap();
        assert_eq!(found.iter().filter(|process| namespace(&process.to_string()) == Some(ours)).count(), 1);
    }
}
