//! A client: calls of the newest revision, replies, and all messages in the order of their arrival.
//!
//! This module judges nothing.

#![allow(missing_docs, reason = "calls and constants have the names of the bus")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use dbus::{
    Message, MessageType, Path,
    arg::{AppendAll, ArgType, Iter, Variant},
    channel::Channel,
};

use crate::bus::{Bus, LIMIT};

pub const NAME: &str = "org.storage.stratis3";
pub const TOP: &str = "/org/storage/stratis3";
pub const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
pub const PEER: &str = "org.freedesktop.DBus.Peer";
pub const MANAGER: &str = "org.storage.stratis3.Manager.r9";
pub const POOL: &str = "org.storage.stratis3.pool.r9";
pub const FILESYSTEM: &str = "org.storage.stratis3.filesystem.r9";
pub const BLOCKDEV: &str = "org.storage.stratis3.blockdev.r9";

/// A connection. Replies and signals are taken in the order of their arrival.
pub struct Client {
    channel: Channel,
    /// Messages that arrived before the expected replies.
    heard: RefCell<VecDeque<Message>>,
}

impl Client {
    pub fn new(bus: &Bus) -> Client {
        let mut channel = Channel::open_private(&bus.address).unwrap();
        channel.register().unwrap();
        Client { channel, heard: RefCell::default() }
    }

    /// Subscribes to the signals of the service; `more` narrows the rule.
    pub fn listens(self, more: &str) -> Client {
        let bus = "org.freedesktop.DBus";
        let call = Message::new_method_call(bus, "/org/freedesktop/DBus", bus, "AddMatch").unwrap();
        self.wait(self.send(call.append1(format!("type='signal',sender='{NAME}'{more}"))));
        self
    }

    /// Sends a call and returns its serial number.
    pub fn send(&self, call: Message) -> u32 {
        let serial = self.channel.send(call).expect("memory for a message");
        self.channel.flush();
        serial
    }

    /// Queues a message.
    pub fn post(&self, message: Message) {
        self.channel.send(message).expect("memory for a message");
    }

    /// Sends the queued messages.
    pub fn flush(&self) {
        self.channel.flush();
    }

    /// Waits for the reply to a call.
    pub fn wait(&self, serial: u32) -> Message {
        let is_it = |message: &Message| {
            matches!(message.msg_type(), MessageType::MethodReturn | MessageType::Error)
                && message.get_reply_serial() == Some(serial)
        };
        let here = self.heard.borrow().iter().position(is_it);
        if let Some(reply) = here.and_then(|at| self.heard.borrow_mut().remove(at)) {
            return reply;
        }
        loop {
            let message = self.next_from_bus();
            if is_it(&message) {
                return message;
            }
            self.heard.borrow_mut().push_back(message);
        }
    }

    /// Whether the reply to a call has arrived. Does not wait.
    pub fn has_reply(&self, serial: u32) -> bool {
        // Fails if the bus is gone. The next wait reports that.
        let _ = self.channel.read_write(Some(Duration::ZERO));
        while let Some(message) = self.channel.pop_message() {
            self.heard.borrow_mut().push_back(message);
        }
        self.heard.borrow().iter().any(|message| message.get_reply_serial() == Some(serial))
    }

    pub fn call(&self, call: Message) -> Message {
        self.wait(self.send(call))
    }

    /// The signals of the service that arrived before the last reply, in order.
    pub fn take_signals(&self) -> Vec<Signal> {
        self.heard.borrow_mut().drain(..).filter_map(|message| Signal::parse(&message)).collect()
    }

    /// All messages that arrived before the last reply, in order.
    pub fn take_heard(&self) -> Vec<Message> {
        self.heard.borrow_mut().drain(..).collect()
    }

    /// As [`Client::take_signals`], but for a new object it reads only the interfaces of the newest
    /// revision, which is much faster.
    pub fn take_newest_signals(&self) -> Vec<Signal> {
        self.heard
            .borrow_mut()
            .drain(..)
            .filter_map(|message| Signal::parse_as(&message, interfaces_of_last_revision))
            .collect()
    }

    /// Waits for the next message. Returns `None` if it is not a signal of the service.
    pub fn next_signal(&self) -> Option<Signal> {
        let first = self.heard.borrow_mut().pop_front();
        Signal::parse(&first.unwrap_or_else(|| self.next_from_bus()))
    }

    fn next_from_bus(&self) -> Message {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(message) = self.channel.blocking_pop_message(LIMIT).expect("the bus is there") {
                return message;
            }
        }
        panic!("no message came within {LIMIT:?}");
    }

    pub fn list(&self) -> Message {
        self.call(list())
    }

    /// Makes a change that must succeed, and returns the words of its result.
    pub fn done(&self, call: Message) -> Vec<String> {
        match outcome(&self.call(call)) {
            Outcome::Changed(words) => words,
            other => panic!("{other:?}"),
        }
    }
}

// ---- calls ----

pub fn call(path: &str, interface: &str, member: &str, arguments: impl AppendAll) -> Message {
    let mut message = Message::new_method_call(NAME, path, interface, member).unwrap();
    message.append_all(arguments);
    message
}

pub fn ping() -> Message {
    call(TOP, PEER, "Ping", ())
}

pub fn list() -> Message {
    call(TOP, OBJECT_MANAGER, "GetManagedObjects", ())
}

pub fn get(path: &str, interface: &str, property: &str) -> Message {
    call(path, PROPERTIES, "Get", (interface, property))
}

pub fn get_all(path: &str, interface: &str) -> Message {
    call(path, PROPERTIES, "GetAll", (interface,))
}

pub fn introspect(path: &str) -> Message {
    call(path, "org.freedesktop.DBus.Introspectable", "Introspect", ())
}

pub fn engine_state_report() -> Message {
    call(TOP, MANAGER, "EngineStateReport", ())
}

pub fn create_pool(name: &str, devices: &[&str]) -> Message {
    let keys: Vec<((bool, u32), &str)> = Vec::new();
    let clevis: Vec<((bool, u32), &str, &str)> = Vec::new();
    let integrity = ((false, 0u64), (false, ""), (false, false));
    let devices = devices.to_vec();
    call(TOP, MANAGER, "CreatePool", (name, devices, keys, clevis, integrity.0, integrity.1, integrity.2))
}

pub fn destroy_pool(pool: &str) -> Message {
    call(TOP, MANAGER, "DestroyPool", (object(pool),))
}

pub fn stop_pool(name: &str) -> Message {
    call(TOP, MANAGER, "StopPool", (name, "name"))
}

/// Starts an unencrypted pool, through a revision whose arguments contain no descriptor.
pub fn start_pool(name: &str) -> Message {
    call(TOP, "org.storage.stratis3.Manager.r7", "StartPool", (name, "name", (false, "")))
}

pub fn rename_pool(pool: &str, name: &str) -> Message {
    call(pool, POOL, "SetName", (name,))
}

pub fn add_devices(pool: &str, devices: &[&str]) -> Message {
    call(pool, POOL, "AddDataDevs", (devices.to_vec(),))
}

pub fn create_filesystem(pool: &str, name: &str) -> Message {
    call(pool, POOL, "CreateFilesystems", (vec![(name, (false, ""), (false, ""))],))
}

pub fn destroy_filesystem(pool: &str, filesystem: &str) -> Message {
    call(pool, POOL, "DestroyFilesystems", (vec![object(filesystem)],))
}

pub fn snapshot(pool: &str, origin: &str, name: &str) -> Message {
    call(pool, POOL, "SnapshotFilesystem", (object(origin), name))
}

pub fn rename_filesystem(filesystem: &str, name: &str) -> Message {
    call(filesystem, FILESYSTEM, "SetName", (name,))
}

pub fn set_user_info(device: &str, text: &str) -> Message {
    call(device, PROPERTIES, "Set", (BLOCKDEV, "UserInfo", Variant((true, text))))
}

pub fn object(path: &str) -> Path<'_> {
    Path::new(path).unwrap()
}

// ---- replies and signals ----

/// The outcome of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The change was made. Holds the paths and texts of the result, in order.
    Changed(Vec<String>),
    /// Nothing had to change.
    Unchanged,
    /// The reply has code 1 and this text.
    Refused(String),
    /// A D-Bus error of this name.
    Error(String),
}

/// Parses a reply of type `(b…) q s`, or the empty reply of a `Set`.
pub fn outcome(reply: &Message) -> Outcome {
    if let Some(error) = error_name(reply) {
        return Outcome::Error(error);
    }
    let mut iter = reply.iter_init();
    let mut words = Vec::new();
    let mut flags = Vec::new();
    flatten(&mut iter, &mut flags, &mut words);
    if iter.arg_type() == ArgType::Invalid {
        return Outcome::Changed(words);
    }
    let (code, text) = (iter.read::<u16>().unwrap(), iter.read::<String>().unwrap());
    match (code, flags.first()) {
        (0, Some(false)) => Outcome::Unchanged,
        (0, _) => Outcome::Changed(words),
        _ => Outcome::Refused(text),
    }
}

/// The name of an error reply without the common prefix.
pub fn error_name(reply: &Message) -> Option<String> {
    full_error_name(reply).map(|name| name.replace("org.freedesktop.DBus.Error.", ""))
}

pub fn full_error_name(reply: &Message) -> Option<String> {
    if reply.msg_type() != MessageType::Error {
        return None;
    }
    // The crate only returns the name when it converts the message into an error, which changes the
    // message.
    let error = reply.duplicate().unwrap().as_result().err()?;
    Some(error.name()?.to_owned())
}

/// Collects the flags and words of the value at the iterator, and advances it.
fn flatten(iter: &mut Iter<'_>, flags: &mut Vec<bool>, words: &mut Vec<String>) {
    match iter.arg_type() {
        ArgType::Invalid => return,
        ArgType::Boolean => flags.push(iter.get::<bool>().unwrap()),
        ArgType::String | ArgType::ObjectPath => words.push(text(iter)),
        kind @ (ArgType::Struct | ArgType::Array) => {
            let mut inner = iter.recurse(kind).unwrap();
            while inner.arg_type() != ArgType::Invalid {
                flatten(&mut inner, flags, words);
            }
        }
        _ => {}
    }
    iter.next();
}

/// The value in the variant that `Get` returns, or the name of the error.
pub fn value(reply: &Message) -> Result<String, String> {
    match error_name(reply) {
        Some(error) => Err(error),
        None => Ok(text(&mut reply.iter_init())),
    }
}

/// One of the values that `GetAll` returns, or the name of the error.
pub fn value_of(reply: &Message, property: &str) -> Result<String, String> {
    match error_name(reply) {
        Some(error) => Err(error),
        None => Ok(properties(&mut reply.iter_init()).remove(property).expect("the object has that property")),
    }
}

/// The paths of the objects below the top object, from its introspection.
pub fn children(reply: &Message) -> Vec<String> {
    let xml = text(&mut reply.iter_init());
    let nodes = xml.split("<node name=\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
    nodes.map(|name| format!("{TOP}/{name}")).collect()
}

/// The UUIDs (in the form of the D-Bus objects) and names of all pools and filesystems in an engine
/// state report.
pub fn reported_names(reply: &Message) -> Vec<(String, String)> {
    let report: serde_json::Value = serde_json::from_str(&text(&mut reply.iter_init())).expect("a report is JSON");
    let one = |of: &serde_json::Value| {
        let text = |member: &str| of[member].as_str().expect("every one has it").to_owned();
        (text("uuid").replace('-', ""), text("name"))
    };
    let each = |of: &serde_json::Value| of.as_array().expect("a list").clone();
    let pools = each(&report["pools"]);
    let filesystems = pools.iter().flat_map(|pool| each(&pool["filesystems"]));
    filesystems.chain(pools.clone()).map(|of| one(&of)).collect()
}

/// The value at the iterator as a text. Two values of one type are equal if their texts are.
pub fn text(iter: &mut Iter<'_>) -> String {
    let all = |mut inner: Iter<'_>| {
        let mut parts = Vec::new();
        while inner.arg_type() != ArgType::Invalid {
            parts.push(text(&mut inner));
            inner.next();
        }
        parts.join(" ")
    };
    match iter.arg_type() {
        ArgType::Boolean => iter.get::<bool>().unwrap().to_string(),
        ArgType::Byte => iter.get::<u8>().unwrap().to_string(),
        ArgType::UInt16 => iter.get::<u16>().unwrap().to_string(),
        ArgType::UInt32 => iter.get::<u32>().unwrap().to_string(),
        ArgType::UInt64 => iter.get::<u64>().unwrap().to_string(),
        ArgType::String => iter.get::<&str>().unwrap().to_owned(),
        ArgType::ObjectPath => iter.get::<Path<'_>>().unwrap().to_string(),
        ArgType::Variant => text(&mut iter.recurse(ArgType::Variant).unwrap()),
        kind @ (ArgType::Array | ArgType::Struct | ArgType::DictEntry) => {
            format!("({})", all(iter.recurse(kind).unwrap()))
        }
        other => panic!("no member has a value of type {other:?}"),
    }
}

/// The properties of an object by interface and name.
pub type Interfaces = BTreeMap<String, BTreeMap<String, String>>;

fn entries<'a>(iter: &mut Iter<'a>) -> Vec<Iter<'a>> {
    let mut array = iter.recurse(ArgType::Array).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = array.recurse(ArgType::DictEntry) {
        entries.push(entry);
        array.next();
    }
    entries
}

/// The entries of a dictionary: each key as a text, and the iterator at the value.
fn keyed<'a>(iter: &mut Iter<'a>) -> impl Iterator<Item = (String, Iter<'a>)> {
    entries(iter).into_iter().map(|mut entry| {
        let key = text(&mut entry);
        entry.next();
        (key, entry)
    })
}

fn properties(iter: &mut Iter<'_>) -> BTreeMap<String, String> {
    keyed(iter).map(|(name, mut value)| (name, text(&mut value))).collect()
}

/// Parses a value of type `a{sa{sv}}`.
fn interfaces(iter: &mut Iter<'_>) -> Interfaces {
    keyed(iter).map(|(name, mut value)| (name, properties(&mut value))).collect()
}

/// All objects in a list, with all their properties.
pub fn objects(list: &Message) -> BTreeMap<String, Interfaces> {
    keyed(&mut list.iter_init()).map(|(path, mut value)| (path, interfaces(&mut value))).collect()
}

/// The paths of the objects in a list.
pub fn paths(list: &Message) -> BTreeSet<String> {
    entries(&mut list.iter_init()).iter_mut().map(text).collect()
}

/// The path of each object in a list, with its kind and one property: the name of a pool or
/// filesystem, the user info of a device.
pub fn labels(list: &Message) -> Vec<(String, Label)> {
    let label_of = |value: &mut Iter<'_>| label(&interfaces_of_last_revision(value));
    keyed(&mut list.iter_init())
        .map(|(path, mut value)| (path, label_of(&mut value).expect("every object has the newest revision")))
        .collect()
}

fn interfaces_of_last_revision(iter: &mut Iter<'_>) -> Interfaces {
    keyed(iter)
        .filter(|(name, _)| name.ends_with("r9"))
        .map(|(name, mut value)| (name, properties(&mut value)))
        .collect()
}

/// The one property of an object that a history follows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// Its name.
    Pool(String),
    /// The path of its pool, and its name.
    Filesystem(String, String),
    /// Its user info.
    Device(String),
}

pub fn label(interfaces: &Interfaces) -> Option<Label> {
    let part = |interface: &str, property: &str| interfaces.get(interface)?.get(property).cloned();
    part(POOL, "Name")
        .map(Label::Pool)
        .or_else(|| Some(Label::Filesystem(part(FILESYSTEM, "Pool")?, part(FILESYSTEM, "Name")?)))
        .or_else(|| part(BLOCKDEV, "UserInfo").map(Label::Device))
}

/// A signal of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    Added(String, Interfaces),
    Removed(String, BTreeSet<String>),
    /// Object, interface, new values, names of invalidated properties.
    Changed(String, String, BTreeMap<String, String>, BTreeSet<String>),
}

impl Signal {
    pub fn parse(message: &Message) -> Option<Signal> {
        Signal::parse_as(message, interfaces)
    }

    fn parse_as(message: &Message, interfaces: fn(&mut Iter<'_>) -> Interfaces) -> Option<Signal> {
        if message.msg_type() != MessageType::Signal {
            return None;
        }
        let mut iter = message.iter_init();
        let member = message.member()?;
        if !matches!(&*member, "InterfacesAdded" | "InterfacesRemoved" | "PropertiesChanged") {
            return None;
        }
        let first = text(&mut iter);
        iter.next();
        let names = |iter: &mut Iter<'_>| iter.read::<Vec<String>>().unwrap().into_iter().collect();
        Some(match &*member {
            "InterfacesAdded" => Signal::Added(first, interfaces(&mut iter)),
            "InterfacesRemoved" => Signal::Removed(first, names(&mut iter)),
            _ => {
                let values = properties(&mut iter);
                iter.next();
                Signal::Changed(message.path()?.to_string(), first, values, names(&mut iter))
            }
        })
    }
}
