//! LUKS2 headers as bytes: a binary part of 4 KiB, followed by JSON, in two copies (LUKS2 On-Disk
//! Format Specification 1.1). `cryptsetup luksDump` can read what is written here.
//!
//! Only the first sector of the binary part has contents, so its write is never torn. It holds a
//! checksum of the whole copy, which detects a torn copy; the other copy is then valid. Of two
//! valid copies, the one with the higher sequence number counts.
//!
//! A re-encryption job is recorded as libcryptsetup does: segments for the finished data, for the
//! hot zone and for the rest; two more segments for the state before and after the job; and a
//! keyslot of type `reencrypt`, whose area holds the data for recovery of the hot zone.
//!
//! This module knows bytes and JSON, but not disks, keys and passphrases.

use std::{collections::BTreeMap, ffi::CStr, ops::Range};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::platform::luks::{NUMBERS, ReencryptionMode, VOLUME_KEY_BYTES};

/// Valid sizes of a copy, and so the possible offsets of the second.
pub(super) const SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Size of the binary part in bytes.
pub(super) const BINARY: usize = 4096;
/// Magic bytes of the first copy.
pub(super) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// Magic bytes of the second copy.
pub(super) const MAGIC_SECOND: [u8; 6] = *b"SKUL\xba\xbe";

const VERSION: u16 = 2;
const CHECKSUM: Range<usize> = 448..512;
const STRIPES: u64 = 4000;
/// Size of a keyslot's area: as in a real header, which stores anti-forensic stripes.
const AREA: u64 = (VOLUME_KEY_BYTES as u64 * STRIPES).next_multiple_of(4096);
const CIPHER: &str = "aes-xts-plain64";
const BACKUP_PREVIOUS: &str = "backup-previous";
const BACKUP_FINAL: &str = "backup-final";
const HOT: &str = "in-reencryption";
const REQUIREMENT: &str = "online-reencrypt-v2";

/// A number that the JSON holds as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct Decimal(pub(super) u64);

impl From<Decimal> for String {
    fn from(number: Decimal) -> String {
        number.0.to_string()
    }
}

impl TryFrom<String> for Decimal {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Decimal, Self::Error> {
        text.parse().map(Decimal)
    }
}

/// The contents of a header, the same in both copies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredHeader {
    /// Size of a copy in bytes.
    pub(super) size: u64,
    /// Incremented by each change.
    pub(super) sequence: u64,
    pub(super) uuid: String,
    pub(super) json: Json,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Json {
    pub(super) keyslots: BTreeMap<u32, Keyslot>,
    pub(super) tokens: BTreeMap<u32, Value>,
    segments: BTreeMap<u32, StoredSegment>,
    pub(super) digests: BTreeMap<u32, Digest>,
    config: Config,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Keyslot {
    Luks2 { key_size: usize, af: Stripes, area: Area, kdf: Kdf },
    Reencrypt { key_size: usize, mode: StoredMode, direction: String, priority: u32, area: Area },
}

impl Keyslot {
    pub(super) fn area(&self) -> &Area {
        match self {
            Keyslot::Luks2 { area, .. } | Keyslot::Reencrypt { area, .. } => area,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stripes {
    #[serde(rename = "type")]
    kind: String,
    stripes: u64,
    hash: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Area {
    Raw { offset: Decimal, size: Decimal, encryption: String, key_size: usize },
    Checksum { offset: Decimal, size: Decimal, hash: String, sector_size: u32 },
}

impl Area {
    /// Its range in bytes.
    pub(super) fn range(&self) -> Range<u64> {
        match self {
            Area::Raw { offset, size, .. } | Area::Checksum { offset, size, .. } => offset.0..offset.0 + size.0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Kdf {
    Pbkdf2 { hash: String, iterations: u32, salt: String },
    Argon2id { time: u32, memory: u32, cpus: u32, salt: String },
}

impl Kdf {
    pub(super) fn salt(&self) -> &str {
        match self {
            Kdf::Pbkdf2 { salt, .. } | Kdf::Argon2id { salt, .. } => salt,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoredMode {
    Encrypt,
    Reencrypt,
    Decrypt,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredSegment {
    #[serde(rename = "type")]
    kind: String,
    offset: Decimal,
    /// A number, or `dynamic`: to the end of the device.
    size: String,
    #[serde(flatten)]
    cipher: Option<SegmentCipher>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    flags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SegmentCipher {
    iv_tweak: Decimal,
    encryption: String,
    sector_size: u32,
}

impl StoredSegment {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Digest {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) keyslots: Vec<Decimal>,
    segments: Vec<Decimal>,
    pub(super) hash: String,
    pub(super) iterations: u32,
    pub(super) salt: String,
    pub(super) digest: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Config {
    json_size: Decimal,
    keyslots_size: Decimal,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requirements: Option<Requirements>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Requirements {
    mandatory: Vec<String>,
}

/// Encoding of a range of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentKey {
    /// Plaintext.
    Clear,
    /// Encrypted with the volume key of this digest.
    Key(u32),
}

/// What a header says about the data. Offsets are bytes from the start of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data {
    /// Start of the data on the device.
    pub(super) offset: u64,
    /// Encryption sector size in bytes.
    pub(super) sector_size: u32,
    /// Encoding of all data, now or after the job.
    pub(super) after: SegmentKey,
    pub(super) unfinished: Option<Unfinished>,
}

/// An unfinished re-encryption job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub(super) mode: ReencryptionMode,
    /// Encoding of the data that is not done.
    pub(super) before: SegmentKey,
    /// Length of the finished data, from the start.
    pub(super) done: u64,
    /// End of the hot zone, which starts there. `u64::MAX`: the end of the data.
    pub(super) hot: Option<u64>,
}

/// The number is in use or too large, or there is no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

impl StoredHeader {
    pub(super) fn new(size: u64, keyslots: u64, uuid: String, offset: u64, sector_size: u32) -> StoredHeader {
        let config =
            Config { json_size: Decimal(size - BINARY as u64), keyslots_size: Decimal(keyslots), requirements: None };
        let json = Json {
            keyslots: BTreeMap::new(),
            tokens: BTreeMap::new(),
            segments: BTreeMap::new(),
            digests: BTreeMap::new(),
            config,
        };
        let mut header = StoredHeader { size, sequence: 0, uuid, json };
        header.set_data(&Data { offset, sector_size, after: SegmentKey::Key(0), unfinished: None });
        header
    }

    /// The JSON text of both copies.
    pub(super) fn text(&self) -> Vec<u8> {
        serde_json::to_vec(&self.json).expect("numbers and texts can be written as JSON")
    }

    /// Encodes a copy with this JSON; `None` if it does not fit.
    pub(super) fn encode(&self, json: &[u8], second: bool, salt: &[u8; 64]) -> Option<Vec<u8>> {
        let size = usize::try_from(self.size).ok()?;
        let mut bytes = vec![0; size];
        // A NUL terminates the JSON.
        bytes.get_mut(BINARY..size - 1)?.get_mut(..json.len())?.copy_from_slice(json);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, if second { &MAGIC_SECOND } else { &MAGIC });
        put(6, &VERSION.to_be_bytes());
        put(8, &self.size.to_be_bytes());
        put(16, &self.sequence.to_be_bytes());
        put(72, b"sha256");
        put(104, salt);
        put(168, &self.uuid.as_bytes()[..self.uuid.len().min(39)]);
        put(256, &(if second { self.size } else { 0 }).to_be_bytes());
        let checksum = Sha256::digest(&bytes);
        bytes[CHECKSUM][..32].copy_from_slice(&checksum);
        Some(bytes)
    }

    /// Size of a copy, from its first bytes; `None` if they do not start one.
    pub(super) fn size_in(first: &[u8], second: bool) -> Option<u64> {
        let number = |at: usize| Some(u64::from_be_bytes(first.get(at..at + 8)?.try_into().ok()?));
        let magic = if second { &MAGIC_SECOND } else { &MAGIC };
        let ours = first.starts_with(magic) && first.get(6..8)? == VERSION.to_be_bytes();
        number(8).filter(|size| ours && SIZES.contains(size))
    }

    /// The sequence number of a copy; `None` if it is damaged.
    pub(super) fn sequence_in(bytes: &[u8], second: bool) -> Option<u64> {
        let size = StoredHeader::size_in(bytes, second)?;
        let bytes = bytes.get(..usize::try_from(size).ok()?)?;
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (sequence, place) = (number(16)?, number(256)?);
        // The checksum field counts as zeros in its own checksum.
        let sum = Sha256::new().chain_update(&bytes[..CHECKSUM.start]).chain_update([0; 64]);
        let sum = sum.chain_update(&bytes[CHECKSUM.end..]).finalize();
        let is_sound = sum[..] == bytes[CHECKSUM][..32] && place == if second { size } else { 0 };
        is_sound.then_some(sequence)
    }

    /// Decodes a copy; `None` if it is damaged.
    pub(super) fn decode(bytes: &[u8], second: bool) -> Option<StoredHeader> {
        let sequence = StoredHeader::sequence_in(bytes, second)?;
        let size = StoredHeader::size_in(bytes, second)?;
        let uuid = CStr::from_bytes_until_nul(&bytes[168..208]).ok()?.to_str().ok()?.to_owned();
        let text = CStr::from_bytes_until_nul(&bytes[BINARY..]).ok()?;
        let json: Json = serde_json::from_slice(text.to_bytes()).ok()?;
        let header = StoredHeader { size, sequence, uuid, json };
        header.try_data().is_some().then_some(header)
    }

    // ---- keyslots ----

    /// Numbers of the keyslots with a volume key.
    pub(super) fn keyslots(&self) -> impl Iterator<Item = u32> {
        let holds_key = |(_, keyslot): &(&u32, &Keyslot)| matches!(keyslot, Keyslot::Luks2 { .. });
        self.json.keyslots.iter().filter(holds_key).map(|(number, _)| *number)
    }

    /// Digest of a keyslot's volume key.
    pub(super) fn digest_of(&self, keyslot: u32) -> Option<u32> {
        let has = |digest: &Digest| digest.keyslots.contains(&Decimal(u64::from(keyslot)));
        self.json.digests.iter().find(|(_, digest)| has(digest)).map(|(number, _)| *number)
    }

    /// Whether a keyslot's volume key encrypts any segment, now or later.
    pub(super) fn is_used(&self, keyslot: u32) -> bool {
        let digest = self.digest_of(keyslot).and_then(|number| self.json.digests.get(&number));
        digest.is_some_and(|digest| !digest.segments.is_empty())
    }

    /// Free ranges of the keyslots area, sorted.
    fn gaps(&self) -> Vec<Range<u64>> {
        let mut taken: Vec<Range<u64>> = self.json.keyslots.values().map(|keyslot| keyslot.area().range()).collect();
        let start = 2 * self.size;
        let end = start + self.json.config.keyslots_size.0;
        taken.push(end..end);
        taken.sort_by_key(|range| range.start);
        let mut at = start;
        let mut gaps = Vec::new();
        for range in taken {
            gaps.push(at..range.start.max(at));
            at = range.end;
        }
        gaps
    }

    /// Reserves an area for a keyslot and adds its number to the digest. Returns the area.
    pub(super) fn add_keyslot(&mut self, number: u32, digest: u32, kdf: Kdf) -> Result<Range<u64>, NoRoom> {
        let place = self.gaps().into_iter().find(|gap| gap.end - gap.start >= AREA).ok_or(NoRoom)?;
        if number >= NUMBERS || self.json.keyslots.contains_key(&number) {
            return Err(NoRoom);
        }
        let area = Area::Raw {
            offset: Decimal(place.start),
            size: Decimal(AREA),
            encryption: CIPHER.to_owned(),
            key_size: VOLUME_KEY_BYTES,
        };
        let af = Stripes { kind: "luks1".to_owned(), stripes: STRIPES, hash: "sha256".to_owned() };
        self.json.keyslots.insert(number, Keyslot::Luks2 { key_size: VOLUME_KEY_BYTES, af, area, kdf });
        let digest = self.json.digests.get_mut(&digest).ok_or(NoRoom)?;
        digest.keyslots.push(Decimal(u64::from(number)));
        Ok(place.start..place.start + AREA)
    }

    /// Adds a digest without keyslots. Returns its number.
    pub(super) fn add_digest(&mut self, salt: String, digest: String) -> Result<u32, NoRoom> {
        let number = (0..NUMBERS).find(|number| !self.json.digests.contains_key(number)).ok_or(NoRoom)?;
        let digest = Digest {
            kind: "pbkdf2".to_owned(),
            keyslots: Vec::new(),
            segments: Vec::new(),
            hash: "sha256".to_owned(),
            iterations: 1000,
            salt,
            digest,
        };
        self.json.digests.insert(number, digest);
        // The segments of a header without digests refer to the first one.
        if let Some(data) = self.try_data() {
            self.set_data(&data);
        }
        Ok(number)
    }

    /// Removes a keyslot, also from digests and tokens. Returns its area, if it existed.
    pub(super) fn remove_keyslot(&mut self, number: u32) -> Option<Range<u64>> {
        let keyslot = self.json.keyslots.remove(&number)?;
        let name = number.to_string();
        for digest in self.json.digests.values_mut() {
            digest.keyslots.retain(|known| known.0 != u64::from(number));
        }
        for token in self.json.tokens.values_mut() {
            if let Some(keyslots) = token.get_mut("keyslots").and_then(Value::as_array_mut) {
                keyslots.retain(|known| known.as_str() != Some(&name));
            }
        }
        // A digest without keyslots and segments has no use.
        self.json.digests.retain(|_, digest| !digest.keyslots.is_empty() || !digest.segments.is_empty());
        Some(keyslot.area().range())
    }

    /// Area of the hot zone's checksums, while a re-encryption job is unfinished.
    pub(super) fn checksums(&self) -> Option<Range<u64>> {
        let area = |keyslot: &Keyslot| match keyslot {
            Keyslot::Reencrypt { area, .. } => Some(area.range()),
            Keyslot::Luks2 { .. } => None,
        };
        self.json.keyslots.values().find_map(area)
    }

    /// Starts a re-encryption job. Its keyslot gets the highest free number, so that low numbers
    /// stay free.
    pub(super) fn begin(
        &mut self,
        mode: ReencryptionMode,
        before: SegmentKey,
        after: SegmentKey,
    ) -> Result<(), NoRoom> {
        let data = Data { after, unfinished: Some(Unfinished { mode, before, done: 0, hot: None }), ..self.data() };
        let free = |number: &u32| !self.json.keyslots.contains_key(number);
        let number = (0..NUMBERS).rev().find(free).ok_or(NoRoom)?;
        let place = self.gaps().into_iter().max_by_key(|gap| gap.end - gap.start).ok_or(NoRoom)?;
        if place.end - place.start < 4096 {
            return Err(NoRoom);
        }
        let area = Area::Checksum {
            offset: Decimal(place.start),
            size: Decimal(place.end - place.start),
            hash: "sha256".to_owned(),
            sector_size: 512,
        };
        let mode = match mode {
            ReencryptionMode::Encrypt => StoredMode::Encrypt,
            ReencryptionMode::Reencrypt => StoredMode::Reencrypt,
            ReencryptionMode::Decrypt => StoredMode::Decrypt,
        };
        let keyslot = Keyslot::Reencrypt { key_size: 1, mode, direction: "forward".to_owned(), priority: 0, area };
        self.json.keyslots.insert(number, keyslot);
        self.json.config.requirements = Some(Requirements { mandatory: vec![REQUIREMENT.to_owned()] });
        self.set_data(&data);
        Ok(())
    }

    /// Ends a re-encryption job: all data has the final encoding. Returns the areas of keyslots
    /// that are no longer needed.
    pub(super) fn finish(&mut self) -> Vec<Range<u64>> {
        let data = self.data();
        let Some(Unfinished { mode, before, .. }) = data.unfinished else { return Vec::new() };
        self.json.keyslots.retain(|_, keyslot| matches!(keyslot, Keyslot::Luks2 { .. }));
        self.json.config.requirements = None;
        self.set_data(&Data { unfinished: None, ..data });
        match (mode, before) {
            (ReencryptionMode::Reencrypt, SegmentKey::Key(digest)) => {
                let old: Vec<u32> = self.keyslots().filter(|number| self.digest_of(*number) == Some(digest)).collect();
                old.into_iter().filter_map(|number| self.remove_keyslot(number)).collect()
            }
            _ => Vec::new(),
        }
    }

    // ---- data ----

    /// What the header says about the data.
    pub(super) fn data(&self) -> Data {
        self.try_data().expect("checked by decode, and written by set_data since")
    }

    fn side(&self, number: u32, segment: &StoredSegment) -> SegmentKey {
        let has = |digest: &Digest| digest.segments.contains(&Decimal(u64::from(number)));
        match self.json.digests.iter().find(|(_, digest)| has(digest)) {
            Some((digest, _)) => SegmentKey::Key(*digest),
            // No digest yet.
            None if segment.kind == "crypt" => SegmentKey::Key(0),
            None => SegmentKey::Clear,
        }
    }

    fn try_data(&self) -> Option<Data> {
        let segments = &self.json.segments;
        let sector_size = segments.values().find_map(|segment| segment.cipher.as_ref()).map_or(512, |c| c.sector_size);
        let (first, segment) = segments.iter().next()?;
        let offset = segment.offset.0;
        let flagged =
            |flag: &str| segments.iter().find(|(_, segment)| segment.has(flag)).map(|(n, s)| self.side(*n, s));
        let mode = self.json.keyslots.values().find_map(|keyslot| match keyslot {
            Keyslot::Reencrypt { mode, .. } => Some(*mode),
            Keyslot::Luks2 { .. } => None,
        });
        let Some(mode) = mode else {
            return Some(Data { offset, sector_size, after: self.side(*first, segment), unfinished: None });
        };
        let mode = match mode {
            StoredMode::Encrypt => ReencryptionMode::Encrypt,
            StoredMode::Reencrypt => ReencryptionMode::Reencrypt,
            StoredMode::Decrypt => ReencryptionMode::Decrypt,
        };
        let (before, after) = (flagged(BACKUP_PREVIOUS)?, flagged(BACKUP_FINAL)?);
        // The finished segments precede the hot zone and the rest.
        let in_use = || segments.iter().filter(|(_, s)| !s.has(BACKUP_PREVIOUS) && !s.has(BACKUP_FINAL));
        let end = |segment: &StoredSegment| match segment.size.as_str() {
            "dynamic" => Some(u64::MAX),
            size => Some(segment.offset.0.checked_add(size.parse().ok()?)?.checked_sub(offset)?),
        };
        let is_done = |number: u32, segment: &StoredSegment| !segment.has(HOT) && self.side(number, segment) == after;
        let mut done = 0;
        if let Some((_, segment)) = in_use().take_while(|(number, segment)| is_done(**number, segment)).last() {
            done = end(segment)?;
        }
        let hot = match in_use().find(|(_, segment)| segment.has(HOT)) {
            Some((_, segment)) => Some(end(segment)?),
            None => None,
        };
        Some(Data { offset, sector_size, after, unfinished: Some(Unfinished { mode, before, done, hot }) })
    }

    /// Records the state of the data.
    pub(super) fn set_data(&mut self, data: &Data) {
        let mut made: Vec<(StoredSegment, SegmentKey)> = Vec::new();
        let mut add = |from: u64, to: u64, side: SegmentKey, flag: Option<&str>| {
            let cipher = SegmentCipher {
                iv_tweak: Decimal(from / 512),
                encryption: CIPHER.to_owned(),
                sector_size: data.sector_size,
            };
            let encrypted = side != SegmentKey::Clear;
            let segment = StoredSegment {
                kind: if encrypted { "crypt" } else { "linear" }.to_owned(),
                offset: Decimal(data.offset + from),
                size: if to == u64::MAX { "dynamic".to_owned() } else { (to - from).to_string() },
                cipher: encrypted.then_some(cipher),
                flags: flag.map(str::to_owned).into_iter().collect(),
            };
            made.push((segment, side));
        };
        match &data.unfinished {
            None => add(0, u64::MAX, data.after, None),
            Some(Unfinished { before, done, hot, .. }) => {
                if *done > 0 {
                    add(0, *done, data.after, None);
                }
                let rest = hot.unwrap_or(*done);
                if hot.is_some() {
                    add(*done, rest, data.after, Some(HOT));
                }
                if rest < u64::MAX {
                    add(rest, u64::MAX, *before, None);
                }
                add(0, u64::MAX, *before, Some(BACKUP_PREVIOUS));
                add(0, u64::MAX, data.after, Some(BACKUP_FINAL));
            }
        }
        self.json.digests.values_mut().for_each(|digest| digest.segments.clear());
        self.json.segments.clear();
        for (number, (segment, side)) in (0..).zip(made) {
            if let SegmentKey::Key(digest) = side {
                if let Some(digest) = self.json.digests.get_mut(&digest) {
                    digest.segments.push(Decimal(u64::from(number)));
                }
            }
            self.json.segments.insert(number, segment);
        }
    }
}
