//! Devices of version 1 pools that lie in LUKS2 containers of their own: found, opened, made, mended, wiped
//! (`docs/spec/engine/encryption.md` §2.1, 6.1, 7.3).
//!
//! What is inside, from the Stratis header on, is the same as on any other device.

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
        containers::{self, LAYOUT_V1, Prepared, Unlock},
        dm_names,
        encryption::{
            Assigned, Bindings, EncryptionError, Kind, Mechanism, STRATIS_TOKEN, StratisToken, UNFINISHED_TOKEN,
            keyring_token, read_device_header, unfinished_token,
        },
        error::{Error, Result},
        stack::{remove_if_up, remove_surely},
        ties,
        undo::{Rollback, When},
    },
    platform::{
        BlockDevice, Geometry, Platform,
        luks::{self, HeaderChange, Layout, NUMBERS, Purpose, State},
    },
};

/// The container of a device, as it was last read.
#[derive(Debug, Clone)]
pub struct LuksDevice {
    /// The device that it is on.
    pub device: BlockDevice,
    /// Size of that, and its sector sizes.
    pub geometry: Geometry,
    /// Whose it is.
    pub token: StratisToken,
    /// What opens it.
    pub bindings: Bindings,
    /// Where in it the data begins.
    pub data_offset: Sectors,
    /// How far a work on its data has come.
    pub state: State,
    /// It is being made or wiped: what is in it is of no value to anybody.
    pub unfinished: bool,
}

impl LuksDevice {
    /// Reads the container on a device. `None`: there is none, or it is nobody's of ours.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(platform: &dyn Platform, device: &BlockDevice) -> Result<Option<LuksDevice>> {
        let Some(header) = platform.luks_read(&device.path)? else { return Ok(None) };
        let found = match read_device_header(&header) {
            Ok(found) => found,
            Err(error) => {
                log::debug!("{} is no device of a pool: {error}", device.path.display());
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

    /// The device in it.
    pub fn id(&self) -> DevUuid {
        self.token.device
    }

    /// Name of the opened device.
    pub fn name(&self) -> String {
        dm_names::opened_device(self.token.device)
    }

    /// The device that has been opened of it, if it is up.
    ///
    /// # Errors
    /// When it cannot be looked for.
    pub fn opened(&self, platform: &dyn Platform) -> Result<Option<BlockDevice>> {
        let name = self.name();
        match platform.dm_find(&name)? {
            // The name says which device it is; a clone has the same.
            Some(opened) if ties::is_opened_on(platform, opened.number, self.device.number)? => {
                Ok(Some(platform.find_device(&platform.dm_node(&name))?))
            }
            _ => Ok(None),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// If nothing does. `undo` closes it again.
    pub fn open(&self, platform: &dyn Platform, unlock: &Unlock, undo: &mut Rollback) -> Result<BlockDevice> {
        let name = self.name();
        let method = unlock.method.ok_or(Error::Locked { pool: self.token.pool })?;
        let opened = name.clone();
        undo.push(When::Always, format!("close {}", self.device.path.display()), move |platform| {
            remove_surely(platform, &opened)
        });
        let given = unlock.passphrase.as_ref();
        containers::open(platform, &self.device.path, Some(&name), &self.bindings, method, given)?;
        Ok(platform.find_device(&platform.dm_node(&name))?)
    }

    /// Closes it, if it is open.
    ///
    /// # Errors
    /// When it is in use.
    pub fn close(&self, platform: &dyn Platform) -> Result<()> {
        remove_if_up(platform, &self.name())
    }

    /// Closes it and overwrites what it consists of besides its data. If that is cut short, what is left can be told from a
    /// device that nobody has opened yet.
    ///
    /// # Errors
    /// When it is in use, or cannot be written.
    pub fn wipe(&self, platform: &dyn Platform) -> Result<()> {
        // Not in a header that is damaged, or gone after an earlier try.
        if let Err(error) = mark_unfinished(platform, &self.device.path) {
            log::debug!("{} is wiped without a mark: {}", self.device.path.display(), error.sentence());
        }
        self.close(platform)?;
        containers::wipe(platform, &self.device.path, Sectors::ZERO, self.data_offset)
    }

    /// What is in it has been initialized: from now on it is a device of a pool. `undo` marks it again, before anything else of
    /// its making is taken back.
    ///
    /// # Errors
    /// When its header cannot be written.
    pub fn finish(&mut self, platform: &dyn Platform, undo: &mut Rollback) -> Result<()> {
        let path = self.device.path.clone();
        undo.push(When::Known, format!("mark {} again", path.display()), move |platform| {
            mark_unfinished(platform, &path)
        });
        platform.luks_change(&self.device.path, None, &[HeaderChange::RemoveToken(UNFINISHED_TOKEN)])?;
        self.unfinished = false;
        Ok(())
    }

    /// Size that the opened device has when it is as large as it can be.
    pub fn room(&self, device: Sectors) -> Sectors {
        device.saturating_sub(self.data_offset)
    }

    /// Puts the pool's name into the header.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rename(&mut self, platform: &dyn Platform, name: &str) -> Result<()> {
        let token = StratisToken { pool_name: Some(name.to_owned()), ..self.token.clone() };
        platform.luks_change(&self.device.path, None, &[HeaderChange::PutToken(STRATIS_TOKEN, token.to_value())])?;
        self.token = token;
        Ok(())
    }
}

/// Marks a container as one that is not to be taken for a device of a pool.
fn mark_unfinished(platform: &dyn Platform, device: &Path) -> Result<()> {
    let mark = HeaderChange::PutToken(UNFINISHED_TOKEN, unfinished_token());
    Ok(platform.luks_change(device, None, &[mark]).map(drop)?)
}

/// What containers of one pool are made alike in.
pub struct LuksFormat {
    /// The pool.
    pub pool: PoolUuid,
    /// Its name.
    pub name: String,
    /// What is to open them.
    pub bindings: Vec<Assigned>,
    /// Size of their encryption sectors; `None`: what suits each device.
    pub sector_size: Option<u32>,
}

impl LuksFormat {
    /// Makes a container on a device, and opens it.
    ///
    /// # Errors
    /// If a key is not there, Clevis fails or the device cannot be written. `undo` closes and wipes it.
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
            containers::wipe(platform, &path, Sectors::ZERO, LAYOUT_V1.data_offset)
        });
        let mut tokens: BTreeMap<u32, serde_json::Value> = prepared.tokens(0..NUMBERS);
        tokens.insert(STRATIS_TOKEN, token.to_value());
        tokens.insert(UNFINISHED_TOKEN, unfinished_token());
        let layout = Layout { sector_size: self.sector_size, ..LAYOUT_V1 };
        let keyslots = prepared.keyslots(0..NUMBERS);
        let header = platform.luks_format(&device.path, &layout, Purpose::New, &keyslots, &tokens)?;
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

/// Puts right what changes of the bindings that were cut short have left: a binding that only some devices have is taken off
/// them, be it that it came or that it went, as long as another opens them all; a passphrase that only some devices have
/// changed is changed back. While a work on the data of one is to be gone on with, nothing is: no header takes another change
/// then, and keyslots for the work are not left over.
///
/// # Errors
/// When a header cannot be written.
pub fn mend(platform: &dyn Platform, devices: &mut [&mut LuksDevice]) -> Result<()> {
    if devices.iter().any(|device| matches!(device.state, State::Unfinished { .. })) {
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
                (Mechanism::Keyring(new), Some(old), Some(next)) if new != old && device.state == State::Encrypted => {
                    changes.push(HeaderChange::PutToken(binding.token, keyring_token(old, binding.keyslot)));
                    changes.push(HeaderChange::DestroyKeyslot(next));
                }
                _ => {}
            }
        }
        let path: PathBuf = device.device.path.clone();
        if changes.is_empty() {
            let Some(header) = platform.luks_read(&path)? else { continue };
            changes = containers::mends(&header);
        }
        if !changes.is_empty() {
            log::info!("{}: putting its LUKS2 header right after changes that were cut short", path.display());
            let header = platform.luks_change(&path, None, &changes)?;
            device.bindings = read_device_header(&header)?.bindings;
        }
    }
    Ok(())
}
