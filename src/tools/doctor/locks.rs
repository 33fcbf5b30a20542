//! Whether encrypted pools can be unlocked now: keys in the kernel keyring, and Tang servers.
//!
//! This module must never read a key, only whether it is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    time::Duration,
};

use super::{
    Diagnosis, Severity, daemon::ReportedPools, identity::DeviceEvidence, luks_tokens::UnlockWays, system::System,
};
use crate::{
    base::ids::PoolUuid,
    platform::{keyring::KEY_PREFIX, linux::needed},
};

const KEYS: &str = "/proc/keys";
/// The time limit of curl, and the limit after which curl is killed.
const TANG_SECONDS: &str = "5";
const TANG_LIMIT: Duration = Duration::from_secs(8);

pub(super) fn check(
    system: &System,
    devices: &[DeviceEvidence],
    running: Option<&ReportedPools>,
    report: &mut Diagnosis,
) {
    let mut pools: BTreeMap<PoolUuid, (String, UnlockWays)> = BTreeMap::new();
    for device in devices {
        let Some(pool) = device.pool.filter(|_| !device.locks.is_empty()) else { continue };
        let name = device.pool_name.clone().unwrap_or_else(|| pool.to_string());
        let (_, locks) = pools.entry(pool).or_insert_with(|| (name, UnlockWays::default()));
        locks.keys.extend(device.locks.keys.iter().cloned());
        locks.clevis.extend(device.locks.clevis.iter().cloned());
    }
    if pools.is_empty() {
        return;
    }
    check_keys(system, &pools, running, report);
    if system.is_live() {
        check_servers(&pools, report);
    }
}

/// Whether a pool has another unlock method or runs; then a finding is only a warning.
fn severity(pool: PoolUuid, others: bool, running: Option<&ReportedPools>) -> Severity {
    let runs = running.is_some_and(|running| running.contains(pool));
    if others || runs { Severity::Warning } else { Severity::Problem }
}

fn check_keys(
    system: &System,
    pools: &BTreeMap<PoolUuid, (String, UnlockWays)>,
    running: Option<&ReportedPools>,
    report: &mut Diagnosis,
) {
    if pools.values().all(|(_, locks)| locks.keys.is_empty()) {
        return;
    }
    let Some(listed) = system.text(KEYS) else {
        report.unexamined("key-missing", format!("cannot read {KEYS}"));
        return;
    };
    let present = present_keys(&listed);
    for (pool, (name, locks)) in pools {
        for key in &locks.keys {
            let state = match present.get(key.as_str()) {
                Some(false) => continue,
                Some(true) => "has expired",
                None => "is not in the kernel keyring",
            };
            let others =
                !locks.clevis.is_empty() || locks.keys.iter().any(|other| present.get(other.as_str()) == Some(&false));
            report.found(
                "key-missing",
                severity(*pool, others, running),
                format!("The key {key} {state}; pool {name} is bound to it"),
                "stratisd cannot unlock the pool with this key; the keyring is empty after each boot",
                format!("stratis key set --capture-key {key}"),
            );
        }
    }
}

/// The Stratis keys in the kernel's list, and whether each has expired. A line is `SERIAL
/// FLAGS USAGE TIMEOUT PERMISSIONS UID GID TYPE DESCRIPTION: SUMMARY`; the description may have
/// spaces.
fn present_keys(listed: &str) -> BTreeMap<&str, bool> {
    let key = |line| {
        let line: &str = line;
        let (head, rest) = line.split_once(KEY_PREFIX)?;
        let mut fields = head.split_whitespace();
        let expired = fields.nth(3)? == "expd";
        (fields.nth(3)? == "user").then_some(())?;
        let description = rest.rsplit_once(": ").map_or(rest, |(description, _)| description);
        Some((description, expired))
    };
    listed.lines().filter_map(key).collect()
}

fn check_servers(pools: &BTreeMap<PoolUuid, (String, UnlockWays)>, report: &mut Diagnosis) {
    let servers: BTreeSet<&str> = pools.values().flat_map(|(_, locks)| locks.servers()).collect();
    let addresses: Vec<String> = servers.iter().map(|server| format!("{}/adv", server.trim_end_matches('/'))).collect();
    let options = ["--silent", "--show-error", "--fail", "--max-time", TANG_SECONDS, "--output", "/dev/null", "--"];
    let commands: Vec<(&str, Vec<&OsStr>)> = addresses
        .iter()
        .map(|address| {
            let mut words = options.map(OsStr::new).to_vec();
            words.push(OsStr::new(address.as_str()));
            ("curl", words)
        })
        .collect();
    for (server, ran) in servers.into_iter().zip(needed::run_each(&commands, TANG_LIMIT)) {
        let why = match ran {
            Ok(Some(ran)) if ran.succeeded => continue,
            Ok(Some(ran)) => ran.errors,
            Ok(None) => format!("no answer within {} s", TANG_LIMIT.as_secs()),
            Err(error) => {
                report.unexamined("tang-unreachable", format!("cannot run curl to ask {server}: {error}"));
                continue;
            }
        };
        for (pool, (name, locks)) in
            pools.iter().filter(|(_, (_, locks))| locks.servers().any(|of_pool| of_pool == server))
        {
            let others = !locks.keys.is_empty() || locks.clevis.len() > 1;
            report.found(
                "tang-unreachable",
                severity(*pool, others, None),
                format!("The Tang server {server} does not answer ({why}); pool {name} is bound to it"),
                "it cannot unlock the pool at the next boot or start",
                "check the server and the network to it",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::present_keys;

    #[test]
    fn keys_are_read_from_the_kernels_list() {
        let listed = "0151abc4 I--Q---     3 perm 1f3f0000     0 65534 keyring   _uid.0: 1\n\
                      1a2b3c4d I--Q---     1 perm 3f010000     0     0 user      stratis-1-key-one: 12\n\
                      1a2b3c4e I--Q---     1 expd 3f010000     0     0 user      stratis-1-key-two words: 12\n\
                      1a2b3c4f I--Q---     1 perm 3f010000     0     0 logon     stratis-1-key-three: 64\n";
        let keys: Vec<(&str, bool)> = present_keys(listed).into_iter().collect();
        assert_eq!(keys, [("one", false), ("two words", true)]);
    }
}
