//! `stratisd-tools doctor`: finds what would keep a system from booting or from starting its pools,
//! and says what to do about it (docs/doctor.md).
//!
//! Each check examines the [`System`] and adds its findings to the [`Diagnosis`], and also what it
//! cannot examine. The doctor must never change anything, and must never wait without a time limit.

mod boot;
mod daemon;
mod identity;
mod installed;
mod locks;
mod luks_tokens;
mod system;
mod units;

use std::{fmt::Write, path::PathBuf};

use serde::Serialize;

use self::system::System;

/// What is examined.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The root of the system. If it is not `/`, checks that need the running system are left out.
    pub root: PathBuf,
    /// Devices or images to examine instead of those of the system.
    pub devices: Vec<PathBuf>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something will not work as it should.
    Warning,
    /// Something will not boot or not start.
    Problem,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name for scripts, one of [`CHECKS`].
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    #[serde(rename = "do")]
    pub remedy: String,
}

/// Something that could not be examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unexamined {
    /// The check, one of [`CHECKS`].
    pub id: &'static str,
    /// Why not.
    pub why: String,
}

/// Names of all checks, with what a finding of each says.
pub const CHECKS: &[(&str, &str)] = &[
    ("program-missing", "a program that the daemon runs is not installed"),
    ("module-missing", "the kernel lacks a target or a filesystem"),
    ("udev-rules-missing", "rules or helpers of udev are not installed"),
    ("bus-policy-missing", "the bus does not let the daemon own its name"),
    ("unit-missing", "a unit of systemd is not installed, or masked"),
    ("unit-disabled", "nothing starts the daemon at boot"),
    ("unit-failed", "a unit has failed"),
    ("fstab-option-missing", "a line of fstab waits for a pool that nothing starts in time"),
    ("fstab-option-wrong", "an option of a line of fstab names no pool, or needs another option"),
    ("kernel-parameter-missing", "the root filesystem is on a pool that the initramfs is not told to start"),
    ("initramfs-incomplete", "the root filesystem is on a pool that the initramfs cannot start"),
    ("signature-damaged", "one or both copies of a signature block cannot be used"),
    ("metadata-damaged", "the metadata of a device cannot be read, or contradicts itself"),
    ("identity-duplicate", "several devices, or pools, have one identity or name"),
    ("device-missing", "a device that a pool needs was not found"),
    ("pool-stopped", "a pool does not run"),
    ("pool-restricted", "a pool does not allow changes, as after an error or with needs_check"),
    ("filesystem-left-out", "a filesystem could not be set up"),
    ("reencryption-stopped", "a re-encryption job was stopped by an error"),
    ("key-missing", "a key that a pool is bound to is not in the kernel keyring, or has expired"),
    ("tang-unreachable", "a Tang server that a pool is bound to does not answer"),
    ("daemon-silent", "the daemon does not answer"),
];

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
pub struct Diagnosis {
    findings: Vec<Finding>,
    unexamined: Vec<Unexamined>,
}

impl Diagnosis {
    fn found(
        &mut self,
        id: &'static str,
        severity: Severity,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        debug_assert!(CHECKS.iter().any(|(known, _)| *known == id), "{id} is not documented");
        let finding = Finding { id, severity, what: what.into(), why: why.into(), remedy: remedy.into() };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn problem(
        &mut self,
        id: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.found(id, Severity::Problem, what, why, remedy);
    }

    fn warning(
        &mut self,
        id: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.found(id, Severity::Warning, what, why, remedy);
    }

    fn unexamined(&mut self, id: &'static str, why: impl Into<String>) {
        debug_assert!(CHECKS.iter().any(|(known, _)| *known == id), "{id} is not documented");
        self.unexamined.push(Unexamined { id, why: why.into() });
    }

    /// What was found, the worst first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What could not be examined.
    pub fn left_out(&self) -> &[Unexamined] {
        &self.unexamined
    }

    /// The exit status of the program.
    pub fn exit_status(&self) -> u8 {
        match self.findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Problem) => 2,
            Some(Severity::Warning) => 1,
            None if !self.unexamined.is_empty() => 3,
            None => 0,
        }
    }

    /// The report for programs.
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("texts can always be written");
        text + "\n"
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { id, severity, what, why, remedy } in &self.findings {
            let word = match severity {
                Severity::Problem => "problem",
                Severity::Warning => "warning",
            };
            let _ = writeln!(text, "{word}: {what} [{id}]\n    Why it matters: {why}\n    What to do: {remedy}\n");
        }
        for Unexamined { id, why } in &self.unexamined {
            let _ = writeln!(text, "not examined: {id}: {why}");
        }
        if self.findings.is_empty() {
            text.push_str("Nothing was found that keeps this system from booting or from starting its pools.\n");
        }
        text
    }
}

/// Examines a system.
pub fn examine(scope: &Scope) -> Diagnosis {
    let system = System::new(scope);
    let mut report = Diagnosis::default();
    let devices = identity::read(&system, &mut report);
    let fstab = boot::read_fstab(&system, &mut report);
    installed::check(&system, &devices, &mut report);
    units::check(&system, &fstab, !devices.is_empty(), &mut report);
    boot::check(&system, &fstab, &mut report);
    identity::check(&devices, &mut report);
    let running = daemon::check(&system, &mut report);
    if running.is_none() {
        identity::check_stopped(&devices, &mut report);
    }
    locks::check(&system, &devices, running.as_ref(), &mut report);
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides_the_status() {
        let mut report = Diagnosis::default();
        assert_eq!(report.exit_status(), 0);
        report.unexamined("module-missing", "a");
        assert_eq!(report.exit_status(), 3);
        report.warning("unit-disabled", "a", "b", "c");
        assert_eq!(report.exit_status(), 1);
        report.problem("unit-missing", "a", "b", "c");
        assert_eq!(report.exit_status(), 2);
    }
}
