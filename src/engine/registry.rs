//! What is known of devices whose pool does not run: sets of devices by pool, and their names
//! (`docs/spec/engine/engine-behaviour.md` §2, 4).
//!
//! A value in memory. Devices are read before it is asked, so its mutex is never held over I/O.

mod entries;
mod set;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use self::entries::{Entries, Entry};
pub use self::set::{DeviceSet, Found, STOPPED, Seen, Verdict};
use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
    },
    engine::{
        error::{Error, Result},
        ties::{Doubt, Ties},
    },
    platform::{BlockDevice, DeviceNumber},
    view,
};

/// Everything known of pools that do not run.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Entries,
    /// Devices of running pools, by number: while a table lies on one, no other gets its number. A node may.
    members: HashMap<DeviceNumber, (PoolUuid, DevUuid)>,
    generations: Generations,
    /// Pools that a user has stopped while their devices were gone: the devices still say that the pools are to run.
    unrecorded_stops: BTreeSet<PoolUuid>,
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
        self.forget_node_but(&path, pool);
        self.entries.edit(pool, |entry| match &mut entry.running {
            Some(running) => running.beside.add(seen),
            None => entry.set.add(seen),
        });
    }

    /// Forgets the device of this node that pools other than one know.
    fn forget_node_but(&mut self, path: &Path, pool: PoolUuid) {
        for other in self.entries.at(path).into_iter().filter(|other| *other != pool) {
            self.entries.edit(other, |entry| {
                entry.set.forget(path);
                entry.running.iter_mut().for_each(|running| _ = running.beside.forget(path));
            });
        }
    }

    /// What the kernel has to be asked of devices that say they belong to a pool, before it can be told which of them count.
    pub fn doubt(&self, pool: PoolUuid) -> Option<Doubt> {
        let entry = self.entries.get(pool)?;
        match &entry.running {
            Some(running) => running.beside.doubt(&running.members.keys().copied().collect::<Vec<_>>()),
            None => entry.set.doubt(&[]),
        }
    }

    /// Takes note of what the kernel has said.
    pub fn note_ties(&mut self, pool: PoolUuid, ties: Ties) {
        self.entries.edit(pool, |entry| match &mut entry.running {
            Some(running) => running.beside.note_ties(ties),
            None => entry.set.note_ties(ties),
        });
    }

    /// The devices that are known beside those of a running pool.
    pub fn beside(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.entries.running(pool).map(|running| running.beside.clone())
    }

    /// The devices of a pool that are left aside, with the reasons.
    pub fn aside(&self, pool: PoolUuid) -> Vec<view::LeftAside> {
        self.entries.get(pool).map(Entry::aside).unwrap_or_default()
    }

    /// A copy of a pool's set, to set the pool up from. The set itself stays, so that the pool is always to be found and a
    /// device that goes away meanwhile is forgotten.
    pub fn get(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.entries.stopped(pool).cloned()
    }

    /// Which pool is meant, of those that do not run.
    ///
    /// # Errors
    /// If there is none, or more than one of that name. Pools of which the name is not known might be meant, too.
    pub fn resolve(&mut self, which: &PoolRef) -> Result<PoolUuid> {
        match which {
            PoolRef::Uuid(uuid) => {
                let is_shown = self.entries.shown().pools().contains_key(uuid);
                is_shown.then_some(*uuid).ok_or_else(|| Error::UnknownPool(which.clone()))
            }
            PoolRef::Name(name) => {
                let pools: Vec<PoolUuid> = self.entries.named(name).into_iter().collect();
                match pools[..] {
                    [] => {
                        let shown = self.entries.shown().pools().values();
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
    /// stopped since then and devices of running pools keep what is known, which is newer. Devices that are there and could
    /// not be read stay known.
    pub fn replace(&mut self, mut seen: Vec<Seen>, unread: &[BlockDevice], since: Moment) {
        seen.extend(unread.iter().flat_map(|device| self.known_of(device)));
        let (generations, members) = (&self.generations, &self.members);
        let is_old = |pool: PoolUuid| !generations.has_advanced(pool, since);
        let mut found: BTreeMap<PoolUuid, Vec<Seen>> = BTreeMap::new();
        for seen in seen.into_iter().filter(|seen| is_old(seen.pool())) {
            if !members.contains_key(&seen.device().number) {
                found.entry(seen.pool()).or_default().push(seen);
            }
        }
        let known: Vec<PoolUuid> = self.entries.iter().map(|(pool, _)| pool).filter(|pool| is_old(*pool)).collect();
        for pool in known {
            found.entry(pool).or_default();
        }
        for (pool, found) in found {
            self.entries.edit(pool, |entry| {
                let former = std::mem::take(&mut entry.set);
                let set = match &mut entry.running {
                    Some(running) => {
                        running.beside = DeviceSet::default();
                        &mut running.beside
                    }
                    None => {
                        (entry.set.partial, entry.set.being_set_up) = (former.partial, former.being_set_up);
                        &mut entry.set
                    }
                };
                found.into_iter().for_each(|seen| set.add(seen));
            });
        }
    }

    /// Takes a pool's set out: the pool runs, or nothing is left of it.
    pub fn take(&mut self, pool: PoolUuid) -> Option<DeviceSet> {
        self.entries.stopped(pool)?;
        Some(self.entries.edit(pool, |entry| std::mem::take(&mut entry.set)))
    }

    /// Adds the devices of a pool that has been taken down. Other devices with the pool's signature stay known.
    pub fn add_stopped(&mut self, pool: PoolUuid, set: DeviceSet) {
        self.entries.edit(pool, |entry| {
            let others = std::mem::replace(&mut entry.set, set);
            entry.set.absorb(others);
        });
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
        let awaits_name = matches!(trouble, Some(Error::NameRuns(_)));
        let trouble = trouble.map(|error| error.sentence().into());
        self.entries.edit(pool, |entry| {
            (entry.set.partial, entry.set.trouble, entry.set.being_set_up) = (partial, trouble, false);
            entry.set.awaits_name = awaits_name;
        });
    }

    /// The pools that were not set up because a running pool had this name, which it does not have any more.
    pub fn awaiting(&mut self, name: &Name) -> Vec<PoolUuid> {
        let mut named = self.entries.named(name);
        named.retain(|pool| self.entries.stopped(*pool).is_some_and(|set| set.awaits_name));
        named.into_iter().collect()
    }

    /// Notes that a pool is being set up, until it runs or [`Registry::note_down`] is told that it does not.
    pub fn note_being_set_up(&mut self, pool: PoolUuid) {
        self.entries.edit(pool, |entry| entry.set.being_set_up = true);
    }

    /// The pools that are being set up, by name, or by identifier where that is not known.
    pub fn being_set_up(&self) -> Vec<String> {
        let sets = self.entries.iter().filter_map(|(pool, entry)| Some((pool, entry.stopped()?)));
        let sets = sets.filter(|(_, set)| set.being_set_up);
        sets.map(|(pool, set)| set.name().map_or_else(|| pool.to_string(), |name| name.to_string())).collect()
    }

    /// Forgets the device at this path. Gives its pool, if it was known.
    pub fn remove_path(&mut self, path: &Path) -> Option<PoolUuid> {
        let at = self.entries.at(path);
        for pool in &at {
            self.entries.edit(*pool, |entry| {
                entry.running.iter_mut().for_each(|running| _ = running.beside.forget(path));
            });
        }
        let is_in =
            |pool: &PoolUuid| self.entries.stopped(*pool).is_some_and(|set| set.nodes().any(|node| node == path));
        let pool = at.into_iter().find(is_in)?;
        self.entries.edit(pool, |entry| {
            // What is up of a partially constructed pool uses its devices; they are not forgotten before it is taken down.
            (!entry.set.partial).then(|| {
                entry.set.forget(path);
                pool
            })
        })
    }

    /// Whether this device is known, of a pool that does not run or beside one that does.
    pub fn knows(&self, device: &BlockDevice) -> bool {
        !self.known_of(device).is_empty()
    }

    fn known_of(&self, device: &BlockDevice) -> Vec<Seen> {
        let entries = self.entries.at(&device.path).into_iter().filter_map(|pool| self.entries.get(pool));
        let sets = entries.flat_map(|entry| [Some(&entry.set), entry.running.as_ref().map(|running| &running.beside)]);
        sets.flatten().flat_map(|set| set.known_of(device)).collect()
    }

    /// The paths of all devices of pools that do not run, and of those beside pools that do.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let sets = self.entries.iter().flat_map(|(_, entry)| {
            [entry.stopped(), entry.running.as_ref().map(|running| &running.beside)].into_iter().flatten()
        });
        sets.flat_map(DeviceSet::all).map(|seen| seen.device().path.clone()).collect()
    }

    /// Whether this device is known to be a member of the pool, which runs or could.
    pub fn lists(&self, pool: PoolUuid, device: DevUuid) -> bool {
        self.has_member(pool, device) || self.entries.stopped(pool).is_some_and(|set| set.lists(device))
    }

    /// Pools that are known and do not run.
    pub fn pools(&self) -> Vec<PoolUuid> {
        self.entries.iter().filter(|(_, entry)| entry.stopped().is_some()).map(|(pool, _)| pool).collect()
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
        self.forget_members(pool);
        let members: BTreeMap<_, _> =
            devices.into_iter().map(|(number, path, device)| (number, (path, device))).collect();
        for (number, (path, device)) in &members {
            self.forget_node_but(path, pool);
            self.members.insert(*number, (pool, *device));
        }
        self.entries.edit(pool, |entry| {
            // With what is known of how its devices lie on each other.
            let mut beside = std::mem::take(&mut entry.set);
            (beside.partial, beside.trouble, beside.being_set_up) = (false, None, false);
            beside.absorb(entry.running.take().map(|running| running.beside).unwrap_or_default());
            members.keys().for_each(|number| _ = beside.forget_number(*number));
            entry.running = Some(Running { members, beside });
        });
    }

    /// The pool does not run any more.
    pub fn note_ended(&mut self, pool: PoolUuid) {
        self.generations.advance(pool);
        self.forget_members(pool);
        self.entries.edit(pool, |entry| {
            if let Some(running) = entry.running.take() {
                entry.set.absorb(running.beside);
            }
        });
    }

    /// Devices of the pool are nobody's by number. Another pool may have one of the numbers by now.
    fn forget_members(&mut self, pool: PoolUuid) {
        for number in self.entries.running(pool).into_iter().flat_map(|running| running.members.keys()) {
            if self.members.get(number).is_some_and(|(of, _)| *of == pool) {
                self.members.remove(number);
            }
        }
    }

    /// A device of a running pool is another's by now.
    pub fn lose_member(&mut self, number: DeviceNumber) {
        if let Some((pool, _)) = self.members.remove(&number) {
            self.entries.edit(pool, |entry| {
                entry.running.iter_mut().for_each(|running| drop(running.members.remove(&number)));
            });
        }
    }

    /// Whether a running pool has this device.
    pub fn has_member(&self, pool: PoolUuid, device: DevUuid) -> bool {
        let running = self.entries.running(pool);
        running.is_some_and(|running| running.members.values().any(|(_, member)| *member == device))
    }

    /// The pools that run.
    pub fn running_pools(&self) -> BTreeSet<PoolUuid> {
        self.entries.iter().filter(|(_, entry)| entry.running.is_some()).map(|(pool, _)| pool).collect()
    }

    /// The running pool that this device is a member of.
    pub fn running_member(&self, number: DeviceNumber) -> Option<(PoolUuid, DevUuid)> {
        self.members.get(&number).copied()
    }

    /// The pools that do not run, as clients see them, if that changed since this was last called.
    pub fn take_change(&mut self) -> Option<Arc<view::Stopped>> {
        self.entries.take_change()
    }
}
