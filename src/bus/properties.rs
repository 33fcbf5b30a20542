//! The properties: each is a function from the published state to its value on the bus.
//!
//! Facts: `docs/spec/dbus/dbus-api.md` §3 and §4.2. This module knows nothing of revisions (the
//! table says which function serves which revision), nor of the engine behind the state.

use std::{path::Path, sync::Arc};

use crate::{
    base::{ids::PoolUuid, name::Name, units::Sectors},
    bus::wire::Value,
    engine::encryption::BINDINGS_MAX,
    service::utc,
    view::{DeviceTier, DeviceView, EncryptionView, FilesystemView, PoolView},
};

/// The placeholder where there is no UUID.
pub const NO_UUID: &str = "00000000000000000000000000000000";

/// A filesystem, with the facts about its pool that its properties need.
#[derive(Debug, Clone, PartialEq)]
pub struct FilesystemObject {
    /// Its pool.
    pub pool: PoolUuid,
    /// The pool's name, part of the device link.
    pub pool_name: Name,
    /// The pool's object path.
    pub pool_path: Arc<str>,
    /// The filesystem.
    pub filesystem: Arc<FilesystemView>,
}

/// A block device, with the facts about its pool that its properties need.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceObject {
    /// Its pool.
    pub pool: PoolUuid,
    /// The pool's object path.
    pub pool_path: Arc<str>,
    /// The device.
    pub device: Arc<DeviceView>,
}

fn bytes(size: Sectors) -> String {
    size.bytes().0.to_string()
}

pub(super) fn path(path: &Path) -> Value {
    Value::str(path.to_string_lossy())
}

// ---- pool ----

/// `(bs)`: the key description in the lowest slot.
pub(super) fn lowest_key(encryption: &EncryptionView) -> Value {
    let lowest = encryption.keys.iter().min_by_key(|(slot, _)| *slot);
    Value::optional_str(lowest.map(|(_, description)| description.clone()))
}

/// `(b(ss))`: pin and configuration in the lowest slot.
pub(super) fn lowest_clevis(encryption: &EncryptionView) -> Value {
    let lowest = encryption.clevis.iter().min_by_key(|(slot, ..)| *slot);
    let (pin, configuration) = lowest.map(|(_, p, c)| (p.as_str(), c.as_str())).unwrap_or_default();
    Value::Struct(vec![Value::Bool(lowest.is_some()), Value::Struct(vec![Value::str(pin), Value::str(configuration)])])
}

static NOT_ENCRYPTED: EncryptionView =
    EncryptionView { keys: Vec::new(), clevis: Vec::new(), keys_agree: true, clevis_agree: true };

/// `(b…)`: whether the devices agree, and the value on which they agree. If they do not agree, the
/// value is what `tell` returns for an encryption without a binding.
fn legacy(pool: &PoolView, agree: fn(&EncryptionView) -> bool, tell: fn(&EncryptionView) -> Value) -> Value {
    let encryption = pool.encryption.as_ref().unwrap_or(&NOT_ENCRYPTED);
    let agree = agree(encryption);
    Value::Struct(vec![Value::Bool(agree), tell(if agree { encryption } else { &NOT_ENCRYPTED })])
}

pub(super) fn pool_uuid(pool: &PoolView) -> Value {
    Value::str(pool.uuid.simple())
}

pub(super) fn pool_name(pool: &PoolView) -> Value {
    Value::str(pool.name.as_str())
}

pub(super) fn encrypted(pool: &PoolView) -> Value {
    Value::Bool(pool.encryption.is_some())
}

pub(super) fn available_actions(pool: &PoolView) -> Value {
    Value::str(pool.availability.word())
}

pub(super) fn key_description(pool: &PoolView) -> Value {
    legacy(pool, |encryption| encryption.keys_agree, lowest_key)
}

pub(super) fn clevis_info(pool: &PoolView) -> Value {
    legacy(pool, |encryption| encryption.clevis_agree, lowest_clevis)
}

pub(super) fn has_cache(pool: &PoolView) -> Value {
    Value::Bool(pool.has_cache)
}

pub(super) fn pool_total(pool: &PoolView) -> Value {
    Value::str(bytes(pool.total))
}

/// The filler is `"0"` here, unlike in all other properties.
pub(super) fn pool_used(pool: &PoolView) -> Value {
    Value::Struct(vec![Value::Bool(pool.used.is_some()), Value::str(bytes(pool.used.unwrap_or_default()))])
}

pub(super) fn allocated(pool: &PoolView) -> Value {
    Value::str(bytes(pool.allocated))
}

pub(super) fn fs_limit(pool: &PoolView) -> Value {
    Value::U64(pool.fs_limit)
}

pub(super) fn overprovisioning(pool: &PoolView) -> Value {
    Value::Bool(pool.overprovisioning)
}

pub(super) fn no_alloc_space(pool: &PoolView) -> Value {
    Value::Bool(pool.no_alloc_space)
}

/// A variant whose type shows the kind of pool: unencrypted, version 1 (no token slots) or version
/// 2.
fn bindings(pool: &PoolView, legacy: fn(&PoolView) -> Value, slots: fn(&EncryptionView) -> Value) -> Value {
    Value::variant(match &pool.encryption {
        None => Value::str("Unencrypted"),
        Some(_) if pool.metadata_version == 1 => legacy(pool),
        Some(encryption) => slots(encryption),
    })
}

pub(super) fn key_descriptions(pool: &PoolView) -> Value {
    bindings(pool, key_description, |encryption| {
        let slot = |(slot, key): &(u32, String)| Value::Struct(vec![Value::U32(*slot), Value::str(key.as_str())]);
        Value::Array("(us)", encryption.keys.iter().map(slot).collect())
    })
}

pub(super) fn clevis_infos(pool: &PoolView) -> Value {
    bindings(pool, clevis_info, |encryption| {
        let slot = |(slot, pin, configuration): &(u32, String, String)| {
            let binding = Value::Struct(vec![Value::str(pin.as_str()), Value::str(configuration.as_str())]);
            Value::Struct(vec![Value::U32(*slot), binding])
        };
        Value::Array("(u(ss))", encryption.clevis.iter().map(slot).collect())
    })
}

pub(super) fn free_token_slots(pool: &PoolView) -> Value {
    let free = match &pool.encryption {
        Some(encryption) if pool.metadata_version != 1 => {
            Some(BINDINGS_MAX.saturating_sub(encryption.keys.len() + encryption.clevis.len()) as u8)
        }
        _ => None,
    };
    Value::Struct(vec![Value::Bool(free.is_some()), Value::Byte(free.unwrap_or(0))])
}

pub(super) fn volume_key_loaded(pool: &PoolView) -> Value {
    Value::variant(Value::Bool(pool.volume_key_loaded))
}

pub(super) fn metadata_version(pool: &PoolView) -> Value {
    Value::U64(pool.metadata_version.into())
}

pub(super) fn last_reencrypted(pool: &PoolView) -> Value {
    Value::optional_str(pool.last_reencrypt.map(utc))
}

// ---- filesystem ----

pub(super) fn filesystem_uuid(object: &FilesystemObject) -> Value {
    Value::str(object.filesystem.uuid.simple())
}

pub(super) fn filesystem_name(object: &FilesystemObject) -> Value {
    Value::str(object.filesystem.name.as_str())
}

pub(super) fn filesystem_node(object: &FilesystemObject) -> Value {
    path(&object.filesystem.name.link_in(&object.pool_name))
}

pub(super) fn filesystem_pool(object: &FilesystemObject) -> Value {
    Value::Path(object.pool_path.to_string())
}

pub(super) fn created(object: &FilesystemObject) -> Value {
    Value::str(utc(object.filesystem.created))
}

pub(super) fn filesystem_size(object: &FilesystemObject) -> Value {
    Value::str(bytes(object.filesystem.size))
}

pub(super) fn filesystem_used(object: &FilesystemObject) -> Value {
    Value::optional_str(object.filesystem.used.map(|used| used.0.to_string()))
}

pub(super) fn size_limit(object: &FilesystemObject) -> Value {
    Value::optional_str(object.filesystem.size_limit.map(bytes))
}

/// The filler is a UUID of zeros, as the existing daemon has sent it since 3.9.
pub(super) fn origin(object: &FilesystemObject) -> Value {
    let origin = object.filesystem.origin;
    let text = origin.map_or_else(|| NO_UUID.to_owned(), |origin| origin.simple());
    Value::Struct(vec![Value::Bool(origin.is_some()), Value::Str(text)])
}

pub(super) fn merge_scheduled(object: &FilesystemObject) -> Value {
    Value::Bool(object.filesystem.merge_scheduled)
}

// ---- blockdev ----

pub(super) fn device_uuid(object: &DeviceObject) -> Value {
    Value::str(object.device.uuid.simple())
}

pub(super) fn device_node(object: &DeviceObject) -> Value {
    path(&object.device.node)
}

pub(super) fn physical_path(object: &DeviceObject) -> Value {
    path(&object.device.physical)
}

pub(super) fn hardware_info(object: &DeviceObject) -> Value {
    Value::optional_str(object.device.hardware_info.clone())
}

pub(super) fn user_info(object: &DeviceObject) -> Value {
    Value::optional_str(object.device.user_info.clone())
}

pub(super) fn initialization_time(object: &DeviceObject) -> Value {
    Value::U64(object.device.initialized)
}

pub(super) fn device_pool(object: &DeviceObject) -> Value {
    Value::Path(object.pool_path.to_string())
}

pub(super) fn tier(object: &DeviceObject) -> Value {
    Value::U16(match object.device.tier {
        DeviceTier::Data => 0,
        DeviceTier::Cache => 1,
    })
}

pub(super) fn device_size(object: &DeviceObject) -> Value {
    Value::str(bytes(object.device.size))
}

pub(super) fn new_size(object: &DeviceObject) -> Value {
    Value::optional_str(object.device.new_size.map(bytes))
}
