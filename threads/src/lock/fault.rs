//! Mistakes that can be switched on, one at a time, to see that each checker notices them (`crate::fault`).
//!
//! Must never know: what the checkers check. Each fault is a mistake that somebody could make: a forgotten case, a step too
//! early, a second hold of the mutex where one is needed.

/// A mistake in the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    // In the state machine:
    /// A request looks at holders only and passes earlier waiters.
    PassesWaiters,
    /// A request with a rank stands behind all that came before it.
    IgnoresRank,
    /// A writer does not mind readers of its entry.
    WritesBesideReaders,
    /// A release grants one waiter and leaves the other compatible ones waiting.
    GrantsOnlyOne,
    /// A cancelled request leaves those behind it waiting.
    CancelGrantsNobody,
    /// Any waiter, in conflict or not, makes later requests wait.
    WaitsBehindAnyone,
    /// Waiters by name are overlooked when the entry's queue is looked at.
    OverlooksNames,
    /// A rename leaves the former name pointing at the entry.
    KeepsFormerName,
    // In the shell:
    /// A reader gives up its share of the value after its grant instead of before.
    SharesTooLong,
    /// The callback of a request that has to wait is noted in a second hold of the mutex.
    NotesCallbackLater,
    /// Callbacks are called with the mutex held.
    CallsBackUnderMutex,
    /// Cancelling takes the callback away first, and the request out of the queue in a second hold of the mutex.
    CancelsInTwoSteps,
}
