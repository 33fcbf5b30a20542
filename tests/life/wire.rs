//! The life of a pool over the bus, against `stratisd --sim`: entries 193–200, 251–254 and 314–361
//! of `docs/spec/dbus/dbus-behaviours.md`, as far as they concern unencrypted pools. Error texts
//! are for people, so the tests do not compare them word by word. All waits are for messages; a
//! limit only makes a test with a lost message fail.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use dbus::{
    Message, MessageType, Path,
    arg::{AppendAll, PropMap, ReadAll, RefArg, Variant},
    channel::Channel,
};
use support::{bus::Bus, daemon::Daemon};

const HANG: Duration = Duration::from_secs(60);
const SERVICE: &str = "org.storage.stratis3";
const TOP: &str = "/org/storage/stratis3";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const NONE: ((bool, (bool, u32)), (bool, u32)) = ((false, (false, 0)), (false, 0));

/// A daemon on a private bus, and a client with the signals that it has received.
struct World {
    client: Channel,
    signals: Vec<Message>,
    daemon: Daemon,
    _bus: Bus,
}

impl World {
    fn start() -> World {
        let bus = Bus::start();
        let daemon = bus.daemon(&[]);
        let mut client = Channel::open_private(&bus.address).unwrap();
        client.register().unwrap();
        let mut world = World { client, signals: Vec::new(), daemon, _bus: bus };
        let mut watch =
            Message::new_method_call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch").unwrap();
        watch.append_all(("type='signal',sender='org.storage.stratis3'",));
        let _: () = world.reply(watch).unwrap();
        world
    }

    /// Sends a call and waits for its reply. Keeps signals that arrive before the reply.
    fn reply<R: ReadAll>(&mut self, call: Message) -> Result<R, (String, String)> {
        let serial = self.client.send(call).unwrap();
        let until = Instant::now() + HANG;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer came");
            self.client.read_write(Some(left)).unwrap();
            while let Some(message) = self.client.pop_message() {
                if message.msg_type() == MessageType::Signal {
                    self.signals.push(message);
                } else if message.get_reply_serial() == Some(serial) {
                    return match message.msg_type() {
                        MessageType::Error => {
                            let error = message.iter_init().get::<&str>().unwrap_or_default().to_owned();
                            Err((error_name(&message), error))
                        }
                        _ => Ok(message.read_all().unwrap()),
                    };
                }
            }
        }
    }

    fn call<R: ReadAll>(&mut self, path: &str, interface: &str, method: &str, arguments: impl AppendAll) -> R {
        let interface = format!("{SERVICE}.{interface}");
        let mut call = Message::new_method_call(SERVICE, path, interface, method).unwrap();
        call.append_all(arguments);
        self.reply(call).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    fn get(&mut self, path: &str, interface: &str, property: &str) -> Box<dyn RefArg> {
        let mut call = Message::new_method_call(SERVICE, path, PROPERTIES, "Get").unwrap();
        call.append_all((format!("{SERVICE}.{interface}"), property));
        let (value,): (Variant<Box<dyn RefArg>>,) = self.reply(call).unwrap();
        value.0
    }

    fn set(&mut self, path: &str, revision: u8, scheduled: bool) -> Result<(), (String, String)> {
        let mut call = Message::new_method_call(SERVICE, path, PROPERTIES, "Set").unwrap();
        call.append_all((format!("{SERVICE}.filesystem.r{revision}"), "MergeScheduled", Variant(scheduled)));
        self.reply(call)
    }

    /// Takes the signals that have arrived since the last call, as `member path interface`.
    fn take_signals(&mut self) -> Vec<String> {
        let tell = |message: Message| {
            let (path, member) = (message.path().unwrap().to_string(), message.member().unwrap().to_string());
            let first = message.iter_init().get::<&str>().unwrap_or_default().replace("org.storage.stratis3.", "");
            format!("{member} {} {first}", path.replace(TOP, "~"))
        };
        self.signals.drain(..).map(tell).collect()
    }

    fn create_pool(&mut self, name: &str, devices: &[&str]) -> String {
        type Reply = ((bool, (Path<'static>, Vec<Path<'static>>)), u16, String);
        type Slot = (bool, u32);
        let keys: Vec<(Slot, String)> = Vec::new();
        let clevis: Vec<(Slot, String, String)> = Vec::new();
        let integrity = ((false, 0_u64), (false, ""), (false, false));
        let arguments = (name, devices, keys, clevis, integrity.0, integrity.1, integrity.2);
        let (created, code, text): Reply = self.call(TOP, "Manager.r9", "CreatePool", arguments);
        assert_eq!(code, 0, "{text}");
        created.1.0.to_string()
    }

    fn uuid_of(&mut self, pool: &str) -> String {
        self.get(pool, "pool.r9", "Uuid").as_str().unwrap().to_owned()
    }

    fn create_filesystem(&mut self, pool: &str, name: &str) -> String {
        type Reply = ((bool, Vec<(Path<'static>, String)>), u16, String);
        let (created, code, text): Reply =
            self.call(pool, "pool.r0", "CreateFilesystems", (vec![(name, (true, "1073741824"))],));
        assert_eq!(code, 0, "{text}");
        created.1[0].0.to_string()
    }

    fn snapshot(&mut self, pool: &str, origin: &str, name: &str) -> String {
        let origin = Path::from(origin.to_owned());
        let (made, code, text): ((bool, Path<'static>), u16, String) =
            self.call(pool, "pool.r9", "SnapshotFilesystem", (origin, name));
        assert_eq!(code, 0, "{text}");
        made.1.to_string()
    }

    fn stop(&mut self, id: &str, id_type: &str) -> Stopped {
        self.call(TOP, "Manager.r9", "StopPool", (id, id_type))
    }

    fn start_pool(&mut self, id: &str, id_type: &str) -> Started {
        self.call(TOP, "Manager.r9", "StartPool", (id, id_type, NONE.0, no_descriptor(), false))
    }

    fn stopped_pools(&mut self, revision: u8) -> Vec<(String, Vec<String>)> {
        let mut call = Message::new_method_call(SERVICE, TOP, PROPERTIES, "Get").unwrap();
        call.append_all((format!("{SERVICE}.Manager.r{revision}"), "StoppedPools"));
        let (value,): (Variant<std::collections::HashMap<String, PropMap>>,) = self.reply(call).unwrap();
        let mut pools: Vec<_> = value
            .0
            .into_iter()
            .map(|(uuid, pool)| {
                let mut keys: Vec<String> = pool.into_keys().collect();
                keys.sort();
                (uuid, keys)
            })
            .collect();
        pools.sort();
        pools
    }

    /// The number of descriptors that the daemon has open.
    fn open_descriptors(&self) -> usize {
        self.daemon.descriptors()
    }
}

type Stopped = ((bool, String), u16, String);
type Started = ((bool, (Path<'static>, Vec<Path<'static>>, Vec<Path<'static>>)), u16, String);

fn error_name(message: &Message) -> String {
    // The crate gives the name of an error only with the whole error.
    let mut copy = Message::duplicate(message).unwrap();
    let name = copy.as_result().err().and_then(|error| error.name().map(str::to_owned));
    name.unwrap_or_default()
}

/// A descriptor that the daemon must not read, as the flag says. Clients have to attach one in any
/// case.
fn no_descriptor() -> (bool, File) {
    (false, File::open("/dev/null").unwrap())
}

fn is_filler(started: &Started) -> bool {
    let ((changed, (path, devices, filesystems)), ..) = started;
    !changed && &**path == "/" && devices.is_empty() && filesystems.is_empty()
}

#[test]
fn pools_stop_and_start() {
    let mut world = World::start();
    let pool = world.create_pool("p1", &["/dev/a", "/dev/b"]);
    let uuid = world.uuid_of(&pool);
    world.create_filesystem(&pool, "fs1");
    world.create_filesystem(&pool, "fs2");

    // 314–317
    let unknown = "11111111222233334444555566667777";
    for (id, id_type, what) in [
        ("p1", "nick", "nick"),
        ("none", "name", "name none"),
        ("none", "uuid", "none"),
        (unknown, "uuid", "11111111-2222"),
    ] {
        let (result, code, text) = world.stop(id, id_type);
        assert_eq!((result, code), ((false, String::new()), 1));
        assert!(text.contains(what), "{text}");
    }
    // 318
    world.take_signals();
    assert_eq!(world.stop("p1", "name"), ((true, uuid.clone()), 0, "Ok".to_owned()));
    let signals = world.take_signals();
    let of = |kind: &str| signals.iter().filter(|signal| signal.contains(kind)).count();
    assert_eq!(of("InterfacesRemoved"), 5, "{signals:?}");
    assert_eq!(of("PropertiesChanged ~ Manager.r"), 8, "{signals:?}");
    assert!(signals[..5].iter().all(|signal| signal.contains("InterfacesRemoved")), "{signals:?}");
    // 319–321
    assert_eq!(world.stop("p1", "name"), ((false, String::new()), 0, "Ok".to_owned()));
    let keys = |keys: &[&str]| vec![(uuid.clone(), keys.iter().map(|key| (*key).to_owned()).collect())];
    assert_eq!(world.stopped_pools(2), keys(&["devs", "name"]));
    assert_eq!(world.stopped_pools(9), keys(&["devs", "features", "metadata_version", "name"]));
    // 322, 323
    let other = world.create_pool("p1", &["/dev/other"]);
    let other_uuid = world.uuid_of(&other);
    let destroyed: Stopped = world.call(TOP, "Manager.r9", "DestroyPool", (Path::from(other),));
    assert_eq!(destroyed.0, (true, other_uuid));
    // 324–326
    for (id, id_type) in [("p1", "nick"), ("p1", "uuid"), ("none", "name")] {
        let refused = world.start_pool(id, id_type);
        assert!(is_filler(&refused) && refused.1 == 1, "{refused:?}");
    }
    // 327, 328, in the form of each revision
    let with_method: Started =
        world.call(TOP, "Manager.r9", "StartPool", (&*uuid, "uuid", (true, (false, 0_u32)), no_descriptor(), false));
    assert!(is_filler(&with_method) && with_method.1 == 1, "{with_method:?}");
    let passphrase = (true, File::open("/dev/null").unwrap());
    let with_passphrase: Started = world.call(TOP, "Manager.r8", "StartPool", (&*uuid, "uuid", NONE.0, passphrase));
    assert!(is_filler(&with_passphrase) && with_passphrase.1 == 1, "{with_passphrase:?}");
    for method in ["keyring", "Keyring", "clevis", "Clevis", "any", "Any", "bogus"] {
        let refused: Started = world.call(TOP, "Manager.r2", "StartPool", (&*uuid, (true, method)));
        assert!(is_filler(&refused) && refused.1 == 1, "{refused:?}");
        assert_eq!(refused.2.contains("invalid unlock method"), method == "bogus", "{refused:?}");
        let unlocked: ((bool, Vec<String>), u16, String) =
            world.call(TOP, "Manager.r0", "UnlockPool", (&*uuid, method));
        assert_eq!((unlocked.0, unlocked.1), ((false, vec![]), 1));
    }
    assert_eq!(world.stopped_pools(9).len(), 1, "it is still stopped");
    // 329
    world.take_signals();
    let hyphenated = uuid::Uuid::parse_str(&uuid).unwrap().hyphenated().to_string();
    let ((changed, (path, devices, filesystems)), code, text) = world.start_pool(&hyphenated, "uuid");
    assert_eq!((changed, devices.len(), filesystems.len(), code), (true, 2, 2, 0), "{text}");
    assert_eq!(world.get(&path, "pool.r0", "Name").as_str(), Some("p1"));
    for device in &devices {
        assert_eq!(world.get(device, "blockdev.r0", "Pool").as_str(), Some(&*path));
    }
    for filesystem in &filesystems {
        assert_eq!(world.get(filesystem, "filesystem.r0", "Pool").as_str(), Some(&*path));
    }
    let signals = world.take_signals();
    let of = |kind: &str| signals.iter().filter(|signal| signal.contains(kind)).count();
    assert_eq!((of("InterfacesAdded"), of("PropertiesChanged ~ Manager.r")), (5, 8), "{signals:?}");
    assert!(signals[..5].iter().all(|signal| signal.contains("InterfacesAdded")), "{signals:?}");
    assert_eq!(world.stopped_pools(9), vec![]);
    // 330
    let again = world.start_pool(&uuid, "uuid");
    assert!(is_filler(&again) && again.1 == 0, "{again:?}");

    // 337, 338, and older forms of the start
    let (refused, code, _): Stopped = world.call(TOP, "Manager.r2", "StopPool", (Path::from(format!("{TOP}/999")),));
    assert_eq!((refused, code), ((false, String::new()), 1));
    let mut path = path;
    for revision in [2_u8, 3, 4, 7, 8, 9] {
        let stopped: Stopped = match revision {
            ..=5 => world.call(TOP, &format!("Manager.r{revision}"), "StopPool", (path.clone(),)),
            _ => world.call(TOP, &format!("Manager.r{revision}"), "StopPool", ("p1", "name")),
        };
        assert_eq!(stopped, ((true, uuid.clone()), 0, "Ok".to_owned()));
        let manager = format!("Manager.r{revision}");
        let started: Started = match revision {
            ..=3 => world.call(TOP, &manager, "StartPool", (&*uuid, (false, "whatever"))),
            4..=7 => world.call(TOP, &manager, "StartPool", ("p1", "name", (false, ""))),
            8 => world.call(TOP, &manager, "StartPool", ("p1", "name", NONE.0, no_descriptor())),
            _ => world.call(TOP, &manager, "StartPool", ("p1", "name", NONE.0, no_descriptor(), false)),
        };
        assert!(started.0.0 && started.1 == 0, "r{revision}: {started:?}");
        path = started.0.1.0;
    }

    // 352
    let (code, text): (u16, String) = world.call(TOP, "Manager.r9", "RefreshState", ());
    assert_eq!((code, &*text), (0, "Ok"));
    assert_eq!(world.get(&path, "pool.r9", "Name").as_str(), Some("p1"), "objects are still there");
    // 355
    let refused: Stopped = world.call(TOP, "Manager.r9", "DestroyPool", (path,));
    assert_eq!((refused.0, refused.1), ((false, String::new()), 1));
}

#[test]
fn descriptors_are_closed() {
    let mut world = World::start();
    world.create_pool("p", &["/dev/a"]);
    // The first call may open descriptors that stay open.
    world.start_pool("p", "name");
    let before = world.open_descriptors();
    for announced in [true, false, true] {
        let key = (announced, File::open("/dev/null").unwrap());
        let refused: Started = world.call(TOP, "Manager.r9", "StartPool", ("p", "name", NONE.0, key, false));
        assert_eq!(refused.1, u16::from(announced), "{refused:?}");
    }
    // A call that is refused before it runs closes its descriptor, too.
    let key = (true, File::open("/dev/null").unwrap());
    let refused: Started = world.call(TOP, "Manager.r9", "StartPool", ("p", "nick", NONE.0, key, false));
    assert_eq!(refused.1, 1);
    // This call is handled after the others, so none of them is under way any more.
    world.stopped_pools(9);
    assert!(world.open_descriptors() <= before, "descriptors were left open");
}

#[test]
fn reverts_are_ordered_and_carried_out() {
    let mut world = World::start();
    let pool = world.create_pool("p", &["/dev/a"]);
    let fs2 = world.create_filesystem(&pool, "fs2");
    let sn1 = world.snapshot(&pool, &fs2, "sn1");
    let sn2 = world.snapshot(&pool, &fs2, "sn2");
    let sn11 = world.snapshot(&pool, &sn1, "sn11");
    // 193–197
    let (name, text) = world.set(&fs2, 9, true).unwrap_err();
    assert_eq!(name, "org.freedesktop.DBus.Error.Failed");
    assert!(text.contains("fs2"), "{text}");
    assert_eq!(world.set(&fs2, 7, false).unwrap_err().0, "org.freedesktop.DBus.Error.Failed");
    world.take_signals();
    world.set(&sn1, 9, true).unwrap();
    let signals = world.take_signals();
    let path = sn1.replace(TOP, "~");
    let expected = [7, 8, 9].map(|revision| format!("PropertiesChanged {path} filesystem.r{revision}"));
    assert_eq!(signals, expected, "one signal for each revision that has it");
    world.set(&sn1, 8, true).unwrap();
    assert_eq!(world.take_signals(), Vec::<String>::new(), "nothing has changed");
    assert!(world.set(&sn2, 9, true).is_err());
    assert!(world.set(&sn11, 9, true).is_err());
    assert_eq!(world.take_signals(), Vec::<String>::new());
    // 198, 199
    for doomed in [&sn1, &fs2] {
        let refused: ((bool, Vec<String>), u16, String) =
            world.call(&pool, "pool.r9", "DestroyFilesystems", (vec![Path::from(doomed.clone())],));
        assert_eq!((refused.0, refused.1), ((false, vec![]), 1));
    }
    // 200
    world.set(&sn1, 9, false).unwrap();
    assert_eq!(world.take_signals().len(), 3);
    world.set(&sn1, 9, true).unwrap();
    let uuid = world.uuid_of(&pool);
    world.stop(&uuid, "uuid");
    let ((_, (_, _, filesystems)), code, text) = world.start_pool(&uuid, "uuid");
    assert_eq!((filesystems.len(), code), (3, 0), "{text}");
    let mut names: Vec<String> =
        filesystems.iter().map(|path| world.get(path, "filesystem.r9", "Name").as_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["fs2", "sn11", "sn2"]);
}

#[test]
fn metadata_and_reports_can_be_read() {
    let mut world = World::start();
    let pool = world.create_pool("p1", &["/dev/a"]);
    world.create_filesystem(&pool, "fs1");
    let json = |(text, code, message): (String, u16, String)| -> serde_json::Value {
        assert_eq!((code, &*message), (0, "Ok"));
        serde_json::from_str(&text).unwrap()
    };
    // 251–254
    for current in [true, false] {
        let metadata = json(world.call(&pool, "pool.r7", "Metadata", (current,)));
        assert_eq!(metadata["name"], "p1");
        let one = json(world.call(&pool, "pool.r9", "FilesystemMetadata", ((true, "fs1"), current)));
        assert_eq!(one.as_object().unwrap().values().next().unwrap()["name"], "fs1");
        let all = json(world.call(&pool, "pool.r9", "FilesystemMetadata", ((false, ""), current)));
        assert_eq!(all, one);
        let none: (String, u16, String) = world.call(&pool, "pool.r8", "FilesystemMetadata", ((true, "nope"), current));
        assert_eq!(none, ("{}".to_owned(), 0, "Ok".to_owned()));
    }
    // 358–361
    let uuid = world.uuid_of(&pool);
    for unknown in ["foo", "engine_state_report"] {
        let (text, code, _): (String, u16, String) = world.call(TOP, "Report.r0", "GetReport", (unknown,));
        assert_eq!((&*text, code), ("", 1));
    }
    let state = json(world.call(TOP, "Manager.r9", "EngineStateReport", ()));
    assert_eq!(state["pools"][0]["name"], "p1");
    assert_eq!(state["pools"][0]["blockdevs"]["datadevs"][0]["in_use"], true);
    assert_eq!(state["stopped_pools"], serde_json::json!([]));
    let locks = json(world.call(TOP, "Report.r9", "GetReport", ("locks",)));
    assert!(locks["holders"].is_array() && locks["waiters"].is_array(), "{locks}");
    world.stop("p1", "name");
    let stopped = json(world.call(TOP, "Report.r9", "GetReport", ("stopped_pools",)));
    let hyphenated = uuid::Uuid::parse_str(&uuid).unwrap().hyphenated().to_string();
    assert_eq!(stopped["stopped_pools"][0]["pool_uuid"], *hyphenated);
    assert_eq!(stopped["stopped_pools"][0]["reason"], "it was stopped by request");
    assert_eq!(stopped["partially_constructed_pools"], serde_json::json!([]));
    assert_eq!(stopped["path_to_ids_map"]["/dev/a"][0], *hyphenated);
    assert_eq!(stopped["name_to_pool_uuid_map"]["p1"], *hyphenated);
    let state = json(world.call(TOP, "Manager.r0", "EngineStateReport", ()));
    assert_eq!(state["pools"], serde_json::json!([]));
    assert_eq!(state["stopped_pools"], stopped["stopped_pools"]);
}
