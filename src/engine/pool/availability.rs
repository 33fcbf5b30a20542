//! What may be done with a pool, and why not more: damage that stays until the pool is next set up, a record that is unsure, and
//! a thin pool that is out of metadata space, which both may end by themselves. The worst of them counts.

use std::sync::Arc;

use super::{Member, Pool};
use crate::{
    engine::{
        error::{Error, Result},
        metadata::HeaderFlags,
    },
    view::Availability,
};

/// Why a pool is restricted whose thin pool is out of metadata space.
const STARVED: &str = "its thin pool has no space left for metadata; add a data device or destroy filesystems";

impl Pool {
    /// Allows nothing above `level` any more; a lower level that is in force stays.
    pub fn restrict(&mut self, level: Availability, reason: impl Into<String>) {
        if level > self.damage.as_ref().map_or(Availability::Full, |(level, _)| *level) {
            let reason = reason.into();
            log::error!("pool {} is now in state {}: {reason}", self.name, level.word());
            self.damage = Some((level, reason.into()));
            self.show_availability();
        }
    }

    /// Takes note of whether its thin pool is out of metadata space. Unlike what [`Pool::restrict`] is for, that is over as
    /// soon as there is some.
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

    /// Whether its thin pool is out of metadata space, as last noted.
    pub(in crate::engine) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Takes note of whether its record is unsure, and why. Nothing may be changed until it is not.
    pub(in crate::engine) fn note_unsure(&mut self, reason: Option<String>) {
        match &reason {
            Some(reason) => log::error!("pool {} is not changed any more: {reason}", self.name),
            None => log::info!("the former metadata of pool {} has been written again", self.name),
        }
        self.unsure = reason.map(Into::into);
        self.show_availability();
    }

    /// Whether its record is unsure and can be made sure: the pool is as it was before the change that failed. One with a device that
    /// has grown is not, since the larger size is recorded on the device itself; the next set-up completes the growth.
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

    /// Takes over what a failed undo leaves of the pool's availability. That its record is unsure has been noted.
    pub(in crate::engine) fn note_failure(&mut self, error: &Error) {
        self.note_damage(error.leaves_in_kernel(), error);
    }

    /// As [`Pool::note_failure`], where the pool is not as it was before, and stays so until it is next set up.
    pub(in crate::engine) fn note_failure_for_good(&mut self, error: &Error) {
        self.note_damage(error.leaves(), error);
    }

    fn note_damage(&mut self, level: Availability, error: &Error) {
        self.restrict(level, format!("an earlier request failed and could not be undone: {}", error.sentence()));
    }

    /// Refuses what clients may not ask of a restricted pool (`docs/spec/engine/engine-behaviour.md` §10, mark R).
    pub(in crate::engine) fn check_requests(&self) -> Result<()> {
        self.check_level(Availability::NoRequests)
    }

    /// As [`Pool::check_requests`], for what may bring space to the thin pool: being out of metadata space does not stand in
    /// its way.
    pub(in crate::engine) fn check_requests_for_space(&self) -> Result<()> {
        if self.starved && self.damage.is_none() && self.unsure.is_none() { Ok(()) } else { self.check_requests() }
    }

    /// Refuses what nobody may do in a pool whose state is not known to be right (mark C).
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
