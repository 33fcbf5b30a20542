//! Disks as other daemons leave them: the functions write them byte by byte, or change them while
//! the pool is stopped.

use std::path::{Path, PathBuf};

use serde_json::Value;
use stratisd::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::{DataBlocks, Sectors},
    },
    engine::{
        bda::{Bda, Repair},
        metadata::{
            MetadataVersion, PlannedWrite, StaticHeader,
            header::plan_initialize,
            mda::{Layout, Mda},
        },
    },
    platform::{
        DeviceNumber, Platform, Program, Timestamp, WriteStep,
        dm::{Line, Target, Visibility},
        sim::Sim,
    },
};

/// A device to write.
pub struct Device<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its UUID.
    pub uuid: &'a str,
    /// Its pool.
    pub pool: PoolUuid,
    /// Version of the metadata.
    pub version: MetadataVersion,
    /// Pool metadata on it.
    pub json: Option<&'a str>,
}

impl Device<'_> {
    /// Writes header and metadata. The writes are not part of the simulation's trace.
    pub fn put(&self, sim: &Sim) {
        let path = Path::new(self.path);
        let size = sim.geometry(path).unwrap().size;
        let device: DevUuid = self.uuid.parse().unwrap();
        let header = StaticHeader::new(self.pool, device, self.version, size, 1_700_000_000);
        let layout = Layout::new(header.mda_size).unwrap();
        let mut steps = Mda::plan_initialize(layout);
        if let Some(json) = self.json {
            let stamp = Timestamp { seconds: 1_700_000_001, nanoseconds: 5 };
            steps.extend(Mda::empty(layout).plan_write(json.as_bytes(), stamp).unwrap().steps);
        }
        steps.extend(plan_initialize(&header));
        for step in steps {
            if let PlannedWrite::At(offset, bytes) = step {
                sim.put(path, offset, &bytes).unwrap();
            }
        }
    }
}

/// The start and length of each part of a pool on its cap device.
pub struct Parts {
    /// First sector of the cap device on the disk.
    pub at: u64,
    /// The metadata volume.
    pub mdv: (u64, u64),
    /// The thin pool's metadata device.
    pub thin_meta: (u64, u64),
    /// The thin pool's data device.
    pub thin_data: (u64, u64),
}

/// Writes the contents of a new pool: an empty thin pool and a metadata volume. No device is active
/// afterwards.
pub fn put_contents(sim: &Sim, disk: &str, pool: PoolUuid, parts: &Parts) {
    let raw = sim.find_device(disk.as_ref()).unwrap().number;
    let part = |name: &str, (start, length): (u64, u64)| -> DeviceNumber {
        let line = Line::linear(Sectors::ZERO, Sectors(length), raw, Sectors(parts.at + start));
        sim.dm_create(name, name, &[line], Visibility::Private).unwrap()
    };
    let metadata = part("hand-meta", parts.thin_meta);
    sim.write(&sim.dm_node("hand-meta"), &[WriteStep::At(0, &[0; 4096]), WriteStep::Flush]).unwrap();
    let data = part("hand-data", parts.thin_data);
    let target = Target::ThinPool {
        metadata,
        data,
        block: Sectors(2048),
        low_water: DataBlocks(0),
        features: vec!["skip_block_zeroing".to_owned()],
    };
    let pool_line = Line { start: Sectors::ZERO, length: Sectors(parts.thin_data.1), target };
    sim.dm_create("hand-pool", "hand-pool", &[pool_line], Visibility::Private).unwrap();
    part("hand-mdv", parts.mdv);
    let node = sim.dm_node("hand-mdv");
    sim.run(Program::MkfsXfs, &["-f", &node.to_string_lossy(), "-m", &format!("uuid={}", pool.hyphenated())]).unwrap();
    for name in ["hand-pool", "hand-data", "hand-meta", "hand-mdv"] {
        sim.dm_remove(name).unwrap();
    }
}

/// The pool metadata on a disk.
pub fn json_on(sim: &Sim, path: &str) -> Value {
    let bda = Bda::load(sim, path.as_ref(), Repair::ReadOnly).unwrap().expect("a Stratis device");
    serde_json::from_slice(&bda.read_json(sim, path.as_ref()).unwrap().expect("it holds metadata")).unwrap()
}

/// Writes the newest pool metadata of a disk.
pub fn save(sim: &Sim, path: &str, json: &[u8]) {
    let path = PathBuf::from(path);
    let mut bda = Bda::load(sim, &path, Repair::ReadOnly).unwrap().expect("a Stratis device");
    let later = bda.last_update().map_or(1, |last| last.seconds + 1);
    bda.save(sim, &path, json, Timestamp { seconds: later, nanoseconds: 0 }).unwrap();
}

/// Records on a disk the decision to destroy the pool, as if the daemon were killed right
/// afterwards.
pub fn condemn(sim: &Sim, path: &str) {
    let bda = Bda::load(sim, path.as_ref(), Repair::ReadOnly).unwrap().expect("a Stratis device");
    let later = bda.last_update().map_or(1, |last| last.seconds + 1);
    change(sim, path, |json| {
        json["started"] = false.into();
        json["destroying"] = serde_json::json!([later, 0]);
    });
}

/// Changes the pool metadata on a disk.
pub fn change(sim: &Sim, path: &str, change: impl FnOnce(&mut Value)) {
    let mut json = json_on(sim, path);
    change(&mut json);
    save(sim, path, json.to_string().as_bytes());
}

/// Switches the machine off and on.
pub fn reboot(sim: &Sim) {
    sim.cut_power();
    sim.power_on();
}
