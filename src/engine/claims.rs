//! Claims: what a request reserves for itself while it holds no lock.
//!
//! Slow work such as formatting runs without a lock. The request first claims everything that no
//! other request may touch meanwhile: the name of a new pool, a device, a pool that is being set
//! up, the name of a filesystem. A claim is a value. Dropping it gives it back, also when the
//! request panics. A request that holds a claim never asks for another one: it takes all its claims
//! at once, as one set. So claims cannot deadlock.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        name::Name,
    },
    platform::DeviceNumber,
};

/// Something that one request at a time may claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The name of a pool that is being created or set up under that name, or renamed to it.
    PoolName(Name),
    /// A block device that is being initialized.
    Device(DeviceNumber),
    /// A pool that is being renamed. Two renames at once could leave one name in the table and
    /// another on disk, and the pool must not be stopped between the two.
    Rename(PoolUuid),
    /// A pool that is being set up.
    Pool(PoolUuid),
    /// The name of a filesystem that is being created in a pool, or renamed to it.
    Filesystem(PoolUuid, Name),
    /// A filesystem that must not be destroyed, because a snapshot of it is being made or it is
    /// being extended.
    Origin(PoolUuid, FsUuid),
    /// A pool whose filesystems are being checked. This does not count as work in the pool: a check
    /// that finds the pool drained ends.
    Extension(PoolUuid),
    /// A pool whose need for thin metadata is being computed. This does not count as work in the
    /// pool either.
    Need(PoolUuid),
    /// A pool to which devices are being added.
    Growth(PoolUuid),
    /// A pool whose LUKS2 headers or encrypted data are being changed.
    Encryption(PoolUuid),
    /// A pool that one request will have to itself: no new work may start in it.
    Drain(PoolUuid),
}

impl Key {
    /// The pool that the claimed work belongs to.
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

/// What a request waits for when another request holds a claim that it needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Until this key is no longer claimed.
    Key(Key),
    /// Until no request has work under way in the pool.
    Idle(PoolUuid),
    /// Until some work in the pool has ended since the request looked.
    Progress(PoolUuid),
}

/// Called right after a claim has been given back, with the waits that may have ended.
pub type Watcher = Box<dyn Fn(Vec<Wait>) + Send + Sync>;

/// All claims of an engine.
#[derive(Default)]
pub struct Claims {
    held: Mutex<Held>,
    watcher: OnceLock<Watcher>,
}

#[derive(Debug, Default)]
struct Held {
    keys: BTreeSet<Key>,
    /// Per pool, so that no request searches the keys of other pools. Pools without work have no
    /// entry.
    work: BTreeMap<PoolUuid, PoolWork>,
    given_back: u64,
}

#[derive(Debug, Default)]
struct PoolWork {
    /// How many of the claimed keys are work in this pool.
    claimed: usize,
    /// The engine's count of claims of all kinds given back, when a claim in this pool was last
    /// given back.
    last_given_back: u64,
}

/// A set of claimed keys; dropping it gives them back.
#[must_use]
pub struct Claim {
    claims: Arc<Claims>,
    keys: BTreeSet<Key>,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.keys).finish()
    }
}

impl Claims {
    /// Claims all of `keys`, or none of them if any is claimed already.
    ///
    /// # Errors
    /// What to wait for before the next try.
    pub fn claim(self: &Arc<Self>, keys: impl IntoIterator<Item = Key>) -> Result<Claim, Wait> {
        self.claim_unless(None, keys)
    }

    /// As [`Claims::claim`], for new work in a pool. No new work may start while a request has the
    /// pool drained to use it alone.
    ///
    /// # Errors
    /// What to wait for before the next try.
    pub fn claim_work(self: &Arc<Self>, pool: PoolUuid, keys: impl IntoIterator<Item = Key>) -> Result<Claim, Wait> {
        self.claim_unless(Some(Key::Drain(pool)), keys)
    }

    fn claim_unless(self: &Arc<Self>, other: Option<Key>, keys: impl IntoIterator<Item = Key>) -> Result<Claim, Wait> {
        // A key that a request names twice is claimed once.
        let keys: BTreeSet<Key> = keys.into_iter().collect();
        let mut held = self.held.lock();
        if let Some(taken) = other.iter().chain(&keys).find(|key| held.keys.contains(key)) {
            return Err(Wait::Key(taken.clone()));
        }
        held.keys.extend(keys.iter().cloned());
        for pool in keys.iter().filter_map(Key::work_in) {
            held.work.entry(pool).or_default().claimed += 1;
        }
        Ok(Claim { claims: Arc::clone(self), keys })
    }

    /// Whether this key is claimed.
    pub fn is_claimed(&self, key: &Key) -> bool {
        self.held.lock().keys.contains(key)
    }

    /// Whether any request has work under way in the pool.
    pub fn work_in(&self, pool: PoolUuid) -> bool {
        self.held.lock().work.contains_key(&pool)
    }

    /// Whether the request still has to wait. `since` is what [`Claims::given_back`] returned
    /// before the request looked.
    pub fn is_taken(&self, wait: &Wait, since: u64) -> bool {
        let held = self.held.lock();
        match wait {
            Wait::Key(key) => held.keys.contains(key),
            Wait::Idle(pool) => held.work.contains_key(pool),
            Wait::Progress(pool) => held.work.get(pool).is_some_and(|work| work.last_given_back <= since),
        }
    }

    /// How often a claim has been given back so far.
    pub fn given_back(&self) -> u64 {
        self.held.lock().given_back
    }

    /// Sets the watcher, which is called each time a claim is given back. Only the first watcher
    /// that is set is ever called.
    pub fn watch(&self, watcher: Watcher) {
        drop(self.watcher.set(watcher));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let claims = &self.claims;
        let mut open = Vec::new();
        {
            let mut held = claims.held.lock();
            held.given_back += 1;
            let now = held.given_back;
            for key in std::mem::take(&mut self.keys) {
                held.keys.remove(&key);
                if let Some((pool, work)) = key.work_in().and_then(|pool| Some((pool, held.work.get_mut(&pool)?))) {
                    work.claimed -= 1;
                    work.last_given_back = now;
                    open.push(Wait::Progress(pool));
                    if work.claimed == 0 {
                        held.work.remove(&pool);
                        open.push(Wait::Idle(pool));
                    }
                }
                open.push(Wait::Key(key));
            }
        }
        // The keys are free and the mutex is released, because the watcher looks at the claims.
        if let Some(watcher) = claims.watcher.get() {
            watcher(open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Key {
        Key::PoolName(Name::new(text).unwrap())
    }

    #[test]
    fn a_set_is_claimed_whole_or_not() {
        let claims = Arc::new(Claims::default());
        let first = claims.claim([name("a"), name("b"), name("a")]).unwrap();
        assert_eq!(claims.claim([name("c"), name("b")]).err(), Some(Wait::Key(name("b"))));
        assert!(!claims.is_claimed(&name("c")));
        let before = claims.given_back();
        drop(first);
        assert!(claims.given_back() > before);
        assert!(claims.claim([name("c"), name("b")]).is_ok());
    }

    fn pools() -> [PoolUuid; 2] {
        [1, 2].map(|byte| PoolUuid::from_random([byte; 16]))
    }

    fn work(pool: PoolUuid, text: &str) -> Key {
        Key::Filesystem(pool, Name::new(text).unwrap())
    }

    #[test]
    fn work_is_counted_per_pool() {
        let claims = Arc::new(Claims::default());
        let [p, q] = pools();
        let first = claims.claim_work(p, [work(p, "f"), work(p, "g")]).unwrap();
        let second = claims.claim_work(p, [Key::Growth(p)]).unwrap();
        assert!(claims.work_in(p));
        assert!(!claims.work_in(q));
        drop(first);
        assert!(claims.work_in(p));
        drop(second);
        assert!(!claims.work_in(p));
    }

    #[test]
    fn no_work_begins_in_a_draining_pool() {
        let claims = Arc::new(Claims::default());
        let [p, q] = pools();
        let drain = claims.claim([Key::Drain(p)]).unwrap();
        assert_eq!(claims.claim_work(p, [work(p, "f")]).err(), Some(Wait::Key(Key::Drain(p))));
        assert!(claims.claim_work(q, [work(q, "f")]).is_ok());
        drop(drain);
        assert!(claims.claim_work(p, [work(p, "f")]).is_ok());
    }

    #[test]
    fn progress_is_what_ended_since_the_look() {
        let claims = Arc::new(Claims::default());
        let [p, q] = pools();
        let (first, _second) = (claims.claim([work(p, "f")]).unwrap(), claims.claim([work(p, "g")]).unwrap());
        let seen = claims.given_back();
        drop(claims.claim([work(q, "f")]));
        assert!(claims.is_taken(&Wait::Progress(p), seen), "that was another pool's");
        drop(first);
        assert!(!claims.is_taken(&Wait::Progress(p), seen));
        assert!(claims.is_taken(&Wait::Progress(p), claims.given_back()));
        // A pool without work under way gives no reason to wait.
        assert!(!claims.is_taken(&Wait::Progress(q), claims.given_back()));
    }

    #[test]
    fn the_watcher_learns_when_keys_are_free() {
        let claims = Arc::new(Claims::default());
        let [p, _] = pools();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (inside, book) = (Arc::downgrade(&claims), Arc::clone(&told));
        claims.watch(Box::new(move |open| {
            let claims = inside.upgrade().unwrap();
            assert!(open.iter().all(|wait| !claims.is_taken(wait, 0)));
            book.lock().extend(open);
        }));
        let (first, second) = (claims.claim([work(p, "f")]).unwrap(), claims.claim([Key::Growth(p)]).unwrap());
        drop(first);
        assert_eq!(std::mem::take(&mut *told.lock()), [Wait::Progress(p), Wait::Key(work(p, "f"))]);
        drop(second);
        assert_eq!(*told.lock(), [Wait::Progress(p), Wait::Idle(p), Wait::Key(Key::Growth(p))]);
    }
}
