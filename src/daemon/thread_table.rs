//! The threads of the daemon, as data: their names, what each waits on, and the order in which they
//! end.
//!
//! Must never know: what a thread does inside.

/// A thread of the daemon.
#[derive(Debug, Clone, Copy)]
pub struct ThreadRow {
    /// Its name, at most 15 bytes; `-*` at the end for a family.
    pub name: &'static str,
    /// What ends its waits.
    pub waits_on: &'static str,
    /// What it does then.
    pub does: &'static str,
}

/// Receives signals.
pub const SIGNALS: &str = "signals";
/// Reads device events.
pub const UDEV: &str = "udev";
/// Waits for device-mapper events.
pub const DM_EVENTS: &str = "dm-events";
/// Checks pools periodically.
pub const TIMERS: &str = "timers";
/// Run the steps of requests.
pub const WORKERS: &str = "worker-*";
/// Waits for links of udev.
pub const LINKS: &str = "links";

/// The threads that make requests of events. They end with the takers of the front end.
pub const WATCHERS: [ThreadRow; 3] = [
    ThreadRow { name: UDEV, waits_on: "udev monitor, waker", does: "submits a request for each device event" },
    ThreadRow {
        name: DM_EVENTS,
        waits_on: "device-mapper control node, waker, next check",
        does: "submits checks of pools that had events",
    },
    ThreadRow { name: TIMERS, waits_on: "next deadline, waker", does: "submits checks of all pools" },
];

/// The threads that run requests. They end when no request is left.
pub const RUNNERS: [ThreadRow; 2] = [
    ThreadRow { name: LINKS, waits_on: "shared udev monitor, waker, deadlines", does: "lets requests continue" },
    ThreadRow { name: WORKERS, waits_on: "ready jobs", does: "run steps of requests" },
];

/// Ends last, so that a second Ctrl-C is handled during the whole stop.
pub const LAST: [ThreadRow; 1] =
    [ThreadRow { name: SIGNALS, waits_on: "SIGINT, SIGTERM", does: "turns the stop switch on" }];

/// The threads of a front end. Every daemon has these and those above, and the one of `main`, which
/// starts them, waits for the first of them to end and joins them (docs/architecture.md).
#[derive(Debug, Clone, Copy)]
pub struct FrontEndThreads {
    /// Those that take requests. They end first.
    pub takers: &'static [ThreadRow],
    /// Those that publish and answer. They end when all requests have ended and are answered.
    pub answerers: &'static [ThreadRow],
}

impl FrontEndThreads {
    /// All threads of a daemon with this front end, in the order of the joins.
    pub fn with_the_daemons(&self) -> impl Iterator<Item = ThreadRow> {
        [self.takers, &WATCHERS, &RUNNERS, self.answerers, &LAST].into_iter().flatten().copied()
    }
}

/// The names of these threads.
pub fn names(rows: &[ThreadRow]) -> Vec<&'static str> {
    rows.iter().map(|row| row.name).collect()
}
