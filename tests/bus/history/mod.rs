//! P1 to P4 under concurrent clients that make random calls. The test records histories and then
//! judges them.
//!
//! `STRATIS_HISTORY_CALLS` is the total number of calls; `make history-long` makes ten million.

mod check;
mod clients;
mod faults;
#[cfg(feature = "planted-faults")]
mod planted;
mod record;

use check::Violation;
use faults::Fault;
use record::{Answer, History};

use support::{
    bus::Bus,
    client::{self, Client},
    daemon::Daemon,
};

/// Calls of one history. Many short histories need less memory than one long one.
const CALLS_PER_HISTORY: usize = 10_000;
const CALLS_MIN: usize = 600;
const CALLS_DEFAULT: usize = 100_000;
/// The limit of the daemon's resident memory with the few objects of a history.
const RESIDENT_KIB: u64 = 128 << 10;
/// The simulated machine remembers every filesystem that ever existed.
const SIMULATED_BYTES_PER_CALL: u64 = 100;

fn daemon_with_pools(bus: &Bus) -> Daemon {
    daemon_with_pools_and(bus, &[])
}

fn daemon_with_pools_and(bus: &Bus, variables: &[(&str, &str)]) -> Daemon {
    let daemon = bus.daemon(variables);
    let client = Client::new(bus);
    for number in 0..2 {
        client.done(client::create_pool(&format!("lasting-{number}"), &[&format!("/dev/{number}")]));
    }
    daemon
}

#[test]
fn histories_of_concurrent_clients_keep_the_promises() {
    let wanted = std::env::var("STRATIS_HISTORY_CALLS").ok().map(|text| text.parse().expect("a number of calls"));
    let wanted = wanted.unwrap_or(CALLS_DEFAULT);
    let bus = Bus::start();
    let daemon = daemon_with_pools(&bus);
    let (mut calls, mut changes, mut signals, mut lists, mut seed) = (0, 0, 0, 0, 0);
    let descriptors = daemon.descriptors();
    while calls < wanted {
        let history = clients::history(&bus, (wanted - calls).clamp(CALLS_MIN, CALLS_PER_HISTORY), seed);
        let found = check::check(&history);
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
        calls += history.calls();
        let answers = history.clients.iter().flat_map(|stream| &stream.calls);
        changes += answers.filter(|call| matches!(call.answer, Answer::Changed(_))).count();
        lists += history.watcher.iter().filter(|item| matches!(item, record::Item::List(_))).count();
        signals += history.watcher.len();
        seed += 1;
        if seed.is_multiple_of(100) {
            println!("{calls} calls, daemon has {} KiB", daemon.resident_kib());
        }
    }
    println!(
        "{calls} calls of {} clients, {changes} of them changes; {} signals and {lists} whole lists compared; no violation",
        clients::CLIENTS,
        signals - lists,
    );
    println!("daemon: {} KiB resident, at most {}", daemon.resident_kib(), daemon.resident_max_kib());
    assert_eq!(daemon.descriptors(), descriptors);
    let remembered = (calls as u64 * SIMULATED_BYTES_PER_CALL) >> 10;
    assert!(daemon.resident_kib() < RESIDENT_KIB + remembered, "{} KiB", daemon.resident_kib());
}

/// Each fault with the violation as which the checker must find it.
type Planted = (&'static str, Fault, fn(&Violation) -> bool);
const FAULTS: &[Planted] = &[
    ("a signal is lost", faults::signal_lost, |found| matches!(found, Violation::Rebuilt(_))),
    ("a signal is lost by one", faults::signal_lost_by_one, |found| {
        matches!(found, Violation::Heard { client: 0, .. })
    }),
    ("a signal comes twice", faults::signal_repeated, |found| matches!(found, Violation::NoNews(_))),
    ("a reply overtakes its signal", faults::reply_before_signal, |found| {
        matches!(found, Violation::ReplyBeforeSignal(_))
    }),
    ("a read is stale", faults::stale_read, |found| matches!(found, Violation::NotLinearizable(_))),
    ("reads go back", faults::read_goes_back, |found| matches!(found, Violation::NotLinearizable(_))),
    ("a list is torn", faults::torn_list, |found| matches!(found, Violation::NotLinearizable(_))),
    ("a change never was", faults::change_that_never_was, |found| matches!(found, Violation::Untold(_))),
    ("a signal is for nothing", faults::signal_for_nothing, |found| matches!(found, Violation::Cause { .. })),
];

#[test]
fn the_checker_finds_planted_faults() {
    let bus = Bus::start();
    let _daemon = daemon_with_pools(&bus);
    let right: History = clients::history(&bus, 4000, 76);
    assert_eq!(check::check(&right), []);
    for (name, plant, is_it) in FAULTS {
        let mut wrong = right.clone();
        assert!(plant(&mut wrong), "{name}: no place for it");
        let found = check::check(&wrong);
        assert!(found.iter().any(is_it), "{name}: {found:#?}");
    }
    println!("{} planted faults found", FAULTS.len());
}
