//! A LUKS device as libcryptsetup sees it: its header, its keyslots and tokens, its volume keys.
//!
//! This module knows nothing of the daemon, nor why a header is read or changed.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    path::Path,
};

use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks2, CryptParamsLuks2Ref, CryptPbkdfType, CryptSettingsHandle, Either,
    TokenInput,
    consts::{
        flags::{CryptPbkdf, CryptVolumeKey},
        vals::{CryptKdf, EncryptionFormat, KeyslotsSize, LuksType, MetadataSize},
    },
};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    fault::{LuksFault, Result, with_key},
    header::{DataSegment, Metadata},
    wire::{Nth, SentKeyslot},
};
use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::{
        keyring::Secret,
        luks::{Cost, Header, HeaderLayout, VOLUME_KEY_BYTES},
    },
};

/// The cipher and its mode.
pub(super) const CIPHER: (&str, &str) = ("aes", "xts-plain64");
/// PBKDF2 iterations for random passphrases, as Clevis uses them.
const RANDOM_ITERATIONS: u32 = 1000;

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
            return Err(LuksFault::Other("the header does not fit before the data".to_owned()));
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
    pub(super) fn key(&mut self, keyslot: Option<u32>, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
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
    pub(super) fn key_in_use(&mut self, keyslot: Option<u32>, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
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
