//! What the daemon knows of the devices of pools that do not run: sets of devices by pool, and the
//! pools' names (`docs/spec/engine/engine-behaviour.md` §2, 4).
//!
//! The registry is a value in memory. Devices are read before the registry is asked, so its mutex
//! is never held over I/O.

mod entries;
mod set;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use self::entries::{Entries, Entry, Running};
pub use self::set::{DeviceSet, DeviceSetVerdict, FoundDevice, STOPPED, Seen};
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

/// All knowledge of pools that do not run.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Entries,
    /// Devices of running pools, by device number. While a table lies on a device, no other device
    /// gets its number; but another device may take over its node.
    members: HashMap<DeviceNumber, (PoolUuid, DevUuid)>,
    generations: Generations,
    /// Pools that a user stopped while their devices were gone. The metadata on those devices still
    /// says that the pools are to run.
    unrecorded_stops: BTreeSet<PoolUuid>,
}

/// A generation counter per pool. It advances when the pool starts or stops. Data read from the
/// pool's devices before that is out of date: it may say that a pool is to run although a user has
/// stopped the pool.
#[derive(Debug, Default)]
struct Generations {
    /// Advances with each start or stop of any pool.
    count: u64,
    last: HashMap<PoolUuid, u64>,
    /// The newest generation that was dropped from `last`.
    forgotten: u64,
}

/// A point in time, from which callers later ask what has happened since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Generations {
    /// The number of pools whose last change is kept. Callers ask about moments a few seconds ago,
    /// and fewer pools than this change in that time.
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
    /// The current moment.
    pub fn moment(&self) -> Moment {
        Moment(self.generations.count)
    }

    /// Whether the pool has started to run or stopped since that moment.
    pub fn has_started_or_stopped(&self, pool: PoolUuid, since: Moment) -> bool {
        self.generations.has_advanced(pool, since)
    }

    /// Adds a device to the set of its pool, or to the devices beside a running pool. Replaces what
    /// was known about the device at this path.
    pub fn add(&mut self, seen: Seen) {
        let (pool, path) = (seen.pool(), seen.device().path.clone());
        self.forget_node_but(&path, pool);
        self.entries.edit(pool, |entry| match &mut entry.running {
            Some(running) => running.beside.add(seen),
            None => entry.set.add(seen),
        });
    }

    /// Forgets the device at this node for all pools but `pool`.
    fn forget_node_but(&mut self, path: &Path, pool: PoolUuid) {
        for other in self.entries.at(path).into_iter().filter(|other| *other != pool) {
            self.entries.edit(other, |entry| {
                entry.set.forget(path);
                entry.running.iter_mut().for_each(|running| _ = running.beside.forget(path));
            });
        }
    }

    /// The devices that claim to belong to a pool and about which the kernel must be asked before
    /// it is clear which of them count.
    pub fn doubt(&self, pool: PoolUuid) -> Option<Doubt> {
        let entry = self.entries.get(pool)?;
        match &entry.running {
            Some(running) => running.beside.doubt(&running.members.keys().copied().collect::<Vec<_>>()),
            None => entry.set.doubt(&[]),
        }
    }

    /// Notes the answer of the kernel.
    pub fn note_ties(&mut self, pool: PoolUuid, ties: Ties) {
        self.entries.edit(pool, |entry| match &mut entry.running {
            Some(running) => running.beside.note_ties(ties),
            None => entry.set.note_ties(ties),
        });
    }

    /// The devices that carry the signature of a running pool but are not its members.
    pub fn beside(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.entries.running(pool).map(|running| running.beside.clone())
    }

    /// The devices of a pool that are left aside, with the reasons.
    pub fn aside(&self, pool: PoolUuid) -> Vec<view::LeftAsideView> {
        self.entries.get(pool).map(Entry::aside).unwrap_or_default()
    }

    /// A copy of a pool's set, for setting up the pool. The set itself stays, so that the pool can
    /// always be found and a device that disappears meanwhile is forgotten.
    pub fn get(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.entries.stopped(pool).cloned()
    }

    /// Finds the pool that `which` names among those that do not run.
    ///
    /// # Errors
    /// If there is none, or several with that name. A pool whose name is unknown might be meant,
    /// too.
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

    /// Replaces all knowledge of stopped pools by the result of a scan that began at `since`.
    /// Knowledge of running pools, and of pools that started or stopped since then, is newer and
    /// stays. Devices that are present but could not be read stay known.
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

    /// Removes a pool's set and returns it: the pool runs, or no device of it is left.
    pub fn take(&mut self, pool: PoolUuid) -> Option<DeviceSet> {
        self.entries.stopped(pool)?;
        Some(self.entries.edit(pool, |entry| std::mem::take(&mut entry.set)))
    }

    /// Adds the devices of a pool that was taken down. Other devices with the pool's signature stay
    /// known.
    pub fn add_stopped(&mut self, pool: PoolUuid, set: DeviceSet) {
        self.entries.edit(pool, |entry| {
            let others = std::mem::replace(&mut entry.set, set);
            entry.set.absorb(others);
        });
    }

    /// Notes that a user stopped a pool and that the stop could not be recorded because the devices
    /// were gone.
    pub fn note_unrecorded_stop(&mut self, pool: PoolUuid) {
        self.unrecorded_stops.insert(pool);
    }

    /// Notes that the stop of a pool is now on record.
    pub fn note_recorded_stop(&mut self, pool: PoolUuid) {
        self.unrecorded_stops.remove(&pool);
    }

    /// Whether a user has stopped the pool while its devices still say that it is to run.
    pub fn is_stop_unrecorded(&self, pool: PoolUuid) -> bool {
        self.unrecorded_stops.contains(&pool)
    }

    /// Notes the result of setting up a pool or taking it down: whether some of its device-mapper
    /// devices are up, and what went wrong.
    pub fn note_down(&mut self, pool: PoolUuid, partial: bool, trouble: Option<&Error>) {
        let awaits_name = matches!(trouble, Some(Error::NameRuns(_)));
        let trouble = trouble.map(|error| error.sentence().into());
        self.entries.edit(pool, |entry| {
            (entry.set.partial, entry.set.trouble, entry.set.being_set_up) = (partial, trouble, false);
            entry.set.awaits_name = awaits_name;
        });
    }

    /// Forgets what went wrong at the last set-up or take-down of a pool that does not run. Returns
    /// whether there was anything to forget. A pool that awaits its name keeps the reason.
    pub fn forget_trouble(&mut self, pool: PoolUuid) -> bool {
        let failed = self.entries.stopped(pool).is_some_and(|set| set.trouble.is_some() && !set.awaits_name);
        if failed {
            self.entries.edit(pool, |entry| entry.set.trouble = None);
        }
        failed
    }

    /// The pools that were not set up because a running pool had this name. That pool no longer has
    /// it.
    pub fn awaiting(&mut self, name: &Name) -> Vec<PoolUuid> {
        let mut named = self.entries.named(name);
        named.retain(|pool| self.entries.stopped(*pool).is_some_and(|set| set.awaits_name));
        named.into_iter().collect()
    }

    /// Notes that a pool is being set up. This lasts until the pool runs or [`Registry::note_down`]
    /// says that it does not.
    pub fn note_being_set_up(&mut self, pool: PoolUuid) {
        self.entries.edit(pool, |entry| entry.set.being_set_up = true);
    }

    /// The pools that are being set up: their names, or identifiers where the name is unknown.
    pub fn being_set_up(&self) -> Vec<String> {
        let sets = self.entries.iter().filter_map(|(pool, entry)| Some((pool, entry.stopped()?)));
        let sets = sets.filter(|(_, set)| set.being_set_up);
        sets.map(|(pool, set)| set.name().map_or_else(|| pool.to_string(), |name| name.to_string())).collect()
    }

    /// Forgets the device at this path. Returns its pool, if the device was known.
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
            // The device-mapper devices of a partially constructed pool still use its devices. Keep
            // those devices known until the pool is taken down.
            (!entry.set.partial).then(|| {
                entry.set.forget(path);
                pool
            })
        })
    }

    /// Whether this device is known, in a stopped pool or beside a running one.
    pub fn knows(&self, device: &BlockDevice) -> bool {
        !self.known_of(device).is_empty()
    }

    fn known_of(&self, device: &BlockDevice) -> Vec<Seen> {
        let entries = self.entries.at(&device.path).into_iter().filter_map(|pool| self.entries.get(pool));
        let sets = entries.flat_map(|entry| [Some(&entry.set), entry.running.as_ref().map(|running| &running.beside)]);
        sets.flatten().flat_map(|set| set.known_of(device)).collect()
    }

    /// The paths of all devices of stopped pools, and of those beside running pools.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let sets = self.entries.iter().flat_map(|(_, entry)| {
            [entry.stopped(), entry.running.as_ref().map(|running| &running.beside)].into_iter().flatten()
        });
        sets.flat_map(DeviceSet::all).map(|seen| seen.device().path.clone()).collect()
    }

    /// Whether this device is known to be a member of the pool, running or stopped.
    pub fn lists(&self, pool: PoolUuid, device: DevUuid) -> bool {
        self.has_member(pool, device) || self.entries.stopped(pool).is_some_and(|set| set.lists(device))
    }

    /// The known pools that do not run.
    pub fn pools(&self) -> Vec<PoolUuid> {
        self.entries.iter().filter(|(_, entry)| entry.stopped().is_some()).map(|(pool, _)| pool).collect()
    }

    /// Notes the devices of a pool that now runs: number, node, identifier. Forgets everything else
    /// about these devices. Other devices that claim to belong to the pool are then beside it.
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
            // Keep what is known about which device lies on which.
            let mut beside = std::mem::take(&mut entry.set);
            (beside.partial, beside.trouble, beside.being_set_up) = (false, None, false);
            beside.absorb(entry.running.take().map(|running| running.beside).unwrap_or_default());
            members.keys().for_each(|number| _ = beside.forget_number(*number));
            entry.running = Some(Running { members, beside });
        });
    }

    /// Notes that the pool no longer runs.
    pub fn note_ended(&mut self, pool: PoolUuid) {
        self.generations.advance(pool);
        self.forget_members(pool);
        self.entries.edit(pool, |entry| {
            if let Some(running) = entry.running.take() {
                entry.set.absorb(running.beside);
            }
        });
    }

    /// Forgets the device numbers of a pool's members. A number that now belongs to another pool
    /// stays.
    fn forget_members(&mut self, pool: PoolUuid) {
        for number in self.entries.running(pool).into_iter().flat_map(|running| running.members.keys()) {
            if self.members.get(number).is_some_and(|(of, _)| *of == pool) {
                self.members.remove(number);
            }
        }
    }

    /// Notes that a device of a running pool now belongs to another pool.
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

    /// The running pools.
    pub fn running_pools(&self) -> BTreeSet<PoolUuid> {
        self.entries.iter().filter(|(_, entry)| entry.running.is_some()).map(|(pool, _)| pool).collect()
    }

    /// The running pool that this device is a member of.
    pub fn running_member(&self, number: DeviceNumber) -> Option<(PoolUuid, DevUuid)> {
        self.members.get(&number).copied()
    }

    /// The stopped pools as clients see them, if that changed since the last call.
    pub fn take_change(&mut self) -> Option<Arc<view::StoppedPoolsView>> {
        self.entries.take_change()
    }
}
