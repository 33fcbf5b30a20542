//! Passphrases in the kernel's keyring (`spec/engine/encryption.md` §3).

use std::fmt;

use crate::{
    engine::{
        error::{Error, Result},
        request::Next,
    },
    platform::keyring::{KEY_PREFIX, KeyChange, Secret},
};

/// The name that a user gives to a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyDescription(String);

impl KeyDescription {
    /// Checks a name.
    ///
    /// # Errors
    /// If it holds a character that the kernel's own listing of keys uses to separate, or that ends its strings.
    pub fn new(text: &str) -> Result<KeyDescription> {
        match text.contains([';', '\0']) {
            true => Err(Error::KeyDescription(text.replace('\0', "\\0"))),
            false => Ok(KeyDescription(text.to_owned())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a key in the kernel, or in a token, as such; `None` if it is none of ours. What somebody else has bound
    /// to is taken as it is: other daemons have let characters pass that we do not.
    pub(in crate::engine) fn from_kernel(name: &str) -> Option<KeyDescription> {
        let text = name.strip_prefix(KEY_PREFIX).filter(|text| !text.is_empty() && !text.contains('\0'))?;
        Some(KeyDescription(text.to_owned()))
    }

    /// The name of the key in the kernel.
    pub(in crate::engine) fn in_kernel(&self) -> String {
        format!("{KEY_PREFIX}{}", self.0)
    }
}

impl fmt::Display for KeyDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sets a key.
pub fn set_key(description: KeyDescription, key: Secret) -> Next<Result<KeyChange>> {
    Next::act(move |engine| {
        let set = engine.platform().key_set(&description.in_kernel(), &key);
        if matches!(set, Ok(KeyChange::Created | KeyChange::Replaced)) {
            // It may open a pool of which the volume key is not known to this daemon, or one with a work on its data that
            // could not go on without it. Nobody waits for that.
            let running = engine.registry().running_pools();
            for uuid in running {
                let load = super::encryption::load_by_key(uuid, description.clone());
                engine.begin(format!("volume key of pool {uuid}"), load);
                let resume = super::online::resume_by_key(uuid, description.clone());
                engine.begin(format!("work on the data of pool {uuid}"), resume);
            }
        }
        Next::Done(set.map_err(Error::from))
    })
}

/// Removes a key. `false`: there was none.
pub fn unset_key(description: KeyDescription) -> Next<Result<bool>> {
    Next::act(move |engine| Next::Done(engine.platform().key_unset(&description.in_kernel()).map_err(Error::from)))
}

/// The descriptions of all keys, sorted.
pub fn list_keys() -> Next<Result<Vec<String>>> {
    Next::act(|engine| {
        let keys = engine.platform().key_list().map(|names| {
            let ours = names.iter().filter_map(|name| name.strip_prefix(KEY_PREFIX)).map(str::to_owned);
            let mut ours: Vec<String> = ours.collect();
            ours.sort();
            ours
        });
        Next::Done(keys.map_err(Error::from))
    })
}
