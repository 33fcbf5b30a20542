//! Finds pools: at the start, and by the events of block devices
//! (`docs/spec/engine/engine-behaviour.md` §5, 6, 8).
//!
//! Devices are read and pools set up without any lock. A pool that is being set up is claimed, so
//! that the events caused by its own set-up wait and then find it running.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    base::{
        error_chain,
        ids::{DevUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
    },
    engine::{
        Engine,
        bda::{Bda, Repair},
        claims::{Claim, Key},
        containers::Unlock,
        dm_names::{self, Role},
        error::{Error, Result},
        luks_device::LuksDevice,
        metadata::{MetadataVersion, PoolMetadata, StaticHeader},
        ops::{lifecycle, links},
        registry::{DeviceSet, Found, Moment, STOPPED, Seen, Verdict},
        request::{Access, Granted, Mode, Share, Step},
        setup::{self, CacheTier, Doomed},
        stack::Stack,
        take_down,
        ties::Ties,
        undo::Rollback,
        volume_keys,
    },
    platform::{
        self, BlockDevice, DeviceAction, DeviceClass, DeviceEvent, DeviceNumber, Platform,
        dm::{Line, Target},
    },
    view::LeftAside,
};

/// Looks at all devices and returns one chain for each pool found; the chains may run side by side.
///
/// # Errors
/// When the devices cannot be listed.
pub fn discover(engine: &Engine) -> Result<Vec<Step<()>>> {
    let since = engine.registry().moment();
    let (found, unread) = look_around(engine)?;
    engine.registry().replace(found, &unread, since);
    Ok(considerations(engine).into_iter().map(|(_, chain)| chain).collect())
}

/// A chain with its label.
pub type Labelled = (String, Step<()>);

/// Returns a chain for each known pool, with its label.
fn considerations(engine: &Engine) -> Vec<Labelled> {
    let mut pools = engine.registry().pools();
    let running = engine.registry().running_pools();
    for pool in pools.iter().chain(&running) {
        settle(engine, *pool);
        for aside in engine.registry().aside(*pool) {
            tell_of(*pool, &aside);
        }
    }
    // If two pools have the same name, the one that is already up goes on.
    pools.sort_by_key(|pool| !take_down::partly_up(engine.platform(), *pool));
    pools.into_iter().map(|pool| (format!("discovery of pool {pool}"), consider(pool))).collect()
}

/// The look at all devices when the daemon starts. Each device is read by a chain of its own, since
/// a device that does not answer must not delay the others. Clones refer to the same look.
#[derive(Clone)]
pub struct FirstLook(Arc<Mutex<Reading>>);

struct Reading {
    /// The devices that have not been read yet, by their place in the list of devices.
    unread: BTreeMap<usize, PathBuf>,
    seen: BTreeMap<usize, Seen>,
    /// Nobody waits any more: from now on each device is handled by itself once it has been read.
    over: bool,
}

impl FirstLook {
    /// Ends the wait for devices. Returns a chain for each pool found so far, with its label.
    /// Devices that are read later are treated as if they had just appeared.
    pub fn end(&self, engine: &Engine) -> Vec<Labelled> {
        let seen = {
            let mut reading = self.0.lock();
            reading.over = true;
            std::mem::take(&mut reading.seen)
        };
        seen.into_values().for_each(|seen| engine.registry().add(seen));
        considerations(engine)
    }

    /// The devices that have not been read yet.
    pub fn unread(&self) -> Vec<PathBuf> {
        self.0.lock().unread.values().cloned().collect()
    }

    /// Notes what was read from a device.
    fn note(&self, place: usize, seen: Option<Seen>) -> Step<()> {
        let mut reading = self.0.lock();
        let path = reading.unread.remove(&place);
        match seen {
            Some(seen) if !reading.over => drop(reading.seen.insert(place, seen)),
            Some(seen) => {
                drop(reading);
                let (path, device) = (path.unwrap_or_default(), seen.device().clone());
                log::info!("{} has been read at last", path.display());
                return device_event(DeviceEvent {
                    action: DeviceAction::Add,
                    path,
                    device: Some(device),
                    unlinked: None,
                });
            }
            None => {}
        }
        Step::Done(())
    }
}

/// Begins the look at all devices when the daemon starts. Returns a chain for each device, with its
/// label; the chains may run side by side. When they have ended, or nobody wants to wait longer,
/// [`FirstLook::end`] returns the chains that come next.
///
/// # Errors
/// When the devices cannot be listed.
pub fn first_look(engine: &Engine) -> Result<(FirstLook, Vec<Labelled>)> {
    let devices: Vec<BlockDevice> = devices(engine)?.into_iter().filter(is_ours).collect();
    let unread = devices.iter().enumerate().map(|(place, device)| (place, device.path.clone())).collect();
    let look = FirstLook(Arc::new(Mutex::new(Reading { unread, seen: BTreeMap::new(), over: false })));
    let chain = |(place, device): (usize, BlockDevice)| {
        let (look, label) = (look.clone(), format!("look at {}", device.path.display()));
        (label, Step::background(move |engine| look.note(place, identify(engine, device).seen())))
    };
    let chains = devices.into_iter().enumerate().map(chain).collect();
    Ok((look, chains))
}

/// The pools that are being set up at the moment: by name, or by identifier if the name is unknown.
pub fn being_set_up(engine: &Engine) -> Vec<String> {
    engine.registry().being_set_up()
}

/// All devices that may belong to a pool.
///
/// # Errors
/// When the devices cannot be listed.
fn devices(engine: &Engine) -> Result<Vec<BlockDevice>> {
    // Try once more after an error: without this list the daemon cannot start.
    let platform = engine.platform();
    Ok(platform.block_devices().or_else(|_| platform.block_devices())?)
}

/// Whether a device may carry anything to read.
fn is_ours(device: &BlockDevice) -> bool {
    matches!(device.class, DeviceClass::Stratis | DeviceClass::Luks)
}

/// Asks the kernel about devices that carry the same identity.
fn settle(engine: &Engine, pool: PoolUuid) {
    let doubt = engine.registry().doubt(pool);
    if let Some(doubt) = doubt {
        let ties = Ties::look(engine.platform(), pool, &doubt);
        engine.registry().note_ties(pool, ties);
    }
}

/// As [`settle`], for a set that is not in the registry.
pub(super) fn settle_set(platform: &dyn Platform, pool: PoolUuid, set: &mut DeviceSet) {
    if let Some(doubt) = set.doubt(&[]) {
        set.note_ties(Ties::look(platform, pool, &doubt));
    }
}

fn tell_of(pool: PoolUuid, aside: &LeftAside) {
    let LeftAside { path, device, reason } = aside;
    log::warn!("{} (device {device} of pool {pool}) is left aside: {reason}", path.display());
}

/// Reads the Stratis areas of all devices, except those of running pools and of pools in the
/// making. Also returns the devices that could not be read.
///
/// # Errors
/// When the devices cannot be listed.
fn look_around(engine: &Engine) -> Result<(Vec<Seen>, Vec<BlockDevice>)> {
    let new = devices(engine)?.into_iter().filter(|device| engine.registry().running_member(device.number).is_none());
    let (mut seen, mut unread) = (Vec::new(), Vec::new());
    for device in new {
        match identify(engine, device.clone()) {
            Look::Seen(found) => seen.push(found),
            Look::Nothing => {}
            Look::Unread => unread.push(device),
        }
    }
    // The claims are looked at after reading: otherwise a device that is being initialized would be
    // taken for left over, and wiped.
    seen.retain(|seen| !engine.claims().is_claimed(&Key::Device(seen.device().number)));
    Ok((seen, unread))
}

/// The result of a look at a device.
enum Look {
    Seen(Seen),
    /// The device carries nothing of Stratis.
    Nothing,
    /// The device could not be read, so what is known of it stays valid.
    Unread,
}

impl Look {
    fn seen(self) -> Option<Seen> {
        match self {
            Look::Seen(seen) => Some(seen),
            Look::Nothing | Look::Unread => None,
        }
    }
}

/// The claim of the request that initializes the device, makes its pool or sets the pool up. For
/// devices in containers of their own that join a running pool, only the claim on the pool's growth
/// tells.
fn in_the_making(engine: &Engine, seen: &Seen) -> Option<Key> {
    let keys = [Key::Pool(seen.pool()), Key::Device(seen.device().number), Key::Growth(seen.pool())];
    keys.into_iter().find(|key| engine.claims().is_claimed(key))
}

/// Reads the Stratis area of a device, or the container that such an area lies in. A device that
/// cannot be read is logged and left alone.
fn identify(engine: &Engine, device: BlockDevice) -> Look {
    let look = || match device.class {
        DeviceClass::Stratis => Ok(read(engine, device.clone())?.map(Seen::Area)),
        DeviceClass::Luks => Ok(LuksDevice::read(engine.platform(), &device)?.map(Seen::Container)),
        _ => Ok(None),
    };
    let path = device.path.clone();
    // Try once more after an error: nobody may look again soon, and a pool does not start without
    // the device.
    match look().or_else(|_: Error| look()) {
        Ok(Some(Seen::Container(luks_device))) if luks_device.unfinished => {
            clear_unfinished(engine, &luks_device.device);
            Look::Nothing
        }
        Ok(seen) => seen.map_or(Look::Nothing, Look::Seen),
        Err(error) => {
            log::warn!("{} is left alone: {}", path.display(), error.sentence());
            Look::Unread
        }
    }
}

/// Wipes a container whose making or wiping was cut short, but not one that somebody is making now.
fn clear_unfinished(engine: &Engine, device: &BlockDevice) {
    let Ok(_claim) = engine.claims().claim([Key::Device(device.number)]) else { return };
    let clear = || match LuksDevice::read(engine.platform(), device)? {
        Some(luks_device) if luks_device.unfinished => {
            clear_above(engine.platform(), &luks_device)?;
            luks_device.wipe(engine.platform())
        }
        // The request that was making it has completed it meanwhile.
        _ => Ok(()),
    };
    log::info!("{} was left over by an unfinished request; wiping it", device.path.display());
    if let Err(error) = clear().or_else(|_| clear()) {
        log::warn!("{} is left over and could not be wiped: {}", device.path.display(), error.sentence());
    }
}

/// Takes down what was made on a container that belongs to no pool: the creation of its pool failed
/// and could not take it down.
fn clear_above(platform: &dyn Platform, luks_device: &LuksDevice) -> Result<()> {
    let pool = luks_device.token.pool;
    let (opened, joined) = (platform.dm_find(&luks_device.name())?, platform.dm_find(&Role::OriginSub.name(pool))?);
    let is_on = |line: &Line, number| matches!(line.target, Target::Linear { device, .. } if device == number);
    match (opened, joined) {
        (Some(opened), Some(joined)) if joined.table.iter().any(|line| is_on(line, opened.number)) => {
            take_down::take_down(platform, &mut Stack::new(pool), pool)
        }
        _ => Ok(()),
    }
}

/// Reads the Stratis area of a device. `None`: it has none.
///
/// # Errors
/// When the area cannot be read. Unreadable pool metadata is no error here.
pub(super) fn read(engine: &Engine, device: BlockDevice) -> Result<Option<Found>> {
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
    Ok(Some(Found { device, bda, metadata: stamped, within }))
}

/// The devices below a device, if it has been opened from a container.
fn opened_from(platform: &dyn Platform, device: &BlockDevice, header: &StaticHeader) -> Result<BTreeSet<DeviceNumber>> {
    if header.version != MetadataVersion::V1 {
        return Ok(BTreeSet::new());
    }
    match platform.dm_find(&dm_names::opened_device(header.device))? {
        Some(opened) if opened.number == device.number => Ok(platform.lower_devices(device.number)?),
        _ => Ok(BTreeSet::new()),
    }
}

/// Makes up for lost events. Passes to `tell` a change of each device that exists, and the removal
/// of each device of a stopped pool that does not exist any more.
pub fn present_devices(tell: impl FnOnce(Vec<DeviceEvent>) + Send + 'static) -> Step<()> {
    Step::blocking(move |engine| {
        let platform = engine.platform();
        // Read before the look: a device that appears later has an event of its own.
        let known = engine.registry().paths();
        match platform.block_devices().or_else(|_| platform.block_devices()) {
            Ok(devices) => {
                let gone = known.into_iter().filter(|path| devices.iter().all(|device| device.path != *path));
                let mut events: Vec<DeviceEvent> = gone
                    .map(|path| DeviceEvent { action: DeviceAction::Remove, path, device: None, unlinked: None })
                    .collect();
                events.extend(devices.into_iter().map(|device| DeviceEvent {
                    action: DeviceAction::Change,
                    path: device.path.clone(),
                    device: Some(device),
                    unlinked: None,
                }));
                tell(events);
            }
            Err(error) => log::warn!("the devices could not be listed after events were lost: {error}"),
        }
        Step::Done(())
    })
}

/// Handles an event of a block device, and sets up a pool that the device completes.
///
/// Devices are identified by what they carry. By the next event, a node may belong to another
/// device, and so may the number of a device that no table lies on.
pub fn device_event(event: DeviceEvent) -> Step<()> {
    if let Some(device) = &event.unlinked {
        let look = links::of_device(device);
        return look.then(move |()| device_event(DeviceEvent { unlinked: None, ..event }));
    }
    Step::slow(Share::Device(event.path.clone()), move |engine| {
        let since = engine.registry().moment();
        let Some(device) = event.device.clone().filter(|_| event.action != DeviceAction::Remove) else {
            return gone(engine, &event);
        };
        let member = engine.registry().running_member(device.number);
        if let Some((pool, member)) = member.filter(|_| event.action == DeviceAction::Change) {
            return note_size(pool, member, device);
        }
        match member {
            _ if is_ours(&device) => Step::background(move |engine| {
                // The device may not answer, and must not occupy a worker.
                let found = identify(engine, device.clone());
                found_by_event(engine, event, device, found, since)
            }),
            Some((pool, member)) => note_size(pool, member, device),
            None => gone(engine, &event),
        }
    })
}

/// Goes on when the device of an event has been read.
fn found_by_event(engine: &Engine, event: DeviceEvent, device: BlockDevice, look: Look, since: Moment) -> Step<()> {
    let member = engine.registry().running_member(device.number);
    match (&look, member) {
        (Look::Seen(seen), Some((pool, member))) if (seen.pool(), seen.id()) != (pool, member) => {
            log::warn!("{} was device {member} of pool {pool} and is another device now", device.path.display());
            engine.registry().lose_member(device.number);
        }
        (_, Some((pool, member))) => {
            return note_size(pool, member, device.clone()).then(move |()| rejoin(pool, member, device));
        }
        _ => {}
    }
    // The claims are looked at after the device was read: a request claims a device before it
    // writes to it.
    let seen = match look {
        Look::Seen(seen) => seen,
        // The device still exists.
        Look::Unread if engine.registry().knows(&device) => return Step::Done(()),
        Look::Nothing | Look::Unread => return gone(engine, &event),
    };
    let (pool, id) = (seen.pool(), seen.id());
    if let Some(taken) = in_the_making(engine, &seen) {
        // The device is being set up or initialized. Only when that is done can the meaning of this
        // event be told.
        return Step::parked(taken, device_event(event));
    }
    let mut registry = engine.registry();
    if registry.has_started_or_stopped(pool, since) || registry.running_member(device.number).is_some() {
        // The look may be out of date. If the pool was made and stopped in between, the look would
        // say that the pool is to run, or that its creation was never completed. By now the device
        // may even belong to another pool.
        drop(registry);
        return device_event(event);
    }
    registry.add(seen);
    drop(registry);
    settle(engine, pool);
    let is_member = engine.registry().has_member(pool, id);
    let next = if is_member { rejoin(pool, id, device.clone()) } else { Step::Done(()) };
    next.then(move |()| {
        Step::brief(move |engine| {
            let aside = engine.registry().aside(pool).into_iter().find(|aside| aside.path == device.path);
            aside.iter().for_each(|aside| tell_of(pool, aside));
            consider(pool)
        })
    })
}

/// A device is gone, or carries nothing of Stratis. Whatever kept its pool from being set up may
/// have gone with it.
fn gone(engine: &Engine, event: &DeviceEvent) -> Step<()> {
    if event.action == DeviceAction::Add {
        return Step::Done(());
    }
    let pool = engine.registry().remove_path(&event.path);
    match pool {
        Some(pool) => {
            settle(engine, pool);
            consider(pool)
        }
        None => Step::Done(()),
    }
}

/// Handles a device that says that it belongs to a running pool. It does if the pool has lost that
/// device and no table leads to it: the device has come back under another node. If tables lead to
/// a device that has gone, it stays dead, and counts again only when the pool has been stopped.
fn rejoin(pool: PoolUuid, id: DevUuid, device: BlockDevice) -> Step<()> {
    Step::locked(Access::Pool(PoolRef::Uuid(pool), Mode::Shared), move |_, granted| {
        let Ok(running) = super::readable(granted, pool) else { return Step::Done(()) };
        let known = running.members.get(&id).filter(|member| member.container.is_none() && !running.meta.is_in_use(id));
        let known = known.map(|member| (member.device.number, member.device.path.clone()));
        let Some((number, path)) = known.filter(|(number, path)| (*number, path) != (device.number, &device.path))
        else {
            return Step::Done(());
        };
        Step::slow(Share::Pool(pool), move |engine| {
            let platform = engine.platform();
            let is_moved = match platform.find_device(&path) {
                Ok(there) => there.number != number || number == device.number,
                Err(error) => matches!(error, platform::Error::NoDevice { .. }),
            };
            let Some(geometry) = platform.geometry(&device.path).ok().filter(|_| is_moved) else {
                return Step::Done(());
            };
            Step::write(pool, move |engine, granted| {
                let Ok(running) = super::writable(granted, pool) else { return Step::Done(()) };
                if running.meta.is_in_use(id) {
                    return Step::Done(());
                }
                // Read while nobody else writes to the device.
                let bda = Bda::load(engine.platform(), &device.path, Repair::ReadOnly).ok().flatten();
                let bda = bda.filter(|bda| (bda.header().pool, bda.header().device) == (pool, id));
                let (Some(member), Some(bda)) = (running.members.get_mut(&id), bda) else { return Step::Done(()) };
                log::info!("{} of pool {pool} is now {}", member.device.path.display(), device.path.display());
                (member.device, member.bda, member.geometry) = (device, bda, geometry);
                running.show();
                engine.registry().note_running(pool, running.nodes());
                Step::Done(())
            })
        })
    })
}

fn note_size(pool: PoolUuid, device: DevUuid, found: BlockDevice) -> Step<()> {
    Step::slow(Share::Pool(pool), move |engine| {
        let Ok(geometry) = engine.platform().geometry(&found.path) else { return Step::Done(()) };
        Step::locked(Access::Pool(PoolRef::Uuid(pool), Mode::Shared), move |_, granted| {
            let known = match super::readable(granted, pool) {
                // Of an encrypted device, the outer one changes its size.
                Ok(pool) => {
                    pool.members.get(&device).filter(|member| member.outer().number == found.number).map(|member| {
                        let inside = member.container.as_ref().map(|luks_device| luks_device.room(geometry.size));
                        (member.geometry.size, inside.unwrap_or(geometry.size))
                    })
                }
                Err(_) => None,
            };
            let Some((_, size)) = known.filter(|(known, now)| known != now) else { return Step::Done(()) };
            Step::write(pool, move |_, granted| {
                if let Ok(pool) = super::writable(granted, pool) {
                    if pool.check_changes().is_ok() {
                        pool.note_size(device, size);
                    }
                }
                Step::Done(())
            })
        })
    })
}

/// Sets a pool up if all its devices exist and nothing forbids it.
pub(super) fn consider(uuid: PoolUuid) -> Step<()> {
    Step::brief(move |engine| {
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, consider(uuid)),
        };
        Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |engine, granted| {
            // The registry also knows devices that say that they belong to a running pool. They are
            // kept beside the pool.
            let set = if matches!(granted, Granted::Read(_)) { None } else { engine.registry().get(uuid) };
            let Some(set) = set else { return Step::Done(()) };
            // A device to be set up or taken down may not answer.
            Step::background(move |engine| judge(engine, uuid, set, claim))
        })
    })
}

/// Considers again the pools that were refused because of a name that no running pool has any more.
/// Nobody waits for that.
pub(super) fn consider_named(engine: &Engine, name: &Name) {
    let awaiting = engine.registry().awaiting(name);
    for pool in awaiting {
        engine.begin(format!("discovery of pool {pool}, whose name is free"), consider(pool));
    }
}

fn judge(engine: &Engine, uuid: PoolUuid, set: DeviceSet, claim: Claim) -> Step<()> {
    let mut trouble = None;
    let reason = match set.verdict() {
        // A daemon that was killed may have left some of the pool up.
        Verdict::Complete(metadata) if metadata.started == Some(false) => {
            trouble = clear_away(engine, uuid, &set).err();
            engine.registry().note_recorded_stop(uuid);
            STOPPED.to_owned()
        }
        // The pool was stopped while its devices were gone.
        Verdict::Complete(metadata) if engine.registry().is_stop_unrecorded(uuid) => {
            let cleared = clear_away(engine, uuid, &set);
            trouble = cleared.and_then(|()| lifecycle::record_stop(engine, uuid, &set, &metadata)).err();
            STOPPED.to_owned()
        }
        Verdict::Complete(metadata) => {
            let brought_up =
                lifecycle::bring_up(uuid, set, metadata, CacheTier::Keep, Unlock::default(), Rollback::new(), claim);
            return brought_up.map(move |result| match result {
                Ok(_) => {}
                Err(error) => log::info!("pool {uuid} is not set up: {}", error.sentence()),
            });
        }
        Verdict::Destroying(_) => {
            drop(end(engine, uuid, &set));
            return Step::Done(());
        }
        // Whatever of the pool is still up keeps the disks from being used.
        Verdict::NeverCommitted => {
            trouble = clear_away(engine, uuid, &set).err();
            if trouble.is_none() {
                drop(end(engine, uuid, &set));
            }
            "its creation was never completed; the devices may be used anew".to_owned()
        }
        // A start or stop that was cut short has left some of the pool's devices open.
        locked @ Verdict::Locked => {
            if !take_down::partly_up(engine.platform(), uuid) {
                trouble = clear_away(engine, uuid, &set).err();
            }
            locked.obstacle(uuid).map_or_else(String::new, |error| error.sentence())
        }
        other => other.obstacle(uuid).map_or_else(String::new, |error| error.sentence()),
    };
    log::info!("pool {uuid} is not set up: {reason}");
    let partial = take_down::partly_up(engine.platform(), uuid);
    engine.registry().note_down(uuid, partial, trouble.as_ref());
    Step::Done(())
}

/// Takes down what is up of a pool that must not run. An error is logged here.
fn clear_away(engine: &Engine, uuid: PoolUuid, set: &DeviceSet) -> Result<()> {
    let platform = engine.platform();
    if !take_down::partly_up(platform, uuid) && set.containers().next().is_none() {
        return Ok(());
    }
    take_down::clean_up(platform, uuid, Some(set)).inspect_err(|error| {
        log::warn!("could not clear away what is up of pool {uuid}: {}", error.sentence());
    })
}

/// Ends what is left of a pool that was never completed or has been destroyed, now that the
/// contents of its devices can be read. Devices that lie in no containers and never held metadata
/// stay as they are: they can be used for a new pool.
///
/// Each device to be wiped is read again while nobody else can begin to use it: since the last look
/// it may have become a member of another pool.
///
/// # Errors
/// When a device has become a member of another pool, or when some of this pool is still up.
pub(super) fn end(engine: &Engine, uuid: PoolUuid, set: &DeviceSet) -> Result<()> {
    let verdict = set.verdict();
    let ended = match verdict {
        Verdict::Destroying(_) => Error::Destroyed(uuid),
        Verdict::NeverCommitted => Error::NoMetadata(uuid),
        _ => return Ok(()),
    };
    // Whoever has claimed a device is making something else of it. The others are looked at again
    // with the next event.
    let Ok(_claim) = engine.claims().claim(set.numbers().map(Key::Device)) else { return Err(ended) };
    let mut now = set.clone();
    if let Some(error) = lifecycle::renew(engine, uuid, &mut now) {
        return Err(error);
    }
    let mut set = set.clone();
    set.retain_known(&now);
    if set.is_empty() {
        engine.registry().take(uuid);
        return Err(ended);
    }
    let set = &set;
    match verdict {
        Verdict::Destroying(metadata) => {
            let platform = engine.platform();
            let take_down = || take_down::take_down(platform, &mut Stack::new(uuid), uuid);
            // What lies on the devices must be taken down before they are wiped: nobody would find
            // it afterwards.
            if let Err(error) = take_down().or_else(|_| take_down()) {
                log::error!("pool {uuid} is destroyed, but some of it is still up: {}", error.sentence());
                engine.registry().note_down(uuid, true, Some(&error));
                return Err(error);
            }
            volume_keys::forget(platform, uuid);
            engine.registry().take(uuid);
            finish_destruction(engine, uuid, set, &metadata);
            Err(Error::Destroyed(uuid))
        }
        Verdict::NeverCommitted => {
            for luks_device in set.containers() {
                let path = luks_device.device.path.display();
                log::info!("{path} was left over by the unfinished creation of pool {uuid}; wiping it");
                if let Err(error) = luks_device.wipe(engine.platform()).or_else(|_| luks_device.wipe(engine.platform()))
                {
                    log::warn!("{path} is left over and could not be wiped: {}", error.sentence());
                }
            }
            if set.devices().all(|found| set.container(found.bda.header().device).is_some()) {
                engine.registry().take(uuid);
            }
            Err(Error::NoMetadata(uuid))
        }
        _ => Ok(()),
    }
}

/// Completes a destruction that was decided but cut short.
fn finish_destruction(engine: &Engine, uuid: PoolUuid, set: &DeviceSet, metadata: &PoolMetadata) {
    log::info!("completing the destruction of pool {} ({uuid})", metadata.name);
    // The contents of the closed devices are unknown.
    let closed = set.closed().filter(|luks_device| metadata.devices().any(|device| device == luks_device.id()));
    let closed = closed.map(|luks_device| {
        let path = &luks_device.device.path;
        Doomed { path, container: Some(luks_device), parts: vec![], stamp: None }
    });
    let open = set.devices().map(|found| {
        let device = found.bda.header().device;
        let (container, parts) = (set.container(device), metadata.container_on(device));
        Doomed { path: &found.device.path, container, parts, stamp: found.bda.last_update() }
    });
    setup::wipe_destroyed(engine.platform(), closed.chain(open));
}
