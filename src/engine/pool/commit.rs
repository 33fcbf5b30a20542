//! The record of a pool, which is its pool metadata. Only this file changes it.
//!
//! # Order, and why it survives failures
//!
//! A change replaces a former state by a new one. [`Pool::commit`] gets both. The new state is
//! decided once it is on a device that the former state names, too: a record that is only on new
//! devices would be missed if these devices disappeared. A state that is not decided may still be
//! on some device, because a write that reports a failure may have been carried out. So the former
//! state is written once more, with a newer stamp, to every device that it names. One successful
//! write is enough: the newest stamp counts, and a pool is set up only with all its devices.
//!
//! If these writes fail, too, the record is *unsure* ([`Error::Unrecorded`]): the next set-up finds
//! one state or the other. Memory and kernel keep the former state, the pool is not changed any
//! more, and nothing that the new state needs on disk is taken back
//! ([`Rollback`](crate::engine::undo::Rollback) ensures this). Each check writes the former state
//! once more ([`Pool::make_sure`]). When that write succeeds, the record is sure, because it is the
//! state of the pool in memory and in the kernel. Devices of the new state that were not wiped then
//! hold older metadata and are left aside.
//!
//! Each stamp is later than all stamps that any device of the pool was given, so a clock that goes
//! backwards does no harm.

use super::Pool;
use crate::{
    base::ids::DevUuid,
    engine::{
        bda::{self, Choose},
        error::{Error, Result},
        metadata::{PoolMetadata, mda::next_stamp, pool::Tier},
    },
    platform::{Platform, Timestamp},
};

/// Bytes of a device's metadata area that are reserved for changes that must always be possible:
/// stopping and destroying the pool, letting writes fail when no space can be handed out, and
/// recording how the pool is encrypted.
pub const RESERVE_BYTES: u64 = 4096;

impl Pool {
    /// The metadata as recorded on the devices. The pool is set up from it, except for a cache tier
    /// that it was set up without.
    pub(in crate::engine) fn on_record(&self) -> PoolMetadata {
        self.record.on_disk()
    }

    /// Notes that the pool was set up without the recorded cache tier. The tier stays on record
    /// until a commit of metadata without it.
    pub(in crate::engine) fn set_up_without(&mut self, cache: Option<Tier>) {
        self.record.set_up_without(cache);
    }

    /// Changes the recorded metadata as [`Pool::commit`] does.
    ///
    /// # Errors
    /// Those of [`Pool::commit`] and of `change`.
    pub(in crate::engine) fn change(
        &mut self,
        platform: &dyn Platform,
        choose: Choose,
        change: impl FnOnce(&mut PoolMetadata) -> Result<()>,
    ) -> Result<()> {
        let old = self.on_record();
        let mut new = old.clone();
        change(&mut new)?;
        self.commit(platform, choose, Some(&old), new)
    }

    /// Records a new state: on disk first, then in memory. `old` is the recorded state; `None`: the
    /// pool is being created. If the new state has no cache tier, a cache tier that the pool was
    /// set up without is given up.
    ///
    /// # Errors
    /// When the new state was not decided. Memory is then as before. So is the disk, or the error
    /// is [`Error::Unrecorded`] and the pool is restricted.
    pub(in crate::engine) fn commit(
        &mut self,
        platform: &dyn Platform,
        choose: Choose,
        old: Option<&PoolMetadata>,
        new: PoolMetadata,
    ) -> Result<()> {
        self.check_room(old, &new)?;
        if let Err(cause) = self.save(platform, choose, &new, old) {
            return Err(self.overrule(platform, old, &new, cause));
        }
        self.record.accept(new);
        self.show();
        Ok(())
    }

    /// Takes a commit back because of `cause`, a failure of a step that had to follow the commit.
    /// The former state is recorded again; in memory it is restored in any case. Returns the error
    /// to report: `cause`, or [`Error::Unrecorded`] if the next set-up may find the state that was
    /// to be taken back.
    pub(in crate::engine) fn take_back(&mut self, platform: &dyn Platform, old: PoolMetadata, cause: Error) -> Error {
        let new = self.record.go_back(old);
        self.show();
        let old = self.on_record();
        self.overrule(platform, Some(&old), &new, cause)
    }

    /// Writes the state of the pool once more if its record is unsure.
    pub(in crate::engine) fn make_sure(&mut self, platform: &dyn Platform) {
        if !self.may_be_sure() {
            return;
        }
        let state = self.on_record();
        match self.save(platform, Choose::Everywhere, &state, None) {
            Ok(()) => self.note_unsure(None),
            Err(error) => log::debug!("pool {} is still unsure of its record: {}", self.name, error.sentence()),
        }
    }

    /// Writes the former state with a newer stamp than the new state has on any device.
    fn overrule(
        &mut self,
        platform: &dyn Platform,
        old: Option<&PoolMetadata>,
        new: &PoolMetadata,
        cause: Error,
    ) -> Error {
        let overruled = match old {
            Some(old) => self.save(platform, Choose::Everywhere, old, None),
            // The former state was that there is no pool. A device that cannot be wiped now is
            // wiped when the daemon next sees it.
            None => {
                let condemned = Some(Timestamp::default());
                let none = PoolMetadata { destroying: condemned, started: Some(false), ..new.clone() };
                self.save(platform, Choose::Everywhere, &none, None)
            }
        };
        match overruled {
            Ok(()) => cause,
            Err(source) => {
                let pool = self.name.clone();
                let error = Error::Unrecorded { pool, cause: Box::new(cause), source: Box::new(source) };
                self.note_unsure(Some(error.sentence()));
                error
            }
        }
    }

    /// Refuses a state that would fill the metadata areas, unless the change must always be
    /// possible. The lists of segments and the user's texts about devices grow without a bound.
    fn check_room(&self, old: Option<&PoolMetadata>, new: &PoolMetadata) -> Result<()> {
        let length = new.encode(self.version()).len() as u64;
        let capacities = new.data_devices().filter_map(|uuid| Some(self.members.get(uuid)?.bda.capacity()));
        let capacity = capacities.max().unwrap_or_default();
        if length <= capacity.saturating_sub(RESERVE_BYTES) {
            return Ok(());
        }
        let grows = old.is_none_or(|old| old.features == new.features && old.unbounded_bytes() < new.unbounded_bytes());
        match grows || length > capacity {
            true => Err(Error::RecordFull { pool: self.name.clone(), length, capacity }),
            false => Ok(()),
        }
    }

    /// Writes a state to its data devices. The state is saved once at least one device has it that
    /// `decides` names as well; `None`: any device will do.
    fn save(
        &mut self,
        platform: &dyn Platform,
        choose: Choose,
        meta: &PoolMetadata,
        decides: Option<&PoolMetadata>,
    ) -> Result<()> {
        // Include devices that are not written this time: no device may hold a stamp newer than
        // that of this save.
        let last = self.members.values().filter_map(|member| member.bda.last_tried()).max();
        let stamp = next_stamp(platform.now(), last);
        let json = meta.stamped(stamp).encode(self.version());
        let data: Vec<DevUuid> = meta.data_devices().collect();
        let deciding: Option<Vec<DevUuid>> = decides.map(|decides| decides.data_devices().collect());
        let (ids, mut devices): (Vec<DevUuid>, Vec<_>) = self
            .members
            .iter_mut()
            .filter(|(uuid, _)| data.contains(uuid))
            .map(|(uuid, member)| (*uuid, (member.device.path.as_path(), &mut member.bda)))
            .unzip();
        let saved = bda::save_to_pool(platform, &mut devices, &json, stamp, choose)?;
        let decided = saved.written.iter().filter_map(|at| ids.get(*at));
        let is_decided = decided.into_iter().any(|uuid| deciding.as_ref().is_none_or(|named| named.contains(uuid)));
        let mut failed = saved.failed.into_iter();
        if !is_decided {
            // All deciding devices were tried, or were among the chosen ones. So at least one of
            // them failed.
            if let Some((_, source)) = failed.next_back() {
                return Err(bda::BdaError::NotSaved { tried: ids.len(), source: Box::new(source) }.into());
            }
        }
        for (at, error) in failed {
            let path = devices.get(at).map_or_else(String::new, |(path, _)| path.display().to_string());
            log::warn!("pool {}: metadata was not saved on {path}: {error}", meta.name);
        }
        Ok(())
    }
}
