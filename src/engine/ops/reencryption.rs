//! Encrypts, re-encrypts and decrypts all data of a running pool (`docs/spec/engine/encryption.md`
//! §9): the requests, and what has to be on disk before a job begins. The job itself is in
//! [`reencryption_job`](super::reencryption_job).
//!
//! # Order, and why it survives a power cut
//!
//! The record of the pool decides whether the pool is encrypted. To encrypt it, a LUKS2 header is
//! first written in front of the plain data; it says that nothing is encrypted yet. Then the record
//! is written, the tables are moved onto the crypt device, and only then is any data encrypted. To
//! decrypt it, all data is decrypted, then the record is written, and the header is wiped last. So
//! at every moment, record and header together say where each byte is and which job has to
//! continue. Set-up derives that from them and continues the job ([`setup`](crate::engine::setup)).

use std::sync::Arc;

use crate::{
    base::{ids::PoolUuid, units::Sectors},
    engine::{
        bda::Choose,
        claims::Claim,
        dm_names::Role,
        encryption::{self, Assigned, Binding, EncryptionError, Kind, NewBinding, with_keyslot},
        error::{Error, Result},
        luks_devices::lifecycle::{self, Prepared},
        metadata::MetadataVersion,
        ops::{
            check::and_use,
            encryption::{LuksLocation, bindings_of, luks_locations, read},
            pool_access::{change, read_pool, unless_at_work, writable},
            reencryption_job::{JobStart, NewKey, claim, go_on, run},
        },
        pool::Pool,
        request::Step,
        thin_growth::follow,
        undo::{Rollback, When},
    },
    platform::{
        Platform,
        keyring::Secret,
        luks::{FormatPurpose, HeaderChange, ReencryptionMode, Unlock},
    },
    view::{self, Availability},
};

/// Encrypts a pool. `false`: the pool is already encrypted.
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

/// What has to be done for a request, as found in the pool before the job.
enum JobOutlook {
    /// Nothing: the pool is already as requested.
    Nothing,
    /// The job was begun before and has to be completed.
    GoOn,
    /// The job has to be begun.
    Begin,
}

fn outlook(pool: &Pool, work: ReencryptionMode) -> Result<JobOutlook> {
    pool.check_requests()?;
    match (pool.job(), work, pool.is_encrypted()) {
        (Some(unfinished), _, _) if unfinished.kind == work => return Ok(JobOutlook::GoOn),
        (None, ReencryptionMode::Encrypt, true) | (None, ReencryptionMode::Decrypt, false) => {
            return Ok(JobOutlook::Nothing);
        }
        (None, ReencryptionMode::Reencrypt, false) => return Err(Error::NothingToOpen { pool: pool.name().clone() }),
        _ => pool.check_no_job()?,
    }
    match (pool.version(), work) {
        (MetadataVersion::V1, ReencryptionMode::Encrypt | ReencryptionMode::Decrypt) => {
            Err(Error::OnlyVersion2 { pool: pool.name().clone() })
        }
        // The crypt device has to be extended first, which requires the volume key.
        (MetadataVersion::V2, ReencryptionMode::Reencrypt | ReencryptionMode::Decrypt) if pool.lacks_volume_key() => {
            Err(Error::VolumeKey { pool: pool.uuid() })
        }
        _ => Ok(JobOutlook::Begin),
    }
}

/// Claims the pool for a job, and looks whether any work is to be done.
fn begin(
    uuid: PoolUuid,
    work: ReencryptionMode,
    start: impl FnOnce(Claim) -> Step<Result<()>> + Send + 'static,
) -> Step<Result<bool>> {
    Step::brief(move |engine| {
        let claim = match claim(engine, uuid) {
            Ok(claim) => claim,
            Err(taken) => return unless_at_work(uuid, taken, begin(uuid, work, start)),
        };
        read_pool(uuid, move |_, pool| {
            let done = match outlook(pool, work) {
                // A version 1 pool is refused for its version before the request is answered with
                // "nothing to do".
                Ok(JobOutlook::Nothing) if pool.version() == MetadataVersion::V1 => {
                    return Step::Done(Err(Error::OnlyVersion2 { pool: pool.name().clone() }));
                }
                Ok(JobOutlook::Nothing) => return Step::Done(Ok(false)),
                Ok(JobOutlook::GoOn) => {
                    drop(claim);
                    go_on(uuid)
                }
                Ok(JobOutlook::Begin) => start(claim),
                Err(error) => return Step::Done(Err(error)),
            };
            and_use(uuid, done.map(|done| done.map(|()| true)), |done| *done)
        })
    })
}

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

/// Turns the device that the data lies on into a LUKS device, and moves the pool onto its crypt
/// device.
fn surround(uuid: PoolUuid, prepared: Prepared, claim: Claim) -> Step<Result<()>> {
    change(uuid, |engine, pool| {
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
                let layout = crate::platform::luks::HeaderLayout { sector_size, ..lifecycle::LAYOUT_V2 };
                lifecycle::make(platform, &stack, &prepared, &layout, FormatPurpose::Encrypt, undo)
            });
            match made {
                Ok((_, undo)) => enter(uuid, undo, claim),
                Err(error) => Step::Done(Err(error)),
            }
        })
    })
}

/// Records the pool as encrypted and moves its tables onto the crypt device.
fn enter(uuid: PoolUuid, undo: Rollback, claim: Claim) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let pool = match writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Step::Done(Err(undo.run(platform, error))),
        };
        match move_in(platform, pool) {
            Ok(()) => {
                undo.forget();
                run(uuid, JobStart::Resume, claim)
            }
            Err(error) => {
                // What the record may name, or the pool may lie on, must stay: the header, and the
                // crypt device, which the next daemon could not open without a key.
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
    let (without, clear) = (pool.meta().clone(), pool.shape());
    pool.stack.find(platform, Role::Crypt)?;
    let entered = pool
        .change(platform, Choose::Everywhere, |meta| meta.set_encrypted(has(Kind::Keyring), has(Kind::Clevis)))
        .and_then(|()| pool.note_header(&header))
        .and_then(|()| pool.stack.move_to_cap(platform, &pool.shape()));
    let Err(cause) = entered else {
        pool.note_volume_key(true);
        pool.note_job(Some(Arc::new(view::ReencryptionJob::new(ReencryptionMode::Encrypt, platform.now()))));
        return Ok(());
    };
    pool.note_encryption(None);
    if *pool.meta() == without {
        return Err(cause);
    }
    Err(match pool.stack.move_from_cap(platform, &clear) {
        Ok(()) => pool.take_back(platform, without, cause),
        // Some I/O may go through the crypt device, so the record must not say that the pool is not
        // encrypted.
        Err(error) => Error::Rollback {
            cause: Box::new(cause),
            failures: vec![("move the pool off its crypt device again".to_owned(), error)],
            leaves: Availability::NoPoolChanges,
        },
    })
}

fn reencrypt(uuid: PoolUuid, claim: Claim) -> Step<Result<()>> {
    change(uuid, |engine, pool| {
        let bindings = pool.encryption()?.agreed()?.clone();
        put_space_ahead(engine.platform(), pool)?;
        Ok((pool.version(), luks_locations(engine.platform(), pool), bindings))
    })
    .then(move |ready| {
        Step::blocking(move |engine| {
            let platform = engine.platform();
            let made = ready.and_then(|(version, luks_devices, bindings)| {
                // In version 1, the passphrases that Clevis has encrypted differ from device to
                // device.
                let shared = encryption::every_passphrase(platform, &bindings)?;
                Rollback::new().guard(platform, |undo| {
                    let each = luks_devices.iter().enumerate().map(|(at, luks_device)| {
                        let passphrases = (at == 0).then_some(&shared[..]);
                        prepare_new_key(platform, version, luks_device, passphrases, undo)
                    });
                    each.collect::<Result<Vec<_>>>()
                })
            });
            match made {
                Ok((keys, undo)) => {
                    announce(uuid, ReencryptionMode::Reencrypt, JobStart::Reencrypt(keys), Some(undo), claim)
                }
                Err(error) => Step::Done(Err(error)),
            }
        })
    })
}

/// Puts a new volume key into a header, with a keyslot for each binding, which the binding's
/// passphrase opens.
fn prepare_new_key(
    platform: &dyn Platform,
    version: MetadataVersion,
    luks_device: &LuksLocation,
    passphrases: Option<&[(Binding, Secret)]>,
    undo: &mut Rollback,
) -> Result<NewKey> {
    let header = read(platform, &luks_device.device)?;
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
    let (device, slots) = (luks_device.device.clone(), free.clone());
    undo.push(When::Always, format!("remove the new volume key from {}", device.display()), move |platform| {
        let changes: Vec<_> = slots.into_iter().map(HeaderChange::DestroyKeyslot).collect();
        platform.luks_change(&device, None, &changes).map(drop)
    });
    // The keyslots of the old key are destroyed at the end, so each passphrase must be the right
    // one.
    for (binding, passphrase) in passphrases {
        platform.luks_open(&luks_device.device, None, Unlock { passphrase, keyslot: Some(binding.keyslot) })?;
    }
    let each = passphrases.iter().zip(&free);
    let keyslots = each.clone().map(|((binding, passphrase), keyslot)| {
        HeaderChange::AddNextKeyslot(lifecycle::keyslot(binding.kind(), *keyslot, passphrase))
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
    platform.luks_change(&luks_device.device, Some(unlock), &changes)?;
    Ok(NewKey { passphrase: passphrase.clone(), from: first.keyslot, to: *to })
}

fn decrypt(uuid: PoolUuid, claim: Claim) -> Step<Result<()>> {
    change(uuid, |engine, pool| put_space_ahead(engine.platform(), pool)).then(move |ready| match ready {
        Ok(()) => announce(uuid, ReencryptionMode::Decrypt, JobStart::Decrypt, None, claim),
        Err(error) => Step::Done(Err(error)),
    })
}

/// Shows in the view of the pool that a job is about to start.
fn announce(
    uuid: PoolUuid,
    work: ReencryptionMode,
    start: JobStart,
    undo: Option<Rollback>,
    claim: Claim,
) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let pool = writable(granted, uuid).and_then(|pool| pool.check_changes().map(|()| pool));
        match (pool, undo) {
            (Ok(pool), undo) => {
                pool.note_job(Some(Arc::new(view::ReencryptionJob::new(work, platform.now()))));
                // From here on the header says how the job continues.
                if let Some(undo) = undo {
                    undo.forget();
                }
                run(uuid, start, claim)
            }
            (Err(error), Some(undo)) => Step::Done(Err(undo.run(platform, error))),
            (Err(error), None) => Step::Done(Err(error)),
        }
    })
}

/// Gives space of the data devices to the crypt device before the pool needs it: as much again as
/// is in use, and at least enough to last for a while.
fn put_space_ahead(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    const AHEAD_MIN: Sectors = Sectors(50 << 21);
    pool.check_requests()?;
    let ahead = pool.available().min(pool.meta().handed_out().max(AHEAD_MIN));
    let (version, headers) = (pool.version(), pool.headers_as_found());
    if version == MetadataVersion::V2 && ahead > pool.meta().taken_ahead(version) {
        pool.change(platform, Choose::Some(platform.random()), |meta| {
            meta.take_ahead(version, &headers.iter().collect::<Vec<_>>(), ahead)
        })?;
    }
    follow(platform, pool)
}
