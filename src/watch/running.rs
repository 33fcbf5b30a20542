//! Which pools run, for those who act on pools by themselves and must not wake up when there are none.
//!
//! Must never know: anything else of a pool.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use threads::wake::Waker;

use crate::{engine::ids::PoolUuid, view::Change};

/// The identifiers of the running pools. Clones are the same set.
#[derive(Clone)]
pub struct Running {
    pools: Arc<Mutex<BTreeSet<PoolUuid>>>,
    /// Woken when the first pool comes.
    waker: Waker,
}

impl Running {
    /// None yet. `waker` is woken when the set is no longer empty.
    pub fn new(waker: Waker) -> Running {
        Running { pools: Arc::default(), waker }
    }

    /// Takes note of changes, in commit order.
    pub fn note(&self, changes: &[Change]) {
        let mut pools = self.pools.lock();
        let were_none = pools.is_empty();
        for change in changes {
            match change {
                Change::Pool(pool) => {
                    pools.insert(pool.uuid);
                }
                Change::PoolGone(uuid) => {
                    pools.remove(uuid);
                }
                Change::Stopped(_) => {}
            }
        }
        if were_none && !pools.is_empty() {
            self.waker.wake();
        }
    }

    /// All of them.
    pub fn list(&self) -> Vec<PoolUuid> {
        self.pools.lock().iter().copied().collect()
    }
}
