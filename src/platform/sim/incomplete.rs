//! I/O that does not complete: it has failed, or waits for an event. This module knows nothing of
//! devices.

use nix::libc;

/// Why I/O did not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Incomplete {
    /// It failed for good.
    Errno(i32),
    /// A device on the way is suspended; retry after a change.
    Suspended,
    /// A pool has no free blocks and queues writes of this thin device; retry after a change.
    Full {
        /// Minor number of the pool.
        pool: u32,
        /// The thin device in it.
        id: u32,
    },
    /// Queued writes must be served first; retry after a change.
    Queued,
}

/// Whether I/O waits for a suspended device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    /// I/O by the kernel itself, which does not wait.
    Pass,
}

/// Result of I/O.
pub(super) type IoResult<T = ()> = Result<T, Incomplete>;

/// The errno of I/O that cannot wait.
pub(super) fn errno(incomplete: Incomplete) -> i32 {
    match incomplete {
        Incomplete::Errno(errno) => errno,
        Incomplete::Suspended | Incomplete::Full { .. } | Incomplete::Queued => libc::EBUSY,
    }
}
