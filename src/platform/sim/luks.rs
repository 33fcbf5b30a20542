//! LUKS2 devices as libcryptsetup handles them: formats, reads and changes headers, finds keys,
//! activates crypt devices.
//!
//! Rules:
//! - A header has two copies (`luks_header`). An update writes one copy, flushes, writes the other,
//!   and flushes again. If one copy is invalid, the update starts with that one. So at a power cut
//!   the header is either the old or the new one. The binary part of a new header is written last,
//!   so that no valid header exists before it is complete.
//! - The area of each keyslot holds the volume key, masked with a hash of the passphrase and the
//!   keyslot's salt. The digest of the key shows whether the key is right. Both are one round of
//!   SHA-256: fast, and as strict as the real ones. A destroyed keyslot is first removed from the
//!   header, and then its area is overwritten.
//! - During a re-encryption job, the header takes no other change (libcryptsetup refuses too).
//! - A LUKS device has at most one crypt device. Only while its encryption is unfinished may it
//!   already be in use, by users of its plaintext.
//! - A format does not touch the data.
//!
//! `luks_reencrypt` runs re-encryption jobs. This module knows nothing of pools, and of tokens only
//! that each is an object with `type` and `keyslots`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde_json::Value;

use super::{
    Sim,
    cipher::{Cipher, Coding},
    faults::{CallKind, LuksCall},
    luks_device::{Keys, SimulatedLuksDevice, bytes, describe, has_digest},
    luks_header::{self, Data, NoRoom, SegmentKey, StoredHeader},
    text,
};
use crate::{
    base::units::{Bytes, Sectors},
    platform::{
        Error, Result,
        keyring::Secret,
        luks::{FormatPurpose, Header, HeaderChange, HeaderLayout, NUMBERS, NewKeyslot, ReencryptionMode, Unlock},
    },
};

pub(super) fn read(sim: &Sim, device: &Path) -> Result<Option<Header>> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    Ok(luks.load(LuksCall::Read)?.map(|loaded| describe(&loaded.header)))
}

pub(super) fn format(
    sim: &Sim,
    device: &Path,
    layout: &HeaderLayout,
    purpose: FormatPurpose,
    keyslots: &[NewKeyslot<'_>],
    tokens: &BTreeMap<u32, Value>,
) -> Result<Header> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    let call = CallKind::Luks(LuksCall::Format);
    let refused = |what: &str| luks.refused(LuksCall::Format, what);
    let (metadata, space) = (bytes(layout.metadata), bytes(layout.keyslots));
    let offset = layout.data_offset.bytes();
    let areas = Bytes(u128::from(metadata) * 2 + u128::from(space));
    if !luks_header::SIZES.contains(&metadata) || !space.is_multiple_of(4096) || offset < areas {
        return Err(refused("there is not enough space for the header and its keyslots"));
    }
    let (geometry, in_use) = sim.step(call, &text(device), || {
        luks.peek(call, |machine| {
            let in_use = machine.is_in_use(luks.number) || machine.xfs.is_mounted(luks.number);
            Ok((machine.geometry(luks.number)?, in_use))
        })
    })?;
    if in_use && purpose == FormatPurpose::New {
        return Err(Error::Busy { name: text(device).into_owned() });
    }
    if geometry.size <= layout.data_offset {
        return Err(refused("the device is too small"));
    }
    let sector_size = layout.sector_size.unwrap_or(geometry.physical.clamp(512, 4096));
    if !matches!(sector_size, 512 | 1024 | 2048 | 4096) || sector_size < geometry.logical.min(4096) {
        return Err(refused("the device does not support this sector size"));
    }
    if keyslots.is_empty() {
        return Err(refused("the header would have no keyslot"));
    }
    let uuid = uuid::Builder::from_random_bytes(sim.random_bytes()).into_uuid().to_string();
    let mut header = StoredHeader::new(metadata, space, uuid, bytes(offset), sector_size);
    let volume_key = sim.random_key();
    let no_room = |NoRoom| refused("the keyslot number is in use, or there is no space for the keyslot");
    let digest = luks.add_digest(&mut header, &volume_key).map_err(no_room)?;
    let mut areas = Vec::new();
    for keyslot in keyslots {
        areas.push(luks.add_keyslot(&mut header, digest, keyslot, &volume_key).map_err(no_room)?);
    }
    for (number, token) in tokens {
        put_token(&mut header, *number, token.clone()).map_err(refused)?;
    }
    if purpose == FormatPurpose::Encrypt {
        header.begin(ReencryptionMode::Encrypt, SegmentKey::Clear, SegmentKey::Key(digest)).map_err(no_room)?;
    }
    let written = luks.write_new(&mut header, &areas);
    written.and(sim.written(luks.number)).map(|()| describe(&header))
}

pub(super) fn change(
    sim: &Sim,
    device: &Path,
    unlock: Option<Unlock<'_>>,
    changes: &[HeaderChange<'_>],
) -> Result<Header> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    let mut loaded = luks.load_some(LuksCall::Change)?;
    let refused = |what: &str| luks.refused(LuksCall::Change, what);
    let Data { after, unfinished: None, .. } = loaded.header.data() else {
        return Err(refused("a re-encryption job is unfinished; resume it first"));
    };
    let adds =
        |change: &HeaderChange<'_>| matches!(change, HeaderChange::AddKeyslot(_) | HeaderChange::AddNextKeyslot(_));
    let current = match (unlock, after) {
        _ if !changes.iter().any(adds) => None,
        (None, _) => return Err(refused("adding a keyslot takes a passphrase that opens the device; give one")),
        (Some(_), SegmentKey::Clear) => return Err(refused("its data is not encrypted")),
        (Some(unlock), SegmentKey::Key(digest)) => {
            let (_, key) = luks.unlock(&loaded.header, unlock, |_, found| found == Some(digest))?;
            Some((digest, key))
        }
    };
    let mut next = None;
    let done = changes.iter().try_for_each(|change| {
        let mut header = loaded.header.clone();
        let no_room = |NoRoom| refused("the keyslot number is in use, or there is no space for the keyslot");
        let add = |header: &mut StoredHeader, digest: u32, key: &Secret, keyslot: &NewKeyslot<'_>| {
            let area = luks.add_keyslot(header, digest, keyslot, key).map_err(no_room)?;
            luks.write(area.0, &area.1)?;
            luks.flush()
        };
        let mut to_wipe = None;
        match change {
            HeaderChange::AddKeyslot(keyslot) => {
                let (digest, key) = current.as_ref().expect("found above, for changes that add");
                add(&mut header, *digest, key, keyslot)?;
            }
            HeaderChange::AddNextKeyslot(keyslot) => {
                let (digest, key) = match next.take() {
                    Some(made) => made,
                    None => {
                        let key = sim.random_key();
                        (luks.add_digest(&mut header, &key).map_err(no_room)?, key)
                    }
                };
                let added = add(&mut header, digest, &key, keyslot);
                next = Some((digest, key));
                added?;
            }
            HeaderChange::DestroyKeyslot(number) => match header.remove_keyslot(*number) {
                Some(area) => to_wipe = Some(area),
                None => return Ok(()),
            },
            HeaderChange::PutToken(number, token) => {
                put_token(&mut header, *number, token.clone()).map_err(refused)?;
            }
            HeaderChange::RemoveToken(number) => {
                if header.json.tokens.remove(number).is_none() {
                    return Ok(());
                }
            }
        }
        luks.update(&mut loaded, header)?;
        to_wipe.map_or(Ok(()), |area| luks.wipe(area.start))
    });
    done.and(sim.written(luks.number)).map(|()| describe(&loaded.header))
}

pub(super) fn open(sim: &Sim, device: &Path, name: Option<&str>, unlock: Unlock<'_>) -> Result<Secret> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    let refused = |what: &str| luks.refused(LuksCall::Open, what);
    let mut loaded = luks.load_some(LuksCall::Open)?;
    let keys = luks.keys(&loaded.header, unlock)?;
    let Some(name) = name else { return Ok(keys.volume_key) };
    let data = loaded.header.data();
    {
        let machine = sim.machine()?;
        if machine.dm.by_name(name).is_some() {
            return Err(refused("a device of that name is active"));
        }
        let is_shared = data.unfinished.as_ref().is_some_and(|unfinished| unfinished.mode == ReencryptionMode::Encrypt);
        if machine.is_in_use(luks.number) && !is_shared {
            return Err(Error::Busy { name: text(device).into_owned() });
        }
    }
    if data.unfinished.as_ref().is_some_and(|unfinished| unfinished.hot.is_some()) {
        luks.recover(&mut loaded, &keys)?;
    }
    luks.bring_up(&loaded, &keys, name)?;
    Ok(keys.volume_key)
}

pub(super) fn reopen(sim: &Sim, device: &Path, name: &str, volume_key: &Secret) -> Result<()> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    let refused = |what: &str| luks.refused(LuksCall::Open, what);
    let loaded = luks.load_some(LuksCall::Open)?;
    let data = loaded.header.data();
    let SegmentKey::Key(digest) = data.after else { return Err(refused("it is not encrypted")) };
    if data.unfinished.is_some() {
        return Err(refused("a re-encryption job is unfinished; resume it first"));
    }
    if !has_digest(&loaded.header, digest, volume_key.bytes()) {
        return Err(Error::WrongKey { device: device.to_owned() });
    }
    {
        let machine = sim.machine()?;
        if machine.dm.by_name(name).is_some() || machine.is_in_use(luks.number) {
            return Err(Error::Busy { name: text(device).into_owned() });
        }
    }
    let coding = || Coding::Key(Arc::new(Cipher::new(volume_key.bytes(), data.sector_size)));
    let keys = Keys { before: coding(), after: coding(), volume_key: volume_key.clone() };
    luks.bring_up(&loaded, &keys, name)
}

pub(super) fn resize(sim: &Sim, device: &Path, name: &str, volume_key: &Secret, size: Option<Sectors>) -> Result<()> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    let refused = |what: &str| luks.refused(LuksCall::Resize, what);
    let call = CallKind::Luks(LuksCall::Resize);
    sim.step(call, &text(device), || {
        let loaded = luks.some(luks.find(call)?, LuksCall::Resize)?;
        let data = loaded.header.data();
        if data.unfinished.is_some() {
            return Err(refused("a re-encryption job is unfinished; resume it first"));
        }
        if let SegmentKey::Key(digest) = data.after {
            if !has_digest(&loaded.header, digest, volume_key.bytes()) {
                return Err(refused("the volume key does not match its digest"));
            }
        }
        let room = luks.room(&data)?;
        let wanted = match size {
            Some(size) => bytes(size.bytes()),
            None => room,
        };
        let wanted = wanted - wanted % u64::from(data.sector_size);
        if wanted == 0 || wanted > room {
            return Err(refused("the device is too small for that size"));
        }
        let mut machine = sim.machine()?;
        let Some(minor) = luks.minor(&machine, name) else { return Err(refused("it has no active crypt device")) };
        if let Some(opened) = machine.opened_mut(minor) {
            // The rest of a finished re-encryption job has the new encoding, too.
            opened.settle();
            opened.length = wanted;
        }
        machine.crypt_changed(minor);
        machine.changed_event(minor);
        drop(machine);
        sim.0.changed.notify_all();
        Ok(())
    })
}

fn put_token(header: &mut StoredHeader, number: u32, token: Value) -> std::result::Result<(), &'static str> {
    let is_there = |keyslot: &Value| {
        let number = keyslot.as_str().and_then(|text| text.parse::<u32>().ok());
        number.is_some_and(|number| header.keyslots().any(|known| known == number))
    };
    let keyslots = token.get("keyslots").and_then(Value::as_array);
    if number >= NUMBERS {
        return Err("the token number is too large");
    }
    if !token.get("type").is_some_and(Value::is_string) || !keyslots.is_some_and(|all| all.iter().all(is_there)) {
        return Err("the token is not an object with a type and existing keyslots");
    }
    header.json.tokens.insert(number, token);
    Ok(())
}
