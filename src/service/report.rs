//! The reports: the published state as JSON text for people (`docs/spec/dbus/dbus-api.md` §4.3).
//! The format is not stable.
//!
//! This module knows only the published state, and the state of requests that its caller passes.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    base::{ids::PoolUuid, units::Sectors},
    service::{self, Holder, Locks, ReportedProgram},
    view::{
        DeviceTier, DeviceView, FailedFilesystemView, FilesystemView, JobPace, LeftAsideView, PoolView,
        ReencryptionJob, StoppedPoolView, StoppedPoolsView, View,
    },
};

const STOPPED_POOLS: &str = "stopped_pools";
/// An addition: the existing daemon has no such report.
const LOCKS: &str = "locks";
/// An addition: the number of events that udev has not answered in time.
const UNANSWERED: &str = "udev_events_unanswered";

/// There is no report with this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no report named {0}; use {STOPPED_POOLS} or {LOCKS}")]
pub struct NoSuchReport(String);

/// The reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Stopped pools.
    StoppedPools,
    /// The requests that hold pools, and those that wait.
    Locks,
    /// Everything about all pools, running (sorted by UUID) and stopped, and the requests at work
    /// on them.
    EngineState,
}

/// The report with this name.
///
/// # Errors
/// When there is none.
pub fn by_name(name: &str) -> Result<Report, NoSuchReport> {
    match name {
        STOPPED_POOLS => Ok(Report::StoppedPools),
        LOCKS => Ok(Report::Locks),
        _ => Err(NoSuchReport(name.to_owned())),
    }
}

/// Composes a report, and composes it again if the state changes before the report is sent. It
/// keeps the text of each pool for the next attempt, since composing one pool with ten thousand
/// filesystems takes longer than the time between changes.
pub struct Composer {
    report: Report,
    written: Vec<(Arc<PoolView>, String)>,
}

impl Composer {
    /// A composer of this report.
    pub fn new(report: Report) -> Composer {
        Composer { report, written: Vec::new() }
    }

    /// The report on this state.
    pub fn text(&mut self, view: &View, held: &Locks) -> String {
        match self.report {
            Report::StoppedPools => Value::Object(stopped(&view.stopped)).to_string(),
            Report::Locks => locks(held).to_string(),
            Report::EngineState => {
                let mut report = stopped(&view.stopped);
                report.insert(LOCKS.into(), locks(held));
                report.insert(UNANSWERED.into(), held.unanswered_udev_events.into());
                let mut text = Value::Object(report).to_string();
                // The pools are text already, so they replace the closing brace.
                text.pop();
                text.push_str(",\"pools\":[");
                self.write(view);
                let pools: Vec<&str> = self.written.iter().map(|(_, text)| text.as_str()).collect();
                text.push_str(&pools.join(","));
                text.push_str("]}");
                text
            }
        }
    }

    fn write(&mut self, view: &View) {
        let mut before = std::mem::take(&mut self.written).into_iter().peekable();
        for running in view.pools.values() {
            while before.next_if(|(known, _)| known.uuid < running.uuid).is_some() {}
            let known = before.next_if(|(known, _)| Arc::ptr_eq(known, running));
            let text = known.map_or_else(|| pool(running), |(_, text)| text);
            self.written.push((Arc::clone(running), text));
        }
    }
}

fn locks(held: &Locks) -> Value {
    let each = |list: &[Holder]| -> Value {
        let one = |Holder { request, access, age }: &Holder| json!({ "request": request, "access": access, "age_ms": age.as_millis() as u64 });
        list.iter().map(one).collect()
    };
    let program = |ReportedProgram { label, process, age, is_stuck }: &ReportedProgram| {
        let mut report = json!({ "program": label, "process": process, "age_ms": age.as_millis() as u64 });
        if *is_stuck {
            report["stuck"] =
                "it was killed at its time limit, and still waits for a device that does not answer".into();
        }
        report
    };
    json!({
        "holders": each(&held.holders),
        "waiters": each(&held.waiters),
        "programs": held.programs.iter().map(program).collect::<Value>(),
    })
}

fn or_not_set(text: Option<String>) -> String {
    text.unwrap_or_else(|| "Not set".into())
}

fn sectors(size: Option<Sectors>) -> String {
    or_not_set(size.map(|size| size.to_string()))
}

fn pool(pool: &PoolView) -> String {
    #[derive(Serialize)]
    struct TierReports<'a> {
        cachedevs: Vec<DeviceReport<'a>>,
        datadevs: Vec<DeviceReport<'a>>,
    }
    // The fields are in the order in which a map would have them.
    #[derive(Serialize)]
    struct PoolReport<'a> {
        available_actions: &'static str,
        blockdevs: TierReports<'a>,
        filesystems: Vec<FilesystemReport<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        filesystems_left_out: Vec<Value>,
        fs_limit: u64,
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        restriction: Option<&'a str>,
        uuid: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        work: Option<Value>,
    }
    let tier = |tier| pool.devices.values().filter(|device| device.tier == tier).map(|d| device(d)).collect();
    let failed = |FailedFilesystemView { uuid, name, reason }: &FailedFilesystemView| json!({ "uuid": uuid.hyphenated(), "name": name, "reason": reason });
    let report = PoolReport {
        available_actions: pool.availability.word(),
        blockdevs: TierReports { cachedevs: tier(DeviceTier::Cache), datadevs: tier(DeviceTier::Data) },
        filesystems: pool.filesystems.values().map(|f| filesystem(pool, f)).collect(),
        filesystems_left_out: pool.failed_filesystems.iter().map(failed).collect(),
        fs_limit: pool.fs_limit,
        name: pool.name.as_str(),
        restriction: pool.restriction.as_deref(),
        uuid: pool.uuid.hyphenated(),
        work: pool.reencryption.as_ref().map(|running| job(running)),
    };
    serde_json::to_string(&report).expect("texts and numbers can always be written")
}

/// A re-encryption job. Unknown values are left out.
fn job(job: &ReencryptionJob) -> Value {
    let pace = job.pace();
    let mut report = json!({ "kind": job.word(), "since": service::utc(job.since.seconds), "bytes_done": pace.done });
    let total = Some(pace.total).filter(|total| *total > 0);
    let pace = if job.error.is_none() { pace } else { JobPace::default() };
    let known = [("bytes_total", total), ("bytes_per_second", pace.per_second), ("seconds_left", pace.seconds_left)];
    for (name, value) in known {
        if let Some(value) = value {
            report[name] = value.into();
        }
    }
    if let Some(error) = &job.error {
        report["error"] = (**error).into();
    }
    report
}

#[derive(Serialize)]
struct FilesystemReport<'a> {
    /// Present only if it cannot be derived from the names, because udev would change them.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    name: &'a str,
    origin: String,
    size: String,
    size_limit: String,
    used: String,
    uuid: String,
}

fn filesystem<'a>(pool: &PoolView, filesystem: &'a FilesystemView) -> FilesystemReport<'a> {
    let is_altered = filesystem.name.former_link_in(&pool.name).is_some();
    FilesystemReport {
        link: is_altered.then(|| filesystem.name.link_in(&pool.name).to_string_lossy().into_owned()),
        name: filesystem.name.as_str(),
        origin: or_not_set(filesystem.origin.map(|origin| origin.hyphenated())),
        size: filesystem.size.to_string(),
        size_limit: sectors(filesystem.size_limit),
        used: or_not_set(filesystem.used.map(|used| used.to_string())),
        uuid: filesystem.uuid.hyphenated(),
    }
}

#[derive(Serialize)]
struct DeviceReport<'a> {
    blksizes: String,
    in_use: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_size: Option<String>,
    path: std::borrow::Cow<'a, str>,
    size: String,
    uuid: String,
}

fn device(device: &DeviceView) -> DeviceReport<'_> {
    let (logical, physical) = device.sector_bytes;
    DeviceReport {
        blksizes: format!("logical {logical} bytes, physical {physical} bytes"),
        in_use: device.in_use,
        new_size: device.new_size.map(|size| size.to_string()),
        path: device.physical.to_string_lossy(),
        size: device.size.to_string(),
        uuid: device.uuid.hyphenated(),
    }
}

fn stopped(stopped: &StoppedPoolsView) -> Map<String, Value> {
    let list = |partial: bool| {
        stopped.pools().values().filter(move |pool| pool.partial == partial).map(|pool| stopped_pool(pool))
    };
    let mut paths = Map::new();
    let mut names: Map<String, Value> = Map::new();
    for pool in stopped.pools().values() {
        let uuid = pool.uuid.hyphenated();
        for (path, device) in &pool.devices {
            paths.insert(path.to_string_lossy().into_owned(), json!([uuid, device.hyphenated()]));
        }
        if let Some(name) = &pool.name {
            // If several pools have one name, the entry lists all of them.
            let entry = match names.remove(name.as_str()) {
                None => Value::from(uuid),
                Some(Value::Array(mut several)) => {
                    several.push(uuid.into());
                    several.into()
                }
                Some(other) => json!([other, uuid]),
            };
            names.insert(name.as_str().to_owned(), entry);
        }
    }
    let left_aside =
        stopped.left_aside.iter().flat_map(|(pool, devices)| devices.iter().map(|device| left_aside(*pool, device)));
    Map::from_iter([
        (STOPPED_POOLS.to_owned(), list(false).collect()),
        ("partially_constructed_pools".to_owned(), list(true).collect()),
        ("path_to_ids_map".to_owned(), paths.into()),
        ("name_to_pool_uuid_map".to_owned(), names.into()),
        ("devices_left_aside".to_owned(), left_aside.collect()),
    ])
}

/// An addition: devices with the signature of a pool, running or not, that the pool does not use.
fn left_aside(pool: PoolUuid, device: &LeftAsideView) -> Value {
    json!({
        "pool_uuid": pool.hyphenated(),
        "path": device.path.to_string_lossy(),
        "uuid": device.device.hyphenated(),
        "reason": &*device.reason,
    })
}

fn stopped_pool(pool: &StoppedPoolView) -> Value {
    let device = |(path, uuid): &(std::path::PathBuf, crate::base::ids::DevUuid)| json!({ "path": path.to_string_lossy(), "uuid": uuid.hyphenated() });
    let mut report = json!({
        "pool_uuid": pool.uuid.hyphenated(),
        "name": pool.name.as_ref().map(|name| name.as_str()),
        "devices": pool.devices.iter().map(device).collect::<Value>(),
    });
    if let Some(reason) = &pool.reason {
        report["reason"] = Value::from(&**reason);
    }
    report
}
