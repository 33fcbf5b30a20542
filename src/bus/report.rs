//! The reports: the published state as JSON text for people (`spec/dbus/dbus-api.md` §4.3). Its shape is not stable.
//!
//! Knows nothing that is not in the published state, or told of the requests under way.

use serde_json::{Map, Value, json};

use crate::{
    bus::{
        job::{Holder, Locks},
        properties,
    },
    engine::units::Sectors,
    view::{Device, Filesystem, LeftOut, Pace, Pool, Stopped, StoppedPool, Tier, View, Work},
};

const STOPPED_POOLS: &str = "stopped_pools";
/// Ours: the existing daemon has no such report.
const LOCKS: &str = "locks";

/// There is no report of that name.
#[derive(Debug, thiserror::Error)]
#[error("there is no report named {0}; there are {STOPPED_POOLS} and {LOCKS}")]
pub struct NoSuchReport(String);

/// Makes a report.
pub type Report = fn(&View, &Locks) -> String;

/// The report of that name.
///
/// # Errors
/// When there is none.
pub fn by_name(name: &str) -> Result<Report, NoSuchReport> {
    match name {
        STOPPED_POOLS => Ok(|view, _| Value::Object(stopped(&view.stopped)).to_string()),
        LOCKS => Ok(|_, held| locks(held).to_string()),
        _ => Err(NoSuchReport(name.to_owned())),
    }
}

/// Everything about all pools, running (sorted by UUID) and stopped, and who is at work on them.
pub fn engine_state(view: &View, held: &Locks) -> String {
    let mut report = stopped(&view.stopped);
    report.insert("pools".into(), view.pools.values().map(|running| pool(running)).collect());
    report.insert(LOCKS.into(), locks(held));
    Value::Object(report).to_string()
}

fn locks(held: &Locks) -> Value {
    let each = |list: &[Holder]| -> Value {
        let one = |Holder { request, access, age }: &Holder| json!({ "request": request, "access": access, "age_ms": age.as_millis() as u64 });
        list.iter().map(one).collect()
    };
    json!({ "holders": each(&held.holders), "waiters": each(&held.waiters) })
}

fn or_not_set(text: Option<String>) -> String {
    text.unwrap_or_else(|| "Not set".into())
}

fn sectors(size: Option<Sectors>) -> String {
    or_not_set(size.map(|size| size.to_string()))
}

fn pool(pool: &Pool) -> Value {
    let tier = |tier| pool.devices.values().filter(|device| device.tier == tier).map(|d| device(d)).collect::<Value>();
    let mut report = json!({
        "uuid": pool.uuid.hyphenated(),
        "name": pool.name.as_str(),
        "available_actions": pool.availability.word(),
        "fs_limit": pool.fs_limit,
        "filesystems": pool.filesystems.values().map(|f| filesystem(pool, f)).collect::<Value>(),
        "blockdevs": { "datadevs": tier(Tier::Data), "cachedevs": tier(Tier::Cache) },
    });
    if let Some(reason) = &pool.restriction {
        report["restriction"] = Value::from(&**reason);
    }
    if !pool.left_out.is_empty() {
        let one = |LeftOut { uuid, name, reason }: &LeftOut| json!({ "uuid": uuid.hyphenated(), "name": name, "reason": reason });
        report["filesystems_left_out"] = pool.left_out.iter().map(one).collect();
    }
    if let Some(under_way) = &pool.work {
        report["work"] = work(under_way);
    }
    report
}

/// A work on all data of a pool: what is not known yet is left out.
fn work(work: &Work) -> Value {
    let pace = work.pace();
    let mut report =
        json!({ "kind": work.word(), "since": properties::time(work.since.seconds), "bytes_done": pace.done });
    let total = Some(pace.total).filter(|total| *total > 0);
    let pace = if work.halted.is_none() { pace } else { Pace::default() };
    let known = [("bytes_total", total), ("bytes_per_second", pace.per_second), ("seconds_left", pace.seconds_left)];
    for (name, value) in known {
        if let Some(value) = value {
            report[name] = value.into();
        }
    }
    if let Some(why) = &work.halted {
        report["halted"] = (**why).into();
    }
    report
}

fn filesystem(pool: &Pool, filesystem: &Filesystem) -> Value {
    let mut report = json!({
        "name": filesystem.name.as_str(),
        "uuid": filesystem.uuid.hyphenated(),
        "size": filesystem.size.to_string(),
        "used": or_not_set(filesystem.used.map(|used| used.to_string())),
        "size_limit": sectors(filesystem.size_limit),
        "origin": or_not_set(filesystem.origin.map(|origin| origin.hyphenated())),
    });
    // Only where it does not follow from the names, because udev would change them.
    if filesystem.name.former_link_in(&pool.name).is_some() {
        report["link"] = filesystem.name.link_in(&pool.name).to_string_lossy().into();
    }
    report
}

fn device(device: &Device) -> Value {
    let mut report = json!({
        "uuid": device.uuid.hyphenated(),
        "path": device.physical.to_string_lossy(),
        "size": device.size.to_string(),
        "in_use": device.in_use,
        "blksizes": format!("logical {} bytes, physical {} bytes", device.sector_bytes.0, device.sector_bytes.1),
    });
    if let Some(size) = device.new_size {
        report["new_size"] = Value::from(size.to_string());
    }
    report
}

fn stopped(stopped: &Stopped) -> Map<String, Value> {
    let list = |partial: bool| stopped.pools.iter().filter(move |pool| pool.partial == partial).map(stopped_pool);
    let mut paths = Map::new();
    let mut names: Map<String, Value> = Map::new();
    for pool in &stopped.pools {
        let uuid = pool.uuid.hyphenated();
        for (path, device) in &pool.devices {
            paths.insert(path.to_string_lossy().into_owned(), json!([uuid, device.hyphenated()]));
        }
        if let Some(name) = &pool.name {
            // A name that several pools have gives the list of them.
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
    Map::from_iter([
        (STOPPED_POOLS.to_owned(), list(false).collect()),
        ("partially_constructed_pools".to_owned(), list(true).collect()),
        ("path_to_ids_map".to_owned(), paths.into()),
        ("name_to_pool_uuid_map".to_owned(), names.into()),
    ])
}

fn stopped_pool(pool: &StoppedPool) -> Value {
    let device = |(path, uuid): &(std::path::PathBuf, crate::engine::ids::DevUuid)| json!({ "path": path.to_string_lossy(), "uuid": uuid.hyphenated() });
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
