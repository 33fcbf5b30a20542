//! What a history consists of: calls with the interval in which they ran, and what was heard, in its order.
//!
//! Plain values; judges nothing and asks nobody.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use support::client::{BLOCKDEV, FILESYSTEM, Interfaces, Label, POOL, Signal};

/// What is told of the labels of objects: one of these for each change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Added(String, Label),
    Removed(String),
    /// Object, new name or new text.
    Labelled(String, String),
}

impl Event {
    /// What a signal says of labels, if anything. It is enough that it has the newest revision.
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

/// A call.
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
    /// A pool, filesystem or device gets another label: its name, or the text as `Get` shows it.
    Label {
        path: String,
        text: String,
    },
    CreatePool,
    StartPool,
    /// The pool with its devices.
    DestroyPool {
        objects: Vec<String>,
    },
    /// The same.
    StopPool {
        objects: Vec<String>,
    },
    /// `Get` or `GetAll` of the label.
    Look {
        path: String,
    },
    /// GetManagedObjects.
    List,
    /// Introspection of the top object.
    Introspect,
    /// EngineStateReport.
    Report,
}

/// What it ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done; paths of the objects that it made.
    Changed(Vec<String>),
    Unchanged,
    Refused(String),
    Error(String),
    /// The label read.
    Label(String),
    /// [`digest`] of the labels listed, of the paths of objects, or of the names of pools and filesystems with their UUIDs.
    Listed(u64),
}

#[derive(Debug, Clone)]
pub struct Call {
    /// Before it was sent, in ns of a clock that all clients share.
    pub begin: u64,
    /// After its answer was taken from the connection.
    pub end: u64,
    pub what: What,
    pub answer: Answer,
    /// How many events this client had heard when the answer came.
    pub heard: usize,
}

/// One client's part.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    pub calls: Vec<Call>,
    pub heard: Vec<Event>,
}

/// What the watcher got, in its order: it hears everything and lists now and then.
#[derive(Debug, Clone)]
pub enum Item {
    Signal(Signal),
    List(BTreeMap<String, Interfaces>),
}

/// A history.
#[derive(Debug, Clone)]
pub struct History {
    pub clients: Vec<Stream>,
    /// Begins with a list, when nothing was going on.
    pub watcher: Vec<Item>,
}

impl History {
    /// The labels at the beginning.
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

/// What a label says, whatever it belongs to.
pub fn text(label: &Label) -> &str {
    match label {
        Label::Pool(text) | Label::Filesystem(_, text) | Label::Device(text) => text,
    }
}

/// A number for one labelled object. Those of all objects are combined by exclusive or, so that a change costs one object.
pub fn digest(path: &str, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, text).hash(&mut hasher);
    hasher.finish()
}
