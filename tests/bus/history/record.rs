//! The parts of a history: calls with the interval in which each ran, and the events in the order
//! of their receipt.
//!
//! Plain values. This module judges nothing and makes no calls.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use support::client::{BLOCKDEV, FILESYSTEM, Interfaces, Label, POOL, Signal};

/// A change of an object's label, as signals announce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Added(String, Label),
    Removed(String),
    /// The object, and its new name or text.
    Labelled(String, String),
}

impl Event {
    /// The event that a signal announces, if any. Only the signal of the newest revision counts.
    pub fn of(signal: &Signal) -> Option<Event> {
        match signal {
            Signal::Added(path, interfaces) => Some(Event::Added(path.clone(), support::client::label(interfaces)?)),
            Signal::Removed(path, _) => Some(Event::Removed(path.clone())),
            Signal::Changed(path, interface, values, _) => {
                let property = match interface.as_str() {
                    POOL | FILESYSTEM => "Name",
                    BLOCKDEV => "UserInfo",
                    _ => return None,
                };
                Some(Event::Labelled(path.clone(), values.get(property)?.clone()))
            }
        }
    }
}

/// What a call asks for.
#[derive(Debug, Clone)]
pub enum What {
    CreateFilesystem {
        pool: String,
        name: String,
    },
    Snapshot {
        pool: String,
        origin: String,
        name: String,
    },
    DestroyFilesystem {
        path: String,
    },
    /// Sets the label of a pool, filesystem or device: its name, or the text as `Get` shows it.
    Label {
        path: String,
        text: String,
    },
    CreatePool,
    StartPool,
    /// Destroys a pool. `objects` are the pool and its block devices.
    DestroyPool {
        objects: Vec<String>,
    },
    /// Stops a pool. `objects` are the pool and its block devices.
    StopPool {
        objects: Vec<String>,
    },
    /// `Get` or `GetAll` of the label.
    Look {
        path: String,
    },
    /// `GetManagedObjects`.
    List,
    /// Introspection of the top object.
    Introspect,
    /// The engine state report.
    Report,
}

/// The reply to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The call changed something. Holds the paths of the objects that it made.
    Changed(Vec<String>),
    Unchanged,
    Refused(String),
    Error(String),
    /// The label that was read.
    Label(String),
    /// The [`digest`] of the listed labels, of the object paths, or of the names and UUIDs of pools
    /// and filesystems.
    Listed(u64),
}

#[derive(Debug, Clone)]
pub struct Call {
    /// The time before the call was sent, in ns on a clock that all clients share.
    pub begin: u64,
    /// The time after the reply was read from the connection.
    pub end: u64,
    pub what: What,
    pub answer: Answer,
    /// The number of events that this client had received when the reply came.
    pub heard: usize,
}

/// The calls and events of one client.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    pub calls: Vec<Call>,
    pub heard: Vec<Event>,
}

/// What the watcher received, in order. It receives all signals and reads a list from time to time.
#[derive(Debug, Clone)]
pub enum Item {
    Signal(Signal),
    List(BTreeMap<String, Interfaces>),
}

#[derive(Debug, Clone)]
pub struct History {
    pub clients: Vec<Stream>,
    /// Begins with a list that was read before any call was made.
    pub watcher: Vec<Item>,
}

impl History {
    /// The labels at the beginning of the history.
    pub fn before(&self) -> Vec<(String, Label)> {
        match self.watcher.first() {
            Some(Item::List(objects)) => objects
                .iter()
                .map(|(path, interfaces)| (path.clone(), support::client::label(interfaces).expect("of a known kind")))
                .collect(),
            _ => Vec::new(),
        }
    }

    pub fn calls(&self) -> usize {
        self.clients.iter().map(|stream| stream.calls.len()).sum()
    }
}

/// The text of a label, whatever kind of object it belongs to.
pub fn text(label: &Label) -> &str {
    match label {
        Label::Pool(text) | Label::Filesystem(_, text) | Label::Device(text) => text,
    }
}

/// A number for one labelled object. The numbers of all objects are combined by exclusive or, so
/// that a change only updates the number of one object.
pub fn digest(path: &str, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, text).hash(&mut hasher);
    hasher.finish()
}
