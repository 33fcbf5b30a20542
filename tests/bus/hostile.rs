//! P9: hostile and broken clients. The daemon answers every call that can be answered, and other
//! clients are not affected. Afterwards the daemon has no more descriptors than before, and hardly
//! more memory.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use dbus::{
    Message,
    arg::{PropMap, Variant, prop_cast},
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use support::{
    bus::{Bus, Limits, Program},
    client::{self, BLOCKDEV, Client, FILESYSTEM, MANAGER, Outcome, POOL, PROPERTIES, TOP},
    daemon::Daemon,
};

/// Limit of the daemon's memory in KiB. An idle daemon has about 10 MiB. The limit leaves room for
/// several times the longest message (32 MiB on a system bus).
const RESIDENT_MAX_KIB: u64 = 300 << 10;
/// The longest error text for any input.
const ANSWER_BYTES_MAX: usize = 4096;

/// A daemon with a pool and a filesystem, and a client that must not be disturbed.
struct Victim {
    bus: Bus,
    daemon: Daemon,
    bystander: Client,
    objects: Vec<String>,
    descriptors: usize,
}

impl Victim {
    fn new() -> Victim {
        Victim::on(Bus::start())
    }

    fn on(bus: Bus) -> Victim {
        let daemon = bus.daemon(&[]);
        Victim::of(bus, daemon)
    }

    fn of(bus: Bus, daemon: Daemon) -> Victim {
        let bystander = Client::new(&bus);
        let mut objects = bystander.done(client::create_pool("p", &["/dev/a"]));
        objects.push(bystander.done(client::create_filesystem(&objects[0], "home"))[0].clone());
        let descriptors = daemon.descriptors();
        Victim { bus, daemon, bystander, objects, descriptors }
    }

    fn pool(&self) -> &str {
        &self.objects[0]
    }

    fn device(&self) -> &str {
        &self.objects[1]
    }

    fn filesystem(&self) -> &str {
        &self.objects[2]
    }

    /// Checks that another client is served as before.
    fn is_fine(&self) {
        let name = self.bystander.call(client::get(self.filesystem(), FILESYSTEM, "Name"));
        assert_eq!(client::value(&name).as_deref(), Ok("home"));
        assert_eq!(client::paths(&self.bystander.list()), self.objects.iter().cloned().collect());
        let other = &self.bystander.done(client::create_filesystem(self.pool(), "other"))[0];
        self.bystander.done(client::destroy_filesystem(self.pool(), other));
    }

    /// Checks the daemon after the attacker has disconnected.
    fn ends_well(mut self, what: &str) {
        self.is_fine();
        // The daemon closes the descriptors of a message after handling it, and it has handled all
        // messages by now.
        assert_eq!(self.daemon.descriptors(), self.descriptors, "{what}");
        let (now, most) = (self.daemon.resident_kib(), self.daemon.resident_max_kib());
        println!("{what}: {now} KiB resident, at most {most}");
        assert!(most < RESIDENT_MAX_KIB, "{what}: {most} KiB");
        assert!(self.daemon.is_up());
    }
}

/// The text of an error, or of a reply with code 1, for a call that must not succeed.
#[track_caller]
fn refusal(client: &Client, call: Message) -> String {
    let what = format!("{:?} {:?}", call.interface(), call.member());
    let mut reply = client.call(call);
    let text = match reply.as_result() {
        Err(error) => error.message().unwrap_or_default().to_owned(),
        Ok(reply) => match client::outcome(reply) {
            Outcome::Refused(text) => text,
            other => panic!("{what}: {other:?}"),
        },
    };
    assert!((10..ANSWER_BYTES_MAX).contains(&text.len()), "{what}: {} bytes", text.len());
    text
}

#[test]
fn arguments_of_wrong_types_are_refused() {
    let victim = Victim::new();
    let attacker = Client::new(&victim.bus);
    let (pool, filesystem, device) = (victim.pool(), victim.filesystem(), victim.device());
    let methods = [
        (TOP, MANAGER, "CreatePool"),
        (TOP, MANAGER, "DestroyPool"),
        (TOP, MANAGER, "SetKey"),
        (TOP, MANAGER, "StartPool"),
        (TOP, "org.storage.stratis3.Manager.r0", "CreatePool"),
        (TOP, "org.storage.stratis3.Report.r3", "GetReport"),
        (pool, POOL, "CreateFilesystems"),
        (pool, POOL, "DestroyFilesystems"),
        (pool, POOL, "SnapshotFilesystem"),
        (pool, POOL, "AddDataDevs"),
        (pool, POOL, "SetName"),
        (filesystem, FILESYSTEM, "SetName"),
        (device, "org.storage.stratis3.blockdev.r2", "SetUserInfo"),
        (filesystem, PROPERTIES, "Get"),
        (filesystem, PROPERTIES, "GetAll"),
        (filesystem, PROPERTIES, "Set"),
    ];
    for (path, interface, member) in methods {
        refusal(&attacker, client::call(path, interface, member, ()));
        refusal(&attacker, client::call(path, interface, member, (7u8,)));
        refusal(&attacker, client::call(path, interface, member, (vec![(1u32, vec![true])], "x")));
        refusal(&attacker, client::call(path, interface, member, (Variant(Variant(Variant("deep"))), 1.5f64)));
        refusal(&attacker, client::call(path, interface, member, (vec![0u8; 1 << 20], -1i64)));
        refusal(&attacker, client::call(path, interface, member, (client::object("/"), -1i16)));
    }
    for value in [Variant(1u8), Variant(255u8)] {
        refusal(&attacker, client::call(device, PROPERTIES, "Set", (BLOCKDEV, "UserInfo", value)));
    }
    refusal(&attacker, client::call(device, PROPERTIES, "Set", (BLOCKDEV, "UserInfo", Variant(Variant((true, "x"))))));
    refusal(&attacker, client::call(device, PROPERTIES, "Set", (BLOCKDEV, "UserInfo", Variant((true, 1u8)))));
    drop(attacker);
    victim.ends_well("wrong types");
}

#[test]
fn names_of_any_length_are_handled() {
    let victim = Victim::new();
    let attacker = Client::new(&victim.bus);
    let (pool, filesystem) = (victim.pool(), victim.filesystem());
    let many: Vec<String> = (0..20_000).map(|number| format!("n{number}")).collect();
    let specs = |count: usize| many[..count].iter().map(|name| (name, (false, ""), (false, ""))).collect::<Vec<_>>();
    refusal(&attacker, client::call(pool, POOL, "CreateFilesystems", (specs(5000),)));
    refusal(&attacker, client::call(pool, POOL, "CreateFilesystems", (specs(20_000),)));
    // Relative paths, so that the simulated machine does not make disks of them.
    let relative: Vec<&str> = many.iter().map(String::as_str).collect();
    refusal(&attacker, client::create_pool("q", &relative));
    refusal(&attacker, client::add_devices(pool, &relative));
    let unknown: Vec<String> = (0..150_000).map(|number| format!("{TOP}/9{number}")).collect();
    let unknown: Vec<dbus::Path<'_>> = unknown.iter().map(|path| client::object(path)).collect();
    let few = client::call(pool, POOL, "DestroyFilesystems", (unknown[..50_000].to_vec(),));
    assert_eq!(client::outcome(&attacker.call(few)), Outcome::Unchanged);
    refusal(&attacker, client::call(pool, POOL, "DestroyFilesystems", (unknown,)));

    // The longest key description that the kernel accepts can be set, a longer one cannot.
    let set_key = |length| client::call(TOP, MANAGER, "SetKey", ("x".repeat(length), File::open("/dev/null").unwrap()));
    assert!(matches!(client::outcome(&attacker.call(set_key(4081))), Outcome::Changed(_)));
    for length in [4082, 1 << 16, 16 << 20] {
        assert!(refusal(&attacker, set_key(length)).contains("4081"));
    }
    for length in [300, 1 << 16, 16 << 20] {
        let giant = "x".repeat(length);
        refusal(&attacker, client::create_pool(&giant, &["/dev/b"]));
        refusal(&attacker, client::create_pool("q", &[&giant]));
        refusal(&attacker, client::create_pool("q", &[&format!("/dev/{giant}/y")]));
        refusal(&attacker, client::create_filesystem(pool, &giant));
        refusal(&attacker, client::rename_pool(pool, &giant));
        refusal(&attacker, client::rename_filesystem(filesystem, &giant));
        refusal(&attacker, client::snapshot(pool, filesystem, &giant));
        refusal(&attacker, client::set_user_info(victim.device(), &giant));
        refusal(&attacker, client::get(pool, POOL, &giant));
        refusal(&attacker, client::get(pool, &giant, "Name"));
        refusal(&attacker, client::call(TOP, "org.storage.stratis3.Report.r9", "GetReport", (&giant,)));
        let size = client::call(pool, POOL, "CreateFilesystems", (vec![("a", (true, &giant), (false, ""))],));
        refusal(&attacker, size);
        let path = format!("{TOP}/{}", "9".repeat(length));
        refusal(&attacker, client::get(&path, POOL, "Name"));
        refusal(&attacker, client::destroy_pool(&path));
    }
    drop(attacker);
    victim.ends_well("names without end");
}

#[test]
fn missing_and_surplus_descriptors_are_handled() {
    let victim = Victim::new();
    let attacker = Client::new(&victim.bus);
    let file = || File::open("/dev/null").unwrap();
    for _ in 0..50 {
        refusal(&attacker, client::call(TOP, MANAGER, "SetKey", ("description",)));
        refusal(&attacker, client::call(TOP, MANAGER, "SetKey", (file(), "description")));
        let mut many = client::call(TOP, MANAGER, "SetKey", ("description", file(), file(), file(), file()));
        many.append_all((file(), file(), file(), file()));
        // The first descriptor is the key, which is empty.
        attacker.call(many);
        // The daemon ignores surplus descriptors, also of calls that take none.
        let mut get = client::get(victim.filesystem(), FILESYSTEM, "Name");
        get.append_all((file(), file(), file(), file(), file()));
        assert_eq!(client::value(&attacker.call(get)).as_deref(), Ok("home"));
        let mut create = client::create_filesystem(victim.pool(), "home");
        create.append_all((file(), file()));
        assert_eq!(client::outcome(&attacker.call(create)), Outcome::Unchanged);
        // The call asks for no reply.
        let mut unheard = client::call("/nowhere", MANAGER, "SetKey", ("description", file()));
        unheard.set_no_reply(true);
        attacker.send(unheard);
    }
    attacker.call(client::ping());
    drop(attacker);
    victim.ends_well("descriptors");
}

#[test]
fn unknown_objects_and_members_are_refused() {
    let victim = Victim::new();
    let attacker = Client::new(&victim.bus);
    let mut random = StdRng::seed_from_u64(1);
    let letters = |random: &mut StdRng| -> String { (0..8).map(|_| random.random_range('a'..='z')).collect() };
    for _ in 0..500 {
        let (word, other) = (letters(&mut random), letters(&mut random));
        refusal(&attacker, client::call(&format!("/{word}/{other}"), MANAGER, "CreatePool", ()));
        refusal(&attacker, client::call(&format!("{TOP}/{word}"), PROPERTIES, "GetAll", (POOL,)));
        refusal(&attacker, client::call(TOP, &format!("org.{word}.{other}"), &word, ()));
        refusal(&attacker, client::call(victim.pool(), POOL, &word, (random.next_u64(),)));
        refusal(&attacker, client::get(victim.pool(), POOL, &word));
        refusal(&attacker, client::get(victim.pool(), &format!("org.storage.stratis3.{word}.r1"), "Name"));
    }
    drop(attacker);
    victim.ends_well("unknown paths and members");
}

/// Sends broken data without the library: truncated messages, and bytes that are not messages. None
/// of it may pass the bus and reach the daemon.
#[test]
fn broken_messages_never_reach_the_daemon() {
    let victim = Victim::new();
    let mut random = StdRng::seed_from_u64(2);
    for round in 0..100 {
        let mut socket = UnixStream::connect(victim.bus.socket()).unwrap();
        socket.set_read_timeout(Some(support::bus::LIMIT)).unwrap();
        socket.write_all(b"\0AUTH EXTERNAL\r\n").unwrap();
        let mut answer = [0; 256];
        let length = socket.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"DATA"), "the bus asks who we are");
        socket.write_all(b"DATA\r\n").unwrap();
        let length = socket.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"OK"), "the bus lets us in");
        socket.write_all(b"BEGIN\r\n").unwrap();
        // The start of a call that announces 64 bytes of header fields and a body. Less than the
        // announced length follows.
        let mut head = vec![b'l', 1, 0, 1, 200, 0, 0, 0, 1, 0, 0, 0, 64, 0, 0, 0];
        head.resize(16 + round, 0);
        random.fill_bytes(&mut head[16..]);
        // The bus may have closed the connection already.
        let _ = socket.write_all(&head);
    }
    victim.ends_well("broken messages");
}

#[test]
fn clients_gone_during_a_call_do_no_harm() {
    let victim = Victim::new();
    let mut made = Vec::new();
    for round in 0..100 {
        let attacker = Client::new(&victim.bus);
        attacker.post(client::create_filesystem(victim.pool(), &format!("orphan{round}")));
        attacker.post(client::list());
        attacker.post(client::get(victim.pool(), POOL, "Name"));
        attacker.flush();
        drop(attacker);
        // Either the daemon carries out the call, or the bus never forwarded it.
        if round % 10 == 9 {
            let call = client::create_filesystem(victim.pool(), &format!("orphan{round}"));
            if let Outcome::Changed(words) = client::outcome(&victim.bystander.call(call)) {
                made.push(words[0].clone());
            }
            let left = client::paths(&victim.bystander.list());
            for path in left.iter().filter(|path| !victim.objects.contains(path)) {
                victim.bystander.call(client::destroy_filesystem(victim.pool(), path));
            }
        }
    }
    // A name is free only after the requests for it have ended.
    for round in 0..100 {
        let name = format!("orphan{round}");
        victim.bystander.call(client::create_filesystem(victim.pool(), &name));
        let list = client::labels(&victim.bystander.list());
        let is_it = |label: &client::Label| matches!(label, client::Label::Filesystem(_, n) if *n == name);
        for (path, _) in list.iter().filter(|(_, label)| is_it(label)) {
            victim.bystander.done(client::destroy_filesystem(victim.pool(), path));
        }
    }
    victim.ends_well("gone in the middle");
}

#[test]
fn a_client_that_never_reads_is_harmless() {
    let victim = Victim::new();
    for name in 0..40 {
        victim.bystander.done(client::create_filesystem(victim.pool(), &format!("fs{name}")));
    }
    let attacker = Client::new(&victim.bus).listens("");
    for _ in 0..3000 {
        attacker.post(client::list());
        attacker.post(client::get(victim.pool(), POOL, "Name"));
    }
    attacker.flush();
    for path in client::paths(&victim.bystander.list()).iter().filter(|path| !victim.objects.contains(path)) {
        victim.bystander.done(client::destroy_filesystem(victim.pool(), path));
    }
    victim.is_fine();
    drop(attacker);
    victim.ends_well("one that never reads");
}

/// Enough filesystems for lists of several megabytes.
fn fill(victim: &mut Victim) -> usize {
    for pool in 0..5 {
        let made = victim.bystander.done(client::create_pool(&format!("full{pool}"), &[&format!("/dev/full{pool}")]));
        for name in 0..90 {
            let name = format!("fs{name}");
            victim
                .objects
                .extend(victim.bystander.done(client::create_filesystem(&made[0], &name)).into_iter().step_by(2));
        }
        victim.objects.extend(made);
    }
    let list = victim.bystander.list();
    message_bytes(&list)
}

fn message_bytes(message: &Message) -> usize {
    let mut length = 0;
    let count = |bytes: &[u8]| -> Result<(), ()> {
        length = bytes.len();
        Ok(())
    };
    message.marshal(count).unwrap();
    length
}

/// The bus charges the daemon for replies that a client does not read, and stops reading from the
/// daemon at 127 MiB. Without a quota, one client that kept requesting lists silenced the daemon
/// for all others until it disconnected.
#[test]
fn unread_lists_harm_no_other_client() {
    const READ: usize = 300;
    let mut victim = Victim::new();
    let list_bytes = fill(&mut victim);
    assert!(list_bytes * READ > 300 << 20, "{list_bytes} bytes in a list");
    let attackers: Vec<Client> = (0..4).map(|_| Client::new(&victim.bus)).collect();
    let mut asked = Vec::new();
    for round in 0..READ {
        for attacker in &attackers {
            asked.push(attacker.send(client::list()));
            attacker.send(client::call(TOP, "org.storage.stratis3.Manager.r9", "EngineStateReport", ()));
        }
        if round % 30 == 0 {
            victim.is_fine();
        }
    }
    for _ in 0..500 {
        let name = victim.bystander.call(client::get(victim.filesystem(), FILESYSTEM, "Name"));
        assert_eq!(client::value(&name).as_deref(), Ok("home"));
    }
    victim.is_fine();

    // The client was only slow. It gets its lists, then the refusals, and may make calls again.
    let slow = &attackers[0];
    let replies: Vec<Message> = asked.iter().step_by(attackers.len()).map(|serial| slow.wait(*serial)).collect();
    let (refused, lists): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| client::error_name(reply).is_some());
    assert!(refused.iter().all(|reply| client::error_name(reply).as_deref() == Some("LimitsExceeded")));
    println!("of {READ} lists of {list_bytes} bytes one that does not read gets {}", lists.len());
    assert!(!lists.is_empty() && lists.len() * list_bytes <= 17 << 20);
    slow.call(client::ping());
    assert_eq!(client::paths(&slow.list()).len(), victim.objects.len());
    drop(attackers);
    victim.ends_well("lists that nobody reads");
}

/// The bytes of a connection's messages that the bus holds because their receivers do not read
/// them.
fn held_by_bus(client: &Client, name: &str) -> u32 {
    let (bus, statistics) = ("org.freedesktop.DBus", "org.freedesktop.DBus.Debug.Stats");
    let call = Message::new_method_call(bus, "/org/freedesktop/DBus", statistics, "GetConnectionStats").unwrap();
    let reply: PropMap = client.call(call.append1(name)).read1().unwrap();
    *prop_cast(&reply, "IncomingBytes").unwrap()
}

/// The bus charges the daemon for unread signals as well, and a signal cannot be refused. A
/// listener that never reads silences the daemon once `max_incoming_bytes` of signals are waiting.
/// When the listener disconnects, everything resumes without loss. The test always uses
/// dbus-daemon: dbus-broker disconnects such a receiver.
#[test]
fn nothing_is_lost_to_unread_signals() {
    const HELD_MAX: u32 = 2_000_000;
    let limits = Limits { held_bytes: Some(HELD_MAX), ..Limits::default() };
    let victim = Victim::on(Bus::of(Program::Daemon, limits));
    let listener = Client::new(&victim.bus).listens("");
    let writer = Client::new(&victim.bus);
    for round in 0..2000 {
        let mut call = client::rename_filesystem(victim.filesystem(), &format!("name{round}"));
        call.set_no_reply(true);
        writer.post(call);
    }
    writer.flush();
    while held_by_bus(&writer, client::NAME) < HELD_MAX {}
    let look = victim.bystander.send(client::get(victim.filesystem(), FILESYSTEM, "Name"));
    drop(listener);
    assert!(client::value(&victim.bystander.wait(look)).is_ok());
    writer.call(client::rename_filesystem(victim.filesystem(), "home"));
    victim.ends_well("signals that nobody reads");
}

/// Found in review: the bus disconnects the sender of a message that is too long, and the daemon
/// checked only the length of lists.
#[test]
fn too_long_messages_are_not_sent() {
    const MOST: u32 = 32_000;
    let bus = Bus::with_limits(Limits { message_bytes: Some(MOST), ..Limits::default() });
    let daemon = bus.logging_daemon("error", &[("STRATISD_DBUS_MAX_MESSAGE_SIZE", &MOST.to_string())]);
    let victim = Victim::of(bus, daemon);
    let attacker = Client::new(&victim.bus);
    let stopped_pools = || attacker.call(client::get(TOP, MANAGER, "StoppedPools"));
    assert_eq!(client::error_name(&stopped_pools()), None);
    // The properties of these pools together exceed the longest message. With more stopped pools
    // than this, the signal would not contain them.
    let names: Vec<String> = (10..26).map(|number| format!("{}{number}", "n".repeat(248))).collect();
    for name in &names {
        let devices: Vec<String> = (0..16).map(|device| format!("/dev/{}-{device}", &name[50..])).collect();
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        attacker.done(client::create_pool(name, &devices));
        attacker.done(client::stop_pool(name));
    }
    let line = victim.daemon.line_with("cannot send");
    assert!(line.contains("PropertiesChanged") && line.contains(&MOST.to_string()), "{line}");
    for _ in 0..10 {
        assert_eq!(client::error_name(&stopped_pools()).as_deref(), Some("LimitsExceeded"));
        for call in [
            client::get(TOP, MANAGER, "StoppedPools"),
            client::call(TOP, PROPERTIES, "GetAll", (MANAGER,)),
            client::call(TOP, MANAGER, "EngineStateReport", ()),
            client::call(TOP, "org.storage.stratis3.Report.r9", "GetReport", ("stopped_pools",)),
        ] {
            let text = refusal(&attacker, call);
            assert!(text.contains(&MOST.to_string()) && text.contains("max_message_size"), "{text}");
        }
        victim.is_fine();
    }
    for name in &names {
        let pool = &attacker.done(client::start_pool(name))[0];
        attacker.done(client::destroy_pool(pool));
    }
    assert_eq!(client::error_name(&stopped_pools()), None);
    drop(attacker);
    victim.ends_well("too long for the bus");
}

/// Calls that ask for no reply, as fast as possible: reads, and changes that queue for the pool.
#[test]
fn a_flood_from_one_client_is_survived() {
    let victim = Victim::new();
    let attacker = Client::new(&victim.bus);
    let without_answer = |mut call: Message| {
        call.set_no_reply(true);
        attacker.post(call);
    };
    for round in 0..100 {
        for _ in 0..100 {
            without_answer(client::get(victim.pool(), POOL, "Name"));
            without_answer(client::list());
            without_answer(client::rename_filesystem(victim.filesystem(), "home"));
            without_answer(client::create_filesystem(victim.pool(), "home"));
            without_answer(client::create_pool("p", &["/dev/a"]));
        }
        attacker.flush();
        if round % 20 == 0 {
            victim.is_fine();
        }
    }
    victim.is_fine();
    drop(attacker);
    victim.ends_well("a flood of 50000 calls");
}
