//! A device with a LUKS2 header: reads and writes the header, chooses the valid copy after a power
//! cut, finds keys, builds the crypt device.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::Path,
    sync::Arc,
};

use data_encoding::BASE64;
use nix::libc;
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Sim,
    cipher::{Cipher, Coding, Opened},
    faults::{CallKind, LuksCall, luks_error},
    incomplete::{Incomplete, Patience},
    luks_header::{self, Data, Kdf, Keyslot, NoRoom, SegmentKey, StoredHeader},
    machine::MachineState,
    text,
};
use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::{
        DeviceNumber, Error, Result,
        keyring::Secret,
        luks::{Cost, DataEncryption, Header, NewKeyslot, Unlock, VOLUME_KEY_BYTES},
    },
};

/// Size of what is written to a keyslot's area: the masked key, padded with zeros to a sector.
pub(super) const KEY_AREA: usize = SECTOR as usize;

/// A device that has a LUKS2 header or is being formatted.
pub(super) struct SimulatedLuksDevice<'a> {
    pub(super) sim: &'a Sim,
    pub(super) path: &'a Path,
    pub(super) number: DeviceNumber,
}

/// A header, and which of its copies are valid.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) header: StoredHeader,
    first: bool,
    second: bool,
}

/// State of the first copy in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpdateStage {
    /// Not written yet.
    Before,
    /// Written, but not flushed.
    Written,
    /// Durable.
    Durable,
}

pub(super) enum HeaderSearch {
    Nothing,
    Damaged,
    Header(Loaded),
}

/// Encodings of the data and its volume key.
pub(super) struct Keys {
    pub(super) before: Coding,
    pub(super) after: Coding,
    /// The volume key that the data has, or will have.
    pub(super) volume_key: Secret,
}

impl<'a> SimulatedLuksDevice<'a> {
    pub(super) fn at(sim: &'a Sim, path: &'a Path) -> Result<SimulatedLuksDevice<'a>> {
        let (_, number) = sim.node(path)?;
        Ok(SimulatedLuksDevice { sim, path, number })
    }

    /// Activates the crypt device.
    pub(super) fn bring_up(&self, loaded: &Loaded, keys: &Keys, name: &str) -> Result<()> {
        let uuid = format!("CRYPT-LUKS2-{}-{name}", loaded.header.uuid.replace('-', ""));
        let mut opened = Some(self.opened(&loaded.header.data(), keys)?);
        let up = self.sim.dm(CallKind::DmCreate, name, |machine| match opened.take() {
            Some(opened) => machine.crypt_up(name, &uuid, opened),
            None => Ok(()),
        });
        if up.is_err() && !self.sim.0.control.has_ended() {
            let mut machine = self.sim.machine()?;
            // The crypt device may be active nevertheless. A device of that name that is not this
            // crypt device stays.
            if self.minor(&machine, name).is_some() {
                let _ = machine.dm_remove(name);
                self.sim.0.changed.notify_all();
            }
        }
        up
    }

    pub(super) fn refused(&self, call: LuksCall, what: &str) -> Error {
        luks_error(CallKind::Luks(call), &text(self.path), what)
    }

    /// I/O that is part of a step.
    pub(super) fn peek<T>(
        &self,
        call: CallKind,
        act: impl FnMut(&mut MachineState) -> std::result::Result<T, Incomplete>,
    ) -> Result<T> {
        let failed = |errno| luks_error(call, &text(self.path), std::io::Error::from_raw_os_error(errno));
        self.sim.wait_for_io(act, failed)
    }

    /// A step that writes or flushes.
    pub(super) fn act<T>(&self, act: impl FnMut(&mut MachineState) -> std::result::Result<T, Incomplete>) -> Result<T> {
        self.sim.step(CallKind::LuksWrite, &text(self.path), || self.peek(CallKind::LuksWrite, act))
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.act(|machine| machine.write_at(self.number, offset, bytes, Patience::Wait))
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.act(|machine| machine.flush(self.number, Patience::Wait))
    }

    /// Overwrites a keyslot's area.
    pub(super) fn wipe(&self, offset: u64) -> Result<()> {
        self.write(offset, &self.sim.random_bytes::<KEY_AREA>())?;
        self.flush()
    }

    // ---- headers ----

    pub(super) fn find(&self, call: CallKind) -> Result<HeaderSearch> {
        self.peek(call, |machine| find(machine, self.number))
    }

    pub(super) fn some(&self, found: HeaderSearch, call: LuksCall) -> Result<Loaded> {
        match found {
            HeaderSearch::Header(loaded) => Ok(loaded),
            HeaderSearch::Nothing => Err(self.refused(call, "the device has no LUKS2 header")),
            HeaderSearch::Damaged => Err(self.damaged(call)),
        }
    }

    pub(super) fn damaged(&self, call: LuksCall) -> Error {
        self.refused(call, "both copies of the header are damaged; restore the header from a backup")
    }

    /// The first step of a call: reads the header.
    pub(super) fn load(&self, call: LuksCall) -> Result<Option<Loaded>> {
        self.sim.step(CallKind::Luks(call), &text(self.path), || match self.find(CallKind::Luks(call))? {
            HeaderSearch::Nothing => Ok(None),
            HeaderSearch::Header(loaded) => Ok(Some(loaded)),
            HeaderSearch::Damaged => Err(self.damaged(call)),
        })
    }

    /// As [`SimulatedLuksDevice::load`], but fails if there is no header.
    pub(super) fn load_some(&self, call: LuksCall) -> Result<Loaded> {
        self.load(call)?.ok_or_else(|| self.refused(call, "the device has no LUKS2 header"))
    }

    /// Encodes two copies; `order` says for each whether it is the second.
    pub(super) fn encode(&self, header: &StoredHeader, order: [bool; 2]) -> Result<[Vec<u8>; 2]> {
        let text = header.text();
        let copy = |second: bool| {
            let salt = self.sim.random_bytes();
            let no_room = || self.refused(LuksCall::Change, "the header has no space for the change");
            header.encode(&text, second, &salt).ok_or_else(no_room)
        };
        Ok([copy(order[0])?, copy(order[1])?])
    }

    /// Replaces a header.
    pub(super) fn update(&self, loaded: &mut Loaded, header: StoredHeader) -> Result<()> {
        self.update_with(loaded, header, |_, _| true).map(drop)
    }

    /// Replaces a header. Calls `at` at the moments of the first copy, in the same step as the
    /// write; if `at` refuses the first moment, nothing is written. Returns whether the header was
    /// written.
    pub(super) fn update_with(
        &self,
        loaded: &mut Loaded,
        mut header: StoredHeader,
        mut at: impl FnMut(&mut MachineState, UpdateStage) -> bool,
    ) -> Result<bool> {
        header.sequence = loaded.header.sequence + 1;
        // Write an invalid copy first, so that a valid one always exists.
        let order = if loaded.first && !loaded.second { [true, false] } else { [false, true] };
        let copies = self.encode(&header, order)?;
        let place = |second: bool| if second { header.size } else { 0 };
        let written = self.act(|machine| {
            if !at(machine, UpdateStage::Before) {
                return Ok(false);
            }
            machine.write_at(self.number, place(order[0]), &copies[0], Patience::Wait)?;
            Ok(at(machine, UpdateStage::Written))
        })?;
        if !written {
            return Ok(false);
        }
        self.act(|machine| machine.flush(self.number, Patience::Wait).map(|()| at(machine, UpdateStage::Durable)))?;
        self.write(place(order[1]), &copies[1])?;
        self.flush()?;
        *loaded = Loaded { header, first: true, second: true };
        Ok(true)
    }

    /// Writes a new header, after the areas of its keyslots.
    pub(super) fn write_new(&self, header: &mut StoredHeader, areas: &[(u64, Vec<u8>)]) -> Result<()> {
        header.sequence = 1;
        let copies = self.encode(header, [false, true])?;
        areas.iter().try_for_each(|(at, bytes)| self.write(*at, bytes))?;
        self.write(luks_header::BINARY as u64, &copies[0][luks_header::BINARY..])?;
        self.flush()?;
        self.write(0, &copies[0][..luks_header::BINARY])?;
        self.flush()?;
        self.write(header.size, &copies[1])?;
        self.flush()
    }

    // ---- keys ----

    pub(super) fn add_digest(&self, header: &mut StoredHeader, key: &Secret) -> std::result::Result<u32, NoRoom> {
        let salt = self.sim.random_bytes::<32>();
        header.add_digest(BASE64.encode(&salt), BASE64.encode(&digest(&salt, key.bytes())))
    }

    /// Adds a keyslot to a header. Returns the offset of its area and the bytes for it.
    pub(super) fn add_keyslot(
        &self,
        header: &mut StoredHeader,
        digest: u32,
        keyslot: &NewKeyslot<'_>,
        key: &Secret,
    ) -> std::result::Result<(u64, Vec<u8>), NoRoom> {
        self.sim.note_slow_call();
        let salt = self.sim.random_bytes::<32>();
        let encoded = BASE64.encode(&salt);
        let kdf = match keyslot.cost {
            Cost::Guessable => Kdf::Argon2id { time: 4, memory: 1 << 20, cpus: 4, salt: encoded },
            Cost::Random => Kdf::Pbkdf2 { hash: "sha256".to_owned(), iterations: 1000, salt: encoded },
        };
        let place = header.add_keyslot(keyslot.number, digest, kdf)?;
        let mut area = masked(&salt, keyslot.passphrase, key.bytes()).to_vec();
        area.resize(KEY_AREA, 0);
        Ok((place.start, area))
    }

    /// The volume key in a keyslot, if the passphrase opens it.
    pub(super) fn key_in(&self, header: &StoredHeader, number: u32, passphrase: &Secret) -> Result<Option<Secret>> {
        let Some(Keyslot::Luks2 { area, kdf, .. }) = header.json.keyslots.get(&number) else { return Ok(None) };
        let Some(digest) = header.digest_of(number) else { return Ok(None) };
        self.sim.note_slow_call();
        let mut held = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
        let at = area.range().start;
        self.peek(CallKind::Luks(LuksCall::Open), |machine| {
            machine.read_at(self.number, at, &mut held, Patience::Wait)
        })?;
        let salt = BASE64.decode(kdf.salt().as_bytes()).unwrap_or_default();
        let key = masked(&salt, passphrase, &held);
        Ok(has_digest(header, digest, &key).then(|| Secret::new(key)))
    }

    /// The first keyslot among the allowed ones that the passphrase opens.
    pub(super) fn unlock(
        &self,
        header: &StoredHeader,
        unlock: Unlock<'_>,
        may: impl Fn(u32, Option<u32>) -> bool,
    ) -> Result<(u32, Secret)> {
        for number in header.keyslots() {
            if unlock.keyslot.is_none_or(|only| only == number) && may(number, header.digest_of(number)) {
                if let Some(key) = self.key_in(header, number, unlock.passphrase)? {
                    return Ok((number, key));
                }
            }
        }
        Err(Error::WrongKey { device: self.path.to_owned() })
    }

    /// Finds the encodings of the data. The passphrase must open all keys needed.
    pub(super) fn keys(&self, header: &StoredHeader, unlock: Unlock<'_>) -> Result<Keys> {
        let data = header.data();
        let before = data.unfinished.as_ref().map_or(data.after, |unfinished| unfinished.before);
        let sides = [data.after, before];
        let needed = |digest: Option<u32>| {
            // Plaintext on both sides: any keyslot proves the passphrase.
            sides == [SegmentKey::Clear; 2] || digest.is_some_and(|digest| sides.contains(&SegmentKey::Key(digest)))
        };
        let (first, key) = self.unlock(header, unlock, |_, digest| needed(digest))?;
        let first = header.digest_of(first);
        let mut found = BTreeMap::from([(first, key)]);
        for side in sides {
            if let SegmentKey::Key(digest) = side {
                if let Entry::Vacant(place) = found.entry(Some(digest)) {
                    let any = Unlock { keyslot: None, ..unlock };
                    place.insert(self.unlock(header, any, |_, of| of == Some(digest))?.1);
                }
            }
        }
        let coding = |side: SegmentKey| match side {
            SegmentKey::Clear => Coding::Clear,
            SegmentKey::Key(digest) => {
                Coding::Key(Arc::new(Cipher::new(found[&Some(digest)].bytes(), data.sector_size)))
            }
        };
        let of = |side: SegmentKey| match side {
            SegmentKey::Key(digest) => Some(&found[&Some(digest)]),
            SegmentKey::Clear => None,
        };
        let volume_key = of(data.after).or(of(before)).unwrap_or(&found[&first]).clone();
        Ok(Keys { before: coding(before), after: coding(data.after), volume_key })
    }

    // ---- devices ----

    /// Largest size of the crypt device in bytes.
    pub(super) fn room(&self, data: &Data) -> Result<u64> {
        let size = self.sim.machine()?.size_of(self.number).unwrap_or(0).saturating_sub(data.offset);
        let size = size - size % u64::from(data.sector_size);
        if size > 0 { Ok(size) } else { Err(self.refused(LuksCall::Open, "the device is too small")) }
    }

    /// The crypt device for this header, without a hot zone.
    pub(super) fn opened(&self, data: &Data, keys: &Keys) -> Result<Opened> {
        Ok(Opened {
            below: self.number,
            offset: data.offset,
            length: self.room(data)?,
            sector_size: data.sector_size,
            before: keys.before.clone(),
            after: keys.after.clone(),
            done: data.unfinished.as_ref().map_or(u64::MAX, |unfinished| unfinished.done),
            zone: None,
        })
    }

    /// Minor number of the crypt device on this LUKS device.
    pub(super) fn minor(&self, machine: &MachineState, name: &str) -> Option<u32> {
        let minor = machine.dm.by_name(name)?;
        machine.opened(minor).filter(|opened| opened.below == self.number).map(|_| minor)
    }
}

impl Sim {
    pub(super) fn random_key(&self) -> Secret {
        let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
        self.0.random.lock().fill_bytes(&mut key);
        Secret::new(key)
    }
}

pub(super) fn find(machine: &MachineState, number: DeviceNumber) -> std::result::Result<HeaderSearch, Incomplete> {
    // An unreadable copy is treated like a damaged one, as long as the other can be read.
    let mut unreadable = None;
    let mut read = |at: u64, length: usize| -> std::result::Result<Option<Vec<u8>>, Incomplete> {
        let mut bytes = vec![0; length];
        match machine.read_at(number, at, &mut bytes, Patience::Wait) {
            Ok(()) => Ok(Some(bytes)),
            Err(Incomplete::Errno(errno)) => {
                unreadable = Some(errno);
                Ok(None)
            }
            Err(wait) => Err(wait),
        }
    };
    let mut copy = |at: u64, second: bool| -> std::result::Result<Option<(u64, Vec<u8>)>, Incomplete> {
        let Some(start) = read(at, SECTOR as usize)? else { return Ok(None) };
        let Some(size) = StoredHeader::size_in(&start, second).filter(|size| !second || *size == at) else {
            return Ok(None);
        };
        let sound = |bytes: Vec<u8>| StoredHeader::sequence_in(&bytes, second).map(|sequence| (sequence, bytes));
        Ok(read(at, size as usize)?.and_then(sound))
    };
    let size = machine.size_of(number).ok_or(Incomplete::Errno(libc::ENXIO))?;
    let first = copy(0, false)?;
    let mut second = None;
    match &first {
        Some((_, bytes)) => second = copy(bytes.len() as u64, true)?,
        None => {
            for place in luks_header::SIZES.into_iter().filter(|place| *place < size) {
                second = copy(place, true)?;
                if second.is_some() {
                    break;
                }
            }
        }
    }
    let sequence = |copy: &Option<(u64, Vec<u8>)>| copy.as_ref().map(|(sequence, _)| *sequence);
    let newest = sequence(&first).max(sequence(&second));
    let (is_first, is_second) = (sequence(&first) == newest, sequence(&second) == newest);
    if let Some((_, bytes)) = if is_first { first } else { second } {
        let loaded = |header| HeaderSearch::Header(Loaded { header, first: is_first, second: is_second });
        // Valid checksum but malformed content: written by something else.
        return Ok(StoredHeader::decode(&bytes, !is_first).map_or(HeaderSearch::Damaged, loaded));
    }
    let start = read(0, luks_header::MAGIC.len() + 2)?;
    match (unreadable, start) {
        (Some(errno), _) => Err(Incomplete::Errno(errno)),
        (None, Some(start)) if start.starts_with(&luks_header::MAGIC) && start[6..] == [0, 2] => {
            Ok(HeaderSearch::Damaged)
        }
        _ => Ok(HeaderSearch::Nothing),
    }
}

/// The header on a device.
pub(super) fn header_on(machine: &MachineState, number: DeviceNumber) -> Option<Header> {
    match find(machine, number).ok()? {
        HeaderSearch::Header(loaded) => Some(describe(&loaded.header)),
        HeaderSearch::Nothing | HeaderSearch::Damaged => None,
    }
}

/// A header whose passphrase is unknown.
pub(super) fn foreign() -> Vec<u8> {
    let uuid = "5f3a2d0c-6b1e-4c58-9a77-0d9e8f7a6b5c".to_owned();
    let mut header = StoredHeader::new(luks_header::SIZES[0], 1 << 20, uuid, 16 << 20, 512);
    let kdf = Kdf::Pbkdf2 { hash: "sha256".to_owned(), iterations: 1000, salt: BASE64.encode(&[1; 32]) };
    let digest = header.add_digest(BASE64.encode(&[2; 32]), BASE64.encode(&[3; 32]));
    let made = digest.and_then(|digest| header.add_keyslot(0, digest, kdf));
    let text = header.text();
    let copy = |second| header.encode(&text, second, &[4; 64]).filter(|_| made.is_ok()).unwrap_or_default();
    [copy(false), copy(true)].concat()
}

/// Whether a device holds the second copy of a header.
pub(super) fn has_second_copy(machine: &MachineState, number: DeviceNumber) -> bool {
    luks_header::SIZES.into_iter().any(|place| {
        let mut start = [0; SECTOR as usize];
        let read = machine.read_at(number, place, &mut start, Patience::Wait);
        read.is_ok() && StoredHeader::size_in(&start, true) == Some(place)
    })
}

/// Masks a key for its keyslot area, and unmasks it.
pub(super) fn masked(salt: &[u8], passphrase: &Secret, key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut mask = Zeroizing::new(Vec::with_capacity(VOLUME_KEY_BYTES));
    for half in [0_u8, 1] {
        let hash = Sha256::new().chain_update(salt).chain_update([half]).chain_update(passphrase.bytes()).finalize();
        mask.extend_from_slice(&hash);
    }
    Zeroizing::new(key.iter().zip(mask.iter()).map(|(byte, mask)| byte ^ mask).collect())
}

pub(super) fn digest(salt: &[u8], key: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
}

pub(super) fn has_digest(header: &StoredHeader, number: u32, key: &[u8]) -> bool {
    let Some(known) = header.json.digests.get(&number) else { return false };
    let salt = BASE64.decode(known.salt.as_bytes()).unwrap_or_default();
    BASE64.encode(&digest(&salt, key)) == known.digest
}

/// The header as the platform returns it.
pub(super) fn describe(header: &StoredHeader) -> Header {
    let data = header.data();
    let state = match (&data.unfinished, data.after) {
        (Some(unfinished), _) => {
            // The first hot zone, cut short, no longer has its original data.
            let begun = u64::from(unfinished.hot.is_some());
            DataEncryption::Unfinished { mode: unfinished.mode, done: Bytes(u128::from(unfinished.done.max(begun))) }
        }
        (None, SegmentKey::Key(_)) => DataEncryption::Encrypted,
        (None, SegmentKey::Clear) => DataEncryption::Clear,
    };
    Header {
        uuid: header.uuid.clone(),
        data_offset: Sectors(data.offset / SECTOR),
        sector_size: data.sector_size,
        state,
        keyslots: header.keyslots().collect::<BTreeSet<_>>(),
        unused: header.keyslots().filter(|keyslot| !header.is_used(*keyslot)).collect(),
        tokens: header.json.tokens.clone(),
    }
}

/// Sizes that fit a device are exact; larger ones saturate.
pub(super) fn bytes(size: Bytes) -> u64 {
    u64::try_from(size.0).unwrap_or(u64::MAX)
}
