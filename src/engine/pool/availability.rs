//! What is allowed in a pool, and what restricts it.

use std::sync::Arc;

use super::{Pool, restrictions::STARVED};
use crate::{
    engine::error::{Error, Result},
    view::Availability,
};

impl Pool {
    /// Lowers the availability to `level`. If it is lower already, it stays.
    pub fn restrict(&mut self, level: Availability, reason: impl Into<String>) {
        let reason: Arc<str> = reason.into().into();
        if self.restrictions.note_damage(level, Arc::clone(&reason)) {
            log::error!("pool {} is now in state {}: {reason}", self.name, level.word());
            self.show_availability();
        }
    }

    /// Notes whether the thin pool is out of metadata space. Unlike a restriction by
    /// [`Pool::restrict`], this one ends as soon as the thin pool has metadata space again.
    pub(in crate::engine) fn note_starved(&mut self, starved: bool) {
        if !self.restrictions.note_starved(starved) {
            return;
        }
        match starved {
            true => log::warn!("pool {} is restricted: {STARVED}", self.name),
            false => log::info!("the thin pool of {} has metadata space again", self.name),
        }
        self.show_availability();
    }

    /// Whether the thin pool was out of metadata space when that was last noted.
    pub(in crate::engine) fn is_starved(&self) -> bool {
        self.restrictions.is_starved()
    }

    /// Notes whether the record is unsure, and why. While it is unsure, the pool must not be
    /// changed.
    pub(in crate::engine) fn note_unsure(&mut self, reason: Option<String>) {
        match &reason {
            Some(reason) => log::error!("pool {} can no longer be changed: {reason}", self.name),
            None => log::info!("the former metadata of pool {} has been written again", self.name),
        }
        self.restrictions.note_unsure(reason.map(Into::into));
        self.show_availability();
    }

    /// Whether the record is unsure and can be made sure. That requires the pool to be as it was
    /// before the failed change. A pool with a device that has grown is not: the device itself
    /// records the larger size. The next set-up completes the growth.
    pub(in crate::engine) fn may_be_sure(&self) -> bool {
        let is_damaged = self.restrictions.damage_level() >= Availability::NoPoolChanges;
        self.restrictions.is_unsure() && !is_damaged && !self.gone && !self.members.has_grown()
    }

    fn show_availability(&mut self) {
        let (availability, restriction) = self.restrictions.availability();
        self.projection.show_availability(availability, restriction);
    }

    /// Restricts the pool as a failed undo demands. The caller has already noted that the record is
    /// unsure.
    pub(in crate::engine) fn note_failure(&mut self, error: &Error) {
        self.note_damage(error.leaves_in_kernel(), error);
    }

    /// As [`Pool::note_failure`], for a pool that has changed in spite of the failure and stays so
    /// until its next set-up.
    pub(in crate::engine) fn note_failure_for_good(&mut self, error: &Error) {
        self.note_damage(error.leaves(), error);
    }

    fn note_damage(&mut self, level: Availability, error: &Error) {
        self.restrict(level, format!("an earlier request failed and could not be undone: {}", error.sentence()));
    }

    /// Refuses requests that clients may not make of a restricted pool
    /// (`docs/spec/engine/engine-behaviour.md` §10, mark R).
    pub(in crate::engine) fn check_requests(&self) -> Result<()> {
        self.check_level(Availability::NoRequests)
    }

    /// As [`Pool::check_requests`], for requests that may bring space to the thin pool. A lack of
    /// metadata space does not block these.
    pub(in crate::engine) fn check_requests_for_space(&self) -> Result<()> {
        if self.restrictions.is_sound() { Ok(()) } else { self.check_requests() }
    }

    /// Refuses every change of a pool whose state may be wrong (mark C).
    pub(in crate::engine) fn check_changes(&self) -> Result<()> {
        self.check_level(Availability::NoPoolChanges)
    }

    fn check_level(&self, refused_from: Availability) -> Result<()> {
        let (level, reason) = self.restrictions.availability();
        if level < refused_from {
            return Ok(());
        }
        let pool = self.name.clone();
        if self.restrictions.is_sound() {
            return Err(Error::MetadataExhausted { pool });
        }
        Err(Error::Restricted { pool, level, reason: reason.as_deref().unwrap_or_default().to_owned() })
    }
}
