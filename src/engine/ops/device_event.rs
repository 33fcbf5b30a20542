//! Handles the events of block devices (`docs/spec/engine/engine-behaviour.md` §5, 6): a device has
//! appeared, changed its size, come back under another node, or gone.

use crate::{
    base::ids::{DevUuid, PoolUuid},
    engine::{
        Engine,
        bda::{Bda, Repair},
        ops::{
            bring_up::consider,
            identify::{Look, identify, in_the_making, is_ours, settle, tell_of},
            pool_access::{readable, writable},
        },
        registry::Moment,
        request::{Share, Step},
    },
    platform::{self, BlockDevice, DeviceAction, DeviceEvent},
};

/// Handles an event of a block device, and sets up a pool that the device completes.
///
/// Devices are identified by their contents. By the next event, a node may belong to another
/// device, and so may the number of a device that no table lies on.
pub fn device_event(event: DeviceEvent) -> Step<()> {
    if let Some(device) = &event.unlinked {
        let look = super::links::of_device(device);
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
                // The device may hang, and must not occupy a worker.
                let found = identify(engine, device.clone());
                found_by_event(engine, event, device, found, since)
            }),
            Some((pool, member)) => note_size(pool, member, device),
            None => gone(engine, &event),
        }
    })
}

/// Continues when the device of an event has been read.
fn found_by_event(engine: &Engine, event: DeviceEvent, device: BlockDevice, look: Look, since: Moment) -> Step<()> {
    let member = engine.registry().running_member(device.number);
    match (&look, member) {
        (Look::Seen(seen), Some((pool, member))) if (seen.pool(), seen.id()) != (pool, member) => {
            log::warn!("{} was device {member} of pool {pool}, but is another device now", device.path.display());
            engine.registry().lose_member(device.number);
        }
        (_, Some((pool, member))) => {
            return note_size(pool, member, device.clone()).then(move |()| rejoin(pool, member, device));
        }
        _ => {}
    }
    // Look at the claims after the device was read: a request claims a device before it writes to
    // it.
    let seen = match look {
        Look::Seen(seen) => seen,
        // The device still exists.
        Look::Unread if engine.registry().knows(&device) => return Step::Done(()),
        Look::Nothing | Look::Unread => return gone(engine, &event),
    };
    let (pool, id) = (seen.pool(), seen.id());
    if let Some(taken) = in_the_making(engine, &seen) {
        // The device is being set up or initialized. The meaning of this event becomes clear only
        // when that has ended.
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

/// Handles a device that is gone or has no Stratis contents any more. The obstacle that kept its
/// pool from being set up may have gone with it.
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

/// Handles a device that claims to belong to a running pool. The claim is valid if the pool has
/// lost that device and no table leads to it: the device has come back under another node. A table
/// that leads to a lost device cannot be revived; such a device counts again only when the pool has
/// been stopped.
fn rejoin(pool: PoolUuid, id: DevUuid, device: BlockDevice) -> Step<()> {
    Step::read(pool, move |_, granted| {
        let Ok(running) = readable(granted, pool) else { return Step::Done(()) };
        let known =
            running.members.get(id).filter(|member| member.luks_device.is_none() && !running.meta().is_in_use(id));
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
                let Ok(running) = writable(granted, pool) else { return Step::Done(()) };
                if running.meta().is_in_use(id) {
                    return Step::Done(());
                }
                // Read the BDA while no other request writes to the device.
                let bda = Bda::load(engine.platform(), &device.path, Repair::ReadOnly).ok().flatten();
                let bda = bda.filter(|bda| (bda.header().pool, bda.header().device) == (pool, id));
                let (Some(member), Some(bda)) = (running.members.get_mut(id), bda) else { return Step::Done(()) };
                log::info!("member {} of pool {pool} is now {}", member.device.path.display(), device.path.display());
                (member.device, member.bda, member.geometry) = (device, bda, geometry);
                running.show();
                engine.registry().note_running(pool, running.members.nodes());
                Step::Done(())
            })
        })
    })
}

fn note_size(pool: PoolUuid, device: DevUuid, found: BlockDevice) -> Step<()> {
    Step::slow(Share::Pool(pool), move |engine| {
        let Ok(geometry) = engine.platform().geometry(&found.path) else { return Step::Done(()) };
        Step::read(pool, move |_, granted| {
            let known = match readable(granted, pool) {
                // When an encrypted device changes its size, it is the LUKS device that reports it.
                Ok(pool) => {
                    pool.members.get(device).filter(|member| member.outer().number == found.number).map(|member| {
                        let inside = member.luks_device.as_ref().map(|luks_device| luks_device.room(geometry.size));
                        (member.geometry.size, inside.unwrap_or(geometry.size))
                    })
                }
                Err(_) => None,
            };
            let Some((_, size)) = known.filter(|(known, now)| known != now) else { return Step::Done(()) };
            Step::write(pool, move |_, granted| {
                if let Ok(pool) = writable(granted, pool) {
                    if pool.check_changes().is_ok() {
                        pool.note_size(device, size);
                    }
                }
                Step::Done(())
            })
        })
    })
}
