//! Holds the current version of the tree, and orders lists and signals.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::tree::Tree;

/// Holds the current version.
#[derive(Debug, Default)]
pub struct Published {
    current: RwLock<Arc<Tree>>,
    order: Mutex<Order>,
    turn: Condvar,
}

/// The order of lists and signals.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Some signals of the current version are not sent yet.
    pub is_open: bool,
    /// Number of lists that wait for those signals.
    waiting: usize,
    /// Number of lists that have had their turn.
    turns: u64,
}

impl Published {
    /// The current version. Waits only for the copy of a pointer.
    pub fn load(&self) -> Arc<Tree> {
        Arc::clone(&self.current.read())
    }

    /// Number of the current version.
    pub fn version(&self) -> u64 {
        self.current.read().version
    }

    /// Makes a version the current one. Only the tree writer calls this, while it holds
    /// [`Published::order`].
    pub(super) fn store(&self, tree: Arc<Tree>) {
        let before = std::mem::replace(&mut *self.current.write(), tree);
        // Freed after the lock is released.
        drop(before);
    }

    /// Orders lists and signals. The writer holds this lock from the publication of a version until
    /// its first signals are sent, and notes whether those were all. The sender of a list of all
    /// objects holds the lock while it checks that the list is of the current version and sends it.
    /// So a client that gets a list and then follows the signals misses nothing and gets nothing
    /// twice, and no list contradicts an earlier signal.
    pub(super) fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock()
    }

    /// The same lock for a list, taken once all signals of the current version are sent.
    pub(super) fn order_of_list(&self) -> MutexGuard<'_, Order> {
        let mut order = self.order.lock();
        order.waiting += 1;
        self.turn.wait_while(&mut order, |order| order.is_open);
        order.waiting -= 1;
        order.turns += 1;
        self.turn.notify_all();
        order
    }

    /// Notes that all signals of the current version are sent.
    pub(super) fn close(&self) {
        self.order.lock().is_open = false;
        self.turn.notify_all();
    }

    /// Whether a list waits until all signals are sent.
    pub(super) fn list_waits(&self) -> bool {
        self.order.lock().waiting > 0
    }

    /// Gives a waiting list its turn. The list must not be waiting for the caller.
    pub(super) fn give_way(&self) {
        let mut order = self.order.lock();
        let turns = order.turns;
        self.turn.wait_while(&mut order, |order| order.waiting > 0 && order.turns == turns);
    }
}
