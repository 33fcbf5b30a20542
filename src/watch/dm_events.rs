//! The thread `dm-events`: has a pool checked when its thin pool had an event, as when it runs out of space, and when it has
//! begun to run.
//!
//! The kernel tells that some device-mapper device changed, and does so several times for each filesystem that is made. Only
//! thin pools have events that anything follows from, so each is asked for its number: a list of all devices would make
//! each filesystem dearer the more there are.
//!
//! One call for each running pool is the least that the kernel allows. It has three ways to tell of events: poll on the
//! control device, which does not say which device had one; `DM_LIST_DEVICES`, which walks all devices under the lock that
//! every other call takes, and a pool has at least seven; `DM_DEV_WAIT`, which keeps a thread for each device.
//!
//! Must never know: what an event means.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{stop::Stop, wake::Waker};

use super::{Ended, Error, Running, Submit, Task, Woken, merge::Merge, wait};
use crate::{
    base::ids::PoolUuid,
    engine::{dm_names::Role, ops::Depth},
    platform::{DmEvents, Platform},
};

/// A check that has ended, and after which time the pool is to be looked at again.
type Checked = (PoolUuid, Option<Duration>);

/// The watcher. [`DmWatch::run`] is its thread.
pub struct DmWatch {
    platform: Arc<dyn Platform>,
    source: Box<dyn DmEvents>,
    running: Running,
    waker: Waker,
    submit: Submit,
    /// Unbounded, but holds at most one message for each pool: checks that have ended.
    ended: (Sender<Checked>, Receiver<Checked>),
}

/// The event number of each pool's thin pool, as last seen.
type Numbers = BTreeMap<PoolUuid, u32>;

/// Reads the numbers of these pools. Gives also those that are new, or of which the number is another than before.
fn look(platform: &dyn Platform, before: &Numbers, running: Vec<PoolUuid>) -> (Numbers, Vec<PoolUuid>) {
    let (mut now, mut evented) = (Numbers::new(), Vec::new());
    for pool in running {
        let known = before.get(&pool).copied();
        let number = match platform.dm_event(&Role::ThinPool.name(pool)) {
            Ok(number) => number,
            Err(error) => {
                // What is not known changed is checked by time; the next event tries again.
                log::warn!("after an event of device-mapper, the thin pool of pool {pool} could not be asked: {error}");
                known
            }
        };
        // One that is just being stopped has none. Should it go on, it is new.
        let Some(number) = number else { continue };
        if known != Some(number) {
            evented.push(pool);
        }
        now.insert(pool, number);
    }
    (now, evented)
}

impl DmWatch {
    /// A watcher of the thin pools of `running`. `source` was asked of the same machine, and `waker` is one that `running`
    /// wakes.
    pub fn new(
        platform: Arc<dyn Platform>,
        source: Box<dyn DmEvents>,
        running: Running,
        waker: Waker,
        submit: Submit,
    ) -> DmWatch {
        DmWatch { platform, source, running, waker, submit, ended: unbounded() }
    }

    /// Works until the stop.
    ///
    /// # Errors
    /// When waiting or arming is not possible.
    pub fn run(mut self, stop: &Stop) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let (mut seen, mut checks) = (Numbers::new(), Merge::new());
        let mut looks: BTreeMap<PoolUuid, Instant> = BTreeMap::new();
        loop {
            // Armed before the numbers are read: an event after the reading makes the descriptor readable again.
            self.source.arm().map_err(Error::Source)?;
            let (now, evented) = look(&*self.platform, &seen, self.running.list());
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
        let ended = Ended::of((pool, None), &self.ended.0, &self.waker);
        let chain = ended.after_check_of(pool, depth, move |look_again| (pool, look_again));
        (self.submit)(Task { label: format!("check of pool {pool} after a device-mapper event"), chain });
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
            sim::{Call, Sim},
        },
    };

    #[test]
    fn a_pool_is_checked_when_the_number_of_its_thin_pool_changes() {
        let sim = Sim::builder().disk("/dev/a", Sectors(1 << 21)).build();
        let disk = sim.find_device("/dev/a".as_ref()).unwrap().number;
        let make = |name: &str| {
            let table = [Line::linear(Sectors(0), Sectors(8), disk, Sectors(0))];
            sim.dm_create(name, name, &table, Visibility::Private).unwrap();
        };
        let [a, b] = [1, 2].map(|byte| PoolUuid::from_random([byte; 16]));
        let [of_a, of_b] = [a, b].map(|pool| Role::ThinPool.name(pool));
        let filesystem = dm_names::filesystem(a, FsUuid::from_random([3; 16]));
        [of_a.as_str(), &of_b, &filesystem].into_iter().for_each(make);
        let mut seen = Numbers::new();
        let mut evented = |running: &[PoolUuid]| {
            let (now, evented) = look(&sim, &seen, running.to_vec());
            seen = now;
            evented
        };
        assert_eq!(evented(&[a]), [a], "new");
        assert!(evented(&[a]).is_empty());
        assert_eq!(evented(&[a, b]), [b], "another new one");
        sim.raise_event(&filesystem).unwrap();
        assert!(evented(&[a, b]).is_empty(), "thin devices have no events that count");
        sim.raise_event(&of_a).unwrap();
        assert_eq!(evented(&[a, b]), [a]);
        sim.raise_event(&of_b).unwrap();
        sim.faults().fail_next(Call::DmFind, &of_b);
        assert!(evented(&[a, b]).is_empty(), "it could not be asked");
        assert_eq!(evented(&[a, b]), [b], "and is asked again");
        sim.dm_remove(&of_a).unwrap();
        assert!(evented(&[a, b]).is_empty(), "it is being stopped");
        make(&of_a);
        assert_eq!(evented(&[a, b]), [a], "and goes on");
        assert!(evented(&[b]).is_empty(), "gone");
        assert_eq!(evented(&[a, b]), [a], "and back");
    }

    /// Found by measuring: each filesystem that was made beside a thousand cost a list of a thousand devices.
    #[test]
    fn other_devices_are_not_looked_at() {
        let sim = Sim::builder().record().build();
        let pools = [1, 2].map(|byte| PoolUuid::from_random([byte; 16]));
        look(&sim, &Numbers::new(), pools.to_vec());
        let asked: Vec<_> = sim.trace().into_iter().map(|step| (step.call, step.subject)).collect();
        assert_eq!(asked, pools.map(|pool| (Call::DmFind, Role::ThinPool.name(pool))));
    }
}
