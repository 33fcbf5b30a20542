//! Where the current version of the tree is found, and the order of lists and signals.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::tree::Tree;

/// Where the current version is found.
#[derive(Debug, Default)]
pub struct Published {
    current: RwLock<Arc<Tree>>,
    order: Mutex<Order>,
    turn: Condvar,
}

/// The order of lists and signals.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Some signals of the current version are still to be sent.
    pub is_open: bool,
    /// Lists that wait for those.
    waiting: usize,
    /// Counts the lists that have had their turn.
    turns: u64,
}

impl Published {
    /// The current version. Waits for nothing but the copy of a pointer.
    pub fn load(&self) -> Arc<Tree> {
        Arc::clone(&self.current.read())
    }

    /// Number of the current version.
    pub fn version(&self) -> u64 {
        self.current.read().version
    }

    /// Makes a version the current one. Only the tree writer does that, with [`Published::order`]
    /// held.
    pub(super) fn store(&self, tree: Arc<Tree>) {
        let before = std::mem::replace(&mut *self.current.write(), tree);
        // Freed after the lock has been released.
        drop(before);
    }

    /// Keeps the order of list and signals: the writer holds this from the publication of a version
    /// until its first signals are on their way, and notes whether that was all. Who sends a list
    /// of all objects holds it while it makes sure that the list is of the current version and
    /// sends it. So whoever gets a list and then follows the signals misses nothing, hears nothing
    /// twice, and no list takes back what a signal has told before.
    pub(super) fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock()
    }

    /// The same for a list, when all signals of the current version have been sent.
    pub(super) fn order_of_list(&self) -> MutexGuard<'_, Order> {
        let mut order = self.order.lock();
        order.waiting += 1;
        self.turn.wait_while(&mut order, |order| order.is_open);
        order.waiting -= 1;
        order.turns += 1;
        self.turn.notify_all();
        order
    }

    /// All signals of the current version have been sent.
    pub(super) fn close(&self) {
        self.order.lock().is_open = false;
        self.turn.notify_all();
    }

    /// Whether a list waits until all signals have been sent.
    pub(super) fn list_waits(&self) -> bool {
        self.order.lock().waiting > 0
    }

    /// Lets a list that waits have its turn. Only when it is not waiting for the caller.
    pub(super) fn give_way(&self) {
        let mut order = self.order.lock();
        let turns = order.turns;
        self.turn.wait_while(&mut order, |order| order.waiting > 0 && order.turns == turns);
    }
}
