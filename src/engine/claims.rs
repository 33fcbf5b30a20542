//! Claims: what a request that is between two locks has reserved for itself.
//!
//! Formatting and its like run without a lock. What must not be touched by others meanwhile is claimed first: the name of
//! a pool to come, a device, a pool that is being set up, the name of a filesystem. A claim is a value; dropping it gives
//! it back, also when its request panics. Never held together with another claim that was asked for later, except as one
//! set taken at once, so claims cannot deadlock.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    engine::{
        ids::{FsUuid, PoolUuid},
        name::Name,
    },
    platform::DeviceNumber,
};

/// Something that one request at a time may claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The name of a pool that is being created, set up or renamed to it.
    PoolName(Name),
    /// A block device that is being initialized.
    Device(DeviceNumber),
    /// A pool that is being renamed: two at once could end with other names in the table than on disk, and a pool must not be
    /// stopped between the two.
    Rename(PoolUuid),
    /// A pool that is being set up.
    Pool(PoolUuid),
    /// The name of a filesystem that is being created in a pool, or renamed to it.
    Filesystem(PoolUuid, Name),
    /// A filesystem that may not go away, because it is the origin of a snapshot in the making or is being extended.
    Origin(PoolUuid, FsUuid),
    /// A pool of which the filesystems are being checked. No work in it: a check that finds the pool drained ends.
    Extension(PoolUuid),
    /// A pool of which the need for metadata is being found out; no work in it either.
    Need(PoolUuid),
    /// A pool to which devices are being added.
    Growth(PoolUuid),
    /// A pool of which the LUKS2 headers or the encrypted data are being changed.
    Encryption(PoolUuid),
    /// A pool that is to be used alone: no new work may begin in it.
    Drain(PoolUuid),
}

impl Key {
    /// The pool in which the claimed work goes on.
    fn work_in(&self) -> Option<PoolUuid> {
        match self {
            Key::Filesystem(pool, _)
            | Key::Origin(pool, _)
            | Key::Growth(pool)
            | Key::Encryption(pool)
            | Key::Rename(pool) => Some(*pool),
            _ => None,
        }
    }
}

/// All claims of an engine.
#[derive(Debug, Default)]
pub struct Claims {
    held: Mutex<BTreeSet<Key>>,
    given_back: AtomicU64,
}

/// A set of claimed keys; dropping it gives them back.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    claims: Arc<Claims>,
    keys: Vec<Key>,
}

impl Claims {
    /// Claims all of `keys`, or nothing if any is claimed already.
    pub fn claim(self: &Arc<Self>, keys: impl IntoIterator<Item = Key>) -> Option<Claim> {
        // Doubles within one request are one claim.
        let keys: BTreeSet<Key> = keys.into_iter().collect();
        let mut held = self.held.lock();
        if keys.iter().any(|key| held.contains(key)) {
            return None;
        }
        held.extend(keys.iter().cloned());
        Some(Claim { claims: Arc::clone(self), keys: keys.into_iter().collect() })
    }

    /// Whether somebody has claimed this.
    pub fn is_claimed(&self, key: &Key) -> bool {
        self.held.lock().contains(key)
    }

    /// Whether any request has work under way inside the pool.
    pub fn work_in(&self, pool: PoolUuid) -> bool {
        self.held.lock().iter().any(|key| key.work_in() == Some(pool))
    }

    /// How often a claim has been given back so far.
    pub fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::SeqCst)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut held = self.claims.held.lock();
        for key in &self.keys {
            held.remove(key);
        }
        // Within the mutex: whoever reads the new count finds the keys free.
        self.claims.given_back.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Key {
        Key::PoolName(Name::new(text).unwrap())
    }

    #[test]
    fn a_set_is_claimed_whole_or_not_at_all() {
        let claims = Arc::new(Claims::default());
        let first = claims.claim([name("a"), name("b"), name("a")]).unwrap();
        assert!(claims.claim([name("c"), name("b")]).is_none());
        assert!(!claims.is_claimed(&name("c")));
        let before = claims.given_back();
        drop(first);
        assert!(claims.given_back() > before);
        assert!(claims.claim([name("c"), name("b")]).is_some());
    }

    #[test]
    fn work_is_counted_per_pool() {
        let claims = Arc::new(Claims::default());
        let (p, q) = (PoolUuid::from_random([1; 16]), PoolUuid::from_random([2; 16]));
        let _work = claims.claim([Key::Filesystem(p, Name::new("f").unwrap())]).unwrap();
        assert!(claims.work_in(p));
        assert!(!claims.work_in(q));
    }
}
