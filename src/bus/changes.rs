//! Computes the next version of the tree, and the signals of the difference. The signals come from
//! a comparison of the old and the new tree, never from hand-written code, so that no property
//! changes without its signal.
//!
//! Pure: knows no connection and no thread.

use std::sync::Arc;

use imbl::ordmap::DiffItem;

use crate::{
    base::ids::PoolUuid,
    bus::{
        manager::StoppedLists,
        message::{self, Envelope, NotAMessage, Outgoing},
        object_entry::ADDED_SIGNATURE,
        planted::{self, HistoryFault},
        properties::{DeviceObject, FilesystemObject},
        rendering,
        schema::{ALL, Emits, Interface, InterfaceKind, PropertySource},
        table::{self, MemberShape, Row},
        tree::{Id, Object, ObjectState, TOP, Tree},
        wire::{Marshaller, Value},
    },
    view::{Change, DeviceView, FilesystemView, PoolView, View},
};

/// A signal about one object. Its messages are made when they are sent: making those of ten
/// thousand objects at once would delay the changes of all other pools.
#[derive(Debug)]
pub enum Signal {
    /// The object and all its interfaces were removed.
    Removed(Arc<Object>),
    /// The object was added, with all its interfaces and properties.
    Added(Arc<Object>),
    /// The object's state was replaced. Yields no message if no property differs.
    Changed {
        /// The object before.
        before: Arc<Object>,
        /// The object now.
        after: Arc<Object>,
    },
    /// Properties of the top object have changed.
    Manager {
        /// The lists of stopped pools before.
        before: Arc<StoppedLists>,
        /// The lists now.
        after: Arc<StoppedLists>,
    },
}

/// Signals of one change that have not been sent yet.
#[derive(Debug)]
pub struct Signals {
    signals: std::vec::IntoIter<Signal>,
    /// The remaining messages of a signal that is partly sent.
    begun: std::vec::IntoIter<Result<Outgoing, NotAMessage>>,
}

impl Signals {
    /// These signals, in this order.
    pub fn new(signals: Vec<Signal>) -> Signals {
        Signals { signals: signals.into_iter(), begun: Vec::new().into_iter() }
    }

    /// The next messages, until they add up to `bytes` bytes or none are left. A portion may end
    /// between the messages of one object: an object has ten messages, and the bus takes 100 µs to
    /// process them.
    pub fn portion(&mut self, bytes: usize) -> Vec<Result<Outgoing, NotAMessage>> {
        let mut portion = Vec::new();
        let mut sum = 0;
        while sum < bytes {
            if let Some(message) = self.begun.next() {
                sum += message.as_ref().map_or(0, Outgoing::bytes);
                portion.push(message);
                continue;
            }
            let Some(signal) = self.signals.next() else { break };
            let times = match () {
                () if planted::strikes(HistoryFault::SignalLost) => 0,
                () if planted::strikes(HistoryFault::SignalTwice) => 2,
                () => 1,
            };
            self.begun = (0..times).flat_map(|_| signal.messages()).collect::<Vec<_>>().into_iter();
        }
        portion
    }

    /// Whether all messages have been taken.
    pub fn is_empty(&self) -> bool {
        self.signals.len() == 0 && self.begun.len() == 0
    }
}

/// The tree after the changes, and the signals of the difference: first the removed objects, then
/// the added ones, then the changed ones.
///
/// All changes belong to one version: of two states of one pool only the last is used. A pool that
/// is removed and added again gets new objects.
pub fn apply(old: &Tree, changes: Vec<Change>) -> (Tree, Vec<Signal>) {
    let mut step = ChangeBuilder { tree: old.clone(), removed: Vec::new(), added: Vec::new(), changed: Vec::new() };
    let mut touched: Vec<(PoolUuid, bool)> = Vec::new();
    let mut touch = |uuid: PoolUuid, gone: bool| match touched.iter_mut().find(|(known, _)| *known == uuid) {
        Some((_, was_gone)) => *was_gone |= gone,
        None => touched.push((uuid, gone)),
    };
    let mut view = old.view.clone();
    for change in changes {
        match change {
            Change::Pool(pool) => {
                touch(pool.uuid, false);
                view.pools.insert(pool.uuid, pool);
            }
            Change::PoolGone(uuid) => {
                touch(uuid, true);
                view.pools.remove(&uuid);
            }
            // Reports of different steps may overtake each other on their way here. The newer
            // report wins.
            Change::Stopped(stopped) if stopped.version >= view.stopped.version => view.stopped = stopped,
            Change::Stopped(_) => {}
        }
    }
    for (uuid, was_gone) in touched {
        match (old.view.pools.get(&uuid), view.pools.get(&uuid)) {
            (Some(before), Some(after)) if was_gone => {
                step.remove_pool(before);
                step.add_pool(after);
            }
            (Some(before), Some(after)) => step.change_pool(before, after),
            (Some(before), None) => step.remove_pool(before),
            (None, Some(after)) => step.add_pool(after),
            (None, None) => {}
        }
    }
    step.change_manager(old, &view);
    step.tree.view = view;
    step.tree.version += 1;
    let ChangeBuilder { tree, removed, added, changed } = step;
    (tree, removed.into_iter().chain(added).chain(changed).collect())
}

struct ChangeBuilder {
    tree: Tree,
    removed: Vec<Signal>,
    added: Vec<Signal>,
    changed: Vec<Signal>,
}

impl ChangeBuilder {
    fn remove(&mut self, id: Id) {
        self.removed.extend(self.tree.remove(id).map(Signal::Removed));
    }

    fn remove_pool(&mut self, pool: &PoolView) {
        pool.filesystems.keys().for_each(|uuid| self.remove(Id::Filesystem(pool.uuid, *uuid)));
        pool.devices.keys().for_each(|uuid| self.remove(Id::Device(pool.uuid, *uuid)));
        self.remove(Id::Pool(pool.uuid));
    }

    fn add_pool(&mut self, pool: &Arc<PoolView>) {
        let object = self.tree.add(ObjectState::Pool(Arc::clone(pool)));
        let path = Arc::clone(&object.path);
        self.added.push(Signal::Added(object));
        pool.filesystems.values().for_each(|filesystem| self.add_filesystem(pool, &path, filesystem));
        pool.devices.values().for_each(|device| self.add_device(pool, &path, device));
    }

    fn add_filesystem(&mut self, pool: &PoolView, path: &Arc<str>, filesystem: &Arc<FilesystemView>) {
        let object = self.tree.add(filesystem_state(pool, path, filesystem));
        self.added.push(Signal::Added(object));
    }

    fn add_device(&mut self, pool: &PoolView, path: &Arc<str>, device: &Arc<DeviceView>) {
        let object = self.tree.add(device_state(pool, path, device));
        self.added.push(Signal::Added(object));
    }

    fn change_pool(&mut self, before: &Arc<PoolView>, after: &Arc<PoolView>) {
        if Arc::ptr_eq(before, after) {
            return;
        }
        let Some(path) = self.tree.of(Id::Pool(after.uuid)).map(|object| Arc::clone(&object.path)) else { return };
        self.change(ObjectState::Pool(Arc::clone(after)));
        let renamed = before.name != after.name;
        for difference in before.filesystems.diff(&after.filesystems) {
            match difference {
                DiffItem::Add(_, filesystem) => self.add_filesystem(after, &path, filesystem),
                DiffItem::Remove(uuid, _) => self.remove(Id::Filesystem(after.uuid, *uuid)),
                DiffItem::Update { .. } if renamed => {}
                DiffItem::Update { new: (_, filesystem), .. } => {
                    self.change(filesystem_state(after, &path, filesystem))
                }
            }
        }
        if renamed {
            // The link of each filesystem contains the pool's name.
            for filesystem in after.filesystems.values().filter(|now| before.filesystems.contains_key(&now.uuid)) {
                self.change(filesystem_state(after, &path, filesystem));
            }
        }
        for difference in before.devices.diff(&after.devices) {
            match difference {
                DiffItem::Add(_, device) => self.add_device(after, &path, device),
                DiffItem::Remove(uuid, _) => self.remove(Id::Device(after.uuid, *uuid)),
                DiffItem::Update { new: (_, device), .. } => self.change(device_state(after, &path, device)),
            }
        }
    }

    /// Gives an object its new state.
    fn change(&mut self, state: ObjectState) {
        let changed = self.tree.change(state);
        self.changed.extend(changed.map(|(before, after)| Signal::Changed { before, after }));
    }

    fn change_manager(&mut self, before: &Tree, after: &View) {
        if !Arc::ptr_eq(&before.view.stopped, &after.stopped) {
            let lists = Arc::new(before.stopped.after(&before.view.stopped, &after.stopped));
            self.changed.push(Signal::Manager { before: Arc::clone(&before.stopped), after: Arc::clone(&lists) });
            self.tree.stopped = lists;
        }
    }
}

fn filesystem_state(pool: &PoolView, path: &Arc<str>, filesystem: &Arc<FilesystemView>) -> ObjectState {
    ObjectState::Filesystem(FilesystemObject {
        pool: pool.uuid,
        pool_name: pool.name.clone(),
        pool_path: Arc::clone(path),
        filesystem: Arc::clone(filesystem),
    })
}

fn device_state(pool: &PoolView, path: &Arc<str>, device: &Arc<DeviceView>) -> ObjectState {
    ObjectState::Device(DeviceObject { pool: pool.uuid, pool_path: Arc::clone(path), device: Arc::clone(device) })
}

/// The rows that announce changes and whose values differ.
fn differences(
    kind: InterfaceKind,
    before: PropertySource<'_>,
    after: PropertySource<'_>,
) -> Vec<(&'static Row, Option<Value>)> {
    table::properties(kind)
        .filter_map(|row| {
            let MemberShape::Property { emits: emits @ (Emits::Value | Emits::Invalidation), .. } = row.member else {
                return None;
            };
            let value = table::value(row, after)?;
            let differs = table::value(row, before).as_ref() != Some(&value);
            differs.then_some((row, (emits == Emits::Value).then_some(value)))
        })
        .collect()
}

/// With more stopped pools than this, the signal invalidates the list instead of sending it.
/// Otherwise the list would be made and sent in eight revisions for each pool that stops.
const STOPPED_SENT_MAX: usize = 16;

/// The differences of the top object. Its properties are lists of stopped pools, few of which have
/// changed. Only those few are compared in the form that clients see.
fn manager_differences(before: &StoppedLists, after: &StoppedLists) -> Vec<(&'static Row, Option<Value>)> {
    let [only_before, only_after] = before.differences(after);
    let rows = differences(
        InterfaceKind::Manager,
        PropertySource::Manager(&only_before),
        PropertySource::Manager(&only_after),
    );
    let is_sent = after.count() <= STOPPED_SENT_MAX;
    let whole = |row| is_sent.then(|| table::value(row, PropertySource::Manager(after))).flatten();
    rows.into_iter().map(|(row, _)| (row, whole(row))).collect()
}

const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

impl Signal {
    /// The messages: one for an object that is added or removed, one for each interface whose
    /// properties have changed.
    pub fn messages(&self) -> Vec<Result<Outgoing, NotAMessage>> {
        let manager = |member| Envelope::Signal { path: TOP, interface: OBJECT_MANAGER, member };
        match self {
            Signal::Added(object) => {
                vec![message::message(manager("InterfacesAdded"), ADDED_SIGNATURE, rendering::entry(object).added())]
            }
            Signal::Removed(object) => {
                let mut m = Marshaller::default();
                m.str(&object.path);
                let kind = object.state.kind();
                m.array("s", |m| ALL.for_each(|revision| m.str(&Interface { kind, revision }.name())));
                vec![message::message(manager("InterfacesRemoved"), "oas", &m.finish())]
            }
            Signal::Changed { before, after } => {
                let (kind, path) = (after.state.kind(), &*after.path);
                ChangedProperties { path, kind, rows: differences(kind, before.state.subject(), after.state.subject()) }
                    .messages()
            }
            Signal::Manager { before, after } => {
                ChangedProperties { path: TOP, kind: InterfaceKind::Manager, rows: manager_differences(before, after) }
                    .messages()
            }
        }
    }
}

/// The changed properties of an object, in all revisions that have them.
struct ChangedProperties<'a> {
    path: &'a str,
    kind: InterfaceKind,
    /// Rows and their new values. `None` invalidates the property without a value.
    rows: Vec<(&'static Row, Option<Value>)>,
}

impl ChangedProperties<'_> {
    fn messages(&self) -> Vec<Result<Outgoing, NotAMessage>> {
        let interfaces = ALL.map(|revision| Interface { kind: self.kind, revision });
        let changed = interfaces.filter(|interface| self.rows.iter().any(|(row, _)| row.is_in(*interface)));
        changed.map(|interface| self.message(interface)).collect()
    }

    fn message(&self, interface: Interface) -> Result<Outgoing, NotAMessage> {
        let rows = || self.rows.iter().filter(|(row, _)| row.is_in(interface));
        let mut m = Marshaller::default();
        m.str(&interface.name());
        m.array("{sv}", |m| {
            for (row, value) in rows() {
                if let Some(value) = value {
                    m.align(8);
                    m.str(row.name);
                    m.property(value);
                }
            }
        });
        m.array("s", |m| rows().filter(|(_, value)| value.is_none()).for_each(|(row, _)| m.str(row.name)));
        let envelope = Envelope::Signal { path: self.path, interface: PROPERTIES, member: "PropertiesChanged" };
        message::message(envelope, "sa{sv}as", &m.finish())
    }
}
