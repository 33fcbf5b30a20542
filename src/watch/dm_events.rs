//! The thread `dm-events`: has a pool checked when one of its device-mapper devices had an event, as a thin pool has when it
//! runs out of space.
//!
//! Must never know: what an event means; that a device is of a pool is all its name is asked for.

use std::{collections::BTreeMap, sync::Arc};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{stop::Stop, wake::Waker};

use super::{Ended, Error, Submit, Task, Woken, merge::Merge, wait};
use crate::{
    engine::{dm_names, ids::PoolUuid},
    platform::{DmEvents, Platform, dm::Listed},
};

/// The watcher. [`DmWatch::run`] is its thread.
pub struct DmWatch {
    platform: Arc<dyn Platform>,
    source: Box<dyn DmEvents>,
    waker: Waker,
    submit: Submit,
    /// Unbounded, but holds at most one message for each pool: checks that have ended.
    ended: (Sender<PoolUuid>, Receiver<PoolUuid>),
}

/// The event numbers of each pool's devices, as last seen.
type Numbers = BTreeMap<PoolUuid, BTreeMap<String, u32>>;

fn numbers(devices: Vec<Listed>) -> Numbers {
    let mut numbers = Numbers::new();
    for device in devices {
        if let Some(pool) = dm_names::pool_of(&device.name) {
            numbers.entry(pool).or_default().insert(device.name, device.event);
        }
    }
    numbers
}

/// The pools that are new, or of which a device has another number than before. A device that has just been made has had no
/// event, and one that is gone has nothing to be checked.
fn evented(before: &Numbers, now: &Numbers) -> Vec<PoolUuid> {
    let had_event = |(pool, devices): &(&PoolUuid, &BTreeMap<String, u32>)| match before.get(pool) {
        None => true,
        Some(before) => devices.iter().any(|(name, number)| before.get(name).copied().unwrap_or_default() != *number),
    };
    now.iter().filter(had_event).map(|(pool, _)| *pool).collect()
}

impl DmWatch {
    /// A watcher of the machine's device-mapper devices. `source` was asked of the same machine.
    pub fn new(platform: Arc<dyn Platform>, source: Box<dyn DmEvents>, waker: Waker, submit: Submit) -> DmWatch {
        DmWatch { platform, source, waker, submit, ended: unbounded() }
    }

    /// Works until the stop.
    ///
    /// # Errors
    /// When waiting or arming is not possible.
    pub fn run(mut self, stop: &Stop) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let mut seen = Numbers::new();
        let mut checks = Merge::new();
        loop {
            // Armed before the numbers are read: an event after the reading makes the descriptor readable again.
            self.source.arm().map_err(Error::Source)?;
            match self.platform.dm_list() {
                Ok(devices) => {
                    let now = numbers(devices);
                    for pool in evented(&seen, &now) {
                        if checks.cause(pool) {
                            self.check(pool);
                        }
                    }
                    seen = now;
                }
                // What is not known changed is checked by time; the next event tries again.
                Err(error) => log::warn!("device-mapper devices could not be listed after an event: {error}"),
            }
            loop {
                let woken = wait(Some(self.source.fd()), &self.waker, stop, None)?;
                if woken == Woken::Stop {
                    return Ok(());
                }
                for pool in self.ended.1.try_iter() {
                    if checks.ended(&pool) {
                        self.check(pool);
                    }
                }
                if woken == Woken::Source {
                    break;
                }
            }
        }
    }

    fn check(&self, pool: PoolUuid) {
        let chain = Ended::of(pool, &self.ended.0, &self.waker).after_check_of(pool);
        (self.submit)(Task { label: format!("check of pool {pool} after a device-mapper event"), chain });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{dm_names::Role, ids::FsUuid},
        platform::DeviceNumber,
    };

    fn listed(name: String, event: u32) -> Listed {
        Listed { name, number: DeviceNumber { major: 253, minor: 0 }, event }
    }

    #[test]
    fn a_pool_is_checked_when_a_number_of_one_of_its_devices_changes() {
        let [a, b] = [1, 2].map(|byte| PoolUuid::from_random([byte; 16]));
        let filesystem = dm_names::filesystem(b, FsUuid::from_random([3; 16]));
        let devices = |of_a, of_b| {
            numbers(vec![
                listed(Role::ThinPool.name(a), of_a),
                listed(Role::Mdv.name(a), 0),
                listed(filesystem.clone(), of_b),
                listed("vg-root".to_owned(), of_a + of_b),
            ])
        };
        let none = Numbers::new();
        assert_eq!(evented(&none, &devices(0, 0)), [a, b], "new ones");
        assert!(evented(&devices(4, 5), &devices(4, 5)).is_empty());
        assert_eq!(evented(&devices(4, 5), &devices(7, 5)), [a]);
        assert_eq!(evented(&devices(4, 5), &devices(4, 6)), [b]);
        assert!(evented(&devices(4, 5), &none).is_empty(), "gone");
        let made = |event| numbers(vec![listed(Role::ThinPool.name(a), 4), listed(Role::Mdv.name(a), event)]);
        let before = numbers(vec![listed(Role::ThinPool.name(a), 4)]);
        assert!(evented(&before, &made(0)).is_empty(), "just made");
        assert_eq!(evented(&before, &made(1)), [a], "and had an event already");
        assert!(evented(&made(0), &before).is_empty(), "removed");
    }
}
