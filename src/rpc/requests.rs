//! Turns requests into answers from the published state, or into chains of the engine.
//!
//! Must never know: sockets, threads, the client.

use std::{
    error::Error,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use super::{
    lookup::{self, LookupError, PoolQuestion},
    protocol::{
        BindSlot, DONE, EncryptionInput, OK, PoolId, REFUSED, RpcAnswer, RpcRequest, RpcResult, UnlockMechanism,
        UnlockToken,
    },
};
use crate::{
    base::{
        error_chain,
        ids::{DevUuid, PoolUuid},
        name::{Name, NameError},
        pool_ref::PoolRef,
    },
    engine::{
        self,
        encryption::{
            BindRequest, ClevisRequest, EncryptionError, KeyDescription, KeyDescriptionError, Kind, NewBinding,
            RebindRequest, SlotRequest, UnlockMethod,
        },
        ops::{
            self, CacheTier, IntegritySpec, KeyChange, MetadataVersion, NewFilesystem, NewPool, Secret, StopOutcome,
            UnlockOptions,
        },
        request::Step,
    },
    service::{Failure, passphrase},
    view::View,
};

/// What is left to do for a request.
pub enum WorkLeft {
    /// Nothing: this is the answer.
    Now(RpcResult),
    /// Make the report.
    Report,
    /// Run this chain of the engine.
    Chain(Step<RpcResult>),
    /// Run this chain once the descriptor is readable, which may be long after the request, or when
    /// the time limit for that has expired.
    After(Arc<OwnedFd>, Step<RpcResult>),
}

/// Why a request is refused before the engine sees it.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    KeyDescription(#[from] KeyDescriptionError),
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
}

/// Makes an answer of a value, a return code and a text.
type Form<T> = fn(T, u16, String) -> RpcAnswer;

/// The answer of a request that succeeded.
fn done<T>(form: Form<T>, result: T) -> RpcResult {
    Ok(form(result, DONE, OK.to_owned()))
}

/// The answer of a request that was refused or failed. Its value says that nothing was changed.
fn refused<T: Default>(form: Form<T>, error: &dyn Error) -> RpcResult {
    Ok(form(T::default(), REFUSED, error_chain::sentence(error)))
}

/// The chain of an operation whose answer says whether something was changed.
fn chain<T: Send + 'static>(
    form: Form<bool>,
    next: Step<Result<T, engine::Error>>,
    changed: impl FnOnce(T) -> bool + Send + 'static,
) -> WorkLeft {
    WorkLeft::Chain(next.map(move |result| match result {
        Ok(result) => done(form, changed(result)),
        Err(error) => refused(form, &error),
    }))
}

/// Answers a refused request at once.
fn checked<T: Default>(form: Form<T>, handled: Result<WorkLeft, RequestError>) -> WorkLeft {
    handled.unwrap_or_else(|error| WorkLeft::Now(refused(form, &error)))
}

/// The answer of a request whose chain does not finish.
pub fn failed(failure: Failure, request: &str) -> RpcResult {
    Err(match failure {
        Failure::Panicked => {
            format!("request {request} failed because of a bug in stratisd-min; see its log, and please report it")
        }
        Failure::Stopping => {
            format!("request {request} is refused, because stratisd-min is stopping; try again when stratisd runs")
        }
        Failure::Unfinished => {
            format!("stratisd-min exits before request {request} ends; check its effect when stratisd runs")
        }
    })
}

/// Handles a request. The caller has checked that the request may have this descriptor, or none.
pub fn handle(request: RpcRequest, descriptor: Option<OwnedFd>, view: &View) -> WorkLeft {
    let pool = |id: &PoolId| lookup::running_pool(view, id).map(|pool| pool.uuid).map_err(RequestError::from);
    let named = |name: &str| lookup::running(view, name).map(|pool| pool.uuid).map_err(RequestError::from);
    let asked = |form: Form<bool>, id: &PoolId, question| {
        WorkLeft::Now(match lookup::ask(view, id, question) {
            Ok(answer) => done(form, answer),
            Err(error) => refused(form, &error),
        })
    };
    let yes = |changed: bool| changed;
    match request {
        RpcRequest::KeySet(description) => checked(RpcAnswer::KeySet, set_key(&description, descriptor)),
        RpcRequest::KeyUnset(description) => checked(
            RpcAnswer::KeyUnset,
            KeyDescription::new(&description)
                .map_err(RequestError::from)
                .map(|key| chain(RpcAnswer::KeyUnset, ops::unset_key(key), yes)),
        ),
        RpcRequest::KeyList => WorkLeft::Chain(ops::list_keys().map(|keys| match keys {
            Ok(keys) => done(RpcAnswer::KeyList, keys),
            Err(error) => refused(RpcAnswer::KeyList, &error),
        })),
        RpcRequest::PoolCreate(name, paths, encryption) => {
            checked(RpcAnswer::PoolCreate, create_pool(&name, paths, encryption))
        }
        RpcRequest::PoolRename(name, new) => checked(
            RpcAnswer::PoolRename,
            named(&name)
                .and_then(|uuid| Ok(chain(RpcAnswer::PoolRename, ops::rename_pool(uuid, Name::chosen(&new)?), yes))),
        ),
        RpcRequest::PoolAddData(name, paths) => {
            add_devices(RpcAnswer::PoolAddData, named(&name), paths, ops::add_data_devices)
        }
        RpcRequest::PoolInitCache(name, paths) => {
            add_devices(RpcAnswer::PoolInitCache, named(&name), paths, ops::init_cache)
        }
        RpcRequest::PoolAddCache(name, paths) => {
            add_devices(RpcAnswer::PoolAddCache, named(&name), paths, ops::add_cache_devices)
        }
        RpcRequest::PoolDestroy(name) => checked(
            RpcAnswer::PoolDestroy,
            named(&name).map(|uuid| chain(RpcAnswer::PoolDestroy, ops::destroy_pool(uuid), yes)),
        ),
        RpcRequest::PoolStart(id, token) => checked(RpcAnswer::PoolStart, start_pool(&id, token, descriptor)),
        RpcRequest::PoolStop(id) => checked(
            RpcAnswer::PoolStop,
            pool_ref(&id).map(|which| {
                WorkLeft::Chain(ops::stop_pool(which).map(|stopped| match stopped {
                    Ok(StopOutcome::Done(_) | StopOutcome::CleanedUp(_)) => done(RpcAnswer::PoolStop, true),
                    Ok(StopOutcome::Already) => done(RpcAnswer::PoolStop, false),
                    Ok(StopOutcome::Partly(uuid, error)) => {
                        refused(RpcAnswer::PoolStop, &PartlyStopped { uuid, error })
                    }
                    Err(error) => refused(RpcAnswer::PoolStop, &error),
                }))
            }),
        ),
        RpcRequest::PoolList => WorkLeft::Now(Ok(lookup::pools(view))),
        RpcRequest::PoolBindKeyring(id, slot, description) => checked(
            RpcAnswer::PoolBindKeyring,
            pool(&id).and_then(|uuid| {
                let bind = BindRequest::Keyring(KeyDescription::new(&description)?);
                Ok(chain(RpcAnswer::PoolBindKeyring, ops::bind(uuid, bind, bind_slot(slot)), yes))
            }),
        ),
        RpcRequest::PoolBindClevis(id, slot, pin, config) => checked(
            RpcAnswer::PoolBindClevis,
            pool(&id).and_then(|uuid| {
                let bind = BindRequest::Clevis(ClevisRequest::from_client(&pin, config)?);
                Ok(chain(RpcAnswer::PoolBindClevis, ops::bind(uuid, bind, bind_slot(slot)), yes))
            }),
        ),
        RpcRequest::PoolUnbindKeyring(id, slot) => checked(
            RpcAnswer::PoolUnbindKeyring,
            pool(&id)
                .map(|uuid| chain(RpcAnswer::PoolUnbindKeyring, ops::unbind(uuid, Kind::Keyring, slot_of(slot)), yes)),
        ),
        RpcRequest::PoolUnbindClevis(id, slot) => checked(
            RpcAnswer::PoolUnbindClevis,
            pool(&id)
                .map(|uuid| chain(RpcAnswer::PoolUnbindClevis, ops::unbind(uuid, Kind::Clevis, slot_of(slot)), yes)),
        ),
        RpcRequest::PoolRebindKeyring(id, slot, description) => checked(
            RpcAnswer::PoolRebindKeyring,
            pool(&id).and_then(|uuid| {
                let rebind = RebindRequest::Keyring(KeyDescription::new(&description)?);
                Ok(chain(RpcAnswer::PoolRebindKeyring, ops::rebind(uuid, rebind, slot_of(slot)), yes))
            }),
        ),
        RpcRequest::PoolRebindClevis(id, slot) => checked(
            RpcAnswer::PoolRebindClevis,
            pool(&id).map(|uuid| {
                chain(RpcAnswer::PoolRebindClevis, ops::rebind(uuid, RebindRequest::Clevis, slot_of(slot)), yes)
            }),
        ),
        RpcRequest::PoolIsEncrypted(id) => asked(RpcAnswer::PoolIsEncrypted, &id, PoolQuestion::Encrypted),
        RpcRequest::PoolIsStopped(id) => asked(RpcAnswer::PoolIsStopped, &id, PoolQuestion::Stopped),
        RpcRequest::PoolHasPassphrase(id) => asked(RpcAnswer::PoolHasPassphrase, &id, PoolQuestion::Passphrase),
        RpcRequest::PoolIsBound(id) => asked(RpcAnswer::PoolIsBound, &id, PoolQuestion::Bound),
        RpcRequest::FsCreate(pool, name) => checked(
            RpcAnswer::FsCreate,
            named(&pool).and_then(|uuid| {
                let new = NewFilesystem { name: Name::chosen(&name)?, size: None, size_limit: None };
                Ok(chain(RpcAnswer::FsCreate, ops::create_filesystems(uuid, vec![new]), |made| !made.is_empty()))
            }),
        ),
        RpcRequest::FsDestroy(pool, name) => checked(
            RpcAnswer::FsDestroy,
            lookup::filesystem(view, &pool, &name).map_err(RequestError::from).map(|(uuid, filesystem)| {
                let destroy = ops::destroy_filesystems(uuid, vec![filesystem.uuid]);
                chain(RpcAnswer::FsDestroy, destroy, |destroyed| !destroyed.is_empty())
            }),
        ),
        RpcRequest::FsRename(pool, name, new) => checked(
            RpcAnswer::FsRename,
            lookup::filesystem(view, &pool, &name).map_err(RequestError::from).and_then(|(uuid, filesystem)| {
                let rename = ops::rename_filesystem(uuid, filesystem.uuid, Name::chosen(&new)?);
                Ok(chain(RpcAnswer::FsRename, rename, yes))
            }),
        ),
        RpcRequest::FsOrigin(pool, name) => WorkLeft::Now(match lookup::filesystem(view, &pool, &name) {
            Ok((_, filesystem)) => done(RpcAnswer::FsOrigin, filesystem.origin.map(|origin| origin.simple())),
            Err(error) => refused(RpcAnswer::FsOrigin, &error),
        }),
        RpcRequest::FsList => WorkLeft::Now(Ok(lookup::filesystems(view))),
        RpcRequest::Report => WorkLeft::Report,
    }
}

/// A pool that is stopped but not taken down completely.
#[derive(Debug, thiserror::Error)]
#[error(
    "pool {uuid} has been stopped, but some of its devices could not be taken down; see what uses them, then stop it again"
)]
struct PartlyStopped {
    uuid: PoolUuid,
    #[source]
    error: engine::Error,
}

fn set_key(description: &str, descriptor: Option<OwnedFd>) -> Result<WorkLeft, RequestError> {
    let description = KeyDescription::new(description)?;
    let set = |key| {
        ops::set_key(description, key).map(|set| match set {
            Ok(KeyChange::Created) => done(RpcAnswer::KeySet, Some(false)),
            Ok(KeyChange::Replaced) => done(RpcAnswer::KeySet, Some(true)),
            Ok(KeyChange::Same) => done(RpcAnswer::KeySet, None),
            Err(error) => refused(RpcAnswer::KeySet, &error),
        })
    };
    // The caller has checked that there is a descriptor.
    Ok(match descriptor {
        Some(descriptor) => with_passphrase(descriptor, RpcAnswer::KeySet, set),
        None => WorkLeft::Now(Err(super::server::NO_DESCRIPTOR.to_owned())),
    })
}

/// Reads a passphrase and continues with the chain that `follow` makes of it.
fn with_passphrase<T: Default + 'static>(
    descriptor: OwnedFd,
    form: Form<T>,
    follow: impl FnOnce(Secret) -> Step<RpcResult> + Send + 'static,
) -> WorkLeft {
    let descriptor = Arc::new(descriptor);
    let readable = Arc::clone(&descriptor);
    let chain = Step::brief(move |_| match passphrase::read(descriptor.as_fd()) {
        Ok(passphrase) => follow(passphrase),
        Err(error) => Step::Done(refused(form, &error)),
    });
    WorkLeft::After(readable, chain)
}

fn create_pool(
    name: &str,
    devices: Vec<PathBuf>,
    encryption: Option<EncryptionInput>,
) -> Result<WorkLeft, RequestError> {
    let wanted = encryption.map(|input| input.encryption_infos).unwrap_or_default();
    engine::encryption::requested(wanted.iter().map(|(slot, _)| *slot))?;
    let binding = |(token, mechanism)| -> Result<NewBinding, RequestError> {
        let request = match mechanism {
            UnlockMechanism::KeyDesc(description) => BindRequest::Keyring(KeyDescription::new(&description)?),
            UnlockMechanism::ClevisInfo((pin, config)) => {
                BindRequest::Clevis(ClevisRequest::from_client(&pin, config)?)
            }
        };
        Ok(NewBinding { token, request })
    };
    let new = NewPool {
        name: Name::chosen(name)?,
        devices,
        integrity: IntegritySpec::default(),
        version: MetadataVersion::V2,
        bindings: wanted.into_iter().map(binding).collect::<Result<_, _>>()?,
    };
    Ok(chain(RpcAnswer::PoolCreate, ops::create_pool(new), |created| created.is_some()))
}

/// An operation that adds devices to a pool.
type DeviceAdder = fn(PoolUuid, Vec<PathBuf>) -> Step<Result<Vec<DevUuid>, engine::Error>>;

fn add_devices(
    form: Form<bool>,
    pool: Result<PoolUuid, RequestError>,
    paths: Vec<PathBuf>,
    add: DeviceAdder,
) -> WorkLeft {
    checked(form, pool.map(|uuid| chain(form, add(uuid, paths), |added| !added.is_empty())))
}

fn pool_ref(id: &PoolId) -> Result<PoolRef, RequestError> {
    Ok(match id {
        PoolId::Name(name) => PoolRef::Name(Name::new(name)?),
        PoolId::Uuid(uuid) => PoolRef::Uuid(*uuid),
    })
}

fn start_pool(id: &PoolId, token: UnlockToken, descriptor: Option<OwnedFd>) -> Result<WorkLeft, RequestError> {
    let which = pool_ref(id)?;
    let method = match token {
        UnlockToken::None => None,
        UnlockToken::Any => Some(UnlockMethod::Any),
        UnlockToken::Token(slot) => Some(UnlockMethod::Token(slot)),
    };
    let start = move |passphrase| {
        ops::start_pool(which, UnlockOptions { method, passphrase }, CacheTier::Keep).map(|started| match started {
            Ok(started) => done(RpcAnswer::PoolStart, started.is_some()),
            Err(error) => refused(RpcAnswer::PoolStart, &error),
        })
    };
    Ok(match descriptor {
        Some(descriptor) => with_passphrase(descriptor, RpcAnswer::PoolStart, |passphrase| start(Some(passphrase))),
        None => WorkLeft::Chain(start(None)),
    })
}

fn bind_slot(slot: BindSlot) -> SlotRequest {
    match slot {
        BindSlot::None => SlotRequest::Free,
        BindSlot::Legacy => SlotRequest::Legacy,
        BindSlot::Some(slot) => SlotRequest::Id(slot),
    }
}

fn slot_of(slot: Option<u32>) -> SlotRequest {
    slot.map_or(SlotRequest::Free, SlotRequest::Id)
}
