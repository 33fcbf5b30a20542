//! Devices to be initialized for a pool: whether they may be (`docs/spec/engine/storage-stack.md`
//! §12), and the LUKS devices that are made on them.

use std::{path::Path, sync::Arc};

use crate::{
    base::ids::PoolUuid,
    engine::{
        Engine,
        bda::{Bda, Repair},
        devices::Candidate,
        error::{Error, Result},
        luks_devices::device::LuksFormat,
        metadata::{HeaderFlags, PoolMetadata},
        plan::sizes::DEVICE_MIN,
        request::{Part, Step},
        undo::Rollback,
    },
    platform::{BlockDevice, DeviceClass},
};

/// Checks a device that is to be initialized for a pool. The caller has already found that the
/// device is not a member of that pool.
///
/// # Errors
/// The reason why the device must not be touched.
pub(super) fn examine(engine: &Engine, device: BlockDevice, target: Option<PoolUuid>) -> Result<Candidate> {
    let platform = engine.platform();
    let path = device.path.clone();
    // A device in use is reported last: the contents of the device explain best why it is in use.
    let hold = match platform.hold(&path) {
        Ok(hold) => Some(Arc::from(hold)),
        Err(error) if error.is_busy() => None,
        Err(error) => return Err(error.into()),
    };
    let foreign = |what: &str| Error::Foreign { path: path.clone(), what: what.to_owned() };
    match &device.class {
        DeviceClass::Stratis | DeviceClass::Unowned => {}
        DeviceClass::Luks => return Err(foreign("a LUKS volume")),
        DeviceClass::MultipathMember => {
            return Err(foreign("a path of a multipath device (name the multipath device instead)"));
        }
        DeviceClass::Other(what) => return Err(foreign(what)),
    }
    let contents = platform.contents(&path)?;
    if contents.partitions > 0 {
        return Err(foreign(&format!("a table of {} partitions", contents.partitions)));
    }
    if let Some(superblock) = contents.superblock.as_deref().filter(|kind| *kind != "stratis") {
        return Err(foreign(&format!("a {superblock} signature")));
    }
    let geometry = platform.geometry(&path)?;
    if geometry.read_only {
        return Err(Error::ReadOnly { path });
    }
    match Bda::load(platform, &path, Repair::ReadOnly)? {
        Some(bda) => {
            if !left_over(engine, &path, &bda)? {
                let pool = bda.header().pool;
                return Err(match target {
                    Some(target) if target == pool => Error::UnknownMember { path },
                    _ => Error::OwnedByPool { path, pool },
                });
            }
            log::info!("{} was left over by an unfinished request of pool {}", path.display(), bda.header().pool);
        }
        // If a fresh look finds no Stratis signature either, the device database is out of date:
        // the device has just been wiped.
        None if contents.superblock.is_some() => return Err(Error::NoSignature { path }),
        None => {}
    }
    if hold.is_none() {
        return Err(Error::InUse { path });
    }
    if geometry.size < DEVICE_MIN {
        return Err(Error::TooSmall { path, size: geometry.size, minimum: DEVICE_MIN });
    }
    Ok(Candidate { device, geometry, luks_device: None, hold })
}

/// Whether a device with a signature belongs to no pool all the same: either its initialization was
/// interrupted before its pool's metadata named it, or the destruction of its pool was interrupted
/// after it had been decided.
fn left_over(engine: &Engine, path: &Path, bda: &Bda) -> Result<bool> {
    let platform = engine.platform();
    let header = bda.header();
    match bda.read_json(platform, path)? {
        Some(json) if !is_condemned(bda, &json) => Ok(false),
        None if !header.flags.contains(HeaderFlags::UNCOMMITTED) => Ok(false),
        // Newer metadata on another device may name this one.
        _ => Ok(!engine.registry().lists(header.pool, header.device)),
    }
}

fn is_condemned(bda: &Bda, json: &[u8]) -> bool {
    let metadata = PoolMetadata::parse(json, bda.header().version).ok();
    metadata.zip(bda.last_update()).is_some_and(|(metadata, stamp)| metadata.is_condemned(stamp))
}

/// Turns each device into a LUKS device, side by side. Keys are derived for each of them, and
/// Clevis may be called. The platform limits the number of processes that derive keys at once, by
/// their memory. Returns the crypt devices, and the undo that removes the LUKS devices.
pub(super) fn format_each_luks(
    format: LuksFormat,
    candidates: Vec<Candidate>,
) -> Step<Result<(Vec<Candidate>, Rollback)>> {
    let format = Arc::new(format);
    let part = |candidate: Candidate| -> Part {
        let format = Arc::clone(&format);
        Box::new(move |engine| {
            let platform = engine.platform();
            let make = |undo: &mut Rollback| candidate.format_luks(platform, &format, undo);
            Box::new(engine.check_ending().and_then(|()| Rollback::new().guard(platform, make)))
        })
    };
    let parts = candidates.into_iter().map(part).collect();
    Step::Parallel(
        parts,
        Box::new(|engine, results| {
            let (mut inside, mut undo, mut failed) = (Vec::new(), Rollback::new(), Vec::new());
            for result in results {
                match result.map(|any| any.downcast::<Result<(Candidate, Rollback)>>()) {
                    Some(Ok(made)) => match *made {
                        Ok((candidate, others)) => {
                            inside.push(candidate);
                            undo.append(others);
                        }
                        Err(error) => failed.push(error),
                    },
                    _ => failed.push(Error::Panicked),
                }
            }
            // Report the first error, unless another one leaves more behind because it could not be
            // taken back.
            let worst = failed.into_iter().reduce(|a, b| if b.leaves() > a.leaves() { b } else { a });
            Step::Done(match worst {
                None => Ok((inside, undo)),
                Some(cause) => Err(undo.run(engine.platform(), cause)),
            })
        }),
    )
}
