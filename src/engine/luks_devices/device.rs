//! The LUKS devices of version 1 pools: how they are found, opened, made, repaired and wiped
//! (`docs/spec/engine/encryption.md` §2.1, 6.1, 7.3).
//!
//! From the signature block on, their crypt devices have the same contents as any other block
//! device of a pool.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::Sectors,
    },
    engine::{
        dm_names,
        encryption::{
            Assigned, Bindings, EncryptionError, Kind, Mechanism, STRATIS_TOKEN, StratisToken, UNFINISHED_TOKEN,
            keyring_token, read_device_header, unfinished_token,
        },
        error::{Error, Result},
        luks_devices::lifecycle::{self, LAYOUT_V1, Prepared, UnlockOptions},
        stack::{remove_if_up, remove_surely},
        ties,
        undo::{Rollback, When},
    },
    platform::{
        BlockDevice, Geometry, Platform,
        luks::{self, DataEncryption, FormatPurpose, HeaderChange, HeaderLayout, NUMBERS},
    },
};

/// A LUKS device of a pool, as last read.
#[derive(Debug, Clone)]
pub struct LuksDevice {
    /// The device that holds the header.
    pub device: BlockDevice,
    /// Size and sector sizes of that device.
    pub geometry: Geometry,
    /// The token that names the pool and the device.
    pub token: StratisToken,
    /// The bindings that open the LUKS device.
    pub bindings: Bindings,
    /// Offset of the data on the device.
    pub data_offset: Sectors,
    /// The progress of a re-encryption job on the LUKS device.
    pub state: DataEncryption,
    /// The LUKS device is being made or wiped. Its contents are of no value.
    pub unfinished: bool,
}

impl LuksDevice {
    /// Reads the header on a device. `None`: the device has no header, or one that is not Stratis'.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn read(platform: &dyn Platform, device: &BlockDevice) -> Result<Option<LuksDevice>> {
        let Some(header) = platform.luks_read(&device.path)? else { return Ok(None) };
        let found = match read_device_header(&header) {
            Ok(found) => found,
            Err(error) => {
                log::debug!("{} is not a device of a pool: {error}", device.path.display());
                return Ok(None);
            }
        };
        Ok(Some(LuksDevice {
            device: device.clone(),
            geometry: platform.geometry(&device.path)?,
            token: found.token,
            bindings: found.bindings,
            data_offset: header.data_offset,
            state: header.state,
            unfinished: found.unfinished,
        }))
    }

    /// UUID of the block device of the pool, which is the crypt device.
    pub fn id(&self) -> DevUuid {
        self.token.device
    }

    /// Name of the crypt device.
    pub fn name(&self) -> String {
        dm_names::opened_device(self.token.device)
    }

    /// The crypt device, if it is up.
    ///
    /// # Errors
    /// When device-mapper cannot be queried.
    pub fn opened(&self, platform: &dyn Platform) -> Result<Option<BlockDevice>> {
        let name = self.name();
        match platform.dm_find(&name)? {
            // The name identifies the block device, but a clone of it has the same name.
            Some(opened) if ties::is_opened_on(platform, opened.number, self.device.number)? => {
                Ok(Some(platform.find_device(&platform.dm_node(&name))?))
            }
            _ => Ok(None),
        }
    }

    /// Opens the LUKS device and returns its crypt device.
    ///
    /// # Errors
    /// If no binding opens it. `undo` closes it again.
    pub fn open(&self, platform: &dyn Platform, unlock: &UnlockOptions, undo: &mut Rollback) -> Result<BlockDevice> {
        let name = self.name();
        let method = unlock.method.ok_or(Error::Locked { pool: self.token.pool })?;
        let opened = name.clone();
        undo.push(When::Always, format!("close {}", self.device.path.display()), move |platform| {
            remove_surely(platform, &opened)
        });
        let given = unlock.passphrase.as_ref();
        lifecycle::open(platform, &self.device.path, Some(&name), &self.bindings, method, given).map_err(|error| {
            let pool = self.token.pool_name.clone();
            error.naming_pool(pool.unwrap_or_else(|| self.token.pool.to_string()))
        })?;
        Ok(platform.find_device(&platform.dm_node(&name))?)
    }

    /// Closes the LUKS device if it is open.
    ///
    /// # Errors
    /// When it is in use.
    pub fn close(&self, platform: &dyn Platform) -> Result<()> {
        remove_if_up(platform, &self.name())
    }

    /// Closes the LUKS device and overwrites it except for its data. If this is interrupted, the
    /// remains can be told apart from a LUKS device that has not been opened yet.
    ///
    /// # Errors
    /// When it is in use or cannot be written.
    pub fn wipe(&self, platform: &dyn Platform) -> Result<()> {
        // This fails if the header is damaged, or if an earlier attempt has wiped it.
        if let Err(error) = mark_unfinished(platform, &self.device.path) {
            log::debug!(
                "could not mark {} as unfinished before it is wiped: {}",
                self.device.path.display(),
                error.sentence()
            );
        }
        self.close(platform)?;
        lifecycle::wipe(platform, &self.device.path, Sectors::ZERO, self.data_offset)
    }

    /// Removes the mark of an unfinished LUKS device: its crypt device is initialized, so it
    /// belongs to a pool from now on. `undo` sets the mark again before any other part of the
    /// creation is taken back.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn finish(&mut self, platform: &dyn Platform, undo: &mut Rollback) -> Result<()> {
        let path = self.device.path.clone();
        undo.push(When::Known, format!("mark {} again", path.display()), move |platform| {
            mark_unfinished(platform, &path)
        });
        platform.luks_change(&self.device.path, None, &[HeaderChange::RemoveToken(UNFINISHED_TOKEN)])?;
        self.unfinished = false;
        Ok(())
    }

    /// The largest size that the crypt device can have.
    pub fn room(&self, device: Sectors) -> Sectors {
        device.saturating_sub(self.data_offset)
    }

    /// Writes the pool's name into the header.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn rename(&mut self, platform: &dyn Platform, name: &str) -> Result<()> {
        let token = StratisToken { pool_name: Some(name.to_owned()), ..self.token.clone() };
        platform.luks_change(&self.device.path, None, &[HeaderChange::PutToken(STRATIS_TOKEN, token.to_value())])?;
        self.token = token;
        Ok(())
    }
}

/// Marks a LUKS device as unfinished, so that it is not taken for a device of a pool.
fn mark_unfinished(platform: &dyn Platform, device: &Path) -> Result<()> {
    let mark = HeaderChange::PutToken(UNFINISHED_TOKEN, unfinished_token());
    Ok(platform.luks_change(device, None, &[mark]).map(drop)?)
}

/// What the LUKS devices of one pool have in common.
pub struct LuksFormat {
    /// The pool.
    pub pool: PoolUuid,
    /// The pool's name.
    pub name: String,
    /// The bindings that open them.
    pub bindings: Vec<Assigned>,
    /// Size of the encryption sectors; `None`: the size that suits each device.
    pub sector_size: Option<u32>,
}

impl LuksFormat {
    /// Turns a block device into a LUKS device and opens it.
    ///
    /// # Errors
    /// If a key is missing, Clevis fails or the device cannot be written. `undo` closes and
    /// wipes it.
    pub fn format(
        &self,
        platform: &dyn Platform,
        device: &BlockDevice,
        geometry: Geometry,
        undo: &mut Rollback,
    ) -> Result<(LuksDevice, BlockDevice)> {
        let prepared = Prepared::new(platform, &self.bindings)?;
        let token = StratisToken::new(self.pool, DevUuid::from_random(platform.random()), &self.name);
        let path = device.path.clone();
        undo.push(When::Unused, format!("wipe {}", path.display()), move |platform| {
            lifecycle::wipe(platform, &path, Sectors::ZERO, LAYOUT_V1.data_offset)
        });
        let mut tokens: BTreeMap<u32, serde_json::Value> = prepared.tokens(0..NUMBERS);
        tokens.insert(STRATIS_TOKEN, token.to_value());
        tokens.insert(UNFINISHED_TOKEN, unfinished_token());
        let layout = HeaderLayout { sector_size: self.sector_size, ..LAYOUT_V1 };
        let keyslots = prepared.keyslots(0..NUMBERS);
        let header = platform.luks_format(&device.path, &layout, FormatPurpose::New, &keyslots, &tokens)?;
        let luks_device = LuksDevice {
            device: device.clone(),
            geometry,
            token,
            bindings: read_device_header(&header)?.bindings,
            data_offset: header.data_offset,
            state: header.state,
            unfinished: true,
        };
        let Some(first) = keyslots.first() else { return Err(EncryptionError::NoMechanism.into()) };
        let name = luks_device.name();
        let opened = name.clone();
        undo.push(When::Always, format!("close {}", device.path.display()), move |platform| {
            remove_surely(platform, &opened)
        });
        let unlock = luks::Unlock { passphrase: first.passphrase, keyslot: Some(first.number) };
        platform.luks_open(&device.path, Some(&name), unlock)?;
        let inside = platform.find_device(&platform.dm_node(&name))?;
        Ok((luks_device, inside))
    }
}

/// Repairs the headers after interrupted changes of the bindings. A binding that only some devices
/// have is removed from them, whether it was being added or removed, as long as another binding
/// opens all devices. A passphrase that only some devices have changed is changed back. While a
/// re-encryption job of any device has to be resumed, no header is repaired: headers accept no
/// other change then, and the keyslots of the job are not left over.
///
/// # Errors
/// When a header cannot be written.
pub fn mend(platform: &dyn Platform, devices: &mut [&mut LuksDevice]) -> Result<()> {
    if devices.iter().any(|device| matches!(device.state, DataEncryption::Unfinished { .. })) {
        return Ok(());
    }
    let former = devices.iter().find_map(|device| match &device.bindings.lowest(Kind::Keyring)?.mechanism {
        Mechanism::Keyring(description) if device.bindings.lowest(Kind::Keyring)?.next.is_none() => {
            Some(description.clone())
        }
        _ => None,
    });
    let everywhere = |kind| devices.iter().all(|device| device.bindings.lowest(kind).is_some());
    let (keys, clevis) = (everywhere(Kind::Keyring), everywhere(Kind::Clevis));
    for device in devices.iter_mut() {
        let mut changes = Vec::new();
        for (kind, all_have_it, all_have_other) in [(Kind::Keyring, keys, clevis), (Kind::Clevis, clevis, keys)] {
            let Some(binding) = device.bindings.lowest(kind) else { continue };
            match (&binding.mechanism, &former, binding.next) {
                _ if !all_have_it && all_have_other => {
                    changes.push(HeaderChange::DestroyKeyslot(binding.keyslot));
                    changes.extend(binding.next.map(HeaderChange::DestroyKeyslot));
                    changes.push(HeaderChange::RemoveToken(binding.token));
                }
                (Mechanism::Keyring(new), Some(old), Some(next))
                    if new != old && device.state == DataEncryption::Encrypted =>
                {
                    changes.push(HeaderChange::PutToken(binding.token, keyring_token(old, binding.keyslot)));
                    changes.push(HeaderChange::DestroyKeyslot(next));
                }
                _ => {}
            }
        }
        let path: PathBuf = device.device.path.clone();
        if changes.is_empty() {
            let Some(header) = platform.luks_read(&path)? else { continue };
            changes = lifecycle::mends(&header);
        }
        if !changes.is_empty() {
            log::info!("repairing the LUKS2 header of {} after interrupted changes", path.display());
            let header = platform.luks_change(&path, None, &changes)?;
            device.bindings = read_device_header(&header)?.bindings;
        }
    }
    Ok(())
}
