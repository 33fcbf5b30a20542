//! P1, P5 and P6: other requests continue beside a slow one. Slow steps of the simulated machine
//! take an hour here, so every reply comes while they are running. Only the tests that measure
//! times use short ones.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use support::{
    bus::Bus,
    client::{self, Client, MANAGER, POOL, TOP},
};

/// The number of slow steps that may run for one pool.
pub const SLOW_MAX: usize = 8;
/// The daemon's log line for a format that has begun: its first write takes an hour.
const SLOW_STEP: &str = "takes 3600000 ms";
/// The number of slow steps that may run in all, each for another pool or device.
pub const SLOW_MOST: usize = 64;

#[test]
fn slow_pool_delays_no_read_and_no_pool() {
    let bus = Bus::start();
    let daemon = bus.daemon_slow_on("/dev/slow");
    let quick = Client::new(&bus);
    let pool = &quick.done(client::create_pool("quick", &["/dev/quick"]))[0];

    let slow = Client::new(&bus);
    let serial = slow.send(client::create_pool("slow", &["/dev/slow-a", "/dev/slow-b"]));
    daemon.line_with("on /dev/slow");

    // From here on, no call waits for a slow step.
    for number in 0..1000 {
        assert_eq!(client::value(&quick.call(client::get(pool, POOL, "Name"))).as_deref(), Ok("quick"));
        let listed = client::paths(&quick.list()).len();
        assert_eq!(listed, 2 + number / 100, "pool, device, filesystems");
        if number % 100 == 99 {
            quick.done(client::create_filesystem(pool, &format!("fs{number}")));
        }
    }
    let first = quick.done(client::create_filesystem(pool, "first"));
    quick.done(client::snapshot(pool, &first[0], "copy"));
    quick.done(client::rename_filesystem(&first[0], "second"));
    quick.done(client::destroy_filesystem(pool, &first[0]));
    quick.done(client::add_devices(pool, &["/dev/more"]));
    quick.done(client::rename_pool(pool, "renamed"));
    let third = quick.done(client::create_pool("third", &["/dev/third"]));
    quick.done(client::destroy_pool(&third[0]));
    // The slow call is still running: its reply would have come before this one.
    slow.call(client::ping());
    assert!(!slow.has_reply(serial));
    println!("answered beside a pool in the making: 2000 reads, 18 changes of other pools");
}

/// Latencies in µs at the given permilles.
fn figures(what: &str, mut samples: Vec<Duration>) {
    samples.sort_unstable();
    let at = |permille: usize| samples[(samples.len() - 1) * permille / 1000].as_micros();
    println!(
        "{what:28} {:6} calls  p50 {:6} µs  p90 {:6} µs  p99 {:6} µs  max {:6} µs",
        samples.len(),
        at(500),
        at(900),
        at(990),
        at(1000),
    );
}

fn timed(client: &Client, call: dbus::Message) -> Duration {
    let begin = Instant::now();
    client.call(call);
    begin.elapsed()
}

/// Prints figures. Asserts only that the slow call is answered in the end.
#[test]
fn latencies_idle_and_beside_a_pool_creation() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[("STRATISD_SIM_SLOW_MS", "100"), ("STRATISD_SIM_SLOW_PATH", "/dev/slow")]);
    let quick = Client::new(&bus);
    let pool = &quick.done(client::create_pool("quick", &["/dev/quick"]))[0];
    let sample = |number: usize, gets: &mut Vec<_>, lists: &mut Vec<_>, changes: &mut Vec<_>| {
        gets.push(timed(&quick, client::get(pool, POOL, "Name")));
        lists.push(timed(&quick, client::list()));
        if number.is_multiple_of(20) {
            let name = format!("fs{number}");
            let begin = Instant::now();
            let made = quick.done(client::create_filesystem(pool, &name));
            changes.push(begin.elapsed());
            quick.done(client::destroy_filesystem(pool, &made[0]));
        }
    };
    let report = |when: &str, gets, lists, changes| {
        figures(&format!("Get, {when}"), gets);
        figures(&format!("GetManagedObjects, {when}"), lists);
        figures(&format!("CreateFilesystems, {when}"), changes);
    };
    let (mut gets, mut lists, mut changes) = (vec![], vec![], vec![]);
    (0..1000).for_each(|number| sample(number, &mut gets, &mut lists, &mut changes));
    report("idle", gets, lists, changes);

    let slow = Client::new(&bus);
    let serial = slow.send(client::create_pool("slow", &["/dev/slow-a", "/dev/slow-b"]));
    let (mut gets, mut lists, mut changes) = (vec![], vec![], vec![]);
    let mut number = 0;
    while !slow.has_reply(serial) {
        sample(number, &mut gets, &mut lists, &mut changes);
        number += 1;
    }
    let made = client::outcome(&slow.wait(serial));
    assert!(matches!(&made, client::Outcome::Changed(words) if words.len() == 3), "{made:?}");
    assert!(number > 0, "the pool was made before anything else was answered");
    report("meanwhile", gets, lists, changes);
}

/// One call less than the pending replies that a system bus allows a connection, so that a `Ping`
/// still passes.
const CALLS_OF_EACH: usize = 127;
/// With [`CALLS_OF_EACH`] calls each, twelve thousand calls are waiting.
const CLIENTS_WAITING: usize = 95;

/// Prints figures of other pools beside requests that wait for a name. The tests of the dispatcher
/// check that the waiting requests do nothing meanwhile. Creating a pool elsewhere took 11.5 s when
/// each change woke all of them.
#[test]
fn latencies_beside_twelve_thousand_parked_requests() {
    let bus = Bus::start();
    let daemon = bus.daemon_slow_on("thin-fs");
    let client = Client::new(&bus);
    let made = client.done(client::create_pool("hung", &["/dev/a"]));
    let (hung, device) = (&made[0], &made[1]);
    let other = client.done(client::create_pool("other", &["/dev/b"]))[0].clone();
    let sample = |when: &str| {
        let (mut gets, mut changes) = (vec![], vec![]);
        for number in 0..50 {
            gets.extend((0..10).map(|_| timed(&client, client::get(&other, POOL, "Name"))));
            let begin = Instant::now();
            let made = client.done(client::create_pool(&format!("{when}{number}"), &[&format!("/dev/{when}{number}")]));
            changes.push(begin.elapsed());
            client.done(client::destroy_pool(&made[0]));
        }
        figures(&format!("Get, {when}"), gets);
        figures(&format!("CreatePool, {when}"), changes);
    };
    sample("idle");
    let waiting: Vec<Client> = (0..CLIENTS_WAITING).map(|_| Client::new(&bus)).collect();
    let calls: Vec<Vec<u32>> = waiting
        .iter()
        .map(|client| (0..CALLS_OF_EACH).map(|_| client.send(client::create_filesystem(hung, "same"))).collect())
        .collect();
    daemon.line_with(SLOW_STEP);
    for client in &waiting {
        client.call(client::ping());
    }
    // The pool takes the calls in order of arrival, so all of them have found the name taken when
    // this reply comes.
    client.done(client::set_user_info(device, "last"));
    sample("parked");
    for (client, calls) in waiting.iter().zip(&calls) {
        client.call(client::ping());
        assert!(calls.iter().all(|call| !client.has_reply(*call)), "they wait");
    }
}

/// P6. None of these formats ends, so all that have begun are running together.
#[test]
fn filesystems_of_one_pool_are_formatted_in_parallel() {
    let bus = Bus::start();
    let daemon = bus.daemon_slow_on("thin-fs");
    let client = Client::new(&bus);
    let made = client.done(client::create_pool("p", &["/dev/a"]));
    let pool = &made[0];
    let calls: Vec<u32> =
        (0..10).map(|number| client.send(client::create_filesystem(pool, &format!("fs{number}")))).collect();
    for _ in 0..SLOW_MAX {
        daemon.line_with(SLOW_STEP);
    }
    // Meanwhile the pool can be changed and read.
    client.done(client::set_user_info(&made[1], "busy"));
    assert_eq!(client::paths(&client.list()).len(), 2, "no filesystem yet");
    assert!(calls.iter().all(|call| !client.has_reply(*call)));
    let more = daemon.lines_so_far(SLOW_STEP);
    println!("10 CreateFilesystems of one pool: {} mkfs at once, the others wait for a worker", SLOW_MAX + more);
    assert_eq!(more, 0, "a pool has its bound");
}

/// Eight hung formats of one pool occupied half of the workers: keys could not be listed, and no
/// other pool could be changed.
#[test]
fn hung_formats_delay_no_other_pool() {
    let bus = Bus::start();
    let daemon = bus.daemon_slow_on("thin-fs");
    let client = Client::new(&bus);
    let hung = client.done(client::create_pool("hung", &["/dev/a"]))[0].clone();
    let other = client.done(client::create_pool("other", &["/dev/b"]))[0].clone();
    let calls: Vec<u32> =
        (0..20).map(|number| client.send(client::create_filesystem(&hung, &format!("fs{number}")))).collect();
    for _ in 0..SLOW_MAX {
        daemon.line_with(SLOW_STEP);
    }
    for round in 0..5 {
        client.call(client::call(TOP, MANAGER, "ListKeys", ()));
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"a key").unwrap();
        let key = File::from(OwnedFd::from(reader));
        client.done(client::call(TOP, MANAGER, "SetKey", (format!("key{round}"), key)));
        let third = client.done(client::create_pool(&format!("third{round}"), &[&format!("/dev/c{round}")]));
        client.done(client::rename_pool(&third[0], &format!("renamed{round}")));
        client.done(client::add_devices(&other, &[&format!("/dev/d{round}")]));
        client.done(client::stop_pool(&format!("renamed{round}")));
        client.done(client::start_pool(&format!("renamed{round}")));
    }
    assert!(calls.iter().all(|call| !client.has_reply(*call)), "the formats hang");
}

/// All ten filesystems are made in the end, in any order.
#[test]
fn ten_filesystems_at_once_are_all_made() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[("STRATISD_SIM_SLOW_MS", "20"), ("STRATISD_SIM_SLOW_PATH", "thin-fs")]);
    let client = Client::new(&bus);
    let pool = &client.done(client::create_pool("p", &["/dev/a"]))[0];
    let calls: Vec<u32> =
        (0..10).map(|number| client.send(client::create_filesystem(pool, &format!("fs{number}")))).collect();
    let made: std::collections::BTreeSet<String> = calls
        .into_iter()
        .map(|call| match client::outcome(&client.wait(call)) {
            client::Outcome::Changed(words) => words[0].clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(made.len(), 10);
    assert!(client::paths(&client.list()).is_superset(&made));
}
