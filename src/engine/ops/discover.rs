//! Finds pools when the daemon starts and when it refreshes, by a scan of all devices
//! (`docs/spec/engine/engine-behaviour.md` §5, 6, 8).
//!
//! Devices are read and pools are set up without any lock. A pool that is being set up is claimed,
//! so that the events caused by its own set-up wait and then find the pool running.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use parking_lot::Mutex;

use crate::{
    engine::{
        Engine,
        claims::Key,
        error::Result,
        ops::{
            bring_up::consider,
            device_event::device_event,
            identify::{Look, identify, is_ours, settle, tell_of},
        },
        registry::Seen,
        request::Step,
        take_down,
    },
    platform::{BlockDevice, DeviceAction, DeviceEvent},
};

/// Scans all devices and returns one chain for each pool found; the chains may run side by side.
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
    // If two pools have the same name, the one that is already up continues.
    pools.sort_by_key(|pool| !take_down::partly_up(engine.platform(), *pool));
    pools.into_iter().map(|pool| (format!("discovery of pool {pool}"), consider(pool))).collect()
}

/// The scan of all devices when the daemon starts. A separate chain reads each device, since a
/// device that hangs must not delay the others. Clones refer to the same scan.
#[derive(Clone)]
pub struct FirstLook(Arc<Mutex<Reading>>);

struct Reading {
    /// The devices that have not been read yet, by their place in the list of devices.
    unread: BTreeMap<usize, PathBuf>,
    seen: BTreeMap<usize, Seen>,
    /// The wait has ended: from now on each device is handled by itself once it has been read.
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
                log::info!("{} has been read, after the start stopped waiting for it", path.display());
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

/// Starts the scan of all devices when the daemon starts. Returns a chain for each device, with its
/// label; the chains may run side by side. When they have ended, or the caller does not want to
/// wait any longer, [`FirstLook::end`] returns the chains that come next.
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

/// Reads the Stratis areas of all devices, except those of running pools and of pools that are
/// being made. Also returns the devices that could not be read.
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
    // Look at the claims after reading: otherwise a device that is being initialized would be taken
    // for left over, and wiped.
    seen.retain(|seen| !engine.claims().is_claimed(&Key::Device(seen.device().number)));
    Ok((seen, unread))
}

/// Makes up for lost events. Passes to `tell` a change of each device that exists, and the removal
/// of each device of a stopped pool that no longer exists.
pub fn present_devices(tell: impl FnOnce(Vec<DeviceEvent>) + Send + 'static) -> Step<()> {
    Step::blocking(move |engine| {
        let platform = engine.platform();
        // Read the known paths before the scan: a device that appears later causes an event.
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
            Err(error) => log::warn!("could not list the devices after events were lost: {error}"),
        }
        Step::Done(())
    })
}
