//! The table of running pools as the engine's steps see it, over the whole-table grants of the
//! lock; and the changes of a step to it, for the tree writer.
//!
//! Must never know: why a pool is added, removed or renamed.

use std::sync::Arc;

use threads::lock::{EntryRef, ReadAllGuard, WriteAllGuard};

use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{pool::Pool, request::Table},
    view::{self, Availability, Change},
};

/// What the dispatcher needs from a pool.
pub trait PoolEntry: Send + Sync + 'static {
    /// Its identifier.
    fn uuid(&self) -> PoolUuid;
    /// Its name.
    fn name(&self) -> &Name;
    /// The view of the pool that clients see.
    fn view(&self) -> Arc<view::PoolView>;
    /// The view of the pool, if it changed since the last call.
    fn take_change(&mut self) -> Option<Arc<view::PoolView>>;
    /// Allows no changes any more: a step that had the pool panicked, so memory and disk may
    /// disagree.
    fn restrict(&mut self);
}

impl PoolEntry for Pool {
    fn uuid(&self) -> PoolUuid {
        Pool::uuid(self)
    }

    fn name(&self) -> &Name {
        Pool::name(self)
    }

    fn view(&self) -> Arc<view::PoolView> {
        Pool::view(self)
    }

    fn take_change(&mut self) -> Option<Arc<view::PoolView>> {
        Pool::take_change(self)
    }

    fn restrict(&mut self) {
        self.restrict(Availability::NoPoolChanges, "a request that was changing the pool panicked; see the log");
    }
}

/// The target of the lock for a pool.
pub(super) fn target(which: &PoolRef) -> EntryRef<PoolUuid, Name> {
    match which {
        PoolRef::Uuid(uuid) => EntryRef::Key(*uuid),
        PoolRef::Name(name) => EntryRef::Name(name.clone()),
    }
}

/// The table under shared access: read-only.
pub(super) struct ReadTable<'a, P: PoolEntry>(pub(super) &'a ReadAllGuard<PoolUuid, Name, P>);

impl<P: PoolEntry> Table<P> for ReadTable<'_, P> {
    fn list(&self) -> Vec<(PoolUuid, Name)> {
        self.0.iter().map(|(uuid, name, _)| (*uuid, name.clone())).collect()
    }

    fn pool(&self, which: &PoolRef) -> Option<&P> {
        self.0.get(&target(which)).map(|(_, _, pool)| pool)
    }

    fn insert(&mut self, pool: P) -> Result<(), P> {
        refused("insert");
        Err(pool)
    }

    fn remove(&mut self, _: PoolUuid) -> Option<P> {
        refused("remove");
        None
    }

    fn rename(&mut self, _: PoolUuid, _: Name) -> Option<&mut P> {
        refused("rename");
        None
    }
}

fn refused(what: &str) {
    log::error!("cannot {what} a pool: the step has shared access to the table; this is a bug, please report it");
}

/// The table under exclusive access, with a record of the step's changes to it.
pub(super) struct WriteTable<'a, P: PoolEntry> {
    guard: &'a mut WriteAllGuard<PoolUuid, Name, P>,
    done: Vec<Done>,
}

/// A change of a step to the table.
enum Done {
    /// The step inserted the pool or took it for renaming.
    Touched(PoolUuid),
    Removed(PoolUuid),
}

impl<'a, P: PoolEntry> WriteTable<'a, P> {
    pub(super) fn new(guard: &'a mut WriteAllGuard<PoolUuid, Name, P>) -> WriteTable<'a, P> {
        WriteTable { guard, done: Vec::new() }
    }

    /// Restricts every pool that the step could change, because the step did not complete.
    pub(super) fn restrict_touched(&mut self) {
        for done in &self.done {
            if let Done::Touched(uuid) = done {
                if let Some(pool) = self.guard.get_mut(&EntryRef::Key(*uuid)) {
                    pool.restrict();
                }
            }
        }
    }

    /// The changes of the step, in order.
    pub(super) fn changes(self) -> Vec<Change> {
        let WriteTable { guard, done } = self;
        done.into_iter()
            .filter_map(|done| match done {
                Done::Removed(uuid) => Some(Change::PoolGone(uuid)),
                Done::Touched(uuid) => {
                    let pool = guard.get_mut(&EntryRef::Key(uuid))?;
                    Some(Change::Pool(pool.take_change().unwrap_or_else(|| pool.view())))
                }
            })
            .collect()
    }
}

impl<P: PoolEntry> Table<P> for WriteTable<'_, P> {
    fn list(&self) -> Vec<(PoolUuid, Name)> {
        self.guard.iter().map(|(uuid, name, _)| (*uuid, name.clone())).collect()
    }

    fn pool(&self, which: &PoolRef) -> Option<&P> {
        self.guard.get(&target(which)).map(|(_, _, pool)| pool)
    }

    fn insert(&mut self, pool: P) -> Result<(), P> {
        let (uuid, name) = (pool.uuid(), pool.name().clone());
        self.guard.insert(uuid, name, pool)?;
        self.done.push(Done::Touched(uuid));
        Ok(())
    }

    fn remove(&mut self, uuid: PoolUuid) -> Option<P> {
        let pool = self.guard.remove(&uuid)?;
        // Earlier changes to the removed pool need no publication. A later pool of the same UUID is
        // another one.
        self.done.retain(|done| !matches!(done, Done::Touched(touched) if *touched == uuid));
        self.done.push(Done::Removed(uuid));
        Some(pool)
    }

    fn rename(&mut self, uuid: PoolUuid, name: Name) -> Option<&mut P> {
        if !self.guard.rename(&uuid, name) {
            return None;
        }
        self.done.push(Done::Touched(uuid));
        self.guard.get_mut(&EntryRef::Key(uuid))
    }
}
