//! How long programs and children may take: one table, by what they do. Knows neither how they are run nor what becomes of one
//! that takes longer.
//!
//! A limit is there so that a hung program does not hold its request for ever; it is no estimate. Each is far above what a slow
//! disk and a busy machine need, since to end a program that only was slow costs its user the request.

use std::time::Duration;

use crate::{base::units::Bytes, platform::Program};

/// What a child does, as far as its limit follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// A program of [`Program`].
    Run(Program),
    /// Extends a mounted XFS.
    GrowXfs,
    /// Has a passphrase encrypted by Clevis.
    ClevisEncrypt,
    /// Has a passphrase decrypted by Clevis.
    ClevisDecrypt,
    /// Reads a LUKS2 header, or changes a table with a volume key that is known.
    LuksQuick,
    /// Derives keys from passphrases, or writes a header.
    LuksKeys,
    /// Works on all data of a container.
    LuksData,
}

/// How long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    /// In any case.
    seconds: u64,
    /// For each GiB of the device, on top.
    per_gib: u64,
}

/// What is said of a program that has not ended after this time, and may go on.
pub(super) const NOTICE: Duration = Duration::from_secs(60);
/// How long a killed program is waited for. One that has not ended then waits inside the kernel for a device that does not
/// answer, and ends when the device does, or never.
pub(super) const KILLED: Duration = Duration::from_secs(2);

const fn limit(seconds: u64, per_gib: u64) -> Option<Limit> {
    Some(Limit { seconds, per_gib })
}

/// The table.
const fn row(work: Activity) -> Option<Limit> {
    match work {
        // Writes a log of up to 2 GiB and the headers of each allocation group; a slow disk takes 4 MiB/s.
        Activity::Run(Program::MkfsXfs) => limit(600, 1),
        // Clears the log and writes the headers of all allocation groups: as much as a format.
        Activity::Run(Program::XfsDb) => limit(600, 1),
        // Reads all metadata, in any order: 4 KiB at a time, 500 reads a second, each block about twice.
        Activity::Run(Program::ThinCheck) => limit(300, 1200),
        // As a check, and writes as much.
        Activity::Run(Program::ThinRepair) => limit(600, 2400),
        // Computes a number.
        Activity::Run(Program::ThinMetadataSize) => limit(30, 0),
        // Writes the headers of the new allocation groups. In a full pool writes wait 60 s for space before they fail.
        Activity::GrowXfs => limit(300, 1),
        // Asks the servers of a configuration one after the other; a connection to one that is silent is given up after some
        // seconds by no rule of its own.
        Activity::ClevisEncrypt => limit(60, 0),
        // Asks servers side by side, or the TPM, which takes a few seconds.
        Activity::ClevisDecrypt => limit(30, 0),
        // A few reads or writes; a disk may try each again for 30 s.
        Activity::LuksQuick => limit(120, 0),
        // Derives a key for each keyslot, of which there are up to 32: some seconds each, more while others have the
        // processors. The wait for memory is not counted.
        Activity::LuksKeys => limit(600, 0),
        // Takes hours or days. It tells how far it is, and is stopped by the daemon.
        Activity::LuksData => None,
    }
}

/// How long this may take on a device of this size; `None`: as long as it takes.
pub(super) fn of(work: Activity, size: Bytes) -> Option<Duration> {
    let gib = u64::try_from(size.0 >> 30).unwrap_or(u64::MAX).saturating_add(1);
    row(work).map(|Limit { seconds, per_gib }| Duration::from_secs(gib.saturating_mul(per_gib).saturating_add(seconds)))
}

/// That a program was killed because its time was up, for people.
pub(super) fn timed_out(limit: Option<Duration>) -> String {
    format!("it did not end within {} s and was killed", limit.unwrap_or_default().as_secs())
}

/// As [`timed_out`], of one that has not ended even so.
pub(super) fn unkillable(limit: Option<Duration>) -> String {
    let seconds = limit.unwrap_or_default().as_secs();
    format!("it did not end within {seconds} s, and not even when it was killed: a device does not answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: Bytes = Bytes(1 << 40);

    #[test]
    fn everything_but_work_on_all_data_has_a_limit() {
        for program in Program::ALL {
            assert!(of(Activity::Run(program), Bytes::ZERO).is_some_and(|limit| limit <= Duration::from_secs(3600)));
        }
        for work in [Activity::GrowXfs, Activity::LuksQuick, Activity::LuksKeys] {
            assert!(of(work, Bytes::ZERO).is_some());
        }
        for network in [Activity::ClevisEncrypt, Activity::ClevisDecrypt] {
            assert!(of(network, TIB).is_some_and(|limit| limit <= Duration::from_secs(60)));
        }
        assert_eq!(of(Activity::LuksData, TIB), None);
    }

    #[test]
    fn what_reads_or_writes_a_device_gets_more_time_for_a_larger_one() {
        for work in
            [Activity::Run(Program::MkfsXfs), Activity::Run(Program::ThinCheck), Activity::Run(Program::ThinRepair)]
        {
            assert!(of(work, TIB) > of(work, Bytes::ZERO));
        }
        // 16 GiB is the largest metadata of a thin pool.
        assert!(of(Activity::Run(Program::ThinCheck), Bytes(16 << 30)) > Some(Duration::from_secs(4 * 3600)));
        assert!(of(Activity::Run(Program::MkfsXfs), Bytes(u128::MAX)).is_some());
    }
}
