//! Runs the re-encryption job of a pool from the point that the headers record to its end, and
//! records the result.
//!
//! The pool can be used while a job runs; the job has a dedicated thread and holds no lock.
//! The crypt device cannot be extended meanwhile, so it gets space for the growth of the pool
//! beforehand. A request that wants to use the pool alone (a stop) makes the job pause. When the
//! pool is available again, the job continues, and so does the request that asked for it.

use std::sync::Arc;

use crate::{
    base::{ids::PoolUuid, units::Bytes},
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        encryption::{self, Bindings, KeyDescription, UnlockMethod},
        error::{Error, Result},
        luks_devices::{lifecycle, volume_keys},
        metadata::MetadataVersion,
        ops::{
            encryption::{LuksLocation, bindings_of, luks_locations, read, read_headers},
            pool_access::{read_pool, readable, writable, write_pool},
        },
        pool::Pool,
        request::{Step, Wait},
        undo::mended,
    },
    platform::{
        Platform,
        keyring::Secret,
        luks::{Begin, DataEncryption, Header, Progress, ReencryptionEnd, ReencryptionMode, Unlock},
    },
    view::{self, Availability},
};

/// Claims a pool for a job. No other request may change the LUKS devices of the pool or the devices
/// below them: requests that add devices claim this key, too.
pub(super) fn claim(engine: &Engine, uuid: PoolUuid) -> std::result::Result<Claim, Wait> {
    engine.claims().claim_work(uuid, [Key::Encryption(uuid)])
}

/// Continues a job that was interrupted.
pub(super) fn resume(uuid: PoolUuid) -> Step<()> {
    go_on(uuid).map(move |result| {
        if let Err(error) = result {
            log::error!("the re-encryption job of pool {uuid} stopped part-way: {}", error.sentence());
        }
    })
}

/// Continues a job that may have had to wait for this key.
pub(super) fn resume_by_key(uuid: PoolUuid, key: KeyDescription) -> Step<()> {
    Step::read(uuid, move |_, granted| {
        match readable(granted, uuid).is_ok_and(|pool| pool.needs_for_job(&key)) {
            // The request that works on the pool may have looked for the key just before it was
            // set. Once that request has given up, the job is tried again.
            true => resume(uuid),
            false => Step::Done(()),
        }
    })
}

/// Continues a pool's unfinished job, unless another request is doing so.
pub(super) fn go_on(uuid: PoolUuid) -> Step<Result<()>> {
    Step::brief(move |engine| {
        let claim = match claim(engine, uuid) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, go_on(uuid)),
        };
        read_pool(uuid, move |_, pool| match pool.job() {
            // Another request has completed the job.
            None => Step::Done(Ok(())),
            Some(_) => run(uuid, JobStart::Resume, claim),
        })
    })
}

/// How a job starts.
pub(super) enum JobStart {
    /// From the point that the headers record.
    Resume,
    /// With these keys, one for each LUKS device.
    Reencrypt(Vec<NewKey>),
    Decrypt,
}

/// How a LUKS device with a new volume key in its header is opened.
pub(super) struct NewKey {
    pub passphrase: Secret,
    pub from: u32,
    pub to: u32,
}

/// What a job needs to know about the pool.
struct JobContext {
    version: MetadataVersion,
    luks_devices: Vec<LuksLocation>,
    name: crate::base::name::Name,
    work: Arc<view::ReencryptionJob>,
}

impl JobContext {
    fn interrupted(&self, by: &'static str) -> Error {
        Error::Interrupted { pool: self.name.clone(), by }
    }

    /// Whether the record says that the job has been completed.
    fn is_recorded(&self, pool: &Pool) -> bool {
        match self.work.kind {
            ReencryptionMode::Encrypt => pool.is_encrypted(),
            ReencryptionMode::Reencrypt => {
                pool.meta().last_reencrypt.is_some_and(|done| done >= self.work.since.seconds)
            }
            ReencryptionMode::Decrypt => !pool.is_encrypted(),
        }
    }
}

pub(super) fn run(uuid: PoolUuid, start: JobStart, claim: Claim) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let job = writable(granted, uuid).map(|pool| {
            let luks_devices = luks_locations(engine.platform(), pool);
            let mut work = pool.job().cloned()?;
            if work.error.is_some() {
                work = Arc::new(view::ReencryptionJob::new(work.kind, work.since));
                pool.note_job(Some(Arc::clone(&work)));
            }
            Some(JobContext { version: pool.version(), luks_devices, name: pool.name().clone(), work })
        });
        match job {
            Ok(Some(job)) => Step::background(move |engine| {
                let given_up = || engine.begin(format!("re-encryption job of pool {uuid}"), give_up(uuid));
                let worked = mended(|| work(engine, uuid, &job, start), given_up);
                let interrupted = matches!(worked, Ok(ReencryptionEnd::Interrupted));
                if interrupted && !is_begun(engine.platform(), &job) {
                    // No header says any more what was to be done.
                    let error = Error::NotBegun { pool: job.name.clone() };
                    return finish(uuid, job, Err(error), claim);
                }
                if interrupted && engine.is_ending() {
                    return Step::Done(Err(job.interrupted("daemon is stopping")));
                }
                if interrupted {
                    drop(claim);
                    return wait_and_go_on(uuid, job);
                }
                finish(uuid, job, worked.map(drop), claim)
            }),
            Ok(None) => Step::Done(Ok(())),
            Err(error) => Step::Done(Err(error)),
        }
    })
}

/// Shows in the view of the pool that the job on its data has panicked.
fn give_up(uuid: PoolUuid) -> Step<()> {
    Step::write(uuid, move |_, granted| {
        if let Ok(pool) = writable(granted, uuid) {
            pool.note_job_error(&Error::Panicked.sentence());
        }
        Step::Done(())
    })
}

/// Waits for a request that wants to use the pool alone. Afterwards the job continues, unless the
/// pool is gone.
fn wait_and_go_on(uuid: PoolUuid, job: JobContext) -> Step<Result<()>> {
    Step::brief(move |engine| match engine.claims().is_claimed(&Key::Drain(uuid)) {
        true => Step::parked(Key::Drain(uuid), wait_and_go_on(uuid, job)),
        false => go_on(uuid).then(move |done| match done {
            Err(Error::NoPool(_)) => Step::Done(Err(job.interrupted("pool has been stopped"))),
            Ok(()) => Step::read(uuid, move |_, granted| {
                Step::Done(match readable(granted, uuid) {
                    // When a job is interrupted between two devices of version 1, only the job in
                    // memory knows how to continue, and reading the pool again has discarded that.
                    Ok(pool) if !job.is_recorded(pool) => {
                        Err(job.interrupted("pool has been read again from its devices"))
                    }
                    _ => Ok(()),
                })
            }),
            done => Step::Done(done),
        }),
    })
}

fn work(engine: &Engine, uuid: PoolUuid, job: &JobContext, start: JobStart) -> Result<ReencryptionEnd> {
    let platform = engine.platform();
    let logged = std::sync::atomic::AtomicU64::new(0);
    let count = job.luks_devices.len() as u64;
    for (at, luks_device) in job.luks_devices.iter().enumerate() {
        let at = at as u64;
        let watch = |progress: Progress| {
            let in_all = |bytes: Bytes| u64::try_from(bytes.0).unwrap_or(u64::MAX);
            let (done, total) = (in_all(progress.done), in_all(progress.total).max(1));
            // Each LUKS device counts as much as the one in progress.
            let done_in_all = total.saturating_mul(at).saturating_add(done);
            job.work.note(done_in_all, total.saturating_mul(count), platform.now());
            let tenths = done / total.div_ceil(10).max(1);
            if logged.swap(tenths + 1, std::sync::atomic::Ordering::Relaxed) != tenths + 1 {
                log::info!(
                    "the re-encryption job of pool {} has done {} % of {}",
                    job.name,
                    tenths * 10,
                    luks_device.device.display()
                );
            }
            !(engine.is_ending() || engine.claims().is_claimed(&Key::Drain(uuid)))
        };
        let header = read(platform, &luks_device.device)?;
        let run = |unlock: Unlock<'_>, begin: Begin| {
            platform.luks_reencrypt(&luks_device.device, &luks_device.name, unlock, begin, &watch)
        };
        let by_any = |begin: Begin| -> Result<ReencryptionEnd> {
            let bindings: Bindings = bindings_of(job.version, &header)?;
            Ok(encryption::unlock(platform, &bindings, UnlockMethod::Any, None, |unlock| run(unlock, begin))?)
        };
        let begun = match (&start, header.state) {
            (_, DataEncryption::Unfinished { .. }) => by_any(Begin::Resume),
            (JobStart::Reencrypt(keys), _) => match keys.get(usize::try_from(at).unwrap_or(usize::MAX)) {
                Some(NewKey { passphrase, from, to }) => {
                    let begin = Begin::Reencrypt { from: *from, to: *to };
                    run(Unlock { passphrase, keyslot: Some(*from) }, begin).map_err(Error::from)
                }
                None => Ok(ReencryptionEnd::Finished),
            },
            (JobStart::Decrypt, DataEncryption::Encrypted) => by_any(Begin::Decrypt),
            (JobStart::Resume, DataEncryption::Encrypted) if !header.unused.is_empty() => {
                match prepared_key(platform, &bindings_of(job.version, &header)?)? {
                    Some(NewKey { passphrase, from, to }) => {
                        let begin = Begin::Reencrypt { from, to };
                        run(Unlock { passphrase: &passphrase, keyslot: Some(from) }, begin).map_err(Error::from)
                    }
                    None => Ok(ReencryptionEnd::Finished),
                }
            }
            // This device was completed before the job was interrupted.
            (JobStart::Resume | JobStart::Decrypt, _) => Ok(ReencryptionEnd::Finished),
        };
        let ended = match begun {
            // A job that reports a failure at its very end may still be complete.
            Err(error) if is_done(&header, &read(platform, &luks_device.device)?) => {
                log::warn!(
                    "the re-encryption job on {} is complete, although it reported a failure: {}",
                    luks_device.device.display(),
                    error.sentence()
                );
                ReencryptionEnd::Finished
            }
            begun => begun?,
        };
        if ended == ReencryptionEnd::Interrupted {
            return Ok(ended);
        }
    }
    if let ((MetadataVersion::V2, ReencryptionMode::Reencrypt), [luks_device]) =
        ((job.version, job.work.kind), &job.luks_devices[..])
    {
        renew_volume_key(platform, uuid, luks_device);
    }
    Ok(ReencryptionEnd::Finished)
}

/// Replaces the old volume key by the new one in the daemon's keyring. If the new key is not
/// available now, the keyring holds no volume key: the old one has become useless.
fn renew_volume_key(platform: &dyn Platform, uuid: PoolUuid, luks_device: &LuksLocation) {
    let renew = || -> Result<()> {
        let bindings = bindings_of(MetadataVersion::V2, &read(platform, &luks_device.device)?)?;
        let key = lifecycle::open(platform, &luks_device.device, None, &bindings, UnlockMethod::Any, None)?;
        Ok(platform.volume_key_set(&volume_keys::name(uuid), &key)?)
    };
    if let Err(error) = renew() {
        log::warn!("could not find the new volume key of pool {uuid}: {}", error.sentence());
        volume_keys::forget(platform, uuid);
    }
}

/// Whether any header says that the job has been begun or even completed. An unreadable header
/// counts as begun.
fn is_begun(platform: &dyn Platform, job: &JobContext) -> bool {
    let is_untouched = |header: Header| match (job.work.kind, header.state) {
        // The new volume key has not been used yet.
        (ReencryptionMode::Reencrypt, DataEncryption::Encrypted) => !header.unused.is_empty(),
        (ReencryptionMode::Decrypt, state) => state == DataEncryption::Encrypted,
        _ => false,
    };
    job.luks_devices.iter().any(|luks_device| !read(platform, &luks_device.device).is_ok_and(is_untouched))
}

/// The new volume key in the header of a LUKS device that the job had not reached when it was
/// interrupted on another one.
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

/// Whether a job on a LUKS device has been completed between two looks at its header.
fn is_done(before: &Header, now: &Header) -> bool {
    let replaced = || before.unused.iter().any(|next| now.keyslots.contains(next) && !now.unused.contains(next));
    match (before.state, now.state) {
        (_, DataEncryption::Unfinished { .. }) => false,
        (DataEncryption::Encrypted, DataEncryption::Encrypted) => replaced(),
        (before, now) => before != now,
    }
}

/// Records the result of the job.
fn finish(uuid: PoolUuid, job: JobContext, worked: Result<()>, claim: Claim) -> Step<Result<()>> {
    write_pool(uuid, move |engine, pool| {
        let finished = match worked {
            Ok(()) => complete(engine.platform(), pool, job.work.kind),
            Err(cause) => {
                let left = leave(engine.platform(), pool, &job.luks_devices);
                if let Err(error) = left {
                    log::error!(
                        "could not take back the prepared re-encryption job of pool {}: {}",
                        pool.name(),
                        error.sentence()
                    );
                }
                Err(cause)
            }
        };
        if let Err(error) = &finished {
            pool.note_job_error(&error.sentence());
            pool.note_failure(error);
        }
        if pool.lacks_volume_key() {
            engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
        }
        drop(claim);
        Step::Done(finished)
    })
}

/// After a failure: a job that has been begun stays unfinished; the preparations for a job that has
/// not been begun are taken back.
fn leave(platform: &dyn Platform, pool: &mut Pool, luks_devices: &[LuksLocation]) -> Result<()> {
    let headers = read_headers(platform, luks_devices)?;
    if headers.iter().any(|header| matches!(header.state, DataEncryption::Unfinished { .. })) {
        return Ok(());
    }
    for (luks_device, header) in luks_devices.iter().zip(&headers) {
        let changes = lifecycle::mends(header);
        if !changes.is_empty() {
            platform.luks_change(&luks_device.device, None, &changes)?;
        }
    }
    pool.note_job(None);
    Ok(())
}

fn complete(platform: &dyn Platform, pool: &mut Pool, work: ReencryptionMode) -> Result<()> {
    let luks_devices = luks_locations(platform, pool);
    let headers = read_headers(platform, &luks_devices)?;
    let wanted = if work == ReencryptionMode::Decrypt { DataEncryption::Clear } else { DataEncryption::Encrypted };
    if headers.iter().any(|header| header.state != wanted) {
        return Err(Error::ReencryptionIncomplete { pool: pool.name().clone(), mode: work });
    }
    match work {
        ReencryptionMode::Encrypt => {
            super::encryption::take_in(platform, pool, &luks_devices)?;
            pool.record_bindings(platform)?;
        }
        ReencryptionMode::Reencrypt => {
            super::encryption::take_in(platform, pool, &luks_devices)?;
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
            let mut leave = || crate::engine::setup::drop_luks_device(platform, pool);
            // The outcome is decided: what fails now is done at the next set-up.
            if let Err(error) = leave().or_else(|_| leave()) {
                pool.growth.note_behind(true);
                pool.restrict(
                    Availability::NoPoolChanges,
                    format!("it has been decrypted, but its crypt device could not be removed: {}", error.sentence()),
                );
            }
        }
    }
    pool.note_job(None);
    log::info!("pool {} has completed its re-encryption job", pool.name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::base::units::Sectors;

    fn header(state: DataEncryption, keyslots: &[u32], unused: &[u32]) -> Header {
        Header {
            uuid: String::new(),
            data_offset: Sectors::ZERO,
            sector_size: 512,
            state,
            keyslots: keyslots.iter().copied().collect::<BTreeSet<u32>>(),
            unused: unused.iter().copied().collect(),
            tokens: BTreeMap::new(),
        }
    }

    #[test]
    fn a_new_keyslot_that_counts_ends_the_job() {
        let before = header(DataEncryption::Encrypted, &[0, 1], &[1]);
        let check = |keyslots: &[u32], unused: &[u32], expected: bool| {
            let now = header(DataEncryption::Encrypted, keyslots, unused);
            assert_eq!(is_done(&before, &now), expected, "{now:?}");
        };
        check(&[1], &[], true);
        check(&[0, 1], &[0], true);
        // The job has not begun, or the new keyslot has been taken back.
        check(&[0, 1], &[1], false);
        check(&[0], &[], false);
    }

    #[test]
    fn the_state_tells_whether_a_job_is_done() {
        let unfinished = |mode| DataEncryption::Unfinished { mode, done: Bytes(1 << 20) };
        let check = |before: DataEncryption, now: DataEncryption, expected: bool| {
            assert_eq!(is_done(&header(before, &[0], &[]), &header(now, &[0], &[])), expected, "{before:?} {now:?}");
        };
        check(unfinished(ReencryptionMode::Encrypt), DataEncryption::Encrypted, true);
        check(unfinished(ReencryptionMode::Decrypt), DataEncryption::Clear, true);
        check(DataEncryption::Encrypted, DataEncryption::Clear, true);
        check(unfinished(ReencryptionMode::Decrypt), unfinished(ReencryptionMode::Decrypt), false);
        check(DataEncryption::Encrypted, unfinished(ReencryptionMode::Decrypt), false);
        check(DataEncryption::Clear, DataEncryption::Clear, false);
    }
}
