//! How a pool is encrypted and which re-encryption job runs on it. Version 2 keeps this in the
//! pool's own LUKS2 header, version 1 in the headers of the devices.

use std::{path::PathBuf, sync::Arc};

use super::Pool;
use crate::{
    engine::{
        bda::Choose,
        encryption::{Info, KeyDescription, Kind, read_pool_header},
        error::{Error, Result},
        metadata::MetadataVersion,
    },
    platform::{Platform, luks::Header},
    view,
};

impl Pool {
    /// How the pool can be unlocked.
    ///
    /// # Errors
    /// If the pool is not encrypted.
    pub(in crate::engine) fn encryption(&self) -> Result<&Info> {
        self.encryption.info.as_ref().ok_or_else(|| Error::NothingToOpen { pool: self.name.clone() })
    }

    /// Whether the pool is encrypted: the whole pool (version 2) or each member (version 1).
    pub fn is_encrypted(&self) -> bool {
        self.encryption.info.is_some()
    }

    /// The LUKS devices of the pool's members, with the names of the crypt devices on them
    /// (version 1).
    pub(in crate::engine) fn luks_devices(&self) -> impl Iterator<Item = (PathBuf, String)> {
        self.members.luks_devices().map(|luks_device| (luks_device.device.path.clone(), luks_device.name()))
    }

    /// Records which kinds of bindings a pool of version 2 has, unless that is already recorded.
    ///
    /// # Errors
    /// When the metadata cannot be written.
    pub(in crate::engine) fn record_bindings(&mut self, platform: &dyn Platform) -> Result<()> {
        let Ok(bindings) = self.encryption().and_then(|info| Ok(info.agreed()?.clone())) else { return Ok(()) };
        self.record_kinds(platform, |kind| bindings.lowest(kind).is_some())
    }

    /// Records that a pool of version 2 has those kinds of bindings that `has` reports.
    ///
    /// # Errors
    /// When the metadata cannot be written.
    pub(in crate::engine) fn record_kinds(
        &mut self,
        platform: &dyn Platform,
        has: impl Fn(Kind) -> bool,
    ) -> Result<()> {
        if self.version() == MetadataVersion::V1 {
            return Ok(());
        }
        let mut wanted = self.meta().clone();
        wanted.set_encrypted(has(Kind::Keyring), has(Kind::Clevis))?;
        if wanted.features == self.meta().features {
            return Ok(());
        }
        self.change(platform, Choose::Some(platform.random()), |meta| {
            *meta = wanted;
            Ok(())
        })
    }

    /// Notes what the pool's LUKS2 header says now (version 2).
    ///
    /// # Errors
    /// If no binding in the header is usable.
    pub(in crate::engine) fn note_header(&mut self, header: &Header) -> Result<()> {
        self.note_encryption(Some(Info::of_pool(read_pool_header(header)?)));
        Ok(())
    }

    /// Notes what the LUKS headers of the members say (encrypted pools of version 1).
    ///
    /// # Errors
    /// If only some of the members lie on LUKS devices.
    pub(in crate::engine) fn note_luks_devices(&mut self) -> Result<()> {
        if self.version() == MetadataVersion::V1 {
            let bindings = self.members.values().map(|member| Some(&member.luks_device.as_ref()?.bindings));
            let info = Info::of_devices(bindings)?;
            self.note_encryption(info);
        }
        Ok(())
    }

    /// Notes how the pool can be unlocked now.
    pub(in crate::engine) fn note_encryption(&mut self, info: Option<Info>) {
        self.encryption.info = info;
        self.show();
    }

    /// Notes whether the pool's volume key is in the daemon's keyring.
    pub(in crate::engine) fn note_volume_key(&mut self, loaded: bool) {
        self.encryption.volume_key_loaded = loaded;
        self.show();
    }

    /// Whether the pool is encrypted as a whole and its volume key is not in the daemon's keyring.
    pub(in crate::engine) fn lacks_volume_key(&self) -> bool {
        self.meta().is_encrypted() && !self.encryption.volume_key_loaded
    }

    /// The re-encryption job on the pool's data, if there is one.
    pub(in crate::engine) fn job(&self) -> Option<&Arc<view::ReencryptionJob>> {
        self.encryption.job.as_ref()
    }

    /// Notes a re-encryption job on the pool's data, or its end.
    pub(in crate::engine) fn note_job(&mut self, job: Option<Arc<view::ReencryptionJob>>) {
        self.encryption.job = job;
        self.show();
    }

    /// Notes that a re-encryption job, if there is one, is no longer being worked on.
    pub(in crate::engine) fn note_job_error(&mut self, why: &str) {
        if let Some(job) = &self.encryption.job {
            self.note_job(Some(Arc::new(job.stopped_by(why))));
        }
    }

    /// Refuses what is impossible during a re-encryption job.
    pub(in crate::engine) fn check_no_job(&self) -> Result<()> {
        let Some(job) = &self.encryption.job else { return Ok(()) };
        let (pool, mode) = (self.name.clone(), job.kind);
        Err(match &job.error {
            None => Error::ReencryptionRunning { pool, mode },
            Some(why) => Error::ReencryptionStopped { pool, mode, why: why.to_string() },
        })
    }

    /// Whether a re-encryption job may need this key.
    pub(in crate::engine) fn needs_for_job(&self, key: &KeyDescription) -> bool {
        self.encryption.needs_for_job(key)
    }
}
