//! How the data of a crypt device is encoded: the transformation of a sector, the hot zone, the
//! ranges of one encoding. The rules are in `crypt`.
//!
//! Pure: knows nothing of the machine.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use sha2::{Digest, Sha256};

use crate::{
    base::units::{SECTOR, Sectors},
    platform::{
        DeviceNumber,
        dm::{Line, Target},
    },
};

pub(super) const SECTOR_LENGTH: usize = SECTOR as usize;
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
        // The loop works by words, because crypt devices spend most of their time here.
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
    /// All data before this offset has the new encoding.
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

    pub(super) fn decode(&self, sector: u64, bytes: &mut [u8]) {
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

    pub(super) fn encode(&self, sector: u64, bytes: &mut [u8]) {
        let at = sector * SECTOR;
        let is_hot = |zone: &Zone| at < zone.end && zone.phase == Phase::Hot;
        let coding = if at < self.done || self.zone.as_ref().is_some_and(is_hot) { &self.after } else { &self.before };
        coding.transform(sector, bytes);
    }

    /// The table, with a line for each range of one encoding.
    pub(super) fn lines(&self) -> Vec<Line> {
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
