//! The storage engine: pools, their thin pools and filesystems, discovery, and what is on disk.
//!
//! The engine does not depend on D-Bus, object paths, interface revisions, threads or system calls.
//! It reaches the machine through a [`Platform`], and asks for locks with a [`request::Step`].

mod awaited_links;
pub mod bda;
mod claims;
mod devices;
pub mod dm_names;
pub mod encryption;
pub mod error;
mod layout;
mod luks_devices;
mod mdv;
pub mod metadata;
pub mod ops;
pub mod plan;
pub mod pool;
pub mod prediction;
mod registry;
pub mod request;
mod revert;
mod setup;
mod stack;
mod take_down;
mod thin_check;
mod thin_devices;
mod thin_growth;
pub mod thin_status;
mod ties;
mod undo;
mod xfs;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use error::{Error, Result};
use parking_lot::{Mutex, MutexGuard};

use self::{
    awaited_links::AwaitedLinks,
    request::{Step, Wait},
};
use crate::{
    base::ids::{FsUuid, PoolUuid},
    platform::Platform,
    view,
};

/// State that all operations share: the machine, the claims of requests, and the registry of
/// stopped pools.
pub struct Engine {
    platform: Arc<dyn Platform>,
    claims: Arc<claims::Claims>,
    registry: Mutex<registry::Registry>,
    /// Chains that steps have started without waiting for them, with their labels.
    follow_ups: Mutex<Vec<(String, Step<()>)>>,
    /// Missing links, and the number of checks that have found each of them missing.
    links_asked: Mutex<BTreeMap<(PoolUuid, FsUuid), u32>>,
    links_awaited: Arc<AwaitedLinks>,
    /// The daemon is stopping.
    ending: AtomicBool,
    /// The daemon no longer waits for slow steps.
    hurried: AtomicBool,
}

impl Engine {
    /// An engine for this machine. Does not read from the machine yet.
    pub fn new(platform: Arc<dyn Platform>) -> Engine {
        Engine {
            platform,
            claims: Arc::default(),
            registry: Mutex::default(),
            follow_ups: Mutex::default(),
            links_asked: Mutex::default(),
            links_awaited: Arc::default(),
            ending: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
        }
    }

    /// The machine.
    pub fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    /// The machine, for values that outlive a step.
    fn shared_platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform)
    }

    /// The number of claims that have been given back so far.
    pub fn claims_given_back(&self) -> u64 {
        self.claims.given_back()
    }

    /// Whether a parked request must still wait. `since` is [`Engine::claims_given_back`] from before
    /// the step that parked it.
    pub fn is_taken(&self, wait: &Wait, since: u64) -> bool {
        self.claims.is_taken(wait, since)
    }

    /// Sets the watcher, which is informed at once of every change that may end the wait of a
    /// parked request.
    pub fn watch_claims(&self, watcher: claims::Watcher) {
        self.claims.watch(watcher);
    }

    /// The stopped pools, if they have changed since the last call.
    pub fn take_stopped_change(&self) -> Option<Arc<view::StoppedPoolsView>> {
        self.registry.lock().take_change()
    }

    /// Takes the chains that steps have started without waiting for them. They run as requests of
    /// their own.
    pub fn take_follow_ups(&self) -> Vec<(String, Step<()>)> {
        std::mem::take(&mut *self.follow_ups.lock())
    }

    /// Makes re-encryption jobs stop as soon as they can. A job resumes at the next set-up of its
    /// pool.
    pub fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Makes requests undo what they have done before their next slow step. They are too many for a
    /// stop to wait for them.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::SeqCst);
    }

    /// Refuses a slow step once the daemon no longer waits for slow steps.
    fn check_ending(&self) -> Result<()> {
        if self.hurried.load(Ordering::SeqCst) { Err(Error::Ending) } else { Ok(()) }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Starts a chain without waiting for it.
    fn begin(&self, label: String, work: Step<()>) {
        self.follow_ups.lock().push((label, work));
    }

    fn claims(&self) -> &Arc<claims::Claims> {
        &self.claims
    }

    /// The registry of stopped pools. A leaf lock: the holder makes no call of the platform.
    fn registry(&self) -> MutexGuard<'_, registry::Registry> {
        self.registry.lock()
    }

    /// Filesystems whose links requests wait for.
    fn links_awaited(&self) -> &Arc<AwaitedLinks> {
        &self.links_awaited
    }

    /// Missing links, and the number of checks that have found each of them missing. A leaf lock, as
    /// the registry is.
    fn links_asked(&self) -> MutexGuard<'_, BTreeMap<(PoolUuid, FsUuid), u32>> {
        self.links_asked.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::ids::PoolUuid, platform::sim::Sim};

    /// The dispatcher compares the counts from before and after a step that parks.
    #[test]
    fn each_claim_that_is_given_back_is_counted() {
        let engine = Engine::new(Arc::new(Sim::builder().build()));
        let before = engine.claims_given_back();
        drop(engine.claims().claim([claims::Key::Extension(PoolUuid::from_random([1; 16]))]));
        assert_eq!(engine.claims_given_back(), before + 1);
    }
}
