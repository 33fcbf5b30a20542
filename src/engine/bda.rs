//! Reads and writes the BDA of a device: its static header and metadata area.
//!
//! This module joins the codecs of [`metadata`](crate::engine::metadata) with the disks of a
//! machine. Every change of a device is one `write` call. A power cut may end its steps anywhere:
//! their order allows for that. Several devices are written in parallel. This module must never
//! depend on what the JSON says.

use std::path::{Path, PathBuf};

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    base::units::Sectors,
    engine::metadata::{
        HeaderFlags, Layout, Mda, PlannedWrite, StaticHeader,
        header::{self, BLOCK_BYTES, CopyContents, Half, Invalid, Resolved, Unresolved},
        mda::{Generation, MdaError, Plan, next_stamp},
    },
    platform::{self, DeviceWrite, Platform, Timestamp, WriteStep},
};

/// The number of devices that one save writes at most, unless all are asked for.
pub const SAVE_DEVICES_MAX: usize = 10;

/// The operations of a machine that this module needs.
pub trait Disks {
    /// Reads `length` bytes at `offset` of the device.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> platform::Result<Vec<u8>>;
    /// Carries out the steps in order.
    ///
    /// # Errors
    /// When a step fails. The steps after it have then not been carried out.
    fn write_steps(&self, path: &Path, steps: &[WriteStep<'_>]) -> platform::Result<()>;
    /// As [`Disks::write_steps`], for several devices in parallel. The results are in the order of
    /// the writes.
    fn write_steps_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<platform::Result<()>>;
}

impl<P: Platform + ?Sized> Disks for P {
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> platform::Result<Vec<u8>> {
        self.read(path, offset, length)
    }

    fn write_steps(&self, path: &Path, steps: &[WriteStep<'_>]) -> platform::Result<()> {
        self.write(path, steps)
    }

    fn write_steps_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<platform::Result<()>> {
        self.write_each(writes)
    }
}

/// Why a BDA cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BdaError {
    #[error("{} cannot be used", path.display())]
    Header { path: PathBuf, source: Unresolved },
    #[error("neither copy of the signature block of {} could be read; check the disk", path.display())]
    Unreadable { path: PathBuf, source: platform::Error },
    #[error("{} cannot get this header", path.display())]
    BadHeader { path: PathBuf, source: Invalid },
    #[error("the metadata area of {} cannot be used", path.display())]
    Mda { path: PathBuf, source: MdaError },
    #[error(
        "{} has {}, less than the {} that it had; its end may be lost",
        path.display(), .actual.readable(), .recorded.readable()
    )]
    Shrunk { path: PathBuf, recorded: Sectors, actual: Sectors },
    #[error("{} is no longer device {} of pool {}; nothing was written to it", path.display(), .was.device, .was.pool)]
    OtherDevice { path: PathBuf, was: Box<StaticHeader> },
    #[error(transparent)]
    Platform(#[from] platform::Error),
    #[error("the pool's metadata could not be saved on any of {tried} devices")]
    NotSaved { tried: usize, source: Box<BdaError> },
    #[error("the pool has no data devices to save its metadata on")]
    NoDevices,
}

type Result<T> = std::result::Result<T, BdaError>;

/// Whether a damaged copy of the header is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Yes. A failed rewrite is an error.
    Write,
    /// No. The device is only read.
    ReadOnly,
}

/// Which data devices get the pool's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choose {
    /// At most [`SAVE_DEVICES_MAX`], chosen by these random bytes.
    Some([u8; 16]),
    /// All devices: none may keep an older generation.
    Everywhere,
}

/// The known state of a device's BDA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bda {
    header: StaticHeader,
    /// A write of the header failed, so the device may hold another header.
    header_unsure: bool,
    /// The copy of the header that differs from the other, found while the device was only read.
    damaged: Option<Half>,
    /// `None` after a failed write: the MDA must be read before anything on disk is overwritten.
    mda: Option<Mda>,
    /// The data that was read may only be in the disk's cache: written by a call that failed, or by
    /// a daemon that was killed. It must be durable before the only other generation is
    /// overwritten.
    unflushed: bool,
    /// The latest stamp given to metadata of the device, including metadata that could not be
    /// written.
    last_tried: Option<Timestamp>,
}

impl Bda {
    /// Reads a BDA, each copy of its header separately. `None`: the device does not belong to
    /// Stratis.
    ///
    /// # Errors
    /// If the device belongs to Stratis but its header or metadata area is unusable, or a necessary
    /// repair fails.
    pub fn load<D: Disks + ?Sized>(disks: &D, path: &Path, repair: Repair) -> Result<Option<Bda>> {
        let Some((header, damaged)) = load_header(disks, path)? else { return Ok(None) };
        let mda = load_mda(disks, path, &header)?;
        let last_tried = mda.last_update();
        let mut bda = Bda { header, header_unsure: false, damaged, mda: Some(mda), unflushed: true, last_tried };
        if repair == Repair::Write {
            bda.repair(disks, path)?;
        }
        Ok(Some(bda))
    }

    /// Initializes Stratis devices in parallel. Each gets an empty metadata area first, then the
    /// header, so a device never shows a header with garbage behind it.
    ///
    /// # Errors
    /// If a header breaks a rule (nothing is written then), or writing fails. Any of the devices
    /// may then already have a header.
    pub fn initialize<D: Disks + ?Sized>(disks: &D, devices: &[(&Path, StaticHeader)]) -> Result<Vec<Bda>> {
        let plan = |(path, header): &(&Path, StaticHeader)| -> Result<(Layout, Vec<PlannedWrite>)> {
            header.check().map_err(|source| BdaError::BadHeader { path: path.to_path_buf(), source })?;
            let layout = layout(path, header)?;
            let mut steps = Mda::plan_initialize(layout);
            steps.extend(header::plan_initialize(header));
            Ok((layout, steps))
        };
        let planned = devices.iter().map(plan).collect::<Result<Vec<_>>>()?;
        let writes = devices.iter().zip(&planned).map(|((path, _), (_, steps))| (*path, steps.as_slice()));
        carry_out_each(disks, writes).into_iter().collect::<Result<()>>()?;
        let made = |(&(_, header), (layout, _)): (&(&Path, StaticHeader), (Layout, Vec<PlannedWrite>))| {
            let mda = Some(Mda::empty(layout));
            Bda { header, header_unsure: false, damaged: None, mda, unflushed: false, last_tried: None }
        };
        Ok(devices.iter().zip(planned).map(made).collect())
    }

    /// The header.
    pub fn header(&self) -> &StaticHeader {
        &self.header
    }

    /// The time of the device's metadata; `None` if there never was any, or if the last write of it
    /// failed.
    pub fn last_update(&self) -> Option<Timestamp> {
        self.mda.and_then(|mda| mda.last_update())
    }

    /// The generations in the device's metadata area; none if the last write of it failed.
    pub fn generations(&self) -> [Option<Generation>; 2] {
        self.mda.map_or([None; 2], |mda| mda.generations())
    }

    /// The latest stamp given to metadata of the device, including metadata that could not be
    /// written.
    pub fn last_tried(&self) -> Option<Timestamp> {
        self.last_tried
    }

    /// Length of the longest JSON that the device can hold, in bytes.
    pub fn capacity(&self) -> u64 {
        Layout::new(self.header.mda_size).map_or(0, |layout| layout.capacity())
    }

    /// Reads the device's metadata; `None` if none was ever written.
    ///
    /// # Errors
    /// If neither copy is usable.
    pub fn read_json<D: Disks + ?Sized>(&self, disks: &D, path: &Path) -> Result<Option<Vec<u8>>> {
        self.regions(disks, path)?
            .read_json(|offset, length| Ok(disks.read_at(path, offset, length)?))
            .map_err(|source| mda_error(path, source))
    }

    /// Writes metadata to the device. It is durable on return.
    ///
    /// # Errors
    /// If the device holds metadata as new as `stamp`, or the JSON is too long (nothing is written
    /// then), or writing fails: the device may then hold either generation.
    pub fn save<D: Disks + ?Sized>(&mut self, disks: &D, path: &Path, json: &[u8], stamp: Timestamp) -> Result<()> {
        let save = self.begin_save(disks, path, json, stamp)?;
        carry_out(disks, path, &save.plan.steps)?;
        self.end_save(save);
        Ok(())
    }

    /// Plans a save. From here until [`Bda::end_save`] the contents of the device are unknown.
    fn begin_save<D: Disks + ?Sized>(&mut self, disks: &D, path: &Path, json: &[u8], stamp: Timestamp) -> Result<Save> {
        self.check_identity(disks, path)?;
        let mda = self.regions(disks, path)?;
        let mut plan = mda.plan_write(json, stamp).map_err(|source| mda_error(path, source))?;
        self.last_tried = self.last_tried.max(Some(stamp));
        self.mda = None;
        if std::mem::replace(&mut self.unflushed, true) {
            plan.steps.insert(0, PlannedWrite::Flush);
        }
        Ok(Save { mda, plan })
    }

    /// Notes that a save was carried out.
    fn end_save(&mut self, Save { mut mda, plan }: Save) {
        self.unflushed = false;
        mda.written(&plan);
        self.mda = Some(mda);
    }

    /// Rewrites a copy of the header that was found to differ from the other. It is durable on
    /// return.
    ///
    /// # Errors
    /// If writing fails. The other copy is then still intact.
    pub fn repair<D: Disks + ?Sized>(&mut self, disks: &D, path: &Path) -> Result<()> {
        if let Some(half) = self.damaged {
            log::warn!("rewriting a damaged copy of the signature block of {}", path.display());
            carry_out(disks, path, &header::write_half(half, &self.header))?;
            self.damaged = None;
        }
        Ok(())
    }

    /// Sets marks in the header. They are durable on return.
    ///
    /// # Errors
    /// If writing fails. The marks on the device are then either unchanged or set. Another call,
    /// also for the opposite change, makes them definite.
    pub fn set_flags<D: Disks + ?Sized>(&mut self, disks: &D, path: &Path, marks: HeaderFlags) -> Result<()> {
        self.rewrite(disks, path, StaticHeader { flags: self.header.flags.with(marks), ..self.header })
    }

    /// Records a new size of the device, durable on return. `marks` are all marks that the header
    /// has afterwards.
    ///
    /// # Errors
    /// If the metadata does not fit the size, or writing fails; either size may then be recorded.
    /// Another call, also for the former size, makes it definite.
    pub fn resize<D: Disks + ?Sized>(
        &mut self,
        disks: &D,
        path: &Path,
        size: Sectors,
        marks: HeaderFlags,
    ) -> Result<()> {
        self.rewrite(disks, path, StaticHeader { device_size: size, flags: marks, ..self.header })
    }

    /// Checks that the device still has the size that its header records.
    ///
    /// # Errors
    /// [`BdaError::Shrunk`] if it is smaller.
    pub fn check_size(&self, path: &Path, actual: Sectors) -> Result<()> {
        let recorded = self.header.device_size;
        if actual < recorded { Err(BdaError::Shrunk { path: path.to_owned(), recorded, actual }) } else { Ok(()) }
    }

    fn rewrite<D: Disks + ?Sized>(&mut self, disks: &D, path: &Path, new: StaticHeader) -> Result<()> {
        if let Some(steps) = self.begin_rewrite(disks, path, &new)? {
            carry_out(disks, path, &steps)?;
            self.end_rewrite(new);
        }
        Ok(())
    }

    /// Plans a new header; `None`: the device already has it. From here until [`Bda::end_rewrite`]
    /// it is unknown which header the device holds.
    fn begin_rewrite<D: Disks + ?Sized>(
        &mut self,
        disks: &D,
        path: &Path,
        new: &StaticHeader,
    ) -> Result<Option<Vec<PlannedWrite>>> {
        new.check().map_err(|source| BdaError::BadHeader { path: path.to_owned(), source })?;
        if *new == self.header && !self.header_unsure {
            return Ok(None);
        }
        self.check_identity(disks, path)?;
        // The order of the writes relies on both copies being good.
        self.repair(disks, path)?;
        self.header_unsure = true;
        Ok(Some(header::plan_rewrite(new)))
    }

    /// Notes that a new header was written.
    fn end_rewrite(&mut self, new: StaticHeader) {
        self.header = new;
        self.header_unsure = false;
    }

    /// Refuses to write to a different device: after a device was unplugged, another may have its
    /// node and even its number.
    fn check_identity<D: Disks + ?Sized>(&self, disks: &D, path: &Path) -> Result<()> {
        let is_same = |found: &StaticHeader| (found.pool, found.device) == (self.header.pool, self.header.device);
        match load_header(disks, path)? {
            Some((found, _)) if is_same(&found) => Ok(()),
            _ => Err(BdaError::OtherDevice { path: path.to_owned(), was: Box::new(self.header) }),
        }
    }

    fn regions<D: Disks + ?Sized>(&self, disks: &D, path: &Path) -> Result<Mda> {
        self.mda.map_or_else(|| load_mda(disks, path, &self.header), Ok)
    }
}

/// A planned save.
struct Save {
    mda: Mda,
    plan: Plan,
}

/// Repairs the headers of devices in parallel: rewrites damaged copies and clears marks. The
/// changes are durable on return. The results are in the order of the devices.
///
/// After an error the marks on that device are either unchanged or cleared. Another call, also for
/// the opposite change, makes them definite.
pub fn clear_flags<D: Disks + ?Sized>(
    disks: &D,
    devices: &mut [(&Path, &mut Bda)],
    marks: HeaderFlags,
) -> Vec<Result<()>> {
    let mut results = Vec::with_capacity(devices.len());
    let mut begun = Vec::new();
    for (at, (path, bda)) in devices.iter_mut().enumerate() {
        let new = StaticHeader { flags: bda.header.flags.without(marks), ..bda.header };
        let planned = bda.repair(disks, path).and_then(|()| bda.begin_rewrite(disks, path, &new));
        results.push(planned.map(|steps| begun.extend(steps.map(|steps| (at, new, steps)))));
    }
    let writes = begun.iter().map(|(at, _, steps)| (devices[*at].0, steps.as_slice()));
    let written = carry_out_each(disks, writes);
    for ((at, new, _), written) in begun.into_iter().zip(written) {
        results[at] = written.map(|()| devices[at].1.end_rewrite(new));
    }
    results
}

/// Removes the signature of Stratis from a device. This is durable on return. Everything after the
/// header stays.
///
/// # Errors
/// If writing fails. The device may then still be found by its second copy.
pub fn wipe<D: Disks + ?Sized>(disks: &D, path: &Path) -> Result<()> {
    carry_out(disks, path, &header::plan_wipe())
}

/// As [`wipe`], for several devices in parallel. The results are in their order.
pub fn wipe_each<'a, D: Disks + ?Sized>(disks: &D, paths: impl IntoIterator<Item = &'a Path>) -> Vec<Result<()>> {
    let steps = header::plan_wipe();
    carry_out_each(disks, paths.into_iter().map(|path| (path, steps.as_slice())))
}

/// The result of a save to a pool.
#[derive(Debug)]
pub struct Saved {
    /// The stamp of the saved metadata.
    pub stamp: Timestamp,
    /// Indices of the devices that have it.
    pub written: Vec<usize>,
    /// Indices of the devices on which the write failed.
    pub failed: Vec<(usize, BdaError)>,
}

/// Saves a pool's metadata on its data devices in parallel (§3.7). The stamp is `now`, or just
/// after the latest stamp given to any of the devices, whichever is later.
///
/// # Errors
/// If no device could be written. Devices on which writing failed may still hold the metadata.
pub fn save_to_pool<D: Disks + ?Sized>(
    disks: &D,
    devices: &mut [(&Path, &mut Bda)],
    json: &[u8],
    now: Timestamp,
    choose: Choose,
) -> Result<Saved> {
    let (first, _) = devices.first().ok_or(BdaError::NoDevices)?;
    let length = json.len() as u64;
    let capacity = devices.iter().map(|(_, bda)| bda.capacity()).max().unwrap_or(0);
    if capacity < length {
        return Err(mda_error(first, MdaError::TooLong { length, capacity }));
    }
    let stamp = next_stamp(now, devices.iter().filter_map(|(_, bda)| bda.last_tried).max());
    let mut chosen: Vec<usize> = (0..devices.len()).filter(|i| devices[*i].1.capacity() >= length).collect();
    if let Choose::Some(random) = choose {
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(&random);
        chosen.shuffle(&mut StdRng::from_seed(seed));
        chosen.truncate(SAVE_DEVICES_MAX);
    }
    let (mut begun, mut written, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for i in chosen {
        let (path, bda) = &mut devices[i];
        match bda.begin_save(disks, path, json, stamp) {
            Ok(save) => begun.push((i, save)),
            Err(error) => failed.push((i, error)),
        }
    }
    let writes = begun.iter().map(|(i, save)| (devices[*i].0, save.plan.steps.as_slice()));
    let results = carry_out_each(disks, writes);
    for ((i, save), result) in begun.into_iter().zip(results) {
        match result {
            Ok(()) => {
                devices[i].1.end_save(save);
                written.push(i);
            }
            Err(error) => failed.push((i, error)),
        }
    }
    let tried = failed.len();
    match failed.pop() {
        Some((_, source)) if written.is_empty() => Err(BdaError::NotSaved { tried, source: Box::new(source) }),
        last => {
            failed.extend(last);
            Ok(Saved { stamp, written, failed })
        }
    }
}

/// The newest metadata of a pool, as its devices hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// Index of the device from which it was read.
    pub device: usize,
    /// When it was written.
    pub time: Timestamp,
    /// The JSON.
    pub json: Vec<u8>,
}

/// Reads a pool's metadata from the device that was written last (§3.8). `None`: no device has any.
///
/// # Errors
/// If that device's metadata cannot be read. Other devices hold older generations, which never
/// serve as a substitute.
pub fn newest<D: Disks + ?Sized>(disks: &D, devices: &[(&Path, &Bda)]) -> Result<Option<Newest>> {
    let mut latest: Option<(Timestamp, usize)> = None;
    for (i, (path, bda)) in devices.iter().enumerate() {
        if let Some(time) = bda.regions(disks, path)?.last_update() {
            if latest.is_none_or(|(other, _)| other < time) {
                latest = Some((time, i));
            }
        }
    }
    let Some((time, device)) = latest else { return Ok(None) };
    let (path, bda) = devices[device];
    Ok(bda.read_json(disks, path)?.map(|json| Newest { device, time, json }))
}

/// Reads and resolves the copies of a header. Also returns the copy that must be rewritten, if any.
fn load_header<D: Disks + ?Sized>(disks: &D, path: &Path) -> Result<Option<(StaticHeader, Option<Half>)>> {
    let mut unread = None;
    let [first, second] = Half::BOTH.map(|half| match disks.read_at(path, half.block_offset(), BLOCK_BYTES) {
        Ok(block) => CopyContents::in_block(&block),
        Err(error) => {
            unread = Some(error);
            CopyContents::Unreadable
        }
    });
    let path_buf = path.to_owned();
    match (header::resolve(first, second), unread) {
        (Ok(Resolved::Nothing), _) => Ok(None),
        (Ok(Resolved::Header { header, rewrite }), _) => Ok(Some((header, rewrite))),
        (Err(Unresolved::Unreadable), Some(source)) => Err(BdaError::Unreadable { path: path_buf, source }),
        (Err(source), _) => Err(BdaError::Header { path: path_buf, source }),
    }
}

fn load_mda<D: Disks + ?Sized>(disks: &D, path: &Path, header: &StaticHeader) -> Result<Mda> {
    Mda::load(layout(path, header)?, |offset, length| Ok(disks.read_at(path, offset, length)?))
        .map_err(|source| mda_error(path, source))
}

fn layout(path: &Path, header: &StaticHeader) -> Result<Layout> {
    Layout::new(header.mda_size).map_err(|source| mda_error(path, source))
}

fn mda_error(path: &Path, source: MdaError) -> BdaError {
    BdaError::Mda { path: path.to_owned(), source }
}

fn carry_out<D: Disks + ?Sized>(disks: &D, path: &Path, steps: &[PlannedWrite]) -> Result<()> {
    Ok(disks.write_steps(path, &write_steps(steps))?)
}

fn carry_out_each<'a, D: Disks + ?Sized>(
    disks: &D,
    writes: impl Iterator<Item = (&'a Path, &'a [PlannedWrite])>,
) -> Vec<Result<()>> {
    let writes: Vec<_> = writes.map(|(path, steps)| DeviceWrite { path, steps: write_steps(steps) }).collect();
    disks.write_steps_each(&writes).into_iter().map(|written| Ok(written?)).collect()
}

fn write_steps(steps: &[PlannedWrite]) -> Vec<WriteStep<'_>> {
    steps
        .iter()
        .map(|step| match step {
            PlannedWrite::At(offset, bytes) => WriteStep::At(*offset, bytes),
            PlannedWrite::Flush => WriteStep::Flush,
        })
        .collect()
}

#[cfg(test)]
#[path = "bda_tests.rs"]
mod tests;
