//! Mistakes that can be switched on, one at a time, to see that each checker notices them (`crate::fault`).
//!
//! Must never know: what the checkers check.

/// A mistake in the parking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    // In the rules:
    /// A request that parks is queued even if its place was opened after the request looked at it.
    QueuesAtOpenPlace,
    /// A request that leaves with the turn does not pass it on.
    KeepsTurn,
    /// A request that parks at another place takes the turn of its former place along.
    TakesTurnAlong,
    /// A place that opens wakes the newest of its waiters instead of the oldest.
    WakesNewest,
    /// A place that opens wakes a waiter although another has the turn.
    WakesBesideTurn,
    /// A place that opens during a turn makes the end of that turn wake nobody.
    ForgetsOpening,
    /// A request that gives up its wait stays in the queue.
    StaysInQueue,
    /// The first of a queue gives up its wait, and nobody looks whether the place is open for the next one.
    LeavesNoHeir,
    // In the shell:
    /// Whether the place is shut is asked before the mutex is taken.
    LooksBeforeMutex,
    /// The callback of a request that has to wait is stored in a second hold of the mutex.
    StoresCallbackLater,
    /// Callbacks are called with the mutex held.
    CallsBackUnderMutex,
}
