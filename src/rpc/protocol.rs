//! Requests and answers in the JSON form of serde: a request without arguments is a string, its
//! name; a request with arguments is an object with one member (`docs/spec/tools/min.md` §5).
//!
//! Must never know: how they are sent, and what they mean to the engine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::{
    base::ids::{FsUuid, PoolUuid},
    engine::encryption::strict_json,
};

/// A request. The names are those on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum RpcRequest {
    /// Needs a descriptor to read the key from.
    KeySet(String),
    KeyUnset(String),
    KeyList,
    /// Name, devices, encryption.
    PoolCreate(String, Vec<PathBuf>, Option<EncryptionInput>),
    /// Old name, new name.
    PoolRename(String, String),
    PoolAddData(String, Vec<PathBuf>),
    PoolInitCache(String, Vec<PathBuf>),
    PoolAddCache(String, Vec<PathBuf>),
    PoolDestroy(String),
    /// May have a descriptor to read the passphrase from.
    PoolStart(PoolId, UnlockToken),
    PoolStop(PoolId),
    PoolList,
    PoolBindKeyring(PoolId, BindSlot, String),
    /// Pool, slot, pin, configuration.
    PoolBindClevis(PoolId, BindSlot, String, Value),
    PoolUnbindKeyring(PoolId, Option<u32>),
    PoolUnbindClevis(PoolId, Option<u32>),
    PoolRebindKeyring(PoolId, Option<u32>, String),
    PoolRebindClevis(PoolId, Option<u32>),
    PoolIsEncrypted(PoolId),
    PoolIsStopped(PoolId),
    PoolHasPassphrase(PoolId),
    PoolIsBound(PoolId),
    /// Pool, filesystem.
    FsCreate(String, String),
    FsDestroy(String, String),
    /// Pool, old name, new name.
    FsRename(String, String, String),
    FsOrigin(String, String),
    FsList,
    Report,
}

/// Whether a request comes with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptors {
    /// One is required.
    One,
    /// One is optional.
    AtMostOne,
    /// None is allowed.
    None,
}

impl RpcRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// The text is not a request.
    pub fn parse(text: &[u8]) -> Result<RpcRequest, NotARequest> {
        let text = str::from_utf8(text).map_err(|_| NotARequest::NotUtf8)?;
        // serde would ignore one of two members with the same name.
        let value = strict_json::parse(text).map_err(NotARequest::NotJson)?;
        serde_json::from_value(value).map_err(NotARequest::Unknown)
    }

    /// Its name on the wire, for the log. The log never shows arguments.
    pub fn name(&self) -> &'static str {
        match self {
            RpcRequest::KeySet(..) => "KeySet",
            RpcRequest::KeyUnset(..) => "KeyUnset",
            RpcRequest::KeyList => "KeyList",
            RpcRequest::PoolCreate(..) => "PoolCreate",
            RpcRequest::PoolRename(..) => "PoolRename",
            RpcRequest::PoolAddData(..) => "PoolAddData",
            RpcRequest::PoolInitCache(..) => "PoolInitCache",
            RpcRequest::PoolAddCache(..) => "PoolAddCache",
            RpcRequest::PoolDestroy(..) => "PoolDestroy",
            RpcRequest::PoolStart(..) => "PoolStart",
            RpcRequest::PoolStop(..) => "PoolStop",
            RpcRequest::PoolList => "PoolList",
            RpcRequest::PoolBindKeyring(..) => "PoolBindKeyring",
            RpcRequest::PoolBindClevis(..) => "PoolBindClevis",
            RpcRequest::PoolUnbindKeyring(..) => "PoolUnbindKeyring",
            RpcRequest::PoolUnbindClevis(..) => "PoolUnbindClevis",
            RpcRequest::PoolRebindKeyring(..) => "PoolRebindKeyring",
            RpcRequest::PoolRebindClevis(..) => "PoolRebindClevis",
            RpcRequest::PoolIsEncrypted(..) => "PoolIsEncrypted",
            RpcRequest::PoolIsStopped(..) => "PoolIsStopped",
            RpcRequest::PoolHasPassphrase(..) => "PoolHasPassphrase",
            RpcRequest::PoolIsBound(..) => "PoolIsBound",
            RpcRequest::FsCreate(..) => "FsCreate",
            RpcRequest::FsDestroy(..) => "FsDestroy",
            RpcRequest::FsRename(..) => "FsRename",
            RpcRequest::FsOrigin(..) => "FsOrigin",
            RpcRequest::FsList => "FsList",
            RpcRequest::Report => "Report",
        }
    }

    /// Whether it comes with a descriptor.
    pub fn descriptors(&self) -> Descriptors {
        match self {
            RpcRequest::KeySet(..) => Descriptors::One,
            RpcRequest::PoolStart(..) => Descriptors::AtMostOne,
            _ => Descriptors::None,
        }
    }
}

/// Why a text is not a request.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum NotARequest {
    #[error("the request is not UTF-8")]
    NotUtf8,
    #[error("the request is not valid JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("stratisd-min does not know this request, or its arguments are wrong; check the versions of both programs")]
    Unknown(#[source] serde_json::Error),
}

/// How a request names a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolId {
    /// By its name.
    Name(String),
    /// By its UUID, in either form.
    Uuid(PoolUuid),
}

/// Which token may unlock a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnlockToken {
    /// None, for a pool that is not encrypted.
    None,
    /// The first that works.
    Any,
    /// This one.
    Token(u32),
}

/// The token slot of a new binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindSlot {
    /// Any suitable slot.
    None,
    /// The slot for clients that know only one binding of each kind.
    Legacy,
    /// This one.
    Some(u32),
}

/// How a new pool is encrypted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncryptionInput {
    /// Bindings, each with its token slot if the client chose one.
    pub encryption_infos: Vec<(Option<u32>, UnlockMechanism)>,
}

/// A binding of a new pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum UnlockMechanism {
    /// A key of the kernel keyring.
    KeyDesc(String),
    /// A Clevis pin and its configuration.
    ClevisInfo((String, Value)),
}

/// An answer. `Err` reports a violation of the protocol; results and errors of the engine are in
/// `Ok`.
pub type RpcResult = Result<RpcAnswer, String>;

/// The return code of a request that succeeded, including one that had nothing to do.
pub const DONE: u16 = 0;
/// The return code of a request that was refused or failed.
pub const REFUSED: u16 = 1;
/// The text of an answer with the code [`DONE`].
pub const OK: &str = "OK";

/// The result of a request. Each variant has the name of its request.
///
/// Most consist of a value, a return code and a text. The value says whether something was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum RpcAnswer {
    /// `None`: the key had this value already. `false`: it is new. `true`: it had another value.
    KeySet(Option<bool>, u16, String),
    KeyUnset(bool, u16, String),
    KeyList(Vec<String>, u16, String),
    PoolCreate(bool, u16, String),
    PoolRename(bool, u16, String),
    PoolAddData(bool, u16, String),
    PoolInitCache(bool, u16, String),
    PoolAddCache(bool, u16, String),
    PoolDestroy(bool, u16, String),
    PoolStart(bool, u16, String),
    PoolStop(bool, u16, String),
    /// Names; total and used bytes; whether there is a cache, whether encrypted; UUIDs.
    PoolList(Vec<String>, Vec<(u128, Option<u128>)>, Vec<(bool, bool)>, Vec<PoolUuid>),
    PoolBindKeyring(bool, u16, String),
    PoolBindClevis(bool, u16, String),
    PoolUnbindKeyring(bool, u16, String),
    PoolUnbindClevis(bool, u16, String),
    PoolRebindKeyring(bool, u16, String),
    PoolRebindClevis(bool, u16, String),
    PoolIsEncrypted(bool, u16, String),
    PoolIsStopped(bool, u16, String),
    PoolHasPassphrase(bool, u16, String),
    PoolIsBound(bool, u16, String),
    FsCreate(bool, u16, String),
    FsDestroy(bool, u16, String),
    FsRename(bool, u16, String),
    /// The UUID of the origin in 32 digits.
    FsOrigin(Option<String>, u16, String),
    /// Pools, names, used bytes, creation times, device nodes, UUIDs.
    FsList(Vec<String>, Vec<String>, Vec<Option<u128>>, Vec<String>, Vec<PathBuf>, Vec<FsUuid>),
    Report(Value),
}
