//! LUKS2 containers as libcryptsetup handles them: headers read, made and changed, keys found, devices opened.
//!
//! Rules:
//! - A header is two copies (`luks_header`). An update writes one, flushes, writes the other, flushes; the first to be written
//!   is one that does not count. So power may go at any moment: the header is the one before or the one after. A new
//!   header's binary part is written last, so that there is none before all of it is there.
//! - A volume key stands in the area of each of its keyslots, masked with what the passphrase and the keyslot's salt give; its
//!   digest tells whether it is the one. Both are one round of SHA-256: quick, and as strict as the real ones. A keyslot that
//!   is destroyed goes from the header, and then its area is overwritten.
//! - A container whose data is being worked on takes no other change of its header (libcryptsetup refuses too).
//! - A container is opened by one device. Only one in which the encryption has not come to an end may be in use already,
//!   by those who use its data in the clear.
//! - Nothing of the data is touched when a container is made.
//!
//! How a work goes on is in `luks_reencrypt`. Knows nothing of pools, and of tokens only that each is an object with
//! `type` and `keyslots`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde_json::Value;

use super::{
    Sim,
    crypt::{Cipher, Coding},
    faults::{Call, LuksCall},
    luks_device::{Container, Keys, bytes, describe, has_digest},
    luks_header::{self as stored, Data, NoRoom, Side},
    text,
};
use crate::{
    base::units::{Bytes, Sectors},
    platform::{
        Error, Result,
        keyring::Secret,
        luks::{Header, HeaderChange, Layout, NUMBERS, NewKeyslot, Purpose, ReencryptionMode, Unlock},
    },
};

pub(super) fn read(sim: &Sim, device: &Path) -> Result<Option<Header>> {
    let container = Container::at(sim, device)?;
    Ok(container.load(LuksCall::Read)?.map(|loaded| describe(&loaded.header)))
}

pub(super) fn format(
    sim: &Sim,
    device: &Path,
    layout: &Layout,
    purpose: Purpose,
    keyslots: &[NewKeyslot<'_>],
    tokens: &BTreeMap<u32, Value>,
) -> Result<Header> {
    let container = Container::at(sim, device)?;
    let call = Call::Luks(LuksCall::Format);
    let refused = |what: &str| container.refused(LuksCall::Format, what);
    let (metadata, space) = (bytes(layout.metadata), bytes(layout.keyslots));
    let offset = layout.data_offset.bytes();
    let areas = Bytes(u128::from(metadata) * 2 + u128::from(space));
    if !stored::SIZES.contains(&metadata) || !space.is_multiple_of(4096) || offset < areas {
        return Err(refused("the header and its keyslots do not have the room that was asked for"));
    }
    let (geometry, in_use) = sim.step(call, &text(device), || {
        container.peek(call, |machine| {
            let in_use = machine.is_in_use(container.number) || machine.xfs.is_mounted(container.number);
            Ok((machine.geometry(container.number)?, in_use))
        })
    })?;
    if in_use && purpose == Purpose::New {
        return Err(Error::Busy { name: text(device).into_owned() });
    }
    if geometry.size <= layout.data_offset {
        return Err(refused("the device is too small"));
    }
    let sector_size = layout.sector_size.unwrap_or(geometry.physical.clamp(512, 4096));
    if !matches!(sector_size, 512 | 1024 | 2048 | 4096) || sector_size < geometry.logical.min(4096) {
        return Err(refused("the device does not have such sectors"));
    }
    if keyslots.is_empty() {
        return Err(refused("it would have no keyslot"));
    }
    let uuid = uuid::Builder::from_random_bytes(sim.random_bytes()).into_uuid().to_string();
    let mut header = stored::Header::new(metadata, space, uuid, bytes(offset), sector_size);
    let volume_key = sim.random_key();
    let no_room = |NoRoom| refused("a keyslot's number is taken, or there is no room for it");
    let digest = container.add_digest(&mut header, &volume_key).map_err(no_room)?;
    let mut areas = Vec::new();
    for keyslot in keyslots {
        areas.push(container.add_keyslot(&mut header, digest, keyslot, &volume_key).map_err(no_room)?);
    }
    for (number, token) in tokens {
        put_token(&mut header, *number, token.clone()).map_err(refused)?;
    }
    if purpose == Purpose::Encrypt {
        header.begin(ReencryptionMode::Encrypt, Side::Clear, Side::Key(digest)).map_err(no_room)?;
    }
    let written = container.write_new(&mut header, &areas);
    written.and(sim.written(container.number)).map(|()| describe(&header))
}

pub(super) fn change(
    sim: &Sim,
    device: &Path,
    unlock: Option<Unlock<'_>>,
    changes: &[HeaderChange<'_>],
) -> Result<Header> {
    let container = Container::at(sim, device)?;
    let mut loaded = container.load_some(LuksCall::Change)?;
    let refused = |what: &str| container.refused(LuksCall::Change, what);
    let Data { after, unfinished: None, .. } = loaded.header.data() else {
        return Err(refused("a work on its data is not completed"));
    };
    let adds =
        |change: &HeaderChange<'_>| matches!(change, HeaderChange::AddKeyslot(_) | HeaderChange::AddNextKeyslot(_));
    let current = match (unlock, after) {
        _ if !changes.iter().any(adds) => None,
        (None, _) => return Err(refused("a passphrase is needed to add a keyslot")),
        (Some(_), Side::Clear) => return Err(refused("its data is in the clear")),
        (Some(unlock), Side::Key(digest)) => {
            let (_, key) = container.unlock(&loaded.header, unlock, |_, found| found == Some(digest))?;
            Some((digest, key))
        }
    };
    let mut next = None;
    let done = changes.iter().try_for_each(|change| {
        let mut header = loaded.header.clone();
        let no_room = |NoRoom| refused("a keyslot's number is taken, or there is no room for it");
        let add = |header: &mut stored::Header, digest: u32, key: &Secret, keyslot: &NewKeyslot<'_>| {
            let area = container.add_keyslot(header, digest, keyslot, key).map_err(no_room)?;
            container.write(area.0, &area.1)?;
            container.flush()
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
                        (container.add_digest(&mut header, &key).map_err(no_room)?, key)
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
        container.update(&mut loaded, header)?;
        to_wipe.map_or(Ok(()), |area| container.wipe(area.start))
    });
    done.and(sim.written(container.number)).map(|()| describe(&loaded.header))
}

pub(super) fn open(sim: &Sim, device: &Path, name: Option<&str>, unlock: Unlock<'_>) -> Result<Secret> {
    let container = Container::at(sim, device)?;
    let refused = |what: &str| container.refused(LuksCall::Open, what);
    let mut loaded = container.load_some(LuksCall::Open)?;
    let keys = container.keys(&loaded.header, unlock)?;
    let Some(name) = name else { return Ok(keys.volume_key) };
    let data = loaded.header.data();
    {
        let machine = sim.machine()?;
        if machine.dm.by_name(name).is_some() {
            return Err(refused("a device of that name is up"));
        }
        let is_shared = data.unfinished.as_ref().is_some_and(|unfinished| unfinished.mode == ReencryptionMode::Encrypt);
        if machine.is_in_use(container.number) && !is_shared {
            return Err(Error::Busy { name: text(device).into_owned() });
        }
    }
    if data.unfinished.as_ref().is_some_and(|unfinished| unfinished.hot.is_some()) {
        container.recover(&mut loaded, &keys)?;
    }
    container.bring_up(&loaded, &keys, name)?;
    Ok(keys.volume_key)
}

pub(super) fn reopen(sim: &Sim, device: &Path, name: &str, volume_key: &Secret) -> Result<()> {
    let container = Container::at(sim, device)?;
    let refused = |what: &str| container.refused(LuksCall::Open, what);
    let loaded = container.load_some(LuksCall::Open)?;
    let data = loaded.header.data();
    let Side::Key(digest) = data.after else { return Err(refused("it is not encrypted")) };
    if data.unfinished.is_some() {
        return Err(refused("a work on its data is not completed"));
    }
    if !has_digest(&loaded.header, digest, volume_key.bytes()) {
        return Err(Error::WrongKey { device: device.to_owned() });
    }
    {
        let machine = sim.machine()?;
        if machine.dm.by_name(name).is_some() || machine.is_in_use(container.number) {
            return Err(Error::Busy { name: text(device).into_owned() });
        }
    }
    let coding = || Coding::Key(Arc::new(Cipher::new(volume_key.bytes(), data.sector_size)));
    let keys = Keys { before: coding(), after: coding(), volume_key: volume_key.clone() };
    container.bring_up(&loaded, &keys, name)
}

pub(super) fn resize(sim: &Sim, device: &Path, name: &str, volume_key: &Secret, size: Option<Sectors>) -> Result<()> {
    let container = Container::at(sim, device)?;
    let refused = |what: &str| container.refused(LuksCall::Resize, what);
    let call = Call::Luks(LuksCall::Resize);
    sim.step(call, &text(device), || {
        let loaded = container.some(container.find(call)?, LuksCall::Resize)?;
        let data = loaded.header.data();
        if data.unfinished.is_some() {
            return Err(refused("a work on its data is not completed"));
        }
        if let Side::Key(digest) = data.after {
            if !has_digest(&loaded.header, digest, volume_key.bytes()) {
                return Err(refused("the volume key is not its own"));
            }
        }
        let room = container.room(&data)?;
        let wanted = match size {
            Some(size) => bytes(size.bytes()),
            None => room,
        };
        let wanted = wanted - wanted % u64::from(data.sector_size);
        if wanted == 0 || wanted > room {
            return Err(refused("there is no room for that size"));
        }
        let mut machine = sim.machine()?;
        let Some(minor) = container.minor(&machine, name) else { return Err(refused("it is not open")) };
        if let Some(opened) = machine.opened_mut(minor) {
            // What was left at the end of a work is as the rest.
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

fn put_token(header: &mut stored::Header, number: u32, token: Value) -> std::result::Result<(), &'static str> {
    let is_there = |keyslot: &Value| {
        let number = keyslot.as_str().and_then(|text| text.parse::<u32>().ok());
        number.is_some_and(|number| header.keyslots().any(|known| known == number))
    };
    let keyslots = token.get("keyslots").and_then(Value::as_array);
    if number >= NUMBERS {
        return Err("there is no such token number");
    }
    if !token.get("type").is_some_and(Value::is_string) || !keyslots.is_some_and(|all| all.iter().all(is_there)) {
        return Err("the token is not an object with a type and keyslots that are there");
    }
    header.json.tokens.insert(number, token);
    Ok(())
}
