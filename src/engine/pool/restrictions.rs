//! What restricts a pool. There are three kinds of restriction: damage, which stays until the next
//! set-up; an unsure record; and a thin pool without metadata space. The last two may end by
//! themselves. The worst of the three counts.

use std::sync::Arc;

use crate::view::Availability;

/// The reason shown while a thin pool without metadata space restricts its pool.
pub(super) const STARVED: &str =
    "its thin pool has no space left for metadata; add a data device or destroy filesystems";

/// What restricts a pool.
#[derive(Debug, Default)]
pub(super) struct Restrictions {
    /// The worst known damage: how far it restricts the pool, and why. It stays until the next
    /// set-up of the pool.
    damage: Option<(Availability, Arc<str>)>,
    /// Why the record is unsure, if it is: the next set-up may find a state that was to be taken
    /// back. The record is sure again once the former state has been written once more.
    unsure: Option<Arc<str>>,
    /// The thin pool is out of metadata space and could not get any. This ends by itself once there
    /// is metadata space.
    starved: bool,
}

impl Restrictions {
    /// How far the damage restricts the pool.
    pub fn damage_level(&self) -> Availability {
        self.damage.as_ref().map_or(Availability::Full, |(level, _)| *level)
    }

    /// Whether nothing restricts the pool except, perhaps, a lack of metadata space.
    pub fn is_sound(&self) -> bool {
        self.damage.is_none() && self.unsure.is_none()
    }

    /// What is allowed, and the reason of the worst restriction.
    pub fn availability(&self) -> (Availability, Option<Arc<str>>) {
        let unsure = self.unsure.as_ref().map(|reason| (Availability::NoPoolChanges, Arc::clone(reason)));
        let worst = [&self.damage, &unsure].into_iter().flatten().reduce(|a, b| if b.0 > a.0 { b } else { a });
        match worst {
            Some((level, reason)) => (*level, Some(Arc::clone(reason))),
            None if self.starved => (Availability::NoRequests, Some(STARVED.into())),
            None => (Availability::Full, None),
        }
    }

    /// Notes damage, unless damage at least as bad is known already. `false`: it is.
    pub fn note_damage(&mut self, level: Availability, reason: Arc<str>) -> bool {
        let is_worse = level > self.damage_level();
        if is_worse {
            self.damage = Some((level, reason));
        }
        is_worse
    }

    /// Whether the thin pool is out of metadata space.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Notes whether the thin pool is out of metadata space. `false`: that is known already.
    pub fn note_starved(&mut self, starved: bool) -> bool {
        std::mem::replace(&mut self.starved, starved) != starved
    }

    /// Whether the record is unsure.
    pub fn is_unsure(&self) -> bool {
        self.unsure.is_some()
    }

    /// Notes whether the record is unsure, and why.
    pub fn note_unsure(&mut self, reason: Option<Arc<str>>) {
        self.unsure = reason;
    }
}
