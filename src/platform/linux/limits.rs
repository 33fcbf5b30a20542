//! Time limits of programs and child processes: one table, by activity. This module knows neither
//! how they are run nor what happens at the limit.
//!
//! A limit keeps a hung program from holding its request for ever; it is not an estimate. Each is
//! far above what a slow disk and a busy machine need, because killing a program that was only slow
//! costs its user the request.

use std::time::Duration;

use crate::{base::units::Bytes, platform::Program};

/// What a child process does, as far as its limit depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// A program of [`Program`].
    Run(Program),
    /// Grows a mounted XFS.
    GrowXfs,
    /// Encrypts a passphrase with Clevis.
    ClevisEncrypt,
    /// Decrypts a passphrase with Clevis.
    ClevisDecrypt,
    /// Reads a LUKS2 header, or changes a table with a known volume key.
    LuksQuick,
    /// Derives keys from passphrases, or writes a header.
    LuksKeys,
    /// Rewrites all data of a LUKS device.
    LuksData,
}

/// A time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    /// For any device.
    seconds: u64,
    /// Added per GiB of the device.
    per_gib: u64,
}

/// Time after which a running program is logged. The program may continue.
pub(super) const NOTICE: Duration = Duration::from_secs(60);
/// How long to wait for a killed program. A program that has not exited by then waits in the kernel
/// for a device that does not answer, and exits when the device does, if ever.
pub(super) const KILLED: Duration = Duration::from_secs(2);

const fn limit(seconds: u64, per_gib: u64) -> Option<Limit> {
    Some(Limit { seconds, per_gib })
}

/// The table.
const fn row(activity: Activity) -> Option<Limit> {
    match activity {
        // Writes a log of up to 2 GiB and the headers of each allocation group; a slow disk takes 4
        // MiB/s.
        Activity::Run(Program::MkfsXfs) => limit(600, 1),
        // Clears the log and writes the headers of all allocation groups: as much as a format.
        Activity::Run(Program::XfsDb) => limit(600, 1),
        // Reads all metadata, in any order: 4 KiB at a time, 500 reads a second, each block about
        // twice.
        Activity::Run(Program::ThinCheck) => limit(300, 1200),
        // Reads as much as a check, and writes as much again.
        Activity::Run(Program::ThinRepair) => limit(600, 2400),
        // Computes a number.
        Activity::Run(Program::ThinMetadataSize) => limit(30, 0),
        // Writes the headers of the new allocation groups. In a full pool, writes wait 60 s for
        // space before they fail.
        Activity::GrowXfs => limit(300, 1),
        // Asks the servers of a configuration one after the other. A connection to a silent server
        // times out after some seconds; the exact time is not specified.
        Activity::ClevisEncrypt => limit(60, 0),
        // Asks servers in parallel, or the TPM, which takes a few seconds.
        Activity::ClevisDecrypt => limit(30, 0),
        // A few reads or writes; a disk may retry each for 30 s.
        Activity::LuksQuick => limit(120, 0),
        // Derives a key for each of up to 32 keyslots: some seconds each, more on a busy machine.
        // The wait for memory does not count.
        Activity::LuksKeys => limit(600, 0),
        // Takes hours or days. It reports its progress, and the daemon stops it.
        Activity::LuksData => None,
    }
}

/// The time limit of an activity on a device of this size; `None` for no limit.
pub(super) fn of(activity: Activity, size: Bytes) -> Option<Duration> {
    let gib = u64::try_from(size.0 >> 30).unwrap_or(u64::MAX).saturating_add(1);
    row(activity)
        .map(|Limit { seconds, per_gib }| Duration::from_secs(gib.saturating_mul(per_gib).saturating_add(seconds)))
}

/// Error text for a program that was killed at its limit.
pub(super) fn timed_out(limit: Option<Duration>) -> String {
    format!("it did not exit within {} s and was killed", limit.unwrap_or_default().as_secs())
}

/// Error text for a program that did not exit even when killed.
pub(super) fn unkillable(limit: Option<Duration>) -> String {
    let seconds = limit.unwrap_or_default().as_secs();
    format!("it did not exit within {seconds} s, not even when killed: a device does not respond")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: Bytes = Bytes(1 << 40);

    #[test]
    fn everything_but_rewriting_all_data_has_a_limit() {
        for program in Program::ALL {
            assert!(of(Activity::Run(program), Bytes::ZERO).is_some_and(|limit| limit <= Duration::from_secs(3600)));
        }
        for activity in [Activity::GrowXfs, Activity::LuksQuick, Activity::LuksKeys] {
            assert!(of(activity, Bytes::ZERO).is_some());
        }
        for network in [Activity::ClevisEncrypt, Activity::ClevisDecrypt] {
            assert!(of(network, TIB).is_some_and(|limit| limit <= Duration::from_secs(60)));
        }
        assert_eq!(of(Activity::LuksData, TIB), None);
    }

    #[test]
    fn larger_devices_get_more_time() {
        for activity in
            [Activity::Run(Program::MkfsXfs), Activity::Run(Program::ThinCheck), Activity::Run(Program::ThinRepair)]
        {
            assert!(of(activity, TIB) > of(activity, Bytes::ZERO));
        }
        // 16 GiB is the largest metadata of a thin pool.
        assert!(of(Activity::Run(Program::ThinCheck), Bytes(16 << 30)) > Some(Duration::from_secs(4 * 3600)));
        assert!(of(Activity::Run(Program::MkfsXfs), Bytes(u128::MAX)).is_some());
    }
}
