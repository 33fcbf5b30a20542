//! Calls that cannot be answered yet delay no other call, and the resources that they hold are
//! bounded.

use std::{fs::File, io::Write, os::fd::OwnedFd};

use support::{
    bus::Bus,
    client::{self, BLOCKDEV, Client, MANAGER, Outcome, TOP},
};

use crate::slow::SLOW_MOST;

/// Unwritten keys that the daemon accepts from one caller.
const KEYS_MAX: usize = 64;
const LIMITS_EXCEEDED: Option<&str> = Some("LimitsExceeded");

/// Sends calls that set keys through pipes without data. Returns their serial numbers and the write
/// ends of the pipes.
fn unwritten_keys(client: &Client, count: usize) -> Vec<(u32, std::io::PipeWriter)> {
    let one = |number: usize| {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = File::from(OwnedFd::from(reader));
        (client.send(client::call(TOP, MANAGER, "SetKey", (format!("key{number}"), reader))), writer)
    };
    (0..count).map(one).collect()
}

/// Found in review: for a minute, each such call held a descriptor and one of the workers that
/// format filesystems.
#[test]
fn unwritten_keys_delay_no_other_call() {
    let bus = Bus::start();
    let daemon = bus.daemon(&[]);
    let bystander = Client::new(&bus);
    let pool = &bystander.done(client::create_pool("p", &["/dev/a"]))[0];
    let descriptors = daemon.descriptors();
    let attackers: Vec<Client> = (0..3).map(|_| Client::new(&bus)).collect();
    for attacker in &attackers {
        let mut keys = unwritten_keys(attacker, KEYS_MAX + 20);
        for (refused, _) in keys.drain(KEYS_MAX..) {
            assert_eq!(client::error_name(&attacker.wait(refused)).as_deref(), LIMITS_EXCEEDED);
        }
        let made = bystander.done(client::create_filesystem(pool, "beside"));
        bystander.done(client::destroy_filesystem(pool, &made[0]));
        attacker.call(client::ping());
        assert!(keys.iter().all(|(waits, _)| !attacker.has_reply(*waits)));
        assert_eq!(daemon.descriptors(), descriptors + KEYS_MAX);
        // The client was only slow: each call is answered as soon as its key is written.
        for (serial, writer) in &mut keys {
            writer.write_all(b"a key").unwrap();
            assert!(matches!(client::outcome(&attacker.wait(*serial)), Outcome::Changed(_) | Outcome::Unchanged));
        }
        attacker.call(client::ping());
        assert_eq!(daemon.descriptors(), descriptors);
    }
}

/// Found in review: one call got the key. All others waited for it in a read, each with a worker,
/// for as long as their client lived.
#[test]
fn one_pipe_in_several_calls_delays_nobody() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let client = Client::new(&bus);
    let pool = client.done(client::create_pool("p", &["/dev/a"]))[0].clone();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = File::from(OwnedFd::from(reader));
    let calls: Vec<u32> = (0..20)
        .map(|number| {
            let same = reader.try_clone().unwrap();
            client.send(client::call(TOP, MANAGER, "SetKey", (format!("key{number}"), same)))
        })
        .collect();
    client.call(client::ping());
    writer.write_all(b"a key").unwrap();
    // One call has got the key. The others wait for another key or are refused because this one was
    // taken. Calls without a key do not wait in either case.
    for round in 0..5 {
        client.done(client::create_filesystem(&pool, &format!("beside{round}")));
    }
    drop(writer);
    let told: Vec<Outcome> = calls.iter().map(|call| client::outcome(&client.wait(*call))).collect();
    assert!(told.iter().any(|told| matches!(told, Outcome::Changed(_))), "{told:?}");
}

/// The stop of the daemon does not wait for unwritten keys.
#[test]
fn unwritten_keys_do_not_delay_the_stop() {
    let bus = Bus::start();
    let daemon = bus.logging_daemon("info", &[]);
    let client = Client::new(&bus);
    let keys = unwritten_keys(&client, 3);
    client.call(client::ping());
    daemon.terminate();
    for (serial, _) in &keys {
        match client::outcome(&client.wait(*serial)) {
            Outcome::Refused(text) => assert!(text.contains("stopping"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Found in review: any number of calls of any length could wait for a worker.
#[test]
fn calls_that_wait_hold_a_bounded_amount() {
    let bus = Bus::start();
    let daemon = bus.daemon_slow_on("/dev/slow");
    let bystander = Client::new(&bus);
    let device = &bystander.done(client::create_pool("p", &["/dev/a"]))[1];
    let slow = Client::new(&bus);
    for number in 0..SLOW_MOST {
        slow.send(client::create_pool(&format!("slow{number}"), &[&format!("/dev/slow-{number}")]));
        daemon.line_with("on /dev/slow");
    }
    let before = daemon.resident_kib();

    let names: Vec<String> = (0..20_000).map(|number| format!("/dev/none{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let attacker = Client::new(&bus);
    for unheard in [true, false] {
        for _ in 0..60 {
            let mut call = client::create_pool("large", &names);
            call.set_no_reply(unheard);
            attacker.post(call);
        }
        attacker.flush();
        attacker.call(client::ping());
    }
    let refused = attacker.call(client::create_pool("large", &names));
    assert_eq!(client::error_name(&refused).as_deref(), LIMITS_EXCEEDED);
    let more = daemon.resident_kib().saturating_sub(before);
    println!("120 calls of {} names that wait: {more} KiB more", names.len());
    assert!(more < 64 << 10, "{more} KiB");

    // Other clients continue, as long as their calls need no slow disk.
    bystander.done(client::set_user_info(device, "mine"));
    let note = bystander.call(client::get(device, BLOCKDEV, "UserInfo"));
    assert_eq!(client::value(&note).as_deref(), Ok("(true mine)"));
}
