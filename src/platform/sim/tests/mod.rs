//! Promises of the simulated machine to its users. `dm`: devices and tables; `thin`: thin pools;
//! `power`: write caches and power cuts; `files`: file systems and programs; `steps`: faults,
//! gates, repeatability; `world`: disks and udev; `luks`: LUKS2 devices; `reencrypt`: re-encryption
//! jobs; `clevis`: Tang servers and the TPM.

mod clevis;
mod dm;
mod files;
mod luks;
mod power;
mod reencrypt;
mod steps;
mod thin;
mod world;

use std::{path::Path, time::Duration};

use super::Sim;
use crate::{
    base::units::{DataBlocks, Sectors},
    platform::{
        DeviceNumber, Error, Platform, WriteStep,
        dm::{Line, Target, Visibility},
    },
};

/// Longest wait for something that must happen. Never reached in a passing test.
const LIMIT: Duration = Duration::from_secs(30);

/// Bytes per data block in these tests.
const BLOCK: u64 = 1 << 20;

/// Sectors of `/dev/a`, on which the stack lies: 4 MiB of metadata, then data.
const METADATA: Sectors = Sectors(8192);

fn linear(device: DeviceNumber, offset: u64, length: u64) -> Vec<Line> {
    vec![Line::linear(Sectors(0), Sectors(length), device, Sectors(offset))]
}

fn number(sim: &Sim, path: &str) -> DeviceNumber {
    sim.find_device(Path::new(path)).unwrap().number
}

fn create(sim: &Sim, name: &str, table: &[Line]) -> DeviceNumber {
    sim.dm_create(name, name, table, Visibility::Private).unwrap()
}

fn errno(result: Result<impl Sized, Error>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(Error::Busy { .. }) => nix::libc::EBUSY,
        Err(error) => error.errno().unwrap_or_else(|| panic!("no errno: {error:?}")),
    }
}

fn pool_table(metadata: DeviceNumber, data: DeviceNumber, blocks: u64, low_water: u64, features: &str) -> Vec<Line> {
    let target = Target::ThinPool {
        metadata,
        data,
        block: Sectors(2048),
        low_water: DataBlocks(low_water),
        features: features.split_ascii_whitespace().map(str::to_owned).collect(),
    };
    vec![Line { start: Sectors(0), length: Sectors(blocks * 2048), target }]
}

fn thin_table(pool: DeviceNumber, id: u32, length: u64) -> Vec<Line> {
    vec![Line { start: Sectors(0), length: Sectors(length), target: Target::Thin { pool, id } }]
}

/// A stack `meta`, `data`, `pool` on `/dev/a` with this many blocks of 1 MiB; the low-water mark is
/// one block.
fn stack(sim: &Sim, blocks: u64, features: &str) -> DeviceNumber {
    let disk = number(sim, "/dev/a");
    let metadata = create(sim, "meta", &linear(disk, 0, METADATA.0));
    let data = create(sim, "data", &linear(disk, METADATA.0, blocks * 2048));
    create(sim, "pool", &pool_table(metadata, data, blocks, 1, features))
}

/// Creates a thin device `NAME` with the given id in the pool.
fn thin(sim: &Sim, pool: DeviceNumber, name: &str, id: u32) -> DeviceNumber {
    sim.dm_message("pool", &format!("create_thin {id}")).unwrap();
    sim.dm_create(name, name, &thin_table(pool, id, 1 << 31), Visibility::Public).unwrap()
}

fn write(sim: &Sim, name: &str, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    sim.write(&sim.dm_node(name), &[WriteStep::At(offset, bytes)])
}

fn flush(sim: &Sim, name: &str) {
    sim.write(&sim.dm_node(name), &[WriteStep::Flush]).unwrap();
}

fn read(sim: &Sim, name: &str, offset: u64, length: usize) -> Vec<u8> {
    sim.read(&sim.dm_node(name), offset, length).unwrap()
}
