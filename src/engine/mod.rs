//! The storage engine: pools, their thin pools and filesystems, discovery, and what is on disk.
//!
//! Knows nothing of D-Bus, object paths, interface revisions, threads or system calls: what it needs of a
//! machine it asks of a [`Platform`], and when it needs a lock it says so in a [`request::Step`].

mod awaited_links;
pub mod bda;
mod claims;
mod devices;
pub mod dm_names;
pub mod encryption;
pub mod error;
mod layout;
mod luks_device;
mod luks_lifecycle;
mod mdv;
pub mod metadata;
pub mod ops;
pub mod plan;
pub mod pool;
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
mod volume_keys;
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

/// What all operations share: the machine, what requests have claimed, and what is known of pools that do not run.
pub struct Engine {
    platform: Arc<dyn Platform>,
    claims: Arc<claims::Claims>,
    registry: Mutex<registry::Registry>,
    /// Chains that steps have begun and nobody waits for, with their labels.
    follow_ups: Mutex<Vec<(String, Step<()>)>>,
    /// Links that were missing, and how many looks have found them so.
    links_asked: Mutex<BTreeMap<(PoolUuid, FsUuid), u32>>,
    links_awaited: Arc<AwaitedLinks>,
    /// The daemon ends.
    ending: AtomicBool,
    /// It does not wait any longer for what takes long.
    hurried: AtomicBool,
}

impl Engine {
    /// An engine for this machine. Nothing is read from it yet.
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

    /// The machine, for what outlives a step.
    fn shared_platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform)
    }

    /// Counts how often a claim has been given back.
    pub fn claims_given_back(&self) -> u64 {
        self.claims.given_back()
    }

    /// Whether what a parked request waits for has not come about yet. `since` is what [`Engine::claims_given_back`] said before
    /// the step that parked was begun.
    pub fn is_taken(&self, wait: &Wait, since: u64) -> bool {
        self.claims.is_taken(wait, since)
    }

    /// Has who runs chains told what parked requests may find in their favour, right after it has come about.
    pub fn watch_claims(&self, watcher: claims::Watcher) {
        self.claims.watch(watcher);
    }

    /// The pools that do not run, if that changed since this was last called.
    pub fn take_stopped_change(&self) -> Option<Arc<view::StoppedPoolsView>> {
        self.registry.lock().take_change()
    }

    /// Chains that steps have begun and nobody waits for, to be run as requests of their own.
    pub fn take_follow_ups(&self) -> Vec<(String, Step<()>)> {
        std::mem::take(&mut *self.follow_ups.lock())
    }

    /// Lets work of hours stop as soon as it can; it goes on when its pool is next set up.
    pub fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Lets requests that have begun take back what they have done instead of going on with what takes long: there are too
    /// many of them for the daemon to wait for.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::SeqCst);
    }

    /// Refuses to begin with what takes long, once the daemon waits no longer for it.
    fn check_ending(&self) -> Result<()> {
        if self.hurried.load(Ordering::SeqCst) { Err(Error::Ending) } else { Ok(()) }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Begins a chain that nobody waits for.
    fn begin(&self, label: String, work: Step<()>) {
        self.follow_ups.lock().push((label, work));
    }

    fn claims(&self) -> &Arc<claims::Claims> {
        &self.claims
    }

    /// What is known of pools that do not run. A leaf: nothing is asked of the machine while it is held.
    fn registry(&self) -> MutexGuard<'_, registry::Registry> {
        self.registry.lock()
    }

    /// Filesystems whose links udev has been asked for and requests wait for.
    fn links_awaited(&self) -> &Arc<AwaitedLinks> {
        &self.links_awaited
    }

    /// Links that were missing, and how many looks have found them so. A leaf, as the registry.
    fn links_asked(&self) -> MutexGuard<'_, BTreeMap<(PoolUuid, FsUuid), u32>> {
        self.links_asked.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::ids::PoolUuid, platform::sim::Sim};

    /// Who has parked a request compares the counts before and after.
    #[test]
    fn each_claim_that_is_given_back_is_counted() {
        let engine = Engine::new(Arc::new(Sim::builder().build()));
        let before = engine.claims_given_back();
        drop(engine.claims().claim([claims::Key::Extension(PoolUuid::from_random([1; 16]))]));
        assert_eq!(engine.claims_given_back(), before + 1);
    }
}
