//! Faults that can be switched on, one at a time, to show that each checker finds them (see
//! `crate::fault`).
//!
//! Must never know: what the checkers check. Each fault is a mistake that somebody could make: a
//! forgotten case, a step too early, a second lock of the mutex where one is needed.

/// A planted fault of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockFault {
    // In the state machine:
    /// A request checks holders only and passes earlier waiters.
    PassesWaiters,
    /// A request with a rank queues behind all requests that came before it.
    IgnoresRank,
    /// A writer ignores readers of its entry.
    WritesBesideReaders,
    /// A release grants one waiter and leaves the other compatible ones waiting.
    GrantsOnlyOne,
    /// A cancelled request leaves those behind it waiting.
    CancelGrantsNobody,
    /// Any waiter, whether it conflicts or not, makes later requests wait.
    WaitsBehindAnyone,
    /// Waiters by name are not found when the entry's queue is served.
    OverlooksNames,
    /// A rename leaves the former name pointing at the entry.
    KeepsFormerName,
    // In the shell:
    /// A reader gives up its share of the value after its grant ends, not before.
    SharesTooLong,
    /// The callback of a request that has to wait is stored under a second lock of the mutex.
    NotesCallbackLater,
    /// Callbacks run with the mutex held.
    CallsBackUnderMutex,
    /// Cancelling removes the callback first, and dequeues the request under a second lock of the
    /// mutex.
    CancelsInTwoSteps,
}
