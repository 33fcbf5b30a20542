//! Clock of the simulated machine: the real one, or a logical one that ticks at each reading.
//!
//! The logical clock makes a history repeatable and each of its time stamps unique.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use crate::platform::Timestamp;

/// Advance of the logical clock per reading.
const TICK: Duration = Duration::from_millis(1);

/// Start of the logical clock: 2023-11-14 22:13:20 UTC.
const START: Duration = Duration::from_secs(1_700_000_000);

/// A clock. Clones are the same clock.
#[derive(Clone)]
pub(super) enum Clock {
    Real,
    Logical(Arc<Mutex<Duration>>),
}

impl Clock {
    pub(super) fn logical() -> Clock {
        Clock::Logical(Arc::new(Mutex::new(START)))
    }

    pub(super) fn now(&self) -> Timestamp {
        self.advance(TICK);
        let since = self.time();
        Timestamp { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
    }

    /// The time since 1970, without a tick.
    pub(super) fn time(&self) -> Duration {
        match self {
            // A clock before 1970 is wrong anyway; treat it as 1970.
            Clock::Real => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Clock::Logical(now) => *now.lock(),
        }
    }

    pub(super) fn is_real(&self) -> bool {
        matches!(self, Clock::Real)
    }

    /// Advances the logical clock; the real one advances by itself.
    pub(super) fn advance(&self, by: Duration) {
        if let Clock::Logical(now) = self {
            *now.lock() += by;
        }
    }

    /// Sets the logical clock, possibly backwards, as an administrator may.
    pub(super) fn set(&self, to: Timestamp) {
        if let Clock::Logical(now) = self {
            *now.lock() = Duration::new(to.seconds, to.nanoseconds);
        }
    }
}
