//! Tests of the bus, and the hand-made states for them.

mod changes;
mod connection;
mod private_bus;
mod requests;
mod table;
mod wire;

use std::sync::Arc;

use dbus::Message;

use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        units::{Bytes, Sectors},
    },
    bus::{
        message::{self, Outgoing},
        tree::Tree,
        wire::{Types, Value},
    },
    view::{Availability, Change, DeviceTier, DeviceView, FilesystemView, PoolView},
};

/// A UUID with `n` as its last digits.
fn uuid<T: std::str::FromStr<Err: std::fmt::Debug>>(n: u64) -> T {
    format!("{n:032x}").parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// An unencrypted pool of version 2 with one device and no filesystem.
fn pool(n: u64, text: &str) -> PoolView {
    let pool = PoolView {
        uuid: uuid(n),
        name: name(text),
        metadata_version: 2,
        encryption: None,
        volume_key_loaded: false,
        last_reencrypt: None,
        reencryption: None,
        availability: Availability::Full,
        restriction: None,
        has_cache: false,
        fs_limit: 100,
        overprovisioning: true,
        no_alloc_space: false,
        total: Sectors(2_000_000),
        allocated: Sectors(1_000_000),
        used: Some(Sectors(4_000)),
        filesystems: Default::default(),
        failed_filesystems: Default::default(),
        devices: Default::default(),
    };
    with_device(pool, n * 1000)
}

fn with_device(mut pool: PoolView, n: u64) -> PoolView {
    let device = DeviceView {
        uuid: uuid(n),
        tier: DeviceTier::Data,
        node: format!("/dev/d{n}").into(),
        physical: format!("/dev/d{n}").into(),
        hardware_info: Some("wwn-1".into()),
        user_info: None,
        initialized: 1_795_227_291,
        size: Sectors(2_000_000),
        new_size: None,
        in_use: true,
        sector_bytes: (512, 4096),
    };
    pool.devices.insert(device.uuid, Arc::new(device));
    pool
}

fn filesystem(n: u64) -> FilesystemView {
    FilesystemView {
        uuid: uuid(n),
        name: name(&format!("fs{n}")),
        created: 1_795_227_303,
        size: Sectors(1 << 21),
        used: Some(Bytes(123)),
        size_limit: None,
        origin: None,
        merge_scheduled: false,
    }
}

fn with_filesystem(mut pool: PoolView, n: u64) -> PoolView {
    pool.filesystems.insert(uuid(n), Arc::new(filesystem(n)));
    pool
}

fn is(pool: &PoolView) -> Change {
    Change::Pool(Arc::new(pool.clone()))
}

fn pool_id(n: u64) -> PoolUuid {
    uuid(n)
}

fn device_id(n: u64) -> DevUuid {
    uuid(n)
}

fn filesystem_id(n: u64) -> FsUuid {
    uuid(n)
}

/// The tree after these changes, from nothing.
fn tree(changes: Vec<Change>) -> Tree {
    super::changes::apply(&Tree::default(), changes).0
}

/// All arguments of a message, read back by libdbus.
fn values(message: &Message) -> Vec<Value> {
    let mut iter = message.iter_init();
    let mut signature = String::new();
    while iter.arg_type() != dbus::arg::ArgType::Invalid {
        signature.push_str(&iter.signature());
        iter.next();
    }
    message::arguments(message, Types(signature.leak())).unwrap()
}

/// The message as libdbus parses it. libdbus must accept it.
fn read_back(outgoing: &Outgoing) -> Message {
    let bytes: Vec<u8> = outgoing.parts.iter().flat_map(|part| part.bytes()).copied().collect();
    Message::demarshal(&bytes).unwrap()
}

/// A signal as a monitor prints it: path, member, arguments.
fn shown(outgoing: Outgoing) -> String {
    let message = read_back(&outgoing);
    let (path, member) = (message.path().unwrap(), message.member().unwrap());
    let short = |text: &str| text.replace("org.storage.stratis3.", "").replace("/org/storage/stratis3", "~");
    let arguments: Vec<String> = values(&message).iter().map(plain).collect();
    short(&format!("{path} {member} {}", arguments.join(" ")))
}

/// A value in short form: containers in their brackets, variants without any.
fn plain(value: &Value) -> String {
    let list = |values: &[Value]| values.iter().map(plain).collect::<Vec<_>>().join(" ");
    match value {
        Value::Byte(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::Str(v) => format!("'{v}'"),
        Value::Path(v) => v.clone(),
        Value::Descriptor(_) => "descriptor".into(),
        Value::Elements(..) => "bytes".into(),
        Value::Array(_, values) => format!("[{}]", list(values)),
        Value::Struct(values) => format!("({})", list(values)),
        Value::Variant(inner) => plain(inner),
        Value::Dict(_, entries) => {
            let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{}={}", plain(k), plain(v))).collect();
            format!("{{{}}}", entries.join(" "))
        }
    }
}

/// The entry of a dict with text or path keys.
fn entry<'a>(dict: &'a Value, key: &str) -> &'a Value {
    let Value::Dict(_, entries) = dict else { panic!("{dict:?} is no dict") };
    let found = entries.iter().find(|(k, _)| matches!(k, Value::Str(k) | Value::Path(k) if k == key));
    &found.unwrap_or_else(|| panic!("{dict:?} has no {key}")).1
}
