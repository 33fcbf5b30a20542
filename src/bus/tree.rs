//! The published tree: one immutable version of everything that can be read on the bus.
//!
//! The tree writer makes a new version from the last one and swaps it in; readers keep the version that they began with.
//! Versions share what did not change. What is expensive to build of an object, its entry in GetManagedObjects, is built
//! when it is first asked for and then kept with the object as bytes. So a change of ten thousand objects costs the tree
//! writer no more than their places, and a list after a change of one object builds one entry.
//! Knows nothing of the connection, of signals, or where changes come from.

use std::sync::{Arc, OnceLock};

use imbl::{OrdMap, Vector};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::{
    base::ids::{DevUuid, FsUuid, PoolUuid},
    bus::{
        properties::{DeviceObject, FilesystemObject},
        table::{self, ALL, Interface, Kind, Member, REVISIONS, Subject},
        wire::{Body, Marshaller},
    },
    view::{Pool, View},
};

/// Path of the object that has Manager and Report; all others lie directly below it.
pub const TOP: &str = "/org/storage/stratis3";

/// What an object stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Id {
    Pool(PoolUuid),
    Filesystem(PoolUuid, FsUuid),
    Device(PoolUuid, DevUuid),
}

/// The state of an object's subject in one version.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum State {
    Pool(Arc<Pool>),
    Filesystem(FilesystemObject),
    Device(DeviceObject),
}

impl Id {
    /// The pool that it is, or belongs to.
    pub fn pool(self) -> PoolUuid {
        match self {
            Id::Pool(pool) | Id::Filesystem(pool, _) | Id::Device(pool, _) => pool,
        }
    }
}

impl State {
    /// The kind of the object's interface.
    pub fn kind(&self) -> Kind {
        match self {
            State::Pool(_) => Kind::Pool,
            State::Filesystem(_) => Kind::Filesystem,
            State::Device(_) => Kind::Blockdev,
        }
    }

    /// What it stands for.
    pub fn id(&self) -> Id {
        match self {
            State::Pool(pool) => Id::Pool(pool.uuid),
            State::Filesystem(object) => Id::Filesystem(object.pool, object.filesystem.uuid),
            State::Device(object) => Id::Device(object.pool, object.device.uuid),
        }
    }

    /// As the properties' functions want it.
    pub fn subject(&self) -> Subject<'_> {
        match self {
            State::Pool(pool) => Subject::Pool(pool),
            State::Filesystem(object) => Subject::Filesystem(object),
            State::Device(object) => Subject::Device(object),
        }
    }
}

/// An object in one version.
#[derive(Debug)]
pub struct Object {
    /// Its path.
    pub path: Arc<str>,
    /// Its subject.
    pub state: State,
    /// What is kept in bytes, once it has been asked for.
    entry: OnceLock<Entry>,
}

impl Object {
    /// The object of that path and state.
    pub fn new(path: Arc<str>, state: State) -> Object {
        Object { path, state, entry: OnceLock::new() }
    }

    /// What is kept in bytes. Who asks first builds it; whoever asks meanwhile waits for that.
    pub fn entry(&self) -> &Entry {
        self.entry.get_or_init(|| Entry::build(&self.path, self.state.kind(), self.state.subject()))
    }
}

/// An object's entry in GetManagedObjects: path and `a{sa{sv}}`. It is at the same time the body of its
/// InterfacesAdded signal, and contains the answers to GetAll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Filled up with zeros to a multiple of 8, where the next one may begin.
    bytes: Box<[u8]>,
    length: usize,
    /// Where the `{sv}` entries of each revision lie.
    properties: [(u32, u32); REVISIONS],
}

/// Signature of [`Entry::added`].
pub const ADDED_SIGNATURE: &str = "oa{sa{sv}}";

impl Entry {
    fn build(path: &str, kind: Kind, subject: Subject<'_>) -> Entry {
        // Each value is computed and marshalled once and copied to the revisions that have it.
        let values: Vec<_> = table::properties(kind)
            .filter_map(|row| {
                let value = table::value(row, subject)?;
                let mut m = Marshaller::default();
                m.str(row.name);
                m.property(&value);
                Some((row, m.finish()))
            })
            .collect();
        let mut properties = [(0, 0); REVISIONS];
        let mut m = Marshaller::default();
        m.str(path);
        m.array("{sa{sv}}", |m| {
            for (revision, place) in ALL.zip(&mut properties) {
                let interface = Interface { kind, revision };
                m.align(8);
                m.str(&interface.name());
                m.array("{sv}", |m| {
                    let start = m.position();
                    values.iter().filter(|(row, _)| row.is_in(interface)).for_each(|(_, bytes)| m.marshalled(bytes));
                    *place = (start as u32, m.position() as u32);
                });
            }
        });
        let length = m.position();
        m.align(8);
        Entry { bytes: m.finish().into(), length, properties }
    }

    /// The arguments of InterfacesAdded, of signature [`ADDED_SIGNATURE`].
    pub fn added(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The same up to where another entry may begin.
    pub fn filled_up(&self) -> &[u8] {
        &self.bytes
    }

    /// The answer to GetAll for a revision.
    pub fn all(&self, revision: u8) -> Body {
        let mut m = Marshaller::default();
        if let Some((start, end)) = self.properties.get(usize::from(revision)) {
            m.array("{sv}", |m| m.marshalled(&self.bytes[*start as usize..*end as usize]));
        }
        Body { signature: "a{sv}".into(), bytes: m.finish() }
    }
}

/// The answer to GetAll for an interface whose object has no [`Entry`].
pub fn all_properties(interface: Interface, subject: Subject<'_>) -> Body {
    let mut m = Marshaller::default();
    m.array("{sv}", |m| {
        for row in table::properties(interface.kind).filter(|row| row.is_in(interface)) {
            if let (Some(value), Member::Property { .. }) = (table::value(row, subject), row.member) {
                m.align(8);
                m.str(row.name);
                m.property(&value);
            }
        }
    });
    Body { signature: "a{sv}".into(), bytes: m.finish() }
}

/// How many objects that are gone still have their paths. A reply waits for seconds at most.
const GONE_MAX: usize = 4096;

fn path_of(number: u64) -> String {
    format!("{TOP}/{number}")
}

/// One version of all objects on the bus.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Counts the versions.
    pub version: u64,
    /// What the objects show.
    pub view: View,
    /// By the number in their paths.
    objects: OrdMap<u64, Arc<Object>>,
    numbers: OrdMap<Id, u64>,
    /// What was taken away last, with its number.
    gone: Vector<(Id, u64)>,
    /// The next number; none is ever given out twice.
    next: u64,
}

impl Tree {
    /// All objects, in the order in which they got their paths.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// The object of a path.
    pub fn at(&self, path: &str) -> Option<&Arc<Object>> {
        let digits = path.strip_prefix(TOP)?.strip_prefix('/')?;
        let number: u64 = digits.parse().ok()?;
        // `+1` and `01` are numbers too, but no paths of ours.
        self.objects.get(&number).filter(|object| &*object.path == path)
    }

    /// The object that stands for something.
    pub fn of(&self, id: Id) -> Option<&Arc<Object>> {
        self.objects.get(self.numbers.get(&id)?)
    }

    /// Whether the object of a path, or what the top object shows, is the same value in another version.
    pub fn shows_the_same(&self, other: &Tree, path: &str) -> bool {
        match (self.at(path), other.at(path)) {
            (Some(one), Some(another)) => Arc::ptr_eq(one, another),
            (None, None) => path != TOP || Arc::ptr_eq(&self.view.stopped, &other.view.stopped),
            _ => false,
        }
    }

    /// The path of what an operation has made, also when somebody has destroyed it before the reply could be sent: a
    /// reply waits for links, outside any lock. `/` for what went too long ago.
    pub fn path(&self, id: Id) -> String {
        let gone = || self.gone.iter().rev().find_map(|(known, number)| (*known == id).then_some(*number));
        self.numbers.get(&id).copied().or_else(gone).map_or_else(|| "/".to_owned(), path_of)
    }

    /// Gives out a path for a new object.
    pub(super) fn add(&mut self, state: State) -> Arc<Object> {
        let number = self.next;
        self.next += 1;
        let path: Arc<str> = path_of(number).into();
        self.numbers.insert(state.id(), number);
        let object = Arc::new(Object::new(path, state));
        self.objects.insert(number, Arc::clone(&object));
        object
    }

    /// Gives an object another state; its path stays. Gives the object before and after.
    pub(super) fn change(&mut self, state: State) -> Option<(Arc<Object>, Arc<Object>)> {
        let number = *self.numbers.get(&state.id())?;
        let place = self.objects.get_mut(&number)?;
        let object = Arc::new(Object::new(Arc::clone(&place.path), state));
        let before = std::mem::replace(place, Arc::clone(&object));
        Some((before, object))
    }

    /// Takes an object away.
    pub(super) fn remove(&mut self, id: Id) -> Option<Arc<Object>> {
        let number = self.numbers.remove(&id)?;
        self.gone.push_back((id, number));
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
        self.objects.remove(&number)
    }
}

/// Where the current version is found.
#[derive(Debug, Default)]
pub struct Published {
    current: RwLock<Arc<Tree>>,
    order: Mutex<Order>,
    turn: Condvar,
}

/// The order of lists and signals.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Some signals of the current version are still to be sent.
    pub is_open: bool,
    /// Lists that wait for those.
    waiting: usize,
    /// Counts the lists that have had their turn.
    turns: u64,
}

impl Published {
    /// The current version. Waits for nothing but the copy of a pointer.
    pub fn load(&self) -> Arc<Tree> {
        Arc::clone(&self.current.read())
    }

    /// Number of the current version.
    pub fn version(&self) -> u64 {
        self.current.read().version
    }

    /// Makes a version the current one. Only the tree writer does that, with [`Published::order`] held.
    pub(super) fn store(&self, tree: Arc<Tree>) {
        let before = std::mem::replace(&mut *self.current.write(), tree);
        // Freed after the lock has been released.
        drop(before);
    }

    /// Keeps the order of list and signals: the writer holds this from the publication of a version until its first signals
    /// are on their way, and notes whether that was all. Who sends a list of all objects holds it while it makes sure that
    /// the list is of the current version and sends it. So whoever gets a list and then follows the signals misses nothing,
    /// hears nothing twice, and no list takes back what a signal has told before.
    pub(super) fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock()
    }

    /// The same for a list, when all signals of the current version have been sent.
    pub(super) fn order_of_list(&self) -> MutexGuard<'_, Order> {
        let mut order = self.order.lock();
        order.waiting += 1;
        self.turn.wait_while(&mut order, |order| order.is_open);
        order.waiting -= 1;
        order.turns += 1;
        self.turn.notify_all();
        order
    }

    /// All signals of the current version have been sent.
    pub(super) fn close(&self) {
        self.order.lock().is_open = false;
        self.turn.notify_all();
    }

    /// Whether a list waits until all signals have been sent.
    pub(super) fn list_waits(&self) -> bool {
        self.order.lock().waiting > 0
    }

    /// Lets a list that waits have its turn. Only when it is not waiting for the caller.
    pub(super) fn give_way(&self) {
        let mut order = self.order.lock();
        let turns = order.turns;
        self.turn.wait_while(&mut order, |order| order.waiting > 0 && order.turns == turns);
    }
}
