//! Passphrases in the kernel's keyring (`docs/spec/engine/encryption.md` §3).

use crate::{
    engine::{
        encryption::KeyDescription,
        error::{Error, Result},
        request::Step,
    },
    platform::keyring::{KEY_PREFIX, KeyChange, Secret},
};

/// Sets a key.
pub fn set_key(description: KeyDescription, key: Secret) -> Step<Result<KeyChange>> {
    Step::brief(move |engine| {
        let set = engine.platform().key_set(&description.in_kernel(), &key);
        if matches!(set, Ok(KeyChange::Created | KeyChange::Replaced)) {
            // The key may unlock a pool whose volume key this daemon does not have, or let an
            // interrupted re-encryption job continue. The client does not wait for that.
            let running = engine.registry().running_pools();
            for uuid in running {
                let load = super::encryption::load_by_key(uuid, description.clone());
                engine.begin(format!("volume key of pool {uuid}"), load);
                let resume = super::reencryption_job::resume_by_key(uuid, description.clone());
                engine.begin(format!("re-encryption job of pool {uuid}"), resume);
            }
        }
        Step::Done(set.map_err(Error::from))
    })
}

/// Removes a key. `false`: there was none.
pub fn unset_key(description: KeyDescription) -> Step<Result<bool>> {
    Step::brief(move |engine| Step::Done(engine.platform().key_unset(&description.in_kernel()).map_err(Error::from)))
}

/// The descriptions of all keys, sorted.
pub fn list_keys() -> Step<Result<Vec<String>>> {
    Step::brief(|engine| {
        let keys = engine.platform().key_list().map(|names| {
            let ours = names.iter().filter_map(|name| name.strip_prefix(KEY_PREFIX)).map(str::to_owned);
            let mut ours: Vec<String> = ours.collect();
            ours.sort();
            ours
        });
        Step::Done(keys.map_err(Error::from))
    })
}
