//! The opened devices of LUKS2 containers: what lies below is transformed sector by sector.
//!
//! Rules:
//! - A sector is combined with a stream of bytes that depends on the volume key, the sector's number and the size of an
//!   encryption sector. With another key, or read as if it lay elsewhere, it is garbage. Two contents stand for themselves:
//!   zeros and the stream. So what was never written reads as zeros whatever the key, and takes no memory; a real
//!   container that was never written to reads as garbage. Each sector of 512 bytes stands alone, as each 16 bytes do in XTS,
//!   so that one that is torn at sectors can be read.
//! - While a work on the data is unfinished, what is done is kept in the one way and the rest in the other. In between lies
//!   the hot zone, for which it is known what its sectors held when it began (marks): a sector that holds that still is as
//!   before; any other, and zeros, are as after. So whoever reads or writes there does not wait, and what was there when
//!   power went can be told apart.
//! - The zone is longer than what it holds: stretches of zeros are as they are to be from the beginning.
//! - Until the marks are known to be on the disk a write to the hot zone goes the old way, and the zone ends there: the rest is
//!   left to the next. Once the header that names it is written, the first write makes that durable before it goes the new
//!   way.
//! - Discards are not passed on, as without `allow_discards`.
//!
//! Knows nothing of headers, passphrases and of how a work goes on.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use nix::libc;
use sha2::{Digest, Sha256};

use super::{
    dm,
    io::{Patience, Stop},
    machine::Machine,
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

/// What sectors held, by number in the data: the SHA-256 of each. Those that were zeros are not there.
pub(super) type Marks = BTreeMap<u64, [u8; 32]>;

/// The way from data to what lies on the disk and back, which are the same.
pub(super) struct Cipher {
    seed: [u64; 2],
    /// 512-byte sectors in an encryption sector.
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

    /// Both ways: a sector of 512 bytes that is not all zeros.
    fn transform(&self, sector: u64, bytes: &mut [u8]) {
        let stream = self.stream(sector);
        if *bytes == stream {
            return;
        }
        // By words: this is what an opened device spends its time with.
        for (bytes, stream) in bytes.chunks_exact_mut(8).zip(stream.chunks_exact(8)) {
            let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("a chunk has 8 bytes"));
            bytes.copy_from_slice(&(word(bytes) ^ word(stream)).to_ne_bytes());
        }
    }
}

/// How a stretch of the data is kept.
#[derive(Clone)]
pub(super) enum Coding {
    Clear,
    Key(Arc<Cipher>),
}

impl Coding {
    /// Both ways: a sector of 512 bytes.
    pub(super) fn transform(&self, sector: u64, bytes: &mut [u8]) {
        match self {
            Coding::Key(cipher) if *bytes != ZEROS => cipher.transform(sector, bytes),
            _ => {}
        }
    }
}

/// How far a hot zone has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// What it holds has been noted; nobody may rely on that yet. All goes the old way.
    Noted,
    /// The header names it, and may still be lost.
    Named,
    /// The header that names it is durable.
    Hot,
}

/// What is being worked on, from where all is done.
pub(super) struct Zone {
    pub(super) end: u64,
    pub(super) marks: Arc<Marks>,
    pub(super) phase: Phase,
}

/// An opened device. Places are bytes of its data.
pub(super) struct Opened {
    pub(super) below: DeviceNumber,
    /// Where the data begins below.
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) sector_size: u32,
    pub(super) before: Coding,
    pub(super) after: Coding,
    /// All before this is kept as after.
    pub(super) done: u64,
    pub(super) zone: Option<Zone>,
}

impl Opened {
    /// All of it is kept as after.
    pub(super) fn settle(&mut self) {
        self.before = self.after.clone();
        self.done = u64::MAX;
        self.zone = None;
    }

    /// Whether a sector holds what it held when it was noted.
    pub(super) fn is_as_noted(marks: &Marks, sector: u64, bytes: &[u8]) -> bool {
        marks.get(&sector).is_some_and(|mark| Sha256::digest(bytes)[..] == *mark)
    }

    fn decode(&self, sector: u64, bytes: &mut [u8]) {
        let at = sector * SECTOR;
        let coding = match &self.zone {
            _ if at < self.done => &self.after,
            // Until it is hot nothing in it was written the new way.
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

    /// The table, a line for each stretch that is kept in one way.
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

/// The whole sectors around a stretch.
fn whole(at: u64, length: usize) -> Range<u64> {
    at - at % SECTOR..(at + length as u64).next_multiple_of(SECTOR)
}

type Io<T = ()> = Result<T, Stop>;

impl Machine {
    pub(super) fn opened(&self, minor: u32) -> Option<&Opened> {
        self.dm.get_minor(minor)?.opened.as_ref()
    }

    pub(super) fn opened_mut(&mut self, minor: u32) -> Option<&mut Opened> {
        self.dm.device_mut(minor)?.opened.as_mut()
    }

    pub(super) fn read_crypt(&self, minor: u32, at: u64, out: &mut [u8], patience: Patience) -> Io {
        let opened = self.opened(minor).ok_or(Stop::Errno(libc::ENXIO))?;
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

    pub(super) fn write_crypt(&mut self, minor: u32, at: u64, bytes: &[u8], patience: Patience) -> Io {
        let range = whole(at, bytes.len());
        let mut sectors = vec![0; (range.end - range.start) as usize];
        if range != (at..at + bytes.len() as u64) {
            self.read_crypt(minor, range.start, &mut sectors, patience)?;
        }
        let from = (at - range.start) as usize;
        sectors[from..from + bytes.len()].copy_from_slice(bytes);
        self.touch_zone(minor, &range)?;
        let opened = self.opened(minor).ok_or(Stop::Errno(libc::ENXIO))?;
        for (sector, bytes) in (range.start / SECTOR..).zip(sectors.chunks_exact_mut(SECTOR_LENGTH)) {
            opened.encode(sector, bytes);
        }
        let (below, offset) = (opened.below, opened.offset);
        self.write_at(below, offset + range.start, &sectors, patience)
    }

    /// What a write does to the hot zone.
    fn touch_zone(&mut self, minor: u32, range: &Range<u64>) -> Io {
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

    /// The header that names the zone is durable.
    pub(super) fn heat_zone(&mut self, minor: u32) {
        if let Some(zone) = self.opened_mut(minor).and_then(|opened| opened.zone.as_mut()) {
            zone.phase = Phase::Hot;
        }
    }

    /// Brings an opened device up.
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

    /// Makes the table of an opened device anew.
    pub(super) fn crypt_changed(&mut self, minor: u32) {
        if let Some(device) = self.dm.device_mut(minor) {
            if let Some(opened) = &device.opened {
                device.table = opened.lines();
            }
        }
        self.events.dm_event();
    }

    /// The first stretch of a part of a device that may hold something else than zeros. At most 4 KiB long, if not all of
    /// them hold something.
    pub(super) fn next_stored(&self, number: DeviceNumber, range: Range<u64>) -> Io<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        if let Some(disk) = self.disks.get(number) {
            return Ok(disk.next_stored(range));
        }
        self.next_stored_above(number, range)
    }

    /// Whether an opened device is on the way down from a device: the largest of their encryption sectors.
    pub(super) fn encryption_sector(&self, number: DeviceNumber) -> u32 {
        let Some(device) = self.dm.get(number) else { return 0 };
        let own = device.opened.as_ref().map_or(0, |opened| opened.sector_size);
        let below = super::targets::uses(&device.table).into_iter().map(|below| self.encryption_sector(below));
        below.fold(own, u32::max)
    }

    /// The minor number of an opened device.
    pub(super) fn opened_named(&self, name: &str) -> Option<u32> {
        self.dm.by_name(name).filter(|minor| self.opened(*minor).is_some())
    }

    /// Tells that the contents of a device-mapper device may have changed.
    pub(super) fn changed_event(&mut self, minor: u32) {
        let visible = self.dm.get(dm::number(minor)).is_some_and(|device| device.visibility == Visibility::Public);
        if visible {
            self.device_event(DeviceAction::Change, &udev::dm_node(minor));
        }
    }
}
