//! The thread `dm-events`: checks a pool when its thin pool had an event, for instance when it runs
//! out of space, and when the pool has started to run.
//!
//! The kernel reports that some device-mapper device changed, several times for each new
//! filesystem, but not which device. Only events of thin pools matter. So the watcher compares the
//! event numbers of the thin pools with the previous ones, and checks only the pools whose number
//! differs.
//!
//! Reading the numbers takes a bounded number of calls. Up to [`ASKED_MAX`] pools are queried one
//! by one; the cost does not depend on the number of filesystems. Beyond that, one list of all
//! devices has all numbers: one call, of about 0.1 µs per device, instead of one call of several µs
//! per pool.
//!
//! The kernel offers nothing that costs the same beside any number of devices:
//!
//! - `DM_DEV_ARM_POLL` makes the descriptor readable after any event of any device. It carries no
//!   name.
//! - `DM_LIST_DEVICES` goes through all names. Since Linux 5.13 it can leave out those without a
//!   given prefix, which it compares one by one; and the name of a thin pool has the pool's UUID
//!   before its role, so only a whole name selects it.
//! - `DM_DEV_WAIT` waits for one device, and occupies a thread for each.
//! - A uevent with the name comes for events of multipath only.
//!
//! Must never know: what an event means.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{pulse::Pulse, stop::Stop, wake::Waker};

use super::{EndReport, Error, RunningPools, SubmitWatched, WatchRequest, Woken, merge::Merge, wait};
use crate::{
    base::ids::PoolUuid,
    engine::{dm_names::Role, ops::Depth},
    platform::{DmEvents, Platform, dm::Listed},
};

/// A check that has ended, and the time after which the pool is to be checked again.
type CheckEnd = (PoolUuid, Option<Duration>);

/// The watcher. [`DmWatch::run`] is its thread.
pub struct DmWatch {
    platform: Arc<dyn Platform>,
    source: Box<dyn DmEvents>,
    running: RunningPools,
    waker: Waker,
    submit: SubmitWatched,
    /// Checks that have ended. Unbounded, but holds at most one message for each pool.
    ended: (Sender<CheckEnd>, Receiver<CheckEnd>),
}

/// The last event number of each pool's thin pool.
type Numbers = BTreeMap<PoolUuid, u32>;

/// Up to this number of running pools are queried one by one.
const ASKED_MAX: usize = 16;

/// Reads the event numbers of these pools. Also returns the pools that are new or whose number
/// differs from `before`.
fn look(platform: &dyn Platform, before: &Numbers, running: BTreeSet<PoolUuid>) -> (Numbers, Vec<PoolUuid>) {
    let listed = match running.len() <= ASKED_MAX {
        true => None,
        false => match platform.dm_list() {
            Ok(devices) => numbers(devices),
            Err(error) => {
                // The periodic check covers events missed here; the next event tries again.
                log::warn!("cannot list devices after a device-mapper event: {error}; the periodic check covers it");
                let known = before.iter().filter(|(pool, _)| running.contains(pool));
                return (known.map(|(pool, number)| (*pool, *number)).collect(), Vec::new());
            }
        },
    };
    let (mut now, mut evented) = (Numbers::new(), Vec::new());
    for pool in running {
        let known = before.get(&pool).copied();
        let thin_pool = Role::ThinPool.name(pool);
        let asked = match &listed {
            Some(listed) => Ok(listed.get(&thin_pool).copied()),
            None => platform.dm_event(&thin_pool),
        };
        let number = asked.unwrap_or_else(|error| {
            log::warn!("cannot query the thin pool of pool {pool} after a device-mapper event: {error}");
            known
        });
        // A pool that is being stopped has no thin pool. If the stop is abandoned, the pool counts
        // as new.
        let Some(number) = number else { continue };
        if known != Some(number) {
            evented.push(pool);
        }
        now.insert(pool, number);
    }
    (now, evented)
}

/// The event numbers of all devices by name. `None`: the kernel lists devices without them
/// (device-mapper before 4.37), so each pool has to be queried.
fn numbers(devices: Vec<Listed>) -> Option<HashMap<String, u32>> {
    devices.into_iter().map(|Listed { name, event, .. }| Some((name, event?))).collect()
}

impl DmWatch {
    /// A watcher of the thin pools of `running`, which wakes `waker`. `source` must belong to
    /// `platform`.
    pub fn new(
        platform: Arc<dyn Platform>,
        source: Box<dyn DmEvents>,
        running: RunningPools,
        waker: Waker,
        submit: SubmitWatched,
    ) -> DmWatch {
        DmWatch { platform, source, running, waker, submit, ended: unbounded() }
    }

    /// Runs until the stop.
    ///
    /// # Errors
    /// Waiting for events or arming the source failed.
    pub fn run(mut self, stop: &Stop, pulse: &Pulse) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let (mut seen, mut checks) = (Numbers::new(), Merge::new());
        let mut looks: BTreeMap<PoolUuid, Instant> = BTreeMap::new();
        loop {
            // The source is armed before the numbers are read: a later event makes the descriptor
            // readable again.
            self.source.arm().map_err(Error::Source)?;
            let (now, evented) = look(&*self.platform, &seen, self.running.list().into_iter().collect());
            seen = now;
            for pool in evented {
                if checks.cause(pool) {
                    self.check(pool, Depth::Whole);
                }
            }
            looks.retain(|pool, _| seen.contains_key(pool));
            if wait(Some(self.source.fd()), &self.waker, stop, looks.values().min().copied())? == Woken::Stop {
                return Ok(());
            }
            pulse.beat();
            for (pool, look_again) in self.ended.1.try_iter() {
                match look_again {
                    Some(time) => drop(looks.insert(pool, Instant::now() + time)),
                    None => drop(looks.remove(&pool)),
                }
                if checks.ended(&pool) {
                    self.check(pool, Depth::Whole);
                }
            }
            let now = Instant::now();
            let due: Vec<PoolUuid> = looks.iter().filter(|(_, due)| **due <= now).map(|(pool, _)| *pool).collect();
            for pool in due {
                looks.remove(&pool);
                if checks.cause(pool) {
                    self.check(pool, Depth::Space);
                }
            }
        }
    }

    fn check(&self, pool: PoolUuid, depth: Depth) {
        let ended = EndReport::of((pool, None), &self.ended.0, &self.waker);
        let chain = ended.after_check_of(pool, depth, move |look_again| (pool, look_again));
        (self.submit)(WatchRequest { label: format!("check of pool {pool} after a device-mapper event"), chain });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{ids::FsUuid, units::Sectors},
        engine::dm_names,
        platform::{
            dm::{Line, Visibility},
            sim::{CallKind, Sim},
        },
    };

    fn uuid(number: usize) -> PoolUuid {
        PoolUuid::from_random([number as u8; 16])
    }

    fn make(sim: &Sim, name: &str) {
        let disk = sim.find_device("/dev/a".as_ref()).unwrap().number;
        let table = [Line::linear(Sectors(0), Sectors(8), disk, Sectors(0))];
        sim.dm_create(name, name, &table, Visibility::Private).unwrap();
    }

    /// The events of two pools beside `others` more.
    fn events(others: usize) {
        let sim = Sim::builder().disk("/dev/a", Sectors(1 << 21)).build();
        let [a, b] = [1, 2].map(uuid);
        let others: Vec<PoolUuid> = (3..3 + others).map(uuid).collect();
        let [of_a, of_b] = [a, b].map(|pool| Role::ThinPool.name(pool));
        let filesystem = dm_names::filesystem(a, FsUuid::from_random([3; 16]));
        [of_a.as_str(), &of_b, &filesystem].into_iter().for_each(|name| make(&sim, name));
        others.iter().for_each(|other| make(&sim, &Role::ThinPool.name(*other)));
        let mut seen = look(&sim, &Numbers::new(), others.iter().copied().collect()).0;
        let mut evented = |running: &[PoolUuid]| {
            let (now, evented) = look(&sim, &seen, running.iter().chain(&others).copied().collect());
            seen = now;
            evented
        };
        assert_eq!(evented(&[a]), [a], "a new pool");
        assert!(evented(&[a]).is_empty());
        assert_eq!(evented(&[a, b]), [b], "another new pool");
        sim.raise_event(&filesystem).unwrap();
        assert!(evented(&[a, b]).is_empty(), "events of thin devices do not matter");
        sim.raise_event(&of_a).unwrap();
        assert_eq!(evented(&[a, b]), [a]);
        sim.raise_event(&of_b).unwrap();
        match others.len() < ASKED_MAX {
            true => sim.faults().fail_next(CallKind::DmFind, &of_b),
            false => sim.faults().fail_next(CallKind::DmList, ""),
        }
        assert!(evented(&[a, b]).is_empty(), "the query failed");
        assert_eq!(evented(&[a, b]), [b], "the pool is queried again");
        sim.dm_remove(&of_a).unwrap();
        assert!(evented(&[a, b]).is_empty(), "the pool is being stopped");
        make(&sim, &of_a);
        assert_eq!(evented(&[a, b]), [a], "the pool goes on");
        assert!(evented(&[b]).is_empty(), "the pool is gone");
        assert_eq!(evented(&[a, b]), [a], "the pool is back");
    }

    #[test]
    fn a_new_event_number_checks_its_pool() {
        events(0);
        events(100);
    }

    /// The platform calls that an event causes.
    fn asked(running: &[PoolUuid]) -> Vec<(CallKind, String)> {
        let sim = Sim::builder().record().build();
        look(&sim, &Numbers::new(), running.iter().copied().collect());
        sim.trace().into_iter().map(|step| (step.call, step.subject)).collect()
    }

    /// Found by measuring: each new filesystem beside a thousand others cost a list of a thousand
    /// devices.
    #[test]
    fn beside_few_pools_only_those_are_queried() {
        let pools = [1, 2].map(uuid);
        assert_eq!(asked(&pools), pools.map(|pool| (CallKind::DmFind, Role::ThinPool.name(pool))));
    }

    /// Found in review: an event cost one call for each running pool.
    #[test]
    fn beside_many_pools_an_event_costs_one_call() {
        let pools: Vec<PoolUuid> = (0..250).map(uuid).collect();
        assert_eq!(asked(&pools[..ASKED_MAX]).len(), ASKED_MAX);
        assert_eq!(asked(&pools[..=ASKED_MAX]), [(CallKind::DmList, String::new())]);
        assert_eq!(asked(&pools), [(CallKind::DmList, String::new())]);
    }

    #[test]
    fn a_list_without_numbers_is_not_used() {
        let device = |event| Listed {
            name: "d".to_owned(),
            number: crate::platform::DeviceNumber { major: 253, minor: 0 },
            event,
        };
        assert_eq!(numbers(vec![device(Some(7))]), Some(HashMap::from([("d".to_owned(), 7)])));
        assert_eq!(numbers(vec![device(Some(7)), device(None)]), None);
    }
}
