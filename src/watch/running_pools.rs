//! The set of running pools, for threads that act on pools by themselves and must not wake up when
//! no pool runs.
//!
//! Must never know: anything else about a pool.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use threads::wake::Waker;

use crate::{base::ids::PoolUuid, view::Change};

/// The UUIDs of the running pools. Clones are the same set.
#[derive(Clone)]
pub struct RunningPools {
    pools: Arc<Mutex<BTreeSet<PoolUuid>>>,
    /// Woken when a pool is added.
    wakers: Arc<[Waker]>,
}

impl RunningPools {
    /// An empty set. Each added pool wakes all `wakers`.
    pub fn new(wakers: Vec<Waker>) -> RunningPools {
        RunningPools { pools: Arc::default(), wakers: wakers.into() }
    }

    /// Applies changes in commit order.
    pub fn note(&self, changes: &[Change]) {
        let mut pools = self.pools.lock();
        let mut is_new = false;
        for change in changes {
            match change {
                Change::Pool(pool) => is_new |= pools.insert(pool.uuid),
                Change::PoolGone(uuid) => {
                    pools.remove(uuid);
                }
                Change::Stopped(_) => {}
            }
        }
        if is_new {
            self.wakers.iter().for_each(Waker::wake);
        }
    }

    /// All UUIDs, sorted.
    pub fn list(&self) -> Vec<PoolUuid> {
        self.pools.lock().iter().copied().collect()
    }
}
