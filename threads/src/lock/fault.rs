//! Mistakes that can be switched on, one at a time, to see that each checker notices them. Only with the feature
//! `planted-faults`; without it none of this is compiled.
//!
//! Each is one that somebody could make: a forgotten case, a step too early, a check outside the mutex.

/// A mistake in the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    // In the state machine:
    /// A request looks at holders only and passes earlier waiters.
    PassesWaiters,
    /// A writer does not mind readers of its entry.
    WritesBesideReaders,
    /// A release grants one waiter and leaves the other compatible ones waiting.
    GrantsOnlyOne,
    /// A lowered guard hands over to nobody.
    LowerGrantsNobody,
    /// A cancelled request leaves those behind it waiting.
    CancelGrantsNobody,
    /// Any waiter, in conflict or not, makes later requests wait.
    WaitsBehindAnyone,
    /// A waiter by name is forgotten when others look who waits for the entry.
    ForgetsNames,
    /// A split leaves the last entry out.
    SplitLosesOne,
    // In the shell:
    /// The grant is passed on first and the value put back afterwards.
    ReleasesBeforeReturn,
    /// The callback of a request that has to wait is noted in a second hold of the mutex.
    NotesCallbackLater,
    /// The guard is put into the slot after the waiting thread is woken.
    NotifiesBeforeFilling,
    /// Callbacks are called with the mutex held.
    CallsBackUnderMutex,
    /// Cancelling takes the callback away first, and the request out of the queue in a second hold of the mutex.
    CancelsInTwoSteps,
}
