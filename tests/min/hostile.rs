//! Clients that send rubbish, half a request, too much or nothing, and clients that do not read:
//! none of them delays another, and the daemon ends as usual.

use std::{io::Write, os::unix::fs::PermissionsExt};

use nix::sys::signal::Signal;

use crate::{Daemon, Rig, read_all};

fn is_served(rig: &Rig) {
    assert_eq!(rig.ask(r#""KeyList""#), r#"{"Ok":{"KeyList":[[],0,"OK"]}}"#);
}

fn ends(daemon: Daemon) {
    daemon.process.signal(Signal::SIGTERM);
    let (status, log) = daemon.end();
    assert_eq!(status, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn only_the_owner_may_connect() {
    let rig = Rig::new();
    let daemon = rig.ready();
    let mode = std::fs::metadata(rig.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    ends(daemon);
    assert!(!rig.socket().exists(), "the daemon removes its socket");
}

#[test]
fn rubbish_is_refused_with_a_reason() {
    let rig = Rig::new();
    let daemon = rig.ready();
    for (request, why) in [
        ("7", "one JSON text or object"),
        ("\"KeyList\" x", "one JSON text or object"),
        ("{\"KeyList\" x}", "not valid JSON"),
        ("\"NoSuchRequest\"", "does not know this request"),
        (r#"{"PoolStop":7}"#, "does not know this request"),
        (r#"{"PoolStop":{"Uuid":"x"}}"#, "does not know this request"),
        (r#"{"PoolCreate":["p"]}"#, "does not know this request"),
        (r#"{"KeyUnset":"a","KeyUnset":"b"}"#, "KeyUnset"),
    ] {
        let answer = rig.ask(request);
        assert!(answer.starts_with(r#"{"Err":""#) && answer.contains(why), "{request}: {answer}");
    }
    let deep = format!("{{\"PoolStop\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    assert!(rig.ask(&deep).contains("not valid JSON"));
    let mut binary = rig.connect();
    binary.write_all(b"\"\xff\xfe\"").unwrap();
    assert!(read_all(&binary).contains("not UTF-8"));
    is_served(&rig);
    ends(daemon);
}

/// The existing daemon makes one read of at most 64 KiB.
#[test]
fn requests_up_to_64_kib_are_taken() {
    let rig = Rig::new();
    let daemon = rig.ready();
    let shell = r#"{"KeyUnset":""}"#.len();
    let of_size = |bytes: usize| format!(r#"{{"KeyUnset":"{}"}}"#, "k".repeat(bytes - shell));
    let longest = rig.ask(&of_size(65_536));
    assert!(longest.starts_with(r#"{"Ok":{"KeyUnset":[false,1,""#), "{longest}");
    // The refusal comes before all of the request is read.
    let mut stream = rig.connect();
    let _ = stream.write_all(of_size(1 << 20).as_bytes());
    let answer = read_all(&stream);
    assert!(answer.is_empty() || answer.contains("longer than 65536 bytes"), "{answer}");
    let mut slow = rig.connect();
    for byte in br#"{"KeyUnset":"k"}"# {
        slow.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_all(&slow), r#"{"Ok":{"KeyUnset":[false,0,"OK"]}}"#);
    ends(daemon);
}

#[test]
fn silent_clients_delay_no_other() {
    let rig = Rig::new();
    let daemon = rig.ready();
    let mut half: Vec<_> = (0..100).map(|_| rig.connect()).collect();
    for stream in &mut half {
        stream.write_all(b"{\"Pool").unwrap();
    }
    let unread: Vec<_> = (0..100).map(|_| rig.sent(r#""Report""#, &[])).collect();
    is_served(&rig);
    // Each is disconnected when its time limit expires.
    assert_eq!(read_all(&half[0]), "");
    drop(half);
    is_served(&rig);
    drop(unread);
    is_served(&rig);
    ends(daemon);
}

/// More connections than the daemon accepts at once: the others wait and are served later.
#[test]
fn more_clients_than_places_are_all_served() {
    let rig = Rig::new();
    let daemon = rig.ready();
    let idle: Vec<_> = (0..255).map(|_| rig.connect()).collect();
    for _ in 0..300 {
        is_served(&rig);
    }
    drop(idle);
    ends(daemon);
}

#[test]
fn a_client_that_goes_away_stops_nothing() {
    let rig = Rig::new();
    let daemon = rig.ready_with(&[("STRATISD_SIM_SLOW_MS", "5")]);
    drop(rig.sent(r#"{"PoolCreate":["p1",["/dev/a"],null]}"#, &[]));
    // The name is claimed by the request that continues, so this one waits for it.
    let answer = rig.ask(r#"{"PoolCreate":["p1",["/dev/a"],null]}"#);
    assert!(answer.starts_with(r#"{"Ok":{"PoolCreate":["#), "{answer}");
    assert!(rig.ask(r#""PoolList""#).contains(r#"["p1"]"#));
    ends(daemon);
}

/// Many clients at once, while a pool takes long: questions are answered meanwhile.
#[test]
fn questions_do_not_wait_for_slow_pools() {
    let rig = Rig::new();
    let daemon = rig.ready_with(&[("STRATISD_SIM_SLOW_MS", "20")]);
    let slow = rig.sent(r#"{"PoolCreate":["slow",["/dev/a","/dev/b"],null]}"#, &[]);
    let others: Vec<_> = (0..40).map(|_| rig.sent(r#""PoolList""#, &[])).collect();
    for other in &others {
        let answer = read_all(other);
        assert!(answer.starts_with(r#"{"Ok":{"PoolList":["#), "{answer}");
    }
    slow.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let waits = std::io::Read::read(&mut &slow, &mut byte).unwrap_err();
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "the pool is still being made");
    slow.set_nonblocking(false).unwrap();
    assert_eq!(read_all(&slow), r#"{"Ok":{"PoolCreate":[true,0,"OK"]}}"#);
    ends(daemon);
}
