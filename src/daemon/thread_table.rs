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
/// Reads calls from the bus.
pub const BUS_READER: &str = "bus-reader";
/// Sends large lists of objects.
pub const BUS_LISTER: &str = "bus-lister";
/// Run the steps of requests.
pub const WORKERS: &str = "worker-*";
/// Waits for links of udev.
pub const LINKS: &str = "links";
/// Publishes changes, signals and replies.
pub const TREE_WRITER: &str = "tree-writer";

/// Every thread except the one of `main`, which starts them, waits for the first of them to end and
/// joins them; in the order of the joins (docs/architecture.md). The signal thread is the last, so
/// that a second Ctrl-C is handled during the whole stop.
pub const TABLE: [ThreadRow; 9] = [
    ThreadRow {
        name: BUS_READER,
        waits_on: "bus socket, waker, keys not written yet",
        does: "answers reads from the view, submits requests",
    },
    ThreadRow { name: BUS_LISTER, waits_on: "channel from the reader", does: "sends lists of all objects" },
    ThreadRow { name: UDEV, waits_on: "udev monitor, waker", does: "submits a request for each device event" },
    ThreadRow {
        name: DM_EVENTS,
        waits_on: "device-mapper control node, waker, next check",
        does: "submits checks of pools that had events",
    },
    ThreadRow { name: TIMERS, waits_on: "next deadline, waker", does: "submits checks of all pools" },
    ThreadRow { name: LINKS, waits_on: "udev monitors of requests, waker, deadlines", does: "lets requests continue" },
    ThreadRow { name: WORKERS, waits_on: "ready jobs", does: "run steps of requests" },
    ThreadRow { name: TREE_WRITER, waits_on: "channel of updates", does: "publishes, signals, replies, in this order" },
    ThreadRow { name: SIGNALS, waits_on: "SIGINT, SIGTERM", does: "turns the stop switch on" },
];

/// The names of the table, for the thread group.
pub const NAMES: [&str; TABLE.len()] = {
    let mut names = [""; TABLE.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = TABLE[i].name;
        i += 1;
    }
    names
};

#[cfg(test)]
mod tests {
    use super::NAMES;

    #[test]
    fn the_kernel_does_not_truncate_names() {
        for name in NAMES {
            // A family's numbers have up to three digits.
            let longest = name.replace('*', "100");
            assert!(longest.len() <= threads::group::NAME_BYTES_MAX, "{name}");
            assert_eq!(NAMES.iter().filter(|other| **other == name).count(), 1, "{name} twice");
        }
    }
}
