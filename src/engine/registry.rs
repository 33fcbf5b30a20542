//! What is known of devices whose pool does not run: sets of devices by pool, and their names
//! (`docs/spec/engine/engine-behaviour.md` §2, 4).
//!
//! A value in memory. Devices are read before it is asked, so its mutex is never held over I/O.

mod set;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::set::{DeviceSet, Found, STOPPED, Seen, Verdict};
use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        pool_ref::PoolRef,
    },
    engine::{
        error::{Error, Result},
        ties::{Doubt, Ties},
    },
    platform::DeviceNumber,
    view,
};

/// Everything known of pools that do not run.
#[derive(Debug, Default)]
pub struct Registry {
    sets: BTreeMap<PoolUuid, DeviceSet>,
    running: BTreeMap<PoolUuid, Running>,
    /// Devices of running pools, by number: while a table lies on one, no other gets its number. A node may.
    members: HashMap<DeviceNumber, (PoolUuid, DevUuid)>,
    generations: Generations,
    /// Pools that a user has stopped while their devices were gone: the devices still say that the pools are to run.
    unrecorded_stops: BTreeSet<PoolUuid>,
    version: u64,
    changed: bool,
}

/// What is known of a pool that runs.
#[derive(Debug, Default)]
struct Running {
    /// Its devices.
    members: BTreeMap<DeviceNumber, (PathBuf, DevUuid)>,
    /// Devices that say that they belong to it and are none of those: a clone, a device left over, or one of its own that has
    /// come back under another node. They are part of the set when the pool has been stopped.
    beside: DeviceSet,
}

/// A generation counter per pool. It advances when the pool starts to run or stops. What was read from the devices of a
/// pool before that is out of date: it may say of a pool which a user has stopped that the pool is to run.
#[derive(Debug, Default)]
struct Generations {
    /// Advances with each pool.
    count: u64,
    last: HashMap<PoolUuid, u64>,
    /// The newest generation that was dropped from `last`.
    forgotten: u64,
}

/// A moment, to ask what has happened since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Generations {
    /// Pools whose last change is kept. A moment that is asked about is seconds old, and no more pools change in that time.
    const KNOWN_MAX: usize = 4096;

    fn advance(&mut self, pool: PoolUuid) {
        self.count += 1;
        self.last.insert(pool, self.count);
        if self.last.len() > Generations::KNOWN_MAX {
            self.forgotten = self.count - Generations::KNOWN_MAX as u64 / 2;
            self.last.retain(|_, generation| *generation > self.forgotten);
        }
    }

    fn has_advanced(&self, pool: PoolUuid, since: Moment) -> bool {
        self.last.get(&pool).copied().unwrap_or(self.forgotten) > since.0
    }
}

impl Registry {
    /// Now.
    pub fn moment(&self) -> Moment {
        Moment(self.generations.count)
    }

    /// Whether the pool has started to run or stopped since that moment.
    pub fn has_started_or_stopped(&self, pool: PoolUuid, since: Moment) -> bool {
        self.generations.has_advanced(pool, since)
    }

    /// Adds a device to its pool's set, or to what is known beside a running pool; what was known at its path is past.
    pub fn add(&mut self, seen: Seen) {
        let (pool, path) = (seen.pool(), seen.device().path.clone());
        let others = self.sets.iter_mut().filter(|(other, _)| **other != pool).map(|(_, set)| set);
        let beside =
            self.running.iter_mut().filter(|(other, _)| **other != pool).map(|(_, running)| &mut running.beside);
        for set in others.chain(beside) {
            set.forget(&path);
        }
        match self.running.get_mut(&pool) {
            Some(running) => running.beside.add(seen),
            None => self.sets.entry(pool).or_default().add(seen),
        }
        self.tidy();
    }

    /// What the kernel has to be asked of devices that say they belong to a pool, before it can be told which of them count.
    pub fn doubt(&self, pool: PoolUuid) -> Option<Doubt> {
        match self.running.get(&pool) {
            Some(running) => running.beside.doubt(&running.members.keys().copied().collect::<Vec<_>>()),
            None => self.sets.get(&pool)?.doubt(&[]),
        }
    }

    /// Takes note of what the kernel has said.
    pub fn note_ties(&mut self, pool: PoolUuid, ties: Ties) {
        if let Some(set) = self.running.get_mut(&pool).map(|running| &mut running.beside).or(self.sets.get_mut(&pool)) {
            set.note_ties(ties);
        }
        self.tidy();
    }

    /// The devices that are known beside those of a running pool.
    pub fn beside(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.running.get(&pool).map(|running| running.beside.clone())
    }

    /// The devices of a pool that are left aside, with the reasons.
    pub fn aside(&self, pool: PoolUuid) -> Vec<view::LeftAside> {
        match self.running.get(&pool) {
            Some(running) => running.beside.aside(&running.members),
            None => self.sets.get(&pool).map_or_else(Vec::new, |set| set.aside(&BTreeMap::new())),
        }
    }

    /// A copy of a pool's set, to set the pool up from. The set itself stays, so that the pool is always to be found and a
    /// device that goes away meanwhile is forgotten.
    pub fn get(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.sets.get(&pool).cloned()
    }

    /// Which pool is meant, of those that do not run.
    ///
    /// # Errors
    /// If there is none, or more than one of that name. Pools of which the name is not known might be meant, too.
    pub fn resolve(&self, which: &PoolRef) -> Result<PoolUuid> {
        match which {
            PoolRef::Uuid(uuid) => {
                let shown = self.sets.get(uuid).and_then(|set| set.view(*uuid));
                shown.map(|pool| pool.uuid).ok_or_else(|| Error::UnknownPool(which.clone()))
            }
            PoolRef::Name(name) => {
                let named = |set: &DeviceSet| set.name().is_some_and(|of_set| of_set == *name);
                let pools: Vec<_> = self.sets.iter().filter(|(_, set)| named(set)).map(|(uuid, _)| *uuid).collect();
                match pools[..] {
                    [] => {
                        let shown = self.sets.iter().filter_map(|(uuid, set)| set.view(*uuid));
                        let nameless: Vec<_> = shown.filter(|pool| pool.name.is_none()).map(|pool| pool.uuid).collect();
                        Err(match nameless.is_empty() {
                            true => Error::UnknownPool(which.clone()),
                            false => Error::UnknownName { name: name.clone(), nameless },
                        })
                    }
                    [one] => Ok(one),
                    _ => Err(Error::AmbiguousName { name: name.clone(), pools }),
                }
            }
        }
    }

    /// Replaces everything known of stopped pools by the findings of a scan that began at `since`. Pools that started or
    /// stopped since then and devices of running pools keep what is known, which is newer.
    pub fn replace(&mut self, seen: Vec<Seen>, since: Moment) {
        let (newer, known) =
            std::mem::take(&mut self.sets).into_iter().partition(|(pool, _)| self.has_started_or_stopped(*pool, since));
        let known: BTreeMap<PoolUuid, DeviceSet> = known;
        self.sets = newer;
        for pool in
            self.running.keys().copied().filter(|pool| !self.has_started_or_stopped(*pool, since)).collect::<Vec<_>>()
        {
            self.running.entry(pool).or_default().beside = DeviceSet::default();
        }
        for seen in seen {
            let pool = seen.pool();
            if self.has_started_or_stopped(pool, since) || self.members.contains_key(&seen.device().number) {
                continue;
            }
            if let Some(running) = self.running.get_mut(&pool) {
                running.beside.add(seen);
                continue;
            }
            let (partial, being_set_up) =
                known.get(&pool).map(|set| (set.partial, set.being_set_up)).unwrap_or_default();
            let set = self.sets.entry(pool).or_default();
            set.partial |= partial;
            set.being_set_up |= being_set_up;
            set.add(seen);
        }
        self.changed = true;
    }

    /// Takes a pool's set out: the pool runs, or nothing is left of it.
    pub fn take(&mut self, pool: PoolUuid) -> Option<DeviceSet> {
        let set = self.sets.remove(&pool);
        self.changed |= set.is_some();
        set
    }

    /// Adds the devices of a pool that has been taken down. Other devices with the pool's signature stay known.
    pub fn add_stopped(&mut self, pool: PoolUuid, mut set: DeviceSet) {
        if let Some(others) = self.sets.remove(&pool) {
            set.absorb(others);
        }
        self.sets.insert(pool, set);
        self.tidy();
    }

    /// Notes that a user has stopped a pool, which could not be recorded, since its devices were gone.
    pub fn note_unrecorded_stop(&mut self, pool: PoolUuid) {
        self.unrecorded_stops.insert(pool);
    }

    /// The stop of a pool is on record by now.
    pub fn note_recorded_stop(&mut self, pool: PoolUuid) {
        self.unrecorded_stops.remove(&pool);
    }

    /// Whether a user has stopped the pool and its devices do not say so.
    pub fn is_stop_unrecorded(&self, pool: PoolUuid) -> bool {
        self.unrecorded_stops.contains(&pool)
    }

    /// Notes what has come of setting a pool up or taking it down: whether some of its device-mapper devices are up, and what
    /// went wrong.
    pub fn note_down(&mut self, pool: PoolUuid, partial: bool, trouble: Option<&Error>) {
        if let Some(set) = self.sets.get_mut(&pool) {
            let trouble = trouble.map(|error| error.sentence().into());
            self.changed |= (set.partial, &set.trouble) != (partial, &trouble) || set.being_set_up;
            (set.partial, set.trouble, set.being_set_up) = (partial, trouble, false);
        }
    }

    /// Notes that a pool is being set up, until it runs or [`Registry::note_down`] is told that it does not.
    pub fn note_being_set_up(&mut self, pool: PoolUuid) {
        if let Some(set) = self.sets.get_mut(&pool) {
            self.changed |= !std::mem::replace(&mut set.being_set_up, true);
        }
    }

    /// The pools that are being set up, by name, or by identifier where that is not known.
    pub fn being_set_up(&self) -> Vec<String> {
        let sets = self.sets.iter().filter(|(_, set)| set.being_set_up);
        sets.map(|(pool, set)| set.name().map_or_else(|| pool.to_string(), |name| name.to_string())).collect()
    }

    fn tidy(&mut self) {
        self.sets.retain(|_, set| !set.is_empty());
        self.changed = true;
    }

    /// Forgets the device at this path. Gives its pool, if it was known.
    pub fn remove_path(&mut self, path: &Path) -> Option<PoolUuid> {
        for running in self.running.values_mut() {
            self.changed |= running.beside.forget(path);
        }
        let pool = self.sets.iter().find(|(_, set)| set.knows(path)).map(|(pool, _)| *pool)?;
        let set = self.sets.get_mut(&pool)?;
        // What is up of a partially constructed pool uses its devices; they are not forgotten before it is taken down.
        if set.partial {
            return None;
        }
        set.forget(path);
        self.tidy();
        Some(pool)
    }

    /// The paths of all devices of pools that do not run, and of those beside pools that do.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let sets = self.sets.values().chain(self.running.values().map(|running| &running.beside));
        sets.flat_map(DeviceSet::all).map(|seen| seen.device().path.clone()).collect()
    }

    /// Whether this device is known to be a member of the pool, which runs or could.
    pub fn lists(&self, pool: PoolUuid, device: DevUuid) -> bool {
        self.members.values().any(|member| *member == (pool, device))
            || self.sets.get(&pool).is_some_and(|set| set.lists(device))
    }

    /// Pools that are known and do not run.
    pub fn pools(&self) -> Vec<PoolUuid> {
        self.sets.keys().copied().collect()
    }

    /// Notes the devices of a pool that runs now: number, node, identifier. Nothing else is known of them any more; others that
    /// say they belong to the pool are beside it.
    pub fn note_running(
        &mut self,
        pool: PoolUuid,
        devices: impl IntoIterator<Item = (DeviceNumber, PathBuf, DevUuid)>,
    ) {
        self.generations.advance(pool);
        self.unrecorded_stops.remove(&pool);
        // With what is known of how its devices lie on each other.
        let mut beside = self.take(pool).unwrap_or_default();
        (beside.partial, beside.trouble, beside.being_set_up) = (false, None, false);
        self.members.retain(|_, (of, _)| *of != pool);
        let mut running = self.running.remove(&pool).unwrap_or_default();
        running.members.clear();
        beside.absorb(std::mem::take(&mut running.beside));
        running.beside = beside;
        for (number, path, device) in devices {
            for set in self.sets.values_mut().chain(self.running.values_mut().map(|running| &mut running.beside)) {
                self.changed |= set.forget(&path);
            }
            self.changed |= running.beside.forget_number(number);
            self.members.insert(number, (pool, device));
            running.members.insert(number, (path, device));
        }
        self.running.insert(pool, running);
        self.sets.retain(|_, set| !set.is_empty());
    }

    /// The pool does not run any more.
    pub fn note_ended(&mut self, pool: PoolUuid) {
        self.generations.advance(pool);
        self.members.retain(|_, (of, _)| *of != pool);
        if let Some(running) = self.running.remove(&pool) {
            self.changed |= !running.beside.is_empty();
            self.sets.entry(pool).or_default().absorb(running.beside);
        }
        self.sets.retain(|_, set| !set.is_empty());
    }

    /// A device of a running pool is another's by now.
    pub fn lose_member(&mut self, number: DeviceNumber) {
        if let Some((pool, _)) = self.members.remove(&number) {
            if let Some(running) = self.running.get_mut(&pool) {
                running.members.remove(&number);
            }
        }
    }

    /// Whether a running pool has this device.
    pub fn has_member(&self, pool: PoolUuid, device: DevUuid) -> bool {
        self.running.get(&pool).is_some_and(|running| running.members.values().any(|(_, member)| *member == device))
    }

    /// The pools that run.
    pub fn running_pools(&self) -> BTreeSet<PoolUuid> {
        self.running.keys().copied().collect()
    }

    /// The running pool that this device is a member of.
    pub fn running_member(&self, number: DeviceNumber) -> Option<(PoolUuid, DevUuid)> {
        self.members.get(&number).copied()
    }

    /// The pools that do not run, as clients see them, if that changed since this was last called.
    pub fn take_change(&mut self) -> Option<Arc<view::Stopped>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.version += 1;
        let pools = self.sets.iter().filter_map(|(uuid, set)| set.view(*uuid)).collect();
        let known = self.sets.keys().chain(self.running.keys());
        let left_aside = known.flat_map(|pool| self.aside(*pool).into_iter().map(|device| (*pool, device))).collect();
        Some(Arc::new(view::Stopped { version: self.version, pools, left_aside }))
    }
}
