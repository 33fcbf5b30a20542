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
    child::Talk,
    header::{Metadata, Segment},
    reencrypt, repair, staged, table,
    wire::{Answer, Change, NewKeyslot, Nth, Request, Unlock},
};
use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::{
        keyring::Secret,
        luks::{Cost, Header, Layout, Purpose, ReencryptionMode, State, VOLUME_KEY_BYTES},
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
pub(super) enum Fault {
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
    Talk(io::Error),
    /// Another error, in words.
    #[error("{0}")]
    Other(String),
}

impl Fault {
    /// The message to the daemon.
    pub(super) fn into_answer(self) -> Answer {
        match self {
            Fault::WrongKey => Answer::WrongKey,
            Fault::Busy => Answer::Busy,
            other => Answer::Failed(other.to_string()),
        }
    }
}

impl From<LibcryptErr> for Fault {
    fn from(fault: LibcryptErr) -> Fault {
        match fault {
            LibcryptErr::IOError(fault) => Fault::Other(fault.to_string()),
            fault => Fault::Other(fault.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(fault: io::Error) -> Fault {
        Fault::Other(fault.to_string())
    }
}

impl From<String> for Fault {
    fn from(what: String) -> Fault {
        Fault::Other(what)
    }
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// Converts an error of a call that takes a passphrase: the library returns `EPERM` if the
/// passphrase opens nothing, `ENOENT` if there is nothing to open.
pub(super) fn with_key(fault: LibcryptErr) -> Fault {
    match &fault {
        LibcryptErr::IOError(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOENT) => Fault::WrongKey,
            Some(libc::EBUSY) => Fault::Busy,
            _ => fault.into(),
        },
        _ => fault.into(),
    }
}

/// The secrets of a request.
pub(super) struct Secrets<'a>(pub(super) &'a [Secret]);

impl Secrets<'_> {
    pub(super) fn get(&self, nth: Nth) -> Result<&[u8]> {
        self.0.get(nth.0).map(Secret::bytes).ok_or_else(|| Fault::Other("the request lacks a passphrase".to_owned()))
    }
}

/// Serves a request. Returns the answer and the secret that belongs to it.
pub(super) fn serve(request: &Request, secrets: &[Secret], talk: &mut Talk) -> Result<(Answer, Option<Secret>)> {
    let secrets = Secrets(secrets);
    match request {
        Request::Read { device } => {
            let header = if is_luks2(device)? { Some(Container::load(device)?.header()?) } else { None };
            Ok((Answer::Header(header), None))
        }
        Request::Format { device, layout, purpose, keyslots, tokens } => {
            if keyslots.iter().any(|keyslot| keyslot.cost == Cost::Guessable) {
                may_use(talk, DERIVATION_BYTES_MAX)?;
            }
            let header = match purpose {
                Purpose::New => format(device, layout, keyslots, tokens, &secrets)?,
                Purpose::Encrypt => staged::format(device, layout, keyslots, tokens, &secrets)?,
            };
            Ok((Answer::Header(Some(header)), None))
        }
        Request::Change { device, unlock, changes } => {
            let header = change(device, unlock.as_ref(), changes, &secrets, talk)?;
            Ok((Answer::Header(Some(header)), None))
        }
        Request::Open { device, name, unlock } => {
            let key = open(device, name.as_deref(), *unlock, &secrets, talk)?;
            Ok((Answer::VolumeKey, Some(key)))
        }
        Request::Reopen { device, name, volume_key } => {
            let (mut container, flags) = (Container::load(device)?, CryptActivate::empty());
            let key = secrets.get(*volume_key)?;
            container
                .library
                .activate_handle()
                .activate_by_volume_key(Some(name), Some(key), flags)
                .map_err(with_key)?;
            Ok((Answer::Done, None))
        }
        Request::Resize { device, name, volume_key, size } => {
            resize(device, name, secrets.get(*volume_key)?, *size)?;
            Ok((Answer::Done, None))
        }
        Request::Reencrypt { device, name, unlock, begin } => {
            let passphrase = secrets.get(unlock.passphrase)?;
            let ended = reencrypt::run(device, name, unlock.keyslot, passphrase, *begin, talk)?;
            Ok((Answer::Ended(ended), None))
        }
        Request::Repair { device, name, unlock } => {
            let json = Container::load(device)?.json()?;
            may_use(talk, Metadata::new(&json, Sectors::ZERO).memory(None)?)?;
            repair::repair(device, name, secrets.get(unlock.passphrase)?)?;
            Ok((Answer::Done, None))
        }
    }
}

/// Waits for permission to use memory for key derivation. Cheap derivations need none.
pub(super) fn may_use(talk: &mut Talk, memory: Bytes) -> Result<()> {
    if memory == Bytes(0) || talk.may_use(memory).map_err(Fault::Talk)? { Ok(()) } else { Err(Fault::Alone) }
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
pub(super) struct Container {
    pub(super) library: CryptDevice,
    /// Size of the device with the data.
    size: Sectors,
}

impl Container {
    /// Loads the header of a device.
    pub(super) fn load(device: &Path) -> Result<Container> {
        let mut library = CryptInit::init(device)?;
        library.context_handle().load::<CryptParamsLuks2Ref<'_>>(Some(EncryptionFormat::Luks2), None)?;
        Ok(Container { library, size: size_of(device)? })
    }

    /// Formats a header without keyslots, either on `device` itself or in a separate file.
    pub(super) fn make(file: Option<&Path>, device: &Path, layout: &Layout) -> Result<Container> {
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
            return Err(Fault::Other(format!("the data would start at sector {offset} instead of {wanted}")));
        }
        let (got_metadata, got_keyslots) = library.settings_handle().get_metadata_size()?;
        if (*got_metadata, *got_keyslots) != (*metadata, *keyslots) {
            return Err(Fault::Other("there is not enough space before the data".to_owned()));
        }
        Ok(Container { library, size: size_of(device)? })
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
    pub(super) fn segments(&mut self) -> Result<Vec<Segment>> {
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
        keyslot: &NewKeyslot,
        key: Option<&[u8]>,
        flags: CryptVolumeKey,
        secrets: &Secrets<'_>,
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
                return Err(Fault::WrongKey);
            }
        }
        let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
        let found = self.library.volume_key_handle().get(keyslot, &mut key, Some(passphrase));
        let (_, length) = found.map_err(with_key)?;
        if length != VOLUME_KEY_BYTES {
            return Err(Fault::Other(format!("its volume key has {length} bytes instead of {VOLUME_KEY_BYTES}")));
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
                return Err(Fault::WrongKey);
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
                Err(Fault::WrongKey) => {}
                found => return found,
            }
        }
        Err(Fault::WrongKey)
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
    u64::try_from(bytes.0).map_err(|_| Fault::Other(format!("{bytes} exceed what the library can express")))
}

fn format(
    device: &Path,
    layout: &Layout,
    keyslots: &[NewKeyslot],
    tokens: &BTreeMap<u32, Value>,
    secrets: &Secrets<'_>,
) -> Result<Header> {
    let mut container = Container::make(None, device, layout)?;
    fill(&mut container, keyslots, tokens, secrets)?;
    sync(device)?;
    container.header()
}

/// Adds the keyslots and tokens of a new header.
pub(super) fn fill(
    container: &mut Container,
    keyslots: &[NewKeyslot],
    tokens: &BTreeMap<u32, Value>,
    secrets: &Secrets<'_>,
) -> Result<()> {
    for keyslot in keyslots {
        container.add(keyslot, None, CryptVolumeKey::empty(), secrets)?;
    }
    for (number, token) in tokens {
        container.put(*number, token)?;
    }
    Ok(())
}

/// Flushes the device. The library bypasses the page cache where it can, but issues no flush.
pub(super) fn sync(device: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(device)?.sync_all()
}

fn change(
    device: &Path,
    unlock: Option<&Unlock>,
    changes: &[Change],
    secrets: &Secrets<'_>,
    talk: &mut Talk,
) -> Result<Header> {
    let mut container = Container::load(device)?;
    let json = container.json()?;
    let adds = changes.iter().any(|change| matches!(change, Change::AddKeyslot(_)));
    // Only with the passphrase can the library tell the volume key.
    let unlock = unlock.filter(|_| adds);
    let mut memory = Bytes(0);
    if let Some(unlock) = unlock {
        memory = container.metadata(&json).memory(unlock.keyslot)?;
    }
    let is_guessable = |change: &Change| match change {
        Change::AddKeyslot(keyslot) | Change::AddNextKeyslot(keyslot) => keyslot.cost == Cost::Guessable,
        _ => false,
    };
    if changes.iter().any(is_guessable) {
        memory = memory.max(DERIVATION_BYTES_MAX);
    }
    may_use(talk, memory)?;
    let present = match unlock {
        Some(unlock) => Some(container.key_in_use(unlock.keyslot, secrets.get(unlock.passphrase)?)?),
        None => None,
    };
    let mut next = None;
    for change in changes {
        make(&mut container, change, present.as_deref().map(Vec::as_slice), &mut next, secrets)?;
        sync(device)?;
    }
    container.header()
}

fn make(
    container: &mut Container,
    change: &Change,
    present: Option<&[u8]>,
    next: &mut Option<Zeroizing<Vec<u8>>>,
    secrets: &Secrets<'_>,
) -> Result<()> {
    match change {
        Change::AddKeyslot(keyslot) => {
            let key = present
                .ok_or_else(|| Fault::Other("adding a keyslot takes a passphrase that opens the device".to_owned()))?;
            container.add(keyslot, Some(key), CryptVolumeKey::empty(), secrets)
        }
        Change::AddNextKeyslot(keyslot) => match next {
            Some(key) => {
                let flags = CryptVolumeKey::NO_SEGMENT | CryptVolumeKey::DIGEST_REUSE;
                container.add(keyslot, Some(key), flags, secrets)
            }
            None => {
                let mut key = Zeroizing::new(vec![0; VOLUME_KEY_BYTES]);
                OsRng.try_fill_bytes(&mut key).map_err(|fault| Fault::Other(fault.to_string()))?;
                container.add(keyslot, Some(&key), CryptVolumeKey::NO_SEGMENT, secrets)?;
                *next = Some(key);
                Ok(())
            }
        },
        Change::DestroyKeyslot(number) => match container.library.keyslot_handle().status(*number)? {
            KeyslotInfo::Inactive | KeyslotInfo::Invalid => Ok(()),
            _ => Ok(container.library.keyslot_handle().destroy(*number)?),
        },
        Change::PutToken(number, token) => container.put(*number, token),
        Change::RemoveToken(number) => {
            let json = container.json()?;
            if json.get("tokens").and_then(|tokens| tokens.get(number.to_string())).is_some() {
                container.library.token_handle().json_set(TokenInput::RemoveToken(*number))?;
            }
            Ok(())
        }
    }
}

fn open(device: &Path, name: Option<&str>, unlock: Unlock, secrets: &Secrets<'_>, talk: &mut Talk) -> Result<Secret> {
    let passphrase = secrets.get(unlock.passphrase)?;
    let mut container = Container::load(device)?;
    let json = container.json()?;
    let metadata = container.metadata(&json);
    let state = metadata.state(&metadata.segments()?)?;
    may_use(talk, metadata.memory(unlock.keyslot)?)?;
    let key = match state {
        State::Clear => return Err(Fault::Other("the device is not encrypted any more".to_owned())),
        State::Encrypted => {
            let key = container.key_in_use(unlock.keyslot, passphrase)?;
            if let Some(name) = name {
                let flags = CryptActivate::empty();
                let mut activate = container.library.activate_handle();
                activate.activate_by_volume_key(Some(name), Some(&key), flags).map_err(with_key)?;
            }
            key
        }
        State::Unfinished { mode, done } => {
            // The final volume key of all data, or for a decryption the previous one.
            let digest = metadata.final_digest()?.or(metadata.previous_digest()?);
            let digest = digest.ok_or_else(|| "its header does not name the volume key".to_owned())?;
            if unlock.keyslot.is_some() {
                container.key(unlock.keyslot, passphrase)?;
            }
            let key = container.key_with(digest, passphrase)?;
            if let Some(name) = name {
                if mode == ReencryptionMode::Encrypt && done == Bytes(0) {
                    // The plaintext is still in use through the device itself.
                    table::bring_up(device, name, passphrase)?;
                } else {
                    let mut activate = container.library.activate_handle();
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
    let mut container = Container::load(device)?;
    // The new table refers to the key by name, so the key must be in a keyring.
    let flags = CryptActivate::KEYRING_KEY;
    container.library.activate_handle().activate_by_volume_key(None, Some(volume_key), flags).map_err(with_key)?;
    container.library.context_handle().resize(name, size.map_or(0, |size| size.0))?;
    Ok(())
}
