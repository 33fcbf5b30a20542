//! `stratisd` takes over from `stratisd-min` at any moment, and both may be told to end at any
//! moment.

use nix::sys::signal::Signal;
use support::bus::Bus;

use crate::{Daemon, RUN_DIRECTORY, Rig, STRATISD, STRATISD_MIN, read_all};
use support::processes::command;

/// Starts `stratisd` in the runtime directory of the rig, on a private bus.
fn stratisd(rig: &Rig, bus: &Bus) -> Daemon {
    rig.start(STRATISD, "notify", &[("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)])
}

fn ended(daemon: Daemon) {
    let (status, log) = daemon.end();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn stratisd_takes_over_from_an_idle_daemon() {
    let (rig, bus) = (Rig::new(), Bus::start());
    let early = rig.ready();
    let full = stratisd(&rig, &bus);
    assert_eq!(early.next_state(), "STOPPING=1");
    ended(early);
    assert_eq!(full.next_state(), "READY=1");
    assert!(!rig.socket().exists());
    // From now on the early daemon does not start.
    let refused = command(STRATISD_MIN).arg("--sim").env(RUN_DIRECTORY, rig.0.path()).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && error.contains("stratisd is already running"), "{error}");
    assert!(error.contains(&full.process.id().to_string()), "{error}");
    full.process.signal(Signal::SIGTERM);
    ended(full);
}

/// The daemon of the initrd had ended before that of the root file system began: for a moment nobody
/// watched the pools, and nobody would have gone on if the second one could not start.
#[test]
fn an_early_daemon_takes_over_from_another() {
    let rig = Rig::new();
    let first = rig.ready();
    // Only on request.
    let refused = command(STRATISD_MIN).arg("--sim").env(RUN_DIRECTORY, rig.0.path()).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && error.contains("already running"), "{error}");
    let mut second = rig.start_with(STRATISD_MIN, &["--replace"], "notify-second", &[]);
    second.wait_for_line(&["stratisd-min", "starts on"]);
    second.wait_for_line(&[&format!("process {}, has ended", first.process.id())]);
    assert_eq!(first.next_state(), "STOPPING=1");
    ended(first);
    assert_eq!(second.next_state(), "READY=1");
    assert_eq!(rig.ask(r#""KeyList""#), r#"{"Ok":{"KeyList":[[],0,"OK"]}}"#);
    second.process.signal(Signal::SIGTERM);
    ended(second);
    // There may be nobody to take over from.
    let third = rig.start_with(STRATISD_MIN, &["--replace"], "notify-third", &[]);
    assert_eq!(third.next_state(), "READY=1");
    // stratisd stays, whoever comes.
    let bus = Bus::start();
    let full = stratisd(&rig, &bus);
    assert_eq!(full.next_state(), "READY=1");
    ended(third);
    let (status, log) = rig.start_with(STRATISD_MIN, &["--replace"], "notify-last", &[]).end();
    assert!(status == Some(1) && log.contains("stratisd is already running"), "{log}");
    full.process.signal(Signal::SIGTERM);
    ended(full);
}

/// The early daemon completes the pool that it is creating and answers its client. Only then does
/// the next daemon scan the devices.
#[test]
fn requests_under_way_are_finished_before() {
    let (rig, bus) = (Rig::with_requests_in_the_log(), Bus::start());
    let early = rig.ready_with(&[("STRATISD_SIM_SLOW_MS", "30")]);
    let made = rig.sent(r#"{"PoolCreate":["p1",["/dev/a"],null]}"#, &[]);
    // Its answer comes after the request has begun.
    assert!(rig.ask(r#""PoolList""#).contains("[[],"));
    let mut early = early;
    early.wait_for_line(&["request", "rpc.PoolCreate"]);
    let full = stratisd(&rig, &bus);
    let answer = read_all(&made);
    let is_refused = answer.contains("stratisd-min is stopping");
    assert!(answer == r#"{"Ok":{"PoolCreate":[true,0,"OK"]}}"# || is_refused, "{answer}");
    ended(early);
    assert_eq!(full.next_state(), "READY=1");
    full.process.signal(Signal::SIGTERM);
    ended(full);
}

/// At any moment of its start, the early daemon ends cleanly, and the other one comes up.
#[test]
fn an_early_daemon_that_starts_is_taken_over() {
    for delay_of in ["pid", "signals", "ready"] {
        let (rig, bus) = (Rig::new(), Bus::start());
        let mut early = rig.start(STRATISD_MIN, "notify-min", &[("STRATISD_SIM_SLOW_MS", "20")]);
        match delay_of {
            "pid" => {}
            "signals" => early.wait_for_line(&["starts on"]),
            _ => assert_eq!(early.next_state(), "READY=1"),
        }
        let full = stratisd(&rig, &bus);
        assert_eq!(full.next_state(), "READY=1", "{delay_of}");
        // The early daemon is killed before it handles the signal, is refused since stratisd runs,
        // or stops.
        let (status, log) = early.end();
        assert!(matches!(status, Some(0 | 1) | None), "{delay_of}: {status:?} {log}");
        full.process.signal(Signal::SIGTERM);
        ended(full);
    }
}

#[test]
fn both_end_when_both_are_told() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (rig, bus) = (Rig::with_requests_in_the_log(), Bus::start());
        let mut early = rig.ready_with(&[("STRATISD_SIM_SLOW_MS", "30")]);
        let _made = rig.sent(r#"{"PoolCreate":["p1",["/dev/a"],null]}"#, &[]);
        early.wait_for_line(&["request", "rpc.PoolCreate"]);
        let mut full = stratisd(&rig, &bus);
        full.wait_for_line(&["stratisd", "starts on"]);
        full.process.signal(signal);
        early.process.signal(signal);
        ended(full);
        ended(early);
        // The locks are free again.
        let again = rig.start(STRATISD_MIN, "notify-again", &[]);
        assert_eq!(again.next_state(), "READY=1");
    }
}

/// Without a bus stratisd cannot start. The early daemon is not told to end.
#[test]
fn a_daemon_that_cannot_start_takes_nothing_over() {
    let rig = Rig::new();
    let early = rig.ready();
    let full = rig.start(STRATISD, "notify", &[("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")]);
    let (status, log) = full.end();
    assert!(status == Some(1) && log.contains("cannot reach the system bus"), "{log}");
    assert_eq!(rig.ask(r#""KeyList""#), r#"{"Ok":{"KeyList":[[],0,"OK"]}}"#);
    early.process.signal(Signal::SIGTERM);
    assert_eq!(early.next_state(), "STOPPING=1");
    ended(early);
}

/// The early daemon was killed: its lock is free, whatever its file says, and its socket is replaced.
#[test]
fn leftovers_of_a_killed_daemon_are_harmless() {
    let (rig, bus) = (Rig::new(), Bus::start());
    let mut early = rig.ready();
    early.process.kill();
    assert!(rig.socket().exists());
    let again = rig.start(STRATISD_MIN, "notify-again", &[]);
    assert_eq!(again.next_state(), "READY=1");
    assert_eq!(rig.ask(r#""KeyList""#), r#"{"Ok":{"KeyList":[[],0,"OK"]}}"#);
    let mut again = again;
    again.process.kill();
    let full = stratisd(&rig, &bus);
    assert_eq!(full.next_state(), "READY=1");
}
