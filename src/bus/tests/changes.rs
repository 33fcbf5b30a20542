//! From a change to its signals: which signals are sent, in which order, and that kept bytes equal
//! freshly built ones.

use std::sync::Arc;

use proptest::prelude::*;

use super::{
    device_id, entry, filesystem_id, is, name, pool, pool_id, read_back, shown, tree, uuid, values, with_device,
    with_filesystem,
};
use crate::{
    base::units::Sectors,
    bus::{
        changes::{Signal, Signals, apply},
        message::{self, Envelope},
        object_entry::ADDED_SIGNATURE,
        rendering,
        schema::{ALL, Emits, Interface, InterfaceKind, PropertySource},
        table::{self, MemberShape},
        tree::{Id, Object, Tree},
        wire::Value,
    },
    view::{Availability, Change, EncryptionView, FeaturesView, PoolView, StoppedPoolView, StoppedPoolsView},
};

fn sent(signals: &[Signal]) -> Vec<String> {
    signals.iter().flat_map(Signal::messages).map(|message| shown(message.unwrap())).collect()
}

/// Only the paths and members of the signals.
fn heads(signals: &[Signal]) -> Vec<String> {
    let head = |text: String| text.split(' ').take(3).collect::<Vec<_>>().join(" ");
    sent(signals).into_iter().map(head).collect()
}

/// The tree after one change, and the signals of the change.
fn step(before: &Tree, change: Change) -> (Tree, Vec<String>) {
    let (after, signals) = apply(before, vec![change]);
    (after, sent(&signals))
}

fn revisions(kind: &str, revisions: std::ops::RangeInclusive<u8>, path: &str, rest: &str) -> Vec<String> {
    revisions.map(|revision| format!("{path} PropertiesChanged '{kind}.r{revision}' {rest}")).collect()
}

#[test]
fn new_pool_is_announced_before_filesystems_and_devices() {
    let new = with_filesystem(with_filesystem(with_device(pool(1, "p"), 7), 3), 4);
    let (tree, signals) = apply(&Tree::default(), vec![is(&new)]);
    let paths: Vec<_> = (0..5).map(|n| format!("~ InterfacesAdded ~/{n}")).collect();
    assert_eq!(heads(&signals), paths);
    assert_eq!(tree.path(Id::Pool(pool_id(1))), "/org/storage/stratis3/0");
    assert_eq!(tree.path(Id::Filesystem(pool_id(1), filesystem_id(4))), "/org/storage/stratis3/2");
    assert_eq!(tree.path(Id::Device(pool_id(1), device_id(7))), "/org/storage/stratis3/3");
    assert_eq!(tree.version, 1);
}

#[test]
fn added_object_is_one_signal_with_all_properties() {
    let (_, signals) = apply(&Tree::default(), vec![is(&pool(1, "p"))]);
    let messages: Vec<_> = signals[0].messages();
    assert_eq!(messages.len(), 1);
    let arguments = values(&read_back(messages[0].as_ref().unwrap()));
    let Value::Dict(_, interfaces) = &arguments[1] else { panic!("{arguments:?}") };
    assert_eq!(interfaces.len(), ALL.count());
    for revision in ALL {
        let interface = Interface { kind: InterfaceKind::Pool, revision };
        let Value::Dict(_, properties) = entry(&arguments[1], &interface.name()) else { panic!() };
        let expected: Vec<_> = table::properties(InterfaceKind::Pool).filter(|row| row.is_in(interface)).collect();
        assert_eq!(properties.len(), expected.len());
        for row in expected {
            let Value::Variant(value) = entry(entry(&arguments[1], &interface.name()), row.name) else { panic!() };
            // A property that is a variant is sent as that variant. The value here says that the
            // pool is not encrypted.
            let signature = match (row.signature().as_str(), row.name) {
                ("v", "VolumeKeyLoaded") => "b".to_owned(),
                ("v", _) => "s".to_owned(),
                (signature, _) => signature.to_owned(),
            };
            assert_eq!(value.signature(), signature, "{}", row.name);
        }
    }
}

/// A portion has at least the bytes asked for, as long as there are so many, and ends as soon as it
/// has them. All portions together are all signals.
#[test]
fn portions_add_up_to_all_signals() {
    let before = tree(vec![is(&with_filesystem(pool(1, "p"), 3))]);
    let (_, signals) = apply(&before, vec![is(&with_filesystem(pool(1, "q"), 3))]);
    let (all, count) = (sent(&signals), signals.len());
    assert!(all.len() > count, "a signal has several messages");
    let largest = signals.iter().flat_map(Signal::messages).map(|message| message.unwrap().bytes()).max().unwrap();
    for bytes in [1, largest, largest + 1, 2 * largest, usize::MAX] {
        let (_, signals) = apply(&before, vec![is(&with_filesystem(pool(1, "q"), 3))]);
        let (mut signals, mut heard) = (Signals::new(signals), Vec::new());
        while !signals.is_empty() {
            let portion: Vec<_> = signals.portion(bytes).into_iter().map(Result::unwrap).collect();
            assert!(!portion.is_empty(), "{bytes}: nothing comes after {} messages", heard.len());
            let size = |messages: &[message::Outgoing]| messages.iter().map(message::Outgoing::bytes).sum::<usize>();
            let (last, others) = portion.split_last().unwrap();
            assert!(size(others) < bytes, "{bytes}: more than asked for");
            assert!(size(&portion) >= bytes || signals.is_empty(), "{bytes}: less than asked for, {}", last.bytes());
            heard.extend(portion.into_iter().map(shown));
        }
        assert_eq!(heard, all, "{bytes}");
        assert_eq!(signals.portion(1).len(), 0);
    }
    assert!(Signals::new(Vec::new()).is_empty());
}

#[test]
fn gone_pool_is_removed_after_its_objects() {
    let before = tree(vec![is(&with_filesystem(pool(1, "p"), 3))]);
    let (after, signals) = step(&before, Change::PoolGone(pool_id(1)));
    let interfaces = |kind: &str| ALL.map(|r| format!("'{kind}.r{r}'")).collect::<Vec<_>>().join(" ");
    assert_eq!(
        signals,
        [
            format!("~ InterfacesRemoved ~/1 [{}]", interfaces("filesystem")),
            format!("~ InterfacesRemoved ~/2 [{}]", interfaces("blockdev")),
            format!("~ InterfacesRemoved ~/0 [{}]", interfaces("pool")),
        ]
    );
    assert_eq!(after.objects().count(), 0);
    let (_, signals) = apply(&after, vec![is(&pool(1, "p"))]);
    assert_eq!(heads(&signals), ["~ InterfacesAdded ~/3", "~ InterfacesAdded ~/4"]);
}

/// A reply waited for links while another client destroyed the filesystem. The reply then named the
/// path `/` as the new object.
#[test]
fn reply_names_objects_that_are_gone_again() {
    let before = tree(vec![is(&with_filesystem(pool(1, "p"), 5))]);
    let made = Id::Filesystem(pool_id(1), filesystem_id(5));
    let path = before.path(made);
    let (after, _) = step(&before, is(&pool(1, "p")));
    assert!(after.of(made).is_none() && after.at(&path).is_none());
    assert_eq!((after.path(made), path.as_str()), (path.clone(), "/org/storage/stratis3/1"));
    assert_eq!(after.path(Id::Filesystem(pool_id(1), filesystem_id(6))), "/");
}

#[test]
fn renamed_pool_invalidates_the_links_of_its_filesystems() {
    let old = with_filesystem(pool(1, "p"), 3);
    let before = tree(vec![is(&old)]);
    let new = PoolView { name: name("q"), ..with_filesystem(old, 4) };
    let (after, signals) = step(&before, is(&new));
    let mut expected = revisions("pool", ALL, "~/0", "{'Name'='q'} []");
    expected.extend(revisions("filesystem", ALL, "~/1", "{} ['Devnode']"));
    assert!(signals[0].starts_with("~ InterfacesAdded ~/3 "));
    assert_eq!(signals[1..], expected);
    let link = table::value(
        table::find_property(Interface { kind: InterfaceKind::Filesystem, revision: 0 }, "Devnode").unwrap(),
        after.at("/org/storage/stratis3/1").unwrap().state.subject(),
    );
    assert_eq!(link, Some(Value::str("/dev/stratis/q/fs3")));
}

#[test]
fn each_interface_signals_its_own_changes_once() {
    let old = pool(1, "p");
    let before = tree(vec![is(&old)]);
    let new = PoolView { allocated: Sectors(5), no_alloc_space: true, ..old };
    let (_, signals) = step(&before, is(&new));
    let mut expected = revisions("pool", 0..=0, "~/0", "{'AllocatedSize'='2560'} []");
    expected.extend(revisions("pool", 1..=9, "~/0", "{'AllocatedSize'='2560' 'NoAllocSpace'=true} []"));
    assert_eq!(signals, expected);
}

#[test]
fn renamed_filesystem_sends_name_and_invalidates_link() {
    let mut new = with_filesystem(pool(1, "p"), 3);
    let before = tree(vec![is(&new)]);
    let filesystem = Arc::make_mut(new.filesystems.get_mut(&filesystem_id(3)).unwrap());
    filesystem.name = name("other");
    let (_, signals) = step(&before, is(&new));
    assert_eq!(signals, revisions("filesystem", ALL, "~/1", "{'Name'='other'} ['Devnode']"));
}

#[test]
fn constants_and_silent_properties_are_readable_but_unsent() {
    let old = pool(1, "p");
    let before = tree(vec![is(&old)]);
    let encryption =
        EncryptionView { keys: vec![(1, "k".into())], clevis: vec![], keys_agree: true, clevis_agree: true };
    let new = PoolView { volume_key_loaded: true, encryption: Some(encryption), ..old };
    let (after, signals) = step(&before, is(&new));
    let mut expected = revisions("pool", 0..=7, "~/0", "{'KeyDescription'=(true (true 'k'))} []");
    let slots = "'KeyDescriptions'=[(1 'k')] 'ClevisInfos'=[] 'FreeTokenSlots'=(true 14)";
    expected.extend(revisions("pool", 8..=8, "~/0", &format!("{{{slots}}} []")));
    expected.extend(revisions("pool", 9..=9, "~/0", &format!("{{'Encrypted'=true {slots}}} []")));
    assert_eq!(signals, expected);
    let all = rendering::entry(after.at("/org/storage/stratis3/0").unwrap()).all(8);
    let message = message::message(Envelope::Signal { path: "/", interface: "a.b", member: "C" }, "a{sv}", &all.bytes);
    let properties = &values(&read_back(&message.unwrap()))[0];
    assert_eq!(entry(properties, "Encrypted"), &Value::variant(Value::Bool(true)));
    assert_eq!(entry(properties, "VolumeKeyLoaded"), &Value::variant(Value::Bool(true)));
}

/// A property of the pool, in short form.
fn property(pool: &PoolView, revision: u8, name: &str) -> String {
    let row = table::find_property(Interface { kind: InterfaceKind::Pool, revision }, name).unwrap();
    super::plain(&table::value(row, PropertySource::Pool(pool)).unwrap())
}

/// `docs/spec/dbus/dbus-api.md` §3.2: the form of the property for each kind of pool.
#[test]
fn bindings_are_told_by_version_and_agreement() {
    let encryption = |keys: Vec<(u32, &str)>, clevis: Vec<(u32, &str, &str)>| EncryptionView {
        keys: keys.into_iter().map(|(slot, key)| (slot, key.to_owned())).collect(),
        clevis: clevis.into_iter().map(|(slot, pin, config)| (slot, pin.to_owned(), config.to_owned())).collect(),
        keys_agree: true,
        clevis_agree: true,
    };
    let plain = pool(1, "p");
    let told = |pool: &PoolView| {
        let old = ["KeyDescription", "ClevisInfo"].map(|name| property(pool, 7, name));
        let new = ["KeyDescriptions", "ClevisInfos", "FreeTokenSlots"].map(|name| property(pool, 9, name));
        [&old[..], &new[..]].concat().join(" ")
    };
    let none = "(true (false '')) (true (false ('' '')))";
    assert_eq!(told(&plain), format!("{none} 'Unencrypted' 'Unencrypted' (false 0)"));

    let several = encryption(vec![(7, "a"), (3, "b")], vec![(9, "tang", "{1}"), (2, "tpm2", "{}")]);
    let new = PoolView { encryption: Some(several), ..plain.clone() };
    assert_eq!(
        told(&new),
        "(true (true 'b')) (true (true ('tpm2' '{}'))) [(7 'a') (3 'b')] [(9 ('tang' '{1}')) (2 ('tpm2' '{}'))] (true 11)"
    );

    let both = encryption(vec![(1, "k")], vec![(2, "tpm2", "{}")]);
    let old = PoolView { metadata_version: 1, encryption: Some(both.clone()), ..plain.clone() };
    let agreed = "(true (true 'k')) (true (true ('tpm2' '{}')))";
    assert_eq!(told(&old), format!("{agreed} {agreed} (false 0)"));
    // Only the binding on which the devices disagree is left out.
    let torn = EncryptionView { clevis: vec![], clevis_agree: false, ..both };
    let torn = PoolView { metadata_version: 1, encryption: Some(torn), ..plain };
    let told_of_torn = "(true (true 'k')) (false (false ('' '')))";
    assert_eq!(told(&torn), format!("{told_of_torn} {told_of_torn} (false 0)"));
    assert_eq!(property(&torn, 9, "Encrypted"), "true");
    assert_eq!(property(&torn, 8, "VolumeKeyLoaded"), "false");
}

/// §3.2: the changes by a re-encryption and a decryption; a job that still runs changes no
/// property.
#[test]
fn finished_reencryption_is_signalled() {
    use crate::{
        platform::{Timestamp, luks},
        view::ReencryptionJob,
    };
    let keys = vec![(0, "k".to_owned())];
    let encryption = EncryptionView { keys, clevis: vec![], keys_agree: true, clevis_agree: true };
    let encrypted = PoolView { encryption: Some(encryption), volume_key_loaded: true, ..pool(1, "p") };
    let before = tree(vec![is(&encrypted)]);
    let reencryption = Some(Arc::new(ReencryptionJob::new(luks::ReencryptionMode::Reencrypt, Timestamp::default())));
    let (busy, signals) = step(&before, is(&PoolView { reencryption, ..encrypted.clone() }));
    assert_eq!(signals, [""; 0]);
    let reencrypted = PoolView { last_reencrypt: Some(1_795_227_303), ..encrypted };
    let (after, signals) = step(&busy, is(&reencrypted));
    let when = "'LastReencryptedTimestamp'=(true '2026-11-21T02:15:03Z')";
    assert_eq!(signals, revisions("pool", 9..=9, "~/0", &format!("{{{when}}} []")));

    let (_, signals) = step(&after, is(&pool(1, "p")));
    let slots = "'KeyDescriptions'='Unencrypted' 'ClevisInfos'='Unencrypted' 'FreeTokenSlots'=(false 0)";
    let mut expected = revisions("pool", 0..=7, "~/0", "{'KeyDescription'=(true (false ''))} []");
    expected.extend(revisions("pool", 8..=8, "~/0", &format!("{{{slots}}} []")));
    let all = format!("{{'Encrypted'=false {slots} 'LastReencryptedTimestamp'=(false '')}} []");
    expected.extend(revisions("pool", 9..=9, "~/0", &all));
    assert_eq!(signals, expected);
}

#[test]
fn user_info_is_signalled_from_r3_on() {
    let mut new = pool(1, "p");
    let before = tree(vec![is(&new)]);
    Arc::make_mut(new.devices.get_mut(&device_id(1000)).unwrap()).user_info = Some("here".into());
    let (_, signals) = step(&before, is(&new));
    assert_eq!(signals, revisions("blockdev", 3..=9, "~/1", "{'UserInfo'=(true 'here')} []"));
}

#[test]
fn same_state_again_sends_nothing() {
    let state = with_filesystem(pool(1, "p"), 3);
    let before = tree(vec![is(&state)]);
    let (after, signals) = step(&before, is(&state));
    assert_eq!(signals, [""; 0]);
    assert_eq!(after.version, before.version + 1);
    assert_eq!(step(&before, Change::PoolGone(pool_id(9))).1, [""; 0]);
}

#[test]
fn several_changes_are_one_version_removals_first() {
    let (a, b) = (with_filesystem(pool(1, "a"), 3), pool(2, "b"));
    let before = tree(vec![is(&a), is(&b)]);
    let full = PoolView { availability: Availability::NoRequests, ..b.clone() };
    let (after, signals) = apply(&before, vec![is(&full), is(&b), is(&pool(3, "c")), Change::PoolGone(pool_id(1))]);
    assert_eq!(
        heads(&signals),
        [
            "~ InterfacesRemoved ~/1",
            "~ InterfacesRemoved ~/2",
            "~ InterfacesRemoved ~/0",
            "~ InterfacesAdded ~/5",
            "~ InterfacesAdded ~/6",
        ]
    );
    assert_eq!(after.version, before.version + 1);
}

#[test]
fn pool_that_comes_back_gets_new_objects() {
    let state = pool(1, "p");
    let before = tree(vec![is(&state)]);
    let (after, signals) = apply(&before, vec![Change::PoolGone(pool_id(1)), is(&state)]);
    assert_eq!(
        heads(&signals),
        ["~ InterfacesRemoved ~/1", "~ InterfacesRemoved ~/0", "~ InterfacesAdded ~/2", "~ InterfacesAdded ~/3"]
    );
    assert!(after.at("/org/storage/stratis3/0").is_none());
}

/// A read of the top object is made again only if something that the object shows has changed.
#[test]
fn top_object_changes_with_stopped_pools_only() {
    let (top, first) = ("/org/storage/stratis3", "/org/storage/stratis3/0");
    let before = tree(vec![is(&pool(1, "p"))]);
    let (renamed, _) = apply(&before, vec![is(&pool(1, "q"))]);
    assert!(before.shows_the_same(&renamed, top) && !before.shows_the_same(&renamed, first));
    let (with_stopped, _) = apply(&before, vec![stopped(1, vec![stopped_pool()])]);
    assert!(!before.shows_the_same(&with_stopped, top) && before.shows_the_same(&with_stopped, first));
}

fn stopped(version: u64, pools: Vec<StoppedPoolView>) -> Change {
    let mut stopped = StoppedPoolsView::new(version);
    pools.into_iter().for_each(|pool| stopped.insert(pool));
    Change::Stopped(Arc::new(stopped))
}

fn stopped_pool() -> StoppedPoolView {
    StoppedPoolView {
        uuid: uuid(8),
        name: Some(name("s")),
        devices: vec![("/dev/x".into(), uuid(9))],
        metadata_version: Some(1),
        features: None,
        encryption: Some(EncryptionView {
            keys: vec![(1, "k".into())],
            clevis: vec![],
            keys_agree: true,
            clevis_agree: true,
        }),
        partial: false,
        reason: None,
    }
}

#[test]
fn each_revision_signals_its_form_of_stopped_pools() {
    let (tree, signals) = step(&Tree::default(), stopped(1, vec![stopped_pool()]));
    let uuid = "00000000000000000000000000000008";
    let device = "{'devnode'='/dev/x' 'uuid'='00000000000000000000000000000009'}";
    let base = format!(
        "'devs'=[{device}] 'name'='s' 'key_description'=(true (true 'k')) 'clevis_info'=(true (false ('' '')))"
    );
    let more = "'metadata_version'=(true 1) 'features'=(false {})";
    let mut expected = revisions("Manager", 0..=1, "~", &format!("{{'LockedPools'={{'{uuid}'={{{base}}}}}}} []"));
    expected.extend(revisions("Manager", 2..=7, "~", &format!("{{'StoppedPools'={{'{uuid}'={{{base}}}}}}} []")));
    expected.extend(revisions("Manager", 8..=9, "~", &format!("{{'StoppedPools'={{'{uuid}'={{{base} {more}}}}}}} []")));
    assert_eq!(signals, expected);

    // An unencrypted pool is not listed as locked, and shows its features.
    let features = FeaturesView { encryption: false, key_description: false, clevis: true };
    let open = StoppedPoolView { encryption: None, features: Some(features), partial: true, ..stopped_pool() };
    let (_, signals) = step(&tree, stopped(2, vec![open]));
    assert!(signals[0].ends_with("{'LockedPools'={}} []"), "{}", signals[0]);
    assert!(signals[9].ends_with("'features'=(true {'clevis_present'=true})}}} []"), "{}", signals[9]);
    assert!(!signals[9].contains("key_description"), "{}", signals[9]);
}

/// Found in review: if two stopped pools had the same name, neither showed it.
#[test]
fn stopped_pools_of_one_name_both_show_it() {
    let pools = [7, 8].map(|n| StoppedPoolView { uuid: uuid(n), ..stopped_pool() });
    let (_, signals) = step(&Tree::default(), stopped(1, pools.into()));
    assert_eq!(signals.len(), 10);
    for signal in signals {
        assert_eq!(signal.matches("'name'='s'").count(), 2, "{signal}");
    }
}

#[test]
fn only_reports_say_why_a_pool_is_stopped() {
    let tree = tree(vec![stopped(1, vec![stopped_pool()])]);
    let pool = StoppedPoolView { reason: Some("a device is missing".into()), ..stopped_pool() };
    let (after, signals) = step(&tree, stopped(2, vec![pool]));
    assert_eq!((after.view.stopped.version, signals), (2, vec![]));
}

/// When a pool was stopped beside a thousand stopped pools, the daemon made and sent the list of
/// all of them in eight revisions.
#[test]
fn stop_beside_many_stopped_pools_tells_no_more() {
    let told = |count: u64| {
        let pools = |count| (0..count).map(|n| StoppedPoolView { uuid: uuid(100 + n), ..stopped_pool() }).collect();
        let before = tree(vec![stopped(1, pools(count))]);
        let (after, signals) = step(&before, stopped(2, pools(count + 1)));
        assert_eq!(after.view.stopped.pools().len() as u64, count + 1);
        signals
    };
    let few = told(10);
    assert!(few.len() == 10 && few[9].matches("/dev/x").count() == 11, "{few:?}");
    assert_eq!(told(100), told(1000));
    assert_eq!(told(1000)[9], "~ PropertiesChanged 'Manager.r9' {} ['StoppedPools']");
}

#[test]
fn older_list_of_stopped_pools_is_ignored() {
    let newer = tree(vec![stopped(5, vec![stopped_pool()])]);
    let (after, signals) = step(&newer, stopped(4, vec![]));
    assert_eq!(signals, [""; 0]);
    assert_eq!(after.view.stopped.version, 5);
}

/// A change to a small pool.
#[derive(Debug, Clone)]
enum Edit {
    Rename(u8),
    Filesystem(u64, u64),
    NoFilesystem(u64),
    Device(u64, Option<String>),
    Total(u64),
    Stop,
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        any::<u8>().prop_map(Edit::Rename),
        (0..6u64, 1..4u64).prop_map(|(n, size)| Edit::Filesystem(n, size)),
        (0..6u64).prop_map(Edit::NoFilesystem),
        (0..3u64, prop::option::of("[a-z]{1,3}")).prop_map(|(n, info)| Edit::Device(n, info)),
        (1..5u64).prop_map(Edit::Total),
        Just(Edit::Stop),
    ]
}

fn edited(pool: PoolView, edit: &Edit) -> PoolView {
    match edit {
        Edit::Rename(n) => PoolView { name: name(&format!("p{n}")), ..pool },
        Edit::Filesystem(n, size) => {
            let mut filesystem = super::filesystem(*n);
            filesystem.size = Sectors(size << 21);
            let mut pool = pool;
            pool.filesystems.insert(filesystem.uuid, Arc::new(filesystem));
            pool
        }
        Edit::NoFilesystem(n) => PoolView { filesystems: pool.filesystems.without(&filesystem_id(*n)), ..pool },
        Edit::Device(n, info) => {
            let mut pool = with_device(pool, *n);
            Arc::make_mut(pool.devices.get_mut(&device_id(*n)).unwrap()).user_info = info.clone();
            pool
        }
        Edit::Total(n) => PoolView { total: Sectors(*n), ..pool },
        Edit::Stop => pool,
    }
}

/// The knowledge of a client that follows only signals: path, interface, property.
type Heard = std::collections::BTreeMap<(String, String, String), Option<Value>>;

fn hear(heard: &mut Heard, signal: &Signal) {
    for message in signal.messages() {
        let message = read_back(&message.unwrap());
        let (path, arguments) = (message.path().unwrap().to_string(), values(&message));
        match (&*message.member().unwrap(), &arguments[..]) {
            ("InterfacesAdded", [Value::Path(path), Value::Dict(_, interfaces)]) => {
                for (interface, properties) in interfaces {
                    let (Value::Str(interface), Value::Dict(_, properties)) = (interface, properties) else { panic!() };
                    for (property, value) in properties {
                        let Value::Str(property) = property else { panic!() };
                        let key = (path.clone(), interface.clone(), property.clone());
                        assert!(heard.insert(key, Some(value.clone())).is_none(), "announced twice");
                    }
                }
            }
            ("InterfacesRemoved", [Value::Path(path), _]) => {
                let before = heard.len();
                heard.retain(|(known, ..), _| known != path);
                assert!(heard.len() < before, "{path} was not known");
            }
            ("PropertiesChanged", [Value::Str(interface), Value::Dict(_, changed), Value::Array(_, invalid)]) => {
                let key = |name: &Value| match name {
                    Value::Str(name) => (path.clone(), interface.clone(), name.clone()),
                    other => panic!("{other:?}"),
                };
                for (name, value) in changed {
                    let before = heard.insert(key(name), Some(value.clone()));
                    assert!(before.is_some_and(|before| before.as_ref() != Some(value)), "no change: {name:?}");
                }
                invalid.iter().for_each(|name| drop(heard.insert(key(name), None)));
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    /// P4 as a whole: a client that follows the signals knows exactly the published properties, and
    /// no signal repeats a value that the client knows.
    #[test]
    fn signals_tell_all_and_nothing_else(edits in prop::collection::vec(edit(), 1..12)) {
        let mut tree = Tree::default();
        let mut heard = Heard::new();
        let mut running: Option<PoolView> = None;
        for edit in &edits {
            let change = match (edit, running.take()) {
                (Edit::Stop, _) => Change::PoolGone(pool_id(1)),
                (edit, before) => is(running.insert(edited(before.unwrap_or_else(|| pool(1, "p")), edit))),
            };
            let (after, signals) = apply(&tree, vec![change]);
            signals.iter().for_each(|signal| hear(&mut heard, signal));
            tree = after;
            let mut published = Heard::new();
            for object in tree.objects() {
                // The kept bytes equal freshly built ones.
                let fresh = Object::new(Arc::clone(&object.path), object.state.clone());
                prop_assert_eq!(rendering::entry(object), rendering::entry(&fresh));
                hear(&mut published, &Signal::Added(Arc::clone(object)));
            }
            let signalled = |(_, interface, property): &(String, String, String)| {
                let interface = Interface::parse(interface).unwrap();
                let row = table::find_property(interface, property).unwrap();
                matches!(row.member, MemberShape::Property { emits: Emits::Value | Emits::Const, .. })
            };
            prop_assert!(heard.keys().eq(published.keys()));
            for (key, value) in &published {
                prop_assert!(!signalled(key) || heard.get(key) == Some(value), "{key:?}");
            }
        }
    }
}

#[test]
fn entry_is_accepted_by_libdbus_for_every_kind() {
    let tree = tree(vec![is(&with_filesystem(pool(1, "p"), 3))]);
    for object in tree.objects() {
        let envelope = Envelope::Signal { path: "/", interface: "a.b", member: "C" };
        let message = message::message(envelope, ADDED_SIGNATURE, rendering::entry(object).added()).unwrap();
        assert_eq!(values(&read_back(&message))[0], Value::Path(object.path.to_string()));
    }
}
