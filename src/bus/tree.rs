//! The published tree: one immutable version of everything that can be read on the bus.
//!
//! The tree writer makes a new version from the last one and swaps it in; readers keep the version
//! that they began with. Versions share what did not change. An object's entry in GetManagedObjects
//! is expensive to build, so it is built when first needed and then kept with the object as bytes.
//! So a change of ten thousand objects costs the tree writer no more than their places in the tree,
//! and a list after a change of one object builds one entry. This module knows nothing of the
//! connection, of signals, or of the source of changes.

use std::sync::{Arc, OnceLock};

use imbl::{OrdMap, Vector};

use crate::{
    base::ids::{DevUuid, FsUuid, PoolUuid},
    bus::{
        manager::StoppedLists,
        object_entry::ObjectEntry,
        properties::{DeviceObject, FilesystemObject},
        schema::{InterfaceKind, PropertySource},
    },
    view::{PoolView, View},
};

/// Path of the object that has Manager and Report. All other objects lie directly below it.
pub const TOP: &str = "/org/storage/stratis3";

/// The subject of an object.
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
pub enum ObjectState {
    Pool(Arc<PoolView>),
    Filesystem(FilesystemObject),
    Device(DeviceObject),
}

impl Id {
    /// The pool itself, or the pool that the subject belongs to.
    pub fn pool(self) -> PoolUuid {
        match self {
            Id::Pool(pool) | Id::Filesystem(pool, _) | Id::Device(pool, _) => pool,
        }
    }
}

impl ObjectState {
    /// The kind of the object's interface.
    pub fn kind(&self) -> InterfaceKind {
        match self {
            ObjectState::Pool(_) => InterfaceKind::Pool,
            ObjectState::Filesystem(_) => InterfaceKind::Filesystem,
            ObjectState::Device(_) => InterfaceKind::Blockdev,
        }
    }

    /// The subject's identity.
    pub fn id(&self) -> Id {
        match self {
            ObjectState::Pool(pool) => Id::Pool(pool.uuid),
            ObjectState::Filesystem(object) => Id::Filesystem(object.pool, object.filesystem.uuid),
            ObjectState::Device(object) => Id::Device(object.pool, object.device.uuid),
        }
    }

    /// The subject in the form that the properties' functions take.
    pub fn subject(&self) -> PropertySource<'_> {
        match self {
            ObjectState::Pool(pool) => PropertySource::Pool(pool),
            ObjectState::Filesystem(object) => PropertySource::Filesystem(object),
            ObjectState::Device(object) => PropertySource::Device(object),
        }
    }
}

/// An object in one version.
#[derive(Debug)]
pub struct Object {
    /// Its path.
    pub path: Arc<str>,
    /// Its subject.
    pub state: ObjectState,
    /// The entry, once it has been built.
    entry: OnceLock<Arc<ObjectEntry>>,
}

impl Object {
    /// An object with this path and state.
    pub fn new(path: Arc<str>, state: ObjectState) -> Object {
        Object { path, state, entry: OnceLock::new() }
    }

    /// The entry. `build` makes it on the first call.
    pub(super) fn kept(&self, build: impl FnOnce() -> ObjectEntry) -> &Arc<ObjectEntry> {
        self.entry.get_or_init(|| Arc::new(build()))
    }
}

/// How many removed objects keep their paths. A reply waits for seconds at most.
const GONE_MAX: usize = 4096;

fn path_of(number: u64) -> String {
    format!("{TOP}/{number}")
}

/// One version of all objects on the bus.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Number of the version.
    pub version: u64,
    /// The view that the objects show.
    pub view: View,
    /// The stopped pools of the view, as the top object shows them.
    pub stopped: Arc<StoppedLists>,
    /// The objects by the number in their paths.
    objects: OrdMap<u64, Arc<Object>>,
    numbers: OrdMap<Id, u64>,
    /// The objects removed last, with their numbers.
    gone: Vector<(Id, u64)>,
    /// The next number. Numbers are never reused.
    next: u64,
}

impl Tree {
    /// All objects, in the order in which they got their paths.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// The object at a path.
    pub fn at(&self, path: &str) -> Option<&Arc<Object>> {
        let digits = path.strip_prefix(TOP)?.strip_prefix('/')?;
        let number: u64 = digits.parse().ok()?;
        // `+1` and `01` parse as numbers, too, but no object has such a path.
        self.objects.get(&number).filter(|object| &*object.path == path)
    }

    /// The object of a subject.
    pub fn of(&self, id: Id) -> Option<&Arc<Object>> {
        self.objects.get(self.numbers.get(&id)?)
    }

    /// Whether the object at a path, or the view behind the top object, has the same value in
    /// another version.
    pub fn shows_the_same(&self, other: &Tree, path: &str) -> bool {
        match (self.at(path), other.at(path)) {
            (Some(one), Some(another)) => Arc::ptr_eq(one, another),
            (None, None) => path != TOP || Arc::ptr_eq(&self.view.stopped, &other.view.stopped),
            _ => false,
        }
    }

    /// The path of an object that an operation has made. It is known even if another request has
    /// destroyed the object before the reply is sent: a reply waits for links, outside any lock.
    /// `/` for an object that was removed too long ago.
    pub fn path(&self, id: Id) -> String {
        let gone = || self.gone.iter().rev().find_map(|(known, number)| (*known == id).then_some(*number));
        self.numbers.get(&id).copied().or_else(gone).map_or_else(|| "/".to_owned(), path_of)
    }

    /// Adds an object and assigns its path.
    pub(super) fn add(&mut self, state: ObjectState) -> Arc<Object> {
        let number = self.next;
        self.next += 1;
        let path: Arc<str> = path_of(number).into();
        self.numbers.insert(state.id(), number);
        let object = Arc::new(Object::new(path, state));
        self.objects.insert(number, Arc::clone(&object));
        object
    }

    /// Gives an object a new state and keeps its path. Returns the object before and after.
    pub(super) fn change(&mut self, state: ObjectState) -> Option<(Arc<Object>, Arc<Object>)> {
        let number = *self.numbers.get(&state.id())?;
        let place = self.objects.get_mut(&number)?;
        let object = Arc::new(Object::new(Arc::clone(&place.path), state));
        let before = std::mem::replace(place, Arc::clone(&object));
        Some((before, object))
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, id: Id) -> Option<Arc<Object>> {
        let number = self.numbers.remove(&id)?;
        self.gone.push_back((id, number));
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
        self.objects.remove(&number)
    }
}

/// Builds the body of a reply. Runs on the tree writer after the changes are published, so that
/// every object that the change made has its path.
pub type Late<T> = Box<dyn FnOnce(&Tree) -> T + Send>;
