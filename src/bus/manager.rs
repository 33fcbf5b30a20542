//! The properties of Manager: the version, and the lists of stopped pools as the bytes in which
//! clients read them.
//!
//! A list of a thousand stopped pools takes milliseconds to make, and one thread answers every
//! read. So the tree writer encodes each stopped pool once, when its change is published, in every
//! form that a property has; the lists keep the bytes from one version to the next. The first read
//! of a list in a version joins the bytes of all pools, and later reads of that version share the
//! result.
//!
//! Facts: `docs/spec/dbus/dbus-api.md` §3.1. This module knows no revisions, and nothing of the
//! engine behind the state.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    base::ids::PoolUuid,
    bus::{
        properties::{lowest_clevis, lowest_key, path},
        wire::{Marshaller, Value},
    },
    service::INTERFACE_LEVEL,
    view::{StoppedPoolView, StoppedPoolsView},
};

/// The form of an entry, which depends on the property and the revision that show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedForm {
    /// `LockedPools`: encrypted pools only.
    Locked,
    /// `StoppedPools` before r8.
    Plain,
    /// `StoppedPools` from r8 on, with metadata version and features.
    Detailed,
}

impl StoppedForm {
    const EVERY: [StoppedForm; 3] = [StoppedForm::Locked, StoppedForm::Plain, StoppedForm::Detailed];
}

/// A stopped pool in each form. Empty in a form that does not show it.
#[derive(Debug, PartialEq)]
struct StoppedEntry([Box<[u8]>; 3]);

impl StoppedEntry {
    fn new(pool: &StoppedPoolView) -> StoppedEntry {
        #[cfg(test)]
        tests::ENCODED.with(|count| count.set(count.get() + 1));
        StoppedEntry(StoppedForm::EVERY.map(|form| {
            let mut m = Marshaller::default();
            if let Some((uuid, description)) = stopped_pool(pool, form) {
                m.value(&uuid);
                m.value(&description);
            }
            m.finish().into()
        }))
    }
}

/// All stopped pools of one version.
#[derive(Debug, Clone, Default)]
pub struct StoppedLists {
    entries: OrdMap<PoolUuid, Arc<StoppedEntry>>,
    /// The list in each form, once it has been read.
    joined: [OnceLock<Arc<[u8]>>; 3],
}

impl StoppedLists {
    /// The lists after a change. Encodes only the pools that differ.
    pub(super) fn after(&self, before: &StoppedPoolsView, now: &StoppedPoolsView) -> StoppedLists {
        let mut entries = self.entries.clone();
        for difference in before.pools().diff(now.pools()) {
            match difference {
                DiffItem::Add(uuid, pool) | DiffItem::Update { new: (uuid, pool), .. } => {
                    match std::panic::catch_unwind(AssertUnwindSafe(|| StoppedEntry::new(pool))) {
                        Ok(entry) => drop(entries.insert(*uuid, Arc::new(entry))),
                        Err(_) => {
                            log::error!(
                                "omitting stopped pool {uuid} from the lists: making its entry panicked; please report it"
                            );
                            entries.remove(uuid);
                        }
                    }
                }
                DiffItem::Remove(uuid, _) => drop(entries.remove(uuid)),
            }
        }
        StoppedLists { entries, joined: Default::default() }
    }

    /// The entries that two versions do not share: first those of `self`, then those of `other`.
    pub(super) fn differences(&self, other: &StoppedLists) -> [StoppedLists; 2] {
        let [mut ours, mut theirs] = [StoppedLists::default(), StoppedLists::default()];
        for difference in self.entries.diff(&other.entries) {
            match difference {
                DiffItem::Add(uuid, new) => drop(theirs.entries.insert(*uuid, Arc::clone(new))),
                DiffItem::Remove(uuid, old) => drop(ours.entries.insert(*uuid, Arc::clone(old))),
                DiffItem::Update { old: (uuid, old), new: (_, new) } => {
                    ours.entries.insert(*uuid, Arc::clone(old));
                    theirs.entries.insert(*uuid, Arc::clone(new));
                }
            }
        }
        [ours, theirs]
    }

    /// How many pools there are.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// The list in a form.
    pub(super) fn list(&self, form: StoppedForm) -> Value {
        let joined = self.joined[form as usize].get_or_init(|| {
            let mut m = Marshaller::default();
            let entries = self.entries.values().map(|entry| &entry.0[form as usize]);
            entries.filter(|bytes| !bytes.is_empty()).for_each(|bytes| m.marshalled(bytes));
            m.finish().into()
        });
        Value::Elements(STOPPED_POOL_SIGNATURE, Arc::clone(joined))
    }
}

pub(super) fn version(_: &StoppedLists) -> Value {
    Value::str(INTERFACE_LEVEL)
}

/// Before r2: only stopped pools of version 1 whose encryption is not unlocked.
pub(super) fn locked_pools(stopped: &StoppedLists) -> Value {
    stopped.list(StoppedForm::Locked)
}

pub(super) fn stopped_pools_r2(stopped: &StoppedLists) -> Value {
    stopped.list(StoppedForm::Plain)
}

pub(super) fn stopped_pools_r8(stopped: &StoppedLists) -> Value {
    stopped.list(StoppedForm::Detailed)
}

/// Signature of an entry in a list of stopped pools.
const STOPPED_POOL_SIGNATURE: &str = "{sa{sv}}";

/// The entry of a stopped pool: UUID and description. `None` if the list does not show the pool.
fn stopped_pool(pool: &StoppedPoolView, form: StoppedForm) -> Option<(Value, Value)> {
    if form == StoppedForm::Locked && pool.encryption.is_none() {
        return None;
    }
    let devices = pool.devices.iter().map(|(node, uuid)| {
        Value::Dict("{ss}", vec![(Value::str("devnode"), path(node)), (Value::str("uuid"), Value::str(uuid.simple()))])
    });
    let mut entries = vec![("devs", Value::Array("a{ss}", devices.collect()))];
    // The name is shown even if other pools have it too. Requests by such a name are refused, but
    // clients show the name to people.
    if let Some(name) = &pool.name {
        entries.push(("name", Value::str(name.as_str())));
    }
    if let Some(encryption) = &pool.encryption {
        entries.push(("key_description", agreed(encryption.keys_agree, lowest_key(encryption))));
        entries.push(("clevis_info", agreed(encryption.clevis_agree, lowest_clevis(encryption))));
    }
    if form == StoppedForm::Detailed {
        entries.extend(details(pool));
    }
    let entries = entries.into_iter().map(|(key, value)| (Value::str(key), Value::variant(value)));
    Some((Value::str(pool.uuid.simple()), Value::Dict("{sv}", entries.collect())))
}

/// Metadata version and features. Always present, at least as "unknown".
fn details(pool: &StoppedPoolView) -> [(&'static str, Value); 2] {
    let version = Value::Struct(vec![
        Value::Bool(pool.metadata_version.is_some()),
        Value::U64(pool.metadata_version.unwrap_or(0).into()),
    ]);
    let features = pool.features.unwrap_or_default();
    let present = [
        ("encryption", features.encryption),
        ("key_description_present", features.key_description),
        ("clevis_present", features.clevis),
    ];
    let names = present.into_iter().filter(|(_, is_there)| *is_there);
    let features = Value::Struct(vec![
        Value::Bool(pool.features.is_some()),
        Value::Dict("{sb}", names.map(|(name, _)| (Value::str(name), Value::Bool(true))).collect()),
    ]);
    [("metadata_version", version), ("features", features)]
}

/// `(bv)`: the value if the devices agree, otherwise a text that says why there is no value.
fn agreed(agreed: bool, information: Value) -> Value {
    let inner = match agreed {
        true => information,
        false => Value::str("the devices of the pool do not agree on how it is encrypted"),
    };
    Value::Struct(vec![Value::Bool(agreed), Value::variant(inner)])
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use dbus::Message;

    use super::{STOPPED_POOL_SIGNATURE, StoppedForm, StoppedLists, stopped_pool, version};
    use crate::{
        base::name::Name,
        bus::{
            answer::Answer,
            caller::Caller,
            changes, message,
            reader::{Response, respond},
            send_queue::MessagePart,
            tree::{TOP, Tree},
            wire::{Body, Value},
        },
        view::{Change, EncryptionView, StoppedPoolView, StoppedPoolsView},
    };

    thread_local! {
        /// How many entries this thread has encoded.
        pub(super) static ENCODED: Cell<usize> = const { Cell::new(0) };
    }

    fn pool(number: u64) -> StoppedPoolView {
        let keys = EncryptionView { keys: vec![(1, "k".into())], clevis: vec![], keys_agree: true, clevis_agree: true };
        StoppedPoolView {
            uuid: format!("{number:032x}").parse().unwrap(),
            name: Some(Name::new(&format!("pool{number}")).unwrap()),
            devices: vec![("/dev/x".into(), format!("{number:032x}").parse().unwrap())],
            metadata_version: Some(2),
            features: None,
            encryption: number.is_multiple_of(2).then_some(keys),
            partial: false,
            reason: None,
        }
    }

    fn stopped(version: u64, pools: impl IntoIterator<Item = StoppedPoolView>) -> Arc<StoppedPoolsView> {
        let mut stopped = StoppedPoolsView::new(version);
        pools.into_iter().for_each(|pool| stopped.insert(pool));
        Arc::new(stopped)
    }

    fn after(tree: &Tree, stopped: &Arc<StoppedPoolsView>) -> Tree {
        changes::apply(tree, vec![Change::Stopped(Arc::clone(stopped))]).0
    }

    fn read(tree: &Tree, member: &str, arguments: &[&str]) -> Body {
        let mut call = Message::new_method_call(":1.1", TOP, "org.freedesktop.DBus.Properties", member).unwrap();
        arguments.iter().for_each(|argument| call.append_items(&[(*argument).into()]));
        match respond(&call, tree).unwrap() {
            Response::Answer(Answer::Return(body)) => body,
            _ => panic!("{member} is not answered at once"),
        }
    }

    const MANAGER: &str = "org.storage.stratis3.Manager.r";

    /// Each read made and checked the list of a thousand pools again, for 8 to 14 ms, and no other
    /// call was answered meanwhile.
    #[test]
    fn reads_encode_no_stopped_pool_again() {
        const COUNT: u64 = 1000;
        let many = stopped(1, (0..COUNT).map(pool));
        let tree = after(&Tree::default(), &many);
        assert_eq!(ENCODED.get(), COUNT as usize);
        for revision in 0..=9 {
            let (interface, name) =
                (format!("{MANAGER}{revision}"), if revision < 2 { "LockedPools" } else { "StoppedPools" });
            for _ in 0..3 {
                for body in [read(&tree, "Get", &[&interface, name]), read(&tree, "GetAll", &[&interface])] {
                    let [shared] = body.shared.as_slice() else { panic!("{name}.r{revision} is a copy") };
                    assert!(body.bytes.len() < 100 && shared.bytes.len() > 50 * COUNT as usize);
                }
            }
        }
        assert_eq!(ENCODED.get(), COUNT as usize, "the reads");
        let one_more = after(&tree, &stopped(2, (0..=COUNT).map(pool)));
        read(&one_more, "Get", &[&format!("{MANAGER}9"), "StoppedPools"]);
        // The unchanged pools are compared by value, not encoded again.
        assert_eq!(ENCODED.get(), COUNT as usize + 1, "the change of one pool");
    }

    /// The joined bytes equal those made from values, and libdbus reads them.
    #[test]
    fn kept_lists_equal_those_made_of_values() {
        let caller = Caller { name: ":1.1".into(), serial: 1 };
        for count in [0, 1, 2, 7, 300] {
            let stopped = stopped(1, (0..count).map(pool));
            let tree = after(&Tree::default(), &stopped);
            let forms = [
                (StoppedForm::Locked, 1, "LockedPools"),
                (StoppedForm::Plain, 2, "StoppedPools"),
                (StoppedForm::Detailed, 9, "StoppedPools"),
            ];
            for (form, revision, name) in forms {
                let entries = stopped.pools().values().filter_map(|pool| stopped_pool(pool, form));
                let list = Value::Dict(STOPPED_POOL_SIGNATURE, entries.collect());
                let interface = format!("{MANAGER}{revision}");
                let sent = |body: Body| -> Message {
                    let outgoing = message::answer(&caller, &Answer::Return(body)).unwrap();
                    let is_shared = outgoing.parts.iter().any(|part| matches!(part, MessagePart::Shared(_)));
                    assert_eq!(is_shared, count == 300);
                    let bytes: Vec<u8> = outgoing.parts.iter().flat_map(|part| part.bytes()).copied().collect();
                    Message::demarshal(&bytes).unwrap()
                };
                let got = sent(read(&tree, "Get", &[&interface, name]));
                assert_eq!(message::arguments(&got, ["v"]).unwrap(), [Value::variant(list.clone())]);
                let all = sent(read(&tree, "GetAll", &[&interface]));
                let version = (Value::str("Version"), Value::variant(version(&StoppedLists::default())));
                let expected = Value::Dict("{sv}", vec![version, (Value::str(name), Value::variant(list))]);
                assert_eq!(message::arguments(&all, ["a{sv}"]).unwrap(), [expected]);
            }
        }
    }
}
