//! Adds, removes and replaces bindings of a pool (`docs/spec/engine/encryption.md` §7).
//!
//! The bindings are stored in LUKS2 headers: version 2 has one header, version 1 has one below each
//! member. Each change of a header is atomic. The changes are ordered so that the next set-up
//! recognizes what a kill or a power cut between two of them has left ([`lifecycle::mends`]).
//! A keyslot is made before its token. A token that changes its keyslot names both until the old
//! one is destroyed. A keyslot is destroyed before its token is removed.
//!
//! Keys are derived and servers are asked without a lock, also when a change is taken back. The
//! claim [`Key::Encryption`] keeps two such requests from changing one pool at the same time.

use std::path::{Path, PathBuf};

use crate::{
    base::ids::PoolUuid,
    engine::{
        Engine,
        claims::{Claim, Key},
        dm_names::Role,
        encryption::{
            self, Assigned, BindRequest, Binding, BindingPlan, Bindings, ClevisRequest, EncryptionError, Info,
            KeyDescription, Kind, Mechanism, RebindRequest, SlotRequest, UnlockMethod, plan_bind, plan_rebind,
            plan_unbind, read_device_header, read_pool_header, with_keyslot,
        },
        error::{Error, Result},
        luks_devices::{
            lifecycle::{self, Prepared},
            volume_keys,
        },
        metadata::MetadataVersion,
        ops::pool_access::{read_pool, readable, unless_at_work, writable},
        pool::Pool,
        request::Step,
        undo::{Rollback, When},
    },
    platform::{
        Platform,
        keyring::Secret,
        luks::{Header, HeaderChange, Unlock},
    },
    view::Availability,
};

/// Adds a binding to a pool. `false`: the pool already has it.
pub fn bind(uuid: PoolUuid, request: BindRequest, slot: SlotRequest) -> Step<Result<bool>> {
    change_bindings(uuid, move |info| {
        Ok(match plan_bind(info, &request, slot)? {
            BindingPlan::Add { token } => Some(BindingChange::Add(Assigned { token, request: request.clone() })),
            BindingPlan::IdentityIfOpened(binding) => Some(BindingChange::Try(binding)),
            _ => None,
        })
    })
}

/// Removes a binding from a pool. `false`: the pool has no such binding.
pub fn unbind(uuid: PoolUuid, kind: Kind, slot: SlotRequest) -> Step<Result<bool>> {
    change_bindings(uuid, move |info| {
        Ok(match plan_unbind(info, kind, slot)? {
            BindingPlan::Remove(binding) => Some(BindingChange::Remove(binding.token)),
            _ => None,
        })
    })
}

/// Replaces the passphrase of a binding, or has Clevis encrypt a new one. `false`: the binding is
/// already as requested.
pub fn rebind(uuid: PoolUuid, request: RebindRequest, slot: SlotRequest) -> Step<Result<bool>> {
    change_bindings(uuid, move |info| {
        Ok(match plan_rebind(info, &request, slot)? {
            BindingPlan::Replace(binding) => {
                let request = match (&request, &binding.mechanism) {
                    (RebindRequest::Keyring(description), _) => BindRequest::Keyring(description.clone()),
                    (RebindRequest::Clevis, Mechanism::Clevis { jwe, .. }) => {
                        BindRequest::Clevis(ClevisRequest::renewal(jwe)?)
                    }
                    (RebindRequest::Clevis, Mechanism::Keyring(_)) => {
                        return Err(EncryptionError::NoSource(Kind::Clevis).into());
                    }
                };
                Some(BindingChange::Replace(Assigned { token: binding.token, request }))
            }
            _ => None,
        })
    })
}

/// The change to make to the headers.
enum BindingChange {
    /// No change, if this binding opens the first header.
    Try(Binding),
    Add(Assigned),
    Remove(u32),
    Replace(Assigned),
}

/// A LUKS device of a pool.
#[derive(Debug, Clone)]
pub(super) struct LuksLocation {
    /// The device that holds the header.
    pub device: PathBuf,
    /// Name of the crypt device on it.
    pub name: String,
}

/// The LUKS devices of a pool: below its cap device in version 2, below each member in version 1.
pub(super) fn luks_locations(platform: &dyn Platform, pool: &Pool) -> Vec<LuksLocation> {
    match pool.version() {
        MetadataVersion::V2 => {
            let device = platform.dm_node(&pool.stack.name(Role::Cache));
            vec![LuksLocation { device, name: pool.stack.name(Role::Crypt) }]
        }
        MetadataVersion::V1 => pool.luks_devices().map(|(device, name)| LuksLocation { device, name }).collect(),
    }
}

/// The bindings in a header of a pool.
pub(super) fn bindings_of(version: MetadataVersion, header: &Header) -> Result<Bindings> {
    Ok(match version {
        MetadataVersion::V1 => read_device_header(header)?.bindings,
        MetadataVersion::V2 => read_pool_header(header)?,
    })
}

fn change_bindings(
    uuid: PoolUuid,
    plan: impl Fn(&Info) -> Result<Option<BindingChange>> + Send + 'static,
) -> Step<Result<bool>> {
    Step::brief(move |engine| {
        let claim = match engine.claims().claim_work(uuid, [Key::Encryption(uuid)]) {
            Ok(claim) => claim,
            Err(taken) => return unless_at_work(uuid, taken, change_bindings(uuid, plan)),
        };
        read_pool(uuid, move |engine, pool| {
            let usable = pool.check_requests().and_then(|()| pool.check_no_job());
            let planned = usable.and_then(|()| {
                Ok(plan(pool.encryption()?)?
                    .map(|change| (change, pool.version(), luks_locations(engine.platform(), pool))))
            });
            match planned {
                Ok(Some((change, version, luks_devices))) => record_ahead(uuid, &change).then(move |recorded| {
                    Step::blocking(move |engine| match recorded {
                        Ok(()) => carry_out(engine, uuid, &change, version, &luks_devices, claim),
                        Err(error) => Step::Done(Err(error)),
                    })
                }),
                Ok(None) => Step::Done(Ok(false)),
                Err(error) => Step::Done(Err(error)),
            }
        })
    })
}

/// Records which kinds of bindings will remain, before a binding is removed. Afterwards, taking the
/// removal back would require the key of the removed binding.
fn record_ahead(uuid: PoolUuid, change: &BindingChange) -> Step<Result<()>> {
    let BindingChange::Remove(token) = *change else { return Step::Done(Ok(())) };
    super::pool_access::change(uuid, move |engine, pool| {
        let left: Vec<Kind> =
            pool.encryption()?.agreed()?.iter().filter(|b| b.token != token).map(Binding::kind).collect();
        pool.record_kinds(engine.platform(), |kind| left.contains(&kind))
    })
}

fn carry_out(
    engine: &Engine,
    uuid: PoolUuid,
    change: &BindingChange,
    version: MetadataVersion,
    luks_devices: &[LuksLocation],
    claim: Claim,
) -> Step<Result<bool>> {
    let platform = engine.platform();
    let changed = Rollback::new().guard(platform, |undo| match change {
        BindingChange::Try(binding) => {
            let Some(LuksLocation { device, .. }) = luks_devices.first() else { return Ok(false) };
            let header = read(platform, device)?;
            let bindings = bindings_of(version, &header)?;
            lifecycle::open(platform, device, None, &bindings, UnlockMethod::Token(binding.token), None)?;
            Ok(false)
        }
        BindingChange::Add(assigned) => {
            luks_devices
                .iter()
                .try_for_each(|luks_device| add(platform, version, &luks_device.device, assigned, undo))?;
            Ok(true)
        }
        BindingChange::Remove(token) => {
            // All headers are read before the first is changed.
            let to_remove = luks_devices
                .iter()
                .map(|luks_device| BindingToRemove::find(platform, version, &luks_device.device, *token));
            let to_remove = to_remove.collect::<Result<Vec<_>>>()?;
            to_remove.into_iter().flatten().try_for_each(|to_remove| to_remove.remove(platform, version, undo))?;
            Ok(true)
        }
        BindingChange::Replace(assigned) => {
            luks_devices
                .iter()
                .try_for_each(|luks_device| replace(platform, version, &luks_device.device, assigned, undo))?;
            Ok(true)
        }
    });
    match changed {
        Ok((false, undo)) => {
            undo.forget();
            Step::Done(Ok(false))
        }
        Ok((true, undo)) if matches!(change, BindingChange::Remove(_)) => {
            undo.forget();
            let BindingChange::Remove(token) = *change else { return Step::Done(Ok(true)) };
            take_note(uuid, luks_devices.to_vec(), None, claim).then(move |noted| match noted {
                Err(error) => note_gone(uuid, token, error),
                noted => Step::Done(noted),
            })
        }
        Ok((true, undo)) => take_note(uuid, luks_devices.to_vec(), Some(undo), claim),
        Err(error) => note_undone(uuid, luks_devices.to_vec(), error, claim),
    }
}

/// Shows that a binding is gone even though the headers could not be read or the change could not
/// be recorded.
fn note_gone(uuid: PoolUuid, token: u32, error: Error) -> Step<Result<bool>> {
    Step::write(uuid, move |_, granted| {
        if let Ok(pool) = writable(granted, uuid) {
            let what = error.sentence();
            log::error!("an unlock method of pool {} was removed, but that could not be noted: {what}", pool.name());
            let is_shown = |info: &Info| info.agreed().map_or(true, |bindings| bindings.get(token).is_some());
            if pool.encryption().is_ok_and(is_shown) {
                let reason =
                    format!("an unlock method was removed, and its LUKS2 headers could not be read since: {what}");
                pool.restrict(Availability::NoRequests, reason);
            }
        }
        Step::Done(Ok(true))
    })
}

/// Notes what a failed change has left in the headers. There may be more than before, if the change
/// could not be taken back. No former keyslot is destroyed: in version 1, only some of the headers
/// may have the new one, and the next set-up needs the former keyslots to take the new ones back.
fn note_undone(uuid: PoolUuid, luks_devices: Vec<LuksLocation>, error: Error, claim: Claim) -> Step<Result<bool>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        if let Ok(pool) = writable(granted, uuid) {
            show_anew(platform, pool, &luks_devices);
            if let Err(error) = pool.record_bindings(platform) {
                log::warn!("could not record the unlock methods of pool {}: {}", pool.name(), error.sentence());
            }
            pool.note_failure(&error);
        }
        drop(claim);
        Step::Done(Err(error))
    })
}

/// Reads the headers again and shows what they say. In version 2, the kinds of bindings are also
/// recorded; if that fails, the change is taken back.
fn take_note(
    uuid: PoolUuid,
    luks_devices: Vec<LuksLocation>,
    undo: Option<Rollback>,
    claim: Claim,
) -> Step<Result<bool>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let noted = writable(granted, uuid).and_then(|pool| {
            take_in(platform, pool, &luks_devices)?;
            pool.record_bindings(platform)?;
            Ok(pool)
        });
        let pool = match noted {
            Ok(pool) => pool,
            Err(error) => return take_back(uuid, luks_devices, undo.unwrap_or_default(), error, claim),
        };
        undo.into_iter().for_each(Rollback::forget);
        // An old keyslot that cannot be destroyed now is destroyed at the next set-up.
        let replaced = luks_devices.iter().filter(|luks_device| forget_old(platform, &luks_device.device));
        if replaced.count() > 0 {
            show_anew(platform, pool, &luks_devices);
        }
        drop(claim);
        Step::Done(Ok(true))
    })
}

/// Takes a change back. Keys may have to be derived for that, so the pool is not locked meanwhile.
fn take_back(
    uuid: PoolUuid,
    luks_devices: Vec<LuksLocation>,
    undo: Rollback,
    cause: Error,
    claim: Claim,
) -> Step<Result<bool>> {
    Step::blocking(move |engine| {
        let error = undo.run(engine.platform(), cause);
        note_undone(uuid, luks_devices, error, claim)
    })
}

/// Reads the headers again after they have changed.
fn show_anew(platform: &dyn Platform, pool: &mut Pool, luks_devices: &[LuksLocation]) {
    if let Err(error) = take_in(platform, pool, luks_devices) {
        log::warn!(
            "could not read the LUKS2 headers of pool {}, so clients see its former bindings: {}",
            pool.name(),
            error.sentence()
        );
    }
}

/// Stores what the headers of a pool say now.
///
/// # Errors
/// When a header cannot be read.
pub(super) fn take_in(platform: &dyn Platform, pool: &mut Pool, luks_devices: &[LuksLocation]) -> Result<()> {
    let headers = read_headers(platform, luks_devices)?;
    if let (MetadataVersion::V2, Some(header)) = (pool.version(), headers.first()) {
        return pool.note_header(header);
    }
    for member in pool.members.luks_devices_mut() {
        let at = luks_devices.iter().position(|luks_device| luks_device.device == member.device.path);
        if let Some(header) = at.and_then(|at| headers.get(at)) {
            member.bindings = read_device_header(header)?.bindings;
            member.state = header.state;
        }
    }
    pool.note_luks_devices()
}

/// Reads the header on a device that must have one.
pub(super) fn read(platform: &dyn Platform, device: &Path) -> Result<Header> {
    let missing = || EncryptionError::NoHeader(device.to_owned());
    Ok(platform.luks_read(device)?.ok_or_else(missing)?)
}

/// Reads the headers of all these devices.
pub(super) fn read_headers(platform: &dyn Platform, luks_devices: &[LuksLocation]) -> Result<Vec<Header>> {
    luks_devices.iter().map(|luks_device| read(platform, &luks_device.device)).collect()
}

/// Makes changes, the first of which adds a keyslot.
fn with_key(platform: &dyn Platform, device: &Path, bindings: &Bindings, changes: &[HeaderChange<'_>]) -> Result<()> {
    let change = |unlock: Unlock<'_>| platform.luks_change(device, Some(unlock), changes);
    Ok(encryption::unlock(platform, bindings, UnlockMethod::Any, None, change).map(drop)?)
}

fn add(
    platform: &dyn Platform,
    version: MetadataVersion,
    device: &Path,
    assigned: &Assigned,
    undo: &mut Rollback,
) -> Result<()> {
    let header = read(platform, device)?;
    let keyslot = header.free_keyslots().next().ok_or(EncryptionError::Full)?;
    let prepared = Prepared::new(platform, std::slice::from_ref(assigned))?;
    let (token, path) = (assigned.token, device.to_owned());
    undo.push(When::Always, format!("remove the new binding on {}", device.display()), move |platform| {
        let changes = [HeaderChange::DestroyKeyslot(keyslot), HeaderChange::RemoveToken(token)];
        platform.luks_change(&path, None, &changes).map(drop)
    });
    let keyslots = prepared.keyslots([keyslot]).into_iter().map(HeaderChange::AddKeyslot);
    let tokens = prepared.tokens([keyslot]).into_iter().map(|(number, token)| HeaderChange::PutToken(number, token));
    let changes: Vec<HeaderChange<'_>> = keyslots.chain(tokens).collect();
    with_key(platform, device, &bindings_of(version, &header)?, &changes)
}

/// A binding that is to be removed from a header.
struct BindingToRemove {
    device: PathBuf,
    token: serde_json::Value,
    binding: Binding,
}

impl BindingToRemove {
    /// The binding with this token; `None`: the header has no such binding.
    fn find(
        platform: &dyn Platform,
        version: MetadataVersion,
        device: &Path,
        token: u32,
    ) -> Result<Option<BindingToRemove>> {
        let header = read(platform, device)?;
        let binding = bindings_of(version, &header)?.get(token).cloned();
        let value = header.tokens.get(&token).cloned();
        Ok(binding.zip(value).map(|(binding, token)| BindingToRemove { device: device.to_owned(), token, binding }))
    }

    fn remove(self, platform: &dyn Platform, version: MetadataVersion, undo: &mut Rollback) -> Result<()> {
        let device = self.device.clone();
        let changes =
            [HeaderChange::DestroyKeyslot(self.binding.keyslot), HeaderChange::RemoveToken(self.binding.token)];
        undo.push(When::Always, format!("make the binding on {} again", device.display()), move |platform| {
            self.restore(platform, version)
        });
        let change = || platform.luks_change(&device, None, &changes).map(drop);
        // Try once more after an error: the undo of the change needs the binding's passphrase,
        // which may not be available any more.
        Ok(change().or_else(|_| change())?)
    }

    /// Makes the binding again if it has been removed, wholly or in part.
    fn restore(self, platform: &dyn Platform, version: MetadataVersion) -> Result<()> {
        let BindingToRemove { device, token, binding } = self;
        let header = read(platform, &device)?;
        let passphrase: Secret;
        let mut changes = Vec::new();
        if !header.keyslots.contains(&binding.keyslot) {
            passphrase = encryption::passphrase(platform, &binding.mechanism)?;
            changes.push(HeaderChange::AddKeyslot(lifecycle::keyslot(binding.kind(), binding.keyslot, &passphrase)));
        }
        changes.push(HeaderChange::PutToken(binding.token, token));
        with_key(platform, &device, &bindings_of(version, &header)?, &changes)
    }
}

fn replace(
    platform: &dyn Platform,
    version: MetadataVersion,
    device: &Path,
    assigned: &Assigned,
    undo: &mut Rollback,
) -> Result<()> {
    let header = read(platform, device)?;
    let bindings = bindings_of(version, &header)?;
    let old = bindings.get(assigned.token).ok_or(EncryptionError::EmptySlot(assigned.token))?;
    let keyslot = header.free_keyslots().next().ok_or(EncryptionError::Full)?;
    let prepared = Prepared::new(platform, std::slice::from_ref(assigned))?;
    let former = header.tokens.get(&assigned.token).cloned();
    let (token, path) = (assigned.token, device.to_owned());
    undo.push(When::Always, format!("put the former binding on {} back", device.display()), move |platform| {
        let former = former.map(|former| HeaderChange::PutToken(token, former));
        let changes: Vec<_> = former.into_iter().chain([HeaderChange::DestroyKeyslot(keyslot)]).collect();
        platform.luks_change(&path, None, &changes).map(drop)
    });
    let keyslots = prepared.keyslots([keyslot]).into_iter().map(HeaderChange::AddKeyslot);
    // The old keyslot stays the first of its token until it is destroyed.
    let tokens = prepared.tokens([old.keyslot]).into_iter();
    let tokens = tokens.map(|(number, token)| HeaderChange::PutToken(number, with_keyslot(&token, keyslot)));
    let changes: Vec<HeaderChange<'_>> = keyslots.chain(tokens).collect();
    with_key(platform, device, &bindings, &changes)
}

/// Destroys a keyslot that has been replaced. `true`: the header has changed.
fn forget_old(platform: &dyn Platform, device: &Path) -> bool {
    let forget = || -> Result<bool> {
        let changes = lifecycle::mends(&read(platform, device)?);
        if changes.is_empty() {
            return Ok(false);
        }
        Ok(platform.luks_change(device, None, &changes).map(|_| true)?)
    };
    forget().or_else(|_| forget()).unwrap_or_else(|error| {
        let (device, what) = (device.display(), error.sentence());
        log::error!("the former passphrase still opens {device} until the pool is next set up: {what}");
        true
    })
}

// ---- volume keys ----

/// Looks for the volume key of an adopted pool, so that the pool can grow.
pub(super) fn load_volume_key(uuid: PoolUuid) -> Step<()> {
    load(uuid, |bindings| bindings)
}

/// As [`load_volume_key`], without asking servers.
pub(super) fn load_by_keyring(uuid: PoolUuid) -> Step<()> {
    load(uuid, |bindings| bindings.of_kind(Kind::Keyring))
}

/// As [`load_volume_key`], but only with the bindings to this key, if the pool has any.
pub(super) fn load_by_key(uuid: PoolUuid, description: KeyDescription) -> Step<()> {
    load(uuid, move |bindings| bindings.of_mechanism(&Mechanism::Keyring(description)))
}

fn load(uuid: PoolUuid, choose: impl FnOnce(Bindings) -> Bindings + Send + 'static) -> Step<()> {
    Step::read(uuid, move |engine, granted| {
        let Ok(pool) = readable(granted, uuid) else { return Step::Done(()) };
        let Ok(bindings) = pool.encryption().and_then(|info| Ok(info.agreed()?.clone())) else {
            return Step::Done(());
        };
        if !pool.lacks_volume_key() {
            return Step::Done(());
        }
        let bindings = choose(bindings);
        let Some(luks_device) = luks_locations(engine.platform(), pool).into_iter().next() else {
            return Step::Done(());
        };
        if bindings.count() == 0 {
            return Step::Done(());
        }
        Step::blocking(move |engine| {
            let platform = engine.platform();
            let opened = lifecycle::open(platform, &luks_device.device, None, &bindings, UnlockMethod::Any, None);
            let kept = opened.and_then(|key| Ok(platform.volume_key_set(&volume_keys::name(uuid), &key)?));
            if let Err(error) = kept {
                log::warn!("pool {uuid} cannot grow, since its volume key was not found: {}", error.sentence());
                return Step::Done(());
            }
            Step::write(uuid, move |engine, granted| {
                match writable(granted, uuid) {
                    Ok(pool) => pool.note_volume_key(true),
                    // The pool has been stopped meanwhile.
                    Err(_) => volume_keys::forget(engine.platform(), uuid),
                }
                Step::Done(())
            })
        })
    })
}
