//! What is allowed in a pool, and why not more. Three things restrict a pool: damage, which stays
//! until the next set-up; an unsure record; and a thin pool without metadata space. The last two
//! may end by themselves. The worst of the three counts.

use std::sync::Arc;

use super::{Member, Pool};
use crate::{
    engine::{
        error::{Error, Result},
        metadata::HeaderFlags,
    },
    view::Availability,
};

/// The reason of a restriction because the thin pool is out of metadata space.
const STARVED: &str = "its thin pool has no space left for metadata; add a data device or destroy filesystems";

impl Pool {
    /// Lowers the availability to `level`. A lower level that is in force stays.
    pub fn restrict(&mut self, level: Availability, reason: impl Into<String>) {
        if level > self.damage.as_ref().map_or(Availability::Full, |(level, _)| *level) {
            let reason = reason.into();
            log::error!("pool {} is now in state {}: {reason}", self.name, level.word());
            self.damage = Some((level, reason.into()));
            self.show_availability();
        }
    }

    /// Notes whether the thin pool is out of metadata space. Unlike a restriction by
    /// [`Pool::restrict`], this one ends as soon as there is some.
    pub(in crate::engine) fn note_starved(&mut self, starved: bool) {
        if std::mem::replace(&mut self.starved, starved) == starved {
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
        self.starved
    }

    /// Notes whether the record is unsure, and why. While it is, the pool must not be changed.
    pub(in crate::engine) fn note_unsure(&mut self, reason: Option<String>) {
        match &reason {
            Some(reason) => log::error!("pool {} is not changed any more: {reason}", self.name),
            None => log::info!("the former metadata of pool {} has been written again", self.name),
        }
        self.unsure = reason.map(Into::into);
        self.show_availability();
    }

    /// Whether the record is unsure and can be made sure, which requires that the pool is as it was
    /// before the failed change. A pool with a device that has grown is not: the device itself
    /// records the larger size. The next set-up completes the growth.
    pub(in crate::engine) fn may_be_sure(&self) -> bool {
        let is_sound = self.damage.as_ref().is_none_or(|(level, _)| *level < Availability::NoPoolChanges);
        let has_grown = |member: &Member| member.bda.header().flags.contains(HeaderFlags::GROWN);
        self.unsure.is_some() && is_sound && !self.gone && !self.members.values().any(has_grown)
    }

    fn show_availability(&mut self) {
        let unsure = self.unsure.as_ref().map(|reason| (Availability::NoPoolChanges, Arc::clone(reason)));
        let worst = [&self.damage, &unsure].into_iter().flatten().reduce(|a, b| if b.0 > a.0 { b } else { a });
        let (availability, restriction) = match worst {
            Some((level, reason)) => (*level, Some(Arc::clone(reason))),
            None if self.starved => (Availability::NoRequests, Some(STARVED.into())),
            None => (Availability::Full, None),
        };
        self.changed |= (availability, &restriction) != (self.shown.availability, &self.shown.restriction);
        (self.shown.availability, self.shown.restriction) = (availability, restriction);
    }

    /// Restricts the pool as a failed undo demands. The caller has already noted that the record is
    /// unsure.
    pub(in crate::engine) fn note_failure(&mut self, error: &Error) {
        self.note_damage(error.leaves_in_kernel(), error);
    }

    /// As [`Pool::note_failure`], for a pool that is not as it was before and stays so until its
    /// next set-up.
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
    /// metadata space does not block them.
    pub(in crate::engine) fn check_requests_for_space(&self) -> Result<()> {
        if self.starved && self.damage.is_none() && self.unsure.is_none() { Ok(()) } else { self.check_requests() }
    }

    /// Refuses every change of a pool whose state is not known to be right (mark C).
    pub(in crate::engine) fn check_changes(&self) -> Result<()> {
        self.check_level(Availability::NoPoolChanges)
    }

    fn check_level(&self, refused_from: Availability) -> Result<()> {
        if self.shown.availability < refused_from {
            return Ok(());
        }
        let (pool, level) = (self.name.clone(), self.shown.availability);
        if self.damage.is_none() && self.unsure.is_none() {
            return Err(Error::MetadataExhausted { pool });
        }
        Err(Error::Restricted { pool, level, reason: self.shown.restriction.as_deref().unwrap_or_default().to_owned() })
    }
}
