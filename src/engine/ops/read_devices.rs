//! Reads the Stratis areas of devices: for the first time, and again when an operation is about to
//! make a decision about their pool. Nothing is written here.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use crate::{
    base::{
        error_chain,
        ids::{DevUuid, PoolUuid},
    },
    engine::{
        Engine,
        bda::{Bda, Repair},
        dm_names,
        error::{Error, Result},
        luks_devices::device::LuksDevice,
        metadata::{MetadataVersion, PoolMetadata, StaticHeader},
        pool::Pool,
        registry::{DeviceSet, FoundDevice, Seen},
        ties::Ties,
    },
    platform::{self, BlockDevice, DeviceNumber, Platform},
};

/// Reads the Stratis area of a device. `None`: it has none.
///
/// # Errors
/// When the area cannot be read. Unreadable pool metadata is no error here.
pub(super) fn read(engine: &Engine, device: BlockDevice) -> Result<Option<FoundDevice>> {
    let path = device.path.display();
    let Some(bda) = Bda::load(engine.platform(), &device.path, Repair::ReadOnly)? else { return Ok(None) };
    let metadata = match bda.read_json(engine.platform(), &device.path) {
        Ok(None) => None,
        Ok(Some(json)) => Some(
            PoolMetadata::parse(&json, bda.header().version)
                .map(Arc::new)
                .map_err(|error| error_chain::sentence(&error)),
        ),
        Err(error) => Some(Err(Error::from(error).sentence())),
    };
    if let Some(Err(error)) = &metadata {
        log::warn!("{path} has pool metadata that cannot be read: {error}");
    }
    let stamped = metadata.map(|result| result.map(|metadata| (bda.last_update().unwrap_or_default(), metadata)));
    let within = opened_from(engine.platform(), &device, bda.header())?;
    Ok(Some(FoundDevice { device, bda, metadata: stamped, within }))
}

/// The devices below a device, if it is the crypt device on a LUKS device.
fn opened_from(platform: &dyn Platform, device: &BlockDevice, header: &StaticHeader) -> Result<BTreeSet<DeviceNumber>> {
    if header.version != MetadataVersion::V1 {
        return Ok(BTreeSet::new());
    }
    match platform.dm_find(&dm_names::opened_device(header.device))? {
        Some(opened) if opened.number == device.number => Ok(platform.lower_devices(device.number)?),
        _ => Ok(BTreeSet::new()),
    }
}

/// Reads the devices again: much may have happened to them since the pool was stopped. If a device
/// cannot be read, it is removed from the set, and the error is returned. Each device is tried
/// twice, because a cache may be given up for lack of its devices.
pub(super) fn renew(engine: &Engine, uuid: PoolUuid, set: &mut DeviceSet) -> Option<Error> {
    let mut seen = Vec::new();
    let mut unread = None;
    for known in set.all() {
        let path = &known.device().path;
        match reread(engine, &known).or_else(|_| reread(engine, &known)) {
            Ok(now) if now.is_empty() => log::warn!("{} is no longer a device of the pool", path.display()),
            Ok(now) => seen.extend(now),
            Err(error) => {
                log::warn!("{} could not be read: {}", path.display(), error.sentence());
                unread = unread.or(Some(error));
            }
        }
    }
    set.renew(seen);
    settle_set(engine.platform(), uuid, set);
    unread
}

/// Reads the device at this node again, if the node still belongs to that device; for an open LUKS
/// device, also reads the contents of its crypt device.
pub(super) fn reread(engine: &Engine, known: &Seen) -> Result<Vec<Seen>> {
    let platform = engine.platform();
    let device = match platform.find_device(&known.device().path) {
        Err(platform::Error::NoDevice { .. }) => return Ok(Vec::new()),
        device => device?,
    };
    let mut now: Vec<Seen> = match known {
        Seen::Area(_) => read(engine, device)?.map(Seen::Area).into_iter().collect(),
        Seen::LuksDevice(_) => LuksDevice::read(platform, &device)?.map(Seen::LuksDevice).into_iter().collect(),
    };
    now.retain(|now| (now.pool(), now.id()) == (known.pool(), known.id()));
    if let Some(Seen::LuksDevice(luks_device)) = now.first() {
        if let Some(opened) = luks_device.opened(platform)? {
            now.extend(read(engine, opened)?.map(Seen::Area));
        }
    }
    Ok(now)
}

/// As [`settle`](super::identify::settle), for a set that is not in the registry.
pub(super) fn settle_set(platform: &dyn Platform, pool: PoolUuid, set: &mut DeviceSet) {
    if let Some(doubt) = set.doubt(&[]) {
        set.note_ties(Ties::look(platform, pool, &doubt));
    }
}

/// Which data devices of a running pool can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The first device, and so, as a rule, all of them.
    First,
    /// Not the first device, but others.
    Others,
    /// None of them.
    None,
}

/// Finds out which data devices of a pool can still be reached. A device that has come back under
/// another node is the same device: from now on its metadata is written there. The pool's tables
/// still lead to the lost device.
pub(super) fn find_members(engine: &Engine, pool: &mut Pool) -> Reach {
    let platform = engine.platform();
    let beside = engine.registry().beside(pool.uuid()).unwrap_or_default();
    let data: Vec<DevUuid> = pool.meta().data_devices().collect();
    for (place, device) in data.into_iter().enumerate() {
        let Some(member) = pool.members.get_mut(device) else { continue };
        let is_there = |path: &Path, header: &StaticHeader| {
            // The stop is not recorded on a device that is taken for gone, so a single error is no
            // proof.
            let load = || Bda::load(platform, path, Repair::ReadOnly);
            let found = load().or_else(|_| load()).or_else(|_| load()).ok().flatten();
            found.filter(|found| (found.header().pool, found.header().device) == (header.pool, header.device))
        };
        let header = *member.bda.header();
        let mut found = is_there(&member.device.path, &header).is_some();
        if let Some(back) = beside.devices().find(|back| back.bda.header().device == device).filter(|_| !found) {
            if let Some(bda) = is_there(&back.device.path, &header) {
                log::info!("{} is back as {}", member.device.path.display(), back.device.path.display());
                (member.device, member.bda, found) = (back.device.clone(), bda, true);
            }
        }
        match (found, place) {
            (true, 0) => return Reach::First,
            (true, _) => return Reach::Others,
            (false, _) => {}
        }
    }
    Reach::None
}
