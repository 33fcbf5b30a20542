//! The checker against a daemon with a planted fault, and against one with delays that hold its
//! race windows open.
//!
//! A fault planted into a recording shows that the checker finds it there. Only a fault in the
//! daemon shows that the calls of these clients ever trigger it.

use super::{
    check::{self, Violation},
    clients, daemon_with_pools_and,
};
use support::bus::Bus;

/// The number of calls within which a fault must be found.
const CALLS_MAX: usize = 20_000;
const CALLS_PER_HISTORY: usize = 2_000;
/// Calls to a daemon that has delays in its race windows and no fault.
const CALLS_OF_THE_SLOW: usize = 10_000;

const DELAYS: (&str, &str) = ("STRATISD_PLANTED_DELAYS", "1");
/// Sends a change of more than one object in portions, as if it were large.
const SMALL_PORTIONS: (&str, &str) = ("STRATISD_PLANTED_PORTION", "1");

type Planted = (&'static str, fn(&Violation) -> bool);
const FAULTS: &[Planted] = &[
    ("StaleRead", |found| matches!(found, Violation::OlderThanHeard(_))),
    ("StaleList", |found| matches!(found, Violation::OlderThanHeard(_) | Violation::Rebuilt(_))),
    ("SignalsFirst", |found| matches!(found, Violation::OlderThanHeard(_))),
    ("SignalLost", |found| matches!(found, Violation::Rebuilt(_) | Violation::Untold(_))),
    ("SignalTwice", |found| matches!(found, Violation::NoNews(_))),
    ("ReplyFirst", |found| matches!(found, Violation::ReplyBeforeSignal(_))),
    ("TailOvertaken", |found| matches!(found, Violation::ReplyBeforeSignal(_))),
];

#[test]
fn faults_in_the_daemon_are_found() {
    for (name, is_it) in FAULTS {
        let bus = Bus::start();
        let mut variables = vec![DELAYS, ("STRATISD_PLANTED_FAULT", *name)];
        if *name == "TailOvertaken" {
            variables.push(SMALL_PORTIONS);
        }
        let _daemon = daemon_with_pools_and(&bus, &variables);
        let mut calls = 0;
        for seed in 0.. {
            assert!(calls < CALLS_MAX, "{name} was not found by {calls} calls");
            let history = clients::history(&bus, CALLS_PER_HISTORY, seed);
            calls += history.calls();
            if check::check(&history).iter().any(is_it) {
                break;
            }
        }
        println!("{name}: found by {calls} calls");
    }
}

/// A delay is no fault: the promises hold whenever another thread runs in a window.
#[test]
fn windows_held_open_break_no_promise() {
    for variables in [&[DELAYS][..], &[DELAYS, SMALL_PORTIONS]] {
        let bus = Bus::start();
        let _daemon = daemon_with_pools_and(&bus, variables);
        let mut calls = 0;
        for seed in 0.. {
            let history = clients::history(&bus, CALLS_PER_HISTORY, seed);
            let found = check::check(&history);
            assert!(found.is_empty(), "{variables:?}, seed {seed}: {found:#?}");
            calls += history.calls();
            if calls >= CALLS_OF_THE_SLOW {
                break;
            }
        }
        println!("{variables:?}: {calls} calls, no violation");
    }
}
