//! How a pool is encrypted, and what is being done about it: in its own header (version 2) or in those of its devices
//! (version 1).

use std::{path::PathBuf, sync::Arc};

use super::Pool;
use crate::{
    engine::{
        bda::Choose,
        encryption::{Info, KeyDescription, Kind, Mechanism, read_pool_header},
        error::{Error, Result},
        metadata::MetadataVersion,
    },
    platform::{Platform, luks::Header},
    view,
};

impl Pool {
    /// How it can be unlocked.
    ///
    /// # Errors
    /// If it is not encrypted.
    pub(in crate::engine) fn encryption(&self) -> Result<&Info> {
        self.encryption.as_ref().ok_or_else(|| Error::NothingToOpen { pool: self.name.clone() })
    }

    /// Whether it is encrypted, as a whole or device by device.
    pub fn is_encrypted(&self) -> bool {
        self.encryption.is_some()
    }

    /// Its devices that are LUKS2 containers, with the names of what is opened of them (version 1).
    pub(in crate::engine) fn device_containers(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let containers = self.members.values().filter_map(|member| member.container.as_ref());
        containers.map(|luks_device| (luks_device.device.path.clone(), luks_device.name()))
    }

    /// Records which kinds of bindings a pool of version 2 has, if that is not on record.
    ///
    /// # Errors
    /// When the metadata cannot be written.
    pub(in crate::engine) fn record_bindings(&mut self, platform: &dyn Platform) -> Result<()> {
        let Ok(bindings) = self.encryption().and_then(|info| Ok(info.agreed()?.clone())) else { return Ok(()) };
        self.record_kinds(platform, |kind| bindings.lowest(kind).is_some())
    }

    /// Records that a pool of version 2 has the kinds of bindings of which `has` says so.
    ///
    /// # Errors
    /// When the metadata cannot be written.
    pub(in crate::engine) fn record_kinds(
        &mut self,
        platform: &dyn Platform,
        has: impl Fn(Kind) -> bool,
    ) -> Result<()> {
        if self.version == MetadataVersion::V1 {
            return Ok(());
        }
        let mut wanted = self.meta.clone();
        wanted.set_encrypted(has(Kind::Keyring), has(Kind::Clevis))?;
        if wanted.features == self.meta.features {
            return Ok(());
        }
        self.change(platform, Choose::Some(platform.random()), |meta| {
            *meta = wanted;
            Ok(())
        })
    }

    /// Closes the containers of its devices, when nothing lies on them any more.
    ///
    /// # Errors
    /// When one is in use.
    pub(in crate::engine) fn close_devices(&self, platform: &dyn Platform) -> Result<()> {
        let mut containers = self.members.values().filter_map(|member| member.container.as_ref());
        containers.try_for_each(|luks_device| luks_device.close(platform))
    }

    /// Takes note of what its header says now (version 2).
    ///
    /// # Errors
    /// If nothing in it is of use.
    pub(in crate::engine) fn note_header(&mut self, header: &Header) -> Result<()> {
        self.note_encryption(Some(Info::of_pool(read_pool_header(header)?)));
        Ok(())
    }

    /// Takes note of what the containers of its devices say, if these lie in some (version 1).
    ///
    /// # Errors
    /// If only some do.
    pub(in crate::engine) fn note_containers(&mut self) -> Result<()> {
        if self.version == MetadataVersion::V1 {
            let bindings = self.members.values().map(|member| Some(&member.container.as_ref()?.bindings));
            let info = Info::of_devices(bindings)?;
            self.note_encryption(info);
        }
        Ok(())
    }

    /// Takes note of how it can be unlocked now.
    pub(in crate::engine) fn note_encryption(&mut self, info: Option<Info>) {
        self.encryption = info;
        self.show();
    }

    /// Takes note of whether its volume key is in the daemon's keyring.
    pub(in crate::engine) fn note_volume_key(&mut self, loaded: bool) {
        self.volume_key_loaded = loaded;
        self.show();
    }

    /// Whether it is encrypted as a whole and its volume key is not in the daemon's keyring.
    pub(in crate::engine) fn lacks_volume_key(&self) -> bool {
        self.meta.is_encrypted() && !self.volume_key_loaded
    }

    /// Takes note of a work on its data, or of its end.
    pub(in crate::engine) fn note_work(&mut self, work: Option<Arc<view::Work>>) {
        self.work = work;
        self.show();
    }

    /// Takes note that nobody is at the work on its data any more, if there is one.
    pub(in crate::engine) fn note_halted(&mut self, why: &str) {
        if let Some(work) = &self.work {
            self.note_work(Some(Arc::new(work.halted(why))));
        }
    }

    /// Refuses what cannot be done while its data is being worked on.
    pub(in crate::engine) fn check_no_work(&self) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        let (pool, kind) = (self.name.clone(), work.kind);
        Err(match &work.halted {
            None => Error::AtWork { pool, work: kind },
            Some(why) => Error::WorkHalted { pool, work: kind, why: why.to_string() },
        })
    }

    /// Whether there is a work on its data that this key may be wanted for.
    pub(in crate::engine) fn wants_for_work(&self, key: &KeyDescription) -> bool {
        let opens = |info: &Info| match info.agreed() {
            Ok(bindings) => bindings.of_mechanism(&Mechanism::Keyring(key.clone())).count() > 0,
            // It cannot be told.
            Err(_) => true,
        };
        self.work.is_some() && self.encryption.as_ref().is_some_and(opens)
    }
}
