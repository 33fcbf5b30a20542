//! What the running daemon reports about its pools.
//!
//! This module must never depend on devices: the report is a text.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use super::{Diagnosis, system::System};
use crate::{base::ids::PoolUuid, tools::client};

const LIMIT: Duration = Duration::from_secs(20);
const MANAGER: &str = "org.storage.stratis3.Manager.r9";
/// The daemon's word for a pool without restrictions.
const UNRESTRICTED: &str = "fully_operational";

/// The pools that run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReportedPools(BTreeSet<PoolUuid>);

impl ReportedPools {
    /// Whether this pool runs.
    pub(super) fn contains(&self, pool: PoolUuid) -> bool {
        self.0.contains(&pool)
    }
}

/// Asks the daemon; `None` if it does not answer.
pub(super) fn check(system: &System, report: &mut Diagnosis) -> Option<ReportedPools> {
    if !system.is_live() {
        return None;
    }
    let answer = client::call(MANAGER, "EngineStateReport", LIMIT, |reply| {
        let (text, code, error): (String, u16, String) = reply.read3().map_err(|error| error.to_string())?;
        if code == 0 { Ok(text) } else { Err(error) }
    });
    match answer {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(state) => return Some(check_report(&state, report)),
            Err(error) => {
                report.unexamined("pool-restricted", format!("cannot read the report of the daemon: {error}"))
            }
        },
        Err(error) if error.is_denied() => {
            report.unexamined("pool-restricted", "only root may ask the daemon for its report");
        }
        Err(error) if error.is_absent() => report.warning(
            "daemon-silent",
            "stratisd does not run",
            "pools are not started, watched or extended",
            "systemctl start stratisd.service",
        ),
        Err(error) => report.unexamined("pool-restricted", format!("cannot ask the daemon: {error}")),
    }
    None
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Judges a report of the engine's state.
pub(super) fn check_report(state: &Value, report: &mut Diagnosis) -> ReportedPools {
    for pool in list(state, "pools") {
        let name = text(pool, "name");
        if text(pool, "available_actions") != UNRESTRICTED {
            let reason = match text(pool, "restriction") {
                "" => "the daemon gives no reason",
                reason => reason,
            };
            report.problem(
                "pool-restricted",
                format!("Pool {name} is restricted: {reason}"),
                "stratisd does not change it, or does not extend it when it fills up",
                format!("stop and start the pool, which checks it: stratis pool stop --name {name}"),
            );
        }
        for filesystem in list(pool, "filesystems_left_out") {
            report.problem(
                "filesystem-left-out",
                format!(
                    "Filesystem {} of pool {name} could not be set up: {}",
                    text(filesystem, "name"),
                    text(filesystem, "reason")
                ),
                "it cannot be mounted",
                "remove the cause, then stop and start the pool",
            );
        }
        if let Some(error) = pool.get("work").and_then(|work| work.get("error")).and_then(Value::as_str) {
            report.warning(
                "reencryption-stopped",
                format!("The re-encryption of pool {name} has stopped: {error}"),
                "the job has not reached a part of the data yet",
                "remove the cause; the job resumes when the pool is started again",
            );
        }
    }
    for pool in list(state, "stopped_pools") {
        check_stopped(pool, report);
    }
    for pool in list(state, "partially_constructed_pools") {
        report.problem(
            "pool-stopped",
            format!("Some devices of pool {} are set up, but it does not run{}", title(pool), reason(pool)),
            "its filesystems cannot be used",
            "stratis pool stop, then stratis pool start, with its UUID",
        );
    }
    for device in list(state, "devices_left_aside") {
        report.warning(
            "identity-duplicate",
            format!("{} is left aside: {}", text(device, "path"), text(device, "reason")),
            format!("it carries the signature of pool {}, which does not use it", text(device, "pool_uuid")),
            "disconnect it, or wipe its signature (wipefs) if it is not needed",
        );
    }
    let running = list(state, "pools").iter().filter_map(|pool| text(pool, "uuid").parse().ok());
    ReportedPools(running.collect())
}

fn check_stopped(pool: &Value, report: &mut Diagnosis) {
    report.warning(
        "pool-stopped",
        format!("Pool {} does not run{}", title(pool), reason(pool)),
        "its filesystems cannot be used",
        format!("remove the cause if there is one, then stratis pool start --uuid {}", text(pool, "pool_uuid")),
    );
}

fn title(pool: &Value) -> String {
    match text(pool, "name") {
        "" => text(pool, "pool_uuid").to_owned(),
        name => name.to_owned(),
    }
}

fn reason(pool: &Value) -> String {
    match text(pool, "reason") {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_part_of_a_report_is_judged() {
        let healthy = json!({ "name": "p", "available_actions": "fully_operational", "uuid": "0123456789abcdef0123456789abcdef" });
        let mut report = Diagnosis::default();
        let running = check_report(&json!({ "pools": [healthy], "stopped_pools": [] }), &mut report);
        assert!(report.findings().is_empty());
        assert!(running.contains("01234567-89ab-cdef-0123-456789abcdef".parse().unwrap()));
        let state = json!({
            "pools": [{
                "name": "p", "uuid": "u", "available_actions": "no_ipc_requests", "restriction": "needs_check",
                "filesystems_left_out": [{ "name": "f", "reason": "r" }],
                "work": { "error": "e" },
            }],
            "stopped_pools": [{ "pool_uuid": "1", "name": "q", "reason": "it was stopped" }],
            "partially_constructed_pools": [{ "pool_uuid": "2", "name": null }],
            "devices_left_aside": [{ "path": "/dev/a", "pool_uuid": "3", "reason": "older" }],
        });
        check_report(&state, &mut report);
        let ids: Vec<&str> = report.findings().iter().map(|finding| finding.id).collect();
        assert_eq!(
            ids,
            [
                "pool-restricted",
                "filesystem-left-out",
                "reencryption-stopped",
                "pool-stopped",
                "pool-stopped",
                "identity-duplicate"
            ]
        );
    }
}
