//! Crypt devices: data is transformed sector by sector on its way to the LUKS device.
//!
//! Rules:
//! - A sector is combined with a stream of bytes that depends on the volume key, the sector's
//!   number and the encryption sector size. With another key, or at another place, it reads as
//!   garbage. Zeros and the stream itself map to themselves. So data that was never written reads
//!   as zeros with any key, and takes no memory; on a real LUKS device it reads as garbage. Each
//!   512-byte sector is independent, as each 16-byte block is in XTS, so a write that was torn
//!   between sectors remains readable.
//! - While a re-encryption job is unfinished, finished data has the new encoding and the rest the
//!   old one. In between lies the hot zone, whose sector contents at its start are known (marks): a
//!   sector that still has that content has the old encoding; any other sector, and zeros, have the
//!   new one. So I/O to the zone need not wait, and after a power cut both kinds of sectors can be
//!   told apart.
//! - The zone covers more than its data: ranges of zeros are in their final state from the start.
//! - Until the marks are known to be on the disk, a write to the hot zone uses the old encoding and
//!   ends the zone there; the rest is left to the next zone. Once the header that names the zone is
//!   written, the first write flushes that header before it uses the new encoding.
//! - Discards are not passed down, as without `allow_discards`.
//!
//! Knows nothing of headers, of passphrases, or of how a re-encryption job proceeds.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use nix::libc;
use sha2::{Digest, Sha256};

use super::{
    dm,
    io::{Incomplete, IoResult, Patience},
    machine::MachineState,
    udev,
};
use crate::{
    base::units::{SECTOR, Sectors},
    platform::{
        DeviceAction, DeviceNumber,
        dm::{Line, Target, Visibility},
    },
};

const SECTOR_LENGTH: usize = SECTOR as usize;
pub(super) const ZEROS: [u8; SECTOR_LENGTH] = [0; SECTOR_LENGTH];

/// SHA-256 of each sector's content, by sector number in the data. Sectors of zeros are left out.
pub(super) type Marks = BTreeMap<u64, [u8; 32]>;

/// The transformation between data and disk, the same in both directions.
pub(super) struct Cipher {
    seed: [u64; 2],
    /// Number of 512-byte sectors in an encryption sector.
    unit: u64,
}

impl Cipher {
    pub(super) fn new(volume_key: &[u8], sector_size: u32) -> Cipher {
        let hash = Sha256::digest(volume_key);
        let word = |at: usize| u64::from_le_bytes(hash[at..at + 8].try_into().expect("a hash has 32 bytes"));
        Cipher { seed: [word(0), word(8)], unit: u64::from(sector_size) / SECTOR }
    }

    fn stream(&self, sector: u64) -> [u8; SECTOR_LENGTH] {
        let within = sector % self.unit;
        // Steele, Lea, Flood: SplitMix64.
        let mix = |mut z: u64| {
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let mut state = mix(self.seed[0] ^ mix(sector - within)) ^ mix(self.seed[1] ^ within);
        let mut stream = ZEROS;
        for word in stream.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&mix(state).to_le_bytes());
        }
        stream
    }

    /// Transforms, in either direction, a 512-byte sector that is not all zeros.
    fn transform(&self, sector: u64, bytes: &mut [u8]) {
        let stream = self.stream(sector);
        if *bytes == stream {
            return;
        }
        // By words, because crypt devices spend most of their time here.
        for (bytes, stream) in bytes.chunks_exact_mut(8).zip(stream.chunks_exact(8)) {
            let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("a chunk has 8 bytes"));
            bytes.copy_from_slice(&(word(bytes) ^ word(stream)).to_ne_bytes());
        }
    }
}

/// Encoding of a range of the data.
#[derive(Clone)]
pub(super) enum Coding {
    Clear,
    Key(Arc<Cipher>),
}

impl Coding {
    /// Transforms a 512-byte sector, in either direction.
    pub(super) fn transform(&self, sector: u64, bytes: &mut [u8]) {
        match self {
            Coding::Key(cipher) if *bytes != ZEROS => cipher.transform(sector, bytes),
            _ => {}
        }
    }
}

/// Phase of a hot zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its contents have been noted, but the marks may not be relied on. All I/O uses the old
    /// encoding.
    Noted,
    /// The header names the zone, but may still be lost.
    Named,
    /// The header that names the zone is durable.
    Hot,
}

/// The hot zone, which starts where the finished data ends.
pub(super) struct Zone {
    pub(super) end: u64,
    pub(super) marks: Arc<Marks>,
    pub(super) phase: Phase,
}

/// A crypt device. Offsets are bytes of its data.
pub(super) struct Opened {
    pub(super) below: DeviceNumber,
    /// Start of the data on the device below.
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) sector_size: u32,
    pub(super) before: Coding,
    pub(super) after: Coding,
    /// Everything before this has the new encoding.
    pub(super) done: u64,
    pub(super) zone: Option<Zone>,
}

impl Opened {
    /// Gives all data the new encoding.
    pub(super) fn settle(&mut self) {
        self.before = self.after.clone();
        self.done = u64::MAX;
        self.zone = None;
    }

    /// Whether a sector still has the content that was noted.
    pub(super) fn is_as_noted(marks: &Marks, sector: u64, bytes: &[u8]) -> bool {
        marks.get(&sector).is_some_and(|mark| Sha256::digest(bytes)[..] == *mark)
    }

    fn decode(&self, sector: u64, bytes: &mut [u8]) {
        let at = sector * SECTOR;
        let coding = match &self.zone {
            _ if at < self.done => &self.after,
            // Until the zone is hot, nothing in it was written with the new encoding.
            Some(zone) if at < zone.end && zone.phase == Phase::Hot => {
                if *bytes == ZEROS || Opened::is_as_noted(&zone.marks, sector, bytes) {
                    &self.before
                } else {
                    &self.after
                }
            }
            _ => &self.before,
        };
        coding.transform(sector, bytes);
    }

    fn encode(&self, sector: u64, bytes: &mut [u8]) {
        let at = sector * SECTOR;
        let is_hot = |zone: &Zone| at < zone.end && zone.phase == Phase::Hot;
        let coding = if at < self.done || self.zone.as_ref().is_some_and(is_hot) { &self.after } else { &self.before };
        coding.transform(sector, bytes);
    }

    /// The table, with a line for each range of one encoding.
    fn lines(&self) -> Vec<Line> {
        let split = self.done.min(self.length);
        let line = |range: Range<u64>, coding: &Coding| {
            let offset = Sectors((self.offset + range.start) / SECTOR);
            let (start, length) = (Sectors(range.start / SECTOR), Sectors((range.end - range.start) / SECTOR));
            let target = match coding {
                Coding::Clear => Target::Linear { device: self.below, offset },
                Coding::Key(_) => {
                    Target::Crypt { cipher: "aes-xts-plain64".to_owned(), iv_offset: start, device: self.below, offset }
                }
            };
            Line { start, length, target }
        };
        let stretches = [(0..split, &self.after), (split..self.length, &self.before)];
        stretches.into_iter().filter(|(range, _)| !range.is_empty()).map(|(r, coding)| line(r, coding)).collect()
    }
}

/// The whole sectors that cover a range.
fn whole(at: u64, length: usize) -> Range<u64> {
    at - at % SECTOR..(at + length as u64).next_multiple_of(SECTOR)
}

impl MachineState {
    pub(super) fn opened(&self, minor: u32) -> Option<&Opened> {
        self.dm.get_minor(minor)?.opened.as_ref()
    }

    pub(super) fn opened_mut(&mut self, minor: u32) -> Option<&mut Opened> {
        self.dm.device_mut(minor)?.opened.as_mut()
    }

    pub(super) fn read_crypt(&self, minor: u32, at: u64, out: &mut [u8], patience: Patience) -> IoResult {
        let opened = self.opened(minor).ok_or(Incomplete::Errno(libc::ENXIO))?;
        let range = whole(at, out.len());
        if range != (at..at + out.len() as u64) {
            let mut sectors = vec![0; (range.end - range.start) as usize];
            self.read_crypt(minor, range.start, &mut sectors, patience)?;
            let from = (at - range.start) as usize;
            out.copy_from_slice(&sectors[from..from + out.len()]);
            return Ok(());
        }
        self.read_at(opened.below, opened.offset + at, out, patience)?;
        for (sector, bytes) in (at / SECTOR..).zip(out.chunks_exact_mut(SECTOR_LENGTH)) {
            opened.decode(sector, bytes);
        }
        Ok(())
    }

    pub(super) fn write_crypt(&mut self, minor: u32, at: u64, bytes: &[u8], patience: Patience) -> IoResult {
        let range = whole(at, bytes.len());
        let mut sectors = vec![0; (range.end - range.start) as usize];
        if range != (at..at + bytes.len() as u64) {
            self.read_crypt(minor, range.start, &mut sectors, patience)?;
        }
        let from = (at - range.start) as usize;
        sectors[from..from + bytes.len()].copy_from_slice(bytes);
        self.touch_zone(minor, &range)?;
        let opened = self.opened(minor).ok_or(Incomplete::Errno(libc::ENXIO))?;
        for (sector, bytes) in (range.start / SECTOR..).zip(sectors.chunks_exact_mut(SECTOR_LENGTH)) {
            opened.encode(sector, bytes);
        }
        let (below, offset) = (opened.below, opened.offset);
        self.write_at(below, offset + range.start, &sectors, patience)
    }

    /// Applies the effect of a write on the hot zone.
    fn touch_zone(&mut self, minor: u32, range: &Range<u64>) -> IoResult {
        let Some(opened) = self.opened_mut(minor) else { return Ok(()) };
        let below = opened.below;
        let (done, unit) = (opened.done, u64::from(opened.sector_size));
        let Some(zone) = opened.zone.as_mut().filter(|zone| range.start < zone.end && range.end > done) else {
            return Ok(());
        };
        match zone.phase {
            Phase::Noted => zone.end = zone.end.min(range.start.max(done) / unit * unit),
            Phase::Named => {
                self.flush(below, Patience::Pass)?;
                self.heat_zone(minor);
            }
            Phase::Hot => {}
        }
        Ok(())
    }

    /// Marks the header that names the zone as durable.
    pub(super) fn heat_zone(&mut self, minor: u32) {
        if let Some(zone) = self.opened_mut(minor).and_then(|opened| opened.zone.as_mut()) {
            zone.phase = Phase::Hot;
        }
    }

    /// Activates a crypt device.
    pub(super) fn crypt_up(&mut self, name: &str, uuid: &str, opened: Opened) -> Result<(), i32> {
        let minor = self.dm_new(name, uuid)?;
        let below = opened.below;
        if let Err(errno) = self.check_below(minor, below) {
            // Nobody can have it open yet.
            let _ = self.dm_remove(name);
            return Err(errno);
        }
        self.dm.open(below);
        if let Some(device) = self.dm.device_mut(minor) {
            device.opened = Some(opened);
            device.visibility = Visibility::Public;
        }
        self.crypt_changed(minor);
        self.device_event(DeviceAction::Add, &udev::dm_node(minor));
        Ok(())
    }

    /// Rebuilds the table of a crypt device.
    pub(super) fn crypt_changed(&mut self, minor: u32) {
        if let Some(device) = self.dm.device_mut(minor) {
            if let Some(opened) = &device.opened {
                device.table = opened.lines();
            }
        }
        self.events.dm_event();
    }

    /// The first part of a device's range that may hold something other than zeros. At most 4 KiB
    /// long, unless all of a longer part does.
    pub(super) fn next_stored(&self, number: DeviceNumber, range: Range<u64>) -> IoResult<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        if let Some(disk) = self.disks.get(number) {
            return Ok(disk.next_stored(range));
        }
        self.next_stored_above(number, range)
    }

    /// The largest encryption sector size of the crypt devices in the stack below a device,
    /// including itself; 0 for none.
    pub(super) fn encryption_sector(&self, number: DeviceNumber) -> u32 {
        let Some(device) = self.dm.get(number) else { return 0 };
        let own = device.opened.as_ref().map_or(0, |opened| opened.sector_size);
        let below = super::targets::uses(&device.table).into_iter().map(|below| self.encryption_sector(below));
        below.fold(own, u32::max)
    }

    /// Minor number of a crypt device by name.
    pub(super) fn opened_named(&self, name: &str) -> Option<u32> {
        self.dm.by_name(name).filter(|minor| self.opened(*minor).is_some())
    }

    /// Raises a change event: the contents of a device-mapper device may have changed.
    pub(super) fn changed_event(&mut self, minor: u32) {
        let visible = self.dm.get(dm::number(minor)).is_some_and(|device| device.visibility == Visibility::Public);
        if visible {
            self.device_event(DeviceAction::Change, &udev::dm_node(minor));
        }
    }
}
