//! The methods: decoded arguments in, an operation of the engine out. A handler decodes nothing,
//! locks nothing and sends nothing. It returns either the outcome or the chain that leads to it.
//!
//! Facts: `docs/spec/dbus/dbus-api.md` §2. A method whose arguments changed has one handler for
//! each form.

use std::{os::fd::AsFd, path::PathBuf};

use crate::{
    base::{
        error_chain,
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
    },
    bus::{
        arguments::{self, ArgumentError, ClevisSpec, FilesystemSpec, KeySpec, Mechanisms},
        message::BadArguments,
        outcome::Outcome,
        tree::{Id, Late, Object, ObjectState, Tree},
        wire::{Descriptor, DescriptorArgument, FromValue, PathArgument, Value},
    },
    engine::{
        Error,
        encryption::{BindRequest, EncryptionError, Kind, NewBinding, RebindRequest, SlotRequest, UnlockMethod},
        ops::{
            self, CacheTier, IntegritySpec, KeyChange, MetadataCopy, MetadataVersion, NewPool, Secret, StopOutcome,
            TagSpec, UnlockOptions,
        },
        request::Step,
    },
    service::{
        passphrase,
        report::{self, Report},
    },
};

/// A call with its arguments, whose types are those of the row.
pub struct Call<'a> {
    /// The published tree when the call was read.
    pub tree: &'a Tree,
    /// The object that was called; `None` for the top object.
    pub object: Option<&'a Object>,
    /// The arguments, or the new value of a property.
    pub arguments: Vec<Value>,
}

impl Call<'_> {
    /// The arguments as a tuple.
    fn arguments<T: FromValue>(&mut self) -> Result<T, BadArguments> {
        T::from_value(Value::Struct(std::mem::take(&mut self.arguments))).ok_or(BadArguments::Row)
    }

    fn pool(&self) -> Result<PoolUuid, BadArguments> {
        arguments::pool_object(self.object).ok_or(BadArguments::Row)
    }
}

/// What is left to do for a call.
pub enum HandlerResult {
    /// Nothing: the call is answered at once.
    Now(Outcome),
    /// Run this chain of the engine.
    Chain(Step<Outcome>),
    /// Run this chain of the engine once the descriptor is readable, which may be long after the
    /// call. The chain also runs when the wait has taken too long.
    After(Descriptor, Step<Outcome>),
    /// Make a report.
    Report(Report),
}

type Handled = Result<HandlerResult, BadArguments>;

/// Turns refused arguments into outcomes: they are not D-Bus errors.
fn checked(work: Result<HandlerResult, ArgumentError>) -> Handled {
    Ok(work.unwrap_or_else(|refusal| HandlerResult::Now(Outcome::refused(&refusal))))
}

/// The chain of an engine operation. `tell` makes the result of the reply from the result of the
/// operation; it returns `None` if nothing was changed.
fn chain<T: Send + 'static>(
    next: Step<Result<T, Error>>,
    tell: impl FnOnce(T) -> Option<Late<Value>> + Send + 'static,
) -> HandlerResult {
    HandlerResult::Chain(next.map(|result| Outcome::of(result, tell)))
}

/// The result `(true, value)`.
fn changed(value: Value) -> Late<Value> {
    Box::new(|_| Value::Struct(vec![Value::Bool(true), value]))
}

/// The result `(true, value)`, where the value contains paths of objects that only exist once the
/// change is published.
fn changed_later(build: impl FnOnce(&Tree) -> Value + Send + 'static) -> Late<Value> {
    Box::new(move |tree| Value::Struct(vec![Value::Bool(true), build(tree)]))
}

fn device_paths(tree: &Tree, pool: PoolUuid, devices: &[DevUuid]) -> Value {
    Value::Array("o", devices.iter().map(|uuid| Value::Path(tree.path(Id::Device(pool, *uuid)))).collect())
}

fn paths(texts: Vec<String>) -> Vec<PathBuf> {
    texts.into_iter().map(PathBuf::from).collect()
}

/// The result `true` if something was changed.
fn whether(changed: bool) -> Option<Late<Value>> {
    changed.then(|| Box::new(|_: &Tree| Value::Bool(true)) as Late<Value>)
}

// ---- Manager and Report ----

pub(super) fn list_keys(_: Call<'_>) -> Handled {
    Ok(chain(ops::list_keys(), |keys| {
        let keys = keys.into_iter().map(Value::Str).collect();
        Some(Box::new(|_: &Tree| Value::Array("s", keys)))
    }))
}

pub(super) fn set_key(mut call: Call<'_>) -> Handled {
    let (description, descriptor): (String, DescriptorArgument) = call.arguments()?;
    checked((|| {
        let description = arguments::key_description(&description)?;
        let descriptor = descriptor.0.ok_or(ArgumentError::NoDescriptor)?;
        Ok(with_passphrase(descriptor, |key| {
            ops::set_key(description, key).map(|set| {
                Outcome::of(set, |change| match change {
                    KeyChange::Created => Some(pair(true, false)),
                    KeyChange::Replaced => Some(pair(true, true)),
                    KeyChange::Same => None,
                })
            })
        }))
    })())
}

/// Reads a passphrase and continues with it.
fn with_passphrase(
    descriptor: Descriptor,
    follow: impl FnOnce(Secret) -> Step<Outcome> + Send + 'static,
) -> HandlerResult {
    let readable = descriptor.clone();
    let chain = Step::brief(move |_| match passphrase::read(descriptor.0.as_fd()) {
        Ok(passphrase) => follow(passphrase),
        Err(error) => Step::Done(Outcome::refused(&error)),
    });
    HandlerResult::After(readable, chain)
}

fn pair(first: bool, second: bool) -> Late<Value> {
    Box::new(move |_| Value::Struct(vec![Value::Bool(first), Value::Bool(second)]))
}

pub(super) fn unset_key(mut call: Call<'_>) -> Handled {
    let (description,): (String,) = call.arguments()?;
    checked((|| {
        let unset = ops::unset_key(arguments::key_description(&description)?);
        Ok(chain(unset, whether))
    })())
}

pub(super) fn create_pool_r0(mut call: Call<'_>) -> Handled {
    type Arguments = (String, Option<u16>, Vec<String>, Option<String>, Option<(String, String)>);
    let (name, redundancy, devices, key, clevis): Arguments = call.arguments()?;
    checked((|| {
        arguments::redundancy(redundancy)?;
        let bindings = Mechanisms::parse_legacy(key, clevis)?.bindings()?;
        create_pool(name, devices, bindings, || Ok(IntegritySpec::default()))
    })())
}

pub(super) fn create_pool_r5(mut call: Call<'_>) -> Handled {
    type Arguments = (String, Vec<String>, Option<String>, Option<(String, String)>);
    let (name, devices, key, clevis): Arguments = call.arguments()?;
    checked((|| {
        let bindings = Mechanisms::parse_legacy(key, clevis)?.bindings()?;
        create_pool(name, devices, bindings, || Ok(IntegritySpec::default()))
    })())
}

pub(super) fn create_pool_r8(mut call: Call<'_>) -> Handled {
    type Arguments = (String, Vec<String>, Vec<KeySpec>, Vec<ClevisSpec>, Option<u64>, Option<String>, Option<bool>);
    let (name, devices, keys, clevis, journal, tag_spec, superblock): Arguments = call.arguments()?;
    checked((|| {
        // The order of the checks decides which of several mistakes is reported. It is the order of
        // the existing daemon.
        let mechanisms = Mechanisms::parse(keys, clevis)?;
        let tag_spec: Option<TagSpec> = arguments::tag_spec(tag_spec)?;
        create_pool(name, devices, mechanisms.bindings()?, || arguments::integrity(journal, tag_spec, superblock))
    })())
}

fn create_pool(
    name: String,
    devices: Vec<String>,
    bindings: Vec<NewBinding>,
    integrity: impl FnOnce() -> Result<IntegritySpec, ArgumentError>,
) -> Result<HandlerResult, ArgumentError> {
    let new = NewPool {
        name: Name::chosen(&name)?,
        integrity: integrity()?,
        devices: paths(devices),
        version: MetadataVersion::V2,
        bindings,
    };
    Ok(chain(ops::create_pool(new), |created| {
        let (pool, devices) = created?;
        Some(changed_later(move |tree| {
            Value::Struct(vec![Value::Path(tree.path(Id::Pool(pool))), device_paths(tree, pool, &devices)])
        }))
    }))
}

/// The reply contains the UUID as 32 digits, as everywhere. A path that is not a pool's is refused
/// in every revision, as in the existing daemon since 3.9 (`dbus-api.md` §12).
pub(super) fn destroy_pool(mut call: Call<'_>) -> Handled {
    let (path,): (PathArgument,) = call.arguments()?;
    checked((|| {
        let uuid = arguments::pool(call.tree, &path)?;
        let tell = move |destroyed: bool| destroyed.then(|| changed(Value::str(uuid.simple())));
        Ok(chain(ops::destroy_pool(uuid), tell))
    })())
}

pub(super) fn engine_state_report(call: Call<'_>) -> Handled {
    drop(call);
    Ok(HandlerResult::Report(Report::EngineState))
}

pub(super) fn get_report(mut call: Call<'_>) -> Handled {
    let (name,): (String,) = call.arguments()?;
    Ok(match report::by_name(&name) {
        Ok(report) => HandlerResult::Report(report),
        Err(error) => HandlerResult::Now(Outcome::refused(&error)),
    })
}

pub(super) fn start_pool_r2(mut call: Call<'_>) -> Handled {
    let (uuid, method): (String, Option<String>) = call.arguments()?;
    checked((|| {
        let method = arguments::legacy_unlock_method(method)?;
        Ok(HandlerResult::Chain(start_pool(arguments::pool_uuid(&uuid)?, without_key(method), CacheTier::Keep)))
    })())
}

pub(super) fn start_pool_r4(mut call: Call<'_>) -> Handled {
    let (id, id_type, method): (String, String, Option<String>) = call.arguments()?;
    checked((|| {
        let method = arguments::legacy_unlock_method(method)?;
        Ok(HandlerResult::Chain(start_pool(arguments::pool_id(&id, &id_type)?, without_key(method), CacheTier::Keep)))
    })())
}

/// Unlocks with the keys that are already available.
fn without_key(method: Option<UnlockMethod>) -> UnlockOptions {
    UnlockOptions { method, passphrase: None }
}

pub(super) fn start_pool_r8(mut call: Call<'_>) -> Handled {
    type Arguments = (String, String, Option<Option<u32>>, Option<DescriptorArgument>);
    let (id, id_type, method, key): Arguments = call.arguments()?;
    start_pool_with_key((id, id_type), method, key, CacheTier::Keep)
}

pub(super) fn start_pool_r9(mut call: Call<'_>) -> Handled {
    type Arguments = (String, String, Option<Option<u32>>, Option<DescriptorArgument>, bool);
    let (id, id_type, method, key, remove_cache): Arguments = call.arguments()?;
    let cache = if remove_cache { CacheTier::Drop } else { CacheTier::Keep };
    start_pool_with_key((id, id_type), method, key, cache)
}

fn start_pool_with_key(
    (id, id_type): (String, String),
    method: Option<Option<u32>>,
    key: Option<DescriptorArgument>,
    cache: CacheTier,
) -> Handled {
    checked((|| {
        let which = arguments::pool_id(&id, &id_type)?;
        let method = arguments::unlock_method(method);
        let Some(descriptor) = arguments::passphrase(key)? else {
            return Ok(HandlerResult::Chain(start_pool(which, without_key(method), cache)));
        };
        Ok(with_passphrase(descriptor, move |passphrase| {
            start_pool(which, UnlockOptions { method, passphrase: Some(passphrase) }, cache)
        }))
    })())
}

fn start_pool(which: PoolRef, unlock: UnlockOptions, cache: CacheTier) -> Step<Outcome> {
    let tell = |started: Option<ops::Started>| {
        let ops::Started { pool, devices, filesystems } = started?;
        Some(changed_later(move |tree| {
            let filesystem = |uuid: &FsUuid| Value::Path(tree.path(Id::Filesystem(pool, *uuid)));
            Value::Struct(vec![
                Value::Path(tree.path(Id::Pool(pool))),
                device_paths(tree, pool, &devices),
                Value::Array("o", filesystems.iter().map(filesystem).collect()),
            ])
        }))
    };
    ops::start_pool(which, unlock, cache).map(move |started| Outcome::of(started, tell))
}

/// The old way to start an encrypted pool: a start with an unlock method, which opens all devices
/// of the pool.
pub(super) fn unlock_pool(mut call: Call<'_>) -> Handled {
    let (uuid, method): (String, String) = call.arguments()?;
    checked((|| {
        let which = arguments::pool_uuid(&uuid)?;
        let unlock = without_key(arguments::legacy_unlock_method(Some(method))?);
        Ok(chain(ops::start_pool(which, unlock, CacheTier::Keep), |started| {
            let devices = started?.devices;
            Some(changed(Value::Array("s", devices.iter().map(|uuid| Value::str(uuid.simple())).collect())))
        }))
    })())
}

/// A path that is not a pool's is refused, as in [`destroy_pool`].
pub(super) fn stop_pool_r2(mut call: Call<'_>) -> Handled {
    let (path,): (PathArgument,) = call.arguments()?;
    checked(arguments::pool(call.tree, &path).map(|uuid| stop_pool(PoolRef::Uuid(uuid))))
}

pub(super) fn stop_pool_r6(mut call: Call<'_>) -> Handled {
    let (id, id_type): (String, String) = call.arguments()?;
    checked(arguments::pool_id(&id, &id_type).map(stop_pool))
}

fn stop_pool(which: PoolRef) -> HandlerResult {
    HandlerResult::Chain(ops::stop_pool(which).map(|result| {
        let stopped = |uuid: PoolUuid| Outcome::Done(changed(Value::str(uuid.simple())));
        match result {
            Ok(StopOutcome::Done(uuid) | StopOutcome::CleanedUp(uuid)) => stopped(uuid),
            Ok(StopOutcome::Already) => Outcome::NoChange,
            // The only refusal after a change: the pool's objects have been removed.
            Ok(StopOutcome::Partly(uuid, error)) => Outcome::Refused(format!(
                "pool {uuid} has been stopped, but some of its devices could not be taken down ({}); see what uses them, \
                 then stop the pool again",
                error_chain::sentence(&error)
            )),
            Err(error) => Outcome::refused(&error),
        }
    }))
}

pub(super) fn refresh_state(call: Call<'_>) -> Handled {
    drop(call);
    Ok(chain(ops::refresh(), |()| None))
}

// ---- pool ----

fn metadata_copy(current: bool) -> MetadataCopy {
    if current { MetadataCopy::Current } else { MetadataCopy::Written }
}

fn told_as_is(text: String) -> Option<Late<Value>> {
    Some(Box::new(|_| Value::Str(text)))
}

pub(super) fn metadata(mut call: Call<'_>) -> Handled {
    let (current,): (bool,) = call.arguments()?;
    Ok(chain(ops::pool_metadata(call.pool()?, metadata_copy(current)), told_as_is))
}

pub(super) fn filesystem_metadata(mut call: Call<'_>) -> Handled {
    let (name, current): (Option<String>, bool) = call.arguments()?;
    Ok(chain(ops::filesystem_metadata(call.pool()?, name, metadata_copy(current)), told_as_is))
}

pub(super) fn create_filesystems_r0(mut call: Call<'_>) -> Handled {
    let (specs,): (Vec<(String, Option<String>)>,) = call.arguments()?;
    let specs = specs.into_iter().map(|(name, size)| (name, size, None)).collect();
    create_filesystems(call.pool()?, specs)
}

pub(super) fn create_filesystems_r6(mut call: Call<'_>) -> Handled {
    let (specs,): (Vec<FilesystemSpec>,) = call.arguments()?;
    create_filesystems(call.pool()?, specs)
}

fn create_filesystems(pool: PoolUuid, specs: Vec<FilesystemSpec>) -> Handled {
    checked((|| {
        let Some(new) = arguments::filesystem(specs)? else { return Ok(HandlerResult::Now(Outcome::NoChange)) };
        Ok(chain(ops::create_filesystems(pool, vec![new]), move |created| {
            (!created.is_empty()).then(|| {
                changed_later(move |tree| {
                    let tell = |(uuid, name): &(FsUuid, Name)| {
                        let path = Value::Path(tree.path(Id::Filesystem(pool, *uuid)));
                        Value::Struct(vec![path, Value::str(name.as_str())])
                    };
                    Value::Array("(os)", created.iter().map(tell).collect())
                })
            })
        }))
    })())
}

pub(super) fn destroy_filesystems(mut call: Call<'_>) -> Handled {
    let (paths,): (Vec<PathArgument>,) = call.arguments()?;
    let pool = call.pool()?;
    let filesystems = arguments::filesystems_of(call.tree, pool, &paths);
    if filesystems.is_empty() {
        return Ok(HandlerResult::Now(Outcome::NoChange));
    }
    Ok(chain(ops::destroy_filesystems(pool, filesystems), |destroyed| {
        (!destroyed.is_empty())
            .then(|| changed(Value::Array("s", destroyed.iter().map(|uuid| Value::str(uuid.simple())).collect())))
    }))
}

pub(super) fn snapshot_filesystem(mut call: Call<'_>) -> Handled {
    let (origin, name): (PathArgument, String) = call.arguments()?;
    let pool = call.pool()?;
    checked((|| {
        let origin = arguments::filesystem_of(call.tree, pool, &origin)?;
        let snapshot = ops::snapshot_filesystem(pool, origin, Name::chosen(&name)?);
        Ok(chain(snapshot, move |created| {
            let uuid = created?;
            Some(changed_later(move |tree| Value::Path(tree.path(Id::Filesystem(pool, uuid)))))
        }))
    })())
}

/// Adding no devices changes nothing and succeeds. A cache cannot be created on no devices.
#[derive(PartialEq)]
enum NoDevices {
    Fine,
    Refused,
}

type AddDevices = fn(PoolUuid, Vec<PathBuf>) -> Step<Result<Vec<DevUuid>, Error>>;

fn add_devices(mut call: Call<'_>, add: AddDevices, none: NoDevices) -> Handled {
    let (devices,): (Vec<String>,) = call.arguments()?;
    let pool = call.pool()?;
    if devices.is_empty() && none == NoDevices::Fine {
        return Ok(HandlerResult::Now(Outcome::NoChange));
    }
    Ok(chain(add(pool, paths(devices)), move |added| {
        (!added.is_empty()).then(|| changed_later(move |tree| device_paths(tree, pool, &added)))
    }))
}

pub(super) fn add_data_devs(call: Call<'_>) -> Handled {
    add_devices(call, ops::add_data_devices, NoDevices::Fine)
}

/// In r0 to r4 an encrypted pool cannot have a cache.
pub(super) fn init_cache_r0(call: Call<'_>) -> Handled {
    match call.object.map(|object| &object.state) {
        Some(ObjectState::Pool(pool)) if pool.encryption.is_some() => {
            Ok(HandlerResult::Now(Outcome::refused(&ArgumentError::CacheOfEncrypted(pool.name.clone()))))
        }
        _ => init_cache_r5(call),
    }
}

pub(super) fn init_cache_r5(call: Call<'_>) -> Handled {
    add_devices(call, ops::init_cache, NoDevices::Refused)
}

pub(super) fn add_cache_devs(call: Call<'_>) -> Handled {
    add_devices(call, ops::add_cache_devices, NoDevices::Fine)
}

pub(super) fn grow_physical_device(mut call: Call<'_>) -> Handled {
    let (device,): (String,) = call.arguments()?;
    let pool = call.pool()?;
    checked((|| {
        let grown = ops::grow_device(pool, device.parse::<DevUuid>()?);
        Ok(chain(grown, whether))
    })())
}

/// The result of setting a property: only that it succeeded.
fn set() -> Option<Late<Value>> {
    Some(Box::new(|_: &Tree| Value::Bool(true)))
}

pub(super) fn set_fs_limit(mut call: Call<'_>) -> Handled {
    let (limit,): (u64,) = call.arguments()?;
    Ok(chain(ops::set_fs_limit(call.pool()?, limit), |()| set()))
}

pub(super) fn set_overprovisioning(mut call: Call<'_>) -> Handled {
    let (allowed,): (bool,) = call.arguments()?;
    Ok(chain(ops::set_overprovisioning(call.pool()?, allowed), |_| set()))
}

pub(super) fn rename_pool(mut call: Call<'_>) -> Handled {
    let (name,): (String,) = call.arguments()?;
    let pool = call.pool()?;
    checked((|| {
        let tell = move |renamed: bool| renamed.then(|| changed(Value::str(pool.simple())));
        Ok(chain(ops::rename_pool(pool, Name::chosen(&name)?), tell))
    })())
}

// ---- encryption of a pool ----

fn bind(pool: PoolUuid, request: BindRequest, slot: SlotRequest) -> HandlerResult {
    chain(ops::bind(pool, request, slot), whether)
}

pub(super) fn bind_clevis_r0(mut call: Call<'_>) -> Handled {
    let (pin, json): (String, String) = call.arguments()?;
    let pool = call.pool()?;
    checked(arguments::clevis(&pin, &json).map(|request| bind(pool, request, SlotRequest::Legacy)))
}

pub(super) fn bind_clevis_r8(mut call: Call<'_>) -> Handled {
    let (pin, json, slot): (String, String, Option<u32>) = call.arguments()?;
    let pool = call.pool()?;
    checked(arguments::clevis(&pin, &json).map(|request| bind(pool, request, arguments::slot(slot))))
}

fn bind_keyring(pool: PoolUuid, description: &str, slot: SlotRequest) -> Handled {
    checked(arguments::key_description(description).map(|key| bind(pool, BindRequest::Keyring(key), slot)))
}

pub(super) fn bind_keyring_r0(mut call: Call<'_>) -> Handled {
    let (description,): (String,) = call.arguments()?;
    bind_keyring(call.pool()?, &description, SlotRequest::Legacy)
}

pub(super) fn bind_keyring_r8(mut call: Call<'_>) -> Handled {
    let (description, slot): (String, Option<u32>) = call.arguments()?;
    bind_keyring(call.pool()?, &description, arguments::slot(slot))
}

fn rebind(pool: PoolUuid, request: RebindRequest, slot: SlotRequest) -> HandlerResult {
    chain(ops::rebind(pool, request, slot), whether)
}

pub(super) fn rebind_clevis_r0(call: Call<'_>) -> Handled {
    Ok(rebind(call.pool()?, RebindRequest::Clevis, SlotRequest::Legacy))
}

pub(super) fn rebind_clevis_r8(mut call: Call<'_>) -> Handled {
    let (slot,): (Option<u32>,) = call.arguments()?;
    Ok(rebind(call.pool()?, RebindRequest::Clevis, arguments::slot(slot)))
}

fn rebind_keyring(pool: PoolUuid, description: &str, slot: SlotRequest) -> Handled {
    checked(arguments::key_description(description).map(|key| rebind(pool, RebindRequest::Keyring(key), slot)))
}

pub(super) fn rebind_keyring_r0(mut call: Call<'_>) -> Handled {
    let (description,): (String,) = call.arguments()?;
    rebind_keyring(call.pool()?, &description, SlotRequest::Legacy)
}

pub(super) fn rebind_keyring_r8(mut call: Call<'_>) -> Handled {
    let (description, slot): (String, Option<u32>) = call.arguments()?;
    rebind_keyring(call.pool()?, &description, arguments::slot(slot))
}

fn unbind(pool: PoolUuid, kind: Kind, slot: SlotRequest) -> HandlerResult {
    chain(ops::unbind(pool, kind, slot), whether)
}

fn unbind_r8(mut call: Call<'_>, kind: Kind) -> Handled {
    let (slot,): (Option<u32>,) = call.arguments()?;
    Ok(unbind(call.pool()?, kind, arguments::slot(slot)))
}

pub(super) fn unbind_clevis_r0(call: Call<'_>) -> Handled {
    Ok(unbind(call.pool()?, Kind::Clevis, SlotRequest::Legacy))
}

pub(super) fn unbind_clevis_r8(call: Call<'_>) -> Handled {
    unbind_r8(call, Kind::Clevis)
}

pub(super) fn unbind_keyring_r0(call: Call<'_>) -> Handled {
    Ok(unbind(call.pool()?, Kind::Keyring, SlotRequest::Legacy))
}

pub(super) fn unbind_keyring_r8(call: Call<'_>) -> Handled {
    unbind_r8(call, Kind::Keyring)
}

pub(super) fn encrypt_pool(mut call: Call<'_>) -> Handled {
    let (keys, clevis): (Vec<KeySpec>, Vec<ClevisSpec>) = call.arguments()?;
    let pool = call.pool()?;
    checked((|| {
        let bindings = Mechanisms::parse(keys, clevis)?.bindings()?;
        if bindings.is_empty() {
            return Err(EncryptionError::NoMechanism.into());
        }
        Ok(chain(ops::encrypt_pool(pool, bindings), whether))
    })())
}

pub(super) fn reencrypt_pool(call: Call<'_>) -> Handled {
    Ok(chain(ops::reencrypt_pool(call.pool()?), whether))
}

pub(super) fn decrypt_pool(call: Call<'_>) -> Handled {
    Ok(chain(ops::decrypt_pool(call.pool()?), whether))
}

// ---- filesystem ----

pub(super) fn rename_filesystem(mut call: Call<'_>) -> Handled {
    let (name,): (String,) = call.arguments()?;
    let Some(ObjectState::Filesystem(object)) = call.object.map(|object| &object.state) else {
        return Err(BadArguments::Row);
    };
    let (pool, uuid) = (object.pool, object.filesystem.uuid);
    checked((|| {
        let tell = move |renamed: bool| renamed.then(|| changed(Value::str(uuid.simple())));
        Ok(chain(ops::rename_filesystem(pool, uuid, Name::chosen(&name)?), tell))
    })())
}

pub(super) fn set_size_limit(mut call: Call<'_>) -> Handled {
    let (limit,): (Option<String>,) = call.arguments()?;
    let Some(ObjectState::Filesystem(object)) = call.object.map(|object| &object.state) else {
        return Err(BadArguments::Row);
    };
    let (pool, filesystem) = (object.pool, &object.filesystem);
    checked((|| {
        let limit = arguments::size_limit(&filesystem.name, limit)?;
        Ok(chain(ops::set_size_limit(pool, filesystem.uuid, limit), |_| set()))
    })())
}

pub(super) fn set_merge_scheduled(mut call: Call<'_>) -> Handled {
    let (scheduled,): (bool,) = call.arguments()?;
    let Some(ObjectState::Filesystem(object)) = call.object.map(|object| &object.state) else {
        return Err(BadArguments::Row);
    };
    let (pool, uuid) = (object.pool, object.filesystem.uuid);
    let tell = move |set: bool| set.then(|| changed(Value::str(uuid.simple())));
    Ok(chain(ops::schedule_revert(pool, uuid, scheduled), tell))
}

// ---- blockdev ----

/// Serves both the method of r0 to r2 and the property of later revisions.
pub(super) fn set_user_info(mut call: Call<'_>) -> Handled {
    let (info,): (Option<String>,) = call.arguments()?;
    let Some(ObjectState::Device(object)) = call.object.map(|object| &object.state) else {
        return Err(BadArguments::Row);
    };
    let (pool, uuid) = (object.pool, object.device.uuid);
    checked((|| {
        let tell = move |set: bool| set.then(|| changed(Value::str(uuid.simple())));
        Ok(chain(ops::set_user_info(pool, uuid, arguments::user_info(info)?), tell))
    })())
}
