//! The table of running pools as the engine's steps see it, over the whole-table grants of the lock; and what a step did
//! to it, as changes for the tree writer.
//!
//! Must never know: why a pool comes, goes or is renamed.

use std::sync::Arc;

use threads::lock::{ReadAllGuard, Target, WriteAllGuard};

use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{pool::Pool, request::Table},
    view::{self, Availability, Change},
};

/// What running a chain asks of the pools that it is about.
pub trait PoolEntry: Send + Sync + 'static {
    /// Its identifier.
    fn uuid(&self) -> PoolUuid;
    /// Its name.
    fn name(&self) -> &Name;
    /// What clients see of it.
    fn view(&self) -> Arc<view::Pool>;
    /// What clients see of it, if that changed since this was last called.
    fn take_change(&mut self) -> Option<Arc<view::Pool>>;
    /// Allows no changes any more: a step that had it panicked, so memory and machine may disagree.
    fn restrict(&mut self);
}

impl PoolEntry for Pool {
    fn uuid(&self) -> PoolUuid {
        Pool::uuid(self)
    }

    fn name(&self) -> &Name {
        Pool::name(self)
    }

    fn view(&self) -> Arc<view::Pool> {
        Pool::view(self)
    }

    fn take_change(&mut self) -> Option<Arc<view::Pool>> {
        Pool::take_change(self)
    }

    fn restrict(&mut self) {
        self.restrict(Availability::NoPoolChanges, "a request that was changing the pool panicked; see the log");
    }
}

/// How the lock finds a pool.
pub(super) fn target(which: &PoolRef) -> Target<PoolUuid, Name> {
    match which {
        PoolRef::Uuid(uuid) => Target::Key(*uuid),
        PoolRef::Name(name) => Target::Name(name.clone()),
    }
}

/// The table under shared access: it can be looked at.
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
    log::error!("a step that asked to share the table tried to {what} a pool; this is a bug, please report it");
}

/// The table under exclusive access, with a note of what the step did to it.
pub(super) struct WriteTable<'a, P: PoolEntry> {
    guard: &'a mut WriteAllGuard<PoolUuid, Name, P>,
    done: Vec<Done>,
}

/// Something that a step did to the table.
enum Done {
    /// It inserted the pool or had it for renaming.
    Touched(PoolUuid),
    Removed(PoolUuid),
}

impl<'a, P: PoolEntry> WriteTable<'a, P> {
    pub(super) fn new(guard: &'a mut WriteAllGuard<PoolUuid, Name, P>) -> WriteTable<'a, P> {
        WriteTable { guard, done: Vec::new() }
    }

    /// Restricts every pool that the step could change, since it did not come to its end.
    pub(super) fn restrict_touched(&mut self) {
        for done in &self.done {
            if let Done::Touched(uuid) = done {
                if let Some(pool) = self.guard.get_mut(&Target::Key(*uuid)) {
                    pool.restrict();
                }
            }
        }
    }

    /// What the step did, in its order.
    pub(super) fn changes(self) -> Vec<Change> {
        let WriteTable { guard, done } = self;
        done.into_iter()
            .filter_map(|done| match done {
                Done::Removed(uuid) => Some(Change::PoolGone(uuid)),
                Done::Touched(uuid) => {
                    let pool = guard.get_mut(&Target::Key(uuid))?;
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
        // What was done to it before is nobody's concern now; a later pool of this identifier is another one.
        self.done.retain(|done| !matches!(done, Done::Touched(touched) if *touched == uuid));
        self.done.push(Done::Removed(uuid));
        Some(pool)
    }

    fn rename(&mut self, uuid: PoolUuid, name: Name) -> Option<&mut P> {
        if !self.guard.rename(&uuid, name) {
            return None;
        }
        self.done.push(Done::Touched(uuid));
        self.guard.get_mut(&Target::Key(uuid))
    }
}
