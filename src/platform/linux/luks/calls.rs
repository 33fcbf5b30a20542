//! Serves requests in the child by calls of libcryptsetup.
//!
//! Runs in one thread of the child, because the library is not thread-safe. Knows nothing of pools.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks2, CryptParamsLuks2Ref, CryptPbkdfType, CryptSettingsHandle, Either,
    LibcryptErr, TokenInput,
    consts::{
        flags::{CryptActivate, CryptPbkdf, CryptVolumeKey},
        vals::{CryptKdf, EncryptionFormat, KeyslotInfo, KeyslotsSize, LuksType, MetadataSize},
    },
};
use nix::libc;
use rand::{TryRngCore, rngs::OsRng};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    child::DaemonConnection,
    header::{DataSegment, Metadata},
    reencrypt, repair, staged, table,
    wire::{LuksAnswer, LuksRequest, Nth, SentChange, SentKeyslot, SentUnlock},
};
use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::{
        keyring::Secret,
        luks::{Cost, EncryptionState, FormatPurpose, Header, HeaderLayout, ReencryptionMode, VOLUME_KEY_BYTES},
    },
};

/// The cipher and its mode.
pub(super) const CIPHER: (&str, &str) = ("aes", "xts-plain64");
/// PBKDF2 iterations for random passphrases, as Clevis uses them.
const RANDOM_ITERATIONS: u32 = 1000;
/// Most memory that a key derivation with the library's defaults takes.
const DERIVATION_BYTES_MAX: Bytes = Bytes(1 << 30);
/// Magic bytes of the first and the second copy of a header.
const MAGIC: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
/// Possible offsets of the second copy.
const SECOND_COPIES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LuksFault {
    /// The passphrase opens no keyslot.
    #[error("the passphrase does not fit")]
    WrongKey,
    /// The device is in use.
    #[error("the device is in use")]
    Busy,
    /// The daemon no longer waits for the answer. Nothing was changed.
    #[error("it was cancelled")]
    Alone,
    /// Communication with the daemon failed.
    #[error("{0}")]
    Connection(io::Error),
    /// Another error, in words.
    #[error("{0}")]
    Other(String),
}

impl LuksFault {
    /// The message to the daemon.
    pub(super) fn into_answer(self) -> LuksAnswer {
        match self {
            LuksFault::WrongKey => LuksAnswer::WrongKey,
            LuksFault::Busy => LuksAnswer::Busy,
            other => LuksAnswer::Failed(other.to_string()),
        }
    }
}

impl From<LibcryptErr> for LuksFault {
    fn from(fault: LibcryptErr) -> LuksFault {
        match fault {
            LibcryptErr::IOError(fault) => LuksFault::Other(fault.to_string()),
            fault => LuksFault::Other(fault.to_string()),
        }
    }
}

impl From<io::Error> for LuksFault {
    fn from(fault: io::Error) -> LuksFault {
        LuksFault::Other(fault.to_string())
    }
}

impl From<String> for LuksFault {
    fn from(what: String) -> LuksFault {
        LuksFault::Other(what)
    }
}

pub(super) type Result<T> = std::result::Result<T, LuksFault>;

/// Converts an error of a call that takes a passphrase: the library returns `EPERM` if the
/// passphrase opens nothing, `ENOENT` if there is nothing to open.
pub(super) fn with_key(fault: LibcryptErr) -> LuksFault {
    match &fault {
        LibcryptErr::IOError(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOENT) => LuksFault::WrongKey,
            Some(libc::EBUSY) => LuksFault::Busy,
            _ => fault.into(),
        },
        _ => fault.into(),
    }
}

/// The secrets of a request.
pub(super) struct ReceivedSecrets<'a>(pub(super) &'a [Secret]);

impl ReceivedSecrets<'_> {
    pub(super) fn get(&self, nth: Nth) -> Result<&[u8]> {
        self.0
            .get(nth.0)
            .map(Secret::bytes)
            .ok_or_else(|| LuksFault::Other("the request lacks a passphrase".to_owned()))
    }
}

/// Serves a request. Returns the answer and the secret that belongs to it.
pub(super) fn serve(
    request: &LuksRequest,
    secrets: &[Secret],
    connection: &mut DaemonConnection,
) -> Result<(LuksAnswer, Option<Secret>)> {
    let secrets = ReceivedSecrets(secrets);
    match request {
        LuksRequest::Read { device } => {
            let header = if is_luks2(device)? { Some(LoadedLuksDevice::load(device)?.header()?) } else { None };
            Ok((LuksAnswer::Header(header), None))
        }
        LuksRequest::Format { device, layout, purpose, keyslots, tokens } => {
            if keyslots.iter().any(|keyslot| keyslot.cost == Cost::Guessable) {
                may_use(connection, DERIVATION_BYTES_MAX)?;
            }
            let header = match purpose {
                FormatPurpose::New => format(device, layout, keyslots, tokens, &secrets)?,
                FormatPurpose::Encrypt => staged::format(device, layout, keyslots, tokens, &secrets)?,
            };
            Ok((LuksAnswer::Header(Some(header)), None))
        }
        LuksRequest::Change { device, unlock, changes } => {
            let header = change(device, unlock.as_ref(), changes, &secrets, connection)?;
            Ok((LuksAnswer::Header(Some(header)), None))
        }
        LuksRequest::Open { device, name, unlock } => {
            let key = open(device, name.as_deref(), *unlock, &secrets, connection)?;
            Ok((LuksAnswer::VolumeKey, Some(key)))
        }
        LuksRequest::Reopen { device, name, volume_key } => {
            let (mut luks, flags) = (LoadedLuksDevice::load(device)?, CryptActivate::empty());
            let key = secrets.get(*volume_key)?;
            luks.library.activate_handle().activate_by_volume_key(Some(name), Some(key), flags).map_err(with_key)?;
            Ok((LuksAnswer::Done, None))
        }
        LuksRequest::Resize { device, name, volume_key, size } => {
            resize(device, name, secrets.get(*volume_key)?, *size)?;
            Ok((LuksAnswer::Done, None))
        }
        LuksRequest::Reencrypt { device, name, unlock, begin } => {
            let passphrase = secrets.get(unlock.passphrase)?;
            let ended = reencrypt::run(device, name, unlock.keyslot, passphrase, *begin, connection)?;
            Ok((LuksAnswer::Ended(ended), None))
        }
        LuksRequest::Repair { device, name, unlock } => {
            let json = LoadedLuksDevice::load(device)?.json()?;
            may_use(connection, Metadata::new(&json, Sectors::ZERO).memory(None)?)?;
            repair::repair(device, name, secrets.get(unlock.passphrase)?)?;
            Ok((LuksAnswer::Done, None))
        }
    }
}

/// Waits for permission to use memory for key derivation. Cheap derivations need none.
pub(super) fn may_use(connection: &mut DaemonConnection, memory: Bytes) -> Result<()> {
    if memory == Bytes(0) || connection.may_use(memory).map_err(LuksFault::Connection)? {
        Ok(())
    } else {
        Err(LuksFault::Alone)
    }
}

/// Whether the device has a LUKS2 header, or at least its second copy.
fn is_luks2(device: &Path) -> io::Result<bool> {
    let file = File::open(device)?;
    let begins = |offset: u64, magic: &[u8; 6]| {
        let mut bytes = [0; 8];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes[..6] == *magic && bytes[6..] == 2_u16.to_be_bytes()),
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(fault) => Err(fault),
        }
    };
    let [first, second] = MAGIC;
    if begins(0, first)? {
        return Ok(true);
    }
    for offset in SECOND_COPIES {
        if begins(offset, second)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A LUKS device whose header the library has loaded.
pub(super) struct LoadedLuksDevice {
    pub(super) library: CryptDevice,
    /// Size of the device with the data.
    size: Sectors,
}

impl LoadedLuksDevice {
    /// Loads the header of a device.
    pub(super) fn load(device: &Path) -> Result<LoadedLuksDevice> {
        let mut library = CryptInit::init(device)?;
        library.context_handle().load::<CryptParamsLuks2Ref<'_>>(Some(EncryptionFormat::Luks2), None)?;
        Ok(LoadedLuksDevice { library, size: size_of(device)? })
    }

    /// Formats a header without keyslots, either on `device` itself or in a separate file.
    pub(super) fn make(file: Option<&Path>, device: &Path, layout: &HeaderLayout) -> Result<LoadedLuksDevice> {
        let mut library = match file {
            Some(file) => CryptInit::init_with_data_device(Either::Right((file, device)))?,
            None => CryptInit::init(device)?,
        };
        let metadata = MetadataSize::try_from(bytes(layout.metadata)?)?;
        let keyslots = KeyslotsSize::try_from(bytes(layout.keyslots)?)?;
        library.settings_handle().set_metadata_size(metadata, keyslots)?;
        library.set_data_offset(layout.data_offset.0)?;
        // With 0 the library chooses the sector size.
        let parameters = luks2_parameters(layout.sector_size.unwrap_or(0));
        let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
        let key = Either::Right(VOLUME_KEY_BYTES);
        library.context_handle().format(EncryptionFormat::Luks2, CIPHER, None, key, Some(&mut parameters))?;
        let offset = library.status_handle().get_data_offset();
        if offset != layout.data_offset.0 {
            let wanted = layout.data_offset.0;
            return Err(LuksFault::Other(format!("the data would start at sector {offset} instead of {wanted}")));
        }
        let (got_metadata, got_keyslots) = library.settings_handle().get_metadata_size()?;
        if (*got_metadata, *got_keyslots) != (*metadata, *keyslots) {
            return Err(LuksFault::Other("there is not enough space before the data".to_owned()));
        }
        Ok(LoadedLuksDevice { library, size: size_of(device)? })
    }

    /// The header's JSON.
    pub(super) fn json(&mut self) -> Result<Value> {
        Ok(self.library.status_handle().dump_json()?)
    }

    /// The metadata in the JSON.
    pub(super) fn metadata<'a>(&self, json: &'a Value) -> Metadata<'a> {
        Metadata::new(json, self.size)
    }

    /// The segments of the device.
    pub(super) fn segments(&mut self) -> Result<Vec<DataSegment>> {
        let json = self.json()?;
        Ok(self.metadata(&json).segments()?)
    }

    /// Size of the device.
    pub(super) fn size(&self) -> Sectors {
        self.size
    }

    /// The header as a platform value.
    pub(super) fn header(&mut self) -> Result<Header> {
        let uuid = self.library.status_handle().get_uuid()?.to_string();
        let json = self.json()?;
        Ok(self.metadata(&json).header(uuid)?)
    }

    /// Adds a keyslot. `key` is the volume key to store; `None` for the key of the header that was
    /// just formatted.
    pub(super) fn add(
        &mut self,
        keyslot: &SentKeyslot,
        key: Option<&[u8]>,
        flags: CryptVolumeKey,
        secrets: &ReceivedSecrets<'_>,
    ) -> Result<()> {
        let passphrase = secrets.get(keyslot.passphrase)?;
        let derivation = match keyslot.cost {
            Cost::Guessable => CryptSettingsHandle::get_pbkdf_default(&LuksType::Luks2)?,
            Cost::Random => CryptPbkdfType {
                type_: CryptKdf::Pbkdf2,
                hash: Some("sha256".to_owned()),
                time_ms: 0,
                iterations: RANDOM_ITERATIONS,
                max_memory_kb: 0,
                parallel_threads: 0,
                flags: CryptPbkdf::NO_BENCHMARK,
            },
        };
        self.library.settings_handle().set_pbkdf_type(&derivation)?;
        let key = key.map(Either::Left);
        self.library.keyslot_handle().add_by_key(Some(keyslot.number), key, passphrase, flags)?;
        Ok(())
    }

    /// Writes a token into the header.
    pub(super) fn put(&mut self, number: u32, token: &Value) -> Result<()> {
        self.library.token_handle().json_set(TokenInput::ReplaceToken(number, token))?;
        Ok(())
    }

    /// The volume key that a passphrase opens: from the given keyslot, whatever its purpose, or
    /// from any keyslot for the data.
    fn key(&mut self, keyslot: Option<u32>, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        if let Some(number) = keyslot {
            let json = self.json()?;
            if !self.metadata(&json).keyslots()?.contains(&number) {
                return Err(LuksFault::WrongKey);
            }
        }
        let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
        let found = self.library.volume_key_handle().get(keyslot, &mut key, Some(passphrase));
        let (_, length) = found.map_err(with_key)?;
        if length != VOLUME_KEY_BYTES {
            return Err(LuksFault::Other(format!("its volume key has {length} bytes instead of {VOLUME_KEY_BYTES}")));
        }
        Ok(key)
    }

    /// The current volume key of all data; a keyslot for the next key does not qualify. The header
    /// says which key it is, because comparing the key with its digest takes the library a quarter
    /// of a second.
    fn key_in_use(&mut self, keyslot: Option<u32>, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        if let Some(number) = keyslot {
            let json = self.json()?;
            let metadata = self.metadata(&json);
            let in_use = metadata.segments()?.first().and_then(|segment| Some(segment.crypt.as_ref()?.digest));
            if metadata.digest_of_keyslot(number)? != in_use {
                return Err(LuksFault::WrongKey);
            }
        }
        self.key(keyslot, passphrase)
    }

    /// The volume key that matches this digest.
    pub(super) fn key_with(&mut self, digest: u32, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let json = self.json()?;
        let metadata = self.metadata(&json);
        let mut fitting = Vec::new();
        for keyslot in metadata.keyslots()? {
            if metadata.digest_of_keyslot(keyslot)? == Some(digest) {
                fitting.push(keyslot);
            }
        }
        for keyslot in fitting {
            match self.key(Some(keyslot), passphrase) {
                Err(LuksFault::WrongKey) => {}
                found => return found,
            }
        }
        Err(LuksFault::WrongKey)
    }
}

/// Format parameters besides the layout.
pub(super) fn luks2_parameters(sector_size: u32) -> CryptParamsLuks2 {
    CryptParamsLuks2 {
        pbkdf: None,
        integrity: None,
        integrity_params: None,
        data_alignment: 0,
        data_device: None,
        sector_size,
        label: None,
        subsystem: None,
    }
}

fn size_of(device: &Path) -> io::Result<Sectors> {
    Ok(Sectors(File::open(device)?.seek(SeekFrom::End(0))? / SECTOR))
}

/// A number of bytes in the library's type.
pub(super) fn bytes(bytes: Bytes) -> Result<u64> {
    u64::try_from(bytes.0).map_err(|_| LuksFault::Other(format!("{bytes} exceed what the library can express")))
}

fn format(
    device: &Path,
    layout: &HeaderLayout,
    keyslots: &[SentKeyslot],
    tokens: &BTreeMap<u32, Value>,
    secrets: &ReceivedSecrets<'_>,
) -> Result<Header> {
    let mut luks = LoadedLuksDevice::make(None, device, layout)?;
    fill(&mut luks, keyslots, tokens, secrets)?;
    sync(device)?;
    luks.header()
}

/// Adds the keyslots and tokens of a new header.
pub(super) fn fill(
    luks: &mut LoadedLuksDevice,
    keyslots: &[SentKeyslot],
    tokens: &BTreeMap<u32, Value>,
    secrets: &ReceivedSecrets<'_>,
) -> Result<()> {
    for keyslot in keyslots {
        luks.add(keyslot, None, CryptVolumeKey::empty(), secrets)?;
    }
    for (number, token) in tokens {
        luks.put(*number, token)?;
    }
    Ok(())
}

/// Flushes the device. The library bypasses the page cache where it can, but issues no flush.
pub(super) fn sync(device: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(device)?.sync_all()
}

fn change(
    device: &Path,
    unlock: Option<&SentUnlock>,
    changes: &[SentChange],
    secrets: &ReceivedSecrets<'_>,
    connection: &mut DaemonConnection,
) -> Result<Header> {
    let mut luks = LoadedLuksDevice::load(device)?;
    let json = luks.json()?;
    let adds = changes.iter().any(|change| matches!(change, SentChange::AddKeyslot(_)));
    // Only with the passphrase can the library tell the volume key.
    let unlock = unlock.filter(|_| adds);
    let mut memory = Bytes(0);
    if let Some(unlock) = unlock {
        memory = luks.metadata(&json).memory(unlock.keyslot)?;
    }
    let is_guessable = |change: &SentChange| match change {
        SentChange::AddKeyslot(keyslot) | SentChange::AddNextKeyslot(keyslot) => keyslot.cost == Cost::Guessable,
        _ => false,
    };
    if changes.iter().any(is_guessable) {
        memory = memory.max(DERIVATION_BYTES_MAX);
    }
    may_use(connection, memory)?;
    let present = match unlock {
        Some(unlock) => Some(luks.key_in_use(unlock.keyslot, secrets.get(unlock.passphrase)?)?),
        None => None,
    };
    let mut next = None;
    for change in changes {
        make(&mut luks, change, present.as_deref().map(Vec::as_slice), &mut next, secrets)?;
        sync(device)?;
    }
    luks.header()
}

fn make(
    luks: &mut LoadedLuksDevice,
    change: &SentChange,
    present: Option<&[u8]>,
    next: &mut Option<Zeroizing<Vec<u8>>>,
    secrets: &ReceivedSecrets<'_>,
) -> Result<()> {
    match change {
        SentChange::AddKeyslot(keyslot) => {
            let key = present.ok_or_else(|| {
                LuksFault::Other("adding a keyslot takes a passphrase that opens the device".to_owned())
            })?;
            luks.add(keyslot, Some(key), CryptVolumeKey::empty(), secrets)
        }
        SentChange::AddNextKeyslot(keyslot) => match next {
            Some(key) => {
                let flags = CryptVolumeKey::NO_SEGMENT | CryptVolumeKey::DIGEST_REUSE;
                luks.add(keyslot, Some(key), flags, secrets)
            }
            None => {
                let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
                OsRng.try_fill_bytes(&mut key).map_err(|fault| LuksFault::Other(fault.to_string()))?;
                luks.add(keyslot, Some(&key), CryptVolumeKey::NO_SEGMENT, secrets)?;
                *next = Some(key);
                Ok(())
            }
        },
        SentChange::DestroyKeyslot(number) => match luks.library.keyslot_handle().status(*number)? {
            KeyslotInfo::Inactive | KeyslotInfo::Invalid => Ok(()),
            _ => Ok(luks.library.keyslot_handle().destroy(*number)?),
        },
        SentChange::PutToken(number, token) => luks.put(*number, token),
        SentChange::RemoveToken(number) => {
            let json = luks.json()?;
            if json.get("tokens").and_then(|tokens| tokens.get(number.to_string())).is_some() {
                luks.library.token_handle().json_set(TokenInput::RemoveToken(*number))?;
            }
            Ok(())
        }
    }
}

fn open(
    device: &Path,
    name: Option<&str>,
    unlock: SentUnlock,
    secrets: &ReceivedSecrets<'_>,
    connection: &mut DaemonConnection,
) -> Result<Secret> {
    let passphrase = secrets.get(unlock.passphrase)?;
    let mut luks = LoadedLuksDevice::load(device)?;
    let json = luks.json()?;
    let metadata = luks.metadata(&json);
    let state = metadata.state(&metadata.segments()?)?;
    may_use(connection, metadata.memory(unlock.keyslot)?)?;
    let key = match state {
        EncryptionState::Clear => return Err(LuksFault::Other("the device is not encrypted any more".to_owned())),
        EncryptionState::Encrypted => {
            let key = luks.key_in_use(unlock.keyslot, passphrase)?;
            if let Some(name) = name {
                let flags = CryptActivate::empty();
                let mut activate = luks.library.activate_handle();
                activate.activate_by_volume_key(Some(name), Some(&key), flags).map_err(with_key)?;
            }
            key
        }
        EncryptionState::Unfinished { mode, done } => {
            // The final volume key of all data, or for a decryption the previous one.
            let digest = metadata.final_digest()?.or(metadata.previous_digest()?);
            let digest = digest.ok_or_else(|| "its header does not name the volume key".to_owned())?;
            if unlock.keyslot.is_some() {
                luks.key(unlock.keyslot, passphrase)?;
            }
            let key = luks.key_with(digest, passphrase)?;
            if let Some(name) = name {
                if mode == ReencryptionMode::Encrypt && done == Bytes(0) {
                    // The plaintext is still in use through the device itself.
                    table::bring_up(device, name, passphrase)?;
                } else {
                    let mut activate = luks.library.activate_handle();
                    let flags = CryptActivate::empty();
                    activate.activate_by_passphrase(Some(name), None, passphrase, flags).map_err(with_key)?;
                }
            }
            key
        }
    };
    Ok(Secret::new(key))
}

fn resize(device: &Path, name: &str, volume_key: &[u8], size: Option<Sectors>) -> Result<()> {
    let mut luks = LoadedLuksDevice::load(device)?;
    // The new table refers to the key by name, so the key must be in a keyring.
    let flags = CryptActivate::KEYRING_KEY;
    luks.library.activate_handle().activate_by_volume_key(None, Some(volume_key), flags).map_err(with_key)?;
    luks.library.context_handle().resize(name, size.map_or(0, |size| size.0))?;
    Ok(())
}
