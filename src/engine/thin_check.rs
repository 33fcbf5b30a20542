//! What thin_check reports about thin metadata, and whether that is a verdict.
//!
//! Only a finding of damaged metadata may lead to a repair, because a repair replaces the metadata.
//! The exit status alone does not show damage: version 0.9 exits with 1 and version 1.x with 64 for
//! damage, but also when thin_check cannot open the device, gets no memory, or meets an I/O error.
//! So the daemon also parses the output and reads the device itself.

use std::path::Path;

use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::{Error, Platform, Program, ProgramEnd, Result},
};

/// Exit statuses for damage and for other failures: that of version 0.9, and that of 1.x.
const STATUSES: [i32; 2] = [1, 64];
/// Output that shows that thin_check began to examine the metadata: of version 0.9, of 1.x, and of
/// 1.x for a bad superblock.
const BEGUN: [&str; 3] = ["examining superblock", "checking thin metadata", "in superblock"];
/// Output that shows that something other than the metadata stopped thin_check.
const DISTURBED: [&str; 9] = [
    "input/output error",
    "i/o error",
    "io error",
    "os error",
    "alloc",
    "panicked",
    "permission denied",
    "busy",
    "usage:",
];
/// Size of one read of the device. The largest metadata device, of 16 GiB, takes a thousand reads.
const READ_BYTES: u64 = 16 << 20;

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ThinCheckVerdict {
    /// The metadata is sound.
    Sound,
    /// The metadata is damaged. The text is that of thin_check.
    Damaged(String),
}

/// Checks the thin metadata on a device of this size that no thin pool uses. Repairs only what can
/// be repaired without loss.
///
/// # Errors
/// If there is no verdict: thin_check could not be run, was killed, or could not read the device.
pub(super) fn check(platform: &dyn Platform, node: &Path, size: Sectors) -> Result<ThinCheckVerdict> {
    let run = || match platform.run(Program::ThinCheck, &["--auto-repair", &node.to_string_lossy()]) {
        Ok(_) => Ok(ThinCheckVerdict::Sound),
        Err(Error::Program { end, what, .. }) if is_finding(end, &what) => Ok(ThinCheckVerdict::Damaged(what)),
        Err(error) => Err(error),
    };
    let verdict = match run() {
        // Try once more: the cause may have been a shortage of memory that is over. A program that
        // hung would hang again.
        Err(Error::Program { end: ProgramEnd::NotRun | ProgramEnd::Status(_) | ProgramEnd::Signal(_), .. }) => run(),
        verdict => verdict,
    }?;
    if verdict != ThinCheckVerdict::Sound {
        read_all(platform, node, size)?;
    }
    Ok(verdict)
}

/// Reads the whole device. To thin_check, an unreadable sector looks like damage, but the sector
/// may become readable when a cable is back in its place.
fn read_all(platform: &dyn Platform, node: &Path, size: Sectors) -> Result<()> {
    let Bytes(end) = size.bytes();
    let end = u64::try_from(end).unwrap_or(u64::MAX);
    let mut at = 0;
    while at < end {
        let length = READ_BYTES.min(end - at);
        platform.read(node, at, usize::try_from(length).unwrap_or(SECTOR as usize))?;
        at += length;
    }
    Ok(())
}

fn is_finding(end: ProgramEnd, said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let contains = |words: &[&str]| words.iter().any(|word| said.contains(word));
    matches!(end, ProgramEnd::Status(status) if STATUSES.contains(&status)) && contains(&BEGUN) && !contains(&DISTURBED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of versions 0.9.0 and 1.1.0 for metadata with bytes overwritten in each of its
    /// blocks.
    #[test]
    fn findings_are_told_from_failures() {
        let findings = [
            (
                1,
                "examining superblock superblock is corrupt bad checksum in superblock, wanted 139221495 metadata has not been fully examined",
            ),
            (
                1,
                "examining superblock examining devices tree missing devices: [0, -] bad checksum in btree node (block 6)",
            ),
            (
                1,
                "examining superblock examining devices tree examining mapping tree checking space map counts bad checksum in metadata index block (block 1)",
            ),
            (1, "examining superblock examining devices tree missing devices: [0, -] block out of bounds (6 >= 4)"),
            (64, "bad checksum in superblock"),
            (
                64,
                "Checking thin metadata device details tree mapping tree data space map metadata space map metadata space map: bad checksum in index block",
            ),
            (64, "Checking thin metadata mapping top-level: node error: checksum error AgEH, effecting keys [..]"),
            (
                64,
                "Checking thin metadata Bad reference count for metadata block 336. Expected 0, but space map says it's >= 3.",
            ),
        ];
        for (status, said) in findings {
            assert!(is_finding(ProgramEnd::Status(status), &format!("exit status {status}: {said}")), "{said}");
        }
        let failures = [
            (1, "Couldn't stat path"),
            (1, "No input file provided. Usage: thin_check [options] {device|file}"),
            (
                1,
                "syscall 'open' failed: Permission denied Note: you cannot run this tool with these options on live metadata.",
            ),
            (1, "couldn't allocate blocks"),
            (1, "examining superblock std::bad_alloc"),
            (1, "Metadata device/file too small. Is this binary metadata?"),
            (2, "error: unexpected argument '--bogus' found"),
            (64, "Couldn't find input file 'nonexist'"),
            (64, "Permission denied (os error 13)"),
            (64, "Checking thin metadata mapping top-level: node error: io error AgEH, effecting keys [..]"),
            (
                101,
                "Checking thin metadata device details tree thread 'main' panicked at library/std/src/thread/mod.rs:734:29:",
            ),
            (127, "thin_check: error while loading shared libraries: libc.so.6: failed to map segment"),
        ];
        for (status, said) in failures {
            assert!(!is_finding(ProgramEnd::Status(status), said), "{said}");
        }
        for end in [ProgramEnd::NotRun, ProgramEnd::Signal(9), ProgramEnd::TimedOut, ProgramEnd::Unkillable] {
            assert!(!is_finding(end, "examining superblock superblock is corrupt"), "{end:?}");
        }
    }
}
