//! Faults that can be switched on, one at a time, to show that each checker finds them (see
//! `crate::fault`).
//!
//! Must never know: what the checkers check.

/// A planted fault of the parking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParkingFault {
    // In the rules:
    /// A request that parks is queued even if its place was opened after the request looked at it.
    QueuesAtOpenPlace,
    /// A request that leaves with the turn does not pass it on.
    KeepsTurn,
    /// A request that parks at another place keeps the turn of its former place.
    TakesTurnAlong,
    /// A place that opens wakes the newest of its waiters instead of the oldest.
    WakesNewest,
    /// A place that opens wakes a waiter although another request has the turn.
    WakesBesideTurn,
    /// If a place opens during a turn, the end of that turn wakes no request.
    ForgetsOpening,
    /// A request that gives up its wait stays in the queue.
    StaysInQueue,
    /// When the first waiter gives up, no check is made whether the place is open for the next one.
    LeaverWakesNobody,
    // In the shell:
    /// The check whether the place is shut happens before the mutex is taken.
    LooksBeforeMutex,
    /// The callback of a request that has to wait is stored under a second lock of the mutex.
    StoresCallbackLater,
    /// Callbacks run with the mutex held.
    CallsBackUnderMutex,
}
