//! The threads of the bus with a real bus daemon, on a private socket.
//!
//! There is no engine: the test sends the tree writer the changes that a job would have made. Waits
//! are for messages, and their limit is reached only if a message is missing.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use dbus::{
    Message, MessageType,
    arg::{AppendAll, ArgType, Variant},
    channel::Channel,
};
use support::bus::Bus as PrivateBus;
pub(super) use support::bus::LIMIT;
use threads::{pulse::Pulse, stop::Stop};

use super::{entry, filesystem, is, name, plain, pool, pool_id, values, with_filesystem};
use crate::{
    bus::{
        Bus, Error, NAME,
        job::{Job, Reply},
        policy, rendering,
        wire::Value,
    },
    service::{Failure, Holder, Locks, Submit},
    view::{Change, PoolView, Update},
};

const TOP: &str = "/org/storage/stratis3";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
/// A private bus with the daemon's policy file.
pub(super) fn private_bus() -> PrivateBus {
    PrivateBus::with_policy(&policy::text())
}

/// Hands jobs to the test.
struct Jobs(Sender<Job>);

impl Submit<Reply> for Jobs {
    fn submit(&self, job: Job) {
        // The test may have ended already.
        let _ = self.0.send(job);
    }

    fn locks(&self) -> Locks {
        let holder = Holder { request: "a test".into(), access: "Write(p)".into(), age: Duration::from_millis(1500) };
        Locks { holders: vec![holder], ..Locks::default() }
    }
}

/// The daemon's side of the bus, with its threads running.
struct Server {
    updates: Option<Sender<Update<Reply>>>,
    jobs: Receiver<Job>,
    stop: Stop,
    reader: Option<JoinHandle<Result<(), Error>>>,
    others: Vec<JoinHandle<()>>,
}

impl Server {
    #[allow(clippy::disallowed_methods, reason = "a test, without the daemon's thread group")]
    fn start(bus: &PrivateBus, first: Vec<Change>) -> Server {
        let Bus { reader, lister, writer } = Bus::connect_to(&bus.address).unwrap();
        let (updates, received) = unbounded();
        let (job_sender, jobs) = unbounded();
        let stop = Stop::new();
        let held = Jobs(job_sender.clone());
        let others = vec![
            std::thread::spawn(move || writer.run(&received, &Pulse::default())),
            std::thread::spawn(move || lister.run(&held, &Pulse::default())),
        ];
        let server = Server { updates: Some(updates), jobs, stop: stop.clone(), reader: None, others };
        server.publish(first);
        reader.request_name().unwrap();
        let reader = std::thread::spawn(move || reader.run(&Jobs(job_sender), &stop, &Pulse::default()));
        Server { reader: Some(reader), ..server }
    }

    fn send(&self, changes: Vec<Change>, reply: Option<Reply>) {
        self.updates.as_ref().unwrap().send(Update { changes, reply }).unwrap();
    }

    /// Publishes the changes and waits until that is done.
    fn publish(&self, changes: Vec<Change>) {
        let (done, is_done) = unbounded();
        self.send(changes, Some(Reply::tell(move || done.send(()).unwrap())));
        is_done.recv_timeout(LIMIT).expect("the tree writer works");
    }

    /// The next job that the reader makes.
    fn job(&self) -> Job {
        self.jobs.recv_timeout(LIMIT).expect("the reader makes a job")
    }

    /// Ends as the daemon does, and returns the reader's result.
    fn end(mut self) -> Result<(), Error> {
        self.stop.trigger("the test is done");
        self.join()
    }

    fn join(&mut self) -> Result<(), Error> {
        let result = self.reader.take().unwrap().join().unwrap();
        self.updates = None;
        self.others.drain(..).for_each(|thread| thread.join().unwrap());
        result
    }
}

/// A client.
pub(super) struct Client {
    channel: Channel,
}

impl Client {
    pub(super) fn new(bus: &PrivateBus) -> Client {
        let mut channel = Channel::open_private(&bus.address).unwrap();
        channel.register().unwrap();
        Client { channel }
    }

    /// Subscribes to the signals of the service.
    fn listens(self) -> Client {
        self.listens_to(&format!("sender='{NAME}'"))
    }

    pub(super) fn listens_to(self, what: &str) -> Client {
        let bus = "org.freedesktop.DBus";
        let call = Message::new_method_call(bus, "/org/freedesktop/DBus", bus, "AddMatch").unwrap();
        let call = call.append1(format!("type='signal',{what}"));
        self.channel.send_with_reply_and_block(call, LIMIT).unwrap();
        self
    }

    fn message(path: &str, interface: &str, member: &str, arguments: impl AppendAll) -> Message {
        let mut message = Message::new_method_call(NAME, path, interface, member).unwrap();
        message.append_all(arguments);
        message
    }

    /// Sends a call and waits for its answer: the values, or the name and text of the error.
    fn call(
        &self,
        path: &str,
        interface: &str,
        member: &str,
        arguments: impl AppendAll,
    ) -> Result<Vec<Value>, (String, String)> {
        let message = Client::message(path, interface, member, arguments);
        match self.channel.send_with_reply_and_block(message, LIMIT) {
            Ok(reply) => Ok(values(&reply)),
            Err(error) => Err((error.name().unwrap().to_owned(), error.message().unwrap_or_default().to_owned())),
        }
    }

    /// Name of the error with which the call ends, without the common prefix.
    fn error(&self, path: &str, interface: &str, member: &str, arguments: impl AppendAll) -> String {
        let (name, text) = self.call(path, interface, member, arguments).expect_err(member);
        assert!(text.len() > 10, "{name} says nothing: {text}");
        name.replace("org.freedesktop.DBus.Error.", "")
    }

    fn get(&self, path: &str, interface: &str, property: &str) -> String {
        let interface = format!("org.storage.stratis3.{interface}");
        plain(&self.call(path, PROPERTIES, "Get", (interface, property)).unwrap()[0])
    }

    /// The next message from the service.
    pub(super) fn next(&self) -> Message {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            match self.channel.blocking_pop_message(LIMIT).unwrap() {
                Some(message) if message.sender().as_deref() == Some("org.freedesktop.DBus") => {}
                Some(message) => return message,
                None => {}
            }
        }
        panic!("no message came");
    }

    fn list(&self) -> Value {
        self.call(TOP, MANAGER, "GetManagedObjects", ()).unwrap().remove(0)
    }
}

fn at(n: u64) -> String {
    format!("{TOP}/{n}")
}

/// A pool with many filesystems.
fn large(filesystems: u64) -> PoolView {
    (0..filesystems).fold(pool(1, "p"), |pool, n| with_filesystem(pool, 10_000 + n))
}

#[test]
fn reads_are_answered_and_mistakes_get_their_error() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![is(&with_filesystem(pool(1, "p"), 5))]);
    let client = Client::new(&bus);
    let ours = |name: &str| format!("org.storage.stratis3.{name}");

    assert_eq!(client.get(TOP, "Manager.r0", "Version"), "'3.9.2'");
    assert_eq!(client.get(&at(0), "pool.r3", "Name"), "'p'");
    assert_eq!(client.get(&at(1), "filesystem.r9", "Devnode"), "'/dev/stratis/p/fs5'");
    assert_eq!(client.get(&at(1), "filesystem.r9", "Created"), "'2026-11-21T02:15:03Z'");
    assert_eq!(client.get(&at(2), "blockdev.r0", "Pool"), at(0));

    // GetAll from the kept bytes gives the same as the list, also for the top object.
    let list = client.list();
    for (n, kind) in [(0, "pool"), (1, "filesystem"), (2, "blockdev")] {
        for revision in 0..10 {
            let interface = ours(&format!("{kind}.r{revision}"));
            let all = client.call(&at(n), PROPERTIES, "GetAll", (&interface,)).unwrap().remove(0);
            assert_eq!(&all, entry(entry(&list, &at(n)), &interface));
        }
    }
    let all = client.call(TOP, PROPERTIES, "GetAll", (ours("Manager.r9"),)).unwrap();
    assert_eq!(plain(&all[0]), "{'Version'='3.9.2' 'StoppedPools'={}}");
    assert_eq!(plain(&client.call(TOP, PROPERTIES, "GetAll", (ours("Report.r0"),)).unwrap()[0]), "{}");
    // The interfaces of the D-Bus specification have no properties. Only the top object is an
    // object manager.
    for (path, interface) in [(TOP, MANAGER), (TOP, PROPERTIES), (&at(0), PROPERTIES)] {
        assert_eq!(plain(&client.call(path, PROPERTIES, "GetAll", (interface,)).unwrap()[0]), "{}");
        assert_eq!(client.error(path, PROPERTIES, "Get", (interface, "Name")), "UnknownProperty");
    }
    assert_eq!(client.error(&at(0), PROPERTIES, "GetAll", (MANAGER,)), "UnknownInterface");

    for path in ["/", "/org", "/org/storage", TOP, &at(0), &at(1), &at(2)] {
        let xml = plain(&client.call(path, "org.freedesktop.DBus.Introspectable", "Introspect", ()).unwrap()[0]);
        assert!(xml.contains("org.freedesktop.DBus.Properties"), "{path}: {xml}");
    }
    assert_eq!(client.call(&at(999), "org.freedesktop.DBus.Peer", "Ping", ()), Ok(vec![]));

    let report = client.call(TOP, &ours("Manager.r5"), "EngineStateReport", ()).unwrap();
    assert!(plain(&report[0]).contains("\"name\":\"p\""), "{report:?}");
    assert_eq!(report[1..], [Value::U16(0), Value::str("Ok")]);
    let report = client.call(TOP, &ours("Report.r9"), "GetReport", ("nonsense",)).unwrap();
    assert_eq!(report[..2], [Value::str(""), Value::U16(1)]);
    // Surplus arguments are ignored.
    let report = client.call(TOP, &ours("Manager.r9"), "EngineStateReport", ("x",)).unwrap();
    assert_eq!(report[1..], [Value::U16(0), Value::str("Ok")]);

    let pool9 = ours("pool.r9");
    assert_eq!(client.error(&at(9), PROPERTIES, "Get", (&pool9, "Name")), "UnknownObject");
    assert_eq!(client.error(&at(9), "org.freedesktop.DBus.Introspectable", "Introspect", ()), "UnknownObject");
    assert_eq!(client.error("/org/storage/stratis3/01", PROPERTIES, "Get", (&pool9, "Name")), "UnknownObject");
    assert_eq!(client.error(&at(0), PROPERTIES, "Get", (&pool9, "KeyDescription")), "UnknownProperty");
    assert_eq!(client.error(&at(0), PROPERTIES, "Get", (ours("pool.r10"), "Name")), "UnknownInterface");
    assert_eq!(client.error(&at(1), PROPERTIES, "Get", (&pool9, "Name")), "UnknownInterface");
    assert_eq!(client.error(&at(0), PROPERTIES, "GetAll", ("",)), "InvalidArgs");
    assert_eq!(client.error(&at(0), PROPERTIES, "Get", (&pool9,)), "InvalidArgs");
    assert_eq!(client.error(&at(0), PROPERTIES, "Set", (&pool9, "Name", Variant("x"))), "PropertyReadOnly");
    assert_eq!(client.error(&at(0), PROPERTIES, "Set", (&pool9, "Nope", Variant("x"))), "UnknownProperty");
    assert_eq!(client.error(&at(0), PROPERTIES, "Set", (&pool9, "FsLimit", Variant(5u32))), "InvalidArgs");
    assert_eq!(client.error(&at(0), &pool9, "Frobnicate", ()), "UnknownMethod");
    assert_eq!(client.error(TOP, &pool9, "SetName", ("x",)), "UnknownInterface");
    assert_eq!(client.error(&at(0), &pool9, "SetName", (5u32,)), "InvalidArgs");
    assert_eq!(client.error(&at(0), &pool9, "SetName", ()), "InvalidArgs");
    assert_eq!(client.error(&at(0), MANAGER, "GetManagedObjects", ()), "UnknownInterface");
    assert_eq!(client.error("/", MANAGER, "GetManagedObjects", ()), "UnknownInterface");
    server.end().unwrap();
}

/// A call that needs the engine: the job arrives as requested, and signals come before the reply.
#[test]
fn signals_of_a_change_come_before_its_reply() {
    let bus = private_bus();
    let old = pool(1, "p");
    let server = Server::start(&bus, vec![is(&old)]);
    let client = Client::new(&bus).listens();
    let serial =
        client.channel.send(Client::message(&at(0), "org.storage.stratis3.pool.r2", "SetName", ("q",))).unwrap();
    let job = server.job();
    assert_eq!(job.label, "pool.r2.SetName");
    let new = with_filesystem(PoolView { name: name("q"), ..old }, 5);
    server.send(vec![is(&new)], (job.on_failure)(Failure::Panicked));

    let mut seen = Vec::new();
    loop {
        let message = client.next();
        if message.msg_type() != MessageType::Signal {
            assert_eq!(message.get_reply_serial(), Some(serial));
            let values = values(&message);
            assert_eq!(plain(&values[0]), "(false '')");
            assert_eq!(values[1], Value::U16(1));
            break;
        }
        seen.push(message.member().unwrap().to_string());
    }
    let mut expected = vec!["InterfacesAdded"];
    expected.extend(["PropertiesChanged"; 10]);
    assert_eq!(seen, expected);
    assert_eq!(client.get(&at(0), "pool.r0", "Name"), "'q'");
    server.end().unwrap();
}

/// P3 from any connection: the next list after a reply contains the new object. After the reply
/// that removes the object, the list no longer contains it.
#[test]
fn what_was_replied_is_in_the_next_list() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![]);
    let (caller, other) = (Client::new(&bus), Client::new(&bus));
    for n in 1..=200u64 {
        let objects = |list: &Value| match list {
            Value::Dict(_, entries) => entries.len(),
            other => panic!("{other:?}"),
        };
        server.publish(vec![is(&pool(n, "p"))]);
        assert_eq!(objects(&other.list()), 2);
        server.publish(vec![Change::PoolGone(pool_id(n))]);
        assert_eq!(objects(&caller.list()), 0);
    }
    server.end().unwrap();
}

/// The reader waits without holding the library's I/O path: a message of another thread is sent at
/// once although the socket has no input. Nothing is lost when both threads are busy. If a message
/// stays in the queue, the test reaches its limit.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test")]
fn writer_and_reader_never_deadlock() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![is(&pool(1, "p"))]);
    let (listener, other) = (Client::new(&bus).listens(), Client::new(&bus));
    // First with an idle reader: no client sends anything before the change, so nothing makes the
    // reader look at its socket.
    for n in 0..50 {
        server.send(vec![is(&PoolView { fs_limit: n, ..pool(1, "p") })], None);
        assert_eq!(listener.next().member().as_deref(), Some("PropertiesChanged"));
        // A read returns the value of the signal at once.
        assert_eq!(other.get(&at(0), "pool.r9", "FsLimit"), n.to_string());
        for _ in 2..=9 {
            assert_eq!(listener.next().member().as_deref(), Some("PropertiesChanged"));
        }
    }
    // Then with a busy reader.
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let client = Client::new(&bus);
            std::thread::spawn(move || (0..500).for_each(|_| drop(client.get(&at(0), "pool.r9", "FsLimit"))))
        })
        .collect();
    for n in 100..600 {
        server.send(vec![is(&PoolView { fs_limit: n, ..pool(1, "p") })], None);
    }
    for n in 100..600 {
        for _ in 1..=9 {
            assert!(plain(&values(&listener.next())[1]).contains(&format!("={n}}}")));
        }
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    server.end().unwrap();
}

/// Lists for several clients while filesystems are created and destroyed. Each list is one version
/// (the number of filesystems equals the fs_limit that the pool shows), and no list contradicts an
/// earlier signal.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test")]
fn lists_are_neither_torn_nor_outdated() {
    let bus = private_bus();
    let state = |n: u64| PoolView { fs_limit: n, ..large(n) };
    let server = Arc::new(Server::start(&bus, vec![is(&state(0))]));
    let rounds = 300;
    let writer = {
        let server = Arc::clone(&server);
        std::thread::spawn(move || (1..=rounds).for_each(|n| server.publish(vec![is(&state(n))])))
    };
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let client = Client::new(&bus).listens();
            std::thread::spawn(move || {
                let (mut added, mut lists) = (0, 0);
                while added < rounds {
                    let call = Client::message(TOP, MANAGER, "GetManagedObjects", ());
                    client.channel.send(call).unwrap();
                    loop {
                        let message = client.next();
                        match message.member().as_deref() {
                            Some("InterfacesAdded") => added += 1,
                            Some(_) => {}
                            None => {
                                let list = values(&message).remove(0);
                                let Value::Dict(_, objects) = &list else { panic!("{list:?}") };
                                let filesystems = objects.len() as u64 - 2;
                                let properties = entry(entry(&list, &at(0)), "org.storage.stratis3.pool.r9");
                                assert_eq!(plain(entry(properties, "FsLimit")), filesystems.to_string());
                                // The client may have subscribed in the middle of the changes.
                                assert!(filesystems >= added, "{filesystems} in the list, {added} by signals");
                                added = filesystems;
                                lists += 1;
                                break;
                            }
                        }
                    }
                }
                lists
            })
        })
        .collect();
    writer.join().unwrap();
    for client in clients {
        assert!(client.join().unwrap() > 0);
    }
    Arc::into_inner(server).unwrap().end().unwrap();
}

/// Renaming a pool with ten thousand filesystems kept all other clients from their signals and
/// replies for 1.7 s.
#[test]
fn large_change_holds_up_its_own_pool_only() {
    const FILESYSTEMS: usize = 500;
    let bus = private_bus();
    let named = |text: &str| PoolView { name: name(text), ..large(FILESYSTEMS as u64) };
    let server = Server::start(&bus, vec![is(&named("first")), is(&pool(2, "q"))]);
    let client = Client::new(&bus).listens();
    for change in [is(&named("second")), is(&named("third")), is(&pool(2, "other"))] {
        server.send(vec![change], None);
    }
    // Signals of the newest revisions: new names of pools, and changed links of filesystems.
    let mut heard: Vec<String> = Vec::new();
    while heard.len() < 3 + 2 * FILESYSTEMS {
        let message = client.next();
        let arguments = values(&message);
        match &arguments[..] {
            [Value::Str(interface), changed, _] if interface.ends_with(".pool.r9") => {
                heard.push(plain(entry(changed, "Name")));
            }
            [Value::Str(interface), _, Value::Array(..)] if interface.ends_with(".filesystem.r9") => {
                heard.push("link".to_owned());
            }
            _ => {}
        }
    }
    let place = |text: &str| heard.iter().position(|word| word == text).unwrap();
    let links_before = |place: usize| heard[..place].iter().filter(|word| *word == "link").count();
    assert_eq!((place("'second'"), links_before(place("'third'"))), (0, FILESYSTEMS));
    assert!(links_before(place("'other'")) < FILESYSTEMS, "other pools do not wait");
    // A read sees the newest version.
    assert_eq!(client.get(&at(0), "pool.r9", "Name"), "'third'");
    server.end().unwrap();
}

/// A list that is too long for the bus is answered with an error and does not end the connection. A
/// large list that fits arrives, and other clients are answered while it is made and sent.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test")]
fn too_long_lists_are_errors_long_ones_arrive() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![is(&large(7_000))]);
    let lists: Vec<_> = (0..3)
        .map(|_| {
            let client = Client::new(&bus);
            std::thread::spawn(move || {
                let call = Client::message(TOP, MANAGER, "GetManagedObjects", ());
                let reply = client.channel.send_with_reply_and_block(call, LIMIT).unwrap();
                // The values are only counted: one message has more values than the daemon ever
                // decodes.
                let mut entries = reply.iter_init().recurse(ArgType::Array).unwrap();
                let mut count = 0;
                while entries.recurse(ArgType::DictEntry).is_some() {
                    count += 1;
                    entries.next();
                }
                count
            })
        })
        .collect();
    let client = Client::new(&bus);
    while !lists.iter().all(|list| list.is_finished()) {
        assert_eq!(client.get(&at(0), "pool.r0", "Name"), "'p'");
    }
    for list in lists {
        assert_eq!(list.join().unwrap(), 7_002);
    }
    server.publish(vec![is(&large(10_000))]);
    let (error, text) = client.call(TOP, MANAGER, "GetManagedObjects", ()).unwrap_err();
    assert_eq!(error, "org.freedesktop.DBus.Error.LimitsExceeded");
    assert!(text.contains(crate::bus::MESSAGE_MAX_VARIABLE), "{text}");
    // The device keeps the path that it got after the first filesystems.
    assert_eq!(client.get(&at(7_001), "blockdev.r0", "Tier"), "0");
    server.end().unwrap();
}

/// A client that asks for list after list and never reads them does not keep other clients from
/// their answers.
#[test]
fn a_client_that_never_reads_delays_no_other() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![is(&large(300))]);
    let deaf = Client::new(&bus);
    for _ in 0..60 {
        deaf.channel.send(Client::message(TOP, MANAGER, "GetManagedObjects", ())).unwrap();
    }
    deaf.channel.flush();
    let client = Client::new(&bus);
    for n in 0..100 {
        server.publish(vec![is(&PoolView { fs_limit: n, ..large(300) })]);
        assert_eq!(client.get(&at(0), "pool.r9", "FsLimit"), n.to_string());
    }
    drop(deaf);
    assert_eq!(client.get(&at(0), "pool.r0", "Name"), "'p'");
    server.end().unwrap();
}

#[test]
fn name_that_another_has_is_refused() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![]);
    let second = Bus::connect_to(&bus.address).unwrap();
    assert!(matches!(second.reader.request_name(), Err(Error::Name { name: NAME, .. })));
    server.end().unwrap();
}

/// Any client can send a signal of that name; only the signal of the bus itself counts.
#[test]
fn forged_loss_of_the_name_is_ignored() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![]);
    let client = Client::new(&bus);
    let mut forged =
        Message::new_signal("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameLost").unwrap().append1(NAME);
    forged.set_destination(Some(NAME.into()));
    client.channel.send(forged).unwrap();
    assert_eq!(client.get(TOP, "Manager.r0", "Version"), "'3.9.2'");
    server.end().unwrap();
}

#[test]
fn end_of_the_bus_ends_the_reader() {
    let mut bus = private_bus();
    let mut server = Server::start(&bus, vec![]);
    bus.kill();
    assert!(matches!(server.join(), Err(Error::Lost)));
}

/// The daemon refuses calls that were under way when it stopped, and their callers get that answer.
#[test]
fn stop_lets_refusals_out() {
    let bus = private_bus();
    let server = Server::start(&bus, vec![is(&pool(1, "p"))]);
    let client = Client::new(&bus);
    client.channel.send(Client::message(&at(0), "org.storage.stratis3.pool.r0", "SetName", ("q",))).unwrap();
    let job = server.job();
    server.send(vec![], (job.on_failure)(Failure::Stopping));
    server.end().unwrap();
    let values = values(&client.next());
    assert_eq!(values[1], Value::U16(1));
    assert!(plain(&values[2]).contains("stopping"));
}

#[test]
fn a_missing_bus_is_an_error() {
    assert!(matches!(Bus::connect_to("unix:path=/nonexistent/socket"), Err(Error::NoBus(_))));
}

/// The size of one more filesystem equals that of its entry. The limits in the documentation are
/// based on these sizes.
#[test]
fn a_listed_filesystem_takes_four_kilobytes() {
    let tree = super::tree(vec![is(&large(1))]);
    let bytes = rendering::entry(tree.objects().nth(1).unwrap()).added().len();
    assert_eq!(
        tree.objects().nth(1).unwrap().state.id(),
        crate::bus::tree::Id::Filesystem(pool_id(1), filesystem(10_000).uuid)
    );
    assert!((3_000..5_000).contains(&bytes), "{bytes}");
}
