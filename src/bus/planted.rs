//! Faults and delays that the tests of the history checker plant into the daemon, to show that the
//! checker finds them.
//!
//! The feature `planted-faults` compiles them in. `STRATISD_PLANTED_FAULT` names the fault.
//! `STRATISD_PLANTED_DELAYS` holds the race windows open in which another thread may intervene.

/// A planted fault of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryFault {
    /// A read is sent although a newer version has been published after the read was made.
    StaleRead,
    /// A list, a report, or the introspection of the top object is sent although a newer version
    /// has been published after it was made.
    StaleList,
    /// Signals are sent before their version is published.
    SignalsFirst,
    /// Some signals are not sent.
    SignalLost,
    /// Some signals are sent twice.
    SignalTwice,
    /// A reply is sent before the signals of its change.
    ReplyFirst,
    /// The next change of a pool overtakes signals of the change before it, if those are sent in
    /// portions.
    TailOvertaken,
}

#[cfg(not(feature = "planted-faults"))]
pub use none::*;
#[cfg(feature = "planted-faults")]
pub use some::*;

#[cfg(not(feature = "planted-faults"))]
mod none {
    use super::HistoryFault;

    /// Whether the fault is planted.
    pub const fn is_planted(_: HistoryFault) -> bool {
        false
    }

    /// Whether the fault is planted and strikes this time.
    pub const fn strikes(_: HistoryFault) -> bool {
        false
    }

    /// Holds a race window open.
    pub const fn delay() {}

    /// The number of bytes that a change may send at once: `usual`, unless the tests set another.
    pub const fn first_portion(usual: usize) -> usize {
        usual
    }
}

#[cfg(feature = "planted-faults")]
mod some {
    use std::{
        env,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use super::HistoryFault;

    static FAULT: LazyLock<Option<String>> = LazyLock::new(|| env::var("STRATISD_PLANTED_FAULT").ok());
    static DELAYS: LazyLock<bool> = LazyLock::new(|| env::var_os("STRATISD_PLANTED_DELAYS").is_some());
    static FIRST_PORTION: LazyLock<Option<usize>> =
        LazyLock::new(|| env::var("STRATISD_PLANTED_PORTION").ok()?.parse().ok());
    /// A fault that must not strike each time strikes once in this many times.
    const EVERY: u32 = 101;
    /// A race window is held open once in this many times, so that both cases occur.
    const DELAYED_EVERY: u32 = 3;

    pub fn is_planted(fault: HistoryFault) -> bool {
        FAULT.as_ref().is_some_and(|name| *name == format!("{fault:?}"))
    }

    pub fn strikes(fault: HistoryFault) -> bool {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        is_planted(fault) && COUNT.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY)
    }

    #[allow(clippy::disallowed_methods, reason = "this is what the feature is for")]
    pub fn delay() {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if *DELAYS && COUNT.fetch_add(1, Ordering::Relaxed).is_multiple_of(DELAYED_EVERY) {
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    pub fn first_portion(usual: usize) -> usize {
        FIRST_PORTION.unwrap_or(usual)
    }
}
