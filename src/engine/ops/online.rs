//! Encrypts, re-encrypts and decrypts all data of a running pool (`docs/spec/engine/encryption.md`
//! §9).
//!
//! # Order, and why it survives a power cut
//!
//! The record of the pool decides whether the pool is encrypted. To encrypt, a container is first
//! made around the plain data, with a header that says that nothing is encrypted yet. Then the
//! record is written, the tables are moved into the container, and only then is any data encrypted.
//! To decrypt, all data is decrypted, then the record is written, and the header is wiped last. So
//! at every moment, record and header together say where each byte is and which job has to go on.
//! Set-up reads that from them and continues the job ([`setup`](crate::engine::setup)).
//!
//! # While a job runs
//!
//! The pool is used as always; the job has a thread of its own and holds no lock. The container
//! cannot be extended meanwhile, so space for the growth of the pool is put into it beforehand. A
//! request that wants to use the pool alone (a stop) makes the job pause where it is. The job goes
//! on when the pool is available again, also for the request that asked for the job.

use std::sync::Arc;

use crate::{
    base::{
        ids::PoolUuid,
        pool_ref::PoolRef,
        units::{Bytes, Sectors},
    },
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        containers::{self, Prepared},
        dm_names::Role,
        encryption::{
            self, Assigned, Binding, Bindings, EncryptionError, KeyDescription, Kind, NewBinding, UnlockMethod,
            with_keyslot,
        },
        error::{Error, Result},
        metadata::MetadataVersion,
        ops::{
            check::and_use,
            encryption::{Container, bindings_of, containers_of, read},
        },
        pool::Pool,
        request::{Access, Mode, Step, Wait},
        thin_growth::follow,
        undo::{Rollback, When, mended},
        volume_keys,
    },
    platform::{
        Platform,
        keyring::Secret,
        luks::{
            Begin, EncryptionState, FormatPurpose, Header, HeaderChange, Progress, ReencryptionEnd, ReencryptionMode,
            Unlock,
        },
    },
    view::{self, Availability},
};

/// Encrypts a pool. `false`: the pool is encrypted already.
pub fn encrypt_pool(uuid: PoolUuid, new: Vec<NewBinding>) -> Step<Result<bool>> {
    begin(uuid, ReencryptionMode::Encrypt, move |claim| encrypt(uuid, new, claim))
}

/// Replaces the volume key that a pool is encrypted with.
pub fn reencrypt_pool(uuid: PoolUuid) -> Step<Result<bool>> {
    begin(uuid, ReencryptionMode::Reencrypt, move |claim| reencrypt(uuid, claim))
}

/// Decrypts a pool. `false`: the pool is not encrypted.
pub fn decrypt_pool(uuid: PoolUuid) -> Step<Result<bool>> {
    begin(uuid, ReencryptionMode::Decrypt, move |claim| decrypt(uuid, claim))
}

/// Goes on with a job that was cut short.
pub(super) fn resume(uuid: PoolUuid) -> Step<()> {
    go_on(uuid).map(move |result| {
        if let Err(error) = result {
            log::error!("the work on the data of pool {uuid} stays unfinished for now: {}", error.sentence());
        }
    })
}

/// Goes on with a job that may have had to wait for this key.
pub(super) fn resume_by_key(uuid: PoolUuid, key: KeyDescription) -> Step<()> {
    Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |_, granted| {
        match super::readable(granted, uuid).is_ok_and(|pool| pool.wants_for_work(&key)) {
            // The request that works on the pool may have looked for the key just before. When it
            // has given up, the job is tried again.
            true => resume(uuid),
            false => Step::Done(()),
        }
    })
}

/// What has to be done, found by a look at the pool before a job.
enum Outlook {
    /// Nothing: the pool is as requested already.
    Nothing,
    /// The job has been begun before and has to be completed.
    GoOn,
    /// The job has to be begun.
    Begin,
}

fn outlook(pool: &Pool, work: ReencryptionMode) -> Result<Outlook> {
    pool.check_requests()?;
    match (&pool.work, work, pool.is_encrypted()) {
        (Some(unfinished), _, _) if unfinished.kind == work => return Ok(Outlook::GoOn),
        (None, ReencryptionMode::Encrypt, true) | (None, ReencryptionMode::Decrypt, false) => {
            return Ok(Outlook::Nothing);
        }
        (None, ReencryptionMode::Reencrypt, false) => return Err(Error::NothingToOpen { pool: pool.name().clone() }),
        _ => pool.check_no_work()?,
    }
    match (pool.version(), work) {
        (MetadataVersion::V1, ReencryptionMode::Encrypt | ReencryptionMode::Decrypt) => {
            Err(Error::OnlyVersion2 { pool: pool.name().clone() })
        }
        // The container has to be extended first.
        (MetadataVersion::V2, ReencryptionMode::Reencrypt | ReencryptionMode::Decrypt) if pool.lacks_volume_key() => {
            Err(Error::VolumeKey { pool: pool.uuid() })
        }
        _ => Ok(Outlook::Begin),
    }
}

/// Claims the pool for a job, and looks whether there is anything to do.
fn begin(
    uuid: PoolUuid,
    work: ReencryptionMode,
    start: impl FnOnce(Claim) -> Step<Result<()>> + Send + 'static,
) -> Step<Result<bool>> {
    Step::brief(move |engine| {
        let claim = match claim(engine, uuid) {
            Ok(claim) => claim,
            Err(taken) => return super::unless_at_work(uuid, taken, begin(uuid, work, start)),
        };
        Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |_, granted| {
            let outlook = super::readable(granted, uuid).and_then(|pool| match outlook(pool, work) {
                // A version 1 pool is refused for its version before the answer that nothing has to
                // be done.
                Ok(Outlook::Nothing) if pool.version() == MetadataVersion::V1 => {
                    Err(Error::OnlyVersion2 { pool: pool.name().clone() })
                }
                outlook => outlook,
            });
            let done = match outlook {
                Ok(Outlook::Nothing) => return Step::Done(Ok(false)),
                Ok(Outlook::GoOn) => {
                    drop(claim);
                    go_on(uuid)
                }
                Ok(Outlook::Begin) => start(claim),
                Err(error) => return Step::Done(Err(error)),
            };
            and_use(uuid, done.map(|done| done.map(|()| true)), |done| *done)
        })
    })
}

/// Nothing else may change the containers of the pool or what they lie on: requests that add
/// devices claim this, too.
fn claim(engine: &Engine, uuid: PoolUuid) -> std::result::Result<Claim, Wait> {
    engine.claims().claim_work(uuid, [Key::Encryption(uuid)])
}

// ---- beginnings ----

fn encrypt(uuid: PoolUuid, new: Vec<NewBinding>, claim: Claim) -> Step<Result<()>> {
    Step::blocking(move |engine| {
        let platform = engine.platform();
        let assigned = encryption::assign(new).map_err(Error::from);
        let prepared: Result<Prepared> =
            assigned.and_then(|assigned: Vec<Assigned>| Prepared::new(platform, &assigned));
        match prepared {
            Ok(prepared) => surround(uuid, prepared, claim),
            Err(error) => Step::Done(Err(error)),
        }
    })
}

/// Makes a container around the data, and moves the pool into it.
fn surround(uuid: PoolUuid, prepared: Prepared, claim: Claim) -> Step<Result<()>> {
    super::change(uuid, |engine, pool| {
        put_space_ahead(engine.platform(), pool)?;
        let nodes = pool.filesystems.keys().map(|filesystem| pool.thin_name(*filesystem));
        let nodes: Vec<String> = nodes.chain([pool.stack.name(Role::Cache)]).collect();
        Ok((pool.stack.clone(), nodes))
    })
    .then(move |ready| {
        Step::blocking(move |engine| {
            let (stack, nodes) = match ready {
                Ok(ready) => ready,
                Err(error) => return Step::Done(Err(error)),
            };
            let platform = engine.platform();
            let made = Rollback::new().guard(platform, |undo| {
                // A larger sector size could tear what file systems take for one sector.
                let logical = |node: &String| Ok(platform.geometry(&platform.dm_node(node))?.logical);
                let sector_size = nodes.iter().map(logical).collect::<Result<Vec<u32>>>()?.into_iter().min();
                let layout = crate::platform::luks::HeaderLayout { sector_size, ..containers::LAYOUT_V2 };
                containers::make(platform, &stack, &prepared, &layout, FormatPurpose::Encrypt, undo)
            });
            match made {
                Ok((_, undo)) => enter(uuid, undo, claim),
                Err(error) => Step::Done(Err(error)),
            }
        })
    })
}

/// Records the pool as encrypted and moves its tables into the container.
fn enter(uuid: PoolUuid, undo: Rollback, claim: Claim) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let pool = match super::writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Step::Done(Err(undo.run(platform, error))),
        };
        match move_in(platform, pool) {
            Ok(()) => {
                undo.forget();
                run(uuid, Plan::Resume, claim)
            }
            Err(error) => {
                // What the record may name, or the pool may lie on, must stay: the header, and the
                // opened device, which the next daemon could not open without a key.
                let error = match error.leaves() < Availability::NoPoolChanges {
                    true => undo.run(platform, error),
                    false => {
                        undo.forget();
                        error
                    }
                };
                pool.note_failure_for_good(&error);
                Step::Done(Err(error))
            }
        }
    })
}

fn move_in(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    pool.check_changes()?;
    let device = platform.dm_node(&pool.stack.name(Role::Cache));
    let header = read(platform, &device)?;
    let bindings = bindings_of(pool.version(), &header)?;
    let has = |kind| bindings.lowest(kind).is_some();
    let (without, clear) = (pool.meta.clone(), pool.shape());
    pool.stack.find(platform, Role::Crypt)?;
    let entered = pool
        .change(platform, Choose::Everywhere, |meta| meta.set_encrypted(has(Kind::Keyring), has(Kind::Clevis)))
        .and_then(|()| pool.note_header(&header))
        .and_then(|()| pool.stack.move_to_cap(platform, &pool.shape()));
    let Err(cause) = entered else {
        pool.note_volume_key(true);
        pool.note_work(Some(Arc::new(view::Work::new(ReencryptionMode::Encrypt, platform.now()))));
        return Ok(());
    };
    pool.note_encryption(None);
    if pool.meta == without {
        return Err(cause);
    }
    Err(match pool.stack.move_from_cap(platform, &clear) {
        Ok(()) => pool.take_back(platform, without, cause),
        // Some I/O may go through the container, so the record must not say that the pool is not
        // encrypted.
        Err(error) => Error::Rollback {
            cause: Box::new(cause),
            failures: vec![("move the pool out of its container again".to_owned(), error)],
            leaves: Availability::NoPoolChanges,
        },
    })
}

fn reencrypt(uuid: PoolUuid, claim: Claim) -> Step<Result<()>> {
    super::change(uuid, |engine, pool| {
        let bindings = pool.encryption()?.agreed()?.clone();
        put_space_ahead(engine.platform(), pool)?;
        Ok((pool.version(), containers_of(engine.platform(), pool), bindings))
    })
    .then(move |ready| {
        Step::blocking(move |engine| {
            let platform = engine.platform();
            let made = ready.and_then(|(version, containers, bindings)| {
                // In version 1, the passphrases that Clevis has encrypted differ from device to
                // device.
                let shared = encryption::every_passphrase(platform, &bindings)?;
                Rollback::new().guard(platform, |undo| {
                    let each = containers.iter().enumerate().map(|(at, container)| {
                        let passphrases = (at == 0).then_some(&shared[..]);
                        prepare_new_key(platform, version, container, passphrases, undo)
                    });
                    each.collect::<Result<Vec<_>>>()
                })
            });
            match made {
                Ok((keys, undo)) => {
                    announce(uuid, ReencryptionMode::Reencrypt, Plan::Reencrypt(keys), Some(undo), claim)
                }
                Err(error) => Step::Done(Err(error)),
            }
        })
    })
}

/// A container with a new volume key in its header.
struct NewKey {
    passphrase: Secret,
    from: u32,
    to: u32,
}

/// Puts a new volume key into a header, with a keyslot for each binding, which the binding's
/// passphrase opens.
fn prepare_new_key(
    platform: &dyn Platform,
    version: MetadataVersion,
    container: &Container,
    passphrases: Option<&[(Binding, Secret)]>,
    undo: &mut Rollback,
) -> Result<NewKey> {
    let header = read(platform, &container.device)?;
    let bindings = bindings_of(version, &header)?;
    let own;
    let passphrases = match passphrases {
        Some(passphrases) => passphrases,
        None => {
            own = encryption::every_passphrase(platform, &bindings)?;
            &own
        }
    };
    let free: Vec<u32> = header.free_keyslots().take(passphrases.len()).collect();
    if free.len() < passphrases.len() {
        return Err(EncryptionError::NoKeyslots.into());
    }
    let (device, slots) = (container.device.clone(), free.clone());
    undo.push(When::Always, format!("remove the new volume key from {}", device.display()), move |platform| {
        let changes: Vec<_> = slots.into_iter().map(HeaderChange::DestroyKeyslot).collect();
        platform.luks_change(&device, None, &changes).map(drop)
    });
    // The keyslots of the old key are destroyed in the end, so each passphrase must be the right
    // one.
    for (binding, passphrase) in passphrases {
        platform.luks_open(&container.device, None, Unlock { passphrase, keyslot: Some(binding.keyslot) })?;
    }
    let each = passphrases.iter().zip(&free);
    let keyslots = each.clone().map(|((binding, passphrase), keyslot)| {
        HeaderChange::AddNextKeyslot(containers::keyslot(binding.kind(), *keyslot, passphrase))
    });
    let tokens = each.filter_map(|((binding, _), keyslot)| {
        let token = header.tokens.get(&binding.token)?;
        Some(HeaderChange::PutToken(binding.token, with_keyslot(token, *keyslot)))
    });
    let changes: Vec<HeaderChange<'_>> = keyslots.chain(tokens).collect();
    let (Some((first, passphrase)), Some(to)) = (passphrases.first(), free.first()) else {
        return Err(EncryptionError::NoMechanism.into());
    };
    let unlock = Unlock { passphrase, keyslot: Some(first.keyslot) };
    platform.luks_change(&container.device, Some(unlock), &changes)?;
    Ok(NewKey { passphrase: passphrase.clone(), from: first.keyslot, to: *to })
}

fn decrypt(uuid: PoolUuid, claim: Claim) -> Step<Result<()>> {
    super::change(uuid, |engine, pool| put_space_ahead(engine.platform(), pool)).then(move |ready| match ready {
        Ok(()) => announce(uuid, ReencryptionMode::Decrypt, Plan::Decrypt, None, claim),
        Err(error) => Step::Done(Err(error)),
    })
}

/// Shows in the pool that a job is about to begin.
fn announce(
    uuid: PoolUuid,
    work: ReencryptionMode,
    plan: Plan,
    undo: Option<Rollback>,
    claim: Claim,
) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let pool = super::writable(granted, uuid).and_then(|pool| pool.check_changes().map(|()| pool));
        match (pool, undo) {
            (Ok(pool), undo) => {
                pool.note_work(Some(Arc::new(view::Work::new(work, platform.now()))));
                // From here on the header says how the job goes on.
                if let Some(undo) = undo {
                    undo.forget();
                }
                run(uuid, plan, claim)
            }
            (Err(error), Some(undo)) => Step::Done(Err(undo.run(platform, error))),
            (Err(error), None) => Step::Done(Err(error)),
        }
    })
}

/// Reserves space of the data devices for the container, before any of it is assigned: as much
/// again as is in use, and at least enough to last for a while.
fn put_space_ahead(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    const AHEAD_MIN: Sectors = Sectors(50 << 21);
    pool.check_requests()?;
    let ahead = pool.available().min(pool.meta.handed_out().max(AHEAD_MIN));
    let (version, headers) = (pool.version(), pool.headers_as_found());
    if version == MetadataVersion::V2 && ahead > pool.meta.taken_ahead(version) {
        pool.change(platform, Choose::Some(platform.random()), |meta| {
            meta.take_ahead(version, &headers.iter().collect::<Vec<_>>(), ahead)
        })?;
    }
    follow(platform, pool)
}

// ---- the work ----

/// How a job is begun.
enum Plan {
    /// As the headers say.
    Resume,
    /// With these keys, one for each container.
    Reencrypt(Vec<NewKey>),
    Decrypt,
}

/// Goes on with a pool's unfinished job, unless somebody else does.
fn go_on(uuid: PoolUuid) -> Step<Result<()>> {
    Step::brief(move |engine| {
        let claim = match claim(engine, uuid) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, go_on(uuid)),
        };
        Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |_, granted| {
            match super::readable(granted, uuid) {
                // Somebody else has completed the job.
                Ok(pool) if pool.work.is_none() => Step::Done(Ok(())),
                Ok(_) => run(uuid, Plan::Resume, claim),
                Err(error) => Step::Done(Err(error)),
            }
        })
    })
}

/// What a job needs to know of the pool.
struct Site {
    version: MetadataVersion,
    containers: Vec<Container>,
    name: crate::base::name::Name,
    work: Arc<view::Work>,
}

impl Site {
    fn interrupted(&self, by: &'static str) -> Error {
        Error::Interrupted { pool: self.name.clone(), by }
    }

    /// Whether the record says that the job has been completed.
    fn is_recorded(&self, pool: &Pool) -> bool {
        match self.work.kind {
            ReencryptionMode::Encrypt => pool.is_encrypted(),
            ReencryptionMode::Reencrypt => pool.meta.last_reencrypt.is_some_and(|done| done >= self.work.since.seconds),
            ReencryptionMode::Decrypt => !pool.is_encrypted(),
        }
    }
}

fn run(uuid: PoolUuid, plan: Plan, claim: Claim) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let site = super::writable(granted, uuid).map(|pool| {
            let containers = containers_of(engine.platform(), pool);
            let mut work = pool.work.clone()?;
            if work.halted.is_some() {
                work = Arc::new(view::Work::new(work.kind, work.since));
                pool.note_work(Some(Arc::clone(&work)));
            }
            Some(Site { version: pool.version(), containers, name: pool.name().clone(), work })
        });
        match site {
            Ok(Some(site)) => Step::background(move |engine| {
                let given_up = || engine.begin(format!("work on the data of pool {uuid}"), give_up(uuid));
                let worked = mended(|| work(engine, uuid, &site, plan), given_up);
                let interrupted = matches!(worked, Ok(ReencryptionEnd::Interrupted));
                if interrupted && !is_begun(engine.platform(), &site) {
                    // Nothing says any more what was to be done.
                    let error = Error::NotBegun { pool: site.name.clone() };
                    return finish(uuid, site, Err(error), claim);
                }
                if interrupted && engine.is_ending() {
                    return Step::Done(Err(site.interrupted("daemon ends")));
                }
                if interrupted {
                    drop(claim);
                    return wait_and_go_on(uuid, site);
                }
                finish(uuid, site, worked.map(drop), claim)
            }),
            Ok(None) => Step::Done(Ok(())),
            Err(error) => Step::Done(Err(error)),
        }
    })
}

/// Shows in the pool that the job on its data has panicked.
fn give_up(uuid: PoolUuid) -> Step<()> {
    Step::write(uuid, move |_, granted| {
        if let Ok(pool) = super::writable(granted, uuid) {
            pool.note_halted(&Error::Panicked.sentence());
        }
        Step::Done(())
    })
}

/// Waits for a request that wants to use the pool alone. Afterwards the job goes on, unless the
/// pool is gone.
fn wait_and_go_on(uuid: PoolUuid, site: Site) -> Step<Result<()>> {
    Step::brief(move |engine| match engine.claims().is_claimed(&Key::Drain(uuid)) {
        true => Step::parked(Key::Drain(uuid), wait_and_go_on(uuid, site)),
        false => go_on(uuid).then(move |done| match done {
            Err(Error::NoPool(_)) => Step::Done(Err(site.interrupted("pool has been stopped"))),
            Ok(()) => Step::locked(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |_, granted| {
                Step::Done(match super::readable(granted, uuid) {
                    // Between two devices of version 1, only the interrupted job knew how to go on,
                    // and reading the pool again has discarded that.
                    Ok(pool) if !site.is_recorded(pool) => Err(site.interrupted("pool has been looked at anew")),
                    _ => Ok(()),
                })
            }),
            done => Step::Done(done),
        }),
    })
}

fn work(engine: &Engine, uuid: PoolUuid, site: &Site, plan: Plan) -> Result<ReencryptionEnd> {
    let platform = engine.platform();
    let told = std::sync::atomic::AtomicU64::new(0);
    let count = site.containers.len() as u64;
    for (at, container) in site.containers.iter().enumerate() {
        let at = at as u64;
        let watch = |progress: Progress| {
            let in_all = |bytes: Bytes| u64::try_from(bytes.0).unwrap_or(u64::MAX);
            let (done, total) = (in_all(progress.done), in_all(progress.total).max(1));
            // Each of several devices counts as much as the one in progress.
            let done_in_all = total.saturating_mul(at).saturating_add(done);
            site.work.note(done_in_all, total.saturating_mul(count), platform.now());
            let tenths = done / total.div_ceil(10).max(1);
            if told.swap(tenths + 1, std::sync::atomic::Ordering::Relaxed) != tenths + 1 {
                log::info!("pool {}: {} % of {} done", site.name, tenths * 10, container.device.display());
            }
            !(engine.is_ending() || engine.claims().is_claimed(&Key::Drain(uuid)))
        };
        let header = read(platform, &container.device)?;
        let run = |unlock: Unlock<'_>, begin: Begin| {
            platform.luks_reencrypt(&container.device, &container.name, unlock, begin, &watch)
        };
        let by_any = |begin: Begin| -> Result<ReencryptionEnd> {
            let bindings: Bindings = bindings_of(site.version, &header)?;
            Ok(encryption::unlock(platform, &bindings, UnlockMethod::Any, None, |unlock| run(unlock, begin))?)
        };
        let begun = match (&plan, header.state) {
            (_, EncryptionState::Unfinished { .. }) => by_any(Begin::Resume),
            (Plan::Reencrypt(keys), _) => match keys.get(usize::try_from(at).unwrap_or(usize::MAX)) {
                Some(NewKey { passphrase, from, to }) => {
                    let begin = Begin::Reencrypt { from: *from, to: *to };
                    Ok(run(Unlock { passphrase, keyslot: Some(*from) }, begin)?)
                }
                None => Ok(ReencryptionEnd::Finished),
            },
            (Plan::Decrypt, EncryptionState::Encrypted) => by_any(Begin::Decrypt),
            (Plan::Resume, EncryptionState::Encrypted) if !header.unused.is_empty() => {
                match prepared_key(platform, &bindings_of(site.version, &header)?)? {
                    Some(NewKey { passphrase, from, to }) => {
                        let begin = Begin::Reencrypt { from, to };
                        Ok(run(Unlock { passphrase: &passphrase, keyslot: Some(from) }, begin)?)
                    }
                    None => Ok(ReencryptionEnd::Finished),
                }
            }
            // Completed before the job was cut short.
            (Plan::Resume | Plan::Decrypt, _) => Ok(ReencryptionEnd::Finished),
        };
        let ended = match begun {
            // A job that reports a failure at its very end is complete all the same.
            Err(error) if is_done(&header, &read(platform, &container.device)?) => {
                log::warn!("the work on {} is done, but: {}", container.device.display(), error.sentence());
                ReencryptionEnd::Finished
            }
            begun => begun?,
        };
        if ended == ReencryptionEnd::Interrupted {
            return Ok(ended);
        }
    }
    if let ((MetadataVersion::V2, ReencryptionMode::Reencrypt), [container]) =
        ((site.version, site.work.kind), &site.containers[..])
    {
        renew_volume_key(platform, uuid, container);
    }
    Ok(ReencryptionEnd::Finished)
}

/// Replaces the old volume key by the new one in the daemon's keyring. If the new key is not
/// available now, the keyring has none: the old one is of no use any more.
fn renew_volume_key(platform: &dyn Platform, uuid: PoolUuid, container: &Container) {
    let renew = || -> Result<()> {
        let bindings = bindings_of(MetadataVersion::V2, &read(platform, &container.device)?)?;
        let key = containers::open(platform, &container.device, None, &bindings, UnlockMethod::Any, None)?;
        Ok(platform.volume_key_set(&volume_keys::name(uuid), &key)?)
    };
    if let Err(error) = renew() {
        log::warn!("the new volume key of pool {uuid} was not found: {}", error.sentence());
        volume_keys::forget(platform, uuid);
    }
}

/// Whether any header says that the job has been begun or even completed. An unreadable header
/// counts as begun.
fn is_begun(platform: &dyn Platform, site: &Site) -> bool {
    let is_untouched = |header: Header| match (site.work.kind, header.state) {
        // The new volume key has not been used yet.
        (ReencryptionMode::Reencrypt, EncryptionState::Encrypted) => !header.unused.is_empty(),
        (ReencryptionMode::Decrypt, state) => state == EncryptionState::Encrypted,
        _ => false,
    };
    site.containers.iter().any(|container| !read(platform, &container.device).is_ok_and(is_untouched))
}

/// The new volume key in the header of a container that the job had not reached when it was cut
/// short in another.
fn prepared_key(platform: &dyn Platform, bindings: &Bindings) -> Result<Option<NewKey>> {
    let mut failed = None;
    for (binding, to) in bindings.iter().filter_map(|binding| Some((binding, binding.next?))) {
        match encryption::passphrase(platform, &binding.mechanism) {
            Ok(passphrase) => return Ok(Some(NewKey { passphrase, from: binding.keyslot, to })),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), |error| Err(error.into()))
}

/// Whether a job on a container has been completed between two looks at its header.
fn is_done(before: &Header, now: &Header) -> bool {
    let replaced = || before.unused.iter().any(|next| now.keyslots.contains(next) && !now.unused.contains(next));
    match (before.state, now.state) {
        (_, EncryptionState::Unfinished { .. }) => false,
        (EncryptionState::Encrypted, EncryptionState::Encrypted) => replaced(),
        (before, now) => before != now,
    }
}

// ---- ends ----

/// Records the result of the job.
fn finish(uuid: PoolUuid, site: Site, worked: Result<()>, claim: Claim) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let pool = match super::writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Step::Done(Err(error)),
        };
        let finished = match worked {
            Ok(()) => complete(engine.platform(), pool, site.work.kind),
            Err(cause) => {
                let left = leave(engine.platform(), pool, &site.containers);
                if let Err(error) = left {
                    log::error!("pool {}: {}", pool.name(), error.sentence());
                }
                Err(cause)
            }
        };
        if let Err(error) = &finished {
            pool.note_halted(&error.sentence());
            pool.note_failure(error);
        }
        if pool.lacks_volume_key() {
            engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
        }
        drop(claim);
        Step::Done(finished)
    })
}

/// After a failure: a job that has been begun stays unfinished; what was prepared for a job that
/// has not been begun is taken back.
fn leave(platform: &dyn Platform, pool: &mut Pool, containers: &[Container]) -> Result<()> {
    let headers = containers.iter().map(|container| read(platform, &container.device)).collect::<Result<Vec<_>>>()?;
    if headers.iter().any(|header| matches!(header.state, EncryptionState::Unfinished { .. })) {
        return Ok(());
    }
    for (container, header) in containers.iter().zip(&headers) {
        let changes = containers::mends(header);
        if !changes.is_empty() {
            platform.luks_change(&container.device, None, &changes)?;
        }
    }
    pool.note_work(None);
    Ok(())
}

fn complete(platform: &dyn Platform, pool: &mut Pool, work: ReencryptionMode) -> Result<()> {
    let containers = containers_of(platform, pool);
    let headers = containers.iter().map(|container| read(platform, &container.device)).collect::<Result<Vec<_>>>()?;
    let wanted = if work == ReencryptionMode::Decrypt { EncryptionState::Clear } else { EncryptionState::Encrypted };
    if headers.iter().any(|header| header.state != wanted) {
        return Err(Error::WorkNotDone { pool: pool.name().clone(), work });
    }
    match work {
        ReencryptionMode::Encrypt => {
            super::encryption::take_in(platform, pool, &containers)?;
            pool.record_bindings(platform)?;
        }
        ReencryptionMode::Reencrypt => {
            super::encryption::take_in(platform, pool, &containers)?;
            let known = platform.volume_key_read(&volume_keys::name(pool.uuid()));
            pool.note_volume_key(known.is_ok_and(|key| key.is_some()));
            let now = platform.now().seconds;
            pool.change(platform, Choose::Some(platform.random()), |meta| {
                meta.last_reencrypt = Some(now);
                Ok(())
            })?;
        }
        ReencryptionMode::Decrypt => {
            pool.change(platform, Choose::Everywhere, |meta| meta.set_clear())?;
            pool.note_encryption(None);
            pool.note_volume_key(false);
            volume_keys::forget(platform, pool.uuid());
            let mut leave = || crate::engine::setup::drop_container(platform, pool);
            // The outcome is decided: what fails now is done at the next set-up.
            if let Err(error) = leave().or_else(|_| leave()) {
                pool.is_behind = true;
                pool.restrict(
                    Availability::NoPoolChanges,
                    format!("it has been decrypted, but is still in its container: {}", error.sentence()),
                );
            }
        }
    }
    pool.note_work(None);
    log::info!("pool {}: the work on its data is done", pool.name());
    Ok(())
}
