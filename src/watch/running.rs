//! Which pools run, for those who act on pools by themselves and must not wake up when there are none.
//!
//! Must never know: anything else of a pool.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use threads::wake::Waker;

use crate::{base::ids::PoolUuid, view::Change};

/// The identifiers of the running pools. Clones are the same set.
#[derive(Clone)]
pub struct Running {
    pools: Arc<Mutex<BTreeSet<PoolUuid>>>,
    /// Woken when a pool comes.
    wakers: Arc<[Waker]>,
}

impl Running {
    /// None yet. All `wakers` are woken when there is one more, or another.
    pub fn new(wakers: Vec<Waker>) -> Running {
        Running { pools: Arc::default(), wakers: wakers.into() }
    }

    /// Takes note of changes, in commit order.
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

    /// All of them, in order.
    pub fn list(&self) -> Vec<PoolUuid> {
        self.pools.lock().iter().copied().collect()
    }
}
