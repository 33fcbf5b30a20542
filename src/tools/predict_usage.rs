//! `stratis-predict-usage`: predicts how much space a pool or filesystem will use
//! (`docs/spec/tools/utilities.md` §2). The space of a pool is what the engine plans
//! ([`prediction`]).
//!
//! This module must never depend on a device: it knows sizes only.

use serde::Serialize;

use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    cli::stratis_predict_usage::{FilesystemArguments, PoolArguments, Predicted, TagBits},
    engine::{
        self,
        metadata::{IntegritySpec, TagSpec},
        plan::sizes,
        prediction::{self, PoolSpace, Refused},
    },
    platform::{Program, linux},
};

/// Smallest filesystem, in bytes.
const FILESYSTEM_MIN: u128 = 512 << 20;
/// The first size that the table of overheads does not cover, in bytes.
const FILESYSTEM_END: u128 = 1 << 55;
/// Space that a new XFS takes in a pool, in bytes, by the power of two of its size: 512 MiB, 1 GiB,
/// 2 GiB and so on. Between two powers the greater one counts.
const OVERHEAD: [u128; 27] = [
    20_971_520,
    20_971_520,
    22_020_096,
    23_068_672,
    23_068_672,
    31_457_280,
    34_603_008,
    51_380_224,
    84_934_656,
    152_043_520,
    286_261_248,
    571_473_920,
    1_108_344_832,
    2_171_600_896,
    2_171_600_896,
    2_171_600_896,
    2_171_600_896,
    2_205_155_328,
    2_273_312_768,
    2_407_530_496,
    2_675_965_952,
    3_212_836_864,
    4_286_578_688,
    6_434_062_336,
    10_729_029_632,
    19_318_964_224,
    36_498_833_408,
];
/// The power of two of the first entry of [`OVERHEAD`].
const FIRST_POWER: u32 = 29;

/// Why there is no prediction. The program prints the `Debug` form, since scripts know it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpredictable {
    /// There can be no such pool or filesystem.
    #[error("PredictError({0:?})")]
    Impossible(String),
    /// The prediction failed, or an argument is wrong.
    #[error("Msg({0:?})")]
    Failed(String),
}

fn impossible(text: impl Into<String>) -> Unpredictable {
    Unpredictable::Impossible(text.into())
}

/// The prediction for filesystems.
#[derive(Serialize)]
struct FilesystemSpace {
    used: String,
}

/// The prediction for a pool, with the keys in alphabetical order.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PoolPrediction {
    free: String,
    stratis_admin_space: String,
    stratis_metadata_space: String,
    total: String,
    used: String,
}

/// The line of JSON that answers a command line. `thin_metadata_size` runs the program of that name
/// and returns its output.
///
/// # Errors
/// If there can be no such pool or filesystem.
pub fn predict(
    what: &Predicted,
    thin_metadata_size: impl FnOnce(&[String]) -> engine::Result<String>,
) -> Result<String, Unpredictable> {
    match what {
        Predicted::Filesystem(FilesystemArguments { no_overprovision, filesystem_size }) => {
            let used = filesystems(filesystem_size, *no_overprovision)?.to_string();
            Ok(line(&FilesystemSpace { used }))
        }
        Predicted::Pool(pool) => predict_pool(pool, thin_metadata_size),
    }
}

fn line(prediction: &impl Serialize) -> String {
    serde_json::to_string(prediction).expect("a struct of texts has a JSON form")
}

/// Space that new filesystems take.
fn filesystems(filesystem_bytes: &[u128], whole: bool) -> Result<u128, Unpredictable> {
    for size in filesystem_bytes {
        if !(FILESYSTEM_MIN..FILESYSTEM_END).contains(size) {
            return Err(impossible(format!("Specified filesystem size {size} bytes is not within allowed limits.")));
        }
        if !size.is_multiple_of(u128::from(SECTOR)) {
            let text = format!("Specified filesystem size {size} bytes is not a multiple of sector size, {SECTOR}.");
            return Err(impossible(text));
        }
    }
    let taken = |size: &u128| match whole {
        true => *size,
        false => OVERHEAD[(size.ilog2() + 1 - FIRST_POWER) as usize],
    };
    // Each is at most 2^55, and 2^72 arguments do not fit into memory.
    Ok(filesystem_bytes.iter().map(taken).sum())
}

fn predict_pool(
    pool: &PoolArguments,
    thin_metadata_size: impl FnOnce(&[String]) -> engine::Result<String>,
) -> Result<String, Unpredictable> {
    let of_filesystems = filesystems(&pool.filesystem_size, pool.no_overprovision)?;
    let integrity = integrity(pool)?;
    let whole_sectors = |size: &u128| {
        Bytes(size / u128::from(SECTOR) * u128::from(SECTOR))
            .sectors()
            .ok_or_else(|| impossible(format!("Specified device size {size} bytes is larger than any device can be.")))
    };
    let devices = pool.device_size.iter().map(whole_sectors).collect::<Result<Vec<Sectors>, _>>()?;
    let space =
        prediction::pool_space(&devices, integrity, pool.filesystem_size.len(), thin_metadata_size).map_err(refused)?;
    log_deductions(&devices, integrity, &space);
    let free = space
        .free()
        .bytes()
        .0
        .checked_sub(of_filesystems)
        .ok_or_else(|| impossible("Filesystems will take up too much space on specified pool."))?;
    let total = space.total.bytes().0;
    Ok(line(&PoolPrediction {
        free: free.to_string(),
        stratis_admin_space: space.admin.bytes().0.to_string(),
        stratis_metadata_space: space.total.saturating_sub(space.usable).bytes().0.to_string(),
        total: total.to_string(),
        used: (total - free).to_string(),
    }))
}

fn integrity(pool: &PoolArguments) -> Result<IntegritySpec, Unpredictable> {
    let journal_bytes = pool.integrity_journal_size;
    let wrong = || {
        Unpredictable::Failed(format!(
            "specified integrity journal size {journal_bytes} bytes is not a multiple of 4096"
        ))
    };
    let journal_size = journal_bytes.is_multiple_of(SECTOR).then_some(Sectors(journal_bytes / SECTOR));
    let spec = IntegritySpec {
        tag_spec: match pool.integrity_tag_spec {
            TagBits::B0 => TagSpec::B0,
            TagBits::B32 => TagSpec::B32,
            TagBits::B512 => TagSpec::B512,
        },
        journal_size: journal_size.ok_or_else(wrong)?,
        allocate_superblock: !pool.no_integrity_superblock,
        ..IntegritySpec::default()
    };
    sizes::check_integrity_spec(&spec).map_err(|_| wrong())?;
    Ok(spec)
}

fn refused(refused: Refused) -> Unpredictable {
    match refused {
        Refused::Devices(_) => impossible("Some device sizes too small for DM metadata."),
        Refused::NoSpace => impossible("Sum of all device sizes too small for a Stratis pool."),
        Refused::DeviceTooSmall(size) => impossible(format!(
            "Some device sizes too small: stratisd takes no device of {}, which is less than {}.",
            size.readable(),
            sizes::DEVICE_MIN.readable()
        )),
        Refused::ThinMetadata(error) => {
            Unpredictable::Failed(format!("thin_metadata_size failed: {}", error.sentence()))
        }
    }
}

/// Runs thin_metadata_size.
///
/// # Errors
/// If the program is missing or fails.
pub fn run_thin_metadata_size(arguments: &[String]) -> engine::Result<String> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(linux::run_program(Program::ThinMetadataSize, &arguments)?)
}

fn log_deductions(devices: &[Sectors], integrity: IntegritySpec, space: &PoolSpace) {
    for size in devices {
        let reserved = sizes::integrity_reservation(*size, &integrity).unwrap_or_default();
        log::info!("device of {size}: {reserved} are for integrity data, 8192 sectors for Stratis metadata");
    }
    log::info!("all devices: {}; after these deductions and that for a LUKS2 header: {}", space.total, space.usable);
    log::info!("thin metadata, its spare and the metadata volume: {}", space.admin);
}
