//! Checks of arguments that need no engine: sizes, names, object paths, encryption and integrity
//! parameters (`docs/spec/dbus/dbus-api.md` §2.2 and §7). Each refusal is one sentence for people.
//!
//! This module knows only the part of a pool that the published tree shows.

use crate::{
    base::{
        ids::{FsUuid, NotAUuid, PoolUuid},
        name::{self, Name, NameError, TextPurpose},
        pool_ref::PoolRef,
        units::{Bytes, SECTOR, Sectors},
    },
    bus::{
        tree::{Object, ObjectState, Tree},
        wire::{Descriptor, DescriptorArgument, PathArgument},
    },
    engine::{
        encryption::{
            self, BindRequest, ClevisRequest, EncryptionError, KeyDescription, KeyDescriptionError, Kind, NewBinding,
            SlotRequest, UnlockMethod, strict_json,
        },
        ops::{IntegritySpec, JOURNAL_UNIT, NewFilesystem, TagSpec},
    },
};

/// Smallest filesystem: 512 MiB.
const FILESYSTEM_MIN: Sectors = Sectors(1 << 20);
/// Size of a filesystem if the call gives none: 1 TiB. This module uses it only to compare it with
/// a size limit.
const FILESYSTEM_DEFAULT: Sectors = Sectors(1 << 31);
/// Largest size that fits into a number of sectors.
const SIZE_MAX: Bytes = Bytes(u64::MAX as u128 * SECTOR as u128);

/// Why an argument is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ArgumentError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("`{text}` is not a {what}; give the number of bytes in decimal digits")]
    NotASize { what: &'static str, text: String },
    #[error(
        "{what} {} of filesystem {name} exceeds the maximum of {}; choose a smaller one",
        .size.readable(), SIZE_MAX.readable()
    )]
    SizeTooLarge { what: &'static str, name: Name, size: Bytes },
    #[error("{what} {} of filesystem {name} is not a multiple of {SECTOR} bytes; round it", .size.readable())]
    NotSectors { what: &'static str, name: Name, size: Bytes },
    #[error(
        "{what} {} of filesystem {name} is below the minimum of {}; choose a larger one",
        .size.readable(), FILESYSTEM_MIN.readable()
    )]
    SizeTooSmall { what: &'static str, name: Name, size: Bytes },
    #[error(
        "the size limit of filesystem {name}, {}, is less than its size, {}; raise it or choose a smaller size",
        .limit.readable(), .size.readable()
    )]
    LimitBelowSize { name: Name, limit: Sectors, size: Sectors },
    #[error("a call creates one filesystem, and this one names {0}; send a call for each, also at the same time")]
    OneFilesystem(usize),
    #[error("{0} is not the object path of a pool; list the managed objects to find it")]
    NotAPool(String),
    #[error("`{0}` is not a kind of identifier; give `uuid` or `name`")]
    IdType(String),
    #[error(transparent)]
    Uuid(#[from] NotAUuid),
    #[error("{0} is an invalid unlock method; give `keyring`, `clevis` or `any`")]
    UnlockMethod(String),
    #[error("the call has no file descriptor to read the passphrase from; attach one")]
    NoDescriptor,
    #[error("{0} is not the object path of a filesystem; list the managed objects to find it")]
    NotAFilesystem(String),
    #[error("filesystem {filesystem} belongs to pool {pool}; call the method on that pool")]
    OtherPool { filesystem: Name, pool: Name },
    #[error("{0} is not a kind of redundancy; give 0, or omit the argument")]
    Redundancy(u16),
    #[error("the Clevis configuration is not valid JSON; correct it")]
    Json(#[source] serde_json::Error),
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    #[error(
        "cannot add a cache to encrypted pool {0} in the first five revisions of this interface; use a later revision"
    )]
    CacheOfEncrypted(Name),
    #[error(transparent)]
    KeyDescription(#[from] KeyDescriptionError),
    #[error("`{0}` is not an integrity tag specification; choose 0b, 32b or 512b")]
    TagSpec(String),
    #[error("integrity journal size {} is not a multiple of {}; round it", .0.readable(), JOURNAL_UNIT.readable())]
    Journal(Bytes),
}

type Result<T> = std::result::Result<T, ArgumentError>;

/// A filesystem in the arguments of the newest CreateFilesystems: name, size, size limit.
pub type FilesystemSpec = (String, Option<String>, Option<String>);

/// The filesystem that CreateFilesystems asks for. A call that asks for more than one is refused:
/// clients of these revisions expect that.
pub fn filesystem(specs: Vec<FilesystemSpec>) -> Result<Option<NewFilesystem>> {
    const SIZE: &str = "filesystem size";
    const LIMIT: &str = "filesystem size limit";

    let mut parsed = Vec::new();
    for (name, size, limit) in specs {
        let number = |what, text: Option<String>| text.map(|text| parse_size(what, text)).transpose();
        parsed.push((name, number(SIZE, size)?, number(LIMIT, limit)?));
    }
    if parsed.len() > 1 {
        return Err(ArgumentError::OneFilesystem(parsed.len()));
    }
    let Some((name, size, limit)) = parsed.pop() else { return Ok(None) };
    let name = Name::chosen(&name)?;
    let size = size.map(|bytes| size_of(SIZE, &name, bytes)).transpose()?;
    let size_limit = limit.map(|bytes| size_of(LIMIT, &name, bytes)).transpose()?;
    let wanted = size.unwrap_or(FILESYSTEM_DEFAULT);
    match size_limit {
        Some(limit) if limit < wanted => Err(ArgumentError::LimitBelowSize { name, limit, size: wanted }),
        _ => Ok(Some(NewFilesystem { name, size, size_limit })),
    }
}

/// The size limit of a filesystem, if the call gives one. The engine checks that the limit is not
/// less than the size.
pub fn size_limit(name: &Name, text: Option<String>) -> Result<Option<Sectors>> {
    const LIMIT: &str = "size limit";
    text.map(|text| size_of(LIMIT, name, parse_size(LIMIT, text)?)).transpose()
}

fn parse_size(what: &'static str, text: String) -> Result<u128> {
    text.parse().map_err(|_| ArgumentError::NotASize { what, text })
}

fn size_of(what: &'static str, name: &Name, bytes: u128) -> Result<Sectors> {
    let (name, size) = (|| name.clone(), Bytes(bytes));
    match size.sectors() {
        None => Err(ArgumentError::SizeTooLarge { what, name: name(), size }),
        Some(_) if size > SIZE_MAX => Err(ArgumentError::SizeTooLarge { what, name: name(), size }),
        Some(_) if !bytes.is_multiple_of(SECTOR.into()) => Err(ArgumentError::NotSectors { what, name: name(), size }),
        Some(sectors) if sectors < FILESYSTEM_MIN => Err(ArgumentError::SizeTooSmall { what, name: name(), size }),
        Some(sectors) => Ok(sectors),
    }
}

/// The pool that has this path in the tree.
pub fn pool(tree: &Tree, path: &PathArgument) -> Result<PoolUuid> {
    match tree.at(&path.0).map(|object| &object.state) {
        Some(ObjectState::Pool(pool)) => Ok(pool.uuid),
        _ => Err(ArgumentError::NotAPool(path.0.clone())),
    }
}

/// Parses a key description.
pub fn key_description(text: &str) -> Result<KeyDescription> {
    Ok(KeyDescription::new(text)?)
}

/// Parses a pool UUID, in either form.
pub fn pool_uuid(text: &str) -> Result<PoolRef> {
    Ok(PoolRef::Uuid(text.parse()?))
}

/// The pool that `id` names. `id_type` says whether `id` is a UUID or a name.
pub fn pool_id(id: &str, id_type: &str) -> Result<PoolRef> {
    match id_type {
        "uuid" => pool_uuid(id),
        "name" => Ok(PoolRef::Name(Name::new(id)?)),
        _ => Err(ArgumentError::IdType(id_type.to_owned())),
    }
}

/// The unlock method of r0 to r7: all bindings of one kind, or any. A pool of version 2 may have
/// other tokens than clients of these revisions know. Some daemons accept only one spelling, others
/// only the other. The value beside the flag "none" has no meaning (`dbus-api.md` §12, row 1).
pub fn legacy_unlock_method(method: Option<String>) -> Result<Option<UnlockMethod>> {
    match method.as_deref() {
        None => Ok(None),
        Some("keyring" | "Keyring") => Ok(Some(UnlockMethod::Kind(Kind::Keyring))),
        Some("clevis" | "Clevis") => Ok(Some(UnlockMethod::Kind(Kind::Clevis))),
        Some("any" | "Any") => Ok(Some(UnlockMethod::Any)),
        Some(other) => Err(ArgumentError::UnlockMethod(other.to_owned())),
    }
}

/// The unlock method since r8: none, any slot, or one token slot.
pub fn unlock_method(method: Option<Option<u32>>) -> Option<UnlockMethod> {
    method.map(|slot| slot.map_or(UnlockMethod::Any, UnlockMethod::Token))
}

/// The token slot of a binding since r8: the one that fits, or the one given.
pub fn slot(slot: Option<u32>) -> SlotRequest {
    slot.map_or(SlotRequest::Free, SlotRequest::Id)
}

/// The descriptor that holds the passphrase. A call that announces no descriptor need not attach
/// one (`dbus-api.md` §12, row 5).
pub fn passphrase(argument: Option<DescriptorArgument>) -> Result<Option<Descriptor>> {
    match argument {
        None => Ok(None),
        Some(DescriptorArgument(Some(descriptor))) => Ok(Some(descriptor)),
        Some(DescriptorArgument(None)) => Err(ArgumentError::NoDescriptor),
    }
}

/// The filesystem that has this path in the tree. It must belong to the pool.
pub fn filesystem_of(tree: &Tree, pool: PoolUuid, path: &PathArgument) -> Result<FsUuid> {
    match tree.at(&path.0).map(|object| &object.state) {
        Some(ObjectState::Filesystem(object)) if object.pool == pool => Ok(object.filesystem.uuid),
        Some(ObjectState::Filesystem(object)) => {
            Err(ArgumentError::OtherPool { filesystem: object.filesystem.name.clone(), pool: object.pool_name.clone() })
        }
        _ => Err(ArgumentError::NotAFilesystem(path.0.clone())),
    }
}

/// The filesystems of the pool among the paths, each once. Paths of other objects are skipped
/// silently: the caller wants these objects removed from the pool, and the pool does not have them.
pub fn filesystems_of(tree: &Tree, pool: PoolUuid, paths: &[PathArgument]) -> Vec<FsUuid> {
    let mut found: Vec<FsUuid> = Vec::new();
    for uuid in paths.iter().filter_map(|path| filesystem_of(tree, pool, path).ok()) {
        if !found.contains(&uuid) {
            found.push(uuid);
        }
    }
    found
}

/// Checks the redundancy of r0 to r4. The only kind is 0, no redundancy.
pub fn redundancy(code: Option<u16>) -> Result<()> {
    match code {
        None | Some(0) => Ok(()),
        Some(code) => Err(ArgumentError::Redundancy(code)),
    }
}

/// Parses a Clevis pin and its configuration.
pub fn clevis(pin: &str, json: &str) -> Result<BindRequest> {
    let config = strict_json::parse(json).map_err(ArgumentError::Json)?;
    Ok(BindRequest::Clevis(ClevisRequest::from_client(pin, config)?))
}

/// A token slot, if the call gives one, and a key description.
pub type KeySpec = (Option<u32>, String);
/// A token slot, if the call gives one, a pin and its configuration in JSON.
pub type ClevisSpec = (Option<u32>, String, String);

/// How a pool is to be encrypted. The JSON is parsed and the token slots are valid; the rest is not
/// checked yet.
#[derive(Debug)]
pub struct Mechanisms {
    keys: Vec<KeySpec>,
    clevis: Vec<(Option<u32>, String, serde_json::Value)>,
}

impl Mechanisms {
    /// Makes the checks whose refusals come before all others: first the JSON, then the token
    /// slots.
    pub fn parse(keys: Vec<KeySpec>, clevis: Vec<ClevisSpec>) -> Result<Mechanisms> {
        let clevis = clevis
            .into_iter()
            .map(|(slot, pin, json)| Ok((slot, pin, strict_json::parse(&json).map_err(ArgumentError::Json)?)))
            .collect::<Result<Vec<_>>>()?;
        encryption::requested(keys.iter().map(|(slot, _)| *slot).chain(clevis.iter().map(|(slot, ..)| *slot)))?;
        Ok(Mechanisms { keys, clevis })
    }

    /// The form of r0 to r7: at most one binding of each kind, in the token slots that version 1
    /// always uses.
    pub fn parse_legacy(key: Option<String>, clevis: Option<(String, String)>) -> Result<Mechanisms> {
        let key = key.map(|description| (Some(encryption::KEYRING_TOKEN), description));
        let clevis = clevis.map(|(pin, json)| (Some(encryption::CLEVIS_TOKEN), pin, json));
        Mechanisms::parse(key.into_iter().collect(), clevis.into_iter().collect())
    }

    /// The bindings that the call asks for. The engine checks whether keys and servers exist.
    pub fn bindings(self) -> Result<Vec<NewBinding>> {
        let keys = self.keys.into_iter().map(|(token, description)| {
            let request = BindRequest::Keyring(key_description(&description)?);
            Ok(NewBinding { token, request })
        });
        let clevis = self.clevis.into_iter().map(|(token, pin, config)| {
            let request = BindRequest::Clevis(ClevisRequest::from_client(&pin, config)?);
            Ok(NewBinding { token, request })
        });
        keys.chain(clevis).collect()
    }
}

/// Parses the number of tag bits per integrity block.
pub fn tag_spec(text: Option<String>) -> Result<Option<TagSpec>> {
    let Some(text) = text else { return Ok(None) };
    match text.as_str() {
        "0b" => Ok(Some(TagSpec::B0)),
        "32b" => Ok(Some(TagSpec::B32)),
        "512b" => Ok(Some(TagSpec::B512)),
        _ => Err(ArgumentError::TagSpec(text)),
    }
}

/// The space to reserve for integrity data. Missing values get their defaults.
pub fn integrity(
    journal_bytes: Option<u64>,
    tag_spec: Option<TagSpec>,
    allocate_superblock: Option<bool>,
) -> Result<IntegritySpec> {
    let usual = IntegritySpec::default();
    let journal_size = match journal_bytes {
        None => usual.journal_size,
        Some(bytes) if u128::from(bytes).is_multiple_of(JOURNAL_UNIT.0) => Sectors(bytes / SECTOR),
        Some(bytes) => return Err(ArgumentError::Journal(Bytes(bytes.into()))),
    };
    Ok(IntegritySpec {
        journal_size,
        tag_spec: tag_spec.unwrap_or(usual.tag_spec),
        allocate_superblock: allocate_superblock.unwrap_or(usual.allocate_superblock),
        block_size: usual.block_size,
    })
}

/// Checks the user info of a device. The rules of names apply to it.
pub fn user_info(text: Option<String>) -> Result<Option<String>> {
    text.map(|text| name::check(TextPurpose::UserInfo, &text).map(|()| text)).transpose().map_err(ArgumentError::from)
}

/// The UUID of a pool object. `None` means that the row names the wrong kind of object.
pub fn pool_object(object: Option<&Object>) -> Option<PoolUuid> {
    match &object?.state {
        ObjectState::Pool(pool) => Some(pool.uuid),
        _ => None,
    }
}
