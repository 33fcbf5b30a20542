//! Recovery of a re-encryption job that was killed within a step, while the device is in use.
//!
//! While the library works, the crypt device NAME maps to NAME-overlay, whose table says how each
//! range is encrypted. In that table the hot zone lies on NAME-hotzone-…, *already with the new
//! key*, and that device is suspended: I/O to the hot zone waits in it until the data matches the
//! table. If the job is killed now, that I/O waits for ever. It must not be released before the
//! step is complete, because it has been encrypted with the new key already. The library completes
//! a step only on a device that is not in use. So the child gives the library another device for
//! the same disk, which is not in use.
//!
//! This module knows device-mapper tables and headers, but not who uses the data.

use std::path::Path;

use libcryptsetup_rs::consts::{flags::CryptReencrypt, vals::CryptReencryptModeInfo};

use super::{
    device::LoadedLuksDevice,
    fault::{LuksFault, Result, with_key},
    header::DataSegment,
    steps::{parameters, steps},
    table::{foreign, number, table},
};
use crate::{
    base::units::Sectors,
    platform::{
        dm::{Device, Line, Target, Visibility},
        linux::{dm::Mapper, mapper_nodes},
        luks::DataEncryption,
    },
};

/// The devices of a job.
struct JobDeviceNames {
    overlay: String,
    hotzones: [String; 2],
    /// The child's own device, for completing a step.
    other: String,
}

impl JobDeviceNames {
    fn of(name: &str) -> JobDeviceNames {
        JobDeviceNames {
            overlay: format!("{name}-overlay"),
            hotzones: ["forward", "backward"].map(|direction| format!("{name}-hotzone-{direction}")),
            other: format!("{name}-completion"),
        }
    }
}

/// Whether a job has left devices behind.
pub(super) fn is_needed(name: &str) -> Result<bool> {
    let mapper = Mapper::open()?;
    let names = JobDeviceNames::of(name);
    for left in names.hotzones.iter().chain([&names.overlay, &names.other]) {
        if mapper.find(left)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Completes the step that was cut short, makes the crypt device serve all data by itself, and
/// removes the other devices.
pub(super) fn repair(device: &Path, name: &str, passphrase: &[u8]) -> Result<()> {
    let mapper = Mapper::open()?;
    let names = JobDeviceNames::of(name);
    let overlay = mapper.find(&names.overlay)?;
    let half_written = half_written(&mut LoadedLuksDevice::load(device)?)?;
    let mut completed = Ok(());
    for hotzone in &names.hotzones {
        let Some(found) = mapper.find(hotzone)? else { continue };
        if let Some(stalled) = stalled_range(overlay.as_ref(), &found).or(half_written) {
            completed = complete(&mapper, &names, device, passphrase, stalled);
            if completed.is_err() && found.suspended {
                // The waiting I/O must end, and can succeed neither with the old key nor with the
                // new one, so it is made to fail.
                let length = Sectors(found.table.iter().map(|line| line.length.0).sum());
                mapper.load(hotzone, &[foreign(Sectors(0), length, "error", String::new())])?;
            }
        }
        if found.suspended {
            mapper.resume(hotzone, Visibility::Private)?;
        }
    }
    if completed.is_err() && half_written.is_some() {
        // Half of the hot zone is written. Until the step is completed, nothing may use the hot
        // zone.
        return completed;
    }
    let table = table(device, passphrase)?;
    if overlay.as_ref().is_some_and(|overlay| overlay.suspended) {
        mapper.load(&names.overlay, &table)?;
        mapper.resume(&names.overlay, Visibility::Private)?;
    }
    if mapper.find(name)?.is_some() {
        mapper.load(name, &table)?;
        mapper.resume(name, Visibility::Public)?;
    }
    for left in [&names.overlay].into_iter().chain(&names.hotzones).chain([&names.other]) {
        if mapper.find(left)?.is_some() {
            mapper.remove(left)?;
        }
    }
    completed
}

/// The range of the crypt device that waits for the end of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StalledRange {
    start: Sectors,
    length: Sectors,
}

/// The part of the overlay that maps to a suspended hotzone device. Before the overlay has been
/// resumed with such a table, no I/O can have reached the hotzone device.
fn stalled_range(overlay: Option<&Device>, hotzone: &Device) -> Option<StalledRange> {
    let overlay = overlay.filter(|overlay| !overlay.suspended && hotzone.suspended)?;
    let on_hotzone = |line: &&Line| match line.target {
        Target::Linear { device, .. } | Target::Crypt { device, .. } => device == hotzone.number,
        _ => false,
    };
    let line = overlay.table.iter().find(on_hotzone)?;
    Some(StalledRange { start: line.start, length: line.length })
}

/// The hot zone in the header: the range that was being written. If the disk refused the write, the
/// library has made I/O to the range fail, so that no I/O waits.
fn half_written(luks: &mut LoadedLuksDevice) -> Result<Option<StalledRange>> {
    let segments = luks.segments()?;
    let first = segments.first().map_or(Sectors::ZERO, |segment| segment.offset);
    let hot = segments.iter().find(|segment| segment.hot);
    Ok(hot.map(|segment| StalledRange { start: segment.offset.saturating_sub(first), length: segment.length }))
}

/// Completes a step with the library, on another device for the same disk.
fn complete(
    mapper: &Mapper,
    names: &JobDeviceNames,
    device: &Path,
    passphrase: &[u8],
    stalled: StalledRange,
) -> Result<()> {
    let size = LoadedLuksDevice::load(device)?.size();
    if mapper.find(&names.other)?.is_some() {
        mapper.remove(&names.other)?;
    }
    let lines = [Line::linear(Sectors(0), size, number(device)?, Sectors(0))];
    mapper.create(&names.other, &names.other, &lines, Visibility::Private)?;
    let completed = complete_on(&mapper_nodes::node(&names.other), passphrase, stalled);
    let removed = mapper.remove(&names.other);
    completed?;
    Ok(removed?)
}

fn complete_on(other: &Path, passphrase: &[u8], stalled: StalledRange) -> Result<()> {
    let mut luks = LoadedLuksDevice::load(other)?;
    if half_written(&mut luks)?.is_some() {
        // The step was writing: the library determines block by block what was written.
        begin(&mut luks, passphrase, CryptReencrypt::RECOVERY, Sectors::ZERO)?;
    } else if !is_done(&mut luks, stalled)? {
        // The step was reading: nothing was written.
        begin(&mut luks, passphrase, CryptReencrypt::RESUME_ONLY, stalled.length)?;
        let mut asked = 0;
        steps(&mut luks, &mut |_| {
            asked += 1;
            // The first call comes before the first step.
            asked > 1
        })?;
    }
    drop(luks);
    let mut luks = LoadedLuksDevice::load(other)?;
    if half_written(&mut luks)?.is_some() || !is_done(&mut luks, stalled)? {
        return Err(LuksFault::Other(
            "the interrupted step is still incomplete; check the device and try again".to_owned(),
        ));
    }
    Ok(())
}

fn begin(luks: &mut LoadedLuksDevice, passphrase: &[u8], flags: CryptReencrypt, step: Sectors) -> Result<()> {
    let json = luks.json()?;
    let sector_size = luks.metadata(&json).header(String::new())?.sector_size;
    // The library uses the mode and direction of the header, not these.
    let parameters = parameters(CryptReencryptModeInfo::Reencrypt, sector_size, step, flags);
    let mut library = luks.library.reencrypt_handle();
    library.reencrypt_init_by_passphrase(None, passphrase, None, None, None, parameters).map_err(with_key)?;
    Ok(())
}

/// Whether a range has its final encryption.
fn is_done(luks: &mut LoadedLuksDevice, stalled: StalledRange) -> Result<bool> {
    let json = luks.json()?;
    let metadata = luks.metadata(&json);
    let last = metadata.final_digest()?;
    let segments = metadata.segments()?;
    if !matches!(metadata.state(&segments)?, DataEncryption::Unfinished { .. }) {
        // The interrupted step was the last one.
        return Ok(true);
    }
    let Some(first) = segments.first().map(|segment| segment.offset) else { return Ok(false) };
    let end = stalled.start.0 + stalled.length.0;
    let covers = |segment: &DataSegment| {
        let start = segment.offset.0 - first.0;
        let is_last = segment.crypt.as_ref().map(|crypt| crypt.digest) == last;
        is_last && !segment.hot && start <= stalled.start.0 && end <= start + segment.length.0
    };
    Ok(segments.iter().any(covers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::DeviceNumber;

    const HOTZONE: DeviceNumber = DeviceNumber { major: 253, minor: 7 };
    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 0 };

    fn device(number: DeviceNumber, suspended: bool, table: Vec<Line>) -> Device {
        Device { number, uuid: String::new(), suspended, table }
    }

    #[test]
    fn waiting_io_is_recognized() {
        let crypt = Line::parse(Sectors(0), Sectors(8), "crypt", &format!("aes-xts-plain64 - 0 {DISK} 2048"));
        let hot = Line::parse(Sectors(8), Sectors(16), "crypt", &format!("aes-xts-plain64 - 8 {HOTZONE} 8"));
        let rest = Line::linear(Sectors(24), Sectors(100), DISK, Sectors(2072));
        let working = || vec![crypt.clone(), hot.clone(), rest.clone()];
        let between = vec![crypt.clone(), rest.clone()];
        let overlay = |suspended, table| device(DeviceNumber { major: 253, minor: 8 }, suspended, table);
        let hotzone = |suspended| device(HOTZONE, suspended, Vec::new());
        let seen = stalled_range(Some(&overlay(false, working())), &hotzone(true));
        assert_eq!(seen, Some(StalledRange { start: Sectors(8), length: Sectors(16) }));
        assert_eq!(stalled_range(Some(&overlay(false, working())), &hotzone(false)), None);
        assert_eq!(stalled_range(Some(&overlay(true, working())), &hotzone(true)), None);
        assert_eq!(stalled_range(Some(&overlay(false, between)), &hotzone(true)), None);
        assert_eq!(stalled_range(None, &hotzone(true)), None);
        // The range is in plaintext, as in a decryption.
        let decrypted = vec![Line::linear(Sectors(0), Sectors(8), HOTZONE, Sectors(0))];
        assert_eq!(
            stalled_range(Some(&overlay(false, decrypted)), &hotzone(true)).map(|seen| seen.length),
            Some(Sectors(8))
        );
    }
}
