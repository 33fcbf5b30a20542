//! `stratis-legacy-pool`: creates a pool of version 1, for tests of programs that take such pools
//! over (`docs/spec/tools/utilities.md` §6).
//!
//! It runs the operation of the engine itself, one step after the other, without a daemon. This
//! module must never decide how a pool is created.

use std::{
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde_json::json;

use crate::{
    base::{
        ids::PoolUuid,
        name::{Name, NameError},
        pool_ref::PoolRef,
    },
    cli::stratisd_tools::{ClevisPin, LegacyPool},
    engine::{
        self, Engine,
        encryption::{
            BindRequest, CLEVIS_TOKEN, ClevisRequest, EncryptionError, KEYRING_TOKEN, KeyDescription,
            KeyDescriptionError, NewBinding, TRUST_URL,
        },
        metadata::{IntegritySpec, MetadataVersion},
        ops::{self, NewPool},
        pool::Pool,
        request::{Access, Granted, Part, Step, Table},
    },
    platform::{self, Platform, linux::Linux},
};

const WARNING: &str = "This program makes a pool with the metadata of stratisd 3.7, for tests only. Do not use the pool \
                       in production. The contents of the devices will be lost.";

/// Why no pool was created.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NoPool {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    KeyDescription(#[from] KeyDescriptionError),
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    #[error("cannot prepare this machine")]
    Machine(#[from] platform::Error),
    #[error("cannot create the pool")]
    Engine(#[source] engine::Error),
    #[error("cannot ask for confirmation")]
    Terminal(#[from] io::Error),
    #[error("the operation waits for another request, but there is none; please report it")]
    Waits,
}

/// Asks for confirmation, and creates the pool on this machine. Without confirmation it changes
/// nothing.
///
/// # Errors
/// If the pool cannot be created. Then nothing of it is left.
pub fn run(arguments: &LegacyPool) -> Result<(), NoPool> {
    let new = new_pool(arguments)?;
    if !confirmed(&mut io::stdin().lock(), &mut io::stdout())? {
        return Ok(());
    }
    let linux = Arc::new(Linux::start()?);
    let made = make(Arc::clone(&linux) as Arc<dyn Platform>, new);
    linux.leave();
    made
}

/// Prints the warning and reads one line: whether it agrees.
fn confirmed(answers: &mut impl BufRead, prompt: &mut impl Write) -> io::Result<bool> {
    write!(prompt, "{WARNING}\nDo you want to continue? [Y/n] ")?;
    prompt.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(["y", "Y", "yes", "Yes"].contains(&answer.trim_end_matches(['\n', '\r'])))
}

/// The pool to create. Paths are made absolute.
fn new_pool(arguments: &LegacyPool) -> Result<NewPool, NoPool> {
    let mut bindings = Vec::new();
    if let Some(description) = &arguments.key_desc {
        let request = BindRequest::Keyring(KeyDescription::new(description)?);
        bindings.push(NewBinding { token: Some(KEYRING_TOKEN), request });
    }
    if let Some(pin) = arguments.clevis {
        let request = match pin {
            ClevisPin::Tpm2 => ClevisRequest::from_client("tpm2", json!({}))?,
            ClevisPin::Nbde | ClevisPin::Tang => {
                let mut config = json!({ "url": arguments.tang_url });
                match &arguments.thumbprint {
                    Some(thumbprint) => config["thp"] = thumbprint.as_str().into(),
                    None => config[TRUST_URL] = arguments.trust_url.into(),
                }
                ClevisRequest::from_client("tang", config)?
            }
        };
        bindings.push(NewBinding { token: Some(CLEVIS_TOKEN), request: BindRequest::Clevis(request) });
    }
    Ok(NewPool {
        name: Name::chosen(&arguments.pool)?,
        devices: arguments.devices.iter().map(std::path::absolute).collect::<io::Result<_>>()?,
        integrity: IntegritySpec::default(),
        version: MetadataVersion::V1,
        bindings,
    })
}

/// Makes a pool.
///
/// # Errors
/// If it cannot be created. Then nothing of it is left.
pub fn make(platform: Arc<dyn Platform>, new: NewPool) -> Result<(), NoPool> {
    let engine = Engine::new(platform);
    let mut pools = OnePool::default();
    pools.run(&engine, ops::create_pool(new))?.map(drop).map_err(NoPool::Engine)
}

/// A table of pools that has only the new pool.
#[derive(Default)]
struct OnePool(Option<Pool>);

impl OnePool {
    /// Runs a chain of steps to its end.
    fn run<T>(&mut self, engine: &Engine, mut next: Step<T>) -> Result<T, NoPool> {
        loop {
            next = match next {
                Step::Done(value) => return Ok(value),
                Step::Blocking(_, step) | Step::Background(step) => step(engine),
                Step::Linked(links, limit, step) => step(engine, links.wait(limit)),
                Step::Parallel(parts, join) => {
                    let run = |part: Part| catch_unwind(AssertUnwindSafe(|| part(engine))).ok();
                    let results = parts.into_iter().map(run).collect();
                    join(engine, results)
                }
                Step::Locked(Access::Table(_), step) => step(engine, Granted::Table(self)),
                // No step asks for the pool: it is in the table only when the operation ends.
                Step::Locked(Access::Pool(..), step) => step(engine, Granted::NoPool),
                Step::Parked(..) => return Err(NoPool::Waits),
            };
        }
    }
}

impl Table for OnePool {
    fn list(&self) -> Vec<(PoolUuid, Name)> {
        self.0.iter().map(|pool| (pool.uuid(), pool.name().clone())).collect()
    }

    fn pool(&self, which: &PoolRef) -> Option<&Pool> {
        self.0.as_ref().filter(|pool| match which {
            PoolRef::Uuid(uuid) => pool.uuid() == *uuid,
            PoolRef::Name(name) => pool.name() == name,
        })
    }

    fn insert(&mut self, pool: Pool) -> Result<(), Pool> {
        match self.0 {
            None => {
                self.0 = Some(pool);
                Ok(())
            }
            Some(_) => Err(pool),
        }
    }

    fn remove(&mut self, uuid: PoolUuid) -> Option<Pool> {
        self.0.take_if(|pool| pool.uuid() == uuid)
    }

    fn rename(&mut self, uuid: PoolUuid, _name: Name) -> Option<&mut Pool> {
        self.0.as_mut().filter(|pool| pool.uuid() == uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_continues() {
        for (line, expected) in
            [("y\n", true), ("Y\n", true), ("yes\n", true), ("Yes", true), ("\n", false), ("", false), ("YES\n", false)]
        {
            let mut shown = Vec::new();
            assert_eq!(confirmed(&mut line.as_bytes(), &mut shown).unwrap(), expected, "{line:?}");
            assert!(shown.ends_with(b"\nDo you want to continue? [Y/n] "));
        }
    }
}
