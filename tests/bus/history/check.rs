//! Judges a history.
//!
//! The signals give the order of all changes. The checker compares everything else with that order:
//!
//! - *Order.* Every client has received the same events in the same order (P4).
//! - *Cause.* Each event belongs to exactly one call that reports a change, and each such call has
//!   its events. No signal announces a change that did not happen.
//! - *Before the reply.* A client has received the events of its call before the reply (P3).
//! - *Rebuilt.* The state that the watcher rebuilds from signals alone equals every list that it
//!   reads, in all properties of all revisions that announce changes. No signal repeats a known
//!   value (P4).
//! - *Linearizable.* For each object, for each name, and for all objects together (lists, P2),
//!   there is an order of the calls that agrees with their order in time and explains every value
//!   read. The order of the writes is known, so the check is exact: if one call ended before
//!   another began, the second must not have an older version than the first, and if the second is
//!   a write, its version must be newer. A value read may fit several versions. The checker takes
//!   the oldest possible one, which leaves the most room for all other calls.
//! - *As new as received.* A client does not read an older state than it has received by signals
//!   before the reply. Otherwise a client that keeps a copy from reads and signals would have a
//!   wrong copy from then on.
//!
//! This module knows nothing of D-Bus.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
};

use super::record::{Answer, Call, Event, History, Item, What, digest, text};
use support::client::{Interfaces, Label, Signal, TOP};

/// A promise that a history breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// From this event on, a client has received other events than the watcher, or the same in
    /// another order.
    Heard { client: usize, from: usize },
    /// An event belongs to no call, or to several.
    Cause { event: String, calls: usize },
    /// A call has changed something, and no signal announced it.
    Untold(String),
    /// The reply came before the signal.
    ReplyBeforeSignal(String),
    /// The state rebuilt from signals differs from the list.
    Rebuilt(String),
    /// A signal repeats a known value.
    NoNews(String),
    /// No order of the calls explains this one.
    NotLinearizable(String),
    /// A read returned an older state than its client had received by signals.
    OlderThanHeard(String),
    /// A reply that this call must not get.
    Answer(String),
}

/// All violations in a history, limited to a few of each kind.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let events = rebuild(history, &mut found);
    for (client, stream) in history.clients.iter().enumerate() {
        if stream.heard != events {
            let from = stream.heard.iter().zip(&events).take_while(|(a, b)| a == b).count();
            found.push(Violation::Heard { client, from });
        }
    }
    let mut story = Story::new(history, &events);
    for (client, stream) in history.clients.iter().enumerate() {
        for call in &stream.calls {
            story.place(client, call, &mut found);
        }
    }
    for (event, claims) in events.iter().zip(&story.claims) {
        if *claims != 1 {
            found.push(Violation::Cause { event: format!("{event:?}"), calls: *claims });
        }
    }
    for (key, register) in story.registers {
        register.check(&key, &mut found);
    }
    some_of_each(found)
}

/// Limits the violations of each kind. One fault causes many violations, and the output must still
/// show which fault caused them.
fn some_of_each(found: Vec<Violation>) -> Vec<Violation> {
    const EACH: usize = 5;
    let mut some: Vec<Violation> = Vec::new();
    for violation in found {
        let kind = std::mem::discriminant(&violation);
        if some.iter().filter(|known| std::mem::discriminant(*known) == kind).count() < EACH {
            some.push(violation);
        }
    }
    some
}

// ---- the watcher ----

/// Whether the property does not announce its changes.
fn is_silent(interface: &str, property: &str) -> bool {
    property == "UserInfo" && ["r0", "r1", "r2"].iter().any(|revision| interface.ends_with(revision))
}

/// Applies the signals from one list to the next. Returns the events.
fn rebuild(history: &History, found: &mut Vec<Violation>) -> Vec<Event> {
    let mut objects: BTreeMap<String, Interfaces> = BTreeMap::new();
    let mut events = Vec::new();
    for (number, item) in history.watcher.iter().enumerate() {
        match item {
            Item::List(list) if number == 0 => objects = list.clone(),
            Item::List(list) => {
                if let Some(difference) = difference(&objects, list) {
                    found.push(Violation::Rebuilt(difference));
                }
                objects = list.clone();
            }
            Item::Signal(signal) => {
                events.extend(Event::of(signal));
                follow(&mut objects, signal, found);
            }
        }
    }
    events
}

fn difference(rebuilt: &BTreeMap<String, Interfaces>, listed: &BTreeMap<String, Interfaces>) -> Option<String> {
    if !rebuilt.keys().eq(listed.keys()) {
        return Some(format!("objects {:?}, listed {:?}", rebuilt.keys(), listed.keys()));
    }
    for (path, interfaces) in listed {
        for (interface, properties) in interfaces {
            for (property, value) in properties {
                let known = rebuilt[path].get(interface).and_then(|properties| properties.get(property));
                let known = known.map(String::as_str);
                if known != Some(value) && known != Some(INVALIDATED) && !is_silent(interface, property) {
                    return Some(format!("{path} {interface}.{property} is {value}, known as {known:?}"));
                }
            }
        }
    }
    None
}

/// Stands for a value that a signal invalidated without giving the new one.
const INVALIDATED: &str = "\u{0}";

fn follow(objects: &mut BTreeMap<String, Interfaces>, signal: &Signal, found: &mut Vec<Violation>) {
    let no_news = || Violation::NoNews(format!("{signal:?}").chars().take(200).collect());
    match signal {
        Signal::Added(path, interfaces) => {
            if interfaces.len() != 10 || objects.insert(path.clone(), interfaces.clone()).is_some() {
                found.push(no_news());
            }
        }
        Signal::Removed(path, interfaces) => match objects.remove(path) {
            Some(known) if known.keys().eq(interfaces) => {}
            _ => found.push(no_news()),
        },
        // The top object is not in any list.
        Signal::Changed(path, ..) if path == TOP => {}
        Signal::Changed(path, interface, values, invalidated) => {
            let Some(properties) = objects.get_mut(path).and_then(|interfaces| interfaces.get_mut(interface)) else {
                found.push(no_news());
                return;
            };
            let news = values.iter().map(|(property, value)| (property, value.as_str()));
            for (property, value) in news.chain(invalidated.iter().map(|property| (property, INVALIDATED))) {
                let before = properties.insert(property.clone(), value.to_owned());
                if before.is_none() || (before.as_deref() == Some(value) && value != INVALIDATED) {
                    found.push(no_news());
                }
            }
        }
    }
}

// ---- linearizability ----

/// The error that clients of the existing daemon expect when a property could not be set.
const SET_REFUSED: &str = "Failed";

/// A unit of state that calls read and write as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The label of an object.
    Object(String),
    /// The object of that name: a pool (`None`), or a filesystem of a pool.
    Named(Option<String>, String),
    /// All labels together, as a digest.
    World,
    /// All object paths.
    Paths,
    /// The names of all pools and filesystems with their UUIDs.
    Names,
}

/// The value that a read returned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Value(Option<String>),
    Something,
}

enum Kind {
    /// The call made this version.
    Write(usize),
    Read(Seen),
}

struct Use {
    begin: u64,
    end: u64,
    kind: Kind,
    /// For a read: the version that its client had received by signals before the reply.
    heard: usize,
    about: String,
}

/// A unit of state with its versions, and the calls that use it.
struct Register {
    versions: Vec<Option<String>>,
    uses: Vec<Use>,
}

impl Register {
    fn check(mut self, key: &Key, found: &mut Vec<Violation>) {
        let mut places: HashMap<&Option<String>, Vec<usize>> = HashMap::new();
        for (version, value) in self.versions.iter().enumerate() {
            places.entry(value).or_default().push(version);
        }
        self.uses.sort_by_key(|one| one.begin);
        // A use that has ended counts as soon as another use begins after it.
        let mut running: BinaryHeap<(Reverse<u64>, (usize, usize))> = BinaryHeap::new();
        // The newest version of all ended uses, and the number of that use.
        let mut newest: Option<(usize, usize)> = None;
        for (number, one) in self.uses.iter().enumerate() {
            while running.peek().is_some_and(|(Reverse(end), _)| *end < one.begin) {
                newest = newest.max(running.pop().map(|(_, had)| had));
            }
            let least = newest.map_or(0, |(version, _)| version);
            let places = |value: &Option<String>| places.get(value).map(Vec::as_slice).unwrap_or_default();
            let version = match &one.kind {
                Kind::Write(version) => newest.is_none_or(|(newest, _)| *version > newest).then_some(*version),
                Kind::Read(Seen::Something) => (least..self.versions.len()).find(|at| self.versions[*at].is_some()),
                Kind::Read(Seen::Value(value)) => {
                    let places = places(value);
                    let newest = places.last().copied();
                    if newest.is_some_and(|newest| newest < one.heard) {
                        found.push(Violation::OlderThanHeard(format!(
                            "{key:?}: {} found version {newest:?}, after version {} was heard of",
                            one.about, one.heard,
                        )));
                    }
                    places.get(places.partition_point(|at| *at < least.max(one.heard))).copied()
                }
            };
            match version {
                Some(version) => running.push((Reverse(one.end), (version, number))),
                None => {
                    let has = match &one.kind {
                        Kind::Write(version) => format!("made version {version}"),
                        Kind::Read(Seen::Something) => "found something".to_owned(),
                        Kind::Read(Seen::Value(value)) => format!("found what versions {:?} are", places(value)),
                    };
                    let after = newest.map_or("the beginning", |(_, had)| &self.uses[had].about);
                    let newest = &self.versions[least];
                    found.push(Violation::NotLinearizable(format!(
                        "{key:?}: {} {has} of {}, after version {least}, {newest:?}, was had by {after}",
                        one.about,
                        self.versions.len(),
                    )));
                }
            }
        }
    }
}

/// All registers. The events fill in their versions, then the calls their uses.
struct Story {
    registers: HashMap<Key, Register>,
    /// The versions that each event made.
    effects: Vec<Vec<(Key, usize)>>,
    /// For each register, the events that made its versions, in order.
    made: HashMap<Key, Vec<(usize, usize)>>,
    /// The number of calls that each event belongs to.
    claims: Vec<usize>,
    added: HashMap<String, usize>,
    removed: HashMap<String, usize>,
    /// The event, by the UUID of the object and the new label.
    labelled: HashMap<(String, String), usize>,
    /// The UUIDs of all objects, by path.
    uuids: HashMap<String, String>,
}

impl Story {
    fn new(history: &History, events: &[Event]) -> Story {
        let mut story = Story {
            registers: HashMap::new(),
            effects: Vec::new(),
            made: HashMap::new(),
            claims: vec![0; events.len()],
            added: HashMap::new(),
            removed: HashMap::new(),
            labelled: HashMap::new(),
            uuids: uuids(history),
        };
        let mut labels: HashMap<String, Label> = HashMap::new();
        let (mut world, mut paths, mut names) = (0, 0, 0);
        let named = |story: &Story, path: &str, label: &Label| match label {
            Label::Pool(_) | Label::Filesystem(..) => digest(&story.uuid(path), text(label)),
            Label::Device(_) => 0,
        };
        for (path, label) in history.before() {
            world ^= digest(&path, text(&label));
            paths ^= digest(&path, "");
            names ^= named(&story, &path, &label);
            story.registers.insert(Key::Object(path.clone()), Register::starting(Some(text(&label).to_owned())));
            if let Some(key) = name_of(&label) {
                story.registers.insert(key, Register::starting(Some(path.clone())));
            }
            labels.insert(path, label);
        }
        for (key, all) in [(Key::World, world), (Key::Paths, paths), (Key::Names, names)] {
            story.registers.insert(key, Register::starting(Some(all.to_string())));
        }
        for (number, event) in events.iter().enumerate() {
            let (path, after) = match event {
                Event::Added(path, label) => {
                    story.added.insert(path.clone(), number);
                    (path, Some(label.clone()))
                }
                Event::Removed(path) => {
                    story.removed.insert(path.clone(), number);
                    (path, None)
                }
                Event::Labelled(path, new) => {
                    let uuid = story.uuid(path);
                    story.labelled.insert((uuid, new.clone()), number);
                    (path, labels.get(path).map(|label| relabelled(label, new)))
                }
            };
            let before = match &after {
                Some(label) => labels.insert(path.clone(), label.clone()),
                None => labels.remove(path),
            };
            for label in [&before, &after].into_iter().flatten() {
                world ^= digest(path, text(label));
                paths ^= digest(path, "");
                names ^= named(&story, path, label);
            }
            let value = after.as_ref().map(|label| text(label).to_owned());
            let all = [(Key::World, world), (Key::Paths, paths), (Key::Names, names)];
            let mut effects = vec![(Key::Object(path.clone()), value)];
            effects.extend(all.map(|(key, all)| (key, Some(all.to_string()))));
            effects.extend(before.as_ref().and_then(name_of).map(|key| (key, None)));
            effects.extend(after.as_ref().and_then(name_of).map(|key| (key, Some(path.clone()))));
            let effects: Vec<_> =
                effects.into_iter().map(|(key, value)| (key.clone(), story.version(key, value))).collect();
            for (key, version) in &effects {
                story.made.entry(key.clone()).or_default().push((number, *version));
            }
            story.effects.push(effects);
        }
        story
    }

    /// The version of a register after the first `events` events.
    fn after(&self, key: &Key, events: usize) -> usize {
        let made = self.made.get(key).map(Vec::as_slice).unwrap_or_default();
        let count = made.partition_point(|(event, _)| *event < events);
        count.checked_sub(1).map_or(0, |last| made[last].1)
    }

    fn uuid(&self, path: &str) -> String {
        self.uuids.get(path).cloned().unwrap_or_default()
    }

    fn register(&mut self, key: Key) -> &mut Register {
        self.registers.entry(key).or_insert_with(|| Register::starting(None))
    }

    fn version(&mut self, key: Key, value: Option<String>) -> usize {
        let versions = &mut self.register(key).versions;
        versions.push(value);
        versions.len() - 1
    }

    /// Adds the reads and writes of a call to the registers.
    fn place(&mut self, client: usize, call: &Call, found: &mut Vec<Violation>) {
        let about = || format!("client {client}: {call:?}");
        let object = |path: &String| Key::Object(path.clone());
        let name = |pool: &String, name: &String| Key::Named(Some(pool.clone()), name.clone());
        let gone = Seen::Value(None);
        let read = |key: Key, seen: Seen| (Vec::new(), vec![(key, seen)]);
        let unknown = |error: &str| error == "UnknownObject";
        let (wrote, read): (Vec<Option<usize>>, Vec<(Key, Seen)>) = match (&call.what, &call.answer) {
            (
                What::CreateFilesystem { .. } | What::Snapshot { .. } | What::CreatePool | What::StartPool,
                Answer::Changed(made),
            ) => (made.iter().map(|path| self.added.get(path).copied()).collect(), Vec::new()),
            (What::CreateFilesystem { pool, name: n } | What::Snapshot { pool, name: n, .. }, Answer::Unchanged) => {
                read(name(pool, n), Seen::Something)
            }
            (What::Snapshot { origin, .. }, Answer::Refused(_)) => read(object(origin), gone),
            (What::DestroyFilesystem { path }, Answer::Changed(_)) => {
                (vec![self.removed.get(path).copied()], Vec::new())
            }
            (What::DestroyFilesystem { path }, Answer::Unchanged) => read(object(path), gone),
            (What::DestroyPool { objects } | What::StopPool { objects }, Answer::Changed(_)) => {
                (objects.iter().map(|path| self.removed.get(path).copied()).collect(), Vec::new())
            }
            // A call acts on the object that its path named when the call arrived, so the path must
            // have named one then. If the pool is stopped and started before the call runs, the
            // object has another path by then.
            (What::Label { path, text }, Answer::Changed(_)) => (
                vec![self.labelled.get(&(self.uuid(path), text.clone())).copied()],
                vec![(object(path), Seen::Something)],
            ),
            (What::Label { path, text }, Answer::Unchanged) => read(object(path), Seen::Value(Some(text.clone()))),
            // A property can only be refused with an error.
            (What::Label { path, .. }, Answer::Refused(_)) => read(object(path), gone),
            (What::Label { path, .. }, Answer::Error(name)) if name == SET_REFUSED => read(object(path), gone),
            (What::Label { path, .. } | What::Look { path }, Answer::Error(name)) if unknown(name) => {
                read(object(path), gone)
            }
            (What::Look { path }, Answer::Label(text)) => read(object(path), Seen::Value(Some(text.clone()))),
            (What::List, Answer::Listed(all)) => read(Key::World, Seen::Value(Some(all.to_string()))),
            (What::Introspect, Answer::Listed(all)) => read(Key::Paths, Seen::Value(Some(all.to_string()))),
            (What::Report, Answer::Listed(all)) => read(Key::Names, Seen::Value(Some(all.to_string()))),
            _ => {
                found.push(Violation::Answer(about()));
                return;
            }
        };
        let (begin, end) = (call.begin, call.end);
        for event in wrote {
            let Some(event) = event else {
                found.push(Violation::Untold(about()));
                continue;
            };
            self.claims[event] += 1;
            if event >= call.heard {
                found.push(Violation::ReplyBeforeSignal(about()));
            }
            for (key, version) in self.effects[event].clone() {
                let kind = Kind::Write(version);
                self.register(key).uses.push(Use { begin, end, kind, heard: 0, about: about() });
            }
        }
        // A change may be refused because of a later change that precedes its reply.
        let reads = matches!(call.what, What::Look { .. } | What::List | What::Introspect | What::Report);
        for (key, seen) in read {
            let heard = if reads { self.after(&key, call.heard) } else { 0 };
            self.register(key).uses.push(Use { begin, end, kind: Kind::Read(seen), heard, about: about() });
        }
    }
}

/// The UUIDs of all objects of the history, by path.
fn uuids(history: &History) -> HashMap<String, String> {
    let mut uuids = HashMap::new();
    let mut note = |path: &String, interfaces: &Interfaces| {
        let uuid = interfaces.values().find_map(|properties| properties.get("Uuid"));
        uuids.insert(path.clone(), uuid.expect("every object has one").clone());
    };
    for item in &history.watcher {
        match item {
            Item::List(objects) => objects.iter().for_each(|(path, interfaces)| note(path, interfaces)),
            Item::Signal(Signal::Added(path, interfaces)) => note(path, interfaces),
            Item::Signal(_) => {}
        }
    }
    uuids
}

impl Register {
    fn starting(value: Option<String>) -> Register {
        Register { versions: vec![value], uses: Vec::new() }
    }
}

fn name_of(label: &Label) -> Option<Key> {
    match label {
        Label::Pool(name) => Some(Key::Named(None, name.clone())),
        Label::Filesystem(pool, name) => Some(Key::Named(Some(pool.clone()), name.clone())),
        Label::Device(_) => None,
    }
}

fn relabelled(label: &Label, text: &str) -> Label {
    let text = text.to_owned();
    match label {
        Label::Pool(_) => Label::Pool(text),
        Label::Filesystem(pool, _) => Label::Filesystem(pool.clone(), text),
        Label::Device(_) => Label::Device(text),
    }
}
