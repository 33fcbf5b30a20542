//! What is known of each pool, and what follows from that: which pools know a device node, and what
//! clients see.
//!
//! All changes go through [`Entries::edit`], which notes the pools whose views are out of date. So
//! the cost of a change depends on its own pool only, however many other pools there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::set::DeviceSet;
use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        name::Name,
    },
    platform::DeviceNumber,
    view,
};

/// What is known of one pool.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Devices of a stopped pool. Empty: no stopped pool is known.
    pub(super) set: DeviceSet,
    /// What is known of the running pool.
    pub(super) running: Option<Running>,
}

/// What is known of a running pool.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// The pool's devices.
    pub(super) members: BTreeMap<DeviceNumber, (PathBuf, DevUuid)>,
    /// Devices that claim to belong to the pool but are not its members: a clone, a device left
    /// over, or a member that has come back under another node. They become part of the set when
    /// the pool is stopped.
    pub(super) beside: DeviceSet,
}

impl Entry {
    /// The set, unless it is empty.
    pub(super) fn stopped(&self) -> Option<&DeviceSet> {
        Some(&self.set).filter(|set| !set.is_empty())
    }

    /// The devices that are left aside, with the reasons.
    pub(super) fn aside(&self) -> Vec<view::LeftAsideView> {
        match &self.running {
            Some(running) => running.beside.aside(&running.members),
            None => self.set.aside(&BTreeMap::new()),
        }
    }

    /// Nodes of the devices that are not members of the running pool.
    fn nodes(&self) -> BTreeSet<PathBuf> {
        let sets = [Some(&self.set), self.running.as_ref().map(|running| &running.beside)];
        sets.into_iter().flatten().flat_map(DeviceSet::nodes).map(Path::to_owned).collect()
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.running.is_none()
    }
}

/// The entries of all pools.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: BTreeMap<PoolUuid, Entry>,
    /// The pools that know a device at this node.
    nodes: HashMap<PathBuf, BTreeSet<PoolUuid>>,
    /// What clients see, except for pools that are `stale`.
    shown: view::StoppedPoolsView,
    /// Names of pools that clients do not see but can address by name.
    hidden: BTreeMap<PoolUuid, Name>,
    /// Pools that changed after their views were made.
    stale: BTreeSet<PoolUuid>,
    /// What clients see has changed since [`Entries::take_change`].
    changed: bool,
    /// How many views have been made.
    #[cfg(test)]
    pub(super) views_made: usize,
}

impl Entries {
    /// What is known of a pool.
    pub(super) fn get(&self, pool: PoolUuid) -> Option<&Entry> {
        self.entries.get(&pool)
    }

    /// The devices of a stopped pool.
    pub(super) fn stopped(&self, pool: PoolUuid) -> Option<&DeviceSet> {
        self.get(pool)?.stopped()
    }

    /// What is known of a running pool.
    pub(super) fn running(&self, pool: PoolUuid) -> Option<&Running> {
        self.get(pool)?.running.as_ref()
    }

    /// All pools.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PoolUuid, &Entry)> {
        self.entries.iter().map(|(pool, entry)| (*pool, entry))
    }

    /// The pools that know a device at this node.
    pub(super) fn at(&self, node: &Path) -> Vec<PoolUuid> {
        self.nodes.get(node).into_iter().flatten().copied().collect()
    }

    /// Changes what is known of one pool. Removes the entry when nothing is left.
    pub(super) fn edit<T>(&mut self, pool: PoolUuid, work: impl FnOnce(&mut Entry) -> T) -> T {
        self.stale.insert(pool);
        let entry = self.entries.entry(pool).or_default();
        let before = entry.nodes();
        let result = work(entry);
        if entry.set.is_empty() {
            entry.set = DeviceSet::default();
        }
        let after = entry.nodes();
        if entry.is_empty() {
            self.entries.remove(&pool);
        }
        for node in before.difference(&after) {
            if let Some(pools) = self.nodes.get_mut(node) {
                pools.remove(&pool);
                if pools.is_empty() {
                    self.nodes.remove(node);
                }
            }
        }
        for node in after.difference(&before) {
            self.nodes.entry(node.clone()).or_default().insert(pool);
        }
        result
    }

    /// The stopped pools with this name, including those that clients do not see.
    pub(super) fn named(&mut self, name: &Name) -> BTreeSet<PoolUuid> {
        self.refresh();
        let hidden = self.hidden.iter().filter(|(_, hidden)| *hidden == name).map(|(pool, _)| *pool);
        self.shown.named(name.as_str()).chain(hidden).collect()
    }

    /// What clients see of stopped pools.
    pub(super) fn shown(&mut self) -> &view::StoppedPoolsView {
        self.refresh();
        &self.shown
    }

    /// What clients see, if it has changed since the last call.
    pub(super) fn take_change(&mut self) -> Option<Arc<view::StoppedPoolsView>> {
        self.refresh();
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.shown.version += 1;
        Some(Arc::new(self.shown.clone()))
    }

    /// Renews the views that are out of date.
    fn refresh(&mut self) {
        for pool in std::mem::take(&mut self.stale) {
            #[cfg(test)]
            {
                self.views_made += 1;
            }
            let entry = self.entries.get(&pool);
            let set = entry.and_then(Entry::stopped);
            let view = set.and_then(|set| set.view(pool));
            let hidden = set.filter(|_| view.is_none()).and_then(DeviceSet::name);
            match hidden {
                Some(name) => drop(self.hidden.insert(pool, name)),
                None => drop(self.hidden.remove(&pool)),
            }
            if self.shown.pools().get(&pool).map(|shown| &**shown) != view.as_ref() {
                self.changed = true;
                match view {
                    Some(view) => self.shown.insert(view),
                    None => self.shown.remove(pool),
                }
            }
            let aside = entry.map(Entry::aside).unwrap_or_default();
            if self.shown.left_aside.get(&pool).map_or(&[][..], |shown| shown) != aside {
                self.changed = true;
                match aside.is_empty() {
                    true => drop(self.shown.left_aside.remove(&pool)),
                    false => drop(self.shown.left_aside.insert(pool, aside.into())),
                }
            }
        }
    }
}
