//! How a pool is encrypted, as the pool itself remembers it.

use std::sync::Arc;

use crate::{
    engine::encryption::{Info, KeyDescription, Mechanism},
    view,
};

/// How a pool is encrypted, and the job that changes it.
#[derive(Debug, Default)]
pub(super) struct PoolEncryption {
    /// How the pool can be unlocked; `None` if it is not encrypted.
    pub info: Option<Info>,
    /// The pool's volume key is in the daemon's keyring (version 2).
    pub volume_key_loaded: bool,
    /// The re-encryption job on the pool's data that is running, or that was interrupted and will
    /// continue soon.
    pub job: Option<Arc<view::ReencryptionJob>>,
}

impl PoolEncryption {
    /// Writes the state into the view of the pool.
    pub fn show_in(&self, shown: &mut view::PoolView) {
        shown.encryption = self.info.as_ref().map(Info::view);
        shown.volume_key_loaded = self.volume_key_loaded;
        shown.reencryption = self.job.clone();
    }

    /// Whether the job may need this key.
    pub fn needs_for_job(&self, key: &KeyDescription) -> bool {
        let opens = |info: &Info| match info.agreed() {
            Ok(bindings) => bindings.of_mechanism(&Mechanism::Keyring(key.clone())).count() > 0,
            // It is unknown whether the job needs the key.
            Err(_) => true,
        };
        self.job.is_some() && self.info.as_ref().is_some_and(opens)
    }
}
