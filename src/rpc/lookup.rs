//! Answers from the published state: lists, questions about pools, and which pool or filesystem a
//! request names.
//!
//! Must never know: the engine, sockets.

use std::sync::Arc;

use super::protocol::{PoolId, RpcAnswer};
use crate::{
    base::{ids::PoolUuid, name},
    service::utc,
    view::{FilesystemView, PoolView, StoppedPoolView, View},
};

/// Why the view cannot answer a question.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LookupError {
    #[error("no pool named {0} found")]
    NoPoolNamed(String),
    #[error("pool {0} is not started; start it first")]
    NotStarted(String),
    #[error("no filesystem named {1} found in pool {0}")]
    NoFilesystem(String, String),
    #[error("pool with UUID {0} not found")]
    NoPoolWithUuid(PoolUuid),
    #[error("several stopped pools are named {0}; give a UUID")]
    SeveralPools(String),
    #[error("the devices of pool {0} disagree about its metadata version; see the report")]
    MetadataVersions(PoolUuid),
    #[error("the metadata of pool {0} cannot be read, so its encryption is not known; see the report")]
    NoMetadata(PoolUuid),
}

type Result<T> = std::result::Result<T, LookupError>;

/// A question about a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolQuestion {
    /// Is it encrypted?
    Encrypted,
    /// Is it stopped?
    Stopped,
    /// Does a passphrase unlock it?
    Passphrase,
    /// Does Clevis unlock it?
    Bound,
}

/// A pool, running or stopped.
enum Found<'a> {
    Running(&'a Arc<PoolView>),
    Stopped(&'a Arc<StoppedPoolView>),
}

fn quoted(text: &str) -> String {
    name::shortened(text).into_owned()
}

fn running_named<'a>(view: &'a View, name: &str) -> Option<&'a Arc<PoolView>> {
    view.pools.values().find(|pool| pool.name.as_str() == name)
}

/// The running pool of this name.
///
/// # Errors
/// There is none.
pub fn running<'a>(view: &'a View, name: &str) -> Result<&'a Arc<PoolView>> {
    running_named(view, name).ok_or_else(|| match view.stopped.named(name).next() {
        Some(_) => LookupError::NotStarted(quoted(name)),
        None => LookupError::NoPoolNamed(quoted(name)),
    })
}

/// The running pool that a request names.
///
/// # Errors
/// There is none.
pub fn running_pool<'a>(view: &'a View, id: &PoolId) -> Result<&'a Arc<PoolView>> {
    match id {
        PoolId::Name(name) => running(view, name),
        PoolId::Uuid(uuid) => view.pools.get(uuid).ok_or(match view.stopped.pools().contains_key(uuid) {
            true => LookupError::NotStarted(uuid.hyphenated()),
            false => LookupError::NoPoolWithUuid(*uuid),
        }),
    }
}

/// The filesystem of this name in the running pool of that name.
///
/// # Errors
/// There is none.
pub fn filesystem<'a>(view: &'a View, pool: &str, name: &str) -> Result<(PoolUuid, &'a Arc<FilesystemView>)> {
    let pool = running(view, pool)?;
    let found = pool.filesystems.values().find(|filesystem| filesystem.name.as_str() == name);
    let found = found.ok_or_else(|| LookupError::NoFilesystem(pool.name.as_str().to_owned(), quoted(name)))?;
    Ok((pool.uuid, found))
}

fn find<'a>(view: &'a View, id: &PoolId) -> Result<Found<'a>> {
    match id {
        PoolId::Uuid(uuid) => (view.pools.get(uuid).map(Found::Running))
            .or_else(|| view.stopped.pools().get(uuid).map(Found::Stopped))
            .ok_or(LookupError::NoPoolWithUuid(*uuid)),
        PoolId::Name(name) => {
            if let Some(pool) = running_named(view, name) {
                return Ok(Found::Running(pool));
            }
            let mut stopped = view.stopped.named(name);
            match (stopped.next(), stopped.next()) {
                (Some(uuid), None) => view.stopped.pools().get(&uuid).map(Found::Stopped),
                (Some(_), Some(_)) => return Err(LookupError::SeveralPools(quoted(name))),
                (None, _) => None,
            }
            .ok_or_else(|| LookupError::NoPoolNamed(quoted(name)))
        }
    }
}

/// The answer to a question about a running or stopped pool.
///
/// # Errors
/// There is no such pool, or its metadata does not answer the question.
pub fn ask(view: &View, id: &PoolId, question: PoolQuestion) -> Result<bool> {
    match find(view, id)? {
        Found::Running(pool) => Ok(match (question, &pool.encryption) {
            (PoolQuestion::Stopped, _) => false,
            (PoolQuestion::Encrypted, encryption) => encryption.is_some(),
            (PoolQuestion::Passphrase, encryption) => encryption.as_ref().is_some_and(|e| !e.keys.is_empty()),
            (PoolQuestion::Bound, encryption) => encryption.as_ref().is_some_and(|e| !e.clevis.is_empty()),
        }),
        Found::Stopped(_) if question == PoolQuestion::Stopped => Ok(true),
        Found::Stopped(pool) => match (pool.metadata_version, &pool.encryption, pool.features) {
            (None, ..) => Err(LookupError::MetadataVersions(pool.uuid)),
            // Version 1 records this in the LUKS2 headers, version 2 in the pool metadata.
            (Some(1), encryption, _) => Ok(match question {
                PoolQuestion::Passphrase => encryption.as_ref().is_some_and(|e| !e.keys.is_empty()),
                PoolQuestion::Bound => encryption.as_ref().is_some_and(|e| !e.clevis.is_empty()),
                _ => encryption.is_some(),
            }),
            (Some(_), _, None) => Err(LookupError::NoMetadata(pool.uuid)),
            (Some(_), _, Some(features)) => Ok(match question {
                PoolQuestion::Passphrase => features.key_description,
                PoolQuestion::Bound => features.clevis,
                _ => features.encryption,
            }),
        },
    }
}

/// The running pools.
pub fn pools(view: &View) -> RpcAnswer {
    let pools = || view.pools.values();
    RpcAnswer::PoolList(
        pools().map(|pool| pool.name.as_str().to_owned()).collect(),
        pools().map(|pool| (pool.total.bytes().0, pool.used.map(|used| used.bytes().0))).collect(),
        pools().map(|pool| (pool.has_cache, pool.encryption.is_some())).collect(),
        pools().map(|pool| pool.uuid).collect(),
    )
}

/// The filesystems of the running pools.
pub fn filesystems(view: &View) -> RpcAnswer {
    let each = || view.pools.values().flat_map(|pool| pool.filesystems.values().map(move |f| (pool, f)));
    RpcAnswer::FsList(
        each().map(|(pool, _)| pool.name.as_str().to_owned()).collect(),
        each().map(|(_, f)| f.name.as_str().to_owned()).collect(),
        each().map(|(_, f)| f.used.map(|used| used.0)).collect(),
        each().map(|(_, f)| utc(f.created)).collect(),
        each().map(|(pool, f)| f.name.link_in(&pool.name)).collect(),
        each().map(|(_, f)| f.uuid).collect(),
    )
}
